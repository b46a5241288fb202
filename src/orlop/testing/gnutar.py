"""The members of a `Layer` in GNU tar's own format: long names and base-256 numbers instead of PAX records.

And `sealed`, for tars of any format that were damaged on purpose.

What the format has no place for is left out: xattrs, and fractions of a second.  A sparse file is an old GNU
sparse member (type ``S``).  Source: GNU tar's manual, "Basic Tar Format" and "Old GNU Format".
"""

from __future__ import annotations

from collections.abc import Sequence

from orlop.testing.layers import FLAGS, SECOND, Layer, Member

__all__ = ["gnu_tar", "sealed"]

_BLOCK = 512


def gnu_tar(layer: Layer) -> bytes:
    """The layer's tar."""
    out = bytearray()
    for member in layer.members:
        _write(out, member)
    return bytes(out + bytes(2 * _BLOCK))


def sealed(tar: bytes) -> bytes:
    """The same bytes, with the right checksum in every block that says ``ustar``."""
    data = bytearray(tar)
    for at in range(0, len(data) - _BLOCK + 1, _BLOCK):
        if data[at + 257 : at + 262] == b"ustar":
            data[at + 148 : at + 156] = b" " * 8
            data[at + 148 : at + 156] = b"%06o\0 " % sum(data[at : at + _BLOCK])
    return bytes(data)


def _write(out: bytearray, member: Member) -> None:
    name = member.name + b"/" if member.kind == "folder" and not member.name.endswith(b"/") else member.name
    for text, kind in ((member.target, b"K"), (name, b"L")):
        if len(text) > 100:
            out += _header(b"././@LongLink", kind, size=len(text) + 1) + _padded(text + b"\0")
    data, flag, rest, tail = member.data, FLAGS[member.kind], b"", b""
    if member.size is not None:
        runs = [(offset, len(piece)) for offset, piece in member.pieces]
        if not runs or sum(runs[-1]) < member.size:
            runs.append((member.size, 0))  # GNU tar ends the file where its map ends
        data, flag = b"".join(piece for _, piece in member.pieces), b"S"
        rest = _runs(runs[:4]).ljust(96, b"\0") + bytes([len(runs) > 4]) + _number(member.size, 12)
        tail = _extension(runs[4:])
    out += _header(
        name,
        flag,
        size=len(data),
        mode=member.mode,
        uid=member.uid,
        gid=member.gid,
        seconds=member.mtime_ns // SECOND,
        link=member.target,
        device=member.device,
        rest=rest,
    )
    out += tail + _padded(data)


def _extension(runs: Sequence[tuple[int, int]]) -> bytes:
    """Blocks of 21 runs each, behind the header."""
    out = b""
    for at in range(0, len(runs), 21):
        more = bytes([at + 21 < len(runs)])
        out += (_runs(runs[at : at + 21]).ljust(504, b"\0") + more).ljust(_BLOCK, b"\0")
    return out


def _runs(runs: Sequence[tuple[int, int]]) -> bytes:
    return b"".join(_number(offset, 12) + _number(length, 12) for offset, length in runs)


def _header(
    name: bytes,
    flag: bytes,
    *,
    size: int,
    mode: int = 0o644,
    uid: int = 0,
    gid: int = 0,
    seconds: int = 0,
    link: bytes = b"",
    device: tuple[int, int] = (0, 0),
    rest: bytes = b"",
) -> bytes:
    fields = (
        name[:100].ljust(100, b"\0"),
        _number(mode, 8),
        _number(uid, 8),
        _number(gid, 8),
        _number(size, 12),
        _number(seconds, 12),
        b" " * 8,
        flag,
        link[:100].ljust(100, b"\0"),
        b"ustar  \0",
        bytes(64),
        _number(device[0], 8),
        _number(device[1], 8),
        bytes(41),  # what ustar uses for a prefix: times and offsets that GNU tar does not need
        rest,
    )
    block = bytearray(b"".join(fields).ljust(_BLOCK, b"\0"))
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def _number(value: int, width: int) -> bytes:
    """Octal where it fits, else big-endian in base 256, negative ones in two's complement."""
    if 0 <= value < 8 ** (width - 1):
        return b"%0*o\0" % (width - 1, value)
    first = b"\x80" if value >= 0 else b"\xff"
    return first + (value % (1 << 8 * (width - 1))).to_bytes(width - 1, "big")


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % _BLOCK)
