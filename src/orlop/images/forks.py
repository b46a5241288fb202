"""Forks and checkpoints of prepared roots: the verbs, and the values that go in and come out.

Part of `orlop.images.api.Store`; paths and errors are as there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from orlop.hints import TYPE_CHECKING, Protocol
from orlop.observe import Call
from orlop.values import dataclass, field

if TYPE_CHECKING:
    from orlop.images.api import PreparedInfo

__all__ = ["CheckpointInfo", "ForkOptions", "Forks"]

_NO_LABELS: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True)
class ForkOptions:
    """How to fork a root.

    ``move`` gives the source up: it must be idle, and is gone afterwards.  ``mount`` performs the mounts of
    the new roots, too.  ``labels`` are added to those that the new roots have from the source.
    """

    move: bool = False
    mount: bool = False
    labels: Mapping[str, str] = field(default_factory=lambda: _NO_LABELS)


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointInfo:
    """A named point of a prepared root.

    ``created`` is RFC 3339; ``image_id`` the digest of the config that says what the root was then, and
    ``size`` the bytes of the tars of its layers that the root's own image does not have.
    """

    name: str
    created: str
    image_id: str
    size: int = 0


class Forks(Protocol):
    """New roots of changed ones, and ways back.

    Thread-safe.  Every method raises `NotFound` where nothing is prepared at ``path``, and
    `FailedPrecondition` for a view, which has nothing that could change.
    """

    def fork(
        self, path: str, new_paths: Sequence[str], *, options: ForkOptions = ..., call: Call = ...
    ) -> list[PreparedInfo]:
        """Make new roots with the content of one, which stays as it is and may be in use.

        All of them appear, or none; durable on return.  They have the source's driver, quota, id maps,
        further mounts and labels, and stand on a layer that holds what was written to the source: it is
        captured once for all of them, and not again before something changes there.  With ``options.move``
        the source becomes the first of them; if that is the only one, no byte is copied.

        Raises `AlreadyExists` for a path that is prepared, `InvalidArgument` for one that is relative, not
        clean, inside the store or told twice; with ``options.move`` `FailedPrecondition` while the source is
        in use.
        """
        ...

    def checkpoint(self, path: str, name: str, *, call: Call = ...) -> CheckpointInfo:
        """Remember what a root is now, to go back to; the root stays usable.  Durable on return.

        Raises `AlreadyExists` for a name that the root has, `InvalidArgument` for what is no name.
        """
        ...

    def checkpoints(self, path: str) -> list[CheckpointInfo]:
        """The checkpoints of a root, in the order in which they were made."""
        ...

    def rollback(self, path: str, name: str, *, call: Call = ...) -> PreparedInfo:
        """Make a root what it was at a checkpoint; what was written since is deleted, all checkpoints stay.

        It must be idle: a mount of orlop's own is undone, and performed again.  Raises `NotFound` for a
        checkpoint that it has not, `FailedPrecondition`, naming the processes where they can be found, while
        the root is in use; then nothing has changed.
        """
        ...

    def drop_checkpoint(self, path: str, name: str) -> None:
        """Forget a checkpoint; what nothing else needs of it is deleted.  Raises `NotFound`."""
        ...
