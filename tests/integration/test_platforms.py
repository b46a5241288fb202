"""Names that mean an index: several platforms under one name, in and out, with skopeo and Debian's registry."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import orlop
from conftest import StoreDirs
from orlop.images.backups.restore import restore
from orlop.testing.registry import Fault, MemoryRegistry
from support import images
from support.layers import Layer
from support.registries import Registry

pytestmark = pytest.mark.root

HOST = images.HOST
ARM, S390 = "linux/arm64" if HOST == "linux/amd64" else "linux/amd64", "linux/s390x"
BASE = Layer().file("base", b"shared by all").tar()
STATEMENT = b'{"_type":"https://in-toto.io/Statement/v0.1"}' * 50
ATTESTATION = {
    "platform": {"architecture": "unknown", "os": "unknown"},
    "annotations": {"vnd.docker.reference.type": "attestation-manifest"},
}
PLACES = ("layers", "chains", "folders", "prepared", "trash", "content/blobs/sha256", "content/ingest")


@pytest.fixture
def store(store_dirs: StoreDirs) -> Iterator[orlop.Store]:
    settings = orlop.Settings(insecure_registries=("127.0.0.1",), retries=0)
    with orlop.open(store_dirs.root, store_dirs.run, settings=settings) as opened:
        yield opened


def image_for(platform: str, text: str = "") -> images.Image:
    own = Layer().file("motd", f"{platform} {text}".encode()).tar()
    return images.make_image([BASE, own], platform=platform)


def attestation(payload: bytes = STATEMENT) -> images.Image:
    """What BuildKit puts beside an image: a manifest with an image's config, whose layer is no tar."""
    config = (
        b'{"architecture":"unknown","os":"unknown","config":{},"rootfs":{"type":"layers","diff_ids":["%s"]}}'
    )
    config = config % images.digest_of(payload).encode()
    manifest = {
        "schemaVersion": 2,
        "mediaType": images.OCI_MANIFEST,
        "config": images.descriptor("application/vnd.oci.image.config.v1+json", config),
        "layers": [images.descriptor("application/vnd.in-toto+json", payload)],
    }
    blobs = {images.digest_of(data): data for data in (config, payload)}
    document = json.dumps(manifest).encode()
    return images.Image(media_type=images.OCI_MANIFEST, document=document, blobs=blobs)


def index_of(*children: tuple[images.Image, dict[str, Any]]) -> images.Image:
    """An index that says of its children what it is told to."""
    manifests = [{**images.descriptor(one.media_type, one.document), **said} for one, said in children]
    document = json.dumps(
        {"schemaVersion": 2, "mediaType": images.OCI_INDEX, "manifests": manifests}
    ).encode()
    return images.Image(
        media_type=images.OCI_INDEX, document=document, parts=tuple(one for one, _ in children)
    )


def said(platform: str) -> dict[str, Any]:
    return {"platform": dict(zip(("os", "architecture", "variant"), platform.split("/"), strict=False))}


def full_index(text: str = "", *, flat: bool = False) -> images.Image:
    """This machine's image and two others, one of them in an index of its own, and an attestation."""
    inner = (image_for(S390, text), said(S390))
    return index_of(
        (image_for(ARM, text), said(ARM)),
        (image_for(HOST, text), said(HOST)),
        inner if flat else (index_of(inner), {}),
        (attestation(), ATTESTATION),
    )


def skopeo(*args: str) -> bytes:
    return subprocess.run(["skopeo", *args], check=True, capture_output=True).stdout


def motd(store: orlop.Store, name: str, place: Path, **options: Any) -> str:
    with store.prepare(name, place, mount=True, view=True, **options):
        return (place / "motd").read_text().split()[0]


def held(info: orlop.ImageInfo) -> list[str]:
    return [one.platform for one in info.platforms]


def left(dirs: StoreDirs) -> list[str]:
    return [name for place in PLACES for name in os.listdir(dirs.root / place)]


def test_a_second_platform_is_added_to_a_name_and_the_last_that_was_pulled_is_meant(
    store: orlop.Store, registry: Registry, store_dirs: StoreDirs
) -> None:
    index = full_index()
    digest = images.push(registry, "several", "v1", index)
    name, place = f"{registry.host}/several:v1", store_dirs.work / "a"
    info = store.pull(name)
    assert (info.platform, info.index, held(info)) == (HOST, digest, [HOST])
    info = store.pull(name, platform=S390)
    assert (info.platform, held(info)) == (S390, [S390, HOST])
    assert motd(store, name, place) == S390
    assert motd(store, name, place, platform=HOST) == HOST
    # a root that wants another platform gets it, and the name goes on to mean what it did
    assert motd(store, name, place, platform=ARM) == ARM
    assert [(one.platform, held(one)) for one in store.images()] == [(S390, [S390, *sorted([ARM, HOST])])]
    assert store.pull(name).platform == HOST
    assert store.pull(name, platform=[ARM, S390]).platform == ARM
    # each can be asked for: by platform, by its digest and by its ID
    for one in store.inspect(name).info.platforms:
        details = store.inspect(name, platform=one.platform)
        assert (details.info.id, details.info.digest) == (one.id, one.digest)
        assert store.inspect(one.id).info.platform == one.platform
        assert store.inspect(f"{registry.host}/several@{one.digest}").info.id == one.id
        assert details.names == (name,)
    assert store.inspect(f"{registry.host}/several@{digest}").info.platform == ARM
    with pytest.raises(orlop.FailedPrecondition, match="one platform of"):
        store.remove(next(one.id for one in info.platforms if one.platform == HOST))
    store.remove(name)
    assert left(store_dirs) == []


def test_a_platform_that_is_not_held_is_not_found_and_the_error_says_what_is(
    store: orlop.Store, registry: Registry, store_dirs: StoreDirs
) -> None:
    images.push(registry, "lacking", "v1", full_index())
    name = f"{registry.host}/lacking:v1"
    store.pull(name)
    for ask in (
        lambda: store.prepare(name, store_dirs.work / "a", platform=ARM, pull="never"),
        lambda: store.inspect(name, platform=ARM),
    ):
        with pytest.raises(orlop.NotFound) as caught:
            ask()
        assert f"no image for {ARM} in the store; there are {HOST}" in caught.value.reason
        assert f"its index offers {ARM}" in caught.value.reason
        assert f"orlop pull --platform {ARM} {name}" in caught.value.hint
    with pytest.raises(orlop.NotFound, match="no image for plan9/mips"):
        store.pull(name, platform=[HOST, "plan9/mips"])
    with pytest.raises(orlop.InvalidArgument, match="and all platforms"):
        store.pull(name, platform=HOST, all_platforms=True)


@pytest.mark.parametrize("flat", [True, False], ids=["flat", "nested"])
def test_a_whole_index_comes_and_goes_with_every_digest(
    store: orlop.Store, registry: Registry, store_dirs: StoreDirs, flat: bool
) -> None:
    index = full_index(flat=flat)
    digest = images.push(registry, "whole", "v1", index)
    name, target = f"{registry.host}/whole:v1", f"{registry.host}/copied:v2"
    info = store.pull(name, all_platforms=True)
    assert (info.platform, info.index, set(held(info))) == (HOST, digest, {HOST, ARM, S390})
    assert store.collect(dry_run=True).items == ()
    assert store.check(full=True).findings == ()
    pushed = store.push(name, target, all_platforms=True)
    assert (pushed.name, pushed.digest) == (target, digest)
    assert skopeo("inspect", "--raw", "--tls-verify=false", f"docker://{target}") == index.document
    if flat:  # skopeo takes no index inside an index
        out = store_dirs.work / "out"
        skopeo("copy", "--all", "--src-tls-verify=false", f"docker://{target}", f"oci:{out}:v2")
        assert json.loads((out / "index.json").read_bytes())["manifests"][0]["digest"] == digest
        for blob in (STATEMENT, image_for(S390).document, attestation().document):
            assert (out / "blobs/sha256" / images.digest_of(blob)[7:]).read_bytes() == blob
    for part in (*index.parts, image_for(S390)):
        place, accept = f"/v2/copied/manifests/{part.digest}", {"Accept": part.media_type}
        status, _, body = registry.request(place, headers=accept)
        assert (status, body) == (200, part.document)
    # without --all-platforms it is the image that the name means
    alone = store.push(name, f"{registry.host}/alone:v1")
    assert alone.digest == image_for(HOST).digest
    assert store.inspect(name).info.index == digest
    # a further name has all of it, and keeps it
    store.tag(name, "localhost/kept:1")
    store.remove(name)
    assert store.push("localhost/kept:1", f"{registry.host}/again:v1", all_platforms=True).digest == digest
    store.remove("localhost/kept:1")
    assert left(store_dirs) == []


def test_an_index_that_lacks_something_is_not_pushed_and_nothing_is_sent(
    store: orlop.Store, registry: Registry
) -> None:
    images.push(registry, "partly", "v1", full_index("partly"))
    name = f"{registry.host}/partly:v1"
    store.pull(name, platform=ARM)
    with pytest.raises(orlop.FailedPrecondition) as caught:
        store.push(name, f"{registry.host}/nothing:v1", all_platforms=True)
    assert HOST in caught.value.reason
    assert ARM not in caught.value.reason
    assert "--all-platforms" in caught.value.hint
    assert registry.request("/v2/nothing/tags/list")[0] == 404
    plain = images.push(registry, "plain", "v1", image_for(HOST))
    assert store.pull(f"{registry.host}/plain:v1").digest == plain
    with pytest.raises(orlop.FailedPrecondition, match="one image, not an index"):
        store.push(f"{registry.host}/plain:v1", all_platforms=True)


def test_a_tag_that_has_moved_leaves_behind_what_is_in_its_index_no_more(
    store: orlop.Store, registry: Registry, store_dirs: StoreDirs
) -> None:
    same = image_for(S390)
    name = f"{registry.host}/moving:v1"
    old = index_of((image_for(HOST, "old"), said(HOST)), (same, said(S390)))
    images.push(registry, "moving", "v1", old)
    store.pull(name, all_platforms=True)
    new = index_of((image_for(HOST, "new"), said(HOST)), (same, said(S390)), (image_for(ARM), said(ARM)))
    digest = images.push(registry, "moving", "v1", new)
    info = store.pull(name)
    assert (info.index, held(info)) == (digest, [HOST, S390])
    gone = {item.partition(" ")[2] for item, _ in store.collect().items}
    assert {old.digest, image_for(HOST, "old").digest} <= gone
    assert same.digest not in gone
    assert motd(store, name, store_dirs.work / "a", platform=S390, pull="never") == S390
    # a name that means an image alone, and an image made here, hold nothing else
    images.push(registry, "moving", "v1", image_for(ARM))
    info = store.pull(name)
    assert (info.index, info.platforms, info.platform) == (None, (), ARM)
    store.remove(name)
    store.collect()
    assert left(store_dirs) == []


def test_an_index_that_stays_inside_another_forgets_what_went_with_its_name(
    store: orlop.Store, registry: Registry, store_dirs: StoreDirs
) -> None:
    inner = full_index("inner")
    name, around = f"{registry.host}/nested:v1", f"{registry.host}/nested:v2"
    images.push(registry, "nested", "v1", inner)
    images.push(registry, "nested", "v2", index_of((inner, {})))
    store.pull(name, all_platforms=True)
    store.pull(around)
    store.remove(name)  # the attestation goes, the index stays in the one around it
    assert store.pull(name).index == inner.digest
    assert store.check(full=True).findings == ()
    store.backup(store_dirs.work / "nested.tar")
    with pytest.raises(orlop.FailedPrecondition, match="not in the store: "):
        store.push(name, f"{registry.host}/nested:v3", all_platforms=True)


def test_a_layout_of_several_platforms_is_imported_as_a_pull_would_bring_it(
    store: orlop.Store, store_dirs: StoreDirs
) -> None:
    index = full_index()
    inner = index.parts[2]
    flat = images.Image(
        media_type=index.media_type, document=index.document, parts=(*index.parts, *inner.parts)
    )
    layout = images.write_layout(store_dirs.work / "layout", {"v1": flat})
    (info,) = store.load(layout)
    assert (info.platform, info.index, held(info)) == (HOST, index.digest, [HOST])
    (info,) = store.load(layout, platform=[S390, ARM])
    assert (info.platform, set(held(info))) == (S390, {HOST, ARM, S390})
    (info,) = store.load(layout, name="localhost/all:1", all_platforms=True)
    assert (info.platform, set(held(info))) == (HOST, {HOST, ARM, S390})
    archive = store_dirs.work / "layout.tar"
    subprocess.run(["tar", "-C", layout, "-cf", archive, "."], check=True)
    store.remove("localhost/all:1")
    (info,) = store.load(archive, name="localhost/all:1", all_platforms=True)
    assert store.check(full=True).findings == ()
    with pytest.raises(orlop.NotFound, match="no image for plan9/mips"):
        store.load(layout, name="localhost/none:1", platform="plan9/mips")
    for name in [one.name for one in store.images()]:
        store.remove(name)
    assert left(store_dirs) == []


def test_an_import_of_one_image_takes_no_platform_from_a_name(
    store: orlop.Store, registry: Registry, store_dirs: StoreDirs
) -> None:
    digest = images.push(registry, "kept", "v1", full_index("kept"))
    name, archive = f"{registry.host}/kept:v1", store_dirs.work / "kept.tar"
    before = store.pull(name, all_platforms=True)
    skopeo("copy", "--src-tls-verify=false", f"docker://{name}", f"docker-archive:{archive}:{name}")
    for replace in (False, True):
        assert [one.name for one in store.load(archive, replace=replace)] == [name]
        after = store.inspect(name).info
        assert (after.index, after.platforms) == (digest, before.platforms)
    # An index that is another is another image, though this machine's in it is the same.
    layout, other = store_dirs.work / "other", index_of((image_for(HOST, "kept"), said(HOST)))
    images.push(registry, "kept", "v2", other)
    skopeo("copy", "--all", "--src-tls-verify=false", f"docker://{registry.host}/kept:v2", f"oci:{layout}:x")
    with pytest.raises(orlop.AlreadyExists):
        store.load(layout, name=name)
    assert store.inspect(name).info.index == digest
    store.load(layout, name=name, replace=True)
    assert store.inspect(name).info.index == other.digest


def test_an_index_is_accounted_for_explained_and_checked_as_a_whole(
    store: orlop.Store, registry: Registry, store_dirs: StoreDirs
) -> None:
    digest = images.push(registry, "counted", "v1", full_index("counted"))
    name = f"{registry.host}/counted:v1"
    store.pull(name, all_platforms=True)
    freed = store.explain(name).frees
    part = images.digest_of(STATEMENT)
    assert [reason.name for reason in store.explain(f"blob {part}").kept_by] == [name]
    assert [reason.name for reason in store.explain(f"blob {digest}").kept_by] == [name]
    usage = store.usage()
    assert len(usage.images) == 3
    assert {one.names for one in usage.images} == {(name,)}
    (store_dirs.root / "content/blobs/sha256" / part[7:]).unlink()
    found = store.check(name).findings
    assert [(one.thing, one.problem) for one in found] == [(f"blob {part}", "missing")]
    assert name in found[0].affects
    assert [one.action for one in store.check(repair=True).findings] == ["fetched"]
    assert store.check(full=True).findings == ()
    assert store.remove(name).freed == freed
    assert left(store_dirs) == []


def test_a_policy_takes_an_index_with_all_its_images_or_not_at_all(
    store: orlop.Store, registry: Registry, store_dirs: StoreDirs
) -> None:
    images.push(registry, "policy", "v1", full_index("policy"))
    name = f"{registry.host}/policy:v1"
    store.pull(name, all_platforms=True)
    root = store.prepare(name, store_dirs.work / "a", platform=S390)
    assert store.collect(keep=orlop.Keep(count=0)).names == ()
    root.cleanup()
    assert store.collect(keep=orlop.Keep(count=0)).names == (name,)
    assert left(store_dirs) == []


@pytest.mark.parametrize("content", [True, False], ids=["with-content", "without"])
def test_a_backup_has_the_index_and_all_that_the_name_holds(
    store: orlop.Store, registry: Registry, store_dirs: StoreDirs, content: bool
) -> None:
    digest = images.push(registry, "saved", "v1", full_index("saved"))
    name = f"{registry.host}/saved:v1"
    before = store.pull(name, all_platforms=True)
    saved = store_dirs.work / "saved.tar"
    store.backup(saved, content=content)
    store.remove(name)
    assert left(store_dirs) == []
    settings = orlop.Settings(insecure_registries=("127.0.0.1",))
    restored = restore(saved, store_dirs.root, store_dirs.run, settings=settings, pull=not content)
    assert (restored.names, restored.missing) == ((name,), ())
    after = store.inspect(name).info
    assert (after.index, after.platform, set(after.platforms)) == (digest, HOST, set(before.platforms))
    assert store.check(full=True).findings == ()
    assert store.push(name, f"{registry.host}/restored:v1", all_platforms=True).digest == digest
    restore(saved, store_dirs.root, store_dirs.run, settings=settings)
    assert set(store.inspect(name).info.platforms) == set(before.platforms)
    store.remove(name)
    assert left(store_dirs) == []


def test_a_restore_takes_no_platform_from_a_name_unless_it_is_forced(
    store: orlop.Store, registry: Registry, store_dirs: StoreDirs
) -> None:
    host = (image_for(HOST, "moved"), said(HOST))
    old, new = index_of(host), index_of(host, (image_for(ARM, "moved"), said(ARM)))
    name, saved, alone = f"{registry.host}/moved:v1", store_dirs.work / "old.tar", store_dirs.work / "1.tar"
    images.push(registry, "moved", "v1", old)
    store.pull(name)
    store.backup(saved, content=True)
    store.remove(name)
    images.push(registry, "moved", "v1", host[0])
    store.pull(name)
    store.backup(alone, content=True)
    images.push(registry, "moved", "v1", new)
    before = store.pull(name, all_platforms=True)
    restore(alone, store_dirs.root, store_dirs.run)
    assert store.inspect(name).info.platforms == before.platforms
    with pytest.raises(orlop.AlreadyExists):
        restore(saved, store_dirs.root, store_dirs.run)
    assert store.inspect(name).info.platforms == before.platforms
    restore(saved, store_dirs.root, store_dirs.run, force=True)
    after = store.inspect(name).info
    assert (after.index, held(after)) == (old.digest, [HOST])
    assert store.check(full=True).findings == ()


def test_what_a_backup_without_content_lacks_of_an_index_is_told_and_the_rest_is_named(
    store: orlop.Store, registry: Registry, store_dirs: StoreDirs
) -> None:
    images.push(registry, "thin", "v1", full_index("thin"))
    name, saved = f"{registry.host}/thin:v1", store_dirs.work / "thin.tar"
    store.pull(name, platform=[HOST, S390])
    store.backup(saved)
    store.remove(name)
    store.pull(name)
    restored = restore(saved, store_dirs.root, store_dirs.run)
    assert restored.names == (name,)
    assert [one.name for one in restored.missing] == [f"{name} for {S390}"]
    assert held(store.inspect(name).info) == [HOST]
    assert store.check(full=True).findings == ()


def test_the_command_line_pulls_lists_and_pushes_platforms(
    registry: Registry, store_dirs: StoreDirs, run_cli: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    digest = images.push(registry, "typed", "v1", full_index("typed"))
    name = f"{registry.host}/typed:v1"
    assert run_cli("pull", "--all-platforms", name, check=True).stdout == f"{name}\n"
    (image,) = json.loads(run_cli("images", "--json", check=True).stdout)
    assert (image["index"], image["platform"]) == (digest, HOST)
    assert {one["platform"] for one in image["platforms"]} == {HOST, ARM, S390}
    pushed = run_cli("push", "--all-platforms", name, f"{registry.host}/typed-again:v1", check=True).stdout
    assert pushed == f"{registry.host}/typed-again:v1@{digest}\n"


# -- hostile ------------------------------------------------------------------------------------------


@pytest.fixture
def hostile(store_dirs: StoreDirs) -> Iterator[tuple[orlop.Store, MemoryRegistry]]:
    """A store and a registry that says what it is told to."""
    with MemoryRegistry() as registry:
        settings = orlop.Settings(insecure_registries=(registry.host,), retries=0)
        with orlop.open(store_dirs.root, store_dirs.run, settings=settings) as opened:
            yield opened, registry


def publish(registry: MemoryRegistry, image: images.Image, tag: str) -> None:
    for part in image.parts:
        publish(registry, part, part.digest)
    for blob in image.blobs.values():
        registry.add_blob("odd", blob)
    registry.add_manifest("odd", tag, image.document, image.media_type)


def swap(registry: MemoryRegistry, blob: bytes, other: bytes) -> None:
    """Have it answer with other bytes of a blob."""
    registry.blobs[images.digest_of(blob)] = other


def test_of_what_an_index_says_of_its_images_their_configs_have_the_last_word(
    hostile: tuple[orlop.Store, MemoryRegistry],
) -> None:
    store, registry = hostile
    name = f"{registry.host}/odd:v1"
    # What it calls s390x is this machine's, and what it calls this machine's is for another.
    index = index_of((image_for(HOST), said(S390)), (image_for(ARM), said(HOST)))
    publish(registry, index, "v1")
    with pytest.raises(orlop.FailedPrecondition, match=f"the image is for {HOST}, not for {S390}"):
        store.pull(name, platform=S390)
    info = store.pull(name, all_platforms=True)
    assert (info.platform, info.id, set(held(info))) == (HOST, image_for(HOST).id, {HOST, ARM})
    assert store.inspect(name, platform=ARM).info.id == image_for(ARM).id
    target = f"{registry.host}/right:v1"
    assert store.push(name, target, all_platforms=True).digest == index.digest


def test_a_part_of_an_index_is_fetched_on_after_a_cut_and_again_where_it_was_lost(
    store_dirs: StoreDirs,
) -> None:
    payload = os.urandom(300_000)  # larger than a document of this store may be
    index = index_of((image_for(HOST), said(HOST)), (attestation(payload), ATTESTATION))
    part = store_dirs.root / "content/blobs/sha256" / images.digest_of(payload)[7:]
    with MemoryRegistry() as registry:
        publish(registry, index, "v1")
        # The first cut is gone on from at once, the second came too soon after it.
        registry.misbehave(Fault(path=part.name, cut_after=200_000, times=1))
        registry.misbehave(Fault(path=part.name, cut_after=1000, times=1))
        limits = orlop.Limits(config_size=100_000)
        settings = orlop.Settings(insecure_registries=(registry.host,), retries=0, limits=limits)
        name = f"{registry.host}/odd:v1"
        with orlop.open(store_dirs.root, store_dirs.run, settings=settings) as store:
            with pytest.raises(orlop.Unavailable):
                store.pull(name, all_platforms=True)
            store.pull(name, all_platforms=True)
            ranges = [seen.headers.get("range", "") for seen in registry.requests if part.name in seen.path]
            assert list(map(bool, ranges)) == [False, True, True]
            part.unlink()
            store.pull(name, all_platforms=True)
            assert part.read_bytes() == payload
            part.write_bytes(b"rotten" + payload[6:])
            findings = store.check(full=True, repair=True).findings
            mended = [(one.thing, one.action) for one in findings if one.kind == "damage"]
            assert mended == [(f"blob sha256:{part.name}", "fetched")]
            assert part.read_bytes() == payload
            assert [one.thing for one in store.check(full=True).findings] == [
                "store"
            ]  # there is a quarantine
            store.remove(name)
            assert left(store_dirs) == []


@pytest.mark.hostile(15, 16, 19)
def test_a_part_of_an_index_that_is_not_what_it_should_be_leaves_nothing_behind(
    hostile: tuple[orlop.Store, MemoryRegistry], store_dirs: StoreDirs
) -> None:
    store, registry = hostile
    name, index = f"{registry.host}/odd:v1", full_index()
    inner = index.parts[2]
    for wrong in (STATEMENT[:-1], STATEMENT + b" ", b"x" * len(STATEMENT), b""):
        publish(registry, index, "v1")
        swap(registry, STATEMENT, wrong)
        with pytest.raises(orlop.DataLoss):
            store.pull(name, all_platforms=True)
    publish(registry, index, "v1")
    # An index in an index is answered with the one around it, as if they went on for ever.
    registry.manifests["odd", inner.digest] = (index.media_type, index.document)
    with pytest.raises(orlop.DataLoss):
        store.pull(name, all_platforms=True)
    # An attestation that is called an image is none: its layer is no tar.
    lie = index_of((image_for(HOST), said(HOST)), (attestation(), said(S390)))
    publish(registry, lie, "v2")
    with pytest.raises(orlop.InvalidArgument, match="no tar"):
        store.pull(f"{registry.host}/odd:v2", all_platforms=True)
    assert store.images() == []
    store.collect()
    assert [name for name in left(store_dirs) if name not in os.listdir(store_dirs.root / PLACES[-1])] == []
    # What is said of it otherwise is refused before, and what serves this machine is to be had all the same.
    assert store.pull(f"{registry.host}/odd:v2").platform == HOST
