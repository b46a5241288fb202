"""What a commit captures: real operations in a mounted root, and the same tree from the image it makes.

The committed image is prepared elsewhere and must show what the root showed; its tar, laid by GNU tar over the
base's tree, must make the same.  Before trees are compared sockets go, and what overlayfs makes of hard links at
copy-up is settled: links are counted by the names that share the inode, and names that were one file below and
are the same still are one file, though one of them was copied up.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import socket
import stat
import struct
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

import orlop
from conftest import StoreDirs
from orlop.config import DRIVERS, Driver
from orlop.facade import Prepared
from orlop.observe import Call, Progress
from support import disks
from support.images import make_image, write_layout
from support.layers import Layer
from support.oracle import apply_layer, apply_layers, differences, snapshot
from support.trees import Entry
from support.vandal import Vandal

pytestmark = pytest.mark.root

SECOND = 1_000_000_000
CAPABILITY = bytes.fromhex("0100000200040000000000000000000000000000")
ACL = struct.pack(
    "<I" + "HHI" * 5, 2, 1, 6, 2**32 - 1, 2, 7, 10, 4, 4, 2**32 - 1, 16, 7, 2**32 - 1, 32, 4, 2**32 - 1
)


def image_layers() -> list[Layer]:
    """A large base and a small layer above it, so that the root has a stack below."""
    base = Layer().folder("./", mode=0o751, mtime_ns=7)
    for number in range(150):
        base.file(f"filler/{number}", b"%d" % number)
    base.folder("d", mode=0o1750, uid=7, gid=8, mtime_ns=5 * SECOND, xattrs={"user.a": b"v"})
    base.file("d/a", b"alpha", mode=0o4755, xattrs={"user.x": b"y", "security.capability": CAPABILITY})
    base.file("d/b", b"bravo").hardlink("d/c", to="d/b").hardlink("twin", to="d/b")
    base.folder("d/s").file("d/s/x", b"3" * 2000).folder("d/s/t").file("d/s/t/y", b"4").hardlink(
        "d/s/t/z", to="d/s/t/y"
    )
    base.symlink("l", "d").symlink("dangling", "nowhere").fifo("p").device("c", "char", 1, 3)
    base.folder("many").sparse("sparse", 1 << 20, [(8192, b"s" * 512)], how="gnu-1.0")
    for number in range(40):
        base.file(f"many/f{number}", b"m%d" % number)
    base.file("exact", b"exact", mtime_ns=1_600_000_000 * SECOND + 123).symlink("many/link", "f1")
    top = Layer().file("d/n", b"new").whiteout("many/f0").folder("e", mode=0o700).file("e/f/g", b"gg")
    return [base, top.folder("many/f1")]


@dataclass(slots=True)
class Heard:
    warnings: list[str]

    def progress(self, event: Progress) -> None:
        pass

    def warning(self, text: str) -> None:
        self.warnings.append(text)


BASE = "localhost/layout:latest"


class Ground:
    """What every test starts from, made once: a store with the image, the oracle's tree of it, and how it looks."""

    def __init__(self, folder: Path, oracle: Path) -> None:
        self._root, self.oracle = folder / "root", oracle / "tree"
        layers = [layer.tar() for layer in image_layers()]
        images = {
            name: make_image(tars, compression="none")
            for name, tars in (("base", layers[:1]), ("latest", layers))
        }
        with orlop.open(self._root, folder / "run") as store:
            store.load(write_layout(folder / "layout", images))
            with store.prepare("localhost/layout:base", folder / "base"):
                pass  # so that the second layer is a small top
            with store.prepare(BASE, folder / "below", view=True, mount=True) as view:
                self.below = snapshot(Path(view.path))
        tars = [oracle / f"{number}.tar" for number in range(len(layers))]
        for tar, data in zip(tars, layers, strict=True):
            tar.write_bytes(data)
        self.layers = len(layers)
        self.open_times = apply_layers(tars, self.oracle)

    def copy(self, root: Path) -> None:
        """A store of one's own."""
        copy(self._root, root)


def copy(source: Path, target: Path) -> None:
    subprocess.run(["cp", "-a", "--sparse=always", source, target], check=True)


@pytest.fixture(scope="module")
def ground(lab: Path, oracle_lab: Path) -> Iterator[Ground]:
    folders = [lab / "commits", oracle_lab / "commits"]
    for folder in folders:
        folder.mkdir()
    yield Ground(*folders)
    for folder in folders:
        disks.remove(folder)


@pytest.fixture
def store(ground: Ground, store_dirs: StoreDirs) -> Iterator[orlop.Store]:
    """A store that has the image."""
    ground.copy(store_dirs.root)
    with orlop.open(store_dirs.root, store_dirs.run) as opened:
        yield opened
        for root in opened.prepared():
            opened.get(root.path).cleanup()


class Bench:
    """A store with one image, and what is prepared from it."""

    def __init__(self, store: orlop.Store, driver: Driver, work: Path, oracle: Path, ground: Ground) -> None:
        self._store, self.driver, self._work, self._oracle = store, driver, work, oracle
        self._ground = ground
        self.warnings: list[str] = []
        self._count = 0

    def prepare(self, name: str = BASE, *, mount: bool = True) -> Prepared:
        self._count += 1
        path = self._work / f"root{self._count}"
        return self._store.prepare(name, path, mount=mount, driver=self.driver)

    def check(self, root: Prepared, *, tree: Path | None = None) -> str:
        """Commit a root and compare; returns the image's name.  ``tree`` is where it is mounted."""
        before = settled(snapshot(tree or Path(root.path)), self._below(root))
        image = root.commit(call=Call(observer=Heard(self.warnings)))
        again = root.commit()
        assert self.diff_ids(image.name) == self.diff_ids(again.name), "two commits of one upper differ"
        with self.prepare(image.name) as other:
            assert differences(before, snapshot(Path(other.path))) == []
        with self._store.prepare(
            image.name, self._work / "whole", mount=True, self_contained=True, driver="erofs"
        ) as other:
            assert differences(before, snapshot(Path(other.path))) == []
        self._check_by_oracle(image.name, before)
        return image.name

    def _below(self, root: Prepared) -> dict[bytes, Entry]:
        """The tree of the image that a root came from."""
        if root.info.image == BASE:
            return self._ground.below
        with self._store.prepare(root.info.image, self._work / "below", view=True, mount=True) as view:
            return snapshot(Path(view.path))

    def _check_by_oracle(self, name: str, before: dict[bytes, Entry]) -> None:
        self._count += 1
        tree = self._oracle / str(self._count)
        copy(self._ground.oracle, tree)
        open_times = self._ground.open_times
        tar = self._oracle / f"{self._count}.tar"
        for diff_id in self.diff_ids(name)[self._ground.layers :]:
            shutil.copyfile(self._store_layers / diff_id.partition(":")[2] / "layer.tar", tar)
            open_times = apply_layer(tar, tree, open_times)
        assert differences(before, snapshot(tree), ignore_mtime_of=open_times) == []
        subprocess.run(["rm", "-rf", tree, tar], check=True)

    def diff_ids(self, name: str) -> list[str]:
        return [str(layer.diff_id) for layer in self._store.inspect(name).layers]

    @property
    def _store_layers(self) -> Path:
        return Path(self._store.info().root) / "layers"

    def members(self, name: str) -> list[str]:
        """The names in the tar of an image's last layer."""
        tar = self._store_layers / self.diff_ids(name)[-1].partition(":")[2] / "layer.tar"
        told = subprocess.run(["tar", "-tf", tar], check=True, capture_output=True, text=True)
        return told.stdout.splitlines()


def settled(tree: dict[bytes, Entry], below: dict[bytes, Entry]) -> dict[bytes, Entry]:
    """A mounted tree as a commit sees it."""
    found = {path: entry for path, entry in tree.items() if entry.kind != "socket"}
    for path, entry in found.items():
        if entry.links is not None:
            names = len(entry.twins) or 1
            found[path] = replace(entry, links=names, twins=entry.twins if names > 1 else ())
    for group in {entry.twins for entry in below.values() if entry.twins}:
        same = {name for name in group if name in found and unlinked(found[name]) == unlinked(below[name])}
        # A name that shares its inode with another than these was written, and so left the group
        joined = tuple(sorted(name for name in same if same.issuperset(found[name].twins)))
        for name in joined if len(joined) > 1 else ():
            found[name] = replace(found[name], links=len(joined), twins=joined)
    return found


def unlinked(entry: Entry) -> Entry:
    return replace(entry, links=None, twins=())


@pytest.fixture(params=DRIVERS)
def driver(request: pytest.FixtureRequest) -> Driver:
    """How the roots are assembled that are changed and committed."""
    return request.param


OVERLAID = pytest.mark.parametrize("driver", ["erofs", "overlay"], indirect=True)
LONG = (pytest.mark.soak, pytest.mark.large)


def in_turn(name: str, cases: Iterable[str], drivers: Sequence[Driver]) -> pytest.MarkDecorator:
    """Each case with erofs, and in turn with one of the other drivers; with all of them in a long soak."""
    others = [driver for driver in drivers if driver != "erofs"]
    chosen = [
        pytest.param(driver, case, marks=LONG if driver not in ("erofs", others[at % len(others)]) else ())
        for at, case in enumerate(cases)
        for driver in drivers
    ]
    return pytest.mark.parametrize(("driver", name), chosen, indirect=["driver"])


@pytest.fixture
def bench(
    store: orlop.Store, driver: Driver, store_dirs: StoreDirs, oracle_dir: Path, ground: Ground
) -> Bench:
    return Bench(store, driver, store_dirs.work, oracle_dir, ground)


# ------------------------------------------------------------------ one kind of change each

Change = Callable[[Path], object]


def sh(script: str) -> Change:
    def run(root: Path) -> None:
        subprocess.run(["bash", "-euc", script], cwd=root, check=True)

    return run


def replaced_in_place(root: Path) -> None:
    """Written with the same bytes and the same time: copied up, and not changed."""
    for path in (root / "exact", root / "d/s/x"):
        about, data = path.stat(), path.read_bytes()
        path.write_bytes(data)
        os.utime(path, ns=(0, about.st_mtime_ns))


def same_size_and_time(root: Path) -> None:
    about = (root / "exact").stat()
    (root / "exact").write_bytes(b"EXACT")
    os.utime(root / "exact", ns=(0, about.st_mtime_ns))


def sockets(root: Path) -> None:
    here = os.open(".", os.O_RDONLY)
    os.chdir(root)  # a socket's path has at most 108 bytes
    try:
        for name in ("sock", "d/a"):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name)
            with socket.socket(socket.AF_UNIX) as listener:
                listener.bind(name)
    finally:
        os.fchdir(here)
        os.close(here)


def xattrs(root: Path) -> None:
    os.setxattr(root / "d/n", "user.k", b"v" * 1000)
    os.setxattr(root / "d/n", "trusted.overlay.opaque", b"y")  # an overlayfs inside would
    os.removexattr(root / "d/a", "user.x")
    os.setxattr(root / "d", "user.a", b"w")
    os.chmod(root / "d/s", 0o711)  # overlayfs asks the lower inode, and EROFS's cannot take ACLs: copy it up
    os.setxattr(root / "d/s", "system.posix_acl_access", ACL)
    os.setxattr(root / "l", "trusted.on_link", b"1", follow_symlinks=False)
    os.setxattr(root / "e", "trusted.overlay.redirect", b"/d")


def inside_overlay(root: Path) -> None:
    """What an overlayfs inside the container leaves in its upper, but for the devices 0/0."""
    (root / "var/upper/gone").mkdir(parents=True)
    os.setxattr(root / "var/upper/gone", "trusted.overlay.opaque", b"y")
    os.setxattr(root / "var/upper", "trusted.overlay.origin", b"handle")


def odd_names(root: Path) -> None:
    for name in (b"\xff\xfe", b"new\nline", b"-rf", b" ", b"n" * 255, "漢".encode() * 85, b"a:b,c\\"):
        with open(os.fsencode(root) + b"/" + name, "wb") as file:
            file.write(name)
        os.mkdir(os.fsencode(root) + b"/d/" + name)
    os.symlink(b"t" * 4095, os.fsencode(root) + b"/long")


def times(root: Path) -> None:
    for number, mtime_ns in enumerate([0, -1, -SECOND, -(2**31) * SECOND, 2**33 * SECOND + 7, 10 * SECOND]):
        path = root / f"time{number}"
        path.write_bytes(b"x")
        os.utime(path, ns=(0, mtime_ns))
    os.utime(root / "d", ns=(1, 1))
    os.utime(root / "l", ns=(2, 2), follow_symlinks=False)
    os.utime(root, ns=(3, 3))


def large(root: Path) -> None:
    with (root / "large").open("wb") as file:
        for number in range(40):
            file.write(bytes([number]) * 100_000)
    with (root / "holes").open("wb") as file:
        file.truncate(5 << 20)
        file.seek(3 << 20)
        file.write(b"x")


CHANGES: dict[str, Change] = {
    "new files": sh("echo 1 > n1; mkdir -p x/y/z; echo 2 > x/y/z/n2; : > empty"),
    "appended and overwritten": sh("echo more >> d/a; echo brand new > d/s/x; : > exact"),
    "chmod and chown": sh("chmod 600 d/n; chown 4294967294:99999 d/s; chmod 4711 d/s/x; chown -h 5:5 l; chmod 1777 ."),
    "times": times,
    "xattrs": xattrs,
    "what an overlayfs inside leaves": inside_overlay,
    "the same bytes and time of another content": same_size_and_time,
    "removed": sh("rm d/a l p c; rm -r d/s e; rm many/f2"),
    "a folder removed and made again": sh("rm -r many; mkdir many; echo n > many/f3; mkdir many/sub"),
    "a folder removed and made again with other things in it": sh(
        "rm -r d; mkdir -p d/s/t d/b; echo x > d/s/t/new; echo 4 > d/s/t/y; mkdir d/a"
    ),
    "all removed": sh("rm -rf ./*"),
    "files renamed": sh("mv d/a d/A; mv d/n n; mv exact d/s/exact; mv p pp; mv c cc; mv l ll"),
    "a folder moved": sh("mv d moved; mkdir d; mv moved/s d/"),
    "links": sh("ln d/a hard; ln -s d/a soft; ln -sfn e l; echo n > n1; ln n1 n2; ln n2 d/s/n3"),
    "a link to a file with several names": sh("ln d/b more; echo change >> d/s/t/y"),
    "one of several names removed": sh("rm twin"),
    "all of several names removed": sh("rm d/b d/c twin; rm -r d/s/t"),
    "devices and fifos": sh("mknod dev c 5 1; mknod d/blk b 7 300; mkfifo pipe; mkfifo d/s/pipe; chmod 640 pipe"),
    "files become folders and folders files": sh(
        "rm d/a; mkdir d/a; echo x > d/a/x; rm -r d/s; echo file > d/s; rm l; mkdir l; rm -r e; ln -s x e; "
        "rm p; echo f > p; rm -r many; mkfifo many"
    ),
    "odd names": odd_names,
    "large and sparse files": large,
    "the root's own metadata": sh("chmod 700 .; chown 3:4 ."),
    "whiteouts brought back": sh("rm many/f4; echo back > many/f4; echo zero > many/f0; rm -r many/f1; echo f > many/f1"),
    "deep": sh('for i in $(seq 100); do mkdir -p d; cd d; done; echo bottom > f; cd /; true'),
}  # fmt: skip


@in_turn("change", CHANGES, DRIVERS)
def test_a_commit_shows_what_the_root_showed(bench: Bench, change: str) -> None:
    with bench.prepare() as root:
        CHANGES[change](Path(root.path))
        name = bench.check(root)
        if bench.driver != "erofs":  # the long trials have series with every driver
            return
        with bench.prepare(name) as above:  # and a commit on the commit
            subprocess.run(
                ["bash", "-euc", "echo second > second; rm -rf filler/1*"], cwd=above.path, check=True
            )
            bench.check(above)


def test_nothing_changed_adds_no_layer(bench: Bench) -> None:
    with bench.prepare() as root:
        assert bench.diff_ids(root.commit().name) == bench.diff_ids("localhost/layout:latest")
        (Path(root.path) / "d/s/x").read_bytes()
        assert bench.diff_ids(bench.check(root)) == bench.diff_ids("localhost/layout:latest")


def test_what_was_touched_and_is_the_same_adds_no_layer(bench: Bench) -> None:
    with bench.prepare() as root:
        replaced_in_place(Path(root.path))
        os.chmod(Path(root.path) / "d/a", 0o4755)
        os.chown(Path(root.path) / "d/s", 0, 0)
        assert bench.diff_ids(bench.check(root)) == bench.diff_ids("localhost/layout:latest")


def test_an_entry_is_in_the_layer_if_it_differs(bench: Bench) -> None:
    with bench.prepare() as root:
        top = Path(root.path)
        about = (top / "d").stat()
        (top / "d/s/x").write_bytes(b"new")
        (top / "many/f7").unlink()
        (top / "d/a").chmod(0o4755)
        os.utime(top / "d", ns=(0, about.st_mtime_ns))
        # Folders above a change come along, since tools that unpack layers apart would make them anew
        assert bench.members(bench.check(root)) == ["./", "d/", "d/s/", "d/s/x", "many/", "many/.wh.f7"]


@pytest.mark.parametrize("driver", ["erofs"], indirect=True)
def test_the_same_change_gives_the_same_layer_whatever_the_driver_and_the_form_of_the_chain(
    bench: Bench, store: orlop.Store
) -> None:
    change = "rm -r d/s; mkdir d/s; echo n > d/s/n; ln d/s/n d/s/m; chmod 600 d/a; for f in . d d/s d/s/n; do touch -d @5 $f; done"
    found = set()
    ways = [("erofs", False), ("erofs", True), ("overlay", False), ("native", False)]
    for number, (driver, whole) in enumerate(ways):
        path = Path(store.info().root).parent / "work" / f"form{number}"
        with store.prepare(
            "localhost/layout:latest", path, mount=True, self_contained=whole, driver=driver
        ) as root:
            subprocess.run(["bash", "-euc", change], cwd=path, check=True)
            found.add(bench.diff_ids(root.commit().name)[-1])
    assert len(found) == 1


def test_sockets_are_left_out_and_what_they_replaced_is_gone(bench: Bench) -> None:
    with bench.prepare() as root:
        sockets(Path(root.path))
        name = bench.check(root)
    assert sorted(bench.warnings) == ["/d/a is left out: a socket", "/sock is left out: a socket"]
    assert "d/.wh.a" in bench.members(name)


def test_names_that_mean_whiteouts_are_left_out(bench: Bench) -> None:
    with bench.prepare() as root:
        top = Path(root.path)
        for path in ("d/.wh.a", ".wh..wh..opq", ".wh."):
            (top / path).write_bytes(b"x")
        (top / ".wh.many").mkdir()
        (top / ".wh.many/f").write_bytes(b"x")
        (top / "n").write_bytes(b"n")
        name = root.commit(call=Call(observer=Heard(bench.warnings))).name
    assert len(bench.warnings) == 4
    assert not [member for member in bench.members(name) if ".wh." in member]
    with bench.prepare(name) as other:
        assert {"d", "many", "n", "twin"} <= set(os.listdir(other.path))
        assert os.listdir(Path(other.path) / "many")


# ------------------------------------------------------------------ any series of changes


def vandalise(bench: Bench, seed: int) -> None:
    dice = random.Random(seed)
    name = BASE
    for _ in range(3):
        with bench.prepare(name) as root:
            Vandal(dice, Path(root.path)).run(dice.choice([3, 12, 40]))
            name = bench.check(root)


@pytest.mark.parametrize(("driver", "seed"), list(zip(DRIVERS, range(3), strict=True)), indirect=["driver"])
def test_any_series_of_changes_is_captured(bench: Bench, seed: int) -> None:
    vandalise(bench, seed)


@pytest.mark.soak
@pytest.mark.timeout(0)
def test_many_series_of_changes_are_captured(bench: Bench, soak_seconds: float) -> None:
    deadline, seed = time.monotonic() + soak_seconds, int(os.environ.get("SOAK_SEED", "1000"))
    while time.monotonic() < deadline:
        seed += 1
        try:
            vandalise(bench, seed)
        except BaseException as exc:
            exc.add_note(f"seed {seed}")
            raise


# ------------------------------------------------------------------ uppers that others mounted


@contextlib.contextmanager
def mounted_by_hand(root: Prepared, target: Path, options: str) -> Iterator[Path]:
    """The root's overlay with features that orlop's own mounts switch off."""
    (mount,) = root.mounts
    folders = [option for option in mount.options if "dir=" in option and not option.startswith("redirect")]
    target.mkdir()
    command = ["mount", "-t", "overlay", "overlay", "-o", ",".join([*folders, options]), target]
    subprocess.run(command, check=True)
    try:
        yield target
    finally:
        subprocess.run(["umount", target], check=True)


BY_OTHERS: dict[str, str] = {
    "a lower folder renamed": "mv d moved",
    "a lower folder renamed twice, deeper": "mkdir x; mv d/s x/s1; mv x/s1 x/s2; mv x y",
    "a lower folder renamed within its folder": "mv d/s d/S; mv d/S/t d/S/T",
    "a renamed folder changed": "mv d moved; rm moved/a moved/s/x; echo n > moved/n2; echo m > moved/s/t/y; chmod 700 moved/s",
    "a new folder where the old one was": "mv d moved; mkdir d; echo n > d/a",
    "another folder renamed over the place": "mv d moved; mv many d; mv moved many",
    "a folder renamed into a renamed one": "mv many d/many; mv d moved; mv moved/many/f1 moved/f1",
    "a folder of the upper layer renamed": "mv e E; mv E/f E/F",
    "only the mode of a file": "chmod 600 d/a d/s/x sparse exact",
    "the mode of a file, renamed": "chmod 600 d/a; mv d/a A; chmod 600 d/s/x; mv d/s/x d/s/X; mv d moved",
    "the mode of a file in a renamed folder": "mv d moved; chmod 600 moved/s/x; chown 5:5 moved/a",
    "the mode of a file with several names": "chmod 600 d/b; ln d/a a2; chmod 600 d/a",
    "the mode and then the content": "chmod 600 d/a; echo more >> d/a",
    "a renamed folder removed": "mv d moved; rm -r moved",
}


@pytest.mark.parametrize(
    ("driver", "case"),
    [
        pytest.param(driver, case, marks=LONG if at % 2 != turn else ())
        for at, case in enumerate(BY_OTHERS)
        for turn, driver in enumerate(("erofs", "overlay"))
    ],
    indirect=["driver"],
)  # in turn, and with both drivers in a long soak
def test_redirects_and_metacopies_are_understood(bench: Bench, store_dirs: StoreDirs, case: str) -> None:
    with bench.prepare(mount=False) as root:
        features = "redirect_dir=on,metacopy=on,index=off,xino=on"
        with mounted_by_hand(root, store_dirs.work / "hand", features) as target:
            # A name that stays where it was cannot keep sharing its inode with one that moves
            subprocess.run(["bash", "-euc", "rm twin; " + BY_OTHERS[case]], cwd=target, check=True)
            bench.check(root, tree=target)


@OVERLAID
def test_whiteouts_in_their_other_form_are_understood(bench: Bench, store_dirs: StoreDirs) -> None:
    """Zero-size files with an xattr, in a folder that says so: what a nested overlayfs writes."""
    with bench.prepare(mount=False) as root:
        (upper,) = [Path(option[9:]) for option in root.mounts[0].options if option.startswith("upperdir=")]
        (upper / "d").mkdir()
        os.setxattr(upper / "d", "trusted.overlay.opaque", b"x")
        (upper / "d/a").touch()
        os.setxattr(upper / "d/a", "trusted.overlay.whiteout", b"y")
        (upper / "d/n2").write_bytes(b"new")
        os.mknod(upper / "twin", stat.S_IFCHR, 0)
        os.mknod(upper / "nothing", stat.S_IFCHR, 0)
        name = root.commit().name
        members = bench.members(name)
        assert [member for member in members if ".wh." in member] == ["d/.wh.a", ".wh.twin"]
        with bench.prepare(name) as other:
            assert not os.path.lexists(Path(other.path) / "d/a")
            assert os.path.lexists(Path(other.path) / "d/b")


# ------------------------------------------------------------------ depth


def at_the_bottom(root: Path, names: list[str], act: Callable[[int], None], *, make: bool = False) -> None:
    fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    for name in names:
        if make:
            os.mkdir(name, dir_fd=fd)
        deeper = os.open(name, os.O_RDONLY | os.O_DIRECTORY, dir_fd=fd)
        os.close(fd)
        fd = deeper
    act(fd)
    os.close(fd)


DEEP = {"300 levels": ["d"] * 300, "beyond PATH_MAX": ["n" * 200] * 60}


@in_turn("how", DEEP, DRIVERS)
def test_deep_folders_are_captured(bench: Bench, how: str) -> None:
    names = DEEP[how]

    def fill(fd: int) -> None:
        for name in ("a", "b"):
            with open(os.open(name, os.O_WRONLY | os.O_CREAT, 0o644, dir_fd=fd), "wb") as file:
                file.write(b"bottom")
        os.link("a", "c", src_dir_fd=fd, dst_dir_fd=fd)

    def change(fd: int) -> None:
        os.unlink("b", dir_fd=fd)
        with open(os.open("a", os.O_WRONLY | os.O_APPEND, dir_fd=fd), "ab") as file:
            file.write(b"!")
        for name in names[:3]:
            os.mkdir(name, dir_fd=fd)
            break

    with bench.prepare() as root:
        top = Path(root.path) / "deep"
        top.mkdir()
        at_the_bottom(top, names, fill, make=True)
        before = settled(snapshot(Path(root.path)), {})
        name = root.commit().name
    with bench.prepare(name) as root:
        assert differences(before, snapshot(Path(root.path))) == []
        at_the_bottom(Path(root.path) / "deep", names, change)
        before = settled(snapshot(Path(root.path)), {})
        name = root.commit().name
        with bench.prepare(name) as other:
            assert differences(before, snapshot(Path(other.path))) == []
