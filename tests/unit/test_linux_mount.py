"""What of mounting is text: options, lowerdir, mountinfo.  The mounts are in tests/integration."""

from __future__ import annotations

import errno
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orlop.linux import mount
from orlop.linux.mountinfo import MountEntry, mount_id_of, mount_namespace, mount_table, parse_mountinfo


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], mount.MountOptions()),
        (["defaults", "x-initrd.mount", "rw"], mount.MountOptions()),
        (["ro", "nosuid"], mount.MountOptions(attrs=mount.MOUNT_ATTR_RDONLY | mount.MOUNT_ATTR_NOSUID)),
        (["ro", "rw"], mount.MountOptions()),
        (["rw", "ro"], mount.MountOptions(attrs=mount.MOUNT_ATTR_RDONLY)),
        (["noatime", "relatime"], mount.MountOptions()),
        (["bind"], mount.MountOptions(bind=True)),
        (["noexec", "exec", "dev", "suid", "nosuid"], mount.MountOptions(attrs=2, cleared=4 | 8)),
        (
            ["rbind", "rprivate"],
            mount.MountOptions(bind=True, recursive=True, propagation=((1 << 18, True),)),
        ),
        (["size=1m", "noexec", "huge=never"], mount.MountOptions(attrs=8, data=("size=1m", "huge=never"))),
    ],
)
def test_options_are_sorted_by_who_takes_them(options: list[str], expected: mount.MountOptions) -> None:
    assert mount.parse_options(options) == expected


@pytest.mark.parametrize("option", ["", "remount"])
def test_options_that_mean_another_call_are_refused(option: str) -> None:
    with pytest.raises(OSError, match="not supported") as caught:
        mount.parse_options(["ro", option])
    assert caught.value.errno == errno.EINVAL


def test_values_keep_their_order_and_their_equals_signs() -> None:
    options = mount.parse_options(["device=/a", "user_xattr", "device=/b=c"])
    assert options.values("device") == ["/a", "/b=c"]
    assert options.without("device") == ["user_xattr"]


@pytest.mark.parametrize(
    ("value", "layers", "data"),
    [
        ("/a", ["/a"], []),
        ("/a:/b:/c", ["/a", "/b", "/c"], []),
        (r"/a\:b:/c\\", ["/a:b", "/c\\"], []),
        (r"/\a", ["/a"], []),
        ("/a:/b::/c::/d", ["/a", "/b"], ["/c", "/d"]),
    ],
)
def test_a_lowerdir_is_split_as_the_kernel_does(value: str, layers: list[str], data: list[str]) -> None:
    assert mount.split_lowerdir(value) == (layers, data)


@pytest.mark.parametrize("value", ["", ":", "/a:", ":/a", "::/a", "/a:::/b", "/a::/b:/c", "/a\\"])
def test_a_lowerdir_with_a_nameless_or_misplaced_folder_is_refused(value: str) -> None:
    with pytest.raises(OSError, match="lowerdir=") as caught:
        mount.split_lowerdir(value)
    assert caught.value.errno == errno.EINVAL


@given(st.lists(st.text(min_size=1), min_size=1))
def test_what_is_escaped_and_joined_is_split_again(names: list[str]) -> None:
    value = ":".join(name.replace("\\", "\\\\").replace(":", "\\:") for name in names)
    assert mount.split_lowerdir(value) == (names, [])


def test_mountinfo_is_read_with_its_escapes_and_optional_fields() -> None:
    text = (
        rb"36 35 98:0 /mnt1 /mnt\0402 rw,noatime master:1 shared:2 - ext3 /dev/root rw,errors=continue"
        b"\n"
        rb"37 36 0:31 / /m rw - overlay over\134lay rw,lowerdir=/a,upperdir=/u\054v\134:w,workdir=/w"
        b"\n"
        b"38 36 0:31 / /cut rw\n"
    )
    first, second = parse_mountinfo(text)
    assert first == MountEntry(
        mount_id=36,
        parent_id=35,
        device=os.makedev(98, 0),
        root=b"/mnt1",
        target=b"/mnt 2",
        type="ext3",
        source=b"/dev/root",
        options=b"rw,errors=continue",
    )
    assert (second.source, second.option(b"upperdir"), second.option(b"nosuch")) == (
        b"over\\lay",
        b"/u,v:w",
        None,
    )


def test_our_own_mounts_can_be_asked_about_without_privilege() -> None:
    assert mount.is_mount_point("/proc")
    assert mount.mounted_type("/proc") == "proc"
    assert not mount.is_mount_point("/proc/self")
    assert not mount.is_mount_point("/proc/nosuch/thing")
    assert mount.mounted_type("/proc/sys") in {None, "proc"}  # containers mount it again, read-only
    assert mount_id_of("/proc/self") in {entry.mount_id for entry in mount_table() if entry.type == "proc"}
    assert mount_namespace() == mount_namespace(os.getpid())
    assert mount.erofs_uuid("/proc") is None


def test_the_magic_number_names_the_file_system() -> None:
    proc = 0x9FA0
    assert mount.filesystem_magic("/proc") == proc
    fd = os.open("/proc", os.O_RDONLY)
    try:
        assert mount.filesystem_magic(fd) == proc
    finally:
        os.close(fd)
    with pytest.raises(FileNotFoundError):
        mount.filesystem_magic("/nosuch")
