"""What servers say about when they may be asked again, pauses that all share, warnings: without I/O."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orlop.registry.net.ratelimits import Limit, Pauses, in_words, limit_of
from orlop.registry.warnings import MAX_WARNINGS, parse_warnings

NOW = datetime(2026, 1, 1, 12, 0, 0, tzinfo=UTC)
EPOCH = int(NOW.timestamp())


@pytest.mark.hostile(38)
@pytest.mark.distribution("errors.too-many-requests")
@pytest.mark.parametrize(
    ("status", "headers", "limit"),
    [
        (429, {}, Limit()),
        (429, {"retry-after": "7"}, Limit(seconds=7.0)),
        (503, {"retry-after": "7"}, Limit(seconds=7.0)),
        (429, {"retry-after": "Thu, 01 Jan 2026 12:01:00 GMT"}, Limit(seconds=60.0)),
        (429, {"retry-after": "Thu, 01 Jan 2026 11:00:00 GMT"}, Limit(seconds=0.0)),
        (429, {"retry-after": "soon", "ratelimit-reset": "30"}, Limit(seconds=30.0)),
        # Retry-After goes before all else.
        (429, {"retry-after": "7", "ratelimit-reset": "30"}, Limit(seconds=7.0)),
        # The IETF's draft, older and newer.
        (429, {"ratelimit-remaining": "0", "ratelimit-reset": "30"}, Limit(seconds=30.0, used_up=True)),
        (429, {"ratelimit-limit": "100, 100;w=60", "ratelimit-reset": "30"}, Limit(seconds=30.0)),
        (429, {"ratelimit": "limit=100, remaining=0, reset=50"}, Limit(seconds=50.0, used_up=True)),
        (429, {"ratelimit": '"default";r=0;t=40'}, Limit(seconds=40.0, used_up=True)),
        # Docker Hub: how long the window is, not when it ends.
        (
            429,
            {"ratelimit-limit": "100;w=21600", "ratelimit-remaining": "0;w=21600"},
            Limit(seconds=21600.0, at_most=True, used_up=True),
        ),
        (
            429,
            {"ratelimit-limit": "100;w=600", "ratelimit-remaining": "0"},
            Limit(seconds=600.0, at_most=True, used_up=True),
        ),
        # GitHub: seconds since 1970, also with 403.
        (
            429,
            {"x-ratelimit-remaining": "0", "x-ratelimit-reset": f"{EPOCH + 90}"},
            Limit(seconds=90.0, used_up=True),
        ),
        (
            403,
            {"x-ratelimit-remaining": "0", "x-ratelimit-reset": f"{EPOCH + 90}"},
            Limit(seconds=90.0, used_up=True),
        ),
        (429, {"x-ratelimit-reset": f"{EPOCH - 90}"}, Limit(seconds=0.0)),
        # What comes with every answer says nothing of this one.
        (403, {"x-ratelimit-remaining": "9", "x-ratelimit-reset": f"{EPOCH + 90}"}, Limit()),
        (500, {"ratelimit-remaining": "76;w=21600", "ratelimit-limit": "100;w=21600"}, Limit()),
        # Nonsense.
        (429, {"ratelimit-reset": "-5"}, Limit()),
        (429, {"ratelimit-reset": "nan"}, Limit()),
        (429, {"ratelimit-reset": "9" * 5000}, Limit()),
        (429, {"ratelimit-remaining": "none", "ratelimit": "t" * 9000}, Limit()),
    ],
)
def test_what_an_answer_says_of_a_limit_is_understood(status, headers, limit):
    assert limit_of(status, headers, NOW) == limit


@pytest.mark.parametrize(
    ("limit", "words"),
    [
        (Limit(), ""),
        (Limit(used_up=True), "its limit of requests is used up"),
        (Limit(seconds=45.0), "it may be asked again in 45 s, at 2026-01-01 12:00:45 UTC"),
        (Limit(seconds=120.0), "it may be asked again in 2 min, at 2026-01-01 12:02:00 UTC"),
        (
            Limit(seconds=3600.0, used_up=True),
            "its limit of requests is used up; that ends in 1 h, at 2026-01-01 13:00:00 UTC",
        ),
        (
            Limit(seconds=21600.0, used_up=True, at_most=True),
            "its limit of requests is used up; that ends within 6 h, by 2026-01-01 18:00:00 UTC",
        ),
    ],
)
def test_the_end_of_a_limit_is_told_in_words(limit, words):
    assert in_words(limit, NOW) == words


def test_a_limit_without_measure_is_told_all_the_same():
    assert "UTC" in in_words(Limit(seconds=1e300), NOW)


def test_a_pause_lasts_as_long_as_the_longest_asked_for_and_ends():
    now = [100.0]
    pauses = Pauses[str](lambda: now[0])
    assert pauses.left("a") == 0.0
    pauses.hold("a", 10.0)
    pauses.hold("a", 3.0)
    assert (pauses.left("a"), pauses.left("b")) == (10.0, 0.0)
    now[0] = 109.0
    assert pauses.left("a") == 1.0
    now[0] = 110.0
    assert pauses.left("a") == 0.0


def test_pauses_do_not_pile_up():
    now = [0.0]
    pauses = Pauses[int](lambda: now[0])
    for key in range(1_100):
        pauses.hold(key, 1.0)
    assert pauses.left(0) == 1.0
    assert pauses.left(1_099) == 0.0  # one too many is not remembered, and asks for itself
    now[0] = 2.0
    pauses.hold(5_000, 1.0)
    assert pauses.left(5_000) == 1.0


@pytest.mark.distribution("warning.header")
@pytest.mark.parametrize(
    ("header", "texts"),
    [
        ('299 - "Going away."', ["Going away."]),
        ('299 - "one", 299 - "two, three"', ["one", "two, three"]),
        (r'299 - "a \"quoted\" word"', ['a "quoted" word']),
        ('110 anderson/1.3.37 "Response is stale", 299 - "kept"', ["kept"]),
        ('299 registry "not the form"', []),
        ('299 - "dated" "Wed, 21 Oct 2015 07:28:00 GMT", 299 - "kept"', ["kept"]),
        ("299 - unquoted", []),
        ('299 - "open', []),
        ('299 - "one" 299 - "glued"', []),
        ("", []),
        (",,,", []),
        ('299 - ""', [""]),
    ],
)
def test_warnings_are_told_from_what_is_none(header, texts):
    assert parse_warnings(header) == texts


def test_a_flood_of_warnings_is_cut():
    assert len(parse_warnings(", ".join(['299 - "x"'] * 10_000))) == MAX_WARNINGS
    assert parse_warnings('299 - "' + "x" * 10_000 + '"') == []


NAMES = ("retry-after", "ratelimit", "ratelimit-remaining", "ratelimit-reset", "x-ratelimit-reset")
PIECES = (
    "0",
    "7",
    "99999999999999",
    ";w=",
    ";r=0",
    ";t=",
    "-",
    ".",
    ", ",
    "nan",
    '"a"',
    "reset=",
    "GMT",
    "\x00",
)
VALUES = st.lists(st.sampled_from(PIECES), max_size=4).map("".join)


@settings(max_examples=60)
@given(status=st.sampled_from([403, 429, 503]), headers=st.dictionaries(st.sampled_from(NAMES), VALUES))
def test_any_headers_are_a_limit_or_none(status, headers):
    limit = limit_of(status, headers, NOW)
    assert limit.seconds is None or limit.seconds >= 0.0
    assert in_words(limit, NOW).isprintable()


@settings(max_examples=60)
@given(st.lists(st.sampled_from(["299 - ", '"', "\\", ", ", "x", "110 a "]), max_size=12).map("".join))
def test_any_header_is_warnings_or_none(header):
    assert all(isinstance(text, str) for text in parse_warnings(header))
