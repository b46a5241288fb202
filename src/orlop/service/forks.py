"""orlop.v1.Forks: translation only."""

# ruff: noqa: N802 - gRPC names the methods

from __future__ import annotations

from collections.abc import Iterator

import grpc

from orlop.client import wire, wireforks
from orlop.images.forks import Forks as ForkVerbs
from orlop.observe import Progress
from orlop.proto.orlop.v1 import forks_pb2 as pb
from orlop.proto.orlop.v1 import forks_pb2_grpc
from orlop.service.calls import watched

__all__ = ["Forks"]

_Context = grpc.ServicerContext


class Forks(forks_pb2_grpc.ForksServicer):
    """Forks and checkpoints of prepared roots."""

    def __init__(self, verbs: ForkVerbs) -> None:
        self._verbs = verbs

    def Fork(self, request: pb.ForkRequest, context: _Context) -> Iterator[pb.ForkResponse]:
        """New roots of one."""
        options, new_paths = wireforks.fork_options_from(request), list(request.new_paths)
        for event in watched(
            context, lambda call: self._verbs.fork(request.path, new_paths, options=options, call=call)
        ):
            if isinstance(event, Progress):
                yield pb.ForkResponse(progress=wire.progress_to(event))
            elif isinstance(event, str):
                yield pb.ForkResponse(warning=wire.warning_to(event))
            else:
                yield pb.ForkResponse(forked=pb.Forked(roots=[wire.root_to(root) for root in event[0]]))

    def Checkpoint(self, request: pb.CheckpointRequest, context: _Context) -> Iterator[pb.CheckpointResponse]:
        """Remember what a root is now."""
        for event in watched(
            context, lambda call: self._verbs.checkpoint(request.path, request.name, call=call)
        ):
            if isinstance(event, Progress):
                yield pb.CheckpointResponse(progress=wire.progress_to(event))
            elif isinstance(event, str):
                yield pb.CheckpointResponse(warning=wire.warning_to(event))
            else:
                yield pb.CheckpointResponse(checkpoint=wireforks.checkpoint_to(event[0]))

    def ListCheckpoints(
        self, request: pb.ListCheckpointsRequest, context: _Context
    ) -> pb.ListCheckpointsResponse:
        """The checkpoints of a root."""
        found = self._verbs.checkpoints(request.path)
        return pb.ListCheckpointsResponse(checkpoints=[wireforks.checkpoint_to(one) for one in found])

    def Rollback(self, request: pb.RollbackRequest, context: _Context) -> Iterator[pb.RollbackResponse]:
        """Make a root what it was."""
        for event in watched(
            context, lambda call: self._verbs.rollback(request.path, request.name, call=call)
        ):
            if isinstance(event, Progress):
                yield pb.RollbackResponse(progress=wire.progress_to(event))
            elif isinstance(event, str):
                yield pb.RollbackResponse(warning=wire.warning_to(event))
            else:
                yield pb.RollbackResponse(root=wire.root_to(event[0]))

    def DropCheckpoint(
        self, request: pb.DropCheckpointRequest, context: _Context
    ) -> pb.DropCheckpointResponse:
        """Forget a checkpoint."""
        self._verbs.drop_checkpoint(request.path, request.name)
        return pb.DropCheckpointResponse()
