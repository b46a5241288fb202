"""Verbs about the store itself: ``gc``, ``info``, ``version``."""

from __future__ import annotations

import os
import platform
from typing import TYPE_CHECKING, Any

import click

from orlop import __version__
from orlop.cli import output
from orlop.cli.exits import one_line
from orlop.cli.quantities import duration_of, size_of
from orlop.cli.session import Session, pass_session, progress_options, verb
from orlop.config import DEFAULT_LIMITS
from orlop.errors import InvalidArgument

if TYPE_CHECKING:
    from orlop.cli.progress import ProgressMode
    from orlop.config import Configuration
    from orlop.images.upkeep import StoreInfo

__all__ = ["gc_verb", "info_verb", "version_verb"]

_TABLES = ("drivers", "features", "limits")  # what `info` shows below its other fields


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
    with session.store() as store, session.call(quiet=quiet, progress=progress) as call:
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
    output.note(f"{'would free' if dry_run else 'freed'} {output.size_text(collected.freed)}")


@verb(
    "info",
    "orlop info --json | jq -r .driver",
)
@click.option("--json", "as_json", is_flag=True, help="JSON; its fields are stable.")
@pass_session
def info_verb(session: Session, as_json: bool) -> None:
    """Show the store and what serves it.

    Its folders, driver and format, and how much there is; then each driver with the reason why it works
    here or does not, what was found of the kernel's features, the limits that are not the default, and the
    files that say where registries are (docs/registries.md).  The driver is the one that new roots get:
    --driver, ORLOP_DRIVER or a configuration file choose another.
    """
    with session.store() as store:
        info = store.info()
    fields: dict[str, Any] = output.plain(info)
    if session.target.host is not None:
        fields["host"] = session.target.host
    else:
        from orlop.registry.finding.hostfiles.folders import in_force

        settings = session.target.settings()
        fields["registry_files"] = in_force(settings.hosts_dirs, settings.registries_conf)
    if as_json:
        output.write_json(fields)
        return
    files: list[str] = fields.pop("registry_files", [])
    _show({key: value for key, value in fields.items() if key not in _TABLES}, as_json=False)
    _show_findings(info, session.target.configuration if session.target.host is None else None)
    if files:
        output.write("\n")
        output.show_list(files, [("REGISTRIES ARE READ FROM", str)], form="table", names=str)


def _show_findings(info: StoreInfo, configuration: Configuration | None) -> None:
    """The tables of `info`; a daemon's ``configuration`` is not known here."""
    default = DEFAULT_LIMITS.as_dict()
    drivers: list[output.Column] = [
        ("DRIVER", lambda driver: driver.name),
        ("WORKS", lambda driver: output.yes_no(driver.available)),
        ("REASON", lambda driver: driver.reason),
    ]
    features: list[output.Column] = [("FEATURE", lambda pair: pair[0]), ("FOUND", lambda pair: pair[1])]
    limits: list[output.Column] = [
        ("LIMIT", lambda pair: pair[0]),
        ("VALUE", lambda pair: str(pair[1])),
        ("DEFAULT", lambda pair: str(default.get(pair[0], ""))),
    ]
    if configuration is not None:
        limits.append(("FROM", lambda pair: configuration.source(f"limits.{pair[0]}")))
    # A map that came from a daemon has no order.
    tables = (
        (info.drivers, drivers),
        (sorted(info.features.items()), features),
        (sorted(info.limits.items()), limits),
    )
    for items, columns in tables:
        if items:
            output.write("\n")
            output.show_list(items, columns, form="table", names=str)


@verb(
    "version",
    "orlop version --json | jq -r .version",
)
@click.option("--json", "as_json", is_flag=True, help="JSON; its fields are stable.")
@pass_session
def version_verb(session: Session, as_json: bool) -> None:
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
    _show(fields, as_json=as_json)


def _show(fields: dict[str, object], *, as_json: bool) -> None:
    if as_json:
        output.write_json(fields)
        return
    width = max(map(len, fields))
    output.write("".join(f"{key:<{width}}  {one_line(str(value))}\n" for key, value in fields.items()))
