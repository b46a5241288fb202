"""Who uses a mount, and removal of trees that have mounts in them: what needs root to set up."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from orlop.linux import files, mount
from orlop.linux.mountinfo import mount_table
from orlop.linux.processes import mount_points_of, users_of

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: no user of a mount was looked for"),
]


@pytest.fixture
def room(tmp_path: Path) -> Iterator[Path]:
    """A tmpfs with the folders of an overlay; unmounted afterwards."""
    mount.perform("tmpfs", "tmpfs", str(tmp_path), [])
    for name in ("lower", "upper", "work", "merged"):
        (tmp_path / name).mkdir()
    (tmp_path / "lower" / "file").write_bytes(bytes(4096))
    yield tmp_path
    for entry in reversed(mount_table()):
        target = Path(os.fsdecode(entry.target))
        if target == tmp_path or tmp_path in target.parents:
            mount.umount(target, detach=True)


def options(room: Path) -> list[str]:
    return [f"lowerdir={room}/lower", f"upperdir={room}/upper", f"workdir={room}/work"]


@pytest.fixture
def merged(room: Path) -> Path:
    mount.perform("overlay", "overlay", str(room / "merged"), options(room))
    return room / "merged"


USES = [
    ("its working directory", "os.chdir(sys.argv[1])"),
    ("its root", "os.chroot(sys.argv[1])"),
    ("an open file", "f = open(sys.argv[1] + '/file')"),
    (
        "a mapped file",
        "f = open(sys.argv[1] + '/file', 'rb'); m = mmap.mmap(f.fileno(), 0, prot=1); f.close()",
    ),
]
# mmap(2) by Python keeps a descriptor of its own; the last case closes all.
CLOSE = "; os.closerange(3, 100)"


@pytest.mark.parametrize(("why", "action"), USES)
def test_a_process_is_found_by_what_it_uses(merged: Path, why: str, action: str) -> None:
    action += CLOSE if "mapped" in why else ""
    script = f"import mmap, os, sys; {action}; print('ready', flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", script, str(merged)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        # Whatever makes a mount namespace meanwhile, such as another test, has a copy of the mount in it.
        users = [user for user in users_of(merged.parent / "upper") if "has it mounted" not in user.why]
        assert [(user.pid, user.why) for user in users] == [(child.pid, why)]
        comm = Path(f"/proc/{child.pid}/comm").read_text().strip()
        assert str(users[0]) == f"{comm} ({child.pid})"
        child.kill()


def test_a_mount_that_nobody_uses_has_no_users_but_a_place(merged: Path) -> None:
    assert users_of(merged.parent / "upper", holders=False) == []
    assert mount_points_of(merged.parent / "upper") == [str(merged)]
    assert mount_points_of(merged.parent / "lower") == []


def test_an_unmounted_upper_has_neither(room: Path) -> None:
    assert users_of(room / "upper") == []
    assert mount_points_of(room / "upper") == []


def test_another_mount_namespace_is_named_by_its_oldest_process(room: Path) -> None:
    script = 'mount -t overlay o -o "$0" "$1" && echo ready && read line'
    command = ["unshare", "-m", "--propagation", "slave", "sh", "-c", script]
    command += [",".join(options(room)), str(room / "merged")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        (user,) = users_of(room / "upper")
        assert (user.pid, user.name) == (child.pid, "sh")
        assert user.why == f"has it mounted at {room}/merged"
        assert mount_points_of(room / "upper") == []
        child.kill()


@pytest.mark.parametrize("kind", ["tmpfs", "bind"])
@pytest.mark.parametrize("where", ["", "a", "a/b"])
def test_removal_stops_at_a_mount_and_spares_what_is_in_it(room: Path, kind: str, where: str) -> None:
    top = room / "top"
    (top / "a" / "b").mkdir(parents=True)
    (room / "lower" / "kept").touch()
    target = str(top / where) if where else str(top)
    mount.perform(kind, str(room / "lower"), target, ["bind"] if kind == "bind" else [])
    (Path(target) / "kept").touch()
    with pytest.raises(OSError, match=r"busy|cross-device") as caught:
        files.remove_tree(top)
    assert caught.value.errno in {errno.EBUSY, errno.EXDEV}
    assert (Path(target) / "kept").exists()
    mount.umount(target)
    files.remove_tree(top)
    assert not top.exists()


def test_removal_of_a_file_that_is_a_mount_point_stops(room: Path) -> None:
    (room / "top").mkdir()
    (room / "top" / "file").touch()
    mount.perform("bind", str(room / "lower" / "file"), str(room / "top" / "file"), ["bind"])
    with pytest.raises(OSError, match="busy"):
        files.remove_tree(room / "top")
    assert (room / "lower" / "file").exists()


def test_an_unprivileged_owner_can_remove_folders_that_deny_it(room: Path) -> None:
    room.chmod(0o777)
    script = """
import ctypes, os, sys
from orlop.linux import files
os.chdir(sys.argv[1])
# After the imports, as nobody may be unable to read the interpreter's folders.
os.setgroups([]); os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)
os.makedirs("top/a/b/c"); os.makedirs("top/d/e")
for name in ("top/a/b/c/f", "top/d/e/f", "top/f"):
    open(name, "w").close()
modes = {"top/a/b/c": 0, "top/a/b": 0o400, "top/a": 0o500, "top/d/e": 0o100, "top/d": 0o600, "top": 0}
for name, mode in modes.items():
    os.chmod(name, mode)
files.remove_tree("top")
print(os.path.lexists("top"))
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(room)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "False\n", done.stderr


def test_a_folder_that_became_a_mount_point_is_not_entered(room: Path) -> None:
    """The second look: something may be mounted between the first and the descent."""
    (room / "top").mkdir()
    mount.perform("bind", str(room / "lower"), str(room / "top"), ["bind"])
    parent = os.open(room, os.O_RDONLY)
    try:
        with pytest.raises(OSError, match="cross-device"):
            files._open_folder(parent, "top")
    finally:
        os.close(parent)
