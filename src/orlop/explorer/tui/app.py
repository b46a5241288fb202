"""The explorer: layers at the left; at the right the tree, the map, what is wasted, history, configuration.

Everything is read in threads by a `Loader`; this module shows what came, and what the keys do.
"""

from __future__ import annotations

import asyncio
import shlex
import signal
from functools import partial
from typing import TYPE_CHECKING

from rich.text import Text
from textual import on
from textual.widgets import Input, Static, TabbedContent

from orlop.explorer.tui.cache import Forests
from orlop.explorer.tui.configtext import config_lines
from orlop.explorer.tui.frame import VIEWS, Frame
from orlop.explorer.tui.layers import label_of
from orlop.explorer.tui.mapview import MapPane
from orlop.explorer.tui.model import MOST_FOUND, Forest, search
from orlop.explorer.tui.preview import HelpScreen, Preview
from orlop.explorer.tui.rows import Rows
from orlop.explorer.tui.source import Job, Loader, Source
from orlop.explorer.tui.text import command_lines, head_lines, moment, shown, size_text
from orlop.explorer.tui.themes import DARK, LIGHT
from orlop.explorer.tui.tree import about

if TYPE_CHECKING:
    from orlop.errors import Error
    from orlop.explorer.survey import Survey

__all__ = ["Explorer"]

_HEAD = 64 * 1024  # bytes of a file that are looked into
_TICK = 0.1  # seconds between looks at how far reading is
_QUICK = 3  # ticks that reading may take before the screen says so
_LOW = 30  # lines below which the details give way,
_LOWEST = 16  # and below which there are none
_SLIM = 72  # columns below which the layers do
_FILTERS = {"a": "added", "c": "changed", "d": "deleted"}
_STOPS = (signal.SIGTERM, signal.SIGHUP)


def _efficiency(survey: Survey) -> float:
    """The share of the layers' bytes that shows."""
    return 1 - survey.wasted / survey.content if survey.content else 1.0


def _say(line: Static, text: str | Text) -> None:
    """Have another text in a line, which is as high as before."""
    line.update(text, layout=False)


class Explorer(Frame):
    """The app.  After its end ``problem`` is why there was nothing to show, if so."""

    def __init__(self, source: Source, name: str, *, theme: str = DARK.name) -> None:
        super().__init__()
        self.theme = theme
        self.source = source
        self.loader = Loader(self)
        self.surveyor = Loader(self)  # what takes long, and need not be waited for
        self.problem: Error | None = None
        self.survey: Survey | None = None
        self.forest: Forest | None = None
        self.shown_layer = -1  # whose tree is shown
        self.found: list[bytes] = []
        self._called = name
        self._forests = Forests()
        self._wanted = -1
        self._asked = self._known = False  # what each layer did
        self._looking_for = ""
        self._at = 0
        self._ticks = 0
        self._remark = ""

    def on_mount(self) -> None:
        """Begin to read."""
        self.query_one("#views ContentTabs").can_focus = False
        _say(self.banner, f"{shown(self._called)}")
        self.layer_list.focus()
        self.set_interval(_TICK, self._tick)
        if not self.is_headless:
            for number in _STOPS:
                asyncio.get_running_loop().add_signal_handler(
                    number, partial(self.exit, return_code=128 + number)
                )
        self._ticks = _QUICK  # an empty screen says at once why it is
        called = shown(self._called)
        self.loader.read(f"looking at {called}", self.source.outline, self._outlined, self._gave_up)

    def on_unmount(self) -> None:
        """Let threads end."""
        self.loader.close()
        self.surveyor.close()

    def on_resize(self) -> None:
        """Small screens have less of what is not looked at."""
        screen = self.screen_stack[0]
        for limit, name in ((_LOW, "low"), (_LOWEST, "lowest")):
            screen.set_class(self.size.height < limit, name)
        screen.set_class(self.size.width < _SLIM, "slim")

    def on_loader_ended(self, message: Loader.Ended) -> None:
        """Something was read."""
        message.loader.ended(message)
        if self._job is None:
            self._ticks = 0
            self.loading_line.remove_class("on")

    @property
    def _job(self) -> Job | None:
        """What is being read, as far as somebody waits for it."""
        return self.loader.job or self.surveyor.job

    def _tick(self) -> None:
        job = self._job
        self._ticks = 0 if job is None else self._ticks + 1
        if job is not None and self._ticks > _QUICK:
            sign = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"[self._ticks % 10]
            doing = "stopping" if job.cancel.cancelled else job.title
            words = [f"{sign} {doing}", f"{job.seconds:.0f} s", job.news, "Esc stops"]
            line = self.loading_line
            _say(line, "   ".join(word for word in words if word))
            line.add_class("on")

    # ---------------------------------------------------------- what was read

    def _gave_up(self, problem: Error) -> None:
        self.problem = problem
        self.exit(return_code=1)

    def _outlined(self, outline: Survey) -> None:
        """Show what is known at once; the first tree is read next."""
        self._fill(outline)
        _say(self.waste_above, "not known yet: each layer has to be read")

    def _read_layers(self) -> None:
        """Read what each layer did, once there is a tree to look at meanwhile."""
        if not self._asked:
            self._asked = True
            title = f"reading the layers of {shown(self._called)}"
            self.surveyor.read(title, self.source.survey, self._surveyed, self._failed)

    def _surveyed(self, survey: Survey) -> None:
        self._known = True
        self._fill(survey)
        kept = _efficiency(survey)
        wasted = f"{size_text(survey.wasted)} of {size_text(survey.content)} wasted, {kept:.1%} efficient"
        files = f"   {len(survey.waste)} largest files" if survey.waste else ""
        _say(self.waste_above, wasted + files)
        self.waste_list.show(survey.waste)

    def _fill(self, survey: Survey) -> None:
        first = self.survey is None
        self.survey = survey
        facts = [
            *([survey.names[0]] if survey.kind == "root" and survey.names else []),
            size_text(survey.size),
            f"{sum(1 for layer in survey.layers if layer.number)} layers",
        ]
        if survey.entries:
            names = "entry" if survey.entries == 1 else "entries"
            facts += [f"{_efficiency(survey):.1%} efficient", f"{survey.entries:,} {names}"]
        facts += [survey.platform, survey.id.partition(":")[2][:12]]
        text = Text(shown(self._called), style="bold")
        text.append("  " + "  ·  ".join(shown(fact) for fact in facts if fact), style="not bold")
        _say(self.banner, text)
        self.layer_list.show(survey.layers)
        if not first:
            return
        self.history_list.show(survey.history)
        text = Text(overflow="fold")
        for title, lines in config_lines(survey.config):
            text.append(f"{title}\n", style="bold")
            text.append("".join(f"  {line}\n" for line in lines) + "\n")
        self.config_text.update(text)

    @on(Rows.Moved, "#layers")
    def _layer_moved(self) -> None:
        """Another layer is looked at."""
        layer = self.layer_list.chosen
        if layer is None:
            return
        self.details.show(layer, known=self._known)
        self._want(layer.number)

    @on(Rows.Chosen, "#layers")
    def _layer_chosen(self) -> None:
        self._layer_moved()
        self.action_view("tree")

    def _want(self, number: int) -> None:
        """Show the tree above a layer, as soon as it is there."""
        if number == self._wanted and (number == self.shown_layer or self.loader.job is not None):
            return
        self._wanted = number
        known = self._forests.get(number)
        if known is not None:
            self.loader.stop()
            self._show(number, known)
            return
        self.loader.read(
            f"reading the tree at layer {label_of(number)}",
            partial(self.source.forest, number),
            partial(self._show, number),
            self._failed,
        )

    def _show(self, number: int, forest: Forest) -> None:
        self._forests.put(number, forest)
        self.shown_layer, self.forest, self._remark = number, forest, ""
        self._found([])
        self.tree_pane.show(forest)
        self.map_pane.show(forest)
        self._read_layers()
        self._above()

    def _failed(self, problem: Error) -> None:
        text = f"{problem.attempted}: {problem.reason}" if problem.attempted else problem.reason
        self._remark = shown(text)
        self._above()
        self.notify(self._remark, title="that did not work", severity="error", markup=False)

    # ---------------------------------------------------------- what is said around the panes

    def _above(self) -> None:
        """What the line above the tree says: layer, filter, order, search."""
        tree = self.tree_pane.model
        pieces = [f"layer {label_of(self.shown_layer)}" if self.shown_layer >= 0 else ""]
        if tree.wanted:
            pieces.append("only " + " and ".join(what for what in _FILTERS.values() if what in tree.wanted))
        if tree.order == "size":
            pieces.append("largest first")
        if self._looking_for:
            most = "+" if len(self.found) == MOST_FOUND else ""
            at = f"{self._at + 1} of {len(self.found):,}{most}" if self.found else "nothing found"
            pieces.append(f"/{shown(self._looking_for)}: {at}")
        pieces.append(self._remark)
        _say(self.tree_above, "   ".join(piece for piece in pieces if piece))

    @on(Rows.Moved, "#tree")
    def _tree_moved(self) -> None:
        row = self.tree_pane.row
        _say(self.tree_below, about(row) if row else "")

    @on(MapPane.Moved)
    def _map_moved(self) -> None:
        _say(self.map_below, self.map_pane.about())

    @on(Rows.Moved, "#history")
    def _history_moved(self) -> None:
        line = self.history_list.chosen
        if line is not None:
            about_it = [
                f"layer {line.layer}" if line.layer else "no layer",
                moment(line.created),
                shown(line.author),
                shown(line.comment),
            ]
            text = Text(overflow="fold")
            text.append("   ".join(word for word in about_it if word) + "\n", style="bold")
            text.append("\n".join(command_lines(line.created_by)))
            self.history_one.update(text)
            self.history_text.scroll_home(animate=False)

    @on(Rows.Chosen, "#history")
    def _history_chosen(self) -> None:
        line = self.history_list.chosen
        if line is not None and line.layer:
            self.layer_list.choose(line.layer)

    @on(Rows.Chosen, "#waste")
    def _waste_chosen(self) -> None:
        pane = self.waste_list
        if pane.files:
            self.layer_list.choose(pane.files[pane.cursor].hidden_by)

    @on(Rows.Chosen, "#tree")
    def _tree_chosen(self) -> None:
        """Open a folder, look into a file."""
        pane = self.tree_pane
        row = pane.row
        if row is None:
            return
        if row.node.kind == "file" and not row.node.children:
            self._look(row.path, deleted=row.node.what == "deleted", size=row.node.size)
        else:
            pane.action_flip()

    @on(MapPane.Opened)
    def _map_opened(self, message: MapPane.Opened) -> None:
        self._look(message.path, deleted=False, size=message.size)

    def _look(self, path: bytes, *, deleted: bool, size: int) -> None:
        """Show the beginning of a file; of one that the layer deleted as it was below."""
        layer = self.shown_layer
        if deleted:
            numbers = [one.number for one in self.survey.layers] if self.survey else []
            layer = numbers[numbers.index(layer) - 1]

        def show(data: bytes) -> None:
            kind, lines = head_lines(data)
            part = f", the first {size_text(len(data))}" if size > len(data) else ""
            self.push_screen(Preview("/" + shown(path), f"{kind}, {size:,} bytes{part}   Esc closes", lines))

        reading = f"reading /{shown(path)}"
        self.loader.read(reading, partial(self.source.head, path, layer, _HEAD), show, self._failed)

    # ---------------------------------------------------------- keys

    def action_keys(self) -> None:
        """Show the keys."""
        self.push_screen(HelpScreen())

    async def action_quit(self) -> None:
        """Leave."""
        self.exit(return_code=0)

    def action_view(self, view: str) -> None:
        """Show another pane, and go into it."""
        self.query_one("#views", TabbedContent).active = f"{view}-view"
        self.query_one(VIEWS[view]).focus()

    def action_theme(self) -> None:
        """Light or dark."""
        self.theme = LIGHT.name if self.theme == DARK.name else DARK.name
        self.map_pane.refresh()
        layer = self.layer_list.chosen
        if layer is not None:
            self.call_after_refresh(self.details.show, layer, known=self._known)

    def action_layer(self, count: int) -> None:
        """The layer before or after."""
        self.layer_list.cursor += count

    def action_filter(self, what: str) -> None:
        """Show some changes only, or no longer only these."""
        pane = self.tree_pane
        path = pane.row.path if pane.row else b""
        if what:
            pane.model.toggle_filter(what)
        else:
            pane.model.clear_filter()
        pane.rebuilt(path)
        self.action_view("tree")
        self._above()

    def action_sort(self) -> None:
        """By name, or the largest first."""
        pane = self.tree_pane
        path = pane.row.path if pane.row else b""
        pane.model.sort("name" if pane.model.order == "size" else "size")
        pane.rebuilt(path)
        self._above()

    def action_copy(self) -> None:
        """Hand the path to the terminal; as it is shown and quoted, so that pasting it does nothing."""
        row = self.tree_pane.row
        if row is not None:
            self.copy_to_clipboard(shlex.quote("/" + shown(row.path)))
            self._remark = "copied"
            self._above()

    def action_stop(self) -> None:
        """Stop what is being read; without anything to show, leave.  Else forget what was searched."""
        field = self.field
        if field.has_class("open"):
            self._close_search()
        elif self.loader.stop() or self.surveyor.stop():
            if self.survey is None:
                self.exit(return_code=130)
            self._remark = "stopped; Enter on a layer reads it"
            self._above()
        else:
            self._looking_for = ""
            self._found([])

    # ---------------------------------------------------------- search

    def action_search(self) -> None:
        """Ask what to look for."""
        self.action_view("tree")
        field = self.field
        field.add_class("open")
        field.value = self._looking_for
        field.focus()

    def _close_search(self) -> None:
        self.field.remove_class("open")
        self.tree_pane.focus()

    @on(Input.Submitted, "#search")
    def _search(self, event: Input.Submitted) -> None:
        self._looking_for = event.value.strip()
        self._close_search()
        self._search_again()

    def _search_again(self) -> None:
        tree = self.tree_pane.model
        if not self._looking_for or self.forest is None:
            self._found([])
            return
        work = partial(
            search,
            self.forest,
            self._looking_for.encode("utf-8", "surrogateescape"),
            order=tree.order,
            wanted=tree.bits,
        )
        self.loader.read("searching", lambda call: work(call=call), self._found, self._failed)

    def _found(self, paths: list[bytes]) -> None:
        pane = self.tree_pane
        self.found, self._at = paths, 0
        pane.found = frozenset(paths)
        if paths:
            here = pane.row.path if pane.row else b""
            self._at = next((at for at, path in enumerate(paths) if path >= here), 0) if here else 0
            pane.reveal(paths[self._at])
        pane.refresh()
        self._above()

    def action_find(self, count: int) -> None:
        """The next or the previous that was found; search here first if the tree is another."""
        if not self.found and self._looking_for:
            self._search_again()
        elif self.found:
            self.action_view("tree")
            self._at = (self._at + count) % len(self.found)
            self.tree_pane.reveal(self.found[self._at])
            self._above()
