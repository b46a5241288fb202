"""A whole bundle: the image's config translated as image-spec says, in the form that runtime-spec says."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from orlop.cli.bundle import hook_of, mount_of, rlimit_of
from orlop.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound
from orlop.facade import Prepared
from orlop.images.api import IdMap, Mount, PreparedInfo
from orlop.images.running.bundle import Volume
from orlop.images.running.seccomp import seccomp_of
from support.jsonschema import Schema

SCHEMA = Schema(Path(__file__).parent.parent / "data/runtime-spec", "config-schema.json")
CONFIG = {
    "architecture": "arm64",
    "os": "linux",
    "variant": "v8",
    "os.version": "6.1",
    "os.features": ["one", "two"],
    "author": "me",
    "created": "2024-01-01T00:00:00Z",
    "rootfs": {"type": "layers", "diff_ids": []},
    "config": {
        "Entrypoint": ["/bin/sh", "-c"],
        "Cmd": ["echo hello"],
        "Env": ["A=b", "PATH=/image"],
        "WorkingDir": "/srv",
        "User": "app",
        "StopSignal": "SIGINT",
        "ExposedPorts": {"80/tcp": {}, "53/udp": {}},
        "Labels": {
            "maker": "us",
            "org.opencontainers.image.author": "the label's",
            "run.oci.handler": "krun",
            "org.systemd.property.TasksMax": "1",
        },
        "Volumes": {"/data": {}, "/proc/x": {}, "/data/deep": {}},
    },
}


class Asked:
    """What a store would answer about one root; it has no files but the folder's."""

    def __init__(self, config: dict[str, Any]) -> None:
        self._config = json.dumps(config).encode()

    def inspect(self, name: str) -> object:
        return SimpleNamespace(config=self._config)

    def list_files(self, *args: object, **options: object) -> Iterator[object]:
        raise NotFound("look", "no such file")
        yield

    def read_files(self, thing: str, paths: list[bytes], **options: object) -> Iterator[bytes]:
        if paths == [b"etc/passwd"]:
            yield b"app:x:7:8::/home/app:/bin/sh\n"
        else:
            raise NotFound("read", "no such file")


@pytest.fixture
def prepared(tmp_path: Path) -> Prepared:
    """A root of the native driver: a plain folder, nothing mounted."""
    root = tmp_path / "root"
    (root / "etc").mkdir(parents=True)
    (root / "etc/passwd").write_text("app:x:7:8::/home/app:/bin/sh\n")
    (root / "etc/group").write_text("app:x:8:\nvideo:x:44:app\n")
    mount = Mount(type="bind", source=str(root), target="/srv/a", options=("bind",))
    info = PreparedInfo(
        path="/srv/a",
        image="box",
        image_id="sha256:0",
        kind="active",
        driver="native",
        mounted=False,
        created="",
        mounts=(mount,),
    )
    return Prepared(Asked(CONFIG), info)  # type: ignore[arg-type]  # it answers what is asked


def written(prepared: Prepared, folder: Path, **options: Any) -> tuple[dict[str, Any], Any]:
    done = prepared.bundle(folder, **{"seccomp": "none", **options})
    spec = json.loads((folder / "config.json").read_bytes())
    assert SCHEMA.complaints(spec) == []
    return spec, done


def test_the_config_is_translated_as_the_image_spec_says(prepared: Prepared, tmp_path: Path) -> None:
    spec, done = written(prepared, tmp_path / "b")
    process = spec["process"]
    assert process["args"] == ["/bin/sh", "-c", "echo hello"]
    assert process["env"][0] == "PATH=/image"
    assert {"A=b", "HOME=/home/app"} <= set(process["env"])
    assert process["cwd"] == "/srv"
    assert process["user"] == {"uid": 7, "gid": 8, "additionalGids": [8, 44]}
    assert spec["root"] == {"path": str(tmp_path / "root"), "readonly": False}
    assert spec["annotations"] == {
        "maker": "us",
        "org.opencontainers.image.os": "linux",
        "org.opencontainers.image.architecture": "arm64",
        "org.opencontainers.image.variant": "v8",
        "org.opencontainers.image.os.version": "6.1",
        "org.opencontainers.image.os.features": "one,two",
        "org.opencontainers.image.author": "the label's",
        "org.opencontainers.image.created": "2024-01-01T00:00:00Z",
        "org.opencontainers.image.stopSignal": "SIGINT",
        "org.opencontainers.image.exposedPorts": "53/udp,80/tcp",
    }
    assert done.left_out == ("org.systemd.property.TasksMax", "run.oci.handler")
    assert (tmp_path / "b/config.json").stat().st_mode & 0o777 == 0o600


@pytest.mark.hostile(26)
def test_labels_that_runtimes_act_upon_come_only_when_asked_for(prepared: Prepared, tmp_path: Path) -> None:
    spec, done = written(prepared, tmp_path / "b", unsafe_labels=True, annotations={"maker": "mine", "x": ""})
    assert spec["annotations"]["run.oci.handler"] == "krun"
    assert (spec["annotations"]["maker"], spec["annotations"]["x"]) == ("mine", "")
    assert done.left_out == ()


@pytest.mark.parametrize("how", ["folder", "tmpfs", "none"])
def test_volumes_of_the_image_become_mounts_but_none_over_what_the_kernel_shows(
    prepared: Prepared, tmp_path: Path, how: Any
) -> None:
    spec, done = written(prepared, tmp_path / "b", image_volumes=how)
    targets = [mount["destination"] for mount in spec["mounts"]]
    if how == "none":
        assert (done.volumes, done.unmounted) == ((), ("/data", "/data/deep", "/proc/x"))
        assert "/data" not in targets
        return
    assert (done.volumes, done.unmounted) == (("/data", "/data/deep"), ("/proc/x",))
    assert targets.index("/data") < targets.index("/data/deep")
    data = next(mount for mount in spec["mounts"] if mount["destination"] == "/data")
    assert data["type"] == {"folder": "bind", "tmpfs": "tmpfs"}[how]


def test_mounts_come_outer_ones_first_and_take_the_places_of_defaults(
    prepared: Prepared, tmp_path: Path
) -> None:
    mounts = [mount_of("type=tmpfs,target=/dev/shm,size=1m"), mount_of("type=tmpfs,dst=/v/x/y")]
    volume = Volume(source=str(tmp_path), target="/data")  # instead of the image's
    spec, done = written(prepared, tmp_path / "b", mounts=mounts, volumes=[volume])
    targets = [mount["destination"] for mount in spec["mounts"]]
    assert targets == sorted(targets, key=lambda target: target.count("/"))
    shm = [mount for mount in spec["mounts"] if mount["destination"] == "/dev/shm"]
    assert [mount["options"] for mount in shm] == [["size=1m"]]
    assert done.volumes == ("/data/deep",)
    for wrong in ("/", "/data"):
        mount = Mount(type="tmpfs", source="", target=wrong)
        with pytest.raises(InvalidArgument, match="taken"):
            prepared.bundle(tmp_path / "c", mounts=[mount], volumes=[volume], seccomp="none", force=True)


def test_root_mounts_need_no_mounted_root_and_read_the_accounts_from_the_store(
    prepared: Prepared, tmp_path: Path
) -> None:
    extra = Mount(type="bind", source="/tools", target="/srv/a/opt", options=("bind", "ro"))
    info = prepared.info
    overlay = Mount(type="overlay", source="overlay", target="/srv/a", options=("lowerdir=/l",))
    prepared.info = PreparedInfo(
        **{name: getattr(info, name) for name in ("path", "image", "image_id", "kind", "mounted", "created")},
        driver="erofs",
        mounts=(overlay, extra),
    )
    with pytest.raises(FailedPrecondition, match="not mounted"):
        prepared.bundle(tmp_path / "b")
    spec, _ = written(prepared, tmp_path / "b", root_mounts=True)
    assert spec["root"]["path"] == str(tmp_path / "b/rootfs")
    assert [mount["destination"] for mount in spec["mounts"][:2]] == ["/", "/opt"]
    assert spec["mounts"][0]["options"] == ["lowerdir=/l"]
    assert spec["process"]["user"]["uid"] == 7
    assert not list((tmp_path / "b").glob(".accounts*"))


def test_rootless_and_mapped_ids_give_a_user_namespace_of_its_own(prepared: Prepared, tmp_path: Path) -> None:
    spec, _ = written(prepared, tmp_path / "b", rootless=True, user="0")
    assert {"type": "user"} in spec["linux"]["namespaces"]
    assert spec["linux"]["uidMappings"] == [{"containerID": 0, "hostID": os.geteuid(), "size": 1}]
    assert "resources" not in spec["linux"]
    assert not any("gid=5" in mount["options"] for mount in spec["mounts"])
    with pytest.raises(FailedPrecondition, match="not mapped"):
        prepared.bundle(tmp_path / "c", rootless=True, seccomp="none")
    prepared.info = PreparedInfo(
        **{
            name: getattr(prepared.info, name)
            for name in ("path", "image", "image_id", "kind", "driver", "mounted", "created", "mounts")
        },
        uid_map=(IdMap(inside=0, outside=100_000, size=65_536),),
        gid_map=(IdMap(inside=0, outside=200_000, size=65_536),),
    )
    spec, _ = written(prepared, tmp_path / "d")  # as the root was prepared
    assert spec["linux"]["gidMappings"] == [{"containerID": 0, "hostID": 200_000, "size": 65_536}]


def test_options_count_instead_of_the_image(prepared: Prepared, tmp_path: Path) -> None:
    spec, _ = written(
        prepared,
        tmp_path / "b",
        args=["id"],
        entrypoint=[],
        env=["A=c"],
        cwd="/else",
        user="1:2",
        terminal=True,
        hostname="box",
        readonly=True,
        net="host",
        rlimits=[rlimit_of("nofile=10:20")],
        cgroup="/x",
        hooks=[hook_of("poststop=/bin/sh -c 'echo x'")],
    )
    process = spec["process"]
    assert (process["args"], process["cwd"], process["terminal"]) == (["id"], "/else", True)
    assert process["user"] == {"uid": 1, "gid": 2, "additionalGids": [2]}
    assert process["rlimits"] == [{"type": "RLIMIT_NOFILE", "soft": 10, "hard": 20}]
    assert spec["hostname"] == "box"
    assert spec["root"]["readonly"] is True
    assert spec["linux"]["cgroupsPath"] == "/x"
    assert {"type": "network"} not in spec["linux"]["namespaces"]
    assert spec["hooks"] == {"poststop": [{"path": "/bin/sh", "args": ["/bin/sh", "-c", "echo x"]}]}


def test_a_bundle_that_is_there_stays_unless_forced(prepared: Prepared, tmp_path: Path) -> None:
    written(prepared, tmp_path / "b")
    (tmp_path / "b/volumes/data/kept").write_text("")
    with pytest.raises(AlreadyExists, match=r"config\.json is there"):
        prepared.bundle(tmp_path / "b")
    written(prepared, tmp_path / "b", force=True)
    assert (tmp_path / "b/volumes/data/kept").exists()


def test_a_volume_keeps_its_folder_whatever_other_volumes_there_are(
    prepared: Prepared, tmp_path: Path
) -> None:
    written(prepared, tmp_path / "b")
    mine = Volume(source="/srv", target="/data")
    spec, _ = written(prepared, tmp_path / "b", force=True, volumes=[mine])
    sources = {mount["destination"]: mount["source"] for mount in spec["mounts"]}
    assert sources["/data"] == "/srv"
    assert sources["/data/deep"] == str(tmp_path / "b/volumes/data%2Fdeep")


def test_files_that_are_no_bundles_are_not_written_over_and_a_failure_leaves_none(
    prepared: Prepared, tmp_path: Path
) -> None:
    (tmp_path / "hosts").write_text("mine")
    with pytest.raises(AlreadyExists, match="hosts is there"):
        prepared.bundle(tmp_path, seccomp="none")
    assert (tmp_path / "hosts").read_text() == "mine"
    with pytest.raises(InvalidArgument):
        prepared.bundle(tmp_path / "b", seccomp="none", user="nobody-known")
    written(prepared, tmp_path / "b")


def test_of_account_files_without_end_no_more_is_read_than_counts(prepared: Prepared, tmp_path: Path) -> None:
    class Endless(Asked):
        def read_files(self, thing: str, paths: list[bytes], **options: object) -> Iterator[bytes]:
            for _ in range(100):  # of a megabyte
                yield b"x" * (1 << 20)
            raise AssertionError("all of it was read")

    endless = Prepared(Endless(CONFIG), prepared.info)  # type: ignore[arg-type]  # it answers what is asked
    with pytest.raises(InvalidArgument, match="larger than"):
        endless.bundle(tmp_path / "b", seccomp="none", root_mounts=True)


@pytest.mark.parametrize(
    "options",
    [
        {"mounts": [Mount(type="tmpfs", source="tmpfs", target="/\udcff", options=())]},
        {"mounts": [Mount(type="tmpfs", source="tmpfs", target="/x", options=("\udcff",))]},
        {"annotations": {"a": "\udcff"}},
        {"hooks": [("poststop", ["/\udcff"])]},
    ],
)
def test_what_json_cannot_say_is_refused(prepared: Prepared, tmp_path: Path, options: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument):
        prepared.bundle(tmp_path / "b", seccomp="none", **options)


@pytest.mark.parametrize(
    ("read", "text"),
    [
        (mount_of, "type=tmpfs"),
        (mount_of, "source=relative,target=/x"),
        (rlimit_of, "nofile"),
        (rlimit_of, "no file=1"),
        (hook_of, "poststop"),
        (hook_of, "poststop='"),
    ],
)
def test_options_that_are_none_are_refused(read: Any, text: str) -> None:
    with pytest.raises(InvalidArgument):
        read(text)


def test_a_hook_of_an_unknown_kind_is_refused(prepared: Prepared, tmp_path: Path) -> None:
    for hook in (("never", ["/bin/true"]), ("poststop", ["relative"])):
        with pytest.raises(InvalidArgument, match="hook"):
            prepared.bundle(tmp_path / hook[0], hooks=[hook], seccomp="none")


# ------------------------------------------------------------------ seccomp

TEMPLATE = {
    "defaultAction": "SCMP_ACT_ERRNO",
    "defaultErrnoRet": 38,
    "archMap": [
        {"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86"]},
        {"architecture": "SCMP_ARCH_AARCH64", "subArchitectures": []},
    ],
    "syscalls": [
        {"names": ["read"], "action": "SCMP_ACT_ALLOW", "args": [], "comment": "", "includes": {}},
        {"names": ["caps"], "action": "SCMP_ACT_ALLOW", "includes": {"caps": ["CAP_BPF", "CAP_CHOWN"]}},
        {"names": ["nocaps"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1, "excludes": {"caps": ["CAP_BPF"]}},
        {"names": ["arm"], "action": "SCMP_ACT_ALLOW", "includes": {"arches": ["arm64"]}},
        {"names": ["notarm"], "action": "SCMP_ACT_ALLOW", "excludes": {"arches": ["arm64"]}},
        {"names": ["new"], "action": "SCMP_ACT_ALLOW", "includes": {"minKernel": "5.10"}},
    ],
}


@pytest.mark.parametrize(
    ("machine", "release", "capabilities", "names"),
    [
        ("x86_64", "5.10.0-9", {"CAP_BPF", "CAP_CHOWN"}, ["read", "caps", "notarm", "new"]),
        ("x86_64", "5.9", {"CAP_CHOWN"}, ["read", "nocaps", "notarm"]),
        ("aarch64", "6.1", set(), ["read", "nocaps", "arm", "new"]),
    ],
)
def test_of_a_profile_what_is_for_this_machine_counts(
    tmp_path: Path, machine: str, release: str, capabilities: set[str], names: list[str]
) -> None:
    path = tmp_path / "seccomp.json"
    path.write_text(json.dumps(TEMPLATE))
    found = seccomp_of(str(path), capabilities=capabilities, machine=machine, release=release)
    rules: Any = found["syscalls"]
    assert [rule["names"][0] for rule in rules] == names
    assert found["defaultErrnoRet"] == 38
    assert rules[0] == {"names": ["read"], "action": "SCMP_ACT_ALLOW", "args": []}
    first: Any = found["architectures"]
    assert first[0] == {"x86_64": "SCMP_ARCH_X86_64", "aarch64": "SCMP_ARCH_AARCH64"}[machine]


def test_a_profile_goes_into_the_bundle_in_the_runtimes_form(prepared: Prepared, tmp_path: Path) -> None:
    path = tmp_path / "seccomp.json"
    path.write_text(json.dumps(TEMPLATE))
    spec, done = written(prepared, tmp_path / "b", seccomp=str(path))
    assert spec["linux"]["seccomp"]["defaultAction"] == "SCMP_ACT_ERRNO"
    assert done.seccomp == str(path)
    for wrong in ({}, {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"action": "x"}]}):
        path.write_text(json.dumps(wrong))
        with pytest.raises(InvalidArgument):
            prepared.bundle(tmp_path / "b", seccomp=str(path), force=True)
    with pytest.raises(NotFound, match="no seccomp profile"):
        prepared.bundle(tmp_path / "b", seccomp=str(tmp_path / "none"), force=True)
