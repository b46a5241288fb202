"""Verbs that move images: ``pull``, ``push``, ``import``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from orlop.cli import output
from orlop.cli.session import Session, pass_session, progress_options, verb

if TYPE_CHECKING:
    from orlop.cli.progress import ProgressMode

__all__ = ["import_verb", "pull_verb", "push_verb"]


@verb(
    "pull",
    "orlop pull alpine",
    "orlop pull --platform linux/arm64 registry.example.com/team/app:1.2",
    "orlop pull alpine@sha256:…",
)
@click.argument("images", metavar="IMAGE...", nargs=-1, required=True)
@click.option("--platform", metavar="OS/ARCH[/VARIANT]", help="Instead of this machine's.")
@progress_options
@pass_session
def pull_verb(
    session: Session, images: tuple[str, ...], platform: str | None, quiet: bool, progress: ProgressMode
) -> None:
    """Fetch images from a registry.

    Every byte is verified and on disk when the command ends.  Prints the full name of each image.
    """
    with session.store() as store, session.call(quiet=quiet, progress=progress) as call:
        for image in images:
            call.check(f"pull {image}")
            info = store.pull(image, platform=platform, call=call)
            output.write(f"{info.name}\n")


@verb(
    "push",
    "orlop push registry.example.com/team/app:1.2",
    "orlop push localhost/mine registry.example.com/team/mine:new",
)
@click.argument("image", metavar="IMAGE")
@click.argument("destination", metavar="[DESTINATION]", required=False)
@click.option("--recompress", is_flag=True, help="Compress anew where blobs are gone; new digest.")
@progress_options
@pass_session
def push_verb(
    session: Session,
    image: str,
    destination: str | None,
    recompress: bool,
    quiet: bool,
    progress: ProgressMode,
) -> None:
    """Send an image to a registry, under DESTINATION or its own name.

    Prints the name and the digest there: NAME@sha256:….
    """
    with session.store() as store, session.call(quiet=quiet, progress=progress) as call:
        result = store.push(image, destination, recompress=recompress, call=call)
        name = result.name if result.name.endswith(f"@{result.digest}") else f"{result.name}@{result.digest}"
        output.write(f"{name}\n")


@verb(
    "import",
    "orlop import ./image.tar",
    "orlop import --name localhost/app ./oci-layout",
)
@click.argument("source", metavar="SOURCE", type=click.Path())
@click.option("--name", metavar="NAME", help="Name the image so, whatever the archive says.")
@progress_options
@pass_session
def import_verb(session: Session, source: str, name: str | None, quiet: bool, progress: ProgressMode) -> None:
    """Import an OCI layout or a docker archive.

    SOURCE is a layout as a folder or a tar, or what `docker save` wrote.  Prints the names of the
    images it brought: all that are in it, or none where one of the names means another image here.
    """
    with session.store() as store, session.call(quiet=quiet, progress=progress) as call:
        for info in store.load(source, name=name, call=call):
            output.write(f"{info.name}\n")
