"""The verb ``events``: what happened to the store, and what happens."""

from __future__ import annotations

import re
import time
from contextlib import nullcontext, suppress
from datetime import UTC, datetime

from orlop.cli import declared as click
from orlop.cli import output
from orlop.cli.quantities import duration_of
from orlop.cli.session import Session, formats, pass_session, verb
from orlop.errors import Cancelled, InvalidArgument
from orlop.hints import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from orlop.images.events import Event

__all__ = ["events_verb"]

_CURSOR = re.compile(r"[0-9a-f]{8}-[0-9]+")
_DURATION = re.compile(r"(?:[0-9]+[smhdw])+")


@verb(
    "events",
    "orlop events --since 1h",
    "orlop events --follow --kind image --kind root.cleaned",
    "orlop events --follow --json | jq --unbuffered -r .subject",
    'orlop events --since "$(cat cursor)" --follow --json',
)
@click.option(
    "--since",
    metavar="WHEN",
    help="A cursor, a time (2026-01-02T03:04:05Z), how long ago (90s, 2h), or 'oldest'.",
)
@click.option("-f", "--follow", is_flag=True, help="Go on with what happens, until Ctrl-C.")
@click.option(
    "--kind", "kinds", metavar="KIND", multiple=True, help="Only these: image.pulled, or image for all below."
)
@formats(names="What it happened to, alone.", as_json="JSON, an object a line; its fields are stable.")
@pass_session
def events_verb(
    session: Session, since: str | None, follow: bool, kinds: tuple[str, ...], form: str = "table"
) -> None:
    """Show what happened to the store, and what happens.

    It tells what any process did: a daemon, a command, a library; with --follow it goes on until Ctrl-C.
    A line has the time, the cursor, the kind, what it happened to, and more.  --since a line's cursor goes on
    right after it.  Without --since all is shown that is kept; with --follow, what happens from now on.
    """
    with (
        suppress(Cancelled) if follow else nullcontext(),  # that is how following ends
        session.store() as store,
        session.call(quiet=False, progress="none") as call,
        store.events(_since(since), follow=follow, kinds=kinds, call=call) as found,
    ):
        if not follow:
            output.show_each(found, form=form, line=_line, names=_subject, record=json_of)
            return
        for event in found:
            output.show_each((event,), form=form, line=_line, names=_subject, record=json_of)
            output.flush()


def _since(text: str | None) -> str | datetime | float | None:
    if text is None or text == "oldest" or _CURSOR.fullmatch(text):
        return text
    if _DURATION.fullmatch(text):
        return max(0.0, time.time() - duration_of(text))
    try:
        found = datetime.fromisoformat(text)
    except ValueError as exc:
        raise InvalidArgument(
            "read events",
            f"neither a cursor nor a time: {text[:100]!r}",
            hint="write 2026-01-02T03:04:05Z, or how long ago (90s, 2h), or 'oldest'",
        ) from exc
    return found if found.tzinfo else found.astimezone(UTC)


def json_of(event: Event) -> dict[str, Any]:
    """An event as what JSON has."""
    return {
        "cursor": event.cursor,
        "seq": event.seq,
        "time": event.time,
        "time_ns": event.time_ns,
        "kind": event.kind,
        "namespace": event.namespace,
        "subject": event.subject,
        "attributes": dict(event.attributes),
    }


def _subject(event: Event) -> str:
    return event.subject


def _line(event: Event) -> str:
    words = [event.time, event.cursor, event.kind, event.subject or "-"]
    words += [f"{key}={said}" for key, said in event.attributes.items()]
    return " ".join(words)
