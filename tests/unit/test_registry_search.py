"""Short names: Docker Hub's by default, and where else they are looked for if one asks for that."""

from __future__ import annotations

from contextlib import closing

import pytest

from orlop.config import Settings
from orlop.errors import InvalidArgument, NotFound, Unauthenticated, Unavailable
from orlop.registry.access.credentials import CredentialSources
from orlop.registry.client import Registry
from orlop.registry.finding.search import candidates, first_found
from orlop.spec.reference import Reference, is_short

DIGEST = "sha256:" + "ab" * 32
OPTIONS = {"listed": ("l.example", "docker.io"), "aliases": {"tool": "t.example/x/tool"}}


@pytest.mark.parametrize(
    ("text", "short"),
    [
        ("alpine", True),
        ("alpine:3", True),
        (f"alpine@{DIGEST}", True),
        ("user/app", True),
        ("r.example/app", False),
        ("r:5000/app", False),
        ("localhost/app", False),
        ("[::1]:5000/app", False),
    ],
)
def test_a_name_is_short_by_dockers_rule(text, short):
    assert is_short(text) is short


@pytest.mark.parametrize(
    ("text", "search", "expected"),
    [
        ("alpine", False, ["docker.io/library/alpine:latest"]),
        ("tool", False, ["docker.io/library/tool:latest"]),
        ("alpine", (), ["docker.io/library/alpine:latest"]),
        ("alpine", True, ["l.example/alpine:latest", "docker.io/library/alpine:latest"]),
        ("a/b:1", ("r.example", "[::1]:5000", "r.example"), ["r.example/a/b:1", "[::1]:5000/a/b:1"]),
        ("s.example/a", ("r.example",), ["s.example/a:latest"]),
        ("tool:2", True, ["t.example/x/tool:2"]),
        (f"tool:2@{DIGEST}", ("r.example",), [f"t.example/x/tool:2@{DIGEST}"]),
        ("tools", ("r.example",), ["r.example/tools:latest"]),
    ],
)
def test_short_names_are_searched_only_where_one_asks_for_it(text, search, expected):
    assert [str(ref) for ref in candidates(text, search, **OPTIONS)] == expected


@pytest.mark.parametrize("registry", ["r", "r/x", "", "UP PER"])
def test_what_is_no_registry_is_not_searched(registry):
    with pytest.raises(InvalidArgument):
        candidates("alpine", (registry,))


def test_the_client_searches_as_registries_conf_says_if_the_settings_want_it(tmp_path):
    path = tmp_path / "registries.conf"
    path.write_text(
        'unqualified-search-registries = ["l.example"]\n[aliases]\n"my/tool" = "t.example/tool"\n'
    )
    for search, expected in (
        (True, ["l.example/app:latest", "t.example/tool:1"]),
        (False, ["docker.io/library/app:latest", "docker.io/my/tool:1"]),
    ):
        settings = Settings(registries_conf=(str(path),), search_registries=search)
        with closing(Registry(settings, CredentialSources())) as client:
            found = [str(ref) for name in ("app", "my/tool:1") for ref in client.names(name)]
        assert found == expected


def failing(answers):
    def pull(ref):
        answer = answers[ref.registry]
        if isinstance(answer, Exception):
            raise answer
        return answer

    return pull


REFS = [Reference.parse(f"{name}.example/x") for name in ("a", "b", "c")]


def test_a_search_goes_on_only_where_it_is_not_there():
    answers = {
        "a.example": NotFound("x", "no"),
        "b.example": Unauthenticated("x", "who"),
        "c.example": "found",
    }
    assert first_found(REFS, failing(answers), "pull x") == "found"
    answers["b.example"] = Unavailable("x", "down")
    with pytest.raises(Unavailable, match="down"):  # else whoever has the name at c would be taken for b's
        first_found(REFS, failing(answers), "pull x")


def test_a_search_without_success_says_where_it_was():
    answers = {ref.registry: NotFound("x", "no such thing") for ref in REFS}
    with pytest.raises(NotFound) as caught:
        first_found(REFS, failing(answers), "pull x")
    assert all(ref.name in caught.value.reason for ref in REFS)
    with pytest.raises(NotFound, match="no such thing") as caught:
        first_found(REFS[:1], failing(answers), "pull x")
    assert caught.value is answers["a.example"]
