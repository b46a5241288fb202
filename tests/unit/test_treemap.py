"""Treemaps: the pieces fill the whole, do not overlap, and are as large as they should be."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orlop.explorer.treemap import Rect, layout

SIZES = st.lists(st.one_of(st.integers(0, 10**12), st.floats(0, 1e9, allow_subnormal=False)), max_size=25)


def overlap(one: Rect, other: Rect) -> float:
    width = min(one.x + one.width, other.x + other.width) - max(one.x, other.x)
    height = min(one.y + one.height, other.y + other.height) - max(one.y, other.y)
    return max(width, 0.0) * max(height, 0.0)


@given(SIZES, st.floats(1, 2000), st.floats(1, 2000))
def test_pieces_fill_the_whole_in_proportion_and_do_not_overlap(
    sizes: list[float], width: float, height: float
) -> None:
    found = layout(sizes, width, height)
    assert len(found) == len(sizes)
    whole, total = width * height, sum(sizes)
    for size, rect in zip(sizes, found, strict=True):
        assert rect.x >= 0
        assert rect.y >= 0
        assert rect.x + rect.width <= width * (1 + 1e-6)
        assert rect.y + rect.height <= height * (1 + 1e-6)
        assert rect.area == pytest.approx(whole * size / total if total else 0.0, rel=1e-3, abs=1e-6 * whole)
    for one, other in itertools.combinations(found, 2):
        assert overlap(one, other) <= 1e-6 * whole


def test_pieces_are_nearly_squares() -> None:
    for rect in layout([1] * 12, 400, 300):
        assert 0.5 <= rect.width / rect.height <= 2


@pytest.mark.parametrize(
    ("sizes", "width", "height"), [([], 5, 5), ([0, 0], 5, 5), ([1, 2], 0, 5), ([1], 5, -1)]
)
def test_nothing_has_no_area(sizes: list[int], width: float, height: float) -> None:
    assert all(rect.area == 0 for rect in layout(sizes, width, height))
    assert len(layout(sizes, width, height)) == len(sizes)


def test_the_largest_lies_at_the_upper_left_and_equals_keep_their_order() -> None:
    small, large, other = layout([1, 5, 1], 70, 10)
    assert (large.x, large.y) == (0, 0)
    assert (small.x, small.y) < (other.x, other.y)
