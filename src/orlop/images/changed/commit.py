"""Commit: what changed below a prepared root becomes a layer, and the layer an image.

Only the upper is read; nothing is compressed.  The tar is hashed and indexed while it is written, so the
diff ID is known with its last byte.  The image has a config and no manifest: that comes with its blobs,
when it is pushed.
"""

from __future__ import annotations

import os
import secrets
from datetime import UTC, datetime
from typing import Any

from orlop.errors import FailedPrecondition, InvalidArgument, from_oserror
from orlop.images.api import CommitOptions, ImageInfo
from orlop.images.chains import Chains
from orlop.images.changed.changes import apply_change, is_text
from orlop.images.core import Core, Lease
from orlop.images.names import new_name
from orlop.images.naming import name_image
from orlop.images.prepared.roots import RootService
from orlop.images.space import needing
from orlop.images.transfer.ingest import LayerIngest
from orlop.layers.diff import changes
from orlop.layers.layerwrite import least_size, write_layer
from orlop.layers.worker.client import Unpacked
from orlop.metadata import layers
from orlop.metadata.db import Transaction
from orlop.metadata.layers import LayerRow
from orlop.metadata.roots import RootRow
from orlop.observe import Call, Progress, reached
from orlop.spec.digest import DiffID, Digest
from orlop.spec.documents import encode, parse_config, parse_json

__all__ = ["Committer"]


class Committer:
    """Commits roots of one store.  Thread-safe."""

    def __init__(self, core: Core, chains: Chains, roots: RootService, ingest: LayerIngest) -> None:
        self._core = core
        self._chains = chains
        self._roots = roots
        self._ingest = ingest

    def commit(self, path: str, name: str | None, *, options: CommitOptions, call: Call) -> ImageInfo:
        """See `orlop.images.api.Roots.commit`."""
        what = f"commit {path}"
        full = new_name(name, what) if name else f"localhost/commit:{secrets.token_hex(8)}"
        core = self._core
        self._roots.require(path, what)
        with core.lease(what) as lease, core.locked("path", path, call=call, attempted=what):
            root = self._roots.require(path, what)
            if root.kind != "active":
                raise FailedPrecondition(what, "the root is a read-only view; there is nothing to commit")
            self._roots.grounds.check_privilege(root, what)
            data = core.blobs.read(root.config)
            old = parse_config(data, what)
            document = parse_json(data, what)
            edit_config(document, None, options)  # refuses what it will refuse before the work is done
            call.observer.progress(Progress(item=path, phase="reading"))
            diff_id = self._capture(root, lease, call)
            config = edit_config(document, diff_id, options)
            digest = Digest.of(config)
            core.write_document(digest, config, lease=lease, call=call)
            diff_ids = old.diff_ids() + ((diff_id,) if diff_id is not None else ())
            info = name_image(
                core,
                full,
                config=digest,
                diff_ids=diff_ids,
                manifest=None,
                call=call,
            )
        call.observer.progress(Progress(item=path, phase="done"))
        return info

    def _capture(self, root: RootRow, lease: Lease, call: Call) -> DiffID | None:
        """The upper as a layer that is durable; None if nothing changed."""
        core = self._core
        if root.quota is not None:
            self._roots.grounds.mount_disk(root, call)
        upper_path, kind = self._roots.grounds.upper(root)
        stack = self._roots.grounds.stack(root, call)
        try:
            upper = os.open(upper_path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as exc:
            raise from_oserror("commit", exc) from exc
        try:
            devices = [self._chains.devices(row) for row in stack]
            with self._chains.view(stack) as view:
                found = changes(upper, view, devices, kind=kind, call=call)
                if not found:
                    return None
                least = least_size(found)
                with needing(core.layout.root, least, f"commit {root.path}"), core.layers.new() as new:
                    written = write_layer(found, upper, new.tar, view, devices, call=call)
                    reached("commit.written")
                    unpacked = Unpacked(
                        diff_id=written.diff_id,
                        index=written.index,
                        encoded=written.index.encode(),
                        tar_size=written.size,
                    )
                    diff_id = written.diff_id
                    with core.locked("layer", diff_id.hex, call=call, attempted="commit"):
                        if not self._keep(diff_id, lease, call):
                            row = self._ingest.publish(new, unpacked)
                            self._keep(diff_id, lease, call, row)
                            reached("commit.named")
                    return diff_id
        except OSError as exc:
            raise from_oserror("commit", exc) from exc
        finally:
            os.close(upper)

    def _keep(self, diff_id: DiffID, lease: Lease, call: Call, row: LayerRow | None = None) -> bool:
        """Put a lease on a layer, after naming it if ``row`` is given; whether it is there."""

        def body(tx: Transaction) -> bool:
            if row is not None:
                layers.add_layer(tx, row)
            if layers.get_layer(tx, diff_id) is None:
                return False
            lease.add(tx, "layer", diff_id)
            return True

        lease.mark_used()
        return self._core.db.write(body, call=call)


def edit_config(document: dict[str, Any], diff_id: DiffID | None, options: CommitOptions) -> bytes:
    """The config of the new image: the old one's JSON with its layer, history and changes.

    Fields that orlop does not know stay as they are.  Raises `InvalidArgument` for options that no
    config can hold.
    """
    if not (is_text(options.author) and is_text(options.message)):
        raise InvalidArgument("edit config", "the author or the message is not UTF-8")
    try:
        created = (
            datetime.now(UTC) if options.created is None else datetime.fromtimestamp(options.created, UTC)
        )
    except (ValueError, OverflowError, OSError) as exc:  # RFC 3339 ends with the year 9999
        raise InvalidArgument("edit config", f"no date has the time {options.created}") from exc
    stamp = created.isoformat().replace("+00:00", "Z")
    rootfs = dict(document["rootfs"])
    old_ids = list(rootfs.get("diff_ids") or [])
    history = list(document.get("history") or [])
    known = sum(not line.get("empty_layer") for line in history)
    history += [{"created_by": "unknown"}] * max(0, len(old_ids) - known)  # one line for each layer
    line: dict[str, Any] = {"created": stamp, "created_by": "orlop commit"}
    if options.author:
        line["author"] = options.author
    if options.message:
        line["comment"] = options.message
    if diff_id is None:
        line["empty_layer"] = True
    else:
        rootfs["diff_ids"] = [*old_ids, str(diff_id)]
    config = dict(document.get("config") or {})
    for change in options.changes:
        apply_change(config, change)
    edited = {**document, "created": stamp, "rootfs": rootfs, "history": [*history, line], "config": config}
    if options.author:
        edited["author"] = options.author
    for stale in ("container", "container_config", "id", "parent"):  # docker's own, about another container
        edited.pop(stale, None)
    return encode(edited)
