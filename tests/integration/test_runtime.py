"""Bundles run by real runtimes: what the container sees, what comes back, and that nothing is left.

The root is a plain folder with busybox in it.  Every run is a process of its own, as signals and
terminals belong to processes; the user at a terminal is played with a pty.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import subprocess
import sys
import termios
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from orlop.cli.runtime import choose_runtime
from orlop.errors import FailedPrecondition, NotFound
from orlop.linux.mountinfo import mount_table

pytestmark = [pytest.mark.root, pytest.mark.any_kernel, pytest.mark.timeout(120)]

DRIVER = """
import json, os, sys
from pathlib import Path
from orlop.cli.runtime import run_container
from orlop.errors import Error
from orlop.images.running.bundle import RunOptions, Volume, build_spec, write_bundle, write_etc_files
from orlop.spec.documents import ImageConfig, RootFS, RunConfig

before = set(os.listdir("/proc/self/fd"))
order = json.loads(sys.argv[1])
box, options = Path(order["box"]), order["options"]
options["volumes"] = tuple(Volume(**volume) for volume in options.get("volumes", ()))
bundle, root = box / "bundle", box / "rootfs"
if options.get("hostname"):
    net = options.get("net", "host")
    options["etc"] = write_etc_files(bundle, hostname=options["hostname"], net=net)
config = ImageConfig(rootfs=RootFS(diff_ids=[]), config=RunConfig(**order["image"]))
fd = os.open(root, os.O_PATH)
write_bundle(bundle, build_spec(config, str(root), RunOptions(**options), root_fd=fd))
os.close(fd)
try:
    code = run_container(
        bundle,
        container_id=order["id"],
        state=box / "run/state",
        tty=options.get("tty", False),
        **order["run"],
    )
except Error as exc:
    print(f"{exc.code} {exc.details.get('exit_code')} {exc}", file=sys.stderr)
    code = 125
(box / "fds").write_text(" ".join(set(os.listdir("/proc/self/fd")) - before))  # what was left open
sys.exit(code)
"""
APPLETS = (
    "sh",
    "cat",
    "echo",
    "id",
    "env",
    "stty",
    "ip",
    "ls",
    "mkdir",
    "pwd",
    "sleep",
    "head",
    "yes",
    "true",
    "touch",
    "wc",
    "dd",
    "hostname",
    "readlink",
)


class Box:
    """A root with busybox, a bundle's folder, and ways to run something in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.root = folder / "rootfs"
        self.id = f"orlop-test-{os.getpid()}-{folder.name}"
        self.prefix: list[str] = []
        (folder / "bundle").mkdir()
        for name in ("bin", "etc", "tmp"):
            (self.root / name).mkdir(parents=True)
        busybox = shutil.which("busybox")
        assert busybox is not None, "the tests need busybox-static"
        shutil.copy(busybox, self.root / "bin/busybox")
        for name in APPLETS:
            (self.root / "bin" / name).symlink_to("busybox")
        (self.root / "etc/passwd").write_text("root:x:0:0::/root:/bin/sh\napp:x:1000:1001::/srv:/bin/sh\n")
        (self.root / "etc/group").write_text("root:x:0:\napp:x:1001:\nvideo:x:44:app\n")

    def command(
        self,
        *args: str,
        image: Any = None,
        runtime: str | None = None,
        interactive: bool = False,
        **options: Any,
    ) -> list[str]:
        order = {
            "box": str(self.folder),
            "id": self.id,
            "image": image or {},
            "run": {"runtime": runtime, "interactive": interactive},
            "options": {"args": args, **options},
        }
        return [*self.prefix, sys.executable, "-c", DRIVER, json.dumps(order)]

    def run(self, *args: str, stdin: str | None = None, **options: Any) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            self.command(*args, interactive=stdin is not None, **options),
            input=stdin or "",
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        self.check_clean()
        return done

    def shell(self, script: str, **options: Any) -> str:
        """What a script prints; it must succeed and say nothing else."""
        done = self.run("sh", "-c", script, **options)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    def start(self, *args: str, **options: Any) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            self.command(*args, **options),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def clear(self) -> None:
        """Take away what a test that failed has left running."""
        state = self.folder / "run/state"
        if (state / self.id).exists():
            subprocess.run([choose_runtime(), "--root", state, "delete", "--force", self.id], check=False)

    def check_clean(self) -> None:
        """Nothing of the container may be left: state, mounts, cgroups, descriptors."""
        state = self.folder / "run/state"
        assert not state.exists() or list(state.iterdir()) == []
        below = [entry for entry in mount_table() if os.fsencode(self.folder) in entry.target]
        assert below == []
        assert [found for found, _, _ in os.walk("/sys/fs/cgroup") if self.id in found] == []
        fds = self.folder / "fds"
        assert not fds.exists() or fds.read_text() == ""


@pytest.fixture
def box(workdir: Path) -> Iterator[Box]:
    made = Box(workdir)
    try:
        yield made
        made.check_clean()
    finally:
        made.clear()


# ------------------------------------------------------------------ what comes back


@pytest.mark.parametrize("tty", [False, True])
@pytest.mark.parametrize("code", [0, 1, 42, 125, 255])
def test_the_exit_code_is_the_commands(box: Box, code: int, tty: bool) -> None:
    assert box.run("sh", "-c", f"exit {code}", tty=tty).returncode == code


def test_output_and_errors_arrive_apart_and_whole(box: Box) -> None:
    done = box.run("sh", "-c", "head -c 3000000 /dev/zero; echo oops >&2")
    assert (done.returncode, len(done.stdout), done.stderr) == (0, 3_000_000, "oops\n")


@pytest.mark.parametrize("tty", [False, True])
@pytest.mark.parametrize(
    ("args", "exit_code"),
    [(["nosuch"], "127"), (["/no/such"], "127"), (["/etc/passwd"], "126"), (["/etc"], "126")],
)
def test_a_command_that_cannot_run_is_an_error_and_not_an_output(
    box: Box, args: list[str], exit_code: str, tty: bool
) -> None:
    done = box.run(*args, tty=tty)
    assert done.returncode == 125
    assert done.stdout == ""
    assert done.stderr.split()[:2] == ["NOT_FOUND" if exit_code == "127" else "PERMISSION_DENIED", exit_code]
    assert len(done.stderr.splitlines()) == 1
    assert args[0] in done.stderr or "open executable" in done.stderr


def test_a_bundle_the_runtime_refuses_is_told_in_its_words(box: Box) -> None:
    done = box.run("true", volumes=[{"source": "/no/such/source", "target": "/v"}])
    assert done.returncode == 125
    assert "FAILED_PRECONDITION" in done.stderr
    assert "/no/such/source" in done.stderr


def test_a_name_that_is_taken_does_no_harm_to_its_owner(box: Box) -> None:
    running = box.start("sh", "-c", "echo up; trap 'exit 7' TERM; while :; do sleep 0.1; done")
    assert running.stdout is not None
    assert running.stdout.readline() == b"up\n"
    done = subprocess.run(box.command("true"), capture_output=True, text=True, check=False)
    assert "ALREADY_EXISTS" in done.stderr
    running.send_signal(signal.SIGTERM)
    running.communicate()
    assert running.returncode == 7


# ------------------------------------------------------------------ what the container sees


def test_arguments_environment_user_and_working_directory(box: Box) -> None:
    image = {
        "entrypoint": ["sh", "-c"],
        "env": ["A=image", "B=image"],
        "working_dir": "/srv/new",
        "user": "app",
    }
    done = box.run('echo "$A $B $HOME|$PWD|$HOSTNAME"; id; echo "$0" "$@"', "x y", "", "z", image=image,
                   env=("B=user",), hostname="box")  # fmt: skip
    assert done.stderr == ""
    assert done.stdout.splitlines() == [
        "image user /srv|/srv/new|box",
        "uid=1000(app) gid=1001(app) groups=44(video),1001(app)",
        "x y  z",
    ]


def test_the_kernels_file_systems_are_as_people_expect(box: Box) -> None:
    assert box.shell(
        "echo a >/dev/null; head -c 4 /dev/zero | wc -c; readlink /dev/stdin; readlink /dev/fd"
    ) == ("4\n/proc/self/fd/0\n/proc/self/fd\n")
    assert box.shell("for d in full null random tty urandom zero; do [ -c /dev/$d ] || echo $d; done") == ""
    assert box.shell("ls /proc/1/exe /dev/shm /dev/mqueue /sys/class >/dev/null; echo $$") == "1\n"
    script = """
        for path in /sys/x /proc/sys/kernel/hostname /sys/fs/cgroup/pids/x; do
            if { echo x >$path; } 2>/dev/null; then echo $path was written; fi
        done
        cat /proc/kcore /proc/keys 2>/dev/null; ls /sys/firmware
    """
    assert box.shell(script + "true") == ""


def test_net_host_has_the_hosts_network_and_names(box: Box) -> None:
    there = box.shell(
        "cat /etc/resolv.conf; hostname; cat /etc/hostname; readlink /proc/self/ns/net", hostname="box"
    )
    resolv = Path("/etc/resolv.conf").read_text()
    assert there == f"{resolv}box\nbox\n{os.readlink('/proc/self/ns/net')}\n"
    assert box.run("sh", "-c", "echo x >/etc/hosts", hostname="box").returncode == 1  # read-only


def test_net_none_has_only_a_loopback_that_is_up(box: Box) -> None:
    links = box.shell("ip -o link", net="none", hostname="box").splitlines()
    names = [line.split(":")[1].strip() for line in links]
    # The kernel's own idle tunnels (tunl0, sit0) are in every network namespace where they are built in.
    assert [name for name in names if "@NONE" not in name] == ["lo"]
    assert "inet 127.0.0.1/8" in box.shell("ip addr show up", net="none")
    assert "127.0.1.1\tbox" in box.shell("cat /etc/hosts", net="none", hostname="box")


def test_a_read_only_root_takes_no_write(box: Box) -> None:
    done = box.run("touch", "/x", read_only=True)
    assert (done.returncode, "Read-only" in done.stderr) == (1, True)
    assert box.run("touch", "/dev/shm/x", read_only=True).returncode == 0


def test_the_capabilities_are_the_usual_ones(box: Box) -> None:
    assert "CapEff:\t00000000a80425fb\n" in box.shell("cat /proc/self/status")  # Docker's fourteen
    assert "CapEff:\t0000000000000000\n" in box.shell("cat /proc/self/status", user="app")


# ------------------------------------------------------------------ volumes


def test_volumes_are_writable_or_read_only_with_all_below(box: Box) -> None:
    host = box.folder / "host"
    (host / "below").mkdir(parents=True)
    (host / "file").write_text("from the host\n")
    subprocess.run(["mount", "-t", "tmpfs", "none", host / "below"], check=True)
    try:
        volumes = [
            {"source": str(host), "target": "/rw"},
            {"source": str(host), "target": "/ro", "read_only": True},
            {"source": str(host / "file"), "target": "/etc/file", "read_only": True},
        ]
        done = subprocess.run(
            box.command(
                "sh",
                "-c",
                "cat /etc/file; echo 1 >/rw/new; echo 2 >/rw/below/new;"
                "for f in /ro/x /ro/below/x /etc/file; do { echo 3 >$f; } 2>/dev/null && echo $f; done; true",
                volumes=volumes,
            ),
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.stdout, done.stderr, done.returncode) == ("from the host\n", "", 0)
        assert (host / "new").read_text() == "1\n"
        assert (host / "below/new").read_text() == "2\n"
    finally:
        subprocess.run(["umount", host / "below"], check=True)


@pytest.mark.hostile(27)
@pytest.mark.parametrize("link", ["{outside}", "../../../../../../../..{outside}", "/proc/1/root{outside}"])
def test_a_link_at_a_volumes_target_does_not_lead_out(box: Box, link: str) -> None:
    outside, source = box.folder / "outside", box.folder / "source"
    for folder in (outside, source):
        folder.mkdir()
    (source / "secret").touch()
    (box.root / "target").symlink_to(link.format(outside=outside))
    box.run("sh", "-c", "echo x >/target/written", volumes=[{"source": str(source), "target": "/target/sub"}])
    assert list(outside.iterdir()) == []


# ------------------------------------------------------------------ standard input and output


def test_input_is_passed_on_to_its_end_only_if_asked_for(box: Box) -> None:
    text = "line\n" * 100_000
    assert box.run("cat", stdin=text).stdout == text
    assert box.run("cat").stdout == ""
    assert box.shell("readlink /proc/self/fd/0") == "/dev/null\n"


def test_what_the_user_redirects_to_stays_the_users(box: Box) -> None:
    target = box.folder / "out"
    with target.open("wb") as file:
        subprocess.run(box.command("id", "-u", user="app"), stdout=file, stderr=file, check=True)
    assert target.read_text() == "1000\n"
    assert (target.stat().st_uid, target.stat().st_gid) == (os.getuid(), os.getgid())


def test_a_reader_that_leaves_ends_the_container(box: Box) -> None:
    running = box.start("yes")
    assert running.stdout is not None
    assert running.stdout.readline() == b"y\n"
    running.stdout.close()
    assert running.wait(30) != 0


# ------------------------------------------------------------------ signals


@pytest.mark.parametrize("name", ["TERM", "INT", "HUP", "QUIT", "USR1", "USR2"])
def test_a_signal_reaches_the_command(box: Box, name: str) -> None:
    number = signal.Signals[f"SIG{name}"]
    script = f"trap 'echo got {name}; exit {128 + number}' {name}; echo up; while :; do sleep 0.1; done"
    running = box.start("sh", "-c", script)
    assert running.stdout is not None
    assert running.stdout.readline() == b"up\n"
    running.send_signal(number)
    out, _ = running.communicate(timeout=30)
    assert (running.returncode, out) == (128 + number, f"got {name}\n".encode())


def test_a_command_that_a_signal_ended_gives_128_and_its_number(box: Box) -> None:
    running = box.start("sleep", "1000")
    pid = pid_of(box)
    os.kill(pid, signal.SIGKILL)
    running.communicate(timeout=30)
    assert running.returncode == 128 + signal.SIGKILL


def pid_of(box: Box) -> int:
    """The pid of the box's container, as soon as its command runs."""
    state = box.folder / "run/state" / box.id
    for _ in range(3000):
        done = subprocess.run(
            [choose_runtime(), "--root", str(state.parent), "state", box.id],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode == 0 and json.loads(done.stdout)["status"] == "running":
            return int(json.loads(done.stdout)["pid"])
    raise AssertionError("the container did not start")


def test_insisting_kills_a_command_that_ignores_signals(box: Box) -> None:
    running = box.start("sh", "-c", "trap 'echo no' INT; echo up; while :; do sleep 0.05; done")
    assert running.stdout is not None
    assert running.stdout.readline() == b"up\n"
    for _ in range(2):
        running.send_signal(signal.SIGINT)
        assert running.stdout.readline() == b"no\n"
    running.send_signal(signal.SIGINT)
    running.communicate(timeout=30)
    assert running.returncode == 128 + signal.SIGKILL


def test_a_signal_before_the_command_runs_ends_it_all(box: Box, workdir: Path) -> None:
    slow = workdir / "slow-runtime"
    real = choose_runtime()
    # Says when it was called and waits to be told to go on.
    slow.write_text(
        f"#!/bin/sh\ncase \"$*\" in *' create '*) echo >{workdir}/called; read line <{workdir}/go;; esac\n"
        f'exec {real} "$@"\n'
    )
    slow.chmod(0o755)
    os.mkfifo(workdir / "called")
    os.mkfifo(workdir / "go")
    running = box.start("sleep", "1000", runtime=str(slow))
    assert (workdir / "called").read_text() == "\n"
    running.send_signal(signal.SIGTERM)
    (workdir / "go").write_text("\n")
    running.communicate(timeout=30)
    assert running.returncode == 128 + signal.SIGTERM


def test_insisting_ends_a_runtime_that_hangs(box: Box, workdir: Path) -> None:
    hung = workdir / "hung-runtime"
    hung.write_text(
        f"#!/bin/sh\ncase \"$*\" in *' create '*) echo >{workdir}/called; exec sleep 1000;; esac\nexit 0\n"
    )
    hung.chmod(0o755)
    os.mkfifo(workdir / "called")
    running = box.start("true", runtime=str(hung))
    assert (workdir / "called").read_text() == "\n"
    while running.poll() is None:  # signals that come too close together count as one
        running.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            running.wait(0.05)
    running.communicate(timeout=30)
    # The last one may have come when all was over and the handlers gone.
    assert running.returncode in {128 + signal.SIGTERM, -signal.SIGTERM}


def test_signals_that_were_ignored_stay_ignored(box: Box) -> None:
    box.prefix = ["nohup"]
    running = box.start(
        "sh", "-c", "trap 'exit 3' HUP; echo up; read x </dev/null; sleep 0.5; echo still here"
    )
    assert running.stdout is not None
    assert running.stdout.readline() == b"up\n"
    running.send_signal(signal.SIGHUP)
    out, _ = running.communicate(timeout=30)
    assert (running.returncode, out) == (0, b"still here\n")


def test_the_exit_code_survives_a_parent_that_ignores_its_children(box: Box) -> None:
    ignore = "import os, signal, sys; signal.signal(signal.SIGCHLD, signal.SIG_IGN)"
    box.prefix = [sys.executable, "-c", f"{ignore}; os.execvp(sys.argv[1], sys.argv[1:])"]
    assert box.run("sh", "-c", "exit 6").returncode == 6


# ------------------------------------------------------------------ terminals


class User:
    """Someone at a terminal: reads the screen, types, changes its size, goes away."""

    def __init__(self, box: Box, *args: str, **options: Any) -> None:
        self.screen, self.terminal = os.openpty()
        termios.tcsetwinsize(self.terminal, (33, 99))
        self.before = termios.tcgetattr(self.terminal)
        self.text = ""
        self.process = subprocess.Popen(
            box.command(*args, tty=True, interactive=True, **options),
            stdin=self.terminal,
            stdout=self.terminal,
            stderr=self.terminal,
            start_new_session=True,
        )

    def type(self, keys: str) -> None:
        os.write(self.screen, keys.encode())

    def see(self, text: str) -> None:
        """Read on until ``text`` shows up."""
        while text not in self.text:
            ready, _, _ = select.select([self.screen], [], [], 30)
            assert ready, f"{text!r} never came, but {self.text!r}"
            self.text += os.read(self.screen, 65_536).decode()
        self.text = self.text.partition(text)[2]

    def leave(self) -> None:
        os.close(self.screen)
        self.screen = -1

    def end(self) -> int:
        code = self.process.wait(30)
        if self.screen >= 0:
            assert termios.tcgetattr(self.terminal) == self.before
            self.leave()
        os.close(self.terminal)
        return code


def test_a_terminal_in_the_container_behaves_as_one(box: Box) -> None:
    user = User(box, "sh", "-c", "stty size; echo $TERM; exec sh -i")
    user.see("33 99\r\n")
    user.see("xterm\r\n")
    user.see("# ")
    user.type("echo $((40+2)); cat\r")
    user.see("42\r\n")
    user.type("hi\r")
    user.see("hi\r\nhi\r\n")  # the terminal's echo, and cat's, which therefore runs
    user.type("\x03")  # Ctrl-C is a byte on the way and a signal only inside
    user.see("^C")
    user.see("# ")
    user.type("echo $?\r")
    user.see("130\r\n")
    user.see("# ")
    user.type("exit 9\r")
    assert user.end() == 9
    box.check_clean()


def test_a_resized_window_resizes_the_containers(box: Box) -> None:
    user = User(box, "sh", "-c", "trap 'stty size; exit 0' WINCH; echo up; while :; do sleep 0.1; done")
    user.see("up\r\n")
    termios.tcsetwinsize(user.terminal, (12, 34))
    os.kill(user.process.pid, signal.SIGWINCH)  # what the kernel does for a controlling terminal
    user.see("12 34\r\n")
    assert user.end() == 0


def test_output_up_to_the_last_byte_reaches_the_screen(box: Box) -> None:
    user = User(box, "sh", "-c", "yes 0123456789 | head -n 20000; echo the end")
    user.see("the end\r\n")
    assert user.end() == 0


def test_closing_the_window_ends_the_shell(box: Box) -> None:
    user = User(box, "sh")
    user.see("# ")
    user.leave()
    user.end()
    box.check_clean()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_terminal_is_itself_again_after_a_signal(box: Box, number: signal.Signals) -> None:
    user = User(box, "sh", "-c", "trap 'exit 5' TERM INT; echo up; while :; do sleep 0.1; done")
    user.see("up\r\n")
    assert not termios.tcgetattr(user.terminal)[3] & termios.ICANON  # raw meanwhile
    user.process.send_signal(number)
    assert user.end() == 5


def test_a_terminal_works_without_one_outside(box: Box) -> None:
    assert box.shell("stty size; [ -t 0 ] && [ -t 1 ] && echo terminal", tty=True) == "24 80\nterminal\n"
    done = box.run("sh", "-c", "cat; echo done", tty=True, stdin="typed\n")
    assert done.returncode == 0
    assert done.stdout.endswith("typed\ndone\n")


# ------------------------------------------------------------------ which runtime


def test_crun_does_as_well_where_cgroups_let_it(box: Box) -> None:
    # An empty v2 tree makes any hybrid machine look like one with v1 alone, for this process's children.
    hide = '[ -d /sys/fs/cgroup/unified ] && mount -t tmpfs none /sys/fs/cgroup/unified; exec "$@"'
    box.prefix = ["unshare", "--mount", "--propagation", "slave", "sh", "-c", hide, "sh"]
    done = box.run("sh", "-c", "echo $A; cat; exit 3", stdin="in", env=("A=b",), user="app", hostname="box",
                   runtime="crun")  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (3, "b\nin", "")
    done = box.run("sh", "-c", "stty size", tty=True, runtime="crun", net="none")
    assert (done.returncode, done.stdout) == (0, "24 80\n")
    done = box.run("nosuch", runtime="crun")
    assert done.stderr.split()[:2] == ["NOT_FOUND", "127"]
    user = User(box, "sh", "-c", "echo up; exec cat", runtime="crun", volumes=[
        {"source": str(box.folder / "bundle"), "target": "/b", "read_only": True}])  # fmt: skip
    user.see("up\r\n")
    user.type("\x04")
    assert user.end() == 0


def test_the_runtime_is_the_one_asked_for_or_one_that_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    programs, cgroups = tmp_path / "bin", tmp_path / "cgroup"
    for folder in (programs, cgroups / "unified"):
        folder.mkdir(parents=True)
    monkeypatch.setenv("PATH", str(programs))
    with pytest.raises(FailedPrecondition, match="none of crun, runc is installed"):
        choose_runtime(cgroups=cgroups)
    for name in ("runc", "crun"):
        (programs / name).write_text("#!/bin/sh\n")
        (programs / name).chmod(0o755)
    assert choose_runtime(cgroups=cgroups) == str(programs / "crun")
    (cgroups / "unified/cgroup.controllers").write_text("\n")
    assert choose_runtime(cgroups=cgroups) == str(programs / "crun")
    (cgroups / "unified/cgroup.controllers").write_text("hugetlb\n")
    assert choose_runtime(cgroups=cgroups) == str(programs / "runc")
    assert choose_runtime("crun", cgroups=cgroups) == str(programs / "crun")
    assert choose_runtime(str(programs / "runc")) == str(programs / "runc")
    (programs / "runc").unlink()
    with pytest.raises(FailedPrecondition, match="side by side"):
        choose_runtime(cgroups=cgroups)
    with pytest.raises(NotFound, match="use runtime nosuch"):
        choose_runtime("nosuch")
