"""The verb that lets things out: ``export``."""

from __future__ import annotations

import os
import sys

from orlop.cli import declared as click
from orlop.cli import output
from orlop.cli.environment import source_date_epoch
from orlop.cli.exits import Misuse
from orlop.cli.quantities import size_of
from orlop.cli.session import Session, pass_session, progress_options, verb
from orlop.hints import TYPE_CHECKING
from orlop.images.exports import EXPORT_FORMATS

if TYPE_CHECKING:
    from orlop.cli.progress import ProgressMode
    from orlop.images.exports import Exported, ExportFormat

__all__ = ["export_verb"]

_OUTPUT = {"-", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"}  # nothing else may be written there then


@verb(
    "export",
    "orlop export -o alpine.tar alpine",
    "orlop export -o images.docker.tar alpine localhost/mine",
    "orlop export localhost/mine | docker load",
    "orlop export --all-platforms -o layout/ alpine",
    "orlop export -o rootfs.squashfs localhost/mine",
    "orlop export --format tar -o - /srv/a | zstd > a.tar.zst",
    "orlop export --size 4G -o disk.ext4 /srv/a",
)
@click.argument("things", metavar="IMAGE...|PATH", nargs=-1, required=True)
@click.option(
    "-o",
    "--output",
    "destination",
    metavar="FILE|FOLDER|-",
    default="-",
    help="Where to.  [default: standard output]",
)
@click.option(
    "--format",
    "form",
    type=click.Choice(EXPORT_FORMATS),
    help="What to write.  [default: what the name of FILE says]",
)
@click.option("--platform", metavar="OS/ARCH[/VARIANT]", help="Instead of what the name means here.")
@click.option("--all-platforms", is_flag=True, help="The index, with all that is in it.")
@click.option("--recompress", is_flag=True, help="Compress anew where blobs are gone; new digest.")
@click.option("--compression", type=click.Choice(["gzip", "zstd", "none"]), help="Of layers compressed here.")
@click.option("--level", type=click.IntRange(1), help="How much: gzip 1 to 9, zstd 1 to 19.")
@click.option("--size", metavar="SIZE", help="Of an ext4 image.  [default: as large as needed]")
@click.option("-f", "--force", is_flag=True, help="Replace a file, or an image's name in a layout.")
@click.option("--json", "as_json", is_flag=True, help="JSON; its fields are stable.")
@progress_options
@pass_session
def export_verb(
    session: Session,
    things: tuple[str, ...],
    destination: str,
    form: ExportFormat | None,
    platform: str | None,
    all_platforms: bool,
    recompress: bool,
    compression: str | None,
    level: int | None,
    size: str | None,
    force: bool,
    as_json: bool,
    quiet: bool,
    progress: ProgressMode,
) -> None:
    """Write images to an archive or a layout, or one file system to a file.

    oci and oci-dir are an OCI layout as a tar and as a folder, docker is what `docker save` writes; these
    hold any number of IMAGEs.  tar, erofs, squashfs and ext4 hold the file system of one IMAGE, or of the
    prepared root at PATH, as it is now.  Without --format the name of FILE says it (a.docker.tar,
    a.squashfs, layout/); else it is oci, and of a PATH tar.

    A file is whole or not there.  In a layout that is there already the rest stays.  Prints where it went.
    """
    to_output = destination in _OUTPUT
    if to_output and as_json:
        raise Misuse("--json writes to standard output, and so would the archive", "give a file with -o")
    if to_output and sys.stdout is not None and sys.stdout.isatty():
        raise Misuse("the archive would go to the terminal", "give a file with -o, or a pipe")
    if to_output and form == "oci-dir":
        raise Misuse("a folder cannot go to standard output", "give one with -o, or use --format oci")
    of = ("export",) if to_output else ("export", destination)
    with session.store() as store, session.call(quiet=quiet, progress=progress, of=of) as call:
        done: Exported = store.export(
            things,
            output.Binary() if to_output else destination,
            format=form,
            platform=platform,
            all_platforms=all_platforms,
            recompress=recompress,
            compression=compression,
            level=level,
            created=source_date_epoch(os.environ),
            size=size_of(size) if size is not None else None,
            force=force,
            call=call,
        )
    if as_json:
        output.write_json(done)
    elif not to_output:
        output.write(f"{done.path}\n")
        if not quiet:
            output.note(f"{done.format}, {output.size_text(done.size)}: {', '.join(done.names)}")
