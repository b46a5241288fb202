"""All services of the daemon, in one table (`SERVED`), and what is read from it.

Whoever adds a service adds it here and nowhere else.
"""

from __future__ import annotations

from orlop.proto.containerd.services.content.v1 import content_pb2_grpc
from orlop.proto.containerd.services.snapshots.v1 import snapshots_pb2_grpc
from orlop.proto.docker.containerkit.types import image_pb2_grpc
from orlop.proto.orlop.v1 import (
    comparing_pb2_grpc,
    contents_pb2_grpc,
    events_pb2_grpc,
    forks_pb2_grpc,
    images_pb2_grpc,
    registries_pb2_grpc,
    sharing_pb2_grpc,
    store_pb2_grpc,
    transfer_pb2_grpc,
)
from orlop.proto.runtime.v1 import images_pb2_grpc as cri_grpc
from orlop.service import cri
from orlop.service.comparing import Comparing
from orlop.service.containerd.content import Content
from orlop.service.containerd.snapshots import Snapshots
from orlop.service.contents import Contents
from orlop.service.events import Events
from orlop.service.forks import Forks
from orlop.service.images import ContainerkitImages, Images
from orlop.service.pools import CallPool, Pools
from orlop.service.registries import Registries
from orlop.service.served import Kind, Served
from orlop.service.sharing import Sharing
from orlop.service.store import Store
from orlop.service.transfer import Transfer

__all__ = ["LOOKS", "MESSAGES", "OWNERS", "SERVED", "SERVICES", "WATCH", "pools_by_method"]

WATCH = "/grpc.health.v1.Health/Watch"
_REFLECTION = (
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
)
_KINDS: tuple[Kind, ...] = ("quick", "roots", "transfers", "contents", "idle")

SERVED = (
    Served(
        name="docker.containerkit.types.Images",
        add=lambda offer, server: image_pb2_grpc.add_ImagesServicer_to_server(
            ContainerkitImages(offer.store), server
        ),
        roots=("Prepare", "Cleanup", "Commit"),
    ),
    Served(
        name="orlop.v1.Images",
        add=lambda offer, server: images_pb2_grpc.add_ImagesServicer_to_server(Images(offer.store), server),
        quick=("Mounts", "ListPrepared", "List", "Inspect", "Tag", "Label"),
        roots=("PrepareRoot", "WatchPrepareRoot", "Mount", "Unmount", "Commit", "Cleanup", "Remove"),
        looks=("ListPrepared", "List", "Inspect"),
    ),
    Served(
        name="orlop.v1.Transfer",
        add=lambda offer, server: transfer_pb2_grpc.add_TransferServicer_to_server(
            Transfer(offer.store), server
        ),
        transfers=("Pull", "Push", "FetchBlobs", "Load", "LoadStream", "Export"),
    ),
    Served(
        name="orlop.v1.Store",
        add=lambda offer, server: store_pb2_grpc.add_StoreServicer_to_server(Store(offer.store), server),
        quick=("Info", "Pin", "Unpin", "ListPins"),
        transfers=("Collect", "Usage", "Explain", "Check", "Backup"),
        looks=("Info", "Usage", "Explain", "ListPins"),
    ),
    Served(
        name="orlop.v1.Registries",
        add=lambda offer, server: registries_pb2_grpc.add_RegistriesServicer_to_server(
            Registries(offer.registries), server
        ),
        transfers=("Tags", "Manifest", "Referrers", "Delete", "Copy"),
        looks=("Tags", "Manifest", "Referrers"),
    ),
    Served(
        name="orlop.v1.Contents",
        add=lambda offer, server: contents_pb2_grpc.add_ContentsServicer_to_server(
            Contents(offer.store), server
        ),
        transfers=("ListFiles", "ReadFiles", "FindFiles", "ReadArchive", "WriteArchive"),
    ),
    Served(
        name="orlop.v1.Forks",
        add=lambda offer, server: forks_pb2_grpc.add_ForksServicer_to_server(Forks(offer.store), server),
        quick=("ListCheckpoints",),
        roots=("Fork", "Checkpoint", "Rollback", "DropCheckpoint"),
        looks=("ListCheckpoints",),
    ),
    Served(
        name="containerd.services.snapshots.v1.Snapshots",
        add=lambda offer, server: snapshots_pb2_grpc.add_SnapshotsServicer_to_server(
            Snapshots(offer.snapshots), server
        ),
        quick=("Mounts", "Stat", "Update"),
        roots=("Prepare", "View", "Commit", "Remove", "List", "Usage", "Cleanup"),
        owner=True,
    ),
    Served(
        name="containerd.services.content.v1.Content",
        add=lambda offer, server: content_pb2_grpc.add_ContentServicer_to_server(
            Content(offer.content), server
        ),
        quick=("Info", "Update", "Delete", "Status", "ListStatuses", "Abort"),
        contents=("List", "Read", "Write"),
        owner=True,
        message=(16 << 20) + (64 << 10),  # containerd's DefaultMaxSendMsgSize, and what is around the bytes
    ),
    Served(
        name="orlop.v1.Events",
        add=lambda offer, server: events_pb2_grpc.add_EventsServicer_to_server(Events(offer.store), server),
        idle=("Watch",),
        looks=("Watch",),
    ),
    Served(
        name="orlop.v1.Sharing",
        add=lambda offer, server: sharing_pb2_grpc.add_SharingServicer_to_server(
            Sharing(offer.store), server
        ),
        quick=("ListShares",),
        roots=("DropShare",),
        transfers=("Share",),
        owner=True,
    ),
    Served(
        name="orlop.v1.Comparing",
        add=lambda offer, server: comparing_pb2_grpc.add_ComparingServicer_to_server(
            Comparing(offer.store), server
        ),
        quick=("History",),
        transfers=("Diff", "Blame", "Tree", "Waste"),
        looks=("History",),
    ),
    Served(
        name="runtime.v1.ImageService",
        add=lambda offer, server: cri_grpc.add_ImageServiceServicer_to_server(
            cri.Images(offer.node_images), server
        ),
        quick=("ListImages", "ImageStatus"),
        roots=(
            "RemoveImage",
            "StreamImages",
            "ImageFsInfo",
        ),  # the last two: not long, and never behind pulls
        transfers=("PullImage",),
        owner=True,
    ),
)

SERVICES = tuple(served.name for served in SERVED)
LOOKS = frozenset(
    {f"/{served.name}/{method}" for served in SERVED for method in served.looks} | {*_REFLECTION}
)
"""The calls that change nothing: all that a read-only client may ask for, health apart."""
OWNERS = frozenset(
    method for served in SERVED if served.owner for kind in _KINDS for method in served.methods(kind)
)
"""The calls that are for root and the daemon's own user alone."""

MESSAGES = {
    method: served.message
    for served in SERVED
    if served.message
    for kind in _KINDS
    for method in served.methods(kind)
}
"""How many bytes a message may have, of the calls in which that is more than a request of others."""


def pools_by_method(pools: Pools) -> dict[str, CallPool]:
    """Which pool runs which method; what is not named here runs in the server's own (quick)."""
    chosen = dict.fromkeys((*_REFLECTION, WATCH), pools.idle)
    for served in SERVED:
        for kind in _KINDS:
            chosen.update(dict.fromkeys(served.methods(kind), getattr(pools, kind)))
    return chosen
