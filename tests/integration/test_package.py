"""The Debian package: built, installed under a systemd that runs, used, upgraded, removed and purged."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from support import disks
from support.booted import booted

pytestmark = [pytest.mark.root, pytest.mark.soak, pytest.mark.large]

TREE = Path(__file__).parents[2]
HOST = "export ORLOP_HOST=unix:///run/orlop/socket/orlop.sock\n"
# A layer with what a service's hardening might refuse: a setuid file, a device, a capability.
IMAGE = """
mkdir -p /tmp/r/bin && cp /bin/busybox /tmp/r/bin/ && chmod u+s /tmp/r/bin/busybox
mknod /tmp/r/null c 1 3 && setcap cap_net_raw+ep /tmp/r/bin/busybox
tar -C /tmp/r --xattrs --xattrs-include='*' -cf /tmp/r.tar .
orlop import -q /tmp/r.tar localhost/box:1
"""
USE = """
for driver in erofs overlay native; do
  orlop prepare -q --driver $driver --mount localhost/box:1 /srv/$driver >&2
  test -u /srv/$driver/bin/busybox && test -c /srv/$driver/null
  getcap /srv/$driver/bin/busybox | grep -q cap_net_raw=ep
  touch /srv/$driver/new
  orlop commit -q /srv/$driver localhost/$driver:1 >&2
done
orlop prepare -q --quota 64MiB --mount localhost/box:1 /srv/quota >&2
"""


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("deb")
    done = subprocess.run(
        [TREE / "packaging" / "debian" / "build", out],
        capture_output=True,
        text=True,
        check=False,
        timeout=1_200,
        env={**os.environ, "DEB_COMPRESSION": "0"},
    )
    assert done.returncode == 0, done.stderr
    return Path(done.stdout.strip())


@pytest.mark.timeout(2_400)
def test_the_package_serves_under_systemd_and_leaves_what_is_in_use(package: Path) -> None:
    with disks.disk() as lab, booted(lab) as machine:
        deb = f"/{package.name}"
        shutil.copy(package, machine.root / package.name)
        machine.run(f"dpkg -i {deb}")
        assert machine.run("orlop --version; orlopd --version").split() == [
            "orlop",
            "0.1.0",
            "orlop",
            "0.1.0",
        ]
        assert machine.run("systemctl is-active orlop.socket").strip() == "active"
        machine.run("man -w orlop && test -s /usr/share/bash-completion/completions/orlop")

        # The socket starts the daemon, which mounts where everybody sees it.
        machine.run(HOST + IMAGE + USE, seconds=600)
        main = machine.run("systemctl show -P MainPID orlop.service").strip()
        machine.run(f"test $(readlink /proc/1/ns/mnt) = $(readlink /proc/{main}/ns/mnt)")
        status = machine.run(f"cat /proc/{main}/status")
        assert "NoNewPrivs:\t1" in status
        assert "Seccomp:\t2" in status

        # Read again, broken, and stopped; the roots stay, and the next call starts the next daemon.
        shown = "systemctl reload orlop && orlop ps -q | wc -l && systemctl show -P StatusText orlop"
        said = machine.run(HOST + "echo 'retries = 9' > /etc/orlop/config.toml\n" + shown)
        assert said.split("\n")[0] == "4"
        machine.run(HOST + "systemctl stop orlop.service && cat /srv/erofs/new && orlop ps")

        # An upgrade keeps the daemon's work; a removal and a purge keep what is prepared.
        machine.run(f"dpkg --force-confold -i {deb} && test -e /srv/erofs/new")
        machine.run("dpkg -r orlop && test -e /srv/overlay/new && test -e /etc/orlop/config.toml")
        assert "/var/lib/orlop stays" in machine.run("dpkg --purge orlop")
        machine.run("test ! -e /etc/orlop && test ! -e /usr/lib/orlop && test -e /srv/erofs/new")

        # Cleaned up, a purge takes the store, but not one that is a disk of its own.
        machine.run(f"dpkg -i {deb}")
        machine.run(HOST + "orlop ps -q | xargs orlop cleanup && ! grep -q ' /srv/' /proc/mounts")
        machine.run("systemctl stop orlop.socket orlop.service")
        assert "/var/lib/orlop stays: it is mounted" in machine.run("dpkg -r orlop && dpkg --purge orlop")
        machine.run(f"umount /var/lib/orlop && dpkg -i {deb}")
        machine.run("orlop --root /var/lib/orlop images && dpkg --purge orlop && test ! -e /var/lib/orlop")
