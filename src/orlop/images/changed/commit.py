"""Commit: what changed below a prepared root becomes a layer, and the layer an image.

The layer is `orlop.images.changed.capture`'s.  The image has a config and no manifest: that comes with its
blobs, when it is pushed, and has the annotations that are remembered here.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime

from orlop.errors import FailedPrecondition, InvalidArgument
from orlop.hints import Any
from orlop.images import names
from orlop.images.api import CommitOptions, ImageInfo
from orlop.images.chains import Chains
from orlop.images.changed.annotations import check_annotations, of_image, of_root
from orlop.images.changed.capture import Capture, Shape
from orlop.images.changed.changes import Editor, is_text
from orlop.images.core import NAMESPACE, Core, Lease
from orlop.images.names import new_name
from orlop.images.naming import name_image
from orlop.images.platforms import best, held, not_held
from orlop.images.prepared.grounds import Grounds
from orlop.layers.excludes import Excludes
from orlop.metadata.roots import ChainRow, RootRow
from orlop.observe import Call, Progress, stepped
from orlop.spec.digest import DiffID, Digest
from orlop.spec.documents import ImageConfig, encode, parse_config, parse_json
from orlop.values import dataclass

__all__ = ["Committer", "edit_config"]

_LINE = "orlop commit"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Base:
    """The image that a commit is put on: its documents, and where that is not the root's own, its chain."""

    data: bytes
    config: ImageConfig
    diff_ids: tuple[DiffID, ...]
    annotations: Mapping[str, str]
    stack: tuple[ChainRow, ...] | None = None


class Committer:
    """Commits roots of one store.  Thread-safe."""

    def __init__(self, core: Core, chains: Chains, grounds: Grounds, capture: Capture) -> None:
        self._core = core
        self._chains = chains
        self._grounds = grounds
        self._capture = capture

    @stepped("commit", of=1)
    def commit(self, path: str, name: str | None, *, options: CommitOptions, call: Call) -> ImageInfo:
        """See `orlop.images.api.Roots.commit`."""
        what = f"commit {path}"
        full = new_name(name, what) if name else f"localhost/commit:{os.urandom(8).hex()}"
        core, excludes = self._core, Excludes.parse(options.exclude)
        check_annotations(options.annotations, what)
        self._grounds.require(path, what)
        with core.lease(what) as lease, core.locked("path", path, call=call, attempted=what):
            root = self._grounds.require(path, what)
            if root.kind != "active":
                raise FailedPrecondition(what, "the root is a read-only view; there is nothing to commit")
            self._grounds.check_privilege(root, what)
            base = self._own_base(root, what, call)
            if options.base is not None:
                base = self._other_base(options.base, base.config, lease, what, call)
            document = parse_json(base.data, what)
            edit_config(document, None, options)  # refuses what it will refuse before the work is done
            shape = Shape(excludes=excludes, newest=options.newest, base=base.stack, squash=options.squash)
            with self._standing_still(options.freeze, what, call):
                call.observer.progress(Progress(item=path, phase="reading"))
                diff_id = self._capture.layer(root, lease, call, shape=shape)
            config = edit_config(document, diff_id, options)
            digest = Digest.of(config)
            core.write_document(digest, config, lease=lease, call=call)
            info = name_image(
                core,
                full,
                config=digest,
                diff_ids=parse_config(config, what).diff_ids(),
                manifest=None,
                annotations={**base.annotations, **options.annotations},
                event="image.committed",
                about={"root": path},
                call=call,
            )
        call.observer.progress(Progress(item=path, phase="done"))
        return info

    # -- what it is put on ----------------------------------------------------------------------

    def _own_base(self, root: RootRow, what: str, call: Call) -> _Base:
        core = self._core
        data = core.blobs.read(root.config)
        config = parse_config(data, what)
        return _Base(
            data=data,
            config=config,
            diff_ids=config.diff_ids(),
            annotations=of_root(core, root, what, call),
        )

    def _other_base(self, name: str, own: ImageConfig, lease: Lease, what: str, call: Call) -> _Base:
        """An image to rebase onto: that for the platform of the root's own."""
        core = self._core
        row = core.db.read(lambda tx: names.require(tx, NAMESPACE, name, what))
        rows = core.db.read(lambda tx: held(tx, row))
        found = best(core, rows, own.platform())
        if found is None:
            raise not_held(core, row, rows, own.platform(), what)
        lease.keep(("config", found.config))
        diff_ids = core.layers_of(found.config, what)
        lease.keep(*(("layer", diff_id) for diff_id in diff_ids))
        data = core.blobs.read(found.config)
        return _Base(
            data=data,
            config=parse_config(data, what),
            diff_ids=diff_ids,
            annotations=of_image(core, found.config, found.manifest, what, call),
            stack=tuple(self._chains.ensure(diff_ids, call=call)),
        )

    @contextlib.contextmanager
    def _standing_still(self, cgroup: str, what: str, call: Call) -> Iterator[None]:
        """Have a cgroup frozen for the length of a ``with`` block, if one is named."""
        if not cgroup:
            yield
            return
        from orlop.linux.cgroups import find_cgroup, frozen

        found = find_cgroup(cgroup, what)
        # Two that freeze it at once would thaw it for one another.
        with self._core.locked("cgroup", found.key, call=call, attempted=what):
            call.observer.progress(Progress(item=cgroup, phase="freezing"))
            with frozen(found, attempted=what, call=call):
                yield


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
    old_ids: list[str] = list(rootfs.get("diff_ids") or [])
    history = list(document.get("history") or [])
    known = sum(not line.get("empty_layer") for line in history)
    history += [{"created_by": "unknown"}] * max(0, len(old_ids) - known)  # one line for each layer
    line: dict[str, Any] = {"created": stamp, "created_by": _LINE}
    if options.author:
        line["author"] = options.author
    if options.message:
        line["comment"] = options.message
    if options.squash:  # what was done before is told still, and that it has no layer of its own any more
        history = [{**before, "empty_layer": True} for before in history]
        line["created_by"] += " --squash"
        old_ids = []
    if diff_id is None:
        line["empty_layer"] = True
    rootfs["diff_ids"] = [*old_ids, *([str(diff_id)] if diff_id is not None else [])]
    config = dict(document.get("config") or {})
    edited = {**document, "created": stamp, "rootfs": rootfs, "history": [*history, line], "config": config}
    if options.author:
        edited["author"] = options.author
    editor = Editor(edited)
    for change in options.changes:
        editor.apply(change)
    for stale in ("container", "container_config", "id", "parent"):  # docker's own, about another container
        edited.pop(stale, None)
    return encode(edited)
