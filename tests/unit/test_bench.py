"""The benchmark's own arithmetic: tables, ratios, goals, what is written of a part, and what is counted."""

from __future__ import annotations

import ast
import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from support.benches import (
    BENCH,
    BEST,
    PARTS,
    QUICK_SECONDS,
    Goal,
    Plot,
    Row,
    Section,
    best,
    goals_table,
    lab,
    measure,
    peers,
    pull,
    ratio,
    report,
    rows_table,
)


def _row(what: str, tool: str, *figures: float, column: str = "wall s", yardstick: bool = False) -> Row:
    return Row(what=what, tool=tool, figures={column: list(figures)}, yardstick=yardstick)


def _section(*rows: Row, base: str = BEST) -> Section:
    return Section(
        name="pull", title="A title", words="Words.", rows=list(rows), base=base, ratios=("wall s",)
    )


# ------------------------------------------------------------------ ratios and tables


def test_a_ratio_is_of_medians_to_the_best_of_the_others_for_the_same_thing() -> None:
    ours = _row("a", "orlop", 1, 2, 30)
    section = _section(ours, _row("a", "slow", 9), _row("a", "fast", 4), _row("b", "fast", 1))
    assert ratio(ours, "wall s", section) == 0.5
    assert best(section.rows, "a", "wall s") == 4


def test_neither_our_own_ways_nor_yardsticks_are_the_best_of_the_others() -> None:
    disk = _row("a", "the disk", 1, yardstick=True)
    section = _section(_row("a", "orlop", 2), _row("a", "orlop, gRPC", 3), disk, _row("a", "peer", 8))
    assert [ratio(row, "wall s", section) for row in section.rows] == [0.25, 0.375, None, 1.0]


def test_of_rates_the_most_is_the_best() -> None:
    rows = [
        _row("a", tool, rate, column="lives/s") for tool, rate in (("orlop", 9), ("slow", 1), ("fast", 3))
    ]
    assert ratio(rows[0], "lives/s", _section(*rows)) == 3


def test_a_named_base_may_be_our_own() -> None:
    ours = _row("a", "orlop, big store", 6)
    section = _section(ours, _row("a", "orlop, empty store", 3), base="orlop, empty store")
    assert ratio(ours, "wall s", section) == 2


@pytest.mark.parametrize("others", [[], [_row("b", "peer", 1)], [_row("a", "peer", 0)]])
def test_without_a_base_there_is_no_ratio(others: list[Row]) -> None:
    ours = _row("a", "orlop", 6)
    assert ratio(ours, "wall s", _section(ours, *others)) is None


def test_a_table_has_a_column_for_each_figure_and_ratios_where_asked() -> None:
    ours, peer = Row(what="a", tool="orlop", durable="yes"), Row(what="a", tool="peer", durable="no")
    ours.add(wall_s=0.5, disk_MB=1234)
    peer.add(wall_s=2)
    assert rows_table(_section(ours, peer)).splitlines() == [
        "| what | tool | durable | wall s | ratio | disk MB |",
        "| --- | --- | --- | ---: | ---: | ---: |",
        "| a | orlop | yes | 0.50 | 0.25 | 1,234 |",
        "| a | peer | no | 2.00 | 1.00 |  |",
    ]


def test_rows_that_have_no_column_in_common_are_in_tables_of_their_own() -> None:
    rows = (_row("a", "orlop", 1), _row("b", "orlop", 2, column="MB"), _row("c", "orlop", 3))
    first, second = rows_table(_section(*rows)).split("\n\n")
    assert [line.split()[1] for line in first.splitlines()[2:]] == ["a", "c"]
    assert "| b | orlop | - | 2.00 |" in second


@pytest.mark.parametrize(
    ("asked", "seen", "least", "met"),
    [
        (1, 0.9, False, True),
        (1, 1, False, True),
        (1, 1.1, False, False),
        (3, 3, True, True),
        (3, 2.9, True, False),
    ],
)
def test_a_goal_is_met_up_to_what_was_asked(asked: float, seen: float, least: bool, met: bool) -> None:
    goal = Goal(what="g", asked=asked, seen=seen, least=least)
    assert goal.met is met
    assert ("≥" if least else "≤") in goals_table([goal])
    assert goals_table([goal]).rstrip().endswith("| yes |" if met else "| no |")


# ------------------------------------------------------------------ what is written


def test_what_is_written_of_a_part_is_read_again(tmp_path: Path) -> None:
    plot = Plot(name="p", title="t", x="x", y="y", lines={"orlop": [(1, 2.5)]}, groups=("g",))
    section = Section(
        name="pull",
        title="A title",
        words="Words.",
        rows=[_row("a", "orlop", 1, 2)],
        base=BEST,
        ratios=("wall s",),
        goals=[Goal(what="g", asked=1, seen=2, unit="s")],
        plots=[plot],
    )
    result = report.Result(name="pull", about={"quick": True, "took_s": 3.0}, section=section)
    report.write(tmp_path, result)
    assert report.read(tmp_path / "pull.json") == result


def test_the_index_has_all_parts_their_goals_and_failures(tmp_path: Path) -> None:
    goals = [Goal(what="fast", asked=1, seen=0.5), Goal(what="small", asked=1, seen=2)]
    plot = Plot(name="p", title="A picture", x="x", y="y", lines={})
    section = Section(
        name="pull", title="Pulls", words="", rows=[_row("a", "orlop", 1)], goals=goals, plots=[plot]
    )
    about = {"at": "today", "noise_ms": [1.5, 2], "took_s": 7, "versions": {"tool": "1.0"}}
    report.write(tmp_path, report.Result(name="pull", about=about, section=section))
    report.write(tmp_path, report.Result(name="fetch", about=about, failure="Traceback\nKeyError: 'x'\n"))
    (tmp_path / "pull-p.svg").touch()
    report.write_index(tmp_path)
    index = (tmp_path / "README.md").read_text()
    assert "| [Pulls](pull.md) | 1 of 2 | 7 | today |" in index
    assert "(fetch.md) | FAILED: KeyError: 'x' | 7 | today |" in index
    assert "| small | ≤ 1.00 | 2.00 | no |" in index
    assert "- tool: 1.0" in index
    assert index.count("- at: today") == 1  # one run, whose parts differ in noise alone
    assert "| pull | 1.5, 2 |" in index
    assert "![A picture](pull-p.svg)" in (tmp_path / "pull.md").read_text()
    assert "KeyError: 'x'" in (tmp_path / "fetch.md").read_text()


def test_a_part_that_fails_says_why_and_the_run_goes_on(tmp_path: Path) -> None:
    command = [sys.executable, BENCH / "run.py", "fetch", "--image", "none-such", "--on", tmp_path]
    done = subprocess.run(
        [*command, "--out", tmp_path], capture_output=True, env={"LAB": str(tmp_path)}, check=False
    )
    assert done.returncode == 1
    result = report.read(tmp_path / "fetch.json")
    assert result.section is None
    assert "none-such: make it with: make images IMAGES=none-such" in result.failure


# ------------------------------------------------------------------ the parts


def _modules_with_measure() -> set[str]:
    found = set()
    for path in BENCH.glob("*.py"):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef) and ast.unparse(node.returns or node) == "Section":
                found |= {path.stem} if node.name == "measure" else set()
    return found


def test_every_part_is_in_the_table_and_every_one_of_the_table_is_there() -> None:
    assert _modules_with_measure() == set(PARTS)


def test_all_shares_of_a_quick_run_fit_into_it() -> None:
    assert sum(part.share for part in PARTS.values()) <= QUICK_SECONDS


def test_in_haste_only_the_image_that_is_made_in_a_minute_is_asked_for() -> None:
    assert lab.choose((), quick=True) == ["debian-min"]
    assert lab.choose((), quick=True, default=["node-many"]) == ["debian-min"]
    assert lab.choose((), quick=False, default=["node-many"]) == ["node-many"]
    assert lab.choose(("ml",), quick=True) == ["ml"]


# ------------------------------------------------------------------ what is counted

MOUNTS = """cgroup /sys/fs/cgroup/memory cgroup rw,relatime,memory 0 0
cgroup /sys/fs/cgroup/cpu,cpuacct cgroup rw,relatime,cpu,cpuacct 0 0
{unified}tmpfs /tmp tmpfs rw 0 0
"""
V2 = "cgroup2 /sys/fs/cgroup/unified cgroup2 rw,relatime 0 0\n"


def test_groups_of_version_2_come_first_and_of_version_1_only_those_that_count_cpu() -> None:
    old = Path("/sys/fs/cgroup/cpu,cpuacct")
    assert measure.groups(MOUNTS.format(unified=V2)) == [Path("/sys/fs/cgroup/unified"), old]
    assert measure.groups(MOUNTS.format(unified="")) == [old]
    assert measure.groups("tmpfs /tmp tmpfs rw 0 0\n") == []


def test_a_groups_cpu_is_read_in_either_version(tmp_path: Path) -> None:
    (tmp_path / "cpu.stat").write_text("usage_usec 2500000\nuser_usec 2000000\nsystem_usec 500000\n")
    assert measure.group_cpu(tmp_path) == 2.5
    (tmp_path / "cpuacct.usage").write_text("1500000000\n")
    assert measure.group_cpu(tmp_path) == 1.5


def test_a_command_that_fails_is_no_measurement() -> None:
    with pytest.raises(RuntimeError, match="exits with 3: told so"):
        measure.run(["sh", "-c", "echo told so >&2; exit 3"])


def test_cpu_is_also_that_of_a_worker_that_lives_on() -> None:
    code = "import time\nfor _ in open(0):\n  end = time.process_time() + 0.2\n  while time.process_time() < end: pass\n  print(flush=True)"
    worker = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert worker.stdin is not None
        assert worker.stdout is not None
        worker.stdin.write(b"\n")
        times = measure.Times()
        times.take(lambda: (worker.stdin.flush(), worker.stdout.readline()))
    finally:
        worker.kill()
        worker.communicate()
    assert times.cpu >= 0.05


def test_a_daemons_group_ends_with_all_that_is_in_it(tmp_path: Path) -> None:
    script = f"sleep 1000 & echo $! >{tmp_path}/new; mv {tmp_path}/new {tmp_path}/child; wait"
    group = measure.Group(["sh", "-c", script], log=tmp_path / "log")
    try:
        until = time.monotonic() + 120
        while not (tmp_path / "child").exists():
            assert group.running
            assert time.monotonic() < until
            time.sleep(0.01)
        child = int((tmp_path / "child").read_text())
        assert child in group.pids()
        assert group.cpu() >= 0
    finally:
        group.close()
    assert not group.running
    while _state(child) not in ("", "Z"):  # killed: it goes
        assert time.monotonic() < until
        time.sleep(0.01)


def test_groups_of_a_killed_part_are_cleared(tmp_path: Path) -> None:
    code = (
        "import os, sys; sys.path.append(sys.argv[1]); from pathlib import Path; from bench.measure import Group\n"
        "group = Group(['sleep', '1000'], log=Path(sys.argv[2])); print(*group.pids(), group.exact); os._exit(1)"
    )
    command = [sys.executable, "-c", code, BENCH.parent, tmp_path / "log"]
    part = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    said, _ = part.communicate(timeout=120)
    pid, exact = said.split()
    try:
        measure.clear_groups(part.pid)
        assert not [found for place in measure.groups() for found in place.glob(f"orlop-bench-{part.pid}-*")]
        until = time.monotonic() + 120
        while exact == "True" and _state(int(pid)) not in ("", "Z"):
            assert time.monotonic() < until
            time.sleep(0.01)
    finally:
        if exact == "False":
            os.kill(int(pid), signal.SIGKILL)


def _state(pid: int) -> str:
    """Empty if the process is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


# ------------------------------------------------------------------ pull


def test_the_chain_of_an_image_has_the_name_that_the_specification_gives_it() -> None:
    one, two = f"sha256:{'1' * 64}", f"sha256:{'2' * 64}"
    assert peers.chain_id([one]) == one
    assert peers.chain_id([one, two]) == "sha256:" + hashlib.sha256(f"{one} {two}".encode()).hexdigest()


def test_pulls_goals_are_those_of_their_image() -> None:
    rows = []
    for what, ours, peer, write in (("debian-min", 0.5, 1.0, 1.0), ("ml", 3.0, 6.0, 2.0)):
        for tool, wall in (("orlop", ours), ("peer", peer), ("slow peer", 2 * peer)):
            row = Row(what=what, tool=tool)
            row.add(wall_s=wall, CPU_s=wall, disk_MB=100, peak_MB=50 + 2 * wall)
            rows.append(row)
        rows.append(_row(what, pull.WRITE, write, yardstick=True))
    found = {goal.what: (goal.asked, goal.seen, goal.met) for goal in pull.goals(rows)}
    assert found["debian-min: wall beside the best"] == (0.6, 0.5, True)
    assert found["ml: wall beside the best"] == (0.4, 0.5, False)
    assert found["ml: wall, 1.3 durable writes of its tars and 0.25 s"] == (2.85, 3.0, False)
    assert found["ml: disk beside the best"] == (1.0, 1.0, True)
    assert found["peak memory, the most of all images (ml)"] == (150.0, 56.0, True)
    assert sum(what.startswith("peak memory: what ml takes more") for what in found) == 1
