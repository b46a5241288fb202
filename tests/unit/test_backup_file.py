"""The file of a backup: what is written is read, by GNU tar as well, and nothing else is taken for one."""

from __future__ import annotations

import os
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orlop.errors import Cancelled, DataLoss, Error, InvalidArgument
from orlop.images.backups import file as backupfile
from orlop.images.backups.file import BackupReader, BackupWriter, blob_name, header, layer_name
from orlop.observe import Call, CancelToken
from orlop.spec.digest import DiffID, Digest

LABEL = b'{"orlop-backup":1,"orlop":"0","created":"","content":true,"metadata":"sha256:00"}'
CONTENT = {
    "orlop-backup.json": LABEL,
    "format.json": b"{}",
    blob_name(Digest.of(b"blob")): b"blob",
    blob_name(Digest("sha512:" + "ab" * 64)): b"",
    layer_name(DiffID(Digest.of(b"x" * 5000))): b"x" * 5000,
}


def write(path: Path, content: dict[str, bytes] = CONTENT) -> Path:
    with path.open("wb") as file:
        writer = BackupWriter(file.fileno())
        for name, data in content.items():
            writer.add(name, len(data), [data[:3], data[3:]])
        writer.finish()
    assert writer.size == path.stat().st_size
    return path


def read(path: Path) -> BackupReader:
    return BackupReader(path, call=Call())


def test_what_is_written_is_read_and_tarfile_and_gnu_tar_agree(tmp_path: Path) -> None:
    path = write(tmp_path / "b.tar")
    with read(path) as backup:
        assert {name: backup.read(name, limit=5000) for name in CONTENT} == CONTENT
        assert backup.find("meta.db") is None
    with tarfile.open(path) as archive:
        assert {one.name: archive.extractfile(one).read() for one in archive} == CONTENT
    said = subprocess.run(["tar", "-tf", path], capture_output=True, text=True, check=True)
    assert (said.stdout.split(), said.stderr) == (list(CONTENT), "")


def test_sizes_beyond_what_octal_holds(tmp_path: Path) -> None:
    """A layer of 9 GiB, all holes."""
    name, size = layer_name(DiffID(Digest.of(b""))), 9 << 30
    path = tmp_path / "b.tar"
    start = header("orlop-backup.json", len(LABEL)) + LABEL + bytes(-len(LABEL) % 512)
    path.write_bytes(start + header(name, size))
    os.truncate(path, len(start) + 512 + size + 1024)
    with read(path) as backup:
        assert backup.find(name) == backupfile.Part(len(start) + 512, size)
    said = subprocess.run(["tar", "-tvf", path], capture_output=True, text=True, check=True)
    assert str(size) in said.stdout


def test_bytes_are_verified_when_they_are_read(tmp_path: Path) -> None:
    digest = Digest.of(b"blob")
    path = write(tmp_path / "b.tar", {**CONTENT, blob_name(digest): b"blub"})
    with read(path) as backup:
        with pytest.raises(DataLoss, match="other bytes"):
            backup.read(blob_name(digest), limit=10, digest=digest)
        with pytest.raises(DataLoss, match="other bytes"):
            list(backup.chunks(blob_name(digest), digest=digest))
        with pytest.raises(Error, match="limit"):
            backup.read(blob_name(digest), limit=3)
        with pytest.raises(DataLoss, match=r"no meta\.db"):
            backup.read("meta.db", limit=3)


def test_a_member_that_is_shorter_than_announced_is_not_written(tmp_path: Path) -> None:
    with (tmp_path / "b.tar").open("wb") as file, pytest.raises(DataLoss, match="3 bytes, not 4"):
        BackupWriter(file.fileno()).add("meta.db", 4, [b"abc"])


def test_reading_ends_with_the_call(tmp_path: Path) -> None:
    token = CancelToken()
    token.cancel()
    with pytest.raises(Cancelled):
        BackupReader(write(tmp_path / "b.tar"), call=Call(cancel=token))


def _link(block: bytearray) -> None:
    block[156:157] = b"1"


def _other_mode(block: bytearray) -> None:
    block[100:108] = b"0000777\0"


def _behind_the_name(block: bytearray) -> None:
    block[99] = 65


def _negative(block: bytearray) -> None:
    block[124:136] = b"\xff" * 12


@pytest.mark.parametrize("change", [_link, _other_mode, _behind_the_name, _negative])
def test_a_header_has_one_form(tmp_path: Path, change: Callable[[bytearray], None]) -> None:
    """Also with a checksum that is right."""
    path = write(tmp_path / "b.tar")
    data = bytearray(path.read_bytes())
    block = data[1024:1536]  # the second member's
    assert block.startswith(b"format.json\0")
    change(block)
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    data[1024:1536] = block
    path.write_bytes(data)
    with pytest.raises(DataLoss, match="header"):
        read(path)


@pytest.mark.parametrize(
    "name", ["etc/passwd", "/meta.db", "../meta.db", "blobs/sha256/..", "layers/x.tar", "a" * 90]
)
def test_unknown_names_are_refused(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / "b.tar")
    path.write_bytes(path.read_bytes()[:-1024] + header(name, 0) + bytes(1024))
    with pytest.raises(DataLoss, match="header"):
        read(path)


def test_a_name_stands_once(tmp_path: Path) -> None:
    path = write(tmp_path / "b.tar")
    path.write_bytes(path.read_bytes()[:-1024] + header("format.json", 0) + bytes(1024))
    with pytest.raises(InvalidArgument, match="twice"):
        read(path)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_whatever_the_bytes_are_the_answer_is_one_of_ours(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = write(tmp_path_factory.mktemp("b") / "b.tar")
    spoilt = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(spoilt) - 1))
        spoilt[at] = data.draw(st.integers(0, 255))
    path.write_bytes(spoilt[: data.draw(st.sampled_from([len(spoilt), len(spoilt) // 2, 600, 0]))])
    try:
        with read(path) as backup:
            for name in CONTENT:
                backup.read(name, limit=5000)
    except Error:
        pass
