"""The oracle itself, against trees written by hand, and against umoci on random layers."""

from __future__ import annotations

import random
import struct
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from support import disks
from support.images import make_image, push, write_layout
from support.layers import MTIME, Layer, SparseForm
from support.oracle import NotJudged, apply_layers, differences, snapshot
from support.registries import Registry, serve
from support.trees import Entry

pytestmark = [pytest.mark.root, pytest.mark.any_kernel]

SECOND = 1_000_000_000
CAPABILITY = bytes.fromhex("0100000200040000000000000000000000000000")  # cap_net_bind_service+ep
NONE = 2**32 - 1
# A version, then entries of tag, permissions and id: the owner, user 10, the group, the mask, others
ACL = struct.pack("<I" + "HHI" * 5, 2, 1, 6, NONE, 2, 7, 10, 4, 4, NONE, 16, 7, NONE, 32, 4, NONE)
DEFAULT_ACL = struct.pack("<I" + "HHI" * 5, 2, 1, 7, NONE, 2, 7, 255, 4, 5, NONE, 16, 7, NONE, 32, 5, NONE)

Shape = Mapping[str, str]


@pytest.fixture
def apply(oracle_dir: Path) -> Callable[..., tuple[dict[bytes, Entry], set[bytes]]]:
    """The tree that the oracle makes of layers, and the folders whose mtimes are open."""

    def apply(*layers: Layer) -> tuple[dict[bytes, Entry], set[bytes]]:
        tree = oracle_dir / "tree"
        open_times = apply_layers(write(oracle_dir, *layers), tree)
        return snapshot(tree), open_times

    return apply


def write(folder: Path, *layers: Layer) -> list[Path]:
    tars = [folder / f"{number}.tar" for number in range(len(layers))]
    for tar, layer in zip(tars, layers, strict=True):
        tar.write_bytes(layer.tar())
    return tars


def shape(folder: Path, tree: Mapping[bytes, Entry]) -> dict[str, str]:
    """A tree in short: a folder is "/", a symlink "-> target", a file what is in it."""
    short = {}
    for path, entry in tree.items():
        if entry.kind == "folder":
            what = "/"
        elif entry.kind == "symlink":
            what = "-> " + entry.target.decode()
        elif entry.kind == "file":
            what = (folder / "tree" / path.decode()).read_text()
        else:
            what = entry.kind
        if path:
            short[path.decode()] = what
    return short


BASE = (
    Layer()
    .folder("d")
    .file("d/a", b"1")
    .file("d/b", b"2")
    .folder("d/s")
    .file("d/s/x", b"3")
    .symlink("l", "d")
)

CASES: list[tuple[str, list[Layer], Shape]] = [
    (
        "a whiteout hides a file and a whole folder",
        [BASE, Layer().whiteout("d/a").whiteout("d/s")],
        {"d": "/", "d/b": "2", "l": "-> d"},
    ),
    (
        "a whiteout speaks of lower layers only, before the entry and after it",
        [BASE, Layer().whiteout("d/a").file("d/a", b"n").file("d/b", b"m").whiteout("d/b")],
        {"d": "/", "d/a": "n", "d/b": "m", "d/s": "/", "d/s/x": "3", "l": "-> d"},
    ),
    (
        "a whiteout of a folder that the layer brings anew leaves the new things",
        [BASE, Layer().whiteout("d").file("d/n", b"n")],
        {"d": "/", "d/n": "n", "l": "-> d"},
    ),
    (
        "a whiteout of what is not there hides nothing",
        [BASE, Layer().whiteout("d/nothing").whiteout("l/a")],
        # a whiteout is an entry, so the symlink that is its parent becomes a folder
        {"d": "/", "d/a": "1", "d/b": "2", "d/s": "/", "d/s/x": "3", "l": "/"},
    ),
    (
        "an opaque folder keeps only what its own layer brings",
        [BASE, Layer().file("d/n", b"n").opaque("d")],
        {"d": "/", "d/n": "n", "l": "-> d"},
    ),
    ("an opaque root hides everything", [BASE, Layer().opaque("").file("n", b"n")], {"n": "n"}),
    (
        "a third layer brings a hidden name back",
        [BASE, Layer().whiteout("d/s"), Layer().folder("d/s").file("d/s/y", b"y")],
        {"d": "/", "d/a": "1", "d/b": "2", "d/s": "/", "d/s/y": "y", "l": "-> d"},
    ),
    (
        "a file replaces a folder, a folder a file, a symlink a folder",
        [
            BASE,
            Layer().file("d/s", b"f").folder("d/a").symlink("d/b", "a"),
            Layer().folder("d/b").file("d/b/i", b"i"),
        ],
        {"d": "/", "d/s": "f", "d/a": "/", "d/b": "/", "d/b/i": "i", "l": "-> d"},
    ),
    (
        "a folder replaces a symlink to a folder and does not merge into its target",
        [BASE, Layer().folder("l").file("l/n", b"n")],
        {"d": "/", "d/a": "1", "d/b": "2", "d/s": "/", "d/s/x": "3", "l": "/", "l/n": "n"},
    ),
    (
        "a parent that is a lower layer's symlink becomes a folder",
        [BASE, Layer().file("l/n", b"n")],
        {"d": "/", "d/a": "1", "d/b": "2", "d/s": "/", "d/s/x": "3", "l": "/", "l/n": "n"},
    ),
    (
        "a parent that is the same layer's symlink is followed",
        [Layer().folder("usr").folder("usr/bin").symlink("bin", "usr/bin").file("bin/sh", b"s")],
        {"usr": "/", "usr/bin": "/", "usr/bin/sh": "s", "bin": "-> usr/bin"},
    ),
    (
        "of one path in one tar the last wins, whatever it was",
        [
            Layer()
            .file("a", b"1")
            .file("a", b"2")
            .folder("b")
            .file("b/x", b"x")
            .file("b", b"f")
            .file("c")
            .folder("c")
        ],
        {"a": "2", "b": "f", "c": "/"},
    ),
    (
        "absolute names and dots are cleaned",
        [Layer().file("/a", b"1").file("./b", b"2").file("d/./c", b"3").hardlink("e", to="/a")],
        {"a": "1", "b": "2", "d": "/", "d/c": "3", "e": "1"},
    ),
    (
        "a device 0/0 is left out, and hides nothing",
        [BASE, Layer().device("d/a", "char", 0, 0).device("n", "char", 0, 0)],
        {"d": "/", "d/a": "1", "d/b": "2", "d/s": "/", "d/s/x": "3", "l": "-> d"},
    ),
]


@pytest.mark.parametrize(
    ("layers", "expected"), [case[1:] for case in CASES], ids=[case[0] for case in CASES]
)
def test_layers_make_the_tree(
    apply: Callable, oracle_dir: Path, layers: list[Layer], expected: Shape
) -> None:
    tree, _ = apply(*layers)
    assert shape(oracle_dir, tree) == expected


def test_a_folder_only_implied_keeps_what_lower_layers_said_of_it(apply: Callable) -> None:
    lower = Layer().folder("d", mode=0o2750, uid=7, gid=8, mtime_ns=5 * SECOND + 6, xattrs={"user.a": b"v"})
    lower.file("d/old")
    tree, open_times = apply(lower, Layer().file("d/sub/new").file("e/f/new").whiteout("d/old"))
    kept = tree[b"d"]
    assert (kept.mode, kept.uid, kept.gid, kept.mtime_ns) == (0o2750, 7, 8, 5 * SECOND + 6)
    assert kept.xattrs == (("user.a", b"v"),)
    assert open_times == {b"", b"d/sub", b"e", b"e/f"}
    for path in open_times:  # also below a folder with the set-group-id bit, which new folders inherit
        assert (tree[path].mode, tree[path].uid, tree[path].gid) == (0o755, 0, 0)


def test_a_folder_given_again_has_only_the_upper_layers_metadata(apply: Callable) -> None:
    lower = Layer().folder("d", mode=0o700, uid=7, xattrs={"user.a": b"1", "user.b": b"2"}).file("d/x")
    tree, open_times = apply(lower, Layer().folder("d", mode=0o711, mtime_ns=9, xattrs={"user.b": b"3"}))
    assert (tree[b"d"].mode, tree[b"d"].uid, tree[b"d"].mtime_ns) == (0o711, 0, 9)
    assert tree[b"d"].xattrs == (("user.b", b"3"),)
    assert b"d/x" in tree
    assert open_times == {b""}


def test_a_time_that_a_later_layer_gives_is_no_longer_open(apply: Callable) -> None:
    tree, open_times = apply(Layer().file("d/x"), Layer().folder("d", mtime_ns=4), Layer().file("d/y"))
    assert open_times == {b""}
    assert tree[b"d"].mtime_ns == 4


def test_files_do_not_inherit_a_default_acl_of_a_folder_below(apply: Callable) -> None:
    lower = Layer().folder("d", xattrs={"system.posix_acl_default": DEFAULT_ACL})
    tree, _ = apply(lower, Layer().file("d/x", mode=0o640).folder("d/s"))
    assert tree[b"d"].xattrs == (("system.posix_acl_default", DEFAULT_ACL),)
    assert (tree[b"d/x"].xattrs, tree[b"d/x"].mode) == ((), 0o640)
    assert tree[b"d/s"].xattrs == ()


def test_a_hard_link_to_a_lower_file_shares_its_inode(apply: Callable) -> None:
    lower = Layer().file("a", b"data", mode=0o600, mtime_ns=3)
    tree, _ = apply(lower, Layer().hardlink("d/b", to="a", mode=0o777, mtime_ns=99))
    for path in (b"a", b"d/b"):
        assert tree[path].twins == (b"a", b"d/b")
        assert (tree[path].links, tree[path].mode, tree[path].mtime_ns, tree[path].size) == (2, 0o600, 3, 4)


def test_replacing_one_name_of_a_hard_linked_file_leaves_the_other(apply: Callable, oracle_dir: Path) -> None:
    tree, _ = apply(Layer().file("a", b"old").hardlink("b", to="a"), Layer().file("a", b"new"))
    assert shape(oracle_dir, tree) == {"a": "new", "b": "old"}
    assert tree[b"b"].twins == ()


@pytest.mark.parametrize("form", ["pax", "gnu"])
def test_metadata_arrives_whole(apply: Callable, form: str) -> None:
    long = b"n" * 120 + b"/" + b"m" * 255
    layer = Layer(form)  # type: ignore[arg-type]
    layer.file("big", mode=0o6755, uid=2**32 - 2, gid=2**31 + 5, mtime_ns=4_000_000_000 * SECOND)
    layer.file("ancient", mtime_ns=-1000 * SECOND)
    layer.file(b"\xff\xfe not utf-8").file("ä € 漢").file(long, b"long").symlink("s", b"t" * 300)
    layer.device("char", "char", 5, 300).device("block", "block", 8, 1).fifo("fifo", mode=0o620)
    tree, _ = apply(layer)
    big = tree[b"big"]
    assert (big.mode, big.uid, big.gid, big.mtime_ns) == (
        0o6755,
        2**32 - 2,
        2**31 + 5,
        4_000_000_000 * SECOND,
    )
    assert tree[b"ancient"].mtime_ns == -1000 * SECOND
    assert tree[long].size == 4
    assert {b"\xff\xfe not utf-8", "ä € 漢".encode()} <= tree.keys()
    assert (tree[b"s"].target, tree[b"s"].size) == (b"t" * 300, 300)
    assert (tree[b"char"].kind, tree[b"char"].device) == ("char", (5, 300))
    assert (tree[b"block"].kind, tree[b"block"].device) == ("block", (8, 1))
    assert (tree[b"fifo"].kind, tree[b"fifo"].mode) == ("fifo", 0o620)


def test_xattrs_of_every_kind_and_nanoseconds_arrive(apply: Callable) -> None:
    xattrs = {
        "security.capability": CAPABILITY,
        "system.posix_acl_access": ACL,
        "trusted.x": b"\0\xff=\n",
        "user.empty": b"",
        "user.large": bytes(range(256)) * 160,
    }
    layer = Layer().file("f", b"x", uid=5, mode=0o674, mtime_ns=-7 * SECOND - 123, xattrs=xattrs)
    layer.symlink("s", "f", mtime_ns=8, xattrs={"trusted.on_link": b"1"})
    tree, _ = apply(layer)
    assert dict(tree[b"f"].xattrs) == xattrs
    assert tree[b"f"].mtime_ns == -7 * SECOND - 123
    assert (tree[b"s"].xattrs, tree[b"s"].mtime_ns) == ((("trusted.on_link", b"1"),), 8)


@pytest.mark.parametrize("how", ["old-gnu", "gnu-0.0", "gnu-0.1", "gnu-1.0"])
@pytest.mark.parametrize("count", [0, 1, 4, 60])
def test_sparse_files_have_their_bytes(
    apply: Callable, oracle_dir: Path, how: SparseForm, count: int
) -> None:
    pieces = [(number * 8192 + 512, b"%512d" % number) for number in range(count)]
    pieces += [(900_000, b"a last piece")] if count == 4 else []
    size = 1_000_000
    expected = bytearray(size)
    for offset, data in pieces:
        expected[offset : offset + len(data)] = data
    form = "gnu" if how == "old-gnu" else "pax"
    tree, _ = apply(Layer(form).sparse("d/f", size, pieces, how=how, mode=0o600).file("after", b"it"))
    assert (oracle_dir / "tree/d/f").read_bytes() == bytes(expected)
    assert (tree[b"d/f"].size, tree[b"d/f"].mode, tree[b"after"].size) == (size, 0o600, 2)
    assert tree.keys() == {b"", b"d", b"d/f", b"after"}


@pytest.mark.parametrize(
    "layer",
    [
        Layer().file("a/../b"),
        Layer().folder("x").symlink("l", "/x").file("l/f"),
        Layer().folder("x").symlink("x/l", "..").file("x/l/f"),
        Layer().file("a").file("a/b"),
        Layer().file("d/.wh."),
        Layer().file("d/.wh..."),
        Layer().symlink("a", "b").symlink("b", "a").file("a/f"),
    ],
)
def test_what_gnu_tar_cannot_judge_is_refused(apply: Callable, layer: Layer) -> None:
    with pytest.raises(NotJudged):
        apply(layer)


def test_a_damaged_tar_is_an_error(oracle_dir: Path) -> None:
    tar = oracle_dir / "cut.tar"
    tar.write_bytes(Layer().file("a").file("f", b"x" * 5000).tar()[:-3000])
    with pytest.raises(Exception, match=r"tar|unexpected end"):
        apply_layers([tar], oracle_dir / "tree")


CHANGES: list[tuple[str, dict[str, object]]] = [
    ("mode", {"mode": 0o600}),
    ("uid", {"uid": 1}),
    ("gid", {"gid": 1}),
    ("mtime_ns", {"mtime_ns": MTIME * SECOND + 1}),
    ("digest", {"data": b"dat4"}),
    ("xattrs", {"xattrs": {"user.a": b"2"}}),
]


@pytest.mark.parametrize(("what", "change"), CHANGES, ids=[case[0] for case in CHANGES])
def test_each_difference_is_told(apply: Callable, what: str, change: dict[str, object]) -> None:
    metadata: dict[str, object] = {"data": b"data", "mode": 0o644, "xattrs": {"user.a": b"1"}}
    tree, _ = apply(Layer().file("other", **metadata).file("f", **{**metadata, **change}))
    lines = differences({b"f": tree[b"other"]}, {b"f": tree[b"f"]})
    assert len(lines) == 1
    assert lines[0].startswith(f"f: {what} is ")


def test_kinds_presence_and_links_differ_aloud(apply: Callable) -> None:
    tree, _ = apply(
        Layer().file("f").folder("d").symlink("s", "f").hardlink("h", to="f").device("c", "char", 1, 3)
    )
    assert differences(tree, tree) == []
    del (fewer := dict(tree))[b"d"]
    assert differences(tree, fewer) == ["d: missing, expected a folder"]
    assert differences(fewer, tree) == ["d: unexpected folder"]
    assert differences({b"x": tree[b"d"]}, {b"x": tree[b"s"]}) == ["x: is a symlink, expected a folder"]
    broken = {**tree, b"f": replace(tree[b"f"], links=1, twins=())}
    assert differences(tree, broken) == [
        "f: links is 1, expected 2",
        "f: twins is (), expected (b'f', b'h')",
    ]
    moved = {**tree, b"c": replace(tree[b"c"], device=(1, 4)), b"s": replace(tree[b"s"], target=b"g")}
    assert [line.split()[1] for line in differences(tree, moved)] == ["device", "target"]
    later = {**tree, b"d": replace(tree[b"d"], mtime_ns=1)}
    assert len(differences(tree, later)) == 1
    assert differences(tree, later, ignore_mtime_of={b"d"}) == []


def test_a_snapshot_reaches_paths_beyond_path_max(workdir: Path) -> None:
    script = 'for i in $(seq 60); do mkdir "$0" && cd -P "$0" || exit 1; done; echo deep > file'
    subprocess.run(["bash", "-c", script, "n" * 200], cwd=workdir, check=True)
    tree = snapshot(workdir)
    assert len(tree) == 62
    assert tree[b"/".join([b"n" * 200] * 60 + [b"file"])].size == 5


# ------------------------------------------------------------------ the rest of the support


def test_a_registry_keeps_what_is_pushed_and_deletes(registry: Registry) -> None:
    image = make_image([BASE.tar()], compression="zstd")
    assert push(registry, "support/app", "v1", image) == image.digest
    where = f"/v2/support/app/manifests/{image.digest}"
    accept = {"Accept": image.media_type}
    assert registry.request(where, headers=accept)[2] == image.document
    assert registry.request(where, method="DELETE")[0] == 202
    assert registry.request(where, headers=accept)[0] == 404


def test_a_registry_with_authentication_refuses_strangers(registry_auth: Registry) -> None:
    stranger = replace(registry_auth, user="")
    assert stranger.request("/v2/")[0] == 401
    assert replace(registry_auth, password="wrong").request("/v2/")[0] == 401
    assert registry_auth.request("/v2/")[0] == 200


@pytest.mark.parametrize("docker", [False, True])
def test_skopeo_takes_the_images_and_layouts_made_here(
    workdir: Path, registry: Registry, docker: bool
) -> None:
    compression = "gzip" if docker else "zstd"
    image = make_image([BASE.tar(), Layer().file("n").tar()], docker=docker, compression=compression)
    push(registry, "support/skopeo", "v1", image)
    command = ["skopeo", "inspect", "--tls-verify=false", "--format", "{{.Digest}}"]
    told = subprocess.run(
        [*command, f"docker://{registry.host}/support/skopeo:v1"], capture_output=True, text=True, check=True
    )
    assert told.stdout.strip() == image.digest
    if docker:
        return  # an OCI layout holds OCI's media types only
    layout = write_layout(workdir / "layout", {"v1": image})
    told = subprocess.run([*command, f"oci:{layout}:v1"], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == image.digest


def test_the_disk_of_a_killed_run_is_swept_and_a_living_ones_is_not(workdir: Path, lab: Path) -> None:
    parent = workdir / "scratch"
    parent.mkdir()
    dead = parent / (disks.PREFIX + "dead")
    (dead / "disk").mkdir(parents=True)
    (dead / "lock").touch()
    subprocess.run(["mount", "-t", "tmpfs", "none", dead / "disk"], check=True)
    with disks.scratch_folder(parent) as living:
        assert disks.sweep(parent) == [dead]
        assert living.is_dir()
    assert list(parent.iterdir()) == []
    assert disks.mounts_below(parent) == []


def test_the_registry_ends_with_its_context(workdir: Path) -> None:
    with serve(workdir / "registry") as running:
        assert disks.users(workdir)
        assert running.request("/v2/")[0] == 200
    assert disks.users(workdir) == {}


# ------------------------------------------------------------------ beside another tool


@pytest.mark.soak
def test_umoci_makes_the_same_tree_of_random_layers(oracle_dir: Path, soak_seconds: float) -> None:
    deadline, seed = time.monotonic() + soak_seconds, 0
    while time.monotonic() < deadline:
        seed += 1
        folder = oracle_dir / str(seed)
        folder.mkdir()
        layers = random_layers(random.Random(seed))
        open_times = apply_layers(write(folder, *layers), folder / "tree")
        write_layout(folder / "layout", {"latest": make_image([layer.tar() for layer in layers])})
        subprocess.run(
            [
                "umoci",
                "unpack",
                "--keep-dirlinks=false",
                "--image",
                f"{folder}/layout:latest",
                f"{folder}/bundle",
            ],
            check=True,
            capture_output=True,
        )
        expected, actual = snapshot(folder / "tree"), snapshot(folder / "bundle/rootfs")
        found = differences(expected, actual, ignore_mtime_of=open_times)
        assert found == [], f"seed {seed}"
        subprocess.run(["rm", "-rf", folder], check=True)
    assert seed > 0


def random_layers(dice: random.Random) -> list[Layer]:
    """Layers over few names, so that they hit each other.  Folders are always given, parents first.

    Opaque marks come before what stands in their folder: after it umoci spoils mtimes further down.
    """
    names = ["a", "b", "c"]
    layers = []
    for _ in range(dice.randint(2, 5)):
        layer, kinds = Layer(), {"": "folder"}
        for _ in range(dice.randint(1, 12)):
            folder = dice.choice([name for name, kind in kinds.items() if kind == "folder"])
            path = f"{folder}/{dice.choice(names)}".lstrip("/")
            if path in kinds or path.count("/") > 3:
                continue
            files = [name for name, kind in kinds.items() if kind == "file"]
            kind = dice.choice(
                ["folder", "folder", "file", "file", "symlink", "hardlink", "whiteout", "opaque"]
            )
            metadata = {
                "mode": dice.choice([0o755, 0o640]),
                "uid": dice.randint(0, 3),
                "mtime_ns": dice.randint(0, 99) * SECOND,
            }
            if kind == "folder":
                layer.folder(path, **metadata)
            elif kind == "file":
                layer.file(path, dice.randbytes(dice.randint(0, 900)), **metadata)
            elif kind == "symlink":
                layer.symlink(path, dice.choice(names))
            elif kind == "hardlink" and files:
                layer.hardlink(path, to=dice.choice(files))
            elif kind == "whiteout":
                layer.whiteout(path)
            elif kind == "opaque" and folder and not any(name.startswith(folder + "/") for name in kinds):
                layer.opaque(folder)
                continue
            else:
                continue
            kinds[path] = kind
        layers.append(layer)
    return layers
