"""From an image's config and a user's wishes to a runtime spec; who a user of an image is."""

from __future__ import annotations

import json
import os
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orlop.errors import InvalidArgument
from orlop.images.running import accounts
from orlop.images.running.accounts import MAX_ID, User, resolve_user
from orlop.images.running.bundle import (
    DEFAULT_PATH,
    Rlimit,
    RunOptions,
    Volume,
    build_spec,
    write_bundle,
    write_etc_files,
)
from orlop.spec.documents import ImageConfig, RootFS, RunConfig

PASSWD = b"""\
# accounts
root:x:0:0:root:/root:/bin/sh
broken line
half:x:5
letters:x:abc:def::/h:/bin/sh
app:x:1000:1001:An App:/srv/app:/bin/sh
app:x:7:7::/second:/bin/sh
1000:x:55:55::/named-like-a-number:/bin/sh
homeless:x:1002:1002
oddhome:x:1003:1003::relative:/bin/sh
latin:x:1004:1004::/h\xe9:/bin/sh
huge:x:4294967296:0::/:/bin/sh
minusone:x:4294967295:0::/:/bin/sh
hugegroup:x:1005:4294967296::/:/bin/sh
endless:x:99999999999999999999999999:0::/:/bin/sh
"""
GROUP = b"""\
root:x:0:
app:x:1001:
audio:x:29:nobody,app
video:x:44:app
almost:x:45:apple,xapp
broken:x:no:app
staff:x:50:
huge:x:4294967296:other
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "root"
    (folder / "etc").mkdir(parents=True)
    (folder / "etc/passwd").write_bytes(PASSWD)
    (folder / "etc/group").write_bytes(GROUP)
    return folder


@pytest.fixture
def root_fd(root: Path) -> Iterator[int]:
    fd = os.open(root, os.O_PATH)
    yield fd
    os.close(fd)


def image(**run: Any) -> ImageConfig:
    return ImageConfig(rootfs=RootFS(diff_ids=[]), config=RunConfig(**run))


def spec_of(config: ImageConfig, root_fd: int, **options: Any) -> dict[str, Any]:
    """The spec after a trip through JSON, as a runtime sees it."""
    options.setdefault("args", ("true",))
    return json.loads(json.dumps(build_spec(config, "/srv/root", RunOptions(**options), root_fd=root_fd)))


# ------------------------------------------------------------------ users


@pytest.mark.parametrize(
    ("text", "uid", "gid", "groups", "home"),
    [
        ("", 0, 0, (0,), "/root"),
        ("root", 0, 0, (0,), "/root"),
        ("0", 0, 0, (0,), "/root"),
        ("app", 1000, 1001, (1001, 29, 44), "/srv/app"),
        ("1000", 1000, 1001, (1001, 29, 44), "/srv/app"),  # a number is never a name
        ("0001000", 1000, 1001, (1001, 29, 44), "/srv/app"),
        ("app:staff", 1000, 50, (50,), "/srv/app"),
        ("app:77", 1000, 77, (77,), "/srv/app"),
        ("app:", 1000, 1001, (1001, 29, 44), "/srv/app"),
        (":staff", 0, 50, (50,), "/root"),
        ("4242", 4242, 0, (0,), "/"),
        ("4242:4243", 4242, 4243, (4243,), "/"),
        ("homeless", 1002, 1002, (1002,), "/"),
        ("oddhome", 1003, 1003, (1003,), "/"),
        ("latin", 1004, 1004, (1004,), "/"),
        (f"{MAX_ID}:{MAX_ID}", MAX_ID, MAX_ID, (MAX_ID,), "/"),
    ],
)
def test_a_user_is_looked_up_in_the_image(
    root_fd: int, text: str, uid: int, gid: int, groups: tuple[int, ...], home: str
) -> None:
    assert resolve_user(text, root_fd=root_fd) == User(uid=uid, gid=gid, groups=groups, home=home)


@pytest.mark.hostile(29)
@pytest.mark.parametrize(
    "text",
    [
        "nosuch",
        "app:nosuch",
        "half",
        "letters",
        "4294967295",
        "4294967296",
        "18446744073709551616",
        "9" * 5000,
        "0:4294967296",
        "-1",
        "+0",
        " 0",
        "0 ",
        "\N{ARABIC-INDIC DIGIT ZERO}",
        "huge",
        "minusone",
        "hugegroup",
        "endless",
        "app:huge",
        "app:staff:x",
        "app\0",
        "\udcff",
    ],
)
def test_no_odd_user_becomes_another(root_fd: int, text: str) -> None:
    with pytest.raises(InvalidArgument, match="run as user"):
        resolve_user(text, root_fd=root_fd)


def test_numbers_need_no_account_files_and_names_do(root: Path, root_fd: int) -> None:
    (root / "etc/passwd").unlink()
    (root / "etc/group").unlink()
    assert resolve_user("5:6", root_fd=root_fd) == User(uid=5, gid=6, groups=(6,), home="/")
    (root / "etc").rmdir()
    (root / "etc").write_bytes(b"a file")
    assert resolve_user("", root_fd=root_fd) == User(uid=0, gid=0, groups=(0,), home="/")
    with pytest.raises(InvalidArgument, match="has no user 'root'"):
        resolve_user("root", root_fd=root_fd)
    with pytest.raises(InvalidArgument, match="has no group 'root'"):
        resolve_user("0:root", root_fd=root_fd)


@pytest.mark.hostile(28)
def test_links_of_account_files_stay_inside_the_root(root: Path, root_fd: int, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_bytes(b"spy:x:31337:31337::/:/bin/sh\n")
    passwd = root / "etc/passwd"
    for target in (str(outside), "../../outside", "/../../../../../.." + str(outside)):
        passwd.unlink()
        passwd.symlink_to(target)
        with pytest.raises(InvalidArgument, match="has no user 'spy'"):
            resolve_user("spy", root_fd=root_fd)
    passwd.unlink()
    passwd.symlink_to("/usr/passwd")
    (root / "usr").mkdir()
    (root / "usr/passwd").write_bytes(b"inner:x:12:13::/:/bin/sh\n")
    assert resolve_user("inner", root_fd=root_fd).uid == 12


def make_fifo(path: Path) -> None:
    os.mkfifo(path)


def make_socket(path: Path) -> None:
    here = os.open(path.parent, os.O_PATH)
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(f"/proc/self/fd/{here}/{path.name}")
    os.close(here)


def make_huge(path: Path) -> None:
    path.write_bytes(PASSWD)
    os.truncate(path, 1 << 40)  # sparse


def make_loop(path: Path) -> None:
    path.symlink_to(path.name)


@pytest.mark.hostile(28)
@pytest.mark.timeout(20)
@pytest.mark.parametrize("make", [make_fifo, make_socket, make_huge, make_loop, Path.mkdir])
@pytest.mark.parametrize(("name", "text"), [("passwd", "0"), ("passwd", "app"), ("group", "app:app")])
def test_account_files_that_are_none_are_refused_at_once(
    root: Path, root_fd: int, make: Any, name: str, text: str
) -> None:
    path = root / "etc" / name
    path.unlink()
    make(path)
    with pytest.raises(InvalidArgument, match=f"the image's /etc/{name}"):
        resolve_user(text, root_fd=root_fd)


def test_more_groups_than_the_kernel_takes_are_refused(
    root: Path, root_fd: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accounts, "MAX_GROUPS", 2)
    with pytest.raises(InvalidArgument, match="more than 2 groups"):
        resolve_user("app", root_fd=root_fd)


# ------------------------------------------------------------------ the process


@pytest.mark.parametrize(
    ("entrypoint", "cmd", "options", "args"),
    [
        (["/e"], ["c"], {"args": ()}, ["/e", "c"]),
        (None, ["c"], {"args": ()}, ["c"]),
        (["/e"], ["c"], {"args": ("a", "b")}, ["/e", "a", "b"]),
        (["/e"], ["c"], {"args": (), "entrypoint": ("/x",)}, ["/x"]),  # the command belongs to the entrypoint
        (["/e"], ["c"], {"args": ("a",), "entrypoint": ("/x", "-y")}, ["/x", "-y", "a"]),
        (["/e"], ["c"], {"args": ("a",), "entrypoint": ()}, ["a"]),
        (["/e"], None, {"args": ("",)}, ["/e", ""]),
    ],
)
def test_entrypoint_and_command_are_the_users_or_the_images(
    root_fd: int, entrypoint: list[str] | None, cmd: list[str] | None, options: Any, args: list[str]
) -> None:
    assert spec_of(image(entrypoint=entrypoint, cmd=cmd), root_fd, **options)["process"]["args"] == args


@pytest.mark.parametrize(
    ("run", "options", "message"),
    [
        ({}, {"args": ()}, "the image has no command; give one"),
        ({"cmd": ["c"]}, {"args": (), "entrypoint": ()}, "the image has no command"),
        ({"cmd": [""]}, {"args": ()}, "name is empty"),
        ({"cmd": ["a\0b"]}, {"args": ()}, "NUL character in the argument"),
        ({}, {"args": ("\udcff",)}, "is not UTF-8"),
        ({}, {"env": ("A",)}, "not an environment variable: 'A'"),
        ({}, {"env": ("=b",)}, "not an environment variable"),
        ({"env": ["A=\0"]}, {}, "NUL character in the environment"),
        ({}, {"workdir": "relative"}, "not an absolute path"),
        ({"working_dir": "/a\0"}, {}, "NUL character in the working directory"),
        ({"user": "nosuch"}, {}, "no user 'nosuch'"),
        ({}, {"user": "nosuch"}, "no user 'nosuch'"),
        ({}, {"hostname": "h" * 65}, "not a host name"),
        ({}, {"hostname": "a\nb"}, "not a host name"),
        ({}, {"volumes": (Volume(source="/a", target="/"),)}, "over the root"),
        ({}, {"volumes": (Volume(source="/a", target="/x/.."),)}, "over the root"),
        ({}, {"volumes": (Volume(source="/a", target="b"),)}, "target 'b' is not an absolute path"),
        ({}, {"volumes": (Volume(source="a", target="/b"),)}, "source 'a' is not an absolute path"),
        (
            {},
            {"volumes": (Volume(source="/a", target="/b"), Volume(source="/c", target="//b/."))},
            "two volumes",
        ),
    ],
)
def test_what_cannot_be_run_is_said(root_fd: int, run: Any, options: Any, message: str) -> None:
    with pytest.raises(InvalidArgument, match=re.escape(message)):
        spec_of(image(**run), root_fd, **options)


def test_variables_come_from_defaults_the_image_and_the_user(root_fd: int) -> None:
    config = image(env=["PATH=/img", "A=1", "B=2", "A=3", "junk", "=x", "EMPTY=", "E==="])
    env = spec_of(config, root_fd, env=("B=user", "C=4"), tty=True, hostname="box")["process"]["env"]
    assert env == [
        "PATH=/img",
        "HOSTNAME=box",
        "TERM=xterm",
        "A=3",
        "B=user",
        "EMPTY=",
        "E===",
        "C=4",
        "HOME=/root",
    ]


def test_without_variables_there_are_path_and_home(root_fd: int) -> None:
    assert spec_of(image(), root_fd, user="app")["process"]["env"] == [
        f"PATH={DEFAULT_PATH}",
        "HOME=/srv/app",
    ]


@pytest.mark.parametrize("said", ["image", "user"])
def test_home_is_left_alone_where_it_is_set(root_fd: int, said: str) -> None:
    config = image(env=["HOME=/mine"]) if said == "image" else image()
    env = ("HOME=/mine",) if said == "user" else ()
    assert "HOME=/mine" in spec_of(config, root_fd, env=env)["process"]["env"]


@pytest.mark.parametrize(
    ("working_dir", "workdir", "cwd"),
    [
        (None, None, "/"),
        ("", None, "/"),
        ("/srv", None, "/srv"),
        ("srv/a", None, "/srv/a"),
        ("/srv/../../x//", None, "/x"),
        ("/srv", "/tmp", "/tmp"),
        ("/srv", "//tmp", "/tmp"),
    ],
)
def test_the_working_directory_is_absolute_and_clean(
    root_fd: int, working_dir: str | None, workdir: str | None, cwd: str
) -> None:
    assert spec_of(image(working_dir=working_dir), root_fd, workdir=workdir)["process"]["cwd"] == cwd


def test_the_user_goes_into_the_spec_with_all_groups(root_fd: int) -> None:
    user = spec_of(image(user="4:5"), root_fd, user="app")["process"]["user"]
    assert user == {"uid": 1000, "gid": 1001, "additionalGids": [1001, 29, 44]}
    assert spec_of(image(user="4:5"), root_fd)["process"]["user"]["uid"] == 4


def test_capabilities_are_the_usual_fourteen_and_none_is_inheritable(root_fd: int) -> None:
    capabilities = spec_of(image(), root_fd)["process"]["capabilities"]
    assert set(capabilities) == {"bounding", "effective", "permitted"}
    for names in capabilities.values():
        assert len(set(names)) == 14
        assert not {"CAP_SYS_ADMIN", "CAP_SYS_PTRACE", "CAP_NET_ADMIN", "CAP_SYS_MODULE"} & set(names)


def test_limits_are_the_callers_own_unless_given(root_fd: int) -> None:
    assert "rlimits" not in spec_of(image(), root_fd)["process"]
    limits = (Rlimit(type="RLIMIT_NOFILE", soft=10, hard=20),)
    assert spec_of(image(), root_fd, rlimits=limits)["process"]["rlimits"] == [
        {"type": "RLIMIT_NOFILE", "soft": 10, "hard": 20}
    ]


# ------------------------------------------------------------------ the rest of the spec


def targets(spec: dict[str, Any]) -> list[str]:
    return [mount["destination"] for mount in spec["mounts"]]


def test_the_kernels_file_systems_come_first_and_outer_volumes_before_inner(
    root_fd: int, tmp_path: Path
) -> None:
    volumes = (Volume(source="/2", target="/a/b/c"), Volume(source="/1", target="/a"))
    spec = spec_of(image(), root_fd, volumes=volumes, etc=write_etc_files(tmp_path, hostname="h", net="none"))
    assert targets(spec) == [
        *("/proc", "/dev", "/dev/pts", "/dev/shm", "/dev/mqueue", "/sys", "/sys/fs/cgroup"),
        *("/a", "/etc/hostname", "/etc/hosts", "/a/b/c"),
    ]


def test_a_volume_takes_the_place_of_a_default(root_fd: int, tmp_path: Path) -> None:
    volumes = (Volume(source="/shm", target="/dev/shm/"), Volume(source="/h", target="/etc/hosts"))
    spec = spec_of(image(), root_fd, volumes=volumes, etc=write_etc_files(tmp_path, hostname="h", net="none"))
    assert len(targets(spec)) == len(set(targets(spec)))
    by_target = {mount["destination"]: mount["source"] for mount in spec["mounts"]}
    assert (by_target["/dev/shm"], by_target["/etc/hosts"]) == ("/shm", "/h")


def test_a_read_only_volume_is_so_with_what_is_mounted_below_it(root_fd: int, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    volumes = (
        Volume(source=str(tmp_path), target="/folder", read_only=True),
        Volume(source=str(file), target="/file", read_only=True),
        Volume(source=str(tmp_path), target="/writable"),
    )
    options = {m["destination"]: m["options"] for m in spec_of(image(), root_fd, volumes=volumes)["mounts"]}
    assert options["/folder"] == ["rbind", "rprivate", "ro", "rro"]
    assert options["/file"] == ["rbind", "rprivate", "ro"]
    assert options["/writable"] == ["rbind", "rprivate"]


@pytest.mark.hostile(26, 27)
def test_an_images_volumes_and_labels_steer_nothing(root_fd: int) -> None:
    labels = {"run.oci.handler": "krun", "org.systemd.property.X": "1", "org.opencontainers.image.os": "lies"}
    config = ImageConfig(
        os="linux",
        architecture="amd64",
        author="me",
        rootfs=RootFS(diff_ids=[]),
        config=RunConfig(labels=labels, volumes={"/etc": {}}, exposed_ports={"80/tcp": {}, "1/udp": {}}),
    )
    spec = spec_of(config, root_fd)
    assert spec["annotations"] == {
        "org.opencontainers.image.os": "linux",
        "org.opencontainers.image.architecture": "amd64",
        "org.opencontainers.image.author": "me",
        "org.opencontainers.image.exposedPorts": "1/udp,80/tcp",
    }
    assert targets(spec) == targets(spec_of(image(), root_fd))


@pytest.mark.parametrize(("net", "own"), [("host", False), ("none", True)])
def test_net_none_has_a_network_namespace_of_its_own(root_fd: int, net: Any, own: bool) -> None:
    kinds = {namespace["type"] for namespace in spec_of(image(), root_fd, net=net)["linux"]["namespaces"]}
    assert kinds - {"network"} == {"pid", "ipc", "uts", "mount", "cgroup"}
    assert ("network" in kinds) == own


def test_the_rest_is_as_it_was_asked(root_fd: int) -> None:
    spec = spec_of(image(), root_fd, read_only=True, hostname="box", tty=True, cgroup="/a/b")
    assert spec["root"] == {"path": "/srv/root", "readonly": True}
    assert spec["hostname"] == "box"
    assert spec["process"]["terminal"] is True
    assert spec["linux"]["cgroupsPath"] == "/a/b"
    assert "/proc/kcore" in spec["linux"]["maskedPaths"]
    assert "/proc/sys" in spec["linux"]["readonlyPaths"]
    plain = spec_of(image(), root_fd)
    assert "hostname" not in plain
    assert "cgroupsPath" not in plain["linux"]


# ------------------------------------------------------------------ files


def test_a_bundle_is_for_its_owners_eyes(root_fd: int, tmp_path: Path) -> None:
    spec = build_spec(image(env=["SECRET=ü"]), "/srv/root", RunOptions(args=("a",)), root_fd=root_fd)
    path = write_bundle(tmp_path, spec)
    assert path == tmp_path / "config.json"
    assert path.stat().st_mode & 0o777 == 0o600
    assert json.loads(path.read_bytes()) == spec


def test_net_host_has_the_hosts_names(tmp_path: Path) -> None:
    etc, bundle = tmp_path / "etc", tmp_path / "bundle"
    etc.mkdir()
    bundle.mkdir()
    (tmp_path / "stub").write_text("nameserver 192.0.2.1\n")
    (etc / "resolv.conf").symlink_to("../stub")
    volumes = write_etc_files(bundle, hostname="box", etc=etc)
    assert {v.target: Path(v.source).read_text() for v in volumes} == {
        "/etc/resolv.conf": "nameserver 192.0.2.1\n",
        "/etc/hostname": "box\n",
    }
    assert all(v.read_only and os.stat(v.source).st_mode & 0o777 == 0o644 for v in volumes)


def test_net_none_knows_itself_and_no_nameserver(tmp_path: Path) -> None:
    volumes = write_etc_files(tmp_path, hostname="box", net="none")
    texts = {v.target: Path(v.source).read_text() for v in volumes}
    assert set(texts) == {"/etc/hosts", "/etc/hostname"}
    assert "127.0.0.1\tlocalhost\n" in texts["/etc/hosts"]
    assert "\tbox\n" in texts["/etc/hosts"]
