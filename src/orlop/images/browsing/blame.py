"""Who brought a path, who changed it, who took it away: the layers of a thing, and a prepared root's changes.

What layers did is told from their indexes alone (`orlop.layers.trail`); only for a prepared root are its
upper and its chain looked at, at that one path.
"""

from __future__ import annotations

import os
import stat

from orlop.errors import FailedPrecondition, NotFound
from orlop.images.browsing.diff import Pair, differs
from orlop.images.browsing.history import layer_lines
from orlop.images.browsing.nodes import Node, Tree
from orlop.images.browsing.trees import find_source, open_tree
from orlop.images.browsing.verbs import info_of
from orlop.images.chains import Chains
from orlop.images.comparing import Blame, BlameStep, HistoryLine
from orlop.images.contents import FileInfo
from orlop.images.core import Core
from orlop.images.prepared.grounds import Grounds
from orlop.layers.changes import text_of
from orlop.layers.index import LayerIndex
from orlop.layers.nested import holdable
from orlop.layers.trail import Step, Trails, Version, plain
from orlop.observe import Call

__all__ = ["blame", "file_of"]


def blame(
    core: Core,
    chains: Chains,
    grounds: Grounds,
    thing: str,
    path: bytes,
    *,
    platform: str | None,
    call: Call,
) -> Blame:
    """See `orlop.images.comparing.Comparing.blame`."""
    what = f"blame {thing} /{text_of(path.strip(b'/'))}"
    source = find_source(core, thing, what, platform=platform)
    lines = layer_lines(core, source, what)
    indexes = [core.layers.load_index(diff_id) for diff_id in source.diff_ids]
    trails = Trails(indexes, call=call)
    resolved = trails.resolve(path)
    if not trails.steps(resolved):  # it is gone, and what it was in is a symlink now
        resolved = plain(path)
    written: list[BlameStep] = []
    if source.root is not None:
        with open_tree(core, chains, grounds, source, call) as tree:
            node = _found(tree, path)
            resolved = node.path if node is not None else resolved
            written = _written(tree, resolved)
    steps = [_told(step, lines[step.layer], indexes, resolved) for step in trails.steps(resolved)] + written
    if not steps:
        raise NotFound(what, "no layer ever had it", hint="'orlop find' looks for names")
    return Blame(path=resolved, steps=tuple(steps))


def _told(step: Step, line: HistoryLine, indexes: list[LayerIndex], path: bytes) -> BlameStep:
    file: FileInfo | None = None
    source, source_layer = b"", 0
    if step.version is not None:
        index = indexes[step.version.layer]
        file = file_of(index, step.version, path)
        if step.how == "link":
            source, source_layer = index.path(step.version.node), step.version.layer + 1
    return BlameStep(
        what=step.what,
        how=step.how,
        line=line,
        at=step.at,
        file=file,
        source=source,
        source_layer=source_layer,
    )


def _found(tree: Tree, path: bytes) -> Node | None:
    """What a path names; nothing where it leads in circles."""
    try:
        return tree.lookup(path, follow=False)
    except FailedPrecondition:
        return None


def _written(tree: Tree, path: bytes) -> list[BlameStep]:
    """What the changes of a prepared root did to a path: one step at most."""
    before = Tree(tree.view, tree.devices, call=tree.call)
    try:
        old, new = before.exact(path), tree.exact(path)
        if (old is None and new is None) or (old is not None and new is not None and not differs(old, new)):
            return []
    finally:
        before.close()
    file = info_of(new) if new is not None else None
    return [BlameStep(what=Pair(path, old, new).what, how="written", line=HistoryLine(), at=path, file=file)]


def file_of(index: LayerIndex, version: Version, path: bytes) -> FileInfo:
    """What a layer has for a path; its names are not counted."""
    node = version.node
    if version.implied:
        mode = stat.S_IFDIR | 0o755
        return FileInfo(path=path, mode=mode, mtime=index.time, nsec=index.time_nsec)
    mode = index.mode[node]
    kind = mode & 0o170000
    target = index.targets[node] if kind == stat.S_IFLNK else b""
    device = (0, 0)
    if kind in (stat.S_IFCHR, stat.S_IFBLK):
        device = (os.major(index.offset[node]), os.minor(index.offset[node]))
    return FileInfo(
        path=path,
        mode=mode,
        uid=index.uid[node],
        gid=index.gid[node],
        size=index.size[node] if kind == stat.S_IFREG else len(target),
        mtime=index.mtime[node],
        nsec=index.nsec[node],
        target=target,
        device=device,
        xattrs=tuple(sorted(pair for pair in index.xattrs.get(node, ()) if holdable(pair[0]))),
    )
