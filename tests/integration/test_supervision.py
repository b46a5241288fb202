"""The daemon under a service manager: sockets handed over, states told, the configuration read again."""

from __future__ import annotations

import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

import orlop
from orlop import errors
from orlop.client import RemoteStore
from orlop.service import Daemon, ServiceLimits
from orlop.service.selfcheck import SelfCheck
from orlop.testing.fake import FakeStore

pytestmark = pytest.mark.root

LONG = 120.0  # seconds: a bound for what takes moments
SOURCES = str(Path(orlop.__file__).parents[1])
NOBODY = 65534


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder with a short path, as sockets need, that everybody may pass."""
    folder = Path(tempfile.mkdtemp(prefix="orlop-", dir="/var/tmp"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


# ------------------------------------------------------------------ a manager for one service

# As systemd does it: descriptors from 3 on, and LISTEN_PID is the process that becomes the service.
_LAUNCH = """
import os, sys
fds = [int(text) for text in sys.argv[1].split(",") if text]
high = [os.dup(fd) for fd in fds]
high = [fd if fd > 64 else os.dup2(fd, 64 + n) for n, fd in enumerate(high)]
for number, fd in enumerate(high):
    os.dup2(fd, 3 + number)
os.closerange(3 + len(high), 256)
if fds:
    os.environ.update(LISTEN_FDS=str(len(fds)), LISTEN_PID=str(os.getpid()))
os.execvp(sys.argv[2], sys.argv[2:])
"""


class Service:
    """A process that was started as a manager starts it, and what it has told."""

    def __init__(self, process: subprocess.Popen[bytes], told: socket.socket, log: Path) -> None:
        self.process = process
        self._told = told
        self._log = log

    def hear(self) -> dict[str, str]:
        """The next datagram."""
        self._told.settimeout(LONG)
        try:
            data = self._told.recv(4096)
        except TimeoutError:
            pytest.fail(f"nothing was told; the log: {self.log}")
        return dict(line.split("=", 1) for line in data.decode().split("\n"))

    def hear_of(self, name: str) -> dict[str, str]:
        """The next datagram that has a variable."""
        for _ in range(1_000):
            said = self.hear()
            if name in said:
                return said
        raise AssertionError(name)

    def ready(self) -> dict[str, str]:
        """Wait until it is ready; fails with its log if it ends before."""
        self._told.setblocking(False)
        while not select.select([self._told], [], [], 0.1)[0]:
            assert self.process.poll() is None, self.log
        return self.hear_of("READY")

    @property
    def log(self) -> str:
        return self._log.read_text()


@contextmanager
def service(
    place: Path,
    command: Sequence[str | Path],
    *,
    sockets: Sequence[socket.socket] = (),
    env: Mapping[str, str] | None = None,
) -> Iterator[Service]:
    with ExitStack() as undo:
        told = undo.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
        notify = place / f"notify-{len(os.listdir(place))}"
        told.bind(str(notify))
        log = undo.enter_context((place / "log").open("ab"))
        fds = [sock.fileno() for sock in sockets]
        process = subprocess.Popen(
            [sys.executable, "-c", _LAUNCH, ",".join(map(str, fds)), *map(os.fspath, command)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=fds,
            env={**os.environ, "PYTHONPATH": SOURCES, "NOTIFY_SOCKET": str(notify), **(env or {})},
        )
        try:
            yield Service(process, told, place / "log")
        finally:
            process.kill()
            process.wait()


def listening(path: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(str(path))
    sock.listen(16)
    return sock


@contextmanager
def remote(address: str) -> Iterator[RemoteStore]:
    store = RemoteStore.connect(address)
    try:
        yield store
    finally:
        store.close()


_SERVE = """
import os, sys, threading
from orlop.service import ServiceLimits, serve
from orlop.service.systemd import Notifier, Supervision
from orlop.testing.fake import FakeStore
store = FakeStore(sys.argv[1] + "/root")
store.publish("alpine")
supervision = Supervision.of(os.environ, {os.getpid()})
with store.hold("pull") as held:
    told = lambda: (held.entered.wait(), Notifier(supervision.notify)._tell("PULLING=1"))
    threading.Thread(target=told, daemon=True).start()
    serve(store, [], limits=ServiceLimits(grace=600.0), supervision=supervision)
"""


def test_a_socket_that_is_handed_over_outlives_daemons_and_keeps_who_comes_between(place: Path) -> None:
    path = place / "sock"
    address = f"unix://{path}"
    command = [sys.executable, "-c", _SERVE, place]
    with listening(path) as sock, ThreadPoolExecutor(2) as pool, remote(address) as client:
        path.chmod(0o640)
        with service(place, command, sockets=[sock]) as first:
            assert first.ready()["STATUS"] == f"serving {place}/root on {address}"
            assert client.images() == []
            running = pool.submit(client.pull, "alpine")
            first.hear_of("PULLING")
            first.process.send_signal(signal.SIGTERM)
            assert first.hear_of("STOPPING")["STATUS"] == "stopping; 1 calls run"
            assert int(first.hear_of("EXTEND_TIMEOUT_USEC")["EXTEND_TIMEOUT_USEC"]) > 0
            first.process.send_signal(signal.SIGTERM)
            assert first.process.wait(LONG) == 0, first.log
            with pytest.raises((errors.Cancelled, errors.Unavailable)):
                running.result(LONG)
        assert path.is_socket()
        assert path.stat().st_mode & 0o777 == 0o640
        with remote(address) as early:  # whoever comes while there is no daemon waits for the next one
            waiting = pool.submit(early.images)
            with service(place, command, sockets=[sock]) as second:
                assert waiting.result(LONG) == []
                second.process.send_signal(signal.SIGTERM)
                assert second.process.wait(LONG) == 0, second.log
        assert path.is_socket()


def test_a_watchdog_hears_of_a_daemon_that_answers(place: Path) -> None:
    command = [sys.executable, "-c", _SERVE, place]
    env = {"WATCHDOG_USEC": "600000"}
    with listening(place / "sock") as sock, service(place, command, sockets=[sock], env=env) as daemon:
        for _ in range(3):
            daemon.hear_of("WATCHDOG")


@contextmanager
def serving(store: FakeStore, place: Path, **limits: object) -> Iterator[Daemon]:
    daemon = Daemon(store, f"unix://{place}/s/orlop.sock", limits=ServiceLimits(**limits))
    daemon.start()
    try:
        yield daemon
    finally:
        daemon.stop(grace=0.0)


def test_a_daemon_that_gives_no_answer_is_found_out_and_one_that_refuses_is_not(place: Path) -> None:
    fake = FakeStore(str(place / "root"))
    with serving(fake, place, quick=1, spare=1) as daemon:
        check = SelfCheck(daemon.own_address)
        check(LONG)
        fake.fail("pins", errors.DataLoss("list pins", "spoilt"))
        check(LONG)
        with fake.hold("pins"), pytest.raises(errors.DeadlineExceeded):
            check(0.5)
        check(LONG)
    with pytest.raises(errors.Unavailable):
        check(LONG)
    path = place / "mute"
    with listening(path), pytest.raises((errors.DeadlineExceeded, errors.Unavailable)):
        SelfCheck(orlop.client.address.Address(str(path)))(0.5)


# ------------------------------------------------------------------ the configuration, read again

_HOLD = """
import os, sys
from orlop.client import RemoteStore
import orlop
os.setgroups([]); os.setgid(65534); os.setuid(65534)
store = RemoteStore.connect(sys.argv[1])
for line in sys.stdin:
    try:
        print("ok", len(store.images()) if line.strip() == "look" else store.tag("alpine", "b"), flush=True)
    except orlop.Error as exc:
        print(type(exc).__name__, flush=True)
"""


class Visitor:
    """Another user, who keeps its connection."""

    def __init__(self, address: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", _HOLD, address],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            bufsize=1,
            env={**os.environ, "PYTHONPATH": SOURCES},
        )

    def does(self, what: str) -> str:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(what + "\n")
        return self._process.stdout.readline().split(" ")[0].strip()

    def __enter__(self) -> Visitor:
        return self

    def __exit__(self, *exc: object) -> None:
        self._process.kill()
        self._process.communicate()


def test_rules_that_are_read_again_hold_for_those_who_are_connected_already(place: Path) -> None:
    fake = FakeStore(str(place / "root"))
    fake.publish("alpine")
    fake.pull("alpine")
    with serving(fake, place, read_only_users=(str(NOBODY),)) as daemon:
        with Visitor(str(daemon.address)) as visitor:
            assert (visitor.does("look"), visitor.does("tag")) == ("ok", "PermissionDenied")
            assert daemon.reload(ServiceLimits(users=(str(NOBODY),))) == ()
            while (told := visitor.does("tag")) != "ok":  # the door looks at its connections in its own time
                assert told == "PermissionDenied"
            assert visitor.does("look") == "ok"
            with pytest.raises(errors.InvalidArgument, match="no user 'nobody-of-that-name'"):
                daemon.reload(ServiceLimits(read_only_users=("nobody-of-that-name",)))
            assert visitor.does("tag") == "ok"

            def refuse() -> None:
                raise errors.InvalidArgument("read", "broken")

            with pytest.raises(errors.InvalidArgument, match="broken"):
                daemon.reload(ServiceLimits(), also=refuse)
            assert visitor.does("tag") == "ok"
            socket_file = place / "s" / "orlop.sock"
            assert socket_file.stat().st_mode & 0o777 == 0o666
            assert daemon.reload(ServiceLimits(quick=3, client_calls=1, burst=1, rate=0.001)) == ("quick",)
            assert daemon.limits.quick == ServiceLimits().quick
            assert socket_file.stat().st_mode & 0o777 == 0o660
            assert socket_file.parent.stat().st_mode & 0o777 == 0o750
            while (told := visitor.does("look")) == "ok":
                pass
            assert told in {"PermissionDenied", "Unavailable", "Cancelled", "ResourceExhausted"}
        with remote(str(daemon.address)) as client:
            client.images()
            with pytest.raises(errors.ResourceExhausted, match="calls a second"):
                client.images()


def test_sighup_reads_the_files_again_and_a_broken_one_changes_nothing(place: Path) -> None:
    file = place / "config.toml"
    file.write_text('driver = "native"\n[daemon]\nrequest_size = 4096\n')
    command = [
        *(sys.executable, "-m", "orlop", "--root", place / "root", "--run", place / "run"),
        *("--config", file, "daemon", "--listen", f"unix://{place}/sock"),
    ]
    said = []
    with service(place, command) as daemon, ExitStack() as undo:
        usual = daemon.ready()["STATUS"]
        client = undo.enter_context(remote(f"unix://{place}/sock"))
        assert client.info().driver == "native"

        def reload(text: str) -> str:
            file.write_text(text)
            daemon.process.send_signal(signal.SIGHUP)
            assert int(daemon.hear_of("RELOADING")["MONOTONIC_USEC"]) > 0
            return daemon.hear_of("READY")["STATUS"].removeprefix(usual)

        assert reload('driver = "overlay"\nretries = 9\n[limits]\ndepth = 77\n') == ""
        info = client.info()
        assert (info.driver in {"overlay", ""}, info.limits) == (True, {"depth": 77})
        for broken in (
            "driver = ",
            'drvier = "native"',
            '[daemon]\nusers = ["nobody-of-that-name"]',
            "[daemon]\nquick = 0",
            '[daemon]\nlog_level = "LOUD"',
            'registries_conf = ["/dev/zero"]',
            "retries = -1",
        ):
            said.append(reload(broken))
            assert client.info().limits == {"depth": 77}
        assert said == ["; the configuration on disk is broken, see the log"] * 7
        assert daemon.log.count("the configuration stays as it was") == 7
        later = (
            "durable = false\n[daemon]\nquick = 3\nlog_level = 'debug'\nlog_format = 'json'\ntracing = true"
        )
        assert reload(later) == ""
        assert (
            "quick, request_size, daemon.log_format, daemon.tracing, durable wait for a restart" in daemon.log
        )
        assert client.info().limits == {}
        assert "DEBUG orlop.service.gate: /orlop.v1.Store/Info" in daemon.log
        daemon.process.send_signal(signal.SIGTERM)
        assert daemon.process.wait(LONG) == 0, daemon.log
    assert "Traceback" not in daemon.log


def test_systemds_own_tool_hands_a_socket_to_the_command_line(place: Path) -> None:
    path = place / "sock"
    command = [
        *("systemd-socket-activate", "-l", path, "--fdname=orlop"),
        *(f"--setenv={name}" for name in ("PATH", "PYTHONPATH", "NOTIFY_SOCKET", "ORLOP_CONFIG")),
        *(sys.executable, "-m", "orlop", "--root", place / "root", "--run", place / "run", "daemon"),
    ]
    with service(place, command) as daemon:
        while not path.exists():
            assert daemon.process.poll() is None, daemon.log
        with remote(f"unix://{path}") as client:
            assert client.images() == []
        assert daemon.ready()["STATUS"] == f"serving {place}/root on unix://{path}"
        daemon.process.send_signal(signal.SIGTERM)
        assert daemon.process.wait(LONG) == 0, daemon.log
    assert path.is_socket()
