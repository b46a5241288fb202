"""Credential files and helper programs."""

from __future__ import annotations

import base64
import json
import os

import pytest

from orlop.errors import Cancelled, InvalidArgument, NotFound, Unavailable
from orlop.observe import Call, CancelToken, NullObserver
from orlop.registry.credentials import Credential, CredentialSources, Helper, Keychain, find, usual_sources
from orlop.registry.helpers import ask_helper


def auth(name, password="pw"):
    return {"auth": base64.b64encode(f"{name}:{password}".encode()).decode()}


def first(document, registry="r.example", repository="a/b", scheme="https"):
    return next(find(document, registry, repository, scheme=scheme), None)


@pytest.mark.hostile(21)
@pytest.mark.parametrize(
    ("keys", "registry", "repository", "expected"),
    [
        (["r.example"], "r.example", "a/b", "r.example"),
        (["r.example:5000"], "r.example", "a/b", None),
        (["r.example"], "r.example:5000", "a/b", None),
        (["r.example", "r.example/a", "r.example/a/b"], "r.example", "a/b", "r.example/a/b"),
        (["r.example", "r.example/a"], "r.example", "a/b", "r.example/a"),
        (["r.example/a"], "r.example", "ab/c", None),
        (["r.example/a/b/c"], "r.example", "a/b", None),
        (["https://r.example/v2/"], "r.example", "a/b", "https://r.example/v2/"),
        (["https://r.example"], "r.example", "a/b", "https://r.example"),
        (["http://r.example"], "r.example", "a/b", None),
        (["https://index.docker.io/v1/"], "docker.io", "library/a", "https://index.docker.io/v1/"),
        (["docker.io"], "docker.io", "library/a", "docker.io"),
        (["docker.io/me"], "docker.io", "me/x", "docker.io/me"),
        (["docker.io/me"], "docker.io", "library/a", None),
        (["r.example.evil"], "r.example", "a/b", None),
        (["index.docker.io"], "r.example", "a/b", None),
    ],
)
def test_the_longest_key_that_fits_wins_and_no_other_hosts(keys, registry, repository, expected):
    found = first({"auths": {key: auth(key) for key in keys}}, registry, repository)
    # A user name ends at its first colon, so the key is put together again here.
    assert (f"{found.username}:{found.password}".removesuffix(":pw") if found else None) == expected


@pytest.mark.hostile(24)
def test_a_key_for_https_is_not_used_in_the_clear():
    document = {"auths": {"https://r.example": auth("me")}}
    assert first(document, scheme="https").username == "me"
    assert first(document, scheme="http") is None


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        (auth("me", "p:w"), Credential(username="me", password="p:w")),
        (auth("me", "pw\0\0"), Credential(username="me", password="pw")),
        ({"username": "me", "password": "pw"}, Credential(username="me", password="pw")),
        ({**auth("me"), "identitytoken": "t"}, Credential(username="me", password="pw", identity_token="t")),
        ({"registrytoken": "t"}, Credential(registry_token="t")),
        ({}, None),
        ({"auth": ""}, None),
        ({"auth": "%%%"}, None),
        ({"auth": base64.b64encode(b"nocolon").decode()}, None),
        ({"auth": 7}, None),
        ("text", None),
    ],
)
def test_an_entry_is_read_or_passed_over(entry, expected):
    found = first({"auths": {"r.example": entry}})
    assert found == expected
    assert found is None or "pw" not in repr(found)


def test_a_registrys_helper_goes_before_the_store_and_the_store_before_the_file():
    document = {
        "credHelpers": {"r.example": "one"},
        "credsStore": "all",
        "auths": {"r.example": auth("me")},
    }
    assert list(find(document, "r.example", "a", scheme="https")) == [
        Helper(name="one", server="r.example"),
        Helper(name="all", server="r.example"),
        Credential(username="me", password="pw"),
    ]
    assert first({"credsStore": "all"}, "docker.io").server == "https://index.docker.io/v1/"


@pytest.mark.parametrize("document", [{}, {"auths": []}, {"auths": None, "credHelpers": 3, "credsStore": {}}])
def test_a_strange_document_offers_nothing(document):
    assert first(document) is None


def test_the_usual_places_are_podmans_then_dockers():
    sources = usual_sources({"HOME": "/h", "XDG_RUNTIME_DIR": "/run/user/7", "PATH": "/bin"}, uid=7)
    assert sources.files == (
        "/run/user/7/containers/auth.json",
        "/h/.config/containers/auth.json",
        "/h/.docker/config.json",
    )
    assert sources.helper_path == "/bin"
    assert usual_sources({}, uid=0).files == ("/run/containers/0/auth.json",)
    assert usual_sources({"DOCKER_CONFIG": "/d"}, uid=0).files[-1] == "/d/config.json"
    assert usual_sources({"REGISTRY_AUTH_FILE": "/x", "HOME": "/h"}, uid=0).files == ("/x",)


class Warnings(NullObserver):
    def __init__(self):
        self.texts = []

    def warning(self, text):
        self.texts.append(text)


def write(path, document):
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    return str(path)


def test_a_broken_file_is_warned_of_and_the_next_one_serves(tmp_path):
    files = (
        str(tmp_path / "missing"),
        write(tmp_path / "empty", ""),
        write(tmp_path / "broken", "{"),
        write(tmp_path / "good", {"auths": {"r.example": auth("me")}}),
    )
    warnings = Warnings()
    keychain = Keychain(CredentialSources(files=files), ask_helper)
    found = keychain("r.example", "a", scheme="https", call=Call(observer=warnings))
    assert found.username == "me"
    assert len(warnings.texts) == 1
    assert "broken" in warnings.texts[0]


def helper_program(folder, name, script):
    path = folder / f"docker-credential-{name}"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


ANSWERS = 'read server; printf \'{"ServerURL":"%s","Username":"me","Secret":"for %s"}\' "$server" "$server"'


def test_a_helper_is_told_the_server_and_its_answer_is_used(tmp_path):
    helper_program(tmp_path, "good", ANSWERS)
    path = f"{tmp_path}{os.pathsep}{os.defpath}"
    assert ask_helper(Helper(name="good", server="r.example"), path, Call()) == Credential(
        username="me", password="for r.example"
    )


def test_a_helpers_token_user_means_an_identity_token(tmp_path):
    helper_program(tmp_path, "token", 'echo \'{"Username":"<token>","Secret":"t"}\'')
    found = ask_helper(Helper(name="token", server="r"), str(tmp_path), Call())
    assert found == Credential(identity_token="t")


def test_a_helper_without_the_credential_says_so(tmp_path):
    helper_program(tmp_path, "none", "echo credentials not found in native keychain; exit 1")
    assert ask_helper(Helper(name="none", server="r"), str(tmp_path), Call()) is None


@pytest.mark.hostile(25)
@pytest.mark.parametrize(
    ("name", "script", "error", "words"),
    [
        ("fails", "echo no key ring here; exit 3", Unavailable, "no key ring here"),
        ("leaks", 'echo \'{"Secret":"hunter2"}\'; exit 3', Unavailable, "status 3"),
        ("garbles", "echo hunter2", Unavailable, "not the JSON"),
        ("../x", "", InvalidArgument, "not a helper's name"),
        ("missing", None, NotFound, "docker-credential-missing"),
    ],
)
def test_a_failing_helper_is_named_without_what_it_knows(tmp_path, name, script, error, words):
    if script and "/" not in name:
        helper_program(tmp_path, name, script)
    with pytest.raises(error, match=words) as caught:
        ask_helper(Helper(name=name, server="r"), str(tmp_path), Call())
    assert "hunter2" not in str(caught.value)


def test_a_broken_helper_is_warned_of_and_the_file_serves(tmp_path):
    document = {"credsStore": "missing", "auths": {"r.example": auth("me")}}
    warnings = Warnings()
    sources = CredentialSources(files=(write(tmp_path / "c", document),), helper_path=str(tmp_path))
    found = Keychain(sources, ask_helper)("r.example", "a", scheme="https", call=Call(observer=warnings))
    assert found.username == "me"
    assert "docker-credential-missing" in warnings.texts[0]


def test_a_helper_that_hangs_is_ended_with_the_call(tmp_path):
    helper_program(tmp_path, "hangs", "exec tail -f /dev/null")
    cancel = CancelToken()
    cancel.cancel()
    path = f"{tmp_path}{os.pathsep}{os.defpath}"
    with pytest.raises(Cancelled):
        ask_helper(Helper(name="hangs", server="r"), path, Call(cancel=cancel))
