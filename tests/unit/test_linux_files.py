"""Files by descriptor: durable writes, safe lookups, removal of trees."""

from __future__ import annotations

import errno
import os
import resource
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from orlop.linux import files


@pytest.fixture
def root(tmp_path: Path) -> Iterator[int]:
    """An image's root, with a secret beside it."""
    (tmp_path / "secret").write_text("outside")
    top = tmp_path / "root"
    (top / "etc").mkdir(parents=True)
    (top / "etc" / "passwd").write_text("inside")
    (top / "secret").write_text("inside")
    fd = os.open(top, os.O_RDONLY | os.O_DIRECTORY)
    yield fd
    os.close(fd)


def read(fd: int) -> bytes:
    with open(fd, "rb") as file:
        return file.read()


@pytest.mark.parametrize(
    ("link", "target"),
    [
        ("a", "/etc/passwd"),
        ("b", "../../../secret"),
        ("c", "/../secret"),
        ("etc/d", "../../secret"),
        ("etc/e", "/etc/../secret"),
    ],
)
def test_a_symlink_in_an_image_never_leads_out_of_it(root: int, link: str, target: str) -> None:
    os.symlink(target, link, dir_fd=root)
    assert read(files.open_in_root(root, link)) == b"inside"
    assert read(files.open_in_root(root, os.fsencode("/" + link))) == b"inside"


def test_a_magic_link_is_not_followed(root: int, tmp_path: Path) -> None:
    with (tmp_path / "secret").open() as file:
        os.symlink(f"/proc/self/fd/{file.fileno()}", "link", dir_fd=root)
        with pytest.raises(FileNotFoundError):
            files.open_in_root(root, "link")
        proc = os.open("/proc", os.O_RDONLY)
        try:
            with pytest.raises(OSError, match="symbolic links") as caught:
                files.open_in_root(proc, f"self/fd/{file.fileno()}")
            assert caught.value.errno == errno.ELOOP
        finally:
            os.close(proc)


@pytest.mark.parametrize("kind", ["fifo", "folder", "socket"])
def test_what_is_no_regular_file_is_refused_without_waiting(root: int, kind: str) -> None:
    if kind == "folder":
        os.mkdir("x", dir_fd=root)
    else:
        os.mknod("x", 0o600 | (stat.S_IFIFO if kind == "fifo" else stat.S_IFSOCK), dir_fd=root)
    before = os.listdir("/proc/self/fd")
    for opener in (files.open_in_root, files.open_beneath):
        with pytest.raises(OSError, match="not a regular file"):
            opener(root, "x")
    assert os.listdir("/proc/self/fd") == before


@pytest.mark.parametrize("target", ["etc/passwd", "/etc/passwd", "../secret", "/proc/self/fd/0", "x"])
def test_beneath_a_folder_no_symlink_is_followed_wherever_it_stands(root: int, target: str) -> None:
    os.symlink(target, "x", dir_fd=root)
    os.symlink("etc", "way", dir_fd=root)
    assert read(files.open_beneath(root, "etc/passwd")) == b"inside"
    for name in ("x", "way/passwd", "x/y"):
        with pytest.raises(OSError, match=r"Too many levels|not a regular file"):
            files.open_beneath(root, name)
    for name in ("../secret", "/etc/passwd", "etc/../../secret"):
        with pytest.raises(OSError, match="cross-device"):
            files.open_beneath(root, name)


def test_a_durable_write_replaces_whole_and_leaves_no_other_name(tmp_path: Path) -> None:
    path = tmp_path / ("n" * 255)
    files.write_durably(path, b"one")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with path.open("rb") as old:
        files.write_durably(path, b"two" * 1_000_000, mode=0o666)
        assert old.read() == b"one"
    assert path.read_bytes() == b"two" * 1_000_000
    assert stat.S_IMODE(path.stat().st_mode) == 0o666  # whatever the umask
    assert os.listdir(tmp_path) == [path.name]


def test_a_failed_durable_write_keeps_the_old_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError):
        files.write_durably(tmp_path / "folder", b"data")
    with pytest.raises(FileNotFoundError):
        files.write_durably(tmp_path / "missing" / "file", b"data")
    assert os.listdir(tmp_path) == ["folder"]


def test_a_folder_can_be_synced_by_path_and_by_descriptor(tmp_path: Path) -> None:
    files.fsync_dir(tmp_path)
    fd = os.open(tmp_path, os.O_RDONLY)
    files.fsync_dir(fd)
    os.close(fd)
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError):
        files.fsync_dir(tmp_path / "file")


def test_writeback_can_be_started(tmp_path: Path) -> None:
    with (tmp_path / "file").open("wb", buffering=0) as file:
        file.write(bytes(100_000))
        files.sync_range(file.fileno(), 0, 100_000)
    reader, writer = os.pipe()
    with pytest.raises(OSError, match="seek"):
        files.sync_range(writer, 0, 1)
    os.close(reader)
    os.close(writer)


@pytest.mark.parametrize(
    ("resolve", "code"), [(files.RESOLVE_BENEATH, errno.EXDEV), (files.RESOLVE_NO_SYMLINKS, errno.ELOOP)]
)
def test_openat2_reports_the_rule_that_a_path_breaks(root: int, resolve: int, code: int) -> None:
    os.symlink("../secret", "link", dir_fd=root)
    with pytest.raises(OSError, match="link") as caught:
        files.openat2(root, "link", os.O_RDONLY | os.O_CLOEXEC, resolve=resolve)
    assert caught.value.errno == code


@pytest.mark.parametrize("size", [0, 1, 3_000_000])
def test_a_range_is_copied_to_its_place(tmp_path: Path, size: int) -> None:
    data = os.urandom(size)
    (tmp_path / "src").write_bytes(b"head" + data + b"tail")
    with (tmp_path / "src").open("rb") as src, (tmp_path / "dst").open("wb") as dst:
        files.copy_range(src.fileno(), 4, dst.fileno(), 7, size)
    assert (tmp_path / "dst").read_bytes() == (bytes(7) + data if size else b"")


def test_a_range_is_copied_where_the_kernel_will_not(tmp_path: Path) -> None:
    # /proc's files say they are empty, so copy_file_range(2) copies nothing.
    wanted = Path("/proc/self/cmdline").read_bytes()
    with open("/proc/self/cmdline", "rb") as src, (tmp_path / "dst").open("wb") as dst:
        files.copy_range(src.fileno(), 0, dst.fileno(), 0, len(wanted))
    assert (tmp_path / "dst").read_bytes() == wanted


def test_a_source_that_ends_early_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "src").write_bytes(b"1234")
    with (
        (tmp_path / "src").open("rb") as src,
        (tmp_path / "dst").open("wb") as dst,
        pytest.raises(OSError, match="ends 6 bytes early") as caught,
    ):
        files.copy_range(src.fileno(), 0, dst.fileno(), 0, 10)
    assert caught.value.errno == errno.EIO


def make_tree(top: Path) -> None:
    for folder in ("a/b/c", "a/empty", "d"):
        (top / folder).mkdir(parents=True)
        (top / folder / "file").write_text("x")
    (top / "a" / "empty" / "file").unlink()
    os.mkfifo(top / "fifo")
    (top / "odd").mkdir()
    with open(os.fsencode(top) + b"/odd/\xff\n", "wb"):
        pass


def test_a_tree_is_removed_and_what_its_links_point_at_stays(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").touch()
    top = tmp_path / "top"
    make_tree(top)
    (top / "link").symlink_to(outside)
    (top / "a" / "link").symlink_to("../../outside/kept")
    files.remove_tree(top)
    assert sorted(os.listdir(tmp_path)) == ["outside"]
    assert os.listdir(outside) == ["kept"]


def test_a_tree_is_removed_by_name_below_a_descriptor(tmp_path: Path) -> None:
    make_tree(tmp_path / "top")
    fd = os.open(tmp_path, os.O_RDONLY)
    files.remove_tree(b"top", dir_fd=fd)
    with pytest.raises(OSError, match="not the name"):
        files.remove_tree("a/b", dir_fd=fd)
    os.close(fd)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("kind", ["file", "link", "empty", "link to a folder"])
def test_a_tree_may_be_a_single_thing(tmp_path: Path, kind: str) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "kept").touch()
    top = tmp_path / "top"
    if kind == "file":
        top.touch()
    elif kind == "empty":
        top.mkdir()
    else:
        top.symlink_to("other" if "folder" in kind else "nowhere")
    files.remove_tree(top)
    assert os.listdir(tmp_path) == ["other"]
    assert os.listdir(tmp_path / "other") == ["kept"]


def test_a_missing_tree_is_an_error_unless_that_is_fine(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        files.remove_tree(tmp_path / "missing")
    files.remove_tree(tmp_path / "missing", missing_ok=True)
    files.remove_tree(tmp_path / "nor" / "this", missing_ok=True)


@pytest.mark.parametrize("name", ["", ".", "..", "x/.."])
def test_a_name_that_is_not_its_own_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(OSError, match="not the name of a tree"):
        files.remove_tree(f"{tmp_path}/{name}" if name != "" else "")


def deepen(top: Path, depth: int) -> None:
    """A chain of folders far past PATH_MAX, each with a file and a side folder that is not empty."""
    fd = os.open(top, os.O_RDONLY)
    for level in range(depth):
        os.mkdir("n" * 100, dir_fd=fd)
        os.close(os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
        if level % 10 == 0:
            os.makedirs(f"/proc/self/fd/{fd}/side/below")
        below = os.open("n" * 100, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(fd)


def test_a_tree_deeper_than_path_max_is_removed_with_few_descriptors(tmp_path: Path) -> None:
    top = tmp_path / "top"
    top.mkdir()
    (top / ".remove-0").mkdir()  # a name that the removal would use itself
    (top / ".remove-0" / "file").touch()
    (top / ".remove-1").touch()
    deepen(top, 400)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 60, hard))
    before = os.listdir("/proc/self/fd")
    try:
        files.remove_tree(top)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert os.listdir(tmp_path) == []
    assert os.listdir("/proc/self/fd") == before


def test_a_folder_with_more_names_than_a_batch_is_emptied(tmp_path: Path) -> None:
    top = tmp_path / "top"
    top.mkdir()
    for n in range(9_000):
        (top / str(n)).touch()
    files.remove_tree(top)
    assert os.listdir(tmp_path) == []


def test_folders_that_deny_their_owner_are_removed(tmp_path: Path) -> None:
    """As root this shows nothing; tests/integration runs it as nobody."""
    top = tmp_path / "top"
    make_tree(top)
    for folder in ("a/b", "a", "d"):
        (top / folder).chmod(0o000 if folder == "d" else 0o400 if folder == "a" else 0o100)
    files.remove_tree(top)
    assert os.listdir(tmp_path) == []


def test_two_removals_of_one_tree_do_not_trip_over_each_other(tmp_path: Path) -> None:
    top = tmp_path / "top"
    for n in range(300):
        (top / str(n) / "below").mkdir(parents=True)
        (top / str(n) / "below" / "file").touch()
    failures: list[OSError] = []

    def remove() -> None:
        try:
            files.remove_tree(top, missing_ok=True)
        except OSError as exc:
            failures.append(exc)

    threads = [threading.Thread(target=remove) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert os.listdir(tmp_path) == []
