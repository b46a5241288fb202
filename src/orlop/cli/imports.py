"""``orlop import``: images, and root file systems that become one, from files, folders and pipes."""

from __future__ import annotations

import os
from datetime import UTC, datetime

from orlop.cli import declared as click
from orlop.cli import output
from orlop.cli.environment import source_date_epoch
from orlop.cli.exits import Misuse
from orlop.cli.session import Session, pass_session, progress_options, verb
from orlop.cli.stdin import check_piped, piped
from orlop.cli.transfer import platform_options
from orlop.hints import TYPE_CHECKING
from orlop.images.imports import FORMATS

if TYPE_CHECKING:
    from orlop.cli.progress import ProgressMode
    from orlop.images.imports import ImportFormat

__all__ = ["created_of", "import_verb", "owner_of"]


@verb(
    "import",
    "orlop import ./image.tar",
    "orlop import ./oci-layout localhost/app",
    "orlop import podman:alpine",
    "podman save alpine | orlop import -",
    """orlop import -c 'CMD ["/bin/sh"]' rootfs.tar.xz localhost/base:1""",
    "orlop import --owner 0:0 ./rootfs localhost/base:2",
)
@click.argument("source", metavar="SOURCE", type=click.Path())
@click.argument("positional", metavar="[NAME]", required=False)
@click.option("--name", metavar="NAME", help="The same as NAME.")
@click.option(
    "--format",
    "form",
    type=click.Choice(FORMATS),
    help="What SOURCE is, where its content should not decide.",
)
@click.option("-f", "--force", is_flag=True, help="Move names that mean other images.")
@click.option(
    "-c",
    "--change",
    "changes",
    metavar="INSTRUCTION",
    multiple=True,
    help="Of a root file system: edit the config as a Dockerfile would: 'ENV A=b'.  May be repeated.",
)
@click.option("-a", "--author", default="", help="Of a root file system: who made it.")
@click.option("-m", "--message", default="", help="Of a root file system: what it is.")
@click.option(
    "--created",
    metavar="TIME",
    help="Of a root file system: the time to record, 2026-01-31T12:00:00Z, or seconds since 1970.",
)
@click.option("--owner", metavar="UID:GID", help="Of a folder: the ids that everything gets, as in 0:0.")
@platform_options
@click.option("--json", "as_json", is_flag=True, help="JSON; its fields are stable.")
@progress_options
@pass_session
def import_verb(
    session: Session,
    source: str,
    positional: str | None,
    name: str | None,
    form: ImportFormat | None,
    force: bool,
    changes: tuple[str, ...],
    author: str,
    message: str,
    created: str | None,
    owner: str | None,
    platform: tuple[str, ...],
    all_platforms: bool,
    as_json: bool,
    quiet: bool,
    progress: ProgressMode,
) -> None:
    """Import images, or a root file system as one.

    SOURCE is an OCI layout (a folder or a tar), what `docker save` or `podman save` wrote, or a root file
    system (a folder or a tar); its content says which.  A tar may be compressed by gzip, zstd, xz or bzip2; -
    reads it from standard input.  podman:IMAGE and docker:IMAGE take an image from there.  Prints the names
    of the images that it brought: all that are in it, or none where one of the names means another image
    here, unless --force.
    """
    if positional and name:
        raise Misuse("the name is given twice", "leave out --name")
    epoch = source_date_epoch(os.environ)
    moment = epoch if created is None else created_of(created)
    ids = owner_of(owner) if owner is not None else None
    if source == "-":
        check_piped("… | orlop import -")
    with session.store() as store, session.call(quiet=quiet, progress=progress, of=("import",)) as call:
        found = store.load(
            piped("import -", call) if source == "-" else source,
            name=positional or name,
            platform=platform,
            all_platforms=all_platforms,
            format=form,
            replace=force,
            changes=changes,
            author=author,
            message=message,
            created=moment,
            owner=ids,
            newest=epoch,
            call=call,
        )
    if as_json:
        output.write_json(found)
        return
    for info in found:
        output.write(f"{info.name}\n")


def created_of(text: str) -> int:
    """Seconds since 1970 of a time as people write it; without a zone it is UTC."""
    number = text.isascii() and text.removeprefix("-").isdigit()
    if number and len(text) <= 12:
        return int(text)
    try:
        moment = datetime.fromisoformat("" if number else text)
    except ValueError as exc:
        raise Misuse(f"{text!r} is no time", "write 2026-01-31T12:00:00Z, or seconds since 1970") from exc
    return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp())


def owner_of(text: str) -> tuple[int, int]:
    """``UID:GID``, or one number for both."""
    uid, colon, gid = text.partition(":")
    gid = gid if colon else uid
    if not (text.isascii() and uid.isdigit() and gid.isdigit() and len(uid) <= 10 and len(gid) <= 10):
        raise Misuse(f"{text!r} are no ids", "write two numbers: 0:0")
    return int(uid), int(gid)
