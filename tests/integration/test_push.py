"""Push: each way a blob has of getting there, several names, nothing twice, and what goes wrong on the way."""

from __future__ import annotations

import contextlib
import json
import os
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import orlop
from conftest import StoreDirs
from orlop.config import Settings
from orlop.observe import Call
from orlop.registry.access.credentials import CredentialSources
from orlop.registry.client import Registry as Client
from orlop.registry.net.retry import Backoff
from orlop.spec.digest import Digest
from orlop.spec.reference import Reference
from orlop.testing.registry import Fault, MemoryRegistry
from support import images, nginx
from support.layers import Layer
from support.registries import Registry

pytestmark = pytest.mark.root

UPLOADS = "/blobs/uploads/"


class Log:
    """What a call told."""

    def __init__(self) -> None:
        self.phases: dict[str, str] = {}
        self.whole: list[tuple[str, str]] = []  # events of what is pushed, not of its blobs
        self.warnings: list[str] = []

    def progress(self, event: orlop.Progress) -> None:
        self.phases[event.item] = event.phase
        if not event.item.startswith("sha256:"):
            self.whole.append((event.phase, event.item))

    def warning(self, text: str) -> None:
        self.warnings.append(text)


def make(seed: int, *, size: int = 30_000, compression: images.Compression = "zstd") -> images.Image:
    """An image of two layers, whose blobs orlop would not make so itself."""
    rng = random.Random(seed)
    tars = [Layer().file(f"file{number}", rng.randbytes(size)).tar() for number in range(2)]
    return images.make_image(tars, compression=compression)


def stock(server: MemoryRegistry, image: images.Image, repository: str = "app") -> str:
    """Put an image into a registry; its name."""
    for data in image.blobs.values():
        server.add_blob(repository, data)
    server.add_manifest(repository, "v1", image.document, image.media_type)
    return f"{server.host}/{repository}:v1"


def layers_of(image: images.Image) -> list[str]:
    return [layer["digest"] for layer in json.loads(image.document)["layers"]]


@contextlib.contextmanager
def opened(store_dirs: StoreDirs, **settings: object) -> Iterator[orlop.Store]:
    """A store on the test's folders; nothing is synced, and it waits for nobody.

    With ``uploads=1`` no request is under way when another one fails, so every session is known and cancelled.
    """
    options = {"durable": False, "retries": 1, "timeout": 60.0, **settings}
    with orlop.open(store_dirs.root, store_dirs.run, settings=orlop.Settings(**options)) as store:  # type: ignore[arg-type]  # settings of a test
        yield store


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """However slow the machine, a session that is given up is cancelled before anybody looks."""
    for name in ("CANCEL_SECONDS", "HURRIED_SECONDS"):
        monkeypatch.setattr(f"orlop.registry.blobs.sessions.{name}", 120.0)


@pytest.fixture
def server() -> Iterator[MemoryRegistry]:
    with MemoryRegistry() as registry:
        yield registry


@pytest.fixture
def other() -> Iterator[MemoryRegistry]:
    with MemoryRegistry() as registry:
        yield registry


# ------------------------------------------------------------------ names


@pytest.mark.distribution("push.manifest.put", "push.manifest.bytes", "push.manifest.content-type")
def test_a_push_to_several_tags_sends_each_blob_once(
    store_dirs: StoreDirs, server: MemoryRegistry, other: MemoryRegistry
) -> None:
    image = make(1)
    name = stock(server, image)
    other.single_post = True  # else the first small blob goes twice, to find out
    with opened(store_dirs, keep_blobs=True) as store:
        store.pull(name)
        pushed = store.push(name, f"{other.host}/a:1", tags=("2", "latest", "2"))
        assert pushed.names == tuple(f"{other.host}/a:{tag}" for tag in ("1", "2", "latest"))
        assert (pushed.name, pushed.digest) == (pushed.names[0], image.digest)
        for tag in ("1", "2", "latest"):
            assert other.manifests["a", tag] == (image.media_type, image.document)
        assert other.received == sum(map(len, image.blobs.values())) + 3 * len(image.document)
        by_digest = f"{other.host}/b@{image.digest}"
        assert store.push(name, by_digest).names == (by_digest,)
        assert set(other.manifests) >= {("b", image.digest)}
        assert ("b", "latest") not in other.manifests


@pytest.mark.distribution("head.blob", "head.manifest")
def test_a_second_push_sends_nothing_at_all(store_dirs: StoreDirs, server: MemoryRegistry) -> None:
    with opened(store_dirs) as store:
        store.pull(stock(server, make(3)))
        with store.prepare(f"{server.host}/app:v1", store_dirs.work / "root", mount=True) as root:
            (store_dirs.work / "root/new").write_text("made here")
            root.commit("localhost/mine:1")
        first = store.push("localhost/mine:1", f"{server.host}/mine:1")
        sent, asked = server.received, len(server.requests)
        assert store.push("localhost/mine:1", f"{server.host}/mine:1") == first
        assert server.received == sent
        assert {seen.method for seen in server.requests[asked:]} == {"HEAD"}
        third = store.push("localhost/mine:1", f"{server.host}/mine:1", tags=("2",))
        assert third.digest == first.digest
        assert server.received == sent + len(server.manifests["mine", "2"][1])


@pytest.mark.distribution("head.manifest.no-digest")
def test_a_registry_that_tells_no_digests_gets_the_manifest_again(
    store_dirs: StoreDirs, server: MemoryRegistry
) -> None:
    image = make(4)
    name = stock(server, image)
    server.misbehave(Fault(method="HEAD", path="/manifests/", headers={"Docker-Content-Digest": ""}))
    with opened(store_dirs) as store:
        store.pull(name)
        assert store.push(name).digest == image.digest
    assert len(server.seen("PUT", "/manifests/")) == 1


@pytest.mark.distribution("push.manifest.order")
def test_a_name_gets_the_image_only_after_its_blobs(store_dirs: StoreDirs, server: MemoryRegistry) -> None:
    image = make(5)
    name = stock(server, image)
    server.mounts = False
    server.misbehave(Fault(method="PUT", path=UPLOADS, status=403, body=b"{}"))
    with opened(store_dirs, keep_blobs=True, uploads=1) as store:
        store.pull(name)
        with pytest.raises(orlop.PermissionDenied):
            store.push(name, f"{server.host}/later:1", tags=("2",))
        assert not [key for key in server.manifests if key[0] == "later"]
        assert not server.uploads
        server.behave()
        store.push(name, f"{server.host}/later:1", tags=("2",))
        puts = [seen for seen in server.requests if seen.method == "PUT"]
        assert ["/manifests/" in seen.path for seen in puts[-2:]] == [True, True]


# ------------------------------------------------------------------ ways


def test_a_blob_that_is_there_is_not_sent(store_dirs: StoreDirs, server: MemoryRegistry) -> None:
    image, log = make(6), Log()
    name = stock(server, image)
    with opened(store_dirs) as store:
        store.pull(name)
        store.push(name, f"{server.host}/app:v2", call=Call(observer=log))
        again = Log()
        store.push(name, f"{server.host}/app:v2", call=Call(observer=again))
    assert {log.phases[digest] for digest in image.blobs} == {"exists"}
    assert again.whole == [("done", f"{server.host}/app:v2")], "one last event, also of what is all there"


@pytest.mark.distribution("mount.from")
def test_a_blob_of_another_repository_is_mounted_and_not_sent(
    store_dirs: StoreDirs, server: MemoryRegistry
) -> None:
    image, log = make(7), Log()
    name = stock(server, image)
    with opened(store_dirs) as store:
        store.pull(name)
        store.push(name, f"{server.host}/else:v1", call=Call(observer=log))
    assert {log.phases[digest] for digest in layers_of(image)} == {"mounted"}
    assert not server.seen("PUT", f"/else{UPLOADS}") or server.received < 10_000  # the config


def test_a_blob_that_is_kept_is_sent_from_here(
    store_dirs: StoreDirs, server: MemoryRegistry, other: MemoryRegistry
) -> None:
    image = make(8)
    name = stock(server, image)
    with opened(store_dirs, keep_blobs=True) as store:
        store.pull(name)
        asked = len(server.requests)
        assert store.push(name, f"{other.host}/a:1").digest == image.digest
        assert len(server.requests) == asked


@pytest.mark.hostile(38)
def test_a_blob_is_streamed_from_where_it_is_known_to_be_through_cuts_on_both_ends(
    store_dirs: StoreDirs, server: MemoryRegistry, other: MemoryRegistry
) -> None:
    image = make(9, size=1_500_000)
    name = stock(server, image)
    with opened(store_dirs) as store:
        store.pull(name)
        for _ in range(3):
            server.misbehave(Fault(method="GET", path="/blobs/", cut_after=400_000, times=1))
        other.misbehave(
            Fault(method="PUT", path=UPLOADS, cut_request=200_000, times=1),
            Fault(method="PATCH", path=UPLOADS, cut_request=300_000, times=3),
        )
        assert store.push(name, f"{other.host}/a:1").digest == image.digest
    for digest in layers_of(image):
        assert other.blobs[digest] == image.blobs[digest]
    assert not other.uploads
    whole = sum(map(len, image.blobs.values())) + len(image.document)
    assert other.received < 1.1 * whole


def test_a_blob_that_orlop_made_is_made_again_with_the_same_digest(
    store_dirs: StoreDirs, server: MemoryRegistry, other: MemoryRegistry
) -> None:
    with opened(store_dirs) as store:
        store.pull(stock(server, make(10)))
        with store.prepare(f"{server.host}/app:v1", store_dirs.work / "root", mount=True) as root:
            (store_dirs.work / "root/new").write_bytes(random.Random(10).randbytes(300_000))
            root.commit("localhost/mine:1")
        first = store.push("localhost/mine:1", f"{server.host}/mine:1")
        top = json.loads(server.manifests["mine", "1"][1])["layers"][-1]["digest"]
        kept = server.blobs.pop(top)
        again = store.push("localhost/mine:1", f"{other.host}/mine:1")
        assert again.digest == first.digest
        assert other.blobs[top] == kept


def test_a_layer_that_came_uncompressed_is_its_own_blob(
    store_dirs: StoreDirs, server: MemoryRegistry, other: MemoryRegistry
) -> None:
    image = make(18, compression="none")
    name = stock(server, image)
    with opened(store_dirs, retries=0) as store:
        store.pull(name)
        server.misbehave(Fault(status=500))  # where it came from is gone
        assert store.push(name, f"{other.host}/a:1").digest == image.digest
        assert other.blobs == image.blobs
        assert store.fetch_blobs(name).fetched == tuple(layers_of(image))


def test_a_blob_is_known_to_be_where_its_image_was_pulled_from_last(
    store_dirs: StoreDirs, server: MemoryRegistry, other: MemoryRegistry
) -> None:
    image = make(19)
    with opened(store_dirs, retries=0) as store:
        store.pull(stock(server, image))
        name = stock(other, image)
        store.pull(name)  # nothing is fetched
        store.tag(name, "localhost/known")  # whose name leads to no registry
        server.misbehave(Fault(status=500))
        for given in ("localhost/known", name):
            with MemoryRegistry() as target:
                assert store.push(given, f"{target.host}/a:1").digest == image.digest
                assert target.blobs == image.blobs


def test_a_layer_that_was_there_in_another_form_goes_in_the_form_of_its_image(
    store_dirs: StoreDirs, server: MemoryRegistry, other: MemoryRegistry
) -> None:
    first, second = make(20), make(20, compression="gzip")
    with opened(store_dirs, retries=0) as store, MemoryRegistry() as target:
        store.pull(stock(server, first))
        name = stock(other, second)
        store.pull(name)  # nothing is fetched: the layers are there
        assert store.push(name, f"{target.host}/a:1").digest == second.digest
        assert target.blobs == second.blobs
        assert store.fetch_blobs(name).fetched == tuple(layers_of(second))


def test_a_source_with_other_bytes_is_told_and_the_next_is_tried(
    store_dirs: StoreDirs, server: MemoryRegistry, other: MemoryRegistry
) -> None:
    image, log = make(11), Log()
    name = stock(server, image)
    with opened(store_dirs, keep_blobs=True) as store:
        store.pull(name)
        digest = layers_of(image)[0]
        path = store_dirs.root / "content/blobs/sha256" / digest.partition(":")[2]
        path.chmod(0o600)
        path.write_bytes(b"\0" * path.stat().st_size)
        assert store.push(name, f"{other.host}/a:1", call=Call(observer=log)).digest == image.digest
    assert other.blobs[digest] == image.blobs[digest]
    assert any("other bytes" in text for text in log.warnings)
    assert not other.uploads


def test_a_blob_that_nobody_gives_is_named_with_what_to_do(
    store_dirs: StoreDirs, server: MemoryRegistry, other: MemoryRegistry
) -> None:
    image = make(12)
    name = stock(server, image)
    faults = [
        Fault(method="GET", path="/blobs/", status=404),
        Fault(method="GET", path="/blobs/", status=503),
        Fault(method="GET", path="/blobs/", status=401),
        Fault(method="GET", path="/blobs/", corrupt=True),
        Fault(method="GET", path="/blobs/", cut_after=1000),
    ]
    with opened(store_dirs, retries=0, uploads=1) as store:
        store.pull(name)
        for fault in faults:
            server.misbehave(fault)
            with pytest.raises(orlop.FailedPrecondition) as caught:
                store.push(name, f"{other.host}/a:1")
            assert caught.value.details["blob"] in layers_of(image)
            assert "--recompress" in caught.value.hint
            assert "fetch-blobs" in caught.value.hint
            assert not other.uploads
            server.behave()
        server.misbehave(faults[0])
        assert store.push(name, f"{other.host}/a:1", recompress=True).digest != image.digest


def test_a_failing_target_is_not_taken_for_a_failing_source(
    store_dirs: StoreDirs, server: MemoryRegistry, other: MemoryRegistry
) -> None:
    name = stock(server, make(13))
    other.misbehave(Fault(method="PUT", path=UPLOADS, status=503))
    with opened(store_dirs, retries=0, uploads=1) as store:
        store.pull(name)
        log = Log()
        with pytest.raises(orlop.Unavailable, match=other.host):
            store.push(name, f"{other.host}/a:1", call=Call(observer=log))
    assert not log.warnings
    assert not other.uploads


def test_a_layer_that_an_image_has_twice_is_sent_once(
    store_dirs: StoreDirs, server: MemoryRegistry, other: MemoryRegistry
) -> None:
    tar = Layer().file("file", b"x" * 5000).tar()
    image = images.make_image([tar, tar], compression="zstd")
    name = stock(server, image)
    other.single_post = True
    with opened(store_dirs) as store:
        store.pull(name)
        assert store.push(name, f"{other.host}/a:1").digest == image.digest
    assert other.received == sum(map(len, image.blobs.values())) + len(image.document)


def test_a_push_that_is_cancelled_cancels_its_sessions(
    store_dirs: StoreDirs, server: MemoryRegistry, other: MemoryRegistry
) -> None:
    name = stock(server, make(14, size=1_000_000))
    token = orlop.CancelToken()

    class Canceller(Log):
        def progress(self, event: orlop.Progress) -> None:
            if event.phase == "pushing" and event.total > 100_000:  # a layer, with a session of its own
                token.cancel()

    with opened(store_dirs, keep_blobs=True, uploads=1) as store:
        store.pull(name)
        with pytest.raises(orlop.Cancelled):
            store.push(name, f"{other.host}/a:1", call=Call(observer=Canceller(), cancel=token))
    assert other.seen("DELETE", UPLOADS)
    assert not other.uploads
    assert not other.manifests


# ------------------------------------------------------------------ fetch-blobs


def test_fetched_blobs_stay_and_carry_the_image_anywhere(
    store_dirs: StoreDirs, server: MemoryRegistry, other: MemoryRegistry
) -> None:
    image = make(15, size=600_000)
    name = stock(server, image)
    with opened(store_dirs) as store:
        store.pull(name)
        assert [layer.blob_present for layer in store.inspect(name).layers] == [False, False]
        server.misbehave(Fault(method="GET", path="/blobs/", cut_after=250_000, times=1))
        fetched = store.fetch_blobs(name)
        assert fetched.fetched == tuple(layers_of(image))
        assert fetched.size == sum(len(image.blobs[digest]) for digest in layers_of(image))
        assert [layer.blob_present for layer in store.inspect(name).layers] == [True, True]
        again = store.fetch_blobs(name)
        assert (again.fetched, again.present) == ((), fetched.fetched)
        store.collect()
        server.misbehave(Fault(status=500))
        assert store.push(name, f"{other.host}/a:1").digest == image.digest
        store.remove(name)
        assert not list((store_dirs.root / "content/blobs/sha256").iterdir())


def test_blobs_that_cannot_be_had_are_named_and_the_others_are_kept(
    store_dirs: StoreDirs, server: MemoryRegistry
) -> None:
    image = make(16)
    name = stock(server, image)
    lost, there = layers_of(image)
    with opened(store_dirs, retries=0) as store:
        store.pull(name)
        server.misbehave(Fault(method="GET", path=lost, corrupt=True))
        with pytest.raises(orlop.FailedPrecondition, match=lost):
            store.fetch_blobs(name)
        assert [layer.blob_present for layer in store.inspect(name).layers] == [False, True]
        server.behave()
        assert store.fetch_blobs(name).fetched == (lost,)
        assert there in server.blobs


def test_an_image_without_a_manifest_has_no_blobs_to_fetch(
    store_dirs: StoreDirs, server: MemoryRegistry
) -> None:
    with opened(store_dirs) as store:
        store.pull(stock(server, make(17)))
        with store.prepare(f"{server.host}/app:v1", store_dirs.work / "root", mount=True) as root:
            (store_dirs.work / "root/new").touch()
            root.commit("localhost/mine:1")
        with pytest.raises(orlop.FailedPrecondition, match="no manifest"):
            store.fetch_blobs("localhost/mine:1")
        store.push("localhost/mine:1", f"{server.host}/mine:1")
        server.blobs.clear()  # what orlop made it makes again; the base was never seen otherwise
        with pytest.raises(orlop.FailedPrecondition):
            store.fetch_blobs("localhost/mine:1")
        assert [layer.blob_present for layer in store.inspect("localhost/mine:1").layers] == [
            False,
            False,
            True,
        ]


# ------------------------------------------------------------------ real judges


def test_every_tag_is_what_skopeo_reads(store_dirs: StoreDirs, registry: Registry) -> None:
    image = make(18)
    images.push(registry, "push/app", "v1", image)
    target = f"{registry.host}/push/tags"
    with opened(store_dirs, insecure_registries=(registry.host,)) as store:
        store.pull(f"{registry.host}/push/app:v1")
        store.push(f"{registry.host}/push/app:v1", f"{target}:1", tags=("2",))
    for tag in ("1", "2"):
        done = subprocess.run(
            ["skopeo", "inspect", "--raw", "--tls-verify=false", f"docker://{target}:{tag}"],
            check=True,
            capture_output=True,
            timeout=60,
        )
        assert done.stdout == image.document


@pytest.mark.hostile(38)
@pytest.mark.distribution("push.chunked.status")
def test_an_upload_to_docker_registry_outlasts_an_nginx_that_is_killed(
    workdir: Path, registry: Registry
) -> None:
    """Its sessions do not (2.8 has no resumable push): the blob goes again, whole, in a new one."""
    data = os.urandom(3 << 20)
    digest = Digest.of(data)
    settings = Settings(retries=4, timeout=60.0)
    with (
        nginx.front(workdir / "nginx", registry.host) as front,
        contextlib.closing(Client(settings, CredentialSources(), backoff=Backoff(base=0.05))) as client,
    ):
        opened_at: list[int] = []

        def open_at(offset: int) -> Iterator[bytes]:
            opened_at.append(offset)
            for at in range(offset, len(data), 1 << 18):
                if len(opened_at) == 1 and at == 2 << 20:
                    front.cut()
                yield data[at : at + (1 << 18)]

        ref = Reference.parse(f"{front.host}/push/cut:1")
        client.upload_blob(ref, open_at, digest=digest, size=len(data), call=Call())
        assert opened_at[0] == 0
        assert len(opened_at) == 2
    assert registry.request(f"/v2/push/cut/blobs/{digest}")[2] == data


@pytest.mark.distribution("push.chunked")
@pytest.mark.parametrize("sized", [True, False])
def test_docker_registry_takes_chunks(registry: Registry, sized: bool) -> None:
    data = os.urandom(700_000)
    digest = Digest.of(data)

    def open_at(offset: int) -> Iterator[bytes]:
        yield from (data[at : at + 10_000] for at in range(offset, len(data), 10_000))

    settings = Settings(upload_chunk=200_000)
    with contextlib.closing(Client(settings, CredentialSources())) as client:
        ref = Reference.parse(f"{registry.host}/push/chunks:1")
        client.upload_blob(ref, open_at, digest=digest, size=len(data) if sized else None, call=Call())
    assert registry.request(f"/v2/push/chunks/blobs/{digest}")[2] == data
