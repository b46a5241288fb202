"""Pins and labels: what a caller says about images and things of the store."""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping

from orlop.errors import FailedPrecondition, InvalidArgument, NotFound
from orlop.images import names
from orlop.images.account.things import find_thing
from orlop.images.changed.changes import is_text
from orlop.images.core import NAMESPACE, Core
from orlop.images.upkeep import Pin
from orlop.metadata import garbage, images, labels, pins
from orlop.metadata.db import Transaction
from orlop.metadata.pins import PinRow
from orlop.observe import reached

__all__ = ["Pinner", "label_image"]

_KINDS = ("image", "layer", "chain", "blob")
MAX_NAME = 200  # characters of a pin's name
MAX_KEY = 1000  # characters of a label's key
MAX_EXPIRY = 253_402_300_799  # the last second that a date of four digits can tell
MAX_VALUE = 64 << 10  # characters of a label's value; a request of the daemon's has its own limit


class Pinner:
    """The pins of one store.  Thread-safe."""

    def __init__(self, core: Core) -> None:
        self._core = core

    def pin(self, thing: str, name: str | None, *, expires: float | None) -> Pin:
        """See `orlop.images.upkeep.Keeping.pin`."""
        what = f"pin {thing}"
        name = f"pin-{secrets.token_hex(6)}" if name is None else name
        _check_text(name, MAX_NAME, what, "the pin's name")
        if expires is not None and not expires > time.time():
            raise InvalidArgument(what, "it would expire at once", hint="give a time to come, or none")
        if expires is not None and expires > MAX_EXPIRY:
            raise InvalidArgument(
                what, "no date has the time at which it expires", hint="give an earlier one, or none"
            )

        def body(tx: Transaction) -> tuple[PinRow, bool]:
            found = find_thing(tx, NAMESPACE, thing, what)
            if found.kind not in _KINDS:
                raise InvalidArgument(
                    what, f"a {found.kind} cannot be pinned", hint="pin an image, a layer, a chain or a blob"
                )
            kind = "config" if found.kind == "image" else found.kind
            row, before = pins.put_pin(tx, NAMESPACE, name, kind=kind, ref=found.name, expires=expires)
            return row, bool(garbage.forget(tx, before))

        row, forgotten = self._core.db.write(body)
        reached("pin.made")
        if forgotten:
            self._core.sweeper.wake()
        return _pin(row)

    def unpin(self, name: str) -> None:
        """See `orlop.images.upkeep.Keeping.unpin`."""

        def body(tx: Transaction) -> bool:
            row = pins.get_pin(tx, NAMESPACE, name)
            if row is None or (row.expires is not None and row.expires <= time.time()):
                raise NotFound(
                    f"unpin {name}", "there is no such pin", hint="'orlop pins' lists what there is"
                )
            kept = pins.take_pin(tx, NAMESPACE, name)
            return kept is not None and bool(garbage.forget(tx, kept))

        if self._core.db.write(body):
            self._core.sweeper.wake()

    def pins(self) -> list[Pin]:
        """See `orlop.images.upkeep.Keeping.pins`."""
        now = time.time()
        return [_pin(row) for row in self._core.db.read(lambda tx: pins.list_pins(tx, NAMESPACE, now=now))]


def label_image(core: Core, name: str, changes: Mapping[str, str | None]) -> str:
    """See `orlop.images.api.Images.label`; returns the full name."""
    what = f"label {name}"
    for key, value in changes.items():
        _check_text(key, MAX_KEY, what, "a label's key")
        if "=" in key:
            raise InvalidArgument(what, f"the label's key {key!r} holds an equals sign")
        if value is not None and not (is_text(value) and len(value) <= MAX_VALUE and "\0" not in value):
            raise InvalidArgument(what, f"the value of label {key!r} is not text, or longer than {MAX_VALUE}")

    def body(tx: Transaction) -> str:
        row = names.require(tx, NAMESPACE, name, what)
        if not names.is_name_of(name, row.name):
            others = [other.name for other in images.images_by_id(tx, NAMESPACE, row.config)]
            if len(others) > 1:
                raise FailedPrecondition(
                    what, f"the image has several names: {', '.join(others)}", hint="name one"
                )
        labels.change_image_labels(tx, NAMESPACE, row.name, changes)
        return row.name

    return core.db.write(body)


def _pin(row: PinRow) -> Pin:
    kind = "image" if row.kind == "config" else row.kind
    return Pin(name=row.name, kind=kind, ref=row.ref, created=row.created, expires=row.expires)


def _check_text(text: str, limit: int, what: str, which: str) -> None:
    if not text or len(text) > limit or not is_text(text) or not text.isprintable():
        raise InvalidArgument(what, f"{which} is empty, longer than {limit}, or not printable text")
