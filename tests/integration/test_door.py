"""The daemon's door: who may come in, what they may ask for, how much of it, and over what."""

import gc
import json
import logging
import os
import random
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack, contextmanager
from itertools import islice
from pathlib import Path

import grpc
import pytest
from google.protobuf import message_factory
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

import orlop
from orlop import errors
from orlop.client import RemoteStore
from orlop.images.api import CommitOptions, PrepareOptions
from orlop.proto.docker.containerkit.types import image_pb2
from orlop.proto.orlop.v1 import (
    comparing_pb2,
    contents_pb2,
    images_pb2,
    images_pb2_grpc,
    registries_pb2,
    store_pb2,
    transfer_pb2,
)
from orlop.service import Daemon, ServiceLimits
from orlop.service.tls import ServerTls
from orlop.testing.fake import FakeStore
from orlop.testing.fake_registries import FakeRegistries

pytestmark = pytest.mark.root

SOON = 60.0  # seconds: a bound for what should take milliseconds
NOBODY = 65534
OTHER = 65533


@pytest.fixture
def place():
    """A folder with a short path, as sockets need, that everybody may pass."""
    folder = Path(tempfile.mkdtemp(prefix="orlop-", dir="/var/tmp"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def fake(place):
    store = FakeStore(str(place / "root"), str(place / "run"))
    store.publish("alpine", layers=(1000, 200))
    store.pull("alpine")
    return store


@contextmanager
def door(store, place, listen=None, *, tls=None, **limits):
    daemon = Daemon(
        store,
        listen or f"unix://{place}/socket/orlop.sock",
        limits=ServiceLimits(**limits),
        tls=tls,
        registries=FakeRegistries(),
    )
    daemon.start()
    try:
        yield daemon
    finally:
        daemon.stop(grace=0.0)


@contextmanager
def client(daemon, **options):
    store = RemoteStore.connect(str(daemon.address), **options)
    try:
        yield store
    finally:
        store.close()


ASK = """
import json, os, sys
uid, gid, groups, address, steps = json.loads(sys.argv[1])
import orlop
from orlop.client import RemoteStore
os.setgroups(groups); os.setgid(gid); os.setuid(uid)
told = []
try:
    store = RemoteStore.connect(address)
    for verb, arguments in steps:
        try:
            told.append(["", repr(getattr(store, verb)(*arguments))])
        except orlop.Error as exc:
            told.append([type(exc).__name__, str(exc)])
except orlop.Error as exc:
    told.append([type(exc).__name__, str(exc)])
print(json.dumps(told))
"""


def ask_as(daemon, uid, *steps, gid=NOBODY, groups=()):
    """What another user is told, step by step: (class of the error or nothing, text)."""
    packages = str(Path(orlop.__file__).parents[1])
    said = json.dumps([uid, gid, list(groups), str(daemon.address), [[verb, args] for verb, *args in steps]])
    done = subprocess.run(
        [sys.executable, "-c", ASK, said],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "PYTHONPATH": packages},
    )
    assert done.returncode == 0, done.stderr
    return [tuple(item) for item in json.loads(done.stdout)]


def until(condition) -> None:
    """Wait for what another thread is about to do."""
    end = time.monotonic() + SOON
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def mode_of(path) -> int:
    return stat.S_IMODE(os.stat(path).st_mode)


# ------------------------------------------------------------------ who


def test_a_user_that_is_named_may_do_everything(fake, place):
    with door(fake, place, users=(str(NOBODY),)) as daemon:
        with client(daemon) as own:
            own.prepare_root("alpine", "/srv/own")
            own.commit("/srv/own", "localhost/own", options=CommitOptions(freeze="/x"))
        told = ask_as(daemon, NOBODY, ("prepare_root", "alpine", "/srv/a"), ("cleanup", "/srv/a"))
    assert [error for error, _ in told] == ["", ""]


def test_who_is_not_named_is_turned_away_and_told_so(fake, place, caplog):
    caplog.set_level(logging.WARNING)
    with door(fake, place, users=(str(NOBODY),)) as daemon:
        [(error, text)] = ask_as(daemon, OTHER, ("images",))
        with client(daemon) as own:
            assert len(own.images()) == 1
    assert (error, text) == (
        "PermissionDenied",
        f"list images: the daemon at {daemon.address} refuses you (its configuration says who may use it)",
    )
    assert f"refused: uid {OTHER} (gid {NOBODY}, process " in caplog.text


@pytest.mark.hostile(32)
def test_who_may_only_look_sees_no_place_of_the_host_and_changes_nothing(fake, place):
    before = (fake.images(), fake.prepared())
    fake.prepare_root("alpine", "/srv/mine", options=PrepareOptions(labels={"from": f"{fake.root}/x"}))
    changes = [
        ("pull", "alpine"),
        ("push", "alpine"),
        ("load", "/srv/images.tar"),
        ("prepare_root", "alpine", "/srv/a"),
        ("mounts", "/srv/mine"),
        ("mount", "/srv/mine"),
        ("unmount", "/srv/mine"),
        ("commit", "/srv/mine"),
        ("cleanup", "/srv/mine"),
        ("tag", "alpine", "other"),
        ("label", "alpine", {"a": "b"}),
        ("remove", "alpine"),
        ("collect",),
        ("pin", "alpine"),
        ("unpin", "alpine"),
        ("check",),
        ("backup", "/srv/backup"),
    ]
    looks = [("images",), ("inspect", "alpine"), ("prepared",), ("info",), ("usage",), ("pins",)]
    looks += [("explain", "alpine"), ("explain", f"{fake.root}/absent")]
    with door(fake, place, read_only_groups=(str(OTHER),)) as daemon:
        told = ask_as(daemon, NOBODY, *changes, *looks, groups=[OTHER])
    for step, (error, text) in zip(changes, told, strict=False):
        assert (error, step) == ("PermissionDenied", step)
        assert f"uid {NOBODY} may only look" in text
    seen = told[len(changes) :]
    assert [error for error, _ in seen] == ["", "", "", "", "", "", "", "InvalidArgument"]
    assert "root='ROOT', run='RUN'" in seen[3][1]
    assert "'from': 'ROOT/x'" in seen[2][1]
    assert "ROOT/absent" in seen[7][1]
    for _, text in told:
        assert str(place / "root") not in text
        assert str(place / "run") not in text
    fake.cleanup("/srv/mine")
    assert (fake.images(), fake.prepared()) == before


@pytest.mark.hostile(32)
def test_nobody_passes_into_the_folder_behind_the_door(fake, place):
    with door(fake, place, users=(str(NOBODY),)) as daemon:
        path = Path(daemon.address.path)
        assert (mode_of(path), mode_of(path.parent)) == (0o666, 0o755)
        behind = place / "root/locks/door"
        assert mode_of(behind) == 0o700
        assert os.listdir(behind) == ["local"]
        with grpc.insecure_channel(f"unix:{behind}/local") as channel:  # as root, who may pass
            with pytest.raises(grpc.RpcError) as caught:
                images_pb2_grpc.ImagesStub(channel).List(images_pb2.ListRequest(), timeout=SOON)
            assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
            assert "an unknown client may not use this daemon" in caught.value.details()
    assert os.listdir(behind) == []


def test_a_store_at_a_path_too_long_for_sockets_is_served(place):
    root = place / ("long" * 40)
    store = FakeStore(str(root), str(place / "run"))
    (place / "socket").mkdir()
    for _ in range(2):
        with door(store, place) as daemon, client(daemon) as own:
            assert own.info().root == str(root)
    assert os.listdir(root / "locks/door") == []


@pytest.mark.parametrize("name", ["no-such-user", "-1", "4294967295", "", "a\0b"])
@pytest.mark.parametrize("field", ["users", "groups", "read_only_users", "read_only_groups"])
def test_a_user_or_group_that_is_not_there_is_refused_at_the_start(field, name, fake, place):
    with pytest.raises(errors.InvalidArgument, match=r"there is no (user|group)"):
        Daemon(fake, f"unix://{place}/s", limits=ServiceLimits(**{field: (name,)}))


# ------------------------------------------------------------------ how much


def test_one_clients_flood_leaves_anothers_calls_served(fake, place):
    with (
        door(fake, place, users=(str(NOBODY),), roots=2, spare=1, waiting=4) as daemon,
        client(daemon) as flood,
        fake.hold("prepare_root") as held,
        ThreadPoolExecutor(8) as pool,
    ):
        calls = [pool.submit(flood.prepare_root, "alpine", f"/srv/{number}") for number in range(8)]
        refused = list(islice(as_completed(calls, timeout=SOON), 2))  # two run, four wait
        until(lambda: len(held.calls) == 2)
        [(error, _), *_] = told = ask_as(daemon, NOBODY, ("cleanup", "/srv/none"), ("images",))
        assert (error, len(told)) == ("NotFound", 2)
        assert len(held.calls) == 2
        held.release()
        assert sum(1 for call in calls if call not in refused and call.result(SOON)) == 6
    for call in refused:
        with pytest.raises(
            errors.ResourceExhausted, match=r"waiting is 5, the limit is 4 \(raise daemon.waiting"
        ):
            call.result()


def test_calls_and_streams_of_one_client_are_counted(fake, place):
    for name, verb, limits in (
        ("client_streams", "pull", {"client_streams": 2}),
        ("client_calls", "prepare_root", {"client_calls": 2}),
    ):
        with (
            door(fake, place, **limits) as daemon,
            fake.hold(verb) as held,
            ThreadPoolExecutor(2) as pool,
        ):
            one, other = RemoteStore.connect(str(daemon.address)), RemoteStore.connect(str(daemon.address))
            asked = ("alpine",) if verb == "pull" else ("alpine", "/srv/a")
            running = [pool.submit(getattr(one, verb), *asked) for _ in range(2)]
            until(lambda held=held: len(held.calls) == 2)
            with pytest.raises(
                errors.ResourceExhausted, match=rf"{name} is 3, the limit is 2 \(raise daemon.{name}"
            ):
                getattr(other, verb)(*asked)
            held.release()
            assert any(not call.exception(SOON) for call in running)
            one.close()
            other.close()


def test_a_client_that_calls_too_often_is_told_so_and_another_is_not(fake, place, caplog):
    caplog.set_level(logging.WARNING)
    with (
        door(fake, place, users=(str(NOBODY),), rate=1e-6, burst=3) as daemon,
        client(daemon) as own,
    ):
        for _ in range(3):
            own.images()
        for _ in range(5):
            with pytest.raises(errors.ResourceExhausted, match=r"calls a second.*raise daemon.rate"):
                own.images()
        assert [error for error, _ in ask_as(daemon, NOBODY, ("images",))] == [""]
    assert caplog.text.count("calls a second") == 1, "a flood fills the log"


def test_calls_whose_requests_never_come_keep_no_refusal_and_nobody_else_waiting(fake, place):
    asks = ["/orlop.v1.Images/List", "/orlop.v1.Images/PrepareRoot", "/orlop.v1.Transfer/Pull"]
    asks += ["/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch"]
    over = threading.Event()

    def never():
        over.wait(2 * SOON)
        yield from ()

    with (
        door(fake, place, users=(str(NOBODY),), client_calls=4) as daemon,
        ExitStack() as undo,
    ):
        calls = []
        for number in range(48):
            if number % 4 == 0:  # no more go over one connection
                own = [("grpc.use_local_subchannel_pool", 1)]
                channel = undo.enter_context(grpc.insecure_channel(daemon.address.target, options=own))
            calls.append(channel.stream_unary(asks[number % 5]).future(never()))
        undo.callback(over.set)
        until(lambda: sum(call.done() for call in calls) == 44)
        told = [call.details() for call in calls if call.done()]
        assert [text for text in told if "client_calls is 5, the limit is 4" not in text] == []
        assert [error for error, _ in ask_as(daemon, NOBODY, ("images",))] == [""]


def test_who_watches_health_is_counted(fake, place):
    with (
        door(fake, place, client_streams=2) as daemon,
        grpc.insecure_channel(daemon.address.target) as channel,
    ):
        stub = health_pb2_grpc.HealthStub(channel)

        def watch(name):
            call = stub.Watch(health_pb2.HealthCheckRequest(service=name), timeout=SOON)
            return call, next(call).status

        watched = [watch(f"no service {number}" * 100) for number in range(2)]
        unknown = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
        assert [status for _, status in watched] == [unknown] * 2
        with pytest.raises(grpc.RpcError) as caught:
            watch("")
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "client_streams is 3, the limit is 2" in caught.value.details()
        watched[0][0].cancel()

        def watch_again() -> bool:
            try:
                return watch("orlop.v1.Images")[1] == health_pb2.HealthCheckResponse.SERVING
            except grpc.RpcError:
                return False

        until(watch_again)


def test_watches_of_health_that_come_and_go_stop_nobody(fake, place):
    over = threading.Event()

    def come_and_go(target):
        own = [("grpc.use_local_subchannel_pool", 1)]
        seen = 0
        with grpc.insecure_channel(target, options=own) as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            while not over.is_set():
                call = stub.Watch(health_pb2.HealthCheckRequest(), timeout=SOON)
                seen += next(call).status
                call.cancel()
        return seen

    with door(fake, place) as daemon, client(daemon) as own, ThreadPoolExecutor(4) as pool:
        try:
            runs = [pool.submit(come_and_go, daemon.address.target) for _ in range(4)]
            for _ in range(200):
                assert len(own.images()) == 1
        finally:
            over.set()
        assert all(run.result(SOON) for run in runs)


def test_health_keeps_no_name_that_a_client_makes_up(fake, place):
    with (
        door(fake, place) as daemon,
        grpc.insecure_channel(daemon.address.target) as channel,
    ):
        made_up = "made up by a client, at some length"
        call = health_pb2_grpc.HealthStub(channel).Watch(
            health_pb2.HealthCheckRequest(service=made_up), timeout=SOON
        )
        next(call)
        kept = [item for item in gc.get_objects() if isinstance(item, dict) and made_up in item]
        assert kept == []


def test_connections_are_counted_for_all_and_for_each(fake, place):
    with door(fake, place, connections=3, client_connections=2) as daemon:
        held = [socket.socket(socket.AF_UNIX) for _ in range(2)]
        try:
            for sock in held:
                sock.connect(daemon.address.path)
                sock.settimeout(SOON)
                assert sock.recv(9), "gRPC speaks first"
            too_many = pytest.raises(errors.ResourceExhausted, match="has too many connections")
            with client(daemon) as third, too_many:
                third.images()
        finally:
            for sock in held:
                sock.close()
        with client(daemon) as again:
            until(lambda: _let_in(again))


def _let_in(store) -> bool:
    """The door learns of a close a moment later."""
    try:
        return len(store.images()) == 1
    except errors.ResourceExhausted:
        return False


def test_a_refusal_is_plain_text_for_who_looks_by_hand(fake, place):
    with (
        door(fake, place, connections=1, client_connections=1) as daemon,
        socket.socket(socket.AF_UNIX) as first,
        socket.socket(socket.AF_UNIX) as second,
    ):
        for sock in (first, second):
            sock.settimeout(SOON)
            sock.connect(daemon.address.path)
        first.recv(9)
        said = b""
        while chunk := second.recv(4096):
            said += chunk
    assert said.startswith(b"HTTP/1.1 503 ")
    assert b"client_connections is 2, the limit is 1 (raise daemon.client_connections" in said


def test_a_connection_that_says_nothing_is_closed(fake, place):
    with door(fake, place, handshake=0.2) as daemon, socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(SOON)
        sock.connect(daemon.address.path)
        while sock.recv(4096):
            continue


@pytest.mark.parametrize("verb", ["prepare_root", "pull"])
def test_a_call_without_a_deadline_ends_at_the_daemons(verb, fake, place):
    with (
        door(fake, place, roots_deadline=0.2, transfers_deadline=0.2) as daemon,
        client(daemon) as own,
        fake.hold(verb),
        pytest.raises(errors.DeadlineExceeded),
    ):
        own.pull("alpine") if verb == "pull" else own.prepare_root("alpine", "/srv/a")


def test_a_bug_is_told_under_a_number_that_the_log_has(fake, place, caplog):
    fake.fail("images", ZeroDivisionError("secret of the house"))
    bug = pytest.raises(errors.Internal, match="unexpected error")
    with door(fake, place) as daemon, client(daemon) as own, bug as caught:
        own.images()
    number = caught.value.hint.rpartition(" ")[2]
    assert f"request {number}: unexpected error" in caplog.text
    assert "uid 0 (gid 0, process" in caplog.text


# ------------------------------------------------------------------ what they send

MODULES = (images_pb2, transfer_pb2, store_pb2, registries_pb2, contents_pb2, comparing_pb2, image_pb2)
METHODS = [
    (f"/{service.full_name}/{method.name}", method)
    for module in MODULES
    for service in module.DESCRIPTOR.services_by_name.values()
    for method in service.methods
]
TEXTS = [
    "",
    "alpine",
    "/srv/a",
    "/",
    "a" * 5_000,
    "/" + "b" * 5_000,
    "../x",
    "/srv/../x",
    "a\0b",
    "\n",
    "ä" * 300,
]
TEXTS += [
    "sha256:" + "0" * 64,
    "layer sha256:x",
    "linux/amd64",
    "\x1b[2J",
    "alpine@sha256:../../x",
    "-",
    "é/:@",
]
NUMBERS = [0, 1, -1, 2**31 - 1, -(2**31), 2**63 - 1, -(2**63), 2**32]
DOUBLES = [0.0, -1.0, 1e308, float("nan"), float("inf"), float("-inf"), 3.5]


def fill(message, dice, depth=0):
    """Random values in random fields."""
    for field in message.DESCRIPTOR.fields:
        if dice.random() < 0.3:
            continue
        repeated = (
            field.is_repeated if isinstance(getattr(field, "is_repeated", None), bool) else field.label == 3
        )
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            for _ in range(dice.choice([1, 3, 1_100])):
                getattr(message, field.name)[dice.choice(TEXTS)[:60] + str(dice.random())] = dice.choice(
                    TEXTS
                )
        elif field.message_type is not None:
            if depth < 4:
                for _ in range(dice.choice([0, 1, 3]) if repeated else 1):
                    fill(
                        getattr(message, field.name).add() if repeated else getattr(message, field.name),
                        dice,
                        depth + 1,
                    )
        elif repeated:
            many = dice.choice([1, 3, 1_100])
            getattr(message, field.name).extend(value_for(field, dice) for _ in range(many))
        else:
            setattr(message, field.name, value_for(field, dice))
    return message


def value_for(field, dice):
    if field.type == field.TYPE_STRING:
        return dice.choice(TEXTS)
    if field.type == field.TYPE_BYTES:
        return dice.choice([*(text.encode() for text in TEXTS), b"\xff/\x80", b"*[!"])
    if field.type == field.TYPE_UINT32:
        return dice.choice([0, 1, 2**32 - 1])
    if field.type == field.TYPE_BOOL:
        return dice.random() < 0.5
    if field.type == field.TYPE_DOUBLE:
        return dice.choice(DOUBLES)
    if field.type == field.TYPE_ENUM:
        return dice.choice([0, 1, 3, 77])
    return dice.choice(NUMBERS) if field.type == field.TYPE_INT64 else dice.choice(NUMBERS[:5])


def spoil(data: bytes, dice) -> bytes:
    """A message's bytes with some of them changed, cut or doubled."""
    raw = bytearray(data)
    for _ in range(dice.randint(1, 6)):
        where = dice.randrange(len(raw) + 1)
        what = dice.randrange(3)
        if what == 0:
            raw[where:where] = dice.randbytes(dice.randint(1, 12))
        elif what == 1:
            del raw[where : where + dice.randint(1, 8)]
        elif raw:
            raw[where % len(raw)] = dice.randrange(256)
    return bytes(raw)


def bombard(address, dice, rounds, methods=METHODS):
    """Ask every method for random things; the codes of the answers."""
    codes = []
    with grpc.insecure_channel(address) as channel:
        for number in range(rounds):
            path, method = methods[number] if number < len(methods) else dice.choice(methods)
            data = fill(message_factory.GetMessageClass(method.input_type)(), dice).SerializeToString()
            if dice.random() < 0.4:
                data = spoil(data, dice)
            if dice.random() < 0.02:
                data = dice.randbytes(dice.choice([1, 100, 3 << 20]))
            kind = channel.unary_stream if method.server_streaming else channel.unary_unary
            if method.client_streaming:
                kind = channel.stream_stream
            call = kind(path, request_serializer=lambda raw: raw, response_deserializer=lambda raw: raw)
            try:
                answer = call(iter([data]) if method.client_streaming else data, timeout=SOON)
                if method.server_streaming:
                    list(answer)
                codes.append(grpc.StatusCode.OK)
            except grpc.RpcError as exc:
                codes.append(exc.code())
                if exc.code() in (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN):
                    raise AssertionError((path, data[:2_000], exc.details())) from exc
    return codes


@pytest.mark.hostile(6, 9, 18)
@pytest.mark.parametrize("seed", range(3))
def test_no_request_is_a_bug(seed, fake, place, caplog):
    with door(fake, place) as daemon:
        codes = bombard(daemon.address.target, random.Random(seed), 250)
        with client(daemon) as own:
            assert own.info().root == fake.root
    assert "Traceback" not in caplog.text
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert codes.count(grpc.StatusCode.INVALID_ARGUMENT) > 50


# All that fetch nothing and touch no path that the dice might name.
ON_A_REAL_STORE = [
    (path, method)
    for path, method in METHODS
    if "Transfer" not in path and method.name not in ("Prepare", "PrepareRoot", "WatchPrepareRoot", "Backup")
]


@pytest.mark.hostile(6, 9, 18)
def test_no_request_to_a_real_store_is_a_bug(store_dirs, place, caplog):
    with orlop.open(store_dirs.root, store_dirs.run) as store, door(store.verbs, place) as daemon:
        codes = bombard(daemon.address.target, random.Random(7), 250, ON_A_REAL_STORE)
        with client(daemon) as own:
            assert own.images() == []
    assert "Traceback" not in caplog.text
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert codes.count(grpc.StatusCode.INVALID_ARGUMENT) > 50


@pytest.mark.soak
def test_no_request_of_very_many_is_a_bug(fake, place, caplog, soak_seconds):
    end = time.monotonic() + soak_seconds
    seed = 1_000
    with door(fake, place) as daemon:
        while time.monotonic() < end:
            bombard(daemon.address.target, random.Random(seed), 250)
            seed += 1
    assert "Traceback" not in caplog.text


WRONG = [
    ("Images/Cleanup", images_pb2.CleanupRequest(path="srv/a"), "path: the path is relative"),
    ("Images/Mounts", images_pb2.MountsRequest(path="/srv//a"), "path: the path is not clean"),
    ("Images/Unmount", images_pb2.UnmountRequest(path="/" + "a" * 5_000), "path: it has 5001 bytes"),
    ("Images/Mount", images_pb2.MountRequest(path="/srv/\0"), "path: there is a NUL in it"),
    ("Images/Inspect", images_pb2.InspectRequest(), "name: it is empty"),
    (
        "Images/Tag",
        images_pb2.TagRequest(name="alpine", new_name="../x"),
        "parse image name '../x': not a registry host",
    ),
    ("Images/Label", images_pb2.LabelRequest(name="a", unset=["k"] * 1_025), "unset: there are 1025"),
    ("Images/Label", images_pb2.LabelRequest(name="a", set={"k": "v\0"}), "set['k']: there is a NUL"),
    ("Store/Explain", store_pb2.ExplainRequest(thing="x" * 5_000), "thing: it has 5000 bytes"),
    ("Store/Pin", store_pb2.PinRequest(thing="alpine", expires=float("nan")), "expires: nan is not a time"),
    ("Store/Collect", store_pb2.CollectRequest(keep=store_pb2.Keep(count=-1)), "keep.count: -1 is negative"),
    ("Store/Check", store_pb2.CheckRequest(pace=-5), "pace: -5 is negative"),
    (
        "Images/PrepareRoot",
        images_pb2.PrepareRootRequest(
            name="alpine",
            path="/srv/a",
            options=images_pb2.PrepareOptions(uid_map=[{"inside": 2**32, "outside": 0, "size": 1}]),
        ),
        "options.uid_map[0].inside: 4294967296 is above",
    ),
]


@pytest.mark.hostile(6, 18)
def test_each_field_that_cannot_be_is_refused_by_its_name(fake, place):
    with door(fake, place) as daemon, grpc.insecure_channel(daemon.address.target) as channel:
        for method, request, problem in WRONG:
            kind = channel.unary_stream if method in ("Store/Collect", "Store/Check") else channel.unary_unary
            call = kind(f"/orlop.v1.{method}", request_serializer=lambda message: message.SerializeToString())
            with pytest.raises(grpc.RpcError) as caught:
                list(call(request, timeout=SOON))
            assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT, method
            assert problem in caught.value.details(), method


def test_bytes_that_are_no_message_harm_neither_health_nor_reflection(fake, place, caplog):
    with door(fake, place) as daemon, grpc.insecure_channel(daemon.address.target) as channel:
        check = channel.unary_unary("/grpc.health.v1.Health/Check")
        with pytest.raises(grpc.RpcError) as caught:
            check(b"\xff\xff", timeout=SOON)
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
        reflect = channel.stream_stream("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo")
        with pytest.raises(grpc.RpcError) as caught:
            list(reflect(iter([b"\xff\xff"]), timeout=SOON))
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        asked = health_pb2.HealthCheckRequest()
        assert health_pb2_grpc.HealthStub(channel).Check(asked, timeout=SOON).status == 1
        ask = reflection_pb2.ServerReflectionRequest(list_services="*")
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        assert len(list(stub.ServerReflectionInfo(iter([ask]), timeout=SOON))) == 1
    assert "Traceback" not in caplog.text


@pytest.mark.hostile(25)
def test_no_client_forges_a_line_of_the_log(fake, place, caplog):
    caplog.set_level(logging.INFO)
    with door(fake, place) as daemon, client(daemon) as own, pytest.raises(errors.NotFound):
        own.cleanup("/srv/x\nINFO forged\x1b[2J")
    assert "\\x0aINFO forged\\x1b[2J" in caplog.text
    assert "\nINFO forged" not in caplog.text


# ------------------------------------------------------------------ over TLS


def openssl(*arguments) -> None:
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True, timeout=120)


def authority(folder: Path, name: str) -> None:
    openssl(
        *("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "30"),
        *("-keyout", folder / f"{name}.key", "-out", folder / f"{name}.pem", "-subj", f"/CN={name}"),
    )


def certificate(folder: Path, name: str, ca: str, *, sans: str = "", days: int = 30) -> None:
    openssl(
        *("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", f"/CN={name}"),
        *("-keyout", folder / f"{name}.key", "-out", folder / f"{name}.csr"),
    )
    (folder / f"{name}.ext").write_text(f"subjectAltName={sans or f'DNS:{name}'}\n")
    openssl(
        *("x509", "-req", "-in", folder / f"{name}.csr", "-CA", folder / f"{ca}.pem"),
        *("-CAkey", folder / f"{ca}.key", "-CAcreateserial", "-days", days),
        *("-extfile", folder / f"{name}.ext", "-out", folder / f"{name}.pem"),
    )


@pytest.fixture(scope="module")
def pki(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pki")
    authority(folder, "ours")
    authority(folder, "theirs")
    certificate(folder, "daemon", "ours", sans="DNS:localhost,IP:127.0.0.1")
    certificate(folder, "builder", "ours", sans="DNS:builder.example,URI:spiffe://orlop/builder")
    certificate(folder, "viewer", "ours")
    certificate(folder, "guest", "ours")
    certificate(folder, "expired", "ours", days=-1)
    certificate(folder, "stranger", "theirs")
    return folder


def server_tls(pki) -> ServerTls:
    paths = (str(pki / "daemon.pem"), str(pki / "daemon.key"), str(pki / "ours.pem"))
    return ServerTls.of(*paths, "listen")


def shown(pki, name, ca="ours") -> dict[str, str]:
    return {
        "tls_cert": str(pki / f"{name}.pem"),
        "tls_key": str(pki / f"{name}.key"),
        "tls_ca": str(pki / f"{ca}.pem"),
    }


@pytest.fixture
def over_tcp(fake, place, pki):
    names = {"tls_names": ("spiffe://orlop/builder",), "tls_read_only_names": ("viewer",)}
    with door(fake, place, "tcp://127.0.0.1:0", tls=server_tls(pki), **names) as daemon:
        yield daemon


def test_over_tcp_a_certificates_name_says_what_its_holder_may_do(over_tcp, fake, pki, caplog):
    caplog.set_level(logging.INFO)
    assert over_tcp.address.port != 0
    with client(over_tcp, **shown(pki, "builder")) as builder:
        assert builder.prepare_root("alpine", "/srv/a").path == "/srv/a"
        assert builder.info().root == fake.root
        # What is done to other processes of the machine is its owner's affair
        with pytest.raises(errors.PermissionDenied, match="may not freeze a cgroup"):
            builder.commit("/srv/a", options=CommitOptions(freeze="/system.slice"))
    with client(over_tcp, **shown(pki, "viewer")) as viewer:
        assert [root.path for root in viewer.prepared()] == ["/srv/a"]
        assert viewer.info().root == "ROOT"
        with pytest.raises(errors.PermissionDenied, match="certificate viewer may only look"):
            viewer.cleanup("/srv/a")
    refused = pytest.raises(errors.PermissionDenied, match="certificate guest may not use this daemon")
    with client(over_tcp, **shown(pki, "guest")) as guest, refused:
        guest.images()
    assert "by certificate viewer (host 127.0.0.1" in caplog.text
    assert len(fake.prepared()) == 1


def test_over_tcp_what_is_here_is_sent_and_else_a_path_is_the_daemons(over_tcp, fake, pki, tmp_path):
    (tmp_path / "here").write_text("the bytes of an archive")
    fake.archives |= {
        "the bytes of an archive": ["alpine"],
        "/srv/there": ["alpine"],
        str(tmp_path / "here"): [],
    }
    with client(over_tcp, **shown(pki, "builder")) as builder:
        assert len(builder.load(str(tmp_path / "here"))) == 1
        assert len(builder.load("/srv/there")) == 1
        with pytest.raises(errors.NotFound):
            builder.load("/srv/nowhere")


@pytest.mark.parametrize("who", ["stranger", "expired"])
def test_a_certificate_of_another_authority_or_an_old_one_gets_no_call_through(who, over_tcp, pki, fake):
    with client(over_tcp, **shown(pki, who)) as other, fake.hold("images") as held:
        with pytest.raises(errors.Unavailable, match=r"no TLS with the daemon|went away"):
            other.images()
        assert held.calls == []


def test_a_client_believes_no_daemon_of_another_authority(over_tcp, pki, fake):
    with client(over_tcp, **shown(pki, "builder", ca="theirs")) as other, fake.hold("images") as held:
        with pytest.raises(errors.Unavailable, match=r"TLS|handshake|connect"):
            other.images()
        assert held.calls == []


def test_over_tcp_nothing_is_answered_without_a_certificate(over_tcp, pki):
    target = over_tcp.address.target
    trusted = grpc.ssl_channel_credentials((pki / "ours.pem").read_bytes())
    for channel in (grpc.insecure_channel(target), grpc.secure_channel(target, trusted)):
        with channel, pytest.raises(grpc.RpcError) as caught:
            health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=SOON)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


def test_tcp_is_served_and_asked_with_mutual_tls_only(fake, place, pki):
    named = ServiceLimits(tls_names=("builder",))
    with pytest.raises(
        errors.InvalidArgument, match="mutual TLS only, and --tls-cert, --tls-key, --tls-client-ca"
    ):
        Daemon(fake, "tcp://127.0.0.1:0", limits=named)
    with pytest.raises(errors.InvalidArgument, match="no name of a client's certificate is given"):
        Daemon(fake, "tcp://127.0.0.1:0", tls=server_tls(pki))
    with pytest.raises(errors.InvalidArgument, match="certificates are for TCP, and there is none"):
        Daemon(fake, f"unix://{place}/s", tls=server_tls(pki))
    with pytest.raises(errors.InvalidArgument, match="mutual TLS only, and --tls-key is missing"):
        ServerTls.of("a", None, "b", "listen")
    wrong = ServerTls.of(str(pki / "daemon.pem"), str(pki / "guest.key"), str(pki / "ours.pem"), "listen")
    with pytest.raises(errors.FailedPrecondition, match="do not serve"):
        Daemon(fake, "tcp://127.0.0.1:0", limits=named, tls=wrong)
    with pytest.raises(
        errors.InvalidArgument, match="with mutual TLS only, and --tls-cert, --tls-key, --tls-ca"
    ):
        RemoteStore.connect("tcp://127.0.0.1:1")


def test_one_daemon_listens_on_a_socket_and_on_tcp(fake, place, pki):
    listen = [f"unix://{place}/socket/orlop.sock", "tcp://localhost:0"]
    with door(fake, place, listen, tls=server_tls(pki), tls_names=("*",)) as daemon:
        with client(daemon) as local:
            assert len(local.images()) == 1
        with orlop.connect(str(daemon.addresses[1]), **shown(pki, "guest")) as far:
            assert far.images() == fake.images()


def test_the_command_line_serves_and_asks_over_tls(store_dirs, place, pki):
    (place / "config.toml").write_text(
        f"""
[daemon]
listen = "tcp://127.0.0.1:0,unix://{place}/socket/orlop.sock"
tls_cert = "{pki}/daemon.pem"
tls_key = "{pki}/daemon.key"
tls_client_ca = "{pki}/ours.pem"
tls_names = ["builder.example"]
"""
    )
    orlop_cli = [sys.executable, "-m", "orlop"]
    log = place / "log"
    started = [
        *orlop_cli,
        "--root",
        store_dirs.root,
        "--run",
        store_dirs.run,
        "--config",
        place / "config.toml",
    ]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*started, "daemon", "--tls-read-only-name", "viewer"], stdout=output, stderr=output
        )
    try:
        until(lambda: "serving" in log.read_text() or process.poll() is not None)
        address = next(word.strip(",") for word in log.read_text().split() if word.startswith("tcp://"))

        def ask(who, *verb):
            files = [f"--{key.replace('_', '-')}={path}" for key, path in shown(pki, who).items()]
            command = [*orlop_cli, "--host", address, *files, *verb]
            return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)

        assert str(store_dirs.root) in ask("builder", "info").stdout
        seen = ask("viewer", "info")
        assert seen.returncode == 0, seen.stderr
        assert str(store_dirs.root) not in seen.stdout
        refused = ask("viewer", "gc")
        assert refused.returncode != 0
        assert "certificate viewer may only look" in refused.stderr
    finally:
        process.terminate()
        try:
            process.wait(SOON)
        finally:
            process.kill()
            process.wait()
    assert process.returncode == 0
