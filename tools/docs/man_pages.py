"""Write orlop(1), orlopd(1) and a page for every verb, orlop-VERB(1), in roff.

usage: man_pages.py FOLDER SECONDS    the pages' date, since 1970

The Debian package holds these pages, and its build has no Sphinx: so they are written here, of what
`commands` reads.  `man --warnings` has nothing to say of them: a test.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from commands import HEADINGS, Command, Option, Paragraph, whole

from orlop import __version__
from orlop.cli.exits import EXIT_CODES

FILES = (
    ("/etc/orlop/config.toml, ~/.config/orlop/config.toml", "The configuration."),
    ("/var/lib/orlop, ~/.local/share/orlop", "The store."),
    ("/run/orlop/socket/orlop.sock", "Where the daemon listens."),
)


def roff(text: str) -> str:
    """Text as roff has it: nothing of it is a request, dashes are those of options."""
    text = text.replace("\\", "\\e").replace("-", "\\-")
    text = text.replace("…", "...").replace("→", "\\(->").replace("\u00d7", "\\(mu")
    return "\n".join(f"\\&{line}" if line.startswith((".", "'")) else line for line in text.split("\n"))


def pages(date: str) -> dict[str, str]:
    """All pages by their file's name."""
    orlop = whole()
    found = {"orlop.1": _program(orlop, date), "orlopd.1": ".so man1/orlop.1\n"}
    for command in orlop.all():
        if command is not orlop:
            found[f"{command.name}.1"] = _verb(command, date)
    return found


def _program(orlop: Command, date: str) -> str:
    lines = [
        _title("ORLOP", date),
        *(".SH NAME", "orlop, orlopd \\- images and root file systems for containers"),
        *(".SH SYNOPSIS", "\\fBorlop\\fR [\\fIOPTIONS\\fR] \\fIVERB\\fR [\\fIARGS\\fR]..."),
        *(".br", "\\fBorlopd\\fR [\\fIOPTIONS\\fR]"),
        *(".SH DESCRIPTION", *_filled(orlop.about[1:])),
        *(".PP", "\\fBorlopd\\fR is \\fBorlop daemon\\fR, with the options of both."),
        *(".SH OPTIONS", *_options(orlop.options)),
    ]
    verbs = {command.words[1]: command for command in orlop.inner}
    for heading, names in HEADINGS.items():
        lines.append(f".SH {roff(heading.upper())}")
        for name in names:
            if name in verbs:
                lines += [".TP", f"\\fBorlop\\-{roff(name)}\\fR(1)", roff(verbs[name].summary + ".")]
    lines += [".SH EXAMPLES", *_filled(orlop.closing)]
    lines.append(".SH EXIT STATUS")
    for code, _, meaning in EXIT_CODES:
        lines += [".TP", str(code), roff(meaning)]
    lines.append(".SH FILES")
    for path, what in FILES:
        lines += [".TP", roff(path), what]
    return "\n".join(lines) + "\n"


def _verb(command: Command, date: str) -> str:
    shown = " ".join(command.words)
    usage = command.usage.removeprefix(shown).strip()
    lines = [
        _title(command.name.upper(), date),
        *(".SH NAME", f"{roff(command.name)} \\- {roff(_small(command.summary))}"),
        *(".SH SYNOPSIS", f"\\fB{roff(shown)}\\fR {roff(usage)}".rstrip()),
        ".SH DESCRIPTION",
        *_filled(command.about),
        *_filled(command.closing),
    ]
    if command.options:
        lines += [".SH OPTIONS", *_options(command.options)]
    if command.inner:
        lines.append(".SH VERBS")
        for one in command.inner:
            lines += [".TP", f"\\fB{roff(one.name)}\\fR(1)", roff(one.summary + ".")]
    parents = ["-".join(command.words[:at]) for at in range(1, len(command.words))]
    lines += [".SH EXIT STATUS", "As of \\fBorlop\\fR(1)."]
    lines += [".SH SEE ALSO", ",\n".join(f"\\fB{roff(name)}\\fR(1)" for name in parents)]
    return "\n".join(lines) + "\n"


def _title(name: str, date: str) -> str:
    return f'.TH {roff(name)} 1 "{date}" "orlop {__version__}" "User Commands"'


def _small(summary: str) -> str:
    return summary[:1].lower() + summary[1:]


def _filled(paragraphs: Iterable[Paragraph]) -> Iterator[str]:
    for one in paragraphs:
        if one.kept:
            yield from (".PP", ".nf", roff(one.text), ".fi")
        else:
            yield from (".PP", roff(one.text))


def _options(options: Iterable[Option]) -> Iterator[str]:
    for one in options:
        yield from (".TP", f"\\fB{roff(one.term)}\\fR", roff(one.text))


def main(folder: Path, seconds: int) -> None:
    """Write all pages."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in pages(datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d")).items():
        (folder / name).write_text(text)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
