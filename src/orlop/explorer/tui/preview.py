"""Windows over the explorer: the beginning of a file, and the keys."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from rich.cells import cell_len, chop_cells
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.screen import ModalScreen
from textual.widgets import Static

from orlop.explorer.tui.rows import Line, Rows

if TYPE_CHECKING:
    from collections.abc import Sequence

    from textual import events
    from textual.app import ComposeResult

__all__ = ["HelpScreen", "Preview", "TextLines"]

KEYS: tuple[tuple[str, tuple[tuple[str, str], ...]], ...] = (
    (
        "Everywhere",
        (
            ("1 2 3 4 5", "tree, map, wasted, history, configuration"),
            ("Tab", "from pane to pane"),
            ("↑ ↓ PgUp PgDn Home End", "move (also k j g G)"),
            ("[ ]", "the layer before, the layer after"),
            ("t", "light or dark"),
            ("Esc", "stop reading; close what is open"),
            ("?", "these keys"),
            ("q", "quit"),
        ),
    ),
    (
        "Tree",
        (
            ("→ ←", "open and close a folder (also l h)"),
            ("Enter", "open a folder, or look into a file"),
            ("a c d", "only what was added, changed, deleted"),
            ("x", "everything again"),
            ("s", "by name or by size"),
            ("/", "search: part of a name, or *.so"),
            ("n N", "the next and the previous that was found"),
            ("y", "copy the path"),
        ),
    ),
    (
        "Map",
        (
            ("↑ ↓ ← →", "from box to box"),
            ("Enter", "into the folder"),
            ("Backspace", "out of it"),
        ),
    ),
)


class TextLines(Rows):
    """Lines that are read, wrapped where they are too long; there is no cursor, it scrolls."""

    def __init__(self, lines: Sequence[str]) -> None:
        super().__init__()
        self._whole = lines
        self._wrapped: list[str] = []
        self._width = 0

    def on_resize(self, event: events.Resize) -> None:
        """Wrap again."""
        width = self.scrollable_content_region.width
        if width == self._width or width < 4:
            return
        self._width = width
        self._wrapped = []
        for line in self._whole:
            self._wrapped += [line] if cell_len(line) <= width else chop_cells(line, width)
        self.rows_changed(0)

    def row_count(self) -> int:
        """See `Rows.row_count`."""
        return len(self._wrapped)

    def row_line(self, at: int, part: int, width: int, *, chosen: bool) -> Line:
        """See `Rows.row_line`."""
        return Line().add(self._wrapped[at])

    def action_move(self, count: int) -> None:
        """Scroll by lines."""
        self.scroll_to(y=self.scroll_offset.y + count, animate=False)

    def action_page(self, count: int) -> None:
        """Scroll by what the screen shows."""
        self.scroll_to(y=self.scroll_offset.y + count * (self.size.height - 1), animate=False)

    def action_end(self, where: int) -> None:
        """Scroll to the begin or to the end."""
        self.scroll_to(y=0 if where < 0 else self.virtual_size.height, animate=False)


class _Window(ModalScreen[None]):
    """A window that Esc closes."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q,enter,question_mark", "dismiss_it", "Close", show=False),
    ]

    def action_dismiss_it(self) -> None:
        """Close it."""
        self.dismiss()

    def on_click(self, event: events.Click) -> None:
        """Close it where something else was clicked."""
        if event.widget is self:
            self.dismiss()


class Preview(_Window):
    """The beginning of a file."""

    def __init__(self, title: str, about: str, lines: Sequence[str]) -> None:
        super().__init__()
        self._title, self._about, self._text = title, about, lines

    def compose(self) -> ComposeResult:
        """Title, what it is, and lines of it."""
        with Vertical(classes="window"):
            yield Static(self._title, classes="window--title", markup=False)
            yield TextLines(self._text)
            yield Static(self._about, classes="window--about", markup=False)


class HelpScreen(_Window):
    """The keys."""

    def compose(self) -> ComposeResult:
        """Groups of keys."""
        lines: list[str] = []
        for title, keys in KEYS:
            lines += ["", title] if lines else [title]
            lines += [f"  {key:<24}{what}" for key, what in keys]
        with Vertical(classes="window", id="keys"):
            yield Static("Keys", classes="window--title", markup=False)
            yield TextLines(lines)
            yield Static("Esc closes this", classes="window--about", markup=False)
