"""The events of a stream: progress and warnings go to the observer, and the last is the result."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, Protocol, TypeVar

from orlop.client import wire
from orlop.errors import Internal
from orlop.observe import Observer
from orlop.proto.orlop.v1 import types_pb2

__all__ = ["follow"]


class _Event(Protocol):
    """What the messages of all streams have in common."""

    @property
    def progress(self) -> types_pb2.Progress: ...
    @property
    def warning(self) -> types_pb2.Warning: ...
    def WhichOneof(self, oneof_group: Literal["event"], /) -> str | None: ...  # noqa: N802 - protobuf's name


_E = TypeVar("_E", bound=_Event)


def follow(events: Iterator[_E], result: str, observer: Observer, attempted: str) -> _E:
    """Hand progress and warnings on until the stream ends; the event that holds the result."""
    last: _E | None = None
    for event in events:
        kind = event.WhichOneof("event")
        if kind == "progress":
            observer.progress(wire.progress_from(event.progress))
        elif kind == "warning":
            observer.warning(event.warning.text)
        elif kind == result:
            last = event
        # An event of a kind unknown here comes from a newer daemon; the result will still come.
    if last is None:
        raise Internal(attempted, "the daemon ended the call without a result")
    return last
