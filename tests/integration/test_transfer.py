"""Pull, push, import: what goes in and out, with Debian's registry, skopeo, podman and runc as judges."""

from __future__ import annotations

import base64
import json
import os
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import orlop
from conftest import StoreDirs
from orlop.images.running.bundle import RunOptions, build_spec, write_bundle
from orlop.observe import NullObserver
from orlop.spec.documents import parse_config
from support import images
from support.layers import Layer
from support.registries import Registry

pytestmark = pytest.mark.root

HOST = images.HOST


def one(text: str = "hello\n") -> bytes:
    return Layer().folder("etc").file("etc/motd", text.encode()).file("data", os.urandom(3000)).tar()


def read(store: orlop.Store, name: str, path: Path, inside: str) -> str:
    with store.prepare(name, path, pull="never", mount=True):
        return (path / inside).read_text()


def skopeo(*args: str) -> str:
    return subprocess.run(["skopeo", *args], check=True, capture_output=True, text=True).stdout


# -- pull -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("docker", [False, True], ids=["oci", "docker"])
@pytest.mark.parametrize("compression", ["gzip", "zstd", "none"])
def test_every_kind_of_layer_is_pulled(
    store: orlop.Store,
    registry: Registry,
    store_dirs: StoreDirs,
    compression: images.Compression,
    docker: bool,
) -> None:
    image = images.make_image([one(), one("top\n")], compression=compression, docker=docker)
    repository = f"kinds-{compression}-{docker}".lower()
    digest = images.push(registry, repository, "v1", image)
    pulled = store.pull(f"{registry.host}/{repository}:v1")
    assert (pulled.digest, pulled.id, pulled.layers) == (digest, image.id, 2)
    assert read(store, pulled.name, store_dirs.work / "a", "etc/motd") == "top\n"


def test_an_index_gives_the_image_of_the_wanted_platform(
    store: orlop.Store, registry: Registry, store_dirs: StoreDirs
) -> None:
    other = "linux/s390x" if HOST != "linux/s390x" else "linux/amd64"
    index = images.make_index(
        [
            images.make_image([one("other\n")], platform=other),
            images.make_image([one("this\n")], platform=HOST),
        ]
    )
    images.push(registry, "multi", "v1", index)
    name = f"{registry.host}/multi:v1"
    assert read(store, store.pull(name).name, store_dirs.work / "a", "etc/motd") == "this\n"
    assert store.pull(name, platform=other).platform == other
    assert read(store, name, store_dirs.work / "b", "etc/motd") == "other\n"
    with pytest.raises(orlop.NotFound, match="linux/s390x"):
        store.pull(name, platform="linux/mips64le")


def test_an_image_is_pulled_by_digest(store: orlop.Store, registry: Registry) -> None:
    image = images.make_image([one()])
    digest = images.push(registry, "by-digest", "v1", image)
    assert store.pull(f"{registry.host}/by-digest@{digest}").digest == digest
    with pytest.raises(orlop.NotFound):
        store.pull(f"{registry.host}/by-digest@sha256:{'0' * 64}")


def test_an_image_pulled_by_tag_is_found_by_its_digest(store: orlop.Store, registry: Registry) -> None:
    digest = images.push(registry, "tagged", "v1", images.make_image([one()]))
    info = store.pull(f"{registry.host}/tagged:v1")
    assert store.inspect(f"{registry.host}/tagged@{digest}").info == info
    assert store.inspect(info.id).info == info
    assert store.inspect(info.id.removeprefix("sha256:")[:12]).info == info


def test_a_layer_that_is_there_is_not_fetched_again(store: orlop.Store, registry: Registry) -> None:
    base = one()
    images.push(registry, "shared-a", "v1", images.make_image([base]))
    images.push(registry, "shared-b", "v1", images.make_image([base, one()]))
    store.pull(f"{registry.host}/shared-a:v1")
    log: list[orlop.Progress] = []

    class Log:
        def progress(self, event: orlop.Progress) -> None:
            log.append(event)

        def warning(self, text: str) -> None:
            raise AssertionError(text)

    store.pull(f"{registry.host}/shared-b:v1", call=orlop.Call(observer=Log()))
    phases = {event.item: event.phase for event in log if event.item.startswith("sha256:")}
    assert sorted(phases.values()) == ["done", "exists"]


@pytest.mark.parametrize("phase", ["waiting", "done"])
def test_a_pull_that_is_cancelled_says_so_though_most_layers_have_yet_to_begin(
    store: orlop.Store, registry: Registry, phase: str
) -> None:
    class Stop(NullObserver):
        def progress(self, event: orlop.Progress) -> None:
            if event.phase == phase:
                call.cancel.cancel()

    call = orlop.Call(observer=Stop())
    images.push(registry, f"cancelled-{phase}", "v1", images.make_image([one() for _ in range(24)]))
    with pytest.raises(orlop.Cancelled):
        store.pull(f"{registry.host}/cancelled-{phase}:v1", call=call)
    assert store.images() == []


def test_blobs_of_layers_are_not_kept_unless_asked_for(
    store: orlop.Store, registry: Registry, store_dirs: StoreDirs
) -> None:
    images.push(registry, "blobs", "v1", images.make_image([one()]))
    store.pull(f"{registry.host}/blobs:v1")
    kept = list((store_dirs.root / "content/blobs/sha256").iterdir())
    assert len(kept) == 2  # manifest and config
    (layer,) = store.inspect(f"{registry.host}/blobs:v1").layers
    assert layer.blob is not None
    assert not layer.blob_present
    settings = orlop.Settings(insecure_registries=(registry.host,), keep_blobs=True)
    with orlop.open(store_dirs.work / "other", store_dirs.run, settings=settings) as keeping:
        keeping.pull(f"{registry.host}/blobs:v1")
        assert keeping.inspect(f"{registry.host}/blobs:v1").layers[0].blob_present


def _spoil(registry: Registry, blob: str, data: bytes) -> None:
    """Make the registry serve other bytes under a digest."""
    (path,) = registry.storage.rglob(f"{blob.removeprefix('sha256:')}/data")
    path.write_bytes(data)


@pytest.mark.hostile(19)
def test_wrong_bytes_for_a_digest_are_data_loss_and_leave_nothing(
    store: orlop.Store, registry: Registry, store_dirs: StoreDirs
) -> None:
    image = images.make_image([one()])
    images.push(registry, "rotten", "v1", image)
    layer = json.loads(image.document)["layers"][0]
    data = bytearray(image.blobs[layer["digest"]])
    data[-20] ^= 1
    _spoil(registry, layer["digest"], bytes(data))
    with pytest.raises((orlop.DataLoss, orlop.InvalidArgument)):
        store.pull(f"{registry.host}/rotten:v1")
    assert store.images() == []
    assert list((store_dirs.root / "layers").iterdir()) == []


@pytest.mark.hostile(19)
def test_a_layer_with_another_diff_id_than_the_config_says_is_refused(
    store: orlop.Store, registry: Registry, store_dirs: StoreDirs
) -> None:
    lie = {"rootfs": {"type": "layers", "diff_ids": [images.digest_of(b"something else")]}}
    images.push(registry, "liar", "v1", images.make_image([one()], config=lie))
    with pytest.raises(orlop.DataLoss, match="diff ID"):
        store.pull(f"{registry.host}/liar:v1")
    assert store.images() == []
    assert list((store_dirs.root / "layers").iterdir()) == []


def test_an_unknown_image_is_not_found_and_a_dead_registry_unavailable(
    store: orlop.Store, registry: Registry
) -> None:
    with pytest.raises(orlop.NotFound, match="nothing-here"):
        store.pull(f"{registry.host}/nothing-here")
    settings = orlop.Settings(retries=0)
    with (
        orlop.open(store.info().root, store.info().run, settings=settings) as impatient,
        pytest.raises(orlop.Unavailable, match=r"127\.0\.0\.1:9"),
    ):
        impatient.pull("127.0.0.1:9/any")


def test_an_artifact_is_not_taken_for_an_image(store: orlop.Store, registry: Registry) -> None:
    blob = b"a model"
    empty = b"{}"
    manifest = {
        "schemaVersion": 2,
        "mediaType": images.OCI_MANIFEST,
        "config": images.descriptor("application/vnd.example.model", empty),
        "layers": [images.descriptor("application/octet-stream", blob)],
    }
    for data in (blob, empty):
        images.push_blob(registry, "artifact", data)
    status, _, _ = registry.request(
        "/v2/artifact/manifests/v1",
        method="PUT",
        body=json.dumps(manifest).encode(),
        headers={"Content-Type": images.OCI_MANIFEST},
    )
    assert status == 201
    with pytest.raises(orlop.InvalidArgument, match=r"application/vnd\.example\.model"):
        store.pull(f"{registry.host}/artifact:v1")


# -- credentials ------------------------------------------------------------------------------------


def _auth_file(path: Path, document: dict[str, Any]) -> str:
    path.write_text(json.dumps(document))
    return str(path)


def _with(store_dirs: StoreDirs, **settings: Any) -> orlop.Store:
    return orlop.open(store_dirs.root, store_dirs.run, settings=orlop.Settings(**settings))


@pytest.fixture
def private(registry_auth: Registry) -> str:
    images.push(registry_auth, "private", "v1", images.make_image([one()]))
    return f"{registry_auth.host}/private:v1"


def test_a_private_image_needs_credentials(store: orlop.Store, private: str) -> None:
    with pytest.raises(orlop.Unauthenticated):
        store.pull(private)


def test_credentials_of_docker_s_config_file_are_used(
    registry_auth: Registry, private: str, store_dirs: StoreDirs, workdir: Path
) -> None:
    secret = base64.b64encode(f"{registry_auth.user}:{registry_auth.password}".encode()).decode()
    path = _auth_file(workdir / "config.json", {"auths": {registry_auth.host: {"auth": secret}}})
    with _with(store_dirs, auth_files=(path,)) as store:
        assert store.pull(private).layers == 1


def test_a_credential_helper_is_asked(
    registry_auth: Registry, private: str, store_dirs: StoreDirs, workdir: Path
) -> None:
    answer = json.dumps(
        {"ServerURL": registry_auth.host, "Username": registry_auth.user, "Secret": registry_auth.password}
    )
    helper = workdir / "docker-credential-test"
    helper.write_text(f"#!/bin/sh\n[ \"$1\" = get ] && cat >/dev/null && echo '{answer}'\n")
    helper.chmod(0o755)
    path = _auth_file(workdir / "config.json", {"credHelpers": {registry_auth.host: "test"}})
    with _with(store_dirs, auth_files=(path,), helper_path=f"{workdir}:/usr/bin:/bin") as store:
        assert store.pull(private).layers == 1


def test_the_command_line_takes_the_usual_files(
    registry_auth: Registry,
    private: str,
    workdir: Path,
    run_cli: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    secret = base64.b64encode(f"{registry_auth.user}:{registry_auth.password}".encode()).decode()
    document = {"auths": {registry_auth.host: {"auth": secret}}}
    docker = workdir / "docker"
    docker.mkdir()
    _auth_file(docker / "config.json", document)
    other = _auth_file(workdir / "auth.json", document)
    assert run_cli("pull", private).returncode == 7
    assert run_cli("pull", private, env={"DOCKER_CONFIG": str(docker)}).returncode == 0
    assert run_cli("pull", private, env={"REGISTRY_AUTH_FILE": other}).returncode == 0


# -- push -------------------------------------------------------------------------------------------


@pytest.fixture
def changed(store: orlop.Store, registry: Registry, store_dirs: StoreDirs) -> Iterator[str]:
    """A committed image on a pulled base: a file added, one changed, one deleted."""
    base = (
        Layer()
        .folder("tmp", mode=0o1777)
        .file("tmp/kept", b"one")
        .file("gone", b"x")
        .folder("bin")
        .file("bin/busybox", Path("/bin/busybox").read_bytes(), mode=0o755)
        .symlink("bin/sh", "busybox")
        .symlink("bin/cat", "busybox")
        .folder("proc")
        .folder("dev")
        .folder("sys")
        .folder("etc")
    )
    images.push(
        registry, "base", "v1", images.make_image([base.tar()], config={"config": {"Cmd": ["/bin/sh"]}})
    )
    target = store_dirs.work / "root"
    with store.prepare(f"{registry.host}/base:v1", target, mount=True) as root:
        (target / "tmp/kept").write_text("two")
        (target / "new").write_text("made here\n")
        (target / "gone").unlink()
        yield root.commit(f"{registry.host}/changed:v1", author="A", changes=("ENV A=b",)).name


def test_a_pushed_commit_has_the_digests_we_report(
    store: orlop.Store, changed: str, registry: Registry, workdir: Path
) -> None:
    pushed = store.push(changed)
    seen = json.loads(skopeo("inspect", "--tls-verify=false", f"docker://{changed}"))
    assert seen["Digest"] == pushed.digest == store.inspect(changed).info.digest
    skopeo("copy", "-q", "--src-tls-verify=false", f"docker://{changed}", f"dir:{workdir}/copy")
    manifest = json.loads((workdir / "copy/manifest.json").read_bytes())
    details = store.inspect(changed)
    assert [layer["digest"] for layer in manifest["layers"]] == [layer.blob for layer in details.layers]
    assert manifest["config"]["digest"] == details.info.id
    assert seen["Env"] == ["A=b"]


def test_a_pushed_commit_is_mounted_by_podman_as_it_was_here(
    store: orlop.Store, changed: str, registry: Registry, workdir: Path
) -> None:
    store.push(changed)
    podman = [
        "podman",
        "--root",
        f"{workdir}/pod",
        "--runroot",
        f"{workdir}/pod-run",
        "--storage-driver",
        "overlay",
    ]
    subprocess.run([*podman, "pull", "-q", "--tls-verify=false", changed], check=True, capture_output=True)
    mount = subprocess.run([*podman, "image", "mount", changed], check=True, capture_output=True, text=True)
    tree = Path(mount.stdout.strip())
    try:
        assert (tree / "new").read_text() == "made here\n"
        assert (tree / "tmp/kept").read_text() == "two"
        assert not (tree / "gone").exists()
        assert (tree / "tmp").stat().st_mode & 0o7777 == 0o1777  # a folder that only held a change
    finally:
        subprocess.run([*podman, "image", "umount", "-a"], check=True, capture_output=True)
        subprocess.run(["umount", workdir / "pod/overlay"], check=False, capture_output=True)


def test_a_pushed_commit_runs_in_runc(
    store: orlop.Store, changed: str, store_dirs: StoreDirs, workdir: Path
) -> None:
    store.push(changed)
    skopeo("copy", "-q", "--src-tls-verify=false", f"docker://{changed}", f"oci:{workdir}/oci:v1")
    subprocess.run(
        ["umoci", "unpack", "--image", f"{workdir}/oci:v1", workdir / "bundle"],
        check=True,
        capture_output=True,
    )
    rootfs = workdir / "bundle/rootfs"
    config = parse_config(store.inspect(changed).config, "test")
    root = os.open(rootfs, os.O_RDONLY | os.O_DIRECTORY)
    try:
        options = RunOptions(args=("sh", "-c", "cat /new; test ! -e /gone && echo gone; echo $A"), net="none")
        spec = build_spec(config, str(rootfs), options, root_fd=root)
    finally:
        os.close(root)
    folder = workdir / "runc-bundle"
    folder.mkdir()
    write_bundle(folder, spec)
    done = subprocess.run(
        ["runc", "--root", workdir / "runc", "run", "--bundle", folder, "orlop-test"],
        check=False,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    assert (done.returncode, done.stdout) == (0, "made here\ngone\nb\n"), done.stderr


def test_a_layer_is_mounted_across_repositories_not_sent(
    store: orlop.Store, changed: str, registry: Registry
) -> None:
    phases: dict[str, str] = {}

    class Log:
        def progress(self, event: orlop.Progress) -> None:
            phases[event.item] = event.phase

        def warning(self, text: str) -> None:
            raise AssertionError(text)

    fresh = f"{registry.host}/mounted-{os.urandom(4).hex()}:v1"
    store.push(changed, fresh, call=orlop.Call(observer=Log()))
    base = store.inspect(f"{registry.host}/base:v1").layers[0]
    assert base.blob is not None
    assert phases[base.blob] == "mounted"


def test_pushing_again_sends_nothing_and_keeps_the_digest(store: orlop.Store, changed: str) -> None:
    first = store.push(changed)
    phases: list[str] = []

    class Log:
        def progress(self, event: orlop.Progress) -> None:
            phases.append(event.phase)

        def warning(self, text: str) -> None:
            raise AssertionError(text)

    assert store.push(changed, call=orlop.Call(observer=Log())) == first
    assert set(phases) == {"waiting", "exists", "done"}
    assert phases.count("done") == 1


def test_a_pushed_image_keeps_its_digest_in_another_registry(
    store: orlop.Store, registry: Registry, registry_auth: Registry, workdir: Path, store_dirs: StoreDirs
) -> None:
    """The blobs were dropped: they are streamed from where the image came from."""
    digest = images.push(registry, "moving", "v1", images.make_image([one(), one()], compression="zstd"))
    secret = base64.b64encode(f"{registry_auth.user}:{registry_auth.password}".encode()).decode()
    path = _auth_file(workdir / "auth.json", {"auths": {registry_auth.host: {"auth": secret}}})
    with _with(store_dirs, auth_files=(path,)) as moving:
        moving.pull(f"{registry.host}/moving:v1")
        pushed = moving.push(f"{registry.host}/moving:v1", f"{registry_auth.host}/moved:v1")
    assert pushed.digest == digest


def test_a_blob_that_nobody_has_any_more_is_named_and_recompression_offered(
    store: orlop.Store, registry: Registry, store_dirs: StoreDirs
) -> None:
    image = images.make_image([one()], compression="zstd")
    images.push(registry, "lost", "v1", image)
    name = store.pull(f"{registry.host}/lost:v1").name
    layer = json.loads(image.document)["layers"][0]["digest"]
    registry.request(f"/v2/lost/blobs/{layer}", method="DELETE")
    with pytest.raises(orlop.FailedPrecondition, match=layer) as caught:
        store.push(name, f"{registry.host}/elsewhere:v1")
    assert "--recompress" in caught.value.hint
    pushed = store.push(name, f"{registry.host}/elsewhere:v1", recompress=True)
    assert pushed.digest != image.digest
    store.remove(name)
    again = store.pull(f"{registry.host}/elsewhere:v1")
    assert read(store, again.name, store_dirs.work / "a", "etc/motd") == "hello\n"


# -- import -----------------------------------------------------------------------------------------


def test_an_oci_layout_is_imported_from_a_folder_and_a_tar(
    store: orlop.Store, workdir: Path, store_dirs: StoreDirs
) -> None:
    image = images.make_image([one()])
    layout = images.write_layout(workdir / "layout", {"v1": image, "v2": images.make_image([one("two\n")])})
    assert [info.name for info in store.load(layout)] == ["localhost/layout:v1", "localhost/layout:v2"]
    subprocess.run(["tar", "-C", layout, "-cf", workdir / "packed.tar", "."], check=True)
    subprocess.run(["gzip", "-k", workdir / "packed.tar"], check=True)
    for archive in ("packed.tar", "packed.tar.gz"):
        found = store.load(workdir / archive)
        assert [info.name for info in found] == ["localhost/packed:v1", "localhost/packed:v2"]
        assert found[0].digest == image.digest
    assert read(store, "localhost/packed:v2", store_dirs.work / "a", "etc/motd") == "two\n"


def test_a_docker_archive_is_imported_under_its_tags(
    store: orlop.Store, workdir: Path, store_dirs: StoreDirs
) -> None:
    layout = images.write_layout(workdir / "layout", {"v1": images.make_image([one(), one("top\n")])})
    archive = workdir / "saved.tar"
    skopeo("copy", "-q", f"oci:{layout}:v1", f"docker-archive:{archive}:example.com/saved:7")
    (found,) = store.load(archive)
    assert found.name == "example.com/saved:7"
    assert read(store, found.name, store_dirs.work / "a", "etc/motd") == "top\n"


@pytest.mark.hostile(30)
def test_an_import_never_moves_a_name_that_means_another_image(store: orlop.Store, workdir: Path) -> None:
    first = images.write_layout(workdir / "first", {"v1": images.make_image([one("first\n")])})
    second = images.write_layout(workdir / "second", {"v1": images.make_image([one("second\n")])})
    before = store.load(first, name="localhost/mine").pop()
    with pytest.raises(orlop.AlreadyExists, match="localhost/mine"):
        store.load(second, name="localhost/mine")
    assert store.images() == [before]
    (again,) = store.load(first, name="localhost/mine")  # the same image again is fine
    assert replace(again, used=before.used) == before


@pytest.mark.hostile(37)
def test_symlinks_in_a_layout_are_not_followed(store: orlop.Store, workdir: Path) -> None:
    image = images.make_image([one()])
    layout = images.write_layout(workdir / "layout", {"v1": image})
    layer = json.loads(image.document)["layers"][0]["digest"]
    blob = layout / "blobs/sha256" / layer.removeprefix("sha256:")
    blob.rename(workdir / "outside")
    blob.symlink_to(workdir / "outside")
    with pytest.raises(orlop.Error, match="symlink"):
        store.load(layout)
    assert store.images() == []


@pytest.mark.parametrize("content", [b"", b"not an archive at all", bytes(10240)])
def test_what_is_no_archive_is_refused(store: orlop.Store, workdir: Path, content: bytes) -> None:
    (workdir / "file").write_bytes(content)
    with pytest.raises(orlop.InvalidArgument):
        store.load(workdir / "file")
    with pytest.raises(orlop.NotFound):
        store.load(workdir / "missing")
