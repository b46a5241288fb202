"""The parts of a check that need no store: the pace, reading tars, layer.data, unpacked folders."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from orlop.errors import Cancelled, DataLoss
from orlop.images.checking.deep import Meter
from orlop.layers.datalayout import DataLayout
from orlop.layers.folder import FolderWriter
from orlop.layers.foldercheck import folder_differences
from orlop.layers.forms import PLAIN, REAL
from orlop.layers.index import LayerIndex
from orlop.layers.sources import layer_items
from orlop.layers.store import copies
from orlop.layers.verify import data_problem, read_tar
from orlop.layers.worker.client import Template
from orlop.linux.files import copy_range
from orlop.observe import Call, CancelToken
from support.images import digest_of
from support.layers import Layer


@pytest.fixture(scope="module")
def template() -> Iterator[Template]:
    with Template() as running:
        yield running


def opened(folder: Path, name: str, data: bytes) -> int:
    path = folder / name
    path.write_bytes(data)
    return os.open(path, os.O_RDWR | os.O_CLOEXEC)


def sparse() -> bytes:
    pieces = [(0, b"s" * 4096), (1 << 19, b"t" * 5000)]
    return Layer().file("a", b"a").sparse("hole", 1 << 20, pieces, how="gnu-1.0").file("b", b"b" * 600).tar()


# ---------------------------------------------------------------------- the pace


class Paused(Call):
    """A call that sleeps for nobody, and remembers how long it was to."""

    def pause(self, seconds: float, attempted: str) -> None:
        SLEPT.append(seconds)


SLEPT: list[float] = []


@pytest.fixture(autouse=True)
def _forget() -> None:
    SLEPT.clear()


def test_a_pace_waits_for_what_was_read_before() -> None:
    meter = Meter(1000, Paused())
    meter.begin("x", 0)
    for _ in range(10):
        meter.spend(1000)
    assert meter.bytes == 10_000
    assert max(SLEPT) > 7  # ten seconds' worth, one or two of them for nothing
    assert sorted(SLEPT) == SLEPT


def test_without_a_pace_nobody_waits() -> None:
    meter = Meter(None, Paused())
    meter.begin("x", 0)
    for _ in range(100):
        meter.spend(1 << 30)
    assert SLEPT == []


def test_a_slow_pace_reads_in_small_steps() -> None:
    assert Meter(1000, Call()).chunk == 64 << 10
    assert Meter(1 << 40, Call()).chunk == Meter(None, Call()).chunk == 1 << 20


# ---------------------------------------------------------------------- tars


@pytest.mark.parametrize("first", ["etc", "BZh91AY", "\x1f\x8b", "(\xb5/\xfd"])
def test_a_tar_is_read_as_one_whatever_its_first_name_looks_like(
    template: Template, tmp_path: Path, first: str
) -> None:
    tar = Layer().file(first.encode("latin-1"), b"x").file("more", b"y" * 3000).tar()
    fd = opened(tmp_path, "tar", tar)
    try:
        found = read_tar(template, fd, call=Call())
    finally:
        os.close(fd)
    assert (found.diff_id, found.size, found.refusal) == (digest_of(tar), len(tar), None)
    assert found.unpacked is not None
    assert b"more" in found.unpacked.index.names


def test_what_is_no_tar_has_a_digest_all_the_same(template: Template, tmp_path: Path) -> None:
    rubbish = os.urandom(3 << 20)
    fd = opened(tmp_path, "tar", rubbish)
    try:
        found = read_tar(template, fd, call=Call())
    finally:
        os.close(fd)
    assert found.diff_id == digest_of(rubbish)
    assert found.unpacked is None
    assert found.refusal is not None


def test_what_stops_the_reading_is_raised_and_not_the_workers_end(template: Template, tmp_path: Path) -> None:
    def fail(count: int) -> None:
        raise DataLoss("check layer", "the disk cannot read it")

    token = CancelToken()
    fd = opened(tmp_path, "tar", sparse())
    try:
        with pytest.raises(DataLoss, match="the disk cannot read it"):
            read_tar(template, fd, spend=fail, call=Call())
        with pytest.raises(Cancelled):
            read_tar(template, fd, spend=lambda count: token.cancel(), call=Call(cancel=token))
    finally:
        os.close(fd)


# ---------------------------------------------------------------------- layer.data


@pytest.fixture
def layer(template: Template, tmp_path: Path) -> Iterator[tuple[LayerIndex, int, int]]:
    """An index, its tar, and the layer.data that belongs to them."""
    tar = opened(tmp_path, "tar", sparse())
    found = read_tar(template, tar, call=Call())
    assert found.unpacked is not None
    index = found.unpacked.index
    data = opened(tmp_path, "data", b"")
    layout = DataLayout(index)
    os.ftruncate(data, layout.size)
    for source, target, length in copies(index, layout):
        copy_range(tar, source, data, target, length)
    yield index, tar, data
    os.close(tar)
    os.close(data)


def test_layer_data_as_it_is_made_is_right(layer: tuple[LayerIndex, int, int]) -> None:
    assert data_problem(*layer, call=Call()) == ""


def test_every_byte_of_layer_data_that_is_another_is_found(layer: tuple[LayerIndex, int, int]) -> None:
    index, tar, data = layer
    size = os.fstat(data).st_size
    for at in (*range(0, size, 501), size - 1):
        before = os.pread(data, 1, at)
        os.pwrite(data, bytes([before[0] ^ 1]), at)
        assert data_problem(index, tar, data, call=Call()), at
        os.pwrite(data, before, at)
    os.ftruncate(data, size - 1)
    assert data_problem(index, tar, data, call=Call())


# ---------------------------------------------------------------------- unpacked folders


def unpack(tmp_path: Path, template: Template) -> tuple[Path, LayerIndex, int]:
    layer = Layer().folder("etc", mode=0o755, uid=os.geteuid(), gid=os.getegid())
    owner = {"uid": os.geteuid(), "gid": os.getegid()}
    layer.file("etc/a", b"a" * 700, **owner).symlink("etc/link", "a", **owner).hardlink("etc/b", to="etc/a")
    layer.fifo("pipe", **owner)
    pieces = [(0, b"s" * 4096), (1 << 17, b"t" * 500)]
    tar = opened(tmp_path, "tar", layer.sparse("hole", 1 << 18, pieces, how="gnu-1.0", **owner).tar())
    found = read_tar(template, tar, call=Call())
    assert found.unpacked is not None
    index = found.unpacked.index
    top = tmp_path / "top"
    top.mkdir()
    fd = os.open(top, os.O_RDONLY | os.O_DIRECTORY)
    FolderWriter(fd, form=PLAIN, durable=False, call=Call()).write(layer_items(index, tar))
    os.close(fd)
    return top, index, tar


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda top: None, ""),
        (lambda top: (top / "etc" / "a").unlink(), "/etc/a is missing"),
        (lambda top: (top / "new").write_text("x"), "/new should not be there"),
        (lambda top: (top / "etc" / "a").chmod(0o4755), "/etc/a has mode 4755"),
        (lambda top: (top / "etc").chmod(0o777), "/etc has mode 0777"),
        (lambda top: os.truncate(top / "hole", 5), "/hole has 5 bytes"),
        (lambda top: os.utime(top / "hole"), "/hole was changed"),
        (lambda top: ((top / "pipe").unlink(), (top / "pipe").mkdir()), "/pipe is of another kind"),
        (
            lambda top: ((top / "etc/link").unlink(), (top / "etc/link").symlink_to("b")),
            "/etc/link leads elsewhere",
        ),
    ],
)
def test_a_change_of_an_unpacked_folder_is_found(template: Template, tmp_path: Path, change, said) -> None:
    top, index, tar = unpack(tmp_path, template)
    change(top)
    fd = os.open(top, os.O_RDONLY | os.O_DIRECTORY)
    try:
        found = folder_differences(fd, layer_items(index, tar), PLAIN, call=Call())
    finally:
        os.close(fd)
        os.close(tar)
    assert found == [] if not said else any(line.startswith(said) for line in found), found


def test_bytes_that_changed_and_times_that_did_not_are_found(template: Template, tmp_path: Path) -> None:
    top, index, tar = unpack(tmp_path, template)
    for name in ("etc/a", "hole"):
        path = top / name
        about = path.stat()
        with path.open("r+b") as file:
            file.seek(about.st_size - 1)
            file.write(b"?")
        os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))
    fd = os.open(top, os.O_RDONLY | os.O_DIRECTORY)
    try:
        found = folder_differences(fd, layer_items(index, tar), PLAIN, call=Call())
    finally:
        os.close(fd)
        os.close(tar)
    assert {"/hole has other bytes", "/etc/a has other bytes"} <= set(found)


def test_owners_are_compared_where_they_are_real(template: Template, tmp_path: Path) -> None:
    top, index, tar = unpack(tmp_path, template)
    for node in range(len(index)):
        index.uid[node] = os.geteuid() + 1
    fd = os.open(top, os.O_RDONLY | os.O_DIRECTORY)
    try:
        assert folder_differences(fd, layer_items(index, tar), REAL, call=Call())
    finally:
        os.close(fd)
        os.close(tar)
