"""Where the things of an image came from: one path's story and the whole tree's beside one another.

Both are beside mounted trees in `tests/integration/test_compare.py`.
"""

from __future__ import annotations

import random
import stat
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis

from orlop.errors import Cancelled, InvalidArgument, ResourceExhausted
from orlop.images.browsing.history import matched
from orlop.layers import trail
from orlop.layers.builder import IndexBuilder
from orlop.layers.index import IMPLIED, LayerIndex
from orlop.layers.origins import Origin, content_size, origin_of, origins, walk, wasted
from orlop.layers.tarread import TarReader
from orlop.layers.trail import Step, Trails, Version
from orlop.observe import Call, CancelToken
from orlop.spec.digest import DiffID
from orlop.spec.documents import History
from orlop.testing import layers as testing_layers
from orlop.testing.strategies import stacks
from support.layers import Layer
from support.random_layers import random_stack

CALL = Call()


def index_of(tar: bytes) -> LayerIndex:
    builder = IndexBuilder()
    for entry in TarReader([tar]):
        builder.add(entry)
    return builder.finish(len(tar))


def indexes(*layers: Layer) -> list[LayerIndex]:
    return [index_of(layer.tar()) for layer in layers]


def told(steps: Sequence[Step]) -> list[tuple[int, str, str, str]]:
    return [(step.layer, step.what, step.how, step.at.decode()) for step in steps]


def usable(tars: Sequence[bytes]) -> list[LayerIndex]:
    """The indexes of random layers; none where they contradict one another, so that there is no tree."""
    try:
        found = [index_of(tar) for tar in tars]
        origins(found, call=CALL)
    except InvalidArgument:
        return []
    return found


def every_path(found: Sequence[LayerIndex]) -> set[bytes]:
    return {index.path(node) for index in found for node in range(len(index))}


def expected(found: Sequence[LayerIndex], version: Version) -> Origin:
    """A version in the terms of the merged tree, which knows no node of a folder that is implied."""
    implied = bool(found[version.layer].flags[version.node] & IMPLIED)
    return Origin(version.layer, -1 if implied else version.node)


def check(found: list[LayerIndex]) -> None:
    """The story of every path ends, after each layer, where the merged tree of the layers so far has it."""
    trails = Trails(found, call=CALL)
    stories = {path: trails.steps(path) for path in every_path(found)}
    for count in range(1, len(found) + 1):
        tree = {path: origin_of(node) for path, node in walk(origins(found[:count], call=CALL))}
        shown: dict[bytes, Origin] = {}
        for path, steps in stories.items():
            passed = [step for step in steps if step.layer < count]
            if passed and passed[-1].version is not None:
                shown[path] = expected(found, passed[-1].version)
        assert shown == tree
    for path, steps in stories.items():
        assert trails.shown(path) == (steps[-1].version if steps else None)
        assert [step.version is None for step in steps] == [step.what == "deleted" for step in steps]


@pytest.mark.parametrize("seed", range(14))
def test_one_path_and_the_whole_tree_agree_after_every_layer(seed: int) -> None:
    check(usable([layer.tar() for layer in random_stack(random.Random(seed))]))


@hypothesis(max_examples=40)
@given(stacks())
def test_one_path_and_the_whole_tree_agree_on_drawn_layers(drawn: list[testing_layers.Layer]) -> None:
    check(usable([layer.tar() for layer in drawn]))


def test_a_file_that_was_replaced_deleted_and_brought_back_tells_all_of_it() -> None:
    base = Layer().folder("d").file("d/f", b"1").file("d/g", b"1")
    second = Layer().file("d/f", b"22")
    third = Layer().whiteout("d/f").opaque("d")
    fourth = Layer().file("d/f", b"4444")
    trails = Trails(indexes(base, second, third, fourth), call=CALL)
    assert told(trails.steps(b"d/f")) == [
        (0, "added", "entry", "d/f"),
        (1, "changed", "entry", "d/f"),
        (2, "deleted", "whiteout", "d/f"),
        (3, "added", "entry", "d/f"),
    ]
    assert told(trails.steps(b"d/g"))[1:] == [(2, "deleted", "opaque", "d")]
    assert told(trails.steps(b"nothing")) == []


def test_what_was_below_a_folder_goes_with_it() -> None:
    base = Layer().file("a/b/c", b"1").file("x/y", b"1").file("o/p", b"1")
    gone = Layer().whiteout("a").file("x", b"now a file").folder("o").opaque("o")
    trails = Trails(indexes(base, gone), call=CALL)
    assert told(trails.steps(b"a/b/c"))[1:] == [(1, "deleted", "whiteout", "a")]
    assert told(trails.steps(b"x/y"))[1:] == [(1, "deleted", "replaced", "x")]
    assert told(trails.steps(b"o/p"))[1:] == [(1, "deleted", "opaque", "o")]
    assert told(trails.steps(b"o"))[1:] == [(1, "changed", "entry", "o")]
    everything = Trails(indexes(base, Layer().opaque("").file("n")), call=CALL)
    assert told(everything.steps(b"x/y"))[1:] == [(1, "deleted", "opaque", "")]


def test_a_whiteout_of_what_is_not_there_is_no_step() -> None:
    trails = Trails(
        indexes(Layer().file("a"), Layer().whiteout("b"), Layer().whiteout("a"), Layer().whiteout("a")),
        call=CALL,
    )
    assert told(trails.steps(b"b")) == []
    assert [step.layer for step in trails.steps(b"a")] == [0, 2]


def test_a_folder_that_is_only_implied_keeps_its_layer() -> None:
    trails = Trails(
        indexes(Layer().folder("d", mode=0o700), Layer().file("d/f"), Layer().file("new/f")), call=CALL
    )
    assert [step.layer for step in trails.steps(b"d")] == [0]
    assert told(trails.steps(b"new")) == [(2, "added", "implied", "new")]
    assert [step.layer for step in trails.steps(b"")] == [0]


def test_a_hard_link_is_the_file_of_the_layer_that_brought_it() -> None:
    base = Layer().file("f", b"1").symlink("s", "d").file("d/g", b"2")
    linked = Layer().hardlink("again", to="f").hardlink("far", to="s/g").whiteout("f")
    found = indexes(base, linked, Layer().file("own", b"3").hardlink("own2", to="own"))
    trails = Trails(found, call=CALL)
    for path, names in ((b"again", b"f"), (b"far", b"d/g"), (b"own2", b"own")):
        (step,) = trails.steps(path)
        assert step.how == "link"
        assert step.version is not None
        assert found[step.version.layer].path(step.version.node) == names
    assert [step.layer for step in trails.steps(b"again")] == [1]
    assert trails.shown(b"again") == Version(layer=0, node=1)


def test_paths_are_resolved_within_the_root() -> None:
    base = (
        Layer()
        .file("usr/lib/x", b"1")
        .symlink("lib", "usr/lib")
        .symlink("up", "../../../lib")
        .symlink("loop", "loop")
    )
    base.symlink("usr/back", "/lib").symlink("usr/lib/last", "x")
    trails = Trails(indexes(base), call=CALL)
    for asked, meant in {
        "lib/x": "usr/lib/x",
        "/lib/../lib/./x": "usr/lib/x",
        "up/x": "usr/lib/x",
        "usr/back/last": "usr/lib/last",
        "lib": "lib",
        "lib/no/../way": "usr/lib/way",
        "usr/lib/x/y": "usr/lib/x/y",
        "../../..": "",
        "": "",
    }.items():
        assert trails.resolve(asked.encode()).decode() == meant
    assert trails.resolve(b"loop/x") == b"loop/x"


def test_what_is_wasted_is_what_nothing_shows() -> None:
    base = (
        Layer()
        .folder("d")
        .file("d/a", b"x" * 100)
        .file("d/b", b"y" * 10)
        .hardlink("b2", to="d/b")
        .symlink("l", "d")
    )
    base.sparse("holes", 100_000, [(8192, b"z" * 512)], how="gnu-1.0")
    top = (
        Layer().file("d/a", b"n" * 7).whiteout("d/b").whiteout("l").whiteout("holes").folder("d", mode=0o700)
    )
    last = Layer().whiteout("b2")
    found = indexes(base, top)
    (below, above) = wasted(found, call=CALL)
    # d/b is still there, under its other name
    assert (below.total, below.bytes, below.entries) == (100 + 10 + 512, 100 + 512, 4)
    assert [found[0].path(node) for node in below.nodes] == [b"d/a", b"holes"]
    assert (above.total, above.bytes, above.entries) == (7, 0, 0)
    found = [*found, *indexes(last)]
    assert [layer.bytes for layer in wasted(found, call=CALL)] == [622, 0, 0]


@pytest.mark.parametrize("seed", range(6))
def test_what_is_wasted_and_what_shows_are_all_there_is(seed: int) -> None:
    found = usable([layer.tar() for layer in random_stack(random.Random(seed))])
    shown = {origin_of(node) for _, node in walk(origins(found, call=CALL)) if stat.S_ISREG(node.mode)}
    for layer in wasted(found, call=CALL):
        index = found[layer.layer]
        here = {origin.node for origin in shown if origin.layer == layer.layer}
        assert not here & set(layer.nodes)
        assert layer.total == sum(content_size(index, node) for node in here | set(layer.nodes))
        assert layer.bytes == sum(content_size(index, node) for node in layer.nodes)


def test_links_that_lead_through_layer_after_layer_are_followed_within_bounds() -> None:
    def chain(length: int) -> list[LayerIndex]:
        links = [Layer().hardlink(f"f{number}", to=f"f{number - 1}") for number in range(1, length)]
        return indexes(Layer().file("f0", b"x"), *links)

    assert Trails(chain(40), call=CALL).shown(b"f39") == Version(layer=0, node=1)
    with pytest.raises(ResourceExhausted, match="too many layers"):
        Trails(chain(200), call=CALL).shown(b"f199")


def test_symlinks_that_make_it_long_are_followed_within_bounds() -> None:
    base = Layer().folder("a")
    base.symlink("s0", "a/.." * 900)
    for number in range(1, 30):
        base.symlink(f"s{number}", f"s{number - 1}/" * 600)
    tops = [Layer().hardlink(f"h{number}", to="s29/a") for number in range(40)]
    trails = Trails(indexes(base, *tops), call=CALL)
    trails.resolve(b"s29/s29/a")
    token = CancelToken()
    token.cancel()
    slow = Trails(indexes(base, *tops), call=Call(cancel=token))
    with pytest.raises(Cancelled):
        slow.resolve(b"s29/s29/a")


LINES = [History(created_by="a"), History(created_by="b", empty_layer=True), History(created_by="c")]


@pytest.mark.parametrize(
    ("history", "layers", "numbers"),
    [
        (LINES, 2, [("a", 1), ("b", 0), ("c", 2)]),
        (LINES, 1, [("a", 1), ("b", 0), ("c", 0)]),
        (LINES, 3, [("a", 1), ("b", 0), ("c", 2), ("", 3)]),
        ([], 2, [("", 1), ("", 2)]),
        ([History()], 0, [("", 0)]),
    ],
    ids=["as it should be", "fewer layers", "more layers", "no history", "no layers"],
)
def test_lines_of_a_history_are_matched_with_layers(
    history: list[History], layers: int, numbers: list[tuple[str, int]]
) -> None:
    diff_ids = tuple(DiffID(f"sha256:{number:064x}") for number in range(layers))
    found = matched(history, diff_ids)
    assert [(line.created_by, line.layer) for line in found] == numbers
    assert [line.diff_id for line in found if line.layer] == list(diff_ids)
    assert not any(line.diff_id for line in found if not line.layer)


def test_what_is_bounded_are_links_and_not_how_many_paths_are_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(trail, "_STEPS", 20)
    plain = [Layer().file("a/b/c/f", b"1"), Layer().file("a/b/c/f", b"22"), Layer().whiteout("a/b")]
    trails = Trails(indexes(*plain), call=CALL)
    for _ in range(50):
        assert [step.what for step in trails.steps(b"a/b/c/f")] == ["added", "changed", "deleted"]
    linked = [
        Layer().file("a/b/c/f", b"1"),
        *(Layer().hardlink(f"l{number}", to="a/b/c/f") for number in range(3)),
    ]
    trails = Trails(indexes(*linked), call=CALL)
    with pytest.raises(ResourceExhausted):
        list(map(trails.steps, [b"l2"] * 50))
