"""Things for the explorer to show, in memory: layers are dicts of paths and contents, and the rest follows.

    shelf = Shelf([{b"etc/a": b"1"}, {b"etc/a": None, b"etc/b": b"22"}])

``None`` deletes; folders are there because of what is in them.  A `Gate` in front of it holds all reads until it
is opened.
"""

from __future__ import annotations

import stat
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from orlop.errors import NotFound
from orlop.explorer.survey import LayerSurvey, Node, Survey
from orlop.explorer.tui.model import Forest
from orlop.images.comparing import HistoryLine, WastedFile
from orlop.observe import Call
from orlop.values import replace

Content = bytes | None
WAIT = 120.0  # s; nothing here takes so long, however slow the machine


@dataclass
class Shelf:
    """An image (`orlop.explorer.tui.source.Source`); with ``root`` its last layer is a root's changes."""

    layers: Sequence[Mapping[bytes, Content]]
    commands: Sequence[str] = ()
    config: dict[str, Any] = field(default_factory=dict)
    root: bool = False
    asked: list[int] = field(default_factory=list)

    def numbers(self) -> list[int]:
        numbers = list(range(1, len(self.layers) + 1))
        return [*numbers[:-1], 0] if self.root else numbers

    def place(self, number: int) -> int:
        return self.numbers().index(number)

    def files(self, place: int) -> dict[bytes, tuple[bytes, int]]:
        """What shows above so many layers: content, and the number of who brought it."""
        found: dict[bytes, tuple[bytes, int]] = {}
        for number, layer in list(zip(self.numbers(), self.layers, strict=True))[:place]:
            for path, content in layer.items():
                for other in [other for other in found if other == path or other.startswith(path + b"/")]:
                    del found[other]
                if content is not None:
                    found[path] = content, number
        return found

    def changes(self, number: int) -> dict[bytes, str]:
        """What a layer did to files."""
        place = self.place(number)
        before, after = self.files(place), self.files(place + 1)
        found = {path: "deleted" for path in before if path not in after}
        found |= {path: "added" for path in after if path not in before}
        return found | {path: "changed" for path in after if path in before and before[path] != after[path]}

    def outline(self, call: Call) -> Survey:
        whole = self.survey(call)
        layers = tuple(replace(layer, added=0, changed=0, deleted=0) for layer in whole.layers)
        return replace(whole, layers=layers, waste=(), entries=0, wasted=0, content=0)

    def survey(self, call: Call) -> Survey:
        call.check("survey")
        layers, history, waste = [], [], []
        for number, layer in zip(self.numbers(), self.layers, strict=True):
            did = list(self.changes(number).values())
            place = self.place(number)
            command = self.commands[place] if place < len(self.commands) else ""
            size = sum(len(content or b"") for content in layer.values())
            about = {
                "diff_id": f"sha256:{number:064x}",
                "created_by": command,
                "size": size,
                "entries": len(layer),
            }
            if number:
                history.append(HistoryLine(layer=number, created="2026-01-02T03:04:05Z", **about))
            counts = {what: did.count(what) for what in ("added", "changed", "deleted")}
            layers.append(LayerSurvey(number=number, **about, **counts))
            below = self.files(place)
            waste += [
                WastedFile(
                    path=path, size=len(below[path][0]), layer=below[path][1], hidden_by=number, what=what
                )  # type: ignore[arg-type]
                for path, what in self.changes(number).items()
                if path in below and number
            ]
        history.append(HistoryLine(created_by="ENV A=b"))
        shown = self.files(len(self.layers))
        return Survey(
            thing="shelf",
            kind="root" if self.root else "image",
            names=("localhost/shelf:latest",),
            id="sha256:" + "ab" * 32,
            platform="linux/amd64",
            size=sum(layer.size for layer in layers),
            entries=len(shown),
            content=sum(layer.size for layer in layers),
            wasted=sum(file.size for file in waste),
            layers=tuple(layers),
            history=tuple(history),
            waste=tuple(sorted(waste, key=lambda file: -file.size)),
            config=self.config,
        )

    def forest(self, layer: int, call: Call) -> Forest:
        call.check("read the tree")
        self.asked.append(layer)
        if layer not in self.numbers():
            raise NotFound(f"read layer {layer}", "there is none")
        place = self.place(layer)
        top = Node(b"", "folder")
        top.mode = stat.S_IFDIR | 0o755
        did = self.changes(layer)
        before = self.files(place)
        shown = self.files(place + 1)
        for path in sorted({*shown, *did}):
            content, number = shown.get(path) or before[path]
            node = top
            parts = path.split(b"/")
            for part in parts[:-1]:
                node = node.children.setdefault(part, Node(part, "folder"))
            leaf = Node(parts[-1], "file", what=did.get(path, "same"))  # type: ignore[arg-type]
            leaf.mode, leaf.size, leaf.layer = stat.S_IFREG | 0o644, len(content), number
            leaf.total = 0 if leaf.what == "deleted" else leaf.size
            node.children[parts[-1]] = leaf
        _sum_up(top)
        return Forest(top, call=call)

    def head(self, path: bytes, layer: int, size: int, call: Call) -> bytes:
        call.check("read a file")
        found = self.files(self.place(layer) + 1).get(path)
        if found is None:
            raise NotFound(f"read {path!r}", "no such file")
        return found[0][:size]


def _sum_up(top: Node) -> None:
    order = [top]
    for node in order:
        order.extend(node.children.values())
    for node in reversed(order):
        for child in node.children.values():
            node.total += child.total
            node.count += child.count + 1
            node.layer = max(node.layer, child.layer)


class Gate:
    """A source that waits before it gives trees, until it is opened or the call is cancelled."""

    def __init__(self, shelf: Shelf, *, outline: bool = False) -> None:
        self.shelf = shelf
        self.holds_outline = outline
        self.opened = threading.Event()
        self.entered = threading.Event()
        self.cancelled = 0

    def _wait(self, call: Call) -> None:
        self.entered.set()
        try:
            while not self.opened.wait(0.005):
                call.check("wait")
        except Exception:
            self.cancelled += 1
            raise

    def outline(self, call: Call) -> Survey:
        if self.holds_outline:
            self._wait(call)
        return self.shelf.outline(call)

    def survey(self, call: Call) -> Survey:
        self._wait(call)
        return self.shelf.survey(call)

    def forest(self, layer: int, call: Call) -> Forest:
        self._wait(call)
        return self.shelf.forest(layer, call)

    def head(self, path: bytes, layer: int, size: int, call: Call) -> bytes:
        return self.shelf.head(path, layer, size, call)


def marks(forest: Forest) -> dict[bytes, tuple[str, int]]:
    """Of each file of a forest what became of it, and its bytes."""
    found: dict[bytes, tuple[str, int]] = {}
    stack: list[tuple[bytes, Node]] = [(b"", forest.root)]
    while stack:
        path, node = stack.pop()
        above = path + b"/" if path else b""
        stack.extend((above + name, child) for name, child in node.children.items())
        if node.kind == "file":
            found[path] = node.what, node.size
    return found


def deep(levels: int) -> Iterable[bytes]:
    """The parts of a very deep path."""
    return [b"%d" % level for level in range(levels)]
