"""Besides damage: disk and mounts that nothing needs, what was set aside, strangers' files."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator

from orlop.images.checking.examine import Problem
from orlop.images.checking.quarantine import Quarantine
from orlop.images.collection.strays import strays
from orlop.images.core import NAMESPACE, Core
from orlop.images.locks import root_lock
from orlop.metadata import roots
from orlop.metadata.db import Transaction
from orlop.observe import Call, NullObserver
from orlop.snapshots.mappings import mapping_name

__all__ = ["leftovers"]

_KNOWN = {"format.json", "meta.db", "meta.db-wal", "meta.db-shm", "locks", "content", "layers", "chains"}
_KNOWN |= {"reserve", "folders", "empty", "prepared", "snapshots", "trash"}
_KNOWN |= {"quarantine", "lost+found", "shares"}
_OURS = (".tmp-", "meta.db.before-")  # prefixes of what comes and goes
_ASIDE = "quarantine-"  # of a lost root that a collection found written to


def leftovers(
    core: Core, lost: Collection[str], *, strays_too: bool, call: Call
) -> Iterator[tuple[str, Problem]]:
    """Things, and what there is to say about them.

    ``lost`` are things of which only the row is missing, which was said.  Without ``strays_too`` the disk is
    not searched: the store's own folders are not what they should be.
    """
    # What cannot be looked at is a finding of its own, or a stranger's; nobody collects here.
    quiet = Call(observer=NullObserver(), cancel=call.cancel, deadline=call.deadline)
    for stray in strays(core, call=quiet) if strays_too else ():
        if _thing_of(stray.path) not in lost:
            word, text = stray.kind.replace(" ", "-"), f"{stray.size} bytes that no row names"
            yield f"stray {stray.path}", Problem(word=word, detail=text, kind="leftover")
    for kind, name in _idle_mounts(core):
        text = "it has a mount point, and no root needs it"
        yield f"{kind} {name}", Problem(word="idle-mount", detail=text, kind="leftover")
    layout = core.layout
    aside = [*Quarantine(core).cells(), *layout.prepared.glob(f"{_ASIDE}*")]
    aside += layout.snapshots.glob(f"{_ASIDE}*")
    if aside:
        first = aside[0].relative_to(layout.root)
        text = f"what was set aside is still there: {first}, {len(aside)} in all"
        yield "store", Problem(word="set-aside", detail=text, kind="warning")
    for name in sorted(set(os.listdir(layout.root)) - _KNOWN):
        if not name.startswith(_OURS):
            text = f"{name} is nothing of orlop's"
            yield f"stray {name}", Problem(word="unknown", detail=text, kind="warning")


def _idle_mounts(core: Core) -> Iterator[tuple[str, str]]:
    """Activations that no root stands on: of chains, of mapped ids, of roots' disks."""

    def maps(tx: Transaction) -> set[str]:
        return {mapping_name(row.uid_map, row.gid_map) for row in roots.list_roots(tx, NAMESPACE)}

    def needed(kind: str, name: str) -> bool:
        if kind == "chain":
            return bool(core.db.read(lambda tx: roots.chain_users(tx, name)))
        return name in core.db.read(maps if kind == "maps" else roots.root_ids)

    every = [("chain", name) for name in core.erofs.activations()]
    every += [("maps", name) for name in core.mappings.activations()]
    every += [("root", name) for name in core.disks.activations()]
    for kind, name in every:
        if needed(kind, name):
            continue
        lock = core.try_locked(kind, root_lock(name) if kind == "root" else name)
        if lock is None:
            continue  # somebody is at it
        try:
            idle = not needed(kind, name)
        finally:
            lock.release()
        if idle:
            yield kind, name


def _thing_of(path: str) -> str:
    """What a layer or a blob is called that lies at a path of the store."""
    parts = path.split("/")
    return f"layer sha256:{parts[-1]}" if parts[0] == "layers" else f"blob {':'.join(parts[-2:])}"
