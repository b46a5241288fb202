"""What a long call carries with it: where to report, when to stop.

One hook serves progress bars, logs, metrics and traces; the null implementation does nothing.
A `Call` is handed down unchanged through the rooms.  Work looks at it once per chunk of bytes or
per few entries, so that Ctrl-C, a closed RPC and a deadline all stop it soon.

A `Recorder` is told what all calls of the process have in common with others': steps, which become spans of
traces, and amounts, which become metrics.  Without one (`recording`) that costs a look at an empty tuple.

`reached` names the points between two steps whose order matters for what outlasts a crash.  It does nothing
unless somebody watches; `orlop.testing.crashes` kills the process there.
"""

from __future__ import annotations

import contextlib
import functools
import threading
import time
from collections.abc import Callable, Iterator, Mapping

from orlop.errors import Cancelled, DeadlineExceeded, InvalidArgument
from orlop.hints import TYPE_CHECKING, ParamSpec, Protocol, TypeAlias, TypeVar
from orlop.values import dataclass, field, replace

if TYPE_CHECKING:
    from concurrent.futures import Future

__all__ = [
    "NULL_OBSERVER",
    "Auth",
    "Call",
    "CancelToken",
    "NullObserver",
    "Observer",
    "Progress",
    "Rate",
    "Recorder",
    "Steps",
    "Tally",
    "Unheld",
    "count",
    "reached",
    "recording",
    "result_of",
    "stepped",
    "watch_points",
]

_T = TypeVar("_T")
_P = ParamSpec("_P")
_R = TypeVar("_R")
_Origins: TypeAlias = "tuple[tuple[Recorder, object], ...]"
_ITEM = 200  # characters of what a step is about
_NOTICED = 1.0  # seconds of a pause that somebody may ask about
_LOOK = 0.1  # seconds after which a wait for a result looks up


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """One step of one item of a long call.

    ``item`` is a digest or a name; ``phase`` one of ``resolving``, ``waiting``, ``fetching``,
    ``following`` (another call fetches it, here or in another process), ``indexing``, ``merging``,
    ``unpacking``, ``reading``, ``writing``, ``checking``, ``packing``, ``pushing``, ``mounted``
    (cross-repository), ``deleting``, ``freezing``, ``exists``, ``done``, and ``retrying``, which leaves all
    else as it was and says in ``note`` why the item waits.  ``done`` and ``total`` are bytes; ``total`` is 0
    where it is not known.
    ``rate`` is bytes per second over the last moments.  Of a layer ``fetching`` and ``indexing`` go on side
    by side, the former counting bytes of the blob, the latter of the tar that it becomes.
    """

    item: str
    phase: str
    done: int = 0
    total: int = 0
    rate: float = 0.0
    note: str = ""


class Observer(Protocol):
    """Where a call reports.  Called from several threads; must not block or raise."""

    def progress(self, event: Progress) -> None:
        """An item moved on."""

    def warning(self, text: str) -> None:
        """Something was left out or chosen that the user may want to know."""


class NullObserver:
    """An observer that does nothing."""

    def progress(self, event: Progress) -> None:
        """Drop the event."""

    def warning(self, text: str) -> None:
        """Drop the text."""


NULL_OBSERVER = NullObserver()


class CancelToken:
    """Set once, from any thread or from a signal handler; looked at by the work.

    A plain flag, and waiting is looking at it: an Event's lock could be held by the very thread that
    a signal handler interrupts.
    """

    __slots__ = ("_parent", "_set")

    _LOOK = 0.05  # seconds between looks while waiting

    def __init__(self, parent: CancelToken | None = None) -> None:
        self._parent = parent
        self._set = False

    def cancel(self) -> None:
        """Ask the work to stop.  Idempotent."""
        self._set = True

    def child(self) -> CancelToken:
        """A token that is cancelled with this one, and can be cancelled alone."""
        return CancelToken(self)

    @property
    def cancelled(self) -> bool:
        """Whether `cancel` was called, here or on the token this is a child of."""
        return self._set or (self._parent is not None and self._parent.cancelled)

    def wait(self, seconds: float) -> bool:
        """Sleep up to ``seconds``; True soon after the token is cancelled."""
        end = time.monotonic() + seconds
        while not self.cancelled:
            left = end - time.monotonic()
            if left <= 0:
                return False
            time.sleep(min(left, self._LOOK))
        return True


class Unheld(CancelToken):
    """One that nobody holds, and so nobody sets: who waits for the call need not look at it."""

    __slots__ = ()


class Tally:
    """What the parts of one call have in common: how long it paused, and what it has said.  Thread-safe."""

    __slots__ = ("_active", "_lock", "_paused", "_said", "_since")

    _MOST_SAID = 100  # different texts that are remembered, and so the most that are said

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards the rest
        self._active = 0
        self._since = 0.0
        self._paused = 0.0
        self._said: set[str] = set()

    @contextlib.contextmanager
    def pausing(self) -> Iterator[None]:
        """While a part of the call sleeps.  Pauses side by side count once."""
        with self._lock:
            if self._active == 0:
                self._since = time.monotonic()
            self._active += 1
        try:
            yield
        finally:
            with self._lock:
                self._active -= 1
                if self._active == 0:
                    self._paused += time.monotonic() - self._since

    @property
    def paused(self) -> float:
        """Seconds in which some part of the call slept."""
        with self._lock:
            return self._paused + (time.monotonic() - self._since if self._active else 0.0)

    def is_new(self, text: str) -> bool:
        """Whether a text is said for the first time, and not one of far too many."""
        with self._lock:
            if text in self._said or len(self._said) >= self._MOST_SAID:
                return False
            self._said.add(text)
            return True


@dataclass(frozen=True, slots=True, kw_only=True)
class Auth:
    """Credentials for one call and one registry: they go before those that are kept, and are not kept.

    ``registry`` is the host, and the port where there is one, that they are for (``registry.lan:5000``);
    left empty, `orlop.Store` takes that of the image named.  Secrets are not shown by ``repr``.
    """

    username: str = ""
    password: str = field(default="", repr=False)
    identity_token: str = field(default="", repr=False)
    registry_token: str = field(default="", repr=False)
    registry: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """The circumstances of one call: observer, cancel token, deadline, credentials of its own.

    ``deadline`` is a value of `time.monotonic`, or None; ``auth`` is for the registry that it has to name;
    ``tally`` is kept by all parts of the call together; ``origin`` is where recorders found themselves when
    the call was made, for the steps that other threads do.
    """

    observer: Observer = NULL_OBSERVER
    cancel: CancelToken = field(default_factory=CancelToken)
    deadline: float | None = None
    auth: Auth | None = None
    tally: Tally = field(default_factory=Tally)
    origin: _Origins = field(default_factory=lambda: _origins(), repr=False, compare=False)  # noqa: PLW0108 - below

    def __post_init__(self) -> None:
        """Raise `InvalidArgument` for credentials that are for no registry: nobody would get them."""
        if self.auth is not None and not self.auth.registry and self.auth != Auth():
            raise InvalidArgument(
                "bring credentials for a call",
                "they do not say which registry they are for",
                hint="set registry, to a host as registry.lan:5000 or docker.io",
            )

    def check(self, attempted: str) -> None:
        """Raise `Cancelled` or `DeadlineExceeded` if the call should stop."""
        if self.cancel.cancelled:
            raise Cancelled(attempted, "cancelled")
        if self.deadline is not None and time.monotonic() > self.deadline:
            raise DeadlineExceeded(attempted, "the deadline has passed")

    def step(self, name: str, **about: str | int) -> contextlib.AbstractContextManager[object]:
        """A step of the work, for the length of a ``with`` block, as recorders are told of it.

        ``name`` is a word such as ``fetch``, of which there are few; ``about`` says what in particular.
        """
        recorders = _recorders
        if not recorders:
            return _NO_STEP
        return _steps(recorders, name, self.origin, about)

    def child(self) -> Call:
        """The same circumstances for a part of the work, which can be cancelled alone."""
        return replace(self, cancel=self.cancel.child())

    def pause(self, seconds: float, attempted: str, *, why: str = "") -> None:
        """Sleep, but wake and raise at once when cancelled or past the deadline; the tally counts it.

        A ``why`` is reported where the pause is one that people notice.
        """
        if why and seconds >= _NOTICED:
            item = attempted.rpartition(" ")[2]
            self.observer.progress(
                Progress(
                    item=item if item.startswith("sha") else attempted,
                    phase="retrying",
                    note=f"waiting {seconds:.0f} s: {why}",
                )
            )
        if self.deadline is not None:
            seconds = min(seconds, max(0.0, self.deadline - time.monotonic()) + 0.001)
        with self.tally.pausing():
            self.cancel.wait(seconds)
        self.check(attempted)

    def warn_once(self, text: str) -> None:
        """Report a warning, unless this call has reported the very same."""
        if self.tally.is_new(text):
            self.observer.warning(text)


class Rate:
    """Bytes per second over the last seconds; one per item, used by one thread.

    ``rate`` is a mean that forgets: a second ago counts half as much as now.  It is 0 before half a second
    has passed, and falls where nothing comes and `add` is called all the same.
    """

    __slots__ = ("_bytes", "_clock", "_last", "_since", "rate")

    _WINDOW = 0.5  # seconds of which a mean is taken, to be mixed with those before
    _REPORT = 0.1  # seconds between two reports

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._since = clock()
        self._bytes = 0
        self._last = 0.0
        self.rate = 0.0

    def add(self, count: int) -> bool:
        """Count bytes; True when it is time to report (at most ten times a second)."""
        self._bytes += count
        now = self._clock()
        span = now - self._since
        if span >= self._WINDOW:
            fresh = max(0, self._bytes) / span
            share = 1.0 - 0.5**span if self.rate else 1.0
            self.rate += (fresh - self.rate) * share
            self._since, self._bytes = now, 0
        if now - self._last < self._REPORT:
            return False
        self._last = now
        return True


class Steps:
    """Tells how far one item is, ten times a second at most; one for each phase, used by one thread."""

    __slots__ = ("_call", "_item", "_phase", "_rate", "_total", "done")

    def __init__(self, call: Call, item: str, phase: str, *, total: int = 0) -> None:
        self._call, self._item, self._phase, self._total = call, item, phase, total
        self._rate = Rate()
        self.done = 0

    def add(self, count: int) -> None:
        """So many bytes more."""
        self.done += count
        if self._rate.add(count):
            progress = Progress(
                item=self._item,
                phase=self._phase,
                done=self.done,
                total=max(self._total, self.done) if self._total else 0,
                rate=self._rate.rate,
            )
            self._call.observer.progress(progress)

    def at(self, done: int) -> None:
        """So many bytes in all."""
        self.add(done - self.done)


def result_of(future: Future[_T]) -> _T:
    """A future's result, waited for so that a Ctrl-C counts.

    Python runs signal handlers in the main thread alone, between two of its own steps.  A signal that another
    thread takes, or that falls between the last such step and the wait, wakes nobody: so the wait is a loop.
    """
    while not future.done():
        with contextlib.suppress(TimeoutError):
            future.exception(_LOOK)
    return future.result()


class Recorder(Protocol):
    """What is told of the work of a whole process.  Called from all threads; must not block or raise."""

    def origin(self) -> object:
        """Where the calling thread is, to be given to the steps of a call that begins now."""

    def step(
        self, name: str, origin: object, about: Mapping[str, str | int]
    ) -> contextlib.AbstractContextManager[object]:
        """A step begins, and ends with the block, perhaps by an exception.

        ``origin`` is None for a call that was made before this recorder was there.
        """
        ...

    def count(self, name: str, amount: int) -> None:
        """So much more of something."""


_NO_STEP: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
_recorders: tuple[Recorder, ...] = ()  # replaced as a whole, by `recording` alone
_recording = threading.Lock()


def count(name: str, amount: int = 1) -> None:
    """Tell recorders of so much more of something; docs/metrics.md has the names."""
    for recorder in _recorders:
        recorder.count(name, amount)


@contextlib.contextmanager
def recording(recorder: Recorder) -> Iterator[None]:
    """Have a recorder told of the process's work for the length of a ``with`` block."""
    global _recorders  # noqa: PLW0603 - looked at by every thread, at a cost that nobody notices
    with _recording:
        _recorders = (*_recorders, recorder)
    try:
        yield
    finally:
        with _recording:
            _recorders = tuple(one for one in _recorders if one is not recorder)


def _origins() -> _Origins:
    return tuple((recorder, recorder.origin()) for recorder in _recorders)


@contextlib.contextmanager
def _steps(
    recorders: tuple[Recorder, ...], name: str, origins: _Origins, about: Mapping[str, str | int]
) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for recorder in recorders:
            origin = next((at for one, at in origins if one is recorder), None)
            stack.enter_context(recorder.step(name, origin, about))
        yield


def stepped(name: str, *, of: int = 0) -> Callable[[Callable[_P, _R]], Callable[_P, _R]]:
    """Make a step of each call of a function that is given a `Call`; nothing is one without.

    ``of`` is the number of the argument that says what it is about (of a method the first is 1): a text, or
    what has a ``digest``.
    """

    def decorate(function: Callable[_P, _R]) -> Callable[_P, _R]:
        @functools.wraps(function)
        def run(*args: _P.args, **kwargs: _P.kwargs) -> _R:
            if not _recorders:
                return function(*args, **kwargs)
            given = (*args, *kwargs.values())
            call = next((one for one in given if isinstance(one, Call)), None)
            if call is None:
                return function(*args, **kwargs)
            about: dict[str, str | int] = {}
            if of and of < len(args):
                about["item"] = str(getattr(args[of], "digest", args[of]))[:_ITEM]
            with call.step(name, **about):
                return function(*args, **kwargs)

        return run

    return decorate


_watcher: Callable[[str], None] | None = None  # set by `watch_points` alone


def reached(point: str) -> None:
    """The work has come to a named point: ``thing.step``, what was done last.

    Always called with a literal, by which the points are found in the source.
    """
    watcher = _watcher
    if watcher is not None:
        watcher(point)


@contextlib.contextmanager
def watch_points(watcher: Callable[[str], None]) -> Iterator[None]:
    """Have a function called at every point, in the thread that comes there, for a ``with`` block.

    For the whole process, so for tests.  What it raises goes up through the work.
    """
    global _watcher  # noqa: PLW0603 - looked at by every thread, at a cost that nobody notices
    before, _watcher = _watcher, watcher
    try:
        yield
    finally:
        _watcher = before
