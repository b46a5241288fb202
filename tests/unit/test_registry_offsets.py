"""The arithmetic of uploads: what to send next, and what answers about it mean."""

from __future__ import annotations

import itertools
import random

import pytest

from orlop.registry.blobs.offsets import (
    CHUNK,
    FLOOR,
    LIFE,
    Course,
    Part,
    Verdict,
    judge,
    parse_length,
    parse_range,
)

MIB = 1 << 20


@pytest.mark.distribution("push.chunked.range")
@pytest.mark.parametrize(
    ("text", "bytes_held"),
    [
        ("0-0", 1),
        ("0-1048575", MIB),
        ("bytes=0-9", 10),
        ("bytes 0-9", 10),
        (" 0-9 ", 10),
        ("0--1", 0),
        ("0-999999999999999999", 10**18),
        ("0-9999999999999999999", None),
        ("5-9", None),
        ("0-", None),
        ("-9", None),
        ("0-9/10", None),
        ("0-٣", None),
        ("nonsense", None),
        ("", None),
        (None, None),
    ],
)
def test_a_range_is_read_in_every_form_that_registries_use(text, bytes_held):
    assert parse_range(text) == bytes_held


@pytest.mark.parametrize(
    ("text", "number"), [("7", 7), (" 7 ", 7), ("-7", 0), ("1e9", 0), ("", 0), (None, 0)]
)
def test_a_length_that_cannot_be_read_is_none(text, number):
    assert parse_length(text) == number


@pytest.mark.parametrize(
    ("method", "status", "resumed", "left", "verdict"),
    [
        ("PATCH", 202, False, True, Verdict.TAKEN),
        ("PATCH", 201, False, True, Verdict.TAKEN),
        ("PATCH", 204, False, True, Verdict.TAKEN),
        ("PUT", 201, False, True, Verdict.NAMED),
        ("PUT", 204, True, False, Verdict.NAMED),
        ("PUT", 202, False, True, Verdict.REFUSED),
        ("PATCH", 416, False, True, Verdict.ASK),
        ("PUT", 416, False, True, Verdict.ASK),
        ("PATCH", 413, False, True, Verdict.SMALLER),
        ("PATCH", 404, False, True, Verdict.AGAIN),
        ("PUT", 410, False, True, Verdict.AGAIN),
        *[("PATCH", status, False, True, Verdict.WAIT) for status in (408, 429, 500, 502, 503, 504)],
        ("PATCH", 501, False, True, Verdict.REFUSED),
        ("PATCH", 401, False, True, Verdict.ASK),
        ("PATCH", 401, False, False, Verdict.REFUSED),
        ("PATCH", 401, True, False, Verdict.REFUSED),
        ("PUT", 403, True, True, Verdict.REFUSED),
        ("PUT", 400, False, True, Verdict.REFUSED),
        ("PUT", 400, True, True, Verdict.AGAIN),
        ("PATCH", 307, True, True, Verdict.REFUSED),
    ],
)
def test_every_status_has_one_meaning(method, status, resumed, left, verdict):
    assert judge(status, method, resumed=resumed, left=left) is verdict


@pytest.mark.distribution("push.chunked.min-length")
@pytest.mark.parametrize(
    ("size", "chunk", "least", "lengths"),
    [
        (10, 0, 0, [10]),
        (10, 0, 100, [10]),
        (10, 4, 0, [4, 4, 2]),
        (10, 4, 7, [7, 3]),
        (10, 5, 0, [5, 5]),
        (10, 100, 0, [10]),
        (10, 4, 100, [10]),
        (0, 4, 0, [0]),
    ],
)
def test_chunks_follow_each_other_and_none_but_the_last_is_too_short(size, chunk, least, lengths):
    course = Course(size=size, retries=1, chunk=chunk, least=least)
    parts = []
    while not parts or not parts[-1].last:
        parts.append(course.next())
        assert course.took(None, parts[-1].first + (parts[-1].length or 0))
    assert [part.length for part in parts] == lengths
    assert [part.first for part in parts] == [sum(lengths[:number]) for number in range(len(lengths))]
    assert course.at == size


@pytest.mark.parametrize(
    ("part", "extent"),
    [((0, 10), "0-9"), ((10, 1), "10-10"), ((10, 0), None), ((0, None), None)],
)
def test_a_content_range_is_inclusive_and_never_empty(part, extent):
    assert Part(first=part[0], length=part[1], last=False).extent == extent


@pytest.mark.parametrize(
    ("header", "upto", "believed", "at"),
    [
        ("0-99", 100, True, 100),
        (None, 100, True, 100),
        ("rubbish", 100, True, 100),
        ("0-0", 100, True, 100),
        ("0-0", 1, True, 1),
        ("0-49", 100, True, 50),
        ("0-100", 100, False, 0),
    ],
)
def test_a_registry_may_have_taken_less_than_it_got_and_never_more(header, upto, believed, at):
    course = Course(size=1000, retries=1)
    course.sending(upto)
    assert course.took(header, upto) is believed
    assert course.at == at


@pytest.mark.parametrize(
    ("header", "sent", "useful", "at"),
    [
        ("0-99", 100, True, 100),
        ("0-49", 100, True, 50),
        ("0-100", 100, False, 0),
        (None, 100, False, 0),
        ("0-0", 100, False, 0),
        ("0-0", 1, True, 1),
        ("0-0", 0, True, 0),
        ("0--1", 100, True, 0),
        ("0-5", 0, False, 0),
    ],
)
def test_a_session_that_was_asked_is_gone_on_with_where_that_is_safe(header, sent, useful, at):
    course = Course(size=1000, retries=1)
    course.sending(sent)
    assert course.holds(header) is useful
    assert course.at == at


def test_after_trouble_it_goes_in_chunks():
    course = Course(size=100 * MIB, retries=1)
    assert course.next() == Part(first=0, length=100 * MIB, last=True)
    assert not course.resumed
    assert course.troubled()
    assert course.resumed
    assert course.next() == Part(first=0, length=CHUNK, last=False)


def test_troubles_without_progress_are_bounded_and_progress_starts_the_count_anew():
    course = Course(size=100 * MIB, retries=2)
    for number in range(20):
        assert course.troubled()
        course.sending((number + 1) * LIFE)
        assert course.holds(f"0-{(number + 1) * LIFE - 1}")
    assert [course.troubled() for _ in range(3)] == [True, True, False]


def test_bytes_that_a_new_session_gets_again_are_no_progress():
    course = Course(size=MIB, retries=2)
    for _ in range(2):
        course.sending(MIB // 2)
        assert course.holds(f"0-{MIB // 2 - 1}")
        assert course.restart()
        assert (course.at, course.sent) == (0, 0)
    assert not course.restart()


def test_what_is_too_large_is_halved_down_to_a_floor():
    course = Course(size=1 << 40, retries=1)
    lengths = []
    while course.shrink(course.next().length):
        lengths.append(course.next().length)
    assert lengths[0] == CHUNK
    assert lengths[-1] == FLOOR
    assert all(before // 2 == after for before, after in itertools.pairwise(lengths))


def test_what_is_too_large_is_not_halved_below_what_the_registry_wants():
    course = Course(size=1 << 40, retries=1, least=5 * MIB)
    assert course.shrink(1 << 40)
    assert course.shrink(course.next().length)
    assert course.next().length == 5 * MIB
    assert not course.shrink(course.next().length)


def test_against_a_registry_that_cuts_and_lies_as_it_likes_every_course_ends():
    """A model: whatever is answered, the loop of an upload is bounded and never goes past the end."""
    for seed in range(300):
        rng = random.Random(seed)
        size = rng.choice([1, LIFE, 3 * LIFE, MIB])
        course = Course(size=size, retries=3, chunk=rng.choice([0, LIFE, 3 * LIFE]))
        held = 0
        for _ in range(2_000):
            part = course.next()
            assert 0 <= part.first <= size
            assert part.length is not None
            assert part.first + part.length <= size
            upto = part.first + part.length
            course.sending(upto)
            said = rng.choice(["honest", "cut", "lie", "nothing", "lost"])
            if said == "honest":
                held = upto
                assert course.took(f"0-{held - 1}" if held else "0-0", upto)
                if course.at == size:
                    break
                continue
            held = rng.randint(0, upto)
            header = {"cut": f"0-{held - 1}", "lie": f"0-{upto + 5}", "nothing": None, "lost": None}[said]
            if not course.troubled():
                break
            if not course.holds(header):
                held = 0
                if not course.restart():
                    break
        else:
            pytest.fail(f"no end with seed {seed}")
