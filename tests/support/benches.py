"""The benchmark's modules, which are no part of the package: they are found from the folder above bench/."""

from __future__ import annotations

import os
import sys
from pathlib import Path

BENCH = Path(__file__).resolve().parents[2] / "bench"
if os.fspath(BENCH.parent) not in sys.path:
    sys.path.append(os.fspath(BENCH.parent))  # last, so that nothing is hidden by a folder of the project

from bench import lab, measure, peers, pull, report  # noqa: E402
from bench.parts import PARTS, QUICK_SECONDS  # noqa: E402
from bench.section import BEST, Goal, Plot, Row, Section, best, goals_table, ratio, rows_table  # noqa: E402

__all__ = [
    "BENCH",
    "BEST",
    "PARTS",
    "QUICK_SECONDS",
    "Goal",
    "Plot",
    "Row",
    "Section",
    "best",
    "goals_table",
    "lab",
    "measure",
    "peers",
    "pull",
    "ratio",
    "report",
    "rows_table",
]
