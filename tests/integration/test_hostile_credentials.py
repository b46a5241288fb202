"""Registries and authors of manifests that are after credentials or internal addresses: HOSTILE.md 20 to 25.

Through pulls into a store where the row is about one, else through the client.  Where names and addresses
matter, the test gives them: `resolves` says what names mean, `zones` which addresses are how near.  Everything
else is real.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import socket
import subprocess
import sys
import traceback
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from urllib.parse import quote

import pytest

import orlop
from conftest import StoreDirs
from orlop.config import Settings
from orlop.config.settings import ProxySettings
from orlop.observe import Auth, Call, NullObserver
from orlop.registry import client as client_module
from orlop.registry.access.credentials import CredentialSources
from orlop.registry.client import Registry
from orlop.registry.net import connections
from orlop.registry.net.addresses import Zone
from orlop.registry.net.proxies import Proxies
from orlop.registry.net.sockets import Resolver
from orlop.registry.net.wire import Wire
from orlop.spec.digest import Digest
from orlop.spec.documents import OCI_MANIFEST
from orlop.spec.reference import Reference
from orlop.testing.registry import Fault, MemoryRegistry
from support import images
from support.layers import Layer
from support.victims import Victim, victim_at

METADATA = "169.254.169.254"
PASSWORD = "hunter2-of-the-user"
SPECIAL = "/@: "
PROXY = base64.b64encode(f"user:{PASSWORD}{SPECIAL}".encode()).decode()
BASIC = base64.b64encode(f"user:{PASSWORD}".encode()).decode()
MANIFEST = json.dumps({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "layers": []}).encode()
CALL = Call()
NONDISTRIBUTABLE = "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"
FOREIGN = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"
# What an inward URL may look like: numbers in every form that getaddrinfo takes, and names.
INWARD = (
    METADATA,
    "2852039166",
    "0xA9FEA9FE",
    "0251.0376.0251.0376",
    "169.254.43518",
    "[::ffff:169.254.169.254]",
    "[64:ff9b::a9fe:a9fe]",
    "[fe80::1]",
    "[fd00:ec2::254]",
    "0.0.0.0",
    "0",
    "[::]",
    "100.100.100.200",
    "metadata.internal",
    "rebound.example",
)
NAMES = {"metadata.internal": [METADATA], "rebound.example": ["127.0.0.1", METADATA]}


@pytest.fixture
def resolves(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """What names mean; those not in it mean what they do."""
    names = dict(NAMES)

    def lookup(host: str, port: int, *more: int) -> list[object]:
        if host not in names:
            return list(socket.getaddrinfo(host, port, *more))
        return [
            (socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (address, port))
            for address in names[host]
        ]

    monkeypatch.setattr(connections, "resolve", Resolver(lookup))
    return names


@pytest.fixture
def auth(tmp_path: Path) -> Path:
    """A file for the user's credentials; empty so far."""
    path = tmp_path / "auth.json"
    path.write_text("{}")
    return path


def log_in(auth: Path, *hosts: str) -> None:
    """Keep the user's name and password for some hosts."""
    auth.write_text(json.dumps({"auths": {host: {"auth": BASIC} for host in hosts}}))


@contextlib.contextmanager
def client_of(auth: Path | None, *, wire: Wire | None = None, **settings: object) -> Iterator[Registry]:
    sources = CredentialSources(files=(str(auth),) if auth else ())
    about = Settings(**{"retries": 0, "timeout": 30.0, **settings})  # type: ignore[arg-type] # a test's own
    with contextlib.closing(Registry(about, sources, wire=wire)) as client:
        yield client


@contextlib.contextmanager
def registry(kind: str = "", **more: object) -> Iterator[MemoryRegistry]:
    """A registry with the manifest a/b:1."""
    with MemoryRegistry(auth=kind, users={"user": PASSWORD}, **more) as server:  # type: ignore[arg-type]
        server.add_manifest("a/b", "1", MANIFEST, OCI_MANIFEST)
        yield server


def ref_of(server: MemoryRegistry) -> Reference:
    return Reference.parse(f"{server.host}/a/b:1")


def nobody_was_told(*servers: MemoryRegistry) -> None:
    for server in servers:
        for seen in server.requests:
            assert "authorization" not in seen.headers, seen
            assert PASSWORD not in seen.path


# ---------------------------------------------------------------------- 20


@pytest.fixture
def victim(store_dirs: StoreDirs, auth: Path) -> Iterator[Victim]:
    with victim_at(
        store_dirs.root,
        store_dirs.run,
        store_dirs.work,
        retries=0,
        auth_files=(str(auth),),
        foreign_layers=True,
    ) as one:
        yield one


def foreign(urls: list[str], *, media_type: str = FOREIGN, seed: int = 1) -> tuple[images.Image, bytes]:
    """An image whose one layer lies elsewhere, and the layer's blob."""
    made = images.make_image([Layer().file("file", bytes([seed]) * 30_000).tar()])
    document = json.loads(made.document)
    digest = document["layers"][0]["digest"]
    document["layers"][0] |= {"mediaType": media_type, "urls": urls}
    blobs = dict(made.blobs)
    layer = blobs.pop(digest)
    return replace(made, document=json.dumps(document).encode(), blobs=blobs), layer


@pytest.mark.root
@pytest.mark.hostile(20)
def test_layers_that_lie_elsewhere_are_refused_unless_allowed(store_dirs: StoreDirs) -> None:
    with (
        victim_at(store_dirs.root, store_dirs.run, store_dirs.work, retries=0) as victim,
        MemoryRegistry() as cdn,
    ):
        for media_type in (FOREIGN, NONDISTRIBUTABLE):
            made, layer = foreign([f"{cdn.url}/v2/x/blobs/y"], media_type=media_type)
            cdn.add_blob("x", layer)
            name = victim.publish("elsewhere", made)
            error = victim.refuses(
                partial(victim.store.pull, name), orlop.InvalidArgument, "not distributable"
            )
            assert "foreign_layers" in error.hint
        assert not cdn.requests


@pytest.mark.root
@pytest.mark.hostile(20)
def test_layers_that_lie_elsewhere_are_fetched_without_credentials_and_not_pushed(
    victim: Victim, auth: Path, store_dirs: StoreDirs
) -> None:
    with MemoryRegistry() as cdn, registry("basic") as closed:
        log_in(auth, cdn.host, closed.host, victim.registry.host)
        for number, media_type in enumerate((FOREIGN, NONDISTRIBUTABLE)):
            made, layer = foreign([], media_type=media_type, seed=number)
            digest = cdn.add_blob("x", layer)
            url = f"http://user:{PASSWORD}@{cdn.host}/v2/x/blobs/{digest}?sig=1"
            made, _ = foreign(
                ["ftp://nowhere/x", f"{closed.url}/v2/a/b/blobs/{digest}", url],
                media_type=media_type,
                seed=number,
            )
            name = victim.publish(f"elsewhere{number}", made)
            assert victim.store.pull(name).id == made.id
            assert victim.registry.seen("GET", digest)  # the registry itself was asked first
            assert closed.seen("GET", digest)
            # Nor is it distributed: a push leaves it where it lies, and the digest as it was.
            target = f"{victim.registry.host}/copies{number}:v1"
            assert victim.store.push(name, target).digest == made.digest
            assert not victim.registry.seen("PUT", digest)
        assert len(cdn.requests) == 2
        nobody_was_told(cdn, closed)
        # Who asks for it distributes it all the same.
        allowing = Settings(durable=False, keep_blobs=True, nondistributable=True, foreign_layers=True)
        with orlop.open(store_dirs.root, store_dirs.run, settings=allowing) as store:
            store.remove(name, force=True)
            store.collect()
            store.pull(name)
            assert store.push(name, f"{victim.registry.host}/given:v1").digest == made.digest
            # And a backup of it is as good as one of any image.
            store.backup(store_dirs.work / "backup", content=True)
        orlop.restore(store_dirs.work / "backup", store_dirs.work / "again", store_dirs.work / "run")
        assert victim.registry.blobs[digest] == layer
    victim.settle()


@pytest.mark.root
@pytest.mark.hostile(20)
def test_an_author_who_wants_credentials_or_lies_gets_nowhere(victim: Victim, auth: Path) -> None:
    with registry("bearer") as thief, registry("basic") as home:
        log_in(auth, thief.host, home.host)
        _, layer = foreign([])
        digest = images.digest_of(layer)
        thief.add_blob("x", layer)
        home.add_blob("x", layer)
        # At the registry's own address, too, nothing goes along that was meant for the registry.
        urls = [f"{thief.url}/v2/x/blobs/{digest}", f"{home.url}/v2/x/blobs/{digest}"]
        made, _ = foreign(urls)
        for data in made.blobs.values():
            home.add_blob("app", data)
        home.add_manifest("app", "v1", made.document, made.media_type)
        pull = partial(victim.store.pull, f"{home.host}/app:v1")
        error = victim.refuses(pull, orlop.NotFound, "where its manifest says")
        assert thief.seen("GET", digest)
        assert home.seen("GET", f"/v2/x/blobs/{digest}")
        nobody_was_told(thief)
        for seen in home.seen("GET", f"/v2/x/blobs/{digest}"):
            assert "authorization" not in seen.headers
        assert PASSWORD not in str(error)
    with MemoryRegistry() as cdn:
        cdn.blobs[digest] = b"x" + layer[1:]
        name = victim.publish("lies", foreign([f"{cdn.url}/v2/x/blobs/{digest}"])[0])
        victim.refuses(partial(victim.store.pull, name), (orlop.DataLoss, orlop.InvalidArgument))
        cdn.misbehave(Fault(path="/blobs/", status=302, headers={"Location": f"http://{METADATA}/x"}))
        name = victim.publish("inward", foreign([f"{cdn.url}/v2/x/blobs/{digest}"])[0])
        victim.refuses(partial(victim.store.pull, name), orlop.NotFound, "internal address")


@pytest.mark.hostile(20, 22)
def test_urls_of_layers_lead_to_no_internal_address_and_are_not_tried_without_end(
    resolves: dict[str, list[str]],
) -> None:
    digest = Digest.of(b"x")
    bad = [
        "",
        "x",
        "/x",
        "file:///etc/passwd",
        "https://",
        "http://[::1",
        "http://a b/",
        "https://" + "a" * 5_000,
    ]
    with registry() as server, client_of(None) as client, MemoryRegistry() as cdn:
        cdn.add_blob("x", b"x")
        for urls in (
            [f"http://{host}/x" for host in INWARD[:8]],
            [f"http://{host}/x" for host in INWARD[7:]],
            bad,
        ):
            with pytest.raises(orlop.NotFound) as caught:
                client.open_blob(ref_of(server), digest, urls=urls, call=CALL)
            assert len(str(caught.value)) < 3_000
        many = ["ftp://x/"] * 8 + [f"{cdn.url}/v2/x/blobs/{digest}"]
        with pytest.raises(orlop.NotFound):
            client.open_blob(ref_of(server), digest, urls=many, call=CALL)
        assert not cdn.requests
        with client.open_blob(ref_of(server), digest, urls=many[7:], call=CALL) as stream:
            assert b"".join(stream) == b"x"


# ---------------------------------------------------------------------- 21


@pytest.mark.hostile(21, 22)
@pytest.mark.parametrize("kept", [{"auth": BASIC}, {"identitytoken": PASSWORD}], ids=["password", "token"])
def test_a_realm_at_an_internal_address_gets_nothing_however_it_is_written(
    auth: Path, resolves: dict[str, list[str]], kept: dict[str, str]
) -> None:
    more = (f"https://{METADATA}/t", f"http://x:y@{METADATA}/t?z=1")
    with registry("bearer") as server:
        auth.write_text(json.dumps({"auths": {server.host: kept}}))
        for realm in (*(f"http://{host}/t" for host in INWARD), *more):
            server.realm = realm
            with (
                client_of(auth) as client,
                pytest.raises((orlop.Unavailable, orlop.Unauthenticated)) as caught,
            ):
                client.resolve(ref_of(server), call=CALL)
            assert PASSWORD not in str(caught.value)
            assert "internal address" in str(caught.value)
        nobody_was_told(server)


@pytest.mark.hostile(21)
def test_user_info_in_a_realm_is_neither_sent_nor_told(auth: Path) -> None:
    with registry("bearer") as server, MemoryRegistry() as realm:
        server.realm = f"http://someone:{PASSWORD}@{realm.host}/token"
        realm.anonymous = True
        realm.misbehave(Fault(path="/token", status=403))
        with client_of(auth) as client, pytest.raises(orlop.Unauthenticated) as caught:
            client.resolve(ref_of(server), call=CALL)
        assert PASSWORD not in str(caught.value)
        nobody_was_told(server, realm)


# ---------------------------------------------------------------------- 22


@pytest.mark.hostile(22)
def test_no_redirect_of_a_registry_or_token_server_leads_inwards(
    auth: Path, resolves: dict[str, list[str]]
) -> None:
    ask = {
        "/blobs/": lambda client, ref: client.open_blob(ref, Digest.of(b"x"), call=CALL),
        "/manifests/": lambda client, ref: client.resolve(ref, call=CALL),
        "/token": lambda client, ref: client.resolve(ref, call=CALL),
    }
    for path, send in ask.items():
        with registry("bearer") as server:
            log_in(auth, server.host)
            for host in INWARD:
                location = {"Location": f"http://{host}/latest?token=s3cret"}
                server.behave()
                server.misbehave(Fault(path=path, status=307, headers=location))
                with (
                    client_of(auth) as client,
                    pytest.raises(orlop.Unavailable, match="internal address") as caught,
                ):
                    send(client, ref_of(server))
                assert "s3cret" not in str(caught.value)


@pytest.mark.hostile(22)
def test_a_name_that_means_something_else_the_second_time_gains_nothing(
    resolves: dict[str, list[str]],
) -> None:
    zones = {"127.0.0.2": Zone.PUBLIC, "127.0.0.4": Zone.PUBLIC}
    wire = Wire(timeout=30.0, classify=lambda address: zones.get(address, Zone.LOOPBACK))
    with registry(address="127.0.0.2") as server, MemoryRegistry(address="127.0.0.4") as cdn:
        port = cdn.host.rpartition(":")[2]
        digest = cdn.add_blob("a/b", b"data")
        location = {"Location": f"http://cdn.example:{port}/v2/a/b/blobs/{digest}"}
        server.misbehave(Fault(path="/blobs/", status=307, headers=location))
        with client_of(None, wire=wire) as client, registry(address="127.0.0.1") as inside:
            resolves["cdn.example"] = ["127.0.0.4"]
            with client.open_blob(ref_of(server), digest, call=CALL) as stream:
                assert b"".join(stream) == b"data"
            cdn.misbehave(Fault(path="/blobs/", drop=True, times=1))  # the connection is made anew
            resolves["cdn.example"] = ["127.0.0.1"]
            with pytest.raises(orlop.Unavailable):
                client.open_blob(ref_of(server), digest, call=CALL)
            with pytest.raises(orlop.Unavailable, match="internal address"):
                client.open_blob(ref_of(server), digest, call=CALL)
            assert not inside.requests


@pytest.mark.root
@pytest.mark.hostile(22)
def test_a_pull_from_a_public_registry_is_not_led_to_this_machine(
    store_dirs: StoreDirs, monkeypatch: pytest.MonkeyPatch, resolves: dict[str, list[str]]
) -> None:
    zones = {"127.0.0.2": Zone.PUBLIC}
    classify = partial(Wire, classify=lambda address: zones.get(address, Zone.LOOPBACK))
    monkeypatch.setattr(client_module, "Wire", classify)
    made = images.make_image([Layer().file("file", b"x" * 5_000).tar()])
    digest = json.loads(made.document)["layers"][0]["digest"]
    with (
        victim_at(store_dirs.root, store_dirs.run, store_dirs.work, retries=0) as victim,
        MemoryRegistry(address="127.0.0.2") as server,
        MemoryRegistry() as inside,
    ):
        for data in made.blobs.values():
            server.add_blob("app", data)
        server.add_manifest("app", "v1", made.document, made.media_type)
        inside.add_blob("app", made.blobs[digest])
        port = inside.host.rpartition(":")[2]
        for host in ("127.0.0.1", "localhost", "2130706433", "inside.example"):
            resolves["inside.example"] = ["127.0.0.1"]
            server.behave()
            location = {"Location": f"http://{host}:{port}/v2/app/blobs/{digest}"}
            server.misbehave(Fault(path=digest, status=307, headers=location))
            pull = partial(victim.store.pull, f"{server.host}/app:v1")
            victim.refuses(pull, orlop.Unavailable, "internal address")
        assert not inside.requests


# ---------------------------------------------------------------------- 23


@pytest.mark.hostile(23)
def test_a_list_that_goes_on_elsewhere_takes_no_credentials_along(auth: Path) -> None:
    for kind in ("basic", "bearer"):
        with registry(kind) as server, registry(kind) as thief:
            log_in(auth, server.host, thief.host)
            for link in (
                f"<{thief.url}/v2/a/b/tags/list?last=x>; rel=next",
                f'<//{thief.host}/v2/a/b/tags/list?last=x>; rel="next"',
                f'<http://{METADATA}/v2/a/b/tags/list?last=x>; rel="next"',
                f"<https://{server.host}/v2/a/b/tags/list?last=x>; rel=next",
            ):
                server.behave()
                server.misbehave(Fault(path="/tags/list", headers={"Link": link}))
                with client_of(auth) as client, pytest.raises(orlop.Unavailable):
                    client.tags(ref_of(server), call=CALL)
            nobody_was_told(thief)


# ---------------------------------------------------------------------- 24


@pytest.mark.hostile(24)
def test_a_redirect_to_another_scheme_or_port_takes_no_credentials_along(auth: Path, tls: object) -> None:
    with (
        registry("basic", tls=tls) as secure,
        registry("basic") as plain,
        registry("basic", tls=tls) as other,
    ):
        log_in(auth, secure.host, plain.host, other.host)
        for start, target, followed in ((secure, plain, False), (secure, other, True), (plain, secure, True)):
            start.behave()
            target.behave()
            before = len(target.requests)
            start.misbehave(
                Fault(
                    path="/manifests/", status=307, headers={"Location": f"{target.url}/v2/a/b/manifests/1"}
                )
            )
            with client_of(auth) as client, pytest.raises((orlop.Unavailable, orlop.Unauthenticated)):
                client.resolve(ref_of(start), call=CALL)
            seen = target.requests[before:]
            assert bool(seen) is followed
            assert all("authorization" not in one.headers for one in seen)


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> object:
    from support.certificates import make_certificate

    return make_certificate(tmp_path_factory.mktemp("tls")).context()


# ---------------------------------------------------------------------- 25, and credentials of one call


@pytest.mark.hostile(25)
@pytest.mark.parametrize("kind", ["basic", "bearer"])
def test_credentials_of_one_call_are_used_for_its_registry_and_by_no_other_call(kind: str) -> None:
    mine = Auth(username="user", password=PASSWORD)
    with registry(kind) as server, registry(kind) as other, client_of(None) as client:
        bound = Call(auth=replace(mine, registry=server.host))
        assert client.resolve(ref_of(server), call=bound).data == MANIFEST
        for call, target in (
            (CALL, server),  # it has no part in what the call before was given
            (Call(auth=replace(mine, registry=server.host, password="wrong")), server),
            (bound, other),
        ):
            with pytest.raises(orlop.Unauthenticated) as caught:
                client.resolve(ref_of(target), call=call)
            assert PASSWORD not in str(caught.value)
        nobody_was_told(other)
        assert client.resolve(ref_of(server), call=bound).data == MANIFEST
        assert PASSWORD not in repr(bound)
        with pytest.raises(orlop.InvalidArgument, match="which registry"):
            Call(auth=mine)


class Words(NullObserver):
    """What is warned of."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def warning(self, text: str) -> None:
        self.said.append(text)


@pytest.mark.hostile(25)
@pytest.mark.parametrize("where", [f"http://169.254.169.254/{PASSWORD}/x", f"http://x y{PASSWORD}/"])
def test_a_redirect_or_a_warning_that_repeats_a_password_is_told_without_it(auth: Path, where: str) -> None:
    words = Words()
    with registry("basic") as server:
        log_in(auth, server.host)
        challenge = {"WWW-Authenticate": 'Basic realm="x"'}
        warned = {"Location": where, "Warning": f'299 - "Hello, {PASSWORD}"'}
        server.misbehave(
            Fault(path="/manifests/", status=401, headers=challenge, times=1),
            Fault(path="/manifests/", status=307, headers=warned),
        )
        with client_of(auth) as client, pytest.raises(orlop.Unavailable) as caught:
            client.resolve(ref_of(server), call=Call(observer=words))
    assert words.said == [f"{server.host} warns: Hello, *****"]
    assert PASSWORD.lower() not in str(caught.value).lower()


@pytest.mark.hostile(25)
@pytest.mark.parametrize("where", [f"http://169.254.169.254/{PASSWORD}/x", f"http://x y{PASSWORD}/"])
def test_a_session_of_an_upload_that_repeats_a_password_is_told_without_it(auth: Path, where: str) -> None:
    with registry("basic") as server:
        log_in(auth, server.host)
        server.misbehave(Fault(path="/uploads/", method="POST", status=202, headers={"Location": where}))
        with client_of(auth) as client:
            client.has_blob(ref_of(server), Digest.of(b"x"), push=True, call=CALL)
            with pytest.raises(orlop.Unavailable, match=r"\*\*\*\*\*") as caught:
                client.upload_blob(ref_of(server), [b"x"], digest=Digest.of(b"x"), size=1, call=CALL)
    assert PASSWORD not in str(caught.value)


def challenged(server: MemoryRegistry, body: bytes, path: str = "/manifests/") -> None:
    """Have a registry ask for credentials, and then refuse with a text of its own."""
    challenge = (
        f'Bearer realm="{server.url}/token",service="x"' if server.auth == "bearer" else 'Basic realm="x"'
    )
    server.misbehave(
        Fault(path="/manifests/", status=401, headers={"WWW-Authenticate": challenge}, times=1),
        Fault(path=path, status=403, body=body),
    )


def complaint(text: str) -> bytes:
    return json.dumps({"errors": [{"code": "DENIED", "message": text}]}).encode()


@pytest.mark.hostile(25)
@pytest.mark.parametrize("kind", ["basic", "bearer"])
def test_a_registry_that_repeats_what_it_was_told_is_not_repeated(auth: Path, kind: str) -> None:
    strange = 'a"b\\c/\u00e9 d'
    for password in (PASSWORD, strange):
        secret = base64.b64encode(f"user:{password}".encode()).decode()
        for path in ("/manifests/", "/token") if kind == "bearer" else ("/manifests/",):
            with MemoryRegistry(
                auth="bearer" if kind == "bearer" else "basic", users={"user": password}
            ) as server:
                auth.write_text(json.dumps({"auths": {server.host: {"auth": secret}}}))
                challenged(server, complaint(f"no: {password} {secret} Basic {secret}"), path)
                with (
                    client_of(auth) as client,
                    pytest.raises((orlop.PermissionDenied, orlop.Unauthenticated)) as caught,
                ):
                    client.resolve(ref_of(server), call=CALL)
            said = f"{caught.value!r} {caught.value} {caught.value.details}"
            assert "403" in said
            assert "no: *****" in said
            assert password not in said
            assert secret not in said


@pytest.mark.hostile(25)
def test_a_bearer_token_that_is_repeated_is_not_repeated(auth: Path) -> None:
    with MemoryRegistry(auth="bearer") as server:
        token = "t0ken-of-a-registry"
        auth.write_text(json.dumps({"auths": {server.host: {"registrytoken": token}}}))
        challenged(server, complaint(f"I was told {token}"))
        with client_of(auth) as client, pytest.raises(orlop.PermissionDenied, match="I was told") as caught:
            client.resolve(ref_of(server), call=CALL)
        assert token not in f"{caught.value!r} {caught.value}"


@pytest.mark.hostile(25)
@pytest.mark.parametrize("form", ["http://user:{}/x@host/", "http://{}:x@[host", "http://user:x{}@host:y/"])
def test_a_url_that_is_none_is_not_told(form: str) -> None:
    url = form.format(PASSWORD)
    with registry("bearer") as server, client_of(None) as client:
        server.realm = url
        server.misbehave(Fault(path="/blobs/", status=307, headers={"Location": url}))
        for send in (
            lambda: client.resolve(ref_of(server), call=CALL),
            lambda: client.open_blob(ref_of(server), Digest.of(b"x"), call=CALL),
            lambda: Proxies(ProxySettings(http=url)),
        ):
            with pytest.raises(orlop.Error) as caught:
                send()
            assert PASSWORD not in "".join(traceback.format_exception(caught.value))


@pytest.mark.hostile(25)
@pytest.mark.parametrize("answers", [True, False])
def test_the_password_of_a_proxy_is_told_to_nobody(caplog: pytest.LogCaptureFixture, answers: bool) -> None:
    with MemoryRegistry() as proxy, caplog.at_level("DEBUG"):
        proxy.misbehave(
            Fault(status=407, body=complaint(f"not {PASSWORD} {BASIC}, {PROXY}"), drop=not answers)
        )
        url = f"http://user:{quote(PASSWORD + SPECIAL, safe='')}@{proxy.host}"
        about = Settings(
            retries=0,
            timeout=30.0,
            proxy=ProxySettings(https=url, http=url),
            insecure_registries=("plain.invalid",),
        )
        with contextlib.closing(Registry(about, CredentialSources())) as client:
            traces = []
            for name in ("plain.invalid/a:1", "secure.invalid/a:1"):
                with pytest.raises(orlop.Error) as caught:
                    client.resolve(Reference.parse(name), call=CALL)
                traces += [*traceback.format_exception(caught.value), repr(caught.value.details)]
        assert proxy.connections >= 2
        assert any(PROXY in seen.headers["proxy-authorization"] for seen in proxy.requests)
    for text in (PASSWORD, BASIC, PROXY):
        assert text not in "".join(traces) + repr(about) + caplog.text


HELPER = '#!/bin/sh\nread -r server\nprintf \'{"Username":"user","Secret":"%s"}\' "$(cat SECRET)"\n'


@pytest.mark.root
@pytest.mark.hostile(25)
@pytest.mark.parametrize("kind", ["helper", "call"])
def test_nothing_that_a_failing_pull_writes_has_the_password(
    store_dirs: StoreDirs, tmp_path: Path, kind: str
) -> None:
    (tmp_path / "secret").write_text(PASSWORD)
    helper = tmp_path / "docker-credential-tells"
    helper.write_text(HELPER.replace("SECRET", str(tmp_path / "secret")))
    helper.chmod(0o755)
    with registry("bearer" if kind == "helper" else "basic") as server:
        auths = {"auths": {server.host: {"auth": BASIC}}}
        file = tmp_path / "config.json"
        file.write_text(json.dumps({"credsStore": "tells"} if kind == "helper" else auths))
        environment = {
            **os.environ,
            "REGISTRY_AUTH_FILE": str(file),
            "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}",
        }
        challenged(server, complaint(f"I was told {PASSWORD} and {BASIC}"))
        where = [f"--root={store_dirs.root}", f"--run={store_dirs.run}"]
        if kind == "call":
            command = [
                sys.executable,
                "-c",
                _ONE_CALL,
                *where,
                f"{server.host}/a/b:1",
                str(tmp_path / "secret"),
            ]
        else:
            command = [sys.executable, "-m", "orlop", *where, "--debug", "pull", f"{server.host}/a/b:1"]
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=240, check=False
        )
    assert done.returncode != 0
    assert "403" in done.stderr, done.stderr  # the password was right, and is what is complained of
    assert any("authorization" in seen.headers for seen in server.requests)
    for text in (PASSWORD, BASIC):
        assert text not in done.stdout + done.stderr
    for text in (PASSWORD, BASIC):
        found = subprocess.run(
            ["grep", "-rlsF", text, store_dirs.root, store_dirs.run],
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert found.stdout == ""


# A pull with credentials of its own; where the root is and where the password comes from are arguments.
_ONE_CALL = """
import logging, sys
import orlop
logging.basicConfig(level=logging.DEBUG)
root, run, name, secret = sys.argv[1:]
with orlop.open(root.partition("=")[2], run.partition("=")[2], settings=orlop.Settings(durable=False)) as store:
    store.pull(name, auth=orlop.Auth(username="user", password=open(secret).read()))
"""
