"""Id maps as texts, for rows, and checked, for the kernel: ``inside:outside:size``, with commas between."""

from __future__ import annotations

import os
from collections.abc import Sequence

from orlop.errors import InvalidArgument, from_oserror
from orlop.images.api import IdMap
from orlop.linux import userns
from orlop.linux.userns import IdRange

__all__ = ["SPARE_ID", "check_maps", "maps_of", "maps_of_namespace", "parse_maps", "text_of"]

SPARE_ID = (1 << 32) - 3
"""The id on disk of what root of the machine makes in a root with mapped ids, unless it is mapped itself.

Whoever mounts an overlay makes its work folder, and must be somebody there; a commit takes it for root.
"""

_MAX_RANGES = 339  # UID_GID_MAP_MAX_EXTENTS less one for root of the machine (include/linux/user_namespace.h)


def text_of(maps: Sequence[IdMap]) -> str:
    """Maps as a text, in the order of their ids."""
    ordered = sorted(maps, key=lambda entry: entry.inside)
    return ",".join(f"{entry.inside}:{entry.outside}:{entry.size}" for entry in ordered)


def maps_of(text: str) -> tuple[IdMap, ...]:
    """The inverse of `text_of`."""
    found = (map(int, part.split(":")) for part in text.split(",") if part)
    return tuple(IdMap(inside=inside, outside=outside, size=size) for inside, outside, size in found)


def maps_of_namespace(namespace: int | str) -> tuple[tuple[IdMap, ...], tuple[IdMap, ...]]:
    """The user and group maps of a user namespace, by descriptor or path (``/proc/<pid>/ns/user``).

    Both are empty for one in which all ids are what they are outside.

    Raises what `orlop.linux.userns.maps_of` does.
    """
    if isinstance(namespace, str):
        try:
            fd = os.open(namespace, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as exc:
            raise from_oserror(f"open user namespace {namespace}", exc) from exc
        try:
            return maps_of_namespace(fd)
        finally:
            os.close(fd)
    users, groups = (
        tuple(IdMap(inside=entry.inside, outside=entry.outside, size=entry.size) for entry in side)
        for side in userns.maps_of(namespace)
    )
    same = all(entry.inside == entry.outside for entry in (*users, *groups))
    return ((), ()) if same else (users, groups)


def parse_maps(text: str) -> tuple[IdRange, ...]:
    """The same in the kernel's terms, with a place for root of the machine."""
    found = [IdRange(inside=entry.inside, outside=entry.outside, size=entry.size) for entry in maps_of(text)]
    if not any(entry.outside == 0 for entry in found):
        found.append(IdRange(inside=SPARE_ID, outside=0, size=1))
    return tuple(found)


def check_maps(maps: Sequence[IdMap], attempted: str) -> None:
    """Refuse maps that no user namespace can have.  Raises `InvalidArgument`."""
    if len(maps) > _MAX_RANGES:
        raise InvalidArgument(attempted, f"an id map of {len(maps)} ranges; the kernel takes {_MAX_RANGES}")
    for entry in maps:
        if entry.size < 1 or min(entry.inside, entry.outside) < 0:
            raise InvalidArgument(attempted, f"an id map of {entry.size} ids from {entry.inside}")
        if max(entry.inside, entry.outside) + entry.size > SPARE_ID:
            raise InvalidArgument(attempted, f"an id map past {SPARE_ID - 1}")
    for side in ("inside", "outside"):
        end = 0
        for entry in sorted(maps, key=lambda entry: int(getattr(entry, side))):
            start = int(getattr(entry, side))
            if start < end:
                raise InvalidArgument(attempted, f"the id map has id {start} twice ({side})")
            end = start + entry.size
