"""orlop.v1.Images and containerkit's Images: translation only."""

# ruff: noqa: N802 - gRPC names the methods

from __future__ import annotations

from collections.abc import Iterator

import grpc

from orlop.client import wire
from orlop.errors import InvalidArgument
from orlop.images.api import PrepareOptions, Store
from orlop.observe import Progress
from orlop.proto.docker.containerkit.types import image_pb2, image_pb2_grpc
from orlop.proto.orlop.v1 import images_pb2 as pb
from orlop.proto.orlop.v1 import images_pb2_grpc
from orlop.service.calls import Warnings, call_of, watched, with_auth

__all__ = ["ContainerkitImages", "Images"]

_Context = grpc.ServicerContext


class ContainerkitImages(image_pb2_grpc.ImagesServicer):
    """The three calls, with default options."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def Prepare(self, request: image_pb2.PrepareRequest, context: _Context) -> image_pb2.PrepareResponse:
        """Prepare a root; its mounts are the layers."""
        root = self._store.prepare_root(
            request.name, request.path, options=PrepareOptions(), call=call_of(context)
        )
        mounts = (wire.mount_to(mount) for mount in root.mounts)
        return image_pb2.PrepareResponse(
            layers=[
                image_pb2.Mount(type=m.type, source=m.source, target=m.target, options=m.options)
                for m in mounts
            ]
        )

    def Cleanup(self, request: image_pb2.CleanupRequest, context: _Context) -> image_pb2.CleanupResponse:
        """Forget a root."""
        self._store.cleanup(request.path, call=call_of(context))
        return image_pb2.CleanupResponse()

    def Commit(self, request: image_pb2.CommitRequest, context: _Context) -> image_pb2.CommitResponse:
        """Capture a root under a new name."""
        return image_pb2.CommitResponse(name=self._store.commit(request.path, call=call_of(context)).name)


class Images(images_pb2_grpc.ImagesServicer):
    """Images and prepared roots."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def PrepareRoot(self, request: pb.PrepareRootRequest, context: _Context) -> pb.PrepareRootResponse:
        """Prepare a root and answer once."""
        warnings = Warnings()
        options = _options(request.options, f"prepare {request.path}")
        call = with_auth(call_of(context, warnings), request.auth)
        root = self._store.prepare_root(request.name, request.path, options=options, call=call)
        return pb.PrepareRootResponse(
            root=wire.root_to(root), warnings=[wire.warning_to(text) for text in warnings.texts]
        )

    def WatchPrepareRoot(
        self, request: pb.WatchPrepareRootRequest, context: _Context
    ) -> Iterator[pb.WatchPrepareRootResponse]:
        """Prepare a root and report on the way."""
        options = _options(request.options, f"prepare {request.path}")
        for event in watched(
            context,
            lambda call: self._store.prepare_root(
                request.name, request.path, options=options, call=with_auth(call, request.auth)
            ),
        ):
            if isinstance(event, Progress):
                yield pb.WatchPrepareRootResponse(progress=wire.progress_to(event))
            elif isinstance(event, str):
                yield pb.WatchPrepareRootResponse(warning=wire.warning_to(event))
            else:
                yield pb.WatchPrepareRootResponse(root=wire.root_to(event[0]))

    def Mounts(self, request: pb.MountsRequest, context: _Context) -> pb.MountsResponse:
        """The mounts of a root."""
        return pb.MountsResponse(root=wire.root_to(self._store.mounts(request.path)))

    def Mount(self, request: pb.MountRequest, context: _Context) -> pb.MountResponse:
        """Perform the mounts of a root."""
        return pb.MountResponse(root=wire.root_to(self._store.mount(request.path)))

    def Unmount(self, request: pb.UnmountRequest, context: _Context) -> pb.UnmountResponse:
        """Undo them."""
        return pb.UnmountResponse(root=wire.root_to(self._store.unmount(request.path)))

    def ListPrepared(self, request: pb.ListPreparedRequest, context: _Context) -> pb.ListPreparedResponse:
        """All prepared roots."""
        return pb.ListPreparedResponse(roots=[wire.root_to(root) for root in self._store.prepared()])

    def Commit(self, request: pb.CommitRequest, context: _Context) -> Iterator[pb.CommitResponse]:
        """Capture a root as an image."""
        name = request.name if request.HasField("name") else None
        options = wire.commit_options_from(request.options)
        for event in watched(
            context, lambda call: self._store.commit(request.path, name, options=options, call=call)
        ):
            if isinstance(event, Progress):
                yield pb.CommitResponse(progress=wire.progress_to(event))
            elif isinstance(event, str):
                yield pb.CommitResponse(warning=wire.warning_to(event))
            else:
                yield pb.CommitResponse(image=wire.image_to(event[0]))

    def Cleanup(self, request: pb.CleanupRequest, context: _Context) -> pb.CleanupResponse:
        """Forget a root."""
        warnings = Warnings()
        self._store.cleanup(request.path, call=call_of(context, warnings))
        return pb.CleanupResponse(warnings=[wire.warning_to(text) for text in warnings.texts])

    def List(self, request: pb.ListRequest, context: _Context) -> pb.ListResponse:
        """All images."""
        return pb.ListResponse(images=[wire.image_to(image) for image in self._store.images()])

    def Inspect(self, request: pb.InspectRequest, context: _Context) -> pb.InspectResponse:
        """One image, whole."""
        platform = request.platform if request.HasField("platform") else None
        return wire.details_to(self._store.inspect(request.name, platform=platform))

    def Tag(self, request: pb.TagRequest, context: _Context) -> pb.TagResponse:
        """A further name."""
        return pb.TagResponse(image=wire.image_to(self._store.tag(request.name, request.new_name)))

    def Label(self, request: pb.LabelRequest, context: _Context) -> pb.LabelResponse:
        """Labels of a name."""
        changes: dict[str, str | None] = dict.fromkeys(request.unset)
        changes.update(request.set)
        return pb.LabelResponse(image=wire.image_to(self._store.label(request.name, changes)))

    def Remove(self, request: pb.RemoveRequest, context: _Context) -> pb.RemoveResponse:
        """A name less."""
        return wire.removed_to(self._store.remove(request.name, force=request.force))


def _options(message: pb.PrepareOptions, attempted: str) -> PrepareOptions:
    """How a client wants a root prepared; what cannot be is refused before anything is fetched."""
    options = wire.prepare_options_from(message, attempted)
    if options.quota is not None and options.quota < 1:
        raise InvalidArgument(
            attempted, f"a quota of {options.quota} bytes", hint="leave it out for a root without a limit"
        )
    return options
