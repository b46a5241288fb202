"""One path through the layers of an image: what each of them did to it, told from their indexes alone.

`Trails` looks at few paths, each in time that grows with the layers, not with their entries; whole trees are
`orlop.layers.origins`'s.  The rules are those of `orlop.layers.merge`, seen from one path, and a test on
random layers holds the two together.

Layers are numbered from 0, the bottom.  Paths have no leading slash, ``b""`` is the root.
"""

from __future__ import annotations

import stat
from collections.abc import Sequence
from typing import Literal

from orlop.errors import ResourceExhausted
from orlop.layers.builder import MAX_FOLLOW
from orlop.layers.index import HIDES, IMPLIED, LINK, LOWER_LINK, OPAQUE, LayerIndex
from orlop.layers.sources import is_left_out
from orlop.observe import Call
from orlop.values import dataclass

__all__ = ["Step", "Trails", "Version", "What", "plain"]

What = Literal["added", "changed", "deleted"]
How = Literal["entry", "link", "implied", "whiteout", "opaque", "replaced"]

_WHAT = "follow a path through the layers"
_STEPS = 2_000_000  # names looked up besides those of the paths: hard links may lead through symlinks
_NESTED = 60  # hard links to files of lower layers that are hard links to files of lower layers
_CHECK = 1_000  # steps between looks at whether the call was cancelled
_FEW = 16  # names looked for in one index before a table of it is made


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    """What shows at a path: a node of the index of a layer.

    ``implied`` tells that it is a folder which no entry is about, new in that layer.
    """

    layer: int
    node: int
    implied: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What one layer did to a path.

    ``version`` is what shows from this layer on, None if nothing does.  ``how`` tells by what: an ``entry``
    of its own, a hard ``link``, by being ``implied``; where it is gone by a ``whiteout``, an ``opaque`` mark,
    or because a folder above was ``replaced``, and ``at`` is the path that the mark or new thing is about.
    """

    layer: int
    what: What
    how: How
    version: Version | None
    at: bytes


@dataclass(frozen=True, slots=True)
class _Found:
    """How things stand at a path after a layer."""

    version: Version | None
    how: How = "entry"
    at: bytes = b""
    fresh: bool = False  # whether this layer made the version, though it may be the one there was before


class Trails:
    """Follows paths through some layers, bottom first.  Not thread-safe."""

    def __init__(self, layers: Sequence[LayerIndex], *, call: Call) -> None:
        self._layers = layers
        self._call = call
        self._steps = 0
        self._most = _STEPS
        self._tables: dict[int, dict[tuple[int, bytes], int]] = {}
        self._asked = [0] * len(layers)

    def steps(self, path: bytes) -> list[Step]:
        """What the layers did to a path, bottom first; those that did nothing are left out."""
        parts = _split(path)
        self._most += len(parts) * len(self._layers)  # however many paths are asked for
        found: list[Step] = []
        state: Version | None = None
        for layer in range(len(self._layers)):
            now = self._after(layer, parts, state, depth=0)
            if now.version == state and not (now.fresh and state is not None):
                continue
            what: What = "deleted" if now.version is None else "added" if state is None else "changed"
            found.append(Step(layer=layer, what=what, how=now.how, version=now.version, at=now.at))
            state = now.version
        return found

    def shown(self, path: bytes) -> Version | None:
        """What shows at a path above all layers.  Follows no symlink."""
        return self._shown(len(self._layers), _split(path), depth=0)

    def kind(self, version: Version) -> int:
        """The type bits of a version's mode."""
        return stat.S_IFDIR if version.implied else self._layers[version.layer].mode[version.node] & 0o170000

    def resolve(self, path: bytes) -> bytes:
        """The path with the symlinks in it followed, within the root, that of the last name excepted.

        Where something is missing, or is no folder, the rest stays as it is.
        """
        parts = [part for part in path.split(b"/") if part not in (b"", b".")]
        return b"/".join(self._resolve(len(self._layers), parts, depth=0) or [])

    # -- one path, one layer more ---------------------------------------------------------------

    def _shown(self, count: int, parts: Sequence[bytes], *, depth: int, late: bool = True) -> Version | None:
        """What shows above the lowest ``count`` layers; ``late`` as in `_after`, for the topmost of them."""
        state: Version | None = None
        for layer in range(count):
            state = self._after(layer, parts, state, depth=depth, late=late or layer < count - 1).version
        return state

    def _after(
        self, layer: int, parts: Sequence[bytes], state: Version | None, *, depth: int, late: bool = True
    ) -> _Found:
        """What shows at a path above a layer, where ``state`` shows below it.

        Without ``late`` a hard link to what only the same layer brings counts for nothing.
        """
        index = self._layers[layer]
        if not parts:
            return self._root(layer, state)
        how: How = "entry"
        at = b""
        if index.flags[0] & OPAQUE:
            state, how = None, "opaque"
        node = 0
        for count, name in enumerate(parts, 1):
            child = self._child(layer, node, name)
            if child is None:
                return _Found(state, how, at)
            node, flags = child, index.flags[child]
            here = b"/".join(parts[:count])
            last = count == len(parts)
            if is_left_out(index, node) or (not index.mode[node] and not flags & (LINK | LOWER_LINK)):
                return _Found(None, "whiteout", here) if flags & HIDES else _Found(state, how, at)
            if not stat.S_ISDIR(index.mode[node]):
                return self._leaf(layer, node, here, state, last=last, depth=depth, late=late)
            if last:
                break
            if flags & HIDES:
                state, how, at = None, "whiteout", here
            elif flags & OPAQUE:
                state, how, at = None, "opaque", here
        return self._folder(layer, node, b"/".join(parts), state)

    def _root(self, layer: int, state: Version | None) -> _Found:
        implied = bool(self._layers[layer].flags[0] & IMPLIED)
        if implied and state is not None:
            return _Found(state)
        how: How = "implied" if implied else "entry"
        return _Found(Version(layer=layer, node=0, implied=implied), how, b"", fresh=True)

    def _folder(self, layer: int, node: int, here: bytes, state: Version | None) -> _Found:
        flags = self._layers[layer].flags[node]
        implied = bool(flags & IMPLIED)
        merges = state is not None and self.kind(state) == stat.S_IFDIR and not flags & HIDES
        if implied and merges:
            return _Found(state)
        how: How = "implied" if implied else "entry"
        return _Found(Version(layer=layer, node=node, implied=implied), how, here, fresh=True)

    def _leaf(
        self,
        layer: int,
        node: int,
        here: bytes,
        state: Version | None,
        *,
        last: bool,
        depth: int,
        late: bool,
    ) -> _Found:
        """Something that is no folder, at the path or above it."""
        index = self._layers[layer]
        flags = index.flags[node]
        version: Version | None = Version(layer=layer, node=node)
        if flags & LINK:
            version = Version(layer=layer, node=index.offset[node])
        elif flags & LOWER_LINK:
            version = self._linked(layer, index.targets[node].split(b"/"), depth=depth, late=late)
            if version is None:
                return _Found(None if flags & HIDES else state)
        if not last:
            return _Found(None, "replaced", here)
        how: How = "link" if flags & (LINK | LOWER_LINK) else "entry"
        return _Found(version, how, here, fresh=True)

    def _linked(self, layer: int, parts: list[bytes], *, depth: int, late: bool) -> Version | None:
        """The file that a hard link to a lower layer means; if that has none, one of the same layer."""
        if depth >= _NESTED:
            raise ResourceExhausted(_WHAT, "hard links lead through too many layers")
        for count in (layer, layer + 1) if late else (layer,):
            resolved = self._resolve(count, parts, depth=depth + 1, whole=True, late=False)
            if resolved is None:
                continue
            version = self._shown(count, resolved, depth=depth + 1, late=False)
            if version is not None and self.kind(version) != stat.S_IFDIR:
                return version
        return None

    # -- paths ----------------------------------------------------------------------------------

    def _resolve(
        self, count: int, parts: list[bytes], *, depth: int, whole: bool = False, late: bool = True
    ) -> list[bytes] | None:
        """A path above the lowest layers without symlinks, the last name's excepted.

        With ``whole`` None where something above the last name is missing or is no folder.
        """
        todo = list(reversed(parts))
        done: list[bytes] = []
        followed = 0
        while todo:
            part = todo.pop()
            if part == b"..":
                del done[-1:]
                continue
            done.append(part)
            if not todo:
                break
            version = self._shown(count, done, depth=depth, late=late)
            kind = self.kind(version) if version is not None else 0
            if version is not None and kind == stat.S_IFLNK:
                followed += 1
                target = self._layers[version.layer].targets[version.node]
                if followed > MAX_FOLLOW:
                    return None if whole else done + todo[::-1]
                done = [] if target.startswith(b"/") else done[:-1]
                todo.extend(p for p in reversed(target.split(b"/")) if p not in (b"", b"."))
            elif kind != stat.S_IFDIR:
                return None if whole else _split(b"/".join(done + todo[::-1]))
        return done

    def _child(self, layer: int, parent: int, name: bytes) -> int | None:
        """The node of a name in a folder of one layer's index."""
        self._steps += 1
        if self._steps % _CHECK == 0:
            self._call.check(_WHAT)
        if self._steps > self._most:
            raise ResourceExhausted(_WHAT, "its hard links lead through too many symlinks")
        index = self._layers[layer]
        if self._asked[layer] < _FEW:
            self._asked[layer] += 1
            at = parent  # the root has no name, and all others stand behind their folder
            parents, names = index.parent, index.names
            for _ in range(len(names)):
                try:
                    at = names.index(name, at + 1)
                except ValueError:
                    return None
                if parents[at] == parent:
                    return at
            return None
        table = self._tables.get(layer)
        if table is None:
            nodes = range(len(index))
            table = self._tables[layer] = dict(
                zip(zip(index.parent, index.names, strict=True), nodes, strict=True)
            )
        return table.get((parent, name))


def plain(path: bytes) -> bytes:
    """A path without a leading slash, cleaned by its text; ``..`` stops at the root."""
    return b"/".join(_split(path))


def _split(path: bytes) -> list[bytes]:
    """The names of a path; ``..`` stops at the root."""
    done: list[bytes] = []
    for part in path.split(b"/"):
        if part == b"..":
            del done[-1:]
        elif part not in (b"", b"."):
            done.append(part)
    return done
