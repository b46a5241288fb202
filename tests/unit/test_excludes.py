"""Exclude patterns mean what a .dockerignore's mean, and cost no more than the path is long."""

from __future__ import annotations

import os
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orlop.errors import InvalidArgument
from orlop.layers.excludes import Excludes, parse_ignore_file


def excluded(patterns: list[str], path: str | bytes) -> bool:
    excludes = Excludes.parse(patterns)
    assert excludes is not None
    return os.fsencode(path) in excludes


@pytest.mark.parametrize(
    ("pattern", "paths", "others"),
    [
        ("tmp", ["tmp", "tmp/a", "tmp/a/b"], ["a/tmp", "tmpx", "tm", ""]),
        ("/tmp/", ["tmp", "tmp/a"], ["a/tmp"]),
        ("./a/../tmp/.", ["tmp"], ["a"]),
        ("a/b", ["a/b", "a/b/c"], ["a", "a/c", "b", "x/a/b"]),
        ("*.log", ["x.log", ".log", "x.log/y"], ["a/x.log", "x.logs"]),
        ("*/x", ["a/x", "b/x/y"], ["x", "a/b/x"]),
        ("**/x", ["x", "a/x", "a/b/x", "a/b/x/c"], ["a/xx"]),
        ("a/**/x", ["a/x", "a/b/x", "a/b/c/x"], ["x", "b/a/x", "a/b"]),
        ("a/**", ["a/b", "a/b/c"], ["a", "b"]),
        ("**", ["a", "a/b"], [""]),
        ("*", ["a", "a/b"], [""]),
        ("**/**/x", ["x", "a/x"], []),
        ("**/a/*/b", ["a/x/b", "a/a/b/b", "q/a/x/b/z"], ["a/b", "a/x/y/b"]),
        ("?", ["a", "é", b"\xff"], ["ab", "éa"]),
        ("a?c", ["abc", "aéc"], ["ac", "abbc"]),
        ("[a-c]x", ["ax", "cx"], ["dx", "-x", "x"]),
        ("[^a-c]x", ["dx", "éx"], ["ax", "x"]),
        ("[]a]", ["]", "a"], ["b"]),
        (r"\*", ["*"], ["a"]),
        (r"a\[b]", ["a[b]"], ["ab"]),
        (r"[\]-]", ["]", "-"], ["\\"]),
        ("a*b*c", ["abc", "axbxc", "abcbc"], ["ab", "acb"]),
        ("a.b", ["a.b"], ["axb"]),
        ("é*", ["é1"], ["e1"]),
    ],
)  # fmt: skip
def test_a_pattern_means_paths_and_what_is_below_them(
    pattern: str, paths: list[str | bytes], others: list[str | bytes]
) -> None:
    assert [path for path in paths if not excluded([pattern], path)] == []
    assert [path for path in others if excluded([pattern], path)] == []


def test_the_last_pattern_that_fits_counts() -> None:
    patterns = ["var/*", "!var/lib", "var/lib/x", "!var/lib/x/y"]
    found = {
        path: excluded(patterns, path)
        for path in ("var", "var/log", "var/lib", "var/lib/a", "var/lib/x", "var/lib/x/y", "var/lib/x/y/z")
    }
    assert [path for path, out in found.items() if out] == ["var/log", "var/lib/x"]


def test_only_patterns_without_exceptions_speak_for_all_below() -> None:
    one, other = Excludes.parse(["a"]), Excludes.parse(["a", "!a/b"])
    assert one is not None
    assert other is not None
    assert (one.all_below, other.all_below) == (True, False)
    assert Excludes.parse([]) is None


@pytest.mark.parametrize(
    "pattern", ["", "/", ".", "a/..", "!", "[a", "[", "[z-a]", "[é]", "a\\", "a\0b", "x" * 5000]
)
def test_what_is_no_pattern_is_refused(pattern: str) -> None:
    with pytest.raises(InvalidArgument, match="exclude pattern"):
        Excludes.parse([pattern])


def test_an_ignore_file_has_a_pattern_in_each_line() -> None:
    assert parse_ignore_file("\ufeff# a\n\n  b \r\n!c\n #d\n") == ["b", "!c", "#d"]


def test_a_pattern_that_makes_others_slow_costs_nothing() -> None:
    name = "a" * 255
    for pattern in ("*a" * 100 + "b", "a?" * 100 + "*" + "[a]" * 50 + "b", "**/*a/" * 50 + "b"):
        assert not excluded([pattern], "/".join([name] * 15))


@given(
    st.lists(st.text(alphabet="ab*?/!", min_size=1, max_size=8), min_size=1, max_size=4),
    st.text(alphabet="ab/", max_size=8),
)
def test_they_agree_with_a_regular_expression(patterns: list[str], path: str) -> None:
    """The same rules, written as one expression for each pattern."""
    path = "/".join(name for name in path.split("/") if name)
    try:
        found = excluded(patterns, path)
    except InvalidArgument:
        return
    wanted = False
    for pattern in patterns:
        back = pattern.startswith("!")
        names = [name for name in pattern.removeprefix("!").split("/") if name]
        text = "".join(
            "(?:[^/]+/)*" if name == "**" and at < len(names) - 1
            else re.sub(r"\*+", "[^/]*", name).replace("?", "[^/]") + ("/" if at < len(names) - 1 else "")
            for at, name in enumerate(names)
        )  # fmt: skip
        if path and re.fullmatch(f"{text}(?:/.*)?", path):
            wanted = not back
    assert found == wanted
