"""HTTP statuses and registries' words become errors; secrets do not go along."""

from __future__ import annotations

import json

import pytest

from orlop.errors import InvalidArgument, NotFound, PermissionDenied, Unauthenticated, Unavailable
from orlop.registry.faults import MAX_MESSAGE, from_status, redact, registry_message, scrub
from orlop.registry.hosts import endpoints
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
    ],
)
def test_a_registrys_words_lose_what_looks_secret(text):
    assert "s3cret" not in scrub(text)


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
