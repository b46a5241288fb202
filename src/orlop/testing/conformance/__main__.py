"""The suite as a program: performs checks in the mode it is started in, prints a line of JSON for each.

With several drivers it uses one store for all, so that layers are imported once.  Exits with 1 if any failed.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from pathlib import Path

from orlop.config import DRIVERS
from orlop.facade import open  # noqa: A004 - the library's verb
from orlop.testing.conformance.bench import Bench
from orlop.testing.conformance.suite import CHECKS, perform


def main() -> int:
    """Perform the checks that are asked for."""
    parser = argparse.ArgumentParser(prog="python -m orlop.testing.conformance", description=__doc__)
    parser.add_argument("--root", type=Path, required=True, help="the store's folder, made if missing")
    parser.add_argument("--run", type=Path, required=True, help="its folder for mount points")
    parser.add_argument("--work", type=Path, required=True, help="a folder for roots and layouts")
    parser.add_argument("--driver", action="append", choices=DRIVERS, required=True, help="may be repeated")
    parser.add_argument("--only", action="append", choices=[*CHECKS], metavar="NAME", help="may be repeated")
    told = parser.parse_args()
    bench = Bench(open_store=lambda: open(told.root, told.run), driver=told.driver[0], work=told.work)
    failed = False
    try:
        for bench.driver, name in itertools.product(told.driver, told.only or CHECKS):
            report = perform(name, bench)
            failed |= report.outcome == "failed"
            sys.stdout.write(report.encode() + "\n")
            sys.stdout.flush()
    finally:
        bench.store.close()
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
