"""Surveys of images and roots, and an image's lowest layers as a thing, beside brute force: trees that are mounted.

Random stacks of layers hit each other with whiteouts, opaque folders, hard links and replaced types.  Images of
the lowest layer, the lowest two and so on show what ``IMAGE#N`` must be, and what each layer did.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

import orlop
from orlop import errors
from orlop.cli import main
from orlop.explorer.report import report
from orlop.explorer.survey import LayerSurvey, Node, survey, tree_at
from orlop.images import sketches
from orlop.images.browsing.diff import compare
from orlop.images.browsing.nodes import Node as FileNode
from orlop.images.browsing.nodes import Tree
from orlop.images.browsing.trees import open_tree
from orlop.images.store import LocalStore
from orlop.observe import Call
from orlop.service import Daemon
from support import disks
from support.images import make_image, make_index, write_layout
from support.layers import Layer
from support.random_layers import layer_of_stamp, random_stack
from support.trees import Entry, snapshot
from support.vandal import Vandal

pytestmark = pytest.mark.root

SECOND = 1_000_000_000
Snapshot = dict[bytes, Entry]


class Shelf:
    """A store, images in it, and what they show when they are mounted."""

    def __init__(self, store: orlop.Store, work: Path) -> None:
        self.store, self.work = store, work
        self._count = 0

    def load(self, tag: str, layers: Sequence[Layer], **config: object) -> str:
        """An image of these layers; its name."""
        self._count += 1
        folder = self.work / f"layout{self._count}" / "layout"
        folder.parent.mkdir()
        image = make_image([layer.tar() for layer in layers], compression="none", config=config)
        self.store.load(write_layout(folder, {tag: image}))
        return f"localhost/layout:{tag}"

    def free(self) -> Path:
        """Where nothing is prepared yet."""
        self._count += 1
        return self.work / f"root{self._count}"

    def mounted(self, name: str) -> Snapshot:
        """What an image shows."""
        with self.store.prepare(name, self.free(), view=True, mount=True) as root:
            return snapshot(Path(root.path))


@pytest.fixture(scope="module")
def shelf(lab: Path) -> Iterator[Shelf]:
    """One store for all that only look, and clean up after themselves."""
    folder = lab / "surveys"
    (folder / "work").mkdir(parents=True)
    try:
        with orlop.open(folder / "root", folder / "run") as store:
            yield Shelf(store, folder / "work")
            assert store.prepared() == []
    finally:
        disks.remove(folder)


# ------------------------------------------------------------------ brute force


def same(old: Entry, new: Entry) -> bool:
    """Whether two entries are the same, their links apart."""
    return all(
        getattr(old, name) == getattr(new, name)
        for name in ("kind", "mode", "uid", "gid", "mtime_ns", "xattrs", "target", "device", "digest")
    )


def size_of(entry: Entry) -> int:
    return entry.size or 0 if entry.kind == "file" else 0


def expected_sums(old: Snapshot, new: Snapshot) -> dict[str, int]:
    added = [path for path in new if path not in old]
    changed = [path for path in new if path in old and not same(old[path], new[path])]
    return {
        "added": len(added),
        "changed": len(changed),
        "deleted": len(set(old) - set(new)),
        "added_bytes": sum(size_of(new[path]) for path in added),
        "changed_bytes": sum(size_of(new[path]) for path in changed),
    }


def sums_of(layer: LayerSurvey) -> dict[str, int]:
    return {name: getattr(layer, name) for name in expected_sums({}, {})}


def every(top: Node) -> dict[bytes, Node]:
    """All nodes of a tree, by path."""
    found: dict[bytes, Node] = {}
    todo = [(b"", top)]
    while todo:
        path, node = todo.pop()
        found[path] = node
        assert path.rpartition(b"/")[2] == node.name
        todo += [(path + b"/" + name if path else name, child) for name, child in node.children.items()]
    return found


def check_tree(top: Node, old: Snapshot, new: Snapshot) -> None:
    """A tree with what a layer did is the mounted one, and has what is gone beside it."""
    found = every(top)
    assert set(found) == set(old) | set(new)
    for path, node in found.items():
        if path not in new:
            assert node.what == "deleted"
            assert node.kind == old[path].kind
            continue
        what = "added" if path not in old else "same" if same(old[path], new[path]) else "changed"
        entry = new[path]
        assert (node.what, node.kind, node.mode & 0o7777) == (what, entry.kind, entry.mode), path
        assert (node.uid, node.gid, node.mtime) == (entry.uid, entry.gid, entry.mtime_ns // SECOND)
        assert (node.target, node.device) == (entry.target, entry.device)
        assert bool(node.fields) == (what == "changed")
        below = [one for one in new if one != path and (not path or one.startswith(path + b"/"))]
        assert node.count == len(below)


def check_changes(top: Node, old: Snapshot, new: Snapshot) -> None:
    """A tree of changes alone has these, and the folders above."""
    wanted = {path for path in set(old) | set(new) if path not in old or path not in new}
    wanted |= {path for path in set(old) & set(new) if not same(old[path], new[path])}
    found = every(top)
    marked = {path for path, node in found.items() if node.what != "same"}
    assert marked == wanted
    assert all(any(other.startswith(path + b"/") for other in wanted) for path in set(found) - wanted - {b""})
    assert top.count == len(wanted - {b""})
    assert top.total == sum(size_of(new.get(path) or old[path]) for path in wanted)


@pytest.mark.parametrize("seed", [24, 3])
def test_a_survey_and_its_trees_are_what_mounted_trees_show(shelf: Shelf, seed: int) -> None:
    layers = random_stack(random.Random(seed), stamped=True)
    names = [shelf.load(f"s{seed}.{count}", layers[:count]) for count in range(1, len(layers) + 1)]
    trees: list[Snapshot] = [snapshot_of_nothing(shelf), *map(shelf.mounted, names)]
    whole = names[-1]
    found = survey(shelf.store, whole)
    assert [layer.number for layer in found.layers] == list(range(1, len(layers) + 1))
    for number in range(1, len(layers) + 1):
        layer, old, new = found.layers[number - 1], trees[number - 1], trees[number]
        assert sums_of(layer) == expected_sums(old, new)
        assert layer.size == len(layers[number - 1].tar())
        check_tree(tree_at(shelf.store, whole, number), old, new)
        check_changes(tree_at(shelf.store, whole, number, changes_only=True), old, new)
        assert list(shelf.store.diff(f"{whole}#{number}", names[number - 1])) == []
    assert (found.entries, found.kind, found.names) == (len(trees[-1]) - 1, "image", (whole,))
    waste = shelf.store.waste(whole)
    assert (found.wasted, found.content, found.waste[:10]) == (waste.wasted, waste.size, waste.files)
    assert found.history == tuple(shelf.store.history(whole))
    top = tree_at(shelf.store, whole)
    assert (top.total, top.count) == (found.shown, found.entries)
    for path, node in every(top).items():
        stamp = layer_of_stamp(trees[-1][path].mtime_ns)
        assert node.what == "same"
        assert stamp is None or stamp == node.layer - 1
    two = survey(shelf.store, f"{whole}#2")
    assert [sums_of(layer) for layer in two.layers] == [sums_of(layer) for layer in found.layers[:2]]
    assert two.entries == len(trees[2]) - 1


def snapshot_of_nothing(shelf: Shelf) -> Snapshot:
    """What an image without layers shows."""
    return shelf.mounted(shelf.load("none", []))


def test_a_survey_of_a_root_tells_what_was_changed_there(shelf: Shelf) -> None:
    name = shelf.load("vandals", random_stack(random.Random(5), stamped=True))
    old = shelf.mounted(name)
    with shelf.store.prepare(name, shelf.free(), mount=True) as root:
        Vandal(random.Random(6), Path(root.path)).run(40)
        new = snapshot(Path(root.path))
        found = survey(shelf.store, str(root.path))
        assert (found.kind, found.names, found.thing) == ("root", (name,), str(root.path))
        assert found.layers[:-1] == survey(shelf.store, name).layers
        assert (found.layers[-1].number, found.layers[-1].diff_id) == (0, "")
        assert sums_of(found.layers[-1]) == expected_sums(old, new)
        assert found.entries == len(new) - 1
        check_tree(tree_at(shelf.store, str(root.path)), old, new)
        check_tree(tree_at(shelf.store, str(root.path), 0), old, new)
        check_changes(tree_at(shelf.store, str(root.path), 0, changes_only=True), old, new)
        lowest = tree_at(shelf.store, str(root.path), 1)
        assert set(every(lowest)) == set(every(tree_at(shelf.store, name, 1)))
        assert "What changed here" in report(shelf.store, str(root.path))
        for wrong in (-1, len(found.layers)):
            with pytest.raises(errors.NotFound):
                tree_at(shelf.store, str(root.path), wrong)
    with pytest.raises(errors.NotFound):
        tree_at(shelf.store, name, 0)
    with pytest.raises(errors.InvalidArgument):
        tree_at(shelf.store, name, changes_only=True)


# ------------------------------------------------------------------ the lowest layers of an image


def layers_by_hand() -> list[Layer]:
    base = (
        Layer()
        .folder("./", mode=0o755)
        .folder("etc")
        .file("etc/passwd", b"root\n")
        .file("etc/gone", b"x" * 50)
    )
    base.file("opt/tool/bin", b"b" * 2000).symlink("lib", "usr/lib").file("usr/lib/a.so", b"a" * 700)
    for number in range(60):
        base.file(f"filler/{number}", b"%d" % number)
    second = Layer().file("etc/passwd", b"root\nme\n").whiteout("etc/gone").opaque("opt/tool")
    second.hardlink("usr/lib/b.so", to="usr/lib/a.so")  # of a lower layer
    third = Layer().file("etc/gone", b"back").whiteout("usr/lib/a.so").file("opt/tool", b"now a file")
    return [base, second, third]


HISTORY = [
    {"created_by": "ADD rootfs"},
    {"created_by": "ENV A=b", "empty_layer": True},
    {"created_by": "RUN one"},
    {"created_by": "CMD x", "empty_layer": True},
    {"created_by": "RUN two"},
    {"created_by": "LABEL y", "empty_layer": True},
]


@pytest.fixture(scope="module")
def by_hand(shelf: Shelf) -> list[str]:
    """Images of none of the layers, of the lowest, of two, and of all."""
    found: list[str] = []
    lines = [0, 2, 4, 6]
    for count, most in enumerate(lines):
        history = HISTORY[:most]
        found.append(shelf.load(f"hand{count}", layers_by_hand()[:count], history=history))
    return found


def asked(store: orlop.Store, thing: str) -> dict[str, Any]:
    """What each verb that takes a thing says of one."""
    found: dict[str, Any] = {
        "ls": list(store.ls(thing, recursive=True)),
        "find": [one.file for one in store.find("*o*", thing)],
        "tree": list(store.tree(thing, layers=True)),
        "cp": b"".join(store.read_tar(thing, "/")),
        "waste": store.waste(thing),
        "history": store.history(thing),
    }
    if any(file.path == b"etc/passwd" for file in found["ls"]):
        found["cat"] = b"".join(store.cat(thing, "/etc/passwd"))
        found["blame"] = store.blame(thing, "/etc/passwd")
    return found


def test_the_lowest_layers_are_a_thing_of_every_verb(shelf: Shelf, by_hand: list[str]) -> None:
    store, whole = shelf.store, by_hand[-1]
    image_id = store.inspect(whole).info.id
    address = f"unix://{store.info().run}/socket/orlop.sock"
    with ExitStack() as held:
        held.enter_context(Daemon(store.verbs, address))
        remote = held.enter_context(orlop.connect(address))
        for count, name in enumerate(by_hand):
            if count:  # an image without layers has no history to match
                wanted = asked(store, name)
                assert asked(store, f"{whole}#{count}") == wanted
                assert asked(remote, f"{whole}#{count}") == wanted
            assert list(store.ls(f"{image_id[7:]}#{count}", recursive=True)) == list(
                store.ls(name, recursive=True)
            )
            for other, beside in enumerate(by_hand):
                wanted_pairs = list(store.diff(name, beside))
                assert list(store.diff(f"{whole}#{count}", f"{whole}#{other}")) == wanted_pairs
                assert list(remote.diff(f"{whole}#{count}", beside)) == wanted_pairs
        assert store.history(f"{whole}#0") == []
        for thing in (whole, f"{image_id}#2"):
            assert survey(remote, thing) == survey(store, thing)
            assert report(remote, thing) == report(store, thing)


@pytest.mark.parametrize(
    ("text", "error"),
    [
        *((f"#{count}", errors.NotFound) for count in ("4", "000000004", "999999999")),
        *(
            (f"#{wrong}", errors.InvalidArgument)
            for wrong in ("", "-1", "+1", " 1", "1 ", "1_0", "0x1", "1.0")
        ),
        *(
            (f"#{wrong}", errors.InvalidArgument)
            for wrong in ("1#2", "#1", "\u0663", "\u00b2", "1" * 5000, "1\n")
        ),
    ],
)
def test_what_is_no_number_of_layers_is_refused(
    shelf: Shelf, by_hand: list[str], text: str, error: type[errors.Error]
) -> None:
    for thing in (by_hand[-1], shelf.store.inspect(by_hand[-1]).info.id):
        for ask in (
            lambda: list(shelf.store.ls(thing + text)),  # noqa: B023 - called at once
            lambda: list(shelf.store.diff(thing, thing + text)),  # noqa: B023
            lambda: shelf.store.waste(thing + text),  # noqa: B023
            lambda: shelf.store.history(thing + text),  # noqa: B023
            lambda: survey(shelf.store, thing + text),  # noqa: B023
        ):
            with pytest.raises(error):
                ask()


def test_only_images_have_lowest_layers(shelf: Shelf, by_hand: list[str]) -> None:
    diff_id = shelf.store.inspect(by_hand[-1]).layers[0].diff_id
    with pytest.raises(errors.InvalidArgument, match="no layers to count"):
        list(shelf.store.ls(f"{diff_id}#1"))
    with pytest.raises(errors.NotFound):
        survey(shelf.store, diff_id)
    odd = shelf.work / "a#1"  # a root's path may have a mark in it
    with shelf.store.prepare(by_hand[-1], odd, mount=True):
        (odd / "new").write_bytes(b"n")
        assert [one.path for one in shelf.store.diff(odd) if one.path] == [b"new"]
        assert survey(shelf.store, str(odd)).layers[-1].added == 1


# ------------------------------------------------------------------ names, platforms, the command line


def test_of_an_index_each_platform_has_its_survey(shelf: Shelf) -> None:
    made = {
        platform: make_image(
            [Layer().file(platform, b"x" * size).tar()], platform=platform, compression="none"
        )
        for platform, size in (("linux/amd64", 3), ("linux/arm64", 5))
    }
    folder = shelf.work / "index" / "layout"
    folder.parent.mkdir()
    shelf.store.load(write_layout(folder, {"both": make_index(list(made.values()))}), all_platforms=True)
    for platform, size in (("linux/amd64", 3), ("linux/arm64", 5)):
        found = survey(shelf.store, "localhost/layout:both", platform=platform)
        assert (found.platform, found.shown, found.entries) == (platform, size, 2)
        assert tree_at(shelf.store, "localhost/layout:both", platform=platform).total == size


def run(shelf: Shelf, capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    """What the command line does with the same store."""
    info = shelf.store.info()
    code = main(["--root", info.root, "--run", info.run, *argv])
    return code, *capsys.readouterr()


def test_the_command_line_writes_a_page_whole_or_not_at_all(
    shelf: Shelf, by_hand: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    name, page = by_hand[-1], tmp_path / "page.html"
    assert run(shelf, capsys, "report", name, "-o", str(page), "-q") == (0, f"{page}\n", "")
    assert page.read_text() == report(shelf.store, name)
    assert page.stat().st_mode & 0o777 == 0o666 & ~umask()
    code, out, err = run(shelf, capsys, "report", "--title", "a<b", name, "-q")
    assert (code, err) == (0, "")
    assert "<h1><bdi>a&lt;b</bdi></h1>" in out
    code, out, err = run(shelf, capsys, "report", f"{name}#1", "-o", str(page))
    assert (code, out) == (4, "")
    assert "--force" in err
    assert page.read_text() == report(shelf.store, name)
    assert run(shelf, capsys, "report", f"{name}#1", "-fq", "-o", str(page))[0] == 0
    assert page.read_text() == report(shelf.store, f"{name}#1")
    for thing, expected in (("no/such", 3), (f"{name}#9", 3), (f"{name}#x", 2), ("/nothing/here", 3)):
        assert run(shelf, capsys, "report", thing, "-o", str(tmp_path / "other"))[0] == expected
    assert run(shelf, capsys, "report", name, "-o", str(tmp_path))[0] == 2
    assert run(shelf, capsys, "report", name, "-o", str(tmp_path / "no/folder"))[0] == 3
    assert [one.name for one in tmp_path.iterdir()] == ["page.html"]


def umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def test_looking_at_lower_layers_leaves_nothing_and_remembers_little(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sketches, "KEPT", 50_000)
    layers = [Layer().file(f"only/here{number}", bytes(number)) for number in range(30)]
    name = shelf.load("gone", layers)
    verbs = shelf.store.verbs
    assert isinstance(verbs, LocalStore)
    folder = Path(shelf.store.info().root) / "chains"
    before = set(folder.iterdir())
    found = survey(shelf.store, name)
    assert [layer.added for layer in found.layers] == [2, *[1] * 29]
    assert tree_at(shelf.store, name, 17).count == 18
    chains = verbs._chains
    kept = list(chains.sketches._known.values())
    assert sum(sketch.size for sketch in kept) <= 50_000
    assert len(kept) >= 2
    assert set(folder.iterdir()) == before
    with shelf.store.prepare(name, shelf.free(), view=True):  # now some of it is in files
        assert [layer.added for layer in survey(shelf.store, name).layers] == [2, *[1] * 29]
    for file in folder.iterdir():
        file.unlink()  # as a collection would
    assert [layer.added for layer in survey(shelf.store, name).layers] == [2, *[1] * 29]


class Noting(Tree):
    """Remembers the paths that were looked at."""

    looked: set[bytes]

    def child(self, folder: FileNode, name: bytes) -> FileNode | None:
        self.looked.add(folder.path + b"/" + name)
        return super().child(folder, name)

    def children(self, folder: FileNode) -> Iterator[FileNode]:
        for node in super().children(folder):
            self.looked.add(node.path)
            yield node


def test_what_a_small_layer_did_is_found_without_a_look_at_what_it_left_alone(shelf: Shelf) -> None:
    base = Layer().folder("./", mode=0o755).folder("d")
    for number in range(900):
        base.file(f"d/filler{number}", b"f").file(f"filler/{number}", b"f")
    layers = [
        base,
        *(Layer().file(f"d/new{number}", b"n").whiteout(f"d/new{number - 1}") for number in range(20)),
    ]
    name = shelf.load("small", layers)
    verbs = shelf.store.verbs
    assert isinstance(verbs, LocalStore)
    for count in range(2, len(layers) + 1):
        with ExitStack() as held:
            trees: list[Noting] = []
            for thing in (f"{name}#{count - 1}", f"{name}#{count}"):
                tree = held.enter_context(
                    open_tree(verbs._core, verbs._chains, verbs._grounds, thing, Call())
                )
                trees.append(Noting(tree.view, tree.devices, call=Call()))
                held.callback(trees[-1].close)
            old, new = trees
            old.looked = new.looked = looked = set[bytes]()
            found = [pair.path for pair in compare(old, new, old.root, new.root)]
        assert b"d/new%d" % (count - 2) in found
        assert not [path for path in looked if b"filler" in path]
