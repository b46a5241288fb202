"""The tar writer: what it writes reads back the same, here, in `tarfile` and in GNU tar."""

from __future__ import annotations

import hashlib
import io
import os
import stat
import subprocess
import tarfile
import threading
from collections.abc import Iterable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orlop.errors import DataLoss
from orlop.layers.builder import IndexBuilder
from orlop.layers.hashing import LARGE, SideHash
from orlop.layers.index import BLOCK, LayerIndex
from orlop.layers.tarread import TarReader
from orlop.layers.tarwrite import BATCH, Member, TarWriter, WrittenTar

FILE, FOLDER = stat.S_IFREG, stat.S_IFDIR


def data_of(member: Member) -> bytes:
    return bytes(number % 251 for number in range(member.size))


def write(members: Iterable[Member]) -> tuple[bytes, WrittenTar]:
    fd = os.memfd_create("tar")
    try:
        writer = TarWriter(fd)
        for member in members:
            parts = [data_of(member)[at : at + 1000] for at in range(0, member.size, 1000)]
            writer.add(member, lambda parts=parts: parts.pop(0) if parts else b"")  # type: ignore[misc]
        written = writer.finish()
        return os.pread(fd, os.fstat(fd).st_size, 0), written
    finally:
        os.close(fd)


def read_index(data: bytes) -> LayerIndex:
    builder = IndexBuilder()
    reader = TarReader([data])
    for entry in reader:
        builder.add(entry)
    return builder.finish(reader.size)


# ------------------------------------------------------------------ any member

PARTS = st.one_of(st.binary(min_size=1, max_size=20), st.binary(min_size=90, max_size=150))
NAMES = st.lists(
    PARTS.map(lambda part: b"-" + part.replace(b"\0", b"0").replace(b"/", b"|")), min_size=1, max_size=4
).map(b"/".join)
XATTRS = st.dictionaries(
    st.binary(min_size=1, max_size=20).map(lambda name: b"user." + name.replace(b"\0", b"0")),
    st.binary(max_size=300),
    max_size=3,
).map(lambda found: tuple(sorted(found.items())))
IDS = st.one_of(st.integers(0, 9), st.integers(0, 2**32 - 2))


@st.composite
def members(draw: st.DrawFn) -> Member:
    kind = draw(st.sampled_from([FILE, FILE, FOLDER, stat.S_IFLNK, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO]))
    return Member(
        path=draw(NAMES),
        mode=kind | draw(st.integers(0, 0o7777)),
        uid=draw(IDS),
        gid=draw(IDS),
        mtime=draw(st.one_of(st.integers(0, 2**33), st.integers(-(2**60), 2**60))),
        nsec=draw(st.one_of(st.just(0), st.integers(0, 999_999_999))),
        size=draw(st.sampled_from([0, 1, 511, 512, 513, 5000])) if kind == FILE else 0,
        rdev=os.makedev(draw(st.integers(1, 4095)), draw(st.integers(0, 2**20 - 1)))
        if kind in (stat.S_IFCHR, stat.S_IFBLK)
        else 0,
        link=draw(NAMES) if kind == stat.S_IFLNK else b"",
        xattrs=draw(XATTRS),
    )


@st.composite
def trees(draw: st.DrawFn) -> list[Member]:
    """Members with distinct names, none below another, and hard links to some of them."""
    found = draw(st.lists(members(), max_size=6))
    found = [
        Member(**{**_fields(member), "path": b"%d-" % number + member.path[:200].rstrip(b"/")})
        for number, member in enumerate(found)
    ]
    for number, target in enumerate([member for member in found if not stat.S_ISDIR(member.mode)]):
        if draw(st.booleans()):
            found.append(Member(path=b"link%d" % number, mode=target.mode, link=target.path, hard=True))
    return found


def _fields(member: Member) -> dict[str, object]:
    return {name: getattr(member, name) for name in Member.__slots__}


@settings(max_examples=60, deadline=None)
@given(trees())
def test_the_index_made_while_writing_is_the_one_read_back(tree: list[Member]) -> None:
    data, written = write(tree)
    assert read_index(data) == written.index
    written.index.validate(tar_size=len(data))
    assert (written.size, str(written.diff_id)) == (len(data), "sha256:" + hashlib.sha256(data).hexdigest())


@settings(max_examples=60, deadline=None)
@given(trees())
def test_members_read_back_equal(tree: list[Member]) -> None:
    data, _ = write(tree)
    for member, entry in zip(tree, TarReader([data]), strict=True):
        assert entry.name.rstrip(b"/") == member.path.rstrip(b"/")
        assert entry.link == member.link
        if member.hard:
            assert entry.mode >> 12 == 0
            continue
        assert (entry.mode, entry.uid, entry.gid) == (member.mode, member.uid, member.gid)
        assert (entry.mtime, entry.nsec, entry.size) == (member.mtime, member.nsec, member.size)
        assert os.makedev(*entry.rdev) == member.rdev
        assert entry.xattrs == member.xattrs
        assert data[entry.offset : entry.offset + entry.size] == data_of(member)[: entry.size]
        assert not entry.dirty


@settings(max_examples=60, deadline=None)
@given(trees())
def test_tarfile_reads_the_same(tree: list[Member]) -> None:
    data, _ = write(tree)
    with tarfile.open(fileobj=io.BytesIO(data), encoding="utf-8", errors="surrogateescape") as tar:
        found = tar.getmembers()
        for member, info in zip(tree, found, strict=True):
            assert info.name.encode("utf-8", "surrogateescape") == member.path.rstrip(b"/")
            assert info.linkname.encode("utf-8", "surrogateescape") == member.link
            assert info.islnk() == member.hard
            if not member.hard:
                assert (info.mode, info.uid, info.gid) == (member.mode & 0o7777, member.uid, member.gid)
                assert info.size == member.size
                assert info.mtime == pytest.approx(member.mtime + member.nsec / 1e9)
            if info.isreg():
                file = tar.extractfile(info)
                assert file is not None
                assert file.read() == data_of(member)


EXAMPLE = [
    Member(path=b"", mode=FOLDER | 0o755, mtime=1),
    Member(path=b"d", mode=FOLDER | 0o2711, uid=5, mtime=2),
    Member(path=b"d/" + b"n" * 255, mode=FILE | 0o4755, size=1000, mtime=1_700_000_000, nsec=123_456_789),
    Member(path=b"d/" + b"s" * 101, mode=stat.S_IFLNK | 0o777, link=b"t" * 300),
    Member(path=b"d/" + b"h" * 200, mode=FILE, link=b"d/" + b"n" * 255, hard=True),
    Member(path=b"\xff\xfe", mode=FILE | 0o600, size=1, mtime=-1, nsec=999_999_999),
    Member(path=b"ids", mode=FILE | 0o600, uid=2**32 - 2, gid=8**7, mtime=2**33),
    Member(path=b"fifo", mode=stat.S_IFIFO | 0o600),
]


def test_gnu_tar_lists_and_extracts_it_without_a_word(tmp_path: Path) -> None:
    data, _ = write(EXAMPLE)
    done = subprocess.run(
        [
            "tar",
            "--extract",
            "--file=-",
            "--no-same-owner",
            "--warning=no-timestamp",
            "--directory",
            tmp_path,
        ],
        input=data,
        capture_output=True,
        check=True,
    )
    assert done.stderr == b""
    top = os.fsencode(tmp_path)
    file = top + b"/d/" + b"n" * 255
    about = os.stat(file)
    assert (about.st_size, about.st_mtime_ns, about.st_nlink) == (1000, 1_700_000_000_123_456_789, 2)
    assert os.readlink(top + b"/d/" + b"s" * 101) == b"t" * 300
    assert os.stat(top + b"/\xff\xfe").st_mtime_ns == -1
    told = subprocess.run(
        ["tar", "-tvf", "-", "--numeric-owner"], input=data, capture_output=True, check=True
    )
    assert f"{2**32 - 2}/{8**7}".encode() in told.stdout


@pytest.mark.parametrize("length", [98, 99, 100, 101, 102])
@pytest.mark.parametrize("kind", [FILE, FOLDER, stat.S_IFLNK])
def test_names_at_the_edge_of_a_header_are_whole(length: int, kind: int) -> None:
    name = b"n" * length
    link = b"t" * length if kind == stat.S_IFLNK else b""
    target = name if kind != FOLDER else b"f" * length
    data, _ = write(
        [
            Member(path=name, mode=kind, link=link),
            Member(path=b"f" * length, mode=FILE),
            Member(path=b"h", mode=FILE, link=target, hard=True),
        ]
    )
    first, _, third = TarReader([data])
    assert (first.name.rstrip(b"/"), first.link, third.link) == (name, link, target)


def test_the_same_members_give_the_same_bytes() -> None:
    assert write(EXAMPLE)[0] == write(EXAMPLE)[0]


def test_the_bytes_of_a_header_do_not_change() -> None:
    """What is committed twice has one digest, also after an upgrade: change this knowingly."""
    digest = hashlib.sha256(write(EXAMPLE)[0]).hexdigest()
    assert digest == "8d7aecd7593e1e2ac0a01267bcb6f2b0a0c197f666d0abc55ba884a8a87e3e02"


def test_an_archive_of_nothing_is_two_blocks_of_zeros() -> None:
    data, written = write([])
    assert data == bytes(1024)
    assert len(written.index) == 1


@pytest.mark.parametrize("parts", [[], [b"12"], [b"12", b"34", b"56"], [b"123456"]])
def test_a_file_of_another_size_is_an_error(parts: list[bytes]) -> None:
    fd = os.memfd_create("tar")
    try:
        with pytest.raises(DataLoss, match="changed while it was read"):
            TarWriter(fd).add(Member(path=b"f", mode=FILE, size=5), lambda: parts.pop(0) if parts else b"")
    finally:
        os.close(fd)


@pytest.mark.parametrize("size", [1, BLOCK, BATCH - 2 * BLOCK, BATCH, 2 * BATCH + 7])
@pytest.mark.parametrize("fault", ["not settled", "too short", "too long"])
@pytest.mark.parametrize("before", [0, BATCH - 3 * BLOCK])
def test_what_does_not_settle_is_as_if_it_had_never_been_there(size: int, fault: str, before: int) -> None:
    """Also where some of it has been hashed and written."""
    extra = {"too short": -1, "too long": 1}.get(fault, 0)
    parts = [bytes(size // 2), bytes(size - size // 2 + extra), b""]
    found: list[tuple[bytes, WrittenTar]] = []
    for odd in (Member(path=b"odd", mode=FILE, size=size), None):
        fd = os.memfd_create("tar")
        try:
            writer = TarWriter(fd, write_back=True)
            writer.add(Member(path=b"a", mode=FILE, size=before), lambda: b"a" * before, lambda: True)
            if odd is not None:
                assert not writer.add(odd, lambda: parts.pop(0), lambda: fault != "not settled")
            assert writer.add(Member(path=b"z", mode=FILE, size=70), lambda: b"z" * 70, lambda: True)
            written = writer.finish()
            found.append((os.pread(fd, os.fstat(fd).st_size, 0), written))
        finally:
            os.close(fd)
    (data, written), (expected, plain) = found
    assert data == expected
    assert (written.diff_id, written.size) == (plain.diff_id, plain.size)
    assert written.index.encode() == plain.index.encode()


def test_a_side_hash_is_the_hash_of_all_pieces_in_order() -> None:
    pieces = [os.urandom(size) for size in (3, LARGE, 1, LARGE + 1, 2 * LARGE, 0, 5)]
    side, plain = SideHash(), hashlib.sha256()
    for piece in pieces:
        side.update(piece)
        plain.update(piece)
    state = side.settled().copy()
    side.update(bytes(LARGE))
    side.go_back(state)
    assert side.settled().hexdigest() == plain.hexdigest()


def test_where_no_thread_can_be_had_the_hash_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    side, piece = SideHash(), os.urandom(LARGE)
    side.update(piece)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refused)
        side.update(piece)
    side.update(piece)
    assert side.settled().hexdigest() == hashlib.sha256(piece * 3).hexdigest()
