"""Small layers that share a worker: as they would be each with its own, and whatever it says or does."""

from __future__ import annotations

import contextlib
import errno
import gzip
import hashlib
import json
import os
import random
import struct
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from orlop.config import DEFAULT_LIMITS, Limits
from orlop.errors import (
    Cancelled,
    DeadlineExceeded,
    Error,
    Internal,
    InvalidArgument,
    ResourceExhausted,
    Unavailable,
)
from orlop.layers.worker import SMALL_TAR
from orlop.layers.worker.client import Feed, Template, Unpacked, unpack
from orlop.layers.worker.small import SMALL_BLOB, SmallLayers
from orlop.observe import Call, CancelToken
from support.images import compress
from support.layers import Layer
from support.liars import Orders, lying
from support.lies import INDEX, TAR

CALL = Call()


@pytest.fixture(scope="module")
def liars(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Template, Orders]]:
    with lying(tmp_path_factory.mktemp("orders")) as running:
        yield running


@pytest.fixture
def template(liars: tuple[Template, Orders]) -> Iterator[Template]:
    yield liars[0]
    liars[1]()
    deadline = time.monotonic() + 60
    while children(liars[0]):
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.fixture
def orders(liars: tuple[Template, Orders]) -> Orders:
    return liars[1]


def children(template: Template) -> list[psutil.Process]:
    assert template._process is not None
    return psutil.Process(template._process.pid).children()


def run(
    template: Template,
    small: SmallLayers,
    folder: Path,
    blob: bytes,
    *,
    feed: Feed | None = None,
    call: Call = CALL,
) -> Unpacked:
    (folder / "source").write_bytes(b"before" + blob)
    feed = feed or Feed.whole(len(blob))
    with (folder / "source").open("rb") as source, (folder / "tar").open("wb+") as tar:
        try:
            return unpack(template, source.fileno(), feed, offset=6, tar=tar.fileno(), call=call, small=small)
        finally:
            feed.close()


def frame(kind: bytes, said: bytes, *, length: int | None = None) -> bytes:
    return kind + struct.pack("<Q", len(said) if length is None else length) + said


# ------------------------------------------------------------------ honest


def test_many_layers_have_one_worker_and_come_as_they_are(template: Template, tmp_path: Path) -> None:
    with SmallLayers(template, DEFAULT_LIMITS) as small:
        workers = set()
        for number, form in enumerate(["gzip", "zstd", "none", "gzip"]):
            tar = Layer().file(f"f{number}", random.Random(number).randbytes(number * 30_000)).tar()
            unpacked = run(template, small, tmp_path, compress(tar, form))
            assert unpacked.diff_id == "sha256:" + hashlib.sha256(tar).hexdigest()
            assert (unpacked.tar_size, unpacked.index.tar_size) == (len(tar), len(tar))
            assert unpacked.index.names[1:] == [b"f%d" % number]
            assert (tmp_path / "tar").read_bytes() == tar
            assert small._worker is not None
            workers.add(small._worker)
        assert len(workers) == 1
        assert not small._broken


def test_what_is_wrong_with_one_layer_is_told_and_the_next_is_served(
    template: Template, tmp_path: Path
) -> None:
    with SmallLayers(template, DEFAULT_LIMITS) as small:
        for blob, words in ((b"\x1f\x8b" + bytes(100), "damaged"), (gzip.compress(TAR)[:-9], "cut off")):
            with pytest.raises(InvalidArgument, match=words):
                run(template, small, tmp_path, blob)
        with pytest.raises(InvalidArgument, match="not a tar header"):
            run(template, small, tmp_path, gzip.compress(b"not a tar".ljust(1024)))
        assert run(template, small, tmp_path, gzip.compress(TAR)).index == INDEX


@pytest.mark.hostile(12)
def test_limits_hold_for_each_layer(template: Template, tmp_path: Path) -> None:
    bomb = gzip.compress(Layer().file("zeros", bytes(3 << 20)).tar())
    for limits, words in (
        (replace(DEFAULT_LIMITS, layer_size=1 << 20), r"limits\.layer_size"),
        (replace(DEFAULT_LIMITS, worker_memory=30 << 20), r"limits\.worker_memory"),
    ):
        with (
            SmallLayers(template, limits) as small,
            pytest.raises((ResourceExhausted, Unavailable)) as caught,
        ):
            run(template, small, tmp_path, bomb)
        if isinstance(caught.value, ResourceExhausted):
            assert caught.match(words)


@pytest.mark.parametrize("size", [SMALL_TAR - 4096, SMALL_TAR, 2 * SMALL_TAR])
def test_a_small_blob_of_a_large_tar_gets_a_worker_of_its_own(
    template: Template, tmp_path: Path, size: int
) -> None:
    tar = Layer().file("zeros", bytes(size)).tar()
    blob = gzip.compress(tar)
    assert len(blob) < SMALL_BLOB
    with SmallLayers(template, DEFAULT_LIMITS) as small:
        for _ in range(2):
            assert run(template, small, tmp_path, blob).tar_size == len(tar)
        assert run(template, small, tmp_path, TAR).index == INDEX


def test_a_source_shorter_than_announced_is_told(template: Template, tmp_path: Path) -> None:
    with (
        SmallLayers(template, DEFAULT_LIMITS) as small,
        pytest.raises(InvalidArgument, match="shorter than announced"),
    ):
        run(template, small, tmp_path, TAR, feed=Feed.whole(len(TAR) + 1))


def test_layers_come_side_by_side(template: Template, tmp_path: Path) -> None:
    tars = [Layer().file(f"f{number}", bytes(number)).tar() for number in range(6)]
    found: dict[int, Unpacked] = {}
    with SmallLayers(template, DEFAULT_LIMITS) as small:

        def one(number: int) -> None:
            folder = tmp_path / str(number)
            folder.mkdir()
            found[number] = run(template, small, folder, gzip.compress(tars[number]))

        threads = [threading.Thread(target=one, args=(number,)) for number in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    assert [found[n].diff_id[7:] for n in range(6)] == [hashlib.sha256(tar).hexdigest() for tar in tars]


def test_a_layer_that_is_still_coming_is_waited_for(template: Template, tmp_path: Path) -> None:
    feed, blob = Feed(), gzip.compress(TAR)

    def come() -> None:
        for total in range(0, len(blob), 100):
            feed.advance(total)
        feed.advance(len(blob), complete=True)

    thread = threading.Thread(target=come)
    thread.start()
    with SmallLayers(template, DEFAULT_LIMITS) as small:
        assert run(template, small, tmp_path, blob, feed=feed).index == INDEX
    thread.join(60)


def test_a_layer_that_never_comes_ends_with_its_call(template: Template, tmp_path: Path) -> None:
    with SmallLayers(template, DEFAULT_LIMITS) as small:
        with pytest.raises(DeadlineExceeded):
            run(template, small, tmp_path, TAR, feed=Feed(), call=Call(deadline=time.monotonic()))
        gone = Feed()
        threading.Timer(0.1, gone.close).start()
        with pytest.raises(Unavailable, match="its source was given up"):
            run(template, small, tmp_path, TAR, feed=gone)


# ------------------------------------------------------------------ lying, hanging, dead


@pytest.mark.hostile(35)
@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (frame(b"!", b"28"), Internal),
        (frame(b"x", b""), Internal),
        (frame(b"+", TAR) + b"more", Internal),
        (frame(b"+", b"", length=SMALL_TAR + 1), Internal),
        (frame(b"+", b"", length=1 << 63), Internal),
        (frame(b"-", b"{}"), Internal),
        (frame(b"-", b"[" * 100_000), Internal),
        (frame(b"-", b" " * (1 << 20)), Internal),
        (frame(b"+", b"no tar" * 100), InvalidArgument),
    ],
)
def test_a_liar_is_not_believed(
    template: Template, orders: Orders, tmp_path: Path, answer: bytes, error: type[Error]
) -> None:
    orders(small="frame", answer=answer)
    with SmallLayers(template, DEFAULT_LIMITS) as small, pytest.raises(error):
        run(template, small, tmp_path, gzip.compress(TAR))


@pytest.mark.hostile(35)
def test_bytes_that_are_anothers_have_anothers_digest(
    template: Template, orders: Orders, tmp_path: Path
) -> None:
    other = Layer().file("other").tar()
    orders(small="frame", answer=frame(b"+", other))
    with SmallLayers(template, DEFAULT_LIMITS) as small:
        unpacked = run(template, small, tmp_path, gzip.compress(TAR))
    assert unpacked.diff_id == "sha256:" + hashlib.sha256(other).hexdigest()
    assert unpacked.index.names == [b"", b"other"]


@pytest.mark.parametrize(
    ("way", "words"),
    [("crash", "SIGSEGV"), ("exit", "exit code 3"), ("killed", "SIGKILL"), ("deaf", "closed its pipes")],
)
def test_a_worker_that_ends_fails_one_layer_and_the_next_has_its_own(
    template: Template, orders: Orders, tmp_path: Path, way: str, words: str
) -> None:
    orders(small=way)
    with SmallLayers(template, DEFAULT_LIMITS) as small:
        with pytest.raises(Unavailable, match=words):
            run(template, small, tmp_path, gzip.compress(TAR))
        assert run(template, small, tmp_path, gzip.compress(TAR)).index == INDEX


@pytest.mark.parametrize("size", [len(TAR), SMALL_BLOB])
def test_a_worker_that_hangs_is_ended(template: Template, orders: Orders, tmp_path: Path, size: int) -> None:
    """Also if it does not even read."""
    orders(small="sleep")
    limits: Limits = replace(DEFAULT_LIMITS, worker_stall=1)
    with SmallLayers(template, limits) as small, pytest.raises(Unavailable, match=r"limits\.worker_stall"):
        run(template, small, tmp_path, TAR.ljust(size, b"\0"))


def test_a_cancelled_call_waits_neither_for_it_nor_for_its_turn(
    template: Template, orders: Orders, tmp_path: Path
) -> None:
    orders(small="sleep")
    token, raised = CancelToken(), list[Error]()
    with SmallLayers(template, DEFAULT_LIMITS) as small:

        def one(number: int) -> None:
            folder = tmp_path / str(number)
            folder.mkdir()
            try:
                run(template, small, folder, TAR, call=Call(cancel=token))
            except Error as exc:
                raised.append(exc)

        threads = [threading.Thread(target=one, args=(number,)) for number in range(3)]
        for thread in threads:
            thread.start()
        token.cancel()
        for thread in threads:
            thread.join(60)
    assert [type(exc) for exc in raised] == [Cancelled] * 3


def test_it_can_write_to_pipes_alone(template: Template, orders: Orders, tmp_path: Path) -> None:
    """It has no descriptor of a blob or a tar."""
    with SmallLayers(template, DEFAULT_LIMITS) as small:
        run(template, small, tmp_path, gzip.compress(TAR))
        deadline = time.monotonic() + 60
        while len(left := children(template)) > 1:  # the one that indexed is on its way out
            assert time.monotonic() < deadline
            time.sleep(0.005)
        (worker,) = left
        held = [os.readlink(path) for path in Path(f"/proc/{worker.pid}/fd").iterdir()]
    assert sorted(link.split(":")[0] for link in held) == ["/dev/null", "pipe", "pipe", "pipe"]


def test_a_full_disk_is_found_by_us(template: Template, tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(TAR)
    with (
        (tmp_path / "source").open("rb") as source,
        open("/dev/full", "wb") as full,
        SmallLayers(template, DEFAULT_LIMITS) as small,
        contextlib.closing(Feed.whole(len(TAR))) as feed,
        pytest.raises(OSError, match=os.strerror(errno.ENOSPC)),
    ):
        unpack(template, source.fileno(), feed, tar=full.fileno(), call=CALL, small=small)


def test_the_words_of_a_worker_are_its_layers(template: Template, orders: Orders, tmp_path: Path) -> None:
    said = {"code": "INVALID_ARGUMENT", "attempted": "a", "reason": "\033[2J", "hint": "", "details": {}}
    orders(small="frame", answer=frame(b"-", json.dumps(said).encode()))
    with SmallLayers(template, DEFAULT_LIMITS) as small, pytest.raises(InvalidArgument) as caught:
        run(template, small, tmp_path, TAR)
    assert str(caught.value).isprintable()
