"""What Prepare and Cleanup cost their caller: one transaction, whatever else there is to do."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import orlop
from conftest import StoreDirs
from orlop.config import Driver
from orlop.images.core import Core
from orlop.images.store import LocalStore
from orlop.linux import mount, mountinfo
from orlop.linux.flock import FileLock
from orlop.linux.sync import Sync
from orlop.observe import Call, watch_points
from support import images
from support.layers import Layer

pytestmark = pytest.mark.root


@pytest.fixture
def load(store: orlop.Store, workdir: Path) -> Callable[[str, bytes], str]:
    """Put an image of one file into the store, under a name; also over one that has it."""

    def put(name: str, data: bytes) -> str:
        image = images.make_image([Layer().file("file", data).tar()])
        layout = images.write_layout(workdir / f"layout-{data.decode()}", {"latest": image})
        return store.load(layout, name=f"localhost/{name}").pop().name

    return put


@pytest.fixture
def core(store: orlop.Store) -> Core:
    assert isinstance(store.verbs, LocalStore)
    return store.verbs._core


class _Counting(Sync):
    """Counts what each thread syncs."""

    def __init__(self) -> None:
        super().__init__(True)
        self.seen: Counter[int] = Counter()

    def file(self, fd: int) -> None:
        self.seen[threading.get_ident()] += 1
        super().file(fd)

    def folder(self, folder: Path | str | int) -> None:
        self.seen[threading.get_ident()] += 1
        super().folder(folder)  # type: ignore[arg-type]  # a path may be text


@contextmanager
def counted(core: Core) -> Iterator[Counter[str]]:
    """Transactions, their statements, fsyncs and reads of this thread in a ``with`` block."""
    here, found, sync = threading.get_ident(), Counter[str](), _Counting()

    def note(point: str) -> None:
        if threading.get_ident() == here:
            found[point] += 1

    read = core.db.read

    def reading(body: Callable[..., object]) -> object:
        if threading.get_ident() == here:
            found["reads"] += 1
        return read(body)

    before, core.sync = core.sync, sync

    ran: list[str] = []

    def say(text: str) -> None:
        if threading.get_ident() == here and text not in ran[-1:]:  # what refers to a row says it again
            ran.append(text)

    writing = core.db._writing
    assert writing is not None
    writing.set_trace_callback(say)
    core.db.read = reading  # type: ignore[method-assign,assignment]  # it counts, and calls the other
    try:
        with watch_points(note):
            yield found
    finally:
        core.sync = before
        writing.set_trace_callback(None)
        del core.db.read
        found["fsyncs"], found["statements"] = sync.seen[here], len(ran)


def pooled(core: Core) -> None:
    """Return when no folder is being made beforehand."""
    for thread in threading.enumerate():
        if thread.name == "orlop-uppers":
            thread.join()


@pytest.mark.parametrize("driver", ["erofs", "overlay"])
def test_prepare_and_cleanup_cost_their_caller_one_transaction_each(
    store: orlop.Store, core: Core, load: Callable[..., str], store_dirs: StoreDirs, driver: Driver
) -> None:
    name, work = load("base", b"a"), store_dirs.work
    held = [store.prepare(name, work / str(number), driver=driver) for number in range(3)]
    pooled(core)
    with counted(core) as prepared:
        root = store.prepare(name, work / "root", driver=driver)
    assert (prepared["db.committed"], prepared["fsyncs"]) == (1, 0)
    with counted(core) as cleaned:
        root.cleanup()
    assert (cleaned["db.committed"], cleaned["fsyncs"]) == (1, 0)
    if driver == "erofs":
        assert (prepared["reads"], cleaned["reads"]) == (0, 0)
        # BEGIN, COMMIT, and a look whether the schema is still ours, are three of each.
        assert (prepared["statements"], cleaned["statements"]) == (6, 9)
    # What it left goes soon, and what waits is given back; then there is nothing but the roots.
    store.collect()
    assert len(os.listdir(store_dirs.root / "prepared")) == len(held)
    assert os.listdir(store_dirs.root / "trash") == []
    assert [lock for lock in os.listdir(store_dirs.root / "locks") if "-" in lock] == []


def test_what_waits_has_the_image_s_root_and_is_no_litter(
    store: orlop.Store, core: Core, workdir: Path, store_dirs: StoreDirs
) -> None:
    # A label that is the image's, and that this kernel takes, if it has none of its own.
    xattrs = {"user.a": b"1", "security.selinux": b"system_u:object_r:etc_t:s0"}
    image = images.make_image([Layer().folder("./", mode=0o751, xattrs=xattrs).file("file", b"a").tar()])
    layout = images.write_layout(workdir / "layout", {"latest": image})
    name = store.load(layout, name="localhost/base").pop().name
    roots = [store.prepare(name, store_dirs.work / str(number)) for number in range(3)]
    pooled(core)
    uppers = [path / "upper" for path in (store_dirs.root / "prepared").iterdir()]
    assert len(uppers) > len(roots)
    seen = {(os.stat(path).st_mode, os.stat(path).st_mtime_ns, os.stat(path).st_uid) for path in uppers}
    assert len(seen) == 1
    assert {mode & 0o777 for mode, _, _ in seen} == {0o751}
    xattrs_of = [{key: os.getxattr(path, key) for key in os.listxattr(path)} for path in uppers]
    assert all(found == xattrs_of[0] for found in xattrs_of)
    assert xattrs_of[0]["user.a"] == b"1"
    assert store.check().findings == ()
    assert store.collect(dry_run=True).items == ()
    assert {path / "upper" for path in (store_dirs.root / "prepared").iterdir()} == set(uppers)


KILLED = """if True:
    import os, sys, threading
    import orlop
    store = orlop.open(sys.argv[1], sys.argv[2])
    for number in range(3):
        store.prepare(sys.argv[3], f"{sys.argv[4]}/{number}")
    for thread in threading.enumerate():
        if thread.name == "orlop-uppers":
            thread.join()
    os.kill(os.getpid(), 9)
"""


def test_what_waited_in_a_process_that_was_killed_is_collected(
    store: orlop.Store, load: Callable[..., str], store_dirs: StoreDirs
) -> None:
    name, folder = load("base", b"a"), store_dirs.root / "prepared"
    command = [sys.executable, "-c", KILLED, store_dirs.root, store_dirs.run, name, store_dirs.work]
    assert subprocess.run(command, capture_output=True, timeout=120, check=False).returncode == -9
    assert len(os.listdir(folder)) > len(store.prepared()) == 3
    store.collect()
    assert len(os.listdir(folder)) == 3
    assert store.collect(dry_run=True).items == ()
    assert store.check().findings == ()


def test_a_name_that_means_another_image_by_now_is_prepared_as_that(
    store: orlop.Store, load: Callable[..., str], store_dirs: StoreDirs
) -> None:
    work, name = store_dirs.work, load("base", b"a")
    for number in range(2):
        store.prepare(name, work / f"a{number}")
    load("other", b"b")
    store.remove(name)
    store.tag("localhost/other", name)
    root = store.prepare(name, work / "b", mount=True)
    assert (work / "b/file").read_bytes() == b"b"
    assert root.info.image_id == store.inspect(name).info.id
    store.remove(name)
    with pytest.raises(orlop.NotFound):
        store.prepare(name, work / "c", pull="never")
    with pytest.raises(orlop.AlreadyExists):
        store.prepare("localhost/other", work / "b")


@pytest.mark.parametrize("mounted", [False, True])
def test_a_root_that_another_process_put_where_one_was_is_cleaned_up_as_what_it_is(
    store: orlop.Store, load: Callable[..., str], store_dirs: StoreDirs, mounted: bool
) -> None:
    name, path = load("base", b"a"), store_dirs.work / "a"
    for number in range(2):
        store.prepare(name, store_dirs.work / str(number))
    old = store.prepare(name, path)
    with orlop.open(store_dirs.root, store_dirs.run) as other:
        other.get(path).cleanup()
        new = other.prepare(name, path, mount=mounted)
        if mounted:
            (path / "written").write_text("by whom it belongs to now")
        folder = Path(new.mounts[0].options[1].partition("=")[2]).parent
        assert folder.is_dir()
        old.cleanup()
        assert len(other.prepared()) == 2
        assert not mountinfo.is_mount_point(path)
        store.collect()
        assert not folder.exists()
    with pytest.raises(orlop.NotFound):
        old.cleanup()


def test_a_chain_that_somebody_unmounted_is_mounted_again(
    store: orlop.Store, load: Callable[..., str], store_dirs: StoreDirs
) -> None:
    work, name = store_dirs.work, load("base", b"a")
    roots = [store.prepare(name, work / str(number), driver="erofs") for number in range(2)]
    (point,) = (store_dirs.run / "chains").iterdir()
    mount.umount(point)
    roots.append(store.prepare(name, work / "more", driver="erofs"))
    assert mountinfo.is_mount_point(point)
    mount.perform("tmpfs", "tmpfs", point, [])  # what is on top counts
    roots.append(store.prepare(name, work / "last", driver="erofs"))
    roots[-1].mount()
    assert (work / "last/file").read_bytes() == b"a"


def test_who_wants_a_chain_alone_waits_for_those_who_share_it(core: Core) -> None:
    call, path = Call(), core.lock_path("chain", "c")
    with core.sharing("chain", "c", call=call, attempted="x"):
        with core.sharing("chain", "c", call=call, attempted="x"):
            assert core.try_locked("chain", "c") is None
        assert core.try_locked("chain", "c") is None
        other = FileLock(path)
        assert other.acquire(call=call, attempted="x", exclusive=False, blocking=False)
        other.release()
    alone = core.try_locked("chain", "c")
    assert alone is not None
    call.cancel.cancel()
    with pytest.raises(orlop.Cancelled), core.sharing("chain", "c", call=call, attempted="x"):
        pass
    alone.release()  # and its file is gone
    with core.sharing("chain", "c", call=Call(), attempted="x"):
        assert core.try_locked("chain", "c") is None
    core.shared.rest()
    assert not path.exists()
