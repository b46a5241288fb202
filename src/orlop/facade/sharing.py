"""Shares, in Python's terms: a part of `orlop.Store`."""

from __future__ import annotations

import os

from orlop.hints import TYPE_CHECKING
from orlop.observe import Call

if TYPE_CHECKING:
    from orlop.images.api import Store as StoreVerbs
    from orlop.images.shares import Share, ShareForm

__all__ = ["StoreSharing"]

StrPath = str | os.PathLike[str]


class StoreSharing:
    """Images for podman and others, without a copy.  `orlop.images.shares` has each verb's contract."""

    verbs: StoreVerbs

    def share(
        self,
        folder: StrPath,
        *names: str,
        form: ShareForm | None = None,
        platform: str | None = None,
        run_only: bool = False,
        call: Call | None = None,
    ) -> Share:
        """Put images into the share at ``folder``; without names make one that is there whole again.

        ``form`` is ``layout``, for ``podman run oci:FOLDER:NAME`` and all that copies from there, or
        ``store``, which podman and buildah use in place (``additionalimagestores``).  Folders are the
        service's own: a relative path is taken from here.

        Raises `AlreadyExists` for a folder that holds something else.

        >>> store.share("/srv/share", "alpine", form="layout").form
        'layout'
        >>> store.drop_share("/srv/share")
        """
        where = os.path.abspath(folder)
        return self.verbs.share(
            where, names, form=form, platform=platform, run_only=run_only, call=call or Call()
        )

    def shares(self) -> list[Share]:
        """All shares, by folder.

        >>> store.shares()
        []
        """
        return self.verbs.shares()

    def drop_share(self, folder: StrPath, *, call: Call | None = None) -> None:
        """Take a share away: its folder, its mounts, and what kept its images.

        Raises `NotFound`.

        >>> folder = store.share("/srv/share", "alpine", form="layout").folder
        >>> store.drop_share(folder)
        """
        self.verbs.drop_share(os.path.abspath(folder), call=call or Call())
