"""`LocalStore`: the verbs of `orlop.images.api`, done in this process.

Orchestration only: each verb's work is in the module named after it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import cached_property, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Concatenate, ParamSpec, TypeVar

from orlop.config import DRIVERS, Settings
from orlop.errors import (
    Error,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    from_oserror,
)
from orlop.images import names
from orlop.images.api import (
    Collected,
    CommitOptions,
    DriverInfo,
    FetchedBlobs,
    ImageDetails,
    ImageInfo,
    PreparedInfo,
    PrepareOptions,
    PushResult,
    Removed,
    StoreInfo,
)
from orlop.images.core import NAMESPACE, Core
from orlop.images.features import features
from orlop.images.layout import FORMAT_VERSION, Layout
from orlop.images.listing import info_of, list_images
from orlop.images.space import is_full, told
from orlop.images.upkeep import Keep, Pin
from orlop.metadata import boots, images, platforms, roots
from orlop.metadata.db import Transaction
from orlop.observe import Call
from orlop.version import __version__

if TYPE_CHECKING:
    from orlop.images.chains import Chains
    from orlop.images.checking.check import Checker
    from orlop.images.collection.collect import Collector
    from orlop.images.collection.pinned import Pinner
    from orlop.images.commit import Committer
    from orlop.images.ingest import LayerIngest
    from orlop.images.pull import Puller
    from orlop.images.roots import RootService
    from orlop.images.upkeep import BackedUp, Checked, Explanation, Usage
    from orlop.linux.confine import Confinement

__all__ = ["LocalStore"]

_PLAIN = PrepareOptions()
_PLAIN_COMMIT = CommitOptions()
_CALL = Call()
_P = ParamSpec("_P")
_R = TypeVar("_R")


def _verb(
    name: str, *, deletes: bool = False
) -> Callable[[Callable[Concatenate[LocalStore, _P], _R]], Callable[Concatenate[LocalStore, _P], _R]]:
    """The border of the library: an OSError that nothing below has given a meaning leaves as an error.

    That of a full disk says where it is and what is free.  A verb that ``deletes`` may spend the reserve.
    """

    def decorate(
        function: Callable[Concatenate[LocalStore, _P], _R],
    ) -> Callable[Concatenate[LocalStore, _P], _R]:
        @wraps(function)
        def call(self: LocalStore, /, *args: _P.args, **kwargs: _P.kwargs) -> _R:
            reserve = self._core.reserve.deleting() if deletes else nullcontext()
            try:
                with reserve:
                    return function(self, *args, **kwargs)
            except (OSError, ResourceExhausted) as exc:
                words = " ".join([name, *(str(arg) for arg in args[:1])])
                if is_full(exc):
                    error = told(words, exc, self.root)
                    if not deletes:
                        self._give_back(error)
                    raise error from exc
                if isinstance(exc, OSError):
                    raise from_oserror(words, exc) from exc
                raise

        return call

    return decorate


class LocalStore:
    """One open store; satisfies `orlop.images.api.Store`.  Thread-safe."""

    def __init__(self, core: Core) -> None:
        self._core = core

    def _give_back(self, error: Error) -> None:
        """After a verb ran out of room: delete what it brought, which no row needs any more."""
        try:
            self.collect()
        except Error as exc:
            error.add_note(f"nor could what it took be given back: {exc}")

    # The parts are made, and their modules imported, when a verb first needs them: listing images
    # has no use for tar and EROFS.

    @cached_property
    def _ingest(self) -> LayerIngest:
        from orlop.images.ingest import LayerIngest

        return LayerIngest(self._core)

    @cached_property
    def _chains(self) -> Chains:
        from orlop.images.chains import Chains

        return Chains(self._core)

    @cached_property
    def _puller(self) -> Puller:
        from orlop.images.pull import Puller

        return Puller(self._core, self._ingest)

    @cached_property
    def _roots(self) -> RootService:
        from orlop.images.roots import RootService

        return RootService(self._core, self._chains, self._puller)

    @cached_property
    def _committer(self) -> Committer:
        from orlop.images.commit import Committer

        return Committer(self._core, self._chains, self._roots, self._ingest)

    @cached_property
    def _pinner(self) -> Pinner:
        from orlop.images.collection.pinned import Pinner

        return Pinner(self._core)

    @cached_property
    def _checker(self) -> Checker:
        from orlop.images.checking.check import Checker

        return Checker(self._core, self._chains, self._roots.grounds)

    @cached_property
    def _collector(self) -> Collector:
        from orlop.images.collection.collect import Collector

        return Collector(self._core)

    @classmethod
    def open(cls, root: Path, run: Path, *, settings: Settings | None = None) -> LocalStore:
        """Open the store at ``root``, making it if it is not there.  See `orlop.open`."""
        return cls(Core.open(Layout(root=root, run=run), settings or Settings()))

    @property
    def root(self) -> Path:
        """The store's folder."""
        return self._core.layout.root

    # -- images ---------------------------------------------------------------------------------

    @_verb("pull")
    def pull(
        self,
        name: str,
        *,
        platform: str | Sequence[str] | None = None,
        all_platforms: bool = False,
        call: Call = _CALL,
    ) -> ImageInfo:
        """See `orlop.images.api.Images.pull`."""
        return self._puller.pull_name(name, platform=platform, all_platforms=all_platforms, call=call).info

    @_verb("push")
    def push(
        self,
        name: str,
        destination: str | None = None,
        *,
        tags: Sequence[str] = (),
        recompress: bool = False,
        all_platforms: bool = False,
        call: Call = _CALL,
    ) -> PushResult:
        """See `orlop.images.api.Images.push`."""
        from orlop.images.push import Pusher

        if all_platforms:
            from orlop.images.push_index import push_index

            if recompress:
                raise InvalidArgument(
                    f"push {name}", "an index is pushed as it is", hint="leave out --recompress"
                )
            return push_index(self._core, name, destination, tags=tags, call=call)
        return Pusher(self._core).push(name, destination, tags=tags, recompress=recompress, call=call)

    @_verb("fetch blobs of")
    def fetch_blobs(self, name: str, *, call: Call = _CALL) -> FetchedBlobs:
        """See `orlop.images.api.Images.fetch_blobs`."""
        from orlop.images.blobfetch import BlobFetcher

        return BlobFetcher(self._core).fetch(name, call=call)

    @_verb("list images")
    def images(self) -> list[ImageInfo]:
        """See `orlop.images.api.Images.images`."""
        return list_images(self._core)

    def _info(self, name: str) -> ImageInfo:
        from orlop.images.details import info_in_full

        row = self._core.db.read(lambda tx: names.require(tx, NAMESPACE, name, f"read image {name}"))
        return info_in_full(self._core, row)

    @_verb("inspect")
    def inspect(self, name: str, *, platform: str | None = None) -> ImageDetails:
        """See `orlop.images.api.Images.inspect`."""
        from orlop.images.details import details_of

        return details_of(self._core, name, platform)

    @_verb("tag")
    def tag(self, name: str, new_name: str) -> ImageInfo:
        """See `orlop.images.api.Images.tag`."""
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

    @_verb("label")
    def label(self, name: str, changes: Mapping[str, str | None]) -> ImageInfo:
        """See `orlop.images.api.Images.label`."""
        from orlop.images.collection.pinned import label_image

        return self._info(label_image(self._core, name, changes))

    @_verb("remove", deletes=True)
    def remove(self, name: str, *, force: bool = False) -> Removed:
        """See `orlop.images.api.Images.remove`."""
        return self._collector.remove(name, force=force)

    @_verb("import")
    def load(
        self,
        source: str,
        *,
        name: str | None = None,
        platform: str | Sequence[str] | None = None,
        all_platforms: bool = False,
        call: Call = _CALL,
    ) -> list[ImageInfo]:
        """See `orlop.images.api.Images.load`."""
        from orlop.images.load import Loader

        return Loader(self._core, self._ingest).load(
            source, name=name, platform=platform, all_platforms=all_platforms, call=call
        )

    # -- prepared roots -------------------------------------------------------------------------

    @_verb("prepare")
    def prepare_root(
        self, name: str, path: str, *, options: PrepareOptions = _PLAIN, call: Call = _CALL
    ) -> PreparedInfo:
        """See `orlop.images.api.Roots.prepare_root`."""
        return self._roots.prepare(name, path, options=options, call=call)

    @_verb("list mounts of")
    def mounts(self, path: str) -> PreparedInfo:
        """See `orlop.images.api.Roots.mounts`."""
        return self._roots.mounts(path, call=Call())

    @_verb("mount")
    def mount(self, path: str) -> PreparedInfo:
        """See `orlop.images.api.Roots.mount`."""
        return self._roots.mount(path, call=Call())

    @_verb("unmount", deletes=True)
    def unmount(self, path: str) -> PreparedInfo:
        """See `orlop.images.api.Roots.unmount`."""
        return self._roots.unmount(path, call=Call())

    @_verb("list roots")
    def prepared(self) -> list[PreparedInfo]:
        """See `orlop.images.api.Roots.prepared`."""
        return self._roots.prepared()

    @_verb("commit")
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

    @_verb("clean up", deletes=True)
    def cleanup(self, path: str, *, call: Call = _CALL) -> None:
        """See `orlop.images.api.Roots.cleanup`."""
        self._roots.cleanup(path, call=call)

    # -- the store ------------------------------------------------------------------------------

    @_verb("collect", deletes=True)
    def collect(self, *, dry_run: bool = False, keep: Keep | None = None, call: Call = _CALL) -> Collected:
        """See `orlop.images.upkeep.Keeping.collect`."""
        return self._collector.collect(dry_run=dry_run, keep=keep, call=call)

    @_verb("collect", deletes=True)
    def collect_idle(self, *, call: Call = _CALL) -> Collected:
        """Take what ended by itself, as a daemon does when it is idle; costs what it takes."""
        return self._collector.collect_idle(call=call)

    @_verb("measure the store")
    def usage(self, *, call: Call = _CALL) -> Usage:
        """See `orlop.images.upkeep.Keeping.usage`."""
        from orlop.images.account.accounting import Accounting

        return Accounting(self._core).usage(self._litter(call), call=call)

    @_verb("explain")
    def explain(self, thing: str, *, call: Call = _CALL) -> Explanation:
        """See `orlop.images.upkeep.Keeping.explain`."""
        from orlop.images.account.explain import Explainer

        return Explainer(self._core).explain(thing, litter=lambda: self._litter(call), call=call)

    def _litter(self, call: Call) -> Collected:
        """What a collection would take now."""
        return self._collector.collect(dry_run=True, keep=None, call=call)

    @_verb("pin")
    def pin(self, thing: str, name: str | None = None, *, expires: float | None = None) -> Pin:
        """See `orlop.images.upkeep.Keeping.pin`."""
        return self._pinner.pin(thing, name, expires=expires)

    @_verb("unpin", deletes=True)
    def unpin(self, name: str) -> None:
        """See `orlop.images.upkeep.Keeping.unpin`."""
        self._pinner.unpin(name)

    @_verb("list pins")
    def pins(self) -> list[Pin]:
        """See `orlop.images.upkeep.Keeping.pins`."""
        return self._pinner.pins()

    @_verb("check")
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

    @_verb("check")
    def scrub(self, *, budget: int, older: float, pace: int | None = None, call: Call = _CALL) -> Checked:
        """Read some layers again, as an idle daemon does; see `orlop.images.checking.check.Checker.scrub`."""
        return self._checker.scrub(budget=budget, older=older, pace=pace, call=call)

    @_verb("back up to")
    def backup(self, destination: str, *, content: bool = False, call: Call = _CALL) -> BackedUp:
        """See `orlop.images.upkeep.Upkeep.backup`."""
        from orlop.images.backups.backup import Backup

        return Backup(self._core).write(destination, content=content, call=call)

    @_verb("read store")
    def info(self) -> StoreInfo:
        """See `orlop.images.api.Upkeep.info`."""
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

    def close(self) -> None:
        """See `orlop.images.api.Upkeep.close`."""
        self._core.close()
