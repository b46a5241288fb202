"""Checking and mending: every damage of the table is found, is called by its name, and is mended or set aside."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import random
import shutil
import stat
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

import orlop
from orlop.errors import Cancelled, DataLoss, InvalidArgument, NotFound, ResourceExhausted
from orlop.images.checking.deep import Meter
from orlop.images.checking.repair import Mender
from orlop.images.store import LocalStore
from orlop.images.upkeep import Checked
from orlop.linux.mount import umount
from orlop.observe import Call, CancelToken
from orlop.spec.digest import DiffID, Digest
from orlop.testing.registry import MemoryRegistry
from support import disks, images, users
from support.damages import DAMAGES, MINE, Bench, Damage, flip, in_folder, look
from support.full import Faults
from support.layers import Layer
from support.trees import differences, snapshot
from support.users import Mode

pytestmark = pytest.mark.root

BY_NAME = {damage.name: damage for damage in DAMAGES}
LEFT_WARNINGS = {"set-aside"}  # what a repair leaves to be looked at


@pytest.fixture(scope="module")
def memory() -> Iterator[MemoryRegistry]:
    with MemoryRegistry() as registry:
        yield registry


@pytest.fixture(scope="module")
def original(lab: Path, memory: MemoryRegistry) -> Iterator[Bench]:
    """The store that every test gets a copy of."""
    folder = lab / "damages"
    folder.mkdir()
    try:
        yield Bench.build(folder, memory)
    finally:
        disks.remove(folder)


@pytest.fixture
def bench(original: Bench, workdir: Path) -> Bench:
    return original.copy(workdir / "store")


def found(checked: Checked, *kinds: str) -> set[tuple[str, str]]:
    """Problem and thing of the findings of some kinds."""
    return {(finding.problem, finding.thing) for finding in checked.findings if finding.kind in kinds}


def found_nothing(checked: Checked) -> bool:
    """Nothing but what a repair has set aside."""
    return {finding.problem for finding in checked.findings} <= LEFT_WARNINGS


def actions(checked: Checked) -> set[str]:
    return {finding.action for finding in checked.findings if finding.kind == "damage"}


def tree(bench: Bench, *, but: tuple[str, ...] = ()) -> dict[bytes, object]:
    """The store's folder, but for what any use of it touches."""
    left_out = (b"locks", b"meta.db", b"reserve", *map(os.fsencode, but))
    every = snapshot(bench.root)
    return {
        path: replace(entry, mtime_ns=0) if entry.kind == "folder" else entry
        for path, entry in every.items()
        if path and not path.startswith(left_out)
    }


# ---------------------------------------------------------------------- the table


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.name)
def test_damage_is_found_by_its_name_and_mended_or_set_aside(bench: Bench, damage: Damage) -> None:
    thing = damage.thing(bench)
    image = damage.image(bench)
    if not damage.live:
        damage.do(bench)
    with bench.open() as store:
        if damage.live:
            damage.do(bench)
        expected = {(damage.problem, thing)}
        quick = store.check()
        assert found(quick, damage.kind) == (expected if damage.quick else set())
        assert damage.quick is (damage.kind == "damage" and not quick.sound) or damage.kind != "damage"

        away = bench.root.parent / "away"
        elsewhere = snapshot(away) if away.exists() else {}

        mended = store.check(full=not damage.quick, repair=True)

        assert found(mended, damage.kind) == expected
        if damage.kind != "damage":
            assert mended.clean
            assert found(store.check(), damage.kind) == expected
            return
        assert {finding.problem for finding in mended.findings} <= {damage.problem, *LEFT_WARNINGS}
        assert actions(mended) == {damage.action}
        again = store.check(full=True)
        assert not away.exists() or not differences(elsewhere, snapshot(away))  # no link was followed
        if damage.action in {"failed", "quarantined"}:
            assert not mended.sound
            assert not again.clean
            assert image in {info.name for info in store.images()}
            return
        assert mended.sound
        assert found(again, "damage", "leftover") == set()
        assert {finding.problem for finding in again.findings} <= LEFT_WARNINGS
        assert not differences(bench.trees[image], look(store, image, bench.work / "look"))


# ---------------------------------------------------------------------- any bit of any file


def rot(bench: Bench, chance: random.Random) -> Path:
    """Some bits of a file of the store, chosen by chance, become others; or the file is cut, or goes."""
    tops = [bench.root / name for name in ("layers", "chains", "content/blobs", "folders")]
    files = [
        Path(folder) / name
        for top in tops
        for folder, _, names in os.walk(top)
        for name in names
        if stat.S_ISREG(os.lstat(Path(folder) / name).st_mode)
    ]
    path = chance.choice(sorted(files))
    size = path.stat().st_size
    what = chance.random()
    if what < 0.1 or not size:
        path.unlink()
    elif what < 0.2:
        os.truncate(path, chance.randrange(size))
    else:
        flip(path, chance.randrange(size))
    return path


def decay(original: Bench, folder: Path, seed: int) -> str:
    """One trial: all that is spoilt is found and mended or set aside, and images that are listed as sound are."""
    chance = random.Random(seed)
    bench = original.copy(folder)
    spoilt = {rot(bench, chance).relative_to(bench.root) for _ in range(chance.choice((1, 1, 1, 2, 5)))}
    said = f"seed {seed}: {sorted(map(str, spoilt))}"
    with bench.open() as store:
        found_first = store.check(full=True)
        assert not found_first.sound, said
        mended = store.check(full=True, repair=True)
        last = store.check(full=True)
        assert last.clean is mended.sound, f"{said}: {last.findings}"
        ill = {name for finding in last.findings if finding.kind == "damage" for name in finding.affects}
        for name in bench.trees:
            assert name in {info.name for info in store.images()}, said
            if name not in ill:
                shown = look(store, name, bench.work / "look")
                assert not differences(bench.trees[name], shown), said
    return "sound" if mended.sound else "damaged"


@pytest.mark.parametrize("seed", range(5))
def test_rot_anywhere_is_found_and_never_shown(original: Bench, workdir: Path, seed: int) -> None:
    decay(original, workdir / "store", seed)


@pytest.mark.soak
def test_rot_anywhere_is_found_and_never_shown_for_long(
    original: Bench, workdir: Path, soak_seconds: float
) -> None:
    end = time.monotonic() + soak_seconds
    ended: Counter[str] = Counter()
    for seed in itertools.count(1_000):
        if time.monotonic() > end:
            break
        ended[decay(original, workdir / "store", seed)] += 1
        disks.remove(workdir / "store")
    print(f"\n{ended.total()} trials of rot: {dict(ended)}")  # noqa: T201 - the count is the result


# ---------------------------------------------------------------------- never worse than before


def test_repair_of_a_sound_store_changes_nothing(bench: Bench) -> None:
    before = tree(bench)
    with bench.open() as store:
        checked = store.check(full=True, repair=True)
        assert (checked.images, checked.layers, checked.roots) == (3, 5, 2)
        assert checked.findings == ()
        assert store.check(full=True, repair=True).findings == ()
    assert not differences(before, tree(bench))


def test_while_the_registry_is_away_nothing_is_given_up(bench: Bench, memory: MemoryRegistry) -> None:
    away = replace(bench, host="127.0.0.1:1")
    bench.sql("UPDATE blob_sources SET registry = '127.0.0.1:1'")
    bench.sql("UPDATE images SET name = replace(name, ?, '127.0.0.1:1')", values=(memory.host,))
    flip(bench.tar(bench.app_layers[0]))
    bench.blob(bench.configs[bench.app]).unlink()
    before = tree(bench, but=("content/ingest",))
    with orlop.open(
        away.root, away.run, settings=orlop.Settings(insecure_registries=(away.host,), retries=0, timeout=2)
    ) as store:
        checked = store.check(full=True, repair=True)
        assert found(checked, "damage") == {
            ("wrong-digest", f"layer {bench.app_layers[0]}"),
            ("missing", f"blob {bench.configs[bench.app]}"),
        }
        assert actions(checked) == {"failed"}
        assert not checked.sound
    assert not differences(before, tree(bench, but=("content/ingest",)))


def test_a_lost_layer_keeps_the_name_says_so_and_a_pull_heals_it(
    bench: Bench, memory: MemoryRegistry
) -> None:
    blob = bench.ask("SELECT digest FROM layer_blobs WHERE diff_id = ?", bench.kept_layer)
    bench.blob(blob).unlink()
    bench.sql("DELETE FROM blobs WHERE digest = ?", values=(blob,))
    flip(bench.tar(bench.kept_layer))
    rotten = bench.tar(bench.kept_layer).read_bytes()
    data = memory.blobs.pop(blob)
    try:
        with bench.open() as store:
            checked = store.check(full=True, repair=True)
            assert {
                (finding.problem, finding.action) for finding in checked.findings if finding.kind == "damage"
            } == {("wrong-digest", "quarantined")}
            (finding,) = (finding for finding in checked.findings if finding.kind == "damage")
            assert finding.affects == (bench.kept,)
            (cell,) = (bench.root / "quarantine").iterdir()
            assert (cell / bench.layer(bench.kept_layer).name / "layer.tar").read_bytes() == rotten
            assert "digest" in (cell / "why").read_text()

            assert bench.kept in {info.name for info in store.images()}
            with pytest.raises(DataLoss) as caught:
                store.prepare(bench.kept, bench.work / "lost")
            assert bench.kept_layer in caught.value.reason
            assert f"orlop pull {bench.kept}" in caught.value.hint
            again = store.check()
            assert found(again, "damage") == {("missing", f"layer {bench.kept_layer}")}
            assert not store.check(repair=True).sound

            memory.blobs[blob] = data
            store.pull(bench.kept)
            assert store.check(full=True).clean
            assert not differences(bench.trees[bench.kept], look(store, bench.kept, bench.work / "look"))
    finally:
        memory.blobs[blob] = data


@pytest.mark.parametrize("kind", ["image", "layer"])
def test_what_only_a_pin_keeps_is_not_given_up_in_silence(bench: Bench, kind: str) -> None:
    with bench.open() as store:
        store.pin(MINE if kind == "image" else bench.mine_layer, "kept")
        store.remove(MINE)
        flip(bench.tar(bench.mine_layer))
        mended = store.check(full=True, repair=True)
        assert actions(mended) == {"quarantined"}
        assert {"pin kept"} <= {one for finding in mended.findings for one in finding.affects}
        again = store.check()
        assert found(again, "damage") == {("missing", f"layer {bench.mine_layer}")}
        store.unpin("kept")
        store.collect()
        assert found(store.check(full=True), "damage") == set()


def test_the_disk_of_a_root_that_was_cut_is_found_and_left(bench: Bench) -> None:
    with bench.open() as store:
        store.prepare(bench.app, bench.work / "quota", quota=8 << 20)
        disk = bench.prepared(str(bench.work / "quota")) / "disk.img"
        assert store.check().clean
        for mount in (bench.run / "disks").iterdir():
            umount(mount, detach=True)
        os.truncate(disk, 4096)
        checked = store.check(repair=True)
        assert found(checked, "damage") == {("wrong-size", f"root {bench.work / 'quota'}")}
        assert actions(checked) == {"failed"}
        assert disk.stat().st_size == 4096
        store.verbs.cleanup(str(bench.work / "quota"))  # as the finding says
        assert store.check().clean


def test_what_a_prepared_root_stands_on_stays_though_nobody_can_give_it_again(bench: Bench) -> None:
    with bench.open() as store:
        root = store.prepare(MINE, bench.work / "mine", pull="never")
        flip(bench.tar(bench.mine_layer))
        before = tree(bench)
        checked = store.check(full=True, repair=True)
        assert actions(checked) == {"failed"}
        assert str(root.path) in checked.findings[0].detail
        assert not differences(before, tree(bench))
        root.mount()
        assert (bench.work / "mine" / "written").exists()
        root.cleanup()


def test_a_root_in_use_goes_on_while_what_it_stands_on_is_made_anew(bench: Bench) -> None:
    with bench.open() as store:
        root = store.get(bench.active)
        root.mount()
        place = Path(bench.active)
        original = bench.chain(bench.app).read_bytes()
        before = snapshot(place)
        bench.chain(bench.app).unlink()
        bench.index(bench.app_layers[0]).unlink()
        checked = store.check(repair=True)
        assert actions(checked) == {"rebuilt"}
        assert bench.chain(bench.app).read_bytes() == original
        (place / "more").write_text("written meanwhile\n")
        root.unmount()
        root.mount()
        assert (place / "more").read_text() == "written meanwhile\n"
        (place / "more").unlink()
        assert not differences(before, snapshot(place), ignore_mtime_of=(b"",))
        root.unmount()


@pytest.mark.parametrize("mapped", [False, True])
def test_what_is_prepared_or_mounted_after_a_repair_shows_what_was_mended(bench: Bench, mapped: bool) -> None:
    """A mount of a chain goes on reading the files that it was made of."""
    maps = (orlop.IdMap(inside=0, outside=100_000, size=65_536),) if mapped else ()
    with bench.open() as store:
        roots = [
            store.prepare(bench.app, bench.work / f"root{n}", mount=not n, uid_map=maps, gid_map=maps)
            for n in range(2)
        ]
        tar = bench.tar(bench.app_layers[-1])
        flip(tar, tar.read_bytes().index(b"d" * 7000) + 100)
        checked = store.check(full=True, repair=True)
        assert actions(checked) == {"fetched"}
        assert "until mounted anew" in checked.findings[0].detail
        roots.append(store.prepare(bench.app, bench.work / "root2", uid_map=maps, gid_map=maps))
        roots[0].unmount()
        for root in roots:
            root.mount()
            assert (Path(root.path) / "srv/data").read_bytes() == b"d" * 7000
            root.unmount()
        for root in roots:
            root.cleanup()
        assert found(store.check(full=True), "damage", "leftover") == set()


def test_a_folder_in_use_is_not_touched(bench: Bench) -> None:
    with bench.open() as store:
        root = store.get(bench.stacked)
        root.mount()
        shutil.rmtree(bench.root / "folders" / bench.folder / "srv", ignore_errors=True)
        (bench.root / "folders" / bench.folder / "etc" / "motd").unlink()
        checked = store.check(full=True, repair=True)
        assert actions(checked) == {"failed"}
        assert (bench.root / "folders" / bench.folder / "usr").is_dir()
        root.unmount()
        assert actions(store.check(full=True, repair=True)) == {"rebuilt"}
        root.mount()
        assert (Path(bench.stacked) / "etc" / "motd").read_text() == "hello again\n"
        root.unmount()


# ---------------------------------------------------------------------- while the store is in use


def test_what_is_being_made_or_deleted_is_no_finding(bench: Bench) -> None:
    with bench.open() as store:
        assert isinstance(store.verbs, LocalStore)
        core = store.verbs._core
        shutil.rmtree(bench.layer(bench.kept_layer))
        with core.locked("layer", bench.kept_layer.partition(":")[2], call=Call(), attempted="test"):
            assert store.check().findings == ()
        assert found(store.check(), "damage") == {("missing", f"layer {bench.kept_layer}")}


def test_checks_beside_pulls_prepares_removals_and_collections_find_nothing(
    bench: Bench, memory: MemoryRegistry
) -> None:
    image = images.make_image(
        [Layer().file("data", os.urandom(200_000)).tar(), Layer().file("x", b"y").tar()]
    )
    for blob in image.blobs.values():
        memory.add_blob("churn", blob)
    memory.add_manifest("churn", "v1", image.document, image.media_type)
    name = f"{memory.host}/churn:v1"
    ended = threading.Event()
    failures: list[BaseException] = []

    def churn() -> None:
        try:
            with bench.open() as own:
                for number in range(6):
                    place = bench.work / f"churn{number}"
                    root = own.prepare(name, place, driver=("erofs", "overlay")[number % 2])
                    root.cleanup()
                    own.remove(name)
                    own.collect()
        except BaseException as exc:  # noqa: BLE001 - told by the test
            failures.append(exc)
        finally:
            ended.set()

    thread = threading.Thread(target=churn)
    thread.start()
    rounds = 0
    try:
        with bench.open() as store:
            while not ended.is_set() or rounds < 3:
                checked = store.check(full=bool(rounds % 2))
                assert found(checked, "damage", "warning") == set()
                rounds += 1
    finally:
        thread.join(60)
    assert not failures
    assert not thread.is_alive()


def test_two_who_repair_at_once_do_not_undo_one_another(bench: Bench) -> None:
    flip(bench.tar(bench.app_layers[0]))
    bench.index(bench.kept_layer).unlink()
    flip(bench.chain(MINE))
    flip(bench.blob(bench.configs[bench.app]))
    flip(in_folder(bench, "usr/file7"))

    def repair(_: int) -> Checked:
        with bench.open() as own:
            barrier.wait(30)
            return own.check(full=True, repair=True)

    barrier = threading.Barrier(3)
    with ThreadPoolExecutor(3) as pool:
        every = list(pool.map(repair, range(3)))
    assert not [finding for checked in every for finding in checked.findings if finding.open]
    with bench.open() as store:
        assert store.check(full=True).clean
        for name, shown in bench.trees.items():
            assert not differences(shown, look(store, name, bench.work / "look"))


def mender(store: orlop.Store) -> Mender:
    """What mends for a check; its steps one by one, as others' work may come between them."""
    assert isinstance(store.verbs, LocalStore)
    checker = store.verbs._checker
    call = Call()
    return Mender(checker._core, checker._chains, checker._grounds, Meter(None, call), call)


def test_what_another_repair_has_mended_meanwhile_is_not_given_up(bench: Bench) -> None:
    """Of a fetch that fails, and one that does not, the latter counts."""
    config = Digest(bench.configs[MINE])
    with bench.open() as store:
        before = tree(bench)
        layers = mender(store)._layers
        outcome = layers._give_up(DiffID(bench.mine_layer), "it was damaged", "nobody has it", wanted=True)
        assert outcome.action == "fixed"
        assert mender(store).blob(config, "it was damaged").action == "fixed"
        assert not differences(before, tree(bench))
        assert store.check(full=True).clean


def test_a_folder_that_another_repair_has_made_again_stays(bench: Bench) -> None:
    place = bench.root / "folders" / bench.folder
    (place / "etc" / "motd").write_text("HELLO again\n")
    with bench.open() as store:
        own = mender(store)
        found = own._in_use
        own._in_use = lambda path: bool(store.check(full=True, repair=True)) and found(path)  # type: ignore[method-assign]
        assert own.folder(bench.folder, "it was damaged").action == "fixed"
        assert len(list((bench.root / "quarantine").iterdir())) == 1
        assert found_nothing(store.check(full=True))


def test_a_repair_on_a_full_disk_makes_nothing_worse(original: Bench, workdir: Path) -> None:
    """Wherever the disk is full, the next repair finds as much to mend, and mends it."""
    at = 1
    while True:
        bench = original.copy(workdir / f"store{at}")
        bench.index(bench.kept_layer).unlink()
        flip(bench.index(bench.app_layers[0]))
        flip(bench.chain(MINE))
        flip(bench.tar(bench.app_layers[1]))
        with bench.open() as store:
            with Faults(errno.ENOSPC, at=at) as faults, contextlib.suppress(ResourceExhausted):
                store.check(full=True, repair=True)
            for cell in (bench.root / "quarantine").glob("*"):
                assert len(os.listdir(cell)) == 2, cell
            assert store.check(full=True, repair=True).sound
            assert found_nothing(store.check(full=True))
            for name, shown in bench.trees.items():
                assert not differences(shown, look(store, name, bench.work / "look"))
        if not faults.failed:
            return
        at += 7 + at // 4


def test_a_check_ends_when_it_is_cancelled(bench: Bench) -> None:
    class Impatient:
        def __init__(self, token: CancelToken) -> None:
            self.token = token

        def progress(self, event: object) -> None:
            self.token.cancel()

        def warning(self, text: str) -> None:
            pass

    token = CancelToken()
    with bench.open() as store, pytest.raises(Cancelled):
        store.check(full=True, pace=1000, call=Call(observer=Impatient(token), cancel=token))


# ---------------------------------------------------------------------- what is looked at


def test_a_check_of_some_things_looks_at_what_they_need(bench: Bench) -> None:
    with bench.open() as store:
        one = store.check(bench.kept, full=True)
        assert (one.images, one.layers, one.chains, one.roots) == (1, 1, 1, 0)
        root = store.check(bench.active)
        assert (root.images, root.layers, root.roots) == (1, 3, 1)
        assert store.check(f"layer {bench.kept_layer}").layers == 1
        assert store.check(f"chain {bench.chains[MINE]}").chains == 3
        assert store.check(f"blob {bench.configs[MINE]}", bench.kept_layer).blobs == 1
        flip(bench.tar(bench.mine_layer))
        assert store.check(bench.kept, bench.app, full=True).clean
        assert not store.check(MINE, full=True).clean
        with pytest.raises(NotFound):
            store.check("nowhere:v1")
        with pytest.raises(InvalidArgument):
            store.check("no such thing!")


def test_roots_of_every_driver_with_quota_and_mapped_ids_are_sound(bench: Bench) -> None:
    ids = (orlop.IdMap(inside=0, outside=100_000, size=65_536),)
    kinds: dict[str, dict[str, object]] = {
        "native": {"driver": "native"},
        "native-view": {"driver": "native", "view": True},
        "overlay-view": {"driver": "overlay", "view": True},
        "quota": {"quota": 8 << 20},
        "mapped": {"uid_map": ids, "gid_map": ids},
        "whole": {"self_contained": True},
    }
    with bench.open() as store:
        roots = [store.prepare(bench.app, bench.work / name, **kind) for name, kind in kinds.items()]  # type: ignore[arg-type]
        checked = store.check(full=True)
        assert checked.findings == ()
        assert checked.roots == 2 + len(roots)
        for root in roots:
            root.cleanup()


def test_a_root_whose_place_is_gone_is_a_warning(bench: Bench) -> None:
    away = bench.root.parent / "gone"
    away.mkdir()
    with bench.open() as store:
        root = store.prepare(bench.kept, away / "deep")
        away.rmdir()
        checked = store.check()
        assert found(checked, "warning") == {("path-gone", f"root {root.path}")}
        assert checked.clean
        root.cleanup()


def test_a_mount_that_nobody_stands_on_is_left_over(bench: Bench) -> None:
    with bench.open() as store:
        root = store.prepare(bench.kept, bench.work / "one")
        bench.sql("DELETE FROM prepared WHERE path = ?", values=(str(root.path),))
        checked = store.check()
        kinds = {problem for problem, _ in found(checked, "leftover")}
        assert ("idle-mount", f"chain {bench.chains[bench.kept]}") in found(checked, "leftover")
        assert kinds == {"idle-mount", "root"}
        store.collect()
        assert store.check().findings == ()


def test_a_spoilt_page_of_the_metadata_is_found(bench: Bench) -> None:
    page = int(bench.ask("SELECT rootpage FROM sqlite_master WHERE name = 'blobs'"))
    size = int(bench.ask("PRAGMA page_size"))
    with (bench.root / "meta.db").open("r+b") as file:
        file.seek((page - 1) * size)
        file.write(b"\xff" * 64)
    with bench.open() as store:
        checked = store.check(full=True)
        assert {problem for problem, _ in found(checked, "damage")} == {"bad-metadata"}
        assert actions(store.check(full=True, repair=True)) == {"failed"}


def test_an_index_of_the_metadata_that_disagrees_with_its_table_is_built_again(bench: Bench) -> None:
    bench.sql(
        "PRAGMA writable_schema = ON",
        "UPDATE sqlite_master SET sql = 'CREATE INDEX layer_blobs_by_digest ON layer_blobs (media_type)' "
        "WHERE name = 'layer_blobs_by_digest'",
        "PRAGMA writable_schema = RESET",
    )
    with bench.open() as store:
        checked = store.check(full=True, repair=True)
        assert found(checked, "damage") == {("bad-metadata", "metadata")}
        assert actions(checked) == {"fixed"}
        assert store.check(full=True).findings == ()


# ---------------------------------------------------------------------- scrubbing


def test_a_scrub_reads_what_was_read_longest_ago_and_a_bad_layer_does_not_hold_it_up(bench: Bench) -> None:
    bench.sql("UPDATE layers SET created_at = 1, checked_at = 1")
    bench.sql(
        "UPDATE layers SET checked_at = 0, created_at = 0 WHERE diff_id = ?", values=(bench.mine_layer,)
    )
    flip(bench.tar(bench.mine_layer))
    with bench.open() as store:
        assert isinstance(store.verbs, LocalStore)
        first = store.verbs.scrub(budget=1, older=60)
        assert found(first, "damage") == {("wrong-digest", f"layer {bench.mine_layer}")}
        assert first.layers == 1
        rest = store.verbs.scrub(budget=1 << 30, older=60)
        assert (rest.layers, rest.findings) == (4, ())
        assert store.verbs.scrub(budget=1 << 30, older=60).layers == 0
        assert bench.ask("SELECT COUNT(*) FROM layers WHERE checked_at > 1000") == "4"


# ---------------------------------------------------------------------- the command line


def test_the_command_tells_finds_and_mends(bench: Bench, run_cli: Callable[..., object]) -> None:
    import json
    import subprocess
    import sys

    def cli(*args: str) -> subprocess.CompletedProcess[str]:
        where = ["--root", str(bench.root), "--run", str(bench.run), "--insecure-registry", bench.host]
        return subprocess.run(
            [sys.executable, "-m", "orlop", *where, "check", *args],
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=120,
            check=False,
        )

    bench.index(bench.app_layers[0]).unlink()
    done = cli()
    assert done.returncode == 9
    assert "missing" in done.stdout
    assert bench.app_layers[0] in done.stdout
    mended = cli("--repair", "--json")
    assert mended.returncode == 0, mended.stderr
    document = json.loads(mended.stdout)
    assert (document["clean"], document["sound"]) == (False, True)
    assert document["findings"][0]["action"] == "rebuilt"
    last = cli("--full", "--pace", "100M", bench.app)
    assert (last.returncode, last.stdout) == (0, ""), last.stderr
    assert "no damage" in last.stderr


@pytest.mark.any_kernel
@pytest.mark.parametrize("mode", ["subids", "single", "plain"])
def test_a_store_of_a_user_without_root_is_checked_and_mended(workdir: Path, mode: Mode) -> None:
    user = users.make(workdir / "user", mode)
    layer = Layer().folder("bin").file("bin/su", b"x" * 9000, mode=0o4755, uid=3, gid=4)
    layer.device("null", "char", 1, 3).file("etc/motd", b"hello\n").hardlink("etc/again", to="etc/motd")
    layout = images.write_layout(user.home / "layout", {"latest": images.make_image([layer.tar()])})
    for folder, _, names in os.walk(layout):
        for path in (folder, *(os.path.join(folder, name) for name in names)):
            os.chown(path, users.UID, users.GID)
    words = [sys.executable, "-c", WITHOUT_ROOT, os.fspath(layout), os.fspath(user.data / "orlop")]
    if mode != "plain":
        words = [sys.executable, "-m", "orlop", "unshare", *words]
    done = user.run(*words)
    assert done.returncode == 0, done.stdout + done.stderr


WITHOUT_ROOT = """
import pathlib, sys
import orlop

layout, data = map(pathlib.Path, sys.argv[1:])
with orlop.open(data, data.parent / "run") as store:
    name = store.load(layout, name="localhost/a").pop().name
    root = store.prepare(name, data.parent / "root")
    assert store.check(full=True).findings == ()
    (index,) = data.glob("layers/*/layer.index")
    index.write_bytes(b"rubbish")
    assert not store.check().clean
    for motd in data.glob("folders/*/etc/motd"):
        motd.write_bytes(b"HELLO\\n")
    mended = store.check(full=True, repair=True)
    assert {finding.action for finding in mended.findings if finding.kind == "damage"} == {"rebuilt"}, mended
    last = store.check(full=True)
    assert {finding.problem for finding in last.findings} == {"set-aside"}, last
    root.cleanup()
"""
