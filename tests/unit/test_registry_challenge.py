"""WWW-Authenticate, read by the RFC's rules and by what registries send."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orlop.registry.access.challenge import MAX_HEADER, parse_challenges

HUB = 'Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:library/a:pull"'


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("", []),
        (
            HUB,
            [
                (
                    "bearer",
                    {
                        "realm": "https://auth.docker.io/token",
                        "service": "registry.docker.io",
                        "scope": "repository:library/a:pull",
                    },
                )
            ],
        ),
        (
            'Bearer realm="r",scope="repository:a:pull,push repository:b:pull"',
            [("bearer", {"realm": "r", "scope": "repository:a:pull,push repository:b:pull"})],
        ),
        ('BASIC Realm="x"', [("basic", {"realm": "x"})]),
        ("Basic", [("basic", {})]),
        ("Negotiate, Basic realm=x", [("negotiate", {}), ("basic", {"realm": "x"})]),
        ('Negotiate YWJj==, Basic realm="x"', [("negotiate", {}), ("basic", {"realm": "x"})]),
        (
            'Basic realm="a", Bearer realm="b" , service = "c"',
            [("basic", {"realm": "a"}), ("bearer", {"realm": "b", "service": "c"})],
        ),
        (r'Basic realm="a \"quoted\", name"', [("basic", {"realm": 'a "quoted", name'})]),
        (
            "Bearer realm=https://a.example/token,service=b",
            [("bearer", {"realm": "https://a.example/token", "service": "b"})],
        ),
        ('Bearer realm="first",realm="second"', [("bearer", {"realm": "first"})]),
        (',, ,Basic realm="x",,', [("basic", {"realm": "x"})]),
        ('Bearer realm="never closed', [("bearer", {})]),
        ("=", []),
        ('"', []),
    ],
)
def test_a_header_is_read_as_its_challenges(header, expected):
    found = [(one.scheme, dict(one.params)) for one in parse_challenges(header)]
    assert found == expected


TOKEN = st.text("abcdefghijklmnopqrstuvwxyz-_", min_size=1, max_size=8)
VALUE = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=20)


def quote(value):
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'


@given(st.lists(st.tuples(TOKEN, st.dictionaries(TOKEN, VALUE, min_size=1, max_size=4)), max_size=4))
def test_what_is_written_by_the_rules_is_read_back(challenges):
    header = ", ".join(
        f"{scheme} " + ", ".join(f"{name}={quote(value)}" for name, value in params.items())
        for scheme, params in challenges
    )
    assert [(one.scheme, dict(one.params)) for one in parse_challenges(header)] == challenges


@pytest.mark.hostile(21)
@given(st.text(max_size=200))
def test_no_header_breaks_the_parser(header):
    for challenge in parse_challenges(header):
        assert challenge.scheme == challenge.scheme.lower()


@pytest.mark.parametrize("piece", ["a ", "a=,", '"\\', "a=b,", ", ", "a" * 50 + "="])
def test_a_huge_header_is_read_in_time_that_grows_with_it(piece):
    # A quadratic pattern would take minutes here, and the test's own timeout would end it.
    assert len(parse_challenges(piece * (10 * MAX_HEADER))) <= MAX_HEADER
