"""The servicer of CRI's images over a store in memory, and how often the disk is measured."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from orlop.errors import Cancelled, Unimplemented
from orlop.images.cri.diskuse import DiskMeter
from orlop.images.nodeimages import DiskUse, NodeImage, NodeImageDetails, NodeImages
from orlop.images.store import LocalStore
from orlop.observe import Call, CancelToken
from orlop.proto.runtime.v1 import images_pb2 as pb
from orlop.service import cri
from orlop.service.table import OWNERS


class Few:
    """A node with some images, each named by its ID alone."""

    def __init__(self, count: int) -> None:
        self.images = [
            NodeImage(id=f"sha256:{number:064x}", tags=(), digests=(), size=1) for number in range(count)
        ]

    def node_images(self) -> list[NodeImage]:
        return self.images

    def node_image(self, name: str) -> NodeImage | None:
        return next((image for image in self.images if image.id == name), None)

    def node_image_details(self, name: str) -> NodeImageDetails | None:
        return None

    def pull_node_image(self, name: str, *, call: Call) -> str:
        raise NotImplementedError

    def remove_node_image(self, name: str) -> None:
        raise NotImplementedError

    def disk_use(self, *, call: Call) -> DiskUse:
        raise NotImplementedError


@pytest.mark.parametrize("count", [0, 1, 100, 101, 250])
def test_a_stream_has_each_image_once_in_parts_that_are_not_empty(count: int) -> None:
    service = cri.Images(Few(count))
    parts = [list(part.images) for part in service.StreamImages(pb.StreamImagesRequest(), None)]
    assert all(parts)
    assert [image for part in parts for image in part] == list(
        service.ListImages(pb.ListImagesRequest(), None).images
    )
    assert max([len(part) for part in parts], default=0) <= 100


def test_a_filter_chooses_one_image_or_none_and_an_empty_one_all() -> None:
    service = cri.Images(Few(3))

    def listed(name: str) -> list[str]:
        only = pb.ImageFilter(image=pb.ImageSpec(image=name))
        found = service.ListImages(pb.ListImagesRequest(filter=only), None).images
        streamed = service.StreamImages(pb.StreamImagesRequest(filter=only), None)
        assert [image for part in streamed for image in part.images] == list(found)
        return [image.id for image in found]

    assert listed("sha256:" + "0" * 64) == ["sha256:" + "0" * 64]
    assert listed("other") == []
    assert len(listed("")) == 3


def test_a_store_that_knows_no_node_says_so_and_ours_does() -> None:
    with pytest.raises(Unimplemented):
        cri.Images(None).ListImages(pb.ListImagesRequest(), None)
    assert issubclass(LocalStore, NodeImages)
    assert isinstance(Few(0), NodeImages)


def test_only_root_and_the_daemons_own_user_may_ask() -> None:
    methods = pb.DESCRIPTOR.services_by_name["ImageService"].methods
    assert {f"/runtime.v1.ImageService/{method.name}" for method in methods} <= OWNERS


# ------------------------------------------------------------------ how often the disk is measured


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_the_disk_is_measured_again_only_after_a_while(tmp_path: Path) -> None:
    (tmp_path / "layers" / "a").mkdir(parents=True)
    (tmp_path / "prepared" / "b").mkdir(parents=True)
    clock = Clock()
    meter = DiskMeter(tmp_path, clock=clock)
    first = meter.use(call=Call())
    assert (first.image_inodes, first.root_inodes, first.path) == (2, 2, str(tmp_path))
    (tmp_path / "layers" / "c").mkdir()
    (tmp_path / "layers" / "c" / "twice").write_bytes(b"x" * 5000)
    (tmp_path / "layers" / "c" / "again").hardlink_to(tmp_path / "layers" / "c" / "twice")
    clock.now += 9.0
    assert meter.use(call=Call()) is first
    clock.now += 1.1
    second = meter.use(call=Call())
    assert (second.image_inodes, second.root_inodes) == (4, 2)
    assert second.image_bytes > first.image_bytes
    assert second.root_bytes == first.root_bytes


class Gate(CancelToken):
    """A token at which who looks at it waits: it stops a measurement in the middle."""

    def __init__(self) -> None:
        super().__init__()
        self.reached, self.open = threading.Event(), threading.Event()

    @property
    def cancelled(self) -> bool:
        self.reached.set()
        assert self.open.wait(60)
        return False


def test_while_one_measures_others_have_the_last_or_wait_for_the_first(tmp_path: Path) -> None:
    (tmp_path / "layers" / "a").mkdir(parents=True)
    clock = Clock()
    meter = DiskMeter(tmp_path, clock=clock)
    last: DiskUse | None = None
    for _ in range(2):
        gate, found = Gate(), list[DiskUse]()

        def measure(gate: Gate = gate, found: list[DiskUse] = found) -> None:
            found.append(meter.use(call=Call(cancel=gate)))

        slow = threading.Thread(target=measure)
        slow.start()
        try:
            assert gate.reached.wait(60)
            if last is None:
                token = CancelToken()
                token.cancel()
                with pytest.raises(Cancelled):  # it was waiting: there is nothing to give yet
                    meter.use(call=Call(cancel=token))
            else:
                assert meter.use(call=Call()) is last
        finally:
            gate.open.set()
            slow.join(60)
        [last] = found
        clock.now += 100.0


def test_a_measurement_that_is_given_up_is_nobodys(tmp_path: Path) -> None:
    (tmp_path / "layers" / "a").mkdir(parents=True)
    meter = DiskMeter(tmp_path)
    token = CancelToken()
    token.cancel()
    with pytest.raises(Cancelled):
        meter.use(call=Call(cancel=token))
    assert meter.use(call=Call()).image_inodes == 2
