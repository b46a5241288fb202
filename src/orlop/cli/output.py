"""Results on standard output: tables for people, JSON and templates for programs.

Knows nothing of the verbs.  Whatever is written goes through `write`, which turns a closed pipe into
`OutputClosed` and a full disk into an error.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence

from orlop.cli.exits import OutputClosed, one_line
from orlop.errors import FailedPrecondition, InvalidArgument, ResourceExhausted, from_oserror
from orlop.hints import Any
from orlop.quantities import size_text
from orlop.values import fields, is_dataclass

__all__ = [
    "Binary",
    "Column",
    "ago",
    "before_writing",
    "check_form",
    "fill_streams",
    "flush",
    "lost",
    "note",
    "plain",
    "short_id",
    "show_each",
    "show_list",
    "show_record",
    "size_text",
    "terminal_width",
    "write",
    "write_json",
    "yes_no",
]

# JSON as Python has it; mypy knows no recursive alias that is pleasant to index.
Json = Any
Column = tuple[str, Callable[[Any], str]]

_UNITS = (  # seconds
    ("year", 31_536_000),
    ("month", 2_592_000),
    ("week", 604_800),
    ("day", 86_400),
    ("hour", 3600),
    ("minute", 60),
)


def fill_streams() -> None:
    """Take the places of standard streams that were closed before this process began.

    Else a file of the store would get such a number, and what a container prints might go into it.
    """
    for number, mode in ((0, os.O_RDWR), (1, os.O_RDONLY), (2, os.O_RDWR)):  # a result must not get lost
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, mode), True)  # the lowest number that is free
    sys.stdin = sys.stdin or open(0, closefd=False)  # noqa: SIM115 - open as long as the process is
    sys.stderr = sys.stderr or open(2, "w", closefd=False)  # noqa: SIM115


before_writing: list[Callable[[], object]] = []
"""What is called before something is written: progress makes room for it."""


def write(text: str) -> None:
    """Write to standard output."""
    for make_room in before_writing:
        make_room()
    if sys.stdout is None:  # it was closed before this process began
        raise FailedPrecondition("write the result", "standard output is closed")
    try:
        sys.stdout.write(text)
    except OSError as exc:
        raise _failed(exc) from exc


def flush() -> None:
    """Hand what was written to the kernel, so that a failure is still ours to report."""
    if sys.stdout is None:
        return
    try:
        sys.stdout.flush()
    except OSError as exc:
        raise lost(exc) from exc


def lost(exc: OSError) -> Exception:
    """What to raise where standard output does not take what was written to it; the rest goes nowhere."""
    # Python flushes again when it ends; let it do so to where nothing fails.
    with open(os.devnull, "wb") as sink:
        os.dup2(sink.fileno(), 1)
    return _failed(exc)


def _failed(exc: OSError) -> Exception:
    return OutputClosed() if exc.errno == errno.EPIPE else from_oserror("write the result", exc)


class Binary:
    """Standard output for bytes: what `write` is for text.  Raises as that does."""

    def write(self, data: bytes, /) -> int:
        """Hand some bytes to the kernel; how many it took."""
        if sys.stdout is None:
            raise FailedPrecondition("write the result", "standard output is closed")
        fd = sys.stdout.fileno()
        while True:
            try:
                return os.write(fd, data)
            except BlockingIOError:  # whoever has the other end of the pipe wants it so
                import select

                select.select([], [fd], [])
            except OSError as exc:
                if exc.errno == errno.ENOSPC:
                    raise _full(fd) from exc
                raise _failed(exc) from exc


def _full(fd: int) -> Exception:
    """No room where standard output goes to, which need not be the store's disk."""
    about = os.fstatvfs(fd)
    details = {"errno": "ENOSPC", "free": str(about.f_bavail * about.f_frsize), "where": "standard output"}
    reason = "no room is left on the disk that standard output goes to"
    return ResourceExhausted("write the result", reason, hint="choose another disk", details=details)


def note(text: str) -> None:
    """A remark for the person at the terminal, on standard error."""
    from orlop.cli.colours import paint

    for make_room in before_writing:
        make_room()
    sys.stderr.write(paint(f"orlop: {one_line(text)}", "dim", sys.stderr) + "\n")


def plain(value: object) -> Json:
    """A value of the API as what JSON has: dataclasses become objects, tuples arrays."""
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [plain(item) for item in value]
    return value


def write_json(value: object) -> None:
    """Write a value as indented JSON; bytes that are not UTF-8 become lone surrogates, as in Python."""
    import json

    write(json.dumps(plain(value), indent=2) + "\n")


def show_list(
    items: Sequence[object],
    columns: Sequence[Column],
    *,
    form: str,
    names: Callable[[Any], str],
    record: Callable[[Any], Json] = plain,
    whole: bool = False,
) -> None:
    """Write a list of values in the form that was asked for.

    ``form`` is ``table``, ``json``, ``name`` (one a line) or a template such as
    ``{{.name}} {{.size}}``, whose fields are those of the JSON (``record``).  Raises `InvalidArgument` for
    anything else.  A table is as wide as the terminal, unless the ``whole`` is wanted.
    """
    if form == "json":
        write_json([record(item) for item in items])
    elif form == "table":
        titles = [title for title, _ in columns]
        write(_table(titles, [[get(item) for _, get in columns] for item in items], whole=whole))
    else:
        show_each(items, form=form, line=names, names=names, record=record)


def show_each(
    items: Iterable[Any],
    *,
    form: str,
    line: Callable[[Any], str],
    names: Callable[[Any], str],
    record: Callable[[Any], Json] = plain,
    end: str = "\n",
) -> None:
    """Write values as they come, each in the form that was asked for: as `show_list`, without columns.

    ``table`` is a ``line`` for each, which need not be a name; ``json`` a line of JSON.
    """
    check_form(form)
    if form in {"table", "name"}:
        get = line if form == "table" else names
        for item in items:
            write(one_line(get(item)) + end)
    elif form == "json":
        import json

        for item in items:
            write(json.dumps(record(item)) + "\n")
    else:
        from orlop.cli import templates

        if form.startswith(templates.TABLE):
            form = form.removeprefix(templates.TABLE)
            rows = [templates.fill(form, record(item)).split("\t") for item in items]
            heading = templates.titles(form).split("\t")
            write(_table(heading, rows))
            return
        for item in items:
            write(templates.fill(form, record(item)) + "\n")


def show_record(value: Json, *, form: str, shown: Callable[[], None]) -> None:
    """Write one thing: ``table`` as ``shown`` does it, ``json``, or a template of its fields."""
    check_form(form)
    if form == "table":
        shown()
    elif form == "json":
        write_json(value)
    else:
        show_each([value], form=form, line=str, names=str)


def check_form(form: str) -> None:
    """Raise `InvalidArgument` for what is no form of a list."""
    if form in {"table", "json", "name"}:
        return
    from orlop.cli import templates

    if not templates.is_template(form):
        raise InvalidArgument(
            f"use format {form!r}", "not a format", hint="table, json, name, or a template as '{{.name}}'"
        )
    templates.check(form)


def _table(titles: Sequence[str], rows: Iterable[Sequence[str]], *, whole: bool = False) -> str:
    from orlop.cli import colours, tables

    # Names and labels come from outside; none may steer the terminal.
    harmless = [[one_line(cell) for cell in row] for row in rows]
    stream = sys.stdout
    at_terminal = stream is not None and stream.isatty() and not whole
    paint = (lambda text, style: colours.paint(text, style, stream)) if colours.wanted(stream) else None
    return tables.laid_out(titles, harmless, width=terminal_width() if at_terminal else None, paint=paint)


def terminal_width() -> int:
    """The columns of the terminal that results go to."""
    from shutil import get_terminal_size

    return get_terminal_size().columns


def ago(created: str) -> str:
    """How long ago an RFC 3339 time is; the text itself where it is not one."""
    import datetime

    try:
        then = datetime.datetime.fromisoformat(created)
    except ValueError:
        return created
    if then.tzinfo is None:
        then = then.replace(tzinfo=datetime.UTC)
    seconds = int((datetime.datetime.now(datetime.UTC) - then).total_seconds())
    if seconds < 0:
        return "in the future"
    for unit, length in _UNITS:
        if seconds >= 2 * length:
            return f"{seconds // length} {unit}s ago"
    return f"{seconds} seconds ago"


def short_id(digest: str | None) -> str:
    """Twelve digits of a digest, as docker shows an ID."""
    return (digest or "").partition(":")[2][:12]


def yes_no(value: object) -> str:
    """``yes`` or ``no``."""
    return "yes" if value else "no"
