"""Uploads that are cut, refused, lied to and sent elsewhere: they arrive whole, or end, and never give away."""

from __future__ import annotations

import base64
import contextlib
import json
import random
import time

import pytest

from orlop.config import Settings
from orlop.errors import Cancelled, DataLoss, InvalidArgument, PermissionDenied, Unauthenticated, Unavailable
from orlop.observe import Call, CancelToken
from orlop.registry.access.credentials import CredentialSources
from orlop.registry.client import Registry
from orlop.registry.net.retry import Backoff
from orlop.spec.digest import Digest
from orlop.spec.reference import Reference
from orlop.testing.registry import Fault, MemoryRegistry

CALL = Call()
MIB = 1 << 20
DATA = random.Random(5).randbytes(3 * MIB)
DIGEST = Digest.of(DATA)
QUICK = Backoff(base=0.001)
UPLOADS = "/blobs/uploads/"


@pytest.fixture(autouse=True)
def patient(monkeypatch):
    """However slow the machine, a session that is given up is cancelled before anybody looks."""
    for name in ("CANCEL_SECONDS", "HURRIED_SECONDS"):
        monkeypatch.setattr(f"orlop.registry.blobs.sessions.{name}", 120.0)


@pytest.fixture
def server():
    with MemoryRegistry() as registry:
        yield registry


@pytest.fixture
def client():
    with connect() as opened:
        yield opened


def connect(*, sources=None, **settings):
    settings = {"timeout": 60.0, "retries": 2, **settings}
    return contextlib.closing(Registry(Settings(**settings), sources or CredentialSources(), backoff=QUICK))


def log_in(tmp_path, *hosts):
    secret = base64.b64encode(b"me:pw").decode()
    path = tmp_path / "auth.json"
    path.write_text(json.dumps({"auths": {host: {"auth": secret} for host in hosts}}))
    return CredentialSources(files=(str(path),))


def ref(server, text="a/b:1"):
    return Reference.parse(f"{server.host}/{text}")


def opener(data, opened=None):
    """A source that can be opened again at any offset; what it was opened at is noted."""

    def open_at(offset):
        if opened is not None:
            opened.append(offset)
        return (data[at : at + 100_000] for at in range(offset, len(data), 100_000))

    return open_at


def upload(client, server, data=DATA, *, known=True, sized=True, source=None, **options):
    digest = Digest.of(data)
    return client.upload_blob(
        ref(server),
        source or opener(data),
        digest=digest if known else lambda: digest,
        size=len(data) if sized else None,
        call=options.pop("call", CALL),
        **options,
    )


def methods(server, path=UPLOADS):
    return [seen.method for seen in server.seen(path=path)]


def cut(rng, most=700_000, *, method="PATCH"):
    return Fault(method=method, path=UPLOADS, cut_request=rng.randint(50_000, most), times=1)


# Cuts


def cut_many_times(seed, megabytes, *, cuts, known, sized):
    """Upload a blob through random cuts; the share of it that the registry got more than once."""
    rng = random.Random(seed)
    data = rng.randbytes(megabytes * MIB)
    most = 2 * len(data) // cuts // 3
    with MemoryRegistry() as server, connect() as client:
        server.misbehave(cut(rng, most, method="PUT"), *(cut(rng, most) for _ in range(cuts - 1)))
        upload(client, server, data, known=known, sized=sized)
        assert server.blobs == {Digest.of(data): data}
        assert not server.uploads
        served = len(server.seen("PATCH", UPLOADS))
        assert served > cuts - 1 - (not known or not sized), "the cuts did not happen"
        return (server.received - len(data)) / len(data)


@pytest.mark.hostile(38)
@pytest.mark.distribution("push.chunked", "push.chunked.status", "push.chunked.location")
@pytest.mark.parametrize(("known", "sized"), [(True, True), (False, False)])
def test_twenty_random_cuts_send_less_than_a_tenth_again(known, sized):
    assert cut_many_times(7, 16, cuts=20, known=known, sized=sized) < 0.1


@pytest.mark.soak
def test_any_random_cuts_send_less_than_a_tenth_again(soak_seconds):
    rng = random.Random(time.time_ns())
    end = time.monotonic() + soak_seconds
    while time.monotonic() < end:
        seed, cuts, known = rng.getrandbits(32), rng.randint(5, 60), rng.random() < 0.5
        share = cut_many_times(seed, 16, cuts=cuts, known=known, sized=known)
        assert share < 0.1, f"seed {seed}, {cuts} cuts, known {known}"


@pytest.mark.hostile(38)
def test_of_a_registry_that_drops_what_was_cut_only_the_chunk_is_sent_again():
    rng = random.Random(3)
    with MemoryRegistry() as server, connect(upload_chunk=128 << 10) as client:
        server.keeps_partial = False
        well = Fault(method="PATCH", path=UPLOADS, times=1)
        server.misbehave(*(fault for _ in range(8) for fault in (cut(rng, 128 << 10), well)))
        upload(client, server)
        assert server.blobs[DIGEST] == DATA
        assert server.received - len(DATA) < 8 * (128 << 10)


@pytest.mark.hostile(38)
@pytest.mark.parametrize("status", [404, 405, 400, 501])
def test_a_registry_that_forgets_a_session_with_a_cut_gets_the_blob_in_a_new_one(server, client, status):
    """docker-registry 2.8 is one, with 404."""
    server.misbehave(
        Fault(method="PUT", path=UPLOADS, cut_request=100_000, times=1),
        Fault(method="GET", path=UPLOADS, status=status),
    )
    opened = []
    upload(client, server, source=opener(DATA, opened))
    assert server.blobs[DIGEST] == DATA
    assert opened == [0, 0]
    assert methods(server).count("POST") == 2


@pytest.mark.hostile(38)
@pytest.mark.parametrize("said", ["0-99999999", "0-0", "rubbish", "100-200"])
def test_a_lie_about_how_far_it_is_costs_a_session_and_no_more(server, client, said):
    server.misbehave(
        Fault(method="PUT", path=UPLOADS, cut_request=1_000_000, times=1),
        Fault(method="GET", path=UPLOADS, headers={"Range": said}),
    )
    upload(client, server)
    assert server.blobs[DIGEST] == DATA
    assert not server.uploads


@pytest.mark.hostile(38)
def test_a_registry_that_took_less_than_it_says_is_not_believed_in_the_end(server, client):
    # It says that it has more of the cut request than it has: the digest tells, and it all goes again.
    server.misbehave(
        Fault(method="PUT", path=UPLOADS, cut_request=2_000_000, times=1),
        Fault(method="GET", path=UPLOADS, headers={"Range": "0-1999"}, times=1),
    )
    upload(client, server)
    assert server.blobs[DIGEST] == DATA
    assert not server.uploads


@pytest.mark.hostile(38)
@pytest.mark.distribution("push.chunked.range")
def test_chunks_that_are_taken_in_part_are_gone_on_with(server):
    with connect(upload_chunk=MIB) as client:
        server.misbehave(Fault(method="PATCH", headers={"Range": "0-99999"}, times=1))
        upload(client, server)
    assert server.blobs[DIGEST] == DATA


@pytest.mark.hostile(38)
def test_a_registry_that_takes_a_little_each_time_is_given_up(server):
    with connect(upload_chunk=MIB) as client:
        server.misbehave(
            Fault(method="PATCH", headers={"Range": "0-999"}), Fault(method="GET", headers={"Range": "0-999"})
        )
        with pytest.raises((Unavailable, InvalidArgument)):
            upload(client, server)
    assert len(server.seen("PATCH")) < 20
    assert not server.uploads


@pytest.mark.hostile(38)
@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("trouble", [{"cut_request": 1_000}, {"status": 503}, {"status": 416}])
def test_trouble_without_an_end_has_one(server, client, known, trouble):
    server.misbehave(*(Fault(method=method, path=UPLOADS, **trouble) for method in ("PATCH", "PUT")))
    with pytest.raises((Unavailable, InvalidArgument)):
        upload(client, server, known=known, sized=known)
    assert len(server.requests) < 40
    assert not server.uploads


def test_a_passing_refusal_is_waited_for_and_gone_on_from(server, client):
    server.misbehave(Fault(method="PUT", path=UPLOADS, status=429, headers={"Retry-After": "0"}, times=1))
    upload(client, server)
    assert server.blobs[DIGEST] == DATA


def test_a_blob_whose_last_answer_was_lost_is_not_sent_again(server, client):
    opened = []
    server.misbehave(Fault(method="PUT", path=UPLOADS, drop=True, times=1))
    server.add_blob("a/b", DATA)  # as if the request had been answered
    server.misbehave(Fault(method="GET", path=UPLOADS, status=404))
    upload(client, server, source=opener(DATA, opened))
    assert opened == [0]
    assert methods(server) == ["POST", "PUT", "GET"]


def test_a_source_that_fails_is_not_taken_for_the_network(server, client):
    def open_at(offset):
        yield DATA[:200_000]
        raise Unavailable("read the source", "it is down")

    with pytest.raises(Unavailable, match="it is down"):
        upload(client, server, source=open_at)
    asked = methods(
        server
    )  # the server may come to the PUT after the DELETE, which has a connection of its own
    assert asked[0] == "POST"
    assert sorted(asked[1:]) in (["DELETE", "PUT"], ["DELETE"])


def test_a_cancelled_call_does_not_wait_to_go_on(server, client):
    token = CancelToken()

    def open_at(offset):
        if offset:
            token.cancel()
        return opener(DATA)(offset)

    server.misbehave(Fault(method="PUT", path=UPLOADS, cut_request=500_000, times=1))
    with pytest.raises(Cancelled):
        upload(client, server, source=open_at, call=Call(cancel=token))
    assert methods(server)[-1] == "DELETE"
    assert not server.uploads


# Chunks and sessions


@pytest.mark.distribution(
    "push.chunked", "push.chunked.min-length", "push.chunked.final-put", "push.chunked.location"
)
@pytest.mark.parametrize("moving", [False, True])
@pytest.mark.parametrize("sized", [True, False])
def test_chunks_are_as_long_as_the_registry_wants_and_follow_its_locations(server, sized, moving):
    server.chunk_min, server.moving = 700_000, moving
    lengths = []
    with connect(upload_chunk=65_536) as client:
        upload(client, server, sized=sized)
    for seen in server.seen("PATCH"):
        first, _, last = seen.headers["content-range"].partition("-")
        lengths.append(int(last) - int(first) + 1)
        assert int(seen.headers["content-length"]) == lengths[-1]
    assert lengths == [700_000] * 4 + [len(DATA) - 4 * 700_000]
    assert server.blobs[DIGEST] == DATA
    if moving:
        assert len({seen.path.partition("?")[0] for seen in server.seen("PATCH")}) == len(lengths)


@pytest.mark.distribution("push.location.absolute", "push.location.query", "push.location.exact")
@pytest.mark.parametrize("absolute", [False, True])
def test_a_location_is_used_as_it_is_given(server, client, absolute):
    server.upload_location = server.url if absolute else ""
    upload(client, server)
    (put,) = server.seen("PUT")
    assert "?state=1&digest=sha256:" in put.path
    assert server.blobs[DIGEST] == DATA


@pytest.mark.distribution("push.monolithic.post-put")
def test_a_blob_goes_in_one_request_while_that_goes_well(server, client):
    upload(client, server)
    assert methods(server) == ["POST", "PUT"]
    (put,) = server.seen("PUT")
    assert put.headers["content-length"] == str(len(DATA))
    assert put.headers["content-type"] == "application/octet-stream"
    assert server.received == len(DATA)


@pytest.mark.distribution("push.monolithic.single-post")
def test_a_small_blob_is_stored_by_one_request_where_that_can_be(server, client):
    server.single_post = True
    upload(client, server, b"small")
    assert methods(server) == ["POST"]
    assert server.blobs[Digest.of(b"small")] == b"small"
    upload(client, server)  # a large one still has a session, which can go on after a cut
    assert methods(server) == ["POST", "POST", "PUT"]


@pytest.mark.distribution("push.monolithic.single-post.fallback")
@pytest.mark.parametrize("status", [None, 400, 405, 413])
def test_a_registry_that_takes_no_small_blob_so_is_asked_for_that_once(server, client, status):
    if status:
        server.misbehave(Fault(method="POST", path=r"digest=", status=status))
    for number in range(3):
        upload(client, server, b"small %d" % number)
    assert len(server.blobs) == 3
    assert len(server.seen("POST", "digest=")) == 1
    assert not server.uploads


def test_a_registry_that_takes_such_a_request_for_a_beginning_gets_the_blob_in_another_session(
    server, client
):
    server.post_begins = True
    upload(client, server, b"small")
    assert server.blobs[Digest.of(b"small")] == b"small"
    assert methods(server) == ["POST", "PUT", "DELETE", "POST", "PATCH", "PUT"]
    assert not server.uploads


def test_a_request_that_is_too_large_is_made_smaller_and_that_is_remembered(server, client):
    server.body_max = MIB
    upload(client, server)
    assert server.blobs[DIGEST] == DATA
    before = len(server.requests)
    other = DATA[::-1]
    upload(client, server, other)
    assert server.blobs[Digest.of(other)] == other
    assert [seen.method for seen in server.requests[before:]] == ["POST", *["PATCH"] * 4, "PUT"]


def test_a_registry_that_finds_everything_too_large_is_told(server, client):
    server.body_max = 1
    with pytest.raises(InvalidArgument, match="413"):
        upload(client, server)
    assert not server.uploads


@pytest.mark.distribution("push.cancel", "push.cancel.ignore-failure")
def test_a_cancellation_that_fails_hides_nothing(server, client):
    server.misbehave(
        Fault(method="DELETE", status=500), Fault(method="PUT", path=UPLOADS, status=403, body=b"{}")
    )
    with pytest.raises(PermissionDenied, match="403"):
        upload(client, server)
    assert server.seen("DELETE", UPLOADS)


@pytest.mark.distribution("push.cancel")
@pytest.mark.parametrize("status", [429, 503])
def test_a_session_is_cancelled_also_where_the_registry_wants_to_be_left_alone(server, client, status):
    server.misbehave(Fault(method="PUT", path=UPLOADS, status=status, headers={"Retry-After": "1"}))
    with pytest.raises(Unavailable, match=str(status)):
        upload(client, server, source=iter([DATA]))  # which cannot be sent again
    assert not server.uploads


# Credentials


def test_a_token_that_ends_in_the_middle_is_fetched_again_and_the_upload_goes_on(tmp_path):
    with MemoryRegistry(auth="bearer", users={"me": "pw"}) as server:
        with connect(sources=log_in(tmp_path, server.host), upload_chunk=MIB) as client:

            def open_at(offset):
                for number, chunk in enumerate(opener(DATA)(offset)):
                    if offset == 0 and number == 15:
                        server.tokens.clear()
                    yield chunk

            upload(client, server, source=open_at)
        assert server.blobs[DIGEST] == DATA
        assert len(server.seen("GET", "/token")) >= 2


@pytest.mark.hostile(23)
@pytest.mark.distribution("push.location.absolute")
@pytest.mark.parametrize("auth", ["", "basic"])
def test_a_location_elsewhere_gets_no_credentials_also_after_a_cut_and_in_chunks(tmp_path, auth):
    users = {"me": "pw"}
    with MemoryRegistry(auth="basic", users=users) as server, MemoryRegistry(auth=auth, users=users) as other:
        other.uploads = server.uploads
        server.upload_location = other.url
        other.upload_location = other.url
        other.misbehave(Fault(method="PATCH", cut_request=100_000, times=2))
        with connect(sources=log_in(tmp_path, server.host, other.host), upload_chunk=MIB) as client:
            if auth:
                with pytest.raises((Unauthenticated, Unavailable)):
                    upload(client, server)
            else:
                upload(client, server)
                assert other.blobs[DIGEST] == DATA
        assert {"PATCH", "GET"} <= set(methods(other))
        assert all("authorization" not in seen.headers for seen in other.requests)


# Mounts


@pytest.mark.distribution("mount.from")
def test_a_blob_that_can_be_mounted_is_not_sent(server, client):
    server.add_blob("c/d", DATA)
    assert upload(client, server, mounts=("x/y", "c/d"))
    assert server.received == 0
    assert server.blob_owners[DIGEST] == {"c/d", "a/b"}
    assert not server.uploads


@pytest.mark.distribution("mount.without-from")
def test_a_blob_is_mounted_from_wherever_the_registry_has_it(server, client):
    server.add_blob("c/d", DATA)
    assert upload(client, server, mounts=(None,))
    assert server.received == 0
    assert "from=" not in server.seen("POST")[0].path


@pytest.mark.distribution("mount.refused")
@pytest.mark.parametrize("mounts", [(None,), ("c/d",), ("c/d", "e/f")])
def test_the_session_of_a_refused_mount_is_the_one_that_is_uploaded_to(server, client, mounts):
    server.mounts = False
    server.add_blob("c/d", DATA)
    assert not upload(client, server, mounts=mounts)
    assert methods(server) == ["POST"] * len(mounts) + ["DELETE"] * (len(mounts) - 1) + ["PUT"]
    assert "a/b" in server.blob_owners[DIGEST]
    assert not server.uploads


@pytest.mark.distribution("mount.refused")
@pytest.mark.parametrize("status", [400, 403, 404, 405])
def test_a_registry_that_knows_no_mounts_gets_the_blob(server, client, status):
    server.misbehave(Fault(method="POST", path="mount=", status=status, body=b"{}"))
    assert not upload(client, server, mounts=("c/d", None))
    assert methods(server) == ["POST", "POST", "POST", "PUT"]
    assert server.blobs[DIGEST] == DATA


@pytest.mark.distribution("mount.docker-content-digest")
def test_a_mount_of_something_else_is_data_loss(server, client):
    server.add_blob("c/d", DATA)
    server.misbehave(Fault(method="POST", headers={"Docker-Content-Digest": Digest.of(b"x")}))
    with pytest.raises(DataLoss, match="kept it as"):
        upload(client, server, mounts=("c/d",))


def test_a_mount_that_the_credentials_do_not_allow_leads_to_an_upload(tmp_path):
    with MemoryRegistry(auth="basic", users={"me": "pw"}) as server:
        server.misbehave(Fault(method="POST", path="mount=", status=401))
        server.add_blob("c/d", DATA)
        with connect(sources=log_in(tmp_path, server.host)) as client:
            assert not upload(client, server, mounts=("c/d",))
        assert "a/b" in server.blob_owners[DIGEST]
