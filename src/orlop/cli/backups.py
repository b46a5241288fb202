"""Verbs about copies of the whole store: ``backup``, ``restore``."""

from __future__ import annotations

from orlop.cli import declared as click
from orlop.cli import output
from orlop.cli.session import Session, pass_session, progress_options, verb
from orlop.errors import Unimplemented
from orlop.hints import TYPE_CHECKING

if TYPE_CHECKING:
    from orlop.cli.progress import ProgressMode

__all__ = ["backup_verb", "restore_verb"]

INCOMPLETE = 5  # as FAILED_PRECONDITION: images of the backup that lack layers


@verb(
    "backup",
    "orlop backup /mnt/orlop-2026-11-27.tar",
    "orlop backup --content --json /mnt/orlop.tar | jq .size",
)
@click.argument("destination", metavar="DEST", type=click.Path())
@click.option("--content", is_flag=True, help="With the layers: all that is needed without a registry.")
@click.option("--json", "as_json", is_flag=True, help="JSON; its fields are stable.")
@progress_options
@pass_session
def backup_verb(
    session: Session, destination: str, content: bool, as_json: bool, quiet: bool, progress: ProgressMode
) -> None:
    """Write the metadata, and the layers if asked, to a new file.

    The store may be in use meanwhile.  Prepared roots are not in a backup: commit what is to be kept of
    them.  With --host the file is written where the daemon runs.
    """
    with session.store() as store, session.call(quiet=quiet, progress=progress, of=("backup",)) as call:
        done = store.backup(destination, content=content, call=call)
    if as_json:
        output.write_json(output.plain(done))
        return
    output.write(f"{done.path}\n")
    if quiet:
        return
    layers = _count(done.layers, "layer") if done.content else "no layers"
    output.note(f"{_count(done.images, 'image')}, {layers}, {output.size_text(done.size)}")
    if done.roots:
        output.note(f"{_count(done.roots, 'prepared root')} left out")


@verb(
    "restore",
    "orlop restore /mnt/orlop.tar",
    "orlop --root /srv/new restore --pull /mnt/orlop-2026-11-27.tar",
)
@click.argument("source", metavar="SOURCE", type=click.Path())
@click.option("-f", "--force", is_flag=True, help="Move names that mean other images here.")
@click.option("--pull", is_flag=True, help="Fetch layers that are not in the backup from where they came.")
@click.option("--json", "as_json", is_flag=True, help="JSON; its fields are stable.")
@progress_options
@pass_session
def restore_verb(
    session: Session,
    source: str,
    force: bool,
    pull: bool,
    as_json: bool,
    quiet: bool,
    progress: ProgressMode,
) -> int:
    """Read a backup into the store: its images, all of them or none.

    What is in the store stays.  Every byte is verified.  Prints the names that were restored.  Where images
    lack layers, which a backup without --content does not have, the exit code is 5 and they are listed on
    standard error.
    """
    from orlop.images.backups.restore import restore

    if session.target.host is not None:
        raise Unimplemented(
            f"restore {source}",
            "a daemon does not restore",
            hint="leave out --host: a daemon may go on running",
        )
    target = session.target
    with session.call(quiet=quiet, progress=progress, of=("restore",)) as call:
        done = restore(
            source,
            target.root_path,
            target.run_path,
            settings=target.settings(),
            force=force,
            pull=pull,
            call=call,
        )
    if as_json:
        output.write_json(output.plain(done))
    else:
        output.write("".join(f"{name}\n" for name in done.names))
    for image in done.missing:
        again = f"; 'orlop restore --pull {source}' fetches them" if image.digest and not pull else ""
        output.note(f"{image.name} is not restored: {image.reason}{again}")
    return INCOMPLETE if done.missing else 0


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
