"""Verbs that look into things without mounting them: ``ls``, ``cat``, ``find``."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from contextlib import closing

from orlop.cli import declared as click
from orlop.cli import output
from orlop.cli.exits import Misuse, one_line
from orlop.cli.quantities import size_of
from orlop.cli.session import Session, formats, pass_session, verb
from orlop.hints import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from orlop.images.contents import FileInfo, FileKind, Found

__all__ = ["JSON_LINES", "cat_verb", "find_verb", "ls_verb", "platform_option", "shown_path", "write_all"]

JSON_LINES = "A line of JSON for each; its fields are stable."

platform_option = click.option(
    "--platform", metavar="OS/ARCH[/VARIANT]", help="Of an index: which of its images."
)


def shown_path(path: bytes) -> str:
    """A path in a thing, for people and for JSON; bytes that are not UTF-8 become lone surrogates."""
    return "/" + os.fsdecode(path)


def json_of(file: FileInfo) -> dict[str, Any]:
    """A file as what JSON has."""
    return {
        "path": shown_path(file.path),
        "kind": file.kind,
        "mode": file.mode & 0o7777,
        "uid": file.uid,
        "gid": file.gid,
        "size": file.size,
        "mtime": file.mtime,
        "nsec": file.nsec,
        "links": file.links,
        "target": os.fsdecode(file.target),
        "device": list(file.device),
        "xattrs": {os.fsdecode(name): os.fsdecode(value) for name, value in file.xattrs},
    }


def long_line(file: FileInfo, name: str) -> str:
    """A line as ``ls -l`` has it, ids as numbers, the time in UTC."""
    import datetime

    size = f"{file.device[0]}, {file.device[1]}" if file.kind in {"char", "block"} else str(file.size)
    try:
        moment = datetime.datetime.fromtimestamp(file.mtime, datetime.UTC).strftime("%Y-%m-%d %H:%M:%S")
    except (ValueError, OverflowError, OSError):  # years that datetime does not know
        moment = str(file.mtime)
    arrow = f" -> {one_line(os.fsdecode(file.target))}" if file.kind == "symlink" else ""
    who = f"{file.links:>3} {file.uid:>5} {file.gid:>5}"
    return f"{stat.filemode(file.mode)} {who} {size:>10} {moment} {name}{arrow}"


@verb(
    "ls",
    "orlop ls alpine",
    "orlop ls -l alpine /etc",
    "orlop ls -R --json /srv/a /etc    what a prepared root has there",
)
@click.argument("thing", metavar="IMAGE")
@click.argument("paths", metavar="[PATH]...", nargs=-1, type=click.Path())
@click.option("-l", "--long", "is_long", is_flag=True, help="Modes, owners, sizes and times, too.")
@click.option("-R", "--recursive", is_flag=True, help="All that is below a folder.")
@click.option("-d", "--directory", "itself", is_flag=True, help="A folder, and not what is in it.")
@formats(names="Whole paths alone.", as_json=JSON_LINES)
@platform_option
@pass_session
def ls_verb(
    session: Session,
    thing: str,
    paths: tuple[str, ...],
    is_long: bool,
    recursive: bool,
    itself: bool,
    platform: str | None,
    form: str = "table",
) -> None:
    """List files of an image, a layer or a prepared root; nothing is mounted.

    IMAGE is an image's name or ID, IMAGE#N for its lowest N layers, a layer's diff ID, or the path of a
    prepared root.  PATH is /, or a path inside of it; symlinks on the way lead nowhere else.  Owners are
    numbers.
    """

    def line(file: FileInfo) -> str:
        name = shown_path(file.path) if whole else os.fsdecode(file.path.rpartition(b"/")[2])
        return long_line(file, one_line(name)) if is_long else name

    whole = recursive or itself or len(paths) > 1
    with session.store() as store, session.call(quiet=True) as call:
        for path in paths or ("/",):
            top = os.fsencode(path)
            found = store.ls(thing, top, recursive=recursive, itself=itself, platform=platform, call=call)
            with closing(found):
                output.show_each(found, form=form, line=line, names=_path_of, record=json_of)


def _path_of(file: FileInfo) -> str:
    return shown_path(file.path)


@verb(
    "cat",
    "orlop cat alpine /etc/os-release",
    "orlop cat /srv/a /etc/passwd /etc/group",
)
@click.argument("thing", metavar="IMAGE")
@click.argument("paths", metavar="FILE...", nargs=-1, required=True, type=click.Path())
@platform_option
@pass_session
def cat_verb(session: Session, thing: str, paths: tuple[str, ...], platform: str | None) -> None:
    """Print files of an image, a layer or a prepared root; nothing is mounted.

    IMAGE is an image's name or ID, a layer's diff ID, or the path of a prepared root.  Several files come one
    after the other.
    """
    with session.store() as store, session.call(quiet=True) as call:
        chunks = store.cat(thing, *map(os.fsencode, paths), platform=platform, call=call)
        with closing(chunks):
            write_all(chunks)


def write_all(chunks: Iterable[bytes]) -> None:
    """Write bytes to standard output."""
    binary = output.Binary()
    output.flush()
    for chunk in chunks:
        at = 0
        while at < len(chunk):
            at += binary.write(chunk[at:] if at else chunk)


_KINDS: dict[str, FileKind] = {
    "f": "file",
    "d": "folder",
    "l": "symlink",
    "c": "char",
    "b": "block",
    "p": "fifo",
}


@verb(
    "find",
    "orlop find alpine '*.conf'",
    "orlop find --all --type f '/usr/lib/**/libssl.so*'",
    "orlop find /srv/a '*' --size +100M",
)
@click.argument("words", metavar="[IMAGE] PATTERN", nargs=-1, required=True)
@click.option("--all", "every", is_flag=True, help="In all images of the store; then there is no IMAGE.")
@click.option(
    "--type",
    "kinds",
    metavar="KIND",
    multiple=True,
    help="f, d, l, c, b or p, as find(1) has them.  May be repeated.",
)
@click.option("--size", metavar="[+-]SIZE", help="At least, at most, or without a sign just so large: +10M.")
@click.option("-0", "--null", is_flag=True, help="End each path with a NUL, and escape nothing.")
@formats(names="Paths alone, as is done without it.", as_json=JSON_LINES)
@platform_option
@pass_session
def find_verb(
    session: Session,
    words: tuple[str, ...],
    every: bool,
    kinds: tuple[str, ...],
    size: str | None,
    null: bool,
    platform: str | None,
    form: str = "table",
) -> None:
    """Find files by a pattern, in an image, a layer or a root, or in all images.

    PATTERN is about names; with a slash in it about whole paths.  * and ? match within a name, [a-z] one
    byte, ** any folders.  With --all lines are IMAGE:PATH, as "orlop cp" takes them; images of the same
    layers are listed by one name.
    """

    def line(one: Found) -> str:
        path = shown_path(one.file.path)
        return f"{one.names[0]}:{path}" if every else path

    if null and form not in {"table", "name"}:
        raise Misuse("-0 is for paths alone", "leave out -0 or --format")
    if len(words) != (1 if every else 2):
        wanted = "a pattern, and no image" if every else "an image and a pattern"
        raise Misuse(f"give {wanted}", "'orlop find --all PATTERN' looks into all images")
    *things, pattern = words
    least, most = _bounds(size)
    with session.store() as store, session.call(quiet=True) as call:
        found = store.find(
            os.fsencode(pattern),
            *things,
            kinds=[_kind(kind) for kind in kinds],
            least=least,
            most=most,
            platform=platform,
            call=call,
        )
        with closing(found):
            if null:
                for one in found:
                    output.write(f"{line(one)}\0")
            else:
                output.show_each(found, form=form, line=line, names=line, record=found_json)


def found_json(found: Found) -> dict[str, Any]:
    """What a search found, as what JSON has."""
    return {"names": list(found.names), "image_id": found.image_id, **json_of(found.file)}


def _kind(text: str) -> FileKind:
    kind = _KINDS.get(text) or next((kind for kind in _KINDS.values() if kind == text), None)
    if kind is None:
        raise Misuse(f"no kind of file: {text}", f"one of {', '.join(_KINDS)}")
    return kind


def _bounds(text: str | None) -> tuple[int | None, int | None]:
    """The least and the most bytes that a size of find(1)'s allows."""
    if text is None:
        return None, None
    size = size_of(text.lstrip("+-"))
    if text.startswith("+"):
        return size, None
    return (None, size) if text.startswith("-") else (size, size)
