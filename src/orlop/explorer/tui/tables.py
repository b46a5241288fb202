"""Lists beside the tree: what is wasted, and the history."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from orlop.explorer.tui.rows import Line, Rows
from orlop.explorer.tui.text import bar, cut_front, shown, size_text, title_of

if TYPE_CHECKING:
    from orlop.images.comparing import HistoryLine, WastedFile

__all__ = ["HistoryList", "WasteList"]

_SIZE = 9


class WasteList(Rows):
    """The largest files that nothing shows any more, and which layer hides them."""

    empty = "nothing is hidden or deleted by a later layer"

    def __init__(self, *, id: str) -> None:  # noqa: A002 - textual's word
        super().__init__(id=id)
        self.files: tuple[WastedFile, ...] = ()
        self._words = 0  # cells of the longest story

    def show(self, files: tuple[WastedFile, ...]) -> None:
        """Have these files."""
        self.files = files
        self._words = max([len(_story(file)) for file in files], default=0) + 1
        self.rows_changed(0)

    def row_count(self) -> int:
        """See `Rows.row_count`."""
        return len(self.files)

    def row_line(self, at: int, part: int, width: int, *, chosen: bool) -> Line:
        """See `Rows.row_line`."""
        file = self.files[at]
        line = Line().add(size_text(file.size), width=_SIZE, right=True).add(" ")
        bars = 10 if width >= 90 else 5
        line.add(bar(file.size / (self.files[0].size or 1), bars), self.style_of("wasted"))
        room = width - line.used - self._words - 5  # a column stays free at the right
        line.add("  ").add(cut_front("/" + shown(file.path), room), width=room)
        return line.add("  ").add(_story(file), self.style_of("dim"), width=self._words, right=True)


def _story(file: WastedFile) -> str:
    what = "deleted by" if file.what == "deleted" else "replaced by"
    return f"L{file.layer} {what} L{file.hidden_by}"


class HistoryList(Rows):
    """All lines of the history, those without a layer, too."""

    row_height: ClassVar[int] = 1
    empty = "there is no history"

    def __init__(self, *, id: str) -> None:  # noqa: A002 - textual's word
        super().__init__(id=id)
        self.lines: tuple[HistoryLine, ...] = ()

    def show(self, lines: tuple[HistoryLine, ...]) -> None:
        """Have these lines."""
        self.lines = lines
        self.rows_changed(0)

    @property
    def chosen(self) -> HistoryLine | None:
        """The line that the cursor is on."""
        return self.lines[self.cursor] if self.lines else None

    def row_count(self) -> int:
        """See `Rows.row_count`."""
        return len(self.lines)

    def row_line(self, at: int, part: int, width: int, *, chosen: bool) -> Line:
        """See `Rows.row_line`."""
        one = self.lines[at]
        dim = self.style_of("dim")
        line = Line()
        if one.layer:
            line.add(str(one.layer), self.style_of("strong"), width=4, right=True)
            line.add(size_text(one.size), width=_SIZE + 1, right=True)
        else:
            line.add("\N{EN DASH}", dim, width=4, right=True).add("", width=_SIZE + 1)
        if width >= 70:
            line.add("  ").add(shown(one.created)[:10], dim, width=10)
        line.add("  ")
        title = title_of(one.created_by, one.comment)
        return line.add(title or "(nobody said how)", None if one.layer else dim, width=width - line.used)
