"""The EROFS on-disk format, as far as we use it: structures, numbers, limits.

One dialect is written and read: 512-byte blocks, extended inodes of 64 bytes at multiples of 32 bytes
(``nid = offset / 32``), files as chunks on extra devices, folders and symlinks inline or in plain
blocks, xattrs inline.  No compression, no shared xattrs, no fragments.

Not here: policy about trees (`writer`) and distrust of bytes (`reader`).  All numbers are little
endian.  Source: the kernel's fs/erofs/erofs_fs.h, and what was measured by mounting.
"""

from __future__ import annotations

import os
import stat
from functools import cache
from struct import Struct

from orlop.hints import Final

__all__ = [
    "BLOCK",
    "BLOCK_BITS",
    "CHUNKED",
    "CHUNK_INDEXES",
    "COMPAT",
    "DEVICE_SLOT",
    "DEVICE_TABLE",
    "DIRENT",
    "EXTENDED",
    "FILE",
    "FILE_TYPES",
    "INCOMPAT",
    "INLINE",
    "INODE",
    "MAGIC",
    "MAX_CHUNKS",
    "MAX_CHUNK_BITS",
    "MAX_DEVICES",
    "MAX_DEVICE_BLOCKS",
    "MAX_FILE_SIZE",
    "MAX_ID",
    "MAX_NAME",
    "MAX_NSEC",
    "MAX_TARGET",
    "MAX_XATTR_BODY",
    "MAX_XATTR_LIST",
    "MAX_XATTR_NAME",
    "MAX_XATTR_VALUE",
    "NLINK_OFFSET",
    "NO_BLOCK",
    "PLAIN",
    "SLOT",
    "SUPER",
    "SUPER_OFFSET",
    "XATTR",
    "XATTR_HEADER",
    "XATTR_PREFIXES",
    "XATTR_WHOLE",
    "checksum",
    "decode_device",
    "encode_device",
]

BLOCK_BITS: Final = 9  # tar's own block, so that a member of a tar can be pointed at
BLOCK: Final = 1 << BLOCK_BITS
SLOT: Final = 32  # what a nid counts
NO_BLOCK: Final = 0xFFFFFFFF  # EROFS_NULL_ADDR

MAGIC: Final = 0xE0F5E1E2
SUPER_OFFSET: Final = 1024
SUPER: Final = Struct("<IIIBBHQQIIII16s16sIHHHBBIQ4xIQ8x")
"""magic, checksum, compat, block bits, extension slots, root nid, inodes, epoch, nsec, blocks,
metadata's block, xattrs' block, uuid, name, incompat, algorithms, devices, device table's slot, folder
block bits, xattr prefixes: count and start, packed nid, build time, 64-bit root nid."""

COMPAT: Final = 0x1 | 0x2  # SB_CHKSUM, MTIME (inode times are mtimes, not ctimes)
INCOMPAT: Final = 0x4 | 0x8  # CHUNKED_FILE, DEVICE_TABLE

DEVICE_SLOT: Final = Struct("<64sII56x")  # tag, blocks, address in one flat space (unused)
DEVICE_TABLE: Final = SUPER_OFFSET + SUPER.size  # a multiple of the slot's 128 bytes

EXTENDED: Final = 1  # i_format is layout << 1 | version
PLAIN: Final = 0 << 1 | EXTENDED
INLINE: Final = 2 << 1 | EXTENDED
CHUNKED: Final = 4 << 1 | EXTENDED
CHUNK_INDEXES: Final = 0x20  # of i_u: 8-byte indexes rather than 4-byte block numbers

INODE: Final = Struct("<HHHHQIIIIqII16x")
"""format, xattr count, mode, reserved, size, i_u (block, device number or chunk format), ino, uid, gid,
mtime (the kernel reads it as signed), nsec, nlink."""
NLINK_OFFSET: Final = 44

FILE: Final = Struct(INODE.format + "2xHI24x")
"""`INODE`, then the only chunk index of a file that is one run (device, start block), then padding to a
multiple of `SLOT`."""

DIRENT: Final = Struct("<QHBx")  # nid, offset of the name, file type

XATTR_HEADER: Final = 12  # of the xattrs behind an inode; all zero without shared xattrs
XATTR: Final = Struct("<BBH")  # length of the name's rest, prefix, length of the value
XATTR_PREFIXES: Final = {
    1: b"user.",
    2: b"system.posix_acl_access",
    3: b"system.posix_acl_default",
    4: b"trusted.",
    6: b"security.",
}
XATTR_WHOLE: Final = (2, 3)  # prefixes that are whole names

FILE_TYPES: Final[dict[int, int]] = {  # S_IFMT -> FT_*
    stat.S_IFREG: 1,
    stat.S_IFDIR: 2,
    stat.S_IFCHR: 3,
    stat.S_IFBLK: 4,
    stat.S_IFIFO: 5,
    stat.S_IFSOCK: 6,
    stat.S_IFLNK: 7,
}

MAX_NAME: Final = 255  # NAME_MAX
MAX_NSEC: Final = 999_999_999
MAX_TARGET: Final = 4095  # PATH_MAX less the NUL
MAX_ID: Final = 0xFFFFFFFE  # (uid_t) -1 is no id
MAX_XATTR_NAME: Final = 255  # XATTR_NAME_MAX, the prefix included
MAX_XATTR_VALUE: Final = 65_535  # e_value_size
MAX_XATTR_LIST: Final = 65_536  # XATTR_LIST_MAX: names with their NULs, else listxattr(2) is E2BIG
MAX_XATTR_BODY: Final = XATTR_HEADER + 4 * 65_534  # i_xattr_icount
MAX_CHUNK_BITS: Final = 31  # EROFS_CHUNK_FORMAT_BLKBITS_MASK
MAX_CHUNKS: Final = 65_536  # ours: 512 KiB of index for one file
MAX_FILE_SIZE: Final = (1 << 63) - 1  # loff_t
MAX_DEVICE_BLOCKS: Final = NO_BLOCK  # 32 bits; wider ones need Linux 6.15 (INCOMPAT_48BIT)
MAX_DEVICES: Final = 16_000  # ours: the root stands behind their table and its nid has 16 bits


def checksum(block: bytes | bytearray | memoryview) -> int:
    """CRC-32C of the superblock's block from `SUPER_OFFSET` on, its checksum field taken as zero.

    As the kernel's erofs_superblock_csum_verify does it: no final inversion.
    """
    table = _crc_table()
    crc = 0xFFFFFFFF
    for byte in bytes(block[:4]) + bytes(4) + bytes(block[8:]):
        crc = crc >> 8 ^ table[(crc ^ byte) & 0xFF]
    return crc


@cache
def _crc_table() -> tuple[int, ...]:
    """CRC-32C (Castagnoli, reflected) of each byte."""
    table = []
    for byte in range(256):
        crc = byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
        table.append(crc)
    return tuple(table)


def encode_device(rdev: int) -> int:
    """A device number as the kernel's new_encode_dev keeps it: 12 bits of major, 20 of minor.

    Raises `ValueError` for a wider one.
    """
    major, minor = os.major(rdev), os.minor(rdev)
    if rdev < 0 or major >> 12 or minor >> 20:
        raise ValueError(f"device {major}:{minor} needs more than 12 + 20 bits")
    return minor & 0xFF | major << 8 | (minor & ~0xFF) << 12


def decode_device(value: int) -> int:
    """The inverse of `encode_device`: a device number as makedev gives it."""
    return os.makedev(value >> 8 & 0xFFF, value & 0xFF | value >> 12 & 0xFFF00)
