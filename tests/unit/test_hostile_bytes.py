"""Bytes that say little and stand for much, or are not what they should be: refused before they cost anything."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from orlop.config import DEFAULT_LIMITS, Limits
from orlop.errors import InvalidArgument, ResourceExhausted
from orlop.layers.builder import IndexBuilder
from orlop.layers.index import IMPLIED, LayerIndex
from orlop.layers.merge import Merger
from orlop.layers.tarread import TarReader
from orlop.linux.programs import find_helper
from support.layers import Layer


def index_of(layer: Layer, limits: Limits = DEFAULT_LIMITS) -> LayerIndex:
    tar = layer.tar()
    builder = IndexBuilder(limits=limits)
    for entry in TarReader([tar], limits=limits):
        builder.add(entry)
    index = builder.finish(len(tar))
    index.validate(tar_size=len(tar), limits=limits)
    return index


@pytest.mark.hostile(34)
@pytest.mark.parametrize("chunk", [1, 512, 700, 1 << 20])
def test_what_begins_with_the_end_of_a_tar_and_goes_on_is_none(chunk: int) -> None:
    def chunks(data: bytes) -> list[bytes]:
        return [data[at : at + chunk] for at in range(0, len(data), chunk)]

    for data in (b"", bytes(512), bytes(1024), bytes(10_240)):
        assert list(TarReader(chunks(data))) == []
    for data in (
        bytes(1024) + b"\xe2\xe1\xf5\xe0",
        bytes(3000) + b"x",
        bytes(1536) + Layer().file("f").tar(),
    ):
        with pytest.raises(InvalidArgument, match="begins with the end"):
            list(TarReader(chunks(data)))
    after = Layer().file("f").tar() + b"junk"
    assert [entry.name for entry in TarReader(chunks(after))] == [b"f"]


@pytest.mark.hostile(14)
@pytest.mark.parametrize(
    ("layer", "size"),
    [
        (Layer().file("abc").folder("d"), 4),
        (Layer().symlink("k", "target"), 7),
        (Layer().hardlink("h", to="lower/file"), 11),
        (Layer().file("f", xattrs={"user.a": b"12345"}), 1 + 64 + 11),
        (Layer().sparse("f", 9_999, [(0, b"x" * 512), (4_096, b"y")], how="gnu-1.0"), 1 + 2 * 64),
        (Layer().pax_global({"SCHILY.xattr.user.a": "v"}).file("f").file("g"), 2 * (1 + 64 + 7)),
    ],
)
def test_what_a_layer_says_in_all_has_a_limit(layer: Layer, size: int) -> None:
    index_of(layer, Limits(metadata_size=size))
    with pytest.raises(ResourceExhausted, match=f"metadata_size is {size}, the limit is {size - 1}"):
        index_of(layer, Limits(metadata_size=size - 1))


@pytest.mark.hostile(8)
def test_a_path_that_symlinks_make_longer_than_any_that_was_said_is_measured() -> None:
    layer = Layer().symlink("k", "nnnnn/mmmmm").folder("nnnnn/mmmmm").file("k/f")
    index_of(layer, Limits(path_size=13))
    with pytest.raises(ResourceExhausted, match="path_size is 13"):
        index_of(layer, Limits(path_size=12))


@pytest.mark.hostile(14)
def test_links_that_wind_without_end_are_given_up() -> None:
    lower = Layer().folder("a").file("a/f")
    for number in range(38):
        lower.symlink(f"k{number}", "a/../" * 810 + (f"k{number + 1}" if number < 37 else "a"))
    upper = Layer()
    for number in range(150):
        upper.hardlink(f"h{number}", to="k0/f")
    merger = Merger()
    merger.apply(index_of(lower), lambda data: 1)
    with pytest.raises(ResourceExhausted, match="too many symlinks"):
        merger.apply(index_of(upper), lambda data: 2)


@pytest.mark.hostile(31)
def test_a_relative_folder_of_path_has_no_helpers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("", "bin", "there"):
        (tmp_path / folder).mkdir(exist_ok=True)
        program = tmp_path / folder / "helper"
        program.write_text("#!/bin/sh\n")
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.chdir(tmp_path)
    for path in (".", "", "bin", ".:bin::./there", "", "bin/."):
        assert find_helper("helper", path) is None
        monkeypatch.setenv("PATH", path)
        assert find_helper("helper") is None
    there = os.fspath(tmp_path / "there")
    assert find_helper("helper", f".:{there}:bin") == f"{there}/helper"
    assert find_helper("bin/helper", "") == os.fspath(tmp_path / "bin/helper")
    assert find_helper("bin/none", "") is None


def test_an_index_of_nothing_but_a_root_is_within_all_limits() -> None:
    index = index_of(Layer(), Limits(metadata_size=1))
    assert (len(index), index.flags[0]) == (1, IMPLIED)
