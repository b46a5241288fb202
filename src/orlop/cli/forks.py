"""Verbs that make new roots of changed ones, and lead changed ones back: ``fork`` and ``checkpoint``."""

from __future__ import annotations

from orlop.cli import declared as click
from orlop.cli import output
from orlop.cli.roots import labels_of
from orlop.cli.session import (
    Session,
    check_lasting,
    format_options,
    pass_session,
    path_hint,
    progress_options,
    verb,
)
from orlop.hints import TYPE_CHECKING

if TYPE_CHECKING:
    from orlop.cli.progress import ProgressMode
    from orlop.images.forks import CheckpointInfo

__all__ = ["checkpoint_verb", "create_verb", "drop_verb", "fork_verb", "list_verb", "rollback_verb"]


@verb(
    "fork",
    "orlop fork /srv/a /srv/b /srv/c",
    "orlop fork --mount /srv/a /srv/try-{1..100}",
    "orlop fork --move /srv/a /srv/b",
)
@click.argument("path", metavar="PATH")
@click.argument("new_paths", metavar="NEW...", nargs=-1, required=True)
@click.option("--move", is_flag=True, help="Give PATH up: the first NEW takes its place.  It must be idle.")
@click.option("--mount", is_flag=True, help="Mount the new roots, too.")
@click.option(
    "--label", "labels", metavar="KEY=VALUE", multiple=True, help="A label more than those of PATH."
)
@click.option("--json", "as_json", is_flag=True, help="Print the new roots, with their mounts, as JSON.")
@progress_options
@pass_session
def fork_verb(
    session: Session,
    path: str,
    new_paths: tuple[str, ...],
    move: bool,
    mount: bool,
    labels: tuple[str, ...],
    as_json: bool,
    quiet: bool,
    progress: ProgressMode,
) -> None:
    """Make new roots with the content of a prepared one.

    PATH stays as it is, and may be in use.  What was written to it is read once, however many roots are made,
    and not again before something changes.  All of them are made, or none.  Prints each path; `orlop mounts`
    has the mounts.
    """
    from orlop.images.forks import ForkOptions

    options = ForkOptions(move=move, mount=mount, labels=labels_of(labels))
    if mount:
        check_lasting(f"fork {path}")
    with (
        session.store() as store,
        session.call(quiet=quiet, progress=progress, of=("fork", path)) as call,
        path_hint(path),
    ):
        made = store.verbs.fork(path, new_paths, options=options, call=call)
    if as_json:
        output.write_json(made)
    else:
        output.write("".join(f"{root.path}\n" for root in made))


class _Checkpoints(click.Group):
    """``checkpoint PATH NAME`` is ``checkpoint create PATH NAME``: no path is called as a subcommand is."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Put the word in that was left out."""
        if args and args[0] not in {*self.commands, *ctx.help_option_names}:
            args = ["create", *args]
        return super().parse_args(ctx, args)


@click.group(
    "checkpoint",
    cls=_Checkpoints,
    invoke_without_command=True,
    epilog="\b\nExamples:\n  orlop checkpoint /srv/a before-upgrade\n  orlop checkpoint list /srv/a\n"
    "  orlop checkpoint rollback /srv/a before-upgrade",
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.pass_context
def checkpoint_verb(ctx: click.Context) -> None:
    """Remember what a prepared root is, and go back to it.

    `orlop checkpoint PATH NAME` is `orlop checkpoint create PATH NAME`.
    """
    if ctx.invoked_subcommand is None:
        output.write(ctx.get_help() + "\n")


@verb(
    "create",
    "orlop checkpoint create /srv/a before-upgrade",
)
@click.argument("path", metavar="PATH")
@click.argument("name", metavar="NAME")
@click.option("--json", "as_json", is_flag=True, help="JSON; its fields are stable.")
@progress_options
@pass_session
def create_verb(
    session: Session, path: str, name: str, as_json: bool, quiet: bool, progress: ProgressMode
) -> None:
    """Remember what a prepared root is now.

    The root stays usable, and may be in use.  Prints the name.
    """
    with (
        session.store() as store,
        session.call(quiet=quiet, progress=progress, of=("checkpoint", path)) as call,
        path_hint(path),
    ):
        made = store.verbs.checkpoint(path, name, call=call)
    if as_json:
        output.write_json(made)
    else:
        output.write(f"{made.name}\n")


@verb(
    "list",
    "orlop checkpoint list /srv/a",
)
@click.argument("path", metavar="PATH")
@format_options
@pass_session
def list_verb(session: Session, path: str, form: str = "table") -> None:
    """List the checkpoints of a prepared root, the oldest first.

    SIZE is of the layers that the root's own image does not have.
    """
    columns: list[output.Column] = [
        ("NAME", lambda point: point.name),
        ("CREATED", lambda point: output.ago(point.created)),
        ("SIZE", lambda point: output.size_text(point.size)),
    ]
    with session.store() as store, path_hint(path):
        found: list[CheckpointInfo] = store.verbs.checkpoints(path)
    output.show_list(found, columns, form=form, names=lambda point: point.name)


@verb(
    "rollback",
    "orlop checkpoint rollback /srv/a before-upgrade",
)
@click.argument("path", metavar="PATH")
@click.argument("name", metavar="NAME")
@progress_options
@pass_session
def rollback_verb(session: Session, path: str, name: str, quiet: bool, progress: ProgressMode) -> None:
    """Make a prepared root what it was at a checkpoint.

    What was written since is deleted; all checkpoints stay.  The root must be idle: where orlop has mounted
    it itself, it is mounted anew.  Prints the path.
    """
    with session.store() as store, session.call(quiet=quiet, progress=progress) as call, path_hint(path):
        output.write(f"{store.verbs.rollback(path, name, call=call).path}\n")


@verb(
    "drop",
    "orlop checkpoint drop /srv/a before-upgrade",
)
@click.argument("path", metavar="PATH")
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
@pass_session
def drop_verb(session: Session, path: str, names: tuple[str, ...]) -> None:
    """Forget checkpoints; what nothing else needs of them is deleted.

    Prints each name.
    """
    with session.store() as store, path_hint(path):
        for name in names:
            store.verbs.drop_checkpoint(path, name)
            output.write(f"{name}\n")


for _command in (create_verb, list_verb, rollback_verb, drop_verb):
    checkpoint_verb.add_command(_command)
