"""Layouts and archives that are made to hurt, through an import: HOSTILE.md 30, 34, 36 and 37."""

from __future__ import annotations

import io
import json
import os
import shutil
import stat
import subprocess
import tarfile
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import orlop
from conftest import StoreDirs
from support import disks, images
from support.layers import Layer
from support.victims import Victim, victim_at

pytestmark = pytest.mark.root

SECRET = b"the host's own secret\n"
LAYER = "application/vnd.oci.image.layer.v1."


@pytest.fixture
def victim(store_dirs: StoreDirs) -> Iterator[Victim]:
    with victim_at(store_dirs.root, store_dirs.run, store_dirs.work, retries=0) as one:
        yield one


@pytest.fixture
def secret(workdir: Path) -> Path:
    path = workdir / "secret"
    path.write_bytes(SECRET)
    return path


def image(text: str = "x", **more: Any) -> images.Image:
    return images.make_image([Layer().file("file", text.encode()).tar()], **more)


def docker_save(path: Path, entries: list[dict[str, Any]], files: dict[str, bytes]) -> Path:
    """What `docker save` writes, with any manifest.json."""
    with tarfile.open(path, "w") as archive:
        for name, data in {"manifest.json": json.dumps(entries).encode(), **files}.items():
            about = tarfile.TarInfo(name)
            about.size = len(data)
            archive.addfile(about, io.BytesIO(data))
    return path


def saved(made: images.Image, tags: object) -> tuple[dict[str, Any], dict[str, bytes]]:
    """An entry of manifest.json, and the files it names."""
    config = images.digest_of(made.config).partition(":")[2] + ".json"
    tar = images.decompress(made.blobs[json.loads(made.document)["layers"][0]["digest"]])
    layer = images.digest_of(tar).partition(":")[2] + "/layer.tar"
    return {"Config": config, "RepoTags": tags, "Layers": [layer]}, {config: made.config, layer: tar}


def layout_with(folder: Path, made: images.Image, change: Callable[[dict[str, Any]], object]) -> Path:
    """A layout of one image whose index.json is edited."""
    images.write_layout(folder, {"v1": made})
    document = json.loads((folder / "index.json").read_bytes())
    change(document)
    (folder / "index.json").write_text(json.dumps(document))
    return folder


def annotated(folder: Path, made: images.Image, annotations: dict[str, str]) -> Path:
    return layout_with(folder, made, lambda d: d["manifests"][0].update(annotations=annotations))


# ---------------------------------------------------------------------- 30


@pytest.mark.hostile(30)
def test_an_archive_takes_no_name_that_means_something_here(victim: Victim, workdir: Path) -> None:
    store, evil = victim.store, image("evil")
    store.tag(victim.name, "docker.io/library/alpine:3")
    with store.prepare(victim.name, victim.work / "own", mount=True) as root:
        (victim.work / "own/new").touch()
        root.commit("localhost/mine:1")
    victim.settle()
    for number, name in enumerate((victim.name, "docker.io/library/alpine:3", "localhost/mine:1")):
        entry, files = saved(evil, [name])
        archives = [
            docker_save(workdir / f"saved{number}.tar", [entry], files),
            annotated(workdir / f"full{number}", evil, {"io.containerd.image.name": name}),
            annotated(workdir / f"ref{number}", evil, {"org.opencontainers.image.ref.name": name}),
        ]
        for archive in archives:
            victim.refuses(partial(store.load, archive), orlop.AlreadyExists, "another image")
    short, files = saved(evil, ["alpine:3"])
    path = docker_save(workdir / "short.tar", [short], files)
    victim.refuses(partial(store.load, path), orlop.AlreadyExists, "docker.io/library/alpine:3")
    # Asked for by the user, one name of his own does as well as any.
    assert store.load(path, name="localhost/evil").pop().name == "localhost/evil:latest"


@pytest.mark.hostile(30)
def test_of_the_images_of_an_archive_all_get_their_names_or_none(victim: Victim, workdir: Path) -> None:
    store = victim.store
    first, files = saved(image("first"), ["localhost/first:1", "localhost/second:1"])
    second, more = saved(image("second"), ["localhost/third:1", victim.name])
    archive = docker_save(workdir / "many.tar", [first, second], {**files, **more})
    victim.refuses(partial(store.load, archive), orlop.AlreadyExists, victim.name)
    twice, more = saved(image("second"), ["localhost/first:1"])
    archive = docker_save(workdir / "twice.tar", [first, twice], {**files, **more})
    victim.refuses(partial(store.load, archive), orlop.AlreadyExists, "localhost/first:1")
    broken, _ = saved(image("broken"), ["localhost/broken:1"])
    archive = docker_save(workdir / "broken.tar", [first, broken], files)
    victim.refuses(partial(store.load, archive), orlop.NotFound)
    layout = images.write_layout(workdir / "layout", {"a": image("a"), "b": image("b")})
    digest = json.loads((layout / "index.json").read_bytes())["manifests"][1]["digest"]
    (layout / "blobs" / digest.replace(":", "/")).unlink()
    victim.refuses(partial(store.load, layout), orlop.NotFound)
    archive = docker_save(workdir / "good.tar", [first], files)
    assert [info.name for info in store.load(archive)] == ["localhost/first:1", "localhost/second:1"]
    victim.settle()


ODD_NAMES = [
    "a@sha256:" + "0" * 64,
    "localhost/a:1@sha256:" + "0" * 64,
    "../../../etc/passwd",
    "/etc/passwd",
    "localhost/../docker.io/library/alpine",
    "localhost//a",
    "UPPER/case",
    "a b",
    "a\nb",
    "a\x1b[2Jb",
    "a:",
    "a:b:c",
    "host:port/a",
    "-a",
    "a\0",
    "http://127.0.0.1/a",
    "localhost/" + "a" * 300,
    "localhost/a:" + "t" * 129,
]


@pytest.mark.hostile(30, 18)
def test_a_name_in_an_archive_that_is_none_is_refused_not_mended(victim: Victim, workdir: Path) -> None:
    made = image("odd")
    for number, name in enumerate(ODD_NAMES):
        entry, files = saved(made, ["localhost/fine:1", name])
        path = docker_save(workdir / f"{number}.tar", [entry], files)
        victim.fails(partial(victim.store.load, path), orlop.InvalidArgument)
        path = annotated(workdir / f"full{number}", made, {"io.containerd.image.name": name})
        victim.fails(partial(victim.store.load, path), orlop.InvalidArgument)
        path = annotated(workdir / f"ref{number}", made, {"org.opencontainers.image.ref.name": name})
        victim.refuses(partial(victim.store.load, path), orlop.InvalidArgument)
    true = f"localhost/true@{made.digest}"
    path = annotated(workdir / "true", made, {"io.containerd.image.name": true})
    assert victim.store.load(path).pop().name == true
    victim.settle()


@pytest.mark.hostile(30, 15)
def test_a_list_of_a_docker_archive_of_any_shape_is_an_error_of_ours(victim: Victim, workdir: Path) -> None:
    entry, files = saved(image("shape"), [])
    lists: list[object] = [
        {},
        [],
        [1],
        [[]],
        [{}],
        [{**entry, "Config": None}],
        [{**entry, "Config": 7}],
        [{**entry, "Layers": None}],
        [{**entry, "Layers": "abc"}],
        [{**entry, "Layers": [7]}],
        [{**entry, "Layers": []}],
        [{**entry, "Layers": entry["Layers"] * 2}],
        [{**entry, "RepoTags": "localhost/a:1"}],
        [{**entry, "RepoTags": 7}],
        [{**entry, "RepoTags": {"a": 1}}],
        [{**entry, "RepoTags": [7]}],
        [{**entry, "Config": "missing"}],
        [{**entry, "Config": "a\0b"}],
        [{**entry, "Config": "x" * 100_000}],
        [{**entry, "Config": "../" * 100 + "etc/passwd"}],
        [{**entry, "Config": "/etc/passwd"}],
        [{**entry, "Config": "."}],
        [{**entry, "Config": ""}],
        [{**entry, "Layers": ["../" * 100 + "etc/passwd"]}],
        [{**entry, "Layers": ["/etc/passwd"]}],
        [{**entry, "Layers": [""]}],
        [{**entry, "Layers": ["x" * 100_000]}],
    ]
    for number, listed in enumerate(lists):
        path = docker_save(workdir / f"{number}.tar", listed, files)  # type: ignore[arg-type]
        folder = workdir / str(number)
        folder.mkdir()
        (folder / "manifest.json").write_text(json.dumps(listed))
        for name, data in files.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(data)
        for where in (path, folder):
            victim.fails(partial(victim.store.load, where), orlop.Error)
    victim.unharmed()
    for number, raw in enumerate((b"", b"\xff", b"{", b'[{"a":' + b"[" * 100_000, b"[" * 100_000)):
        folder = workdir / f"raw{number}"
        folder.mkdir()
        (folder / "manifest.json").write_bytes(raw)
        victim.fails(partial(victim.store.load, folder), (orlop.InvalidArgument, orlop.ResourceExhausted))
    many = [{**entry, "RepoTags": [f"localhost/a:{number}" for number in range(5_000)]}]
    for path in (
        docker_save(workdir / "tags.tar", many, files),
        docker_save(workdir / "entries.tar", [entry] * 5_000, files),
    ):
        victim.refuses(partial(victim.store.load, path), orlop.ResourceExhausted, "archive_names")


# ---------------------------------------------------------------------- 34


@pytest.mark.hostile(34)
def test_a_file_system_in_the_place_of_a_layers_tar_is_never_mounted(victim: Victim, workdir: Path) -> None:
    with victim.store.prepare(victim.name, victim.work / "a"):
        (ours,) = (victim.root / "chains").glob("*.erofs")
        erofs = ours.read_bytes()
    assert erofs[1024:1028] == b"\xe2\xe1\xf5\xe0"
    squashfs = b"hsqs" + bytes(92) + bytes(4000)
    ext4 = bytes(1080) + b"\x53\xef" + bytes(3000)
    mounted = disks.mounts_below(workdir)
    for number, (name, data) in enumerate((("erofs", erofs), ("squashfs", squashfs), ("ext4", ext4))):
        for kind in ("tar", "tar+gzip", "tar+zstd"):  # called a tar
            victim.refuses(
                _with_layer(victim, workdir / f"{number}-{kind}", LAYER + kind, data), orlop.InvalidArgument
            )
        types = (
            LAYER + name,
            f"application/vnd.{name}",
            f"application/vnd.{name}.layer.v1+zstd",
            f"image/{name}",
        )
        for count, kind in enumerate(types):  # called what it is
            call = _with_layer(victim, workdir / f"{number}+{count}", kind, data)
            victim.refuses(call, orlop.InvalidArgument, "is no tar, but of type")
    assert disks.mounts_below(workdir) == mounted


@pytest.mark.hostile(34)
def test_a_layer_that_needs_a_key_or_is_no_layer_is_refused_by_its_type(
    victim: Victim, workdir: Path
) -> None:
    tar = Layer().file("file").tar()
    for number, kind in enumerate(
        ("tar+gzip+encrypted", "tar+encrypted", "nydus.blob", "star", "tar/x", "tar\n", "TAR")
    ):
        call = _with_layer(victim, workdir / str(number), LAYER + kind, tar)
        victim.refuses(call, orlop.InvalidArgument, "is no tar, but of type")


@pytest.mark.hostile(34)
def test_a_file_that_holds_a_file_system_is_only_a_file(victim: Victim, workdir: Path) -> None:
    # A tar all the same: its first header lies where EROFS leaves room, and the superblock in the first file.
    magic = b"\xe2\xe1\xf5\xe0" + bytes(2044)
    tar = Layer().file("file", bytes(512) + magic).tar()
    assert tar[1024:1028] == magic[:4]
    made = images.make_image([tar], compression="none")
    name = victim.store.load(images.write_layout(workdir / "both", {"v1": made})).pop().name
    with victim.store.prepare(name, victim.work / "both", mount=True):
        assert (victim.work / "both/file").read_bytes() == bytes(512) + magic
        assert os.listdir(victim.work / "both") == ["file"]


def _with_layer(victim: Victim, folder: Path, media_type: str, blob: bytes) -> Callable[[], object]:
    """A call that loads an image whose one layer is a blob of some type."""
    made = images.make_image([blob], compression="none")
    document = json.loads(made.document)
    document["layers"][0]["mediaType"] = media_type
    made = images.Image(
        media_type=made.media_type,
        document=json.dumps(document).encode(),
        blobs=made.blobs,
        config=made.config,
        platform=made.platform,
    )
    images.write_layout(folder, {"v1": made})
    return partial(victim.store.load, folder)


# ---------------------------------------------------------------------- 36


@pytest.mark.hostile(36)
def test_a_source_of_any_name_is_imported_and_gives_a_plain_name(
    victim: Victim, workdir: Path, run_cli: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    made = image("odd")
    good = images.write_layout(workdir / "good", {"v1": made})
    names = [
        "a:b",
        "a,b",
        "a\\b",
        "a b",
        'a"b',
        "a'b",
        "a\nb",
        "a\tb",
        "-o",
        "#a",
        "$(id)",
        "ü",
        "..a",
        "---",
    ]
    for name in names:
        folder = workdir / "odd" / name
        shutil.copytree(good, folder)
        (info,) = victim.store.load(folder)
        assert set(info.name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-/:"), info.name
        assert info.name.startswith("localhost/")
        victim.store.remove(info.name)
        os.unlink(folder / "index.json")
        error = victim.fails(partial(victim.store.load, folder), orlop.InvalidArgument, "no index.json")
        assert name in str(error)
    done = run_cli("import", workdir / "odd" / "a\nb")
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    victim.unharmed()


# ---------------------------------------------------------------------- 37


def _fifo(path: Path) -> None:
    os.mkfifo(path)


def _socket(path: Path) -> None:
    os.mknod(path, stat.S_IFSOCK | 0o600)


def _device(path: Path) -> None:
    os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 5))  # /dev/zero: it would never end


def _no_driver(path: Path) -> None:
    os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(250, 250))  # opening it would be ENXIO


def _folder(path: Path) -> None:
    path.mkdir()


def _dangling(path: Path) -> None:
    path.symlink_to("nowhere")


PUT: dict[str, Callable[[Path], None]] = {
    "fifo": _fifo,
    "socket": _socket,
    "device": _device,
    "device without a driver": _no_driver,
    "folder": _folder,
    "link to nothing": _dangling,
    "link to /dev/zero": lambda path: path.symlink_to("/dev/zero"),
    "link out": lambda path: path.symlink_to(path.parents[0] / "../../../../outside"),
    "link within": lambda path: path.symlink_to("../../aside"),
    "link to /proc": lambda path: path.symlink_to("/proc/self/fd/0"),
}


def _places(made: images.Image) -> list[str]:
    document = json.loads(made.document)
    blobs = [made.digest, document["config"]["digest"], document["layers"][0]["digest"]]
    return ["index.json", *("blobs/" + digest.replace(":", "/") for digest in blobs)]


@pytest.mark.hostile(37)
def test_what_is_no_plain_file_in_a_layout_is_refused_without_being_opened(
    victim: Victim, workdir: Path
) -> None:
    made = image("kinds")
    good = images.write_layout(workdir / "good", {"v1": made})
    for place in _places(made):
        for number, (kind, put) in enumerate(PUT.items()):
            layout = workdir / f"{place.replace('/', '-')[-70:]}{number}"
            shutil.copytree(good, layout)
            shutil.copy(good / place, layout / "aside")  # the right bytes, where links find them
            shutil.copy(good / place, workdir / "outside")
            os.unlink(layout / place)
            put(layout / place)
            error = victim.fails(partial(victim.store.load, layout), orlop.InvalidArgument)
            assert "symlink" in str(error) or "regular file" in str(error), f"{kind}: {error}"
            shutil.rmtree(layout)
    victim.unharmed()


@pytest.mark.hostile(37)
def test_a_link_in_the_place_of_a_layouts_folder_is_not_followed(victim: Victim, workdir: Path) -> None:
    made = image("folders")
    for place in ("blobs", "blobs/sha256"):
        layout = images.write_layout(workdir / place.replace("/", "-"), {"v1": made})
        os.rename(layout / place, layout / "aside")
        for target in ("aside", os.fspath(layout / "aside"), "../aside"):
            (layout / place).symlink_to(target)
            victim.refuses(partial(victim.store.load, layout), (orlop.InvalidArgument, orlop.NotFound))
            (layout / place).unlink()


@pytest.mark.hostile(37)
def test_a_hard_link_to_a_host_file_gives_nothing_of_it_away(
    victim: Victim, workdir: Path, secret: Path
) -> None:
    made = image("hard links")
    for number, place in enumerate(_places(made)):
        layout = images.write_layout(workdir / str(number), {"v1": made})
        os.unlink(layout / place)
        os.link(secret, layout / place)
        error = victim.refuses(partial(victim.store.load, layout), (orlop.InvalidArgument, orlop.DataLoss))
        assert "secret" not in f"{error.reason} {error.hint}".replace(os.fspath(workdir), "")
    assert secret.read_bytes() == SECRET


@pytest.mark.hostile(37)
def test_a_source_that_is_no_file_and_no_folder_is_refused_at_once(victim: Victim, workdir: Path) -> None:
    for number, put in enumerate((_fifo, _socket, _device, _no_driver)):
        put(workdir / str(number))
        call = partial(victim.store.load, workdir / str(number))
        done: list[orlop.Error] = []
        trying = threading.Thread(
            target=lambda call=call, done=done: done.append(victim.fails(call, orlop.Error)), daemon=True
        )
        trying.start()
        trying.join(60)  # where it would wait for somebody who writes, it would be for ever
        assert done, f"still waiting: {number}"
    victim.unharmed()


@pytest.mark.hostile(37)
def test_links_in_an_archive_stay_in_it(victim: Victim, workdir: Path, secret: Path) -> None:
    made = image("links")
    entry, files = saved(made, ["localhost/links:1"])
    (config, config_data), (layer, layer_data) = files.items()
    outside = os.fspath(secret)
    cases: list[tuple[str, Callable[[tarfile.TarFile], None]]] = [
        ("symlink out", lambda archive: _link(archive, config, "../" * 40 + outside.lstrip("/"))),
        ("absolute symlink", lambda archive: _link(archive, config, outside)),
        ("hard link out", lambda archive: _link(archive, config, outside, tarfile.LNKTYPE)),
        (
            "hard link up",
            lambda archive: _link(archive, config, "../" * 40 + outside.lstrip("/"), tarfile.LNKTYPE),
        ),
        ("loop", lambda archive: _link(archive, config, config)),
        ("loop of two", lambda archive: (_link(archive, config, "b"), _link(archive, "b", config))),
        ("fifo", lambda archive: _special(archive, config, tarfile.FIFOTYPE)),
        ("device", lambda archive: _special(archive, config, tarfile.CHRTYPE)),
        ("folder", lambda archive: _special(archive, config, tarfile.DIRTYPE)),
        (
            "through a link",
            lambda archive: (
                _link(archive, "out", os.path.dirname(outside)),
                _link(archive, config, "out/secret"),
            ),
        ),
    ]
    for number, (what, put) in enumerate(cases):
        path = workdir / f"{number}.tar"
        with tarfile.open(path, "w") as archive:
            _add(archive, "manifest.json", json.dumps([entry]).encode())
            _add(archive, layer, layer_data)
            put(archive)
        error = victim.refuses(partial(victim.store.load, path), orlop.Error)
        assert SECRET.decode().strip() not in str(error), what
    path = workdir / "within.tar"  # what docker itself wrote for layers that are the same
    with tarfile.open(path, "w") as archive:
        _add(archive, "manifest.json", json.dumps([entry]).encode())
        _add(archive, "deep/real", layer_data)
        _link(archive, layer, "../deep/real")
        _add(archive, "c", config_data)
        _link(archive, config, "c", tarfile.LNKTYPE)
    assert victim.store.load(path).pop().id == made.id
    victim.settle()
    assert secret.read_bytes() == SECRET


def _add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    about = tarfile.TarInfo(name)
    about.size = len(data)
    archive.addfile(about, io.BytesIO(data))


def _link(archive: tarfile.TarFile, name: str, target: str, kind: bytes = tarfile.SYMTYPE) -> None:
    about = tarfile.TarInfo(name)
    about.type, about.linkname = kind, target
    archive.addfile(about)


def _special(archive: tarfile.TarFile, name: str, kind: bytes) -> None:
    about = tarfile.TarInfo(name)
    about.type, about.devmajor, about.devminor = kind, 1, 5
    archive.addfile(about)
