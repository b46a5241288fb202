"""Results on standard output: tables for people, JSON and templates for programs.

Knows nothing of the verbs.  Whatever is written goes through `write`, which turns a closed pipe into
`OutputClosed` and a full disk into an error.
"""

from __future__ import annotations

import errno
import os
import re
import select
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from orlop.cli.exits import OutputClosed, one_line
from orlop.errors import FailedPrecondition, InvalidArgument, ResourceExhausted, from_oserror
from orlop.values import fields, is_dataclass

__all__ = [
    "Binary",
    "Column",
    "ago",
    "fill_streams",
    "flush",
    "lost",
    "note",
    "plain",
    "short_id",
    "show_list",
    "size_text",
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
_FIELD = r"\{\{\s*(?:(json)\s+)?\.([A-Za-z_]*)\s*\}\}"


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


def write(text: str) -> None:
    """Write to standard output."""
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
    sys.stderr.write(f"orlop: {one_line(text)}\n")


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
) -> None:
    """Write a list of values in the form that was asked for.

    ``form`` is ``table``, ``json``, ``name`` (one a line) or a template such as
    ``{{.name}} {{.size}}``, whose fields are those of the JSON.  Raises `InvalidArgument` for anything
    else.
    """
    if form == "json":
        write_json(list(items))
    elif form == "name":
        write("".join(f"{one_line(names(item))}\n" for item in items))
    elif form == "table":
        write(_table([title for title, _ in columns], [[get(item) for _, get in columns] for item in items]))
    elif "{{" in form:
        write("".join(f"{_fill(form, item)}\n" for item in items))
    else:
        raise InvalidArgument(
            f"use format {form!r}", "not a format", hint="table, json, name, or a template as '{{.name}}'"
        )


def _fill(template: str, item: object) -> str:
    import json

    fields = plain(item)

    def replace(match: re.Match[str]) -> str:
        as_json, wanted = match.group(1), match.group(2).lower()
        if not wanted:
            return json.dumps(fields)
        if wanted not in fields:
            raise InvalidArgument(
                f"use format {template!r}",
                f"no field {match.group(2)!r}",
                hint=f"the fields are {', '.join(fields)}",
            )
        value = fields[wanted]
        if isinstance(value, str) and not as_json:
            return one_line(value)
        return "" if value is None and not as_json else json.dumps(value)

    text = template.replace("\\t", "\t").replace("\\n", "\n")
    return re.sub(_FIELD, replace, text)


def _table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    # Names and labels come from outside; none may steer the terminal.
    lines = [list(titles), *([one_line(cell) for cell in row] for row in rows)]
    widths = [max(len(line[place]) for line in lines) for place in range(len(titles))]
    return "".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() + "\n"
        for line in lines
    )


def size_text(size: float) -> str:
    """Bytes for people, in powers of ten as docker shows them.

    >>> size_text(999), size_text(12_345_678)
    ('999 B', '12.3 MB')
    """
    if size < 1000:
        return f"{size:.0f} B"
    for unit in ("kB", "MB", "GB", "TB"):
        size /= 1000
        if size < 999.95 or unit == "TB":
            break
    return f"{size:.1f} {unit}"


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
