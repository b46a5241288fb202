"""The verbs on registries, against registries in memory that misbehave: lists, referrers, deletes, copies."""

from __future__ import annotations

import base64
import json
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

import orlop
from orlop.config import Limits, Settings
from orlop.errors import (
    DataLoss,
    Error,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    Unavailable,
    Unimplemented,
)
from orlop.observe import Call, NullObserver, Progress
from orlop.registry.access.credentials import CredentialSources
from orlop.registry.client import Registry
from orlop.registry.net.retry import Backoff
from orlop.remote.verbs import Remote
from orlop.spec.documents import OCI_INDEX, OCI_MANIFEST
from orlop.testing.registry import Fault, MemoryRegistry
from support import images
from support.layers import Layer

QUICK = Backoff(base=0.001)
PASSWORD = "hunter2-of-the-user"


class Log(NullObserver):
    """What an observer is told."""

    def __init__(self) -> None:
        self.events: list[Progress] = []
        self.warnings: list[str] = []

    def progress(self, event: Progress) -> None:
        self.events.append(event)

    def warning(self, text: str) -> None:
        self.warnings.append(text)

    def phases(self, item: str) -> list[str]:
        return [event.phase for event in self.events if event.item == item]


def open_remote(*, auth: Path | None = None, limits: Limits | None = None, **more: object) -> Remote:
    settings = Settings(**{"timeout": 5.0, "retries": 2, "limits": limits or Limits(), **more})  # type: ignore[arg-type]
    sources = CredentialSources(files=() if auth is None else (str(auth),))
    return Remote(settings, registry=Registry(settings, sources, backoff=QUICK))


@pytest.fixture
def one() -> Iterator[MemoryRegistry]:
    with MemoryRegistry() as registry:
        yield registry


@pytest.fixture
def two() -> Iterator[MemoryRegistry]:
    with MemoryRegistry() as registry:
        yield registry


@pytest.fixture
def remote() -> Iterator[Remote]:
    with open_remote() as opened:
        yield opened


def image(size: int = 20_000, seed: int = 1, **how: object) -> images.Image:
    data = random.Random(seed).randbytes(size)
    return images.make_image([Layer().file("file", data).tar()], **how)  # type: ignore[arg-type]


def stock(registry: MemoryRegistry, made: images.Image, repository: str = "app", tag: str = "v1") -> str:
    """Put an image and its parts into a registry; its name."""
    for part in made.parts:
        stock(registry, part, repository, part.digest)
    for data in made.blobs.values():
        registry.add_blob(repository, data)
    registry.add_manifest(repository, tag, made.document, made.media_type)
    return f"{registry.host}/{repository}:{tag}"


def whole(registry: MemoryRegistry, made: images.Image, repository: str) -> bool:
    """Whether a registry has an image with all its parts in a repository, byte for byte."""
    return (
        all(whole(registry, part, repository) for part in made.parts)
        and all(
            registry.blobs.get(digest) == data and repository in registry.blob_owners[digest]
            for digest, data in made.blobs.items()
        )
        and registry.manifests.get((repository, made.digest)) == (made.media_type, made.document)
    )


def layer_of(made: images.Image) -> str:
    return str(json.loads(made.document)["layers"][0]["digest"])


def artifact(subject: images.Image | bytes, kind: str = "a/b", note: str = "") -> bytes:
    """A manifest that refers to another."""
    data = subject.document if isinstance(subject, images.Image) else subject
    empty = {
        "mediaType": "application/vnd.oci.empty.v1+json",
        "digest": images.digest_of(b"{}"),
        "size": 2,
    }
    document = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "artifactType": kind,
        "config": empty,
        "layers": [empty],
        "subject": {"mediaType": OCI_MANIFEST, "digest": images.digest_of(data), "size": len(data)},
        **({"annotations": {"note": note}} if note else {}),
    }
    return json.dumps(document).encode()


def log_in(folder: Path, *hosts: str) -> Path:
    secret = base64.b64encode(f"user:{PASSWORD}".encode()).decode()
    path = folder / "auth.json"
    path.write_text(json.dumps({"auths": {host: {"auth": secret} for host in hosts}}))
    return path


# ---------------------------------------------------------------------- tags


@pytest.mark.distribution("tags.list", "tags.pagination", "tags.short-page", "tags.last")
def test_tags_come_page_by_page_each_once(one: MemoryRegistry, remote: Remote) -> None:
    tags = [f"v{number:03}" for number in range(25)]
    for tag in tags:
        one.add_manifest("app", tag, b"{}", OCI_MANIFEST)
    one.tags_page = 4
    name = f"{one.host}/app"
    assert remote.tags(name) == tags
    assert len(one.seen("GET", "/tags/list")) == 7
    assert remote.tags(name, last="v003") == tags[4:]
    assert remote.tags(name, count=6) == tags[:6]
    assert remote.tags(name, last="v003", count=1) == ["v004"]
    assert remote.tags(name, count=2**70) == tags
    with pytest.raises(InvalidArgument, match="negative"):
        remote.tags(name, count=-1)
    with pytest.raises(InvalidArgument, match="UTF-8"):
        remote.tags(name, last="\udcff")
    one.misbehave(Fault(path="/tags/", status=200, body=b'{"name":"app","tags":null}', times=1))
    assert remote.tags(name) == []
    one.misbehave(Fault(path="/tags/", status=200, body=json.dumps({"tags": tags}).encode(), times=1))
    assert remote.tags(name, last="v020") == tags[21:]  # a registry that knows no pages
    with pytest.raises(NotFound):
        remote.tags(f"{one.host}/other")


@pytest.mark.hostile(23)
def test_a_next_page_on_another_host_is_not_asked_for(one: MemoryRegistry, tmp_path: Path) -> None:
    with MemoryRegistry(auth="basic", users={"user": PASSWORD}) as thief:
        one.auth, one.users = "basic", {"user": PASSWORD}
        one.add_manifest("app", "v1", b"{}", OCI_MANIFEST)
        port = one.host.rpartition(":")[2]
        auth = log_in(tmp_path, one.host, thief.host)
        with open_remote(auth=auth) as remote:
            for link in (
                f"{thief.url}/v2/app/tags/list",
                f"//{thief.host}/x",
                f"http://localhost:{port}/v2/",
            ):
                one.misbehave(Fault(path="/tags/|/referrers/", headers={"Link": f'<{link}>; rel="next"'}))
                asked = [
                    lambda: remote.tags(f"{one.host}/app"),
                    lambda: remote.referrers(f"{one.host}/app:v1"),
                ]
                for ask in asked:
                    before = len(one.requests)
                    with pytest.raises(Unavailable, match="on another host"):
                        ask()
                    assert len(one.requests) <= before + 3
                one.behave()
            one.misbehave(Fault(path="/tags/", headers={"Link": '<ftp://x/y>; rel="next"'}))
            with pytest.raises(Unavailable):
                remote.tags(f"{one.host}/app")
        assert not thief.requests


@pytest.mark.hostile(15)
def test_pages_in_a_circle_and_without_an_end_are_given_up(one: MemoryRegistry) -> None:
    one.add_manifest("app", "v1", b"{}", OCI_MANIFEST)
    name = f"{one.host}/app"
    with open_remote(limits=Limits(pages=5)) as remote:
        one.misbehave(Fault(path="/tags/", headers={"Link": '</v2/app/tags/list?n=1>; rel="next"'}))
        with pytest.raises(Unavailable, match="in a circle"):
            remote.tags(name)
        one.behave()
        for number in range(20):
            link = f'</v2/app/tags/list?again={number + 1}>; rel="next"'
            one.misbehave(Fault(path=f"again={number}$|list.n=1000", headers={"Link": link}, times=1))
        with pytest.raises(ResourceExhausted, match="pages is more than 5") as caught:
            remote.tags(name)
        assert caught.value.details["limit"] == "pages"
        assert len(one.seen("GET", "/tags/")) < 12


@pytest.mark.hostile(15)
def test_a_list_past_its_limits_is_refused_by_name(one: MemoryRegistry) -> None:
    made = image()
    stock(one, made)
    for number in range(3):
        one.add_manifest("app", f"t{number}", b"{}", OCI_MANIFEST)
        data = artifact(made, note=str(number))
        one.add_manifest("app", images.digest_of(data), data, OCI_MANIFEST)
    name = f"{one.host}/app"
    with open_remote(limits=Limits(tags=4, referrers=3)) as remote:
        assert len(remote.tags(name)) == 4
        assert len(remote.referrers(f"{name}:v1")) == 3
    for limit in ("tags", "referrers"):
        with open_remote(limits=Limits(tags=3, referrers=2)) as remote:
            with pytest.raises(ResourceExhausted) as caught:
                remote.tags(name) if limit == "tags" else remote.referrers(f"{name}:v1")
            assert caught.value.details["limit"] == limit
            assert f"raise limits.{limit}" in caught.value.hint
    with open_remote(limits=Limits(tags=3)) as remote:
        assert remote.tags(name, count=3) == ["t0", "t1", "t2"]
    size = len(json.dumps({"name": "app", "tags": ["t0", "t1", "t2", "v1"]}))
    with open_remote(limits=Limits(page_size=size)) as remote:
        assert len(remote.tags(name)) == 4
    with open_remote(limits=Limits(page_size=size - 1)) as remote:
        with pytest.raises(ResourceExhausted) as caught:
            remote.tags(name)
        assert caught.value.details["limit"] == "page_size"


@pytest.mark.hostile(15)
def test_a_list_that_is_none_is_refused_and_a_tag_that_is_none_left_out(
    one: MemoryRegistry, remote: Remote
) -> None:
    name = f"{one.host}/app"
    deep = b'{"tags":' + b"[" * 1000 + b"]" * 1000 + b"}"
    for body in (b"", b"[]", b'{"tags":{}}', b'{"tags":[1]}', b'{"tags":"a"}', b"<html>", b"\xff", deep):
        one.behave()
        one.misbehave(Fault(path="/tags/", status=200, body=body))
        with pytest.raises((InvalidArgument, ResourceExhausted)):
            remote.tags(name)
    one.behave()
    log = Log()
    tags = ["ok", "../x", "a\u001b[31m", "", "x" * 200, "ok"]
    one.misbehave(Fault(path="/tags/", status=200, body=json.dumps({"tags": tags}).encode()))
    assert remote.tags(name, call=Call(observer=log)) == ["ok"]
    assert "4 names that cannot be tags" in log.warnings[0]


# ---------------------------------------------------------------------- manifests


def test_a_manifest_comes_byte_for_byte_and_by_platform(one: MemoryRegistry, remote: Remote) -> None:
    parts = [image(seed=1, platform="linux/amd64"), image(seed=2, platform="linux/arm64")]
    index = images.make_index(parts)
    name = stock(one, index)
    found = remote.manifest(name)
    assert (found.data, found.digest, found.media_type) == (index.document, index.digest, index.media_type)
    assert found.name == f"{one.host}/app@{index.digest}"
    assert remote.manifest(name, platform="linux/arm64").data == parts[1].document
    assert remote.manifest(name, platform="linux/arm64", config=True).data == parts[1].config
    with pytest.raises(NotFound, match="no image for linux/s390x; there are linux/amd64, linux/arm64"):
        remote.manifest(name, platform="linux/s390x")
    plain = stock(one, parts[1], tag="plain")  # no index: its config says what it is for
    assert remote.manifest(plain, platform="linux/arm64").data == parts[1].document
    for ask in (
        lambda: remote.manifest(plain, platform="linux/amd64"),
        lambda: remote.copy(plain, f"{one.host}/other:1", platform="linux/amd64"),
    ):
        with pytest.raises(FailedPrecondition, match="is for linux/arm64, not for linux/amd64"):
            ask()
    one.misbehave(Fault(path=parts[1].digest, corrupt=True))
    with pytest.raises(Error):
        remote.manifest(name, platform="linux/arm64")


# ---------------------------------------------------------------------- referrers


@pytest.mark.distribution(
    "referrers.api", "referrers.pagination", "referrers.filter", "referrers.fallback", "push.subject"
)
@pytest.mark.parametrize("api", [True, False])
def test_referrers_are_found_by_the_api_or_by_its_tag(one: MemoryRegistry, remote: Remote, api: bool) -> None:
    one.referrers_api = api
    made = image()
    name = stock(one, made)
    assert remote.referrers(name) == []
    pushed = []
    for kind in ("a/sbom", "a/signature", "a/sbom"):
        done = remote.push_artifact(
            f"{one.host}/app", artifact_type=kind, annotations={"n": str(len(pushed))}, subject=name
        )
        pushed.append(done.digest)
    one.tags_page = 2
    found = remote.referrers(name)
    assert sorted(one.digest for one in found) == sorted(pushed)
    assert {one.artifact_type for one in found} == {"a/sbom", "a/signature"}
    assert {one.annotations["n"] for one in found} == {"0", "1", "2"}
    for filters in (True, False):
        one.filters = filters
        chosen = remote.referrers(f"{one.host}/app@{made.digest}", artifact_type="a/signature")
        assert [entry.digest for entry in chosen] == [pushed[1]]
    tagged = ("app", f"sha256-{made.digest[7:]}") in one.manifests
    assert tagged != api


@pytest.mark.distribution("push.subject.empty", "push.subject.no-duplicate", "push.subject.artifact-type")
def test_the_tag_of_referrers_names_each_once_with_its_type(one: MemoryRegistry, remote: Remote) -> None:
    one.referrers_api = False
    made = image()
    name = stock(one, made)
    for _ in range(2):
        remote.push_artifact(f"{one.host}/app", artifact_type="a/b", annotations={"k": "v"}, subject=name)
    media_type, data = one.manifests["app", f"sha256-{made.digest[7:]}"]
    assert media_type == OCI_INDEX
    (entry,) = json.loads(data)["manifests"]
    assert (entry["artifactType"], entry["annotations"]) == ("a/b", {"k": "v"})
    assert entry["digest"] in {target for _, target in one.manifests}


@pytest.mark.distribution("push.subject.not-an-index", "referrers.fallback.none")
def test_a_tag_that_is_no_list_of_referrers_is_left_alone_and_that_is_told(
    one: MemoryRegistry, remote: Remote
) -> None:
    one.referrers_api = False
    made = image()
    name, tag = stock(one, made), f"sha256-{made.digest[7:]}"
    stock(one, made, "app", tag)
    log = Log()
    remote.push_artifact(f"{one.host}/app", subject=name, call=Call(observer=log))
    assert any("no list of referrers" in text for text in log.warnings)
    assert one.manifests["app", tag] == (made.media_type, made.document)
    assert remote.referrers(name) == []


@pytest.mark.hostile(15, 18)
def test_a_list_of_referrers_made_to_hurt_is_refused(one: MemoryRegistry, remote: Remote) -> None:
    name = stock(one, image())
    entry = {"mediaType": OCI_MANIFEST, "digest": "sha256:../../x", "size": 1}
    both = {"schemaVersion": 2, "manifests": [], "layers": []}
    bodies = (
        b"",
        b"[]",
        json.dumps({"schemaVersion": 2, "manifests": [entry]}).encode(),
        json.dumps({"schemaVersion": 2, "manifests": [{**entry, "size": -1}]}).encode(),
        json.dumps(both).encode(),
        b'{"manifests":' + b"[" * 5000,
    )
    for body in bodies:
        one.behave()
        answer = Fault(path="/referrers/", status=200, headers={"Content-Type": OCI_INDEX}, body=body)
        one.misbehave(answer)
        with pytest.raises((InvalidArgument, ResourceExhausted)):
            remote.referrers(name)
    one.behave()
    one.misbehave(Fault(path="/referrers/", status=200, body=b"<html>a page for people"))
    assert remote.referrers(name) == []  # a registry that does not know the page, and has no tag


# ---------------------------------------------------------------------- deleting


@pytest.mark.distribution("delete.tag", "delete.manifest", "delete.disabled")
def test_a_tag_goes_alone_and_a_digest_with_all_its_tags(one: MemoryRegistry, remote: Remote) -> None:
    made = image()
    for tag in ("v1", "v2", "v3"):
        stock(one, made, tag=tag)
    name = f"{one.host}/app"
    assert remote.delete(f"{name}:v1") == orlop.Deleted(name=f"{name}:v1")
    assert remote.tags(name) == ["v2", "v3"]
    one.deletes = "manifests"
    with pytest.raises(Unimplemented, match="does not delete tags") as caught:
        remote.delete(f"{name}:v2")
    assert "--manifest" in caught.value.hint
    assert remote.delete(f"{name}:v2", manifest=True).digest == made.digest
    assert not one.manifests
    with pytest.raises(NotFound):
        remote.delete(f"{name}:v2", manifest=True)
    with pytest.raises(NotFound):
        remote.delete(f"{name}@{made.digest}")
    one.deletes = ""
    stock(one, made)
    for refused in (405, 400):
        one.misbehave(Fault(method="DELETE", status=refused, times=1))
        with pytest.raises(Unimplemented, match="does not delete"):
            remote.delete(f"{name}@{made.digest}")


@pytest.mark.distribution("delete.subject")
@pytest.mark.parametrize("api", [True, False])
def test_a_referrer_that_is_deleted_leaves_the_list(one: MemoryRegistry, remote: Remote, api: bool) -> None:
    one.referrers_api = api
    name = stock(one, image())
    kept, gone = (
        remote.push_artifact(f"{one.host}/app", artifact_type=kind, subject=name) for kind in ("a/b", "c/d")
    )
    remote.delete(gone.name)
    assert [entry.digest for entry in remote.referrers(name)] == [kept.digest]
    remote.delete(kept.name)
    assert remote.referrers(name) == []


def test_a_token_for_deleting_is_asked_for(tmp_path: Path) -> None:
    with MemoryRegistry(auth="bearer", users={"user": PASSWORD}) as registry:
        name = stock(registry, image())
        with open_remote(auth=log_in(tmp_path, registry.host)) as remote:
            remote.delete(name, manifest=True)
    assert "repository%3Aapp%3Adelete" in registry.seen("GET", "/token")[-1].path


# ---------------------------------------------------------------------- copying


@pytest.mark.distribution("push.manifest.order", "push.manifest.bytes", "push.manifest.content-type")
def test_an_index_is_copied_whole_and_a_second_time_nothing_is_sent(
    one: MemoryRegistry, two: MemoryRegistry, remote: Remote
) -> None:
    docker = images.make_index(
        [image(seed=1, docker=True), image(seed=2, platform="linux/arm64")], docker=True
    )
    index = images.make_index([image(seed=3), image(seed=4, platform="linux/arm64")])
    for made in (docker, index, image(seed=5, docker=True)):
        source = stock(one, made)
        done = remote.copy(source, f"{two.host}/b/c:1", tags=("2", "3"), all_platforms=bool(made.parts))
        assert (done.digest, done.source_digest, done.media_type) == (
            made.digest,
            made.digest,
            made.media_type,
        )
        assert done.names == tuple(f"{two.host}/b/c:{tag}" for tag in "123")
        assert whole(two, made, "b/c")
        for tag in "123":
            assert two.manifests["b/c", tag] == (made.media_type, made.document)
        before = len(two.requests)
        again = remote.copy(source, f"{two.host}/b/c:1", tags=("2", "3"))
        assert (again.sent, again.mounted, again.size) == (0, 0, 0)
        assert {seen.method for seen in two.requests[before:]} == {"HEAD"}
        puts = [seen.path for seen in two.requests if seen.method == "PUT" and "/manifests/" in seen.path]
        assert [path.rpartition("/")[2] for path in puts[-3:]] == list("123")  # names last
    assert not two.uploads


def test_one_platform_of_an_index_is_copied_with_its_own_digest(
    one: MemoryRegistry, two: MemoryRegistry, remote: Remote
) -> None:
    parts = [image(seed=1, platform="linux/amd64"), image(seed=2, platform="linux/arm64")]
    index = images.make_index(parts)
    source = stock(one, index)
    done = remote.copy(source, f"{two.host}/b:1", platform="linux/arm64")
    assert (done.digest, done.source_digest) == (parts[1].digest, index.digest)
    assert whole(two, parts[1], "b")
    assert ("b", parts[0].digest) not in two.manifests
    by_digest = f"{two.host}/c@{parts[1].digest}"
    assert remote.copy(source, by_digest, platform="linux/arm64").names == (by_digest,)
    for arguments in (
        {"platform": "linux/arm64", "all_platforms": True},
        {"platform": "no platform"},
        {"tags": ("a/b",)},
    ):
        with pytest.raises(InvalidArgument):
            remote.copy(source, f"{two.host}/d:1", **arguments)  # type: ignore[arg-type]
    with pytest.raises(InvalidArgument, match="is not that of what is copied"):
        remote.copy(source, by_digest)
    assert not any(repository == "d" for repository, _ in two.manifests)


@pytest.mark.distribution("mount.from", "mount.refused")
def test_within_a_registry_blobs_are_mounted_or_sent_where_that_is_refused(
    one: MemoryRegistry, remote: Remote
) -> None:
    made = image()
    source = stock(one, made)
    done = remote.copy(source, f"{one.host}/b:1")
    assert (done.mounted, done.sent) == (2, 0)
    assert not one.seen("GET", "/blobs/")
    one.mounts = False
    done = remote.copy(source, f"{one.host}/c:1")
    assert (done.mounted, done.sent) == (0, 2)
    assert whole(one, made, "b")
    assert whole(one, made, "c")
    # to itself, under another tag
    done = remote.copy(source, f"{one.host}/app:v2")
    assert (done.mounted, done.sent, done.size) == (0, 0, 0)
    assert one.manifests["app", "v2"] == one.manifests["app", "v1"]


def test_a_blob_that_stands_twice_is_sent_once(
    one: MemoryRegistry, two: MemoryRegistry, remote: Remote
) -> None:
    layer = Layer().file("a", b"b" * 5000).tar()
    made = images.make_image([layer, layer])
    remote.copy(stock(one, made), f"{two.host}/b:1")
    assert whole(two, made, "b")
    assert len(one.seen("GET", layer_of(made))) == 1


@pytest.mark.hostile(38)
def test_a_source_that_breaks_off_again_and_again_is_gone_on_with(
    one: MemoryRegistry, two: MemoryRegistry, remote: Remote
) -> None:
    made = image(1_000_000)
    source, blob = stock(one, made), layer_of(made)
    one.misbehave(Fault(method="GET", path=blob, cut_after=200_000, times=4))
    done = remote.copy(source, f"{two.host}/b:1")
    assert whole(two, made, "b")
    assert done.sent == 2
    ranges = [seen.headers.get("range") for seen in one.seen("GET", blob)]
    assert ranges[0] is None
    assert all(ranges[1:])
    # one that ignores ranges begins again, and what was sent is not sent twice
    one.misbehave(
        Fault(method="GET", path=blob, cut_after=400_000, times=1),
        Fault(method="GET", path=blob, ignore_range=True),
    )
    remote.copy(source, f"{two.host}/c:1")
    assert whole(two, made, "c")


@pytest.mark.hostile(38)
@pytest.mark.distribution("push.chunked", "push.chunked.range")
def test_a_target_that_breaks_off_is_gone_on_with_and_the_source_read_on_from_there(
    one: MemoryRegistry, two: MemoryRegistry, remote: Remote
) -> None:
    made = image(3_000_000)
    source, blob = stock(one, made), layer_of(made)
    two.misbehave(Fault(method="PATCH", path="/b/blobs/uploads/", cut_request=1_000_000, times=2))
    remote.copy(source, f"{two.host}/b:1")
    assert whole(two, made, "b")
    assert not two.uploads
    assert two.received < len(made.blobs[blob]) * 1.5
    assert len(one.seen("GET", blob)) > 1
    # a source that changes its mind between two readings brings no blob about, and no name
    one.behave()
    right = one.blobs[blob]
    two.misbehave(Fault(method="PATCH", path="/c/blobs/uploads/", cut_request=1_000_000, times=1))

    class Liar(Log):
        def progress(self, event: Progress) -> None:
            if event.item == blob:
                one.blobs[blob] = right[:2_000_000] + b"lies" + right[2_000_004:]

    with pytest.raises(Error):
        remote.copy(source, f"{two.host}/c:1", call=Call(observer=Liar()))
    assert ("c", "1") not in two.manifests


@pytest.mark.hostile(16, 19)
def test_a_source_with_other_bytes_leaves_no_blob_no_manifest_and_no_session(
    one: MemoryRegistry, two: MemoryRegistry
) -> None:
    # One blob at a time: of two, one would end while the other's session is being opened, and nobody knows it.
    with open_remote(uploads=1) as remote:
        send_other_bytes(one, two, remote)


def send_other_bytes(one: MemoryRegistry, two: MemoryRegistry, remote: Remote) -> None:
    made = image(300_000)
    source, blob = stock(one, made), layer_of(made)
    right = one.blobs[blob]
    for wrong in (b"x" + right[1:], right[:-1], right + b"x", b"", right * 3):
        one.blobs[blob] = wrong
        with pytest.raises((DataLoss, Unavailable)):
            remote.copy(source, f"{two.host}/b:1")
        assert blob not in two.blobs
        assert not two.manifests
        assert not two.uploads
    one.blobs[blob] = right
    one.misbehave(Fault(method="GET", path=blob, cut_after=1000))
    with pytest.raises(Unavailable):
        remote.copy(source, f"{two.host}/b:1")
    assert len(one.seen("GET", blob)) < 40
    one.behave()
    remote.copy(source, f"{two.host}/b:1")
    assert whole(two, made, "b")


@pytest.mark.hostile(15, 17, 18)
def test_documents_made_to_hurt_are_not_copied(one: MemoryRegistry, two: MemoryRegistry) -> None:
    made = image()
    nested = made
    for _ in range(3):
        nested = images.make_index([nested])
    source = stock(one, nested)
    with open_remote(limits=Limits(index_nesting=2)) as remote:
        with pytest.raises(ResourceExhausted) as caught:
            remote.copy(source, f"{two.host}/b:1")
        assert caught.value.details["limit"] == "index_nesting"
    wide = images.make_index([image(seed=n) for n in range(3)])
    for most, fits in ((4, True), (3, False)):
        with open_remote(limits=Limits(index_manifests=most)) as remote:
            if fits:
                remote.copy(stock(one, wide, tag="wide"), f"{two.host}/wide:1")
                two.manifests.clear()
                continue
            with pytest.raises(ResourceExhausted) as caught:
                remote.copy(f"{one.host}/app:wide", f"{two.host}/wide:1")
            assert caught.value.details["limit"] == "index_manifests"
            assert ("wide", "1") not in two.manifests
    with open_remote(limits=Limits(index_nesting=3)) as remote:
        remote.copy(source, f"{two.host}/b:1")
        assert whole(two, nested, "b")
        two.manifests.clear()  # what arrived before a refusal may stay, but no name
        manifest = json.loads(made.document)
        for name, change in {
            "both": {"manifests": []},
            "digest": {"config": {**manifest["config"], "digest": "sha256:../../etc/passwd"}},
            "size": {"config": {**manifest["config"], "size": -5}},
            "type": {"mediaType": OCI_INDEX},
        }.items():
            data = json.dumps({**manifest, **change}).encode()
            one.add_manifest("app", name, data, made.media_type)
            with pytest.raises(InvalidArgument):
                remote.copy(f"{one.host}/app:{name}", f"{two.host}/b:1")
        assert not two.manifests


@pytest.mark.hostile(20)
def test_urls_of_foreign_layers_are_never_asked_and_such_layers_left_out(
    one: MemoryRegistry, two: MemoryRegistry, remote: Remote
) -> None:
    made = image()
    document = json.loads(made.document)
    with MemoryRegistry(auth="basic") as thief:
        foreign = {
            "mediaType": "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
            "digest": images.digest_of(b"elsewhere"),
            "size": 9,
            "urls": [f"{thief.url}/layer"],
        }
        document["layers"].append(foreign)
        data = json.dumps(document).encode()
        stock(one, made)
        one.add_manifest("app", "foreign", data, made.media_type)
        log = Log()
        remote.copy(f"{one.host}/app:foreign", f"{two.host}/b:1", call=Call(observer=log))
        assert not thief.requests
        assert not one.seen("GET", str(foreign["digest"]))
        with open_remote(nondistributable=True) as bold, pytest.raises(NotFound):
            bold.copy(f"{one.host}/app:foreign", f"{two.host}/c:1")
        one.add_blob("app", b"elsewhere")
        with open_remote(nondistributable=True) as bold:
            bold.copy(f"{one.host}/app:foreign", f"{two.host}/c:1")
        assert "c" in two.blob_owners[str(foreign["digest"])]
        assert not thief.requests
    assert two.manifests["b", "1"] == (made.media_type, data)
    assert any("is left out: it is not to be distributed" in text for text in log.warnings)


@pytest.mark.parametrize("api", [True, False])
def test_what_refers_to_an_image_comes_along_and_what_refers_to_that(
    one: MemoryRegistry, two: MemoryRegistry, remote: Remote, api: bool
) -> None:
    one.referrers_api, two.referrers_api = api, not api
    part = image()
    index = images.make_index([part])
    source = stock(one, index)
    repository = f"{one.host}/app"
    signature = remote.push_artifact(repository, artifact_type="a/signature", subject=source)
    sbom = remote.push_artifact(repository, artifact_type="a/sbom", subject=f"{repository}@{part.digest}")
    over = remote.push_artifact(repository, artifact_type="a/signature", subject=sbom.name)
    target = f"{two.host}/b:1"
    assert remote.copy(source, target).referrers == 0
    assert remote.referrers(target) == []
    for found in (3, 3):
        assert remote.copy(source, target, referrers=True).referrers == found
    assert [one.digest for one in remote.referrers(target)] == [signature.digest]
    assert [one.digest for one in remote.referrers(f"{two.host}/b@{part.digest}")] == [sbom.digest]
    assert [one.digest for one in remote.referrers(f"{two.host}/b@{sbom.digest}")] == [over.digest]


def test_a_copy_tells_how_each_blob_goes_and_stops_when_cancelled(
    one: MemoryRegistry, two: MemoryRegistry, remote: Remote
) -> None:
    made = image(1_000_000)
    source, blob, log = stock(one, made), layer_of(made), Log()
    held = Fault(method="GET", path=blob, hold_after=500_000, times=1)
    one.misbehave(held)
    cancel = orlop.CancelToken()

    class Canceller(Log):
        def progress(self, event: Progress) -> None:
            super().progress(event)
            if event.item == blob and event.done > 0:
                cancel.cancel()

    with pytest.raises(orlop.Cancelled):
        remote.copy(source, f"{two.host}/b:1", call=Call(observer=Canceller(), cancel=cancel))
    held.release.set()
    assert not two.manifests
    remote.copy(source, f"{two.host}/b:1", call=Call(observer=log))
    assert log.phases(blob)[-1] == "done"
    assert log.events[-1].item == f"{two.host}/b:1"
    remote.copy(source, f"{two.host}/c:1", call=Call(observer=(log := Log())))
    assert log.phases(blob)


@pytest.mark.hostile(23, 24)
def test_credentials_of_one_end_do_not_go_to_the_other(tmp_path: Path) -> None:
    users = {"user": PASSWORD}
    with MemoryRegistry(auth="basic", users=users) as one, MemoryRegistry() as two:
        made = image()
        source = stock(one, made)
        with open_remote(auth=log_in(tmp_path, one.host)) as remote:
            remote.copy(source, f"{two.host}/b:1")
        assert whole(two, made, "b")
        assert all("authorization" not in seen.headers for seen in two.requests)
