"""Checks of how a root behaves under the system calls of what runs in it."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from orlop.testing.conformance import expect
from orlop.testing.conformance.bench import Bench, bind_socket
from orlop.testing.conformance.model import apply
from orlop.testing.conformance.samples import FILE, house, plain
from orlop.testing.layers import Layer

__all__ = [
    "a_working_folder_stays_one",
    "inodes_are_stable",
    "looking_while_others_look_does_not_block",
    "open_files_keep_what_they_are",
    "sockets_and_pipes_connect",
    "the_whole_root_is_one_file_system",
    "what_a_root_holds_can_be_run",
]

_PATIENCE = 60.0  # seconds after which something hangs
# Stands in a folder, changes what is beside it, and tells where it is.
_STANDING = """
import os, sys
os.chdir(sys.argv[1])
open("../b", "w").write("changed")
os.mkdir("../beside")
before = os.getcwd()
open("new", "w").write("new")
os.chmod(".", 0o711)
print(before == os.getcwd() == sys.argv[1], sorted(os.listdir()), sorted(os.listdir("..")))
"""


def inodes_are_stable(bench: Bench) -> None:
    """Folders and files keep their inode number when they, or what is in them, is written first."""
    with bench.root(bench.image(plain())) as root:
        paths = [root.top / name for name in ("", "d", "d/s", "d/s/x", "d/a", "d/l", "e/f")]
        before = {path: _identity(path) for path in paths}
        (root.top / "d/s/new").write_bytes(b"in a folder")
        with (root.top / "d/s/x").open("ab") as file:
            file.write(b"more")
        (root.top / "d/a").chmod(0o600)
        os.utime(root.top / "d/l", ns=(0, 0), follow_symlinks=False)
        (root.top / "d").chmod(0o700)
        os.truncate(root.top / "e/f", 1)
        for path in paths:
            expect.equal(_identity(path), before[path], f"device and inode of {path.relative_to(root.top)}")
        numbers = [_identity(root.top / os.fsdecode(path)) for path in root.tree()]
        expect.equal(len(set(numbers)), len(numbers), "the number of inodes, of as many files")


def _identity(path: Path) -> tuple[int, int]:
    about = path.lstat()
    return about.st_dev, about.st_ino


def the_whole_root_is_one_file_system(bench: Bench) -> None:
    """Everything in a root, lower or written, is on one device, and hard links between all folders work."""
    with bench.root(bench.image(plain())) as root:
        (root.top / "new").mkdir()
        os.link(root.top / "d/b", root.top / "new/b")
        os.link(root.top / "new/b", root.top / "e/b")
        devices = {_identity(root.top / os.fsdecode(path))[0] for path in root.tree()}
        expect.equal(len(devices), 1, "the number of devices")
        expect.equal((root.top / "d/b").stat().st_nlink, 3, "the links of a file with three names")


def what_a_root_holds_can_be_run(bench: Bench) -> None:
    """A program of the image runs from its root and from its view, and so does one that was written."""
    script = b"#!/bin/sh\necho ran\n"
    image = bench.image(Layer().folder("./").file("tool", script, mode=0o755).file("text", script))
    for view in (False, True):
        with bench.root(image, view=view) as root:
            tools = [root.top / "tool"]
            if not view:
                tools.append(root.top / "written")
                tools[1].write_bytes(script)
                tools[1].chmod(0o755)
            for tool in tools:
                done = subprocess.run([tool], capture_output=True, timeout=_PATIENCE, check=False)
                expect.equal((done.returncode, done.stdout), (0, b"ran\n"), f"how {tool.name} ended")
            with expect.refused(PermissionError, "running a file that is no program"):
                subprocess.run([root.top / "text"], capture_output=True, check=False)


def open_files_keep_what_they_are(bench: Bench) -> None:
    """A file that is open, or mapped, reads on when its name is deleted or given to another."""
    with bench.root(bench.image(plain())) as root:
        top = root.top
        with (
            (top / "d/a").open("rb") as removed,
            (top / "d/b").open("rb") as replaced,
            (top / "d/s/x").open("r+b") as written,
            mmap.mmap(removed.fileno(), 0, prot=mmap.PROT_READ) as mapped,
        ):
            (top / "d/a").unlink()
            (top / "new").write_bytes(b"another")
            (top / "new").replace(top / "d/b")
            (top / "d/s/x").rename(top / "x")
            written.write(b"WRITTEN")
            written.flush()
            os.fsync(written.fileno())
            expect.equal(removed.read(), FILE, "a deleted file that is open")
            expect.equal(mapped[:], FILE, "a deleted file that is mapped")
            expect.equal(replaced.read(), b"bravo", "a replaced file that is open")
            expect.equal((top / "x").read_bytes()[:8], b"WRITTENx", "what was written to a renamed file")
            expect.equal((top / "d/b").read_bytes(), b"another", "what took the name")


def a_working_folder_stays_one(bench: Bench) -> None:
    """Who stands in a lower folder knows where (getcwd), also when it or a sibling was changed."""
    with bench.root(bench.image(plain())) as root:
        command = [sys.executable, "-I", "-S", "-c", _STANDING, os.fspath(root.top / "d/s")]
        done = subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE, check=False)
        beside = ["a", "b", "beside", "l", "s"]
        expect.equal(
            done.stdout.strip(), f"True {['new', 't', 'x']} {beside}", f"what it told ({done.stderr})"
        )


def sockets_and_pipes_connect(bench: Bench) -> None:
    """A FIFO of the image carries bytes, and so does a hard link to it; a socket can be bound twice over."""
    with bench.root(bench.image(Layer().folder("./").fifo("pipe", mode=0o600))) as root:
        os.link(root.top / "pipe", root.top / "linked")
        if not bench.joins:
            bench.leave_out("that links to lower files are one inode before a commit")
        ends = ("linked" if bench.joins else "pipe", "pipe")
        reader = os.open(root.top / ends[0], os.O_RDONLY | os.O_NONBLOCK)
        try:
            writer = os.open(root.top / ends[1], os.O_WRONLY | os.O_NONBLOCK)
            try:
                os.write(writer, b"through")
                expect.equal(os.read(reader, 100), b"through", "what came through a FIFO")
            finally:
                os.close(writer)
        finally:
            os.close(reader)
        for _ in range(2):
            bind_socket(root.top, "socket")
            (root.top / "socket").unlink()


def looking_while_others_look_does_not_block(bench: Bench) -> None:
    """Walks with a stat of each file, lists of roots and looks at one from within such a list end."""
    image, failures = bench.image(house()), list[BaseException]()
    expected = apply([house()])

    def walk(top: Path) -> None:
        for folder, folders, files in os.walk(top):
            for name in (*folders, *files):
                path = os.path.join(folder, name)
                os.lstat(path)
                os.listxattr(path, follow_symlinks=False)
        for _, folders, files, fd in os.fwalk(top):
            for name in (*folders, *files):
                os.stat(name, dir_fd=fd, follow_symlinks=False)

    def look(_: Path) -> None:
        for info in bench.store.prepared():
            for inner in bench.store.prepared():
                bench.store.get(inner.path)
            bench.store.inspect(info.image)

    def until_done(act: Callable[[Path], None], top: Path) -> None:
        try:
            for _ in range(3):
                act(top)
        except BaseException as exc:  # noqa: BLE001 - told by the thread that waits
            failures.append(exc)

    with bench.root(image) as one, bench.root(image, view=True) as two:
        work = [(walk, one.top), (walk, one.top), (walk, two.top), (look, one.top), (look, two.top)]
        threads = [threading.Thread(target=until_done, args=each, daemon=True) for each in work]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(_PATIENCE)
        expect.true(not any(thread.is_alive() for thread in threads), "all threads come to an end")
        expect.equal(failures, [], "what they raised")
        bench.same(one.tree(), expected, "the root")
