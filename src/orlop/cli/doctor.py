"""``doctor``: what is well here and what is not, and what to do about it."""

from __future__ import annotations

import os
from collections.abc import Iterable
from itertools import groupby

from orlop.cli import declared as click
from orlop.cli import output
from orlop.cli.colours import paint
from orlop.cli.exits import one_line
from orlop.cli.quantities import duration_of
from orlop.cli.session import Session, formats, pass_session, verb
from orlop.errors import Error, FailedPrecondition, InvalidArgument
from orlop.hints import TYPE_CHECKING

if TYPE_CHECKING:
    from orlop.cli.session import Target
    from orlop.diagnosis.findings import Finding, Subject

__all__ = ["doctor_verb", "subject_of"]

FOUND_PROBLEMS = 5  # FAILED_PRECONDITION: the machine is not in the state that is needed
_MARKS = {"ok": ("ok", "green"), "note": ("note", "yellow"), "problem": ("PROBLEM", "error")}
_WIDE = 7


@verb(
    "doctor",
    "orlop doctor",
    "orlop doctor --offline --problems",
    "orlop doctor --registry registry.lan:5000",
    "orlop doctor --json | jq -r '.[] | select(.state == \"problem\") | .advice'",
)
@click.option(
    "--registry", "registries", metavar="HOST", multiple=True, help="Look at this one, too.  Repeatable."
)
@click.option("--offline", is_flag=True, help="Reach no registry.")
@click.option(
    "--timeout",
    metavar="DURATION",
    default="5s",
    show_default=True,
    help="How long a step of the network may take.",
)
@click.option("--problems", is_flag=True, help="Show only what is not well.")
@formats(names="The checks that found a problem, one a line.")
@pass_session
def doctor_verb(
    session: Session,
    registries: tuple[str, ...],
    offline: bool,
    timeout: str,
    problems: bool,
    form: str = "table",
) -> int:
    """Say what is well here and what is not, and what to do about it.

    Looks at the configuration, the kernel and its drivers, what you may do, the disk, the store, what runs
    containers, the daemon, and whether registries can be reached: those that are configured and that images
    here came from.  Changes nothing.  With --host the daemon is asked, and the rest is to be asked where it
    runs.

    A note is worth knowing; a problem comes with what to do.  The exit code is 5 where there is a problem.
    """
    from orlop.diagnosis.checks import diagnose

    if offline and registries:
        raise InvalidArgument(
            "reach registries", "--offline says that none is to be reached", hint="leave one out"
        )
    seconds = duration_of(timeout)
    subject = subject_of(session.target, registries=registries, offline=offline, timeout=seconds)
    found = diagnose(subject)
    failed = [one for one in found if one.state == "problem"]
    shown = [one for one in found if one.state != "ok"] if problems else found
    if form == "table":
        _show(shown)
        _sum_up(found)
    else:
        shown = failed if form == "name" else shown
        output.show_list(shown, [], form=form, names=lambda one: one.check)
    return FOUND_PROBLEMS if failed else 0


def subject_of(
    target: Target, *, registries: tuple[str, ...] = (), offline: bool = False, timeout: float = 5.0
) -> Subject:
    """What the command line's options mean to look at.  A configuration that is broken is a finding."""
    from orlop.cli.environment import config_files
    from orlop.config import Configuration
    from orlop.diagnosis.findings import Subject
    from orlop.values import replace

    fault = target.configuration.fault
    try:
        settings = target.settings()
    except Error as exc:
        fault = fault or exc
        settings = replace(target, configuration=Configuration()).settings()
    run, run_fault = "", ""
    try:
        run = target.run_path
    except FailedPrecondition as exc:
        run_fault = f"{exc.reason}: {exc.hint}"
    return Subject(
        root=target.root_path,
        run=run,
        run_fault=run_fault,
        settings=settings,
        configuration=target.configuration,
        environ=dict(os.environ),
        uid=os.geteuid(),
        config_files=config_files(os.environ),
        named_file=target.configuration.named,
        host=target.host,
        tls=(target.tls_cert, target.tls_key, target.tls_ca),
        registries=registries,
        offline=offline,
        timeout=timeout,
        fault=fault,
    )


def _show(found: Iterable[Finding]) -> None:
    import sys

    from orlop.diagnosis.checks import SECTIONS

    order = {name: at for at, name in enumerate(SECTIONS)}
    ordered = sorted(found, key=lambda one: order.get(one.section, len(order)))
    for section, findings in groupby(ordered, key=lambda one: one.section):
        output.write(paint(SECTIONS.get(section, section), "bold", sys.stdout) + "\n")
        for one in findings:
            mark, style = _MARKS[one.state]
            painted = paint(mark, style, sys.stdout) + " " * (_WIDE - len(mark))
            output.write(f"  {painted}  {one_line(one.text)}\n")
            if one.advice and one.state != "ok":
                output.write(f"  {'':{_WIDE}}  -> {one_line(one.advice)}\n")
        output.write("\n")


def _sum_up(found: list[Finding]) -> None:
    counts = {state: sum(one.state == state for one in found) for state in _MARKS}
    problems = f"{counts['problem']} problem{'' if counts['problem'] == 1 else 's'}"
    notes = f"{counts['note']} note{'' if counts['note'] == 1 else 's'}"
    output.write(f"{problems}, {notes}, {counts['ok']} ok\n")
