"""Events over the daemon's socket: resumed, over its death and return, and of what other processes do."""

import itertools
import json
import os
import signal
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest

import orlop
from orlop.client import RemoteStore
from orlop.images.events import Event, EventQuery, EventStream, Position
from orlop.observe import Call, CancelToken, recording
from orlop.proto.orlop.v1 import events_pb2, events_pb2_grpc
from orlop.service import Daemon, ServiceLimits
from orlop.telemetry.metrics import Metrics
from orlop.testing.fake import FakeStore
from orlop.testing.registry import MemoryRegistry
from support import images
from support.daemons import Crew
from support.daemons import daemon as daemon_process
from support.eventlog import check_log
from support.layers import Layer

BOUND = 240.0  # seconds, after which a test has failed


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder with a short path, as sockets need."""
    with tempfile.TemporaryDirectory(prefix="orlop-", dir="/var/tmp") as folder:
        yield Path(folder)


@pytest.fixture
def fake(place):
    return FakeStore(str(place / "root"), str(place / "run"))


@contextmanager
def daemon_over(store, place, **options):
    running = Daemon(store, f"unix://{place}/socket/orlop.sock", **options)
    running.start()
    try:
        yield running
    finally:
        running.stop(grace=0.0)


@pytest.fixture
def daemon(fake, place):
    with daemon_over(fake, place) as running:
        yield running


@pytest.fixture
def remote(daemon):
    store = RemoteStore.connect(str(daemon.address))
    yield store
    store.close()


def bounded():
    """A call that cannot hang."""
    return Call(deadline=time.monotonic() + BOUND)


def followed(verbs, **query):
    return EventStream(verbs.watch_events(EventQuery(follow=True, **query), call=bounded()))


def test_a_client_sees_what_the_store_tells(fake, remote):
    fake.tell("image.created", "a", id="1", was="2")
    query = EventQuery(kinds=("image",))
    assert list(remote.watch_events(query)) == list(fake.watch_events(query))
    with followed(remote) as stream:
        fake.tell("root.prepared", "/srv/ä")
        assert next(stream).subject == "/srv/ä"
        assert stream.cursor == "0fa4e000-2"


@pytest.mark.parametrize(
    ("query", "kind"),
    [
        (EventQuery(cursor="x"), orlop.InvalidArgument),
        (EventQuery(cursor="00000000-1"), orlop.FailedPrecondition),
        (EventQuery(cursor="0fa4e000-9"), orlop.FailedPrecondition),
    ],
    ids=["no cursor", "another log", "the future"],
)
def test_errors_are_the_same_through_the_socket(fake, remote, daemon, query, kind):
    for verbs in (fake, remote):
        with pytest.raises(kind) as caught:
            list(verbs.watch_events(query, call=bounded()))
        if kind is orlop.FailedPrecondition:
            assert caught.value.details["lost"] == query.cursor
    with grpc.insecure_channel(f"unix:{daemon.address.path}") as channel:
        stub = events_pb2_grpc.EventsStub(channel)
        with pytest.raises(grpc.RpcError) as raw:
            list(stub.Watch(events_pb2.WatchRequest(kinds=["a\0b"]), timeout=BOUND))
        assert raw.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_a_follower_survives_daemons_that_stop_and_come_again(fake, place):
    seen = []
    with daemon_over(fake, place):
        verbs = RemoteStore.connect(f"unix://{place}/socket/orlop.sock")
        stream = followed(verbs, kinds=("image",))
        fake.tell("image.created", "1")
        seen.append(next(stream).subject)
        fake.tell("root.prepared", "not wanted")
    fake.tell("image.created", "2")  # nobody listens
    with daemon_over(fake, place):
        fake.tell("image.removed", "3")
        seen += [event.subject for event in itertools.islice(stream, 2)]
    with daemon_over(fake, place):
        fake.tell("image.removed", "4")
        seen.append(next(stream).subject)
        assert seen == ["1", "2", "3", "4"]
        stream.close()
    verbs.close()


def test_a_follower_whose_daemon_stays_away_ends_with_its_call(fake, place):
    token = CancelToken()
    with daemon_over(fake, place):
        verbs = RemoteStore.connect(f"unix://{place}/socket/orlop.sock")
        steps = verbs.watch_events(EventQuery(follow=True), call=Call(cancel=token))
        assert isinstance(next(steps), Position)
    threading.Timer(0.3, token.cancel).start()
    with pytest.raises(orlop.Cancelled):
        next(steps)
    with pytest.raises(orlop.Unavailable):  # who has not begun is told at once
        next(verbs.watch_events(EventQuery(follow=True), call=bounded()))
    verbs.close()


def test_the_daemons_own_bound_on_a_call_is_no_end_of_following(fake, place):
    with daemon_over(fake, place, limits=ServiceLimits(transfers_deadline=0.2)):
        verbs = RemoteStore.connect(f"unix://{place}/socket/orlop.sock")
        with followed(verbs) as stream:
            threading.Timer(0.6, fake.tell, ("image.created", "late")).start()
            assert next(stream).subject == "late"
        verbs.close()


def test_many_followers_hold_up_no_other_call(fake, remote):
    streams = [followed(remote) for _ in range(20)]
    assert remote.images() == []
    fake.tell("image.created", "a")
    assert [next(stream).subject for stream in streams] == ["a"] * 20
    for stream in streams:
        stream.close()


# ------------------------------------------------------------------ real processes


def rootfs(folder):
    (folder / "hello").write_text("hello")
    with tarfile.open(folder / "rootfs.tar", "w") as tar:
        tar.add(folder / "hello", "hello")
    return folder / "rootfs.tar"


def test_a_killed_daemon_loses_no_event_and_commands_are_seen_through_it(place):
    root, run, socket, tar = place / "root", place / "run", place / "o.sock", rootfs(place)

    def orlop_does(*words):
        subprocess.run(
            [*(sys.executable, "-m", "orlop", "--root", root, "--run", run), *words],
            check=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=BOUND,
        )

    found: list[Event] = []
    with Crew(place / "crew") as crew:
        with daemon_process(crew, root, run, socket=socket) as address:
            verbs = RemoteStore.connect(address)
            stream = followed(verbs)
            orlop_does("import", "--format", "rootfs", "--name", "localhost/a", tar)  # not by the daemon
            found += itertools.islice(stream, 2)
            os.killpg(crew.member("daemon").pid, signal.SIGKILL)
            crew.member("daemon").wait(BOUND)
        orlop_does("--driver", "native", "prepare", "localhost/a", place / "r")  # while none is there
        with daemon_process(crew, root, run, socket=socket):
            verbs.cleanup(str(place / "r"))
            verbs.remove("localhost/a")
            found += itertools.islice(stream, 4)
            stream.close()
        verbs.close()
    assert [event.kind for event in found] == [
        *("image.created", "image.imported", "root.prepared", "root.cleaned", "image.removed"),
        "store.collected",
    ]
    with orlop.open(root, run) as store:
        assert check_log(store) == found


@pytest.mark.root
def test_every_verb_leaves_its_events_and_its_amounts(store_dirs):
    tars = [Layer().file(f"f{number}", bytes([number]) * 9_000).tar() for number in range(2)]
    image, work = images.make_image(tars), store_dirs.work
    metrics = Metrics()
    with MemoryRegistry() as server, recording(metrics):
        for data in image.blobs.values():
            server.add_blob("app", data)
        server.add_manifest("app", "v1", image.document, image.media_type)
        settings = orlop.Settings(insecure_registries=(server.host,), durable=False)
        with orlop.open(store_dirs.root, store_dirs.run, settings=settings) as store:
            name = store.pull(f"{server.host}/app:v1").name
            store.pull(name)
            root = store.prepare(name, work / "a", mount=True)
            (work / "a/new").write_text("new")
            root.checkpoint("one")
            root.fork(work / "b")
            root.rollback("one")
            root.drop_checkpoint("one")
            root.unmount()
            made = root.commit("localhost/made").name
            root.fork(work / "c", move=True)
            store.push(made, f"{server.host}/made:1")
            for path in ("b", "c"):
                store.get(work / path).cleanup()
            store.remove(made)
            store.remove(name)
            store.collect()
            found = check_log(store)
    gone = [event.attributes for event in found if event.kind == "store.collected"]
    told = [(event.kind, os.path.basename(event.subject)) for event in found if event.subject]
    assert told == [
        *(("image.created", "app:v1"), ("image.pulled", "app:v1"), ("image.pulled", "app:v1")),
        *(("root.prepared", "a"), ("root.mounted", "a"), ("root.checkpointed", "a"), ("root.forked", "b")),
        *(("root.unmounted", "a"), ("root.rolled-back", "a"), ("root.mounted", "a")),
        *(("root.checkpoint-dropped", "a"), ("root.unmounted", "a")),
        *(("image.created", "made:latest"), ("image.committed", "made:latest"), ("root.moved", "c")),
        *(("image.updated", "made:latest"), ("image.pushed", "made:latest")),
        *(("root.cleaned", "b"), ("root.cleaned", "c"), ("image.removed", "made:latest")),
        ("image.removed", "app:v1"),
    ]
    about = {event.kind: event.attributes for event in found}
    assert about["image.pushed"]["to"] == f"{server.host}/made:1"
    assert about["image.committed"]["root"] == str(work / "a")
    assert about["root.rolled-back"]["checkpoint"] == "one"
    assert about["root.moved"] == {"from": str(work / "a")}
    assert len(told) + len(gone) == len(found)
    assert sum(int(one.get("layers", 0)) for one in gone) >= 3
    assert sum(int(one["bytes"]) for one in gone) > 18_000

    def amount(name):
        return metrics.registry.get_sample_value(f"orlop_{name}_total")

    assert amount("layers_fetched") == 2
    assert amount("layers_reused") >= 2
    assert amount("fetched_bytes") == sum(layer["size"] for layer in json.loads(image.document)["layers"])
    assert amount("pushed_bytes") > 0
    assert amount("blobs_pushed") >= 1
    assert amount("collections") == 1
    assert amount("collected_bytes") > 18_000
    steps = {"pull", "fetch", "index", "chain", "activate", "prepare", "mount", "capture", "commit", "fork"}
    steps |= {"checkpoint", "rollback", "cleanup", "push", "collect"}
    for step in steps:
        assert metrics.registry.get_sample_value("orlop_step_seconds_count", {"step": step}), step
