"""One import under way: where it reads, what it keeps on its lease, which platforms and names are wanted.

What the forms of archives have in common; the forms themselves are in `layouts` and `dockers`.
"""

from __future__ import annotations

import re
from typing import Literal

from orlop.config import Limits, over_limit
from orlop.errors import FailedPrecondition, InvalidArgument, NotFound
from orlop.images.archives.archive import Member, Source, read_member
from orlop.images.archives.rootlayer import LayerMaker
from orlop.images.core import Core, Lease
from orlop.images.space import needing
from orlop.images.transfer.ingest import BlobLayer, LayerIngest
from orlop.observe import Call, Progress
from orlop.spec.digest import Digest
from orlop.spec.platform import Platform
from orlop.spec.reference import Reference
from orlop.values import dataclass

__all__ = ["Job", "Limit", "Platforms", "made_up", "plain"]

_NOT_A_NAME = re.compile(r"[^a-z0-9]+")
_LONGEST = 100  # characters of a file's name that become an image's
_TAR = re.compile(r"(\.tar)?(\.(gz|zst|xz|bz2))?$|\.tgz$")
Limit = Literal["manifest_size", "index_size", "config_size"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Platforms:
    """Those that are wanted of an index, none for all; ``asked`` by the caller, and not this machine's."""

    wanted: tuple[Platform, ...]
    asked: bool

    def check(self, platform: Platform, what: str) -> None:
        """Raise `FailedPrecondition` for an image of one platform, where another was asked for."""
        for wanted in self.wanted if self.asked else ():
            if not platform.rank(wanted):
                raise FailedPrecondition(what, f"the image is for {platform}, not for {wanted}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One import: into what, from where, under which name if one was given; ``stem`` makes up others."""

    core: Core
    ingest: LayerIngest
    source: Source
    lease: Lease
    call: Call
    what: str
    stem: str
    name: str | None
    platforms: Platforms

    @property
    def limits(self) -> Limits:
        """What bytes from outside may cost."""
        return self.core.settings.limits

    def check_count(self, count: int) -> None:
        """Refuse more names than an archive may give; an image without one counts as one."""
        if count > self.limits.archive_names:
            raise over_limit("archive_names", count, self.limits.archive_names, attempted=self.what)

    def check_single(self, images: int) -> None:
        """Refuse one name for several images."""
        if self.name and images > 1:
            raise InvalidArgument(self.what, f"it holds {images} images; a single name fits none")

    def read(self, name: str, limit: Limit) -> bytes:
        """A document of the archive, if it is within a limit."""
        most: int = getattr(self.limits, limit)
        return read_member(self.source, name, limit=limit, most=most, attempted=self.what)

    def member(self, name: str) -> Member:
        """A file of the archive, good until the source is released.  Raises `NotFound`."""
        member = self.source.find(name)
        if member is None:
            raise NotFound(self.what, f"there is no {name[:300]} in it")
        return member

    def size_of(self, name: str) -> int:
        """The bytes of a file of the archive."""
        size = self.member(name).size
        self.source.release()
        return size

    def keep(self, documents: dict[Digest, bytes]) -> None:
        """Have documents durable, on the lease."""
        for digest, data in documents.items():
            self.core.write_document(digest, data, lease=self.lease, call=self.call)

    def read_layers(self, wanted: list[tuple[str, BlobLayer]], *, verify: bool) -> None:
        """Bring in the layers of an image, named by their paths in the archive; one is open at a time."""
        least = self.ingest.present.least_size([blob for _, blob in wanted])
        for _, blob in wanted:
            self.call.observer.progress(Progress(item=blob.digest, phase="waiting", total=blob.size))
        with needing(self.core.layout.root, least, self.what, by_workers=True):
            for name, blob in wanted:
                member = self.member(name)
                self.ingest.read_file(
                    member.fd, blob, offset=member.offset, verify=verify, call=self.call, lease=self.lease
                )
                self.source.release()

    def maker(self, *, empty: bool = True) -> LayerMaker:
        """Makes layers whose diff IDs nobody says."""
        return LayerMaker(self.core, self.ingest, self.lease, empty=empty, what=self.what, call=self.call)


def made_up(stem: str, config: Digest) -> str:
    """A name for an image that has none."""
    return str(Reference.parse(f"localhost/{plain(stem)}:{config.hex[:12]}"))


def plain(stem: str) -> str:
    """A file's name as a repository name."""
    return _NOT_A_NAME.sub("-", _TAR.sub("", stem.lower()))[:_LONGEST].strip("-") or "import"
