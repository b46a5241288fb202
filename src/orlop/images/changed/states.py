"""States: what a prepared root is at one moment, as a config without a name.

Forks stand on one, checkpoints keep one.  The config is that of the root with the captured layer and a line
of history more; it tells no time, so one content is one config, and forks of it share everything.

What was captured is remembered with a fingerprint of the upper (`orlop.layers.fingerprint`), and taken again
as long as that is the same.  It is remembered only where every later change is sure to show: so a root that
is written to meanwhile, or has a file open for writing, is captured each time.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from orlop.errors import FailedPrecondition, from_oserror
from orlop.images.changed.annotations import of_root
from orlop.images.changed.capture import Capture
from orlop.images.core import Core, Lease
from orlop.images.prepared.roots import RootService
from orlop.layers.changes import MOVED_AWAY
from orlop.layers.fingerprint import Look, any_writers, look, settled_look
from orlop.metadata import captures, images, layers
from orlop.metadata.captures import CaptureRow
from orlop.metadata.db import Transaction
from orlop.metadata.roots import RootRow
from orlop.observe import Call, Progress, reached
from orlop.spec.digest import DiffID, Digest
from orlop.spec.documents import encode, parse_config, parse_json
from orlop.values import dataclass

__all__ = ["State", "States", "with_layer"]

_BY = "orlop capture"  # what history says of the layer


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """A config that is durable, has its rows, and is on the lease of whoever asked; and its layers."""

    config: Digest
    diff_ids: tuple[DiffID, ...]


class States:
    """Captures states of the roots of one store.  Thread-safe; the caller holds the lock of the path."""

    def __init__(self, core: Core, roots: RootService, capture: Capture) -> None:
        self._core = core
        self._roots = roots
        self._capture = capture

    def require(self, path: str, what: str) -> RootRow:
        """The root at a path, if it can change.  Raises `NotFound`, `FailedPrecondition`."""
        root = self._roots.grounds.require(path, what)
        if root.kind != "active":
            raise FailedPrecondition(what, "the root is a read-only view, which never changes")
        self._roots.grounds.check_privilege(root, what)
        return root

    def now(self, root: RootRow, lease: Lease, call: Call) -> State:
        """What a root is now."""
        what = f"capture {root.path}"
        old = self._core.layers_of(root.config, what)
        call.observer.progress(Progress(item=root.path, phase="reading"))
        diff_id = self._layer(root, lease, call)
        if diff_id is None:
            lease.keep(("config", root.config))
            return State(config=root.config, diff_ids=old)
        data = self._core.blobs.read(root.config)
        parse_config(data, what)
        config = with_layer(parse_json(data, what), diff_id)
        state = State(config=Digest.of(config), diff_ids=(*old, diff_id))
        annotations = of_root(self._core, root, what, call)
        if not self._keep(state, annotations, lease, call):
            self._core.write_document(state.config, config, lease=lease, call=call)
            self._keep(state, annotations, lease, call)
            reached("state.named")
        return state

    def _keep(self, state: State, annotations: Mapping[str, str], lease: Lease, call: Call) -> bool:
        """Put a lease on a state whose config is on disk; whether it is."""

        def body(tx: Transaction) -> bool:
            if not layers.has_blob(tx, state.config):
                return False
            images.add_config(tx, state.config, state.diff_ids)
            images.put_annotations(tx, state.config, annotations)
            lease.add(tx, "config", state.config)
            return True

        lease.mark_used()
        return self._core.db.write(body, call=call)

    # -- the layer, from memory where it can be -------------------------------------------------

    def _layer(self, root: RootRow, lease: Lease, call: Call) -> DiffID | None:
        with self._opened(root, call) as upper:
            before = self._look(upper, call)
            known = self._core.db.read(lambda tx: captures.get_capture(tx, root.id))
            if known is not None and before is not None and known.fingerprint == before.fingerprint:
                kept = known.diff_id is None or self._lease_layer(known.diff_id, lease, call)
                if kept:
                    return known.diff_id
            before = self._settled(root, upper, call)
            diff_id = self._capture.layer(root, lease, call)
            after = self._look(upper, call) if before is not None else None
        if before is not None and after is not None and before.fingerprint == after.fingerprint:
            row = CaptureRow(fingerprint=after.fingerprint, diff_id=diff_id)
            self._core.db.write(lambda tx: captures.set_capture(tx, root.id, row), call=call)
            reached("state.remembered")
        return diff_id

    @contextmanager
    def _opened(self, root: RootRow, call: Call) -> Iterator[int]:
        grounds = self._roots.grounds
        if root.quota is not None:
            grounds.mount_disk(root, call)
        path, _ = grounds.upper(root)
        try:
            upper = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as exc:
            raise from_oserror(f"capture {root.path}", exc) from exc
        try:
            yield upper
        finally:
            os.close(upper)

    @staticmethod
    def _look(upper: int, call: Call) -> Look | None:
        """A look at an upper; None where somebody changes it under our eyes."""
        try:
            return look(upper, call)
        except OSError as exc:
            if exc.errno in MOVED_AWAY:
                return None
            raise from_oserror("look for changes", exc) from exc

    def _settled(self, root: RootRow, upper: int, call: Call) -> Look | None:
        """A look that is worth remembering if it is the same after the capture."""
        try:
            found = settled_look(upper, call)
            if found is None or (self._may_be_used(root) and any_writers(upper, call)):
                return None
            return found
        except OSError as exc:
            if exc.errno in MOVED_AWAY:
                return None
            raise from_oserror("look for changes", exc) from exc

    def _may_be_used(self, root: RootRow) -> bool:
        """Whether files of a root may be open: of an overlay's upper only while there is one."""
        grounds = self._roots.grounds
        return root.driver == "native" or grounds.driver(root).in_use(grounds.own(root))

    def _lease_layer(self, diff_id: DiffID, lease: Lease, call: Call) -> bool:
        def body(tx: Transaction) -> bool:
            if layers.get_layer(tx, diff_id) is None:
                return False
            lease.add(tx, "layer", diff_id)
            return True

        lease.mark_used()
        return self._core.db.write(body, call=call)


def with_layer(document: dict[str, Any], diff_id: DiffID) -> bytes:
    """A config with one layer more.  What orlop does not know stays as it is, and so does ``created``."""
    rootfs = dict(document["rootfs"])
    old = list(rootfs.get("diff_ids") or [])
    history = list(document.get("history") or [])
    known = sum(not line.get("empty_layer") for line in history)
    history += [{"created_by": "unknown"}] * max(0, len(old) - known)  # one line for each layer
    rootfs["diff_ids"] = [*old, str(diff_id)]
    return encode({**document, "rootfs": rootfs, "history": [*history, {"created_by": _BY}]})
