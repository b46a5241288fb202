"""The explorer in the terminal: the real app, driven key by key, over things that are in memory."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest
from textual.events import Key
from textual.pilot import Pilot
from textual.widget import Widget
from textual.widgets import Input, Static, TabbedContent

from orlop.cli import main
from orlop.errors import Cancelled, InvalidArgument
from orlop.explorer.survey import Node
from orlop.explorer.tui.app import Explorer
from orlop.explorer.tui.cache import Forests
from orlop.explorer.tui.configtext import config_lines
from orlop.explorer.tui.layers import LayerList
from orlop.explorer.tui.mapview import MapPane
from orlop.explorer.tui.model import Forest, Search, TreeRows, search
from orlop.explorer.tui.preview import HelpScreen, Preview, TextLines
from orlop.explorer.tui.rows import Rows
from orlop.explorer.tui.source import Source
from orlop.explorer.tui.tables import HistoryList, WasteList
from orlop.explorer.tui.text import command_lines, cut, head_lines, shown, shown_text, title_of
from orlop.explorer.tui.themes import DARK, LIGHT
from orlop.explorer.tui.tree import TreePane, about
from orlop.observe import Call, CancelToken
from support.shelf import WAIT, Gate, Shelf, marks

NAMES = {"[": "left_square_bracket", "]": "right_square_bracket", "*": "asterisk", ".": "full_stop"}
Script = Callable[[Explorer, "Pilot[None]"], Awaitable[None]]

LAYERS = [
    {
        b"etc/passwd": b"root",
        b"usr/lib/big.so": b"x" * 9000,
        b"usr/lib/small.so": b"y" * 10,
        b"tmp/junk": b"j" * 700,
    },
    {b"etc/passwd": b"root2", b"tmp/junk": None, b"usr/share/doc/a": b"doc", b"usr/share/doc/b": b"docs"},
    {b"usr/share": None, b"srv/app.py": b"print(1)\n" * 20},
]
COMMANDS = [
    "/bin/sh -c #(nop) ADD file:1 in /",
    "RUN /bin/sh -c apt-get update && rm /tmp/junk # buildkit",
    "COPY . /srv",
]
CONFIG = {"config": {"Env": ["PATH=/bin", "A=[red]b[/]"], "Cmd": ["sh"], "Labels": {"x": "1"}}, "os": "linux"}
HOSTILE = [
    b"\x1b[31mred\x1b]0;title\x07",
    b"[bold red]markup[/] [link=http://x]y[/link]",
    b"two\nlines\r\ttab",
    "\u202edlrow\u2066\u200d\u2028\u0085".encode(),
    b"\xff\xfe\x80bytes",
    b"\xed\xa0\x80surrogate",
    "漢字".encode() * 40,
    b"\x9b31mC1",
    "e\u0301\u0301\u0301 \ufe0f\U000e0041".encode(),
    b"-n $(reboot) `x` 'q' \\",
    b"x" * 255,
]


def play(
    source: Source, script: Script, *, size: tuple[int, int] = (120, 36), theme: str = DARK.name
) -> Explorer:
    """Run the app until the script ends."""

    async def main() -> Explorer:
        app = Explorer(source, "localhost/shelf", theme=theme)
        async with app.run_test(size=size) as pilot:
            await script(app, pilot)
        return app

    return asyncio.run(asyncio.wait_for(main(), 2 * WAIT))


async def until(condition: Callable[[], object]) -> None:
    """Let the app go on until something is so: no test depends on how quick it is."""
    end = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < end, "it never came so"
        await asyncio.sleep(0.01)


def press(app: Explorer, *keys: str) -> None:
    """Press keys; what they do comes later."""
    for key in keys:
        if len(key) > 1:
            app.post_message(Key(key, {"slash": "/", "question_mark": "?"}.get(key)))
        else:
            app.post_message(Key(NAMES.get(key, key), key))


async def at_layer(app: Explorer, number: int) -> None:
    await until(lambda: app.shown_layer == number and app.loader.job is None)
    await until(lambda: app.survey is not None and app.survey.entries and app.surveyor.job is None)


async def view(app: Explorer, number: str, pane: type[Widget] | str) -> None:
    """Go to another pane."""
    press(app, number)
    await until(lambda: app.focused is app.query_one(pane) and app.focused.size)


async def close(app: Explorer) -> None:
    """Close a window."""
    press(app, "escape")
    await until(lambda: len(app.screen_stack) == 1)


async def preview(app: Explorer) -> list[str]:
    """What is shown of a file."""

    def read() -> list[str]:
        return [line.rstrip() for pane in app.screen.query(TextLines) for line in lines(pane)]

    await until(lambda: isinstance(app.screen, Preview) and any(read()))
    return read()


def lines(pane: Rows | MapPane) -> list[str]:
    """What a pane has on the screen."""
    return [pane.render_line(y).text for y in range(pane.size.height)]


def said(app: Explorer, where: str) -> str:
    return str(app.query_one(where, Static).content)


def drawn(app: Explorer, name: str = "") -> str:
    """The screen as SVG, kept for people to look at; that it is XML says that no control character is in it."""
    picture = app.export_screenshot(title="orlop explore")
    ElementTree.fromstring(picture)
    if name:
        folder = Path(__file__).parents[2] / "build" / "screenshots"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"explore-{name}.svg").write_text(picture)
    return picture


async def gallery(app: Explorer, pilot: Pilot[None]) -> None:
    """Every view as people see it, in the theme that there is."""
    theme = "light" if app.theme == LIGHT.name else "dark"
    names = {"1": "layers", "2": "map", "3": "waste", "4": "history", "5": "config"}
    panes: list[type[Widget] | str] = [TreePane, MapPane, WasteList, HistoryList, "#config"]
    for key, pane in zip(names, panes, strict=True):
        await view(app, key, pane)
        await pilot.pause()  # the footer comes last
        drawn(app, f"{names[key]}-{theme}")
    press(app, "question_mark")
    await until(lambda: isinstance(app.screen, HelpScreen) and app.screen.size)
    await pilot.pause()
    drawn(app, f"keys-{theme}")
    await close(app)
    press(app, "slash")
    await until(lambda: isinstance(app.focused, Input))
    app.field.value = "*.so"
    press(app, "enter")
    await until(lambda: app.focused is app.tree_pane and "1 of 2" in said(app, "#tree-above"))
    await pilot.pause()
    drawn(app, f"search-{theme}")
    press(app, "enter")
    await preview(app)
    await pilot.pause()
    drawn(app, f"preview-{theme}")
    await close(app)


# ------------------------------------------------------------------ texts


@pytest.mark.hostile(6, 42)
@pytest.mark.parametrize("name", HOSTILE)
def test_no_name_does_anything_to_a_terminal(name: bytes) -> None:
    text = shown(name)
    assert text.isprintable()
    text.encode()
    assert not set("\ufe0f\u202e\u2066\u200d\U000e0041") & set(text)
    assert shown_text(name.decode(errors="replace")).replace("\n", "").isprintable()
    for width in range(1, 12):
        from rich.cells import cell_len

        assert cell_len(cut(text, width)) <= width


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("", []),
        ('/bin/sh -c #(nop)  CMD ["bash"]', ['CMD ["bash"]']),
        ("RUN /bin/sh -c a && b # buildkit", ["RUN a", "    && b"]),
        ("/bin/sh -c a 'x && y'; b || c", ["RUN a 'x && y';", "    b", "    || c"]),
        ("|2 A=b C=d /bin/sh -c x", ["RUN x"]),
        ("RUN |1 A=b /bin/bash -o pipefail -c x\n\ty", ["RUN x", "        y"]),
        ("COPY a b # buildkit", ["COPY a b"]),
        ("RUN \x1b[31m[red]", ["RUN \\x1b[31m[red]"]),
        ('RUN a "\\" && b" && c', ['RUN a "\\" && b"', "    && c"]),
    ],
)
def test_a_command_is_broken_where_its_steps_begin(command: str, expected: list[str]) -> None:
    assert command_lines(command) == expected


def test_a_comment_stands_for_a_command_that_says_nothing() -> None:
    assert title_of("/bin/sh", "FROM x") == "FROM x"
    assert title_of("", "a\nb") == "a b"
    assert title_of("RUN true", "buildkit") == "RUN true"


@pytest.mark.hostile(15)
def test_a_giant_command_is_cut_and_costs_little() -> None:
    for command in (
        "x" * 5_000_000,
        " " * 5_000_000,
        "a && " * 1_000_000,
        "'" * 1_000_000,
        "|1 " * 1_000_000,
    ):
        assert sum(map(len, command_lines(command))) < 200_000


def test_what_is_no_text_is_shown_as_bytes() -> None:
    assert head_lines("a\tb\u202e\nü".encode()) == ("text", ["a       b\\u202e", "ü"])
    assert head_lines("ü".encode()[:1] and "aü".encode()[:2])[0] == "text"  # cut in a character
    kind, dump = head_lines(b"\x7fELF\x00\x1b[2J")
    assert kind == "bytes"
    assert dump == ["00000000  7f 45 4c 46 00 1b 5b 32  4a                       ·ELF··[2J"]


@pytest.mark.hostile(15)
def test_any_configuration_is_shown() -> None:
    nested: object = []
    for _ in range(100_000):
        nested = [nested]
    wild = {
        "config": {"Env": {"a": nested}, "Cmd": 5, "Labels": ["x\x1b"], "Odd": "\u202e", "User": True},
        "os": ["linux"],
        "history": [1],
        "Key\x1b": {str(at): {} for at in range(2_000)},
        "long": "x" * 1_000_000,
    }
    found = dict(config_lines(wild))
    assert found["labels"] == ["x\\x1b"]
    assert len(found["Key\\x1b"]) == 501
    assert all(len(line) < 5_000 and line.isprintable() for part in found.values() for line in part)
    assert dict(config_lines({"config": [1, 2]})) == {}


# ------------------------------------------------------------------ trees


def shown_paths(rows: TreeRows) -> list[bytes]:
    return [row.path for row in rows.rows]


def random_shelf(dice: random.Random) -> Shelf:
    paths = [
        b"/".join(b"%d" % dice.randrange(3) for _ in range(dice.randint(1, 3))) + b"/f" for _ in range(30)
    ]
    stack = [{path: dice.choice([None, b"a", b"bb"]) for path in dice.sample(paths, 12)} for _ in range(4)]
    return Shelf(stack)


@pytest.mark.parametrize("seed", range(5))
def test_filters_show_the_changes_and_what_leads_to_them(seed: int) -> None:
    dice = random.Random(seed)
    shelf = random_shelf(dice)
    for number in shelf.numbers():
        forest = shelf.forest(number, Call())
        did = shelf.changes(number)
        rows = TreeRows()
        rows.show(forest)
        for wanted in ({"added"}, {"changed"}, {"deleted"}, {"added", "deleted"}):
            rows.clear_filter()
            for what in wanted:
                rows.toggle_filter(what)
            leaves = [row.path for row in rows.rows if row.path and not row.node.children]
            assert leaves == sorted(
                (path for path in did if did[path] in wanted), key=lambda path: path.split(b"/")
            )


def test_folders_open_and_close_and_are_as_they_were_in_another_tree() -> None:
    shelf = Shelf(LAYERS)
    rows = TreeRows()
    rows.show(shelf.forest(1, Call()))
    assert shown_paths(rows) == [b"", b"etc", b"tmp", b"usr"]
    assert rows.set_open(rows.find(b"usr"), True)
    assert rows.set_open(rows.find(b"usr/lib"), True)
    opened = [b"usr", b"usr/lib", b"usr/lib/big.so", b"usr/lib/small.so"]
    assert shown_paths(rows) == [b"", b"etc", b"tmp", *opened]
    assert not rows.set_open(rows.find(b"usr/lib/big.so"), True)
    rows.show(shelf.forest(2, Call()))
    assert shown_paths(rows) == [b"", b"etc", b"tmp", *opened, b"usr/share"]
    assert rows.find(b"usr/lib/gone/deeper") == rows.find(b"usr/lib")
    rows.sort("size")
    assert shown_paths(rows)[1] == b"usr"
    assert rows.set_open(rows.find(b"usr"), False)
    at = rows.reveal(b"usr/share/doc/b")
    assert rows.rows[at].path == b"usr/share/doc/b"


def test_what_is_deleted_is_as_large_as_it_was() -> None:
    shelf = Shelf([{b"a/b/c": b"123", b"a/b/d": b"4567", b"e": b""}, {b"a/b": None}])
    forest = shelf.forest(2, Call())
    for path in (b"a", b"a/b"):  # as the store marks folders that are gone
        node = forest.root.get(path)
        assert node is not None
        node.what = "deleted"
    again = Forest(forest.root)
    sizes = [again.size(node) for node in map(forest.root.get, (b"", b"a", b"a/b", b"a/b/d")) if node]
    assert sizes == [0, 7, 7, 4]


@pytest.mark.hostile(8, 14)
def test_a_tree_that_is_very_deep_or_very_wide_is_shown() -> None:
    top = node = Node(b"", "folder")
    for _ in range(5_000):
        node.children[b"d"] = node = Node(b"d", "folder")
    node.children.update({b"%d" % at: Node(b"%d" % at, "file", what="added") for at in range(20_000)})
    forest = Forest(top)
    rows = TreeRows()
    rows.show(forest)
    rows.toggle_filter("added")
    assert len(rows.rows) < 1_000
    found = search(forest, b"777", order="name", wanted=0, call=Call())
    assert len(found[0].split(b"/")) == 5_001
    at = rows.reveal(found[0])
    assert rows.rows[at].path == found[0]
    token = CancelToken()
    token.cancel()
    with pytest.raises(Cancelled):
        search(forest, b"777", order="name", wanted=0, call=Call(cancel=token))


@pytest.mark.parametrize(
    ("text", "fits"),
    [
        (b"SO", [b"usr/lib/big.so", b"usr/lib/small.so"]),
        (b"*.so", [b"usr/lib/big.so", b"usr/lib/small.so"]),
        (b"/usr/lib/b*", [b"usr/lib/big.so"]),
        (b"lib/", [b"usr/lib/big.so", b"usr/lib/small.so"]),
        (b"**/lib", []),
        (b"etc", [b"etc"]),
    ],
)
def test_search_is_for_parts_of_names_and_for_patterns(text: bytes, fits: list[bytes]) -> None:
    found = search(Shelf(LAYERS).forest(1, Call()), text, order="name", wanted=0, call=Call())
    assert found == (fits or [b"usr/lib"])


def test_a_pattern_that_is_none_is_refused() -> None:
    with pytest.raises(InvalidArgument):
        Search(b"../*")


def test_so_many_trees_are_kept_as_there_is_room_for() -> None:
    shelf = Shelf(LAYERS)
    kept = Forests(most=20)
    forests = {number: shelf.forest(number, Call()) for number in (1, 2, 3)}
    for number, forest in forests.items():
        kept.put(number, forest)
    assert kept.get(3) is forests[3]
    assert kept.get(1) is None
    small = Forests(most=1)
    small.put(1, forests[1])
    assert small.get(1) is forests[1]


# ------------------------------------------------------------------ the app


def test_layers_and_the_tree_show_what_the_image_is() -> None:
    shelf = Shelf(LAYERS, COMMANDS, CONFIG)

    async def script(app: Explorer, pilot: Pilot[None]) -> None:
        await at_layer(app, 3)
        tree, layers = app.query_one(TreePane), app.query_one(LayerList)
        model = tree.model
        assert lines(layers)[5].strip() == "COPY . /srv"
        for key, number in (("up", 2), ("up", 1), ("down", 2)):
            press(app, key)
            await at_layer(app, number)
            assert app.forest is not None
            assert {p: w for p, (w, _) in marks(app.forest).items() if w != "same"} == shelf.changes(number)
        assert sorted(shelf.asked) == [1, 2, 3]  # and not read again
        await until(lambda: "&& rm /tmp/junk" in str(app.query_one("#details Static", Static).content))

        press(app, "d")  # only what is deleted, which stands struck
        await until(lambda: app.focused is tree and len(model.rows) == 3)
        assert [line.split()[:2] for line in lines(tree)[:3]] == [["·", "▾"], ["·", "▾"], ["D", "junk"]]
        assert "700 B" in lines(tree)[2]
        junk = next(piece for piece in tree.render_line(2) if "junk" in piece.text)
        assert junk.style is not None
        assert junk.style.strike
        assert "only deleted" in said(app, "#tree-above")
        press(app, "end", "enter")
        assert (await preview(app))[0].startswith("jjj")  # what it was, in the layer below
        await close(app)
        press(app, "x", "a")
        await until(lambda: [row.path for row in model.rows][-2:] == [b"usr/share/doc/a", b"usr/share/doc/b"])

        press(app, "x", "slash")
        await until(lambda: isinstance(app.focused, Input))
        press(app, *"*.so", "enter")
        await until(lambda: tree.row is not None and tree.row.path == b"usr/lib/big.so")
        assert "1 of 2" in said(app, "#tree-above")
        await until(lambda: app.focused is tree)
        for key, path in (("n", b"usr/lib/small.so"), ("n", b"usr/lib/big.so"), ("N", b"usr/lib/small.so")):
            press(app, key)
            await until(lambda path=path: f"/{path.decode()}   -rw" in said(app, "#tree-below"))
        press(app, "s", "left", "left")
        await until(lambda: tree.row is not None and (tree.row.path, tree.row.open) == (b"usr/lib", False))
        press(app, "question_mark")
        await until(lambda: isinstance(app.screen, HelpScreen))
        await close(app)
        press(app, "q")
        await until(lambda: app.return_code is not None)

    assert play(shelf, script).return_code == 0


def test_waste_history_configuration_and_map_lead_to_where_things_are() -> None:
    async def script(app: Explorer, pilot: Pilot[None]) -> None:
        await at_layer(app, 3)
        waste = app.query_one(WasteList)
        paths = [b"tmp/junk", b"etc/passwd", b"usr/share/doc/b", b"usr/share/doc/a"]
        assert [file.path for file in waste.files] == paths
        await view(app, "3", WasteList)
        assert "L1 deleted by L2" in lines(waste)[0]
        assert "wasted" in said(app, "#waste-above")
        press(app, "enter")  # to the layer that hides it
        await at_layer(app, 2)

        history = app.query_one(HistoryList)
        await view(app, "4", HistoryList)
        press(app, "end")
        await until(lambda: "no layer" in said(app, "#history-one"))
        assert "ENV A=b" in lines(history)[3]
        press(app, "home", "enter")
        await at_layer(app, 1)
        await view(app, "5", "#config")
        assert "A=[red]b[/]" in said(app, "#config-text")

        pane = app.query_one(MapPane)
        await view(app, "2", MapPane)
        press(app, "]", "]")
        await at_layer(app, 3)
        await until(lambda: [box.label for box in pane.boxes][:2] == ["usr/", "srv/"])
        assert sum(box.width * box.height for box in pane.boxes) <= pane.size.width * pane.size.height
        assert any("big.so" in line for line in lines(pane))  # what is in a folder shows in it
        press(app, "enter")
        await until(lambda: said(app, "#map-below").startswith("/usr/lib/ "))
        press(app, "enter", "down", "right", "up", "left")
        await until(lambda: pane.path == b"usr/lib")
        press(app, "enter")
        assert (await preview(app))[0].startswith("xxx")
        await close(app)
        press(app, "backspace", "backspace", "backspace")
        await until(lambda: said(app, "#map-below").startswith("/usr/ "))
        press(app, "enter", "[", "[")
        await at_layer(app, 1)
        assert pane.path == b"usr"
        await gallery(app, pilot)
        press(app, "t")
        await until(lambda: app.theme == LIGHT.name)
        await gallery(app, pilot)

    play(Shelf(LAYERS, COMMANDS, CONFIG), script)


def test_sixty_layers_fit_on_any_screen() -> None:
    shelf = Shelf(
        [{b"d%d/f" % (at % 7): b"x" * at, b"g": b"%d" % at} for at in range(60)], ["RUN x" * 40] * 60
    )

    async def script(app: Explorer, pilot: Pilot[None]) -> None:
        await at_layer(app, 60)
        layers, tree = app.query_one(LayerList), app.query_one(TreePane)
        for columns, rows in ((80, 24), (40, 10), (200, 60)):
            await pilot.resize_terminal(columns, rows)
            await until(lambda columns=columns, rows=rows: app.size == (columns, rows))
            press(app, "home")
            await at_layer(app, 1)
            await until(lambda: lines(layers)[0].split()[:1] == ["1"])
            press(app, "end")
            await at_layer(app, 60)
            await until(lambda: any(line.split()[:1] == ["60"] for line in lines(layers)))
            for pane in (layers, tree):
                width = pane.scrollable_content_region.width
                assert all(pane.render_line(y).cell_length == width for y in range(pane.size.height))
            assert tree.size.height > 2
            if columns == 80:
                drawn(app, "deep-80x24-dark")

    play(shelf, script, size=(120, 36))


def test_the_changes_of_a_root_are_the_layer_on_top_and_the_mouse_works() -> None:
    async def script(app: Explorer, pilot: Pilot[None]) -> None:
        await at_layer(app, 0)
        layers, tree = app.layer_list, app.tree_pane
        assert [layer.number for layer in layers.surveyed] == [1, 2, 0]
        assert lines(layers)[4].split()[0] == "Δ"
        press(app, "d")
        await until(lambda: [row.path for row in tree.model.rows][-1:] == [b"usr/share/doc/b"])
        await until(lambda: app.focused is tree)
        press(app, "end", "enter")
        assert (await preview(app))[0] == "docs"  # of the image below
        await close(app)
        press(app, "x")
        await pilot.click(LayerList, offset=(4, 1))
        await at_layer(app, 1)
        tree.reveal(b"usr")
        at = tree.cursor
        await pilot.click(TreePane, offset=(6, 0))
        await until(lambda: tree.cursor == 0)
        await pilot.click(TreePane, offset=(6, at), times=2)
        await until(lambda: tree.row is not None and tree.row.path == b"usr")
        await pilot.click("#--content-tab-map-view")
        await until(lambda: app.query_one(TabbedContent).active == "map-view" and app.map_pane.size)
        await pilot.click(MapPane, offset=(2, 0), times=2)
        await until(lambda: app.map_pane.path == b"usr")

    play(Shelf(LAYERS, root=True), script)


@pytest.mark.hostile(6, 42)
def test_hostile_names_and_texts_are_shown_harmlessly_everywhere() -> None:
    layer = {name.replace(b"/", b"|"): b"data" for name in HOSTILE}
    evil = b"\x1b]52;c;x\x07/\x1b[2J"
    shelf = Shelf(
        [{**layer, evil: b"text \x1b[2J\x1b]0;x\n" * 9}, dict.fromkeys(layer)],
        [name.decode("utf-8", "surrogateescape") for name in HOSTILE[:2]],
        {"config": {"Env": [name.decode(errors="replace") for name in HOSTILE]}},
    )

    async def script(app: Explorer, pilot: Pilot[None]) -> None:
        await at_layer(app, 2)
        tree = app.query_one(TreePane)
        press(app, "d")
        await until(lambda: sorted(row.path for row in tree.model.rows if row.path) == sorted(layer))
        assert all(about(row).isprintable() for row in tree.model.rows)
        press(app, "end")
        await until(lambda: said(app, "#tree-below").startswith(f"/{shown(tree.model.rows[-1].path)} "))
        assert all(line.isprintable() for line in lines(tree))
        drawn(app, "hostile-dark")
        for key, pane in (("2", MapPane), ("3", WasteList), ("4", HistoryList), ("5", "#config")):
            await view(app, key, pane)
        drawn(app)
        press(app, "slash")
        await until(lambda: isinstance(app.focused, Input))
        press(app, *"[red]", "enter")  # a pattern, and of markup there is none
        await until(
            lambda: "[red]: 0" in said(app, "#tree-above") or "nothing found" in said(app, "#tree-above")
        )
        press(app, "x")
        await until(lambda: not tree.model.wanted)
        tree.reveal(evil)
        press(app, "enter")
        assert (await preview(app))[0] == "text \\x1b[2J\\x1b]0;x"
        await close(app)
        press(app, "y")
        await until(lambda: app.clipboard == "'/\\x1b]52;c;x\\x07/\\x1b[2J'")

    play(shelf, script)


def test_reading_never_holds_up_the_screen_and_stops_when_nobody_wants_it() -> None:
    gate = Gate(Shelf(LAYERS, COMMANDS, CONFIG))

    async def script(app: Explorer, pilot: Pilot[None]) -> None:
        await until(lambda: "reading the tree at layer 3" in said(app, "#loading"))
        assert app.query_one("#loading").has_class("on")
        press(app, "up", "up", "down", "up")  # what was wanted before is cancelled, and one read at a time
        await until(lambda: app.loader.job is not None and app.loader.job.title.endswith("layer 1"))
        await view(app, "4", HistoryList)
        press(app, "escape")
        await until(lambda: app.loader.job is None)
        assert "stopped" in said(app, "#tree-above")
        assert "not known yet" in said(app, "#waste-above")
        assert app.forest is None
        gate.opened.set()
        app.query_one(LayerList).focus()
        await until(lambda: isinstance(app.focused, LayerList))
        press(app, "enter")
        await at_layer(app, 1)
        assert gate.shelf.asked == [1]
        await until(lambda: not app.query_one("#loading").has_class("on"))
        gate.shelf.layers = LAYERS[:1]  # what cannot be read is said, and the rest stays
        press(app, "]")
        await until(lambda: "read layer 2: there is none" in said(app, "#tree-above"))
        assert app.shown_layer == 1

    play(gate, script)
    assert gate.cancelled >= 2


def test_esc_before_there_is_anything_ends_it_and_so_does_an_error() -> None:
    gate = Gate(Shelf(LAYERS), outline=True)

    async def script(app: Explorer, pilot: Pilot[None]) -> None:
        await until(gate.entered.is_set)
        press(app, "escape")
        await until(lambda: app.return_code is not None)

    assert play(gate, script).return_code == 130

    class Gone(Shelf):
        def outline(self, call: Call) -> object:  # type: ignore[override]
            raise InvalidArgument("explore x", "no such thing")

    async def nothing(app: Explorer, pilot: Pilot[None]) -> None:
        await until(lambda: app.return_code is not None)

    app = play(Gone(LAYERS), nothing)
    assert app.return_code == 1
    assert isinstance(app.problem, InvalidArgument)


@pytest.mark.parametrize("theme", [DARK, LIGHT])
def test_colours_have_contrast(theme: object) -> None:
    """WCAG 2's 4.5 for text on what it stands on, and on the cursor and the map."""
    from textual.color import Color
    from textual.theme import Theme

    assert isinstance(theme, Theme)
    variables = theme.variables
    grounds = [theme.background, theme.panel, variables["cursor"], variables["cursor-blurred"]]
    words = [theme.foreground, *(variables[name] for name in ("added", "changed", "deleted", "link"))]

    def light(colour: str | None) -> float:
        parts = [part / 255 for part in Color.parse(str(colour)).rgb]
        linear = [part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    def contrast(one: str | None, other: str | None) -> float:
        low, high = sorted((light(one), light(other)))
        return (high + 0.05) / (low + 0.05)

    for ground in grounds:
        for word in words:
            assert contrast(ground, word) >= 4.5, (ground, word)
    assert contrast(theme.background, variables["faint"]) >= 4.5
    for at in range(8):
        assert contrast(variables[f"map-{at}"], theme.foreground) >= 4.5, at


def test_without_a_terminal_it_says_what_to_use_instead(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explore", "localhost/shelf"]) == 5
    out, err = capsys.readouterr()
    assert out == ""
    assert "is not a terminal" in err
    assert "`orlop tree localhost/shelf` and `orlop report localhost/shelf -o FILE`" in err
