"""What an image or a prepared root is made of, as plain values: its layers, its tree at each, its waste.

Asks with the public verbs of `orlop.Store` alone, so it works over a daemon, too.  What a layer did is the
difference of two images: that of the layers below it (``IMAGE#N``), and that of one layer more.

Costs: `survey` reads what each layer holds once, and keeps nothing of it but sums.  `tree_at` reads one tree
and one layer, and keeps about 0.5 kB for each name; with ``changes_only`` that of the changes alone.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Iterable
from contextlib import closing
from typing import TYPE_CHECKING, Any, Literal

from orlop.errors import InvalidArgument, NotFound
from orlop.images.comparing import Difference, HistoryLine, TreeLine, WastedFile
from orlop.images.contents import FileInfo, FileKind
from orlop.observe import Call, Progress
from orlop.values import dataclass, field, replace

if TYPE_CHECKING:
    from orlop.facade.store import Store

__all__ = ["LayerSurvey", "Node", "State", "Survey", "survey", "tree_at"]

State = Literal["same", "added", "changed", "deleted"]
WASTED_FILES = 50  # the largest hidden files that a survey lists


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerSurvey:
    """What one layer is, and what it did to those below it.

    ``number`` is 1 for the lowest, and 0 for what was changed in a prepared root, which has no diff ID.
    ``created``, ``created_by`` and ``comment`` are of its line of the history.  ``size`` counts the bytes of
    its tar (of a root's changes those of the files), ``entries`` what is in it.  ``added``, ``changed`` and
    ``deleted`` count names that show differently above it than below; what it brings again as it was is none.
    ``added_bytes`` and ``changed_bytes`` are the sizes of the files among them as they are now, ``wasted``
    the bytes of its files that later layers hide or delete.
    """

    number: int
    diff_id: str = ""
    created: str = ""
    created_by: str = ""
    comment: str = ""
    size: int = 0
    entries: int = 0
    added: int = 0
    changed: int = 0
    deleted: int = 0
    added_bytes: int = 0
    changed_bytes: int = 0
    wasted: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """An image, or a prepared root, as a whole.

    ``thing`` is what was asked for.  ``id`` is the digest of the image's config, ``names`` all that mean it
    (of a root: the name that it was prepared under).  ``size`` counts the bytes of the layers' tars, of a
    root's changes with them; ``entries`` and ``shown`` the names and the bytes of the files that show.
    ``content`` counts the bytes of all files of all layers, and ``wasted`` those of them that nothing shows.
    ``layers`` stand lowest first, a root's changes at the end.  ``history`` has the lines without a layer,
    too.  ``waste`` are the largest files that nothing shows.  ``config`` is the image's, parsed.
    """

    thing: str
    kind: Literal["image", "root"]
    names: tuple[str, ...]
    id: str
    platform: str = ""
    created: str = ""
    size: int = 0
    entries: int = 0
    shown: int = 0
    content: int = 0
    wasted: int = 0
    layers: tuple[LayerSurvey, ...] = ()
    history: tuple[HistoryLine, ...] = ()
    waste: tuple[WastedFile, ...] = ()
    config: dict[str, Any] = field(default_factory=dict)


_NONE: dict[bytes, Node] = {}  # the children of all that is no folder; never written to


class Node:
    """One name of a tree, and what is below it.

    ``mode`` is a whole st_mode, 0 for a folder that stands only above changes; ``size`` counts the bytes of a
    file or of a symlink's ``target``.  ``total`` counts the bytes of the regular files at and below it, each
    once however many names it has, ``count`` the names below it; what is deleted counts for neither.  With
    ``changes_only`` both count what differs, name by name, and of deleted files the bytes that they had.

    ``layer`` is the number of the layer that brought what shows, 0 for a prepared root's changes or where it
    is not known.  ``what`` says what the layer that is looked at did: of a folder, to itself, not to what is
    in it.  ``fields`` say in what something changed, as in `orlop.Difference`; ``before`` counts the bytes of
    a changed file before.  Where a folder became something else, what was in it stands below, deleted.
    """

    __slots__ = (
        "before",
        "children",
        "count",
        "device",
        "fields",
        "gid",
        "kind",
        "layer",
        "links",
        "mode",
        "mtime",
        "name",
        "size",
        "target",
        "total",
        "uid",
        "what",
    )

    def __init__(self, name: bytes, kind: FileKind, *, what: State = "same") -> None:
        self.name = name
        self.kind: FileKind = kind
        self.what: State = what
        self.children: dict[bytes, Node] = {} if kind == "folder" else _NONE
        self.fields: tuple[str, ...] = ()
        self.mode = self.uid = self.gid = self.size = self.mtime = 0
        self.total = self.count = self.layer = self.before = 0
        self.links = 1
        self.target = b""
        self.device = (0, 0)

    @classmethod
    def of(cls, file: FileInfo, *, what: State = "same") -> Node:
        """A name as the store tells it."""
        node = cls(file.path.rpartition(b"/")[2], file.kind, what=what)
        node.mode, node.uid, node.gid = file.mode, file.uid, file.gid
        node.size, node.mtime, node.links = file.size, file.mtime, file.links
        node.target, node.device = file.target, file.device
        return node

    @property
    def is_folder(self) -> bool:
        """Whether it can have children."""
        return self.kind == "folder"

    def sorted(self) -> list[Node]:
        """The children, names in byte order."""
        return [self.children[name] for name in sorted(self.children)]

    def get(self, path: bytes) -> Node | None:
        """What has this path below; no symlink is followed."""
        node: Node | None = self
        for part in path.split(b"/"):
            if part:
                node = node.children.get(part) if node is not None else None
        return node


# ------------------------------------------------------------------ what is asked


@dataclass(frozen=True, slots=True, kw_only=True)
class _Subject:
    """What a text means: an image by its ID, of which ``count`` layers are looked at, and perhaps a root."""

    thing: str
    image: str
    root: str
    count: int
    platform: str
    created: str
    names: tuple[str, ...]
    config: dict[str, Any]

    def lowest(self, count: int) -> str:
        """The image with so many layers, as the store's verbs take it."""
        return f"{self.image}#{count}"


def _subject(store: Store, thing: str, platform: str | None) -> _Subject:
    """Find out once what a name means, so that all that is asked later is about the same."""
    root = ""
    name, mark, first = thing.partition("#")
    named: tuple[str, ...] = ()
    if thing.startswith("/"):
        info = store.get(thing).info
        root, name, mark, named = info.path, info.image_id, "", (info.image,)
    details = store.inspect(name, platform=None if root else platform)
    count = details.info.layers
    if mark:  # the store says what is wrong with it
        with closing(store.tree(thing, depth=0, platform=platform)) as lines:
            next(lines)
        count = int(first)
    return _Subject(
        thing=thing,
        image=details.info.id,
        root=root,
        count=count,
        platform=details.info.platform,
        created=details.info.created,
        names=named or details.names,
        config=_parsed(details.config),
    )


def _parsed(config: bytes) -> dict[str, Any]:
    """A config as a dict, whatever its bytes."""
    try:
        found = json.loads(config)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


# ------------------------------------------------------------------ the survey


def survey(
    store: Store,
    thing: str,
    *,
    platform: str | None = None,
    files: int = WASTED_FILES,
    tree: Node | None = None,
    call: Call | None = None,
) -> Survey:
    """Look at an image (also ``IMAGE#N``), or at a prepared root by its path, as a whole.

    ``files`` is how many wasted files to list.  A ``tree`` of all its layers that is at hand (`tree_at`)
    spares a walk.  Raises `NotFound`, also for a layer alone.
    """
    call = call or Call()
    subject = _subject(store, thing, platform)
    whole = subject.lowest(subject.count)
    history = store.history(whole, call=call)
    lines = {line.layer: line for line in history if line.layer}
    waste = store.waste(whole, files=files, call=call)
    layers: list[LayerSurvey] = []
    total, read = sum(line.size for line in lines.values()), 0
    for number in range(1, subject.count + 1):
        call.check(f"survey {thing}")
        line = lines[number]
        call.observer.progress(Progress(item=thing, phase="reading", done=read, total=total))
        read += line.size
        with closing(store.diff(subject.lowest(number - 1), subject.lowest(number), call=call)) as found:
            sums = _sums(found)
        layers.append(
            replace(
                sums,
                number=number,
                diff_id=line.diff_id,
                created=line.created,
                created_by=line.created_by,
                comment=line.comment,
                size=line.size,
                entries=line.entries,
                wasted=waste.layers[number - 1].wasted,
            )
        )
    if subject.root:
        with closing(store.diff(subject.root, call=call)) as found:
            sums = _sums(found)
        written = sums.added_bytes + sums.changed_bytes
        layers.append(replace(sums, size=written, entries=sums.added + sums.changed + sums.deleted))
    if tree is not None:
        entries, shown = tree.count, tree.total
    else:
        with closing(store.tree(subject.root or whole, depth=0, call=call)) as lines_of_top:
            top = next(lines_of_top)
        entries, shown = top.entries, top.total
    call.observer.progress(Progress(item=thing, phase="done", done=total, total=total))
    return Survey(
        thing=thing,
        kind="root" if subject.root else "image",
        names=subject.names,
        id=subject.image,
        platform=subject.platform,
        created=subject.created,
        size=sum(layer.size for layer in layers),
        entries=entries,
        shown=shown,
        content=waste.size,
        wasted=waste.wasted,
        layers=tuple(layers),
        history=tuple(history),
        waste=waste.files,
        config=subject.config,
    )


def _sums(found: Iterable[Difference]) -> LayerSurvey:
    """How much was added, changed and deleted, and no more."""
    added = changed = deleted = added_bytes = changed_bytes = 0
    for one in found:
        new = one.new
        if new is None:
            deleted += 1
        elif one.what == "added":
            added += 1
            added_bytes += new.size if new.kind == "file" else 0
        else:
            changed += 1
            changed_bytes += new.size if new.kind == "file" else 0
    return LayerSurvey(
        number=0,
        added=added,
        changed=changed,
        deleted=deleted,
        added_bytes=added_bytes,
        changed_bytes=changed_bytes,
    )


# ------------------------------------------------------------------ trees


def tree_at(
    store: Store,
    thing: str,
    layer: int | None = None,
    *,
    changes_only: bool = False,
    platform: str | None = None,
    call: Call | None = None,
) -> Node:
    """The tree as it shows above a layer, each name marked with what that layer did.

    With ``layer`` None all layers count: of an image nothing is marked then, of a prepared root what was
    changed in it, which is layer 0.  What the layer deleted stands in the tree, too.  With ``changes_only``
    there is nothing but what the layer did, and the folders above.  Raises `NotFound` for a layer that is not
    there.
    """
    call = call or Call()
    subject = _subject(store, thing, platform)
    if layer is None:
        layer = 0 if subject.root else None
    if layer is not None and not (0 < layer <= subject.count or (layer == 0 and subject.root)):
        raise NotFound(f"look into {thing}", f"layer {layer} of {subject.count}")
    shown = subject.lowest(subject.count if layer is None else layer) if layer != 0 else subject.root
    if changes_only:
        if layer is None:
            raise InvalidArgument(f"look into {thing}", "the changes of which layer?")
        return _changes(_difference(store, subject, layer, call), layer)
    with closing(store.tree(shown, layers=True, call=call)) as lines:
        top = _grown(lines)
    if layer is not None:
        _mark(top, _difference(store, subject, layer, call))
    return top


def _difference(store: Store, subject: _Subject, layer: int, call: Call) -> Generator[Difference]:
    if not layer:
        return store.diff(subject.root, call=call)
    return store.diff(subject.lowest(layer - 1), subject.lowest(layer), call=call)


def _grown(lines: Iterable[TreeLine]) -> Node:
    """A tree of the lines of one, which come depth first."""
    above: list[Node] = []
    for line in lines:
        node = Node.of(line.file)
        node.total, node.count, node.layer = line.total, line.entries, line.layer
        del above[line.depth :]
        if above:
            above[-1].children[node.name] = node
        above.append(node)
    return above[0]


def _mark(top: Node, found: Generator[Difference]) -> None:
    """Say of each name what became of it, and put those in that are gone."""
    with closing(found):
        for one in found:
            if one.new is None:
                assert one.old is not None
                folder = _folder(top, one.path)
                name = one.path.rpartition(b"/")[2]
                if name not in folder.children:
                    folder.children[name] = Node.of(one.old, what="deleted")
                continue
            node = top.get(one.path)
            if node is not None:  # else a root was written to meanwhile
                _changed(node, one)


def _changes(found: Generator[Difference], layer: int) -> Node:
    """Nothing but what differs, and the folders above."""
    top = Node(b"", "folder")
    with closing(found):
        for one in found:
            file = one.new or one.old
            assert file is not None
            node = Node.of(file)
            node.layer = layer
            node.total = file.size if file.kind == "file" else 0
            _changed(node, one)
            if not one.path:
                node.children = top.children
                top = node
                continue
            _folder(top, one.path).children[node.name] = node
    _sum_up(top)
    return top


def _changed(node: Node, one: Difference) -> None:
    node.what, node.fields = one.what, one.fields
    if one.what == "changed" and one.old is not None and one.old.kind == "file":
        node.before = one.old.size


def _folder(top: Node, path: bytes) -> Node:
    """The folder that a path is in; what is missing of it is made."""
    node = top
    for part in path.split(b"/")[:-1]:
        child = node.children.get(part)
        if child is None:
            child = node.children[part] = Node(part, "folder")
        elif child.children is _NONE:  # a folder was replaced by something else: its old content hangs below
            child.children = {}
        node = child
    return node


def _sum_up(top: Node) -> None:
    """Fill in what folders hold, from below."""
    order: list[Node] = [top]
    for node in order:  # grows meanwhile: parents stand before their children
        order.extend(node.children.values())
    for node in reversed(order):
        for child in node.children.values():
            node.total += child.total
            node.count += child.count + (child.what != "same")
