"""Files pushed and pulled as artifacts: what the manifest is, what lies in the folder, and what does not."""

from __future__ import annotations

import fcntl
import json
import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

import orlop
from orlop.errors import AlreadyExists, DataLoss, Error, FailedPrecondition, InvalidArgument, NotFound
from orlop.observe import Call, NullObserver
from orlop.remote.artifacts import EMPTY_TYPE, TITLE, UNKNOWN_TYPE, UNPACK
from orlop.remote.verbs import Remote
from orlop.spec.digest import Digest
from orlop.spec.documents import OCI_MANIFEST
from orlop.testing.registry import Fault, MemoryRegistry

DATA = random.Random(7).randbytes(900_000)


class Warnings(NullObserver):
    """The warnings that an observer is given."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def warning(self, text: str) -> None:
        self.texts.append(text)


@pytest.fixture
def registry() -> Iterator[MemoryRegistry]:
    with MemoryRegistry() as running:
        yield running


@pytest.fixture
def remote() -> Iterator[Remote]:
    with orlop.registries(orlop.Settings(timeout=5.0, retries=1)) as opened:
        yield opened


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def publish(registry: MemoryRegistry, files: dict[str, bytes], *, tag: str = "1", **more: object) -> str:
    """An artifact as a stranger makes it; its name.  ``more`` is of its manifest."""
    layers = [
        {
            "mediaType": "application/octet-stream",
            "digest": registry.add_blob("art", data),
            "size": len(data),
            "annotations": {TITLE: name},
        }
        for name, data in files.items()
    ]
    document = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "artifactType": "a/b",
        "config": {"mediaType": EMPTY_TYPE, "digest": registry.add_blob("art", b"{}"), "size": 2},
        "layers": layers,
        **more,
    }
    registry.add_manifest("art", tag, json.dumps(document).encode(), OCI_MANIFEST)
    return f"{registry.host}/art:{tag}"


def files_below(folder: Path) -> dict[str, bytes]:
    found = {}
    for path in sorted(folder.rglob("*")):
        assert not path.is_symlink()
        if path.is_file():
            found[path.relative_to(folder).as_posix()] = path.read_bytes()
    return found


# ---------------------------------------------------------------------- pushing


def test_files_come_back_under_their_names(
    registry: MemoryRegistry, remote: Remote, tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dir").mkdir()
    content = {"dir/a.bin": DATA, "empty": b"", "ä.txt": b"x"}
    for name, data in content.items():
        (tmp_path / name).write_bytes(data)
    files = [orlop.ArtifactFile(path=name, media_type="text/x-test") for name in content]
    name = f"{registry.host}/art:1"
    pushed = remote.push_artifact(name, files, artifact_type="a/b", annotations={"k": "v"})
    pulled = remote.pull_artifact(name, str(out))
    assert files_below(out) == content
    assert (pulled.digest, pulled.artifact_type, pulled.annotations) == (pushed.digest, "a/b", {"k": "v"})
    assert [file.path for file in pulled.files] == [f"{out}/{name}" for name in content]
    assert {file.media_type for file in pulled.files} == {"text/x-test"}
    assert remote.push_artifact(name, files, artifact_type="a/b", annotations={"k": "v"}) == pushed
    assert remote.pull_artifact(name, str(out)).files == pulled.files  # again: nothing to do
    assert len(registry.seen("GET", "/blobs/")) == 2  # of the empty one there is nothing to fetch


def test_the_manifest_is_what_the_specification_asks_for(
    registry: MemoryRegistry, remote: Remote, tmp_path: Path
) -> None:
    (tmp_path / "f").write_bytes(b"x")
    (tmp_path / "c").write_bytes(b"{}")
    name, file = f"{registry.host}/art:1", orlop.ArtifactFile(path=str(tmp_path / "f"))
    config = orlop.ArtifactFile(path=str(tmp_path / "c"), media_type="a/config")
    empty = {"mediaType": EMPTY_TYPE, "digest": Digest.of(b"{}"), "size": 2}

    def made(**more: object) -> dict[str, object]:
        remote.push_artifact(name, **more)  # type: ignore[arg-type]
        return json.loads(registry.manifests["art", "1"][1])  # type: ignore[no-any-return]

    layer = {"mediaType": "application/octet-stream", "digest": Digest.of(b"x"), "size": 1}
    layer["annotations"] = {TITLE: "f"}  # of an absolute path the last part
    base = {"schemaVersion": 2, "mediaType": OCI_MANIFEST}
    assert made(files=[file]) == {**base, "artifactType": UNKNOWN_TYPE, "config": empty, "layers": [layer]}
    assert made() == {**base, "artifactType": UNKNOWN_TYPE, "config": empty, "layers": [empty]}
    assert registry.blobs[Digest.of(b"{}")] == b"{}"
    own = {**empty, "mediaType": "a/config"}
    assert made(files=[file], config=config) == {**base, "config": own, "layers": [layer]}


def test_what_cannot_be_pushed_is_refused_before_anything_is_sent(
    registry: MemoryRegistry, remote: Remote, tmp_path: Path
) -> None:
    (tmp_path / "f").write_bytes(b"x")
    (tmp_path / "other").mkdir()
    (tmp_path / "other/f").write_bytes(b"y")
    os.mkfifo(tmp_path / "fifo")
    name, good = f"{registry.host}/art:1", orlop.ArtifactFile(path=str(tmp_path / "f"))
    file = orlop.ArtifactFile
    for files, more, kind in (
        ([file(path=str(tmp_path / "absent"))], {}, NotFound),
        ([file(path=str(tmp_path / "other"))], {}, InvalidArgument),
        ([file(path=str(tmp_path / "fifo"))], {}, InvalidArgument),
        ([file(path=str(tmp_path / "f"), media_type="none")], {}, InvalidArgument),
        ([good, file(path=str(tmp_path / "other/f"))], {}, InvalidArgument),
        ([file(path=str(tmp_path / "f"), name="../f")], {}, InvalidArgument),
        ([good], {"artifact_type": "a b/c"}, InvalidArgument),
        ([good], {"annotations": {"a": "\udcff"}}, InvalidArgument),  # not UTF-8 on the command line
        ([good], {"annotations": {"\udcff": "b"}}, InvalidArgument),
        ([good], {"subject": f"{registry.host}/another:1"}, InvalidArgument),
        ([good], {"subject": f"{registry.host}/art:absent"}, NotFound),
    ):
        with pytest.raises(kind):
            remote.push_artifact(name, files, **more)  # type: ignore[arg-type]
    assert not registry.blobs
    assert not registry.manifests
    assert not registry.seen("POST")


def test_a_file_that_changes_while_it_is_sent_is_data_loss(
    registry: MemoryRegistry, remote: Remote, tmp_path: Path
) -> None:
    """It is read twice: once for its digest, and once more where the registry has not got it."""
    path, name = tmp_path / "f", f"{registry.host}/art:1"
    path.write_bytes(DATA)

    class Change(NullObserver):
        """Changes the file when the empty config has been sent, which a registry has first."""

        def progress(self, event: orlop.Progress) -> None:
            path.write_bytes(b"z" * len(DATA))

    settings = orlop.Settings(timeout=5.0, retries=1, uploads=1)
    files = [orlop.ArtifactFile(path=str(tmp_path / "first")), orlop.ArtifactFile(path=str(path))]
    (tmp_path / "first").write_bytes(b"1")
    with orlop.registries(settings) as remote, pytest.raises(DataLoss):
        remote.push_artifact(name, files, call=Call(observer=Change()))
    assert not registry.manifests
    assert not registry.uploads


# ---------------------------------------------------------------------- pulling


HOSTILE = [
    "/etc/orlop-was-here",
    "../out-of-it",
    "a/../../out-of-it",
    "a//b",
    ".",
    "",
    "a\\b",
    "a\nb",
    "x\0y",
]


@pytest.mark.hostile(6)
@pytest.mark.parametrize("name", HOSTILE)
def test_a_name_that_leads_elsewhere_is_refused_before_anything_is_written(
    registry: MemoryRegistry, remote: Remote, tmp_path: Path, out: Path, name: str
) -> None:
    with pytest.raises(InvalidArgument):
        remote.pull_artifact(publish(registry, {"good": b"1", name: b"2"}), str(out))
    assert not out.exists()
    assert os.listdir(tmp_path) == []
    assert not registry.seen("GET", "/blobs/")


@pytest.mark.hostile(1, 2, 6)
def test_links_in_the_folder_are_not_followed_and_not_written_through(
    registry: MemoryRegistry, remote: Remote, tmp_path: Path, out: Path
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_bytes(b"theirs")
    out.mkdir()
    (out / "folder").symlink_to(outside)
    (out / "file").symlink_to(outside / "file")
    (out / "dangling").symlink_to(outside / "new")
    (out / "hard").hardlink_to(outside / "file")
    (out / "plain").write_bytes(b"mine")
    for number, name in enumerate(("folder/file", "folder/new", "file", "dangling", "plain/x")):
        for force in (False, True):
            artifact = publish(registry, {name: b"evil"}, tag=f"t{number}")
            if force and "/" not in name:
                remote.pull_artifact(artifact, str(out), force=True)  # replaces the link itself
                assert (out / name).read_bytes() == b"evil"
                assert not (out / name).is_symlink()
            else:
                with pytest.raises((FailedPrecondition, AlreadyExists)):
                    remote.pull_artifact(artifact, str(out), force=force)
    remote.pull_artifact(publish(registry, {"hard": b"evil"}), str(out), force=True)
    assert files_below(outside) == {"file": b"theirs"}
    assert (out / "plain").read_bytes() == b"mine"
    part = out / f".orlop-sha256-{Digest.of(b'more').hex}.part"
    part.symlink_to(outside / "file")
    with pytest.raises(FailedPrecondition):
        remote.pull_artifact(publish(registry, {"more": b"more"}), str(out))
    part.unlink()
    part.hardlink_to(outside / "file")
    remote.pull_artifact(publish(registry, {"more": b"more"}), str(out))
    assert files_below(outside) == {"file": b"theirs"}
    assert (out / "more").read_bytes() == b"more"
    assert not part.exists()


def test_what_is_there_is_replaced_only_when_asked_for(
    registry: MemoryRegistry, remote: Remote, out: Path
) -> None:
    name = publish(registry, {"a": b"new", "b": b"2"})
    out.mkdir()
    (out / "a").write_bytes(b"old")
    with pytest.raises(AlreadyExists) as caught:
        remote.pull_artifact(name, str(out))
    assert "--force" in caught.value.hint
    assert files_below(out) == {"a": b"old"}
    remote.pull_artifact(name, str(out), force=True)
    assert files_below(out) == {"a": b"new", "b": b"2"}
    (out / "b").unlink()
    (out / "b").mkdir()
    for force in (False, True):
        with pytest.raises(Error):
            remote.pull_artifact(name, str(out), force=force)


@pytest.mark.hostile(19, 38)
def test_a_pull_goes_on_where_the_last_one_broke_off(
    registry: MemoryRegistry, remote: Remote, out: Path
) -> None:
    name, digest = publish(registry, {"big": DATA}), Digest.of(DATA)
    registry.misbehave(Fault(path=digest, cut_after=400_000, times=1), Fault(path=digest, drop=True))
    with pytest.raises(orlop.Unavailable):
        remote.pull_artifact(name, str(out))
    assert not (out / "big").exists()
    (part,) = out.iterdir()
    had = part.stat().st_size
    assert 0 < had <= 400_000
    registry.behave()
    remote.pull_artifact(name, str(out))
    assert files_below(out) == {"big": DATA}
    assert registry.seen("GET", digest)[-1].headers["range"] == f"bytes={had}-"


def test_a_registry_that_gives_a_crumb_a_time_is_given_up(
    registry: MemoryRegistry, remote: Remote, out: Path
) -> None:
    name, digest = publish(registry, {"big": DATA}), Digest.of(DATA)
    registry.misbehave(Fault(path=digest, cut_after=1_000))
    with pytest.raises(orlop.Unavailable):
        remote.pull_artifact(name, str(out))
    assert len(registry.seen("GET", digest)) < 10
    registry.behave()
    remote.pull_artifact(name, str(out))
    assert files_below(out) == {"big": DATA}


def test_a_part_that_has_its_name_already_is_begun_anew(
    registry: MemoryRegistry, remote: Remote, out: Path
) -> None:
    name, digest = publish(registry, {"big": DATA}), Digest.of(DATA)
    remote.pull_artifact(name, str(out))
    (out / f".orlop-sha256-{digest.hex}.part").hardlink_to(out / "big")
    remote.pull_artifact(name, str(out), force=True)
    assert files_below(out) == {"big": DATA}


@pytest.mark.hostile(16, 19)
def test_other_bytes_get_no_name_and_are_not_gone_on_with(
    registry: MemoryRegistry, remote: Remote, out: Path
) -> None:
    name, digest = publish(registry, {"big": DATA}), Digest.of(DATA)
    for wrong in (b"x" + DATA[1:], DATA[:-1], DATA + b"x", DATA * 3, b""):
        registry.blobs[digest] = wrong
        with pytest.raises(DataLoss):
            remote.pull_artifact(name, str(out))
        assert not (out / "big").exists()
        assert sum(path.stat().st_size for path in out.iterdir()) <= len(DATA)
    registry.blobs[digest] = DATA
    remote.pull_artifact(name, str(out))
    assert files_below(out) == {"big": DATA}
    # and what lies in the way of a part
    (out / "big").unlink()
    for before in (b"z" * 1000, b"z" * len(DATA), b"z" * (len(DATA) + 5)):
        (out / f".orlop-sha256-{digest.hex}.part").write_bytes(before)
        try:
            remote.pull_artifact(name, str(out))
        except DataLoss:  # what was there was not ours; it is gone now
            remote.pull_artifact(name, str(out))
        assert files_below(out) == {"big": DATA}
        (out / "big").unlink()


def test_two_pulls_of_one_file_do_not_write_over_each_other(
    registry: MemoryRegistry, remote: Remote, out: Path
) -> None:
    name, digest = publish(registry, {"a": DATA}), Digest.of(DATA)
    out.mkdir()
    with open(out / f".orlop-sha256-{digest.hex}.part", "wb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(FailedPrecondition, match="another process"):
            remote.pull_artifact(name, str(out))
    remote.pull_artifact(name, str(out))
    assert files_below(out) == {"a": DATA}


def test_one_blob_under_two_names_is_two_files(registry: MemoryRegistry, remote: Remote, out: Path) -> None:
    name = publish(registry, {"a": DATA, "d/b": DATA})
    remote.pull_artifact(name, str(out))
    assert files_below(out) == {"a": DATA, "d/b": DATA}
    assert (out / "a").stat().st_nlink == 1


def test_what_has_no_name_or_was_packed_is_told(registry: MemoryRegistry, remote: Remote, out: Path) -> None:
    folder = {
        "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip",
        "digest": registry.add_blob("art", b"tar"),
        "size": 3,
        "annotations": {TITLE: "folder", UNPACK: "true"},
    }
    nameless = {"mediaType": "a/b", "digest": registry.add_blob("art", b"?"), "size": 1}
    name = publish(registry, {}, layers=[folder, nameless])
    log = Warnings()
    remote.pull_artifact(name, str(out), call=Call(observer=log))
    assert files_below(out) == {"folder": b"tar"}
    assert len(log.texts) == 2
    assert "stays packed" in log.texts[0]
    assert "has no name" in log.texts[1]
