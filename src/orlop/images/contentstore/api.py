"""What containerd's content API is asked for, as values and a protocol.

A blob belongs to namespaces.  One sees what was written in it, or shared with it, and what was written
without a namespace; nothing else, not even what orlop's own images have.  A namespace of None stands for
none at all in what is written, and for all of them in what is asked: so does containerd, which keeps its
namespaces to itself and says one in some of its calls only.

Times are nanoseconds since 1970.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol, runtime_checkable

from orlop.observe import Call
from orlop.spec.digest import Digest
from orlop.values import dataclass

__all__ = ["ContentApi", "ContentInfo", "HasContent", "WriteStatus", "Writer"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ContentInfo:
    """A blob as a namespace has it."""

    digest: Digest
    size: int
    labels: Mapping[str, str]
    created: int
    updated: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WriteStatus:
    """How far a write is: ``offset`` bytes are there; ``total`` is 0 and ``expected`` None if not told."""

    ref: str
    offset: int
    total: int
    expected: Digest | None
    started: int
    updated: int


class Writer(Protocol):
    """One write under way, and its ref's lock: nobody else writes to the ref until `close`.

    Bytes are added at the end only.  For one thread.
    """

    @property
    def status(self) -> WriteStatus:
        """Where it stands."""
        ...

    @property
    def digest(self) -> Digest:
        """Of the bytes so far."""
        ...

    def expect(self, total: int, expected: Digest | None) -> None:
        """What the client says now: 0 and None change nothing.

        Raises `AlreadyExists` if the namespace has that blob by now, which frees the ref.
        """
        ...

    def write(self, offset: int, data: bytes) -> None:
        """Add bytes.  At offset 0 all that was there is forgotten first, also where ``data`` is empty.

        Raises `OutOfRange` for an offset that is neither 0 nor the end, `ResourceExhausted` for a full disk;
        then what was there stays.  A total is looked at by the commit alone: it may still change.
        """
        ...

    def commit(self, labels: Mapping[str, str]) -> ContentInfo:
        """Make it a blob of the namespace, durable on return, which frees the ref.

        Raises `FailedPrecondition` where it is not what was expected: then the ref stays as it is;
        `AlreadyExists` where the namespace has it already, which frees the ref.
        """
        ...

    def close(self) -> None:
        """Let go of the ref; what was written waits to be resumed.  Idempotent."""
        ...


class ContentApi(Protocol):
    """The content of a store.  Thread-safe.

    All raise `InvalidArgument` for a namespace, a ref, labels or a filter that cannot be; those about one
    thing, but for `write`, `NotFound` for what the namespace does not have.
    """

    def info(self, namespace: str | None, digest: Digest) -> ContentInfo:
        """One blob."""
        ...

    def update(
        self, namespace: str | None, digest: Digest, labels: Mapping[str, str], paths: Sequence[str]
    ) -> ContentInfo:
        """Set labels: those that ``paths`` name (``labels.KEY``), or all of them."""
        ...

    def content(self, namespace: str | None, filters: Sequence[str], *, call: Call) -> Iterator[ContentInfo]:
        """The blobs that a filter lets through (`orlop.images.filters`), by digest."""
        ...

    def delete(self, namespace: str | None, digest: Digest) -> None:
        """Take a blob from a namespace, or from all; its bytes go when nobody needs them any more."""
        ...

    def read(
        self, namespace: str | None, digest: Digest, offset: int, size: int, *, call: Call
    ) -> Iterator[tuple[int, bytes]]:
        """Parts of a blob, each with its offset; ``size`` 0: to the end, and never further.

        Raises `OutOfRange` for an offset behind the end.
        """
        ...

    def status(self, namespace: str | None, ref: str) -> WriteStatus:
        """One write."""
        ...

    def statuses(self, namespace: str | None, filters: Sequence[str]) -> list[WriteStatus]:
        """All writes that a filter lets through."""
        ...

    def write(
        self, namespace: str | None, ref: str, total: int, expected: Digest | None, *, call: Call
    ) -> Writer:
        """Begin a write, or go on with one that was left.

        Where another namespace has the ``expected`` blob, of ``total`` bytes or 0, and shares it, the write
        begins at its end: a commit is enough.

        Raises `Unavailable` while somebody writes to the ref; `AlreadyExists` if the namespace has the
        ``expected`` blob, which frees the ref.
        """
        ...

    def abort(self, namespace: str | None, ref: str) -> None:
        """Give a write up.  Raises `Unavailable` while somebody is at it."""
        ...


@runtime_checkable
class HasContent(Protocol):
    """A store with containerd's content API."""

    @property
    def content_store(self) -> ContentApi:
        """It."""
        ...
