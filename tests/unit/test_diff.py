"""What changed in an upper, beside a chain read without mounting it.

Here uppers are plain folders of the tests' own making.  Uppers that overlayfs made are
`tests/integration/test_commit_meaning.py`'s.
"""

from __future__ import annotations

import io
import os
import stat
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from orlop.erofs.reader import Image
from orlop.erofs.writer import build
from orlop.errors import Cancelled, FailedPrecondition
from orlop.layers.builder import IndexBuilder
from orlop.layers.chainview import ChainView
from orlop.layers.changes import Change, MovedAway
from orlop.layers.diff import changes
from orlop.layers.excludes import Excludes
from orlop.layers.layerwrite import write_layer
from orlop.layers.merge import Merger
from orlop.layers.reshape import clamped, rebased, squashed
from orlop.layers.tarread import TarReader
from orlop.observe import Call, CancelToken, Progress
from orlop.spec.digest import DiffID
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

    def __init__(self, folder: Path, layer: Layer | None = None) -> None:
        self.me = {"uid": os.getuid(), "gid": os.getgid(), "mtime_ns": TIME}
        data = (layer or self.usual()).tar()
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

    def usual(self) -> Layer:
        layer = Layer().folder("./", **self.me).folder("d", **self.me).file("d/a", b"alpha", **self.me)
        layer.file("d/b", b"bravo", **self.me).hardlink("d/c", to="d/b").symlink("l", "d", **self.me)
        return layer.folder("d/s", **self.me).file("d/s/x", b"x" * 3000, **self.me).fifo("p", **self.me)

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

    def write(
        self,
        before: Callable[[], object] = lambda: None,
        *,
        excludes: Excludes | None = None,
        shape: Callable[[list[Change]], list[Change]] = lambda found: found,
        drop: bool = False,
    ) -> bytes:
        """The layer's tar; ``before`` runs between the look and the writing."""
        upper, out = os.open(self.upper, os.O_RDONLY), os.memfd_create("tar")
        try:
            call = Call(observer=self.heard)
            found = changes(upper, self.view, self.devices, excludes=excludes, call=call)
            before()
            written = write_layer(shape(found), upper, out, self.view, self.devices, drop=drop, call=call)
            assert os.fstat(out).st_size == written.size
            data = os.pread(out, written.size, 0)
            assert written.diff_id == DiffID.of(data)
            builder = IndexBuilder()
            for entry in TarReader([data]):
                builder.add(entry)
            assert builder.finish(len(data)).encode() == written.index.encode()
            return data
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


def contents(data: bytes) -> dict[str, bytes]:
    """The regular files of a tar."""
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        files = {member.name: tar.extractfile(member) for member in tar if member.isreg()}
        return {name: file.read() for name, file in files.items() if file is not None}


RACES: dict[str, Callable[[Path], object]] = {
    "longer": lambda path: path.write_bytes(b"N" * 200),
    "shorter": lambda path: path.write_bytes(b"N"),
    "as long": lambda path: path.write_bytes(b"N" * 100),
    "another": lambda path: swap(path, lambda path: path.write_bytes(b"N" * 50)),
    "empty": lambda path: path.write_bytes(b""),
}


@pytest.mark.parametrize("race", RACES)
def test_a_file_that_has_changed_since_it_was_seen_is_written_as_it_is_now(work: Work, race: str) -> None:
    (work.upper / "n").mkdir()
    path = work.upper / "n/file"
    path.write_bytes(b"n" * 100)
    (work.upper / "n/z").write_bytes(b"z")
    data = work.write(lambda: RACES[race](path))
    assert contents(data) == {"n/file": path.read_bytes(), "n/z": b"z"}
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        assert tar.getmember("n/file").mtime == pytest.approx(path.stat().st_mtime)


class Restless:
    """`os.read`, under which a file changes for the first ``times`` that it is read."""

    def __init__(self, path: Path, times: int, size: int = 70_000) -> None:
        self.path, self.left, self.size, self.read = path, times, size, os.read

    def __call__(self, fd: int, size: int) -> bytes:
        data = self.read(fd, size)
        if self.left and os.path.samestat(os.fstat(fd), self.path.stat()):
            self.left -= 1
            self.path.write_bytes(b"%d" % self.left * self.size)
        return data


@pytest.mark.parametrize("size", [1, 511, 60_000, 1 << 20, 3_000_000])
@pytest.mark.parametrize("then", [1, 70_000, 2_500_000])
def test_a_file_that_changes_while_it_is_read_is_read_again(
    work: Work, size: int, then: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "m", "z"):
        (work.upper / name).write_bytes(name.encode() * size)
    monkeypatch.setattr(os, "read", Restless(work.upper / "m", 2, then))
    found = contents(work.write())
    assert found == {"a": b"a" * size, "m": b"0" * then, "z": b"z" * size}


def test_a_file_that_changes_each_time_is_named(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    (work.upper / "m").write_bytes(b"m" * 60_000)
    monkeypatch.setattr(os, "read", Restless(work.upper / "m", 1_000))
    with pytest.raises(FailedPrecondition, match=r"/m changed while it was read, 4 times.*freeze"):
        work.write()


GOING: dict[str, Callable[[Path], object]] = {
    "a symlink": lambda path: swap(path, lambda path: path.symlink_to("/etc/passwd")),
    "a fifo": lambda path: swap(path, os.mkfifo),
    "gone": lambda path: path.unlink(),
    "in another folder": lambda path: path.parent.rename(path.parent.with_name("elsewhere")),
    "below a symlink": lambda path: (
        path.parent.rename(path.parent.with_name("elsewhere")),
        path.parent.symlink_to("elsewhere"),
    ),
}


@pytest.mark.parametrize("race", GOING)
def test_a_file_that_goes_away_before_it_is_read_is_named_or_left_out(work: Work, race: str) -> None:
    (work.upper / "n").mkdir()
    path = work.upper / "n/file"
    path.write_bytes(b"n" * 100)
    with pytest.raises(MovedAway, match=r"/n/file went away while it was read.*freeze"):
        work.write(lambda: GOING[race](path))
    if race == "gone":
        path.write_bytes(b"n" * 100)
        assert contents(work.write(path.unlink, drop=True)) == {}
        assert work.heard.warnings == ["/n/file is left out: it is gone since it was seen"]


@pytest.mark.parametrize("lost", ["d/a", "n"], ids=["the chain has one, too", "another name links to it"])
def test_a_file_that_others_need_is_not_left_out(work: Work, lost: str) -> None:
    (work.upper / "d").mkdir()
    (work.upper / "d/a").write_bytes(b"new")
    (work.upper / "n").write_bytes(b"n")
    os.link(work.upper / "n", work.upper / "o")
    with pytest.raises(MovedAway):
        work.write((work.upper / lost).unlink, drop=True)


def test_a_name_that_becomes_something_else_between_two_looks_is_looked_at_again(
    work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    (work.upper / "n").mkdir()
    (work.upper / "n/inside").write_bytes(b"inside")
    (work.upper / "s").symlink_to("x")
    acts = {"n": lambda path: path.rename(work.upper.parent / "away"), "s": lambda path: path.unlink()}
    real = os.stat

    def stat_then_act(path, *args, **options):  # type: ignore[no-untyped-def]  # os.stat's own
        about = real(path, *args, **options)
        name = os.fsdecode(path) if isinstance(path, (bytes, str)) else ""
        if options.get("dir_fd") is not None and name in acts:
            acts.pop(name)(work.upper / name)
        return about

    monkeypatch.setattr(os, "stat", stat_then_act)
    assert work.found() == {"": "d"}


def test_names_of_a_file_that_was_replaced_are_not_linked_to_the_new_one(work: Work) -> None:
    first = work.upper / "n"
    first.write_bytes(b"old")
    os.link(first, work.upper / "o")
    for drop in (False, True):
        with pytest.raises(MovedAway, match=r"/[no] went away"):
            work.write(lambda: swap(first, lambda path: path.write_bytes(b"new")), drop=drop)
        first.unlink()
        os.link(work.upper / "o", first)


@pytest.mark.root
@pytest.mark.parametrize("moment", ["open", "listdir", "next stat"])
def test_a_folder_that_is_made_anew_while_it_is_looked_at_never_shows_what_was_in_it(
    work: Work, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = work.upper / "d"
    folder.mkdir()
    for name in "abc":
        os.mknod(folder / name, stat.S_IFCHR, 0)
    acts: list[Callable[[], None]] = []

    def anew() -> None:
        """What overlayfs does where a folder is taken away and another made: it exchanges the two."""
        new = work.upper.parent / "new"
        new.mkdir()
        os.setxattr(new, "trusted.overlay.opaque", b"y")
        folder.rename(work.upper.parent / "was")
        new.rename(folder)
        for path in (work.upper.parent / "was").iterdir():
            path.unlink()
        (work.upper.parent / "was").rmdir()

    def then(name: str, wanted: bytes) -> None:
        real = getattr(os, name)

        def call(path, *args, **options):  # type: ignore[no-untyped-def]  # os's own
            if acts and wanted in (path, os.fsencode(path) if isinstance(path, str) else path):
                acts.pop()()
            return real(path, *args, **options)

        monkeypatch.setattr(os, name, call)

    if moment == "listdir":
        real = os.listdir
        monkeypatch.setattr(
            os, "listdir", lambda fd: (acts.pop()() if acts and listed(fd) else None, real(fd))[1]
        )
    else:
        then(*(("open", b"d") if moment == "open" else ("stat", b"b")))

    def listed(fd: int) -> bool:
        return os.path.samestat(os.fstat(fd), folder.stat())

    acts.append(anew)
    if moment == "next stat":
        with pytest.raises(MovedAway, match="/d/b went away"):
            work.found()
    assert work.found() == {"": "d", "d": "d", "d/a": "gone", "d/b": "gone", "d/c": "gone", "d/s": "gone"}
    assert not acts


# ------------------------------------------------------------------ what is left out


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        (["n"], ["", "d", "d/a", "d/x"]),
        (["n/*"], ["", "d", "d/a", "d/x", "n"]),
        (["d"], ["", "n", "n/a", "n/b"]),
        (["d/a", "n"], ["", "d", "d/x"]),
        (["*"], [""]),
        (["n", "!n/a"], ["", "d", "d/a", "d/x", "n", "n/a"]),
        (["*", "!d/x"], ["", "d", "d/x"]),
        (["*", "!n/b"], ["", "n", "n/b"]),
    ],
    ids=str,
)
def test_what_is_excluded_stays_as_the_chain_has_it(
    work: Work, patterns: list[str], expected: list[str]
) -> None:
    (work.upper / "d").mkdir(mode=0o700)
    (work.upper / "d/a").write_bytes(b"new")
    (work.upper / "d/x").write_bytes(b"x")
    (work.upper / "n").mkdir()
    (work.upper / "n/a").write_bytes(b"linked")
    os.link(work.upper / "n/a", work.upper / "n/b")
    data = work.write(excludes=Excludes.parse(patterns))
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        assert [member.name.removeprefix(".") for member in tar] == expected
        if "d" not in patterns and "*" not in patterns:
            assert tar.getmember("d").mode == 0o700
        if patterns[-1] == "!d/x":
            assert (tar.getmember("d").mode, tar.getmember("d").mtime) == (0o755, TIME / SECOND)
        if patterns[-1] == "!n/b":
            assert (tar.getmember("n/b").isreg(), tar.getmember("n/b").size) == (True, 6)


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        (["d/*"], []),
        (["d/a"], ["", "d", "d/.wh.b", "d/.wh.c", "d/.wh.s"]),
        (["d/s/x"], ["", "d", "d/.wh.a", "d/.wh.b", "d/.wh.c"]),
        (["d", "!d/a"], ["", "d", "d/.wh.a"]),
        (["d", "!d/s/x"], ["", "d", "d/s", "d/s/.wh.x"]),
        (["**/x", "!d/s"], ["", ".wh.d"]),
        (["d"], []),
        (["n"], ["", ".wh.d"]),
    ],
    ids=str,
)
def test_what_is_excluded_in_a_folder_that_is_gone_stays(
    work: Work, patterns: list[str], expected: list[str]
) -> None:
    os.mknod(work.upper / "d", stat.S_IFCHR, 0)
    work.same_times()
    data = work.write(excludes=Excludes.parse(patterns))
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        assert ["" if member.name == "." else member.name for member in tar] == expected


# ------------------------------------------------------------------ other shapes


def test_later_times_become_the_newest_and_earlier_ones_stay(work: Work) -> None:
    newest = TIME // SECOND + 100
    for name, time in (("early", newest - 1), ("same", newest), ("late", newest + 1)):
        (work.upper / name).write_bytes(b"x")
        os.utime(work.upper / name, ns=(0, time * SECOND))
    os.link(work.upper / "late", work.upper / "linked")
    os.utime(work.upper, ns=(0, newest * SECOND + 1))
    data = work.write(shape=lambda found: clamped(found, newest))
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        times = {member.name: member.mtime for member in tar}
    assert times == {".": newest, "early": newest - 1, "late": newest, "linked": newest, "same": newest}


def test_squashed_changes_are_the_whole_tree(work: Work) -> None:
    (work.upper / "d").mkdir()
    (work.upper / "d/b").write_bytes(b"changed")  # one of the two names of an inode
    (work.upper / "d/s").write_bytes(b"a file now")
    (work.upper / "l").mkdir()
    (work.upper / "l/in").write_bytes(b"in")
    os.mknod(work.upper / "p", stat.S_IFREG)
    data = work.write(shape=lambda found: squashed(found, work.view))
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        kinds = {member.name: (member.type, member.linkname) for member in tar}
    assert kinds == {
        ".": (b"5", ""),
        "d": (b"5", ""),
        "d/a": (b"0", ""),
        "d/b": (b"0", ""),
        "d/c": (b"0", ""),
        "d/s": (b"0", ""),
        "l": (b"5", ""),
        "l/in": (b"0", ""),
        "p": (b"0", ""),
    }
    assert contents(data) == {
        "d/a": b"alpha",
        "d/b": b"changed",
        "d/c": b"bravo",
        "d/s": b"a file now",
        "l/in": b"in",
        "p": b"",
    }


def test_a_chain_squashed_keeps_its_hard_links(work: Work) -> None:
    data = work.write(shape=lambda _: squashed([], work.view))
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        assert [member.name for member in tar] == [".", "d", "d/a", "d/b", "d/c", "d/s", "d/s/x", "l", "p"]
        assert (tar.getmember("d/c").type, tar.getmember("d/c").linkname) == (b"1", "d/b")
        assert tar.getmember("d/s/x").size == 3000


@pytest.mark.parametrize(
    ("act", "mode"),
    [
        (lambda path: os.utime(path, ns=(0, TIME)), 0o711),
        (lambda path: os.utime(path, ns=(0, TIME + SECOND)), 0o711),
        (lambda path: path.chmod(0o700), 0o700),
    ],
    ids=["as it was", "another time", "another mode"],
)
def test_rebased_changes_have_the_folders_of_the_new_chain_and_hide_what_is_there(
    work: Work, tmp_path: Path, act: Callable[[Path], object], mode: int
) -> None:
    (tmp_path / "other").mkdir()
    other = Work(tmp_path / "other", Layer().folder("./").folder("d", mode=0o711).file("d/a", b"other"))
    try:
        (work.upper / "d/s").mkdir(parents=True)
        work.same_times()
        (work.upper / "d/s/new").write_bytes(b"new")
        os.utime(work.upper / "d/s", ns=(0, TIME))
        for name in ("a", "b"):
            os.mknod(work.upper / "d" / name, stat.S_IFCHR)
        act(work.upper / "d")
        data = work.write(shape=lambda found: rebased(found, work.view, other.view))
    finally:
        other.view.close()
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        found = {member.name: member.mode for member in tar}
    assert found == {".": 0o755, "d": mode, "d/.wh.a": 0, "d/s": 0o755, "d/s/new": 0o644}


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
