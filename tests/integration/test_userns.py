"""User namespaces for real: ids inside, signals, terminals, idmapped mounts, and the way into them.

What a user without root does is done by one (`support.users`); who is at a terminal is played by a pty.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from orlop.errors import InvalidArgument
from orlop.linux import mount, userns
from orlop.linux.userns import IdRange
from support import users
from support.users import FIRST, GID, SIZE, UID, Mode, User

pytestmark = [pytest.mark.root, pytest.mark.any_kernel, pytest.mark.timeout(120)]

MAPS = """
import os, sys
from orlop.linux import userns
maps = userns.usual_maps(os.geteuid(), os.getegid(), userns.subordinate_ids(os.geteuid()))
def enter(*argv, env=os.environ, maps=maps, **options):
    sys.exit(userns.enter(argv, env=env, maps=maps, **options))
"""


def r(inside: int, outside: int, size: int) -> IdRange:
    return IdRange(inside=inside, outside=outside, size=size)


@pytest.fixture
def user_of(workdir: Path) -> Callable[[Mode], User]:
    return lambda mode: users.make(workdir / mode, mode)


@pytest.fixture
def user(user_of: Callable[[Mode], User]) -> User:
    return user_of("subids")


# ------------------------------------------------------------------ what is inside


@pytest.mark.parametrize(
    ("mode", "expected", "ids"),
    [
        ("subids", "user-namespace True False", f"0 {UID} 1 1 {FIRST} {SIZE}"),
        ("single", "single-id False False", f"0 {UID} 1"),
    ],
)
def test_inside_one_is_root_of_the_ids_one_has(
    user_of: Callable[[Mode], User], mode: Mode, expected: str, ids: str
) -> None:
    told = "from orlop.linux.userns import *; print(privilege(), has_many_ids(), in_initial_namespace())"
    shell = f'id -u; id -g; xargs < /proc/self/uid_map; xargs < /proc/self/gid_map; "$0" -c "{told}"'
    done = user_of(mode).python(MAPS + f"enter('sh', '-c', {shell!r}, sys.executable)", check=True)
    assert done.stdout.splitlines() == ["0", "0", ids, ids, expected]


@pytest.mark.parametrize("mode", ["subids", "single", "plain"])
def test_outside_a_user_may_do_nothing_and_root_all(user_of: Callable[[Mode], User], mode: Mode) -> None:
    done = user_of(mode).python("from orlop.linux import userns; print(userns.privilege())", check=True)
    assert done.stdout == "none\n"
    assert userns.privilege() == "root"


@pytest.mark.parametrize(("dropped", "privilege"), [("-sys_admin", "container"), ("-all", "none")])
def test_root_is_what_its_capabilities_let_it_be(dropped: str, privilege: str) -> None:
    code = "from orlop.linux import userns; print(userns.privilege())"
    command = ["setpriv", "--bounding-set", dropped, "--inh-caps", dropped, sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == f"{privilege}\n"


def test_in_many_ids_files_can_be_given_away(user: User) -> None:
    user.python(MAPS + "enter('sh', '-c', 'touch f && chown 1000:1001 f')", check=True)
    status = (user.home / "f").stat()
    assert (status.st_uid, status.st_gid) == (FIRST + 999, FIRST + 1000)


@pytest.mark.parametrize("mode", ["subids", "single"])
def test_what_is_mounted_inside_shows_only_inside(user_of: Callable[[Mode], User], mode: Mode) -> None:
    user = user_of(mode)
    inside = "mkdir m && mount -t tmpfs inside m && touch m/f && ls m"
    done = user.run(
        "sh", "-c", f'"$0" -m orlop unshare sh -c "{inside}"; ls m; grep -c inside /proc/self/mountinfo',
        sys.executable,
    )  # fmt: skip
    assert done.stdout.splitlines() == ["f", "0"]


def test_without_a_mount_namespace_of_its_own_nothing_can_be_mounted(user: User) -> None:
    code = MAPS + "enter('sh', '-c', 'mount -t tmpfs none /mnt; test $? != 0', mount_namespace=False)"
    assert user.python(code).returncode == 0


def test_root_can_enter_with_any_ids() -> None:
    code = "maps = ((userns.IdRange(inside=0, outside=70000, size=10),),) * 2\n"
    code += "enter('sh', '-c', 'id -u; xargs < /proc/self/uid_map', maps=maps)"
    done = subprocess.run([sys.executable, "-c", MAPS + code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["0", "0 70000 10"]


# ------------------------------------------------------------------ how it ends


@pytest.mark.parametrize(
    ("command", "code"),
    [
        (("true",), 0),
        (("sh", "-c", "exit 42"), 42),
        (("sh", "-c", "kill -9 $$"), 137),
        (("sh", "-c", "kill -TERM $$"), 143),
        (("nosuch",), 127),
        (("/no/such",), 127),
        (("/etc/passwd",), 126),
        (("/etc",), 126),
    ],
)
def test_the_exit_code_is_the_commands(user: User, command: tuple[str, ...], code: int) -> None:
    done = user.orlop("unshare", *command)
    assert done.returncode == code
    assert ("error: run" in done.stderr) == (code in {126, 127})


def test_input_output_and_sigpipe_are_as_without(user: User) -> None:
    script = "cat; echo oops >&2; yes | head -c 2"
    done = user.orlop("unshare", "sh", "-c", script, input="in\n")
    assert (done.returncode, done.stdout, done.stderr) == (0, "in\ny\n", "oops\n")
    done = user.orlop("unshare", "sh", "-c", "grep SigIgn /proc/self/status")
    assert int(done.stdout.split()[1], 16) & 1 << (signal.SIGPIPE - 1) == 0


@pytest.mark.parametrize(
    "signum", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2]
)
def test_a_signal_from_a_process_arrives_once(user: User, signum: int) -> None:
    with start(user, "-c", COUNTER) as process:
        assert line(process) == "ready"
        os.kill(process.pid, signum)
        assert line(process) == signum.name
        process.stdin.write(b"\n")
        process.stdin.close()
        assert line(process) == "1"
        assert process.wait(30) == 7


def test_who_is_killed_takes_the_program_along(user: User) -> None:
    with start(user, "-c", "import os; print(os.getpid(), flush=True); input()") as process:
        inside = os.pidfd_open(int(line(process)))
        try:
            process.kill()
            assert select.select([inside], [], [], 30)[0], "it lives on"
        finally:
            os.close(inside)


COUNTER = """
import os, signal, sys
counts = []
def count(signum, frame):
    counts.append(signum)
    os.write(1, signal.Signals(signum).name.encode() + b"\\n")
for name in ("TERM", "INT", "HUP", "QUIT", "USR1", "USR2"):
    signal.signal(getattr(signal, "SIG" + name), count)
print("ready", flush=True)
sys.stdin.readline()
print(len(counts), flush=True)
sys.exit(7)
"""


def start(user: User, *args: str) -> subprocess.Popen[bytes]:
    command = user.command(sys.executable, "-m", "orlop", "unshare", sys.executable, *args)
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def line(process: subprocess.Popen[bytes]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().decode().strip()


class Terminal:
    """A person at a terminal whose session leader is a command of the user's."""

    def __init__(self, user: User, *argv: str) -> None:
        self.screen, terminal = os.openpty()
        self.text = ""
        command = ["setsid", "--ctty", *user.command(*argv, env={"PS1": "ready> ", "TERM": "dumb"})]
        self.process = subprocess.Popen(command, stdin=terminal, stdout=terminal, stderr=terminal)
        os.close(terminal)

    def type(self, keys: str) -> None:
        os.write(self.screen, keys.encode())

    def see(self, words: str) -> str:
        """Wait for words on the screen; what came up to them."""
        while words not in self.text:
            assert select.select([self.screen], [], [], 30)[0], f"no {words!r} in {self.text!r}"
            try:
                self.text += os.read(self.screen, 4096).decode()
            except OSError:
                raise AssertionError(f"it ended without {words!r}: {self.text!r}") from None
        seen, _, self.text = self.text.partition(words)
        return seen


@pytest.fixture
def terminal(user: User) -> Iterator[Callable[..., Terminal]]:
    opened: list[Terminal] = []

    def sit_down(*argv: str) -> Terminal:
        opened.append(Terminal(user, *argv))
        return opened[-1]

    yield sit_down
    for one in opened:
        one.process.kill()
        one.process.wait()
        os.close(one.screen)


def test_ctrl_c_arrives_once(terminal: Callable[..., Terminal]) -> None:
    at = terminal(sys.executable, "-m", "orlop", "unshare", sys.executable, "-c", COUNTER)
    at.see("ready")
    at.type("\x03")
    at.see("SIGINT")
    at.type("\n")
    at.see("1\r\n")
    assert at.process.wait(30) == 7


def test_a_shell_has_job_control(terminal: Callable[..., Terminal]) -> None:
    at = terminal(sys.executable, "-m", "orlop", "unshare", "bash", "--norc", "--noprofile", "-i")
    assert "job control" not in at.see("ready> ")
    at.type("sh -c 'echo up; exec sed -u s/^/got:/'\n")
    at.see("up\r\n")
    at.type("one\n")
    at.see("got:one")
    at.type("\x1a")
    at.see("Stopped")
    at.see("ready> ")
    at.type("fg\n")
    at.type("two\n")
    at.see("got:two")
    at.type("\x03")
    at.see("ready> ")
    at.type("exit 5\n")
    assert at.process.wait(30) == 5


# ------------------------------------------------------------------ refusals


def test_one_who_cannot_is_told_why(user_of: Callable[[Mode], User]) -> None:
    user = user_of("plain")
    done = user.orlop("unshare", "true")
    assert done.returncode == 125
    assert "orlop: error: unshare: the kernel refuses user namespaces" in done.stderr
    code = "try: enter('true')\nexcept FailedPrecondition as e: print(e)"
    done = user.python("from orlop.errors import *" + MAPS + code, check=True)
    assert "the kernel refuses user namespaces" in done.stdout
    code = "try: userns.make(*maps)\nexcept FailedPrecondition as e: print(e)"
    done = user.python("from orlop.errors import *" + MAPS + code, check=True)
    assert "the kernel refuses user namespaces" in done.stdout


ASK = """
import sys, threading
from orlop.linux import userns
print(userns.can_unshare())
done = threading.Event()
thread = threading.Thread(target=done.wait)
thread.start()
print(userns.can_unshare())
done.set()
"""


@pytest.mark.parametrize(
    ("mode", "words"),
    [("subids", "None"), ("single", "None"), ("plain", "the kernel refuses user namespaces")],
)
def test_the_answer_is_the_same_with_threads(user_of: Callable[[Mode], User], mode: Mode, words: str) -> None:
    first, second = user_of(mode).python(ASK, check=True).stdout.splitlines()
    assert first == second
    assert words in first


def test_a_limit_of_zero_is_named(user: User) -> None:
    script = 'echo 0 > /proc/sys/user/max_user_namespaces; exec "$0" -c "$1"'
    done = user.orlop("unshare", "sh", "-c", script, sys.executable, ASK, check=True)
    assert (
        done.stdout.splitlines()
        == ["user namespaces are switched off: sysctl user.max_user_namespaces is 0"] * 2
    )


def test_a_seccomp_filter_is_named(user: User) -> None:
    code = "from orlop.linux import userns; print(userns.can_unshare())"
    install = (
        "import ctypes, struct, sys, os; libc = ctypes.CDLL(None)\n"
        # load the number; unshare is EPERM, all else is allowed
        "nr = {'x86_64': 272}.get(os.uname().machine, 97)\n"
        "rows = [(0x20, 0, 0, 0), (0x15, 0, 1, nr), (6, 0, 0, 0x50001), (6, 0, 0, 0x7fff0000)]\n"
        "code = ctypes.create_string_buffer(b''.join(struct.pack('=HBBI', *row) for row in rows))\n"
        "prog = struct.pack('@HP', 4, ctypes.addressof(code))\n"
        "assert libc.prctl(38, 1, 0, 0, 0) == 0 and libc.prctl(22, 2, prog, 0, 0) == 0\n"
        "os.execv(sys.executable, [sys.executable, '-c', sys.argv[1]])"
    )
    done = user.python(install, code, check=True)
    assert (
        done.stdout == "a seccomp filter forbids user namespaces, as in a container that is not privileged\n"
    )


def test_without_newuidmap_there_is_one_id_and_a_note(user: User) -> None:
    tools = user.folder / "tools"
    tools.mkdir()
    (tools / "cat").symlink_to("/bin/cat")
    env = {"PATH": str(tools)}
    done = user.orlop("unshare", "cat", "/proc/self/uid_map", env=env, check=True)
    assert done.stdout.split() == ["0", str(UID), "1"]
    assert "only your own id is mapped: newuidmap is not installed" in done.stderr
    code = "try: enter('true')\nexcept FailedPrecondition as e: print(e)"
    done = user.python("from orlop.errors import *" + MAPS + code, env=env, check=True)
    assert done.stdout == "map ids: newuidmap is not installed (install uidmap, or shadow-utils)\n"


def test_ids_of_others_are_refused_in_newuidmaps_words(user: User) -> None:
    code = (
        "maps = userns.usual_maps(os.geteuid(), os.getegid(), "
        "((userns.IdRange(inside=1, outside=7, size=9),),) * 2)\n"
        "try: enter('true', maps=maps)\nexcept PermissionDenied as e: print(e)"
    )
    done = user.python("from orlop.errors import *" + MAPS + code, check=True)
    assert "not allowed" in done.stdout
    assert "does /etc/subuid" in done.stdout


def test_no_new_privs_is_named(user: User) -> None:
    code = "from orlop.errors import *" + MAPS
    code += "try: enter('true')\nexcept PermissionDenied as e: print(e)"
    done = user.run("setpriv", "--no-new-privs", sys.executable, "-c", code, check=True)
    assert "no_new_privs is set" in done.stdout


def test_only_oneself_needs_no_subordinate_ids(user_of: Callable[[Mode], User]) -> None:
    user = user_of("single")
    done = user.orlop("unshare", "xargs", "-a", "/proc/self/uid_map", check=True)
    assert done.stdout == f"0 {UID} 1\n"
    assert done.stderr.startswith("orlop: only your own id is mapped: /etc/subuid has no line for user")
    done = user.orlop("unshare", "--single-id", "xargs", "-a", "/proc/self/uid_map", check=True)
    assert (done.stdout, done.stderr) == (f"0 {UID} 1\n", "")


# ------------------------------------------------------------------ namespaces as descriptors


def test_a_namespace_is_made_in_a_process_with_threads_and_maps_a_mount(workdir: Path) -> None:
    maps = ((r(0, 100_000, 10), r(10, 7, 1)), (r(0, 200_000, 11),))
    source, target = workdir / "source", workdir / "target"
    source.mkdir()
    target.mkdir()
    for name, owner in (("root", 0), ("three", 3), ("ten", 10), ("none", 11)):
        (source / name).touch()
        os.chown(source / name, owner, owner)
    made: list[int] = []
    thread = threading.Thread(target=lambda: made.append(userns.make(*maps)))
    thread.start()
    thread.join()
    (namespace,) = made
    try:
        assert not os.get_inheritable(namespace)
        assert userns.maps_of(namespace) == maps
        fd = mount.open_tree(source)
        try:
            mount.mount_setattr(fd, set=mount.MOUNT_ATTR_IDMAP, userns_fd=namespace)
            mount.move_mount(fd, target)
        finally:
            os.close(fd)
    finally:
        os.close(namespace)
    try:
        shown = {path.name: (path.stat().st_uid, path.stat().st_gid) for path in target.iterdir()}
        assert shown == {
            "root": (100_000, 200_000),
            "three": (100_003, 200_003),
            "ten": (7, 200_010),
            "none": (65_534, 65_534),
        }
        os.chown(target / "three", 100_005, 200_005)
        assert ((source / "three").stat().st_uid, (source / "three").stat().st_gid) == (5, 5)
    finally:
        mount.umount(target)


def test_no_process_is_left_and_no_descriptor() -> None:
    before = set(os.listdir("/proc/self/fd")), children()
    os.close(userns.make([r(0, 5, 1)], [r(0, 5, 1)]))
    assert (set(os.listdir("/proc/self/fd")), children()) == before


def children() -> set[str]:
    """Our child processes; those of other tests in this process may be among them."""
    return {pid for path in Path("/proc/self/task").glob("*/children") for pid in path.read_text().split()}


def test_the_maps_of_our_own_namespace_are_ours() -> None:
    fd = os.open("/proc/self/ns/user", os.O_RDONLY)
    try:
        assert userns.maps_of(fd) == ((r(0, 0, 0xFFFFFFFF),), (r(0, 0, 0xFFFFFFFF),))
    finally:
        os.close(fd)


def test_the_maps_of_a_users_namespace_are_seen_in_our_ids(user: User) -> None:
    with start(user, "-c", "import os; print(os.getpid(), flush=True); input()") as process:
        fd = os.open(f"/proc/{line(process)}/ns/user", os.O_RDONLY)
        try:
            ids = (r(0, UID, 1), r(1, FIRST, SIZE))
            assert userns.maps_of(fd) == (ids, (r(0, GID, 1), r(1, FIRST, SIZE)))
        finally:
            os.close(fd)
            process.communicate(b"\n", 30)


def test_inside_a_namespace_another_can_be_made_for_some_of_its_ids(user: User) -> None:
    code = (
        "from orlop.linux.userns import *; import os\n"
        "r = (IdRange(inside=5, outside=1000, size=20),)\n"
        "fd = make(r, r); assert maps_of(fd) == (r, r); print('made')"
    )
    assert user.orlop("unshare", sys.executable, "-c", code, check=True).stdout == "made\n"


@pytest.mark.parametrize(
    ("ranges", "words"),
    [
        ([], "no id may be there twice, no map empty"),
        ([r(0, 0, 10), r(5, 100, 10)], "no id may be there twice"),
        ([r(n * 2, 4_000_000_000 + n * 2, 1) for n in range(340)], "340 ranges; the kernel takes one page"),
    ],
)
def test_maps_that_cannot_be_are_refused(ranges: list[IdRange], words: str) -> None:
    with pytest.raises(InvalidArgument, match=words):
        userns.make(ranges, [r(0, 0, 1)])


# ------------------------------------------------------------------ the way in


WHERE = "from orlop.cli.session import Target; t = Target(); print(t.root_path, t.run_path, t.settings().auth_files)"


def test_the_store_inside_is_that_outside(user: User) -> None:
    outside = user.python(WHERE, check=True).stdout
    assert outside.startswith(f"{user.data}/orlop {user.runtime}/orlop ")
    assert user.orlop("unshare", sys.executable, "-c", WHERE, check=True).stdout == outside
    bare = {"XDG_DATA_HOME": "", "REGISTRY_AUTH_FILE": ""}
    outside = user.python(WHERE, env=bare, check=True).stdout
    assert outside.startswith(f"{user.home}/.local/share/orlop ")
    assert user.orlop("unshare", sys.executable, "-c", WHERE, env=bare, check=True).stdout == outside


SCRIPT = """
import os, sys
import orlop.rootless
print("begins", flush=True)
orlop.rootless.unshare()
from orlop.linux import userns
print(userns.privilege(), sys.argv[1:], os.environ["HOME"], os.getcwd(), os.environ.get("_ORLOP_UID"))
orlop.rootless.unshare()
sys.exit(9)
"""


@pytest.mark.parametrize(("mode", "privilege"), [("subids", "user-namespace"), ("single", "single-id")])
def test_a_script_runs_itself_again_as_root(
    user_of: Callable[[Mode], User], mode: Mode, privilege: str
) -> None:
    user = user_of(mode)
    script = user.folder / "script.py"
    script.write_text(SCRIPT)
    for command in ([sys.executable, "-I", script], [sys.executable, "-c", SCRIPT]):
        done = user.run(*command, "a b", "--c", cwd=Path("/etc"))
        assert done.returncode == 9, done.stderr
        *begun, told = done.stdout.splitlines()
        assert len(begun) == 2
        assert told == f"{privilege} ['a b', '--c'] {user.home} /etc {UID}"


def test_for_root_a_script_goes_on() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=False)
    assert (done.returncode, len(done.stdout.splitlines())) == (9, 2)
    assert done.stdout.splitlines()[1].startswith("root ")


def test_a_script_that_cannot_is_told_why_or_goes_on(user_of: Callable[[Mode], User]) -> None:
    user = user_of("plain")
    done = user.python(SCRIPT)
    assert (done.returncode, done.stdout.count("begins")) == (1, 1)
    assert "FailedPrecondition: run this program again in a user namespace: the kernel refuses" in done.stderr
    done = user.python(SCRIPT.replace("unshare()", "unshare(optional=True)"))
    assert (done.returncode, done.stdout.splitlines()[1].split()[0]) == (9, "none")


def test_a_script_from_standard_input_cannot_run_again(user: User) -> None:
    for command in ([sys.executable, "-"], [sys.executable]):
        done = user.run(*command, input=SCRIPT)
        assert (done.returncode, done.stdout.count("begins")) == (1, 1)
        assert "it is not in a file" in done.stderr


REENTRY = """
import os, sys
from orlop.cli.unshare import reenter
from orlop.linux import userns
reenter({name!r})
print(userns.privilege(), *sys.argv[1:])
sys.exit(6)
"""


@pytest.mark.parametrize(
    ("mode", "program", "name", "privilege"),
    [
        ("subids", "orlop", "mount", "user-namespace"),
        ("single", "orlopd", "daemon", "single-id"),
        ("plain", "orlop", "mount", "none"),
        ("subids", "orlop", "unshare", "none"),
        ("subids", "orlop", "version", "none"),
        ("subids", "another", "mount", "none"),  # a program that calls orlop's main
    ],
)
def test_a_command_line_is_run_again_where_roots_can_be_mounted(
    user_of: Callable[[Mode], User], mode: Mode, program: str, name: str, privilege: str
) -> None:
    user = user_of(mode)
    path = user.folder / program
    path.write_text(f"#!{sys.executable}\n{REENTRY.format(name=name)}")
    path.chmod(0o755)
    done = user.run(path, "--x", "y z")
    assert (done.returncode, done.stdout, done.stderr) == (6, f"{privilege} --x y z\n", "")


def test_for_root_the_command_runs_as_it_is(tmp_path: Path) -> None:
    def run(*command: str) -> subprocess.CompletedProcess[str]:
        argv = [sys.executable, "-m", "orlop", "unshare", *command]
        return subprocess.run(argv, capture_output=True, text=True, check=False)

    own = os.readlink("/proc/self/ns/user"), os.readlink("/proc/self/ns/mnt")
    done = run("sh", "-c", "readlink /proc/self/ns/user /proc/self/ns/mnt; exit 3")
    assert (done.returncode, tuple(done.stdout.split())) == (3, own)
    assert done.stderr == "orlop: you are root already: sh runs as it is\n"
    assert (run("nosuch").returncode, run("/etc/passwd").returncode) == (127, 126)


def test_the_shell_is_the_users(user: User) -> None:
    done = user.orlop("unshare", input="echo $0 $(id -u) $ORLOP_UNSHARED\n", check=True)
    assert done.stdout == "/bin/sh 0 1\n"


# ------------------------------------------------------------------ the users of these tests


def test_a_user_is_one_without_privilege_and_keeps_files(user: User) -> None:
    done = user.run(
        "sh", "-c", "id -un; id -G; grep CapEff /proc/self/status; pwd; echo kept > f", check=True
    )
    assert done.stdout.split() == [users.NAME, str(GID), "CapEff:", "0" * 16, str(user.home)]
    assert user.run("cat", "f", check=True).stdout == "kept\n"
    assert user.run("ls", "/root/.ssh", "/etc/shadow").returncode != 0


def test_a_closed_checkout_can_be_reached(user: User) -> None:
    closed = user.folder / "closed"
    inner = closed / "deep/er"
    inner.mkdir(parents=True)
    (inner / "a").write_text("a")
    (inner / "b").mkdir()
    for folder in (closed, inner):
        folder.chmod(0o700)
    command = user.command("sh", "-c", f"cat {inner}/a; ls {inner}; ls {closed}")
    command[-1] = command[-1].replace('"needed": [', f'"needed": ["{inner}", ')
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["aa", "b", "deep"]


def test_python_of_this_checkout_runs_in_each_mode(user_of: Callable[[Mode], User]) -> None:
    for mode in ("subids", "single", "plain"):
        done = user_of(mode).orlop("version", check=True)
        assert done.stdout.startswith("version ")
