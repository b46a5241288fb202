"""What layers mean: the mounted root beside the tree that GNU tar makes of the same tars.

Each stack of layers is shown in every form that the store can give it: merged into one image; one small top
over the chain of its base; a small top for each layer; written to and read-only.  All must be the oracle's
tree.  What the oracle does not judge has its expected tree written beside it.
"""

from __future__ import annotations

import os
import random
import stat
import subprocess
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

import orlop
from conftest import StoreDirs
from orlop.observe import Call, Progress
from support.images import make_image, write_layout
from support.layers import MTIME, Layer
from support.oracle import NotJudged, apply_layers, differences, snapshot
from support.random_layers import FILLER, random_stack
from support.trees import Entry

pytestmark = pytest.mark.root

SECOND = 1_000_000_000
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

    def forms(self, layers: Sequence[Layer]) -> Iterator[tuple[str, Tree]]:
        """The name and the tree of each form."""
        self._number += 1
        tars = [layer.tar() for layer in layers]
        names = [f"localhost/n{self._number}:p{count}" for count in range(1, len(tars) + 1)]
        layout = write_layout(
            self._folder / f"layout{self._number}",
            {f"p{count}": make_image(tars[:count], compression="none") for count in range(1, len(tars) + 1)},
        )
        call = Call(observer=Heard(self.warnings))
        for store in (self._merged, self._stacked):
            store.load(layout, call=call)
        names = [f"localhost/layout{self._number}:p{count}" for count in range(1, len(tars) + 1)]
        last = names[-1]
        yield "merged, a view", self._show(self._merged, last, call, view=True, self_contained=True)
        yield "merged, active", self._show(self._merged, last, call, view=False, self_contained=True)
        yield "one top", self._show(self._merged, last, call, view=False)
        yield "one top, a view", self._show(self._merged, last, call, view=True)
        for name in names[:-1]:
            with self._stacked.prepare(name, self._folder / "prefix"):
                pass
        yield "stacked", self._show(self._stacked, last, call, view=False)
        yield "stacked, a view", self._show(self._stacked, last, call, view=True)

    def _show(self, store: orlop.Store, name: str, call: Call, **options: bool) -> Tree:
        path = self._folder / "shown"
        with store.prepare(name, path, mount=True, call=call, **options):
            tree = snapshot(path)
            for folder, entry in tree.items():
                if entry.kind == "folder":  # and nothing is listed that cannot be looked up
                    _list(path, folder)
            return tree


def _list(top: Path, folder: bytes) -> None:
    if len(folder) < 3000:
        subprocess_free = os.fsencode(top) + b"/" + folder
        for entry in os.scandir(subprocess_free):
            entry.stat(follow_symlinks=False)


@pytest.fixture
def shower(store: orlop.Store, store_dirs: StoreDirs, workdir: Path) -> Iterator[Shower]:
    with orlop.open(workdir / "root2", workdir / "run2") as second:
        yield Shower(store_dirs.work, store, second)


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
        if "annot hard link" not in str(exc):
            raise
        raise NotJudged(f"a hard link to what GNU tar does not find: {exc}") from exc
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


@pytest.mark.parametrize("case", CASES)
def test_every_form_shows_the_oracles_tree(judged: Callable[..., None], case: str) -> None:
    judged([base(), *CASES[case]])


@pytest.mark.parametrize("share", range(6))
def test_random_stacks_show_the_oracles_tree(judged: Callable[..., None], share: int) -> None:
    done = 0
    for seed in range(share * 1000, share * 1000 + 40):
        try:
            judged(random_stack(random.Random(seed)), str(seed))
        except NotJudged:
            continue
        done += 1
        if done == 6:
            return
    assert done > 2, "the oracle judges too few stacks"
