"""The worker is not believed: the real store, the real template, and workers that lie.

Whatever a worker says or does, nothing wrong is named by a row or mounted, nothing outside is touched, and the
store goes on working.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import shutil
import stat
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import orlop
from orlop.errors import DataLoss, DeadlineExceeded, Internal, InvalidArgument, Unavailable
from orlop.layers.index import LayerIndex
from orlop.layers.worker.client import confinement
from orlop.observe import Call
from support import disks, images
from support.breakouts import Canary
from support.layers import Layer
from support.liars import Orders, lying
from support.lies import FILE, HONEST, INDEX, LAST, LIES, REFUSALS, TAR, mutated
from support.trees import snapshot
from support.victims import MOTD, Victim, victim_at

pytestmark = pytest.mark.root

BASE = Layer().folder("etc").file("etc/motd", MOTD).tar()  # which the victim has
IMAGE = images.make_image([BASE, TAR])
PARTS = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """A store whose workers do as ordered, what was there before, and what is around it."""

    folder: Path
    victim: Victim
    orders: Orders
    canary: Canary
    layout: Path
    name: str  # of the same image in a registry

    @property
    def store(self) -> orlop.Store:
        return self.victim.store

    def load(self, **options: object) -> str:
        """Import the image; its name."""
        (info,) = self.store.load(self.layout, name="localhost/told:v1", **options)  # type: ignore[arg-type]
        return info.name

    def tree(self, name: str) -> dict[str, bytes]:
        """What is seen of an image when it is mounted: paths, and bytes or targets."""
        place = self.folder / "view"
        with self.store.prepare(name, place, view=True, mount=True):
            return {
                os.fsdecode(path): (place / os.fsdecode(path)).read_bytes()
                if entry.kind == "file"
                else entry.target
                for path, entry in snapshot(place).items()
            }

    def read(self, name: str) -> None:
        """Mount an image and read all that can be read of it."""
        place = self.folder / "view"
        with self.store.prepare(name, place, view=True, mount=True):
            for folder, folders, files in os.walk(os.fsencode(place)):
                for path in [folder, *(os.path.join(folder, each) for each in (*folders, *files))]:
                    for key in os.listxattr(path, follow_symlinks=False):
                        with contextlib.suppress(OSError):  # such as capabilities that are none
                            os.getxattr(path, key, follow_symlinks=False)
                    mode = os.lstat(path).st_mode
                    if stat.S_ISLNK(mode):
                        os.readlink(path)
                    elif stat.S_ISREG(mode):
                        read_ends(path)

    def clear(self) -> None:
        """Remove the image, if it is there."""
        for root in self.store.prepared():
            self.store.get(root.path).cleanup()
        names = [info.name for info in self.store.images() if info.name != self.victim.name]
        for name in names:
            self.store.remove(name)
        if names:
            self.store.collect()

    def untouched(self) -> None:
        """Fails if anything around the store is not as it was, or is mounted."""
        assert self.canary.changes() == []
        deadline = time.monotonic() + 60
        while left := disks.mounts_below(
            self.folder
        ):  # what was busy for a moment, the next collection unmounts
            assert time.monotonic() < deadline, left
            self.store.collect()


def read_ends(path: bytes, most: int = 8 << 20) -> None:
    """Read a file's first and last bytes: a lie may call it larger than memory."""
    with open(path, "rb", buffering=0) as file:
        file.read(most)
        if (size := file.seek(0, os.SEEK_END)) > most:
            file.seek(max(most, size - most))
            file.read(most)


@pytest.fixture(scope="module")
def stage(lab: Path) -> Iterator[Scene]:
    folder = lab / "worker-lies"
    (folder / "work").mkdir(parents=True)
    try:
        with (
            lying(folder / "orders") as (template, orders),
            victim_at(folder / "root", folder / "run", folder / "work", durable=False) as victim,
        ):
            core = victim.store.verbs._core  # type: ignore[attr-defined]
            core.template.close()
            core._template = template
            layout = images.write_layout(folder / "layout", {"latest": IMAGE})
            name = victim.publish("lies/told", IMAGE)
            canary = Canary(folder / "canary")
            yield Scene(folder=folder, victim=victim, orders=orders, canary=canary, layout=layout, name=name)
            orders()
    finally:
        disks.remove(folder)


@pytest.fixture
def scene(stage: Scene) -> Iterator[Scene]:
    yield stage
    stage.orders()
    stage.clear()
    stage.untouched()


# ------------------------------------------------------------------ the worker that indexes


@pytest.mark.hostile(35)
@pytest.mark.parametrize("part", range(PARTS))
def test_a_lie_about_a_layer_names_nothing(scene: Scene, part: int) -> None:
    for number, (what, lie) in enumerate(list(LIES.items())[part::PARTS]):
        print(what)  # noqa: T201 - shown with a failure
        way, copy = ("early", "sleep") if lie.early else ("answer", "honest")
        scene.orders(index=way, copy=copy, answer=lie.answer)
        bring = scene.load if number % 2 else lambda: scene.store.pull(scene.name)
        scene.victim.fails(bring, lie.error)
        assert scene.victim.rows("SELECT count(*) FROM layers") == [(1,)], what
    scene.victim.unharmed(resumable=True)


def test_the_truth_is_named_and_mounted(scene: Scene) -> None:
    scene.orders(index="answer", answer=HONEST)
    told = scene.tree(scene.load())
    assert (told["d/f"], told["d/h"], told["z"], told["l"], told["s"]) == (
        b"x" * 1000, b"x" * 1000, b"last", MOTD, b"d",
    )  # fmt: skip
    assert scene.store.check(full=True).clean


def swapped() -> bytes:
    """An index that is a proper one, and says of this tar what is not so."""
    index = LayerIndex.decode(INDEX.encode())
    for column in (index.offset, index.size):
        column[FILE], column[LAST] = column[LAST], column[FILE]
    index.mode[FILE] |= 0o4000
    return index.encode()


@pytest.mark.hostile(35)
def test_a_proper_index_of_something_else_shows_this_layers_bytes_alone_and_a_check_finds_it(
    scene: Scene,
) -> None:
    """What the design does not prevent: a worker that the tar itself took over may mislabel that tar."""
    scene.orders(index="answer", answer=b"+" + swapped())
    told = scene.tree(name := scene.load())
    assert (told["d/f"], told["z"]) == (b"last", b"x" * 1000)
    scene.orders()
    checked = scene.store.check(full=True)
    assert [finding.problem for finding in checked.findings if finding.kind == "damage"][:1] == ["bad-index"]
    assert scene.store.check(full=True, repair=True).sound
    told = scene.tree(name)
    assert (told["d/f"], told["z"]) == (b"x" * 1000, b"last")
    assert scene.store.check(full=True).clean


def through_the_store(scene: Scene, answer: bytes) -> bool:
    """Tell the store an answer by chance: it is refused, or mounted and read to the end.  Which one it was."""
    scene.orders(index="answer", answer=b"+" + answer)
    try:
        scene.read(scene.load())
    except REFUSALS:
        return False
    finally:
        scene.clear()
        scene.untouched()
    return True


@pytest.mark.hostile(35)
def test_any_answer_is_refused_or_mounted_without_harm(scene: Scene) -> None:
    dice = random.Random(35)
    mounted = [through_the_store(scene, mutated(dice)) for _ in range(24)]
    assert set(mounted) == {True, False}
    scene.orders()
    assert scene.store.check(full=True).clean


@pytest.mark.soak
@pytest.mark.hostile(35)
def test_very_many_answers_are_refused_or_mounted_without_harm(scene: Scene, soak_seconds: float) -> None:
    seed = int(os.environ.get("SEED") or time.time())
    end = time.monotonic() + soak_seconds
    for number in itertools.count():
        if time.monotonic() > end:
            break
        print(f"SEED={seed + number}")  # noqa: T201 - shown with a failure
        through_the_store(scene, mutated(random.Random(seed + number)))


# ------------------------------------------------------------------ the worker that decompresses

TARS = {
    "a byte is another": (TAR[:700] + b"\1" + TAR[701:], b"+", (DataLoss, InvalidArgument)),
    "a byte of a file is another": (TAR.replace(b"last", b"lost"), b"+", DataLoss),
    "the end is missing": (TAR[:-512], b"+", DataLoss),
    "there is more": (TAR + bytes(512), b"+", DataLoss),
    "another layer": (Layer().file("other").tar(), b"+", DataLoss),
    "no tar": (b"rubbish" * 1000, b"+", InvalidArgument),
    "nothing": (b"", b"+", (DataLoss, InvalidArgument)),
    "the right tar and a wrong word": (TAR, b"+junk", Internal),
    "the right tar and no word": (TAR, b"", Unavailable),
    "the right tar and an index, unasked": (TAR, HONEST, Internal),
}


@pytest.mark.hostile(19)
@pytest.mark.parametrize("what", TARS, ids=lambda what: what.replace(" ", "-"))
def test_other_bytes_than_the_layers_name_nothing(scene: Scene, what: str) -> None:
    tar, answer, error = TARS[what]
    scene.orders(copy="answer", tar=tar, answer=answer)
    scene.victim.refuses(scene.load, error, resumable=True)


SMALL = {
    "another layer": (Layer().file("other").tar(), b"+", DataLoss),
    "a byte is another": (TAR.replace(b"last", b"lost"), b"+", DataLoss),
    "the end is missing": (TAR[:-512], b"+", DataLoss),
    "no tar": (b"rubbish" * 1000, b"+", InvalidArgument),
    "an error without words": (b"", b"-", Internal),
    "nothing that was agreed": (TAR, b"*", Internal),
}


@pytest.mark.hostile(19, 35)
@pytest.mark.parametrize("what", SMALL, ids=lambda what: what.replace(" ", "-"))
def test_the_worker_that_small_layers_share_cannot_give_other_bytes_for_one(scene: Scene, what: str) -> None:
    tar, kind, error = SMALL[what]
    scene.orders(small="frame", answer=kind + struct.pack("<Q", len(tar)) + tar)
    scene.victim.refuses(lambda: scene.store.pull(scene.name), error, resumable=True)


@pytest.mark.hostile(35)
def test_a_blob_that_takes_over_its_worker_cannot_speak_for_a_layer_of_others(scene: Scene) -> None:
    """The blob is no gzip, and its worker answers with a well-known layer's bytes: the index is that layer's."""
    blob = b"\x1f\x8b an exploit"
    honest = images.make_image([BASE, TAR])
    gone = next(digest for digest, data in honest.blobs.items() if images.decompress(data) == TAR)
    document = honest.document.replace(gone.encode(), images.digest_of(blob).encode())
    document = document.replace(b'"size":%d' % len(honest.blobs[gone]), b'"size":%d' % len(blob))
    blobs = {digest: data for digest, data in honest.blobs.items() if digest != gone}
    evil = images.Image(
        media_type=honest.media_type, document=document, blobs={**blobs, images.digest_of(blob): blob}
    )
    layout = images.write_layout(scene.folder / "evil", {"latest": evil})
    scene.orders(copy="answer", tar=TAR, answer=b"+")
    scene.store.load(layout, name="localhost/evil:v1")
    shutil.rmtree(layout)
    scene.orders()
    assert scene.store.check(full=True).clean
    told = scene.tree(scene.load())
    assert (told["d/f"], told["z"]) == (b"x" * 1000, b"last")


# ------------------------------------------------------------------ workers that end, or do not


def test_a_user_namespace_that_has_no_other_user_is_said_to_have_none(scene: Scene) -> None:
    script = (
        "import sys; from orlop.layers.worker.client import Template, confinement; from orlop.observe import Call\n"
        "with Template() as template: print(confinement(template, call=Call()))\n"
    )
    done = subprocess.run(
        ["unshare", "--user", "--map-root-user", sys.executable, "-c", script],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert "user_changed=False" in done.stdout, done.stderr
    assert "user_changed=True" in repr(confinement(scene.store.verbs._core.template, call=Call()))  # type: ignore[attr-defined]


@pytest.mark.parametrize("who", ["copy", "index"])
@pytest.mark.parametrize("way", ["crash", "exit", "killed", "deaf"])
def test_a_worker_that_ends_is_one_failed_call(scene: Scene, who: str, way: str) -> None:
    scene.orders(**{who: way})  # type: ignore[arg-type]
    scene.victim.refuses(scene.load, Unavailable, resumable=True)
    scene.orders()
    scene.load()


def test_a_worker_that_hangs_does_not_hold_a_call_past_its_deadline(scene: Scene) -> None:
    scene.orders(index="sleep")
    with pytest.raises(DeadlineExceeded):
        scene.load(call=Call(deadline=time.monotonic() + 1))
    scene.victim.unharmed(resumable=True)
    scene.orders()
    scene.load()
