"""What a check demands, said in one line each; independent of any test framework and of ``python -O``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

__all__ = ["Refusal", "equal", "fail", "refused", "true"]


class Refusal:
    """What `refused` caught; ``error`` is set when its block has ended."""

    error: BaseException | None = None


def fail(why: str) -> NoReturn:
    """This check has failed."""
    raise AssertionError(why)


def true(condition: object, what: str) -> None:
    """Something must hold; ``what`` says it as a sentence."""
    if not condition:
        fail(f"it is not so that {what}")


def equal(actual: object, expected: object, what: str) -> None:
    """Two values must be equal."""
    if actual != expected:
        fail(f"{what}: {actual!r}, expected {expected!r}")


@contextmanager
def refused(kind: type[BaseException], what: str, *, code: int | None = None) -> Iterator[Refusal]:
    """The block must raise ``kind``; with ``code`` an OSError of this errno."""
    refusal = Refusal()
    try:
        yield refusal
    except kind as exc:
        refusal.error = exc
        if code is not None:
            equal(getattr(exc, "errno", None), code, f"{what}: the errno")
        return
    fail(f"{what} was not refused ({kind.__name__})")
