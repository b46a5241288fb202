"""Addresses, endpoints, redirects, waits and ranges: the registry client's rules, without I/O."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from orlop.errors import InvalidArgument, Unavailable
from orlop.observe import Call
from orlop.registry.blobs.downloads import Extent, parse_content_range
from orlop.registry.finding.hosts import Endpoint, endpoints, origin_of
from orlop.registry.messages import Outgoing, Request, Response
from orlop.registry.net.addresses import Zone, is_loopback_host, may_follow, zone_of
from orlop.registry.net.redirects import MAX_HOPS, next_hop, settle
from orlop.registry.net.retry import MAX_WAIT, Backoff, parse_retry_after

NOW = datetime(2026, 1, 1, 12, 0, 0, tzinfo=UTC)
SECURE = Endpoint(registry="r.example", origin=origin_of("https://r.example", "test"))
PLAIN = Endpoint(registry="r.example", origin=origin_of("http://r.example", "test"), verify=False)


@pytest.mark.hostile(22)
@pytest.mark.parametrize(
    ("address", "zone"),
    [
        ("93.184.216.34", Zone.PUBLIC),
        ("2606:2800:220:1:248:1893:25c8:1946", Zone.PUBLIC),
        ("10.0.0.1", Zone.PRIVATE),
        ("172.31.255.255", Zone.PRIVATE),
        ("192.168.1.1", Zone.PRIVATE),
        ("100.64.0.1", Zone.PRIVATE),
        ("fd12::1", Zone.PRIVATE),
        ("127.0.0.1", Zone.LOOPBACK),
        ("127.9.9.9", Zone.LOOPBACK),
        ("::1", Zone.LOOPBACK),
        ("::ffff:127.0.0.1", Zone.LOOPBACK),
        ("64:ff9b::7f00:1", Zone.LOOPBACK),
        ("2002:7f00:1::", Zone.LOOPBACK),
        ("169.254.169.254", Zone.FORBIDDEN),
        ("::ffff:169.254.169.254", Zone.FORBIDDEN),
        ("fe80::1%eth0", Zone.FORBIDDEN),
        ("fd00:ec2::254", Zone.FORBIDDEN),
        ("100.100.100.200", Zone.FORBIDDEN),
        ("fec0::1", Zone.PRIVATE),
        ("168.63.129.16", Zone.FORBIDDEN),
        ("192.0.0.192", Zone.FORBIDDEN),
        ("fd20:ce::254", Zone.FORBIDDEN),
        ("0.0.0.0", Zone.FORBIDDEN),
        ("::", Zone.FORBIDDEN),
        ("224.0.0.1", Zone.FORBIDDEN),
        ("not an address", Zone.FORBIDDEN),
    ],
)
def test_an_address_has_its_zone(address, zone):
    assert zone_of(address) is zone


@pytest.mark.hostile(22)
def test_a_registry_sends_outwards_and_sideways_but_never_inwards():
    allowed = {(a.name, b.name) for a in Zone for b in Zone if may_follow(a, b)}
    assert allowed == {
        ("PUBLIC", "PUBLIC"),
        ("PRIVATE", "PUBLIC"),
        ("PRIVATE", "PRIVATE"),
        ("LOOPBACK", "PUBLIC"),
        ("LOOPBACK", "PRIVATE"),
        ("LOOPBACK", "LOOPBACK"),
        ("FORBIDDEN", "PUBLIC"),
        ("FORBIDDEN", "PRIVATE"),
        ("FORBIDDEN", "LOOPBACK"),
    }


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.1.2.3", "::1"])
def test_loopback_is_known_by_its_name(host):
    assert is_loopback_host(host)


@pytest.mark.hostile(22)
@pytest.mark.parametrize(
    "host",
    [
        "localhost.example.com",
        "127.0.0.1.nip.io",
        "10.0.0.1",
        "example.com",
        "2002:7f00:1::1",  # stands for 127.0.0.1, but somewhere else
        "64:ff9b::7f00:1",
    ],
)
def test_what_only_looks_like_loopback_is_not(host):
    assert not is_loopback_host(host)


@pytest.mark.parametrize(
    ("registry", "insecure", "expected"),
    [
        ("docker.io", (), ["https://registry-1.docker.io"]),
        ("quay.io", (), ["https://quay.io"]),
        ("r.example:5000", (), ["https://r.example:5000"]),
        ("R.Example", (), ["https://r.example"]),
        ("localhost", (), ["https://localhost", "http://localhost"]),
        ("127.0.0.1:5000", (), ["https://127.0.0.1:5000", "http://127.0.0.1:5000"]),
        ("[::1]:5000", (), ["https://[::1]:5000", "http://[::1]:5000"]),
        ("10.0.0.1:5000", (), ["https://10.0.0.1:5000"]),
        ("r.example:5000", ("r.example:5000",), ["https://r.example:5000", "http://r.example:5000"]),
        ("r.example:5000", ("r.example",), ["https://r.example:5000", "http://r.example:5000"]),
        ("r.example:5000", ("r.example:5001",), ["https://r.example:5000"]),
    ],
)
def test_a_registrys_name_gives_its_endpoints(registry, insecure, expected):
    found = endpoints(registry, insecure)
    assert [str(endpoint.origin) for endpoint in found] == expected
    assert all(endpoint.verify == (len(expected) == 1) for endpoint in found)


@pytest.mark.parametrize(
    "url", ["ftp://a/b", "file:///etc/passwd", "//a/b", "/a", "https://", "https://a:99999", "http://[::1"]
)
def test_what_is_not_an_http_url_has_no_origin(url):
    with pytest.raises(InvalidArgument):
        origin_of(url, "test")


def test_an_origin_knows_the_default_port():
    assert origin_of("https://a.example:443/x", "test") == origin_of("https://A.example", "test")
    assert origin_of("http://a.example", "test") != origin_of("https://a.example", "test")


def redirect(request_url, location, *, status=307, method="GET", body=None, endpoint=SECURE, hops=0):
    headers = {"Authorization": "Bearer secret", "Accept": "x"}
    request = Request(
        method=method, url=request_url, endpoint=endpoint, attempted="test", headers=headers, body=body
    )
    response = Response(status=status, reason="", url=request_url, headers={"location": location})
    return next_hop(request, response, [*(f"{request_url}?{hop}" for hop in range(hops)), request_url])


@pytest.mark.distribution("api.redirect.authorization")
@pytest.mark.hostile(24)
@pytest.mark.parametrize(
    ("location", "url", "keeps"),
    [
        ("/v2/b", "https://r.example/v2/b", True),
        ("https://r.example/v2/b?x=1", "https://r.example/v2/b?x=1", True),
        ("https://r.example:443/v2/b", "https://r.example/v2/b", True),
        ("https://r.example:8443/v2/b", "https://r.example:8443/v2/b", False),
        ("https://cdn.example/b", "https://cdn.example/b", False),
        ("//cdn.example/b", "https://cdn.example/b", False),
        ("https://sub.r.example/b", "https://sub.r.example/b", False),
        ("http://r.example/v2/b", "https://r.example/v2/b", True),
        ("https://user:pw@cdn.example/b#part", "https://cdn.example/b", False),
        ("https://cdn.example/a b", "https://cdn.example/a%20b", False),
    ],
)
def test_a_redirect_takes_credentials_only_within_the_origin(location, url, keeps):
    request = redirect("https://r.example/v2/a", location)
    assert request.url == url
    assert ("Authorization" in request.headers) is keeps
    assert request.headers["Accept"] == "x"


@pytest.mark.hostile(24)
def test_credentials_do_not_come_back_with_a_way_home():
    away = redirect("https://r.example/v2/a", "https://cdn.example/b")
    response = Response(status=302, reason="", url=away.url, headers={"location": "https://r.example/v2/c"})
    assert "Authorization" not in next_hop(away, response, ["https://r.example/v2/a", away.url]).headers


@pytest.mark.hostile(24)
def test_a_redirect_from_plain_http_to_tls_drops_credentials():
    assert (
        "Authorization" not in redirect("http://r.example/a", "https://r.example/a", endpoint=PLAIN).headers
    )


@pytest.mark.hostile(24)
@pytest.mark.parametrize(
    "location",
    [
        "http://cdn.example/b",
        "http://r.example:8080/b",
        "ftp://r.example/b",
        "https://:443/",
        "https://a:70000/",
        "gopher:x",
    ],
)
def test_a_way_down_or_out_of_http_is_refused(location):
    with pytest.raises(Unavailable, match=r"r\.example"):
        redirect("https://r.example/v2/a", location)


def test_a_plain_registry_may_redirect_plainly():
    assert (
        redirect("http://r.example/a", "http://cdn.example/b", endpoint=PLAIN).url == "http://cdn.example/b"
    )


@pytest.mark.hostile(38)
def test_redirects_are_limited():
    assert redirect("https://r.example/a", "/b", hops=MAX_HOPS - 1) is not None
    with pytest.raises(Unavailable, match=r"more than 5 times, last to https://r\.example/b"):
        redirect("https://r.example/a", "/b", hops=MAX_HOPS)


@pytest.mark.hostile(38)
@pytest.mark.parametrize("location", ["/a", "https://r.example:443/a", "?1"])
def test_redirects_in_a_circle_are_called_that(location):
    assert redirect("https://r.example/a", location, hops=2) is not None
    with pytest.raises(Unavailable, match="in a circle, last to"):
        redirect("https://r.example/a", location, hops=MAX_HOPS)


@pytest.mark.parametrize(
    ("method", "status", "body", "location", "followed"),
    [
        ("PUT", 307, b"x", "/b", True),
        ("PUT", 308, b"x", "/b", True),
        ("PUT", 302, b"x", "/b", False),
        ("POST", 303, None, "/b", False),
        ("PUT", 307, b"x", "https://cdn.example/b", False),
        ("POST", 307, None, "https://cdn.example/b", True),
        ("GET", 304, None, "/b", False),
        ("GET", 300, None, "/b", False),
    ],
)
def test_a_body_goes_along_only_where_it_may(method, status, body, location, followed):
    request = redirect("https://r.example/a", location, method=method, status=status, body=body)
    assert (request is not None) is followed


def test_a_stream_is_never_redirected():
    body = Outgoing([b"x"], size=1, call=Call(), attempted="test")
    assert redirect("https://r.example/a", "/b", method="PUT", body=body) is None


def test_an_upload_location_that_forgets_tls_keeps_it():
    url = settle(SECURE, "https://r.example/v2/a", "http://r.example/v2/u?_state=a%2Fb", "test")
    assert url == "https://r.example/v2/u?_state=a%2Fb"


@pytest.mark.hostile(38)
@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("0", 0.0),
        (" 120 ", 120.0),
        ("Thu, 01 Jan 2026 12:00:30 GMT", 30.0),
        ("Thu, 01 Jan 2026 11:00:00 GMT", 0.0),
        ("-3", None),
        ("1.5", None),
        ("٣", None),
        ("soon", None),
        ("", None),
        (None, None),
    ],
)
def test_retry_after_is_read_in_both_forms(value, seconds):
    assert parse_retry_after(value, NOW) == seconds


def test_waits_double_up_to_the_cap_and_jitter_takes_at_most_half():
    longest = Backoff(base=1.0, cap=8.0, jitter=lambda: 1.0)
    shortest = Backoff(base=1.0, cap=8.0, jitter=lambda: 0.0)
    assert [longest.delay(n) for n in (1, 2, 3, 4, 5, 99)] == [1, 2, 4, 8, 8, 8]
    assert [shortest.delay(n) for n in (1, 2, 3, 4, 5)] == [0.5, 1, 2, 4, 4]


@pytest.mark.hostile(38)
def test_what_the_server_asks_for_is_a_floor_and_too_much_is_refused():
    backoff = Backoff(base=1.0, jitter=lambda: 0.5)
    assert 10.0 <= backoff.delay(1, 10.0) <= 11.0
    assert backoff.delay(1, MAX_WAIT) is not None
    assert backoff.delay(1, MAX_WAIT + 1) is None


@pytest.mark.hostile(38)
@pytest.mark.parametrize(
    ("value", "extent"),
    [
        ("bytes 5-9/10", Extent(first=5, last=9, size=10)),
        ("bytes 0-0/*", Extent(first=0, last=0, size=None)),
        ("Bytes */77", Extent(first=None, last=None, size=77)),
        ("bytes 5-4/10", None),
        ("bytes 5-10/10", None),
        ("bytes -5/10", None),
        ("items 1-2/3", None),
        ("bytes 1-99999999999999999999/3", None),
        (None, None),
    ],
)
def test_a_content_range_is_read_or_refused(value, extent):
    assert parse_content_range(value) == extent
