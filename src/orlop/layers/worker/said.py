"""What a worker says, and for how long it says nothing: read without belief."""

from __future__ import annotations

import json

from orlop.errors import (
    Error,
    FailedPrecondition,
    Internal,
    InvalidArgument,
    ResourceExhausted,
    Unavailable,
    limit_hint,
)

__all__ = ["LOOK", "MOST_SAID", "PART", "Stall", "nonsense", "their_error"]

PART = 1 << 20  # bytes of an answer that are taken at a time
MOST_SAID = 64 << 10  # bytes of an error, which is decoded before anything is known of its shape
LOOK = 0.2  # seconds; how soon a cancelled call stops waiting for a silent worker
_WHAT = "unpack layer"
_SAYABLE: dict[str, type[Error]] = {  # what a worker may raise: about the layer, or itself
    cls.code: cls for cls in (FailedPrecondition, InvalidArgument, Internal, ResourceExhausted)
}


class Stall:
    """How long a worker that should do something did nothing."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._idle = 0.0

    def watch(self, seconds: float, *, moved: bool, expects: bool) -> None:
        """Some time went by, in which the worker gave a sign of life or not, and it was its turn or not.

        Raises `Unavailable` when it has been too long.
        """
        self._idle = self._idle + seconds if expects and not moved else 0.0
        if self._idle >= self._limit:
            raise Unavailable(
                _WHAT,
                f"the worker that reads the layer did nothing for {self._limit} seconds (worker_stall)",
                hint=limit_hint("worker_stall"),
                details={"limit": "worker_stall"},
            )


def their_error(data: bytes) -> Error:
    """The error that a worker described."""
    try:
        said = json.loads(data)
        details = said["details"]
        return _SAYABLE[said["code"]](
            _plain(said["attempted"], 500),
            _plain(said["reason"], 1000),
            hint=_plain(said["hint"], 500),
            details={"limit": _plain(details["limit"], 100)} if "limit" in details else {},
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as exc:
        raise nonsense() from exc


def nonsense() -> Internal:
    """The error for an answer that means nothing."""
    return Internal(_WHAT, "the worker answered what no worker says")


def _plain(said: object, most: int) -> str:
    """A text that may go to a terminal."""
    return "".join(character if character.isprintable() else "?" for character in str(said)[:most])
