"""runtime.v1.ImageService, for a kubelet's image endpoint and crictl: translation only."""

# ruff: noqa: N802 - gRPC names the methods

from __future__ import annotations

from collections.abc import Iterator

import grpc

from orlop.errors import Unavailable, Unimplemented
from orlop.images.nodeimages import NodeImage, NodeImages
from orlop.proto.runtime.v1 import images_pb2 as pb
from orlop.proto.runtime.v1 import images_pb2_grpc
from orlop.service import criwire
from orlop.service.calls import call_of
from orlop.values import replace

__all__ = ["Images"]

_Context = grpc.ServicerContext
_BATCH = 100  # images in a message of a stream; some 50 KiB


class Images(images_pb2_grpc.ImageServiceServicer):
    """A node's images."""

    def __init__(self, images: NodeImages | None) -> None:
        self._offered = images

    @property
    def _images(self) -> NodeImages:
        if self._offered is None:
            raise Unimplemented("serve Kubernetes", "this store does not speak of a node's images")
        return self._offered

    def ListImages(self, request: pb.ListImagesRequest, context: _Context) -> pb.ListImagesResponse:
        """All images, or the one that a filter names."""
        found = self._filtered(request.filter)
        return pb.ListImagesResponse(images=[criwire.image_to(image) for image in found])

    def StreamImages(
        self, request: pb.StreamImagesRequest, context: _Context
    ) -> Iterator[pb.StreamImagesResponse]:
        """The same in parts."""
        found = self._filtered(request.filter)
        for start in range(0, len(found), _BATCH):
            part = found[start : start + _BATCH]
            yield pb.StreamImagesResponse(images=[criwire.image_to(image) for image in part])

    def ImageStatus(self, request: pb.ImageStatusRequest, context: _Context) -> pb.ImageStatusResponse:
        """One image, or none."""
        name = criwire.subject_of(request.image, "look for an image")
        if request.verbose:
            details = self._images.node_image_details(name)
            if details is None:
                return pb.ImageStatusResponse()
            image = criwire.image_to(details.image, request.image)
            return pb.ImageStatusResponse(image=image, info=criwire.info_to(details))
        found = self._images.node_image(name)
        if found is None:
            return pb.ImageStatusResponse()
        return pb.ImageStatusResponse(image=criwire.image_to(found, request.image))

    def PullImage(self, request: pb.PullImageRequest, context: _Context) -> pb.PullImageResponse:
        """Fetch an image."""
        name = criwire.subject_of(request.image, "pull an image")
        auth = criwire.auth_from(request.auth, name, f"pull {name}")
        try:
            pulled = self._images.pull_node_image(name, call=replace(call_of(context), auth=auth))
        except Unavailable as exc:
            criwire.mark(exc)
            raise
        return pb.PullImageResponse(image_ref=pulled)

    def RemoveImage(self, request: pb.RemoveImageRequest, context: _Context) -> pb.RemoveImageResponse:
        """An image less, if it was there."""
        self._images.remove_node_image(criwire.subject_of(request.image, "remove an image"))
        return pb.RemoveImageResponse()

    def ImageFsInfo(self, request: pb.ImageFsInfoRequest, context: _Context) -> pb.ImageFsInfoResponse:
        """What images take of the disk."""
        return criwire.disk_to(self._images.disk_use(call=call_of(context)))

    def _filtered(self, only: pb.ImageFilter) -> list[NodeImage]:
        if not only.image.image:
            return self._images.node_images()
        found = self._images.node_image(only.image.image)
        return [found] if found is not None else []
