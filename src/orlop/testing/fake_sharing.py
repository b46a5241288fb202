"""Shares of `orlop.testing.fake.FakeStore`: values, no folders."""

from __future__ import annotations

from collections.abc import Sequence

from orlop.errors import AlreadyExists, InvalidArgument, NotFound
from orlop.images.shares import Share, ShareForm
from orlop.observe import Call
from orlop.testing.fake_base import FakeBase

__all__ = ["FakeSharing"]


class FakeSharing(FakeBase):
    """Satisfies `orlop.images.shares.Sharing`.  Thread-safe."""

    def share(
        self,
        folder: str,
        names: Sequence[str],
        *,
        form: ShareForm | None = None,
        platform: str | None = None,
        run_only: bool = False,
        call: Call | None = None,
    ) -> Share:
        """A share that has these images, too."""
        self._begin("share", folder, call)
        if not folder.startswith("/"):
            raise InvalidArgument(f"share {folder}", "the folder is no clean absolute path")
        found = [self._find(name, "share")[0] for name in names]
        with self._lock:
            known = self._shares.get(folder)
            if known is None and not names:
                raise NotFound(f"share {folder}", "it is no share", hint="name images to put into a new one")
            if known is not None and form not in {None, known.form}:
                raise AlreadyExists(f"share {folder}", f"it is a share of form {known.form}")
            images = {*(known.images if known else ()), *found}
            made = Share(
                folder=folder,
                form=known.form if known else form or "layout",
                images=tuple(sorted(images)),
                created=known.created if known else self.now,
            )
            self._shares[folder] = made
            return made

    def shares(self) -> list[Share]:
        """All shares, by folder."""
        self._begin("shares", "")
        with self._lock:
            return [self._shares[folder] for folder in sorted(self._shares)]

    def drop_share(self, folder: str, *, call: Call | None = None) -> None:
        """Forget a share."""
        self._begin("drop_share", folder, call)
        with self._lock:
            if self._shares.pop(folder, None) is None:
                raise NotFound(f"drop share {folder}", "it is no share")
