"""The images that orlop writes for tars that mean harm: the kernel mounts them, in a mount namespace that is
thrown away, reads them whole, shows the tree that orlop says they hold, and has nothing to complain of."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orlop.config import DEFAULT_LIMITS
from orlop.errors import Error, Internal
from orlop.testing import applied
from orlop.testing.conformance import model
from orlop.testing.conformance.model import Tree
from orlop.testing.layers import Layer
from orlop.testing.strategies import mutated, stacks, tars, wild_layers
from support.fuzzing import soak, trials
from support.kernelread import Reader, Reading

pytestmark = pytest.mark.root

LIMITS = replace(DEFAULT_LIMITS, file_size=8 << 20, layer_entries=20_000)
HOSTILE = st.lists(
    st.one_of(tars(wild_layers(most=4)), mutated(tars(stacks(most=1).map(lambda layers: layers[0])))),
    min_size=1,
    max_size=2,
)
CAPABILITY = bytes.fromhex("0100000200040000000000000000000000000000")  # cap_net_bind_service+ep
_NESTED = "trusted.overlay."


@pytest.fixture
def reader(workdir: Path) -> Iterator[Reader]:
    with Reader(workdir) as running:
        yield running


def unnested(tree: Tree) -> Tree:
    """A tree read without an overlay over it, as one shows it."""
    return {
        path: replace(
            entry,
            xattrs=tuple(
                sorted(
                    (
                        _NESTED + key[len(_NESTED) + len("overlay.") :] if key.startswith(_NESTED) else key,
                        value,
                    )
                    for key, value in entry.xattrs
                )
            ),
        )
        for path, entry in tree.items()
    }


def read(reader: Reader, image: applied.Applied) -> Reading:
    """What the kernel makes of it.  Its log is everybody's: a complaint counts if it comes each time."""
    for _ in range(3):
        found = reader.read(image.image, image.devices)
        if not found.log:
            break
    assert found.log == []
    assert found.trouble == ""
    return found


def shown_alike(reader: Reader, layers: list[bytes]) -> bool:
    """Whether there was anything to show."""
    try:
        image = applied.merged(layers, limits=LIMITS)
    except Internal:
        raise
    except Error:
        return False
    expected = applied.shown([image])
    actual = unnested(read(reader, image).tree)
    differing = {
        path: (expected.get(path), actual.get(path))
        for path in expected.keys() | actual.keys()
        if expected.get(path) != actual.get(path)
    }
    assert differing == {}
    return True


@pytest.mark.hostile(1, 3, 6, 7, 8, 9, 10, 11, 13, 34, 41)
def test_the_kernel_shows_what_hostile_tars_were_made_into_and_complains_of_nothing(reader: Reader) -> None:
    shown = 0

    @trials(80)
    @given(HOSTILE)
    def check(layers: list[bytes]) -> None:
        nonlocal shown
        shown += shown_alike(reader, layers)

    check()
    assert shown >= 20


@pytest.mark.hostile(9, 41, 42)
def test_the_kernel_shows_what_the_model_says(reader: Reader) -> None:
    @trials(30)
    @given(stacks())
    def check(layers: list[Layer]) -> None:
        image = applied.merged([layer.tar() for layer in layers])
        assert unnested(read(reader, image).tree) == model.apply(layers)

    check()


EXTREMES = {
    "xattrs of 64 KiB": Layer().file("f", xattrs={"user.a": b"x" * 65_535}).folder("d", xattrs={"trusted.a": b"y" * 65_535}),
    "hundreds of xattrs": Layer().file("f", xattrs={f"user.{number}": b"v" for number in range(900)}),
    "capabilities": Layer().file("f", b"x", xattrs={"security.capability": CAPABILITY}),
    "names of 255 bytes": Layer().file(b"\xff" * 255).file(b"d/" + "ß".encode() * 127).symlink("l", b"t" * 4095),
    "times and ids at their ends": Layer().file("f", uid=2**32 - 2, gid=2**32 - 2, mtime_ns=(2**40) * 10**9 + 1).file(
        "g", mtime_ns=-(2**40) * 10**9 - 1
    ),
    "a folder of a thousand": Layer([member for number in range(1_000) for member in Layer().file(f"d/{number:05}").members]),
    "folders a hundred deep": Layer().file("/".join(["d"] * 100) + "/f", b"deep"),
    "a thousand names of one file": Layer(
        [*Layer().file("f", b"1").members, *(m for n in range(1_000) for m in Layer().hardlink(f"l{n}", "f").members)]
    ),
    "holes": Layer().sparse("s", 5 << 20, (4096, b"a" * 512), (1 << 20, b"b" * 512)).sparse("t", 1 << 20).sparse("u", 1),
    "devices at their ends": Layer().device("c", "char", 4095, 1_048_575).device("b", "block", 4095, 0).device("z", "char", 0, 1),
    "nothing at all": Layer(),
}  # fmt: skip


@pytest.mark.hostile(8, 11, 14, 29, 42)
@pytest.mark.parametrize("case", EXTREMES)
def test_the_kernel_shows_what_is_at_the_end_of_all_ranges(reader: Reader, case: str) -> None:
    assert shown_alike(reader, [EXTREMES[case].tar()])


@pytest.mark.soak
def test_the_kernel_shows_hostile_tars_without_end(reader: Reader, soak_seconds: float) -> None:
    shown = 0

    @settings(trials(200), derandomize=False)
    @given(HOSTILE)
    def check(layers: list[bytes]) -> None:
        nonlocal shown
        shown += shown_alike(reader, layers)

    rounds = soak(check, soak_seconds)
    assert shown, f"nothing in {rounds} rounds"
