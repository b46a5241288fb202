"""One target under atheris: ``drive.py TARGET [libFuzzer's options] [corpus folders]``.

A process of its own for each run, because libFuzzer ends the process it runs in.  `run.py` starts it.
"""

from __future__ import annotations

import sys

import atheris

with atheris.instrument_imports(include=["orlop"]):
    import targets


def main() -> None:
    """Feed the target until libFuzzer has had enough."""
    target = targets.TARGETS[sys.argv.pop(1)]
    atheris.Setup(sys.argv, target)
    atheris.Fuzz()


main()
