"""The verb that writes a page about an image or a prepared root: ``report``."""

from __future__ import annotations

import os
import sys
import tempfile
from contextlib import suppress

from orlop.cli import declared as click
from orlop.cli import output
from orlop.cli.contents import platform_option
from orlop.cli.exits import Misuse
from orlop.cli.lineage import hint_of
from orlop.cli.session import Session, pass_session, progress_options, verb
from orlop.errors import AlreadyExists, from_oserror
from orlop.hints import TYPE_CHECKING

if TYPE_CHECKING:
    from orlop.cli.progress import ProgressMode

__all__ = ["report_verb"]


@verb(
    "report",
    "orlop report alpine -o alpine.html",
    "orlop report /srv/a -o changes.html    what a prepared root changed, too",
    "orlop report --title 'Nightly' localhost/mine -o - | gzip > report.html.gz",
)
@click.argument("thing", metavar="IMAGE")
@click.option(
    "-o",
    "--output",
    "destination",
    metavar="FILE|-",
    default="-",
    help="Where to.  [default: standard output]",
)
@click.option("--title", default="", metavar="TEXT", help="The headline, in place of the name.")
@click.option("-f", "--force", is_flag=True, help="Replace a file that is there.")
@platform_option
@progress_options
@pass_session
def report_verb(
    session: Session,
    thing: str,
    destination: str,
    title: str,
    force: bool,
    platform: str | None,
    quiet: bool,
    progress: ProgressMode,
) -> None:
    """Write a report on an image or a prepared root, as one page of HTML.

    IMAGE is an image's name or ID, IMAGE#N for its first N layers, or the path of a prepared root.  The page
    shows the layers and what each did, what takes the space, what is wasted, the configuration and the
    history; of a prepared root what changed in it.

    The page is whole by itself: it needs no network, and any browser shows it, in light and in dark, on
    paper and without scripts.  The same image gives the same bytes.  A file is whole or not there.
    """
    to_output = destination == "-"
    if to_output and sys.stdout is not None and sys.stdout.isatty():
        raise Misuse("the page would go to the terminal", "give a file with -o, or a pipe")
    if not to_output:
        _check_free(destination, force=force)
    from orlop.explorer.report import report

    with session.store() as store, session.call(quiet=quiet, progress=progress) as call, hint_of(thing):
        page = report(store, thing, title=title, platform=platform, call=call)
    if to_output:
        output.write(page)
        return
    _write(destination, page.encode(), force=force)
    output.write(f"{destination}\n")


def _check_free(path: str, *, force: bool) -> None:
    """Say before the work what would be said after it."""
    if os.path.isdir(path):
        raise Misuse(f"a folder: {path}", "give the name of a file")
    if os.path.lexists(path) and not force:
        raise _taken(path)


def _taken(path: str) -> AlreadyExists:
    return AlreadyExists(f"write {path}", "there is a file", hint="--force replaces it")


def _write(path: str, data: bytes, *, force: bool) -> None:
    """Write a file under its name when it is whole."""
    try:
        if os.path.lexists(path) and not os.path.isfile(path):  # /dev/stdout, a pipe
            with open(path, "wb") as there:
                there.write(data)
            return
        fd, made = tempfile.mkstemp(prefix=".orlop-report-", dir=os.path.dirname(path) or ".")
        try:
            with os.fdopen(fd, "wb") as file:
                file.write(data)
                mask = os.umask(0)
                os.umask(mask)
                os.fchmod(file.fileno(), 0o666 & ~mask)
            if force:
                os.replace(made, path)
            else:
                os.link(made, path)
        finally:
            with suppress(FileNotFoundError):
                os.unlink(made)
    except FileExistsError as exc:
        raise _taken(path) from exc
    except OSError as exc:
        raise from_oserror(f"write {path}", exc) from exc
