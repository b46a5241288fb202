"""Words of `typing` for modules that every start imports: ``from orlop.hints import Protocol``.

`typing`, with `re` and what that imports, is a fifth of a short command, and at run time its words do nothing
for us: annotations are texts.  To a type checker the words here *are* typing's, and at run time, too, in
every program: each is fetched from typing when a module asks for it.  In a process that is orlop's alone,
which says so by `stand_in` before it imports anything else of orlop, they are stand-ins that take every use
and mean nothing.  A library's user never meets one.

Who asks classes for their hints (`typing.get_type_hints`) passes `resolved`, which turns stand-ins that have
a meaning, those of ``Literal``, into typing's.  Whoever wants a meaning at run time imports typing itself:
`runtime_checkable`, `get_args`, `NamedTuple`, msgspec's structs (tests/unit/test_hints.py holds them to it).

Imports nothing of orlop.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import (
        IO,
        Any,
        ClassVar,
        Concatenate,
        Final,
        Generic,
        Literal,
        NoReturn,
        ParamSpec,
        Protocol,
        Self,
        TextIO,
        TypeAlias,
        TypeVar,
        cast,
        overload,
    )

__all__ = [
    "IO",
    "TYPE_CHECKING",
    "Any",
    "ClassVar",
    "Concatenate",
    "Final",
    "Generic",
    "Literal",
    "NoReturn",
    "ParamSpec",
    "Protocol",
    "Self",
    "TextIO",
    "TypeAlias",
    "TypeVar",
    "cast",
    "overload",
    "resolved",
    "stand_in",
]


class _Word:
    """Stands for a word, with whatever it was given."""

    __slots__ = ("given",)

    def __init__(self, *given: object, **more: object) -> None:
        self.given = given

    def __getitem__(self, given: object) -> _Word:
        return _Word(*given) if isinstance(given, tuple) else _Word(given)

    def __call__(self, *given: object, **more: object) -> _Word:
        return self

    def __or__(self, other: object) -> _Word:
        return self

    __ror__ = __or__


class _Base:
    """Stands for a class that others are declared to build on."""

    __slots__ = ()

    def __class_getitem__(cls, given: object) -> type:
        return cls


def resolved(namespace: Mapping[str, object]) -> dict[str, Any]:
    """The literals among a module's names, as `typing` has them."""
    import typing

    names: dict[str, Any] = {"Any": typing.Any} if "Any" in namespace else {}
    for name, word in namespace.items():
        if isinstance(word, _Word) and word.given and all(isinstance(one, str) for one in word.given):
            names[name] = typing.Literal.__getitem__(word.given)
    return names


def __getattr__(name: str) -> object:
    """Typing's word."""
    if name.startswith("__"):
        raise AttributeError(name)
    import typing

    return getattr(typing, name)


def stand_in() -> None:
    """Put the stand-ins in place, unless typing was imported: for a process that is orlop's alone."""
    if "typing" not in sys.modules:
        globals().update(_stand_ins())


def _stand_ins() -> dict[str, object]:
    plain = ("IO", "Any", "ClassVar", "Concatenate", "Final", "Literal", "NoReturn", "Self", "TextIO")
    return {
        **{name: _Word() for name in (*plain, "TypeAlias")},
        "Generic": _Base,
        "Protocol": _Base,
        "ParamSpec": _Word,
        "TypeVar": _Word,
        "cast": lambda kind, value: value,
        "overload": lambda function: function,
    }
