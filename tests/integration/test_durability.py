"""What is synced when a verb has returned: the files and folders involved, by fsync, and nothing else.

Strace tells.  That this is enough after a power cut is `test_powercuts`'s.
"""

from __future__ import annotations

import logging
import re
import subprocess
import sys
from pathlib import Path

import pytest

import orlop
from conftest import StoreDirs
from orlop.metadata import boots
from support import images
from support.crash_scenarios import layer

pytestmark = pytest.mark.root

SCRIPT = """
import os, sys
from pathlib import Path
import orlop
root, run, work, layout, durable = sys.argv[1:]
def now(step):
    os.access(f"/now/{step}", os.F_OK)
place = Path(work, "rootfs")
now("open")
with orlop.open(root, run, settings=orlop.Settings(durable=durable == "True")) as store:
    now("import")
    name = store.load(layout).pop().name
    for driver, options in (("erofs", {}), ("native", {}), ("overlay", {"quota": 1 << 22})):
        now(f"prepare-{driver}")
        extra = [orlop.ExtraMount(type="tmpfs", target="/new/place")]
        with store.prepare(name, place, driver=driver, extra=extra, **options) as prepared:
            now("write")
            prepared.mount()
            (place / "mine").write_bytes(b"mine")
            prepared.unmount()
            now(f"commit-{driver}")
            made = prepared.commit(f"localhost/made:{driver}").name
            now(f"cleanup-{driver}")
        now("")
    now("remove")
    store.remove(made)
    now("close")
"""
SYNCS = "fsync,fdatasync,sync,syncfs"


def traced(dirs: StoreDirs, *, durable: bool) -> tuple[set[str], dict[str, set[str]]]:
    """The system calls that sync, and what each step synced: paths in the store, random parts as ``*``."""
    image = images.make_image([layer("base"), layer("app")])
    layout = images.write_layout(dirs.work / "layout", {"v1": image})
    log = dirs.work / "strace"
    command = ["strace", "-f", "-y", "-qq", "-o", log, "-e", f"trace=access,faccessat,faccessat2,{SYNCS}"]
    arguments = [dirs.root, dirs.run, dirs.work, layout, str(durable)]
    subprocess.run([*command, sys.executable, "-c", SCRIPT, *map(str, arguments)], check=True, timeout=120)
    steps: dict[str, set[str]] = {}
    calls: set[str] = set()
    step = ""
    for line in log.read_text().splitlines():
        if found := re.search(r'access[^"]*"/now/([^"]*)"', line):
            step = found[1]
            steps.setdefault(step, set())
        elif found := re.search(r"\b(f?sync|fdatasync|syncfs)\(\d*<?([^>)]*)", line):
            calls.add(found[1])
            steps[step].add(_plain(found[2], dirs))
    log.unlink()
    return calls, steps


def _plain(path: str, dirs: StoreDirs) -> str:
    path = path.removeprefix(str(dirs.root)).removeprefix(str(dirs.run)) or "/"
    return re.sub(r"(new-|tmp-|[0-9a-f]{8}-)?[0-9a-f]{16,64}", "*", path)


LAYER = {"/layers/*/layer.tar", "/layers/*/layer.index", "/layers/*", "/layers", "/meta.db-wal"}
DOCUMENT = {"/content/blobs/sha256/.*", "/content/blobs/sha256"}
UPPER = {
    "/prepared/*/upper",
    "/prepared/*",
    "/prepared",
    "/prepared/*/upper/new",
    "/prepared/*/upper/new/place",
}
NATIVE = {
    "/prepared/*/tree", "/prepared/*/tree/base", "/prepared/*/tree/deep/er/file", "/prepared/*/tree/new/place",
    "/prepared/*/.*", "/prepared/*", "/prepared",
}  # fmt: skip
DISK = {
    "/prepared/*/disk.img.new",
    "/prepared/*",
    "/prepared",
    "/disks/*/root/upper",
    "/disks/*/root",
    "/disks/*",
}


def test_what_a_verb_has_made_is_synced_when_it_returns(store_dirs: StoreDirs) -> None:
    calls, steps = traced(store_dirs, durable=True)
    assert calls <= {"fsync", "fdatasync"}
    assert steps["open"] >= {"/", "/.*", "/content", "/content/blobs", "/meta.db-wal"}
    assert steps["import"] >= LAYER | DOCUMENT | {"/layers/*/layer.data"}
    assert steps["prepare-erofs"] >= UPPER | {"/chains/.*", "/chains"}
    assert steps["prepare-native"] >= NATIVE
    assert steps["prepare-overlay"] >= DISK
    for driver in ("erofs", "native", "overlay"):
        assert "/meta.db-wal" in steps[f"prepare-{driver}"]
        assert steps[f"commit-{driver}"] >= DOCUMENT | {"/meta.db-wal"}
        assert "/meta.db-wal" in steps[f"cleanup-{driver}"]  # the folder goes later: docs/adr/0018
    assert steps["commit-erofs"] >= LAYER
    assert "/meta.db-wal" in steps["remove"]
    assert not any(path.startswith("/folders") for path in set().union(*steps.values()))


def test_without_durability_nothing_is_synced_but_the_store_itself(store_dirs: StoreDirs) -> None:
    calls, steps = traced(store_dirs, durable=False)
    assert calls <= {"fsync", "fdatasync"}
    assert "/meta.db-wal" in steps.pop("open")
    # SQLite syncs when it makes its log, and when it writes the log back, so that there always is a database;
    # mkfs.ext4 syncs what it has made.
    assert set().union(*steps.values()) <= {"/meta.db-wal", "/meta.db", "/", "/prepared/*/disk.img.new"}


def test_a_store_tells_that_something_was_written_without_syncing(
    store_dirs: StoreDirs, caplog: pytest.LogCaptureFixture
) -> None:
    with orlop.open(store_dirs.root, store_dirs.run) as store:
        assert store.info().features["durable"] == "yes"
    with orlop.open(store_dirs.root, store_dirs.run, settings=orlop.Settings(durable=False)) as store:
        assert store.info().features["durable"].startswith("no")
    assert caplog.records == []
    with orlop.open(store_dirs.root, store_dirs.run) as store:
        assert store.info().features["durable"].startswith("no")  # this boot is not over
        assert caplog.records == []
        store.verbs._core.db.write(lambda tx: boots.mark(tx, "an earlier boot"))  # type: ignore[attr-defined]
    with caplog.at_level(logging.WARNING), orlop.open(store_dirs.root, store_dirs.run) as store:
        assert "orlop check --full --repair" in store.info().features["durable"]
        (record,) = caplog.records
        assert "not synced" in record.getMessage()
        db = store.verbs._core.db  # type: ignore[attr-defined]
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        assert db.read(lambda tx: boots.others(tx, boot)) == ["an earlier boot"]
        store.check()
        assert db.read(lambda tx: boots.others(tx, boot)) == ["an earlier boot"]
        assert store.check(full=True, repair=True).clean
        assert db.read(lambda tx: boots.others(tx, boot)) == []
        assert store.info().features["durable"].startswith("no")
