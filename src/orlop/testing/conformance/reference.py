"""A fixed change to a fixed image: one diff ID in every driver and every mode.

`reference_change` is what to do to a root of `reference_image`'s; all of it can be done without any
privilege.  Its commit's diff IDs are facts of a check's report, for whoever compares drivers and modes, and
so are the IDs of images that were committed at one time: the image must be the one that root of the machine
would have got.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from orlop.testing.conformance import expect
from orlop.testing.conformance.bench import Bench
from orlop.testing.conformance.samples import CAPABILITY, FILE
from orlop.testing.layers import MTIME, SECOND, Layer

__all__ = [
    "FACT",
    "reference_change",
    "reference_image",
    "the_same_change_gives_the_same_layer",
]

FACT = "reference diff IDs"
_EPOCH = 1_000_000_000  # seconds since 1970: before any time of the change
_MOMENT = MTIME + 86_400 * SECOND


def reference_image() -> list[Layer]:
    """The layers to start from: owners, modes, devices and xattrs among them that not every mode can show."""
    base = Layer().folder("./", mode=0o755, mtime_ns=SECOND)
    base.folder("etc", mode=0o750, uid=7, gid=8).file("etc/conf", FILE, uid=7, gid=8, mode=0o640)
    base.file("etc/shadow", b"secret", mode=0o400, gid=42).symlink("etc/link", "conf", uid=7)
    base.folder("bin").file("bin/su", b"#!su", mode=0o4755).file("bin/tool", b"#!tool", mode=0o755)
    base.file("bin/ping", b"#!", mode=0o755, xattrs={"security.capability": CAPABILITY})
    base.folder("dev").device("dev/null", "char", 1, 3, mode=0o666).fifo("dev/pipe", gid=5)
    base.folder("old", gid=9).file("old/a", b"a").folder("old/s").file("old/s/b", b"b", uid=3)
    base.file("data", b"data", xattrs={"user.k": b"v", "trusted.k": b"w"}).hardlink("bin/data", "data")
    top = Layer().file("etc/motd", b"hello\n").whiteout("old/a").file("kind", b"a file").folder("var/log")
    return [base, top]


def reference_change(top: Path) -> None:
    """Change a root of the reference image; every time is set in the end, so the result is a constant."""
    with (top / "etc/conf").open("ab") as file:
        file.write(b"appended\n")
    (top / "etc/motd").chmod(0o600)
    (top / "bin/tool").rename(top / "bin/moved")
    (top / "etc/link").unlink()
    shutil.rmtree(top / "old")
    (top / "old").mkdir()
    (top / "old/s").write_bytes(b"a file now")
    (top / "kind").unlink()
    (top / "kind").mkdir()
    (top / "kind/file").write_bytes(b"in a folder")
    (top / "kind/link").symlink_to("file")
    os.link(top / "kind/file", top / "kind/twin")
    os.mkfifo(top / "kind/pipe")
    os.setxattr(top / "kind/file", "user.new", b"\0binary\xff")
    for name, mode in (
        ("old", 0o755),
        ("old/s", 0o644),
        ("kind", 0o711),
        ("kind/file", 0o640),
        ("kind/pipe", 0o622),
    ):
        (top / name).chmod(mode)
    for name in (
        "etc/conf",
        "bin/moved",
        "old/s",
        "kind/file",
        "kind/link",
        "kind/pipe",
        "kind",
        "old",
        "etc",
        "bin",
        ".",
    ):
        os.utime(top / name, ns=(_MOMENT, _MOMENT), follow_symlinks=False)


def the_same_change_gives_the_same_layer(bench: Bench) -> None:
    """The same change gives the same diff ID, of one root twice and of another; the report tells it."""
    image = bench.image(*reference_image())
    found = []
    for _ in range(2):
        with bench.root(image) as root:
            reference_change(root.top)
            commits = [root.commit(), root.commit()]
            flat = root.prepared.commit(created=_EPOCH, squash=True)
            early = root.prepared.commit(created=_EPOCH, newest=_EPOCH)
            before = root.tree()
        found += [[*bench.diff_ids(commit), flat.id, early.id] for commit in commits]
    expect.equal(len({tuple(each) for each in found}), 1, "the number of different commits")
    expect.equal(flat.layers, 1, "the layers of a squashed commit")
    bench.shows(commits[0], before, "the commit")
    bench.shows(flat.name, before, "the squashed commit")
    bench.facts[FACT] = found[0]
