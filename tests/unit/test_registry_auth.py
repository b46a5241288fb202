"""Tokens while they age: fetched once, renewed in time, fetched again when refused.  No network; time is a number."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from urllib.parse import parse_qs, urlsplit

import pytest

from orlop.errors import Unauthenticated, Unavailable
from orlop.observe import Call
from orlop.registry.access.auth import KEPT, Authorizing
from orlop.registry.access.credentials import Credential
from orlop.registry.finding.hosts import Endpoint, origin_of
from orlop.registry.messages import Outgoing, Request, Response

ENDPOINT = Endpoint(registry="r.example", origin=origin_of("https://r.example", "test"))
SCOPE = "repository:a:pull"
GET = Request(
    method="GET",
    url="https://r.example/v2/a/blobs/x",
    endpoint=ENDPOINT,
    attempted="test",
    scopes=(SCOPE,),
    repository="a",
)


class Keys:
    """The user's credentials: a name and a password."""

    def __call__(self, registry, repository, *, scheme, call):
        return Credential(username="me", password="pw")

    def renewed(self, credential, token, *, call):
        raise AssertionError("no identity token was asked for")


class Registry:
    """A registry and its token server, at a time of their own.

    A token is good for ``life`` seconds; the client is told ``told`` (None: nothing).
    """

    def __init__(self, *, life=100.0, told=100.0, error=""):
        self.now = 0.0
        self.life, self.told, self.error = life, told, error
        self.issued = {}
        self.asked = []
        self.bodies = []
        self.delay = 0.0
        self.entered = threading.Event()
        self.go_on = threading.Event()
        self.go_on.set()

    def clock(self):
        return self.now

    def __call__(self, request, call):
        if urlsplit(request.url).path == "/token":
            return self.token(request)
        if isinstance(request.body, Outgoing):
            self.bodies.append(b"".join(request.body))
        scheme, _, value = request.headers.get("Authorization", "").partition(" ")
        if scheme == "Bearer" and self.issued.get(value, -1.0) > self.now:
            return Response(status=200, reason="", url=request.url, headers={})
        said = f'Bearer realm="https://r.example/token",service="s",scope="{SCOPE}"{self.error}'
        return Response(status=401, reason="", url=request.url, headers={"www-authenticate": said})

    def token(self, request):
        self.asked.append(parse_qs(urlsplit(request.url).query))
        self.entered.set()
        self.go_on.wait()
        value = f"t{len(self.asked)}"
        self.issued[value] = self.now + self.life
        self.now += self.delay
        document = {"token": value} | ({} if self.told is None else {"expires_in": self.told})
        return Response(
            status=200, reason="", url=request.url, headers={}, data=json.dumps(document).encode()
        )


def client(registry):
    return Authorizing(registry, Keys(), clock=registry.clock)


@pytest.mark.parametrize(
    ("life", "told", "times", "asked"),
    [
        (100.0, 100.0, [0, 10, 80], 1),
        (100.0, 100.0, [0, 91], 2),  # a tenth early, before it ends on the way
        (60.0, None, [0, 50], 1),  # nobody says: 60 seconds
        (60.0, None, [0, 55], 2),
        (30.0, None, [0, 40], 2),  # shorter than the specification says: refused once, and fetched again
        (10.0, 10_000.0, [0, 20, 40], 3),  # the token server's clock, or its word, is wrong
        (100.0, 0.0, [0, 1, 2], 3),  # good for nothing but the request it was fetched for
        (100.0, -5.0, [0, 1], 2),
    ],
)
def test_a_token_is_used_while_it_is_good_and_no_request_fails_by_its_end(life, told, times, asked):
    registry = Registry(life=life, told=told)
    send = client(registry)
    for now in times:
        registry.now = float(now)
        assert send(GET, Call()).status == 200
    assert len(registry.asked) == asked


def test_a_tokens_life_counts_from_when_it_was_asked_for():
    registry = Registry(life=100.0, told=100.0)
    registry.delay = 50.0  # that long its answer is on the way
    send = client(registry)
    assert send(GET, Call()).status == 200
    registry.now, registry.delay = 95.0, 0.0
    assert send(GET, Call()).status == 200
    assert len(registry.asked) == 2


def streamed(chunks):
    body = Outgoing(iter(chunks), size=None, call=Call(), attempted="test")
    return replace(GET, method="PATCH", body=body)


def test_what_takes_long_begins_with_a_token_that_has_half_its_life_left():
    registry = Registry()
    send = client(registry)
    assert send(GET, Call()).status == 200
    registry.now = 60.0
    assert send(GET, Call()).status == 200
    assert len(registry.asked) == 1
    assert send(streamed([b"x"]), Call()).status == 200
    assert len(registry.asked) == 2


def test_a_body_that_cannot_come_again_is_unavailable_and_the_next_one_gets_a_new_token():
    registry = Registry(life=10.0, told=10_000.0)
    send = client(registry)
    send(GET, Call())
    registry.now = 20.0
    with pytest.raises(Unavailable, match="no longer takes the token"):
        send(streamed([b"one"]), Call())
    assert send(streamed([b"one"]), Call()).status == 200
    assert len(registry.asked) == 2


@pytest.mark.distribution("errors.unauthorized")
def test_a_scope_that_a_new_token_lacks_as_well_is_the_last_word():
    registry = Registry(life=-1.0, error=',error="insufficient_scope"')
    send = client(registry)
    response = send(GET, Call())
    assert (response.status, response.authenticated) == (401, True)
    assert len(registry.asked) == 1
    assert registry.asked[0]["scope"] == [SCOPE]
    assert send(streamed([b"x"]), Call()).status == 401


def test_many_threads_that_are_refused_together_fetch_one_new_token():
    registry = Registry(life=10.0, told=10_000.0)
    send = client(registry)
    send(GET, Call())
    registry.now = 20.0
    registry.go_on.clear()
    registry.entered.clear()
    found = []
    threads = [threading.Thread(target=lambda: found.append(send(GET, Call()).status)) for _ in range(8)]
    for thread in threads:
        thread.start()
    assert registry.entered.wait(60)
    registry.go_on.set()
    for thread in threads:
        thread.join(60)
    assert found == [200] * 8
    assert len(registry.asked) == 2


def test_a_challenge_that_nobody_can_answer_is_told():
    def inner(request, call):
        said = {"www-authenticate": 'Negotiate realm="x"'}
        return Response(status=401, reason="", url=request.url, headers=said)

    with pytest.raises(Unauthenticated, match="401"):
        Authorizing(inner, Keys(), clock=lambda: 0.0)(GET, Call())


class Wallet:
    """The user's credentials, which change; it counts how often they are looked for."""

    def __init__(self, credential):
        self.credential = credential
        self.looks = 0

    def __call__(self, registry, repository, *, scheme, call):
        self.looks += 1
        return self.credential

    def renewed(self, credential, token, *, call):
        raise AssertionError("no identity token was asked for")


def only_with(header):
    """A registry that takes one Authorization header, and says whether it got one."""

    def answer(request, call):
        given = request.headers.get("Authorization")
        said = {"www-authenticate": 'Basic realm="r"' if header.startswith("Basic") else 'Bearer realm="r"'}
        status = 200 if given == header else 401
        return Response(
            status=status, reason=given or "", url=request.url, headers=said if status == 401 else {}
        )

    return answer


@pytest.mark.parametrize(
    ("credential", "header"),
    [
        (Credential(username="me", password="pw"), "Basic bWU6cHc="),
        (Credential(registry_token="t0ken"), "Bearer t0ken"),
    ],
)
def test_who_logged_out_is_soon_out_and_until_then_is_not_looked_for_each_time(credential, header):
    wallet, now = Wallet(credential), [0.0]
    send = Authorizing(only_with(header), wallet, clock=lambda: now[0])
    for seconds in (0.0, 1.0, KEPT - 1):
        now[0] = seconds
        assert send(GET, Call()).status == 200
    assert wallet.looks == 1
    wallet.credential = None
    now[0] = KEPT + 1
    answer = send(GET, Call()) if header.startswith("Basic") else None
    if answer is None:
        with pytest.raises(Unauthenticated):
            send(GET, Call())
    else:
        assert (answer.status, answer.reason) == (401, "")
    wallet.credential = credential
    assert send(GET, Call()).status == 200
