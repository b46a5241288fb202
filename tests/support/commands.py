"""All commands of the command line, those below others among them."""

from __future__ import annotations

from collections.abc import Iterator

import click

from orlop.cli.app import MODULES, found_verb
from orlop.cli.declared import clicks


def all_commands() -> Iterator[tuple[str, click.Command]]:
    """Each with its words: ``pull``, ``checkpoint``, ``checkpoint list``."""
    for name in MODULES:
        found = found_verb(name)
        assert found is not None, name
        yield from _with_inner(name, clicks(found))


def _with_inner(name: str, command: click.Command) -> Iterator[tuple[str, click.Command]]:
    yield name, command
    if isinstance(command, click.Group):
        for inner in command.commands.values():
            yield from _with_inner(f"{name} {inner.name}", clicks(inner))
