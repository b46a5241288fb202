"""Where a push goes, and what it sends: names, and sources that are opened again."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orlop.errors import DataLoss, InvalidArgument
from orlop.images.transfer.push import targets
from orlop.images.transfer.sources import Hashed, derived, file_chunks, from_file
from orlop.layers.packing.recipes import RECIPES
from orlop.layers.packing.streams import compress
from orlop.spec.digest import Digest

calm = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
SEEDS = "sha256:" + "1" * 64


@pytest.mark.parametrize(
    ("destination", "tags", "names"),
    [
        ("reg.example/a", (), ["reg.example/a:latest"]),
        ("reg.example/a:1", ("2", "latest"), ["reg.example/a:1", "reg.example/a:2", "reg.example/a:latest"]),
        ("reg.example/a:1", ("1", "2", "2"), ["reg.example/a:1", "reg.example/a:2"]),
        (f"reg.example/a@{SEEDS}", ("2",), [f"reg.example/a@{SEEDS}", "reg.example/a:2"]),
        ("127.0.0.1:5000/a/b", ("x",), ["127.0.0.1:5000/a/b:latest", "127.0.0.1:5000/a/b:x"]),
        ("alpine", ("3",), ["docker.io/library/alpine:latest", "docker.io/library/alpine:3"]),
    ],
)
def test_a_push_goes_to_its_destination_and_to_further_tags_of_its_repository(destination, tags, names):
    assert [str(ref) for ref in targets(destination, tags)] == names


@pytest.mark.parametrize("tag", ["", "a/b", f"2@{SEEDS}", "-x", "a:b", "x" * 129, "ä", " 1"])
def test_what_is_no_tag_is_refused(tag):
    with pytest.raises(InvalidArgument):
        targets("reg.example/a:1", (tag,))


def pieces(data, size):
    return [data[at : at + size] for at in range(0, len(data), size)]


@calm
@given(st.binary(max_size=200), st.integers(1, 50), st.integers(0, 250))
def test_what_is_derived_begins_at_any_offset(data, size, offset):
    source = derived(lambda: pieces(data, size))
    assert b"".join(source(offset)) == data[offset:]


@calm
@given(st.binary(max_size=200), st.integers(1, 50), st.lists(st.integers(0, 200), max_size=5))
def test_bytes_are_hashed_once_however_often_they_come(data, size, offsets):
    """Each opening reads a piece and is given up, as a cut does; the last one reads to the end."""
    hashed = Hashed(derived(lambda: pieces(data, size)), attempted="test", digest=Digest.of(data))
    for offset in offsets:
        start = min(offset, hashed.size)
        stream = hashed(start)
        got = next(stream, b"")
        stream.close()
        assert data[start:].startswith(got)
    start = hashed.size
    assert b"".join(hashed(start)) == data[start:]
    assert hashed.size == len(data)
    assert hashed.digest() == Digest.of(data)


@pytest.mark.parametrize("cut", [False, True])
def test_other_bytes_are_found_out_at_their_end(cut):
    hashed = Hashed(derived(lambda: [b"abc", b"def"]), attempted="push", digest=Digest.of(b"abcdeX"))
    if cut:
        next(hashed(0))
    with pytest.raises(DataLoss, match="other bytes"):
        list(hashed(2 if cut else 0))


def test_a_file_and_what_is_packed_of_it_come_again_from_an_offset(tmp_path):
    path = tmp_path / "tar"
    path.write_bytes(bytes(range(256)) * 9000)
    assert b"".join(from_file(path)(1_500_000)) == path.read_bytes()[1_500_000:]
    source = derived(lambda: compress(file_chunks(path), RECIPES["isal-2"]))
    whole = b"".join(source(0))
    assert b"".join(source(5)) == whole[5:]
    made = Hashed(source, attempted="push")
    assert b"".join(made(0)) == whole
    assert (made.digest(), made.size) == (Digest.of(whole), len(whole))
