"""Who may do what and how much of it: the rules of the daemon's door, without a daemon."""

import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from google.protobuf import timestamp_pb2

from orlop.client.address import TcpAddress, parse_address
from orlop.errors import InvalidArgument, NotFound, PermissionDenied, ResourceExhausted
from orlop.proto.containerd.services.content.v1 import content_pb2
from orlop.proto.docker.containerkit.types import image_pb2
from orlop.proto.orlop.v1 import (
    comparing_pb2,
    contents_pb2,
    events_pb2,
    forks_pb2,
    images_pb2,
    registries_pb2,
    sharing_pb2,
    store_pb2,
    transfer_pb2,
    types_pb2,
)
from orlop.proto.runtime.v1 import images_pb2 as cri_pb2
from orlop.service import requests
from orlop.service.access import Access, Peer, check_owner
from orlop.service.clients import NOBODY, Client, Connection, Ledger, ServiceCounts
from orlop.service.deadlines import Deadlines, Limited
from orlop.service.pools import DEFAULT_LIMITS, CallPool, Pools, ServiceLimits, arrived, refusal
from orlop.service.shown import Veil, one_line
from orlop.service.table import LOOKS, pools_by_method

SOON = 60.0
MODULES = (
    images_pb2,
    transfer_pb2,
    store_pb2,
    registries_pb2,
    contents_pb2,
    comparing_pb2,
    events_pb2,
    forks_pb2,
    sharing_pb2,
    image_pb2,
)


def peer(uid, gid=500, *groups):
    return Peer(pid=1, uid=uid, gid=gid, groups=frozenset(groups))


# ------------------------------------------------------------------ who


def test_only_root_and_the_daemons_own_user_may_freeze_others():
    access = Access(ServiceLimits(users=("1000",)), group=None, attempted="listen")
    freezing = images_pb2.CommitRequest(path="/a", options=images_pb2.CommitOptions(freeze="/x"))
    plain = images_pb2.CommitRequest(path="/a")
    for uid in (0, os.geteuid()):
        check_owner(freezing, access.local(peer(uid)), "call")
    for client in (access.local(peer(1000)), access.certified(["ci"], "far away"), NOBODY):
        check_owner(plain, client, "call")
        with pytest.raises(PermissionDenied, match="may not freeze"):
            check_owner(freezing, client, "call")


ROLES = [
    (peer(0), "full"),
    (peer(1000), "full"),
    (peer(1001), "read-only"),
    (peer(1001, 70), "read-only"),  # a user that is named goes before a group
    (peer(1002), None),
    (peer(1002, 60), "full"),
    (peer(1002, 70), "full"),
    (peer(1002, 500, 8, 60), "full"),
    (peer(1002, 80), "read-only"),
    (peer(1002, 80, 70), "full"),
    (peer(2**32 - 1), None),
]


@pytest.mark.parametrize(("who", "role"), ROLES)
def test_a_user_goes_before_a_group_and_everything_before_looking(who, role):
    limits = ServiceLimits(
        users=("1000",), read_only_users=("1001", "1000"), groups=("70",), read_only_groups=("80", "70")
    )
    access = Access(limits, group=60, attempted="listen")
    assert access.local(who).role == role
    assert access.local(who).key == f"uid {who.uid}"


CERTIFICATES = [
    (["a"], "full", "certificate a"),
    (["x", "b"], "read-only", "certificate b"),
    (["b", "a"], "full", "certificate a"),
    (["x"], None, "certificate x"),
    ([], None, "certificate without a name"),
    (["x\nINFO y\x1b"], None, "certificate x\\x0aINFO y\\x1b"),
]


@pytest.mark.parametrize(("names", "role", "key"), CERTIFICATES)
def test_the_name_of_a_certificate_says_what_its_holder_may_do(names, role, key):
    access = Access(
        ServiceLimits(tls_names=("a",), tls_read_only_names=("b",)), group=None, attempted="listen"
    )
    found = access.certified(names, "host 192.0.2.1")
    assert (found.role, found.key) == (role, key)


def test_a_star_is_any_certificate_and_a_name_goes_before_it():
    limits = ServiceLimits(tls_names=("a",), tls_read_only_names=("*",))
    access = Access(limits, group=None, attempted="listen")
    assert access.certified(["a"], "").role == "full"
    assert access.certified(["x"], "").role == "read-only"
    assert access.certified([], "").role == "read-only"


def test_a_read_only_client_may_ask_for_nothing_that_changes():
    chosen = pools_by_method(Pools(DEFAULT_LIMITS))
    looks = {method.rpartition("/")[2] for method in LOOKS}
    assert set(chosen) >= LOOKS
    assert looks == {
        *("ListPrepared", "List", "Inspect", "Info", "Usage", "Explain", "ListPins"),
        *("Tags", "Manifest", "Referrers", "History", "ListCheckpoints", "Watch"),
        "ServerReflectionInfo",
    }


# ------------------------------------------------------------------ how much


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


ONE = Client(key="uid 1", role="full")
TWO = Client(key="uid 2", role="full")


def ledger(clock=None, **counts):
    usual = {"client_calls": 100, "client_streams": 100, "rate": 0.0, "burst": 1}
    return Ledger(ServiceCounts(**{**usual, **counts}), clock=clock or Clock())


def test_a_burst_passes_and_then_calls_come_at_the_rate():
    clock = Clock()
    book = ledger(clock, rate=2.0, burst=3)

    def call(client=ONE):
        error = book.begin(client, stream=False)
        if error is None:
            book.end(client, stream=False)
        return error is None

    assert [call() for _ in range(4)] == [True, True, True, False]
    assert call(TWO)
    clock.now += 0.5
    assert [call(), call()] == [True, False]
    clock.now += 1000
    assert [call() for _ in range(4)] == [True, True, True, False]


@pytest.mark.parametrize(("name", "stream"), [("client_calls", False), ("client_streams", True)])
def test_a_client_may_have_so_many_calls_and_no_more_and_again_when_one_ends(name, stream):
    book = ledger(**{name: 2})
    assert [book.begin(ONE, stream=stream) for _ in range(2)] == [None, None]
    error = book.begin(ONE, stream=stream)
    assert isinstance(error, ResourceExhausted)
    assert error.details == {"limit": f"daemon.{name}"}
    assert f"raise daemon.{name}" in str(error)
    assert book.begin(TWO, stream=stream) is None
    book.end(ONE, stream=stream)
    assert book.begin(ONE, stream=stream) is None


def test_accounts_of_clients_that_are_gone_are_dropped():
    clock = Clock()
    book = ledger(clock, rate=1.0, burst=10)
    busy = Client(key="busy", role="full")
    book.begin(busy, stream=False)
    for number in range(5_000):
        clock.now += 1
        client = Client(key=f"uid {number}", role="full")
        assert book.begin(client, stream=False) is None
        book.end(client, stream=False)
    assert len(book._accounts) <= 1_001
    book.end(busy, stream=False)


class Event:
    """As gRPC hands one over."""

    class call:  # noqa: N801 - gRPC's name
        @staticmethod
        def peer():
            return b"unix-abstract:orlop-x-1"


def test_a_call_is_its_connections_and_on_an_unknown_one_nobodys():
    book = ledger()
    assert book.caller((print, Event())) is NOBODY
    book.connected(Connection(name="orlop-x-1", client=ONE))
    assert book.caller((print, Event())) is ONE
    assert book.caller((Event(),)) is ONE
    assert book.caller((print,)) is NOBODY
    assert book.connection("unix:orlop-x-1") is None
    book.disconnected("orlop-x-1")
    assert book.caller((print, Event())) is NOBODY


@pytest.fixture
def pool():
    made = CallPool("test", threads=2, spare=1, waiting=3, ledger=Fixed())
    yield made
    made.shutdown(wait=True)


class Fixed(Ledger):
    """Every call says itself who makes it."""

    def __init__(self, **counts):
        usual = {"client_calls": 100, "client_streams": 100, "rate": 0.0, "burst": 1}
        super().__init__(ServiceCounts(**{**usual, **counts}))

    def caller(self, args):
        return args[0]


def test_a_pool_gives_a_thread_to_who_has_none_and_refuses_one_clients_flood(pool):
    over = threading.Event()
    ran = []

    def work(client, name):
        ran.append(name)
        assert name.startswith("quick") or over.wait(SOON)
        return refusal()

    try:
        held = [pool.submit(work, ONE, f"held {number}") for number in range(2)]
        waiting = [pool.submit(work, ONE, f"waiting {number}") for number in range(3)]
        refused = pool.submit(work, ONE, "quick refused")
        assert "waiting is 4, the limit is 3" in str(refused.result(SOON))
        assert pool.submit(work, TWO, "quick other").result(SOON) is None
        assert not [name for name in ran if name.startswith("waiting")]
    finally:
        over.set()
    assert [future.result(SOON) for future in held + waiting] == [None] * 5
    assert pool.wait_idle(SOON) == 0


def test_a_pool_for_owners_counts_neither_their_streams_nor_their_rate():
    counted = Fixed(client_streams=1, rate=1.0, burst=1)
    made = CallPool("test", threads=4, spare=1, waiting=9, ledger=counted, owners=True)
    over = threading.Event()
    mine = Client(key="uid 0", role="full", owner=True)

    def work(client):
        assert refusal() or over.wait(SOON)
        return refusal()

    try:
        streams = [made.streams.submit(work, mine) for _ in range(3)]
        other, refused = made.streams.submit(work, ONE), made.streams.submit(work, ONE)
        assert "client_streams is 2" in str(refused.result(SOON))
    finally:
        over.set()
    assert [future.result(SOON) for future in [*streams, other]] == [None] * 4
    assert made.wait_idle(SOON) == 0
    made.shutdown(wait=True)
    assert counted.begin(mine, stream=True) is None  # all that was begun was ended


def test_a_thread_that_becomes_free_goes_to_who_has_fewest(pool):
    gates = {name: threading.Event() for name in "abcdefg"}
    order = []

    def work(client, name):
        order.append(name)
        assert gates[name].wait(SOON)

    three = Client(key="uid 3", role="full")
    futures = {name: pool.submit(work, ONE, name) for name in "ab"}
    futures["c"] = pool.submit(work, TWO, "c")  # the spare thread
    futures |= {name: pool.submit(work, ONE, name) for name in "de"}
    futures["f"] = pool.submit(work, three, "f")
    try:
        gates["c"].set()
        futures["c"].result(SOON)
        gates["f"].set()
        futures["f"].result(SOON)  # before d and e, which came first
        assert "d" not in order
    finally:
        for gate in gates.values():
            gate.set()
    for future in futures.values():
        future.result(SOON)


def test_a_pool_survives_many_clients_at_once(pool):
    clients = [Client(key=f"uid {number}", role="full") for number in range(8)]

    def flood(client):
        return [pool.submit(lambda who: refusal(), client).result(SOON) for _ in range(100)]

    with ThreadPoolExecutor(8) as crowd:
        answers = [error for errors in crowd.map(flood, clients) for error in errors]
    assert len(answers) == 800
    assert pool.wait_idle(SOON) == 0
    assert pool._running == {}
    assert not pool._queues


def test_threads_go_from_call_to_call(pool):
    threads = {pool.submit(lambda who: threading.current_thread(), ONE).result(SOON) for _ in range(100)}
    assert len(threads) <= 2, "threads come and go with calls"
    assert pool.wait_idle(SOON) == 0


def test_a_call_is_refused_where_the_system_gives_no_thread_and_the_next_one_runs(pool):
    pool._refuse(lambda: None, NotFound("call", "nothing")).result(SOON)  # begins its thread
    usual = threading.stack_size(1 << 48)  # bytes: more than there are addresses for
    try:
        refused = pool.submit(lambda who: refusal(), ONE)
    finally:
        threading.stack_size(usual)
    assert isinstance(refused.result(SOON), ResourceExhausted)
    assert pool.submit(lambda who: refusal(), ONE).result(SOON) is None
    assert pool.wait_idle(SOON) == 0


def test_a_pool_that_has_ended_takes_no_call_and_gives_up_those_that_wait():
    counted = Fixed()
    made = CallPool("test", threads=1, spare=1, waiting=3, ledger=counted)
    over = threading.Event()
    runs = made.submit(lambda who: over.wait(SOON), ONE)
    waits = made.submit(lambda who: None, ONE)
    made.shutdown(wait=False)
    late = made.submit(lambda who: None, ONE)
    assert waits.cancelled()
    assert "shut down" in str(late.exception(SOON))
    assert made.wait_idle(0) == 1
    over.set()
    assert runs.result(SOON) is True
    assert made.wait_idle(SOON) == 0
    made.shutdown(wait=True)
    assert counted._accounts[ONE.key].calls == 0


class Began:
    """As gRPC hands over a call that has begun."""

    def __init__(self):
        self.call = self
        self.cancelled = threading.Event()

    def peer(self):
        return b""

    def cancel(self):
        self.cancelled.set()


def test_a_call_whose_request_does_not_come_is_cancelled_and_one_whose_has_come_is_not():
    deadlines = Deadlines(linger=0.0)
    pool = CallPool("test", threads=2, spare=1, waiting=3, ledger=Fixed(), deadlines=deadlines, patience=1e6)
    came, over = threading.Event(), threading.Event()

    def without(client, event):
        return event.cancelled.wait(SOON)

    def with_request(client, event):
        arrived()
        came.set()
        return over.wait(SOON) and not event.cancelled.is_set()

    try:
        futures = [pool.submit(work, ONE, Began()) for work in (without, with_request)]
        assert came.wait(SOON)
        cancelled = 0
        while not cancelled:
            cancelled = deadlines.cancel_overdue(time.monotonic() + 1e7)
        over.set()
        assert [future.result(SOON) for future in futures] == [True, True]
    finally:
        over.set()
        pool.shutdown(wait=True)


@pytest.mark.parametrize("field", ["quick", "waiting", "connections", "burst", "request_size"])
def test_a_limit_below_one_is_refused_by_name(field):
    with pytest.raises(InvalidArgument, match=rf"daemon\.{field} is 0"):
        ServiceLimits(**{field: 0})


# ------------------------------------------------------------------ how long


class Remaining:
    def __init__(self, seconds):
        self.seconds = seconds
        self.cancelled = 0

    def time_remaining(self):
        return self.seconds

    def cancel(self):
        self.cancelled += 1


@pytest.mark.parametrize(
    ("client", "own", "least", "most"),
    [
        (5.0, 1e9, 5, 5),
        (None, 1e6, 1e5, 1e6),
        (1e9, 1e6, 1e5, 1e6),
        (None, 0.0, None, None),
        (7.0, 0.0, 7, 7),
    ],
)
def test_the_shorter_of_two_deadlines_holds(client, own, least, most):
    remaining = Limited(Remaining(client), own).time_remaining()
    if least is None:
        assert remaining is None
    else:
        assert least <= remaining <= most


def test_a_stream_long_overdue_is_cancelled_and_one_that_has_ended_is_not():
    deadlines = Deadlines(linger=10.0)
    stuck, ended, patient = Remaining(None), Remaining(None), Remaining(None)
    deadlines.end(deadlines.begin(ended, 0.0))
    watches = [deadlines.begin(stuck, 0.0), deadlines.begin(patient, 1e9)]
    assert deadlines.cancel_overdue(0.0) == 0
    assert deadlines.cancel_overdue(1e8) == 1
    assert deadlines.cancel_overdue(1e8) == 0
    for watch in watches:
        deadlines.end(watch)
    assert (stuck.cancelled, ended.cancelled, patient.cancelled) == (1, 0, 0)


# ------------------------------------------------------------------ what is shown, and what is asked


def test_places_of_the_store_are_veiled_in_every_text_of_a_message():
    veil = Veil("/var/lib/orlop", "/run/orlop")
    root = types_pb2.Root(
        path="/srv/a",
        labels={"at": "/var/lib/orlop/x", "/run/orlop": "2"},
        mounts=[
            types_pb2.Mount(source="overlay", options=["upperdir=/var/lib/orlop/prepared/1/upper", "ro"])
        ],
    )
    shown = veil.message(images_pb2.ListPreparedResponse(roots=[root])).roots[0]
    assert dict(shown.labels) == {"at": "ROOT/x", "RUN": "2"}
    assert list(shown.mounts[0].options) == ["upperdir=ROOT/prepared/1/upper", "ro"]
    assert shown.path == "/srv/a"
    error = veil.error(
        NotFound(
            "look at /var/lib/orlop/a", "no /run/orlop", hint="/run/orlop/b", details={"a": "/run/orlop"}
        )
    )
    assert str(error) == "look at ROOT/a: no RUN (RUN/b)"
    assert error.details == {"a": "RUN"}


def test_a_line_of_the_log_is_one_line():
    assert one_line("a\nb\x1b[2J\x9b\x7f") == "a\\x0ab\\x1b[2J\\x9b\\x7f"
    assert len(one_line("x" * 10_000)) < 2_100


def test_a_pods_annotations_may_be_as_long_as_kubernetes_lets_them_be():
    assert {cri_pb2.ImageSpec.DESCRIPTOR.fields_by_name["annotations"].full_name} == requests._WIDE

    def asked(length):
        spec = cri_pb2.ImageSpec(image="a", annotations={"last-applied": "x" * length})
        requests.check(cri_pb2.ImageStatusRequest(image=spec), "call")

    asked(256 * 1024)
    with pytest.raises(InvalidArgument, match=r"image\.annotations"):
        asked(256 * 1024 + 1)
    requests.check(cri_pb2.PullImageRequest(auth=cri_pb2.AuthConfig(auth="x" * 10_000)), "call")


def test_the_rules_for_fields_name_fields_that_there_are():
    known = {
        field.full_name
        for module in (*MODULES, types_pb2, content_pb2, timestamp_pb2)
        for message in module.DESCRIPTOR.message_types_by_name.values()
        for field in message.fields
    }
    named = requests._NAMES | requests._LOOKED_UP | requests._ROOTS | requests._ANY_SIGN | requests._OWN_RULE
    assert named <= known


def test_every_text_that_a_call_is_about_has_a_rule():
    rules = requests._NAMES | requests._LOOKED_UP | requests._ROOTS
    free = {
        "docker.containerkit.types.PrepareRequest.path",  # the store's own rule, as for the library
        "orlop.v1.PrepareRootRequest.path",
        "orlop.v1.WatchPrepareRootRequest.path",
        "orlop.v1.ForkRequest.new_paths",
        "orlop.v1.PullRequest.platform",
        "orlop.v1.InspectRequest.platform",
        "orlop.v1.PullRequest.platforms",
        "orlop.v1.LoadRequest.platforms",
        "orlop.v1.PushRequest.tags",
        "orlop.v1.PushRequest.compression",  # in orlop.images.transfer.forms
        "orlop.v1.PushRequest.format",
        "orlop.v1.ExportRequest.format",  # in orlop.client.wireexport
        "orlop.v1.ExportRequest.compression",
        "orlop.v1.ExportRequest.platform",
        "orlop.v1.LoadRequest.source",  # in orlop.service.transfer
        "orlop.v1.LoadRequest.stem",  # only ever part of a name that is made up
        "orlop.v1.BackupRequest.destination",  # in orlop.service.store
        "orlop.v1.PinRequest.name",
        "orlop.v1.TagsRequest.last",
        "orlop.v1.ManifestRequest.platform",
        "orlop.v1.ReferrersRequest.artifact_type",
        "orlop.v1.CopyRequest.platform",
        "orlop.v1.ListFilesRequest.platform",
        "orlop.v1.ReadFilesRequest.platform",
        "orlop.v1.DiffRequest.new",
        "orlop.v1.DiffRequest.platform",
        "orlop.v1.BlameRequest.platform",
        "orlop.v1.HistoryRequest.platform",
        "orlop.v1.TreeRequest.platform",
        "orlop.v1.WasteRequest.platform",
        "orlop.v1.FindFilesRequest.thing",
        "orlop.v1.FindFilesRequest.kinds",
        "orlop.v1.FindFilesRequest.platform",
        "orlop.v1.ReadArchiveRequest.platform",
        "orlop.v1.CopyRequest.tags",  # in orlop.remote.names
        "orlop.v1.ShareRequest.folder",  # in orlop.images.sharing.sharer, as that of DropShare
        "orlop.v1.DropShareRequest.folder",
        "orlop.v1.ShareRequest.names",
        "orlop.v1.ShareRequest.form",  # in orlop.client.wiresharing
        "orlop.v1.ShareRequest.platform",
        "orlop.v1.WatchRequest.cursor",  # in orlop.images.events
        "orlop.v1.WatchRequest.kinds",
    }
    for module in MODULES:
        for service in module.DESCRIPTOR.services_by_name.values():
            for method in service.methods:
                for field in method.input_type.fields:
                    texts = field.type == field.TYPE_STRING and field.name not in ("unset", "things")
                    assert not texts or field.full_name in rules | free, field.full_name


# ------------------------------------------------------------------ addresses

ADDRESSES = [
    ("tcp://localhost:7000", TcpAddress("localhost", 7000), "dns:///localhost:7000"),
    ("tcp://127.0.0.1:1", TcpAddress("127.0.0.1", 1), "dns:///127.0.0.1:1"),
    ("tcp://[::1]:65535", TcpAddress("::1", 65535), "dns:///[::1]:65535"),
]


@pytest.mark.parametrize(("text", "address", "target"), ADDRESSES)
def test_an_address_of_tcp_is_a_host_and_a_port(text, address, target):
    parsed = parse_address(text, "connect")
    assert (parsed, parsed.target, str(parsed)) == (address, target, text)


WRONG = [
    "tcp://",
    "tcp:a:1",
    "tcp://a",
    "tcp://a:",
    "tcp://:1",
    "tcp://a:65536",
    "tcp://a/b:1",
    "tcp://::1:1",
]
WRONG += ["tcp://a:1/", "tcp://a b:1", "tcp://a:-1", "tcp://u@a:1", "tcp://a,b:1", "http://a:1", "a:1"]


@pytest.mark.parametrize("text", WRONG)
def test_what_is_no_address_is_refused(text):
    with pytest.raises(InvalidArgument):
        parse_address(text, "connect")
