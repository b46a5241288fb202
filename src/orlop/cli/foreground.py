"""Programs in the foreground: our child has our terminal, and we wait for it and pass signals on.

For what is no OCI runtime (`orlop.cli.runtime` has its own way).  The child stays in our session and
process group, so Ctrl-C and Ctrl-Z of a terminal reach it without us.

Invariants: a signal that a process sends us reaches the child once, one of the terminal's not a second
time; what our parent had ignored stays ignored; the child starts with our signal mask.
"""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress

from orlop.errors import FailedPrecondition, NotFound, PermissionDenied
from orlop.hints import Any

__all__ = ["WATCHED", "run_program", "stand_by"]

_FORWARDED = frozenset(
    {signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2}
)
WATCHED = _FORWARDED | {signal.SIGCHLD}  # what is blocked where `stand_by` is called

Deliver = Callable[[int], None]


def run_program(
    argv: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    cwd: str | None = None,
    executable: str | None = None,
    interactive: bool = False,
    pass_fds: Sequence[int] = (),
    deliver: Callable[[int, int], None] | None = None,
    started: Callable[[], object] | None = None,
    blocked: bool = False,
) -> int:
    """Run a program to its end; its exit code, or 128 + n where signal n ended it.

    Without ``interactive`` it has nothing to read.  ``deliver(pid, signum)`` sends a signal to it, if that
    is not simply kill(2); ``started`` is called once it runs.  A program that calls `stand_by` itself is
    started with the signals ``blocked``.  Only for the main thread.  Raises `NotFound` and
    `PermissionDenied` with the exit codes of shells for a program that cannot be run.
    """
    if threading.current_thread() is not threading.main_thread():
        raise FailedPrecondition(f"run {argv[0]}", "signals can be forwarded from the main thread only")
    with _held() as (waiting, mask):
        # From before it starts: else what a terminal sends both of us in its first moments is sent on, too.
        restore = None if blocked else lambda: signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        try:
            process = subprocess.Popen(
                argv,
                executable=executable,
                env=env,
                cwd=cwd,
                stdin=None if interactive else subprocess.DEVNULL,
                pass_fds=pass_fds,
                preexec_fn=restore,  # noqa: PLW1509 - one system call, which needs no lock
            )
        except OSError as exc:
            kind, code = (NotFound, 127) if isinstance(exc, FileNotFoundError) else (PermissionDenied, 126)
            raise kind(f"run {argv[0]}", str(exc.strerror), details={"exit_code": str(code)}) from exc
        if started is not None:
            started()

        def send(signum: int) -> None:
            with suppress(ProcessLookupError):
                if deliver is None:
                    os.kill(process.pid, signum)
                else:
                    deliver(process.pid, signum)

        for number in waiting:
            send(number)
        return stand_by(process.poll, send)


@contextmanager
def _held() -> Iterator[tuple[list[int], set[int | signal.Signals]]]:
    """Block the signals that `stand_by` waits for, and keep them from ending us.

    Yields those that came before that, and the mask that was in force.
    """
    came: list[int] = []
    before: dict[int, Any] = {signal.SIGCHLD: signal.signal(signal.SIGCHLD, signal.SIG_DFL)}
    for signum in _FORWARDED:
        if signal.getsignal(signum) is not signal.SIG_IGN:
            before[signum] = signal.signal(signum, lambda number, frame: came.append(number))
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, WATCHED)
    while (info := signal.sigtimedwait(_FORWARDED, 0)) is not None:
        came.append(info.si_signo)
    try:
        yield came, mask
    finally:
        while signal.sigtimedwait(_FORWARDED, 0) is not None:
            pass  # it was for the child, which has ended
        for number, action in before.items():
            signal.signal(number, action if action is not None else signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def stand_by(poll: Callable[[], int | None], send: Deliver) -> int:
    """Wait until ``poll`` has the child's return code (-n for signal n), and ``send`` on what others send us.

    `WATCHED` must be blocked.  Returns the exit code as shells show it.
    """
    while (code := poll()) is None:
        info = signal.sigwaitinfo(WATCHED)
        # What the kernel sends for a terminal (si_code > 0), the whole process group got.
        if info.si_signo != signal.SIGCHLD and info.si_code <= 0:
            send(info.si_signo)
    return code if code >= 0 else 128 - code
