"""Short names: what `alpine` may mean where the settings want more than Docker Hub asked.  No I/O.

Off by default, as a short name then means whatever the first registry has that knows it, and anybody may have
made that.  So only an answer that it is not there, or not for us, leads to the next registry: one that is in
trouble stops the search.  An alias of `registries.conf` counts alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from orlop.errors import Error, InvalidArgument, NotFound, PermissionDenied, Unauthenticated
from orlop.spec.reference import Reference, is_short

__all__ = ["candidates", "first_found"]

_T = TypeVar("_T")


def candidates(
    text: str,
    search: bool | Sequence[str],
    *,
    listed: Sequence[str] = (),
    aliases: Mapping[str, str] | None = None,
) -> tuple[Reference, ...]:
    """What a name may mean, in order; one reference unless it is short and ``search`` is on.

    ``search`` holds registries, or is true for those that are ``listed`` by `registries.conf`.  Raises
    `InvalidArgument` for what is no name, and for a registry that is none.

    >>> [ref.name for ref in candidates("a/b", ["r.example", "docker.io"])]
    ['r.example/a/b', 'docker.io/a/b']
    """
    registries = listed if search is True else search or ()
    if search is False or not is_short(text):
        return (Reference.parse(text),)
    short = text.partition("@")[0].partition(":")[0]
    if alias := (aliases or {}).get(short):
        return (Reference.parse(alias + text[len(short) :]),)
    if not registries:
        return (Reference.parse(text),)
    found = []
    for registry in dict.fromkeys(registries):
        if is_short(f"{registry}/x"):
            raise InvalidArgument("use search_registries", f"not a registry: {registry[:100]!r}")
        found.append(Reference.parse(f"{registry}/{text}"))
    return tuple(found)


def first_found(refs: Sequence[Reference], pull: Callable[[Reference], _T], attempted: str) -> _T:
    """What ``pull`` makes of the first name that a registry has.  Raises as it does for the last one."""
    said: list[str] = []
    for ref in refs[:-1]:
        try:
            return pull(ref)
        except (NotFound, PermissionDenied, Unauthenticated) as exc:
            said.append(f"{ref}: {exc.reason}")
    try:
        return pull(refs[-1])
    except NotFound as exc:
        if not said:
            raise
        raise NotFound(attempted, "; ".join((*said, f"{refs[-1]}: {exc.reason}"))) from exc
    except Error as exc:
        exc.reason += f" (looked for before: {'; '.join(said)})" if said else ""
        raise
