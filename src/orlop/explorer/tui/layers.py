"""The left side: the layers, and what there is to know of the one that the cursor is on."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from rich.style import Style
from rich.text import Text
from textual.containers import VerticalScroll
from textual.widgets import Static

from orlop.explorer.tui.rows import Line, Rows
from orlop.explorer.tui.text import bar, command_lines, moment, shown, size_text, title_of

if TYPE_CHECKING:
    from textual.app import ComposeResult

    from orlop.explorer.survey import LayerSurvey

__all__ = ["Details", "LayerList", "label_of"]

_SIZE = 9
_NUMBER = 3
_WITHOUT_BAR = 33  # cells that all but the bar take


def label_of(number: int) -> str:
    """What a layer is called: a prepared root's changes have no number."""
    return str(number) if number else "Δ"


class LayerList(Rows):
    """Layers, the lowest first, two lines each: what it did, and the command that made it."""

    row_height: ClassVar[int] = 2
    empty = "no layers"

    def __init__(self, *, id: str) -> None:  # noqa: A002 - textual's word
        super().__init__(id=id)
        self.surveyed: tuple[LayerSurvey, ...] = ()
        self._largest = 1

    def show(self, layers: tuple[LayerSurvey, ...]) -> None:
        """Have these layers; the cursor begins on the topmost, and stays where it was."""
        first, self.surveyed = not self.surveyed, layers
        self._largest = max([layer.size for layer in layers], default=0) or 1
        self.rows_changed(len(layers) - 1 if first else None)

    @property
    def chosen(self) -> LayerSurvey | None:
        """The layer that the cursor is on."""
        return self.surveyed[self.cursor] if self.surveyed else None

    def choose(self, number: int) -> None:
        """Take the cursor to a layer."""
        for at, layer in enumerate(self.surveyed):
            if layer.number == number:
                self.cursor = at

    def row_count(self) -> int:
        """See `Rows.row_count`."""
        return len(self.surveyed)

    def row_line(self, at: int, part: int, width: int, *, chosen: bool) -> Line:
        """See `Rows.row_line`."""
        layer = self.surveyed[at]
        line = Line()
        if part:
            line.add(" " * (_NUMBER + 2))
            title = (
                title_of(layer.created_by, layer.comment) if layer.number else "what was changed in the root"
            )
            return line.add(title or "(nobody said how)", self.style_of("dim"), width=width - line.used)
        line.add(label_of(layer.number), self.style_of("strong"), width=_NUMBER + 1, right=True).add(" ")
        bars = min(10, width - _WITHOUT_BAR)
        if bars >= 3:
            line.add(bar(layer.size / self._largest, bars), self.style_of("bar"))
        line.add(size_text(layer.size), width=_SIZE, right=True)
        for count, sign, name in _did(layer):
            text = f"{sign}{_short(count)}" if count else ""
            line.add(text, self.style_of(name) + _PLAIN, width=6 if width > _WITHOUT_BAR else 5, right=True)
        return line


_PLAIN = Style(strike=False)


def _did(layer: LayerSurvey) -> tuple[tuple[int, str, str], ...]:
    """How much, its sign, its colour."""
    return (
        (layer.added, "+", "added"),
        (layer.changed, "~", "changed"),
        (layer.deleted, "\N{MINUS SIGN}", "deleted"),
    )


def _short(count: int) -> str:
    """A count in four characters."""
    if count < 10_000:
        return str(count)
    return f"{count // 1000}k" if count < 1_000_000 else f"{count // 1_000_000}M"


class Details(VerticalScroll, can_focus=True):
    """All of one layer: its numbers, its digest, its command."""

    def __init__(self, *, id: str) -> None:  # noqa: A002 - textual's word
        super().__init__(id=id)
        self._all = Static(markup=False)

    def compose(self) -> ComposeResult:
        """One text."""
        yield self._all

    def show(self, layer: LayerSurvey, *, known: bool = True) -> None:
        """Tell of a layer; with ``known`` also what it did."""
        self._all.update(self._text(layer, known=known))
        self.scroll_home(animate=False)

    def _text(self, layer: LayerSurvey, *, known: bool) -> Text:
        dim = Style(color=self.app.theme_variables["faint"])
        text = Text(no_wrap=False, overflow="fold")

        def add(name: str, value: str) -> None:
            if value:
                text.append(f"{name:<8}", dim).append(f"{value}\n")

        if not layer.number:
            add("layer", "what was changed in this root")
            add("written", f"{size_text(layer.added_bytes + layer.changed_bytes)}, in files")
        else:
            add("layer", str(layer.number))
            add("tar", f"{size_text(layer.size)}, {layer.entries:,} entries")
        text.append(f"{'did':<8}", dim)
        text.append(
            "  ".join(f"{sign}{count:,}" for count, sign, _ in _did(layer) if count)
            or ("nothing" if known else "…")
        )
        text.append("\n")
        add("wasted", size_text(layer.wasted) if layer.wasted else "")
        add("created", moment(layer.created))
        add("comment", shown(layer.comment) if layer.created_by else "")
        add("digest", layer.diff_id)
        lines = command_lines(layer.created_by)
        if lines:
            text.append("\n")
            text.append("\n".join(lines))
        return text
