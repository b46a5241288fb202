"""``run --exec``: a program of a plain tree, run on this machine as it is, without even a changed root.

For where nothing is allowed.  The program, its loader and its libraries are those of the tree; files that it
opens by name are this machine's.  What it finds through PATH, LD_LIBRARY_PATH and HOME is the tree's.

    a static program         runs as it is
    a dynamic one            tree/ld.so --library-path … --argv0 NAME tree/program …
    a script                 the tree's interpreter, in one of the two ways; `env NAME` counts as NAME

Not passed on: a program that is started by the program and is dynamic gets this machine's loader, if it has
one of that name.  /proc/self/exe of a dynamic program is its loader.

Invariants: nothing of the image decides where outside of the tree we look; bytes of an image's program are
parsed with limits.
"""

from __future__ import annotations

import errno
import os
import posixpath
import struct
from collections.abc import Callable, Iterable
from pathlib import Path

from orlop.cli.foreground import run_program
from orlop.cli.jobs import Job, find, find_program, host_path, make_place, open_root, read_job
from orlop.errors import FailedPrecondition, NotFound, PermissionDenied, from_oserror
from orlop.linux.files import open_in_root
from orlop.values import dataclass

__all__ = ["Command", "command_of", "elf_loader", "library_folders", "rewritten", "run_direct", "shebang"]

_ATTEMPTED = "run the program"
_MAX_SCRIPTS = 5  # a script's interpreter may be a script: fs/exec.c, exec_binprm()
_MAX_SHEBANG = 256  # BINPRM_BUF_SIZE, include/uapi/linux/binfmts.h
_MAX_SEGMENTS = 256
_MAX_LOADER = 4096  # PATH_MAX
_MAX_LOADER_FILE = 8 << 20  # bytes of a loader in which we look for the names of its options
_MAX_CONFIG = 65_536  # bytes of a file of ld.so.conf
_PT_INTERP = 3  # elf(5)
_FOLDERS = ("/usr/local/lib", "/lib", "/usr/lib", "/lib64", "/usr/lib64")
_LISTS = ("PATH", "LD_LIBRARY_PATH")  # variables with paths that become the tree's


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """What is executed.  All paths are this machine's."""

    executable: str
    argv: tuple[str, ...]
    env: dict[str, str]
    cwd: str


def run_direct(bundle: Path, *, interactive: bool) -> int:
    """Run a bundle's process to its end and return its exit code, 128 + n if signal n ended it.

    Of the bundle only the root, the command, the environment and the folder count.  Raises `NotFound` and
    `PermissionDenied` with the exit codes of shells for a command that cannot be run.
    """
    job = read_job(bundle)
    root = open_root(job.root)
    try:
        command = command_of(job, root)
    except OSError as exc:
        raise from_oserror(_ATTEMPTED, exc) from exc
    finally:
        os.close(root)
    return run_program(
        command.argv,
        executable=command.executable,
        env=command.env,
        cwd=command.cwd,
        interactive=interactive,
    )


def command_of(job: Job, root: int) -> Command:
    """What to execute for a job.  Makes its folder, if that is missing, as runtimes do."""
    try:
        folder = make_place(root, job.cwd)
        os.close(folder)
    except OSError as exc:
        raise FailedPrecondition(_ATTEMPTED, f"start in {job.cwd}: {exc.strerror}") from exc
    variables = job.variables
    name, *rest = job.args
    tree = _Tree(root, variables.get("PATH", ""), variables.get("LD_LIBRARY_PATH", ""), job.cwd)
    executable, argv = _executable(tree, tree.program(name), name, rest)
    env = rewritten(variables, lambda path: _inside(root, job.root, path))
    return Command(executable=executable, argv=tuple(argv), env=env, cwd=host_path(root, job.cwd))


@dataclass(frozen=True, slots=True)
class _Tree:
    root: int
    search: str
    libraries: str
    cwd: str

    def program(self, name: str) -> str:
        return find_program(self.root, name, search=self.search, cwd=self.cwd, attempted=_ATTEMPTED)


def _executable(tree: _Tree, program: str, name: str, rest: list[str]) -> tuple[str, list[str]]:
    """What the kernel would execute for a program of the tree if that were its root: file, arguments."""
    for _ in range(_MAX_SCRIPTS):
        try:
            fd = os.open(program, os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY)
        except PermissionError:
            return program, [name, *rest]  # to be executed, not to be read
        try:
            script = shebang(os.pread(fd, _MAX_SHEBANG, 0))
            loader = None if script else elf_loader(fd)
        finally:
            os.close(fd)
        if script is None:
            return (program, [name, *rest]) if loader is None else _loaded(tree, loader, program, name, rest)
        name, *options = script
        rest = [*options, program, *rest]
        if posixpath.basename(name) == "env" and options and not set(options[0]) & set("-= \t"):
            name, rest = options[0], rest[1:]
        program = tree.program(name)
    reason = f"exec: {name}: {os.strerror(errno.ELOOP)}"
    raise PermissionDenied(_ATTEMPTED, reason, details={"exit_code": "126"})


def _loaded(tree: _Tree, loader: str, program: str, name: str, rest: list[str]) -> tuple[str, list[str]]:
    """How a loader of the tree, glibc's or musl's, is told to run a program."""
    try:
        path = host_path(tree.root, loader)
        with open(path, "rb") as file:
            knows = file.read(_MAX_LOADER_FILE)
    except OSError as exc:
        reason = f"exec: {name}: its loader {loader} is not in the image"
        raise NotFound(_ATTEMPTED, reason, details={"exit_code": "127"}) from exc
    folders = library_folders(tree.root, tree.libraries.split(":"))
    argv = [path, "--library-path", ":".join(folders)]
    if b"inhibit-cache\0" in knows:
        argv.append("--inhibit-cache")  # /etc/ld.so.cache is this machine's
    if b"argv0\0" in knows:  # glibc 2.33, musl 1.2.2
        argv += ["--argv0", name]
    return path, [*argv, program, *rest]


# ------------------------------------------------------------------ the environment


def rewritten(variables: dict[str, str], inside: Callable[[str], str]) -> dict[str, str]:
    """An environment whose paths to programs and libraries, and HOME, are the tree's.

    >>> rewritten({"PATH": "/bin::x", "HOME": "/root", "A": "/bin"}, lambda path: "/t" + path)
    {'PATH': '/t/bin::x', 'HOME': '/t/root', 'A': '/bin'}
    """
    found = dict(variables)
    for name in (*_LISTS, "HOME"):
        if name in found:
            places = found[name].split(":") if name in _LISTS else [found[name]]
            found[name] = ":".join(inside(place) if place.startswith("/") else place for place in places)
    return found


def _inside(root: int, top: str, path: str) -> str:
    """The path, on this side, of one in the tree, be it there or not."""
    try:
        return host_path(root, path)
    except OSError:
        return top + posixpath.normpath("/" + path.lstrip("/"))


def library_folders(root: int, first: Iterable[str] = ()) -> list[str]:
    """Where the tree's loader finds libraries, on this side: ``first``, what is configured, the usual."""
    usual = [f"{folder}/{name}" for folder in _FOLDERS for name in _names(root, folder) if "-linux-" in name]
    folders = []
    for folder in [*first, *_configured(root), *usual, *_FOLDERS]:
        try:
            path = host_path(root, folder) if folder.startswith("/") else ""
        except OSError:
            continue
        if path and ":" not in path and os.path.isdir(path):
            folders.append(path)
    return list(dict.fromkeys(folders))


def _configured(root: int) -> list[str]:
    """The folders of ld.so.conf and of the files that are usually included there: ldconfig(8)."""
    folder = "/etc/ld.so.conf.d"
    parts = [f"{folder}/{name}" for name in _names(root, folder) if name.endswith(".conf")]
    lines: list[str] = []
    for name in [*parts, "/etc/ld.so.conf"]:
        try:
            with open(open_in_root(root, name), encoding="utf-8", errors="replace") as file:
                lines += file.read(_MAX_CONFIG).splitlines()
        except OSError:
            continue
    return [line.strip() for line in lines if line.startswith("/")]


def _names(root: int, folder: str) -> list[str]:
    try:
        fd = find(root, folder)
    except OSError:
        return []
    try:
        return sorted(os.listdir(f"/proc/self/fd/{fd}"))
    except OSError:
        return []
    finally:
        os.close(fd)


# ------------------------------------------------------------------ what a program begins with


def shebang(head: bytes) -> list[str] | None:
    """The interpreter of a script, and its argument if there is one; None for what is no script.

    >>> shebang(b"#! /bin/sh -e x ")
    ['/bin/sh', '-e x']
    """
    if not head.startswith(b"#!"):
        return None
    words = os.fsdecode(head[2:].split(b"\n", 1)[0]).strip(" \t").split(None, 1)
    return words or None


def elf_loader(fd: int) -> str | None:
    """The PT_INTERP of an ELF file; None where it has none, as in a static program, and for what is no ELF.

    Of what is broken the kernel shall tell.  Source: elf(5).
    """
    ident = os.pread(fd, 16, 0)
    if len(ident) < 16 or ident[:4] != b"\x7fELF" or ident[4] not in {1, 2} or ident[5] not in {1, 2}:
        return None
    wide, order = ident[4] == 2, "<>"[ident[5] - 1]
    header = struct.Struct(order + ("16xHHIQQQIHHH" if wide else "16xHHIIIIIHHH"))
    segment = struct.Struct(order + ("IIQQQQ" if wide else "IIIII"))
    try:
        *_, table, _, _, _, size, count = header.unpack(os.pread(fd, header.size, 0))
        for number in range(min(count, _MAX_SEGMENTS)):
            kind, *rest = segment.unpack(os.pread(fd, segment.size, table + number * size))
            if kind == _PT_INTERP:
                offset, length = (rest[1], rest[4]) if wide else (rest[0], rest[3])
                return os.fsdecode(os.pread(fd, min(length, _MAX_LOADER), offset).split(b"\0")[0]) or None
    except (struct.error, OSError, OverflowError):
        return None
    return None
