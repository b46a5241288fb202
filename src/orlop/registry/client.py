"""The verbs of a registry: resolve, fetch, look, mount, upload, put.

`Registry` holds the stack of senders (authentication over redirects over retries over the wire) and
speaks the paths of the distribution specification.  It knows nothing of images, stores or progress:
what it returns is verified bytes, or a stream that its user verifies.
Source: OCI distribution-spec 1.1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from orlop.config import Settings, over_limit
from orlop.errors import DataLoss, InvalidArgument, Unimplemented
from orlop.observe import Call
from orlop.registry.asking import Asker
from orlop.registry.auth import Authorizing
from orlop.registry.blobs import BlobStream, open_stream
from orlop.registry.credentials import CredentialSources, Keychain
from orlop.registry.faults import from_status
from orlop.registry.helpers import ask_helper
from orlop.registry.locate import Locator
from orlop.registry.messages import Request, Response
from orlop.registry.retry import Backoff
from orlop.registry.transport import Redirecting, Retrying
from orlop.registry.uploads import Upload, mount
from orlop.registry.wire import Wire
from orlop.spec.digest import Digest
from orlop.spec.documents import INDEX_TYPES, MANIFEST_TYPES, Descriptor
from orlop.spec.reference import Reference

__all__ = ["Fetched", "Registry"]

_ACCEPT = ", ".join(INDEX_TYPES + MANIFEST_TYPES)
_ABSENT = 404


@dataclass(frozen=True, slots=True, kw_only=True)
class Fetched:
    """A document as the registry has it, and the descriptor that fits it.

    ``descriptor.media_type`` is the Content-Type the registry gave; it may be empty.
    """

    descriptor: Descriptor
    data: bytes


class Registry:
    """All registries, through one set of connections and tokens.  Thread-safe; one per store.

    Every method may raise `Unavailable` (host down, or its answer 408, 429 or 5xx, after retries),
    `Unauthenticated`, `PermissionDenied`, and what `Call.check` raises.
    """

    def __init__(
        self,
        settings: Settings,
        sources: CredentialSources,
        *,
        wire: Wire | None = None,
        backoff: Backoff | None = None,
    ) -> None:
        self._limits = settings.limits
        insecure = settings.insecure_registries
        self._wire = wire or Wire(timeout=settings.timeout, insecure=insecure)
        retrying = Retrying(self._wire, retries=settings.retries, backoff=backoff or Backoff())
        send = Authorizing(Redirecting(retrying), Keychain(sources, ask_helper))
        self._locate = Locator(self._wire, retrying, insecure=insecure)
        self._asker = Asker(send, self._locate)

    def close(self) -> None:
        """Close the connections.  Idempotent."""
        self._wire.close()

    def ping(self, registry: str, *, call: Call) -> None:
        """Make sure that a registry answers and takes the credentials there are."""
        attempted = f"reach registry {registry}"
        endpoint = self._locate(registry, attempted, call)
        request = Request(method="GET", url=endpoint.url(""), endpoint=endpoint, attempted=attempted)
        response = self._asker.send(request, call)
        if response.status == _ABSENT:
            raise Unimplemented(
                attempted, f"{endpoint.host} does not speak the registry's protocol, version 2"
            )
        if not response.ok:
            raise from_status(endpoint, response, attempted)

    def resolve(self, ref: Reference, *, call: Call) -> Fetched:
        """What a reference means: its manifest or index, by digest where it has one, else by tag.

        The bytes have the digest of ``ref`` and the one the registry says (else `DataLoss`).
        Raises `NotFound` for an unknown image, `ResourceExhausted` past ``limits.manifest_size`` or its
        ``index_size``.
        """
        attempted = f"resolve {ref}"
        response = self._get_manifest(ref, ref.target, attempted, call)
        digest = _checked(response, ref.digest, attempted)
        media_type = _media_type(response)
        # A plain string: msgspec does not encode subclasses of str.
        descriptor = Descriptor(media_type=media_type, digest=str(digest), size=len(response.data))
        return Fetched(descriptor=descriptor, data=response.data)

    def manifest(self, ref: Reference, descriptor: Descriptor, *, call: Call) -> bytes:
        """The manifest or index of a descriptor.  Raises as `resolve` does."""
        digest = descriptor.checked_digest()
        attempted = f"fetch manifest {digest} of {ref.name}"
        response = self._get_manifest(ref, digest, attempted, call)
        _checked(response, digest, attempted)
        if len(response.data) != descriptor.size:
            reason = f"it has {len(response.data)} bytes, its descriptor says {descriptor.size}"
            raise DataLoss(attempted, reason)
        return response.data

    def blob(self, ref: Reference, descriptor: Descriptor, *, call: Call) -> bytes:
        """A small blob, such as a config, whole.

        Raises `DataLoss` where digest or size differ, `ResourceExhausted` past ``limits.config_size``.
        """
        digest = descriptor.checked_digest()
        attempted = f"fetch blob {digest} of {ref.name}"
        limit = self._limits.config_size
        if descriptor.size > limit:
            raise over_limit("config_size", descriptor.size, limit, attempted=attempted)
        request, response = self._asker.ask(
            ref, "GET", f"blobs/{digest}", attempted, call, read=descriptor.size
        )
        if not response.ok:
            raise from_status(request.endpoint, response, attempted)
        size = len(response.data)
        if size != descriptor.size:
            many = f"more than {descriptor.size}" if size > descriptor.size else str(size)
            raise DataLoss(attempted, f"it has {many} bytes, its descriptor says {descriptor.size}")
        if not digest.verifies(response.data):
            raise DataLoss(attempted, f"{request.endpoint.host} sent other bytes than {digest}")
        return response.data

    def open_blob(self, ref: Reference, digest: Digest, *, offset: int = 0, call: Call) -> BlobStream:
        """Start to download a blob, from ``offset`` bytes on where the registry can.

        What comes is not verified here.  Use the result in a ``with`` statement.
        """
        attempted = f"fetch blob {digest} of {ref.name}"
        request = self._asker.request(ref, "GET", f"blobs/{digest}", attempted, call, read=None)
        return open_stream(self._asker.send, request, offset=offset, call=call)

    def has_blob(self, ref: Reference, digest: Digest, *, call: Call) -> int | None:
        """The size of a blob that the repository has (0 where it does not say), else None."""
        response = self._head(ref, f"blobs/{digest}", f"look for blob {digest} in {ref.name}", call)
        if response is None:
            return None
        length = response.headers.get("content-length", "")
        return int(length) if length.isascii() and length.isdigit() else 0

    def has_manifest(self, ref: Reference, *, call: Call) -> Digest | None:
        """The digest of what a reference means at the registry, or None if it means nothing.

        A registry that does not tell digests (the header is optional) is asked for the manifest.
        """
        attempted = f"look for {ref}"
        response = self._head(ref, f"manifests/{ref.target}", attempted, call)
        if response is None:
            return None
        if said := response.headers.get("docker-content-digest"):
            return _said_digest(said, attempted)
        return self.resolve(ref, call=call).descriptor.checked_digest()

    def mount_blob(self, ref: Reference, digest: Digest, source_repository: str, *, call: Call) -> bool:
        """Have the registry take a blob from another of its repositories; False where it will not."""
        source = Reference.parse(f"{ref.registry}/{source_repository}").repository
        attempted = f"mount blob {digest} from {source} in {ref.name}"
        request = self._asker.request(ref, "POST", "blobs/uploads/", attempted, call, push=True)
        request = replace(request, scopes=(*request.scopes, f"repository:{source}:pull"))
        return mount(self._asker.send, request, digest=digest, source=source, call=call)

    def upload_blob(
        self,
        ref: Reference,
        chunks: Iterable[bytes],
        *,
        digest: Digest | Callable[[], Digest],
        size: int | None,
        call: Call,
    ) -> None:
        """Send a blob.  ``chunks`` is consumed once, so the caller repeats a failed upload.

        With a `Digest` and a size it is one PUT.  With a function, which is asked after the last
        chunk, it is a streamed PATCH and a PUT.  The session is cancelled where this raises:
        `Unavailable` for a cut, `DataLoss` where the registry got other bytes or their number
        differs from ``size``, and whatever ``chunks`` raises.
        """
        attempted = f"upload a blob to {ref.name}"
        if isinstance(digest, Digest):
            attempted = f"upload blob {digest} to {ref.name}"
        request = self._asker.request(ref, "POST", "blobs/uploads/", attempted, call, push=True)
        upload = Upload.start(self._asker.send, request, call)
        try:
            if isinstance(digest, Digest) and size is not None:
                upload.send_whole(chunks, digest=digest, size=size, call=call)
            else:
                known = digest
                ask = (lambda: known) if isinstance(known, Digest) else known
                upload.send_stream(chunks, digest=ask, size=size, call=call)
        finally:
            upload.cancel()

    def put_manifest(self, ref: Reference, data: bytes, media_type: str, *, call: Call) -> Digest:
        """Store a manifest or index under the tag of ``ref``, or its digest where it has no tag."""
        attempted = f"push {ref}"
        if ref.digest is not None and not ref.digest.verifies(data):
            raise InvalidArgument(attempted, f"the manifest's digest is {Digest.of(data)}")
        digest = ref.digest or Digest.of(data)
        path, headers = f"manifests/{ref.tag or digest}", {"Content-Type": media_type}
        request, response = self._asker.ask(
            ref, "PUT", path, attempted, call, push=True, headers=headers, body=data
        )
        if not response.ok:
            raise from_status(request.endpoint, response, attempted)
        said = response.headers.get("docker-content-digest")
        if said and not _said_digest(said, attempted).verifies(data):
            raise DataLoss(attempted, f"{request.endpoint.host} kept it as {said[:150]}, not as {digest}")
        return digest

    def _get_manifest(self, ref: Reference, target: str, attempted: str, call: Call) -> Response:
        limits = self._limits
        most = max(limits.manifest_size, limits.index_size)
        request, response = self._asker.ask(
            ref, "GET", f"manifests/{target}", attempted, call, headers={"Accept": _ACCEPT}, read=most
        )
        if not response.ok:
            raise from_status(request.endpoint, response, attempted)
        is_index = _media_type(response) in INDEX_TYPES
        name = "index_size" if is_index else "manifest_size"
        limit = limits.index_size if is_index else limits.manifest_size
        if len(response.data) > limit:
            raise over_limit(name, f"more than {limit}", limit, attempted=attempted)
        return response

    def _head(self, ref: Reference, path: str, attempted: str, call: Call) -> Response | None:
        request, response = self._asker.ask(ref, "HEAD", path, attempted, call, headers={"Accept": _ACCEPT})
        if response.status == _ABSENT:
            return None
        if not response.ok:
            raise from_status(request.endpoint, response, attempted)
        return response


def _media_type(response: Response) -> str:
    return response.headers.get("content-type", "").partition(";")[0].strip()


def _checked(response: Response, wanted: Digest | None, attempted: str) -> Digest:
    """The digest of a document, after comparing it with the one wanted and the one the registry says."""
    data = response.data
    if wanted is not None and not wanted.verifies(data):
        raise DataLoss(attempted, f"the registry sent a document with digest {Digest.of(data)}")
    said = response.headers.get("docker-content-digest")
    if said and not _said_digest(said, attempted).verifies(data):
        raise DataLoss(
            attempted, f"the registry says {said[:150]} and sent a document with digest {Digest.of(data)}"
        )
    return wanted or Digest.of(data)


def _said_digest(text: str, attempted: str) -> Digest:
    try:
        return Digest(text)
    except InvalidArgument as exc:
        raise DataLoss(attempted, f"the registry says a digest that is none: {text[:100]!r}") from exc
