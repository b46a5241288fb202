"""Layers and images for tests, written by hand: members in, a tar or an OCI layout out.

    layer = Layer()
    layer.folder("etc").file("etc/passwd", b"root", xattrs={"user.a": b"1"})
    layer.hardlink("etc/again", "etc/passwd").whiteout("srv/old").opaque("opt")
    write_layout(folder, [layer.tar()])

Members stand in the tar in the order of the calls, exactly as given: nothing is cleaned, sorted or implied.
What a header cannot hold goes into PAX records (POSIX.1-2017, pax, "ustar Interchange Format"); an xattr is
a ``SCHILY.xattr.`` record, a sparse file GNU's PAX format 1.0.  The same calls give the same bytes.

Not orlop's writer, and no code is shared with it: it is what orlop is compared with.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal, Self, TypedDict, Unpack

from orlop.values import dataclass, field

__all__ = ["FLAGS", "MTIME", "SECOND", "Kind", "Layer", "Member", "digest_of", "write_layout"]

Kind = Literal["file", "folder", "symlink", "hardlink", "char", "block", "fifo"]
Name = str | bytes

SECOND = 1_000_000_000
MTIME = 1_700_000_000 * SECOND  # what a member gets unless told otherwise

_BLOCK = 512
FLAGS: Mapping[Kind, bytes] = {
    "file": b"0",
    "hardlink": b"1",
    "symlink": b"2",
    "char": b"3",
    "block": b"4",
    "folder": b"5",
    "fifo": b"6",
}
_MACHINES = {"x86_64": "amd64", "aarch64": "arm64"}
_LAYER = "application/vnd.oci.image.layer.v1.tar"
_CONFIG = "application/vnd.oci.image.config.v1+json"
_MANIFEST = "application/vnd.oci.image.manifest.v1+json"


class About(TypedDict, total=False):
    """What a member may be told beside its name and content."""

    mode: int
    uid: int
    gid: int
    mtime_ns: int
    xattrs: Mapping[str, bytes]


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One member of a tar.

    ``data`` is a file's content; with ``size`` it is a sparse file of so many bytes, holes but for
    ``pieces`` (offset, data), ascending.  ``target`` is what a symlink or a hard link says.
    """

    name: bytes
    kind: Kind
    mode: int = 0o644
    uid: int = 0
    gid: int = 0
    mtime_ns: int = MTIME
    data: bytes = b""
    size: int | None = None
    pieces: tuple[tuple[int, bytes], ...] = ()
    target: bytes = b""
    device: tuple[int, int] = (0, 0)
    xattrs: Mapping[str, bytes] = field(default_factory=dict)

    def content(self) -> bytes:
        """A file's content, holes as zeros."""
        if self.size is None:
            return self.data
        whole = bytearray(self.size)
        for offset, piece in self.pieces:
            whole[offset : offset + len(piece)] = piece
        return bytes(whole)


class Layer:
    """A layer under construction.  Times are nanoseconds, names text or bytes."""

    def __init__(self, members: Sequence[Member] = ()) -> None:
        self.members: list[Member] = list(members)

    def add(self, member: Member) -> Self:
        """Any member."""
        self.members.append(member)
        return self

    def folder(self, name: Name, **about: Unpack[About]) -> Self:
        """A folder, 0755 unless told otherwise."""
        about.setdefault("mode", 0o755)
        return self.add(Member(name=_bytes(name), kind="folder", **about))

    def file(self, name: Name, data: bytes = b"", **about: Unpack[About]) -> Self:
        """A regular file, 0644 unless told otherwise."""
        return self.add(Member(name=_bytes(name), kind="file", data=data, **about))

    def sparse(self, name: Name, size: int, *pieces: tuple[int, bytes], **about: Unpack[About]) -> Self:
        """A file of ``size`` bytes that is holes but for ``pieces``; all but the last of whole blocks."""
        return self.add(Member(name=_bytes(name), kind="file", size=size, pieces=pieces, **about))

    def symlink(self, name: Name, target: Name, **about: Unpack[About]) -> Self:
        """A symlink."""
        about.setdefault("mode", 0o777)
        return self.add(Member(name=_bytes(name), kind="symlink", target=_bytes(target), **about))

    def hardlink(self, name: Name, target: Name) -> Self:
        """A further name of ``target``, which is named from the root of the tar."""
        return self.add(Member(name=_bytes(name), kind="hardlink", target=_bytes(target)))

    def device(
        self, name: Name, kind: Literal["char", "block"], major: int, minor: int, **about: Unpack[About]
    ) -> Self:
        """A device."""
        return self.add(Member(name=_bytes(name), kind=kind, device=(major, minor), **about))

    def fifo(self, name: Name, **about: Unpack[About]) -> Self:
        """A FIFO."""
        return self.add(Member(name=_bytes(name), kind="fifo", **about))

    def whiteout(self, name: Name) -> Self:
        """What hides ``name`` of the layers below."""
        parent, slash, last = _bytes(name).rpartition(b"/")
        return self.file(parent + slash + b".wh." + last)

    def opaque(self, folder: Name) -> Self:
        """What hides all that the layers below have in ``folder`` ("" for the root)."""
        plain = _bytes(folder)
        return self.file((plain + b"/" if plain else b"") + b".wh..wh..opq")

    def tar(self) -> bytes:
        """The layer's tar."""
        out = bytearray()
        for member in self.members:
            _write(out, member)
        return bytes(out + bytes(2 * _BLOCK))


def digest_of(data: bytes) -> str:
    """``sha256:`` and the hexadecimal digest."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


def write_layout(folder: Path, tars: Sequence[bytes], *, tag: str = "latest") -> Path:
    """Write an OCI layout (image-layout.md) with one image of these layers; returns the folder."""
    blobs = folder / "blobs" / "sha256"
    blobs.mkdir(parents=True)

    def put(media_type: str, data: bytes) -> dict[str, object]:
        digest = digest_of(data)
        (blobs / digest.partition(":")[2]).write_bytes(data)
        return {"mediaType": media_type, "digest": digest, "size": len(data)}

    layers = [put(_LAYER, tar) for tar in tars]
    config = {
        "created": "2023-11-14T22:13:20Z",
        "architecture": _MACHINES.get(platform.machine(), platform.machine()),
        "os": "linux",
        "config": {},
        "rootfs": {"type": "layers", "diff_ids": [layer["digest"] for layer in layers]},
        "history": [{"created_by": f"layer {number}"} for number in range(len(layers))],
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": _MANIFEST,
        "config": put(_CONFIG, _json(config)),
        "layers": layers,
    }
    named = put(_MANIFEST, _json(manifest)) | {"annotations": {"org.opencontainers.image.ref.name": tag}}
    (folder / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    (folder / "index.json").write_bytes(_json({"schemaVersion": 2, "manifests": [named]}))
    return folder


# ------------------------------------------------------------------ the tar


def _write(out: bytearray, member: Member) -> None:
    name = member.name + b"/" if member.kind == "folder" and not member.name.endswith(b"/") else member.name
    data, records = member.data, list(_records(member, name))
    if member.size is not None:
        data = _sparse_data(member)
        records += [
            (b"GNU.sparse.major", b"1"),
            (b"GNU.sparse.minor", b"0"),
            (b"GNU.sparse.name", name),
            (b"GNU.sparse.realsize", b"%d" % member.size),
        ]
        name = b"GNUSparseFile.0/sparse"
    if records:
        text = b"".join(_record(key, value) for key, value in records)
        out += _header(b"PaxHeaders/member", b"x", mode=0o644, size=len(text)) + _padded(text)
    out += _header(
        name,
        FLAGS[member.kind],
        mode=member.mode,
        uid=member.uid,
        gid=member.gid,
        size=len(data),
        seconds=member.mtime_ns // SECOND,
        link=member.target,
        device=member.device,
    )
    out += _padded(data)


def _records(member: Member, name: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The PAX records of what its header does not hold."""
    if len(name) > 100:
        yield b"path", name
    if len(member.target) > 100:
        yield b"linkpath", member.target
    for key, value in ((b"uid", member.uid), (b"gid", member.gid)):
        if value > 0o7777777:
            yield key, b"%d" % value
    seconds, nanoseconds = divmod(member.mtime_ns, SECOND)
    if nanoseconds or not 0 <= seconds <= 0o77777777777:
        yield b"mtime", _decimal(member.mtime_ns)
    for key_text, data in sorted(member.xattrs.items()):
        key = key_text.encode("utf-8", "surrogateescape")
        yield b"SCHILY.xattr." + key.replace(b"%", b"%25").replace(b"=", b"%3D"), data  # as GNU tar does


def _decimal(nanoseconds: int) -> bytes:
    """Seconds as PAX writes them: a sign, and all nine decimals."""
    seconds, rest = divmod(abs(nanoseconds), SECOND)
    return b"%s%d.%09d" % (b"-" if nanoseconds < 0 else b"", seconds, rest)


def _record(key: bytes, value: bytes) -> bytes:
    """``LENGTH KEY=VALUE`` and a newline; the length counts its own digits."""
    size = len(key) + len(value) + 3
    length = size + len(str(size))
    if len(str(length)) > len(str(size)):
        length += 1
    return b"%d %s=%s\n" % (length, key, value)


def _sparse_data(member: Member) -> bytes:
    """The map of the data, padded to blocks, and the data (GNU tar, "PAX Format, Version 1.0")."""
    runs = [(offset, len(piece)) for offset, piece in member.pieces]
    if not runs or sum(runs[-1]) < (member.size or 0):
        runs.append((member.size or 0, 0))
    lines = b"%d\n" % len(runs) + b"".join(b"%d\n%d\n" % run for run in runs)
    return _padded(lines) + b"".join(piece for _, piece in member.pieces)


def _header(
    name: bytes,
    flag: bytes,
    *,
    mode: int,
    size: int,
    uid: int = 0,
    gid: int = 0,
    seconds: int = 0,
    link: bytes = b"",
    device: tuple[int, int] = (0, 0),
) -> bytes:
    """A ustar header; what does not fit a field is cut, for a PAX record says it."""
    fields = [
        name[:100].ljust(100, b"\0"),
        _octal(mode, 8),
        _octal(uid, 8),
        _octal(gid, 8),
        _octal(size, 12),
        _octal(seconds, 12),
        b" " * 8,
        flag,
        link[:100].ljust(100, b"\0"),
        b"ustar\00000",
        bytes(64),
        _octal(device[0], 8),
        _octal(device[1], 8),
    ]
    block = bytearray(b"".join(fields).ljust(_BLOCK, b"\0"))
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def _octal(value: int, width: int) -> bytes:
    most = 8 ** (width - 1) - 1
    return b"%0*o\0" % (width - 1, value if 0 <= value <= most else 0)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % _BLOCK)


def _bytes(name: Name) -> bytes:
    return name.encode("utf-8", "surrogateescape") if isinstance(name, str) else name


def _json(document: object) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode()
