"""Compile the hot loops with mypyc: a copy of the package with extension modules beside their sources.

    usage: python packaging/compiled/build.py FOLDER        the copy becomes FOLDER/orlop

The sources stay what is run where there is no compiler, and what is edited: nothing is written beside them,
where a library that is older than its source would hide it.  The build hook (hook.py) takes the libraries
from such a copy into a wheel; a test and the benchmark run a copy as it is.

It is compiled anew when anything that decides about it has changed (the copy's ``stamp`` says), so a second
call takes no time.  Needs mypy, setuptools and a C compiler; CFLAGS are taken as usual.

No module of the others may define a subclass of a compiled class: it could not be made (layers/tardata is
here for that).  Only modules where it pays are compiled.  Comparing an upper gained 3 %: its time is system
calls, and values that stay plain classes.  mypyc 2.4.1 makes what crashes of a value whose annotation names a
class that comes later (layers/chainview), does not compile a loop over a bytearray (layers/datalayout), and
believes that an attribute that was set to None is None until it is set again in the same function.

Numbers that come from outside stay Python's own, which do not overflow: no module uses mypyc's native ones.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from importlib.metadata import version
from pathlib import Path

HERE = Path(__file__).resolve().parent
PROJECT = HERE.parent.parent
GROUP = "orlop._loops"  # the library that holds the code; those named as the modules only lead to it
MODULES = (
    "erofs/format",
    "erofs/tree",
    "erofs/writer",
    "erofs/xattrs",
    "layers/builder",
    "layers/entry",
    "layers/index",
    "layers/merge",
    "layers/nested",
    "layers/pax",
    "layers/tardata",
    "layers/tarread",
    "layers/tarwrite",
)
ROOMS = ("config", "erofs", "errors", "layers", "linux", "observe", "spec", "values")  # all that they import
_OPTIMIZE = "2"
_CONFIG = """\
[mypy]
follow_imports = silent
ignore_missing_imports = True
"""  # checked is the tree elsewhere, with all that it imports


def stamp(source: Path) -> str:
    """The digest of all that decides what comes out."""
    digest = hashlib.sha256()
    said = (sys.version, sysconfig.get_platform(), version("mypy"), os.environ.get("CFLAGS", ""), source)
    digest.update(repr(said).encode())
    files = [
        file for file in source.rglob("*.py") if file.relative_to(source).parts[0].partition(".")[0] in ROOMS
    ]
    files += HERE.glob("*.py*")
    for file in sorted(files):
        digest.update(f"\n{file}\n".encode() + hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


def build(folder: Path, source: Path = PROJECT / "src" / "orlop") -> list[Path]:
    """Make the copy, or find that it is there; the libraries, relative to ``folder``.

    Raises `RuntimeError` with what the compilers said.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder.with_name(folder.name + ".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        wanted, said = stamp(source), folder / "stamp"
        if not said.exists() or said.read_text() != wanted:
            shutil.rmtree(folder)
            folder.mkdir()
            with tempfile.TemporaryDirectory(prefix="orlop-compile-") as scratch:
                _compile(source, folder, Path(scratch))
            said.write_text(wanted)
        for old in folder.rglob("*.py"):
            old.unlink()
        ignored = shutil.ignore_patterns("__pycache__", "*.so")
        shutil.copytree(source, folder / "orlop", ignore=ignored, dirs_exist_ok=True)
    return sorted(path.relative_to(folder) for path in folder.rglob("*.so"))


def _compile(source: Path, folder: Path, scratch: Path) -> None:
    """Compile in a copy of its own, which has two stubs more, and leave nothing of it but the libraries."""
    shutil.copytree(source, scratch / "orlop", ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    shutil.copy(HERE / "values.pyi", scratch / "orlop" / "values.pyi")
    (scratch / "orlop" / "__init__.pyi").touch()  # what it names would all be read: half of the time
    (scratch / "mypy.ini").write_text(_CONFIG)
    done = subprocess.run(
        [sys.executable, os.fspath(Path(__file__).resolve()), "--here", os.fspath(folder)],
        cwd=scratch,
        # The headers of a group inside a package lie in a folder of its name, where mypyc does not look.
        env={**os.environ, "CFLAGS": f"{os.environ.get('CFLAGS', '')} -Ibuild/orlop"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"the hot loops do not compile:\n{done.stdout[-8000:]}")


def _compile_here(folder: str) -> None:
    """What the process does that compiles: setuptools knows no other way than the working folder."""
    from mypyc.build import mypycify
    from setuptools import setup

    options = ["--config-file=mypy.ini", "--cache-dir=mypy-cache"]
    extensions = mypycify(
        [*options, *(f"orlop/{name}.py" for name in MODULES)],
        opt_level=_OPTIMIZE,
        debug_level="0",
        multi_file=True,
        group_name=GROUP,
    )
    words = ["-q", "build_ext", "--build-lib", folder, "--build-temp", "objects"]
    setup(name="orlop", packages=[], py_modules=[], ext_modules=extensions, script_args=words)


if __name__ == "__main__":
    if sys.argv[1] == "--here":
        _compile_here(sys.argv[2])
    else:
        for library in build(Path(sys.argv[1]).resolve()):
            print(library)
