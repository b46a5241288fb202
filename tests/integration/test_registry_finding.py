"""Mirrors, certificates, proxies and IPv6: where the registry client goes, against real servers and lying ones."""

from __future__ import annotations

import base64
import contextlib
import json
import shutil
import socket
import subprocess
import time
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest

import orlop
from orlop.config import ProxySettings, Settings
from orlop.errors import DataLoss, NotFound, PermissionDenied, Unavailable
from orlop.observe import Call
from orlop.registry.access.credentials import CredentialSources
from orlop.registry.client import Registry
from orlop.registry.finding import fallback
from orlop.registry.net.addresses import Zone
from orlop.registry.net.proxies import Proxies
from orlop.registry.net.retry import Backoff
from orlop.registry.net.wire import Wire
from orlop.spec.digest import Digest
from orlop.spec.documents import OCI_MANIFEST, Descriptor
from orlop.spec.reference import Reference
from orlop.testing.layers import Layer
from orlop.testing.registry import Fault, MemoryRegistry
from support import images
from support.proxy import serve_proxy

NAME = "r.example"
REF = Reference.parse(f"{NAME}/a/b:1")
MANIFEST = json.dumps({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "layers": []}).encode()
DATA = bytes(range(256)) * 4_000


@dataclass
class Heard:
    """An observer that keeps the warnings."""

    warnings: list[str] = field(default_factory=list)

    def progress(self, event):
        pass

    def warning(self, text):
        self.warnings.append(text)


@pytest.fixture(autouse=True)
def no_hurry(monkeypatch):
    """A mirror that failed rests for longer than the slowest machine takes."""
    monkeypatch.setattr(fallback, "REST", 3600.0)


@pytest.fixture
def heard():
    return Heard()


@pytest.fixture
def call(heard):
    return Call(observer=heard)


@pytest.fixture
def servers():
    """An upstream that has all, and two mirrors that have nothing yet."""
    with MemoryRegistry() as upstream, MemoryRegistry() as first, MemoryRegistry() as second:
        upstream.add_manifest("a/b", "1", MANIFEST, OCI_MANIFEST)
        upstream.add_blob("a/b", DATA)
        yield upstream, first, second


@pytest.fixture
def connect():
    opened = []

    def open_client(*, sources=None, wire=None, **settings):
        settings = {"timeout": 60.0, "retries": 2, **settings}
        client = Registry(
            Settings(**settings), sources or CredentialSources(), wire=wire, backoff=Backoff(base=0.001)
        )
        opened.append(client)
        return client

    yield open_client
    for client in opened:
        client.close()


def hosts_dir(tmp_path, text, name=NAME):
    folder = tmp_path / "certs.d" / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "hosts.toml").write_text(text)
    return {"hosts_dirs": (str(tmp_path / "certs.d"),)}


def chain(upstream, *mirrors):
    """A hosts.toml with plain mirrors before an upstream."""
    return f'server = "{upstream.url}"\n' + "".join(f'[host."{mirror.url}"]\n' for mirror in mirrors)


def fetch(client, call):
    """Resolve the image, and read its blob; what they cost is for the servers to tell."""
    client.resolve(REF, call=call)
    with client.open_blob(REF, Digest.of(DATA), call=call) as stream:
        return b"".join(stream)


def drain(stream, into):
    """Read a stream that breaks off; what came before is kept."""
    chunks = iter(stream)
    while True:
        try:
            into += next(chunks)
        except Unavailable:
            return


def fill(registry):
    registry.add_manifest("a/b", "1", MANIFEST, OCI_MANIFEST)
    registry.add_blob("a/b", DATA)


# Mirrors


@pytest.mark.distribution("proxy.ns")
def test_a_mirror_that_has_it_is_the_only_one_asked_and_told_for_whom(
    servers, connect, call, heard, tmp_path
):
    upstream, first, second = servers
    fill(first)
    assert fetch(connect(**hosts_dir(tmp_path, chain(upstream, first, second))), call) == DATA
    assert (len(first.requests), second.requests, upstream.requests) == (2, [], [])
    assert all(seen.path.endswith("?ns=r.example") for seen in first.requests)
    assert heard.warnings == []


@pytest.mark.hostile(38)
@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (Fault(status=404), "404"),
        (Fault(status=401), "401"),
        (Fault(status=403), "403"),
        (Fault(status=429, headers={"Retry-After": "100"}), "429"),
        (Fault(status=503), "503"),
        (Fault(drop=True), "cut the connection"),
    ],
)
def test_the_next_is_asked_where_a_mirror_refuses_or_fails(
    servers, connect, call, heard, tmp_path, fault, words
):
    upstream, first, second = servers
    first.misbehave(fault)
    fill(second)
    assert fetch(connect(**hosts_dir(tmp_path, chain(upstream, first, second))), call) == DATA
    assert (len(second.requests), upstream.requests) == (2, [])
    assert any(words in text and first.host in text for text in heard.warnings)


def test_a_mirror_that_is_down_is_tried_once_and_then_left_alone(servers, connect, call, heard, tmp_path):
    upstream, _, _ = servers
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        down = f"127.0.0.1:{unused.getsockname()[1]}"
        text = chain(upstream, SimpleNamespace(url=f"http://{down}"))
        client = connect(**hosts_dir(tmp_path, text))
        for _ in range(3):
            assert fetch(client, call) == DATA
    assert [down in text for text in heard.warnings] == [True]


def test_the_last_error_says_what_the_mirrors_said(servers, connect, call, tmp_path):
    upstream, first, _ = servers
    client = connect(**hosts_dir(tmp_path, chain(upstream, first)))
    with pytest.raises(NotFound) as caught:
        client.resolve(Reference.parse(f"{NAME}/a/b:2"), call=call)
    assert upstream.host in caught.value.reason.partition("asked before")[0]
    assert first.host in caught.value.reason.partition("asked before")[2]


@pytest.mark.hostile(19)
def test_a_mirror_that_sends_another_document_is_passed_over(servers, connect, call, heard, tmp_path):
    upstream, first, _ = servers
    fill(first)
    first.misbehave(Fault(path="manifests|blobs", corrupt=True))
    client = connect(**hosts_dir(tmp_path, chain(upstream, first)))
    exact = Reference.parse(f"{NAME}/a/b@{Digest.of(MANIFEST)}")
    assert client.resolve(exact, call=call).data == MANIFEST
    small = upstream.add_blob("a/b", b"{}")
    descriptor = Descriptor(media_type="x", digest=str(small), size=2)
    assert client.blob(REF, descriptor, call=call) == b"{}"
    assert len(first.requests) == 1  # it is not asked again
    assert any(first.host in text for text in heard.warnings)
    upstream.misbehave(Fault(path="manifests", corrupt=True))
    with pytest.raises(DataLoss):  # the last word is the registry's, and it is verified, too
        client.resolve(exact, call=call)


@pytest.mark.hostile(38)
def test_a_blob_that_breaks_off_at_a_mirror_goes_on_at_the_next(servers, connect, call, tmp_path):
    upstream, first, _ = servers
    fill(first)
    first.misbehave(Fault(path="blobs", cut_after=300_000))
    client = connect(**hosts_dir(tmp_path, chain(upstream, first)))
    got = bytearray()
    with client.open_blob(REF, Digest.of(DATA), call=call) as stream:
        drain(stream, got)
    with client.open_blob(REF, Digest.of(DATA), offset=len(got), call=call) as stream:
        assert stream.offset == len(got) > 0
        got += b"".join(stream)
    assert got == DATA
    assert [seen.headers["range"] for seen in upstream.seen("GET", "blobs")] == [f"bytes={300_000}-"]


def test_what_prepares_a_write_is_asked_where_one_writes(servers, connect, call, tmp_path):
    upstream, first, _ = servers
    fill(first)
    text = f'server = "{upstream.url}"\n[host."{first.url}"]\ncapabilities = ["pull", "resolve"]\n'
    client = connect(**hosts_dir(tmp_path, text))
    other = first.add_blob("a/b", b"only at the mirror")
    assert client.has_blob(REF, other, push=True, call=call) is None
    assert client.put_manifest(REF, MANIFEST, OCI_MANIFEST, call=call) == Digest.of(MANIFEST)
    assert first.requests == []


def test_a_host_that_may_not_say_what_a_tag_means_serves_digests_alone(servers, connect, call, tmp_path):
    upstream, first, _ = servers
    fill(first)
    text = f'server = "{upstream.url}"\n[host."{first.url}"]\ncapabilities = ["pull"]\n'
    assert fetch(connect(**hosts_dir(tmp_path, text)), call) == DATA
    assert [seen.path.partition("?")[0].split("/")[4] for seen in first.requests] == ["blobs"]
    assert [seen.path.partition("?")[0].split("/")[4] for seen in upstream.requests] == ["manifests"]


# Secrets


@pytest.mark.distribution("proxy.credentials")
@pytest.mark.hostile(23, 24)
def test_credentials_and_headers_go_only_to_the_host_they_are_for(connect, call, tmp_path):
    options = {"auth": "basic", "users": {"u": "of the upstream", "m": "of the mirror"}}
    with MemoryRegistry(**options) as upstream, MemoryRegistry(**options) as mirror, MemoryRegistry() as cdn:
        fill(upstream)
        cdn.add_blob("a/b", DATA)
        mirror.misbehave(
            Fault(
                path="blobs", status=307, headers={"Location": f"{cdn.url}/v2/a/b/blobs/{Digest.of(DATA)}"}
            ),
            Fault(path="manifests", status=404),
        )
        auths = {
            NAME: {"auth": base64.b64encode(b"u:of the upstream").decode()},
            upstream.host: {"auth": base64.b64encode(b"u:of the upstream").decode()},
            mirror.host: {"auth": base64.b64encode(b"m:of the mirror").decode()},
        }
        path = tmp_path / "auth.json"
        path.write_text(json.dumps({"auths": auths}))
        text = chain(upstream, mirror) + '[host."' + mirror.url + '".header]\nX-Token = "s3cret"\n'
        client = connect(sources=CredentialSources(files=(str(path),)), **hosts_dir(tmp_path, text))
        assert fetch(client, call) == DATA
    users = [
        {
            base64.b64decode(seen.headers["authorization"].removeprefix("Basic ")).decode()[0]
            for seen in server.requests
            if "authorization" in seen.headers
        }
        for server in (upstream, mirror, cdn)
    ]
    assert users == [{"u"}, users[1] & {"m"}, set()]
    tokens = [{seen.headers.get("x-token") for seen in one.requests} for one in (upstream, mirror, cdn)]
    assert tokens == [{None}, {"s3cret"}, {None}]


# The whole service


@pytest.mark.hostile(19)
@pytest.mark.parametrize("fault", [Fault(path="blobs", corrupt=True), Fault(path="blobs", cut_after=1_000)])
def test_a_pull_ends_well_though_its_mirror_lies_or_breaks_off(store_dirs, tmp_path, fault):
    with MemoryRegistry() as upstream, MemoryRegistry() as mirror:
        layer = Layer().file(b"hello", b"".join(b"%d\n" % number for number in range(9_000)))
        image = images.make_image([layer.tar()])
        for server in (upstream, mirror):
            for blob in image.blobs.values():
                server.add_blob("a/b", blob)
            digest = server.add_manifest("a/b", "1", image.document, image.media_type)
        mirror.misbehave(fault)
        settings = orlop.Settings(
            timeout=60.0,
            durable=False,
            search_registries=(NAME,),
            **hosts_dir(tmp_path, chain(upstream, mirror)),
        )
        with orlop.open(store_dirs.root, store_dirs.run, settings=settings) as store:
            assert store.pull(f"{NAME}/a/b:1").digest == digest
            # What is here is found by its short name, too, since that would be looked for there.
            with store.prepare("a/b:1", store_dirs.work / "root", pull="never"):
                assert [root.image for root in store.prepared()] == [f"{NAME}/a/b:1"]
            with pytest.raises(NotFound):
                store.prepare("a/c:1", store_dirs.work / "root", pull="never")
        assert mirror.seen("GET", "manifests")
        assert upstream.seen("GET", "blobs")


def test_the_command_line_reads_the_usual_files_and_searches_where_it_is_told(run_cli, workdir):
    with MemoryRegistry() as registry:
        image = images.make_image([Layer().file(b"hello", b"x").tar()])
        for blob in image.blobs.values():
            registry.add_blob("a/b", blob)
        registry.add_manifest("a/b", "1", image.document, image.media_type)
        folder = workdir / "home" / "orlop"
        (folder / "certs.d" / NAME).mkdir(parents=True)
        (folder / "certs.d" / NAME / "hosts.toml").write_text(f'server = "{registry.url}"')
        (folder / "config.toml").write_text(f'search_registries = ["{NAME}"]\n')
        env = {"XDG_CONFIG_HOME": str(workdir / "home"), "HTTP_PROXY": "http://127.0.0.1:1"}
        pulled = run_cli("--config", folder / "config.toml", "pull", "a/b:1", env=env, check=True)
        assert f"{NAME}/a/b:1" in pulled.stdout
        assert str(folder / "certs.d" / NAME / "hosts.toml") in run_cli("info", env=env).stdout


def test_a_blocked_name_is_refused_and_nobody_asked(servers, connect, call, tmp_path):
    upstream, _, _ = servers
    path = tmp_path / "registries.conf"
    path.write_text(f'[[registry]]\nlocation = "{upstream.host}/a"\nblocked = true\n')
    client = connect(registries_conf=(str(path),))
    with pytest.raises(PermissionDenied, match=r"registries\.conf"):
        client.resolve(Reference.parse(f"{upstream.host}/a/b:1"), call=call)
    assert upstream.requests == []


def test_a_name_is_fetched_from_where_registries_conf_says(servers, connect, call, tmp_path):
    upstream, first, _ = servers
    first.add_blob("mirror/b", DATA)
    path = tmp_path / "registries.conf"
    path.write_text(
        f'[[registry]]\nprefix = "{NAME}/x"\nlocation = "{upstream.host}/a"\n'
        f'[[registry.mirror]]\nlocation = "{first.host}/mirror"\n'
    )
    client = connect(registries_conf=(str(path),))
    ref = Reference.parse(f"{NAME}/x/b:1")
    assert client.resolve(ref, call=call).data == MANIFEST
    with client.open_blob(ref, Digest.of(DATA), call=call) as stream:
        assert b"".join(stream) == DATA
    assert [seen.path for seen in first.seen("GET", "a/b")] == []
    assert [seen.path for seen in upstream.seen("GET", "blobs")] == []


# Real registries: TLS, client certificates, IPv6, a proxy

needs_real = pytest.mark.skipif(
    shutil.which("docker-registry") is None or shutil.which("openssl") is None,
    reason="needs docker-registry as the server, and openssl to make certificates",
)


@pytest.fixture(scope="module")
def pki(tmp_path_factory):
    """An authority, a server's certificate and a client's."""
    folder = tmp_path_factory.mktemp("pki")

    def openssl(*args):
        subprocess.run(["openssl", *args], check=True, capture_output=True, cwd=folder, timeout=60)

    curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    openssl(
        "req", "-x509", *curve, "-days", "2", "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=test CA"
    )
    for name, alternative in (("server", "IP:127.0.0.1,IP:::1,DNS:registry.test"), ("client", "DNS:client")):
        (folder / "ext").write_text(f"subjectAltName={alternative}\n")
        openssl("req", *curve, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}")
        openssl(
            *("x509", "-req", "-days", "2", "-in", f"{name}.csr", "-CA", "ca.pem", "-CAkey", "ca.key"),
            *("-CAcreateserial", "-extfile", "ext", "-out", f"{name}.pem"),
        )
    return folder


@contextlib.contextmanager
def serve_real(folder, *, address="127.0.0.1", tls=None, client_ca=False):
    """A docker-registry; gives its host and its log."""
    folder.mkdir()
    secure = ""
    if tls is not None:
        secure = f", tls: {{certificate: {tls}/server.pem, key: {tls}/server.key"
        secure += f", clientcas: [{tls}/ca.pem]}}" if client_ca else "}"
    for _ in range(5):  # another process may take a port that was free
        host, process = start_real(folder, address, secure)
        if process is not None:
            break
    else:
        pytest.fail((folder / "log").read_text())
    try:
        yield SimpleNamespace(host=host, url=f"{'https' if tls else 'http'}://{host}", log=folder / "log")
    finally:
        process.kill()
        process.wait()


def start_real(folder, address, secure):
    """One try: the host, and the process once it listens; None where it ended."""
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as probe:
        probe.bind((address, 0))
        port = probe.getsockname()[1]
    host = f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
    (folder / "config.yml").write_text(
        "version: 0.1\nlog: {level: info, accesslog: {disabled: false}}\n"
        f"storage: {{filesystem: {{rootdirectory: {folder}/data}}}}\n"
        f"http: {{addr: '{host}', secret: x{secure}}}\n"
    )
    command = ["setpriv", "--pdeathsig", "KILL", "docker-registry", "serve", str(folder / "config.yml")]
    with open(folder / "log", "wb") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    deadline = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline:
        if b"listening on" in (folder / "log").read_bytes():
            return host, process
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.02)
    process.kill()
    process.wait()
    return host, None


def put(client, ref, call):
    client.upload_blob(ref, [DATA], digest=Digest.of(DATA), size=len(DATA), call=call)
    config = b"{}"
    client.upload_blob(ref, [config], digest=Digest.of(config), size=2, call=call)
    document = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": {"mediaType": "x/config", "digest": str(Digest.of(config)), "size": 2},
        "layers": [{"mediaType": "x/layer", "digest": str(Digest.of(DATA)), "size": len(DATA)}],
    }
    client.put_manifest(ref, json.dumps(document).encode(), OCI_MANIFEST, call=call)


@needs_real
def test_real_registries_by_hosts_toml_with_authority_and_client_certificate(
    pki, connect, call, heard, tmp_path
):
    with contextlib.ExitStack() as stack:
        upstream = stack.enter_context(serve_real(tmp_path / "u", tls=pki, client_ca=True))
        mirror_stack = stack.enter_context(contextlib.ExitStack())
        mirror = mirror_stack.enter_context(serve_real(tmp_path / "m", tls=pki))
        who = f'client = [["{pki}/client.pem", "{pki}/client.key"]]\n'
        text = f'server = "{upstream.url}"\nca = "{pki}/ca.pem"\n'
        with pytest.raises(Unavailable):  # who does not say who it is is not let in
            put(connect(retries=0, **hosts_dir(tmp_path, text)), REF, call)
        settings = hosts_dir(tmp_path, f'{text}{who}[host."{mirror.url}"]\nca = ["{pki}/ca.pem"]\n')
        client = connect(**settings)
        # The first host that may be written to is: give the mirror its copy, then forbid it.
        put(client, REF, call)
        assert not list((tmp_path / "u").glob("data/docker/registry/v2/repositories"))
        text = (
            f'{text}{who}[host."{mirror.url}"]\nca = ["{pki}/ca.pem"]\ncapabilities = ["pull", "resolve"]\n'
        )
        hosts_dir(tmp_path, text)
        put(client, REF, call)
        assert list((tmp_path / "u").glob("data/docker/registry/v2/repositories/a/b"))
        assert fetch(client, call) == DATA
        assert b"GET /v2/a/b/blobs" not in upstream.log.read_bytes()
        assert heard.warnings == []
        mirror_stack.close()
        assert fetch(client, call) == DATA
        assert any(mirror.host in text for text in heard.warnings)
        # Without the authority its certificate is nobody's.
        hosts_dir(tmp_path, f'server = "{upstream.url}"\n{who}')
        with pytest.raises(Unavailable, match="certificate"):
            fetch(client, call)


def _has_ipv6():
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET6) as probe:
        probe.bind(("::1", 0))
        return True
    return False


@pytest.mark.skipif(not _has_ipv6(), reason="needs ::1 to serve at")
@needs_real
def test_an_address_of_ipv6_is_a_registry_like_others_and_dockers_certificates_serve(
    pki, connect, call, tmp_path
):
    with serve_real(tmp_path / "six", address="::1", tls=pki) as registry:
        ref = Reference.parse(f"{registry.host}/a/b:1")
        folder = tmp_path / "certs.d" / registry.host
        folder.mkdir(parents=True)
        shutil.copy(pki / "ca.pem", folder / "ca.crt")
        shutil.copy(pki / "client.pem", folder / "client.cert")
        shutil.copy(pki / "client.key", folder / "client.key")
        client = connect(hosts_dirs=(str(tmp_path / "certs.d"),))
        put(client, ref, call)
        client.resolve(ref, call=call)
        shutil.copy(pki / "client.pem", folder / "ca.crt")  # the daemon sees another authority at once
        with pytest.raises(Unavailable, match="certificate"):
            client.resolve(ref, call=call)


@needs_real
def test_a_proxy_leads_to_registries_that_only_it_knows(pki, connect, call, tmp_path):
    with (
        serve_real(tmp_path / "tls", tls=pki) as secure,
        serve_real(tmp_path / "plain") as plain,
        serve_proxy(
            {"registry.test:443": secure.host, "plain.test:5000": plain.host}, user="me:s3cret"
        ) as proxy,
    ):
        settings = {
            **hosts_dir(tmp_path, f'ca = "{pki}/ca.pem"', "registry.test"),
            "insecure_registries": ("plain.test:5000",),
            "proxy": ProxySettings(http=proxy.url, https=proxy.url),
        }
        client = connect(**settings)
        for name in ("registry.test", "plain.test:5000"):
            put(client, Reference.parse(f"{name}/a/b:1"), call)
            assert client.has_manifest(Reference.parse(f"{name}/a/b:1"), call=call)
        connects = {asked.target for asked in proxy.asked if asked.method == "CONNECT"}
        assert connects == {"registry.test:443", "plain.test:5000"}
        assert any(asked.target.startswith("http://plain.test:5000/v2/") for asked in proxy.asked)
        served = secure.log.read_text() + plain.log.read_text()
        assert "proxy-authorization" not in served.lower()


# What a proxy does wrong, and what it may not be asked


def through(proxy, connect, **settings):
    return connect(retries=0, proxy=ProxySettings(http=proxy.url, https=proxy.url), **settings)


@pytest.mark.hostile(25)
@pytest.mark.parametrize("scheme", ["https", "http"])
def test_a_proxy_that_refuses_is_named_without_its_password(connect, call, tmp_path, scheme):
    with serve_proxy({}, user="me:s3cret") as proxy:
        settings = hosts_dir(tmp_path, f'server = "{scheme}://{NAME}"')
        with pytest.raises(Unavailable) as caught:
            through(proxy, connect, **settings).resolve(REF, call=call)
        assert "502" in str(caught.value)
        proxy.user, url = "you:others", proxy.url
        wrong = SimpleNamespace(url=url.replace("you:others", "me:s3cret"))
        with pytest.raises(Unavailable, match=f"the proxy {proxy.host} refuses.*407") as caught:
            through(wrong, connect, **settings).resolve(REF, call=call)
        assert "s3cret" not in str(caught.value) + caught.value.hint
        assert "password" in caught.value.hint


def test_a_proxy_that_is_down_is_named(connect, call):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        host = f"127.0.0.1:{unused.getsockname()[1]}"
        client = through(SimpleNamespace(url=f"http://{host}"), connect)
        with pytest.raises(Unavailable, match=f"cannot connect to the proxy {host}"):
            client.resolve(REF, call=call)


@pytest.mark.hostile(21, 22)
@pytest.mark.parametrize(
    "target",
    ["http://169.254.169.254/x", "http://127.0.0.1:1/x", "http://localhost/x", "http://2130706433/x"],
)
def test_a_proxy_is_not_asked_for_what_a_registry_may_not_send_us_to(connect, call, tmp_path, target):
    with MemoryRegistry() as registry, serve_proxy({"r.example:80": registry.host}) as proxy:
        fill(registry)
        registry.misbehave(Fault(path="blobs", status=307, headers={"Location": target}))
        # The registry's own name is the user's choice; a public one, as far as anybody can tell.
        wire = Wire(
            timeout=60.0,
            proxies=Proxies(ProxySettings(http=proxy.url)),
            classify=lambda address: Zone.PUBLIC if address == "93.184.216.34" else Zone.LOOPBACK,
        )
        client = connect(wire=wire, **hosts_dir(tmp_path, f'server = "http://{NAME}"'))
        client.resolve(REF, call=call)
        with pytest.raises(Unavailable, match="internal address"):
            client.open_blob(REF, Digest.of(DATA), call=call)
        assert all(asked.target.startswith("http://r.example/v2/") for asked in proxy.asked)


@pytest.mark.skipif(shutil.which("skopeo") is None, reason="needs skopeo as the judge")
def test_skopeo_asks_the_same_places_by_the_same_registries_conf(servers, connect, call, tmp_path):
    upstream, mirror, other = servers
    digest = Digest.of(MANIFEST)
    mirror.add_manifest("w/q/b", "1", MANIFEST, OCI_MANIFEST)
    other.add_manifest("tags/b", "1", MANIFEST, OCI_MANIFEST)
    path = tmp_path / "registries.conf"
    path.write_text(f"""
        [[registry]]
        prefix = "r.example/x"
        location = "{upstream.host}/a"
        insecure = true
        [[registry.mirror]]
        location = "{mirror.host}/digests"
        pull-from-mirror = "digest-only"
        insecure = true
        [[registry.mirror]]
        location = "{other.host}/tags"
        pull-from-mirror = "tag-only"
        insecure = true
        [[registry]]
        location = "r.example/x/blocked"
        blocked = true
        [[registry]]
        prefix = "*.wild.example"
        [[registry.mirror]]
        location = "{mirror.host}/w"
        insecure = true
    """)
    client = connect(registries_conf=(str(path),))

    def asked():
        """Which server was asked for which manifest since the last time, each once."""
        found = {
            (number, seen.path)
            for number, server in enumerate((upstream, mirror, other))
            for seen in server.requests
            if "/manifests/" in seen.path
        }
        for server in (upstream, mirror, other):
            server.requests.clear()
        return found

    for name in (
        "r.example/x/b:1",
        f"r.example/x/b@{digest}",
        "a.b.wild.example/q/b:1",
        "r.example/x/blocked:1",
    ):
        judge = subprocess.run(
            ["skopeo", f"--registries-conf={path}", "inspect", "--raw", f"docker://{name}"],
            check=False,
            capture_output=True,
            timeout=120,
        )
        expected = asked()
        try:
            data = client.resolve(Reference.parse(name), call=call).data
        except PermissionDenied:
            data = None
        assert (data is not None) == (judge.returncode == 0), judge.stderr
        assert asked() == expected
        assert data in (None, judge.stdout)
