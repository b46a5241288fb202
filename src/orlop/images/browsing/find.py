"""Files by a pattern: in one thing, or in all images of the store.

Of one thing the tree is walked.  Of all images each layer's index is read once, whatever images it is in,
and gives the paths that could match; what of them an image really shows is looked up in its chain, one path
at a time.  An image of which no layer has such a path is not looked into.

Memory is bounded: what layers gave is kept up to `_KEPT` bytes and read again past that, and an image with
more than `_MANY` such paths is walked.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Generator, Iterator

from orlop.errors import Aborted, NotFound
from orlop.images.browsing.globs import Glob
from orlop.images.browsing.nodes import Node, Tree
from orlop.images.browsing.trees import Source, open_tree
from orlop.images.chains import Chains
from orlop.images.contents import FileKind, Found, kind_of
from orlop.images.core import NAMESPACE, Core
from orlop.images.platforms import held
from orlop.images.prepared.grounds import Grounds
from orlop.layers.index import LINK, LOWER_LINK
from orlop.metadata import images
from orlop.metadata.db import Transaction
from orlop.observe import Call
from orlop.spec.digest import DiffID, Digest
from orlop.values import dataclass

__all__ = ["Finder", "Wanted"]

_MANY = 20_000
_KEPT = 32 << 20
_EACH = 100  # bytes that a path takes beside its own
_OFTEN = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What is looked for."""

    glob: Glob
    kinds: frozenset[FileKind] = frozenset()
    least: int | None = None
    most: int | None = None

    def fits(self, node: Node) -> bool:
        """Whether a file whose path matches is meant.  Sizes are those of files."""
        kind = kind_of(node.mode)
        if self.kinds and kind not in self.kinds:
            return False
        if self.least is None and self.most is None:
            return True
        most = node.size if self.most is None else self.most
        return kind == "file" and (self.least or 0) <= node.size <= most


@dataclass(frozen=True, slots=True, kw_only=True)
class _Group:
    """Images of the same layers: their names, the first one's ID."""

    names: tuple[str, ...]
    config: Digest
    diff_ids: tuple[DiffID, ...]


class Finder:
    """Looks for files in one store.  Used once, by one thread."""

    def __init__(self, core: Core, chains: Chains, grounds: Grounds, wanted: Wanted, call: Call) -> None:
        self._core = core
        self._chains = chains
        self._grounds = grounds
        self._wanted = wanted
        self._call = call
        self._known: OrderedDict[DiffID, list[bytes]] = OrderedDict()  # the last used last
        self._size = 0

    def one(self, thing: str, *, platform: str | None) -> Generator[Found]:
        """In one thing."""
        with open_tree(self._core, self._chains, self._grounds, thing, self._call, platform=platform) as tree:
            for node in self._walked(tree):
                yield from self._found(node, (thing,), "")

    def every(self) -> Generator[Found]:
        """In all images, by name; images of the same layers are one."""
        for group in self._core.db.read(self._groups):
            try:
                yield from self._in_group(group)
            except (NotFound, Aborted) as exc:
                self._call.observer.warning(f"{group.names[0]} is left out: {exc.reason}")

    def _groups(self, tx: Transaction) -> list[_Group]:
        found: dict[tuple[DiffID, ...], tuple[list[str], Digest]] = {}
        for row in images.list_images(tx, NAMESPACE):
            for one in held(tx, row):
                diff_ids = images.config_layers(tx, one.config)
                names, _ = found.setdefault(diff_ids, ([], one.config))
                if one.name not in names:
                    names.append(one.name)
        return [
            _Group(names=tuple(names), config=config, diff_ids=diff_ids)
            for diff_ids, (names, config) in found.items()
        ]

    def _in_group(self, group: _Group) -> Generator[Found]:
        count = 0
        lists: list[list[bytes]] = []
        for diff_id in dict.fromkeys(group.diff_ids):
            lists.append(self._candidates(diff_id))
            count += len(lists[-1])
        if not count:
            return
        source = Source(kind="image", name=group.names[0], diff_ids=group.diff_ids, config=group.config)
        with open_tree(self._core, self._chains, self._grounds, source, self._call) as tree:
            nodes = self._walked(tree) if count > _MANY else self._shown(tree, lists)
            for node in nodes:
                yield from self._found(node, group.names, str(group.config))

    def _candidates(self, diff_id: DiffID) -> list[bytes]:
        """The paths of a layer that match, in the order of a walk."""
        known = self._known.get(diff_id)
        if known is not None:
            self._known.move_to_end(diff_id)
            return known
        glob, found = self._wanted.glob, list[bytes]()
        index = self._core.layers.load_index(diff_id)
        for node, name in enumerate(index.names):
            if not node % _OFTEN:
                self._call.check("look for files")
            there = index.mode[node] & 0o170000 or index.flags[node] & (LINK | LOWER_LINK)
            if node and there and glob.fits_name(name):
                path = index.path(node)
                if glob.fits_path(path):
                    found.append(path)
        found.sort(key=_order)
        self._known[diff_id] = found
        self._size += sum(len(path) + _EACH for path in found)
        while self._size > _KEPT and len(self._known) > 1:
            _, gone = self._known.popitem(last=False)
            self._size -= sum(len(path) + _EACH for path in gone)
        return found

    def _shown(self, tree: Tree, lists: list[list[bytes]]) -> Iterator[Node]:
        last = None
        for path in heapq.merge(*lists, key=_order):
            if path != last:
                last = path
                node = tree.exact(path)
                if node is not None:
                    yield node

    def _walked(self, tree: Tree) -> Iterator[Node]:
        glob = self._wanted.glob
        base = tree.exact(glob.base)
        if base is None or not base.is_folder:
            return
        for node in tree.walk(base):
            if node.path == base.path:
                continue
            if glob.fits_name(node.name) and glob.fits_path(node.path):
                yield node

    def _found(self, node: Node, names: tuple[str, ...], image_id: str) -> Iterator[Found]:
        if self._wanted.fits(node):
            yield Found(names=names, image_id=image_id, file=node.info())


def _order(path: bytes) -> list[bytes]:
    return path.split(b"/")
