"""The log of a store's events beside its rows: told again from the beginning, they give what is there."""

from __future__ import annotations

from collections.abc import Iterable

import orlop
from orlop.images.events import EVENT_KINDS, Event


def told(events: Iterable[Event]) -> tuple[dict[str, str], dict[str, bool]]:
    """What events say that there is: images' IDs by name, and whether orlop has mounted the root at a path."""
    images: dict[str, str] = {}
    roots: dict[str, bool] = {}
    for event in events:
        assert event.kind in EVENT_KINDS
        name, about = event.subject, event.attributes
        match event.kind:
            case "image.created":
                assert name not in images
                images[name] = about["id"]
            case "image.updated":
                assert about.get("was", about["id"]) == images[name]
                images[name] = about["id"]
            case "image.removed":
                assert images.pop(name) == about["id"]
            case "image.pulled" | "image.imported" | "image.committed":
                assert name in images
            case "root.prepared" | "root.forked":
                assert name not in roots
                roots[name] = False
            case "root.mounted" | "root.unmounted":
                assert roots[name] == (event.kind == "root.unmounted")
                roots[name] = not roots[name]
            case "root.moved":
                roots[name] = roots.pop(about["from"])
            case "root.rolled-back":
                roots[name] = False
            case "root.cleaned":
                del roots[name]
    return images, roots


def check_log(store: orlop.Store) -> list[Event]:
    """Hold that a new store's log is what its rows are, without a gap; all its events."""
    events = list(store.events())
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    images, roots = told(events)
    assert images == {info.name: info.id for info in store.images()}
    rows = store.verbs._core.db.read(  # type: ignore[attr-defined]
        lambda tx: {row[0]: bool(row[1]) for row in tx.execute("SELECT path, mounted FROM prepared")}
    )
    assert roots == rows
    return events
