"""An export as events: its bytes in order, and between them progress and warnings, and last what it was.

The work goes on a few chunks ahead of what the client takes, and ends with the call.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import grpc

from orlop.images.archives.chunks import Chunks
from orlop.images.exports import Exported, Sink
from orlop.observe import Call, Progress
from orlop.service.calls import Warnings, call_of

__all__ = ["exported"]

CHUNK = 1 << 20  # bytes of a message, at most
_TELL = 0.2  # seconds without bytes after which progress is told all the same


class _Heard(Warnings):
    """An observer that keeps, of each item and phase, the last state."""

    def __init__(self) -> None:
        super().__init__()
        self._lock = threading.Lock()  # guards the rest
        self._progress: dict[tuple[str, str], Progress] = {}
        self._told = 0

    def progress(self, event: Progress) -> None:
        """Keep the event in the place of the last one."""
        with self._lock:
            self._progress.pop((event.item, event.phase), None)  # what is told last was said last
            self._progress[event.item, event.phase] = event

    def news(self) -> list[Progress | str]:
        """What came since the last time."""
        with self._lock:
            texts, self._told = self.texts[self._told :], len(self.texts)
            steps, self._progress = list(self._progress.values()), {}
        return [*texts, *steps]


def exported(
    context: grpc.ServicerContext, work: Callable[[Sink, Call], Exported], what: str
) -> Iterator[bytes | Progress | str | Exported]:
    """Run an export whose bytes go to the client.  Raises what the work raises."""
    heard = _Heard()
    with Chunks(work, call_of(context, heard), what) as chunks:
        while (chunk := chunks.take(_TELL)) != b"":
            yield from heard.news()
            for start in range(0, len(chunk or b""), CHUNK):
                yield (chunk or b"")[start : start + CHUNK]
        yield from heard.news()
        yield chunks.result
