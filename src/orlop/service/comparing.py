"""orlop.v1.Comparing: translation only."""

# ruff: noqa: N802 - gRPC names the methods

from __future__ import annotations

from collections.abc import Iterator

import grpc

from orlop.client import wire, wirecomparing
from orlop.images import api
from orlop.proto.orlop.v1 import comparing_pb2 as pb
from orlop.proto.orlop.v1 import comparing_pb2_grpc
from orlop.service.calls import call_of
from orlop.service.contents import parts_of

__all__ = ["Comparing"]

_Context = grpc.ServicerContext


class Comparing(comparing_pb2_grpc.ComparingServicer):
    """What differs, and where it came from."""

    def __init__(self, store: api.Store) -> None:
        self._store = store

    def Diff(self, request: pb.DiffRequest, context: _Context) -> Iterator[pb.DiffResponse]:
        """Compare two things."""
        new = request.new if request.HasField("new") else None
        for part in parts_of(
            context,
            lambda call: wirecomparing.differences_to(
                self._store.diff(
                    request.old,
                    new,
                    path=request.path,
                    times=not request.ignore_times,
                    platform=_platform(request),
                    call=call,
                )
            ),
        ):
            if isinstance(part, str):
                yield pb.DiffResponse(warning=wire.warning_to(part))
            else:
                yield pb.DiffResponse(differences=part)

    def Blame(self, request: pb.BlameRequest, context: _Context) -> pb.BlameResponse:
        """Tell which layers did something to a path."""
        found = self._store.blame(
            request.thing, request.path, platform=_platform(request), call=call_of(context)
        )
        return wirecomparing.blame_to(found)

    def History(self, request: pb.HistoryRequest, context: _Context) -> pb.HistoryResponse:
        """Tell an image's history."""
        found = self._store.history(request.thing, platform=_platform(request), call=call_of(context))
        return pb.HistoryResponse(lines=map(wirecomparing.history_line_to, found))

    def Tree(self, request: pb.TreeRequest, context: _Context) -> Iterator[pb.TreeResponse]:
        """List what is below a path."""
        depth = request.depth if request.HasField("depth") else None
        for part in parts_of(
            context,
            lambda call: wirecomparing.tree_lines_to(
                self._store.tree(
                    request.thing,
                    request.path,
                    depth=depth,
                    layers=request.layers,
                    platform=_platform(request),
                    call=call,
                )
            ),
        ):
            if isinstance(part, str):
                yield pb.TreeResponse(warning=wire.warning_to(part))
            else:
                yield pb.TreeResponse(lines=part)

    def Waste(self, request: pb.WasteRequest, context: _Context) -> pb.WasteResponse:
        """Tell what nothing shows."""
        found = self._store.waste(
            request.thing, files=request.files, platform=_platform(request), call=call_of(context)
        )
        return wirecomparing.waste_to(found)


def _platform(
    request: pb.DiffRequest | pb.BlameRequest | pb.HistoryRequest | pb.TreeRequest | pb.WasteRequest,
) -> str | None:
    return request.platform if request.HasField("platform") else None
