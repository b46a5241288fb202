"""Write orlop(1) in roff, from what the command line says of itself.

usage: man.py SECONDS    the page's date, since 1970
"""

import re
import sys
from datetime import UTC, datetime

import click

from orlop import __version__
from orlop.cli.app import VERBS, app
from orlop.cli.exits import EXIT_CODES


def roff(text: str) -> str:
    """Text as roff has it: nothing of it is a request, dashes are those of options."""
    text = text.replace("\\", "\\e").replace("-", "\\-")
    return "\n".join(f"\\&{line}" if line.startswith((".", "'")) else line for line in text.split("\n"))


def options(command: click.Command, ctx: click.Context) -> list[str]:
    """A command's options as a list of terms."""
    lines = []
    for param in command.params:
        record = param.get_help_record(ctx)
        if record is not None:
            lines += [".TP", f"\\fB{roff(record[0])}\\fR", roff(" ".join(record[1].split()))]
    return lines


def paragraphs(text: str) -> list[str]:
    """Help as paragraphs; those after a backspace keep their lines."""
    lines = []
    for part in re.split(r"\n\s*\n", text.strip()):
        if part.startswith("\b"):
            lines += [".PP", ".nf", roff(part.removeprefix("\b").strip("\n")), ".fi"]
        else:
            lines += [".PP", roff(" ".join(part.split()))]
    return lines


def page(date: str) -> str:
    """The whole page."""
    ctx = click.Context(app, info_name="orlop")
    lines = [
        f'.TH ORLOP 1 "{date}" "orlop {__version__}" "User Commands"',
        *(".SH NAME", "orlop, orlopd \\- images and root file systems for containers"),
        *(".SH SYNOPSIS", "\\fBorlop\\fR [\\fIOPTIONS\\fR] \\fIVERB\\fR [\\fIARGS\\fR]..."),
        *(".br", "\\fBorlopd\\fR [\\fIOPTIONS\\fR]"),
        *(".SH DESCRIPTION", *paragraphs(app.help or "")[1:], *paragraphs(app.epilog or "")),
        *(".PP", "\\fBorlopd\\fR is \\fBorlop daemon\\fR, with the options of both."),
        *(".SH OPTIONS", *options(app, ctx)),
    ]
    for heading, verbs in VERBS.items():
        lines.append(f".SH {roff(heading.upper())}")
        for verb in verbs:
            command = app.get_command(ctx, verb)
            assert command is not None
            inner = click.Context(command, parent=ctx, info_name=verb)
            lines.append(f".SS orlop {roff(verb)} {roff(' '.join(command.collect_usage_pieces(inner)))}")
            lines += paragraphs(command.help or "")[1:] + options(command, inner)
            lines += paragraphs(command.epilog or "")
    lines.append(".SH EXIT STATUS")
    for code, _, meaning in EXIT_CODES:
        lines += [".TP", str(code), roff(meaning)]
    lines += [".SH FILES", ".TP", "/etc/orlop/config.toml, ~/.config/orlop/config.toml", "The configuration."]
    lines += [".TP", "/var/lib/orlop, ~/.local/share/orlop", "The store."]
    lines += [".TP", "/run/orlop/socket/orlop.sock", "Where the daemon listens."]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.stdout.write(page(datetime.fromtimestamp(int(sys.argv[1]), UTC).strftime("%Y-%m-%d")))
