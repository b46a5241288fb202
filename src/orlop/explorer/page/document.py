"""The page around the sections of a report: its head, its policy, its headline."""

from __future__ import annotations

import base64
import hashlib
from html import escape
from importlib.resources import files

from orlop.explorer.page import sections, told
from orlop.explorer.page.facts import facts_of
from orlop.explorer.page.text import count_text, date_text, percent_text, plain, shown, size_text
from orlop.explorer.survey import Node, Survey
from orlop.version import __version__

__all__ = ["MOST", "render"]

MOST = 2_000_000  # bytes of a page; what its lists are cut off at makes it less, and a test holds it
_TOOLS = (
    "<div class=tools><input type=search id=search placeholder='Look for a path'"
    " aria-label='Look for a path in the lists'><span id=found class=soft role=status></span></div>\n"
)
_NAMES = 6  # further names of an image that the headline has


def render(survey: Survey, tree: Node, *, title: str = "") -> str:
    """The page, as text to be written as UTF-8.

    ``tree`` is `orlop.explorer.survey.tree_at` of the same thing, all layers; ``title`` stands in the
    headline in place of the thing's name.
    """
    style, script = _own("style.css"), _own("script.js")
    policy = (
        f"default-src 'none'; style-src '{_hash(style)}'; script-src '{_hash(script)}'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    facts = facts_of(tree)
    parts = [
        sections.changes(survey, facts),
        sections.layers(survey),
        sections.sizes(survey, tree),
        sections.largest(facts),
        sections.waste(survey),
        sections.kinds(facts),
        told.configuration(survey),
        told.history(survey),
    ]
    parts = [part for part in parts if part.html]
    links = "".join(f"<a href=#{part.id}>{part.link}</a>" for part in parts)
    name = title or _name(survey)
    return "".join(
        (
            "<!doctype html>\n<html lang=en>\n<head>\n<meta charset=utf-8>\n",
            f'<meta http-equiv=Content-Security-Policy content="{policy}">\n',
            '<meta name=viewport content="width=device-width, initial-scale=1">\n',
            '<meta name=color-scheme content="light dark">\n<meta name=referrer content=no-referrer>\n',
            '<link rel=icon href="data:,">\n',
            f"<title>{escape(plain(name, 120))}</title>\n<style>{style}</style>\n</head>\n<body>\n",
            _headline(survey, name),
            f"<div class=row><nav aria-label=Contents>{links}</nav>\n{_TOOLS}</div>\n",
            "</header>\n<main>\n",
            *(part.html for part in parts),
            f"</main>\n<footer>Made by orlop {escape(__version__)}. Sizes are in powers of ten.</footer>\n",
            f"<script>{script}</script>\n</body>\n</html>\n",
        )
    )


def _own(name: str) -> str:
    """A file of this package.  It holds nothing that would end its element."""
    return (files(__package__) / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _name(survey: Survey) -> str:
    """A thing by the name that people know: of an image asked for by its ID, a name."""
    if survey.kind == "root" or not survey.names or "#" in survey.thing:
        return survey.thing
    return (
        survey.thing
        if survey.thing in survey.names
        else min(survey.names, key=lambda name: (len(name), name))
    )


def _headline(survey: Survey, name: str) -> str:
    what = "Prepared root" if survey.kind == "root" else "Container image"
    also = [other for other in survey.names if other != name]
    said: list[str] = []
    if survey.kind == "root":
        said += [f"Prepared from <bdi>{shown(other, 160)}</bdi>" for other in also[:1]]
    elif also:
        more = f" and {len(also) - _NAMES} more" if len(also) > _NAMES else ""
        names = ", ".join(f"<bdi>{shown(other, 160)}</bdi>" for other in also[:_NAMES])
        said.append(f"Also {names}{more}")
    if survey.created:
        said.append(f"made {shown(date_text(survey.created), 40)}")
    said.append(f"<code>{shown(survey.id, 100)}</code>")
    keys = [
        ("size of its files", size_text(survey.shown)),
        (f"in {_layers(survey)}", size_text(survey.size)),
        ("files and folders", count_text(survey.entries)),
        ("wasted by hidden files", percent_text(survey.wasted, survey.content)),
    ]
    return (
        f"<header>\n<p class=over>{what} · {shown(survey.platform, 60)}</p>\n"
        f"<h1><bdi>{shown(name, 200)}</bdi></h1>\n<p class=sub>{' · '.join(said)}</p>\n<dl class=keys>"
        + "".join(f"<div><dt>{text}</dt><dd>{value}</dd></div>" for text, value in keys)
        + "</dl>\n"
    )


def _layers(survey: Survey) -> str:
    """How many layers there are, and whether somebody wrote above them."""
    count = sum(layer.number > 0 for layer in survey.layers)
    text = f"{count_text(count)} layer{'s' if count != 1 else ''}"
    return f"{text} and what was changed" if survey.kind == "root" else text
