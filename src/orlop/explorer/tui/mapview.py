"""Sizes as a map: rectangles of the screen, as large as what they stand for; folders show what is in them.

A folder's map is laid out and painted as a whole, once for each size of the screen, and drawn line by line.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from rich.cells import cell_len
from rich.segment import Segment
from rich.style import Style
from textual.binding import Binding, BindingType
from textual.color import Color
from textual.message import Message
from textual.strip import Strip
from textual.widget import Widget

from orlop.explorer.treemap import layout
from orlop.explorer.tui.text import cut, shown, size_text
from orlop.values import dataclass

if TYPE_CHECKING:
    from collections.abc import Sequence

    from textual import events

    from orlop.explorer.survey import Node
    from orlop.explorer.tui.model import Forest

__all__ = ["Box", "MapPane"]

_MOST = 80  # rectangles of one folder; what is smaller is one more
_COLOURS = 8
_ROOM = (14, 4)  # columns and lines that a folder needs to show what is in it
_DEEPEST = 5  # folders within folders that are shown
_LEAST = 3  # columns for which a name is begun


@dataclass(frozen=True, slots=True, kw_only=True)
class Box:
    """A rectangle of the screen.  ``node`` is None for all that is too small to have one."""

    x: int
    y: int
    width: int
    height: int
    node: Node | None
    size: int
    label: str

    @property
    def middle(self) -> tuple[float, float]:
        """Its middle, in cells that are twice as high as wide."""
        return self.x + self.width / 2, 2 * self.y + self.height


class MapPane(Widget, can_focus=True):
    """The map of one folder."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up,k", "go(0,-1)", "Up", show=False),
        Binding("down,j", "go(0,1)", "Down", show=False),
        Binding("left,h", "go(-1,0)", "Left", show=False),
        Binding("right,l", "go(1,0)", "Right", show=False),
        Binding("enter", "zoom", "Zoom in", show=False),
        Binding("backspace,minus", "out", "Zoom out", show=False),
    ]

    class Moved(Message):
        """Something else is shown or chosen."""

    class Opened(Message):
        """A file is to be looked into."""

        def __init__(self, path: bytes, size: int) -> None:
            super().__init__()
            self.path = path
            self.size = size

    def __init__(self, *, id: str) -> None:  # noqa: A002 - textual's word
        super().__init__(id=id)
        self.forest: Forest | None = None
        self.path = b""
        self.boxes: list[Box] = []
        self.cursor = 0
        self._lines: list[Strip] = []
        self._painted: object = None  # what the lines were made for

    # ---------------------------------------------------------- what is shown

    def show(self, forest: Forest, path: bytes | None = None) -> None:
        """Have another tree, or another folder of it."""
        wanted = self.path if path is None else path
        self.forest = forest
        while wanted and not _is_place(forest.root.get(wanted)):
            wanted = wanted.rpartition(b"/")[0]
        self.path, self.cursor = wanted, 0
        self._again()

    @property
    def folder(self) -> Node | None:
        """What is shown."""
        return self.forest.root.get(self.path) if self.forest else None

    @property
    def chosen(self) -> Box | None:
        """The rectangle that the cursor is on."""
        self._lay_out()
        return self.boxes[self.cursor] if self.boxes else None

    def about(self) -> str:
        """What the line below the map says."""
        folder, box = self.folder, self.chosen
        if folder is None:
            return ""
        where = "/" + shown(self.path)
        if box is None:
            return f"{where}   {size_text(folder.total)}: nothing in it takes room"
        share = box.size / folder.total if folder.total else 0.0
        inside = f"{where.rstrip('/')}/{box.label}"
        return f"{inside}   {size_text(box.size)}, {share:.1%} of {where} ({size_text(folder.total)})"

    # ---------------------------------------------------------- keys

    def action_zoom(self) -> None:
        """Show what is in the folder."""
        box = self.chosen
        if self.forest is None or box is None or box.node is None:
            return
        path = self.path + b"/" + box.node.name if self.path else box.node.name
        if _is_place(box.node):
            self.show(self.forest, path)
        elif box.node.kind == "file":
            self.post_message(self.Opened(path, box.node.size))

    def action_out(self) -> None:
        """Show the folder that this is in."""
        if self.forest and self.path:
            above, _, name = self.path.rpartition(b"/")
            self.show(self.forest, above)
            self._lay_out()
            for at, box in enumerate(self.boxes):
                if box.node is not None and box.node.name == name:
                    self.cursor = at
            self._again()

    def action_go(self, across: int, down: int) -> None:
        """To the nearest rectangle in a direction."""
        here = self.chosen
        if here is None:
            return
        x, y = here.middle
        best: tuple[float, int] | None = None
        for at, box in enumerate(self.boxes):
            aside, ahead = box.middle[0] - x, box.middle[1] - y
            along = aside * across + ahead * down
            off = abs(ahead) if across else abs(aside)
            if box is not here and along > 0 and (best is None or along + 2 * off < best[0]):
                best = (along + 2 * off, at)
        if best:
            self.cursor = best[1]
            self._again()

    def on_click(self, event: events.Click) -> None:
        """Take the cursor there; a second click zooms."""
        self._lay_out()
        for at, box in enumerate(self.boxes):
            if box.x <= event.x < box.x + box.width and box.y <= event.y < box.y + box.height:
                self.cursor = at
                self._again()
                if event.chain == 2:
                    self.action_zoom()
                return

    # ---------------------------------------------------------- layout

    def _again(self) -> None:
        self._painted = None
        self.refresh()
        self.post_message(self.Moved())

    def _lay_out(self) -> None:
        """Find where everything is, and what the lines are, unless that is known."""
        size = self.size
        if self._painted == (self.cursor, size, self.app.theme):
            return
        folder = self.folder
        self.boxes = _boxes(folder, 0, 0, size.width, size.height) if folder else []
        self.cursor = max(0, min(self.cursor, len(self.boxes) - 1))
        self._lines = self._paint() if size else []
        self._painted = (self.cursor, size, self.app.theme)

    def render_line(self, y: int) -> Strip:
        """See `textual.widget.Widget.render_line`."""
        self._lay_out()
        if y < len(self._lines):
            return self._lines[y]
        return Strip.blank(self.size.width, self.rich_style)

    # ---------------------------------------------------------- painting

    def _paint(self) -> list[Strip]:
        variables = self.app.theme_variables
        ground = Color.parse(variables["background"])
        ink = Color.parse(variables["foreground"])
        colours = _Colours(
            ground=ground,
            ink=ink,
            frame=ground.blend(ink, 0.12),
            cursor=Color.parse(variables["cursor"]),
            hues=tuple(Color.parse(variables[f"map-{at}"]) for at in range(_COLOURS)),
        )
        canvas = _Canvas(self.size.width, self.size.height, self.rich_style)
        if not self.boxes:
            canvas.write(1, 0, "nothing here takes room", self.rich_style, self.size.width - 1)
        for at, box in enumerate(self.boxes):
            _paint_box(canvas, box, colours, at, chosen=at == self.cursor)
        return canvas.strips()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Colours:
    """What a map is painted with: ``frame`` is a folder's that shows what is in it."""

    ground: Color
    ink: Color
    frame: Color
    cursor: Color
    hues: tuple[Color, ...]


def _is_place(node: Node | None) -> bool:
    """Whether a node has a map of its own."""
    return node is not None and bool(node.children) and node.total > 0


def _boxes(folder: Node, x: int, y: int, width: int, height: int) -> list[Box]:
    """What is in a folder, the largest first, on so much of the screen."""
    nodes = [node for node in folder.children.values() if node.total > 0]
    nodes.sort(key=lambda node: (-node.total, node.name))
    items: list[tuple[Node | None, int]] = [(node, node.total) for node in nodes[:_MOST]]
    rest = nodes[_MOST:]
    if rest:
        items.append((None, sum(node.total for node in rest)))
        items.sort(key=lambda item: -item[1])
    if not items or width < 1 or height < 1:
        return []
    found: list[Box] = []
    rects = layout([size for _, size in items], float(width), float(2 * height))
    for (node, size), rect in zip(items, rects, strict=True):
        left, right = round(rect.x), round(rect.x + rect.width)
        top, bottom = round(rect.y / 2), round((rect.y + rect.height) / 2)
        if right > left and bottom > top:
            label = f"{len(rest):,} more" if node is None else shown(node.name)
            if node is not None and node.kind == "folder":
                label += "/"
            found.append(
                Box(
                    x=x + left,
                    y=y + top,
                    width=right - left,
                    height=bottom - top,
                    node=node,
                    size=size,
                    label=label,
                )
            )
    return found


def _inside(box: Box) -> Sequence[Box]:
    """What of a folder is shown within its rectangle, below its name."""
    if not _is_place(box.node) or box.width < _ROOM[0] or box.height < _ROOM[1]:
        return ()
    assert box.node is not None
    return _boxes(box.node, box.x + 1, box.y + 1, box.width - 1, box.height - 1)


def _paint_box(
    canvas: _Canvas, box: Box, colours: _Colours, number: int, *, chosen: bool = False, depth: int = 0
) -> None:
    """Paint a rectangle, and within a folder's what is in it."""
    inner = _inside(box) if depth < _DEEPEST else ()
    fill = colours.frame if inner or box.node is None else colours.hues[number % _COLOURS]
    if chosen:
        fill = colours.cursor if inner else fill.blend(colours.ink, 0.3)
    edge = Style(color=colours.ground.rich_color, bgcolor=fill.rich_color)
    words = Style(color=colours.ink.rich_color, bgcolor=fill.rich_color, bold=chosen)
    canvas.fill(box, edge, line=not inner)
    room = box.width - 2
    if room >= _LEAST:
        size = size_text(box.size)
        name = cut(box.label, room)
        if cell_len(name) + len(size) + 1 <= room:
            name = f"{name} {size}"
        elif box.height > 1 and len(size) <= room and not inner:
            canvas.write(box.x + 1, box.y + 1, size, words, room)
        canvas.write(box.x + 1, box.y, name, words, room)
    for at, below in enumerate(inner):
        _paint_box(canvas, below, colours, number + at + 1, depth=depth + 1)


class _Canvas:
    """Cells to be painted; a thin line of the ground's colour is left of each rectangle."""

    def __init__(self, width: int, height: int, style: Style) -> None:
        self._cells = [[(" ", style)] * width for _ in range(height)]

    def fill(self, box: Box, style: Style, *, line: bool) -> None:
        """Paint a rectangle, with a line above it or without."""
        for y in range(box.y, box.y + box.height):
            row = self._cells[y]
            inner = "▔" if line and y == box.y else " "
            row[box.x : box.x + box.width] = [("▏", style), *[(inner, style)] * (box.width - 1)]

    def write(self, x: int, y: int, text: str, style: Style, width: int) -> None:
        """Write on what is painted; a wide character takes the place of two."""
        row = self._cells[y]
        for char in cut(text, width):
            cells = cell_len(char)
            if cells == 0:
                row[x - 1] = (row[x - 1][0] + char, style)
                continue
            row[x] = (char, style)
            if cells == 2:
                row[x + 1] = ("", style)
            x += cells

    def strips(self) -> list[Strip]:
        """The lines."""
        lines = []
        for row in self._cells:
            segments: list[Segment] = []
            text, last = "", row[0][1] if row else Style()
            for char, style in row:
                if style is not last:
                    segments.append(Segment(text, last))
                    text, last = "", style
                text += char
            segments.append(Segment(text, last))
            lines.append(Strip(segments, len(row)))
        return lines
