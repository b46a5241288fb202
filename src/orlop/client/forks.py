"""The verbs of `orlop.images.forks`, answered by a daemon."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing

from orlop.client import wire, wireforks
from orlop.client.events import follow
from orlop.client.link import Link, unicode_only
from orlop.images.api import PreparedInfo
from orlop.images.forks import CheckpointInfo, ForkOptions
from orlop.observe import Call
from orlop.proto.orlop.v1 import forks_pb2 as pb

__all__ = ["RemoteForks"]

_PLAIN = ForkOptions()
_CALL = Call()


class RemoteForks:
    """Forks and checkpoints of a daemon's roots.  Thread-safe."""

    _link: Link

    def fork(
        self, path: str, new_paths: Sequence[str], *, options: ForkOptions = _PLAIN, call: Call = _CALL
    ) -> list[PreparedInfo]:
        """See `orlop.images.forks.Forks.fork`."""
        attempted = f"fork {path}"
        with unicode_only(attempted):
            request = wireforks.fork_options_to(options)
            request.path = path
            request.new_paths.extend(new_paths)
        with closing(self._link.stream(lambda s: s.forks.Fork, request, attempted, call=call)) as events:
            forked = follow(events, "forked", call.observer, attempted).forked
        return [wire.root_from(root) for root in forked.roots]

    def checkpoint(self, path: str, name: str, *, call: Call = _CALL) -> CheckpointInfo:
        """See `orlop.images.forks.Forks.checkpoint`."""
        attempted = f"checkpoint {path}"
        with unicode_only(attempted):
            request = pb.CheckpointRequest(path=path, name=name)
        events = self._link.stream(lambda s: s.forks.Checkpoint, request, attempted, call=call)
        with closing(events):
            made = follow(events, "checkpoint", call.observer, attempted).checkpoint
        return wireforks.checkpoint_from(made)

    def checkpoints(self, path: str) -> list[CheckpointInfo]:
        """See `orlop.images.forks.Forks.checkpoints`."""
        attempted = f"list checkpoints of {path}"
        with unicode_only(attempted):
            request = pb.ListCheckpointsRequest(path=path)
        answer = self._link.unary(lambda s: s.forks.ListCheckpoints, request, attempted)
        return [wireforks.checkpoint_from(one) for one in answer.checkpoints]

    def rollback(self, path: str, name: str, *, call: Call = _CALL) -> PreparedInfo:
        """See `orlop.images.forks.Forks.rollback`."""
        attempted = f"roll back {path}"
        with unicode_only(attempted):
            request = pb.RollbackRequest(path=path, name=name)
        with closing(self._link.stream(lambda s: s.forks.Rollback, request, attempted, call=call)) as events:
            return wire.root_from(follow(events, "root", call.observer, attempted).root)

    def drop_checkpoint(self, path: str, name: str) -> None:
        """See `orlop.images.forks.Forks.drop_checkpoint`."""
        attempted = f"drop checkpoint {name} of {path}"
        with unicode_only(attempted):
            request = pb.DropCheckpointRequest(path=path, name=name)
        self._link.unary(lambda s: s.forks.DropCheckpoint, request, attempted)
