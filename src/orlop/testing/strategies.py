"""Hypothesis strategies for layers: what a tar can say, and what nobody should.  Needs ``orlop[testing]``.

    @given(stacks())
    def test_mine(layers): ...

`stacks` gives layers whose meaning the model of `orlop.testing.conformance` knows; `wild_layers` anything
that a `Layer` can hold, links that lead out or nowhere and whiteouts of nothing among it; `tars` their bytes
in PAX's and in GNU's form; `mutated` such bytes with damage, their checksums right, so that what comes after
the checksum meets it; `json_values` and `documents` what a registry may answer.

Nothing is huge: a layer has a few members, a file a few KiB.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from hypothesis import strategies as st

from orlop.testing.conformance import model
from orlop.testing.gnutar import gnu_tar, sealed
from orlop.testing.layers import SECOND, Kind, Layer, Member

__all__ = [
    "documents",
    "ids",
    "json_values",
    "modes",
    "mutated",
    "names",
    "paths",
    "stacks",
    "tars",
    "times",
    "wild_layers",
    "wild_names",
]

Draw = Callable[..., Any]
_BLOCK = 512
_DIGEST = "sha256:" + 64 * "0"
_ODD_NAMES = (
    b"\xff\xfe", "ä €".encode(), b"new\nline", b" ", b"n" * 255, b"-rf", b"\\x", b"%s", b"=", b"a:b,c",
    b"...", b"\x01\x7f", b"*", b"~", b"m" * 101,
)  # fmt: skip
_KINDS: tuple[Kind, ...] = ("file", "folder", "symlink", "hardlink", "char", "block", "fifo")
_PLAIN_NAMES = st.sampled_from([b"a", b"b", b"c", b"d"])

ids = st.sampled_from([0, 0, 1000, 0o7777777, 0o10000000, 2**31, 2**32 - 2])
"""Owners that Linux has, on both sides of what octal can say."""

times = st.one_of(
    st.sampled_from([0, 1, 1_700_000_000 * SECOND, -1, (2**32 + 5) * SECOND, (1 - 2**31) * SECOND]),
    st.integers((1 - 2**31) * SECOND, 2**33 * SECOND),
)
"""Times in nanoseconds that ext4 can hold (in its very first second it holds no fractions)."""

modes = st.one_of(st.sampled_from([0o644, 0o755, 0o4755, 0o1777, 0]), st.integers(0, 0o7777))


_names = st.one_of(_PLAIN_NAMES, _PLAIN_NAMES, _PLAIN_NAMES, st.sampled_from(_ODD_NAMES))
_paths = st.lists(_names, min_size=1, max_size=3).map(b"/".join)
_kinds = st.sampled_from([*_KINDS, "file", "folder", "hardlink"])
_targets = st.sampled_from([b"a", b"/b", b"../x", b"c/d", b"t" * 120])
_devices = st.sampled_from([(1, 3), (4095, 1_048_575), (0, 1), (300, 0)])
_data = st.one_of(st.binary(max_size=6), st.sampled_from([b"x" * 511, b"y" * 512, b"z" * 1025]))
_marks = st.sets(st.integers(0, 30), max_size=5)
_rests = st.sampled_from([0, 1, 700, 40_000])
_one_in_six = st.sampled_from([True, *[False] * 5])
_one_in_four = st.sampled_from([True, *[False] * 3])
_metadata = st.tuples(modes, ids, ids, times)
_values = st.one_of(st.binary(max_size=8), st.just(b"v" * 700))
_rest_names = ["a", "b", "x=y", "x%3Dy", "é", "n" * 200, "overlay.opaque", "overlay.overlay.x"]


def _xattrs(prefixes: Sequence[str]) -> st.SearchStrategy[dict[str, bytes]]:
    found = st.sampled_from([prefix + rest for prefix in prefixes for rest in _rest_names])
    return st.one_of(st.just({}), st.just({}), st.dictionaries(found, _values, max_size=2))


_few_xattrs = _xattrs(["trusted."])
_all_xattrs = _xattrs(["trusted.", "user."])  # of files and folders: Linux gives no others user. ones


def names() -> st.SearchStrategy[bytes]:
    """One component of a path: mostly one of four, so that members meet; sometimes an odd one."""
    return _names


def paths() -> st.SearchStrategy[bytes]:
    """A clean relative path of one to three components."""
    return _paths


def _member(draw: Draw, name: bytes, kind: Kind, target: bytes = b"") -> Member:
    """A member of this name and kind.

    The strategies it draws from are made once: making them is what takes the time.
    """
    size: int | None = None
    pieces: tuple[tuple[int, bytes], ...] = ()
    data = b""
    if kind == "file" and draw(_one_in_six):
        size, pieces = _sparse(draw)
    elif kind == "file":
        data = draw(_data)
    mode, uid, gid, mtime_ns = draw(_metadata)
    return Member(
        name=name,
        kind=kind,
        mode=0o777 if kind == "symlink" else mode,
        uid=uid,
        gid=gid,
        mtime_ns=mtime_ns,
        data=data,
        size=size,
        pieces=pieces,
        target=target,
        device=draw(_devices) if kind in ("char", "block") else (0, 0),
        xattrs={} if kind == "hardlink" else draw(_all_xattrs if kind in ("file", "folder") else _few_xattrs),
    )


def _sparse(draw: Draw) -> tuple[int, tuple[tuple[int, bytes], ...]]:
    """The size and the pieces of a file with holes; all pieces but the last are whole blocks."""
    pieces = [(mark * 2 * _BLOCK, bytes([65 + mark]) * _BLOCK) for mark in sorted(draw(_marks))]
    if pieces and draw(_one_in_four):
        pieces[-1] = (pieces[-1][0], b"last")
    end = pieces[-1][0] + len(pieces[-1][1]) if pieces else 0
    return end + draw(_rests), tuple(pieces)


# ------------------------------------------------------------------ what the model knows


@st.composite
def stacks(draw: Draw, *, most: int = 4) -> list[Layer]:
    """Layers, bottom first, as `orlop.testing.conformance.model.apply` takes them.

    Names are clean, no member lies below a symlink of its own layer, hard links lead to files that are
    there when the link is made.
    """
    stack: list[Layer] = []
    for _ in range(draw(st.integers(1, most))):
        stack.append(_layer_above(draw, stack))
    return stack


_hides = st.lists(_paths, max_size=2)
_counts = st.integers(0, 8)


def _layer_above(draw: Draw, below: Sequence[Layer]) -> Layer:
    layer = Layer()
    for path in draw(_hides) if below else []:
        if draw(_one_in_four):
            layer.opaque(path)
        else:
            layer.whiteout(path)
    given: dict[bytes, Kind] = {}
    for _ in range(draw(_counts)):
        path = draw(_paths)
        kind: Kind = draw(_kinds)
        if any(given.get(above, "folder") != "folder" for above in _above(path)):
            continue  # below a symlink, or below a file of the same layer: no two tools agree on that
        if kind == "folder" and given.get(path, "folder") != "folder":
            continue  # whether the lower layer's folder is merged: likewise
        if kind == "hardlink":
            files = _linkable(model.apply([*below, layer]), path, given)
            if not files:
                continue
            layer.hardlink(path, files[draw(st.integers(0, len(files) - 1))])
        else:
            layer.add(_member(draw, path, kind, draw(_targets) if kind == "symlink" else b""))
        if kind != "folder":
            given = {name: what for name, what in given.items() if path not in _above(name)}
        given[path] = kind
    return layer


def _linkable(tree: model.Tree, path: bytes, given: Mapping[bytes, Kind]) -> list[bytes]:
    """The files of a tree that a hard link at ``path`` may lead to."""
    return [
        name
        for name, entry in sorted(tree.items())
        if entry.kind not in ("folder", "symlink")
        and name != path
        and not any(given.get(above) == "symlink" for above in _above(name))
        and path not in _above(name)  # making room for the link, or for the folders above it,
        and name not in _above(path)  # must not take the file away
    ]


def _above(path: bytes) -> list[bytes]:
    parts = path.split(b"/")
    return [b"/".join(parts[:count]) for count in range(1, len(parts))]


# ------------------------------------------------------------------ what nobody should


_marks_of_lowers = st.sampled_from([b".wh.a", b".wh.b", b".wh..wh..opq", b".wh..wh.plnk"])
_wild_parts = st.one_of(
    _names,
    _names,
    _names,
    st.sampled_from([b"..", b".", b"", b"..."]),
    _marks_of_lowers,
    st.one_of(_marks_of_lowers, st.sampled_from([b".wh.", b".wh..", b".wh..."])),  # the last mean nothing
    st.binary(min_size=1, max_size=8).filter(lambda name: b"\0" not in name),
)
_wild_names = st.builds(
    lambda start, parts, end: (start + b"/".join(parts) + end) or b".",
    st.sampled_from([b"", b"", b"", b"./", b"/", b"../", b"/../"]),
    st.lists(_wild_parts, min_size=1, max_size=3),
    st.sampled_from([b"", b"", b"", b"/"]),
)


def wild_names() -> st.SearchStrategy[bytes]:
    """Any name: absolute, with ``..`` and ``.``, empty parts, whiteouts, a slash at the end."""
    return _wild_names


@st.composite
def wild_layers(draw: Draw, *, most: int = 8) -> Layer:
    """Any members: links may lead out, nowhere, or to what comes later; mostly to something of the layer."""
    layer = Layer()
    for _ in range(draw(st.integers(0, most))):
        kind: Kind = draw(_kinds)
        target = b""
        if kind in ("symlink", "hardlink"):
            files = [member.name for member in layer.members if member.kind != "folder"]
            known = kind == "hardlink" and files and not draw(_one_in_four)
            target = files[draw(st.integers(0, len(files) - 1))] if known else draw(_wild_names)
        layer.add(_member(draw, draw(_wild_names), kind, target))
    return layer


_wild_layers = wild_layers()
_forms = st.sampled_from([Layer.tar, gnu_tar])


def tars(layers: st.SearchStrategy[Layer] | None = None) -> st.SearchStrategy[bytes]:
    """The bytes of layers, in PAX's form or GNU's."""
    return st.builds(lambda layer, form: form(layer), _wild_layers if layers is None else layers, _forms)


_wild_tars = tars()
_hurts = st.lists(
    st.tuples(
        st.sampled_from(["byte", "field", "kind", "drop", "twice", "cut", "swap"]),
        st.integers(0, 1 << 20),
        st.integers(0, 1 << 20),
    ),
    min_size=1,
    max_size=4,
)
_fields = st.sampled_from([(100, 8), (108, 8), (124, 12), (136, 12), (329, 8), (483, 12)])
_flags = st.sampled_from([b"x", b"g", b"L", b"K", b"S", b"1", b"2", b"7", b"\0", b"V", b"A"])


@st.composite
def mutated(draw: Draw, source: st.SearchStrategy[bytes] | None = None) -> bytes:
    """A tar with damage: bytes changed, numbers made extreme, blocks gone, twice, or cut off."""
    data = bytearray(draw(_wild_tars if source is None else source))
    for how, at, other in draw(_hurts):
        if not data:
            break
        at %= len(data)  # noqa: PLW2901
        block, other_block = at - at % _BLOCK, other % len(data) // _BLOCK * _BLOCK
        if how == "byte":
            data[at] = other & 0xFF
        elif how == "field":
            start, width = draw(_fields)
            data[block + start : block + start + width] = draw(_NUMBERS[width])
        elif how == "kind":
            data[block + 156 : block + 157] = draw(_flags)
        elif how == "drop":
            del data[block : block + _BLOCK]
        elif how == "twice":
            data[block:block] = data[block : block + _BLOCK]
        elif how == "cut":
            del data[at:]
        else:
            mine, theirs = data[block : block + _BLOCK], data[other_block : other_block + _BLOCK]
            data[block : block + _BLOCK], data[other_block : other_block + _BLOCK] = theirs, mine
    return bytes(data) if draw(_one_in_six) else sealed(bytes(data))


def _numbers(width: int) -> st.SearchStrategy[bytes]:
    """What may stand in a numeric field of a header."""
    extremes = [
        *(b"7" * width, b" " * width, bytes(width), b"-1".ljust(width), b"9".ljust(width, b"\0")),
        *(b"\xff" * width, b"\x80" + b"\xff" * (width - 1), b"\x80" + bytes(width - 1)),
    ]
    return st.one_of(
        st.binary(min_size=width, max_size=width),
        st.sampled_from(extremes),
        st.integers(0, 8 ** (width - 1) - 1).map(lambda value: b"%0*o\0" % (width - 1, value)),
        st.integers(0, 5000).map(lambda value: b"\x80" + value.to_bytes(width - 1, "big")),
    )


_NUMBERS = {width: _numbers(width) for width in (8, 12)}


# ------------------------------------------------------------------ documents


def json_values() -> st.SearchStrategy[Any]:
    """Any JSON."""
    leaf = st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(2**70), 2**70),
        st.floats(allow_nan=False, allow_infinity=False),
        st.text(max_size=12),
    )
    return st.recursive(
        leaf,
        lambda inner: st.one_of(
            st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=8), inner, max_size=4)
        ),
        max_leaves=12,
    )


def documents() -> st.SearchStrategy[dict[str, Any]]:
    """Manifests, indexes and configs, most fields as they should be, any of them something else."""
    descriptor = st.fixed_dictionaries(
        {
            "digest": _mostly(st.sampled_from([_DIGEST, "sha512:" + 128 * "a"])),
            "size": _mostly(st.integers(0, 2**53)),
        },
        optional={
            "mediaType": _mostly(st.text(max_size=20)),
            "annotations": _mostly(st.dictionaries(st.text(max_size=8), st.text(max_size=8), max_size=2)),
            "urls": _mostly(st.lists(st.text(max_size=8), max_size=2)),
            "platform": _mostly(
                st.fixed_dictionaries(
                    {"os": st.text(max_size=6), "architecture": st.sampled_from(["arm", "amd64"])},
                    optional={"variant": st.one_of(st.text(max_size=4), st.sampled_from(["v6", "v8", "v²"]))},
                )
            ),
        },
    )  # fmt: skip
    optional = {
        "schemaVersion": _mostly(st.just(2)),
        "mediaType": _mostly(
            st.sampled_from(
                [
                    "application/vnd.oci.image.manifest.v1+json",
                    "application/vnd.oci.image.index.v1+json",
                    "application/vnd.docker.distribution.manifest.list.v2+json",
                ]
            )
        ),
        "annotations": json_values(),
    }
    config = {
        "rootfs": _mostly(
            st.fixed_dictionaries({"diff_ids": st.lists(_mostly(st.just(_DIGEST)), max_size=3)})
        ),
    }
    rest = {name: json_values() for name in ("os", "architecture", "config", "history", "created", "variant")}
    return st.one_of(
        st.fixed_dictionaries(
            {"config": _mostly(descriptor), "layers": _mostly(st.lists(descriptor, max_size=3))},
            optional=optional,
        ),
        st.fixed_dictionaries({"manifests": _mostly(st.lists(descriptor, max_size=3))}, optional=optional),
        st.fixed_dictionaries(config, optional=rest),
    )


def _mostly(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.integers(0, 11).flatmap(lambda dice: strategy if dice else json_values())
