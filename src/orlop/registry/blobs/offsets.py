"""How far an upload is, and what to do next: the arithmetic of sessions, without I/O.

An upload goes in one request until there is trouble; from then on in chunks with a `Content-Range`, so that a
further cut costs little.  What the registry says it has is believed down to nothing and up to what was sent
to this session, never beyond.  Trouble is bounded: `Course` counts tries since bytes last got further than
ever before, and new sessions over the whole upload.

Sources: distribution-spec, "Pushing a blob in chunks"; docker-registry 2.8, whose `Range: 0-0` means none or
one byte, and whose sessions do not outlast a cut in the middle of a request.
"""

from __future__ import annotations

import re
from enum import Enum, auto

from orlop.registry.net.retry import RETRY_STATUS
from orlop.values import dataclass

__all__ = ["CHUNK", "FLOOR", "LIFE", "Course", "Part", "Verdict", "judge", "parse_length", "parse_range"]

CHUNK = 8 << 20  # bytes to a request after trouble; registries on object stores want 5 MiB or more
FLOOR = 64 << 10  # a registry that finds this too large (413) takes nothing
LIFE = 16 << 10  # bytes further than ever before that make a try count as one that got on

_RANGE = re.compile(r"(?:bytes[= ])?\s*0-(-1|\d{1,18})", re.IGNORECASE | re.ASCII)
_DIGITS = re.compile(r"\d{1,18}", re.ASCII)


def parse_range(value: str | None) -> int | None:
    """How many bytes a registry says it has; None where it does not say.

    ``0-0`` is one byte by the letter, and what many registries say for none.

    >>> [parse_range(text) for text in ("0-9", "bytes=0-9", "0-0", "0--1", None)]
    [10, 10, 1, 0, None]
    """
    match = _RANGE.fullmatch((value or "").strip())
    return None if match is None else int(match[1]) + 1


def parse_length(value: str | None) -> int:
    """A number of bytes in a header such as `OCI-Chunk-Min-Length`; 0 where there is none to read."""
    value = (value or "").strip()
    return int(value) if _DIGITS.fullmatch(value) else 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """What one request sends: ``length`` bytes from ``first`` on, None for all there are.

    ``last`` where it is known that nothing follows.
    """

    first: int
    length: int | None
    last: bool

    @property
    def extent(self) -> str | None:
        """The value of `Content-Range`; None where there is none to give."""
        return None if not self.length else f"{self.first}-{self.first + self.length - 1}"


class Verdict(Enum):
    """What the answer to a request that sent a part means."""

    TAKEN = auto()  # go on with the next part
    NAMED = auto()  # the blob is there
    ASK = auto()  # the registry and we disagree about how far it is: ask it
    WAIT = auto()  # a passing trouble: pause, then ask
    SMALLER = auto()  # the request was too large: send less at a time
    AGAIN = auto()  # the session is lost: begin another
    REFUSED = auto()  # an error


def judge(status: int, method: str, *, resumed: bool, left: bool) -> Verdict:
    """The verdict on a status.

    ``resumed`` says that the session has been through trouble, ``left`` that bytes of the body have left
    (before that, the senders below have tried again by themselves).

    >>> judge(202, "PATCH", resumed=False, left=True).name, judge(404, "PUT", resumed=False, left=True).name
    ('TAKEN', 'AGAIN')
    """
    if verdict := _TAKEN.get((method, status)) or _ALWAYS.get(status):
        return verdict
    if status == 401 and left:
        return Verdict.ASK  # a token that ran out on the way: asking gets a new one, or the error
    if status not in (401, 403) and 400 <= status < 500 and resumed:
        return Verdict.AGAIN  # what was pieced together does not fit
    return Verdict.REFUSED


# The specification says 202 for PATCH and 201 for PUT; the others are seen in the field.
_TAKEN = {
    **{("PATCH", status): Verdict.TAKEN for status in (201, 202, 204)},
    **{("PUT", status): Verdict.NAMED for status in (201, 204)},
}
_ALWAYS = {
    **dict.fromkeys(RETRY_STATUS, Verdict.WAIT),
    404: Verdict.AGAIN,
    410: Verdict.AGAIN,
    413: Verdict.SMALLER,
    416: Verdict.ASK,
}


@dataclass(slots=True, kw_only=True)
class Course:
    """Where one upload is.  Used by one thread.

    ``size`` is the blob's, None where it shows at the end; ``chunk`` the bytes to a request, 0 for all in
    one; ``least`` what the registry asks of all chunks but the last.  ``retries`` bounds the tries without
    progress and, apart, the new sessions.
    """

    size: int | None
    retries: int
    chunk: int = 0
    least: int = 0
    at: int = 0  # the registry has the bytes before this one, as far as is known
    sent: int = 0  # and can have no more than these
    best: int = 0  # the furthest it ever was, in any session
    idle: int = 0  # troubles since then
    starts: int = 0  # new sessions
    resumed: bool = False  # whether this session has been through trouble

    def next(self) -> Part:
        """What to send next."""
        left = None if self.size is None else self.size - self.at
        if self.chunk == 0:
            return Part(first=self.at, length=left, last=True)
        length = max(self.chunk, self.least)
        if left is not None and left <= length:
            return Part(first=self.at, length=left, last=True)
        return Part(first=self.at, length=length, last=False)

    def sending(self, upto: int) -> None:
        """A request is under way whose body ends there: the session may have that much from now on."""
        self.sent = max(self.sent, upto)

    def took(self, header: str | None, upto: int) -> bool:
        """A part that ends at ``upto`` was taken; False where what the registry says cannot be.

        It may have taken less than it got.  Many say ``0-0``, or nothing, whatever they have.
        """
        said = parse_range(header)
        if said is None or (said <= 1 and upto != 1):
            said = upto
        if said > upto:
            return False
        self._reach(said)
        return True

    def holds(self, header: str | None) -> bool:
        """Take over what the registry says when asked; False where the session is of no use any more."""
        said = parse_range(header)
        if said is None or said > self.sent:
            # With nothing sent, 0-0 means nothing; else it is one more than it can have.
            if not (said == 1 and self.sent == 0):
                return False
            said = 0
        if said == 1 and self.sent > 1:
            return False  # none or one: a new session costs less than to be wrong
        self._reach(said)
        return True

    def _reach(self, at: int) -> None:
        self.at = at
        if at >= self.best + LIFE:
            self.best, self.idle = at, 0

    def troubled(self) -> bool:
        """Count a trouble, and go on in chunks; False where there have been too many without progress."""
        self.idle += 1
        self.resumed = True
        self.chunk = self.chunk or CHUNK
        return self.idle <= self.retries

    def shrink(self, length: int | None) -> bool:
        """No request of this length is taken; False where a shorter one makes no sense."""
        length = self.sent - self.at if length is None else length
        if length <= max(FLOOR, self.least):
            return False
        self.chunk = max(min(length // 2, CHUNK), self.least, FLOOR)
        return True

    def restart(self) -> bool:
        """Begin at nothing in a new session; False where there have been too many."""
        self.at = self.sent = 0
        self.resumed = False
        self.starts += 1
        self.chunk = self.chunk or CHUNK
        return self.starts <= self.retries
