"""The daemon and its client over a real unix socket, with a store in memory behind them."""

import dataclasses
import inspect
import io
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

import grpc
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

import orlop
from orlop import errors
from orlop.client import RemoteStore
from orlop.client.address import Address
from orlop.images import api
from orlop.images.api import CommitOptions, ExtraMount, IdMap, PrepareOptions
from orlop.images.contents import FindOptions
from orlop.images.events import EventQuery
from orlop.images.exports import ExportOptions
from orlop.images.forks import ForkOptions
from orlop.images.imports import ImportOptions
from orlop.images.upkeep import Finding, Keep
from orlop.observe import Auth, Call, CancelToken, Unheld
from orlop.proto.orlop.v1 import images_pb2, images_pb2_grpc, transfer_pb2, transfer_pb2_grpc
from orlop.service import Daemon, ServiceLimits
from orlop.service.listener import Owner, claim_socket
from orlop.testing.fake import FakeStore

SOON = 10.0  # seconds: what should take milliseconds, on a busy machine


class Log:
    """An observer that keeps what it is told."""

    def __init__(self):
        self.events = []
        self.warnings = []

    def progress(self, event):
        self.events.append(event)

    def warning(self, text):
        self.warnings.append(text)


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder with a short path, as sockets need."""
    folder = Path(tempfile.mkdtemp(prefix="orlop-", dir="/var/tmp"))
    yield folder
    shutil.rmtree(folder)


def stocked(place: Path, root: str = "root") -> FakeStore:
    store = FakeStore(str(place / root), str(place / "run"))
    store.publish("alpine", layers=(1000, 200), warnings=("left out: /dev/null", "and more"))
    store.publish("debian", layers=(5000,), platform="linux/arm64/v8")
    store.publish("several", more=("linux/arm64", "linux/s390x"))
    store.files["docker.io/library/alpine:latest"] = {
        b"etc/\xff": b"1\n",
        b"etc/hosts": b"",
        b"bin/sh": b"#!",
    }
    store.files["docker.io/library/debian:latest"] = {b"etc/hosts": b"more", b"usr/bin/sh": b"#!"}
    store.archives["/srv/images.tar"] = ["alpine", "debian"]
    store.archives["/srv/several.tar"] = ["several"]
    store.litter.update({"layer sha256:aa": 10, "chain bb": 20})
    store.findings += [
        Finding(kind="damage", problem="missing", thing=thing, detail="gone", affects=("alpine",))
        for thing in ("layer a", "layer b")
    ]
    return store


@contextmanager
def daemon_over(store: FakeStore, place: Path, **options) -> Iterator[Daemon]:
    daemon = Daemon(store, f"unix://{place}/socket/orlop.sock", **options)
    daemon.start()
    try:
        yield daemon
    finally:
        daemon.stop(grace=0.0)


@pytest.fixture
def fake(place) -> FakeStore:
    return stocked(place)


@pytest.fixture
def daemon(fake, place) -> Iterator[Daemon]:
    with daemon_over(fake, place) as running:
        yield running


@pytest.fixture
def remote(daemon) -> Iterator[RemoteStore]:
    store = RemoteStore.connect(str(daemon.address))
    yield store
    store.close()


@pytest.fixture
def channel(daemon) -> Iterator[grpc.Channel]:
    """As any other program would open one."""
    with grpc.insecure_channel(f"unix:{daemon.address.path}") as opened:
        yield opened


# ------------------------------------------------------------------ same verbs, same results

VIEW = PrepareOptions(view=True, labels={"a": "1", "ä": ""}, pull="missing")
MOUNTED = PrepareOptions(mount=True, self_contained=True, pull="never", platform="linux/amd64")
MAPS = (IdMap(inside=0, outside=100_000, size=1_000), IdMap(inside=1_000, outside=1_000, size=1))
WHOLE = PrepareOptions(
    driver="overlay",
    quota=512 << 20,
    extra=(
        ExtraMount(type="bind", source="/srv/ä", target="/src", options=("rbind", "ro")),
        ExtraMount(type="tmpfs", target="/tmp", options=("size=64m", "mode=1777")),
        ExtraMount(type="image", source="debian", target="/tools"),
    ),
    uid_map=MAPS,
    gid_map=MAPS[:1],
)
CHANGES = CommitOptions(
    author="me",
    message="why\nnot",
    changes=("ENV A=b", 'CMD ["sh"]'),
    created=1_700_000_000,
    newest=1_600_000_000,
    exclude=("tmp/*", "!tmp/ä"),
    squash=True,
    base="debian",
    annotations={"a.b": "c"},
    freeze="/none",
)

MOVED = ForkOptions(move=True, mount=True, labels={"of": "g"})

NOT_EMPTY = FindOptions(kinds=("file",), least=1)

EXT4 = ExportOptions(format="ext4", created=-1, size=1 << 40, platform="linux/amd64")


def exported(store, things, options, call):
    """What an export says, and what it wrote."""
    out = io.BytesIO()
    return [store.export(things, out, options=options, call=call), out.getvalue()]


def copied(store):
    """A tar to unpack."""
    return list(store.read_archive("alpine", b"etc"))


STEPS = [
    ("info", lambda s, c: s.info()),
    ("images", lambda s, c: s.images()),
    ("prepared", lambda s, c: s.prepared()),
    ("pull", lambda s, c: s.pull("alpine", call=c)),
    ("pull", lambda s, c: s.pull("debian", platform="linux/arm64", call=c)),
    ("pull", lambda s, c: s.pull("debian", platform="linux/s390x", call=c)),
    ("pull", lambda s, c: s.pull("Debian", call=c)),
    ("pull", lambda s, c: s.pull("absent:1", call=c)),
    ("pull", lambda s, c: s.pull("several", platform="linux/s390x", call=c)),
    ("pull", lambda s, c: s.pull("several", platform=("linux/arm64", "linux/amd64"), call=c)),
    ("inspect", lambda s, c: s.inspect("several", platform="linux/amd64")),
    ("inspect", lambda s, c: s.inspect("several", platform="plan9/mips")),
    ("pull", lambda s, c: s.pull("several", all_platforms=True, call=c)),
    ("pull", lambda s, c: s.pull("several", platform="linux/arm64", all_platforms=True, call=c)),
    ("push", lambda s, c: s.push("several", "127.0.0.1:5000/s", all_platforms=True, call=c)),
    ("push", lambda s, c: s.push("alpine", all_platforms=True, call=c)),
    ("load", lambda s, c: s.load("/srv/several.tar", platform="linux/arm64", call=c)),
    ("load", lambda s, c: s.load("/srv/several.tar", all_platforms=True, call=c)),
    ("images", lambda s, c: s.images()),
    ("prepare_root", lambda s, c: s.prepare_root("alpine", "/srv/a", call=c)),
    ("prepare_root", lambda s, c: s.prepare_root("alpine", "/srv/v", options=VIEW, call=c)),
    ("prepare_root", lambda s, c: s.prepare_root("alpine", "/srv/m", options=MOUNTED, call=c)),
    ("prepare_root", lambda s, c: s.prepare_root("alpine", "/srv/a", call=c)),
    ("prepare_root", lambda s, c: s.prepare_root("alpine", "srv/../b", call=c)),
    ("prepare_root", lambda s, c: s.prepare_root("absent", "/srv/b", options=MOUNTED, call=c)),
    ("prepare_root", lambda s, c: s.prepare_root("alpine", "/srv/unwatched")),
    ("prepare_root", lambda s, c: s.prepare_root("alpine", "/srv/unwatched-view", options=VIEW)),
    ("prepare_root", lambda s, c: s.prepare_root("alpine", "/srv/whole", options=WHOLE, call=c)),
    ("prepare_root", lambda s, c: s.prepare_root("alpine", "/srv/w", options=WHOLE)),
    (
        "prepare_root",
        lambda s, c: s.prepare_root("alpine", "/srv/n", options=PrepareOptions(driver="native")),
    ),
    ("prepare_root", lambda s, c: s.prepare_root("alpine", "/srv/x", options=PrepareOptions(uid_map=MAPS))),
    ("prepared", lambda s, c: s.prepared()),
    ("mounts", lambda s, c: s.mounts("/srv/whole")),
    ("mounts", lambda s, c: s.mounts("/srv/v")),
    ("mounts", lambda s, c: s.mounts("/srv/none")),
    ("mount", lambda s, c: s.mount("/srv/a")),
    ("unmount", lambda s, c: s.unmount("/srv/a")),
    ("commit", lambda s, c: s.commit("/srv/a", call=c)),
    ("commit", lambda s, c: s.commit("/srv/a", "localhost/b:1", options=CHANGES, call=c)),
    ("commit", lambda s, c: s.commit("/srv/v", call=c)),
    ("fork", lambda s, c: s.fork("/srv/a", ["/srv/f", "/srv/g"], call=c)),
    ("fork", lambda s, c: s.fork("/srv/a", ["/srv/f"], call=c)),
    ("fork", lambda s, c: s.fork("/srv/v", ["/srv/h"], call=c)),
    ("fork", lambda s, c: s.fork("/srv/none", ["/srv/h"], call=c)),
    ("checkpoint", lambda s, c: s.checkpoint("/srv/g", "one", call=c)),
    ("checkpoint", lambda s, c: s.checkpoint("/srv/g", "one", call=c)),
    ("fork", lambda s, c: s.fork("/srv/g", ["/srv/h"], options=MOVED, call=c)),
    ("checkpoints", lambda s, c: s.checkpoints("/srv/h")),
    ("checkpoints", lambda s, c: s.checkpoints("/srv/g")),
    ("rollback", lambda s, c: s.rollback("/srv/h", "one", call=c)),
    ("rollback", lambda s, c: s.rollback("/srv/h", "two", call=c)),
    ("drop_checkpoint", lambda s, c: s.drop_checkpoint("/srv/h", "one")),
    ("drop_checkpoint", lambda s, c: s.drop_checkpoint("/srv/h", "one")),
    ("prepared", lambda s, c: s.prepared()),
    ("inspect", lambda s, c: s.inspect("localhost/b:1")),
    ("inspect", lambda s, c: s.inspect("alpine")),
    ("inspect", lambda s, c: s.inspect("absent")),
    ("push", lambda s, c: s.push("localhost/b:1", call=c)),
    (
        "push",
        lambda s, c: s.push(
            "localhost/b:1",
            "127.0.0.1:5000/b:2",
            recompress=True,
            compression="zstd",
            level=7,
            format="zstd:chunked",
            call=c,
        ),
    ),
    ("push", lambda s, c: s.push("absent", call=c)),
    ("push", lambda s, c: s.push("alpine", "127.0.0.1:5000/b", tags=("2", "latest"), call=c)),
    ("fetch_blobs", lambda s, c: s.fetch_blobs("alpine", call=c)),
    ("fetch_blobs", lambda s, c: s.fetch_blobs("localhost/b:1", call=c)),
    ("fetch_blobs", lambda s, c: s.fetch_blobs("absent", call=c)),
    ("tag", lambda s, c: s.tag("alpine", "mine:2")),
    ("tag", lambda s, c: s.tag("alpine", "UPPER")),
    ("load", lambda s, c: s.load("/srv/images.tar", call=c)),
    ("load", lambda s, c: s.load("/srv/images.tar", name="localhost/b:1", call=c)),
    ("load", lambda s, c: s.load("/srv/none.tar", call=c)),
    ("load", lambda s, c: s.load([b"/srv/", b"images.tar"], call=c)),
    ("load", lambda s, c: s.load("/srv/images.tar", options=ImportOptions(replace=True), call=c)),
    ("export", lambda s, c: exported(s, ["alpine", "localhost/b:1"], ExportOptions(), c)),
    ("export", lambda s, c: exported(s, ["several"], ExportOptions(all_platforms=True, recompress=True), c)),
    ("export", lambda s, c: exported(s, ["alpine"], ExportOptions(all_platforms=True), c)),
    ("export", lambda s, c: exported(s, ["/srv/a"], EXT4, c)),
    ("export", lambda s, c: exported(s, ["/srv/none"], EXT4, c)),
    ("export", lambda s, c: exported(s, ["absent"], ExportOptions(format="docker"), c)),
    ("export", lambda s, c: exported(s, [], ExportOptions(compression="zstd", level=7), c)),
    ("label", lambda s, c: s.label("alpine", {"keep": "", "for": "ever"})),
    ("label", lambda s, c: s.label("alpine", {"keep": None})),
    ("label", lambda s, c: s.label("absent", {"keep": ""})),
    ("images", lambda s, c: s.images()),
    ("usage", lambda s, c: s.usage(call=c)),
    ("explain", lambda s, c: s.explain("alpine", call=c)),
    ("explain", lambda s, c: s.explain("absent", call=c)),
    ("diff", lambda s, c: list(s.diff("alpine", "debian", call=c))),
    ("diff", lambda s, c: list(s.diff("debian", "alpine", path=b"/etc", times=False, call=c))),
    ("diff", lambda s, c: list(s.diff("alpine", call=c))),
    ("blame", lambda s, c: s.blame("alpine", b"/etc/\xff", call=c)),
    ("blame", lambda s, c: s.blame("alpine", b"absent", call=c)),
    ("history", lambda s, c: s.history("alpine", call=c)),
    ("history", lambda s, c: s.history("absent", call=c)),
    ("tree", lambda s, c: list(s.tree("alpine", b"etc", depth=0, layers=True, call=c))),
    ("tree", lambda s, c: list(s.tree("debian", call=c))),
    ("tree", lambda s, c: list(s.tree("absent", call=c))),
    ("waste", lambda s, c: s.waste("alpine", files=0, call=c)),
    ("list_files", lambda s, c: list(s.list_files("alpine", recursive=True, call=c))),
    ("list_files", lambda s, c: list(s.list_files("debian", b"/etc", itself=True, call=c))),
    ("list_files", lambda s, c: list(s.list_files("debian", b"absent", call=c))),
    ("read_files", lambda s, c: b"".join(s.read_files("alpine", [b"etc/\xff", b"bin/sh"], call=c))),
    ("read_files", lambda s, c: b"".join(s.read_files("alpine", [b"etc"], call=c))),
    ("find_files", lambda s, c: list(s.find_files(None, b"sh", call=c))),
    ("find_files", lambda s, c: list(s.find_files("debian", b"*", options=NOT_EMPTY, call=c))),
    ("find_files", lambda s, c: list(s.find_files("absent", b"*", call=c))),
    ("read_archive", lambda s, c: b"".join(s.read_archive("alpine", b"etc/.", call=c))),
    ("read_archive", lambda s, c: b"".join(s.read_archive("alpine", b"absent", call=c))),
    ("write_archive", lambda s, c: s.write_archive("/srv/a", b"/", copied(s), archive=True, call=c)),
    ("write_archive", lambda s, c: s.write_archive("/srv/v", b"/x", copied(s), content=True, call=c)),
    ("write_archive", lambda s, c: s.write_archive("/srv/none", b"/x", copied(s), call=c)),
    ("list_files", lambda s, c: list(s.list_files("/srv/a", recursive=True, call=c))),
    ("pin", lambda s, c: s.pin("alpine", "mine")),
    ("pin", lambda s, c: s.pin("alpine", expires=1e9)),
    ("pin", lambda s, c: s.pin("absent")),
    ("pins", lambda s, c: s.pins()),
    ("unpin", lambda s, c: s.unpin("mine")),
    ("unpin", lambda s, c: s.unpin("mine")),
    ("share", lambda s, c: [*s.share("/srv/s", ["alpine"], form="store", run_only=True, call=c).images]),
    ("share", lambda s, c: s.share("/srv/s", ["alpine"], form="layout", call=c)),
    ("share", lambda s, c: s.share("/srv/none", [], call=c)),
    ("shares", lambda s, c: [dataclasses.replace(share, created="") for share in s.shares()]),
    ("drop_share", lambda s, c: s.drop_share("/srv/s", call=c)),
    ("drop_share", lambda s, c: s.drop_share("/srv/s", call=c)),
    ("check", lambda s, c: s.check(things=("layer a",), call=c)),
    ("check", lambda s, c: s.check(full=True, repair=True, pace=1 << 20, call=c)),
    ("check", lambda s, c: s.check(call=c)),
    ("backup", lambda s, c: s.backup("/srv/backup.tar", content=True, call=c)),
    ("backup", lambda s, c: s.backup("/srv/backup.tar", call=c)),
    ("remove", lambda s, c: s.remove(s.inspect("alpine").info.id)),
    ("remove", lambda s, c: s.remove(s.inspect("alpine").info.id.removeprefix("sha256:")[:12], force=True)),
    ("remove", lambda s, c: s.remove("alpine")),
    ("cleanup", lambda s, c: s.cleanup("/srv/a", call=c)),
    ("cleanup", lambda s, c: s.cleanup("/srv/a", call=c)),
    ("collect", lambda s, c: s.collect(dry_run=True, call=c)),
    ("collect", lambda s, c: s.collect(dry_run=True, keep=Keep(count=1, age=1.5, labels=("a=b",)), call=c)),
    ("collect", lambda s, c: s.collect(call=c)),
    ("collect", lambda s, c: s.collect(call=c)),
    ("info", lambda s, c: s.info()),
    ("watch_events", lambda s, c: list(s.watch_events(EventQuery(), call=c))),
    ("watch_events", lambda s, c: list(s.watch_events(EventQuery(oldest=True, kinds=("root",)), call=c))),
    ("watch_events", lambda s, c: list(s.watch_events(EventQuery(since_ns=1), call=c))),
    ("watch_events", lambda s, c: list(s.watch_events(EventQuery(cursor="0fa4e000-1"), call=c))),
    ("watch_events", lambda s, c: list(s.watch_events(EventQuery(cursor="00000000-1"), call=c))),
    ("watch_events", lambda s, c: list(s.watch_events(EventQuery(kinds=("no",)), call=c))),
]


def outcome(step, store):
    """All that a caller can see of a step."""
    log = Log()
    try:
        value = step(store, Call(observer=log))
    except errors.Error as exc:
        value = (type(exc), str(exc), exc.attempted, exc.reason, exc.hint, exc.details)
    # Of an item and phase the daemon may tell only the last state, if the client is slow
    last = {(event.item, event.phase): event for event in log.events}
    return value, last, log.warnings


def test_every_verb_gives_the_same_as_the_store_itself(place, remote):
    direct = stocked(place)
    failures = 0
    for number, (verb, step) in enumerate(STEPS):
        expected = outcome(step, direct)
        assert outcome(step, remote) == expected, f"step {number}: {verb}"
        failures += isinstance(expected[0], tuple)
    assert failures == 52, "a step that should fail does not, or the reverse"
    verbs = {name for name, _ in inspect.getmembers(api.Store, inspect.isfunction) if name[0] != "_"}
    assert {verb for verb, _ in STEPS} == verbs - {"close"}


def test_progress_and_warnings_of_a_pull_reach_the_observer_in_order(remote):
    log = Log()
    image = remote.pull("alpine", call=Call(observer=log))
    assert image.size == 1200
    assert [event.phase for event in log.events if event.total == 200][-2:] == ["indexing", "done"]
    assert log.warnings == ["left out: /dev/null", "and more"]


def test_the_library_works_on_a_daemon(daemon):
    with orlop.connect(str(daemon.address)) as store:
        with store.prepare("alpine", "/srv/a") as root:
            assert root.mounts[0].target == "/srv/a"
            assert root.mount().info.mounted
            assert root.commit("localhost/changed").name == "localhost/changed:latest"
        assert store.prepared() == []


def test_every_choice_of_prepare_reaches_a_daemon(fake, daemon):
    with orlop.connect(str(daemon.address)) as store:
        store.pull("debian")
        root = store.prepare(
            "alpine",
            "/srv/a",
            driver="overlay",
            quota=WHOLE.quota,
            extra=list(WHOLE.extra),
            uid_map=list(WHOLE.uid_map),
            gid_map=list(WHOLE.gid_map),
        )
        assert (root.info.driver, root.info.quota) == ("overlay", 512 << 20)
        assert (root.info.uid_map, root.info.gid_map) == (MAPS, MAPS[:1])
        assert [mount.target for mount in root.mounts] == [
            "/srv/a",
            "/srv/a/src",
            "/srv/a/tmp",
            "/srv/a/tools",
        ]
        assert root.info == fake.mounts("/srv/a")


def test_a_native_root_is_a_folder_and_others_are_not(daemon):
    tmpfs = ExtraMount(type="tmpfs", target="/tmp")
    with orlop.connect(str(daemon.address)) as store:
        native = store.prepare("alpine", "/srv/a", driver="native")
        assert native.folder == native.mounts[0].source
        assert store.prepare("alpine", "/srv/v", driver="native", view=True).folder is not None
        assert store.prepare("alpine", "/srv/t", driver="native", extra=[tmpfs]).folder is None
        assert store.prepare("alpine", "/srv/o", driver="overlay").folder is None
        assert store.prepare("alpine", "/srv/b", view=True).folder is None


def test_info_tells_of_each_driver(remote):
    info = remote.info()
    assert [driver.name for driver in info.drivers] == ["erofs", "overlay", "native"]
    assert (info.privilege, info.features["kernel"]) == ("none", "none")


def test_a_list_longer_than_grpcs_usual_message_arrives(fake, remote):
    fake.pull("alpine")
    labels = {"text": "x" * 1000}
    for number in range(6_000):
        fake.prepare_root("alpine", f"/srv/{number}", options=PrepareOptions(labels=labels))
    listed = remote.prepared()
    assert listed == fake.prepared()


def test_labels_keep_their_order_though_a_map_on_the_way_has_none(fake, remote):
    name = fake.pull("alpine").name
    remote.label(name, {f"key{number:02}": "" for number in range(20)})
    info = next(info for info in remote.images() if info.name == name)
    assert len(info.labels) == 20
    assert list(info.labels) == sorted(info.labels)


# ------------------------------------------------------------------ errors


@pytest.mark.parametrize("cls", [errors.Error, *errors.Error.__subclasses__()])
@pytest.mark.parametrize(
    ("verb", "step"),
    [
        ("images", lambda s: s.images()),
        ("pull", lambda s: s.pull("alpine")),
        ("cleanup", lambda s: s.cleanup("/srv/a")),
    ],
    ids=["unary", "stream", "with-a-call"],
)
def test_every_class_of_error_comes_through(cls, verb, step, fake, remote):
    error = cls("try ä\n", "漢字: no", hint="do\tthis", details={"errno": "ENOSPC", "": ""})
    fake.fail(verb, error)
    with pytest.raises(errors.Error) as caught:
        step(remote)
    got = caught.value
    assert type(got) is cls
    assert (str(got), got.attempted, got.reason) == (str(error), error.attempted, error.reason)
    assert (got.hint, got.details) == (error.hint, error.details)


@pytest.mark.parametrize("size", [1_000, 100_000])
def test_an_error_of_any_length_is_told(size, fake, remote):
    fake.fail("images", errors.FailedPrecondition("clean up /srv/a", "in use by " + "é" * size))
    with pytest.raises(errors.FailedPrecondition, match=r"^clean up /srv/a: in use by ééé"):
        remote.images()


@pytest.mark.parametrize("verb", ["images", "pull"])
def test_a_bug_is_logged_whole_and_told_as_internal_alone(verb, fake, remote, caplog):
    fake.fail(verb, ZeroDivisionError("secret of the house"))
    with pytest.raises(errors.Internal, match="unexpected error") as caught:
        remote.images() if verb == "images" else remote.pull("alpine")
    assert "secret" not in str(caught.value)
    assert "Traceback" not in str(caught.value.__cause__)
    assert "ZeroDivisionError: secret of the house" in caplog.text
    assert "in _begin\n    raise error" in caplog.text


def test_a_string_that_is_not_unicode_is_an_argument_error(remote):
    with pytest.raises(errors.InvalidArgument, match=r"not valid UTF-8"):
        remote.prepare_root("alpine", "/srv/\udcff")


@pytest.mark.parametrize("observer", [True, False], ids=["watched", "unwatched"])
@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (PrepareOptions(driver="btrfs"), "no such driver: 'btrfs'"),
        (PrepareOptions(quota=0), "a quota of 0 bytes"),
        (PrepareOptions(quota=-5), "a quota of -5 bytes"),
        (PrepareOptions(quota=2**63), "out of range"),
        (PrepareOptions(extra=(ExtraMount(type="nfs", target="/a"),)), "no such type of mount: 'nfs'"),
        (PrepareOptions(uid_map=(IdMap(inside=2**64, outside=0, size=1),)), "out of range"),
    ],
    ids=lambda value: value[:20] if isinstance(value, str) else "",
)
def test_a_choice_that_cannot_be_is_an_argument_error(observer, options, reason, fake, remote):
    call = Call(observer=Log()) if observer else None
    with pytest.raises(errors.InvalidArgument, match=reason) as caught:
        remote.prepare_root("alpine", "/srv/a", options=options, call=call)
    assert caught.value.attempted == "prepare /srv/a"
    assert fake.prepared() == []


def test_a_relative_path_to_load_is_refused_as_it_would_mean_the_daemons_folder(remote):
    with pytest.raises(errors.InvalidArgument, match=r"load images.tar: the path is not absolute"):
        remote.load("images.tar")


@pytest.mark.parametrize("size", [1 << 20, 2 << 20, 8 << 20])
def test_a_request_beyond_the_limit_is_refused_by_name(size, remote):
    labels = {"x": "y" * size}
    with pytest.raises(errors.ResourceExhausted, match=r"request_size.*raise daemon\.request_size") as caught:
        remote.prepare_root("alpine", "/srv/a", options=PrepareOptions(labels=labels))
    assert caught.value.details["limit"] == "daemon.request_size"


def test_a_call_unknown_to_the_daemon_is_unimplemented(fake, place, remote, monkeypatch):
    stub = remote._link._open("look").channel.unary_unary("/orlop.v1.Images/Fork")
    with pytest.raises(errors.Unimplemented, match="does not know this call"):
        remote._link.unary(lambda stubs: stub, b"", "fork /srv/a")


# ------------------------------------------------------------------ others' clients


def messages_of_2016():
    """The messages that a client knows which was generated from the definitions of 2016."""
    pool = descriptor_pool.DescriptorPool()
    shape = {
        "mount.proto": {
            "Mount": [("type", 1, "s"), ("source", 2, "s"), ("target", 3, "s"), ("options", 4, "r")]
        },
        "image.proto": {
            "PrepareRequest": [("path", 3, "s"), ("name", 2, "s")],
            "PrepareResponse": [("layers", 1, "m")],
            "CleanupRequest": [("path", 1, "s")],
            "CleanupResponse": [],
            "CommitRequest": [("path", 1, "s")],
            "CommitResponse": [("name", 1, "s")],
        },
    }
    field = descriptor_pb2.FieldDescriptorProto
    for name, messages in shape.items():
        file = descriptor_pb2.FileDescriptorProto(
            name=name, package="docker.containerkit.types", syntax="proto3"
        )
        if name == "image.proto":
            file.dependency.append("mount.proto")
        for message, fields in messages.items():
            made = file.message_type.add(name=message)
            for field_name, number, kind in fields:
                added = made.field.add(name=field_name, number=number)
                added.label = field.LABEL_OPTIONAL if kind == "s" else field.LABEL_REPEATED
                added.type = field.TYPE_MESSAGE if kind == "m" else field.TYPE_STRING
                if kind == "m":
                    added.type_name = ".docker.containerkit.types.Mount"
        pool.Add(file)
    names = [name for messages in shape.values() for name in messages]
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"docker.containerkit.types.{name}"))
        for name in names
    }


def test_a_client_of_2016_prepares_commits_and_cleans_up(fake, channel):
    messages = messages_of_2016()

    def ask(method, **fields):
        call = channel.unary_unary(
            f"/docker.containerkit.types.Images/{method}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=messages[f"{method}Response"].FromString,
        )
        return call(messages[f"{method}Request"](**fields), timeout=SOON)

    layers = ask("Prepare", name="alpine", path="/srv/a").layers
    assert [(m.type, m.source, m.target, tuple(m.options)) for m in layers] == [
        dataclasses.astuple(mount) for mount in fake.mounts("/srv/a").mounts
    ]
    name = ask("Commit", path="/srv/a").name
    assert name.startswith("localhost/")
    assert [m.target for m in ask("Prepare", name=name, path="/srv/b").layers] == ["/srv/b"]
    ask("Cleanup", path="/srv/a")
    with pytest.raises(grpc.RpcError) as caught:
        ask("Cleanup", path="/srv/a")
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    assert caught.value.details() == "clean up /srv/a: nothing is prepared there"


def test_health_is_told_and_ends_with_the_daemon(daemon, channel):
    stub = health_pb2_grpc.HealthStub(channel)
    for service in ("", "orlop.v1.Images", "docker.containerkit.types.Images"):
        answer = stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=SOON)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
    watch = stub.Watch(health_pb2.HealthCheckRequest(), timeout=SOON)
    assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
    begun = time.monotonic()
    daemon.stop(grace=60.0)
    assert time.monotonic() - begun < SOON, "a watcher of health held up the stop"
    assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING


def test_reflection_lists_the_services_and_held_open_it_starves_nobody(channel, remote):
    stub = reflection_pb2_grpc.ServerReflectionStub(channel)
    asked = iter([reflection_pb2.ServerReflectionRequest(list_services="*")])
    [answer] = stub.ServerReflectionInfo(asked, timeout=SOON)
    assert {service.name for service in answer.list_services_response.service} >= {
        "docker.containerkit.types.Images",
        "orlop.v1.Images",
        "orlop.v1.Transfer",
        "orlop.v1.Store",
        "grpc.health.v1.Health",
    }
    over = threading.Event()

    def never():
        over.wait()
        yield from ()

    idle = [stub.ServerReflectionInfo(never()) for _ in range(40)]
    try:
        assert remote.images() == []
    finally:
        over.set()
        for stream in idle:
            stream.cancel()


# ------------------------------------------------------------------ cancel, deadline, crowds

LONG = [
    ("pull", lambda s, c: s.pull("alpine", call=c)),
    ("push", lambda s, c: s.push("alpine", call=c)),
    ("fetch_blobs", lambda s, c: s.fetch_blobs("alpine", call=c)),
    ("load", lambda s, c: s.load("/srv/images.tar", call=c)),
    ("export", lambda s, c: s.export(["alpine"], io.BytesIO(), call=c)),
    ("prepare_root", lambda s, c: s.prepare_root("alpine", "/srv/a", call=c)),
    ("commit", lambda s, c: s.commit("/srv/a", call=c)),
    ("cleanup", lambda s, c: s.cleanup("/srv/a", call=c)),
    ("collect", lambda s, c: s.collect(call=c)),
    ("usage", lambda s, c: s.usage(call=c)),
    ("explain", lambda s, c: s.explain("alpine", call=c)),
    ("check", lambda s, c: s.check(call=c)),
    ("backup", lambda s, c: s.backup("/srv/backup.tar", call=c)),
]
LONG_IDS = [verb for verb, _ in LONG]


@pytest.mark.parametrize("observer", [True, False], ids=["watched", "unwatched"])
@pytest.mark.parametrize(("verb", "step"), LONG, ids=LONG_IDS)
def test_a_cancel_ends_the_call_at_once_and_reaches_the_store(verb, step, observer, fake, remote):
    token = CancelToken()
    call = Call(observer=Log(), cancel=token) if observer else Call(cancel=token)
    with fake.hold(verb) as held, ThreadPoolExecutor(1) as pool:
        result = pool.submit(step, remote, call)
        assert held.entered.wait(SOON)
        token.cancel()
        with pytest.raises(errors.Cancelled, match=r": cancelled$"):
            result.result(timeout=SOON)
        assert held.calls[0].cancel.wait(SOON)


@pytest.mark.parametrize(("verb", "step"), LONG, ids=LONG_IDS)
def test_a_deadline_reaches_the_store_and_ends_the_call(verb, step, fake, remote):
    with fake.hold(verb) as held:
        for seconds in (0.3, 3.0, 30.0):  # on a busy machine a call may not arrive in time
            begun = time.monotonic()
            with pytest.raises(errors.DeadlineExceeded):
                step(remote, Call(deadline=begun + seconds))
            ended = time.monotonic()
            assert ended - begun > seconds - 0.05
            if held.calls:
                break
        assert begun + seconds - 0.05 < held.calls[-1].deadline < ended + seconds


@pytest.mark.parametrize(("verb", "what"), [("cleanup", "/srv/a"), ("pull", "alpine")])
def test_a_deadline_holds_where_nobody_can_cancel(verb, what, fake, remote):
    with fake.hold(verb), pytest.raises(errors.DeadlineExceeded):
        getattr(remote, verb)(what, call=Call(cancel=Unheld(), deadline=time.monotonic() + 0.2))


_INTERRUPTED = """
import sys
from orlop.client import RemoteStore
try:
    RemoteStore.connect(sys.argv[1]).cleanup("/srv/a")
except KeyboardInterrupt as exc:  # as a program has it that shows the traceback and goes on
    held = exc
    print("interrupted", flush=True)
    sys.stdin.read()
"""


def test_an_interrupt_ends_the_call_though_its_traceback_is_kept(fake, daemon):
    with fake.hold("cleanup") as held:
        child = subprocess.Popen(
            [sys.executable, "-c", _INTERRUPTED, str(daemon.address)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            assert held.entered.wait(SOON)
            child.send_signal(signal.SIGINT)
            assert child.stdout.readline() == "interrupted\n"
            assert held.calls[0].cancel.wait(SOON)
        finally:
            child.kill()
            child.communicate()


@pytest.mark.parametrize("own", [86_400.0, 0.0])
def test_a_call_without_a_deadline_has_the_daemons_own_if_any(own, fake, place):
    limits = ServiceLimits(transfers_deadline=own)
    with (
        daemon_over(fake, place, limits=limits) as daemon,
        fake.hold("pull") as held,
        ThreadPoolExecutor(1) as pool,
    ):
        before = time.monotonic()
        remote = RemoteStore.connect(str(daemon.address))
        result = pool.submit(remote.pull, "alpine")
        assert held.entered.wait(SOON)
        given = held.calls[0].deadline
        if own:
            assert given is not None
            assert before + own <= given <= time.monotonic() + own
        else:
            assert given is None
        held.release()
        result.result(timeout=SOON)


@pytest.mark.parametrize(("verb", "step"), LONG, ids=LONG_IDS)
def test_a_call_that_is_over_before_it_begins_is_not_sent(verb, step, fake, remote):
    token = CancelToken()
    token.cancel()
    with fake.hold(verb) as held:
        with pytest.raises(errors.Cancelled):
            step(remote, Call(cancel=token))
        with pytest.raises(errors.DeadlineExceeded):
            step(remote, Call(deadline=time.monotonic() - 1))
        assert held.calls == []


def test_closing_the_client_cancels_what_runs(fake, remote):
    with fake.hold("pull") as held, ThreadPoolExecutor(1) as pool:
        result = pool.submit(remote.pull, "alpine")
        assert held.entered.wait(SOON)
        remote.close()
        remote.close()
        with pytest.raises(errors.Cancelled):
            result.result(timeout=SOON)
        assert held.calls[0].cancel.wait(SOON)
    with pytest.raises(errors.FailedPrecondition, match="is closed"):
        remote.images()


def test_twenty_streams_starve_no_other_call_and_all_end(fake, place, daemon, channel):
    fake.pull("debian")
    transfer, images = transfer_pb2_grpc.TransferStub(channel), images_pb2_grpc.ImagesStub(channel)
    with fake.hold("pull") as held:
        streams = [transfer.Pull(transfer_pb2.PullRequest(name="alpine"), timeout=60) for _ in range(20)]
        assert held.entered.wait(SOON)
        for number in range(30):
            assert len(images.List(images_pb2.ListRequest(), timeout=SOON).images) == 1
            asked = images_pb2.PrepareRootRequest(name="debian", path=f"/srv/{number}")
            assert images.PrepareRoot(asked, timeout=SOON).root.path == f"/srv/{number}"
        held.release()
        for stream in streams:
            assert list(stream)[-1].image.name == "docker.io/library/alpine:latest"


def test_prepares_that_pull_leave_threads_for_quick_calls(fake, channel):
    images = images_pb2_grpc.ImagesStub(channel)
    with fake.hold("prepare_root") as held:
        asked = [images_pb2.PrepareRootRequest(name="alpine", path=f"/srv/{n}") for n in range(60)]
        answers = [images.PrepareRoot.future(request, timeout=60) for request in asked]
        assert held.entered.wait(SOON)
        assert list(images.List(images_pb2.ListRequest(), timeout=SOON).images) == []
        held.release()
        assert {answer.result().root.path for answer in answers} == {f"/srv/{n}" for n in range(60)}


def test_more_calls_than_may_wait_are_refused_at_once(fake, place):
    limits = ServiceLimits(transfers=2, waiting=3)
    with daemon_over(fake, place, limits=limits) as daemon, fake.hold("pull") as held:
        remote = RemoteStore.connect(str(daemon.address))
        with ThreadPoolExecutor(12) as pool:
            results = [pool.submit(remote.pull, "alpine") for _ in range(12)]
            refused = list(islice(as_completed(results, timeout=SOON), 7))
            held.release()
        for result in refused:
            assert "waiting is 4, the limit is 3 (raise daemon.waiting" in str(result.exception())
        assert all(isinstance(result.exception(), errors.ResourceExhausted) for result in refused)
        assert {result.result().name for result in set(results) - set(refused)} == {
            "docker.io/library/alpine:latest"
        }
        remote.close()


# ------------------------------------------------------------------ the socket

needs_root = pytest.mark.root


def mode_of(path) -> int:
    return stat.S_IMODE(os.stat(path).st_mode)


@needs_root
@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_the_socket_is_roots_and_its_groups_alone(umask, fake, place):
    before = os.umask(umask)
    try:
        with daemon_over(fake, place, group="daemon") as daemon:
            path = Path(daemon.address.path)
            assert (mode_of(path), mode_of(path.parent)) == (0o660, 0o750)
            assert (path.stat().st_uid, path.group()) == (0, "daemon")
            assert path.parent.group() == "daemon"
        assert os.umask(umask) == umask
    finally:
        os.umask(before)


def test_the_socket_is_nobody_elses_from_its_first_moment(place):
    address = Address.parse(f"unix://{place}/s", "listen")
    modes = []

    def bind():
        sock.bind(address.path)
        modes.append(mode_of(address.path))

    before = os.umask(0)
    try:
        owner = Owner(None, "listen")
        with socket.socket(socket.AF_UNIX) as sock, claim_socket(address, owner, bind, "listen"):
            assert modes == [0o700]
            assert mode_of(address.path) == owner.mode
    finally:
        os.umask(before)


@needs_root
def test_without_a_group_named_orlop_the_socket_is_roots(fake, place):
    with daemon_over(fake, place) as daemon:
        path = Path(daemon.address.path)
        assert path.group() in ("root", "orlop")
        assert mode_of(path) == 0o660


@needs_root
def test_another_user_may_not_connect(daemon):
    os.chmod(os.path.dirname(daemon.address.path), 0o755)
    os.chmod(os.path.dirname(os.path.dirname(daemon.address.path)), 0o755)
    code = f"""
import os
from orlop.client import RemoteStore
from orlop.errors import PermissionDenied
os.setgroups([]); os.setgid(65534); os.setuid(65534)
try:
    RemoteStore.connect({str(daemon.address)!r})
except PermissionDenied as exc:
    print(exc)
"""
    done = python(code)
    assert done.stdout == (
        f"connect: no right to use {daemon.address} (join the group of the socket, or become root)\n"
    ), done.stderr


def test_the_folder_that_is_there_keeps_its_mode(fake, place):
    (place / "socket").mkdir(mode=0o711)
    with daemon_over(fake, place):
        assert mode_of(place / "socket") == 0o711


def test_a_group_that_is_not_there_is_refused(fake, place):
    with pytest.raises(errors.InvalidArgument, match="there is no group 'no-such'"):
        Daemon(fake, f"unix://{place}/s", group="no-such")


def test_the_socket_and_its_lock_are_gone_after_a_stop_and_the_next_daemon_starts(fake, place):
    for _ in range(3):
        with daemon_over(fake, place) as daemon:
            assert RemoteStore.connect(str(daemon.address)).info().root == fake.root
        assert os.listdir(place / "socket") == []


def test_a_socket_that_nobody_answers_on_is_replaced(fake, place):
    (place / "socket").mkdir()
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(f"{place}/socket/orlop.sock")
    with daemon_over(fake, place) as daemon:
        assert RemoteStore.connect(str(daemon.address)).images() == []


@pytest.mark.parametrize("busy", [False, True])
def test_a_live_socket_of_another_program_is_left_alone(busy, fake, place):
    (place / "socket").mkdir()
    path = place / "socket/orlop.sock"
    with socket.socket(socket.AF_UNIX) as other, socket.socket(socket.AF_UNIX) as caller:
        other.bind(str(path))
        other.listen(0)
        if busy:
            caller.connect(str(path))  # nobody accepts it, and there is no room for a second
        with pytest.raises(errors.FailedPrecondition, match=f"another daemon listens on unix://{path}"):
            Daemon(fake, f"unix://{path}").start()
        assert path.is_socket()


def test_what_is_no_socket_is_left_alone(fake, place):
    (place / "file").write_text("precious")
    with pytest.raises(errors.AlreadyExists, match="something that is not a socket is there"):
        Daemon(fake, f"unix://{place}/file").start()
    assert (place / "file").read_text() == "precious"


def test_a_second_daemon_on_one_root_is_refused_and_the_first_goes_on(fake, place, remote):
    second = Daemon(stocked(place), f"unix://{place}/other.sock")
    with pytest.raises(
        errors.FailedPrecondition,
        match=rf"serve {fake.root}: another daemon serves .*: process {os.getpid()} at unix://{place}/socket",
    ):
        second.start()
    assert not (place / "other.sock").exists()
    assert remote.images() == []


def test_a_second_daemon_on_one_socket_is_refused_and_the_first_goes_on(place, daemon, remote):
    second = Daemon(stocked(place, root="second"), str(daemon.address))
    with pytest.raises(errors.FailedPrecondition, match=f"another daemon listens on {daemon.address}"):
        second.start()
    assert remote.images() == []
    with Daemon(stocked(place, root="second"), f"unix://{place}/other.sock"):
        pass  # what was refused had let go of its root


@pytest.mark.parametrize(
    ("where", "error", "text"),
    [
        ("none/none/s", errors.FailedPrecondition, "the folder {place}/none does not exist"),
        ("file/s", errors.FailedPrecondition, "{place}/file is not a folder"),
        ("file/none/s", errors.FailedPrecondition, "Not a directory: {place}/file/none"),
        ("x" * 108, errors.InvalidArgument, "a unix socket's at most 107"),
        ("x/", errors.InvalidArgument, "not the path of a socket"),
    ],
)
def test_a_place_that_cannot_hold_a_socket_is_one_clear_error(where, error, text, fake, place):
    (place / "file").touch()
    with pytest.raises(error) as caught:
        Daemon(fake, f"unix://{place}/{where}").start()
    assert str(caught.value).startswith(f"listen on unix://{place}/{where}: ")
    assert text.format(place=place) in str(caught.value)


@pytest.mark.parametrize("name", ["a b", "50%", "%20", "a?b#c", "ä:1;2&"])
def test_any_name_will_do_for_a_socket(name, fake, place):
    address = f"unix://{place}/{name}"
    with Daemon(fake, address):
        remote = RemoteStore.connect(address)
        assert (remote.address, remote.images()) == (address, [])
        assert (place / name).is_socket()
        remote.close()


# ------------------------------------------------------------------ from start to stop


@pytest.mark.parametrize("dead", [False, True])
def test_where_nobody_answers_the_error_says_what_to_start(dead, place):
    if dead:
        with socket.socket(socket.AF_UNIX) as left:
            left.bind(f"{place}/s")
    with pytest.raises(errors.Unavailable) as caught:
        RemoteStore.connect(f"unix://{place}/s")
    assert str(caught.value) == (
        f"connect: no daemon answers at unix://{place}/s (start it with 'orlop daemon')"
    )


def ask_until_nobody_answers(remote: RemoteStore) -> None:
    """The first call may still meet the old connection, and find it broken."""
    until = time.monotonic() + SOON
    while time.monotonic() < until:
        try:
            remote.images()
        except errors.Unavailable as exc:
            if "went away" not in str(exc):
                raise


def test_a_client_outlives_its_daemon_and_meets_the_next_one(fake, place):
    with daemon_over(fake, place) as daemon:
        remote = RemoteStore.connect(str(daemon.address))
        assert remote.images() == []
    with pytest.raises(errors.Unavailable, match=r"no daemon answers at unix://.*start it with"):
        ask_until_nobody_answers(remote)
    with pytest.raises(errors.Unavailable, match=r"no daemon answers at unix://.*start it with"):
        remote.pull("alpine")
    with daemon_over(fake, place):
        until = time.monotonic() + SOON
        while True:
            try:
                assert remote.pull("alpine").layers == 2
                break
            except errors.Unavailable:
                assert time.monotonic() < until
    remote.close()


def call_until_refused(address: str) -> None:
    until = time.monotonic() + SOON
    while time.monotonic() < until:
        RemoteStore.connect(address).images()


def test_a_stop_lets_running_calls_finish_and_refuses_new_ones(fake, place):
    with daemon_over(fake, place) as daemon, fake.hold("pull") as held:
        remote = RemoteStore.connect(str(daemon.address))
        with ThreadPoolExecutor(2) as pool:
            running = pool.submit(remote.pull, "alpine")
            assert held.entered.wait(SOON)
            stop = pool.submit(daemon.stop, 60.0)
            with pytest.raises(errors.Unavailable):
                call_until_refused(str(daemon.address))
            assert not stop.done()
            held.release()
            assert running.result(timeout=SOON).layers == 2
            stop.result(timeout=SOON)
        assert not os.path.exists(daemon.address.path)
        remote.close()


def test_a_stop_cancels_what_does_not_finish_within_its_grace(fake, place):
    with daemon_over(fake, place) as daemon, fake.hold("pull") as held:
        remote = RemoteStore.connect(str(daemon.address))
        with ThreadPoolExecutor(1) as pool:
            running = pool.submit(remote.pull, "alpine")
            assert held.entered.wait(SOON)
            daemon.stop(grace=0.1)
            assert held.calls[0].cancel.cancelled
            with pytest.raises((errors.Cancelled, errors.Unavailable)):
                running.result(timeout=SOON)
        remote.close()


def python(code: str, **options) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=env(),
        **options,
    )


def env() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(Path(orlop.__file__).parents[1])}


SERVE = """
import sys, threading
from orlop.service import serve
from orlop.testing.fake import FakeStore
store = FakeStore(sys.argv[1] + "/root")
store.publish("alpine")
say = lambda text: print(text, flush=True)
with store.hold("pull") as held:
    threading.Thread(target=lambda: (held.entered.wait(), say("pulling")), daemon=True).start()
    serve(store, f"unix://{sys.argv[1]}/s", grace=float(sys.argv[2]), ready=lambda: say("ready"))
say("served")
"""


@contextmanager
def served(place: Path, *, grace: float) -> Iterator[subprocess.Popen]:
    """A daemon in a process of its own, in which no pull ends."""
    process = subprocess.Popen(
        [sys.executable, "-c", SERVE, place, str(grace)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=env(),
    )
    try:
        assert process.stdout.readline() == "ready\n", process.communicate()
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_daemon_cleanly(signum, place):
    with served(place, grace=60.0) as process:
        remote = RemoteStore.connect(f"unix://{place}/s")
        assert remote.images() == []
        process.send_signal(signum)
        out, err = process.communicate(timeout=SOON)
        assert (process.returncode, out) == (0, "served\n"), err
        assert os.listdir(place) == ["root"]
        assert f"INFO orlop.service.daemon: serving {place}/root on unix://{place}/s" in err
        assert "Traceback" not in err
        remote.close()


@pytest.mark.parametrize("rounds", [3, pytest.param(40, marks=(pytest.mark.soak, pytest.mark.large))])
def test_no_signal_is_lost_while_the_daemon_starts_to_wait(place, rounds):
    for _ in range(rounds):
        with served(place, grace=60.0) as process:
            process.send_signal(signal.SIGTERM)
            out, err = process.communicate(timeout=SOON)
            assert (process.returncode, out) == (0, "served\n"), err


def test_a_second_signal_cuts_the_grace_short(place):
    with served(place, grace=600.0) as process:
        remote = RemoteStore.connect(f"unix://{place}/s")
        with ThreadPoolExecutor(1) as pool:
            running = pool.submit(remote.pull, "alpine")
            assert process.stdout.readline() == "pulling\n"
            process.send_signal(signal.SIGTERM)
            while "stopping" not in process.stderr.readline():
                pass
            process.send_signal(signal.SIGTERM)
            out, err = process.communicate(timeout=2 * SOON)
            assert (process.returncode, out) == (0, "served\n"), err
            with pytest.raises((errors.Cancelled, errors.Unavailable)):
                running.result(timeout=SOON)
        remote.close()


def test_after_a_kill_the_next_daemon_takes_over_socket_and_root(place):
    with served(place, grace=1.0) as process:
        process.kill()
        process.wait()
    assert (place / "s").is_socket()
    with served(place, grace=1.0):
        assert RemoteStore.connect(f"unix://{place}/s").images() == []


def test_a_daemon_that_dies_under_a_call_is_told_apart_from_one_that_is_not_there(place):
    with served(place, grace=1.0) as process:
        remote = RemoteStore.connect(f"unix://{place}/s")
        assert remote.images() == []
        with ThreadPoolExecutor(1) as pool:
            prepare = pool.submit(remote.prepare_root, "alpine", "/srv/a")
            assert process.stdout.readline() == "pulling\n"
            process.kill()
            with pytest.raises(errors.Unavailable, match=r"went away: .*look before trying again"):
                prepare.result(timeout=SOON)
        remote.close()


def test_a_forked_child_has_a_connection_of_its_own(place, daemon):
    code = f"""
import os, sys
from orlop.client import RemoteStore
remote = RemoteStore.connect({str(daemon.address)!r})
assert remote.pull("alpine").layers == 2
child = os.fork()
if not child:
    ok = remote.images()[0].layers == 2 and remote.pull("debian").layers == 1
    remote.close()
    os._exit(0 if ok else 1)
_, status = os.waitpid(child, 0)
assert status == 0, status
assert len(remote.images()) == 2
remote.close()
print("both")
"""
    done = python(code)
    assert done.stdout == "both\n", done.stderr


class Noting(FakeStore):
    """Notes which credentials its calls bring along."""

    def _begin(self, verb, thing, call=None):
        self.brought = [*getattr(self, "brought", []), (verb, call.auth if call else None)]
        return super()._begin(verb, thing, call)


@pytest.mark.hostile(25)
def test_credentials_of_a_call_reach_the_store_and_no_log(place, caplog):
    store = Noting(str(place / "root"), str(place / "run"))
    store.publish("alpine")
    auth = Auth(
        registry="docker.io",
        username="me",
        password="hunter2",
        identity_token="t0ken",
        registry_token="t0ken",
    )
    with daemon_over(store, place) as daemon, caplog.at_level("DEBUG"):
        remote = RemoteStore.connect(str(daemon.address))
        face = orlop.Store(remote)
        face.pull("alpine", auth=dataclasses.replace(auth, registry=""))
        face.push("alpine", "docker.io/a/b:1", auth=auth)
        for number, observer in enumerate((Call().observer, Log())):
            remote.prepare_root("alpine", f"/srv/{number}", call=Call(observer=observer, auth=auth))
        face.pull("alpine")
        for bad in ({"password": "hunter2" * 20_000}, {"username": "hunter2\0"}):
            with pytest.raises(errors.InvalidArgument) as caught:
                face.pull("alpine", auth=dataclasses.replace(auth, **bad))
            assert "hunter2" not in str(caught.value)
        remote.close()
    brought = [with_it for verb, with_it in store.brought if verb in ("pull", "push", "prepare_root")]
    assert len(brought) >= 5
    assert brought == [auth] * (len(brought) - 1) + [None]
    assert "hunter2" not in caplog.text
    assert "t0ken" not in caplog.text
