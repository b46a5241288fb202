"""`orlop doctor` on machines that are not as they should be: real disks, users, stores, registries, daemons."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from conftest import StoreDirs
from orlop.config import Configuration, Settings
from orlop.diagnosis.daemons import check_daemon
from orlop.diagnosis.findings import Subject, problem
from orlop.diagnosis.stores import check_store
from support import disks, full, users
from support.daemons import Crew, daemon
from support.images import make_image, push
from support.layers import Layer
from support.registries import Registry

# A machine may be slow; and nothing is reached that its own files name.
PATIENT = ("--timeout", "60s")
ALONE = ("--set", "registries_conf=", "--set", "hosts_dirs=", "--set", f"auth_files={os.devnull}")
Run = Callable[..., subprocess.CompletedProcess[str]]


def found(done: subprocess.CompletedProcess[str]) -> dict[str, tuple[str, str]]:
    """The worst state of each check, and its text."""
    order = ("ok", "note", "problem")
    worst: dict[str, tuple[str, str]] = {}
    for one in json.loads(done.stdout):
        assert one["advice"] or one["state"] != "problem", one
        if order.index(one["state"]) >= order.index(worst.get(one["check"], ("ok", ""))[0]):
            worst[one["check"]] = (one["state"], one["text"])
    assert done.returncode == (5 if any(state == "problem" for state, _ in worst.values()) else 0), (
        done.stderr
    )
    return worst


def subject_of(store_dirs: StoreDirs) -> Subject:
    """For a check without the verb, which takes a process."""
    return Subject(
        root=str(store_dirs.root),
        run=str(store_dirs.run),
        settings=Settings(),
        configuration=Configuration(),
        environ=os.environ,
        uid=0,
        timeout=60.0,
    )


@pytest.mark.root
def test_a_store_that_is_well_is_found_to_be_so_and_its_registry_is_looked_at(
    run_cli: Run, registry: Registry, store_dirs: StoreDirs
) -> None:
    run_cli("--insecure-registry", registry.host, "images", check=True)
    push(registry, "doctor/a", "1", make_image([Layer().file("a", b"a").tar()]))
    run_cli("--insecure-registry", registry.host, "pull", f"{registry.host}/doctor/a:1", check=True)
    before = {path: path.stat().st_mtime_ns for path in store_dirs.root.rglob("*") if path.is_dir()}
    seen = found(run_cli(*ALONE, "doctor", *PATIENT, "--json"))
    assert seen["folders.root"][0] == "ok"
    assert seen["folders.file-system"] == ("ok", f"the store lies on ext4 at {store_dirs.root.parents[1]}")
    assert "folders.journal" not in seen
    assert seen["machine.driver-erofs"][0] == seen["machine.driver-native"][0] == "ok"
    assert seen["store.database"] == ("ok", "the database is whole: 1 images, 1 layers, 0 prepared roots")
    assert seen["store.leftovers"][0] == "ok"
    assert seen[f"registries.{registry.host}"][0] == "ok"
    assert seen[f"registries.{registry.host}.login"][0] == "ok"
    # Drivers were tried in one of them, and nothing else was touched
    changed = {path.name for path, at in before.items() if path.stat().st_mtime_ns != at}
    assert changed <= {"folders"}
    assert not os.listdir(store_dirs.root / "folders")


@pytest.mark.root
def test_damage_of_a_store_is_a_problem(run_cli: Run, store_dirs: StoreDirs) -> None:
    run_cli("images", check=True)
    with sqlite3.connect(store_dirs.root / "meta.db") as database:
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        database.execute("INSERT INTO unsynced VALUES ('another boot')")
        database.execute("ALTER TABLE pins RENAME TO nips")
    database.close()
    state, text = found(run_cli("doctor", "--offline", "--json"))["store.database"]
    assert (state, "pins" in text) == ("problem", True)
    with sqlite3.connect(store_dirs.root / "meta.db") as database:
        database.execute("ALTER TABLE nips RENAME TO pins")
    database.close()
    subject = subject_of(store_dirs)
    assert {one.check: one.state for one in check_store(subject)}["store.unsynced"] == "problem"
    os.chmod(store_dirs.root, 0o755)
    (store_dirs.root / "trash" / "left").mkdir()
    with open(store_dirs.root / "meta.db", "r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * 8192)
    seen = found(run_cli("doctor", "--offline", "--json"))
    assert [seen[name][0] for name in ("folders.root", "store.database", "store.leftovers")] == [
        "problem",
        "problem",
        "note",
    ]
    os.remove(store_dirs.root / "format.json")
    assert next(iter(check_store(subject))) == problem(
        "store.format",
        f"{store_dirs.root} is not empty and not a store: it holds '{min(os.listdir(store_dirs.root))}'",
        "choose an empty folder, or one that does not exist",
    )


@pytest.mark.root
def test_a_small_disk_that_is_full_or_read_only_and_one_in_memory_are_told(tmp_path: Path) -> None:
    memory = tmp_path / "memory"
    memory.mkdir()
    with disks.disk(size=48 << 20) as mounted:
        full.fill(mounted / "filler", leave=4)
        seen = found(_doctor(mounted / "root", tmp_path / "run"))
        assert seen["folders.space"][0] == "problem"
        os.remove(mounted / "filler")
        made = [
            sys.executable,
            "-m",
            "orlop",
            "--root",
            mounted / "root",
            "--run",
            tmp_path / "run",
            "images",
        ]
        subprocess.run(made, stdin=subprocess.DEVNULL, capture_output=True, timeout=120, check=True)
        subprocess.run(["mount", "-o", "remount,ro", mounted], check=True, timeout=60)
        seen = found(_doctor(mounted / "root", tmp_path / "run"))
        assert (seen["folders.file-system"][0], seen["store.database"][0]) == ("problem", "ok")
    subprocess.run(["mount", "-t", "tmpfs", "-o", "noexec", "orlop-test", memory], check=True, timeout=60)
    try:
        seen = found(_doctor(memory / "root", tmp_path / "run"))
        assert [seen[name][0] for name in ("folders.file-system", "folders.noexec")] == ["note", "note"]
        assert "tmpfs" in seen["folders.file-system"][1]
    finally:
        disks.end(memory)


def _doctor(root: Path, run: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "orlop", "--root", root, "--run", run, "doctor", "--offline", "--json"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.root
@pytest.mark.any_kernel
@pytest.mark.parametrize("mode", ["single", "plain"])
def test_a_user_is_told_what_he_may_do_and_what_would_give_him_more(workdir: Path, mode: users.Mode) -> None:
    user = users.make(workdir / "user", mode)
    config = user.home / ".config" / "orlop" / "config.toml"
    config.parent.mkdir(parents=True)
    config.write_text("downloads = 6\n")
    config.chmod(0o600)  # root's: it cannot be read
    for folder in (config.parents[1], config.parent):
        os.chown(folder, users.UID, users.GID)
    done = user.orlop("doctor", "--offline", "--json")
    seen = found(done)
    assert seen["configuration.file"][0] == "problem"
    assert seen["machine.driver-native"][0] == "ok"
    assert seen["machine.driver-erofs"][0] == "note"
    assert seen["folders.root"][0] == "ok"
    assert not os.listdir(user.data), "nothing is made by looking"
    advice = {one["check"]: one["advice"] for one in json.loads(done.stdout)}
    if mode == "plain":
        assert seen["privilege.namespaces"][0] == "note"
    else:
        assert seen["privilege.namespaces"][0] == seen["machine.driver-overlay"][0] == "ok"
        assert seen["privilege.subordinate-ids"][0] == "note"
        assert "usermod --add-subuids" in advice["privilege.subordinate-ids"]


@pytest.mark.root
def test_a_daemon_is_asked_for_what_is_its_own(store_dirs: StoreDirs, workdir: Path) -> None:
    socket = store_dirs.run / "socket" / "orlop.sock"
    with (
        Crew(workdir / "crew") as crew,
        daemon(crew, store_dirs.root, store_dirs.run, socket=socket) as address,
    ):
        done = subprocess.run(
            [sys.executable, "-m", "orlop", "--host", address, "doctor", "--offline", "--json", *PATIENT],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        seen = found(done)
        for name in ("answer", "version", "store", "driver-erofs", "mount-namespace"):
            assert seen[f"daemon.{name}"][0] == "ok", seen
        assert not any(name.startswith(("folders", "store", "machine")) for name in seen)
        beside = next(iter(check_daemon(subject_of(store_dirs))))  # found by RUN's socket
        assert (beside.check, beside.state) == ("daemon.answer", "ok")


@pytest.mark.root
def test_info_tells_the_rest_where_a_part_cannot_be_found_out(run_cli: Run, store_dirs: StoreDirs) -> None:
    run_cli("images", check=True)
    about = json.loads(run_cli("info", "--json", check=True).stdout)
    assert about["disk"]["type"] == "ext4"
    assert about["disk"]["journal"] is True
    assert {one["key"] for one in about["configuration"]} == {"root", "run"}
    assert about["versions"]["python"]
    assert {one["name"] for one in about["helpers"]} >= {"crun", "newuidmap"}
    (store_dirs.root / "meta.db").write_bytes(b"no database" * 1000)
    done = run_cli("info", "--json")
    told = json.loads(done.stdout)
    assert done.returncode == 9
    assert "store" in told["unknown"]
    assert told["disk"]["type"] == "ext4"
    assert "meta.db" in done.stderr
