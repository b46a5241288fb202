"""What the verbs share: the parts of one open store, its locks and leases.

Lock files under ``locks`` are named KIND-KEY: ``blob-<hex>`` and ``layer-<hex>`` while one is fetched or
made, ``chain-<id>`` shared while a root is put on a chain, exclusive while it is built, mounted or unmounted,
``path-<hash>`` while something happens to a prepared path.  A thread that holds several takes them in that
order of kinds, and several of one kind in the order of their keys' place in the image (bottom first).
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import threading
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from orlop.config import Settings
from orlop.content.blobs import BlobStore
from orlop.images.layout import Layout
from orlop.linux.files import remove_tree
from orlop.linux.flock import FileLock, hold
from orlop.metadata import garbage
from orlop.metadata.db import Database, Transaction
from orlop.observe import Call
from orlop.snapshots.erofs import ErofsDriver
from orlop.spec.digest import Digest

if TYPE_CHECKING:
    from orlop.layers.store import LayerStore
    from orlop.layers.worker.client import Template
    from orlop.registry.client import Registry

__all__ = ["NAMESPACE", "Core", "Lease"]

NAMESPACE = "default"


class Core:
    """One open store.  Thread-safe; `close` lets go of it."""

    def __init__(self, layout: Layout, settings: Settings) -> None:
        self.layout = layout
        self.settings = settings
        self.blobs = BlobStore(layout.content)
        self.driver = ErofsDriver(layout.prepared, layout.run)
        self._registry: Registry | None = None
        self._template: Template | None = None
        self._guard = threading.Lock()  # guards the two lazy parts above
        self.db = Database.open(layout.database, layout.locks / "write")

    @classmethod
    def open(cls, layout: Layout, settings: Settings) -> Core:
        """Open or make the store."""
        layout.create()
        core = cls(layout, settings)
        core.blobs.create()
        core.driver.create()
        return core

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
            if self._template is None:
                self._template = Template()
            return self._template

    @property
    def registry(self) -> Registry:
        """The distribution client, made when it is first needed."""
        with self._guard:
            if self._registry is None:
                from orlop.registry.client import Registry
                from orlop.registry.credentials import CredentialSources

                sources = CredentialSources(
                    files=self.settings.auth_files, helper_path=self.settings.helper_path
                )
                self._registry = Registry(self.settings, sources)
            return self._registry

    def close(self) -> None:
        """Let go of files, processes and connections.  Idempotent."""
        with self._guard:
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

    def locked(
        self, kind: str, key: str, *, call: Call, attempted: str, exclusive: bool = True
    ) -> contextlib.AbstractContextManager[FileLock]:
        """Hold a lock for the length of a ``with`` block."""
        return hold(
            self.lock_path(kind, key),
            call=call,
            attempted=attempted,
            exclusive=exclusive,
            unlink_on_release=True,
        )

    def try_locked(self, kind: str, key: str) -> FileLock | None:
        """A lock, if nobody has it; the caller releases it."""
        lock = FileLock(self.lock_path(kind, key), unlink_on_release=True)
        return lock if lock.acquire(call=Call(), attempted="collect", blocking=False) else None

    # -- leases and trash -----------------------------------------------------------------------

    @contextlib.contextmanager
    def lease(self) -> Iterator[Lease]:
        """A lease for one operation; what it keeps is free again at the end."""
        lease = Lease(self)
        try:
            yield lease
        finally:
            lease.end()

    def discard(self, path: Path) -> None:
        """Delete a folder or file for good: out of its place at once, then bit by bit."""
        grave = self.layout.trash / secrets.token_hex(8)
        try:
            os.rename(path, grave)
        except FileNotFoundError:
            return
        if grave.is_dir():
            remove_tree(grave)
        else:
            grave.unlink()

    def write_document(self, digest: Digest, data: bytes) -> None:
        """Put a manifest or config on disk; its row is the caller's to write."""
        with self.locked("blob", digest.hex, call=Call(), attempted=f"write blob {digest}"):
            self.blobs.write(digest, data)


class Lease:
    """Keeps what an operation makes until it has named it.  Costs nothing until it is used."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self.id = secrets.token_hex(8)
        self._used = False

    def mark_used(self) -> None:
        """Say that a transaction has written to the lease."""
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
        """The operation is over.  Idempotent."""
        if self._used:
            self._used = False
            self._core.db.write(lambda tx: garbage.lease_end(tx, self.id))
