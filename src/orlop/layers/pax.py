r"""PAX extended header records (POSIX.1-2001, pax, "pax Extended Header").

A record is ``LENGTH KEY=VALUE\n``, LENGTH counting itself.  Keys and values are bytes.
"""

from __future__ import annotations

import base64
import binascii
import re
from urllib.parse import unquote_to_bytes

from orlop.config import Limits, over_limit
from orlop.errors import InvalidArgument
from orlop.layers.index import MAX_TIME, Xattrs

__all__ = ["number", "parse", "record", "time", "xattrs"]

_WHAT = "read tar"
_TIME = re.compile(rb"(-?)([0-9]{1,19})(?:\.([0-9]*))?")
_SCHILY = b"SCHILY.xattr."
_LIBARCHIVE = b"LIBARCHIVE.xattr."
_OTHER_KEYS = 64  # beside those of xattrs, which bsdtar writes in both forms


def parse(data: bytes, into: dict[bytes, bytes], sparse: list[bytes] | None, limits: Limits) -> None:
    """Add the records of one extended header to ``into``; an empty value takes a key away.

    The repeated keys of GNU's sparse format 0.0 go to ``sparse`` in their order; it is None for a global
    header.  A local header keeps the empty values, since they also speak over the global ones.
    Raises `InvalidArgument` where the data is not a sequence of records.
    """
    at, end = 0, len(data)
    while at < end:
        space = data.find(b" ", at, at + 11)
        if space < 0 or not data[at:space].isdigit():
            raise InvalidArgument(_WHAT, "a PAX record without a length")
        stop = at + int(data[at:space])
        if stop > end or stop <= space + 1 or data[stop - 1] != 0x0A:
            raise InvalidArgument(_WHAT, "a PAX record whose length is wrong")
        key, equals, value = data[space + 1 : stop - 1].partition(b"=")
        if not equals or not key:
            raise InvalidArgument(_WHAT, "a PAX record without a key")
        if sparse is not None and key in (b"GNU.sparse.offset", b"GNU.sparse.numbytes"):
            sparse.append(value)
        elif value or sparse is not None or key.startswith((_SCHILY, _LIBARCHIVE)):
            into[key] = value
        else:
            into.pop(key, None)
        if len(into) > 2 * limits.xattr_count + _OTHER_KEYS:
            raise over_limit("xattr_count", len(into), limits.xattr_count)
        at = stop


def record(key: bytes, value: bytes) -> bytes:
    """One record, with its length."""
    body = b" " + key + b"=" + value + b"\n"
    length = len(body) + 1
    while len(str(length)) + len(body) != length:
        length = len(str(length)) + len(body)
    return str(length).encode() + body


def number(value: bytes, what: str) -> int:
    """A decimal number that is not negative."""
    if not value.isdigit() or len(value) > 20:
        raise InvalidArgument(_WHAT, f"the PAX record {what} is not a number: {value[:40]!r}")
    return int(value)


def time(value: bytes) -> tuple[int, int]:
    """Seconds and nanoseconds of a decimal time; finer digits are cut off towards the past."""
    match = _TIME.fullmatch(value)
    if match is None:
        raise InvalidArgument(_WHAT, f"not a time: {value[:40]!r}")
    sign, whole, fraction = match.groups()
    seconds = int(whole)
    if seconds > MAX_TIME:
        raise InvalidArgument(_WHAT, f"a time out of all range: {value[:40]!r}")
    digits = (fraction or b"")[:9]
    nanoseconds = int(digits.ljust(9, b"0")) if digits else 0
    if not sign:
        return seconds, nanoseconds
    if fraction and fraction[9:].strip(b"0"):
        nanoseconds += 1
    if nanoseconds:
        return -seconds - 1, 1_000_000_000 - nanoseconds
    return -seconds, 0


def xattrs(records: dict[bytes, bytes], limits: Limits) -> Xattrs:
    """The extended attributes among the records, by name.

    GNU tar and Go write ``SCHILY.xattr.NAME`` with raw bytes (GNU escapes ``%`` and ``=`` in the
    name); libarchive writes ``LIBARCHIVE.xattr.NAME`` with the name URL-encoded and the value in
    base64, and SCHILY beside it.
    """
    found: dict[bytes, bytes] = {}
    total = 0
    for key, value in records.items():
        if key.startswith(_SCHILY):
            name = key[len(_SCHILY) :]
            if b"%" in name:
                name = name.replace(b"%3D", b"=").replace(b"%25", b"%")
            found[name] = value
        elif key.startswith(_LIBARCHIVE):
            name = unquote_to_bytes(key[len(_LIBARCHIVE) :])
            if name in found:
                continue
            try:
                found[name] = base64.b64decode(value + b"=" * (-len(value) % 4), validate=True)
            except binascii.Error as exc:
                raise InvalidArgument(_WHAT, f"an xattr that is not base64: {name[:100]!r}") from exc
        else:
            continue
        if not 0 < len(name) < 256 or b"\0" in name:
            raise InvalidArgument(_WHAT, f"not the name of an xattr: {name[:100]!r}")
        if len(found[name]) > limits.xattr_value:
            raise over_limit("xattr_value", len(found[name]), limits.xattr_value)
        total += len(name) + len(found[name])
    if not found:
        return ()
    if len(found) > limits.xattr_count:
        raise over_limit("xattr_count", len(found), limits.xattr_count)
    if total > limits.xattr_total:
        raise over_limit("xattr_total", total, limits.xattr_total)
    return tuple(sorted(found.items()))
