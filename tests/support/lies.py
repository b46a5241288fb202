"""What a worker may say that is not so: answers about one layer, and what becomes of them.

`LIES` are answers that must be refused, with the class of the error; `mutated` makes more of them by chance,
of which some describe a proper tree and must be as harmless as one.
"""

from __future__ import annotations

import random
import struct
import zlib
from array import array
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from orlop.errors import DataLoss, Error, Internal, InvalidArgument, ResourceExhausted, Unavailable
from orlop.layers.builder import IndexBuilder
from orlop.layers.index import COPIED, HIDES, LINK, LOWER_LINK, OPAQUE, LayerIndex
from orlop.layers.tarread import TarReader
from support.layers import Layer

Errors = type[Error] | tuple[type[Error], ...]
REFUSALS: Errors = (DataLoss, InvalidArgument, ResourceExhausted)

# The nodes of `INDEX`; 0 is the root.
D, FILE, TWIN, SYMLINK, DEVICE, SPARSE, WHITEOUT, LOWER, OPAQUE_FOLDER, LAST = range(1, 11)


def index_of(data: bytes) -> LayerIndex:
    """What an honest worker says."""
    reader = TarReader([data])
    builder = IndexBuilder()
    for entry in reader:
        builder.add(entry)
    return builder.finish(reader.size)


def _tar() -> bytes:
    layer = Layer().folder("d", xattrs={"user.a": b"1", "user.b": b"2"}).file("d/f", b"x" * 1000)
    layer.hardlink("d/h", to="d/f").symlink("s", "d").device("c", "char", 1, 3)
    layer.sparse("sp", 100_000, [(0, b"y" * 512), (50_000, b"z" * 100)], how="gnu-1.0")
    layer.whiteout("w").hardlink("l", to="etc/motd").file("e/.wh..wh..opq").file("z", b"last")
    return layer.tar()


TAR = _tar()
INDEX = index_of(TAR)
HONEST = b"+" + INDEX.encode()
BASE = Layer().folder("etc").file("etc/motd", b"below\n").tar()  # what `LOWER` links to


@dataclass(frozen=True, slots=True, kw_only=True)
class Lie:
    """An answer, and what it must end with; an ``early`` one comes before the source is read."""

    answer: bytes
    error: Errors = InvalidArgument
    early: bool = False


def _but(change: Callable[[LayerIndex], object], error: Errors = InvalidArgument) -> Lie:
    index = LayerIndex.decode(HONEST[1:])
    change(index)
    return Lie(answer=b"+" + index.encode(), error=error)


def _set(column: str, node: int, value: object, error: Errors = InvalidArgument) -> Lie:
    return _but(lambda index: getattr(index, column).__setitem__(node, value), error)


def _all(error: Errors = InvalidArgument, **values: object) -> Lie:
    def change(index: LayerIndex) -> None:
        for name, value in values.items():
            setattr(index, name, value)

    return _but(change, error)


def _deep(index: LayerIndex) -> None:
    for column in (
        index.parent,
        index.mode,
        index.uid,
        index.gid,
        index.nsec,
        index.mtime,
        index.size,
        index.offset,
    ):
        column.extend([column[D]] * 4_100)
    index.flags.extend(bytes(4_100))
    for number in range(4_100):
        index.names.append(b"x")
        index.parent[LAST + 1 + number] = LAST + number if number else D


def _copied(index: LayerIndex, node: int) -> None:
    index.flags[node] |= COPIED


def _words(index: int, form: str, value: int) -> bytes:
    """The honest answer with another number in its head, under a right checksum."""
    body = bytearray(HONEST[1:-4])
    struct.pack_into(form, body, index, value)
    return b"+" + sealed(bytes(body))


def sealed(body: bytes) -> bytes:
    """An index's body with the checksum that fits."""
    return body + struct.pack("<I", zlib.crc32(body))


LIES: Mapping[str, Lie] = {
    # names
    "a name ..": _set("names", FILE, b".."),
    "a name .": _set("names", FILE, b"."),
    "a name with a slash": _set("names", FILE, b"a/b"),
    "an absolute name": _set("names", FILE, b"/etc/passwd"),
    "a name out of the root": _set("names", D, b"../../../etc"),
    "a name with a NUL": _set("names", FILE, b"a\0b", DataLoss),
    "an empty name": _set("names", FILE, b""),
    "a name too long": _set("names", FILE, b"x" * 256, (InvalidArgument, ResourceExhausted)),
    "a name twice": _set("names", TWIN, b"f"),
    "a name twice at the root": _set("names", LAST, b"d"),
    "a named root": _set("names", 0, b"root"),
    # the shape of the tree
    "a folder in itself": _set("parent", D, D),
    "a cycle": _set("parent", D, FILE),
    "a parent that comes later": _set("parent", D, OPAQUE_FOLDER),
    "a parent that is not there": _set("parent", FILE, 4_000_000_000),
    "a root that is in a folder": _set("parent", 0, D),
    "a child of a file": _set("parent", SYMLINK, FILE),
    "a child of a link": _set("parent", SYMLINK, TWIN),
    "a child of a symlink": _set("parent", DEVICE, SYMLINK),
    "a child of a whiteout": _set("parent", LAST, WHITEOUT),
    "no root": _set("mode", 0, 0o100644),
    "a root that is a symlink": _set("mode", 0, 0o120777),
    "a root that is a link": _set("flags", 0, LINK),
    "a root that hides": _set("flags", 0, HIDES),
    "two roots": _set("names", D, b""),
    "a folder that became a file": _set("mode", D, 0o100644),
    "too deep": _but(_deep, ResourceExhausted),
    "nothing at all": Lie(answer=b"+" + LayerIndex(tar_size=len(TAR)).encode()),
    # offsets and sizes
    "a file at the end": _set("offset", FILE, len(TAR) // 512 * 512),
    "a file past the end": _set("offset", FILE, 1 << 40),
    "a negative offset": _set("offset", FILE, (1 << 64) - 512),
    "an offset that overflows": _set("offset", FILE, (1 << 64) - 1024),
    "an offset in a block": _set("offset", FILE, INDEX.offset[FILE] + 1),
    "a file larger than the tar": _set("size", FILE, len(TAR)),
    "a negative size": _set("size", FILE, (1 << 64) - 1),
    "a tar that is larger": _all(tar_size=len(TAR) + 512),
    "a tar that is smaller": _all(tar_size=len(TAR) - 512),
    "a tar of all bytes": _all(tar_size=(1 << 64) - 1),
    "sparse out of order": _but(lambda index: index.sparse.update({SPARSE: ((512, 10, 0), (0, 10, 0))})),
    "sparse that overlaps": _but(lambda index: index.sparse.update({SPARSE: ((0, 512, 0), (100, 10, 0))})),
    "sparse past the file": _but(lambda index: index.sparse.update({SPARSE: ((99_999, 2, 0),)})),
    "sparse from outside the tar": _but(lambda index: index.sparse.update({SPARSE: ((0, 512, len(TAR)),)})),
    "sparse that overflows": _but(lambda index: index.sparse.update({SPARSE: (((1 << 64) - 1, 2, 0),)})),
    "sparse and huge": _set("size", SPARSE, 1 << 41, ResourceExhausted),
    "sparse of no node": _but(lambda index: index.sparse.update({1_000_000: ((0, 1, 0),)})),
    "more to copy than there is": _but(lambda index: (_copied(index, FILE), index.size.__setitem__(FILE, 1 << 39))),
    "a folder to copy": _set("flags", D, COPIED),
    # links and kinds
    "a link to itself": _set("offset", TWIN, TWIN),
    "a link to what comes later": _set("offset", TWIN, LAST),
    "a link to a folder": _set("offset", TWIN, D),
    "a link to the root": _set("offset", TWIN, 0),
    "a link to nowhere": _set("offset", TWIN, 1_000_000),
    "a link to nowhere at all": _set("offset", TWIN, (1 << 64) - 1),
    "a link to a whiteout": _but(lambda index: (index.flags.__setitem__(LAST, LINK), index.mode.__setitem__(LAST, 0),
                                              index.offset.__setitem__(LAST, WHITEOUT))),
    "a link that is a file": _set("mode", TWIN, 0o100644),
    "a link below with ..": _but(lambda index: index.targets.update({LOWER: b"../../etc/passwd"})),
    "a link below, absolute": _but(lambda index: index.targets.update({LOWER: b"/etc/passwd"})),
    "a link below with a NUL": _but(lambda index: index.targets.update({LOWER: b"a\0b"})),
    "a link below, without end": _but(lambda index: index.targets.update({LOWER: b"a/" * 40_000 + b"a"})),
    "a link below to nothing said": _but(lambda index: index.targets.pop(LOWER)),
    "a symlink without target": _but(lambda index: index.targets.pop(SYMLINK)),
    "a symlink to nothing": _but(lambda index: index.targets.update({SYMLINK: b""})),
    "a symlink with a NUL": _but(lambda index: index.targets.update({SYMLINK: b"a\0"})),
    "a symlink too long": _but(lambda index: index.targets.update({SYMLINK: b"x" * 4_096}),
                               (InvalidArgument, ResourceExhausted)),
    "a target of no node": _but(lambda index: index.targets.update({1_000_000: b"x"})),
    "a socket": _set("mode", FILE, 0o140644),
    "a kind that is none": _set("mode", FILE, 0o170644),
    "nothing": _set("mode", FILE, 0o000644),
    "a device that is none": _set("offset", DEVICE, 1 << 63),
    "a mark that is none": _set("flags", FILE, 64),
    "all marks": _set("flags", FILE, 63),
    "an opaque file": _set("flags", FILE, OPAQUE),
    "a file that links below": _set("flags", FILE, LOWER_LINK),
    # owners, times, xattrs, words
    "an owner that is nobody's": _set("uid", FILE, (1 << 32) - 1),
    "a group that is nobody's": _set("gid", FILE, (1 << 32) - 1),
    "a second too long": _set("nsec", FILE, 1_000_000_000),
    "a time out of range": _set("mtime", FILE, -(1 << 63)),
    "a layer's time out of range": _all(time=(1 << 63) - 1),
    "a layer's second too long": _all(time_nsec=1_000_000_000),
    "xattrs without end": _but(
        lambda index: index.xattrs.update({D: tuple((b"user.%d" % n, b"") for n in range(4_097))}), ResourceExhausted
    ),
    "xattrs too large together": _but(
        lambda index: index.xattrs.update({D: tuple((b"user.%d" % n, bytes(60_000)) for n in range(3))}),
        ResourceExhausted,
    ),
    "an xattr too large": _but(
        lambda index: index.xattrs.update({D: ((b"user.a", bytes(65_536)),)}),
        (InvalidArgument, ResourceExhausted),
    ),
    "an xattr without name": _but(lambda index: index.xattrs.update({D: ((b"", b""),)})),
    "an xattr's name too long": _but(lambda index: index.xattrs.update({D: ((b"user." + b"x" * 255, b""),)})),
    "an xattr with a NUL": _but(lambda index: index.xattrs.update({D: ((b"user.\0", b""),)})),
    "an xattr twice": _but(lambda index: index.xattrs.update({D: ((b"user.a", b"1"), (b"user.a", b"2"))})),
    "an xattr of no node": _but(lambda index: index.xattrs.update({1_000_000: ((b"user.a", b""),)})),
    "a warning that steers a terminal": _all(warnings=["\033]0;owned\007"]),
    "a warning without end": _all(warnings=["x" * 10_000]),
    # the form of the answer
    "more entries than it has": Lie(answer=_words(12, "<I", (1 << 32) - 1), error=DataLoss),
    "fewer entries than it has": Lie(answer=_words(12, "<I", 3), error=DataLoss),
    "a section without end": Lie(answer=_words(36, "<Q", (1 << 64) - 1), error=DataLoss),
    "another version": Lie(answer=_words(8, "<I", 99), error=DataLoss),
    "a wrong checksum": Lie(answer=HONEST[:-1] + bytes([HONEST[-1] ^ 1]), error=DataLoss),
    "an answer cut off": Lie(answer=HONEST[:-1], error=DataLoss),
    "an answer cut in half": Lie(answer=HONEST[: len(HONEST) // 2], error=DataLoss),
    "an answer that goes on": Lie(answer=HONEST + b"x", error=DataLoss),
    "an answer twice": Lie(answer=HONEST + HONEST, error=DataLoss),
    "an index twice": Lie(answer=HONEST + HONEST[1:], error=DataLoss),
    "an empty index": Lie(answer=b"+", error=DataLoss),
    "rubbish": Lie(answer=b"+" + b"junk" * 1000, error=DataLoss),
    "no answer": Lie(answer=b"", error=Unavailable),
    "an answer that is none": Lie(answer=b"?", error=Unavailable),
    "signs of life only": Lie(answer=b"." * 1000, error=Unavailable),
    "an answer before its time": Lie(answer=HONEST, error=Internal, early=True),
    "an error that is none": Lie(answer=b"-", error=Internal),
    "an error without words": Lie(answer=b"-{}", error=Internal),
    "an error that is a list": Lie(answer=b"-[1, 2]", error=Internal),
    "an error too deep": Lie(answer=b"-" + b"[" * 100_000, error=Internal),
    "an error of no class": Lie(
        answer=b'-{"code": "NOBODY", "attempted": "", "reason": "", "hint": "", "details": {}}', error=Internal
    ),
    "an error that is not a worker's to raise": Lie(
        answer=b'-{"code": "NOT_FOUND", "attempted": "", "reason": "", "hint": "", "details": {}}', error=Internal
    ),
    "the index of another layer": Lie(answer=b"+" + index_of(Layer().file("other", b"o" * 9_000).tar()).encode()),
}  # fmt: skip


def mutated(dice: random.Random) -> bytes:
    """The honest index with some of it changed at random, as bytes or as values, under a right checksum."""
    if dice.random() < 0.4:
        body = bytearray(HONEST[1:-4])
        for _ in range(dice.randint(1, 8)):
            body[dice.randrange(len(body))] = dice.randrange(256)
        return sealed(bytes(body))
    index = LayerIndex.decode(HONEST[1:])
    for _ in range(dice.randint(1, 4)):
        node = dice.randrange(len(index))
        name = dice.choice(_CHANGES)
        column = getattr(index, name)
        if name == "names":
            column[node] = dice.choice([b"..", b"f", b"d", b"new", b"\xff" * 255, b"a b", b"", b"x/y"])
        elif name == "targets":
            column[node] = dice.choice(
                [b"..", b"/", b"d/f", b"etc/motd", b"/etc/passwd", b"x" * 4_000, b"a/../b"]
            )
        elif name == "sparse":
            column[node] = tuple(
                (dice.randrange(2_000), dice.randrange(600), dice.randrange(len(TAR))) for _ in "ab"
            )
        elif name == "xattrs":
            column[node] = (
                (dice.choice([b"user.x", b"trusted.overlay.opaque", b"security.capability"]), b"y"),
            )
        elif name == "flags":
            column[node] = dice.choice([0, 1, 2, 3, 4, 5, 8, 9, 16, 17, 24, 32, 33, 63])
        elif name == "mode":
            column[node] = dice.choice(
                [0, 0o40755, 0o100644, 0o104755, 0o120777, 0o20644, 0o60644, 0o10644, 0o644]
            )
        else:
            most = (1 << 8 * column.itemsize) - 1 if isinstance(column, array) else 255
            small = dice.choice([0, 1, 2, 3, 4, 5, 512, 1024, 1536, len(TAR), dice.randrange(len(TAR))])
            value = dice.choice([small, small, small, most, most >> 1, 1 << 31])
            column[node] = min(value, most >> 1 if name == "mtime" else most)
    return index.encode()


_CHANGES = (
    *("parent", "mode", "flags", "uid", "gid", "mtime", "nsec", "size", "offset"),
    *("names", "targets", "sparse", "xattrs"),
)
