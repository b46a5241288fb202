"""Forms of pushed layers, each read by podman, skopeo with umoci, and containerd: all show one tree."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

import orlop
from orlop.layers.compression import zstd_module
from support import disks, images, pullers
from support.layers import Layer
from support.registries import Registry
from support.trees import Entry, differences, snapshot

pytestmark = pytest.mark.root

FORMS: dict[str, dict[str, object]] = {
    "gzip": {"compression": "gzip", "level": 6},
    "zstd": {"compression": "zstd"},
    "none": {"compression": "none"},
    "estargz": {"format": "estargz"},
    "zstd-chunked": {"format": "zstd:chunked", "level": 5},
}
LANDMARKS = (b".no.prefetch.landmark", b"stargz.index.json")
KINDS = {"reg", "dir", "symlink", "hardlink", "char", "block", "fifo", "chunk"}
CAPABILITY = bytes.fromhex("0100000200040000000000000000000000000000")
every_form = pytest.mark.parametrize("form", FORMS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pushed:
    """An image in every form at a registry, and the tree that it has here."""

    folder: Path
    tree: dict[bytes, Entry]
    names: dict[str, str] = field(default_factory=dict)
    digests: dict[str, str] = field(default_factory=dict)
    manifests: dict[str, dict[str, object]] = field(default_factory=dict)
    warnings: dict[str, list[str]] = field(default_factory=dict)
    id: str = ""

    def layers(self, form: str) -> list[dict[str, object]]:
        return self.manifests[form]["layers"]  # type: ignore[return-value]  # of a manifest

    def expected(self, form: str) -> dict[bytes, Entry]:
        """The tree less the root folder's time, which no tar says."""
        return {path: entry for path, entry in self.tree.items() if path}

    def seen(self, tree: dict[bytes, Entry]) -> dict[bytes, Entry]:
        return pullers.without(tree, b"", *LANDMARKS)


class Warnings:
    def __init__(self) -> None:
        self.texts: list[str] = []

    def progress(self, event: orlop.Progress) -> None:
        pass

    def warning(self, text: str) -> None:
        self.texts.append(text)


def base() -> bytes:
    """Kinds of entries that a table of contents must say, and a file of several chunks."""
    layer = (
        Layer()
        .folder("d", mode=0o2750, uid=7, gid=8, mtime_ns=5_000_000_006)
        .folder("gone")
        .file("gone/x", b"x")
    )
    layer.file("d/a", b"1" * 1000, uid=1, gid=2, mode=0o4711).file("d/gone", b"2").file("empty")
    layer.file("big", random.Random(1).randbytes(5 << 20)).symlink("l", "d/a")
    layer.file("cap", b"c", xattrs={"security.capability": CAPABILITY, "user.bin": bytes(range(256))})
    layer.file("ünïcode", b"u").folder("opaque").file("opaque/below", b"b")
    return layer.device("null", "char", 1, 3).file("x" * 200, b"long").tar()


@pytest.fixture(scope="module")
def pushed(lab: Path, registry: Registry) -> Iterator[Pushed]:
    folder = lab / "formats"
    folder.mkdir()
    name = f"{registry.host}/forms/base:v1"
    images.push(registry, "forms/base", "v1", images.make_image([base()]))
    settings = orlop.Settings(durable=False)
    with orlop.open(folder / "root", folder / "run", settings=settings) as store:
        store.pull(name)
        top = folder / "top"
        with store.prepare(name, top, mount=True) as root:
            (top / "d/new").write_text("made here\n")
            (top / "d/gone").unlink()
            shutil.rmtree(top / "gone")
            shutil.rmtree(top / "opaque")
            (top / "opaque").mkdir()
            (top / "opaque/mine").write_text("m")
            os.link(top / "d/a", top / "h")
            os.link(top / "d/new", top / "d/new2")
            os.mkfifo(top / "d/fifo")
            root.commit("localhost/mine:1")
        with store.prepare("localhost/mine:1", top, mount=True):
            made = Pushed(folder=folder, tree=snapshot(top), id=store.inspect("localhost/mine:1").info.id)
        for form, options in FORMS.items():
            seen = Warnings()
            to = f"{registry.host}/forms/{form}:v1"
            call = orlop.Call(observer=seen)
            result = store.push("localhost/mine:1", to, recompress=True, call=call, **options)  # type: ignore[arg-type]  # of a table
            again = store.push("localhost/mine:1", to, recompress=True, **options)  # type: ignore[arg-type]  # of a table
            assert again == result
            made.names[form], made.digests[form], made.warnings[form] = to, result.digest, seen.texts
            path = f"/v2/forms/{form}/manifests/{result.digest}"
            status, _, body = registry.request(path, headers={"Accept": images.OCI_MANIFEST})
            assert status == 200
            made.manifests[form] = json.loads(body)
    yield made
    disks.remove(folder)


@pytest.fixture(scope="module")
def daemon(lab: Path) -> Iterator[pullers.Containerd]:
    with pullers.containerd(lab / "containerd") as running:
        yield running
    for mount in disks.mounts_below(lab / "containerd"):
        raise AssertionError(f"{mount} is still mounted")
    disks.remove(lab / "containerd")


@every_form
def test_the_manifest_says_the_form(pushed: Pushed, form: str) -> None:
    options, layers = FORMS[form], pushed.layers(form)
    ending = {"gzip": "+gzip", "zstd": "+zstd", "none": ".tar"}[
        {"estargz": "gzip", "zstd-chunked": "zstd"}.get(form, form)
    ]
    assert len(layers) == 2
    for layer in layers:
        assert str(layer["mediaType"]).endswith(ending)
        assert bool(layer.get("annotations")) == ("format" in options)
    config = pushed.manifests[form]["config"]["digest"]  # type: ignore[index]  # of a manifest
    assert (config == pushed.id) == (form != "estargz")
    assert bool(pushed.warnings[form]) == (form == "estargz")


@pytest.mark.parametrize("form", ["gzip", "none", "estargz"])
def test_skopeo_and_umoci_make_the_same_tree(pushed: Pushed, workdir: Path, form: str) -> None:
    tree = pullers.skopeo_and_umoci(pushed.names[form], workdir / "umoci")
    assert differences(pushed.expected(form), pushed.seen(tree)) == []


@pytest.mark.parametrize("form", ["gzip", "zstd"])
def test_podman_makes_the_same_tree(pushed: Pushed, workdir: Path, form: str) -> None:
    tree, in_part = pullers.Podman(folder=workdir / "podman").pull(pushed.names[form])
    assert differences(pushed.expected(form), pushed.seen(tree)) == []
    assert in_part == 0


@pytest.mark.parametrize("form", ["estargz", "zstd-chunked"])
def test_podman_fetches_seekable_layers_in_part(pushed: Pushed, workdir: Path, form: str) -> None:
    tree, in_part = pullers.Podman(folder=workdir / "podman", partial=True).pull(pushed.names[form])
    expected, seen = pushed.expected(form), pushed.seen(tree)
    if pullers.podman_version() < (4, 5):
        # It loses owners and times of any table, and leaves out devices; its own table says what ours does
        assert in_part == 2
        expected = {path: entry for path, entry in expected.items() if entry.kind not in ("char", "fifo")}
        expected = pullers.levelled(expected, uid=0, gid=0, mtime_ns=0)
        seen = pullers.levelled(seen, uid=0, gid=0, mtime_ns=0)
    assert differences(expected, seen) == []


def test_the_table_says_what_podmans_own_says(pushed: Pushed, registry: Registry, workdir: Path) -> None:
    name = f"{registry.host}/forms/podmans:v1"
    extra = Layer().file("podmans", b"so that no blob of ours is this layer").tar()
    tar = base().rstrip(b"\0")
    tar += bytes(-len(tar) % 512) + extra
    pullers.Podman(folder=workdir / "podman").push(tar, name, "zstd:chunked")
    _, _, body = registry.request("/v2/forms/podmans/manifests/v1", headers={"Accept": images.OCI_MANIFEST})
    own = table(registry, "podmans", json.loads(body)["layers"][0])
    assert own.pop("podmans")["type"] == "reg"
    assert table(registry, "zstd-chunked", pushed.layers("zstd-chunked")[0]) == own


def table(registry: Registry, repository: str, layer: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """A zstd:chunked layer's entries by name: all that is said of a file but where its bytes are."""
    space = "io.containers.zstd-chunked.manifest-"
    start, size = map(int, layer["annotations"][f"{space}position"].split(":")[:2])
    _, _, blob = registry.request(f"/v2/forms/{repository}/blobs/{layer['digest']}")
    packed = blob[start : start + size]
    assert layer["annotations"][f"{space}checksum"] == f"sha256:{hashlib.sha256(packed).hexdigest()}"
    found = json.loads(zstd_module().decompress(packed))
    assert found["version"] == 1
    placed = {"offset", "endOffset", "chunkSize", "chunkOffset", "chunkDigest", "accesstime", "changetime"}
    return {
        entry["name"]: {"uid": 0, "gid": 0} | {key: entry[key] for key in entry if key not in placed}
        for entry in found["entries"]
        if entry["type"] != "chunk"
    }


@pytest.mark.parametrize("form", ["gzip", "zstd", "estargz", "zstd-chunked"])
def test_containerd_makes_the_same_tree(pushed: Pushed, daemon: pullers.Containerd, form: str) -> None:
    tree = daemon.pull(pushed.names[form])
    assert differences(pushed.expected(form), pushed.seen(tree)) == []
    if form not in ("estargz", "zstd-chunked"):
        return
    for layer in pushed.layers(form):
        digest, zstd = str(layer["digest"]), form == "zstd-chunked"
        table = daemon.table(digest, zstd=zstd)
        assert [entry for entry in table["entries"] if entry["type"] not in KINDS] == []  # type: ignore[attr-defined]  # of a table of contents
        if not zstd:  # of zstd:chunked the annotation is about the compressed table
            key = "containerd.io/snapshot/stargz/toc.digest"
            assert daemon.table_digest(digest, zstd=False) == layer["annotations"][key]  # type: ignore[index]  # of a manifest


def test_what_is_there_is_what_was_made_here(pushed: Pushed) -> None:
    kinds = {entry.kind for entry in pushed.tree.values()}
    assert kinds == {"file", "folder", "symlink", "char", "fifo"}
    assert stat.S_IMODE(pushed.tree[b"d/a"].mode) == 0o4711
    assert b"opaque/below" not in pushed.tree
