"""Every limit, through the real import and pull: what is just within it comes in, one over is refused by name."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import sys
import tarfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

import orlop
from conftest import StoreDirs
from orlop.config import DEFAULT_LIMITS, Limits
from orlop.errors import Error, InvalidArgument, ResourceExhausted
from orlop.observe import Call
from orlop.registry.access.credentials import CredentialSources, Keychain
from support import users
from support.daemons import Crew, daemon
from support.images import HOST, Image, make_image, make_index, push, write_layout
from support.layers import Layer
from support.registries import Registry

pytestmark = [pytest.mark.root, pytest.mark.any_kernel]
HERE = Path(__file__).parents[1]


@dataclass(frozen=True, kw_only=True)
class Case:
    """Images by tag, of which ``needs`` is the least value of a limit that lets them in."""

    images: Mapping[str, Image]
    needs: int


def layer(tar: bytes, needs: int, **how: object) -> Case:
    return Case(images={"one": make_image([tar], **how)}, needs=needs)  # type: ignore[arg-type]


def plain(needs: int, **config: object) -> Case:
    return Case(images={"one": make_image([SMALL], config=config)}, needs=needs)


def record_of(tar: bytes) -> int:
    """The size of the extended header that a tar begins with."""
    return int(tar[124:135], 8)


def bomb() -> Case:
    tar = Layer().file("zeros", bytes(65 << 20)).tar()
    image = make_image([tar], compression="zstd")
    packed = min(len(blob) for digest, blob in image.blobs.items() if digest != image.id)
    return Case(images={"one": image}, needs=-(-len(tar) // packed))


def nested(levels: int) -> Case:
    """An image below some indexes."""
    inside = make_image([SMALL])
    parts: list[Image] = []
    for _ in range(levels):
        parts.append(inside)
        inside = replace(make_index([inside]), platform=HOST)
    return Case(images={"one": replace(inside, parts=tuple(parts))}, needs=levels)


def index_file(case: Case) -> Case:
    """How large the index.json of an image's layout is."""
    manifests = [
        {
            "mediaType": image.media_type,
            "digest": image.digest,
            "size": len(image.document),
            "annotations": {"org.opencontainers.image.ref.name": tag},
        }
        for tag, image in case.images.items()
    ]
    text = json.dumps({"schemaVersion": 2, "manifests": manifests}, separators=(",", ":"))
    return replace(case, needs=len(text))


def lists(levels: int) -> object:
    return [lists(levels - 1)] if levels > 1 else []


SMALL = Layer().file("a", b"x").tar()
ATTRS = {f"user.{n}": b"v" * 10 for n in range(5)}
CASES: dict[str, Callable[[], Case]] = {
    "layer_entries": lambda: layer(Layer().file("a").file("b/c").tar(), 4),  # the root and b are entries, too
    "layer_size": lambda: layer(SMALL, len(SMALL)),
    "file_size": lambda: layer(Layer().file("a", bytes(1000)).tar(), 1000),
    "compression_ratio": bomb,
    "name_size": lambda: layer(Layer().file("n" * 100).tar(), 100),
    "path_size": lambda: layer(Layer().file("dd/" * 100 + "f").tar(), 301),
    "link_size": lambda: layer(Layer().symlink("s", "t" * 200).tar(), 200),
    "depth": lambda: layer(Layer().file("d/" * 9 + "f").tar(), 10),
    "xattr_count": lambda: layer(Layer().file("a", xattrs=ATTRS).tar(), 5),
    "xattr_value": lambda: layer(Layer().file("a", xattrs=ATTRS).tar(), 10),
    "xattr_total": lambda: layer(Layer().file("a", xattrs=ATTRS).tar(), 5 * len("user.0") + 50),
    "metadata_size": lambda: layer(Layer().file("abc").symlink("de", "tttt").tar(), 9),
    "pax_size": lambda: layer(tar := Layer().file("a", xattrs=ATTRS).tar(), record_of(tar)),
    "manifest_size": lambda: replace(
        case := layer(SMALL, 0), needs=len(next(iter(case.images.values())).document)
    ),
    "index_size": lambda: index_file(layer(SMALL, 0)),
    "config_size": lambda: replace(case := plain(0), needs=len(next(iter(case.images.values())).config)),
    "json_depth": lambda: plain(10, extra=lists(9)),
    "index_nesting": lambda: nested(2),
    "layers": lambda: Case(
        images={"one": make_image([Layer().file(f"f{n}").tar() for n in range(3)])}, needs=3
    ),
    "archive_names": lambda: Case(images=dict.fromkeys(("a", "b", "c"), make_image([SMALL])), needs=3),
}
# Limits of what is no part of an archive, and where they are tried.
ELSEWHERE = {
    "page_size": "integration/test_remote.py::test_a_list_past_its_limits_is_refused_by_name",
    "pages": "integration/test_remote.py::test_pages_in_a_circle_and_without_an_end_are_given_up",
    "tags": "integration/test_remote.py::test_a_list_past_its_limits_is_refused_by_name",
    "referrers": "integration/test_remote.py::test_a_list_past_its_limits_is_refused_by_name",
    "index_manifests": "unit/test_indexes.py::test_more_manifests_than_the_limit_are_refused",
    "auth_file_size": "integration/test_limits.py::test_a_file_of_credentials_has_a_limit",
    "worker_memory": "unit/test_worker.py::test_a_worker_without_memory_ends_with_an_error",
    "worker_cpu": "unit/test_worker_ends.py::worker_cpu=1",
    "worker_stall": "unit/test_worker_ends.py::worker_stall=1",
}


def test_every_limit_is_tried_here_or_elsewhere() -> None:
    assert {*CASES, *ELSEWHERE} == {field.name for field in dataclasses.fields(Limits)}
    for limit, where in ELSEWHERE.items():
        file, _, said = where.partition("::")
        assert said in (HERE / file).read_text(), f"{limit}: no {said} in {file}"


def open_with(dirs: StoreDirs, limit: str, value: int, **more: object) -> orlop.Store:
    limits = replace(DEFAULT_LIMITS, **{limit: value})
    return orlop.open(dirs.root, dirs.run, settings=orlop.Settings(limits=limits, **more))  # type: ignore[arg-type]


def assert_names(error: Error, limit: str) -> None:
    assert error.details["limit"] == limit
    assert limit in error.reason
    assert f"raise limits.{limit}" in error.hint
    assert "docs/limits.md" in error.hint


@pytest.mark.hostile(8, 12, 14, 15)
@pytest.mark.parametrize("limit", CASES)
def test_an_import_just_within_a_limit_comes_in_and_one_over_is_refused(
    limit: str, store_dirs: StoreDirs
) -> None:
    case = CASES[limit]()
    layout = write_layout(store_dirs.work / "layout", case.images)
    assert case.needs > 1
    with open_with(store_dirs, limit, case.needs - 1) as store:
        with pytest.raises(ResourceExhausted) as caught:
            store.load(layout)
        assert_names(caught.value, limit)
        assert store.images() == []
    with open_with(store_dirs, limit, case.needs) as store:
        assert len(store.load(layout)) == len(case.images)


def docker_archive(path: Path, limit: str) -> int:
    """Write what `docker save` writes, with something that needs a limit; returns how much it needs."""
    tars = [Layer().file(f"f{n}", b"x").tar() for n in range(3)]
    config = make_image(tars, config={"extra": lists(9)}).config
    names = [f"{n}.tar" for n in range(3)]
    listed = [{"Config": "c.json", "RepoTags": [f"app:{n}" for n in range(3)], "Layers": names}]
    manifest = json.dumps(listed).encode()
    with tarfile.open(path, "w") as tar:
        for name, data in (("manifest.json", manifest), ("c.json", config), *zip(names, tars, strict=True)):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return {
        "manifest_size": len(manifest),
        "config_size": len(config),
        "json_depth": 10,
        "layers": 3,
        "layer_size": path.stat().st_size,
    }[limit]


@pytest.mark.hostile(15)
@pytest.mark.parametrize("limit", ["manifest_size", "config_size", "json_depth", "layers", "layer_size"])
def test_an_archive_of_docker_just_within_a_limit_comes_in_and_one_over_is_refused(
    limit: str, store_dirs: StoreDirs
) -> None:
    archive = store_dirs.work / "saved.tar"
    needs = docker_archive(archive, limit)
    with open_with(store_dirs, limit, needs - 1) as store:
        with pytest.raises(ResourceExhausted) as caught:
            store.load(archive)
        assert_names(caught.value, limit)
        assert store.images() == []
    with open_with(store_dirs, limit, needs) as store:
        assert len(store.load(archive)) == 3


@pytest.mark.hostile(15)
@pytest.mark.parametrize("limit", ["manifest_size", "config_size", "json_depth", "index_nesting", "layers"])
def test_a_pull_just_within_a_limit_comes_in_and_one_over_is_refused(
    limit: str, store_dirs: StoreDirs, registry: Registry
) -> None:
    case = CASES[limit]()
    image = case.images["one"]
    for part in image.parts:  # the inner ones first: a registry knows what an index names
        push(registry, limit, part.digest, replace(part, parts=()))
    push(registry, limit, "one", replace(image, parts=()))
    name = f"{registry.host}/{limit}:one"
    with open_with(store_dirs, limit, case.needs - 1, insecure_registries=(registry.host,)) as store:
        with pytest.raises(ResourceExhausted) as caught:
            store.pull(name)
        assert_names(caught.value, limit)
        assert store.images() == []
    with open_with(store_dirs, limit, case.needs, insecure_registries=(registry.host,)) as store:
        assert store.pull(name).layers == len(image.diff_ids or case.images["one"].parts[0].diff_ids)


@pytest.mark.hostile(15)
def test_an_index_of_a_registry_has_a_limit_of_its_own(store_dirs: StoreDirs, registry: Registry) -> None:
    image = make_index([make_image([SMALL])])
    push(registry, "index-size", "one", image)
    size = len(image.document)
    name = f"{registry.host}/index-size:one"
    for limit, value, comes_in in (("index_size", size - 1, False), ("index_size", size, True)):
        with open_with(store_dirs, limit, value, insecure_registries=(registry.host,)) as store:
            if comes_in:
                assert store.pull(name).layers == 1
                continue
            with pytest.raises(ResourceExhausted) as caught:
                store.pull(name)
            assert_names(caught.value, limit)


def test_a_daemon_takes_its_limits_from_its_files_and_tells_clients_what_to_raise(
    store_dirs: StoreDirs,
) -> None:
    layout = write_layout(
        store_dirs.work / "layout", {"one": make_image([Layer().file("d/" * 9 + "f").tar()])}
    )
    file = store_dirs.work / "config.toml"
    file.write_text('[limits]\ndepth = 9\n[daemon]\nrequest_size = "16KiB"\n')
    options = ("--config", os.fspath(file), "--limit", "layers=7")
    socket = store_dirs.work / "socket" / "orlop.sock"
    with (
        Crew(store_dirs.work / "out") as crew,
        daemon(crew, store_dirs.root, store_dirs.run, socket=socket, options=options) as address,
        orlop.connect(address) as store,
    ):
        assert store.info().limits == {"depth": 9, "layers": 7}
        with pytest.raises(ResourceExhausted) as caught:
            store.load(layout)
        assert_names(caught.value, "depth")
        with pytest.raises(ResourceExhausted) as caught:
            store.prepare("localhost/a", "/srv/a", labels={"a": "x" * 20_000})
        assert caught.value.details["limit"] == "daemon.request_size"
        assert caught.value.hint.startswith("raise daemon.request_size")
        assert "request_size" in caught.value.reason


def test_the_systems_file_counts_in_a_user_namespace_too(workdir: Path) -> None:
    """There the machine's root, whom the file belongs to, is nobody; verbs without root run there."""
    user = users.make(workdir / "user", "single")
    file = user.folder / "system.toml"
    file.write_text("downloads = 9")
    file.chmod(0o644)
    code = (
        "import os, sys; from orlop.cli import configuration, environment\n"
        "environment.SYSTEM_CONFIG = sys.argv[1]\n"
        "print(os.stat(sys.argv[1]).st_uid, configuration.configured(None, os.environ, 0).get('downloads'))\n"
    )
    inside = ("unshare", "--user", "--map-root-user")
    for wrapped, owner in (((), 0), (inside, 65_534)):
        words = (*wrapped, sys.executable, "-c", code, file)
        assert user.run(*words, check=True).stdout == f"{owner} 9\n"


def test_what_is_in_the_store_is_read_whatever_the_limits_say_now(store_dirs: StoreDirs) -> None:
    layout = write_layout(store_dirs.work / "layout", {"one": make_image([SMALL])})
    with orlop.open(store_dirs.root, store_dirs.run) as store:
        name = store.load(layout)[0].name
    tight = {item.name: 1 for item in dataclasses.fields(Limits) if not item.name.startswith("worker")}
    settings = orlop.Settings(driver="native", limits=replace(DEFAULT_LIMITS, **tight))
    with orlop.open(store_dirs.root, store_dirs.run, settings=settings) as store:
        assert [image.name for image in store.images()] == [name]
        assert store.inspect(name).layers
        with store.prepare(name, store_dirs.work / "at") as root:
            assert root.folder is not None
            assert Path(root.folder, "a").read_bytes() == b"x"
        assert store.check(full=True).clean
        assert store.info().limits == tight


@pytest.mark.hostile(15)
def test_a_file_of_credentials_has_a_limit(tmp_path: Path) -> None:
    text = json.dumps({"auths": {"r.example": {"auth": "dTpw"}}}).encode()
    file = tmp_path / "auth.json"
    file.write_bytes(text)
    warnings: list[str] = []

    class Observer:
        def progress(self, event: object) -> None:
            raise AssertionError

        def warning(self, message: str) -> None:
            warnings.append(message)

    for limit in (len(text), len(text) - 1):
        sources = CredentialSources(files=(os.fspath(file),), file_size=limit)
        found = Keychain(sources, lambda *asked: None)(
            "r.example", "a/b", scheme="https", call=Call(observer=Observer())
        )
        assert (found is not None) == (limit == len(text))
    assert len(warnings) == 1
    assert "raise limits.auth_file_size" in warnings[0]


@pytest.mark.hostile(6, 42)
@pytest.mark.parametrize(
    ("limit", "tar"),
    [
        ("name_size", Layer().file("n" * 256).tar()),
        ("name_size", Layer().file("d" * 256 + "/f").tar()),
        ("name_size", Layer().whiteout("w" * 256).tar()),
        ("link_size", Layer().symlink("s", "t" * 4_096).tar()),
    ],
    ids=["file", "folder", "whiteout", "target"],
)
def test_a_name_that_linux_cannot_have_is_refused_and_nobody_is_told_to_raise_a_limit(
    limit: str, tar: bytes, store_dirs: StoreDirs
) -> None:
    layout = write_layout(store_dirs.work / "layout", {"one": make_image([tar])})
    with orlop.open(store_dirs.root, store_dirs.run) as store:
        with pytest.raises(InvalidArgument) as caught:
            store.load(layout)
        assert caught.value.details["limit"] == limit
        assert "cannot be raised" in caught.value.hint
