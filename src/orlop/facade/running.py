"""`Prepared.run`: a program of a root, run in it and waited for.

For tests, graders and agents that want an exit code and what was printed.  Terminals, volumes, users and
cgroups are for `orlop run`, or for a runtime with `Prepared.bundle`.

By bubblewrap where that is installed and works: the program sees the root, a /proc and a /dev of its own, and
no other process; with a network only if asked.  Else, for who may, in a changed root and nothing more.

Invariants: whoever was started is gone when the call ends, and where bubblewrap runs it all that it started.
The program is looked for inside of the root, never outside.  The image's variables are the program's alone:
what runs out here for it, bubblewrap or an interpreter, never has them (LD_PRELOAD is one).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from functools import cache

from orlop.errors import FailedPrecondition, InvalidArgument, NotFound, ResourceExhausted
from orlop.hints import TYPE_CHECKING, Literal, NoReturn
from orlop.observe import Call
from orlop.values import dataclass

if TYPE_CHECKING:
    import subprocess

    from orlop.images.api import PreparedInfo
    from orlop.images.api import Store as StoreVerbs

__all__ = ["PreparedRunning", "Ran"]

_LOOK = 0.1  # seconds between looks at the call while the program says nothing
_PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"  # as runtimes have it
_HOME = "HOME=/root"
_MAX_REPORT = 65_536  # bytes of what says whether there was a program
_MAX_OUTPUT = 64 << 20  # bytes that a program may print, on both streams together
_PATIENCE = 30.0  # seconds for what was killed to be gone
# What it writes to the first descriptor says why there is no program; the second has the variables
_CHROOT = """import os, sys, warnings  # which execvpe wants, and could not find inside
said, given, root, cwd, *argv = sys.argv[1:]
os.set_inheritable(int(said), False)
words = open(int(given), "rb").read().split(b"\\0")[:-1]
at = cwd
try:
    os.chroot(root)
    os.chdir(cwd)
    at = argv[0]
    os.execvpe(argv[0], argv, dict(word.split(b"=", 1) for word in words))
except OSError as exc:
    os.write(int(said), f"{at}: {exc.strerror}".encode())
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ran:
    """How a program ended: its exit code, or 128 + n where signal n ended it, and what it printed.

    Text is UTF-8; bytes that are not are replaced.
    """

    code: int
    stdout: str
    stderr: str
    isolated: bool


class PreparedRunning:
    """The part of `orlop.Prepared` that runs programs."""

    _verbs: StoreVerbs
    info: PreparedInfo

    def run(
        self,
        args: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str = "",
        input: str = "",  # noqa: A002 - subprocess.run's own word
        net: Literal["none", "host"] = "none",
        isolate: bool | None = None,
        call: Call | None = None,
    ) -> Ran:
        r"""Run a program in the root, as the root's own root user, and wait for its end.

        ``args`` are the program and its arguments, ``env`` variables beside those of the image, ``cwd`` a
        folder of the root (the image's working directory unless given), ``input`` what it reads.  Isolated
        by bubblewrap, with no network unless ``net`` is ``host``; where bubblewrap does not work, in a
        changed root alone, unless ``isolate`` is true.  The root must be mounted, or be a plain `folder`.
        Cancelling the call, and its deadline, kill the program.  /dev and /proc are made where the root has
        no such folders.

        Raises `FailedPrecondition` for a root that is nowhere to be seen and where nothing may be run,
        `NotFound` for a program that is not there, `ResourceExhausted` for one that prints more than 64 MiB,
        `Cancelled` and `DeadlineExceeded`.

        >>> root.run(["cat", "/etc/motd"]).stdout
        'hello\n'
        >>> root.run(["sh", "-c", "exit 3"], env={"LANG": "C"}).code
        3
        """
        call = call or Call()
        what = f"run {args[0] if args else ''} in {self.info.path}"
        if not args:
            raise InvalidArgument(what, "no program is named")
        place = _place(self.info, what)
        variables, home = _config(self._verbs, self.info, what)
        variables |= env or {}
        _check_words(args, variables, cwd or home, what)
        bwrap, why = _bubblewrap()
        if bwrap is None and (isolate or os.geteuid() != 0):
            raise FailedPrecondition(what, why, hint="install bubblewrap, or be root")
        isolated = bwrap is not None and isolate is not False
        if not isolated and (os.geteuid() != 0 or (self.info.kind == "view" and place != self.info.path)):
            raise FailedPrecondition(what, "only root may change the root", hint="leave out isolate=False")
        with ExitStack() as stack:
            said = _memory(stack, ())
            if isolated:
                assert bwrap is not None
                bind = "--ro-bind" if self.info.kind == "view" else "--bind"
                words = [bind, place, "/", *_options(said, net, variables), "--chdir", cwd or home]
                given = _memory(stack, words)
                command = [bwrap, "--args", str(given), "--", *args]
            else:
                given = _memory(stack, [f"{name}={value}" for name, value in variables.items()])
                fds = (str(said), str(given))
                command = [sys.executable, "-I", "-S", "-c", _CHROOT, *fds, place, cwd or home, *args]
            code, out, err = _communicate(command, (said, given), input, call, what)
            report = os.pread(said, _MAX_REPORT, 0)
        if isolated and code > 0 and b'"exit-code"' not in report:
            _refuse(what, err.strip().removeprefix("bwrap: ") or f"bubblewrap ends with {code}")
        if not isolated and report:
            _refuse(what, report.decode("utf-8", "replace"))
        return Ran(code=128 - code if code < 0 else code, stdout=out, stderr=err, isolated=isolated)


def _check_words(args: Sequence[str], variables: Mapping[str, str], cwd: str, what: str) -> None:
    """Raise for what no program can be given."""
    for word in (*args, *variables, *variables.values(), cwd):
        try:
            bad = b"\0" in os.fsencode(word)
        except UnicodeEncodeError:
            bad = True
        if bad:
            raise InvalidArgument(what, f"no program can be given {word[:100]!r}")
    if odd := [name for name in variables if not name or "=" in name]:
        raise InvalidArgument(what, f"a variable cannot be called {odd[0]!r}")


def _memory(stack: ExitStack, words: Sequence[str]) -> int:
    """A file without a name, with some words to be read from its beginning."""
    fd = os.memfd_create("orlop-run", os.MFD_CLOEXEC)
    stack.callback(os.close, fd)
    with open(fd, "wb", closefd=False) as file:
        file.write(b"".join(os.fsencode(word) + b"\0" for word in words))
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


def _place(info: PreparedInfo, what: str) -> str:
    """Where this process sees the root."""
    if info.mounted or os.path.ismount(info.path):
        return info.path
    if info.driver == "native" and len(info.mounts) == 1 and info.mounts[0].type == "bind":
        return info.mounts[0].source
    raise FailedPrecondition(what, "the root is not mounted", hint="prepare it with mount=True")


def _config(verbs: StoreVerbs, info: PreparedInfo, what: str) -> tuple[dict[str, str], str]:
    """The image's variables, and where its programs start."""
    from orlop.spec.documents import parse_config

    said = parse_config(verbs.inspect(info.image_id).config, what).config
    words = [_PATH, _HOME, *((said.env or ()) if said else ())]
    variables = dict(word.split("=", 1) for word in words if word.find("=") > 0)
    return variables, (said.working_dir if said else "") or "/"


def _options(said: int, net: Literal["none", "host"], variables: Mapping[str, str]) -> list[str]:
    """Bubblewrap's, beside the root."""
    from orlop.images.running.bundle import CAPABILITIES

    words = ["--dev", "/dev", "--proc", "/proc", "--die-with-parent", "--json-status-fd", str(said)]
    words += ["--unshare-pid", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try", "--new-session"]
    if net == "none":
        words.append("--unshare-net")
    if os.geteuid() != 0:
        words += ["--unshare-user", "--uid", "0", "--gid", "0"]
    else:
        kept = [name for name in CAPABILITIES if name != "CAP_MKNOD"]  # it would open the machine's disks
        words += ["--cap-drop", "ALL", *(word for name in kept for word in ("--cap-add", name))]
    setting = (word for name, value in variables.items() for word in ("--setenv", name, value))
    return [*words, "--clearenv", *setting]


@cache
def _bubblewrap() -> tuple[str | None, str]:
    """Bubblewrap, if it works here, or why not; tried once."""
    import subprocess

    from orlop.linux.programs import find_helper

    program = find_helper("bwrap")
    if program is None:
        return None, "bubblewrap is not installed"
    user = () if os.geteuid() == 0 else ("--unshare-user", "--uid", "0", "--gid", "0")
    command = [program, "--ro-bind", "/", "/", "--proc", "/proc", "--unshare-pid", *user]
    try:
        done = subprocess.run(
            [*command, "--", program, "--version"], capture_output=True, text=True, timeout=30, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as exc:
        return None, f"bubblewrap does not work here: {exc}"
    if done.returncode:
        return None, f"bubblewrap does not work here: {done.stderr.strip() or done.returncode}"
    return program, ""


def _communicate(
    command: list[str], fds: tuple[int, int], text: str, call: Call, what: str
) -> tuple[int, str, str]:
    """Run a command to its end, unless the call ends before or it prints too much."""
    import subprocess

    call.check(what)
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        pass_fds=fds,
        start_new_session=True,
    ) as process:
        try:
            out, err = _talk(process, text.encode(), call, what)
        except BaseException:
            _kill(process, fds[0])
            raise
    return process.returncode, out.decode("utf-8", "replace"), err.decode("utf-8", "replace")


def _talk(process: subprocess.Popen[bytes], given: bytes, call: Call, what: str) -> tuple[bytes, bytes]:
    """Give a program its input, and take what it prints, until all has ended.

    As `Popen.communicate`, which would hold any amount.
    """
    import select
    import selectors
    import subprocess

    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    rest, printed = memoryview(given), {process.stdout: bytearray(), process.stderr: bytearray()}
    with selectors.DefaultSelector() as selector:
        for stream in printed:
            selector.register(stream, selectors.EVENT_READ)
        if rest:
            selector.register(process.stdin, selectors.EVENT_WRITE)
        else:
            process.stdin.close()
        while selector.get_map():
            for key, _ in selector.select(_LOOK):
                if key.fileobj is process.stdin:
                    try:
                        rest = rest[os.write(key.fd, rest[: select.PIPE_BUF]) :]
                    except BrokenPipeError:
                        rest = rest[:0]
                    if not rest:
                        selector.unregister(process.stdin)
                        process.stdin.close()
                    continue
                taken = printed[key.fileobj]  # type: ignore[index]
                if chunk := os.read(key.fd, 65_536):
                    taken += chunk
                else:
                    selector.unregister(key.fileobj)
            if sum(map(len, printed.values())) > _MAX_OUTPUT:
                raise ResourceExhausted(
                    what,
                    f"it prints more than {_MAX_OUTPUT >> 20} MiB",
                    hint="have it write to a file of the root",
                )
            call.check(what)
    while True:
        try:
            process.wait(_LOOK)
            break
        except subprocess.TimeoutExpired:
            call.check(what)  # it has closed its streams, and goes on
    return bytes(printed[process.stdout]), bytes(printed[process.stderr])


def _kill(process: subprocess.Popen[bytes], said: int) -> None:
    """Kill what was started; and where that is bubblewrap, wait until all that is in its sandbox is gone."""
    import select
    import signal

    if process.returncode is not None:
        return  # its number may be another's by now
    inner = _first_inside(process.pid, said)
    try:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        if inner is not None:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(inner, signal.SIGKILL)
            waiting = select.poll()
            waiting.register(inner, select.POLLIN)
            waiting.poll(_PATIENCE * 1000)
    finally:
        if inner is not None:
            os.close(inner)
        process.wait()


def _first_inside(bwrap: int, said: int) -> int | None:
    """The first process of bubblewrap's sandbox, whose end is that of all others there."""
    import re

    found = re.search(rb'"child-pid": *(\d+)', os.pread(said, _MAX_REPORT, 0))
    if found is None:
        return None
    pid = int(found[1])
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return None
    with suppress(OSError), open(f"/proc/{pid}/stat", "rb") as file:
        if int(file.read().rpartition(b")")[2].split()[1]) == bwrap:
            return fd
    os.close(fd)  # another has its number by now
    return None


def _refuse(what: str, said: str) -> NoReturn:
    """Raise for what could not be started."""
    missing = "No such file" in said and "Can't mount" not in said  # which the image is to blame for
    raise (NotFound if missing else FailedPrecondition)(what, said)
