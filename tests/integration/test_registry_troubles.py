"""Misbehaviours of a registry, each on demand, through the client: HOSTILE.md 38.

More of them are in test_registry_client.py and test_registry_cancel.py.  No test here asserts a time.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import random
from contextlib import closing

import pytest

from orlop.config import Settings
from orlop.errors import PermissionDenied, Unauthenticated, Unavailable
from orlop.observe import Call
from orlop.registry.access.credentials import CredentialSources
from orlop.registry.client import Registry
from orlop.registry.net.retry import Backoff
from orlop.spec.digest import Digest
from orlop.spec.documents import OCI_MANIFEST, Descriptor
from orlop.spec.reference import Reference
from orlop.testing.registry import Fault, MemoryRegistry
from support.rawserver import Client, RawServer

CALL = Call()
DATA = random.Random(5).randbytes(200_000)
DIGEST = Digest.of(DATA)
MANIFEST = json.dumps({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "layers": []}).encode()


def connect(**settings):
    settings = {"retries": 2, **settings}
    return closing(Registry(Settings(**settings), CredentialSources(), backoff=Backoff(base=0.001)))


@pytest.fixture
def server():
    with MemoryRegistry() as registry:
        registry.add_manifest("a/b", "1", MANIFEST, OCI_MANIFEST)
        registry.add_blob("a/b", DATA)
        yield registry


def ref(server):
    return Reference.parse(f"{server.host}/a/b:1")


def read(client, server, offset=0):
    """What came of a blob from an offset on, and the words of the error that ended it."""
    got = bytearray()
    with client.open_blob(ref(server), DIGEST, offset=offset, call=CALL) as stream:
        try:
            for chunk in stream:
                got += chunk
        except Unavailable as exc:
            return bytes(got), str(exc)
    return bytes(got), ""


@pytest.mark.hostile(38)
@pytest.mark.distribution("pull.blob.range", "pull.blob.get")
def test_cuts_at_any_place_are_made_up_for_by_ranges(server):
    chaos = random.Random(11)
    server.misbehave(Fault(path="/blobs/", cut_after=chaos.randrange, times=6))
    got = b""
    with connect() as client:
        while len(got) < len(DATA):
            got += read(client, server, len(got))[0]
    assert got == DATA
    assert len(server.seen("GET", "/blobs/")) == 7


@pytest.mark.hostile(38)
def test_a_length_that_lies_does_not_shift_what_follows_on_the_connection(server):
    server.misbehave(Fault(path="/blobs/", length=1_000, times=1))
    with connect() as client:
        got, _ = read(client, server)
        assert got == DATA[:1_000]
        assert client.resolve(ref(server), call=CALL).data == MANIFEST
        assert read(client, server) == (DATA, "")


@pytest.mark.hostile(38)
def test_a_length_beyond_the_end_is_a_cut(server):
    server.misbehave(Fault(path="/blobs/", length=len(DATA) + 1, cut_after=len(DATA)))
    with connect() as client:
        got, words = read(client, server)
    assert got == DATA
    assert "cut the connection" in words


@pytest.mark.hostile(38)
def test_a_range_from_another_place_is_handed_on_and_shows_in_the_digest(server):
    server.misbehave(Fault(path="/blobs/", shift=7))
    with connect() as client:
        got, _ = read(client, server, 1_000)
    assert got == DATA[1_007:]
    assert not DIGEST.verifies(DATA[:1_000] + got)


@pytest.mark.hostile(38)
def test_a_changed_etag_makes_a_conditional_range_the_whole(server):
    asked = {"Range": "bytes=1000-", "If-Range": f'"{DIGEST}"'}
    for headers, status, size in (({}, 206, len(DATA) - 1_000), ({"ETag": '"other"'}, 200, len(DATA))):
        server.behave()
        server.misbehave(Fault(path="/blobs/", headers=headers))
        with closing(http.client.HTTPConnection(server.host, timeout=60)) as plain:
            plain.request("GET", f"/v2/a/b/blobs/{DIGEST}", headers=asked)
            response = plain.getresponse()
            assert (response.status, len(response.read())) == (status, size)


@pytest.mark.hostile(38)
def test_a_call_that_may_not_wait_does_not_try_again(server):
    server.misbehave(Fault(path="/manifests/", status=503, headers={"Retry-After": "1"}))
    with connect(retry_wait=0.0) as client, pytest.raises(Unavailable, match="503"):
        client.resolve(ref(server), call=CALL)
    assert len(server.seen("GET", "/manifests/")) == 1


@pytest.mark.hostile(25, 38)
@pytest.mark.distribution("errors.codes")
@pytest.mark.parametrize(
    ("body", "words"),
    [
        (
            b'{"errors":[{"code":"DENIED","message":"no seat for you","detail":{"token":"s3cret"}}]}',
            "no seat for you",
        ),
        (b'{"errors":[{"code":"DENIED"}]}', "DENIED"),
        (b"<html><body>s3cret</body></html>", "403 Forbidden"),
        (b"", "403 Forbidden"),
        (b"{" * 70_000, "403 Forbidden"),
    ],
)
def test_the_registrys_own_words_are_told_in_whatever_form_they_come(server, body, words):
    server.misbehave(Fault(path="/manifests/", status=403, body=body))
    with connect() as client, pytest.raises(PermissionDenied) as caught:
        client.resolve(ref(server), call=CALL)
    assert words in str(caught.value)
    assert server.host in str(caught.value)
    assert "s3cret" not in str(caught.value)


def test_several_headers_of_one_name_are_read_as_one_list():
    realm: list[str] = []

    def answer(path: str, client: Client) -> None:
        if path.startswith("/token"):
            realm.append(path)
            client.ok(b'{"token":"right"}')
            return
        if path == "/v2/":
            client.ok(b"{}")
            return
        here = f"http://{server.host}/token"
        client.send(
            b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\nConnection: close\r\n"
            + f'WWW-Authenticate: Bearer realm="{here}",service="s"\r\n'.encode()
            + b'WWW-Authenticate: Basic realm="b"\r\n\r\n'
        )

    with RawServer(answer) as server, connect(retries=0) as client, pytest.raises(Unauthenticated):
        client.resolve(Reference.parse(f"{server.host}/a:1"), call=CALL)
    assert len(realm) == 1


@pytest.mark.distribution("pull.blob.docker-content-digest")
def test_a_wrong_digest_in_a_header_does_not_make_right_bytes_wrong(server):
    server.misbehave(Fault(path="/blobs/", headers={"Docker-Content-Digest": Digest.of(b"other")}))
    with connect() as client:
        assert client.blob(ref(server), Descriptor(digest=DIGEST, size=len(DATA)), call=CALL) == DATA


@pytest.mark.distribution("push.manifest.size")
def test_a_manifest_of_four_mebibytes_goes_there_and_back(server):
    document = MANIFEST.replace(b"[]", b"[" + b" " * ((4 << 20) - len(MANIFEST)) + b"]")
    assert len(document) == 4 << 20
    with connect() as client:
        assert client.put_manifest(ref(server), document, OCI_MANIFEST, call=CALL) == Digest.of(document)
        assert client.resolve(ref(server), call=CALL).data == document


@pytest.mark.distribution("push.chunked.algorithm")
def test_a_session_for_a_digest_of_another_algorithm_says_which(server):
    digest = Digest(f"sha512:{hashlib.sha512(DATA).hexdigest()}")
    with connect() as client:
        client.upload_blob(ref(server), [DATA], digest=digest, size=len(DATA), call=CALL)
    assert server.blobs[digest] == DATA
    (begun,) = server.seen("POST", "/blobs/uploads/")
    assert begun.path.endswith("/v2/a/b/blobs/uploads/?digest-algorithm=sha512")
