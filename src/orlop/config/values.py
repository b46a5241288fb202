"""Texts, and the values of TOML, into the values of a dataclass's fields.  No files, no names of settings.

What a field takes is read off its type: a number may be written as a size (``4MiB``) or, where it is a
float, as a duration (``90s``); a tuple is a list.  A flag is never a number, and a number never a text.
"""

from __future__ import annotations

import re
import sys
from types import NoneType, UnionType

from orlop.errors import InvalidArgument
from orlop.hints import TYPE_CHECKING, resolved
from orlop.values import fields

if TYPE_CHECKING:
    from typing import Any

__all__ = ["convert", "duration_of", "kinds_of", "of_text", "size_of"]

_SIZE = r"([0-9]{1,19})(?:([KMGTPkmgtp])(?:iB)?)?"
_POWERS = ("", "K", "M", "G", "T", "P")
_MAX_SIZE = 2**63 - 1  # what SQLite and protobuf hold
_DURATION = r"(?:[0-9]{1,9}[smhdw])+"
_SECONDS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 604_800}
_SHOWN = 100  # characters of a wrong value that an error repeats


def size_of(text: str, *, least: int = 1) -> int:
    """Bytes out of ``512M`` or ``512MiB``: K, M, G, T and P are powers of 1024.

    >>> size_of("1k"), size_of("3GiB")
    (1024, 3221225472)
    """
    match = re.fullmatch(_SIZE, text)
    size = int(match[1]) << (10 * _POWERS.index((match[2] or "").upper())) if match else -1
    if not least <= size <= _MAX_SIZE:
        raise InvalidArgument(
            f"use size {text[:_SHOWN]!r}",
            "not a size",
            hint="write bytes, or with K, M, G or T, as in 512M or 512MiB",
        )
    return size


def duration_of(text: str) -> float:
    """Seconds out of ``1h30m``: s, m, h, d and w.

    >>> duration_of("90s"), duration_of("1d12h")
    (90.0, 129600.0)
    """
    if re.fullmatch(_DURATION, text) is None:
        raise InvalidArgument(
            f"use duration {text[:_SHOWN]!r}",
            "not a duration",
            hint="write it with s, m, h, d or w, as in 36h or 2w",
        )
    return float(sum(int(part[:-1]) * _SECONDS[part[-1]] for part in re.findall(r"[0-9]+[smhdw]", text)))


def kinds_of(cls: type[Any]) -> dict[str, Any]:
    """The fields of a dataclass and their types."""
    from typing import get_type_hints

    hints = get_type_hints(cls, localns=resolved(vars(sys.modules[cls.__module__])))
    return {item.name: hints[item.name] for item in fields(cls)}


_FLAGS = {
    **dict.fromkeys(("1", "true", "yes", "on", "t", "y"), True),
    **dict.fromkeys(("0", "false", "no", "off", "f", "n"), False),
}


def of_text(text: str, kind: Any) -> object:  # noqa: ANN401 - a type
    """A variable's or an option's text as TOML would have had it: flags, and lists with commas or spaces.

    >>> of_text("a, b", tuple[str, ...]), of_text("yes", bool), of_text("4MiB", int)
    (['a', 'b'], True, '4MiB')
    """
    from typing import Union, get_args, get_origin

    kinds = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
    if bool in kinds and (flag := _FLAGS.get(text.strip().lower())) is not None:
        return flag
    if any(get_origin(part) is tuple for part in kinds):
        return re.split(r"[,\s]+", text.strip(", \t\n")) if text.strip(", \t\n") else []
    return text


def convert(value: object, kind: Any, name: str, attempted: str) -> Any:  # noqa: ANN401 - of that type
    """A value of TOML, or a text, as a value of the type ``kind``.

    Raises `InvalidArgument` with the key's ``name``.
    """
    from typing import Literal, Union, get_args, get_origin

    origin = get_origin(kind)
    if origin in (Union, UnionType):
        inner = [part for part in get_args(kind) if part is not NoneType]
        if len(inner) > 1 and not (inner[0] is bool and isinstance(value, bool)):
            inner = inner[1:]  # a flag or something else
        return convert(value, inner[0], name, attempted)
    if origin is Literal:
        if value in get_args(kind) and isinstance(value, str):
            return value
        raise _wrong(value, name, "one of " + ", ".join(get_args(kind)), attempted)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise _wrong(value, name, 'a list, as in ["a", "b"]', attempted)
        return tuple(convert(part, get_args(kind)[0], name, attempted) for part in value)
    return _plain(value, kind, name, attempted)


def _plain(value: object, kind: Any, name: str, attempted: str) -> Any:  # noqa: ANN401 - of that type
    if kind is bool:
        if isinstance(value, bool):
            return value
        raise _wrong(value, name, "true or false", attempted)
    if kind is str:
        if isinstance(value, str) and "\0" not in value:
            return value
        raise _wrong(value, name, "a text", attempted)
    if kind is int:
        return _number(value, name, attempted)
    if kind is float:
        return _seconds(value, name, attempted)
    raise InvalidArgument(attempted, f"{name} cannot be set here")


def _number(value: object, name: str, attempted: str) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        if 0 <= value <= _MAX_SIZE:
            return value
    elif isinstance(value, str):
        try:
            return size_of(value.replace("_", ""), least=0)
        except InvalidArgument:
            pass  # said below, with the key
    raise _wrong(value, name, "a number, or a size such as 512MiB", attempted)


def _seconds(value: object, name: str, attempted: str) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool):
        if 0 <= value <= _MAX_SIZE:  # neither infinite nor nan
            return float(value)
    elif isinstance(value, str):
        if re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", value):
            return float(value)
        try:
            return duration_of(value)
        except InvalidArgument:
            pass  # said below, with the key
    raise _wrong(value, name, "seconds, or a duration such as 90s", attempted)


def _wrong(value: object, name: str, wanted: str, attempted: str) -> InvalidArgument:
    shown = repr(value)
    shown = shown if len(shown) <= _SHOWN else shown[:_SHOWN] + "…"
    return InvalidArgument(attempted, f"{name} is {shown}; it takes {wanted}", details={"key": name})
