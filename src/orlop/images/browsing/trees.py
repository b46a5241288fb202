"""From the name of a thing to the tree of its files: images, layers, prepared roots.  Nothing is mounted.

An image's chain is read where it lies, and built first if it is not there (a cache, as Prepare makes it).
That of its lowest layers (``IMAGE#N``) is made in memory if it is not there, and leaves nothing; one with few
entries more than the next lower one shares that one's image: so looking at each layer in turn costs about
what the layers hold.  A layer is read alone: what it hides is not in its tree, nor are its hard links to
files of lower layers.  Of a prepared root the upper's changes lie over its chain; mounts of the caller's own
on it do not show.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

from orlop.erofs.reader import Image
from orlop.erofs.writer import build
from orlop.errors import Aborted, FailedPrecondition, InvalidArgument, NotFound, from_oserror
from orlop.hints import Literal
from orlop.images import names
from orlop.images.account.things import find_thing
from orlop.images.browsing.nodes import CHUNK, Node, Tree
from orlop.images.chains import Chains
from orlop.images.core import NAMESPACE, Core
from orlop.images.nearby import root_hint
from orlop.images.platforms import choose
from orlop.images.prepared.grounds import Grounds
from orlop.layers.chainview import ChainView
from orlop.layers.changes import FREEZE, Change, text_of
from orlop.layers.diff import Upper, changes
from orlop.layers.index import LOWER_LINK, LayerIndex
from orlop.layers.merge import DataLayout, Merger
from orlop.metadata import layers, roots
from orlop.metadata.db import Transaction
from orlop.metadata.roots import ChainRow, RootRow
from orlop.observe import Call
from orlop.spec.digest import DiffID, Digest
from orlop.values import dataclass, replace

__all__ = ["CHUNK", "Node", "Source", "Tree", "find_source", "open_tree"]

_DIGEST = re.compile(r"(?:(?:sha256|sha512):)?[0-9a-f]{12,128}")
_FIRST = re.compile(r"[0-9]{1,9}")  # of how many layers; ASCII digits alone
_TRIES = 3  # how often one begins when a collection takes the chain away, or a root changes, at that moment


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """What a text meant: an image (``config``), a layer (``diff_ids`` has one), or a root (``root``).

    ``name`` is an image's full name or ID, a layer's diff ID, a root's path.  ``first`` is set where only so
    many of an image's lowest layers are meant; ``diff_ids`` are those then.
    """

    kind: Literal["image", "layer", "root"]
    name: str
    diff_ids: tuple[DiffID, ...]
    config: Digest | None = None
    root: RootRow | None = None
    first: int | None = None


def find_source(core: Core, thing: str, attempted: str, *, platform: str | None = None) -> Source:
    """What a text means: ``/a/path`` is a prepared root, else an image's name or ID, else a layer's diff ID.

    ``#N`` behind an image's name or ID are its lowest N layers.  Raises `NotFound`, also for more layers than
    there are, and `InvalidArgument` for what has no files.
    """
    image, mark, first = thing.partition("#")
    if mark and not thing.startswith("/"):
        return _lowest(find_source(core, image, attempted, platform=platform), first, attempted)
    if thing.startswith("/"):
        thing = thing.rstrip("/") or "/"
        root = core.db.read(lambda tx: roots.get_root(tx, thing))
        if root is None:
            hint = core.db.read(lambda tx: root_hint(tx, thing))
            raise NotFound(attempted, f"nothing is prepared at {thing}", hint=hint)
        return _of_root(core, root, attempted)
    row = None if " " in thing else core.db.read(lambda tx: names.find(tx, NAMESPACE, thing))
    if row is not None:
        row = choose(core, row, platform, attempted)
        diff_ids = core.layers_of(row.config, attempted)
        return Source(kind="image", name=row.name, diff_ids=diff_ids, config=row.config)

    def find(tx: Transaction) -> tuple[str, str, RootRow | None]:
        if " " not in thing and not _DIGEST.fullmatch(thing):
            names.require(tx, NAMESPACE, thing, attempted)
        found = find_thing(tx, NAMESPACE, thing, attempted)
        return found.kind, found.name, roots.get_root(tx, found.name) if found.kind == "root" else None

    kind, name, root = core.db.read(find)
    if kind == "image":
        config = Digest(name)
        return Source(kind="image", name=name, diff_ids=core.layers_of(config, attempted), config=config)
    if kind == "layer":
        return Source(kind="layer", name=name, diff_ids=(DiffID(name),))
    if root is not None:
        return _of_root(core, root, attempted)
    raise InvalidArgument(
        attempted, f"a {kind} has no files", hint="give an image, a layer's diff ID or a prepared root's path"
    )


def _lowest(source: Source, first: str, attempted: str) -> Source:
    """The lowest layers of an image."""
    if not _FIRST.fullmatch(first):
        raise InvalidArgument(
            attempted, f"#{first[:20]} is no number of layers", hint="IMAGE#2 are the lowest two"
        )
    if source.kind != "image":
        raise InvalidArgument(attempted, f"a {source.kind} has no layers to count", hint="images have")
    count, there = int(first), len(source.diff_ids)
    if count > there:
        raise NotFound(attempted, f"#{count} of an image with {there} layer{'s' if there != 1 else ''}")
    return replace(source, diff_ids=source.diff_ids[:count], first=count)


def _of_root(core: Core, root: RootRow, attempted: str) -> Source:
    diff_ids = core.layers_of(root.config, attempted)
    return Source(kind="root", name=root.path, diff_ids=diff_ids, config=root.config, root=root)


@contextlib.contextmanager
def open_tree(
    core: Core,
    chains: Chains,
    grounds: Grounds,
    thing: str | Source,
    call: Call,
    *,
    platform: str | None = None,
    keep: bool = False,
) -> Iterator[Tree]:
    """The files of an image, a layer or a prepared root, for the length of a ``with`` block.

    With ``keep`` nobody takes them away meanwhile: an image's layers are on a lease, a root is neither
    cleaned up nor committed.  Without it what is read next can be gone (`NotFound`).
    """
    attempted = f"look into {thing if isinstance(thing, str) else thing.name}"
    source = find_source(core, thing, attempted, platform=platform) if isinstance(thing, str) else thing
    with contextlib.ExitStack() as held:
        if keep:
            lease = held.enter_context(core.lease(attempted))
            held.callback(lease.end)  # also where somebody stops in the middle: nothing was brought
            kept = [("layer", str(diff_id)) for diff_id in source.diff_ids]
            lease.keep(*kept, *([("config", str(source.config))] if source.config else []))
        if source.root is not None:
            yield held.enter_context(_root_tree(core, chains, grounds, source.root, call, keep=keep))
        elif source.kind == "layer":
            yield held.enter_context(_layer_tree(core, source.diff_ids[0], call))
        else:
            passing = source.first is not None
            yield held.enter_context(_chain_tree(chains, source.diff_ids, call, passing=passing))


@contextlib.contextmanager
def _chain_tree(chains: Chains, diff_ids: tuple[DiffID, ...], call: Call, *, passing: bool) -> Iterator[Tree]:
    for attempt in range(1, _TRIES + 1):
        try:
            if passing:
                stack, view = chains.sketches.view(diff_ids, call=call)
            else:
                stack = chains.ensure(diff_ids, call=call)
                view = chains.view(stack)
        except (Aborted, NotFound):
            if attempt == _TRIES:
                raise
            continue
        break
    with view, contextlib.closing(Tree(view, _devices(chains, stack), call=call)) as tree:
        yield tree


def _devices(chains: Chains, stack: list[ChainRow]) -> list[tuple[Path, ...]]:
    return [chains.devices(row) for row in stack]


@contextlib.contextmanager
def _root_tree(
    core: Core, chains: Chains, grounds: Grounds, root: RootRow, call: Call, *, keep: bool
) -> Iterator[Tree]:
    what = f"look into {root.path}"
    with contextlib.ExitStack() as held:
        lock = held.enter_context(contextlib.ExitStack())
        lock.enter_context(core.locked("path", root.path, call=call, attempted=what))
        now = core.db.read(lambda tx: roots.get_root(tx, root.path))
        if now is None or now.id != root.id:
            raise NotFound(what, "it was cleaned up meanwhile")
        stack = grounds.stack(root, call)
        view = held.enter_context(chains.view(stack))
        devices = _devices(chains, stack)
        if root.kind != "active":
            yield held.enter_context(contextlib.closing(Tree(view, devices, call=call)))
            return
        grounds.check_privilege(root, what)
        if root.quota is not None:
            grounds.mount_disk(root, call)
        path, kind = grounds.upper(root)
        try:
            upper = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as exc:
            raise from_oserror(what, exc) from exc
        held.callback(os.close, upper)
        found = _changes(upper, view, devices, kind, call)
        tree = Tree(view, devices, changes=found, upper=upper, call=call)
        held.enter_context(contextlib.closing(tree))
        if not keep:
            lock.close()
        yield tree


def _changes(
    upper: int, view: ChainView, devices: list[tuple[Path, ...]], kind: Upper, call: Call
) -> list[Change]:
    """What an upper changes; read again where somebody was at work in it."""
    for _ in range(_TRIES - 1):
        try:
            return changes(upper, view, devices, kind=kind, call=call)
        except FailedPrecondition as exc:
            if exc.hint != FREEZE:
                raise
    return changes(upper, view, devices, kind=kind, call=call)


@contextlib.contextmanager
def _layer_tree(core: Core, diff_id: DiffID, call: Call) -> Iterator[Tree]:
    row = core.db.read(lambda tx: layers.get_layer(tx, diff_id))
    if row is None:
        raise NotFound(f"read layer {diff_id}", "the store does not have it")
    index = core.layers.load_index(diff_id)
    _drop_lower_links(index, call)
    merger = Merger()
    used: list[bool] = []

    def device(data: bool) -> int:
        if data not in used:
            used.append(data)
        return used.index(data) + 1

    merger.apply(index, device, DataLayout(index))
    sizes = [row.data_size if data else row.size for data in used]
    image = build(merger.finish(), devices=sizes, uuid=bytes(16))
    files = [core.layers.data(diff_id) if data else core.layers.tar(diff_id) for data in used]
    with Image(bytes(image)) as read, contextlib.closing(Tree(ChainView([read]), [files], call=call)) as tree:
        yield tree


def _drop_lower_links(index: LayerIndex, call: Call) -> None:
    """Leave out the links to files that this layer does not bring."""
    links = [node for node, flags in enumerate(index.flags) if flags & LOWER_LINK]
    if not links:
        return
    brought = {index.path(node) for node in range(len(index)) if index.mode[node]}
    for node in links:
        if index.targets[node] not in brought:
            index.flags[node] = 0
            path = text_of(index.path(node))
            call.observer.warning(f"/{path} is left out: a hard link to a file of a lower layer")
