"""GNU tar and bsdtar as judges of one tar, and the list of what they are known to do otherwise.

Each extracts the tar as root, in a box that has nothing but /usr, read-only, and the target.  A difference
between a judge's tree and orlop's must be on `DIFFERENCES`, which says for which paths of which tars, and
why.  docs/fuzzing.md prints the list.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from orlop.layers.builder import clean
from orlop.testing.conformance.model import Entry, Tree
from orlop.testing.conformance.trees import snapshot
from orlop.testing.layers import SECOND, Layer, Member

__all__ = ["DIFFERENCES", "JUDGES", "Difference", "extract", "table", "unexplained"]

JUDGES = {
    "GNU tar": (
        *("tar", "--extract", "--file=-", "--numeric-owner", "--same-owner", "--preserve-permissions"),
        *("--delay-directory-restore", "--xattrs", "--xattrs-include=*", "--warning=no-timestamp"),
    ),
    "bsdtar": ("bsdtar", "-x", "-f", "-", "--numeric-owner", "--same-owner", "-p"),
}
# Of the machine's file systems only /usr: to bind all of them while other tests mount and unmount goes wrong
_BOX = (
    *("bwrap", "--ro-bind", "/usr", "/usr", "--symlink", "usr/bin", "/bin", "--symlink", "usr/lib", "/lib"),
    *("--symlink", "usr/lib64", "/lib64", "--dev-bind", "/dev/null", "/dev/null", "--cap-add", "ALL"),
    *("--die-with-parent", "--chdir", "/tree"),
)
_DRIVE = re.compile(rb"^(?:[./]*/)?(?:[A-Za-z]:|\\)+")


def extract(judge: str, tar: bytes, target: Path) -> Tree:
    """What a judge makes of a tar in a new folder; that it refuses some or all of it is its answer."""
    target.mkdir()
    target.chmod(0o755)
    done = subprocess.run(
        [*_BOX, "--bind", os.fspath(target), "/tree", *JUDGES[judge]],
        input=tar,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        timeout=120,
        check=False,
        umask=0o022,
        env={"PATH": "/usr/bin", "LC_ALL": "C.UTF-8"},
    )
    if b"bwrap:" in done.stderr:
        raise RuntimeError(f"the box for {judge} could not be made: {done.stderr.decode(errors='replace')}")
    return snapshot(target)


Touched = Callable[[Sequence[Member]], Iterator[bytes]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """Something that a judge does otherwise, on purpose or not.

    ``touches`` gives the paths that it is about; with ``around`` what is below and above them may differ,
    too.  ``fields`` are the only fields in which an entry may, if it names any.  A ``fault`` is one of some
    versions of a judge.
    """

    judge: str
    what: str
    why: str
    touches: Touched
    fields: frozenset[str] = frozenset()
    around: bool = True
    fault: bool = False


def unexplained(judge: str, layer: Layer, ours: Tree, theirs: Tree) -> list[str]:
    """The differences of two trees that are not on the list, a line each."""
    known = [
        (difference, set(difference.touches(layer.members)))
        for difference in DIFFERENCES
        if difference.judge in (judge, "both")
    ]
    lines = []
    for path in sorted(ours.keys() | theirs.keys()):
        mine, other = ours.get(path), theirs.get(path)
        names = {path, *(mine.twins if mine is not None else ()), *(other.twins if other is not None else ())}
        for difference, places in known:
            if mine == other:
                break
            if not (
                any(_near(name, place) for name in names for place in places)
                if difference.around
                else names & places
            ):
                continue
            if not difference.fields:
                mine = other
            elif mine is not None and other is not None:
                mine = replace(mine, **{name: getattr(other, name) for name in difference.fields})
        if mine != other:
            lines.append(f"{path!r}: {_said(mine, other)}")
    return lines


def _near(path: bytes, place: bytes) -> bool:
    return path == place or not place or path.startswith(place + b"/") or place.startswith(path + b"/")


def _said(mine: Entry | None, other: Entry | None) -> str:
    if mine is None or other is None:
        return f"ours {mine}, the judge's {other}"
    fields = [name for name in Entry.__slots__ if getattr(mine, name) != getattr(other, name)]
    return ", ".join(
        f"{name}: ours {getattr(mine, name)!r}, the judge's {getattr(other, name)!r}" for name in fields
    )


# ------------------------------------------------------------------ whom a difference touches


def _name(member: Member) -> bytes:
    return b"/".join(clean(member.name))


def _above(path: bytes) -> list[bytes]:
    parts = path.split(b"/")
    return [b"", *(b"/".join(parts[:count]) for count in range(1, len(parts)))] if path else []


def _folder(member: Member) -> bool:
    return member.kind == "folder" or (member.kind == "file" and member.name.endswith(b"/"))


def _implied(members: Sequence[Member]) -> Iterator[bytes]:
    """Folders that some member lies in and that no later one is about."""
    yield b""
    for member in members:
        yield from _above(_name(member))


def _not_plain(name: bytes) -> bool:
    return b".." in name.split(b"/")


def _dotted(members: Sequence[Member]) -> Iterator[bytes]:
    """Names with ``..``, and links to such; where both would put them."""
    for member in members:
        if _not_plain(member.name) or (member.kind == "hardlink" and _not_plain(member.target)):
            yield _name(member)
            yield b"/".join(clean(member.name.rpartition(b"../")[2]))


def _replaced(members: Sequence[Member]) -> Iterator[bytes]:
    """What is a folder and something else in one tar, one after the other."""
    kinds: dict[bytes, set[bool]] = {}
    for member in members:
        kinds.setdefault(_name(member), set()).add(_folder(member))
        for above in _above(_name(member)):
            kinds.setdefault(above, set()).add(True)
    yield from (path for path, found in kinds.items() if len(found) > 1)


def _twice(members: Sequence[Member]) -> Iterator[bytes]:
    """What is given more than once."""
    seen: set[bytes] = set()
    for member in members:
        if _name(member) in seen:
            yield _name(member)
        seen.add(_name(member))


def _through_symlinks(members: Sequence[Member]) -> Iterator[bytes]:
    """All, if some name leads through a symlink of the same tar."""
    links = {_name(member) for member in members if member.kind == "symlink"}
    for member in members:
        names = [_name(member), *([b"/".join(clean(member.target))] if member.kind == "hardlink" else [])]
        if any(above in links for name in names for above in _above(name)):
            yield b""


def _over_symlinks(members: Sequence[Member]) -> Iterator[bytes]:
    links: set[bytes] = set()
    for member in members:
        if _name(member) in links:
            yield _name(member)
        if member.kind == "symlink":
            links.add(_name(member))


def _marks(members: Sequence[Member]) -> Iterator[bytes]:
    for member in members:
        if any(part.startswith(b".wh.") for part in member.name.split(b"/")):
            yield _name(member)


def _links(members: Sequence[Member]) -> Iterator[bytes]:
    """Hard links that lead to what comes later, to itself, or to a symlink."""
    kinds: dict[bytes, str] = {}
    for member in members:
        name, target = _name(member), b"/".join(clean(member.target))
        if member.kind == "hardlink" and (target == name or kinds.get(target, "symlink") == "symlink"):
            yield name
            yield target
        kinds[name] = member.kind


def _drives(members: Sequence[Member]) -> Iterator[bytes]:
    for member in members:
        names = [member.name, *([member.target] if member.kind == "hardlink" else [])]
        if any(_DRIVE.match(name) for name in names):
            yield from (b"/".join(clean(name)) for name in names)
            yield from (_DRIVE.sub(b"", name, count=1).lstrip(b"/") for name in names)


def _before_1970(members: Sequence[Member]) -> Iterator[bytes]:
    found = {_name(member) for member in members if member.mtime_ns < 0 and member.mtime_ns % SECOND}
    for member in members:
        if member.kind == "hardlink" and b"/".join(clean(member.target)) in found:
            found.add(_name(member))
    return iter(found)


def _slashed(members: Sequence[Member]) -> Iterator[bytes]:
    return (_name(member) for member in members if member.name.endswith(b"/") and not _folder(member))


def _root_as_a_file(members: Sequence[Member]) -> Iterator[bytes]:
    return (b"" for member in members if member.kind == "file" and not _name(member))


def _ending_oddly(members: Sequence[Member]) -> Iterator[bytes]:
    for member in members:
        slashed = member.name.endswith(b"/") and member.size is not None
        dotted = member.name.rstrip(b"/").endswith(b"/.")
        if member.kind != "folder" and (slashed or dotted):
            yield _name(member)
        if member.kind == "hardlink" and member.target.endswith((b"/", b"/.")):
            yield _name(member)
            yield b"/".join(clean(member.target))


def _escaped(members: Sequence[Member]) -> Iterator[bytes]:
    for member in members:
        if any("=" in key or "%" in key for key in member.xattrs):
            yield _name(member)


DIFFERENCES = (
    Difference(
        judge="both",
        what="times of folders that the tar only implies",
        why="no header says them: orlop takes the newest of the layer, the others the time of extraction",
        touches=_implied,
        fields=frozenset({"mtime_ns"}),
        around=False,
    ),
    Difference(
        judge="both",
        what="names with `..`, and hard links to such",
        why="orlop resolves them by their text and stops at the root; GNU tar cuts off all up to the last `..`, "
        "bsdtar refuses the member",
        touches=_dotted,
    ),
    Difference(
        judge="both",
        what="a path that is both a folder and something else in one tar",
        why="for orlop the last wins; the others do not replace a folder that is not empty, or put the member "
        "below a file nowhere",
        touches=_replaced,
    ),
    Difference(
        judge="both",
        what="names that lead through a symlink of the same tar",
        why="orlop follows it within the layer's own root; GNU tar makes such symlinks last, bsdtar takes them away",
        touches=_through_symlinks,
    ),
    Difference(
        judge="both",
        what="names that begin with `.wh.`",
        why="whiteouts are the image specification's, no tar knows them",
        touches=_marks,
    ),
    Difference(
        judge="both",
        what="hard links to what comes later in the tar, or to a symlink",
        why="orlop knows the whole layer; the others know what is there so far",
        touches=_links,
    ),
    Difference(
        judge="both",
        what="xattrs of a path that comes twice",
        why="for orlop the last wins whole; the others set the later xattrs beside the earlier ones of a folder",
        touches=_twice,
        fields=frozenset({"xattrs"}),
        around=False,
    ),
    Difference(
        judge="GNU tar",
        what="a header of the root that says that it is a file, though its name ends in a slash",
        why="orlop takes it for a folder's, as for any other name; GNU tar does nothing",
        touches=_root_as_a_file,
        fields=frozenset({"mode", "uid", "gid", "mtime_ns", "xattrs"}),
        around=False,
    ),
    Difference(
        judge="both",
        what="`/.` at the end of the name of what is no folder, `/` at that of a sparse file, either at that of a "
        "hard link's target",
        why="orlop takes the dot away by its text, and the slash for a folder's; the others look for the folder, or "
        "make a file",
        touches=_ending_oddly,
    ),
    Difference(
        judge="both",
        what="times, owner and mode of a folder that comes twice",
        why="the first member's are set last: by bsdtar, and by GNU tar where the second one's name is written otherwise",
        touches=_twice,
        fields=frozenset({"mtime_ns", "uid", "gid", "mode"}),
        around=False,
        fault=True,
    ),
    Difference(
        judge="GNU tar",
        what="a path that is a symlink and then something else",
        why="for orlop the last wins; GNU tar makes symlinks that lead out, or may, when all else is done",
        touches=_over_symlinks,
        fault=True,
    ),
    Difference(
        judge="bsdtar",
        what="names that begin with a letter and a colon, or with a backslash",
        why="bsdtar takes it for a path of Windows and cuts it off",
        touches=_drives,
        fault=True,
    ),
    Difference(
        judge="bsdtar",
        what="fractions of times before 1970",
        why="libarchive 3.6 adds the fraction to the negative seconds: `-1.5` becomes -0.5",
        touches=_before_1970,
        fields=frozenset({"mtime_ns"}),
        around=False,
        fault=True,
    ),
    Difference(
        judge="bsdtar",
        what="xattrs of what is no folder and has a name that ends in a slash",
        why="bsdtar asks for the name as it stands, slash and all, and is refused",
        touches=_slashed,
        fields=frozenset({"xattrs"}),
        around=False,
        fault=True,
    ),
    Difference(
        judge="bsdtar",
        what="xattrs with `=` or `%` in their names",
        why="GNU tar writes them as `%3D` and `%25`; libarchive 3.6 does not undo that",
        touches=_escaped,
        fields=frozenset({"xattrs"}),
        around=False,
        fault=True,
    ),
)


def table() -> str:
    """The list as docs/fuzzing.md has it."""
    rows = [f"| {known.judge} | {known.what} | {known.why} |" for known in DIFFERENCES]
    return "\n".join(["| who | what | why |", "| --- | --- | --- |", *rows])
