"""Trees of files as values, and what layers make of them: the oracle that drivers are compared with.

Flat and slow on purpose: a tree is a dictionary of paths (bytes, relative, the root is ``b""``), and a layer
is applied to it member by member, by the rules of docs/layers.md and nothing else.  No path in a layer may
need cleaning or lead through a symlink of its own layer: that is for others to test.

A tree says nothing of what file systems may differ in by right: link counts and sizes of folders,
blocks, inode numbers; a file's names are its hard-link group, ``twins``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from orlop.testing.layers import Layer, Member
from orlop.values import dataclass, field, replace

__all__ = ["Entry", "Tree", "apply", "below", "changed", "without"]

_OPAQUE = b".wh..wh..opq"
_WHITEOUT = b".wh."


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """What one path of a tree is.

    ``size`` is None for folders.  ``twins`` are all names of a file that has several, its own
    included, sorted.
    """

    kind: str
    mode: int
    uid: int = 0
    gid: int = 0
    mtime_ns: int = 0
    size: int | None = None
    digest: str = ""
    target: bytes = b""
    device: tuple[int, int] = (0, 0)
    xattrs: tuple[tuple[str, bytes], ...] = ()
    twins: tuple[bytes, ...] = ()


Tree = dict[bytes, Entry]


def apply(layers: Iterable[Layer]) -> Tree:
    """What an image of these layers, bottom first, shows."""
    model = _Model()
    for layer in layers:
        model.apply(layer)
    return model.tree()


def below(tree: Iterable[bytes], folder: bytes) -> list[bytes]:
    """The paths of all that is in a folder, and in the folders in it; ``b""`` is the root."""
    prefix = folder + b"/" if folder else b""
    return [path for path in tree if path and path.startswith(prefix)]


def changed(tree: Tree, path: bytes, **fields: object) -> Tree:
    """A tree with some fields of one entry changed."""
    return {**tree, path: replace(tree[path], **fields)}  # type: ignore[arg-type]  # fields by name


def without(tree: Tree, *removed: bytes) -> Tree:
    """A tree less some paths and what is below them."""
    gone = {path for folder in removed for path in (folder, *below(tree, folder))}
    return {path: entry for path, entry in tree.items() if path not in gone}


@dataclass(slots=True, eq=False)
class _Inode:
    """A thing that may have several names."""

    entry: Entry
    names: set[bytes] = field(default_factory=set)


class _Model:
    """A tree to which layers are applied."""

    def __init__(self) -> None:
        self._nodes: dict[bytes, _Inode] = {}

    def tree(self) -> Tree:
        """The tree as it stands."""
        found: Tree = {}
        for path, node in self._nodes.items():
            twins = tuple(sorted(node.names)) if len(node.names) > 1 else ()
            found[path] = replace(node.entry, twins=twins)
        return found

    def apply(self, layer: Layer) -> None:
        """Lay one layer over the tree."""
        self._hide(layer)
        newest = max((member.mtime_ns for member in layer.members if _brings(member)), default=0)
        if b"" not in self._nodes:
            self._put(b"", _implied(newest))
        for member in layer.members:
            path = _path(member)
            self._make_parents(path, newest)  # a whiteout, too, stands in a folder
            if not path.rpartition(b"/")[2].startswith(_WHITEOUT):
                self._make(path, member)

    def _hide(self, layer: Layer) -> None:
        """Take away what a layer hides of those below, wherever that stands in the layer."""
        for member in layer.members:
            parent, _, last = _path(member).rpartition(b"/")
            if last == _OPAQUE:
                for path in below(list(self._nodes), parent):
                    self._take(path)
            elif last.startswith(_WHITEOUT):
                self._remove((parent + b"/" if parent else b"") + last.removeprefix(_WHITEOUT))

    def _make_parents(self, path: bytes, newest: int) -> None:
        parts = path.split(b"/")[:-1]
        for count in range(1, len(parts) + 1):
            parent = b"/".join(parts[:count])
            found = self._nodes.get(parent)
            if found is None or found.entry.kind != "folder":
                self._remove(parent)
                self._put(parent, _implied(newest))

    def _make(self, path: bytes, member: Member) -> None:
        if member.kind == "hardlink":
            node = self._nodes[_clean(member.target)]
            if self._nodes.get(path) is not node:
                self._remove(path)
                self._nodes[path] = node
                node.names.add(path)
            return
        old = self._nodes.get(path)
        if old is not None and not (member.kind == old.entry.kind == "folder"):
            self._remove(path)
        self._put(path, _entry(member))

    def _put(self, path: bytes, entry: Entry) -> None:
        self._nodes[path] = _Inode(entry, {path})

    def _remove(self, path: bytes) -> None:
        for gone in [path, *below(list(self._nodes), path)]:
            self._take(gone)

    def _take(self, path: bytes) -> None:
        node = self._nodes.pop(path, None)
        if node is not None:
            node.names.discard(path)


def _entry(member: Member) -> Entry:
    """What a member that is no hard link becomes."""
    content = member.content() if member.kind == "file" else b""
    sizes = {"file": len(content), "symlink": len(member.target), "folder": None}
    return Entry(
        kind=member.kind,
        mode=0o777 if member.kind == "symlink" else member.mode,  # Linux knows no other
        uid=member.uid,
        gid=member.gid,
        mtime_ns=member.mtime_ns,
        size=sizes.get(member.kind, 0),
        digest=hashlib.sha256(content).hexdigest() if member.kind == "file" else "",
        target=member.target if member.kind == "symlink" else b"",
        device=member.device,
        xattrs=tuple(sorted(member.xattrs.items())),
    )


def _implied(newest: int) -> Entry:
    """A folder that a layer only implies, and none has below."""
    return Entry(kind="folder", mode=0o755, mtime_ns=newest)


def _brings(member: Member) -> bool:
    """Whether a member is an entry of its own: no whiteout, no further name of another."""
    return member.kind != "hardlink" and not _path(member).rpartition(b"/")[2].startswith(_WHITEOUT)


def _path(member: Member) -> bytes:
    return _clean(member.name)


def _clean(name: bytes) -> bytes:
    return name.removeprefix(b"./").strip(b"/") if name != b"." else b""
