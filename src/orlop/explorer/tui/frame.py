"""The explorer's frame: its panes and where they stand, its keys and its colours; nothing of what they do."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from textual.app import App
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.widgets import Footer, Input, Static, TabbedContent, TabPane

from orlop.explorer.tui.layers import Details, LayerList
from orlop.explorer.tui.mapview import MapPane
from orlop.explorer.tui.tables import HistoryList, WasteList
from orlop.explorer.tui.themes import DARK, LIGHT
from orlop.explorer.tui.tree import TreePane

if TYPE_CHECKING:
    from collections.abc import Mapping

    from textual.app import ComposeResult

__all__ = ["VIEWS", "Frame"]

VIEWS = {"tree": "#tree", "map": "#map", "wasted": "#waste", "history": "#history", "config": "#config"}


def _line(name: str, where: str) -> Static:
    """A line above or below a pane."""
    return Static(id=name, classes=where, markup=False)


class Frame(App[None]):
    """An app with all panes, which are empty, and keys that a subclass knows the actions of."""

    CSS_PATH = "explorer.tcss"
    TITLE = "orlop explore"
    ENABLE_COMMAND_PALETTE = False
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("question_mark", "keys", "Keys", key_display="?"),
        Binding("slash", "search", "Search", key_display="/"),
        Binding("a", "filter('added')", "Added"),
        Binding("c", "filter('changed')", "Changed"),
        Binding("d", "filter('deleted')", "Deleted"),
        Binding("x", "filter('')", "All"),
        Binding("s", "sort", "Sort"),
        Binding("q", "quit", "Quit"),
        Binding("ctrl+c", "quit", "Quit", show=False, priority=True),
        Binding("n", "find(1)", "Next", show=False),
        Binding("N", "find(-1)", "Previous", show=False),
        Binding("y", "copy", "Copy the path", show=False),
        Binding("t", "theme", "Light or dark", show=False),
        Binding("escape", "stop", "Stop", show=False),
        Binding("left_square_bracket", "layer(-1)", "Layer before", show=False),
        Binding("right_square_bracket", "layer(1)", "Layer after", show=False),
        *(Binding(str(at), f"view('{view}')", view, show=False) for at, view in enumerate(VIEWS, 1)),
    ]

    def __init__(self) -> None:
        super().__init__()
        self.register_theme(DARK)
        self.register_theme(LIGHT)
        # Kept here, since messages may come while the app ends and has no such widgets any more
        self.banner = Static(id="banner", markup=False)
        self.layer_list, self.details = LayerList(id="layers"), Details(id="details")
        self.tree_pane = TreePane(id="tree")
        self.tree_above, self.tree_below = _line("tree-above", "above"), _line("tree-below", "below")
        self.map_pane, self.map_below = MapPane(id="map"), _line("map-below", "below")
        self.waste_list, self.waste_above = WasteList(id="waste"), _line("waste-above", "above")
        self.history_list, self.history_one = (
            HistoryList(id="history"),
            Static(id="history-one", markup=False),
        )
        self.history_text = VerticalScroll(id="history-text")
        self.config_text = Static(id="config-text", markup=False)
        hint = "part of a name, or a pattern as *.so"
        self.field = Input(id="search", placeholder=hint, select_on_focus=False)
        self.loading_line = Static(id="loading", markup=False)

    def get_theme_variable_defaults(self) -> Mapping[str, str]:  # type: ignore[override]  # a dict is one
        """Colours that only themes of ours have, while the stylesheet is read."""
        return DARK.variables

    def compose(self) -> ComposeResult:
        """All panes."""
        yield self.banner
        with Horizontal(id="body"):
            with Vertical(id="left"):
                yield self.layer_list
                yield self.details
            with Vertical(id="right"), TabbedContent(initial="tree-view", id="views"):
                with TabPane("1 Tree", id="tree-view"):
                    yield self.tree_above
                    yield self.tree_pane
                    yield self.tree_below
                with TabPane("2 Map", id="map-view"):
                    yield self.map_pane
                    yield self.map_below
                with TabPane("3 Wasted", id="wasted-view"):
                    yield self.waste_above
                    yield self.waste_list
                with TabPane("4 History", id="history-view"):
                    yield self.history_list
                    with self.history_text:
                        yield self.history_one
                with TabPane("5 Config", id="config-view"), VerticalScroll(id="config"):
                    yield self.config_text
        yield self.field
        yield self.loading_line
        yield Footer(show_command_palette=False)
