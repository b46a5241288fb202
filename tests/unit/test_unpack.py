"""Copies that are written to folders: where they go, and that no name in them leads anywhere else."""

from __future__ import annotations

import contextlib
import os
import stat
import threading
from pathlib import Path

import pytest

from orlop.errors import Error, FailedPrecondition, InvalidArgument, NotFound
from orlop.images.browsing.hostcopy import put
from orlop.images.browsing.localtar import tar_of_path
from orlop.layers.tardata import END, padding, sparse_header
from orlop.layers.tarwrite import Member, headers
from orlop.observe import Call, Progress

REG, DIR, LNK = stat.S_IFREG | 0o644, stat.S_IFDIR | 0o755, stat.S_IFLNK | 0o777


class Heard:
    def __init__(self) -> None:
        self.warnings: list[str] = []

    def progress(self, event: Progress) -> None:
        pass

    def warning(self, text: str) -> None:
        self.warnings.append(text)


def entry(path: bytes, data: bytes = b"", mode: int = REG, **more: object) -> bytes:
    member = Member(path=path, mode=mode, size=len(data), **more)  # type: ignore[arg-type]
    return headers(member) + data + padding(len(data))


def hard(path: bytes, to: bytes) -> bytes:
    return headers(Member(path=path, mode=REG, link=to, hard=True))


def unpacked(dest: Path | str, *entries: bytes, archive: bool = False) -> list[str]:
    """Unpack a tar of these; the warnings."""
    heard = Heard()
    put([*entries, END], os.fsencode(dest), archive=archive, attempted="copy", call=Call(observer=heard))
    return heard.warnings


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """What must not be touched."""
    place = tmp_path / "outside"
    place.mkdir()
    (place / "file").write_bytes(b"precious")
    return place


def untouched(outside: Path) -> bool:
    return {path.name: path.read_bytes() for path in outside.iterdir()} == {"file": b"precious"}


# ------------------------------------------------------------------ where it goes


def test_a_file_goes_into_a_folder_or_to_the_name(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    for dest, made in (("d", "d/f"), ("d/", "d/f"), ("new", "new"), ("d/f", "d/f"), ("d/g", "d/g")):
        unpacked(f"{tmp_path}/{dest}", entry(b"f", dest.encode()))
        assert (tmp_path / made).read_bytes() == dest.encode()


def test_a_folder_goes_into_a_folder_or_becomes_one_and_its_content_too(tmp_path: Path) -> None:
    folder = (entry(b"s", mode=DIR), entry(b"s/f", b"1"))
    content = (entry(b".", mode=stat.S_IFDIR | 0o700), entry(b"f", b"2"))
    (tmp_path / "d").mkdir(mode=0o755)
    unpacked(tmp_path / "d", *folder)
    unpacked(tmp_path / "new", *folder)
    unpacked(tmp_path / "d", *content)
    unpacked(tmp_path / "other", *content)
    found = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")}
    assert found == {"d", "d/s", "d/s/f", "d/f", "new", "new/f", "other", "other/f"}
    assert stat.S_IMODE((tmp_path / "d").stat().st_mode) == 0o755  # it was there, and is not what is copied
    assert stat.S_IMODE((tmp_path / "other").stat().st_mode) == 0o700


@pytest.mark.parametrize(
    ("dest", "entries", "error"),
    [
        ("none/x", [entry(b"f")], NotFound),
        ("none/", [entry(b"f")], NotFound),
        ("file", [entry(b"s", mode=DIR)], FailedPrecondition),
        ("file/x", [entry(b"f")], NotFound),
        ("d", [entry(b"sub", b"a file")], FailedPrecondition),
        ("d", [entry(b"file", mode=DIR)], FailedPrecondition),
        ("d", [], InvalidArgument),
        ("new", [entry(b"s", mode=DIR), b"x" * 512], InvalidArgument),
    ],
)
def test_what_cannot_go_there_is_an_error(
    tmp_path: Path, dest: str, entries: list[bytes], error: type[Error]
) -> None:
    (tmp_path / "d" / "sub").mkdir(parents=True)
    (tmp_path / "d" / "file").write_bytes(b"1")
    (tmp_path / "file").write_bytes(b"2")
    with pytest.raises(error):
        unpacked(f"{tmp_path}/{dest}", *entries)
    assert (tmp_path / "d" / "sub").is_dir()
    assert (tmp_path / "file").read_bytes() == b"2"


def test_the_users_own_symlink_is_followed_and_no_device_replaced(tmp_path: Path, outside: Path) -> None:
    (tmp_path / "link").symlink_to(outside)
    (tmp_path / "to-file").symlink_to("real")
    (tmp_path / "null").symlink_to(os.devnull)
    unpacked(tmp_path / "link", entry(b"f", b"in"))
    unpacked(tmp_path / "to-file", entry(b"f", b"real"))
    assert (outside / "f").read_bytes() == b"in"
    assert (tmp_path / "to-file").is_symlink()
    assert (tmp_path / "real").read_bytes() == b"real"
    with pytest.raises(FailedPrecondition, match="a device or a socket is in the way"):
        unpacked(tmp_path / "null", entry(b"f", b"x"))


# ------------------------------------------------------------------ nowhere else


@pytest.mark.hostile(1, 4, 6, 8)
@pytest.mark.parametrize(
    "entries",
    [
        [entry(b"s", mode=DIR), entry(b"s/l", mode=LNK, link=b"../../outside"), entry(b"s/l/evil", b"x")],
        [entry(b"s", mode=DIR), entry(b"s/l", mode=LNK, link=b"/"), entry(b"s/l", mode=DIR), entry(b"s/l/x")],
        [entry(b"s", mode=LNK, link=b"../outside"), entry(b"s/file", b"x")],
        [entry(b"s", mode=DIR), entry(b"s/../../outside/file", b"x")],
        [entry(b"../outside/file", b"x")],
        [entry(b"s", mode=DIR), hard(b"s/h", b"../outside/file"), entry(b"s/h", b"x")],
        [entry(b"s", mode=DIR), entry(b"s/l", mode=LNK, link=b"../../outside"), hard(b"s/h", b"s/l/file")],
        [entry(b"s", mode=DIR), hard(b"s/h", b"s")],
        [entry(b"s", mode=DIR), hard(b"s/h", b"s/none")],
        [entry(b".", mode=LNK, link=b"../outside"), entry(b"./file", b"x")],
    ],
)
def test_no_name_in_a_copy_leads_out_of_its_destination(
    tmp_path: Path, outside: Path, entries: list[bytes]
) -> None:
    (tmp_path / "d").mkdir()
    with pytest.raises(Error):
        unpacked(tmp_path / "d", *entries)
    assert untouched(outside)


@pytest.mark.hostile(5)
def test_metadata_of_a_link_go_to_the_link_and_of_what_was_there_to_nobody(
    tmp_path: Path, outside: Path
) -> None:
    before = (outside / "file").stat()
    os.link(outside / "file", tmp_path / "hard")  # in the way: replaced, not written through
    unpacked(
        tmp_path,
        entry(b".", mode=DIR),
        entry(b"l", mode=LNK, link=b"outside/file", mtime=5, uid=7, gid=8),
        entry(b"hard", b"new", mode=stat.S_IFREG | 0o600, mtime=6),
        archive=os.geteuid() == 0,
    )
    after = (outside / "file").stat()
    assert (after.st_mode, after.st_uid, after.st_mtime_ns) == (
        before.st_mode,
        before.st_uid,
        before.st_mtime_ns,
    )
    assert untouched(outside)
    assert (tmp_path / "hard").read_bytes() == b"new"
    assert (tmp_path / "l").lstat().st_mtime == 5


@pytest.mark.hostile(1, 2)
def test_a_symlink_in_the_destination_is_never_gone_through(tmp_path: Path, outside: Path) -> None:
    (tmp_path / "d" / "s").mkdir(parents=True)
    (tmp_path / "d" / "s" / "sub").symlink_to(outside)
    (tmp_path / "d" / "s" / "file").symlink_to(outside / "file")
    with pytest.raises(FailedPrecondition, match="a symlink is in the way of the folder s/sub"):
        unpacked(
            tmp_path / "d",
            entry(b"s", mode=DIR),
            entry(b"s/file", b"ours"),
            entry(b"s/sub", mode=DIR),
            entry(b"s/sub/file", b"x"),
        )
    assert untouched(outside)
    assert (tmp_path / "d" / "s" / "file").read_bytes() == b"ours"


@pytest.mark.hostile(2)
def test_a_folder_swapped_for_a_symlink_meanwhile_leads_nowhere(tmp_path: Path, outside: Path) -> None:
    place, stop = tmp_path / "d", threading.Event()
    (place / "s").mkdir(parents=True)

    def swap() -> None:
        while not stop.is_set():
            with contextlib.suppress(OSError):
                os.rename(place / "s", place / "t")
                os.symlink(outside, place / "s")
                os.unlink(place / "s")
                os.rename(place / "t", place / "s")

    swapper = threading.Thread(target=swap, daemon=True)
    swapper.start()
    try:
        for _ in range(60):
            with contextlib.suppress(Error):
                unpacked(place, entry(b"s", mode=DIR), *(entry(b"s/%d" % n, b"x") for n in range(8)))
    finally:
        stop.set()
        swapper.join(10)
    assert untouched(outside)


@pytest.mark.hostile(42)
def test_paths_of_any_depth_and_odd_names_are_written(tmp_path: Path) -> None:
    deep = b"/".join([b"s", *([b"n" * 255] * 40)])
    folders = [deep[: 1 + 256 * level] for level in range(41)]
    unpacked(
        tmp_path,
        *(entry(folder, mode=DIR) for folder in folders),
        entry(deep + b"/\xff\n", b"odd"),
        hard(b"s/twin", deep + b"/\xff\n"),
    )
    assert (tmp_path / "s" / "twin").read_bytes() == b"odd"
    assert (tmp_path / "s" / "twin").stat().st_nlink == 2


# ------------------------------------------------------------------ what of it counts


def test_without_archive_nothing_gives_rights(tmp_path: Path) -> None:
    warned = unpacked(
        tmp_path,
        entry(b".", mode=DIR),
        entry(b"suid", b"x", mode=stat.S_IFREG | 0o6755, uid=5, gid=6),
        entry(b"cap", b"x", xattrs=((b"security.capability", b"1"), (b"user.note", b"kept"))),
        entry(b"dev", mode=stat.S_IFCHR | 0o666, rdev=os.makedev(1, 3)),
        headers(Member(path=b"pipe", mode=stat.S_IFIFO | 0o640)),
    )
    about = (tmp_path / "suid").stat()
    assert (stat.S_IMODE(about.st_mode), about.st_uid) == (0o755, os.geteuid())
    assert "security.capability" not in os.listxattr(tmp_path / "cap")
    assert not (tmp_path / "dev").exists()
    assert stat.S_IMODE((tmp_path / "pipe").stat().st_mode) == 0o640
    assert "dev is left out: a device (--archive makes it, as root)" in warned


def test_further_names_of_what_is_left_out_are_left_out_too(tmp_path: Path) -> None:
    (tmp_path / "dev").write_bytes(b"was there")
    device = entry(b"dev", mode=stat.S_IFCHR | 0o666, rdev=os.makedev(1, 3))
    links = hard(b"twin", to=b"dev"), hard(b"third", to=b"twin")
    warned = unpacked(tmp_path, entry(b".", mode=DIR), device, *links, entry(b"z", b"last"))
    assert [text.split(" is left out")[0] for text in warned] == ["dev", "twin", "third"]
    assert sorted(os.listdir(tmp_path)) == ["dev", "z"]
    assert (tmp_path / "dev").stat().st_nlink == 1
    unpacked(tmp_path, entry(b".", mode=DIR), device, entry(b"dev", b"a file after all"), links[0])
    assert (tmp_path / "twin").read_bytes() == b"a file after all"


def test_a_hard_link_to_what_is_not_there_says_so(tmp_path: Path) -> None:
    for target in (b"away/file", b"away"):
        with pytest.raises(InvalidArgument, match=r"h is a hard link to away.*, which is not there"):
            unpacked(tmp_path, entry(b".", mode=DIR), hard(b"h", to=target))


def test_holes_stay_holes_both_ways(tmp_path: Path) -> None:
    member = Member(path=b"big", mode=REG, size=1 << 32)
    data = [(0, 4096), (1 << 31, 4096)]
    unpacked(tmp_path, sparse_header(member, data), b"a" * 4096, b"b" * 4096)
    about = (tmp_path / "big").stat()
    assert (about.st_size, about.st_blocks * 512 < 1 << 20) == (1 << 32, True)
    again = b"".join(tar_of_path(os.fsencode(tmp_path / "big"), call=Call()))
    assert len(again) < 1 << 16
    unpacked(tmp_path / "again", again[: -len(END)])
    with open(tmp_path / "again", "rb") as file:
        file.seek(1 << 31)
        assert file.read(4097) == b"b" * 4096 + b"\0"


def test_a_copy_that_is_cancelled_stops(tmp_path: Path) -> None:
    call = Call()
    call.cancel.cancel()
    with pytest.raises(Error, match="cancelled"):
        put([entry(b"f", b"x"), END], os.fsencode(tmp_path), archive=False, attempted="copy", call=call)
    assert list(tmp_path.iterdir()) == []
