"""What was meant by a name that the store has not: hints for errors, made when there is an error to make.

Bounded: of a large store the first names alone are looked at, and what is compared is short.  Nothing here
decides anything; a hint names what is there, in the form that means just that.
"""

from __future__ import annotations

from collections.abc import Iterable

from orlop.errors import Error, InvalidArgument
from orlop.images.core import NAMESPACE, Core
from orlop.metadata import images, roots
from orlop.metadata.db import Transaction
from orlop.spec.reference import Reference

__all__ = ["add_meant", "image_hint", "meant_images", "meant_path", "root_hint"]

_LOOKED_AT = 2_000  # names of a store
_LONGEST = 300  # characters of a name that are compared
_NAMED = 3
_CUTOFF = 0.72  # of difflib's ratio: a letter or two of a short name
_LISTED = "'orlop images' lists what there is"
_ROOTS_LISTED = "'orlop ps' lists what is"


def image_hint(tx: Transaction, namespace: str, text: str) -> str:
    """The images that a text may have meant, or where to find them."""
    found = meant_images(text, images.some_names(tx, namespace, _LOOKED_AT))
    return f"did you mean {' or '.join(found)}?  {_LISTED}" if found else _LISTED


def add_meant(core: Core, text: str, exc: Error) -> None:
    """Add to the hint of a pull that failed what is here under a like name: a registry knows no such."""
    found = meant_images(text, core.db.read(lambda tx: images.some_names(tx, NAMESPACE, _LOOKED_AT)))
    if found:
        meant = f"did you mean {' or '.join(found)}, of this store?"
        exc.hint = f"{meant}  {exc.hint}" if exc.hint else meant


def root_hint(tx: Transaction, path: str) -> str:
    """The prepared root that a path may have meant, or where to find it."""
    meant = meant_path(path, roots.some_paths(tx, _LOOKED_AT))
    return f"did you mean {meant}?  {_ROOTS_LISTED}" if meant else _ROOTS_LISTED


def meant_images(text: str, names: Iterable[str]) -> list[str]:
    """At most three of full names, the likeliest first.

    Likely are another tag of the repository, the same last name in another place, and a last name that
    differs in a letter or two; what stands before it is alike in most names of a store, and says little.

    >>> meant_images("app:1", ["docker.io/library/alpine:latest", "localhost/app:1", "localhost/app:2"])
    ['localhost/app:1', 'localhost/app:2']
    >>> meant_images("alpnie", ["docker.io/library/alpine:latest"])
    ['alpine:latest']
    """
    try:
        wanted = Reference.parse(text[:_LONGEST])
    except InvalidArgument:
        wanted = None
    last = wanted.name.rpartition("/")[2] if wanted else text[:_LONGEST].rpartition("/")[2].lower()
    likely: list[tuple[int, str]] = []
    rest: dict[str, str] = {}
    for name in names:
        repository, tag = _parts(name)
        if wanted is not None and repository == wanted.name:
            likely.append((0, name))
        elif repository.rpartition("/")[2] == last:
            likely.append((1 if wanted is not None and tag == wanted.tag else 2, name))
        else:
            rest.setdefault(repository.rpartition("/")[2][:_LONGEST], name)
    found = [name for _, name in sorted(likely)]
    if not found:
        from difflib import get_close_matches

        found = [rest[word] for word in get_close_matches(last, rest, cutoff=_CUTOFF)]
    return [_short(name) for name in dict.fromkeys(found)][:_NAMED]


def meant_path(path: str, paths: Iterable[str]) -> str:
    """The likeliest of some paths, or nothing: as it is written, or by its last name alone."""
    from difflib import get_close_matches

    known = [each for each in paths if len(each) <= _LONGEST]
    near = get_close_matches(path[:_LONGEST], known, n=1, cutoff=0.8)
    if near:
        return near[0]
    last = path.rstrip("/").rpartition("/")[2]
    same = [each for each in known if last and each.rpartition("/")[2] == last]
    return same[0] if len(same) == 1 else ""


def _parts(name: str) -> tuple[str, str]:
    """The repository and the tag of a full name."""
    bare = name.partition("@")[0]
    head, colon, tag = bare.rpartition(":")
    return (head, tag) if colon and "/" not in tag else (bare, "")


def _short(name: str) -> str:
    """A name without what Docker's rules add to it."""
    return name.removeprefix("docker.io/library/").removeprefix("docker.io/")
