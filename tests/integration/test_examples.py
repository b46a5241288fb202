"""The programs of examples/, each run as its docstring says, with an image of a registry."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import orlop
from conftest import StoreDirs
from support import images, users
from support.layers import Layer
from support.registries import Registry

pytestmark = pytest.mark.root

TREE = Path(__file__).resolve().parents[2]
APPLETS = ("sh", "cat", "echo", "grep", "ls", "mkdir", "rm", "sleep", "wc")
DPKG = b"Package: one\nStatus: install ok installed\nVersion: 1.2-3\n\nPackage: gone\nStatus: deinstall ok config-files\n\n"


def image() -> images.Image:
    """Busybox in a tree as images have it, with packages of each kind and a setuid program."""
    base = Layer()
    for folder in (
        "bin",
        "dev",
        "proc",
        "etc",
        "usr",
        "usr/local",
        "var",
        "var/lib",
        "var/lib/dpkg",
        "lib",
        "lib/apk",
        "lib/apk/db",
    ):
        base.folder(folder)
    base.folder("tmp", mode=0o1777).file("bin/busybox", Path("/bin/busybox").read_bytes(), mode=0o755)
    for name in APPLETS:
        base.symlink(f"bin/{name}", "/bin/busybox")
    base.file("usr/data", bytes(8 << 20)).file("var/lib/dpkg/status", DPKG).file(
        "lib/apk/db/installed", b"P:two\nV:2.0-r1\n\n"
    )
    top = Layer().folder("usr/lib").folder("usr/lib/three-3.dist-info")
    top.file(
        "usr/lib/three-3.dist-info/METADATA", b"Metadata-Version: 2.1\nName: three\nVersion: 3\n\nText.\n"
    )
    top.file("bin/su", b"#!", mode=0o4755)
    return images.make_image([base.tar(), top.tar()], config={"config": {"Env": ["PATH=/bin"]}})


@pytest.fixture(scope="module")
def name(registry: Registry) -> str:
    images.push(registry, "examples", "v1", image())
    return f"{registry.host}/examples:v1"


class Examples:
    """Runs them on the test's store."""

    def __init__(self, dirs: StoreDirs, registry: Registry) -> None:
        self.dirs, self.registry = dirs, registry

    def run(self, example: str, *words: str | Path, code: int = 0) -> str:
        where = ("--store", self.dirs.root, "--insecure-registry", self.registry.host)
        command = [sys.executable, TREE / "examples" / example, *words, *where]
        temporary = self.dirs.work / "tmp"  # on the tests' own disk, from where an unmount reaches all
        temporary.mkdir(exist_ok=True)
        env = {**os.environ, "TMPDIR": os.fspath(temporary)}
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=200, check=False, cwd=TREE, env=env
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout


@pytest.fixture
def examples(store_dirs: StoreDirs, registry: Registry) -> Examples:
    return Examples(store_dirs, registry)


def candidates(folder: Path) -> Path:
    """Of the example's own, those that end by themselves: no test depends on how fast they are."""
    folder.mkdir()
    (folder / "lazy.sh").write_text("echo 42 > /task/answer")
    right = "sum=0; while read n; do sum=$((sum + n)); done < /task/numbers; echo $sum > /task/answer"
    (folder / "right.sh").write_text(right)
    (folder / "vandal.sh").write_text("rm -rf /task/numbers; exit 3")
    return folder


def test_the_best_of_some_attempts_is_kept(examples: Examples, name: str) -> None:
    folder = candidates(examples.dirs.work / "candidates")
    said = examples.run("agent_sandbox.py", name, "--candidates", folder, "--seconds", "200").splitlines()
    assert said[0].startswith("3 forks in ")
    scores = {line.split()[1]: (line.split()[0], " ".join(line.split()[2:4])) for line in said[1:-1]}
    assert scores == {"right": ("100", "exit 0"), "lazy": ("10", "exit 0"), "vandal": ("0", "exit 3")}
    assert said[-1] == "kept as localhost/best:1"
    # And it is an image as others are
    with orlop.open(examples.dirs.root, examples.dirs.run) as store:
        assert b"".join(store.cat("localhost/best:1", "/task/answer")) == b"29\n"
        assert store.prepared() == []


def test_the_scanner_tells_packages_and_privileged_programs(examples: Examples, name: str) -> None:
    found = json.loads(examples.run("scan.py", name))
    assert [(one["type"], one["name"], one["version"]) for one in found["packages"]] == [
        ("apk", "two", "2.0-r1"), ("deb", "one", "1.2-3"), ("python", "three", "3"),
    ]  # fmt: skip
    assert found["privileged"] == [
        {"path": "/bin/su", "mode": "-rwsr-xr-x", "owner": "0:0", "capabilities": False, "layer": 2}
    ]


def test_a_pipeline_runs_once_and_its_failure_is_ours(examples: Examples, name: str) -> None:
    work = examples.dirs.work
    (work / "sources").mkdir()
    (work / "sources/code").write_text("1\n")
    words = (TREE / "examples/ci.toml", "--image", name, "--sources", work / "sources", "--out", work / "out")

    def ends() -> list[str]:
        return [" ".join(line.split()[:3]) for line in examples.run("ci_runner.py", *words).splitlines()]

    assert ends() == ["tools exit 0", "build exit 0", "test exit 0"]
    assert (work / "out/dist/result.txt").read_text() == "hello\n1.0\ncode\ndist\n"
    assert (work / "out/02-build.log").read_text() == ""
    (work / "sources/code").write_text("2\n")
    assert ends() == ["tools cached", "build exit 0", "test exit 0"]
    broken = work / "broken.toml"
    broken.write_text(words[0].read_text() + '[[step]]\nname = "bad"\nrun = "echo oh; exit 9"\n')
    said = examples.run("ci_runner.py", broken, *words[1:], code=9).splitlines()
    assert [" ".join(line.split()[:3]) for line in said] == [
        "tools cached", "build cached", "test cached", "bad exit 9",
    ]  # fmt: skip
    assert (work / "out/04-bad.log").read_text() == "oh\n"


def test_a_farm_is_hardly_larger_than_its_base(examples: Examples, name: str) -> None:
    said = examples.run("swe_farm.py", name, "--instances", "8", "--samples", "2").splitlines()
    assert said[0] == f"8 instances of {name}"
    assert len(said) == 6
    times = int(said[3].split()[-3])
    assert times >= 4  # one of a hundred would be more


def test_they_need_no_root(store_dirs: StoreDirs) -> None:
    user = users.make(store_dirs.work / "user", "subids")
    folder = candidates(user.folder / "candidates")
    layout = images.write_layout(user.folder / "box", {"v1": image()})
    store = user.home / "store"
    user.orlop(
        "--root", store, "--run", f"{store}.run", "import", layout, "--name", "localhost/box", check=True
    )
    for example, words in (
        ("scan.py", ()),
        ("agent_sandbox.py", ("--seconds", "200", "--candidates", folder)),
    ):
        done = user.run(
            sys.executable, TREE / "examples" / example, "localhost/box", "--store", store, *words, check=True
        )
        assert ("three" in done.stdout) or ("kept as" in done.stdout)
