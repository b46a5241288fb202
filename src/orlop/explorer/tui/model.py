"""What of a tree is on the screen: which folders are open, what is filtered away, in which order; and search.

No terminal here.  A `Forest` is a tree as it was read, and what has to be known of all of it, which is found
out once, in the thread that read it.  `TreeRows` are the lines of it that show: they cost what is open,
however large the tree is.  Nothing here recurses, since trees may be deeper than Python's stack.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

from orlop.images.browsing.globs import Glob
from orlop.values import dataclass

if TYPE_CHECKING:
    from orlop.explorer.survey import Node
    from orlop.observe import Call

__all__ = ["MOST_FOUND", "WHATS", "Forest", "Order", "Row", "Search", "TreeRows", "ordered", "search"]

Order = Literal["name", "size"]
WHATS = ("added", "changed", "deleted")
_BITS = {"same": 0, "added": 1, "changed": 2, "deleted": 4}
_UNFOLDED = 400  # rows that a filter may open folders for by itself
MOST_FOUND = 10_000  # paths that a search gives


class Forest:
    """A tree, and for each folder which changes there are at and below it, and what it had if it is gone."""

    def __init__(self, root: Node, *, call: Call | None = None) -> None:
        self.root = root
        self.count = 0
        # By the id of a folder's node, which `root` keeps alive
        self._below: dict[int, int] = {}
        self._gone: dict[int, int] = {}
        order: list[tuple[Node, Node | None]] = []
        stack: list[tuple[Node, Node | None]] = [(root, None)]
        while stack:
            node, parent = stack.pop()
            self.count += 1
            if call is not None and self.count % 1024 == 0:
                call.check("read the tree")
            order.append((node, parent))
            stack.extend((child, node) for child in node.children.values())
        for node, parent in reversed(order):
            bits = _BITS[node.what] | self._below.get(id(node), 0)
            if node.children:
                self._below[id(node)] = bits
            if parent is not None and bits:
                self._below[id(parent)] = self._below.get(id(parent), 0) | bits
            if parent is not None and node.what == "deleted" and parent.what == "deleted":
                self._gone[id(parent)] = self._gone.get(id(parent), 0) + self.size(node)

    def size(self, node: Node) -> int:
        """The bytes of the files at and below a node: those that show, or of what is deleted those it had."""
        if node.what != "deleted":
            return node.total
        return self._gone.get(id(node), 0) + (node.size if node.kind == "file" else 0)

    def has(self, node: Node, wanted: int) -> bool:
        """Whether a node, or anything below it, is one of the changes wanted (0: whatever it is)."""
        return not wanted or bool((_BITS[node.what] | self._below.get(id(node), 0)) & wanted)


@dataclass(slots=True, eq=False)
class Row:
    """A line of a tree: ``path`` has no leading slash; ``largest`` is the size of its largest sibling."""

    node: Node
    path: bytes
    depth: int
    parent: Row | None
    largest: int
    open: bool = False


class TreeRows:
    """The lines of a forest that show.  What is open is remembered by path, so it outlasts the forest."""

    def __init__(self) -> None:
        self.forest: Forest | None = None
        self.rows: list[Row] = []
        self.order: Order = "name"
        self.wanted: frozenset[str] = frozenset()
        self._opened: set[bytes] = {b""}
        self._closed: set[bytes] = set()  # of those that a filter opens

    @property
    def bits(self) -> int:
        """The filter, as `Forest.has` takes it."""
        return sum(_BITS[what] for what in self.wanted)

    def show(self, forest: Forest) -> None:
        """Have another tree."""
        self.forest = forest
        self._rebuild()

    def toggle_filter(self, what: str) -> None:
        """Show changes of a kind alone, or no longer alone; several may be wanted."""
        self.wanted ^= {what}
        self._closed.clear()
        self._rebuild()

    def clear_filter(self) -> None:
        """Show everything."""
        self.wanted = frozenset()
        self._rebuild()

    def sort(self, order: Order) -> None:
        """Have another order."""
        self.order = order
        self._rebuild()

    def set_open(self, at: int, wanted: bool) -> bool:
        """Open or close the folder of a row; whether that changed anything."""
        row = self.rows[at]
        if row.open == wanted or (wanted and not row.node.children):
            return False
        row.open = wanted
        if wanted:
            self._opened.add(row.path)
            self._closed.discard(row.path)
            self.rows[at + 1 : at + 1] = list(self._below(row))
            return True
        self._opened.discard(row.path)
        self._closed.add(row.path)
        end = at + 1
        while end < len(self.rows) and self.rows[end].depth > row.depth:
            end += 1
        del self.rows[at + 1 : end]
        return True

    def find(self, path: bytes) -> int:
        """The row of a path, or of the nearest folder above it that shows."""
        places = {row.path: at for at, row in enumerate(self.rows)}
        while path:
            if path in places:
                return places[path]
            path = path.rpartition(b"/")[0]
        return 0

    def reveal(self, path: bytes) -> int:
        """Open all folders above a path, and give its row."""
        at = path.find(b"/")
        self._opened.add(b"")
        while at > 0:
            self._opened.add(path[:at])
            self._closed.discard(path[:at])
            at = path.find(b"/", at + 1)
        self._rebuild()
        return self.find(path)

    def _rebuild(self) -> None:
        self.rows = []
        if self.forest is not None:
            root = self.forest.root
            top = Row(node=root, path=b"", depth=0, parent=None, largest=self.forest.size(root))
            self.rows.append(top)
            top.open = b"" in self._opened
            if top.open:
                self.rows.extend(self._below(top))

    def _below(self, top: Row) -> Iterator[Row]:
        """The rows below an open folder."""
        shown = 0
        stack = [iter(self._children(top))]
        while stack:
            row = next(stack[-1], None)
            if row is None:
                stack.pop()
                continue
            yield row
            shown += 1
            if row.node.children and self._is_open(row, shown):
                row.open = True
                stack.append(iter(self._children(row)))

    def _is_open(self, row: Row, shown: int) -> bool:
        if row.path in self._opened:
            return True
        return bool(self.wanted) and row.path not in self._closed and shown < _UNFOLDED

    def _children(self, row: Row) -> list[Row]:
        assert self.forest is not None
        wanted = self.bits
        nodes = [node for node in row.node.children.values() if self.forest.has(node, wanted)]
        nodes = ordered(self.forest, nodes, self.order)
        largest = max((self.forest.size(node) for node in nodes), default=0)
        above = row.path + b"/" if row.path else b""
        depth = row.depth + 1
        return [
            Row(node=node, path=above + node.name, depth=depth, parent=row, largest=largest) for node in nodes
        ]


def ordered(forest: Forest, nodes: list[Node], order: Order) -> list[Node]:
    """A folder's entries in an order: the largest first, or names in byte order."""
    if order == "size":
        return sorted(nodes, key=lambda node: (-forest.size(node), node.name))
    return sorted(nodes, key=lambda node: node.name)


class Search:
    """What is looked for: a glob, or where it has no such sign a part of a name in upper or lower case.

    Raises `InvalidArgument` for a glob that is none.
    """

    def __init__(self, text: bytes) -> None:
        self.text = text
        self._glob = Glob(text) if set(b"*?[") & set(text) else None
        self._on_path = b"/" in text
        self._part = text.lower()

    def fits(self, name: bytes, path: bytes) -> bool:
        """Whether a path, and its last name, are looked for."""
        if self._glob is not None:
            return self._glob.fits_name(name) and self._glob.fits_path(path)
        return self._part in (b"/" + path if self._on_path else name).lower()


def search(forest: Forest, text: bytes, *, order: Order, wanted: int, call: Call) -> list[bytes]:
    """The paths that fit, from the top of the tree to its end, `MOST_FOUND` at most."""
    what = Search(text)
    found: list[bytes] = []
    seen = 0
    stack: list[tuple[Node, bytes]] = [(forest.root, b"")]
    while stack and len(found) < MOST_FOUND:
        node, path = stack.pop()
        seen += 1
        if seen % 1024 == 0:
            call.check("search")
        if path and what.fits(node.name, path):
            found.append(path)
        below = [child for child in node.children.values() if forest.has(child, wanted)]
        above = path + b"/" if path else b""
        stack.extend((child, above + child.name) for child in reversed(ordered(forest, below, order)))
    return found
