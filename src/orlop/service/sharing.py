"""orlop.v1.Sharing: translation only."""

# ruff: noqa: N802 - gRPC names the methods

from __future__ import annotations

from collections.abc import Iterator

import grpc

from orlop.client import wire, wiresharing
from orlop.images.shares import Sharing as SharingVerbs
from orlop.observe import Progress
from orlop.proto.orlop.v1 import sharing_pb2 as pb
from orlop.proto.orlop.v1 import sharing_pb2_grpc
from orlop.service.calls import call_of, watched

__all__ = ["Sharing"]

_Context = grpc.ServicerContext


class Sharing(sharing_pb2_grpc.SharingServicer):
    """Images for podman and others, without a copy."""

    def __init__(self, verbs: SharingVerbs) -> None:
        self._verbs = verbs

    def Share(self, request: pb.ShareRequest, context: _Context) -> Iterator[pb.ShareResponse]:
        """Put images into a share."""
        form = wiresharing.form_from(request)
        platform = request.platform if request.HasField("platform") else None
        for event in watched(
            context,
            lambda call: self._verbs.share(
                request.folder,
                list(request.names),
                form=form,
                platform=platform,
                run_only=request.run_only,
                call=call,
            ),
        ):
            if isinstance(event, Progress):
                yield pb.ShareResponse(progress=wire.progress_to(event))
            elif isinstance(event, str):
                yield pb.ShareResponse(warning=wire.warning_to(event))
            else:
                yield pb.ShareResponse(share=wiresharing.share_to(event[0]))

    def ListShares(self, request: pb.ListSharesRequest, context: _Context) -> pb.ListSharesResponse:
        """All shares."""
        return pb.ListSharesResponse(shares=[wiresharing.share_to(one) for one in self._verbs.shares()])

    def DropShare(self, request: pb.DropShareRequest, context: _Context) -> pb.DropShareResponse:
        """Take a share away."""
        self._verbs.drop_share(request.folder, call=call_of(context))
        return pb.DropShareResponse()
