"""The sender that goes from place to place until one answers.

A mirror that cannot be reached, refuses, lacks what is asked for or is in trouble is passed over with a
warning, and left alone for a while, so that a dead one costs its timeout once and not for every blob.  The
last place is the registry itself: what it answers is the answer, with what the mirrors said added to an
error's reason. Requests without a route, and those that have left it (the next page of a list), are sent as
they are.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime

from orlop.errors import Cancelled, DeadlineExceeded, Error, Unavailable
from orlop.observe import Call
from orlop.registry.faults import NetworkFault, from_status
from orlop.registry.finding.hosts import Endpoint, Place, Route
from orlop.registry.finding.locate import Locator
from orlop.registry.messages import Request, Response, Sender, Source
from orlop.registry.net.retry import parse_retry_after
from orlop.values import replace

__all__ = ["Check", "Fallback"]

Check = Callable[[Response], object]
"""Looks at a success of a place that is not the last; raises `Error` where it is not what was asked for."""

REST = 30.0  # seconds in which a mirror that could not be reached is not asked again
BAN = 600.0  # for one that sent other bytes than their digest says
RETRIES = 0  # at a place that is not the last: the next one is there at once
MAX_REMEMBERED = 1_024
_RANGE = 416  # an answer like a success: how much there is


class Fallback:
    """Sends requests along their routes.  Thread-safe."""

    def __init__(self, send: Sender, locate: Locator, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._send = send
        self._locate = locate
        self._clock = clock
        self._lock = threading.Lock()  # guards the two below
        self._resting: dict[str, tuple[float, str]] = {}  # hosts: until when, and why
        self._warned: dict[str, float] = {}  # what was said when

    def __call__(self, request: Request, call: Call) -> Response:
        """Send a request to the first place of its route that answers it.  Raises as the last one does."""
        return self.exchange(request, call)[1]

    def exchange(
        self, request: Request, call: Call, *, check: Check | None = None
    ) -> tuple[Request, Response]:
        """The same; also the request as the place that answered got it."""
        route = request.route
        if route is None or request.url != route.url:
            return request, self._send(request, call)
        said: list[str] = []
        for place in route.places[:-1]:
            if rests := self._rests(place):
                said.append(_named(place, rests))
                continue
            try:
                asked, response = self._at(place, route, request, call, retries=RETRIES)
                if response.ok or response.status == _RANGE:
                    if check is not None and response.ok:
                        self._believe(asked.endpoint, response, check, call)
                    return asked, self._noted(asked.endpoint, response, said, call)
                response.close()
                failure = from_status(asked.endpoint, response, request.attempted)
                if isinstance(failure, Unavailable):
                    after = parse_retry_after(response.headers.get("retry-after"), datetime.now(UTC))
                    self._rest(place.host, min(max(REST, after or 0.0), BAN), failure.reason)
            except (Cancelled, DeadlineExceeded):
                raise
            except Error as exc:
                call.check(request.attempted)
                failure = exc
                if isinstance(exc, Unavailable):
                    self._rest(place.host, REST, exc.reason)
            said.append(_named(place, failure.reason))
            self._warn(call, f"passed over: {said[-1]}")
        before = f" (asked before: {'; '.join(said)})" if said else ""
        try:
            asked, response = self._at(route.places[-1], route, request, call, retries=request.retries)
        except Error as exc:
            if not isinstance(exc, (Cancelled, DeadlineExceeded)):
                exc.reason += before
            raise
        return asked, replace(response, endpoint=asked.endpoint, before=before)

    def distrust(self, endpoint: Endpoint, call: Call, why: str, *, sure: bool = True) -> bool:
        """A place sent bytes that are not what their digest says: a mirror is not asked again for a while.

        True if it is a mirror, so that the next request goes elsewhere.
        """
        if not endpoint.mirror:
            return False
        self._rest(endpoint.host, BAN if sure else REST, why)
        self._warn(call, f"passed over: {endpoint.host}: {why}")
        return True

    def _at(
        self, place: Place, route: Route, request: Request, call: Call, *, retries: int | None
    ) -> tuple[Request, Response]:
        endpoint = self._locate.way(place.ways, request.attempted, call, retries=retries)
        asked = _addressed(request, endpoint, place.repository, route.path)
        return asked, self._send(replace(asked, retries=retries), call)

    def _believe(self, endpoint: Endpoint, response: Response, check: Check, call: Call) -> None:
        try:
            check(response)
        except Error as exc:
            self.distrust(endpoint, call, exc.reason)
            raise

    def _noted(self, endpoint: Endpoint, response: Response, said: list[str], call: Call) -> Response:
        """The response; if its body breaks off, its place rests, and what is missing comes from elsewhere."""
        before = f" (asked before: {'; '.join(said)})" if said else ""
        source = response.source
        if source is not None:

            def broken(fault: NetworkFault) -> None:
                self._rest(endpoint.host, REST, fault.reason)
                self._warn(call, f"passed over: {fault.reason}")

            source = _Noting(source, broken)
        return replace(response, endpoint=endpoint, before=before, source=source)

    def _rests(self, place: Place) -> str:
        """Why a place is not asked now; empty where it is."""
        with self._lock:
            until, why = self._resting.get(place.host, (0.0, ""))
        return why if until > self._clock() else ""

    def _rest(self, host: str, seconds: float, why: str) -> None:
        with self._lock:
            while len(self._resting) >= MAX_REMEMBERED:
                self._resting.pop(next(iter(self._resting)))
            until, _ = self._resting.get(host, (0.0, ""))
            self._resting[host] = (max(until, self._clock() + seconds), why)

    def _warn(self, call: Call, text: str) -> None:
        """Say it, but not for every blob."""
        now = self._clock()
        with self._lock:
            if now - self._warned.get(text, -REST) < REST:
                return
            while len(self._warned) >= MAX_REMEMBERED:
                self._warned.pop(next(iter(self._warned)))
            self._warned[text] = now
        call.observer.warning(text)


class _Noting:
    """A body that tells when it breaks off."""

    def __init__(self, source: Source, broken: Callable[[NetworkFault], None]) -> None:
        self._source = source
        self._broken = broken

    def chunks(self, call: Call, attempted: str) -> Iterator[bytes]:
        """The bytes of the body."""
        try:
            yield from self._source.chunks(call, attempted)
        except NetworkFault as fault:
            self._broken(fault)
            raise

    def fill(self, buffer: memoryview, call: Call, attempted: str) -> int:
        """Bytes of the body into a buffer."""
        try:
            return self._source.fill(buffer, call, attempted)
        except NetworkFault as fault:
            self._broken(fault)
            raise

    def close(self) -> None:
        """Let go of the body."""
        self._source.close()


def _named(place: Place, why: str) -> str:
    """Why a place does not answer, with its name, which most reasons have."""
    return why if place.host in why else f"{place.host}: {why}"


def _addressed(request: Request, endpoint: Endpoint, repository: str, path: str) -> Request:
    """The same request for another place; what a token must allow is said in that place's own words."""
    old, new = f"repository:{request.repository}:", f"repository:{repository}:"
    scopes = tuple(new + one.removeprefix(old) if one.startswith(old) else one for one in request.scopes)
    return replace(
        request,
        url=endpoint.url(f"{repository}/{path}"),
        endpoint=endpoint,
        scopes=scopes,
        repository=repository,
    )
