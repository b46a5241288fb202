"""An EROFS image that `writer` made, read back: by path, by nid, or whole.

Not here: reading what other tools make (compressed, compact inodes, shared xattrs), the bytes of files,
which lie in the devices, and mounting.

Nothing that is read is believed: every offset is checked against the image before it is used, and what
does not fit raises `DataLoss`.  A lookup reads a few blocks of each folder on its way, never the whole
image.  An `Image` changes nothing and may be used by several threads, but not beyond its `close`.
"""

from __future__ import annotations

import mmap
import os
import stat
import struct
from bisect import bisect_right
from collections.abc import Iterator
from types import TracebackType

from orlop.erofs import format as fmt
from orlop.erofs import xattrs as xattr_body
from orlop.errors import DataLoss, InvalidArgument, from_oserror
from orlop.hints import Self
from orlop.values import dataclass

__all__ = ["Extent", "Image", "Inode", "open_image"]

_LAYOUTS = (fmt.PLAIN, fmt.INLINE, fmt.CHUNKED)
_KINDS = {file_type: kind for kind, file_type in fmt.FILE_TYPES.items()}
_BLOCKS = 64  # of folders, that are kept parsed: neighbours are asked for one after the other
_DEVICE_KINDS = (stat.S_IFCHR, stat.S_IFBLK)


@dataclass(frozen=True, slots=True, kw_only=True)
class Inode:
    """One inode, as it stands in the image.

    ``mode`` is a whole st_mode; ``mtime`` seconds since 1970 and ``nsec``; ``rdev`` as makedev gives it.
    ``layout`` and ``i_u`` say where the data are, ``xattr_size`` how many bytes of xattrs follow.
    """

    nid: int
    mode: int
    uid: int
    gid: int
    mtime: int
    nsec: int
    size: int
    nlink: int
    rdev: int
    ino: int
    layout: int
    i_u: int
    xattr_size: int

    @property
    def is_folder(self) -> bool:
        """Whether it has entries."""
        return stat.S_ISDIR(self.mode)


@dataclass(frozen=True, slots=True, kw_only=True)
class Extent:
    """``length`` bytes of a file: at ``offset`` of device number ``device``, or a hole (device 0)."""

    device: int
    offset: int
    length: int


class Image:
    """An image in a buffer: bytes, or a mapped file.

    ``devices`` are the sizes of the extra devices in blocks, in order; ``root`` is the root's nid,
    ``inodes`` how many there are.  Raises `DataLoss` if the superblock is not one that `writer` makes.
    """

    def __init__(self, buffer: bytes | bytearray | memoryview | mmap.mmap, *, name: str = "") -> None:
        self._view = memoryview(buffer)
        self._buffer = buffer
        self._reading = f"read EROFS image {name}".rstrip()
        self._near = (-1, 0)  # folder and block in which a name was sought last
        self._blocks: dict[tuple[int, int], list[tuple[bytes, int, int]]] = {}  # of folders, read lately
        try:
            self._superblock()
        except BaseException:
            self.close()
            raise

    def _superblock(self) -> None:
        raw = self._bytes(fmt.SUPER_OFFSET, fmt.BLOCK)
        (magic, checksum, compat, bits, extra, root, inodes, _, _, blocks, meta, _, uuid, _, incompat, _,
         devices, table, folder_bits, *rest) = fmt.SUPER.unpack_from(raw)  # fmt: skip
        if magic != fmt.MAGIC:
            raise self._lost(f"no EROFS: magic {magic:#x}")
        if checksum != fmt.checksum(raw):
            raise self._lost("the superblock's checksum is wrong")
        if compat != fmt.COMPAT or incompat != fmt.INCOMPAT or bits != fmt.BLOCK_BITS:
            raise self._lost(
                f"features {compat:#x} and {incompat:#x}, block bits {bits}: not written by orlop"
            )
        if extra or meta or folder_bits or any(rest) or table * fmt.DEVICE_SLOT.size != fmt.DEVICE_TABLE:
            raise self._lost("the superblock has fields that orlop does not write")
        if blocks * fmt.BLOCK != len(self._view):
            raise self._lost(f"{len(self._view)} bytes, where the superblock says {blocks} blocks")
        slots = self._bytes(fmt.DEVICE_TABLE, devices * fmt.DEVICE_SLOT.size)
        self.devices: tuple[int, ...] = tuple(slot[1] for slot in fmt.DEVICE_SLOT.iter_unpack(slots))
        self.uuid: bytes = uuid
        self.root: int = root
        self.inodes: int = inodes

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the buffer, and close it if it is a mapping.  Idempotent."""
        self._view.release()
        if isinstance(self._buffer, mmap.mmap):
            self._buffer.close()

    def inode(self, nid: int) -> Inode:
        """The inode with this number."""
        raw = self._bytes(nid * fmt.SLOT, fmt.INODE.size)
        layout, xattrs, mode, _, size, i_u, ino, uid, gid, mtime, nsec, nlink = fmt.INODE.unpack(raw)
        kind = stat.S_IFMT(mode)
        if layout not in _LAYOUTS or kind not in fmt.FILE_TYPES:
            raise self._lost(f"nid {nid} has format {layout:#x} and mode {mode:o}")
        if (layout == fmt.CHUNKED) != (kind == stat.S_IFREG and size > 0) or size > fmt.MAX_FILE_SIZE:
            raise self._lost(f"nid {nid} has format {layout:#x}, mode {mode:o} and {size} bytes")
        if nsec > fmt.MAX_NSEC:
            raise self._lost(f"nid {nid} has {nsec} ns")
        return Inode(
            nid=nid,
            mode=mode,
            uid=uid,
            gid=gid,
            mtime=mtime,
            nsec=nsec,
            size=size,
            nlink=nlink,
            rdev=fmt.decode_device(i_u) if kind in _DEVICE_KINDS else 0,
            ino=ino,
            layout=layout,
            i_u=i_u,
            xattr_size=xattr_body.size(xattrs),
        )

    def lookup(self, path: bytes) -> Inode | None:
        """What ``path`` names, from the root; None if there is nothing.

        Symlinks are not followed, ``..`` names nothing; empty parts and ``.`` are skipped, so that ``b""``
        is the root.
        """
        inode = self.inode(self.root)
        for name in path.split(b"/"):
            if name not in {b"", b"."}:
                found = self.child(inode, name) if inode.is_folder else None
                if found is None:
                    return None
                inode = found
        return inode

    def child(self, folder: Inode, name: bytes) -> Inode | None:
        """The member of a folder with this name, found by bisection; None if there is none."""
        if name in {b".", b".."}:
            return None
        low, high = 0, self._block_count(folder)
        near = self._near
        if high > 1 and near[0] == folder.nid:  # who asks for one name often asks for its neighbour
            known = self._blocks.get(near)
            if known is not None and known[0][0] <= name <= known[-1][0]:
                low, high = near[1], near[1] + 1
        while high - low > 1:  # the last block whose first name is not after the one sought
            middle = (low + high) // 2
            if self._dirents(folder, middle, only_first=True)[0][0] <= name:
                low = middle
            else:
                high = middle
        entries = self._dirents(folder, low)
        self._near = folder.nid, low
        at = bisect_right(entries, name, key=_name) - 1
        if at < 0 or entries[at][0] != name:
            return None
        _, nid, file_type = entries[at]
        inode = self.inode(nid)
        self._check_type(inode, file_type)
        return inode

    def entries(self, folder: Inode) -> Iterator[tuple[bytes, int, int]]:
        """Name, nid and type (S_IFMT of the mode) of a folder's members, by name, ``.`` and ``..`` left out.

        Raises `DataLoss` unless the names are names, and in order, and ``.`` is the folder itself.
        """
        for name, nid, file_type in self._all_entries(folder):
            if name not in {b".", b".."}:
                yield name, nid, _KINDS[file_type]

    def members(self, folder: Inode) -> Iterator[tuple[bytes, Inode]]:
        """Names and inodes of a folder's members, by name; as `entries`, and each as `child` finds it."""
        for name, nid, file_type in self._all_entries(folder):
            if name not in {b".", b".."}:
                inode = self.inode(nid)
                self._check_type(inode, file_type)
                yield name, inode

    def target(self, inode: Inode) -> bytes:
        """A symlink's target."""
        if not stat.S_ISLNK(inode.mode):
            raise InvalidArgument(self._reading, f"nid {inode.nid} is no symlink")
        if not 0 < inode.size <= fmt.MAX_TARGET:
            raise self._lost(f"the symlink nid {inode.nid} has {inode.size} bytes")
        target = self._data(inode, 0, inode.size)
        if b"\0" in target:
            raise self._lost(f"the target of nid {inode.nid} has a NUL")
        return target

    def xattrs(self, inode: Inode) -> tuple[tuple[bytes, bytes], ...]:
        """Full names and values, in order of the names."""
        at = inode.nid * fmt.SLOT + fmt.INODE.size
        body = self._bytes(at, inode.xattr_size)
        return xattr_body.decode(body, f"{self._reading}: xattrs of nid {inode.nid}")

    def extents(self, inode: Inode) -> list[Extent]:
        """Where a regular file's bytes are, in order, without a gap; neighbours are joined.

        Raises `DataLoss` for one that leaves its device.
        """
        if not stat.S_ISREG(inode.mode):
            raise InvalidArgument(self._reading, f"nid {inode.nid} is no regular file")
        if not inode.size:
            return []
        if inode.i_u & ~fmt.MAX_CHUNK_BITS != fmt.CHUNK_INDEXES:
            raise self._lost(f"nid {inode.nid} has chunks of format {inode.i_u:#x}")
        chunk = fmt.BLOCK << (inode.i_u & fmt.MAX_CHUNK_BITS)
        count = -(-inode.size // chunk)
        at = inode.nid * fmt.SLOT + fmt.INODE.size + inode.xattr_size
        index = self._bytes(at + -at % 8, 8 * count)
        found: list[Extent] = []
        left = inode.size
        for _, device, start in struct.iter_unpack("<HHI", index):
            length = min(chunk, left)
            left -= length
            extent = self._extent(inode, device, start, length)
            last = found[-1] if found else None
            follows = not extent.device or (last and last.offset + last.length == extent.offset)
            if last and last.device == extent.device and follows:
                extent = Extent(device=last.device, offset=last.offset, length=last.length + length)
                found.pop()
            found.append(extent)
        return found

    def walk(self) -> Iterator[tuple[bytes, Inode]]:
        """Every name with its inode, folders before what is in them, the root (``b""``) first.

        A hard link comes once under each name.  Raises `DataLoss` if the folders are no tree.
        """
        seen = {self.root}
        stack = [(b"", self.inode(self.root), self.root)]
        if not stack[0][1].is_folder:
            raise self._lost("the root is no folder")
        while stack:
            path, inode, parent = stack.pop()
            yield path, inode
            if not inode.is_folder:
                continue
            below = []
            for name, nid, file_type in self._all_entries(inode):
                if name == b"..":
                    if nid != parent:
                        raise self._lost(f"the parent of nid {inode.nid} is {parent}, not {nid}")
                elif name != b".":
                    child = self.inode(nid)
                    self._check_type(child, file_type)
                    if child.is_folder and nid in seen:
                        raise self._lost(f"the folder nid {nid} is in the tree twice")
                    if child.is_folder:
                        seen.add(nid)
                    below.append((path + b"/" + name if path else name, child, inode.nid))
            stack += reversed(below)

    def _all_entries(self, folder: Inode) -> Iterator[tuple[bytes, int, int]]:
        """Name, nid and FT_* of all entries, after looking at them."""
        previous, dots = b"", 0
        for block in range(self._block_count(folder)):
            for entry in self._dirents(folder, block):
                name, nid, file_type = entry
                if name <= previous or len(name) > fmt.MAX_NAME or b"/" in name or b"\0" in name:
                    raise self._lost(f"the folder nid {folder.nid} has the name {name!r} after {previous!r}")
                if file_type not in _KINDS:
                    raise self._lost(f"{name!r} in the folder nid {folder.nid} has type {file_type}")
                if name == b"." and nid != folder.nid:
                    raise self._lost(f"the folder nid {folder.nid} says that it is nid {nid}")
                dots += name in {b".", b".."}
                previous = name
                yield entry
        if dots != 2:
            raise self._lost(f"the folder nid {folder.nid} lacks '.' or '..'")

    def _block_count(self, folder: Inode) -> int:
        if not folder.is_folder:
            raise InvalidArgument(self._reading, f"nid {folder.nid} is no folder")
        if not 0 < folder.size <= len(self._view):
            raise self._lost(f"the folder nid {folder.nid} has {folder.size} bytes")
        return -(-folder.size // fmt.BLOCK)

    def _dirents(
        self, folder: Inode, block: int, *, only_first: bool = False
    ) -> list[tuple[bytes, int, int]]:
        """The entries of one block of a folder, or just the first: name, nid, FT_*."""
        known = self._blocks.get((folder.nid, block))
        if known is not None:
            return known
        at = block * fmt.BLOCK
        raw = self._data(folder, at, min(fmt.BLOCK, folder.size - at))
        size = fmt.DIRENT.size
        first = fmt.DIRENT.unpack_from(raw)[1] if len(raw) >= size else 0
        if not size <= first <= len(raw) or first % size:
            raise self._lost(f"block {block} of the folder nid {folder.nid} is no list of entries")
        dirents = list(fmt.DIRENT.iter_unpack(raw[: min(first, 2 * size) if only_first else first]))
        ends = [offset for _, offset, _ in dirents[1:]]
        if only_first and ends:
            dirents.pop()
        else:
            ends.append(len(raw.rstrip(b"\0")))
        found = []
        for (nid, begin, file_type), end in zip(dirents, ends, strict=True):
            if not first <= begin < end <= len(raw):
                raise self._lost(
                    f"block {block} of the folder nid {folder.nid} has a name at {begin} to {end}"
                )
            found.append((raw[begin:end], nid, file_type))
        if not only_first:
            if len(self._blocks) >= _BLOCKS:
                self._blocks.clear()
            self._blocks[folder.nid, block] = found
        return found

    def _check_type(self, inode: Inode, file_type: int) -> None:
        if fmt.FILE_TYPES[stat.S_IFMT(inode.mode)] != file_type:
            raise self._lost(f"nid {inode.nid} has mode {inode.mode:o}, its entry type {file_type}")

    def _extent(self, inode: Inode, device: int, start: int, length: int) -> Extent:
        if start == fmt.NO_BLOCK:
            return Extent(device=0, offset=0, length=length)
        blocks = -(-length // fmt.BLOCK)
        if not 0 < device <= len(self.devices) or start + blocks > self.devices[device - 1]:
            raise self._lost(f"nid {inode.nid} points at block {start} of device {device}: not there")
        return Extent(device=device, offset=start * fmt.BLOCK, length=length)

    def _data(self, inode: Inode, offset: int, length: int) -> bytes:
        """Some of the data that are in the image itself: a folder's or a symlink's."""
        if inode.layout == fmt.PLAIN:
            return self._bytes(inode.i_u * fmt.BLOCK + offset, length)
        at = inode.nid * fmt.SLOT + fmt.INODE.size + inode.xattr_size
        if at % fmt.BLOCK + inode.size > fmt.BLOCK:
            raise self._lost(f"the inline data of nid {inode.nid} cross a block")
        return self._bytes(at + offset, length)

    def _bytes(self, offset: int, length: int) -> bytes:
        if not 0 <= offset <= len(self._view) - length:
            raise self._lost(f"{length} bytes at {offset}: past its end at {len(self._view)}")
        return bytes(self._view[offset : offset + length])

    def _lost(self, reason: str) -> DataLoss:
        return DataLoss(self._reading, reason, hint="it is derived and can be built again")


def open_image(path: str | bytes | os.PathLike[str]) -> Image:
    """Map an image file; a context manager.  Raises `DataLoss`, or what the system says.

    The file must not be truncated while it is open (its pages would be gone: SIGBUS).
    """
    shown = os.fsdecode(path)
    try:
        with open(path, "rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as exc:
        raise from_oserror(f"open EROFS image {shown}", exc) from exc
    except ValueError as exc:  # an empty file cannot be mapped
        raise DataLoss(f"open EROFS image {shown}", str(exc)) from exc
    return Image(mapped, name=shown)


def _name(entry: tuple[bytes, int, int]) -> bytes:
    return entry[0]
