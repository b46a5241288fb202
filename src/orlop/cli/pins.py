"""What is kept by hand: ``pin``, ``unpin``, ``pins``, ``label``."""

from __future__ import annotations

import datetime
import time

from orlop.cli import declared as click
from orlop.cli import output
from orlop.cli.quantities import duration_of, labels_of
from orlop.cli.session import Session, format_options, pass_session, verb
from orlop.hints import TYPE_CHECKING

if TYPE_CHECKING:
    from orlop.images.upkeep import Pin

__all__ = ["label_verb", "pin_verb", "pins_verb", "unpin_verb"]


@verb(
    "pin",
    "orlop pin alpine --name base",
    "orlop pin sha256:3f57… --for 12h",
)
@click.argument("thing", metavar="THING")
@click.option("--name", metavar="NAME", help="What to call the pin; one that has the name moves.")
@click.option("--for", "duration", metavar="DURATION", help="How long it lasts: 90s, 36h, 2w.  [for ever]")
@click.option("--json", "as_json", is_flag=True, help="JSON; its fields are stable.")
@pass_session
def pin_verb(session: Session, thing: str, name: str | None, duration: str | None, as_json: bool) -> None:
    """Keep an image, a layer, a chain or a blob, whatever happens to its names.

    THING is an image's name, ID or manifest digest, a layer's diff ID, "blob sha256:…" or "chain …".
    Prints the pin's name.
    """
    expires = None if duration is None else time.time() + duration_of(duration)
    with session.store() as store:
        pin = store.pin(thing, name, expires=expires)
    if as_json:
        output.write_json(pin)
    else:
        output.write(f"{pin.name}\n")


@verb(
    "unpin",
    "orlop unpin base",
)
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
@pass_session
def unpin_verb(session: Session, names: tuple[str, ...]) -> None:
    """Take pins back; what nothing else needs is deleted."""
    with session.store() as store:
        for name in names:
            store.unpin(name)


@verb(
    "pins",
    "orlop pins",
    "orlop pins --format '{{.name}} {{.ref}}'",
)
@format_options
@pass_session
def pins_verb(session: Session, form: str = "table") -> None:
    """List pins."""
    with session.store() as store:
        pins = store.pins()
    columns: list[output.Column] = [
        ("NAME", lambda pin: pin.name),
        ("KIND", lambda pin: pin.kind),
        ("KEEPS", lambda pin: pin.ref),
        ("EXPIRES", _expiry),
    ]
    output.show_list(pins, columns, form=form, names=lambda pin: pin.name)


def _expiry(pin: Pin) -> str:
    if pin.expires is None:
        return "never"
    return datetime.datetime.fromtimestamp(pin.expires, datetime.UTC).isoformat(timespec="seconds")


@verb(
    "label",
    "orlop label alpine team=ml keep",
    "orlop label alpine keep-",
)
@click.argument("image", metavar="IMAGE")
@click.argument("changes", metavar="KEY=VALUE|KEY-...", nargs=-1, required=True)
@click.option("--json", "as_json", is_flag=True, help="JSON: all labels of the name.")
@pass_session
def label_verb(session: Session, image: str, changes: tuple[str, ...], as_json: bool) -> None:
    """Set labels of an image's name, or take them away (KEY-).

    They are the store's own, not the image's: `orlop gc --keep-label` asks for them.
    """
    with session.store() as store:
        info = store.label(image, labels_of(changes))
    if as_json:
        output.write_json(info.labels)
    else:
        output.write("".join(f"{key}={value}\n" for key, value in sorted(info.labels.items())))
