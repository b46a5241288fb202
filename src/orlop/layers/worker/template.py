"""Our side of the template: start it, give it jobs, and know how each worker ended."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from types import TracebackType
from typing import Self

from orlop.config import Limits, over_limit
from orlop.errors import Error, FailedPrecondition, Unavailable
from orlop.values import dataclass

__all__ = ["End", "Lifeline", "Template"]

# glibc would map and unmap every chunk anew; kept on the heap they cost a tenth of the worker's time less.
_MALLOC = {
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(64 << 20),
    "MALLOC_TOP_PAD_": str(4 << 20),
}
_ENTRY = "from orlop.layers.worker.server import main"
NEWS_MS = 30_000  # how long the template may take to say how a worker ended


@dataclass(frozen=True, slots=True, kw_only=True)
class End:
    """How a worker ended: its wait status, its CPU seconds, whether it was given up before.

    ``refused`` says why there never was one; ``lost`` that the template ended, too, and nobody knows.
    """

    status: int = 0
    cpu: float = 0.0
    killed: bool = False
    refused: str = ""
    lost: bool = False

    def error(self, limits: Limits) -> Error:
        """The error for a worker that ended so, without an answer."""
        what = "unpack layer"
        if self.lost:
            return Unavailable(what, "the worker is gone, and the template that forked it", hint="try again")
        if self.refused:
            return Unavailable(what, f"no worker could be started: {self.refused}")
        if not os.WIFSIGNALED(self.status):
            code = os.waitstatus_to_exitcode(self.status)
            return Unavailable(what, f"the worker ended without an answer, with exit code {code}")
        number = os.WTERMSIG(self.status)
        if number == signal.SIGXCPU or (number == signal.SIGKILL and self.cpu >= limits.worker_cpu):
            return over_limit("worker_cpu", round(self.cpu), limits.worker_cpu, attempted=what)
        if number == signal.SIGKILL and self.killed:
            return Unavailable(what, "the worker closed its pipes without an answer, and did not end")
        try:
            name = signal.Signals(number).name
        except ValueError:
            name = f"signal {number}"
        return Unavailable(
            what,
            f"the worker was ended by {name}",
            hint="the machine may be out of memory" if number == signal.SIGKILL else "",
        )


class Lifeline:
    """Our end of a worker's lifeline: closing it ends the worker.  Used by one thread."""

    def __init__(self, ours: socket.socket) -> None:
        self._socket = ours

    def end(self) -> End:
        """End the worker, if it still lives, and say how it ended."""
        self._shut(socket.SHUT_WR)
        poller = select.poll()
        poller.register(self._socket, select.POLLIN)
        try:
            news = self._socket.recv(4096) if poller.poll(NEWS_MS) else b""
        except ConnectionResetError:
            news = b""
        return End(**json.loads(news)) if news else End(lost=True)

    def close(self) -> None:
        """Let go; the worker ends.  Idempotent."""
        self._shut(socket.SHUT_RDWR)  # also if somebody was forked and holds it, too
        self._socket.close()

    def _shut(self, how: int) -> None:
        if self._socket.fileno() >= 0:
            try:
                self._socket.shutdown(how)
            except OSError:
                return  # the other end went first


class Template:
    """The process that forks workers.  Started by the first job; thread-safe; restarted if it dies.

    ``entry`` is Python that names its ``main``; tests and benchmarks have others.
    """

    def __init__(self, *, entry: str = _ENTRY) -> None:
        self._entry = entry
        self._lock = threading.Lock()  # guards the process and its socket
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None

    def start(self) -> None:
        """Start the process now, so that it is ready when the first layer arrives."""
        with self._lock:
            self._ensure()

    def _ensure(self) -> socket.socket:
        if self._socket is not None and self._process is not None and self._process.poll() is None:
            return self._socket
        self._stop()
        if not sys.executable:
            raise FailedPrecondition("start worker", "this Python does not know its own executable")
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        path = [os.path.abspath(entry) for entry in sys.path]
        start = (
            f"import sys; sys.path[:] = {path!r}; from orlop.hints import stand_in; stand_in(); "
            f"{self._entry}; main({theirs.fileno()})"
        )
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", start],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env={"LC_ALL": "C.UTF-8", **_MALLOC},
                cwd="/",
            )
        except OSError as exc:
            ours.close()
            raise Unavailable("start worker", f"{sys.executable}: {exc.strerror}") from exc
        finally:
            theirs.close()
        self._socket = ours
        return ours

    def submit(self, job: dict[str, object], descriptors: list[int]) -> Lifeline:
        """Fork a worker for one job.  The descriptors are duplicated into it."""
        message = json.dumps(job).encode()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            with theirs, self._lock:
                self._send(message, [*descriptors, theirs.fileno()])
        except BaseException:
            ours.close()
            raise
        return Lifeline(ours)

    def _send(self, message: bytes, descriptors: list[int]) -> None:
        for attempt in (1, 2):
            try:
                socket.send_fds(self._ensure(), [message], descriptors)
                return
            except (BrokenPipeError, ConnectionResetError) as exc:
                self._stop()
                if attempt == 2:
                    raise Unavailable("start worker", "the worker's template ended at once") from exc

    def _stop(self) -> None:
        if self._socket is not None:
            self._socket.close()
        if self._process is not None:
            try:
                self._process.wait(5)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._socket = self._process = None

    def retire(self) -> None:
        """Have the process end, and with it all workers; `close` waits for that.  Idempotent."""
        with self._lock:
            if self._socket is not None:
                self._socket.close()
                self._socket = None

    def close(self) -> None:
        """End the process, and with it all workers.  Idempotent."""
        with self._lock:
            self._stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
