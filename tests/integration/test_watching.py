"""A daemon that is watched: metrics, traces, its log, and what health and reflection say of it."""

import http.client
import json
import logging
import re
import select
import socket
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

import orlop
from orlop.client import RemoteStore
from orlop.proto.orlop.v1 import images_pb2, images_pb2_grpc
from orlop.service import Daemon
from orlop.service.table import SERVICES
from orlop.telemetry.metrics import Metrics
from orlop.telemetry.names import METRICS
from orlop.telemetry.serving import parse, serving
from orlop.telemetry.traces import Traces
from orlop.testing.fake import FakeStore
from support.daemons import Crew
from support.daemons import daemon as daemon_process

BOUND = 240.0  # seconds, after which a test has failed
TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder with a short path, as sockets need."""
    with tempfile.TemporaryDirectory(prefix="orlop-", dir="/var/tmp") as folder:
        yield Path(folder)


@contextmanager
def served(store, place, *watchers):
    """A daemon that is watched, and a client of it."""
    daemon = Daemon(store, f"unix://{place}/socket/orlop.sock", watchers=watchers)
    daemon.start()
    remote = RemoteStore.connect(str(daemon.address))
    try:
        yield remote
    finally:
        remote.close()
        daemon.stop(grace=0.0)


def stocked(place):
    store = FakeStore(str(place / "root"), str(place / "run"))
    store.publish("alpine")
    return store


@contextmanager
def real(place):
    """A store that holds an image, and prepares by copying."""
    (place / "hello").write_text("hello")
    with tarfile.open(place / "rootfs.tar", "w") as tar:
        tar.add(place / "hello", "hello")
    settings = orlop.Settings(driver="native", durable=False)
    with orlop.open(place / "root", place / "run", settings=settings) as store:
        store.load(place / "rootfs.tar", format="rootfs", name="localhost/a")
        yield store


def values(metrics):
    """What is shown: name and labels -> number."""
    found = {}
    for line in metrics.text().decode().splitlines():
        if not line.startswith("#"):
            name, _, number = line.rpartition(" ")
            found[name] = float(number)
    return found


# ------------------------------------------------------------------ metrics


def test_calls_are_counted_by_method_and_code(place):
    metrics, fake = Metrics(), stocked(place)
    with served(fake, place, metrics) as remote:
        remote.pull("alpine")
        for _ in range(3):
            with pytest.raises(orlop.NotFound):
                remote.inspect("no/such")
        with fake.hold("images") as held:
            waiting = threading.Thread(target=remote.images)
            waiting.start()
            assert held.entered.wait(BOUND)
            during = values(metrics)
        waiting.join(BOUND)
    found = values(metrics)
    assert found['orlop_calls_total{code="OK",method="/orlop.v1.Transfer/Pull"}'] == 1
    assert found['orlop_calls_total{code="NOT_FOUND",method="/orlop.v1.Images/Inspect"}'] == 3
    assert found['orlop_call_seconds_count{method="/orlop.v1.Images/Inspect"}'] == 3
    assert during['orlop_calls_running{method="/orlop.v1.Images/List"}'] == 1
    assert during['orlop_pool_calls{pool="quick",state="running"}'] == 1
    assert not [name for name, number in found.items() if "calls_running" in name and number]
    assert not [name for name in found if "pool" in name]  # a daemon that has stopped has none


def test_a_call_that_its_client_gives_up_is_counted_once(place):
    metrics, fake = Metrics(), stocked(place)
    with served(fake, place, metrics) as remote, fake.hold("pull") as held:
        token = orlop.CancelToken()
        ended = threading.Event()

        def pull():
            with pytest.raises(orlop.Cancelled):
                remote.pull("alpine", call=orlop.Call(cancel=token))
            ended.set()

        threading.Thread(target=pull).start()
        assert held.entered.wait(BOUND)
        token.cancel()
        assert ended.wait(BOUND)
    counts = [number for name, number in values(metrics).items() if "orlop_calls_total" in name]
    assert sum(counts) == 1


def test_a_stores_sums_are_its_rows_and_steps_are_measured(place):
    metrics = Metrics()
    with real(place) as store, served(store.verbs, place, metrics) as remote:
        remote.prepare_root("localhost/a", str(place / "r"))
        during = values(metrics)
        remote.cleanup(str(place / "r"))
        remote.remove("localhost/a")
        after = values(metrics)
        last = list(store.events())[-1].seq
    assert during['orlop_store_roots{driver="native"}'] == 1
    assert during["orlop_store_images"] == 1
    assert during['orlop_store_items{kind="layers"}'] == 1
    assert during['orlop_store_bytes{kind="layers"}'] > 10_000
    assert 'orlop_store_roots{driver="native"}' not in after
    assert after["orlop_store_images"] == after['orlop_store_items{kind="layers"}'] == 0
    assert after["orlop_events_last"] == last
    assert after['orlop_step_seconds_count{step="prepare"}'] == 1
    assert after['orlop_step_seconds_count{step="cleanup"}'] == 1
    assert after["orlop_collected_bytes_total"] > 10_000
    assert after["orlop_scrape_failures_total"] == 0


def test_a_scrape_of_a_store_that_is_gone_says_so_and_shows_the_rest(place):
    metrics = Metrics()
    with real(place) as store, served(store.verbs, place, metrics):
        store.verbs.close()
        found = values(metrics)
        assert found["orlop_info" + f'{{version="{orlop.__version__}"}}'] == 1
        assert values(metrics)["orlop_scrape_failures_total"] >= 1
        assert "orlop_store_images" not in found


def test_what_is_shown_is_what_is_documented_and_what_prometheus_accepts(place):
    metrics = Metrics()
    with real(place) as store, served(store.verbs, place, metrics) as remote:
        remote.images()
        text = metrics.text()
    shown = dict(re.findall(r"^# TYPE (\S+) (\S+)$", text.decode(), re.MULTILINE))
    assert shown == {name: metric.kind for name, metric in METRICS.items()}
    done = subprocess.run(
        ["promtool", "check", "metrics"], input=text, capture_output=True, timeout=BOUND, check=False
    )
    assert done.returncode == 0, done.stderr.decode()
    assert done.stderr == done.stdout == b""


def test_the_page_has_each_metric_with_its_meaning():
    page = (Path(__file__).parents[2] / "docs/metrics.md").read_text()
    rows = re.findall(r"^\| `(orlop_\w+)` \| (\w+) \| ([^|]*) \| (.*) \|$", page, re.MULTILINE)
    assert rows == [
        (one.name, one.kind, ", ".join(f"`{label}`" for label in one.labels), one.help)
        for one in METRICS.values()
    ]


@pytest.mark.parametrize("kind", ["tcp", "unix"])
def test_metrics_are_served_over_http_and_nothing_else_is(place, kind):
    path = place / "m.sock"
    address = parse(f"unix://{path}" if kind == "unix" else "127.0.0.1:0")
    with serving(address, lambda: b"orlop 1\n") as where:

        def ask(path, method="GET"):
            connection = http.client.HTTPConnection("x", timeout=BOUND)
            connection.sock = socket.socket(socket.AF_UNIX if kind == "unix" else socket.AF_INET)
            connection.sock.settimeout(BOUND)
            connection.sock.connect(where)
            connection.request(method, path)
            answer = connection.getresponse()
            body = answer.read()
            connection.close()
            return answer.status, body

        assert ask("/metrics") == (200, b"orlop 1\n")
        assert ask("/metrics?x=y")[0] == 200
        assert ask("/")[0] == 404
        assert ask("/metrics", "POST")[0] == 501
        with pytest.raises(orlop.Error), serving(where, bytes):
            pass
        if kind == "unix":
            assert path.stat().st_mode & 0o777 == 0o660
    assert not path.exists()


def test_clients_that_say_nothing_keep_nobody_from_scraping(place):
    with serving(parse("127.0.0.1:0"), lambda: b"orlop 1\n") as where:
        silent = [socket.create_connection(where, timeout=BOUND) for _ in range(15)]  # of 16
        connection = http.client.HTTPConnection(*where, timeout=BOUND)
        connection.request("GET", "/metrics")
        assert connection.getresponse().read() == b"orlop 1\n"
        connection.close()
        for one in silent:
            one.close()


def test_a_request_that_trickles_is_ended_and_its_place_is_anothers(place):
    with serving(parse("127.0.0.1:0"), lambda: b"orlop 1\n", patience=1.0) as where:
        slow = [socket.create_connection(where, timeout=BOUND) for _ in range(16)]
        until, ended = time.monotonic() + BOUND, False
        while not ended and time.monotonic() < until:
            try:
                for one in slow:
                    one.sendall(b"G")  # never a line, and never as much as a second without a byte
                ended = bool(select.select(slow, [], [], 0.05)[0])
            except OSError:
                ended = True
        assert ended
        for one in slow:
            one.close()


@pytest.mark.parametrize("text", ["", "x", "127.0.0.1", "127.0.0.1:x", "127.0.0.1:70000", "unix://x"])
def test_what_is_no_address_for_metrics_is_refused(text):
    with pytest.raises(orlop.InvalidArgument, match="no address"):
        parse(text)


def test_a_file_in_the_sockets_place_stays_and_a_dead_socket_does_not(place):
    (place / "m").write_text("mine")
    with pytest.raises(orlop.AlreadyExists), serving(str(place / "m"), bytes):
        pass
    assert (place / "m").read_text() == "mine"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(place / "d"))
    with serving(str(place / "d"), bytes):
        pass


# ------------------------------------------------------------------ traces


@contextmanager
def traced():
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    yield Traces(provider), exporter
    provider.shutdown()


def test_a_call_continues_its_clients_trace_and_steps_are_below_it(place):
    with traced() as (traces, exporter), real(place) as store, served(store.verbs, place, traces):
        address = f"unix:{place}/socket/orlop.sock"
        with grpc.insecure_channel(address) as channel:
            request = images_pb2.WatchPrepareRootRequest(name="localhost/a", path=str(place / "r"))
            metadata = (("traceparent", f"00-{TRACE}-{SPAN}-01"),)
            list(images_pb2_grpc.ImagesStub(channel).WatchPrepareRoot(request, metadata=metadata))
        store.get(str(place / "r")).cleanup()
    spans = {span.name: span for span in reversed(exporter.get_finished_spans())}  # the first of each name
    call = spans["orlop.v1.Images/WatchPrepareRoot"]
    assert f"{call.context.trace_id:032x}" == TRACE
    assert f"{call.parent.span_id:016x}" == SPAN
    prepare = spans["orlop prepare"]
    assert prepare.parent.span_id == call.context.span_id  # though another thread does it
    assert prepare.attributes["orlop.item"] == str(place / "r")
    assert spans["orlop activate"].parent.span_id == prepare.context.span_id
    assert spans["orlop cleanup"].parent is None  # the library's own, in this process
    assert call.attributes["rpc.grpc.status_code"] == "OK"


def test_a_span_says_how_its_call_ended_and_not_what_was_said(place):
    fake = stocked(place)
    with traced() as (traces, exporter), served(fake, place, traces) as remote:
        with pytest.raises(orlop.NotFound):
            remote.inspect("secret/name")
        fake.fail("images", RuntimeError("secret words"))
        with pytest.raises(orlop.Internal):
            remote.images()
    ended = {span.attributes["rpc.grpc.status_code"]: span for span in exporter.get_finished_spans()}
    assert ended["INTERNAL"].status.status_code is StatusCode.ERROR
    assert ended["NOT_FOUND"].status.status_code is StatusCode.UNSET  # the caller's, not the server's
    assert "secret" not in "".join(span.to_json() for span in exporter.get_finished_spans())


def test_threads_that_work_for_a_call_are_below_it():
    with traced() as (traces, exporter), traces.attached(None, None):
        with traces._tracer.start_as_current_span("mine"):
            call = orlop.Call()

        def work():
            with call.child().step("fetch", digest="d"), call.step("index"):
                pass

        thread = threading.Thread(target=work)
        thread.start()
        thread.join(BOUND)
        with pytest.raises(orlop.NotFound), orlop.Call().step("commit"):
            raise orlop.NotFound("find /secret", "it is gone")
    spans = {span.name: span for span in exporter.get_finished_spans()}
    assert spans["orlop fetch"].parent.span_id == spans["mine"].context.span_id
    assert spans["orlop index"].parent.span_id == spans["orlop fetch"].context.span_id
    assert spans["orlop commit"].attributes["error.type"] == "NOT_FOUND"
    assert "secret" not in spans["orlop commit"].to_json()


def test_two_that_record_do_not_mix(place):
    metrics = Metrics()
    with traced() as (traces, exporter), served(stocked(place), place, metrics, traces) as remote:
        remote.images()
        with orlop.Call().step("fetch"):
            pass
    assert values(metrics)['orlop_step_seconds_count{step="fetch"}'] == 1
    assert Counter(span.name for span in exporter.get_finished_spans()) == {
        "orlop.v1.Images/List": 1,
        "orlop fetch": 1,
    }


def test_nothing_of_others_is_imported_unless_it_is_asked_for():
    program = (
        "import sys, orlop.cli.daemon, orlop.service, orlop.images.store, orlop.client, orlop.facade\n"
        "assert not {'prometheus_client', 'opentelemetry', 'orlop.telemetry'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=BOUND)


# ------------------------------------------------------------------ the log


def test_each_line_of_a_call_names_it_and_no_secret_is_there(place):
    secret = "hunter2-do-not-show"
    options = ("--log-format", "json", "--log-level", "debug", "--metrics", f"unix://{place}/m.sock")
    with (
        Crew(place / "crew") as crew,
        daemon_process(crew, place / "root", place / "run", socket=place / "o.sock", words=options),
        grpc.insecure_channel(f"unix:{place}/o.sock") as channel,
        orlop.connect(f"unix://{place}/o.sock") as store,
    ):
        stub = images_pb2_grpc.ImagesStub(channel)
        stub.List(images_pb2.ListRequest(), metadata=(("x-request-id", "job/17"),), timeout=BOUND)
        with pytest.raises(grpc.RpcError):
            stub.Inspect(
                images_pb2.InspectRequest(name="no/such"),
                metadata=(("x-request-id", "not {sane}"), ("authorization", secret)),
                timeout=BOUND,
            )
        auth = orlop.Auth(username="me", password=secret, registry="127.0.0.1:1")
        with pytest.raises(orlop.Error):
            store.pull("127.0.0.1:1/x", auth=auth)
    text = (place / "crew/daemon.out").read_text()
    assert secret not in text
    lines = [json.loads(line) for line in text.splitlines()]
    assert all({"time", "level", "logger", "message"} <= set(line) for line in lines)
    calls = [line for line in lines if line.get("method") == "/orlop.v1.Images/List"]
    assert {line["request"].partition("/")[2] for line in calls} == {"job/17"}
    assert {"OK"} == {line["code"] for line in calls if "code" in line}
    [failed] = [line for line in lines if line.get("code") == "NOT_FOUND"]
    assert failed["method"] == "/orlop.v1.Images/Inspect"
    assert failed["level"] == "INFO"
    assert failed["seconds"] >= 0
    assert re.fullmatch(r"[0-9a-f]+-[0-9a-f]+", failed["request"])
    assert failed["client"].startswith("uid ")


def test_a_traceback_is_one_line_and_what_others_log_has_the_call(place, capsys):
    from orlop.service.logs import CallLog, log_handler
    from orlop.service.watching import Begun, Seer

    handler, logger = log_handler("json"), logging.getLogger("orlop.test")
    logger.addHandler(handler)
    logger.propagate = False
    try:
        begun = Begun(method="/a/B", client="uid 1", number="1-1", metadata={})
        seer = Seer([CallLog()], begun)
        try:
            raise KeyError("a\nb")
        except KeyError:
            logger.exception("went\nwrong")
        seer.ended("OK")
        seer.ended("CANCELLED")
        logger.warning("after")
    finally:
        logger.removeHandler(handler)
        logger.propagate = True
    first, second = map(json.loads, capsys.readouterr().err.splitlines())
    assert first["request"] == "1-1"
    assert first["message"] == "went\\x0awrong"
    assert first["traceback"][0].startswith("Traceback")
    assert "request" not in second


def test_no_text_makes_a_line_of_its_own_in_the_log_for_people(capsys):
    from orlop.service.logs import log_handler

    handler, logger = log_handler("text"), logging.getLogger("orlop.test")
    logger.addHandler(handler)
    logger.propagate = False
    forged = "2026-01-01 00:00:00,000 INFO orlop: all is well"
    try:
        logger.warning("no image %s", f"a\n{forged}\x1b[2J")
        try:
            raise KeyError from OSError(f"a\n{forged}")
        except KeyError:
            logger.exception("went wrong")
    finally:
        logger.removeHandler(handler)
        logger.propagate = True
    first, second, *traceback = capsys.readouterr().err.splitlines()
    assert first.endswith(f"WARNING orlop.test: no image a\\x0a{forged}\\x1b[2J")
    assert second.endswith("ERROR orlop.test: went wrong")
    assert f"  {forged}" in traceback
    assert all(line.startswith("  ") for line in traceback)


# ------------------------------------------------------------------ health and reflection


def test_health_and_reflection_know_every_service(place):
    with served(stocked(place), place), grpc.insecure_channel(f"unix:{place}/socket/orlop.sock") as channel:
        health = health_pb2_grpc.HealthStub(channel)
        for name in ("", *SERVICES):
            answer = health.Check(health_pb2.HealthCheckRequest(service=name), timeout=BOUND)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING, name
        with pytest.raises(grpc.RpcError) as unknown:
            health.Check(health_pb2.HealthCheckRequest(service="no.such"), timeout=BOUND)
        assert unknown.value.code() is grpc.StatusCode.NOT_FOUND
        reflection = reflection_pb2_grpc.ServerReflectionStub(channel)
        asked = iter([reflection_pb2.ServerReflectionRequest(list_services="*")])
        [answer] = reflection.ServerReflectionInfo(asked, timeout=BOUND)
        told = {service.name for service in answer.list_services_response.service}
        own = {"grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"}
        assert told == {*SERVICES, *own}
        asked = [reflection_pb2.ServerReflectionRequest(file_containing_symbol=name) for name in SERVICES]
        answers = list(reflection.ServerReflectionInfo(iter(asked), timeout=BOUND))
        assert all(answer.HasField("file_descriptor_response") for answer in answers)


def test_each_service_is_said_not_to_serve_while_the_daemon_stops(place):
    fake = stocked(place)
    daemon = Daemon(fake, f"unix://{place}/socket/orlop.sock").start()
    with grpc.insecure_channel(f"unix:{place}/socket/orlop.sock") as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        names = ("", "orlop.v1.Events", "orlop.v1.Images")
        watches = [stub.Watch(health_pb2.HealthCheckRequest(service=name), timeout=BOUND) for name in names]
        assert {next(watch).status for watch in watches} == {health_pb2.HealthCheckResponse.SERVING}
        daemon.stop(grace=BOUND)
        told = {next(watch).status for watch in watches}
    assert told == {health_pb2.HealthCheckResponse.NOT_SERVING}
