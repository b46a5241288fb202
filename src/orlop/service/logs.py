"""The daemon's log: lines for people or for programs, and which call each belongs to.

A line that is written while a call runs, in its thread or in the one that works for it, has the call's
number, method and client, whoever writes it; the line about its end has the code and the seconds, too.  In
JSON these are fields (docs/daemon.md).

Invariant: one record is one line, whatever text clients send; in the form for people a traceback follows, its
lines indented.  Requests are not written, so their secrets are not either.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Literal

from orlop.service.shown import one_line

if TYPE_CHECKING:
    from orlop.images.api import Store
    from orlop.service.pools import Pools
    from orlop.service.watching import Begun

__all__ = ["LOG_FORMATS", "CallLog", "LogFormat", "log_handler"]

_log = logging.getLogger("orlop.service.calls")

LogFormat = Literal["text", "json"]
LOG_FORMATS: tuple[LogFormat, ...] = ("text", "json")
_TEXT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
_FIELDS = ("request", "method", "client", "code", "seconds")
_MOST_LINES = 100  # of a traceback
_current: ContextVar[Begun | None] = ContextVar("orlop_call", default=None)


class _OfCall(logging.Filter):
    """Gives each record the call that its thread runs."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Let all pass."""
        call = _current.get()
        if call is not None and not hasattr(record, "request"):
            record.request, record.method, record.client = call.number, call.method, call.client
        return True


class _Text(logging.Formatter):
    """A record for people."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - the base's
        """The line."""
        record.message = one_line(record.message)
        return super().formatMessage(record)

    def formatException(self, ei: Any) -> str:  # noqa: ANN401, N802 - the base's
        """A traceback's lines, none of which can be taken for a record."""
        return "\n".join(f"  {line}" for line in _traceback(super().formatException(ei)))


def _traceback(text: str) -> list[str]:
    return [one_line(line) for line in text.splitlines()[-_MOST_LINES:]]


class _Json(logging.Formatter):
    """A record as a JSON object on one line."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        seconds = time.gmtime(record.created)
        said: dict[str, object] = {
            "time": f"{time.strftime('%Y-%m-%dT%H:%M:%S', seconds)}.{int(record.msecs):03}Z",
            "level": record.levelname,
            "logger": record.name,
            "message": one_line(record.getMessage()),
        }
        for name in _FIELDS:
            value = getattr(record, name, None)
            if value is not None:
                said[name] = one_line(value) if isinstance(value, str) else value
        if record.exc_info:
            said["traceback"] = _traceback(self.formatException(record.exc_info))
        return json.dumps(said)


def log_handler(form: LogFormat) -> logging.Handler:
    """A handler that writes to standard error in a form."""
    handler = logging.StreamHandler()
    handler.addFilter(_OfCall())
    handler.setFormatter(_Json() if form == "json" else _Text(_TEXT))
    return handler


class CallLog:
    """Writes a line when a call has ended well, and knows which call a thread runs.

    Satisfies `orlop.service.watching.CallWatcher`.  Calls that fail are logged by the gate, which knows why.
    """

    @contextmanager
    def attached(self, store: Store, pools: Pools) -> Iterator[None]:
        """There is nothing to do."""
        yield

    def began(self, call: Begun) -> _Logged:
        """Remember the call for what this thread writes."""
        return _Logged(call)


class _Logged:
    __slots__ = ("_call", "_token")

    def __init__(self, call: Begun) -> None:
        self._call = call
        self._token = _current.set(call)

    def ended(self, code: str, seconds: float) -> None:
        """Write the line."""
        call = self._call
        if code == "OK" and _log.isEnabledFor(logging.DEBUG):
            rounded = round(seconds, 6)
            _log.debug(
                "%s by %s, request %s: %s in %.6f s",
                call.method,
                call.client,
                call.number,
                code,
                rounded,
                extra={
                    "request": call.number,
                    "method": call.method,
                    "client": call.client,
                    "code": code,
                    "seconds": rounded,
                },
            )
        with suppress(ValueError):  # a stream that was closed from another thread, which runs none of ours
            _current.reset(self._token)
