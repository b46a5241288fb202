"""Build the documentation into build/docs: html, and man pages.  ``make docs`` runs it.

usage: python tools/docs [--fresh]

Warnings are errors.  Nothing is fetched.
"""

from __future__ import annotations

import shutil
import subprocess
import sys

import api_pages
import cli_pages
import library_page
import man_pages
from stage import TREE, stage

BUILD = TREE / "build" / "docs"


def generated() -> dict[str, str]:
    """The pages that are written from the program itself."""
    return {**cli_pages.pages(), **api_pages.pages(), **library_page.pages()}


def main() -> int:
    """Build all."""
    if "--fresh" in sys.argv:
        shutil.rmtree(BUILD, ignore_errors=True)
    stage(BUILD / "source", generated())
    man_pages.main(BUILD / "man" / "man1", int((TREE / "CHANGELOG.md").stat().st_mtime))
    command = [sys.executable, "-m", "sphinx", "-b", "html", "-W", "--keep-going", "-q", "-j", "2"]
    command += ["-d", str(BUILD / "doctrees"), str(BUILD / "source"), str(BUILD / "html")]
    code = subprocess.run(command, check=False).returncode
    if code == 0:
        sys.stdout.write(f"{BUILD.relative_to(TREE)}/html/index.html, {BUILD.relative_to(TREE)}/man\n")
    return code


if __name__ == "__main__":
    sys.exit(main())
