"""Where the explorer's trees come from: a store, here or behind a daemon, asked in a thread of its own.

`Loader` does one thing at a time, in a worker of the app's; what is wanted next waits until what was wanted
before has noticed that nobody wants it any more.  So threads do not pile up while somebody holds a key down.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import closing
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from textual.message import Message

from orlop.errors import Cancelled, Error, from_oserror
from orlop.explorer.survey import LayerSurvey, Survey, survey, tree_at
from orlop.explorer.tui.model import Forest
from orlop.explorer.tui.text import shown
from orlop.observe import Call, CancelToken, Progress

if TYPE_CHECKING:
    from textual.app import App

    from orlop.facade.store import Store

__all__ = ["Job", "Loader", "Source", "StoreSource"]

_T = TypeVar("_T")


class Source(Protocol):
    """What the explorer shows.  Called in a thread; raises as the store's verbs do."""

    def outline(self, call: Call) -> Survey:
        """What is known at once: the layers and their history, without what they did."""
        ...

    def survey(self, call: Call) -> Survey:
        """The whole of it, for which each layer is read."""
        ...

    def forest(self, layer: int, call: Call) -> Forest:
        """The tree above a layer, marked with what that did; 0 is what was changed in a prepared root."""
        ...

    def head(self, path: bytes, layer: int, size: int, call: Call) -> bytes:
        """The first bytes of a file as it shows above a layer."""
        ...


class StoreSource:
    """A thing in a store."""

    def __init__(self, store: Store, thing: str, *, platform: str | None = None) -> None:
        self._store = store
        self._thing = thing
        self._platform = platform
        self._image = ""  # its ID, known once it was surveyed: names may be moved meanwhile

    def outline(self, call: Call) -> Survey:
        """See `Source.outline`."""
        store, name = self._store, self._thing.partition("#")[0]
        root = store.get(self._thing).info if self._thing.startswith("/") else None
        details = store.inspect(root.image_id if root else name, platform=None if root else self._platform)
        self._image = details.info.id
        history = store.history(self._thing, platform=self._platform, call=call)
        layers = [
            LayerSurvey(
                number=line.layer,
                diff_id=line.diff_id,
                created=line.created,
                created_by=line.created_by,
                comment=line.comment,
                size=line.size,
                entries=line.entries,
            )
            for line in history
            if line.layer
        ]
        layers += [LayerSurvey(number=0)] if root else []
        return Survey(
            thing=self._thing,
            kind="root" if root else "image",
            names=(root.image,) if root else details.names,
            id=self._image,
            platform=details.info.platform,
            created=details.info.created,
            size=sum(layer.size for layer in layers),
            layers=tuple(layers),
            history=tuple(history),
            config=_parsed(details.config),
        )

    def survey(self, call: Call) -> Survey:
        """See `Source.survey`."""
        return survey(self._store, self._thing, platform=self._platform, call=call)

    def forest(self, layer: int, call: Call) -> Forest:
        """See `Source.forest`."""
        thing = self._thing if layer == 0 else self._image
        return Forest(tree_at(self._store, thing, layer, call=call), call=call)

    def head(self, path: bytes, layer: int, size: int, call: Call) -> bytes:
        """See `Source.head`."""
        thing = self._thing if layer == 0 else f"{self._image}#{layer}"
        data = b""
        with closing(self._store.cat(thing, path, call=call)) as chunks:
            for chunk in chunks:
                data += chunk
                if len(data) >= size:
                    break
        return data[:size]


def _parsed(config: bytes) -> dict[str, Any]:
    """A config as a dict, whatever its bytes."""
    try:
        found = json.loads(config)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


class Job:
    """One thing to be read, and how far that is.  Set by its thread, looked at by the screen's."""

    def __init__(self, title: str) -> None:
        self.title = title
        self.cancel = CancelToken()
        self.news = ""
        self._begin = time.monotonic()

    @property
    def seconds(self) -> float:
        """How long it has taken so far."""
        return time.monotonic() - self._begin

    def progress(self, event: Progress) -> None:
        """An item moved on (`orlop.observe.Observer`)."""
        self.news = f"{event.phase} {shown(event.item)[:40]}"

    def warning(self, text: str) -> None:
        """Something to know (`orlop.observe.Observer`)."""
        self.news = shown(text)


class Loader:
    """Reads in threads for an app, the latest wish only.  Used by the screen's thread alone.

    The app hands `Ended` on to `ended`.
    """

    class Ended(Message):
        """A thread is done: what it was asked for, and what is to be done about it here."""

        def __init__(self, loader: Loader, job: Job, tell: Callable[[], None] | None) -> None:
            super().__init__()
            self.loader = loader
            self.job = job
            self.tell = tell

    def __init__(self, app: App[None]) -> None:
        self._app = app
        self.job: Job | None = None
        self._next: Callable[[], None] | None = None
        self._closed = False

    def read(
        self,
        title: str,
        work: Callable[[Call], _T],
        done: Callable[[_T], None],
        failed: Callable[[Error], None],
    ) -> None:
        """Have ``work`` done in a thread, then ``done`` or ``failed`` here; what was wanted before is not.

        Of a job that was cancelled neither is called.
        """

        def begin() -> None:
            job = self.job = Job(title)
            self._app.run_worker(lambda: self._run(job, work, done, failed), name=title, thread=True)

        if self._closed:
            return
        if self.job is None:
            begin()
        else:
            self.job.cancel.cancel()
            self._next = begin

    def stop(self) -> bool:
        """Give up what is being read; whether there was anything."""
        self._next = None
        if self.job is None or self.job.cancel.cancelled:
            return False
        self.job.cancel.cancel()
        return True

    def close(self) -> None:
        """Give up for good."""
        self._closed = True
        self.stop()

    def ended(self, message: Ended) -> None:
        """Take what a thread has read, and go on with what is wanted next."""
        self.job = None
        following, self._next = self._next, None
        if message.tell is not None and not message.job.cancel.cancelled:
            message.tell()
        if following is not None and self.job is None:
            following()

    def _run(
        self,
        job: Job,
        work: Callable[[Call], _T],
        done: Callable[[_T], None],
        failed: Callable[[Error], None],
    ) -> None:
        """In the thread."""
        tell: Callable[[], None] | None = None
        try:
            tell = partial(done, work(Call(observer=job, cancel=job.cancel)))
        except Cancelled:
            pass  # as was asked for
        except Error as exc:
            tell = partial(failed, exc)
        except OSError as exc:
            tell = partial(failed, from_oserror("", exc))
        self._app.post_message(self.Ended(self, job, tell))  # waits for nobody: the app may be gone
