"""`explain`: who keeps a thing, what it shares, and that what it says would go is what goes."""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

import orlop
from conftest import StoreDirs
from orlop.images.upkeep import Explanation, Usage
from orlop.observe import Call, Progress
from support import images
from support.layers import Layer
from support.registries import Registry

pytestmark = pytest.mark.root

NOTHING = "sha256:" + "0" * 64


def layer(number: int, size: int = 40_000) -> bytes:
    data = bytes((number * 31 + n * n) % 251 for n in range(256)) * (size // 256)
    return Layer().folder("d").file(f"d/{number}", data).tar()


def diff_id(number: int) -> str:
    return images.digest_of(layer(number))


Load = Callable[[str, Sequence[int]], str]


@pytest.fixture
def load(store: orlop.Store, workdir: Path) -> Load:
    def load(name: str, numbers: Sequence[int]) -> str:
        image = images.make_image([layer(number) for number in numbers])
        layout = images.write_layout(workdir / f"layout-{name}", {"latest": image})
        return store.load(layout, name=f"localhost/{name}").pop().name

    return load


def sql(root: Path, query: str, *args: object) -> list[tuple[object, ...]]:
    """What no verb does."""
    with contextlib.closing(sqlite3.connect(root / "meta.db")) as connection:
        found = connection.execute(query, args).fetchall()
        connection.commit()
    return found


def made(found: Usage) -> int:
    """All that is not bookkeeping."""
    return sum(part.size for part in found.parts if part.kind not in {"metadata", "other"})


def kept_by(found: Explanation) -> dict[str, str]:
    return {f"{reason.kind} {reason.name}": reason.note for reason in found.kept_by}


def shared(found: Explanation, name: str) -> set[str]:
    return next(set(part.shared_with) for part in found.parts if part.name == name)


def test_a_layer_is_kept_by_images_roots_pins_and_the_leases_of_the_living(
    store: orlop.Store, load: Load, store_dirs: StoreDirs
) -> None:
    load("a", [0, 1, 2])
    load("b", [0])
    root = str(store_dirs.work / "r")
    store.prepare("localhost/a", root)
    store.pin("localhost/b", "mine", expires=4_000_000_000)
    core = store.verbs._core
    with core.lease("pull something") as lease:
        lease.keep(("layer", diff_id(0)))
        sql(store_dirs.root, "INSERT INTO leases VALUES ('dead', 0, 'pull else', 1)")
        sql(store_dirs.root, "INSERT INTO lease_refs VALUES ('dead', 'layer', ?)", diff_id(0))
        found = store.explain(diff_id(0))
        reasons = kept_by(found)
        assert reasons.pop(f"lease {lease.id}").startswith(f"pull something, process {os.getpid()}, running")
        assert reasons == {
            "image localhost/a:latest": "its layer 1 of 3",
            "image localhost/b:latest": "its layer 1 of 1",
            f"root {root}": "layer 1 of 3: prepared from it",
            "pin mine": "until 2096-10-02T07:06:40Z",
        }
        assert found.frees == 0
        assert {part.kind for part in found.parts} == {"file", "chain"}
        told = store.explain(f"lease {lease.id}")
        assert [part.name for part in told.parts] == [diff_id(0)]
        assert kept_by(store.explain("lease dead")) == {}
    assert "lease" not in {reason.kind for reason in store.explain(diff_id(0)).kept_by}
    assert kept_by(store.explain(f"layer {diff_id(2)}"[:30])) == {
        "image localhost/a:latest": "its layer 3 of 3",
        f"root {root}": "layer 3 of 3: prepared from it",
    }


def test_an_image_says_what_it_shares_with_whom(
    store: orlop.Store, load: Load, store_dirs: StoreDirs
) -> None:
    load("a", [0, 1])
    load("b", [0, 2])
    store.tag("localhost/a", "localhost/more")
    root = str(store_dirs.work / "r")
    store.prepare("localhost/b", root)
    found = store.explain("localhost/more")
    assert kept_by(found) == {
        "image localhost/a:latest": "its name",
        "image localhost/more:latest": "its name",
    }
    assert shared(found, diff_id(0)) == {"localhost/b:latest", root}
    assert shared(found, diff_id(1)) == set()
    assert [part.kind for part in found.parts] == ["config", "manifest", "layer", "layer"]
    assert found.size == sum(part.size for part in found.parts)
    unshared = sum(part.size for part in found.parts if not part.shared_with)
    assert found.frees == unshared > 0
    other = store.explain("localhost/b")
    assert other.frees == 0  # the root needs all of it
    assert kept_by(other)[f"root {root}"] == "prepared from it"
    chain = next(part for part in other.parts if part.kind == "chain")
    assert chain.shared_with == (root,)
    assert kept_by(store.explain(f"chain {chain.name}"))[f"root {root}"] == "stands on it"


def test_what_is_told_to_go_with_a_name_a_root_or_a_pin_is_what_goes(
    store: orlop.Store, load: Load, store_dirs: StoreDirs
) -> None:
    load("a", [0, 1])
    load("b", [0, 2])
    load("c", [3])
    load("d", [4])
    root = str(store_dirs.work / "r")
    store.prepare("localhost/b", root, mount=True)
    (store_dirs.work / "r/new").write_bytes(b"x" * 100_000)
    store.get(root).unmount()
    store.pin("localhost/c", "image")
    store.pin(f"layer {diff_id(4)}", "layer")
    removals: list[tuple[str, Callable[[], object]]] = [
        ("localhost/a", lambda: store.remove("localhost/a")),
        ("localhost/b", lambda: store.remove("localhost/b")),
        ("localhost/c", lambda: store.remove("localhost/c")),
        ("localhost/d", lambda: store.remove("localhost/d")),
        (root, lambda: store.get(root).cleanup()),
        ("pin image", lambda: store.unpin("image")),
        ("pin layer", lambda: store.unpin("layer")),
    ]
    frees: dict[str, int] = {}
    for thing, remove in removals:
        before = made(store.usage())
        frees[thing] = store.explain(thing).frees
        remove()
        store.collect()
        assert before - made(store.usage()) == frees[thing], thing
    assert frees["localhost/b"] == frees["localhost/c"] == 0
    assert 0 < frees["localhost/d"] < frees["localhost/a"]
    assert frees[root] > 100_000 + 2 * 40_000
    assert frees["pin layer"] > 40_000
    assert store.usage().images == ()
    assert store.collect(dry_run=True).items == ()


def test_what_lost_its_last_name_is_explained_until_it_is_collected(
    store: orlop.Store, load: Load, store_dirs: StoreDirs
) -> None:
    load("a", [0, 1])
    load("b", [0])
    root = store.prepare("localhost/a", store_dirs.work / "r", driver="overlay")
    image_id = store.inspect("localhost/a").info.id
    store.remove("localhost/a")
    found = store.explain(image_id[:19])
    assert (found.kind, found.name) == ("image", image_id)
    assert kept_by(found) == {f"root {store_dirs.work}/r": "prepared from it"}
    assert {part.kind for part in found.parts} >= {"config", "manifest", "layer", "chain", "folder"}
    folder = next(part for part in found.parts if part.kind == "folder")
    assert f"root {store_dirs.work}/r" in kept_by(store.explain(f"folder {folder.name}"))
    root.cleanup()
    store.collect()
    load("again", [0, 1])
    sql(store_dirs.root, "DELETE FROM images WHERE name = 'localhost/again:latest'")  # as if it crashed there
    found = store.explain(image_id)
    assert found.kept_by == ()
    assert store.explain(diff_id(1)).kept_by == ()
    assert store.explain(diff_id(1)).frees == store.explain(diff_id(1)).size
    assert kept_by(store.explain(diff_id(0))) == {"image localhost/b:latest": "its layer 1 of 1"}
    before = store.usage()
    assert found.frees == before.reclaimable == store.collect().freed
    with pytest.raises(orlop.NotFound):
        store.explain(image_id)


def test_files_of_the_store_are_explained_by_their_paths(
    store: orlop.Store, load: Load, store_dirs: StoreDirs
) -> None:
    load("a", [0])
    base = store_dirs.root
    store.prepare("localhost/a", store_dirs.work / "r")
    prepared, chain = next((base / "prepared").iterdir()), next((base / "chains").glob("*.erofs"))
    blob = next((base / "content/blobs/sha256").iterdir())
    (prepared / "upper/link").symlink_to("/etc")  # a container's own
    (base / "layers/new-00").mkdir()
    (base / "layers/new-00/layer.tar").write_bytes(b"x" * 10_000)
    for path, thing in (
        (base / "layers" / diff_id(0)[7:] / "layer.tar", f"layer {diff_id(0)}"),
        (prepared / "upper/link/passwd", f"root {store_dirs.work}/r"),
        (chain, f"chain {chain.stem}"),
        (blob, f"blob sha256:{blob.name}"),
        (base / "meta.db", "file meta.db"),
        (base / "layers/new-00", "stray layers/new-00"),
    ):
        found = store.explain(str(path))
        assert f"{found.kind} {found.name}" == thing
    assert store.explain("stray layers/new-00").frees == store.usage().reclaimable > 10_000
    assert store.explain(str(base / "meta.db")).kept_by
    for text in (str(base), str(base / "layers"), "stray ../../etc/passwd", "stray /etc/passwd"):
        with pytest.raises((orlop.InvalidArgument, orlop.NotFound)):
            store.explain(text)
    with pytest.raises(orlop.NotFound):
        store.explain(str(base / "layers/none"))


class Stopped:
    """Lets a pull go on only when it is told to."""

    def __init__(self) -> None:
        self.reached, self.go_on = threading.Event(), threading.Event()

    def progress(self, event: Progress) -> None:
        if event.phase == "done":
            self.reached.set()
            self.go_on.wait(30)

    def warning(self, text: str) -> None:
        pass


def test_what_a_running_pull_has_brought_is_kept_by_it(
    store: orlop.Store, registry: Registry, store_dirs: StoreDirs
) -> None:
    images.push(registry, "explain/pull", "latest", images.make_image([layer(7)]))
    name, watcher = f"{registry.host}/explain/pull", Stopped()
    thread = threading.Thread(target=lambda: store.pull(name, call=Call(observer=watcher)), daemon=True)
    thread.start()
    try:
        assert watcher.reached.wait(30)
        (reason,) = store.explain(diff_id(7)).kept_by
        assert reason.kind == "lease"
        assert f"process {os.getpid()}" in reason.note
        assert store.usage().reclaimable == 0
        assert store.explain(f"lease {reason.name}").frees > 40_000
    finally:
        watcher.go_on.set()
        thread.join(30)
    assert kept_by(store.explain(diff_id(7))) == {f"image {name}:latest": "its layer 1 of 1"}


def test_the_command_line_explains_and_measures(
    store: orlop.Store,
    load: Load,
    store_dirs: StoreDirs,
    run_cli: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    load("a", [0, 1])
    store.prepare("localhost/a", store_dirs.work / "r")
    out = run_cli("explain", store_dirs.work / "r", check=True).stdout
    assert out.startswith(f"root {store_dirs.work}/r\n")
    assert "when it is cleaned up" in out
    assert diff_id(1)[:19] in out
    found = json.loads(run_cli("df", "--json", check=True).stdout)
    done = subprocess.run(["du", "-sx", "-B1", store_dirs.root], capture_output=True, text=True, check=True)
    assert found["size"] == int(done.stdout.split()[0])
    failed = run_cli("explain", NOTHING)
    assert (failed.returncode, failed.stdout) == (3, "")
    assert "hint: " in failed.stderr


def test_an_expired_pin_keeps_nothing(store: orlop.Store, load: Load, store_dirs: StoreDirs) -> None:
    load("a", [0])
    store.pin("localhost/a", "soon", expires=time.time() + 1_000)
    sql(store_dirs.root, "UPDATE pins SET expires_at = 1 WHERE name = 'soon'")
    assert kept_by(store.explain(diff_id(0))) == {"image localhost/a:latest": "its layer 1 of 1"}
    assert store.explain("pin soon").kept_by == ()
    assert store.explain("localhost/a").frees == store.usage().images[0].unique > 40_000


def test_a_store_at_work_is_measured_and_explained_without_error(
    store: orlop.Store, load: Load, store_dirs: StoreDirs
) -> None:
    names = [load(f"n{number}", [0, 1, number]) for number in (2, 3)]
    failures: list[BaseException] = []

    def work(number: int) -> None:
        path = store_dirs.work / str(number)
        try:
            for step in range(6):
                with store.prepare(names[number % 2], path, driver=("erofs", "overlay")[number % 2]) as root:
                    committed = root.commit(f"localhost/made:{number}-{step}").name
                store.pin(committed, f"pin{number}")
                store.remove(committed)
                store.unpin(f"pin{number}")
        except BaseException as exc:  # noqa: BLE001 - shown by the test
            failures.append(exc)

    threads = [threading.Thread(target=work, args=(number,), daemon=True) for number in range(2)]
    for thread in threads:
        thread.start()
    looks, deadline = 0, time.monotonic() + 120
    while any(thread.is_alive() for thread in threads) or not looks:
        found = store.usage()
        assert found.size > 0
        things = [image.id for image in found.images] + [root.path for root in store.prepared()]
        things += [f"pin {pin.name}" for pin in store.pins()] + [f"layer {diff_id(0)}"]
        for thing in things:
            with contextlib.suppress(orlop.NotFound):  # it went meanwhile
                store.explain(thing)
        looks += 1
        assert time.monotonic() < deadline
    for thread in threads:
        thread.join(60)
    assert failures == []
    store.collect()
    assert store.usage().reclaimable == 0
