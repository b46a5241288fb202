"""The tree at a layer: folders that open, sizes, and what the layer did to each name."""

from __future__ import annotations

import stat
from typing import TYPE_CHECKING, ClassVar

from rich.style import Style
from textual.binding import Binding, BindingType

from orlop.explorer.tui.layers import label_of
from orlop.explorer.tui.model import Forest, Row, TreeRows
from orlop.explorer.tui.rows import Line, Rows
from orlop.explorer.tui.text import bar, shown, size_text

if TYPE_CHECKING:
    from orlop.explorer.survey import Node

__all__ = ["MARKS", "TreePane", "about", "kind_mark"]

MARKS = {"same": " ", "added": "A", "changed": "C", "deleted": "D"}  # as `orlop diff` has them
_SIZE = 9
_PLAIN = Style(strike=False)
_INDENT = 2
_ANY = 7  # added, changed or deleted


def kind_mark(node: Node) -> str:
    """What ls -F puts behind a name."""
    if node.kind == "folder":
        return "/"
    if node.kind == "symlink":
        return " → " + shown(node.target)
    return {"char": " (char device)", "block": " (block device)", "fifo": "|"}.get(node.kind, "")


class TreePane(Rows):
    """A tree; what is not open costs nothing."""

    empty = "nothing"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("right,l", "unfold", "Open", show=False),
        Binding("left,h", "fold", "Close", show=False),
        Binding("space", "flip", "Open or close", show=False),
    ]

    def __init__(self, *, id: str) -> None:  # noqa: A002 - textual's word
        super().__init__(id=id)
        self.model = TreeRows()
        self.found: frozenset[bytes] = frozenset()

    @property
    def row(self) -> Row | None:
        """Where the cursor is."""
        return self.model.rows[self.cursor] if self.model.rows else None

    def show(self, forest: Forest) -> None:
        """Have another tree; the cursor stays at its path as far as that is there."""
        path = self.row.path if self.row else b""
        self.model.show(forest)
        self.rows_changed(self.model.find(path))

    def rebuilt(self, path: bytes) -> None:
        """The rows were made again; the cursor goes to a path."""
        self.rows_changed(self.model.find(path))

    def reveal(self, path: bytes) -> None:
        """Open what is above a path, and go there."""
        self.rows_changed(self.model.reveal(path))

    def row_count(self) -> int:
        """See `Rows.row_count`."""
        return len(self.model.rows)

    # ---------------------------------------------------------- keys

    def _set_open(self, wanted: bool) -> bool:
        changed = bool(self.model.rows) and self.model.set_open(self.cursor, wanted)
        if changed:
            self.rows_changed()
        return changed

    def action_unfold(self) -> None:
        """Open the folder, or go to what is first in it."""
        if not self._set_open(True) and self.row and self.row.open:
            self.action_move(1)

    def action_fold(self) -> None:
        """Close the folder, or go to the one that this is in."""
        row = self.row
        if not self._set_open(False) and row and row.parent:
            self.cursor = self.model.find(row.parent.path)

    def action_flip(self) -> None:
        """Open the folder if it is closed, and the reverse."""
        if self.row:
            self._set_open(not self.row.open)

    # ---------------------------------------------------------- lines

    def row_line(self, at: int, part: int, width: int, *, chosen: bool) -> Line:
        """See `Rows.row_line`."""
        row = self.model.rows[at]
        node, forest = row.node, self.model.forest
        assert forest is not None
        right = Line()
        size = forest.size(node)
        style = None if node.what == "same" else self.style_of(node.what)
        plain = style + _PLAIN if style else None
        dim = self.style_of("dim")
        if width >= 100:
            who = f"{node.uid}:{node.gid}" if node.mode else ""
            right.add(stat.filemode(node.mode) if node.mode else "", dim, width=11)
            right.add(who, dim, width=12, right=True)
        if width >= 44 and node.what != "deleted":
            label = f"L{node.layer}" if node.layer else label_of(node.layer)
            right.add(label, dim, width=5, right=True)
        elif width >= 44:
            right.add("", width=5)
        bars = 10 if width >= 64 else 5 if width >= 52 else 0
        if bars:
            right.add(" ").add(bar(size / row.largest if row.largest else 0, bars), self.style_of("bar"))
        has_size = node.children or node.kind in {"file", "folder"}
        right.add(
            size_text(size) if has_size else "", plain if size or plain else dim, width=_SIZE, right=True
        ).add(" ")
        left = Line()
        if node.what == "same" and forest.has(node, _ANY):
            left.add("· ", self.style_of("changed"))
        else:
            left.add(f"{MARKS[node.what]} ", plain)
        room = max(width - right.used, 0)
        left.add(" " * min(_INDENT * row.depth, room // 2))
        left.add(("▾ " if row.open else "▸ ") if node.children else "  ", dim)
        name = shown(node.name) if row.depth else ""
        if row.path in self.found:
            style = (style or Style()) + self.style_of("found")
        elif node.kind == "folder":
            style = (style or Style()) + self.style_of("strong")
        elif node.kind == "symlink" and not style:
            style = self.style_of("link")
        left.add(name + kind_mark(node), style, width=max(room - left.used, 0))
        return left.append(right)


def about(row: Row) -> str:
    """What the line below the tree says of a name."""
    node = row.node
    words = ["/" + shown(row.path) + (kind_mark(node) if row.depth else "")]
    if node.mode:
        words.append(f"{stat.filemode(node.mode)}  {node.uid}:{node.gid}")
    if node.kind == "file":
        words.append(f"{node.size:,} bytes" + (f", {node.links} names" if node.links > 1 else ""))
    elif node.children:
        words.append(f"{node.count:,} entries")
    elif node.kind in {"char", "block"}:
        words.append(f"device {node.device[0]}, {node.device[1]}")
    if node.what == "changed":
        words.append("changed: " + ", ".join(node.fields))
    elif node.what != "same":
        words.append(node.what)
    if node.what not in {"added", "deleted"}:
        words.append(f"from layer {node.layer}" if node.layer else "")
    return "   ".join(word for word in words if word)
