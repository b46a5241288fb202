"""Mending a layer: what is derived anew from a tar that is whole, else all of it from where it came.

Rules as in `repair`.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

from orlop.errors import DataLoss
from orlop.images.checking.again import BLOB, Fetcher, Missed
from orlop.images.checking.deep import Meter, bytes_of, opened
from orlop.images.checking.examine import FILE, FOLDER
from orlop.images.checking.mending import Outcome, is_kind, shut, some_of
from orlop.images.checking.quarantine import Quarantine
from orlop.images.core import Core
from orlop.layers.datalayout import DataLayout
from orlop.layers.store import copies
from orlop.layers.verify import data_problem, read_tar
from orlop.layers.worker.client import Unpacked
from orlop.linux.files import copy_range, new_locked_folder, remove_tree, write_durably
from orlop.metadata import checks, layers
from orlop.metadata.db import Transaction
from orlop.metadata.layers import LayerRow
from orlop.observe import Call, reached
from orlop.spec.digest import DiffID

__all__ = ["LayerMender"]


class LayerMender:
    """Mends the layers of one store; takes their locks."""

    def __init__(
        self, core: Core, quarantine: Quarantine, fetcher: Fetcher, meter: Meter, call: Call
    ) -> None:
        self._core, self._quarantine, self._fetcher = core, quarantine, fetcher
        self._meter, self._call = meter, call

    def mend(self, diff_id: DiffID, why: str) -> Outcome:
        """A layer: what is derived anew from a tar that is whole, else the whole of it fetched again."""
        core = self._core
        with core.locked("layer", diff_id.hex, call=self._call, attempted=f"repair layer {diff_id}"):
            outcome = self._derive(diff_id, why)
        if outcome is not None:
            return outcome
        try:
            place = self._fetcher.layer(diff_id, why, call=self._call)
            return Outcome(action="rebuilt" if place == BLOB else "fetched", note=f"from {place}")
        except Missed as missed:
            names, paths = core.db.read(lambda tx: checks.layer_users(tx, diff_id))
            if missed.later:
                return Outcome(action="failed", note=str(missed))
            if paths:
                return Outcome(action="failed", note=f"{some_of(paths)} stands on it; {missed}")
            return self._give_up(diff_id, why, str(missed), wanted=bool(names))

    def _derive(self, diff_id: DiffID, why: str) -> Outcome | None:
        """What a tar that is whole gives; None if there is none.  Needs the layer's lock."""
        core, folder, tar = self._core, self._core.layers.path(diff_id), self._core.layers.tar(diff_id)
        if not (is_kind(folder, FOLDER) and is_kind(tar, FILE)):
            return None
        for path in (folder, *(folder / name for name in ("layer.tar", "layer.index", "layer.data"))):
            shut(path, run=core.layout.run)
        try:
            with opened(tar) as fd:
                self._meter.begin(diff_id, os.fstat(fd).st_size)
                reading = read_tar(
                    core.template,
                    fd,
                    limits=core.settings.limits,
                    chunk=self._meter.chunk,
                    spend=self._meter.spend,
                    call=self._call,
                )
                if reading.diff_id != diff_id:
                    return None
                if reading.unpacked is None:
                    return Outcome(action="failed", note=f"its tar is whole, and not read: {reading.refusal}")
                rebuilt = self._index(folder, reading.unpacked, why)
                rebuilt = self._data(folder, fd, reading.unpacked, why) or rebuilt
        except DataLoss:
            return None
        row = LayerRow(
            diff_id=diff_id,
            size=reading.size,
            data_size=DataLayout(reading.unpacked.index).size,
            index_size=len(reading.unpacked.encoded),
            entries=len(reading.unpacked.index),
        )

        def body(tx: Transaction) -> None:
            layers.add_layer(tx, row)
            checks.update_layer(tx, row)
            checks.set_checked(tx, diff_id, time.time())

        core.db.write(body, call=self._call)
        reached("repair.layer-named")
        return Outcome(action="rebuilt" if rebuilt else "fixed")

    def _index(self, folder: Path, unpacked: Unpacked, why: str) -> bool:
        """Have the index that the tar gives; whether it had to be written."""
        path = folder / "layer.index"
        with contextlib.suppress(DataLoss):
            if is_kind(path, FILE) and bytes_of(path) == unpacked.encoded:
                return False
        with self._aside(self._core.layout.layers) as new:
            write_durably(new / "layer.index", unpacked.encoded, sync=self._core.sync)
            self._replace(new / "layer.index", path, why)
        return True

    def _data(self, folder: Path, tar: int, unpacked: Unpacked, why: str) -> bool:
        """Have the ``layer.data`` that the tar gives; whether it had to be written."""
        index, path = unpacked.index, folder / "layer.data"
        layout = DataLayout(index)
        if not layout.files:
            return False
        with contextlib.suppress(DataLoss):
            if is_kind(path, FILE):
                with opened(path) as fd:
                    if not data_problem(index, tar, fd, spend=self._meter.spend, call=self._call):
                        return False
        with self._aside(self._core.layout.layers) as new:
            fd = os.open(new / "layer.data", os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                os.ftruncate(fd, layout.size)
                for source, target, length in copies(index, layout):
                    self._call.check("repair layer")
                    copy_range(tar, source, fd, target, length)
                self._core.sync.file(fd)
            finally:
                os.close(fd)
            self._replace(new / "layer.data", path, why)
        return True

    def _give_up(self, diff_id: DiffID, why: str, missed: str, *, wanted: bool) -> Outcome:
        """Take a layer out of the store that nobody can give again, and that no prepared root stands on."""
        core, call = self._core, self._call
        place = core.layers.path(diff_id)

        def body(tx: Transaction) -> bool:
            if checks.layer_users(tx, diff_id)[1]:
                return False  # a root was prepared meanwhile
            checks.forget_layer(tx, diff_id)
            return True

        with core.locked("layer", diff_id.hex, call=call, attempted=f"repair layer {diff_id}"):
            outcome = self._derive(diff_id, why)  # another repair may have had better luck
            if outcome is not None:
                return outcome
            moved = self._quarantine.move(place, f"layer-{diff_id.hex[:12]}", f"{why}; {missed}")
            forgotten = False
            try:
                forgotten = core.db.write(body, call=call)
            finally:
                if moved is not None and not forgotten:
                    os.rename(moved, place)
            if not forgotten:
                return Outcome(action="failed", note="a root was prepared on it meanwhile")
        reached("repair.layer-forgotten")
        if not wanted:
            return Outcome(action="forgotten", note="nothing needs it")
        return Outcome(action="quarantined", note=f"{missed}; 'orlop pull' of an image that has it heals it")

    @staticmethod
    @contextlib.contextmanager
    def _aside(parent: Path) -> Iterator[Path]:
        """A new folder that a collection takes if we die."""
        new, lock = new_locked_folder(parent)
        try:
            yield Path(new)
        finally:
            os.close(lock)
            remove_tree(new, missing_ok=True)

    def _replace(self, new: Path, place: Path, why: str) -> None:
        """Put a file that is written and synced in its place; what was there goes to quarantine."""
        what = f"{place.name}-{place.parent.name[:12]}"
        if is_kind(place, FILE):
            self._quarantine.keep(place, what, why)
        else:
            self._quarantine.move(place, what, why)
        os.rename(new, place)
        reached("repair.file-replaced")
        self._core.sync.folder(place.parent)
