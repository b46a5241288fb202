"""The plan of a download, step by step: which piece next, over how many connections, what after trouble."""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orlop.registry.blobs.ranges import Pace, Piece, Ranges, Traffic

MB = 1 << 20
PACE = Pace(split=32 * MB, piece=8 * MB, most=64 * MB, window=256 * MB, interval=1.0, hold=10.0)


def plan(size: int, *, most: int = 4, pace: Pace = PACE, gaps: list[tuple[int, int]] | None = None) -> Ranges:
    return Ranges(size=size, gaps=[(0, size)] if gaps is None else gaps, most=most, pace=pace)


def piece_of(found: Piece | None) -> tuple[int, int, bool]:
    assert found is not None
    return found.at, found.end, found.open


@pytest.mark.parametrize(("size", "most", "expected"), [
    (1, 4, (0, 1, True)),
    (40 * MB, 4, (0, 40 * MB, True)),
    (1000 * MB, 4, (0, 32 * MB, False)),
    (1000 * MB, 1, (0, 1000 * MB, True)),
])  # fmt: skip
def test_a_blob_begins_over_one_connection(size: int, most: int, expected: tuple[int, int, bool]) -> None:
    one = plan(size, most=most)
    assert piece_of(one.take(0)) == expected
    assert one.take(0) is None
    assert not one.wait


def test_what_is_there_is_not_given_out() -> None:
    one = plan(100, gaps=[(10, 20), (50, 100)])
    first = one.take(10)
    assert piece_of(first) == (10, 20, False)
    assert first is not None
    one.advance(first, 10, 0.1)
    one.finish(first)
    assert piece_of(one.take(50)) == (50, 100, True)
    assert plan(100, gaps=[]).complete


@dataclass
class Link:
    """Plays connections: so many bytes a second for each of them, and no more than ``most`` together."""

    plan: Ranges
    each: float
    most: float
    front: int = 0
    now: float = 0.0
    pieces: list[Piece] = field(default_factory=list)
    connections: int = 0
    highest: int = 0

    def run(self, seconds: float, step: float = 0.1) -> None:
        end = self.now + seconds
        self.connections = self.connections or 1
        while self.now < end and not self.plan.complete:
            self.now += step
            idle = self.connections - len(self.pieces)
            for _ in range(idle):
                found = self.plan.take(self.front)
                if found is not None:
                    self.pieces.append(found)
                elif not self.plan.wait:
                    self.connections = max(len(self.pieces), 1)
            self.highest = max(self.highest, len(self.pieces))
            speed = min(self.each, self.most / max(len(self.pieces), 1))
            for piece in list(self.pieces):
                count = min(piece.left, int(speed * step))
                if self.plan.advance(piece, count, self.now):
                    self.connections += 1
                if not piece.left:
                    self.plan.finish(piece)
                    self.pieces.remove(piece)
            self.front = min((piece.at for piece in self.pieces), default=self.front)


def test_connections_are_added_while_each_brings_more() -> None:
    link = Link(plan(4000 * MB), each=10 * MB, most=1000 * MB)
    link.run(20)
    assert (link.plan.target, link.highest) == (4, 4)


def test_a_connection_that_brings_nothing_goes_and_the_next_trial_is_later() -> None:
    link = Link(plan(4000 * MB), each=30 * MB, most=31 * MB)
    link.run(9)
    assert (link.plan.target, link.highest) == (1, 2)
    trials = 0
    for _ in range(110):
        before = link.plan.target
        link.run(1)
        trials += link.plan.target > before
    assert trials in {2, 3}  # after 10, 20 and 40 seconds


def test_two_may_help_where_three_do_not() -> None:
    link = Link(plan(8000 * MB), each=10 * MB, most=20 * MB)
    link.run(12)
    assert (link.plan.target, link.highest) == (2, 3)


def test_what_is_left_must_be_worth_a_connection() -> None:
    link = Link(plan(70 * MB), each=10 * MB, most=1000 * MB)
    link.run(3)
    assert link.plan.target == 2
    one = plan(40 * MB)
    first = one.take(0)
    assert first is not None
    assert not one.advance(first, 20 * MB, 5.0)


def test_downloads_from_one_registry_share_what_connections_there_are_to_spare() -> None:
    traffic = Traffic(spare=1)
    one, other = (
        Ranges(size=900 * MB, gaps=[(0, 900 * MB)], most=4, pace=PACE, traffic=traffic) for _ in "ab"
    )
    first, second = one.take(0), other.take(0)
    assert first is not None
    assert second is not None
    assert one.advance(first, MB, 2.0)
    assert not other.advance(second, MB, 2.0)
    one.close()
    one.close()
    assert other.advance(second, MB, 4.0)
    assert traffic.total == 3 * MB


def test_nothing_begins_further_ahead_than_the_window() -> None:
    one = plan(4000 * MB, pace=replace(PACE, interval=0, gain=0, window=40 * MB))
    first = one.take(0)
    assert first is not None
    assert one.advance(first, 1, 0.0)
    second = one.take(1)
    assert piece_of(second) == (32 * MB, 40 * MB, False)
    assert second is not None
    one.advance(second, 8 * MB, 0.0)
    one.finish(second)
    assert piece_of(one.take(1)) == (40 * MB, 48 * MB, False)
    assert one.target == 3
    assert one.take(1) is None
    assert one.wait  # until the front moves
    assert piece_of(one.take(9 * MB)) == (48 * MB, 56 * MB, False)


def test_what_did_not_come_is_given_out_again_in_one() -> None:
    one = plan(4000 * MB)
    first = one.take(0)
    assert first is not None
    one.advance(first, 5, 0.1)
    one.give_back(first)
    assert piece_of(one.take(5)) == (5, 5 + 32 * MB, False)


def test_a_connection_that_fails_beside_others_is_not_missed_at_once() -> None:
    one = plan(4000 * MB)
    first = one.take(0)
    assert first is not None
    assert one.advance(first, 10 * MB, 1.0)
    second = one.take(0)
    assert second is not None
    one.give_back(second)
    one.shrink(1.1)
    assert one.target == 1
    assert not one.advance(first, 10 * MB, 5.0)
    assert one.advance(first, 10 * MB, 12.0)


def test_where_ranges_are_refused_one_stream_brings_all_the_rest() -> None:
    one = plan(4000 * MB)
    first = one.take(0)
    assert first is not None
    one.advance(first, 10 * MB, 1.0)
    second = one.take(0)
    assert second is not None
    one.give_back(second)
    one.refuse()
    assert one.target == 1
    assert one.take(0) is None
    one.give_back(first)
    assert piece_of(one.take(0)) == (10 * MB, 4000 * MB, True)
    assert not one.advance(first, 10 * MB, 99.0)


def test_an_answer_with_everything_is_the_stream_that_brings_it() -> None:
    one = plan(4000 * MB)
    first = one.take(0)
    assert first is not None
    first.open = True
    one.refuse()
    assert piece_of(first) == (0, 4000 * MB, True)
    assert one.take(0) is None


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32))
def test_every_byte_comes_once_whatever_happens(seed: int) -> None:
    dice = random.Random(seed)
    size = dice.randrange(1, 2000)
    there = bytearray(size)
    cut = dice.randrange(size)
    gaps = [gap for gap in ((0, cut // 2), (cut, size)) if gap[0] < gap[1]]
    for at in range(cut // 2, cut):
        there[at] = 1
    pace = Pace(split=50, piece=20, most=200, window=300, interval=dice.choice([0, 0.5]), gain=0, hold=1)
    one = Ranges(size=size, gaps=gaps, most=dice.randrange(1, 5), pace=pace)
    pieces: list[Piece] = []
    refused, now = False, 0.0
    for _ in range(20_000):
        if one.complete:
            break
        now += 0.1
        front = there.find(0) if 0 in there else size
        if (found := one.take(front)) is not None:
            pieces.append(found)
        piece = dice.choice(pieces)
        match dice.randrange(20):
            case 0:
                one.give_back(piece)
                pieces.remove(piece)
                if pieces:
                    one.shrink(now)
            case 1 if dice.random() < 0.2:
                one.refuse()
                refused = True
            case _:
                count = min(dice.randrange(1, 30), piece.left)
                for at in range(piece.at, piece.at + count):
                    assert refused or not there[at]
                    there[at] = 1
                one.advance(piece, count, now)
        for piece in [piece for piece in pieces if not piece.left]:
            one.finish(piece)
            pieces.remove(piece)
        assert one.running == len(pieces) <= 4
    assert one.complete
    assert all(there)
    one.close()
