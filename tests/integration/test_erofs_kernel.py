"""The kernel as the judge: what the writer wrote is mounted and compared with the tree, entry by entry,
and the kernel's log must stay free of complaints."""

from __future__ import annotations

import os
import random
import stat
import struct
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from orlop.erofs.reader import open_image
from orlop.erofs.tree import HOLE, Chunks, Node
from orlop.erofs.writer import build
from orlop.errors import InvalidArgument
from orlop.linux.mount import mount_erofs, move_mount, umount
from support.disks import disk

pytestmark = pytest.mark.root

UUID = bytes(range(16))
NOBODY = 0xFFFFFFFF  # an entry of an ACL without an id
ACL = struct.pack("<I", 2) + b"".join(
    struct.pack("<HHI", tag, perm, who)
    for tag, perm, who in [(1, 7, NOBODY), (2, 5, 1234), (4, 5, NOBODY), (16, 5, NOBODY), (32, 0, NOBODY)]
)


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    """A folder on an ext4 (the kernel mounts no EROFS from a file on tmpfs)."""
    with disk() as folder:
        yield folder


@contextmanager
def kernel_log() -> Iterator[list[str]]:
    """What EROFS says at warning level or worse within the block."""
    found: list[str] = []
    log = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK)
    try:
        os.lseek(log, 0, os.SEEK_END)
        yield found
        while True:
            try:
                record = os.read(log, 8192).decode(errors="replace")
            except BlockingIOError:
                break
            if int(record.split(",", 1)[0]) & 7 <= 4 and "erofs" in record:
                found.append(record)
    finally:
        os.close(log)


@contextmanager
def mounted(place: Path, image: bytes | bytearray, devices: list[bytes]) -> Iterator[Path]:
    image_path, target = place / "image", place / "mounted"
    image_path.write_bytes(image)
    paths = []
    for number, data in enumerate(devices):
        paths.append(place / f"device-{number}")
        paths[-1].write_bytes(data)
    target.mkdir(exist_ok=True)
    fd = mount_erofs(image_path, paths)
    try:
        move_mount(fd, target)
    finally:
        os.close(fd)
    try:
        yield target
    finally:
        umount(target)
        for path in (image_path, *paths):
            path.unlink()


def content(node: Node, devices: list[bytes]) -> tuple[bytes, bytes]:
    """A file's bytes as the tree says, and one byte for each of its blocks: data or hole."""
    if node.chunks is None:
        if not node.device:
            return bytes(node.size), b"h" * -(-node.size // 512)
        return devices[node.device - 1][node.offset : node.offset + node.size], b"d" * -(-node.size // 512)
    data, shape, chunk = [], b"", 512 << node.chunks.bits
    for at, start in enumerate(node.chunks.starts):
        length = min(chunk, node.size - at * chunk)
        shape += (b"h" if start == HOLE else b"d") * -(-length // 512)
        data.append(
            bytes(length)
            if start == HOLE
            else devices[node.device - 1][start * 512 : start * 512 + length].ljust(length, b"\0")
        )
    return b"".join(data), shape


def shape_on_disk(fd: int, size: int) -> bytes:
    """The same from SEEK_DATA and SEEK_HOLE."""
    shape = bytearray(b"h" * -(-size // 512))
    at = 0
    while at < size:
        try:
            begin = os.lseek(fd, at, os.SEEK_DATA)
        except OSError:  # ENXIO: no data from here on
            break
        at = os.lseek(fd, begin, os.SEEK_HOLE)
        shape[begin // 512 : -(-at // 512)] = b"d" * (-(-at // 512) - begin // 512)
    return bytes(shape)


def compare(top: Path, root: Node, devices: list[bytes]) -> None:
    """Every entry below ``top`` is one of the tree, and as the tree says."""
    names: dict[int, int] = defaultdict(int)
    inodes: dict[int, int] = {}
    stack = [(os.fsencode(top), root)]
    told = []
    while stack:
        path, node = stack.pop()
        told.append((path, node))
        names[id(node)] += 1
        if node.children is not None:
            assert sorted(os.listdir(path)) == sorted(node.children)
            stack += [(path + b"/" + name, child) for name, child in node.children.items()]
    for path, node in told:
        st = os.lstat(path)
        assert (st.st_mode, st.st_uid, st.st_gid, st.st_rdev) == (node.mode, node.uid, node.gid, node.rdev), (
            path
        )
        assert st.st_mtime_ns == node.mtime * 10**9 + node.nsec, path
        assert inodes.setdefault(st.st_ino, id(node)) == id(node), path
        listed = os.listxattr(path, follow_symlinks=False)
        got = {os.fsencode(name): os.getxattr(path, name, follow_symlinks=False) for name in listed}
        assert got == dict(node.xattrs), path
        if node.children is not None:
            assert st.st_nlink == 2 + sum(child.children is not None for child in node.children.values())
        else:
            assert st.st_nlink == names[id(node)] == node.nlink, path
        if stat.S_ISLNK(node.mode):
            assert os.readlink(path) == node.target
            assert st.st_size == len(node.target)
        elif stat.S_ISREG(node.mode):
            data, shape = content(node, devices)
            assert st.st_size == node.size
            fd = os.open(path, os.O_RDONLY)
            try:
                assert shape_on_disk(fd, node.size) == shape, path
                assert os.pread(fd, node.size + 1, 0) == data, path
            finally:
                os.close(fd)
    assert len(inodes) == len(names)


def judge(place: Path, root: Node, devices: list[bytes]) -> None:
    image = build(root, devices=[len(data) for data in devices], uuid=UUID)
    with kernel_log() as complaints, mounted(place, image, devices) as top:
        compare(top, root, devices)
        with open_image(place / "image") as read:
            paths = {path for path, _ in read.walk()}
        assert len(paths) == 1 + sum(len(d) + len(f) for _, d, f in os.walk(os.fsencode(top)))
    assert not complaints


def random_name(rng: random.Random) -> bytes:
    length = rng.choice([1, 2, 5, 10, 20, rng.randint(1, 255), 255])
    name = bytes(rng.choice(b"!+-.0Aaz~\x01\x7f\x80\xff\xc3\xa9") for _ in range(length))
    return name if name not in {b".", b".."} else b"x"


def random_xattrs(rng: random.Random, node: Node) -> None:
    if rng.random() < 0.7:
        return
    found = {b"trusted.a%d" % rng.randrange(9): rng.randbytes(rng.choice([0, 1, 3, 40, 700]))}
    if rng.random() < 0.3:
        found[b"security.orlop"] = rng.randbytes(20)
    if node.children is not None or stat.S_ISREG(node.mode):
        found[b"user.\xff%s" % (b"n" * rng.randint(0, 249))] = rng.randbytes(rng.randint(0, 100))
        if rng.random() < 0.3:
            found[b"system.posix_acl_access"] = ACL
    if node.children is not None and rng.random() < 0.3:
        found[b"system.posix_acl_default"] = ACL
    node.xattrs = tuple(sorted(found.items()))


def random_leaf(rng: random.Random, devices: list[bytes]) -> Node:
    node = Node(
        rng.randrange(0o10000), rng.choice([0, 1000, 65536, 2**32 - 2]), rng.choice([0, 7, 2**32 - 2])
    )
    node.mtime = rng.choice([0, -1, -(10**9), 2**31, 2**32, 2**34, rng.randint(0, 2**31)])
    node.nsec = rng.choice([0, 1, 999_999_999, rng.randrange(10**9)])
    kind = rng.choice([0o100000] * 5 + [0o120000, 0o120000, 0o20000, 0o60000, 0o10000, 0o140000])
    node.mode |= kind
    if kind == 0o120000:
        node.mode = 0o120777
        node.target = rng.randbytes(rng.choice([1, 9, 60, rng.randint(1, 600), 2000])).replace(b"\0", b"/")
    elif kind in {0o20000, 0o60000}:
        node.rdev = os.makedev(rng.choice([0, 1, 255, 256, 4095]), rng.choice([1, 255, 256, 2**20 - 1]))
    elif kind == 0o100000 and rng.random() < 0.9:
        node.device = rng.randint(0, len(devices))
        node.size = rng.choice([1, 511, 512, 513, rng.randint(1, 3000), rng.randint(1, 60_000)])
        if node.device:
            blocks = len(devices[node.device - 1]) // 512
            node.size = min(node.size, blocks * 512)
            node.offset = 512 * rng.randint(0, blocks - -(-node.size // 512))
            if rng.random() < 0.3:
                bits = rng.randint(0, 4)
                count = -(-node.size // (512 << bits))
                node.chunks = Chunks(
                    bits, [rng.choice([HOLE, rng.randint(0, blocks - (1 << bits))]) for _ in range(count)]
                )
    random_xattrs(rng, node)
    return node


def random_tree(rng: random.Random, entries: int, devices: list[bytes]) -> Node:
    root = Node(0o41777, 3, 4, -5, 6)
    random_xattrs(rng, root)
    folders, leaves = [(root, 0)], []
    for _ in range(entries):
        parent, above = rng.choice(folders[-8:])
        name = random_name(rng)
        below = above + 1 + len(name)
        if name in parent.children or below > 3000:  # type: ignore[operator]  # PATH_MAX, for the test's own calls
            continue
        roll = rng.random()
        if roll < 0.15:
            node = Node(
                0o40000 | rng.randrange(0o10000), rng.randrange(2**32 - 1), 0, rng.randint(-(2**33), 2**33)
            )
            random_xattrs(rng, node)
            folders.append((node, below))
        elif roll < 0.25 and leaves:
            node = rng.choice(leaves)
        else:
            node = random_leaf(rng, devices)
            leaves.append(node)
        parent.children[name] = node  # type: ignore[index]
    return root


@pytest.mark.parametrize("seed", range(12))
def test_the_kernel_shows_the_tree_that_was_written(place: Path, seed: int) -> None:
    rng = random.Random(seed)
    devices = [rng.randbytes(rng.randint(40, 400) * 512) for _ in range(rng.choice([1, 2, 5]))]
    judge(place, random_tree(rng, rng.choice([0, 3, 40, 400, 1500]), devices), devices)


def test_folders_of_every_size_around_a_block(place: Path) -> None:
    root = Node(0o40755)
    for size in range(20, 1100):
        root.children[b"%d" % size] = below = Node(0o40755)  # type: ignore[index]
        if size % 3 == 0:
            below.xattrs = ((b"user.x", bytes(size % 50)),)
        left = size
        while left > 0:
            length = min(left, 255 if size % 2 else 17)
            below.children[b"%s%d" % (b"+." * (size % 5 == 0), left) + b"n" * (length - 6)] = Node(0o100644)  # type: ignore[index]
            left -= length
    judge(place, root, [])


def test_symlinks_of_every_length_at_every_alignment(place: Path) -> None:
    root = Node(0o40755)
    for length in [*range(1, 700), *range(1000, 1060), 2047, 2048, 4094, 4095]:
        root.children[b"%d" % length] = link = Node(0o120777)  # type: ignore[index]
        link.target = b"t" * length
        if length % 3 == 0:
            link.xattrs = ((b"trusted.x", bytes(length % 61)),)
    judge(place, root, [])


def test_large_xattrs(place: Path) -> None:
    root = Node(0o40755)
    big = tuple(
        (b"trusted.%d" % n, bytes([n]) * size) for n, size in enumerate([65_535, 65_533, 65_000, 60_000])
    )
    for n in range(5):
        root.children[b"%d" % n] = node = Node(0o100644, size=700 * n, device=1 if n else 0)  # type: ignore[index]
        node.xattrs = big[:n]
    root.xattrs = big
    root.children[b"d"] = Node(0o40755)  # type: ignore[index]
    root.children[b"d"].xattrs = big  # type: ignore[index]
    judge(place, root, [random.Random(0).randbytes(4096)])


def test_times_at_both_ends(place: Path) -> None:
    root = Node(0o40755)
    for n, mtime in enumerate([-(2**63), -(2**40), -1, 0, 2**40, 2**63 - 1]):
        root.children[b"%d" % n] = Node(0o100644, mtime=mtime, nsec=999_999_999)  # type: ignore[index]
    judge(place, root, [])


def test_a_last_block_that_is_not_whole_cannot_be_pointed_at(place: Path) -> None:
    device = random.Random(0).randbytes(1224)
    root = Node(0o40755)
    root.children = {b"f": Node(0o100644, size=512, device=1, offset=512)}
    judge(place, root, [device])
    root.children[b"g"] = Node(0o100644, size=100, device=1, offset=1024)  # reads would be EIO
    with pytest.raises(InvalidArgument, match="whole blocks"):
        build(root, devices=[len(device)], uuid=UUID)


def test_hundreds_of_devices(place: Path) -> None:
    devices = [b"%04d" % n * 128 for n in range(400)]
    root = Node(0o40755)
    root.children = {b"%d" % n: Node(0o100644, size=512, device=n + 1) for n in range(400)}
    judge(place, root, devices)


def test_holes_of_terabytes(place: Path) -> None:
    root = Node(0o40755)
    sizes = [1 << 40, (1 << 40) + 1, (3 << 40) + 5, 1 << 50]
    root.children = {b"%d" % size: Node(0o100644, size=size) for size in sizes}
    with kernel_log() as complaints, mounted(place, build(root, devices=[], uuid=UUID), []) as top:
        for size in sizes:
            fd = os.open(top / str(size), os.O_RDONLY)
            try:
                assert os.fstat(fd).st_size == size
                assert os.pread(fd, 10, size - 3) == bytes(3)
                assert os.lseek(fd, 0, os.SEEK_HOLE) == 0
                with pytest.raises(OSError, match="No such device or address"):
                    os.lseek(fd, 0, os.SEEK_DATA)
            finally:
                os.close(fd)
    assert not complaints


def test_a_folder_of_200_000(place: Path) -> None:
    root = Node(0o40755)
    big = Node(0o40755)
    root.children = {b"big": big}
    big.children = {b"entry-%d" % n: Node(0o100600, n, size=n) for n in range(200_000)}
    with kernel_log() as complaints, mounted(place, build(root, devices=[], uuid=UUID), []) as top:
        assert set(os.listdir(os.fsencode(top / "big"))) == big.children.keys()
        for n in range(0, 200_000, 501):
            st = os.lstat(top / "big" / f"entry-{n}")
            assert (st.st_uid, st.st_size) == (n, n)
        assert not (top / "big" / "entry-200000").exists()
    assert not complaints


def test_4_000_folders_below_one_another(place: Path) -> None:
    root = last = Node(0o40755)
    for n in range(4_000):
        below = Node(0o40755, n)
        last.children = {b"d" * 255: below}
        last = below
    with kernel_log() as complaints, mounted(place, build(root, devices=[], uuid=UUID), []) as top:
        fd = os.open(top, os.O_RDONLY | os.O_DIRECTORY)
        for n in range(4_000):
            below_fd = os.open(b"d" * 255, os.O_RDONLY | os.O_DIRECTORY, dir_fd=fd)
            above = os.stat("..", dir_fd=below_fd)
            assert (os.fstat(below_fd).st_uid, above.st_ino) == (n, os.fstat(fd).st_ino)
            os.close(fd)
            fd = below_fd
        assert os.listdir(fd) == []
        os.close(fd)
    assert not complaints


def test_the_kernel_refuses_a_torn_superblock(place: Path) -> None:
    image = build(Node(0o40755), devices=[], uuid=UUID)
    image[1024 + 48] ^= 1
    with pytest.raises(Exception, match=r"(?i)message|checksum|bad"), mounted(place, image, []):
        pass
    (place / "image").unlink()
