"""What a commit can be asked for: what to leave out, one layer, another base, another time, standing still.

The trees that commits capture are `test_commit_meaning.py`'s; one image whatever the driver and the privilege is
the conformance suite's ``the_same_change_gives_the_same_layer``.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import orlop
from conftest import StoreDirs
from orlop.config import Driver
from orlop.errors import FailedPrecondition, InvalidArgument, NotFound
from orlop.facade import Prepared
from orlop.linux.mountinfo import mount_table
from orlop.testing.registry import MemoryRegistry
from support import images
from support.layers import Layer
from support.oracle import differences, snapshot
from support.registries import Registry

pytestmark = pytest.mark.root

EPOCH = 1_000_000_000
ANNOTATIONS = {"org.opencontainers.image.vendor": "ä & co", "kept": ""}


def publish(registry: Registry, tag: str, *layers: Layer, **config: Any) -> str:
    """An image with annotations, in the registry; its name."""
    image = images.make_image([layer.tar() for layer in layers], config=config)
    document = {**json.loads(image.document), "annotations": ANNOTATIONS}
    image = replace(image, document=json.dumps(document).encode())
    images.push(registry, "options", tag, image)
    return f"{registry.host}/options:{tag}"


@pytest.fixture
def first(registry: Registry) -> str:
    """Two layers, with labels, an environment and history."""
    base = Layer().folder("etc").file("etc/a", b"a").file("etc/b", b"b").folder("tmp", mode=0o1777)
    base.file("one", b"1").hardlink("two", to="one").symlink("l", "etc").device("null", "char", 1, 3)
    config = {"Labels": {"kept": "yes"}, "Env": ["PATH=/bin"], "Cmd": ["sh"]}
    return publish(registry, "first", base, Layer().file("top", b"top"), config=config)


@pytest.fixture
def second(registry: Registry) -> str:
    """What an update of it might be."""
    base = (
        Layer().folder("etc", mode=0o711).file("etc/a", b"A").folder("tmp", mode=0o1777).file("new", b"new")
    )
    history = [{"created_by": "update"}, {"created_by": "ENV", "empty_layer": True}]
    return publish(registry, "second", base, config={"Env": ["NEW=1"]}, history=history)


def config_of(store: orlop.Store, name: str) -> dict[str, Any]:
    return json.loads(store.inspect(name).config)


def manifest_at(registry: Registry, name: str) -> dict[str, Any]:
    """What a name means at the registry."""
    repository, _, tag = name.partition("/")[2].rpartition(":")
    headers = {"Accept": "application/vnd.oci.image.manifest.v1+json"}
    status, _, body = registry.request(f"/v2/{repository}/manifests/{tag}", headers=headers)
    assert status == 200
    return json.loads(body)


def change(root: Prepared) -> None:
    top = Path(root.path)
    (top / "etc/a").write_bytes(b"changed")
    (top / "etc/b").unlink()
    (top / "two").write_bytes(b"2")
    (top / "srv/deep").mkdir(parents=True)
    (top / "srv/deep/file").write_bytes(b"f")
    (top / "tmp/junk").write_bytes(b"junk")


# ------------------------------------------------------------------ documents


def test_what_the_base_says_is_kept_and_reaches_the_registry(
    store: orlop.Store, store_dirs: StoreDirs, registry: Registry, first: str
) -> None:
    with store.prepare(first, store_dirs.work / "a", mount=True) as root:
        change(root)
        changes = ("ENV PATH=$PATH:/x NEW='a b'", "LABEL more=yes", "MAINTAINER me", "HEALTHCHECK NONE")
        made = root.commit("localhost/made", annotations={"own": "1"}, changes=changes)
    with store.prepare(made.name, store_dirs.work / "b", mount=True) as root:
        (Path(root.path) / "more").touch()
        root.commit("localhost/more")
    config = config_of(store, "localhost/made")
    assert config["author"] == "me"
    assert config["config"] == {
        "Labels": {"kept": "yes", "more": "yes"},
        "Env": ["PATH=/bin:/x", "NEW=a b"],
        "Cmd": ["sh"],
        "Healthcheck": {"Test": ["NONE"]},
    }
    for name in ("made", "more"):
        pushed = store.push(f"localhost/{name}", f"{registry.host}/options:{name}")
        assert manifest_at(registry, pushed.name)["annotations"] == {**ANNOTATIONS, "own": "1"}


def test_a_squashed_commit_is_one_layer_with_the_whole_tree(
    store: orlop.Store, store_dirs: StoreDirs, first: str
) -> None:
    with store.prepare(first, store_dirs.work / "a", mount=True) as root:
        change(root)
        plain, flat = root.commit(), root.commit(squash=True)
    with (
        store.prepare(plain.name, store_dirs.work / "b", mount=True) as one,
        store.prepare(flat.name, store_dirs.work / "c", mount=True) as other,
    ):
        assert differences(snapshot(Path(one.path)), snapshot(Path(other.path))) == []
    config = config_of(store, flat.name)
    assert (flat.layers, len(config["rootfs"]["diff_ids"])) == (1, 1)
    assert [line.get("empty_layer", False) for line in config["history"]] == [True, True, False]
    assert config["history"][-1]["created_by"] == "orlop commit --squash"


def test_a_change_can_be_put_on_another_base(
    store: orlop.Store, store_dirs: StoreDirs, first: str, second: str
) -> None:
    store.pull(second)
    with store.prepare(first, store_dirs.work / "a", mount=True) as root:
        change(root)
        moved = root.commit(base=second, changes=("ENV OWN=1",))
        flat = root.commit(base=second, squash=True)
        with pytest.raises(NotFound, match="absent"):
            root.commit(base="localhost/absent")
    config, below = config_of(store, moved.name), config_of(store, second)
    assert config["rootfs"]["diff_ids"][:-1] == below["rootfs"]["diff_ids"]
    assert config["history"][:-1] == below["history"]
    assert config["config"]["Env"] == ["NEW=1", "OWN=1"]
    with (
        store.prepare(moved.name, store_dirs.work / "b", mount=True) as one,
        store.prepare(flat.name, store_dirs.work / "c", mount=True) as other,
    ):
        top = Path(one.path)
        found = sorted(str(path.relative_to(top)) for path in top.rglob("*"))
        assert found == ["etc", "etc/a", "new", "srv", "srv/deep", "srv/deep/file", "tmp", "tmp/junk", "two"]
        assert (top / "etc/a").read_bytes() == b"changed"
        # Of the folder only the time has changed
        assert (top / "etc").stat().st_mode & 0o777 == 0o711
        assert differences(snapshot(top), snapshot(Path(other.path))) == []
    assert flat.layers == 1


def test_what_is_excluded_is_as_it_was(store: orlop.Store, store_dirs: StoreDirs, first: str) -> None:
    with store.prepare(first, store_dirs.work / "a", mount=True) as root:
        change(root)
        made = root.commit(exclude=("tmp", "etc/*", "!etc/b"))
        nothing = root.commit(exclude=("*", "**/*"), created=EPOCH)
        for wrong in ("", "[a"):
            with pytest.raises(InvalidArgument, match="exclude pattern"):
                root.commit(exclude=(wrong,))
    with store.prepare(made.name, store_dirs.work / "b", mount=True) as root:
        top = Path(root.path)
        assert (top / "etc/a").read_bytes() == b"a"
        assert [(top / name).exists() for name in ("etc/b", "tmp/junk", "srv/deep/file")] == [
            False,
            False,
            True,
        ]
    assert nothing.layers == 3  # the root folder's own time


# ------------------------------------------------------------------ the same each time


def test_a_commit_depends_on_neither_place_time_order_nor_language(
    store: orlop.Store,
    run_cli: Callable[..., subprocess.CompletedProcess[str]],
    store_dirs: StoreDirs,
    registry: Registry,
    first: str,
) -> None:
    """One change, made at different times in different orders, committed under different environments."""
    files = [b"a", b"B", "ä".encode(), b"\xff", b"_", b"a b", b"\n", "日本".encode()]
    environments: list[tuple[Driver, dict[str, str]]] = [
        ("erofs", {"LC_ALL": "C", "TZ": "UTC"}),
        ("overlay", {"LC_ALL": "C.UTF-8", "TZ": "Asia/Kathmandu"}),
        ("native", {"LC_ALL": "POSIX", "TZ": "XYZ+11:37", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}),
    ]
    for number, (driver, environment) in enumerate(environments):
        with store.prepare(first, store_dirs.work / f"r{number}", driver=driver, mount=True) as root:
            for name in files if number % 2 else reversed(files):
                path = os.path.join(os.fsencode(root.path), name)
                Path(os.fsdecode(path)).write_bytes(name)
                os.setxattr(path, "user.z" if number % 2 else "user.a", b"")
                os.setxattr(path, "user.a" if number % 2 else "user.z", b"")
            given = {**environment, "SOURCE_DATE_EPOCH": str(EPOCH)}
            run_cli("commit", root.path, f"localhost/same:{number}", env=given, check=True)
    assert len({image.id for image in store.images() if "localhost/same" in image.name}) == 1
    pushed = {
        store.push(f"localhost/same:{number}", f"{registry.host}/options:{number}").digest
        for number in range(3)
    }
    assert len(pushed) == 1


def test_the_same_commit_pushed_again_sends_nothing_and_at_another_time_its_documents(
    store: orlop.Store, store_dirs: StoreDirs, first: str
) -> None:
    same = {"created": EPOCH, "newest": EPOCH}
    with MemoryRegistry() as server:
        for number, options in enumerate((same, same, {"newest": EPOCH})):
            with store.prepare(first, store_dirs.work / f"r{number}", mount=True) as root:
                change(root)
                root.commit(f"localhost/again:{number}", **options)
            known, asked = set(server.blobs), len(server.requests)
            store.push(f"localhost/again:{number}", f"{server.host}/again:1")
            new = set(server.blobs) - known
            if number == 1:
                assert {seen.method for seen in server.requests[asked:]} == {"HEAD"}
        assert new == {store.inspect("localhost/again:2").info.id}
        assert len(server.seen("PUT", "/manifests/")) == 2


# ------------------------------------------------------------------ while something runs there


@pytest.fixture
def cgroup() -> Iterator[Path]:
    """A cgroup of version 2, empty at the end."""
    top = next(Path(os.fsdecode(entry.target)) for entry in mount_table() if entry.type == "cgroup2")
    path = top / f"orlop-test-{os.getpid()}"
    path.mkdir()
    try:
        yield path
    finally:
        empty(path)
        path.rmdir()


def empty(cgroup: Path) -> None:
    """Kill all that is in a cgroup, and wait until it is gone."""
    (cgroup / "cgroup.freeze").write_text("0")
    (cgroup / "cgroup.kill").write_text("1")
    deadline = time.monotonic() + 60
    while "populated 1" in (cgroup / "cgroup.events").read_text() and time.monotonic() < deadline:
        time.sleep(0.01)


WRITER = """
cd "$1" && echo $$ > "$2/cgroup.procs" || exit 1
n=100000000
while :; do n=$((n+1)); echo $n > a; echo $n > b; echo $n > c; mv c d; done
"""


@pytest.fixture
def busy(
    store: orlop.Store, store_dirs: StoreDirs, cgroup: Path, first: str
) -> Iterator[tuple[Prepared, subprocess.Popen[bytes]]]:
    """A root that a process of the cgroup writes to all the time."""
    with store.prepare(first, store_dirs.work / "busy", mount=True) as root:
        process = subprocess.Popen(
            ["/bin/sh", "-c", WRITER, "sh", root.path, cgroup],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            deadline = time.monotonic() + 60
            while not (Path(root.path) / "d").exists() and time.monotonic() < deadline:
                time.sleep(0.01)
            yield root, process
        finally:
            process.kill()
            process.wait()
            empty(cgroup)


def test_a_frozen_cgroup_is_captured_at_one_moment_and_goes_on(
    store: orlop.Store, store_dirs: StoreDirs, cgroup: Path, busy: tuple[Prepared, subprocess.Popen[bytes]]
) -> None:
    root, process = busy
    for number in range(3):
        made = root.commit(freeze=str(cgroup))
        assert "frozen 0" in (cgroup / "cgroup.events").read_text()
        with store.prepare(made.name, store_dirs.work / "seen", view=True, mount=True) as seen:
            top = Path(seen.path)
            texts = [(top / name).read_text() for name in ("a", "b", "d")]
        numbers = [int(text or -1) for text in texts]
        # One is being written at most, and they are written in turn
        whole = [one for one in numbers if one > 0]
        assert len(whole) >= 2, (number, texts)
        assert max(whole) - min(whole) <= 1, (number, texts)
    assert process.poll() is None
    before = (Path(root.path) / "a").stat().st_mtime_ns
    deadline = time.monotonic() + 60
    while (Path(root.path) / "a").stat().st_mtime_ns == before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert (Path(root.path) / "a").stat().st_mtime_ns != before


def test_a_running_root_is_captured_file_by_file_or_the_file_is_named(
    store: orlop.Store, store_dirs: StoreDirs, busy: tuple[Prepared, subprocess.Popen[bytes]]
) -> None:
    root, _ = busy
    for _ in range(3):
        try:
            made = root.commit()
        except FailedPrecondition as exc:
            named = any(f"/{name} " in exc.reason for name in "abcd") and "freeze" in exc.hint
            if named:
                continue
            raise
        with store.prepare(made.name, store_dirs.work / "seen", view=True, mount=True) as seen:
            for name in ("a", "b", "d"):
                text = (Path(seen.path) / name).read_text() if (Path(seen.path) / name).exists() else ""
                assert text == "" or (len(text) == 10 and text.endswith("\n")), (name, text)


def test_what_cannot_be_frozen_is_refused_and_what_was_frozen_is_left_so(
    store: orlop.Store, store_dirs: StoreDirs, cgroup: Path, first: str
) -> None:
    with store.prepare(first, store_dirs.work / "a", mount=True) as root:
        own = next(
            line for line in Path("/proc/self/cgroup").read_text().splitlines() if line.startswith("0::")
        )
        for wrong, words in (
            (str(cgroup.parent), "root of all cgroups|we run in"),
            (own[3:], "root of all cgroups|we run in"),
            ("relative", "no cgroup"),
            ("/not/there", "no cgroup"),
            (root.path, "no cgroup"),
        ):
            with pytest.raises(orlop.Error, match=words):
                root.commit(freeze=wrong)
        (cgroup / "cgroup.freeze").write_text("1")
        root.commit(freeze=f"/{cgroup.name}")
        assert (cgroup / "cgroup.freeze").read_text() == "1\n"
        (cgroup / "cgroup.freeze").write_text("0")


GOES = """
import sys, time
from orlop.linux.cgroups import find_cgroup, frozen
from orlop.observe import Call
with frozen(find_cgroup(sys.argv[1], "try"), attempted="try", call=Call()):
    print("frozen", flush=True)
    time.sleep(300)
"""


def test_a_cgroup_is_thawed_when_who_froze_it_is_killed(cgroup: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", GOES, str(cgroup)], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"frozen\n"
            assert (cgroup / "cgroup.freeze").read_text() == "1\n"
        finally:
            process.kill()
    deadline = time.monotonic() + 60
    while (cgroup / "cgroup.freeze").read_text() == "1\n" and time.monotonic() < deadline:
        time.sleep(0.01)
    assert (cgroup / "cgroup.freeze").read_text() == "0\n"


def test_a_call_that_is_cancelled_while_all_stands_still_thaws_it(
    store: orlop.Store, store_dirs: StoreDirs, cgroup: Path, first: str
) -> None:
    token = orlop.CancelToken()

    class Stop:
        def progress(self, event: orlop.Progress) -> None:
            if event.phase == "reading":
                assert (cgroup / "cgroup.freeze").read_text() == "1\n"
                token.cancel()

        def warning(self, text: str) -> None:
            pass

    with store.prepare(first, store_dirs.work / "a", mount=True) as root:
        (Path(root.path) / "x").touch()
        with pytest.raises(orlop.Cancelled):
            root.commit(freeze=str(cgroup), call=orlop.Call(observer=Stop(), cancel=token))
    assert (cgroup / "cgroup.freeze").read_text() == "0\n"
