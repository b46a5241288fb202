"""Values of `orlop.images.forks` and messages of orlop.v1.Forks, to and fro."""

from __future__ import annotations

from orlop.client.status import text
from orlop.images.forks import CheckpointInfo, ForkOptions
from orlop.proto.orlop.v1 import forks_pb2 as pb

__all__ = ["checkpoint_from", "checkpoint_to", "fork_options_from", "fork_options_to"]


def checkpoint_to(value: CheckpointInfo) -> pb.CheckpointInfo:
    """A checkpoint as a message."""
    return pb.CheckpointInfo(
        name=text(value.name), created=value.created, image_id=value.image_id, size=value.size
    )


def checkpoint_from(message: pb.CheckpointInfo) -> CheckpointInfo:
    """A checkpoint from a message."""
    return CheckpointInfo(
        name=message.name, created=message.created, image_id=message.image_id, size=message.size
    )


def fork_options_to(value: ForkOptions) -> pb.ForkRequest:
    """How to fork, as a request for no path yet."""
    return pb.ForkRequest(move=value.move, mount=value.mount, labels=value.labels)


def fork_options_from(message: pb.ForkRequest) -> ForkOptions:
    """How to fork, from a request."""
    return ForkOptions(move=message.move, mount=message.mount, labels=dict(message.labels))
