"""Proxies: which requests go through one, who is told its password, and what it may be asked."""

from __future__ import annotations

import base64
import ipaddress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orlop.cli.environment import hosts_dirs, proxies, registries_conf
from orlop.config import ProxySettings
from orlop.errors import InvalidArgument
from orlop.registry.finding.hosts import origin_of
from orlop.registry.net.addresses import zone_of
from orlop.registry.net.proxies import Exceptions, Proxies, Proxy, may_ask


def origin(url):
    return origin_of(url, "test")


@pytest.mark.parametrize(
    ("entries", "url", "without"),
    [
        ("*", "https://a.example", True),
        ("", "https://a.example", False),
        ("a.example", "https://a.example", True),
        ("A.Example", "https://a.example:5000", True),
        ("a.example", "https://b.a.example", True),
        ("a.example", "https://ba.example", False),
        (".a.example", "https://b.a.example", True),
        (".a.example", "https://a.example", False),
        ("*.a.example", "https://b.a.example", True),
        ("*.a.example", "https://a.example", False),
        ("a.example:5000", "https://a.example:5000", True),
        ("a.example:5000", "https://a.example", False),
        ("a.example:443", "https://a.example", True),
        ("example.", "https://a.example", True),
        ("10.0.0.0/8", "https://10.1.2.3:5000", True),
        ("10.0.0.0/8", "https://11.1.2.3", False),
        ("10.0.0.0/8", "https://ten.example", False),
        ("10.1.2.3", "https://10.1.2.3:5000", True),
        ("10.1.2.3:80", "https://10.1.2.3:5000", False),
        ("fd00::/8", "https://[fd00::1]:5000", True),
        ("fd00::1", "https://[fd00::1]:5000", True),
        ("[fd00::1]:5000", "https://[fd00::1]:5000", True),
        ("[fd00::1]:5001", "https://[fd00::1]:5000", False),
        ("10.0.0.0/99, ,/,x:y:z", "https://a.example", False),
    ],
)
def test_exceptions_are_names_addresses_and_blocks_with_or_without_ports(entries, url, without):
    assert Exceptions(entries.split(",")).has(origin(url)) is without
    found = Proxies(ProxySettings(https="p.example:3128", no=tuple(entries.split(","))))
    assert (found.of(origin(url)) is None) is without


@pytest.mark.parametrize(
    "host", ["localhost", "127.0.0.1", "127.1.2.3", "[::1]", "x.localhost", "[::ffff:127.0.0.1]"]
)
def test_this_machine_is_never_reached_through_a_proxy(host):
    found = Proxies(ProxySettings(http="p.example", https="p.example"))
    assert found.of(origin(f"http://{host}:5000")) is None


def test_each_scheme_has_its_own_proxy():
    found = Proxies(ProxySettings(https="http://[fd00::1]:3128"))
    proxy = found.of(origin("https://r.example"))
    assert (proxy.origin.host, proxy.origin.port) == ("fd00::1", 3128)
    assert found.of(origin("http://r.example")) is None


@pytest.mark.hostile(25)
def test_a_proxys_password_is_kept_out_of_what_is_shown():
    settings = ProxySettings(https="http://me:s3cr%40t@p.example:8080")
    proxy = Proxies(settings).of(origin("https://r.example"))
    assert base64.b64decode(proxy.authorization.removeprefix("Basic ")) == b"me:s3cr@t"
    assert "s3cr" not in repr(settings) + repr(proxy) + str(proxy.origin)
    assert proxy.authorization not in repr(proxy)


@pytest.mark.hostile(25)
@pytest.mark.parametrize(
    "url",
    [
        "socks5://me:s3cret@p",
        "https://me:s3cret@p",
        "http://me:s3cret@",
        "http://me:s3cret@p:99999",
        "http://me:s3cret@[::1",
        "http://me:s3cret%0d%0a@p",
        "http://me:1/s3cret@p",
        "http://me?s3cret@p",
        "http://me#s3cret@p",
        "http://",
    ],
)
def test_a_proxy_that_is_none_is_refused_without_its_password(url):
    with pytest.raises(InvalidArgument) as caught:
        Proxy.parse(url, "the proxy for https")
    assert "s3cret" not in str(caught.value) + caught.value.hint
    assert "the proxy for https" in str(caught.value)


@pytest.mark.hostile(21, 22)
@pytest.mark.parametrize(
    ("registry", "target", "allowed"),
    [
        ("https://r.example", "https://r.example", True),
        ("https://10.0.0.1", "https://10.0.0.1", True),  # the user's own choice
        ("https://r.example", "https://cdn.example", True),
        ("https://r.example", "https://93.184.216.34", True),
        ("https://r.example", "https://10.0.0.1", False),
        ("https://10.0.0.1", "https://10.0.0.2", True),
        ("https://r.example", "http://127.0.0.1", False),
        ("https://r.example", "http://localhost:80", False),
        ("https://r.example", "http://a.localhost.", False),
        ("https://r.example", "http://169.254.169.254", False),
        ("https://r.example", "http://[::ffff:169.254.169.254]", False),
        ("https://r.example", "http://2852039166", False),  # 169.254.169.254, as the C library reads it
        ("https://r.example", "http://0x7f.1", False),
        ("https://r.example", "http://127.1.", False),
        ("https://r.example", "http://metadata.google.internal", False),
        ("https://10.0.0.1", "http://metadata.google.internal.", False),
    ],
)
def test_a_registry_cannot_have_a_proxy_reach_inwards(registry, target, allowed):
    assert may_ask(origin(registry), origin(target), zone_of) is allowed


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, ("", "", ())),
        ({"HTTP_PROXY": "a", "https_proxy": "b", "NO_PROXY": "c, d e"}, ("a", "b", ("c", "d", "e"))),
        ({"ALL_PROXY": "a"}, ("a", "a", ())),
        ({"all_proxy": "a", "HTTPS_PROXY": "b", "no_proxy": "*"}, ("a", "b", ("*",))),
        ({"HTTP_PROXY": "evil", "REQUEST_METHOD": "GET"}, ("", "", ())),
        ({"HTTP_PROXY": "evil", "http_proxy": "a", "REQUEST_METHOD": "GET"}, ("a", "", ())),
        ({"HTTPS_PROXY": "", "https_proxy": "b"}, ("", "b", ())),
    ],
)
def test_the_environment_names_proxies_in_either_case(environ, expected):
    found = proxies(environ)
    assert (found.http, found.https, found.no) == expected


def test_the_usual_places_are_the_users_and_then_the_systems(tmp_path):
    environ = {"XDG_CONFIG_HOME": str(tmp_path)}
    assert hosts_dirs(environ)[:3] == (
        f"{tmp_path}/orlop/certs.d",
        f"{tmp_path}/containers/certs.d",
        "/etc/orlop/certs.d",
    )
    assert registries_conf(environ)[0] == "/etc/containers/registries.conf"
    own = tmp_path / "containers" / "registries.conf"
    own.parent.mkdir()
    own.touch()
    assert registries_conf(environ)[0] == str(own)
    assert registries_conf({**environ, "CONTAINERS_REGISTRIES_CONF": "/x"})[0] == "/x"


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.lists(st.text(alphabet="ab.*:/[]0123456789", max_size=12), max_size=6), st.ip_addresses())
def test_no_exception_is_so_odd_that_it_matters_to_others(entries, address):
    host = f"[{address}]" if address.version == 6 else str(address)
    target = origin(f"https://{host}")
    known = Exceptions([*entries, str(address)])
    assert known.has(target)
    odd = Exceptions(entries)
    blocks = [entry for entry in entries if "/" in entry or entry.strip() == "*"]
    if not blocks and not any(_is_address(entry) for entry in entries):
        assert not odd.has(target)


def _is_address(entry):
    for text in (entry, entry.rpartition(":")[0]):
        try:
            ipaddress.ip_address(text.strip().removeprefix("[").removesuffix("]"))
        except ValueError:
            continue
        return True
    return False
