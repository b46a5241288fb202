"""Checking a store: what the rows promise against what is on disk, thing by thing, and mending it if asked.

`examine` looks (a quick check), `deep` reads (a full one), `repair`
mends.  Here is the order: the store's own folders and metadata, documents, images' rows, layers, chains from
below, folders, roots, leftovers; so what a repair mends is right before what derives from it is judged.

A check runs while the store is in use.  It waits for nobody: whatever looks wrong is looked at again under
the thing's lock, shared and not waited for, and who has it exclusively is making or deleting the thing this
moment.  Long reading is done without a lock, and is worth nothing if the files are others by its end.
"""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from orlop.errors import DataLoss, Error, FailedPrecondition, ResourceExhausted, from_oserror
from orlop.images.chains import Chains
from orlop.images.checking.deep import Meter, Reader
from orlop.images.checking.examine import Examiner, Problem
from orlop.images.checking.leftovers import leftovers
from orlop.images.checking.mending import Outcome
from orlop.images.checking.repair import Mender
from orlop.images.checking.scope import Scope
from orlop.images.core import NAMESPACE, Core
from orlop.images.prepared.grounds import Grounds
from orlop.images.upkeep import Checked, Finding
from orlop.linux.flock import FileLock
from orlop.metadata import boots, checks, images, pins, roots, snapshots
from orlop.metadata.db import Transaction
from orlop.observe import Call, Progress
from orlop.spec.digest import DiffID, Digest

__all__ = ["Checker"]

_TRIES = 3  # how often a thing is read again that was replaced meanwhile


class Checker:
    """Checks one store.  Thread-safe."""

    def __init__(self, core: Core, chains: Chains, grounds: Grounds) -> None:
        self._core = core
        self._chains = chains
        self._grounds = grounds
        self._bad: dict[DiffID, float] = {}  # what a scrub found damaged, and when: it comes last

    def check(
        self, *, full: bool, repair: bool, things: Sequence[str], pace: int | None, call: Call
    ) -> Checked:
        """See `orlop.images.upkeep.Upkeep.check`."""
        meter = Meter(pace, call)
        run = _Run(self._core, self._chains, self._grounds, meter, full=full, repair=repair, call=call)
        checked = run.everything(things)
        if full and not things and checked.sound:
            self._forget_boots(call)
        return checked

    def scrub(self, *, budget: int, older: float, pace: int | None, call: Call) -> Checked:
        """Read some layers again, those checked longest ago first; what there is to find is told, not mended.

        At most ``budget`` bytes, but one layer in any case; none that was found whole in the last ``older``
        seconds.
        """
        now = time.time()
        due = self._core.db.read(lambda tx: checks.layers_by_age(tx, now - older))
        due = [(diff_id, size) for diff_id, size in due if self._bad.get(diff_id, 0.0) < now - older]
        run = _Run(
            self._core, self._chains, self._grounds, Meter(pace, call), full=True, repair=False, call=call
        )
        for diff_id, size in due:
            if run.meter.bytes and run.meter.bytes + size > budget:
                break
            before = len(run.findings)
            run.layer(diff_id)
            if any(finding.kind == "damage" for finding in run.findings[before:]):
                self._bad[diff_id] = now
        return run.checked()

    def _forget_boots(self, call: Call) -> None:
        """What was once written without being synced is there: nothing has to be said about it any more."""
        core = self._core
        if core.db.read(lambda tx: boots.others(tx, core.boot)):
            with contextlib.suppress(ResourceExhausted, FailedPrecondition):  # it is said once more, then
                core.db.write(lambda tx: boots.clear(tx, core.boot), call=call)


class _Run:
    """One check."""

    def __init__(
        self,
        core: Core,
        chains: Chains,
        grounds: Grounds,
        meter: Meter,
        *,
        full: bool,
        repair: bool,
        call: Call,
    ) -> None:
        self._core, self._full, self._repair, self._call = core, full, repair, call
        self._layout = core.layout
        self._examiner = Examiner(core, chains)
        self._reader = Reader(core, chains, grounds.folders, meter, call)
        self._mender = Mender(core, chains, grounds, meter, call)
        self._chains = chains
        self._scope = Scope()
        self._spoilt: set[str] = set()  # layers that are damaged still: what is made of them is not judged
        self._said: set[tuple[str, str, str]] = set()
        self._counts = dict.fromkeys(("images", "layers", "chains", "blobs", "roots"), 0)
        self.meter = meter
        self.findings: list[Finding] = []

    def checked(self) -> Checked:
        """What was found so far."""
        return Checked(findings=tuple(self.findings), full=self._full, bytes=self.meter.bytes, **self._counts)

    def everything(self, things: Sequence[str]) -> Checked:
        """All that is to be looked at, in order."""
        read = self._core.db.read
        if not self._database():
            return self.checked()
        scope = self._scope = read(lambda tx: Scope.of(tx, things))
        if scope.everything:
            self._skeleton()
        if self._full:
            self._expect(scope)
        for digest in self._wanted(scope.blobs, [row.digest for row in read(checks.all_blobs)]):
            self.blob(digest)
        names = [row.name for row in read(lambda tx: images.list_images(tx, NAMESPACE))]
        for name in self._wanted(scope.images, names):
            self.image(name)
        for diff_id in self._wanted(scope.layers, read(checks.all_layers)):
            self.layer(diff_id)
        for chain in self._wanted(scope.chains, read(checks.all_chains)):
            self.chain(chain)
        for folder in self._wanted(scope.folders, [row.id for row in read(checks.all_folders)]):
            self.folder(folder)
        paths = [row.path for row in read(lambda tx: roots.list_roots(tx, NAMESPACE))]
        for path in self._wanted(scope.roots, paths):
            self.root(path)
        if scope.everything:
            self._snapshots()
            for pin in read(lambda tx: pins.list_pins(tx, NAMESPACE, now=time.time())):
                self._tell(
                    f"pin {pin.name}", self._examiner.pin(pin.name), lambda why, _: Outcome(action="failed")
                )
            self._leftovers()
        return self.checked()

    def _expect(self, scope: Scope) -> None:
        """Tell what will be read; of chains and folders nobody knows how much it is."""
        sizes = dict(self._core.db.read(lambda tx: checks.layers_by_age(tx, math.inf)))
        for diff_id in self._wanted(scope.layers, sizes):
            progress = Progress(item=diff_id, phase="waiting", total=sizes[DiffID(diff_id)])
            self._call.observer.progress(progress)

    def _wanted(self, chosen: set[str], there: Iterable[str]) -> list[str]:
        return [name for name in there if self._scope.everything or name in chosen]

    # -- things ---------------------------------------------------------------------------------

    def blob(self, name: str) -> None:
        """One blob."""
        digest, look = Digest(name), self._examiner.blob
        self._counts["blobs"] += 1
        lock = ("blob", digest.hex)
        problems = self._settled(lock, lambda: look(digest))
        if self._full and not _damage(problems):
            problems += self._read(lock, [self._core.blobs.path(digest)], lambda: self._reader.blob(digest))
        self._tell(f"blob {digest}", problems, lambda why, _: self._mender.blob(digest, why))

    def image(self, name: str) -> None:
        """One image's rows, and with ``full`` what its documents say."""
        self._counts["images"] += 1
        problems = self._examiner.image(name)
        deep = self._full or not self._core.db.read(lambda tx: checks.image_has_layers(tx, NAMESPACE, name))
        if deep and not _damage(problems) and self._reader.image(name):
            problems += self._reader.image(name)  # read twice: it may have been tagged anew
        self._tell(f"image {name}", problems, lambda why, _: self._mender.image(name))

    def layer(self, name: str) -> None:
        """One layer."""
        diff_id, look = DiffID(name), self._examiner.layer
        self._counts["layers"] += 1
        lock = ("layer", diff_id.hex)
        problems = self._settled(lock, lambda: look(diff_id))
        if self._full and not _damage(problems):
            folder = self._core.layers.path(diff_id)
            files = [folder / name for name in ("layer.tar", "layer.index", "layer.data")]
            problems += self._read(lock, files, lambda: self._reader.layer(diff_id))
        if self._full:
            self.meter.end(diff_id)
        self._tell(f"layer {diff_id}", problems, lambda why, _: self._mender.layer(diff_id, why))
        if any(finding.open and finding.thing == f"layer {diff_id}" for finding in self.findings):
            self._spoilt.add(diff_id)

    def chain(self, name: str) -> None:
        """One image of a chain."""
        self._counts["chains"] += 1
        lock = ("chain", name)
        problems = self._settled(lock, lambda: self._examiner.chain(name))
        made_of = self._core.db.read(lambda tx: roots.chain_layers(tx, name)) if self._full else ()
        if self._full and not _damage(problems) and not self._spoilt.intersection(made_of):
            problems += self._read(lock, [self._chains.file(name)], lambda: self._reader.chain(name))
        self._tell(f"chain {name}", problems, lambda why, _: self._mender.chain(name, why))

    def folder(self, name: str) -> None:
        """One folder of another driver's."""
        lock = ("folder", name)
        problems = self._settled(lock, lambda: self._examiner.folder(name))
        made_of = self._core.db.read(lambda tx: checks.folder_layers(tx, name)) if self._full else []
        if self._full and not _damage(problems) and not self._spoilt.intersection(made_of):
            place = self._layout.folders / name
            problems += self._read(lock, [place], lambda: self._reader.folder(name))
        self._tell(f"folder {name}", problems, lambda why, _: self._mender.folder(name, why))

    def root(self, path: str) -> None:
        """One prepared root."""
        self._counts["roots"] += 1
        problems = self._settled(("path", path), lambda: self._examiner.root(path))
        self._tell(f"root {path}", problems, lambda why, found: self._mender.root(path, found))

    def _snapshots(self) -> None:
        """containerd's: what was written to them is nobody's to make again."""
        after = ("", "")
        while True:
            found = self._core.db.read(
                lambda tx, after=after: snapshots.list_snapshots(tx, None, after=after, most=1000)  # type: ignore[misc]  # bound now
            )
            for row in found:
                if row.has_folder:
                    problems = self._examiner.snapshot(row.id)
                    note = "its client has to remove it, and whatever builds on it"
                    self._tell(
                        f"snapshot {row.namespace}/{row.key}",
                        problems,
                        lambda why, _, note=note: Outcome(action="failed", note=note),  # type: ignore[misc]  # bound now
                    )
            if not found:
                return
            after = (found[-1].key, found[-1].namespace)

    # -- the store's own ------------------------------------------------------------------------

    def _database(self) -> bool:
        """Whether the metadata can be read; nothing else is looked at where they cannot."""
        problems = self._sqlite()
        if not problems:
            return True
        outcome = Outcome(action="")
        if self._repair:
            outcome = Outcome(action="failed", note="put meta.db back from a backup ('orlop restore')")
            try:
                self._core.db.write(checks.reindex, call=self._call)
                if not self._sqlite():
                    outcome = Outcome(action="fixed", note="its indexes were built again")
            except DataLoss as exc:
                outcome = Outcome(action="failed", note=f"{outcome.note}; {exc.reason}")
        for text in problems:
            problem = Problem(word="bad-metadata", detail=text)
            self._add("metadata", problem, outcome, affects=())
        return outcome.action == "fixed"

    def _sqlite(self) -> list[str]:
        def body(tx: Transaction) -> list[str]:
            return checks.integrity(tx, full=self._full) or checks.malformed(tx)

        try:
            return self._core.db.read(body)
        except DataLoss as exc:
            return [exc.reason]

    def _skeleton(self) -> None:
        for problem in self._examiner.skeleton():
            outcome = self._mended(problem, lambda problem=problem: self._mender.skeleton(problem))  # type: ignore[misc]  # bound now
            self._add("store", problem, outcome, affects=())

    def _leftovers(self) -> None:
        lost = {thing for _, thing, _ in self._said}
        broken = any(thing == "store" and word in {"missing", "wrong-type"} for word, thing, _ in self._said)
        found = leftovers(self._core, lost, strays_too=not broken, call=self._call)
        for thing, problem in found:
            self._add(thing, problem, None, affects=())

    # -- looking, and looking again -------------------------------------------------------------

    def _settled(self, lock: tuple[str, str], look: Callable[[], list[Problem]]) -> list[Problem]:
        """What is wrong while nobody makes or deletes the thing."""
        self._call.check("check store")
        try:
            if not look():
                return []
        except OSError as exc:
            if not isinstance(exc, FileNotFoundError | NotADirectoryError):
                raise
        held = FileLock(self._core.lock_path(*lock), unlink_on_release=True)
        try:
            if not held.acquire(call=Call(), attempted="check store", exclusive=False, blocking=False):
                return []
            return look()
        except OSError as exc:
            raise from_oserror(f"check {lock[0]} {lock[1]}", exc) from exc
        finally:
            held.release()

    def _read(
        self, lock: tuple[str, str], files: Sequence[Path], read: Callable[[], list[Problem]]
    ) -> list[Problem]:
        """What is wrong with the bytes of files that are the same before and after they were read."""
        for _ in range(_TRIES):
            before = [_identity(path) for path in files]
            try:
                problems = read()
            except DataLoss as exc:
                problems = [Problem(word="unreadable", detail=exc.reason, path=files[0])]
            except (FileNotFoundError, NotADirectoryError):
                problems = []  # gone meanwhile; if not by right, the next look says so
                if not self._settled(lock, list):
                    continue
            if not problems:
                return []
            if before == [_identity(path) for path in files]:
                return problems
        return []

    # -- findings -------------------------------------------------------------------------------

    def _tell(
        self,
        thing: str,
        problems: Sequence[Problem],
        mend: Callable[[str, Sequence[Problem]], Outcome],
    ) -> None:
        """Report what is wrong with a thing, mended if that is asked for."""
        own = [problem for problem in problems if not problem.thing]
        damage = [problem for problem in own if problem.kind == "damage"]
        affects = self._affects(thing) if damage else ()
        outcome = None
        if damage and self._repair:
            outcome = self._try(lambda: mend("; ".join(problem.detail for problem in damage), damage))
        for problem in own:
            self._add(thing, problem, outcome, affects=affects)
        for problem in problems:
            if problem.thing:
                self._tell_other(problem)

    def _tell_other(self, problem: Problem) -> None:
        """A thing that something else misses: no row names it."""
        thing = problem.thing
        if any(known[1] == thing for known in self._said):
            return
        affects = self._affects(thing)
        kind, _, name = thing.partition(" ")
        outcome = None
        if self._repair and kind == "layer":
            outcome = self._try(lambda: self._mender.layer(DiffID(name), problem.detail))
        elif self._repair and kind == "blob":
            outcome = self._try(lambda: self._mender.blob(Digest(name), problem.detail))
        self._add(thing, problem, outcome, affects=affects)

    def _mended(self, problem: Problem, mend: Callable[[], Outcome]) -> Outcome | None:
        return self._try(mend) if self._repair and problem.kind == "damage" else None

    def _try(self, mend: Callable[[], Outcome]) -> Outcome:
        """Mend; what cannot be done is an outcome, too, unless it is the call that ends."""
        self._call.check("repair store")
        try:
            return mend()
        except Error as exc:
            self._call.check("repair store")
            return Outcome(action="failed", note=f"{exc.attempted}: {exc.reason}")
        except OSError as exc:
            error = from_oserror("repair", exc)
            return Outcome(action="failed", note=error.reason)

    def _affects(self, thing: str) -> tuple[str, ...]:
        kind, _, name = thing.partition(" ")

        def body(tx: Transaction) -> tuple[str, ...]:
            if kind == "layer":
                names, paths = checks.layer_users(tx, DiffID(name))
                return (*names, *paths)
            if kind == "chain":
                return tuple(checks.chain_roots(tx, name))
            if kind == "blob":
                return tuple(checks.blob_users(tx, Digest(name)))
            if kind == "folder":
                return tuple(checks.folder_users(tx, name))
            return (name,) if kind in {"image", "root"} else ()

        return self._core.db.read(body)

    def _add(
        self, thing: str, problem: Problem, outcome: Outcome | None, *, affects: tuple[str, ...]
    ) -> None:
        if (problem.word, thing, problem.detail) in self._said:
            return
        self._said.add((problem.word, thing, problem.detail))
        action, detail = "", problem.detail
        if outcome is not None and problem.kind == "damage":
            action = outcome.action
            detail = f"{detail}; {outcome.note}" if outcome.note else detail
        self.findings.append(
            Finding(
                kind=problem.kind,
                problem=problem.word,
                thing=thing,
                detail=detail,
                affects=affects,
                action=action,
            )
        )


def _damage(problems: Iterable[Problem]) -> bool:
    return any(problem.kind == "damage" for problem in problems)


def _identity(path: Path) -> tuple[int, int, int, int] | None:
    try:
        about = os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return about.st_dev, about.st_ino, about.st_size, about.st_ctime_ns
