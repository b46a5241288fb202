"""What is read of an index: what serves a platform, all there is, and never more than the limits."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from orlop.config import Limits
from orlop.errors import InvalidArgument, NotFound, ResourceExhausted
from orlop.images.indexes import Child, Document, IndexReader, offered_by
from orlop.observe import Call
from orlop.spec.digest import Digest
from orlop.spec.documents import (
    DOCKER_CONFIG,
    OCI_CONFIG,
    OCI_INDEX,
    OCI_MANIFEST,
    Descriptor,
    Index,
    parse_manifest,
)
from orlop.spec.platform import Platform

Entry = dict[str, Any]
IN_TOTO = "application/vnd.in-toto+json"


class World:
    """Documents by digest, as a registry has them; counts how often each is read."""

    def __init__(self) -> None:
        self.documents: dict[str, bytes] = {}
        self.reads: list[str] = []
        self.warnings: list[str] = []

    def progress(self, event: object) -> None:
        raise AssertionError(event)

    def warning(self, text: str) -> None:
        self.warnings.append(text)

    def add(self, document: dict[str, Any], media_type: str, **said: Any) -> Entry:
        data = json.dumps(document).encode()
        digest = Digest.of(data)
        self.documents[digest] = data
        return {"mediaType": media_type, "digest": str(digest), "size": len(data), **said}

    def manifest(self, name: str, platform: str = "", *, config: str = OCI_CONFIG, **said: Any) -> Entry:
        blob = {"mediaType": config, "digest": str(Digest.of(name.encode())), "size": 1}
        document = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": blob, "layers": []}
        parts = dict(zip(("os", "architecture", "variant"), platform.split("/"), strict=False))
        return self.add(document, OCI_MANIFEST, **({"platform": parts} if platform else {}), **said)

    def index(self, *entries: Entry, **said: Any) -> Entry:
        document = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": list(entries)}
        return self.add(document, OCI_INDEX, **said)

    def reader(self, entry: Entry, **limits: int) -> IndexReader:
        data = self.documents[entry["digest"]]
        index = parse_manifest(data, OCI_INDEX, "test")
        assert isinstance(index, Index)

        def read(descriptor: Descriptor) -> bytes:
            self.reads.append(descriptor.digest)
            return self.documents[descriptor.digest]

        return IndexReader(
            index,
            Document(digest=Digest(entry["digest"]), media_type=OCI_INDEX, data=data),
            read,
            limits=replace(Limits(), **limits),
            attempted="test",
            call=Call(observer=self),
        )


def digests(children: list[Child]) -> list[str]:
    return [str(child.document.digest) for child in children]


def test_one_platform_reads_no_more_than_it_needs() -> None:
    world = World()
    arm, amd = world.manifest("arm", "linux/arm64"), world.manifest("amd", "linux/amd64")
    reader = world.reader(world.index(arm, amd))
    assert str(reader.choose(Platform.parse("linux/amd64")).document.digest) == amd["digest"]
    assert str(reader.choose(Platform.parse("linux/amd64/v3")).document.digest) == amd["digest"]
    assert world.reads == [amd["digest"]]
    assert reader.listed == {arm["digest"], amd["digest"]}
    with pytest.raises(NotFound, match="no image for linux/s390x; there are linux/amd64, linux/arm64"):
        reader.choose(Platform.parse("linux/s390x"))


def test_all_that_is_in_an_index_is_read_once_images_apart_from_other_things() -> None:
    world = World()
    arm, amd = world.manifest("arm", "linux/arm64"), world.manifest("amd", "linux/amd64")
    docker = world.manifest("docker", "linux/s390x", config=DOCKER_CONFIG)
    told = {"vnd.docker.reference.type": "attestation-manifest"}
    attested = world.manifest("attestation", "unknown/unknown", annotations=told)
    sbom = world.manifest("sbom", config="application/spdx+json")
    typed = world.manifest("typed", artifactType=IN_TOTO)
    inner = world.index(amd, docker, amd)
    top = world.index(arm, inner, attested, sbom, typed, arm, inner)
    reader = world.reader(top)
    reader.read_all()
    assert digests(reader.images) == [arm["digest"], amd["digest"], docker["digest"]]
    assert digests(reader.artifacts) == [attested["digest"], sbom["digest"], typed["digest"]]
    assert set(map(str, reader.indexes)) == {top["digest"], inner["digest"]}
    assert len(world.reads) == len(set(world.reads)) == 7
    assert world.warnings == []


def test_a_child_of_a_kind_that_nobody_knows_is_left_out_with_a_warning() -> None:
    world = World()
    amd = world.manifest("amd", "linux/amd64")
    odd = {"mediaType": "application/odd", "digest": str(Digest.of(b"odd")), "size": 3}
    reader = world.reader(world.index(odd, amd))
    reader.read_all()
    assert digests(reader.images) == [amd["digest"]]
    assert reader.artifacts == []
    assert len(world.warnings) == 1
    assert "application/odd" in world.warnings[0]


def nested(world: World, levels: int) -> Entry:
    inside = world.manifest("amd", "linux/amd64")
    for _ in range(levels):
        inside = world.index(inside)
    return inside


WAYS: dict[str, Callable[[IndexReader], object]] = {
    "one": lambda reader: reader.choose(Platform.parse("linux/amd64")),
    "all": lambda reader: reader.read_all(),
}


@pytest.mark.hostile(15)
@pytest.mark.parametrize("way", WAYS)
def test_indexes_inside_one_another_are_followed_as_far_as_the_limit(way: str) -> None:
    world = World()
    WAYS[way](world.reader(nested(world, 3), index_nesting=3))
    with pytest.raises(ResourceExhausted, match="index_nesting"):
        WAYS[way](world.reader(nested(world, 4), index_nesting=3))


@pytest.mark.hostile(15)
def test_more_manifests_than_the_limit_are_refused() -> None:
    world = World()
    entries = [world.manifest(f"m{number}", "linux/amd64") for number in range(4)]
    index = world.index(world.index(*entries[:2]), world.index(*entries[2:]))
    world.reader(index, index_manifests=6).read_all()
    with pytest.raises(ResourceExhausted, match="index_manifests is more than 5"):
        world.reader(index, index_manifests=5).read_all()


@pytest.mark.hostile(15)
def test_an_index_that_is_listed_a_thousand_times_costs_one_reading() -> None:
    world = World()
    inside = world.index(world.manifest("amd", "linux/amd64"))
    for _ in range(3):
        inside = world.index(*[inside] * 1000)
    reader = world.reader(inside)
    reader.read_all()
    assert len(world.reads) == 4
    assert len(reader.images) == 1


@pytest.mark.hostile(17)
def test_a_child_that_is_another_kind_than_it_was_said_to_be_is_refused() -> None:
    world = World()
    manifest = world.manifest("amd", "linux/amd64")
    lie = {**world.index(manifest), "mediaType": OCI_MANIFEST}
    for way in WAYS.values():
        with pytest.raises(InvalidArgument, match="differs from Content-Type"):
            way(world.reader(world.index({**lie, "platform": manifest["platform"]})))


def test_what_an_index_offers_is_told_without_what_is_no_image() -> None:
    world = World()
    entry = world.index(
        world.manifest("a", "linux/arm/v7"),
        world.manifest("b", "linux/amd64"),
        world.manifest("c", "unknown/unknown"),
        world.manifest("d"),
    )
    index = parse_manifest(world.documents[entry["digest"]], OCI_INDEX, "test")
    assert isinstance(index, Index)
    assert offered_by(index, index) == ["linux/amd64", "linux/arm/v7"]
