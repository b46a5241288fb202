"""What CRI calls an image, its names, its user and a pull's credentials: tables, without I/O."""

from __future__ import annotations

import base64
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orlop.errors import InvalidArgument, Unavailable
from orlop.images.cri.rules import MAX_ID, MAX_USERNAME, id_of, told_names, user_of
from orlop.images.nodeimages import DiskUse, NodeImage, NodeImageDetails
from orlop.observe import Auth
from orlop.proto.runtime.v1 import images_pb2 as pb
from orlop.service import criwire

A, B = "sha256:" + "a" * 64, "sha256:" + "b" * 64


@pytest.mark.parametrize(
    ("text", "uid", "username"),
    [
        ("", None, ""),
        (":1000", None, ""),
        ("0", 0, ""),
        ("root", None, "root"),
        ("1000", 1000, ""),
        ("1000:1000", 1000, ""),
        ("1000:group", 1000, ""),
        ("name", None, "name"),
        ("name:group", None, "name"),
        ("name:1:2", None, "name"),
        ("007", 7, ""),
        (str(MAX_ID), MAX_ID, ""),
        ("1000 ", None, "1000 "),
        ("+5", None, "+5"),
        ("0x10", None, "0x10"),
        ("\u0661", None, "\u0661"),  # a digit, and not one of /etc/passwd's
    ],
)
def test_a_configs_user_is_a_number_or_a_name(text: str, uid: int | None, username: str) -> None:
    assert user_of(text) == (uid, username)


@pytest.mark.hostile(29)
@pytest.mark.parametrize("text", ["-1", "4294967295", "4294967296", "9" * 30, "9" * 5000])
def test_a_number_that_is_no_user_id_is_never_told_as_one(text: str) -> None:
    assert user_of(f"{text}:0") == (None, text[:MAX_USERNAME])


@given(st.text(max_size=40))
def test_whatever_a_user_is_the_number_is_a_user_id_and_excludes_a_name(text: str) -> None:
    uid, username = user_of(text)
    assert uid is None or (0 <= uid <= MAX_ID and not username)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (A, A),
        ("a" * 64, A),
        ("a" * 63, None),
        ("a" * 12, None),
        ("sha256:" + "a" * 63, None),
        ("A" * 64, None),
        (f"app@{A}", None),
        ("sha512:" + "a" * 128, None),
        ("a" * 64 + "\n", None),
    ],
)
def test_only_a_whole_digest_is_an_id_and_no_name(text: str, found: str | None) -> None:
    assert id_of(text) == found


def test_names_are_told_by_tag_and_by_digest_each_once() -> None:
    names = [
        ("docker.io/library/app:1", A),
        ("docker.io/library/app:2", A),
        ("docker.io/library/app:3", B),
        ("r.example:5000/team/app:1", A),
        (f"r.example/by:tag@{B}", A),  # the digest in a name says what was asked for
        (f"r.example/plain@{B}", B),
        ("localhost/committed:latest", None),
        ("no name at all", A),
    ]
    tags, digests = told_names(names)
    assert tags == (
        "docker.io/library/app:1",
        "docker.io/library/app:2",
        "docker.io/library/app:3",
        "r.example:5000/team/app:1",
        "localhost/committed:latest",
    )
    assert digests == (
        f"docker.io/library/app@{A}",
        f"docker.io/library/app@{B}",
        f"r.example:5000/team/app@{A}",
        f"r.example/by@{B}",
        f"r.example/plain@{B}",
    )


def _basic(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


@pytest.mark.parametrize(
    ("given_auth", "expected"),
    [
        ({}, None),
        ({"server_address": "https://r.example"}, None),
        ({"username": "me", "password": "pw"}, Auth(username="me", password="pw", registry="r.example:5000")),
        ({"auth": _basic("me:p:w")}, Auth(username="me", password="p:w", registry="r.example:5000")),
        ({"auth": _basic("me:pw\0\0")}, Auth(username="me", password="pw", registry="r.example:5000")),
        (
            {"username": "me", "password": "pw", "auth": _basic("other:x")},
            Auth(username="me", password="pw", registry="r.example:5000"),
        ),
        (
            {"username": "me", "password": "pw", "auth": "???"},
            Auth(username="me", password="pw", registry="r.example:5000"),
        ),
        ({"identity_token": "t"}, Auth(identity_token="t", registry="r.example:5000")),
        ({"registry_token": "t"}, Auth(registry_token="t", registry="r.example:5000")),
        (
            {"username": "me", "password": "pw", "server_address": "https://index.docker.io/v1/"},
            Auth(username="me", password="pw", registry="index.docker.io"),
        ),
        (
            {"registry_token": "t", "server_address": "other.example/team"},
            Auth(registry_token="t", registry="other.example"),
        ),
        (
            {"registry_token": "t", "server_address": "http://[::1]:5000"},
            Auth(registry_token="t", registry="[::1]:5000"),
        ),
    ],
)
def test_credentials_are_for_the_registry_they_name_else_the_images(
    given_auth: dict[str, str], expected: Auth | None
) -> None:
    assert criwire.auth_from(pb.AuthConfig(**given_auth), "r.example:5000/app:1", "pull") == expected


@pytest.mark.hostile(25)
@pytest.mark.parametrize(
    "given_auth",
    [
        {"auth": "s3cret!"},
        {"auth": _basic("s3cret")},
        {"auth": base64.b64encode(b"s3cret:\xff").decode()},
        {"auth": "s3crét"},
        {"password": "s3cret", "server_address": "https:///s3cret"},
        {"password": "s3cret", "server_address": "http://[s3cret"},
    ],
)
def test_credentials_that_cannot_be_are_refused_without_being_repeated(given_auth: dict[str, str]) -> None:
    with pytest.raises(InvalidArgument) as refused:
        criwire.auth_from(pb.AuthConfig(**given_auth), "r.example/app", "pull r.example/app")
    said = refused.value
    while said is not None:
        assert "s3cr" not in f"{said} {said.args}"
        said = None if said.__suppress_context__ else said.__context__


def test_an_image_is_told_with_the_spec_it_was_asked_for_by() -> None:
    image = NodeImage(
        id=A, tags=("r/a:1", "r/b:2"), digests=(f"r/a@{B}",), size=7, uid=0, username="", pinned=True
    )
    spec = pb.ImageSpec(image="a:1", annotations={"k": "v"}, runtime_handler="kata", user_specified_image="a")
    told = criwire.image_to(image, spec)
    assert told == pb.Image(
        id=A,
        repo_tags=["r/a:1", "r/b:2"],
        repo_digests=[f"r/a@{B}"],
        size=7,
        uid=pb.Int64Value(value=0),  # root by number is not the same as nobody said
        spec=spec,
        pinned=True,
    )
    assert not criwire.image_to(NodeImage(id=A, tags=(), digests=(), size=1)).HasField("uid")
    odd = criwire.image_to(NodeImage(id=A, tags=(), digests=(), size=1, username="\udcff"))
    assert odd.username == "\\udcff"


def test_verbose_info_is_one_json_document_with_the_config() -> None:
    image = NodeImage(id=A, tags=(), digests=(), size=1)
    config = b'{"os":"linux","config":{"User":"\\ud800"}}'
    info = criwire.info_to(NodeImageDetails(image=image, chain=B, config=config))
    assert list(info) == ["info"]
    assert json.loads(info["info"]) == {"chainID": B, "imageSpec": json.loads(config)}


def test_the_disk_is_told_for_images_and_for_containers() -> None:
    use = DiskUse(path="/r", at=5, image_bytes=1, image_inodes=2, root_bytes=3, root_inodes=4)
    told = criwire.disk_to(use)
    [images], [containers] = told.image_filesystems, told.container_filesystems
    assert (images.timestamp, images.fs_id.mountpoint) == (5, "/r") == (containers.timestamp, "/r")
    assert (images.used_bytes.value, images.inodes_used.value) == (1, 2)
    assert (containers.used_bytes.value, containers.inodes_used.value) == (3, 4)


def test_a_registry_that_does_not_answer_is_told_in_the_kubelets_word() -> None:
    error = Unavailable("pull r/a", "connection refused")
    criwire.mark(error)
    assert str(error) == "RegistryUnavailable: pull r/a: connection refused"


def test_an_image_has_to_be_named() -> None:
    with pytest.raises(InvalidArgument, match=r"image\.image"):
        criwire.subject_of(pb.ImageSpec(annotations={"a": "b"}), "pull")
