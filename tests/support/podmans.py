"""podman, buildah and skopeo with a store of their own, which a test may fill and break.

    podman = Podman(folder)
    done = podman.run("podman", "images", timeout=60)

Whatever is left of containers and mounts goes with `close`.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path


class Podman:
    """An environment in which podman knows nothing of this machine's own images and containers."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        (folder / "containers.conf").write_text(
            '[containers]\ndefault_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]\n'
            '[engine]\nruntime = "runc"\nevents_logger = "file"\ncgroup_manager = "cgroupfs"\n'
            f'tmp_dir = "{folder}/tmp"\n'  # with a static_dir podman 4.3 waits 20 s for each container
        )
        (folder / "storage.conf").write_text(
            f'[storage]\ndriver = "overlay"\ngraphroot = "{folder}/graph"\nrunroot = "{folder}/run"\n'
        )
        self.environment = {
            **os.environ,
            "CONTAINERS_CONF": f"{folder}/containers.conf",
            "CONTAINERS_STORAGE_CONF": f"{folder}/storage.conf",
            "TMPDIR": str(folder),
        }

    def run(
        self, *words: str, check: bool = True, env: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a program with this store; nobody waits for ever."""
        done = subprocess.run(
            words,
            env={**self.environment, **(env or {})},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert not check or done.returncode == 0, f"{words}: {done.stderr}"
        return done

    def close(self) -> None:
        """Remove containers, images and what podman has mounted."""
        self.run("podman", "rm", "--all", "--force", "--time", "0", check=False)
        self.run("buildah", "rm", "--all", check=False)
        for line in reversed(Path("/proc/self/mountinfo").read_text().splitlines()):
            target = line.split()[4]
            if target.startswith(f"{self.folder}/"):
                subprocess.run(["umount", "--lazy", target], capture_output=True, check=False)
