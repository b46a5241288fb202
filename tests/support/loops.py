"""What the hot loops make of many inputs, as text: the pure and the compiled ones have to say the same.

    PYTHONPATH=…:tests python tests/support/loops.py SEED COUNT

Run as a program of its own, with the one or the other `orlop` on its path; nothing here knows which.  The
inputs are random stacks of layers, and the seeds of the fuzzers' corpus, each also damaged in a few places.
"""

from __future__ import annotations

import hashlib
import random
import struct
import sys
import tempfile
import traceback
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from orlop.config import DEFAULT_LIMITS
from orlop.erofs import format as fmt
from orlop.erofs.reader import Image
from orlop.erofs.writer import build
from orlop.errors import Error
from orlop.layers import index as module
from orlop.layers import pax
from orlop.layers.builder import IndexBuilder
from orlop.layers.chainview import ChainView
from orlop.layers.index import LayerIndex
from orlop.layers.merge import Merger
from orlop.layers.tarread import TarReader
from orlop.layers.tarwrite import Member, TarWriter
from orlop.testing.gnutar import sealed
from support.random_layers import random_stack

TREE = Path(__file__).resolve().parents[2]
LIMITS = replace(DEFAULT_LIMITS, layer_entries=5_000, pax_size=1 << 16, file_size=1 << 24, depth=64)
CHUNK = 1_000  # odd to the blocks of a tar
SMALL = 1 << 20  # of a device; what a hostile index claims may not be built


def main() -> None:
    """Print which loops these are, and a line for each input."""
    dice = random.Random(int(sys.argv[1]))
    lines = [module.__file__.rpartition(".")[2]]
    for number in range(int(sys.argv[2])):
        tars = [layer.tar() for layer in random_stack(dice)]
        lines.append(f"stack {number} {_outcome(lambda tars=tars: _merged(tars))}")
    for name, use, seal in (
        ("tar", _tar, sealed),
        ("pax", _pax, bytes),
        ("index", _index, _crc),
        ("erofs", _erofs, _checksum),
    ):
        for seed in sorted((TREE / "fuzz" / "corpus" / name).iterdir()):
            for data in _damaged(seed.read_bytes(), dice):
                forms = (data, seal(data))
                lines += [f"{name} {seed.name} {_outcome(lambda form=form: use(form))}" for form in forms]  # noqa: B023
    sys.stdout.write("\n".join(lines) + "\n")


def _outcome(use: Callable[[], bytes]) -> str:
    """The digest of what comes out, or the error and all that it says."""
    try:
        return hashlib.sha256(use()).hexdigest()
    except Error as exc:
        return f"{type(exc).__name__}: {exc} {exc.hint!r} {sorted(exc.details.items())!r}"
    except Exception:  # noqa: BLE001 - the other has to fail alike, and a test of its own tells that none does
        return f"fault: {traceback.format_exc(limit=0)}"


def _damaged(data: bytes, dice: random.Random) -> Iterator[bytes]:
    yield data
    for _ in range(4):
        changed = bytearray(data)
        for _ in range(dice.randint(1, 4)):
            if changed:
                changed[dice.randrange(len(changed))] = dice.choice((0, 0x20, 0x37, 0x80, 0xFF))
        yield bytes(changed)
    yield data[: dice.randrange(len(data) + 1)]


def _crc(data: bytes) -> bytes:
    return data[:-4] + struct.pack("<I", zlib.crc32(data[:-4])) if len(data) > 4 else data


def _checksum(data: bytes) -> bytes:
    """An image that says its own size, and has the checksum for it."""
    at = fmt.SUPER_OFFSET
    if len(data) < at + fmt.BLOCK:
        return data
    raw = bytearray(data + bytes(-len(data) % fmt.BLOCK))
    struct.pack_into("<I", raw, at + 36, len(raw) // fmt.BLOCK)
    struct.pack_into("<I", raw, at + 4, fmt.checksum(raw[at : at + fmt.BLOCK]))
    return bytes(raw)


def _read(tar: bytes) -> LayerIndex:
    reader = TarReader((tar[at : at + CHUNK] for at in range(0, len(tar), CHUNK)), limits=LIMITS)
    builder = IndexBuilder(limits=LIMITS)
    for entry in reader:
        builder.add(entry)
    return builder.finish(reader.size)


def _merged(tars: list[bytes]) -> bytes:
    """The indexes, the image of all, what a reader shows of it, and the same as a tar."""
    out = bytearray()
    merger, devices = Merger(), list[int]()
    for tar in tars:
        raw = _read(tar).encode()
        found = LayerIndex.decode(raw)
        found.validate(tar_size=len(tar), limits=LIMITS)
        devices += [len(tar), SMALL]
        last = len(devices)
        merger.apply(found, lambda data, last=last: last if data else last - 1)
        out += raw
    image = bytes(build(merger.finish(), devices=devices, uuid=bytes(16)))
    out += image + repr(merger.warnings).encode() + _shown(image)
    return bytes(out)


def _shown(image: bytes) -> bytes:
    """Everything in an image, by way of a view, and written as a tar."""
    with tempfile.TemporaryFile() as file:
        writer = TarWriter(file.fileno())
        with Image(image) as opened:
            view = ChainView([opened])
            todo = [(b"", view.lookup(b""))]
            while todo:
                path, entry = todo.pop()
                assert entry is not None
                inode = entry.inode
                member = Member(
                    path=path,
                    mode=inode.mode,
                    uid=inode.uid,
                    gid=inode.gid,
                    mtime=inode.mtime,
                    nsec=inode.nsec,
                    xattrs=entry.raw_xattrs,
                    link=entry.target if inode.mode >> 12 == 0o12 else b"",
                )
                if inode.mode >> 12 != 0o14:  # a tar has no sockets
                    writer.add(member, lambda: bytes(member.size))  # noqa: B023 - called at once
                if inode.mode >> 12 == 0o4:
                    above = path + b"/" if path else b""
                    todo += [(above + name, view.child(entry, name)) for name in sorted(view.names(entry))]
        made = writer.finish()
    return str(made.diff_id).encode() + made.index.encode()


def _tar(data: bytes) -> bytes:
    return _merged([data])


def _pax(data: bytes) -> bytes:
    records: dict[bytes, bytes] = {}
    sparse: list[bytes] = []
    pax.parse(data, records, sparse, LIMITS)
    return repr((records, sparse, pax.xattrs(records, LIMITS))).encode()


def _index(data: bytes) -> bytes:
    found = LayerIndex.decode(data)
    found.validate(tar_size=found.tar_size, limits=LIMITS)
    merger = Merger()
    merger.apply(found, lambda _: 1)
    return found.encode() + bytes(
        build(merger.finish(), devices=[min(found.tar_size, SMALL)], uuid=bytes(16))
    )


def _erofs(data: bytes) -> bytes:
    with Image(data) as image:
        return b"\n".join(
            b"%s %o %d" % (path, inode.mode, inode.size)
            for (path, inode), _ in zip(image.walk(), range(2_000), strict=False)
        )


if __name__ == "__main__":
    main()
