"""Forks and checkpoints of `orlop.testing.fake.FakeStore`: roots are values, so they are copied."""

from __future__ import annotations

from collections.abc import Sequence

from orlop.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound
from orlop.images.api import PreparedInfo
from orlop.images.forks import CheckpointInfo, ForkOptions
from orlop.observe import Call, Progress
from orlop.testing.fake_base import FakeBase
from orlop.values import replace

__all__ = ["FakeForks"]

_PLAIN = ForkOptions()


class FakeForks(FakeBase):
    """Satisfies `orlop.images.forks.Forks`.  Thread-safe."""

    def fork(
        self,
        path: str,
        new_paths: Sequence[str],
        *,
        options: ForkOptions = _PLAIN,
        call: Call | None = None,
    ) -> list[PreparedInfo]:
        """Roots that have what another has."""
        call = self._begin("fork", path, call)
        with self._lock:
            root = self._changing(path, "fork")
            if not new_paths or len(set(new_paths)) < len(new_paths):
                raise InvalidArgument(f"fork {path}", "no path for a fork, or one twice")
            taken = [new for new in new_paths if new in self._roots]
            if taken:
                raise AlreadyExists(f"prepare {taken[0]}", "the path is prepared already")
            labels = {**root.labels, **options.labels}
            points = self._points.get(path, {})
            for number, new in enumerate(new_paths):
                mounts = tuple(replace(one, target=one.target.replace(path, new, 1)) for one in root.mounts)
                self._roots[new] = replace(
                    root, path=new, mounts=mounts, labels=labels, mounted=options.mount, created=self.now
                )
                self._bases[new] = self._bases[path]
                if path in self._written:
                    self._written[new] = self._written[path]
                if options.move and number == 0:
                    self._points[new] = dict(points)
            if options.move:
                for table in (self._roots, self._bases, self._written, self._points):
                    table.pop(path, None)
            made = [self._roots[new] for new in new_paths]
        call.observer.progress(Progress(item=path, phase="done"))
        return made

    def checkpoint(self, path: str, name: str, *, call: Call | None = None) -> CheckpointInfo:
        """Remember what was written last."""
        call = self._begin("checkpoint", path, call)
        with self._lock:
            root = self._changing(path, "checkpoint")
            points = self._points.setdefault(path, {})
            if name in points:
                raise AlreadyExists(f"make checkpoint {name}", "the root has one of that name")
            content = self._written.get(path, "")
            info = CheckpointInfo(name=name, created=self.now, image_id=root.image_id, size=len(content))
            points[name] = info, content
        call.observer.progress(Progress(item=path, phase="done"))
        return info

    def checkpoints(self, path: str) -> list[CheckpointInfo]:
        """In the order in which they were made."""
        self._begin("checkpoints", path)
        with self._lock:
            self._prepared_root(path, "list checkpoints of")
            return [info for info, _ in self._points.get(path, {}).values()]

    def rollback(self, path: str, name: str, *, call: Call | None = None) -> PreparedInfo:
        """What was written is what it was."""
        call = self._begin("rollback", path, call)
        with self._lock:
            root = self._changing(path, "roll back")
            self._written[path] = self._point(path, name)[1]
        call.observer.progress(Progress(item=path, phase="done"))
        return root

    def drop_checkpoint(self, path: str, name: str) -> None:
        """One less."""
        self._begin("drop_checkpoint", path)
        with self._lock:
            self._prepared_root(path, "drop a checkpoint of")
            self._point(path, name)
            del self._points[path][name]

    def _point(self, path: str, name: str) -> tuple[CheckpointInfo, str]:
        points = self._points.get(path, {})
        if name not in points:
            raise NotFound(f"find checkpoint {name}", f"{path} has no such checkpoint")
        return points[name]

    def _changing(self, path: str, verb: str) -> PreparedInfo:
        root = self._prepared_root(path, verb)
        if root.kind == "view":
            raise FailedPrecondition(f"{verb} {path}", "it is a view: nothing can be written to it")
        return root

    def _prepared_root(self, path: str, verb: str) -> PreparedInfo:
        if path not in self._roots:
            raise NotFound(f"{verb} {path}", "nothing is prepared there")
        return self._roots[path]
