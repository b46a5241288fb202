"""What a check finds, and how checks are run: one that fails says so, and stops no other.

A check is a function of a `Subject` that yields findings.  It looks and changes nothing, is bounded in time,
and gives advice with each problem: a command, a line of a configuration, or a page of the documentation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Literal

from orlop.config import Configuration, Settings
from orlop.errors import Error
from orlop.values import dataclass, field

__all__ = ["Check", "Finding", "State", "Subject", "note", "ok", "problem", "run_checks", "said"]

State = Literal["ok", "note", "problem"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that was looked at.

    ``check`` is a dotted name that stays the same (``folders.root``); its first part is the section.
    ``state`` is ``ok``, ``note`` for what works but is worth knowing, ``problem`` for what does not work or
    will not.  ``advice`` says what to do, and is empty where there is nothing.
    """

    check: str
    state: State
    text: str
    advice: str = ""

    @property
    def section(self) -> str:
        """The part of the machine that it is about."""
        return self.check.partition(".")[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """What is looked at: a store's folders, what is configured, and as whom.

    ``host`` is a daemon that is asked in place of the store; then the folders are its own, and are not looked
    at here.  ``run`` is empty where there is none, and ``run_fault`` says why.  ``registries`` are named to
    be reached beside those that are found; ``offline`` reaches none.  ``timeout`` is seconds that one step
    may take; ``fault`` why the configuration could not be read; ``cache`` what one check leaves the next.
    """

    root: str
    run: str
    settings: Settings
    configuration: Configuration
    environ: Mapping[str, str]
    uid: int
    config_files: tuple[str, ...] = ()
    named_file: str | None = None
    host: str | None = None
    tls: tuple[str | None, str | None, str | None] = (None, None, None)
    registries: tuple[str, ...] = ()
    offline: bool = False
    timeout: float = 5.0
    fault: Error | None = None
    run_fault: str = ""
    cache: dict[str, object] = field(default_factory=dict, repr=False, compare=False)


Check = Callable[[Subject], Iterable[Finding]]


def ok(check: str, text: str) -> Finding:
    """It is well."""
    return Finding(check=check, state="ok", text=text)


def note(check: str, text: str, advice: str = "") -> Finding:
    """It works, and one should know."""
    return Finding(check=check, state="note", text=text, advice=advice)


def problem(check: str, text: str, advice: str) -> Finding:
    """It does not work, or will not; a problem has advice."""
    return Finding(check=check, state="problem", text=text, advice=advice)


def said(exc: Error) -> str:
    """An error in words; its hint is the finding's advice."""
    return f"{exc.attempted}: {exc.reason}" if exc.attempted else exc.reason


def run_checks(checks: Mapping[str, Check], subject: Subject) -> Iterator[Finding]:
    """Run checks by name, in their order.  One that cannot be made is a note with the reason."""
    for name, check in checks.items():
        try:
            yield from check(subject)
        except Error as exc:
            yield note(name, f"could not be looked at: {said(exc)}", exc.hint)
        except Exception as exc:  # noqa: BLE001 - a doctor does not faint; what is a bug is said to be one
            yield note(
                name, f"could not be looked at: {type(exc).__name__}: {exc}", "please report it: a bug"
            )
