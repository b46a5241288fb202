"""Glob patterns on paths: what they match, beside a matcher that tries everything, and that none takes long."""

from __future__ import annotations

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from orlop.errors import InvalidArgument
from orlop.images.browsing.globs import Glob


def fits(pattern: bytes, path: bytes) -> bool:
    glob = Glob(pattern)
    return glob.fits_name(path.rpartition(b"/")[2]) and glob.fits_path(path)


@pytest.mark.parametrize(
    ("pattern", "yes", "no"),
    [
        (b"*.conf", [b"a.conf", b"etc/x/.conf"], [b"a.confx", b"a.conf/b"]),
        (b"a?c", [b"abc", b"d/a\xffc"], [b"ac", b"abbc"]),
        (b"[a-c]x", [b"ax", b"cx"], [b"dx", b"x"]),
        (b"[!a-c]x", [b"dx", b"\xffx"], [b"ax", b"x"]),
        (b"[]]", [b"]"], [b"[]", b"a"]),
        (b"[]", [b"[]"], [b"]"]),
        (b"[a-]x", [b"-x", b"ax"], [b"bx"]),
        (rb"\*", [b"*"], [b"a"]),
        (b"/etc/*", [b"etc/a"], [b"etc", b"etc/a/b", b"x/etc/a"]),
        (b"etc/", [b"etc"], [b"etc/a"]),
        (b"/usr/**/lib*", [b"usr/lib", b"usr/a/b/libc.so"], [b"usr/a/b/lic", b"lib", b"usrx/lib"]),
        (b"**/a/**/b", [b"a/b", b"x/a/y/b"], [b"b", b"a", b"xa/b"]),
        (b"/a/**", [b"a/b", b"a/b/c"], [b"a", b"b/a"]),
        (b"**", [b"a", b"a/b"], []),
        (b"a**b", [b"ab", b"axb"], [b"a/b"]),
        (b"*\n*", [b"x\ny"], [b"xy"]),
    ],
)
def test_a_pattern_matches_what_it_says(pattern: bytes, yes: list[bytes], no: list[bytes]) -> None:
    assert [path for path in yes if not fits(pattern, path)] == []
    assert [path for path in no if fits(pattern, path)] == []


@pytest.mark.parametrize("pattern", [b"", b"/", b"//", b"a/../b", b".", b"./a", b"a\0b", b"a" * 4097])
def test_what_no_path_fits_is_refused(pattern: bytes) -> None:
    with pytest.raises(InvalidArgument):
        Glob(pattern)


@pytest.mark.parametrize(
    ("pattern", "base"),
    [(b"*", b""), (b"/etc/*", b"etc"), (b"/a/b/**/c", b"a/b"), (b"/a*/b/c", b""), (b"/a", b"")],
)
def test_a_pattern_says_where_all_that_it_matches_lies(pattern: bytes, base: bytes) -> None:
    assert Glob(pattern).base == base


def slow(pattern: list[str], parts: list[str]) -> bool:
    """By trying everything."""
    if not pattern:
        return not parts
    if pattern[0] == "**":
        if len(pattern) == 1:
            return bool(parts)
        return any(slow(pattern[1:], parts[skipped:]) for skipped in range(len(parts) + 1))
    return bool(parts) and slow_name(pattern[0], parts[0]) and slow(pattern[1:], parts[1:])


def slow_name(pattern: str, name: str) -> bool:
    if not pattern:
        return not name
    if pattern[0] == "*":
        return any(slow_name(pattern[1:], name[skipped:]) for skipped in range(len(name) + 1))
    return bool(name) and pattern[0] in {"?", name[0]} and slow_name(pattern[1:], name[1:])


PARTS = st.lists(st.text("ab", min_size=1, max_size=3), min_size=1, max_size=5)
PATTERNS = st.lists(st.just("**") | st.text("ab?*", min_size=1, max_size=4), min_size=2, max_size=4)


@example(["***", "**"], ["a"])  # three stars are one
@given(PATTERNS, PARTS)
def test_a_pattern_matches_what_trying_everything_finds(pattern: list[str], parts: list[str]) -> None:
    assert fits("/".join(pattern).encode(), "/".join(parts).encode()) == slow(
        [part if part == "**" else re.sub(r"\*+", "*", part) for part in pattern], parts
    )


@pytest.mark.hostile(14)
def test_a_pattern_of_many_stars_is_no_work() -> None:
    assert not fits(b"*a" * 120 + b"b", b"a" * 255)
    assert not fits(b"**/*a*/" * 100 + b"b", b"/".join([b"a"] * 1000))
    assert not fits(b"/" + b"?*" * 500 + b"/**/" + b"*a" * 500 + b"/c", b"/".join([b"a" * 200] * 20))
