"""Import: OCI layouts (folder or tar), ``docker save`` archives old and new, and plain root file systems.

Sources: OCI image-layout.md and image-index.md; Docker's image spec v1.2 (manifest.json) and v1.

What a source is its content says: a layout has an index.json, what ``docker save`` wrote a manifest.json or,
before 1.10, `repositories`; what docker 25 and containerd write has both, and is read as the layout that
it is.  Anything else is a root file system, and becomes an image of one layer.

Invariants:

- Nothing that is imported moves a name that means another image, as `docker load` would, unless it is asked
  to: what a user has is not another's to replace.  Nor does it give a name with the digest of something else.
- All images of an archive get their names in one transaction, or none gets any.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Literal

from orlop.errors import AlreadyExists, InvalidArgument
from orlop.images.api import ImageInfo
from orlop.images.archives.archive import Opened, open_source
from orlop.images.archives.dockers import docker_images, oldest_images
from orlop.images.archives.job import Job, Platforms, made_up
from orlop.images.archives.layouts import layout_images
from orlop.images.archives.rootconfig import rootfs_config
from orlop.images.core import Core
from orlop.images.imports import ImportOptions, ImportSource, said_of, stem_of
from orlop.images.names import new_name
from orlop.images.naming import Naming, name_images
from orlop.images.transfer.ingest import LayerIngest
from orlop.images.transfer.pull import wanted_platforms
from orlop.observe import Call, stepped
from orlop.spec.digest import Digest
from orlop.spec.platform import host_platform

__all__ = ["Loader"]


class Loader:
    """Imports into one store.  Thread-safe."""

    def __init__(self, core: Core, ingest: LayerIngest) -> None:
        self._core = core
        self._ingest = ingest

    @stepped("import", of=1)
    def load(
        self,
        source: ImportSource,
        *,
        name: str | None,
        platform: str | Sequence[str] | None = None,
        all_platforms: bool = False,
        options: ImportOptions,
        call: Call,
    ) -> list[ImageInfo]:
        """See `orlop.images.api.Images.load`."""
        what = said_of(source)
        options.check(what)
        platforms = Platforms(
            wanted=wanted_platforms(platform, what, all_platforms=all_platforms), asked=bool(platform)
        )
        if isinstance(source, str) and not source.startswith("/"):
            raise InvalidArgument(what, "the path is relative", hint="give an absolute path")
        wanted = new_name(name, what) if name else None
        core, rootfs = self._core, options.format == "rootfs"
        with (
            open_source(core, source, what, rootfs=rootfs, call=call) as opened,
            core.lease(what) as lease,
        ):
            job = Job(
                core=core,
                ingest=self._ingest,
                source=opened.files,
                lease=lease,
                call=call,
                what=what,
                stem=stem_of(source),
                name=wanted,
                platforms=platforms,
            )
            kind = _kind_of(opened, options, what)
            if kind == "rootfs":
                namings = [_rootfs(opened, job, options)]
            else:
                options.check_plain(what)
                namings = {"oci": layout_images, "docker": docker_images, "oldest": oldest_images}[kind](job)
            _check_twice(namings, what)
            return name_images(
                core,
                namings,
                keep_others=not options.replace,
                keep_indexes=True,
                event="image.imported",
                call=call,
            )


def _rootfs(opened: Opened, job: Job, options: ImportOptions) -> Naming:
    """The image of a root file system: one layer, and no manifest before it is pushed."""
    what, platforms = job.what, job.platforms
    if len(platforms.wanted) != 1:
        raise InvalidArgument(what, "a root file system is of one platform")
    platform = platforms.wanted[0] if platforms.asked else host_platform()
    edit = partial(rootfs_config, options, platform, what=what)
    edit(diff_ids=())  # refuses what it will refuse before the work is done
    maker = job.maker(empty=options.format == "rootfs")
    if opened.folder is not None:
        diff_id = maker.of_folder(opened.folder, options)
    elif options.owner is not None:
        raise InvalidArgument(what, "'owner' is for folders: a tar says whose its files are")
    elif opened.ready is not None:
        diff_id = maker.of_unpacked(*opened.ready)
    else:
        assert opened.file is not None, "a source is a folder, a tar or a file"
        fd, size = opened.file
        diff_id = maker.of_file(fd, 0, size)
    config = edit(diff_ids=(diff_id,))
    digest = Digest.of(config)
    job.keep({digest: config})
    name = job.name or made_up(job.stem, digest)
    return Naming(name=name, config=digest, diff_ids=(diff_id,), manifest=None)


def _kind_of(
    opened: Opened, options: ImportOptions, what: str
) -> Literal["oci", "docker", "oldest", "rootfs"]:
    """What a source is.  Raises `InvalidArgument` where it is not what it should be."""
    asked = options.format
    if asked == "rootfs":
        return "rootfs"
    if asked != "docker" and opened.files.find("index.json") is not None:
        return "oci"
    if asked != "oci" and opened.files.find("manifest.json") is not None:
        return "docker"
    if asked != "oci" and opened.files.find("repositories") is not None:
        return "oldest"
    if asked is not None:
        files = "index.json" if asked == "oci" else "manifest.json and no repositories"
        raise InvalidArgument(what, f"there is no {files} in it", hint="leave out --format")
    if opened.files.find("oci-layout") is not None:
        raise InvalidArgument(
            what,
            "neither an OCI layout nor a docker archive: no index.json and no manifest.json in it",
        )
    return "rootfs"


def _check_twice(namings: Sequence[Naming], what: str) -> None:
    """Refuse an archive in which one name is of two images."""
    seen: dict[str, Naming] = {}
    for naming in namings:
        other = seen.setdefault(naming.name, naming)
        if other.config != naming.config:
            raise AlreadyExists(what, f"{naming.name} is the name of two images in it")
