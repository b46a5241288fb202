"""What is shipped: the wheel and the source, the units for systemd, the Debian package's own parts."""

from __future__ import annotations

import re
import sqlite3
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from contextlib import closing
from pathlib import Path

import pytest

TREE = Path(__file__).parents[2]
PACKAGING = TREE / "packaging"
UNITS = [
    path
    for path in sorted((PACKAGING / "systemd").rglob("orlop.*"))
    if path.suffix in (".service", ".socket")
]
# Options that give a service a mount namespace of its own: systemd.exec(5), and exec_needs_mount_namespace.
OWN_NAMESPACE = {
    *("PrivateTmp", "PrivateDevices", "PrivateMounts", "PrivateIPC", "PrivateUsers", "PrivateNetwork"),
    *("ProtectSystem", "ProtectHome", "ProtectKernelTunables", "ProtectKernelModules", "ProtectKernelLogs"),
    *("ProtectControlGroups", "ProtectProc", "ProcSubset", "ReadWritePaths", "ReadOnlyPaths", "ExecPaths"),
    *(
        "InaccessiblePaths",
        "NoExecPaths",
        "BindPaths",
        "BindReadOnlyPaths",
        "TemporaryFileSystem",
        "MountFlags",
    ),
    *("RootDirectory", "RootImage", "MountImages", "ExtensionImages", "DynamicUser", "LoadCredential"),
    # These harm in other ways: files that are setuid, devices, namespaces for maps, folders that are mounted.
    *(
        "RestrictSUIDSGID",
        "ProtectClock",
        "DevicePolicy",
        "DeviceAllow",
        "RestrictNamespaces",
        "RuntimeDirectory",
    ),
}


def _run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*map(str, command)], capture_output=True, text=True, check=False, cwd=TREE, timeout=240
    )


def _built(target: str, folder: Path) -> Path:
    """A wheel or a source archive, by the backend that pyproject.toml names, without a network."""
    code = f"import hatchling.build as b; print(b.build_{target}({str(folder)!r}))"
    done = _run(sys.executable, "-c", code)
    assert done.returncode == 0, done.stderr
    return folder / done.stdout.split()[-1]


def test_the_wheel_has_what_runs_and_nothing_else(tmp_path: Path) -> None:
    with zipfile.ZipFile(_built("wheel", tmp_path)) as wheel:
        names = set(wheel.namelist())
        info = next(name for name in names if name.endswith(".dist-info/METADATA")).removesuffix("METADATA")
        metadata = wheel.read(info + "METADATA").decode()
        entries = wheel.read(info + "entry_points.txt").decode()
    assert {name.split("/")[0] for name in names} == {"orlop", info.rstrip("/")}
    there = {str(path.relative_to(TREE / "src")) for path in (TREE / "src/orlop").rglob("*.sql")}
    assert there
    assert there | {"orlop/py.typed", info + "licenses/LICENSE", info + "licenses/NOTICE"} <= names
    assert "orlop = orlop.cli:main" in entries
    assert "orlopd = orlop.cli:daemon_main" in entries
    assert "[pytest11]\norlop = orlop.pytest_plugin" in entries
    extras = tomllib.loads((TREE / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(re.findall(r"^Provides-Extra: (.*)$", metadata, re.MULTILINE)) == set(extras)


def test_the_source_has_the_packaging_and_the_tests(tmp_path: Path) -> None:
    with tarfile.open(_built("sdist", tmp_path)) as source:
        names = {name.partition("/")[2] for name in source.getnames()}
    assert {"pyproject.toml", "LICENSE", "NOTICE", "src/orlop/py.typed", "packaging/debian/build"} <= names
    assert "tests/unit/test_packaging.py" in names
    assert not [name for name in names if "__pycache__" in name or name.startswith((".venv", "build/"))]


@pytest.mark.parametrize("unit", UNITS, ids=lambda path: str(path.relative_to(PACKAGING)))
def test_units_are_what_systemd_takes(unit: Path, tmp_path: Path) -> None:
    for path in UNITS:
        if path.parent == unit.parent:
            (tmp_path / path.name).write_text(path.read_text().replace("/usr/bin/orlop ", "/bin/true "))
    mode = "--user" if unit.parent.name == "user" else "--system"
    done = _run("systemd-analyze", mode, "verify", "--man=no", "--recursive-errors=no", tmp_path / unit.name)
    about = [line for line in done.stderr.splitlines() if str(tmp_path) in line or line.startswith("orlop.")]
    assert not about, done.stderr


@pytest.mark.parametrize("unit", UNITS, ids=lambda path: str(path.relative_to(PACKAGING)))
def test_no_unit_takes_the_daemon_out_of_the_machines_mount_namespace(unit: Path) -> None:
    options = {line.partition("=")[0] for line in unit.read_text().splitlines() if not line.startswith("#")}
    assert not options & OWN_NAMESPACE


def test_the_files_of_the_package_are_locked_to_what_is_tested() -> None:
    def pins(name: str) -> dict[str, str]:
        return dict(
            re.findall(r"^([\w.-]+)==([^\s;]+)", (TREE / "requirements" / name).read_text(), re.MULTILINE)
        )

    assert pins("runtime.txt").items() <= pins("dev.txt").items()


@pytest.mark.parametrize("name", ["postinst", "prerm", "postrm"])
def test_the_scripts_of_the_package_are_shell_that_ends_at_an_error(name: str) -> None:
    script = PACKAGING / "debian" / name
    assert _run("sh", "-n", script).returncode == 0
    assert "\nset -e\n" in script.read_text()
    assert "#DEBHELPER#" not in script.read_text()


@pytest.mark.parametrize(
    ("rows", "snapshots", "answer"),
    [
        (0, None, ""),
        (0, 0, ""),
        (2, 3, "2 root(s) are prepared"),
        (0, 3, "3 snapshot(s) are containerd's"),
        (None, None, "its metadata cannot be read"),
    ],
)
def test_a_purge_asks_the_metadata_whether_anything_is_in_use(
    rows: int | None, snapshots: int | None, answer: str, tmp_path: Path
) -> None:
    path = tmp_path / "meta.db"
    if rows is None:
        path.write_bytes(b"no database" * 100)
    else:
        with closing(sqlite3.connect(path)) as database, database:
            database.execute("PRAGMA journal_mode=WAL")
            database.execute("CREATE TABLE prepared (path)")
            database.executemany("INSERT INTO prepared VALUES (?)", [(str(n),) for n in range(rows)])
            if snapshots is not None:
                database.execute("CREATE TABLE snapshots (id)")
                database.executemany(
                    "INSERT INTO snapshots VALUES (?)", [(str(n),) for n in range(snapshots)]
                )
    function = (PACKAGING / "debian" / "postrm").read_text().partition("in_use() {")[2].partition("\n}\n")[0]
    done = _run("sh", "-c", f"ROOT={tmp_path} RUN=/nowhere; in_use() {{{function}\n}}; in_use")
    assert done.stdout.strip() == answer
    assert done.returncode == 0
