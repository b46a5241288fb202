"""Errors to exit codes and to the lines on standard error: the one place that does either.

`EXIT_CODES` is the table that ``orlop --help`` and docs/exit-codes.md show; a test holds the latter to
it.  Codes are stable: a new meaning gets a new number.
"""

from __future__ import annotations

import sys
from contextlib import suppress

import click

from orlop.cli.frontpage import CANCELLED, EXIT_CODES, OUTPUT_CLOSED, RUN_FAILED, UNEXPECTED, USAGE
from orlop.errors import Error, from_oserror

__all__ = [
    "CANCELLED",
    "EXIT_CODES",
    "OUTPUT_CLOSED",
    "RUN_FAILED",
    "Misuse",
    "OutputClosed",
    "RunFailed",
    "exit_code",
    "one_line",
    "report",
]

_CODE_OF = {name: code for code, names, _ in EXIT_CODES for name in names}


class OutputClosed(Exception):
    """Standard output is a pipe that nobody reads any more."""


class Misuse(click.UsageError):
    """Wrong usage, with a hint of its own."""

    def __init__(self, message: str, hint: str, *, ctx: click.Context | None = None) -> None:
        super().__init__(message, ctx)
        self.hint = hint


class RunFailed(Exception):
    """`orlop run` failed before or beside the container; the cause is chained.

    ``signum`` is the signal that stopped it, or 0.
    """

    def __init__(self, signum: int = 0) -> None:
        super().__init__(signum)
        self.signum = signum

    def exit_code(self) -> int:
        """128 + signal; 127 or 126 where the command could not be started, as in shells; else 125."""
        if self.signum:
            return 128 + self.signum
        details = self.__cause__.details if isinstance(self.__cause__, Error) else {}
        return int(details.get("exit_code") or RUN_FAILED)


def exit_code(exc: BaseException) -> int:
    """The exit code for an exception."""
    if isinstance(exc, RunFailed):
        return exc.exit_code()
    if isinstance(exc, Error):
        signum = exc.details.get("signal", "")
        return 128 + int(signum) if signum else _CODE_OF.get(exc.code, UNEXPECTED)
    if isinstance(exc, click.UsageError) and exc.ctx is not None and exc.ctx.info_name == "run":
        return RUN_FAILED
    if isinstance(exc, click.ClickException):
        return USAGE
    if isinstance(exc, KeyboardInterrupt | click.Abort):
        return CANCELLED
    if isinstance(exc, OutputClosed):
        return OUTPUT_CLOSED
    return UNEXPECTED


def one_line(text: str) -> str:
    """``text`` on one line, with nothing that a terminal would act upon.

    Errors quote what registries and images say, so escape sequences are made visible.
    """
    return "".join(
        char if char.isprintable() or "\udc80" <= char <= "\udcff" else _visible(char) for char in text
    )


def _visible(char: str) -> str:
    return " " if char in "\n\r\t" else char.encode("unicode_escape").decode()


def report(exc: BaseException, *, program: str = "orlop", debug: bool = False) -> int:
    """Say on standard error what went wrong, in one line and perhaps a hint; return the exit code."""
    code = exit_code(exc)
    if isinstance(exc, OutputClosed):
        return code
    shown = exc.__cause__ if isinstance(exc, RunFailed) and exc.__cause__ is not None else exc
    if isinstance(shown, OSError):
        shown = from_oserror("", shown)
    with suppress(OSError, ValueError):  # standard error is closed: the exit code still tells
        if debug:
            import traceback

            traceback.print_exception(exc, file=sys.stderr)
        text, hint = _words(shown, program)
        sys.stderr.write(f"{program}: error: {one_line(text)}\n")
        if hint:
            sys.stderr.write(f"hint: {one_line(hint)}\n")
        sys.stderr.flush()
    return code


def _words(exc: BaseException, program: str) -> tuple[str, str]:
    if isinstance(exc, Error):
        text = f"{exc.attempted}: {exc.reason}" if exc.attempted else exc.reason
        return text, exc.hint
    if isinstance(exc, KeyboardInterrupt | click.Abort):
        return "interrupted", ""
    if isinstance(exc, click.UsageError):
        return _sentence(exc.format_message()), _usage_hint(exc, program)
    if isinstance(exc, click.ClickException):
        return _sentence(exc.format_message()), ""
    text = f"unexpected {type(exc).__name__}: {exc}"
    return text, f"this is a bug; `{program} --debug …` shows where, please report it"


def _sentence(text: str) -> str:
    return text[:1].lower() + text[1:].rstrip(".")


def _usage_hint(exc: click.UsageError, program: str) -> str:
    if isinstance(exc, Misuse):
        return exc.hint
    path = exc.ctx.command_path if exc.ctx is not None else program
    return f"`{path} --help` shows how"
