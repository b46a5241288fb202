"""What the command line says of itself, as values: each verb with its usage, options and examples.

Read from click's own objects, so a page cannot say what the program does not.  `cli_pages` writes Markdown of
it, `man_pages` roff.  Needs the project, and nothing beside it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

import click

from orlop.cli.app import VERBS, app
from orlop.cli.declared import clicks

HEADINGS = {heading: tuple(verbs) for heading, verbs in VERBS.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Paragraph:
    """Text to be filled, or lines to be kept as they are (click's backspace)."""

    text: str
    kept: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """One option as the help writes it."""

    term: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """A verb, or a verb of a verb; ``words`` are what is typed, ``inner`` the verbs below it."""

    words: tuple[str, ...]
    usage: str
    summary: str
    about: tuple[Paragraph, ...]
    options: tuple[Option, ...]
    closing: tuple[Paragraph, ...]
    inner: tuple[Command, ...] = field(default=())

    @property
    def name(self) -> str:
        """As a man page and a file are called: ``orlop-artifact-push``."""
        return "-".join(self.words)

    def all(self) -> Iterator[Command]:
        """This one and all below it."""
        yield self
        for one in self.inner:
            yield from one.all()


def whole() -> Command:
    """The program, with every verb below it."""
    return _read(clicks(app), None, "orlop")


def _read(command: click.Command, parent: click.Context | None, word: str) -> Command:
    ctx = click.Context(command, parent=parent, info_name=word, **command.context_settings)
    words = tuple(ctx.command_path.split())
    inner: list[Command] = []
    if isinstance(command, click.Group):
        for name in command.list_commands(ctx):
            verb = command.get_command(ctx, name)
            assert verb is not None, name
            if not verb.hidden:
                inner.append(_read(clicks(verb), ctx, name))
    options = (param for param in command.get_params(ctx) if isinstance(param, click.Option))
    records = (param.get_help_record(ctx) for param in options)
    about = tuple(_paragraphs(command.help or ""))
    return Command(
        words=words,
        usage=" ".join([*words, *command.collect_usage_pieces(ctx)]),
        summary=command.get_short_help_str(200).rstrip("."),
        about=about,
        options=tuple(Option(term=term, text=" ".join(text.split())) for term, text in filter(None, records)),
        closing=tuple(_paragraphs(command.epilog or "")),
        inner=tuple(inner),
    )


def _paragraphs(text: str) -> Iterator[Paragraph]:
    for part in re.split(r"\n\s*\n", text.strip()):
        if part.startswith("\b"):
            yield Paragraph(text=part.removeprefix("\b").strip("\n"), kept=True)
        elif part:
            yield Paragraph(text=" ".join(part.split()))
