"""This process: its limits, its cgroup, its clock."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import orlop.version
from orlop.diagnosis.findings import Finding, Subject, note, ok, problem

__all__ = ["check_clock", "check_limits", "judge_limits"]

_FILES = 1_024  # that a pull of many layers, and a daemon with many clients, keeps open at most
_MEMORY = 512 << 20  # bytes: parent, template and a worker with a large layer


def check_limits(subject: Subject) -> Iterable[Finding]:
    """RLIMIT_NOFILE, RLIMIT_FSIZE and the cgroup's memory."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    size, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield from judge_limits(_number(soft), _number(size), _cgroup_memory())


def _number(limit: int) -> int | None:
    return None if limit == resource.RLIM_INFINITY else limit


def judge_limits(files: int | None, size: int | None, memory: int | None) -> Iterator[Finding]:
    """Findings of limits; None is none.  ``size`` and ``memory`` are bytes."""
    if files is not None and files < 64:
        yield problem("process.files", f"only {files} files may be open", "ulimit -n 4096")
    elif files is not None and files < _FILES:
        yield note(
            "process.files", f"only {files} files may be open, which a large pull passes", "ulimit -n 4096"
        )
    else:
        yield ok("process.files", f"{'any number of' if files is None else files} files may be open")
    if size is not None:
        text = f"no file may be larger than {size:,} bytes: a layer is one file"
        yield problem("process.file-size", text, "ulimit -f unlimited")
    if memory is not None and memory < _MEMORY:
        text = f"the cgroup allows {memory >> 20} MiB of memory; a large layer takes more than 512"
        yield note("process.memory", text, "allow the container or service more memory: docs/limits.md")
    elif memory is not None:
        yield ok("process.memory", f"the cgroup allows {memory >> 20} MiB of memory")


def _cgroup_memory() -> int | None:
    """The least of what the cgroups (v2) above us allow; None where nothing is said."""
    try:
        with open("/proc/self/cgroup", encoding="ascii") as file:
            paths = [line.strip().split("::", 1)[1] for line in file if line.startswith("0::")]
    except OSError:
        return None
    least: int | None = None
    for path in paths:
        for folder in (Path(path), *Path(path).parents):
            try:
                text = Path(f"/sys/fs/cgroup{folder}/memory.max").read_text("ascii").strip()
            except OSError:
                continue
            if text.isdigit():
                least = int(text) if least is None else min(least, int(text))
    return least


def check_clock(subject: Subject) -> Iterable[Finding]:
    """Whether the clock may be right: it is not before the time at which this program was installed."""
    installed = os.stat(orlop.version.__file__).st_mtime
    now = time.time()
    shown = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(now))
    if now < installed - 86_400:
        text = (
            f"the clock says {shown} UTC, which is before orlop was installed: certificates will not be valid"
        )
        yield problem("process.clock", text, "set the clock: timedatectl set-ntp true")
    else:
        yield ok("process.clock", f"the clock says {shown} UTC")
