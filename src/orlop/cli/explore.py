"""The verb that shows an image in the terminal: ``explore``."""

from __future__ import annotations

import os
import sys

from orlop.cli import declared as click
from orlop.cli.contents import platform_option
from orlop.cli.lineage import hint_of
from orlop.cli.session import Session, needs_extra, pass_session, verb
from orlop.errors import Cancelled, FailedPrecondition, Internal
from orlop.hints import TYPE_CHECKING

if TYPE_CHECKING:
    from orlop.explorer.tui.app import Explorer

__all__ = ["explore_verb"]

_SMALLEST = (40, 10)  # columns and lines below which nothing can be read


@verb(
    "explore",
    "orlop explore alpine",
    "orlop explore /srv/a              what a prepared root changed, too",
    "orlop --host unix:///run/orlop/socket/orlop.sock explore alpine",
)
@click.argument("thing", metavar="IMAGE")
@click.option(
    "--theme",
    type=click.Choice(["auto", "dark", "light"]),
    default="auto",
    show_default=True,
    help="Colours for a dark or a light terminal.",
)
@platform_option
@pass_session
def explore_verb(session: Session, thing: str, theme: str, platform: str | None) -> int | None:
    """Explore an image or a prepared root in the terminal.

    IMAGE is an image's name or ID, IMAGE#N for its first N layers, or the path of a prepared root.  Nothing
    is mounted, and nothing is changed.  Press ? for the keys.
    """
    _check_terminal(thing)
    with needs_extra(f"explore {thing}", "tui"):
        from orlop.explorer.tui.app import Explorer
        from orlop.explorer.tui.source import StoreSource
        from orlop.explorer.tui.themes import theme_for

    chosen = theme_for(os.environ) if theme == "auto" else f"orlop-{theme}"
    with session.store() as store, hint_of(thing):
        store.history(thing, platform=platform)  # what is not there is said before the screen is taken
        app = Explorer(StoreSource(store, thing, platform=platform), thing, theme=chosen)
        app.run()
    return _ended(app, thing)


def _check_terminal(thing: str) -> None:
    """Raise `FailedPrecondition` where nobody could see or steer it."""
    tried = f"explore {thing}"
    hint = f"`orlop tree {thing}` and `orlop report {thing} -o FILE` need none"
    for stream, name in ((sys.stdout, "standard output"), (sys.stdin, "standard input")):
        if stream is None or not stream.isatty():
            raise FailedPrecondition(tried, f"{name} is not a terminal", hint=hint)
    if os.environ.get("TERM") == "dumb":
        raise FailedPrecondition(tried, "the terminal cannot move its cursor (TERM is dumb)", hint=hint)
    columns, lines = os.get_terminal_size(sys.stdout.fileno())
    if 0 < columns < _SMALLEST[0] or 0 < lines < _SMALLEST[1]:
        least = f"{_SMALLEST[0]} by {_SMALLEST[1]}"
        raise FailedPrecondition(
            tried, f"the terminal has {columns} by {lines} characters, of {least} at least"
        )


def _ended(app: Explorer, thing: str) -> int | None:
    """What is left to say once the screen is back: exit codes as `exits` has them."""
    if app.problem is not None:
        raise app.problem
    if app.return_code == 130:
        raise Cancelled(f"explore {thing}", "stopped while it was read")
    if app.return_code == 1:
        raise Internal(f"explore {thing}", "it ended by an error of its own, which stands above")
    return app.return_code
