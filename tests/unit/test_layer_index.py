"""The index's file form, and what a validated index promises whoever wrote it."""

from __future__ import annotations

import copy
import math
import stat
import struct
import time
import zlib
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orlop.config import DEFAULT_LIMITS
from orlop.errors import DataLoss, Error, InvalidArgument, ResourceExhausted
from orlop.layers.builder import IndexBuilder
from orlop.layers.index import COPIED, HIDES, IMPLIED, LINK, LOWER_LINK, OPAQUE, LayerIndex
from orlop.layers.merge import DataLayout, Merger
from orlop.layers.tarread import TarReader
from support.layers import Layer

EXPECTED = (DataLoss, InvalidArgument, ResourceExhausted)


def build() -> LayerIndex:
    """Nodes: 1 d, 2 d/f, 3 d/h (link to 2), 4 s (symlink), 5 c (device), 6 sp (sparse), 7 w (whiteout), 8 l
    (link to a lower layer), 9 e.
    """
    layer = Layer().folder("d", xattrs={"user.a": b"1", "user.b": b"2"}).file("d/f", b"x" * 1000)
    layer.hardlink("d/h", to="d/f").symlink("s", "d").device("c", "char", 1, 3)
    layer.sparse("sp", 100_000, [(0, b"y" * 512), (50_000, b"z" * 100)], how="gnu-1.0")
    layer.whiteout("w").hardlink("l", to="x/y").file("e/.wh..wh..opq").file(".wh..wh.aufs")
    data = layer.tar()
    builder = IndexBuilder()
    for entry in TarReader([data]):
        builder.add(entry)
    return builder.finish(len(data))


INDEX = build()
ENCODED = INDEX.encode()


def test_an_index_survives_a_round_trip() -> None:
    decoded = LayerIndex.decode(ENCODED)
    assert decoded == INDEX
    assert decoded.encode() == ENCODED
    decoded.validate(tar_size=INDEX.tar_size)
    empty = IndexBuilder().finish(1024)
    assert LayerIndex.decode(empty.encode()) == empty


def test_an_entry_takes_about_as_many_bytes_as_promised() -> None:
    builder = IndexBuilder()
    for entry in TarReader([b"".join(Layer().file(f"f{n:07}").tar(end=b"") for n in range(1000))]):
        builder.add(entry)
    assert len(builder.finish(1_000_000).encode()) / 1000 < 60


# ------------------------------------------------------------------ damaged bytes


def resealed(body: bytes) -> bytes:
    return body + struct.pack("<I", zlib.crc32(body))


def believe(data: bytes) -> None:
    """All that the service does with an index: nothing else may go wrong."""
    index = LayerIndex.decode(data)
    index.validate(tar_size=index.tar_size)
    merger = Merger()
    try:
        merger.apply(index, lambda data: 1)
    except InvalidArgument:
        return  # a link to nothing
    merger.finish()


@pytest.mark.parametrize("end", range(0, len(ENCODED) - 4, 7))
def test_an_index_that_is_cut_off_is_refused(end: int) -> None:
    with pytest.raises(DataLoss):
        LayerIndex.decode(ENCODED[:end])
    with pytest.raises(DataLoss):
        LayerIndex.decode(resealed(ENCODED[:end]))


def test_a_flipped_byte_is_noticed() -> None:
    for at in range(len(ENCODED)):
        damaged = bytearray(ENCODED)
        damaged[at] ^= 0x40
        with pytest.raises(DataLoss):
            LayerIndex.decode(bytes(damaged))


def test_another_version_is_refused() -> None:
    body = bytearray(ENCODED[:-4])
    body[8] = 99
    with pytest.raises(DataLoss, match="version 99"):
        LayerIndex.decode(resealed(bytes(body)))


@settings(max_examples=1500, deadline=2000)
@given(
    st.lists(st.tuples(st.integers(0, len(ENCODED) - 5), st.integers(0, 255)), min_size=1, max_size=6),
)
def test_damage_under_a_right_checksum_is_an_error_of_ours_or_harmless(flips: list[tuple[int, int]]) -> None:
    body = bytearray(ENCODED[:-4])
    for at, value in flips:
        body[at] = value
    try:
        believe(resealed(bytes(body)))
    except Error as exc:
        assert isinstance(exc, EXPECTED)  # noqa: PT017


@settings(max_examples=300, deadline=2000)
@given(st.data())
def test_words_of_any_size_are_an_error_of_ours_or_harmless(data: st.DataObject) -> None:
    body = bytearray(ENCODED[:-4])
    for _ in range(data.draw(st.integers(1, 3))):
        width, form = data.draw(st.sampled_from([(4, "<I"), (8, "<Q")]))
        at = data.draw(st.integers(8, len(body) - width))
        number = data.draw(st.sampled_from([0, 1, 2**16, 2**31, 2**32 - 1, 2**63, 2**64 - 1])) % (
            1 << 8 * width
        )
        struct.pack_into(form, body, at, number)
    try:
        believe(resealed(bytes(body)))
    except Error as exc:
        assert isinstance(exc, EXPECTED)  # noqa: PT017


@settings(max_examples=300, deadline=2000)
@given(st.binary(max_size=300), st.integers(0, 9), st.lists(st.integers(0, 2**40), min_size=6, max_size=6))
def test_any_bytes_are_no_index(junk: bytes, count: int, lengths: list[int]) -> None:
    head = struct.pack("<8sIIQqI4x6Q", b"ORLOPIX\0", 1, count, 1024, 0, 0, *lengths)
    for data in (junk, resealed(junk), resealed(head + junk)):
        with pytest.raises(EXPECTED):
            believe(data)


# ------------------------------------------------------------------ an index that lies

Lie = Callable[[LayerIndex], object]
LIES: dict[str, Lie] = {
    "no nodes": lambda i: (
        i.names.clear(),
        *(col.__delitem__(slice(None)) for col in (*i._columns(), i.flags)),
    ),
    "the root is a file": lambda i: i.mode.__setitem__(0, stat.S_IFREG),
    "the root has a name": lambda i: i.names.__setitem__(0, b"x"),
    "the root has a parent": lambda i: i.parent.__setitem__(0, 1),
    "the root is a whiteout": lambda i: i.flags.__setitem__(0, HIDES),
    "the root is a link": lambda i: i.flags.__setitem__(0, LINK),
    "a parent after its child": lambda i: i.parent.__setitem__(2, 9),
    "a parent that is not there": lambda i: i.parent.__setitem__(2, 2**32 - 1),
    "a folder in itself": lambda i: i.parent.__setitem__(1, 1),
    "a file in a file": lambda i: i.parent.__setitem__(4, 2),
    "a file in a link to a folder": lambda i: i.parent.__setitem__(5, 3),
    "a name with a slash": lambda i: i.names.__setitem__(2, b"../x"),
    "a name with a NUL": lambda i: i.names.__setitem__(2, b"a\0b"),
    "a name that is ..": lambda i: i.names.__setitem__(2, b".."),
    "a name that is .": lambda i: i.names.__setitem__(2, b"."),
    "no name": lambda i: i.names.__setitem__(2, b""),
    "a long name": lambda i: i.names.__setitem__(2, b"n" * 256),
    "a name twice": lambda i: i.names.__setitem__(3, b"f"),
    "an unknown kind": lambda i: i.mode.__setitem__(2, 0o170000),
    "a socket": lambda i: i.mode.__setitem__(2, stat.S_IFSOCK),
    "an unknown mark": lambda i: i.flags.__setitem__(2, 64),
    "nothing at all": lambda i: (i.mode.__setitem__(2, 0), i.flags.__setitem__(2, 0)),
    "a file that is opaque": lambda i: i.flags.__setitem__(2, OPAQUE),
    "a file that is implied": lambda i: i.flags.__setitem__(2, IMPLIED),
    "a file that is a link, too": lambda i: i.mode.__setitem__(3, stat.S_IFREG),
    "a file that is a lower link, too": lambda i: i.mode.__setitem__(8, stat.S_IFREG),
    "an owner that no system has": lambda i: i.uid.__setitem__(2, 2**32 - 1),
    "a group that no system has": lambda i: i.gid.__setitem__(2, 2**32 - 1),
    "a second of 10^9 nanoseconds": lambda i: i.nsec.__setitem__(2, 10**9),
    "a layer's second of 10^9 nanoseconds": lambda i: setattr(i, "time_nsec", 10**9),
    "a time out of all range": lambda i: i.mtime.__setitem__(2, -(2**63)),
    "a layer's time out of all range": lambda i: setattr(i, "time", 2**63 - 1),
    "bytes outside the tar": lambda i: i.size.__setitem__(2, i.tar_size),
    "bytes far outside the tar": lambda i: i.offset.__setitem__(2, 2**64 - 512),
    "a huge file": lambda i: i.size.__setitem__(2, 2**64 - 1),
    "bytes at no block": lambda i: i.offset.__setitem__(2, 513),
    "a tar of another size": lambda i: setattr(i, "tar_size", i.tar_size - 512),
    "a link to itself": lambda i: i.offset.__setitem__(3, 3),
    "a link forward": lambda i: i.offset.__setitem__(3, 4),
    "a link to what is not there": lambda i: i.offset.__setitem__(3, 2**64 - 1),
    "a link to a folder": lambda i: i.offset.__setitem__(3, 1),
    "a link to a whiteout": lambda i: (i.flags.__setitem__(8, LINK), i.offset.__setitem__(8, 7)),
    "a link to a link": lambda i: (i.flags.__setitem__(8, LINK), i.offset.__setitem__(8, 3)),
    "a symlink without a target": lambda i: i.targets.pop(4),
    "a symlink to nothing": lambda i: i.targets.__setitem__(4, b""),
    "a symlink with a NUL": lambda i: i.targets.__setitem__(4, b"a\0b"),
    "a symlink that is too long": lambda i: i.targets.__setitem__(4, b"x" * 4096),
    "a lower link without a target": lambda i: i.targets.pop(8),
    "a lower link to no path": lambda i: i.targets.__setitem__(8, b"a/../b"),
    "a lower link to the root": lambda i: i.targets.__setitem__(8, b""),
    "a lower link that is too long": lambda i: i.targets.__setitem__(8, b"a/" * 40_000 + b"a"),
    "a target of no node": lambda i: i.targets.__setitem__(99, b"x"),
    "a device number that Linux has not": lambda i: i.offset.__setitem__(5, 2**63),
    "a major number that Linux has not": lambda i: i.offset.__setitem__(5, 2**44),
    "xattrs of no node": lambda i: i.xattrs.__setitem__(99, ((b"user.a", b""),)),
    "an xattr twice": lambda i: i.xattrs.__setitem__(2, ((b"user.a", b""), (b"user.a", b""))),
    "an xattr without a name": lambda i: i.xattrs.__setitem__(2, ((b"", b""),)),
    "an xattr whose name has a NUL": lambda i: i.xattrs.__setitem__(2, ((b"user.\0", b""),)),
    "an xattr whose name is too long": lambda i: i.xattrs.__setitem__(2, ((b"user." + b"x" * 251, b""),)),
    "an xattr that is too large": lambda i: i.xattrs.__setitem__(2, ((b"user.a", bytes(65_536)),)),
    "xattrs that are too large": lambda i: i.xattrs.__setitem__(
        2, tuple((b"user.%d" % n, bytes(60_000)) for n in range(3))
    ),
    "too many xattrs": lambda i: i.xattrs.__setitem__(2, tuple((b"user.%d" % n, b"") for n in range(5000))),
    "a folder that is copied": lambda i: i.flags.__setitem__(1, COPIED),
    "extents of no node": lambda i: i.sparse.__setitem__(99, ()),
    "extents that overlap": lambda i: i.sparse.__setitem__(6, ((0, 512, 0), (511, 512, 512))),
    "extents past the file": lambda i: i.sparse.__setitem__(6, ((99_999, 2, 0),)),
    "extents outside the tar": lambda i: i.sparse.__setitem__(6, ((0, 512, i.tar_size),)),
    "extents that copy one byte of the tar again and again": lambda i: i.sparse.__setitem__(
        6, tuple((n * 1024, 1024, 0) for n in range(97))
    ),
    "a huge sparse file": lambda i: i.size.__setitem__(6, 2**63),
    "copied bytes outside the tar": lambda i: i.sparse.pop(6),
    "a warning with an escape sequence": lambda i: setattr(i, "warnings", ["\033[2J"]),
    "a warning without an end": lambda i: setattr(i, "warnings", ["x" * 100_000]),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_lying_index_is_refused(lie: str) -> None:
    index = copy.deepcopy(INDEX)
    LIES[lie](index)
    with pytest.raises((InvalidArgument, ResourceExhausted)):
        index.validate(tar_size=INDEX.tar_size)
    try:
        believe(index.encode())  # and in the form in which a worker would tell it
    except EXPECTED:
        return
    assert lie in {"a tar of another size", "a name with a slash"} or "NUL" in lie


@pytest.mark.parametrize(
    "section", range(6), ids=["columns", "names", "targets", "xattrs", "sparse", "warnings"]
)
@pytest.mark.parametrize("delta", [-1, 1, 7, 2**40, -(2**40)])
def test_sections_that_do_not_fit_are_refused(section: int, delta: int) -> None:
    body = bytearray(ENCODED[:-4])
    at = 40 + 8 * section
    (length,) = struct.unpack_from("<Q", body, at)
    struct.pack_into("<Q", body, at, (length + delta) % 2**64)
    with pytest.raises(DataLoss):
        LayerIndex.decode(resealed(bytes(body)))


@pytest.mark.parametrize("count", [0, 1, len(INDEX) - 1, len(INDEX) + 1, 1000, 2**32 - 1])
def test_a_count_that_lies_is_refused(count: int) -> None:
    body = bytearray(ENCODED[:-4])
    struct.pack_into("<I", body, 12, count)
    with pytest.raises(EXPECTED):
        believe(resealed(bytes(body)))


def test_the_depth_is_limited() -> None:
    index = LayerIndex(tar_size=1024)
    for node in range(DEFAULT_LIMITS.depth + 2):
        index.parent.append(max(node - 1, 0))
        index.names.append(b"d" if node else b"")
        index.mode.append(stat.S_IFDIR | 0o755)
        index.flags.append(IMPLIED)
        for column in (index.uid, index.gid, index.mtime, index.nsec, index.size, index.offset):
            column.append(0)
    with pytest.raises(ResourceExhausted, match="depth"):
        index.validate(tar_size=1024)


def test_validation_takes_a_few_microseconds_an_entry() -> None:
    builder = IndexBuilder()
    for entry in TarReader([b"".join(Layer().file(f"f{n}").tar(end=b"") for n in range(20_000))]):
        builder.add(entry)
    index = builder.finish(20_000 * 512)
    before = time.process_time()
    index.validate(tar_size=20_000 * 512)
    assert time.process_time() - before < 1


def test_many_huge_empty_files_stay_cheap() -> None:
    """Each may claim a tebibyte: the lists of their chunks must not fill the memory."""
    index = copy.deepcopy(INDEX)
    for number in range(3000):
        for column, value in zip(index._columns(), (0, 0, 0, 0, 0, 1 << 40, 0, stat.S_IFREG), strict=True):
            column.append(value)
        index.flags.append(COPIED)
        index.names.append(b"huge%d" % number)
        index.sparse[len(index) - 1] = ()
    index.validate(tar_size=index.tar_size)
    layout = DataLayout(index)
    chunks = sum(len(copied.chunks.starts) for copied in layout.files.values() if copied.chunks)
    assert chunks < 8 << 20
    assert layout.size < 1 << 20
    assert all(math.log2(1 << copied.chunks.bits) <= 31 for copied in layout.files.values() if copied.chunks)


def test_the_limit_on_entries_is_named() -> None:
    with pytest.raises(ResourceExhausted, match=r"limits\.layer_entries"):
        INDEX.validate(tar_size=INDEX.tar_size, limits=replace(DEFAULT_LIMITS, layer_entries=5))


def test_lower_links_are_paths() -> None:
    assert INDEX.flags[8] == LOWER_LINK
    assert INDEX.targets[8] == b"x/y"
