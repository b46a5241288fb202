"""Registries that are made to hurt, through a pull into a store: HOSTILE.md 21 to 25 and 38.

What the client does with each answer, in detail, is in test_registry_client.py.
No test here asserts a time: a wait that has no end ends with pytest's own timeout.
"""

from __future__ import annotations

import base64
import json
import logging
import random
import subprocess
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

import orlop
from conftest import StoreDirs
from orlop.observe import Call, NullObserver
from orlop.testing.registry import Fault, MemoryRegistry
from support import images
from support.layers import Layer
from support.rawserver import Client, RawServer
from support.victims import Victim, victim_at

pytestmark = pytest.mark.root

METADATA = "169.254.169.254"
SECRET = "s3cret-signature"
PASSWORD = "hunter2-of-the-user"


class Words(NullObserver):
    """All that an observer is told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def progress(self, event: object) -> None:
        self.told.append(repr(event))

    def warning(self, text: str) -> None:
        self.told.append(text)


@pytest.fixture
def victim(store_dirs: StoreDirs, auth: Path) -> Iterator[Victim]:
    with victim_at(
        store_dirs.root, store_dirs.run, store_dirs.work, retries=1, auth_files=(str(auth),)
    ) as one:
        yield one


@pytest.fixture
def auth(workdir: Path) -> Path:
    """A file for the user's credentials; empty so far."""
    path = workdir / "auth.json"
    path.write_text("{}")
    return path


def log_in(auth: Path, *hosts: str) -> None:
    """Keep the user's name and password for some hosts."""
    secret = base64.b64encode(f"user:{PASSWORD}".encode()).decode()
    auth.write_text(json.dumps({"auths": {host: {"auth": secret} for host in hosts}}))


def image(size: int = 20_000, seed: int = 1) -> images.Image:
    data = random.Random(seed).randbytes(size)
    return images.make_image([Layer().file("file", data).tar()])


def layer_of(made: images.Image) -> str:
    return str(json.loads(made.document)["layers"][0]["digest"])


def stock(registry: MemoryRegistry, made: images.Image, repository: str = "app") -> str:
    """Put an image into a registry; its name."""
    for data in made.blobs.values():
        registry.add_blob(repository, data)
    registry.add_manifest(repository, "v1", made.document, made.media_type)
    return f"{registry.host}/{repository}:v1"


def nobody_was_told(*registries: MemoryRegistry) -> None:
    for registry in registries:
        for seen in registry.requests:
            assert "authorization" not in seen.headers
            assert PASSWORD not in seen.path


# ---------------------------------------------------------------------- 21


REALMS = [
    f"http://{METADATA}/latest/api/token",
    f"https://{METADATA}/latest/api/token",
    "http://[fd00:ec2::254]/token",
    "http://0.0.0.0/token",
    "ftp://example.com/token",
    "file:///etc/shadow",
    "/token",
    "//",
    " ",
]


@pytest.mark.hostile(21)
def test_a_realm_where_no_token_server_is_gets_no_credentials(victim: Victim, auth: Path) -> None:
    made = image()
    for realm in REALMS:
        with MemoryRegistry(auth="bearer", users={"user": PASSWORD}) as server:
            server.realm = realm
            name = stock(server, made)
            log_in(auth, server.host, METADATA, "example.com")
            error = victim.refuses(
                partial(victim.store.pull, name), (orlop.Unauthenticated, orlop.Unavailable)
            )
            assert PASSWORD not in str(error)
            nobody_was_told(server)


@pytest.mark.hostile(21)
def test_a_realm_on_another_host_gets_nothing_that_is_kept_for_that_host(victim: Victim, auth: Path) -> None:
    with MemoryRegistry(auth="bearer") as server, MemoryRegistry(auth="basic") as other:
        server.realm = f"{other.url}/v2/"
        name = stock(server, image())
        log_in(auth, other.host)  # nothing for the registry itself
        victim.refuses(partial(victim.store.pull, name), (orlop.Unauthenticated, orlop.Unavailable))
        nobody_was_told(server, other)


# ---------------------------------------------------------------------- 22


@pytest.mark.hostile(22)
def test_a_registry_that_sends_us_to_an_internal_address_is_not_followed(victim: Victim) -> None:
    made = image()
    hosts = (METADATA, "0.0.0.0", "[::ffff:169.254.169.254]", "[fe80::1]", "100.100.100.200")
    for host in hosts:
        for path in ("/manifests/v1", "/blobs/"):
            with MemoryRegistry() as server:
                name = stock(server, made)
                location = f"http://{host}/latest/meta-data?x={SECRET}"
                server.misbehave(Fault(path=path, status=307, headers={"Location": location}))
                error = victim.refuses(
                    partial(victim.store.pull, name), orlop.Unavailable, "internal address"
                )
                assert SECRET not in str(error)


# ---------------------------------------------------------------------- 23 and 24


@pytest.mark.hostile(23)
def test_an_upload_that_is_sent_elsewhere_takes_no_credentials_along(victim: Victim, auth: Path) -> None:
    with (
        MemoryRegistry(auth="basic", users={"user": PASSWORD}) as server,
        MemoryRegistry(auth="basic", users={"user": PASSWORD}) as thief,
    ):
        log_in(auth, server.host, thief.host)
        server.upload_location = thief.url
        with victim.store.prepare(victim.name, victim.work / "own", mount=True) as root:
            (victim.work / "own/new").touch()
            root.commit("localhost/own:1")
        victim.settle()
        push = partial(victim.store.push, "localhost/own:1", f"{server.host}/mine:1")
        victim.refuses(push, orlop.Unauthenticated)
        assert thief.requests
        nobody_was_told(thief)


@pytest.mark.hostile(24)
def test_a_redirect_elsewhere_takes_no_credentials_along(victim: Victim, auth: Path) -> None:
    made = image(seed=2)
    with (
        MemoryRegistry(auth="basic", users={"user": PASSWORD}) as server,
        MemoryRegistry() as cdn,
    ):
        name = stock(server, made)
        stock(cdn, made)
        log_in(auth, server.host, cdn.host)
        for path in (layer_of(made), "/manifests/v1", images.digest_of(made.config)):
            location = {"Location": f"{cdn.url}/v2/app/{'manifests/v1' if 'v1' in path else 'blobs/' + path}"}
            server.misbehave(Fault(path=path, status=307, headers=location))
        assert victim.store.pull(name).id == made.id  # it is another port of the same machine
        assert len(cdn.seen("GET")) == 3
        nobody_was_told(cdn)
        victim.settle()


@pytest.mark.hostile(24)
def test_a_redirect_to_what_is_not_http_is_refused(victim: Victim) -> None:
    made = image(seed=3)
    for location in (
        "file:///etc/passwd",
        "ftp://example.com/x",
        "gopher:x",
        "http://",
        "http://[::1",
        "\\\\x",
    ):
        with MemoryRegistry() as server:
            name = stock(server, made)
            server.misbehave(Fault(path="/blobs/", status=302, headers={"Location": location}))
            victim.refuses(partial(victim.store.pull, name), (orlop.Unavailable, orlop.NotFound))


# ---------------------------------------------------------------------- 25


@pytest.mark.hostile(25)
def test_no_secret_of_a_url_or_of_a_user_is_written_anywhere(
    victim: Victim, auth: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made, words = image(seed=4), Words()
    quoted = f"see https://user:{SECRET}@cdn.example/x?sig={SECRET} and token={SECRET} or Bearer {SECRET}"
    with (
        MemoryRegistry(auth="bearer", users={"user": PASSWORD}) as server,
        MemoryRegistry() as cdn,
        caplog.at_level(logging.DEBUG),
    ):
        name = stock(server, made)
        log_in(auth, server.host)
        answers = (
            Fault(status=403, body=json.dumps({"errors": [{"code": "DENIED", "message": quoted}]}).encode()),
            Fault(status=404, body=b"<html>" + SECRET.encode()),
            Fault(status=500, headers={"Retry-After": "0"}, body=json.dumps({"message": quoted}).encode()),
            Fault(drop=True),
            Fault(cut_after=10),
            Fault(status=302, headers={"Location": f"/again?sig={SECRET}"}),
            Fault(status=302, headers={"Location": f"http://user:{SECRET}@{METADATA}/?sig={SECRET}"}),
        )
        location = {"Location": f"http://user:{SECRET}@{cdn.host}/v2/app/blobs/{layer_of(made)}?sig={SECRET}"}
        server.misbehave(Fault(path="/blobs/" + layer_of(made), status=307, headers=location))
        for answer in answers:
            cdn.behave()
            cdn.misbehave(answer)
            call = Call(observer=words)
            error = victim.refuses(partial(victim.store.pull, name, call=call), orlop.Error, resumable=True)
            words.told += [str(error), repr(error), repr(error.details), error.hint]
            cause: BaseException | None = error
            while cause is not None:
                words.told.append(str(cause))
                cause = cause.__cause__
        cdn.behave()
        stock(cdn, made)
        victim.store.pull(name, call=Call(observer=words))
        assert cdn.seen("GET", SECRET)  # it went over the wire, where it belongs
    for text in (*words.told, caplog.text):
        assert SECRET not in text
        assert PASSWORD not in text
        assert base64.b64encode(f"user:{PASSWORD}".encode()).decode() not in text
    for text in (SECRET, PASSWORD):  # by another process: SQLite's files are not to be opened beside it
        found = subprocess.run(
            ["grep", "-rlsF", text, victim.root], capture_output=True, text=True, check=False, timeout=120
        )
        assert found.stdout == ""
    victim.settle()


@pytest.mark.hostile(25)
def test_headers_that_cannot_be_read_are_not_quoted(victim: Victim, caplog: pytest.LogCaptureFixture) -> None:
    def answer(path: str, client: Client) -> None:
        if path == "/v2/":
            client.ok(b"{}")
            return
        client.send(f"HTTP/1.1 200 OK\r\nA: b\r\n broken {SECRET}\r\n{SECRET}\r\nC: d\r\n\r\n{{}}".encode())

    with RawServer(answer) as server, caplog.at_level(logging.DEBUG):
        error = victim.refuses(partial(victim.store.pull, f"{server.host}/app:v1"), orlop.Error)
    assert SECRET not in str(error) + caplog.text


# ---------------------------------------------------------------------- 38


@pytest.mark.hostile(38)
def test_a_download_that_is_cut_again_and_again_arrives_whole(store_dirs: StoreDirs) -> None:
    made = image(200_000, seed=5)
    with victim_at(store_dirs.root, store_dirs.run, store_dirs.work, retries=2) as victim:
        name = victim.publish("cut", made)
        blob = layer_of(made)
        for size in (17_000, 60_000, 20_000):
            victim.registry.misbehave(Fault(path=blob, cut_after=size, times=1))
        assert victim.store.pull(name).id == made.id
        ranges = [seen.headers.get("range") for seen in victim.registry.seen("GET", blob)]
        assert ranges == [None, "bytes=17000-", "bytes=77000-", "bytes=97000-"]
        victim.settle()


LIES = [
    {"ignore_range": True},
    {"content_range": "bytes 0-9/10"},
    {"content_range": "bytes 5-1/0"},
    {"content_range": "bytes 999999999999-9999999999999/99999999999999"},
    {"content_range": "nonsense"},
    {"no_length": True},
]


@pytest.mark.hostile(38)
def test_a_download_that_goes_on_at_the_wrong_place_arrives_whole(victim: Victim) -> None:
    for number, lie in enumerate(LIES):
        made = image(200_000, seed=20 + number)
        name, blob = victim.publish("ranges", made), layer_of(made)
        victim.registry.misbehave(Fault(path=blob, cut_after=50_000, times=1), Fault(path=blob, **lie))
        assert victim.store.pull(name).id == made.id
    victim.settle()


@pytest.mark.hostile(38)
def test_a_range_of_other_bytes_is_data_loss_and_nothing_of_it_stays(store_dirs: StoreDirs) -> None:
    made = image(200_000, seed=7)
    with victim_at(store_dirs.root, store_dirs.run, store_dirs.work, retries=2) as victim:
        name, blob = victim.publish("other", made), layer_of(made)
        victim.registry.misbehave(Fault(path=blob, cut_after=50_000, times=1), Fault(path=blob, corrupt=True))
        victim.refuses(partial(victim.store.pull, name), (orlop.DataLoss, orlop.InvalidArgument))
        victim.registry.behave()
        assert victim.store.pull(name).id == made.id
        victim.settle()


@pytest.mark.hostile(38)
def test_a_registry_that_stalls_trickles_or_cuts_short_is_given_up(victim: Victim) -> None:
    made = image(seed=8)
    name, blob = victim.publish("slow", made), layer_of(made)
    with victim.impatient() as store:
        for where in ("/slow/manifests/", images.digest_of(made.config), blob):
            for fault in (
                Fault(path=where, hold_after=0),
                Fault(path=where, hold_after=100),
                Fault(path=where, trickle=0.02),
                Fault(path=where, cut_after=100),
                Fault(path=where, drop=True),
            ):
                victim.registry.behave()
                victim.registry.misbehave(fault)
                victim.refuses(partial(store.pull, name), orlop.Unavailable, resumable=True)
                fault.release.set()
    victim.registry.behave()
    assert victim.store.pull(name).id == made.id  # what came is gone on with
    victim.settle()


@pytest.mark.hostile(38)
def test_a_registry_that_gives_a_few_bytes_to_each_connection_is_given_up(victim: Victim) -> None:
    made = image(400_000, seed=9)
    name, blob = victim.publish("crumbs", made), layer_of(made)
    victim.registry.misbehave(Fault(path=blob, cut_after=10))
    victim.refuses(partial(victim.store.pull, name), orlop.Unavailable, resumable=True)
    assert len(victim.registry.seen("GET", blob)) < 20


def trickling_head(client: Client) -> None:
    client.send(b"HTTP/1.1 200 OK\r\n")
    client.trickle(b"a", 0.02)


def endless_continue(client: Client) -> None:
    client.flood(b"HTTP/1.1 100 Continue\r\nA: b\r\n\r\n" * 100)


def endless_head(client: Client) -> None:
    client.send(b"HTTP/1.1 200 OK\r\n")
    client.flood(b"A: " + b"b" * 1000 + b"\r\n")


def endless_chunks(client: Client) -> None:
    client.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    client.flood(b"10000\r\n" + bytes(65_536) + b"\r\n")


def no_answer(client: Client) -> None:
    client.trickle(b"", 0.1)


@pytest.mark.hostile(38)
def test_an_answer_whose_head_or_body_never_ends_is_given_up(victim: Victim) -> None:
    for how in (trickling_head, endless_continue, endless_head, endless_chunks, no_answer):

        def answer(path: str, client: Client, how: Callable[[Client], None] = how) -> None:
            if path == "/v2/":
                client.ok(b"{}")
            else:
                how(client)

        with victim.impatient() as store, RawServer(answer) as server:
            call = partial(store.pull, f"{server.host}/app:v1")
            victim.refuses(call, (orlop.Unavailable, orlop.ResourceExhausted))
            assert server.sent < 64 << 20


@pytest.mark.hostile(38)
def test_a_call_that_is_cancelled_leaves_a_head_that_never_ends(store_dirs: StoreDirs) -> None:
    cancel = orlop.CancelToken()

    def answer(path: str, client: Client) -> None:
        if path == "/v2/":
            client.ok(b"{}")
            return
        client.send(b"HTTP/1.1 200 OK\r\nA")
        cancel.cancel()
        client.trickle(b"a", 0.02)

    # Were it not for the token, this would take the timeout, which is longer than pytest's own.
    with (
        victim_at(store_dirs.root, store_dirs.run, store_dirs.work, timeout=3_000.0) as victim,
        RawServer(answer) as server,
    ):
        call = partial(victim.store.pull, f"{server.host}/app:v1", call=Call(cancel=cancel))
        victim.refuses(call, orlop.Cancelled)


@pytest.mark.hostile(38)
def test_too_many_requests_are_waited_for_where_that_is_said_or_short(victim: Victim) -> None:
    made = image(seed=10)
    name = victim.publish("busy", made)
    for after in ({}, {"Retry-After": "0"}, {"Retry-After": "soon"}, {"Retry-After": "-5"}):
        victim.registry.misbehave(Fault(path="/busy/manifests/", status=429, headers=after, times=1))
        assert victim.store.pull(name).id == made.id
    victim.settle()
    for after in ({}, {"Retry-After": "0"}, {"Retry-After": "99999999999999999999"}):
        victim.registry.behave()
        victim.registry.misbehave(Fault(path="/busy/manifests/", status=429, headers=after))
        victim.refuses(partial(victim.store.pull, name), orlop.Unavailable, "429")


@pytest.mark.hostile(38)
def test_redirects_in_a_circle_end_wherever_they_begin(victim: Victim) -> None:
    made = image(seed=11)
    for path in ("/round/manifests/", "/round/blobs/"):
        name = victim.publish("round", made)
        victim.registry.behave()
        victim.registry.misbehave(Fault(path="/round/", method="HEAD"))
        there, back = f"{path}there", f"{path}back"
        victim.registry.misbehave(
            Fault(path="back", status=302, headers={"Location": f"/v2{there}"}),
            Fault(path=path, status=307, headers={"Location": f"/v2{back}"}),
        )
        before = len(victim.registry.requests)
        victim.refuses(partial(victim.store.pull, name), orlop.Unavailable, "redirects more than")
        assert len(victim.registry.requests) - before < 100
