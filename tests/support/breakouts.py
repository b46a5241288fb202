"""What hostile layers are tried with: something outside the root to look after, and the whole life of an image.

    canary = Canary(folder)                       # files beside the store that nobody may touch
    trial = Trial(store, folder, canary)
    trial.shows([base, layer], {"d": "folder"})   # imported, mounted, read, written to, committed, removed
    trial.refuses([base, layer], "no layer has")

After each trial the canary is compared, the store is checked, and nothing of the image may be left.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import stat
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import pytest

import orlop
from conftest import StoreDirs
from orlop.images.api import PrepareOptions
from orlop.observe import Call, Progress
from support.images import Image, make_image, write_layout
from support.layers import MTIME, Layer
from support.registries import Registry
from support.trees import Entry, snapshot

Name = Literal["erofs", "overlay", "native"]
DRIVERS: tuple[Name, ...] = ("erofs", "overlay", "native")
Tree = Mapping[bytes, Entry]
Shape = Mapping[str, str]
How = Literal["oci", "docker"]

WRITTEN = "written-by-the-test"
_OLD = 1_600_000_000_000_000_000  # a time that nothing gets by chance, in nanoseconds
_EMPTY = (
    "layers",
    "chains",
    "folders",
    "prepared",
    "content/blobs/sha256",
    "content/ingest",
    "trash",
    "quarantine",
)


class Canary:
    """A tree of every kind of file outside the root; `changes` tells what happened to it.

    Compared are names, types, modes, owners, link counts, sizes, bytes, targets, xattrs, mtimes and
    ctimes: a ctime that moved tells of a chmod, chown or link even if it was undone.
    """

    def __init__(self, top: Path) -> None:
        self.top = top
        (top / "folder").mkdir(parents=True)
        (top / "empty").mkdir(mode=0o711)
        (top / "file").write_bytes(b"the host's own\n")
        (top / "folder/file").write_bytes(b"of a folder of the host's\n")
        (top / "folder/twin").hardlink_to(top / "file")
        (top / "su").write_bytes(b"#!/bin/false\n")
        (top / "link").symlink_to("file")
        (top / "dangling").symlink_to(top / "nothing")
        (top / "away").symlink_to(top / "folder")
        os.mkfifo(top / "fifo", 0o640)
        os.setxattr(top / "file", "user.canary", b"sings")
        os.setxattr(top / "folder", "trusted.canary", b"sings, too")
        os.chown(top / "su", 12, 34)
        (top / "su").chmod(0o4755)
        os.chown(top / "link", 56, 78, follow_symlinks=False)
        for path in (*top.iterdir(), *(top / "folder").iterdir(), top):
            os.utime(path, ns=(_OLD, _OLD), follow_symlinks=False)
        self.remember()

    def remember(self) -> None:
        """Take it as it is now for what it should be."""
        self._before = _facts(self.top)

    def changes(self) -> list[str]:
        """What is not as it was, by path; empty if all is."""
        now = _facts(self.top)
        return sorted(path for path in {*self._before, *now} if self._before.get(path) != now.get(path))

    def fill(self, text: str) -> str:
        """A text with this tree's path in it, for layers to aim at.

        ``{C}`` is the absolute path; ``{U}`` the same by way of far more ``..`` than any root is deep;
        ``{c}`` the same place inside a root.
        """
        path = os.fspath(self.top)
        for mark, means in (("{C}", path), ("{U}", "../" * 24 + path[1:]), ("{c}", path[1:])):
            text = text.replace(mark, means)
        return text


def _facts(top: Path) -> dict[str, tuple[object, ...]]:
    return {os.fspath(path): _fact(path) for path in (top, *sorted(top.rglob("*")))}


def _fact(path: Path) -> tuple[object, ...]:
    about = path.lstat()
    what: object = b""
    if stat.S_ISREG(about.st_mode):
        what = path.read_bytes()
    elif stat.S_ISLNK(about.st_mode):
        what = os.readlink(path)
    elif stat.S_ISDIR(about.st_mode):
        what = sorted(os.listdir(path))
    names = sorted(os.listxattr(path, follow_symlinks=False))
    xattrs = [(name, os.getxattr(path, name, follow_symlinks=False)) for name in names]
    numbers = (about.st_mode, about.st_uid, about.st_gid, about.st_nlink, about.st_ino, about.st_size)
    return (*numbers, about.st_mtime_ns, about.st_ctime_ns, what, xattrs)


class Heard:
    """An observer that keeps the warnings."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def progress(self, event: Progress) -> None:
        """Nothing is done about progress."""

    def warning(self, text: str) -> None:
        """Keep it."""
        self.warnings.append(text)


def shape(tree: Tree) -> dict[str, str]:
    """A tree, short: kind, or a symlink's target, or a file's size, and the names of a file with several."""
    short: dict[str, str] = {}
    for path, entry in tree.items():
        what = f"-> {os.fsdecode(entry.target)}" if entry.kind == "symlink" else entry.kind
        what = str(entry.size) if entry.kind == "file" else what
        if entry.twins:
            what += " = " + " ".join(map(os.fsdecode, entry.twins))
        if path:
            short[os.fsdecode(path)] = what
    return short


def unlike(expected: Shape, actual: Shape) -> list[str]:
    """How two shapes differ, a line each."""
    return [
        f"{path} is {actual.get(path, 'missing')}, expected {expected.get(path, 'nothing')}"
        for path in sorted({*expected, *actual})
        if expected.get(path) != actual.get(path)
    ]


def with_folders(tree: Shape) -> dict[str, str]:
    """A shape, with the folders that its paths imply."""
    found = dict(tree)
    for path in tree:
        while path := path.rpartition("/")[0]:
            found.setdefault(path, "folder")
    return found


def docker_archive(path: Path, image: Image, tars: Sequence[bytes], name: str) -> Path:
    """What ``docker save`` writes: manifest.json, the config, and each layer's tar as it is."""
    config = image.id.partition(":")[2] + ".json"
    names = [f"{number}/layer.tar" for number in range(len(tars))]
    manifest = [{"Config": config, "RepoTags": [name], "Layers": names}]
    members = {config: image.config, **dict(zip(names, tars, strict=True))}
    members["manifest.json"] = json.dumps(manifest).encode()
    with tarfile.open(path, "w") as archive:
        for member, data in members.items():
            about = tarfile.TarInfo(member)
            about.size, about.mtime = len(data), MTIME
            archive.addfile(about, io.BytesIO(data))
    return path


class Trial:
    """Puts images of hostile layers through their whole life, in every driver of one store."""

    def __init__(self, store: orlop.Store, folder: Path, canary: Canary, *, turn: int = 0) -> None:
        self.store = store
        self.folder = folder
        self.canary = canary
        self.drivers: tuple[Name, ...] = DRIVERS
        self.heard = Heard()
        self.turn = turn  # which driver shows what beside the plain root
        self.call = Call(observer=self.heard)

    # -- in ---------------------------------------------------------------------------------------

    def load(self, tars: Sequence[bytes], *, how: How = "oci", **options: Any) -> str:
        """Import an image of layer tars, as an OCI layout or as a docker archive; its name."""
        image = make_image(tars, **options)
        key = hashlib.sha256(image.document).hexdigest()[:12]
        if how == "docker":
            source = docker_archive(self.folder / f"{key}.tar", image, tars, f"localhost/hostile:{key}")
        else:
            source = write_layout(self.folder / key, {f"localhost/hostile:{key}": image})
        return self.store.load(source, call=self.call).pop().name

    def trees(self, name: str) -> Iterator[tuple[str, Tree]]:
        """An image in every driver's form: what it is called, and all of it, read.

        In turns one driver shows a view, too, and of another the root is written to and committed, and
        what was committed is shown.
        """
        turn = self.turn % len(self.drivers)
        yield f"{self.drivers[turn]}, a view", self.show(name, self.drivers[turn], view=True)
        for number, driver in enumerate(self.drivers):
            yield driver, self.show(name, driver, commit=(number + 1) % len(self.drivers) == turn)

    def show(self, name: str, driver: Name, *, view: bool = False, commit: bool = False) -> Tree:
        """One form of an image, read whole.  To ``commit`` it is written to before."""
        path = self.folder / "shown"
        verbs = self.store.verbs
        options = PrepareOptions(mount=True, driver=driver, view=view)
        verbs.prepare_root(name, str(path), options=options, call=self.call)
        try:
            tree = snapshot(path)
            if commit:
                (path / WRITTEN).write_bytes(b"written\n")
                committed = verbs.commit(str(path), "localhost/committed:latest", call=self.call).name
        finally:
            verbs.cleanup(str(path), call=self.call)
        if commit:
            after = shape(self.show(committed, driver, view=True))
            self.store.remove(committed)
            if after.pop(WRITTEN) != "8":
                pytest.fail(f"{driver}: what was written was not committed")
            if changed := unlike(shape(tree), after):
                pytest.fail(f"{driver}: what was committed: {changed}")
        return tree

    # -- out --------------------------------------------------------------------------------------

    def shows(
        self,
        tars: Sequence[bytes],
        expected: Shape,
        *,
        how: How = "oci",
        **options: Any,
    ) -> None:
        """Every form has exactly this tree; nothing outside is touched; nothing is left."""
        name = self.load(tars, how=how, **options)
        wanted = with_folders(expected)
        for form, tree in self.trees(name):
            if wrong := unlike(wanted, shape(tree)):
                pytest.fail(f"{form}: {wrong}")
        self.leaves_nothing()

    def refuses(
        self,
        tars: Sequence[bytes],
        words: str,
        *,
        error: type[orlop.Error] = orlop.InvalidArgument,
        how: How = "oci",
        **options: Any,
    ) -> None:
        """Every form is refused for the same reason; nothing outside is touched; nothing is left."""
        name = ""
        try:
            name = self.load(tars, how=how, **options)
        except error as exc:
            if words not in str(exc):
                raise
        if name:
            for number, driver in enumerate(self.drivers):
                with pytest.raises(error, match=words):
                    self.show(name, driver, view=bool(number % 2))
        self.leaves_nothing()

    def leaves_nothing(self) -> None:
        """The canary is as it was, the store is sound; without its images it is empty."""
        self._untouched()
        checked = self.store.check()
        if not checked.clean or self.store.prepared():
            pytest.fail(f"the store is not as it should be: {checked}, {self.store.prepared()}")
        for image in self.store.images():
            self.store.remove(image.name)
        self.store.collect()
        if left := [path for folder in _EMPTY for path in _below(self.store.verbs.root / folder)]:
            pytest.fail(f"left behind: {left}")
        self._untouched()

    def _untouched(self) -> None:
        if changed := self.canary.changes():
            pytest.fail(f"touched outside the root: {changed}")


@contextmanager
def trial_store(dirs: StoreDirs, canary: Canary, registry: Registry | None = None) -> Iterator[Trial]:
    """A trial with a store of its own, where nothing is synced: no power cut is tried here."""
    trusted = (registry.host,) if registry is not None else ()
    settings = orlop.Settings(insecure_registries=trusted, durable=False)
    with orlop.open(dirs.root, dirs.run, settings=settings) as store:
        yield Trial(store, dirs.work, canary)
        for root in store.prepared():
            store.get(root.path).cleanup()


def _below(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


def base() -> Layer:
    """A lower layer with something of every kind; `BASE` is what it shows."""
    layer = Layer().folder("d", mode=0o750, uid=7).file("d/a", b"1").file("d/b", b"22")
    layer.hardlink("d/c", to="d/b").folder("d/s").file("d/s/x", b"333").symlink("l", "d").fifo("p")
    return layer.folder("etc").file("etc/passwd", b"4444")


BASE: Shape = {
    "d": "folder",
    "d/a": "1",
    "d/b": "2 = d/b d/c",
    "d/c": "2 = d/b d/c",
    "d/s": "folder",
    "d/s/x": "3",
    "l": "-> d",
    "p": "fifo",
    "etc": "folder",
    "etc/passwd": "4",
}
