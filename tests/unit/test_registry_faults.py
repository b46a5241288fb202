"""HTTP statuses and registries' words become errors; secrets do not go along."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest

from orlop.errors import InvalidArgument, NotFound, PermissionDenied, Unauthenticated, Unavailable
from orlop.registry.faults import MAX_MESSAGE, from_status, redact, registry_message, scrub
from orlop.registry.finding.hosts import endpoints
from orlop.registry.messages import Response

(ENDPOINT,) = endpoints("r.example")


def answer(status, message="manifest unknown", *, url="https://r.example/v2/a/manifests/1", **options):
    data = json.dumps({"errors": [{"code": "X", "message": message}]}).encode()
    return Response(
        status=status, reason="", url=url, headers=options.pop("headers", {}), data=data, **options
    )


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (400, InvalidArgument),
        (401, Unauthenticated),
        (403, PermissionDenied),
        (404, NotFound),
        (405, InvalidArgument),
        (408, Unavailable),
        (429, Unavailable),
        (500, Unavailable),
        (503, Unavailable),
        (599, Unavailable),
    ],
)
def test_a_status_has_its_class_and_the_error_names_host_status_and_message(status, error):
    made = from_status(ENDPOINT, answer(status), "resolve r.example/a:1")
    assert type(made) is error
    assert str(made).startswith("resolve r.example/a:1: r.example answered ")
    assert str(status) in str(made)
    assert "manifest unknown" in str(made)
    assert made.details == {"host": "r.example", "status": str(status)}


def test_the_hint_tells_missing_credentials_from_refused_ones():
    assert "were refused" not in from_status(ENDPOINT, answer(401), "x").hint
    assert "were refused" in from_status(ENDPOINT, answer(401, authenticated=True), "x").hint
    assert "may not do this" in from_status(ENDPOINT, answer(403, authenticated=True), "x").hint


@pytest.mark.hostile(25)
def test_who_was_asked_and_who_answered_are_both_named():
    made = from_status(ENDPOINT, answer(403, url="https://cdn.example/b?Signature=s3cret"), "x")
    assert "cdn.example (sent there by r.example)" in made.reason
    assert "s3cret" not in str(made)


def test_a_long_retry_after_is_told():
    assert (
        "Retry-After: 9000" in from_status(ENDPOINT, answer(429, headers={"retry-after": "9000"}), "x").reason
    )


@pytest.mark.hostile(25)
@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://a.example/b", "https://a.example/b"),
        ("https://u:hunter2@a.example/b?X-Amz-Signature=s3cret#f", "https://a.example/b?…"),
        ("http://[::1", "(a malformed URL)"),
    ],
)
def test_a_url_is_shown_without_secrets(url, shown):
    assert redact(url) == shown


@pytest.mark.hostile(25)
@pytest.mark.parametrize(
    "text",
    [
        "see https://u:s3cret-value@a.example/x",
        "at https://a.example/x?sig=s3cret-value&y",
        "sent Basic s3cret-value0",
        "sent Bearer s3cret-value0",
        "password=s3cret-value",
        '{"access_token": "s3cret-value"}',
        "token: s3cret-value",
        # What a registry or a proxy may quote of a request.
        "Authorization: Basic s3cret-value0",
        "Authorization: AWS4-HMAC-SHA256 Credential=s3cret, Signature=s3cret",
        "authorization=s3cret",
        "Cookie: session=s3cret; other=s3cret",
        "Set-Cookie: id=s3cret; Path=/",
        '{"headers":{"Cookie":"s3cret"}}',
        "proxy said //user:s3cret@proxy.example:3128 is down",
        "see http://u:s3cret@a.example:8080/x?y=s3cret#s3cret",
        "X-Amz-Signature=s3cret&X-Amz-Security-Token=s3cret",
        "sig=s3cret&sv=2020",
        "api_key=s3cret",
        "apikey: s3cret",
        "private-key: s3cret",
        "client_secret=s3cret",
        "passwd=s3cret",
        r"{\"refresh_token\": \"s3cret\"}",
        '{"registry_token":"s3cret","identitytoken":"s3cret"}',
        "token 'eyJhbGciOiJFUzI1NiJ9.s3cretpayload.s3cretsignature' is not valid",
        "got eyJhbGciOiJFUzI1NiIsInR5cCI6IkpXVCJ9s3cret",
    ],
)
def test_a_registrys_words_lose_what_looks_secret(text):
    assert "s3cret" not in scrub(text)


@pytest.mark.parametrize(
    "text",
    [
        "authentication required",
        "insufficient scope for repository:a/b:pull,push",
        "the token has expired",
        "requested access to the resource is denied",
        "You have reached your pull rate limit: https://www.docker.com/increase-rate-limit",
        "blob unknown to registry: sha256:" + "0" * 64,
        "quota exceeded: 10 GiB of 10 GiB used",
    ],
)
def test_a_registrys_plain_words_stay_as_they_are(text):
    assert scrub(text) == text


def test_scrubbing_takes_no_time_that_grows_with_the_square_of_the_words():
    for piece in ("a_", "token", "eyJ", "//a", "cookie:", "-token-"):
        scrub(piece * 100_000)


@pytest.mark.hostile(25)
@pytest.mark.distribution("errors.codes")
def test_an_error_holds_no_secret_of_the_answer_wherever_it_stands():
    made = from_status(
        ENDPOINT,
        answer(
            403,
            "denied to Bearer s3cret-value0",
            url="https://u:s3cret@cdn.example/b?Signature=s3cret",
            headers={"retry-after": "password=s3cret", "www-authenticate": 'Bearer realm="https://s3cret"'},
        ),
        "x",
    )
    assert "s3cret" not in str(made) + repr(made) + repr(made.details)


@pytest.mark.distribution("errors.unauthorized")
def test_a_token_that_lacks_a_scope_is_told_from_wrong_credentials():
    said = {"www-authenticate": 'Bearer realm="https://r.example/token",error="insufficient_scope"'}
    made = from_status(ENDPOINT, answer(401, headers=said, authenticated=True), "x")
    assert isinstance(made, PermissionDenied)
    assert "no such repository" in made.hint
    assert isinstance(from_status(ENDPOINT, answer(401, headers=said), "x"), Unauthenticated)


@pytest.mark.hostile(38)
@pytest.mark.distribution("errors.too-many-requests")
def test_a_limit_is_told_with_its_end_and_the_number_of_tries():
    now = datetime(2026, 1, 1, 12, tzinfo=UTC)
    hub = {"ratelimit-limit": "100;w=21600", "ratelimit-remaining": "0;w=21600"}
    made = from_status(ENDPOINT, answer(429, "toomanyrequests", headers=hub, tries=3), "x", now=now)
    assert "(3 tries); its limit of requests is used up; that ends within 6 h" in made.reason
    github = {"x-ratelimit-remaining": "0", "x-ratelimit-reset": str(int(now.timestamp()) + 90)}
    made = from_status(ENDPOINT, answer(403, headers=github), "x", now=now)
    assert isinstance(made, Unavailable)
    assert "at 2026-01-01 12:01:30 UTC" in made.reason


def test_a_registrys_words_stay_on_one_short_line():
    said = scrub("a\x1b[31m\r\nb " + "x" * 5000)
    assert said.isprintable()
    assert len(said) <= MAX_MESSAGE + 1
    assert said.startswith("a [31m b")


@pytest.mark.hostile(15)
@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b'{"errors":[{"code":"A","message":"one"},{"code":"TWO"}]}', "one; TWO"),
        (b'{"details":"incorrect username or password"}', "incorrect username or password"),
        (b'{"error":"invalid_grant"}', "invalid_grant"),
        (b'{"errors":"no list"}', ""),
        (b'{"errors":[1,null,{"message":{}}]}', ""),
        (b"[1]", ""),
        (b"<html>", ""),
        (b"[" * 100_000, ""),
        (b"\xff", ""),
        (b"", ""),
    ],
)
def test_a_registrys_message_is_found_or_left_out(data, said):
    assert registry_message(data) == said
