"""Checkpoints: named points of a prepared root, each a state of it (`orlop.images.changed.states`).

A rollback makes a new root of the state, under a new id, and one transaction puts it in the place of the old
one: labels, mounts and checkpoints go over, the old upper is deleted.  So whatever dies in between leaves the
old root or the new one.
"""

from __future__ import annotations

import contextlib
import re
import time
from datetime import UTC, datetime

from orlop.errors import Error, InvalidArgument, NotFound
from orlop.images.api import PreparedInfo
from orlop.images.chains import Chains
from orlop.images.changed.states import States
from orlop.images.core import NAMESPACE, Core, Lease
from orlop.images.forks import CheckpointInfo
from orlop.images.prepared.batch import new_ids
from orlop.images.prepared.making import name_root
from orlop.images.prepared.roots import RootService, info_of_root
from orlop.metadata import captures, events, garbage, images, layers, roots
from orlop.metadata.captures import CheckpointRow
from orlop.metadata.db import Transaction
from orlop.metadata.roots import RootRow
from orlop.observe import Call, Progress, reached, stepped
from orlop.values import replace

__all__ = ["Checkpoints"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


class Checkpoints:
    """The checkpoints of the roots of one store.  Thread-safe."""

    def __init__(self, core: Core, chains: Chains, roots: RootService, states: States) -> None:
        self._core = core
        self._chains = chains
        self._roots = roots
        self._states = states

    @stepped("checkpoint", of=1)
    def make(self, path: str, name: str, *, call: Call) -> CheckpointInfo:
        """See `orlop.images.forks.Forks.checkpoint`."""
        core, what = self._core, f"checkpoint {path}"
        if not _NAME.fullmatch(name):
            raise InvalidArgument(
                what, f"{name!r} is no name for a checkpoint", hint="letters, digits, and . _ - between them"
            )
        self._states.require(path, what)
        with core.lease(what) as lease, core.locked("path", path, call=call, attempted=what):
            root = self._states.require(path, what)
            row = CheckpointRow(name=name, config=root.config, created=time.time())
            core.db.read(lambda tx: captures.check_new(tx, root.id, name))
            row = replace(row, config=self._states.now(root, lease, call).config)

            def body(tx: Transaction) -> CheckpointInfo:
                captures.add_checkpoint(tx, root.id, [row])
                events.add(tx, NAMESPACE, "root.checkpointed", path, {"checkpoint": name, "id": row.config})
                return _info(tx, root, row)

            info = core.db.write(body, call=call)
            reached("checkpoint.named")
        call.observer.progress(Progress(item=path, phase="done"))
        return info

    def listed(self, path: str) -> list[CheckpointInfo]:
        """See `orlop.images.forks.Forks.checkpoints`."""
        root = self._roots.grounds.require(path, f"list checkpoints of {path}")
        return self._core.db.read(
            lambda tx: [_info(tx, root, row) for row in captures.checkpoints_of(tx, root.id)]
        )

    def drop(self, path: str, name: str) -> None:
        """See `orlop.images.forks.Forks.drop_checkpoint`."""
        core, what, call = self._core, f"drop checkpoint {name} of {path}", Call()
        self._roots.grounds.require(path, what)
        with core.locked("path", path, call=call, attempted=what):
            root = self._roots.grounds.require(path, what)

            def body(tx: Transaction) -> bool:
                point = _point(tx, root, name, what)
                captures.delete_checkpoint(tx, root.id, name)
                events.add(tx, NAMESPACE, "root.checkpoint-dropped", path, {"checkpoint": name})
                return bool(garbage.forget(tx, garbage.Suspects(configs={point.config})))

            forgotten = core.db.write(body, call=call)
            reached("checkpoint.dropped")
        if forgotten:
            core.sweeper.wake()

    # -- the way back ---------------------------------------------------------------------------

    @stepped("rollback", of=1)
    def rollback(self, path: str, name: str, *, call: Call) -> PreparedInfo:
        """See `orlop.images.forks.Forks.rollback`."""
        core, what = self._core, f"roll back {path}"
        self._states.require(path, what)
        with core.lease(what) as lease, core.locked("path", path, call=call, attempted=what):
            root = self._states.require(path, what)
            core.choose(core.drivers[root.driver].name)
            mounted = root.mounted
            info = self._replace(root, name, lease, call)
            if mounted:
                info = self._roots.mount_root(path, what, call)
        call.observer.progress(Progress(item=path, phase="done"))
        return info

    def _replace(self, root: RootRow, name: str, lease: Lease, call: Call) -> PreparedInfo:
        core, what = self._core, f"roll back {root.path}"
        point = core.db.read(lambda tx: _point(tx, root, name, what))
        lease.keep(("config", point.config))
        diff_ids = core.layers_of(point.config, what)
        whole = root.self_contained and root.driver == "erofs"
        stack = self._chains.ensure(diff_ids, call=call, whole=whole)
        chains = self._roots.chains_of(root)
        extras = core.db.read(lambda tx: roots.mounts_of(tx, root.id))
        fresh = replace(
            root,
            id=new_ids(1, what)[0],
            config=point.config,
            chain=stack[0].id,
            mounted=False,
            made_target=False,
            form=core.form.name,
        )
        try:
            with self._roots.batch.made([fresh], stack, extras, call=call) as made:

                def body(tx: Transaction) -> tuple[dict[str, str], bool]:
                    labels, points = roots.labels_of(tx, root.id), captures.checkpoints_of(tx, root.id)
                    suspects = self._roots.forget_root(tx, root, event=None)
                    name_root(
                        tx,
                        fresh,
                        labels,
                        made.folders,
                        extras,
                        event="root.rolled-back",
                        about={"checkpoint": name},
                    )
                    captures.add_checkpoint(tx, fresh.id, points)
                    return labels, bool(garbage.forget(tx, suspects))

                try:
                    self._roots.idle(root, what, call)
                    labels, forgotten = core.db.write(body, call=call)
                except BaseException:
                    if root.mounted:
                        with contextlib.suppress(Error):  # the first failure is the one to report
                            self._roots.mount_again(root.path)
                    raise
                reached("checkpoint.restored")
        except BaseException:
            with contextlib.suppress(Error):  # the first failure is the one to report
                self._roots.release(fresh, [row.id for row in stack])
            raise
        self._roots.bury(root, chains)
        if forgotten:
            core.sweeper.wake()
        return info_of_root(fresh, made.specs[0], labels)


def _point(tx: Transaction, root: RootRow, name: str, what: str) -> CheckpointRow:
    found = captures.get_checkpoint(tx, root.id, name)
    if found is None:
        hint = f"'orlop checkpoint list {root.path}' shows those there are"
        raise NotFound(what, f"it has no checkpoint {name}", hint=hint)
    return found


def _info(tx: Transaction, root: RootRow, row: CheckpointRow) -> CheckpointInfo:
    own = set(images.config_layers(tx, root.config))
    added = [diff_id for diff_id in images.config_layers(tx, row.config) if diff_id not in own]
    found = [layers.get_layer(tx, diff_id) for diff_id in added]
    return CheckpointInfo(
        name=row.name,
        created=datetime.fromtimestamp(row.created, UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
        image_id=row.config,
        size=sum(layer.size for layer in found if layer is not None),
    )
