"""Shares: made, made whole again, listed and taken away.  Orchestration only.

Invariants: the record first, then the pins, then the folder; taken away the other way round.  What a share
shows is kept by pins from before it shows it until after it is gone.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from orlop.errors import AlreadyExists, Error, FailedPrecondition, InvalidArgument, NotFound, from_oserror
from orlop.images.archives.chosen import choose_images
from orlop.images.chains import Chains
from orlop.images.core import NAMESPACE, Core
from orlop.images.shares import Share, ShareForm, ShareState
from orlop.images.sharing import layoutview, records, storeview
from orlop.images.sharing.documents import SharedDocuments, documents_of
from orlop.images.sharing.records import Record, SharedImage
from orlop.linux.files import write_durably
from orlop.metadata import garbage, pins, roots
from orlop.metadata.db import Transaction
from orlop.metadata.roots import ChainRow
from orlop.observe import Call, reached
from orlop.spec.digest import Digest, chain_id

__all__ = ["Sharer"]

_MARK = "orlop-share.json"
_TEMPORARY = re.compile(r"\.tmp-[0-9a-f]{16}")  # what `write_durably` leaves when it is killed


class Sharer:
    """The shares of one store.  Thread-safe."""

    def __init__(self, core: Core, chains: Chains) -> None:
        self._core = core
        self._chains = chains

    def share(
        self,
        folder: str,
        names: Sequence[str],
        *,
        form: ShareForm | None,
        platform: str | None,
        run_only: bool,
        call: Call,
    ) -> Share:
        """See `orlop.images.shares.Sharing.share`."""
        what = f"share {folder}"
        self._check_folder(folder, what)
        with self._core.locked("share", records.share_id(folder), call=call, attempted=what):
            known = records.read(self._core, folder)
            if known is None and not names:
                raise NotFound(what, "it is no share", hint="name images to put into a new one")
            if known is not None and form not in {None, known.form}:
                raise AlreadyExists(what, f"it is a share of form {known.form}", hint="drop it first")
            record = known or Record(
                folder=folder,
                form=form or "layout",
                run_only=run_only,
                created=datetime.fromtimestamp(int(time.time()), UTC).isoformat().replace("+00:00", "Z"),
            )
            if record.form == "store":
                self._check_store(what)
            with self._core.lease(what) as lease:
                images = self._images(record, names, platform, what)
                for image in images:
                    lease.keep(
                        ("config", image.config),
                        *(("blob", digest) for digest in image.kept),
                        *(("layer", diff_id) for diff_id in image.diff_ids),
                    )
                each = self._each(images, call) if record.form == "store" else {}
                self._claim(record, what)
                record = Record(
                    folder=folder,
                    form=record.form,
                    created=record.created,
                    run_only=record.run_only,
                    images=tuple(
                        SharedImage(
                            name=image.name,
                            config=str(image.config),
                            manifest=str(image.digest),
                            media_type=image.media_type,
                        )
                        for image in images
                    ),
                )
                records.write(self._core, record)
                reached("share.recorded")
                self._pin(folder, images, each)
                reached("share.pinned")
                self._show(record, images, each, what, call)
                reached("share.shown")
        return _share(record, "ready")

    def shares(self) -> list[Share]:
        """See `orlop.images.shares.Sharing.shares`."""
        return [_share(record, self._state(record)) for record in records.read_all(self._core)]

    def drop(self, folder: str, *, call: Call) -> None:
        """See `orlop.images.shares.Sharing.drop_share`."""
        what = f"drop share {folder}"
        with self._core.locked("share", records.share_id(folder), call=call, attempted=what):
            record = records.read(self._core, folder)
            if record is None:
                raise NotFound(what, "it is no share", hint="'orlop share list' shows what there is")
            place = Path(folder)
            if record.form == "store" and (users := storeview.users_of(place)):
                raise FailedPrecondition(
                    what, f"a container stands on it: {users[0]}", hint="stop and remove it first"
                )
            try:
                if place.is_dir() and (place / _MARK).exists():
                    self._check_mark(place, what)
                    view = storeview if record.form == "store" else layoutview
                    view.remove(place)
                    for path in place.iterdir():
                        if _TEMPORARY.fullmatch(path.name):
                            path.unlink()
                    (place / _MARK).unlink()
                    with suppress(OSError):  # somebody else has put something there
                        place.rmdir()
            except OSError as exc:
                raise from_oserror(what, exc) from exc
            reached("share.hidden")
            self._unpin(folder)
            records.forget(self._core, folder)

    # -- steps ----------------------------------------------------------------------------------

    def _check_folder(self, folder: str, what: str) -> None:
        if not folder.startswith("/") or os.path.normpath(folder) != folder or folder == "/":
            raise InvalidArgument(what, "the folder is no clean absolute path")
        if any(letter in folder for letter in ":,\\"):
            raise InvalidArgument(
                what, "a colon, comma or backslash in the folder's path would mislead podman"
            )
        if self._core.layout.contains(folder) or self._core.layout.hidden_by(folder):
            raise InvalidArgument(what, "the folder is a part of the store", hint="choose one beside it")

    def _check_store(self, what: str) -> None:
        verdict = self._core.verdict("erofs")
        if not verdict.works:
            raise FailedPrecondition(
                what, f"layers cannot be mounted here: {verdict.reason}", hint="share it as a layout"
            )

    def _claim(self, record: Record, what: str) -> None:
        """Make the folder, or see that it is this share's."""
        place = Path(record.folder)
        try:
            place.mkdir(mode=0o755, parents=True, exist_ok=True)
            if (place / _MARK).exists():
                self._check_mark(place, what)
                return
            if any(not _TEMPORARY.fullmatch(path.name) for path in place.iterdir()):
                raise AlreadyExists(what, "the folder holds something else", hint="give an empty one")
        except OSError as exc:
            raise from_oserror(what, exc) from exc
        mark = {"store": os.fspath(self._core.layout.root), "form": record.form}
        # The record comes first: a mark without one would be nobody's.
        records.write(self._core, record)
        write_durably(place / _MARK, json.dumps(mark).encode(), mode=0o644, sync=self._core.sync)

    def _check_mark(self, place: Path, what: str) -> None:
        try:
            mark = json.loads((place / _MARK).read_bytes())
            store = mark["store"]
        except (ValueError, TypeError, KeyError) as exc:
            raise AlreadyExists(what, f"{place / _MARK} is not what orlop writes") from exc
        if store != os.fspath(self._core.layout.root):
            raise AlreadyExists(what, f"it is a share of the store {store}")

    def _images(
        self, record: Record, names: Sequence[str], platform: str | None, what: str
    ) -> list[SharedDocuments]:
        """All images of the share: those that are in it, as it has them, and the new ones."""
        core, whole = self._core, record.form == "layout"
        found: dict[str, SharedDocuments] = {}
        for old in record.images:
            manifest = Digest(old.manifest)
            known = manifest if core.blobs.has(manifest) else None
            found[old.name] = documents_of(core, old.name, Digest(old.config), known, whole=whole, what=what)
        if names:
            for chosen in choose_images(core, names, platform=platform, all_platforms=False, what=what):
                row = chosen.row
                name = chosen.name or row.name
                found[name] = documents_of(core, name, row.config, row.manifest, whole=whole, what=what)
        return [found[name] for name in sorted(found)]

    def _each(self, images: Sequence[SharedDocuments], call: Call) -> dict[str, ChainRow]:
        """Each layer's EROFS image by layer."""
        found: dict[str, ChainRow] = {}
        for image in images:
            rows = self._chains.ensure_each(image.diff_ids, call=call)
            for count, row in enumerate(rows, start=1):
                found[storeview.layer_id(image.diff_ids[:count])] = row
        return found

    def _pin(self, folder: str, images: Sequence[SharedDocuments], each: dict[str, ChainRow]) -> None:
        prefix = records.pin_prefix(folder)
        things = {("config", str(image.config)) for image in images}
        things |= {("blob", str(digest)) for image in images for digest in image.kept}
        things |= {("chain", row.id) for row in each.values()}

        def body(tx: Transaction) -> bool:
            for row in each.values():
                if roots.get_chain(tx, row.id) is None:
                    raise NotFound(f"share {folder}", "a chain was collected meanwhile", hint="try again")
            before = garbage.Suspects()
            for pin in pins.list_pins(tx, NAMESPACE, now=0):
                if pin.name.startswith(prefix):
                    pins.take_pin(tx, NAMESPACE, pin.name)
                    before.add(pin.kind, pin.ref)
            for number, (kind, ref) in enumerate(sorted(things)):
                pins.put_pin(tx, NAMESPACE, f"{prefix}{number}", kind=kind, ref=ref, expires=None)
            return bool(garbage.forget(tx, before))

        if self._core.db.write(body):
            self._core.sweeper.wake()

    def _unpin(self, folder: str) -> None:
        self._pin(folder, (), {})

    def _show(
        self,
        record: Record,
        images: Sequence[SharedDocuments],
        each: dict[str, ChainRow],
        what: str,
        call: Call,
    ) -> None:
        place = Path(record.folder)
        try:
            if record.form == "layout":
                layoutview.make(self._core, place, images)
            else:
                trees = {name: self._chains.image(row) for name, row in each.items()}
                storeview.make(self._core, place, images, trees, run_only=record.run_only, call=call)
        except OSError as exc:
            raise from_oserror(what, exc) from exc

    def _state(self, record: Record) -> ShareState:
        place = Path(record.folder)
        if not (place / _MARK).exists():
            return "missing"
        try:
            images = self._images(record, (), None, f"read share {record.folder}")
        except Error:
            return "unfinished"  # what it is to show is gone
        if record.form == "layout":
            return "ready" if images and layoutview.is_whole(place, images) else "unfinished"
        if not images or not storeview.is_whole(place, images):
            return "unfinished"
        uuids: dict[str, bytes] = {}
        for image in images:
            for count in range(1, len(image.diff_ids) + 1):
                part = image.diff_ids[:count]
                name, chain = storeview.layer_id(part), f"{chain_id(part).hex}-each"
                row = self._core.db.read(lambda tx, chain=chain: roots.get_chain(tx, chain))  # type: ignore[misc]  # bound now
                uuids[name] = row.uuid if row is not None else b"gone"
        return "ready" if storeview.is_mounted(place, images, uuids) else "unmounted"


def _share(record: Record, state: ShareState) -> Share:
    return Share(
        folder=record.folder,
        form=record.form,
        images=tuple(image.name for image in record.images),
        created=record.created,
        state=state,
    )
