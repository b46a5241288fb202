"""hosts.toml, certs.d and registries.conf: what they say, what they may not say, and who may write them."""

from __future__ import annotations

import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orlop.errors import Error, FailedPrecondition, InvalidArgument, PermissionDenied
from orlop.registry.finding.hostfiles.folders import in_force
from orlop.registry.finding.hostfiles.hosts_toml import parse_hosts_toml
from orlop.registry.finding.hostfiles.registries_conf import merged, parse_registries_conf
from orlop.registry.finding.places import Places
from orlop.spec.reference import Reference

DIGEST = "sha256:" + "ab" * 32


def hosts(text, registry="r.example", insecure=()):
    return parse_hosts_toml(
        text.encode(), registry=registry, folder="/d", source="/d/hosts.toml", insecure=insecure
    )


def urls(places):
    return [[way.url("x") for way in ways] for ways in places]


# hosts.toml


@pytest.mark.distribution("proxy.ns", "proxy.no-ns")
@pytest.mark.parametrize(
    ("registry", "text", "expected"),
    [
        ("r.example", "", ["https://r.example/v2/x"]),
        ("docker.io", "", ["https://registry-1.docker.io/v2/x"]),
        ("docker.io", 'server = "https://docker.io"', ["https://registry-1.docker.io/v2/x"]),
        ("docker.io", 'server = "registry-1.docker.io"', ["https://registry-1.docker.io/v2/x"]),
        (
            "r.example",
            '[host."https://b"]\n[host."http://a:5000"]',
            [
                "https://b/v2/x?ns=r.example",
                "http://a:5000/v2/x?ns=r.example",
                "https://r.example/v2/x",
            ],
        ),
        ("r.example:5000", 'server = "https://m"', ["https://m/v2/x?ns=r.example:5000"]),
        ("r.example", 'server = "https://m/v2/"', ["https://m/v2/x?ns=r.example"]),
        ("r.example", 'server = "https://m/a/b"', ["https://m/a/b/v2/x?ns=r.example"]),
        ("r.example", 'server = "https://m/a"\noverride_path = true', ["https://m/a/x?ns=r.example"]),
        ("r.example", 'server = "https://m"\noverride_path = true', ["https://m/x?ns=r.example"]),
        ("r.example", 'server = "http://[::1]:5000"', ["http://[::1]:5000/v2/x?ns=r.example"]),
        ("r.example", 'server = "https://R.example:443"', ["https://r.example/v2/x"]),
        # The order is that in which hosts are named first, whichever of their tables does.
        (
            "r.example",
            '[host."https://b".header]\nx-a = "1"\n[host."https://a"]\n[host."https://b"]\n',
            ["https://b/v2/x?ns=r.example", "https://a/v2/x?ns=r.example", "https://r.example/v2/x"],
        ),
    ],
)
def test_hosts_are_asked_in_the_files_order_and_the_server_last(registry, text, expected):
    assert urls(hosts(text, registry)) == [[url] for url in expected]


def test_a_host_has_all_that_its_table_says():
    (mirror,), (itself,) = hosts(
        """
        ca = "/abs/ca.pem"
        [host."https://m.example"]
          capabilities = ["pull", "Resolve"]
          ca = ["ca.pem", "/abs/b.pem"]
          client = [["c.cert", "c.key"], ["d.pem", ""]]
          skip_verify = true
          dial_timeout = "1m1.5s"
          [host."https://m.example".header]
            X-Secret = ["a", "b"]
            Authorization = "Basic c2VjcmV0"
        """
    )
    assert mirror.capabilities == {"pull", "resolve", "referrers"}
    assert mirror.ca == ("/d/ca.pem", "/abs/b.pem")
    assert mirror.client == (("/d/c.cert", "/d/c.key"), ("/d/d.pem", ""))
    assert (mirror.verify, mirror.connect, mirror.mirror, mirror.registry) == (False, 61.5, True, "m.example")
    assert mirror.headers == (("X-Secret", "a, b"), ("Authorization", "Basic c2VjcmV0"))
    assert (itself.mirror, itself.registry, itself.ca) == (False, "r.example", ("/abs/ca.pem",))
    assert "secret" not in repr(mirror).lower().replace("x-secret", "")


@pytest.mark.parametrize("client", ['"a.pem"', '["a.pem"]', '[["a.pem", ""]]'])
def test_client_certificates_have_three_forms(client):
    ((itself,),) = hosts(f"client = {client}")
    assert itself.client == (("/d/a.pem", ""),)


def test_a_mirror_gets_no_credentials_of_the_registry_it_stands_in_for():
    (mirror,), _ = hosts('[host."https://m.example:5000"]', "docker.io")
    assert mirror.registry == "m.example:5000"


@pytest.mark.parametrize(
    ("text", "ways", "verify"),
    [
        ("", 2, False),
        ('ca = "ca.pem"', 1, True),
        ('ca = "ca.pem"\nskip_verify = true', 1, False),
        ('server = "http://127.0.0.1:5000"', 1, True),
    ],
)
def test_on_this_machine_a_certificate_that_is_named_is_verified(text, ways, verify):
    (found,) = hosts(text, "127.0.0.1:5000")
    assert (len(found), found[0].verify) == (ways, verify)


@pytest.mark.hostile(25)
@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("x", "not TOML"),
        ("server = 1", "server must be a text"),
        ('server = "ftp://a"', "not an http or https URL"),
        ('server = "https://user:s3cret@a"', "a URL with a user"),
        ('[host."https://user:s3cret@a"]', "a URL with a user"),
        ('[host."https://user:s3cret@a"]\nca = 1', "a URL with a user"),
        ('server = "https://a?token=s3cret"', "with a query"),
        ('capabilities = ["fly"]', "not a capability"),
        ('capabilities = "pull"\nca = 5', "ca must be"),
        ('client = [["a"]]', "list of pairs"),
        ("client = 1", "list of pairs"),
        ('[header]\n"a b" = "s3cret"', "not a header"),
        ('[header]\nHost = "s3cret"', "not a header"),
        ('[header]\nx = "s3cret\\r\\ny: z"', "cannot stand"),
        ("[header]\nx = 3", "must be"),
        ('dial_timeout = "soon"', "a duration"),
        ("skip_verify = 1", "true or false"),
        ('[host."https://a"]\n[host."https://a".host."https://b"]', "hosts of its own"),
        ("host = 3", "a table"),
        ("\n".join(f'[host."https://h{n}"]' for n in range(80)), "more than 64"),
    ],
)
def test_what_a_hosts_file_may_not_say_is_told_without_secrets(text, words):
    with pytest.raises(InvalidArgument) as caught:
        hosts(text)
    assert words in caught.value.reason
    assert "/d/hosts.toml" in str(caught.value)
    assert "s3cret" not in str(caught.value)


def test_keys_of_other_versions_are_passed_over():
    assert len(hosts('later = [1]\n[host."https://m"]\nalso = "x"')) == 2


# registries.conf


def conf(text):
    return parse_registries_conf(text.encode(), source="/c")


def sources(text, name):
    namespace = conf(text).of(str(Reference.parse(name)))
    return None if namespace is None else namespace.sources(Reference.parse(name), "test")


TWO = """
[[registry]]
prefix = "example.com/foo"
location = "internal.example/bar"
[[registry.mirror]]
location = "m0.example/mirror-for-foo"
[[registry.mirror]]
location = "m1.example/mirrors/foo/"
insecure = true
[[registry]]
location = "example.com"
insecure = true
[[registry]]
prefix = "*.wild.example"
[[registry.mirror]]
location = "m2.example"
"""


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "example.com/foo/image:1",
            (
                ("m0.example", "mirror-for-foo/image", False),
                ("m1.example", "mirrors/foo/image", True),
                ("internal.example", "bar/image", False),
            ),
        ),
        ("example.com/food/image", (("example.com", "food/image", True),)),
        ("EXAMPLE.com/food/image", (("example.com", "food/image", True),)),
        ("example.com:5000/a", (("example.com:5000", "a", True),)),
        ("example.org/a", None),
        ("a.example.com/a", None),
        ("a.wild.example/x", (("m2.example", "x", False), ("a.wild.example", "x", False))),
        ("a.b.wild.example/x", (("m2.example", "x", False), ("a.b.wild.example", "x", False))),
        ("wild.example/x", None),
        ("evil.example/a.wild.example/x", None),
    ],
)
def test_the_longest_prefix_says_where_an_image_is(name, expected):
    assert sources(TWO, name) == expected


@pytest.mark.parametrize(
    ("name", "used"),
    [("r.example/a:1", ["all", "tag"]), (f"r.example/a@{DIGEST}", ["all", "digest"])],
)
def test_mirrors_may_be_for_tags_or_for_digests_alone(name, used):
    text = '[[registry]]\nlocation = "r.example"\n' + "".join(
        f'[[registry.mirror]]\nlocation = "{kind}.example"\n'
        + (f'pull-from-mirror = "{kind}-only"\n' if kind != "all" else "")
        for kind in ("all", "tag", "digest")
    )
    *mirrors, itself = sources(text, name)
    assert [host.removesuffix(".example") for host, _, _ in mirrors] == used
    assert itself == ("r.example", "a", False)


def test_docker_hubs_names_are_matched_in_their_full_form():
    text = '[[registry]]\nprefix = "docker.io/library"\nlocation = "m.example/hub"'
    assert sources(text, "alpine") == (("m.example", "hub/alpine", False),)
    text = '[[registry]]\nlocation = "docker.io"\n[[registry.mirror]]\nlocation = "m.example"'
    assert sources(text, "alpine")[0] == ("m.example", "library/alpine", False)


def test_a_later_file_replaces_tables_by_prefix_and_takes_aliases_back():
    first = conf(
        'unqualified-search-registries = ["a.example"]\n'
        '[[registry]]\nlocation = "r.example"\nblocked = true\n'
        '[[registry]]\nlocation = "s.example"\nblocked = true\n'
        '[aliases]\nx = "r.example/x"\ny = "r.example/y"'
    )
    second = conf('[[registry]]\nlocation = "r.example"\n[aliases]\ny = ""')
    both = merged([first, second])
    assert (both.namespaces["r.example"].blocked, both.namespaces["s.example"].blocked) == (False, True)
    assert (both.aliases, both.search) == ({"x": "r.example/x"}, ("a.example",))


def test_the_first_version_is_understood():
    found = conf(
        "[registries.search]\nregistries = ['a.example']\n[registries.insecure]\nregistries = ['b.example']\n"
        "[registries.block]\nregistries = ['c.example']\n"
    )
    assert found.search == ("a.example",)
    assert found.of("b.example/x").location.insecure
    assert found.of("c.example/x").blocked


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[[registry]]", "neither prefix nor location"),
        ('[[registry]]\nprefix = "a.example"', "no location"),
        ('[[registry]]\nlocation = "https://a.example"', "a URL"),
        ('[[registry]]\nprefix = "a.*.example"\nlocation = "b"', "subdomains"),
        ('[[registry]]\nprefix = "*.example/a"\nlocation = "b"', "subdomains"),
        ('[[registry]]\nlocation = "a"\n[[registry.mirror]]\ninsecure = true', "no location"),
        (
            '[[registry]]\nlocation = "a"\n[[registry.mirror]]\nlocation = "b"\npull-from-mirror = "x"',
            "digest-only",
        ),
        (
            (
                '[[registry]]\nlocation = "a"\nmirror-by-digest-only = true\n[[registry.mirror]]\nlocation = "b"\n'
                'pull-from-mirror = "all"'
            ),
            "beside",
        ),
        ('[[registry]]\nlocation = "a"\npull-from-mirror = "all"', "for mirrors"),
        ('[[registry]]\nlocation = "a"\nblocked = "no"', "true or false"),
        ("registry = 1", "tables"),
        ('unqualified-search-registries = ["a/b"]', "not a registry"),
        ('[aliases]\nx = "r.example/x:1"', "without tags"),
        ('[aliases]\n"x:1" = "r.example/x"', "without tags"),
        ("[registries.search]\nregistries = []\n[[registry]]\nlocation = 'a'", "mixes"),
    ],
)
def test_what_registries_conf_may_not_say_is_told(text, words):
    with pytest.raises(InvalidArgument) as caught:
        conf(text)
    assert words in caught.value.reason
    assert "/c" in str(caught.value)


@pytest.mark.parametrize("location", ["nohost/foo", "m.example/a:1", "m.example/UP"])
def test_a_location_that_makes_no_name_is_told_with_its_file(location):
    text = f'[[registry]]\nprefix = "r.example/foo"\nlocation = "{location}"'
    with pytest.raises(InvalidArgument, match="/c"):
        sources(text, "r.example/foo")


# Folders


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def places(tmp_path, **options):
    return Places(hosts_dirs=(str(tmp_path / "d"), str(tmp_path / "e")), **options)


def routed(found, name="r.example:5000/a/b:1", need="pull"):
    return [
        f"{place.ways[0].url(place.repository)}" for place in found.route(Reference.parse(name), need, "test")
    ]


@pytest.mark.parametrize("folder", ["r.example_5000_", "r.example:5000", "_default"])
def test_a_registrys_folder_has_one_of_three_names(tmp_path, folder):
    write(tmp_path / "d" / folder / "hosts.toml", '[host."https://m.example"]')
    assert routed(places(tmp_path)) == [
        "https://m.example/v2/a/b?ns=r.example:5000",
        "https://r.example:5000/v2/a/b",
    ]


def test_a_registrys_own_file_in_any_folder_comes_before_a_default(tmp_path):
    write(tmp_path / "d" / "_default" / "hosts.toml", '[host."https://default.example"]')
    write(tmp_path / "e" / "r.example:5000" / "hosts.toml", '[host."https://own.example"]')
    assert routed(places(tmp_path))[0].startswith("https://own.example/")


def test_a_file_that_changes_is_read_again(tmp_path):
    found = places(tmp_path)
    assert routed(found) == ["https://r.example:5000/v2/a/b"]
    path = write(tmp_path / "d" / "r.example:5000" / "hosts.toml", 'server = "https://one.example"')
    assert routed(found) == ["https://one.example/v2/a/b?ns=r.example:5000"]
    path.write_text('server = "https://another.example"')
    assert routed(found) == ["https://another.example/v2/a/b?ns=r.example:5000"]
    path.unlink()
    assert routed(found) == ["https://r.example:5000/v2/a/b"]


def test_hosts_serve_only_what_they_are_trusted_with(tmp_path):
    write(
        tmp_path / "d" / "r.example:5000" / "hosts.toml",
        'server = "https://r.example:5000"\ncapabilities = ["pull"]\n'
        '[host."https://m.example"]\ncapabilities = ["pull"]\n'
        '[host."https://p.example"]\ncapabilities = ["push"]\n',
    )
    found = places(tmp_path)
    ref = Reference.parse("r.example:5000/a")
    assert len(routed(found)) == 2
    assert found.push(ref, "test").host == "p.example"
    assert found.home("r.example:5000", "", "test").host == "r.example:5000"
    with pytest.raises(FailedPrecondition, match="'resolve'") as caught:
        found.route(ref, "resolve", "test")
    assert "hosts.toml" in caught.value.hint


@pytest.mark.hostile(23)
def test_a_registry_that_is_never_asked_is_itself_where_one_logs_in(tmp_path):
    write(tmp_path / "d" / "r.example:5000" / "hosts.toml", 'server = "https://m.example"')
    found = places(tmp_path)
    assert routed(found) == ["https://m.example/v2/a/b?ns=r.example:5000"]
    (way,) = found.home("r.example:5000", "", "test").ways
    assert (way.host, way.registry, way.mirror) == ("r.example:5000", "r.example:5000", False)


@pytest.mark.hostile(25)
@pytest.mark.parametrize("size", [4, 95, 300])
def test_a_password_in_a_url_is_refused_and_not_told_however_long_it_is(size):
    secret = "s3cr" * (size // 4)
    for text in (f'[host."https://me:{secret}@m.example"]', f'server = "https://me:{secret}@m.example"'):
        with pytest.raises(InvalidArgument) as caught:
            parse_hosts_toml(text.encode(), registry="r.example", folder="/d", source="/d/hosts.toml")
        assert "s3cr" not in str(caught.value)


def test_dockers_certificates_are_taken_for_hosts_that_have_none(tmp_path):
    folder = tmp_path / "e" / "r.example:5000"
    for name in ("ca.crt", "b.crt", "client.cert", "client.key", "README"):
        write(folder / name, "")
    ((way,),) = [
        place.ways for place in places(tmp_path).route(Reference.parse("r.example:5000/a"), "pull", "t")
    ]
    assert way.ca == (f"{folder}/b.crt", f"{folder}/ca.crt")
    assert way.client == ((f"{folder}/client.cert", f"{folder}/client.key"),)
    write(tmp_path / "d" / "r.example_5000_" / "hosts.toml", 'ca = "/own.pem"')
    ((way,),) = [
        place.ways for place in places(tmp_path).route(Reference.parse("r.example:5000/a"), "pull", "t")
    ]
    assert (way.ca, way.client) == (("/own.pem",), ())


def test_mirrors_of_both_files_come_in_order_and_writes_go_home(tmp_path):
    conf_file = write(
        tmp_path / "registries.conf",
        '[[registry]]\nprefix = "r.example:5000/a"\nlocation = "s.example/c"\n'
        '[[registry.mirror]]\nlocation = "127.0.0.1:1/mirror"\n',
    )
    write(tmp_path / "d" / "s.example" / "hosts.toml", '[host."https://m.example"]\ncapabilities = ["pull"]')
    found = places(tmp_path, registries_conf=(str(conf_file),))
    assert routed(found) == [
        "https://127.0.0.1:1/v2/mirror/b",
        "https://m.example/v2/c/b?ns=s.example",
        "https://s.example/v2/c/b",
    ]
    first, _, last = found.route(Reference.parse("r.example:5000/a/b"), "pull", "test")
    assert [way.mirror for way in first.ways] == [True, True]
    assert [way.registry for way in (first.ways[0], last.ways[0])] == ["127.0.0.1:1", "s.example"]
    home = found.push(Reference.parse("r.example:5000/a/b"), "test")
    assert (home.host, home.repository) == ("r.example:5000", "a/b")


def test_a_blocked_name_is_neither_read_nor_written(tmp_path):
    conf_file = write(tmp_path / "x.conf", '[[registry]]\nlocation = "r.example:5000"\nblocked = true')
    found = places(tmp_path, registries_conf=(str(tmp_path),))
    ref = Reference.parse("r.example:5000/a")
    for call in (
        lambda: found.route(ref, "pull", "test"),
        lambda: found.push(ref, "test"),
        lambda: found.home("r.example:5000", "", "test"),
    ):
        with pytest.raises(PermissionDenied, match="blocked") as caught:
            call()
        assert str(conf_file) in str(caught.value)


@pytest.mark.parametrize("name", ["hosts.toml", "registries.conf"])
def test_a_file_that_others_could_have_written_is_refused(tmp_path, name):
    path = write(tmp_path / "d" / "r.example:5000" / name, "")
    found = places(tmp_path, registries_conf=(str(path),) if name == "registries.conf" else ())
    assert len(routed(found)) == 1
    path.chmod(0o666)
    path.write_text("# changed")
    with pytest.raises(PermissionDenied, match="others may have written it"):
        routed(found)


def test_the_files_in_force_are_told(tmp_path):
    hosts_file = write(tmp_path / "d" / "r.example" / "hosts.toml", "")
    folder = write(tmp_path / "d" / "s.example" / "ca.crt", "").parent
    write(tmp_path / "d" / "t.example" / "README", "")
    drop_in = write(tmp_path / "c" / "one.conf", "")
    write(tmp_path / "c" / "one.conf.bak", "")
    confs = (str(tmp_path / "none.conf"), os.devnull, str(tmp_path / "c"))
    found = in_force((str(tmp_path / "d"), str(tmp_path / "e")), confs)
    assert found == [str(drop_in), str(hosts_file), str(folder)]


def test_what_is_no_file_is_not_waited_for(tmp_path):
    folder = tmp_path / "d" / "r.example:5000"
    folder.mkdir(parents=True)
    os.mkfifo(folder / "hosts.toml")
    with pytest.raises(InvalidArgument, match="not a regular file"):
        routed(places(tmp_path))


def test_a_broken_file_stops_the_pull_and_not_just_the_mirror(tmp_path):
    write(tmp_path / "d" / "r.example:5000" / "hosts.toml", "server = [")
    with pytest.raises(InvalidArgument, match=r"hosts\.toml"):
        routed(places(tmp_path))


# Anything at all


KEYS = st.sampled_from(
    ["server", "host", "ca", "client", "header", "capabilities", "registry", "mirror", "prefix", "location"]
)
VALUES = st.recursive(
    st.one_of(
        st.sampled_from(["https://a", "http://[::1]", "a.example/b", "*.example", "pull", "", "a\x00"]),
        st.text(max_size=8),
        st.booleans(),
        st.integers(-9, 9),
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(KEYS, inner, max_size=3)),
    max_leaves=8,
)


def toml(value):
    """A value of TOML, inline."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{quoted(key)} = {toml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    return quoted(value) if isinstance(value, str) else str(value)


def quoted(text):
    return '"' + "".join(f"\\U{ord(char):08x}" for char in text if not 0xD800 <= ord(char) < 0xE000) + '"'


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.dictionaries(st.one_of(KEYS, st.just("[registry]")), VALUES, max_size=4), st.binary(max_size=64))
def test_whatever_a_file_holds_it_is_read_or_refused(document, junk):
    text = "\n".join(f"{quoted(key)} = {toml(value)}" for key, value in document.items()).encode()
    for data in (text, junk):
        for parse in (
            lambda data: parse_hosts_toml(data, registry="r.example", folder="/d", source="a file"),
            lambda data: parse_registries_conf(data, source="a file"),
        ):
            refused = None
            try:
                parse(data)
            except Error as exc:
                refused = exc
            assert refused is None or (type(refused), refused.attempted) == (InvalidArgument, "read a file")
