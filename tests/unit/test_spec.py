"""The OCI's words as values: names, digests, platforms, documents; every parser with hostile input."""

from __future__ import annotations

import contextlib
import hashlib
import json
import string
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orlop.errors import InvalidArgument, ResourceExhausted, Unimplemented
from orlop.spec.digest import DiffID, Digest, chain_id
from orlop.spec.documents import (
    DOCKER_INDEX,
    DOCKER_MANIFEST,
    MAX_SIZE,
    OCI_CONFIG,
    OCI_INDEX,
    OCI_LAYER,
    OCI_MANIFEST,
    Index,
    Manifest,
    encode,
    parse_config,
    parse_json,
    parse_manifest,
)
from orlop.spec.platform import Platform, host_platform
from orlop.spec.reference import Reference

A, B = "sha256:" + "a" * 64, "sha256:" + "b" * 64
LONG = "sha512:" + "c" * 128

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)

# ------------------------------------------------------------------ digests


@pytest.mark.parametrize("text", [A, LONG])
def test_a_digest_keeps_its_text(text: str) -> None:
    digest = Digest(text)
    assert digest == text
    assert f"{digest.algorithm}:{digest.hex}" == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "sha256",
        "sha256:",
        "a" * 64,
        "sha256:" + "a" * 63,
        "sha256:" + "a" * 65,
        "sha256:" + "A" * 64,
        "sha256:../../" + "a" * 58,
        A + "\n",
        " " + A,
        A + ":x",
        "sha512:" + "a" * 64,
        "md5:" + "a" * 32,
        "sha256:" + "\u0661" * 64,  # digits, says str.isdigit
        "sha256:" + "a" * 63 + "\0",
    ],
)
def test_what_is_no_digest_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgument, match="not a digest"):
        Digest(text)


@given(st.text())
def test_a_digest_is_always_safe_as_a_file_name(text: str) -> None:
    try:
        digest = Digest(text)
    except InvalidArgument:
        return
    assert set(digest.hex) <= set(string.hexdigits.lower())


@given(st.binary(), st.binary())
def test_a_digest_verifies_its_bytes_alone(data: bytes, other: bytes) -> None:
    digest = Digest.of(data)
    assert digest == "sha256:" + hashlib.sha256(data).hexdigest()
    assert digest.verifies(data)
    assert digest.verifies(other) == (data == other)
    assert Digest("sha512:" + hashlib.sha512(data).hexdigest()).verifies(data)


def test_the_chain_id_is_the_specs() -> None:
    ids = [DiffID.of(bytes([n])) for n in range(3)]
    assert chain_id(ids[:1]) == ids[0]
    two = "sha256:" + hashlib.sha256(f"{ids[0]} {ids[1]}".encode()).hexdigest()
    assert chain_id(ids[:2]) == two
    assert chain_id(ids) == "sha256:" + hashlib.sha256(f"{two} {ids[2]}".encode()).hexdigest()
    assert chain_id(reversed(ids)) != chain_id(ids)
    with pytest.raises(InvalidArgument):
        chain_id([])


# ------------------------------------------------------------------ references


@pytest.mark.parametrize(
    ("text", "full"),
    [
        ("alpine", "docker.io/library/alpine:latest"),
        ("alpine:3", "docker.io/library/alpine:3"),
        ("me/app", "docker.io/me/app:latest"),
        ("docker.io/alpine", "docker.io/library/alpine:latest"),
        ("index.docker.io/library/alpine", "docker.io/library/alpine:latest"),
        ("localhost/app", "localhost/app:latest"),
        ("localhost:5000/app:1", "localhost:5000/app:1"),
        ("127.0.0.1:5000/a/b", "127.0.0.1:5000/a/b:latest"),
        ("[::1]:5000/a", "[::1]:5000/a:latest"),
        ("ghcr.io/a/b_c/d-e.f:V1.0_x-y", "ghcr.io/a/b_c/d-e.f:V1.0_x-y"),
        ("a__b/c--d", "docker.io/a__b/c--d:latest"),
        (f"alpine@{A}", f"docker.io/library/alpine@{A}"),
        (f"alpine:3@{A}", f"docker.io/library/alpine:3@{A}"),
        (f"alpine@{LONG}", f"docker.io/library/alpine@{LONG}"),
        ("Host.example/app", "Host.example/app:latest"),
    ],
)
def test_a_name_is_read_as_docker_reads_it(text: str, full: str) -> None:
    assert str(Reference.parse(text)) == full


@pytest.mark.distribution("pull.manifest.name")
@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "repository is empty"),
        ("localhost/", "repository is empty"),
        ("UPPER", "lower case"),
        ("a/Upper", "lower case"),
        (":tag", "repository"),
        ("a:", "not a tag"),
        ("a:b:c", "not a tag"),
        ("a:" + "t" * 129, "not a tag"),
        ("a:-t", "not a tag"),
        ("a//b", "not a repository"),
        ("a/../b", "not a repository"),
        ("../a", "not a"),
        ("a___b", "not a repository"),
        ("a..b", "not a repository"),
        ("-a", "not a repository"),
        ("ex_ample.com/a", "not a registry host"),
        ("host:port/a", "not a registry host"),
        ("host:123456/a", "not a registry host"),
        ("http://host/a", "not a"),
        ("user@host/a", "not a digest"),
        ("a@sha256:../../x", "not a digest"),
        ("a b", "not a repository"),
        ("a\n", "not a repository"),
        ("a:t\n", "not a tag"),
        ("localhost/" + "a" * 246, "255 characters"),
    ],
)
def test_what_is_no_name_is_refused_with_the_part_that_is_wrong(text: str, words: str) -> None:
    with pytest.raises(InvalidArgument, match=words):
        Reference.parse(text)


_component = st.from_regex(r"[a-z0-9]{1,8}([._-][a-z0-9]{1,4})?", fullmatch=True)
_names = st.builds(
    lambda host, parts, tag, digest: (
        f"{host}/{'/'.join(parts)}" + (f":{tag}" if tag else "") + (f"@{digest}" if digest else "")
    ),
    st.sampled_from(["localhost", "docker.io", "ghcr.io", "10.0.0.1:5000", "[fe80::1]:443", "a-b.example:1"]),
    st.lists(_component, min_size=1, max_size=4),
    st.none() | st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,20}", fullmatch=True),
    st.sampled_from([None, A, LONG]),
)


@given(_names)
def test_the_full_name_of_a_name_is_its_own_full_name(text: str) -> None:
    ref = Reference.parse(text)
    assert Reference.parse(str(ref)) == ref
    assert str(Reference.parse(str(ref))) == str(ref)
    assert ref.target == (ref.digest or ref.tag)
    assert str(ref.with_digest(Digest(B))) == f"{ref.name}@{B}"


@given(st.text() | st.text(alphabet="ab.:/@[]-_AB0"))
def test_any_text_is_a_name_or_refused(text: str) -> None:
    try:
        ref = Reference.parse(text)
    except InvalidArgument:
        return
    assert Reference.parse(str(ref)) == ref
    assert not set(str(ref)) & set(" \n\t\0\\,\"'")
    assert ".." not in ref.repository.split("/")


# ------------------------------------------------------------------ platforms


@pytest.mark.parametrize(
    ("text", "full"),
    [
        ("linux/amd64", "linux/amd64"),
        ("arm64", "linux/arm64"),
        ("aarch64", "linux/arm64"),
        ("linux/x86_64", "linux/amd64"),
        ("Linux/ARM/v7", "linux/arm/v7"),
        ("windows/amd64", "windows/amd64"),
    ],
)
def test_a_platform_is_read_in_gos_names(text: str, full: str) -> None:
    assert str(Platform.parse(text)) == full


@pytest.mark.parametrize("text", ["", "/", "linux/", "a/b/c/d", "linux/a b", "linux//v8", "linux/amd64\n"])
def test_what_is_no_platform_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgument):
        Platform.parse(text)


@pytest.mark.parametrize(
    ("offered", "wanted", "serves"),
    [
        ("linux/amd64", "linux/amd64", True),
        ("linux/arm64", "linux/arm64/v8", True),
        ("linux/arm64/v8", "linux/arm64", True),
        ("linux/arm/v6", "linux/arm/v7", True),
        ("linux/arm/v7", "linux/arm/v6", False),
        ("linux/amd64/v3", "linux/amd64", False),
        ("linux/amd64", "linux/amd64/v3", True),
        ("linux/arm", "linux/arm/v7", True),
        ("windows/amd64", "linux/amd64", False),
        ("linux/386", "linux/arm64", False),
    ],
)
def test_a_lower_variant_serves_a_higher_one_and_nothing_else_does(
    offered: str, wanted: str, serves: bool
) -> None:
    assert bool(Platform.parse(offered).rank(Platform.parse(wanted))) == serves


@given(st.integers(1, 9), st.integers(1, 9))
def test_the_same_variant_is_better_than_any_other(mine: int, other: int) -> None:
    wanted = Platform(os="linux", architecture="arm", variant=f"v{mine}")
    offered = Platform(os="linux", architecture="arm", variant=f"v{other}")
    assert wanted.rank(wanted) >= offered.rank(wanted)
    assert (offered.rank(wanted) == wanted.rank(wanted)) == (mine == other)


def test_this_machine_runs_what_it_says() -> None:
    assert host_platform().rank(host_platform())


# ------------------------------------------------------------------ documents


def descriptor(digest: str = A, size: int = 1, media_type: str = OCI_LAYER, **more: Any) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": digest, "size": size, **more}


def manifest(**more: Any) -> dict[str, Any]:
    return {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": descriptor(media_type=OCI_CONFIG),
        "layers": [descriptor(B)],
        **more,
    }


def parse(document: object, media_type: str = "") -> Manifest | Index:
    return parse_manifest(json.dumps(document).encode(), media_type, "read it")


@pytest.mark.parametrize("kind", [OCI_MANIFEST, DOCKER_MANIFEST])
def test_a_manifest_is_told_by_its_own_words_or_the_servers(kind: str) -> None:
    for document, said in (
        (manifest(mediaType=kind), kind),
        (manifest(mediaType=kind), ""),
        (manifest(mediaType=kind), "text/plain"),
        ({**manifest(), "mediaType": ""}, f"{kind}; charset=utf-8"),
    ):
        parsed = parse(document, said)
        assert isinstance(parsed, Manifest)
        assert parsed.media_type == kind
        assert [layer.checked_digest() for layer in parsed.layers] == [B]


@pytest.mark.parametrize("kind", [OCI_INDEX, DOCKER_INDEX])
def test_an_index_is_told_by_its_own_words_or_the_servers(kind: str) -> None:
    listed = {"schemaVersion": 2, "manifests": [descriptor(media_type=OCI_MANIFEST)]}
    assert isinstance(parse({**listed, "mediaType": kind}), Index)
    assert isinstance(parse(listed, kind), Index)
    assert isinstance(parse(listed), Index)


@pytest.mark.parametrize(
    ("document", "media_type", "words"),
    [
        (manifest(manifests=[]), "", "both an index and a manifest"),
        (manifest(), OCI_INDEX, "differs from Content-Type"),
        (manifest(mediaType="text/html"), "", "not an image manifest"),
        (manifest(mediaType=7), "", "not a string"),
        (manifest(layers=None), "", "malformed"),
        (manifest(layers=[descriptor("sha256:../x")]), "", "not a digest"),
        (manifest(layers=[descriptor(size=-1)]), "", "impossible size"),
        (manifest(layers=[descriptor(size=MAX_SIZE + 1)]), "", "impossible size"),
        (manifest(layers=[descriptor(size=1.5)]), "", "malformed"),
        (manifest(layers=[descriptor(size="1")]), "", "malformed"),
        (manifest(config="x"), "", "malformed"),
        ({"schemaVersion": 2}, "", "malformed"),
        ({"mediaType": OCI_INDEX, "manifests": [{"size": 1}]}, "", "malformed"),
        ([], "", "not a JSON object"),
        ("text", "", "not a JSON object"),
    ],
)
def test_a_document_that_contradicts_itself_is_refused(document: object, media_type: str, words: str) -> None:
    with pytest.raises(InvalidArgument, match=words):
        parse(document, media_type)


def test_the_first_schema_of_docker_is_named_not_guessed() -> None:
    for document, said in (
        ({"schemaVersion": 1, "fsLayers": []}, ""),
        (manifest(), "application/vnd.docker.distribution.manifest.v1+prettyjws"),
    ):
        with pytest.raises(Unimplemented, match="schema 1"):
            parse(document, said)


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"\xff\xfe", b'{"a": NaN}', b"[" * 100_000, b'{"a":' * 100_000, b'{"a": "\xed\xa0\x80"}'],
    ids=repr,
)
def test_what_is_no_json_is_refused(data: bytes) -> None:
    for read in (parse_json, parse_config):
        with pytest.raises(InvalidArgument):
            read(data, "read it")
    with pytest.raises(InvalidArgument):
        parse_manifest(data, "", "read it")


def test_a_document_beyond_the_limit_is_not_even_read() -> None:
    with pytest.raises(ResourceExhausted, match="config_size is 11, the limit is 10"):
        parse_json(b" " * 11, "read it", limit=10)


@given(json_values)
def test_any_json_is_a_document_or_refused(value: Any) -> None:
    data = json.dumps(value).encode("utf-8", "surrogatepass")
    for read in (lambda: parse_manifest(data, "", "read"), lambda: parse_config(data, "read")):
        with contextlib.suppress(InvalidArgument, Unimplemented):
            read()


@given(st.sampled_from(["config", "layers", "mediaType", "schemaVersion", "annotations"]), json_values)
def test_any_value_in_a_manifest_is_read_or_refused(key: str, value: Any) -> None:
    data = json.dumps(manifest(**{key: value})).encode("utf-8", "surrogatepass")
    with contextlib.suppress(InvalidArgument, Unimplemented):
        assert isinstance(parse_manifest(data, "", "read"), Manifest)


@given(st.sampled_from(["rootfs", "config", "history", "os", "created"]), json_values)
def test_any_value_in_a_config_is_read_or_refused(key: str, value: Any) -> None:
    document = {"os": "linux", "architecture": "amd64", "rootfs": {"diff_ids": [A]}, key: value}
    try:
        config = parse_config(json.dumps(document).encode("utf-8", "surrogatepass"), "read")
    except InvalidArgument:
        return
    config.diff_ids()
    config.platform()


def test_an_index_gives_the_best_of_what_serves_and_the_first_of_equals() -> None:
    def one(digest: str, platform: str | None, **more: Any) -> dict[str, Any]:
        if platform is None:
            return descriptor(digest, **more)
        system, architecture, *variant = platform.split("/")
        where = {"os": system, "architecture": architecture, **({"variant": variant[0]} if variant else {})}
        return descriptor(digest, platform=where, **more)

    digests = ["sha256:" + str(n) * 64 for n in range(6)]
    attestation = {"annotations": {"vnd.docker.reference.type": "attestation-manifest"}}
    index = parse(
        {
            "mediaType": OCI_INDEX,
            "manifests": [
                one(digests[0], "linux/arm/v7", **attestation),
                one(digests[1], "linux/arm/v6"),
                one(digests[2], "linux/arm/v7"),
                one(digests[3], "linux/arm/v7"),
                one(digests[4], "linux/s390x"),
            ],
        }
    )
    assert isinstance(index, Index)
    for wanted, expected in (
        ("linux/arm/v7", 2),
        ("linux/arm/v8", 2),
        ("linux/arm/v6", 1),
        ("linux/s390x", 4),
    ):
        chosen = index.choose(Platform.parse(wanted))
        assert chosen is not None
        assert chosen.digest == digests[expected]
    assert index.choose(Platform.parse("linux/amd64")) is None


@given(st.dictionaries(st.text(max_size=5), st.integers() | st.text(), max_size=6))
def test_a_new_document_has_one_form(document: dict[str, Any]) -> None:
    shuffled = dict(reversed(document.items()))
    assert encode(document) == encode(shuffled)
    assert json.loads(encode(document)) == document
