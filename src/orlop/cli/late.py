"""Modules of the standard library that are imported when somebody uses them, not when somebody names them.

click, pathlib and msgspec import these for a word or two that most commands never come to, and with what they
import in turn they were a quarter of `orlop --help`: where an empty Python takes 17 ms, `inspect` took 9,
`platform` (of uuid's) 2.5, `ipaddress` 2, `gettext` 1.5 and a search for catalogues with every word.  Of a
commit `typing_extensions` was 4.5.

`put_off` is for a process that is orlop's own; a library has no business with its host's modules.  What is
here instead of a module behaves as the module does, for it becomes it: whatever is not among the few names
given below imports the real one.  Nothing is put off that was imported already.
"""

from __future__ import annotations

import os
import sys
from _thread import allocate_lock  # threading itself is a fifth of what a list of images imports
from collections.abc import Iterable
from types import ModuleType

__all__ = ["Late", "import_module", "put_off"]

_GUARD = allocate_lock()


class Late(ModuleType):
    """Stands in ``sys.modules`` for a module that nobody has used yet; ``known`` is used without it."""

    def __init__(self, name: str, known: dict[str, object]) -> None:
        super().__init__(name)
        self.__dict__.update(known)

    def __getattr__(self, name: str) -> object:
        if name == "__path__" and self.__name__ not in _WITH_MODULES:  # ``from … import`` asks for it
            raise AttributeError(name)
        if self.__name__ == "typing_extensions" and name in _OF_TYPING:
            return getattr(import_module("typing"), name)
        try:
            module = _real(self.__name__)
        except ModuleNotFoundError as exc:  # typing_extensions, which nobody had to install
            raise AttributeError(f"module {self.__name__!r} is not installed") from exc
        return getattr(module, name)


def import_module(name: str) -> ModuleType:
    """As importlib's, whose import takes a millisecond."""
    __import__(name)
    return sys.modules[name]


def _real(name: str) -> ModuleType:
    """The module itself."""
    with _GUARD:  # or of two threads the second would take the half-imported module away
        if isinstance(sys.modules.get(name), Late):
            del sys.modules[name]
    return import_module(name)


def put_off() -> None:
    """Put these modules off, from here on, in this process."""
    for name, known in _KNOWN.items():
        if name in sys.modules:
            continue
        package, _, child = name.rpartition(".")
        parent = import_module(package) if package in _PACKAGES else None
        sys.modules[name] = late = Late(name, known)
        if parent is not None:
            setattr(parent, child, late)


def _cleandoc(doc: str) -> str:
    """As `inspect.cleandoc`."""
    first, *rest = doc.expandtabs().split("\n")
    margin = min((len(line) - len(line.lstrip()) for line in rest if line.strip()), default=0)
    return "\n".join([first.lstrip(), *(line[margin:] for line in rest)]).strip("\n")


def _word(message: str) -> str:
    """As `gettext.gettext` without a catalogue: there is none for this program, whose texts are English."""
    return message


def _word_of(one: str, many: str, n: int) -> str:
    return one if n == 1 else many


def _close_matches(word: str, possibilities: Iterable[str], n: int = 3, cutoff: float = 0.6) -> list[str]:
    """As `difflib.get_close_matches`, which click asks about each ``-q``, too, before it knows it for one."""
    if len(word) == len("-q") and word.startswith("-"):
        return []
    found: list[str] = _real("difflib").get_close_matches(word, possibilities, n, cutoff)
    return found


def _terminal_size(fallback: tuple[int, int] = (80, 24)) -> os.terminal_size:
    """As `shutil.get_terminal_size`."""
    said = [os.environ.get(name, "") for name in ("COLUMNS", "LINES")]
    columns, lines = (int(text) if text.isascii() and text.isdigit() else 0 for text in said)
    if not (columns and lines):
        try:
            found = os.get_terminal_size(sys.__stdout__.fileno())  # type: ignore[union-attr]
        except (AttributeError, ValueError, OSError):  # closed, detached, or no terminal
            found = os.terminal_size(fallback)
        columns, lines = columns or found.columns or fallback[0], lines or found.lines or fallback[1]
    return os.terminal_size((columns, lines))


def _dates() -> dict[str, object]:
    """All of `datetime` that is written in C; the rest is the same again in Python, for whoever has no C."""
    try:
        return {name: value for name, value in vars(import_module("_datetime")).items() if name[0] != "_"}
    except ModuleNotFoundError:
        return {}


def _quoted(data: bytes) -> str:
    """As `urllib.parse.quote_from_bytes`, which pathlib names."""
    text: str = _real("urllib.parse").quote_from_bytes(data)
    return text


_KNOWN: dict[str, dict[str, object]] = {
    "base64": {},
    "calendar": {},
    "datetime": _dates(),
    "difflib": {"get_close_matches": _close_matches},
    "fnmatch": {},
    "gettext": {"gettext": _word, "ngettext": _word_of},
    "hashlib": {},
    "inspect": {"cleandoc": _cleandoc},
    "ipaddress": {},
    "json": {},
    "logging": {},
    "mimetypes": {},
    # which msgspec imports itself, and so has among its names
    "msgspec.inspect": {},
    "msgspec.toml": {},
    "msgspec.yaml": {},
    "ntpath": {},
    "re": {},
    "platform": {"system": lambda: os.uname().sysname},
    "shutil": {"get_terminal_size": _terminal_size},
    "subprocess": {},
    "tempfile": {},
    "textwrap": {},
    "tomllib": {},
    "traceback": {},
    "typing_extensions": {},
    "urllib.parse": {"quote_from_bytes": _quoted},
}
# Packages that cost nothing; ``import urllib.parse`` asks them for what is in them.
_PACKAGES = ("urllib",)
# Those among the above that have modules below them, which ``import json.decoder`` finds by their path.
_WITH_MODULES = ("json", "logging", "re")
# Python has had these since 3.11, which is our oldest.
_OF_TYPING = ("NotRequired", "Required", "get_type_hints")
