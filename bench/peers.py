"""The tools that pull: orlop, and the others that this machine has, each with a store of its own on the disk.

Every tool starts from an empty store (`Tool.begin`), pulls by its own commands (`Tool.pull`), and leaves
nothing (`Tool.end`).  A containerd is started anew each time, in a control group of its own; its start is
not measured.  A tool that is not there is left out; `missing` says which.

Debian's containerd is asked for overlayfs snapshots.  A newer one, ``CONTAINERD=FOLDER`` with ``containerd``
and ``ctr`` in it, is measured with overlayfs and as many unpacks at a time as there are CPUs, and, where a
``mkfs.erofs`` of 1.8 or newer is in FOLDER or in PATH, with its EROFS snapshotter and differ, converting
layers or indexing their tars.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from bench import lab
from bench.measure import Group

__all__ = ["CONFIG", "EROFS", "Tool", "chain_id", "missing", "tools", "unmount_below"]

_UP = 60.0
_PROXIES = ("http_proxy", "https_proxy", "all_proxy")
EROFS = (1, 8)  # of erofs-utils: since then it sorts nothing and stamps times when told


class Tool(Protocol):
    """One way to get from a registry to a root that can be mounted."""

    name: str
    durable: str  # whether the result is on the disk when the last command returns: yes or no

    def begin(self) -> None:
        """Be ready, with an empty store."""

    def pull(self, image: str) -> list[list[str]]:
        """The commands, one after the other."""

    def release(self) -> list[list[str]]:
        """The commands that give back what was made of images, and leave the images."""

    def remove(self, image: str) -> list[str]:
        """The command that deletes an image that nothing is made of."""

    def end(self) -> None:
        """Leave nothing."""

    @property
    def daemon(self) -> Group | None:
        """Who works beside the commands."""

    @property
    def folders(self) -> Sequence[Path]:
        """What it keeps on the disk."""


class _Alone:
    """A tool without a daemon, whose folders are simply deleted."""

    name = ""
    durable = "no"

    def __init__(self, disk: Path) -> None:
        self._disk = disk

    @property
    def daemon(self) -> Group | None:
        return None

    @property
    def folders(self) -> Sequence[Path]:
        return (self._disk / self.name,)

    def begin(self) -> None:
        for folder in self.folders:
            folder.mkdir(exist_ok=True)

    def release(self) -> list[list[str]]:
        return []

    def end(self) -> None:
        for folder in (*self.folders, self._disk / f"{self.name}-run"):
            _remove(folder)


class Orlop(_Alone):
    """orlop's command line: ``prepare``, which pulls what is missing."""

    name = "orlop"
    durable = "yes"

    def __init__(self, disk: Path) -> None:
        super().__init__(disk)
        script = Path(sys.executable).with_name("orlop")
        start = [os.fspath(script)] if script.exists() else [sys.executable, "-m", "orlop"]
        where = ["--root", f"{disk}/orlop", "--run", f"{disk}/orlop-run"]
        self._base = [*start, *where, "--insecure-registry", lab.REGISTRY]
        self._prepared: list[str] = []

    def pull(self, image: str) -> list[list[str]]:
        path = f"{self._disk}/rootfs-{len(self._prepared)}"
        self._prepared.append(path)
        return [[*self._base, "prepare", "-q", _name(image), path]]

    def release(self) -> list[list[str]]:
        paths, self._prepared = self._prepared, []
        return [[*self._base, "cleanup", path] for path in paths]

    def remove(self, image: str) -> list[str]:
        return [*self._base, "rmi", _name(image)]

    def end(self) -> None:
        for path in self._prepared:
            subprocess.run([*self._base, "cleanup", path], check=False, capture_output=True)
        self._prepared.clear()
        super().end()


class Podman(_Alone):
    """podman: ``pull``; its container would be made from it in some tenths of a second, not counted."""

    name = "podman"

    def __init__(self, disk: Path) -> None:
        super().__init__(disk)
        where = ["--root", f"{disk}/{self.name}", "--runroot", f"{disk}/{self.name}-run"]
        self._base = [self.name, *where, "--storage-driver", "overlay"]

    def pull(self, image: str) -> list[list[str]]:
        return [[*self._base, "pull", "-q", "--tls-verify=false", _name(image)]]

    def remove(self, image: str) -> list[str]:
        return [*self._base, "rmi", _name(image)]

    def end(self) -> None:
        subprocess.run(["umount", f"{self._disk}/{self.name}/overlay"], check=False, capture_output=True)
        super().end()


class Buildah(Podman):
    """buildah: ``from``, so its root is made, too."""

    name = "buildah"

    def pull(self, image: str) -> list[list[str]]:
        return [[*self._base, "from", "-q", "--tls-verify=false", _name(image)]]

    def release(self) -> list[list[str]]:
        return [[*self._base, "rm", "--all"]]


class SkopeoUmoci(_Alone):
    """skopeo to an OCI layout, and umoci from there to a folder."""

    name = "skopeo, umoci"

    def pull(self, image: str) -> list[list[str]]:
        (folder,) = self.folders
        layout = f"{folder}/layout:{image}"
        return [
            ["skopeo", "copy", "-q", "--src-tls-verify=false", f"docker://{_name(image)}", f"oci:{layout}"],
            ["umoci", "raw", "unpack", "--image", layout, f"{folder}/rootfs-{image}"],
        ]

    def remove(self, image: str) -> list[str]:
        (folder,) = self.folders
        return ["rm", "-rf", f"{folder}/layout", f"{folder}/rootfs-{image}"]


class Containerd:
    """A containerd and its ``ctr``: pull, unpack, and prepare a snapshot."""

    durable = "no"

    def __init__(
        self, disk: Path, name: str, *, programs: str = "", snapshotter: str = "overlayfs", config: str = ""
    ) -> None:
        self.name = name
        self._snapshotter = snapshotter
        self._folder = disk / re.sub("[^a-z0-9]+", "-", name)
        self._programs = programs
        self._config = config
        self._daemon: Group | None = None
        self._prepared = 0
        self._environment = {
            key: value for key, value in os.environ.items() if key.lower() not in _PROXIES
        } | {"PATH": os.pathsep.join(filter(None, (programs, os.environ.get("PATH", os.defpath))))}

    @property
    def daemon(self) -> Group | None:
        return self._daemon

    @property
    def folders(self) -> Sequence[Path]:
        return (self._folder,)

    def begin(self) -> None:
        self._folder.mkdir()
        config = self._folder / "config.toml"
        config.write_text(self._config)
        where = ["--root", f"{self._folder}/root", "--state", f"{self._folder}/state"]
        command = [self._program("containerd"), "-c", os.fspath(config), "-a", self.socket, *where]
        log = self._folder / "log"
        self._daemon = Group(command, log=log, environment=self._environment)
        deadline = time.monotonic() + _UP
        while subprocess.run(self.ctr("version"), check=False, capture_output=True).returncode:
            if not self._daemon.running or time.monotonic() > deadline:
                raise RuntimeError(f"{self.name} does not come up: {log.read_text()[-2000:]}")
            time.sleep(0.05)

    def pull(self, image: str) -> list[list[str]]:
        self._prepared += 1
        snapshotter = ("--snapshotter", self._snapshotter)
        key = f"root-{self._prepared}"
        return [
            self.ctr("image", "pull", "--plain-http", *snapshotter, _name(image)),
            self.ctr("snapshots", *snapshotter, "prepare", key, chain_id(lab.diff_ids(image))),
        ]

    def release(self) -> list[list[str]]:
        made, self._prepared = self._prepared, 0
        snapshots = self.ctr("snapshots", "--snapshotter", self._snapshotter)
        return [[*snapshots, "rm", f"root-{number + 1}"] for number in range(made)]

    def remove(self, image: str) -> list[str]:
        return self.ctr("image", "rm", "--sync", _name(image))

    def end(self) -> None:
        daemon, self._daemon = self._daemon, None
        if daemon is not None:
            daemon.close()
        _remove(self._folder)

    @property
    def socket(self) -> str:
        return f"{self._folder}/c.sock"

    def _program(self, name: str) -> str:
        return f"{self._programs}/{name}" if self._programs else name

    def ctr(self, *words: str) -> list[str]:
        """A command of its client."""
        return [self._program("ctr"), "-a", self.socket, "-n", "bench", *words]


# Plugins that would listen or watch elsewhere, or need what this machine may not have.
CONFIG = """version = 2
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.internal.v1.opt"]
"""
_NEWER = """version = 3
imports = []
disabled_plugins = [
  "io.containerd.grpc.v1.cri", "io.containerd.cri.v1.images", "io.containerd.cri.v1.runtime",
  "io.containerd.internal.v1.opt", "io.containerd.nri.v1.nri"
]
[plugins."io.containerd.transfer.v1.local"]
max_concurrent_unpacks = {cpus}
[[plugins."io.containerd.transfer.v1.local".unpack_config]]
platform = "linux/{architecture}"
snapshotter = "{snapshotter}"
differ = "{differ}"
"""
_EROFS = """[plugins."io.containerd.differ.v1.erofs"]
mkfs_options = ["-T0", "--mkfs-time", "--sort=none"]
enable_tar_index = {tar_index}
"""


def tools(disk: Path, *, quick: bool = False) -> list[Tool]:
    """Orlop first, then all that are there; for a quick run the newer containerd only as it is fastest."""
    found: list[Tool] = [Orlop(disk)]
    for needed, tool in (
        (["podman"], Podman),
        (["buildah"], Buildah),
        (["skopeo", "umoci"], SkopeoUmoci),
    ):
        if all(map(shutil.which, needed)):
            found.append(tool(disk))
    if shutil.which("containerd") and shutil.which("ctr"):
        found.append(Containerd(disk, f"containerd {_version('containerd')}", config=CONFIG))
    newer = os.environ.get("CONTAINERD", "")
    if newer:
        found += _newer(disk, newer, quick=quick)
    asked = os.environ.get("BENCH_TOOLS", "").split()
    return found[:1] + [tool for tool in found[1:] if not asked or tool.name.partition(" ")[0] in asked]


def _newer(disk: Path, programs: str, *, quick: bool) -> list[Tool]:
    name = f"containerd {_version(f'{programs}/containerd')}"
    common = {"cpus": os.cpu_count(), "architecture": _ARCHITECTURES.get(os.uname().machine, "amd64")}
    overlay = _NEWER.format(**common, snapshotter="overlayfs", differ="walking")
    found: list[Tool] = [Containerd(disk, f"{name}, overlayfs", programs=programs, config=overlay)]
    if erofs_utils(programs) >= EROFS:
        if quick:
            found.clear()
        for words, tar_index in (("erofs", "false"), ("erofs tar index", "true"))[: 1 if quick else None]:
            config = _NEWER.format(**common, snapshotter="erofs", differ="erofs")
            config += _EROFS.format(tar_index=tar_index)
            found.append(
                Containerd(disk, f"{name}, {words}", programs=programs, snapshotter="erofs", config=config)
            )
    return found


_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


def missing() -> list[str]:
    """What could be compared with and is not there, and how it would be."""
    found = [
        name for name in ("podman", "buildah", "skopeo", "umoci", "containerd") if shutil.which(name) is None
    ]
    programs = os.environ.get("CONTAINERD", "")
    if not programs:
        found.append("a newer containerd (CONTAINERD=FOLDER with its programs)")
    elif erofs_utils(programs) < EROFS:
        found.append("containerd's EROFS snapshotter (mkfs.erofs of 1.8 or newer in CONTAINERD's folder)")
    return found


def erofs_utils(programs: str) -> tuple[int, ...]:
    """The version of mkfs.erofs in a folder, or else in PATH; () where it does not say one."""
    path = shutil.which("mkfs.erofs", path=f"{programs}{os.pathsep}{os.environ.get('PATH', os.defpath)}")
    if path is None:
        return ()
    done = subprocess.run([path, "-V"], capture_output=True, text=True, check=False)
    said = re.match(r"mkfs\.erofs.*?(\d+)\.(\d+)", done.stdout)
    return tuple(map(int, said.groups())) if said and not done.returncode else ()


def chain_id(diff_ids: Sequence[str]) -> str:
    """The name of the topmost snapshot, as the OCI's image specification says."""
    chain = diff_ids[0]
    for diff_id in diff_ids[1:]:
        chain = f"sha256:{hashlib.sha256(f'{chain} {diff_id}'.encode()).hexdigest()}"
    return chain


def _version(program: str) -> str:
    said = subprocess.run([program, "--version"], capture_output=True, text=True, check=False).stdout
    found = re.search(r"\d+(\.\d+)+", said.partition("/containerd ")[2] or said)
    return found.group() if found else "?"


def _name(image: str) -> str:
    return f"{lab.REGISTRY}/{image}:latest"


def unmount_below(folder: Path) -> None:
    """Whatever is mounted in a folder."""
    mounts = [line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines()]
    for mount in sorted((m for m in mounts if m.startswith(f"{folder}/")), reverse=True):
        subprocess.run(["umount", "-l", mount], check=True)


def _remove(folder: Path) -> None:
    """Whatever is in it: snapshots of others may be mounted, or immutable."""
    if folder.exists():
        unmount_below(folder)
        subprocess.run(["rm", "-rf", folder], check=True)
