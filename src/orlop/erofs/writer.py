"""A tree of nodes into an EROFS metadata image.

Not here: what a layer means (whiteouts, merging), files, fsync.  The bytes of regular files are not
copied: inodes point into extra devices.

Layout: superblock, device table, the root's inode (its nid must fit 16 bits), then folder by folder,
each after all that is below it: the inodes of its members that are not folders, its entries' blocks,
its own inode.  So a folder's members lie side by side, and their nids are known when its entries are
packed; only ``..`` and the link counts of hard links are patched afterwards.

Invariants: the same tree gives the same bytes, in whatever order it was made; nothing recurses; an
inode starts at a multiple of 32 bytes; inline data never cross a block (the kernel calls that corrupt).

This is a hot path (a few µs an entry), which is why the common file is one ``pack`` and checks are
shared by a whole folder where they can be.
"""

from __future__ import annotations

import stat
import struct
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from functools import cache
from itertools import accumulate
from operator import itemgetter

from orlop.erofs import format as fmt
from orlop.erofs import xattrs as xattr_body
from orlop.erofs.tree import HOLE, Node
from orlop.errors import Error, InvalidArgument, ResourceExhausted

__all__ = ["build"]

_BLOCK = fmt.BLOCK
_TYPES = tuple(fmt.FILE_TYPES.get(kind << 12, 0) for kind in range(16))  # by mode >> 12
_FOLDER = fmt.FILE_TYPES[stat.S_IFDIR]
_SPECIAL = (stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO, stat.S_IFSOCK)
_SOLE_CHUNK = fmt.BLOCK << fmt.MAX_CHUNK_BITS  # bytes of a file that one index can cover


def build(root: Node, *, devices: Sequence[int], uuid: bytes) -> bytearray:
    """The image of the tree below ``root``: whole blocks, ready to be written to a file and mounted.

    ``devices`` are the sizes in bytes of the extra devices, in order; ``uuid`` has 16 bytes.  Only whole
    blocks of a device count: a read that needs more than the file has is EIO (seen on 6.18).  The writer
    sets ``nid`` and ``nlink`` of every node; a tree must not be built by two threads at once.

    Raises `InvalidArgument` for a tree that the format cannot hold or that would point outside its
    devices, `ResourceExhausted` for one past a limit of the format.
    """
    if len(uuid) != 16:
        raise InvalidArgument("write EROFS image", f"a UUID has 16 bytes, not {len(uuid)}")
    if len(devices) > fmt.MAX_DEVICES:
        raise ResourceExhausted(
            "write EROFS image", f"{len(devices)} devices; the limit is {fmt.MAX_DEVICES}"
        )
    return _Writer(devices).image(root, uuid)


class _Writer:
    """The state of one image: the bytes so far, and what is to be patched."""

    __slots__ = ("_blocks", "_dotdots", "_inodes", "_links", "_out")

    def __init__(self, devices: Sequence[int]) -> None:
        self._blocks = [0]  # of each device, by its number
        for number, size in enumerate(devices, 1):
            blocks = size >> fmt.BLOCK_BITS
            if not 0 <= blocks <= fmt.MAX_DEVICE_BLOCKS:
                raise ResourceExhausted("write EROFS image", f"device {number} has {size} bytes")
            self._blocks.append(blocks)
        self._out = bytearray(fmt.DEVICE_TABLE)
        self._dotdots: dict[int, int] = {}  # a folder's nid -> offset of its ".."
        self._inodes = 0
        self._links: dict[int, int] = {}  # nid -> names, of what has several

    def image(self, root: Node, uuid: bytes) -> bytearray:
        """Write everything."""
        out = self._out
        for blocks in self._blocks[1:]:
            out += fmt.DEVICE_SLOT.pack(b"", blocks, 0)
        root_at = len(out)
        out += bytes(fmt.INODE.size + len(xattr_body.encode(root.xattrs, b"/")))
        out += bytes(-len(out) % fmt.SLOT)

        folders = _survey(root)
        for folder, name, _ in reversed(folders):
            self._folder(folder, name, root_at if folder is root else None)
        for folder, _, parent in folders:
            struct.pack_into("<Q", out, self._dotdots[folder.nid], parent.nid)
        for nid, names in self._links.items():
            struct.pack_into("<I", out, nid * fmt.SLOT + fmt.NLINK_OFFSET, names)

        out += bytes(-len(out) % _BLOCK)
        self._superblock(root.nid, uuid)
        return out

    def _superblock(self, root_nid: int, uuid: bytes) -> None:
        """Fill in the superblock, with its checksum: a torn one is then refused by the kernel."""
        out, blocks = self._out, len(self._out) >> fmt.BLOCK_BITS
        if blocks >= fmt.NO_BLOCK:
            raise ResourceExhausted("write EROFS image", f"{blocks} blocks of metadata")
        fields = (fmt.MAGIC, 0, fmt.COMPAT, fmt.BLOCK_BITS, 0, root_nid, self._inodes, 0, 0, blocks, 0, 0)
        devices = (len(self._blocks) - 1, fmt.DEVICE_TABLE // fmt.DEVICE_SLOT.size)
        at = fmt.SUPER_OFFSET
        fmt.SUPER.pack_into(out, at, *fields, uuid, b"", fmt.INCOMPAT, 0, *devices, 0, 0, 0, 0, 0, 0)
        struct.pack_into("<I", out, at + 4, fmt.checksum(out[at : at + _BLOCK]))

    def _folder(self, node: Node, name: bytes, at: int | None) -> None:
        """Write a folder's members, its entries and its inode: at ``at``, or behind all else."""
        children = node.children
        if children is None or not stat.S_ISDIR(node.mode):
            raise InvalidArgument(
                f"write EROFS folder {name!r}", f"it has entries, but its mode is {node.mode:o}"
            )
        names = sorted(children)
        nids, types = self._members(children, names)
        nlink = 2 + types.count(_FOLDER)
        dotdot = bisect_left(names, b"..") + 1  # not always second: "+" and ".+" sort before it
        for dot in (b"..", b"."):
            place = bisect_left(names, dot)
            names.insert(place, dot)
            nids.insert(place, 0)
            types.insert(place, _FOLDER)
        lengths = [len(name) for name in names]
        firsts = _split(lengths)
        size = (len(firsts) - 1) * _BLOCK + 12 * (len(names) - firsts[-1]) + sum(lengths[firsts[-1] :])

        out = self._out
        xattrs = xattr_body.encode(node.xattrs, name)
        inline = at is None and size <= _BLOCK and self._settle(len(xattrs), size)
        if not inline:
            out += bytes(-len(out) % _BLOCK)
        head = fmt.INODE.size + len(xattrs) if inline else 0
        data_at = len(out) + head
        if at is None:
            at = len(out) if inline else _up(data_at + size + 1)
        node.nid = nids[place] = at >> 5
        block = bisect_right(firsts, dotdot) - 1
        self._dotdots[node.nid] = data_at + block * _BLOCK + 12 * (dotdot - firsts[block])

        layout, i_u = (fmt.INLINE, 0) if inline else (fmt.PLAIN, data_at >> fmt.BLOCK_BITS)
        inode = self._inode(node, name, layout, size, i_u, nlink, xattrs)
        data = _entries(names, lengths, nids, types, firsts)
        if inline:
            out += inode
        out += data
        if not inline:
            # The last name ends at a NUL or with its block, not with the folder's size: fs/erofs/namei.c.
            # (Behind inline data the kernel puts zeros itself.)
            out += b"\0"
        out += bytes(-len(out) % fmt.SLOT)
        if not inline:
            out[at : at + len(inode)] = inode  # in the root's place, or at the very end
            out += bytes(-len(out) % fmt.SLOT)

    def _members(self, children: dict[bytes, Node], names: list[bytes]) -> tuple[list[int], list[int]]:
        """Write the members that are not folders, in order of name; the nids and types of all."""
        out, limits, pack, kinds = self._out, self._blocks, fmt.FILE.pack, _TYPES
        nids: list[int] = []
        types: list[int] = []
        _check_names(names, children)
        try:
            for name in names:
                node = children[name]
                mode, size, device, nid = node.mode, node.size, node.device, node.nid
                if nid >= 0:
                    if node.children is None:
                        node.nlink += 1
                        self._links[nid] = node.nlink
                elif (
                    mode >> 12 != 8 or not 0 < size <= _SOLE_CHUNK or not device or node.xattrs or node.chunks
                ):
                    nid = self._member(node, name)
                else:
                    nid = len(out) >> 5
                    blocks = (size + 511) >> 9
                    offset = node.offset
                    start = offset >> 9
                    uid, gid, nsec = node.uid, node.gid, node.nsec
                    if offset & 511 or start + blocks > limits[device]:
                        raise _outside(node, name)
                    if nsec > 999_999_999 or uid == 0xFFFFFFFF or gid == 0xFFFFFFFF:
                        raise _no_number(node, name)
                    # 0x20 | bits of the chunk: the least that covers the file
                    out += pack(
                        9, 0, mode, 0, size, 0x20 | (blocks - 1).bit_length(), self._inodes, uid, gid,
                        node.mtime, nsec, 1, device, start,
                    )  # fmt: skip
                    self._inodes += 1
                    node.nid = nid
                    node.nlink = 1
                nids.append(nid)
                types.append(kinds[mode >> 12])
        except IndexError:
            raise _outside(node, name) from None
        except struct.error as exc:
            raise _no_number(node, name) from exc
        return nids, types

    def _member(self, node: Node, name: bytes) -> int:
        """Write whatever is not a folder and not the common file; its nid."""
        kind = stat.S_IFMT(node.mode)
        xattrs = xattr_body.encode(node.xattrs, name)
        if kind == stat.S_IFLNK:
            self._symlink(node, name, xattrs)
        elif kind == stat.S_IFREG and node.size:
            bits, index = self._index(node, name)
            self._append(node, name, fmt.CHUNKED, node.size, fmt.CHUNK_INDEXES | bits, xattrs, index)
        elif kind == stat.S_IFREG:
            self._append(node, name, fmt.PLAIN, 0, fmt.NO_BLOCK, xattrs)
        elif kind in _SPECIAL:
            try:
                number = fmt.encode_device(node.rdev) if kind in _SPECIAL[:2] else 0
            except (ValueError, OverflowError) as exc:
                raise InvalidArgument(f"write EROFS inode of {name!r}", str(exc)) from exc
            self._append(node, name, fmt.PLAIN, 0, number, xattrs)
        else:
            raise InvalidArgument(f"write EROFS inode of {name!r}", f"mode {node.mode:o} is no type of file")
        return node.nid

    def _symlink(self, node: Node, name: bytes, xattrs: bytes) -> None:
        target, out = node.target, self._out
        if not 0 < len(target) <= fmt.MAX_TARGET or b"\0" in target:
            raise InvalidArgument(
                f"write EROFS symlink {name!r}",
                f"a target has 1 to {fmt.MAX_TARGET} bytes other than NUL; this has {len(target)}",
            )
        if self._settle(len(xattrs), len(target)):
            self._append(node, name, fmt.INLINE, len(target), 0, xattrs, target)
            return
        out += bytes(-len(out) % _BLOCK)
        block = len(out) >> fmt.BLOCK_BITS
        out += target
        out += bytes(-len(out) % fmt.SLOT)
        self._append(node, name, fmt.PLAIN, len(target), block, xattrs)

    def _index(self, node: Node, name: bytes) -> tuple[int, bytes]:
        """A regular file's chunk bits and chunk indexes, every one of them inside its device."""
        size, chunks, attempted = node.size, node.chunks, f"write EROFS inode of {name!r}"
        if not 0 < size <= fmt.MAX_FILE_SIZE:
            raise InvalidArgument(attempted, f"a size of {size} bytes")
        blocks = -(-size // _BLOCK)
        bits = min((blocks - 1).bit_length(), fmt.MAX_CHUNK_BITS) if chunks is None else chunks.bits
        if not 0 <= bits <= fmt.MAX_CHUNK_BITS:
            raise InvalidArgument(attempted, f"chunks of 2^{bits} blocks")
        count = (blocks - 1 >> bits) + 1
        if count > fmt.MAX_CHUNKS:
            raise ResourceExhausted(attempted, f"{count} chunks; the limit is {fmt.MAX_CHUNKS}")
        device = node.device
        if not 0 <= device < len(self._blocks):
            raise _outside(node, name)
        if chunks is not None:
            starts = chunks.starts
        elif not device:
            starts = [HOLE] * count
        elif node.offset % _BLOCK:
            raise _outside(node, name)
        else:
            first = node.offset // _BLOCK
            starts = list(range(first, first + (count << bits), 1 << bits))
        if len(starts) != count:
            raise InvalidArgument(attempted, f"{len(starts)} chunks for a size that takes {count}")
        limit, step, index = self._blocks[device], 1 << bits, []
        for at, start in enumerate(starts):
            if start == HOLE:
                index.append(HOLE << 32)
            elif 0 <= start <= limit - min(step, blocks - at * step):
                index.append(start << 32 | device << 16)
            else:
                raise _outside(node, name)
        return bits, struct.pack(f"<{count}Q", *index)

    def _append(
        self, node: Node, name: bytes, layout: int, size: int, i_u: int, xattrs: bytes, tail: bytes = b""
    ) -> None:
        """Put an inode, its xattrs and what follows them (8-aligned for an index) behind all else."""
        out = self._out
        node.nid = len(out) >> 5
        node.nlink = 1
        out += self._inode(node, name, layout, size, i_u, 1, xattrs)
        if layout == fmt.CHUNKED:
            out += bytes(-len(out) % 8)
        out += tail
        out += bytes(-len(out) % fmt.SLOT)

    def _inode(
        self, node: Node, name: bytes, layout: int, size: int, i_u: int, nlink: int, xattrs: bytes
    ) -> bytes:
        """An inode and its xattrs."""
        mode, uid, gid, nsec = node.mode, node.uid, node.gid, node.nsec
        if nsec > fmt.MAX_NSEC or uid > fmt.MAX_ID or gid > fmt.MAX_ID:
            raise _no_number(node, name)
        count, number = xattr_body.count(xattrs), self._inodes
        self._inodes += 1
        node.nlink = nlink
        try:
            inode = fmt.INODE.pack(
                layout, count, mode, 0, size, i_u, number, uid, gid, node.mtime, nsec, nlink
            )
        except struct.error as exc:
            raise _no_number(node, name) from exc
        return inode + xattrs

    def _settle(self, before: int, length: int) -> bool:
        """Pad so that ``length`` bytes behind an inode and ``before`` bytes of xattrs stay in one block.

        False, and nothing done, if that cannot be.
        """
        out = self._out
        before += fmt.INODE.size
        start = (len(out) + before) % _BLOCK
        if start + length <= _BLOCK:
            return True
        first = before % fmt.SLOT  # the earliest in a block that such data can start
        if first + length > _BLOCK:
            return False
        out += bytes((first - start) % _BLOCK)
        return True


def _survey(root: Node) -> list[tuple[Node, bytes, Node]]:
    """Each folder, before what is below it, with its name and the folder it is in (the root's: itself).

    Takes from all nodes the nids of an earlier image.
    """
    root.nid = -1
    folders: list[tuple[Node, bytes, Node]] = []
    seen = {id(root)}
    stack = [(root, b"/", root)]
    by_name = itemgetter(1)
    while stack:
        entry = stack.pop()
        folders.append(entry)
        folder = entry[0]
        below = []
        for name, child in (folder.children or {}).items():
            child.nid = -1
            if child.children is not None:
                if id(child) in seen:
                    raise InvalidArgument(f"write EROFS folder {name!r}", "it is in the tree twice")
                seen.add(id(child))
                below.append((child, name, folder))
        below.sort(key=by_name)
        stack += below
    return folders


def _check_names(names: list[bytes], children: dict[bytes, Node]) -> None:
    """Raise `InvalidArgument` unless all are names that a folder can hold."""
    joined = b"".join(names)
    if 0x2F in joined or 0 in joined or b"." in children or b".." in children or b"" in children:
        bad = next(name for name in names if name in {b"", b".", b".."} or b"/" in name or b"\0" in name)
        raise InvalidArgument(f"write EROFS entry {bad!r}", "this cannot be the name of a file")
    if len(joined) > fmt.MAX_NAME and len(longest := max(names, key=len)) > fmt.MAX_NAME:
        raise InvalidArgument(
            f"write EROFS entry {longest!r}", f"a name has at most {fmt.MAX_NAME} bytes, not {len(longest)}"
        )


def _split(lengths: list[int]) -> list[int]:
    """Which entries begin a block: as many go into each as fit, given the lengths of their names."""
    firsts = [0]
    if 12 * len(lengths) + sum(lengths) <= _BLOCK:
        return firsts
    used = 0
    for at, length in enumerate(lengths):
        used += 12 + length
        if used > _BLOCK:
            firsts.append(at)
            used = 12 + length
    return firsts


def _entries(
    names: list[bytes], lengths: list[int], nids: list[int], types: list[int], firsts: list[int]
) -> bytes:
    """A folder's data: in each block first the entries, then their names; all but the last padded."""
    parts = []
    for first, end in zip(firsts, [*firsts[1:], len(names)], strict=True):
        count = end - first
        fields = [0] * (3 * count)
        fields[0::3] = nids[first:end]
        fields[1::3] = accumulate(lengths[first : end - 1], initial=12 * count)
        fields[2::3] = types[first:end]
        parts.append(_dirents(count).pack(*fields) + b"".join(names[first:end]))
    last = parts.pop()
    return b"".join([part.ljust(_BLOCK, b"\0") for part in parts]) + last


@cache
def _dirents(count: int) -> struct.Struct:
    """So many entries in a row; a block holds at most 39."""
    return struct.Struct("<" + fmt.DIRENT.format.lstrip("<") * count)


def _up(offset: int) -> int:
    """The next place where an inode can stand."""
    return offset + -offset % fmt.SLOT


def _outside(node: Node, name: bytes) -> Error:
    """The error for data that are not whole blocks of a device."""
    return InvalidArgument(
        f"write EROFS inode of {name!r}",
        f"{node.size} bytes at offset {node.offset} are not in whole blocks of device {node.device}",
    )


def _no_number(node: Node, name: bytes) -> Error:
    """The error for a field that the inode cannot hold."""
    return InvalidArgument(
        f"write EROFS inode of {name!r}",
        f"out of range: mode {node.mode:o}, owner {node.uid}:{node.gid}, mtime {node.mtime}s {node.nsec}ns",
    )
