"""The command of all verbs as click has it: how a verb is found, and what is said of one that is none.

Imported with click, where words are not plain (`orlop.cli.plain`).
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import click
from click.shell_completion import CompletionItem

from orlop.cli import frontpage
from orlop.cli.app import MODULES, QUESTION, found_verb
from orlop.cli.declared import clicks
from orlop.cli.exits import Misuse
from orlop.cli.frontpage import VERBS
from orlop.errors import from_oserror

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["VerbGroup"]


class VerbGroup(click.Group):
    """A group whose verbs are imported when they are asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All verbs, in the order of the help."""
        return list(MODULES)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The verb of a name."""
        found = found_verb(cmd_name)
        if found is None or QUESTION not in os.environ:
            return None if found is None else clicks(found)
        from orlop.cli.completing import dress

        return dress(clicks(found), cmd_name)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem[str]]:
        """The verbs that a word may become, with what the help says of them; no verb is imported for it."""
        texts = {verb: text for verbs in VERBS.values() for verb, (_, text) in verbs.items()}
        found = [
            CompletionItem(verb, help=text) for verb, text in texts.items() if verb.startswith(incomplete)
        ]
        return [*found, *click.Command.shell_complete(self, ctx, incomplete)]

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the verb; for a mistyped one suggest what was meant."""
        word = args[0]
        if word not in MODULES and not word.startswith("-"):
            raise Misuse(f"no such verb: {word}", _suggestion(args), ctx=ctx)
        return super().resolve_command(ctx, args)

    def get_help(self, ctx: click.Context) -> str:
        """The page that a start with ``--help`` alone prints, too."""
        return frontpage.painted(frontpage.page(ctx.command_path, frontpage.width_of())).rstrip("\n")

    def invoke(self, ctx: click.Context) -> object:
        """Run the verb.  An OSError that reached this far gets the class of its errno."""
        try:
            return super().invoke(ctx)
        except OSError as exc:
            raise from_oserror(ctx.invoked_subcommand or "", exc) from exc


def _suggestion(words: Sequence[str]) -> str:
    from orlop.cli.elsewhere import instead, nearest

    said = instead(words)
    meant = "" if said else nearest(words[0], MODULES)
    return said or (f"did you mean `orlop {meant}`?" if meant else "`orlop --help` lists them")
