"""Stores of earlier formats, made by the code of their time (tests/data/stores), opened by today's."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

import orlop
from conftest import StoreDirs
from orlop.images.backups.file import BackupWriter
from orlop.images.backups.restore import restore
from orlop.linux import mount as mounts
from orlop.metadata.db import SCHEMA_VERSION, Database
from support import trees

pytestmark = pytest.mark.root

STORES = Path(__file__).parents[1] / "data" / "stores"
NAMES = sorted(path.name.partition(".")[0] for path in STORES.glob("*.tar.xz"))


def unpack(name: str, dirs: StoreDirs) -> dict[str, Any]:
    """An old store at ROOT, and what was in it when it was made."""
    command = ["tar", "--xattrs", "--xattrs-include=*", "-xJf", STORES / f"{name}.tar.xz", "-C", dirs.work]
    subprocess.run(command, check=True)
    (dirs.work / "orlop").rename(dirs.root)
    return json.loads((STORES / f"{name}.json").read_text())


def version_of(path: Path) -> int:
    with contextlib.closing(sqlite3.connect(path)) as database:
        return database.execute("PRAGMA user_version").fetchone()[0]


def dump(path: Path) -> list[str]:
    with contextlib.closing(sqlite3.connect(path)) as database:
        assert database.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
        return list(database.iterdump())


def tree(root: Path) -> dict[str, str]:
    """All files of a store but the shared memory of SQLite, by digest."""
    return {
        os.fspath(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        if path.is_file()
        else ""
        for path in root.rglob("*")
        if "meta.db-" not in path.name and "locks/" not in os.fspath(path.relative_to(root))
    }


def told(info: object, fields: Iterable[str]) -> dict[str, Any]:
    """Some fields of a value, as JSON has them."""
    found = {field: getattr(info, field) for field in fields}
    return json.loads(json.dumps(found, default=dict))


def perform(root: orlop.Prepared, place: Path) -> None:
    """A root's mounts at another place than its path."""
    place.mkdir(exist_ok=True)
    for mount in root.mounts:
        target = os.fspath(place) + mount.target.removeprefix(root.path)
        mounts.perform(mount.type, mount.source, target, mount.options)


def test_there_is_a_store_of_every_earlier_schema() -> None:
    assert [f"schema-{number}" for number in range(1, SCHEMA_VERSION)] == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_an_old_store_is_whole_and_works(store_dirs: StoreDirs, name: str) -> None:
    made = unpack(name, store_dirs)
    old = dump(store_dirs.root / "meta.db")
    with orlop.open(store_dirs.root, store_dirs.run) as store:
        assert version_of(store_dirs.root / "meta.db") == SCHEMA_VERSION
        kept = store_dirs.root / f"meta.db.before-{made['schema']}"
        assert (version_of(kept), dump(kept)) == (made["schema"], old)

        # everything is there
        fields = made["images"][0].keys()
        found = [told(info, fields) for info in store.images()]
        assert found == made["images"]
        fields = made["roots"][0].keys()
        found = [{field: getattr(info, field) for field in fields} for info in store.prepared()]
        assert found == made["roots"]
        base, changed = store.inspect("localhost/base"), store.inspect("localhost/changed")
        assert (base.names, len(base.layers)) == (
            ("localhost/base:latest", "registry.example.com/team/base:1"),
            3,
        )
        assert json.loads(base.config)["config"]["Cmd"] == ["/bin/tool"]
        assert (base.manifest is not None, changed.manifest) == (True, None)

        checked = store.check(full=True)
        assert checked.clean
        assert {finding.problem for finding in checked.findings} == {"path-gone"}  # /srv/roots

        # and works: mounts, and a commit that makes of a root what it was when it was made
        place = store_dirs.work / "place"
        perform(store.get("/srv/roots/active"), place)
        assert (place / "etc/two").read_text() == "changed"
        assert os.stat(place / "etc/two").st_uid == 1000
        assert (sorted(os.listdir(place)), os.listdir(place / "var")) == (["bin", "etc", "var"], ["fresh"])
        mounts.umount(place)
        perform(store.get("/srv/roots/view"), place)
        assert (place / "var/again").read_bytes() == (place / "var/data").read_bytes()
        mounts.umount(place)
        for path, image_id in made["commits"].items():
            assert store.get(path).commit("localhost/again", created=0).id == image_id
        with store.prepare("localhost/again", place, mount=True) as root:
            (place / "more").write_text("more")
            root.commit("localhost/more")
        store.tag("localhost/more", "localhost/most")

        # and goes without a trace
        for info in store.prepared():
            store.get(info.path).cleanup()
        for info in store.images():
            store.remove(info.name)
        store.collect()
        left = [
            path
            for part in ("layers", "chains", "folders", "prepared", "trash")
            for path in (store_dirs.root / part).iterdir()
        ]
        left += store_dirs.root.glob("content/*/*/*")
        assert left == []
        assert kept.exists()


@pytest.mark.parametrize("name", NAMES)
def test_the_way_back_is_a_rename(store_dirs: StoreDirs, name: str) -> None:
    made = unpack(name, store_dirs)
    before = tree(store_dirs.root)
    orlop.open(store_dirs.root, store_dirs.run).close()
    (store_dirs.root / f"meta.db.before-{made['schema']}").rename(store_dirs.root / "meta.db")
    after = tree(store_dirs.root)
    assert version_of(store_dirs.root / "meta.db") == made["schema"]
    assert {path for path in before if before.get(path) != after.get(path)} <= {"meta.db"}
    orlop.open(store_dirs.root, store_dirs.run).close()
    assert version_of(store_dirs.root / "meta.db") == SCHEMA_VERSION


def test_a_migration_that_fails_changes_nothing_and_the_next_one_works(store_dirs: StoreDirs) -> None:
    unpack("schema-1", store_dirs)
    with contextlib.closing(sqlite3.connect(store_dirs.root / "meta.db")) as database:
        database.execute("CREATE TABLE pins (in_the_way)")  # the last script makes one
    before = dump(store_dirs.root / "meta.db")
    with pytest.raises(orlop.Internal, match="pins already exists"):
        orlop.open(store_dirs.root, store_dirs.run)
    assert (version_of(store_dirs.root / "meta.db"), dump(store_dirs.root / "meta.db")) == (1, before)
    with contextlib.closing(sqlite3.connect(store_dirs.root / "meta.db")) as database:
        database.execute("DROP TABLE pins")
    with orlop.open(store_dirs.root, store_dirs.run) as store:
        assert len(store.images()) == 3


def test_a_migration_on_a_full_disk_changes_nothing_and_works_when_there_is_room(
    store_dirs: StoreDirs,
) -> None:
    unpack("schema-1", store_dirs)
    small = store_dirs.work / "small"
    small.mkdir()
    before = dump(store_dirs.root / "meta.db")
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200k", "none", small], check=True)  # it has 112
    shutil.copy(store_dirs.root / "meta.db", small)
    with pytest.raises(orlop.ResourceExhausted):
        Database.open(small / "meta.db", small / "write")
    assert (version_of(small / "meta.db"), dump(small / "meta.db")) == (1, before)
    assert list(small.glob(".tmp*")) == []
    subprocess.run(["mount", "-o", "remount,size=4m", small], check=True)
    Database.open(small / "meta.db", small / "write").close()
    assert version_of(small / "meta.db") == SCHEMA_VERSION
    assert dump(small / "meta.db.before-1") == before


# Runs in a process of its own with one thread: forks a child for each trial, which kills itself at the n-th
# thing that it does with files or SQL, and another one that opens the database after it.
_KILLER = """
import os, shutil, signal, sqlite3, sys
from pathlib import Path
from orlop.metadata.db import SCHEMA_VERSION, Database

source, folder, step = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])

def count(limit):
    left = [limit]
    def one(*_):
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
    def connect(*args, connect=sqlite3.connect, **options):
        connection = connect(*args, **options)
        connection.set_trace_callback(one)
        return connection
    sqlite3.connect = connect
    def audit(event, args):
        if event in ("open", "os.rename", "os.remove", "sqlite3.connect", "fcntl.flock"):
            one()
    return audit

def child(body):
    pid = os.fork()
    if not pid:
        try:
            body()
        except BaseException as exc:
            print(repr(exc), file=sys.stderr)
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

trials, limit, kept = 0, 1, 0
while True:
    for path in folder.iterdir():
        path.unlink()
    shutil.copy(source, folder / "meta.db")
    def opened():
        Database.open(folder / "meta.db", folder / "write").close()
    def killed():
        sys.addaudithook(count(limit))
        opened()
    code = child(killed)
    if code == 0:
        break
    assert code == -signal.SIGKILL, code
    names = {path.name for path in folder.iterdir()}
    assert child(opened) == 0, (limit, names)
    database = sqlite3.connect(folder / "meta.db")
    assert database.execute("PRAGMA user_version").fetchone()[0] == SCHEMA_VERSION, limit
    assert database.execute("PRAGMA integrity_check").fetchone()[0] == "ok", limit
    assert database.execute("SELECT COUNT(*) FROM images").fetchone()[0] == 3, limit
    assert database.execute("SELECT COUNT(*) FROM prepared").fetchone()[0] >= 2, limit
    database.close()
    before = sqlite3.connect(folder / ("meta.db.before-" + sys.argv[4]))
    assert before.execute("PRAGMA user_version").fetchone()[0] == int(sys.argv[4]), limit
    assert before.execute("PRAGMA integrity_check").fetchone()[0] == "ok", limit
    assert before.execute("SELECT COUNT(*) FROM images").fetchone()[0] == 3, limit
    before.close()
    trials, limit = trials + 1, limit + step
print(trials)
"""


def killed_migrations(store_dirs: StoreDirs, name: str, step: int) -> int:
    made = unpack(name, store_dirs)
    folder = store_dirs.work / "killed"
    folder.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", _KILLER, store_dirs.root / "meta.db", folder, str(step), str(made["schema"])],
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


@pytest.mark.parametrize("name", NAMES)
def test_a_migration_that_is_killed_is_done_by_the_next_one(store_dirs: StoreDirs, name: str) -> None:
    assert killed_migrations(store_dirs, name, step=12) >= 6


@pytest.mark.soak
@pytest.mark.parametrize("name", NAMES)
def test_a_migration_can_be_killed_at_every_step(
    store_dirs: StoreDirs, name: str, soak_seconds: float
) -> None:
    """Some 80 trials, of 0.1 s each on an idle machine."""
    assert killed_migrations(store_dirs, name, step=1 if soak_seconds >= 10 else 4) >= 15


def test_processes_that_open_an_old_store_at_once_migrate_it_once(store_dirs: StoreDirs) -> None:
    unpack("schema-1", store_dirs)
    code = (
        "import sys, orlop; sys.stdin.read(); store = orlop.open(*sys.argv[1:]); print(len(store.images()))"
    )
    several = [
        subprocess.Popen(
            [sys.executable, "-c", code, store_dirs.root, store_dirs.run],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for _ in range(4)
    ]
    try:
        for process in several:
            assert process.stdin is not None
            process.stdin.close()  # go
            process.stdin = None
        assert [process.communicate(timeout=60)[0] for process in several] == ["3\n"] * 4
    finally:
        for process in several:
            process.kill()
            process.wait()
    copies = [path.name for path in store_dirs.root.glob("meta.db.*")]
    assert copies == ["meta.db.before-1"]
    assert version_of(store_dirs.root / "meta.db") == SCHEMA_VERSION


def newer_schema(root: Path) -> None:
    with contextlib.closing(sqlite3.connect(root / "meta.db")) as database:
        database.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")


def newer_format(**changed: object) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        document = json.loads((root / "format.json").read_text())
        (root / "format.json").write_text(json.dumps({**document, **changed}))

    return change


@pytest.mark.parametrize(
    "change",
    [
        newer_schema,
        newer_format(version=2),
        newer_format(incompat=["erofs-index-1", "later"]),
        newer_format(ro_compat=["later"]),
    ],
    ids=["schema", "format", "incompat", "ro_compat"],
)
def test_a_newer_store_is_refused_politely_and_left_alone(
    store_dirs: StoreDirs,
    change: Callable[[Path], None],
    run_cli: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    unpack("schema-2", store_dirs)
    orlop.open(store_dirs.root, store_dirs.run).close()
    shutil.rmtree(store_dirs.run)
    change(store_dirs.root)
    before, contents = tree(store_dirs.root), trees.snapshot(store_dirs.root / "prepared")
    with pytest.raises(orlop.FailedPrecondition, match=r"newer|version \d") as caught:
        orlop.open(store_dirs.root, store_dirs.run)
    assert "use " in caught.value.hint
    done = run_cli("images")
    assert (done.returncode, done.stdout) == (5, "")
    assert tree(store_dirs.root) == before
    assert trees.differences(contents, trees.snapshot(store_dirs.root / "prepared")) == []


def test_a_process_that_runs_while_a_newer_orlop_migrates_writes_no_more(store_dirs: StoreDirs) -> None:
    unpack("schema-2", store_dirs)
    with orlop.open(store_dirs.root, store_dirs.run) as store:
        newer_schema(store_dirs.root)
        before = dump(store_dirs.root / "meta.db")
        with pytest.raises(orlop.FailedPrecondition, match="another orlop"):
            store.tag("localhost/base", "localhost/more")
        assert dump(store_dirs.root / "meta.db") == before
        assert len(store.images()) == 3


def test_a_flag_that_does_not_matter_to_us_is_no_hindrance(store_dirs: StoreDirs) -> None:
    unpack("schema-2", store_dirs)
    newer_format(compat=["later"])(store_dirs.root)
    with orlop.open(store_dirs.root, store_dirs.run) as store:
        assert len(store.images()) == 3
    assert json.loads((store_dirs.root / "format.json").read_text())["compat"] == ["later"]


@pytest.mark.parametrize("name", NAMES)
def test_a_backup_with_older_metadata_is_brought_up_to_date_and_restored(
    store_dirs: StoreDirs, workdir: Path, name: str
) -> None:
    made = unpack(name, store_dirs)
    with orlop.open(store_dirs.root, store_dirs.run) as store:
        store.backup(workdir / "new.tar", content=True)
    with tarfile.open(workdir / "new.tar") as archive:
        found = {one.name: archive.extractfile(one).read() for one in archive}  # type: ignore[union-attr]
    old = (store_dirs.root / f"meta.db.before-{made['schema']}").read_bytes()
    label = json.loads(found["orlop-backup.json"])
    label["metadata"] = f"sha256:{hashlib.sha256(old).hexdigest()}"
    found |= {"meta.db": old, "orlop-backup.json": json.dumps(label).encode()}
    with (workdir / "old.tar").open("wb") as file:
        writer = BackupWriter(file.fileno())
        for member, data in found.items():
            writer.add(member, len(data), [data])
        writer.finish()
    root, run = workdir / "other/root", workdir / "other/run"
    restored = restore(workdir / "old.tar", root, run)
    assert (len(restored.names), restored.roots) == (3, len(made["roots"]))
    with orlop.open(root, run) as store:
        fields = made["images"][0].keys() - {"used"}  # restoring counts as being asked for
        expected = [{field: image[field] for field in fields} for image in made["images"]]
        assert [told(info, fields) for info in store.images()] == expected
        assert store.check(full=True).findings == ()
