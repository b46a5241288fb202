"""containerd's Snapshots over a real unix socket: the contract of its snapshotters, property by property."""

from __future__ import annotations

import itertools
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest

import orlop
from conftest import StoreDirs
from orlop.images.store import LocalStore
from orlop.linux import mount as mounts
from orlop.observe import Call
from orlop.proto.containerd.services.snapshots.v1 import snapshots_pb2 as pb
from orlop.service import Daemon
from orlop.spec.digest import DiffID, chain_id
from orlop.testing.registry import MemoryRegistry
from support import images
from support.layers import Layer
from support.snapshotclient import REF, Snapshots, mounted

pytestmark = pytest.mark.root

CRI = "containerd.io/snapshot/cri."
_numbers = itertools.count()


@contextmanager
def serving(root: Path, run: Path, *, registry: str) -> Iterator[tuple[LocalStore, grpc.Channel]]:
    """A store behind a daemon, and a channel to it as containerd has one."""
    settings = orlop.Settings(insecure_registries=(registry,), retries=0)
    store = LocalStore.open(root, run, settings=settings)
    options = [("grpc.use_local_subchannel_pool", 1)]
    try:
        with (
            tempfile.TemporaryDirectory(prefix="orlop-", dir="/var/tmp") as place,  # sockets need short paths
            Daemon(store, f"unix://{place}/s/o.sock"),
            grpc.insecure_channel(f"unix:{place}/s/o.sock", options=options) as channel,
        ):
            yield store, channel
    finally:
        store.close()


@pytest.fixture(scope="module")
def image() -> images.Image:
    base = Layer().folder("etc", mode=0o751, uid=7, gid=8).file("etc/base", b"base").file("gone", b"gone")
    return images.make_image([base.tar(), Layer().file("etc/top", b"top").whiteout("gone").tar()])


@pytest.fixture(scope="module")
def registry(image: images.Image) -> Iterator[MemoryRegistry]:
    with MemoryRegistry() as running:
        for blob in image.blobs.values():
            running.add_blob("app", blob)
        running.add_manifest("app", "v1", image.document, image.media_type)
        yield running


@pytest.fixture(scope="module")
def served(lab: Path, registry: MemoryRegistry) -> Iterator[tuple[LocalStore, grpc.Channel]]:
    folder = lab / f"snapshots-{os.getpid()}"
    with serving(folder / "root", folder / "run", registry=registry.host) as (store, channel):
        yield store, channel
        assert Snapshots(channel, None).list() == {}
        store.collect()
        assert store.snapshots().cleanup(call=Call()) is None
        assert os.listdir(folder / "run" / "chains") == []
    # Of what was made nothing is left: not what waited, nor what was removed.
    assert os.listdir(folder / "root" / "snapshots") == []
    assert os.listdir(folder / "root" / "trash") == []
    assert os.listdir(folder / "root" / "layers") == []
    shutil.rmtree(folder)


@pytest.fixture
def other(served: tuple[LocalStore, grpc.Channel]) -> Iterator[Callable[[], Snapshots]]:
    """Namespaces of the test's own; nothing is in them in the end."""
    made: list[Snapshots] = []

    def make() -> Snapshots:
        made.append(Snapshots(served[1], f"test-{next(_numbers)}"))
        return made[-1]

    yield make
    for snapshots in made:
        snapshots.remove_all()


@pytest.fixture
def snapshots(other: Callable[[], Snapshots]) -> Snapshots:
    return other()


@pytest.fixture
def target(workdir: Path) -> Path:
    return workdir / "target"


def code(call: Callable[[], object]) -> str:
    """The status that a call ends with."""
    try:
        call()
    except grpc.RpcError as exc:
        return exc.code().name  # type: ignore[no-any-return, attr-defined]  # grpc-stubs
    return "OK"


def nanoseconds(moment: object) -> int:
    return moment.seconds * 10**9 + moment.nanos  # type: ignore[attr-defined, no-any-return]


# ------------------------------------------------------------------ life


def test_what_is_written_to_one_is_what_the_next_begins_with(snapshots: Snapshots, target: Path) -> None:
    specs = snapshots.prepare("a")
    assert [(one.type, list(one.options)) for one in specs] == [("bind", ["bind", "rw"])]
    with mounted(specs, target):
        assert stat.S_IMODE(target.stat().st_mode) == 0o755
        (target / "foo").write_text("foo")
        (target / "a/b/c").mkdir(parents=True)
        (target / "kept").write_text("kept")
    snapshots.commit("A", "a", {"x": "y"})
    assert code(lambda: snapshots.stat("a")) == "NOT_FOUND"

    specs = snapshots.prepare("b", "A")
    assert specs == snapshots.mounts("b")
    options = dict(option.partition("=")[::2] for option in specs[0].options)
    assert {"lowerdir", "upperdir", "workdir"} < options.keys()
    assert (options["index"], options["metacopy"], options["redirect_dir"]) == ("off", "off", "off")
    with mounted(specs, target):
        assert (target / "foo").read_text() == "foo"
        (target / "foo").write_text("changed")
        shutil.rmtree(target / "a")
        (target / "bar").write_text("bar")
    snapshots.commit("B", "b")

    with mounted(snapshots.view("v", "B"), target):
        assert sorted(os.listdir(target)) == ["bar", "foo", "kept"]
        assert (target / "foo").read_text() == "changed"
        with pytest.raises(OSError, match="Read-only file system"):
            (target / "new").write_text("")
    with mounted(snapshots.view("w", "A"), target):
        assert (target / "a/b/c").is_dir()
        with pytest.raises(OSError, match="Read-only file system"):
            (target / "new").write_text("")
    with mounted(snapshots.view("empty"), target):
        assert os.listdir(target) == []
        with pytest.raises(OSError, match="Read-only file system"):
            (target / "new").write_text("")

    parents = {name: info.parent for name, info in snapshots.list().items()}
    assert parents == {"A": "", "B": "A", "v": "B", "w": "A", "empty": ""}
    assert [code(lambda name=name: snapshots.remove(name)) for name in ("A", "B")] == [
        "FAILED_PRECONDITION"
    ] * 2  # type: ignore[misc]  # bound now
    for name in ("v", "w", "B", "A", "empty"):
        snapshots.remove(name)
    assert snapshots.list() == {}


def test_a_new_root_folder_is_what_lies_below_it(snapshots: Snapshots, target: Path) -> None:
    with mounted(snapshots.prepare("a"), target):
        os.chown(target, 12, 34)
        os.chmod(target, 0o1711)
        os.setxattr(target, "user.mine", b"1")
    snapshots.commit("A", "a")
    with mounted(snapshots.prepare("b", "A"), target):
        about = target.stat()
        assert (about.st_uid, about.st_gid, stat.S_IMODE(about.st_mode)) == (12, 34, 0o1711)
        assert os.getxattr(target, "user.mine") == b"1"


def test_130_lie_upon_each_other(snapshots: Snapshots, target: Path) -> None:
    parent = ""
    for number in range(130):
        (mount,) = snapshots.prepare("a", parent)
        upper = next((o[9:] for o in mount.options if o.startswith("upperdir=")), mount.source)
        Path(upper, f"file-{number}").write_text(str(number))
        Path(upper, "last").write_text(str(number))
        snapshots.commit(f"layer-{number}", "a")
        parent = f"layer-{number}"
    for specs in (snapshots.prepare("top", parent), snapshots.view("view", parent)):
        with mounted(specs, target):
            assert len(os.listdir(target)) == 131
            assert (target / "last").read_text() == "129"


def test_one_that_is_mounted_can_be_removed_and_its_key_is_free(
    served: tuple[LocalStore, grpc.Channel], snapshots: Snapshots, target: Path
) -> None:
    with mounted(snapshots.prepare("a"), target):
        (target / "foo").write_text("foo")
        source = Path(snapshots.mounts("a")[0].source)
        snapshots.remove("a")
        snapshots.prepare("a")
        snapshots.cleanup()
        assert not source.exists()
    snapshots.remove("a")


# ------------------------------------------------------------------ what is told of them


def test_kinds_parents_labels_and_times_to_the_nanosecond_are_told(snapshots: Snapshots) -> None:
    before = time.time_ns()
    snapshots.prepare("a", labels={"l": "1", "none": ""})
    active = snapshots.stat("a")
    snapshots.commit("A", "a", labels={"l": "2"})
    snapshots.view("v", "A")
    committed, view = snapshots.stat("A"), snapshots.stat("v")
    after = time.time_ns()
    assert (active.kind, active.parent, dict(active.labels)) == (pb.ACTIVE, "", {"l": "1"})
    assert (committed.kind, committed.parent, dict(committed.labels)) == (pb.COMMITTED, "", {"l": "2"})
    assert (view.kind, view.parent, dict(view.labels)) == (pb.VIEW, "A", {})
    times = [before, *(nanoseconds(info.created_at) for info in (active, committed, view)), after]
    assert times == sorted(times)
    for info in (active, committed, view):
        assert info.created_at == info.updated_at
    assert snapshots.list() == {"A": committed, "v": view}


def test_labels_alone_can_be_changed(snapshots: Snapshots) -> None:
    snapshots.prepare("a", labels={"l1": "v1", "l2": "v2"})
    created = snapshots.stat("a").created_at
    before = time.time_ns()
    # As containerd sends it: with no time at all, which is the year 1.
    info = pb.Info(name="a", parent="elsewhere", kind=pb.VIEW, labels={"l1": "w1", "l3": "w3"})
    info.created_at.seconds = -62_135_596_800
    found = snapshots.update(info)
    assert (found.name, found.parent, found.kind) == ("a", "", pb.ACTIVE)
    assert (dict(found.labels), found.created_at) == ({"l1": "w1", "l3": "w3"}, created)
    assert before <= nanoseconds(found.updated_at) <= time.time_ns()
    found = snapshots.update(pb.Info(name="a", labels={"l1": "x", "l4": "x"}), "labels.l1", "labels.l3")
    assert dict(found.labels) == {"l1": "x"}
    found = snapshots.update(pb.Info(name="a", labels={"a.b/c": "1"}), "labels")
    assert dict(found.labels) == {"a.b/c": "1"} == dict(snapshots.stat("a").labels)
    for field in ("parent", "kind", "created_at", "labelsx"):
        assert code(lambda field=field: snapshots.update(pb.Info(name="a"), field)) == "INVALID_ARGUMENT"  # type: ignore[misc]  # bound now


def test_a_list_has_what_a_filter_lets_through(snapshots: Snapshots) -> None:
    snapshots.prepare("a")
    snapshots.prepare("tmp")
    snapshots.commit("p", "tmp", labels={"l": "1", REF: "sha256:x"})
    snapshots.prepare("a-wl", "p", labels={"l": "2"})
    snapshots.view("v-wl", "p", labels={"l": "3"})
    for filters, names in (
        ((), "a a-wl p v-wl"),
        (("",), "a a-wl p v-wl"),
        (("kind==active",), "a a-wl"),
        (("kind==committed", "kind==view"), "p v-wl"),
        (("kind==active,labels.l==2",), "a-wl"),
        (("labels.l",), "a-wl p v-wl"),
        (("labels.l!=2",), "a p v-wl"),
        (("name~=^a",), "a a-wl"),
        (('parent=="p"',), "a-wl v-wl"),
        ((f'labels."{REF}"=="sha256:x",parent==""',), "p"),
        (("nothing==1",), ""),
    ):
        assert " ".join(snapshots.list(*filters)) == names, filters
    assert code(lambda: snapshots.list("kind=active")) == "INVALID_ARGUMENT"


def test_a_long_list_comes_in_parts(
    other: Callable[[], Snapshots], served: tuple[LocalStore, grpc.Channel]
) -> None:
    here, there = other(), other()
    there.prepare("k-0001")
    for number in range(120):
        here.view(f"k-{number:04}")
    batches = here.batches()
    assert [len(batch) for batch in batches] == [100, 20]
    assert [info.name for batch in batches for info in batch] == [f"k-{number:04}" for number in range(120)]
    everywhere = Snapshots(served[1], None).batches()
    assert sum(info.name == "k-0001" for batch in everywhere for info in batch) == 2


def test_usage_is_that_of_its_own_writes(snapshots: Snapshots, target: Path) -> None:
    with mounted(snapshots.prepare("a"), target):
        empty = snapshots.usage("a")
        (target / "file").write_bytes(bytes(100_000))
        os.link(target / "file", target / "twin")
        (target / "folder").mkdir()
        os.mkfifo(target / "folder" / "pipe")
        size, inodes = snapshots.usage("a")
    assert inodes == empty[1] + 3
    assert 100_000 <= size - empty[0] < 150_000
    snapshots.commit("A", "a")
    assert snapshots.usage("A") == (size, inodes)
    snapshots.prepare("b", "A")
    assert snapshots.usage("b") == empty
    snapshots.view("v", "A")
    assert snapshots.usage("v") == (0, 0)


# ------------------------------------------------------------------ what is refused


def test_keys_and_names_are_of_one_space(snapshots: Snapshots) -> None:
    snapshots.prepare("a")
    snapshots.commit("A", "a")
    snapshots.prepare("active", "A")
    snapshots.view("view", "A")
    for taken in ("A", "active", "view"):
        assert code(lambda taken=taken: snapshots.prepare(taken, "A")) == "ALREADY_EXISTS"  # type: ignore[misc]  # bound now
        assert code(lambda taken=taken: snapshots.view(taken)) == "ALREADY_EXISTS"  # type: ignore[misc]  # bound now
        assert code(lambda taken=taken: snapshots.commit(taken, "active")) == "ALREADY_EXISTS"  # type: ignore[misc]  # bound now
    snapshots.remove("active")
    snapshots.view("active", "A")
    snapshots.remove("active")
    snapshots.prepare("active")
    snapshots.commit("B", "active")


def test_what_cannot_be_is_refused_with_the_code_that_containerd_knows(
    snapshots: Snapshots, served: tuple[LocalStore, grpc.Channel]
) -> None:
    snapshots.prepare("active")
    snapshots.prepare("tmp")
    snapshots.commit("committed", "tmp")
    snapshots.view("view", "committed")
    nowhere, odd = Snapshots(served[1], None), Snapshots(served[1], "not/one")
    for call, expected in (
        (lambda: snapshots.prepare("new", "missing"), "NOT_FOUND"),
        (lambda: snapshots.view("new", "missing"), "NOT_FOUND"),
        (lambda: snapshots.stat("missing"), "NOT_FOUND"),
        (lambda: snapshots.mounts("missing"), "NOT_FOUND"),
        (lambda: snapshots.usage("missing"), "NOT_FOUND"),
        (lambda: snapshots.remove("missing"), "NOT_FOUND"),
        (lambda: snapshots.commit("new", "missing"), "NOT_FOUND"),
        (lambda: snapshots.update(pb.Info(name="missing")), "NOT_FOUND"),
        (lambda: snapshots.prepare("new", "active"), "INVALID_ARGUMENT"),
        (lambda: snapshots.view("new", "view"), "INVALID_ARGUMENT"),
        (lambda: snapshots.prepare(""), "INVALID_ARGUMENT"),
        (lambda: snapshots.commit("", "active"), "INVALID_ARGUMENT"),
        (lambda: snapshots.prepare("new", labels={"k" * 96: "v" * 4001}), "INVALID_ARGUMENT"),
        (lambda: snapshots.commit("new", "active", labels={"k": "v" * 4096}), "INVALID_ARGUMENT"),
        (lambda: snapshots.mounts("committed"), "FAILED_PRECONDITION"),
        (lambda: snapshots.commit("new", "view"), "FAILED_PRECONDITION"),
        (lambda: snapshots.commit("new", "committed"), "FAILED_PRECONDITION"),
        (lambda: snapshots.remove("committed"), "FAILED_PRECONDITION"),
        (lambda: nowhere.prepare("new"), "FAILED_PRECONDITION"),
        (lambda: nowhere.view("new"), "FAILED_PRECONDITION"),
        (lambda: nowhere.stat("active"), "FAILED_PRECONDITION"),
        (lambda: nowhere.mounts("active"), "FAILED_PRECONDITION"),
        (lambda: nowhere.commit("new", "active"), "FAILED_PRECONDITION"),
        (lambda: nowhere.usage("active"), "FAILED_PRECONDITION"),
        (lambda: odd.prepare("new"), "INVALID_ARGUMENT"),
        (odd.list, "INVALID_ARGUMENT"),
    ):
        assert code(call) == expected
    assert sorted(snapshots.list()) == ["active", "committed", "view"]


def test_namespaces_do_not_see_each_other_but_the_collector_all(
    other: Callable[[], Snapshots], served: tuple[LocalStore, grpc.Channel]
) -> None:
    one, two, every = other(), other(), Snapshots(served[1], None)
    own = f"only-{next(_numbers)}"
    one.prepare(own)
    one.prepare("same")
    two.prepare("same")
    assert [list(one.list()), list(two.list())] == [sorted([own, "same"]), ["same"]]
    assert code(lambda: two.stat(own)) == "NOT_FOUND"
    assert code(lambda: two.prepare("new", own)) == "NOT_FOUND"
    one.commit("base", "same")
    assert code(lambda: two.prepare("new", "base")) == "NOT_FOUND"
    one.prepare("same")
    assert code(lambda: every.remove("same")) == "FAILED_PRECONDITION"  # whose?
    every.remove(own)
    assert code(lambda: one.stat(own)) == "NOT_FOUND"


def test_a_name_that_means_another_snapshot_by_now_is_built_on(snapshots: Snapshots, target: Path) -> None:
    for content in ("first", "second"):
        with mounted(snapshots.prepare("tmp"), target):
            (target / "file").write_text(content)
        snapshots.commit("base", "tmp")
        for make in (snapshots.prepare, snapshots.view):
            with mounted(make("a", "base"), target):
                assert (target / "file").read_text() == content
            snapshots.remove("a")
        snapshots.remove("base")
        snapshots.cleanup()  # nothing is left of what the name meant
        assert code(lambda: snapshots.prepare("a", "base")) == "NOT_FOUND"


def test_of_those_who_ask_at_once_for_one_key_one_gets_it(snapshots: Snapshots) -> None:
    snapshots.prepare("tmp")
    snapshots.commit("base", "tmp")
    for verb, once in (
        (lambda: snapshots.prepare("a", "base"), "ALREADY_EXISTS"),
        (lambda: snapshots.commit("A", "a"), "ALREADY_EXISTS"),
        (lambda: snapshots.remove("A"), "NOT_FOUND"),
        (lambda: snapshots.view("A", "base"), "ALREADY_EXISTS"),
    ):
        with ThreadPoolExecutor(8) as pool:
            codes = list(pool.map(lambda _, verb=verb: code(verb), range(8)))  # type: ignore[misc]  # bound now
        assert sorted(codes) == sorted(["OK", *[once] * 7])


def test_a_check_finds_what_is_lost_of_a_snapshot(
    served: tuple[LocalStore, grpc.Channel], snapshots: Snapshots
) -> None:
    place = Path(snapshots.prepare("lost")[0].source).parent
    snapshots.prepare("whole")
    assert served[0].check().clean
    shutil.rmtree(place)
    (finding,) = served[0].check(repair=True).findings
    assert (finding.kind, finding.problem, finding.action) == ("damage", "missing", "failed")
    assert finding.thing.endswith("/lost")
    snapshots.remove("lost")
    snapshots.cleanup()
    assert served[0].check().clean


# ------------------------------------------------------------------ what outlasts what


def test_snapshots_outlast_the_daemon_and_what_was_mounted(
    store_dirs: StoreDirs, registry: MemoryRegistry, image: images.Image
) -> None:
    root, target, chains = store_dirs.root, store_dirs.work / "target", store_dirs.run / "chains"
    with serving(root, store_dirs.run, registry=registry.host) as (_, channel):
        snapshots, parent = Snapshots(channel, "k8s.io"), ""
        for labels in refs(registry, image):
            parent = offered(snapshots, labels, parent)
        first = snapshots.prepare("container", parent)
        snapshots.prepare("plain")
        infos = snapshots.list()
    for name in os.listdir(chains):  # a reboot
        mounts.umount(chains / name)
        (chains / name).rmdir()
    with serving(root, store_dirs.run, registry=registry.host) as (store, channel):
        snapshots = Snapshots(channel, "k8s.io")
        assert snapshots.list() == infos
        with mounted(snapshots.mounts("container"), target):
            assert snapshots.mounts("container") == first
            assert (target / "etc/top").read_text() == "top"
        snapshots.remove_all()
        assert os.listdir(chains) == []
        store.collect()
        assert os.listdir(root / "layers") == []


# ------------------------------------------------------------------ a remote snapshotter


def refs(registry: MemoryRegistry, image: images.Image) -> list[dict[str, str]]:
    """The labels that containerd's CRI plugin says of each layer."""
    blobs = [digest for digest in image.blobs if digest != image.id]
    diff_ids = [DiffID(diff_id) for diff_id in image.diff_ids]
    return [
        {
            REF: chain_id(diff_ids[: number + 1]),
            f"{CRI}image-ref": f"{registry.host}/app:v1",
            f"{CRI}manifest-digest": image.digest,
            f"{CRI}layer-digest": blob,
            f"{CRI}image-layers": ",".join(blobs[number:]),
        }
        for number, blob in enumerate(blobs)
    ]


def offered(snapshots: Snapshots, labels: dict[str, str], parent: str) -> str:
    """Ask for a layer as containerd's metadata store does; the name of what is there instead."""
    assert code(lambda: snapshots.prepare(f"extract {labels[REF]}", parent, labels)) == "ALREADY_EXISTS"
    (info,) = snapshots.list(f'labels."{REF}"=={labels[REF]},parent=="{parent}"').values()
    assert (info.kind, info.parent, dict(info.labels)) == (pb.COMMITTED, parent, labels)
    return info.name


def test_layers_of_an_image_that_is_pulled_need_no_unpacking(
    served: tuple[LocalStore, grpc.Channel],
    snapshots: Snapshots,
    registry: MemoryRegistry,
    image: images.Image,
    target: Path,
) -> None:
    store = served[0]
    name = store.pull(f"{registry.host}/app:v1").name
    registry.requests.clear()
    parent = ""
    for labels in refs(registry, image):
        parent = offered(snapshots, {REF: labels[REF]}, parent)
        assert offered(snapshots, {REF: labels[REF]}, snapshots.stat(parent).parent) == parent
        size, inodes = snapshots.usage(parent)
        assert size > 0 < inodes
    assert registry.requests == []

    store.remove(name)
    store.collect()  # the snapshots keep the layers
    with mounted(snapshots.prepare("container", parent), target):
        assert sorted(os.listdir(target)) == ["etc"]
        about = (target / "etc").stat()
        assert (about.st_uid, about.st_gid, stat.S_IMODE(about.st_mode)) == (7, 8, 0o751)
        (target / "etc/mine").write_text("mine")
        (target / "etc/base").unlink()
    snapshots.commit("mine", "container")  # a folder, on EROFS
    for specs in (snapshots.view("v", "mine"), snapshots.prepare("a", "mine")):
        with mounted(specs, target):
            assert sorted(os.listdir(target / "etc")) == ["mine", "top"]
    with mounted(snapshots.view("w", parent), target):
        assert sorted(os.listdir(target / "etc")) == ["base", "top"]
        with pytest.raises(OSError, match="Read-only file system"):
            (target / "new").write_text("")
    assert store.check(full=True).clean
    snapshots.remove_all()
    snapshots.cleanup()
    assert os.listdir(store.root / "layers") == []


def test_layers_are_fetched_by_what_the_labels_say(
    served: tuple[LocalStore, grpc.Channel],
    snapshots: Snapshots,
    registry: MemoryRegistry,
    image: images.Image,
    target: Path,
) -> None:
    parent = ""
    for labels in refs(registry, image):
        parent = offered(snapshots, labels, parent)
    with mounted(snapshots.view("v", parent), target):
        assert (target / "etc/top").read_text() == "top"
        assert not (target / "gone").exists()
    assert served[0].images() == []


def test_a_name_that_meant_layers_may_mean_a_folder_later(
    served: tuple[LocalStore, grpc.Channel],
    snapshots: Snapshots,
    registry: MemoryRegistry,
    image: images.Image,
) -> None:
    low = refs(registry, image)[0]
    name = offered(snapshots, low, "")
    snapshots.prepare("a", name)
    snapshots.remove("a")
    snapshots.remove(name)
    snapshots.cleanup()
    assert os.listdir(served[0].root / "layers") == []
    snapshots.prepare("tmp")
    snapshots.commit(name, "tmp")
    assert "chains" not in str(snapshots.prepare("a", name))


def test_a_containerds_namespaces_share_the_layers_that_it_finds_without_saying_one(
    served: tuple[LocalStore, grpc.Channel], registry: MemoryRegistry, image: images.Image, target: Path
) -> None:
    every, (low, high) = Snapshots(served[1], None), refs(registry, image)

    def offer(key: str, labels: dict[str, str], parent: str) -> str:
        """As containerd does: the first that its list has is what it takes."""
        assert code(lambda: every.prepare(key, parent, labels)) == "ALREADY_EXISTS"
        return next(iter(every.list(f'labels."{REF}"=={labels[REF]},parent=="{parent}"')))

    first = offer("first/1/extract", low, "")
    assert offer("second/2/extract", low, "") == first
    above = offer("second/3/extract", high, first)
    with mounted(every.prepare("second/4/container", above), target):
        assert (target / "etc/top").read_text() == "top"
    every.prepare("second/5/container", first)
    assert code(lambda: every.remove(first)) == "FAILED_PRECONDITION"
    assert code(lambda: Snapshots(served[1], "second").prepare("mine", first)) == "NOT_FOUND"
    every.remove_all()


def test_what_does_not_follow_from_the_layers_is_left_to_containerd(
    served: tuple[LocalStore, grpc.Channel],
    other: Callable[[], Snapshots],
    registry: MemoryRegistry,
    image: images.Image,
) -> None:
    low, high = refs(registry, image)
    wrong = {
        "another chain ID": {**low, REF: str(DiffID.of(b"another"))},
        "no chain ID": {**low, REF: "base"},
        "the blob of another layer": {**low, f"{CRI}layer-digest": high[f"{CRI}layer-digest"]},
        "no image": {key: value for key, value in low.items() if "image-ref" not in key},
        "a registry that is not there": {**low, f"{CRI}image-ref": "127.0.0.1:1/app:v1"},
        "an image that is not there": {**low, f"{CRI}manifest-digest": str(DiffID.of(b"x"))},
        "an odd digest": {**low, f"{CRI}layer-digest": "sha256:x"},
        "an odd name": {**low, f"{CRI}image-ref": "UPPER CASE"},
        "its parent is missing": high,
    }
    for why, labels in wrong.items():
        snapshots = other()
        (mount,) = snapshots.prepare("a", labels=labels)
        assert mount.type == "bind", why
        assert [info.kind for info in snapshots.list().values()] == [pb.ACTIVE], why

    snapshots = other()
    snapshots.prepare("a", labels={REF: low[REF]})
    snapshots.commit(low[REF], "a")  # a folder, though its name looks like a chain ID
    (mount,) = snapshots.prepare("b", low[REF], high)
    assert ("chains" in str(mount.options), mount.type) == (False, "overlay")
    (mount,) = snapshots.prepare("c", "", low)  # nor is it taken for the layer
    assert mount.type == "bind"
    assert os.listdir(served[0].root / "layers") == []


def test_a_view_and_an_active_one_keep_what_they_stand_on_mounted(
    served: tuple[LocalStore, grpc.Channel],
    snapshots: Snapshots,
    registry: MemoryRegistry,
    image: images.Image,
    target: Path,
) -> None:
    store = served[0]
    parent = ""
    for labels in refs(registry, image):
        parent = offered(snapshots, labels, parent)
    specs = snapshots.prepare("a", parent)
    store.collect()  # unmounts what nobody needs
    with mounted(specs, target):
        assert (target / "etc/base").read_text() == "base"
    assert {reason.kind for reason in store.explain(image.diff_ids[0]).kept_by} == {"snapshot"}
