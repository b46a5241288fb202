"""Comparing and blaming without mounting, beside brute force: both trees mounted, and every path of them looked at.

Random stacks of layers hit each other with whiteouts, opaque folders, hard links and replaced types; their
entries carry times that tell their layer.  Images of the lowest one, two, three layers show what each layer did.
"""

from __future__ import annotations

import json
import os
import random
import stat
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

import orlop
from conftest import StoreDirs
from orlop import errors
from orlop.cli import main
from orlop.config import DRIVERS, Driver
from orlop.images.browsing.diff import compare
from orlop.images.browsing.nodes import Node, Tree
from orlop.images.browsing.trees import open_tree
from orlop.images.comparing import Difference
from orlop.images.contents import FileInfo
from orlop.images.store import LocalStore
from orlop.observe import Call
from orlop.service import Daemon
from support import disks
from support.images import make_image, write_layout
from support.layers import Layer
from support.random_layers import layer_of_stamp, random_stack
from support.trees import Entry, snapshot
from support.vandal import Vandal

pytestmark = pytest.mark.root

SECOND = 1_000_000_000
Snapshot = dict[bytes, Entry]


class Bench:
    """A store, and what it shows when it is mounted."""

    def __init__(self, store: orlop.Store, work: Path) -> None:
        self.store, self.work = store, work
        self._count = 0

    def load(self, images: dict[str, list[bytes]], **config: object) -> list[str]:
        """Images of these layers, by tag; their names."""
        self._count += 1
        folder = self.work / f"layout{self._count}" / "layout"
        folder.parent.mkdir()
        made = {tag: make_image(tars, compression="none", config=config) for tag, tars in images.items()}
        self.store.load(write_layout(folder, made))
        return [f"localhost/layout:{tag}" for tag in images]

    def prefixes(self, tag: str, layers: Sequence[Layer]) -> list[str]:
        """Images of the lowest layer, the lowest two, and so on."""
        tars = [layer.tar() for layer in layers]
        return self.load({f"{tag}.{count}": tars[:count] for count in range(1, len(tars) + 1)})

    def free(self) -> Path:
        """Where nothing is prepared yet."""
        self._count += 1
        return self.work / f"root{self._count}"

    def mounted(self, name: str) -> Snapshot:
        """What an image shows."""
        with self.store.prepare(name, self.free(), view=True, mount=True) as root:
            return snapshot(Path(root.path))

    def stack(self, seed: int, *, ends: bool = False) -> tuple[list[str], list[Snapshot]]:
        """The prefixes of a random stack and what they show; nothing for one that is refused.

        Of its ``ends`` only the lowest layer and the whole.
        """
        layers = random_stack(random.Random(seed), stamped=True)
        try:
            names = self.prefixes(f"s{seed}", layers)
            names = [names[0], names[-1]] if ends else names
            return names, [self.mounted(name) for name in names]
        except errors.InvalidArgument:  # its layers contradict one another
            return [], []


@pytest.fixture
def bench(store: orlop.Store, store_dirs: StoreDirs) -> Bench:
    return Bench(store, store_dirs.work)


# ------------------------------------------------------------------ brute force


def fields_of(old: Entry, new: Entry) -> tuple[str, ...]:
    """In what two entries differ, in the order that is promised."""
    alike = old.kind == new.kind
    found = {
        "type": not alike,
        "mode": old.mode != new.mode,
        "owner": (old.uid, old.gid) != (new.uid, new.gid),
        "mtime": old.mtime_ns != new.mtime_ns,
        "xattrs": old.xattrs != new.xattrs,
        "target": alike and old.target != new.target,
        "device": alike and old.device != new.device,
        "content": alike and old.digest != new.digest,
    }
    return tuple(name for name, differs in found.items() if differs)


def by_brute_force(old: Snapshot, new: Snapshot) -> list[tuple[bytes, str, tuple[str, ...]]]:
    """All differences, folders before what is in them, names in byte order."""
    found: list[tuple[bytes, str, tuple[str, ...]]] = []
    for path in sorted({*old, *new}, key=lambda path: path.split(b"/") if path else []):
        if path not in old:
            found.append((path, "added", ()))
        elif path not in new:
            found.append((path, "deleted", ()))
        elif fields := fields_of(old[path], new[path]):
            found.append((path, "changed", fields))
    return found


def same_file(info: FileInfo, entry: Entry) -> bool:
    """Whether a value says what the mounted tree says, its links apart."""
    return (
        info.kind == entry.kind
        and stat.S_IMODE(info.mode) == entry.mode
        and (info.uid, info.gid) == (entry.uid, entry.gid)
        and info.mtime * SECOND + info.nsec == entry.mtime_ns
        and (entry.kind not in {"file", "symlink"} or info.size == entry.size)
        and (info.target, info.device) == (entry.target, entry.device)
        and tuple((os.fsdecode(name), value) for name, value in info.xattrs) == entry.xattrs
    )


def check_diff(found: Sequence[Difference], old: Snapshot, new: Snapshot) -> None:
    assert [(one.path, one.what, one.fields) for one in found] == by_brute_force(old, new)
    for one in found:
        assert (one.old is None) == (one.what == "added")
        assert (one.new is None) == (one.what == "deleted")
        assert one.old is None or same_file(one.old, old[one.path])
        assert one.new is None or same_file(one.new, new[one.path])


def check_images(bench: Bench, names: Sequence[str], trees: Sequence[Snapshot]) -> None:
    """Every prefix of a stack beside every other, in both directions."""
    for name, tree in zip(names, trees, strict=True):
        for other, shown in zip(names, trees, strict=True):
            check_diff(list(bench.store.diff(name, other)), tree, shown)


def check_stack(bench: Bench, seed: int) -> None:
    names, trees = bench.stack(seed)
    if names:
        check_images(bench, names, trees)
        check_blame(bench, names, trees)
        check_tree(bench, names[-1], trees[-1])


def check_strangers(bench: Bench, seed: int) -> None:
    """The images of two stacks that have nothing in common but names."""
    names, trees = bench.stack(seed, ends=True)
    others, shown = bench.stack(seed + 1, ends=True)
    if names and others:
        check_diff(list(bench.store.diff(names[-1], others[-1])), trees[-1], shown[-1])


def check_blame(bench: Bench, names: Sequence[str], trees: Sequence[Snapshot]) -> None:
    """The story of every path that any prefix shows."""
    every = sorted({path for tree in trees for path in tree})
    filler = [path for path in every if path.startswith(b"filler/")]
    for path in set(every) - set(filler[4:]):
        story = bench.store.blame(names[-1], path)
        if story.path != path:  # it is gone, and a folder above is a symlink now
            continue
        steps = {step.line.layer - 1: step for step in story.steps}
        assert [step.line.layer for step in story.steps] == sorted(number + 1 for number in steps)
        before: Entry | None = None
        for number, tree in enumerate(trees):
            now = tree.get(path)
            step = steps.get(number)
            if now is None:
                assert (step is not None) == (before is not None)
                assert step is None or (step.what, step.file) == ("deleted", None)
            elif step is None:
                assert before is not None
                assert not fields_of(before, now)
            else:
                assert step.what == ("added" if before is None else "changed")
                assert step.file is not None
                assert same_file(step.file, now)
                stamp = layer_of_stamp(now.mtime_ns)
                assert stamp is None or stamp == (step.source_layer or step.line.layer) - 1
            before = now


def check_tree(bench: Bench, name: str, shown: Snapshot) -> None:
    """The tree with sizes and layers is the mounted one."""
    lines = list(bench.store.tree(name, layers=True))
    assert [line.file.path for line in lines] == sorted(
        shown, key=lambda path: path.split(b"/") if path else []
    )
    for line in lines:
        path = line.file.path
        assert same_file(line.file, shown[path])
        below = {other: shown[other] for other in shown if other == path or is_below(other, path)}
        assert line.entries == len(below) - 1
        stamp = layer_of_stamp(shown[path].mtime_ns)
        assert stamp is None or stamp == line.layer - 1
        if not any(entry.twins for entry in below.values()):  # else a file counts where it is met first
            assert line.total == sum(entry.size or 0 for entry in below.values() if entry.kind == "file")
    inodes = {entry.twins or (path,): entry for path, entry in shown.items() if entry.kind == "file"}
    assert lines[0].total == sum(entry.size or 0 for entry in inodes.values())


def is_below(path: bytes, folder: bytes) -> bool:
    return path.startswith(folder + b"/") if folder else bool(path)


def check_root(bench: Bench, driver: Driver, seed: int) -> None:
    """A root that somebody wrote to, beside its image, its commit and another image."""
    dice = random.Random(seed)
    names, trees = bench.stack(seed, ends=True)
    if not names:
        return
    name, tree = names[-1], trees[-1]
    with bench.store.prepare(name, bench.free(), mount=True, driver=driver) as root:
        Vandal(dice, Path(root.path)).run(dice.choice([3, 12, 40]))
        shown = snapshot(Path(root.path))
        check_diff(list(bench.store.diff(root.path)), tree, shown)
        check_diff(list(root.diff()), tree, shown)
        check_diff(list(bench.store.diff(root.path, name)), shown, tree)
        check_diff(list(bench.store.diff(names[0], root.path)), trees[0], shown)
        check_diff(list(bench.store.diff(root.path, root.commit().name)), shown, shown)
        check_root_blame(bench, root.path, tree, shown)


def check_root_blame(bench: Bench, root: str, tree: Snapshot, shown: Snapshot) -> None:
    for path, what, _ in by_brute_force(tree, shown):
        story = bench.store.blame(root, path)
        if story.path == path:
            last = story.steps[-1]
            assert (last.what, last.how, last.line.layer) == (what, "written", 0)
            assert (
                last.file is None
                if what == "deleted"
                else same_file(last.file or FileInfo(path=b"", mode=0), shown[path])
            )
    for line in bench.store.tree(root, layers=True):
        old = tree.get(line.file.path)
        assert (line.layer == 0) == (old is None or bool(fields_of(old, shown[line.file.path])))


# ------------------------------------------------------------------ random stacks


@pytest.mark.parametrize("seed", [24])
def test_diffs_and_blames_of_images_are_what_mounted_trees_show(bench: Bench, seed: int) -> None:
    check_stack(bench, seed)


@pytest.mark.parametrize("driver", DRIVERS)
def test_a_diff_of_a_root_is_what_it_shows(bench: Bench, driver: Driver) -> None:
    check_root(bench, driver, 5)


# ------------------------------------------------------------------ stacks written by hand


def layers_by_hand() -> list[Layer]:
    base = (
        Layer()
        .folder("./", mode=0o755)
        .folder("etc")
        .file("etc/passwd", b"root\n")
        .file("etc/gone", b"x" * 50)
    )
    base.file("opt/tool/bin", b"b" * 2000).file("opt/tool/doc", b"d" * 300).symlink("lib", "usr/lib")
    base.file("usr/lib/a.so", b"a" * 700).hardlink("usr/lib/b.so", to="usr/lib/a.so")
    for number in range(60):
        base.file(f"filler/{number}", b"%d" % number)
    second = (
        Layer()
        .file("etc/passwd", b"root\nme\n")
        .whiteout("etc/gone")
        .opaque("opt/tool")
        .file("opt/tool/new", b"n")
    )
    third = Layer().file("etc/gone", b"back").whiteout("usr/lib/a.so").file("opt/tool", b"now a file")
    return [base, second, third]


HISTORY = [
    {"created": "2024-01-01T00:00:00Z", "created_by": "ADD rootfs", "author": "me"},
    {"created": "2024-01-02T00:00:00Z", "created_by": "ENV A=b", "empty_layer": True},
    {"created": "2024-01-03T00:00:00Z", "created_by": "RUN \x1b[31mred", "comment": "two\nlines"},
]


@pytest.fixture(scope="module")
def shelf(lab: Path) -> Iterator[Bench]:
    """One store for all that only look, and clean up after themselves."""
    folder = lab / "compare"
    (folder / "work").mkdir(parents=True)
    try:
        with orlop.open(folder / "root", folder / "run") as store:
            yield Bench(store, folder / "work")
            assert store.prepared() == []
    finally:
        disks.remove(folder)


@pytest.fixture(scope="module")
def by_hand(shelf: Bench) -> str:
    """An image with less history than layers."""
    tars = [layer.tar() for layer in layers_by_hand()]
    return shelf.load({"hand": tars}, history=HISTORY)[0]


def test_history_is_matched_with_layers(shelf: Bench, by_hand: str) -> None:
    lines = shelf.store.history(by_hand)
    diff_ids = [layer.diff_id for layer in shelf.store.inspect(by_hand).layers]
    assert [(line.layer, line.created_by) for line in lines] == [
        (1, "ADD rootfs"),
        (0, "ENV A=b"),
        (2, "RUN \x1b[31mred"),
        (3, ""),
    ]
    assert [line.diff_id for line in lines if line.layer] == diff_ids
    assert [line.size for line in lines] == [
        len(layers_by_hand()[0].tar()),
        0,
        *(len(layer.tar()) for layer in layers_by_hand()[1:]),
    ]
    assert (lines[0].author, lines[2].comment) == ("me", "two\nlines")


def test_blame_tells_the_line_and_what_was_hidden(shelf: Bench, by_hand: str) -> None:
    def story(path: str) -> list[tuple[int, str, str, str, int]]:
        steps = shelf.store.blame(by_hand, path).steps
        return [
            (step.line.layer, step.what, step.how, step.line.created_by, step.file.size if step.file else 0)
            for step in steps
        ]

    red = "RUN \x1b[31mred"
    assert story("/etc/passwd") == [(1, "added", "entry", "ADD rootfs", 5), (2, "changed", "entry", red, 8)]
    assert story("etc/gone") == [
        (1, "added", "entry", "ADD rootfs", 50),
        (2, "deleted", "whiteout", red, 0),
        (3, "added", "entry", "", 4),
    ]
    assert story("/opt/tool/bin")[1:] == [(2, "deleted", "opaque", red, 0)]
    assert story("/opt/tool/new")[1:] == [(3, "deleted", "replaced", "", 0)]
    assert shelf.store.blame(by_hand, "/lib/b.so").path == b"usr/lib/b.so"
    (step,) = shelf.store.blame(by_hand, "/lib/b.so").steps
    assert (step.how, step.source, step.source_layer) == ("link", b"usr/lib/a.so", 1)
    with pytest.raises(errors.NotFound, match="no layer ever had it"):
        shelf.store.blame(by_hand, "/never")


def test_waste_is_what_nobody_sees(shelf: Bench, by_hand: str) -> None:
    waste = shelf.store.waste(by_hand)
    base, second, third = waste.layers
    # usr/lib/a.so is there still, as b.so
    assert (base.wasted, base.files) == (5 + 50 + 2000 + 300, 4)
    assert (second.size, second.wasted, second.files) == (8 + 1, 1, 1)
    assert (third.wasted, third.entries) == (0, 0)
    assert [(file.path, file.size, file.layer, file.hidden_by, file.what) for file in waste.files] == [
        (b"opt/tool/bin", 2000, 1, 2, "deleted"),
        (b"opt/tool/doc", 300, 1, 2, "deleted"),
        (b"etc/gone", 50, 1, 2, "deleted"),
        (b"etc/passwd", 5, 1, 2, "changed"),
        (b"opt/tool/new", 1, 2, 3, "deleted"),
    ]
    assert waste.efficiency == 1 - waste.wasted / waste.size
    assert [file.size for file in shelf.store.waste(by_hand, files=2).files] == [2000, 300]


class Noting(Tree):
    """Remembers the paths that were looked at."""

    looked: list[bytes]

    def child(self, folder: Node, name: bytes) -> Node | None:
        self.looked.append(folder.path + b"/" + name)
        return super().child(folder, name)

    def children(self, folder: Node) -> Iterator[Node]:
        for node in super().children(folder):
            self.looked.append(node.path)
            yield node


@pytest.mark.parametrize("most", [3, 1])
def test_an_image_beside_its_commit_costs_what_was_changed(shelf: Bench, by_hand: str, most: int) -> None:
    name = by_hand
    for number in range(most):
        with shelf.store.prepare(name, shelf.free(), mount=True, driver="erofs") as root:
            (Path(root.path) / f"etc/new{number}").write_bytes(b"n")
            name = root.commit().name
    with opened(shelf.store, by_hand) as old, opened(shelf.store, name) as new:
        before, after = (Noting(tree.view, tree.devices, call=Call()) for tree in (old, new))
        before.looked = after.looked = looked = []
        found = [pair.path for pair in compare(before, after, before.root, after.root)]
        before.close()
        after.close()
    assert found == [b"etc", *(b"etc/new%d" % number for number in range(most))]
    assert {path.strip(b"/") for path in looked} == set(found)


@contextmanager
def opened(store: orlop.Store, name: str) -> Iterator[Tree]:
    verbs = store.verbs
    assert isinstance(verbs, LocalStore)
    with open_tree(verbs._core, verbs._chains, verbs._roots.grounds, name, Call()) as tree:
        yield tree


def test_what_cannot_be_compared_is_refused(shelf: Bench, by_hand: str) -> None:
    store = shelf.store
    layer = store.inspect(by_hand).layers[0].diff_id
    with pytest.raises(errors.InvalidArgument, match="only a prepared root can stand alone, not an image"):
        list(store.diff(by_hand))
    with pytest.raises(errors.InvalidArgument, match="not a layer"):
        list(store.diff(layer))
    with pytest.raises(errors.NotFound, match="nothing is prepared"):
        list(store.diff("/nowhere"))
    with pytest.raises(errors.NotFound, match="neither has /never"):
        list(store.diff(by_hand, layer, path="/never"))
    with pytest.raises(errors.InvalidArgument, match="a layer has no history"):
        store.history(layer)
    assert list(store.diff(by_hand, by_hand)) == []


def test_a_layer_alone_is_what_it_brings(shelf: Bench, by_hand: str) -> None:
    first, second, third = (layer.diff_id for layer in shelf.store.inspect(by_hand).layers)
    found = {
        one.path: one.what for one in shelf.store.diff(first, third) if not one.path.startswith(b"filler")
    }
    assert found[b"etc/passwd"] == "deleted"
    assert found[b"opt/tool"] == "changed"
    assert [line.file.path for line in shelf.store.tree(second, layers=True)] == [
        b"", b"etc", b"etc/passwd", b"opt", b"opt/tool", b"opt/tool/new",
    ]  # fmt: skip
    (step,) = shelf.store.blame(second, "etc/passwd").steps
    assert (step.line.layer, step.line.diff_id) == (1, second)


def test_the_same_files_in_other_layers_are_equal(shelf: Bench) -> None:
    """Contents are read, for nothing else tells: they lie in other tars, at other places, in other pieces."""
    holes = [(8192, b"h" * 512), (200_000, b"i" * 1024)]
    one = Layer().folder("./").folder("d").file("d/a", b"a" * 3_000_000).file("d/b", b"b").file("d/e")
    one.sparse("d/s", 300_000, holes, how="gnu-1.0")
    first = Layer().file("d/e").file("d/b", b"B").folder("d")
    second = Layer().folder("./").sparse("d/s", 300_000, holes, how="gnu-0.1").file("d/b", b"b").folder("d")
    second.file("d/a", b"a" * 3_000_000)
    other = Layer().file("d/a", b"a" * 2_999_999 + b"b").sparse("d/s", 300_000, holes[:1], how="gnu-1.0")
    images = {"one": [one], "two": [first, second], "three": [one, other]}
    names = shelf.load({tag: [layer.tar() for layer in layers] for tag, layers in images.items()})
    assert list(shelf.store.diff(names[0], names[1])) == []
    assert [one.path for one in shelf.store.diff(names[1], names[2])] == [b"d/a", b"d/s"]
    trees = [shelf.mounted(name) for name in names]
    for name, tree in zip(names, trees, strict=True):
        for beside, shown in zip(names, trees, strict=True):
            check_diff(list(shelf.store.diff(name, beside)), tree, shown)


def test_only_what_is_below_a_path_is_compared_and_times_may_be_left_out(shelf: Bench, by_hand: str) -> None:
    with shelf.store.prepare(by_hand, shelf.free(), mount=True) as root:
        top = Path(root.path)
        os.utime(top / "etc/passwd", ns=(1, 1))
        (top / "filler/0").write_bytes(b"more")
        (top / "usr/lib/c.so").write_bytes(b"")
        os.utime(top / "usr/lib", ns=(2, 2))
        assert list(root.diff(path="/lib")) == []  # a symlink, which did not change
        assert [one.path for one in root.diff(path="/lib/c.so")] == [b"usr/lib/c.so"]
        assert [one.path for one in root.diff(path="usr/lib")] == [b"usr/lib", b"usr/lib/c.so"]
        assert {one.path: one.fields for one in root.diff(times=False)} == {
            b"filler/0": ("content",),
            b"usr/lib/c.so": (),
        }
        assert b"etc/passwd" in {one.path for one in root.diff()}


def test_a_daemon_answers_as_the_library_does(shelf: Bench, by_hand: str) -> None:
    store = shelf.store
    names = shelf.prefixes("p", layers_by_hand())
    address = f"unix://{store.info().run}/socket/orlop.sock"
    with ExitStack() as held:
        held.enter_context(Daemon(store.verbs, address))
        remote = held.enter_context(orlop.connect(address))
        root = held.enter_context(store.prepare(by_hand, shelf.free(), mount=True))
        (Path(root.path) / "etc/new").write_bytes(b"n")
        for ask in (
            lambda face: list(face.diff(names[0], names[2])),
            lambda face: list(face.diff(root.path, path="/etc", times=False)),
            lambda face: face.blame(by_hand, b"/etc/gone"),
            lambda face: face.history(by_hand),
            lambda face: list(face.tree(root.path, "/etc", depth=1, layers=True)),
            lambda face: list(face.tree(by_hand, depth=0)),
            lambda face: face.waste(by_hand, files=3),
        ):
            assert ask(remote) == ask(store)
        for wrong in (
            lambda face: list(face.diff(by_hand)),
            lambda face: face.blame(by_hand, "/never"),
            lambda face: face.history("no/such"),
            lambda face: list(face.tree(by_hand, depth=-1)),
            lambda face: face.waste(by_hand, files=-1),
        ):
            with pytest.raises(errors.Error) as here:
                wrong(store)
            with pytest.raises(type(here.value)):
                wrong(remote)


def cli(store: orlop.Store, capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """What the command line prints about the same store."""
    info = store.info()
    code = main(["--root", info.root, "--run", info.run, *argv])
    out, err = capsys.readouterr()
    assert (code, err) == (0, ""), argv
    return out


def test_the_command_line_shows_it(shelf: Bench, by_hand: str, capsys: pytest.CaptureFixture[str]) -> None:
    names = shelf.prefixes("p", layers_by_hand())
    diff_ids = [layer.diff_id for layer in shelf.store.inspect(by_hand).layers]

    def told(*argv: str) -> list[str]:
        return cli(shelf.store, capsys, *argv).splitlines()

    assert told("diff", "--name-only", names[0], names[1], "--path", "/etc") == ["/etc/gone", "/etc/passwd"]
    assert told("diff", names[0], names[1])[:2] == [
        "D /etc/gone  50 B",
        "C /etc/passwd  (content)  5 B -> 8 B",
    ]
    lines = told("blame", by_hand, "/etc/gone")
    assert [line.split()[0] for line in lines] == ["LAYER", "3", "2", "1"]
    assert "deleted by a whiteout at /etc/gone" in lines[2]
    assert json.loads(cli(shelf.store, capsys, "waste", "--json", by_hand))["wasted"] == 2356
    assert told("history", "-q", by_hand) == diff_ids[::-1]
    assert [line.split()[-2:] for line in told("tree", "--layers", by_hand, "/etc")] == [
        ["1", "/etc"],
        ["3", "gone"],
        ["2", "passwd"],
    ]
    assert [line.split()[0] for line in told("blame", "-r", by_hand, "/etc")] == ["1", "3", "2"]


# ------------------------------------------------------------------ for long


@pytest.mark.soak
@pytest.mark.timeout(0)
def test_many_diffs_and_blames_are_what_is_mounted(bench: Bench, soak_seconds: float) -> None:
    deadline, seed = time.monotonic() + soak_seconds, int(os.environ.get("SOAK_SEED", "10000"))
    while time.monotonic() < deadline:
        seed += 1
        try:
            check_stack(bench, seed)
            check_strangers(bench, seed)
            check_root(bench, DRIVERS[seed % len(DRIVERS)], seed)
        except BaseException as exc:
            exc.add_note(f"seed {seed}")
            raise
        for image in bench.store.images():
            bench.store.remove(image.name)
