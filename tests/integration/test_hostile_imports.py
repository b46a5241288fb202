"""Imports that are made to hurt: docker's oldest archives, root file systems as tars and as folders, streams."""

from __future__ import annotations

import gzip
import io
import itertools
import json
import os
import tarfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

import orlop
from conftest import StoreDirs
from orlop.images.archives.foldertar import FolderTar
from orlop.observe import Call, CancelToken
from support import images
from support.layers import Layer
from support.victims import Victim, victim_at

pytestmark = pytest.mark.root

IDS = [f"{number:064x}" for number in range(1, 8)]
SECRET = b"the host's own secret\n"


@pytest.fixture
def victim(store_dirs: StoreDirs) -> Iterator[Victim]:
    limits = orlop.Limits(layer_size=64 << 20, layers=6)
    with victim_at(store_dirs.root, store_dirs.run, store_dirs.work, retries=0, limits=limits) as one:
        yield one


def oldest(path: Path, names: object, chain: int = 3, **changed: bytes | None) -> Path:
    """What docker before 1.10 saved: a chain of images; files ``changed`` by their names (with _ for /)."""
    files: dict[str, bytes | None] = {"repositories": json.dumps(names).encode()}
    for number, identity in enumerate(IDS[:chain]):
        about = {"id": identity, "created": "2015-01-01T00:00:00Z", "os": "linux", "architecture": "amd64"}
        parent = {"parent": IDS[number - 1]} if number else {}
        files[f"{identity}/VERSION"] = b"1.0"
        files[f"{identity}/json"] = json.dumps({**about, **parent}).encode()
        files[f"{identity}/layer.tar"] = Layer().file("etc/motd", f"step {number}\n".encode()).tar()
    files |= {name.replace("__", "/"): data for name, data in changed.items()}
    with tarfile.open(path, "w") as archive:
        for name, data in files.items():
            if data is not None:
                entry = tarfile.TarInfo(name)
                entry.size = len(data)
                archive.addfile(entry, io.BytesIO(data))
    return path


def named(*names: str, identity: str = IDS[2]) -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = {}
    for name in names:
        repository, _, tag = name.rpartition(":")
        found.setdefault(repository, {})[tag] = identity
    return found


# -- docker's oldest form ---------------------------------------------------------------------------


def test_an_archive_of_old_docker_gives_the_same_image_whatever_the_day_and_how_it_comes(
    victim: Victim, workdir: Path
) -> None:
    names = named("localhost/old:1", "localhost/old:2") | {"base": {"x": IDS[0]}}
    path = oldest(workdir / "old.tar", names)
    found = victim.store.load(path)
    assert [info.name for info in found] == [
        "localhost/old:1",
        "localhost/old:2",
        "docker.io/library/base:x",
    ]
    assert found[0].id == found[1].id
    assert [info.layers for info in found] == [3, 3, 1]
    layers = [layer.diff_id for layer in victim.store.inspect("localhost/old:1").layers]
    tars = [Layer().file("etc/motd", f"step {number}\n".encode()).tar() for number in range(3)]
    assert layers == [images.digest_of(tar) for tar in tars]
    with victim.store.prepare("localhost/old:1", victim.work / "old", mount=True):
        assert (victim.work / "old/etc/motd").read_text() == "step 2\n"
    packed = workdir / "old.tar.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    folder = workdir / "folder"
    with tarfile.open(path) as archive:
        archive.extractall(folder, filter="fully_trusted")
    for source in (packed, folder, io.BytesIO(path.read_bytes())):
        assert [info.id for info in victim.store.load(source)] == [info.id for info in found]
    one = oldest(workdir / "one.tar", named("localhost/one:1"))
    assert victim.store.load(one, name="mine:1", platform="linux/amd64").pop().name.endswith("/mine:1")
    wrong = partial(victim.store.load, one, name="mine:2", platform="linux/s390x")
    victim.fails(wrong, orlop.FailedPrecondition, "linux/amd64")


def said(number: int, **more: object) -> bytes:
    return json.dumps({"id": IDS[number], **more}).encode()


OLD: list[tuple[dict[str, bytes | None], type[orlop.Error], str]] = [
    ({f"{IDS[0]}__json": said(0, parent=IDS[2])}, orlop.InvalidArgument, "its own parents"),
    ({f"{IDS[2]}__json": said(2, parent=IDS[2])}, orlop.InvalidArgument, "its own parents"),
    ({f"{IDS[0]}__json": said(0, parent=IDS[6])}, orlop.NotFound, IDS[6]),
    ({f"{IDS[0]}__json": said(0, parent="../../../etc")}, orlop.InvalidArgument, "no image's ID"),
    ({f"{IDS[0]}__json": None}, orlop.NotFound, f"{IDS[0]}/json"),
    ({f"{IDS[1]}__json": b'{"a":' * 1000 + b"1" + b"}" * 1000}, orlop.ResourceExhausted, "json_depth"),
    ({f"{IDS[2]}__json": said(2, parent=IDS[1], config=[1])}, orlop.InvalidArgument, "config"),
    ({f"{IDS[1]}__layer.tar": None}, orlop.NotFound, "layer.tar"),
    ({f"{IDS[1]}__layer.tar": b"no tar at all"}, orlop.InvalidArgument, ""),
    (
        {f"{IDS[1]}__layer.tar": bytes(1080) + b"\x53\xef" + bytes(3000)},
        orlop.InvalidArgument,
        "import .*not a tar",
    ),
    ({f"{IDS[1]}__layer.tar": gzip.compress(bytes(80 << 20))}, orlop.ResourceExhausted, ""),
]


@pytest.mark.hostile(15, 34, 12)
def test_a_chain_of_old_docker_that_is_none_brings_nothing(victim: Victim, workdir: Path) -> None:
    for number, (changed, error, words) in enumerate(OLD):
        path = oldest(workdir / f"{number}.tar", named("localhost/old:1"), **changed)
        victim.fails(partial(victim.store.load, path), error, words)
    victim.unharmed()
    long = oldest(workdir / "long.tar", named("localhost/old:1", identity=IDS[6]), chain=7)
    victim.refuses(partial(victim.store.load, long), orlop.ResourceExhausted, "limits.layers|layers")


@pytest.mark.hostile(30, 18)
def test_an_archive_of_old_docker_takes_no_name_either(victim: Victim, workdir: Path) -> None:
    for number, name in enumerate(("UPPER:1", "../etc/passwd:1", "a@sha256:" + "0" * 64, "a b:1", ":1")):
        path = oldest(workdir / f"{number}.tar", named("localhost/fine:1", name))
        victim.fails(partial(victim.store.load, path), orlop.InvalidArgument)
    many = {"localhost/many": {str(number): IDS[0] for number in range(5_000)}}
    path = oldest(workdir / "many.tar", many)
    victim.fails(partial(victim.store.load, path), orlop.ResourceExhausted, "archive_names")
    victim.unharmed()


@pytest.mark.hostile(30)
def test_names_move_only_where_that_was_asked_and_then_all_of_them(victim: Victim, workdir: Path) -> None:
    store = victim.store
    store.tag(victim.name, "localhost/a:1")
    store.tag(victim.name, "localhost/b:1")
    victim.settle()
    path = oldest(workdir / "old.tar", named("localhost/a:1", "localhost/new:1", "localhost/b:1"))
    error = victim.refuses(partial(store.load, path), orlop.AlreadyExists, "localhost/a:1")
    assert "localhost/b:1" in str(error)  # all of them, so that one look tells what is in the way
    assert "localhost/new:1" not in str(error)
    rootfs = partial(store.load, io.BytesIO(Layer().file("f").tar()), name="localhost/a:1")
    victim.refuses(rootfs, orlop.AlreadyExists)
    found = store.load(path, replace=True)
    assert {store.inspect(name).info.id for name in ("localhost/a:1", "localhost/b:1")} == {found[0].id}
    assert store.inspect(victim.name).info.id == victim.image.id
    store.tag(victim.name, "localhost/a:1")
    victim.settle()
    entry = {"Config": "c", "Layers": [], "RepoTags": ["localhost/a:1"]}
    with tarfile.open(workdir / "twice.tar", "w") as archive:
        for name, data in (
            ("manifest.json", json.dumps([entry, {**entry, "Config": "d"}]).encode()),
            *((n, json.dumps({"rootfs": {"type": "layers", "diff_ids": []}, "x": n}).encode()) for n in "cd"),
        ):
            about = tarfile.TarInfo(name)
            about.size = len(data)
            archive.addfile(about, io.BytesIO(data))
    twice = partial(store.load, workdir / "twice.tar", replace=True)
    victim.refuses(twice, orlop.AlreadyExists, "two images")


# -- root file systems ------------------------------------------------------------------------------


@pytest.mark.hostile(12, 13, 34)
def test_what_is_no_root_file_system_is_refused_by_path_and_by_pipe(victim: Victim, workdir: Path) -> None:
    cases: list[tuple[bytes, type[orlop.Error]]] = [
        (b"hsqs" + bytes(92) + bytes(4000), orlop.InvalidArgument),
        (bytes(1080) + b"\x53\xef" + bytes(3000), orlop.InvalidArgument),
        (bytes(1024) + b"\xe2\xe1\xf5\xe0" + bytes(4000), orlop.InvalidArgument),
        (b"\x7fELF" + bytes(5000), orlop.InvalidArgument),
        (gzip.compress(b"not a tar"), orlop.InvalidArgument),
        (gzip.compress(Layer().file("f", os.urandom(5000)).tar())[:-2000], orlop.InvalidArgument),
        (Layer().file("f", bytes(5000)).tar()[:2000], orlop.InvalidArgument),
        (gzip.compress(gzip.compress(Layer().file("f").tar())), orlop.InvalidArgument),
        (gzip.compress(Layer().file("f", bytes(80 << 20)).tar()), orlop.ResourceExhausted),
    ]
    for number, (data, error) in enumerate(cases):
        path = workdir / str(number)
        path.write_bytes(data)
        for source in (path, io.BytesIO(data)):
            victim.fails(partial(victim.store.load, source, name="localhost/x"), error)
    zeros = iter(lambda: bytes(1 << 20), None)
    victim.fails(partial(victim.store.load, zeros), orlop.ResourceExhausted, "layer_size")
    victim.unharmed()
    # A plain file or a layout's folder is not silently a root file system.
    layout = images.write_layout(workdir / "layout", {"v1": victim.image})
    (layout / "index.json").unlink()
    victim.refuses(partial(victim.store.load, layout), orlop.InvalidArgument, "no index.json")


@pytest.mark.hostile(1, 6)
def test_links_of_a_root_file_system_lead_nowhere(victim: Victim, workdir: Path) -> None:
    secret = workdir / "secret"
    secret.write_bytes(SECRET)
    tar = (
        Layer().symlink("out", os.fspath(workdir)).file("out/secret", b"theirs").symlink("index.json", "/etc")
    )
    tar.file("../../up", b"").hardlink("hard", os.fspath(secret))
    (info,) = victim.store.load(io.BytesIO(tar.tar()), name="localhost/links")
    with victim.store.prepare(info.name, victim.work / "links", mount=True):
        assert (victim.work / "links/hard").read_bytes() == b"theirs"  # of the image's own, below out
        assert (victim.work / "links/up").exists()
    assert secret.read_bytes() == SECRET


def folder_tar(folder: Path, out: Path, call: Call) -> dict[str, bytes]:
    """The tar of a folder, by our own walk: its files."""
    here = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with out.open("wb") as file:
            FolderTar(file.fileno(), call=call).write(here)
    finally:
        os.close(here)
    with tarfile.open(out) as archive:
        files = ((member, archive.extractfile(member)) for member in archive if member.isreg())
        return {member.name: file.read() for member, file in files if file is not None}


class Swap(CancelToken):
    """Does something at one of the looks that the work takes at its token."""

    def __init__(self, act: Callable[[], object], look: int) -> None:
        super().__init__()
        self._act, self._left = act, look

    @property
    def cancelled(self) -> bool:
        self._left -= 1
        if not self._left:
            self._act()
        return False


@pytest.mark.hostile(2, 4)
def test_a_folder_that_changes_under_the_walk_leads_it_nowhere(workdir: Path) -> None:
    outside = workdir / "outside"
    (outside / "d").mkdir(parents=True)
    (outside / "secret").write_bytes(SECRET)
    (outside / "d/secret").write_bytes(SECRET)
    refused: list[orlop.Error] = []
    whole = 0
    for number, (swapped, look) in enumerate(itertools.product(("a", "a/b", "a/b/file", "z"), range(1, 14))):
        for away in (False, True):
            tree = workdir / f"{number}{away}"
            (tree / "a/b").mkdir(parents=True)
            (tree / "a/b/file").write_bytes(b"x" * 10)
            (tree / "z").mkdir()
            place = tree / swapped
            aside = outside / f"moved{number}" if away else Path(f"{place}-gone")
            target = outside / "secret" if place.name == "file" else outside

            def swap(place: Path = place, aside: Path = aside, target: Path = target) -> None:
                os.rename(place, aside)
                place.symlink_to(target)

            try:
                files = folder_tar(tree, workdir / "out", Call(cancel=Swap(swap, look)))
            except orlop.FailedPrecondition as exc:
                refused.append(exc)
            else:
                assert SECRET not in files.values()
                whole += 1
    assert {exc.reason.partition(" ")[2] for exc in refused} == {"changed while it was read"}
    assert whole


@pytest.mark.hostile(8, 14)
def test_a_folder_deeper_than_any_path_is_walked_with_few_descriptors(workdir: Path) -> None:
    top = at = os.open(workdir, os.O_RDONLY | os.O_DIRECTORY)
    os.mkdir("deep", dir_fd=top)
    folders = ["deep", *["d" * 200] * 60]  # 12,000 bytes of path
    try:
        for name in folders:
            if name != "deep":
                os.mkdir(name, dir_fd=at)
            below = os.open(name, os.O_RDONLY | os.O_DIRECTORY, dir_fd=at)
            if at != top:
                os.close(at)
            at = below
        os.close(os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=at))
    finally:
        os.close(at)
        os.close(top)
    assert [len(name) for name in folder_tar(workdir / "deep", workdir / "out", Call())] == [60 * 201 + 4]
