"""The verb ``check``: what a store promises against what is on disk."""

from __future__ import annotations

from orlop.cli import declared as click
from orlop.cli import output
from orlop.cli.exits import exit_code
from orlop.cli.quantities import size_of
from orlop.cli.session import Session, pass_session, path_hint, progress_options, verb
from orlop.errors import DataLoss
from orlop.hints import TYPE_CHECKING

if TYPE_CHECKING:
    from orlop.cli.progress import ProgressMode
    from orlop.images.upkeep import Checked, Finding

__all__ = ["check_verb"]

_SUFFERERS = 3


@verb(
    "check",
    "orlop check",
    "orlop check --full --pace 50M",
    "orlop check --full --repair alpine",
    "orlop check --json | jq -r '.findings[].thing'",
)
@click.argument("things", metavar="[THING]...", nargs=-1)
@click.option("--full", is_flag=True, help="Read all: tars against diff IDs, what is derived against tars.")
@click.option("--repair", is_flag=True, help="Mend what is damaged, or set it aside.")
@click.option("--pace", metavar="SIZE", help="Read no more than so many bytes a second, as in 50M.")
@click.option("--json", "as_json", is_flag=True, help="JSON; its fields are stable.")
@progress_options
@pass_session
def check_verb(
    session: Session,
    things: tuple[str, ...],
    full: bool,
    repair: bool,
    pace: str | None,
    as_json: bool,
    quiet: bool,
    progress: ProgressMode,
) -> int:
    """Check that all is there that the store promises; mend what is not.

    Quick: each thing's files are there, with the right size, owner and mode, and the metadata agree with one
    another.  With --full every byte is read: layers against their diff IDs, indexes against layers, chains
    against indexes, documents against their digests.  A THING is an image, a root's path, "layer sha256:…",
    "blob sha256:…" or "chain …"; without one the whole store is checked.

    --repair makes again what is derived, fetches again what came from a registry, and moves what it cannot
    mend to the folder quarantine of the store.  It takes nothing away that a prepared root stands on.

    The exit code is 9 where damage is left.  The store may be in use meanwhile.
    """
    speed = size_of(pace) if pace is not None else None
    with (
        session.store() as store,
        session.call(quiet=quiet, progress=progress, of=("repair" if repair else "check",)) as call,
    ):
        if not things:
            checked = store.check(full=full, repair=repair, pace=speed, call=call)
        else:
            with path_hint(things[0]):
                checked = store.check(*things, full=full, repair=repair, pace=speed, call=call)
    if as_json:
        output.write_json({**output.plain(checked), "clean": checked.clean, "sound": checked.sound})
    else:
        _show(checked, quiet=quiet)
    return 0 if checked.sound else exit_code(DataLoss("check", "damage is left"))


def _show(checked: Checked, *, quiet: bool) -> None:
    columns: list[output.Column] = [
        ("KIND", lambda finding: finding.kind),
        ("PROBLEM", lambda finding: finding.problem),
        ("ACTION", lambda finding: finding.action or "-"),
        ("THING", lambda finding: finding.thing),
        ("DETAIL", _detail),
    ]
    if checked.findings:
        output.show_list(checked.findings, columns, form="table", names=str)
    if quiet:
        return
    looked = ", ".join(
        f"{count} {what if count != 1 else what.removesuffix('s')}"
        for count, what in (
            (checked.images, "images"),
            (checked.layers, "layers"),
            (checked.chains, "chains"),
            (checked.blobs, "blobs"),
            (checked.roots, "roots"),
        )
    )
    read = f", {output.size_text(checked.bytes)} read" if checked.bytes else ""
    damaged = sum(finding.kind == "damage" for finding in checked.findings)
    left = sum(finding.open for finding in checked.findings)
    verdict = "no damage" if not damaged else f"{damaged} damaged, {left} of them still"
    output.note(f"checked {looked}{read}: {verdict}")


def _detail(finding: Finding) -> str:
    if not finding.affects or finding.thing.partition(" ")[2] in finding.affects:
        return finding.detail
    more = len(finding.affects) - _SUFFERERS
    names = ", ".join(finding.affects[:_SUFFERERS]) + (f" and {more} more" if more > 0 else "")
    return f"{finding.detail} (needed by {names})"
