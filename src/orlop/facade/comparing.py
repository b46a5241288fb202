"""What differs between things, and where it came from, in Python's terms: a part of `orlop.Store`."""

from __future__ import annotations

import os
from collections.abc import Generator

from orlop.hints import TYPE_CHECKING
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

        Things are named as in `orlop.Store.ls`. Close the generator, if it is not read to its end.

        >>> _ = store.load("/srv/layout", name="localhost/again")
        >>> list(store.diff("alpine", "localhost/again"))
        []
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
        """Which layers brought, changed and deleted a path.

        Raises `NotFound` for a path that no layer has.

        >>> [(step.what, step.line.layer) for step in store.blame("alpine", "/etc/motd").steps]
        [('added', 1)]
        """
        return self.verbs.blame(os.fspath(thing), os.fsencode(path), platform=platform, call=call or Call())

    def history(
        self, thing: Thing, *, platform: str | None = None, call: Call | None = None
    ) -> list[HistoryLine]:
        """The history of an image, oldest first, each line with its layer.

        >>> [line.created_by for line in store.history("alpine")]
        ['layer 0']
        """
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
        """What is at and below a path, with the size of all that is in it; as it is found.

        ``depth`` is how far it goes down, ``layers`` says which layer brought what. Sizes are
        bytes.

        >>> [line.file.path for line in store.tree("alpine", "/etc", depth=1)]
        [b'etc', b'etc/motd']
        """
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
        """What of an image's layers nothing shows any more, and the largest ``files`` of it.

        >>> store.waste("alpine").wasted
        0
        """
        return self.verbs.waste(os.fspath(thing), files=files, platform=platform, call=call or Call())


class PreparedComparing:
    """What of a prepared root is not its image's."""

    _verbs: StoreVerbs
    info: PreparedInfo

    def diff(
        self, *, path: StrPath = "/", times: bool = True, call: Call | None = None
    ) -> Generator[Difference]:
        """What changed since the image, as it is found.

        >>> _ = open("/srv/root/etc/motd", "w").write("changed")
        >>> [(one.what, one.path) for one in root.diff(path="/etc/motd")]
        [('changed', b'etc/motd')]
        """
        return self._verbs.diff(self.info.path, path=os.fsencode(path), times=times, call=call or Call())

    def blame(self, path: StrPath, *, call: Call | None = None) -> Blame:
        """Which layers, and which changes here, brought, changed and deleted a path.

        Of a change here the layer is 0.

        >>> _ = open("/srv/root/etc/motd", "w").write("changed")
        >>> [(step.how, step.line.layer) for step in root.blame("/etc/motd").steps]
        [('entry', 1), ('written', 0)]
        """
        return self._verbs.blame(self.info.path, os.fsencode(path), call=call or Call())
