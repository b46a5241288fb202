"""Documents from outside at and past their limits, and JSON made to hurt: an answer or one of our errors."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orlop.config import DEFAULT_LIMITS
from orlop.config.limits import limits_by_name
from orlop.errors import Error, InvalidArgument, ResourceExhausted
from orlop.registry.access.credentials import find
from orlop.spec import documents
from orlop.spec.documents import (
    MAX_DEPTH,
    MAX_DOCUMENT,
    OCI_INDEX,
    OCI_MANIFEST,
    STORED,
    Index,
    Manifest,
    parse_config,
    parse_docker_list,
    parse_json,
    parse_manifest,
)

DIGEST = "sha256:" + "ab" * 32
LEAF = {"mediaType": OCI_MANIFEST, "digest": DIGEST, "size": 1}
MANIFEST = json.dumps({"schemaVersion": 2, "config": LEAF, "layers": [LEAF]}).encode()
INDEX = json.dumps({"schemaVersion": 2, "manifests": [LEAF]}).encode()
CONFIG = json.dumps({"os": "linux", "rootfs": {"type": "layers", "diff_ids": [DIGEST]}}).encode()
DOCKER = json.dumps([{"Config": "c.json", "RepoTags": ["a:b"], "Layers": ["l.tar"]}]).encode()

# Each reader of a document from outside, its limit, and a document that it takes.
READERS: dict[str, tuple[Callable[..., object], str, bytes]] = {
    "manifest": (
        lambda data, limits: parse_manifest(data, "", "read it", limits=limits),
        "manifest_size",
        MANIFEST,
    ),
    "index": (lambda data, limits: parse_manifest(data, "", "read it", limits=limits), "index_size", INDEX),
    "told index": (
        lambda data, limits: parse_manifest(data, OCI_INDEX, "read it", limits=limits),
        "index_size",
        INDEX,
    ),
    "config": (lambda data, limits: parse_config(data, "read it", limits=limits), "config_size", CONFIG),
    "docker's list": (
        lambda data, limits: parse_docker_list(data, "read it", limits=limits),
        "manifest_size",
        DOCKER,
    ),
    "credentials": (
        lambda data, limits: parse_json(
            data, "read it", name="auth_file_size", limit=limits.auth_file_size, depth=limits.json_depth
        ),
        "auth_file_size",
        b'{"auths": {"r": {"auth": "dTpw"}}}',
    ),
}


@pytest.mark.hostile(15)
@pytest.mark.parametrize("reader", READERS)
def test_a_document_of_just_its_limit_is_read_and_a_byte_more_refused_by_name(reader: str) -> None:
    read, limit, document = READERS[reader]
    assert read(document, replace(DEFAULT_LIMITS, **{limit: len(document)}))
    with pytest.raises(ResourceExhausted) as caught:
        read(document + b" ", replace(DEFAULT_LIMITS, **{limit: len(document)}))
    assert caught.value.details["limit"] == limit
    assert caught.value.hint.startswith(f"raise limits.{limit}")
    assert caught.value.attempted == "read it"


def test_manifests_and_indexes_have_limits_of_their_own() -> None:
    tight = replace(DEFAULT_LIMITS, manifest_size=len(MANIFEST), index_size=len(MANIFEST) - 1)
    assert isinstance(parse_manifest(MANIFEST, "", "read it", limits=tight), Manifest)
    tight = replace(DEFAULT_LIMITS, index_size=len(INDEX), manifest_size=1)
    assert isinstance(parse_manifest(INDEX, OCI_INDEX, "read it", limits=tight), Index)


def nested(levels: int, document: bytes, opening: bytes = b"[", closing: bytes = b"]") -> bytes:
    """A document with a value of so many levels in it, itself the first."""
    inside = opening * (levels - 1) + b"0" + closing * (levels - 1)
    if document.startswith(b"["):
        return document[:-2] + b', "more": ' + opening * (levels - 2) + b"0" + closing * (levels - 2) + b"}]"
    return document[:-1] + b', "more": ' + inside + b"}"


@pytest.mark.hostile(15)
@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("kind", ["lists", "objects", "both"])
def test_a_document_of_just_its_depth_is_read_and_a_level_more_refused_by_name(
    reader: str, kind: str
) -> None:
    read, _, document = READERS[reader]
    brackets = {"lists": (b"[", b"]"), "objects": (b'{"a":', b"}"), "both": (b'[{"a":', b"}]")}[kind]
    # A pair of brackets is one level, or two.
    step = 2 if kind == "both" else 1
    for levels in (12, MAX_DEPTH - 4):
        within = nested(2 + (levels - 2) // step, document, *brackets)
        depth = depth_of(json.loads(within))
        assert read(within, replace(DEFAULT_LIMITS, json_depth=depth))
        with pytest.raises(ResourceExhausted) as caught:
            read(within, replace(DEFAULT_LIMITS, json_depth=depth - 1))
        assert caught.value.details["limit"] == "json_depth"
        assert caught.value.hint.startswith("raise limits.json_depth")


def depth_of(value: object) -> int:
    """How many lists and objects are inside one another; without recursion, as JSON may be deep."""
    deepest, todo = 0, [(value, 1)]
    while todo:
        one, level = todo.pop()
        if isinstance(one, dict | list):
            deepest = max(deepest, level)
            todo += [(part, level + 1) for part in (one.values() if isinstance(one, dict) else one)]
    return deepest


HURTFUL: dict[str, bytes] = {
    "100,000 lists": b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "100,000 lists without an end": b'{"a":' + b"[" * 100_000,
    "100,000 objects": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "100,000 objects without an end": b'{"a":' * 100_000,
    "a list that begins 100,000 lists": b"[" * 100_000,
    "ends without a beginning": b'{"a":1' + b"]" * 100_000 + b"}",
    "brackets that do not match": b'{"a":' + b"[{" * 50_000 + b"]}" * 50_000 + b"}",
    "brackets the wrong way round": b"]" * 50_000 + b"[" * 50_000,
    "a number of 100,000 digits": b'{"a":' + b"9" * 100_000 + b"}",
    "a huge exponent": b'{"a":1e999999999}',
    "a tiny exponent": b'{"a":1e-999999999}',
    "NaN": b'{"a":NaN}',
    "infinity": b'{"a":-Infinity}',
    "no UTF-8 in a text": b'{"a":"\xff\xfe"}',
    "no UTF-8 in a key": b'{"\xc0\x80":1}',
    "a surrogate in UTF-8": b'{"a":"\xed\xa0\x80"}',
    "half a surrogate": b'{"a":"\\ud800"}',
    "two halves in the wrong order": b'{"a":"\\udc00\\ud800"}',
    "a broken escape": b'{"a":"\\u00"}',
    "an escape at the end": b'{"a":"\\',
    "a control character": b'{"a":"\n"}',
    "a byte order mark": b"\xef\xbb\xbf{}",
    "UTF-16": "{}".encode("utf-16"),
    "nothing": b"",
    "NULs": bytes(1000),
    "a comment": b'{"a":1}//x',
    "two documents": b"{}{}",
    "a text": b'"a"',
    "null": b"null",
    "brackets in texts": b'{"a":"' + b"[{" * 50_000 + b'"}',
    "escaped quotes and brackets": b'{"a":"' + b'\\"[\\\\' * 50_000 + b'"}',
    "a quote too many": b'{"a":"x""}',
}
GOOD = ("brackets in texts", "escaped quotes and brackets", "a tiny exponent")  # JSON like any other


@pytest.mark.hostile(15)
@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("case", HURTFUL)
def test_json_made_to_hurt_is_one_of_our_errors(case: str, reader: str) -> None:
    read, _, _ = READERS[reader]
    try:
        read(HURTFUL[case], DEFAULT_LIMITS)
    except (InvalidArgument, ResourceExhausted) as exc:
        assert len(str(exc)) < 1_000  # noqa: PT017 - both are right
        return
    assert case in GOOD


@pytest.mark.parametrize("case", GOOD)
def test_brackets_in_texts_are_no_levels(case: str) -> None:
    assert parse_json(HURTFUL[case], "read it", depth=1)


@pytest.mark.hostile(15)
def test_stored_documents_are_read_whatever_the_limits_say(monkeypatch: pytest.MonkeyPatch) -> None:
    deep = nested(MAX_DEPTH, CONFIG)
    assert parse_config(deep, "read it").diff_ids()
    with pytest.raises(ResourceExhausted, match="json_depth"):
        parse_config(nested(MAX_DEPTH + 1, CONFIG), "read it")
    for name in ("manifest_size", "index_size", "config_size"):
        assert getattr(STORED, name) == limits_by_name()[name].most == MAX_DOCUMENT
    assert STORED.json_depth == limits_by_name()["json_depth"].most
    assert documents.MAX_DEPTH < 1_000


def test_of_a_key_that_stands_twice_the_last_counts_everywhere() -> None:
    other = "sha256:" + "cd" * 32
    twice = CONFIG[:-1] + b', "rootfs": {"type": "layers", "diff_ids": ["%s"]}}' % other.encode()
    assert parse_config(twice, "read it").diff_ids() == (other,)
    assert parse_json(twice, "read it")["rootfs"]["diff_ids"] == [other]
    twice = MANIFEST[:-1] + b', "layers": []}'
    manifest = parse_manifest(twice, "", "read it")
    assert isinstance(manifest, Manifest)
    assert manifest.layers == []


def test_a_nul_in_a_name_is_a_name_like_any_other_to_the_reader() -> None:
    (image,) = parse_docker_list(DOCKER.replace(b"c.json", b"c\\u0000.json"), "read it")
    assert image.config == "c\0.json"


@pytest.mark.parametrize(
    "document",
    [
        b"{}",
        b"[{}]",
        b'[{"Config": 4, "Layers": []}]',
        b'[{"Config": "c", "Layers": {}}]',
        b'[{"Config": "c", "Layers": [4]}]',
        b'[{"Config": "c", "Layers": [], "RepoTags": 5}]',
        b'[{"Config": "c", "Layers": [], "RepoTags": [5]}]',
        b'[{"Config": "c", "Layers": [], "RepoTags": "a"}]',
        b"[4]",
        b'{"Config": "c", "Layers": []}',
    ],
)
def test_a_list_of_dockers_that_is_none_is_refused(document: bytes) -> None:
    with pytest.raises(InvalidArgument, match="not a JSON list of images"):
        parse_docker_list(document, "read it")


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=20,
)


@settings(deadline=None, derandomize=True, database=None)
@given(JSON_VALUES)
def test_levels_are_counted_as_json_nests(value: Any) -> None:
    data = json.dumps(value, ensure_ascii=True).encode()
    assert documents._levels(data, 1_000) == depth_of(value)


@settings(deadline=None, derandomize=True, database=None)
@given(
    st.lists(st.sampled_from([b"[", b"]", b"{", b"}", b'"', b"\\", b",", b":", b"0", b'"a":']), max_size=60)
)
def test_any_brackets_are_a_document_or_one_of_our_errors(pieces: list[bytes]) -> None:
    data = b"".join(pieces)
    levels = documents._levels(data, 5)
    assert 0 <= levels <= 6
    for read, _, _ in READERS.values():
        try:
            read(data, DEFAULT_LIMITS)
        except (InvalidArgument, ResourceExhausted):
            continue
    try:
        decoded = msgspec.json.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return
    assert documents._levels(data, 1_000) == depth_of(decoded)


def test_credentials_of_any_shape_are_found_or_not() -> None:
    for value in (
        None,
        4,
        "x",
        [],
        {"r": None},
        {"r": {"auth": 5}},
        {"r": {"auth": "é"}},
        {"r": {"auth": "e"}},
    ):
        for key in ("auths", "credHelpers", "credsStore"):
            try:
                list(find({key: value}, "r", "a/b", scheme="https"))
            except Error as exc:  # pragma: no cover - none of these is an error
                raise AssertionError(key, value) from exc
