"""The xattrs that stand behind an inode: full names and values, to bytes and back.

Not here: which xattrs an image may carry, or how overlayfs's own are escaped.  Shared xattrs are
neither written nor read.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from orlop.erofs import format as fmt
from orlop.errors import DataLoss, InvalidArgument, ResourceExhausted

__all__ = ["count", "decode", "encode", "size"]


def encode(xattrs: Sequence[tuple[bytes, bytes]], name: bytes) -> bytes:
    """The header and the xattrs in order of their names; nothing if there are none.

    ``name`` is that of the file, for errors: `InvalidArgument` for a name that EROFS has no prefix for
    or that comes twice, `ResourceExhausted` past a limit of the format.
    """
    if not xattrs:
        return b""
    attempted = f"write EROFS xattrs of {name!r}"
    parts = [bytes(fmt.XATTR_HEADER)]
    previous, listed = b"", 0
    for full, value in sorted(xattrs):
        prefix, rest = _split(full, attempted)
        if full == previous:
            raise InvalidArgument(attempted, f"{full!r} is there twice")
        if len(value) > fmt.MAX_XATTR_VALUE:
            raise ResourceExhausted(
                attempted, f"{full!r} has {len(value)} bytes; the limit is {fmt.MAX_XATTR_VALUE}"
            )
        entry = fmt.XATTR.pack(len(rest), prefix, len(value)) + rest + value
        parts.append(entry + bytes(-len(entry) % 4))
        previous, listed = full, listed + len(full) + 1
    body = b"".join(parts)
    if len(body) > fmt.MAX_XATTR_BODY or listed > fmt.MAX_XATTR_LIST:
        raise ResourceExhausted(
            attempted,
            f"{len(body)} bytes, {listed} of them names; "
            f"the limits are {fmt.MAX_XATTR_BODY} and {fmt.MAX_XATTR_LIST}",
        )
    return body


def decode(body: bytes, attempted: str) -> tuple[tuple[bytes, bytes], ...]:
    """The xattrs of a body that `encode` made, in its order.

    Raises `DataLoss` for anything else; ``attempted`` says what was being read.
    """
    if not body:
        return ()
    if body[4]:
        raise DataLoss(attempted, "shared xattrs, which are never written here")
    found: list[tuple[bytes, bytes]] = []
    at = fmt.XATTR_HEADER
    while at < len(body):
        try:
            length, number, value_length = fmt.XATTR.unpack_from(body, at)
        except struct.error as exc:
            raise DataLoss(attempted, f"an xattr is cut off at {at}") from exc
        prefix = fmt.XATTR_PREFIXES.get(number)
        value_at = at + fmt.XATTR.size + length
        end = value_at + value_length
        if prefix is None or (number in fmt.XATTR_WHOLE) != (length == 0) or end > len(body):
            raise DataLoss(attempted, f"the xattr at {at} has prefix {number}, {length}+{value_length} bytes")
        found.append((prefix + body[at + fmt.XATTR.size : value_at], body[value_at:end]))
        at = end + -end % 4
    return tuple(found)


def count(body: bytes) -> int:
    """An inode's i_xattr_icount for this body."""
    return (len(body) - fmt.XATTR_HEADER >> 2) + 1 if body else 0


def size(icount: int) -> int:
    """The inverse of `count`: the bytes of the body."""
    return fmt.XATTR_HEADER + 4 * (icount - 1) if icount else 0


def _split(full: bytes, attempted: str) -> tuple[int, bytes]:
    """The number of a name's prefix, and the rest of the name."""
    if len(full) <= fmt.MAX_XATTR_NAME and b"\0" not in full:
        for number, prefix in fmt.XATTR_PREFIXES.items():
            if number in fmt.XATTR_WHOLE:
                if full == prefix:
                    return number, b""
            elif full.startswith(prefix) and len(full) > len(prefix):
                return number, full[len(prefix) :]
    raise InvalidArgument(attempted, f"{full!r} is no xattr that EROFS can hold")
