"""Forks and checkpoints of prepared roots, in Python's terms: parts of `orlop.Store` and `orlop.Prepared`."""

from __future__ import annotations

import os
from collections.abc import Mapping

from orlop.hints import TYPE_CHECKING, Self
from orlop.observe import Call

if TYPE_CHECKING:
    from orlop.facade.prepared import Prepared
    from orlop.images.api import PreparedInfo
    from orlop.images.api import Store as StoreVerbs
    from orlop.images.forks import CheckpointInfo

__all__ = ["PreparedForks", "StoreForks"]

StrPath = str | os.PathLike[str]


class PreparedForks:
    """New roots of this one, and ways back.  `orlop.images.forks` has each verb's contract."""

    _verbs: StoreVerbs
    info: PreparedInfo

    def __init__(self, verbs: StoreVerbs, info: PreparedInfo) -> None:
        self._verbs = verbs
        self.info = info

    def fork(
        self,
        *new_paths: StrPath,
        move: bool = False,
        mount: bool = False,
        labels: Mapping[str, str] | None = None,
        call: Call | None = None,
    ) -> list[Self]:
        r"""Make new roots with this one's content, all or none; this one stays as it is, and may be in use.

        What was written is captured once for all of them.  With ``move`` this root becomes the first of them,
        as this handle does, and no byte is copied if it is the only one; it must be idle.

        Raises `AlreadyExists` for a path that is prepared, `FailedPrecondition` for a view, and
        with ``move`` for a root in use.

        >>> one, two = root.fork("/srv/try-1", "/srv/try-2", mount=True)
        >>> open("/srv/try-2/etc/motd").read()
        'hello\n'
        """
        from orlop.images.forks import ForkOptions

        options = ForkOptions(move=move, mount=mount, labels=dict(labels or {}))
        paths = [os.fspath(path) for path in new_paths]
        made = self._verbs.fork(self.info.path, paths, options=options, call=call or Call())
        if move:
            self.info = made[0]
        return [type(self)(self._verbs, info) for info in made]

    def checkpoint(self, name: str, *, call: Call | None = None) -> CheckpointInfo:
        """Remember what the root is now; it stays usable, and may be in use.

        Raises `AlreadyExists` for a name that the root has.

        >>> root.checkpoint("before").name
        'before'
        """
        return self._verbs.checkpoint(self.info.path, name, call=call or Call())

    def checkpoints(self) -> list[CheckpointInfo]:
        """The checkpoints, in the order in which they were made.

        >>> _ = root.checkpoint("before")
        >>> [point.name for point in root.checkpoints()]
        ['before']
        """
        return self._verbs.checkpoints(self.info.path)

    def rollback(self, name: str, *, call: Call | None = None) -> Self:
        r"""Make the root what it was at a checkpoint; it must be idle.  All checkpoints stay.

        Raises `NotFound` for no such checkpoint, `FailedPrecondition` for a root in use.

        >>> _ = root.checkpoint("before")
        >>> _ = open("/srv/root/etc/motd", "w").write("changed")
        >>> _ = root.unmount().rollback("before").mount()
        >>> open("/srv/root/etc/motd").read()
        'hello\n'
        """
        self.info = self._verbs.rollback(self.info.path, name, call=call or Call())
        return self

    def drop_checkpoint(self, name: str) -> None:
        """Forget a checkpoint.

        Raises `NotFound`.

        >>> _ = root.checkpoint("before")
        >>> root.drop_checkpoint("before")
        """
        self._verbs.drop_checkpoint(self.info.path, name)


class StoreForks:
    """New roots of one by its path."""

    verbs: StoreVerbs

    def fork(
        self,
        path: StrPath,
        *new_paths: StrPath,
        move: bool = False,
        mount: bool = False,
        labels: Mapping[str, str] | None = None,
        call: Call | None = None,
    ) -> list[Prepared]:
        """Make new roots with the content of the one at ``path``: see `orlop.Prepared.fork`.

        >>> [fork.path for fork in store.fork("/srv/root", "/srv/try-1", "/srv/try-2")]
        ['/srv/try-1', '/srv/try-2']
        """
        from orlop.facade.prepared import Prepared
        from orlop.images.forks import ForkOptions

        options = ForkOptions(move=move, mount=mount, labels=dict(labels or {}))
        paths = [os.fspath(new) for new in new_paths]
        made = self.verbs.fork(os.fspath(path), paths, options=options, call=call or Call())
        return [Prepared(self.verbs, info) for info in made]
