"""Which images a policy takes the names of.  A pure function of what the store holds.

Every limit takes those used longest ago first until it is met or nothing more may go, so the limit that
takes most decides.  An image goes with all its names or not at all.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from orlop.errors import InvalidArgument
from orlop.images.upkeep import Keep
from orlop.values import dataclass

__all__ = ["Candidate", "LayerSizes", "check_keep", "choose", "has_label"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """An image as policies see it.

    ``used`` is when any of its names was last asked for; ``held`` whether a prepared root or a pin is on it;
    ``labels`` are those of all its names, as pairs of a key and a value.
    """

    id: str
    names: tuple[str, ...]
    used: float
    layers: tuple[str, ...] = ()
    held: bool = False
    labels: frozenset[tuple[str, str]] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerSizes:
    """Bytes of a layer: of its tar, and of all its files; ``held`` if something but images keeps it."""

    tar: int
    disk: int
    held: bool = False


def check_keep(keep: Keep, what: str) -> None:
    """Refuse limits that mean nothing.  Raises `InvalidArgument`."""
    for name in ("age", "count", "size", "free"):
        limit = getattr(keep, name)
        if limit is not None and not limit >= 0:
            raise InvalidArgument(what, f"a limit below nothing: {name} {limit}")
    if any(not label.partition("=")[0] for label in keep.labels):
        raise InvalidArgument(what, "a label without a key", hint="give key or key=value")


def has_label(labels: Iterable[tuple[str, str]], wanted: str) -> bool:
    """Whether some labels have ``key``, or ``key=value``."""
    key, equals, value = wanted.partition("=")
    return any(key == label and (not equals or value == text) for label, text in labels)


def choose(
    images: Sequence[Candidate],
    keep: Keep,
    *,
    layers: Mapping[str, LayerSizes],
    now: float,
    free: int,
) -> list[Candidate]:
    """The images that go, in the order of going.

    ``layers`` tells the sizes of those of the images; ``free`` is how many bytes of the disk are free
    before anything goes.
    """
    left = sorted(images, key=lambda image: (image.used, image.names))
    movable = [
        image
        for image in left
        if not image.held and not any(has_label(image.labels, label) for label in keep.labels)
    ]
    users = Counter(layer for image in left for layer in set(image.layers))
    size = sum(layers[layer].tar for layer in users if layer in layers)
    gone: list[Candidate] = []

    def take() -> None:
        nonlocal size, free
        image = movable.pop(0)
        gone.append(image)
        for layer in set(image.layers):
            users[layer] -= 1
            about = layers.get(layer)
            if users[layer] or about is None:
                continue
            size -= about.tar
            free += 0 if about.held else about.disk

    def over() -> bool:
        return (
            (keep.age is not None and movable[0].used < now - keep.age)
            or (keep.count is not None and len(left) - len(gone) > keep.count)
            or (keep.size is not None and size > keep.size)
            or (keep.free is not None and free < keep.free)
        )

    # The oldest is always the next, whichever limit it is that takes it.
    while movable and over():
        take()
    return gone
