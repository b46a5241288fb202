"""The registry client against a registry in memory that misbehaves (HOSTILE.md 15 to 25 and 38)."""

from __future__ import annotations

import base64
import json
import logging
import random
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from orlop.config import Limits, Settings
from orlop.errors import (
    Cancelled,
    DataLoss,
    DeadlineExceeded,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    Unauthenticated,
    Unavailable,
)
from orlop.observe import Call, CancelToken
from orlop.registry.access.credentials import CredentialSources
from orlop.registry.client import Registry
from orlop.registry.net.addresses import Zone
from orlop.registry.net.retry import Backoff
from orlop.registry.net.wire import Wire
from orlop.spec.digest import Digest
from orlop.spec.documents import OCI_MANIFEST, Descriptor
from orlop.spec.reference import Reference
from orlop.testing.registry import Fault, MemoryRegistry

CALL = Call()
DATA = random.Random(1).randbytes(3_000_000)
MANIFEST = json.dumps({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "layers": []}).encode()
QUICK = Backoff(base=0.001)


def connect(*, sources=None, wire=None, **settings):
    settings = {"timeout": 5.0, "retries": 2, **settings}
    return Registry(Settings(**settings), sources or CredentialSources(), wire=wire, backoff=QUICK)


@pytest.fixture(autouse=True)
def patient(monkeypatch):
    """However slow the machine, a session that is given up is cancelled before anybody looks."""
    for name in ("CANCEL_SECONDS", "HURRIED_SECONDS"):
        monkeypatch.setattr(f"orlop.registry.blobs.sessions.{name}", 120.0)


@pytest.fixture
def server():
    with MemoryRegistry() as registry:
        registry.add_manifest("a/b", "1", MANIFEST, OCI_MANIFEST)
        registry.add_blob("a/b", DATA)
        yield registry


@pytest.fixture
def client():
    registry = connect()
    yield registry
    registry.close()


def ref(server, text="a/b:1"):
    return Reference.parse(f"{server.host}/{text}")


def read(stream):
    with stream:
        return b"".join(stream)


def drain(stream, into):
    """Read a stream to its end; the words of the error that ended it, or nothing."""
    try:
        for chunk in stream:
            into += chunk
    except Unavailable as exc:
        return str(exc)
    return ""


def auth_file(tmp_path, hosts):
    """Credential sources with a user name and password for each host."""
    auths = {host: {"auth": base64.b64encode(text.encode()).decode()} for host, text in hosts.items()}
    path = tmp_path / "auth.json"
    path.write_text(json.dumps({"auths": auths}))
    return CredentialSources(files=(str(path),))


# Reading


@pytest.mark.distribution("pull.manifest.get", "pull.manifest.accept")
def test_an_image_is_resolved_by_tag_and_by_digest(server, client):
    found = client.resolve(ref(server), call=CALL)
    digest = Digest.of(MANIFEST)
    assert found.data == MANIFEST
    assert found.descriptor == Descriptor(media_type=OCI_MANIFEST, digest=digest, size=len(MANIFEST))
    assert client.resolve(ref(server, f"a/b@{digest}"), call=CALL) == found
    assert client.manifest(ref(server), found.descriptor, call=CALL) == MANIFEST
    assert OCI_MANIFEST in server.seen("GET", "/manifests/1")[0].headers["accept"]


@pytest.mark.distribution("pull.manifest.not-found", "errors.codes")
def test_an_unknown_image_is_named_with_the_registrys_words(server, client):
    with pytest.raises(NotFound) as caught:
        client.resolve(ref(server, "a/b:2"), call=CALL)
    text = str(caught.value)
    assert f"{server.host}/a/b:2" in text
    assert "manifest unknown" in text


def test_a_host_that_is_down_is_named_with_its_port(client):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        host = f"127.0.0.1:{unused.getsockname()[1]}"
        with pytest.raises(Unavailable, match=f"cannot connect to {host}: Connection refused"):
            client.resolve(Reference.parse(f"{host}/a:1"), call=CALL)


def test_a_host_without_an_address_is_not_tried_again(client):
    with pytest.raises(Unavailable, match=r"cannot resolve nowhere\.invalid$"):
        client.resolve(Reference.parse("nowhere.invalid/a:1"), call=CALL)


def test_an_empty_body_leaves_its_connection_fit_for_more(server):
    empty = server.add_blob("a/b", b"")
    impatient = connect(retries=0)
    try:
        with impatient.open_blob(ref(server), empty, call=CALL) as stream:
            assert list(stream) == []
        # the answer is still referred to, as by the traceback of an error
        assert impatient.resolve(ref(server), call=CALL).data == MANIFEST
        assert stream.size == 0
    finally:
        impatient.close()


@pytest.mark.distribution("pull.manifest.digest", "pull.blob.digest")
@pytest.mark.hostile(19)
def test_wrong_bytes_for_a_digest_are_data_loss(server, client):
    server.misbehave(Fault(method="GET", path="/manifests/sha256|/blobs/", corrupt=True))
    digest = Digest.of(MANIFEST)
    with pytest.raises(DataLoss):
        client.resolve(ref(server, f"a/b@{digest}"), call=CALL)
    descriptor = Descriptor(digest=digest, size=len(MANIFEST))
    with pytest.raises(DataLoss):
        client.manifest(ref(server), descriptor, call=CALL)
    with pytest.raises(DataLoss, match="other bytes"):
        client.blob(ref(server), Descriptor(digest=Digest.of(DATA), size=len(DATA)), call=CALL)


@pytest.mark.distribution("pull.manifest.digest")
@pytest.mark.hostile(19)
def test_another_document_under_a_digest_is_data_loss(server, client):
    # The registry is at one with itself; it is the question that it did not answer.
    digest = Digest.of(b"asked for")
    server.manifests["a/b", digest] = (OCI_MANIFEST, MANIFEST)
    with pytest.raises(DataLoss, match="sent a document with digest"):
        client.resolve(ref(server, f"a/b:1@{digest}"), call=CALL)
    with pytest.raises(DataLoss):
        client.manifest(ref(server), Descriptor(digest=digest, size=len(MANIFEST)), call=CALL)


@pytest.mark.distribution("pull.manifest.docker-content-digest")
@pytest.mark.hostile(18)
@pytest.mark.parametrize("said", ["sha256:" + "0" * 64, "sha256:../../x", "md5:0", "nothing"])
def test_a_registry_that_contradicts_itself_is_data_loss(server, client, said):
    server.misbehave(Fault(path="/manifests/1", headers={"Docker-Content-Digest": said}))
    with pytest.raises(DataLoss, match="the registry says"):
        client.resolve(ref(server), call=CALL)


@pytest.mark.hostile(15)
@pytest.mark.parametrize("no_length", [False, True])
def test_a_manifest_over_the_limit_is_not_read_to_its_end(server, no_length):
    server.add_manifest("a/b", "big", b" " * 9_000_000, OCI_MANIFEST)
    server.misbehave(Fault(path="/manifests/big", no_length=no_length))
    client = connect(limits=Limits(manifest_size=100_000))
    with pytest.raises(ResourceExhausted, match="manifest_size"):
        client.resolve(ref(server, "a/b:big"), call=CALL)
    client.close()


@pytest.mark.hostile(16)
@pytest.mark.parametrize("size", [0, 10, len(DATA) - 1, len(DATA) + 1])
def test_a_descriptor_that_lies_about_a_blobs_size_is_data_loss(server, client, size):
    with pytest.raises(DataLoss, match="descriptor says"):
        client.blob(ref(server), Descriptor(digest=Digest.of(DATA), size=size), call=CALL)


@pytest.mark.hostile(15)
def test_a_config_over_the_limit_is_not_asked_for(server, client):
    with pytest.raises(ResourceExhausted, match="config_size"):
        client.blob(ref(server), Descriptor(digest=Digest.of(DATA), size=1 << 40), call=CALL)
    assert not server.seen("GET", "/blobs/")


@pytest.mark.distribution("head.manifest", "head.blob", "pull.blob.not-found")
def test_what_is_there_is_seen_and_what_is_not_is_not(server, client):
    digest = Digest.of(DATA)
    assert client.has_blob(ref(server), digest, call=CALL) == len(DATA)
    assert client.has_blob(ref(server), Digest.of(b"x"), call=CALL) is None
    assert client.has_manifest(ref(server), call=CALL) == Digest.of(MANIFEST)
    assert client.has_manifest(ref(server, "a/b:2"), call=CALL) is None


# Streams and ranges


@pytest.mark.distribution("pull.blob.get")
def test_a_blob_is_read_in_large_chunks(server, client):
    with client.open_blob(ref(server), Digest.of(DATA), call=CALL) as stream:
        assert (stream.offset, stream.size) == (0, len(DATA))
        chunks = list(stream)
    assert b"".join(chunks) == DATA
    assert max(map(len, chunks)) <= (1 << 20) + (256 << 10)


@pytest.mark.distribution("pull.blob.range")
@pytest.mark.parametrize("offset", [1, 1_000_000, len(DATA) - 1, len(DATA)])
def test_a_download_goes_on_where_the_last_one_ended(server, client, offset):
    stream = client.open_blob(ref(server), Digest.of(DATA), offset=offset, call=CALL)
    assert (stream.offset, stream.size) == (offset, len(DATA))
    assert read(stream) == DATA[offset:]


@pytest.mark.distribution("pull.blob.no-range", "api.partial")
@pytest.mark.hostile(38)
@pytest.mark.parametrize(
    "fault",
    [
        Fault(method="GET", path="/blobs/", ignore_range=True),
        Fault(method="GET", path="/blobs/", content_range="bytes 0-9/10", times=1),
        Fault(method="GET", path="/blobs/", content_range="nonsense", times=1),
        Fault(method="GET", path="/blobs/", status=416, times=1),
    ],
    ids=["200 for 206", "wrong range", "no range", "416"],
)
def test_a_range_that_lies_gives_the_whole_from_its_start(server, client, fault):
    server.misbehave(fault)
    stream = client.open_blob(ref(server), Digest.of(DATA), offset=1000, call=CALL)
    assert (stream.offset, stream.size) == (0, len(DATA))
    assert read(stream) == DATA


@pytest.mark.hostile(38)
def test_a_stale_offset_behind_the_end_gives_the_whole(server, client):
    stream = client.open_blob(ref(server), Digest.of(DATA), offset=len(DATA) + 1, call=CALL)
    assert stream.offset == 0
    assert read(stream) == DATA


@pytest.mark.hostile(38)
def test_twenty_cuts_cost_no_byte_twice(server, client):
    cuts = random.Random(2)
    got, said = bytearray(), []
    while len(got) < len(DATA):
        server.behave()
        if len(said) < 20:
            server.misbehave(Fault(path="/blobs/", cut_after=cuts.randrange(1, 150_000)))
        with client.open_blob(ref(server), Digest.of(DATA), offset=len(got), call=CALL) as stream:
            assert stream.offset == len(got)
            said.append(drain(stream, got))
    assert got == DATA
    assert len(said) == 21
    assert all("cut the connection" in words for words in said[:20])
    assert said[20] == ""


@pytest.mark.hostile(38)
def test_a_body_without_a_length_is_read_to_its_end(server, client):
    server.misbehave(Fault(path="/blobs/", no_length=True))
    stream = client.open_blob(ref(server), Digest.of(DATA), call=CALL)
    assert stream.size is None
    assert read(stream) == DATA


@pytest.mark.hostile(38)
@pytest.mark.parametrize("sent", [1_000, 300_000])
def test_a_stalled_download_ends_after_the_timeout_and_keeps_what_came(server, sent):
    server.misbehave(Fault(path="/blobs/", hold_after=sent))
    client = connect(timeout=0.3)
    got = bytearray()
    with client.open_blob(ref(server), Digest.of(DATA), call=CALL) as stream:
        assert "silent" in drain(stream, got)
    assert got == DATA[:sent]
    client.close()


@pytest.mark.hostile(38)
def test_a_trickle_does_not_count_as_life(server):
    server.misbehave(Fault(path="/blobs/|/manifests/", trickle=0.02))
    client = connect(timeout=0.2, retries=0)
    with pytest.raises(Unavailable, match="trickles"):
        read(client.open_blob(ref(server), Digest.of(DATA), call=CALL))
    with pytest.raises(Unavailable, match="trickles"):
        client.resolve(ref(server), call=CALL)
    client.close()


def test_cancelling_ends_a_running_download(server, client):
    cancel = CancelToken()
    got = bytearray()
    with client.open_blob(ref(server), Digest.of(DATA), call=Call(cancel=cancel)) as stream:
        chunks = iter(stream)
        got += next(chunks)
        cancel.cancel()
        with pytest.raises(Cancelled):
            got += b"".join(chunks)
    assert DATA.startswith(got)


def cancel_soon(fault, server, part):
    """A cancel token that is set once the server has seen a request for ``part``."""
    cancel = CancelToken()

    def wait():
        while not server.seen("", part):
            fault.release.wait(0.01)
        cancel.cancel()

    threading.Thread(target=wait, daemon=True).start()
    return cancel


def test_cancelling_ends_a_stalled_download_at_once(server, client):
    fault = Fault(path="/blobs/", hold_after=300_000)
    server.misbehave(fault)
    call = Call(cancel=cancel_soon(fault, server, "/blobs/"))
    start = time.monotonic()
    with pytest.raises(Cancelled), client.open_blob(ref(server), Digest.of(DATA), call=call) as stream:
        list(stream)
    assert time.monotonic() - start < 2


def test_cancelling_ends_the_wait_for_an_answer_at_once():
    with socket.create_server(("127.0.0.1", 0)) as mute:
        # It takes connections and says nothing.  The TLS greeting, a tenth of the timeout here,
        # does not look at the call; what follows does.
        cancel = CancelToken()
        threading.Timer(0.2, cancel.cancel).start()
        client = connect(timeout=20.0)
        host = f"127.0.0.1:{mute.getsockname()[1]}"
        start = time.monotonic()
        with pytest.raises(Cancelled):
            client.resolve(Reference.parse(f"{host}/a:1"), call=Call(cancel=cancel))
        assert time.monotonic() - start < 10
        client.close()


def test_a_deadline_ends_a_stalled_download(server, client):
    server.misbehave(Fault(path="/blobs/", hold_after=300_000))
    call = Call(deadline=time.monotonic() + 0.3)
    with pytest.raises(DeadlineExceeded), client.open_blob(ref(server), Digest.of(DATA), call=call) as stream:
        list(stream)


# Troubles


@pytest.mark.hostile(38)
@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_a_passing_trouble_is_sat_out(server, client, status):
    server.misbehave(Fault(path="/manifests/", status=status, headers={"Retry-After": "0"}, times=2))
    assert client.resolve(ref(server), call=CALL).data == MANIFEST
    assert len(server.seen("GET", "/manifests/")) == 3


@pytest.mark.distribution("errors.too-many-requests", "errors.codes")
@pytest.mark.hostile(38)
def test_a_lasting_trouble_is_told_after_the_last_try(server, client):
    body = b'{"errors":[{"code":"TOOMANYREQUESTS","message":"rate limit reached"}]}'
    server.misbehave(Fault(path="/manifests/", status=429, body=body))
    with pytest.raises(Unavailable, match="429 Too Many Requests: rate limit reached"):
        client.resolve(ref(server), call=CALL)
    assert len(server.seen("GET", "/manifests/")) == 3


@pytest.mark.hostile(38)
def test_a_long_retry_after_is_told_and_not_waited_for(server, client):
    server.misbehave(Fault(path="/manifests/", status=429, headers={"Retry-After": "3600"}))
    with pytest.raises(Unavailable, match="3600"):
        client.resolve(ref(server), call=CALL)
    assert len(server.seen("GET", "/manifests/")) == 1


@pytest.mark.hostile(38)
def test_a_pause_between_tries_ends_with_the_call(server, client):
    server.misbehave(Fault(path="/manifests/", status=429, headers={"Retry-After": "60"}))
    with pytest.raises(DeadlineExceeded):
        client.resolve(ref(server), call=Call(deadline=time.monotonic() + 0.3))


@pytest.mark.hostile(38)
@pytest.mark.parametrize("fault", [{"drop": True}, {"cut_after": 10}], ids=["no answer", "half an answer"])
def test_a_cut_connection_is_tried_again(server, client, fault):
    server.misbehave(Fault(path="/manifests/", times=2, **fault))
    assert client.resolve(ref(server), call=CALL).data == MANIFEST
    server.behave()
    server.misbehave(Fault(path="/manifests/", **fault))
    with pytest.raises(Unavailable, match=r"cut the connection.*\(3 tries\)"):
        client.resolve(ref(server), call=CALL)


@pytest.mark.parametrize("status", [400, 403, 404, 501])
def test_a_refusal_is_not_asked_for_twice(server, client, status):
    server.misbehave(Fault(path="/manifests/", status=status))
    with pytest.raises((InvalidArgument, PermissionDenied, NotFound, Unavailable)):
        client.resolve(ref(server), call=CALL)
    assert len(server.seen("GET", "/manifests/")) == 1


def test_connections_are_used_again(server, client):
    for _ in range(5):
        client.resolve(ref(server), call=CALL)
        read(client.open_blob(ref(server), Digest.of(DATA), call=CALL))
    assert server.connections <= 2
    assert len([seen for seen in server.requests if seen.path == "/v2/"]) == 1


# Authentication


@pytest.mark.parametrize("auth", ["basic", "bearer"])
def test_credentials_are_asked_for_once_and_then_remembered(auth, tmp_path):
    with MemoryRegistry(auth=auth, users={"me": "pw"}) as server:
        server.add_manifest("a/b", "1", MANIFEST, OCI_MANIFEST)
        client = connect(sources=auth_file(tmp_path, {server.host: "me:pw"}))
        for _ in range(3):
            assert client.resolve(ref(server), call=CALL).data == MANIFEST
        assert len(server.seen("GET", "/manifests/")) == 4
        assert len(server.seen("", "/token")) == (auth == "bearer")
        client.ping(server.host, call=CALL)
        client.close()


@pytest.mark.distribution("errors.unauthorized")
@pytest.mark.parametrize("auth", ["basic", "bearer"])
@pytest.mark.parametrize(("text", "hint"), [(None, "log in"), ("me:wrong", "were refused")])
def test_missing_and_wrong_credentials_are_told_apart(auth, text, hint, tmp_path):
    with MemoryRegistry(auth=auth, users={"me": "pw"}) as server:
        client = connect(sources=auth_file(tmp_path, {server.host: text} if text else {}))
        with pytest.raises(Unauthenticated, match=hint) as caught:
            client.resolve(ref(server), call=CALL)
        assert "wrong" not in str(caught.value)
        client.close()


def test_an_anonymous_token_pulls_but_does_not_push():
    with MemoryRegistry(auth="bearer", anonymous=True) as server:
        server.add_manifest("a/b", "1", MANIFEST, OCI_MANIFEST)
        client = connect()
        assert client.resolve(ref(server), call=CALL).data == MANIFEST
        with pytest.raises(Unauthenticated, match="log in"):
            client.put_manifest(ref(server), MANIFEST, OCI_MANIFEST, call=CALL)
        client.close()


def test_an_identity_token_is_exchanged(tmp_path):
    with MemoryRegistry(auth="bearer") as server:
        server.refresh_tokens["refresh-me"] = "me"
        server.add_manifest("a/b", "1", MANIFEST, OCI_MANIFEST)
        path = tmp_path / "auth.json"
        path.write_text(json.dumps({"auths": {server.host: {"identitytoken": "refresh-me"}}}))
        client = connect(sources=CredentialSources(files=(str(path),)))
        assert client.resolve(ref(server), call=CALL).data == MANIFEST
        assert "refresh-me" not in server.seen("POST", "/token")[0].path
        client.close()


def test_a_token_that_the_registry_forgot_is_fetched_again():
    with MemoryRegistry(auth="bearer", anonymous=True) as server:
        server.add_manifest("a/b", "1", MANIFEST, OCI_MANIFEST)
        client = connect()
        client.resolve(ref(server), call=CALL)
        server.tokens.clear()
        assert client.resolve(ref(server), call=CALL).data == MANIFEST
        assert len(server.seen("GET", "/token")) == 2
        client.close()


def test_many_threads_share_one_token():
    with MemoryRegistry(auth="bearer", anonymous=True) as server:
        server.add_manifest("a/b", "1", MANIFEST, OCI_MANIFEST)
        client = connect()
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(lambda _: client.resolve(ref(server), call=CALL).data, range(24)))
        assert found == [MANIFEST] * 24
        assert len(server.seen("GET", "/token")) == 1
        client.close()


@pytest.mark.hostile(21)
def test_a_realm_on_another_host_gets_that_registrys_credentials_and_no_others(tmp_path):
    with MemoryRegistry(auth="bearer", users={"me": "pw"}) as server, MemoryRegistry() as realm:
        server.realm = f"{realm.url}/token"
        realm.users = {"me": "pw"}
        sources = auth_file(tmp_path, {server.host: "me:pw", realm.host: "other:secret"})
        client = connect(sources=sources)
        # The realm's tokens are its own, so the registry goes on to refuse.
        with pytest.raises(Unauthenticated):
            client.resolve(ref(server), call=CALL)
        (asked,) = {seen.headers["authorization"] for seen in realm.seen("GET", "/token")}
        assert base64.b64decode(asked.removeprefix("Basic ")) == b"me:pw"
        client.close()


@pytest.mark.hostile(22, 24)
def test_a_token_server_that_redirects_gives_no_credentials_away(tmp_path):
    with MemoryRegistry(auth="bearer", users={"me": "pw"}) as server, MemoryRegistry() as thief:
        server.misbehave(Fault(path="/token", status=307, headers={"Location": f"{thief.url}/token"}))
        client = connect(sources=auth_file(tmp_path, {server.host: "me:pw"}))
        with pytest.raises(Unauthenticated):
            client.resolve(ref(server), call=CALL)
        assert all("authorization" not in seen.headers for seen in thief.requests)
        server.refresh_tokens["refresh-me"] = "me"
        (tmp_path / "auth.json").write_text(
            json.dumps({"auths": {server.host: {"identitytoken": "refresh-me"}}})
        )
        asked = len(thief.requests)
        with pytest.raises((InvalidArgument, Unauthenticated)):
            client.resolve(ref(server), call=CALL)
        assert len(thief.requests) == asked
        client.close()


# Redirects


@pytest.mark.distribution("pull.blob.redirect", "api.redirect", "api.redirect.authorization")
@pytest.mark.hostile(24)
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_blob_elsewhere_is_fetched_without_credentials(tmp_path, status):
    with MemoryRegistry(auth="basic", users={"me": "pw"}) as server, MemoryRegistry() as cdn:
        digest = cdn.add_blob("a/b", DATA)
        location = f"{cdn.url}/v2/a/b/blobs/{digest}?Signature=s3cret"
        server.misbehave(Fault(path="/blobs/", status=status, headers={"Location": location}))
        client = connect(sources=auth_file(tmp_path, {server.host: "me:pw", cdn.host: "me:pw"}))
        client.ping(server.host, call=CALL)
        stream = client.open_blob(ref(server), digest, offset=5, call=CALL)
        assert stream.offset == 5
        assert read(stream) == DATA[5:]
        assert all("authorization" not in seen.headers for seen in cdn.requests)
        client.close()


def test_credentials_stay_with_a_redirect_at_home(tmp_path):
    with MemoryRegistry(auth="basic", users={"me": "pw"}) as server:
        digest = server.add_blob("a/b", DATA)
        server.misbehave(
            Fault(path="/blobs/", status=307, times=2, headers={"Location": f"/v2/a/b/blobs/{digest}?x"})
        )
        client = connect(sources=auth_file(tmp_path, {server.host: "me:pw"}))
        assert read(client.open_blob(ref(server), digest, call=CALL)) == DATA
        client.close()


@pytest.mark.hostile(24)
def test_a_challenge_from_where_a_redirect_led_is_not_answered(tmp_path):
    with MemoryRegistry() as server, MemoryRegistry(auth="basic", users={"me": "pw"}) as thief:
        digest = Digest.of(DATA)
        location = f"{thief.url}/v2/a/b/blobs/{digest}"
        server.misbehave(Fault(path="/blobs/", status=307, headers={"Location": location}))
        client = connect(sources=auth_file(tmp_path, {server.host: "me:pw", thief.host: "me:pw"}))
        with pytest.raises(Unauthenticated):
            client.open_blob(ref(server), digest, call=CALL)
        assert all("authorization" not in seen.headers for seen in thief.requests + server.requests)
        client.close()


@pytest.mark.distribution("api.redirect")
@pytest.mark.hostile(38)
def test_redirects_in_a_circle_end(server, client):
    server.misbehave(Fault(path="/blobs/", status=302, headers={"Location": "/v2/a/b/blobs/again"}))
    with pytest.raises(Unavailable, match="in a circle"):
        client.open_blob(ref(server), Digest.of(DATA), call=CALL)
    assert len(server.seen("GET", "/blobs/")) == 6
    server.behave()
    server.misbehave(
        *(
            Fault(path="/blobs/", status=302, times=1, headers={"Location": f"/v2/a/b/blobs/{n}"})
            for n in range(9)
        )
    )
    with pytest.raises(Unavailable, match="more than 5"):
        client.open_blob(ref(server), Digest.of(DATA), call=CALL)
    assert len(server.seen("GET", "/blobs/")) == 12


@pytest.mark.hostile(22)
@pytest.mark.parametrize("address", ["169.254.169.254", "0.0.0.0", "[fe80::1]", "[fd00:ec2::254]"])
def test_no_registry_sends_us_to_a_metadata_service(server, client, address):
    location = f"http://{address}/latest/meta-data?token=s3cret"
    server.misbehave(Fault(path="/blobs/", status=307, headers={"Location": location}))
    with pytest.raises(Unavailable, match="internal address") as caught:
        client.open_blob(ref(server), Digest.of(DATA), call=CALL)
    assert "s3cret" not in str(caught.value)


ZONES = {"127.0.0.2": Zone.PUBLIC, "127.0.0.3": Zone.PRIVATE, "127.0.0.4": Zone.PUBLIC}


@pytest.mark.hostile(22)
@pytest.mark.parametrize(
    ("registry", "target", "followed"),
    [
        ("127.0.0.2", "127.0.0.4", True),
        ("127.0.0.2", "127.0.0.3", False),
        ("127.0.0.2", "127.0.0.1", False),
        ("127.0.0.2", "localhost", False),
        ("127.0.0.3", "127.0.0.4", True),
        ("127.0.0.3", "127.0.0.1", False),
        ("127.0.0.1", "127.0.0.3", True),
    ],
)
def test_a_public_registry_does_not_reach_inwards(registry, target, followed):
    # Loopback addresses play the parts: the classification is the test's, everything else is real.
    wire = Wire(timeout=5.0, classify=lambda address: ZONES.get(address, Zone.LOOPBACK))
    listen = "127.0.0.1" if target == "localhost" else target
    with MemoryRegistry(address=registry) as server, MemoryRegistry(address=listen) as other:
        digest = other.add_blob("a/b", DATA)
        location = f"http://{target}:{other.host.rpartition(':')[2]}/v2/a/b/blobs/{digest}"
        server.misbehave(Fault(path="/blobs/", status=307, headers={"Location": location}))
        client = connect(wire=wire)
        if followed:
            assert read(client.open_blob(ref(server), digest, call=CALL)) == DATA
        else:
            with pytest.raises(Unavailable, match="internal address"):
                client.open_blob(ref(server), digest, call=CALL)
            assert not other.requests
        client.close()


@pytest.mark.hostile(21, 22)
def test_a_public_registrys_realm_does_not_reach_inwards(tmp_path):
    wire = Wire(timeout=5.0, classify=lambda address: ZONES.get(address, Zone.LOOPBACK))
    with MemoryRegistry(address="127.0.0.2", auth="bearer") as server, MemoryRegistry() as inside:
        server.realm = f"{inside.url}/token"
        client = connect(wire=wire, sources=auth_file(tmp_path, {server.host: "me:pw"}))
        with pytest.raises(Unavailable, match="internal address"):
            client.resolve(ref(server), call=CALL)
        assert not inside.requests
        client.close()


@pytest.mark.hostile(25)
def test_debug_logs_hold_no_query(server, client, caplog):
    digest = Digest.of(DATA)
    location = f"/v2/a/b/blobs/{digest}?X-Amz-Signature=s3cret"
    server.misbehave(Fault(path="/blobs/", status=307, times=1, headers={"Location": location}))
    with caplog.at_level(logging.DEBUG):
        read(client.open_blob(ref(server), digest, call=CALL))
    assert "/v2/a/b/blobs/" in caplog.text
    assert "s3cret" not in caplog.text


# Writing


def upload(client, server, data, *, known, sized, **options):
    chunks = (data[at : at + 100_000] for at in range(0, len(data), 100_000))
    digest = Digest.of(data)
    client.upload_blob(
        ref(server),
        options.get("chunks", chunks),
        digest=digest if known else lambda: digest,
        size=len(data) if sized else None,
        call=options.get("call", CALL),
    )
    return digest


@pytest.mark.parametrize(
    ("known", "sized", "methods"),
    [
        (True, True, ["POST", "PUT"]),
        (True, False, ["POST", "PATCH", "PUT"]),
        (False, True, ["POST", "PATCH", "PUT"]),
        (False, False, ["POST", "PATCH", "PUT"]),
    ],
)
@pytest.mark.parametrize("size", [0, 1, 1_000_000])
def test_a_blob_is_uploaded(server, client, known, sized, methods, size):
    digest = upload(client, server, DATA[:size], known=known, sized=sized)
    assert server.blobs[digest] == DATA[:size]
    assert [seen.method for seen in server.seen(path="/blobs/uploads/")] == methods
    assert not server.uploads


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("size", [5, 15])
def test_an_upload_of_another_size_than_promised_is_refused(server, client, known, size):
    digest = Digest.of(b"0123456789")
    with pytest.raises(DataLoss, match=f"{size} were promised"):
        client.upload_blob(
            ref(server),
            [b"01234", b"56789"],
            digest=digest if known else lambda: digest,
            size=size,
            call=CALL,
        )
    assert digest not in server.blobs
    assert server.seen("DELETE", "/blobs/uploads/")


@pytest.mark.parametrize("known", [True, False])
def test_an_upload_whose_source_fails_raises_that_and_cancels_the_session(server, client, known):
    def chunks():
        yield DATA[:1000]
        raise FileNotFoundError(2, "the source is gone")

    with pytest.raises(FileNotFoundError, match="the source is gone"):
        upload(client, server, DATA, known=known, sized=True, chunks=chunks())
    assert server.seen("DELETE", "/blobs/uploads/")


@pytest.mark.parametrize("known", [True, False])
def test_a_cancelled_upload_cancels_the_session(server, client, known):
    cancel = CancelToken()

    def chunks():
        yield DATA[:1000]
        cancel.cancel()
        yield DATA[1000:]

    with pytest.raises(Cancelled):
        upload(client, server, DATA, known=known, sized=True, chunks=chunks(), call=Call(cancel=cancel))
    assert server.seen("DELETE", "/blobs/uploads/")


@pytest.mark.parametrize("method", ["PATCH", "PUT"])
def test_a_cut_upload_is_unavailable_and_cancelled(server, client, method):
    server.misbehave(Fault(method=method, drop=True))
    with pytest.raises(Unavailable, match="cut the connection"):
        upload(client, server, DATA, known=method == "PUT", sized=True)
    assert server.seen("DELETE", "/blobs/uploads/")
    assert not server.uploads


def test_a_stream_that_has_left_is_not_sent_again(server, client):
    server.misbehave(Fault(method="PATCH", status=503, times=1))
    with pytest.raises(Unavailable, match="503"):
        upload(client, server, DATA, known=False, sized=False)
    assert len(server.seen("PATCH")) == 1


def test_an_upload_of_other_bytes_is_refused_by_the_registry(server, client):
    with pytest.raises(InvalidArgument, match="did not match"):
        client.upload_blob(ref(server), [b"x"], digest=Digest.of(b"y"), size=1, call=CALL)


@pytest.mark.distribution("push.location.absolute", "push.location.query")
@pytest.mark.hostile(23)
def test_an_upload_location_elsewhere_gets_the_bytes_and_no_credentials(tmp_path):
    with MemoryRegistry(auth="basic", users={"me": "pw"}) as server, MemoryRegistry() as other:
        other.uploads = server.uploads
        server.upload_location = other.url
        client = connect(sources=auth_file(tmp_path, {server.host: "me:pw", other.host: "me:pw"}))
        digest = upload(client, server, DATA, known=False, sized=False)
        assert other.blobs[digest] == DATA
        assert [seen.method for seen in other.requests] == ["PATCH", "PUT"]
        assert all("authorization" not in seen.headers for seen in other.requests)
        client.close()


def test_a_blob_is_mounted_from_another_repository(server, client):
    digest = Digest.of(DATA)
    other = ref(server, "c/d:1")
    assert client.has_blob(other, digest, call=CALL) is None
    assert client.mount_blob(other, digest, "a/b", call=CALL)
    assert client.has_blob(other, digest, call=CALL) == len(DATA)


def test_a_refused_mount_leaves_no_session(server, client):
    assert not client.mount_blob(ref(server, "c/d:1"), Digest.of(b"x"), "a/b", call=CALL)
    server.mounts = False
    assert not client.mount_blob(ref(server, "c/d:1"), Digest.of(DATA), "a/b", call=CALL)
    assert len(server.seen("DELETE", "/blobs/uploads/")) == 2
    assert not server.uploads


def test_a_mount_asks_for_both_repositories(tmp_path):
    with MemoryRegistry(auth="bearer", users={"me": "pw"}) as server:
        digest = server.add_blob("a/b", DATA)
        client = connect(sources=auth_file(tmp_path, {server.host: "me:pw"}))
        assert client.mount_blob(ref(server, "c/d:1"), digest, "a/b", call=CALL)
        client.close()


def test_a_mount_from_what_is_no_repository_is_refused(server, client):
    with pytest.raises(InvalidArgument):
        client.mount_blob(ref(server), Digest.of(DATA), "../x?y=", call=CALL)


@pytest.mark.distribution("push.manifest.put", "push.manifest.bytes", "push.manifest.content-type")
def test_a_manifest_is_stored_by_tag_and_by_digest(server, client):
    digest = Digest.of(b"{}")
    assert client.put_manifest(ref(server, "c/d:9"), b"{}", OCI_MANIFEST, call=CALL) == digest
    assert client.put_manifest(ref(server, f"e/f@{digest}"), b"{}", OCI_MANIFEST, call=CALL) == digest
    assert server.manifests["c/d", "9"] == server.manifests["e/f", digest] == (OCI_MANIFEST, b"{}")
    with pytest.raises(InvalidArgument, match=str(digest)):
        client.put_manifest(ref(server, f"e/f@{Digest.of(b'x')}"), b"{}", OCI_MANIFEST, call=CALL)


@pytest.mark.distribution("push.manifest.docker-content-digest")
def test_a_registry_that_keeps_another_manifest_is_data_loss(server, client):
    said = {"Docker-Content-Digest": Digest.of(b"x")}
    server.misbehave(Fault(method="PUT", path="/manifests/", headers=said))
    with pytest.raises(DataLoss, match="kept it as"):
        client.put_manifest(ref(server), b"{}", OCI_MANIFEST, call=CALL)


@pytest.mark.distribution("api.support")
def test_a_page_that_is_no_registry_is_told(server, client):
    server.misbehave(Fault(path="/v2/", status=404, body=b"<html>"))
    with pytest.raises(Exception, match="does not speak the registry's protocol"):
        client.ping(server.host, call=CALL)
