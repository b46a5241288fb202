"""A store that somebody got at, or tries to: HOSTILE.md's rows 32, 33 and 36, and links planted in its place."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import orlop
from conftest import StoreDirs
from orlop.linux import mountinfo
from orlop.testing.registry import MemoryRegistry
from support import images
from support.layers import Layer
from support.trees import differences, snapshot

pytestmark = pytest.mark.root

NOBODY: dict[str, Any] = {"user": 65534, "group": 65534, "extra_groups": []}


@pytest.fixture
def store(store_dirs: StoreDirs) -> Iterator[orlop.Store]:
    with orlop.open(store_dirs.root, store_dirs.run) as opened:
        yield opened
        for root in opened.prepared():
            opened.get(root.path).cleanup()


@pytest.fixture
def image(store: orlop.Store, workdir: Path) -> str:
    tar = Layer().folder("bin").file("bin/su", b"#!/bin/sh\n", mode=0o4755).file("motd", b"hello\n").tar()
    layout = images.write_layout(workdir / "layout", {"latest": images.make_image([tar])})
    return store.load(layout, name="localhost/setuid").pop().name


# ---------------------------------------------------------------------- 32


@pytest.mark.hostile(32)
@pytest.mark.parametrize("driver", ["erofs", "overlay", "native"])
def test_nobody_else_reaches_a_set_user_id_file_of_an_image(
    store: orlop.Store, image: str, store_dirs: StoreDirs, driver: str
) -> None:
    for folder in (store_dirs.root.parent, store_dirs.work):
        folder.chmod(0o755)
    store.prepare(image, store_dirs.work / "view", driver=driver, view=True)  # type: ignore[arg-type]
    store.prepare(image, store_dirs.work / "active", driver=driver)  # type: ignore[arg-type]
    found = [
        path
        for top in (store_dirs.root, store_dirs.run)
        for path in (Path(folder) / name for folder, _, names in os.walk(top) for name in names)
        if path.name == "su" and path.stat().st_mode & 0o4000
    ]
    assert found
    for path in found:
        assert subprocess.run(["test", "-e", path], check=False, **NOBODY).returncode == 1, path
        with pytest.raises(PermissionError):
            subprocess.run([path], capture_output=True, check=False, **NOBODY)
    for entry in mountinfo.mount_table():
        if entry.target.startswith(os.fsencode(store_dirs.run)):
            assert os.statvfs(entry.target).f_flag & os.ST_NOSUID


# ---------------------------------------------------------------------- 33


@pytest.mark.hostile(33)
def test_of_many_who_want_one_path_one_gets_it(store_dirs: StoreDirs, store: orlop.Store, image: str) -> None:
    place = store_dirs.work / "one"
    barrier = threading.Barrier(6)

    def prepare(_: int) -> bool:
        with orlop.open(store_dirs.root, store_dirs.run) as own:
            barrier.wait(30)
            try:
                own.prepare(image, place)
            except orlop.AlreadyExists:
                return False
            return True

    with ThreadPoolExecutor(6) as pool:
        assert sorted(pool.map(prepare, range(6))) == [False] * 5 + [True]
    assert len(list((store_dirs.root / "prepared").iterdir())) == 1


@pytest.mark.hostile(33)
def test_a_folder_swapped_for_a_link_while_it_is_committed_gives_nothing_away(
    store: orlop.Store, image: str, store_dirs: StoreDirs
) -> None:
    secret = store_dirs.root.parent / "secret"
    secret.mkdir()
    (secret / "file").write_bytes(b"the host's own secret\n")
    place = store_dirs.work / "swapped"
    root = store.prepare(image, place)
    root.mount()
    (place / "folder").mkdir()
    (place / "folder" / "file").write_bytes(b"the container's\n")
    (place / "link").symlink_to(secret)
    stop = threading.Event()

    def swap() -> None:
        while not stop.is_set():
            for source, target in (
                ("folder", "aside"),
                ("link", "folder"),
                ("folder", "link"),
                ("aside", "folder"),
            ):
                os.rename(place / source, place / target)

    swapping = threading.Thread(target=swap)
    swapping.start()
    committed = []
    try:
        for number in range(8):
            try:
                committed.append(root.commit(f"localhost/swapped:{number}").name)
            except orlop.FailedPrecondition:
                continue  # it changed while it was read
    finally:
        stop.set()
        swapping.join(30)
    layers = list((store_dirs.root / "layers").glob("*/layer.tar"))
    assert not [path for path in layers if b"the host's own secret" in path.read_bytes()]
    assert store.check(full=True).clean


# ---------------------------------------------------------------------- 36

ODD = ["a:b", "a,b", "a\\b", "a b", 'a"b', "a\tb", "a\\:b", "lowerdir=x,upperdir=y", "#a", "-o"]


@pytest.mark.hostile(36)
@pytest.mark.parametrize("driver", ["erofs", "overlay"])
def test_a_path_of_any_characters_is_mounted_and_nothing_else(
    store: orlop.Store, image: str, store_dirs: StoreDirs, driver: str
) -> None:
    for name in ODD:
        place = store_dirs.work / name
        root = store.prepare(image, place, driver=driver)  # type: ignore[arg-type]
        root.mount()
        assert (place / "motd").read_text() == "hello\n"
        assert os.path.ismount(place)
        root.cleanup()
        assert not os.path.ismount(place)
    assert store.check().clean


@pytest.mark.hostile(36)
@pytest.mark.parametrize("name", ["a:b", "a,b", "a\\b", "a b", 'a"b', "a\nb"])
def test_a_store_is_not_made_where_options_would_need_to_be_escaped(workdir: Path, name: str) -> None:
    for root, run in ((workdir / name, workdir / "run"), (workdir / "root", workdir / name)):
        with pytest.raises(orlop.InvalidArgument, match="comma, colon"):
            orlop.open(root, run)
    assert list(workdir.iterdir()) == []


# ---------------------------------------------------------------------- links planted


FOLDERS = [
    "layers",
    "chains",
    "folders",
    "prepared",
    "trash",
    "empty",
    "locks",
    "content",
    "content/blobs",
    "content/ingest",
]


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_store_with_a_link_in_the_place_of_a_folder_is_refused_and_nothing_behind_it_touched(
    store_dirs: StoreDirs, store: orlop.Store, image: str, folder: str
) -> None:
    store.prepare(image, store_dirs.work / "one").cleanup()
    victim = store_dirs.root.parent / "victim"
    place = store_dirs.root / folder
    with orlop.open(store_dirs.root, store_dirs.run):
        pass
    os.rename(place, victim)
    (victim / "precious").mkdir()
    (victim / "precious" / "file").write_text("not yours\n")
    before = snapshot(victim)
    place.symlink_to(victim)
    try:
        with pytest.raises(orlop.FailedPrecondition, match="not a folder"):
            orlop.open(store_dirs.root, store_dirs.run)
        assert not differences(before, snapshot(victim))
    finally:
        place.unlink()
        os.rename(victim, place)


def test_a_document_that_is_a_link_is_not_written_through(workdir: Path, store_dirs: StoreDirs) -> None:
    made = images.make_image([Layer().file("motd", b"hello\n").tar()])
    victim = workdir / "victim"
    victim.write_text("not yours\n")
    with MemoryRegistry() as registry:
        for blob in made.blobs.values():
            registry.add_blob("app", blob)
        registry.add_manifest("app", "v1", made.document, made.media_type)
        settings = orlop.Settings(insecure_registries=(registry.host,))
        with orlop.open(store_dirs.root, store_dirs.run, settings=settings) as store:
            store.pull(f"{registry.host}/app:v1")
            for digest in (made.digest, made.id):
                path = store_dirs.root / "content" / "blobs" / digest.replace(":", "/")
                path.unlink()
                path.symlink_to(victim)
            store.pull(f"{registry.host}/app:v1")
            assert victim.read_text() == "not yours\n"
            assert store.check(full=True).clean
