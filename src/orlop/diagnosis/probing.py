"""Trying the drivers, in a process of its own: a kernel that hangs a mount does not hang who asked.

``python -m orlop.diagnosis.probing FOLDER`` prints JSON.  Without root it goes into a user namespace first,
as the verbs that touch roots do.  What it makes in the folder it takes away.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from orlop.config import DRIVERS
from orlop.errors import Error, Unavailable

__all__ = ["Probed", "main", "probed"]

SECONDS = 30.0

Probed = Mapping[str, Any]


def probed(folder: str, environ: Mapping[str, str], *, seconds: float = SECONDS) -> Probed:
    """What `main` finds for a folder.  Raises `Unavailable` where that does not come to an end."""
    attempted = f"try the drivers in {folder}"
    command = [sys.executable, "-m", "orlop.diagnosis.probing", folder]
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            env=dict(environ),
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired as exc:
        raise Unavailable(attempted, f"that took more than {seconds:.0f} s, and was given up") from exc
    except OSError as exc:
        raise Unavailable(attempted, f"{sys.executable}: {exc.strerror}") from exc
    try:
        found = json.loads(done.stdout)
    except ValueError:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        raise Unavailable(attempted, said[-1] if said else f"it ended with {done.returncode}") from None
    if not isinstance(found, dict):
        raise Unavailable(attempted, "it said something odd")
    return found


def main(folder: str) -> None:
    """Print what works here: privilege, each driver with its reason, mounts with mapped ids."""
    from orlop import rootless
    from orlop.linux import userns
    from orlop.snapshots.probe import probe

    rootless.unshare(optional=True)
    privilege = userns.privilege()
    marks = "trusted.overlay." if privilege == "root" else "user.overlay."
    drivers = []
    for name in DRIVERS:
        if name == "erofs" and privilege != "root":
            drivers.append([name, False, "only root of the machine may mount EROFS"])
            continue
        try:
            verdict = probe(name, Path(folder), marks=marks)
            drivers.append([name, verdict.works, verdict.reason])
        except Error as exc:
            drivers.append([name, False, str(exc)])
    mapped = _mapped(folder) if privilege == "root" else ""
    sys.stdout.write(json.dumps({"privilege": privilege, "drivers": drivers, "mapped": mapped}))


def _mapped(folder: str) -> str:
    """Whether a mount of the folder's disk can have other ids: ``yes``, or why not."""
    from orlop.linux import userns
    from orlop.linux.mount import try_mapped

    ids = (userns.IdRange(inside=0, outside=100_000, size=65_536),)
    try:
        namespace = userns.make(ids, ids)
    except Error as exc:
        return exc.reason
    try:
        try_mapped(Path(folder), namespace)
    except OSError as exc:
        return exc.strerror or str(exc)
    finally:
        os.close(namespace)
    return "yes"


if __name__ == "__main__":
    main(sys.argv[1])
