"""Imports that a client sends: what reaches the store, and what half a stream does."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

import orlop
from conftest import StoreDirs
from orlop import errors
from orlop.client.uploads import upload
from orlop.images.imports import ImportOptions
from orlop.observe import Call, CancelToken
from orlop.proto.orlop.v1 import transfer_pb2 as pb
from orlop.proto.orlop.v1 import transfer_pb2_grpc
from orlop.service import Daemon, ServiceLimits
from orlop.testing.fake import FakeStore
from support.daemons import Crew, daemon
from support.layers import Layer

PATIENCE = 100.0  # seconds until something that must happen is given up
BIG = "big " * 60_000


@pytest.fixture
def fake(tmp_path: Path) -> FakeStore:
    store = FakeStore(f"{tmp_path}/root", f"{tmp_path}/run")
    store.publish("alpine", layers=(1000, 200))
    store.publish("debian", layers=(5000,))
    store.archives |= {"small": ["alpine"], BIG: ["alpine", "debian"], "/srv/there.tar": ["debian"]}
    return store


@pytest.fixture
def address(fake: FakeStore, short_folder: Path) -> Iterator[str]:
    served = Daemon(fake, f"unix://{short_folder}/s/orlop.sock", limits=ServiceLimits(request_size=100_000))
    served.start()
    try:
        yield f"unix://{short_folder}/s/orlop.sock"
    finally:
        served.stop(grace=0.0)


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """A socket's path is short."""
    folder = Path(subprocess.check_output(["mktemp", "-d", "/var/tmp/orlop-XXXXXX"], text=True).strip())
    yield folder
    subprocess.run(["rm", "-rf", folder], check=True)


def test_what_is_sent_arrives_whole_and_in_order(address: str, fake: FakeStore, tmp_path: Path) -> None:
    with orlop.connect(address) as store:
        pieces = (BIG[at : at + 70_001].encode() for at in range(0, len(BIG), 70_001))
        names = [info.name for info in store.load(pieces)]
        assert names == ["docker.io/library/alpine:latest", "docker.io/library/debian:latest"]
        (tmp_path / "file").write_text("small")
        with (tmp_path / "file").open("rb") as file:
            assert [info.name for info in store.load(file, name="b:1")] == ["docker.io/library/b:1"]
        with pytest.raises(errors.InvalidArgument, match="binary"), (tmp_path / "file").open() as text:
            store.load(text)  # type: ignore[arg-type]


def test_a_path_is_the_daemons_and_what_it_cannot_see_is_sent(
    address: str, fake: FakeStore, tmp_path: Path
) -> None:
    with orlop.connect(address) as store:
        assert [info.name for info in store.load("/srv/there.tar")] == ["docker.io/library/debian:latest"]
        (tmp_path / "here.tar").write_text("small")
        assert [info.name for info in store.load(tmp_path / "here.tar")] == [
            "docker.io/library/alpine:latest"
        ]
        with pytest.raises(errors.NotFound):
            store.load(tmp_path / "nowhere")
        fake.fail("load", errors.NotFound("import", "there is no blob in it"))
        with pytest.raises(errors.NotFound, match="no blob"):  # it saw it: nothing is sent
            store.load(tmp_path / "here.tar")
        with pytest.raises(errors.AlreadyExists):
            store.load(tmp_path / "here.tar", name="debian")
        assert store.load(tmp_path / "here.tar", name="debian", replace=True)


def test_a_folder_that_the_daemon_cannot_see_is_sent_as_a_tar(
    address: str, fake: FakeStore, tmp_path: Path
) -> None:
    (tmp_path / "tree/a/b").mkdir(parents=True)
    (tmp_path / "tree/a/b/c").write_bytes(os.urandom(300_000))
    received: list[bytes] = []
    fake.load = lambda source, **more: received.append(b"".join(source)) or []  # type: ignore[method-assign]

    with orlop.connect(address) as store:
        verbs = store.verbs
        upload = verbs._send  # type: ignore[attr-defined]
        upload(f"{tmp_path}/tree", pb.LoadRequest(), ImportOptions(owner=(3, 4)), Call())
    (tmp_path / "sent").write_bytes(received[0])
    with tarfile.open(tmp_path / "sent") as archive:
        found = {member.name: (member.size, member.uid, member.gid) for member in archive}
    assert found == {".": (0, 3, 4), "a": (0, 3, 4), "a/b": (0, 3, 4), "a/b/c": (300_000, 3, 4)}


@pytest.mark.hostile(39)
@pytest.mark.parametrize(
    ("parts", "code"),
    [
        ([], grpc.StatusCode.INVALID_ARGUMENT),
        ([pb.LoadStreamRequest(chunk=b"small")], grpc.StatusCode.INVALID_ARGUMENT),
        (["start"], grpc.StatusCode.DATA_LOSS),
        (["start", b"small"], grpc.StatusCode.DATA_LOSS),
        (["start", b"sma", "start"], grpc.StatusCode.INVALID_ARGUMENT),
        (["start", b"small", pb.LoadStreamRequest()], grpc.StatusCode.INVALID_ARGUMENT),
        (["start", bytes(100_001)], grpc.StatusCode.RESOURCE_EXHAUSTED),
        (["odd"], grpc.StatusCode.INVALID_ARGUMENT),
        (["owner"], grpc.StatusCode.INVALID_ARGUMENT),
    ],
)
def test_a_stream_that_is_cut_off_or_no_import_is_refused(
    address: str, fake: FakeStore, parts: list[object], code: grpc.StatusCode
) -> None:
    made = {
        "start": pb.LoadStreamRequest(start=pb.LoadRequest()),
        "odd": pb.LoadStreamRequest(start=pb.LoadRequest(options=pb.ImportOptions(format="odd"))),
        "owner": pb.LoadStreamRequest(start=pb.LoadRequest(options=pb.ImportOptions(owner_uid=1))),
    }
    requests = [
        made.get(part) if isinstance(part, str)
        else pb.LoadStreamRequest(chunk=part) if isinstance(part, bytes)
        else part
        for part in parts
    ]  # fmt: skip
    with grpc.insecure_channel(address) as channel, pytest.raises(grpc.RpcError) as refused:
        list(transfer_pb2_grpc.TransferStub(channel).LoadStream(iter(requests), timeout=PATIENCE))
    assert refused.value.code() == code
    assert fake.images() == []


def test_a_source_that_fails_is_the_clients_own_error(address: str, fake: FakeStore) -> None:
    def failing() -> Iterator[bytes]:
        yield b"sma"
        raise errors.DataLoss("read it", "the disk is bad")

    with orlop.connect(address) as store:
        with pytest.raises(errors.DataLoss, match="the disk is bad"):
            store.load(failing())
        assert store.load([b"sma", b"ll"])
    assert len(fake.images()) == 1


def test_a_client_that_gives_up_in_the_middle_of_a_stream_frees_the_daemon(
    address: str, fake: FakeStore
) -> None:
    token, go_on = CancelToken(), threading.Event()

    def slow() -> Iterator[bytes]:
        yield b"sma"
        token.cancel()
        go_on.wait(PATIENCE)

    with orlop.connect(address) as store:
        try:
            with pytest.raises(errors.Cancelled):
                store.load(slow(), call=Call(cancel=token))
        finally:
            go_on.set()
        assert store.load([b"small"])


def given_up_while_it_waits(*where: str) -> None:
    """``orlop import -`` of a pipe that goes on and says nothing more, and is interrupted."""
    read, write = os.pipe()
    os.set_blocking(write, False)
    command = [sys.executable, "-m", "orlop", *where, "import", "-"]
    out = subprocess.PIPE
    with subprocess.Popen(command, stdin=read, stdout=out, stderr=out, text=True) as process:
        try:
            os.close(read)
            left, poller, end = 300_000, select.poll(), time.monotonic() + PATIENCE
            poller.register(write, select.POLLOUT)
            while left:  # more than a pipe holds: it is read
                assert time.monotonic() < end
                if poller.poll(1000):
                    left -= os.write(write, bytes(min(left, 4096)))
            process.send_signal(signal.SIGINT)
            told = process.communicate(timeout=PATIENCE)
        finally:
            process.kill()
            os.close(write)
    assert process.returncode == 130, told
    assert "interrupted; no image was made" in told[1]
    assert "Fatal" not in told[1]
    assert "Traceback" not in told[1]


def test_a_pipe_that_says_nothing_is_given_up_when_it_is_sent(address: str, fake: FakeStore) -> None:
    given_up_while_it_waits("--host", address)
    assert fake.images() == []


@pytest.mark.root
def test_a_pipe_that_says_nothing_is_given_up_when_it_is_read_here(store_dirs: StoreDirs) -> None:
    given_up_while_it_waits("--root", os.fspath(store_dirs.root), "--run", os.fspath(store_dirs.run))


def test_what_nobody_wants_any_more_is_not_read_by_a_thread_that_is_late(tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree/f").write_bytes(bytes(3_000_000))
    (tmp_path / "file").write_bytes(bytes(300_000))
    for source in ("tree", "file"):
        with upload(f"{tmp_path}/{source}", ImportOptions(), attempted="test", call=Call()) as sent:
            late = iter(sent)
            next(late)
        with pytest.raises(errors.Cancelled):
            list(late)
        with upload(f"{tmp_path}/{source}", ImportOptions(), attempted="test", call=Call()):
            pass  # nothing of it was read
    assert "orlop-pack" not in {thread.name for thread in threading.enumerate()}


@pytest.mark.root
def test_a_daemon_imports_from_a_pipe_what_it_may_not_read_itself(
    store_dirs: StoreDirs, workdir: Path, short_folder: Path
) -> None:
    tar = Layer().file("etc/motd", b"piped\n").tar()
    with (
        Crew(workdir / "crew") as crew,
        daemon(crew, store_dirs.root, store_dirs.run, socket=short_folder / "sock") as address,
    ):
        command = [sys.executable, "-m", "orlop", "--host", address, "import", "--created", "1700000000"]
        done = subprocess.run(
            [*command, "-", "localhost/piped"], check=False, input=tar, capture_output=True, timeout=PATIENCE
        )
        assert (done.returncode, done.stdout) == (0, b"localhost/piped:latest\n"), done.stderr
        with orlop.connect(address) as store:
            (again,) = store.load([tar], name="localhost/again", created=1_700_000_000)
            assert again.id == store.inspect("localhost/piped").info.id
            with store.prepare("localhost/piped", store_dirs.work / "a", mount=True):
                assert (store_dirs.work / "a/etc/motd").read_bytes() == b"piped\n"
