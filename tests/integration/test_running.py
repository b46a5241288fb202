"""`Prepared.run`: programs of a root.  Without root: test_pytest_plugin.py."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import orlop
import orlop.aio
from conftest import StoreDirs
from support import images
from support.layers import Layer

pytestmark = pytest.mark.root

ENV = {"config": {"Env": ["PATH=/nowhere:/bin", "FROM=image"], "WorkingDir": "/srv"}}


def layout(folder: Path) -> Path:
    """An image with busybox."""
    layer = Layer().folder("bin").folder("srv").folder("tmp", mode=0o1777)
    layer.file("bin/busybox", Path("/bin/busybox").read_bytes(), mode=0o755).file("bin/data", b"x")
    for name in ("sh", "cat", "echo", "id", "sleep", "env", "ls"):
        layer.symlink(f"bin/{name}", "/bin/busybox")
    return images.write_layout(folder, {"v1": images.make_image([layer.tar()], config=ENV)})


@pytest.fixture
def root(store: orlop.Store, store_dirs: StoreDirs) -> Iterator[orlop.Prepared]:
    store.load(layout(store_dirs.work / "box"), name="localhost/box")
    with store.prepare("localhost/box", store_dirs.work / "a", mount=True) as prepared:
        yield prepared


@pytest.mark.parametrize("isolate", [True, False])
def test_a_program_runs_with_what_the_image_and_the_caller_say(root: orlop.Prepared, isolate: bool) -> None:
    script = "echo $FROM $A $PWD; id -u; cat; echo err >&2; echo made > made; exit 7"
    ran = root.run(["sh", "-c", script], env={"A": "b"}, input="typed\n", isolate=isolate)
    assert (ran.code, ran.stdout, ran.stderr) == (7, "image b /srv\n0\ntyped\n", "err\n")
    assert ran.isolated is isolate
    assert root.run(["cat", "made"], isolate=isolate).stdout == "made\n"
    assert root.run(["sh", "-c", "echo $PWD"], cwd="/tmp", isolate=isolate).stdout == "/tmp\n"
    assert root.run(["sh", "-c", "kill -9 $$"], isolate=isolate).code == 137
    with pytest.raises(orlop.NotFound, match="nosuch"):
        root.run(["nosuch"], isolate=isolate)
    with pytest.raises(orlop.FailedPrecondition, match="Permission denied"):
        root.run(["/bin/data"], isolate=isolate)
    with pytest.raises(orlop.InvalidArgument):
        root.run([])


def test_an_isolated_one_sees_no_other_process_and_no_network(root: orlop.Prepared) -> None:
    numbers = root.run(["sh", "-c", "ls /proc | while read n; do test -e /proc/$n/cmdline && echo $n; done"])
    assert {int(word) for word in numbers.stdout.split() if word.isdigit()} <= set(range(1, 9))
    assert root.run(["cat", "/proc/net/dev"]).stdout.count(":") == 1
    own = Path("/proc/net/dev").read_text().count(":")
    assert root.run(["cat", "/proc/net/dev"], net="host").stdout.count(":") == own


def test_forks_and_roots_whose_image_lost_its_name_run_and_are_bundled(
    store: orlop.Store, root: orlop.Prepared, store_dirs: StoreDirs
) -> None:
    root.run(["sh", "-c", "echo made > made"])
    (fork,) = root.fork(store_dirs.work / "fork", mount=True)
    store.remove("localhost/box")
    for number, one in enumerate((root, fork)):
        assert one.run(["sh", "-c", "echo $FROM; cat made"]).stdout == "image\nmade\n"
        one.bundle(store_dirs.work / f"bundle{number}", args=["id"])
    details = store.inspect(fork.info.image_id)
    assert (details.info.name, details.names, len(details.layers)) == ("", (), 2)
    fork.cleanup()
    with pytest.raises(orlop.NotFound):
        store.inspect(fork.info.image_id)


@pytest.mark.parametrize("isolate", [True, False])
def test_a_call_that_ends_ends_the_program(root: orlop.Prepared, isolate: bool) -> None:
    with pytest.raises(orlop.DeadlineExceeded):
        root.run(["sleep", "1000"], isolate=isolate, call=orlop.Call(deadline=time.monotonic() + 0.2))
    root.cleanup()  # which would say who uses it
    root._verbs.prepare_root("localhost/box", root.path, call=orlop.Call())


def test_a_root_that_is_nowhere_is_refused(root: orlop.Prepared) -> None:
    root.unmount()
    with pytest.raises(orlop.FailedPrecondition, match="not mounted"):
        root.run(["id"])


def test_a_cancelled_task_ends_the_program(store_dirs: StoreDirs) -> None:
    async def main() -> None:
        async with orlop.aio.open(store_dirs.root, store_dirs.run) as store:
            await store.load(layout(store_dirs.work / "box"), name="localhost/box")
            async with store.prepare("localhost/box", store_dirs.work / "a", mount=True) as root:
                assert (await root.run(["echo", "hello"])).stdout == "hello\n"
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(root.run(["sleep", "1000"]), 0.3)

    asyncio.run(asyncio.wait_for(main(), 100))
