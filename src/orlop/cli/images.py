"""Verbs about the images that are there: ``images``, ``inspect``, ``tag``, ``rmi``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from orlop.cli import output
from orlop.cli.session import Session, format_options, pass_session, path_hint, verb

if TYPE_CHECKING:
    from orlop.images.api import ImageDetails, ImageInfo

__all__ = ["images_verb", "inspect_verb", "rmi_verb", "tag_verb"]


@verb(
    "images",
    "orlop images",
    "orlop images --json | jq -r '.[].digest'",
    r"orlop images --format '{{.name}}\t{{.size}}'",
)
@format_options
@pass_session
def images_verb(session: Session, form: str = "table") -> None:
    """List images."""
    columns: list[output.Column] = [
        ("NAME", lambda image: image.name),
        ("ID", lambda image: output.short_id(image.id)),
        ("PLATFORM", lambda image: ",".join(one.platform for one in image.platforms) or image.platform),
        ("CREATED", lambda image: output.ago(image.created)),
        ("LAYERS", lambda image: str(image.layers)),
        ("SIZE", lambda image: output.size_text(image.size)),
    ]
    with session.store() as store:
        found: list[ImageInfo] = store.images()
    output.show_list(found, columns, form=form, names=lambda image: image.name)


@verb(
    "inspect",
    "orlop inspect alpine | jq '.[0].config.config.Env'",
    "orlop inspect /srv/a | jq '.[0].mounts'",
    "orlop inspect --platform linux/arm64 alpine",
)
@click.argument("names", metavar="IMAGE|PATH...", nargs=-1, required=True)
@click.option("--platform", metavar="OS/ARCH[/VARIANT]", help="Which image of an index.")
@pass_session
def inspect_verb(session: Session, names: tuple[str, ...], platform: str | None) -> None:
    """Show all there is to know of an image or a prepared root.

    Prints a JSON list with one object per argument.  What begins with a slash or a dot is a path.
    For an image, `config` and `manifest` are the OCI documents; `manifest` is null for an image that
    was committed and never pushed.  Of an index, `index` is its digest and `platforms` are the images
    of it that the store holds.
    """
    found: list[object] = []
    with session.store() as store:
        for name in names:
            if name.startswith(("/", ".")):
                with path_hint(name):
                    found.append(store.get(name).info)
            else:
                found.append(_details(store.inspect(name, platform=platform)))
    output.write_json(found)


def _details(details: ImageDetails) -> dict[str, object]:
    import json

    info = output.plain(details.info)
    layers = output.plain(details.layers)
    return {
        **info,
        "names": list(details.names),
        "layers": layers,
        "config": json.loads(details.config),
        "manifest": json.loads(details.manifest) if details.manifest is not None else None,
    }


@verb(
    "tag",
    "orlop tag alpine registry.example.com/team/alpine:3",
)
@click.argument("image", metavar="IMAGE")
@click.argument("name", metavar="NAME")
@pass_session
def tag_verb(session: Session, image: str, name: str) -> None:
    """Give an image a further name; a name that meant another image moves."""
    with session.store() as store:
        store.tag(image, name)


@verb(
    "rmi",
    "orlop rmi alpine",
    "orlop rmi --force 3f57d9401f8d",
)
@click.argument("images", metavar="IMAGE...", nargs=-1, required=True)
@click.option("-f", "--force", is_flag=True, help="Remove all names of an ID; ignore what is not there.")
@pass_session
def rmi_verb(session: Session, images: tuple[str, ...], force: bool) -> None:
    """Remove images, and the disk that nothing else needs.

    The disk is free when the command ends.  Prints the names that are gone.  Prepared roots keep
    what they stand on.
    """
    from orlop.errors import NotFound

    freed = 0
    with session.store() as store:
        for image in images:
            try:
                removed = store.remove(image, force=force)
            except NotFound:
                if not force:
                    raise
                continue
            freed += removed.freed
            output.write("".join(f"{name}\n" for name in removed.names))
    output.note(f"freed {output.size_text(freed)}")
