"""However a worker ends, or does not end: one failed call with a word on why, and no process left."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path

import psutil
import pytest

from orlop.config import DEFAULT_LIMITS
from orlop.errors import Cancelled, Error, InvalidArgument, ResourceExhausted, Unavailable
from orlop.images.features import confinement_words
from orlop.layers.worker.client import Feed, Stall, Template, Unpacked, confinement, unpack
from orlop.layers.worker.template import End
from orlop.linux.confine import Confinement, landlock_abi
from orlop.observe import Call, CancelToken
from support.liars import Orders, entry, lying
from support.lies import INDEX, TAR

PATIENCE = 60  # seconds for what happens at once


@pytest.fixture(scope="module")
def liars(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Template, Orders]]:
    with lying(tmp_path_factory.mktemp("orders")) as running:
        yield running


@pytest.fixture
def template(liars: tuple[Template, Orders]) -> Iterator[Template]:
    yield liars[0]
    liars[1]()
    wait_for(lambda: not children(liars[0]))


@pytest.fixture
def orders(liars: tuple[Template, Orders]) -> Orders:
    return liars[1]


def children(template: Template) -> list[psutil.Process]:
    assert template._process is not None
    return psutil.Process(template._process.pid).children()


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def run(template: Template, folder: Path, **more: object) -> Unpacked:
    """The whole layer, from a file that may be written."""
    (folder / "source").write_bytes(TAR)
    with (folder / "source").open("rb+") as source, (folder / "tar").open("wb+") as tar:
        feed = Feed.whole(len(TAR))
        try:
            call = more.pop("call", Call())
            return unpack(template, source.fileno(), feed, tar=tar.fileno(), call=call, **more)  # type: ignore[arg-type]
        finally:
            feed.close()


ENDS = [
    ("crash", Unavailable, "SIGSEGV"),
    ("exit", Unavailable, "exit code 3"),
    ("killed", Unavailable, "SIGKILL.*out of memory"),
    ("deaf", Unavailable, "closed its pipes without an answer"),
]


@pytest.mark.parametrize("who", ["copy", "index"])
@pytest.mark.parametrize(
    ("way", "error", "words"), ENDS, ids=lambda case: case if isinstance(case, str) else ""
)
def test_a_worker_that_ends_without_an_answer_is_one_failed_call(
    template: Template, orders: Orders, tmp_path: Path, who: str, way: str, error: type[Error], words: str
) -> None:
    orders(**{who: way})  # type: ignore[arg-type]
    with pytest.raises(error, match=words):
        run(template, tmp_path)
    orders()
    assert run(template, tmp_path).index == INDEX


def test_the_limit_that_ended_a_worker_is_named(template: Template, orders: Orders, tmp_path: Path) -> None:
    orders(index="loop")
    with pytest.raises(ResourceExhausted, match=r"limits\.worker_cpu") as caught:
        run(template, tmp_path, limits=replace(DEFAULT_LIMITS, worker_cpu=1))
    assert caught.value.details == {"limit": "worker_cpu"}
    orders(index="hoard")
    with pytest.raises((ResourceExhausted, Unavailable)):
        run(template, tmp_path, limits=replace(DEFAULT_LIMITS, worker_memory=200 << 20))


@pytest.mark.parametrize("who", ["copy", "index"])
def test_a_worker_that_hangs_is_ended(template: Template, orders: Orders, tmp_path: Path, who: str) -> None:
    orders(**{who: "sleep"})  # type: ignore[arg-type]
    with pytest.raises(Unavailable, match=r"did nothing for 1 seconds.*limits\.worker_stall"):
        run(template, tmp_path, limits=replace(DEFAULT_LIMITS, worker_stall=1))


@pytest.mark.parametrize("way", ["sleep", "deaf", "loop"])
def test_a_worker_that_hears_nothing_does_not_outlive_its_call(
    template: Template, orders: Orders, tmp_path: Path, way: str
) -> None:
    orders(index=way)
    token, raised = CancelToken(), list[Error]()

    def body() -> None:
        try:
            run(template, tmp_path, call=Call(cancel=token))
        except Error as exc:
            raised.append(exc)

    thread = threading.Thread(target=body)
    thread.start()
    wait_for(lambda: bool(children(template)) or bool(raised))
    token.cancel()
    thread.join(PATIENCE)
    assert [type(exc) for exc in raised] in ([Cancelled], [Unavailable])  # a deaf one is noticed first
    wait_for(lambda: not children(template))


def test_a_source_that_is_given_up_ends_the_call(template: Template, orders: Orders, tmp_path: Path) -> None:
    orders(copy="sleep")
    feed, raised = Feed(), list[Error]()

    def body() -> None:
        with (tmp_path / "source").open("wb+") as source, (tmp_path / "tar").open("wb+") as tar:
            try:
                unpack(template, source.fileno(), feed, tar=tar.fileno(), call=Call())
            except Error as exc:
                raised.append(exc)

    thread = threading.Thread(target=body)
    thread.start()
    wait_for(lambda: bool(children(template)))
    feed.close()
    thread.join(PATIENCE)
    assert [(type(exc), exc.reason) for exc in raised] == [(Unavailable, "its source was given up")]


def test_workers_do_not_outlive_the_template(tmp_path: Path) -> None:
    with lying(tmp_path / "orders") as (template, orders):
        orders(index="sleep", copy="sleep")
        raised: list[Error] = []

        def body() -> None:
            try:
                run(template, tmp_path)
            except Error as exc:
                raised.append(exc)

        thread = threading.Thread(target=body)
        thread.start()
        wait_for(lambda: len(children(template)) == 2)
        left = children(template)
        wait_for(lambda: all(seccomp_of(worker) == "2" for worker in left))  # they have come to rest
        assert template._process is not None
        template._process.kill()
        thread.join(PATIENCE)
        assert [type(exc) for exc in raised] == [Unavailable]
        wait_for(lambda: not any(is_alive(worker) for worker in left))


def seccomp_of(worker: psutil.Process) -> str:
    lines = Path(f"/proc/{worker.pid}/status").read_text().splitlines()
    return dict(line.split(":\t", 1) for line in lines if ":\t" in line)["Seccomp"]


ORPHAN = """
import os, sys, threading, time
from pathlib import Path
from orlop.layers.worker.client import Feed, Template, unpack
from orlop.observe import Call
import psutil

folder = Path(sys.argv[1])
template = Template(entry=sys.argv[2])
source, tar = (folder / "source").open("rb"), (folder / "tar").open("wb+")
feed = Feed.whole(512)
threading.Thread(
    target=unpack, args=(template, source.fileno(), feed), kwargs={"tar": tar.fileno(), "call": Call()}, daemon=True
).start()
while template._process is None or len(psutil.Process(template._process.pid).children()) < 2:
    time.sleep(0.01)
pids = [template._process.pid, *(child.pid for child in psutil.Process(template._process.pid).children())]
print(*pids, flush=True)
time.sleep(1000)
"""


def test_neither_template_nor_workers_outlive_whoever_started_them(tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(TAR)
    with lying(tmp_path / "orders") as (_, orders):
        orders(index="sleep", copy="sleep")
        process = subprocess.Popen(
            [sys.executable, "-c", ORPHAN, os.fspath(tmp_path), entry(tmp_path / "orders")],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        )
        left: list[psutil.Process] = []
        try:
            assert process.stdout is not None
            left = [psutil.Process(int(pid)) for pid in process.stdout.readline().split()]
            assert len(left) == 3
        finally:
            process.kill()
            process.wait(PATIENCE)
            process.stdout.close()  # type: ignore[union-attr]
        wait_for(lambda: not any(is_alive(one) for one in left))


KEPT = """
import sys, tempfile, time
from orlop.errors import DeadlineExceeded
from orlop.layers.worker.client import Feed, Template, confinement, unpack
from orlop.observe import Call

with Template() as template, tempfile.TemporaryFile() as source:
    found = [confinement(template, call=Call())]
    first, feed = template._process.pid, Feed()
    try:
        unpack(template, source.fileno(), feed, call=Call(deadline=time.monotonic() + 0.5))
    except DeadlineExceeded:
        feed.close()
        found.append(confinement(template, call=Call()))
    print(found[0].user_changed, found[0] == found[1], template._process.pid == first)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has other users for its workers")
def test_a_root_that_may_not_kill_others_users_can_end_its_workers() -> None:
    """As in a container or a service without CAP_KILL."""
    done = subprocess.run(
        ["setpriv", "--bounding-set=-kill", "--inh-caps=-kill", sys.executable, "-c", KEPT],
        capture_output=True,
        text=True,
        timeout=PATIENCE * 4,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        check=False,
    )
    assert done.stdout == "False True True\n", done.stderr


def is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE  # init may be slow to reap
    except psutil.NoSuchProcess:
        return False


# ------------------------------------------------------------------ what it holds


@pytest.mark.parametrize("who", ["copy", "index"])
def test_a_worker_cannot_change_what_it_reads(
    template: Template, orders: Orders, tmp_path: Path, who: str
) -> None:
    """The source may be a download that becomes a blob under its digest, or the layer itself."""
    orders(**{who: "scribble"})  # type: ignore[arg-type]
    with pytest.raises(InvalidArgument) as caught:
        run(template, tmp_path)
    assert caught.value.reason == "close"
    assert (tmp_path / "source").read_bytes() == TAR


def test_the_template_has_no_descriptor_of_ours(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    with secret.open("wb") as file, lying(tmp_path / "orders") as (template, _):
        os.set_inheritable(file.fileno(), True)
        template.close()
        template.start()
        confinement(template, call=Call())  # it is ready
        assert template._process is not None
        held = Path(f"/proc/{template._process.pid}/fd")
        links = set()
        for path in held.iterdir():
            with contextlib.suppress(FileNotFoundError):  # it looks at its workers now and then
                if path.name not in "012":
                    links.add(os.readlink(path))
    files = {link for link in links if link.startswith("/")}
    assert not {link for link in files if not re.fullmatch(r"/proc/\d+/stat", link)}, links  # of its workers


def test_signals_that_are_blocked_or_ignored_here_are_not_so_in_workers(tmp_path: Path) -> None:
    with lying(tmp_path / "orders") as (template, orders):
        template.close()
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGXCPU, signal.SIGCHLD})
        try:
            template.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        orders(index="crash")
        with pytest.raises(Unavailable, match="SIGSEGV"):
            run(template, tmp_path)


def test_what_confines_a_worker_is_what_it_says(template: Template) -> None:
    found = confinement(template, call=Call())
    assert asdict(found) == {"user_changed": os.geteuid() == 0, "landlock": landlock_abi(), "seccomp": True}


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (Confinement(user_changed=True, landlock=6, seccomp=True), "whole"),
        (
            Confinement(user_changed=True, landlock=0, seccomp=True),
            "no Landlock: seccomp alone keeps it from files",
        ),
        (
            Confinement(user_changed=True, landlock=6, seccomp=False),
            "no seccomp: it can make system calls that it does not need",
        ),
        (
            Confinement(user_changed=False, landlock=0, seccomp=False),
            "; ".join(
                [
                    "no seccomp: it can make system calls that it does not need",
                    "no Landlock: nothing keeps it from files",
                    "nothing keeps it from the network",
                    "it runs as the user who runs orlop: no other is to be had here",
                ]
            ),
        ),
    ],
)
def test_what_confinement_lacks_is_said_in_words(found: Confinement, words: str) -> None:
    said = confinement_words(found)
    assert said["confinement of workers"] == words
    assert (said["landlock"] == "no", said["seccomp"]) == (
        not found.landlock,
        "yes" if found.seccomp else "no",
    )


# ------------------------------------------------------------------ when it is stalled


def test_a_download_that_trickles_is_no_stalled_worker() -> None:
    stall = Stall(300)
    for _ in range(100_000):
        stall.watch(1.0, moved=False, expects=False)  # it has taken all there is
    for _ in range(299):
        stall.watch(1.0, moved=False, expects=True)
    stall.watch(1.0, moved=True, expects=True)
    for _ in range(299):
        stall.watch(1.0, moved=False, expects=True)
    with pytest.raises(Unavailable, match="300 seconds"):
        stall.watch(1.0, moved=False, expects=True)


def test_whose_turn_it_is() -> None:
    feed = Feed()
    reader = feed.take_reader()
    try:
        assert not feed.expects
        feed.advance(100)
        assert feed.expects
        os.read(reader, 4096)
        assert (feed.expects, feed.total, feed.complete, feed.given_up) == (False, 100, False, False)
        feed.advance(200, complete=True)
        os.read(reader, 4096)
        assert (feed.expects, feed.total, feed.complete) == (True, 200, True)
    finally:
        os.close(reader)
        feed.close()
    assert not feed.given_up
    gone = Feed()
    gone.close()
    assert gone.given_up


@pytest.mark.parametrize(
    ("end", "error", "words"),
    [
        (End(status=signal.SIGXCPU, cpu=9.9), ResourceExhausted, r"worker_cpu is 10, the limit is 9"),
        (End(status=signal.SIGKILL, cpu=10.9), ResourceExhausted, r"limits\.worker_cpu"),
        (End(status=signal.SIGKILL, cpu=1.0), Unavailable, "ended by SIGKILL.*out of memory"),
        (End(status=signal.SIGBUS), Unavailable, "ended by SIGBUS"),
        (End(status=63), Unavailable, "ended by signal 63"),
        (End(status=1 << 8), Unavailable, "exit code 1"),
        (End(lost=True), Unavailable, "and the template"),
        (End(refused="Resource temporarily unavailable"), Unavailable, "could be started: Resource"),
    ],
)
def test_each_end_has_its_error(end: End, error: type[Error], words: str) -> None:
    with pytest.raises(error, match=words):
        raise end.error(replace(DEFAULT_LIMITS, worker_cpu=9))
