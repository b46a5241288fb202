"""The conformance suite for drivers: every driver passes it in every privilege mode that it supports.

In a test process, with a bench of one's own::

    bench = Bench(open_store=lambda: orlop.open(root, run), driver="overlay", work=work)
    for name in CHECKS:
        report = perform(name, bench)
        assert report.outcome == "passed", report.detail
    bench.close()

or as a program, in whatever mode it is started, one line of JSON for each check::

    python -m orlop.testing.conformance --root ROOT --run RUN --work WORK --driver overlay --driver native

What a check compares with is a flat model of trees (`model`), which layers are applied to by simple code
of the suite's own; images are made by `orlop.testing.layers`.  The mode is told from the kernel
(`abilities`), and what it cannot represent is left out of comparisons and named in the report: no check is
ever skipped.
"""

from __future__ import annotations

from orlop.testing.conformance.abilities import Abilities, detect
from orlop.testing.conformance.bench import Bench, Root
from orlop.testing.conformance.reference import FACT, reference_change, reference_image
from orlop.testing.conformance.suite import CHECKS, Check, Report, perform

__all__ = [
    "CHECKS",
    "FACT",
    "Abilities",
    "Bench",
    "Check",
    "Report",
    "Root",
    "detect",
    "perform",
    "reference_change",
    "reference_image",
]
