"""`Store.export`: images and roots as files, folders, or streams of bytes, on the caller's side."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from orlop.errors import InvalidArgument
from orlop.hints import TYPE_CHECKING, cast
from orlop.observe import Call
from orlop.values import replace

if TYPE_CHECKING:
    from orlop.images.api import Store as StoreVerbs
    from orlop.images.archives.chunks import Chunks
    from orlop.images.exports import Exported, ExportFormat, ExportOptions, Sink

__all__ = ["StoreExports", "export_things"]

StrPath = str | os.PathLike[str]
_WITH_HOLES = frozenset({"ext4"})  # whose images are mostly empty


class StoreExports:
    """The part of `orlop.Store` that lets things out."""

    verbs: StoreVerbs

    def export(
        self,
        things: str | Sequence[str],
        destination: StrPath | Sink,
        *,
        format: ExportFormat | None = None,  # noqa: A002 - the option's name
        platform: str | None = None,
        all_platforms: bool = False,
        recompress: bool = False,
        compression: str | None = None,
        level: int | None = None,
        created: int | None = None,
        size: int | None = None,
        force: bool = False,
        call: Call | None = None,
    ) -> Exported:
        """Write images, or one file system, to a file, to a folder (an OCI layout), or to what has ``write``.

        Things are images' names or IDs, or a prepared root's path.  Without a ``format`` the destination's
        name says it: ``a.docker.tar``, ``a.squashfs``, ``layout/``; else it is an OCI layout as a tar, of a
        root a tar.  A file is whole or not there; one that exists stays unless ``force``.
        `orlop.images.exports.ExportOptions` has the rest.

        Raises `AlreadyExists`, and `FailedPrecondition` where a blob that the form needs is not to
        be had.

        >>> exported = store.export("/srv/root", "/srv/root.tar")
        >>> exported.format, exported.path
        ('tar', '/srv/root.tar')
        """
        return export_things(
            self.verbs,
            [things] if isinstance(things, str) else list(things),
            destination,
            format=format,
            platform=platform,
            all_platforms=all_platforms,
            recompress=recompress,
            compression=compression,
            level=level,
            created=created,
            size=size,
            force=force,
            call=call,
        )

    def export_stream(
        self,
        things: str | Sequence[str],
        *,
        options: ExportOptions | None = None,
        call: Call | None = None,
    ) -> Chunks[Exported]:
        """The bytes of an export, to be iterated over; a context manager, whose end stops the work.

        ``result`` of what is returned says what it was, after the last chunk.

        >>> with store.export_stream("/srv/root", options=orlop.ExportOptions(format="tar")) as chunks:
        ...     size = sum(len(chunk) for chunk in chunks)
        >>> chunks.result.size == size
        True
        """
        names = [things] if isinstance(things, str) else list(things)
        from orlop.images.exports import ExportOptions

        wanted = options or ExportOptions()
        _check(wanted, f"export {' '.join(names)}")
        return _stream(self.verbs, names, wanted, call or Call())


def export_things(
    verbs: StoreVerbs,
    things: Sequence[str],
    destination: StrPath | Sink,
    *,
    format: ExportFormat | None = None,  # noqa: A002 - the option's name
    platform: str | None = None,
    all_platforms: bool = False,
    recompress: bool = False,
    compression: str | None = None,
    level: int | None = None,
    created: int | None = None,
    size: int | None = None,
    force: bool = False,
    call: Call | None = None,
) -> Exported:
    """See `StoreExports.export`."""
    what = f"export {' '.join(things)}"
    path = None if _is_sink(destination) else os.fspath(cast("StrPath", destination))
    from orlop.images.exports import ExportOptions, guess_format

    options = ExportOptions(
        format=format or guess_format(things, path or "", what),
        platform=platform,
        all_platforms=all_platforms,
        recompress=recompress,
        compression=compression,
        level=level,
        created=created,
        size=size,
    )
    _check(options, what)
    if path is None:
        return verbs.export(things, cast("Sink", destination), options=options, call=call or Call())
    return _export_to(verbs, things, path, options=options, force=force, call=call or Call())


def _is_sink(destination: object) -> bool:
    return hasattr(destination, "write") and not isinstance(destination, os.PathLike)


def _export_to(
    verbs: StoreVerbs, things: Sequence[str], path: str, *, options: ExportOptions, force: bool, call: Call
) -> Exported:
    """Export to a path: a file, or for ``oci-dir`` a folder."""
    from orlop.images.archives.destination import FileTarget, unpack_layout

    what = f"export {' '.join(things)} to {path}"
    full = os.path.abspath(path)
    if options.format == "oci-dir":
        with _stream(verbs, things, options, call) as stream:
            unpack_layout(stream, Path(full), force=force, call=call, what=what)
            for _ in stream:  # nothing comes any more
                pass
            return replace(stream.result, path=full)
    if path.endswith("/"):
        raise InvalidArgument(what, "it names a folder", hint="give the name of a file, or --format oci-dir")
    holes = options.format in _WITH_HOLES
    with FileTarget(Path(full), force=force, holes=holes, what=what) as target:
        done = verbs.export(things, target, options=options, call=call)
    return replace(done, path=full)


def _stream(verbs: StoreVerbs, things: Sequence[str], options: ExportOptions, call: Call) -> Chunks[Exported]:
    from orlop.images.archives.chunks import Chunks

    return Chunks(
        lambda sink, inner: verbs.export(things, sink, options=options, call=inner),
        call,
        f"export {' '.join(things)}",
    )


def _check(options: ExportOptions, what: str) -> None:
    from orlop.images.exports import EXPORT_FORMATS

    if options.format not in EXPORT_FORMATS:
        raise InvalidArgument(
            what, f"no such format: {options.format!r}", hint=f"one of {', '.join(EXPORT_FORMATS)}"
        )
