"""The library's reference: a page of directives that Sphinx fills from the docstrings of all public names."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from types import ModuleType

import orlop

FIRST = ("open", "connect", "restore", "login", "logout", "logins", "registries")
CLASSES = ("Store", "Prepared", "Remote", "EventStream")
LONG_CALLS = ("Call", "CancelToken", "Observer", "Progress", "Auth")
SETTINGS = ("Settings", "Limits")
OPTIONS = ("PrepareOptions", "ExtraMount", "IdMap", "CommitOptions", "ForkOptions", "ExportOptions", "Keep")
_FURTHER = ("aio", "pytest_plugin", "rootless")  # modules of their own


def pages() -> dict[str, str]:
    """All pages by their path below the documentation."""
    return {"reference/library.md": "\n".join(_page()) + "\n"}


def names() -> list[str]:
    """What is documented name by name: all that is public but modules and the version."""
    return [name for name in orlop.__all__ if not isinstance(getattr(orlop, name), ModuleType | str)]


def groups() -> dict[str, list[str]]:
    """Every public name, once, under its heading."""
    public = names()
    errors = [name for name in public if _is_error(name)]
    found = {
        "Where it begins": [name for name in FIRST if name in public],
        "The store": [name for name in CLASSES if name in public],
        "Long calls": [name for name in LONG_CALLS if name in public],
        "Settings": [name for name in SETTINGS if name in public],
        "Options": [name for name in OPTIONS if name in public],
        "Errors": sorted(errors, key=lambda name: (name != "Error", name)),
    }
    taken = {name for names in found.values() for name in names}
    found["What calls give"] = [name for name in public if name not in taken]
    return found


def _is_error(name: str) -> bool:
    value = getattr(orlop, name)
    return isinstance(value, type) and issubclass(value, Exception)


def _page() -> Iterator[str]:
    yield from ("# The library, name by name", "")
    yield from (
        "[The library](../library.md) shows how it is used.  All names here are those of `orlop`.",
        "",
    )
    for heading, names in groups().items():
        yield from (f"## {heading}", "")
        for name in names:
            yield from _directive(name)
    for module in _FURTHER:
        if importlib.util.find_spec(f"orlop.{module}"):
            yield from (f"## `orlop.{module}`", "", "```{eval-rst}", f".. automodule:: orlop.{module}")
            yield from ("   :members:", "   :inherited-members:", "   :noindex:", "```", "")


def _directive(name: str) -> Iterator[str]:
    value = getattr(orlop, name)
    yield "```{eval-rst}"
    if isinstance(value, type) and issubclass(value, Exception):
        yield from (f".. autoexception:: orlop.{name}", "   :show-inheritance:")
        if name == "Error":
            yield "   :members:"
    elif isinstance(value, type):
        yield from (f".. autoclass:: orlop.{name}", "   :members:", "   :inherited-members:")
        if name not in CLASSES:
            yield "   :undoc-members:"
    else:
        yield f".. autofunction:: orlop.{name}"
    yield from ("```", "")
