"""The verb `export`, done in this process: which writer a format has, and what keeps the things meanwhile."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack
from datetime import datetime

from orlop.errors import InvalidArgument
from orlop.hints import TYPE_CHECKING
from orlop.images.parts import Parts, verb
from orlop.observe import Call, Progress, Rate

if TYPE_CHECKING:
    from orlop.images.archives.fsimages import FsJob
    from orlop.images.exports import Exported, ExportOptions, Sink

__all__ = ["ExportVerbs"]

_CALL = Call()
_CHUNK = 1 << 20


class ExportVerbs(Parts):
    """See `orlop.images.exports.Exports`."""

    @verb("export")
    def export(
        self, things: Sequence[str], out: Sink, *, options: ExportOptions | None = None, call: Call = _CALL
    ) -> Exported:
        """See `orlop.images.exports.Exports.export`."""
        from orlop.images.exports import IMAGE_FORMATS, ExportOptions

        options = options or ExportOptions()
        what = f"export {' '.join(things)}"
        if options.size is not None and options.format != "ext4":
            raise InvalidArgument(what, "only an ext4 image has a size that can be chosen")
        if options.format in IMAGE_FORMATS:
            return self._export_images(things, out, options, call, what)
        if options.recompress or options.compression is not None or options.level is not None:
            raise InvalidArgument(what, f"{options.format} has no layers to compress", hint="export as oci")
        if len(things) != 1:
            raise InvalidArgument(
                what,
                f"{options.format} holds one file system, not {len(things)}",
                hint="export them one by one",
            )
        if options.all_platforms:
            raise InvalidArgument(
                what, f"{options.format} holds one file system, not an index", hint="choose with --platform"
            )
        if options.format == "tar":
            return self._export_tar(things[0], out, options, call, what)
        return self._export_file_system(things[0], out, options, call, what)

    def _export_images(
        self, things: Sequence[str], out: Sink, options: ExportOptions, call: Call, what: str
    ) -> Exported:
        from orlop.images.archives.chosen import choose_images
        from orlop.images.archives.dockerwriter import DockerWriter
        from orlop.images.archives.layoutwriter import LayoutWriter
        from orlop.images.archives.supply import Supply
        from orlop.images.archives.tarstream import TarStream
        from orlop.images.exports import Exported, is_root_path
        from orlop.images.transfer.forms import wish_of

        core, docker = self._core, options.format == "docker"
        for thing in things:
            if is_root_path(thing):
                raise InvalidArgument(
                    what,
                    f"{thing} is a prepared root, and {options.format} holds images",
                    hint="commit it first, or export it as tar, erofs, squashfs or ext4",
                )
        compresses = options.recompress or options.compression is not None or options.level is not None
        if docker and (options.all_platforms or compresses):
            raise InvalidArgument(
                what, "a docker archive has no index and nothing compressed", hint="export as oci"
            )
        chosen = choose_images(
            core, things, platform=options.platform, all_platforms=options.all_platforms, what=what
        )
        wish = wish_of(
            core.settings,
            compression=options.compression,
            level=options.level,
            recompress=options.recompress,
            what=what,
        )
        item = chosen[0].row.name if len(chosen) == 1 else f"{len(chosen)} images"
        with core.lease(what) as lease, Supply(core, wish=wish, lease=lease, call=call, what=what) as supply:
            stream = TarStream(out, item=item, call=call, what=what)
            if docker:
                digests = DockerWriter(core, stream, supply, lease=lease, what=what).write(chosen)
            else:
                writer = LayoutWriter(core, stream, supply, wish=wish, lease=lease, call=call, what=what)
                digests = writer.write(
                    chosen,
                    recompress=options.recompress,
                    all_platforms=options.all_platforms,
                    docker=options.format == "oci",
                )
        call.observer.progress(Progress(item=item, phase="done", done=stream.size, total=stream.size))
        return Exported(
            format=options.format,
            names=tuple(one.name or one.row.config for one in chosen),
            digests=tuple(str(digest) for digest in digests),
            size=stream.size,
        )

    def _export_tar(self, thing: str, out: Sink, options: ExportOptions, call: Call, what: str) -> Exported:
        from orlop.images.archives.rootfs import write_tree
        from orlop.images.archives.tarstream import TarStream
        from orlop.images.browsing.trees import find_source, open_tree
        from orlop.images.exports import Exported

        source = find_source(self._core, thing, what, platform=options.platform)
        stream = TarStream(out, item=source.name, call=call, what=what)
        with open_tree(self._core, self._chains, self._grounds, source, call, keep=True) as tree:
            write_tree(tree, stream)
        call.observer.progress(Progress(item=source.name, phase="done", done=stream.size, total=stream.size))
        return Exported(format="tar", names=(source.name,), size=stream.size)

    def _export_file_system(
        self, thing: str, out: Sink, options: ExportOptions, call: Call, what: str
    ) -> Exported:
        from orlop.images.archives import fsimages
        from orlop.images.browsing.trees import Source, find_source, open_tree
        from orlop.images.exports import Exported

        core, grounds = self._core, self._grounds
        assert options.format in ("erofs", "squashfs", "ext4")
        fsimages.find_tool(options.format, what)
        source = find_source(core, thing, what, platform=options.platform)
        with ExitStack() as held:
            lease = held.enter_context(core.lease(what))
            diff_ids = source.diff_ids
            if source.root is not None and source.root.kind == "active":
                # The tool may read a folder: what was written becomes a layer, which goes when this is over.
                with core.locked("path", source.name, call=call, attempted=what):
                    root = self._grounds.require(source.name, what)
                    grounds.check_privilege(root, what)
                    captured = self._capture.layer(root, lease, call)
                    diff_ids = (*core.layers_of(root.config, what), *([captured] if captured else []))
                    lease.keep(*(("layer", diff_id) for diff_id in diff_ids))
            source = Source(kind="image", name=source.name, diff_ids=diff_ids, config=source.config)
            lease.keep(*(("layer", diff_id) for diff_id in diff_ids))
            scratch = held.enter_context(core.layers.new())
            job = fsimages.FsJob(
                core=core,
                chains=self._chains,
                folders=grounds.folders,
                folder=scratch.folder,
                diff_ids=diff_ids,
                epoch=_epoch(
                    options.created, None if source.config is None else core.blobs.read(source.config)
                ),
                call=call,
                item=source.name,
                what=what,
            )
            with open_tree(core, self._chains, grounds, source, call, keep=True) as tree:
                if options.format == "squashfs":
                    fsimages.make_squashfs(job, tree)
                elif options.format == "erofs":
                    fsimages.make_erofs(job, tree)
                else:
                    fsimages.make_ext4(job, tree, size=options.size)
            size = _give(job, out)
        return Exported(format=options.format, names=(source.name,), size=size)


def _give(job: FsJob, out: Sink) -> int:
    """Write the image that a tool made."""
    from orlop.images.archives.tarstream import put

    total, done, rate = os.path.getsize(job.out), 0, Rate()
    with open(job.out, "rb", buffering=0) as file:
        while chunk := file.read(_CHUNK):
            job.call.check(job.what)
            put(out, chunk)
            done += len(chunk)
            if rate.add(len(chunk)):
                progress = Progress(item=job.item, phase="writing", done=done, total=total, rate=rate.rate)
                job.call.observer.progress(progress)
    job.call.observer.progress(Progress(item=job.item, phase="done", done=done, total=total))
    return done


def _epoch(created: int | None, config: bytes | None) -> int:
    """The time to say: what the caller wants, else the image's own, else the beginning."""
    if created is not None:
        return max(0, created)
    if config is None:
        return 0
    from orlop.spec.documents import parse_config

    try:
        text = parse_config(config, "export").created or ""
        return max(0, int(datetime.fromisoformat(text).timestamp()))
    except (ValueError, OverflowError):
        return 0
