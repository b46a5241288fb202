"""Random stacks of layers over few names, so that the layers hit each other; the same for the same seed.

    layers = random_stack(random.Random(7))

The lowest layer is large enough that every other is small beside it.  What the oracle does not judge (see
`support.oracle`) comes up now and then: such stacks are to be skipped, not avoided, since which those are
is only known once all rules are applied.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from support.layers import Layer, SparseForm

SECOND = 1_000_000_000
_STAMPS = 1_800_000_000  # s; later than what entries get unless told otherwise
FILLER = 220  # files of the lowest layer that no other layer touches
_SPARSE: tuple[SparseForm, ...] = ("old-gnu", "gnu-0.0", "gnu-0.1", "gnu-1.0")
_ODD = [b"\xff\xfe", "ä €".encode(), b"new\nline", b" ", b"n" * 255, b"-rf", b"\\x", b"%", b"=", b"a:b,c"]


def random_stack(dice: random.Random, *, layers: int | None = None, stamped: bool = False) -> list[Layer]:
    """A base and one to five layers above it.

    With ``stamped`` the time of each entry tells its layer, as `layer_of_stamp` has it.
    """
    count = layers if layers is not None else dice.randint(2, 6)
    stack = _Stack(dice, stamped=stamped)
    return [stack.layer(base=number == 0) for number in range(count)]


def layer_of_stamp(mtime_ns: int) -> int | None:
    """The number of the layer, 0 the lowest, that an entry with this time came from; None if it has no stamp."""
    number, _ = divmod(mtime_ns // SECOND - _STAMPS, 1_000)
    return number if 0 <= number < 1_000 else None


class _Stack:
    """What the layers so far are about: enough to hit it, not a model of what it means."""

    def __init__(self, dice: random.Random, *, stamped: bool = False) -> None:
        self._dice = dice
        self._stamp = _STAMPS - 1_000 if stamped else 0  # the next entry's seconds
        self._files: set[bytes] = set()  # of lower layers
        self._hit: set[bytes] = set()  # what this layer is about
        self._names = [b"a", b"b", b"c", dice.choice(_ODD)]

    def layer(self, *, base: bool) -> Layer:
        dice = self._dice
        if self._stamp:
            self._stamp += 1_000 - self._stamp % 1_000
        layer = Layer(dice.choice(["pax", "pax", "gnu"]) if not base else "pax")
        if dice.random() < 0.5:
            layer.folder("./", **self._metadata(layer))
        given: dict[bytes, str] = {}
        self._hit = set[bytes]()
        for _ in range(dice.randint(15, 40) if base else dice.randint(0, 14)):
            path = self._path(given)
            if any(given.get(above, "folder") not in {"folder", "symlink"} for above in _above(path)):
                continue  # below what is no folder: not for GNU tar to judge
            if given.get(path) == "symlink":
                continue  # GNU tar makes some symlinks last, whatever came after them
            kind = self._entry(layer, path, given)
            if kind:
                given[path] = kind
        if base:
            for number in range(FILLER):
                layer.file(f"filler/{number % 7}/{number}", b"%d" % number)
        self._files = {path for path in self._files if not self._is_hit(path)}
        self._files |= {path for path, kind in given.items() if kind == "file"}
        return layer

    def _is_hit(self, path: bytes) -> bool:
        """Whether this layer says something of a path or of what lies above it."""
        return path in self._hit or any(above in self._hit for above in _above(path))

    def _path(self, given: dict[bytes, str]) -> bytes:
        """Mostly in a folder of this layer, sometimes in one that it only implies, or in a symlink."""
        dice = self._dice
        folders = [path for path, kind in given.items() if kind == "folder"]
        if folders and dice.random() < 0.6:
            parent = dice.choice(folders)
        else:
            parent = b"/".join(dice.choices(self._names[:3], k=dice.choice([0, 0, 1, 1, 2, 3])))
        name = dice.choice(self._names)
        return parent + b"/" + name if parent else name

    def _entry(self, layer: Layer, path: bytes, given: dict[bytes, str]) -> str:
        dice = self._dice
        metadata = self._metadata(layer)
        kind = dice.choices(
            ["file", "folder", "symlink", "hardlink", "special", "sparse", "whiteout", "opaque", "touch"],
            [30, 30, 8, 14, 5, 4, 14, 5, 6],
        )[0]
        below = any(other.startswith(path + b"/") for other in self._hit)
        if below and kind not in {"folder", "whiteout", "opaque"}:
            return ""  # it is a folder already, by being implied
        if kind == "folder" and any(given.get(above) == "symlink" for above in _above(path)):
            return ""  # of a folder given under two names GNU tar keeps the first metadata, not the last
        self._hit.add(path)
        if kind == "file":
            layer.file(path, dice.randbytes(dice.choice([0, 1, 511, 512, 513, 2000])), **metadata)
        elif kind == "folder":
            layer.folder(path, **metadata)
        elif kind == "symlink":
            targets = [b"a", b"b", b"a/b", b"x" * 200]
            if given.get(path.rpartition(b"/")[0]) == "folder":
                # GNU tar makes these last, and then only restores the times of folders that it knew before
                targets += [b"c/../a", b"/b", b"../.."]
            target = dice.choice(targets)
            trusted = {key: value for key, value in metadata["xattrs"].items() if key.startswith("trusted.")}
            layer.symlink(path, target, **{**metadata, "mode": 0o777, "xattrs": trusted})
        elif kind == "hardlink":
            return self._hard_link(layer, path, given)
        elif kind == "special":
            self._special(layer, path, metadata)
        elif kind == "sparse":
            return self._sparse(layer, path, metadata)
        elif kind == "whiteout":
            layer.whiteout(path)
            return ""
        elif kind == "opaque":
            folder = dice.choice([path, path, b"", *(p for p, k in given.items() if k == "folder")])
            if given.get(folder, "folder") == "folder":
                self._hit |= {folder, folder + b"/."}
                layer.opaque(folder)
            return ""
        else:
            self._again(layer, given, metadata)
            return ""
        return kind

    def _again(self, layer: Layer, given: dict[bytes, str], metadata: dict[str, object]) -> None:
        """A lower layer's file once more, with other metadata."""
        untouched = sorted(
            path
            for path in self._files
            if not self._is_hit(path) and not any(other.startswith(path + b"/") for other in self._hit)
        )
        if untouched:
            path = self._dice.choice(untouched)
            self._hit.add(path)
            given[path] = "file"
            layer.file(path, b"again", **metadata)

    def _hard_link(self, layer: Layer, path: bytes, given: dict[bytes, str]) -> str:
        dice = self._dice
        own = sorted(other for other, kind in given.items() if kind == "file")
        lower = sorted(other for other in self._files if not self._is_hit(other))
        choices = [files for files in (own, lower) if files]
        if not choices:
            return ""
        target = dice.choice(dice.choice(choices))
        if target == path:
            return ""
        layer.hardlink(path, to=target, mode=dice.choice([0o644, 0o111]))
        return "file"

    def _special(self, layer: Layer, path: bytes, metadata: dict[str, object]) -> None:
        dice = self._dice
        plain = {**metadata, "xattrs": {}}
        makers: list[Callable[[], object]] = [
            lambda: layer.fifo(path, **plain),
            lambda: layer.device(path, "char", 4095, 1048575, **plain),
            lambda: layer.device(path, "block", dice.randint(1, 300), 0, **plain),
        ]
        dice.choice(makers)()

    def _sparse(self, layer: Layer, path: bytes, metadata: dict[str, object]) -> str:
        dice = self._dice
        how = dice.choice(_SPARSE)
        if (how == "old-gnu") != (layer.form == "gnu"):
            return ""
        pieces = [(number * 8192 + 1024, dice.randbytes(512)) for number in range(dice.randint(0, 9))]
        layer.sparse(path, dice.choice([0, 70_000, 90_000]) + 82_944, pieces, how=how, **metadata)
        return "file"

    def _metadata(self, layer: Layer) -> dict[str, dict[str, bytes]]:
        dice = self._dice
        nsec = dice.choice([0, 1, 999_999_999]) if layer.form == "pax" else 0
        xattrs = {}
        if layer.form == "pax" and dice.random() < 0.3:
            xattrs = {
                "user.a": dice.randbytes(3),
                "trusted.b": b"\0\xff=",
                "user.c": bytes(dice.choice([0, 900])),
            }
        found: dict[str, object] = {
            "mode": dice.choice([0o644, 0o755, 0o600, 0o4755, 0o1777, 0]),
            "uid": dice.choice([0, 0, 1000, 2**32 - 2]),
            "gid": dice.choice([0, 0, 100, 2**31]),
            "mtime_ns": dice.choice([0, 1_700_000_000, -1, -(2**31) + 9, 2**32 + 5]) * SECOND + nsec,
            "xattrs": xattrs,
        }
        if self._stamp:
            self._stamp += 1
            found["mtime_ns"] = self._stamp * SECOND + nsec
        return found  # type: ignore[return-value]


def _above(path: bytes) -> list[bytes]:
    parts = path.split(b"/")
    return [b"/".join(parts[:count]) for count in range(1, len(parts))]
