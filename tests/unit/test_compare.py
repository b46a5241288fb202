"""Trees beside each other without a kernel: chains of many shapes over random layers, and a model of them.

Each shape is compared with each: layers one upon the other as small images, of which many share the lower
ones, and all of them merged into one image, which shares none.
"""

from __future__ import annotations

import hashlib
import itertools
import random
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis

from orlop.erofs.reader import Image
from orlop.errors import InvalidArgument
from orlop.images.browsing.diff import _same_bytes, compare
from orlop.images.browsing.nodes import Tree
from orlop.layers.chainview import ChainView
from orlop.observe import Call
from orlop.testing import layers as testing_layers
from orlop.testing.applied import Applied, merged, shown, stacked
from orlop.testing.conformance.model import Entry
from orlop.testing.strategies import stacks
from support.random_layers import random_stack


@dataclass(frozen=True, slots=True)
class Shape:
    """Images upon one another, lowest first, and what they show."""

    stack: tuple[Applied, ...]
    tree: dict[bytes, Entry]


def shapes(tars: Sequence[bytes]) -> list[Shape]:
    """The lowest layer, the lowest two, and so on, upon one another and as one image; none if refused."""
    try:
        upon = stacked(tars)
        whole = merged(tars)
    except InvalidArgument:  # the layers contradict one another
        return []
    stacks_of = (
        [(whole,)] + [tuple(upon[:count]) for count in range(1, len(upon) + 1)] if upon else [(whole,)]
    )
    return [Shape(stack, dict(shown(stack))) for stack in stacks_of]


class Shelf:
    """Opens the trees of shapes; the bytes of their devices lie in files."""

    def __init__(self, folder: Path, exit_stack: ExitStack) -> None:
        self._folder, self._exit = folder, exit_stack

    def tree(self, shape: Shape) -> Tree:
        images, devices = [], []
        for one in reversed(shape.stack):
            image = Image(one.image)
            image.uuid = hashlib.sha256(one.image).digest()[:16]  # as the store's, other for other images
            images.append(image)
            devices.append([self._file(data) for data in one.devices])
        tree = Tree(ChainView(images), devices, call=Call())
        self._exit.callback(tree.close)
        return tree

    def _file(self, data: bytes) -> Path:
        path = self._folder / hashlib.sha256(data).hexdigest()
        if not path.exists():
            path.write_bytes(data)
        return path


def expected(old: dict[bytes, Entry], new: dict[bytes, Entry]) -> list[tuple[bytes, str, tuple[str, ...]]]:
    """All differences of two models."""
    found: list[tuple[bytes, str, tuple[str, ...]]] = []
    for path in sorted({*old, *new}, key=lambda path: path.split(b"/") if path else []):
        one, other = old.get(path), new.get(path)
        if one is None or other is None:
            found.append((path, "added" if one is None else "deleted", ()))
            continue
        alike = one.kind == other.kind
        fields = {
            "type": not alike,
            "mode": one.mode != other.mode,
            "owner": (one.uid, one.gid) != (other.uid, other.gid),
            "mtime": one.mtime_ns != other.mtime_ns,
            "xattrs": one.xattrs != other.xattrs,
            "target": alike and one.target != other.target,
            "device": alike and one.device != other.device,
            "content": alike and one.digest != other.digest,
        }
        if any(fields.values()):
            found.append((path, "changed", tuple(name for name, differs in fields.items() if differs)))
    return found


def check(every: Sequence[Shape], folder: Path) -> None:
    with ExitStack() as exit_stack:
        shelf = Shelf(folder, exit_stack)
        for one, other in itertools.product(every, repeat=2):
            old, new = shelf.tree(one), shelf.tree(other)
            found = [(pair.path, pair.what, pair.fields) for pair in compare(old, new, old.root, new.root)]
            assert found == expected(one.tree, other.tree)


@pytest.mark.parametrize("seed", range(6))
def test_trees_of_any_shape_differ_as_their_models_do(tmp_path: Path, seed: int) -> None:
    check(shapes([layer.tar() for layer in random_stack(random.Random(seed), layers=4)]), tmp_path)


@hypothesis(max_examples=12, suppress_health_check=[*HealthCheck])
@given(stacks(), stacks(most=2))
def test_trees_of_drawn_layers_differ_as_their_models_do(
    tmp_path: Path, drawn: list[testing_layers.Layer], other: list[testing_layers.Layer]
) -> None:
    every = [shape for layers in (drawn, other) for shape in shapes([layer.tar() for layer in layers])]
    check(every[:4], tmp_path)


def cut(data: bytes, dice: random.Random) -> Iterator[bytes]:
    while data:
        length = dice.randint(0, 9)
        yield data[:length] or data[:1]
        data = data[length or 1 :]


def test_bytes_are_compared_however_they_are_cut() -> None:
    dice = random.Random(1)
    for _ in range(200):
        data = dice.randbytes(dice.randint(0, 40))
        other = bytearray(data)
        assert _same_bytes(cut(data, dice), cut(data, dice))
        if other:
            other[dice.randrange(len(other))] ^= 1
            assert not _same_bytes(cut(data, dice), cut(bytes(other), dice))
        assert not _same_bytes(cut(data, dice), cut(data + b"x", dice))
