"""Debian's containerd with orlop as its snapshotter, then also as its content store, beside its own.

The same life in each world: pull, run with runc, change while containerd and orlop are killed and started
again, commit, push, remove.  What is seen in it has to be equal.
"""

from __future__ import annotations

import json
import re
import secrets
import shutil
import signal
import subprocess
import tarfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Literal

import pytest

import orlop
from orlop.proto.runtime.v1 import images_pb2, images_pb2_grpc
from support import disks, images, trees
from support.containerds import Containerd, Service, containerd
from support.layers import Layer
from support.registries import Registry

pytestmark = pytest.mark.root

World = Literal["snapshotter", "both"]
APPLETS = ("sh", "cat", "ls", "mkdir", "rm", "touch", "chmod", "ln", "sleep", "id")
STAMP = "@1600000000"
CHANGES = (  # each after another restart
    "rm /srv/gone; rm -r /srv/folder; mkdir /srv/folder; echo new >/srv/folder/new",
    "echo more >>/srv/file; chmod 4711 /srv/mode; ln /srv/file /srv/twin; ln -s file /srv/link",
    f"""mkdir -p /srv/a/b; echo deep >/srv/a/b/c; touch -hd {STAMP} /srv/link
    touch -d {STAMP} /srv/folder/new /srv/file /srv/a/b/c /srv/a/b /srv/a /srv/folder /srv /""",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What came to light in a life."""

    ran: str
    pulled: trees.Tree
    committed: trees.Tree
    layer: list[str]  # the names in the layer that came of the change
    made: str
    pushed: int  # layers of what arrived at the registry
    left: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """A containerd, and the daemon behind it."""

    ctd: Containerd
    orlop: Service | None


@contextmanager
def world(kind: World, folder: Path, registry: Registry, *, cri: bool = False) -> Iterator[Setup]:
    """A containerd in ``folder`` with what the world's name says."""
    with ExitStack() as stack:
        if kind == "overlayfs":
            yield Setup(ctd=stack.enter_context(containerd(folder / "ctd", cri=cri)), orlop=None)
            return
        service = stack.enter_context(Service(folder / "orlop", insecure_registry=registry.host))
        proxies = {"orlop": ("snapshot", service.socket)}
        if kind == "both":
            proxies["orlop-content"] = ("content", service.socket)
        made = containerd(
            folder / "ctd", proxies=proxies, snapshotter="orlop", own_content=kind != "both", cri=cri
        )
        yield Setup(ctd=stack.enter_context(made), orlop=service)


def box(more: str = "") -> images.Image:
    """Two layers: busybox, and changes above it, with a file that says ``more``."""
    first = Layer().folder("bin").file("bin/busybox", Path("/bin/busybox").read_bytes(), mode=0o755)
    for applet in APPLETS:
        first.symlink(f"bin/{applet}", "busybox")
    for name in ("dev", "proc", "sys", "run", "srv", "srv/folder"):
        first.folder(name)
    for name in ("file", "gone", "mode", "lower", "folder/old"):
        first.file(f"srv/{name}", name.encode(), mode=0o640, uid=7, gid=8)
    second = Layer().folder("srv")  # else containerd's own gives it the time of the pull
    second.whiteout("srv/lower").file("srv/upper", b"upper").hardlink("srv/again", "srv/upper")
    if more:
        second.file("srv/more", more.encode())
    config = {"config": {"Cmd": ["/bin/sh", "-c", "ls -ln /srv; id -u"], "Env": ["PATH=/bin"]}}
    return images.make_image([first.tar(), second.tar()], config=config)


@pytest.fixture(scope="module")
def image(registry: Registry) -> str:
    """Where the image is."""
    images.push(registry, "containerd/box", "1", box())
    return f"{registry.host}/containerd/box:1"


@pytest.fixture(scope="module")
def reference(lab: Path, registry: Registry, image: str) -> Iterator[Seen]:
    """What is seen with containerd's own snapshotter and content store."""
    folder = lab / "containerd-reference"
    folder.mkdir()
    try:
        with world("overlayfs", folder, registry) as setup:
            seen = live(setup, folder, registry, image, "overlayfs")
        yield seen
    finally:
        disks.remove(folder)


@pytest.mark.parametrize("kind", ["snapshotter", "both"])
def test_a_life_is_the_same_as_with_containerds_own(
    kind: World, reference: Seen, workdir: Path, registry: Registry, image: str
) -> None:
    with world(kind, workdir, registry) as setup:
        seen = live(setup, workdir, registry, image, kind)
    for item in fields(Seen):
        theirs, ours = getattr(reference, item.name), getattr(seen, item.name)
        if isinstance(theirs, dict):
            assert trees.differences(theirs, ours) == []
        else:
            assert ours == theirs, item.name


def live(setup: Setup, folder: Path, registry: Registry, image: str, name: str) -> Seen:
    """Pull, run, change, commit, push, remove."""
    ctd = setup.ctd
    pull(ctd, image)
    ran = ctd.run("--rm", image, "first")
    pulled = tree(ctd, image, folder)

    ctd.run("--detach", image, "changer", "/bin/sh", "-c", "sleep 600")
    for change, restart in zip(CHANGES, (kill_orlop, kill_containerd, stop_both), strict=True):
        restart(setup)
        execute(ctd, change)
    ctd.ctr("tasks", "rm", "--force", "changer")
    layer = folder / "layer.tar"
    with layer.open("wb") as file:
        file.write(diff(ctd, "changer"))
    ctd.ctr("snapshots", "commit", "kept", "changer")
    committed = folder / "committed.tar"
    archive(folder / "layout", image_above(layer), committed)
    again = f"{registry.host}/containerd/{name}"
    ctd.ctr("images", "import", "--base-name", again, committed)
    made = ctd.run(
        "--rm", f"{again}:new", "second", "/bin/sh", "-c", "cat /srv/folder/new /srv/twin; ls /srv"
    )
    new = tree(ctd, f"{again}:new", folder)
    ctd.ctr("images", "push", "--plain-http", f"{again}:new")
    status, _, body = registry.request(
        f"/v2/containerd/{name}/manifests/new", headers={"Accept": images.OCI_MANIFEST}
    )
    assert status == 200, body

    ctd.ctr("containers", "rm", "changer")
    ctd.ctr("snapshots", "rm", "kept")
    ctd.ctr("images", "rm", "--sync", image, f"{again}:new")
    with tarfile.open(layer) as opened:
        names = sorted(opened.getnames())
    return Seen(
        ran=ran,
        pulled=pulled,
        committed=new,
        layer=names,
        made=made,
        pushed=len(json.loads(body)["layers"]),
        left=(*listed(ctd, "snapshots"), *listed(ctd, "content")),
    )


def pull(ctd: Containerd, image: str) -> None:
    """As a user does."""
    ctd.ctr("images", "pull", "--plain-http", image)


def diff(ctd: Containerd, key: str) -> bytes:
    """The layer that a snapshot is above its parent, an uncompressed tar."""
    words = ["ctr", "--address", ctd.socket, "--namespace", ctd.namespace, "snapshots"]
    words += ["--snapshotter", ctd.snapshotter, "diff"]
    words += ["--media-type", "application/vnd.oci.image.layer.v1.tar", key]
    done = subprocess.run(words, capture_output=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr + ctd.said().encode()
    return done.stdout


def image_above(layer: Path) -> images.Image:
    """The box with one layer more."""
    base = box()
    data = layer.read_bytes()
    config = json.loads(base.config)
    config["rootfs"]["diff_ids"].append(images.digest_of(data))
    config["history"].append({"created_by": "the change"})
    encoded = json.dumps(config).encode()
    blob = images.compress(data, "gzip")
    manifest = json.loads(base.document)
    manifest["config"] = images.descriptor(manifest["config"]["mediaType"], encoded)
    manifest["layers"].append(images.descriptor(manifest["layers"][0]["mediaType"], blob))
    blobs = {digest: data for digest, data in base.blobs.items() if digest != base.id}
    blobs |= {images.digest_of(encoded): encoded, images.digest_of(blob): blob}
    return images.Image(media_type=base.media_type, document=json.dumps(manifest).encode(), blobs=blobs)


def archive(folder: Path, image: images.Image, target: Path) -> None:
    """An OCI layout in a tar, the image under ``new``."""
    images.write_layout(folder, {"new": image})
    with tarfile.open(target, "w") as out:
        for entry in sorted(folder.iterdir()):
            out.add(entry, entry.name)
    shutil.rmtree(folder)


def tree(ctd: Containerd, image: str, folder: Path) -> trees.Tree:
    """What an image shows, mounted by `ctr`."""
    target = folder / "mounted"
    target.mkdir(exist_ok=True)
    ctd.ctr("images", "mount", image, target)
    try:
        found = trees.snapshot(target)
        # That of the folder which overlayfs has on top: containerd makes it for the image
        found[b""] = replace(found[b""], mtime_ns=0)
        return found
    finally:
        ctd.ctr("images", "unmount", "--rm", target)


def listed(ctd: Containerd, what: str, namespace: str = "") -> list[str]:
    """The names that ``ctr WHAT ls`` shows."""
    return [line.split()[0] for line in ctd.ctr(what, "ls", namespace=namespace).stdout.splitlines()[1:]]


def test_a_pull_that_a_kill_cut_short_is_made_good_by_the_next(
    reference: Seen, workdir: Path, registry: Registry, image: str
) -> None:
    with world("both", workdir, registry) as setup:
        ctd, service = setup.ctd, setup.orlop
        assert service is not None
        with ThreadPoolExecutor(1) as pool:
            pulling = pool.submit(ctd.ctr, "images", "pull", "--plain-http", image, check=False)
            while not unpacking(service) and not pulling.done():
                time.sleep(0.001)
            service.stop(signal.SIGKILL)
            pulling.result()  # in time for the end or not
        service.start()
        found_again(ctd)
        pull(ctd, image)
        assert trees.differences(reference.pulled, tree(ctd, image, workdir)) == []


def execute(ctd: Containerd, script: str) -> str:
    """What a script says in the container that runs."""
    words = ("tasks", "exec", "--exec-id", secrets.token_hex(4), "--fifo-dir", ctd.folder / "fifo")
    return ctd.ctr(*words, "changer", "/bin/sh", "-ec", script).stdout


def kill_orlop(setup: Setup) -> None:
    """And start it again."""
    if setup.orlop is not None:
        setup.orlop.stop(signal.SIGKILL)
        execute(setup.ctd, "cat /srv/upper")  # who runs needs none of them
        setup.orlop.start()


def kill_containerd(setup: Setup) -> None:
    """And start it again, which connects anew."""
    setup.ctd.stop(signal.SIGKILL)
    setup.ctd.start()


def stop_both(setup: Setup) -> None:
    """And start them again."""
    setup.ctd.stop()
    if setup.orlop is not None:
        setup.orlop.stop()
        setup.orlop.start()
    setup.ctd.start()


def unpacking(service: Service) -> bool:
    """Whether a snapshot has something in it."""
    try:
        return any((service.root / "snapshots").glob("*/fs/*"))
    except FileNotFoundError:  # one of them has just gone
        return False


def found_again(ctd: Containerd) -> None:
    """Until containerd has connected to orlop again, which it tries every few seconds."""
    deadline = time.monotonic() + 60
    while (done := ctd.ctr("snapshots", "prepare", "probe", check=False)).returncode:
        assert time.monotonic() < deadline, done.stderr
        time.sleep(0.1)
    ctd.ctr("snapshots", "rm", "probe")


# ------------------------------------------------------------------ as a remote snapshotter


def test_containerd_fetches_no_layer_that_orlop_has_or_can_fetch(
    workdir: Path, registry: Registry, image: str
) -> None:
    known, new = box(), box("some more")
    images.push(registry, "containerd/new", "1", new)
    with world("snapshotter", workdir, registry, cri=True) as setup:
        ctd, service = setup.ctd, setup.orlop
        assert service is not None
        with orlop.connect(service.address) as store:
            store.pull(image)
        logged(registry, known)
        assert pulled_by(ctd, image, known, registry) == []
        fetched = pulled_by(ctd, f"{registry.host}/containerd/new:1", new, registry)
        above = json.loads(new.document)["layers"][1]["digest"]  # the one below is the known image's
        assert [(agent.split("/")[0], digest) for agent, digest in fetched] == [("orlop", above)]
        assert len(listed(ctd, "snapshots", namespace="k8s.io")) == 3


def pulled_by(ctd: Containerd, name: str, image: images.Image, registry: Registry) -> list[tuple[str, str]]:
    """Who fetched which layers while CRI pulled an image; what it then shows is checked."""
    asked = len(gets(registry))
    with ctd.channel() as channel:
        stub = images_pb2_grpc.ImageServiceStub(channel)
        stub.PullImage(images_pb2.PullImageRequest(image={"image": name}), timeout=120)
    layers = {layer["digest"] for layer in json.loads(image.document)["layers"]}
    held = set(listed(ctd, "content", namespace="k8s.io"))
    assert {image.digest, image.id} <= held, "manifest and config"
    assert not held & layers, "and no layer"
    container = f"c{secrets.token_hex(4)}"
    said = ctd.run("--rm", name, container, "/bin/sh", "-c", "cat /srv/upper", namespace="k8s.io")
    assert said == "upper"
    return [(agent, digest) for agent, digest in gets(registry)[asked:] if digest in layers]


def logged(registry: Registry, image: images.Image) -> None:
    """Wait until the registry's log tells of each layer: it writes a line after it has answered."""
    layers = {layer["digest"] for layer in json.loads(image.document)["layers"]}
    deadline = time.monotonic() + 60
    while not layers <= {digest for _, digest in gets(registry)}:
        assert time.monotonic() < deadline, registry.log.read_text()[-2000:]
        time.sleep(0.01)


def gets(registry: Registry) -> list[tuple[str, str]]:
    """Who asked for which blob, as the registry's log has it."""
    found = re.findall(
        r'"GET /v2/\S+/blobs/(sha256:\w+) HTTP/1.1" 20[06] \d+ "[^"]*" "([^"]*)"', registry.log.read_text()
    )
    return [(agent, digest) for digest, agent in found]
