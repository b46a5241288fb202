"""Pulls of one large layer, by processes that are killed, cut off, and follow one another.

The server counts the layer's bytes that it sends; what a download does with each answer is in
test_downloads.py.  The shares are small; the large trials have 500 MB, as the issue demands.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import orlop
from conftest import StoreDirs
from orlop.content.extents import decode_entries
from orlop.observe import Call, NullObserver, Progress
from orlop.registry.blobs.ranges import Pace
from support.daemons import Crew, daemon
from support.rangeserver import Asked, BigLayer, RangeServer, Way

pytestmark = pytest.mark.root

SHARE = 16 << 20
FULL = 500_000_000
EAGER = Pace(split=1 << 20, piece=256 << 10, most=1 << 20, window=1 << 30, interval=0, gain=0)
PULL = """
import sys
import orlop
from orlop.registry.blobs.ranges import Pace
root, run, name, pace = sys.argv[1:]
with orlop.open(root, run) as store:
    if pace:
        store.verbs._core.pace = eval(pace)
    store.pull(name)
"""
PATIENCE = 100.0  # seconds until something that must happen is given up


@contextmanager
def pulling(dirs: StoreDirs, server: RangeServer, pace: str = "") -> Iterator[subprocess.Popen[bytes]]:
    """A process that pulls; it is over when the context ends."""
    command = [sys.executable, "-c", PULL, os.fspath(dirs.root), os.fspath(dirs.run), server.name, pace]
    with ended(subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)) as process:
        yield process


@contextmanager
def ended(process: subprocess.Popen[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def until(done: Callable[[], bool], *processes: subprocess.Popen[bytes]) -> None:
    """Wait for something that must happen while some processes live."""
    deadline = time.monotonic() + PATIENCE
    while not done():
        assert time.monotonic() < deadline
        assert all(process.poll() is None for process in processes)
        time.sleep(0.02)


def held(dirs: StoreDirs, server: RangeServer) -> int:
    """How many bytes of the layer are on the disk, by the download's own account."""
    folder = dirs.root / "content/ingest" / server.layer.digest.removeprefix("sha256:")
    try:
        size = (folder / "data").stat().st_size
        return decode_entries((folder / "extents").read_bytes(), size)[0].total
    except FileNotFoundError:
        return size if (folder / "data").exists() else 0


def brings(dirs: StoreDirs, server: RangeServer) -> None:
    """A pull to the end, in this process; the image is whole."""
    with orlop.open(dirs.root, dirs.run) as store:
        store.pull(server.name)
        assert store.check(full=True).sound
        assert [info.name for info in store.images()] == [server.name]
        store.remove(server.name)


# ------------------------------------------------------------------ cuts and kills


@pytest.mark.hostile(39)
@pytest.mark.hostile(38)
@pytest.mark.parametrize("pace", [Pace(), EAGER], ids=["one stream", "several"])
def test_a_pull_that_is_killed_goes_on_with_all_it_had(store_dirs: StoreDirs, pace: Pace) -> None:
    streams = 1 if pace == Pace() else 4
    with RangeServer(BigLayer(SHARE)) as server:
        server.way = lambda asked: Way(hold=700_000)
        with pulling(store_dirs, server, repr(pace)) as process:
            until(lambda: held(store_dirs, server) == streams * 700_000, process)
            process.send_signal(signal.SIGKILL)
            process.wait()
        server.way = lambda asked: Way()
        brings(store_dirs, server)
        assert server.served - server.layer.size < server.layer.size / 20


@pytest.mark.hostile(38)
def test_a_pull_that_is_cut_twenty_times_moves_hardly_a_byte_twice(store_dirs: StoreDirs) -> None:
    cuts_and_kills(store_dirs, BigLayer(SHARE), random.Random(7), cuts=20, kills=0)


@pytest.mark.hostile(38)
@pytest.mark.hostile(39)
@pytest.mark.soak
@pytest.mark.large
def test_cuts_and_kills_of_500_megabytes_move_hardly_a_byte_twice(
    store_dirs: StoreDirs, soak_seconds: float
) -> None:
    seed = int(os.environ.get("SEED") or time.time())
    dice, layer, turns = random.Random(seed), BigLayer(FULL), 0
    end = time.monotonic() + soak_seconds
    try:
        while turns < 2 or time.monotonic() < end:
            cuts_and_kills(store_dirs, layer, dice, cuts=20 * (turns % 2 == 0), kills=turns % 2)
            turns += 1
    finally:
        print(f"SEED={seed}: {turns} turns")  # noqa: T201


def cuts_and_kills(dirs: StoreDirs, layer: BigLayer, dice: random.Random, cuts: int, kills: int) -> None:
    """Pull with so many random cuts, after so many kills at random moments; less than 5 % comes twice."""
    places = sorted(dice.sample(range(layer.size), cuts))

    def way(asked: Asked) -> Way:
        first = asked.first or 0
        ahead = [place for place in places if place > first and (asked.last is None or place <= asked.last)]
        if not ahead:
            return Way()
        places.remove(ahead[0])
        return Way(cut=ahead[0] - first)

    with RangeServer(layer, way) as server:
        for number in range(1, kills + 1):
            goal = dice.randrange(layer.size) // (kills - number + 1)
            with pulling(dirs, server) as process:
                until(lambda goal=goal: server.served >= goal or process.poll() is not None)
                process.send_signal(signal.SIGKILL)
                process.wait()
        brings(dirs, server)
        assert not places
        again = server.served - server.layer.size
        assert 0 <= again < server.layer.size / 20


# ------------------------------------------------------------------ together


@pytest.mark.parametrize("dies", [False, True], ids=["it ends", "it dies"])
def test_who_comes_second_follows_the_first_and_takes_over_when_it_dies(
    store_dirs: StoreDirs, dies: bool
) -> None:
    said = store_dirs.work / "said"
    with RangeServer(BigLayer(SHARE)) as server:
        ways: list[Way] = []

        def way(asked: Asked) -> Way:
            ways.append(Way(hold=6_000_000 if not asked.number else None))
            return ways[-1]

        server.way = way
        command = [sys.executable, "-m", "orlop", "--root", store_dirs.root, "--run", store_dirs.run]
        with pulling(store_dirs, server) as first, said.open("wb") as log:
            until(lambda: held(store_dirs, server) == 6_000_000, first)
            second = subprocess.Popen(
                [*map(os.fspath, command), "pull", "--progress", "json", server.name],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
            )
            with ended(second):
                until(lambda: following(said) == {6_000_000}, first, second)
                if dies:
                    first.kill()
                else:
                    ways[0].go.set()
                assert second.wait(PATIENCE) == 0, said.read_text()
                assert dies or first.wait(PATIENCE) == 0
        assert len(server.asked) == (2 if dies else 1)
        assert server.served == server.layer.size
        with orlop.open(store_dirs.root, store_dirs.run) as store:
            assert [info.name for info in store.images()] == [server.name]


def test_of_two_clients_of_a_daemon_the_second_follows_the_first_and_moves_no_bytes(
    store_dirs: StoreDirs,
) -> None:
    said = store_dirs.work / "said"
    socket = store_dirs.work / "sock"
    with (
        RangeServer(BigLayer(SHARE)) as server,
        Crew(store_dirs.work / "crew") as crew,
        daemon(crew, store_dirs.root, store_dirs.run, socket=socket, registry=server.host) as address,
    ):
        ways: list[Way] = []

        def way(asked: Asked) -> Way:
            ways.append(Way(hold=6_000_000 if not asked.number else None))
            return ways[-1]

        server.way = way
        pull = (sys.executable, "-m", "orlop", "--host", address, "pull", "--progress", "json", server.name)
        first = crew.start("first", pull)
        until(lambda: held(store_dirs, server) == 6_000_000, first)
        with said.open("wb") as log:
            second = subprocess.Popen(
                pull, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=log, start_new_session=True
            )
        with ended(second):
            until(lambda: following(said) == {6_000_000}, first, second)
            ways[0].go.set()
            assert second.wait(PATIENCE) == 0, said.read_text()
            crew.wait(["first"], PATIENCE)
        assert len(server.asked) == 1
        assert server.served == server.layer.size
        with orlop.connect(address) as store:
            assert [info.name for info in store.images()] == [server.name]


def following(said: Path) -> set[int]:
    """The bytes that a follower reported, so far."""
    found = set()
    for line in said.read_text().splitlines():
        if line.endswith("}"):
            event = json.loads(line)
            if event.get("phase") == "following":
                assert event["total"] > event["done"]
                found.add(event["done"])
    return found


# ------------------------------------------------------------------ while it comes


@pytest.mark.parametrize("pace", [Pace(), EAGER], ids=["one stream", "several"])
def test_a_layer_is_read_before_its_last_byte_came_and_seen_by_nobody_before_it_is_whole(
    store_dirs: StoreDirs, pace: Pace
) -> None:
    seen: list[int] = []

    def tar() -> int:
        """The bytes of the tar in the making."""
        return sum(path.stat().st_size for path in store_dirs.root.glob("layers/new-*/layer.tar"))

    with (
        RangeServer(BigLayer(SHARE)) as server,
        orlop.open(store_dirs.root, store_dirs.run) as store,
        orlop.open(store_dirs.root, store_dirs.run) as other,
    ):
        store.verbs._core.pace = pace
        ways: list[Way] = []

        class Eye(NullObserver):
            """Looks when most has come, and then lets the rest come."""

            def progress(self, event: Progress) -> None:
                if event.phase == "fetching" and event.done > 4_000_000 and not seen:
                    deadline = time.monotonic() + PATIENCE
                    while not tar() and time.monotonic() < deadline:
                        time.sleep(0.01)
                    seen.append(tar())
                    assert other.images() == []
                    assert not [path for path in store_dirs.root.glob("layers/*") if "new-" not in path.name]
                    for way in ways:
                        way.go.set()

        def way(asked: Asked) -> Way:
            last = server.layer.size if asked.last is None else asked.last + 1
            near = last == server.layer.size
            ways.append(Way(hold=last - (asked.first or 0) - 1000 if near and not seen else None))
            return ways[-1]

        server.way = way
        store.pull(server.name, call=Call(observer=Eye()))
        assert seen[0] > 0
        assert server.served == server.layer.size
        assert [info.name for info in other.images()] == [server.name]
