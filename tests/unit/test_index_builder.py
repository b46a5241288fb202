"""What the entries of one layer mean together."""

from __future__ import annotations

import stat
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orlop.config import DEFAULT_LIMITS
from orlop.errors import InvalidArgument, ResourceExhausted
from orlop.layers.builder import IndexBuilder, clean
from orlop.layers.index import COPIED, HIDES, IMPLIED, LINK, LOWER_LINK, OPAQUE, LayerIndex
from orlop.layers.tarread import TarReader
from support.layers import MTIME, Layer

SECOND = 1_000_000_000
KINDS = {
    0: "",
    stat.S_IFREG: "file",
    stat.S_IFDIR: "folder",
    stat.S_IFLNK: "symlink",
    stat.S_IFCHR: "char",
    stat.S_IFBLK: "block",
    stat.S_IFIFO: "fifo",
}
MARKS = {HIDES: "hides", OPAQUE: "opaque", IMPLIED: "implied", COPIED: "copied"}


def index_of(layer: Layer, *, limits: object = DEFAULT_LIMITS) -> LayerIndex:
    data = layer.tar()
    reader = TarReader([data], limits=limits)  # type: ignore[arg-type]
    builder = IndexBuilder(limits=limits)  # type: ignore[arg-type]
    for entry in reader:
        builder.add(entry)
    index = builder.finish(reader.size)
    index.validate(tar_size=len(data), limits=limits)  # type: ignore[arg-type]
    assert LayerIndex.decode(index.encode()) == index
    return index


def shape(layer: Layer) -> dict[str, str]:
    """Each path as ``kind mark… -> target``; the size stands for a file's content."""
    index = index_of(layer)
    found: dict[str, str] = {}
    for node, (mode, flags) in enumerate(zip(index.mode, index.flags, strict=True)):
        words = [KINDS[mode & 0o170000]]
        if stat.S_ISREG(mode):
            words.append(str(index.size[node]))
        words += [word for mark, word in MARKS.items() if flags & mark]
        if flags & LINK:
            words += ["=", index.path(index.offset[node]).decode()]
        if flags & LOWER_LINK:
            words += ["lower", index.targets[node].decode()]
        if stat.S_ISLNK(mode):
            words += ["->", index.targets[node].decode()]
        found[index.path(node).decode("utf-8", "surrogateescape")] = " ".join(filter(None, words))
    if found[""] == "folder implied":
        del found[""]
    return found


def f(count: int) -> bytes:
    return b"x" * count


CASES: dict[str, tuple[Layer, dict[str, str]]] = {
    "names are cleaned by their text and stop at the root": (
        Layer()
        .file("/a", f(1))
        .file("./b", f(2))
        .file("x/../c", f(3))
        .file("../../d", f(4))
        .file("e//./g", f(5)),
        {"a": "file 1", "b": "file 2", "c": "file 3", "d": "file 4", "e": "folder implied", "e/g": "file 5"},
    ),
    "the same path twice: the last wins": (
        Layer().file("a", f(1)).file("a", f(2)).symlink("a", "t").fifo("a").file("./a", f(3)),
        {"a": "file 3"},
    ),
    "a folder twice keeps what is in it": (
        Layer().folder("d", mode=0o700).file("d/a").folder("d"),
        {"d": "folder", "d/a": "file 0"},
    ),
    "a file replaces a folder and all below it": (
        Layer().folder("d").folder("d/e").file("d/e/a").file("d", f(1)).file("z"),
        {"d": "file 1", "z": "file 0"},
    ),
    "a folder replaces a file": (
        Layer().file("d", f(1)).folder("d").file("d/a"),
        {"d": "folder", "d/a": "file 0"},
    ),
    "a name below a file makes it a folder": (
        Layer().file("d", f(1)).file("d/a"),
        {"d": "folder implied", "d/a": "file 0"},
    ),
    "a folder replaced and made again is empty": (
        Layer().folder("d").file("d/a").file("d").folder("d").file("d/b"),
        {"d": "folder", "d/b": "file 0"},
    ),
    "a file and its whiteout, in either order, are both there": (
        Layer().file("a", f(1)).whiteout("a").whiteout("b").file("b", f(2)),
        {"a": "file 1 hides", "b": "file 2 hides"},
    ),
    "a folder and its whiteout, in either order, are both there": (
        Layer().folder("a").file("a/x").whiteout("a").whiteout("b").file("b/x").folder("b"),
        {"a": "folder hides", "a/x": "file 0", "b": "folder hides", "b/x": "file 0"},
    ),
    "a replaced file keeps its whiteout": (
        Layer().whiteout("a").file("a").folder("a").symlink("a", "t").hardlink("a", to="b"),
        {"a": "hides lower b"},
    ),
    "an opaque mark may come first or last": (
        Layer().opaque("a").file("a/x").file("b/x").opaque("b").opaque(""),
        {
            "": "folder opaque implied",
            "a": "folder opaque implied",
            "a/x": "file 0",
            "b": "folder opaque implied",
            "b/x": "file 0",
        },
    ),
    "other bookkeeping of aufs is left out": (
        Layer().folder(".wh..wh.plnk").file(".wh..wh.aufs").file("a"),
        {"a": "file 0"},
    ),
    "a whiteout may be of any type": (
        Layer()
        .folder(".wh.a")
        .hardlink(".wh.b", to=".wh..wh.aufs")
        .symlink(".wh.c", "x")
        .device(".wh.d", "char", 0, 0),
        {"a": "hides", "b": "hides", "c": "hides", "d": "hides"},
    ),
    "a hard link is another name of the same file": (
        Layer().file("a", f(1)).hardlink("b", to="a").hardlink("d/c", to="./x/../b").hardlink("e", to="/d/c"),
        {"a": "file 1", "b": "= a", "d": "folder implied", "d/c": "= a", "e": "= a"},
    ),
    "a hard link to itself changes nothing": (Layer().file("a", f(1)).hardlink("a", to="a"), {"a": "file 1"}),
    "a hard link to what only lower layers have": (
        Layer().hardlink("a", to="../x/y").hardlink("b", to="a").whiteout("c").hardlink("d", to="c"),
        {"a": "lower x/y", "b": "lower x/y", "c": "hides", "d": "lower c"},
    ),
    "a file that is gone under its own name lives on under a hard link": (
        Layer().file("a", f(1)).hardlink("b", to="a").hardlink("c", to="a").file("a", f(2)).folder("c"),
        {"b": "file 1", "a": "file 2", "c": "folder"},
    ),
    "a file whose folder was replaced lives on under its hard links": (
        Layer().file("d/a", f(1)).hardlink("b", to="d/a").hardlink("c", to="b").file("d", f(2)),
        {"b": "file 1", "c": "= b", "d": "file 2"},
    ),
    "a hard link to a symlink is that symlink": (
        Layer().symlink("s", "t").hardlink("h", to="s"),
        {"s": "symlink -> t", "h": "= s"},
    ),
    "a hard link's target goes through symlinks": (
        Layer().file("d/a", f(1)).symlink("s", "d").symlink("d/up", "..").hardlink("h", to="s/up/d/a"),
        {
            "d": "folder implied",
            "d/a": "file 1",
            "s": "symlink -> d",
            "d/up": "symlink -> ..",
            "h": "= d/a",
        },
    ),
    "a parent that is a symlink is followed: relative, absolute, out of the root": (
        Layer()
        .symlink("r", "d/e")
        .symlink("a", "/d")
        .symlink("o", "../../d")
        .file("r/1")
        .file("a/2")
        .file("o/3"),
        {
            "r": "symlink -> d/e",
            "a": "symlink -> /d",
            "o": "symlink -> ../../d",
            "d": "folder implied",
            "d/e": "folder implied",
            "d/e/1": "file 0",
            "d/2": "file 0",
            "d/3": "file 0",
        },
    ),
    "a symlink's .. starts where the symlink stands": (
        Layer().folder("x/y").symlink("x/y/up", "../z").symlink("s", "x/y").file("s/up/f"),
        {
            "x": "folder implied",
            "x/y": "folder",
            "x/y/up": "symlink -> ../z",
            "s": "symlink -> x/y",
            "x/z": "folder implied",
            "x/z/f": "file 0",
        },
    ),
    "a symlink that became a folder is no longer followed": (
        Layer().symlink("s", "d").file("s/1").folder("s").file("s/2"),
        {"d": "folder implied", "d/1": "file 0", "s": "folder", "s/2": "file 0"},
    ),
    "a hard link to a symlink that became a folder is no longer followed": (
        Layer().symlink("s", "d").hardlink("h", to="s").file("h/1").folder("h").file("h/2"),
        {"s": "symlink -> d", "d": "folder implied", "d/1": "file 0", "h": "folder", "h/2": "file 0"},
    ),
    "a whiteout through a symlink hides where it leads": (
        Layer().symlink("s", "d").whiteout("s/a").opaque("s"),
        {"s": "symlink -> d", "d": "folder opaque implied", "d/a": "hides"},
    ),
    "the root may be named": (Layer().folder("./").file("a"), {"": "folder", "a": "file 0"}),
    "padding that is not zero is copied, and so are sparse files": (
        Layer().file("a", f(5)).raw(b"").sparse("b", 9000, [(0, b"x")], how="gnu-1.0"),
        {"a": "file 5", "b": "file 9000 copied"},
    ),
    "a layer without entries": (Layer(), {}),
}


@pytest.mark.parametrize("case", CASES)
def test_entries_mean(case: str) -> None:
    layer, expected = CASES[case]
    assert shape(layer) == expected


REFUSED: dict[str, Layer] = {
    "a whiteout of the empty name": Layer().file(".wh."),
    "a whiteout of .": Layer().file("d/.wh.."),
    "a whiteout of ..": Layer().file("d/.wh..."),
    "a whiteout of a name that is too long": Layer().whiteout("n" * 256),
    "the root as a symlink": Layer().symlink(".", "/etc"),
    "the root as a file": Layer().file("x/.."),
    "the root as a fifo": Layer().fifo("x/.."),
    "the root as a hard link": Layer().hardlink(".", to="a"),
    "a hard link to the root": Layer().hardlink("h", to="/"),
    "a hard link to a folder": Layer().folder("d").hardlink("h", to="d"),
    "a name that is too long": Layer().file("n" * 256),
    "a folder's name that is too long": Layer().file("n" * 256 + "/a"),
    "a name with a NUL": Layer().add("x", b"0", pax=[(b"path", b"a\0b")]),
    "a folder's name with a NUL": Layer().add("x", b"0", pax=[(b"path", b"a\0b/c")]),
    "an entry below a whiteout": Layer().file(".wh.d/a"),
    "a symlink to nothing": Layer().symlink("s", ""),
    "a symlink to a NUL": Layer().add("s", b"2", link="x", pax=[(b"linkpath", b"a\0b")]),
    "a symlink that is too long": Layer().symlink("s", "x" * 4096),
    "symlinks that go round": Layer().symlink("a", "b").symlink("b", "a").file("a/f"),
    "a symlink to itself": Layer().symlink("a", "a").file("a/f"),
    "a symlink below itself": Layer().symlink("a", "a/a/a").file("a/f"),
    "an owner that no system has": Layer().file("a", uid=2**32 - 1),
    "a group that no system has": Layer("gnu").file("a", gid=-1),
    "a device number that Linux has not": Layer().device("d", "char", 4096, 0),
    "a minor number that Linux has not": Layer().device("d", "block", 0, 1 << 20),
}


@pytest.mark.parametrize("case", REFUSED)
def test_is_refused(case: str) -> None:
    with pytest.raises(InvalidArgument):
        index_of(REFUSED[case])


@pytest.mark.parametrize(
    ("limit", "value", "layer"),
    [
        ("layer_entries", 3, Layer().file("a").file("b").file("c")),
        ("path_size", 50, Layer().file("a/" * 30)),
        ("path_size", 50, Layer().hardlink("h", to="a/" * 30)),
        ("depth", 10, Layer().file("a/" * 10 + "b")),
    ],
)
def test_limits_are_named(limit: str, value: int, layer: Layer) -> None:
    with pytest.raises(ResourceExhausted, match=rf"{limit} is .* limits\.{limit}"):
        index_of(layer, limits=replace(DEFAULT_LIMITS, **{limit: value}))


def test_a_hard_links_header_does_not_change_the_file() -> None:
    index = index_of(Layer().file("a", f(7), mode=0o600, uid=5).hardlink("b", to="a", mode=0o777, uid=9))
    assert (index.mode[1], index.uid[1]) == (stat.S_IFREG | 0o600, 5)


def test_the_last_folder_entry_gives_all_metadata() -> None:
    layer = (
        Layer().folder("d", mode=0o700, uid=3, xattrs={"user.a": b"1"}).folder("d", mode=0o711, mtime_ns=5)
    )
    index = index_of(layer)
    assert (index.mode[1], index.uid[1], index.nsec[1]) == (stat.S_IFDIR | 0o711, 0, 5)
    assert index.xattrs == {}


def test_the_layers_time_is_its_newest_entry() -> None:
    index = index_of(
        Layer().file("a", mtime_ns=7 * SECOND + 1).file("b", mtime_ns=7 * SECOND).file("c/d", mtime_ns=-1)
    )
    assert (index.time, index.time_nsec) == (7, 1)
    assert index_of(Layer()).time == 0


def test_padding_that_is_not_zero_makes_a_copy() -> None:
    data = bytearray(Layer().file("a", b"x").tar())
    data[600] = 1
    builder = IndexBuilder()
    for entry in TarReader([bytes(data)]):
        builder.add(entry)
    assert builder.finish(len(data)).flags[1] == COPIED


def test_what_was_left_out_is_told() -> None:
    assert index_of(Layer().file(".wh..wh.a").file("d/.wh..wh.b")).warnings == [
        "aufs bookkeeping: 2 left out"
    ]


def test_xattrs_that_no_file_system_here_holds_are_told() -> None:
    layer = (
        Layer()
        .file("a", xattrs={"com.apple.quarantine": b""})
        .folder("d", xattrs={"user.ok": b"", "odd": b""})
    )
    assert index_of(layer).warnings == ["xattrs of names that Linux does not know: 2 left out"]


@pytest.mark.parametrize(
    ("path", "parts"), [(b"", []), (b"/", []), (b"a/../..", []), (b"..a/b..", [b"..a", b"b.."])]
)
def test_clean(path: bytes, parts: list[bytes]) -> None:
    assert clean(path) == parts


# ------------------------------------------------------------------ any layer

PARTS = st.sampled_from(["a", "b", "c", ".", "..", "", ".wh.a", ".wh..wh..opq", "s"])
PATHS = st.lists(PARTS, min_size=1, max_size=4).map("/".join)
STEPS: list[Callable[[Layer, str, str], object]] = [
    lambda layer, path, other: layer.file(path, other.encode()),
    lambda layer, path, other: layer.folder(path),
    lambda layer, path, other: layer.symlink(path, other or "x"),
    lambda layer, path, other: layer.symlink(path, "/" + other),
    lambda layer, path, other: layer.hardlink(path, to=other or "x"),
    lambda layer, path, other: layer.hardlink(path, to=other or "x"),
    lambda layer, path, other: layer.device(path, "char", len(other), 0),
    lambda layer, path, other: layer.whiteout(path),
    lambda layer, path, other: layer.opaque(path),
    lambda layer, path, other: layer.sparse(path, 5000, [(0, b"x" * 512)], how="gnu-1.0"),
]


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(range(len(STEPS))), PATHS, PATHS), max_size=25))
def test_any_entries_make_a_proper_index_or_are_refused(steps: list[tuple[int, str, str]]) -> None:
    layer = Layer()
    for number, path, other in steps:
        STEPS[number](layer, path, other)
    try:
        index_of(layer)  # validates, and encodes and decodes
    except (InvalidArgument, ResourceExhausted) as exc:
        assert "check layer index" not in str(exc)  # noqa: PT017 - the builder itself must refuse


def test_memory_and_time_grow_with_the_entries_only() -> None:
    layer = Layer()
    for number in range(2000):
        layer.file("d/f", b"", mtime_ns=(MTIME + number) * SECOND)
    assert len(index_of(layer)) == 3
