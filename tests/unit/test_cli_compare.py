"""``orlop diff``, ``blame``, ``history``, ``tree``, ``waste``: what they print of what a store says."""

from __future__ import annotations

import json
import stat
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from orlop.cli import main
from orlop.facade import Store
from orlop.images.comparing import (
    Blame,
    BlameStep,
    Difference,
    HistoryLine,
    LayerWaste,
    TreeLine,
    Waste,
    WastedFile,
)
from orlop.images.contents import FileInfo

ID = "sha256:" + "3f" * 32
LINE = HistoryLine(
    layer=2,
    diff_id=ID,
    created="2024-01-01T00:00:00Z",
    created_by="RUN " + "x" * 60 + "\x1b[2J",
    comment="a\nb",
    size=1_500,
    entries=3,
)
EMPTY = HistoryLine(created_by="ENV A=b")


def file(path: bytes, size: int = 0, mode: int = stat.S_IFREG | 0o644, **values: object) -> FileInfo:
    return FileInfo(path=path, size=size, mode=mode, **values)


def folder(path: bytes) -> FileInfo:
    return file(path, mode=stat.S_IFDIR | 0o755)


DIFFERENCES = [
    Difference(path=b"", what="changed", fields=("mtime",), old=folder(b""), new=folder(b"")),
    Difference(path=b"a/b\xff\n\x1b", what="added", new=file(b"a/b\xff\n\x1b", 10)),
    Difference(
        path=b"a/c", what="changed", fields=("mode", "content"), old=file(b"a/c", 5), new=file(b"a/c", 2_000)
    ),
    Difference(path=b"a/d", what="changed", fields=("mode",), old=file(b"a/d", 5), new=file(b"a/d", 5)),
    Difference(path=b"t", what="changed", fields=("type",), old=folder(b"t"), new=file(b"t", 7)),
    Difference(path=b"t/x", what="deleted", old=file(b"t/x", 100)),
    Difference(path=b"u", what="deleted", old=folder(b"u")),
]


class Verbs:
    """Answers what it was told to, and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[object] = []
        self.story = Blame(path=b"etc/x", steps=())

    def diff(self, old: str, new: str | None, **options: object) -> Iterator[Difference]:
        self.asked.append((old, new, options["path"], options["times"], options["platform"]))
        return (one for one in DIFFERENCES)

    def blame(self, thing: str, path: bytes, **options: object) -> Blame:
        return self.story

    def history(self, thing: str, **options: object) -> list[HistoryLine]:
        return [replace(LINE, layer=1, created_by="ADD"), EMPTY, LINE]

    def tree(self, thing: str, path: bytes, **options: object) -> Iterator[TreeLine]:
        self.asked.append((path, options["depth"], options["layers"]))
        link = file(b"etc/l", mode=stat.S_IFLNK | 0o777, target=b"\x1b")
        yield TreeLine(file=folder(b"etc"), total=1_500, entries=2, layer=2)
        yield TreeLine(file=link, total=0, layer=0, depth=1)
        yield TreeLine(file=folder(b"etc/s\n"), total=1_500, layer=1, depth=1)

    def waste(self, thing: str, **options: object) -> Waste:
        self.asked.append(options["files"])
        return Waste(
            layers=(LayerWaste(line=LINE, size=4_000, wasted=1_000, entries=2, files=1),),
            files=(WastedFile(path=b"a\x1b", size=1_000, layer=1, hidden_by=2, what="deleted"),),
        )

    def close(self) -> None:
        pass


@pytest.fixture
def verbs() -> Verbs:
    return Verbs()


Run = Callable[..., str]


@pytest.fixture
def run(verbs: Verbs, capsysbinary: pytest.CaptureFixture[bytes]) -> Run:
    def run(*argv: str, code: int = 0) -> str:
        assert main(argv, open_store=lambda target: Store(verbs)) == code  # type: ignore[arg-type]  # half of them
        captured = capsysbinary.readouterr()
        return (captured.err if code else captured.out).decode(errors="surrogateescape")

    return run


# ------------------------------------------------------------------ diff


def test_a_diff_has_a_line_for_each_path_and_none_steers_the_terminal(run: Run) -> None:
    assert run("diff", "a", "b").splitlines() == [
        "C /  (mtime)",
        "A /a/b\udcff \\x1b  10 B",
        "C /a/c  (mode, content)  5 B -> 2.0 kB",
        "C /a/d  (mode)",
        "C /t  (type)  folder -> file",
        "D /t/x  100 B",
        "D /u",
    ]


def test_paths_alone_come_as_they_are_where_nul_ends_them(run: Run) -> None:
    assert run("diff", "-0", "a", "b").split("\0")[:3] == ["/", "/a/b\udcff\n\x1b", "/a/c"]
    assert run("diff", "--name-only", "a", "b").splitlines()[1] == "/a/b\udcff \\x1b"


def test_sums_count_the_bytes_that_came_and_went(run: Run) -> None:
    told = json.loads(run("diff", "--stat", "--json", "a", "b"))
    assert {key: told[key] for key in ("added", "changed", "deleted", "brought", "gone")} == {
        "added": 1,
        "changed": 4,
        "deleted": 2,
        "brought": 10 + 2_000 + 7,
        "gone": 5 + 100,
    }
    assert [one["folder"] for one in told["folders"]] == ["/", "/a", "/t", "/u"]
    assert [one["changed"] for one in told["folders"]] == [2, 2, 0, 0]
    assert run("diff", "--stat", "--depth", "0", "a", "b").splitlines()[-1].split() == [
        *("total", "1", "4", "2", "2.0", "kB", "105", "B"),
    ]


def test_json_of_a_diff_is_a_line_for_each_path(run: Run) -> None:
    told = [json.loads(line) for line in run("diff", "--json", "a", "b").splitlines()]
    assert [(one["path"], one["what"]) for one in told][2:4] == [("/a/c", "changed"), ("/a/d", "changed")]
    assert told[2]["fields"] == ["mode", "content"]
    assert (told[2]["old"]["size"], told[2]["new"]["size"], told[1]["old"]) == (5, 2_000, None)


def test_options_of_a_diff_are_handed_down(run: Run, verbs: Verbs) -> None:
    run("diff", "--path", "/x/\udcff", "--ignore-times", "--platform", "linux/arm64", "/srv/a")
    run("diff", "a", "b")
    assert verbs.asked == [("/srv/a", None, b"/x/\xff", False, "linux/arm64"), ("a", "b", b"/", True, None)]


@pytest.mark.parametrize("options", [["--stat", "-0"], ["--name-only", "--json"], ["--depth", "2"]])
def test_options_that_exclude_one_another_are_refused(run: Run, options: list[str]) -> None:
    assert "error: " in run("diff", *options, "a", "b", code=2)


# ------------------------------------------------------------------ blame


def test_blame_shows_the_last_word_first(run: Run, verbs: Verbs) -> None:
    first = replace(LINE, layer=1, created_by="ADD")
    steps = (
        BlameStep(what="added", how="entry", line=first, at=b"etc/x", file=file(b"etc/x", 10)),
        BlameStep(
            what="changed", how="link", line=LINE, file=file(b"etc/x", 9), source=b"y\x1b", source_layer=1
        ),
        BlameStep(what="deleted", how="opaque", line=LINE, at=b"etc"),
        BlameStep(what="added", how="implied", line=LINE, file=folder(b"etc/x")),
        BlameStep(what="deleted", how="written", line=HistoryLine(), at=b"etc/x"),
    )
    verbs.story = Blame(path=b"etc/x", steps=steps)
    table = run("blame", "a", "/etc/x")
    assert "\x1b" not in table
    rows = table.splitlines()[1:]
    assert [row.split()[0] for row in rows] == ["root", "2", "2", "2", "1"]
    assert [wanted in row for wanted, row in zip(
        ("deleted by a change in the root", "added, implied", "deleted by an opaque mark at /etc",
         r"changed, a hard link to /y\x1b of layer 1", "added"), rows, strict=True)] == [True] * 5  # fmt: skip
    assert "xxx..." in rows[1]
    assert ID in run("blame", "--no-trunc", "a", "/etc/x")
    told = json.loads(run("blame", "--json", "a", "/etc/x"))
    assert (told["path"], told["exists"]) == ("/etc/x", False)
    assert [step["how"] for step in told["steps"]] == ["entry", "link", "opaque", "implied", "written"]
    assert [step["source"] for step in told["steps"]] == [None, "/y\x1b", None, None, None]


def test_blame_below_a_folder_tells_the_layer_of_each(run: Run) -> None:
    rows = run("blame", "-r", "a", "/etc").splitlines()
    assert [row.split()[0] for row in rows] == ["2", "root", "1"]
    assert [row.split("/")[-1] for row in rows] == ["etc", "l", "s "]
    told = [json.loads(line) for line in run("blame", "-r", "--json", "a", "/etc").splitlines()]
    assert [(one["layer"], one["created_by"]) for one in told][1:] == [(None, None), (1, "ADD")]


# ------------------------------------------------------------------ history, tree, waste


def test_history_is_shown_newest_first(run: Run) -> None:
    table = run("history", "a")
    assert "\x1b" not in table
    assert [row.split()[0] for row in table.splitlines()] == ["LAYER", "2", "-", "1"]
    assert run("history", "-q", "a").splitlines() == [ID, ID]
    assert [line["layer"] for line in json.loads(run("history", "--json", "a"))] == [2, 0, 1]
    assert run("history", "--format", "{{.created_by}}", "a").splitlines()[1:] == ["ENV A=b", "ADD"]
    assert "x" * 60 in run("history", "--no-trunc", "a")


def test_a_tree_is_indented_and_has_sizes(run: Run, verbs: Verbs) -> None:
    assert run("tree", "a", "/etc").splitlines() == [
        "   1.5 kB  /etc",
        r"  symlink    l -> \x1b",
        "   1.5 kB    s /",
    ]
    assert run("tree", "-d", "-L", "3", "--layers", "a").splitlines() == [
        "   1.5 kB     2  /etc",
        "   1.5 kB     1    s /",
    ]
    assert verbs.asked == [(b"/etc", None, False), (b"/", 3, True)]
    told = [json.loads(line) for line in run("tree", "--json", "--layers", "a").splitlines()]
    assert [(one["path"], one["total"], one["layer"]) for one in told][:2] == [
        ("/etc", 1_500, 2),
        ("/etc/l", 0, None),
    ]


def test_waste_has_a_table_of_layers_and_one_of_files(run: Run, verbs: Verbs) -> None:
    text = run("waste", "a", "-n", "5")
    assert "\x1b" not in text
    assert "1.0 kB of 4.0 kB are hidden: efficiency 75.0 %" in text
    assert text.splitlines()[-1].split() == ["1.0", "kB", "1", "2", "(deleted)", r"/a\x1b"]
    told = json.loads(run("waste", "--json", "a"))
    assert (told["efficiency"], told["files"][0]["path"], told["layers"][0]["wasted"]) == (
        0.75,
        "/a\x1b",
        1_000,
    )
    assert verbs.asked == [5, 10]
