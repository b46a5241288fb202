"""Long lists with a cursor: only the lines that are on the screen are ever drawn.

`Rows` is what all lists of the explorer are.  A subclass says how many rows there are, and what is on the
lines of one; keys, mouse, scrolling and the cursor's colours are here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from rich.cells import cell_len
from rich.segment import Segment
from rich.style import Style
from textual.binding import Binding, BindingType
from textual.geometry import Size
from textual.message import Message
from textual.reactive import reactive
from textual.scroll_view import ScrollView
from textual.strip import Strip

from orlop.explorer.tui.text import cut

if TYPE_CHECKING:
    from textual import events

__all__ = ["Line", "Rows"]


class Line:
    """A line under construction: pieces of text, each cut to the cells that it may take."""

    __slots__ = ("_segments", "used")

    def __init__(self) -> None:
        self._segments: list[Segment] = []
        self.used = 0

    def add(
        self, text: str, style: Style | None = None, *, width: int | None = None, right: bool = False
    ) -> Line:
        """Append a text; with a ``width`` it takes so many cells, however long it is."""
        if width is not None:
            text = cut(text, width)
        cells = cell_len(text)
        space = 0 if width is None else width - cells
        for piece, kind in (
            (" " * space if right else "", None),
            (text, style),
            ("" if right else " " * space, None),
        ):
            if piece:
                self._segments.append(Segment(piece, kind))
        self.used += cells + space
        return self

    def append(self, other: Line) -> Line:
        """Append all of another line."""
        self._segments += other._segments
        self.used += other.used
        return self

    def strip(self) -> Strip:
        """What was added."""
        return Strip(self._segments, self.used)


class Rows(ScrollView, can_focus=True):
    """A list with a cursor."""

    DEFAULT_CSS = """
    Rows { overflow-x: hidden; overflow-y: auto; scrollbar-size-vertical: 1; }
    """
    COMPONENT_CLASSES: ClassVar[set[str]] = {
        "rows--cursor",
        "rows--dim",
        "rows--strong",
        "rows--added",
        "rows--changed",
        "rows--deleted",
        "rows--bar",
        "rows--wasted",
        "rows--link",
        "rows--found",
    }
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up,k", "move(-1)", "Up", show=False),
        Binding("down,j", "move(1)", "Down", show=False),
        Binding("pageup", "page(-1)", "Page up", show=False),
        Binding("pagedown", "page(1)", "Page down", show=False),
        Binding("home,g", "end(-1)", "Top", show=False),
        Binding("end,G", "end(1)", "End", show=False),
        Binding("enter", "choose", "Open", show=False),
    ]
    row_height: ClassVar[int] = 1
    empty: str = ""

    cursor: reactive[int] = reactive(0, repaint=False)

    class Moved(Message):
        """The cursor is elsewhere."""

        def __init__(self, rows: Rows) -> None:
            super().__init__()
            self.rows = rows

        @property
        def control(self) -> Rows:
            """Whose cursor."""
            return self.rows

    class Chosen(Moved):
        """Enter was pressed, or a row was clicked twice."""

    # ---------------------------------------------------------- for subclasses

    def row_count(self) -> int:
        """How many rows there are; a list of nothing, unless a subclass knows better."""
        return 0

    def row_line(self, at: int, part: int, width: int, *, chosen: bool) -> Line:
        """A line of a row."""
        return Line()

    def style_of(self, name: str) -> Style:
        """The colours of something, without a background of its own."""
        return self.get_component_rich_style(f"rows--{name}", partial=True)

    def rows_changed(self, cursor: int | None = None) -> None:
        """Say that there are other rows, and where the cursor is among them."""
        total = self.row_count()
        self.virtual_size = Size(0, max(total, 1) * self.row_height)
        wanted = max(0, min(self.cursor if cursor is None else cursor, total - 1))
        moved = wanted != self.cursor
        self.cursor = wanted
        self._follow()
        self.refresh()
        if not moved:
            self.post_message(self.Moved(self))

    # ---------------------------------------------------------- the rest

    def watch_cursor(self, before: int, after: int) -> None:
        """Draw what has changed."""
        for at in (before, after):
            self.refresh_lines(at * self.row_height, self.row_height)
        self._follow()
        self.post_message(self.Moved(self))

    def validate_cursor(self, wanted: int) -> int:
        """Keep it on a row."""
        return max(0, min(wanted, self.row_count() - 1))

    def on_resize(self, event: events.Resize) -> None:
        """Keep the cursor on the screen."""
        self._follow()

    def on_focus(self) -> None:
        """The cursor is brighter."""
        self.refresh()

    def on_blur(self) -> None:
        """The cursor is darker."""
        self.refresh()

    def _follow(self) -> None:
        height = self.scrollable_content_region.height
        if height <= 0:
            return
        top = self.cursor * self.row_height
        here = self.scroll_offset.y
        if top < here or self.row_height > height:
            self.scroll_to(y=top, animate=False)
        elif top + self.row_height > here + height:
            self.scroll_to(y=top + self.row_height - height, animate=False)

    def action_move(self, count: int) -> None:
        """Up or down by rows."""
        self.cursor += count

    def action_page(self, count: int) -> None:
        """Up or down by what the screen shows."""
        self.cursor += count * max(1, self.scrollable_content_region.height // self.row_height - 1)

    def action_end(self, where: int) -> None:
        """To the first or the last row."""
        self.cursor = 0 if where < 0 else self.row_count() - 1

    def action_choose(self) -> None:
        """Say that the row is meant."""
        if self.row_count():
            self.post_message(self.Chosen(self))

    def on_click(self, event: events.Click) -> None:
        """Take the cursor there; a second click means the row."""
        at = (event.y + self.scroll_offset.y) // self.row_height
        if not 0 <= at < self.row_count():
            return
        self.cursor = at
        if event.chain == 2:
            self.action_choose()

    def render_line(self, y: int) -> Strip:
        """See `textual.widget.Widget.render_line`."""
        width = self.scrollable_content_region.width
        at, part = divmod(y + self.scroll_offset.y, self.row_height)
        base = self.rich_style
        if at >= self.row_count():
            line = Line()
            if at == 0 and part == 0:
                line.add(cut(f" {self.empty}", width), self.style_of("dim"))
            return line.strip().adjust_cell_length(width, base).apply_style(base)
        chosen = at == self.cursor
        strip = self.row_line(at, part, width, chosen=chosen).strip().adjust_cell_length(width)
        if chosen:
            base += self.get_component_rich_style("rows--cursor")
        return strip.apply_style(base)
