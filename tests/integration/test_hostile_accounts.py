"""Images that aim at whoever runs them: account files, users, volumes, helper programs (HOSTILE.md's rows 27, 28,
29, 31), through ``orlop run`` with a real runtime.

What each spelling of a user means is `tests/unit/test_bundle`'s; here the image is pulled into a store, mounted
and run.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import orlop
from conftest import StoreDirs
from orlop.images.api import ExtraMount
from orlop.images.running.accounts import resolve_user
from support import disks
from support.breakouts import DRIVERS, Canary, Name, Trial, trial_store
from support.layers import Layer

pytestmark = pytest.mark.root

Run = Callable[..., "subprocess.CompletedProcess[str]"]
SPY = b"spy:x:31337:31337::/:/bin/sh\n"
PASSWD = b"root:x:0:0::/root:/bin/sh\nworker:x:1234:99::/home/worker:/bin/sh\n"


@pytest.fixture
def canary(workdir: Path) -> Canary:
    made = Canary(workdir / "canary")
    (made.top / "passwd").write_bytes(SPY)
    made.remember()
    return made


def box() -> Layer:
    """A layer of busybox."""
    layer = Layer().folder("bin").file("bin/busybox", Path("/bin/busybox").read_bytes(), mode=0o755)
    for applet in ("sh", "id", "cat", "touch", "ls"):
        layer.symlink(f"bin/{applet}", "busybox")
    layer.folder("etc").file("etc/passwd", PASSWD).file("etc/group", b"root:x:0:\nextra:x:77:worker\n")
    return layer.folder("tmp", mode=0o1777)


Make = Callable[..., str]


@pytest.fixture
def trial(store_dirs: StoreDirs, canary: Canary) -> Iterator[Trial]:
    with trial_store(store_dirs, canary) as made:
        yield made


@pytest.fixture
def make(trial: Trial) -> Make:
    """Import an image of the box and layers above it; its name."""

    def image(*layers: Layer, user: str = "") -> str:
        config = {"config": {"User": user, "Env": ["PATH=/bin"], "Cmd": ["id", "-u"]}}
        return trial.load([box().tar(), *(layer.tar() for layer in layers)], config=config)

    return image


@contextlib.contextmanager
def mounted(trial: Trial, image: str, driver: Name, **options: Any) -> Iterator[Path]:
    place = trial.folder / "root"
    trial.store.prepare(image, place, driver=driver, mount=True, **options)
    try:
        yield place
    finally:
        trial.store.get(place).cleanup()


# ------------------------------------------------------------------ 28

ACCOUNTS: dict[str, tuple[Callable[[Canary], Layer], str]] = {
    "a symlink to a file of the host": (
        lambda canary: Layer().symlink("etc/passwd", canary.fill("{C}/passwd")), "has no user 'spy'"
    ),
    "a symlink out of the root": (
        lambda canary: Layer().symlink("etc/passwd", canary.fill("{U}/passwd")), "has no user 'spy'"
    ),
    "in a folder that is a symlink out of the root": (
        lambda canary: Layer().whiteout("etc").symlink("etc", canary.fill("{C}")), "has no user 'spy'"
    ),
    "by way of a process's root": (
        lambda canary: Layer().symlink("etc/passwd", canary.fill("/proc/self/root{C}/passwd")), "has no user 'spy'"
    ),
    "a FIFO": (lambda canary: Layer().fifo("etc/passwd"), "not a regular file"),
    "a device that never ends": (lambda canary: Layer().device("etc/passwd", "char", 1, 5), "not a regular file"),
    "a folder": (lambda canary: Layer().folder("etc/passwd"), "not a regular file"),
    "a symlink to itself": (lambda canary: Layer().symlink("etc/passwd", "passwd"), "cannot be read"),
    "1 GiB of nothing": (
        lambda canary: Layer().sparse("etc/passwd", 1 << 30, [(0, SPY.ljust(512, b"\n"))], how="gnu-1.0"), "larger than"
    ),
    "a million lines": (
        lambda canary: Layer().file("etc/passwd", b"u:x:1:1::/:/bin/sh\n" * 1_000_000 + SPY), "larger than"
    ),
}  # fmt: skip


@pytest.mark.timeout(120)
@pytest.mark.hostile(28)
def test_account_files_that_are_none_are_refused_at_once(trial: Trial, make: Make, canary: Canary) -> None:
    for number, (case, (layer, words)) in enumerate(ACCOUNTS.items()):
        with mounted(trial, make(layer(canary)), DRIVERS[number % 3]) as place:
            root = os.open(place, os.O_PATH)
            try:
                with pytest.raises(orlop.InvalidArgument) as caught:
                    resolve_user("spy", root_fd=root)
            finally:
                os.close(root)
        assert words in str(caught.value), case
    trial.leaves_nothing()


@pytest.mark.timeout(120)
@pytest.mark.hostile(28)
@pytest.mark.parametrize("file", ["passwd", "group"])
def test_nor_does_a_run_wait_for_a_fifo(run_cli: Run, make: Make, file: str) -> None:
    done = run_cli("run", "--user", "worker:extra", make(Layer().fifo(f"etc/{file}")), timeout=100)
    assert (done.returncode, done.stdout) == (125, "")
    assert f"/etc/{file}" in done.stderr
    assert "not a regular file" in done.stderr


# ------------------------------------------------------------------ 29

NOBODY = (
    "4294967295", "4294967296", "18446744073709551616", "-1", "0x0", " 0", "+0", "1e0", "worker\n", "huge", "0:-1",
    "\N{ARABIC-INDIC DIGIT ZERO}", "worker:4294967296",
)  # fmt: skip
SOMEBODY = {
    "": (0, 0), "00": (0, 0), "worker": (1234, 99), "2147483648": (2**31, 0), "last": (2**32 - 2, 7),
    "4294967294:4294967294": (2**32 - 2, 2**32 - 2),
}  # fmt: skip


@pytest.mark.hostile(29)
def test_a_user_that_is_none_is_nobody_and_never_root(trial: Trial, make: Make) -> None:
    lines = PASSWD + b"huge:x:4294967296:0::/:/bin/sh\nlast:x:4294967294:7::/:/\n"
    image = make(Layer().file("etc/passwd", lines))
    for driver in DRIVERS:
        with mounted(trial, image, driver) as place:
            root = os.open(place, os.O_PATH)
            try:
                for user in NOBODY:
                    with pytest.raises(orlop.InvalidArgument):
                        resolve_user(user, root_fd=root)
                found = {user: resolve_user(user, root_fd=root) for user in SOMEBODY}
            finally:
                os.close(root)
        assert {user: (is_.uid, is_.gid) for user, is_ in found.items()} == SOMEBODY
    trial.leaves_nothing()


@pytest.mark.hostile(29)
def test_an_image_whose_user_is_none_does_not_run_and_a_large_one_is_not_root(
    run_cli: Run, make: Make
) -> None:
    done = run_cli("run", make(user="4294967296"))
    assert (done.returncode, done.stdout) == (125, "")
    assert "larger than 4294967294" in done.stderr
    done = run_cli("run", make(user="2147483648"))
    assert (done.returncode, done.stdout) in {(0, "2147483648\n"), (125, "")}, done.stderr  # crun refuses it


# ------------------------------------------------------------------ 27


@pytest.mark.hostile(27)
@pytest.mark.parametrize("runtime", [(), ("--runtime", "chroot")])
def test_volumes_stay_in_the_root_whatever_symlinks_lie_there(
    run_cli: Run, make: Make, canary: Canary, workdir: Path, runtime: tuple[str, ...]
) -> None:
    (workdir / "shared").mkdir()
    (workdir / "shared/mark").write_text("mounted\n")
    layer = Layer().symlink("abs", canary.fill("{C}/folder")).symlink("rel", canary.fill("{U}/other"))
    layer.symlink("file", canary.fill("{C}/file")).folder(canary.fill("{c}/folder"))
    layer.folder(canary.fill("{c}/other")).file(canary.fill("{c}/file"))
    shared = f"{workdir}/shared"
    volumes = ("-v", f"{shared}:/abs", "-v", f"{shared}:/rel/deeper", "-v", f"{shared}/mark:/file")
    shown = ("cat", "/abs/mark", "/rel/deeper/mark", "/file", canary.fill("{C}/folder/mark"))
    done = run_cli("run", *runtime, *volumes, make(layer), *shown)
    assert (done.returncode, done.stdout) == (0, "mounted\n" * 4), done.stderr
    assert canary.changes() == []


@pytest.mark.hostile(27)
def test_prepared_mounts_do_too(trial: Trial, make: Make, canary: Canary, workdir: Path) -> None:
    (workdir / "shared").mkdir()
    (workdir / "shared/mark").write_text("mounted\n")
    layer = Layer().symlink("abs", canary.fill("{C}/folder")).symlink("rel", canary.fill("{U}/other"))
    image = make(layer.symlink("loop", "loop").symlink("file", canary.fill("{C}/file")))
    shared = str(workdir / "shared")
    extra = [
        ExtraMount(type="bind", target="/abs", source=shared),
        ExtraMount(type="tmpfs", target="/rel/new"),
        ExtraMount(type="bind", target="/file", source=f"{shared}/mark"),
    ]
    for driver in DRIVERS:
        with mounted(trial, image, driver, extra=extra) as place:
            assert (place / canary.fill("{c}/folder/mark")).read_text() == "mounted\n"
            assert (place / canary.fill("{c}/file")).read_text() == "mounted\n"
            assert os.path.ismount(place / canary.fill("{c}/other/new"))
            assert canary.changes() == []
        nowhere = [ExtraMount(type="bind", target="/loop/x", source=shared)]
        with pytest.raises(orlop.InvalidArgument, match="too many symlinks"):
            trial.store.prepare(image, trial.folder / "root", driver=driver, extra=nowhere)
    trial.leaves_nothing()


# ------------------------------------------------------------------ 31

HELPERS = (
    "crun", "runc", "bwrap", "chroot", "mount", "umount", "mkfs.ext4", "newuidmap", "newgidmap", "fusermount3",
    "nsenter", "unshare", "sh", "python3", "docker-credential-evil",
)  # fmt: skip


def wait_until_unused(place: Path) -> None:
    """A command that fails at once may leave a probe of its own for a moment, which stands where it stood."""
    deadline = time.monotonic() + 60
    while (left := disks.users(place)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not left


@pytest.mark.hostile(31)
def test_no_helper_is_run_out_of_an_image(
    trial: Trial, make: Make, workdir: Path, store_dirs: StoreDirs
) -> None:
    """The user stands in the image's root, and PATH has its folders, relative."""
    mark = workdir / "run-on-the-host"
    layer = Layer()
    for folder in ("", "bin/", "usr/bin/"):
        for name in HELPERS:
            if (folder, name) != ("bin/", "sh"):  # that one runs inside
                script = f"#!/bin/sh\necho {folder}{name} >> {mark}\nexit 1\n".encode()
                layer.file(folder + name, script, mode=0o755)
    auth = workdir / "auth.json"
    auth.write_text('{"credHelpers": {"127.0.0.1:9": "evil"}}')
    image, quota = make(layer), trial.folder / "quota"
    with mounted(trial, image, "erofs") as place:
        for args in (
            ("run", image, "id", "-u"),
            ("prepare", "--quota", "16M", "--driver", "erofs", image, quota),
            ("pull", "127.0.0.1:9/none"),
        ):
            done = subprocess.run(
                [
                    sys.executable,
                    "-P",
                    "-m",
                    "orlop",
                    "--root",
                    store_dirs.root,
                    "--run",
                    store_dirs.run,
                    *args,
                ],
                cwd=place,
                env={
                    **os.environ,
                    "PATH": f".::bin:usr/bin:{os.environ['PATH']}",
                    "REGISTRY_AUTH_FILE": str(auth),
                },
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=100,
                check=False,
            )
            assert not mark.exists(), f"{args}: {mark.read_text()}"
            assert (done.returncode == 0) == (args[0] != "pull"), f"{args}: {done.stderr}"
        trial.store.get(quota).cleanup()
        wait_until_unused(place)
