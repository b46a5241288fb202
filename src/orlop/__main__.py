"""``python -m orlop``: the command line."""

from __future__ import annotations

from orlop.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
