"""The rules of the verbs on registries that need no registry: links, tags, names of files, words of users."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orlop.cli.artifacts import file_of
from orlop.config import DEFAULT_LIMITS, Limits
from orlop.errors import Error, InvalidArgument, ResourceExhausted
from orlop.registry.listing import next_page
from orlop.registry.referrers import fallback_tag
from orlop.remote.api import ArtifactFile
from orlop.remote.files import check_names
from orlop.remote.names import destinations, has_tag, repository_of
from orlop.spec.digest import Digest

LINKS = [
    (None, None),
    ("", None),
    ("no link", None),
    ('</v2/a/tags/list?last=b&n=2>; rel="next"', "/v2/a/tags/list?last=b&n=2"),
    ("</x>; rel=next", "/x"),
    ("</x>;rel=NEXT", "/x"),
    ('</x> ; type="a/b"; rel = "prev next"', "/x"),
    ('</first>; rel="first", </x>; rel="next", </last>; rel="last"', "/x"),
    ('</x>; rel="nextish"', None),
    ('</x>; rel="prev"', None),
    ("</x>", None),
    ('<https://other.example/x>; rel="next"', "https://other.example/x"),
    ('<</x>>; rel="next"', "/x"),
]


@pytest.mark.distribution("tags.pagination")
@pytest.mark.parametrize(("header", "url"), LINKS)
def test_the_next_page_is_where_the_link_named_next_says(header: str | None, url: str | None) -> None:
    assert next_page(header) == url


@given(st.text(max_size=200))
def test_any_link_is_a_page_or_none(header: str) -> None:
    found = next_page(header)
    assert found is None or found in header


@pytest.mark.distribution("referrers.tag-schema")
def test_the_tag_of_referrers_is_the_digest_cut_to_what_a_tag_may_be() -> None:
    assert fallback_tag(Digest("sha256:" + "ab" * 32)) == "sha256-" + "ab" * 32
    assert fallback_tag(Digest("sha512:" + "ab" * 64)) == "sha512-" + "ab" * 32


@pytest.mark.parametrize(
    "name", ["a", "a/b.txt", "ä/漢字", "with space", "-x", "...", ".hidden", "a" * 255, "a/" * 100 + "b"]
)
def test_names_of_files_in_a_folder_are_taken(name: str) -> None:
    check_names([name, "other"], DEFAULT_LIMITS, "pull")


HOSTILE = [
    "",
    "/",
    "/etc/passwd",
    "..",
    "../x",
    "a/../../x",
    "a/./b",
    ".",
    "a//b",
    "a/",
    "//x",
    "a\0b",
    "a\nb",
    "a\x1b[31mb",
    "a\u202eb",
    "..\\x",
    "C:\\x",
    "a\\b",
    "\ud800",
    ".orlop-sha256-ab.part",
]


@pytest.mark.hostile(6)
@pytest.mark.parametrize("name", HOSTILE)
def test_names_that_lead_elsewhere_or_hide_something_are_refused(name: str) -> None:
    with pytest.raises(InvalidArgument):
        check_names(["good", name], DEFAULT_LIMITS, "pull")


@pytest.mark.hostile(6)
@pytest.mark.parametrize("names", [["a", "a"], ["a", "a/b"], ["a/b/c", "x", "a/b"]])
def test_names_that_cannot_be_together_are_refused(names: list[str]) -> None:
    with pytest.raises(InvalidArgument):
        check_names(names, DEFAULT_LIMITS, "pull")


@pytest.mark.hostile(6)
@pytest.mark.parametrize(
    ("limit", "name"), [("name_size", "nnnnn/x"), ("path_size", "a/b/c/d"), ("depth", "a/b/c")]
)
def test_a_name_past_a_limit_names_it(limit: str, name: str) -> None:
    value = {"name_size": 4, "path_size": 6, "depth": 2}[limit]
    with pytest.raises(ResourceExhausted) as caught:
        check_names([name], Limits(**{limit: value}), "pull")
    assert caught.value.details["limit"] == limit


@given(st.lists(st.text(max_size=30), max_size=5))
def test_any_names_are_taken_or_one_of_our_errors(names: list[str]) -> None:
    try:
        check_names(names, DEFAULT_LIMITS, "pull")
    except Error:
        return
    assert len(set(names)) == len(names)
    assert all(name and not name.startswith("/") and ".." not in name.split("/") for name in names)


@pytest.mark.parametrize(
    ("text", "path", "kind"),
    [
        ("a.csv", "a.csv", "application/octet-stream"),
        ("a.csv:text/csv", "a.csv", "text/csv"),
        ("dir/a:application/vnd.x.y+json", "dir/a", "application/vnd.x.y+json"),
        ("a:b", "a:b", "application/octet-stream"),
        ("a:b:text/plain", "a:b", "text/plain"),
        ("a:text/", "a:text/", "application/octet-stream"),
        ("a:te xt/plain", "a:te xt/plain", "application/octet-stream"),
    ],
)
def test_a_file_has_the_media_type_behind_its_last_colon(text: str, path: str, kind: str) -> None:
    assert file_of(text) == ArtifactFile(path=path, media_type=kind)


@pytest.mark.parametrize("text", ["a:1", "a:latest", f"a@sha256:{'ab' * 32}", "localhost:5000/a:1"])
def test_a_repository_has_no_tag_and_no_digest(text: str) -> None:
    with pytest.raises(InvalidArgument, match="it has a tag or a digest") as caught:
        repository_of(text)
    assert repository_of(caught.value.hint.removeprefix("write ")).name in caught.value.hint


def test_a_port_is_no_tag() -> None:
    assert repository_of("localhost:5000/a").name == "localhost:5000/a"
    assert not has_tag(f"localhost:5000/a@sha256:{'ab' * 32}")
    assert has_tag(f"a:1@sha256:{'ab' * 32}")


def test_further_tags_are_of_the_destinations_repository_each_once() -> None:
    found = destinations("localhost:5000/a:1", ("2", "1", "2"), "copy")
    assert [str(ref) for ref in found] == ["localhost:5000/a:1", "localhost:5000/a:2"]
    for tag in ("", "a/b", "../x", "a:b", "-x"):
        with pytest.raises(InvalidArgument, match="not a tag"):
            destinations("localhost:5000/a:1", (tag,), "copy")
