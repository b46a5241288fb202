"""Verbs that move images: ``pull``, ``push``, ``fetch-blobs``."""

from __future__ import annotations

from collections.abc import Callable

from orlop.cli import declared as click
from orlop.cli import output
from orlop.cli.exits import Misuse
from orlop.cli.session import Session, pass_session, progress_options, verb
from orlop.hints import TYPE_CHECKING, TypeVar
from orlop.layers.packing.recipes import COMPRESSIONS, FORMATS
from orlop.values import replace

if TYPE_CHECKING:
    from orlop.cli.progress import ProgressMode

__all__ = ["fetch_blobs_verb", "platform_options", "pull_verb", "push_verb"]

_F = TypeVar("_F", bound=Callable[..., object])


def platform_options(function: _F) -> _F:
    """Which images of an index."""
    several = click.option("--all-platforms", is_flag=True, help="The whole index.")
    one = click.option(
        "--platform",
        metavar="OS/ARCH[/VARIANT]",
        multiple=True,
        help="Instead of this machine's; may be repeated.",
    )
    return one(several(function))


@verb(
    "pull",
    "orlop pull alpine",
    "orlop pull --platform linux/arm64 registry.example.com/team/app:1.2",
    "orlop pull --all-platforms alpine",
    "orlop pull alpine@sha256:…",
)
@click.argument("images", metavar="IMAGE...", nargs=-1, required=True)
@platform_options
@progress_options
@pass_session
def pull_verb(
    session: Session,
    images: tuple[str, ...],
    platform: tuple[str, ...],
    all_platforms: bool,
    quiet: bool,
    progress: ProgressMode,
) -> None:
    """Fetch images from a registry.

    Every byte is verified and on disk when the command ends.  Prints the full name of each image.
    A further platform of the same index is added to the name, which then means the first one given
    where nobody says a platform.
    """
    of = ("pull", *(["--all-platforms"] if all_platforms else []))
    of += tuple(word for one in platform for word in ("--platform", one))
    with session.store() as store, session.call(quiet=quiet, progress=progress, of=(*of, *images)) as call:
        for image in images:
            call.check(f"pull {image}")
            info = store.pull(image, platform=platform, all_platforms=all_platforms, call=call)
            output.write(f"{info.name}\n")


@verb(
    "push",
    "orlop push registry.example.com/team/app:1.2",
    "orlop push localhost/mine registry.example.com/team/mine:new",
    "orlop push localhost/mine registry.example.com/team/mine:1.2 --tag 1 --tag latest",
    "orlop push --all-platforms alpine registry.example.com/team/alpine:3",
    "orlop push localhost/mine registry.example.com/team/mine:1.2 --compression zstd --level 12",
    "orlop push localhost/mine registry.example.com/team/mine:1.2 --format zstd:chunked",
)
@click.argument("image", metavar="IMAGE")
@click.argument("destination", metavar="[DESTINATION]", required=False)
@click.option("--tag", "tags", metavar="TAG", multiple=True, help="A further tag there.  May be repeated.")
@click.option("--recompress", is_flag=True, help="Compress anew where blobs are gone; new digest.")
@click.option(
    "--compression", type=click.Choice(COMPRESSIONS), help="Of layers compressed for it; else as set."
)
@click.option("--level", type=click.IntRange(1, 19), metavar="N", help="gzip 1 to 9, zstd 1 to 19.")
@click.option("--format", "form", type=click.Choice(FORMATS), help="A form that is fetched file by file.")
@click.option("--threads", type=click.IntRange(1), metavar="N", help="That compress; else one a processor.")
@click.option("--all-platforms", is_flag=True, help="The index, with all that is in it.")
@click.option(
    "--allow-nondistributable", "nondistributable", is_flag=True, help="Also layers not to be distributed."
)
@progress_options
@pass_session
def push_verb(
    session: Session,
    image: str,
    destination: str | None,
    tags: tuple[str, ...],
    recompress: bool,
    compression: str | None,
    level: int | None,
    form: str | None,
    threads: int | None,
    all_platforms: bool,
    nondistributable: bool,
    quiet: bool,
    progress: ProgressMode,
) -> None:
    """Send an image to a registry, under DESTINATION or its own name, and under further tags.

    Only blobs that the registry has not are sent, each once; a name gets the image after them.  Prints the
    names and the digest there: NAME@sha256:….
    """
    if nondistributable and session.target.host is not None:
        raise Misuse(
            "--allow-nondistributable is the daemon's business",
            "set nondistributable = true in its configuration file",
        )
    if threads is not None and session.target.host is not None:
        raise Misuse(
            "--threads is the daemon's business", "set compression_threads in its configuration file"
        )
    session.target = replace(
        session.target, nondistributable=nondistributable, compression_threads=threads or 0
    )
    with session.store() as store, session.call(quiet=quiet, progress=progress, of=("push",)) as call:
        result = store.push(
            image,
            destination,
            tags=tags,
            recompress=recompress,
            compression=compression,
            level=level,
            format=form,
            all_platforms=all_platforms,
            call=call,
        )
        for name in result.names or (result.name,):
            output.write(f"{name.removesuffix(f'@{result.digest}')}@{result.digest}\n")


@verb("fetch-blobs", "orlop fetch-blobs alpine", "orlop fetch-blobs --json alpine")
@click.argument("image", metavar="IMAGE")
@click.option("--json", "as_json", is_flag=True, help="JSON; its fields are stable.")
@progress_options
@pass_session
def fetch_blobs_verb(
    session: Session, image: str, as_json: bool, quiet: bool, progress: ProgressMode
) -> None:
    """Fetch the blobs of an image's layers that are not kept.

    A store drops a layer's blob once the layer is there.  With its blobs an image can be pushed anywhere as
    it came, also when the registry that it came from is gone.  They come from registries known to have
    them, and stay as long as their layers do.  Prints the digests of those that were fetched.
    """
    with session.store() as store, session.call(quiet=quiet, progress=progress, of=("fetch-blobs",)) as call:
        result = store.fetch_blobs(image, call=call)
        if as_json:
            output.write_json(output.plain(result))
            return
        for digest in result.fetched:
            output.write(f"{digest}\n")
