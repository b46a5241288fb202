"""An index on the way in: which of its images are wanted, and all that it needs to be whole.

The walk is the same for a registry and for an archive, which give the bytes of a descriptor.  Not what is
done with the images (`orlop.images.transfer.pull`, `orlop.images.archives.load`).

Invariants: a document is read once, whatever lists it, so indexes that list the same cost no more than they
have bytes; more than ``limits.index_nesting`` indexes inside one another are refused, and so are more than
``limits.index_manifests`` documents; what a child is, its own words say, not its descriptor's alone.
"""

from __future__ import annotations

from collections.abc import Callable

from orlop.config import Limits, over_limit
from orlop.errors import NotFound, ResourceExhausted
from orlop.observe import Call
from orlop.spec.digest import Digest
from orlop.spec.documents import (
    DOCKER_CONFIG,
    INDEX_TYPES,
    MANIFEST_TYPES,
    OCI_CONFIG,
    Descriptor,
    Index,
    Manifest,
    parse_manifest,
)
from orlop.spec.platform import Platform
from orlop.values import dataclass, field

__all__ = ["CONFIG_TYPES", "Child", "Document", "IndexReader", "is_image", "offered_by", "shorten"]

CONFIG_TYPES = (OCI_CONFIG, DOCKER_CONFIG, "")
_OFFERED = 20  # platforms that an error lists
_KNOWN = (*MANIFEST_TYPES, *INDEX_TYPES, "")

Read = Callable[[Descriptor], bytes]


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """A manifest, index or config with its own bytes."""

    digest: Digest
    media_type: str
    data: bytes = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Child:
    """A manifest that an index lists, at whatever depth, or the one that a name means alone."""

    manifest: Manifest
    document: Document


def is_image(descriptor: Descriptor, manifest: Manifest) -> bool:
    """Whether a child of an index is an image to run: no attestation, signature or other artifact."""
    return (
        descriptor.may_be_image()
        and manifest.config.media_type in CONFIG_TYPES
        and (manifest.artifact_type or "") in CONFIG_TYPES
    )


def offered_by(*indexes: Index) -> list[str]:
    """The platforms that some indexes say they have, as text."""
    return sorted(
        {
            str(platform)[:100]
            for index in indexes
            for descriptor in index.manifests
            if descriptor.may_be_image() and (platform := descriptor.platform_value())
        }
    )


def shorten(names: list[str]) -> str:
    """Some platforms for an error."""
    more = f" and {len(names) - _OFFERED} more" if len(names) > _OFFERED else ""
    return f"{', '.join(names[:_OFFERED]) or 'none'}{more}"


class IndexReader:
    """Reads one index as far as it is asked to.  Not thread-safe.

    ``indexes`` are the documents of those that were read, itself among them; ``images`` and ``artifacts`` the
    manifests that were; ``listed`` the digests of all children of the indexes.
    """

    def __init__(
        self, index: Index, document: Document, read: Read, *, limits: Limits, attempted: str, call: Call
    ) -> None:
        self._top = index
        self._read = read
        self._limits = limits
        self._what = attempted
        self._call = call
        self._parsed: dict[str, Index | Child] = {document.digest: index}
        self.document = document
        self.indexes: dict[Digest, Document] = {document.digest: document}
        self.images: list[Child] = []
        self.artifacts: list[Child] = []
        self.listed: set[str] = {child.digest for child in index.manifests}

    def choose(self, wanted: Platform) -> Child:
        """The image that serves a platform, through indexes.

        Raises `NotFound`, listing what there is, `ResourceExhausted` past the limits.
        """
        found: Index | Child = self._top
        for _ in range(self._limits.index_nesting):
            if isinstance(found, Child):
                return found
            descriptor = found.choose(wanted)
            if descriptor is None:
                raise NotFound(
                    self._what,
                    f"no image for {wanted}; there are {shorten(offered_by(found))}",
                    hint="choose one with --platform",
                )
            found = self._child(descriptor)
        if isinstance(found, Child):
            return found
        raise self._too_deep()

    def read_all(self) -> None:
        """Read every index and manifest.  A child of a kind that nobody knows is left out, with a warning."""
        seen: set[str] = set()
        stack = [(descriptor, 1) for descriptor in reversed(self._top.manifests)]
        while stack:
            descriptor, depth = stack.pop()
            if descriptor.digest in seen:
                continue
            seen.add(descriptor.digest)
            if len(seen) > (most := self._limits.index_manifests):
                raise over_limit("index_manifests", f"more than {most}", most, attempted=self._what)
            if descriptor.media_type not in _KNOWN:
                self._call.observer.warning(
                    f"{self._what}: its index lists {descriptor.digest} of type "
                    f"{descriptor.media_type[:100]!r}, which is left out"
                )
                continue
            found = self._child(descriptor)
            if isinstance(found, Child):
                (self.images if is_image(descriptor, found.manifest) else self.artifacts).append(found)
            elif depth >= self._limits.index_nesting:
                raise self._too_deep()
            else:
                stack += [(child, depth + 1) for child in reversed(found.manifests)]

    def _child(self, descriptor: Descriptor) -> Index | Child:
        found = self._parsed.get(descriptor.digest)
        if found is None:
            self._call.check(self._what)
            data = self._read(descriptor)
            parsed = parse_manifest(data, descriptor.media_type, self._what, limits=self._limits)
            document = Document(digest=descriptor.checked_digest(), media_type=parsed.media_type, data=data)
            if isinstance(parsed, Index):
                found = parsed
                self.indexes[document.digest] = document
                self.listed |= {child.digest for child in parsed.manifests}
            else:
                found = Child(manifest=parsed, document=document)
            self._parsed[descriptor.digest] = found
        return found

    def _too_deep(self) -> ResourceExhausted:
        most = self._limits.index_nesting
        return over_limit("index_nesting", f"more than {most}", most, attempted=self._what)
