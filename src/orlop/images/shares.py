"""Shares: images of the store as others read them, without a copy.  The contract and its values.

A share is a folder that podman, buildah and skopeo know how to read, made of names that lead to what the
store has.  Its images are kept as long as the share is there, whatever happens to their names.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

from orlop.hints import Protocol
from orlop.observe import Call
from orlop.values import dataclass

__all__ = ["SHARE_FORMS", "Share", "ShareForm", "ShareState", "Sharing"]

ShareForm = Literal["layout", "store"]
SHARE_FORMS: tuple[ShareForm, ...] = get_args(ShareForm)
ShareState = Literal["ready", "unmounted", "unfinished", "missing"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """A share.

    ``form`` is ``layout``, an OCI layout whose blobs are symbolic links into the store
    (``oci:FOLDER:NAME``), or ``store``, an additional image store of containers/storage, whose layers are
    mounts of the store's own.  ``images`` are the names in it.  ``created`` is RFC 3339.  ``state`` is
    ``ready``; ``unmounted`` where mounts are not there, as after a reboot; ``unfinished`` where a link leads
    nowhere or a part was never made; ``missing`` where the folder is gone.
    """

    folder: str
    form: ShareForm
    images: tuple[str, ...]
    created: str = ""
    state: ShareState = "ready"


class Sharing(Protocol):
    """Giving images to others without a copy.  Thread-safe; folders are absolute paths of the service."""

    def share(
        self,
        folder: str,
        names: Sequence[str],
        *,
        form: ShareForm | None = None,
        platform: str | None = None,
        run_only: bool = False,
        call: Call = ...,
    ) -> Share:
        """Put images into the share at a folder, which is made if there is none.

        A name that is in it means this image from now on.  Without ``names`` a share that is there is made
        whole again: links, and mounts, as after a reboot.  ``form`` is of a new one (``layout`` unless said),
        and so is ``run_only``: a store whose layers podman can run and build on, but not push or save; it is
        made without reading them.
        Raises `AlreadyExists` for a folder that holds something else, or a share of another form or store;
        `FailedPrecondition` where the kernel or an image cannot be shown so.
        """
        ...

    def shares(self) -> list[Share]:
        """All shares of the store, by folder."""
        ...

    def drop_share(self, folder: str, *, call: Call = ...) -> None:
        """Take a share away: its folder, its mounts, and what kept its images.

        Raises `NotFound` for a folder that is no share, `FailedPrecondition` while containers run on it.
        """
        ...
