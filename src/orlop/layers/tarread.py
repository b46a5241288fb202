"""The tar reader: bytes in, entries out, nothing created and nothing followed.

Reads ustar, PAX (POSIX.1-2001), GNU and old V7 headers: long names, base-256 numbers, sparse members
in all four GNU forms, contiguous files, extended attributes as GNU tar, star and libarchive write
them.  Where headers are ambiguous the reader sides with GNU tar.  It works on a stream in chunks, with
memory that does not depend on the size of the archive.

What the entries *mean* (whiteouts, links, names) is `orlop.layers.builder`'s.
"""

from __future__ import annotations

import stat
import struct
from collections.abc import Callable, Iterable, Iterator
from typing import Final
from zlib import adler32

from orlop.config import DEFAULT_LIMITS, Limits, over_limit
from orlop.errors import InvalidArgument
from orlop.layers import pax
from orlop.layers.entry import Entry
from orlop.layers.index import BLOCK, MAX_TIME

__all__ = ["TarReader"]

_ZERO_BLOCK: Final = bytes(BLOCK)
_ZEROS: Final = [bytes(n) for n in range(BLOCK)]
_WHAT: Final = "read tar"

_MODES: Final = {
    0x30: stat.S_IFREG,  # '0'
    0x00: stat.S_IFREG,  # V7
    0x37: stat.S_IFREG,  # '7', contiguous
    0x31: 0,  # '1', a hard link
    0x32: stat.S_IFLNK,
    0x33: stat.S_IFCHR,
    0x34: stat.S_IFBLK,
    0x35: stat.S_IFDIR,
    0x36: stat.S_IFIFO,
    0x53: stat.S_IFREG,  # 'S', old GNU sparse
    0x44: stat.S_IFDIR,  # 'D', GNU dumpdir
}
_FIELDS: Final = struct.Struct("100s24s12s12s")  # name; mode, uid, gid; size; mtime: half as dear as slices
_PLAIN: Final = 0x30  # '0', a file: most entries are
_LETTERS: Final = 0x40  # kinds above it are not POSIX's own, or no entries
_LINKS: Final = b"12"
_DEVICES: Final = b"34"
_HEADER_ONLY: Final = b"123456"
_OLD_SPARSE: Final = 0x53
_DIGITS: Final = 20  # of the largest number in a sparse map
_KEPT: Final = 4096  # different fields of a kind whose meaning is remembered


class TarReader:
    """Iterate over the entries of one archive, given as an iterator of chunks.

    A source that has a method ``skip`` is asked to go past bytes that nobody looks at, and returns how many
    it had of them.  After the iteration ``size`` is the length of the whole stream, including what follows
    the end-of-archive marker.  Raises `InvalidArgument` for what is not a tar, `ResourceExhausted` when a
    limit is passed.
    """

    def __init__(self, chunks: Iterable[bytes], *, limits: Limits = DEFAULT_LIMITS) -> None:
        self._chunks = iter(chunks)
        self._jump: Callable[[int], int] | None = getattr(chunks, "skip", None)
        self._limits = limits
        self._largest = min(limits.layer_size, limits.file_size)
        self._buffer = b""
        self._at = 0  # within the buffer
        self._base = 0  # of the buffer, within the stream
        self._globals: dict[bytes, bytes] = {}
        # What fields say, by their bytes: few of an archive's are different.
        self._owners: dict[bytes, tuple[int, int, int]] = {}
        self._times: dict[bytes, int] = {}
        self._sums: dict[bytes, int] = {}  # as the low half of adler32 shows them
        self.size = 0

    # -- the stream -----------------------------------------------------------------------------

    def _take(self, count: int) -> bytes:
        """The next ``count`` bytes, or fewer at the end of the stream."""
        buffer, at = self._buffer, self._at
        if at + count <= len(buffer):
            self._at = at + count
            return buffer[at : at + count]
        parts = [buffer[at:]]
        missing = count - len(parts[0])
        self._base += len(buffer)
        self._buffer, self._at = b"", 0
        for chunk in self._chunks:
            if len(chunk) >= missing:
                parts.append(chunk[:missing])
                self._buffer, self._at = chunk, missing
                break
            parts.append(chunk)
            missing -= len(chunk)
            self._base += len(chunk)
        return b"".join(parts)

    def _skip(self, count: int) -> None:
        """Go past ``count`` bytes.  Raises if the stream ends before."""
        at = self._at + count
        if self._jump is not None and at > len(self._buffer):
            missing = at - len(self._buffer)
            passed = self._jump(missing)
            self._base += len(self._buffer) + passed
            self._buffer, self._at = b"", 0
            if passed < missing:
                raise InvalidArgument(_WHAT, f"the archive is cut off at byte {self._base}")
            return
        while at > len(self._buffer):
            at -= len(self._buffer)
            self._base += len(self._buffer)
            self._buffer = next((chunk for chunk in self._chunks if chunk), b"")
            if not self._buffer:
                self._at = 0
                raise InvalidArgument(_WHAT, f"the archive is cut off at byte {self._base}")
        self._at = at

    # -- the archive ----------------------------------------------------------------------------

    def __iter__(self) -> Iterator[Entry]:
        return iter(self.read, None)

    def read(self) -> Entry | None:
        """The next entry; None, and ``size`` is known, when there are no more.

        No generator: compiled, its variables would be attributes (layers indexed in 8 us an entry, not 10).
        """
        zeros = 0
        records: dict[bytes, bytes] = {}
        sparse_pairs: list[bytes] = []
        gnu_name: bytes | None = None
        gnu_link: bytes | None = None
        held = 0  # bytes of extended headers that wait for their entry
        while True:
            at = self._at
            start = self._base + at
            header = self._buffer[at : at + BLOCK]
            if len(header) == BLOCK:
                self._at = at + BLOCK
            else:
                header = self._take(BLOCK)
            if len(header) < BLOCK:
                if header.strip(b"\0"):
                    raise InvalidArgument(_WHAT, f"the archive is cut off in a header at byte {start}")
                break
            if header[0] == 0 and header == _ZERO_BLOCK:
                zeros += 1
                if zeros == 2:
                    break
                continue
            zeros = 0
            # adler32's low half is 1 + the sum of the bytes modulo 65521, computed in C.
            if adler32(header) & 0xFFFF != self._sums.get(header[148:156]):
                self._check_sum(header, start)
            kind = header[156]
            if kind > _LETTERS and kind in b"xXgLK":
                data = self._record(header, held)
                held += len(data) if kind != 0x67 else 0
                if kind == 0x67:
                    pax.parse(data, self._globals, None, self._limits)
                    self._check_globals()
                elif kind == 0x4C:
                    gnu_name = data.partition(b"\0")[0]
                elif kind == 0x4B:
                    gnu_link = data.partition(b"\0")[0]
                else:
                    pax.parse(data, records, sparse_pairs, self._limits)
                continue
            if kind == 0x56:  # a volume's label
                records, sparse_pairs, gnu_name, gnu_link, held = {}, [], None, None, 0
                continue
            return self._entry(header, start, records, sparse_pairs, gnu_name, gnu_link)
        self._drain(empty=start == BLOCK)  # two blocks of zeros are all that there was
        return None

    def _drain(self, *, empty: bool) -> None:
        """Go past what follows the end marker.

        Behind that of an archive of nothing there may be only zeros: anything else is no archive, but the
        image of a file system, whose first block many leave free.
        """
        more = empty and bool(self._buffer[self._at :].strip(b"\0"))
        self._base += len(self._buffer)
        self._buffer, self._at = b"", 0
        for chunk in self._chunks:
            self._base += len(chunk)
            more = more or (empty and chunk.count(0) != len(chunk))
        if more:
            raise InvalidArgument(_WHAT, "not a tar: it begins with the end of one, and goes on")
        self.size = self._base

    def _check_sum(self, header: bytes, start: int) -> None:
        field = header[148:156]
        stored = _octal(field, "checksum")
        low = (1 + stored + sum(field) - 256) % 65521
        if len(self._sums) < _KEPT:
            self._sums[field] = low
        if adler32(header) & 0xFFFF == low:
            return
        plain = header[:148] + b" " * 8 + header[156:]
        signed = sum(byte - 256 if byte > 127 else byte for byte in plain)
        if stored not in (sum(plain), signed):
            raise InvalidArgument(_WHAT, f"not a tar header at byte {start}: its checksum does not match")

    def _record(self, header: bytes, held: int) -> bytes:
        """The bytes of an extended header; ``held`` are those of others for the same entry."""
        size = _number(header[124:136], "size")
        self._check_size("pax_size", size, self._limits.pax_size, held)
        data = self._take(size)
        if len(data) < size:
            raise InvalidArgument(_WHAT, "the archive is cut off in an extended header")
        self._skip(-size % BLOCK)
        return data

    @staticmethod
    def _check_size(name: str, size: int, limit: int, held: int = 0) -> None:
        if size < 0:
            raise InvalidArgument(_WHAT, f"a size of {size} bytes")
        if held + size > limit:
            raise over_limit(name, held + size, limit)

    def _check_globals(self) -> None:
        """Global headers hold for all that follows, so what they say is kept, and limited in all."""
        size = sum(len(key) + len(value) for key, value in self._globals.items())
        if size > self._limits.pax_size:
            raise over_limit("pax_size", size, self._limits.pax_size)

    def _entry(
        self,
        header: bytes,
        start: int,
        records: dict[bytes, bytes],
        sparse_pairs: list[bytes],
        gnu_name: bytes | None,
        gnu_link: bytes | None,
    ) -> Entry:
        kind = header[156]
        mode = _MODES.get(kind)
        if mode is None:
            raise InvalidArgument(_WHAT, f"an entry of unknown type {chr(kind)!r} at byte {start}")
        entry = Entry()
        name, owner_field, size_field, time_field = _FIELDS.unpack_from(header)
        owner = self._owners.get(owner_field)
        if owner is None:
            owner = self._owner(header)
        bits, entry.uid, entry.gid = owner
        size = _number(size_field, "size")
        mtime = self._times.get(time_field)
        entry.mtime = self._time(header) if mtime is None else mtime
        entry.nsec = 0
        if gnu_name is not None:
            entry.name = gnu_name
        else:
            entry.name = _prefixed(header, name) if header[345] else name.partition(b"\0")[0]
        entry.link = b""
        entry.rdev = (0, 0)
        if kind != _PLAIN:
            _point(entry, header, gnu_link)
        entry.xattrs = ()
        entry.extents = None
        entry.dirty = False
        if records or self._globals:
            size = self._apply(entry, records, size)
        if mode == stat.S_IFREG and entry.name[-1:] == b"/":
            mode = stat.S_IFDIR  # as GNU tar and V7 have it; its data, if any, is skipped
        entry.mode = mode | bits
        if kind != _PLAIN and kind in _HEADER_ONLY:
            size = 0  # such entries have no data, whatever the field says
        if not 0 <= size <= self._largest:
            self._check_size("layer_size", size, self._limits.layer_size)
            self._check_size("file_size", size, self._limits.file_size)
        if abs(entry.mtime) > MAX_TIME:
            raise InvalidArgument(_WHAT, f"a time out of all range at byte {start}")
        entry.size = size if mode == stat.S_IFREG else 0
        sparse = False
        if kind == _OLD_SPARSE:
            self._old_sparse(entry, header, size)
            sparse = True
        elif mode == stat.S_IFREG and (sparse_pairs or records):
            sparse = self._pax_sparse(entry, records, sparse_pairs, size)
        if not sparse:
            entry.offset = self._base + self._at
            if size:
                self._pass_data(entry, size)
        return entry

    def _owner(self, header: bytes) -> tuple[int, int, int]:
        found = (
            _number(header[100:108], "mode") & 0o7777,
            _number(header[108:116], "uid"),
            _number(header[116:124], "gid"),
        )
        if len(self._owners) < _KEPT:
            self._owners[header[100:124]] = found
        return found

    def _time(self, header: bytes) -> int:
        found = _number(header[136:148], "mtime")
        if len(self._times) < _KEPT:
            self._times[header[136:148]] = found
        return found

    def _pass_data(self, entry: Entry, size: int) -> None:
        """Go past an entry's bytes and look at the padding behind them."""
        padding = -size % BLOCK
        end = self._at + size
        if end + padding <= len(self._buffer):
            self._at = end + padding
            if padding and not self._buffer.startswith(_ZEROS[padding], end):
                entry.dirty = True
            return
        self._skip(size)
        if padding:
            rest = self._take(padding)
            entry.dirty = rest != _ZEROS[padding]  # also if the archive ends right here

    # -- extended headers -----------------------------------------------------------------------

    def _apply(self, entry: Entry, records: dict[bytes, bytes], size: int) -> int:
        """Let PAX records speak over the ustar header; returns the size of the data."""
        if self._globals:
            records = {**self._globals, **records}
        for key, value in records.items():
            if not value:
                continue  # says that no record speaks of this key: neither a global header's
            if key == b"path":
                entry.name = value
            elif key == b"linkpath":
                entry.link = value
            elif key == b"size":
                size = pax.number(value, "size")
            elif key == b"uid":
                entry.uid = pax.number(value, "uid")
            elif key == b"gid":
                entry.gid = pax.number(value, "gid")
            elif key == b"mtime":
                entry.mtime, entry.nsec = pax.time(value)
        entry.xattrs = pax.xattrs(records, self._limits)
        entry.name = records.get(b"GNU.sparse.name") or entry.name
        return size

    # -- sparse members -------------------------------------------------------------------------

    def _old_sparse(self, entry: Entry, header: bytes, size: int) -> None:
        """Old GNU format: the map stands in the header and in blocks behind it."""
        pairs: list[tuple[int, int]] = []
        table, more = header[386:482], header[482]
        real_size = _number(header[483:495], "sparse size")
        while True:
            for at in range(0, len(table), 24):
                length = table[at + 12 : at + 24]
                if not length[0]:
                    more = 0  # an empty slot ends the map
                    break
                pairs.append((_number(table[at : at + 12], "sparse"), _number(length, "sparse")))
            if not more:
                break
            block = self._take(BLOCK)
            if len(block) < BLOCK:
                raise InvalidArgument(_WHAT, "the archive is cut off in a sparse map")
            table, more = block[:504], block[504]
            if len(pairs) > self._limits.layer_entries:
                raise over_limit("layer_entries", len(pairs), self._limits.layer_entries)
        self._set_extents(entry, pairs, real_size, size)

    def _pax_sparse(self, entry: Entry, records: dict[bytes, bytes], numbers: list[bytes], size: int) -> bool:
        """GNU.sparse.* in its forms 0.0 (repeated keys), 0.1 (one key), 1.0 (in the data); False if none."""
        if records.get(b"GNU.sparse.major") == b"1" and records.get(b"GNU.sparse.minor") == b"0":
            before = self._base + self._at
            flat = self._sparse_map_1_0(size)
            size -= self._base + self._at - before
            real_size = pax.number(records.get(b"GNU.sparse.realsize", b""), "sparse size")
        elif b"GNU.sparse.map" in records or numbers:
            mapped = records.get(b"GNU.sparse.map", b"")
            text = numbers or (mapped.split(b",") if mapped else [])
            flat = [pax.number(part, "sparse map") for part in text]
            real_size = pax.number(records.get(b"GNU.sparse.size", b""), "sparse size")
        else:
            return False
        if len(flat) % 2:
            raise InvalidArgument(_WHAT, "a sparse map has an odd number of numbers")
        self._set_extents(entry, list(zip(flat[::2], flat[1::2], strict=True)), real_size, size)
        return True

    def _sparse_map_1_0(self, size: int) -> list[int]:
        """The map at the start of the data: decimal numbers, one a line, filled up to a block."""
        numbers: list[int] = []
        wanted = -1
        rest = b""
        while True:
            size -= BLOCK
            if size < 0 or len(rest) > _DIGITS:
                raise InvalidArgument(_WHAT, "a sparse map is longer than its file")
            block = self._take(BLOCK)
            if len(block) < BLOCK:
                raise InvalidArgument(_WHAT, "the archive is cut off in a sparse map")
            *lines, rest = (rest + block).split(b"\n")
            if wanted < 0 and lines:
                wanted = 2 * pax.number(lines.pop(0), "sparse map")
                if wanted > 2 * self._limits.layer_entries:
                    raise over_limit("layer_entries", wanted, self._limits.layer_entries)
            for line in lines if wanted >= 0 else ():
                if len(numbers) == wanted:
                    break
                numbers.append(pax.number(line, "sparse map"))
            if len(numbers) == wanted:
                return numbers

    def _set_extents(self, entry: Entry, pairs: list[tuple[int, int]], real_size: int, stored: int) -> None:
        self._check_size("file_size", real_size, self._limits.file_size)
        if stored < 0:
            raise InvalidArgument(_WHAT, "a sparse file with less than no data")
        source = self._base + self._at
        end = source + stored
        extents: list[tuple[int, int, int]] = []
        reached = 0
        for offset, length in pairs:
            if offset < reached or length < 0 or offset + length > real_size or source + length > end:
                raise InvalidArgument(_WHAT, "a sparse map that does not fit its file")
            if length:
                extents.append((offset, length, source))
            source += length
            reached = offset + length
        entry.extents = tuple(extents)
        entry.offset = end - stored
        entry.size = real_size
        self._pass_stored(entry, stored)
        self._take(-stored % BLOCK)

    def _pass_stored(self, entry: Entry, stored: int) -> None:
        """Go past the bytes of a sparse file."""
        self._skip(stored)


def _prefixed(header: bytes, field: bytes) -> bytes:
    """The name in a ustar header, or in one of another kind that has something else in the prefix's place."""
    name = field.partition(b"\0")[0]
    if header[257:263] == b"ustar\0":
        return header[345:500].partition(b"\0")[0] + b"/" + name
    return name


def _point(entry: Entry, header: bytes, gnu_link: bytes | None) -> None:
    """What a link leads to, and which device a device is."""
    kind = header[156]
    if kind in _LINKS:
        entry.link = header[157:257].partition(b"\0")[0] if gnu_link is None else gnu_link
    elif kind in _DEVICES:
        entry.rdev = (_number(header[329:337], "device"), _number(header[337:345], "device"))


def _octal(field: bytes, what: str) -> int:
    """An octal number with spaces or a NUL around it."""
    text = field.partition(b"\0")[0].strip(b" ")
    if not text:
        return 0
    if not text.isdigit():
        raise InvalidArgument(_WHAT, f"the field {what} is not a number: {field[:40]!r}")
    try:
        return int(text, 8)
    except ValueError as exc:
        raise InvalidArgument(_WHAT, f"the field {what} is not octal: {field[:40]!r}") from exc


def _number(field: bytes, what: str) -> int:
    """A numeric field: octal, or base-256 as GNU and star write large and negative numbers."""
    first = field[0]
    if first < 0x80:
        digits = field[:-1]
        if field[-1] in b"\0 " and digits.isdigit():  # some writers fill the last byte with a digit, too
            try:
                return int(digits, 8)
            except ValueError as exc:
                raise InvalidArgument(_WHAT, f"the field {what} is not octal: {field!r}") from exc
        return _octal(field, what)
    if first == 0x80:
        return int.from_bytes(field[1:], "big")
    if first == 0xFF:
        return int.from_bytes(field[1:], "big") - (1 << 8 * (len(field) - 1))
    raise InvalidArgument(_WHAT, f"the field {what} is neither octal nor base-256: {field!r}")
