"""What differs between things, and where it came from, in Python's terms: a part of `orlop.Store`."""

from __future__ import annotations

import os
from collections.abc import Generator
from typing import TYPE_CHECKING

from orlop.observe import Call

if TYPE_CHECKING:
    from orlop.images.api import PreparedInfo
    from orlop.images.api import Store as StoreVerbs
    from orlop.images.comparing import Blame, Difference, HistoryLine, TreeLine, Waste

__all__ = ["PreparedComparing", "StoreComparing"]

StrPath = str | bytes | os.PathLike[str]
Thing = str | os.PathLike[str]


class StoreComparing:
    """Comparing things without mounting them; `orlop.images.comparing` has each verb's contract."""

    verbs: StoreVerbs

    def diff(
        self,
        old: Thing,
        new: Thing | None = None,
        *,
        path: StrPath = "/",
        times: bool = True,
        platform: str | None = None,
        call: Call | None = None,
    ) -> Generator[Difference]:
        """What of ``new`` differs from ``old``, as it is found; of a prepared root alone, what changed there.

        Without ``times`` a difference of mtimes alone is none.
        """
        return self.verbs.diff(
            os.fspath(old),
            os.fspath(new) if new is not None else None,
            path=os.fsencode(path),
            times=times,
            platform=platform,
            call=call or Call(),
        )

    def blame(
        self, thing: Thing, path: StrPath, *, platform: str | None = None, call: Call | None = None
    ) -> Blame:
        """Which layers brought, changed and deleted a path."""
        return self.verbs.blame(os.fspath(thing), os.fsencode(path), platform=platform, call=call or Call())

    def history(
        self, thing: Thing, *, platform: str | None = None, call: Call | None = None
    ) -> list[HistoryLine]:
        """The history of an image, oldest first, each line with its layer."""
        return self.verbs.history(os.fspath(thing), platform=platform, call=call or Call())

    def tree(
        self,
        thing: Thing,
        path: StrPath = "/",
        *,
        depth: int | None = None,
        layers: bool = False,
        platform: str | None = None,
        call: Call | None = None,
    ) -> Generator[TreeLine]:
        """What is at and below a path, with the size of all that is in it; as it is found."""
        return self.verbs.tree(
            os.fspath(thing),
            os.fsencode(path),
            depth=depth,
            layers=layers,
            platform=platform,
            call=call or Call(),
        )

    def waste(
        self, thing: Thing, *, files: int = 10, platform: str | None = None, call: Call | None = None
    ) -> Waste:
        """What of an image's layers nothing shows any more, and the largest ``files`` of it."""
        return self.verbs.waste(os.fspath(thing), files=files, platform=platform, call=call or Call())


class PreparedComparing:
    """What of a prepared root is not its image's."""

    _verbs: StoreVerbs
    info: PreparedInfo

    def diff(
        self, *, path: StrPath = "/", times: bool = True, call: Call | None = None
    ) -> Generator[Difference]:
        """What changed since the image, as it is found."""
        return self._verbs.diff(self.info.path, path=os.fsencode(path), times=times, call=call or Call())

    def blame(self, path: StrPath, *, call: Call | None = None) -> Blame:
        """Which layers, and which changes here, brought, changed and deleted a path."""
        return self._verbs.blame(self.info.path, os.fsencode(path), call=call or Call())
