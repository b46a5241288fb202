"""What headers of a tar may hold together, where each alone is within its limit."""

from __future__ import annotations

import base64
from dataclasses import replace

import pytest

from orlop.config import DEFAULT_LIMITS
from orlop.errors import InvalidArgument, ResourceExhausted
from orlop.layers.builder import IndexBuilder
from orlop.layers.index import LayerIndex
from orlop.layers.tarread import TarReader
from support.layers import Layer


def index_of(tar: bytes, **limits: int) -> LayerIndex:
    chosen = replace(DEFAULT_LIMITS, **limits)
    reader = TarReader([tar], limits=chosen)
    builder = IndexBuilder(limits=chosen)
    for entry in reader:
        builder.add(entry)
    index = builder.finish(reader.size)
    index.validate(tar_size=reader.size, limits=chosen)
    return index


def header(key: str, size: int, kind: bytes = b"x") -> bytes:
    """An extended header of one record, ``size`` bytes in all."""
    record = f"{size} {key}=".encode()
    return Layer().add("h", kind, data=record + b"v" * (size - len(record) - 1) + b"\n").tar(end=b"")


@pytest.mark.hostile(10, 14)
def test_extended_headers_of_one_entry_count_together() -> None:
    file = Layer().file("a", b"x").tar()
    for count, comes_in in ((10, True), (11, False)):
        tar = b"".join(header(f"comment{n}", 100) for n in range(count)) + file
        if comes_in:
            assert len(index_of(tar, pax_size=1_000)) == 2
            continue
        with pytest.raises(ResourceExhausted) as caught:
            index_of(tar, pax_size=1_000)
        assert caught.value.details["limit"] == "pax_size"
        assert "1100" in caught.value.reason


@pytest.mark.hostile(10, 14)
def test_pieces_of_a_sparse_map_spread_over_headers_count_together() -> None:
    tar = b"".join(header("GNU.sparse.offset", 100) for _ in range(11)) + Layer().file("a").tar()
    with pytest.raises(ResourceExhausted, match="pax_size"):
        index_of(tar, pax_size=1_000)


@pytest.mark.hostile(10, 14)
def test_long_names_of_one_entry_count_together() -> None:
    long = Layer("gnu").file("n" * 150).symlink("s", "t" * 150).tar()
    assert len(index_of(long, pax_size=151)) == 3
    names = Layer("gnu").symlink("n" * 150, "t" * 150).tar()
    assert len(index_of(names, pax_size=302)) == 2
    with pytest.raises(ResourceExhausted, match="pax_size is 302, the limit is 301"):
        index_of(names, pax_size=301)


def test_each_entry_may_have_headers_up_to_the_limit() -> None:
    tar = b"".join(header("comment", 1_000) + Layer().file(f"f{n}").tar(end=b"") for n in range(5))
    assert len(index_of(tar + bytes(1_024), pax_size=1_000)) == 6


@pytest.mark.hostile(10, 14)
def test_what_global_headers_say_is_limited_in_all() -> None:
    file = Layer().file("a").tar()
    tar = b"".join(header(f"comment{n}", 100, b"g") for n in range(100)) + file
    with pytest.raises(ResourceExhausted) as caught:
        index_of(tar, pax_size=1_000)
    assert caught.value.details["limit"] == "pax_size"
    again = b"".join(header("comment", 100, b"g") for _ in range(100)) + file
    assert len(index_of(again, pax_size=1_000)) == 2  # one key, said a hundred times


@pytest.mark.hostile(14, 42)
def test_xattrs_written_in_two_forms_count_once() -> None:
    records = []
    for n in range(100):
        records.append((b"SCHILY.xattr.user.%d" % n, b"v"))
        records.append((b"LIBARCHIVE.xattr.user.%d" % n, base64.b64encode(b"v")))
    tar = Layer().add("a", b"0", pax=records).tar()
    assert len(index_of(tar, xattr_count=100).xattrs[1]) == 100
    with pytest.raises(ResourceExhausted, match="xattr_count is 100, the limit is 99"):
        index_of(tar, xattr_count=99)


@pytest.mark.hostile(9)
@pytest.mark.parametrize("kind", [b"0", b"x", b"L", b"S", b"7"])
def test_a_negative_size_is_no_matter_of_a_limit(kind: bytes) -> None:
    with pytest.raises(InvalidArgument, match="a size of -5 bytes"):
        index_of(Layer("gnu").add("f", kind, size=-5).tar())


@pytest.mark.parametrize(
    ("limit", "value", "said"),
    [
        ("xattr_total", 17, "xattr_total is 18"),
        ("xattr_value", 3, "xattr_value is 4"),
        ("xattr_count", 1, "is 2"),
    ],
)
def test_an_index_from_the_worker_is_held_to_the_limits_of_xattrs(limit: str, value: int, said: str) -> None:
    index = index_of(Layer().file("a", xattrs={"user.a": b"1", "user.b": b"1234"}).tar())
    index.xattrs[1] = ((b"user.a", b"12"), (b"user.b", b"1234"))
    index.validate(tar_size=index.tar_size)
    with pytest.raises(ResourceExhausted, match=said) as caught:
        index.validate(tar_size=index.tar_size, limits=replace(DEFAULT_LIMITS, **{limit: value}))
    assert caught.value.details["limit"] == limit
