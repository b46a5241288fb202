"""The verbs of a registry: resolve, fetch, look, mount, upload, put.

`Registry` holds the stack of senders (authentication over redirects over retries over the wire) and
speaks the paths of the distribution specification.  It knows nothing of images, stores or progress:
what it returns is verified bytes, or a stream that its user verifies.
Source: OCI distribution-spec 1.1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Self

from orlop.config import Settings, over_limit
from orlop.errors import DataLoss, Error, InvalidArgument, NotFound, Unimplemented
from orlop.observe import Call
from orlop.registry.access.auth import Authorizing, FindsCredential
from orlop.registry.access.authfile import keep_token
from orlop.registry.access.credentials import CredentialSources, Keychain
from orlop.registry.access.helpers import ask_helper
from orlop.registry.asking import Asker
from orlop.registry.blobs.downloads import Ask, BlobStream, open_range, open_stream
from orlop.registry.blobs.foreign import open_foreign
from orlop.registry.blobs.sources import Blob, Source
from orlop.registry.blobs.uploads import Uploader
from orlop.registry.deletes import delete
from orlop.registry.faults import from_status
from orlop.registry.finding.hosts import Endpoint
from orlop.registry.finding.locate import Locator
from orlop.registry.finding.places import Places
from orlop.registry.finding.search import candidates
from orlop.registry.listing import list_tags
from orlop.registry.messages import Request, Response
from orlop.registry.net.proxies import Proxies
from orlop.registry.net.retry import Backoff
from orlop.registry.net.transport import Redirecting, Retrying
from orlop.registry.net.wire import Wire
from orlop.registry.referrers import Referrers
from orlop.spec.digest import Digest
from orlop.spec.documents import INDEX_TYPES, MANIFEST_TYPES, Descriptor
from orlop.spec.reference import Reference, is_short
from orlop.values import dataclass, replace

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
        credentials: FindsCredential | None = None,
    ) -> None:
        self._limits = settings.limits
        self._search = settings.search_registries
        insecure = settings.insecure_registries
        self._wire = wire or Wire(
            timeout=settings.timeout,
            stall_rate=settings.stall_rate,
            insecure=insecure,
            proxies=Proxies(settings.proxy),
        )
        retrying = Retrying(
            self._wire,
            retries=settings.retries,
            backoff=backoff or Backoff(),
            budget=settings.retry_wait,
        )
        self._bare = Redirecting(retrying)  # whatever it is given, no credentials go along
        keep = partial(keep_token, limit=sources.file_size)
        send = Authorizing(self._bare, credentials or Keychain(sources, ask_helper, keep))
        places = Places(
            insecure=insecure, hosts_dirs=settings.hosts_dirs, registries_conf=settings.registries_conf
        )
        self._locate = Locator(self._wire, retrying, places=places)
        self._asker = Asker(send, self._locate)
        self._uploader = Uploader(
            send, retries=settings.retries, backoff=backoff or Backoff(), chunk=settings.upload_chunk
        )
        self.referrers = Referrers(self._asker, self._limits)

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """With the credentials that the settings name, and the files for registries as they are now.

        Raises `InvalidArgument` for settings and for a `registries.conf` that cannot be.
        """
        sources = CredentialSources(
            files=settings.auth_files,
            helper_path=settings.helper_path,
            file_size=settings.limits.auth_file_size,
            document=settings.auth_config,
        )
        return cls(settings, sources)

    def check_files(self) -> None:
        """Read the `registries.conf` files.  Raises what their use would raise."""
        _ = self._locate.places.conf

    def close(self) -> None:
        """Close the connections that are idle.  Idempotent; what runs goes on."""
        self._wire.close()

    def ping(self, registry: str, *, call: Call) -> bool:
        """Make sure that a registry answers and takes the credentials there are; whether it wanted some."""
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
        return response.authenticated

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

        def check(response: Response) -> None:
            if not digest.verifies(response.data):
                raise DataLoss(attempted, f"sent other bytes than {digest}")

        request, response = self._asker.ask(
            ref, "GET", f"blobs/{digest}", attempted, call, read=descriptor.size, check=check
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

    def open_blob(
        self,
        ref: Reference,
        digest: Digest,
        *,
        offset: int = 0,
        urls: Sequence[str] = (),
        call: Call,
    ) -> BlobStream:
        """Start to download a blob, from ``offset`` bytes on where the registry can.

        What comes is not verified here.  Use the result in a ``with`` statement.  ``urls`` are where else it
        may lie, for one that the registry has not (`orlop.registry.blobs.foreign`).
        """
        attempted = f"fetch blob {digest} of {ref.name}"
        try:
            return open_stream(self._ask_blob(ref, digest, attempted, call), offset=offset, call=call)
        except NotFound:
            if not urls:
                raise
        endpoint = self._locate(ref.registry, attempted, call)
        return open_foreign(
            self._bare, urls, endpoint=endpoint, offset=offset, attempted=attempted, call=call
        )

    def open_blob_range(
        self,
        ref: Reference,
        digest: Digest,
        *,
        offset: int,
        end: int | None,
        etag: str = "",
        spare: bool,
        call: Call,
    ) -> BlobStream:
        """Start to download the bytes of a blob from ``offset`` to ``end`` (None: all the rest) alone.

        Raises as `orlop.registry.blobs.downloads.open_range` does.  A ``spare`` connection is one beside
        others: it is not tried twice, and takes nothing but its range.
        """
        attempted = f"fetch blob {digest} of {ref.name}"
        ask = self._ask_blob(ref, digest, attempted, call, retries=0 if spare else None)
        return open_range(ask, offset=offset, end=end, etag=etag, whole=not spare, call=call)

    def names(self, text: str) -> tuple[Reference, ...]:
        """What a name that was typed may mean, in order (`orlop.registry.finding.search`)."""
        if self._search is False or not is_short(text):
            return (Reference.parse(text),)
        conf = self._locate.places.conf
        return candidates(text, self._search, listed=conf.search or (), aliases=conf.aliases)

    def distrust(self, endpoint: Endpoint, why: Error, *, call: Call) -> bool:
        """A mirror sent other bytes than it should: do not ask it for a while, for long if that is sure.

        False where it was no mirror, so that asking again would be asking the same.
        """
        return self._asker.distrust(endpoint, call, why.reason, sure=isinstance(why, DataLoss))

    def _ask_blob(
        self, ref: Reference, digest: Digest, attempted: str, call: Call, *, retries: int | None = None
    ) -> Ask:
        def ask(headers: Mapping[str, str]) -> tuple[Request, Response]:
            request = self._asker.request(
                ref, "GET", f"blobs/{digest}", attempted, call, headers=headers, read=None
            )
            response = self._asker.send(replace(request, retries=retries), call)
            return replace(request, endpoint=response.endpoint or request.endpoint), response

        return ask

    def has_blob(self, ref: Reference, digest: Digest, *, push: bool = False, call: Call) -> int | None:
        """The size of a blob that the repository has (0 where it does not say), else None.

        ``push`` asks where one would push to, and not a mirror.
        """
        attempted = f"look for blob {digest} in {ref.name}"
        response = self._head(ref, f"blobs/{digest}", attempted, call, push=push)
        if response is None:
            return None
        length = response.headers.get("content-length", "")
        return int(length) if length.isascii() and length.isdigit() else 0

    def has_manifest(self, ref: Reference, *, push: bool = False, call: Call) -> Digest | None:
        """The digest of what a reference means at the registry, or None if it means nothing.

        A registry that does not tell digests (the header is optional) is asked for the manifest.
        ``push`` asks where one would push to, and not a mirror; None then also where it does not tell.
        """
        attempted = f"look for {ref}"
        response = self._head(ref, f"manifests/{ref.target}", attempted, call, push=push)
        if response is None:
            return None
        if said := response.headers.get("docker-content-digest"):
            return _said_digest(said, attempted)
        return None if push else self.resolve(ref, call=call).descriptor.checked_digest()

    def mount_blob(
        self, ref: Reference, digest: Digest, source_repository: str | None, *, call: Call
    ) -> bool:
        """Have the registry take a blob from another of its repositories; False where it will not.

        None leaves it to the registry to know where it has the blob.
        """
        source = "" if source_repository is None else _repository(ref, source_repository)
        origin = f" from {source}" if source else ""
        attempted = f"mount blob {digest}{origin} in {ref.name}"
        request = self._asker.request(ref, "POST", "blobs/uploads/", attempted, call, push=True)
        return self._uploader.mount(request, digest, source, call)

    def upload_blob(
        self,
        ref: Reference,
        source: Source,
        *,
        digest: Digest | Callable[[], Digest],
        size: int | None,
        mounts: Sequence[str | None] = (),
        call: Call,
    ) -> bool:
        """Send a blob; True if it was mounted, and nothing sent.

        A ``source`` that is a function gives the bytes from an offset on, and again from another after a cut;
        one that is not is read once, so the caller repeats a failed upload.  ``digest`` may be a function
        that is asked behind the last byte.  With a known digest, ``mounts`` are asked for the blob first:
        repositories of the registry that may have it, None for whichever.  The session is cancelled where
        this raises: `Unavailable` for cuts without progress in between, `DataLoss` where the registry got
        other bytes or their number differs from ``size``, and whatever ``source`` raises.
        """
        attempted = f"upload a blob to {ref.name}"
        if isinstance(digest, Digest):
            attempted = f"upload blob {digest} to {ref.name}"
        request = self._asker.request(ref, "POST", "blobs/uploads/", attempted, call, push=True)
        return self._uploader.upload(
            request,
            Blob(source=source, digest=digest, size=size),
            mounts=["" if name is None else _repository(ref, name) for name in mounts],
            there=lambda named: self.has_blob(ref, named, push=True, call=call) is not None,
            call=call,
        )

    def put_manifest(self, ref: Reference, data: bytes, media_type: str, *, call: Call) -> Digest:
        """Store a manifest or index under the tag of ``ref``, or its digest where it has no tag.

        One that has a subject is entered in the list of its referrers, where the registry does not.
        """
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
        self.referrers.pushed(ref, data, media_type, said=response.headers.get("oci-subject"), call=call)
        return digest

    def tags(
        self, ref: Reference, *, last: str | None = None, count: int | None = None, call: Call
    ) -> list[str]:
        """The tags of a repository: those after ``last``, ``count`` at most.  Raises as `list_tags` does."""
        return list_tags(self._asker, ref, last=last, count=count, limits=self._limits, call=call)

    def delete(self, ref: Reference, *, call: Call) -> None:
        """Delete a manifest by digest, or a tag alone.  Raises as `orlop.registry.deletes.delete` does."""
        delete(self._asker, ref, call=call)

    def _get_manifest(self, ref: Reference, target: str, attempted: str, call: Call) -> Response:
        limits = self._limits
        most = max(limits.manifest_size, limits.index_size)
        wanted = target if isinstance(target, Digest) else None

        def check(response: Response) -> None:
            if len(response.data) <= most:
                _checked(response, wanted, attempted)

        headers = {"Accept": _ACCEPT}
        request, response = self._asker.ask(
            ref, "GET", f"manifests/{target}", attempted, call, headers=headers, read=most, check=check
        )
        if not response.ok:
            raise from_status(request.endpoint, response, attempted)
        is_index = _media_type(response) in INDEX_TYPES
        name = "index_size" if is_index else "manifest_size"
        limit = limits.index_size if is_index else limits.manifest_size
        if len(response.data) > limit:
            raise over_limit(name, f"more than {limit}", limit, attempted=attempted)
        return response

    def _head(self, ref: Reference, path: str, attempted: str, call: Call, *, push: bool) -> Response | None:
        request, response = self._asker.ask(
            ref, "HEAD", path, attempted, call, push=push, headers={"Accept": _ACCEPT}
        )
        if response.status == _ABSENT:
            return None
        if not response.ok:
            raise from_status(request.endpoint, response, attempted)
        return response


def _repository(ref: Reference, name: str) -> str:
    """A repository of the same registry, checked."""
    return Reference.parse(f"{ref.registry}/{name}").repository


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
