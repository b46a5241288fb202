"""The second phase of a deletion: what transactions have forgotten goes from the disk.

The list of trash is the work to do, so it outlasts everybody: what a killed process leaves is taken by
whoever sweeps next.  `Sweeper.sweep` does it in the caller's thread, for those who wait (a removal, a
collection); `Sweeper.wake` has a thread do it behind the call (the end of a lease, a cleanup), with pauses as
long as its work, so that it takes no more than half of a disk's time.

Things are moved to ROOT/trash and struck off the list under their locks (`graves`), some at a
time, which takes milliseconds; they are deleted there when all locks are free.

Invariants: what is on the list may still be in its place, what is not on it has left it; what cannot be
deleted holds up nothing else, and a collection tries again.
"""

from __future__ import annotations

import contextlib
import threading
import time
from pathlib import Path

from orlop.errors import Error, from_oserror
from orlop.hints import TYPE_CHECKING
from orlop.images.account.measure import measure_some
from orlop.metadata import garbage
from orlop.metadata.db import Transaction
from orlop.metadata.forks import watch_forks
from orlop.observe import Call, Progress, Steps, count, reached

if TYPE_CHECKING:
    from orlop.images.core import Core

__all__ = ["Sweeper"]


BATCH = 64  # things that are taken out of their places, under their locks, in one transaction
MOST_PAUSE = 0.1  # seconds between two things, behind a call
CLOSE_WAIT = 5.0  # seconds that `close` waits for the work to be done; after that for one thing to end
_LOOK = 0.05


class Sweeper:
    """Empties the trash of one store.  Thread-safe; its thread lives as long as there is work."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._closed = False
        self._begin()
        watch_forks(self)

    def _begin(self) -> None:
        self._turn = threading.Lock()  # held while a thread sweeps: two would find each other's things busy
        self._guard = threading.Lock()  # guards the two fields below, and _closed
        self._thread: threading.Thread | None = None
        self._wanted = False
        self._hurry = threading.Event()
        self._quit = threading.Event()

    def before_fork(self) -> None:
        """See `orlop.metadata.forks`."""

    def after_fork_in_parent(self) -> None:
        """Go on."""

    def after_fork_in_child(self) -> None:
        """Begin anew: the thread is the parent's, and so is what it was at."""
        self._begin()

    def sweep(self, *, call: Call) -> dict[str, int]:
        """Delete all that is forgotten; the bytes of each path that went.

        What somebody else is at this moment is left: it is being deleted, or made anew.
        """
        while not self._turn.acquire(timeout=_LOOK):
            call.check("empty the trash")
        try:
            return self._sweep(call, pause=False)
        finally:
            self._turn.release()

    def wake(self) -> None:
        """Have what is forgotten deleted soon.  Never blocks; nothing once the store is closing."""
        with self._guard:
            if self._closed:
                return
            self._wanted = True
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="orlop-sweep", daemon=True)
                self._thread.start()

    def close(self) -> None:
        """Let the thread finish, within a bound; what is left then the next one takes.  Idempotent."""
        with self._guard:
            self._closed = True
            thread = self._thread
        self._hurry.set()
        if thread is not None:
            thread.join(CLOSE_WAIT)
            self._quit.set()
            thread.join(CLOSE_WAIT)

    def _run(self) -> None:
        while True:
            with self._guard:
                if not self._wanted or self._quit.is_set():
                    self._thread = None
                    return
                self._wanted = False
            try:
                with self._turn, self._core.reserve.deleting():
                    self._sweep(Call(), pause=True)
            except (Error, OSError) as exc:
                import logging

                logging.getLogger(__name__).warning("what was removed is not deleted yet: %s", exc)
            except BaseException:
                with self._guard:
                    self._thread = None  # a bug; who wakes next has a new thread
                raise

    def _sweep(self, call: Call, *, pause: bool) -> dict[str, int]:
        """One round over the list as it is now.  Needs the turn."""
        gone: dict[str, int] = {}
        listed = self._core.db.read(garbage.trash_list)
        steps = Steps(call, "trash", "deleting")
        for start in range(0, len(listed), BATCH):
            graves: dict[str, Path] = {}
            try:
                self._lift(listed[start : start + BATCH], graves, call)
            finally:
                for path, grave in graves.items():
                    started = time.monotonic()
                    size = self._burn(path, grave, call)
                    if size is not None:
                        gone[path] = size
                        count("collected_bytes", size)
                        steps.add(size)
                    if pause:
                        self._hurry.wait(min(time.monotonic() - started, MOST_PAUSE))
            if self._quit.is_set():
                break
        if gone:
            call.observer.progress(Progress(item="trash", phase="done", done=steps.done))
        return gone

    def _lift(self, paths: list[str], graves: dict[str, Path], call: Call) -> None:
        """Take things out of their places and off the list; they are added to ``graves``."""
        from orlop.images.collection.graves import (
            lift,  # when first needed: a store that deletes nothing has no use
        )

        core = self._core
        settled: dict[str, bool] = {}  # whether a row names it again
        # A thing that is made anew and forgotten again must find its path off the list: it puts it there.
        with contextlib.ExitStack() as locks:
            for path in paths:
                call.check("empty the trash")
                try:
                    lifted = lift(core, path)
                except (Error, OSError) as exc:
                    self._complain(path, exc, call)
                    continue
                if lifted is None:
                    continue
                locks.callback(lifted.lock.release)
                settled[path] = lifted.named
                if lifted.grave is not None:
                    graves[path] = lifted.grave
            if settled:
                self._strike(settled)

    def _strike(self, settled: dict[str, bool]) -> None:
        from orlop.images.collection.graves import is_named

        def body(tx: Transaction) -> None:
            for path, named in settled.items():
                # What is in its place may be forgotten again by now: that needs no lock.
                if not named or is_named(tx, path):
                    garbage.trash_done(tx, path)

        for name in ("prepared", "snapshots"):
            if any(path.startswith(f"{name}/") for path in settled):
                # Else it might come back after a power cut, with nothing that says that it was given up.
                self._core.sync.folder(self._core.layout.root / name)
        self._core.db.write(body)
        reached("trash.struck")

    def _burn(self, path: str, grave: Path, call: Call) -> int | None:
        """Delete one thing; the bytes that went, or None if somebody else was at it."""
        core = self._core
        name = str(grave.relative_to(core.layout.root))
        try:
            size = measure_some(core.layout.root, [name], call=Call()).get(name)
            core.burn(grave)
        except (Error, OSError) as exc:
            self._complain(path, exc, call)
            return 0
        return size

    @staticmethod
    def _complain(path: str, exc: Error | OSError, call: Call) -> None:
        error = exc if isinstance(exc, Error) else from_oserror(f"delete {path}", exc)
        call.observer.warning(f"{path} cannot be deleted now: {error}")
