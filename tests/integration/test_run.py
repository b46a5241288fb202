"""``orlop run`` from the image to the exit code, with a real store and a real runtime."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from conftest import StoreDirs
from support import images
from support.layers import Layer

pytestmark = pytest.mark.root

Run = Callable[..., "subprocess.CompletedProcess[str]"]

APPLETS = ("sh", "cat", "echo", "id", "pwd", "env", "ls", "stty", "sleep", "touch", "ip", "hostname", "mount")


@pytest.fixture
def box(run_cli: Run, workdir: Path) -> str:
    """An image of busybox whose config says how to run it."""
    layer = (
        Layer()
        .folder("bin")
        .file("bin/busybox", Path("/bin/busybox").read_bytes(), mode=0o755)
        .folder("etc")
        .file("etc/passwd", b"root:x:0:0::/root:/bin/sh\nworker:x:1234:99::/home/worker:/bin/sh\n")
        .file("etc/group", b"root:x:0:\nstaff:x:99:\nextra:x:77:worker\n")
        .folder("srv", uid=1234)
        .folder("tmp", mode=0o1777)
    )
    for applet in APPLETS:
        layer.symlink(f"bin/{applet}", "busybox")
    config = {
        "config": {
            "User": "worker",
            "Env": ["PATH=/bin", "FROM_IMAGE=yes"],
            "WorkingDir": "/srv",
            "Entrypoint": ["/bin/sh", "-c"],
            "Cmd": ["id -u; pwd; echo $FROM_IMAGE"],
        }
    }
    layout = images.write_layout(workdir / "box", {"v1": images.make_image([layer.tar()], config=config)})
    run_cli("import", layout, "--name", "localhost/box", check=True)
    return "localhost/box"


def test_the_image_says_user_folder_environment_and_command(run_cli: Run, box: str) -> None:
    assert run_cli("run", box).stdout == "1234\n/srv\nyes\n"


def test_flags_override_the_image(run_cli: Run, box: str, workdir: Path) -> None:
    (workdir / "shared").mkdir()
    (workdir / "shared/file").write_text("from outside")
    done = run_cli(
        *("run", "--rm", "-e", "A=1", "-e", "FROM_IMAGE=no", "-w", "/tmp", "-u", "0:99", "--net", "none"),
        *("-v", f"{workdir}/shared:/in:ro", "--hostname", "boxed", "--entrypoint", "/bin/sh", box, "-c"),
        "id -u; id -g; pwd; echo $A $FROM_IMAGE; cat /in/file; echo; hostname; touch /in/x 2>/dev/null || echo ro",
    )
    assert done.stdout == "0\n99\n/tmp\n1 no\nfrom outside\nboxed\nro\n", done.stderr


def test_the_exit_code_and_standard_input_pass_through(run_cli: Run, box: str) -> None:
    done = run_cli("run", "-i", box, "cat; exit 42", input="typed\n")
    assert (done.returncode, done.stdout) == (42, "typed\n")
    assert run_cli("run", box, "cat; echo end", input="not for you").stdout == "end\n"


def test_the_usual_places_are_there(run_cli: Run, box: str) -> None:
    script = "ls /proc/self/status /sys/kernel /dev/null /dev/pts /dev/shm -d; cat /etc/resolv.conf"
    done = run_cli("run", box, script)
    assert done.returncode == 0, done.stderr
    assert Path("/etc/resolv.conf").read_text() in done.stdout
    assert run_cli("run", "--net", "none", box, "ls /sys/class/net").stdout == "lo\n"


def test_nothing_is_left_behind(run_cli: Run, box: str, store_dirs: StoreDirs) -> None:
    assert run_cli("run", box, "touch /srv/x; exit 1").returncode == 1
    assert run_cli("ps", "--json").stdout.strip() == "[]"
    assert list((store_dirs.root / "prepared").iterdir()) == []
    mounted = Path("/proc/self/mounts").read_text()
    assert str(store_dirs.run) not in mounted


def test_a_kept_root_can_be_committed(run_cli: Run, box: str, store_dirs: StoreDirs) -> None:
    target = store_dirs.work / "kept"
    assert run_cli("run", "--path", target, box, "echo made > /srv/made").returncode == 0
    run_cli("commit", target, "localhost/made", check=True)
    assert run_cli("run", "localhost/made", "cat /srv/made").stdout == "made\n"
    run_cli("cleanup", target, check=True)


def test_a_command_that_is_not_there_is_127(run_cli: Run, box: str) -> None:
    done = run_cli("run", "--entrypoint", "", box, "/no/such")
    assert done.returncode == 127
    assert "/no/such" in done.stderr


def test_a_terminal_has_a_size_and_talks_both_ways(box: str, store_dirs: StoreDirs) -> None:
    command = [
        *(sys.executable, "-m", "orlop", "--root", str(store_dirs.root), "--run", str(store_dirs.run)),
        *("run", "-it", box, "stty size; read line; echo got $line; exit 5"),
    ]
    pid, master = pty.fork()
    if pid == 0:
        os.execv(command[0], command)
    import fcntl
    import struct
    import termios

    fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", 33, 101, 0, 0))
    seen = b""
    sent = False
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if select.select([master], [], [], 0.1)[0]:
            try:
                data = os.read(master, 4096)
            except OSError:
                break  # the terminal is gone: the command has ended
            if not data:
                break
            seen += data
        if not sent and b"33 101" in seen:
            os.write(master, b"hello\n")
            sent = True
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 5, seen
    assert b"got hello" in seen
