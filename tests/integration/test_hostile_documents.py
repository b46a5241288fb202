"""Manifests, indexes and configs that are made to hurt, through a pull and through an import: HOSTILE.md 15 to 20, 26."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import orlop
from conftest import StoreDirs
from orlop.service import Daemon
from orlop.testing.registry import Fault, MemoryRegistry
from support import images
from support.layers import Layer
from support.rawserver import Client, RawServer
from support.victims import Victim, victim_at

pytestmark = pytest.mark.root

LIMIT = 100_000  # bytes, of a document in these tests
DEEP = 200_000
BAD_JSON = (orlop.InvalidArgument, orlop.ResourceExhausted)


@pytest.fixture
def victim(store_dirs: StoreDirs) -> Iterator[Victim]:
    with victim_at(store_dirs.root, store_dirs.run, store_dirs.work, retries=1) as one:
        yield one


@pytest.fixture
def limited(store_dirs: StoreDirs) -> Iterator[Victim]:
    """A victim that takes only small documents."""
    limits = orlop.Limits(manifest_size=LIMIT, index_size=LIMIT, config_size=LIMIT)
    with victim_at(store_dirs.root, store_dirs.run, store_dirs.work, retries=0, limits=limits) as one:
        yield one


def image(text: str = "x", **more: Any) -> images.Image:
    return images.make_image([Layer().file("file", text.encode()).tar()], **more)


def altered(made: images.Image, change: Callable[[dict[str, Any]], object]) -> images.Image:
    """The image with another manifest; ``change`` edits the document."""
    document = json.loads(made.document)
    change(document)
    return images.Image(
        media_type=made.media_type,
        document=json.dumps(document).encode(),
        blobs=made.blobs,
        parts=made.parts,
        config=made.config,
        diff_ids=made.diff_ids,
        platform=made.platform,
    )


def with_config(made: images.Image, config: bytes) -> images.Image:
    """The image with another config, whatever that is."""
    changed = altered(made, lambda document: document.update(config=images.descriptor(CONFIG, config)))
    return images.Image(
        media_type=changed.media_type,
        document=changed.document,
        blobs={**made.blobs, images.digest_of(config): config},
        config=config,
        diff_ids=made.diff_ids,
        platform=made.platform,
    )


CONFIG = "application/vnd.oci.image.config.v1+json"


class Ways:
    """One hostile image, tried on a victim by pull and by import; each time under another name."""

    def __init__(self, victim: Victim, folder: Path) -> None:
        self.victim = victim
        self._folder = folder
        self._count = 0

    def pull(self, made: images.Image, media_type: str = "") -> Callable[[], object]:
        self._count += 1
        name = self.victim.publish(f"bad/{self._count}", made, media_type=media_type)
        return lambda: self.victim.store.pull(name)

    def layout(self, made: images.Image) -> Path:
        self._count += 1
        return images.write_layout(self._folder / f"layout{self._count}", {"v1": made})

    def load(self, made: images.Image) -> Callable[[], object]:
        folder = self.layout(made)
        return lambda: self.victim.store.load(folder)

    def both(self, made: images.Image) -> list[Callable[[], object]]:
        return [self.pull(made), self.load(made)]


@pytest.fixture
def ways(victim: Victim, workdir: Path) -> Ways:
    return Ways(victim, workdir)


def docker_archive(folder: Path, manifest: bytes, files: dict[str, bytes]) -> Path:
    """A docker archive's folder; orlop reads one as it reads the tar."""
    folder.mkdir()
    (folder / "manifest.json").write_bytes(manifest)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder


# ---------------------------------------------------------------------- 15


def padded(data: bytes, size: int) -> bytes:
    return data + b" " * (size - len(data))


@pytest.mark.hostile(15)
def test_a_document_one_byte_past_its_limit_is_refused_with_the_limits_name(
    limited: Victim, workdir: Path
) -> None:
    ways = Ways(limited, workdir)
    manifest = image("manifest")
    index = images.make_index([image("part")])
    for made, name in ((manifest, "manifest_size"), (index, "index_size")):
        fits, over = (
            images.Image(**{**_fields(made), "document": padded(made.document, size)})
            for size in (LIMIT, LIMIT + 1)
        )
        for call in ways.both(over):
            limited.refuses(call, orlop.ResourceExhausted, name)
        for call in ways.both(fits):
            call()
        limited.settle()
    config = with_config(image("config"), padded(image("config").config, LIMIT + 1))
    for call in ways.both(config):
        limited.refuses(call, orlop.ResourceExhausted, "config_size")
    assert not limited.registry.seen("GET", images.digest_of(config.config))  # not even asked for
    lists = ways.layout(manifest)
    (lists / "index.json").write_bytes(padded((lists / "index.json").read_bytes(), LIMIT + 1))
    limited.refuses(lambda: limited.store.load(lists), orlop.ResourceExhausted, "index_size")
    saved = docker_archive(workdir / "saved", padded(b"[]", LIMIT + 1), {})
    limited.refuses(lambda: limited.store.load(saved), orlop.ResourceExhausted, "manifest_size")


def _fields(made: images.Image) -> dict[str, Any]:
    return {name: getattr(made, name) for name in made.__dataclass_fields__}


@pytest.mark.hostile(15, 38)
def test_a_body_without_an_end_is_left_early(limited: Victim) -> None:
    made = image("endless")

    def server_of(what: str) -> RawServer:
        def answer(path: str, client: Client) -> None:
            if what == "token" and not path.startswith("/token"):
                realm = f'Bearer realm="http://{server.host}/token"'
                client.send(
                    f"HTTP/1.1 401 No\r\nWWW-Authenticate: {realm}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode()
                )
            elif path == "/v2/":
                client.ok(b"{}")
            elif what == "config" and "/manifests/" in path:
                client.ok(made.document, images.OCI_MANIFEST)
            else:
                status = "404 Not Found" if what == "error" else "200 OK"
                client.send(f"HTTP/1.1 {status}\r\nContent-Type: {images.OCI_MANIFEST}\r\n\r\n".encode())
                client.flood(b" " * 65_536)

        server = RawServer(answer)
        return server

    for what in ("manifest", "config", "error", "token"):
        with server_of(what) as server:
            name = f"{server.host}/endless:v1"
            limited.refuses(lambda name=name: limited.store.pull(name), orlop.Error)
            ends = {"manifest": "/manifests/", "config": "/blobs/", "error": "/manifests/", "token": "/token"}
            assert ends[what] in server.requests[-1]
            assert server.sent < 32 << 20  # what was read, and what the sockets held


@pytest.mark.hostile(15)
def test_documents_nested_beyond_reason_are_malformed_not_a_crash(ways: Ways, workdir: Path) -> None:
    victim, made = ways.victim, image("deep")
    for deep in (b'{"a":' * DEEP, b"[" * DEEP, b'{"layers":' + b"[" * DEEP + b"]" * DEEP + b"}"):
        document = images.Image(media_type=images.OCI_MANIFEST, document=deep)
        listed = images.Image(media_type=images.OCI_INDEX, document=deep)
        for call in (*ways.both(document), *ways.both(listed), *ways.both(with_config(made, deep))):
            victim.refuses(call, BAD_JSON)
        saved = docker_archive(workdir / f"list{len(deep)}", b"[" + deep, {})
        victim.refuses(lambda saved=saved: victim.store.load(saved), BAD_JSON)
        top = ways.layout(made)
        (top / "index.json").write_bytes(deep)
        victim.refuses(lambda top=top: victim.store.load(top), BAD_JSON)


@pytest.mark.hostile(15)
def test_a_token_servers_answer_of_any_shape_is_an_error_of_ours(store_dirs: StoreDirs) -> None:
    shapes = [b'{"a":' * DEEP, b'{"token":' + b"[" * DEEP, b"\xff", b"9" * 5000, b"[]", b'{"token":1}']
    with MemoryRegistry(auth="bearer") as server, orlop.open(store_dirs.root, store_dirs.run) as store:
        for shape in shapes:
            server.behave()
            server.misbehave(Fault(path="/token", status=200, body=shape))
            with pytest.raises(orlop.Unavailable, match="not the JSON"):
                store.pull(f"{server.host}/a:1")


def nested(made: images.Image, levels: int) -> images.Image:
    """An image below so many indexes."""
    for _ in range(levels):
        entry = {**images.descriptor(made.media_type, made.document)}
        document = json.dumps({"schemaVersion": 2, "mediaType": images.OCI_INDEX, "manifests": [entry]})
        made = images.Image(media_type=images.OCI_INDEX, document=document.encode(), parts=(made,))
    return made


@pytest.mark.hostile(15)
def test_indexes_are_followed_as_deep_as_the_limit_and_no_deeper(
    victim: Victim, ways: Ways, workdir: Path
) -> None:
    limit = orlop.Limits().index_nesting
    name = victim.publish("deep/fits", nested(image("fits"), limit))
    assert victim.store.pull(name).name == name
    victim.settle()
    deeper = nested(image("deeper"), limit + 1)
    name = victim.publish("deep/deeper", deeper)
    victim.refuses(lambda: victim.store.pull(name), orlop.ResourceExhausted, "index_nesting")
    folder = images.write_layout(workdir / "deeper", {"v1": deeper})
    for part in _parts(deeper):
        for data in (part.document, *part.blobs.values()):
            (folder / "blobs" / images.digest_of(data).replace(":", "/")).write_bytes(data)
    victim.refuses(lambda: victim.store.load(folder), orlop.ResourceExhausted, "index_nesting")


def _parts(made: images.Image) -> Iterator[images.Image]:
    for part in made.parts:
        yield part
        yield from _parts(part)


@pytest.mark.hostile(15)
def test_an_index_that_names_itself_is_refused(victim: Victim) -> None:
    # Its own digest cannot stand in it, so the registry answers for the digest it names with the index itself.
    promised = "sha256:" + "0" * 64
    entry = {"mediaType": images.OCI_INDEX, "digest": promised, "size": 0}
    for _ in range(3):  # until the size that it says is its own
        index = json.dumps({"schemaVersion": 2, "mediaType": images.OCI_INDEX, "manifests": [entry]}).encode()
        entry["size"] = len(index)
    victim.registry.add_manifest("loop", "v1", index, images.OCI_INDEX)
    victim.registry.manifests["loop", promised] = (images.OCI_INDEX, index)
    name = f"{victim.registry.host}/loop:v1"
    victim.refuses(lambda: victim.store.pull(name), orlop.DataLoss, "digest")


@pytest.mark.hostile(15)
def test_an_index_of_a_hundred_thousand_images_costs_one_pull(store_dirs: StoreDirs, workdir: Path) -> None:
    made = image("needle")
    right = {**images.descriptor(made.media_type, made.document), "platform": _platform(images.HOST)}
    wrong = {**right, "digest": "sha256:" + "0" * 64, "platform": _platform("plan9/mips")}
    document = {"schemaVersion": 2, "mediaType": images.OCI_INDEX, "manifests": [wrong] * 100_000 + [right]}
    index = images.Image(
        media_type=images.OCI_INDEX, document=json.dumps(document).encode(), parts=(made,), platform=""
    )
    limits = orlop.Limits(index_size=64 << 20)
    with victim_at(store_dirs.root, store_dirs.run, store_dirs.work, limits=limits) as victim:
        name = victim.publish("many", index)
        assert victim.store.pull(name).id == made.id
        assert len(victim.registry.seen("GET", "/many/manifests/")) == 2
        victim.settle()
        # As the list of a layout it would be as many images.
        layout = images.write_layout(workdir / "many", {"v1": made})
        listed = {"schemaVersion": 2, "manifests": [right] * 5_000}
        (layout / "index.json").write_text(json.dumps(listed))
        victim.refuses(lambda: victim.store.load(layout), orlop.ResourceExhausted, "archive_names")


def _platform(text: str) -> dict[str, str]:
    system, architecture = text.split("/")
    return {"os": system, "architecture": architecture}


@pytest.mark.hostile(15)
def test_what_an_index_offers_is_told_in_few_words(victim: Victim) -> None:
    entry = images.descriptor(images.OCI_MANIFEST, b"{}")
    manifests = [
        {**entry, "platform": {"os": f"os\x1b[2J{number}", "architecture": "a" * 500}}
        for number in range(4000)
    ]
    document = json.dumps({"schemaVersion": 2, "mediaType": images.OCI_INDEX, "manifests": manifests})
    name = victim.publish("odd", images.Image(media_type=images.OCI_INDEX, document=document.encode()))
    victim.refuses(lambda: victim.store.pull(name), orlop.NotFound, "3980 more")


@pytest.mark.hostile(15)
def test_an_image_with_a_large_config_is_as_usable_as_any(victim: Victim) -> None:
    big = image("big", config={"config": {"Labels": {"big": "x" * (5 << 20)}, "Cmd": ["true"]}})
    name = victim.publish("big", big)
    store = victim.store
    store.pull(name)
    assert [info.id for info in store.images() if info.name == name] == [big.id]
    assert store.inspect(name).config == big.config
    with store.prepare(name, victim.work / "big", mount=True) as root:
        assert (victim.work / "big/file").read_text() == "big"
        (victim.work / "big/new").touch()
        root.commit("localhost/onto-big")
    assert store.push("localhost/onto-big", f"{victim.registry.host}/onto-big:v1").size > 5 << 20
    victim.settle()


# ---------------------------------------------------------------------- 16


IMPOSSIBLE = [-1, 1 << 53 | 1, 1 << 63, 10**30, 1.5, True, "7", None, [1]]


@pytest.mark.hostile(16)
def test_a_size_that_is_not_the_bodys_is_refused(ways: Ways) -> None:
    victim, count = ways.victim, 0

    def lying(where: str, size: object) -> images.Image:
        nonlocal count
        count += 1
        made = image(f"size {where} {count}")
        told = size(base_of(made, where)) if callable(size) else size
        if where == "child":
            index = images.make_index([made])
            return altered(index, lambda document: document["manifests"][0].update(size=told))
        return altered(
            made,
            lambda document: (document["config"] if where == "config" else document["layers"][0]).update(
                size=told
            ),
        )

    for where in ("config", "layer", "child"):
        for size in (lambda real: real - 1, lambda real: real + 1, 0, 1, lambda real: real + 1_000_000):
            for call in ways.both(lying(where, size)):
                victim.refuses(call, orlop.DataLoss)
        for call in ways.both(lying(where, 1 << 53)):
            victim.refuses(call, (orlop.DataLoss, orlop.ResourceExhausted))
        for size in IMPOSSIBLE:
            for call in ways.both(lying(where, size)):
                victim.fails(call, orlop.InvalidArgument)
        victim.unharmed()


def base_of(made: images.Image, where: str) -> int:
    document = json.loads(made.document)
    if where == "child":
        return len(made.document)
    return int((document["config"] if where == "config" else document["layers"][0])["size"])


@pytest.mark.hostile(16)
def test_a_layers_body_is_not_read_past_the_size_that_was_said(victim: Victim) -> None:
    made = image("endless layer")
    layer = json.loads(made.document)["layers"][0]

    def answer(path: str, client: Client) -> None:
        if path == "/v2/":
            client.ok(b"{}")
        elif "/manifests/" in path:
            client.ok(made.document, images.OCI_MANIFEST)
        elif layer["digest"] in path:
            client.send(b"HTTP/1.1 200 OK\r\n\r\n")
            client.flood(bytes(65_536))
        else:
            client.ok(made.config)

    with RawServer(answer) as server:
        name = f"{server.host}/endless:v1"
        victim.refuses(lambda: victim.store.pull(name), orlop.DataLoss, "more than the")
        assert server.sent < 32 << 20


# ---------------------------------------------------------------------- 17


def both_kinds(made: images.Image) -> dict[str, Any]:
    index = json.loads(images.make_index([made]).document)
    return {**json.loads(made.document), **index, "mediaType": made.media_type}


@pytest.mark.hostile(17)
def test_a_document_of_two_kinds_is_refused_whatever_it_is_called(ways: Ways) -> None:
    victim, made = ways.victim, image("two kinds")
    whole = both_kinds(made)
    for kind in (images.OCI_MANIFEST, images.OCI_INDEX, images.DOCKER_MANIFEST, images.DOCKER_LIST, ""):
        for left_out in ((), ("config",), ("layers",)):
            document = {key: value for key, value in whole.items() if key not in left_out}
            for said in (kind, None):
                document = {**document, "mediaType": said} if said else {**document, "mediaType": ""}
                both = images.Image(
                    media_type=kind or images.OCI_MANIFEST,
                    document=json.dumps(document).encode(),
                    parts=(made,),
                )
                for call in (ways.pull(both, media_type=kind or "text/plain"), ways.load(both)):
                    victim.refuses(call, orlop.InvalidArgument)


LYING_TYPES = [  # what the document says, and what it comes as
    (images.OCI_MANIFEST, images.OCI_INDEX),
    (images.OCI_MANIFEST, images.DOCKER_MANIFEST),
    (images.DOCKER_MANIFEST, images.OCI_MANIFEST),
    ("application/vnd.example.thing", images.OCI_MANIFEST),
    (images.OCI_INDEX, images.OCI_INDEX),
    ("", images.OCI_INDEX),
    ("", images.DOCKER_LIST),
]


@pytest.mark.distribution("pull.manifest.media-type")
@pytest.mark.hostile(17)
def test_a_manifest_that_says_another_type_than_it_comes_as_is_refused(ways: Ways) -> None:
    for said, served in LYING_TYPES:
        made = altered(image("type"), lambda document, said=said: document.update(mediaType=said))
        ways.victim.refuses(ways.pull(made, media_type=served), orlop.InvalidArgument)
        index = altered(
            images.make_index([made]),
            lambda document, served=served: document["manifests"][0].update(mediaType=served),
        )
        for call in ways.both(index):
            ways.victim.refuses(call, orlop.InvalidArgument)


@pytest.mark.distribution("pull.manifest.content-type")
@pytest.mark.hostile(17)
def test_a_type_that_says_nothing_is_no_lie(victim: Victim) -> None:
    for number, served in enumerate(
        ("text/plain", "application/octet-stream", f"{images.OCI_MANIFEST}; a=b")
    ):
        made = image(f"silent {number}")
        name = victim.publish(f"silent/{number}", made, media_type=served)
        assert victim.store.pull(name).id == made.id
    victim.settle()


@pytest.mark.hostile(17)
def test_the_schema_of_old_is_refused_by_its_name(ways: Ways) -> None:
    old = {"schemaVersion": 1, "name": "a", "fsLayers": [], "history": []}
    made = images.Image(media_type=images.DOCKER_MANIFEST, document=json.dumps(old).encode())
    signed = "application/vnd.docker.distribution.manifest.v1+prettyjws"
    for call in (*ways.both(made), ways.pull(made, media_type=signed)):
        ways.victim.refuses(call, orlop.Unimplemented, "schema 1")


# ---------------------------------------------------------------------- 18


NO_DIGESTS = [
    "sha256:../../../../../etc/passwd",
    "sha256:../../x",
    "sha256:" + "../" * 21 + "a",
    "../" * 20 + "etc/passwd",
    "sha256:" + "A" * 64,
    "SHA256:" + "0" * 64,
    "sha256:" + "0" * 63,
    "sha256:" + "0" * 65,
    "sha256:" + "0" * 64 + "\n",
    "sha256:" + "0" * 63 + "\0",
    "sha256:" + "\u0660" * 64,
    "sha256:/" + "0" * 63,
    "sha512:" + "0" * 64,
    "sha256:" + "0" * 128,
    "md5:" + "0" * 32,
    "sha256+b64:" + "0" * 64,
    "sha256-" + "0" * 64,
    "sha256",
    "sha256:",
    ":" + "0" * 64,
    "0" * 64,
    "",
]


@pytest.mark.hostile(18)
def test_what_is_no_digest_is_one_in_no_document(ways: Ways) -> None:
    victim = ways.victim
    for number, text in enumerate(NO_DIGESTS):
        made = image("places")
        document = json.loads(made.document)
        config = json.dumps({**json.loads(made.config), "rootfs": {"type": "layers", "diff_ids": [text]}})
        lying = [
            altered(made, lambda d, text=text: d["config"].update(digest=text)),
            altered(made, lambda d, text=text: d["layers"][0].update(digest=text)),
            altered(images.make_index([made]), lambda d, text=text: d["manifests"][0].update(digest=text)),
            with_config(made, config.encode()),
        ]
        assert all(document != json.loads(one.document) for one in lying)
        for call in [call for one in lying for call in ways.both(one)]:
            error = victim.fails(call, orlop.InvalidArgument, "not a digest")
            assert error.attempted.startswith(("pull ", "import "))
        listed = json.dumps([{"Config": "c", "RepoTags": None, "Layers": ["l"]}]).encode()
        folder = docker_archive(victim.work / f"docker{number}", listed, {"c": config.encode(), "l": b""})
        victim.refuses(lambda folder=folder: victim.store.load(folder), orlop.InvalidArgument, "not a digest")


@pytest.mark.hostile(18)
def test_what_is_no_digest_is_none_in_the_list_of_a_layout(ways: Ways) -> None:
    made = image("listed")
    for text in NO_DIGESTS:
        layout = ways.layout(made)
        listed = json.loads((layout / "index.json").read_bytes())
        listed["manifests"][0]["digest"] = text
        (layout / "index.json").write_text(json.dumps(listed))
        ways.victim.refuses(
            lambda layout=layout: ways.victim.store.load(layout), orlop.InvalidArgument, "not a digest"
        )


@pytest.mark.hostile(18)
def test_what_is_no_digest_is_none_in_a_header_of_the_registry(victim: Victim) -> None:
    name = victim.publish("header", image("header"))
    for text in NO_DIGESTS:
        if text and text.isascii() and text.isprintable():  # what a header can hold
            victim.registry.behave()
            victim.registry.misbehave(Fault(path="/header/", headers={"Docker-Content-Digest": text}))
            victim.refuses(lambda: victim.store.pull(name), orlop.DataLoss, "the registry says")


@pytest.mark.hostile(18)
def test_what_is_no_digest_is_none_in_a_name_or_an_id_that_a_caller_gives(
    victim: Victim, workdir: Path
) -> None:
    layout = images.write_layout(workdir / "named", {"v1": image("named")})
    served = Daemon(victim.store.verbs, f"unix://{workdir}/s")
    served.start()
    try:
        with orlop.connect(f"unix://{workdir}/s") as remote:
            _no_digest_in_a_name(victim, [(victim.store, NO_DIGESTS), (remote, NO_DIGESTS[:4])], layout)
    finally:
        served.stop(grace=0.0)


def _no_digest_in_a_name(victim: Victim, stores: list[tuple[orlop.Store, list[str]]], layout: Path) -> None:
    for store, texts in stores:
        for name in [f"localhost/a@{text}" for text in texts]:
            calls: list[Callable[[], object]] = [
                partial(store.pull, name),
                partial(store.inspect, name),
                partial(store.remove, name),
                partial(store.push, name),
                partial(store.tag, name, "localhost/other"),
                partial(store.tag, victim.name, name),
                partial(store.prepare, name, victim.work / "x"),
                partial(store.load, layout, name=name),
            ]
            for call in calls:
                with pytest.raises(orlop.InvalidArgument, match="digest"):
                    call()
            victim.unharmed()
        for thing in (
            "blob sha256:../../x",
            "layer sha256:../../x",
            "chain sha256:../../x",
            "sha256:../../x",
        ):
            victim.refuses(partial(store.explain, thing), (orlop.InvalidArgument, orlop.NotFound))


# ---------------------------------------------------------------------- 19


def _digests(made: images.Image) -> dict[str, str]:
    document = json.loads(made.document)
    return {"config": document["config"]["digest"], "layer": document["layers"][0]["digest"]}


@pytest.mark.hostile(19)
def test_other_bytes_than_a_digests_are_data_loss(victim: Victim, ways: Ways) -> None:
    for what in ("config", "layer"):
        for spoil in (
            lambda data: (
                data[:-1] + bytes([data[-1] ^ 1])
            ),  # in gzip's own length, after the last byte of tar
            lambda data: bytes([data[0] ^ 0x40]) + data[1:],
            lambda data: bytes(len(data)),
        ):
            made = image(f"spoilt {what} {spoil(b'ab')!r}")
            digest = _digests(made)[what]
            name = victim.publish(f"spoilt/{what}", made)
            victim.registry.blobs[digest] = spoil(made.blobs[digest])
            victim.refuses(lambda name=name: victim.store.pull(name), (orlop.DataLoss, orlop.InvalidArgument))
            layout = ways.layout(made)
            (layout / "blobs" / digest.replace(":", "/")).write_bytes(spoil(made.blobs[digest]))
            victim.refuses(lambda layout=layout: victim.store.load(layout), orlop.DataLoss)


@pytest.mark.hostile(19)
def test_another_manifest_than_the_digest_asked_for_is_data_loss(victim: Victim) -> None:
    made, other = image("asked for"), image("given")
    victim.publish("swap", other)
    index = images.make_index([made])
    name = victim.publish("swap", index, tag="index")
    for given in (other.document, made.document + b" "):
        victim.registry.manifests["swap", made.digest] = (made.media_type, given)
        for text in (name, f"{victim.registry.host}/swap@{made.digest}"):
            victim.refuses(lambda text=text: victim.store.pull(text), orlop.DataLoss)


@pytest.mark.hostile(19)
def test_one_blob_twice_in_a_manifest_is_one_layer_twice(victim: Victim, ways: Ways) -> None:
    tar = Layer().file("file", b"twice").tar()
    made = images.make_image([tar, Layer().whiteout("file").tar(), tar])
    name = victim.publish("twice", made)
    assert victim.store.pull(name).layers == 3
    blob = json.loads(made.document)["layers"][0]["digest"]
    assert len(victim.registry.seen("GET", blob)) == 1
    with victim.store.prepare(name, victim.work / "twice", mount=True):
        assert (victim.work / "twice/file").read_bytes() == b"twice"
    victim.settle()
    two = images.make_image([tar, Layer().file("other").tar()])
    first = json.loads(two.document)["layers"][0]
    lying = altered(two, lambda document: document.update(layers=[first, first]))
    for call in ways.both(lying):
        victim.refuses(call, orlop.InvalidArgument, "two different layers")


@pytest.mark.hostile(19)
def test_diff_ids_that_are_not_the_layers_are_refused(victim: Victim, ways: Ways) -> None:
    for number, change in enumerate(
        (
            lambda ids: [],
            lambda ids: ids[:1],
            lambda ids: [*ids, ids[0]],
            lambda ids: ids[::-1],
            lambda ids: [ids[0], "sha256:" + "0" * 64],
        )
    ):
        one = images.make_image([Layer().file(f"{number} {layer}").tar() for layer in "ab"])
        diff_ids = change(list(one.diff_ids))
        config = {**json.loads(one.config), "rootfs": {"type": "layers", "diff_ids": diff_ids}}
        made = with_config(one, json.dumps(config).encode())
        for call in ways.both(made):
            # The other layer's download may be stopped half-way, and then waits.
            victim.refuses(call, (orlop.InvalidArgument, orlop.DataLoss), resumable=True)


@pytest.mark.hostile(19)
def test_a_blob_that_a_stranger_says_a_layer_comes_as_is_not_what_we_push(victim: Victim) -> None:
    # The layer is there, so the blob is not fetched and nobody has seen that it is another thing altogether.
    evil = images.compress(Layer().file("etc/motd", b"evil\n").tar(), "gzip")
    layer = images.descriptor("application/vnd.oci.image.layer.v1.tar+gzip", evil)
    lying = altered(victim.image, lambda document: document.update(layers=[layer]))
    stranger = victim.publish("stranger", lying)
    assert victim.store.pull(stranger).id == victim.image.id
    victim.registry.add_blob("mine", evil)  # the target has it, which is the nearest way
    with victim.store.prepare(victim.name, victim.work / "own", mount=True) as root:
        (victim.work / "own/new").touch()
        root.commit("localhost/own:1")
    victim.store.push("localhost/own:1", f"{victim.registry.host}/mine:1")
    _, pushed = victim.registry.manifests["mine", "1"]
    assert images.digest_of(evil) not in pushed.decode()
    again = victim.store.push(stranger, f"{victim.registry.host}/mine:2")  # as it came: its digest is kept
    assert again.digest == lying.digest
    victim.store.push("localhost/own:1", f"{victim.registry.host}/mine:3", recompress=True)
    _, pushed = victim.registry.manifests["mine", "3"]
    assert images.digest_of(evil) not in pushed.decode()
    victim.settle()


# ---------------------------------------------------------------------- 20


@pytest.mark.hostile(20)
def test_urls_of_a_layer_are_never_asked(victim: Victim, ways: Ways) -> None:
    with MemoryRegistry(auth="basic") as thief:
        made = image("foreign")
        layer = json.loads(made.document)["layers"][0]["digest"]
        urls = [f"{thief.url}/v2/x/blobs/{layer}", "http://169.254.169.254/latest", "file:///etc/passwd"]
        plain = altered(made, lambda document: document["layers"][0].update(urls=urls))
        name = victim.publish("urls", plain)
        assert victim.store.pull(name).id == made.id  # from the registry itself
        victim.settle()
        for number, kind in enumerate(
            (
                "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
                "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
            )
        ):
            gone = image(f"foreign {number}")
            foreign = altered(
                gone, lambda document, kind=kind: document["layers"][0].update(mediaType=kind, urls=urls)
            )
            for call in ways.both(foreign):
                victim.refuses(call, orlop.InvalidArgument, "not distributable")
        # A registry that lacks the blob does not send us to the urls either.
        lacking = altered(image("lacking"), lambda document: document["layers"][0].update(urls=urls))
        name = victim.publish("lacking", lacking)
        del victim.registry.blobs[_digests(lacking)["layer"]]
        victim.refuses(lambda: victim.store.pull(name), orlop.NotFound)
        assert thief.requests == []


# ---------------------------------------------------------------------- 26


@pytest.mark.hostile(26)
def test_labels_and_annotations_of_an_image_are_only_its_own_words(victim: Victim, workdir: Path) -> None:
    words = {
        "orlop.keep": "true",
        "keep": "true",
        "containerd.io/gc.root": "1",
        "containerd.io/snapshot/overlay.upperdir": "/etc",
        "containerd.io/snapshot.ref": "sha256:" + "0" * 64,
        "io.containerd.image.unpack": "true",
        "io.kubernetes.cri.image-ref": "x",
        "run.oci.handler": "krun",
        "org.opencontainers.image.ref.name": "docker.io/library/alpine:latest",
        "io.containerd.image.name": "docker.io/library/alpine:latest",
        "a\nb": "c\0d",
    }
    made = image("labels", config={"config": {"Labels": words, "Cmd": ["true"]}})
    made = altered(
        made,
        lambda document: (
            document.update(annotations=words),
            document["config"].update(annotations=words),
            document["layers"][0].update(annotations=words),
        ),
    )
    store = victim.store
    name = victim.publish("labels", made)
    pulled = store.pull(name)
    assert pulled.name == name
    assert dict(pulled.labels) == {}
    root = store.prepare(name, victim.work / "labels")
    assert [dict(info.labels) for info in store.prepared()] == [{}]
    committed = root.commit("localhost/labelled")
    assert dict(committed.labels) == {}
    root.cleanup()
    assert victim.rows("SELECT * FROM labels") == []
    assert [info.name for info in store.images()] == sorted([victim.name, name, "localhost/labelled:latest"])
    # They keep nothing from a policy that asks for labels, either.
    kept = store.collect(keep=orlop.Keep(labels=("keep", "orlop.keep"), count=0), dry_run=True)
    assert kept is not None
    store.remove("localhost/labelled")
    victim.settle()
