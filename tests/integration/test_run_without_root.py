"""``orlop run`` by users without root: in a namespace of many ids or of one, with bwrap alone, with nothing.

A way is what runs the container: the runtime that orlop chooses (``auto``), crun, bwrap, a changed root, or
``--exec``.  The user is a real one (`support.users`).
"""

from __future__ import annotations

import os
import pty
import re
import select
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from conftest import StoreDirs
from support import disks, images, users
from support.layers import Layer
from support.users import UID, Mode, User

pytestmark = [pytest.mark.root, pytest.mark.any_kernel, pytest.mark.timeout(180)]

APPLETS = ("sh", "cat", "echo", "id", "pwd", "env", "ls", "stty", "sleep", "touch", "ip", "hostname", "grep")
INSIDE = [(mode, way) for mode in ("subids", "single") for way in ("auto", "crun", "bwrap", "chroot")]
MOST = [pair for pair in INSIDE if pair not in {("single", "crun"), ("single", "bwrap")}]
PLAIN = [("plain", "setuid-bwrap"), ("plain", "exec")]
EVERY = [*MOST, *PLAIN]
# An empty v2 tree makes a hybrid machine look like one with v1 alone: crun refuses hybrid ones.
HIDE = '[ -d /sys/fs/cgroup/unified ] && mount -t tmpfs none /sys/fs/cgroup/unified; exec "$@"'


class Somebody:
    """A user with an image ``box``, and the options and the surroundings that make one way of running."""

    def __init__(self, user: User, way: str, tools: Path) -> None:
        self.user = user
        self.way = way
        options = {
            "auto": (),
            "exec": ("--exec",),
            "setuid-bwrap": ("--runtime", os.fspath(tools / "bwrap")),
        }
        self.options = options.get(way, ("--runtime", way))

    def command(self, *args: str, **options) -> list[str]:
        """What root starts to have the user run ``orlop run ARGS``."""
        python = [sys.executable, "-m", "orlop"]
        before = [*python, "unshare", "sh", "-c", HIDE, "sh"] if self.way == "crun" else []
        return self.user.command(*before, *python, "run", "-q", *self.options, *args, **options)

    def run(self, *args: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*args),
            capture_output=True,
            text=True,
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            timeout=120,
            check=False,
        )

    def shell(self, script: str, *options: str) -> str:
        """What a script prints; it must succeed."""
        done = self.run(*options, "box", "sh", "-c", script)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def left(self) -> list[str]:
        """What runs and roots have left in the user's folders."""
        containers = self.user.runtime / "orlop-containers"
        prepared = self.user.data / "orlop/prepared"
        return [
            str(path)
            for path in [*containers.glob("*"), *prepared.glob("*")]
            if path.name != ".runtime" or any(path.iterdir())
        ]


class Folk:
    """The users of each mode, who have the image.  It is imported once: a test gets a copy of it, at its place."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def make(self, mode: Mode, way: str) -> Somebody:
        """A user as if just made; there is one of a mode at a time."""
        folder, made = self._folder / mode, self._folder / f"{mode}-made"
        if not made.exists():
            self._make(folder, mode)
            folder.rename(made)
        if folder.exists():
            disks.remove(folder)  # of a test that failed
        subprocess.run(["cp", "-a", "--sparse=always", made, folder], check=True)
        return Somebody(User(folder=folder, mode=mode), way, folder / "tools")

    def _make(self, folder: Path, mode: Mode) -> None:
        bwrap = shutil.which("bwrap")
        assert bwrap is not None, "the tests need bubblewrap"
        user = users.make(folder, mode)
        for name in ("outside", "tools"):
            (folder / name).mkdir()
        shutil.copy(bwrap, folder / "tools/bwrap")
        (folder / "tools/bwrap").chmod(0o755 | stat.S_ISUID)
        layer, config = _layer(f"{folder}/outside"), {"Env": ["PATH=/nowhere:/bin", "FROM_IMAGE=yes"]}
        config["Cmd"] = ["sh", "-c", "echo by default"]
        image = images.make_image([layer.tar()], config={"config": config})
        user.orlop("import", images.write_layout(folder / "box", {"v1": image}), "--name", "box", check=True)

    def clear(self) -> None:
        """The users of a test go, and what they left running or mounted fails it."""
        for mode in ("subids", "single", "plain"):
            if (folder := self._folder / mode).exists():
                disks.end(folder)


@pytest.fixture(scope="module")
def folk(lab: Path) -> Iterator[Folk]:
    folder = lab / "without-root"
    folder.mkdir()
    yield Folk(folder)
    disks.remove(folder)


@pytest.fixture
def somebody(folk: Folk) -> Iterator[Callable[[Mode, str], Somebody]]:
    yield folk.make
    folk.clear()


def _layer(outside: str) -> Layer:
    layer = Layer()
    for folder in ("bin", "etc", "srv", "usr", "usr/lib", "usr/bin"):
        layer.folder(folder)
    layer.folder("tmp", mode=0o1777)
    layer.file("bin/busybox", Path("/bin/busybox").read_bytes(), mode=0o755)
    layer.file("bin/script", b"#!/bin/sh\necho script $1 $2\n", mode=0o755)
    layer.file("bin/by-env", b"#!/usr/bin/env cat\nby env\n", mode=0o755)
    layer.symlink("usr/bin/env", "/bin/busybox")
    layer.file("bin/not-executable", b"#!/bin/sh\n", mode=0o644)
    layer.file("etc/passwd", b"root:x:0:0::/root:/bin/sh\nworker:x:1234:99::/srv:/bin/sh\n")
    layer.file("etc/group", b"root:x:0:\nmany:x:5:root\nextra:x:77:worker\n")
    for place in [*reversed(Path(outside).parents), Path(outside)][1:]:
        layer.folder(str(place).lstrip("/"))
    layer.symlink("out", outside)  # there is a folder of this name in the image, and one on the machine
    for applet in APPLETS:
        layer.symlink(f"bin/{applet}", "/bin/busybox")
    _dynamic_cat(layer)
    return layer


def _dynamic_cat(layer: Layer) -> None:
    """This machine's cat with its loader and libraries."""
    layer.file("bin/dynamic-cat", Path("/bin/cat").read_bytes(), mode=0o755)
    said = subprocess.run(["ldd", "/bin/cat"], capture_output=True, text=True, check=True).stdout
    for path in re.findall(r"(/\S+) \(0x", said):
        parents = [str(parent) for parent in reversed(Path(path).parents)][1:]
        for parent in parents:
            if parent not in {"/usr", "/usr/lib"}:
                layer.folder(parent.lstrip("/"))
        layer.file(path.lstrip("/"), Path(path).read_bytes(), mode=0o755)


def in_turn(name: str, pairs: list[tuple[str, str]], turn: int, *, share: int = 3) -> pytest.MarkDecorator:
    """A test in all ways: some of them, others from test to test, and all in a long soak."""
    apart = len(pairs) // share + (len(pairs) % share > 0)
    chosen = {pairs[(turn + apart * step) % len(pairs)] for step in range(share)}
    rest = (pytest.mark.soak, pytest.mark.large)
    ways = [pytest.param(pair, id="-".join(pair), marks=() if pair in chosen else rest) for pair in pairs]
    return pytest.mark.parametrize(name, ways, indirect=True)


@pytest.fixture
def anybody(request: pytest.FixtureRequest, somebody: Callable[[Mode, str], Somebody]) -> Somebody:
    """Each user in the ways that differ."""
    return somebody(*request.param)


@pytest.fixture
def insider(request: pytest.FixtureRequest, somebody: Callable[[Mode, str], Somebody]) -> Somebody:
    """Those who have a namespace, in each way."""
    return somebody(*request.param)


# ------------------------------------------------------------------ in every way


@in_turn("anybody", EVERY, 0)
def test_output_input_and_the_exit_code_are_passed_on_and_nothing_is_left(anybody: Somebody) -> None:
    done = anybody.run("-i", "-e", "A=b c", "box", "sh", "-c", "cat; echo $A $FROM_IMAGE; echo err >&2; exit 42",
                       stdin="typed\n")  # fmt: skip
    assert (done.returncode, done.stdout) == (42, "typed\nb c yes\n"), done.stderr
    assert "err\n" in done.stderr
    assert anybody.run("box").stdout == "by default\n"
    assert anybody.run("box", "sh", "-c", "cat; echo end", stdin="not for you").stdout == "end\n"
    assert anybody.left() == []
    assert anybody.user.orlop("ps", "-q", check=True).stdout == ""


@in_turn("anybody", EVERY, 1)
def test_a_command_that_is_not_there_is_127_and_one_that_cannot_run_126(anybody: Somebody) -> None:
    for command, code in (("nosuch", 127), ("/no/such", 127), ("/bin/not-executable", 126), ("/srv", 126)):
        done = anybody.run("box", command)
        assert (command, done.returncode) == (command, code), done.stderr
        assert command in done.stderr or (anybody.way == "crun" and code == 126)
    assert anybody.left() == []


@in_turn("anybody", EVERY, 2)
def test_what_was_written_is_committed_from_a_kept_root(anybody: Somebody) -> None:
    anybody.shell("echo made > made && echo $PWD", "--name", "kept", "-w", "/srv")
    root = anybody.user.runtime / "orlop-containers/kept/rootfs"
    anybody.user.orlop("commit", root, "made", check=True)
    anybody.user.orlop("cleanup", root, check=True)
    assert anybody.run("-w", "/srv", "made", "cat", "made").stdout == "made\n"
    assert anybody.left() == []


@in_turn("anybody", EVERY, 3)
def test_a_signal_reaches_the_command(anybody: Somebody) -> None:
    script = "trap 'echo told; exit 5' TERM; echo up; while :; do sleep 0.1; done"
    with subprocess.Popen(anybody.command("box", "sh", "-c", script), stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        process.terminate()
        assert process.stdout.read() == b"told\n"
        assert process.wait(60) == 5
    assert anybody.left() == []


@in_turn("anybody", EVERY, 4)
def test_a_terminals_interrupt_arrives_once(anybody: Somebody) -> None:
    script = "trap 'echo told' INT; stty size; echo up; sleep 1; sleep 1; echo end; exit 6"
    pid, master = pty.fork()
    if pid == 0:
        command = anybody.command("-it", "box", "sh", "-c", script)
        os.execvp(command[0], command)
    seen, sent, deadline = b"", False, time.monotonic() + 60
    while time.monotonic() < deadline:
        if select.select([master], [], [], 0.1)[0]:
            try:
                seen += os.read(master, 4096)
            except OSError:
                break  # the terminal is gone: the command has ended
        if not sent and b"up\r\n" in seen:
            os.write(master, b"\x03")
            sent = True
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    os.close(master)
    if "bwrap" in anybody.way:  # it has no handler of its own, and takes the command along
        assert (code, seen.count(b"end")) == (128 + signal.SIGINT, 0), seen
    else:
        assert (code, seen.count(b"told"), seen.count(b"end")) == (6, 1, 1), seen
    assert anybody.left() == []


# ------------------------------------------------------------------ with a namespace


@in_turn("insider", INSIDE, 0, share=2)
def test_inside_one_is_root_and_sees_the_image_alone(insider: Somebody) -> None:
    script = (
        "id -u; id -g; hostname; pwd; ls -d /proc/self /sys/kernel /dev/null /dev/shm; echo x > /dev/null"
    )
    out = insider.shell(script, "--hostname", "boxed").splitlines()
    assert out[:4] == ["0", "0", "boxed", "/"]
    assert len(out) == 8
    names = {"bin", "dev", "etc", "lib", "lib64", "out", "proc", "srv", "sys", "tmp", "usr", "var"}
    assert set(insider.shell("ls /").split()) <= names


@in_turn("insider", INSIDE, 1, share=2)
def test_volumes_show_and_their_places_stay_inside(insider: Somebody) -> None:
    shared = insider.user.home / "shared"
    shared.mkdir()
    (shared / "file").write_text("from outside\n")
    os.chown(shared, UID, UID)
    script = "cat /new/place/file /out/there/file; touch /new/place/x 2>/dev/null || echo ro; echo y > /out/there/y"
    volumes = ("-v", f"{shared}:/new/place:ro", "-v", f"{shared}:/out/there")
    assert insider.shell(script, *volumes) == "from outside\nfrom outside\nro\n"
    assert (shared / "y").read_text() == "y\n"
    assert list((insider.user.folder / "outside").iterdir()) == []


@in_turn("insider", INSIDE, 2, share=2)
def test_without_a_network_there_is_the_loopback_alone(insider: Somebody) -> None:
    out = insider.shell("ip link", "--net", "none")
    assert "lo: <LOOPBACK,UP" in out
    assert len(re.findall(r"^\d+:", out, re.MULTILINE)) == 1


@in_turn("insider", INSIDE, 3, share=2)
def test_a_read_only_root_takes_nothing_but_volumes_do(insider: Somebody) -> None:
    script = "touch /srv/x 2>/dev/null || echo ro; touch /vol/x && echo rw"
    (insider.user.home / "vol").mkdir()
    os.chown(insider.user.home / "vol", UID, UID)
    options = ("--read-only", "-v", f"{insider.user.home}/vol:/vol")
    assert insider.shell(script, *options) == "ro\nrw\n"


@pytest.mark.parametrize("way", ["auto", "crun", "chroot"])
def test_with_many_ids_the_image_may_name_any_user(
    somebody: Callable[[Mode, str], Somebody], way: str
) -> None:
    who = somebody("subids", way)
    assert who.shell("id -u; id -g; id -G", "-u", "worker").splitlines() == ["1234", "99", "99 77"]


def test_with_a_single_id_another_user_is_refused_with_what_to_do(
    somebody: Callable[[Mode, str], Somebody],
) -> None:
    done = somebody("single", "auto").run("-u", "worker", "box", "id")
    assert done.returncode == 125
    assert "run as user 1234: this id is not mapped" in done.stderr
    assert "--user 0:0" in done.stderr


@pytest.mark.parametrize("way", ["bwrap", "chroot"])
def test_who_is_killed_takes_the_command_along(somebody: Callable[[Mode, str], Somebody], way: str) -> None:
    who = somebody("subids", way)
    script = "echo up; while :; do sleep 0.1; done"
    with subprocess.Popen(who.command("box", "sh", "-c", script), stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        process.kill()
        assert process.stdout.read() == b""  # whoever could write is gone
    who.user.orlop("gc", check=True)


@pytest.mark.parametrize("mode", ["subids", "single"])
def test_a_way_that_cannot_make_the_container_is_left_for_the_next(
    somebody: Callable[[Mode, str], Somebody], mode: Mode
) -> None:
    who = somebody(mode, "auto")
    broken = who.user.folder / "broken"
    broken.mkdir()
    for name in ("crun", "runc", "bwrap"):
        (broken / name).write_text("#!/bin/sh\necho no $0 today >&2\nexit 1\n")
        (broken / name).chmod(0o755)
    command = who.command("box", "sh", "-c", "id -u; exit 3", env={"PATH": f"{broken}:{os.environ['PATH']}"})
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (3, "0\n"), done.stderr
    assert "bwrap cannot run it here, chroot is next" in done.stderr


# ------------------------------------------------------------------ with nothing


def test_where_nothing_works_the_reason_and_exec_are_named(somebody: Callable[[Mode, str], Somebody]) -> None:
    done = somebody("plain", "auto").run("box", "id")
    assert (done.returncode, done.stdout) == (125, "")
    assert "bwrap does not work here" in done.stderr
    assert "--exec" in done.stderr


@pytest.mark.parametrize(("runtime", "user"), [("auto", "0:0"), ("auto", "worker"), ("chroot", "worker")])
def test_root_that_may_not_mount_still_runs_containers(
    run_cli: Callable[..., object], store_dirs: StoreDirs, runtime: str, user: str
) -> None:
    layout = images.write_layout(
        store_dirs.work / "box", {"v1": images.make_image([_layer("/outside").tar()])}
    )
    run_cli("import", layout, "--name", "box", check=True)
    options = () if runtime == "auto" else ("--runtime", runtime)
    command = [
        "setpriv",
        "--bounding-set",
        "-sys_admin",
        "--inh-caps",
        "-sys_admin",
        sys.executable,
        "-m",
        "orlop",
    ]
    command += [
        "--root",
        str(store_dirs.root),
        "--run",
        str(store_dirs.run),
        "run",
        *options,
        "-u",
        user,
        "box",
    ]
    script = "id -u; ls -d /etc/passwd /usr/bin; exit 9"
    done = subprocess.run(
        [*command, "sh", "-c", script], capture_output=True, text=True, timeout=60, check=False
    )
    uid = "0" if user == "0:0" else "1234"
    assert (done.returncode, done.stdout) == (9, f"{uid}\n/etc/passwd\n/usr/bin\n"), done.stderr


@pytest.mark.parametrize("mode", ["subids", "single", "plain"])
def test_exec_runs_programs_of_the_tree_as_oneself_and_says_so(
    somebody: Callable[[Mode, str], Somebody], mode: Mode
) -> None:
    who = somebody(mode, "exec")
    done = who.run("box", "sh", "-c", "id -u; pwd; ls")
    assert done.returncode == 0, done.stderr
    assert "no isolation" in done.stderr
    uid, folder, *names = done.stdout.splitlines()
    assert (uid, "bin" in names) == (str(UID), True)
    assert folder.startswith(f"{who.user.data}/orlop/prepared/")
    assert who.run("box", "script", "a", "b").stdout == "script a b\n"
    assert who.run("box", "by-env").stdout == "#!/usr/bin/env cat\nby env\n"
    assert who.run("box", "sh", "-c", "kill -9 $$").returncode == 128 + signal.SIGKILL
    assert who.left() == []


def test_exec_runs_a_dynamic_program_with_the_loader_and_the_libraries_of_the_tree(
    somebody: Callable[[Mode, str], Somebody],
) -> None:
    out = somebody("plain", "exec").run("box", "dynamic-cat", "/proc/self/maps").stdout
    mapped = {line.split()[-1] for line in out.splitlines() if ".so" in line}
    assert len(mapped) >= 2
    assert all("/prepared/" in path for path in mapped), mapped


@pytest.mark.parametrize(
    "options", [("--volume", "/:/x"), ("--user", "0"), ("--net", "none"), ("--read-only",)]
)
def test_exec_refuses_what_it_cannot_give(
    somebody: Callable[[Mode, str], Somebody], options: tuple[str, ...]
) -> None:
    done = somebody("plain", "exec").run(*options, "box", "id")
    assert (done.returncode, done.stdout) == (125, "")
    assert f"cannot have {' '.join(options[:1])}" in done.stderr


def test_a_commands_own_exec_is_not_ours(somebody: Callable[[Mode, str], Somebody]) -> None:
    assert somebody("single", "auto").run("box", "echo", "--exec").stdout == "--exec\n"
