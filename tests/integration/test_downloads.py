"""One blob into an ingest, from a registry that cuts, lies about ranges, changes what it has, and refuses.

What a pull makes of it is in test_transfers.py; what the plan says, without I/O, in test_registry_ranges.py.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from orlop.config import Settings
from orlop.content.ingests import Ingest
from orlop.errors import Cancelled, DataLoss, Error, NotFound, Unavailable
from orlop.images.fetching.download import Download, Wanted
from orlop.layers.worker.feed import Feed
from orlop.observe import Call, NullObserver, Progress
from orlop.registry.access.credentials import CredentialSources
from orlop.registry.blobs.ranges import Pace
from orlop.registry.client import Registry
from orlop.registry.net.retry import Backoff
from orlop.spec.digest import Digest
from orlop.spec.reference import Reference
from support.rangeserver import Asked, BigLayer, RangeServer, Way

SIZE = 4 << 20
LAYER = BigLayer(SIZE)
EAGER = Pace(split=256 << 10, piece=128 << 10, most=512 << 10, window=64 << 20, interval=0, gain=0)
SLOW = Pace(split=1 << 40)  # never a second connection
SETTINGS = Settings(timeout=20.0, retries=2)


@pytest.fixture
def client() -> Iterator[Registry]:
    registry = Registry(SETTINGS, CredentialSources(), backoff=Backoff(base=0.001))
    yield registry
    registry.close()


class Bench:
    """A server of one layer, and the folder that it is fetched to."""

    def __init__(self, folder: Path, client: Registry, server: RangeServer) -> None:
        self.folder, self.client, self.server = folder, client, server
        self.call = Call()

    def ingest(self) -> Ingest:
        return Ingest(self.folder / "ingest", self.folder / "blob")

    def download(self, ingest: Ingest, *, pace: Pace = EAGER, settle: bool = False) -> Download:
        wanted = Wanted(
            ref=Reference.parse(self.server.name),
            digest=Digest(self.server.layer.digest),
            size=self.server.layer.size,
        )
        return Download(
            self.client, wanted, ingest, settings=SETTINGS, pace=pace, settle=settle, call=self.call
        )

    def fetch(self, *, pace: Pace = EAGER, settle: bool = False) -> Download:
        """Fetch to the end; raises what went wrong.  What is right has the right digest, or this is wrong."""
        ingest = self.ingest()
        download = self.download(ingest, pace=pace, settle=settle)
        download.start()
        try:
            download.join()
            assert b"".join(ingest.chunks()) == self.server.layer.read(0, self.server.layer.size)
        finally:
            download.stop()
            ingest.close()
        return download


@pytest.fixture
def bench(tmp_path: Path, client: Registry) -> Iterator[Bench]:
    with RangeServer(LAYER) as server:
        yield Bench(tmp_path, client, server)


def ranges(server: RangeServer) -> list[tuple[int | None, int | None]]:
    return [(asked.first, asked.last) for asked in server.asked]


def test_a_small_blob_is_there_or_has_failed_when_its_download_has_been_started(bench: Bench) -> None:
    with RangeServer(BigLayer(4096)) as server:
        bench.server = server
        server.way = lambda asked: Way(cut=100) if asked.number == 0 else Way()
        with closing(bench.ingest()) as ingest:
            download = bench.download(ingest, pace=SLOW)
            download.start()
            assert download.done
            assert {one.name for one in threading.enumerate()} & {"fetch", "fetch-range"} == set()
            download.join()
            download.stop()
            ingest.truncate()
            server.way = lambda asked: Way(status=404)
            download = bench.download(ingest, pace=SLOW)
            download.start()
            assert isinstance(download.failure, NotFound)
            with pytest.raises(NotFound):
                download.join()
            download.stop()


# ------------------------------------------------------------------ what is asked for


def test_a_blob_comes_over_one_connection_unless_more_would_pay(bench: Bench) -> None:
    assert not bench.fetch(pace=SLOW).mixed
    assert ranges(bench.server) == [(None, None)]
    assert bench.server.served == LAYER.size


def test_a_large_blob_comes_in_ranges_over_several_connections_and_never_twice(bench: Bench) -> None:
    go = threading.Event()

    def way(asked: Asked) -> Way:
        if asked.number == 3:
            go.set()
        return Way(hold=100 << 10, go=go) if asked.number < 3 else Way()

    bench.server.way = way  # the first three answers wait for a fourth
    bench.fetch()
    assert bench.server.most >= 4
    assert ranges(bench.server)[0] == (0, (256 << 10) - 1)
    assert bench.server.served == LAYER.size


def test_bytes_that_are_there_are_not_asked_for_again(bench: Bench) -> None:
    ingest = bench.ingest()
    for start, end in ((0, 1000), (300_000, 900_000), (2_000_000, LAYER.size)):
        ingest.write_at(start, LAYER.read(start, end - start))
    ingest.close()
    bench.fetch(pace=SLOW)
    assert ranges(bench.server) == [(1000, 299_999), (900_000, 1_999_999)]
    assert bench.server.served == 299_000 + 1_100_000


def test_what_is_whole_already_is_not_asked_for_but_verified(bench: Bench) -> None:
    ingest = bench.ingest()
    ingest.write(LAYER.read(0, LAYER.size))
    ingest.close()
    bench.fetch()
    assert bench.server.asked == []
    ingest = bench.ingest()
    ingest.write_at(5, b"!")
    ingest.close()
    with pytest.raises(DataLoss, match="the bytes have the digest"):
        bench.fetch()


@pytest.mark.distribution("pull.blob.range")
@pytest.mark.hostile(38)
@pytest.mark.parametrize("pace", [SLOW, EAGER], ids=["one stream", "several"])
def test_twenty_cuts_cost_less_than_a_twentieth(bench: Bench, pace: Pace) -> None:
    dice = random.Random(4)
    bench.server.way = lambda asked: Way(cut=dice.randrange(70_000, 200_000)) if asked.number < 20 else Way()
    bench.fetch(pace=pace)
    assert len(bench.server.asked) > 20
    assert bench.server.served - LAYER.size < LAYER.size / 20


# ------------------------------------------------------------------ lies and refusals


@pytest.mark.hostile(38)
@pytest.mark.parametrize(
    "lie",
    [
        Way(whole=True),
        Way(said="bytes 0-9/10"),
        Way(said=f"bytes 7-{LAYER.size - 1}/{LAYER.size}"),
        Way(said="nonsense"),
        Way(status=416),
        Way(status=403),
        Way(said=f"bytes 0-262143/{LAYER.size + 1}"),
    ],
    ids=["200 for 206", "another range", "shifted", "no range", "416", "403", "another size"],
)
def test_where_ranges_are_refused_one_stream_brings_it_all(bench: Bench, lie: Way) -> None:
    bench.server.way = lambda asked: replace(lie) if asked.first is not None else Way()
    bench.fetch()
    assert ranges(bench.server) in ([(0, (256 << 10) - 1)], [(0, (256 << 10) - 1), (None, None)])


@pytest.mark.hostile(38)
@pytest.mark.parametrize("lie", [Way(whole=True), Way(said="bytes 0-9/10"), Way(status=416), Way(status=403)])
def test_where_ranges_are_refused_in_the_middle_one_stream_brings_the_rest(bench: Bench, lie: Way) -> None:
    bench.server.way = lambda asked: replace(lie) if asked.number > 2 and asked.first is not None else Way()
    bench.fetch()
    assert sum(asked.first is None or lie.whole for asked in bench.server.asked[3:]) <= 8


@pytest.mark.distribution("pull.blob.no-range")
@pytest.mark.hostile(38)
def test_a_cut_stream_is_resumed_from_the_start_where_there_are_no_ranges(bench: Bench) -> None:
    bench.server.way = lambda asked: Way(whole=True, cut=2_000_000 if not asked.number else None)
    bench.fetch(pace=SLOW)
    assert bench.server.served == 2_000_000 + LAYER.size


@pytest.mark.hostile(38)
def test_an_answer_that_is_shorter_than_asked_for_is_gone_on_from(bench: Bench) -> None:
    bench.server.way = lambda asked: (
        Way(cut=100_000) if not asked.number else Way(last=asked.first and asked.first + 999_999)
    )
    bench.fetch(pace=SLOW)
    assert [first for first, _ in ranges(bench.server)] == [
        None, 100_000, 1_100_000, 2_100_000, 3_100_000, 4_100_000
    ]  # fmt: skip
    assert bench.server.served == LAYER.size


@pytest.mark.hostile(38)
@pytest.mark.parametrize("bytes_too", [True, False], ids=["other bytes", "the same bytes"])
def test_what_changed_on_the_way_is_not_mixed(bench: Bench, bytes_too: bool) -> None:
    def way(asked: Asked) -> Way:
        if not asked.number:
            return Way(cut=1_000_000)
        assert asked.number > 2 or asked.headers.get("if-range") == '"one"'
        return Way(etag='"two"', shift=-512 if bytes_too else 0)

    bench.server.way = way
    with pytest.raises(DataLoss, match="another ETag") as caught:
        bench.fetch(pace=SLOW)
    assert bench.server.host in str(caught.value)
    ingest = bench.ingest()
    assert ingest.size == 1_000_000  # nothing of the second
    ingest.truncate()
    ingest.close()
    bench.server.way = lambda asked: Way(etag=f'"{asked.number}"', cut=1_500_000)
    bench.fetch(settle=True)  # whatever it is called now, the digest has the last word


@pytest.mark.hostile(38)
@pytest.mark.hostile(19)
def test_bytes_from_elsewhere_in_a_range_are_found_by_the_digest(bench: Bench) -> None:
    bench.server.way = lambda asked: Way(shift=-512) if asked.number else Way(cut=1_000_000)
    with pytest.raises(DataLoss, match="the bytes have the digest"):
        bench.fetch(pace=SLOW)


@pytest.mark.hostile(38)
def test_a_registry_that_has_too_many_of_us_keeps_the_first(bench: Bench) -> None:
    refused = threading.Event()

    def way(asked: Asked) -> Way:
        if asked.number == 1:
            refused.set()
            return Way(status=429)
        return Way(hold=100 << 10, go=refused)

    bench.server.way = way
    bench.fetch(pace=replace(EAGER, hold=3600))
    assert bench.server.served == LAYER.size


@pytest.mark.hostile(38)
@pytest.mark.parametrize(
    ("way", "error", "asked"),
    [
        (Way(status=404), NotFound, 1),
        (Way(cut=0), Unavailable, 3),
        (Way(status=503), Unavailable, 9),
    ],
    ids=["404", "nothing ever comes", "503"],
)
def test_what_does_not_get_better_ends(bench: Bench, way: Way, error: type[Error], asked: int) -> None:
    bench.server.way = lambda _: replace(way)
    with pytest.raises(error):
        bench.fetch()
    assert len(bench.server.asked) <= asked


# ------------------------------------------------------------------ in the meantime


def test_the_worker_hears_of_the_front_alone_and_before_the_end(bench: Bench) -> None:
    told: list[int] = []

    class Ear(Feed):
        """A feed that keeps what it is told."""

        def advance(self, total: int, *, complete: bool = False) -> None:
            told.append(total)
            if total >= 1_000_000:
                held.set()
            super().advance(total, complete=complete)

    held = threading.Event()
    bench.server.way = lambda asked: Way(hold=1_500_000, go=held) if not asked.number else Way()
    ingest, ear = bench.ingest(), Ear()
    download = bench.download(ingest)
    download.start(ear)
    try:
        download.join()
        assert told == sorted(told)
        assert told[-1] == LAYER.size
        assert held.is_set()
        assert ear.complete
    finally:
        download.stop()
        ingest.close()
        ear.close()


def test_stopping_ends_a_download_that_waits_and_keeps_what_came(bench: Bench) -> None:
    came = threading.Event()

    class Eye(NullObserver):
        def progress(self, event: Progress) -> None:
            if event.done:
                came.set()

    bench.call = Call(observer=Eye())
    bench.server.way = lambda asked: Way(hold=700_000)
    ingest = bench.ingest()
    download = bench.download(ingest)
    download.start()
    assert came.wait(30)
    download.stop()
    assert download.failure is None
    assert not download.done
    held = ingest.held
    ingest.close()
    assert held
    again = bench.ingest()
    assert again.held == held
    again.close()


def test_cancelling_the_call_ends_all_connections(bench: Bench) -> None:
    bench.server.way = lambda asked: Way(hold=300_000)
    ingest = bench.ingest()
    download = bench.download(ingest)
    download.start()
    bench.call.cancel.cancel()
    with pytest.raises(Cancelled):
        download.join()
    ingest.close()
