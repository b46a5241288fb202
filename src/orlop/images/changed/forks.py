"""Fork: new roots with the content of one, which goes on.

The forks stand on a state of the source (`orlop.images.changed.states`), each with an upper of its own, and
appear in one transaction.  A source that is given up becomes the first of them: its row gets the new path,
and nothing on disk changes, for mounts name a root's folder by its id.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

from orlop.errors import Error, InvalidArgument
from orlop.images.api import PreparedInfo
from orlop.images.chains import Chains
from orlop.images.changed.states import States
from orlop.images.core import Core, Lease
from orlop.images.forks import ForkOptions
from orlop.images.prepared.asked import check_path
from orlop.images.prepared.batch import new_ids
from orlop.images.prepared.making import name_root
from orlop.images.prepared.roots import RootService, info_of_root
from orlop.metadata import roots
from orlop.metadata.db import Transaction
from orlop.metadata.roots import RootRow
from orlop.observe import Call, Progress, reached, stepped
from orlop.values import replace

__all__ = ["Forker"]


class Forker:
    """Forks roots of one store.  Thread-safe."""

    def __init__(self, core: Core, chains: Chains, roots: RootService, states: States) -> None:
        self._core = core
        self._chains = chains
        self._roots = roots
        self._states = states

    @stepped("fork", of=1)
    def fork(
        self, path: str, new_paths: Sequence[str], *, options: ForkOptions, call: Call
    ) -> list[PreparedInfo]:
        """See `orlop.images.forks.Forks.fork`."""
        core, what = self._core, f"fork {path}"
        self._check_new(new_paths, what)
        self._states.require(path, what)
        with core.lease(what) as lease, core.locked("path", path, call=call, attempted=what):
            root = self._states.require(path, what)
            labels = core.db.read(lambda tx: _look(tx, root, new_paths))
            if options.move:
                made = self._move(root, new_paths, options, lease, call)
            else:
                made = self._fork(root, new_paths, options, lease, call)
        if options.mount:
            made = self._mount(root, labels, made, options, call)
        call.observer.progress(Progress(item=path, phase="done"))
        return made

    def _move(
        self, root: RootRow, new_paths: Sequence[str], options: ForkOptions, lease: Lease, call: Call
    ) -> list[PreparedInfo]:
        """Forks of a source that is given up; a failure leaves it as it was, mounted or not."""
        core, to = self._core, new_paths[0]
        try:
            idle = self._roots.idle(root, f"fork {root.path}", call)
            if len(new_paths) > 1:
                return self._fork(idle, new_paths, options, lease, call)
            core.db.write(lambda tx: roots.move_root(tx, root.id, to, options.labels), call=call)
            reached("fork.moved")
        except BaseException:
            if root.mounted:
                with contextlib.suppress(Error):  # the first failure is the one to report
                    self._roots.mount_again(root.path)
            raise
        return [self._roots.mounts(to, call=call)]

    def _check_new(self, new_paths: Sequence[str], what: str) -> None:
        if not new_paths:
            raise InvalidArgument(what, "no path for a fork", hint="give one path for each")
        for path in new_paths:
            check_path(path, what)
            if self._core.layout.contains(path):
                raise InvalidArgument(
                    what, f"the path {path} lies inside the store", hint="choose one outside of it"
                )
        if len(set(new_paths)) < len(new_paths):
            raise InvalidArgument(what, "a path is told twice", hint="give each fork a path of its own")

    def _fork(
        self, root: RootRow, new_paths: Sequence[str], options: ForkOptions, lease: Lease, call: Call
    ) -> list[PreparedInfo]:
        core, what = self._core, f"fork {root.path}"
        moved, others = (new_paths[:1], new_paths[1:]) if options.move else ((), new_paths)
        ids = new_ids(len(others), what)
        core.choose(core.drivers[root.driver].name)
        state = self._states.now(root, lease, call)
        whole = root.self_contained and root.driver == "erofs"
        stack = self._chains.ensure(state.diff_ids, call=call, whole=whole)

        def read(tx: Transaction) -> tuple[dict[str, str], list[roots.MountRow]]:
            return roots.labels_of(tx, root.id), roots.mounts_of(tx, root.id)

        labels, extras = core.db.read(read)
        labels |= options.labels
        first = replace(
            root,
            config=state.config,
            chain=stack[0].id,
            mounted=False,
            made_target=False,
            created=time.time(),
            form=core.form.name,
        )
        rows = [replace(first, id=new, path=path) for new, path in zip(ids, others, strict=True)]
        try:
            with self._roots.batch.made(rows, stack, extras, call=call) as made:

                def name(tx: Transaction) -> None:
                    for row in rows:
                        name_root(
                            tx,
                            row,
                            labels,
                            made.folders,
                            extras,
                            event="root.forked",
                            about={"from": root.path},
                        )
                    for path in moved:
                        roots.move_root(tx, root.id, path, options.labels)

                core.db.write(name, call=call)
                reached("fork.named")
        except BaseException:
            with contextlib.suppress(Error):  # the first failure is the one to report
                self._roots.release(rows[0], [row.id for row in stack])
            raise
        infos = [info_of_root(row, spec, labels) for row, spec in zip(rows, made.specs, strict=True)]
        return [*(self._roots.mounts(path, call=call) for path in moved), *infos]

    def _mount(
        self,
        source: RootRow,
        labels: Mapping[str, str],
        made: Sequence[PreparedInfo],
        options: ForkOptions,
        call: Call,
    ) -> list[PreparedInfo]:
        """Mount new roots; where one cannot be, none of them stays, and the source is what it was."""
        try:
            return [self._roots.mount(info.path, call=call) for info in made]
        except BaseException:
            steps: list[Callable[[], object]] = []
            for number, info in enumerate(made):
                if options.move and number == 0:
                    steps += self._give_back(source, labels, info.path)
                else:
                    steps.append(partial(self._roots.cleanup, info.path, call=Call()))
            for step in steps:
                with contextlib.suppress(Error):  # the first failure is the one to report
                    step()
            raise

    def _give_back(
        self, source: RootRow, labels: Mapping[str, str], path: str
    ) -> Iterator[Callable[[], object]]:
        """What makes of a source that has moved to a path what it was, each step as far as it can be done."""
        yield partial(self._roots.unmount, path, call=Call())
        yield lambda: self._core.db.write(lambda tx: _move_back(tx, source, labels))
        if source.mounted:
            yield partial(self._roots.mount_again, source.path)


def _look(tx: Transaction, root: RootRow, new_paths: Sequence[str]) -> dict[str, str]:
    """Raise `AlreadyExists` where a new path is taken; the labels of the source."""
    for path in new_paths:
        if roots.get_root(tx, path) is not None:
            raise roots.already_prepared(path)
    return roots.labels_of(tx, root.id)


def _move_back(tx: Transaction, source: RootRow, labels: Mapping[str, str]) -> None:
    if roots.is_root(tx, source.id):
        roots.drop_labels(tx, source.id)
        roots.move_root(tx, source.id, source.path, labels)
