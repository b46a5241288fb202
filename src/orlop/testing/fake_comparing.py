"""What differs and where it came from, in memory: the part of `orlop.testing.fake.FakeStore` about that.

It knows the files that a test has put into things (`FakeContents.put`); all of them came with the topmost
layer, and nothing is ever hidden.  A root's image is the thing that it is compared with.
"""

from __future__ import annotations

from collections.abc import Generator

from orlop.errors import InvalidArgument, NotFound
from orlop.images.comparing import (
    Blame,
    BlameStep,
    Difference,
    HistoryLine,
    LayerWaste,
    TreeLine,
    Waste,
)
from orlop.images.contents import FileInfo
from orlop.observe import Call
from orlop.testing.fake_base import FakeImage
from orlop.testing.fake_contents import FakeContents

__all__ = ["FakeComparing"]


class FakeComparing(FakeContents):
    """Satisfies `orlop.images.comparing.Comparing`.  Thread-safe."""

    def diff(
        self,
        old: str,
        new: str | None = None,
        *,
        path: bytes = b"",
        times: bool = True,
        platform: str | None = None,
        call: Call | None = None,
    ) -> Generator[Difference]:
        """See `orlop.images.comparing.Comparing.diff`."""
        call = self._begin("diff", old, call)
        if new is None and not old.startswith("/"):
            raise InvalidArgument(f"compare {old}", "only a prepared root can stand alone")
        before, after = self._files(old, "diff"), self._files(new if new is not None else old, "diff")
        if new is None:
            before = self._files(self._roots[old].image, "diff")
        if path.strip(b"/") not in {*before, *after}:
            raise NotFound(f"compare {old}", f"neither has /{path.decode(errors='backslashreplace')}")
        for name in sorted({*before, *after}, key=lambda name: name.split(b"/")):
            call.check(f"compare {old}")
            if not _is_below(name, path):
                continue
            one, other = before.get(name), after.get(name)
            if one is None or other is None:
                what = "added" if one is None else "deleted"
                yield Difference(
                    path=name,
                    what="added" if what == "added" else "deleted",
                    old=one[0] if one else None,
                    new=other[0] if other else None,
                )
            elif one != other:
                yield Difference(path=name, what="changed", fields=("content",), old=one[0], new=other[0])

    def blame(
        self, thing: str, path: bytes, *, platform: str | None = None, call: Call | None = None
    ) -> Blame:
        """See `orlop.images.comparing.Comparing.blame`."""
        self._begin("blame", thing, call)
        found = self._files(thing, "blame").get(path.strip(b"/"))
        if found is None:
            raise NotFound(f"blame {thing}", "no layer ever had it")
        line = self._lines(thing, "blame")[-1]
        step = BlameStep(what="added", how="entry", line=line, at=path.strip(b"/"), file=found[0])
        return Blame(path=path.strip(b"/"), steps=(step,))

    def history(
        self, thing: str, *, platform: str | None = None, call: Call | None = None
    ) -> list[HistoryLine]:
        """See `orlop.images.comparing.Comparing.history`."""
        self._begin("history", thing, call)
        return self._lines(thing, "history")

    def tree(
        self,
        thing: str,
        path: bytes = b"",
        *,
        depth: int | None = None,
        layers: bool = False,
        platform: str | None = None,
        call: Call | None = None,
    ) -> Generator[TreeLine]:
        """See `orlop.images.comparing.Comparing.tree`."""
        call = self._begin("tree", thing, call)
        known, top = self._files(thing, "tree"), path.strip(b"/")
        if top not in known:
            raise NotFound(f"list {thing}", "there is no such path")
        number = len(self._lines(thing, "tree")) if layers else 0
        start = _level(top)
        for name in sorted(known, key=lambda name: name.split(b"/")):
            call.check(f"list {thing}")
            level = _level(name) - start
            if not _is_below(name, top) or (depth is not None and level > depth):
                continue
            below = [info for other, (info, _) in known.items() if _is_below(other, name)]
            total = sum(info.size for info in below)
            yield TreeLine(
                file=known[name][0], total=total, entries=len(below) - 1, layer=number, depth=level
            )

    def waste(
        self, thing: str, *, files: int = 10, platform: str | None = None, call: Call | None = None
    ) -> Waste:
        """See `orlop.images.comparing.Comparing.waste`."""
        self._begin("waste", thing, call)
        lines = self._lines(thing, "waste")
        return Waste(
            layers=tuple(
                LayerWaste(line=line, size=line.size, wasted=0, entries=0, files=0) for line in lines
            )
        )

    def _files(self, thing: str, verb: str) -> dict[bytes, tuple[FileInfo, bytes]]:
        known = self._known(thing, verb)
        found = {info.path: info for info in self.list_files(thing, recursive=True)}
        found[b""] = next(self.list_files(thing, itself=True))
        return {path: (info, known[path] or b"") for path, info in found.items()}

    def _lines(self, thing: str, verb: str) -> list[HistoryLine]:
        image: FakeImage
        with self._lock:
            if thing.startswith("/"):
                self._thing(thing, verb)
                image = self._bases[thing]
            else:
                image = self._find(thing, verb)[1]
        return [
            HistoryLine(
                layer=number, diff_id=layer.diff_id, created=self.now, size=layer.size, entries=layer.entries
            )
            for number, layer in enumerate(image.layers, 1)
        ]


def _is_below(path: bytes, top: bytes) -> bool:
    top = top.strip(b"/")
    return not top or path == top or path.startswith(top + b"/")


def _level(path: bytes) -> int:
    return path.count(b"/") + bool(path)
