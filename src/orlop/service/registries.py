"""orlop.v1.Registries: translation only."""

# ruff: noqa: N802 - gRPC names the methods

from __future__ import annotations

from collections.abc import Iterator

import grpc

from orlop.client import wire, wireregistries
from orlop.errors import Unimplemented
from orlop.observe import Call, Progress
from orlop.proto.orlop.v1 import registries_pb2 as pb
from orlop.proto.orlop.v1 import registries_pb2_grpc, types_pb2
from orlop.remote import api
from orlop.service.calls import Warnings, call_of, watched, with_auth

__all__ = ["Registries"]

_Context = grpc.ServicerContext


class Registries(registries_pb2_grpc.RegistriesServicer):
    """Registries, asked for clients; ``verbs`` is None in a daemon that asks none."""

    def __init__(self, verbs: api.Registries | None) -> None:
        self._given = verbs

    @property
    def _verbs(self) -> api.Registries:
        if self._given is None:
            raise Unimplemented("ask a registry", "this daemon asks registries for images alone")
        return self._given

    def Tags(self, request: pb.TagsRequest, context: _Context) -> pb.TagsResponse:
        """The tags of a repository."""
        warnings = Warnings()
        tags = self._verbs.tags(
            request.repository,
            last=request.last if request.HasField("last") else None,
            count=request.count if request.HasField("count") else None,
            call=with_auth(call_of(context, warnings), request.auth),
        )
        return pb.TagsResponse(tags=tags, warnings=_told(warnings))

    def Manifest(self, request: pb.ManifestRequest, context: _Context) -> pb.ManifestResponse:
        """What a name means."""
        warnings = Warnings()
        found = self._verbs.manifest(
            request.name,
            platform=request.platform if request.HasField("platform") else None,
            config=request.config,
            call=with_auth(call_of(context, warnings), request.auth),
        )
        answer = wireregistries.document_to(found)
        answer.warnings.extend(_told(warnings))
        return answer

    def Referrers(self, request: pb.ReferrersRequest, context: _Context) -> pb.ReferrersResponse:
        """What refers to it."""
        warnings = Warnings()
        found = self._verbs.referrers(
            request.name,
            artifact_type=request.artifact_type if request.HasField("artifact_type") else None,
            call=with_auth(call_of(context, warnings), request.auth),
        )
        return pb.ReferrersResponse(
            referrers=[wireregistries.referrer_to(one) for one in found], warnings=_told(warnings)
        )

    def Delete(self, request: pb.DeleteRequest, context: _Context) -> pb.DeleteResponse:
        """Delete a tag or a manifest."""
        warnings = Warnings()
        done = self._verbs.delete(
            request.name,
            manifest=request.manifest,
            call=with_auth(call_of(context, warnings), request.auth),
        )
        answer = wireregistries.deleted_to(done)
        answer.warnings.extend(_told(warnings))
        return answer

    def Copy(self, request: pb.CopyRequest, context: _Context) -> Iterator[pb.CopyResponse]:
        """Copy from registry to registry."""
        verbs = self._verbs

        def work(call: Call) -> api.Copied:
            return verbs.copy(
                request.source,
                request.destination,
                platform=request.platform if request.HasField("platform") else None,
                all_platforms=request.all_platforms,
                referrers=request.referrers,
                tags=tuple(request.tags),
                call=with_auth(call, request.auth),
            )

        for event in watched(context, work):
            if isinstance(event, Progress):
                yield pb.CopyResponse(progress=wire.progress_to(event))
            elif isinstance(event, str):
                yield pb.CopyResponse(warning=wire.warning_to(event))
            else:
                yield pb.CopyResponse(copied=wireregistries.copied_to(event[0]))


def _told(warnings: Warnings) -> list[types_pb2.Warning]:
    return [wire.warning_to(text) for text in warnings.texts]
