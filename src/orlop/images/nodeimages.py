"""The images of a node, as Kubernetes sees them: one for each ID with all its names, and what they take.

A face of the same store for those who speak CRI (`orlop.service.cri`).  Beside `orlop.images.api`, not in it:
these verbs say nothing that the others do not say, in other words.  The rules are in `orlop.images.cri`.

An image is its ID, the digest of its config.  Names that CRI asks about are what a pod's author wrote: short
names, with a tag, a digest or both, and IDs, whole or at least 12 digits of them.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from orlop.observe import Call
from orlop.values import dataclass

__all__ = ["PINNED_LABEL", "DiskUse", "NodeImage", "NodeImageDetails", "NodeImages"]

PINNED_LABEL = "pinned"  # of a name: its image is to be left alone by who looks for images to remove


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeImage:
    """An image.

    ``tags`` are its names with a tag, ``digests`` those with a digest: that of the index or manifest which
    each name means, none for an image that has no manifest yet.  ``size`` counts its config and its layers'
    tars, so it is never 0; what images share counts in each.  ``uid`` is the config's user where that is a
    user's number, ``username`` where it is anything else.  ``pinned`` if a pin or a name's label says so.
    """

    id: str
    tags: tuple[str, ...]
    digests: tuple[str, ...]
    size: int
    uid: int | None = None
    username: str = ""
    pinned: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeImageDetails:
    """An image, the chain ID of its layers (empty without any), and its config's own bytes (JSON)."""

    image: NodeImage
    chain: str
    config: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskUse:
    """What images, and what the own files of prepared roots and of snapshots, take of ``path``'s file system.

    ``at`` is when it was measured, in nanoseconds since 1970; bytes are of disk, as ``du`` counts them.
    """

    path: str
    at: int
    image_bytes: int
    image_inodes: int
    root_bytes: int
    root_inodes: int


@runtime_checkable
class NodeImages(Protocol):
    """A store that speaks of its images so.  Thread-safe.

    Raises `InvalidArgument` for what is neither a name nor an ID, `FailedPrecondition` for the beginning of
    several IDs.
    """

    def node_images(self) -> list[NodeImage]:
        """All images, by the first of their names.

        One whose config is damaged is in it, without its user.
        """
        ...

    def node_image(self, name: str) -> NodeImage | None:
        """The image that a name means; None if there is none.  Raises `DataLoss` for a damaged config."""
        ...

    def node_image_details(self, name: str) -> NodeImageDetails | None:
        """The same with its config."""
        ...

    def pull_node_image(self, name: str, *, call: Call) -> str:
        """Pull, and say the image's ID.  An ID is never pulled: it is there, or that is an error."""
        ...

    def remove_node_image(self, name: str) -> None:
        """Take an image away with all its names, whichever of them is said.  Nothing if there is none.

        Prepared roots and pins keep what they stand on.
        """
        ...

    def disk_use(self, *, call: Call) -> DiskUse:
        """What images take.  It may have been measured a little earlier: ``at`` says when."""
        ...
