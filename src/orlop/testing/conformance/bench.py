"""What a check works with: a store, a driver, images of its own making, roots that can be used.

    with bench.root(bench.image(layer)) as root:
        (root.top / "new").write_text("data")
        name = root.commit()

A root is mounted where the mode allows it; where not, its driver must give one bind mount of a plain folder,
and the folder is the root.  Nobody else may use the store while a check runs.

Images are kept from one check to the next, roots are not.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import socket
import tarfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from orlop.config import Driver
from orlop.facade import Prepared, Store
from orlop.testing.conformance import expect
from orlop.testing.conformance.abilities import Abilities, detect
from orlop.testing.conformance.model import Tree, apply
from orlop.testing.conformance.trees import compare, snapshot
from orlop.testing.layers import SECOND, Kind, Layer, Member, write_layout
from orlop.values import dataclass, field, replace

__all__ = ["Bench", "Root", "bind_socket"]

_XATTR = "SCHILY.xattr."
_SHOWN_DIFFERENCES = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Root:
    """A prepared root that can be used: ``top`` is the folder that shows it."""

    prepared: Prepared
    top: Path

    def tree(self) -> Tree:
        """What it shows."""
        return snapshot(self.top)

    def commit(self) -> str:
        """Commit it; returns the name of the new image."""
        return self.prepared.commit().name


@dataclass(slots=True, kw_only=True)
class Bench:
    """One driver in one mode.  ``open_store`` opens the store once more; ``can`` says what is compared."""

    open_store: Callable[[], Store]
    driver: Driver
    work: Path
    can: Abilities = field(default_factory=detect)
    left_out: set[str] = field(default_factory=set)
    facts: dict[str, object] = field(default_factory=dict)
    store: Store = field(init=False)
    _numbers: int = 0
    _images: dict[bytes, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.store = self.open_store()

    def close(self) -> None:
        """Clean up all roots and let go of the store.  Idempotent."""
        self.tidy()
        self.store.close()

    def tidy(self) -> None:
        """Clean up what a check has left, and forget what it reported."""
        for info in self.store.prepared():
            self.store.get(info.path).cleanup()
        self.left_out, self.facts = set(), {}

    # -- images ---------------------------------------------------------------------------------

    def image(self, *layers: Layer) -> str:
        """The name of an image of these layers, bottom first; the same layers give the same image."""
        tars = [layer.tar() for layer in layers]
        key = hashlib.sha256(b"".join(hashlib.sha256(tar).digest() for tar in tars)).digest()
        if key not in self._images:
            folder = write_layout(self.path("layout"), tars)
            name = f"localhost/conformance:{key.hex()[:16]}"
            self._images[key] = self.store.load(folder, name=name).pop().name
            shutil.rmtree(folder)
        return self._images[key]

    def forget(self, image: str) -> None:
        """Remove an image; the next to ask for it gets it anew."""
        self._images = {key: name for key, name in self._images.items() if name != image}
        self.store.remove(image)

    def diff_ids(self, image: str) -> list[str]:
        """The diff IDs of an image's layers, bottom first."""
        return [layer.diff_id for layer in self.store.inspect(image).layers]

    def layers(self, image: str) -> list[Layer]:
        """An image's layers as their tars in the store say, read by Python's tarfile."""
        folder = Path(self.store.info().root) / "layers"
        return [
            _read_layer(folder / diff_id.partition(":")[2] / "layer.tar") for diff_id in self.diff_ids(image)
        ]

    def meaning(self, image: str) -> Tree:
        """What an image's layers mean, whatever this mode can show of it."""
        return apply(self.layers(image))

    # -- roots ----------------------------------------------------------------------------------

    def path(self, name: str = "root") -> Path:
        """A path in the work folder where nothing is."""
        self._numbers += 1
        return self.work / f"{name}{self._numbers}"

    def prepare(
        self,
        image: str,
        path: Path | None = None,
        *,
        view: bool = False,
        labels: dict[str, str] | None = None,
    ) -> Prepared:
        """Prepare an image; nothing is mounted."""
        return self.store.prepare(image, path or self.path(), view=view, labels=labels, driver=self.driver)

    @contextmanager
    def root(self, image: str, *, view: bool = False) -> Iterator[Root]:
        """An image's root, ready to be used; cleaned up when the block ends."""
        with self.prepare(image, view=view) as prepared:
            yield self.use(prepared)

    def use(self, prepared: Prepared) -> Root:
        """Make a prepared root usable."""
        if self.can.mount:
            return Root(prepared=prepared.mount(), top=Path(prepared.path))
        kinds = [mount.type for mount in prepared.mounts]
        expect.equal(kinds, ["bind"], "the mounts of a root where nothing can be mounted")
        return Root(prepared=prepared, top=Path(prepared.mounts[0].source))

    # -- expectations ---------------------------------------------------------------------------

    def leave_out(self, what: str) -> None:
        """Say in the report what this mode cannot show."""
        self.left_out.add(what)

    def same(self, actual: Tree, expected: Tree, what: str, *, can: Abilities | None = None) -> None:
        """Two trees must be equal in all that this mode (or another) can show."""
        found = compare(expected, actual, can or self.can)
        self.left_out |= found.left_out
        if found.differences:
            lines = found.differences[:_SHOWN_DIFFERENCES]
            more = len(found.differences) - len(lines)
            expect.fail(f"{what}:\n  " + "\n  ".join(lines) + (f"\n  and {more} more" if more else ""))

    def shows(self, image: str, expected: Tree, what: str, *, view: bool = False) -> None:
        """An image's root must be this tree."""
        with self.root(image, view=view) as root:
            self.same(root.tree(), expected, what)

    @property
    def joins(self) -> bool:
        """Whether a new link to a lower file is seen to be that file while its root is mounted.

        Not in an overlay with ``userxattr`` in a user namespace: there copied-up files know no origin, and
        the name that the kernel had looked up before goes on as an inode of its own (Linux 6.18).
        """
        return self.driver == "native" or self.can.mode == "root"

    def kept(
        self, image: str, change: Callable[[Path], object], *, joined: Iterable[tuple[bytes, ...]] = ()
    ) -> str:
        """Change a root: the commit must show what the root showed.  Returns the new image's name.

        The commit must leave the root as it is.  ``joined`` are names that a change of lower files has made
        one file of.
        """
        with self.root(image) as root:
            change(root.top)
            before = root.tree()
            if not self.joins and joined:
                self.leave_out("that links to lower files are one inode before a commit")
                before |= {name: replace(before[name], twins=names) for names in joined for name in names}
            name = root.commit()
            if self.joins or not joined:
                self.same(root.tree(), before, "the root after its commit")
        self.shows(name, before, "the image made by a commit")
        return name


def bind_socket(folder: Path, name: str) -> None:
    """Make a unix socket, wherever the folder is: an address holds 108 bytes (unix(7))."""
    fd = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(f"/proc/self/fd/{fd}/{name}")
    finally:
        os.close(fd)


# ------------------------------------------------------------------ layers of the store

_KINDS: dict[bytes, Kind] = {
    tarfile.REGTYPE: "file",
    tarfile.LNKTYPE: "hardlink",
    tarfile.SYMTYPE: "symlink",
    tarfile.CHRTYPE: "char",
    tarfile.BLKTYPE: "block",
    tarfile.DIRTYPE: "folder",
    tarfile.FIFOTYPE: "fifo",
}


def _read_layer(tar: Path) -> Layer:
    layer = Layer()
    with tarfile.open(tar, "r:", encoding="utf-8", errors="surrogateescape") as opened:
        for info in opened:
            data = b""
            if info.isreg():
                file = opened.extractfile(info)
                assert file is not None
                data = file.read()
            layer.add(_member(info, data))
    return layer


def _member(info: tarfile.TarInfo, data: bytes) -> Member:
    is_device = info.ischr() or info.isblk()
    return Member(
        name=_bytes(info.name),
        kind="file" if info.isreg() else _KINDS[info.type],
        mode=info.mode,
        uid=info.uid,
        gid=info.gid,
        mtime_ns=_nanoseconds(info.pax_headers.get("mtime", str(int(info.mtime)))),
        data=data,
        target=_bytes(info.linkname),
        device=(info.devmajor, info.devminor) if is_device else (0, 0),
        xattrs={
            key.removeprefix(_XATTR): _bytes(value)
            for key, value in info.pax_headers.items()
            if key.startswith(_XATTR)
        },
    )


def _nanoseconds(decimal: str) -> int:
    """A PAX time: exact, where a float is not."""
    whole, _, rest = decimal.removeprefix("-").partition(".")
    size = int(whole) * SECOND + int(rest[:9].ljust(9, "0"))
    return -size if decimal.startswith("-") else size


def _bytes(name: str) -> bytes:
    return name.encode("utf-8", "surrogateescape")
