"""Backup and restore: consistent while the store is in use, verified while it is read, all or nothing."""

from __future__ import annotations

import contextlib
import hashlib
import random
import sqlite3
import stat
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import orlop
from conftest import StoreDirs
from orlop.images.backups.backup import Backup
from orlop.images.backups.file import header
from orlop.images.backups.restore import Restored
from orlop.observe import NullObserver, Progress
from orlop.testing.crashes import recording
from support import images, trees, users
from support.layers import Layer
from support.registries import Registry

pytestmark = pytest.mark.root


def backup(store: orlop.Store, target: Path, *, content: bool = False):
    return Backup(store.verbs._core).write(str(target), content=content, call=orlop.Call())


def base() -> Layer:
    return (
        Layer()
        .folder("etc")
        .file("etc/motd", b"hello\n", uid=1000, gid=1000, xattrs={"user.a": b"1"})
        .file("bin/tool", b"x" * 5000, mode=0o4755)
        .symlink("latest", "etc/motd")
    )


@pytest.fixture
def filled(store: orlop.Store, workdir: Path, store_dirs: StoreDirs) -> orlop.Store:
    fill(store, workdir, store_dirs)
    return store


def fill(store: orlop.Store, workdir: Path, store_dirs: StoreDirs) -> None:
    """An image under two names, a committed one, a prepared root."""
    two = Layer().whiteout("latest").file("etc/motd", b"second\n").hardlink("etc/again", "etc/motd")
    two.sparse("var/sparse", 1 << 20, [(0, b"a" * 512), (1 << 19, b"b" * 512)], how="gnu-1.0")
    image = images.make_image([base().tar(), two.tar()])
    layout = images.write_layout(workdir / "layout", {"latest": image})
    name = store.load(layout, name="localhost/base").pop().name
    store.tag(name, "registry.example.com/team/base:1")
    with store.prepare(name, store_dirs.work / "made", mount=True) as root:
        (store_dirs.work / "made/etc/new").write_text("new")
        root.commit("localhost/changed", annotations={"kept": "yes"})
    store.prepare("localhost/changed", store_dirs.work / "kept")


@pytest.fixture
def other(workdir: Path) -> StoreDirs:
    """Folders of another store, not made yet."""
    return StoreDirs(root=workdir / "other/root", run=workdir / "other/run", work=workdir / "other")


def read_back(source: Path, dirs: StoreDirs, **options: object) -> Restored:
    return orlop.restore(source, dirs.root, dirs.run, **options)


@contextlib.contextmanager
def tree_of(store: orlop.Store, name: str, place: Path) -> Iterator[trees.Tree]:
    with store.prepare(name, place, view=True, mount=True):
        yield trees.snapshot(place)


def identities(store: orlop.Store) -> list[tuple[str, str, str | None, int, int]]:
    return [(info.name, info.id, info.digest, info.size, info.layers) for info in store.images()]


# ------------------------------------------------------------------ a whole round


def test_a_backup_with_content_brings_all_images_back_as_they_were(
    filled: orlop.Store, workdir: Path, other: StoreDirs
) -> None:
    target = workdir / "backup.tar"
    done = backup(filled, target, content=True)
    assert (done.images, done.layers, done.roots, done.content) == (3, 3, 1, True)
    assert (done.size, stat.S_IMODE(target.stat().st_mode)) == (target.stat().st_size, 0o600)
    assert [path.name for path in workdir.glob(".*")] == []
    restored = read_back(target, other)
    assert restored == Restored(names=tuple(info.name for info in filled.images()), layers=3, roots=1)
    with orlop.open(other.root, other.run) as back:
        assert identities(back) == identities(filled)
        for name in ("localhost/base", "localhost/changed"):
            with (
                tree_of(filled, name, workdir / "before") as before,
                tree_of(back, name, workdir / "after") as after,
            ):
                assert trees.differences(before, after) == []
            assert back.inspect(name).config == filled.inspect(name).config
            assert back.inspect(name).manifest == filled.inspect(name).manifest
        assert back.prepared() == []
        assert back.check(full=True).findings == ()
        assert back.collect().items == ()
        with back.prepare("localhost/changed", other.work / "a", mount=True) as root:
            (other.work / "a/more").write_text("more")
            root.commit("localhost/more")
        with contextlib.closing(sqlite3.connect(f"file:{other.root}/meta.db?mode=ro", uri=True)) as rows:
            noted = set(rows.execute("SELECT config_digest, key, value FROM image_annotations"))
        for name in ("localhost/changed", "localhost/more"):  # for the manifests that they will get
            assert (back.inspect(name).info.id, "kept", "yes") in noted


def test_gnu_tar_reads_a_backup(filled: orlop.Store, workdir: Path) -> None:
    backup(filled, workdir / "backup.tar", content=True)
    with tarfile.open(workdir / "backup.tar") as archive:
        ours = archive.getnames()
    said = subprocess.run(["tar", "-tf", workdir / "backup.tar"], capture_output=True, text=True, check=True)
    assert (said.stdout.split(), said.stderr) == (ours, "")
    assert ours[:3] == ["orlop-backup.json", "format.json", "meta.db"]


def test_the_metadata_of_a_backup_can_take_the_place_of_lost_ones(
    store_dirs: StoreDirs, workdir: Path
) -> None:
    with orlop.open(store_dirs.root, store_dirs.run) as store:
        fill(store, workdir, store_dirs)
        before = identities(store)
        backup(store, workdir / "backup.tar")
    for path in store_dirs.root.glob("meta.db*"):
        path.unlink()
    with pytest.raises(orlop.DataLoss, match=r"meta\.db is gone"):
        orlop.open(store_dirs.root, store_dirs.run)
    subprocess.run(["tar", "-xf", workdir / "backup.tar", "-C", store_dirs.root, "meta.db"], check=True)
    with orlop.open(store_dirs.root, store_dirs.run) as store:
        assert identities(store) == before
        (root,) = store.prepared()
        store.get(root.path).mount().cleanup()


def test_restoring_into_a_store_adds_and_is_idempotent(
    filled: orlop.Store, workdir: Path, other: StoreDirs
) -> None:
    backup(filled, workdir / "backup.tar", content=True)
    with orlop.open(other.root, other.run) as store:
        layout = images.write_layout(other.work / "layout", {"latest": images.make_image([base().tar()])})
        store.load(layout, name="localhost/mine")
        first = read_back(workdir / "backup.tar", other)
        assert (len(first.names), first.layers) == (3, 2)  # one was there
        again = read_back(workdir / "backup.tar", other)
        assert (again.names, again.layers) == (first.names, 0)
        assert {info.name for info in store.images()} == {"localhost/mine:latest", *first.names}


def test_a_name_that_means_another_image_moves_only_by_force(
    filled: orlop.Store, workdir: Path, other: StoreDirs
) -> None:
    backup(filled, workdir / "backup.tar", content=True)
    with orlop.open(other.root, other.run) as store:
        layout = images.write_layout(other.work / "layout", {"latest": images.make_image([base().tar()])})
        mine = store.load(layout, name="localhost/changed").pop()
        with pytest.raises(orlop.AlreadyExists, match="localhost/changed"):
            read_back(workdir / "backup.tar", other)
        assert [info.id for info in store.images()] == [mine.id]
        assert store.collect().items == ()
        read_back(workdir / "backup.tar", other, force=True)
        assert identities(store) == identities(filled)


def test_kept_blobs_come_back(
    workdir: Path, store_dirs: StoreDirs, registry: Registry, other: StoreDirs
) -> None:
    name = f"{registry.host}/backup/kept:1"
    images.push(registry, "backup/kept", "1", images.make_image([base().tar()], compression="zstd"))
    settings = orlop.Settings(insecure_registries=(registry.host,), keep_blobs=True)
    with orlop.open(store_dirs.root, store_dirs.run, settings=settings) as store:
        store.pull(name)
        backup(store, workdir / "backup.tar", content=True)
        read_back(workdir / "backup.tar", other)
        with orlop.open(other.root, other.run) as back:
            assert back.inspect(name).layers == store.inspect(name).layers
            assert back.inspect(name).layers[0].blob_present
            assert back.verbs._core.db.read(_sources) == store.verbs._core.db.read(_sources)


def _sources(tx: sqlite3.Connection) -> list[tuple[str, ...]]:
    query = "SELECT digest, registry, repository FROM blob_sources ORDER BY digest"
    return [tuple(row) for row in tx.execute(query)]


def test_labels_and_pins_come_back(
    filled: orlop.Store, workdir: Path, other: StoreDirs, store_dirs: StoreDirs
) -> None:
    filled.label("localhost/base", {"keep": "", "owner": "me"})
    with filled.prepare("localhost/changed", store_dirs.work / "b", mount=True) as root:
        (store_dirs.work / "b/etc/more").write_text("more")
        unnamed = root.commit("localhost/unnamed")
    layer = filled.inspect("localhost/unnamed").layers[-1].diff_id
    filled.pin("localhost/unnamed", "an image")
    filled.pin(layer, "a layer", expires=4_000_000_000)
    filled.remove("localhost/unnamed")
    backup(filled, workdir / "backup.tar", content=True)
    filled.unpin("an image")
    filled.unpin("a layer")
    restored = read_back(workdir / "backup.tar", other)
    assert (restored.pins, restored.missing) == (("a layer", "an image"), ())
    with orlop.open(other.root, other.run) as back:
        assert {info.name: dict(info.labels) for info in back.images()}["localhost/base:latest"] == {
            "keep": "",
            "owner": "me",
        }
        assert {(pin.name, pin.kind, pin.ref, pin.expires) for pin in back.pins()} == {
            ("an image", "image", unnamed.id, None),
            ("a layer", "layer", layer, 4_000_000_000),
        }
        assert back.collect().items == ()
        back.unpin("an image")
        back.unpin("a layer")
        back.collect()
        assert not (other.root / "layers" / layer.partition(":")[2]).exists()
    slim = workdir / "slim.tar"
    with orlop.open(other.root, other.run) as back:
        back.pin("localhost/changed", "taken")
        backup(back, slim)
        back.pin("localhost/base", "taken")
        (one,) = read_back(slim, other).missing
        assert one.name == "pin taken"
        assert [pin.ref for pin in back.pins()] == [back.inspect("localhost/base").info.id]


# ------------------------------------------------------------------ without content


def test_without_content_layers_are_fetched_by_digest_from_where_they_came(
    workdir: Path, store: orlop.Store, registry: Registry, other: StoreDirs
) -> None:
    name = f"{registry.host}/backup/team:1"
    images.push(registry, "backup/team", "1", images.make_image([base().tar()]))
    before = store.pull(name)
    store.tag(name, "localhost/renamed")
    images.push(
        registry, "backup/team", "1", images.make_image([base().file("moved").tar()])
    )  # the tag moves
    done = backup(store, workdir / "backup.tar")
    assert (done.images, done.layers) == (2, 0)
    assert done.size < 400_000
    settings = orlop.Settings(insecure_registries=(registry.host,))
    listed = read_back(workdir / "backup.tar", other, settings=settings)
    assert (listed.names, [one.digest for one in listed.missing]) == ((), [before.digest] * 2)
    with orlop.open(other.root, other.run) as back:
        assert back.images() == []
        assert back.collect().items == ()
        fetched = read_back(workdir / "backup.tar", other, settings=settings, pull=True)
        assert (fetched.missing, fetched.layers) == ((), 1)
        assert identities(back) == identities(store)


def test_what_was_never_pushed_is_missing_without_content(
    filled: orlop.Store, workdir: Path, other: StoreDirs
) -> None:
    backup(filled, workdir / "backup.tar")
    restored = read_back(
        workdir / "backup.tar", other, pull=True, settings=orlop.Settings(retries=0, timeout=1)
    )
    reasons = {one.name: one.reason for one in restored.missing}
    assert "never pushed" in reasons["localhost/changed:latest"]
    assert "no registry" in reasons["localhost/base:latest"]
    assert restored.names == ()


# ------------------------------------------------------------------ what is refused


def test_a_backup_never_replaces_a_file(filled: orlop.Store, store_dirs: StoreDirs, workdir: Path) -> None:
    (workdir / "there").write_text("mine")
    (workdir / "link").symlink_to("nowhere")
    for place in ("there", "link"):
        with pytest.raises(orlop.AlreadyExists):
            backup(filled, workdir / place)
    assert (workdir / "there").read_text() == "mine"
    for place, error in (
        (workdir, orlop.InvalidArgument),
        (store_dirs.root / "backup", orlop.InvalidArgument),
        (Path("relative"), orlop.InvalidArgument),
        (workdir / "no/such", orlop.NotFound),
    ):
        with pytest.raises(error):
            backup(filled, place)


def test_a_backup_of_rotten_or_lost_content_fails_and_leaves_no_file(
    filled: orlop.Store, store_dirs: StoreDirs, workdir: Path
) -> None:
    tar = next(iter(sorted(store_dirs.root.glob("layers/*/layer.tar"))))
    good = tar.read_bytes()
    tar.write_bytes(good[:-1] + b"!")
    with pytest.raises(orlop.DataLoss, match=tar.parent.name):
        backup(filled, workdir / "backup.tar", content=True)
    tar.unlink()
    with pytest.raises(orlop.DataLoss, match=tar.parent.name):
        backup(filled, workdir / "backup.tar", content=True)
    tar.write_bytes(good)
    assert list(workdir.glob("*backup*")) == []
    assert list((store_dirs.root / "layers").glob("new-*")) == []
    backup(filled, workdir / "backup.tar", content=True)


def test_a_backup_to_a_full_disk_fails_and_leaves_no_file(filled: orlop.Store, workdir: Path) -> None:
    (workdir / "full").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", workdir / "full"], check=True)
    with pytest.raises(orlop.ResourceExhausted):
        backup(filled, workdir / "full/backup.tar", content=True)
    assert list((workdir / "full").iterdir()) == []


def members(path: Path) -> list[tuple[str, bytes]]:
    with tarfile.open(path) as archive:
        return [(one.name, archive.extractfile(one).read()) for one in archive]  # type: ignore[union-attr]


def pack(path: Path, found: list[tuple[str, bytes]], *, end: bytes = bytes(1024)) -> Path:
    path.write_bytes(
        b"".join(header(name, len(data)) + data + bytes(-len(data) % 512) for name, data in found) + end
    )
    return path


def nothing_in(dirs: StoreDirs) -> bool:
    """Whether a store has no image, and nothing that a collection would not take at once."""
    if not dirs.root.exists():
        return True
    with orlop.open(dirs.root, dirs.run) as store:
        store.collect()
        left = [*dirs.root.glob("layers/*"), *dirs.root.glob("content/*/*/*")]
        return store.images() == [] and left == []


def test_a_backup_that_was_cut_anywhere_leaves_nothing(
    filled: orlop.Store, workdir: Path, other: StoreDirs
) -> None:
    backup(filled, workdir / "backup.tar", content=True)
    whole = (workdir / "backup.tar").read_bytes()
    cuts = [0, 1, 511, 512, 1000, len(whole) // 3, len(whole) // 2, len(whole) - 1024, len(whole) - 1]
    for cut in cuts:
        (workdir / "cut.tar").write_bytes(whole[:cut])
        with pytest.raises((orlop.DataLoss, orlop.InvalidArgument)):
            read_back(workdir / "cut.tar", other)
    (workdir / "cut.tar").write_bytes(whole + b"more")
    with pytest.raises(orlop.DataLoss, match="another end"):
        read_back(workdir / "cut.tar", other)
    assert nothing_in(other)


def test_a_bit_that_flipped_anywhere_leaves_nothing(
    filled: orlop.Store, workdir: Path, other: StoreDirs
) -> None:
    backup(filled, workdir / "backup.tar", content=True)
    for number, (name, data) in enumerate(found := members(workdir / "backup.tar")):
        if name not in {"orlop-backup.json", "format.json"}:
            spoilt = bytearray(data)
            spoilt[len(data) // 2] ^= 1
            one = pack(workdir / "spoilt.tar", [*found[:number], (name, bytes(spoilt)), *found[number + 1 :]])
            with pytest.raises((orlop.DataLoss, orlop.InvalidArgument)):
                read_back(one, other)
            assert nothing_in(other), name


def lied(data: bytes, statement: str, folder: Path) -> bytes:
    """meta.db after a stranger's statement."""
    path = folder / "lied.db"
    path.write_bytes(data)
    with contextlib.closing(sqlite3.connect(path)) as database:
        database.executescript(f"PRAGMA writable_schema = ON; {statement}")
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return path.read_bytes()


LIES = {
    "trigger": "CREATE TRIGGER t AFTER INSERT ON labels BEGIN DELETE FROM images; END;",
    "view": "CREATE VIEW v AS SELECT 1;",
    "table": "CREATE TABLE t (a);",
    "column": "ALTER TABLE images ADD COLUMN evil TEXT DEFAULT 'x';",
    "version": "PRAGMA user_version = 99;",
    "no version": "PRAGMA user_version = 0;",
    "type": "UPDATE images SET config_digest = x'00';",
    "path": "UPDATE images SET config_digest = 'sha256:../../etc/passwd';",
    "no such config": f"UPDATE images SET config_digest = 'sha256:{'0' * 64}';",
    "another config": "UPDATE images SET config_digest = manifest_digest WHERE manifest_digest IS NOT NULL;",
    "another manifest": "UPDATE images SET manifest_digest = config_digest WHERE name LIKE '%changed%';",
    "name": "UPDATE images SET name = '../../' || name;",
    "terminal": "UPDATE images SET name = name || char(27) || '[2J' WHERE name LIKE '%changed%';",
}


def test_metadata_that_lie_are_refused(filled: orlop.Store, workdir: Path, other: StoreDirs) -> None:
    backup(filled, workdir / "backup.tar", content=True)
    found = members(workdir / "backup.tar")
    for lie, statement in LIES.items():
        data = lied(dict(found)["meta.db"], statement, workdir)
        evil = repack(workdir, found, {"meta.db": data})
        try:
            read_back(evil, other)
        except (orlop.DataLoss, orlop.InvalidArgument, orlop.FailedPrecondition):
            continue
        pytest.fail(f"a backup with this lie was restored: {lie}")
    assert nothing_in(other)


def repack(folder: Path, found: list[tuple[str, bytes]], changed: dict[str, bytes]) -> Path:
    """A backup with other members, whose label fits its metadata."""
    new = {**dict(found), **changed}
    old = hashlib.sha256(dict(found)["meta.db"]).hexdigest().encode()
    label = new["orlop-backup.json"].replace(old, hashlib.sha256(new["meta.db"]).hexdigest().encode())
    new["orlop-backup.json"] = label
    return pack(folder / "evil.tar", [(name, data) for name, data in new.items() if data is not None])


def test_members_are_known_stand_once_and_have_one_form(
    filled: orlop.Store, workdir: Path, other: StoreDirs
) -> None:
    backup(filled, workdir / "backup.tar", content=True)
    found = members(workdir / "backup.tar")
    layer = next(name for name, _ in found if name.startswith("layers/"))
    cases = {
        "twice": [*found, found[-1]],
        "unknown": [*found, ("etc/passwd", b"")],
        "above": [*found, ("../x", b"")],
        "absolute": [*found, ("/etc/passwd", b"")],
        "no label": found[1:],
        "no metadata": [one for one in found if one[0] != "meta.db"],
        "no format": [one for one in found if one[0] != "format.json"],
        "no layer": [one for one in found if one[0] != layer],
        "no document": [one for one in found if not one[0].startswith("blobs/")],
    }
    for changed in cases.values():
        evil = pack(workdir / "evil.tar", changed)
        with pytest.raises((orlop.DataLoss, orlop.InvalidArgument)):
            read_back(evil, other)
    blocks = bytearray(pack(workdir / "evil.tar", found).read_bytes())
    blocks[156:157] = b"2"  # a symlink instead of a file
    (workdir / "evil.tar").write_bytes(blocks)
    with pytest.raises(orlop.InvalidArgument):
        read_back(workdir / "evil.tar", other)
    newer = repack(workdir, found, {"format.json": b'{"version": 1, "incompat": ["later"]}'})
    with pytest.raises(orlop.FailedPrecondition, match="newer orlop"):
        read_back(newer, other)
    label = dict(found)["orlop-backup.json"].replace(b'"orlop-backup": 1', b'"orlop-backup": 2')
    with pytest.raises(orlop.FailedPrecondition, match="newer orlop"):
        read_back(repack(workdir, found, {"orlop-backup.json": label}), other)
    with pytest.raises(orlop.InvalidArgument):
        read_back(workdir, other)
    assert nothing_in(other)


# ------------------------------------------------------------------ while it is used


class Remover(NullObserver):
    """Removes all images and collects, once, as soon as the first bytes are written."""

    def __init__(self, store: orlop.Store) -> None:
        self.store = store
        self.removed = 0

    def progress(self, event: Progress) -> None:
        if event.phase == "writing" and not self.removed:
            for info in self.store.images():
                self.removed += 1
                self.store.remove(info.name)
            self.store.collect()


def test_what_is_removed_and_collected_meanwhile_is_in_the_backup(
    filled: orlop.Store, store_dirs: StoreDirs, workdir: Path, other: StoreDirs
) -> None:
    filled.get(store_dirs.work / "kept").cleanup()
    before = identities(filled)
    remover = Remover(filled)
    call = orlop.Call(observer=remover)
    assert filled.backup(workdir / "backup.tar", content=True, call=call).images == remover.removed == 3
    assert filled.images() == []
    filled.collect()  # and when it was written, nothing kept them any more
    assert list((store_dirs.root / "layers").iterdir()) == []
    assert len(read_back(workdir / "backup.tar", other).names) == 3
    with orlop.open(other.root, other.run) as back:
        assert identities(back) == before


_HAMMER = """
import sys, pathlib, orlop
root, run, work, number = sys.argv[1:]
place = pathlib.Path(work, number)
with orlop.open(root, run) as store:
    print("ready", flush=True)
    for turn in range(10_000):
        if not sys.stdin.readable() or pathlib.Path(work, "stop").exists():
            break
        with store.prepare("localhost/base", place, mount=True) as made:
            (place / "turn").write_text(f"{number} {turn}")
            made.commit(f"localhost/busy:{number}-{turn % 3}")
        store.remove(f"localhost/busy:{number}-{(turn + 1) % 3}") if turn > 3 else None
"""


def test_a_backup_is_whole_while_others_commit_and_remove(
    filled: orlop.Store, store_dirs: StoreDirs, workdir: Path, other: StoreDirs
) -> None:
    words = [sys.executable, "-c", _HAMMER, str(store_dirs.root), str(store_dirs.run), str(store_dirs.work)]
    log = (workdir / "log").open("wb")
    busy = [
        subprocess.Popen([*words, str(n)], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log)
        for n in range(2)
    ]
    try:
        for process in busy:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
        seen = set()
        for number in range(3):
            done = backup(filled, workdir / f"{number}.tar", content=True)
            read_back(workdir / f"{number}.tar", other, force=True)
            seen.add(done.images)
            with orlop.open(other.root, other.run) as back:
                assert {"localhost/base:latest", "localhost/changed:latest"} <= {
                    i.name for i in back.images()
                }
                assert back.check().clean
                for info in back.images():
                    back.inspect(info.name)
                    back.prepare(info.name, other.work / "v", view=True).cleanup()
        assert all(process.poll() is None for process in busy), (workdir / "log").read_text()
    finally:
        (store_dirs.work / "stop").touch()
        for process in busy:
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            assert process.stdout is not None
            process.stdout.close()
        log.close()
    assert (workdir / "log").read_text() == ""
    filled.collect()
    assert filled.verbs._core.db.read(lambda tx: tx.execute("SELECT COUNT(*) FROM leases").fetchone()[0]) == 0


# ------------------------------------------------------------------ killed at a point


def die(at: str, dirs: StoreDirs, *words: str | Path) -> None:
    """Run the command line until it kills itself at a point."""
    where = ["--root", dirs.root, "--run", dirs.run]
    command = [sys.executable, "-m", "orlop.testing.crashes", "--at", at, *where, *words]
    done = subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL, timeout=60, check=False)
    assert done.returncode == -9, (at, done.returncode, done.stderr)


def passed_by(work: Callable[[], object]) -> list[str]:
    """The points that some work comes by, each time numbered: ``layer.renamed:2``."""
    hits: list[str] = []
    with recording(hits):
        work()
    return [f"{point}:{hits[: number + 1].count(point)}" for number, point in enumerate(hits)]


def killed(
    filled: orlop.Store,
    dirs: StoreDirs,
    workdir: Path,
    other: StoreDirs,
    *,
    choose: Callable[[list[str]], list[str]],
    until: float = float("inf"),
) -> int:
    """Kill backups and restores at points, until a time (monotonic) comes; returns at how many."""
    target = workdir / "backup.tar"
    trials = 0
    for at in choose(passed_by(lambda: backup(filled, target, content=True))):
        target.unlink()
        die(at, dirs, "backup", "--content", target)
        if not target.exists():
            backup(filled, target, content=True)
        assert filled.check().clean, at
        trials += 1
    target.unlink()
    backup(filled, target, content=True)
    orlop.open(other.root, other.run).close()
    third = StoreDirs(root=workdir / "third/root", run=workdir / "third/run", work=workdir)
    orlop.open(third.root, third.run).close()
    for at in choose(passed_by(lambda: read_back(target, third))):
        if time.monotonic() > until:
            break
        die(at, other, "restore", target)
        with orlop.open(other.root, other.run) as store:
            assert store.check(full=True).clean, at
            assert len(store.images()) in {0, 3}, at
            read_back(target, other)
            assert identities(store) == identities(filled), at
            for info in store.images():
                store.remove(info.name)
            store.collect()
        trials += 1
    return trials


def test_a_backup_or_a_restore_that_is_killed_leaves_nothing_half(
    filled: orlop.Store, store_dirs: StoreDirs, workdir: Path, other: StoreDirs
) -> None:
    chosen = random.Random(4)
    trials = killed(filled, store_dirs, workdir, other, choose=lambda points: chosen.sample(points, 2))
    assert trials == 4


@pytest.mark.soak
def test_a_backup_or_a_restore_can_be_killed_at_every_point(
    filled: orlop.Store, store_dirs: StoreDirs, workdir: Path, other: StoreDirs, soak_seconds: float
) -> None:
    """About 65 points; as many of them as there is time for, in another order each time."""
    chosen = random.Random()
    until = time.monotonic() + soak_seconds
    killed(
        filled,
        store_dirs,
        workdir,
        other,
        choose=lambda points: chosen.sample(points, len(points)),
        until=until,
    )


# ------------------------------------------------------------------ without root


def test_a_user_without_root_backs_up_and_restores(workdir: Path) -> None:
    user = users.make(workdir / "user", "plain")
    layout = images.write_layout(user.home / "layout", {"latest": images.make_image([base().tar()])})
    user.orlop("import", "-q", "--name", "localhost/base", layout, check=True)
    target = user.home / "b.tar"
    user.orlop("backup", "-q", "--content", target, check=True)
    new = ["--root", user.home / "new", "--run", user.runtime / "new"]
    restored = user.orlop(*new, "restore", "-q", target, check=True)
    assert restored.stdout == "localhost/base:latest\n"
    user.orlop(*new, "check", "--full", check=True)
    assert target.stat().st_uid == (user.home / "new/meta.db").stat().st_uid == users.UID
