"""Mending: what a check found wrong is put right, or taken out of the way, or left as it is.

What is derived (indexes, layer.data, chains, folders) is made again of what it derives from, after that was
found whole; content is fetched again from where it came; what nobody can give any more goes to quarantine.

Never worse than before: what is new is written aside, synced and renamed into place; what is damaged is moved
(`quarantine`), not deleted; what prepared roots stand on is never taken away, and a chain under
them is made again byte by byte or not at all; where a source may answer another time, nothing is given up.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path

from orlop.errors import DataLoss, Error
from orlop.images.chains import Chains
from orlop.images.checking.again import Fetcher, Missed
from orlop.images.checking.deep import FAULTS, Meter, bytes_of, form_of, opened
from orlop.images.checking.examine import FILE, FOLDER, Problem
from orlop.images.checking.mending import Outcome, is_kind, shut, some_of
from orlop.images.checking.mendlayers import LayerMender
from orlop.images.checking.quarantine import Quarantine
from orlop.images.core import NAMESPACE, Core
from orlop.images.platforms import held
from orlop.images.prepared.grounds import Grounds
from orlop.linux.files import write_durably
from orlop.metadata import checks, images, layers, platforms, roots
from orlop.metadata.db import Transaction
from orlop.metadata.folders import get_folder
from orlop.metadata.images import ImageRow, ManifestRow
from orlop.metadata.platforms import IndexBlob
from orlop.metadata.roots import ChainRow
from orlop.observe import Call, reached
from orlop.spec.digest import DiffID, Digest
from orlop.spec.documents import Manifest, parse_config, parse_manifest

__all__ = ["Mender"]


class Mender:
    """Mends the things of one store.  Each method takes the locks that it needs; none may be held."""

    def __init__(self, core: Core, chains: Chains, grounds: Grounds, meter: Meter, call: Call) -> None:
        self._core, self._chains, self._grounds = core, chains, grounds
        self._meter, self._call = meter, call
        self._quarantine = Quarantine(core)
        self._fetcher = Fetcher(core, self._quarantine)
        self._layers = LayerMender(core, self._quarantine, self._fetcher, meter, call)

    def layer(self, diff_id: DiffID, why: str) -> Outcome:
        """See `mendlayers`; what is mounted of the old files is mounted anew."""
        core, call = self._core, self._call
        outcome = self._layers.mend(diff_id, why)
        if outcome.action not in {"rebuilt", "fetched"}:
            return outcome
        notes = [outcome.note] if outcome.note else []
        for name in core.db.read(lambda tx: checks.layer_chains(tx, diff_id)):
            try:
                with core.locked("chain", name, call=call, attempted=f"mount chain {name[:12]} anew"):
                    row = core.db.read(lambda tx, name=name: roots.get_chain(tx, name))  # type: ignore[misc]  # bound now
                    if row is not None:
                        self._grounds.renew(row)
            except Error as exc:  # its own file may be damaged: it is looked at next
                call.check("repair store")
                notes.append(f"{exc.attempted}: {exc.reason}")
        paths = core.db.read(lambda tx: checks.layer_users(tx, diff_id))[1]
        if paths:
            notes.append(_until(paths))
        return Outcome(action=outcome.action, note="; ".join(notes))

    # -- blobs ----------------------------------------------------------------------------------

    def blob(self, digest: Digest, why: str) -> Outcome:
        """A config or manifest, fetched again; or a kept layer's blob, which can be forgotten."""
        core, call = self._core, self._call
        path = core.blobs.path(digest)
        with core.locked("blob", digest.hex, call=call, attempted=f"repair blob {digest}"):
            shut(path, run=self._core.layout.run)
            size = self._whole(digest, path)
            if size is not None:
                core.db.write(lambda tx: self._name_blob(tx, digest, size), call=call)
                return Outcome(action="fixed")
        origin = core.db.read(lambda tx: checks.origin_of(tx, digest))
        if origin is None:
            return self._drop_blob(digest, why)
        try:
            place = self._fetcher.document(digest, origin, why, call=call)
            return Outcome(action="fetched", note=f"from {place}")
        except Missed as missed:
            if missed.later:
                return Outcome(action="failed", note=str(missed))
            with core.locked("blob", digest.hex, call=call, attempted=f"repair blob {digest}"):
                if self._whole(digest, path) is not None:
                    return Outcome(action="fixed", note="another repair had better luck")
                moved = self._quarantine.move(path, f"blob-{digest.hex[:12]}", f"{why}; {missed}")
            return Outcome(action="failed" if moved is None else "quarantined", note=str(missed))

    @staticmethod
    def _name_blob(tx: Transaction, digest: Digest, size: int) -> None:
        layers.add_blob(tx, digest, size)
        checks.update_blob(tx, digest, size)

    @staticmethod
    def _whole(digest: Digest, path: Path) -> int | None:
        """The size of a blob's file if it has the digest."""
        if not is_kind(path, FILE):
            return None
        hasher, size = digest.hasher(), 0
        try:
            with opened(path) as fd:
                while data := os.read(fd, 1 << 20):
                    hasher.update(data)
                    size += len(data)
        except OSError:
            return None  # the disk cannot read it
        return size if hasher.hexdigest() == digest.hex else None

    def _drop_blob(self, digest: Digest, why: str) -> Outcome:
        """A layer's compressed form: the layer itself is what is needed."""
        core, call = self._core, self._call
        with core.locked("blob", digest.hex, call=call, attempted=f"repair blob {digest}"):
            found = core.db.read(lambda tx: layers.layer_of_blob(tx, digest))
            pinned = core.db.read(lambda tx: checks.blob_users(tx, digest))
            moved = self._quarantine.move(core.blobs.path(digest), f"blob-{digest.hex[:12]}", why)
            held = found and core.db.read(lambda tx: layers.get_layer(tx, found.diff_id))
            if held and not pinned:
                core.db.write(lambda tx: checks.forget_blob(tx, digest), call=call)
                return Outcome(action="forgotten", note="the layer that it holds is in the store")
        return Outcome(action="failed" if moved is None else "quarantined", note="nobody is known who has it")

    # -- images ---------------------------------------------------------------------------------

    def image(self, name: str) -> Outcome:
        """An image's rows, made again of its documents; of an index, those of all that the name holds."""
        core = self._core

        def rows(tx: Transaction) -> list[ImageRow]:
            row = images.get_image(tx, NAMESPACE, name)
            return held(tx, row) if row is not None else []

        found = core.db.read(rows)
        if not found:
            return Outcome(action="fixed", note="it was removed meanwhile")
        for row in found:
            outcome = self._image(name, row)
            if outcome.action != "fixed":
                return outcome
        return self._index(name, found[0])

    def _index(self, name: str, row: ImageRow) -> Outcome:
        """The row of an index itself."""
        core, index = self._core, row.index
        if index is None:
            return Outcome(action="fixed")
        try:
            data = core.blobs.read(index)
            document = parse_manifest(data, "", f"repair {name}")
        except Error as exc:
            return Outcome(action="failed", note=exc.reason)
        own = IndexBlob(digest=index, media_type=document.media_type, size=len(data))
        core.db.write(lambda tx: platforms.add_index_blobs(tx, index, [own]), call=self._call)
        return Outcome(action="fixed")

    def _image(self, name: str, row: ImageRow) -> Outcome:
        core = self._core
        try:
            config = parse_config(core.blobs.read(row.config), f"repair {name}")
            manifest = core.blobs.read(row.manifest) if row.manifest is not None else None
            document = parse_manifest(manifest, "", f"repair {name}") if manifest is not None else None
        except Error as exc:
            return Outcome(action="failed", note=exc.reason)
        diff_ids = config.diff_ids()
        if document is not None and (
            not isinstance(document, Manifest) or document.config.digest != row.config
        ):
            return Outcome(action="failed", note="its manifest is another image's; pull it again")

        def body(tx: Transaction) -> None:
            if images.config_layers(tx, row.config) != diff_ids:
                checks.replace_config(tx, row.config, diff_ids)
            if manifest is not None and document is not None and row.manifest is not None:
                found = ManifestRow(digest=row.manifest, media_type=document.media_type, size=len(manifest))
                images.add_manifest(tx, row.config, found)

        core.db.write(body, call=self._call)
        return Outcome(action="fixed")

    # -- chains ---------------------------------------------------------------------------------

    def chain(self, name: str, why: str) -> Outcome:
        """An image of a chain, made anew of its layers; forgotten if that gives another and no root cares."""
        core, call = self._core, self._call
        what = f"repair chain {name[:12]}"
        path = self._chains.file(name)
        with core.locked("chain", name, call=call, attempted=what):
            row = core.db.read(lambda tx: roots.get_chain(tx, name))
            if row is None:
                return Outcome(action="fixed", note="it was collected meanwhile")
            shut(path, run=self._core.layout.run)
            paths = core.db.read(lambda tx: checks.chain_roots(tx, name))
            try:
                again, image = self._chains.again(row, call=call)
            except FAULTS as exc:
                return self._forget_chain(row, paths, f"{why}; {exc.reason}")
            if again != row:
                return self._forget_chain(row, paths, f"{why}; its layers make another one now")
            if is_kind(path, FILE) and _same(path, image):
                return Outcome(action="fixed")
            if is_kind(path, FILE):
                self._quarantine.keep(path, f"chain-{name[:12]}", why)
            else:
                self._quarantine.move(path, f"chain-{name[:12]}", why)
            write_durably(path, bytes(image), sync=core.sync)
            reached("repair.chain-written")
            if paths:
                self._grounds.renew(row)
            else:
                core.erofs.deactivate(name)  # what is mounted is the old file
        return Outcome(action="rebuilt", note=_until(paths) if paths else "")

    def _forget_chain(self, row: ChainRow, paths: list[str], why: str) -> Outcome:
        """Drop a chain and what lies on it, unless a prepared root does.  Needs its lock."""
        if paths:
            return Outcome(action="failed", note=f"{some_of(paths)} stands on it; {why}")
        core = self._core

        def body(tx: Transaction) -> bool:
            if checks.chain_roots(tx, row.id):
                return False
            for above in checks.chain_above(tx, row.id):
                checks.forget_chain(tx, above)
            return True

        if not core.db.write(body, call=self._call):
            return Outcome(action="failed", note="a root was prepared on it meanwhile")
        self._quarantine.move(self._chains.file(row.id), f"chain-{row.id[:12]}", why)
        core.erofs.deactivate(row.id)
        return Outcome(action="forgotten", note="it is made again when it is needed")

    # -- folders --------------------------------------------------------------------------------

    def folder(self, folder: str, why: str) -> Outcome:
        """A layer or chain unpacked, made again of the tars."""
        core, call = self._core, self._call
        row = core.db.read(lambda tx: get_folder(tx, folder))
        form = None if row is None else form_of(row)
        if row is None or form is None:
            return Outcome(action="fixed", note="it was collected meanwhile")
        place = core.layout.folders / folder
        damaged = _which(place)
        paths = core.db.read(lambda tx: checks.folder_users(tx, folder))
        for path in paths:
            if self._in_use(path):
                return Outcome(action="failed", note=f"root {path} stands on it and is in use")
        with core.locked("folder", folder, call=call, attempted=f"repair folder {folder}"):
            if _which(place) != damaged:
                return Outcome(action="fixed", note="another repair took it out of the way")
            if not set(core.db.read(lambda tx: checks.folder_users(tx, folder))) <= set(paths):
                return Outcome(action="failed", note="a root was prepared on it meanwhile")
            self._quarantine.move(place, f"folder-{folder}", why)
            core.db.write(lambda tx: checks.expire_folder(tx, folder), call=call)
        reached("repair.folder-expired")
        try:
            made = self._grounds.folders.again(row, form, call=call)
        except FAULTS as exc:
            return Outcome(action="failed", note=exc.reason)
        if made:
            return Outcome(action="rebuilt")
        return Outcome(action="forgotten", note="it is made again when it is needed")

    def _in_use(self, path: str) -> bool:
        """Whether a root is in use; under its lock, for two who ask at once would find one another."""
        core = self._core
        with core.locked("path", path, call=self._call, attempted=f"look at {path}"):
            root = core.db.read(lambda tx: roots.get_root(tx, path))
            return root is not None and self._grounds.driver(root).in_use(self._grounds.own(root))

    # -- roots and the store's own --------------------------------------------------------------

    def root(self, path: str, problems: Iterable[Problem]) -> Outcome:
        """A prepared root's folders: modes are closed, a work folder is made again; no upper is invented."""
        core, call = self._core, self._call
        with core.locked("path", path, call=call, attempted=f"repair root {path}"):
            row = core.db.read(lambda tx: roots.get_root(tx, path))
            if row is None:
                return Outcome(action="fixed", note="it was cleaned up meanwhile")
            place = core.layout.prepared / row.id
            for problem in problems:
                if (
                    problem.word == "unsafe"
                    and problem.path is not None
                    and shut(problem.path, run=self._core.layout.run)
                ):
                    continue
                if problem.path == place / "work" and is_kind(place / "upper", FOLDER):
                    self._quarantine.move(place / "work", f"root-{row.id}", problem.detail)
                    (place / "work").mkdir(mode=0o700)
                    core.sync.folder(place)
                    continue
                hint = f"what was written there may be lost; 'orlop cleanup {path}' gives it up"
                return Outcome(action="failed", note=hint if problem.path is not None else "")
        return Outcome(action="fixed")

    def skeleton(self, problem: Problem) -> Outcome:
        """One of the store's own folders or files."""
        path, layout = problem.path, self._core.layout
        if path is None:
            return Outcome(action="failed")
        if problem.word == "unsafe" and shut(path, run=self._core.layout.run):
            return Outcome(action="fixed")
        if problem.word == "missing" and path.name not in {"format.json", "meta.db"}:
            with contextlib.suppress(FileExistsError):
                path.mkdir(mode=0o700)
                self._core.sync.folder(path.parent)
            return Outcome(action="fixed")
        if problem.word == "missing" and path.name == "format.json":
            layout.create()
            return Outcome(action="fixed")
        if problem.word == "not-empty":
            for name in os.listdir(path):
                self._quarantine.move(path / name, "empty", problem.detail)
            return Outcome(action="fixed")
        return Outcome(action="failed", note="put the folder back by hand")

    # -- tools ----------------------------------------------------------------------------------


def _which(path: Path) -> tuple[int, int] | None:
    try:
        about = os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return about.st_dev, about.st_ino


def _until(paths: list[str]) -> str:
    return f"{some_of(paths)} may show the old until mounted anew"


def _same(path: Path, image: bytearray) -> bool:
    try:
        return bytes_of(path) == image
    except DataLoss:
        return False
