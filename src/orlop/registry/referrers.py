"""What refers to a manifest: signatures, SBOMs and the like, by the API or by the tag that stands in for it.

A registry without the referrers API has an index under the tag ``sha256-<hex>`` that clients keep up to date
themselves.  Nothing guards that index against two clients at a time: it is read, changed and written, and the
last one wins (the specification offers no better).
Source: distribution-spec, "Listing Referrers", "Referrers Tag Schema", "Pushing Manifests with Subject".
"""

from __future__ import annotations

from collections.abc import Callable
from urllib.parse import urlencode

from orlop.config import Limits, over_limit
from orlop.errors import DataLoss, InvalidArgument
from orlop.observe import Call
from orlop.registry.asking import Asker
from orlop.registry.faults import from_status
from orlop.registry.listing import follow
from orlop.spec.digest import Digest
from orlop.spec.documents import INDEX_TYPES, OCI_INDEX, Descriptor, Index, Manifest, encode, parse_manifest
from orlop.spec.reference import Reference

__all__ = ["Referrers", "fallback_tag"]

_ABSENT = 404
_NO_API = frozenset({400, 404, 405, 406, 501})  # how registries say that they do not know the page
_APPLIED = "oci-filters-applied"


def fallback_tag(digest: Digest) -> str:
    """The tag of the index of a manifest's referrers, where there is no API.

    >>> fallback_tag(Digest("sha256:" + "ab" * 32))[:12]
    'sha256-ababa'
    """
    return f"{digest.algorithm[:32]}-{digest.hex[:64]}"


class Referrers:
    """Reads and keeps up lists of referrers.  Thread-safe."""

    def __init__(self, asker: Asker, limits: Limits) -> None:
        self._asker = asker
        self._limits = limits

    def find(
        self, ref: Reference, digest: Digest, *, artifact_type: str | None = None, call: Call
    ) -> list[Descriptor]:
        """The manifests of a repository whose subject is ``digest``, each once; none where it has none.

        ``artifact_type`` chooses among them.  Raises `ResourceExhausted` past ``limits.referrers``.
        """
        found = self._by_api(ref, digest, artifact_type, call)
        if found is None:
            found = _of_type(self._by_tag(ref, digest, call) or [], artifact_type)
        return found

    def has_api(self, ref: Reference, digest: Digest, *, call: Call) -> bool:
        """Whether the registry keeps the list itself."""
        return self._by_api(ref, digest, None, call, push=True) is not None

    def add(self, ref: Reference, subject: Digest, descriptor: Descriptor, *, call: Call) -> None:
        """Enter a manifest that was pushed in the index of its subject, where the registry has no API.

        ``descriptor`` has the manifest's artifact type and annotations.  Idempotent.
        """

        def change(entries: list[Descriptor]) -> list[Descriptor]:
            known = any(entry.digest == descriptor.digest for entry in entries)
            return entries if known else [*entries, descriptor]

        self._change(ref, subject, change, call)

    def pushed(self, ref: Reference, data: bytes, media_type: str, *, said: str | None, call: Call) -> None:
        """Do what remains to be done once a manifest was stored; most have no subject, and nothing does.

        ``said`` is the answer's `OCI-Subject`: a registry that gives it keeps the list itself.
        """
        if b'"subject"' not in data:
            return
        document = parse_manifest(data, media_type, f"push to {ref.name}")
        if document.subject is None or said is not None:
            return
        kind = document.artifact_type
        if kind is None and isinstance(document, Manifest):
            kind = document.config.media_type
        entry = Descriptor(
            media_type=document.media_type,
            digest=str(Digest.of(data)),
            size=len(data),
            artifact_type=kind,
            annotations=document.annotations,
        )
        self.add(ref, Digest(document.subject.digest), entry, call=call)

    def remove(self, ref: Reference, subject: Digest, digest: Digest, *, call: Call) -> None:
        """Take a manifest that was deleted out of the index of its subject.  Idempotent."""

        def change(entries: list[Descriptor]) -> list[Descriptor]:
            return [entry for entry in entries if entry.digest != digest]

        self._change(ref, subject, change, call)

    def _by_api(
        self, ref: Reference, digest: Digest, artifact_type: str | None, call: Call, *, push: bool = False
    ) -> list[Descriptor] | None:
        """The list as the API gives it; None where there is no API.  ``push`` asks where one would write."""
        limits = self._limits
        attempted = f"list the referrers of {digest} in {ref.name}"
        path = f"referrers/{digest}"
        if artifact_type is not None:
            path += "?" + urlencode({"artifactType": artifact_type})
        request, response = self._asker.ask(
            ref, "GET", path, attempted, call, push=push, headers={"Accept": OCI_INDEX}, read=limits.page_size
        )
        kind = response.headers.get("content-type", "").partition(";")[0].strip()
        if response.status in _NO_API or (response.ok and kind not in INDEX_TYPES):
            response.close()
            return None
        found: dict[str, Descriptor] = {}
        for page in follow(self._asker.send, request, response, limits=limits, call=call):
            entries = _entries(page.data, attempted, limits)
            applied = page.headers.get(_APPLIED, "").lower().replace(" ", "").split(",")
            if "artifacttype" not in applied:
                entries = _of_type(entries, artifact_type)
            found.update({entry.digest: entry for entry in entries})
            self._check(len(found), attempted)
        return list(found.values())

    def _by_tag(
        self, ref: Reference, digest: Digest, call: Call, *, push: bool = False
    ) -> list[Descriptor] | None:
        """The list under the tag; empty where there is no such tag, None where it is something else."""
        limits, tag = self._limits, fallback_tag(digest)
        attempted = f"list the referrers of {digest} by tag {ref.name}:{tag}"
        request, response = self._asker.ask(
            ref,
            "GET",
            f"manifests/{tag}",
            attempted,
            call,
            push=push,
            headers={"Accept": OCI_INDEX},
            read=limits.index_size,
        )
        if response.status == _ABSENT:
            return []
        if not response.ok:
            raise from_status(request.endpoint, response, attempted)
        if len(response.data) > limits.index_size:
            raise over_limit(
                "index_size", f"more than {limits.index_size}", limits.index_size, attempted=attempted
            )
        said = response.headers.get("docker-content-digest")
        if said and said.startswith("sha256:") and said != Digest.of(response.data):
            raise DataLoss(attempted, f"the registry says {said[:150]} and sent other bytes")
        if response.headers.get("content-type", "").partition(";")[0].strip() not in INDEX_TYPES:
            return None
        try:
            entries = _entries(response.data, attempted, limits)
        except InvalidArgument:
            return None  # "not a valid image index" is no list, says the specification
        found = {entry.digest: entry for entry in entries}
        self._check(len(found), attempted)
        return list(found.values())

    def _change(
        self,
        ref: Reference,
        subject: Digest,
        change: Callable[[list[Descriptor]], list[Descriptor]],
        call: Call,
    ) -> None:
        tag, before = fallback_tag(subject), self._by_tag(ref, subject, call, push=True)
        if before is None:
            call.observer.warning(f"{ref.name}:{tag} is no list of referrers and is left as it is")
            return
        after = change(before)
        if after == before:
            return
        attempted = f"write the referrers of {subject} to tag {ref.name}:{tag}"
        data = encode(Index(schema_version=2, media_type=OCI_INDEX, manifests=after))
        if len(data) > self._limits.index_size:
            raise over_limit("index_size", len(data), self._limits.index_size, attempted=attempted)
        headers = {"Content-Type": OCI_INDEX}
        request, response = self._asker.ask(
            ref, "PUT", f"manifests/{tag}", attempted, call, push=True, headers=headers, body=data
        )
        if not response.ok:
            raise from_status(request.endpoint, response, attempted)

    def _check(self, count: int, attempted: str) -> None:
        most = self._limits.referrers
        if count > most:
            raise over_limit("referrers", f"more than {most}", most, attempted=attempted)


def _entries(data: bytes, attempted: str, limits: Limits) -> list[Descriptor]:
    """The descriptors of an index, without what has no business in a list of referrers."""
    # A page may be as large as pages may be, not as an index that is somebody's image.
    document = parse_manifest(data, OCI_INDEX, attempted, limits=_PageLimits(limits))
    if not isinstance(document, Index):
        raise InvalidArgument(attempted, "the registry's answer is not an index")
    return document.manifests


class _PageLimits:
    """`DocumentLimits` under which an index may be as large as a page."""

    def __init__(self, limits: Limits) -> None:
        self.manifest_size = limits.manifest_size
        self.index_size = max(limits.index_size, limits.page_size)
        self.config_size = limits.config_size
        self.json_depth = limits.json_depth


def _of_type(entries: list[Descriptor], artifact_type: str | None) -> list[Descriptor]:
    if artifact_type is None:
        return entries
    return [entry for entry in entries if entry.artifact_type == artifact_type]
