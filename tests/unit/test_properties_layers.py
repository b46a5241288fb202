"""Layers by the hundred: read, merged and stacked beside the model that knows the rules, and what nobody
should write refused or meant, never broken.

Only errors of orlop's may come out; whatever is accepted is valid, survives its file, reads back from its
image, and does not depend on how the bytes came (all of that is asserted in `orlop.testing.applied` and in
the fuzz targets).
"""

from __future__ import annotations

import io
import os
import tarfile
import tempfile
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orlop.errors import Error, Internal
from orlop.layers.builder import clean
from orlop.layers.tarread import TarReader
from orlop.layers.tarwrite import Member, TarWriter
from orlop.testing import applied
from orlop.testing.conformance import model
from orlop.testing.conformance.model import Tree
from orlop.testing.layers import Layer
from orlop.testing.strategies import ids, modes, mutated, paths, stacks, tars, wild_layers
from support.fuzzing import load, trials

TARGETS = load()
SECOND = 1_000_000_000


def differing(expected: Tree, actual: Tree) -> dict[bytes, object]:
    return {
        path: (expected.get(path), actual.get(path))
        for path in expected.keys() | actual.keys()
        if expected.get(path) != actual.get(path)
    }


@trials(100)
@given(stacks())
def test_layers_mean_what_the_model_says(layers: list[Layer]) -> None:
    tars = [layer.tar() for layer in layers]
    expected = model.apply(layers)
    assert differing(expected, applied.apply_tars(tars)) == {}
    stack = applied.stacked(tars)
    if stack is not None:
        assert differing(expected, applied.shown(stack)) == {}


@pytest.mark.hostile(1, 3, 6, 7, 8, 11, 41)
@trials(100)
@given(st.lists(tars(), min_size=1, max_size=3))
def test_any_layers_are_one_tree_or_refused(layers: list[bytes]) -> None:
    try:
        tree = applied.apply_tars(layers)
    except Internal:
        raise
    except Error:
        return
    assert tree[b""].kind == "folder"
    for path in tree:
        parent = path.rpartition(b"/")[0]
        assert clean(path) == [part for part in path.split(b"/") if part]
        assert tree[parent].kind == "folder"
    stack = applied.stacked(layers)
    if stack is not None:
        assert differing(tree, applied.shown(stack)) == {}


@pytest.mark.hostile(9, 10, 13)
@trials(100)
@given(mutated())
def test_a_damaged_tar_is_read_the_same_however_it_is_cut_or_refused(data: bytes) -> None:
    TARGETS["tar"](data)


@pytest.mark.hostile(9)
@trials(100)
@given(mutated(tars(stacks(most=1).map(lambda layers: layers[0]))))
def test_a_tar_that_was_sound_is_read_the_same_however_it_is_cut_or_refused(data: bytes) -> None:
    TARGETS["tar"](data)


@trials(100)
@given(wild_layers())
def test_the_same_layer_gives_the_same_index_and_image(layer: Layer) -> None:
    tar = layer.tar()
    try:
        first = applied.merged([tar])
    except Error:
        return
    assert first.image == applied.merged([tar]).image
    assert applied.index_of(tar, chunk=777).encode() == applied.index_of(tar).encode()


# ------------------------------------------------------------------ the writer


def members() -> st.SearchStrategy[tuple[Member, bytes]]:
    """What a commit may write, with a file's bytes."""
    kinds = st.sampled_from([0o100000, 0o040000, 0o120000, 0o020000, 0o060000, 0o010000])
    plain = st.builds(
        Member,
        path=paths(),
        mode=st.builds(lambda kind, mode: kind | mode, kinds, modes),
        uid=ids,
        gid=ids,
        mtime=st.one_of(st.integers(-(2**33), 2**35), st.sampled_from([-1, 0, 8**11 - 1, 8**11])),
        nsec=st.sampled_from([0, 1, 500_000_000, 999_999_999]),
        rdev=st.sampled_from([os.makedev(1, 3), os.makedev(4095, 1_048_575)]),
        link=st.one_of(paths(), st.just(b"t" * 150)),
        hard=st.integers(0, 9).map(lambda dice: dice == 0),
        xattrs=st.dictionaries(
            st.sampled_from([b"user.a", b"user.x=y", b"user.x%3Dy", b"trusted.b"]),
            st.binary(max_size=9),
            max_size=3,
        ).map(lambda found: tuple(found.items())),
    )
    return st.tuples(plain, st.one_of(st.binary(max_size=9), st.just(b"d" * 512), st.just(b"e" * 1300))).map(
        _sized
    )


def _sized(pair: tuple[Member, bytes]) -> tuple[Member, bytes]:
    member, data = pair
    regular = member.mode & 0o170000 == 0o100000 and not member.hard
    link = member.link if member.hard or member.mode & 0o170000 == 0o120000 else b""
    return replace(member, size=len(data) if regular else 0, link=link), data if regular else b""


def written(pairs: list[tuple[Member, bytes]]) -> bytes:
    with tempfile.TemporaryFile() as file:
        writer = TarWriter(file.fileno())
        for member, data in pairs:
            writer.add(member, iter([data]).__next__ if data else None)
        done = writer.finish()
        file.seek(0)
        tar = file.read()
    assert len(tar) == done.size
    assert done.diff_id.verifies(tar)
    assert done.index.encode() == applied.index_of(tar).encode(), "the writer's index is not the reader's"
    return tar


@trials(100)
@given(st.lists(members(), max_size=5))
def test_what_is_written_reads_back_here_and_in_tarfile(pairs: list[tuple[Member, bytes]]) -> None:
    try:
        tar = written(pairs)
    except Error:
        return  # entries that mean nothing together: a link to a folder
    entries = list(TarReader([tar]))
    assert len(entries) == len(pairs)
    with tarfile.open(fileobj=io.BytesIO(tar), encoding="utf-8", errors="surrogateescape") as archive:
        infos = archive.getmembers()
    assert len(infos) == len(pairs)
    for (member, data), entry, info in zip(pairs, entries, infos, strict=True):
        assert entry.name.rstrip(b"/") == member.path == os.fsencode(info.name)
        assert tar[entry.offset : entry.offset + entry.size] == data
        assert tar[info.offset_data : info.offset_data + info.size] == data
        kind = 0 if member.hard else member.mode & 0o170000
        assert entry.mode == kind | member.mode & 0o7777
        assert info.mode == member.mode & 0o7777
        assert (entry.uid, entry.gid) == (member.uid, member.gid) == (info.uid, info.gid)
        assert (entry.mtime, entry.nsec) == (member.mtime, member.nsec)
        assert info.mtime == pytest.approx(member.mtime + member.nsec / SECOND, abs=1e-5)
        assert entry.link == member.link == os.fsencode(info.linkname)
        if kind in (0o020000, 0o060000):
            assert os.makedev(*entry.rdev) == member.rdev == os.makedev(info.devmajor, info.devminor)
        if not member.hard:
            assert entry.xattrs == tuple(sorted(member.xattrs))
