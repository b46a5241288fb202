"""Forks and checkpoints, done in this process.  Orchestration only."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

from orlop.hints import TYPE_CHECKING
from orlop.images.parts import Parts, verb
from orlop.observe import Call

if TYPE_CHECKING:
    from orlop.images.api import PreparedInfo
    from orlop.images.changed.checkpoints import Checkpoints
    from orlop.images.changed.states import States
    from orlop.images.forks import CheckpointInfo, ForkOptions

__all__ = ["ForkVerbs"]

_CALL = Call()


class ForkVerbs(Parts):
    """Satisfies `orlop.images.forks.Forks`.  Thread-safe."""

    @cached_property
    def _states(self) -> States:
        from orlop.images.changed.states import States

        return States(self._core, self._roots, self._capture)

    @cached_property
    def _checkpoints(self) -> Checkpoints:
        from orlop.images.changed.checkpoints import Checkpoints

        return Checkpoints(self._core, self._chains, self._roots, self._states)

    @verb("fork")
    def fork(
        self, path: str, new_paths: Sequence[str], *, options: ForkOptions | None = None, call: Call = _CALL
    ) -> list[PreparedInfo]:
        """See `orlop.images.forks.Forks.fork`."""
        from orlop.images.changed.forks import Forker
        from orlop.images.forks import ForkOptions

        options = options or ForkOptions()
        forker = Forker(self._core, self._chains, self._roots, self._states)
        return forker.fork(path, new_paths, options=options, call=call)

    @verb("checkpoint")
    def checkpoint(self, path: str, name: str, *, call: Call = _CALL) -> CheckpointInfo:
        """See `orlop.images.forks.Forks.checkpoint`."""
        return self._checkpoints.make(path, name, call=call)

    @verb("list checkpoints of")
    def checkpoints(self, path: str) -> list[CheckpointInfo]:
        """See `orlop.images.forks.Forks.checkpoints`."""
        return self._checkpoints.listed(path)

    @verb("roll back")
    def rollback(self, path: str, name: str, *, call: Call = _CALL) -> PreparedInfo:
        """See `orlop.images.forks.Forks.rollback`."""
        return self._checkpoints.rollback(path, name, call=call)

    @verb("drop checkpoint of", deletes=True)
    def drop_checkpoint(self, path: str, name: str) -> None:
        """See `orlop.images.forks.Forks.drop_checkpoint`."""
        self._checkpoints.drop(path, name)
