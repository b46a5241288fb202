"""The worker that reads layers, honest and lying, alive and dead."""

from __future__ import annotations

import contextlib
import dataclasses
import gzip
import hashlib
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from orlop.config import DEFAULT_LIMITS, Limits
from orlop.errors import (
    Cancelled,
    DataLoss,
    DeadlineExceeded,
    Error,
    Internal,
    InvalidArgument,
    ResourceExhausted,
    Unavailable,
)
from orlop.layers.builder import IndexBuilder
from orlop.layers.index import LayerIndex
from orlop.layers.tarread import TarReader
from orlop.layers.worker import COMPLETE
from orlop.layers.worker.client import Feed, Template, Unpacked, unpack
from orlop.layers.worker.template import Lifeline
from orlop.observe import Call, CancelToken
from support.images import compress
from support.layers import Layer

TAR = (
    Layer().folder("d").file("d/f", os.urandom(200_000)).symlink("s", "d").whiteout("w").tar()
    + b"after the end"
)


def index_of(data: bytes) -> LayerIndex:
    reader = TarReader([data])
    builder = IndexBuilder()
    for entry in reader:
        builder.add(entry)
    return builder.finish(reader.size)


@pytest.fixture(scope="module")
def template() -> Iterator[Template]:
    with Template() as started:
        started.start()
        yield started


@pytest.fixture
def files(tmp_path: Path) -> Iterator[Callable[[bytes], int]]:
    """Make an open file of some bytes."""
    opened: list[int] = []

    def make(data: bytes = b"") -> int:
        fd = os.open(tmp_path / str(len(opened)), os.O_RDWR | os.O_CREAT | os.O_EXCL)
        opened.append(fd)
        os.pwrite(fd, data, 0)
        return fd

    yield make
    for fd in opened:
        os.close(fd)


def run(
    template: object, source: int, *, tar: int | None = None, feed: Feed | None = None, **more: object
) -> Unpacked:
    feed = feed or Feed.whole(os.fstat(source).st_size)
    try:
        return unpack(template, source, feed, tar=tar, call=more.pop("call", Call()), **more)  # type: ignore[arg-type]
    finally:
        feed.close()


def workers(template: Template) -> list[psutil.Process]:
    assert template._process is not None
    living = []
    for child in psutil.Process(template._process.pid).children():
        with contextlib.suppress(psutil.NoSuchProcess):  # gone between two looks
            if child.is_running() and child.status() != psutil.STATUS_ZOMBIE:
                living.append(child)
    return living


# ------------------------------------------------------------------ honest


@pytest.mark.parametrize("form", ["gzip", "zstd", "none"])
def test_a_layer_arrives_whole(template: Template, files: Callable[..., int], form: str) -> None:
    tar = files()
    told: list[int] = []
    unpacked = run(template, files(compress(TAR, form)), tar=tar, written=told.append)  # type: ignore[arg-type]
    assert unpacked.diff_id == "sha256:" + hashlib.sha256(TAR).hexdigest()
    assert (unpacked.tar_size, os.pread(tar, len(TAR) + 1, 0)) == (len(TAR), TAR)
    assert unpacked.index == index_of(TAR) == LayerIndex.decode(unpacked.encoded)
    assert told[-1] == len(TAR)
    assert told == sorted(told)


def test_an_index_alone_needs_no_second_file(template: Template, files: Callable[..., int]) -> None:
    assert run(template, files(TAR)).index == index_of(TAR)


def test_a_layer_may_start_anywhere_in_a_file(template: Template, files: Callable[..., int]) -> None:
    packed = gzip.compress(TAR)
    source = files(b"x" * 777 + packed + b"y" * 99)
    assert run(template, source, feed=Feed.whole(len(packed)), offset=777).index == index_of(TAR)


def test_a_source_may_grow_while_it_is_read(template: Template, files: Callable[..., int]) -> None:
    packed = gzip.compress(TAR)
    source, tar, feed = files(), files(), Feed()

    def grow() -> None:
        for at in range(0, len(packed), 10_000):
            os.pwrite(source, packed[at : at + 10_000], at)
            feed.advance(min(at + 10_000, len(packed)))
        feed.advance(len(packed), complete=True)

    thread = threading.Thread(target=grow)
    thread.start()
    unpacked = run(template, source, tar=tar, feed=feed)
    thread.join()
    assert unpacked.diff_id == "sha256:" + hashlib.sha256(TAR).hexdigest()


def test_layers_side_by_side(template: Template, files: Callable[..., int]) -> None:
    tars = [Layer().file(f"f{number}", b"%d" % number * 5000).tar() for number in range(8)]
    sources, found = [files(tar) for tar in tars], dict[int, Unpacked]()

    def one(number: int) -> None:
        found[number] = run(template, sources[number])

    threads = [threading.Thread(target=one, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[number].index for number in range(8)] == [index_of(tar) for tar in tars]


@pytest.mark.hostile(13)
@pytest.mark.parametrize(
    ("data", "error", "text"),
    [
        (b"not a tar".ljust(1024), InvalidArgument, "not a tar header"),
        (TAR[:1000], InvalidArgument, "cut off"),
        (gzip.compress(TAR)[:-9], InvalidArgument, "cut off"),
        (gzip.compress(TAR) + b"junk", InvalidArgument, "garbage"),
        (b"\x1f\x8b" + bytes(100), InvalidArgument, "damaged"),
        (Layer().file(".wh.").tar(), InvalidArgument, "whiteout of nothing"),
    ],
)
def test_what_the_worker_finds_is_told(
    template: Template, files: Callable[..., int], data: bytes, error: type[Error], text: str
) -> None:
    with pytest.raises(error, match=text):
        run(template, files(data), tar=files())


def test_a_source_shorter_than_announced_is_told(template: Template, files: Callable[..., int]) -> None:
    with pytest.raises(InvalidArgument, match="shorter than announced"):
        run(template, files(TAR), feed=Feed.whole(len(TAR) + 1))


# ------------------------------------------------------------------ limits


def zeros(size: int) -> Iterator[bytes]:
    """A tar of one file of zeros, of any size, in chunks."""
    yield Layer().add("zeros", b"0", size=size).tar(end=b"")
    for _ in range(size >> 20):
        yield bytes(1 << 20)
    yield bytes(1024)


def zstd_of(chunks: Iterator[bytes], path: Path) -> Path:
    import sys

    if sys.version_info >= (3, 14):
        from compression import zstd
    else:
        from backports import zstd
    with zstd.open(path, "wb") as file:
        for chunk in chunks:
            file.write(chunk)
    return path


@pytest.fixture(scope="module")
def gibibyte(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A layer of a gibibyte of zeros in some thirty kilobytes."""
    return zstd_of(zeros(1 << 30), tmp_path_factory.mktemp("bomb") / "layer")


@pytest.mark.hostile(12)
def test_a_bomb_is_stopped(template: Template, gibibyte: Path) -> None:
    assert gibibyte.stat().st_size < 200_000
    with gibibyte.open("rb") as source:
        with pytest.raises(ResourceExhausted, match=r"limits\.compression_ratio"):
            run(template, source.fileno())
        limits = replace(DEFAULT_LIMITS, compression_ratio=1 << 30, layer_size=100 << 20)
        with pytest.raises(ResourceExhausted, match=r"limits\.layer_size"):
            run(template, source.fileno(), limits=limits)


@pytest.mark.hostile(12)
def test_memory_does_not_grow_with_the_bytes(
    template: Template, files: Callable[..., int], tmp_path: Path
) -> None:
    largest, looked, tar = 0, 0, files()

    def look(total: int) -> None:
        nonlocal largest, looked
        if total - looked >= 1 << 26:  # whatever the steps are in which it grows
            looked = total
            found = 0
            for worker in workers(template):
                with contextlib.suppress(psutil.NoSuchProcess):  # the one that writes may be done before us
                    found += worker.memory_full_info().uss
            largest = max(largest, found)

    limits = replace(DEFAULT_LIMITS, compression_ratio=1 << 30)
    layer = zstd_of(zeros(400 << 20), tmp_path / "layer")
    ours = psutil.Process().memory_info().rss
    with layer.open("rb") as source:
        unpacked = run(template, source.fileno(), tar=tar, limits=limits, written=look)
    os.ftruncate(tar, 0)
    assert unpacked.tar_size > 400 << 20
    assert 0 < largest < 80 << 20
    assert psutil.Process().memory_info().rss - ours < 16 << 20


def test_the_limits_of_a_job_reach_its_worker(template: Template, files: Callable[..., int]) -> None:
    source = files(Layer().file("a").file("b").file("c").tar())
    with pytest.raises(ResourceExhausted, match=r"limits\.layer_entries"):
        run(template, source, limits=replace(DEFAULT_LIMITS, layer_entries=2))
    assert len(run(template, source).index) == 4


def test_a_worker_without_memory_ends_with_an_error(template: Template, tmp_path: Path) -> None:
    layer = Layer()
    for number in range(30_000):
        layer.file(f"{number:0200}")
    path = tmp_path / "layer"
    path.write_bytes(layer.tar())
    with path.open("rb") as source, pytest.raises((ResourceExhausted, Unavailable), match="worker_memory"):
        run(template, source.fileno(), limits=replace(DEFAULT_LIMITS, worker_memory=40 << 20))


# ------------------------------------------------------------------ dead, or given up


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def start_waiting(
    template: Template, source: int, feed: Feed, call: Call
) -> tuple[threading.Thread, list[Error]]:
    """Run a job whose source never comes, in a thread; what it raised is put into the list."""
    raised: list[Error] = []

    def body() -> None:
        try:
            unpack(template, source, feed, call=call)
        except Error as exc:
            raised.append(exc)

    before = {worker.pid for worker in workers(template)}
    thread = threading.Thread(target=body)
    thread.start()
    wait_for(lambda: any(worker.pid not in before for worker in workers(template)))
    return thread, raised


def test_a_worker_that_dies_is_unavailable(template: Template, files: Callable[..., int]) -> None:
    feed = Feed()
    thread, raised = start_waiting(template, files(TAR), feed, Call())
    workers(template)[-1].kill()
    thread.join(60)
    feed.close()
    assert [type(exc) for exc in raised] == [Unavailable]
    assert run(template, files(TAR)).index == index_of(TAR)


def test_nobody_waits_for_a_worker_that_died(template: Template, files: Callable[..., int]) -> None:
    feed = Feed()
    thread, _ = start_waiting(template, files(TAR), feed, Call())
    workers(template)[-1].send_signal(signal.SIGSTOP)
    done = threading.Event()

    def fetch() -> None:
        for total in range(20_000):  # more numbers than the pipe holds
            feed.advance(total)
        done.set()

    fetching = threading.Thread(target=fetch, daemon=True)
    fetching.start()
    assert not done.wait(0.3)
    workers(template)[-1].kill()
    assert done.wait(60)
    thread.join(60)
    fetching.join(60)
    feed.close()


def test_a_cancelled_call_ends_and_so_does_its_worker(template: Template, files: Callable[..., int]) -> None:
    token, feed = CancelToken(), Feed()
    thread, raised = start_waiting(template, files(TAR), feed, Call(cancel=token))
    token.cancel()
    thread.join(60)
    feed.close()
    assert [type(exc) for exc in raised] == [Cancelled]
    wait_for(lambda: not workers(template))


def test_a_deadline_ends_a_call(template: Template, files: Callable[..., int]) -> None:
    feed = Feed()
    with pytest.raises(DeadlineExceeded):
        run(template, files(TAR), feed=feed, call=Call(deadline=time.monotonic() + 0.1))
    wait_for(lambda: not workers(template))


def test_a_feed_closed_before_its_job_is_unavailable(template: Template, files: Callable[..., int]) -> None:
    feed = Feed()
    feed.close()
    with pytest.raises(Unavailable, match="given up"):
        run(template, files(TAR), feed=feed)


def test_a_template_that_was_killed_is_started_again(files: Callable[..., int]) -> None:
    with Template() as template:
        template.start()
        process = template._process
        assert process is not None
        process.kill()
        process.wait()
        assert run(template, files(TAR)).index == index_of(TAR)
        assert template._process is not process
    template.close()


def test_a_worker_has_no_rights(template: Template, files: Callable[..., int]) -> None:
    feed, token = Feed(), CancelToken()
    thread, _ = start_waiting(template, files(TAR), feed, Call(cancel=token))
    worker = workers(template)[-1]

    def status() -> dict[str, str]:
        lines = Path(f"/proc/{worker.pid}/status").read_text().splitlines()
        return dict(line.split(":\t", 1) for line in lines if ":\t" in line)

    wait_for(lambda: status()["Seccomp"] == "2")
    found = status()
    assert (
        found["NoNewPrivs"],
        int(found["CapEff"], 16),
        int(found["CapBnd"], 16) if os.geteuid() == 0 else 0,
    ) == (
        "1",
        0,
        0,
    )
    if os.geteuid() == 0:
        assert found["Uid"].split() == ["65534"] * 4
        assert len(os.listdir(f"/proc/{worker.pid}/fd")) <= 4
    token.cancel()
    thread.join(60)
    feed.close()


# ------------------------------------------------------------------ lying


class Liar:
    """A template whose worker writes what it is told to, whatever the source."""

    def __init__(self, tar: bytes, answer: bytes) -> None:
        self._tar, self._answer = tar, answer

    def submit(self, job: dict[str, object], descriptors: list[int]) -> Lifeline:
        mine = [os.dup(fd) for fd in descriptors[1:4]]
        ours, theirs = socket.socketpair()
        threading.Thread(target=self._work, args=(job, theirs, *mine), daemon=True).start()
        return Lifeline(ours)

    def _work(
        self, job: dict[str, object], lifeline: socket.socket, control: int, tar: int, answer: int
    ) -> None:
        while (news := os.read(control, 8)) and not int.from_bytes(news, "little") & COMPLETE:
            pass
        os.close(control)
        says = {tar: b"" if job["index"] else self._tar, answer: self._answer if job["index"] else b"+"}
        for fd, data in says.items():
            view = memoryview(data)
            try:
                while view:
                    view = view[os.write(fd, view) :]
            except BrokenPipeError:
                pass
            os.close(fd)
        with lifeline, contextlib.suppress(BrokenPipeError):
            lifeline.send(b'{"status": 0}')


HONEST = b"+" + index_of(TAR).encode()


def test_the_digest_is_that_of_the_bytes_that_arrive(files: Callable[..., int]) -> None:
    other = bytes(len(TAR))
    tar = files()
    unpacked = run(Liar(other, HONEST), files(TAR), tar=tar)
    assert unpacked.diff_id == "sha256:" + hashlib.sha256(other).hexdigest()
    assert os.pread(tar, len(TAR), 0) == other


def lying(**columns: object) -> bytes:
    index = index_of(TAR)
    for name, value in columns.items():
        setattr(index, name, value)
    return b"+" + index.encode()


@pytest.mark.parametrize(
    ("tar", "answer", "error"),
    [
        (TAR[:-512], HONEST, InvalidArgument),  # an index of another tar
        (TAR + bytes(512), HONEST, InvalidArgument),
        (TAR, lying(tar_size=1 << 40), InvalidArgument),
        (TAR, lying(names=[b"", b"d", b"../f", b"s", b"w"]), InvalidArgument),
        (TAR, lying(warnings=["\033]0;owned\007"]), InvalidArgument),
        (TAR, HONEST[:-1], DataLoss),
        (TAR, b"+", DataLoss),
        (TAR, b"+" + b"junk" * 100, DataLoss),
        (TAR, b"", Unavailable),
        (TAR, b"?", Unavailable),
        (TAR, b"-", Internal),
        (TAR, b"-{}", Internal),
        (TAR, b"-[1, 2]", Internal),
        (TAR, b'-{"code": [], "attempted": 1, "reason": 2, "hint": 3, "details": 4}', Internal),
        (TAR, b'-{"code": "NOBODY_KNOWS", "attempted": "", "reason": "", "hint": "", "details": {}}', Error),
        (TAR, b"-\xff\xfe", Internal),
        (b"", HONEST, InvalidArgument),
    ],
)
def test_a_liar_is_not_believed(
    files: Callable[..., int], tar: bytes, answer: bytes, error: type[Error]
) -> None:
    with pytest.raises(error):
        run(Liar(tar, answer), files(TAR), tar=files())


def test_a_liar_may_not_write_without_end(files: Callable[..., int]) -> None:
    small = replace(DEFAULT_LIMITS, layer_size=1 << 20, layer_entries=1, metadata_size=1)
    with pytest.raises(ResourceExhausted, match="wrote more than it may"):
        run(Liar(bytes(8 << 20), HONEST), files(TAR), tar=files(), limits=small)
    with pytest.raises(ResourceExhausted, match="answered more than it may"):
        run(Liar(b"", b"+" + bytes(80 << 20)), files(TAR), tar=files(), limits=small)


def test_a_liars_words_are_harmless(files: Callable[..., int]) -> None:
    said = {"code": "INVALID_ARGUMENT", "attempted": "a", "hint": "", "details": {}}
    answer = b"-" + json.dumps({**said, "reason": "\033[2J" + "x" * 9999}).encode()
    with pytest.raises(InvalidArgument) as caught:
        run(Liar(b"", answer), files(TAR))
    assert len(str(caught.value)) < 2000
    assert str(caught.value).isprintable()


def test_a_liars_error_is_not_parsed_before_its_size_is_looked_at(files: Callable[..., int]) -> None:
    """Of 28 MiB of brackets Python makes 800 MiB of lists; an answer may have twenty times as much."""
    said = {"code": "INVALID_ARGUMENT", "attempted": "a", "reason": "r", "hint": "", "details": {}}
    for padding, error in ((b" " * 1000, InvalidArgument), (b" " * (1 << 20), Internal)):
        with pytest.raises(error):
            run(Liar(b"", b"-" + json.dumps(said).encode() + padding), files(TAR))


def test_every_limit_fits_the_job() -> None:
    assert len(str(dataclasses.asdict(Limits()))) < 60_000
