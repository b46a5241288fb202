"""Looking into images, layers and prepared roots without mounting: the same as the mounted trees show."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import shutil
import sqlite3
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import orlop
from conftest import StoreDirs
from orlop import errors
from orlop.cli import main
from orlop.config import DRIVERS, Driver
from orlop.images.browsing.globs import Glob
from orlop.images.browsing.trees import Tree, open_tree
from orlop.images.store import LocalStore
from orlop.linux.mount import perform, umount
from orlop.linux.mountinfo import is_mount_point
from orlop.observe import Call
from orlop.service import Daemon
from support import users
from support.images import make_image, write_layout
from support.layers import MTIME, Layer
from support.random_layers import random_stack
from support.trees import Entry, differences, snapshot
from support.users import Mode

pytestmark = pytest.mark.root
NOT_THERE = (errors.NotFound, errors.FailedPrecondition)  # the latter for a symlink that leads to itself
MOMENT = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(MTIME))

_KINDS = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "folder",
    stat.S_IFLNK: "symlink",
    stat.S_IFCHR: "char",
    stat.S_IFBLK: "block",
    stat.S_IFIFO: "fifo",
}


@contextlib.contextmanager
def tree_of(store: orlop.Store, thing: str) -> Iterator[Tree]:
    verbs = store.verbs
    assert isinstance(verbs, LocalStore)
    with open_tree(verbs._core, verbs._chains, verbs._roots.grounds, thing, Call()) as tree:
        yield tree


def shown(tree: Tree) -> dict[bytes, Entry]:
    """A tree as `support.trees.snapshot` would have it."""
    found: dict[bytes, Entry] = {}
    names: dict[object, list[bytes]] = {}
    for node in tree.walk(tree.root):
        kind = _KINDS[stat.S_IFMT(node.mode)]
        device = kind in ("char", "block")
        digest = hashlib.sha256(b"".join(tree.chunks(node))).hexdigest() if kind == "file" else ""
        found[node.path] = Entry(
            kind=kind,
            mode=stat.S_IMODE(node.mode),
            uid=node.uid,
            gid=node.gid,
            mtime_ns=node.mtime * 1_000_000_000 + node.nsec,
            size=None if kind == "folder" else node.size,
            links=None if kind == "folder" else node.nlink,
            digest=digest,
            target=node.target,
            device=(os.major(node.rdev), os.minor(node.rdev)) if device else (0, 0),
            xattrs=tuple((os.fsdecode(name), value) for name, value in node.xattrs),
        )
        if node.link is not None:
            names.setdefault(node.link, []).append(node.path)
    for paths in names.values():
        for path in paths:
            found[path] = replace(found[path], twins=tuple(sorted(paths)))
    return found


def without_links(tree: dict[bytes, Entry]) -> dict[bytes, Entry]:
    """Copy-up breaks hard links, and the tree that a commit makes mends them."""
    return {path: replace(entry, links=None, twins=()) for path, entry in tree.items()}


def load(store: orlop.Store, workdir: Path, layers: list[Layer], name: str = "seen") -> str:
    layout = write_layout(workdir / name, {"latest": make_image([layer.tar() for layer in layers])})
    return store.load(layout, name=f"localhost/{name}").pop().name


def disturb(dice: random.Random, top: Path) -> None:
    """Change a mounted root here and there."""
    paths = sorted(
        (path for path in snapshot(top) if path and b"filler" not in path), key=lambda path: (len(path), path)
    )
    for path in paths:
        place = os.path.join(os.fsencode(top), path)
        if not os.path.lexists(place) or dice.random() < 0.6:
            continue
        folder = os.path.isdir(place) and not os.path.islink(place)
        what = dice.randrange(6)
        if what == 0 and not folder:
            os.unlink(place)
        elif what == 1 and folder:
            shutil.rmtree(place)
        elif what == 2 and not folder:
            os.unlink(place)
            os.mkdir(place)
            Path(os.fsdecode(place), "inside").write_bytes(b"new")
        elif what == 3:
            os.chown(place, 4, 5, follow_symlinks=False)
        elif what == 4 and folder:
            with contextlib.suppress(FileExistsError):
                os.symlink("..", place + b"/sy")
        elif what == 5 and folder:
            with open(place + b"/holes", "wb") as file:
                file.truncate(3 << 20)
                file.seek(1 << 20)
                file.write(b"middle")


@pytest.mark.parametrize(("driver", "seed"), [("erofs", 3), ("overlay", 11), ("native", 7)])
def test_the_tree_of_an_image_and_of_a_changed_root_is_what_is_mounted(
    store: orlop.Store, store_dirs: StoreDirs, workdir: Path, driver: Driver, seed: int
) -> None:
    dice = random.Random(seed)
    image = load(store, workdir, random_stack(dice))
    root = store.prepare(image, store_dirs.root.parent / "seen", driver=driver, mount=True)
    top = Path(root.path)
    with tree_of(store, image) as tree:
        assert differences(snapshot(top), shown(tree)) == []
    disturb(dice, top)
    with tree_of(store, root.path) as tree:
        assert differences(without_links(snapshot(top)), without_links(shown(tree))) == []
    with tree_of(store, image) as tree:
        assert all(not node.changed for node in tree.walk(tree.root))


# ------------------------------------------------------------------ the faces


@pytest.fixture
def remote(store: orlop.Store, store_dirs: StoreDirs) -> Iterator[orlop.Store]:
    """The same store, behind a daemon in this process."""
    address = f"unix://{store_dirs.run}/socket/orlop.sock"
    with Daemon(store.verbs, address), orlop.connect(address) as connected:
        yield connected


@pytest.fixture
def sample(store: orlop.Store, workdir: Path) -> str:
    """An image with a bit of everything, and symlinks that would lead out."""
    base = Layer().folder("./", mode=0o755).folder("etc", mode=0o750, uid=3, gid=4)
    base.file("etc/passwd", b"root:x:0:0\n", mode=0o640, uid=5, xattrs={"user.note": b"hi"})
    base.file("etc/big", bytes(range(256)) * 9000).hardlink("etc/same", to="etc/big")
    base.symlink("etc/link", "/etc/passwd").symlink("out", "../../../..").symlink("abs", "/etc")
    base.symlink("up", "abs/../etc/passwd").symlink("loop", "loop").fifo("etc/pipe")
    base.device("etc/null", "char", 1, 3).sparse(
        "etc/holes", 5 << 20, [(1 << 20, b"s" * 4096)], how="gnu-1.0"
    )
    base.file("suid", b"x", mode=0o4755).folder("d/e/f").file("d/e/f/deep.conf", b"1").file("d/a.conf", b"22")
    base.file(b"odd/\xff\n", b"odd").folder("empty", mode=0o1777)
    top = Layer().file("d/new.conf", b"333").whiteout("d/a.conf").file("etc/motd", b"m")
    return load(store, workdir, [base, top], "sample")


def both(store: orlop.Store, remote: orlop.Store, ask: Callable[[orlop.Store], Any]) -> Any:
    """The answer of the library, which the daemon gives, too."""
    here = ask(store)
    assert ask(remote) == here
    return here


def cli(store: orlop.Store, capfd: pytest.CaptureFixture[str], *argv: str) -> str:
    """What the command line prints about the same store."""
    info = store.info()
    code = main(["--root", info.root, "--run", info.run, *argv])
    out, err = capfd.readouterr()
    assert (code, err) == (0, ""), argv
    return out


def test_ls_and_cat_say_the_same_by_every_way(
    store: orlop.Store, remote: orlop.Store, sample: str, capfd: pytest.CaptureFixture[str]
) -> None:
    def names(path: str, **options: bool) -> list[bytes]:
        found: list[bytes] = both(
            store, remote, lambda one: [file.path for file in one.ls(sample, path, **options)]
        )
        return found

    assert names("/") == [b"abs", b"d", b"empty", b"etc", b"loop", b"odd", b"out", b"suid", b"up"]
    assert names("out/d") == names("/d") == names("abs/../d") == [b"d/e", b"d/new.conf"]
    assert names("d", recursive=True) == [b"d/e", b"d/e/f", b"d/e/f/deep.conf", b"d/new.conf"]
    assert names("d", itself=True) == [b"d"]
    assert names("abs") == names("etc")  # a symlink to a folder is followed
    assert names("abs", itself=True) == [b"abs"]
    assert names("odd") == [b"odd/\xff\n"]
    assert both(store, remote, lambda one: list(one.ls(sample, "/etc")))[5].xattrs == ((b"user.note", b"hi"),)
    text = cli(store, capfd, "ls", "-l", sample, "/etc").splitlines()
    assert text[5] == f"-rw-r-----   1     5     0         11 {MOMENT} passwd"
    assert cli(store, capfd, "ls", sample, "/out/d") == "e\nnew.conf\n"
    told = [json.loads(line) for line in cli(store, capfd, "ls", "--json", "-R", sample, "/").splitlines()]
    assert {one["path"] for one in told} == {
        "/" + os.fsdecode(file.path) for file in store.ls(sample, recursive=True)
    }
    for path in ("etc/passwd", "/etc/link", "up", "out/etc/./passwd"):
        assert both(store, remote, lambda one, path=path: b"".join(one.cat(sample, path))) == b"root:x:0:0\n"
    assert cli(store, capfd, "cat", sample, "/etc/motd", "/d/new.conf") == "m333"
    holes = both(store, remote, lambda one: b"".join(one.cat(sample, "etc/holes", "etc/big")))
    assert holes == bytes(1 << 20) + b"s" * 4096 + bytes((4 << 20) - 4096) + bytes(range(256)) * 9000


def test_cat_says_what_it_cannot_print(store: orlop.Store, remote: orlop.Store, sample: str) -> None:
    for path, error, says in (
        ("/etc", errors.InvalidArgument, "it is a folder"),
        ("/etc/pipe", errors.InvalidArgument, "no regular file but a fifo"),
        ("/etc/null", errors.InvalidArgument, "no regular file but a char"),
        ("/nothing", errors.NotFound, "there is no /nothing"),
        ("/etc/passwd/x", errors.NotFound, "there is no /etc/passwd/x"),
        ("/loop", errors.FailedPrecondition, "too many levels of symbolic links"),
        ("/../../../../proc/self/mem", errors.NotFound, "there is no"),
    ):
        for one in (store, remote):
            with pytest.raises(error, match=says):
                next(one.cat(sample, "/etc/motd", path))


def test_what_is_no_thing_is_refused_and_what_has_no_files(store: orlop.Store, sample: str) -> None:
    for thing, error in (
        ("localhost/none", errors.NotFound),
        ("/srv/none", errors.NotFound),
        ("sha256:" + "0" * 64, errors.NotFound),
        ("Not A Name", errors.InvalidArgument),
        ("chain empty", errors.Error),
    ):
        with pytest.raises(error):
            list(store.ls(thing))
    details = store.inspect(sample)
    assert [file.path for file in store.ls(details.info.id)] == [file.path for file in store.ls(sample)]
    layer = [file.path for file in store.ls(details.layers[1].diff_id, recursive=True)]
    assert layer == [b"d", b"d/new.conf", b"etc", b"etc/motd"]


def test_find_is_what_a_walk_finds_in_one_thing_and_in_all_images(
    store: orlop.Store,
    remote: orlop.Store,
    sample: str,
    workdir: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    other = load(store, workdir, random_stack(random.Random(5)), "other")
    store.tag(sample, "localhost/zz")

    def found(pattern: str, thing: str | None = sample, **options: Any) -> list[tuple[str, bytes]]:
        return both(  # type: ignore[no-any-return]
            store,
            remote,
            lambda one: [
                (one_found.names[0], one_found.file.path) for one_found in one.find(pattern, thing, **options)
            ],
        )

    assert [path for _, path in found("*.conf")] == [b"d/e/f/deep.conf", b"d/new.conf"]
    assert [path for _, path in found("/d/**/*.conf")] == [b"d/e/f/deep.conf", b"d/new.conf"]
    assert [path for _, path in found("/d/*.conf")] == [b"d/new.conf"]
    assert [path for _, path in found("*", kinds=["symlink"])] == [
        b"abs",
        b"etc/link",
        b"loop",
        b"out",
        b"up",
    ]
    assert [path for _, path in found("*", least=2_304_000)] == [b"etc/big", b"etc/holes", b"etc/same"]
    assert [path for _, path in found("*", most=1, kinds=["file"])] == [
        b"d/e/f/deep.conf",
        b"etc/motd",
        b"suid",
    ]
    for pattern in ("*", "a*", "**/a", "filler/1/*", "/*/*", "[!f]*"):
        glob = Glob(pattern.encode())
        expected = [
            (name, file.path)
            for name in (other, sample)
            for file in store.ls(name, recursive=True)
            if glob.fits_name(file.path.rpartition(b"/")[2]) and glob.fits_path(file.path)
        ]
        assert found(pattern, None) == expected, pattern
        assert found(pattern, sample) == [one for one in expected if one[0] == sample]
    [one] = list(store.find("motd"))
    assert one.names == (sample, "localhost/zz:latest")
    assert one.image_id == store.inspect(sample).info.id
    assert cli(store, capfd, "find", "--all", "deep.*") == f"{sample}:/d/e/f/deep.conf\n"
    assert cli(store, capfd, "find", sample, "-0", "odd/*") == "/odd/\udcff\n\0"
    assert json.loads(cli(store, capfd, "find", sample, "motd", "--json"))["path"] == "/etc/motd"


# ------------------------------------------------------------------ copying


@pytest.mark.parametrize("face", ["library", "daemon"])
def test_a_copy_of_everything_is_the_mounted_tree(
    store: orlop.Store, remote: orlop.Store, workdir: Path, store_dirs: StoreDirs, face: str
) -> None:
    one = store if face == "library" else remote
    image = load(store, workdir, random_stack(random.Random(3)))
    root = store.prepare(image, store_dirs.root.parent / "seen", mount=True)
    one.copy_out(image, "/", workdir / "copy", archive=True)
    assert differences(snapshot(Path(root.path)), snapshot(workdir / "copy")) == []
    (workdir / "all.tar").write_bytes(b"".join(one.read_tar(image)))
    (workdir / "tar").mkdir()
    command = ["tar", "--xattrs", "--xattrs-include=*", "--numeric-owner", "-xpf", workdir / "all.tar"]
    subprocess.run([*command, "-C", workdir / "tar"], check=True, timeout=60)
    assert differences(snapshot(Path(root.path)), snapshot(workdir / "tar")) == []
    other = store.prepare(image, store_dirs.root.parent / "other", mount=True)
    one.copy_in(workdir / "copy", other.path, "/again", archive=True)
    assert differences(snapshot(workdir / "copy"), snapshot(Path(other.path, "again"))) == []


@pytest.mark.parametrize(
    ("driver", "mounted"), [("erofs", True), ("erofs", False), ("overlay", False), ("native", True)]
)
def test_what_is_copied_into_a_root_is_there_and_committed(
    store: orlop.Store, workdir: Path, store_dirs: StoreDirs, sample: str, driver: Driver, mounted: bool
) -> None:
    tree = workdir / "tree"
    (tree / "sub").mkdir(parents=True, mode=0o711)
    (tree / "file").write_bytes(b"f" * 70_000)
    os.link(tree / "file", tree / "sub" / "twin")
    os.symlink("/etc/passwd", tree / "link")
    os.chown(tree / "file", 12, 13)
    os.chmod(tree / "file", 0o4711)
    root = store.prepare(sample, store_dirs.root.parent / "into", driver=driver, mount=mounted)
    root.copy_in(tree, "/abs")  # through a symlink of the image: /etc
    root.copy_in(tree / "file", "/out/d/new.conf", archive=True)
    store.write_tar([*store.read_tar(sample, "/d/e/.")], root.path, "/empty")
    image = root.commit("localhost/after").name
    for thing in (root.path, image):
        found = {file.path: file for file in store.ls(thing, recursive=True)}
        assert [found[b"etc/tree/" + name].links for name in (b"file", b"sub/twin")] == [2, 2]
        assert (found[b"etc/tree/file"].uid, found[b"etc/tree/file"].mode) == (0, 0o100711)
        assert found[b"etc/tree/sub"].mode == 0o40711
        assert found[b"etc/tree/link"].target == b"/etc/passwd"
        assert (found[b"d/new.conf"].uid, found[b"d/new.conf"].mode) == (12, 0o104711)
        assert b"".join(store.cat(thing, "/empty/f/deep.conf")) == b"1"
        assert found[b"empty"].mode == 0o41777  # a folder that was there keeps what it was
        assert b"etc/null" in found
    assert is_mount_point(root.path) == mounted


@pytest.mark.parametrize("how", ["quota", "mapped", "self-contained"])
def test_roots_of_every_kind_are_looked_into_and_written_to(
    store: orlop.Store, workdir: Path, store_dirs: StoreDirs, sample: str, how: str
) -> None:
    ids = [orlop.IdMap(inside=0, outside=100_000, size=65_536)]
    options: dict[str, Any] = {
        "quota": {"quota": 4 << 20},
        "mapped": {"uid_map": ids, "gid_map": ids},
        "self-contained": {"self_contained": True},
    }[how]
    root = store.prepare(sample, store_dirs.root.parent / "special", **options)
    (workdir / "f").write_bytes(b"f" * 5000)
    root.copy_in(workdir / "f", "/d/")
    [file] = store.ls(root.path, "/d/f")
    assert (file.uid, file.size) == (0, 5000)
    assert b"".join(store.cat(root.path, "/d/f", "/etc/motd")) == b"f" * 5000 + b"m"
    if how == "quota":
        (workdir / "large").write_bytes(os.urandom(8 << 20))
        with pytest.raises(errors.ResourceExhausted):
            root.copy_in(workdir / "large", "/d/")
    if how == "self-contained":
        return
    with root.mount():
        about = Path(root.path, "d/f").stat()
        assert (about.st_uid, about.st_size) == (100_000 if how == "mapped" else 0, 5000)
        if how == "mapped":
            with pytest.raises(errors.FailedPrecondition, match="mounted with mapped ids"):
                root.copy_in(workdir / "f", "/d/")


def test_a_root_in_use_elsewhere_and_a_view_and_an_image_take_no_copy(
    store: orlop.Store, store_dirs: StoreDirs, sample: str, workdir: Path
) -> None:
    (workdir / "f").write_bytes(b"f")
    view = store.prepare(sample, store_dirs.root.parent / "view", view=True)
    with pytest.raises(errors.FailedPrecondition, match="read-only view"):
        view.copy_in(workdir / "f", "/f")
    with pytest.raises(errors.NotFound, match="nothing is prepared"):
        store.copy_in(workdir / "f", "/srv/none", "/f")
    root = store.prepare(sample, store_dirs.root.parent / "target")
    elsewhere = workdir / "elsewhere"
    elsewhere.mkdir()
    for mount in root.mounts:
        perform(mount.type, mount.source, str(elsewhere), mount.options)
    Path(root.path).mkdir()
    perform("tmpfs", "tmpfs", root.path, ())  # something else is there, so that nobody waits for it to go
    try:
        with pytest.raises(errors.FailedPrecondition, match="it is in use"):
            root.copy_in(workdir / "f", "/f")
    finally:
        umount(root.path)
        umount(elsewhere)
    root.copy_in(workdir / "f", "/f")
    assert b"".join(store.cat(root.path, "/f")) == b"f"


@pytest.mark.hostile(1)
def test_no_symlink_of_an_image_leads_a_copy_out_of_its_root(
    store: orlop.Store, remote: orlop.Store, workdir: Path, store_dirs: StoreDirs
) -> None:
    host = workdir / "host"
    host.mkdir()
    (host / "secret").write_bytes(b"secret")
    evil = Layer().symlink("host", str(host)).symlink("up", "../../../../../../../../" + str(host))
    evil.folder("deep").symlink("deep/host", str(host)).symlink("file", str(host / "secret"))
    evil.symlink("proc", "/proc/self/root").symlink("cwd", "/proc/self/cwd")
    image = load(store, workdir, [evil], "evil")
    root = store.prepare(image, store_dirs.root.parent / "evil", mount=True)
    (workdir / "new").write_bytes(b"new")
    for one in (store, remote):
        for path in ("host/secret", "up/secret", "deep/host/secret", "file", "proc/etc/passwd", "cwd"):
            for thing in (image, root.path):
                with pytest.raises(NOT_THERE):
                    list(one.cat(thing, path))
                with pytest.raises(NOT_THERE):
                    one.copy_out(thing, path, workdir / "out", follow=True)
        for path in ("host/x", "up/x", "proc/x", "cwd/x"):
            with pytest.raises(errors.NotFound):
                one.copy_in(workdir / "new", root.path, path)
    store.copy_in(workdir / "new", root.path, "/../../../../file")  # a symlink: replaced in the root
    assert {path.name: path.read_bytes() for path in host.iterdir()} == {"secret": b"secret"}
    assert b"".join(store.cat(root.path, "file")) == b"new"


def test_what_is_left_half_read_is_let_go_of(
    store: orlop.Store, remote: orlop.Store, workdir: Path, store_dirs: StoreDirs
) -> None:
    big = Layer()
    for number in range(24):
        big.file(f"f{number}", bytes(1 << 20))
    image = load(store, workdir, [big], "big")
    root = store.prepare(image, store_dirs.root.parent / "big")
    for one in (store, remote):
        for chunks in (one.read_tar(image), one.read_tar(root.path), one.cat(image, "f0", "f1", "f2")):
            assert next(chunks)
            chunks.close()
    root.commit()  # its lock is free again
    with contextlib.closing(sqlite3.connect(store_dirs.root / "meta.db")) as rows:
        for _ in range(3000):
            leases = rows.execute("SELECT count(*) FROM leases").fetchone()[0]
            if not leases:
                break
            time.sleep(0.01)
    assert leases == 0


def test_a_copy_that_breaks_off_says_so_and_the_root_stays_usable(
    store: orlop.Store, remote: orlop.Store, sample: str, store_dirs: StoreDirs
) -> None:
    root = store.prepare(sample, store_dirs.root.parent / "broken")

    def breaks() -> Iterator[bytes]:
        yield next(store.read_tar(sample, "/etc"))[:4096]
        raise errors.Unavailable("read the source", "it is gone")

    for one in (store, remote):
        with pytest.raises(errors.Unavailable, match="it is gone"):
            one.write_tar(breaks(), root.path)
        with pytest.raises(errors.InvalidArgument, match=r"cut off|nothing in the archive"):
            one.write_tar([next(store.read_tar(sample, "/etc"))[:3000]], root.path)
        call = Call()
        call.cancel.cancel()
        with pytest.raises(errors.Error, match="cancelled"):
            one.copy_in("/etc/hostname", root.path, "/", call=call)
        one.write_tar(store.read_tar(sample, "/etc/motd"), root.path, "/d")
        assert b"".join(one.cat(root.path, "/d/motd")) == b"m"


AS_A_USER = """
import sys, orlop
home, run = sys.argv[1:]
with orlop.open(home + "/store", run + "/store") as store:
    name = store.load("layout", name="localhost/base").pop().name
    root = store.prepare(name, home + "/root")
    store.copy_out(name, "/d/f", "out")
    with open("out", "ab") as out:
        out.write(b" and more")
    root.copy_in("out", "/abs/")
    print(b"".join(store.cat(root.path, "/d/out")).decode())
    for file in store.ls(root.path, "/d"):
        print(file.path.decode(), oct(file.mode), file.uid)
    root.cleanup()
"""


@pytest.mark.any_kernel
@pytest.mark.parametrize("mode", ["subids", "plain"])
def test_without_root_files_go_out_and_in_too(workdir: Path, mode: Mode) -> None:
    user = users.make(workdir / mode, mode)
    base = Layer().folder("d", uid=3).file("d/f", b"inside", mode=0o4755, uid=3).symlink("abs", "/d")
    write_layout(user.home / "layout", {"latest": make_image([base.tar()])})
    command = [sys.executable, "-c", AS_A_USER, str(user.home), str(user.runtime)]
    if mode == "subids":
        command = [sys.executable, "-m", "orlop", "unshare", *command]
    done = user.run(*command, check=True)
    assert done.stdout == "inside and more\nd/f 0o104755 3\nd/out 0o100755 0\n"
    about = (user.home / "out").stat()
    assert (about.st_uid, stat.S_IMODE(about.st_mode)) == (users.UID, 0o755)


@pytest.mark.soak
@pytest.mark.timeout(0)
def test_many_changed_roots_are_seen_as_they_are_mounted(
    store: orlop.Store, store_dirs: StoreDirs, workdir: Path, soak_seconds: float
) -> None:
    deadline, seed = time.monotonic() + soak_seconds, int(os.environ.get("SOAK_SEED", "1000"))
    while time.monotonic() < deadline:
        seed += 1
        dice, name = random.Random(seed), f"soak{seed}"
        path, driver = store_dirs.root.parent / f"{name}-root", DRIVERS[seed % len(DRIVERS)]
        try:
            image = load(store, workdir, random_stack(dice), name)
            root = store.prepare(image, path, driver=driver, mount=True)
        except errors.InvalidArgument:  # links that lead nowhere in the end: not for this test to judge
            continue
        with root:
            disturb(dice, path)
            with tree_of(store, str(path)) as tree:
                unlike = differences(without_links(snapshot(path)), without_links(shown(tree)))
            assert unlike == [], f"SOAK_SEED={seed}"
        store.remove(image)
        shutil.rmtree(workdir / name)
