"""The pure parts of running without a runtime: bubblewrap's arguments, ELF headers, scripts, paths."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orlop.cli.bubblewrap import arguments
from orlop.cli.direct import command_of, elf_loader, library_folders, rewritten, shebang
from orlop.cli.jobs import Job, JobMount, find_program, host_path, read_job, settled
from orlop.cli.ways import Way, choose_ways
from orlop.errors import FailedPrecondition, NotFound, PermissionDenied
from orlop.images.running.bundle import RunOptions, Volume, build_spec, write_bundle
from orlop.images.running.namespace import UserNamespace
from orlop.linux.userns import IdRange
from orlop.spec.documents import ImageConfig, RootFS, RunConfig


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A root with a program, a script, and symlinks that are right only if it is the root."""
    root = tmp_path / "root"
    for folder in ("usr/bin", "usr/lib/x86_64-linux-gnu", "etc/ld.so.conf.d", "opt/lib", "srv"):
        (root / folder).mkdir(parents=True)
    (root / "bin").symlink_to("/usr/bin")
    (root / "lib").symlink_to("usr/lib")
    (root / "usr/bin/program").write_bytes(b"\x7fELF")
    (root / "usr/bin/alias").symlink_to("/bin/program")
    (root / "usr/bin/env").symlink_to("program")
    (root / "usr/bin/script").write_text("#!/bin/program -x y\n")
    (root / "usr/bin/by-env").write_text("#!/usr/bin/env program\n")
    (root / "usr/bin/loop").write_text("#!/bin/loop\n")
    (root / "usr/bin/climber").symlink_to("../../../../../../../../etc/passwd")
    for name in ("program", "script", "by-env", "loop"):
        (root / "usr/bin" / name).chmod(0o755)
    (root / "usr/bin/data").write_text("")
    (root / "etc/ld.so.conf").write_text("include /etc/ld.so.conf.d/*.conf\n")
    (root / "etc/ld.so.conf.d/a.conf").write_text("# a comment\n/opt/lib\n/opt/nowhere\n")
    return root


@pytest.fixture
def root_fd(tree: Path) -> Iterator[int]:
    fd = os.open(tree, os.O_PATH)
    yield fd
    os.close(fd)


# ------------------------------------------------------------------ jobs


def test_a_job_says_what_the_bundle_said(tmp_path: Path, tree: Path, root_fd: int) -> None:
    options = RunOptions(
        args=("a", "b"), env=("X=1=2",), workdir="/w", user="7:8", net="none", hostname="h", read_only=True,
        volumes=(Volume(source="/etc/hosts", target="/in", read_only=True),),
    )  # fmt: skip
    config = ImageConfig(rootfs=RootFS(diff_ids=[]), config=RunConfig(env=["PATH=/p"]))
    write_bundle(tmp_path, build_spec(config, str(tree), options, root_fd=root_fd))
    job = read_job(tmp_path)
    assert (job.root, job.args, job.cwd, job.uid, job.gid) == (str(tree), ("a", "b"), "/w", 7, 8)
    assert {"X": "1=2", "PATH": "/p", "HOSTNAME": "h"}.items() <= job.variables.items()
    assert (job.network, job.read_only, job.hostname) == (True, True, "h")
    (volume,) = [mount for mount in job.mounts if mount.is_volume]
    assert (volume.target, volume.source, volume.read_only) == ("/in", "/etc/hosts", True)


@pytest.mark.hostile(27)
def test_places_of_volumes_are_made_inside_the_root_and_named_without_symlinks(
    tree: Path, root_fd: int
) -> None:
    (tree / "away").symlink_to("/srv/../../..")
    mounts = tuple(
        JobMount(target=target, type="bind", source=source, options=())
        for target, source in (("/bin/new/er", "/etc"), ("/away/file", "/etc/hosts"), ("/dev/x", "/etc"))
    )
    job = settled(Job(root=str(tree), args=("x",), env=(), cwd="/away/srv", mounts=mounts), root_fd)
    assert [mount.target for mount in job.mounts] == ["/usr/bin/new/er", "/file", "/dev/x"]
    assert job.cwd == "/srv"
    assert (tree / "usr/bin/new/er").is_dir()
    assert (tree / "file").is_file()
    assert not (tree / "dev").exists()


def test_a_place_that_is_something_else_is_refused(tree: Path, root_fd: int) -> None:
    with pytest.raises(FailedPrecondition, match=r"/etc/ld\.so\.conf/x cannot be made"):
        settled(Job(root=str(tree), args=("x",), env=(), cwd="/etc/ld.so.conf/x"), root_fd)


# ------------------------------------------------------------------ bubblewrap


def job_of(**fields: object) -> Job:
    return Job(**{"root": "/r", "args": ("sh",), "env": ("A=b=c",), "cwd": "/w", **fields})


def test_bubblewrap_is_told_the_root_the_mounts_and_the_environment_in_order() -> None:
    mounts = (
        JobMount(target="/proc", type="proc", source="proc", options=()),
        JobMount(target="/dev", type="tmpfs", source="tmpfs", options=()),
        JobMount(target="/dev/pts", type="devpts", source="devpts", options=()),
        JobMount(target="/sys", type="bind", source="/sys", options=("rbind", "ro")),
        JobMount(target="/sys/fs/cgroup", type="tmpfs", source="tmpfs", options=("ro",)),
        JobMount(target="/in", type="bind", source="/out", options=("rbind", "ro")),
        JobMount(target="/in/rw", type="bind", source="/rw", options=("rbind",)),
    )
    job = job_of(
        mounts=mounts, hostname="h", network=True, read_only=True, capabilities=("CAP_KILL", "CAP_MKNOD")
    )
    assert arguments(job, "root") == [
        *("--bind", "/r", "/", "--proc", "/proc", "--dev", "/dev", "--ro-bind", "/sys", "/sys"),
        *("--tmpfs", "/sys/fs/cgroup", "--remount-ro", "/sys/fs/cgroup"),
        *("--ro-bind", "/out", "/in", "--bind", "/rw", "/in/rw", "--remount-ro", "/"),
        *("--unshare-pid", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try", "--unshare-net"),
        *("--hostname", "h", "--cap-drop", "ALL", "--cap-add", "CAP_KILL"),
        *("--die-with-parent", "--chdir", "/w", "--clearenv", "--setenv", "A", "b=c"),
    ]


@pytest.mark.parametrize(
    ("can", "uid", "expected"),
    [
        ("root", 0, ["--cap-drop", "ALL", "--cap-add", "CAP_KILL"]),
        (
            "mapped",
            0,
            ["--unshare-user", "--uid", "0", "--gid", "9", "--cap-drop", "ALL", "--cap-add", "CAP_KILL"],
        ),
        ("mapped", 7, ["--unshare-user", "--uid", "7", "--gid", "9", "--cap-drop", "ALL"]),
        ("own", 7, []),
    ],
)
def test_bubblewrap_is_asked_for_users_and_capabilities_as_far_as_it_can(can, uid, expected) -> None:
    words = arguments(job_of(uid=uid, gid=9, capabilities=("CAP_KILL",), env=()), can)
    assert words[words.index("--unshare-cgroup-try") + 1 : words.index("--die-with-parent")] == expected


# ------------------------------------------------------------------ which way


def test_the_ways_follow_from_privilege_and_wish(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    for name in ("runc", "bwrap", "crun"):
        (tmp_path / name).write_text("#!/bin/sh\nexit 1\n")
        (tmp_path / name).chmod(0o755)
    named = lambda *args: [way.kind if not way.program else way.name for way in choose_ways(*args)]  # noqa: E731
    assert named(None, "root") in (["crun"], ["runc"])  # as `choose_runtime` finds it
    assert named(None, "single-id") == named(None, "user-namespace")
    assert named(None, "single-id")[-3:] == ["runc", "bwrap", "chroot"]
    assert named("bwrap", "root") == ["bwrap"]
    assert named(str(tmp_path / "runc"), "none") == ["runc"]
    assert named("chroot", "none") == ["chroot"]
    for name in ("bwrap", "no-such"):
        (tmp_path / name).unlink(missing_ok=True)
        with pytest.raises(NotFound):
            choose_ways(name, "root")
    (tmp_path / "runc").unlink()
    (tmp_path / "crun").unlink()
    assert named(None, "single-id") == ["chroot"]


def test_crun_is_told_to_leave_cgroups_alone() -> None:
    assert Way(kind="oci", program="/usr/bin/crun").options == ("--cgroup-manager=disabled",)
    assert Way(kind="oci", program="/usr/bin/runc").options == ()


# ------------------------------------------------------------------ a bundle for a user namespace


def spec_in(namespace: UserNamespace, root_fd: int, **options: object) -> dict:
    config = ImageConfig(rootfs=RootFS(diff_ids=[]))
    return build_spec(config, "/r", RunOptions(args=("x",), namespace=namespace, **options), root_fd=root_fd)


def namespace_of(size: int, *, setgroups: bool) -> UserNamespace:
    ids = (IdRange(inside=0, outside=1000, size=size),)
    return UserNamespace(maps=(ids, ids), setgroups=setgroups)


def test_a_bundle_for_a_single_id_asks_for_nothing_that_root_of_it_may_not_have(root_fd: int) -> None:
    single = namespace_of(1, setgroups=False)
    spec = spec_in(single, root_fd)
    mounts = {mount["destination"]: mount for mount in spec["mounts"]}
    assert "resources" not in spec["linux"]
    assert "gid=5" not in mounts["/dev/pts"]["options"]
    assert (mounts["/sys"]["type"], mounts["/sys/fs/cgroup"]["type"]) == ("bind", "tmpfs")
    assert {"ro", "rro"} <= set(mounts["/sys"]["options"])
    assert spec["process"]["user"] == {"uid": 0, "gid": 0, "additionalGids": []}
    mounts = {mount["destination"]: mount for mount in spec_in(single, root_fd, net="none")["mounts"]}
    assert mounts["/sys"]["type"] == "sysfs"


def test_users_and_groups_are_those_of_the_namespace(tree: Path, root_fd: int) -> None:
    (tree / "etc/passwd").write_text("u:x:7:8::/:\n")
    (tree / "etc/group").write_text("a:x:9:u\nb:x:70:u\n")
    many = namespace_of(10, setgroups=True)
    assert spec_in(many, root_fd, user="u")["process"]["user"] == {
        "uid": 7,
        "gid": 8,
        "additionalGids": [8, 9],
    }
    with pytest.raises(FailedPrecondition, match="run as user 10: this id is not mapped"):
        spec_in(many, root_fd, user="10")
    with pytest.raises(FailedPrecondition, match="run as group 10: this id is not mapped"):
        spec_in(many, root_fd, user="9:10")


# ------------------------------------------------------------------ programs of a tree


@pytest.mark.parametrize("name", ["program", "alias", "/bin/alias", "../usr/bin/program"])
def test_a_program_is_found_as_if_the_tree_were_the_root(tree: Path, root_fd: int, name: str) -> None:
    found = find_program(root_fd, name, search="/nowhere:/bin", cwd="/srv")
    assert found == str(tree / "usr/bin/program")


@pytest.mark.parametrize(
    ("name", "kind", "code"),
    [
        ("nosuch", NotFound, "127"),
        ("/bin/nosuch", NotFound, "127"),
        ("climber", NotFound, "127"),
        ("data", PermissionDenied, "126"),
        ("/srv", PermissionDenied, "126"),
    ],
)
def test_what_cannot_be_run_has_the_shells_exit_codes(root_fd: int, name: str, kind: type, code: str) -> None:
    with pytest.raises(kind) as caught:
        find_program(root_fd, name, search="/bin", cwd="/")
    assert caught.value.details == {"exit_code": code}


def test_a_script_is_run_by_the_trees_interpreter(tree: Path, root_fd: int) -> None:
    def argv(*args: str) -> list[str]:
        command = command_of(job_of(root=str(tree), args=args, env=("PATH=/bin",), cwd="/srv"), root_fd)
        assert command.executable == str(tree / "usr/bin/program")
        assert command.cwd == str(tree / "srv")
        return list(command.argv)

    assert argv("alias", "a") == ["alias", "a"]
    assert argv("script", "a") == ["/bin/program", "-x y", str(tree / "usr/bin/script"), "a"]
    assert argv("by-env", "a") == ["program", str(tree / "usr/bin/by-env"), "a"]
    with pytest.raises(PermissionDenied, match="loop: Too many levels"):
        argv("loop")


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        (b"", None),
        (b"#", None),
        (b"#!", None),
        (b"#! \n/bin/sh", None),
        (b"#!/bin/sh", ["/bin/sh"]),
        (b"#!\t/bin/sh \t-e  x \n", ["/bin/sh", "-e  x"]),
        (b"\x7fELF", None),
    ],
)
def test_a_shebang_has_an_interpreter_and_perhaps_one_argument(
    head: bytes, expected: list[str] | None
) -> None:
    assert shebang(head) == expected


def test_paths_to_programs_and_libraries_and_home_become_the_trees(tree: Path, root_fd: int) -> None:
    env = ("PATH=/bin:rel::/not/there", "LD_LIBRARY_PATH=/lib", "HOME=/srv", "OTHER=/bin", "LANG=C")
    command = command_of(job_of(root=str(tree), args=("program",), env=env, cwd="/made/new"), root_fd)
    assert command.env == {
        "PATH": f"{tree}/usr/bin:rel::{tree}/not/there",
        "LD_LIBRARY_PATH": f"{tree}/usr/lib",
        "HOME": f"{tree}/srv",
        "OTHER": "/bin",
        "LANG": "C",
    }
    assert (tree / "made/new").is_dir()
    assert rewritten({}, str.upper) == {}


def test_libraries_are_looked_for_where_the_trees_loader_would(tree: Path, root_fd: int) -> None:
    found = [str(Path(path).relative_to(tree)) for path in library_folders(root_fd, ["/srv", "", "rel"])]
    assert found == ["srv", "opt/lib", "usr/lib/x86_64-linux-gnu", "usr/lib"]


# ------------------------------------------------------------------ ELF


def elf(*segments: tuple[int, bytes], wide: bool = True, big: bool = False) -> bytes:
    """An ELF file of program headers alone, and what they point at."""
    order = ">" if big else "<"
    ident = b"\x7fELF" + bytes([2 if wide else 1, 2 if big else 1, 1]) + bytes(9)
    header_size, size = (64, 56) if wide else (52, 32)
    fields = (2, 62, 1, 0, header_size, 0, 0, header_size, size, len(segments), 0, 0, 0)
    head = ident + struct.pack(order + ("HHIQQQIHHHHHH" if wide else "HHIIIIIHHHHHH"), *fields)
    offset, table, rest = header_size + size * len(segments), b"", b""
    for kind, data in segments:
        place = offset + len(rest)
        words = (
            (kind, 4, place, 0, 0, len(data), len(data), 1)
            if wide
            else (kind, place, 0, 0, len(data), 0, 4, 1)
        )
        table += struct.pack(order + ("IIQQQQQQ" if wide else "IIIIIIII"), *words)
        rest += data
    return head + table + rest


@pytest.fixture
def loader_of(tmp_path: Path) -> Callable[[bytes], str | None]:
    def read(data: bytes) -> str | None:
        (tmp_path / "elf").write_bytes(data)
        fd = os.open(tmp_path / "elf", os.O_RDONLY)
        try:
            return elf_loader(fd)
        finally:
            os.close(fd)

    return read


@pytest.mark.parametrize("wide", [True, False])
@pytest.mark.parametrize("big", [True, False])
def test_the_loader_is_read_from_every_kind_of_elf(loader_of, wide: bool, big: bool) -> None:
    segments = ((6, b"phdr"), (3, b"/lib/ld.so.1\0"), (1, b"load"))
    assert loader_of(elf(*segments, wide=wide, big=big)) == "/lib/ld.so.1"
    assert loader_of(elf((1, b"load"), wide=wide, big=big)) is None


def test_what_is_broken_or_no_elf_has_no_loader(loader_of) -> None:
    whole = elf((3, b"/lib/ld.so.1\0"))
    for data in (b"", b"#!/bin/sh\n", b"\x7fELF", whole[:63], whole[:80], whole[:4] + b"\x07" + whole[5:]):
        assert loader_of(data) is None


def test_the_loaders_of_this_machines_programs_are_those_that_readelf_names() -> None:
    readelf = shutil.which("readelf")
    for program in (sys.executable, "/bin/sh", shutil.which("busybox") or "/bin/sh"):
        fd = os.open(program, os.O_RDONLY)
        found = elf_loader(fd)
        os.close(fd)
        if readelf is None:
            assert found is None or Path(found).exists()
        else:
            said = subprocess.run([readelf, "-l", program], capture_output=True, text=True, check=True).stdout
            assert (f"interpreter: {found}]" in said) if found else ("interpreter: " not in said)


@given(data=st.binary(max_size=200), whole=st.booleans())
def test_no_bytes_break_the_reader(data: bytes, whole: bool) -> None:
    fd = os.memfd_create("elf")
    try:
        os.write(fd, (elf((3, b"/l\0"))[:20] if whole else b"\x7fELF\x02\x01") + data)
        assert elf_loader(fd) is None or isinstance(elf_loader(fd), str)
    finally:
        os.close(fd)


def test_a_dynamic_program_without_its_loader_is_told_so(tree: Path, root_fd: int) -> None:
    (tree / "usr/bin/program").write_bytes(elf((3, b"/lib/ld-none.so\0")))
    with pytest.raises(NotFound, match=r"its loader /lib/ld-none.so is not in the image"):
        command_of(job_of(root=str(tree), args=("/bin/program",), cwd="/"), root_fd)


@pytest.mark.parametrize(
    ("knows", "options"),
    [
        (b"--inhibit-cache\0--argv0\0", ["--inhibit-cache", "--argv0", "alias"]),
        (b"argv0\0", ["--argv0", "alias"]),
        (b"", []),
    ],
)
def test_a_loader_is_told_what_it_understands(
    tree: Path, root_fd: int, knows: bytes, options: list[str]
) -> None:
    (tree / "usr/bin/program").write_bytes(elf((3, b"/lib/ld.so\0")))
    (tree / "usr/lib/ld.so").write_bytes(b"\x7fELF..." + knows)
    job = job_of(root=str(tree), args=("alias", "-x"), env=("PATH=/bin", "LD_LIBRARY_PATH=/srv"), cwd="/")
    command = command_of(job, root_fd)
    libraries = ":".join(
        f"{tree}/{name}" for name in ("srv", "opt/lib", "usr/lib/x86_64-linux-gnu", "usr/lib")
    )
    loader = host_path(root_fd, "/lib/ld.so")
    assert command.executable == loader == str(tree / "usr/lib/ld.so")
    expected = [loader, "--library-path", libraries, *options, str(tree / "usr/bin/program"), "-x"]
    assert list(command.argv) == expected
