"""A list of images shows what rows know; a config is read only for rows that an older orlop wrote."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from orlop.config import Settings
from orlop.errors import DataLoss
from orlop.images.core import NAMESPACE, Core
from orlop.images.layout import Layout
from orlop.images.listing import list_images
from orlop.metadata import images, layers
from orlop.metadata.layers import LayerRow
from orlop.observe import watch_points
from orlop.spec.digest import DiffID, Digest

CONFIG = {
    "architecture": "arm64",
    "os": "linux",
    "created": "2023-11-14T22:13:20Z",
    "rootfs": {"type": "layers"},
}


@pytest.fixture
def core(tmp_path: Path) -> Iterator[Core]:
    opened = Core.open(Layout(root=tmp_path / "root", run=tmp_path / "run"), Settings())
    yield opened
    opened.close()


def add(core: Core, name: str, *, known: bool, diff_ids: int = 2) -> Digest:
    """An image whose config is on disk, and one layer of which is not."""
    there = [DiffID(Digest.of(f"layer {number}".encode())) for number in range(diff_ids)]
    config = json.dumps({**CONFIG, "rootfs": {"type": "layers", "diff_ids": there}, "comment": name}).encode()
    digest = Digest.of(config)
    core.blobs.write(digest, config)

    def body(tx) -> None:
        for diff_id in there[:-1]:
            row = LayerRow(diff_id=diff_id, size=100, data_size=7, index_size=1, entries=1)
            layers.add_layer(tx, row)
        images.add_config(tx, digest, there)
        says = {"platform": "linux/arm64", "created": CONFIG["created"]} if known else {}
        images.put_image(tx, NAMESPACE, name, config=digest, manifest=None, **says)

    core.db.write(body)
    return digest


def lose(core: Core, config: Digest) -> None:
    core.blobs.path(config).unlink()


def test_what_a_row_knows_is_not_read_again(core: Core) -> None:
    lose(core, add(core, "localhost/a:1", known=True))
    (info,) = list_images(core)
    assert (info.name, info.platform, info.created) == ("localhost/a:1", "linux/arm64", CONFIG["created"])
    assert (info.size, info.layers) == (100, 1)


def test_what_an_older_orlop_did_not_write_down_is_read_once(core: Core) -> None:
    config = add(core, "localhost/a:1", known=False)
    add(core, "localhost/b:1", known=True, diff_ids=3)
    first = list_images(core)
    lose(core, config)
    commits: list[str] = []
    with watch_points(commits.append):
        assert list_images(core) == first
    assert commits == []
    assert [info.platform for info in first] == ["linux/arm64"] * 2
    assert [info.layers for info in first] == [2, 2]  # they share the two that are there


def test_an_image_whose_config_is_lost_keeps_its_line(core: Core) -> None:
    lose(core, add(core, "localhost/a:1", known=False))
    (info,) = list_images(core)
    assert (info.name, info.platform, info.size) == ("localhost/a:1", "", 100)
    bad = add(core, "localhost/b:1", known=False)
    core.blobs.path(bad).write_bytes(b"no config")
    assert [info.platform for info in list_images(core)] == ["", ""]
    with pytest.raises(DataLoss):
        core.blobs.read(bad)


def test_a_list_does_not_fail_where_nothing_can_be_written(core: Core) -> None:
    add(core, "localhost/a:1", known=False)
    with core.db._turn():  # somebody writes for longer than a list waits
        (info,) = list_images(core)
    assert info.platform == "linux/arm64"
