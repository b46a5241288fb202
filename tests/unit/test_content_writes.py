"""Writes under names that clients chose, on disk: what is believed of them after a kill and after a power cut."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from orlop.content.blobs import BlobStore
from orlop.content.writes import About, Writes
from orlop.linux.sync import Sync
from orlop.observe import watch_points
from orlop.spec.digest import Digest
from orlop.testing.crashes import recording

ABOUT = About(namespace="n", ref="../r", total=30, expected=Digest.of(b"x"), started=7, boot="one")


class Noted(Sync):
    """Says what was synced, and syncs nothing itself."""

    def __init__(self) -> None:
        super().__init__(True)
        self.synced: list[str] = []

    def file(self, fd: int) -> None:
        self.synced.append(os.path.basename(os.readlink(f"/proc/self/fd/{fd}")))

    def folder(self, folder: object) -> None:
        self.synced.append(os.path.basename(str(folder)))


@pytest.fixture
def sync() -> Noted:
    return Noted()


@pytest.fixture
def writes(tmp_path: Path, sync: Noted) -> Writes:
    blobs = BlobStore(tmp_path, sync=sync)
    for folder in blobs.folders():
        folder.mkdir(parents=True, exist_ok=True)
    return blobs.writes()


def in_boot(boot: str) -> About:
    return About(namespace="n", ref="../r", total=0, expected=None, started=99, boot=boot)


def size_in(writes: Writes, boot: str) -> int:
    write = writes.open(in_boot(boot))
    size = write.ingest.size
    write.drop()
    return size


def test_a_kill_loses_nothing_and_a_power_cut_what_was_not_synced(writes: Writes, sync: Noted) -> None:
    write = writes.open(ABOUT)
    write.write(b"0123456789")
    assert sync.synced == []
    write.close()
    assert sync.synced == ["data", ".about", writes.folder(writes.key("n", "../r")).name, "ingest"]
    write = writes.open(in_boot("one"))
    assert (write.about.total, write.about.expected, write.about.started) == (30, ABOUT.expected, 7)
    write.write(b"more")
    write.drop()  # as a kill does
    assert size_in(writes, "one") == 14
    assert size_in(writes, "two") == 10
    assert size_in(writes, "two") == 10
    [(about, size, _)] = writes.all()
    assert (about.boot, size) == ("two", 10)


def test_what_was_never_synced_is_not_believed_in_another_boot(writes: Writes) -> None:
    write = writes.open(ABOUT)
    write.write(b"0123456789")
    write.drop()
    assert size_in(writes, "two") == 0


@pytest.mark.parametrize("known", [True, False])
def test_who_dies_as_he_goes_on_in_another_boot_leaves_nothing_more_to_be_believed(
    writes: Writes, known: bool
) -> None:
    def begin() -> None:
        write = writes.open(ABOUT)
        write.truncate()
        write.write(b"0123456789")
        write.close()
        write = writes.open(in_boot("one"))
        write.write(b"zeros, perhaps")
        write.drop()
        if not known:
            (writes.folder(writes.key("n", "../r")) / "about").unlink()

    hits: list[str] = []
    begin()
    with recording(hits):
        size_in(writes, "two")
    for last in hits:

        def die(point: str, last: str = last) -> None:
            if point == last:
                raise InterruptedError

        begin()
        with watch_points(die), pytest.raises(InterruptedError):
            writes.open(in_boot("two"))
        assert size_in(writes, "two") == (10 if known else 0), last


def test_what_is_begun_anew_is_not_taken_for_what_was_synced(writes: Writes) -> None:
    write = writes.open(ABOUT)
    write.write(b"0123456789")
    write.close()
    write = writes.open(in_boot("one"))
    write.truncate()
    write.write(b"abcdefghijkl")
    write.drop()
    assert size_in(writes, "two") == 0


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"namespace": "n"}', "\0" * 100, "x" * 70_000])
def test_what_is_known_and_damaged_is_no_write(writes: Writes, text: str) -> None:
    write = writes.open(ABOUT)
    write.write(b"0123456789")
    write.close()
    (writes.folder(writes.key("n", "../r")) / "about").write_text(text)
    assert list(writes.all()) == []
    assert size_in(writes, "one") == 0


def test_the_same_ref_of_two_namespaces_is_two_writes(writes: Writes) -> None:
    assert writes.key("a", "b") != writes.key("b", "a")
    one = writes.open(ABOUT)
    one.write(b"x")
    one.close()
    other = writes.open(About(namespace="m", ref="../r", total=0, expected=None, started=1, boot="one"))
    assert other.ingest.size == 0
    other.close()
    assert len(list(writes.all())) == 2
