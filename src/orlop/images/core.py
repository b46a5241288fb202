"""What the verbs share: the parts of one open store, its locks and leases.

Lock files under ``locks`` are named KIND-KEY: ``lease-<id>`` while a lease's owner lives, ``path-<hash>``
while something happens to a prepared path, ``blob-<hex>`` and ``layer-<hex>`` while one is fetched or made,
``maps-<name>`` shared while a root with mapped ids is at work, exclusive while ids are mapped or unmapped,
``folder-<what>`` and ``folder-<id>`` while a folder is made, ``chain-<id>`` shared while a root is put on a
chain, exclusive while it is built, mounted or unmounted, ``disk-<id>`` while a root's disk is mounted.  A
thread that holds several takes them in that order of kinds, and several of one kind in the order of their
keys; while it waits to build or mount one chain it holds no other.  ``root-<id>``, held while a folder under
``prepared`` waits for its row, is a new root's own, for which nobody waits.  A collector only tries.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import threading
import time
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from orlop.config import DRIVERS, Settings
from orlop.config import Driver as DriverName
from orlop.content.blobs import BlobStore
from orlop.errors import DeadlineExceeded, FailedPrecondition, from_oserror
from orlop.images.layout import Layout
from orlop.layers.forms import CONTAINER, PLAIN, REAL, SINGLE, Form
from orlop.layers.forms import NAMESPACE as NAMESPACE_FORM
from orlop.linux import userns
from orlop.linux.files import remove_tree
from orlop.linux.flock import FileLock
from orlop.linux.userns import Privilege
from orlop.metadata import garbage, layers
from orlop.metadata.db import Database, Transaction
from orlop.observe import Call
from orlop.snapshots.disks import Disks
from orlop.snapshots.driver import Driver
from orlop.snapshots.erofs import ErofsDriver
from orlop.snapshots.mappings import Mappings
from orlop.snapshots.native import NativeDriver
from orlop.snapshots.overlay import OverlayDriver
from orlop.spec.digest import Digest

if TYPE_CHECKING:
    from orlop.layers.store import LayerStore
    from orlop.layers.worker.client import Template
    from orlop.registry.client import Registry
    from orlop.snapshots.probe import Verdict

__all__ = ["NAMESPACE", "Core", "Lease"]

NAMESPACE = "default"
FORM_OF: dict[Privilege, Form] = {
    "root": REAL,
    "user-namespace": NAMESPACE_FORM,
    "single-id": SINGLE,
    "container": CONTAINER,
    "none": PLAIN,
}


class Core:
    """One open store.  Thread-safe; `close` lets go of it."""

    def __init__(self, layout: Layout, settings: Settings) -> None:
        self.layout = layout
        self.settings = settings
        self.blobs = BlobStore(layout.content)
        self.erofs = ErofsDriver(layout.run, layout.root, layout.empty)
        self.overlay = OverlayDriver(layout.empty)
        self.mappings = Mappings(layout.root, layout.run)
        self.disks = Disks(layout.root, layout.run)
        self.drivers: dict[str, Driver] = {
            driver.name: driver for driver in (self.erofs, self.overlay, NativeDriver())
        }
        self._verdicts: dict[DriverName, Verdict] = {}
        self._registry: Registry | None = None
        self._template: Template | None = None
        self._closed = False
        self._guard = threading.Lock()  # guards the lazy parts above, and _closed
        self.db = Database.open(layout.database, layout.locks / "write")

    @classmethod
    def open(cls, layout: Layout, settings: Settings) -> Core:
        """Open or make the store."""
        layout.create()
        return cls(layout, settings)

    # -- drivers --------------------------------------------------------------------------------

    @cached_property
    def privilege(self) -> Privilege:
        """What we may do here."""
        return userns.privilege()

    @cached_property
    def form(self) -> Form:
        """How ids stand in what we write."""
        return FORM_OF[self.privilege]

    @cached_property
    def boot(self) -> str:
        """The name of this boot of the machine."""
        with _system_errors("read the name of this boot"), open("/proc/sys/kernel/random/boot_id") as file:
            return file.read().strip()

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

        return LayerStore(self.layout.layers)

    @property
    def template(self) -> Template:
        """The process that forks workers, made when it is first needed."""
        from orlop.layers.worker.client import Template

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
                from orlop.registry.credentials import CredentialSources

                sources = CredentialSources(
                    files=self.settings.auth_files, helper_path=self.settings.helper_path
                )
                self._registry = Registry(self.settings, sources)
            return self._registry

    def _check_open(self) -> None:
        if self._closed:
            raise FailedPrecondition("use store", "the store is closed")

    def close(self) -> None:
        """Let go of files, processes and connections.  Idempotent."""
        with self._guard:
            self._closed = True
            if self._registry is not None:
                self._registry.close()
                self._registry = None
            if self._template is not None:
                self._template.close()
                self._template = None
        self.db.close()

    # -- locks ----------------------------------------------------------------------------------

    def lock_path(self, kind: str, key: str) -> Path:
        """The file of a lock."""
        if len(key) > 100 or "/" in key:
            key = hashlib.sha256(os.fsencode(key)).hexdigest()
        return self.layout.locks / f"{kind}-{key}"

    @contextlib.contextmanager
    def locked(
        self, kind: str, key: str, *, call: Call, attempted: str, exclusive: bool = True
    ) -> Iterator[FileLock]:
        """Hold a lock for the length of a ``with`` block."""
        lock = FileLock(self.lock_path(kind, key), unlink_on_release=True)
        with _system_errors(attempted):
            lock.acquire(call=call, attempted=attempted, exclusive=exclusive)
        try:
            yield lock
        finally:
            lock.release()

    def try_locked(self, kind: str, key: str) -> FileLock | None:
        """A lock, if nobody has it; the caller releases it."""
        lock = FileLock(self.lock_path(kind, key), unlink_on_release=True)
        with _system_errors(f"lock {kind} {key}"):
            return lock if lock.acquire(call=Call(), attempted="collect", blocking=False) else None

    # -- leases, documents and trash ------------------------------------------------------------

    @contextlib.contextmanager
    def lease(self) -> Iterator[Lease]:
        """A lease for one operation; what it keeps is free again at the end."""
        lease = Lease(self)
        try:
            yield lease
        finally:
            lease.end()

    def write_document(self, digest: Digest, data: bytes, *, lease: Lease, call: Call) -> None:
        """Put a manifest or config on disk and name it, on a lease; durable on return.

        Named under its lock: a collector deletes a document that no row names, and takes that lock first.
        """
        what = f"write blob {digest}"

        def body(tx: Transaction) -> None:
            layers.add_blob(tx, digest, len(data))
            garbage.lease_add(tx, lease.id, "blob", digest)

        with self.locked("blob", digest.hex, call=call, attempted=what):
            self.blobs.write(digest, data)
            lease.mark_used()
            self.db.write(body, call=call)

    def discard(self, path: Path) -> None:
        """Delete a folder or file for good: out of its place at once, then bit by bit.

        A collector may be at the same grave.
        """
        grave = self.layout.trash / secrets.token_hex(8)
        with _system_errors(f"delete {path}"):
            try:
                os.rename(path, grave)
            except FileNotFoundError:
                if os.path.lexists(path):  # it is the folder ``trash`` that is not there
                    raise
                return
            remove_tree(grave, missing_ok=True)


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

    def __init__(self, core: Core) -> None:
        self._core = core
        self.id = secrets.token_hex(8)
        self._used = False
        self._lock = FileLock(core.lock_path("lease", self.id), unlink_on_release=True)
        with _system_errors("start lease"):
            self._lock.acquire(call=Call(), attempted="start lease")

    def mark_used(self) -> None:
        """Say that a transaction has written to the lease, or is about to."""
        self._used = True

    def keep(self, *refs: tuple[str, str]) -> None:
        """Keep things: pairs of a kind (``layer``, ``blob``, ``chain``, ``config``) and a name."""

        def body(tx: Transaction) -> None:
            for kind, ref in refs:
                garbage.lease_add(tx, self.id, kind, ref)

        if refs:
            self._used = True
            self._core.db.write(body)

    def end(self) -> None:
        """The operation is over.  Idempotent.

        A cancelled call must not wait long for the row to go: without its lock the lease is dead, and
        the next collection ends it.
        """
        try:
            if self._used:
                self._used = False
                call = Call(deadline=time.monotonic() + 1)
                with contextlib.suppress(DeadlineExceeded):
                    self._core.db.write(lambda tx: garbage.lease_end(tx, self.id), call=call)
        finally:
            self._lock.release()
