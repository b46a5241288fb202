"""The hot loops compiled (packaging/compiled) are the pure ones, but faster.

Compiling takes minutes, so what needs it is a soak test; what was compiled is kept below .cache until one of
its sources changes.
"""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

TREE = Path(__file__).parents[2]
FOLDER = TREE / "packaging" / "compiled"
COMPILED = TREE / ".cache" / "compiled"
# Those that are about what is compiled, and replace no part of it by another.
UNIT = [
    *("test_diff", "test_erofs_reader", "test_erofs_writer", "test_hostile_bytes", "test_index_builder"),
    *(
        "test_layer_index",
        "test_layer_limits",
        "test_merge",
        "test_pax",
        "test_tar_reader",
        "test_tar_writer",
    ),
    *("test_tarsplit", "test_upper", "test_worker_lies"),
]
LOOPS = TREE / "tests" / "support" / "loops.py"


def _load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"compiled_{name}", FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _run(*words: str | Path, path: Path | None = None, seconds: int = 1_200) -> str:
    """What a Python says that finds orlop in ``path`` first."""
    told = {**os.environ, "PYTHONPATH": f"{path or TREE / 'src'}:{TREE / 'tests'}", "PYTHONHASHSEED": "0"}
    done = subprocess.run(
        [sys.executable, *map(os.fspath, words)],
        cwd=TREE,
        env=told,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=seconds,
    )
    assert done.returncode == 0, done.stdout[-4_000:]
    return done.stdout


@pytest.fixture(scope="module")
def compiled() -> Path:
    """A copy of the package with its libraries."""
    header = Path(sysconfig.get_paths()["include"], "Python.h")
    if shutil.which("cc") is None or not header.exists():
        pytest.skip("there is no C compiler, or no Python.h")
    _run(FOLDER / "build.py", COMPILED)
    return COMPILED


def test_what_is_compiled_has_no_numbers_that_overflow() -> None:
    modules = _load("build").MODULES
    for name in modules:
        tree = ast.parse((TREE / "src" / "orlop" / f"{name}.py").read_text())
        names = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        names |= {
            alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names
        }
        assert not {"mypy_extensions", "librt"} & {str(name).partition(".")[0] for name in names}, name


def test_no_class_that_is_not_compiled_builds_on_one_that_is() -> None:
    modules = _load("build").MODULES
    source = TREE / "src" / "orlop"
    classes: dict[bool, dict[str, set[str]]] = {True: {}, False: {}}
    for file in source.rglob("*.py"):
        inside = file.relative_to(source).with_suffix("").as_posix() in modules
        for name, bases in re.findall(r"^ *class (\w+)(?:\((.*)\))?:", file.read_text(), re.MULTILINE):
            classes[inside].setdefault(name, set()).update(re.findall(r"\w+", bases))
    assert "TarReader" in classes[True]
    # As text: a class of the same name elsewhere would be refused here without need.
    native = classes[True].keys() - {"LowerLinkError"}  # an error, which stays a plain class
    assert not {name for name, bases in classes[False].items() if bases & native}


def test_no_library_lies_beside_the_sources() -> None:
    assert not list((TREE / "src").rglob("*.so"))


def test_nothing_is_compiled_unless_it_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hook = _load("hook")
    made = object.__new__(hook.CompiledLoops)
    monkeypatch.delenv("ORLOP_COMPILE", raising=False)
    assert made.dependencies() == []
    built: dict[str, object] = {}
    made.initialize("standard", built)
    monkeypatch.setenv("ORLOP_COMPILE", "1")
    made.initialize("editable", built)
    assert built == {}
    assert [name.partition("=")[0] for name in made.dependencies()] == ["mypy", "setuptools"]


def test_an_isolated_build_compiles_with_what_is_locked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORLOP_COMPILE", "1")
    locked = (TREE / "requirements" / "dev.txt").read_text()
    for wanted in object.__new__(_load("hook").CompiledLoops).dependencies():
        assert f"\n{wanted} " in locked


@pytest.mark.soak
@pytest.mark.timeout(2_400)
def test_compiled_and_pure_loops_make_the_same_of_all_inputs(compiled: Path) -> None:
    for seed in ("1", "2"):
        pure = _run(LOOPS, seed, "60").splitlines()
        fast = _run(LOOPS, seed, "60", path=compiled).splitlines()
        assert (pure.pop(0), fast.pop(0)) == ("py", "so")
        assert len(pure) > 1_000
        assert fast == pure


@pytest.mark.soak
@pytest.mark.timeout(2_400)
@pytest.mark.hostile(8, 14, 34)
def test_the_unit_tests_hold_for_the_compiled_loops(compiled: Path) -> None:
    said = _run("-c", "from orlop.layers import tarread; print(tarread.__file__)", path=compiled)
    assert said.strip().startswith(os.fspath(compiled))
    assert said.strip().endswith(".so")
    files = [TREE / "tests" / "unit" / f"{name}.py" for name in UNIT]
    _run("-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *files, path=compiled)


@pytest.mark.soak
@pytest.mark.timeout(2_400)
def test_a_wheel_has_the_libraries_beside_the_sources(compiled: Path, tmp_path: Path) -> None:
    told = {**os.environ, "ORLOP_COMPILE": "1"}
    code = f"import hatchling.build as b; print(b.build_wheel({str(tmp_path)!r}))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=TREE,
        env=told,
        capture_output=True,
        text=True,
        check=False,
        timeout=1_200,
    )
    assert done.returncode == 0, done.stderr
    name = done.stdout.split()[-1]
    assert not name.endswith("-none-any.whl")
    with zipfile.ZipFile(tmp_path / name) as wheel:
        names = wheel.namelist()
    made = {path.relative_to(compiled).as_posix() for path in compiled.rglob("*.so")}
    assert made
    assert made == {name for name in names if name.endswith(".so")}
    assert {f"orlop/{module}.py" for module in _load("build").MODULES} <= set(names)
