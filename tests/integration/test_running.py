"""`Prepared.run`: programs of a root.  Without root: test_pytest_plugin.py."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

import orlop
import orlop.aio
from conftest import StoreDirs
from support import images
from support.layers import Layer

pytestmark = pytest.mark.root

# A loader outside that had the preloaded one would say that there is none; busybox has no loader
VARIABLES = ["PATH=/nowhere:/bin", "FROM=image", "LD_PRELOAD=/none.so", "=odd", "odd"]
ENV = {"config": {"Env": VARIABLES, "WorkingDir": "/srv"}}


def layout(folder: Path) -> Path:
    """An image with busybox."""
    layer = Layer().folder("bin").folder("srv").folder("tmp", mode=0o1777)
    layer.file("bin/busybox", Path("/bin/busybox").read_bytes(), mode=0o755).file("bin/data", b"x")
    for name in ("sh", "cat", "echo", "id", "setsid", "sleep", "env", "ls"):
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
    with pytest.raises(orlop.NotFound, match="/no/folder"):
        root.run(["sh"], cwd="/no/folder", isolate=isolate)
    with pytest.raises(orlop.FailedPrecondition, match="Permission denied"):
        root.run(["/bin/data"], isolate=isolate)
    for args, env in (([], {}), (["id", "\0"], {}), (["id"], {"A": "\0--bind"}), (["id"], {"A=B": ""})):
        with pytest.raises(orlop.InvalidArgument):
            root.run(args, env=env, isolate=isolate)


@pytest.mark.parametrize("isolate", [True, False])
def test_what_is_given_and_taken_is_the_programs_alone_and_of_any_length(
    root: orlop.Prepared, isolate: bool
) -> None:
    ran = root.run(["sh", "-c", "env; ls /proc/self/fd"], isolate=isolate, net="host")
    assert "FROM=image\n" in ran.stdout
    assert "LD_PRELOAD=/none.so\n" in ran.stdout
    assert "ld.so" not in ran.stderr
    if isolate:
        assert ran.stdout.endswith("\n0\n1\n2\n3\n")  # 3 is ls's own
    text = "x" * 1_000_000
    assert root.run(["cat"], input=text, isolate=isolate).stdout == text
    assert root.run(["sh", "-c", "exec <&-; echo done"], input=text, isolate=isolate).stdout == "done\n"
    with pytest.raises(orlop.ResourceExhausted, match="64 MiB"):
        root.run(["cat", "/dev/zero"], isolate=True)


@pytest.mark.parametrize("isolate", [True, False])
def test_the_callers_own_variables_stay_outside(
    root: orlop.Prepared, isolate: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("A_TOKEN", "secret")
    assert "secret" not in root.run(["env"], isolate=isolate).stdout


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


def running_with(token: str) -> list[bytes]:
    """The processes that have a word among their arguments."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            found += [words for words in (file.read_bytes(),) if token.encode() in words]
    return found


@pytest.mark.parametrize("isolate", [True, False])
def test_a_call_that_ends_ends_the_program(root: orlop.Prepared, isolate: bool) -> None:
    token = uuid.uuid4().hex
    script = "setsid sh -c 'sleep 1000; :' $0 & sleep 1000; :" if isolate else "sleep 1000; :"
    deadline = orlop.Call(deadline=time.monotonic() + 0.5)
    with pytest.raises(orlop.DeadlineExceeded):
        root.run(["sh", "-c", script, token], isolate=isolate, call=deadline)
    assert not running_with(token)
    root.cleanup()  # which would say who uses it
    root._verbs.prepare_root("localhost/box", root.path, call=orlop.Call())


# In a mount namespace of its own, so that no other test's copies the mount, from which no unmount reaches others, as
# all are in most containers
APART = """
import subprocess, sys
from pathlib import Path
import orlop

root, run, place = sys.argv[1:]
Path(place).mkdir()
subprocess.run(["mount", "--bind", place, place], check=True)
subprocess.run(["mount", "--make-private", place], check=True)
with orlop.open(root, run) as store:
    for way in ("bwrap", "chroot"):
        words = ["run", "-q", "-i", "--runtime", way, "localhost/box", "sh", "-c", "echo up; cat"]
        command = [sys.executable, "-m", "orlop", "--root", root, "--run", run, *words]
        with store.prepare("localhost/box", f"{place}/a", mount=True) as another:
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            try:
                assert process.stdout.readline() == b"up\\n"
                another.cleanup()
                assert process.poll() is None
                store.prepare("localhost/box", f"{place}/a")
                process.communicate(b"", timeout=100)
                assert process.returncode == 0
            finally:
                process.kill()
                process.wait()
"""


def test_what_runs_keeps_no_other_root_in_use(store: orlop.Store, store_dirs: StoreDirs) -> None:
    store.load(layout(store_dirs.work / "box"), name="localhost/box")
    words = (APART, store_dirs.root, store_dirs.run, store_dirs.work / "apart")
    command = ["unshare", "--mount", "--propagation", "slave", sys.executable, "-c", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=250, check=False)
    assert done.returncode == 0, done.stderr


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
