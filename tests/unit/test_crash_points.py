"""Crash points: found in the source, counted as they are reached, and death at the right one."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from orlop.observe import reached, watch_points
from orlop.testing import crashes
from orlop.testing.crashes import At, points, recording

LOOP = """
import sys
from orlop.observe import reached
from orlop.testing.crashes import At, killing
with killing(At("file.renamed", {nth})):
    for turn in range(5):
        print(turn, flush=True)
        reached("file.synced")
        reached("file.renamed")
print("lives", flush=True)
"""


def test_nobody_watches_unless_asked() -> None:
    reached("file.written")
    hits: list[str] = []
    with recording(hits):
        reached("file.written")
        inner: list[str] = []
        with recording(inner):
            reached("file.synced")
        reached("file.renamed")
    reached("file.written")
    assert (hits, inner) == (["file.written", "file.renamed"], ["file.synced"])


def test_what_a_watcher_raises_goes_up_and_the_watch_ends() -> None:
    def refuse(point: str) -> None:
        raise OSError(point)

    with pytest.raises(OSError, match=r"file\.written"), watch_points(refuse):
        reached("file.written")
    reached("file.written")


def test_every_point_has_a_name_that_says_what_was_done_to_what() -> None:
    found = points()
    assert len(found) > 30
    assert [name for name in found if not re.fullmatch(r"[a-z]+\.[a-z]+(-[a-z]+)*", name)] == []
    assert {"layer.renamed", "file.synced", "db.committed", "root.named"} <= set(found)


def test_points_are_found_wherever_they_are_and_only_as_literals(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "a.py").write_text(
        "reached('a.one')\nif x:\n    observe.reached('a.two')\nreached('a.one')\n"
    )
    (tmp_path / "deep" / "b.py").write_text("def f():\n    reached('b.one')\n    reach('b.two')\n")
    assert points(tmp_path) == {"a.one": ["a.py:1", "a.py:4"], "a.two": ["a.py:3"], "b.one": ["deep/b.py:2"]}
    (tmp_path / "c.py").write_text("reached(name)\n")
    with pytest.raises(ValueError, match=r"c\.py:1"):
        points(tmp_path)


@pytest.mark.parametrize(("nth", "lines", "code"), [
    (1, ["0"], -signal.SIGKILL),
    (3, ["0", "1", "2"], -signal.SIGKILL),
    (6, ["0", "1", "2", "3", "4", "lives"], 0),
])  # fmt: skip
def test_a_process_dies_when_the_point_is_reached_so_often(nth: int, lines: list[str], code: int) -> None:
    script = LOOP.format(nth=nth)
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.stdout.split(), done.returncode) == (lines, code), done.stderr


@pytest.mark.parametrize(("text", "at"), [
    ("layer.renamed", At("layer.renamed", 1)),
    ("db.committed:12", At("db.committed", 12)),
])  # fmt: skip
def test_a_point_is_named_on_the_command_line(text: str, at: At) -> None:
    assert At.parse(text) == at


@pytest.mark.parametrize(
    "text", ["", "layer.unheard", "layer.renamed:0", "layer.renamed:x", "layer.renamed:"]
)
def test_what_is_no_point_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"no such point|invalid literal"):
        At.parse(text)


def test_the_points_can_be_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert crashes.main(["--list"]) == 0
    said = capsys.readouterr().out
    assert "layer.renamed\tlayers/store.py:" in said
    assert len(said.splitlines()) == len(points())


def test_the_command_line_dies_at_a_point(tmp_path: Path) -> None:
    place = ["--root", str(tmp_path / "root"), "--run", str(tmp_path / "run")]
    command = [
        sys.executable,
        "-m",
        "orlop.testing.crashes",
        "--at",
        "layout.format-written",
        *place,
        "images",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (-signal.SIGKILL, ""), done.stderr
    assert (tmp_path / "root" / "format.json").exists()
    assert not (tmp_path / "root" / "meta.db").exists()
