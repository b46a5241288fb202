"""The parts of a store that the verbs are done with, and the border that their errors leave by.

Verbs are methods of classes that build on `Parts`, one for each room that has some; `orlop.images.store`
puts them together.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext, suppress
from functools import cached_property, wraps
from importlib import import_module
from pathlib import Path

from orlop.errors import Error, ResourceExhausted, from_oserror
from orlop.hints import TYPE_CHECKING, Concatenate, ParamSpec, TypeVar
from orlop.images.core import NAMESPACE, Core
from orlop.images.space import is_full, told
from orlop.observe import Call

if TYPE_CHECKING:
    from orlop.images.chains import Chains
    from orlop.images.changed.capture import Capture
    from orlop.images.changed.commit import Committer
    from orlop.images.checking.check import Checker
    from orlop.images.collection.collect import Collector
    from orlop.images.collection.pinned import Pinner
    from orlop.images.prepared.grounds import Grounds
    from orlop.images.prepared.roots import RootService
    from orlop.images.transfer.ingest import LayerIngest
    from orlop.images.transfer.pull import Puller

__all__ = ["Parts", "verb"]

_P = ParamSpec("_P")
_R = TypeVar("_R")
_S = TypeVar("_S", bound="Parts")


def verb(
    name: str, *, deletes: bool = False
) -> Callable[[Callable[Concatenate[_S, _P], _R]], Callable[Concatenate[_S, _P], _R]]:
    """The border of the library: an OSError that nothing below has given a meaning leaves as an error.

    That of a full disk says where it is and what is free.  A verb that ``deletes`` may spend the reserve.
    """

    def decorate(
        function: Callable[Concatenate[_S, _P], _R],
    ) -> Callable[Concatenate[_S, _P], _R]:
        @wraps(function)
        def call(self: _S, /, *args: _P.args, **kwargs: _P.kwargs) -> _R:
            reserve = self._core.reserve.deleting() if deletes else nullcontext()
            try:
                with reserve:
                    return function(self, *args, **kwargs)
            except (OSError, ResourceExhausted) as exc:
                words = " ".join([name, *("-" if hasattr(arg, "__next__") else str(arg) for arg in args[:1])])
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


class Parts:
    """What every verb may use.  Thread-safe."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._first = True

    def _give_back(self, error: Error) -> None:
        """After a verb ran out of room: delete what it brought, which no row needs any more."""
        try:
            self._collector.collect(dry_run=False, keep=None, call=Call())
        except Error as exc:
            error.add_note(f"nor could what it took be given back: {exc}")

    # The parts are made, and their modules imported, when a verb first needs them: listing images
    # has no use for tar and EROFS.

    @cached_property
    def _ingest(self) -> LayerIngest:
        from orlop.images.transfer.ingest import LayerIngest

        return LayerIngest(self._core)

    @cached_property
    def _chains(self) -> Chains:
        from orlop.images.chains import Chains

        return Chains(self._core)

    @cached_property
    def _puller(self) -> Puller:
        from orlop.images.transfer.pull import Puller

        return Puller(self._core, self._ingest)

    @cached_property
    def _roots(self) -> RootService:
        from orlop.images.prepared.roots import RootService

        return RootService(self._core, self._chains, self._grounds, lambda: self._puller)

    @cached_property
    def _grounds(self) -> Grounds:
        from orlop.images.prepared.grounds import Grounds

        return Grounds(self._core, self._chains)

    def _foresee(self, name: str, policy: str | None) -> None:
        """Let the workers' template start while we import the rest, if layers will have to be fetched.

        Worth its look at the first verb alone: later ones find all that there is to import.
        """
        core, first = self._core, self._first
        self._first = False
        if not first or (policy or core.settings.pull) == "never":
            return
        from orlop.images import names
        from orlop.spec.reference import is_short

        if core.settings.search_registries is not False and is_short(name):
            return  # it may mean one of several, and one of these may be there
        with suppress(Error):  # raised when it is needed
            if core.db.read(lambda tx: names.find(tx, NAMESPACE, name)) is None:
                core.template.start()

    @cached_property
    def _preparer(self) -> RootService:
        """The same, with what a Prepare needs besides.

        Under the property's own lock: threads that prepare at once do not import at once.
        """
        for name in ("erofs.writer", "images.platforms", "layers.merge", "layers.sources"):
            import_module(f"orlop.{name}")
        return self._roots

    @cached_property
    def _capture(self) -> Capture:
        from orlop.images.changed.capture import Capture

        return Capture(self._core, self._chains, self._grounds)

    @cached_property
    def _committer(self) -> Committer:
        from orlop.images.changed.commit import Committer

        return Committer(self._core, self._chains, self._grounds, self._capture)

    @cached_property
    def _pinner(self) -> Pinner:
        from orlop.images.collection.pinned import Pinner

        return Pinner(self._core)

    @cached_property
    def _checker(self) -> Checker:
        from orlop.images.checking.check import Checker

        return Checker(self._core, self._chains, self._grounds)

    @cached_property
    def _collector(self) -> Collector:
        from orlop.images.collection.collect import Collector

        return Collector(self._core)

    @property
    def root(self) -> Path:
        """The store's folder."""
        return self._core.layout.root
