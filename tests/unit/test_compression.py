"""Compressed streams, in every form and every kind of damage."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import lzma
import random
import struct
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orlop.errors import InvalidArgument
from orlop.layers.compression import CHUNK, decompress, detect
from support.images import compress as blob
from support.layers import Layer

PLAIN = random.Random(0).randbytes(30_000) + bytes(100_000) + b"the end"

FORMS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": lambda data: gzip.compress(data, mtime=0),
    "zstd": lambda data: blob(data, "zstd"),
    "bzip2": bz2.compress,
    "xz": lzma.compress,
}
every_form = pytest.mark.parametrize("form", FORMS)


def chunked(data: bytes, size: int) -> Iterator[bytes]:
    return (data[at : at + size] for at in range(0, len(data), size))


def plain(data: bytes, *, chunk: int = 1 << 16) -> bytes:
    return b"".join(decompress(chunked(data, chunk)))


@every_form
@pytest.mark.parametrize("chunk", [1, 2, 5, 7, 511, 1 << 16, 1 << 22])
def test_members_follow_one_another_with_zeros_behind_the_last(form: str, chunk: int) -> None:
    pack = FORMS[form]
    data = pack(PLAIN[:1000]) + pack(b"") + pack(PLAIN[1000:]) + bytes(512)
    assert plain(data, chunk=chunk) == PLAIN
    assert detect(data[:6]) == form


def test_plain_bytes_pass_unchanged() -> None:
    assert plain(PLAIN) == PLAIN
    assert plain(b"") == b""
    assert plain(b"\x1f", chunk=1) == b"\x1f"


def test_a_gzip_header_may_have_every_field() -> None:
    fields = struct.pack("<H", 5) + b"extra" + b"name\0" + b"comment\0"
    head = b"\x1f\x8b\x08\x1e" + bytes(5) + b"\x03" + fields  # FHCRC, FEXTRA, FNAME, FCOMMENT
    head += struct.pack("<H", zlib.crc32(head) & 0xFFFF)
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    body = packer.compress(PLAIN) + packer.flush()
    data = head + body + struct.pack("<II", zlib.crc32(PLAIN), len(PLAIN))
    for chunk in (1, 3, 9, 11, 17, 1 << 16):
        assert plain(data * 2, chunk=chunk) == PLAIN * 2


def test_a_gzip_header_has_an_end() -> None:
    with pytest.raises(InvalidArgument, match="without an end"):
        plain(b"\x1f\x8b\x08\x08" + bytes(6) + b"n" * (1 << 20))


@pytest.mark.parametrize("magic", [0x50, 0x5F])
@pytest.mark.parametrize("chunk", [1, 3, 1 << 16])
def test_zstd_frames_may_be_skipped(magic: int, chunk: int) -> None:
    skipped = bytes([magic]) + b"\x2a\x4d\x18" + struct.pack("<I", 300) + b"s" * 300
    frame = FORMS["zstd"](PLAIN)
    assert plain(skipped + frame + skipped + frame + skipped, chunk=chunk) == PLAIN * 2


def test_no_chunk_is_larger_than_a_mebibyte() -> None:
    for form, pack in FORMS.items():
        sizes = [len(part) for part in decompress([pack(bytes(5 << 20))])]
        assert (max(sizes) <= CHUNK, sum(sizes)) == (True, 5 << 20), form


@every_form
@pytest.mark.parametrize("garbage", [b"x", b"garbage", b"\0\0\0x", b"\x1f\x8b", b"BZ", b"\x28\xb5"])
@pytest.mark.parametrize("chunk", [1, 1 << 16])
def test_garbage_behind_the_last_member_is_refused(form: str, garbage: bytes, chunk: int) -> None:
    with pytest.raises(InvalidArgument, match=r"garbage|damaged|cut off"):
        plain(FORMS[form](PLAIN) + garbage, chunk=chunk)


def test_another_form_behind_the_last_member_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="garbage follows the gzip data"):
        plain(FORMS["gzip"](PLAIN) + FORMS["zstd"](PLAIN))


@every_form
def test_a_stream_that_is_cut_off_is_refused(form: str) -> None:
    data = FORMS[form](PLAIN)
    for end in [7, 20, len(data) // 2, *range(len(data) - 9, len(data))]:
        with pytest.raises(InvalidArgument):
            plain(data[:end])


@pytest.mark.parametrize("at", [-1, -5])
def test_a_gzip_member_with_a_wrong_checksum_or_length_is_refused(at: int) -> None:
    data = bytearray(FORMS["gzip"](PLAIN))
    data[at] ^= 1
    with pytest.raises(InvalidArgument, match="the gzip data are damaged"):
        plain(bytes(data))


def test_a_zstd_frame_with_a_wrong_checksum_is_refused() -> None:
    zstd = _zstd()
    data = bytearray(zstd.compress(PLAIN, options={zstd.CompressionParameter.checksum_flag: 1}))
    data[-1] ^= 1
    with pytest.raises(InvalidArgument, match="the zstd data are damaged"):
        plain(bytes(data))


def test_a_zstd_window_that_takes_all_memory_is_refused() -> None:
    zstd = _zstd()
    options = {
        zstd.CompressionParameter.window_log: 30,
        zstd.CompressionParameter.enable_long_distance_matching: 1,
    }
    packer = zstd.ZstdCompressor(options=options)
    data = packer.compress(PLAIN[:9000]) + packer.flush()
    with pytest.raises(InvalidArgument, match="damaged"):
        plain(data)


@every_form
@settings(max_examples=60, deadline=None)
@given(st.data())
def test_damage_is_refused_or_does_not_show(form: str, data: st.DataObject) -> None:
    packed = bytearray(FORMS[form](PLAIN[:2000]))
    packed[data.draw(st.integers(0, len(packed) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(InvalidArgument):
        plain(bytes(packed), chunk=data.draw(st.sampled_from([1, 100, 1 << 16])))


def _zstd() -> Any:
    import sys

    if sys.version_info >= (3, 14):
        from compression import zstd
    else:
        from backports import zstd
    return zstd


@pytest.mark.parametrize("name", [b"BZh91AY", b"\x1f\x8b\x08", b"(\xb5/\xfd", b"\xfd7zXZ", b"P*M\x18"])
@pytest.mark.parametrize("chunk", [1, 300, 1 << 16])
def test_a_tar_whose_first_name_looks_like_a_magic_number_is_a_tar(name: bytes, chunk: int) -> None:
    tar = Layer().file(name, b"x" * 700).tar()
    assert plain(tar, chunk=chunk) == tar
