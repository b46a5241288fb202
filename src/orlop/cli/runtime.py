"""Running a bundle with an OCI runtime, in the foreground: who waits, who forwards, who tidies up.

Not a runtime and not a supervisor: one container, from create to delete, within one call.  crun, runc
and whatever has their command line will do.  Sources: runtime-spec 1.0.2, runtime.md ("Lifecycle");
runc's "Terminals and Standard IO".

How it goes: ``create`` with a pty or pipes of ours, ``start``, copy bytes and forward signals until the
process has ended, ``delete --force`` whatever happened.  The process outlives ``create`` as our child
(`orlop.linux.reaper`), so its exit status comes from the kernel, not from a program in between.

Invariants: the container never holds the user's own descriptors (a runtime gives those it passes on to
the container's user, by fchown(2), be it a file of the user's); the runtime is in a session of its own,
so Ctrl-C reaches us alone and the container once.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from types import FrameType

from orlop.cli.terminal import ConsoleSocket, Relay, raw_mode
from orlop.errors import AlreadyExists, Error, FailedPrecondition, NotFound, PermissionDenied, from_oserror
from orlop.hints import Any, Self
from orlop.linux.programs import find_helper
from orlop.linux.reaper import subreaper

__all__ = ["RUNTIMES", "choose_runtime", "run_container"]

RUNTIMES = ("crun", "runc")  # the leaner one first
_CGROUPS = Path("/sys/fs/cgroup")
_FORWARDED = (
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
)
_ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
_ENOUGH, _WITHIN = 3, 2.0  # so many SIGINT or SIGTERM within so many seconds kill the container
_LOG, _SAID, _PID = "runtime.log", "runtime.out", "container.pid"
_MAX_LOG = 65_536  # bytes of a runtime's words that we look at
# runc's and crun's words around the ones that matter.
_PREFIX = re.compile(r"^(runc \w+ failed: )?((unable to start|error during) container (process|init): )*")
# What would make a runtime pass descriptors on, or mount a socket into the container.
_NOT_FOR_RUNTIMES = {"LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES", "NOTIFY_SOCKET", "_LIBCONTAINER_LOGLEVEL"}


def choose_runtime(name: str | None = None, *, cgroups: Path = _CGROUPS) -> str:
    """The path of an OCI runtime: the one asked for, or the first of `RUNTIMES` that works here.

    crun refuses cgroups v1 and v2 side by side while v2 has controllers.  Raises `NotFound` for a name
    that is no program, `FailedPrecondition` where none is installed or none works.
    """
    if name is not None:
        found = find_helper(name)
        if found is None:
            raise NotFound(
                f"use runtime {name}", "no such program", hint="install it, or leave out --runtime"
            )
        return os.path.abspath(found)
    refused = ""
    for candidate in RUNTIMES:
        found = find_helper(candidate)
        if found is not None and candidate == "crun" and _is_hybrid(cgroups):
            refused = "crun cannot run with cgroups v1 and v2 side by side"
        elif found is not None:
            return os.path.abspath(found)
    raise FailedPrecondition(
        "choose an OCI runtime",
        refused or f"none of {', '.join(RUNTIMES)} is installed",
        hint="install runc" if refused else "install crun or runc",
    )


def _is_hybrid(cgroups: Path) -> bool:
    """The hybrid layout of systemd: v1, and v2 at ``unified`` with controllers of its own."""
    try:
        return bool((cgroups / "unified" / "cgroup.controllers").read_text().strip())
    except OSError:
        return False


def run_container(
    bundle: Path,
    *,
    container_id: str,
    state: Path,
    runtime: str | None = None,
    options: Sequence[str] = (),
    tty: bool = False,
    interactive: bool = False,
    stdio: tuple[int, int, int] = (0, 1, 2),
) -> int:
    """Run a bundle's process to its end and return its exit code, 128 + n if signal n ended it.

    ``state`` is the folder for the runtime's own state, made if missing; ``options`` are for the runtime,
    before its verb.  ``tty`` must be what the
    bundle's ``terminal`` says.  ``stdio`` is what the container talks to, by copying; without
    ``interactive`` it has nothing to read.  ``bundle`` gets files beside ``config.json``.

    SIGTERM, SIGINT, SIGHUP, SIGQUIT, SIGUSR1 and SIGUSR2 go to the process; three SIGINT or SIGTERM
    within two seconds kill it, as a first process may ignore what it does not handle.  With ``tty``,
    ``stdio``'s terminal is raw meanwhile, and its size is the container's.  Only for the main thread.

    Nothing of the container is left afterwards.  Raises `NotFound` if the command is not in the image,
    `PermissionDenied` if it cannot be executed (both with ``exit_code`` in their details, 127 and 126 as
    shells have it), `FailedPrecondition` with the runtime's words for all else.
    """
    if threading.current_thread() is not threading.main_thread():
        raise FailedPrecondition("run container", "signals can be forwarded from the main thread only")
    program = choose_runtime(runtime)
    with ExitStack() as stack:
        forward = stack.enter_context(_Forward())
        stack.enter_context(subreaper())
        container = stack.enter_context(_Container((program, *options), state, bundle, container_id))
        forward.when_starting(container.abort)
        relay = Relay()
        stack.callback(relay.close)
        try:
            if tty:
                _create_with_console(container, relay, interactive=interactive, stdio=stdio)
            else:
                _create_with_pipes(container, relay, interactive=interactive, stdio=stdio)
        except Error:
            if forward.ending:
                return 128 + forward.ending
            raise
        if forward.ending:
            return 128 + forward.ending
        if tty:
            forward.on_resize(lambda: relay.resize(stdio))
            if interactive and os.isatty(stdio[0]):
                stack.enter_context(raw_mode(stdio[0]))
        container.start()
        forward.to(container.kill, relay.give_up)
        try:
            relay.run(container.pidfd)
            code = container.wait()
            relay.deliver_the_rest()
        except OSError as exc:
            raise from_oserror("pass on what the container reads and writes", exc) from exc
        return code


def _create_with_console(
    container: _Container, relay: Relay, *, interactive: bool, stdio: tuple[int, int, int]
) -> None:
    listener = ConsoleSocket(container.bundle)
    try:
        container.create("--console-socket", listener.name)
        relay.console(listener.receive(), stdio[0] if interactive else None, stdio[1])
    finally:
        listener.close()
    relay.resize(stdio)


def _create_with_pipes(
    container: _Container, relay: Relay, *, interactive: bool, stdio: tuple[int, int, int]
) -> None:
    """Create with pipes.  If it fails, they hold only the runtime's own words, and nobody sees those."""
    with ExitStack() as stack:
        if interactive:
            stdin, to_container = os.pipe()
            relay.into_pipe(stdio[0], to_container)
        else:
            stdin = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        stack.callback(os.close, stdin)
        outputs = []
        for user in stdio[1:]:
            from_container, output = os.pipe()
            stack.callback(os.close, output)
            relay.out_of_pipe(from_container, user)
            outputs.append(output)
        container.create(stdio=(stdin, outputs[0], outputs[1]))


class _Container:
    """A container by its runtime's verbs; leaving the context deletes it, running or not."""

    def __init__(self, program: Sequence[str], state: Path, bundle: Path, container_id: str) -> None:
        self.bundle = bundle
        self.pidfd = -1
        self._pid = 0  # of the container's process, until it is reaped
        self._state = state / container_id
        self._id = container_id
        self._command = [*program, "--root", str(state), "--log", _LOG, "--log-format", "json"]
        self._created = False
        self._running: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        try:
            self._state.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as exc:
            raise from_oserror(f"make {self._state.parent}", exc) from exc
        if self._state.exists():
            raise AlreadyExists(f"run container {self._id}", "there is a container of this name")
        return self

    def __exit__(self, kind: object, value: BaseException | None, traceback: object) -> None:
        self.kill(signal.SIGKILL)
        if self._created:
            with suppress(Error):  # what matters is whether the container is still there
                self._call("delete", "--force", self._id)
        if self._pid:
            self.wait()
        if self.pidfd >= 0:
            pidfd, self.pidfd = self.pidfd, -1  # first, as a signal handler may look
            os.close(pidfd)
        if self._created and self._state.exists() and value is None:
            raise FailedPrecondition(
                f"delete container {self._id}", _words(self.bundle) or "it is still there"
            )

    def create(self, *options: str, stdio: tuple[int, int, int] | None = None) -> None:
        """Create the container; its process waits for `start`.  Raises as `run_container` does."""
        self._created = True
        self._call("create", "--bundle", ".", "--pid-file", _PID, *options, self._id, stdio=stdio)
        try:
            self._pid = int((self.bundle / _PID).read_text())
            self.pidfd = os.pidfd_open(self._pid)
        except OSError as exc:
            raise from_oserror(f"find the process of container {self._id}", exc) from exc

    def start(self) -> None:
        """Let the process run."""
        self._call("start", self._id)

    def kill(self, signum: int) -> bool:
        """Send a signal to the process; False once it was waited for.  Also for signal handlers."""
        try:
            signal.pidfd_send_signal(self.pidfd, signum)
        except OSError:
            return False
        return True

    def abort(self) -> None:
        """Stop the runtime itself.  For signal handlers."""
        if self._running is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._running.pid, signal.SIGKILL)

    def wait(self) -> int:
        """Reap the process; its exit code as shells show it."""
        try:
            _, status = os.waitpid(self._pid, 0)
        except OSError as exc:
            raise from_oserror(f"wait for container {self._id}", exc) from exc
        finally:
            self._pid = 0
        code = os.waitstatus_to_exitcode(status)
        return code if code >= 0 else 128 - code

    def _call(self, *args: str, stdio: tuple[int, int, int] | None = None) -> None:
        """One of the runtime's verbs.  Paths are relative to the bundle: a socket's must be short."""
        (self.bundle / _LOG).unlink(missing_ok=True)
        with ExitStack() as stack:
            if stdio is None:
                said = stack.enter_context(open(self.bundle / _SAID, "wb"))
                nothing = stack.enter_context(open(os.devnull, "rb"))
                stdio = (nothing.fileno(), said.fileno(), said.fileno())
            try:
                self._running = subprocess.Popen(
                    [*self._command, *args],
                    stdin=stdio[0],
                    stdout=stdio[1],
                    stderr=stdio[2],
                    cwd=self.bundle,
                    env={name: value for name, value in os.environ.items() if name not in _NOT_FOR_RUNTIMES},
                    start_new_session=True,
                )
            except OSError as exc:
                raise from_oserror(f"start {self._command[0]}", exc) from exc
            code = self._running.wait()
            self._running = None
        if code:
            words = _words(self.bundle) or f"{self._command[0]} ended with {code}"
            raise _failure(f"{args[0]} container {self._id}", words)


def _words(bundle: Path) -> str:
    """What the runtime said last: the last error of its log, else what it printed."""
    said = ""
    with suppress(OSError):
        for line in _head(bundle / _LOG).splitlines():
            with suppress(ValueError, AttributeError):  # not JSON, not an object: not an entry of the log
                entry = json.loads(line)
                if entry.get("level") in {"error", "fatal"}:
                    said = str(entry.get("msg"))
    if not said:
        with suppress(OSError):
            said = _head(bundle / _SAID).strip()
    return _PREFIX.sub("", said)


def _head(path: Path) -> str:
    with open(path, "rb") as file:
        return file.read(_MAX_LOG).decode("utf-8", "replace")


def _failure(attempted: str, words: str) -> Error:
    """The error for a runtime's words; the two that users cause most are told apart."""
    text = words.lower()
    if "not found in $path" in text or (text.startswith("exec: ") and "no such file" in text):
        return NotFound(attempted, words, details={"exit_code": "127"})
    if text.startswith(("exec: ", "open executable")):
        return PermissionDenied(attempted, words, details={"exit_code": "126"})
    return FailedPrecondition(attempted, words)


class _Forward:
    """Signals that come to us and are meant for the container.

    What the parent had ignored (``nohup``) stays ignored.  ``ending`` is the first signal of those that
    end a process which came before `to` was called, or 0.
    """

    def __init__(self) -> None:
        self.ending = 0
        self._owner = os.getpid()
        self._pending: list[int] = []
        self._times: list[float] = []
        self._kill: Callable[[int], bool] | None = None
        self._abort: Callable[[], None] = _nothing
        self._give_up: Callable[[], None] = _nothing
        self._resize: Callable[[], None] = _nothing
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        # With SIGCHLD ignored the kernel would reap the container for us, and keep its exit status.
        self._before[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for signum in (*_FORWARDED, signal.SIGWINCH):
            if signal.getsignal(signum) is not signal.SIG_IGN:
                self._before[signum] = signal.signal(signum, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for signum, before in self._before.items():
            signal.signal(signum, before if before is not None else signal.SIG_DFL)

    def when_starting(self, abort: Callable[[], None]) -> None:
        """Call ``abort`` if the user insists before there is a process to kill."""
        self._abort = abort

    def on_resize(self, resize: Callable[[], None]) -> None:
        """Call ``resize`` at each SIGWINCH, and now, as one may just have been missed."""
        self._resize = resize
        resize()

    def to(self, kill: Callable[[int], bool], give_up: Callable[[], None]) -> None:
        """Send signals to ``kill``, first those that came meanwhile; ``give_up`` when it says False."""
        self._kill, self._give_up = kill, give_up
        for signum in self._pending:
            kill(signum)

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if os.getpid() != self._owner:
            return  # in a child between fork and exec
        if signum == signal.SIGWINCH:
            self._resize()
            return
        insists = self._insists(signum)
        if self._kill is None:
            self._pending.append(signum)
            self.ending = self.ending or (signum if signum in _ENDING else 0)
            if insists:
                self._abort()
        elif not self._kill(signal.SIGKILL if insists else signum):
            self._give_up()

    def _insists(self, signum: int) -> bool:
        if signum not in {signal.SIGINT, signal.SIGTERM}:
            return False
        now = time.monotonic()
        self._times = [*(then for then in self._times if now - then < _WITHIN), now]
        return len(self._times) >= _ENOUGH


def _nothing() -> None:
    """What there is to call as long as there is nothing to do."""
