"""What all verbs have in common: forms of lists, help, colours, tables, suggestions, the page without a word."""

from __future__ import annotations

import io
import os
import sqlite3
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import pytest

from orlop import errors
from orlop.cli import colours, elsewhere, filters, main, output, tables, templates, welcome
from orlop.cli.app import VERBS
from orlop.cli.environment import default_root
from orlop.facade import DEFAULT_ROOT
from orlop.images.api import ImageInfo
from orlop.images.nearby import meant_images, meant_path
from support import json_page
from support.commands import all_commands

COMMANDS = dict(all_commands())

# ------------------------------------------------------------------ forms of lists

# What takes --format (with template), --json and -q, and so lists.
LISTS = {
    *("images", "ps", "tags", "referrers", "pins", "history", "share list", "checkpoint list", "login"),
    *("ls", "find", "tree", "diff", "blame", "waste", "events", "df", "mounts"),
}
# What shows one thing, or a list without names: --format and --json.
SHOWS = {"explain", "info", "inspect", "version"}
# What takes --json alone, and why no more.
DOES = {
    "artifact pull": "it prints what it did",
    "artifact push": "it prints what it did",
    "backup": "it prints what it did",
    "bundle": "it prints what it did",
    "check": "it prints a verdict; -q is about its progress",
    "checkpoint create": "it prints what it did",
    "copy": "it prints what it did",
    "export": "it prints what it did; --format says what to write",
    "fetch-blobs": "it prints what it did",
    "fork": "it prints what it did",
    "gc": "it prints what it did; -q is about its progress",
    "import": "it prints what it did; --format says what to read",
    "label": "it prints what it did",
    "manifest": "it prints a document",
    "pin": "it prints what it did",
    "prepare": "it prints what it did",
    "restore": "it prints what it did",
}
# Verbs of other issues' making, which have forms of their own or came later; they need no place above.
OTHERS = {"artifact attach", "config", "config check", "config keys", "config show", "doctor", "report"}


def flags_of(command: click.Command) -> set[str]:
    return {word for param in command.params for word in param.opts}


def test_what_lists_has_all_forms_and_what_does_not_has_a_reason() -> None:
    lists, shows, does = set(), set(), set()
    for name, command in COMMANDS.items():
        flags = flags_of(command)
        forms = any(param.name == "format_text" for param in command.params)
        if name in OTHERS or "--json" not in flags:
            assert not forms or name in OTHERS, name
        elif forms and {"-q", "--quiet"} <= flags:
            lists.add(name)
        elif forms:
            shows.add(name)
        else:
            does.add(name)
    assert (lists, shows, does) == (LISTS, SHOWS, set(DOES))


def test_every_verb_that_lists_by_its_name_takes_json() -> None:
    listing = {name for name, command in COMMANDS.items() if (command.help or "").startswith("List ")}
    assert listing - {name for name in COMMANDS if "--json" in flags_of(COMMANDS[name])} == set()


def test_the_page_about_json_is_not_stale_and_has_every_verb() -> None:
    page = json_page.PAGE.read_text()
    assert page == json_page.with_tables(page), "run tools/json-page"
    told = {name for name, command in COMMANDS.items() if "--json" in flags_of(command)}
    assert told - OTHERS <= set(json_page.SHAPES)
    assert {name.removesuffix(" -r") for name in json_page.SHAPES} <= set(COMMANDS)


RECORDS = [{"name": "a", "size": 1, "labels": {"x.y/z": "1"}, "config": {"Cmd": ["sh"]}, "none": None}]


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        ("{{.name}} {{.size}}", "a 1\n"),
        ("{{.Name}}{{ .SIZE }}", "a1\n"),
        ("{{json .name}}", '"a"\n'),
        (r"{{.name}}\t{{.labels.x.y/z}}", "a\t1\n"),
        ("{{.config.Cmd}}", '["sh"]\n'),
        ("{{.none}}|{{.none.more}}", "|\n"),
        ("{{json .none}}", "null\n"),
        (
            "{{.}}",
            '{"name": "a", "size": 1, "labels": {"x.y/z": "1"}, "config": {"Cmd": ["sh"]}, "none": null}\n',
        ),
        (r"table {{.name}}\t{{.size}}\t{{.config.Cmd}}", 'NAME  SIZE  CMD\na     1     ["sh"]\n'),
    ],
)
def test_a_template_has_the_fields_of_the_json(
    form: str, expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    output.show_each(RECORDS, form=form, line=str, names=str)
    assert capsys.readouterr().out == expected


@pytest.mark.parametrize(
    ("form", "reason", "hint"),
    [
        ("{{.nam}}", "no field 'nam'", "; did you mean name?"),
        ("{{.config.Env}}", "no field 'Env'", "the fields are Cmd"),
        ("{{.name.x}}", "no field 'x'", "{{.}}"),
        ("{{.name}} {{.size", "{{ without }}", "{{.field}}"),
        ("{{range .labels}}", "{{range .labels}} is not known", "jq"),
        ("nonsense", "not a format", "table, json, name"),
    ],
)
def test_what_a_template_does_not_know_is_an_error_that_helps(form: str, reason: str, hint: str) -> None:
    with pytest.raises(errors.InvalidArgument) as caught:
        output.show_each(RECORDS, form=form, line=str, names=str)
    assert caught.value.reason == reason
    assert hint in caught.value.hint


def test_camel_case_of_other_tools_finds_fields() -> None:
    assert templates.fill("{{.CreatedBy}}", {"created_by": "sh"}) == "sh"
    assert templates.fill("{{.ID}}", {"id": "sha256:aa"}) == "sha256:aa"


def test_nothing_from_outside_steers_the_terminal_through_a_stream(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for form in ("table", "name", "json", "{{.name}}", "{{json .}}", "table {{.name}}"):
        output.show_each([{"name": "a\x1b]0;x\x07\nb"}], form=form, line=_name, names=_name)
    shown = capsys.readouterr().out
    assert not {"\x1b", "\x07"} & set(shown)
    assert "\nb" not in shown


def _name(record: dict[str, str]) -> str:
    return record["name"]


# ------------------------------------------------------------------ filters

NAMED = [
    ImageInfo(name="docker.io/library/alpine:latest", id="sha256:aa", labels={"keep": ""}),
    ImageInfo(name="localhost/app:1", id="sha256:bb", labels={"team": "ml"}),
    ImageInfo(name="r.example/x/app@sha256:" + "0" * 64, id="sha256:cc"),
]


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("alpine", [0]),
        ("alpine:latest", [0]),
        ("library/alpine", [0]),
        ("docker.io/library/alpine:latest", [0]),
        ("alp*", [0]),
        ("app", [1]),
        ("*app", [1, 2]),
        ("localhost/app:2", []),
        ("r.example/x/app", [2]),
        ("*", [0, 1, 2]),
    ],
)
def test_a_name_is_found_in_any_form_that_people_write(pattern: str, found: list[int]) -> None:
    assert [number for number, one in enumerate(NAMED) if filters.fits_name(one.name, pattern)] == found


def test_filters_of_one_key_are_alternatives_and_of_several_hold_all() -> None:
    known: dict[str, Callable[[Any, str], bool]] = {
        "reference": lambda one, text: filters.fits_name(one.name, text),
        "label": lambda one, text: filters.fits_label(one.labels, text),
    }

    def names(*texts: str) -> list[int]:
        return [NAMED.index(one) for one in filters.kept(NAMED, texts, known)]

    assert names() == [0, 1, 2]
    assert names("reference=alpine", "reference=app") == [0, 1]
    assert names("reference=a*", "label=keep") == [0]
    assert names("label=keep", "label=team") == []
    assert names("label=team=ml") == [1]
    for wrong in ("reference", "nope=1"):
        with pytest.raises(errors.InvalidArgument) as caught:
            names(wrong)
        assert "reference=, label=" in caught.value.hint


# ------------------------------------------------------------------ help


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_with_an_example_of_itself(name: str) -> None:
    command = COMMANDS[name]
    assert command.help
    for param in command.params:
        if isinstance(param, click.Option) and not param.hidden:
            assert param.help, f"{name} {param.opts}"
    epilog = command.epilog or ""
    assert "Example" in epilog, name
    assert f"orlop {name}" in epilog.replace("--host unix:///s ", ""), name


@pytest.mark.parametrize("name", [name for name in COMMANDS if " " in name])
def test_what_is_below_a_verb_answers_to_both_words_for_help(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for word in ("-h", "--help"):
        assert main([*name.split(), word]) == 0
        assert capsys.readouterr().out.startswith(f"Usage: orlop {name}")


# ------------------------------------------------------------------ the page without a word


@pytest.fixture
def no_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    for name in ("ORLOP_HOST", "ORLOP_ROOT", "ORLOP_CONFIG", "XDG_CONFIG_HOME", "NO_COLOR", "CLICOLOR_FORCE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def a_store(folder: Path) -> Path:
    folder.mkdir()
    with sqlite3.connect(folder / "meta.db") as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("CREATE TABLE images (namespace, name)")
        connection.execute("CREATE TABLE prepared (path)")
        connection.executemany("INSERT INTO images VALUES (?, ?)", [("default", "a"), ("k8s.io", "b")])
    connection.close()
    return folder


@pytest.mark.parametrize("user", [False, True])
def test_the_page_fits_a_screen_and_names_verbs_that_there_are(user: bool) -> None:
    lines = welcome.page("1.2.3", "The store is here.", user=user).splitlines()
    assert len(lines) < 24
    assert max(map(len, lines)) <= 80
    commands = [line.split()[1] for line in lines if line.startswith("  orlop")]
    known = {verb for verbs in VERBS.values() for verb in verbs}
    assert set(commands) - {"VERB", "--help"} <= known
    assert len(commands) >= 7


def test_the_page_tells_of_the_store_and_leaves_it_as_it_is(no_environment: Path) -> None:
    place = no_environment / "a 100% store?#"
    assert welcome.place_here({}, 0, root=str(place)) == (
        f"There is no store yet: the first pull makes it at {place}."
    )
    assert not place.exists()
    a_store(place)
    before = sorted(os.listdir(place))
    assert (
        welcome.place_here({}, 0, root=str(place)) == f"The store {place} has 1 image and no prepared roots."
    )
    assert sorted(os.listdir(place)) == before
    (place / "meta.db").write_text("no database")
    assert welcome.place_here({"ORLOP_ROOT": str(place)}, 0) == f"The store is {place}."


def test_the_page_goes_by_who_would_be_asked(no_environment: Path) -> None:
    config = no_environment / "c.toml"
    config.write_text('root = "/from/a/file"\n')
    assert welcome.place_here({"ORLOP_HOST": "unix:///x"}, 0) == "Verbs ask the daemon at unix:///x."
    assert "/r." in welcome.place_here({"ORLOP_HOST": "unix:///x"}, 0, root="/r")
    assert "/from/a/file." in welcome.place_here({"ORLOP_CONFIG": str(config)}, 0)
    config.write_text("root = [")
    assert welcome.place_here({"ORLOP_CONFIG": str(config)}, 0) == ""
    config.write_text("# nothing")
    environ = {"ORLOP_CONFIG": str(config), "HOME": "/nowhere"}
    assert default_root(environ, 1000) in welcome.place_here(environ, 1000)
    assert welcome.ROOTS_OWN == DEFAULT_ROOT == default_root({}, 0)


# ------------------------------------------------------------------ suggestions


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("image", "ls"), "`orlop images`"),
        (("images", "pull", "x"), "`orlop pull`"),
        (("i", "rm"), "`orlop rmi`"),
        (("container", "ls", "-a"), "`orlop ps`"),
        (("c", "ls"), "`orlop ps`"),
        (("rm", "x"), "`orlop cleanup PATH`"),
        (("save",), "`orlop export`"),
        (("load",), "`orlop import`"),
        (("system", "df"), "`orlop df`"),
        (("system", "prune", "-a"), "`orlop gc`"),
        (("snapshots", "ls"), "`orlop ps`"),
        (("build", "."), "`orlop commit`"),
        (("exec", "a", "sh"), "`orlop run`"),
        (("volume", "ls"), "-v FOLDER:TARGET"),
        (("images", "nginx"), ""),
        (("zzz",), ""),
    ],
)
def test_words_of_other_tools_lead_to_what_does_it_here(words: tuple[str, ...], said: str) -> None:
    found = elsewhere.instead(words)
    assert said in found
    assert bool(found) == bool(said)


def test_what_is_suggested_is_there() -> None:
    known = {verb for verbs in VERBS.values() for verb in verbs} | {"--host", "--help"}
    texts = [*elsewhere._WORDS.values(), *elsewhere._OPTIONS.values()]
    for text in texts:
        parts = text.split("`")[1::2] if "`" in text else [text]
        for part in parts:
            if part.startswith("orlop "):
                assert part.split()[1] in known, text
    assert not set(elsewhere._WORDS) & {verb for verbs in VERBS.values() for verb in verbs}


@pytest.mark.parametrize(
    ("argv", "hint"),
    [
        (("run", "-d", "alpine"), "it stays with you"),
        (("run", "-p", "80:80", "alpine"), "the network is the host's"),
        (("import", "-i", "x.tar"), "orlop import FILE"),
        (("images", "--formt", "json"), "did you mean --format?"),
        (("systm", "df"), "`orlop --help` lists them"),
        (("image", "ls"), "did you mean `orlop images`?"),
    ],
)
def test_a_mistake_gets_a_hint(argv: tuple[str, ...], hint: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(argv) in {2, 125}
    assert hint in capsys.readouterr().err.splitlines()[1]


NAMES = (
    "docker.io/library/alpine:3.20",
    "docker.io/library/alpine:latest",
    "docker.io/user/tool:1",
    "localhost/app:1",
    "r.example/team/app:2",
)


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("app:1", ["localhost/app:1", "r.example/team/app:2"]),
        ("localhost/app:3", ["localhost/app:1", "r.example/team/app:2"]),
        ("alpine:3.19", ["alpine:3.20", "alpine:latest"]),
        ("alpnie", ["alpine:3.20"]),
        ("user/tol:1", ["user/tool:1"]),
        ("Alpine", ["alpine:3.20", "alpine:latest"]),
        ("nginx", []),
        ("r.example/team/other:2", []),  # a place that is alike says nothing
        ("\x1b[31m" * 1000, []),
    ],
)
def test_a_mistyped_image_is_found_among_those_that_are_there(text: str, meant: list[str]) -> None:
    assert meant_images(text, NAMES) == meant


def test_a_mistyped_path_is_found_among_prepared_roots() -> None:
    paths = ["/srv/a", "/srv/work/build", "/home/me/build"]
    assert meant_path("/srv/aa", paths) == "/srv/a"
    assert meant_path("/srv/wrok/build", paths) == "/srv/work/build"
    assert meant_path("/x", paths) == ""
    assert meant_path("/other/build", paths[:2]) == "/srv/work/build"


# ------------------------------------------------------------------ colours


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def plain_again() -> Iterator[None]:
    yield
    colours.choose("")


@pytest.mark.parametrize(
    ("mode", "environ", "terminal", "painted"),
    [
        ("", {}, True, True),
        ("", {}, False, False),
        ("auto", {"TERM": "dumb"}, True, False),
        ("auto", {"NO_COLOR": "1"}, True, False),
        ("auto", {"NO_COLOR": ""}, True, True),
        ("auto", {"CLICOLOR_FORCE": "1"}, False, True),
        ("auto", {"CLICOLOR_FORCE": "0"}, False, False),
        ("auto", {"CLICOLOR_FORCE": "1", "NO_COLOR": "1"}, False, False),
        ("always", {"NO_COLOR": "1"}, False, True),
        ("never", {"CLICOLOR_FORCE": "1"}, True, False),
        ("", {"ORLOP_COLOR": "always", "NO_COLOR": "1"}, False, True),
        ("", {"ORLOP_COLOR": "never"}, True, False),
        ("never", {"ORLOP_COLOR": "always"}, True, False),
    ],
)
def test_who_wants_colours_gets_them(
    mode: str, environ: dict[str, str], terminal: bool, painted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("NO_COLOR", "CLICOLOR_FORCE", "ORLOP_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    colours.choose(mode)
    stream = Terminal() if terminal else io.StringIO()
    assert colours.wanted(stream) is painted
    assert colours.paint("x", "red", stream) == ("\x1b[31mx\x1b[0m" if painted else "x")


def test_color_is_an_option_and_errors_are_red(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--color", "always", "imges"]) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert first == "\x1b[1;31morlop: error:\x1b[0m no such verb: imges"
    assert second == "\x1b[2mhint: did you mean `orlop images`?\x1b[0m"
    assert main(["imges"]) == 2
    assert "\x1b" not in capsys.readouterr().err
    assert main(["--color=always", "--help"]) == 0
    assert "\x1b[1mImages:\x1b[0m" in capsys.readouterr().out
    assert main(["images", "--color", "always"]) == 2
    assert "it goes before the verb" in capsys.readouterr().err


# ------------------------------------------------------------------ tables


def table(
    width: int | None, *rows: tuple[str, ...], titles: tuple[str, ...] = ("NAME", "STATE", "NOTE")
) -> str:
    return tables.laid_out(titles, rows, width=width)


def test_a_table_is_as_wide_as_the_terminal_and_the_first_column_stays() -> None:
    row = ("localhost/a-name:1", "ready", "a text that says much more than fits")
    assert (
        table(None, row).splitlines()[1] == "localhost/a-name:1  ready  a text that says much more than fits"
    )
    for width in range(38, 70):
        lines = table(width, row).splitlines()
        assert max(map(tables.text_width, lines)) <= width
        assert lines[1].startswith("localhost/a-name:1  ready  ")
        assert (lines[1][-1] == "…") is (width < 63)
    assert table(12, row).splitlines()[1] == "localho…  ready  a text …"  # what is less says nothing


def test_columns_that_can_be_spared_go_before_names_and_ids_are_shortened() -> None:
    titles = ("NAME", "ID", "PLATFORM", "LAYERS", "SIZE")
    row = ("registry.example.com/team/app:1", "93ddae4ac2c8", "linux/amd64", "12", "171.8 MB")
    without = {80: (), 72: ("12",), 58: ("12", "linux/amd64")}
    for width, gone in without.items():
        line = table(width, row, titles=titles).splitlines()[1]
        assert line.split() == " ".join(cell for cell in row if cell not in gone).split()
    assert table(None, row, titles=titles).splitlines()[1].split() == " ".join(row).split()


def test_a_last_column_of_sentences_takes_further_lines_and_a_cell_of_megabytes_no_time() -> None:
    rows = [("downloads", "3", "blobs fetched at a time, per call"), ("x", "y" * 8_000_000, "")]
    lines = table(36, *rows, titles=("KEY", "DEFAULT", "WHAT IT DOES")).splitlines()
    assert lines == [
        "KEY        DEFAULT      WHAT IT DOES",
        "downloads  3            blobs",
        "                        fetched at a",
        "                        time, per",
        "                        call",
        "x          yyyyyyyyyy…",
    ]
    piped = table(None, rows[0], titles=("KEY", "DEFAULT", "WHAT IT DOES")).splitlines()
    assert piped[1:] == ["downloads  3        blobs fetched at a time, per call"]


def test_wide_characters_take_two_columns_and_line_up() -> None:
    lines = table(None, ("日本", "ready", "x"), ("abcd", "ready", "x")).splitlines()
    assert lines[1:] == ["日本  ready  x", "abcd  ready  x"]
    assert tables.shortened("日本語", 5) == "日本…"
    assert tables.shortened("日本語", 4) == "日…"
    assert tables.text_width("e\u0301") == 1


def test_empty_cells_at_the_end_leave_no_white_space_and_headings_are_painted_alone() -> None:
    painted = tables.laid_out(
        ("NAME", "STATE"),
        [("a", "ready"), ("b", "missing"), ("c", "")],
        paint=lambda text, style: f"<{style}:{text}>",
    )
    assert painted == "<bold:NAME>  <bold:STATE>\na     <green:ready>\nb     <red:missing>\nc\n"


def test_what_is_piped_is_whole_and_what_a_terminal_shows_fits(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("LINES", "24")
    monkeypatch.setenv("NO_COLOR", "1")
    columns: list[output.Column] = [("NAME", lambda text: "n"), ("TEXT", str)]
    output.show_list(["x" * 100], columns, form="table", names=str)
    assert len(capsys.readouterr().out.splitlines()[1]) == 106
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    output.show_list(["x" * 100], columns, form="table", names=str)
    assert len(terminal.getvalue().splitlines()[1]) == 40
    output.show_list(["x" * 100], columns, form="table", names=str, whole=True)
    assert len(terminal.getvalue().splitlines()[-1]) == 106
