"""``orlop commit``."""

from __future__ import annotations

import os
from collections.abc import Iterable

from orlop.cli import declared as click
from orlop.cli import output
from orlop.cli.environment import source_date_epoch
from orlop.cli.session import Session, pass_session, path_hint, progress_options, verb
from orlop.errors import InvalidArgument, from_oserror
from orlop.hints import TYPE_CHECKING

if TYPE_CHECKING:
    from orlop.cli.progress import ProgressMode

__all__ = ["annotations_of", "commit_verb"]


@verb(
    "commit",
    "orlop commit /srv/a localhost/mine",
    """orlop commit -m 'with git' -c 'CMD ["git", "--version"]' /srv/a""",
    "orlop commit -x 'var/cache/*' -x '**/*.pyc' -x '!var/cache/keep' /srv/a localhost/lean",
    "orlop commit --base debian:13 --squash /srv/a localhost/flat",
    'orlop commit --freeze "$(cut -d: -f3 /proc/$PID/cgroup)" /srv/a',
    "SOURCE_DATE_EPOCH=$(git log -1 --format=%ct) orlop commit /srv/a localhost/built",
)
@click.argument("path", metavar="PATH")
@click.argument("name", metavar="[NAME]", required=False)
@click.option("-a", "--author", default="", help="Who made the change.")
@click.option("-m", "--message", default="", help="What the change is.")
@click.option(
    "-c",
    "--change",
    "changes",
    metavar="INSTRUCTION",
    multiple=True,
    help="Edit the image's config as a Dockerfile would: 'ENV A=b', 'CMD [\"sh\"]'.  May be repeated.",
)
@click.option(
    "-x",
    "--exclude",
    metavar="PATTERN",
    multiple=True,
    help="Leave what fits as the image has it; patterns as in a .dockerignore.  May be repeated.",
)
@click.option(
    "--exclude-from",
    metavar="FILE",
    multiple=True,
    help="Take patterns from a file such as a .dockerignore, before those of --exclude.",
)
@click.option("--squash", is_flag=True, help="One layer of the whole tree, with none below.")
@click.option(
    "--base", metavar="IMAGE", help="Put the change on this image's layers, with its config and history."
)
@click.option(
    "--annotation",
    "annotations",
    metavar="KEY=VALUE",
    multiple=True,
    help="Annotate the manifest that the image will have; the base's are kept.  May be repeated.",
)
@click.option(
    "--freeze",
    metavar="CGROUP",
    default="",
    help="Have a cgroup (version 2) stand still while the root is read: its folder, or its name as in"
    " /proc/PID/cgroup.",
)
@progress_options
@pass_session
def commit_verb(
    session: Session,
    path: str,
    name: str | None,
    author: str,
    message: str,
    changes: tuple[str, ...],
    exclude: tuple[str, ...],
    exclude_from: tuple[str, ...],
    squash: bool,
    base: str | None,
    annotations: tuple[str, ...],
    freeze: str,
    quiet: bool,
    progress: ProgressMode,
) -> None:
    """Make an image of what changed in a prepared root.

    Prints the new image's name.  The root stays prepared and usable.  Without NAME a new one under
    localhost/ is made; with one, that name moves to the new image.

    SOURCE_DATE_EPOCH is the time that is recorded, and that later times of files become.  A file that
    changes each time it is read is an error that names it: stop what runs there, or freeze it.
    """
    from orlop.images.api import CommitOptions

    attempted = f"commit {path}"
    patterns = [pattern for file in exclude_from for pattern in _patterns_of(file, attempted)]
    epoch = source_date_epoch(os.environ)
    options = CommitOptions(
        author=author,
        message=message,
        changes=changes,
        created=epoch,
        newest=epoch,
        exclude=(*patterns, *exclude),
        squash=squash,
        base=base,
        annotations=annotations_of(annotations, attempted),
        freeze=freeze,
    )
    with (
        session.store() as store,
        session.call(quiet=quiet, progress=progress, of=("commit", path)) as call,
        path_hint(path),
    ):
        info = store.verbs.commit(path, name, options=options, call=call)
        output.write(f"{info.name}\n")


def annotations_of(texts: Iterable[str], attempted: str) -> dict[str, str]:
    """Annotations out of ``KEY=VALUE`` texts."""
    found: dict[str, str] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not key or not equals:
            raise InvalidArgument(attempted, f"no annotation: {text[:200]!r}", hint="write it as KEY=VALUE")
        found[key] = value
    return found


def _patterns_of(file: str, attempted: str) -> list[str]:
    from orlop.layers.excludes import parse_ignore_file

    try:
        with open(file, encoding="utf-8", errors="surrogateescape") as lines:
            return parse_ignore_file(lines.read())
    except OSError as exc:
        raise from_oserror(attempted, exc) from exc
