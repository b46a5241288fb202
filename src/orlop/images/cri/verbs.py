"""The verbs of `orlop.images.nodeimages`, done in this process."""

from __future__ import annotations

from functools import cached_property

from orlop.errors import InvalidArgument, NotFound
from orlop.hints import TYPE_CHECKING
from orlop.images.api import ImageInfo
from orlop.images.parts import Parts, verb
from orlop.observe import Call

if TYPE_CHECKING:
    from orlop.images.cri.catalog import Catalog
    from orlop.images.cri.diskuse import DiskMeter
    from orlop.images.nodeimages import DiskUse, NodeImage, NodeImageDetails

__all__ = ["NodeImageVerbs"]


class NodeImageVerbs(Parts):
    """See `orlop.images.nodeimages.NodeImages`."""

    @verb("list images")
    def node_images(self) -> list[NodeImage]:
        """See `orlop.images.nodeimages.NodeImages.node_images`."""
        return self._catalog.all()

    @verb("look for image")
    def node_image(self, name: str) -> NodeImage | None:
        """See `orlop.images.nodeimages.NodeImages.node_image`."""
        return self._catalog.one(name)

    @verb("look for image")
    def node_image_details(self, name: str) -> NodeImageDetails | None:
        """See `orlop.images.nodeimages.NodeImages.node_image_details`."""
        return self._catalog.details(name)

    @verb("pull")
    def pull_node_image(self, name: str, *, call: Call) -> str:
        """See `orlop.images.nodeimages.NodeImages.pull_node_image`."""
        from orlop.images.cri.rules import id_of

        if id_of(name) is None:
            info: ImageInfo = self._puller.pull_name(name, platform=None, call=call).info
            return info.id
        found = self._catalog.id(name)
        if found is None:
            raise InvalidArgument(
                f"pull {name}", "no registry can be asked for an image's ID", hint="pull it by a name"
            )
        return found

    @verb("remove", deletes=True)
    def remove_node_image(self, name: str) -> None:
        """See `orlop.images.nodeimages.NodeImages.remove_node_image`."""
        found = self._catalog.id(name)
        if found is None:
            return
        try:
            self._collector.remove(found, force=True)
        except NotFound:
            return  # somebody else was faster

    @verb("measure the store")
    def disk_use(self, *, call: Call) -> DiskUse:
        """See `orlop.images.nodeimages.NodeImages.disk_use`."""
        return self._disk_meter.use(call=call)

    @cached_property
    def _catalog(self) -> Catalog:
        from orlop.images.cri.catalog import Catalog

        return Catalog(self._core)

    @cached_property
    def _disk_meter(self) -> DiskMeter:
        from orlop.images.cri.diskuse import DiskMeter

        return DiskMeter(self._core.layout.root)
