"""The writer, by its bytes: limits, order, sharing.  What the kernel makes of them is judged in
tests/integration/test_erofs_kernel.py; that they mean the tree, in test_erofs_reader.py."""

from __future__ import annotations

import os
import random
import stat
import struct

import pytest

from orlop.erofs.reader import Image
from orlop.erofs.tree import HOLE, Chunks, Node
from orlop.erofs.writer import build
from orlop.errors import InvalidArgument, ResourceExhausted

UUID = bytes(range(16))


def folder(**children: Node) -> Node:
    node = Node(0o40755)
    node.children = {name.encode(): child for name, child in children.items()}
    return node


def regular(size: int = 0, device: int = 0, offset: int = 0, **fields: object) -> Node:
    node = Node(0o100644, size=size, device=device, offset=offset)
    for name, value in fields.items():
        setattr(node, name, value)
    return node


def symlink(target: bytes) -> Node:
    node = Node(0o120777)
    node.target = target
    return node


def special(mode: int, rdev: int = 0) -> Node:
    node = Node(mode)
    node.rdev = rdev
    return node


def made(root: Node, *devices: int) -> Image:
    return Image(build(root, devices=devices, uuid=UUID))


def test_the_superblock_says_what_the_kernel_wants_to_know() -> None:
    image = build(folder(a=regular(1, 2, 512)), devices=[1025, 5000], uuid=UUID)
    magic, _, compat, bits = struct.unpack_from("<IIIB", image, 1024)
    assert (magic, compat, bits) == (0xE0F5E1E2, 3, 9)
    assert image[1024 + 48 : 1024 + 64] == UUID
    assert struct.unpack_from("<I", image, 1024 + 36) == (len(image) // 512,)
    assert len(image) % 512 == 0
    assert struct.unpack_from("<I", image, 1024 + 80) == (0xC,)
    assert struct.unpack_from("<HH", image, 1024 + 86) == (2, 9)
    assert [struct.unpack_from("<I", image, 1152 + 128 * n + 64)[0] for n in range(2)] == [2, 9]
    assert struct.unpack_from("<Q", image, 1024 + 16) == (2,)


def test_the_order_in_which_a_tree_was_made_does_not_show() -> None:
    def tree(seed: int) -> Node:
        names = [b"%d" % n for n in range(300)]
        random.Random(seed).shuffle(names)
        root = Node(0o40755)
        for name in names:
            child = regular(int(name), 1, int(name) * 512)
            if int(name) % 7 == 0:
                child = folder(x=symlink(name), y=folder())
            root.children[name] = child  # type: ignore[index]
        return root

    assert build(tree(1), devices=[1 << 20], uuid=UUID) == build(tree(2), devices=[1 << 20], uuid=UUID)


def test_the_order_of_xattrs_does_not_show() -> None:
    pairs = ((b"user.b", b"1"), (b"trusted.a", b"2"), (b"security.c", b"3"))
    images = [
        build(folder(f=regular(xattrs=order)), devices=[], uuid=UUID)
        for order in (pairs, tuple(reversed(pairs)))
    ]
    assert images[0] == images[1]


def test_building_twice_gives_the_same_bytes() -> None:
    shared = regular(3, 1, 0)
    root = folder(a=shared, b=folder(c=shared, d=shared))
    first = build(root, devices=[512], uuid=UUID)
    assert build(root, devices=[512], uuid=UUID) == first
    assert shared.nlink == 3


def test_a_node_under_several_names_is_one_inode_with_their_count() -> None:
    shared = {
        b"file": regular(3, 1, 0),
        b"empty": regular(),
        b"link": symlink(b"x"),
        b"fifo": special(0o10600),
        b"char": special(0o20600, os.makedev(1, 3)),
        b"sock": special(0o140600),
        b"attr": regular(3, 1, 0, xattrs=((b"user.a", b"b"),)),
    }
    root = folder(one=folder(), two=folder())
    for sub in (root, *root.children.values()):  # type: ignore[union-attr]
        sub.children.update(shared)  # type: ignore[union-attr]
    image = made(root, 512)
    for name in shared:
        inodes = {image.lookup(prefix + name) for prefix in (b"", b"one/", b"two/")}
        assert [inode.nlink for inode in inodes if inode] == [3], name
    assert image.inodes == 3 + len(shared)
    assert image.lookup(b"").nlink == 4  # type: ignore[union-attr]


def test_a_folder_in_the_tree_twice_is_refused() -> None:
    twice = folder()
    with pytest.raises(InvalidArgument, match="twice"):
        build(folder(a=twice, b=folder(c=twice)), devices=[], uuid=UUID)


def test_a_folder_within_itself_is_refused() -> None:
    root = folder(a=folder())
    root.children[b"a"].children[b"b"] = root  # type: ignore[index]
    with pytest.raises(InvalidArgument, match="twice"):
        build(root, devices=[], uuid=UUID)


def test_thousands_of_folders_below_one_another_do_not_recurse() -> None:
    root = last = Node(0o40755)
    for _ in range(20_000):
        below = Node(0o40755)
        last.children = {b"d": below}
        last = below
    image = made(root)
    assert image.inodes == 20_001
    assert image.lookup(b"d/" * 20_000) is not None


def test_the_nid_of_the_root_fits_16_bits_whatever_stands_before_it() -> None:
    root = folder(a=regular())
    root.xattrs = tuple((b"user.%d" % n, bytes(65_000)) for n in range(4))
    image = made(root, *[512] * 16_000)
    assert image.root < 1 << 16
    assert len(image.xattrs(image.inode(image.root))) == 4


def test_inline_data_never_cross_a_block_and_blocks_are_aligned() -> None:
    root = Node(0o40755)
    for n in range(1, 700):
        root.children[b"%d" % n] = link = symlink(b"t" * n)  # type: ignore[index]
        link.xattrs = ((b"user.x", bytes(n % 37)),)
        root.children[b"d%d" % n] = below = Node(0o40755)  # type: ignore[index]
        below.children = {b"n" * (n % 255 + 1): regular(), b"m%d" % n: regular()}
    image = made(root)
    for path, inode in image.walk():
        if inode.layout >> 1 == 2:
            at = inode.nid * 32 + 64 + inode.xattr_size
            assert at // 512 == (at + inode.size - 1) // 512, path
        if stat.S_ISLNK(inode.mode):
            assert image.target(inode) == b"t" * int(path)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (b"", "name"),
        (b".", "name"),
        (b"..", "name"),
        (b"a/b", "name"),
        (b"a\0b", "name"),
        (b"n" * 256, "255 bytes"),
    ],
)
def test_a_name_that_cannot_be_one_is_refused(name: bytes, said: str) -> None:
    root = folder(other=regular(), x=regular())
    root.children[name] = regular()  # type: ignore[index]
    with pytest.raises(InvalidArgument, match=said):
        build(root, devices=[], uuid=UUID)


def node(mode: int = 0o100644, **fields: object) -> Node:
    made_node = Node(mode)
    for name, value in fields.items():
        setattr(made_node, name, value)
    return made_node


IN_DEVICE = {"size": 600, "device": 1, "offset": 512}


@pytest.mark.parametrize(
    "bad",
    [
        node(0),
        node(0o644),
        node(0o50644),
        node(0o40755, children=None),
        node(0o100644, children={}),
        node(0x1_81A4),
        node(uid=-1),
        node(uid=0xFFFFFFFF),
        node(gid=0xFFFFFFFF),
        node(gid=1 << 32),
        node(nsec=-1),
        node(nsec=10**9),
        node(mtime=1 << 63),
        node(mtime=-(1 << 63) - 1),
        node(**IN_DEVICE, uid=-1),
        node(**IN_DEVICE, uid=0xFFFFFFFF),
        node(**IN_DEVICE, gid=0xFFFFFFFF),
        node(**IN_DEVICE, nsec=10**9),
        node(**IN_DEVICE, nsec=-1),
        node(**IN_DEVICE, mtime=1 << 63),
        node(0x1_81A4, **IN_DEVICE),
        node(size=-1),
        node(size=-1, device=1),
        node(size=1 << 63),
        node(size=1, device=1, offset=1),
        node(size=1, device=1, offset=-512),
        node(size=1025, device=1, offset=512),
        node(size=1, device=1, offset=1536),
        node(size=1, device=3, offset=0),
        node(size=1, device=4, offset=0),
        node(size=1, device=-1, offset=0),
        node(size=1, device=70_000, offset=0),
        node(size=1, device=4, offset=0, xattrs=((b"user.a", b""),)),
        node(size=1, device=1, offset=1, xattrs=((b"user.a", b""),)),
        node(size=1025, device=1, offset=512, xattrs=((b"user.a", b""),)),
        node(size=512, device=1, chunks=Chunks(0, [3])),
        node(size=1024, device=1, chunks=Chunks(0, [2, 3])),
        node(size=1024, device=1, chunks=Chunks(0, [3, 2])),
        node(size=1024, device=1, chunks=Chunks(1, [2])),
        node(size=512, device=1, chunks=Chunks(0, [-1])),
        node(size=512, device=0, chunks=Chunks(0, [0])),
        node(size=512, device=1, chunks=Chunks(0, [])),
        node(size=512, device=1, chunks=Chunks(0, [0, 1])),
        node(size=512, device=1, chunks=Chunks(-1, [0])),
        node(size=512, device=1, chunks=Chunks(32, [0])),
        node(0o20600, rdev=1 << 63),
        node(0o20600, rdev=os.makedev(1 << 12, 0)),
        node(0o60600, rdev=os.makedev(0, 1 << 20)),
        node(0o120777, target=b""),
        node(0o120777, target=b"a\0b"),
        node(0o120777, target=b"t" * 4096),
        node(xattrs=((b"user.", b"x"),)),
        node(xattrs=((b"user.a\0", b"x"),)),
        node(xattrs=((b"system.other", b"x"),)),
        node(xattrs=((b"system.posix_acl_accessx", b"x"),)),
        node(xattrs=((b"btrfs.compression", b"x"),)),
        node(xattrs=((b"user." + b"n" * 251, b"x"),)),
        node(xattrs=((b"user.a", b"x"), (b"user.a", b"y"))),
    ],
    ids=lambda bad: f"{bad.mode:o}-{bad.uid}-{bad.gid}-{bad.mtime}-{bad.nsec}-{bad.size}-{bad.device}",
)
def test_what_the_format_cannot_hold_is_refused(bad: Node) -> None:
    with pytest.raises(InvalidArgument) as caught:
        build(folder(fine=regular(600, 1, 512), the_bad=bad), devices=[1536 + 511, 512, 511], uuid=UUID)
    assert "the_bad" in str(caught.value)


@pytest.mark.parametrize(
    "bad",
    [
        node(xattrs=((b"user.a", bytes(65_536)),)),
        node(xattrs=tuple((b"user.%d" % n, bytes(65_535)) for n in range(5))),
        node(xattrs=tuple((b"user.%0200d" % n, b"") for n in range(400))),
        node(size=65_537 * 512, chunks=Chunks(0, [HOLE] * 65_537)),
        node(size=1 << 60),
    ],
)
def test_a_limit_is_named(bad: Node) -> None:
    with pytest.raises(ResourceExhausted) as caught:
        build(folder(the_bad=bad), devices=[], uuid=UUID)
    assert "limit" in str(caught.value)


@pytest.mark.parametrize("devices", [[512 << 32], [1] * 16_001, [-1000]])
def test_devices_have_limits(devices: list[int]) -> None:
    with pytest.raises(ResourceExhausted):
        build(folder(), devices=devices, uuid=UUID)


def test_a_uuid_has_16_bytes() -> None:
    with pytest.raises(InvalidArgument):
        build(folder(), devices=[], uuid=b"short")


def test_the_root_is_a_folder() -> None:
    with pytest.raises(InvalidArgument):
        build(regular(), devices=[], uuid=UUID)


def test_a_common_entry_takes_little_room() -> None:
    root = Node(0o40755)
    for n in range(10_000):
        root.children[b"module-%d.js" % n] = regular(1000, 1, n * 1024)  # type: ignore[index]
    assert len(build(root, devices=[10_240_000], uuid=UUID)) < 10_000 * 130
