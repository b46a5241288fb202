"""The reader: what was written comes back, and bytes that were not written are refused, never believed."""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orlop.erofs import format as fmt
from orlop.erofs.reader import Extent, Image, open_image
from orlop.erofs.tree import HOLE, Chunks, Node
from orlop.erofs.writer import build
from orlop.errors import DataLoss, InvalidArgument, NotFound

UUID = bytes(range(16))
DEVICES = (1 << 20, 3000)

names = st.one_of(
    st.binary(min_size=1, max_size=12),
    st.binary(min_size=200, max_size=255),
    st.sampled_from([b"!", b".+", b"a"]),
).filter(lambda name: name not in {b".", b".."} and b"/" not in name and b"\0" not in name)
xattr_names = st.one_of(
    st.sampled_from([b"system.posix_acl_access", b"system.posix_acl_default", b"security.capability"]),
    st.builds(
        bytes.__add__,
        st.sampled_from([b"user.", b"trusted.", b"security."]),
        st.binary(min_size=1, max_size=20).filter(lambda rest: b"\0" not in rest),
    ),
)
xattr_lists = st.one_of(
    st.just(()),
    st.dictionaries(xattr_names, st.binary(max_size=600), max_size=4).map(lambda d: tuple(sorted(d.items()))),
)


@st.composite
def leaves(draw: st.DrawFn) -> Node:
    kind = draw(st.sampled_from(sorted(fmt.FILE_TYPES)))
    node = Node(
        (kind if kind != stat.S_IFDIR else stat.S_IFREG) | draw(st.integers(0, 0o7777)),
        draw(st.integers(0, fmt.MAX_ID)),
        draw(st.integers(0, fmt.MAX_ID)),
        draw(st.integers(-(1 << 63), (1 << 63) - 1)),
        draw(st.integers(0, fmt.MAX_NSEC)),
    )
    node.xattrs = draw(xattr_lists)
    if stat.S_ISLNK(node.mode):
        node.target = draw(st.binary(min_size=1, max_size=1300).filter(lambda target: b"\0" not in target))
    elif kind in {stat.S_IFCHR, stat.S_IFBLK}:
        node.rdev = os.makedev(draw(st.integers(0, 4095)), draw(st.integers(0, (1 << 20) - 1)))
    elif stat.S_ISREG(node.mode):
        node.size = draw(st.integers(0, 5000))
        node.device = draw(st.integers(0, 1))
        node.offset = 512 * draw(st.integers(0, 1000)) if node.device else 0
        if draw(st.booleans()) and node.size and node.device:
            bits = draw(st.integers(0, 3))
            count = -(-node.size // (512 << bits))
            starts = st.one_of(st.just(HOLE), st.integers(0, 1000))
            node.chunks = Chunks(bits, draw(st.lists(starts, min_size=count, max_size=count)))
    return node


@st.composite
def trees(draw: st.DrawFn) -> Node:
    root = Node(0o40755)
    root.xattrs = draw(xattr_lists)
    folders = [root]
    linkable: list[Node] = []
    for name in draw(st.lists(names, max_size=40)):
        place = draw(st.sampled_from(folders))
        what = draw(st.integers(0, 9))
        if what < 3:
            node = Node(0o40700 | draw(st.integers(0, 0o77)), mtime=draw(st.integers(-(10**9), 10**9)))
            node.xattrs = draw(xattr_lists)
            if name not in place.children:  # type: ignore[operator]
                folders.append(node)
        elif what == 9 and linkable:
            node = draw(st.sampled_from(linkable))
        else:
            node = draw(leaves())
            linkable.append(node)
        place.children.setdefault(name, node)  # type: ignore[union-attr]
    return root


def flat(root: Node) -> Iterator[tuple[bytes, Node]]:
    """Every path with its node, as the tree itself tells."""
    stack = [(b"", root)]
    while stack:
        path, node = stack.pop()
        yield path, node
        for name, child in (node.children or {}).items():
            stack.append((path + b"/" + name if path else name, child))


def expected_extents(node: Node) -> list[tuple[int, int, int]]:
    """Where each block of a file is: device, offset, length."""
    found = []
    for at in range(0, node.size, 512):
        length = min(512, node.size - at)
        if node.chunks is not None:
            chunk = 512 << node.chunks.bits
            start = node.chunks.starts[at // chunk]
            found.append((0, 0, length) if start == HOLE else (node.device, start * 512 + at % chunk, length))
        else:
            found.append((node.device, node.offset + at, length) if node.device else (0, 0, length))
    return found


def blocks_of(extents: list[Extent]) -> list[tuple[int, int, int]]:
    return [
        (extent.device, extent.offset + at if extent.device else 0, min(512, extent.length - at))
        for extent in extents
        for at in range(0, extent.length, 512)
    ]


@settings(max_examples=100, deadline=None)
@given(trees())
def test_a_tree_comes_back_as_it_was_written(root: Node) -> None:
    image = Image(build(root, devices=DEVICES, uuid=UUID))
    assert image.uuid == UUID
    assert image.devices == (2048, 5)
    told = dict(flat(root))
    walked = dict(image.walk())
    assert walked.keys() == told.keys()
    nids: dict[int, int] = {}
    for path, node in told.items():
        inode = image.lookup(path)
        assert inode == walked[path] == image.lookup(b"/" + path)
        assert (inode.mode, inode.uid, inode.gid) == (node.mode, node.uid, node.gid)
        assert (inode.mtime, inode.nsec, inode.rdev) == (node.mtime, node.nsec, node.rdev)
        assert image.xattrs(inode) == node.xattrs
        assert nids.setdefault(id(node), inode.nid) == inode.nid == node.nid
        if node.children is not None:
            assert [entry[0] for entry in image.entries(inode)] == sorted(node.children)
            assert inode.nlink == 2 + sum(child.children is not None for child in node.children.values())
        else:
            assert inode.nlink == sum(other is node for other in told.values())
        if stat.S_ISLNK(node.mode):
            assert image.target(inode) == node.target
        if stat.S_ISREG(node.mode):
            assert inode.size == node.size
            assert blocks_of(image.extents(inode)) == expected_extents(node)
    assert len(set(nids.values())) == len(nids) == image.inodes
    assert len({inode.ino for inode in walked.values()}) == image.inodes


def read_everything(image: Image) -> None:
    for path, inode in image.walk():
        image.xattrs(inode)
        image.lookup(path)
        if stat.S_ISLNK(inode.mode):
            image.target(inode)
        elif stat.S_ISREG(inode.mode):
            image.extents(inode)
        elif inode.is_folder:
            list(image.entries(inode))


@settings(max_examples=200, deadline=None)
@given(trees(), st.data())
def test_damage_is_an_error_or_another_tree_never_a_crash(root: Node, data: st.DataObject) -> None:
    image = build(root, devices=DEVICES, uuid=UUID)
    for _ in range(data.draw(st.integers(1, 8))):
        at = data.draw(st.integers(1024, len(image) - 1))
        image[at] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):  # as if the damage were behind the superblock's checksum
        struct.pack_into("<I", image, 1028, fmt.checksum(image[1024:1536]))
    with suppress(DataLoss):  # and nothing else
        read_everything(Image(image))


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=3000))
def test_no_image_is_refused(data: bytes) -> None:
    with pytest.raises(DataLoss):
        Image(data)


def sample() -> tuple[Node, bytearray]:
    root = Node(0o40755)
    root.children = {b"f%03d" % n: Node(0o100644, size=10, device=1, offset=512) for n in range(200)}
    link = root.children[b"link"] = Node(0o120777)
    link.target = b"f000"
    sub = root.children[b"sub"] = Node(0o40755)
    sub.children = {b"x": Node(0o100644)}
    return root, build(root, devices=DEVICES, uuid=UUID)


@pytest.mark.parametrize("bit", range(0, 512 * 8, 37))
def test_a_flipped_bit_in_the_superblock_is_noticed(bit: int) -> None:
    _, image = sample()
    image[1024 + bit // 8] ^= 1 << bit % 8
    with pytest.raises(DataLoss):
        Image(image)


def test_a_cut_off_image_is_noticed() -> None:
    _, image = sample()
    for size in (0, 1, 1024, 1535, 1536, len(image) - 512, len(image) - 1):
        with pytest.raises(DataLoss):
            Image(image[:size])


@pytest.mark.parametrize(
    ("place", "value", "said"),
    [
        ("format", 4, "format"),  # compact
        ("format", 3, "format"),  # compressed
        ("mode", 0o644, "mode"),
        ("size", 1 << 63, "bytes"),
        ("size", 1 << 62, "past its end"),
        ("nsec", 10**9, "ns"),
        ("i_u", 0x60, "chunks of format"),
        ("xattrs", 65_535, "past its end"),
        ("device", 3, "device 3"),
        ("device", 0, "device 0"),
        ("start", 2048, "block 2048"),
    ],
)
def test_an_inode_that_does_not_add_up_is_refused(place: str, value: int, said: str) -> None:
    root, image = sample()
    offset, form = {
        "format": (0, "<H"), "xattrs": (2, "<H"), "mode": (4, "<H"), "size": (8, "<Q"), "i_u": (16, "<I"),
        "nsec": (40, "<I"), "device": (66, "<H"), "start": (68, "<I"),
    }[place]  # fmt: skip
    struct.pack_into(form, image, root.children[b"f100"].nid * 32 + offset, value)  # type: ignore[index]
    with pytest.raises(DataLoss, match=said):
        read_everything(Image(image))


def test_folders_that_are_no_tree_end_the_walk() -> None:
    root, image = sample()
    sub = root.children[b"sub"]  # type: ignore[index]
    at = sub.nid * 32 + 64  # ".", "..", "x"
    struct.pack_into("<QHB", image, at + 24, root.nid, 36 + 3, 2)
    with pytest.raises(DataLoss, match="twice"):
        list(Image(image).walk())


@pytest.mark.parametrize(("slot", "said"), [(0, "says that it is"), (1, "the parent of")])
def test_dots_that_lie_are_refused(slot: int, said: str) -> None:
    root, image = sample()
    at = root.children[b"sub"].nid * 32 + 64 + 12 * slot  # type: ignore[index]
    struct.pack_into("<Q", image, at, 77)
    with pytest.raises(DataLoss, match=said):
        list(Image(image).walk())


@pytest.mark.parametrize("offset", [0, 12, 35, 65_535])
def test_a_name_that_is_not_where_names_are_is_refused(offset: int) -> None:
    root, image = sample()
    at = root.children[b"sub"].nid * 32 + 64 + 12 + 8  # of ".."  # type: ignore[index]
    assert struct.unpack_from("<H", image, at) == (37,)
    struct.pack_into("<H", image, at, offset)
    with pytest.raises(DataLoss, match=r"no list|has a name at|has the name"):
        list(Image(image).walk())


@pytest.mark.parametrize("path", [b"sub", b"link"])
def test_inline_data_across_a_block_are_refused(path: bytes) -> None:
    root, image = sample()
    struct.pack_into("<Q", image, root.children[path].nid * 32 + 8, 512)  # type: ignore[index]
    with pytest.raises(DataLoss, match="cross a block"):
        read_everything(Image(image))


def test_names_out_of_order_are_refused() -> None:
    _, image = sample()
    at = image.index(b"f100f101")
    image[at : at + 4] = b"f999"
    with pytest.raises(DataLoss, match="f101"):
        list(Image(image).walk())


def test_an_entry_whose_type_is_not_its_inodes_is_refused() -> None:
    root, image = sample()
    image[root.children[b"sub"].nid * 32 + 64 + 24 + 10] = 2  # type: ignore[index]
    with pytest.raises(DataLoss, match="type"):
        list(Image(image).walk())
    with pytest.raises(DataLoss, match="type"):
        Image(image).lookup(b"sub/x")


@pytest.mark.parametrize(
    "path",
    [b"g", b"f", b"f0000", b"f200", b"\xff", b"sub/y", b"sub/x/y", b"link/x", b"..", b"sub/..", b"f000/.."],
)
def test_a_path_that_is_not_there_gives_none(path: bytes) -> None:
    assert Image(sample()[1]).lookup(path) is None


@pytest.mark.parametrize("path", [b"", b".", b"/", b"./", b"//."])
def test_the_root_has_several_spellings(path: bytes) -> None:
    image = Image(sample()[1])
    assert image.lookup(path) == image.inode(image.root)


def test_a_lookup_does_not_follow_symlinks() -> None:
    inode = Image(sample()[1]).lookup(b"link")
    assert inode is not None
    assert stat.S_ISLNK(inode.mode)


def test_what_does_not_have_it_is_not_asked_for_it() -> None:
    image = Image(sample()[1])
    file, link = image.lookup(b"f000"), image.lookup(b"link")
    assert file
    assert link
    for call in (
        lambda: image.target(file),
        lambda: image.extents(link),
        lambda: list(image.entries(file)),
        lambda: image.child(file, b"x"),
    ):
        with pytest.raises(InvalidArgument):
            call()


def test_a_lookup_in_a_huge_folder_reads_a_few_blocks() -> None:
    root = Node(0o40755)
    root.children = {b"%06d" % n: Node(0o100644) for n in range(100_000)}
    image = build(root, devices=[], uuid=UUID)
    wanted = range(0, 100_000, 997)
    reads = 0

    class Counting(Image):
        def _bytes(self, offset: int, length: int) -> bytes:
            nonlocal reads
            reads += 1
            return super()._bytes(offset, length)

    reader = Counting(image)
    for n in wanted:
        assert reader.lookup(b"%06d" % n) is not None
    assert reads / len(wanted) < 18  # log2 of 3,600 blocks, and the inodes


def test_neighbouring_chunks_are_one_extent() -> None:
    root = Node(0o40755)
    file = Node(0o100644, size=3000, device=1)
    file.chunks = Chunks(0, [4, 5, HOLE, HOLE, 0, 1])
    root.children = {b"f": file}
    image = Image(build(root, devices=DEVICES, uuid=UUID))
    inode = image.lookup(b"f")
    assert inode
    assert image.extents(inode) == [
        Extent(device=1, offset=2048, length=1024),
        Extent(device=0, offset=0, length=1024),
        Extent(device=1, offset=0, length=952),
    ]


def test_a_file_past_what_one_index_covers_has_several() -> None:
    root = Node(0o40755)
    size = (3 << 40) + 5
    root.children = {b"hole": Node(0o100644, size=size)}
    image = Image(build(root, devices=[], uuid=UUID))
    inode = image.lookup(b"hole")
    assert inode
    assert image.extents(inode) == [Extent(device=0, offset=0, length=size)]


def test_an_image_file_is_mapped_and_let_go(tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(sample()[1])
    with open_image(path) as image:
        assert image.lookup(b"sub/x") is not None
    image.close()
    with pytest.raises(ValueError, match="released"):
        image.lookup(b"sub")


def test_a_file_that_is_not_there_or_empty_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        open_image(tmp_path / "none")
    (tmp_path / "empty").touch()
    with pytest.raises(DataLoss):
        open_image(tmp_path / "empty")
