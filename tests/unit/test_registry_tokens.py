"""Which challenge is answered, where credentials go, and what a token server's answer means."""

from __future__ import annotations

import json
from urllib.parse import parse_qs, urlsplit

import pytest

from orlop.errors import Unauthenticated, Unavailable
from orlop.registry.access.challenge import parse_challenges
from orlop.registry.access.credentials import Credential
from orlop.registry.access.tokens import basic, parse_token, pick, token_request
from orlop.registry.finding.hosts import endpoints

(PUBLIC,) = endpoints("r.example")
_, INSECURE = endpoints("r.example", ["r.example"])
LOOPBACK_TLS, LOOPBACK = endpoints("127.0.0.1:5000")
ME = Credential(username="me", password="hunter2")


def ask(realm, *, credential=ME, endpoint=PUBLIC, scopes=("repository:a:pull",)):
    challenge = pick(parse_challenges(f'Bearer realm="{realm}",service="s"'))
    return token_request(challenge, credential, endpoint=endpoint, scopes=scopes, attempted="test")


@pytest.mark.parametrize(
    ("header", "scheme"),
    [
        ('Basic realm="a", Bearer realm="b"', "bearer"),
        ('Negotiate, Basic realm="a"', "basic"),
        ("Negotiate", None),
        ("", None),
    ],
)
def test_bearer_goes_before_basic_and_others_are_not_answered(header, scheme):
    found = pick(parse_challenges(header))
    assert (found.scheme if found else None) == scheme


def test_a_token_is_asked_for_as_the_specification_says():
    request = ask("https://auth.example/token?x=1", scopes=("repository:a:pull,push", "repository:b:pull"))
    assert request.method == "GET"
    assert parse_qs(urlsplit(request.url).query) == {
        "x": ["1"],
        "service": ["s"],
        "scope": ["repository:a:pull,push", "repository:b:pull"],
        "account": ["me"],
    }
    assert request.headers["Authorization"] == basic(ME)
    assert "hunter2" not in request.url


def test_an_anonymous_request_tells_nobody():
    request = ask("https://auth.example/token", credential=None)
    assert not request.headers
    assert "account" not in request.url


def test_an_identity_token_is_posted_and_not_put_in_the_url():
    request = ask("https://auth.example/token", credential=Credential(identity_token="refresh-me"))
    form = parse_qs(request.body.decode())
    assert request.method == "POST"
    assert form["grant_type"] == ["refresh_token"]
    assert form["refresh_token"] == ["refresh-me"]
    assert form["scope"] == ["repository:a:pull"]
    assert "refresh-me" not in request.url


@pytest.mark.hostile(21)
@pytest.mark.parametrize(
    "realm",
    [
        "http://r.example/token",
        "http://auth.example/token",
        "http://169.254.169.254/latest",
        "ftp://auth.example/",
        "/token",
        "",
        "https://",
    ],
)
@pytest.mark.parametrize("credential", [ME, None, Credential(identity_token="t")])
def test_a_realm_that_is_not_https_gets_nothing(realm, credential):
    with pytest.raises(Unauthenticated, match=r"r\.example") as caught:
        ask(realm, credential=credential)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("endpoint", [INSECURE, LOOPBACK, LOOPBACK_TLS])
def test_a_registry_in_the_clear_or_here_may_have_its_realm_in_the_clear(endpoint):
    assert ask("http://127.0.0.1:6000/t", endpoint=endpoint).url.startswith("http://127.0.0.1:6000/t?")


def test_user_info_in_a_realm_is_dropped():
    assert ask("https://u:p@auth.example/t").url.startswith("https://auth.example/t?")


@pytest.mark.parametrize(
    ("answer", "header", "expires"),
    [
        ({"token": "a"}, "Bearer a", 154.0),
        ({"access_token": "b", "expires_in": 1000}, "Bearer b", 1000.0),
        ({"token": "a", "access_token": None, "expires_in": "300"}, "Bearer a", 370.0),
        ({"token": "a", "expires_in": -5}, "Bearer a", 100.0),
        ({"token": "a", "expires_in": 1e300}, "Bearer a", 77860.0),
    ],
)
def test_a_token_is_read_and_expires_a_tenth_early(answer, header, expires):
    token = parse_token(json.dumps(answer).encode(), now=100.0, personal=True, attempted="test")
    assert (token.header, token.expires) == (header, pytest.approx(expires))
    assert "Bearer" not in repr(token)


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"{}", Unauthenticated),
        (b'{"token":""}', Unauthenticated),
        (b'{"token":"a\\r\\nX-Evil: 1"}', Unauthenticated),
        (b'{"token":"a b"}', Unauthenticated),
        (b"<html>", Unavailable),
        (b"\xff\xfe", Unavailable),
        (b'{"token":{}}', Unavailable),
    ],
)
def test_an_answer_without_a_usable_token_is_refused(data, error):
    with pytest.raises(error):
        parse_token(data, now=0.0, personal=False, attempted="test")
