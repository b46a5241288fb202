"""`Prepared.run`: a program of a root, run in it and waited for.

For tests, graders and agents that want an exit code and what was printed.  Terminals, volumes, users and
cgroups are for `orlop run`, or for a runtime with `Prepared.bundle`.

By bubblewrap where that is installed and works: the program sees the root, a /proc and a /dev of its own, and
no other process; with a network only if asked.  Else, for who may, in a changed root and nothing more.

Invariants: whoever was started is gone when the call ends, and where bubblewrap runs it all that it started.
The program is looked for inside of the root, never outside.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache

from orlop.errors import FailedPrecondition, InvalidArgument, NotFound
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
# What the call writes to this descriptor says why there is no program; it is closed as one begins
_CHROOT = """import os, sys, warnings  # which execvp wants, and could not find inside
said, root, cwd, *argv = sys.argv[1:]
os.set_inheritable(int(said), False)
try:
    os.chroot(root)
    os.chdir(cwd)
    os.execvp(argv[0], argv)
except OSError as exc:
    os.write(int(said), f"{argv[0]}: {exc.strerror}".encode())
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
        `NotFound` for a program that is not there, `Cancelled` and `DeadlineExceeded`.

        >>> root.run(["cat", "/etc/motd"]).stdout
        'hello\n'
        >>> root.run(["sh", "-c", "exit 3"], env={"LANG": "C"}).code
        3
        """
        call = call or Call()
        what = f"run {args[0] if args else ''} in {self.info.path}"
        if not args or any("\0" in word for word in args):
            raise InvalidArgument(what, "no program is named" if not args else "an argument has a NUL byte")
        place = _place(self.info, what)
        variables, home = _config(self._verbs, self.info, what)
        variables |= env or {}
        bwrap, why = _bubblewrap()
        if bwrap is None and (isolate or os.geteuid() != 0):
            raise FailedPrecondition(what, why, hint="install bubblewrap, or be root")
        isolated = bwrap is not None and isolate is not False
        if not isolated and (os.geteuid() != 0 or (self.info.kind == "view" and place != self.info.path)):
            raise FailedPrecondition(what, "only root may change the root", hint="leave out isolate=False")
        said = os.memfd_create("orlop-run", os.MFD_CLOEXEC)
        try:
            if isolated:
                assert bwrap is not None
                bind = "--ro-bind" if self.info.kind == "view" else "--bind"
                command = [bwrap, bind, place, "/", *_options(said, net), "--chdir", cwd or home, "--", *args]
            else:
                command = [sys.executable, "-I", "-S", "-c", _CHROOT, str(said), place, cwd or home, *args]
            code, out, err = _communicate(command, said, variables, input, call, what)
            report = os.pread(said, _MAX_REPORT, 0)
        finally:
            os.close(said)
        if isolated and code > 0 and b'"exit-code"' not in report:
            _refuse(what, err.strip().removeprefix("bwrap: ") or f"bubblewrap ends with {code}")
        if not isolated and report:
            _refuse(what, report.decode("utf-8", "replace"))
        return Ran(code=128 - code if code < 0 else code, stdout=out, stderr=err, isolated=isolated)


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
    variables = dict(word.split("=", 1) for word in words if "=" in word)
    return variables, (said.working_dir if said else "") or "/"


def _options(said: int, net: Literal["none", "host"]) -> list[str]:
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
    return words


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
    command: list[str], said: int, variables: Mapping[str, str], text: str, call: Call, what: str
) -> tuple[int, str, str]:
    """Run a command to its end, unless the call ends before."""
    import subprocess

    given: bytes | None = text.encode()
    call.check(what)
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=dict(variables),
        pass_fds=(said,),
        start_new_session=True,
    ) as process:
        try:
            while True:
                try:
                    out, err = process.communicate(given, timeout=_LOOK)
                    break
                except subprocess.TimeoutExpired:
                    given = None  # it has it
                    call.check(what)
        except BaseException:
            _kill(process)
            raise
    return process.returncode, out.decode("utf-8", "replace"), err.decode("utf-8", "replace")


def _kill(process: subprocess.Popen[bytes]) -> None:
    if process.returncode is None:  # else its number may be another's by now
        with suppress(ProcessLookupError):
            import signal

            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _refuse(what: str, said: str) -> NoReturn:
    """Raise for what could not be started."""
    missing = "No such file" in said
    raise (NotFound if missing else FailedPrecondition)(what, said)
