"""Deleting: names, what nothing needs, and what crashes left behind.

Two phases: a transaction forgets, and writes what to delete into ``trash``; then each thing is deleted under
its own lock, after looking once more for a row (`sweep`).  A removal and a collection wait for
the second; what ends otherwise (a lease, a pin, a root) does not.

What is needed is found in a transaction that only reads; the one that forgets asks again, and only about what
may go.  So a removal costs what goes, and a collection holds up nobody while it reads the store.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Mapping

from orlop.errors import FailedPrecondition
from orlop.hints import TYPE_CHECKING
from orlop.images import names
from orlop.images.api import Removed
from orlop.images.collection.graves import is_free, is_named
from orlop.images.core import NAMESPACE, Core
from orlop.images.leases import dead_leases
from orlop.metadata import garbage, images, pins
from orlop.metadata.db import Transaction
from orlop.metadata.garbage import Forgotten, Suspects
from orlop.metadata.needs import Without
from orlop.observe import Call, count, reached, stepped

if TYPE_CHECKING:
    from orlop.images.upkeep import Collected, Keep

__all__ = ["Collector"]

# What `remove` has no use for is imported where it is used: that was half of `orlop rmi`.

Items = list[tuple[str, int]]


class Collector:
    """Deletes from one store.  Thread-safe; never in the way of a pull of the same layer."""

    def __init__(self, core: Core) -> None:
        self._core = core

    def remove(self, text: str, *, force: bool) -> Removed:
        """See `orlop.images.api.Images.remove`."""
        what = f"remove {text}"
        dead = dead_leases(self._core)

        def body(tx: Transaction) -> tuple[list[str], list[Forgotten]]:
            row = names.require(tx, NAMESPACE, text, what)
            gone = [row.name]
            if not names.is_name_of(text, row.name):
                gone = [other.name for other in images.images_by_id(tx, NAMESPACE, row.config)]
                if row.name not in gone:
                    raise FailedPrecondition(
                        what, f"it is one platform of {row.name}", hint="remove that name, or give another"
                    )
                if len(gone) > 1 and not force:
                    raise FailedPrecondition(
                        what, f"the image has several names: {', '.join(gone)}", hint="name one, or use force"
                    )
            suspects = _ended(tx, dead)
            for name in gone:
                suspects.merge(garbage.suspects_of_image(tx, NAMESPACE, name))
                images.delete_image(tx, NAMESPACE, name)
            return gone, garbage.forget(tx, suspects)

        gone, found = self._core.db.write(body)
        reached("image.removed")
        swept = self._core.sweeper.sweep(call=Call())
        return Removed(names=tuple(gone), freed=sum(size for _, size in self._freed(found, swept)))

    @stepped("collect")
    def collect(self, *, dry_run: bool, keep: Keep | None, call: Call) -> Collected:
        """See `orlop.images.upkeep.Keeping.collect`."""
        from orlop.images.collection.idle import release_idle
        from orlop.images.collection.policy import check_keep
        from orlop.images.upkeep import Collected, Keep

        keep = keep or Keep()
        check_keep(keep, "collect")
        for one in self._core.behind:  # what was given up a moment ago is no litter, but on its way
            if dry_run:
                one.finish()
            else:
                one.rest()
        if dry_run:
            return self._preview(keep, call)
        count("collections")
        items = self._take_garbage(call)
        taken, more = self._take_images(keep, call)
        release_idle(self._core)
        return Collected(items=tuple(items + more), names=tuple(taken))

    def collect_idle(self, *, call: Call) -> Collected:
        """Take what ended by itself: expired pins, leases of the dead, and the trash of the killed.

        Costs what it takes: the store is not read.
        """
        from orlop.images.collection.strays import take_strays
        from orlop.images.upkeep import Collected

        count("collections")
        found = self._end_all(dead_leases(self._core), call)
        swept = self._core.sweeper.sweep(call=call)
        items = self._freed(found, swept) + self._left_over(found, swept)
        graves = take_strays(self._core, only="grave", call=call)
        return Collected(items=tuple(items + [(f"stray {one.path}", one.size) for one in graves]))

    # -- garbage --------------------------------------------------------------------------------

    def _take_garbage(self, call: Call) -> Items:
        from orlop.images.collection.strays import take_strays

        core = self._core
        dead = dead_leases(core)
        found = self._end_all(dead, call)
        suspects = core.db.read(garbage.everything)
        for part in suspects.chunks():
            found += core.db.write(lambda tx, part=part: garbage.forget(tx, part), call=call)  # type: ignore[misc]  # bound now
            reached("collect.forgotten")
        swept = core.sweeper.sweep(call=call)
        items = self._freed(found, swept) + self._left_over(found, swept)
        return items + [
            (f"stray {one.path}", one.size) for one in take_strays(core, call=call) if one.deletable
        ]

    def _end_all(self, dead: Collection[str], call: Call) -> list[Forgotten]:
        """End the leases of the dead and the pins that have expired; what they alone kept is forgotten."""
        now = time.time()
        if not dead and not self._core.db.read(lambda tx: pins.some_expired(tx, now=now)):
            return []
        found = self._core.db.write(lambda tx: garbage.forget(tx, _ended(tx, dead)), call=call)
        reached("collect.ended")
        return found

    # -- policies -------------------------------------------------------------------------------

    def _take_images(self, keep: Keep, call: Call) -> tuple[list[str], Items]:
        """Take the names away that a policy does not keep, and what goes with them."""
        from orlop.images.collection import expiry
        from orlop.images.space import available_bytes

        core = self._core
        going = expiry.chosen(core, keep, free=available_bytes(core.layout.root), dead=(), now=time.time())
        reached("collect.chosen")
        taken, found = expiry.take(core, going, call=call)
        return taken, self._freed(found, core.sweeper.sweep(call=call)) if found else []

    def _preview(self, keep: Keep, call: Call) -> Collected:
        """What a collection would take.  Nothing is written, and nobody is held up."""
        from orlop.images.account.measure import measure_some
        from orlop.images.collection import expiry
        from orlop.images.collection.strays import strays
        from orlop.images.space import available_bytes
        from orlop.images.upkeep import Collected

        core = self._core
        dead = dead_leases(core)
        now = time.time()

        def body(tx: Transaction, gone: Iterable[str] = ()) -> list[Forgotten]:
            without = Without(namespace=NAMESPACE, leases=dead, images=frozenset(gone))
            return garbage.find(tx, garbage.everything(tx, without=without), without=without)

        found = core.db.read(body)
        trash = [path for path in core.db.read(garbage.trash_list) if is_free(core, path)]
        left = list(strays(core, call=call))
        sizes = measure_some(core.layout.root, {*trash, *(item.path for item in found)}, call=call)
        free = (
            available_bytes(core.layout.root)
            + sum(sizes.values())
            + sum(one.size for one in left if one.deletable)
        )
        going = [
            name for image in expiry.chosen(core, keep, free=free, dead=dead, now=now) for name in image.names
        ]
        if going:
            found = core.db.read(lambda tx: body(tx, going))
            sizes = measure_some(core.layout.root, {*trash, *(item.path for item in found)}, call=call)
        items = [(f"{item.kind} {item.name}", sizes.get(item.path, 0)) for item in found]
        items += [(f"stray {path}", sizes[path]) for path in trash if path in sizes]
        items += [(f"stray {one.path}", one.size) for one in left if one.deletable]
        return Collected(items=tuple(items), names=tuple(going))

    # -- what was freed -------------------------------------------------------------------------

    def _freed(self, found: list[Forgotten], swept: Mapping[str, int]) -> Items:
        """What went of what was forgotten: also by another sweeper, but not what is somebody's again."""
        missing = [item for item in found if item.path not in swept]
        if missing:
            left = self._core.db.read(
                lambda tx: {*garbage.trash_list(tx), *(i.path for i in missing if is_named(tx, i.path))}
            )
            swept = {item.path: item.size for item in missing if item.path not in left} | dict(swept)
        return [(f"{item.kind} {item.name}", swept[item.path]) for item in found if item.path in swept]

    @staticmethod
    def _left_over(found: list[Forgotten], swept: Mapping[str, int]) -> Items:
        """What others had forgotten and not deleted."""
        known = {item.path for item in found}
        return [(f"stray {path}", size) for path, size in swept.items() if path not in known]


def _ended(tx: Transaction, dead: Iterable[str]) -> Suspects:
    """End the leases of the dead and the pins that have expired; what they kept."""
    suspects = pins.expire_pins(tx, now=time.time())
    for lease in dead:
        suspects.merge(garbage.lease_end(tx, lease))
    return suspects
