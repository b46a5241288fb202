"""Layer tars for tests, written byte by byte, so that what a tar can say a test can say.

    layer = Layer()
    layer.folder("etc", mode=0o755).file("etc/passwd", b"root", xattrs={"user.a": b"1"})
    layer.hardlink("etc/again", to="etc/passwd").whiteout("srv/old").opaque("opt")
    data = layer.tar()

Members stand in the tar in the order of the calls, exactly as given: nothing is cleaned, sorted or
implied.  This is not orlop's writer and shares no code with it.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import Literal, Self

Format = Literal["pax", "gnu"]
Record = tuple[bytes, bytes]  # of a PAX header: key and value
SparseForm = Literal["old-gnu", "gnu-0.0", "gnu-0.1", "gnu-1.0"]
Name = str | bytes

BLOCK = 512
MTIME = 1_700_000_000  # seconds; what an entry gets unless told otherwise
_SECOND = 1_000_000_000


class Layer:
    """A tar under construction.  Times are nanoseconds, names text or bytes."""

    def __init__(self, form: Format = "pax") -> None:
        self.form: Format = form
        self._out = bytearray()

    def folder(self, name: Name, **metadata: object) -> Self:
        """A folder; ``mode``, ``uid``, ``gid``, ``mtime_ns``, ``xattrs``, ``pax`` as in `add`."""
        plain = _bytes(name)
        return self.add(plain if plain.endswith(b"/") else plain + b"/", b"5", **{"mode": 0o755, **metadata})

    def file(self, name: Name, data: bytes = b"", **metadata: object) -> Self:
        """A regular file."""
        return self.add(name, b"0", data=data, **metadata)

    def symlink(self, name: Name, to: Name, **metadata: object) -> Self:
        """A symlink whose target is ``to``, unchanged."""
        return self.add(name, b"2", link=to, **{"mode": 0o777, **metadata})

    def hardlink(self, name: Name, to: Name, **metadata: object) -> Self:
        """A hard link to ``to``, a name from the root of the tar."""
        return self.add(name, b"1", link=to, **metadata)

    def device(
        self, name: Name, kind: Literal["char", "block"], major: int, minor: int, **metadata: object
    ) -> Self:
        """A device."""
        return self.add(name, b"3" if kind == "char" else b"4", device=(major, minor), **metadata)

    def fifo(self, name: Name, **metadata: object) -> Self:
        """A FIFO."""
        return self.add(name, b"6", **metadata)

    def whiteout(self, name: Name) -> Self:
        """What hides ``name`` of the layers below."""
        parent, slash, last = _bytes(name).rpartition(b"/")
        return self.file(parent + slash + b".wh." + last)

    def opaque(self, folder: Name) -> Self:
        """What hides all that the layers below have in ``folder`` ("" for the root)."""
        plain = _bytes(folder)
        return self.file((plain + b"/" if plain else b"") + b".wh..wh..opq")

    def sparse(
        self,
        name: Name,
        size: int,
        pieces: Sequence[tuple[int, bytes]],
        *,
        how: SparseForm,
        **metadata: object,
    ) -> Self:
        """A file of ``size`` bytes that is holes but for ``pieces`` (offset, data), ascending.

        Each piece but the last is of whole blocks, as GNU tar writes them: readers disagree on others.
        An empty piece at the end, as GNU tar writes it, is added where the file ends in a hole.
        """
        if any(len(data) % BLOCK for _, data in pieces[:-1]):
            raise ValueError("a piece before the last is not of whole blocks")
        plain = _bytes(name)
        runs = [(offset, len(data)) for offset, data in pieces]
        if not runs or sum(runs[-1]) < size:
            runs.append((size, 0))
        data = b"".join(piece for _, piece in pieces)
        if how == "old-gnu":
            return self.add(
                plain, b"S", data=data, patch=_old_gnu(runs, size), tail=_old_gnu_tail(runs), **metadata
            )
        count = str(len(runs)).encode()
        parent, slash, last = plain.rpartition(b"/")
        stand_in = parent + slash + b"GNUSparseFile.0/" + last
        if how == "gnu-0.0":
            pax = [(b"GNU.sparse.size", str(size).encode()), (b"GNU.sparse.numblocks", count)]
            for offset, length in runs:
                pax.append((b"GNU.sparse.offset", str(offset).encode()))
                pax.append((b"GNU.sparse.numbytes", str(length).encode()))
            return self.add(plain, b"0", data=data, pax=pax, **metadata)
        if how == "gnu-0.1":
            where = ",".join(f"{offset},{length}" for offset, length in runs).encode()
            pax = [
                (b"GNU.sparse.size", str(size).encode()),
                (b"GNU.sparse.numblocks", count),
                (b"GNU.sparse.name", plain),
                (b"GNU.sparse.map", where),
            ]
            return self.add(stand_in, b"0", data=data, pax=pax, **metadata)
        pax = [
            (b"GNU.sparse.major", b"1"),
            (b"GNU.sparse.minor", b"0"),
            (b"GNU.sparse.name", plain),
            (b"GNU.sparse.realsize", str(size).encode()),
        ]
        lines = "".join(f"{offset}\n{length}\n" for offset, length in runs)
        head = _pad(count + b"\n" + lines.encode())
        return self.add(stand_in, b"0", data=head + data, pax=pax, **metadata)

    def add(
        self,
        name: Name,
        kind: bytes,
        *,
        data: bytes = b"",
        link: Name = b"",
        mode: int = 0o644,
        uid: int = 0,
        gid: int = 0,
        mtime_ns: int = MTIME * _SECOND,
        device: tuple[int, int] = (0, 0),
        xattrs: Mapping[str, bytes] | None = None,
        pax: Sequence[tuple[bytes, bytes]] = (),
        size: int | None = None,
        patch: Mapping[int, bytes] | None = None,
        tail: bytes = b"",
    ) -> Self:
        """Any member.  ``kind`` is the type flag, ``pax`` further records, ``size`` a lie about the data.

        ``patch`` overwrites bytes of the header, ``tail`` stands between the header and the data.
        What does not fit the header goes into PAX records, or GNU's long names and base-256 numbers.
        """
        plain, target = _bytes(name), _bytes(link)
        told = len(data) if size is None else size
        records = list(pax) + [
            (b"SCHILY.xattr." + key.encode(), value) for key, value in (xattrs or {}).items()
        ]
        if self.form == "pax":
            records = _pax_overflow(plain, target, told, uid, gid, mtime_ns) + records
        else:
            self._gnu_long(plain, b"L")
            self._gnu_long(target, b"K")
        if records:
            body = b"".join(_pax_record(key, value) for key, value in records)
            self._out += _header(b"./PaxHeaders/x", b"x", size=len(body), form=self.form) + _pad(body)
        self._out += _header(
            plain,
            kind,
            size=told,
            link=target,
            mode=mode,
            uid=uid,
            gid=gid,
            mtime=mtime_ns // _SECOND,
            device=device,
            form=self.form,
            patch=patch or {},
        )
        self._out += tail + _pad(data)
        return self

    def pax_global(self, records: Mapping[str, str]) -> Self:
        """A global PAX header."""
        body = b"".join(_pax_record(key.encode(), value.encode()) for key, value in records.items())
        return self.raw(_header(b"pax_global_header", b"g", size=len(body), form="pax") + _pad(body))

    def raw(self, data: bytes) -> Self:
        """Any bytes, as they are."""
        self._out += data
        return self

    def tar(self, *, end: bytes = bytes(2 * BLOCK)) -> bytes:
        """The tar, closed by ``end``."""
        return bytes(self._out) + end

    def _gnu_long(self, name: bytes, kind: bytes) -> None:
        if len(name) > 100:
            body = name + b"\0"
            self._out += _header(b"././@LongLink", kind, size=len(body), form="gnu") + _pad(body)


def _bytes(name: Name) -> bytes:
    return name.encode("utf-8", "surrogateescape") if isinstance(name, str) else name


def _pad(data: bytes) -> bytes:
    return data + bytes(-len(data) % BLOCK)


def _header(
    name: bytes,
    kind: bytes,
    *,
    size: int,
    form: Format,
    link: bytes = b"",
    mode: int = 0o644,
    uid: int = 0,
    gid: int = 0,
    mtime: int = 0,
    device: tuple[int, int] = (0, 0),
    patch: Mapping[int, bytes] | None = None,
) -> bytes:
    magic = b"ustar\x0000" if form == "pax" else b"ustar  \x00"
    block = bytearray(
        struct.pack(
            "100s8s8s8s12s12s8s1s100s8s32s32s8s8s155s12x",
            name,
            _number(mode, 8, form),
            _number(uid, 8, form),
            _number(gid, 8, form),
            _number(size, 12, form),
            _number(mtime, 12, form),
            b" " * 8,
            kind,
            link,
            magic,
            b"",
            b"",
            _number(device[0], 8, form),
            _number(device[1], 8, form),
            b"",
        )
    )
    for offset, data in (patch or {}).items():
        block[offset : offset + len(data)] = data
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def _number(value: int, width: int, form: Format) -> bytes:
    """Octal, or GNU's base-256; PAX records say what octal cannot."""
    if 0 <= value < 8 ** (width - 1):
        return b"%0*o\0" % (width - 1, value)
    if form == "pax":
        return b"0" * (width - 1) + b"\0"
    return (0x80 if value >= 0 else 0xFF).to_bytes(1, "big") + (value & (1 << 8 * (width - 1)) - 1).to_bytes(
        width - 1, "big"
    )


def _pax_overflow(
    name: bytes, link: bytes, size: int, uid: int, gid: int, mtime_ns: int
) -> list[tuple[bytes, bytes]]:
    records = []
    if len(name) > 100 or not name.isascii():
        records.append((b"path", name))
    if len(link) > 100 or not link.isascii():
        records.append((b"linkpath", link))
    for key, value, width in ((b"size", size, 12), (b"uid", uid, 8), (b"gid", gid, 8)):
        if not 0 <= value < 8 ** (width - 1):
            records.append((key, str(value).encode()))
    if mtime_ns % _SECOND or not 0 <= mtime_ns // _SECOND < 8**11:
        sign, whole = ("-" if mtime_ns < 0 else ""), abs(mtime_ns)
        fraction = f".{whole % _SECOND:09d}".rstrip("0") if whole % _SECOND else ""
        records.append((b"mtime", f"{sign}{whole // _SECOND}{fraction}".encode()))
    return records


def _pax_record(key: bytes, value: bytes) -> bytes:
    """``LENGTH KEY=VALUE\\n``, where the length counts itself."""
    rest = len(key) + len(value) + 3
    length = rest + len(str(rest))
    if len(str(length)) != len(str(rest)):
        length += 1
    return b"%d %s=%s\n" % (length, key, value)


def _old_gnu(runs: Sequence[tuple[int, int]], size: int) -> dict[int, bytes]:
    """GNU's own sparse header: four runs at 386, whether more follow at 482, the real size at 483."""
    return {
        386: _old_gnu_runs(runs[:4]),
        482: b"\1" if len(runs) > 4 else b"\0",
        483: _number(size, 12, "gnu"),
    }


def _old_gnu_tail(runs: Sequence[tuple[int, int]]) -> bytes:
    """Extension blocks of 21 runs each."""
    out = b""
    for start in range(4, len(runs), 21):
        more = b"\1" if start + 21 < len(runs) else b"\0"
        out += (_old_gnu_runs(runs[start : start + 21]).ljust(504, b"\0") + more).ljust(BLOCK, b"\0")
    return out


def _old_gnu_runs(runs: Sequence[tuple[int, int]]) -> bytes:
    return b"".join(_number(offset, 12, "gnu") + _number(length, 12, "gnu") for offset, length in runs)
