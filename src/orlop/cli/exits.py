"""Errors to exit codes and to the lines on standard error: the one place that does either.

`EXIT_CODES` is the table that ``orlop --help`` and docs/exit-codes.md show; a test holds the latter to
it.  Codes are stable: a new meaning gets a new number.
"""

from __future__ import annotations

import sys
from contextlib import suppress

from orlop.cli.colours import paint
from orlop.cli.frontpage import CANCELLED, EXIT_CODES, OUTPUT_CLOSED, RUN_FAILED, UNEXPECTED, USAGE
from orlop.errors import Error, from_oserror

TYPE_CHECKING = False
if TYPE_CHECKING:
    from click import Context

__all__ = [
    "CANCELLED",
    "EXIT_CODES",
    "OUTPUT_CLOSED",
    "RUN_FAILED",
    "Misuse",
    "OutputClosed",
    "RunFailed",
    "exit_code",
    "is_clicks",
    "one_line",
    "report",
]

_CODE_OF = {name: code for code, names, _ in EXIT_CODES for name in names}


class OutputClosed(Exception):
    """Standard output is a pipe that nobody reads any more."""


class Misuse(Exception):
    """Wrong usage, with a hint of its own."""

    def __init__(self, message: str, hint: str, *, ctx: Context | None = None) -> None:
        super().__init__(message)
        self.message, self.hint, self.ctx = message, hint, ctx


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
    if isinstance(exc, Misuse):
        return RUN_FAILED if exc.ctx is not None and exc.ctx.info_name == "run" else USAGE
    if isinstance(exc, KeyboardInterrupt):
        return CANCELLED
    if isinstance(exc, OutputClosed):
        return OUTPUT_CLOSED
    return _clicks_code(exc) if is_clicks(exc) else UNEXPECTED


def is_clicks(exc: BaseException) -> bool:
    """Whether it is an exception of click's, which is imported then."""
    return any(cls.__module__.partition(".")[0] == "click" for cls in type(exc).__mro__)


def _clicks_code(exc: BaseException) -> int:
    import click

    if isinstance(exc, click.UsageError) and exc.ctx is not None and exc.ctx.info_name == "run":
        return RUN_FAILED
    if isinstance(exc, click.ClickException):
        return USAGE
    return CANCELLED if isinstance(exc, click.Abort) else UNEXPECTED


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
        if isinstance(shown, Error) and (left := shown.details.get("left")):
            sys.stderr.write(f"{program}: interrupted; {one_line(left)}\n")
            sys.stderr.flush()
            return code
        text, hint = _words(shown, program)
        sys.stderr.write(f"{paint(f'{program}: error:', 'error', sys.stderr)} {one_line(text)}\n")
        if hint:
            sys.stderr.write(paint(f"hint: {one_line(hint)}", "dim", sys.stderr) + "\n")
        sys.stderr.flush()
    return code


def _words(exc: BaseException, program: str) -> tuple[str, str]:
    if isinstance(exc, Error):
        text = f"{exc.attempted}: {exc.reason}" if exc.attempted else exc.reason
        return text, exc.hint
    if isinstance(exc, KeyboardInterrupt):
        return "interrupted", ""
    if isinstance(exc, Misuse):
        return _sentence(exc.message), exc.hint
    if is_clicks(exc):
        return _clicks_words(exc, program)
    text = f"unexpected {type(exc).__name__}: {exc}"
    return text, f"this is a bug; `{program} --debug …` shows where, please report it"


def _sentence(text: str) -> str:
    return text[:1].lower() + text[1:].rstrip(".")


def _clicks_words(exc: BaseException, program: str) -> tuple[str, str]:
    import click

    if isinstance(exc, click.UsageError):
        path = exc.ctx.command_path if exc.ctx is not None else program
        return _sentence(exc.format_message()), f"`{path} --help` shows how"
    if isinstance(exc, click.ClickException):
        return _sentence(exc.format_message()), ""
    return "interrupted", ""
