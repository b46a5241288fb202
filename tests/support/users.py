"""A user without root, for tests that run as root: with subordinate ids, without, or without namespaces.

    user = users.make(folder, "subids")
    done = user.run(sys.executable, "-m", "orlop", "info", check=True)

No account of the machine is touched: what runs has a mount namespace of its own with copies of
/etc/passwd, /etc/subuid and /etc/subgid that know the user, in which this checkout and its Python can
be reached even if they lie below a folder of root's.  The user's files stay in ``folder`` from one run
to the next; the mounts end with each.

Modes: ``subids`` has `SIZE` subordinate ids from `FIRST` on; ``single`` has none; ``plain`` has none
and cannot make user namespaces either, for it runs in a changed root (user_namespaces(7), EPERM).
"""

from __future__ import annotations

import ctypes
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Mode = Literal["subids", "single", "plain"]

NAME, UID, GID = "orlop-test", 12345, 12345
FIRST, SIZE = 2_000_000, 65_536  # subordinate ids

_BIND, _REC = 0x1000, 0x4000
_ETC = ("passwd", "group", "subuid", "subgid")


@dataclass(frozen=True, slots=True, kw_only=True)
class User:
    """A user of one mode; ``home`` and what XDG calls data and runtime are folders of its own."""

    folder: Path
    mode: Mode

    @property
    def home(self) -> Path:
        return self.folder / "home"

    @property
    def data(self) -> Path:
        """XDG_DATA_HOME; a store's ROOT is ``orlop`` in it."""
        return self.home / "data"

    @property
    def runtime(self) -> Path:
        """XDG_RUNTIME_DIR; a store's RUN is ``orlop`` in it."""
        return self.folder / "runtime"

    def environ(self) -> dict[str, str]:
        """What a login would set."""
        return {
            "HOME": os.fspath(self.home),
            "LANG": "C.UTF-8",
            "LOGNAME": NAME,
            "PATH": os.environ.get("PATH", os.defpath),
            "SHELL": "/bin/sh",
            "USER": NAME,
            "XDG_DATA_HOME": os.fspath(self.data),
            "XDG_RUNTIME_DIR": os.fspath(self.runtime),
        }

    def command(
        self, *argv: str | Path, env: Mapping[str, str] | None = None, cwd: Path | None = None
    ) -> list[str]:
        """What root starts to have ``argv`` run by this user; the process stays the same one."""
        order = {
            "folder": os.fspath(self.folder),
            "mode": self.mode,
            "env": {**self.environ(), **(env or {})},
            "cwd": os.fspath(cwd or self.home),
            "needed": _needed(self.folder),
            "argv": [os.fspath(word) for word in argv],
        }
        stage = [sys.executable, "-I", "-S", os.path.abspath(__file__), json.dumps(order)]
        return ["unshare", "--mount", "--propagation", "slave", *stage]

    def run(
        self,
        *argv: str | Path,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        input: str | None = None,  # noqa: A002 - subprocess.run's own word
        timeout: float = 120,
        check: bool = False,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command to its end; ``env`` adds variables; ``check`` demands exit code 0."""
        done = subprocess.run(
            self.command(*argv, env=env, cwd=cwd),
            capture_output=True,
            text=True,
            input=input,
            stdin=subprocess.DEVNULL if input is None else None,
            timeout=timeout,
            check=False,
        )
        if check and done.returncode:
            raise AssertionError(f"{argv} exits with {done.returncode}: {done.stdout}{done.stderr}")
        return done

    def python(self, code: str, *args: str, **options) -> subprocess.CompletedProcess[str]:
        """Run Python code with this interpreter and this checkout; options as for `run`."""
        return self.run(sys.executable, "-c", code, *args, **options)

    def orlop(self, *args: str | Path, **options) -> subprocess.CompletedProcess[str]:
        """Run ``orlop ARGS``; options as for `run`."""
        return self.run(sys.executable, "-m", "orlop", *args, **options)


def make(folder: Path, mode: Mode) -> User:
    """A user whose files are below a folder, which is made."""
    user = User(folder=folder, mode=mode)
    folder.mkdir(mode=0o755)
    for own in (user.home, user.data, user.runtime):
        own.mkdir(mode=0o700)
        os.chown(own, UID, GID)
    etc = folder / "etc"
    etc.mkdir()
    (folder / "everything").mkdir()
    account = f"{NAME}:x:{UID}:{GID}::{user.home}:/bin/sh\n"
    (etc / "passwd").write_bytes(Path("/etc/passwd").read_bytes() + account.encode())
    (etc / "group").write_bytes(Path("/etc/group").read_bytes() + f"{NAME}:x:{GID}:\n".encode())
    for name in ("subuid", "subgid"):
        (etc / name).write_text(f"{NAME}:{FIRST}:{SIZE}\n" if mode == "subids" else "")
    return user


def _needed(folder: Path) -> list[str]:
    """Folders that the user must be able to reach, by the names that may be used."""
    repository = Path(__file__).parents[2]
    spec = importlib.util.find_spec("orlop")
    assert spec is not None, "orlop is not installed"
    assert spec.origin is not None, "orlop has no file"
    package = Path(spec.origin).parents[1]
    found = [sys.prefix, sys.base_prefix, os.path.dirname(sys.executable), repository, package, folder]
    found.append(os.path.dirname(os.path.realpath(sys.executable)))
    return sorted({name for path in found for name in (os.path.abspath(path), os.path.realpath(path))})


# ------------------------------------------------------------------ in the new mount namespace, as root


def _stage(order: dict) -> None:
    folder = order["folder"]
    _leave_to_others(folder)
    for name in _ETC:
        _mount(f"{folder}/etc/{name}", f"/etc/{name}")
    _open_up(order["needed"])
    if order["mode"] == "plain":
        _mount("/", f"{folder}/everything")
        os.chroot(f"{folder}/everything")
    os.setgroups([])
    os.setresgid(GID, GID, GID)
    os.setresuid(UID, UID, UID)
    os.chdir(order["cwd"])
    os.execvpe(order["argv"][0], order["argv"], order["env"])


def _leave_to_others(folder: str) -> None:
    """Let go of the roots that other tests have mounted meanwhile.

    A user's own namespace would get them locked, where no unmount of theirs arrives, and so keep them in use
    for as long as the user's program runs.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    with open("/proc/self/mountinfo", "rb") as file:
        lines = [line.split() for line in file]
    for words in reversed(lines):
        kind, place = words[words.index(b"-") + 1], words[4]
        others = b"/orlop-test-" in place and not place.startswith(os.fsencode(folder) + b"/")
        if others and kind in {b"overlay", b"erofs"}:
            libc.umount2(place, 2)  # MNT_DETACH; without success it is as it was


def _open_up(needed: list[str]) -> None:
    """Put a folder that all may pass over each that keeps the user away from what is needed."""
    os.umask(0o022)
    for path in sorted(needed):
        while (top := next(filter(_closed, [*_parents(path), path]), None)) is not None:
            inside = (
                _children(top) if top in needed else [name for name in needed if name.startswith(top + "/")]
            )
            fds = {name: os.open(name, os.O_PATH) for name in inside if os.path.exists(name)}
            _mount("tmpfs", top, "tmpfs", 0, "mode=755")
            for name, fd in sorted(fds.items()):
                if not os.path.exists(name):
                    os.makedirs(os.path.dirname(name), exist_ok=True)
                    _show(fd, name)


def _show(fd: int, path: str) -> None:
    source = f"/proc/self/fd/{fd}"
    if os.path.isdir(source):
        os.mkdir(path)
    else:
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY))
    _mount(source, path)


def _parents(path: str) -> list[str]:
    """The folders on the way to a path, from the top."""
    return [os.fspath(parent) for parent in reversed(Path(path).parents)]


def _children(path: str) -> list[str]:
    return [os.path.join(path, name) for name in os.listdir(path)]


def _closed(path: str) -> bool:
    status = os.stat(path)
    return status.st_uid != UID and not status.st_mode & 0o001


def _mount(source: str, target: str, kind: str = "", flags: int = _BIND | _REC, data: str = "") -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    words = [text.encode() or None for text in (source, target, kind)]
    if libc.mount(*words, ctypes.c_ulong(flags), data.encode() or None):
        code = ctypes.get_errno()
        raise OSError(code, f"mount {source} at {target}: {os.strerror(code)}")


if __name__ == "__main__":
    _stage(json.loads(sys.argv[1]))
