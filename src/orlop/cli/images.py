"""Verbs about the images that are there: ``images``, ``inspect``, ``tag``, ``rmi``."""

from __future__ import annotations

from orlop.cli import declared as click
from orlop.cli import output
from orlop.cli.exits import Misuse
from orlop.cli.session import Session, format_options, formats, pass_session, path_hint, verb
from orlop.hints import TYPE_CHECKING

if TYPE_CHECKING:
    from orlop.cli.filters import Fits
    from orlop.images.api import ImageDetails, ImageInfo

__all__ = ["images_verb", "inspect_verb", "rmi_verb", "tag_verb"]


@verb(
    "images",
    "orlop images",
    "orlop images --json | jq -r '.[].digest'",
    "orlop images 'localhost/*' --filter label=keep",
    r"orlop images --format 'table {{.name}}\t{{.size}}'",
)
@click.argument("patterns", metavar="[NAME]...", nargs=-1)
@format_options
@click.option("-a", "--all", "everything", is_flag=True, help="All of them, as is done without it.")
@click.option(
    "-f",
    "--filter",
    "filters",
    metavar="KEY=VALUE",
    multiple=True,
    help="Those alone: reference=, label=, platform=, id=, dangling=.  May be repeated.",
)
@click.option("--digests", is_flag=True, help="The digests of their manifests, too.")
@click.option("--no-trunc", is_flag=True, help="Whole IDs, and cells that a terminal has no room for.")
@pass_session
def images_verb(
    session: Session,
    patterns: tuple[str, ...],
    everything: bool,
    filters: tuple[str, ...],
    digests: bool,
    no_trunc: bool,
    form: str = "table",
) -> None:
    """List images.

    NAME is a name, with or without its registry and its tag; * and ? stand for what may be there.
    """
    from orlop.cli.filters import fits_name, kept

    columns: list[output.Column] = [
        ("NAME", lambda image: image.name),
        ("ID", lambda image: image.id if no_trunc else output.short_id(image.id)),
        ("PLATFORM", lambda image: ",".join(one.platform for one in image.platforms) or image.platform),
        ("CREATED", lambda image: output.ago(image.created)),
        ("LAYERS", lambda image: str(image.layers)),
        ("SIZE", lambda image: output.size_text(image.size)),
    ]
    if digests:
        columns.insert(1, ("DIGEST", lambda image: image.digest or ""))
    every = session.images()
    found = [one for one in every if not patterns or any(fits_name(one.name, text) for text in patterns)]
    if patterns and not found:
        _remark_on_words(patterns)
    found = kept(found, filters, _filters())
    output.show_list(found, columns, form=form, names=lambda image: image.name, whole=no_trunc or digests)


def _remark_on_words(patterns: tuple[str, ...]) -> None:
    """`ctr images ls` and the like: a verb after the noun is a pattern here, and finds nothing."""
    from orlop.cli.elsewhere import instead

    said = instead(("images", *patterns))
    if said:
        raise Misuse(f"no image is called {patterns[0]}", said)


def _filters() -> dict[str, Fits]:
    from orlop.cli.filters import fits_label, fits_name, fits_truth

    def platforms(image: ImageInfo) -> list[str]:
        return [image.platform, *(one.platform for one in image.platforms)]

    return {
        "reference": lambda image, text: fits_name(image.name, text),
        "label": lambda image, text: fits_label(image.labels, text),
        "platform": lambda image, text: text in platforms(image),
        "id": lambda image, text: image.id.partition(":")[2].startswith(text.removeprefix("sha256:")),
        "dangling": lambda image, text: fits_truth(False, text),  # every image here has a name
    }


@verb(
    "inspect",
    "orlop inspect alpine | jq '.[0].config.config.Env'",
    "orlop inspect --format '{{.config.config.Cmd}}' alpine",
    "orlop inspect /srv/a | jq '.[0].mounts'",
    "orlop inspect --platform linux/arm64 alpine",
)
@click.argument("names", metavar="IMAGE|PATH...", nargs=-1, required=True)
@click.option("--platform", metavar="OS/ARCH[/VARIANT]", help="Which image of an index.")
@formats(names="", as_json="JSON, as is done without it.", flags=("-f", "--format"))
@pass_session
def inspect_verb(session: Session, names: tuple[str, ...], platform: str | None, form: str = "json") -> None:
    """Show all there is to know of an image or a prepared root.

    Prints a JSON list with one object per argument.  What begins with a slash or a dot is a path.
    For an image, `config` and `manifest` are the OCI documents; `manifest` is null for an image that
    was committed and never pushed.  Of an index, `index` is its digest and `platforms` are the images
    of it that the store holds.  A template's fields are those of one object; it is a line for each.
    """
    found: list[object] = []
    with session.store() as store:
        for name in names:
            if name.startswith(("/", ".")):
                with path_hint(name):
                    found.append(store.get(name).info)
            else:
                found.append(details_json(store.inspect(name, platform=platform)))
    if form == "json":
        output.write_json(found)
    else:
        output.show_each(found, form=form, line=str, names=str)


def details_json(details: ImageDetails) -> dict[str, object]:
    """An image whole, as what JSON has."""
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
@click.argument("images", metavar="IMAGE...", nargs=-1)
@click.option("-a", "--all", "everything", is_flag=True, help="All images; then there is no IMAGE.")
@click.option("-f", "--force", is_flag=True, help="Remove all names of an ID; ignore what is not there.")
@click.option("-q", "--quiet", is_flag=True, help="Say nothing of what was freed.")
@pass_session
def rmi_verb(session: Session, images: tuple[str, ...], everything: bool, force: bool, quiet: bool) -> None:
    """Remove images, and the disk that nothing else needs.

    The disk is free when the command ends.  Prints the names that are gone.  Prepared roots keep
    what they stand on.
    """
    from orlop.errors import NotFound

    if everything is bool(images):
        raise Misuse("name the images, or say --all", "`orlop images` lists them")
    freed = 0
    with session.store() as store:
        for image in images or [one.name for one in store.images()]:
            try:
                removed = store.remove(image, force=force)
            except NotFound:
                if not force:
                    raise
                continue
            freed += removed.freed
            output.write("".join(f"{name}\n" for name in removed.names))
    if not quiet:
        output.note(f"freed {output.size_text(freed)}")
