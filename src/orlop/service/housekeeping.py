"""What a daemon does when nobody asks for anything: it collects what ended by itself.

Every so often, at a moment when no call runs; if there is none for as long again, all the same.  Only what
costs no more than it takes: expired pins, leases of the dead, trash of the killed.  Reading a whole store for
garbage stays with ``orlop gc``.

Then it reads a few layers again, those found whole longest ago, at a pace that leaves the disk to others;
what is damaged goes to the log.  Mending is left to ``orlop check --repair``.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Protocol, runtime_checkable

from orlop.errors import Error
from orlop.images.upkeep import Checked
from orlop.observe import Call, CancelToken

__all__ = ["IDLE_EVERY", "CollectsIdle", "Housekeeping", "Scrubs"]

_log = logging.getLogger(__name__)

IDLE_EVERY = 300.0  # seconds between two collections
_LOOK = 1.0  # seconds between looks for an idle moment
SCRUB_PACE = 16 << 20  # bytes a second
SCRUB_BUDGET = 1 << 30  # bytes at a time
SCRUB_OLDER = 30 * 86_400.0  # seconds after which a layer is due again
_END = 10.0  # seconds for a collection to end once the daemon stops


@runtime_checkable
class CollectsIdle(Protocol):
    """A store with something to do when it is idle."""

    def collect_idle(self, *, call: Call) -> object:
        """Take what ended by itself."""
        ...


@runtime_checkable
class Scrubs(Protocol):
    """A store that can read its layers again, bit by bit."""

    def scrub(self, *, budget: int, older: float, pace: int | None, call: Call) -> Checked:
        """Read some layers again; see `orlop.images.checking.check.Checker.scrub`."""
        ...


class Housekeeping:
    """A thread that collects in idle moments.  `start` once; `stop` is idempotent."""

    def __init__(self, store: CollectsIdle, *, busy: Callable[[], bool], every: float = IDLE_EVERY) -> None:
        self._store = store
        self._busy = busy
        self._every = every
        self._stopped = threading.Event()
        self._cancel = CancelToken()
        self._thread = threading.Thread(target=self._run, name="orlop-idle", daemon=True)

    def start(self) -> None:
        """Begin; the first collection comes after the first pause."""
        self._thread.start()

    def stop(self) -> None:
        """End, within a bound; what is not collected by then the next one takes."""
        self._stopped.set()
        self._cancel.cancel()
        if self._thread.is_alive():
            self._thread.join(_END)

    def _run(self) -> None:
        while not self._stopped.wait(self._every):
            until = time.monotonic() + self._every
            while self._busy() and time.monotonic() < until:
                if self._stopped.wait(min(_LOOK, self._every)):
                    return
            try:
                self._store.collect_idle(call=Call(cancel=self._cancel))
            except Error as exc:
                if not self._stopped.is_set():
                    _log.warning("nothing was collected: %s", exc)
            except Exception:  # noqa: BLE001 - logged; a bug must not end the daemon's housekeeping
                _log.exception("nothing was collected")
            try:
                self._scrub()
            except Error as exc:
                if not self._stopped.is_set():
                    _log.warning("no layer was read again: %s", exc)
            except Exception:  # noqa: BLE001 - as above
                _log.exception("no layer was read again")

    def _scrub(self) -> None:
        store = self._store
        if not isinstance(store, Scrubs):
            return
        call = Call(cancel=self._cancel)
        checked = store.scrub(budget=SCRUB_BUDGET, older=SCRUB_OLDER, pace=SCRUB_PACE, call=call)
        for finding in checked.findings:
            if finding.kind == "damage":
                _log.warning(
                    "%s is damaged: %s: %s; 'orlop check --full --repair' mends what can be",
                    finding.thing,
                    finding.problem,
                    finding.detail,
                )
