"""What a worker says of a layer is refused, or it is as harmless as an honest worker's word."""

from __future__ import annotations

import os
import random
import stat
import time

import pytest

from orlop.erofs.reader import Image
from orlop.erofs.writer import build
from orlop.errors import InvalidArgument
from orlop.layers.datalayout import DataLayout
from orlop.layers.index import LayerIndex
from orlop.layers.merge import Merger
from orlop.layers.store import copies
from support.lies import BASE, HONEST, LIES, REFUSALS, TAR, Lie, index_of, mutated

BELOW = index_of(BASE)


@pytest.mark.hostile(35)
@pytest.mark.parametrize(
    "lie", [lie for lie in LIES.values() if lie.answer.startswith(b"+") and not lie.early], ids=lambda _: ""
)
def test_a_lie_is_not_believed(lie: Lie) -> None:
    with pytest.raises(lie.error):
        LayerIndex.decode(lie.answer[1:]).validate(tar_size=len(TAR))


def test_the_truth_is_believed() -> None:
    assert believed(HONEST[1:])


def believed(answer: bytes) -> bool:
    """Whether an answer describes a layer; if so, all that is made of it must be sound."""
    try:
        index = LayerIndex.decode(answer)
        index.validate(tar_size=len(TAR))
    except REFUSALS:
        return False
    layout = DataLayout(index)
    for source, target, length in copies(index, layout):
        assert source + length <= len(TAR)
        assert target + length <= layout.size
    merger, devices = Merger(), [BELOW.tar_size, len(TAR), max(layout.size, 512)]
    merger.apply(BELOW, lambda data: 1)
    try:
        merger.apply(index, lambda data: 3 if data else 2, layout)
    except InvalidArgument:
        return True  # a hard link to nothing
    with Image(build(merger.finish(), devices=devices, uuid=bytes(16))) as image:
        for _, inode in image.walk():  # which looks at every extent, too: none leaves its device
            image.xattrs(inode)
            if stat.S_ISREG(inode.mode):
                assert sum(extent.length for extent in image.extents(inode)) == inode.size
    return True


def try_many(seed: int, count: int) -> tuple[int, int]:
    dice = random.Random(seed)
    found = [believed(mutated(dice)) for _ in range(count)]
    return sum(found), len(found)


@pytest.mark.hostile(35)
def test_any_answer_is_refused_or_sound() -> None:
    sound, tried = try_many(5, 3_000)
    assert 0 < sound < tried  # else nothing was tried


@pytest.mark.soak
@pytest.mark.hostile(35)
def test_very_many_answers_are_refused_or_sound(soak_seconds: float) -> None:
    seed = int(os.environ.get("SEED") or time.time())
    end, tried = time.monotonic() + soak_seconds, 0
    while time.monotonic() < end:
        print(f"SEED={seed} after {tried}")  # noqa: T201 - shown with a failure
        tried += try_many(seed, 1_000)[1]
        seed += 1
