"""What is wrong inside a thing: its bytes against its digest, or against what it was derived from.

Reads, never writes, and holds no locks while it reads, for that takes long: `check` makes sure
afterwards that what was read is still what the row is about.  A thing whose origin is itself damaged is not
judged: the origin is a finding already.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

from orlop.errors import DataLoss, FailedPrecondition, InvalidArgument, NotFound, ResourceExhausted
from orlop.images.chains import Chains
from orlop.images.checking.examine import Problem
from orlop.images.core import NAMESPACE, Core
from orlop.images.folders import Folders
from orlop.images.platforms import held
from orlop.layers.foldercheck import folder_differences
from orlop.layers.forms import FORMS, Form
from orlop.layers.verify import CHUNK, data_problem, read_bytes, read_tar
from orlop.metadata import checks, images, layers, roots
from orlop.metadata.db import Transaction
from orlop.metadata.folders import FolderRow, get_folder
from orlop.metadata.images import ImageRow
from orlop.metadata.layers import LayerRow
from orlop.observe import Call, Progress, Rate
from orlop.spec.digest import DiffID, Digest
from orlop.spec.documents import Manifest, parse_config, parse_manifest

__all__ = ["FAULTS", "Meter", "Reader", "bytes_of", "form_of", "opened"]

_LEAST_CHUNK = 64 << 10
_AHEAD = 0.005  # seconds of reading that need no pause of their own
FAULTS = (DataLoss, NotFound, InvalidArgument)
"""What reading something damaged raises."""


class Meter:
    """Counts the bytes that are read, reports them, and keeps to a pace.  Used by one thread at a time."""

    def __init__(self, pace: int | None, call: Call) -> None:
        self._pace = pace
        self._call = call
        self._rate = Rate()
        self._ready = time.monotonic()
        self._item, self._total, self._done = "", 0, 0
        self._told = False  # whether anything was, of this item
        self.bytes = 0

    @property
    def chunk(self) -> int:
        """How much to read at a time, so that a slow pace is an even one."""
        return CHUNK if self._pace is None else max(_LEAST_CHUNK, min(CHUNK, self._pace // 4))

    def begin(self, item: str, total: int) -> None:
        """The next thing, and its bytes."""
        self.end()
        self._item, self._total, self._done = item, total, 0

    def end(self, item: str = "") -> None:
        """It is read, as far as it can be; an ``item`` is told of in any case."""
        if self._told or item:
            done = self._done if item in {"", self._item} else 0
            progress = Progress(item=item or self._item, phase="done", done=done, total=done)
            self._call.observer.progress(progress)
        self._told = False

    def spend(self, count: int) -> None:
        """Some bytes are about to be read; waits until they may be.  Raises as the call is to stop."""
        if self._pace is not None:
            now = time.monotonic()
            self._ready = max(self._ready, now - 1.0)  # a second's worth is the most that is saved up
            if self._ready - now > _AHEAD:
                self._call.pause(self._ready - now, "check store")
            self._ready += count / self._pace
        self.bytes += count
        self._done += count
        if self._rate.add(count):
            self._report()

    def _report(self) -> None:
        self._told = True
        self._call.observer.progress(
            Progress(
                item=self._item, phase="checking", done=self._done, total=self._total, rate=self._rate.rate
            )
        )


@contextlib.contextmanager
def opened(path: Path, flags: int = os.O_RDONLY) -> Iterator[int]:
    """A file of the store, no link followed, for the length of a ``with`` block."""
    fd = os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


class Reader:
    """Reads the things of one store."""

    def __init__(self, core: Core, chains: Chains, folders: Folders, meter: Meter, call: Call) -> None:
        self._core, self._chains, self._folders = core, chains, folders
        self._meter, self._call = meter, call

    # -- layers ---------------------------------------------------------------------------------

    def layer(self, diff_id: DiffID) -> list[Problem]:
        """A layer's tar against its diff ID, the rest of it against the tar.

        A layer that is whole is remembered as checked now.
        """
        row = self._core.db.read(lambda tx: layers.get_layer(tx, diff_id))
        if row is None:
            return []
        tar = self._core.layers.tar(diff_id)
        self._meter.begin(diff_id, row.size + row.data_size)
        with opened(tar) as fd:
            problems = self._layer(row, tar, fd)
        if not any(problem.kind == "damage" for problem in problems):
            # A disk that is full or takes no writes can be checked all the same.
            with contextlib.suppress(ResourceExhausted, FailedPrecondition, DataLoss):
                self._core.db.write(lambda tx: checks.set_checked(tx, diff_id, time.time()), call=self._call)
        return problems

    def _layer(self, row: LayerRow, tar: Path, fd: int) -> list[Problem]:
        meter, call = self._meter, self._call
        reading = read_tar(
            self._core.template,
            fd,
            limits=self._core.settings.limits,
            chunk=meter.chunk,
            spend=meter.spend,
            call=call,
        )
        if reading.diff_id != row.diff_id:
            return [
                Problem(word="wrong-digest", detail=f"its tar has the digest {reading.diff_id}", path=tar)
            ]
        unpacked = reading.unpacked
        if unpacked is None:
            text = f"its tar is whole, but its index cannot be checked: {reading.refusal}"
            return [Problem(word="unchecked", detail=text, kind="warning")]
        problems: list[Problem] = []
        path = tar.with_name("layer.index")
        if bytes_of(path) != unpacked.encoded:
            problems.append(Problem(word="bad-index", detail="its index is not what its tar says", path=path))
        if len(unpacked.index) != row.entries:
            text = f"its row says {row.entries} entries, its tar has {len(unpacked.index)}"
            problems.append(Problem(word="inconsistent", detail=text))
        path = tar.with_name("layer.data")
        if row.data_size or unpacked.index.needs_data:
            with opened(path) as data:
                text = data_problem(unpacked.index, fd, data, spend=meter.spend, call=call)
            if text:
                problems.append(Problem(word="bad-data", detail=text, path=path))
        return problems

    # -- chains ---------------------------------------------------------------------------------

    def chain(self, name: str) -> list[Problem]:
        """An image of a chain against the one that its layers make now."""
        row = self._core.db.read(lambda tx: roots.get_chain(tx, name))
        if row is None:
            return []
        try:
            again, image = self._chains.again(row, call=self._call)
        except FAULTS:
            return []  # what it is made of is damaged
        problems: list[Problem] = []
        path = self._chains.file(name)
        if again != row:
            problems.append(Problem(word="inconsistent", detail="its row is not what its layers make"))
        self._meter.begin(f"chain {name[:12]}", row.size)
        with opened(path) as fd:
            at = self._first_difference(fd, image)
        if at is not None:
            text = f"its file is not what its layers make, from byte {at}"
            problems.append(Problem(word="bad-chain", detail=text, path=path))
        return problems

    def _first_difference(self, fd: int, expected: bytearray) -> int | None:
        view = memoryview(expected)
        at = 0
        while at < len(expected):
            self._call.check("check chain")
            count = min(self._meter.chunk, len(expected) - at)
            self._meter.spend(count)
            if read_bytes(fd, count, at, "check chain") != view[at : at + count]:
                return at
            at += count
        return None if os.fstat(fd).st_size == len(expected) else at

    # -- blobs and what they say ----------------------------------------------------------------

    def blob(self, digest: Digest) -> list[Problem]:
        """A blob against its digest."""
        path = self._core.blobs.path(digest)
        hasher = digest.hasher()
        with opened(path) as fd:
            size = os.fstat(fd).st_size
            self._meter.begin(digest, size)
            at = 0
            while at < size:
                self._call.check("check blob")
                count = min(self._meter.chunk, size - at)
                self._meter.spend(count)
                data = read_bytes(fd, count, at, "check blob")
                if not data:
                    break
                hasher.update(data)
                at += len(data)
        found = f"{digest.algorithm}:{hasher.hexdigest()}"
        return (
            []
            if found == digest
            else [Problem(word="wrong-digest", detail=f"it has the digest {found}", path=path)]
        )

    def image(self, name: str) -> list[Problem]:
        """What an image's documents say against its rows.  Those that cannot be read are findings already."""
        core = self._core

        def rows(tx: Transaction) -> list[tuple[ImageRow, tuple[DiffID, ...]]]:
            row = images.get_image(tx, NAMESPACE, name)  # the name may mean another image a moment later
            return [(one, images.config_layers(tx, one.config)) for one in held(tx, row)] if row else []

        return [problem for row, known in core.db.read(rows) for problem in self._image(row, known)]

    def _image(self, row: ImageRow, known: tuple[DiffID, ...]) -> list[Problem]:
        core = self._core
        problems: list[Problem] = []

        def wrong(text: str) -> None:
            problems.append(Problem(word="inconsistent", detail=text))

        try:
            config = parse_config(core.blobs.read(row.config), "check image")
            if config.diff_ids() != known:
                wrong("its layers' rows are not those that its config lists")
        except (InvalidArgument, ResourceExhausted) as exc:
            wrong(f"its config is none: {exc.reason}")
        except (NotFound, DataLoss):
            pass
        if row.manifest is None:
            return problems
        try:
            data = core.blobs.read(row.manifest)
            document = parse_manifest(data, "", "check image")
            if not isinstance(document, Manifest) or document.config.digest != row.config:
                wrong("its manifest is another image's")
        except (InvalidArgument, ResourceExhausted) as exc:
            wrong(f"its manifest is none: {exc.reason}")
        except (NotFound, DataLoss):
            pass
        return problems

    # -- folders --------------------------------------------------------------------------------

    def folder(self, folder: str) -> list[Problem]:
        """A layer, a chain or a glue unpacked against the tars that it was made of."""
        core, call = self._core, self._call
        row = core.db.read(lambda tx: get_folder(tx, folder))
        form = None if row is None else form_of(row)
        if row is None or form is None or row.boot != core.boot or not row.entries:
            return []
        path = self._folders.path(row)
        self._meter.begin(f"folder {folder}", row.size)
        try:
            with opened(path, os.O_RDONLY | os.O_DIRECTORY) as top, contextlib.ExitStack() as held:
                items = self._folders.items(row, held, call=call)
                if items is None:
                    return []
                found = folder_differences(top, items, form, spend=self._meter.spend, call=call)
        except FAULTS as exc:
            if exc.attempted != "check folder":
                return []  # what it is made of is a finding already
            found = [exc.reason]
        except FileNotFoundError:
            return []
        return [Problem(word="bad-folder", detail="; ".join(found), path=path)] if found else []


def form_of(row: FolderRow) -> Form | None:
    """The form in which a folder stands on disk; None for one that this orlop does not know."""
    name = row.form.removesuffix("-bare")
    form = next((form for key, form in FORMS.items() if key == name), None)
    return form.bare() if form is not None and row.form.endswith("-bare") else form


def bytes_of(path: Path) -> bytes:
    """All of a file of the store.  Raises `DataLoss` where the disk cannot read it."""
    with opened(path) as fd:
        size = os.fstat(fd).st_size
        parts: list[bytes] = []
        at = 0
        while at < size:
            part = read_bytes(fd, min(CHUNK, size - at), at, "check layer")
            if not part:
                break
            parts.append(part)
            at += len(part)
        return b"".join(parts)
