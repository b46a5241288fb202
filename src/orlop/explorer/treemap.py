"""Sizes as areas: a rectangle cut into one piece for each, as near to squares as it goes.

The squarified treemap of Bruls, Huizing and van Wijk (2000).  Numbers in, numbers out: what the pieces stand
for, how deep they are nested and how they are drawn is the caller's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from orlop.values import dataclass

__all__ = ["Rect", "layout"]


@dataclass(frozen=True, slots=True)
class Rect:
    """A rectangle: its left and upper corner, how wide and how high it is."""

    x: float
    y: float
    width: float
    height: float

    @property
    def area(self) -> float:
        """How much there is of it."""
        return self.width * self.height


def layout(sizes: Sequence[int | float], width: float, height: float) -> list[Rect]:
    """One rectangle for each size, in the order of the sizes, that fill ``width`` by ``height`` together.

    Areas are in the proportion of the sizes; the largest lies at the upper left.  What has no size, or all if
    there is no room, gets a rectangle without an area.  The same sizes always give the same rectangles.

    >>> layout([1, 3], 4, 1)
    [Rect(x=3.0, y=0.0, width=1.0, height=1.0), Rect(x=0.0, y=0.0, width=3.0, height=1.0)]
    """
    found = [Rect(0.0, 0.0, 0.0, 0.0)] * len(sizes)
    order = sorted((number for number, size in enumerate(sizes) if size > 0), key=lambda n: (-sizes[n], n))
    total = float(sum(sizes[number] for number in order))
    if not order or width <= 0 or height <= 0:
        return found
    scale = width * height / total
    areas = [sizes[number] * scale for number in order]
    for number, rect in zip(
        order, _squarified(areas, Rect(0.0, 0.0, float(width), float(height))), strict=True
    ):
        found[number] = rect
    return found


def _squarified(areas: list[float], free: Rect) -> Iterator[Rect]:
    """Rows of pieces along the shorter side of what is free, each row as long as it gets better by it."""
    begin = 0
    while begin < len(areas):
        side = min(free.width, free.height)
        end = begin + 1
        total = areas[begin]
        worst = _worst(areas[begin], areas[begin], total, side)
        while end < len(areas):
            longer = _worst(areas[begin], areas[end], total + areas[end], side)
            if longer > worst:
                break
            worst, total, end = longer, total + areas[end], end + 1
        last = end == len(areas)
        yield from _row(areas[begin:end], total, free, last=last)
        free = _left(total, free)
        begin = end


def _worst(most: float, least: float, total: float, side: float) -> float:
    """The worst proportion of sides in a row of pieces, of which these are the largest and the smallest."""
    if side <= 0 or least <= 0:
        return 0.0
    thick = total / side
    return max(most / thick / thick, thick * thick / least)


def _row(areas: list[float], total: float, free: Rect, *, last: bool) -> Iterator[Rect]:
    """The pieces of one row; the ``last`` row takes all that is free, whatever rounding left."""
    upright = free.width >= free.height  # the row stands at the left, else it lies at the top
    side = free.height if upright else free.width
    thick = _thickness(total, free)
    if last:
        thick = free.width if upright else free.height
    at = 0.0
    for area in areas:
        length = side * area / total
        if upright:
            yield Rect(free.x, free.y + at, thick, length)
        else:
            yield Rect(free.x + at, free.y, length, thick)
        at += length


def _left(total: float, free: Rect) -> Rect:
    """What is free beside a row."""
    thick = _thickness(total, free)
    if free.width >= free.height:
        return Rect(free.x + thick, free.y, max(free.width - thick, 0.0), free.height)
    return Rect(free.x, free.y + thick, free.width, max(free.height - thick, 0.0))


def _thickness(total: float, free: Rect) -> float:
    side, most = (free.height, free.width) if free.width >= free.height else (free.width, free.height)
    return min(total / side, most) if side > 0 else 0.0
