"""tar-split: a layer's tar can be put together again from its tree and what was kept beside it."""

from __future__ import annotations

import base64
import gzip
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orlop.layers.builder import IndexBuilder
from orlop.layers.index import LayerIndex
from orlop.layers.tarread import TarReader
from orlop.layers.tarsplit import crc64, tar_split
from orlop.observe import Call
from support.layers import Layer


def reference(data: bytes, crc: int = 0) -> int:
    """CRC-64, ISO 3309, bit by bit."""
    crc ^= (1 << 64) - 1
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0xD800000000000000 if crc & 1 else 0)
    return crc ^ ((1 << 64) - 1)


@given(st.binary(max_size=600), st.binary(max_size=40))
def test_the_checksum_is_crc_64_also_in_pieces(first: bytes, second: bytes) -> None:
    assert crc64(first) == reference(first)
    assert crc64(second, crc64(first)) == reference(first + second)


def test_the_checksum_has_no_size_at_which_it_ends_otherwise() -> None:
    data = bytes(range(256)) * 40
    for size in (*range(1, 150), 4088, 4096, 4104, 10_000):
        assert crc64(data[:size], 5) == reference(data[:size], 5)


def index_of(tar: bytes) -> LayerIndex:
    reader, builder = TarReader([tar]), IndexBuilder()
    for entry in reader:
        builder.add(entry)
    return builder.finish(reader.size)


LAYERS = {
    "plain": lambda: Layer().folder("d").file("d/a", b"one").file("b", b"").file("c", bytes(3000)),
    "links": lambda: Layer().file("a", b"x" * 700).hardlink("b", "a").symlink("s", "a"),
    "twice": lambda: Layer().file("a", b"old").file("a", b"newer"),
    "whiteouts": lambda: Layer().whiteout("gone").file("o/a", b"1").opaque("o"),
    "odd names": lambda: Layer().file(b"\xff\xfe", b"raw").file("/abs", b"abs").file("x/../y", b"up"),
    "long": lambda: Layer().file("n" * 200 + "/" + "m" * 200, b"deep"),
    "sparse": lambda: Layer().sparse("s", 10_000, [(4096, b"hole before")], how="gnu-1.0"),
    "nothing": Layer,
}


@pytest.mark.parametrize("name", LAYERS)
def test_the_tar_comes_back_byte_for_byte(name: str, tmp_path: Path) -> None:
    tar = LAYERS[name]().tar()
    path = tmp_path / "layer.tar"
    path.write_bytes(tar)
    index = index_of(tar)
    with open(path, "rb") as file:
        stream = b"".join(tar_split(index, file.fileno(), call=Call()))
    put, seen, kept = b"", set(), 0
    for number, line in enumerate(gzip.decompress(stream).splitlines()):
        entry = json.loads(line)
        assert entry["position"] == number
        payload = base64.b64decode(entry["payload"])
        if entry["type"] == 2:
            put += payload
            continue
        raw = base64.b64decode(entry["name_raw"]) if "name_raw" in entry else entry["name"].encode()
        assert raw not in seen
        seen.add(raw)
        (node,) = (node for node in range(len(index)) if index.path(node) == raw)
        data = tar[index.offset[node] : index.offset[node] + index.size[node]]
        assert entry["size"] == len(data)
        assert payload == reference(data).to_bytes(8, "big")
        put += data
        kept += len(data)
    assert put == tar
    assert kept or name in {"sparse", "nothing"}
