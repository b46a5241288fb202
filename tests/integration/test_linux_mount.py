"""Mounts against the real kernel.  Without root the mount room is tested only as far as it parses text."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from orlop.erofs.tree import Node
from orlop.erofs.writer import build
from orlop.linux import mount
from orlop.linux.mountinfo import mount_table, option_of, shown_at

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: no mount was made or probed"),
]

OVERLAY = ["xino=on", "index=off", "nfs_export=off", "metacopy=off", "redirect_dir=off"]
# What is no backing file for EROFS and no upper for an overlay.
UNFIT = {mount.TMPFS_MAGIC, mount.OVERLAYFS_MAGIC}


def unmount_below(top: Path) -> None:
    for entry in reversed(mount_table()):
        target = Path(os.fsdecode(entry.target))
        if target == top or top in target.parents:
            mount.umount(target, detach=True)


@pytest.fixture
def room(tmp_path: Path) -> Iterator[Path]:
    """A folder on a file system that takes uppers and EROFS images; unmounted afterwards."""
    folder = tmp_path / "room"
    folder.mkdir()
    if mount.filesystem_magic(tmp_path) in UNFIT:
        disk = tmp_path / "disk"
        with disk.open("wb") as file:
            file.truncate(64 << 20)
        subprocess.run(["mkfs.ext4", "-q", str(disk)], check=True)
        subprocess.run(["mount", "-o", "loop", str(disk), str(folder)], check=True)
    yield folder
    unmount_below(folder)


def folders(room: Path, *names: str) -> list[str]:
    made = []
    for name in names:
        (room / name).mkdir(parents=True)
        made.append(str(room / name))
    return made


@pytest.fixture
def overlay(room: Path) -> Path:
    lower, upper, work, merged = folders(room, "lower", "upper", "work", "merged")
    (room / "lower" / "below").write_text("below")
    options = [f"lowerdir={lower}", f"upperdir={upper}", f"workdir={work}", *OVERLAY]
    mount.perform("overlay", "overlay", merged, options)
    return room


def erofs_image(path: Path, tree: Path, uuid: str = "00112233-4455-6677-8899-aabbccddeeff") -> Path:
    subprocess.run(["mkfs.erofs", "--quiet", f"-U{uuid}", str(path), str(tree)], check=True)
    return path


def test_a_tmpfs_takes_its_options_and_attributes(room: Path) -> None:
    (target,) = folders(room, "t")
    mount.perform(
        "tmpfs", "mine", target, ["size=65536", "mode=0711", "nosuid", "noexec", "nodev", "noatime"]
    )
    entry = next(e for e in mount_table() if e.target == os.fsencode(target))
    assert (entry.type, entry.source) == ("tmpfs", b"mine")
    assert os.stat(target).st_mode & 0o7777 == 0o711
    vfs = os.statvfs(target)
    assert vfs.f_blocks * vfs.f_bsize == 65536
    wanted = os.ST_NOSUID | os.ST_NOEXEC | os.ST_NODEV | os.ST_NOATIME
    assert vfs.f_flag & (wanted | os.ST_RDONLY) == wanted
    assert mount.filesystem_magic(target) == mount.TMPFS_MAGIC


def test_a_read_only_tmpfs_refuses_writes(room: Path) -> None:
    (target,) = folders(room, "t")
    mount.perform("tmpfs", "tmpfs", target, ["ro"])
    with pytest.raises(OSError, match="Read-only"):
        (Path(target) / "x").touch()


@pytest.mark.parametrize("kind", ["proc", "sysfs", "devpts", "mqueue"])
def test_the_mounts_of_an_oci_bundle_can_be_made(room: Path, kind: str) -> None:
    (target,) = folders(room, "t")
    options = ["nosuid", "noexec"] + (
        ["newinstance", "ptmxmode=0666", "mode=0620"] if kind == "devpts" else []
    )
    mount.perform(kind, kind, target, options)
    assert mount.mounted_type(target) == kind


def test_a_bind_mount_shows_the_source_and_honours_ro(room: Path) -> None:
    source, target = folders(room, "s", "t")
    (Path(source) / "file").write_text("x")
    mount.perform("bind", source, target, ["bind", "ro", "nodev"])
    assert (Path(target) / "file").read_text() == "x"
    with pytest.raises(OSError, match="Read-only"):
        (Path(target) / "new").touch()
    (Path(source) / "new").touch()
    assert os.statvfs(target).f_flag & os.ST_NODEV


@pytest.mark.parametrize(("word", "seen"), [("bind", False), ("rbind", True)])
def test_only_rbind_takes_the_mounts_below(room: Path, word: str, seen: bool) -> None:
    source, inner, target = folders(room, "s", "s/inner", "t")
    mount.perform("tmpfs", "tmpfs", inner, [])
    (Path(inner) / "mark").touch()
    mount.perform("none", source, target, [word])
    assert (Path(target) / "inner" / "mark").exists() is seen


def test_a_file_can_be_bound_on_a_file(room: Path) -> None:
    source, target = room / "s", room / "t"
    source.write_text("source")
    target.write_text("target")
    mount.perform("bind", str(source), str(target), ["bind", "ro"])
    assert target.read_text() == "source"
    assert mount.is_mount_point(target)


@pytest.mark.parametrize(
    ("word", "shown"),
    [("shared", b"shared:"), ("rprivate", b""), ("rslave", b""), ("unbindable", b"unbindable")],
)
def test_propagation_words_are_obeyed(room: Path, word: str, shown: bytes) -> None:
    (target,) = folders(room, "t")
    mount.perform("tmpfs", "tmpfs", target, [word])
    line = next(x for x in Path("/proc/self/mountinfo").read_bytes().splitlines() if os.fsencode(target) in x)
    tags = line.partition(b" - ")[0].split(b" ")[6:]
    assert [tag.startswith(shown) for tag in tags if tag] == ([True] if shown else [])


def test_a_refused_option_leaves_nothing_mounted(room: Path) -> None:
    source, target = folders(room, "s", "t")
    with pytest.raises(OSError, match="option 'nosuch'"):
        mount.perform("tmpfs", "tmpfs", target, ["nosuch", "private"])
    with pytest.raises(OSError, match="no option 'size=1'"):
        mount.perform("bind", source, target, ["bind", "size=1"])
    assert not mount.is_mount_point(target)


def test_a_symlink_as_target_is_followed_and_unmounted_by_its_real_path(room: Path) -> None:
    (real,) = folders(room, "real")
    link = room / "link"
    link.symlink_to(real)
    mount.perform("tmpfs", "tmpfs", str(link), [])
    assert mount.mounted_type(real) == "tmpfs"
    assert not mount.is_mount_point(link)
    with pytest.raises(OSError, match="Invalid argument"):
        mount.umount(link)
    mount.umount(real)
    assert not mount.is_mount_point(real)


def test_an_overlay_shows_both_sides_and_writes_above(overlay: Path) -> None:
    merged = overlay / "merged"
    assert (merged / "below").read_text() == "below"
    (merged / "below").write_text("changed")
    assert (overlay / "upper" / "below").read_text() == "changed"
    assert (overlay / "lower" / "below").read_text() == "below"
    assert mount.mounted_type(merged) == "overlay"
    assert mount.filesystem_magic(merged) == mount.OVERLAYFS_MAGIC
    entry = next(e for e in mount_table() if e.target == os.fsencode(merged))
    assert entry.option(b"upperdir") == os.fsencode(overlay / "upper")


@pytest.mark.parametrize("userns", [False, True], ids=["root", "userxattr"])
def test_on_an_older_kernel_an_overlay_is_mounted_by_one_call(
    room: Path, monkeypatch: pytest.MonkeyPatch, userns: bool
) -> None:
    monkeypatch.setattr(mount, "kernel_version", lambda: (6, 1))
    one, two, upper, work = folders(room, "a:b", "c,d \\e", "upper,:x", "work,:x")
    (Path(one) / "top").write_text("1")
    (Path(two) / "bottom").write_text("2")
    options = [*OVERLAY[:-1], "userxattr"] if userns else OVERLAY
    fd = mount.mount_overlay(lowers=[one, two], upper=upper, work=work, options=options)
    try:
        assert sorted(os.listdir(f"/proc/self/fd/{fd}")) == ["bottom", "top"]
        os.unlink("bottom", dir_fd=fd)
        assert os.path.exists(f"{upper}/bottom")
        assert mount.upper_in_use(upper)
    finally:
        os.close(fd)
    fd = mount.mount_overlay(lowers=[one, two], upper=None, work=None, options=OVERLAY)
    try:
        with pytest.raises(OSError, match="Read-only"):
            os.mkdir("x", dir_fd=fd)
    finally:
        os.close(fd)
    assert "orlop-mount-" not in Path("/proc/self/mounts").read_text()


def test_three_hundred_lowers_are_stacked_in_order(room: Path) -> None:
    names = [f"lower-{n:03d}-{'x' * 60}" for n in range(300)]
    lowers = folders(room, *names)
    for n, lower in enumerate(lowers):
        (Path(lower) / "which").write_text(str(n))
        (Path(lower) / f"only-{n}").touch()
    (merged,) = folders(room, "merged")
    mount.perform("overlay", "overlay", merged, [f"lowerdir={':'.join(lowers)}", *OVERLAY])
    assert (Path(merged) / "which").read_text() == "0"
    assert sorted(os.listdir(merged)) == sorted(["which", *(f"only-{n}" for n in range(300))])


def test_layers_with_long_and_odd_paths_mount_and_show_their_true_upper(room: Path) -> None:
    deep = "/".join(["n" * 200] * 3)
    lower, upper, work, merged = folders(room, f"{deep}/a:b,c\\d", f"{deep}/up", f"{deep}/wk", "merged")
    (Path(lower) / "file").touch()
    escaped = lower.replace("\\", "\\\\").replace(":", "\\:")
    mount.perform("overlay", "o", merged, [f"lowerdir={escaped}", f"upperdir={upper}", f"workdir={work}"])
    assert os.listdir(merged) == ["file"]
    entry = next(e for e in mount_table() if e.target == os.fsencode(merged))
    assert entry.option(b"upperdir") == os.fsencode(upper)
    assert mount.upper_in_use(upper)


@pytest.mark.parametrize("count", [1, 300], ids=["few", "more-than-fits"])
def test_one_mount_is_told_of_as_the_table_tells_it(room: Path, count: int) -> None:
    names = [f"{number} {'x' * 60}" if count > 1 else "a, b\\c" for number in range(count)]
    lowers = folders(room, *names)
    upper, work, merged = folders(room, "up,per 1", "work", "merged")
    fd = mount.mount_overlay(lowers=lowers, upper=upper, work=work, options=OVERLAY)
    mount.move_mount(fd, merged)
    os.close(fd)
    entry = next(e for e in mount_table() if e.target == os.fsencode(merged))
    shown = shown_at(merged)
    assert shown is not None
    assert shown[0] == entry.type == "overlay"
    assert shown[1].removeprefix(b"rw,") == entry.options.removeprefix(b"rw,")
    assert option_of(shown[1], b"upperdir") == entry.option(b"upperdir") == os.fsencode(upper)
    proc = shown_at("/proc/self")
    assert proc is not None
    assert proc[0] == "proc"


def test_the_kernels_own_words_are_in_the_error(room: Path) -> None:
    (lower,) = folders(room, "lower")
    with pytest.raises(OSError, match="overlay: Unknown parameter") as caught:
        mount.mount_overlay(lowers=[lower], upper=None, work=None, options=["nosuch=1"])
    assert caught.value.errno == errno.EINVAL
    assert "Unknown parameter 'nosuch'" in str(caught.value)


def test_errors_name_the_path_they_are_about(room: Path) -> None:
    missing = str(room / "missing")
    for action in (
        lambda: mount.perform("tmpfs", "tmpfs", missing, []),
        lambda: mount.perform("bind", missing, str(room), ["bind"]),
        lambda: mount.umount(missing),
        lambda: mount.filesystem_magic(missing),
    ):
        with pytest.raises(FileNotFoundError, match=missing):
            action()


def test_an_unknown_file_system_is_named() -> None:
    with pytest.raises(OSError, match="no file system 'nosuchfs'") as caught:
        mount.FsContext("nosuchfs")
    assert caught.value.errno == errno.ENODEV


PATIENCE = 120.0  # seconds


def comes_to_rest(upper: Path | str, *, work: Path | str | None = None) -> bool:
    """Whether nothing uses it soon: another test's mount namespace, as it begins, has copies of all mounts."""
    end = time.monotonic() + PATIENCE
    while mount.upper_in_use(upper, work=work):
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


def test_a_detached_mount_dissolves_with_its_descriptor_and_is_close_on_exec(room: Path) -> None:
    lower, upper, work = folders(room, "lower", "upper", "work")
    fd = mount.mount_overlay(lowers=[lower], upper=upper, work=work, options=OVERLAY)
    assert not os.get_inheritable(fd)
    assert mount.upper_in_use(upper)
    os.close(fd)
    assert comes_to_rest(upper)


def test_no_descriptor_leaks_from_success_or_failure(room: Path) -> None:
    lower, upper, work, merged = folders(room, "lower", "upper", "work", "merged")
    before = os.listdir("/proc/self/fd")
    options = [f"lowerdir={lower}", f"upperdir={upper}", f"workdir={work}"]
    mount.perform("overlay", "o", merged, options)
    mount.upper_in_use(upper, work=work)
    mount.umount(merged)
    for target in (merged + "/missing", merged):
        with pytest.raises(OSError, match=r"No such file|bad"):
            mount.perform("overlay", "o", target, [*options, "bad=1"] if target == merged else options)
    assert os.listdir("/proc/self/fd") == before


@pytest.mark.parametrize("long", [False, True])
def test_an_erofs_image_file_is_mounted_without_a_loop_device(room: Path, long: bool) -> None:
    (tree, target) = folders(room, "tree", "target")
    (room / "tree" / "file").write_text("inside")
    folder = Path(*folders(room, "/".join(["n" * 200] * 2))) if long else room
    image = erofs_image(folder / "image", room / "tree")
    mount.perform("erofs", str(image), target, ["ro", "nosuid", "nodev", "noexec"])
    image.unlink()
    assert (Path(target) / "file").read_text() == "inside"
    assert b"/dev/loop" not in next(e for e in mount_table() if e.target == os.fsencode(target)).source
    assert mount.erofs_uuid(target) == bytes.fromhex("00112233445566778899aabbccddeeff")
    assert mount.filesystem_magic(target) == mount.EROFS_MAGIC
    assert tree


def test_an_erofs_mount_is_sealed_by_default(room: Path) -> None:
    tree, target = folders(room, "tree", "target")
    image = erofs_image(room / "image", Path(tree))
    fd = mount.mount_erofs(image, [])
    mount.move_mount(fd, target)
    os.close(fd)
    sealed = os.ST_RDONLY | os.ST_NOSUID | os.ST_NODEV | os.ST_NOEXEC
    assert os.statvfs(target).f_flag & sealed == sealed


def test_erofs_devices_are_given_in_order(room: Path) -> None:
    (target,) = folders(room, "target")
    data = os.urandom(20_480)
    (room / "first").write_bytes(bytes(512))
    (room / "second").write_bytes(data)
    top, file = Node(stat.S_IFDIR | 0o755), Node(stat.S_IFREG | 0o644, size=len(data), device=2)
    top.children = {b"file": file}
    image = room / "image"
    image.write_bytes(build(top, devices=[512, len(data)], uuid=bytes(16)))
    devices = [f"device={room / name}" for name in ("first", "second")]
    mount.perform("erofs", str(image), target, devices)
    assert (Path(target) / "file").read_bytes() == data
    mount.umount(target)
    # The kernel does not miss a device: this is why chains are always mounted with all of theirs.
    mount.perform("erofs", str(image), target, [])
    with pytest.raises(OSError, match="Input/output"):
        (Path(target) / "file").read_bytes()


def test_the_uuid_is_that_of_the_mount_at_the_path_and_of_nothing_else(room: Path) -> None:
    _, sub, target = folders(room, "tree", "tree/sub", "target")
    image = erofs_image(room / "image", room / "tree")
    assert mount.erofs_uuid(target) is None
    assert mount.erofs_uuid(room / "missing") is None
    mount.perform("erofs", str(image), target, [])
    assert mount.erofs_uuid(target) is not None
    assert mount.erofs_uuid(Path(target) / "sub") is None
    (room / "link").symlink_to(target)
    assert mount.erofs_uuid(room / "link") is None
    mount.perform("tmpfs", "tmpfs", target, [])
    assert mount.erofs_uuid(target) is None
    mount.umount(target)
    mount.umount(target)
    assert mount.erofs_uuid(target) is None
    assert sub


def test_an_image_on_tmpfs_is_enotblk(room: Path) -> None:
    (memory,) = folders(room, "memory")
    mount.perform("tmpfs", "tmpfs", memory, [])
    image = erofs_image(room / "memory" / "image", room)
    with pytest.raises(OSError, match="erofs") as caught:
        mount.mount_erofs(image, [])
    assert caught.value.errno == errno.ENOTBLK


def test_an_idle_upper_is_idle_and_probing_leaves_no_trace(room: Path) -> None:
    upper, work = folders(room, "upper", "work")
    before = os.stat(upper)
    assert not mount.upper_in_use(upper)
    assert not mount.upper_in_use(upper, work=work)
    assert os.listdir(upper) == os.listdir(work) == os.listxattr(upper) == []
    assert (os.stat(upper).st_mtime_ns, os.stat(upper).st_ctime_ns) == (
        before.st_mtime_ns,
        before.st_ctime_ns,
    )


def test_a_mounted_upper_is_in_use_until_unmounted(overlay: Path) -> None:
    assert mount.upper_in_use(overlay / "upper")
    assert mount.upper_in_use(overlay / "work")  # the kernel marks both
    mount.umount(overlay / "merged")
    assert comes_to_rest(overlay / "upper", work=overlay / "work")


def test_a_lazily_unmounted_overlay_is_in_use_until_its_last_file_closes(overlay: Path) -> None:
    with (overlay / "merged" / "below").open("rb"):
        with pytest.raises(OSError, match="busy"):
            mount.umount(overlay / "merged")
        mount.umount(overlay / "merged", detach=True)
        assert not mount.is_mount_point(overlay / "merged")
        assert mount.upper_in_use(overlay / "upper", work=overlay / "work")
    assert comes_to_rest(overlay / "upper", work=overlay / "work")


def test_an_overlay_in_another_mount_namespace_is_in_use(room: Path) -> None:
    lower, upper, work, merged = folders(room, "lower", "upper", "work", "merged")
    options = f"lowerdir={lower},upperdir={upper},workdir={work}"
    script = 'mount -t overlay o -o "$0" "$1" && echo mounted && read line'
    command = ["unshare", "-m", "--propagation", "slave", "sh", "-c", script, options, merged]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        assert child.stdout.readline() == b"mounted\n"
        assert not mount.is_mount_point(merged)
        assert mount.upper_in_use(upper, work=work)
        child.stdin.close()
    assert comes_to_rest(upper, work=work)


def test_the_work_folder_tells_on_an_upper_that_a_probe_had_hidden(overlay: Path) -> None:
    # An overlay that lost the race against a probe has marked only its work folder.  Another upper
    # shares the work folder here, with the same effect.
    (other,) = folders(overlay, "other")
    assert not mount.upper_in_use(other)
    assert mount.upper_in_use(other, work=overlay / "work")


@pytest.mark.parametrize(("what", "reason"), [("missing", "No such file"), ("file", "not a directory")])
def test_a_probe_of_what_is_no_folder_is_an_error_not_an_answer(room: Path, what: str, reason: str) -> None:
    (room / "file").touch()
    with pytest.raises(OSError, match=reason):
        mount.upper_in_use(room / what)


def test_a_probe_of_an_unfit_file_system_is_an_error_not_an_answer(overlay: Path) -> None:
    with pytest.raises(OSError, match="not supported as upperdir"):
        mount.upper_in_use(overlay / "merged")


def test_lowers_may_lie_in_a_detached_erofs_mount(room: Path) -> None:
    tree, upper, work, merged, base = folders(room, "tree/root", "upper", "work", "merged", "base")
    (Path(tree) / "file").write_text("x")
    image = erofs_image(room / "image", room / "tree")
    mount.perform("erofs", str(image), base, ["ro"])
    options = [f"lowerdir={base}/root", f"upperdir={upper}", f"workdir={work}", *OVERLAY]
    mount.perform("overlay", "overlay", merged, options)
    mount.umount(base, detach=True)
    assert (Path(merged) / "file").read_text() == "x"
    mount.umount(merged)
    with pytest.raises(OSError, match="No such file"):
        mount.perform("overlay", "overlay", merged, options)


def test_mount_attributes_are_changed_in_place(room: Path) -> None:
    (target,) = folders(room, "t")
    mount.perform("tmpfs", "tmpfs", target, [])
    mount.mount_setattr(target, set=mount.MOUNT_ATTR_RDONLY | mount.MOUNT_ATTR_NOATIME)
    assert os.statvfs(target).f_flag & (os.ST_RDONLY | os.ST_NOATIME) == os.ST_RDONLY | os.ST_NOATIME
    mount.mount_setattr(target, clear=mount.MOUNT_ATTR_RDONLY)
    (Path(target) / "x").touch()


def test_a_mount_can_be_taken_back_by_its_descriptor(room: Path) -> None:
    """What `perform` does when a propagation word is refused after the mount is in place."""
    (target,) = folders(room, "t")
    with mount.FsContext("tmpfs") as context:
        context.create()
        fd = context.mount()
    mount.move_mount(fd, target)
    mount.umount(f"/proc/self/fd/{fd}", detach=True, nofollow=False)
    os.close(fd)
    assert not mount.is_mount_point(target)


# Root gives itself up after its imports, as nobody may be unable to read the interpreter's folders.
IN_USER_NAMESPACE = """
import ctypes, os, sys
from orlop.linux import mount
os.chdir(sys.argv[1])
os.setgroups([]); os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)
libc = ctypes.CDLL(None, use_errno=True)
libc.prctl(4, 1, 0, 0, 0)  # PR_SET_DUMPABLE, to own /proc/self again
assert libc.unshare(0x10000000 | 0x20000) == 0, os.strerror(ctypes.get_errno())  # NEWUSER, NEWNS
for name, text in (("setgroups", "deny"), ("uid_map", "0 65534 1"), ("gid_map", "0 65534 1")):
    with open(f"/proc/self/{name}", "w") as file:
        file.write(text)
options = ["lowerdir=lower", "upperdir=upper", "workdir=work", "userxattr", "xino=on"]
mount.perform("overlay", "overlay", "merged", options)
open("merged/file", "w").close()
print(os.getuid(), mount.upper_in_use("upper"), mount.upper_in_use("work"), os.listdir("upper"))
mount.umount("merged")
print(mount.upper_in_use("upper", work="work"))
"""


def test_overlays_and_the_probe_work_in_a_user_namespace(room: Path) -> None:
    folders(room, "lower", "upper", "work", "merged")
    for name in ("", "lower", "upper", "work", "merged"):
        os.chown(room / name, 65534, 65534)
    for folder in (room.parent, room.parent.parent):
        folder.chmod(0o711)  # pytest's folders are root's alone
    done = subprocess.run(
        [sys.executable, "-c", IN_USER_NAMESPACE, str(room)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "0 True True ['file']\nFalse\n", done.stderr
