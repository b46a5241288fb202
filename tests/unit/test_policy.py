"""Which images a policy takes: a table, and what holds for all."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orlop.errors import InvalidArgument
from orlop.images.collection.policy import Candidate, LayerSizes, check_keep, choose, has_label
from orlop.images.upkeep import Keep

NOW = 1000.0
SIZES = {name: LayerSizes(tar=size, disk=size + 1) for name, size in {"base": 100, "a": 10, "b": 20}.items()}


def image(name: str, used: float, *layers: str, held: bool = False, **labels: str) -> Candidate:
    return Candidate(
        id=name, names=(name,), used=used, layers=layers, held=held, labels=frozenset(labels.items())
    )


IMAGES = [
    image("new", 990, "base", "a"),
    image("old", 10, "base", "b"),
    image("held", 5, "base", held=True),
    image("kept", 1, "b", keep="yes"),
    image("mid", 500, "base"),
]


@pytest.mark.parametrize(
    ("keep", "gone"),
    [
        (Keep(), []),
        (Keep(age=100), ["kept", "old", "mid"]),
        (Keep(age=100, labels=("keep",)), ["old", "mid"]),
        (Keep(age=100, labels=("keep=yes",)), ["old", "mid"]),
        (Keep(age=100, labels=("keep=no", "other")), ["kept", "old", "mid"]),
        (Keep(age=0), ["kept", "old", "mid", "new"]),
        (Keep(age=5000), []),
        (Keep(count=5), []),
        (Keep(count=3), ["kept", "old"]),
        (Keep(count=0), ["kept", "old", "mid", "new"]),
        (Keep(size=130), []),
        (Keep(size=129), ["kept", "old"]),
        (Keep(size=129, labels=("keep",)), ["old", "mid", "new"]),  # b stays with what is kept
        (Keep(size=0), ["kept", "old", "mid", "new"]),
        (Keep(free=50), []),
        (Keep(free=51), ["kept", "old"]),
        (Keep(free=72), ["kept", "old", "mid", "new"]),
        (Keep(count=4, age=600), ["kept", "old"]),
    ],
    ids=str,
)
def test_the_images_used_longest_ago_go_until_every_limit_is_met(keep: Keep, gone: list[str]) -> None:
    assert [one.id for one in choose(IMAGES, keep, layers=SIZES, now=NOW, free=50)] == gone


def test_what_a_lease_or_a_pin_holds_is_not_counted_as_room_to_gain() -> None:
    sizes = {"a": LayerSizes(tar=10, disk=11, held=True), "b": LayerSizes(tar=20, disk=21)}
    images = [image("one", 1, "a"), image("two", 2, "b"), image("three", 3)]
    gone = choose(images, Keep(free=21), layers=sizes, now=NOW, free=0)
    assert [one.id for one in gone] == ["one", "two"]


def test_a_clock_that_went_back_takes_nothing_by_age() -> None:
    assert choose(IMAGES, Keep(age=100), layers=SIZES, now=0, free=50) == []


@pytest.mark.parametrize(
    "keep",
    [
        Keep(age=-1),
        Keep(age=float("nan")),
        Keep(count=-1),
        Keep(size=-1),
        Keep(free=-5),
        Keep(labels=("=x",)),
    ],
    ids=str,
)
def test_limits_that_mean_nothing_are_refused(keep: Keep) -> None:
    with pytest.raises(InvalidArgument):
        check_keep(keep, "collect")


names = st.sampled_from("abcdef")
candidates = st.builds(
    Candidate,
    id=st.uuids().map(str),
    names=st.tuples(names),
    used=st.floats(0, 1000),
    layers=st.lists(names, max_size=4).map(tuple),
    held=st.booleans(),
    labels=st.frozensets(st.tuples(names, names), max_size=2),
)
limits = st.one_of(st.none(), st.integers(0, 60))


@given(
    images=st.lists(candidates, max_size=8, unique_by=lambda one: one.id),
    keep=st.builds(
        Keep,
        age=limits,
        count=limits,
        size=limits,
        free=limits,
        labels=st.lists(names, max_size=2).map(tuple),
    ),
    sizes=st.dictionaries(names, st.builds(LayerSizes, tar=st.integers(0, 30), disk=st.integers(0, 30))),
    free=st.integers(0, 60),
)
def test_nothing_that_is_kept_goes_and_nothing_goes_without_need(
    images: list[Candidate], keep: Keep, sizes: dict[str, LayerSizes], free: int
) -> None:
    gone = choose(images, keep, layers=sizes, now=500.0, free=free)
    assert not any(one.held or any(has_label(one.labels, label) for label in keep.labels) for one in gone)
    assert sorted(gone, key=lambda one: (one.used, one.names)) == gone
    if not keep.limits:
        assert gone == []

    def met(without: list[Candidate]) -> bool:
        left = [one for one in images if one not in without]
        used = {layer for one in left for layer in one.layers}
        before = {layer for one in images for layer in one.layers}
        freed = sum(sizes[layer].disk for layer in before - used if layer in sizes)
        oldest = min((one.used for one in left if may_go(one)), default=500.0)
        return (
            (keep.age is None or oldest >= 500.0 - keep.age)
            and (keep.count is None or len(left) <= keep.count)
            and (keep.size is None or sum(sizes[layer].tar for layer in used if layer in sizes) <= keep.size)
            and (keep.free is None or free + freed >= keep.free)
        )

    def may_go(one: Candidate) -> bool:
        return not (one.held or any(has_label(one.labels, label) for label in keep.labels))

    assert met(gone) or all(one in gone for one in images if may_go(one))
    assert not gone or not met(gone[:-1])
