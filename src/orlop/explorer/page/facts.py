"""What a report tells of a tree: the largest files and folders, what kinds of files there are, what changed.

One walk over the tree for all; what comes out is small, however large the tree is.
"""

from __future__ import annotations

import heapq
import re
from collections.abc import Iterator

from orlop.explorer.survey import Node, State
from orlop.values import dataclass, field

__all__ = ["Change", "Facts", "Group", "Item", "facts_of", "kind_of_name"]

FILES = 100
FOLDERS = 40
CHANGES = 200  # of each: added, changed, deleted
_MOSTLY = 0.8  # a folder of which one folder below has more tells nothing that that one does not

_SUFFIXES: dict[str, tuple[str, ...]] = {
    "Shared libraries": ("so", "dylib", "dll"),
    "Static libraries and objects": ("a", "o", "la", "lib", "rlib"),
    "Python": ("py", "pyi", "pyx", "pxd"),
    "Python bytecode": ("pyc", "pyo"),
    "JavaScript and TypeScript": ("js", "mjs", "cjs", "ts", "mts", "cts", "jsx", "tsx", "node"),
    "Source maps": ("map",),
    "Other source code": (
        *("c", "cc", "cpp", "cxx", "h", "hh", "hpp", "hxx", "go", "rs", "java", "kt", "rb", "php", "lua"),
        *("pl", "pm", "pod", "ph", "tcl", "cu", "cuh", "f90", "s", "erl", "ex", "cs", "swift", "vim", "el"),
    ),
    "Scripts": ("sh", "bash", "zsh", "fish", "awk"),
    "Java archives and classes": ("jar", "war", "class"),
    "Archives and compressed files": (
        *("gz", "xz", "bz2", "zst", "lz4", "zip", "tar", "tgz", "whl", "deb", "rpm", "apk", "7z"),
    ),
    "Data": (
        "json",
        "yaml",
        "yml",
        "toml",
        "xml",
        "csv",
        "tsv",
        "parquet",
        "sql",
        "npy",
        "npz",
        "dat",
        "bin",
    ),
    "Databases": ("db", "sqlite", "sqlite3", "mdb"),
    "Models": ("onnx", "safetensors", "pt", "pth", "gguf", "tflite", "pb", "h5", "pkl"),
    "Documents": ("md", "txt", "rst", "html", "htm", "pdf", "tex", "info", "css", "scss", "less"),
    "Manual pages": tuple("12345678"),
    "Translations": ("mo", "po", "gmo"),
    "Images": ("png", "jpg", "jpeg", "gif", "svg", "webp", "ico", "bmp", "tif", "tiff"),
    "Sound and film": ("mp3", "ogg", "wav", "flac", "mp4", "mkv", "webm"),
    "Fonts": ("ttf", "otf", "woff", "woff2", "pfb", "afm"),
    "Certificates and keys": ("pem", "crt", "cer", "key", "der", "p12"),
    "Configuration": ("conf", "cfg", "ini", "cnf", "service", "rules", "list", "sources", "env"),
    "Logs": ("log",),
}
_KIND_OF = {suffix: kind for kind, suffixes in _SUFFIXES.items() for suffix in suffixes}
_VERSIONED = re.compile(rb"\.so(?:\.[0-9]+)+$")
_PROGRAMS, _OTHERS = "Programs (executable, no suffix)", "Others"


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """A file or a folder, the bytes of it, and the names below; ``layer`` brought it."""

    path: bytes
    size: int
    count: int
    layer: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """The files of one kind."""

    kind: str
    count: int
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What became of one path; of a folder that came or went whole, that with all below it."""

    path: bytes
    kind: str
    size: int
    count: int
    before: int = 0
    fields: tuple[str, ...] = ()


@dataclass(slots=True, kw_only=True)
class Facts:
    """What a report tells of a tree; largest first, changes by path.

    ``changes`` has at most `CHANGES` of each; ``all_changes`` counts the entries that there would be.
    """

    files: list[Item] = field(default_factory=list)
    folders: list[Item] = field(default_factory=list)
    kinds: list[Group] = field(default_factory=list)
    changes: dict[State, list[Change]] = field(default_factory=dict)
    all_changes: dict[State, int] = field(default_factory=dict)


def facts_of(top: Node) -> Facts:
    """Walk over a tree of `orlop.explorer.survey.tree_at`."""
    facts = Facts(changes={"added": [], "changed": [], "deleted": []})
    facts.all_changes = dict.fromkeys(facts.changes, 0)
    kinds: dict[str, list[int]] = {}
    files: list[tuple[int, int, Item]] = []
    folders: list[tuple[int, int, Item]] = []
    for number, (path, node, told) in enumerate(_walk(top)):
        if not told:
            _note_change(facts, path, node)
        if node.what == "deleted":
            continue
        if node.kind == "file":
            sums = kinds.setdefault(kind_of_name(node.name, node.mode), [0, 0])
            sums[0] += 1
            sums[1] += node.size
            _keep(files, FILES, number, path, node)
        elif node.is_folder and path and not _is_mostly_one(node):
            _keep(folders, FOLDERS, number, path, node)
    facts.files = [item for _, _, item in sorted(files, reverse=True)]
    facts.folders = [item for _, _, item in sorted(folders, reverse=True)]
    groups = [Group(kind=kind, count=sums[0], size=sums[1]) for kind, sums in kinds.items()]
    facts.kinds = sorted(groups, key=lambda group: (-group.size, group.kind))
    return facts


def _walk(top: Node) -> Iterator[tuple[bytes, Node, bool]]:
    """All paths, depth first, names in byte order; and whether a folder above says what became of them."""
    todo: list[tuple[bytes, Node, bool]] = [(b"", top, False)]
    while todo:
        path, node, told = todo.pop()
        yield path, node, told
        whole = told or (node.is_folder and node.what in ("added", "deleted"))
        for name in sorted(node.children, reverse=True):
            child = node.children[name]
            below = whole and child.what == node.what
            todo.append((path + b"/" + name if path else name, child, below))


def _keep(heap: list[tuple[int, int, Item]], most: int, number: int, path: bytes, node: Node) -> None:
    """Among the largest; of equals the first."""
    if not node.total or (len(heap) == most and heap[0][0] >= node.total):
        return
    item = Item(path=path, size=node.total, count=node.count, layer=node.layer)
    (heapq.heappush if len(heap) < most else heapq.heapreplace)(heap, (node.total, -number, item))


def _is_mostly_one(folder: Node) -> bool:
    return any(
        child.is_folder and child.total >= _MOSTLY * folder.total for child in folder.children.values()
    )


def _note_change(facts: Facts, path: bytes, node: Node) -> None:
    if node.what == "same":
        return
    facts.all_changes[node.what] += 1
    if len(facts.changes[node.what]) >= CHANGES:
        return
    size, count = (node.total, node.count) if node.what != "deleted" else _gone(node)
    change = Change(path=path, kind=node.kind, size=size, count=count, before=node.before, fields=node.fields)
    facts.changes[node.what].append(change)


def _gone(top: Node) -> tuple[int, int]:
    """The bytes and the names of what was deleted."""
    size = count = 0
    todo = [top]
    while todo:
        node = todo.pop()
        size += node.size if node.kind == "file" else 0
        count += len(node.children)
        todo.extend(node.children.values())
    return size, count


def kind_of_name(name: bytes, mode: int) -> str:
    """What a file is, by its name alone, and by whether it can be executed where that has no suffix.

    >>> kind_of_name(b"libc.so.6", 0o100755), kind_of_name(b"bash", 0o100755)
    ('Shared libraries', 'Programs (executable, no suffix)')
    """
    if _VERSIONED.search(name):
        return "Shared libraries"
    stem, mark, suffix = name.rpartition(b".")
    if mark and stem:
        kind = _KIND_OF.get(suffix[:12].decode("ascii", "replace").lower())
        if kind is not None:
            return kind
    return _PROGRAMS if mode & 0o111 and not (mark and stem) else _OTHERS
