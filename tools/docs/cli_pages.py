"""The command line's reference in Markdown: a page for each verb, and one that lists them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from commands import HEADINGS, Command, Option, Paragraph, whole

from orlop.cli.exits import EXIT_CODES

_SPECIAL = re.compile(r"([\\`*_{}\[\]<>#|$~^])")


def pages() -> dict[str, str]:
    """All pages by their path below the documentation."""
    orlop = whole()
    verbs = {command.words[1]: command for command in orlop.inner}
    found = {"reference/cli/index.md": _index(orlop, verbs)}
    for name, command in verbs.items():
        found[f"reference/cli/{name}.md"] = "\n".join(_verb(command, 1))
    return found


def _index(orlop: Command, verbs: dict[str, Command]) -> str:
    lines = ["# Every verb, with its options", "", *_filled(orlop.about), "```text", orlop.usage, "```", ""]
    lines += ["Each page here is also a man page: `man orlop-pull`, and what `orlop pull --help` prints.", ""]
    for heading, names in HEADINGS.items():
        lines += [f"## {heading}", "", "| verb | |", "| --- | --- |"]
        known = [name for name in names if name in verbs]
        lines += [f"| [`{name}`]({name}.md) | {_plain(verbs[name].summary)} |" for name in known]
        lines.append("")
    lines += ["## Options before the verb", "", *_options(orlop.options)]
    lines += ["## Examples", "", *_filled(orlop.closing)]
    lines += ["## Exit codes", "", "| code | class | |", "| --- | --- | --- |"]
    lines += [f"| {code} | {_plain(', '.join(names))} | {_plain(what)} |" for code, names, what in EXIT_CODES]
    lines += ["", "They are stable: [Exit codes](../../exit-codes.md) says more.", ""]
    lines += ["```{toctree}", ":hidden:", ":titlesonly:", "", *sorted(verbs), "```", ""]
    return "\n".join(lines)


def _verb(command: Command, level: int) -> Iterator[str]:
    yield from (f"{'#' * level} {' '.join(command.words)}", "")
    yield from ("```text", command.usage, "```", "")
    yield from _filled(command.about)
    yield from _filled(command.closing)
    if command.options:
        yield from ("**Options**", "")
        yield from _options(command.options)
    for one in command.inner:
        yield from _verb(one, level + 1)
    if level == 1:
        yield "[Options before the verb](index.md#options-before-the-verb) and"
        yield from ("[exit codes](index.md#exit-codes) are those of every verb.", "")


def _filled(paragraphs: Iterable[Paragraph]) -> Iterator[str]:
    for one in paragraphs:
        if one.kept:
            yield from ("```text", one.text, "```", "")
        else:
            yield from (_plain(one.text), "")


def _options(options: Iterable[Option]) -> Iterator[str]:
    for one in options:
        yield from (f"`{one.term}`", f": {_plain(one.text)}", "")


def _plain(text: str) -> str:
    """Text in which Markdown finds nothing to set."""
    return _SPECIAL.sub(r"\\\1", text)
