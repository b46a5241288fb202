"""A report on an image or a prepared root: asked for, looked at and rendered in one call."""

from __future__ import annotations

from typing import TYPE_CHECKING

from orlop.explorer.page import render
from orlop.explorer.survey import survey, tree_at
from orlop.observe import Call

if TYPE_CHECKING:
    from orlop.facade.store import Store

__all__ = ["report"]


def report(
    store: Store, thing: str, *, title: str = "", platform: str | None = None, call: Call | None = None
) -> str:
    """One self-contained page of HTML about an image (also ``IMAGE#N``) or a prepared root's path.

    To be written as UTF-8.  Raises as `orlop.explorer.survey.survey` does.
    """
    call = call or Call()
    tree = tree_at(store, thing, platform=platform, call=call)
    found = survey(store, thing, platform=platform, tree=tree, call=call)
    return render(found, tree, title=title)
