"""What changed in an upper, beside a chain read without mounting it.

Here uppers are plain folders of the tests' own making.  Uppers that overlayfs made are
`tests/integration/test_commit_meaning.py`'s.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from orlop.erofs.reader import Image
from orlop.erofs.writer import build
from orlop.errors import Cancelled, FailedPrecondition
from orlop.layers.builder import IndexBuilder
from orlop.layers.chainview import ChainView
from orlop.layers.diff import changes
from orlop.layers.layerwrite import write_layer
from orlop.layers.merge import Merger
from orlop.layers.tarread import TarReader
from orlop.observe import Call, CancelToken, Progress
from support.layers import Layer

SECOND = 1_000_000_000
TIME = 1_600_000_000 * SECOND + 5


@dataclass
class Heard:
    warnings: list[str] = field(default_factory=list)

    def progress(self, event: Progress) -> None:
        pass

    def warning(self, text: str) -> None:
        self.warnings.append(text)


class Work:
    """A chain of one layer and an upper beside it; all owned by whoever runs the tests."""

    def __init__(self, folder: Path) -> None:
        self.me = {"uid": os.getuid(), "gid": os.getgid(), "mtime_ns": TIME}
        layer = Layer().folder("./", **self.me).folder("d", **self.me).file("d/a", b"alpha", **self.me)
        layer.file("d/b", b"bravo", **self.me).hardlink("d/c", to="d/b").symlink("l", "d", **self.me)
        layer.folder("d/s", **self.me).file("d/s/x", b"x" * 3000, **self.me).fifo("p", **self.me)
        data = layer.tar()
        tar = folder / "layer.tar"
        tar.write_bytes(data)
        builder = IndexBuilder()
        for entry in TarReader([data]):
            builder.add(entry)
        merger = Merger()
        merger.apply(builder.finish(len(data)), lambda data: 1)
        image = bytes(build(merger.finish(), devices=[len(data)], uuid=bytes(16)))
        self.view = ChainView([Image(image)])
        self.devices = [[tar]]
        self.upper = folder / "upper"
        self.upper.mkdir()
        self.heard = Heard()

    def same_times(self) -> None:
        """Give everything the layer's time, the deepest first."""
        for path in [*sorted(self.upper.rglob("*"), reverse=True), self.upper]:
            os.utime(path, ns=(0, TIME), follow_symlinks=False)

    def found(self, call: Call | None = None) -> dict[str, str]:
        """Each change as path -> what it is."""
        fd = os.open(self.upper, os.O_RDONLY)
        try:
            what = {}
            for change in changes(fd, self.view, self.devices, call=call or Call(observer=self.heard)):
                member = change.member
                kind = "gone" if change.whiteout else stat.filemode(member.mode)[0]
                kind = f"= {member.link.decode()}" if member.hard else kind
                what[member.path.decode()] = kind
            return what
        finally:
            os.close(fd)

    def write(self, before: Callable[[], object] = lambda: None) -> bytes:
        """The layer's tar; ``before`` runs between the look and the writing."""
        upper, out = os.open(self.upper, os.O_RDONLY), os.memfd_create("tar")
        try:
            call = Call(observer=self.heard)
            found = changes(upper, self.view, self.devices, call=call)
            before()
            written = write_layer(found, upper, out, self.view, self.devices, call=call)
            return os.pread(out, written.size, 0)
        finally:
            os.close(upper)
            os.close(out)


@pytest.fixture
def work(tmp_path: Path) -> Iterator[Work]:
    made = Work(tmp_path)
    os.chmod(made.upper, 0o755)
    made.same_times()
    yield made
    made.view.close()


def test_an_empty_upper_changes_nothing(work: Work) -> None:
    assert work.found() == {}


def test_a_copy_that_is_the_same_is_no_change(work: Work) -> None:
    (work.upper / "d/s").mkdir(parents=True)
    (work.upper / "d/a").write_bytes(b"alpha")
    (work.upper / "l").symlink_to("d")
    os.mkfifo(work.upper / "p", 0o644)
    for path, mode in (("d", 0o755), ("d/s", 0o755), ("d/a", 0o644), ("p", 0o644)):
        (work.upper / path).chmod(mode)
    work.same_times()
    assert work.found() == {}


@pytest.mark.parametrize(
    ("content", "mtime_ns", "mode", "differs"),
    [
        (b"alpha", TIME, 0o644, False),
        (b"ALPHA", TIME, 0o644, True),
        (b"alph", TIME, 0o644, True),
        (b"alpha", TIME + 1, 0o644, True),
        (b"alpha", TIME, 0o600, True),
    ],
)
def test_content_mode_and_time_make_a_change(
    work: Work, content: bytes, mtime_ns: int, mode: int, differs: bool
) -> None:
    (work.upper / "d").mkdir(mode=0o755)
    path = work.upper / "d/a"
    path.write_bytes(content)
    path.chmod(mode)
    work.same_times()
    os.utime(path, ns=(0, mtime_ns))
    expected = {"": "d", "d": "d", "d/a": "-"} if differs else {}
    assert work.found() == expected


@pytest.mark.parametrize("target", ["e", "dd"])
def test_a_symlinks_target_makes_a_change(work: Work, target: str) -> None:
    (work.upper / "l").symlink_to(target)
    work.same_times()
    assert work.found() == {"": "d", "l": "l"}


def test_whiteouts_of_what_is_there(work: Work) -> None:
    (work.upper / "d").mkdir()
    for name in ("d/a", "d/s", "p", "d/nothing"):
        os.mknod(work.upper / name, stat.S_IFCHR, 0)
    work.same_times()
    assert work.found() == {"": "d", "d": "d", "d/a": "gone", "d/s": "gone", "p": "gone"}


def test_a_folder_over_what_is_none_and_the_reverse(work: Work) -> None:
    (work.upper / "d").mkdir()
    (work.upper / "d/s").write_bytes(b"")
    (work.upper / "l").mkdir()
    (work.upper / "l/new").mkdir()
    work.same_times()
    assert work.found() == {"": "d", "d": "d", "d/s": "-", "l": "d", "l/new": "d"}


def test_names_of_one_file_come_together(work: Work) -> None:
    (work.upper / "d").mkdir()
    (work.upper / "d/a").write_bytes(b"alpha")
    os.link(work.upper / "d/a", work.upper / "d/n")
    os.link(work.upper / "d/a", work.upper / "m")
    work.same_times()
    assert work.found() == {"": "d", "d": "d", "d/a": "-", "d/n": "= d/a", "m": "= d/a"}


def test_what_cannot_be_kept_is_told(work: Work) -> None:
    (work.upper / ".wh.x").mkdir()
    (work.upper / ".wh.x/f").touch()
    (work.upper / ".wh..wh..opq").touch()
    os.mknod(work.upper / "sock", stat.S_IFSOCK | 0o600)
    work.same_times()
    assert work.found() == {}
    assert sorted(work.heard.warnings) == [
        "/.wh..wh..opq is left out: its name means a whiteout",
        "/.wh.x is left out: its name means a whiteout",
        "/sock is left out: a socket",
    ]


def test_links_in_the_upper_are_not_followed(work: Work, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "file").write_bytes(b"secret")
    (work.upper / "out").symlink_to(secret)
    (work.upper / "d").symlink_to(secret)
    data = work.write()
    assert b"secret" not in data.replace(os.fsencode(secret), b"")


def test_the_tar_is_the_same_each_time(work: Work) -> None:
    for number in range(50):
        (work.upper / f"f{number}").write_bytes(b"%d" % number * number)
    assert work.write() == work.write()


# ------------------------------------------------------------------ an upper that is in use


def swap(path: Path, make: Callable[[Path], object]) -> None:
    path.unlink()
    make(path)


RACES: dict[str, Callable[[Path], object]] = {
    "longer": lambda path: path.write_bytes(b"n" * 200),
    "shorter": lambda path: path.write_bytes(b"n"),
    "a symlink": lambda path: swap(path, lambda path: path.symlink_to("/etc/passwd")),
    "a fifo": lambda path: swap(path, os.mkfifo),
    "gone": lambda path: path.unlink(),
    "in another folder": lambda path: path.parent.rename(path.parent.with_name("elsewhere")),
    "below a symlink": lambda path: (
        path.parent.rename(path.parent.with_name("elsewhere")),
        path.parent.symlink_to("elsewhere"),
    ),
}


@pytest.mark.parametrize("race", RACES)
def test_a_file_that_changes_while_it_is_read_is_named(work: Work, race: str) -> None:
    (work.upper / "n").mkdir()
    path = work.upper / "n/file"
    path.write_bytes(b"n" * 100)
    with pytest.raises(FailedPrecondition, match="/n/file changed while it was read"):
        work.write(lambda: RACES[race](path))


def test_a_cancelled_call_stops(work: Work) -> None:
    token = CancelToken()
    token.cancel()
    with pytest.raises(Cancelled):
        work.found(Call(cancel=token))


def test_depth_and_length_do_not_stop_it(work: Work) -> None:
    fd = os.open(work.upper, os.O_RDONLY)
    for _ in range(150):
        os.mkdir("n" * 100, dir_fd=fd)
        deeper = os.open("n" * 100, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = deeper
    with open(os.open("bottom", os.O_WRONLY | os.O_CREAT, dir_fd=fd), "wb") as file:
        file.write(b"deep down")
    os.close(fd)
    open_files = len(os.listdir("/proc/self/fd"))
    data = work.write()
    assert len(os.listdir("/proc/self/fd")) == open_files
    assert b"deep down" in data
