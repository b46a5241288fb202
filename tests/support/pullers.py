"""Others who pull an image, as judges of what was pushed: podman, skopeo with umoci, containerd.

Each pulls from a registry on this machine into a folder of the test's, and gives the tree that it makes.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from support.trees import Entry, snapshot

__all__ = ["Containerd", "Podman", "containerd", "podman_version", "skopeo_and_umoci"]

_SECONDS = 120  # that one command may take


def _run(*command: str | Path, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        list(map(os.fspath, command)),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=_SECONDS,
        check=False,
        env={**os.environ, **(env or {})},
    )
    if done.returncode:
        raise RuntimeError(f"{command[0]} exits with {done.returncode}: {done.stderr[-3000:]}")
    return done


def skopeo_and_umoci(name: str, folder: Path) -> dict[bytes, Entry]:
    """The tree that umoci, which knows no zstd, unpacks of what skopeo copies."""
    folder.mkdir()
    _run("skopeo", "copy", "-q", "--src-tls-verify=false", f"docker://{name}", f"oci:{folder}/oci:v1")
    _run("umoci", "unpack", "--image", f"{folder}/oci:v1", folder / "bundle")
    return snapshot(folder / "bundle/rootfs")


# ------------------------------------------------------------------ podman


def podman_version() -> tuple[int, ...]:
    """Such as (4, 3, 1)."""
    return tuple(map(int, re.findall(r"\d+", _run("podman", "--version").stdout)[:3]))


@dataclass(frozen=True, slots=True, kw_only=True)
class Podman:
    """podman with a store of its own; with ``partial`` it fetches only the files that it has not."""

    folder: Path
    partial: bool = False

    def pull(self, name: str) -> tuple[dict[bytes, Entry], int]:
        """The tree, and how many layers were fetched in part."""
        log = self._podman("--log-level", "debug", "pull", "-q", "--tls-verify=false", name).stderr
        mount = self._podman("image", "mount", name).stdout.strip()
        try:
            return snapshot(Path(mount)), log.count("Retrieved partial blob")
        finally:
            self._podman("image", "umount", "-a")
            subprocess.run(["umount", self.folder / "root/overlay"], check=False, capture_output=True)

    def push(self, tar: bytes, name: str, compression: str) -> None:
        """Push an image with one layer, a tar, under a name, compressed by podman itself."""
        self.folder.mkdir(exist_ok=True)
        layer = self.folder / "layer.tar"
        layer.write_bytes(tar)
        try:
            self._podman("import", "-q", os.fspath(layer), "localhost/own:v1")
            options = ("-q", "--tls-verify=false", "--format", "oci", "--compression-format", compression)
            self._podman("push", *options, "localhost/own:v1", name)
        finally:
            subprocess.run(["umount", self.folder / "root/overlay"], check=False, capture_output=True)

    def _podman(self, *args: str) -> subprocess.CompletedProcess[str]:
        self.folder.mkdir(exist_ok=True)
        config = self.folder / "storage.conf"
        where = f'graphroot = "{self.folder}/root"\nrunroot = "{self.folder}/run"\n'
        how = f'pull_options = {{enable_partial_images = "{str(self.partial).lower()}"}}\n'
        config.write_text(f'[storage]\ndriver = "overlay"\n{where}[storage.options]\n{how}')
        options = ("--root", f"{self.folder}/root", "--runroot", f"{self.folder}/run")
        command = ("podman", *options, "--storage-driver", "overlay", *args)
        return _run(*command, env={"CONTAINERS_STORAGE_CONF": os.fspath(config)})


# ------------------------------------------------------------------ containerd


@dataclass(frozen=True, slots=True, kw_only=True)
class Containerd:
    """A containerd of the test's, asked by ctr."""

    folder: Path

    def pull(self, name: str) -> dict[bytes, Entry]:
        """Pull and unpack; the tree."""
        self.ctr("images", "pull", "--plain-http", "--snapshotter", "overlayfs", name)
        target = self.folder / "tree"
        target.mkdir()
        self.ctr("images", "mount", "--snapshotter", "overlayfs", name, os.fspath(target))
        try:
            return snapshot(target)
        finally:
            self.ctr("images", "unmount", "--rm", "--snapshotter", "overlayfs", os.fspath(target))
            target.rmdir()

    def table_digest(self, layer: str, *, zstd: bool) -> str:
        """The digest of a layer's table of contents, as the stargz snapshotter reads it.  Needs the layer."""
        options = ("--zstdchunked",) if zstd else ()
        return self.ctr("images", "get-toc-digest", *options, layer, remote=True).strip()

    def table(self, layer: str, *, zstd: bool) -> dict[str, object]:
        """The table of contents itself."""
        options = ("--zstdchunked",) if zstd else ()
        found: dict[str, object] = json.loads(
            self.ctr("images", "get-toc-digest", "--dump-toc", *options, layer, remote=True)
        )
        return found

    def ctr(self, *args: str, remote: bool = False) -> str:
        """One command of ctr, or of ctr-remote, which the stargz snapshotter brings."""
        return _run("ctr-remote" if remote else "ctr", "-a", self.folder / "sock", *args).stdout


@contextlib.contextmanager
def containerd(folder: Path) -> Iterator[Containerd]:
    """Run a containerd of its own, without CRI and without any of its services' sockets elsewhere."""
    folder.mkdir()
    config = folder / "config.toml"
    config.write_text(
        f'version = 2\nroot = "{folder}/root"\nstate = "{folder}/state"\n'
        f'disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.internal.v1.opt"]\n'
        f'[grpc]\naddress = "{folder}/sock"\n[ttrpc]\naddress = "{folder}/ttrpc"\n'
    )
    log = folder / "log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", "containerd", "--config", os.fspath(config)],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
        )
    try:
        it = Containerd(folder=folder)
        deadline = time.monotonic() + 60
        while True:
            try:
                it.ctr("version")
                break
            except RuntimeError as exc:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"containerd does not come up: {log.read_text()[-2000:]}") from exc
                time.sleep(0.05)
        yield it
    finally:
        process.kill()
        process.wait()


def without(tree: dict[bytes, Entry], *names: bytes) -> dict[bytes, Entry]:
    """A tree without some paths."""
    return {path: entry for path, entry in tree.items() if path not in names}


def levelled(tree: dict[bytes, Entry], **values: object) -> dict[bytes, Entry]:
    """A tree of which every entry has these values, where a judge is known to lose them."""
    return {path: replace(entry, **values) for path, entry in tree.items()}  # type: ignore[arg-type]  # fields of Entry
