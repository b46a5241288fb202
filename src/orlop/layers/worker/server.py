"""The template: a process that forks workers, and sees to it that each of them ends.

It runs with our rights (but for those of programs it might start: it starts none) and never looks at a byte
from outside: it reads jobs, which we write, and the ends of its children.  One thread, which never waits for
anything but news.

Invariants: a worker lives no longer than its lifeline, than this process, or than whoever gave it the job;
how it ended is said on its lifeline.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import select
import signal
import socket
from collections.abc import Callable

from orlop.layers import compression
from orlop.layers.worker import DESCRIPTORS, MAX_JOB
from orlop.layers.worker.process import work_on
from orlop.linux import confine

__all__ = ["Work", "main"]

_PF_EXITING = 4  # include/linux/sched.h; in the flags that proc(5) shows

Work = Callable[[bytes, list[int], int], int]
"""What a worker does with a job, its descriptors and its parent's process ID; returns the exit status."""


def main(control: int, work: Work = work_on) -> None:
    """Wait for jobs on a socket, fork a worker for each.  Ends when the socket closes, and they with it."""
    # What was ignored or blocked where we come from would be so here, and in the workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; our parent decides
    signal.signal(signal.SIGCHLD, lambda *_: None)  # a handler, so that it wakes us
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    compression.preload()
    confine.prepare()
    gc.disable()  # the index has no cycles
    with socket.socket(fileno=control) as jobs:
        _Server(jobs, work).serve()


class _Server:
    """The workers that live, by process ID, each with its lifeline."""

    def __init__(self, jobs: socket.socket, work: Work) -> None:
        self._jobs, self._work = jobs, work
        self._workers: dict[int, socket.socket] = {}
        self._given_up: dict[int, bool] = {}  # by process ID, whether it lived when we killed it
        self._news = select.poll()
        self._wake, awake = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(awake, warn_on_full_buffer=False)
        self._news.register(jobs, select.POLLIN)
        self._news.register(self._wake, select.POLLIN)

    def serve(self) -> None:
        """Work until nobody gives jobs any more."""
        while True:
            for descriptor, _ in self._news.poll():
                if descriptor == self._jobs.fileno():
                    if not self._take():
                        self._end()
                        return
                elif descriptor == self._wake:
                    with contextlib.suppress(BlockingIOError):
                        os.read(self._wake, 4096)
                else:
                    self._kill(descriptor)
            self._reap(os.WNOHANG)

    def _take(self) -> bool:
        """Start a worker for one job; False if there will be no more."""
        try:
            message, descriptors, _, _ = socket.recv_fds(self._jobs, MAX_JOB, DESCRIPTORS)
        except ConnectionResetError:
            return False
        if not message:
            return False
        if len(descriptors) == DESCRIPTORS:  # else we ran out of them; its giver sees the lifeline close
            with socket.socket(fileno=descriptors.pop()) as lifeline:
                self._fork(message, descriptors, lifeline)
        for descriptor in descriptors:
            os.close(descriptor)
        return True

    def _fork(self, message: bytes, descriptors: list[int], lifeline: socket.socket) -> None:
        ours = os.getpid()
        try:
            pid = os.fork()
        except OSError as exc:
            _say(lifeline, {"refused": exc.strerror})
            return
        if pid == 0:
            code = 1
            try:
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                code = self._work(message, descriptors, ours)
            finally:
                os._exit(code)
        self._workers[pid] = lifeline.dup()
        self._news.register(self._workers[pid], select.POLLIN)

    def _kill(self, descriptor: int) -> None:
        """Nobody waits for the worker of this lifeline any more."""
        for pid, lifeline in self._workers.items():
            if lifeline.fileno() == descriptor:
                self._news.unregister(lifeline)
                self._given_up[pid] = not _is_exiting(pid)
                os.kill(pid, signal.SIGKILL)

    def _reap(self, options: int) -> None:
        """Take leave of workers that ended; so their times count as ours, and as our parent's."""
        while self._workers:
            pid, status, usage = os.wait4(-1, options)
            if not pid:
                return
            with self._workers.pop(pid) as lifeline:
                lived = self._given_up.pop(pid, None)
                if lived is None:
                    self._news.unregister(lifeline)
                cpu = usage.ru_utime + usage.ru_stime
                _say(lifeline, {"status": status, "killed": bool(lived), "cpu": cpu})

    def _end(self) -> None:
        for pid in self._workers:
            os.kill(pid, signal.SIGKILL)
        self._reap(0)


def _is_exiting(pid: int) -> bool:
    """Whether a child is on its way out, its files closed but not yet to be waited for."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return False
    return bool(int(fields[6]) & _PF_EXITING)


def _say(lifeline: socket.socket, news: dict[str, object]) -> None:
    with contextlib.suppress(OSError):  # nobody is there
        lifeline.send(json.dumps(news).encode(), socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
