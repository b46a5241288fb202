"""How layers are compressed: recipes, one stream from many threads, and the seekable forms byte by byte."""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
import json
import os
import platform
import random
import struct
import tarfile
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orlop.config import Settings
from orlop.errors import InvalidArgument
from orlop.images.transfer.forms import plain_of, threads_of, wish_of, with_diff_ids
from orlop.layers.builder import IndexBuilder
from orlop.layers.compression import decompress, zstd_module
from orlop.layers.index import LayerIndex
from orlop.layers.packing import estargz, zstdchunked
from orlop.layers.packing.contents import items
from orlop.layers.packing.packer import pack, spooled
from orlop.layers.packing.parallel import Pool, mapped
from orlop.layers.packing.recipes import ESTARGZ, RECIPES, Unlisted, choose, recipe_of
from orlop.layers.packing.streams import GZIP_PIECE, compress, gathered, member
from orlop.layers.store import LayerStore
from orlop.layers.tarread import TarReader
from orlop.metadata.layers import LayerBlob
from orlop.spec.digest import DiffID, Digest
from support.layers import Layer

PLAIN = random.Random(0).randbytes(GZIP_PIECE) + bytes(3 * GZIP_PIECE) + b"the end" * 9
EMPTY = "sha256:" + hashlib.sha256(b"").hexdigest()
CHUNK = 4 << 20


@pytest.fixture(scope="module")
def pool() -> Iterator[Pool]:
    with Pool(3) as threads:
        yield threads


def chunked(data: bytes, size: int) -> Iterator[bytes]:
    return (data[at : at + size] for at in range(0, len(data), size))


def packed(data: bytes, name: str, pool: Pool | None = None, *, chunk: int = 1 << 16) -> bytes:
    return b"".join(compress(chunked(data, chunk), RECIPES[name], pool))


# ------------------------------------------------------------------ recipes


def test_the_names_of_recipes_stand() -> None:
    """They are kept in stores: one that is taken away or means something else makes blobs unmakeable."""
    gzip_names = {f"gzip-igzip-{n}" for n in (1, 2)} | {f"gzip-zlib-{n}" for n in range(3, 10)}
    zstd_names = {f"{kind}-{n}" for kind in ("zstd", "zstd-chunked") for n in range(1, 20)}
    assert set(RECIPES) == gzip_names | zstd_names | {"isal-2", "none"}
    assert set(ESTARGZ) == {name.replace("gzip-", "estargz-", 1) for name in gzip_names}
    for name, recipe in (*RECIPES.items(), *ESTARGZ.items()):
        assert (recipe.name, recipe_of(name)) == (name, recipe)
        assert recipe.keeps_tar == (name in RECIPES)


def test_an_unknown_recipe_is_refused() -> None:
    with pytest.raises(InvalidArgument):
        recipe_of("isal-99")


@pytest.mark.parametrize(
    ("wish", "name"),
    [
        ({}, "gzip-igzip-2"),
        ({"level": 1}, "gzip-igzip-1"),
        ({"level": 9}, "gzip-zlib-9"),
        ({"compression": "zstd"}, "zstd-3"),
        ({"compression": "zstd", "level": 19, "format": "plain"}, "zstd-19"),
        ({"compression": "none"}, "none"),
        ({"format": "estargz"}, "estargz-igzip-2"),
        ({"format": "estargz", "compression": "gzip", "level": 6}, "estargz-zlib-6"),
        ({"format": "zstd:chunked", "level": 1}, "zstd-chunked-1"),
    ],
)
def test_a_wish_is_one_recipe(wish: dict[str, Any], name: str) -> None:
    assert choose(**wish).name == name
    assert wish_of(Settings(), **wish, what="test").recipe.name == name


@pytest.mark.parametrize(
    "wish",
    [
        {"compression": "lz4"},
        {"format": "oci"},
        {"format": "estargz", "compression": "zstd"},
        {"format": "zstd:chunked", "compression": "none"},
        {"compression": "none", "level": 1},
        {"compression": "gzip", "level": 10},
        {"level": 10},
        {"level": 0},
        {"format": "estargz", "level": 10},
        {"compression": "zstd", "level": 20},
    ],
)
def test_a_wish_that_cannot_be_is_refused(wish: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument):
        wish_of(Settings(), **wish, what="test")


@pytest.mark.parametrize(
    ("said", "wish", "name"),
    [
        ({"compression": "zstd"}, {}, "zstd-3"),
        ({"compression": "zstd", "compression_level": 7}, {}, "zstd-7"),
        ({"compression": "zstd", "compression_level": 12}, {"compression": "gzip"}, "gzip-igzip-2"),
        ({"compression": "zstd"}, {"level": 12}, "zstd-12"),
        ({"compression_format": "zstd:chunked"}, {}, "zstd-chunked-3"),
        ({"compression_format": "zstd:chunked"}, {"compression": "zstd"}, "zstd-chunked-3"),
        ({"compression_format": "zstd:chunked"}, {"compression": "gzip"}, "gzip-igzip-2"),
        ({"compression_format": "zstd:chunked"}, {"format": "plain"}, "gzip-igzip-2"),
        ({"compression_format": "zstd:chunked"}, {"format": "estargz"}, "estargz-igzip-2"),
        ({"compression": "none"}, {}, "none"),
    ],
)
def test_what_is_not_asked_for_the_settings_say(
    said: dict[str, Any], wish: dict[str, Any], name: str
) -> None:
    found = wish_of(Settings(**said), **wish, what="test")
    assert (found.recipe.name, found.asked) == (name, bool(wish))


def test_settings_that_cannot_go_together_are_refused_when_they_are_used() -> None:
    with pytest.raises(InvalidArgument):
        wish_of(Settings(compression="gzip", compression_level=12), what="test")


def test_threads_are_those_of_the_settings_or_the_processors_that_may_be_used() -> None:
    assert threads_of(Settings(compression_threads=7)) == 7
    assert threads_of(Settings()) == len(os.sched_getaffinity(0))


def test_the_plain_form_of_a_seekable_one() -> None:
    names = ("zstd-chunked-7", "estargz-zlib-9", "gzip-igzip-1", "none", "zstd-3")
    assert [plain_of(recipe_of(name)).name for name in names] == [
        "zstd-7",
        "gzip-zlib-9",
        "gzip-igzip-1",
        "none",
        "zstd-3",
    ]


def blob(media_type: str, recipe: str | None = None) -> LayerBlob:
    return LayerBlob(
        diff_id=DiffID(EMPTY), digest=Digest(EMPTY), size=1, media_type=f"x.tar{media_type}", recipe=recipe
    )


FOREIGN, FOREIGN_ZSTD = blob(".gzip"), blob("+zstd")
OURS, OLD, OURS_ZSTD = blob("+gzip", "gzip-igzip-2"), blob("+gzip", "isal-2"), blob("+zstd", "zstd-3")
CHUNKED, STRANGE = blob("+zstd", "zstd-chunked-3"), blob("+lz4", "lz4-1")
ALL = (FOREIGN, FOREIGN_ZSTD, OURS, OLD, OURS_ZSTD, CHUNKED, STRANGE)


@pytest.mark.parametrize(
    ("wish", "taken"),
    [
        ({}, {FOREIGN, FOREIGN_ZSTD, OURS, OLD, OURS_ZSTD, CHUNKED}),
        ({"recompress": True}, {FOREIGN, FOREIGN_ZSTD, OURS, OLD, OURS_ZSTD, CHUNKED}),
        ({"compression": "gzip"}, {FOREIGN, FOREIGN_ZSTD, OURS, OLD}),
        ({"compression": "gzip", "level": 2}, {FOREIGN, FOREIGN_ZSTD, OURS}),
        ({"compression": "gzip", "recompress": True}, {FOREIGN, OURS, OLD}),
        ({"compression": "gzip", "level": 2, "recompress": True}, {OURS}),
        ({"compression": "zstd", "recompress": True}, {FOREIGN_ZSTD, OURS_ZSTD}),
        ({"format": "zstd:chunked"}, {FOREIGN, FOREIGN_ZSTD, CHUNKED}),
        ({"format": "zstd:chunked", "recompress": True}, {CHUNKED}),
        ({"format": "estargz", "recompress": True}, set()),
    ],
)
def test_which_blobs_will_do(wish: dict[str, Any], taken: set[LayerBlob]) -> None:
    found = wish_of(Settings(), **wish, what="test")
    assert {one for one in ALL if found.takes(one)} == taken


@pytest.mark.parametrize(
    ("wish", "blobs", "fits"),
    [
        ({}, [FOREIGN, OURS_ZSTD], True),
        ({"compression": "zstd"}, [FOREIGN, OURS_ZSTD], True),
        ({"compression": "gzip"}, [FOREIGN, OURS_ZSTD], False),
        ({"compression": "gzip"}, [FOREIGN, FOREIGN], True),
        ({"compression": "zstd"}, [FOREIGN, FOREIGN], False),
        ({"compression": "gzip", "level": 2}, [FOREIGN], False),
        ({"format": "zstd:chunked"}, [FOREIGN, CHUNKED], True),
        ({"format": "estargz"}, [OURS], False),
    ],
)
def test_whether_a_known_manifest_is_what_was_asked_for(
    wish: dict[str, Any], blobs: list[LayerBlob], fits: bool
) -> None:
    assert wish_of(Settings(), **wish, what="test").fits(blobs) is fits


def test_a_configuration_gets_other_diff_ids_and_stays_as_it_was() -> None:
    before = {"b": 1, "a": "ü", "rootfs": {"type": "layers", "diff_ids": ["x"]}, "z": None}
    after = json.loads(with_diff_ids(json.dumps(before).encode(), [DiffID(EMPTY)], "test"))
    assert after == {**before, "rootfs": {"type": "layers", "diff_ids": [EMPTY]}}
    assert list(after) == list(before)


# ------------------------------------------------------------------ threads


def test_results_come_in_order_and_few_are_under_way(pool: Pool) -> None:
    begun, lock = 0, threading.Lock()

    def pieces() -> Iterator[int]:
        nonlocal begun
        for number in range(50):
            begun += 1
            yield number

    def work(number: int) -> int:
        with lock:
            return number * number

    for number, result in enumerate(mapped(work, pieces(), pool)):
        assert result == number * number
        assert begun - number <= pool.ahead


def test_who_stops_early_leaves_nothing_waiting() -> None:
    gate, ran = threading.Event(), []

    def work(number: int) -> int:
        ran.append(number)
        if number:
            gate.wait(60)
        return number

    with Pool(1) as pool:
        stream = mapped(work, range(100), pool)
        assert next(stream) == 0
        stream.close()
        gate.set()
    assert len(ran) <= 2 + 1  # the one that was perhaps begun


def test_a_failure_comes_out(pool: Pool) -> None:
    with pytest.raises(ZeroDivisionError):
        list(mapped(lambda number: 1 // (5 - number), range(100), pool))


# ------------------------------------------------------------------ streams


@pytest.mark.parametrize("name", ["isal-2", "gzip-igzip-1", "gzip-igzip-2", "gzip-zlib-3", "zstd-3", "none"])
def test_a_stream_is_the_same_whatever_the_threads_and_the_chunks(name: str, pool: Pool) -> None:
    whole = packed(PLAIN, name)
    assert b"".join(decompress([whole])) == PLAIN
    if name != "isal-2":  # the first recipe goes by the chunks that it is given, which are always a file's
        assert whole == packed(PLAIN, name, pool, chunk=77_777)
        assert whole == packed(PLAIN, name, pool, chunk=5 << 20)
    if name.startswith(("gzip", "isal")):  # one member, no time, no name
        one = zlib.decompressobj(31)
        assert one.decompress(whole) == PLAIN == gzip.decompress(whole)
        assert (one.eof, one.unused_data) == (True, b"")
        assert whole[4:9] in {bytes(5), b"\0\0\0\0\4"}


@pytest.mark.parametrize("name", ["isal-2", "gzip-igzip-2", "gzip-zlib-9", "zstd-1", "none"])
@pytest.mark.parametrize("size", [0, 1, GZIP_PIECE, GZIP_PIECE + 1])
def test_streams_of_every_length_come_back(name: str, size: int) -> None:
    data = PLAIN[-size:] if size else b""
    whole = packed(data, name)
    assert b"".join(decompress([whole])) == data
    if name.startswith(("gzip", "isal")):
        assert gzip.decompress(whole) == data


PINNED = {
    ("isal", "isal-2"): "1048ed5836a81cce",
    ("isal", "gzip-igzip-1"): "36d01b1ab441ec5e",
    ("isal", "gzip-igzip-2"): "5777a72fc53357d3",
    ("zstd", "zstd-3"): "79ded2b067bb573f",
    ("zstd", "zstd-chunked-3"): "abf4b1a4eb967db6",
}


def test_what_the_libraries_make_is_known(layers: LayerStore) -> None:
    """Where a new version of one makes other bytes, blobs of older stores can no longer be made again."""
    rng = random.Random(3)
    words = [rng.randbytes(rng.randrange(2, 9)).hex().encode() for _ in range(500)]
    text = b" ".join(rng.choice(words) for _ in range(300_000))
    tar = Layer().file("a", text).file("b", rng.randbytes(9000)).tar()
    diff_id = stored(layers, tar)
    known = set()
    if platform.machine() == "x86_64":  # igzip has one way for each kind of processor
        known.add("isal")
    if zstd_module().zstd_version == "1.5.7":
        known.add("zstd")
    for (library, name), digest in PINNED.items():
        if library in known:
            made = hashlib.sha256(b"".join(pack(layers, diff_id, name))).hexdigest()
            assert (name, made[:16]) == (name, digest)


@given(st.binary(max_size=300), st.integers(1, 40), st.lists(st.integers(0, 60), max_size=20))
@settings(max_examples=60)
def test_pieces_have_one_size(data: bytes, size: int, cuts: list[int]) -> None:
    chunks, at = [], 0
    for cut in cuts:
        chunks.append(data[at : at + cut])
        at += cut
    pieces = list(gathered([*chunks, data[at:]], size))
    assert b"".join(pieces) == data
    assert [len(piece) for piece in pieces[:-1]] == [size] * (len(pieces) - 1)
    assert all(pieces)


# ------------------------------------------------------------------ seekable forms


def rich() -> Layer:
    rng = random.Random(2)
    layer = Layer().folder("d", mode=0o2750, uid=7, gid=8, mtime_ns=-1_500_000_000).file("d/a", b"1" * 1000)
    layer.file("big", rng.randbytes(CHUNK) + bytes(CHUNK) + b"rest").file("empty").symlink("l", "d/a")
    layer.hardlink("h", to="d/a").file("ünïcode", b"u", xattrs={"user.b": bytes(range(9))}).whiteout("d/gone")
    layer.device("null", "char", 1, 3).fifo("fifo").folder("o").opaque("o").file("o/" + "x" * 150, b"long")
    return layer


@pytest.fixture
def layers(tmp_path: Path) -> LayerStore:
    (tmp_path / "layers").mkdir()
    return LayerStore(tmp_path / "layers")


def stored(layers: LayerStore, tar: bytes) -> DiffID:
    """A layer in a store of layers, by the reader alone."""
    diff_id = DiffID("sha256:" + hashlib.sha256(tar).hexdigest())
    with layers.new() as new:
        os.write(new.tar, tar)
        index = indexed(tar)
        new.complete(index, index.encode())
        layers.publish(new, diff_id)
    return diff_id


def indexed(tar: bytes) -> LayerIndex:
    builder = IndexBuilder()
    for entry in TarReader(chunked(tar, 1 << 16)):
        builder.add(entry)
    return builder.finish(len(tar))


def frames(data: bytes) -> bytes:
    return b"".join(decompress([data]))


def piece_of(data: bytes, start: int, end: int, *, zstd: bool) -> bytes:
    if zstd:
        return bytes(zstd_module().decompress(data[start:end]))
    return zlib.decompressobj(31).decompress(data[start:end])


def check_table(entries: list[dict[str, Any]], data: bytes, tar: bytes, *, zstd: bool, toc: int) -> None:
    """Every file is found by the table alone, chunk by chunk; all else is as the tar says."""
    files: dict[str, bytes] = {}
    starts = [*sorted({entry["offset"] for entry in entries if "offset" in entry}), toc]
    for entry in entries:
        if "offset" not in entry:
            continue
        end = entry.get("endOffset") if zstd and entry["type"] == "chunk" else None
        end = end or starts[starts.index(entry["offset"]) + 1]
        size = entry.get("chunkSize", 0)
        got = (
            piece_of(data, entry["offset"], end, zstd=False) if not zstd else frame_at(data, entry["offset"])
        )
        done = entry.get("chunkOffset", 0)
        size = size or next(one["size"] for one in entries if one["name"] == entry["name"]) - done
        got = got[:size]
        files[entry["name"]] = files.get(entry["name"], b"") + got
        digest = entry.get("chunkDigest") or entry["digest"]
        assert digest == "sha256:" + hashlib.sha256(got).hexdigest()
    with tarfile.open(fileobj=io.BytesIO(tar), encoding="utf-8", errors="surrogateescape") as archive:
        for info in archive:
            name = info.name + ("/" if info.isdir() else "")
            if name == "stargz.index.json":
                continue
            (entry,) = [one for one in entries if one["name"] == name and one["type"] != "chunk"]
            kinds = {b"0": "reg", b"1": "hardlink", b"2": "symlink", b"3": "char", b"5": "dir", b"6": "fifo"}
            assert entry["type"] == kinds[info.type]
            assert entry["mode"] == info.mode or ".wh." in name
            assert (entry["uid"], entry["gid"]) == (info.uid, info.gid)
            assert entry.get("linkName", "") == info.linkname
            if info.isreg() and info.size:
                content = archive.extractfile(info)
                assert content is not None
                assert files[name] == content.read()
                assert entry["digest"] == "sha256:" + hashlib.sha256(files[name]).hexdigest()
            for key, value in info.pax_headers.items():
                if key.startswith("SCHILY.xattr."):
                    said = base64.b64decode(entry["xattrs"][key.removeprefix("SCHILY.xattr.")])
                    assert said == value.encode("utf-8", "surrogateescape")


def frame_at(data: bytes, start: int) -> bytes:
    """The one zstd frame that begins there."""
    decoder = zstd_module().ZstdDecompressor()
    return bytes(decoder.decompress(data[start:]))


def test_zstd_chunked_is_the_tar_and_a_table(layers: LayerStore, pool: Pool) -> None:
    tar = rich().tar()
    diff_id = stored(layers, tar)
    with spooled(layers, diff_id, RECIPES["zstd-chunked-3"], pool=pool) as blob:
        data = b"".join(blob.open_at(0))
        assert b"".join(blob.open_at(1000)) == data[1000:]
    assert (blob.size, blob.digest, blob.diff_id) == (len(data), Digest.of(data), diff_id)
    assert frames(data) == tar
    assert b"".join(pack(layers, diff_id, "zstd-chunked-3")) == data  # in one thread, too
    assert set(blob.annotations) == {
        space + key for space in zstdchunked.SPACES for key in (zstdchunked.POSITION, zstdchunked.CHECKSUM)
    }
    position = blob.annotations[zstdchunked.SPACES[0] + zstdchunked.POSITION]
    offset, length, plain, kind = map(int, position.split(":"))
    table = data[offset : offset + length]
    assert blob.annotations[zstdchunked.SPACES[1] + zstdchunked.CHECKSUM] == str(Digest.of(table))
    toc = json.loads(zstd_module().decompress(table))
    assert (kind, plain, toc["version"]) == (1, len(zstd_module().decompress(table)), 1)
    footer = struct.unpack("<4Q8s", data[-40:])
    assert footer == (offset, length, plain, 1, b"GnUlInUx")
    check_table(toc["entries"], data, tar, zstd=True, toc=offset - 8)
    big = [entry for entry in toc["entries"] if entry["name"] == "big"]
    assert [entry["type"] for entry in big] == ["reg", "chunk", "chunk"]
    assert big[0]["endOffset"] == big[-1]["endOffset"]


def test_estargz_is_a_tar_of_the_same_entries_and_a_table(layers: LayerStore, pool: Pool) -> None:
    diff_id = stored(layers, rich().tar())
    with spooled(layers, diff_id, ESTARGZ["estargz-igzip-2"], pool=pool) as blob:
        data = b"".join(blob.open_at(0))
    with spooled(layers, diff_id, ESTARGZ["estargz-igzip-2"]) as again:
        assert (again.digest, again.annotations) == (blob.digest, blob.annotations)
    tar = gzip.decompress(data)
    assert str(blob.diff_id) == str(Digest.of(tar)) != str(diff_id)
    assert blob.annotations[estargz.PLAIN_SIZE] == str(len(tar))
    footer = data[-51:]
    assert (footer[:4], footer[10:16]) == (b"\x1f\x8b\x08\x04", b"\x1a\0SG\x16\0")
    assert (gzip.decompress(footer), footer[32:38]) == (b"", b"STARGZ")
    toc_at = int(footer[16:32], 16)
    with tarfile.open(fileobj=io.BytesIO(gzip.decompress(data[toc_at:-51]))) as archive:
        assert archive.getnames() == ["stargz.index.json"]
        file = archive.extractfile("stargz.index.json")
        assert file is not None
        text = file.read()
    assert blob.annotations[estargz.TOC_DIGEST] == str(Digest.of(text))
    toc = json.loads(text)
    assert (toc["version"], toc["entries"][0]["name"]) == (1, ".no.prefetch.landmark")
    check_table(toc["entries"], data, tar, zstd=False, toc=toc_at)
    with tarfile.open(fileobj=io.BytesIO(tar)) as archive:
        names = archive.getnames()
    assert names[-1] == "stargz.index.json"
    offsets = [entry["offset"] for entry in toc["entries"] if "offset" in entry]
    assert offsets == sorted(offsets)  # podman reckons where a file ends from where the next one begins
    # What a layer means is the same: only the form's own entries are new
    before, after = indexed(rich().tar()), indexed(tar)
    extra = {b".no.prefetch.landmark", b"stargz.index.json"}
    assert said(after) - said(before) == {line for line in said(after) if line[0] in extra}
    assert said(before) <= said(after)


def said(index: LayerIndex) -> set[tuple[object, ...]]:
    found = set()
    for item in items(index):
        one = item.member
        found.add(
            (
                one.path,
                one.mode,
                one.uid,
                one.gid,
                one.mtime,
                one.nsec,
                one.size,
                one.link,
                one.hard,
                one.xattrs,
            )
        )
    return found


@pytest.mark.parametrize(
    ("layer", "why"),
    [
        (Layer().file(b"\xff\xfe", b"x"), "UTF-8"),
        (Layer().file('a"b', b"x"), "escapes"),
        (Layer().symlink("a", "b\\c"), "escapes"),
        (Layer().file("late", b"x", mtime_ns=(1 << 40) * 1_000_000_000), "9999"),
        (Layer().sparse("s", 100_000, [(50_000, b"x")], how="pax-1.0"), "sparse"),
        (Layer().file("own", b"x").hardlink("h", to="of/another"), "other layers"),
    ],
    ids=["utf-8", "quote", "backslash", "year", "sparse", "lower-link"],
)
@pytest.mark.parametrize("name", ["zstd-chunked-3", "estargz-igzip-2"])
def test_what_no_table_can_say_is_found_before_the_first_byte(
    layers: LayerStore, layer: Layer, why: str, name: str
) -> None:
    diff_id = stored(layers, layer.tar())
    with pytest.raises(Unlisted, match=why), spooled(layers, diff_id, recipe_of(name)):
        pass


@pytest.mark.parametrize("count", [999, 1000, 2001])
def test_many_entries_without_data_are_in_members_of_their_own(layers: LayerStore, count: int) -> None:
    layer = Layer().file("a", b"first")
    for number in range(count):
        layer.file(f"e{number:05}")
    diff_id = stored(layers, layer.file("z", b"last").tar())
    with spooled(layers, diff_id, ESTARGZ["estargz-igzip-2"]) as blob:
        data = b"".join(blob.open_at(0))
    with tarfile.open(fileobj=io.BytesIO(gzip.decompress(data))) as archive:
        names = [*archive.getnames()][1:-1]
        file = archive.extractfile("stargz.index.json")
        assert file is not None
        entries = json.loads(file.read())["entries"][1:]
    assert names == ["a", *(f"e{number:05}" for number in range(count)), "z"]
    assert [entry["name"] for entry in entries] == names
    for entry, content in ((entries[0], b"first"), (entries[-1], b"last")):
        assert zlib.decompressobj(31).decompress(data[entry["offset"] :]).startswith(content)
    members = []
    while data:
        decoder = zlib.decompressobj(31)
        members.append(decoder.decompress(data))
        data = decoder.unused_data
    *others, _, _ = members  # the table, the footer
    assert max(map(len, others)) <= 1003 * 512


def test_estargz_refuses_a_layer_that_has_its_own_entries_already(layers: LayerStore) -> None:
    diff_id = stored(layers, Layer().file("stargz.index.json", b"{}").tar())
    with pytest.raises(Unlisted, match="of its own"), spooled(layers, diff_id, ESTARGZ["estargz-igzip-1"]):
        pass


@pytest.mark.parametrize("name", ["zstd-chunked-1", "estargz-igzip-1"])
def test_an_empty_layer_has_every_form(layers: LayerStore, name: str) -> None:
    diff_id = stored(layers, bytes(1024))
    with spooled(layers, diff_id, recipe_of(name)) as blob:
        assert frames(b"".join(blob.open_at(0))).endswith(bytes(1024))


def test_a_member_is_whole() -> None:
    data = member(b"hello", RECIPES["gzip-zlib-9"])
    assert gzip.decompress(data) == b"hello"
    assert gzip.decompress(data + data) == b"hellohello"
