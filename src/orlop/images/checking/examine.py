"""What is wrong with one thing of a store, told by its row and by looking at its files, without reading them.

Looks, never writes, and takes no locks: what is being made or deleted this moment may look wrong here, so
`check` looks again under the thing's lock before it says so.  No link is followed in the store:
one that stands in the place of a file or folder is a finding itself.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Iterable
from pathlib import Path

from orlop.erofs.reader import open_image
from orlop.errors import DataLoss
from orlop.images.chains import Chains
from orlop.images.core import NAMESPACE, Core
from orlop.images.platforms import held
from orlop.images.upkeep import FindingKind
from orlop.metadata import checks, images, layers, pins, platforms, roots, snapshots
from orlop.metadata.db import Transaction
from orlop.metadata.folders import get_folder
from orlop.metadata.images import ImageRow
from orlop.metadata.roots import ChainRow, RootRow
from orlop.spec.digest import DiffID, Digest
from orlop.values import dataclass

__all__ = ["FILE", "FOLDER", "Examiner", "Problem", "is_lost"]

FILE, FOLDER = stat.S_IFREG, stat.S_IFDIR
_KINDS = {FILE: "a file", FOLDER: "a folder", stat.S_IFLNK: "a symlink"}
_WRITABLE = 0o022  # by others than the owner


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One thing that is wrong.

    ``path`` is where, if it is a file or folder; ``thing`` what it is about, if not what was looked at.
    """

    word: str
    detail: str
    kind: FindingKind = "damage"
    path: Path | None = None
    thing: str = ""


def is_lost(problems: Iterable[Problem], path: Path) -> bool:
    """Whether what should stand at a path does not, or is something else."""
    return any(p.path == path and p.word in {"missing", "wrong-type"} for p in problems)


class Examiner:
    """Looks at the things of one store.  Thread-safe."""

    def __init__(self, core: Core, chains: Chains) -> None:
        self._core = core
        self._chains = chains
        self._owner = os.geteuid()

    # -- places ---------------------------------------------------------------------------------

    def place(
        self, path: Path, kind: int, *, size: int | None = None, closed: int = _WRITABLE
    ) -> list[Problem]:
        """What is wrong with a file or folder that should be ours, and closed to others' writes."""
        try:
            about = os.lstat(path)
        except (FileNotFoundError, NotADirectoryError):
            return [Problem(word="missing", detail=f"{self._name(path)} is not there", path=path)]
        except OSError as exc:
            if exc.errno not in {errno.EIO, errno.EUCLEAN}:
                raise
            text = f"{self._name(path)} cannot be read: {exc.strerror}"
            return [Problem(word="unreadable", detail=text, path=path)]
        found = stat.S_IFMT(about.st_mode)
        if found != kind:
            text = f"{self._name(path)} is {_KINDS.get(found, 'something else')}, not {_KINDS[kind]}"
            return [Problem(word="wrong-type", detail=text, path=path)]
        problems = []
        if about.st_uid != self._owner:
            text = f"{self._name(path)} belongs to user {about.st_uid}, not to {self._owner}"
            problems.append(Problem(word="unsafe", detail=text, path=path))
        if about.st_mode & closed:
            text = f"{self._name(path)} has mode {stat.S_IMODE(about.st_mode):04o}, which lets others in"
            problems.append(Problem(word="unsafe", detail=text, path=path))
        if kind == FILE and about.st_nlink > 1:
            text = f"{self._name(path)} has {about.st_nlink} names: whoever has the others may change it"
            problems.append(Problem(word="linked", detail=text, path=path, kind="warning"))
        if size is not None and about.st_size != size:
            text = f"{self._name(path)} has {about.st_size} bytes, not {size}"
            problems.append(Problem(word="wrong-size", detail=text, path=path))
        return problems

    def _name(self, path: Path) -> str:
        root = self._core.layout.root
        return str(path.relative_to(root)) if path.is_relative_to(root) and path != root else str(path)

    def skeleton(self) -> list[Problem]:
        """The store's own folders and files."""
        layout, place = self._core.layout, self.place
        problems = place(Path(os.path.realpath(layout.root)), FOLDER, closed=0o077)
        problems += place(Path(os.path.realpath(layout.run)), FOLDER)
        problems += place(layout.run / "chains", FOLDER, closed=0o077)
        folders = [layout.locks, layout.layers, layout.chains, layout.folders, layout.empty]
        folders += [layout.prepared, layout.snapshots, layout.trash, layout.content]
        folders += self._core.blobs.folders()
        for folder in folders:
            problems += place(folder, FOLDER)
        if not is_lost(problems, layout.empty) and os.listdir(layout.empty):
            text = "the folder empty, which all overlays of views lie on, is not empty"
            problems.append(Problem(word="not-empty", detail=text, path=layout.empty))
        for name in ("format.json", "meta.db", "meta.db-wal", "meta.db-shm"):
            problems += [
                problem
                for problem in place(layout.root / name, FILE)
                if not (problem.word == "missing" and name.startswith("meta.db-"))
            ]
        return problems

    # -- things ---------------------------------------------------------------------------------

    def layer(self, diff_id: DiffID) -> list[Problem]:
        """A layer's folder and files against its row; nothing if it has none."""
        row = self._core.db.read(lambda tx: layers.get_layer(tx, diff_id))
        if row is None:
            return []
        folder = self._core.layers.path(diff_id)
        problems = self.place(folder, FOLDER)
        if is_lost(problems, folder):
            return problems
        sizes = {"layer.tar": row.size, "layer.index": row.index_size}
        if row.data_size:
            sizes["layer.data"] = row.data_size
        for name, size in sizes.items():
            problems += self.place(folder / name, FILE, size=size)
        for name in sorted(set(os.listdir(folder)) - set(sizes)):
            text = f"{self._name(folder / name)} is not the layer's"
            problems.append(Problem(word="stray", detail=text, path=folder / name, kind="leftover"))
        return problems

    def blob(self, digest: Digest) -> list[Problem]:
        """A blob's file against its row."""
        size = self._core.db.read(lambda tx: checks.blob_size(tx, digest))
        return [] if size is None else self.place(self._core.blobs.path(digest), FILE, size=size)

    def chain(self, name: str) -> list[Problem]:
        """An image of a chain: its rows, its file's size and superblock."""

        def rows(tx: Transaction) -> tuple[ChainRow | None, list[Problem]]:
            row = roots.get_chain(tx, name)
            return row, [] if row is None else _chain_rows(tx, row)

        row, problems = self._core.db.read(rows)
        if row is None:
            return []
        path = self._chains.file(name)
        found = self.place(path, FILE, size=row.size)
        problems += found
        if any(problem.word in {"missing", "wrong-type", "wrong-size", "unreadable"} for problem in found):
            return problems
        try:
            with open_image(path) as image:
                if image.uuid != row.uuid:
                    text = f"{self._name(path)} is another image: its UUID is {image.uuid.hex()}"
                    problems.append(Problem(word="bad-chain", detail=text, path=path))
        except DataLoss as exc:
            problems.append(Problem(word="bad-chain", detail=exc.reason, path=path))
        return problems

    def folder(self, folder: str) -> list[Problem]:
        """A layer or chain unpacked, if it is of this boot: others are made again before they are used."""
        row = self._core.db.read(lambda tx: get_folder(tx, folder))
        if row is None or row.boot != self._core.boot or not row.entries:
            return []
        # Its mode is the image's root folder's; who may enter is decided by the folder above.
        return [
            p for p in self.place(self._core.layout.folders / folder, FOLDER, closed=0) if p.word != "unsafe"
        ]

    def image(self, name: str) -> list[Problem]:
        """The rows that make an image whole, without the files that they name."""

        def body(tx: Transaction) -> list[Problem]:
            row = images.get_image(tx, NAMESPACE, name)
            if row is None:
                return []
            problems = [problem for one in held(tx, row) for problem in _image_rows(tx, one)]
            if row.index is not None:
                problems += _index_rows(tx, row.index)
            return list(dict.fromkeys(problems))

        return self._core.db.read(body)

    def pin(self, name: str) -> list[Problem]:
        """The rows of what a pin keeps, unless it has expired.  A chain is derived."""

        def body(tx: Transaction) -> list[Problem]:
            row = pins.get_pin(tx, NAMESPACE, name)
            expired = row is not None and row.expires is not None and row.expires <= time.time()
            if row is None or expired or row.kind == "chain":
                return []
            if row.kind == "layer":
                return _lost_layers(tx, [DiffID(row.ref)])
            digest = Digest(row.ref)
            lost = [] if layers.has_blob(tx, digest) else [_lost_blob(digest, row.kind)]
            return lost + (_lost_layers(tx, images.config_layers(tx, digest)) if row.kind == "config" else [])

        return self._core.db.read(body)

    def root(self, path: str) -> list[Problem]:
        """A prepared root: its rows, its writable part, and the folder that it is to be mounted in."""

        def body(tx: Transaction) -> tuple[RootRow | None, list[Problem]]:
            row = roots.get_root(tx, path)
            return row, [] if row is None else _root_rows(tx, row)

        row, problems = self._core.db.read(body)
        if row is None:
            return []
        if row.kind == "active":
            problems += self._writable(row)
        parent = os.path.dirname(path)
        if not os.path.isdir(parent):
            text = f"{parent} is gone, so nothing can be mounted at {path}"
            problems.append(Problem(word="path-gone", detail=text, kind="warning"))
        return problems

    def snapshot(self, snapshot_id: str) -> list[Problem]:
        """A snapshot's folder; nothing if it has no row."""
        folder = self._core.layout.snapshots / snapshot_id
        problems = self.place(folder, FOLDER)
        if not is_lost(problems, folder):
            problems += self._of_kind(folder / "fs")
        # A removal takes the row first, so this is asked last.
        if problems and not self._core.db.read(lambda tx: snapshots.is_snapshot(tx, snapshot_id)):
            return []
        return problems

    def _writable(self, row: RootRow) -> list[Problem]:
        folder = self._core.layout.prepared / row.id
        problems = self.place(folder, FOLDER)
        if is_lost(problems, folder):
            return problems
        if row.quota is not None:
            disk = folder / "disk.img"
            problems += self.place(disk, FILE)
            if not is_lost(problems, disk) and (size := os.lstat(disk).st_size) < row.quota:
                text = f"{self._name(disk)} has {size} bytes, and a quota of {row.quota}"
                problems.append(Problem(word="wrong-size", detail=text, path=disk))
            return problems
        if row.driver == "native":
            # The tree's own mode and owner are the image's, and the user's to change.
            return problems + self._of_kind(folder / "tree")
        problems += self._of_kind(folder / "upper")
        return problems + [p for p in self.place(folder / "work", FOLDER) if p.word != "unsafe"]

    def _of_kind(self, path: Path) -> list[Problem]:
        return [p for p in self.place(path, FOLDER, closed=0) if p.word != "unsafe"]


# -- rows -----------------------------------------------------------------------------------------


def _chain_rows(tx: Transaction, row: ChainRow) -> list[Problem]:
    wrong: list[str] = []
    made_of = roots.chain_layers(tx, row.id)
    if not made_of and not row.id.startswith("empty"):
        wrong.append("its layers are not known")
    below: tuple[DiffID, ...] = ()
    if row.parent is not None:
        parent = roots.get_chain(tx, row.parent)
        if parent is None:
            wrong.append(f"the image below, {row.parent[:12]}, is not there")
        elif parent.depth + 1 != row.depth:
            wrong.append(f"it is number {row.depth} of its stack, on number {parent.depth}")
        below = roots.chain_layers(tx, row.parent)
        if made_of[: len(below)] != below:
            wrong.append("the image below has other layers")
    elif row.depth != 1:
        wrong.append(f"it is number {row.depth} of its stack, on nothing")
    if not {diff_id for diff_id, _ in row.devices} <= set(made_of):
        wrong.append("it points into a layer that it is not made of")
    return [Problem(word="inconsistent", detail=text) for text in wrong] + _lost_layers(tx, made_of)


def _lost_layers(tx: Transaction, diff_ids: Iterable[DiffID]) -> list[Problem]:
    return [
        Problem(word="missing", detail="no row says that it is in the store", thing=f"layer {diff_id}")
        for diff_id in dict.fromkeys(diff_ids)
        if layers.get_layer(tx, diff_id) is None
    ]


def _lost_blob(digest: Digest, what: str) -> Problem:
    text = f"no row says that this {what} is in the store"
    return Problem(word="missing", detail=text, thing=f"blob {digest}")


def _image_rows(tx: Transaction, row: ImageRow) -> list[Problem]:
    problems = _lost_layers(tx, images.config_layers(tx, row.config))
    if not layers.has_blob(tx, row.config):
        problems.append(_lost_blob(row.config, "config"))
    if row.manifest is not None:
        if not layers.has_blob(tx, row.manifest):
            problems.append(_lost_blob(row.manifest, "manifest"))
        if images.manifest_of(tx, row.manifest) is None:
            text = f"what is known of its manifest {row.manifest} is lost"
            problems.append(Problem(word="inconsistent", detail=text))
    return problems


def _index_rows(tx: Transaction, index: Digest) -> list[Problem]:
    """The index of a name, and what it needs beyond its images."""
    parts = platforms.index_blobs(tx, index)
    problems = [
        _lost_blob(part.digest, "part of its index") for part in parts if not layers.has_blob(tx, part.digest)
    ]
    if all(part.digest != index for part in parts):
        problems.append(Problem(word="inconsistent", detail=f"what is known of its index {index} is lost"))
    return problems


def _root_rows(tx: Transaction, row: RootRow) -> list[Problem]:
    problems: list[Problem] = []
    needed = [(row.chain, "its chain")]
    needed += [
        (mount.chain, f"the chain mounted at {mount.target}")
        for mount in roots.mounts_of(tx, row.id)
        if mount.chain
    ]
    for chain, what in needed:
        if roots.get_chain(tx, chain) is None:
            problems.append(Problem(word="missing", detail=f"{what}, {chain[:12]}, is not there"))
        elif not roots.chain_stack(tx, chain):
            problems.append(Problem(word="missing", detail=f"an image of {what}, {chain[:12]}, is not there"))
    problems += _lost_layers(tx, images.config_layers(tx, row.config))
    if not layers.has_blob(tx, row.config):
        problems.append(_lost_blob(row.config, "config"))
    return problems
