"""What `orlop prepare` is told of quotas, id maps and further mounts, as podman's users write it.

Texts in, values out; nothing is mounted, and of the disk only a volume's source is looked for.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Sequence

from orlop.errors import InvalidArgument
from orlop.hints import TYPE_CHECKING

if TYPE_CHECKING:
    from orlop.images.api import ExtraMount, IdMap

__all__ = ["bind_of", "extra_of", "id_map_of", "id_maps_of", "image_volume_of", "tmpfs_of"]

_ID_MAP = re.compile(r"([0-9]{1,10}):([0-9]{1,10}):([0-9]{1,10})")


def id_map_of(text: str) -> IdMap:
    """A range of ids out of ``INSIDE:OUTSIDE:SIZE``."""
    from orlop.images.api import IdMap

    match = _ID_MAP.fullmatch(text)
    if match is None:
        raise InvalidArgument(
            f"map ids {text!r}", "not an id map", hint="write INSIDE:OUTSIDE:SIZE, as in 0:100000:65536"
        )
    return IdMap(inside=int(match[1]), outside=int(match[2]), size=int(match[3]))


def id_maps_of(users: Sequence[str], groups: Sequence[str]) -> tuple[tuple[IdMap, ...], tuple[IdMap, ...]]:
    """The maps of users and groups; if only one of them is given it is that of the other, too."""
    return (
        tuple(id_map_of(text) for text in users or groups),
        tuple(id_map_of(text) for text in groups or users),
    )


def bind_of(text: str) -> ExtraMount:
    """A mount out of ``SOURCE:TARGET[:ro]``; mounts below SOURCE come along."""
    from orlop.cli.runargs import volume_of
    from orlop.images.api import ExtraMount

    volume = volume_of(text)
    target = _target(volume.target, f"mount volume {text!r}")
    options = ("rbind", "ro" if volume.read_only else "rw")
    return ExtraMount(type="bind", source=volume.source, target=target, options=options)


def tmpfs_of(text: str) -> ExtraMount:
    """A mount out of ``TARGET[:OPTIONS]``, the options as mount(8) has them for tmpfs: ``size=64m``."""
    from orlop.images.api import ExtraMount

    target, _, words = text.partition(":")
    options = tuple(word for word in words.split(",") if word)
    return ExtraMount(type="tmpfs", target=_target(target, f"mount tmpfs {text!r}"), options=options)


def image_volume_of(text: str) -> ExtraMount:
    """A mount out of ``IMAGE:TARGET``; the last colon counts, as names of images have some of their own."""
    from orlop.images.api import ExtraMount

    image, _, target = text.rpartition(":")
    attempted = f"mount image {text!r}"
    if not image:
        raise InvalidArgument(attempted, "not an image and a path", hint="write it as IMAGE:TARGET")
    return ExtraMount(type="image", source=image, target=_target(target, attempted))


def extra_of(volumes: Sequence[str], tmpfs: Sequence[str], images: Sequence[str]) -> tuple[ExtraMount, ...]:
    """All further mounts, outer ones first, whatever the order of the options."""
    found = [*map(bind_of, volumes), *map(tmpfs_of, tmpfs), *map(image_volume_of, images)]
    taken: set[str] = set()
    for mount in found:
        place = posixpath.normpath(mount.target)
        if place in taken:
            raise InvalidArgument(f"mount at {place}", "two mounts have this target")
        taken.add(place)
    return tuple(sorted(found, key=lambda mount: posixpath.normpath(mount.target).count("/")))


def _target(path: str, attempted: str) -> str:
    if not path.startswith("/"):
        raise InvalidArgument(attempted, f"the target {path!r} is not an absolute path")
    return path
