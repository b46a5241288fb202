"""Documents, names and headers from outside, by the hundred: read, or refused with an error of orlop's."""

from __future__ import annotations

import base64
import json
import string
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orlop.errors import Error, Internal, InvalidArgument
from orlop.registry.access.challenge import parse_challenges
from orlop.registry.access.credentials import Credential, Helper, find
from orlop.registry.access.tokens import parse_token, pick, token_request
from orlop.registry.blobs.downloads import parse_content_range
from orlop.registry.faults import registry_message
from orlop.registry.finding.hosts import endpoints, origin_of
from orlop.registry.net.retry import parse_retry_after
from orlop.spec.digest import Digest
from orlop.spec.documents import Index, encode, parse_config, parse_json, parse_manifest
from orlop.spec.platform import Platform
from orlop.spec.reference import Reference
from orlop.testing.strategies import documents, json_values
from support.fuzzing import trials

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)
OURS = Platform(os="linux", architecture="arm", variant="v7")
HOME = endpoints("r.example")[0]
TYPES = [
    "",
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.oci.image.index.v1+json",
    "text/html",
]
DEEP = 5_000


@contextmanager
def answered() -> Iterator[None]:
    """Errors are answers, but for one that says of itself that it is a bug."""
    try:
        yield
    except Internal:
        raise
    except Error:
        return


# ------------------------------------------------------------------ JSON


@pytest.mark.hostile(15, 17, 18)
@trials(80)
@given(documents(), st.sampled_from(TYPES))
def test_a_document_is_read_and_survives_or_is_refused(document: dict[str, Any], media_type: str) -> None:
    data = json.dumps(document).encode()
    with answered():
        parse_json(data, "test")
    with answered():
        found = parse_manifest(data, media_type, "test")
        assert parse_manifest(encode(found), media_type, "test") == found
        if isinstance(found, Index):
            chosen = found.choose(OURS)
            assert chosen is None or chosen in found.manifests
    with answered():
        config = parse_config(data, "test")
        config.platform()
        assert [str(one) for one in config.diff_ids()] == config.rootfs.diff_ids


@pytest.mark.hostile(15)
@trials(150)
@given(
    st.binary(max_size=60),
    st.sampled_from([b"", b"{", b'{"layers":[', b'{"config":"\xed\xa0\x80', b"[[[[", b"\xff\xfe"]),
)
def test_bytes_that_are_no_document_are_refused(junk: bytes, start: bytes) -> None:
    data = start + junk
    for read in (parse_config, parse_json):
        with answered():
            read(data, "test")
    with answered():
        parse_manifest(data, "", "test")
    assert registry_message(data).isprintable()


NESTED = [b"[" * DEEP + b"]" * DEEP, b'{"a":' * DEEP + b"1" + b"}" * DEEP, b"[" * DEEP]


@pytest.mark.hostile(15)
@pytest.mark.parametrize("nested", NESTED, ids=["lists", "objects", "open"])
def test_json_as_deep_as_a_well_is_refused_everywhere(nested: bytes) -> None:
    documents = [
        nested,
        b'{"rootfs":' + nested + b"}",
        b'{"x":' + nested + b"}",
        b'{"layers":' + nested + b"}",
    ]
    for document in documents:
        for read in (parse_config, parse_json):
            with pytest.raises(Error):
                read(document, "test")
        with pytest.raises(Error):
            parse_manifest(document, "", "test")
        with pytest.raises(Error):
            parse_token(document, now=0.0, personal=False, attempted="test")
        assert registry_message(document) == ""


# ------------------------------------------------------------------ names

PART = st.text(string.ascii_lowercase + string.digits, min_size=1, max_size=6)
TAG = st.text(string.ascii_letters + string.digits + "_.-", max_size=20).map(lambda text: "t" + text)
HOST = st.sampled_from(
    ["docker.io", "r.example", "localhost", "127.0.0.1:5000", "[::1]:5000", "A.b-c.example:1"]
)


@trials(100)
@given(HOST, st.lists(PART, min_size=1, max_size=4), st.none() | TAG, st.none() | st.binary(max_size=3))
def test_a_reference_reads_back_as_it_was_put_together(
    host: str, parts: list[str], tag: str | None, hashed: bytes | None
) -> None:
    digest = Digest.of(hashed) if hashed is not None else None
    text = "/".join([host, *parts]) + (f":{tag}" if tag else "") + (f"@{digest}" if digest else "")
    reference = Reference.parse(text)
    repository = "/".join(parts)
    if host == "docker.io" and len(parts) == 1:
        repository = "library/" + repository
    assert (reference.registry, reference.repository) == (host, repository)
    assert (reference.tag, reference.digest) == (tag if tag or digest else "latest", digest)
    assert Reference.parse(str(reference)) == reference
    assert endpoints(reference.registry)


@pytest.mark.hostile(18)
@trials(100)
@given(st.text(st.sampled_from("ab:/@.-_[]0%\\\0 \nAé²"), max_size=14))
def test_any_text_is_a_name_that_reads_back_or_none(text: str) -> None:
    with answered():
        reference = Reference.parse(text)
        assert Reference.parse(str(reference)) == reference
        assert ".." not in str(reference).split("/")
        assert str(reference).isascii()
    with answered():
        platform = Platform.parse(text)
        assert Platform.parse(str(platform)) == platform
    for made in (text, "sha256:" + text, "sha256:" + text.ljust(64, "0")):
        with answered():
            digest = Digest(made)
            assert set(digest.hex) <= set("0123456789abcdef")


@pytest.mark.hostile(15)
@trials(100)
@given(
    st.text(max_size=8)
    | st.integers(0, 10**30).map(lambda n: f"v{n}")
    | st.just("v" + "9" * 5000)
    | st.just("v²")
)
def test_any_variant_ranks_and_only_a_lower_one_stands_in(variant: str) -> None:
    """An index says what it likes: what is no number is no version."""
    rank = Platform(os="linux", architecture="arm", variant=variant).rank(OURS)
    exact = variant.lower() in ("v7", "7", "")
    assert rank == OURS.rank(OURS) if exact else 0 <= rank < OURS.rank(OURS)
    if rank and not exact:
        assert int(variant[1:] if variant[0] in "vV" else variant) in (5, 6)


# ------------------------------------------------------------------ headers


@pytest.mark.hostile(21)
@trials(100)
@given(
    st.sampled_from(
        [
            "https://a.example",
            "http://a.example",
            "https://",
            "//a.example",
            "ftp://a",
            "https://a b",
            "https://é.example",
        ]
    ),
    st.text(st.characters(max_codepoint=255, exclude_characters='"\\'), max_size=12),
    st.text(st.characters(max_codepoint=255, exclude_characters='"\\'), max_size=6),
)
def test_a_realm_leads_to_a_clean_https_url_or_is_refused(origin: str, path: str, query: str) -> None:
    header = f'Bearer realm="{origin}/{path}?{query}",service="s"'
    chosen = pick(parse_challenges(header))
    assert chosen is not None
    for credential in (None, Credential(username="u", password="p"), Credential(identity_token="t")):
        with answered():
            request = token_request(chosen, credential, endpoint=HOME, scopes=("a",), attempted="test")
            assert request.url.startswith("https://a.example/")
            assert request.url.isascii()
            assert request.url.isprintable()
            assert " " not in request.url


@pytest.mark.parametrize("host", ["é.example", "a b", "a\x00b", "a\x90", "a,b", "a\\b", "a\nb", "²"])
def test_what_is_no_host_has_no_origin(host: str) -> None:
    for url in (f"https://{host}/", f"https://{host}:443/x"):
        with answered():
            assert origin_of(url, "test").netloc.isascii()
            assert host == "a\nb", "urllib takes line breaks out, as browsers do"


@pytest.mark.hostile(38)
@trials(100)
@given(st.integers(-(10**6), 10**6), st.text(max_size=20))
def test_any_retry_after_is_seconds_or_nothing(seconds: int, text: str) -> None:
    when = format_datetime((NOW + timedelta(seconds=seconds)).replace(tzinfo=UTC), usegmt=True)
    assert parse_retry_after(when, NOW) == max(0, seconds)
    assert parse_retry_after(str(abs(seconds)), NOW) == abs(seconds)
    found = parse_retry_after(text, NOW)
    assert found is None or 0 <= found < 10**11


@pytest.mark.hostile(38)
@trials(100)
@given(st.integers(0, 2**64), st.integers(0, 2**64), st.none() | st.integers(0, 2**64), st.text(max_size=20))
def test_a_content_range_holds_together_or_is_none(
    first: int, last: int, size: int | None, text: str
) -> None:
    found = parse_content_range(f"bytes {first}-{last}/{'*' if size is None else size}")
    whole = first <= last and (size is None or last < size) and max(first, last, size or 0) < 10**18
    assert (found is not None) == whole
    if found is not None:
        assert (found.first, found.last, found.size) == (first, last, size)
    for junk in (text, f"bytes {text}", f"bytes 0-{text}/9"):
        other = parse_content_range(junk)
        assert other is None or other.first is None or other.first <= (other.last or 0)


# ------------------------------------------------------------------ credentials

KEYS = st.sampled_from(
    ["r.example", "r.example/a", "https://r.example/v2/", "docker.io", "http://r.example", "é"]
)


@trials(100)
@given(
    st.fixed_dictionaries(
        {},
        optional={
            "auths": json_values()
            | st.dictionaries(
                KEYS,
                json_values()
                | st.fixed_dictionaries(
                    {},
                    optional={
                        "auth": st.text(max_size=8)
                        | st.binary(max_size=8).map(lambda b: base64.b64encode(b).decode()),
                        "identitytoken": st.text(max_size=4),
                        "username": json_values(),
                    },
                ),
                max_size=3,
            ),
            "credHelpers": json_values()
            | st.dictionaries(KEYS, json_values() | st.text(max_size=4), max_size=2),
            "credsStore": json_values() | st.text(max_size=4),
        },
    )
)
def test_any_credentials_file_gives_credentials_and_helpers_only(document: dict[str, Any]) -> None:
    for registry, repository in (("r.example", "a/b"), ("docker.io", "library/a"), ("é", "")):
        for found in find(document, registry, repository, scheme="https"):
            assert isinstance(found, Credential | Helper)
            assert found


@trials(100)
@given(
    st.text(st.characters(exclude_characters=":\0", exclude_categories=["Cs"]), max_size=8),
    st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=8),
)
def test_a_name_and_a_password_come_back_from_docker_s_file(username: str, password: str) -> None:
    auth = base64.b64encode(f"{username}:{password}".encode()).decode()
    found = list(find({"auths": {"r.example": {"auth": auth}}}, "r.example", "a", scheme="https"))
    assert [(one.username, one.password) for one in found] == ([(username, password)] if username else [])


@pytest.mark.parametrize("life", ["nan", "inf", "-inf", "1e400", "-1", "", "x"])
def test_a_token_s_life_is_a_number_of_ours_whatever_the_server_says(life: str) -> None:
    with answered():
        token = parse_token(
            json.dumps({"token": "t", "expires_in": life}).encode(), now=0.0, personal=False, attempted="test"
        )
        assert 0.0 <= token.expires <= 86_400.0


def test_an_impossible_digest_names_no_file() -> None:
    for text in ("sha256:../../x", "sha256:" + "A" * 64, "md5:" + "0" * 32, "sha256:" + "0" * 64 + "\n"):
        with pytest.raises(InvalidArgument):
            Digest(text)
