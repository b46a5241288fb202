"""``--filter KEY=VALUE`` of lists, as docker's and podman's users write it, and names by pattern.

Several values of one key are alternatives, several keys have to hold all; labels have to hold all, too.
Values in, yes or no out; nothing is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

from orlop.errors import InvalidArgument
from orlop.hints import Any, TypeVar

__all__ = ["fits_label", "fits_name", "fits_truth", "kept", "short_forms"]

Fits = Callable[[Any, str], bool]
_T = TypeVar("_T")


def kept(items: Iterable[_T], filters: Iterable[str], known: Mapping[str, Fits]) -> list[_T]:
    """The items that all filters let through.  Raises `InvalidArgument` for one that is not ``known``."""
    wanted: dict[str, list[str]] = {}
    for text in filters:
        key, equals, value = text.partition("=")
        if not equals or key not in known:
            raise InvalidArgument(
                f"use filter {text[:100]!r}",
                "it is not KEY=VALUE" if not equals else f"there is no filter {key[:40]!r}",
                hint=f"the filters are {', '.join(f'{name}=' for name in known)}",
            )
        wanted.setdefault(key, []).append(value)
    return [
        item
        for item in items
        if all(
            (all if key == "label" else any)(known[key](item, value) for value in values)
            for key, values in wanted.items()
        )
    ]


def fits_name(name: str, pattern: str) -> bool:
    """Whether a name fits a pattern, in any of the forms in which people write it; ``*`` crosses slashes.

    >>> fits_name("docker.io/library/alpine:latest", "alp*"), fits_name("localhost/a:1", "a:2")
    (True, False)
    """
    from fnmatch import fnmatchcase

    return any(fnmatchcase(form, pattern) for form in short_forms(name))


def short_forms(name: str) -> Iterator[str]:
    """A full name as people write it: without its registry, without ``library/``, without its tag."""
    shorter = [name]
    for prefix in ("docker.io/", "library/", "localhost/"):
        if shorter[-1].startswith(prefix):
            shorter.append(shorter[-1].removeprefix(prefix))
    for form in shorter:
        yield form
        bare = form.partition("@")[0]
        head, colon, tag = bare.rpartition(":")
        if colon and "/" not in tag:
            yield head
        elif bare != form:
            yield bare


def fits_label(labels: Mapping[str, str], text: str) -> bool:
    """Whether there is a label ``KEY``, or one ``KEY=VALUE``."""
    key, equals, value = text.partition("=")
    return key in labels and (not equals or labels[key] == value)


def fits_truth(found: bool, text: str) -> bool:
    """Whether something is as ``yes`` or ``no`` (``true``, ``false``) says."""
    words = {"yes": True, "true": True, "1": True, "no": False, "false": False, "0": False}
    if text.lower() not in words:
        raise InvalidArgument(f"use filter value {text[:40]!r}", "it is neither yes nor no")
    return words[text.lower()] is found
