"""A containerd of a test's own: root, state, socket, configuration and log in one folder, and `ctr` for it.

What containerd keeps in places of its own whatever it is told is in namespaces nobody else has, so that
`Containerd.close` finds and removes it: shims, their sockets (/run/containerd/s), containers' cgroups.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import grpc

import orlop
from support import disks

_UP = 60.0  # seconds to come up, on a busy machine
_DOWN = 20.0  # seconds to end when asked
_SHOWN = 6_000  # bytes of the log in a failure
_CGROUPS = Path("/sys/fs/cgroup")
# What would listen, watch or make folders elsewhere, and what this machine has no use for.
_DISABLED = (
    "io.containerd.internal.v1.opt",
    "io.containerd.internal.v1.restart",
    "io.containerd.tracing.processor.v1.otlp",
    "io.containerd.internal.v1.tracing",
    "io.containerd.snapshotter.v1.aufs",
    "io.containerd.snapshotter.v1.btrfs",
    "io.containerd.snapshotter.v1.devmapper",
    "io.containerd.snapshotter.v1.native",
    "io.containerd.snapshotter.v1.zfs",
)
_CRI = "io.containerd.grpc.v1.cri"
_CONTENT = "io.containerd.content.v1.content"


class Containerd:
    """One containerd.  `start` and `stop` at will; what it has pulled and made stays in its folder."""

    def __init__(
        self,
        folder: Path,
        *,
        proxies: Mapping[str, tuple[str, str]] | None = None,
        snapshotter: str = "overlayfs",
        own_content: bool = True,
        cri: bool = False,
    ) -> None:
        """``proxies`` are its proxy plugins: a name → its type and its socket.

        ``snapshotter`` is what `ctr` and CRI use.  Without ``own_content`` one of the proxies has to be a
        content store.
        """
        self.folder = folder
        self.socket = folder / "c.sock"
        self.log = folder / "log"
        self.snapshotter = snapshotter
        self.namespace = f"orlop-test-{secrets.token_hex(6)}"
        self._process: subprocess.Popen[bytes] | None = None
        folder.mkdir(parents=True)
        config = _config(folder, proxies or {}, snapshotter, own_content, cri)
        (folder / "config.toml").write_text(config)

    def start(self) -> None:
        """Run it; it answers when this returns."""
        # setpriv: it ends with us, however we end
        command = [
            "setpriv",
            "--pdeathsig",
            "KILL",
            "containerd",
            "-c",
            os.fspath(self.folder / "config.toml"),
        ]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.folder, env=_environment()
            )
        deadline = time.monotonic() + _UP
        while self._try("version").returncode:
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"containerd does not come up: {self.said()}")
            time.sleep(0.02)

    def stop(self, signum: signal.Signals = signal.SIGTERM) -> None:
        """End it, and nothing else: containers run on.  Idempotent."""
        process, self._process = self._process, None
        if process is not None:
            _end(process, signum)

    def close(self) -> None:
        """End it and all that came of it; what is left are files in its folder."""
        self.stop()
        sockets = [
            Path(file.read_text().removeprefix("unix://"))
            for file in self.folder.glob("state/io.containerd.runtime.v2.task/*/*/address")
        ]
        until = time.monotonic() + _DOWN
        while left := self._shims() + _members(self.namespace):
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            if time.monotonic() > until:
                raise RuntimeError(f"processes of containers do not end: {left}")
            time.sleep(0.01)
        for socket in sockets:
            socket.unlink(missing_ok=True)
        for mount in disks.mounts_below(self.folder):
            subprocess.run(["umount", "--lazy", os.fspath(mount)], check=False, capture_output=True)
        while left := [cgroup for cgroup in _cgroups(self.namespace) if not _removed(cgroup)]:
            if time.monotonic() > until:
                raise RuntimeError(f"cgroups cannot be removed: {left}")
            time.sleep(0.01)

    def ctr(
        self, *words: str | Path, check: bool = True, timeout: float = 120, namespace: str = ""
    ) -> subprocess.CompletedProcess[str]:
        """``ctr WORDS`` against it, in its namespace; fails the test with what it said, unless told not to."""
        done = self._try(*words, timeout=timeout, namespace=namespace)
        if check and done.returncode:
            raise AssertionError(
                f"ctr {' '.join(map(str, words))} exits with {done.returncode}: {done.stderr}\n{self.said()}"
            )
        return done

    def run(self, *words: str | Path, check: bool = True, namespace: str = "") -> str:
        """``ctr run WORDS`` with runc, its state in our folder; what the container wrote."""
        places = ("--runc-root", self.folder / "runc", "--fifo-dir", self.folder / "fifo")
        return self.ctr(
            "run",
            "--cgroup",
            f"/{self.namespace}/{secrets.token_hex(4)}",
            *places,
            *words,
            check=check,
            namespace=namespace,
        ).stdout

    def said(self) -> str:
        """The end of its log."""
        return self.log.read_bytes()[-_SHOWN:].decode(errors="replace") if self.log.exists() else ""

    @contextmanager
    def channel(self) -> Iterator[grpc.Channel]:
        """Its own gRPC, for what `ctr` cannot ask."""
        with grpc.insecure_channel(f"unix:{self.socket}") as opened:
            yield opened

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """What a call needs to be in its namespace."""
        return (("containerd-namespace", self.namespace),)

    def _try(
        self, *words: str | Path, timeout: float = 60, namespace: str = ""
    ) -> subprocess.CompletedProcess[str]:
        where = ("--address", os.fspath(self.socket), "--namespace", namespace or self.namespace)
        return subprocess.run(
            ["ctr", *where, *map(os.fspath, words)],
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=timeout,
            check=False,
            env=_environment() | {"CONTAINERD_SNAPSHOTTER": self.snapshotter},
        )

    def _shims(self) -> list[int]:
        found = []
        for process in Path("/proc").iterdir():
            if process.name.isdigit():
                with contextlib.suppress(OSError):  # ended meanwhile
                    words = (process / "cmdline").read_bytes().split(b"\0")
                    if b"-address" in words and os.fsencode(self.socket) in words:
                        found.append(int(process.name))
        return found


@contextmanager
def containerd(
    folder: Path,
    *,
    proxies: Mapping[str, tuple[str, str]] | None = None,
    snapshotter: str = "overlayfs",
    own_content: bool = True,
    cri: bool = False,
) -> Iterator[Containerd]:
    """A running one, whatever becomes of it meanwhile; arguments as of `Containerd`."""
    made = Containerd(folder, proxies=proxies, snapshotter=snapshotter, own_content=own_content, cri=cri)
    try:
        made.start()
        yield made
    finally:
        made.close()


def _config(
    folder: Path, proxies: Mapping[str, tuple[str, str]], snapshotter: str, own_content: bool, cri: bool
) -> str:
    disabled = [*_DISABLED, *([] if cri else [_CRI]), *([] if own_content else [_CONTENT])]
    lines = [
        "version = 2",
        f'root = "{folder}/root"',
        f'state = "{folder}/state"',
        f"disabled_plugins = {json.dumps(disabled)}",
        "[grpc]",
        f'address = "{folder}/c.sock"',
        "[ttrpc]",
        f'address = "{folder}/t.sock"',
        f'[plugins."{_CRI}".containerd]',
        f'snapshotter = "{snapshotter}"',
        "disable_snapshot_annotations = false",
    ]
    for name, (kind, socket) in proxies.items():
        lines += [f'[proxy_plugins."{name}"]', f'type = "{kind}"', f'address = "{socket}"']
    return "\n".join(lines) + "\n"


def _environment() -> dict[str, str]:
    """No proxies: what is pulled from is on loopback."""
    return {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}


def _cgroups(namespace: str) -> list[Path]:
    """The folders of a namespace's containers in every hierarchy, the deepest first."""
    tops = [_CGROUPS / namespace, *_CGROUPS.glob(f"*/{namespace}")]
    return [Path(folder) for top in tops for folder, _, _ in os.walk(top, topdown=False)]


def _removed(cgroup: Path) -> bool:
    try:
        cgroup.rmdir()
    except FileNotFoundError:
        return True  # a shim was faster
    except OSError:
        return False  # whoever was killed in it has not quite gone
    return True


def _members(namespace: str) -> list[int]:
    """The processes in them."""
    found = set()
    for folder in _cgroups(namespace):
        with contextlib.suppress(OSError):  # removed meanwhile
            found |= {int(pid) for pid in (folder / "cgroup.procs").read_text().split()}
    return sorted(found)


class Service:
    """Orlop's daemon for a containerd, on a store in ``folder``; it may be killed and started again."""

    def __init__(self, folder: Path, *, insecure_registry: str = "") -> None:
        self.folder = folder
        self.root, self.run = folder / "root", folder / "run"
        self.socket = os.fspath(folder / "s" / "o.sock")
        self._options = ["--insecure-registry", insecure_registry] if insecure_registry else []
        self._process: subprocess.Popen[bytes] | None = None
        folder.mkdir(parents=True)

    @property
    def address(self) -> str:
        """As orlop's own clients are told it."""
        return f"unix://{self.socket}"

    @property
    def pid(self) -> int:
        """Of its process; only while it runs."""
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Run it; it answers when this returns."""
        where = ("--root", self.root, "--run", self.run)
        command = [sys.executable, "-m", "orlop", *where, *self._options, "daemon", "--listen", self.address]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", *map(os.fspath, command)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=_environment(),
            )
        deadline = time.monotonic() + _UP
        while True:
            try:
                with orlop.connect(self.address) as store:
                    store.info()
            except orlop.Unavailable:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"orlop's daemon does not come up: {self.said()}") from None
                time.sleep(0.02)
            else:
                return

    def stop(self, signum: signal.Signals = signal.SIGTERM) -> None:
        """End it.  Idempotent."""
        process, self._process = self._process, None
        if process is not None:
            _end(process, signum)

    def said(self) -> str:
        """The end of its log."""
        return (self.folder / "log").read_bytes()[-_SHOWN:].decode(errors="replace")

    def __enter__(self) -> Service:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()


def _end(process: subprocess.Popen[bytes], signum: signal.Signals) -> None:
    process.send_signal(signum)
    try:
        process.wait(_DOWN)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
