"""Verbs about the store itself: ``gc``, ``version``."""

from __future__ import annotations

import os
import platform

from orlop import __version__
from orlop.cli import declared as click
from orlop.cli import output
from orlop.cli.exits import one_line
from orlop.cli.quantities import duration_of, size_of
from orlop.cli.session import Session, formats, pass_session, progress_options, verb
from orlop.errors import InvalidArgument
from orlop.hints import TYPE_CHECKING

if TYPE_CHECKING:
    from orlop.cli.progress import ProgressMode

__all__ = ["gc_verb", "version_verb"]


@verb(
    "gc",
    "orlop gc --dry-run",
    "orlop gc --keep-age 30d --keep-label keep",
    "orlop gc --keep-free 20G",
    "orlop gc --json | jq .freed",
)
@click.option("-n", "--dry-run", is_flag=True, help="Delete nothing; say what would be deleted.")
@click.option("--keep-age", metavar="DURATION", help="Also remove images not used for so long: 36h, 30d.")
@click.option(
    "--keep-count", metavar="N", type=click.IntRange(0, 2**63 - 1), help="Keep the N images used last."
)
@click.option("--keep-size", metavar="SIZE", help="Remove images until the rest is no larger: 50G.")
@click.option("--keep-free", metavar="SIZE", help="Remove images until so much of the disk is free.")
@click.option(
    "--keep-label",
    "labels",
    metavar="KEY[=VALUE]",
    multiple=True,
    help="Keep what has it.  Repeatable.",
)
@click.option("--json", "as_json", is_flag=True, help="JSON: images, items with their bytes, and the sum.")
@progress_options
@pass_session
def gc_verb(
    session: Session,
    dry_run: bool,
    keep_age: str | None,
    keep_count: int | None,
    keep_size: str | None,
    keep_free: str | None,
    labels: tuple[str, ...],
    as_json: bool,
    quiet: bool,
    progress: ProgressMode,
) -> None:
    """Delete what no image, prepared root, lease or pin needs.

    With a --keep limit images go, too, those used longest ago first; never one with a prepared root, a
    pin, or a label that --keep-label names.
    """
    from orlop.images.upkeep import Keep

    keep = Keep(
        age=duration_of(keep_age) if keep_age is not None else None,
        count=keep_count,
        size=size_of(keep_size, least=0) if keep_size is not None else None,
        free=size_of(keep_free) if keep_free is not None else None,
        labels=labels,
    )
    if labels and not keep.limits:
        raise InvalidArgument(
            "collect", "--keep-label alone takes no image away", hint="add --keep-age, -count, -size or -free"
        )
    with session.store() as store, session.call(quiet=quiet, progress=progress, of=("gc",)) as call:
        collected = store.collect(dry_run=dry_run, keep=keep if keep.limits else None, call=call)
    if as_json:
        items = [{"item": item, "size": size} for item, size in collected.items]
        output.write_json(
            {"images": collected.names, "items": items, "freed": collected.freed, "dry_run": dry_run}
        )
        return
    output.write("".join(f"image {name}\n" for name in collected.names))
    for item, size in collected.items:
        output.write(f"{item}  {output.size_text(size)}\n")
    if not quiet:
        output.note(f"{'would free' if dry_run else 'freed'} {output.size_text(collected.freed)}")


@verb(
    "version",
    "orlop version --format '{{.version}}'",
)
@formats(names="")
@pass_session
def version_verb(session: Session, form: str = "table") -> None:
    """Show versions.

    Of orlop, Python and the kernel; with --host also of the daemon.
    """
    fields: dict[str, object] = {
        "version": __version__,
        "python": platform.python_version(),
        "kernel": os.uname().release,
        "machine": os.uname().machine,
    }
    if session.target.host is not None:
        with session.store() as store:
            fields["daemon"] = store.info().version
    output.show_record(fields, form=form, shown=lambda: _show(fields))


def _show(fields: dict[str, object]) -> None:
    width = max(map(len, fields))
    output.write("".join(f"{key:<{width}}  {one_line(str(value))}\n" for key, value in fields.items()))
