"""The oracle: the tree that GNU tar makes of layer tars, applied in order with whiteouts.

It reads tars with the standard library and extracts them with GNU tar, and shares no code with orlop.
Of each layer, in this order:

1. what it replaces by something that does not merge goes from the tree of the layers below: a folder
   where a file comes, and whatever is not a folder, symlinks included, where a folder is given or
   implied (a whiteout implies the folder it stands in);
2. what its whiteouts and opaque marks hide goes, too;
3. GNU tar extracts the rest of the tar: no whiteouts, no character device 0/0, and of a path that is
   both folder and something else only the last;
4. folders that the layer only implies get the metadata back that the lower layers gave them, or, if
   they are new, mode 0755 and root; their times stay open, see `apply_layers`.

Where GNU tar and orlop differ by decision (``..`` in names, a parent that is a symlink of the same
layer out of its own folder) it refuses to judge: such cases need trees written by hand.  So do paths
beyond PATH_MAX, which GNU tar cannot make.
"""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, cast

from support.trees import Entry, differences, snapshot

__all__ = ["Entry", "NotJudged", "apply_layer", "apply_layers", "differences", "snapshot"]

_WHITEOUT = b".wh."
_OPAQUE = b".wh..wh..opq"
_RESERVED = b".wh..wh."  # aufs' own book-keeping
_DEFAULT_ACL = "system.posix_acl_default"
_GNU_TAR = [
    *("tar", "--extract", "--file=-", "--numeric-owner", "--same-owner", "--preserve-permissions"),
    *("--delay-directory-restore", "--xattrs", "--xattrs-include=*", "--warning=no-timestamp"),
]


class NotJudged(Exception):
    """A tar on which GNU tar is no judge of what orlop should do."""


Span = tuple[int, int]


@dataclass(slots=True)
class _Layer:
    """What one tar asks for.  Paths are clean and relative, the root is b""."""

    folders: set[bytes] = field(default_factory=set)
    others: set[bytes] = field(default_factory=set)
    symlinks: dict[bytes, bytes] = field(default_factory=dict)
    whiteouts: set[bytes] = field(default_factory=set)
    opaques: set[bytes] = field(default_factory=set)
    spans: dict[bytes, list[Span]] = field(default_factory=dict)  # where in the tar each path's members stand
    dropped: list[Span] = field(default_factory=list)  # what GNU tar shall not see

    def implied(self) -> set[bytes]:
        """Folders that are named only as part of other names; the root counts as one."""
        named = self.folders | self.others | self.whiteouts | self.opaques
        found = {parent for path in named for parent in _parents(path)}
        return (found | self.opaques | {b""}) - self.folders

    def forget(self, name: bytes) -> None:
        """A path comes again as another kind: leave out what came before, and all below it."""
        for path in [path for path in self.spans if path == name or path.startswith(name + b"/")]:
            self.dropped += self.spans.pop(path)
            self.folders.discard(path)
            self.others.discard(path)
            self.symlinks.pop(path, None)


def apply_layers(tars: Iterable[Path], tree: Path) -> set[bytes]:
    """Apply layers, bottom first, to ``tree``, which is made.

    Returns the folders that the layers only imply: no tar says their mtimes.
    """
    tree.mkdir()
    tree.chmod(0o755)
    open_times = {b""}
    for tar in tars:
        open_times = apply_layer(tar, tree, open_times)
    return open_times


def apply_layer(tar: Path, tree: Path, open_times: set[bytes]) -> set[bytes]:
    """Apply one layer more; takes and returns the folders whose mtimes no tar says."""
    layer = _read(tar)
    implied = layer.implied()
    if wrong := implied & layer.others:
        raise NotJudged(f"{min(wrong)!r} is a folder and something else in one layer")
    below = _Below(tree)
    times = {path: below.mtime(path) for path in implied if below.is_folder(path)}
    below.make_way(layer, implied)
    below.hide(layer)
    kept = {path for path in layer.folders | implied if below.is_folder(path)}
    new = implied - kept
    for path in layer.folders & kept:  # given again, with all its metadata; GNU tar would only add xattrs
        below.drop_xattrs(path)
    inherited = {path: below.drop_default_acl(path) for path in implied & kept}
    for path in sorted(new):
        below.make_folder(path)
    _extract(tar, layer.dropped, tree)
    for path in new:
        os.chown(below.at(path), 0, 0)
        os.chmod(below.at(path), 0o755)
    for path, acl in inherited.items():
        if acl is not None:
            os.setxattr(below.at(path), _DEFAULT_ACL, acl)
        os.utime(below.at(path), ns=(times[path], times[path]))
    return {path for path in open_times | new if below.is_folder(path)} - layer.folders


# ------------------------------------------------------------------ what a tar says


def _read(path: Path) -> _Layer:
    layer = _Layer()
    with tarfile.open(path, "r:", encoding="utf-8", errors="surrogateescape") as tar:
        members = tar.getmembers()
        ends = [*(member.offset for member in members), tar.offset][1:]
    for member, end in zip(members, ends, strict=True):
        # A global header between two members belongs to neither; a sparse member's size is not the tar's
        data = member.offset_data + -(-member.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
        _note(layer, member, (member.offset, end if member.issparse() else min(data, end)))
    return layer


def _note(layer: _Layer, member: tarfile.TarInfo, span: Span) -> None:
    name = _follow(layer, _clean(member.name))
    parent, _, base = name.rpartition(b"/")
    if base.startswith(_WHITEOUT):
        layer.dropped.append(span)
        if base == _OPAQUE:
            layer.opaques.add(parent)
        elif not base.startswith(_RESERVED):
            layer.whiteouts.add(_hidden(parent, base))
        return
    if member.ischr() and (member.devmajor, member.devminor) == (0, 0):
        layer.dropped.append(span)  # an overlay would take it for a whiteout
        return
    if name in (layer.others if member.isdir() else layer.folders):
        layer.forget(name)
    elif member.isdir() and name in layer.folders:
        layer.dropped += layer.spans.pop(name, [])  # the last wins; GNU tar would keep the first one's xattrs
    layer.spans.setdefault(name, []).append(span)
    (layer.folders if member.isdir() else layer.others).add(name)
    layer.symlinks.pop(name, None)
    if member.issym():
        layer.symlinks[name] = _encode(member.linkname)
    elif member.islnk():
        _clean(member.linkname)


def _hidden(parent: bytes, base: bytes) -> bytes:
    name = base.removeprefix(_WHITEOUT)
    if name in (b"", b".", b".."):
        raise NotJudged(f"a whiteout of {name!r} in {parent!r}")
    return parent + b"/" + name if parent else name


def _clean(name: str) -> bytes:
    parts = [part for part in _encode(name).split(b"/") if part not in (b"", b".")]
    if b".." in parts:
        raise NotJudged(f"{name!r} has '..' in it: GNU tar cuts it off, orlop resolves it")
    return b"/".join(parts)


def _follow(layer: _Layer, name: bytes) -> bytes:
    """Where GNU tar puts a name below symlinks of its own layer."""
    for _ in range(40):
        link = next((parent for parent in _parents(name) if parent in layer.symlinks), None)
        if link is None:
            return name
        target = layer.symlinks[link]
        if target.startswith(b"/") or {b"..", b".", b""} & set(target.split(b"/")):
            raise NotJudged(f"{name!r} goes through the symlink {link!r} to {target!r}")
        folder = link.rpartition(b"/")[0]
        name = (folder + b"/" if folder else b"") + target + name[len(link) :]
    raise NotJudged(f"{name!r} goes round in symlinks")


def _parents(path: bytes) -> Iterator[bytes]:
    """The folders above a path, the highest first, without the root."""
    end = path.find(b"/")
    while end >= 0:
        yield path[:end]
        end = path.find(b"/", end + 1)


def _encode(name: str) -> bytes:
    return name.encode("utf-8", "surrogateescape")


# ------------------------------------------------------------------ the tree of the layers below


class _Below:
    """The tree so far.

    Once `make_way` is done no path that a layer names has a symlink for a parent, so plain paths do.
    """

    def __init__(self, tree: Path) -> None:
        self._tree = os.fsencode(tree)

    def at(self, path: bytes) -> bytes:
        return self._tree + b"/" + path if path else self._tree

    def is_folder(self, path: bytes) -> bool:
        try:
            return stat.S_ISDIR(os.lstat(self.at(path)).st_mode)
        except (FileNotFoundError, NotADirectoryError):
            return False

    def mtime(self, path: bytes) -> int:
        return os.lstat(self.at(path)).st_mtime_ns

    def make_way(self, layer: _Layer, implied: set[bytes]) -> None:
        for path in sorted(layer.folders | implied):  # parents first
            if not self.is_folder(path):
                self.remove(path)
        for path in layer.others:
            if self.is_folder(path):
                self.remove(path)

    def hide(self, layer: _Layer) -> None:
        for path in layer.whiteouts:
            self.remove(path)
        for path in layer.opaques:
            if self.is_folder(path):
                for name in os.listdir(self.at(path)):
                    self.remove(path + b"/" + name if path else name)

    def remove(self, path: bytes) -> None:
        if self.is_folder(path):
            shutil.rmtree(self.at(path))
            return
        try:
            os.unlink(self.at(path))
        except (FileNotFoundError, NotADirectoryError):
            return

    def make_folder(self, path: bytes) -> None:
        os.makedirs(self.at(path), exist_ok=True)

    def drop_xattrs(self, path: bytes) -> None:
        for key in os.listxattr(self.at(path)):
            os.removexattr(self.at(path), key)

    def drop_default_acl(self, path: bytes) -> bytes | None:
        """While tar extracts, new files must not inherit it: a layer says what its files are."""
        if _DEFAULT_ACL not in os.listxattr(self.at(path)):
            return None
        acl = os.getxattr(self.at(path), _DEFAULT_ACL)
        os.removexattr(self.at(path), _DEFAULT_ACL)
        return acl


# ------------------------------------------------------------------ GNU tar


def _extract(tar: Path, dropped: Sequence[Span], tree: Path) -> None:
    """Feed GNU tar the archive less some of its members."""
    process = subprocess.Popen(
        [*_GNU_TAR, f"--directory={tree}"],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        umask=0o022,
        env={**os.environ, "LC_ALL": "C"},
    )
    source, said = cast(BinaryIO, process.stdin), cast(BinaryIO, process.stderr)
    with process, tar.open("rb") as archive:
        try:
            position = 0
            for start, end in [*sorted(dropped), (tar.stat().st_size, 0)]:
                _copy(archive, source, position, start)
                position = end
            source.close()
        except BrokenPipeError:
            position = 0  # tar stopped reading: at the end of the archive, or for a reason that it tells
        complaint = said.read().decode(errors="replace")
    if process.returncode:
        raise RuntimeError(f"GNU tar exits with {process.returncode} on {tar}: {complaint}")


def _copy(source: BinaryIO, target: BinaryIO, start: int, end: int) -> None:
    source.seek(start)
    while start < end and (data := source.read(min(1 << 20, end - start))):
        target.write(data)
        start += len(data)
