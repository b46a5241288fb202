"""Wrong input gets one clear line and the documented exit code, through the command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import orlop
import orlop.images.store
from conftest import StoreDirs
from support import images
from support.layers import Layer
from support.registries import Registry

pytestmark = pytest.mark.root

Run = Callable[..., "subprocess.CompletedProcess[str]"]


def refused(done: subprocess.CompletedProcess[str], code: int, *words: str) -> None:
    """One line that says what and why, perhaps one that says what to do; no traceback, no result."""
    progress = ("  resolving", "  indexing")
    lines = [line for line in done.stderr.splitlines() if not line.endswith(progress)]
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    assert lines[0].startswith("orlop: error: "), done.stderr
    assert len(lines) <= 2, done.stderr
    assert all(line.startswith("hint: ") for line in lines[1:]), done.stderr
    for word in words:
        assert word in done.stderr


@pytest.fixture
def image(run_cli: Run, workdir: Path) -> str:
    layout = images.write_layout(workdir / "layout", {"v1": images.make_image([Layer().file("f").tar()])})
    run_cli("import", layout, "--name", "localhost/there", check=True)
    return "localhost/there"


def test_an_unknown_image(run_cli: Run) -> None:
    refused(run_cli("prepare", "--pull", "never", "nothing", "/srv/x"), 3, "docker.io/library/nothing:latest")
    refused(run_cli("inspect", "nothing"), 3, "nothing")
    refused(run_cli("rmi", "nothing"), 3, "nothing")


@pytest.mark.hostile(18)
def test_a_name_that_is_none(run_cli: Run) -> None:
    refused(run_cli("pull", "UPPER/case"), 2, "lower case")
    refused(run_cli("pull", "a@sha256:../../x"), 2, "digest")


@pytest.mark.parametrize("path", ["relative", "/srv//x", "/srv/../x"])
def test_a_path_that_is_relative_or_not_clean(run_cli: Run, image: str, path: str) -> None:
    refused(run_cli("prepare", image, path), 2, "path")


def test_a_path_that_is_prepared_already(run_cli: Run, image: str, store_dirs: StoreDirs) -> None:
    run_cli("prepare", image, store_dirs.work / "a", check=True)
    refused(run_cli("prepare", image, store_dirs.work / "a"), 4, "orlop cleanup")


def test_a_path_inside_the_store(run_cli: Run, image: str, store_dirs: StoreDirs) -> None:
    refused(run_cli("prepare", image, store_dirs.root / "a"), 2, "inside the store")


def test_a_root_that_is_not_there(run_cli: Run, store_dirs: StoreDirs) -> None:
    for verb in ("cleanup", "mounts", "commit", "mount"):
        refused(run_cli(verb, store_dirs.work / "a"), 3, "nothing is prepared there")


def test_a_root_that_is_in_use(run_cli: Run, image: str, store_dirs: StoreDirs) -> None:
    run_cli("prepare", "--mount", image, store_dirs.work / "a", check=True)
    sleeper = subprocess.Popen(["sleep", "60"], cwd=store_dirs.work / "a")
    try:
        refused(run_cli("cleanup", store_dirs.work / "a"), 5, f"sleep ({sleeper.pid})")
    finally:
        sleeper.kill()
        sleeper.wait()


def test_a_commit_of_a_view(run_cli: Run, image: str, store_dirs: StoreDirs) -> None:
    run_cli("prepare", "--view", image, store_dirs.work / "a", check=True)
    done = run_cli("commit", store_dirs.work / "a")
    assert done.returncode == 5
    assert "view" in done.stderr


def test_a_command_for_an_image_that_has_none(run_cli: Run, image: str) -> None:
    done = run_cli("run", image)
    assert done.returncode == 125
    assert "command" in done.stderr


@pytest.mark.hostile(19)
def test_bytes_that_do_not_have_their_digest(run_cli: Run, registry: Registry) -> None:
    image = images.make_image([Layer().file("f", os.urandom(100)).tar()], compression="none")
    images.push(registry, "refused-rotten", "v1", image)
    layer = json.loads(image.document)["layers"][0]["digest"]
    (path,) = registry.storage.rglob(f"{layer.removeprefix('sha256:')}/data")
    data = bytearray(path.read_bytes())
    data[600] ^= 1
    path.write_bytes(bytes(data))
    done = run_cli("pull", "-q", f"{registry.host}/refused-rotten:v1")
    refused(done, 9, layer)
    assert run_cli("images", "--json").stdout.strip() == "[]"


def test_a_registry_that_is_down(run_cli: Run) -> None:
    refused(run_cli("pull", "-q", "127.0.0.1:9/any"), 6, "127.0.0.1:9")


def test_a_registry_that_wants_a_password(run_cli: Run, registry_auth: Registry) -> None:
    refused(run_cli("pull", "-q", f"{registry_auth.host}/any"), 7, registry_auth.host)


@pytest.mark.parametrize("content", [b"", b"garbage", bytes(4096)])
def test_a_file_that_is_no_archive(run_cli: Run, workdir: Path, content: bytes) -> None:
    (workdir / "file").write_bytes(content)
    refused(run_cli("import", workdir / "file"), 2, "file")


def test_a_socket_where_none_can_be(run_cli: Run, workdir: Path) -> None:
    (workdir / "file").write_text("in the way")
    done = run_cli("daemon", "--listen", f"unix://{workdir}/file/orlop.sock")
    assert done.returncode in (2, 5)
    assert "file" in done.stderr
    assert "Traceback" not in done.stderr
    assert run_cli("daemon", "--listen", f"unix:///{'x' * 200}/o.sock").returncode == 2
    assert run_cli("daemon", "--listen", "tcp://127.0.0.1:1").returncode == 2


def test_a_daemon_that_is_not_there(workdir: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "orlop", "--host", f"unix://{workdir}/none.sock", "images"],
        capture_output=True,
        text=True,
        check=False,
    )
    refused(done, 6, "orlop daemon")


def store_at(root: Path, run: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "orlop", "--root", root, "--run", run, "images"],
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.hostile(36)
@pytest.mark.parametrize("name", ["a,b", "a:b", "a b", "a\\b", 'a"b'])
def test_a_store_whose_path_a_mount_option_could_not_hold(workdir: Path, name: str) -> None:
    refused(store_at(workdir / name, workdir / "run"), 2, "choose another")
    refused(store_at(workdir / "root", workdir / name), 2, "choose another")
    assert not (workdir / name).exists()


@pytest.mark.parametrize("kind", ["tmpfs", "overlay"])
def test_a_store_on_a_file_system_that_cannot_back_erofs_has_another_driver(workdir: Path, kind: str) -> None:
    place = workdir / "place"
    for folder in ("place", "lower", "upper", "work"):
        (workdir / folder).mkdir()
    options = f"lowerdir={workdir}/lower,upperdir={workdir}/upper,workdir={workdir}/work"
    more = ["-o", options] if kind == "overlay" else []
    subprocess.run(["mount", "-t", kind, *more, kind, place], check=True)
    try:
        with orlop.open(place / "root", workdir / "run") as store:
            info = store.info()
        verdicts = {driver.name: driver.available for driver in info.drivers}
        assert not verdicts["erofs"]
        assert info.driver == ("overlay" if kind == "tmpfs" else "native")
    finally:
        subprocess.run(["umount", place], check=True)


def test_a_folder_that_is_something_else(workdir: Path) -> None:
    (workdir / "home").mkdir()
    (workdir / "home/letter.txt").write_text("dear")
    refused(store_at(workdir / "home", workdir / "run"), 5, "letter.txt")
    assert sorted(os.listdir(workdir / "home")) == ["letter.txt"]


def test_a_store_of_a_newer_orlop(run_cli: Run, store_dirs: StoreDirs) -> None:
    run_cli("images", check=True)
    path = store_dirs.root / "format.json"
    document = json.loads(path.read_text())
    path.write_text(json.dumps({**document, "version": 99}))
    refused(run_cli("images"), 5, "newer")
    path.write_text(json.dumps({**document, "incompat": ["time-travel"]}))
    refused(run_cli("images"), 5, "time-travel")


@pytest.mark.hostile(32)
def test_a_user_may_not_use_roots_store(workdir: Path) -> None:
    with orlop.open(workdir / "root", workdir / "run") as store:
        store.images()
    child = os.fork()
    if child == 0:  # everything is imported already, as nobody may not reach the interpreter's files
        os.setgid(65534)
        os.setuid(65534)
        try:
            orlop.open(workdir / "root", workdir / "run")
        except orlop.PermissionDenied:
            os._exit(0)
        except BaseException:  # noqa: BLE001 - told apart by the exit code
            os._exit(2)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
