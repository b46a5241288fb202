"""Sharing, done in this process."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

from orlop.hints import TYPE_CHECKING
from orlop.images.parts import Parts, verb
from orlop.observe import Call

if TYPE_CHECKING:
    from orlop.images.shares import Share, ShareForm
    from orlop.images.sharing.sharer import Sharer

__all__ = ["SharingVerbs"]

_CALL = Call()


class SharingVerbs(Parts):
    """Satisfies `orlop.images.shares.Sharing`.  Thread-safe."""

    @cached_property
    def _sharer(self) -> Sharer:
        from orlop.images.sharing.sharer import Sharer

        return Sharer(self._core, self._chains)

    @verb("share")
    def share(
        self,
        folder: str,
        names: Sequence[str],
        *,
        form: ShareForm | None = None,
        platform: str | None = None,
        run_only: bool = False,
        call: Call = _CALL,
    ) -> Share:
        """See `orlop.images.shares.Sharing.share`."""
        return self._sharer.share(folder, names, form=form, platform=platform, run_only=run_only, call=call)

    @verb("list shares")
    def shares(self) -> list[Share]:
        """See `orlop.images.shares.Sharing.shares`."""
        return self._sharer.shares()

    @verb("drop share", deletes=True)
    def drop_share(self, folder: str, *, call: Call = _CALL) -> None:
        """See `orlop.images.shares.Sharing.drop_share`."""
        self._sharer.drop(folder, call=call)
