"""Checks of what can be written to a root, and of commits upon commits."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

from orlop.testing.conformance import expect
from orlop.testing.conformance.abilities import ALL
from orlop.testing.conformance.bench import Bench, bind_socket
from orlop.testing.conformance.meaning import ODD_NAMES, SPARSE_SIZE
from orlop.testing.conformance.model import apply, changed, without
from orlop.testing.conformance.samples import FILE, house, plain
from orlop.testing.conformance.trees import restoring_times
from orlop.testing.layers import SECOND, Layer

__all__ = [
    "changes_upon_changes_are_kept",
    "new_entries_of_every_kind_are_kept",
    "odd_names_are_written",
    "sockets_are_left_out",
    "sparse_files_are_written",
    "times_are_kept",
    "what_a_mode_cannot_show_is_kept",
    "xattrs_are_kept",
]


# ------------------------------------------------------------------ what an entry can be


def new_entries_of_every_kind_are_kept(bench: Bench) -> None:
    """New files, folders, links, hard links, FIFOs and devices are kept with all that they are."""

    def change(top: Path) -> None:
        new = top / "new"
        new.mkdir()
        (new / "file").write_bytes(FILE)
        (new / "file").chmod(0o4711 if bench.can.chown else 0o711)
        os.link(new / "file", top / "d/twin")
        (new / "link").symlink_to("file")
        os.link(new / "link", new / "link2", follow_symlinks=False)
        os.mkfifo(new / "pipe", 0o640)
        if bench.can.mknod:
            os.mknod(new / "char", stat.S_IFCHR | 0o600, os.makedev(5, 300))
            os.mknod(new / "block", stat.S_IFBLK | 0o640, os.makedev(259, 70000))
        (new / "deep").mkdir()
        (new / "deep/er").mkdir(mode=0o750)

    if not bench.can.mknod:
        bench.leave_out("devices")
    if not bench.can.chown:
        bench.leave_out("set-id bits, and that an owner may not")
    bench.kept(bench.image(plain()), change)


def xattrs_are_kept(bench: Bench) -> None:
    """Xattrs set, changed and removed are what the commit has, of files and of folders."""
    image = bench.image(house())
    spaces = [space for space in ("trusted.new",) if bench.can.holds(space)]
    if not spaces:
        bench.leave_out("xattrs trusted")

    def change(top: Path) -> None:
        os.setxattr(top / "d/b", "user.long", b"v" * 1000)
        os.setxattr(top / "d/b", "user.binary", bytes(range(256)))
        os.setxattr(top / "d/a", "user.x", b"changed")
        os.removexattr(top / "d", "user.on")
        os.setxattr(top / "d/s", "user.folder", b"")
        for name in spaces:
            os.setxattr(top / "d/b", name, b"t")

    with bench.root(bench.kept(image, change)) as root:
        found = {path: dict(entry.xattrs) for path, entry in root.tree().items()}
        expect.equal(found[b"d/a"].get("user.x"), b"changed", "the xattr that was changed")
        expect.true("user.on" not in found[b"d"], "the xattr that was removed is gone")
        expect.equal(len(found[b"d/b"]["user.long"]), 1000, "the size of the long one")
        expect.equal(found[b"d/s"]["user.folder"], b"", "the empty one of a folder")


def times_are_kept(bench: Bench) -> None:
    """Times that are set, to the nanosecond and before 1970, are what the commit has."""
    times = {
        "d/a": -5 * SECOND - 7,
        "d": 123_456_789_012_345_678,
        "d/l": 3,
        "new": 2**33 * SECOND + 1,
        "d/s": 0,
    }

    def change(top: Path) -> None:
        (top / "new").mkdir()
        for name, moment in times.items():
            os.utime(top / name, ns=(0, moment), follow_symlinks=False)

    with bench.root(bench.kept(bench.image(plain()), change)) as root:
        tree = root.tree()
        found = {name: tree[name.encode()].mtime_ns for name in times}
        expect.equal(found, times, "the times")


def odd_names_are_written(bench: Bench) -> None:
    """Whatever bytes a name has, it can be written, deleted and committed."""
    image = bench.image(Layer().folder("./").folder("d").file("d/" + "o" * 255).file(b"d/\xff old: "))

    def change(top: Path) -> None:
        for name in ODD_NAMES:
            folder = os.path.join(os.fsencode(top), b"d", name)
            os.mkdir(folder)
            os.symlink(name, os.path.join(folder, name))
        os.unlink(os.path.join(os.fsencode(top), b"d/\xff old: "))
        (top / "d" / ("o" * 255)).unlink()

    bench.kept(
        bench.kept(image, change),
        lambda top: shutil.rmtree(os.path.join(os.fsencode(top), b"d", ODD_NAMES[0])),
    )


def sparse_files_are_written(bench: Bench) -> None:
    """A file with holes, and a lower one that is cut, grown or written at its end, is kept."""
    layer = Layer().folder("./").sparse("sparse", SPARSE_SIZE // 4, (1 << 20, b"s" * 512))
    layer.file("cut", FILE).file("grown", FILE)

    def change(top: Path) -> None:
        with (top / "sparse").open("r+b") as file:
            file.seek(SPARSE_SIZE // 2)
            file.write(b"the end")
        with (top / "new").open("wb") as file:
            file.truncate(SPARSE_SIZE // 2)
        os.truncate(top / "cut", 7)
        os.truncate(top / "grown", 100_000)

    bench.kept(bench.image(layer), change)


def sockets_are_left_out(bench: Bench) -> None:
    """A unix socket can be bound in a root; a commit leaves it out, and what it took the place of is gone."""
    with bench.root(bench.image(plain())) as root:
        (root.top / "d/a").unlink()
        bind_socket(root.top / "d", "a")
        bind_socket(root.top, "socket")
        before = root.tree()
        expect.equal(before[b"socket"].kind, "socket", "what was bound")
        committed = root.commit()
        bench.same(root.tree(), before, "the root after its commit")
    bench.shows(committed, without(before, b"socket", b"d/a"), "the commit of a root with sockets")


# ------------------------------------------------------------------ all together


def changes_upon_changes_are_kept(bench: Bench) -> None:
    """Six commits, each upon the one before, each of which shows what its root showed."""
    image = bench.image(house())

    def step(number: int) -> Callable[[Path], None]:
        def change(top: Path) -> None:
            (top / f"new{number}").write_bytes(b"%d" % number)
            (top / "d/a").write_bytes(b"%d" % number)
            if number:
                (top / f"new{number - 1}").unlink()
            if number % 2:
                (top / "d/s/x").unlink()
                (top / "d/s").rmdir()
            else:
                (top / "d/s").mkdir(exist_ok=True)
                (top / "d/s/x").write_bytes(b"again")
            (top / "d").chmod(0o700 + number)

        return change

    for number in range(6):
        image = bench.kept(image, step(number))
    expect.equal(len(bench.diff_ids(image)), 7, "the number of layers")


def what_a_mode_cannot_show_is_kept(bench: Bench) -> None:
    """Owners, set-id bits, devices and xattrs that the mode cannot represent are in the commit all the same.

    Asked of the commit's layers, so in every mode it is the whole truth that is compared.
    """
    image, moment = bench.image(house()), 12 * SECOND + 5
    touched = ("su", "none", "null", "disk", "pipe", "link")
    with bench.root(image) as root:
        top, restore = root.top, restoring_times(root.top, "d")
        with (top / "d/a").open("ab") as file:
            file.write(b"appended")
        (top / "d/s/new").write_bytes(b"new")
        (top / "d/s/new").chmod(0o640)
        restore()
        for name in (*touched, "d/a", "d/s/new", "d/s", "."):
            os.utime(top / name, ns=(moment, moment), follow_symlinks=False)
        committed = root.commit()
    xattrs = {"user.x": b"y"}
    if bench.can.holds("trusted.t"):
        xattrs["trusted.t"] = b"u"
    else:
        bench.leave_out("xattrs trusted of files that are written")
    change = Layer().folder("./", mode=0o751, mtime_ns=moment)
    change.file("d/a", FILE + b"appended", uid=7, gid=8, mtime_ns=moment, xattrs=xattrs)
    change.folder("d/s", mode=0o700, mtime_ns=moment)
    change.file("d/s/new", b"new", mode=0o640, mtime_ns=moment)
    expected = apply([house(), change])
    for name in touched:
        expected = changed(expected, name.encode(), mtime_ns=moment)
    bench.same(bench.meaning(committed), expected, "the commit's layers", can=ALL)
