"""A systemd of its own, booted in namespaces over the machine's files: what is installed there stays there.

The root is an overlay of this machine's, on a disk of the test's; `/var/lib/orlop` is a folder of that disk.
`/sys` and `/proc/sys` are read-only, and units that would touch the machine are masked.  Needs cgroup v2.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_BOOT = r"""
set -eu
lab=$1; new=$lab/root
mkdir -p "$lab"/{upper,work,root,store}
mount --make-rslave /
mount -t overlay overlay -o "lowerdir=/,upperdir=$lab/upper,workdir=$lab/work" "$new"
mount -t proc proc "$new/proc"
mount --bind "$new/proc/sys" "$new/proc/sys"; mount -o remount,bind,ro "$new/proc/sys"
mount -t sysfs -o ro sysfs "$new/sys"
mount -t cgroup2 cgroup2 "$new/sys/fs/cgroup"
mount --rbind /dev "$new/dev"
mount -t tmpfs -o mode=755 tmpfs "$new/run"
mount -t tmpfs tmpfs "$new/tmp"
mkdir -p "$new/var/lib/orlop" "$new/old"
mount --bind "$lab/store" "$new/var/lib/orlop"
rm -f "$new/usr/sbin/policy-rc.d"
printf '[Unit]\nRequires=sockets.target sysinit.target\nAfter=sysinit.target sockets.target\n' \
  > "$new/etc/systemd/system/orlop-test.target"
for unit in systemd-udevd systemd-sysctl systemd-binfmt systemd-modules-load systemd-remount-fs systemd-sysusers \
  systemd-update-utmp systemd-tmpfiles-setup-dev; do ln -sf /dev/null "$new/etc/systemd/system/$unit.service"; done
for unit in proc-sys-fs-binfmt_misc.automount dev-hugepages.mount dev-mqueue.mount sys-fs-fuse-connections.mount \
  sys-kernel-debug.mount sys-kernel-tracing.mount sys-kernel-config.mount podman.socket docker.socket \
  systemd-journald-audit.socket; do ln -sf /dev/null "$new/etc/systemd/system/$unit"; done
cd "$new"; pivot_root . old; umount -l /old
exec env -i container=orlop PATH=/usr/sbin:/usr/bin:/sbin:/bin \
  /lib/systemd/systemd --system --unit=orlop-test.target --log-target=console --show-status=no
"""
_UNSHARE = (
    "unshare",
    "--mount",
    "--propagation",
    "slave",
    "--pid",
    "--uts",
    "--ipc",
    "--cgroup",
    "--fork",
    "--kill-child",
)
_START = 120.0  # seconds


class Booted:
    """The machine in the machine."""

    def __init__(self, init: int, lab: Path) -> None:
        self._init = init
        self.lab = lab
        self.root = Path(f"/proc/{init}/root")

    def run(self, script: str, *, check: bool = True, seconds: float = 240) -> str:
        """Run a script of bash in it; what it says, on both streams."""
        enter = ("nsenter", "-t", str(self._init), "-m", "-p", "-u", "-i", "-C", "-r", "-w")
        clean = ("env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C.UTF-8")
        done = subprocess.run(
            [*enter, *clean, "bash", "-ec", script],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=seconds,
            check=False,
        )
        assert not check or done.returncode == 0, done.stdout
        return done.stdout


def _hierarchy() -> Path:
    """Where cgroup v2 is mounted."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        if " - cgroup2 " in line:
            return Path(line.split(" ")[4])
    raise RuntimeError("cgroup v2 is not mounted")


@contextmanager
def booted(lab: Path) -> Iterator[Booted]:
    """Boot it, with all its files below ``lab``; killed, with all that runs there, in the end."""
    group = _hierarchy() / f"orlop-test-{os.getpid()}"
    group.mkdir()
    log = lab / "boot.log"
    with log.open("wb") as out:
        enter = f'echo $$ > {group}/cgroup.procs; exec "$@"'
        outer = subprocess.Popen(
            ["bash", "-c", enter, "bash", *_UNSHARE, "bash", "-c", _BOOT, "bash", lab],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
        )
    init = 0
    try:
        deadline = time.monotonic() + _START
        while True:
            assert outer.poll() is None and time.monotonic() < deadline, log.read_text()  # noqa: PT018
            found = Path(f"/proc/{outer.pid}/task/{outer.pid}/children").read_text().split()
            init = int(found[0]) if found else 0
            if init and Path(f"/proc/{init}/comm").read_text().strip() == "systemd":
                machine = Booted(init, lab)
                if "running" in machine.run("systemctl is-system-running", check=False):
                    break
            time.sleep(0.1)
        yield machine
    finally:
        for pid in (init, outer.pid):
            with contextlib.suppress(ProcessLookupError):
                if pid:
                    os.kill(pid, signal.SIGKILL)
        outer.wait()
        _remove(group)


def _remove(group: Path) -> None:
    """Remove a cgroup whose processes are ending."""
    deadline = time.monotonic() + 30
    while group.exists():
        for folder in sorted(group.rglob("*/"), reverse=True):
            with contextlib.suppress(OSError):
                folder.rmdir()
        with contextlib.suppress(OSError):
            group.rmdir()
        assert time.monotonic() < deadline, f"{group} stays"
        time.sleep(0.05)
