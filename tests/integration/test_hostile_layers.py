"""Layers that are not what they say: names, numbers, records, devices, xattrs (HOSTILE.md's rows 5, 6, 8 to 11, 13,
41, 42), and what looks like them and is right, which has to work.

Each goes through a real store as in `test_breakouts`: imported, shown by every driver, written to, committed,
removed, with a tree outside the root looked after.  Bombs and masses are `test_hostile_masses`'.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

import orlop
from conftest import StoreDirs
from support.breakouts import BASE, DRIVERS, Canary, How, Trial, base, shape, trial_store, unlike
from support.layers import Layer

pytestmark = [pytest.mark.root, pytest.mark.any_kernel]


@pytest.fixture
def canary(workdir: Path) -> Canary:
    return Canary(workdir / "canary")


@pytest.fixture
def trial(store_dirs: StoreDirs, canary: Canary) -> Iterator[Trial]:
    with trial_store(store_dirs, canary) as made:
        yield made


def pax(*records: tuple[bytes, bytes]) -> dict[str, object]:
    return {"pax": records}


def field(offset: int, data: bytes) -> dict[str, object]:
    """A field of the header, whatever should stand there (ustar: mode 100, uid 108, size 124, mtime 136)."""
    return {"patch": {offset: data}}


NEGATIVE = b"\xff" * 12
ENORMOUS = b"\x80" + b"\xff" * 11

# ------------------------------------------------------------------ refused


REFUSED: dict[str, tuple[Layer, str]] = {
    # 6, 8
    "a NUL in a name": (Layer().file("f", **pax((b"path", b"a\0b"))), "not a file name"),
    "a NUL in a folder's name": (Layer().file("f", **pax((b"path", b"a\0b/c"))), "not a file name"),
    "a NUL in a symlink's target": (Layer().symlink("k", "x", **pax((b"linkpath", b"a\0b"))), "is a symlink to"),
    "a component of 256 bytes": (Layer().file("d/" + "n" * 256), "name_size is 256"),
    "a folder's name of 256 bytes": (Layer().file("n" * 256 + "/f"), "name_size is 256"),
    "a symlink to nothing": (Layer().symlink("k", ""), "is a symlink to"),
    "a symlink's target of 4,096 bytes": (Layer().symlink("k", "x" * 4096), "link_size is 4096"),
    # 9
    "a negative size": (Layer().add("f", b"0", data=b"x" * 512, **field(124, NEGATIVE)), "a size of -1"),
    "an enormous size": (Layer().add("f", b"0", data=b"x" * 512, **field(124, ENORMOUS)), "layer_size is"),
    "a size far beyond the end": (Layer().add("f", b"0", size=1 << 30), "cut off"),
    "a size that is no number": (Layer().add("f", b"0", **field(124, b"zzzzzzzzzzz\0")), "not a number"),
    "a size that is not octal": (Layer().add("f", b"0", **field(124, b"00000000089\0")), "not octal"),
    "a negative PAX size": (Layer().file("f", **pax((b"size", b"-1"))), "not a number"),
    "a PAX size of 100 digits": (Layer().file("f", **pax((b"size", b"9" * 100))), "not a number"),
    "a negative owner": (Layer().add("f", b"0", **field(108, NEGATIVE[:8])), "owner"),
    "an owner of 2^32 - 1": (Layer().file("f", uid=2**32 - 1), "owner"),
    "a time out of all range": (Layer().file("f", **pax((b"mtime", b"9" * 30))), "time"),
    "a negative offset in a sparse map": (
        Layer().file("f", b"x" * 512, **pax((b"GNU.sparse.size", b"9"), (b"GNU.sparse.map", b"-1,1"))),
        "not a number",
    ),
    "a sparse map that goes backwards": (
        Layer().file("f", b"x" * 9, **pax((b"GNU.sparse.size", b"99"), (b"GNU.sparse.map", b"9,5,2,4"))),
        "does not fit",
    ),
    "a sparse map beyond its file": (
        Layer().file("f", b"x" * 9, **pax((b"GNU.sparse.size", b"9"), (b"GNU.sparse.map", b"0,9,9,99"))),
        "does not fit",
    ),
    "a base-256 sparse map beyond all": (
        Layer("gnu").add("f", b"S", data=b"x" * 512, patch={386: ENORMOUS + ENORMOUS, 483: ENORMOUS}),
        "file_size is",
    ),
    # 10
    "a PAX record that is longer than its header": (
        Layer().raw(Layer().file("f", **pax((b"comment", b"x"))).tar(end=b"")[:512] + b"999 comment=x\n".ljust(512, b"\0")),
        "whose length is wrong",
    ),
    "a PAX record without a length": (
        Layer().add("PaxHeaders/f", b"x", data=b"comment=x\n").file("f"), "without a length",
    ),
    "a PAX record without a key": (Layer().add("PaxHeaders/f", b"x", data=b"6 =xy\n").file("f"), "without a key"),
    "a PAX record without an end": (
        Layer().add("PaxHeaders/f", b"x", data=b"12 comment=xx").file("f"), "length is wrong",
    ),
    "an xattr without a name": (Layer().file("f", **pax((b"SCHILY.xattr.", b"x"))), "name of an xattr"),
    "an xattr's name with a NUL": (Layer().file("f", **pax((b"SCHILY.xattr.user.a\0b", b"x"))), "name of an xattr"),
    # 11
    "a device's number that Linux has not": (Layer().device("x", "char", 1 << 12, 0), "which Linux has not"),
    "a negative device's number": (
        Layer().device("x", "block", 8, 0, **field(337, NEGATIVE[:8])), "which Linux has not",
    ),
    "an entry of unknown type": (Layer().add("f", b"Z"), "unknown type"),
    # 13
    "a header whose checksum is wrong": (Layer().raw(b"junk" * 128), "checksum"),
    "an archive that ends in a header": (Layer().raw(Layer().file("f").tar()[:300]), "cut off"),
    "an archive that ends in a file": (Layer().raw(Layer().file("f", b"x" * 5000).tar()[:2048]), "cut off"),
}  # fmt: skip


@pytest.mark.hostile(6, 8, 9, 10, 11, 13)
@pytest.mark.parametrize("number", range(len(REFUSED)), ids=list(REFUSED))
def test_is_refused_for_what_it_is(trial: Trial, number: int) -> None:
    layer, words = list(REFUSED.values())[number]
    how: How = "docker" if number % 2 else "oci"
    error = orlop.ResourceExhausted if words in {"layer_size is", "file_size is"} else orlop.InvalidArgument
    trial.refuses([base().tar(), layer.tar(end=b"")], words, error=error, how=how)


# ------------------------------------------------------------------ kept as it is


LONG = "n" * 250
DEEP = "/".join([LONG] * 80)  # 20,000 bytes
KEPT: dict[str, tuple[list[Layer], dict[str, str | None]]] = {
    # 6, 8, 42
    "odd names": (
        [Layer().file("a\\b").file("c:d,e").file(" ").file("new\nline").file("-rf").file("%2e%2e").file("..\\..\\x")],
        dict.fromkeys(["a\\b", "c:d,e", " ", "new\nline", "-rf", "%2e%2e", "..\\..\\x"], "0"),
    ),
    "names of 255 bytes in several encodings": (
        [Layer().file("é" * 127).file(b"\xe9" * 255).file("漢" * 85).file(b"\xff\xfe" * 127).file("\x01" * 255)],
        dict.fromkeys(
            ["é" * 127, os.fsdecode(b"\xe9" * 255), "漢" * 85, os.fsdecode(b"\xff\xfe" * 127), "\x01" * 255], "0"
        ),
    ),
    "names that go up and down": (
        [Layer().file("/abs", b"x").file("../../up", b"x").file("d/../../q/./r", b"x").folder("d//s/..")],
        {"abs": "1", "up": "1", "q": "folder", "q/r": "1"},
    ),
    "a path longer than PATH_MAX": (
        [Layer().file(f"{DEEP}/f", b"x"), Layer().file(f"{DEEP}/g", b"xx").whiteout(f"{DEEP}/f")],
        {f"{DEEP}/g": "2", **{"/".join([LONG] * count): "folder" for count in range(1, 81)}},
    ),
    "a path of 4,090 bytes": (
        [Layer().file("/".join(["m" * 254] * 16) + "/" + "e" * 9, b"x")],
        {
            "/".join(["m" * 254] * 16) + "/" + "e" * 9: "1",
            **{"/".join(["m" * 254] * count): "folder" for count in range(1, 17)},
        },
    ),
    "folders 1,000 deep": (
        [Layer().file("z/" * 1000 + "f", b"x")],
        {"z/" * 1000 + "f": "1", **{"/".join(["z"] * count): "folder" for count in range(1, 1001)}},
    ),
    # 10, 13
    "a PAX size that differs from the header's": (
        [Layer().add("f", b"0", data=b"12345678", size=3, **pax((b"size", b"8"))).file("g", b"x")],
        {"f": "8", "g": "1"},
    ),
    "data after the end of the archive": (
        [Layer().file("f", b"x").raw(bytes(1024)).file("never").raw(b"junk" * 99)],
        {"f": "1"},
    ),
    "an archive without an end": ([Layer().raw(Layer().file("f", b"x" * 512).tar(end=b""))], {"f": "512"}),
    "links, folders and devices that say they have data": (
        [
            Layer().file("f", b"x").add("k", b"2", link="f", size=512).add("h", b"1", link="f", size=99)
            .add("n", b"3", device=(1, 3), size=512).add("q/", b"5", size=0).file("g", b"xx")
        ],
        {"f": "1 = f h", "h": "1 = f h", "k": "-> f", "n": "char", "q": "folder", "g": "2"},
    ),
    # correct, and refused by others
    "a hard link to a file of a lower layer": (
        [Layer().hardlink("h", to="d/a").hardlink("d/s/i", to="./d/c", mode=0o777)],
        {"h": "1 = d/a h", "d/a": "1 = d/a h", **dict.fromkeys(["d/b", "d/c", "d/s/i"], "2 = d/b d/c d/s/i")},
    ),
    "the same path again and again": (
        [Layer().file("f", b"1").folder("f").file("f/x").symlink("f", "d").fifo("f").file("f", b"last").file("f", b"4!")],
        {"f": "2"},
    ),
    "a contiguous file": ([Layer().add("seven", b"7", data=b"7777777")], {"seven": "7"}),
    "a symlink that points out of the root": (
        [Layer().symlink("k", "../../../../../../etc/passwd").symlink("m", "/etc/passwd").symlink("n", "x" * 4095)],
        {"k": "-> ../../../../../../etc/passwd", "m": "-> /etc/passwd", "n": "-> " + "x" * 4095},
    ),
    # 11
    "devices, FIFOs, and sockets left out": (
        [
            Layer().device("sda", "block", 8, 0).device("mem", "char", 1, 1).device("max", "char", 4095, 1048575)
            .fifo("fifo", mode=0o666)
        ],
        {"sda": "block", "mem": "char", "max": "char", "fifo": "fifo"},
    ),
}  # fmt: skip


@pytest.mark.hostile(6, 8, 10, 11, 13, 42)
@pytest.mark.parametrize("number", range(len(KEPT)), ids=list(KEPT))
def test_is_kept_by_every_driver(trial: Trial, number: int) -> None:
    layers, changes = list(KEPT.values())[number]
    expected = {path: what for path, what in {**BASE, **changes}.items() if what is not None}
    trial.turn = number
    how: How = "docker" if number % 2 else "oci"
    trial.shows([base().tar(), *(layer.tar() for layer in layers)], expected, how=how)


@pytest.mark.hostile(42)
def test_xattrs_of_16_to_64_kib_are_kept_where_the_disk_can_hold_them(trial: Trial) -> None:
    sizes = {"x16": 16 << 10, "x32": 32 << 10, "x64": 65_535}
    layer = Layer()
    for name, size in sizes.items():
        layer.file(name, b"x", xattrs={"user.small": b"1", "user.large": os.urandom(size // 2) * 2})
    name = trial.load([layer.tar()])
    for driver in DRIVERS:
        tree = trial.show(name, driver)
        for path, size in sizes.items():
            found = {key: len(value) for key, value in tree[path.encode()].xattrs}
            large = {"user.large": size // 2 * 2} if driver == "erofs" else {}
            assert found == {"user.small": 1, **large}, driver
    left_out = [text for text in trial.heard.warnings if "extended attributes cannot be kept" in text]
    assert len(left_out) == 2, "one for each driver that unpacks onto a disk of less room"
    trial.leaves_nothing()


@pytest.mark.hostile(5)
def test_a_capability_that_is_none_is_no_trouble(trial: Trial) -> None:
    bad = {"security.capability": b"\1" * 20, "user.kept": b"1"}
    name = trial.load([Layer().file("f", b"x", xattrs=bad).symlink("k", "f").tar()])
    for driver in DRIVERS:
        path = trial.folder / "shown"
        trial.store.prepare(name, path, driver=driver, mount=True)
        try:
            assert os.getxattr(path / "f", "user.kept") == b"1"
            (path / "g").write_bytes(b"x")
            assert trial.store.get(path).commit("localhost/committed").name
        finally:
            trial.store.get(path).cleanup()
    trial.leaves_nothing()


# ------------------------------------------------------------------ 41


STEERING = {
    "trusted.overlay.opaque": b"y",
    "trusted.overlay.redirect": b"/etc",
    "trusted.overlay.metacopy": b"",
    "trusted.overlay.whiteout": b"",
    "trusted.overlay.origin": b"\0\xfb\x1d\0" + bytes(25),
    "trusted.overlay.upper": b"\0\xfb\x1d\0" + bytes(25),
    "trusted.overlay.nlink": b"U+1",
    "trusted.overlay.impure": b"y",
    "trusted.overlay.overlay.opaque": b"y",
    "user.overlay.opaque": b"y",
    "user.overlay.redirect": b"/etc",
    "user.containers.override_stat": b"0:0:4755:file",
}


@pytest.mark.hostile(41)
def test_nothing_in_a_layer_steers_overlayfs(trial: Trial) -> None:
    layer = Layer().folder("d", xattrs=STEERING).file("d/n", b"x", xattrs=STEERING)
    layer.folder("d/s", xattrs={**STEERING, "trusted.overlay.opaque": b"x"}).folder("q", xattrs=STEERING)
    layer.file("q/f", b"xx", xattrs=STEERING).device("d/a", "char", 0, 0).device("q/w", "char", 0, 0)
    adds = {"d/n": "1", "q": "folder", "q/f": "2"}
    trial.turn = 1
    trial.shows([base().tar(), layer.tar()], {**BASE, **adds})
    assert [text for text in trial.heard.warnings if "a device 0/0 is left out" in text]


@pytest.mark.hostile(41)
def test_nor_does_what_a_container_writes_come_back_to_do_it(trial: Trial) -> None:
    layer = Layer().folder("d", xattrs=STEERING).file("d/n", b"x", xattrs=STEERING)
    name = trial.load([base().tar(), layer.tar()])
    path = trial.folder / "shown"
    for driver in ("erofs", "overlay"):
        trial.store.prepare(name, path, driver=driver, mount=True)
        os.chmod(path / "d/n", 0o600)
        committed = trial.store.get(path).commit().name
        trial.store.get(path).cleanup()
        tree = trial.show(committed, driver)
        assert dict(tree[b"d/n"].xattrs) == STEERING
        assert unlike({**BASE, "d/n": "1"}, shape(tree)) == []
    trial.leaves_nothing()
