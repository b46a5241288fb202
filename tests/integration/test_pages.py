"""docs/runtimes.md and docs/podman.md say what is so: their commands are run, and print what stands there."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import orlop
from conftest import StoreDirs
from support import images
from support.layers import Layer
from support.pages import Step, steps_of
from support.podmans import Podman

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]

DOCS = Path(__file__).parent.parent.parent / "docs"
APPLETS = ("sh", "echo", "id", "ls", "touch")
# crun refuses cgroups v1 and v2 side by side; an empty v2 tree makes it one with v1 alone.
HYBRID = Path("/sys/fs/cgroup/unified/cgroup.controllers")
HIDE = "mount -t tmpfs none /sys/fs/cgroup/unified"


@pytest.fixture
def podman(workdir: Path) -> Iterator[Podman]:
    made = Podman(workdir / "podman")
    yield made
    made.close()


class Reader:
    """Somebody who types what the page says, in a machine whose /srv is a folder of the test's."""

    def __init__(self, dirs: StoreDirs, podman: Podman, workdir: Path) -> None:
        self._srv = f"{dirs.work}/"
        self._folder = workdir
        (workdir / "bin").mkdir()
        script = workdir / "bin/orlop"
        script.write_text(f'#!/bin/sh\nexec {sys.executable} -m orlop "$@"\n')
        script.chmod(0o755)
        self._environment = {
            **podman.environment,
            "PATH": f"{workdir}/bin:{os.environ['PATH']}:/usr/sbin:/sbin",
            "ORLOP_ROOT": str(dirs.root),
            "ORLOP_RUN": str(dirs.run),
            "ORLOP_PROGRESS": "none",
            "PYTHONPATH": os.pathsep.join(sys.path),
        }

    def type(self, command: str) -> tuple[int, str, str]:
        """Run a command; its exit code, and what it printed and said."""
        text = command.replace("/srv/", self._srv)
        if command.startswith("crun ") and HYBRID.is_file() and HYBRID.read_text().strip():
            text = f"unshare --mount --propagation slave sh -c '{HIDE}; exec \"$@\"' sh {text}"
        with open(self._folder / "said", "w+") as said, open(self._folder / "printed", "w+") as printed:
            # Files, not pipes: what a command leaves running would keep those open.
            done = subprocess.run(
                ["bash", "-c", text],
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=printed,
                stderr=said,
                timeout=120,
                check=False,
            )
            said.seek(0)
            printed.seek(0)
            return done.returncode, printed.read().replace(self._srv, "/srv/"), said.read()

    def follow(self, steps: list[Step]) -> None:
        """All commands of a page, each with what it is said to print."""
        assert len(steps) > 5
        for step in steps:
            code, printed, said = self.type(step.command)
            where = f"line {step.line}: {step.command}"
            assert code == 0, f"{where}: {said}"
            assert printed == step.output, where


@pytest.fixture
def reader(store_dirs: StoreDirs, podman: Podman, workdir: Path) -> Iterator[Reader]:
    layer = (
        Layer()
        .folder("bin")
        .file("bin/busybox", Path("/bin/busybox").read_bytes(), mode=0o755)
        .folder("etc")
        .file("etc/passwd", b"root:x:0:0::/root:/bin/sh\n")
        .file("etc/os-release", b"ID=alpine\n")
        .folder("tmp", mode=0o1777)
    )
    for applet in APPLETS:
        layer.symlink(f"bin/{applet}", "busybox")
    for name in ("usr", "root", "proc", "dev", "sys", "run", "var"):
        layer.folder(name)
    config = {"config": {"Cmd": ["/bin/sh"], "Env": ["PATH=/bin"]}}
    layout = images.write_layout(workdir / "box", {"v1": images.make_image([layer.tar()], config=config)})
    with orlop.open(store_dirs.root, store_dirs.run) as store:  # as it is, with no driver of the test's
        store.load(layout, name="alpine")
        store.tag("alpine", "debian")
    yield Reader(store_dirs, podman, workdir)
    with orlop.open(store_dirs.root, store_dirs.run) as store:
        for root in store.prepared():
            store.get(root.path).unmount().cleanup()
        for share in store.shares():
            store.drop_share(share.folder)


@pytest.mark.parametrize("page", ["runtimes.md", "podman.md"])
def test_the_commands_of_the_page_print_what_it_says(reader: Reader, page: str) -> None:
    reader.follow(steps_of(DOCS / page))
