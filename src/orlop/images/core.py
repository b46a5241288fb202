"""What the verbs share: the parts of one open store, and its leases."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path

from orlop.config import DRIVERS, Settings
from orlop.config import Driver as DriverName
from orlop.content.blobs import BlobStore
from orlop.errors import (
    Aborted,
    DataLoss,
    DeadlineExceeded,
    Error,
    FailedPrecondition,
    ResourceExhausted,
    from_oserror,
)
from orlop.hints import TYPE_CHECKING
from orlop.images.format import NAMESPACE
from orlop.images.layout import Layout
from orlop.images.locks import Locks
from orlop.images.space import Reserve, is_full
from orlop.linux.files import remove_tree
from orlop.linux.flock import FileLock
from orlop.linux.sync import Sync
from orlop.metadata import boots, events, garbage, images, layers
from orlop.metadata.db import Database, Transaction
from orlop.observe import Call, reached
from orlop.spec.digest import DiffID, Digest
from orlop.values import replace

if TYPE_CHECKING:
    from orlop.images.collection.sweep import Sweeper
    from orlop.images.waiting import Behind
    from orlop.layers.forms import Form, FormName
    from orlop.layers.store import LayerStore
    from orlop.layers.worker.template import Template
    from orlop.linux.userns import Privilege
    from orlop.registry.blobs.ranges import Pace, Traffic
    from orlop.registry.client import Registry
    from orlop.snapshots.disks import Disks
    from orlop.snapshots.driver import Driver
    from orlop.snapshots.erofs import ErofsDriver
    from orlop.snapshots.kit import Kit
    from orlop.snapshots.mappings import Mappings
    from orlop.snapshots.overlay import OverlayDriver
    from orlop.snapshots.probe import Verdict

__all__ = ["NAMESPACE", "Core", "Lease"]

FORM_OF: dict[Privilege, FormName] = {
    "root": "real",
    "user-namespace": "namespace",
    "single-id": "single",
    "container": "container",
    "none": "plain",
}


class Core(Locks):
    """One open store.  Thread-safe; `close` lets go of it."""

    def __init__(self, layout: Layout, settings: Settings) -> None:
        super().__init__(layout.locks)
        self.layout = layout
        self.settings = settings
        self.sync = Sync(settings.durable)
        self.reserve = Reserve(layout.reserve)
        self.blobs = BlobStore(layout.content, sync=self.sync)
        self._kit: Kit | None = None
        self._sweeper: Sweeper | None = None
        self._ending = False
        self.behind: list[Behind] = []  # what works behind the calls; each joins when it is made
        self.behind.append(self.shared)
        self._verdicts: dict[DriverName, Verdict] = {}
        self._registry: Registry | None = None
        self._template: Template | None = None
        self._traffic: dict[str, Traffic] = {}
        self._closed = False
        self._guard = threading.Lock()  # guards the lazy parts above, and _closed
        self._trimmer = events.Trimmer(settings.events_kept, settings.events_age)
        self.db = self._open_database()

    @classmethod
    def open(cls, layout: Layout, settings: Settings) -> Core:
        """Open or make the store."""
        layout.create()
        core = cls(layout, settings)
        core.reserve.fill()
        return core

    def _open_database(self) -> Database:
        """Open meta.db; a store that does not sync says so in it, durably, before anything else."""
        path, lock = self.layout.database, self.layout.locks / "write"
        last = self._trimmer
        try:
            database = Database.open(path, lock, relief=self.reserve.relieve, last=last)
        except ResourceExhausted as exc:  # even reading takes some pages that its users share
            if not (is_full(exc) and self.reserve.spend()):
                raise
            database = Database.open(path, lock, relief=self.reserve.relieve, last=last)
            self.reserve.restore()
        try:
            lost = database.read(lambda tx: boots.others(tx, self.boot))
            if lost:
                import logging

                logging.getLogger(__name__).warning(
                    "%s: what was written there was not synced, and the machine has been started anew since;"
                    " 'orlop check --full --repair' finds and mends what was lost",
                    self.layout.root,
                )
                name = events.name_of(self.boot)
                if database.read(events.log_of).id != name:
                    database.write(lambda tx: events.rename_log(tx, name))
            if self.sync.durable:
                return database
            if not database.read(lambda tx: boots.is_marked(tx, self.boot)):
                database.write(lambda tx: boots.mark(tx, self.boot))
                reached("store.marked")
        except BaseException:
            database.close()
            raise
        database.close()
        return Database.open(path, lock, durable=False, relief=self.reserve.relieve, last=last)

    # -- drivers --------------------------------------------------------------------------------

    @cached_property
    def privilege(self) -> Privilege:
        """What we may do here."""
        from orlop.linux import userns

        return userns.privilege()

    @cached_property
    def form(self) -> Form:
        """How ids stand in what we write."""
        from orlop.layers.forms import FORMS

        return FORMS[FORM_OF[self.privilege]]

    @cached_property
    def boot(self) -> str:
        """The name of this boot of the machine."""
        with _system_errors("read the name of this boot"), open("/proc/sys/kernel/random/boot_id") as file:
            return file.read().strip()

    @property
    def _mounting(self) -> Kit:
        with self._guard:
            if self._kit is None:
                from orlop.snapshots.kit import Kit  # late: a list of images mounts nothing

                layout = self.layout
                direct = self.settings.directio
                self._kit = Kit(layout.root, layout.run, layout.empty, sync=self.sync, directio=direct)
            return self._kit

    @cached_property
    def erofs(self) -> ErofsDriver:
        """EROFS chains below an overlay."""
        return self._mounting.erofs

    @cached_property
    def overlay(self) -> OverlayDriver:
        """Folders below an overlay."""
        return self._mounting.overlay

    @cached_property
    def mappings(self) -> Mappings:
        """Mapped copies of mounts."""
        return self._mounting.mappings

    @cached_property
    def disks(self) -> Disks:
        """Roots' sized disks."""
        return self._mounting.disks

    @cached_property
    def drivers(self) -> Mapping[str, Driver]:
        """All drivers, by name."""
        return self._mounting.drivers

    @property
    def sweeper(self) -> Sweeper:
        """What deletes behind the calls, made when there is something to delete."""
        with self._guard:
            if self._sweeper is None:
                from orlop.images.collection.sweep import Sweeper

                self._sweeper = Sweeper(self)
                if self._ending:
                    self._sweeper.close()
            return self._sweeper

    def verdict(self, driver: DriverName) -> Verdict:
        """Whether a driver works here; tried once."""
        from orlop.snapshots.probe import Verdict, probe

        with self._guard:
            found = self._verdicts.get(driver)
            if found is None:
                if driver == "erofs" and self.privilege != "root":
                    reason = "only root of the machine may mount EROFS"
                    found = Verdict(driver=driver, works=False, reason=reason)
                else:
                    found = probe(driver, self.layout.folders, marks=self.form.marks.decode())
                self._verdicts[driver] = found
            return found

    def choose(self, wanted: DriverName) -> Driver:
        """The driver to use: the one that is wanted, or of ``auto`` the best that works here.

        Raises `FailedPrecondition` with the reason where the one that is wanted does not.
        """
        candidates = DRIVERS if wanted == "auto" else (wanted,)
        verdicts = []
        for name in candidates:
            verdicts.append(self.verdict(name))
            if verdicts[-1].works:
                return self.drivers[name]
        raise FailedPrecondition(
            f"use driver {wanted}",
            "; ".join(verdict.reason for verdict in verdicts),
            hint="'orlop info' shows which drivers work here",
        )

    @cached_property
    def layers(self) -> LayerStore:
        """Layers' tars and indexes."""
        from orlop.layers.store import LayerStore

        return LayerStore(self.layout.layers, sync=self.sync)

    @property
    def template(self) -> Template:
        """The process that forks workers, made when it is first needed."""
        from orlop.layers.worker.template import Template

        with self._guard:
            self._check_open()
            if self._template is None:
                self._template = Template()
            return self._template

    @property
    def registry(self) -> Registry:
        """The distribution client, made when it is first needed."""
        with self._guard:
            self._check_open()
            if self._registry is None:
                from orlop.registry.client import Registry

                self._registry = Registry.of(self.settings)
            return self._registry

    def reconfigure(self, settings: Settings) -> tuple[str, ...]:
        """Go by other settings; those that an open store cannot change, which are named, stay as they are.

        A call that runs may see either.  Raises `InvalidArgument` for what cannot be; then nothing changes.
        """
        from orlop.registry.client import Registry

        kept = () if settings.durable == self.settings.durable else ("durable",)
        registry = Registry.of(settings)
        registry.check_files()
        with self._guard:
            self._check_open()
            self.settings = replace(settings, durable=self.settings.durable)
            before, self._registry = self._registry, registry
            self._traffic.clear()
            self._trimmer.replace(settings.events_kept, settings.events_age)
        if before is not None:
            before.close()
        return kept

    @cached_property
    def pace(self) -> Pace:
        """When downloads try a further connection."""
        from orlop.registry.blobs.ranges import PACE

        return PACE

    def traffic(self, registry: str) -> Traffic:
        """What all downloads from a registry share."""
        from orlop.registry.blobs.ranges import Traffic

        with self._guard:
            found = self._traffic.get(registry)
            if found is None:
                found = self._traffic[registry] = Traffic(2 * (self.settings.streams - 1))
            return found

    def _check_open(self) -> None:
        if self._closed:
            raise FailedPrecondition("use store", "the store is closed")

    def close(self) -> None:
        """Let go of files, processes and connections.  Idempotent."""
        for one in self.behind:
            if one is not self.shared:
                one.close()
        with self._guard:
            self._ending = True
            sweeper = self._sweeper
        if sweeper is not None:
            sweeper.close()
        self.shared.close()  # has each lock for a moment, and what the sweeper found locked it would leave
        with self._guard:
            self._closed = True
            registry, self._registry = self._registry, None
            template, self._template = self._template, None
        if template is not None:
            template.retire()  # it ends while the database waits for the disk
        if registry is not None:
            registry.close()
        self.db.close()
        if template is not None:
            template.close()

    # -- images ---------------------------------------------------------------------------------

    def layers_of(self, config: Digest, what: str) -> tuple[DiffID, ...]:
        """The layers that a config lists, bottom first; all of them, or an error.

        Raises `NotFound` where the config is gone, `Aborted` where only the rows are: the image was removed,
        and somebody is bringing it again, whose last transaction has them.
        """
        from orlop.spec.documents import parse_config

        diff_ids = self.db.read(lambda tx: images.config_layers(tx, config))
        if not diff_ids and parse_config(self.blobs.read(config), what).diff_ids():
            raise Aborted(what, "the image was removed meanwhile", hint="try again")
        return diff_ids

    # -- leases, documents and trash ------------------------------------------------------------

    @contextlib.contextmanager
    def lease(self, what: str = "") -> Iterator[Lease]:
        """A lease for one operation, which is ``what``; what it keeps is free again at the end.

        What an operation that fails has brought stays for the next try until a collection; but room is
        made at once where room was missing.
        """
        lease = Lease(self, what)
        try:
            yield lease
        except ResourceExhausted:
            with contextlib.suppress(Error):  # the first failure is the one to report
                lease.end()
            raise
        else:
            lease.end()
        finally:
            lease.abandon()

    def write_document(self, digest: Digest, data: bytes, *, lease: Lease, call: Call) -> None:
        """Put a manifest or config on disk and name it, on a lease; durable on return.

        Named under its lock: a collector deletes a document that no row names, and takes that lock first.
        """
        what = f"write blob {digest}"

        def body(tx: Transaction) -> None:
            layers.add_blob(tx, digest, len(data))
            lease.add(tx, "blob", digest)

        with self.locked("blob", digest.hex, call=call, attempted=what):
            self.blobs.write(digest, data)
            reached("document.written")
            lease.mark_used()
            self.db.write(body, call=call)
            reached("document.named")

    def discard(self, path: Path) -> None:
        """Delete a folder or file for good: out of its place at once, then bit by bit."""
        grave = self.entomb(path)
        if grave is not None:
            self.burn(grave)

    def entomb(self, path: Path) -> Path | None:
        """Take a folder or file out of its place; where it is to be deleted, or None if it is gone."""
        grave = self.layout.trash / os.urandom(8).hex()
        with _system_errors(f"delete {path}"):
            try:
                os.rename(path, grave)
            except FileNotFoundError:
                if os.path.lexists(path):  # it is the folder ``trash`` that is not there
                    raise
                return None
        reached("trash.moved")
        return grave

    def burn(self, grave: Path) -> None:
        """Delete what was taken out of its place.  A collector may be at the same grave."""
        with _system_errors(f"delete {grave}"):
            remove_tree(grave, missing_ok=True)
        reached("trash.deleted")


@contextlib.contextmanager
def _system_errors(attempted: str) -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        raise from_oserror(attempted, exc) from exc


class Lease:
    """Keeps what an operation makes until it has named it.

    It holds as long as this object holds its lock, so it ends with the process, and never before.
    """

    def __init__(self, core: Core, what: str = "") -> None:
        self._core = core
        self._what = what
        self.id = os.urandom(8).hex()
        self._used = False
        self._lock = FileLock(core.lock_path("lease", self.id), unlink_on_release=True)
        with _system_errors("start lease"):
            self._lock.acquire(call=Call(), attempted="start lease")
        reached("lease.started")

    def mark_used(self) -> None:
        """Say that a transaction has written to the lease, or is about to."""
        self._used = True

    def add(self, tx: Transaction, kind: str, ref: str) -> None:
        """Keep a thing from this transaction on; `mark_used` comes before the transaction."""
        garbage.lease_add(tx, self.id, kind, ref, what=self._what, pid=os.getpid())

    def keep(self, *refs: tuple[str, str]) -> None:
        """Keep things: pairs of a kind (``layer``, ``blob``, ``chain``, ``config``) and a name."""

        def body(tx: Transaction) -> None:
            for kind, ref in refs:
                self.add(tx, kind, ref)

        if refs:
            self._used = True
            self._core.db.write(body)

    def end(self) -> None:
        """The operation is over: what it kept and nothing else needs is forgotten.  Idempotent.

        A cancelled call must not wait long for the row to go, and what the operation did is not undone by
        a disk that fails now: without its lock the lease is dead, and the next collection ends it.
        """

        def body(tx: Transaction) -> bool:
            return bool(garbage.forget(tx, garbage.lease_end(tx, self.id)))

        try:
            if self._used:
                self._used = False
                call = Call(deadline=time.monotonic() + 1)
                try:
                    forgotten = self._core.db.write(body, call=call)
                    reached("lease.ended")
                    if forgotten:
                        self._core.sweeper.wake()
                except DeadlineExceeded:
                    pass
                except (ResourceExhausted, DataLoss) as exc:
                    import logging

                    logging.getLogger(__name__).warning(
                        "lease %s ends with the next collection: %s", self.id, exc
                    )
        finally:
            self.abandon()

    def abandon(self) -> None:
        """Let go of the lease without a word: it is dead, and a collection ends it.  Idempotent."""
        self._lock.release()
