"""CRI's image service (runtime.v1) of a daemon over a real store: what a kubelet and crictl rely on."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest

import orlop
from conftest import StoreDirs
from orlop.images.store import LocalStore
from orlop.proto.runtime.v1 import images_pb2 as pb
from orlop.proto.runtime.v1 import images_pb2_grpc
from orlop.service import Daemon
from orlop.testing.registry import Fault, MemoryRegistry
from support import images
from support.containerds import containerd
from support.layers import Layer
from support.registries import PASSWORD, USER, Registry

pytestmark = pytest.mark.root

SOON = 120.0  # seconds until a call has surely hung


class Node:
    """What a kubelet does, in its words."""

    def __init__(self, channel: grpc.Channel) -> None:
        self.stub = images_pb2_grpc.ImageServiceStub(channel)

    def list(self, name: str = "") -> list[pb.Image]:
        only = pb.ImageFilter(image=pb.ImageSpec(image=name)) if name else None
        return list(self.stub.ListImages(pb.ListImagesRequest(filter=only), timeout=SOON).images)

    def stream(self) -> list[pb.Image]:
        parts = self.stub.StreamImages(pb.StreamImagesRequest(), timeout=SOON)
        return [image for part in parts for image in part.images]

    def status(self, name: str, *, verbose: bool = False) -> pb.ImageStatusResponse:
        request = pb.ImageStatusRequest(image=pb.ImageSpec(image=name), verbose=verbose)
        return self.stub.ImageStatus(request, timeout=SOON)

    def find(self, name: str) -> pb.Image | None:
        answer = self.status(name)
        return answer.image if answer.HasField("image") else None

    def pull(self, name: str, **auth: str) -> str:
        request = pb.PullImageRequest(
            image=pb.ImageSpec(image=name), auth=pb.AuthConfig(**auth) if auth else None
        )
        return self.stub.PullImage(request, timeout=SOON).image_ref

    def remove(self, name: str) -> None:
        self.stub.RemoveImage(pb.RemoveImageRequest(image=pb.ImageSpec(image=name)), timeout=SOON)


@pytest.fixture
def node(store_dirs: StoreDirs, registry: Registry, registry_auth: Registry) -> Iterator[Callable[..., Node]]:
    """Opens a store with a daemon over it, and a kubelet's connection; with hosts that speak plain HTTP."""
    with served(store_dirs, registry.host, registry_auth.host) as (made, _):
        yield made


@contextmanager
def served(dirs: StoreDirs, *insecure: str, **settings: object) -> Iterator[tuple[Node, LocalStore]]:
    """A daemon over a store, with registries that speak plain HTTP."""
    chosen = orlop.Settings(insecure_registries=insecure, **settings)
    store = LocalStore.open(dirs.root, dirs.run, settings=chosen)
    try:
        with (
            Daemon(store, f"unix://{dirs.run}/d/s.sock") as daemon,
            grpc.insecure_channel(str(daemon.address)) as channel,
        ):
            yield Node(channel), store
    finally:
        store.close()


def code(refused: pytest.ExceptionInfo[grpc.RpcError]) -> grpc.StatusCode:
    return refused.value.code()


def image(text: str, **config: object) -> images.Image:
    return images.make_image([Layer().file("f", text.encode()).tar()], config={"config": config})


def short(digest: str) -> str:
    return digest.removeprefix("sha256:")[:13]  # what crictl shows


# ------------------------------------------------------------------ life of an image


def test_an_image_is_one_whatever_it_is_called_and_goes_by_any_of_its_names(
    node: Node, registry: Registry
) -> None:
    first, other = image("first", User="1000:100"), image("other", User="app:app")
    digest = images.push(registry, "team/app", "1", first)
    for repository, tag in (("team/app", "2"), ("copy", "latest")):
        images.push(registry, repository, tag, first)
    images.push(registry, "other", "1", other)
    app, copy = f"{registry.host}/team/app", f"{registry.host}/copy"

    assert node.list() == [] == node.stream()
    assert node.find(f"{app}:1") is None
    assert node.pull(f"{app}:1") == first.id == node.pull(f"{app}:1")  # again: the same
    assert node.pull(f"{app}@{digest}") == node.pull(f"{app}:2") == node.pull(copy) == first.id
    assert node.pull(f"{registry.host}/other:1") == other.id

    expected = pb.Image(
        id=first.id,
        repo_tags=[f"{copy}:latest", f"{app}:1", f"{app}:2"],
        repo_digests=[f"{copy}@{digest}", f"{app}@{digest}"],
        size=len(first.config) + len(Layer().file("f", b"first").tar()),
        uid=pb.Int64Value(value=1000),
    )
    found = {one.id: one for one in node.list()}
    assert found[first.id] == expected
    assert (found[other.id].username, found[other.id].HasField("uid")) == ("app", False)
    assert node.list() == node.stream()
    for name in (
        *expected.repo_tags,
        *expected.repo_digests,
        copy,
        first.id,
        first.id.removeprefix("sha256:"),
        short(first.id),
        f"{app}:1@{digest}",
    ):
        answered = node.find(name)
        assert answered is not None
        assert answered.spec.image == name
        answered.ClearField("spec")
        assert answered == expected == node.list(name)[0], name
    info = json.loads(node.status(copy, verbose=True).info["info"])
    assert info == {"chainID": first.diff_ids[0], "imageSpec": json.loads(first.config)}
    assert not node.status(copy).info

    node.remove(f"{app}:2")
    assert [one.id for one in node.list()] == [other.id]
    for name in (f"{app}:1", copy, first.id, f"{app}@{digest}"):
        assert node.find(name) is None
        assert node.list(name) == []
        node.remove(name)  # idempotent
    node.remove(other.id.removeprefix("sha256:"))
    assert node.list() == []


@pytest.mark.parametrize("by", ["tag", "digest", "id", "short id"])
def test_an_image_of_an_index_is_told_by_the_indexs_digest(node: Node, registry: Registry, by: str) -> None:
    here, there = image("here"), images.make_image([], platform="linux/s390x")
    name = f"{registry.host}/indexed"
    digest = images.push(registry, "indexed", "1", images.make_index([there, here]))
    assert node.pull(f"{name}:1") == here.id
    [listed] = node.list()
    assert (listed.id, list(listed.repo_digests)) == (here.id, [f"{name}@{digest}"])
    assert node.find(f"{name}@{here.digest}").id == here.id  # also by its own manifest
    called = {"tag": f"{name}:1", "digest": f"{name}@{digest}", "id": here.id, "short id": short(here.id)}
    node.remove(called[by])
    assert node.list() == []


def test_short_names_are_docker_hubs_and_committed_images_have_no_digest(
    store_dirs: StoreDirs, registry: Registry
) -> None:
    base = image("base")
    images.push(registry, "base", "1", base)
    with served(store_dirs, registry.host) as (node, store):
        node.pull(f"{registry.host}/base:1")
        store.tag(f"{registry.host}/base:1", "alpine")
        store.tag(base.id, "user/app:1")
        for name in (
            "alpine",
            "alpine:latest",
            "library/alpine",
            "docker.io/alpine",
            "index.docker.io/user/app:1",
        ):
            assert node.find(name).id == base.id, name
        target = str(store_dirs.work / "a")
        store.prepare_root("alpine", target)
        made = store.commit(target, "localhost/mine")
        told = node.find("localhost/mine:latest")
        assert (told.id, list(told.repo_tags), list(told.repo_digests)) == (made.id, [made.name], [])
        node.remove("alpine")  # a root keeps what it stands on
        assert [one.id for one in node.list()] == [made.id]
        store.cleanup(target)


def test_a_short_name_is_found_where_the_settings_have_it_pulled_from(
    store_dirs: StoreDirs, registry: Registry
) -> None:
    images.push(registry, "shorty", "1", image("short"))
    with served(store_dirs, registry.host, search_registries=(registry.host,)) as (node, _):
        pulled = node.pull("shorty:1")
        told = node.find("shorty:1")
        assert (told.id, list(told.repo_tags)) == (pulled, [f"{registry.host}/shorty:1"])
        node.remove("shorty:1")
        assert node.list() == []


def test_pinned_is_what_a_pin_or_a_label_says_and_only_a_recommendation(
    store_dirs: StoreDirs, registry: Registry
) -> None:
    one = image("pinned")
    images.push(registry, "pause", "1", one)
    name = f"{registry.host}/pause:1"
    with served(store_dirs, registry.host) as (node, store):
        node.pull(name)

        def pinned() -> bool:
            [listed] = node.list()
            assert listed.pinned == node.find(name).pinned
            return listed.pinned

        assert not pinned()
        store.label(name, {"pinned": ""})
        assert pinned()
        store.label(name, {"pinned": None})
        assert not pinned()
        store.pin(name, "sandbox")
        assert pinned()
        node.remove(name)
        assert node.list() == []
        assert node.find(name) is None
        store.unpin("sandbox")


@pytest.mark.hostile(29)
@pytest.mark.parametrize("user", ["4294967296", "4294967295:0", "-1", "99999999999999999999"])
def test_a_number_that_would_wrap_to_root_is_no_uid(node: Node, registry: Registry, user: str) -> None:
    images.push(registry, "wraps", "1", image("wraps", User=user))
    node.pull(f"{registry.host}/wraps:1")
    told = node.find(f"{registry.host}/wraps:1")
    assert (told.HasField("uid"), told.username) == (False, user.partition(":")[0])


def test_an_image_without_layers_has_a_size(node: Node, registry: Registry) -> None:
    empty = images.make_image([])
    images.push(registry, "empty", "1", empty)
    node.pull(f"{registry.host}/empty:1")
    assert node.find(empty.id).size == len(empty.config)
    assert json.loads(node.status(empty.id, verbose=True).info["info"])["chainID"] == ""


def test_a_damaged_config_costs_the_list_nothing_but_its_user(
    store_dirs: StoreDirs, registry: Registry
) -> None:
    one, other = image("damaged", User="7"), image("whole", User="8")
    for tag, made in (("1", one), ("2", other)):
        images.push(registry, "damaged", tag, made)
    with served(store_dirs, registry.host) as (node, _):
        for tag in ("1", "2"):
            node.pull(f"{registry.host}/damaged:{tag}")
        blob = store_dirs.root / "content/blobs" / one.id.replace(":", "/")
        blob.write_bytes(b"{}")
        listed = {image.id: image for image in node.list()}
        assert (listed[one.id].HasField("uid"), listed[other.id].uid.value) == (False, 8)
        assert listed[one.id].size > 0
        with pytest.raises(grpc.RpcError) as refused:
            node.status(one.id)
        assert code(refused) is grpc.StatusCode.DATA_LOSS
        blob.unlink()
        with pytest.raises(grpc.RpcError) as refused:
            node.status(one.id)
        assert code(refused) is grpc.StatusCode.DATA_LOSS
        node.remove(one.id)
        assert [image.id for image in node.list()] == [other.id]


# ------------------------------------------------------------------ credentials and errors


def test_a_pull_has_the_credentials_of_its_request_and_no_others(node: Node, registry_auth: Registry) -> None:
    secret = image("secret")
    images.push(registry_auth, "secret", "1", secret)
    name, host = f"{registry_auth.host}/secret:1", registry_auth.host
    both = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
    refused: list[dict[str, str]] = [
        {},
        {"username": USER, "password": "wrong"},
        {"username": USER, "password": PASSWORD, "server_address": "https://other.example"},
        {"auth": base64.b64encode(b"orlop:wrong").decode()},
    ]
    for auth in refused:
        with pytest.raises(grpc.RpcError) as error:
            node.pull(name, **auth)
        assert code(error) is grpc.StatusCode.UNAUTHENTICATED, auth
        assert PASSWORD not in str(error.value)
        assert node.list() == []
    accepted: list[dict[str, str]] = [
        {"username": USER, "password": PASSWORD},
        {"auth": both},
        {"username": USER, "password": PASSWORD, "server_address": f"https://{host}/v2/"},
        {"auth": both, "server_address": host},
    ]
    for auth in accepted:
        assert node.pull(name, **auth) == secret.id
        node.remove(name)
    with pytest.raises(grpc.RpcError) as error:
        node.pull(name)  # nothing was kept
    assert code(error) is grpc.StatusCode.UNAUTHENTICATED
    with pytest.raises(grpc.RpcError) as error:
        node.pull(name, auth="!!!")
    assert code(error) is grpc.StatusCode.INVALID_ARGUMENT
    assert "!!!" not in str(error.value)


def test_identity_and_registry_tokens_are_used_as_such(store_dirs: StoreDirs) -> None:
    made = image("tokens")
    with MemoryRegistry(auth="bearer") as server, served(store_dirs, server.host) as (node, _):
        stock(server, "app", made)
        name = f"{server.host}/app:1"
        with pytest.raises(grpc.RpcError) as refused:
            node.pull(name)
        assert code(refused) is grpc.StatusCode.UNAUTHENTICATED
        assert node.pull(name, identity_token=server.new_refresh_token("me")) == made.id
        node.remove(name)
        token = server.grant("me", ["repository:app:pull"])
        before = len(server.seen(path="/token"))
        assert node.pull(name, registry_token=token) == made.id
        assert len(server.seen(path="/token")) == before


def stock(server: MemoryRegistry, repository: str, made: images.Image) -> None:
    for blob in made.blobs.values():
        server.add_blob(repository, blob)
    server.add_manifest(repository, "1", made.document, made.media_type)


def test_errors_have_the_codes_and_words_that_a_kubelet_looks_for(
    store_dirs: StoreDirs, registry: Registry
) -> None:
    wrong = grpc.StatusCode.INVALID_ARGUMENT
    with served(store_dirs, registry.host, "127.0.0.1:1", retries=0) as (node, _):
        cases: list[tuple[Callable[[], object], grpc.StatusCode, str]] = [
            (lambda: node.pull(f"{registry.host}/nothing:1"), grpc.StatusCode.NOT_FOUND, "nothing"),
            (lambda: node.pull("127.0.0.1:1/app:1"), grpc.StatusCode.UNAVAILABLE, "RegistryUnavailable: "),
            (lambda: node.pull("Not/A:name:at all"), wrong, "name"),
            (lambda: node.pull(""), wrong, "empty"),
            (lambda: node.pull("sha256:" + "0" * 64), wrong, "ID"),
            (lambda: node.pull("0" * 64), wrong, "ID"),
            (lambda: node.status(""), wrong, "empty"),
            (lambda: node.remove(""), wrong, "empty"),
            (lambda: node.status("NOT A NAME"), wrong, "name"),
        ]
        for call, expected, words in cases:
            with pytest.raises(grpc.RpcError) as refused:
                call()
            assert (code(refused), words in refused.value.details()) == (expected, True), refused.value
        assert node.list() == []


def test_an_id_that_is_there_is_pulled_by_looking(node: Node, registry: Registry) -> None:
    made = image("by id")
    images.push(registry, "byid", "1", made)
    node.pull(f"{registry.host}/byid:1")
    assert node.pull(made.id) == node.pull(made.id.removeprefix("sha256:")) == made.id


def test_a_pods_annotations_and_unknown_fields_do_no_harm(node: Node, registry: Registry) -> None:
    made = image("annotated")
    images.push(registry, "annotated", "1", made)
    spec = pb.ImageSpec(
        image=f"{registry.host}/annotated:1",
        annotations={"kubectl.kubernetes.io/last-applied-configuration": "x" * 200_000},
        user_specified_image="annotated",
        runtime_handler="kata",
    )
    request = pb.PullImageRequest(image=spec, sandbox_config=pb.PodSandboxConfig())
    request.sandbox_config.metadata.name = "pod"
    # A later version's fields, and those of the sandbox that are not ours: 8 (linux) and 99.
    sandbox = request.sandbox_config.SerializeToString() + b"\x42\x03abc" + b"\x9a\x06\x01x"
    raw = pb.PullImageRequest(image=spec).SerializeToString() + b"\x1a" + bytes([len(sandbox)]) + sandbox
    assert node.stub.PullImage(pb.PullImageRequest.FromString(raw), timeout=SOON).image_ref == made.id
    answer = node.stub.ImageStatus(pb.ImageStatusRequest(image=spec), timeout=SOON)
    assert answer.image.spec == spec


# ------------------------------------------------------------------ at the same time, and on disk


def test_a_cancelled_pull_ends_and_leaves_no_image(store_dirs: StoreDirs) -> None:
    made = image("never whole")
    with MemoryRegistry() as server, served(store_dirs, server.host) as (node, store):
        stock(server, "slow", made)
        held = Fault(path="/blobs/", hold_after=0)
        server.misbehave(held)
        name = f"{server.host}/slow:1"
        request = pb.PullImageRequest(image=pb.ImageSpec(image=name))
        pulling = node.stub.PullImage.future(request, timeout=SOON)
        pause = threading.Event()
        while not server.seen(path="/blobs/"):
            assert not pulling.done()
            pause.wait(0.01)
        pulling.cancel()
        assert pulling.cancelled()
        until_idle(store)
        assert node.list() == []
        assert node.find(name) is None
        held.release.set()
        server.behave()
        assert node.pull(name) == made.id


def until_idle(store: LocalStore) -> None:
    """Until no pull holds a lease; bounded."""
    free = threading.Event()
    for _ in range(2_000):
        leases = store._core.db.read(lambda tx: tx.execute("SELECT COUNT(*) FROM leases").fetchone()[0])
        if not leases:
            return
        free.wait(0.05)
    raise AssertionError("a cancelled pull does not end")


def test_pulls_at_once_hold_up_no_list(store_dirs: StoreDirs) -> None:
    with MemoryRegistry() as server, served(store_dirs, server.host) as (node, _):
        slow = image("slow")
        stock(server, "slow", slow)
        held = Fault(path="/slow/blobs/", hold_after=0)
        server.misbehave(held)
        several = [image(f"image {number}") for number in range(6)]
        for number, made in enumerate(several):
            stock(server, f"app{number}", made)
        with ThreadPoolExecutor(8) as pool:
            try:
                waiting = pool.submit(node.pull, f"{server.host}/slow:1")
                jobs = [pool.submit(node.pull, f"{server.host}/app{number}:1") for number in range(6)]
                jobs += [pool.submit(node.pull, f"{server.host}/app0:1")]  # two for one
                assert [job.result(SOON) for job in jobs] == [made.id for made in (*several, several[0])]
                assert {one.id for one in node.list()} == {made.id for made in several}
                assert not waiting.done()
            finally:
                held.release.set()
            assert waiting.result(SOON) == slow.id
        assert node.stream() == node.list()


def test_the_disk_is_told_as_du_counts_it(store_dirs: StoreDirs, registry: Registry) -> None:
    images.push(registry, "disk", "1", images.make_image([Layer().file("f", b"x" * 300_000).tar()]))
    with served(store_dirs, registry.host) as (node, store):
        node.pull(f"{registry.host}/disk:1")
        target = store_dirs.work / "a"
        store.prepare_root(f"{registry.host}/disk:1", str(target))
        usage = {part.kind: part for part in store.usage().parts}
        answer = node.stub.ImageFsInfo(pb.ImageFsInfoRequest(), timeout=SOON)
        [disk], [containers] = answer.image_filesystems, answer.container_filesystems
        assert disk.fs_id.mountpoint == str(store_dirs.root) == containers.fs_id.mountpoint
        kinds = ("layers", "chains", "folders", "blobs", "ingests", "trash")
        assert disk.used_bytes.value == sum(usage[kind].size for kind in kinds) > 300_000
        assert containers.used_bytes.value == usage["roots"].size + usage["snapshots"].size
        places = ("layers", "chains", "folders", "content", "trash")
        assert disk.inodes_used.value >= inodes(store_dirs.root, places) - 2  # content/ itself, and ingest/
        assert 0 < containers.inodes_used.value == inodes(store_dirs.root, ("prepared", "snapshots"))
        again = node.stub.ImageFsInfo(pb.ImageFsInfoRequest(), timeout=SOON)
        assert again.image_filesystems[0].timestamp >= disk.timestamp > 0
        store.cleanup(str(target))


def inodes(root: Path, places: tuple[str, ...]) -> int:
    return sum(1 + len(list((root / place).rglob("*"))) for place in places if (root / place).exists())


# ------------------------------------------------------------------ beside containerd's


def test_the_answers_are_containerds(store_dirs: StoreDirs, workdir: Path, registry: Registry) -> None:
    users = {"number": "1000:1000", "name": "app:app", "nobody": "", "root": "0"}
    made = {name: image(name, **({"User": user} if user else {})) for name, user in users.items()}
    for name, one in made.items():
        images.push(registry, f"peer/{name}", "1", one)
    images.push(registry, "peer/second", "tag", made["number"])
    index = images.make_index([images.make_image([], platform="linux/s390x"), image("of an index")])
    images.push(registry, "peer/index", "1", index)
    at = f"{registry.host}/peer"
    pulls = [f"{at}/{name}:1" for name in made]
    pulls += [f"{at}/second:tag", f"{at}/index:1", f"{at}/name@{made['name'].digest}"]
    with (
        containerd(workdir / "containerd", cri=True) as peer,
        peer.channel() as channel,
        served(store_dirs, registry.host) as (ours, _),
    ):
        theirs = Node(channel)
        assert [ours.pull(name) for name in pulls] == [theirs.pull(name) for name in pulls]

        def told(node: Node) -> dict[str, tuple[object, ...]]:
            return {one.id: plain(one) for one in node.list()}

        assert told(ours) == told(theirs)
        assert len(told(ours)) == len(made) + 1
        asked = [
            *pulls,
            f"{at}/index@{index.digest}",
            f"{at}/number:1@{made['number'].digest}",
            made["root"].id,
            made["root"].id.removeprefix("sha256:"),
            short(made["root"].id),
            f"{at}/absent:1",
            "sha256:" + "0" * 64,
        ]
        for name in asked:
            mine, other = ours.status(name, verbose=True), theirs.status(name, verbose=True)
            assert plain(mine.image) == plain(other.image), name
            assert plain_info(mine.info) == plain_info(other.info), name
        removals = [f"{at}/second:tag", made["root"].id, f"{at}/index@{index.digest}", f"{at}/absent:1"]
        for name in removals:
            for node in (ours, theirs):
                node.remove(name)
            assert told(ours) == told(theirs), name
        for node in (ours, theirs):
            answer = node.stub.ImageFsInfo(pb.ImageFsInfoRequest(), timeout=SOON)
            assert all(one.timestamp > 0 and one.fs_id.mountpoint for one in answer.image_filesystems)
            with pytest.raises(grpc.RpcError) as refused:
                node.pull(f"{at}/absent:1")
            assert code(refused) is grpc.StatusCode.NOT_FOUND


def plain(one: pb.Image) -> tuple[object, ...]:
    """What both should say alike: not the size, which is compressed there, nor the order of names."""
    uid = one.uid.value if one.HasField("uid") else None
    return one.id, sorted(one.repo_tags), sorted(one.repo_digests), uid, one.username, one.pinned


def plain_info(info: dict[str, str]) -> object:
    if not info:
        return None
    said = json.loads(info["info"])
    spec = said["imageSpec"]
    return said["chainID"], spec["rootfs"], spec.get("config", {}), spec["architecture"], spec["os"]
