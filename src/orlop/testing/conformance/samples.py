"""Layers that several checks start from."""

from __future__ import annotations

from orlop.testing.layers import SECOND, Layer

__all__ = ["CAPABILITY", "FILE", "house", "plain"]

# struct vfs_cap_data, version 2: cap_net_bind_service, effective (include/uapi/linux/capability.h)
CAPABILITY = bytes.fromhex("0100000200040000000000000000000000000000")
FILE = b"alpha\n" * 100


def plain() -> Layer:
    """A small tree of files and folders that every mode can show."""
    base = Layer().folder("./", mtime_ns=7 * SECOND)
    base.folder("d", mtime_ns=5 * SECOND).file("d/a", FILE).file("d/b", b"bravo").symlink("d/l", "a")
    base.folder("d/s").file("d/s/x", b"x" * 3000).folder("d/s/t").file("d/s/t/y", b"y")
    return base.folder("e").file("e/f", b"foxtrot", mode=0o640).file("top", b"top")


def house() -> Layer:
    """A tree with one of everything."""
    base = Layer().folder("./", mode=0o751, mtime_ns=7 * SECOND + 8)
    base.folder("d", mode=0o1750, uid=7, gid=8, mtime_ns=5 * SECOND, xattrs={"user.on": b"a folder"})
    base.file("d/a", FILE, uid=7, gid=8, xattrs={"user.x": b"y", "trusted.t": b"u"})
    base.file("d/b", b"bravo", mode=0o600).hardlink("d/c", "d/b").hardlink("twin", "d/b")
    base.folder("d/s", mode=0o700).file("d/s/x", b"x" * 3000, mtime_ns=6 * SECOND + 123)
    base.symlink("link", "d/a", uid=7, gid=9).symlink("dangling", "nowhere/at all")
    base.fifo("pipe", mode=0o620, gid=5).device("null", "char", 1, 3, mode=0o666)
    base.device("disk", "block", 259, 70000, mode=0o660, gid=6)
    base.file("su", b"#!", mode=0o4755).file("none", b"", mode=0o000, mtime_ns=-3 * SECOND)
    return base.file("cap", b"#!", mode=0o755, xattrs={"security.capability": CAPABILITY})
