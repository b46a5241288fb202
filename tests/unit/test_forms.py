"""How ids, modes and devices stand on disk in each form, and what the disk means again."""

from __future__ import annotations

import os
import stat
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orlop.erofs.reader import Image
from orlop.erofs.writer import build
from orlop.layers.builder import IndexBuilder
from orlop.layers.chainview import ChainView
from orlop.layers.forms import (
    FORMS,
    NAMESPACE,
    OVERRIDE,
    PLAIN,
    REAL,
    SINGLE,
    Form,
    Stat,
    apply,
    record,
    told,
)
from orlop.layers.merge import Merger
from orlop.layers.tarread import TarReader
from support.layers import Layer

REGULAR, FOLDER, LINK = stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK

CASES = [
    (Stat(REGULAR | 0o644, 0, 0), None),
    (Stat(REGULAR | 0o644, 5, 6), b"5:6:0644:file"),
    (Stat(REGULAR | 0o4755, 0, 0), b"0:0:4755:file"),
    (Stat(FOLDER | 0o755, 0, 0), None),
    (Stat(FOLDER | 0o1777, 0, 0), None),
    (Stat(FOLDER | 0o500, 0, 7), b"0:7:0500:dir"),
    (Stat(REGULAR, 0, 0), b"0:0:0000:file"),
    (Stat(stat.S_IFCHR | 0o666, 0, 0, os.makedev(1, 3)), b"0:0:0666:char-1-3"),
    (Stat(stat.S_IFBLK | 0o660, 0, 6, os.makedev(8, 1)), b"0:6:0660:block-8-1"),
]


@pytest.mark.parametrize(("entry", "expected"), CASES)
def test_what_a_single_id_cannot_say_is_recorded_as_containers_storage_does(
    entry: Stat, expected: bytes | None
) -> None:
    assert dict(apply(PLAIN, entry).xattrs).get(OVERRIDE) == expected


def on_disk(form: Form, applied: Stat, *, mtime_ns: int = 0, size: int = 0) -> os.stat_result:
    """What stat(2) would say of an entry, to a process of that form."""
    uid, gid = (applied.uid, applied.gid) if form.owners else (os.geteuid(), os.getegid())
    return os.stat_result(
        (applied.mode, 1, 1, 1, uid, gid, size, 0, 0, 0),
        {"st_rdev": applied.rdev, "st_mtime_ns": mtime_ns, "st_mtime": mtime_ns / 1e9},
    )


modes = st.builds(lambda kind, bits: kind | bits, st.sampled_from([REGULAR, FOLDER]), st.integers(0, 0o7777))
devices = st.builds(
    lambda kind, bits, major, minor: (kind | bits, os.makedev(major, minor)),
    st.sampled_from([stat.S_IFCHR, stat.S_IFBLK]),
    st.integers(0, 0o7777),
    st.integers(1, 4095),
    st.integers(0, (1 << 20) - 1),
)
ids = st.integers(0, (1 << 32) - 2)


@given(form=st.sampled_from(list(FORMS.values())), mode=modes, uid=ids, gid=ids)
def test_the_disk_means_what_was_applied(form: Form, mode: int, uid: int, gid: int) -> None:
    entry = Stat(mode, uid, gid)
    applied = apply(form, entry)
    assert told(form, on_disk(form, applied), applied.xattrs, None) == entry


@given(form=st.sampled_from([SINGLE, PLAIN]), device=devices, uid=ids)
def test_a_device_that_cannot_be_made_is_an_empty_file_and_comes_back(
    form: Form, device: tuple[int, int], uid: int
) -> None:
    entry = Stat(device[0], uid, 0, device[1])
    applied = apply(form, entry)
    assert stat.S_ISREG(applied.mode)
    assert told(form, on_disk(form, applied), applied.xattrs, None) == entry
    written = told(form, on_disk(form, applied, size=1), applied.xattrs, None)
    assert stat.S_ISREG(written.mode)  # somebody has put a file there


def test_a_mode_that_was_changed_since_wins_over_the_record() -> None:
    applied = apply(PLAIN, Stat(REGULAR | 0o4755, 5, 6))
    changed = replace(applied, mode=REGULAR | 0o600)
    assert told(PLAIN, on_disk(PLAIN, changed), applied.xattrs, None) == Stat(REGULAR | 0o600, 5, 6)


@pytest.fixture(scope="module")
def chain() -> ChainView:
    """A chain with a file whose owner few namespaces map, and with a device."""
    layer = Layer().file("f", uid=4_000_000, gid=6).device("null", "char", 1, 3, mode=0o666)
    reader, builder, merger = TarReader([layer.tar()]), IndexBuilder(), Merger()
    for entry in reader:
        builder.add(entry)
    merger.apply(builder.finish(reader.size), lambda data: 1)
    return ChainView([Image(build(merger.finish(), devices=[reader.size], uuid=bytes(16)))])


def test_an_owner_that_was_changed_since_wins_over_the_record(chain: ChainView) -> None:
    orig = chain.lookup(b"f")
    xattrs = ((OVERRIDE, record(Stat(REGULAR | 0o644, 4_000_000, 6))),)
    unmapped = on_disk(NAMESPACE, Stat(REGULAR | 0o644, 0, 0))
    assert told(NAMESPACE, unmapped, xattrs, orig).uid == 4_000_000
    given_away = on_disk(NAMESPACE, Stat(REGULAR | 0o644, 7, 7))
    assert told(NAMESPACE, given_away, xattrs, orig).uid == 7


def test_who_may_give_files_away_is_believed_no_record_of_what_the_image_has_not(chain: ChainView) -> None:
    null = apply(NAMESPACE, Stat(stat.S_IFCHR | 0o666, 0, 0, os.makedev(1, 3)))
    about = on_disk(NAMESPACE, null)
    assert stat.S_ISCHR(told(NAMESPACE, about, null.xattrs, chain.lookup(b"null")).mode)
    disk = ((OVERRIDE, b"0:0:0666:block-8-0"),)
    for orig in (None, chain.lookup(b"null"), chain.lookup(b"f")):
        assert stat.S_ISREG(told(NAMESPACE, about, disk, orig).mode)


@pytest.mark.parametrize("value", [b"", b"1:2", b"1:2:8:file", b"1:2:644:door", b"-1:0:644:file", b"x" * 99])
def test_a_record_that_is_none_is_an_xattr_like_others(value: bytes) -> None:
    about = on_disk(PLAIN, Stat(REGULAR | 0o644, 0, 0))
    assert told(PLAIN, about, ((OVERRIDE, value),), None) == Stat(
        REGULAR | 0o644, 0, 0, xattrs=((OVERRIDE, value),)
    )


def test_the_spare_id_is_roots() -> None:
    form = replace(REAL, spare=77)
    assert told(form, on_disk(form, Stat(REGULAR | 0o644, 77, 77)), (), None) == Stat(REGULAR | 0o644, 0, 0)


def test_marks_are_nested_under_the_prefix_of_the_form_and_where_there_is_no_overlay_not_at_all() -> None:
    mark = ((b"user.overlay.opaque", b"y"),)
    entry = Stat(FOLDER | 0o755, 0, 0, xattrs=mark)
    assert apply(SINGLE, entry).xattrs == ((b"user.overlay.overlay.opaque", b"y"),)
    assert apply(REAL, entry).xattrs == apply(SINGLE.bare(), entry).xattrs == mark
    about = on_disk(SINGLE, entry)
    assert told(SINGLE, about, mark, None).xattrs == ()
    assert told(SINGLE.bare(), about, mark, None).xattrs == mark
