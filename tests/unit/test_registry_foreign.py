"""The requests that a descriptor's URLs become: which there are, and what is not in them.  HOSTILE.md 20."""

from __future__ import annotations

from urllib.parse import urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orlop.registry.blobs.foreign import MAX_URLS, foreign_requests, is_foreign
from orlop.registry.finding.hosts import Endpoint, endpoints, origin_of
from support.fuzzing import trials

(SECURE,) = endpoints("r.example")
PLAIN = Endpoint(registry="r.example", origin=origin_of("http://r.example", "test"), verify=False)
SECRET = "hunter2"


@pytest.mark.hostile(20)
@pytest.mark.parametrize(
    ("url", "endpoint", "expected"),
    [
        ("https://cdn.example/layer", SECURE, "https://cdn.example/layer"),
        ("https://cdn.example", SECURE, "https://cdn.example/"),
        (f"https://me:{SECRET}@cdn.example/a?b=c#d", SECURE, "https://cdn.example/a?b=c"),
        ("https://cdn.example/a b\r\nX: y", SECURE, "https://cdn.example/a%20bX:%20y"),
        ("HTTPS://CDN.Example:443/a", SECURE, "https://cdn.example/a"),
        ("https://r.example/v2/a", SECURE, "https://r.example/v2/a"),
        ("http://cdn.example/a", PLAIN, "http://cdn.example/a"),
        ("http://cdn.example/a", SECURE, None),
        ("http://r.example/a", SECURE, None),
        ("ftp://cdn.example/a", SECURE, None),
        ("file:///etc/shadow", SECURE, None),
        ("//cdn.example/a", SECURE, None),
        ("/a", SECURE, None),
        ("", SECURE, None),
        ("https://", SECURE, None),
        ("https://cdn.example:99999/", SECURE, None),
        ("https://[::1", SECURE, None),
        ("https://" + "a" * 5_000, SECURE, None),
    ],
)
def test_a_url_becomes_a_bare_request_or_none(url, endpoint, expected):
    requests, refused = foreign_requests([url], endpoint, "test")
    assert [request.url for request in requests] == ([] if expected is None else [expected])
    assert len(refused) == (expected is None)
    for request in requests:
        assert (request.method, dict(request.headers), request.body) == ("GET", {}, None)
        assert request.scopes == ()
        assert request.repository == ""
        assert request.route is None


@pytest.mark.hostile(20)
def test_what_the_registry_is_sent_in_secret_goes_to_no_url():
    endpoint = Endpoint(
        registry="r.example", origin=SECURE.origin, headers=(("X-Key", SECRET),), client=(("c.pem", "k.pem"),)
    )
    (request,), _ = foreign_requests(["https://r.example/layer"], endpoint, "test")
    assert not request.endpoint.headers
    assert not request.endpoint.client


@pytest.mark.hostile(20)
@trials(60)
@given(
    urls=st.lists(
        st.text(max_size=40)
        | st.builds("http{}://{}".format, st.sampled_from(["", "s"]), st.text(max_size=30))
    )
)
def test_any_urls_are_a_few_clean_requests_and_no_traceback(urls):
    requests, refused = foreign_requests(urls, PLAIN, "test")
    assert len(requests) + len(refused) == min(len(urls), MAX_URLS)
    for request in requests:
        parts = urlsplit(request.url)
        assert parts.scheme in ("http", "https")
        assert parts.hostname
        assert "@" not in parts.netloc
        assert request.url.isascii()
        assert not any(character.isspace() for character in request.url)


@pytest.mark.parametrize(
    ("media_type", "foreign"),
    [
        ("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", True),
        ("application/vnd.docker.image.rootfs.foreign.diff.tar", True),
        ("application/vnd.oci.image.layer.nondistributable.v1.tar+zstd", True),
        ("application/vnd.oci.image.layer.v1.tar+gzip", False),
        ("application/vnd.docker.image.rootfs.diff.tar.gzip", False),
        ("", False),
    ],
)
def test_layers_that_are_not_to_be_distributed_are_known_by_their_type(media_type, foreign):
    assert is_foreign(media_type) is foreign
