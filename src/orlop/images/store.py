"""`LocalStore`: the verbs of `orlop.images.api`, done in this process.

Orchestration only: each verb's work is in the module named after it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

from orlop.config import DRIVERS, Settings
from orlop.errors import (
    FailedPrecondition,
    InvalidArgument,
    NotFound,
)
from orlop.hints import TYPE_CHECKING, ParamSpec, TypeVar
from orlop.images.api import (
    CommitOptions,
    FetchedBlobs,
    ImageDetails,
    ImageInfo,
    PreparedInfo,
    PrepareOptions,
    PushResult,
    Removed,
)
from orlop.images.archives.verbs import ExportVerbs
from orlop.images.browsing.comparing import ComparingVerbs
from orlop.images.browsing.verbs import ContentVerbs
from orlop.images.changed.verbs import ForkVerbs
from orlop.images.contentstore.verbs import ContentApiVerbs
from orlop.images.core import NAMESPACE, Core
from orlop.images.cri.verbs import NodeImageVerbs
from orlop.images.layout import FORMAT_VERSION, Layout
from orlop.images.listing import info_of, list_images
from orlop.images.parts import verb
from orlop.images.sharing.verbs import SharingVerbs
from orlop.images.snapshotting.verbs import SnapshotVerbs
from orlop.images.watching.verbs import WatchVerbs
from orlop.metadata import boots, images, platforms, roots, snapshots
from orlop.metadata.db import Transaction
from orlop.observe import Call
from orlop.version import __version__

if TYPE_CHECKING:
    from orlop.images.imports import ImportOptions, ImportSource
    from orlop.images.upkeep import (
        BackedUp,
        Checked,
        Collected,
        Explanation,
        Keep,
        Pin,
        StoreInfo,
        Usage,
    )
    from orlop.linux.confine import Confinement

__all__ = ["LocalStore"]

_PLAIN = PrepareOptions()
_PLAIN_COMMIT = CommitOptions()
_CALL = Call()
_P = ParamSpec("_P")
_R = TypeVar("_R")


class LocalStore(
    ForkVerbs,
    ComparingVerbs,
    ContentVerbs,
    ExportVerbs,
    WatchVerbs,
    NodeImageVerbs,
    SnapshotVerbs,
    SharingVerbs,
    ContentApiVerbs,
):
    """One open store; satisfies `orlop.images.api.Store`.  Thread-safe."""

    @classmethod
    def open(cls, root: Path, run: Path, *, settings: Settings | None = None) -> LocalStore:
        """Open the store at ``root``, making it if it is not there.  See `orlop.open`."""
        return cls(Core.open(Layout(root=root, run=run), settings or Settings()))

    # -- images ---------------------------------------------------------------------------------

    @verb("pull")
    def pull(
        self,
        name: str,
        *,
        platform: str | Sequence[str] | None = None,
        all_platforms: bool = False,
        call: Call = _CALL,
    ) -> ImageInfo:
        """See `orlop.images.api.Images.pull`."""
        self._foresee(name, None)
        return self._puller.pull_name(name, platform=platform, all_platforms=all_platforms, call=call).info

    @verb("push")
    def push(
        self,
        name: str,
        destination: str | None = None,
        *,
        tags: Sequence[str] = (),
        recompress: bool = False,
        compression: str | None = None,
        level: int | None = None,
        format: str | None = None,  # noqa: A002 - the option's name
        all_platforms: bool = False,
        call: Call = _CALL,
    ) -> PushResult:
        """See `orlop.images.api.Images.push`."""
        from orlop.images.transfer.push import Pusher

        if all_platforms:
            from orlop.images.transfer.push_index import push_index

            if recompress or (compression, level, format) != (None, None, None):
                raise InvalidArgument(
                    f"push {name}",
                    "an index is pushed as it is",
                    hint="leave out --recompress, --compression, --level and --format",
                )
            return push_index(self._core, name, destination, tags=tags, call=call)
        return Pusher(self._core).push(
            name,
            destination,
            tags=tags,
            recompress=recompress,
            compression=compression,
            level=level,
            format=format,
            call=call,
        )

    @verb("fetch blobs of")
    def fetch_blobs(self, name: str, *, call: Call = _CALL) -> FetchedBlobs:
        """See `orlop.images.api.Images.fetch_blobs`."""
        from orlop.images.transfer.blobfetch import BlobFetcher

        return BlobFetcher(self._core).fetch(name, call=call)

    @verb("list images")
    def images(self) -> list[ImageInfo]:
        """See `orlop.images.api.Images.images`."""
        return list_images(self._core)

    def _info(self, name: str) -> ImageInfo:
        from orlop.images import names
        from orlop.images.details import info_in_full

        row = self._core.db.read(lambda tx: names.require(tx, NAMESPACE, name, f"read image {name}"))
        return info_in_full(self._core, row)

    @verb("inspect")
    def inspect(self, name: str, *, platform: str | None = None) -> ImageDetails:
        """See `orlop.images.api.Images.inspect`."""
        from orlop.images.details import details_of

        return details_of(self._core, name, platform)

    @verb("tag")
    def tag(self, name: str, new_name: str) -> ImageInfo:
        """See `orlop.images.api.Images.tag`."""
        from orlop.images import names

        full = names.new_name(new_name, f"tag {name}")

        def body(tx: Transaction) -> ImageInfo:
            row = names.require(tx, NAMESPACE, name, f"tag {name}")
            images.put_image(
                tx,
                NAMESPACE,
                full,
                config=row.config,
                manifest=row.manifest,
                platform=row.platform,
                created=row.created,
                index=row.index,
                held=platforms.platforms_of(tx, NAMESPACE, row.name) if row.index is not None else (),
            )
            return info_of(tx, full)

        return self._core.db.write(body)

    @verb("label")
    def label(self, name: str, changes: Mapping[str, str | None]) -> ImageInfo:
        """See `orlop.images.api.Images.label`."""
        from orlop.images.collection.pinned import label_image

        return self._info(label_image(self._core, name, changes))

    @verb("remove", deletes=True)
    def remove(self, name: str, *, force: bool = False) -> Removed:
        """See `orlop.images.api.Images.remove`."""
        return self._collector.remove(name, force=force)

    @verb("import")
    def load(
        self,
        source: ImportSource,
        *,
        name: str | None = None,
        platform: str | Sequence[str] | None = None,
        all_platforms: bool = False,
        options: ImportOptions | None = None,
        call: Call = _CALL,
    ) -> list[ImageInfo]:
        """See `orlop.images.api.Images.load`."""
        from orlop.images.archives.load import Loader
        from orlop.images.imports import ImportOptions

        options = options or ImportOptions()
        return Loader(self._core, self._ingest).load(
            source, name=name, platform=platform, all_platforms=all_platforms, options=options, call=call
        )

    # -- prepared roots -------------------------------------------------------------------------

    @verb("prepare")
    def prepare_root(
        self, name: str, path: str, *, options: PrepareOptions = _PLAIN, call: Call = _CALL
    ) -> PreparedInfo:
        """See `orlop.images.api.Roots.prepare_root`."""
        self._foresee(name, options.pull)
        return self._preparer.prepare(name, path, options=options, call=call)

    @verb("list mounts of")
    def mounts(self, path: str) -> PreparedInfo:
        """See `orlop.images.api.Roots.mounts`."""
        return self._roots.mounts(path, call=Call())

    @verb("mount")
    def mount(self, path: str) -> PreparedInfo:
        """See `orlop.images.api.Roots.mount`."""
        return self._roots.mount(path, call=Call())

    @verb("unmount", deletes=True)
    def unmount(self, path: str) -> PreparedInfo:
        """See `orlop.images.api.Roots.unmount`."""
        return self._roots.unmount(path, call=Call())

    @verb("list roots")
    def prepared(self) -> list[PreparedInfo]:
        """See `orlop.images.api.Roots.prepared`."""
        return self._roots.prepared()

    @verb("commit")
    def commit(
        self,
        path: str,
        name: str | None = None,
        *,
        options: CommitOptions = _PLAIN_COMMIT,
        call: Call = _CALL,
    ) -> ImageInfo:
        """See `orlop.images.api.Roots.commit`."""
        return self._committer.commit(path, name, options=options, call=call)

    @verb("clean up", deletes=True)
    def cleanup(self, path: str, *, call: Call = _CALL) -> None:
        """See `orlop.images.api.Roots.cleanup`."""
        self._roots.cleanup(path, call=call)

    # -- the store ------------------------------------------------------------------------------

    @verb("collect", deletes=True)
    def collect(self, *, dry_run: bool = False, keep: Keep | None = None, call: Call = _CALL) -> Collected:
        """See `orlop.images.upkeep.Keeping.collect`."""
        return self._collector.collect(dry_run=dry_run, keep=keep, call=call)

    @verb("collect", deletes=True)
    def collect_idle(self, *, call: Call = _CALL) -> Collected:
        """Take what ended by itself, as a daemon does when it is idle; costs what it takes."""
        return self._collector.collect_idle(call=call)

    @verb("measure the store")
    def usage(self, *, call: Call = _CALL) -> Usage:
        """See `orlop.images.upkeep.Keeping.usage`."""
        from orlop.images.account.accounting import Accounting

        return Accounting(self._core).usage(self._litter(call), call=call)

    @verb("explain")
    def explain(self, thing: str, *, call: Call = _CALL) -> Explanation:
        """See `orlop.images.upkeep.Keeping.explain`."""
        from orlop.images.account.explain import Explainer

        return Explainer(self._core).explain(thing, litter=lambda: self._litter(call), call=call)

    def _litter(self, call: Call) -> Collected:
        """What a collection would take now."""
        return self._collector.collect(dry_run=True, keep=None, call=call)

    @verb("pin")
    def pin(self, thing: str, name: str | None = None, *, expires: float | None = None) -> Pin:
        """See `orlop.images.upkeep.Keeping.pin`."""
        return self._pinner.pin(thing, name, expires=expires)

    @verb("unpin", deletes=True)
    def unpin(self, name: str) -> None:
        """See `orlop.images.upkeep.Keeping.unpin`."""
        self._pinner.unpin(name)

    @verb("list pins")
    def pins(self) -> list[Pin]:
        """See `orlop.images.upkeep.Keeping.pins`."""
        return self._pinner.pins()

    @verb("check")
    def check(
        self,
        *,
        full: bool = False,
        repair: bool = False,
        things: tuple[str, ...] = (),
        pace: int | None = None,
        call: Call = _CALL,
    ) -> Checked:
        """See `orlop.images.upkeep.Upkeep.check`."""
        return self._checker.check(full=full, repair=repair, things=things, pace=pace, call=call)

    @verb("check")
    def scrub(self, *, budget: int, older: float, pace: int | None = None, call: Call = _CALL) -> Checked:
        """Read some layers again, as an idle daemon does; see `orlop.images.checking.check.Checker.scrub`."""
        return self._checker.scrub(budget=budget, older=older, pace=pace, call=call)

    @verb("back up to")
    def backup(self, destination: str, *, content: bool = False, call: Call = _CALL) -> BackedUp:
        """See `orlop.images.upkeep.Upkeep.backup`."""
        from orlop.images.backups.backup import Backup

        return Backup(self._core).write(destination, content=content, call=call)

    @verb("read store")
    def info(self) -> StoreInfo:
        """See `orlop.images.api.Upkeep.info`."""
        from orlop.images.features import features
        from orlop.images.upkeep import DriverInfo, StoreInfo

        core = self._core
        if not core.layout.database.exists():
            raise NotFound(f"read store {core.layout.root}", "the folder is gone")

        def body(tx: Transaction) -> tuple[int, int]:
            return images.count_images(tx, NAMESPACE), roots.count_roots(tx)

        image_count, root_count = core.db.read(body)
        return StoreInfo(
            version=__version__,
            root=str(core.layout.root),
            run=str(core.layout.run),
            driver=self._chosen(),
            format=FORMAT_VERSION,
            images=image_count,
            prepared=root_count,
            drivers=tuple(
                DriverInfo(name=verdict.driver, available=verdict.works, reason=verdict.reason)
                for verdict in map(core.verdict, DRIVERS)
            ),
            privilege=core.privilege,
            features={
                **features(core.layout.root, lambda: self._confinement),
                "lowers in one mount": str(self._most_lowers()),
                "durable": self._durability(),
                "containerd's snapshots": str(core.db.read(snapshots.count_snapshots)),
                "hot loops": _hot_loops(),
            },
            limits=core.settings.limits.changed(),
        )

    @cached_property
    def _confinement(self) -> Confinement:
        """What a worker says of its confinement; asked once."""
        from orlop.layers.worker.client import confinement

        return confinement(self._core.template, call=Call())

    def _durability(self) -> str:
        """Whether what is answered for outlasts a power cut, and whether all of it does."""
        core = self._core
        lost = core.db.read(lambda tx: boots.others(tx, core.boot))
        if lost:
            return "unknown: not synced before a reboot; 'orlop check --full --repair' finds what was lost"
        if core.db.read(lambda tx: boots.is_marked(tx, core.boot)):
            return "no: a part was written without syncing"
        return "yes"

    def _most_lowers(self) -> int:
        """How many folders the overlay driver stacks; what exceeds that is merged."""
        layout = self._core.layout
        return self._core.overlay.most(layout.folders / ("0" * 10), layout.prepared)

    def _chosen(self) -> str:
        """The driver that a new root gets; none if the one that is set does not work here."""
        try:
            return self._core.choose(self._core.settings.driver).name
        except FailedPrecondition:
            return ""

    def reconfigure(self, settings: Settings) -> tuple[str, ...]:
        """Go by other settings; the names of those that wait for the store to be opened anew."""
        return self._core.reconfigure(settings)

    def close(self) -> None:
        """See `orlop.images.api.Upkeep.close`."""
        self._end_snapshots()
        self._core.close()


def _hot_loops() -> str:
    """Whether the modules that read tars and write indexes are the compiled ones (packaging/compiled)."""
    from orlop.layers import index

    return "pure Python" if index.__file__.endswith(".py") else "compiled"
