"""A layer's index: its entries as columns, and the file ``layer.index``.

One node per name, node 0 the root, every parent before its children.  Whiteouts are marks on nodes:
nothing here depends on what lies below the layer.  The same format is the worker's answer, so
`LayerIndex.decode` and `LayerIndex.validate` believe nothing: a decoded and validated index describes
a proper tree whose data lie inside the tar, whoever wrote it.

Columns are arrays, because a layer has up to millions of entries: about 60 bytes each, read in bulk.
The format is private to orlop, little-endian, and rebuilt from the tar when its version changes.
"""

from __future__ import annotations

import os
import stat
import struct
import sys
import zlib
from array import array
from collections.abc import Sequence
from itertools import groupby

from orlop.config import DEFAULT_LIMITS, Limits, over_limit
from orlop.errors import DataLoss, InvalidArgument

__all__ = [
    "COPIED",
    "HIDES",
    "IMPLIED",
    "LINK",
    "LOWER_LINK",
    "OPAQUE",
    "VERSION",
    "LayerIndex",
    "Xattrs",
]

VERSION = 1
_MAGIC = b"ORLOPIX\0"
_HEAD = struct.Struct("<8sIIQqI4x6Q")
_PAIR = struct.Struct("<II")
_EXTENT = struct.Struct("<QQQ")

HIDES = 1  # the lower layers' thing of this name is gone (a whiteout); alone if the mode is 0
OPAQUE = 2  # a folder: the lower layers' entries in it are gone
IMPLIED = 4  # a folder that no entry of the tar is about
LINK = 8  # a hard link to the node whose number stands in ``offset``
LOWER_LINK = 16  # a hard link to a path that this layer does not have; ``targets`` says which
COPIED = 32  # the bytes cannot be pointed at in the tar; they lie in layer.data
_ALL_FLAGS = 63
_KINDS = {0, stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO}

MAX_ID = 0xFFFFFFFE  # (uid_t)-1 means "leave it" to chown(2)
MAX_TIME = 1 << 62
BLOCK = 512

Xattrs = tuple[tuple[bytes, bytes], ...]
Extents = tuple[tuple[int, int, int], ...]  # (offset in the file, length, offset in the tar), bytes


class LayerIndex:  # noqa: PLW1641 - it changes, so it has no hash
    """The entries of one layer.

    ``offset`` is a regular file's place in the tar in bytes, a device's number, or a hard link's
    node.  ``size`` is in bytes.  ``targets`` holds symlinks' targets and the paths of links to lower
    layers; ``sparse`` the extents of files with holes.  ``tar_size`` is the whole tar's, ``time`` what
    folders that are only implied get: the newest mtime in the layer.  ``warnings`` say what was left
    out.

    A class by hand, and no `dataclass`: compiled, its attributes are then a struct's.
    """

    __slots__ = (
        "flags",
        "gid",
        "mode",
        "mtime",
        "names",
        "nsec",
        "offset",
        "parent",
        "size",
        "sparse",
        "tar_size",
        "targets",
        "time",
        "time_nsec",
        "uid",
        "warnings",
        "xattrs",
    )

    def __init__(
        self, *, tar_size: int = 0, time: int = 0, time_nsec: int = 0, warnings: Sequence[str] = ()
    ) -> None:
        self.parent: array[int] = array("I")
        self.mode: array[int] = array("H")
        self.flags = bytearray()
        self.uid: array[int] = array("I")
        self.gid: array[int] = array("I")
        self.mtime: array[int] = array("q")
        self.nsec: array[int] = array("I")
        self.size: array[int] = array("Q")
        self.offset: array[int] = array("Q")
        self.names: list[bytes] = []
        self.targets: dict[int, bytes] = {}
        self.xattrs: dict[int, Xattrs] = {}
        self.sparse: dict[int, Extents] = {}
        self.warnings = list(warnings)
        self.tar_size = tar_size
        self.time = time
        self.time_nsec = time_nsec

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, LayerIndex):
            return NotImplemented
        return self._all() == other._all()

    def same(self) -> LayerIndex:
        """Another about the same entries, whose columns can be replaced, but not changed."""
        other = LayerIndex(
            tar_size=self.tar_size, time=self.time, time_nsec=self.time_nsec, warnings=self.warnings
        )
        other.parent, other.names, other.mode, other.flags = self.parent, self.names, self.mode, self.flags
        other.uid, other.gid, other.mtime, other.nsec = self.uid, self.gid, self.mtime, self.nsec
        other.size, other.offset = self.size, self.offset
        other.targets, other.xattrs, other.sparse = self.targets, self.xattrs, self.sparse
        return other

    def _all(self) -> tuple[object, ...]:
        return (
            *self._columns(),
            *(self.flags, self.names, self.targets, self.xattrs, self.sparse, self.warnings),
            *(self.tar_size, self.time, self.time_nsec),
        )

    def __len__(self) -> int:
        return len(self.names)

    def path(self, node: int) -> bytes:
        """The path of a node, without a leading slash."""
        parts: list[bytes] = []
        while node:
            parts.append(self.names[node])
            node = self.parent[node]
        return b"/".join(reversed(parts))

    @property
    def needs_data(self) -> bool:
        """Whether some file's bytes must be kept apart from the tar, in layer.data."""
        return any(flags & COPIED for flags in bytes(self.flags))

    # -- the file -------------------------------------------------------------------------------

    def encode(self) -> bytes:
        """The bytes of ``layer.index``."""
        columns = b"".join(_to_bytes(column) for column in self._columns()) + bytes(self.flags)
        names = b"\0".join(self.names)
        targets = b"".join(_PAIR.pack(node, len(text)) + text for node, text in self.targets.items())
        xattrs = bytearray()
        for node, pairs in self.xattrs.items():
            xattrs += _PAIR.pack(node, len(pairs))
            for name, value in pairs:
                xattrs += _PAIR.pack(len(name), len(value)) + name + value
        sparse = bytearray()
        for node, extents in self.sparse.items():
            sparse += _PAIR.pack(node, len(extents))
            for extent in extents:
                sparse += _EXTENT.pack(*extent)
        warnings = "\n".join(self.warnings).encode()
        sections = (columns, names, targets, bytes(xattrs), bytes(sparse), warnings)
        head = _HEAD.pack(
            _MAGIC,
            VERSION,
            len(self.names),
            self.tar_size,
            self.time,
            self.time_nsec,
            *(len(section) for section in sections),
        )
        body = b"".join((head, *sections))
        return body + struct.pack("<I", zlib.crc32(body))

    @classmethod
    def decode(cls, data: bytes) -> LayerIndex:
        """Read what `encode` wrote.  Raises `DataLoss` if it is not that."""
        if len(data) < _HEAD.size + 4 or data[:8] != _MAGIC:
            raise DataLoss("read layer index", "not a layer index")
        if zlib.crc32(memoryview(data)[:-4]) != int.from_bytes(data[-4:], "little"):
            raise DataLoss("read layer index", "the checksum does not match")
        try:
            return cls._decode(data)
        except (struct.error, ValueError, IndexError) as exc:
            raise DataLoss("read layer index", f"malformed: {exc}") from exc

    @classmethod
    def _decode(cls, data: bytes) -> LayerIndex:
        _, version, count, tar_size, time, time_nsec, *lengths = _HEAD.unpack_from(data)
        if version != VERSION:
            raise DataLoss("read layer index", f"version {version}, this orlop reads {VERSION}")
        if sum(lengths) != len(data) - _HEAD.size - 4:
            raise ValueError("the sections do not fill the file")
        sections: list[bytes] = []
        at = _HEAD.size
        for length in lengths:
            sections.append(data[at : at + length])
            at += length
        columns, names, targets, xattrs, sparse, warnings = sections
        index = cls(tar_size=tar_size, time=time, time_nsec=time_nsec)
        at = 0
        for column in index._columns():
            width = column.itemsize * count
            column.frombytes(columns[at : at + width])
            if sys.byteorder == "big":
                column.byteswap()
            at += width
        index.flags = bytearray(columns[at:])
        index.names = names.split(b"\0") if count else []
        index.targets = _decode_targets(targets)
        index.xattrs = _decode_xattrs(xattrs)
        index.sparse = _decode_sparse(sparse)
        index.warnings = warnings.decode("utf-8", "replace").split("\n") if warnings else []
        if any(len(column) != count for column in (index.names, index.flags, index.offset)):
            raise ValueError("the columns have different lengths")
        return index

    def _columns(self) -> tuple[array[int], ...]:
        return (
            self.parent,
            self.uid,
            self.gid,
            self.nsec,
            self.mtime,
            self.size,
            self.offset,
            self.mode,
        )

    # -- not believed ---------------------------------------------------------------------------

    def validate(self, *, tar_size: int, limits: Limits = DEFAULT_LIMITS) -> None:
        """Check that this is a proper tree whose data lie in a tar of ``tar_size`` bytes.

        Raises `InvalidArgument` where it is not, `ResourceExhausted` where a limit is passed.
        """
        count = len(self.names)
        if self.tar_size != tar_size:
            raise InvalidArgument("check layer index", "it is about a tar of another size")
        if not count or self.mode[0] & 0o170000 != stat.S_IFDIR or self.names[0] or self.parent[0]:
            raise InvalidArgument("check layer index", "node 0 is not the root folder")
        if self.flags[0] & ~(IMPLIED | OPAQUE):
            raise InvalidArgument("check layer index", "the root carries a mark it cannot have")
        if count > limits.layer_entries:
            raise over_limit("layer_entries", count, limits.layer_entries)
        self._validate_names(limits)
        self._validate_values(limits)
        for node in (*self.targets, *self.sparse):
            self._node(node)
        self._validate_nodes(limits)
        self._validate_copies()
        self._validate_xattrs(limits)

    def _validate_names(self, limits: Limits) -> None:
        """Every name, folder by folder as they come: what is said of all in a row is asked once."""
        what = "check layer index"
        names, parent, mode = self.names, self.parent, self.mode
        joined = b"\0".join((*names, b""))
        if b"/" in joined or joined.count(b"\0") != len(names):
            raise InvalidArgument(what, "a name holds a slash or a NUL")
        if b"\0\0" in joined or b"\0.\0" in joined or b"\0..\0" in joined:
            raise InvalidArgument(what, "a name that is none, '.' or '..'")
        if len(longest := max(names, key=len)) > limits.name_size:
            raise InvalidArgument(what, f"not a file name: {longest[:300]!r}")
        seen: dict[int, set[bytes]] = {}
        depth, length = {0: 0}, {0: 0}  # of the folders met so far; the length is one more than the path's
        node = 1
        for above, run in groupby(parent[1:]):
            first, node = node, node + len(list(run))
            if above >= first or mode[above] & 0o170000 != stat.S_IFDIR:
                raise InvalidArgument(what, f"node {first} stands in no folder before it")
            if above not in depth:
                further = parent[above]  # met before: it is the parent of a node before this one
                depth[above] = depth[further] + 1
                length[above] = length[further] + len(names[above]) + 1
            if depth[above] >= limits.depth:
                raise over_limit("depth", depth[above] + 1, limits.depth)
            here = names[first:node]
            longest_path = length[above] + max(map(len, here))
            if longest_path > limits.path_size:  # longer than any that was said, by way of symlinks
                raise over_limit("path_size", longest_path, limits.path_size)
            others = seen.setdefault(above, set())
            others.update(here)
        if sum(map(len, seen.values())) != len(names) - 1:
            raise InvalidArgument(what, "a name stands twice in one folder")

    def _validate_values(self, limits: Limits) -> None:
        what = "check layer index"
        if max(self.uid) > MAX_ID or max(self.gid) > MAX_ID:
            raise InvalidArgument(what, f"an owner above {MAX_ID}")
        if max(self.nsec) > 999_999_999 or self.time_nsec > 999_999_999:
            raise InvalidArgument(what, "a second has 10^9 nanoseconds")
        if max(self.mtime) > MAX_TIME or min(self.mtime) < -MAX_TIME or abs(self.time) > MAX_TIME:
            raise InvalidArgument(what, "a time out of all range")
        if any(len(text) > 1_000 or not text.isprintable() for text in self.warnings):
            raise InvalidArgument(what, "a warning that is no line of text")
        if max(self.flags) > _ALL_FLAGS:
            raise InvalidArgument(what, "an unknown mark")
        if not {mode & 0o170000 for mode in set(self.mode)} <= _KINDS:
            raise InvalidArgument(what, "an unknown kind of file")

    def _validate_nodes(self, limits: Limits) -> None:
        """What each node is, and where its bytes are."""
        what = "check layer index"
        end, limit, regular, folder = self.tar_size, limits.file_size, stat.S_IFREG, stat.S_IFDIR
        columns = zip(self.mode, bytes(self.flags), self.size, self.offset, strict=True)
        for node, (mode, flags, size, offset) in enumerate(columns):
            kind = mode & 0o170000
            if kind == regular and not flags & (LINK | LOWER_LINK | COPIED):
                if size and (offset % BLOCK or offset + size > end):
                    raise InvalidArgument(what, "a file's bytes lie outside the tar")
                if size > limit:
                    raise over_limit("file_size", size, limit)
            if flags or (kind != regular and kind != folder):  # noqa: PLR1714 - a set would be made each time
                self._validate_special(node, kind, flags, limits)

    def _validate_special(self, node: int, kind: int, flags: int, limits: Limits) -> None:
        """A node that is not a plain file or folder."""
        what = "check layer index"
        if flags & (OPAQUE | IMPLIED) and kind != stat.S_IFDIR:
            raise InvalidArgument(what, f"node {node} carries a folder's mark and is none")
        if not kind and not flags & (HIDES | LINK | LOWER_LINK):
            raise InvalidArgument(what, f"node {node} is nothing")
        if kind and flags & (LINK | LOWER_LINK):
            raise InvalidArgument(what, f"node {node} is both a link and a file")
        if flags & LINK:
            self._validate_link(node)
        if kind in (stat.S_IFCHR, stat.S_IFBLK) and not _is_device(self.offset[node]):
            raise InvalidArgument(what, f"node {node} has a device number that Linux has not")
        if (flags & LOWER_LINK or kind == stat.S_IFLNK) and node not in self.targets:
            raise InvalidArgument(what, f"node {node} has no target")
        if flags & LOWER_LINK and not _is_clean(self.targets[node], limits):
            raise InvalidArgument(what, f"node {node} links to what is no path")
        if kind == stat.S_IFLNK:
            target = self.targets[node]
            if not 0 < len(target) <= limits.link_size or b"\0" in target:
                raise InvalidArgument(what, f"not a symlink target: {target[:100]!r}")
        if flags & COPIED:
            self._validate_copied(node, limits)

    def _validate_xattrs(self, limits: Limits) -> None:
        what = "check layer index"
        for node, pairs in self.xattrs.items():
            self._node(node)
            if len(pairs) > limits.xattr_count:
                raise over_limit("xattr_count", len(pairs), limits.xattr_count)
            if (total := sum(len(name) + len(value) for name, value in pairs)) > limits.xattr_total:
                raise over_limit("xattr_total", total, limits.xattr_total)
            if (largest := max((len(value) for _, value in pairs), default=0)) > limits.xattr_value:
                raise over_limit("xattr_value", largest, limits.xattr_value)
            if not all(0 < len(name) < 256 for name, _ in pairs):
                raise InvalidArgument(what, f"an xattr of node {node} has no name that can be")
            if any(b"\0" in name for name, _ in pairs):
                raise InvalidArgument(what, f"the name of an xattr of node {node} holds a NUL")
            if len({name for name, _ in pairs}) != len(pairs):
                raise InvalidArgument(what, f"an xattr of node {node} stands twice")

    def _validate_link(self, node: int) -> None:
        target = self.offset[node]
        if target >= node or not self.mode[target] & 0o170000 or stat.S_ISDIR(self.mode[target]):
            raise InvalidArgument("check layer index", f"node {node} links to no file before it")

    def _validate_copies(self) -> None:
        """No byte of the tar is copied twice: else a small tar could fill the disk."""
        copied = 0
        for node, flags in enumerate(bytes(self.flags)):
            if flags & COPIED:
                extents = self.sparse.get(node)
                copied += self.size[node] if extents is None else sum(length for _, length, _ in extents)
        if copied > self.tar_size:
            raise InvalidArgument("check layer index", "more bytes to copy than the tar has")

    def _validate_copied(self, node: int, limits: Limits) -> None:
        what = "check layer index"
        if not stat.S_ISREG(self.mode[node]):
            raise InvalidArgument(what, f"node {node} has data and is no file")
        size = self.size[node]
        if size > limits.file_size:
            raise over_limit("file_size", size, limits.file_size)
        extents = self.sparse.get(node)
        if extents is None:
            if self.offset[node] + size > self.tar_size:
                raise InvalidArgument(what, f"the bytes of node {node} lie outside the tar")
            return
        at = 0
        for offset, length, source in extents:
            if offset < at or offset + length > size or source + length > self.tar_size:
                raise InvalidArgument(what, f"the extents of node {node} do not fit")
            at = offset + length

    def _node(self, node: int) -> None:
        if node >= len(self.names):
            raise InvalidArgument("check layer index", f"there is no node {node}")


def _is_device(number: int) -> bool:
    """Whether a device number is one that EROFS and mknod(2) take: 12 bits of major, 20 of minor."""
    major, minor = os.major(number), os.minor(number)
    return major < 1 << 12 and minor < 1 << 20 and os.makedev(major, minor) == number


def _is_clean(path: bytes, limits: Limits) -> bool:
    """Whether a path is the kind that the builder cleans names to."""
    parts = path.split(b"/")
    return len(path) <= limits.path_size and b"\0" not in path and not {b"", b".", b".."} & set(parts)


def _to_bytes(column: array[int]) -> bytes:
    if sys.byteorder == "big":
        column = column[:]
        column.byteswap()
    return column.tobytes()


def _decode_targets(data: bytes) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    at = 0
    while at < len(data):
        node, length = _PAIR.unpack_from(data, at)
        at += 8
        if at + length > len(data):
            raise ValueError("a target is cut off")
        found[node] = data[at : at + length]
        at += length
    return found


def _decode_xattrs(data: bytes) -> dict[int, Xattrs]:
    found: dict[int, Xattrs] = {}
    at = 0
    while at < len(data):
        node, count = _PAIR.unpack_from(data, at)
        at += 8
        pairs: list[tuple[bytes, bytes]] = []
        for _ in range(count):
            name, value = _PAIR.unpack_from(data, at)
            at += 8
            if at + name + value > len(data):
                raise ValueError("an xattr is cut off")
            pairs.append((data[at : at + name], data[at + name : at + name + value]))
            at += name + value
        found[node] = tuple(pairs)
    return found


def _decode_sparse(data: bytes) -> dict[int, Extents]:
    found: dict[int, Extents] = {}
    at = 0
    while at < len(data):
        node, count = _PAIR.unpack_from(data, at)
        at += 8
        if count > (len(data) - at) // _EXTENT.size:
            raise ValueError("more extents than bytes")
        found[node] = tuple(
            (a, b, c) for a, b, c in _EXTENT.iter_unpack(data[at : at + count * _EXTENT.size])
        )
        at += count * _EXTENT.size
    return found
