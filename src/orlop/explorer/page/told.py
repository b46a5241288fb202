"""The sections of a report that an image's config tells: how it is to be run, and how it came to be."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from orlop.explorer.page.tables import (
    EMPTY,
    NONE,
    Cell,
    Column,
    Section,
    count_cell,
    cut_off,
    layer_cell,
    section,
    size_cell,
    table,
)
from orlop.explorer.page.text import date_text, shown
from orlop.explorer.survey import Survey

__all__ = ["command_html", "configuration", "history", "readable"]

HISTORY = 150
PAIRS = 80  # of environment variables, labels and such
_COMMAND = 900  # characters
_LONGEST = 4_000  # characters of a command that are looked at
_FOLD = 220  # characters of a command that stand open
_VALUE = 400
_NOTE = 200
# What docker, BuildKit and buildah put around a command.  A stranger's text: no pattern may go back far.
_NOP = re.compile(r"(?s)(?:/bin/)?(?:ba|da)?sh -c #\(nop\)\s*(.*)")
_RUN = re.compile(
    r"(?s)(?:RUN )?(?:\|\d{1,4} .*? )?/bin/(?:ba|da)?sh (?:-[a-z]+ (?:pipefail )?)*?-[a-z]*c (.*)"
)
_AND = re.compile(r"&&\s+")


def command_html(text: str, comment: str = "", *, limit: int = _COMMAND) -> str:
    """What a line of the history says of itself; a long command is folded."""
    note = f"<div class=soft>{shown(comment, _NOTE)}</div>" if comment else ""
    if not text:
        return note or "<span class=none>not said</span>"
    tidy = readable(text)
    html = f"<pre>{shown(tidy, limit, lines=True)}</pre>"
    if len(tidy) <= _FOLD and tidy.count("\n") <= 5:
        return html + note
    first = tidy.split("\n", 1)[0][:90]
    return f"<details><summary><span class=m>{shown(first, 90)} …</span></summary>{html}</details>{note}"


def readable(command: str) -> str:
    r"""A command as one would have written it in a Dockerfile, a step a line.

    >>> readable("/bin/sh -c apt-get update &&     apt-get install -y git")
    'RUN apt-get update \\\n && apt-get install -y git'
    >>> readable("/bin/sh -c #(nop)  CMD [\"bash\"]")
    'CMD ["bash"]'
    """
    text = command[:_LONGEST].strip()
    if nop := _NOP.fullmatch(text):
        return nop[1]
    text = text.removesuffix("# buildkit").rstrip()
    if run := _RUN.fullmatch(text):
        text = f"RUN {run[1].strip()}"
    first, *steps = _AND.split(text)
    return " \\\n && ".join([_without_break(step) for step in (first, *steps)])


def _without_break(step: str) -> str:
    """A step without the backslash and the blanks before the next one."""
    step = step.rstrip(" \t")
    return step[:-2].rstrip(" \t") if step.endswith("\\\n") else step


def configuration(survey: Survey) -> Section:
    """How the image wants to be run."""
    settings = survey.config.get("config")
    settings = settings if isinstance(settings, dict) else {}
    pairs: list[tuple[str, str]] = []
    for heading, key in (
        *(("Entrypoint", "Entrypoint"), ("Command", "Cmd"), ("User", "User"), ("Folder", "WorkingDir")),
        *(
            ("Ports", "ExposedPorts"),
            ("Volumes", "Volumes"),
            ("Shell", "Shell"),
            ("Stop signal", "StopSignal"),
        ),
        ("Health check", "Healthcheck"),
    ):
        if settings.get(key):
            pairs.append((heading, f"<span class=m>{shown(_worded(key, settings[key]), _VALUE)}</span>"))
    for heading, key in (("Author", "author"), ("Platform", "")):
        value = survey.config.get(key) if key else survey.platform
        if value:
            pairs.append((heading, shown(_worded(key, value), _VALUE)))
    environment = settings.get("Env")
    labels = settings.get("Labels")
    found = (
        [_split(one) for one in environment if isinstance(one, str)] if isinstance(environment, list) else []
    )
    named = (
        [(str(key), _worded("", value)) for key, value in sorted(labels.items())]
        if isinstance(labels, dict)
        else []
    )
    listed = "".join(f"<dt>{heading}</dt><dd>{html}</dd>" for heading, html in pairs)
    return section(
        "configuration",
        "Configuration",
        "What the image says of how it is to be run.",
        f"<dl class=pair>{listed}</dl>\n" if pairs else "",
        _pairs("Environment", found),
        _pairs("Labels", named),
    )


def _split(text: str) -> tuple[str, str]:
    name, _, value = text.partition("=")
    return name, value


def _pairs(heading: str, pairs: Sequence[tuple[str, str]]) -> str:
    if not pairs:
        return ""
    listed = "".join(
        f"<dt class=m>{shown(name, 100)}</dt><dd class=m>{shown(value, _VALUE)}</dd>"
        for name, value in pairs[:PAIRS]
    )
    return f"<h3>{heading}</h3><dl class=pair>{listed}</dl>\n{cut_off(len(pairs), PAIRS, 'entries')}"


def _worded(key: str, value: Any) -> str:  # noqa: ANN401 - whatever a config has
    """A value of a config as one text."""
    if key in {"ExposedPorts", "Volumes"} and isinstance(value, dict):
        return ", ".join(sorted(map(str, value)))
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def history(survey: Survey) -> Section:
    """How the image came to be, oldest first."""
    if not survey.history:
        return EMPTY
    columns = [
        Column(head="When", css="soft nw"),
        Column(head="Layer", css="nw"),
        Column(head="Size", css="r"),
        Column(head="What was done", css="cmd wide-cell"),
    ]
    rows = (
        (
            Cell(shown(date_text(line.created), 40)),
            layer_cell(line.layer) if line.layer else Cell(f"<span class=none>{NONE}</span>", 0),
            size_cell(line.size) if line.layer else count_cell(0),
            Cell(command_html(line.created_by, line.comment)),
        )
        for line in survey.history[:HISTORY]
    )
    return section(
        "history",
        "History",
        "All that its config tells, oldest first; a line without a layer changed only the config.",
        table("history-list", columns, rows, files=False, short=20),
        cut_off(len(survey.history), HISTORY, "lines"),
    )
