"""What layers mean: the mounted root beside the tree that GNU tar makes of the same tars.

Each stack of layers is shown in every form that the store can give it: merged into one image; one small top
over the chain of its base; a small top for each layer; written to and read-only.  All must be the oracle's
tree.  What the oracle does not judge has its expected tree written beside it.
"""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

import orlop
from conftest import StoreDirs
from orlop.images.api import PrepareOptions
from orlop.observe import Call, Progress
from support import disks
from support.images import make_image, write_layout
from support.layers import Layer
from support.oracle import NotJudged, apply_layers, differences, snapshot
from support.random_layers import FILLER, random_stack
from support.trees import Entry

pytestmark = pytest.mark.root

SECOND = 1_000_000_000
FOLDER_DRIVERS = ("overlay", "native")
BEYOND_EXT4 = {"large xattrs"}
Tree = Mapping[bytes, Entry]


@dataclass(slots=True)
class Heard:
    """An observer that keeps the warnings."""

    warnings: list[str]

    def progress(self, event: Progress) -> None:
        pass

    def warning(self, text: str) -> None:
        self.warnings.append(text)


class Shower:
    """Loads stacks into stores and shows them in every form."""

    def __init__(self, folder: Path, merged: orlop.Store, stacked: orlop.Store) -> None:
        self._folder = folder
        self._merged, self._stacked = merged, stacked
        self._number = 0
        self.warnings: list[str] = []
        self.drivers: Sequence[str] = FOLDER_DRIVERS
        self.every = True

    def forms(self, layers: Sequence[Layer]) -> Iterator[tuple[str, Tree]]:
        """The name and the tree of each form; unless ``every``, each either written to or read-only, by turns."""
        self._number += 1
        tars = [layer.tar() for layer in layers]
        ways: Sequence[Sequence[bool]] = [(True, False)] * 2
        if not self.every:  # by what is shown, so that it is the same whatever else runs
            first = bool(zlib.crc32(tars[-1]) % 2)
            ways = [(first,), (not first,)]
        layout = write_layout(
            self._folder / f"layout{self._number}",
            {f"p{count}": make_image(tars[:count], compression="none") for count in range(1, len(tars) + 1)},
        )
        call = Call(observer=Heard(self.warnings))
        for store in (self._merged, self._stacked):
            store.load(layout, call=call)
        names = [f"localhost/layout{self._number}:p{count}" for count in range(1, len(tars) + 1)]
        last = names[-1]
        for view in ways[0]:
            yield told("merged", view), self._show(self._merged, last, call, view=view, self_contained=True)
        for view in ways[1]:
            yield told("one top", view), self._show(self._merged, last, call, view=view)
        for name in names[:-1]:
            with self._stacked.prepare(name, self._folder / "prefix"):
                pass
        for view in ways[0]:
            yield told("stacked", view), self._show(self._stacked, last, call, view=view)
        for number, driver in enumerate(self.drivers):
            for view in ways[number % 2]:
                yield told(driver, view), self._show(self._stacked, last, call, view=view, driver=driver)

    def _show(self, store: orlop.Store, name: str, call: Call, **options: object) -> Tree:
        path = self._folder / "shown"
        store.verbs.prepare_root(name, str(path), options=PrepareOptions(mount=True, **options), call=call)
        try:
            return snapshot(path)
        finally:
            store.verbs.cleanup(str(path))


def told(form: str, view: bool) -> str:
    return f"{form}, a view" if view else form


@pytest.fixture(scope="module")
def stage(lab: Path) -> Iterator[Shower]:
    """Two stores for the whole module, so that the base is imported once."""
    folder = lab / "layer-meaning"
    (folder / "work").mkdir(parents=True)
    try:
        with (
            orlop.open(folder / "root", folder / "run") as merged,
            orlop.open(folder / "root2", folder / "run2") as stacked,
        ):
            yield Shower(folder / "work", merged, stacked)
    finally:
        disks.remove(folder)


@pytest.fixture
def shower(stage: Shower) -> Shower:
    stage.warnings, stage.drivers, stage.every = [], FOLDER_DRIVERS, True
    return stage


@pytest.fixture
def judged(shower: Shower, oracle_dir: Path) -> Callable[..., None]:
    """Compare every form of a stack with the oracle.  Raises `NotJudged`."""

    def judge(layers: Sequence[Layer], where: str = "0") -> None:
        expected, open_times = by_oracle(layers, oracle_dir / where)
        for form, tree in shower.forms(layers):
            assert differences(expected, tree, ignore_mtime_of=open_times) == [], f"{where}: {form}"

    return judge


def by_oracle(layers: Sequence[Layer], folder: Path) -> tuple[Tree, set[bytes]]:
    folder.mkdir()
    tars = [folder / f"{number}.tar" for number in range(len(layers))]
    for tar, layer in zip(tars, layers, strict=True):
        tar.write_bytes(layer.tar())
    try:
        open_times = apply_layers(tars, folder / "tree")
        return snapshot(folder / "tree"), open_times
    except OSError as exc:
        raise NotJudged(f"the oracle goes round in symlinks: {exc}") from exc
    except RuntimeError as exc:
        if "annot hard link" not in str(exc) and "No such file or directory" not in str(exc):
            raise
        raise NotJudged(f"below a symlink, or a hard link, to what GNU tar does not find: {exc}") from exc
    finally:
        subprocess.run(["rm", "-rf", folder], check=True)


# ------------------------------------------------------------------ beside the oracle

BIG = Layer().folder("filler")
for _number in range(FILLER):
    BIG.file(f"filler/{_number}", b"%d" % _number)


def base() -> Layer:
    """A large lowest layer, so that what lies above is a small top."""
    layer = Layer().folder("./", mode=0o755, mtime_ns=3).raw(BIG.tar(end=b""))
    layer.folder("d", mode=0o2750, uid=7, gid=8, mtime_ns=5 * SECOND + 6, xattrs={"user.a": b"v"})
    layer.file("d/a", b"1", xattrs={"user.x": b"y", "trusted.z": b""}).file("d/b", b"2").hardlink(
        "d/c", to="d/b"
    )
    layer.folder("d/s", mode=0o711).file("d/s/x", b"3").folder("d/s/t").file("d/s/t/y", b"4")
    return layer.symlink("l", "d").symlink("dangling", "nowhere").fifo("p").device("c", "char", 1, 3)


CASES: dict[str, list[Layer]] = {
    "one layer": [],
    "a layer without entries": [Layer()],
    "several layers without entries": [Layer(), Layer(), Layer().file("n")],
    "a root entry only": [Layer().folder("./", mode=0o700, uid=5, mtime_ns=-5 * SECOND, xattrs={"user.r": b"1"})],
    "whiteouts of a file, a link, a folder, a symlink": [
        Layer().whiteout("d/a").whiteout("d/b").whiteout("d/s").whiteout("l").whiteout("p").whiteout("c")
    ],
    "whiteouts of what is not there": [Layer().whiteout("d/zz").whiteout("new/zz").whiteout("d/a/zz").whiteout("zz")],
    "whiteouts in a folder that the layer brings": [Layer().folder("n").whiteout("n/x").file("n/y").whiteout("d/s/x")],
    "a whiteout and the same name": [
        Layer().whiteout("d/a").file("d/a", b"n").file("d/b", b"m").whiteout("d/b").folder("d/s").whiteout("d/s")
    ],
    "a folder hidden and brought back by the next layer": [
        Layer().whiteout("d"),
        Layer().folder("d").file("d/n"),
        Layer().file("d/s/m"),
    ],
    "a folder hidden by one layer and implied by the next": [Layer().whiteout("d"), Layer().file("d/s/n")],
    "a file hidden and brought back as a folder": [Layer().whiteout("d/a"), Layer().folder("d/a").file("d/a/n")],
    "an opaque mark before and after the entries": [
        Layer().opaque("d").file("d/n").folder("d/s").file("d/s/z"),
        Layer().folder("d/s").file("d/s/w").opaque("d/s"),
    ],
    "an opaque folder that is only implied keeps its metadata": [Layer().opaque("d/s")],
    "an opaque root": [Layer().opaque("").file("n"), Layer().file("d/a", b"back")],
    "an opaque folder in an opaque folder": [Layer().opaque("d").file("d/s/n").opaque("d/s"), Layer().file("d/s/t/m")],
    "an opaque mark of what is no folder": [Layer().opaque("d/a").opaque("l").opaque("new")],
    "a folder hidden and changed again and again": [
        Layer().file("d/s/n1"),
        Layer().whiteout("d/s"),
        Layer().file("d/s/n2"),
        Layer().whiteout("d"),
        Layer().folder("d", mode=0o700).whiteout("d/s"),
        Layer().file("d/s/t/n3"),
    ],
    "type swaps": [
        Layer().file("d/s", b"f").folder("d/a").symlink("d/b", "a").fifo("l").folder("p").folder("c"),
        Layer().folder("d/s").file("d/a", b"g").folder("d/b").file("d/b/i").symlink("l", "d").file("c/k"),
        Layer().device("d/s", "block", 8, 1).folder("l"),
    ],
    "a file over a folder over what lies deeper": [Layer().file("d"), Layer().folder("d").file("d/n")],
    "a folder over a lower layer's symlink": [Layer().folder("l").file("l/n")],
    "a parent that is a lower layer's symlink": [Layer().file("l/n").file("dangling/n")],
    "a parent that is the same layer's symlink": [Layer().folder("usr/bin").symlink("bin", "usr/bin").file("bin/sh")],
    "a folder that is implied again": [Layer().file("d/s/t/n").file("d/q/r/n"), Layer().file("d/q/m")],
    "a folder given again has only the new metadata": [Layer().folder("d", mode=0o700, mtime_ns=9).file("d/n")],
    "a folder's metadata alone": [Layer().folder("d", uid=9, xattrs={"user.n": b"w"}), Layer().folder("d/s", gid=9)],
    "hard links to lower files": [
        Layer().hardlink("n", to="d/a").hardlink("d/s/m", to="d/c", mode=0o777, uid=5),
        Layer().hardlink("n2", to="n").hardlink("n3", to="d/b"),
        Layer().hardlink("n4", to="n3").whiteout("n"),
        Layer().hardlink("n5", to="n4").file("n4", b"new"),
    ],
    "a hard link to a file whose other names change": [
        Layer().hardlink("n", to="d/b").file("d/b", b"new").whiteout("d/c"),
        Layer().hardlink("m", to="n"),
    ],
    "hard links within a layer": [
        Layer().file("n", b"1").hardlink("m", to="n").hardlink("new/o", to="m").symlink("s", "n").hardlink("t", to="s"),
        Layer().whiteout("n"),
    ],
    "a hard link replaces a file and a folder replaces a hard link": [
        Layer().hardlink("d/a", to="d/b").folder("d/c").hardlink("d/s", to="p"),
    ],
    "metadata of every size": [
        Layer().file("big", b"x", mode=0o6755, uid=2**32 - 2, gid=2**31 + 5, mtime_ns=2**33 * SECOND + 1)
        .file("ancient", mtime_ns=-(2**31) * SECOND)
        .file("moment", mtime_ns=-1)
        .folder("ids", uid=2**32 - 2, gid=2**32 - 2),
        Layer("gnu").file("big2", uid=2**32 - 2, mtime_ns=2**33 * SECOND).file("ancient2", mtime_ns=-1000 * SECOND),
    ],
    "odd names": [
        Layer().file(b"\xff\xfe not utf-8").file("ä € 漢").file("new\nline").file(" ").folder("-rf").file("-rf/x")
        .file("n" * 255).file("漢" * 85).file("\\").file("a:b,c").file("%41").symlink("=", "x" * 4095)
        .file("+").file(".+").file("...").file("..a"),
        Layer().whiteout("n" * 251).file("." * 200),
    ],
    "large xattrs": [
        Layer().file("x16", xattrs={"user.v": b"v" * 16_384}).file("x64", xattrs={"user.v": b"w" * 65_535})
        .folder("many", xattrs={f"user.{number}": b"%d" % number for number in range(60)})
        .symlink("link", "x", xattrs={"trusted.on_link": b"1"}),
        Layer().file("many/n"),
    ],
    "sparse files in every form": [
        Layer().sparse("s1", 1 << 20, [(4096, b"a" * 512), (300_000, b"b" * 10)], how="gnu-1.0")
        .sparse("s2", 1 << 20, [(0, b"a" * 1024), (8192, b"b" * 10)], how="gnu-0.1")
        .sparse("s3", 1 << 20, [(4096 - 512, b"a" * 1024)], how="gnu-0.0")
        .sparse("holes", 1 << 20, [], how="gnu-1.0").file("after", b"x" * 513).hardlink("h", to="s1"),
        Layer("gnu").sparse("s4", 3 << 20, [(n * 16384, b"%512d" % n) for n in range(99)], how="old-gnu"),
        Layer().file("holes", b"").hardlink("h2", to="s2"),
    ],
    "devices, a contiguous file, a global header": [
        Layer().device("d/dev", "char", 4095, 1048575).device("blk", "block", 259, 7).add("seven", b"7", data=b"77")
        .pax_global({"comment": "x"}).fifo("d/fifo", mode=0o620)
    ],
    "a device 0/0 is left out": [Layer().folder("d").device("d/a", "char", 0, 0).folder("n").device("n/x", "char", 0, 0)],
}  # fmt: skip


BY_TURNS = pytest.mark.parametrize(
    "every",
    [False, pytest.param(True, marks=(pytest.mark.soak, pytest.mark.large))],
    ids=["by turns", "every form"],
)


@BY_TURNS
@pytest.mark.parametrize("case", CASES)
def test_every_form_shows_the_oracles_tree(
    judged: Callable[..., None], shower: Shower, case: str, every: bool
) -> None:
    shower.every = every
    if case in BEYOND_EXT4:
        shower.drivers = ()
    judged([base(), *CASES[case]])


@pytest.mark.parametrize("driver", FOLDER_DRIVERS)
def test_what_the_disk_cannot_hold_is_left_out_with_a_warning(
    store: orlop.Store, store_dirs: StoreDirs, workdir: Path, driver: str
) -> None:
    xattrs = {"user.small": b"1", "user.large": b"x" * 60_000}
    layout = write_layout(workdir / "l", {"latest": make_image([Layer().file("f", xattrs=xattrs).tar()])})
    name = store.load(layout).pop().name
    heard = Heard([])
    options = PrepareOptions(mount=True, driver=driver)
    path = str(store_dirs.work / "a")
    store.verbs.prepare_root(name, path, options=options, call=Call(observer=heard))
    assert dict(snapshot(Path(path))[b"f"].xattrs) == {"user.small": b"1"}
    assert [text for text in heard.warnings if "extended attributes" in text]


def judge_random(judged: Callable[..., None], seeds: Iterator[int], enough: Callable[[int], bool]) -> int:
    """Compare random stacks until it is enough; returns how many the oracle judged."""
    done = 0
    while not enough(done):
        seed = next(seeds)
        with contextlib.suppress(NotJudged):
            judged(random_stack(random.Random(seed)), str(seed))
            done += 1
    return done


@pytest.mark.parametrize("share", range(3))
def test_random_stacks_show_the_oracles_tree(judged: Callable[..., None], shower: Shower, share: int) -> None:
    shower.every = False
    seeds = iter(range(share * 1000, share * 1000 + 30))
    judge_random(judged, seeds, lambda done: done == 5)


@pytest.mark.soak
@pytest.mark.timeout(0)
def test_many_random_stacks_show_the_oracles_tree(judged: Callable[..., None], soak_seconds: float) -> None:
    deadline = time.monotonic() + soak_seconds
    seeds = iter(range(int(os.environ.get("SOAK_SEED", "100000")), 1 << 30))
    assert judge_random(judged, seeds, lambda done: time.monotonic() > deadline) > 0


# ------------------------------------------------------------------ what the oracle does not judge


def shape(tree: Tree) -> dict[str, str]:
    """A tree without its filler, short: kind, or a symlink's target, or a file's size."""
    short: dict[str, str] = {}
    for path, entry in tree.items():
        what = f"-> {os.fsdecode(entry.target)}" if entry.kind == "symlink" else entry.kind
        what = str(entry.size) if entry.kind == "file" else what
        if entry.twins:
            what += " = " + " ".join(map(os.fsdecode, entry.twins))
        if path and not path.startswith(b"filler"):
            short[os.fsdecode(path)] = what
    return short


def b(count: int) -> bytes:
    return b"x" * count


LOWER = {
    "d": "folder",
    "d/a": "1",
    "d/b": "2 = d/b d/c",
    "d/c": "2 = d/b d/c",
    "d/s": "folder",
    "l": "-> d",
    "p": "fifo",
}
EXPLICIT: dict[str, tuple[Layer, dict[str, str | None]]] = {
    "absolute names and '..' stop at the root": (
        Layer().file("/abs", b(1)).file("../../up", b(2)).file("d/../../e/f", b(3)).folder("/d/s/.."),
        {"abs": "1", "up": "2", "e": "folder", "e/f": "3"},
    ),
    "whiteouts with odd names are cleaned, too": (
        Layer().file("/../d/./.wh.a").file("x/../d/.wh.s"),
        {"d/a": None, "d/s": None},
    ),
    "hard links' targets are cleaned": (
        Layer().hardlink("h", to="/../d/a").hardlink("i", to="./x/../d/s/../a"),
        {"h": "1 = d/a h i", "i": "1 = d/a h i", "d/a": "1 = d/a h i"},
    ),
    "parents that are symlinks of the layer: absolute, out of the root, over lower folders": (
        Layer().symlink("s1", "/d").symlink("s2", "../../d/s").symlink("e/up", "..").file("s1/n", b(3))
        .file("s2/m", b(4)).file("e/up/e/k", b(5)),
        {
            "s1": "-> /d", "s2": "-> ../../d/s", "d/n": "3", "d/s/m": "4", "e": "folder", "e/up": "-> ..",
            "e/k": "5",
        },
    ),
    "a symlink of the layer over a lower folder": (
        Layer().symlink("d", "t").file("d/n", b(3)),
        {**dict.fromkeys(LOWER), "d": "-> t", "t": "folder", "t/n": "3", "l": "-> d", "p": "fifo"},
    ),
    "hard links through symlinks of a lower layer": (
        Layer().hardlink("h", to="l/a"),
        {"h": "1 = d/a h", "d/a": "1 = d/a h"},
    ),
    "hard links through symlinks of the layer into a lower one": (
        Layer().symlink("s", "d").hardlink("h", to="s/a"),
        {"s": "-> d", "h": "1 = d/a h", "d/a": "1 = d/a h"},
    ),
    "a hard link before its target": (Layer().hardlink("h", to="n").file("n", b(3)), {"h": "3 = h n", "n": "3 = h n"}),
    "a hard link to a lower file that the layer hides": (
        Layer().whiteout("d/a").hardlink("h", to="d/a").whiteout("d/s"),
        {"h": "1", "d/a": None, "d/s": None},
    ),
    "a hard link to a lower file that the layer replaces afterwards": (
        Layer().hardlink("h", to="d/a").file("d/a", b(7)),
        {"h": "1", "d/a": "7"},
    ),
    "a hard link to a lower file that the layer replaced before": (
        Layer().file("d/a", b(7)).hardlink("h", to="d/a"),
        {"h": "7 = d/a h", "d/a": "7 = d/a h"},
    ),
    "a hard link to a file that the layer replaces by a folder": (
        Layer().file("n", b(3)).hardlink("h", to="n").folder("n"),
        {"h": "3", "n": "folder"},
    ),
    "a device 0/0 hides nothing, nor do its hard links": (
        Layer().device("d/a", "char", 0, 0).hardlink("d/b", to="d/a").hardlink("new", to="d/a"),
        {},
    ),
    "a symlink replaced by a folder, and back": (
        Layer().symlink("n", "d").folder("n").file("n/x").symlink("m", "d").folder("m").symlink("m", "../.."),
        {"n": "folder", "n/x": "0", "m": "-> ../.."},
    ),
    "a file below a file of the layer": (Layer().file("n", b(3)).file("n/x", b(4)), {"n": "folder", "n/x": "4"}),
    "an opaque mark through a symlink": (
        Layer().symlink("s", "d").opaque("s"),
        {"s": "-> d", "d/a": None, "d/b": None, "d/c": None, "d/s": None},
    ),
    "aufs' bookkeeping and data after the end marker": (
        Layer().folder(".wh..wh.plnk").file(".wh..wh.aufs").file("n", b(3)).raw(bytes(1024)).file("never"),
        {"n": "3"},
    ),
}  # fmt: skip


@BY_TURNS
@pytest.mark.parametrize("case", EXPLICIT)
def test_every_form_shows(shower: Shower, case: str, every: bool) -> None:
    shower.every = every
    lower = (
        Layer()
        .raw(BIG.tar(end=b""))
        .folder("d")
        .file("d/a", b(1))
        .file("d/b", b(2))
        .hardlink("d/c", to="d/b")
    )
    lower.folder("d/s").symlink("l", "d").fifo("p")
    upper, changes = EXPLICIT[case]
    expected = {path: what for path, what in {**LOWER, **changes}.items() if what is not None}
    for form, tree in shower.forms([lower, upper]):
        assert shape(tree) == expected, form


def test_small_layers_are_stacked_and_merged_where_asked(store: orlop.Store, store_dirs: StoreDirs) -> None:
    layers = [base().tar(), Layer().file("n1").tar(), Layer().file("n2").tar()]
    images = {f"p{count}": make_image(layers[:count]) for count in (1, 2, 3)}
    store.load(write_layout(store_dirs.work / "layout", images))
    lowers = []
    for name in ("p1", "p2", "p3"):
        with store.prepare(f"localhost/layout:{name}", store_dirs.work / "r") as prepared:
            (lower,) = [option for option in prepared.mounts[-1].options if option.startswith("lowerdir")]
            lowers.append(lower.count(":") + 1)
    assert lowers == [1, 2, 3]
    with store.prepare("localhost/layout:p3", store_dirs.work / "r", self_contained=True) as prepared:
        assert [mount.type for mount in prepared.mounts] == ["erofs", "overlay"]


def test_a_device_0_0_is_warned_of(shower: Shower) -> None:
    layers = [base(), Layer().device("d/\n", "char", 0, 0)]
    for _ in shower.forms(layers):
        pass
    assert any("a device 0/0 is left out" in warning for warning in shower.warnings)


@pytest.mark.hostile(41)
def test_xattrs_that_would_steer_overlayfs_are_shown_and_steer_nothing(shower: Shower) -> None:
    steering = {
        "trusted.overlay.opaque": b"y",
        "trusted.overlay.redirect": b"/filler",
        "trusted.overlay.metacopy": b"",
        "trusted.overlay.whiteout": b"",
        "trusted.overlay.origin": b"junk",
        "trusted.overlay.overlay.opaque": b"y",
        "user.overlay.opaque": b"y",
    }
    upper = (
        Layer()
        .folder("d", xattrs=steering)
        .file("d/n", b"", xattrs=steering)
        .file("f", b(5), xattrs=steering)
    )
    upper.folder("new", xattrs=steering).file("new/x")
    nested = {
        name.replace("trusted.overlay.", "trusted.overlay.overlay."): value
        for name, value in steering.items()
    }
    for form, tree in shower.forms([base(), upper]):
        # A view of a single image is a bind mount: there is no overlayfs to take the nesting away
        expected = nested if form == "merged, a view" else steering
        for path in (b"d", b"d/n", b"f", b"new"):
            assert dict(tree[path].xattrs) == expected, f"{form}: {path!r}"
        assert {b"d/a", b"d/s/t/y", b"new/x"} <= tree.keys(), form
        assert (tree[b"f"].size, tree[b"d/n"].size) == (5, 0), form


def test_paths_are_longer_than_path_max(shower: Shower) -> None:
    deep = b"/".join([b"n" * 250] * 80)
    layers = [
        base(),
        Layer().file(deep + b"/f", b(1)),
        Layer().file(deep + b"/g", b(2)).whiteout(deep + b"/f"),
    ]
    for form, tree in shower.forms(layers):
        assert tree[deep + b"/g"].size == 2, form
        assert deep + b"/f" not in tree, form


def test_folders_are_a_thousand_deep(shower: Shower) -> None:
    deep = "/".join(["d"] * 1000)
    shower.every = False
    for form, tree in shower.forms([base(), Layer().file(deep + "/f", b(1))]):
        assert tree[deep.encode() + b"/f"].size == 1, form


@pytest.mark.hostile(42)
def test_xattrs_are_as_many_and_as_large_as_linux_takes(shower: Shower) -> None:
    many = {f"user.{number}": b"%d" % number for number in range(1500)}
    large = {"user.v": b"v" * 65_535, "trusted.w": b"w" * 60_000}
    shower.drivers = ()  # more than the disk below holds
    layers = [base(), Layer().file("many", xattrs=many).folder("large", xattrs=large).file("d/n")]
    for form, tree in shower.forms([*layers, Layer().file("large/n")]):
        assert dict(tree[b"many"].xattrs) == many, form
        assert dict(tree[b"large"].xattrs) == large, form


def test_xattrs_that_linux_does_not_know_are_left_out(shower: Shower) -> None:
    names = [
        "user.",
        "trusted.",
        "nonsense",
        "com.apple.quarantine",
        "system.posix_acl_accessory",
        "system.x",
    ]
    names.append("trusted.overlay." + "x" * 239)  # as long as may be, and longer when it is escaped
    layer = Layer().file("f", xattrs={**dict.fromkeys(names, b"1"), "user.kept": b"2"})
    for form, tree in shower.forms([layer]):
        assert dict(tree[b"f"].xattrs) == {"user.kept": b"2"}, form


def test_times_are_those_of_the_tar_also_where_other_file_systems_end(shower: Shower) -> None:
    times = {"far": 2**40 * SECOND + 1, "past": -(2**40) * SECOND - 1, "epoch": 0, "before": -1}
    shower.drivers = ()  # longer ago and later than the disk below knows
    layer = Layer()
    for name, mtime_ns in times.items():
        layer.file(name, mtime_ns=mtime_ns)
    for form, tree in shower.forms([base(), layer]):
        assert {name: tree[name.encode()].mtime_ns for name in times} == times, form


def test_a_new_folder_that_is_only_implied_gets_the_layers_time(shower: Shower) -> None:
    upper = Layer().file("new/x", mtime_ns=5 * SECOND + 7).file("new/sub/y", mtime_ns=3 * SECOND)
    for form, tree in shower.forms([base(), upper]):
        for path in (b"new", b"new/sub"):
            entry = tree[path]
            assert (entry.mtime_ns, entry.mode, entry.uid, entry.gid) == (5 * SECOND + 7, 0o755, 0, 0), form
        assert tree[b""].mtime_ns == 3, form  # what the base said


def test_the_base_alone_implies_a_root(shower: Shower) -> None:
    for form, tree in shower.forms([Layer().file("x", mtime_ns=9 * SECOND)]):
        assert (tree[b""].mode, tree[b""].uid, tree[b""].mtime_ns) == (0o755, 0, 9 * SECOND), form


def test_an_image_without_layers_is_an_empty_root(store: orlop.Store, store_dirs: StoreDirs) -> None:
    store.load(write_layout(store_dirs.work / "layout", {"none": make_image([])}))
    with store.prepare("localhost/layout:none", store_dirs.work / "r", mount=True):
        assert snapshot(store_dirs.work / "r").keys() == {b""}


REFUSED = {
    "a root that is a symlink": Layer().symlink("./", "/etc"),
    "a root that is a file": Layer().file("."),
    ".wh.": Layer().file(".wh."),
    ".wh..": Layer().file("d/.wh.."),
    ".wh...": Layer().file(".wh..."),
    "an entry below a whiteout": Layer().file(".wh.d/f"),
    "a hard link to a folder of the layer": Layer().folder("n").hardlink("h", to="n"),
    "a hard link to nothing": Layer().hardlink("h", to="nothing"),
    "a hard link out of the root": Layer().hardlink("h", to="../../../../etc/passwd"),
    "a hard link to a lower folder": Layer().hardlink("h", to="d"),
    "symlinks that go round": Layer().symlink("x", "y").symlink("y", "x").file("x/f"),
    "a name that is too long": Layer().file("n" * 256),
    "a damaged header": Layer().file("f").raw(b"junk" * 128),
    "an archive that is cut off": Layer().raw(Layer().file("f", b(5000)).tar()[:2048]),
    "a device that Linux has not": Layer().device("x", "block", 1 << 13, 0),
}


@pytest.mark.parametrize("case", REFUSED)
def test_is_refused_and_nothing_is_left(store: orlop.Store, store_dirs: StoreDirs, case: str) -> None:
    layers = [base().tar(), REFUSED[case].tar(end=b"")]
    layout = write_layout(
        store_dirs.work / "layout", {"bad": make_image(layers), "good": make_image(layers[:1])}
    )
    with pytest.raises(orlop.InvalidArgument):  # noqa: PT012 - some are known when layers meet
        store.load(layout)
        store.prepare("localhost/layout:bad", store_dirs.work / "r")
    assert store.prepared() == []
    good = write_layout(store_dirs.work / "layout2", {"good": make_image(layers[:1])})
    store.load(good)
    with store.prepare("localhost/layout2:good", store_dirs.work / "r", mount=True):
        assert (store_dirs.work / "r/d/a").read_bytes() == b"1"
    assert not list((store_dirs.root / "layers").glob("new-*"))
