"""Checks of what layers mean (docs/layers.md): each root against the flat model of its layers."""

from __future__ import annotations

import hashlib

from orlop.testing.conformance import expect
from orlop.testing.conformance.bench import Bench
from orlop.testing.conformance.model import apply
from orlop.testing.conformance.samples import house, plain
from orlop.testing.layers import SECOND, Layer

__all__ = [
    "a_hard_link_into_a_lower_layer_is_one_file",
    "a_layer_may_come_twice",
    "a_new_root_is_0755",
    "a_whiteout_of_nothing_does_not_show",
    "an_implied_folder_keeps_what_it_is",
    "any_id_and_any_time_is_shown",
    "every_kind_of_entry_is_shown",
    "five_hundred_and_twenty_layers",
    "folder_permissions_through_three_layers",
    "kinds_replace_each_other",
    "large_and_sparse_files",
    "odd_names_are_kept",
    "one_hundred_and_twenty_eight_layers",
    "opaque_folders_hide_what_is_below",
    "the_marks_of_an_inner_overlay_steer_nothing",
    "the_roots_own_metadata_is_shown",
    "whiteouts_hide_what_is_below_and_only_that",
    "xattrs_are_shown",
]

ODD_NAMES: tuple[bytes, ...] = (
    b"colon:comma,",
    b"back\\slash",
    b"two  spaces and \"quotes' ",
    b"new\nline\ttab",
    b"\xff\xfe not UTF-8 \x80",
    "\u00fc\u0308\U0001f4a9".encode(),
    b"n" * 255,
    b"-rf",
    b"*?[a]",
    b"%s\x01\x7f",
    b"...",
    b"upperdir=x",
)
SPARSE_SIZE = 64 << 20
_LARGE = 6 << 20
_DEPTHS = (1, 2, 64, 127, 128)
_MANY = 520


def _check(bench: Bench, *layers: Layer) -> None:
    """An image of these layers shows what the model says, as a root and as a view."""
    expected, image = apply(layers), bench.image(*layers)
    bench.shows(image, expected, "the root")
    bench.shows(image, expected, "the view", view=True)


def every_kind_of_entry_is_shown(bench: Bench) -> None:
    """Files, folders, links, FIFOs and devices are shown with mode, owner, time, content and xattrs."""
    _check(bench, house())


def a_new_root_is_0755(bench: Bench) -> None:
    """The root of an image that has no entry for it is root's, 0755."""
    layer = Layer().file("f", b"f", mtime_ns=9 * SECOND)
    _check(bench, layer)
    with bench.root(bench.image(layer)) as root:
        expect.equal(oct(root.tree()[b""].mode), oct(0o755), "the root's mode")


def the_roots_own_metadata_is_shown(bench: Bench) -> None:
    """What an image says of its root is shown: mode, owner, time, xattrs; the last layer that does wins."""
    first = Layer().folder("./", mode=0o700, uid=1, xattrs={"user.first": b"1"}).file("f")
    second = Layer().folder(".", mode=0o1711, uid=3, gid=4, mtime_ns=11, xattrs={"user.second": b"2"})
    _check(bench, first, Layer().file("g"))
    _check(bench, first, second, Layer().file("h"))


def an_implied_folder_keeps_what_it_is(bench: Bench) -> None:
    """A folder that a layer only implies keeps the lower layer's mode, owner, times and xattrs."""
    base = Layer().folder("./", mtime_ns=SECOND)
    base.folder("t", mode=0o1777, uid=5, gid=6, mtime_ns=3, xattrs={"user.k": b"v"}).file("t/old")
    base.folder("t/deep", mode=0o711, gid=9, mtime_ns=4)
    _check(bench, base, Layer().file("t/new").file("t/deep/er/new"), Layer().whiteout("t/old"))


def folder_permissions_through_three_layers(bench: Bench) -> None:
    """A folder has the permissions and the owner that the last layer with an entry for it gives it."""
    layers = [
        Layer().folder("./").folder("d", mode=0o700, uid=1).file("d/a").folder("d/s", mode=0o777),
        Layer().folder("d", mode=0o755, uid=2).file("d/b").folder("d/s", mode=0o750, gid=3),
        Layer().folder("d", mode=0o1777, uid=0).file("d/s/c"),
    ]
    _check(bench, *layers[:2])
    _check(bench, *layers)


def kinds_replace_each_other(bench: Bench) -> None:
    """A file where a folder was, a folder where a file or a link was: the upper layer's, and nothing else."""
    base = plain().symlink("to_d", "d").file("was_file", b"f").fifo("was_pipe")
    top = Layer().file("d/s", b"a file").folder("was_file").file("was_file/in", b"in")
    top.file("to_d/new", b"the link becomes a folder").symlink("was_pipe", "d").symlink("e", "d")
    _check(bench, base, top)


def a_hard_link_into_a_lower_layer_is_one_file(bench: Bench) -> None:
    """A hard link to a lower layer's file gives that file a further name; groups stay what they are."""
    base = Layer().folder("./").folder("d", uid=7).file("d/a", b"alpha", mode=0o640, uid=7, mtime_ns=3)
    base.file("x", b"x").hardlink("y", "x").hardlink("z", "x")
    second = Layer().hardlink("d/again", "d/a").hardlink("other", "d/a").whiteout("y")
    third = Layer().file("x", b"another x").hardlink("third", "other")
    _check(bench, base, second)
    _check(bench, base, second, third)


def a_layer_may_come_twice(bench: Bench) -> None:
    """An image may hold a layer several times, and layers without entries, as images by old builders do."""
    empty, twice = Layer(), Layer().file("d/a", b"twice").whiteout("d/b").folder("e", mode=0o711)
    between = Layer().file("d/b", b"back").opaque("e").whiteout("d/a")
    _check(bench, empty)
    _check(bench, plain(), empty, twice, empty, between, empty, twice, twice, empty)
    _check(bench, plain(), twice, between, plain())


def whiteouts_hide_what_is_below_and_only_that(bench: Bench) -> None:
    """A whiteout hides lower layers' files and folders, and never what its own layer brings."""
    second = Layer().file("d/b", b"of the same layer").whiteout("d/b").whiteout("d/a").whiteout("d/s")
    third = Layer().whiteout("e").file("e/again", b"new").whiteout("d/l")
    _check(bench, plain(), second)
    _check(bench, plain(), second, third, Layer().file("d/a", b"back"))


def a_whiteout_of_nothing_does_not_show(bench: Bench) -> None:
    """A whiteout of a name that no lower layer has does not show; the folder that it stands in does."""
    second = Layer().whiteout("nothing").whiteout("d/nothing").folder("fresh").whiteout("fresh/nothing")
    second.whiteout("implied/nothing").whiteout("d/l/nothing")
    _check(bench, Layer().folder("./").whiteout("first"))
    _check(bench, plain(), second, Layer().whiteout("nothing"))


def opaque_folders_hide_what_is_below(bench: Bench) -> None:
    """An opaque mark hides all that lower layers have in a folder, wherever in its layer it stands."""
    second = Layer().folder("d", mode=0o711).file("d/first", b"1").opaque("d").file("d/s/new", b"2")
    third = Layer().opaque("e").file("d/third", b"3")
    _check(bench, plain(), second)
    _check(bench, plain(), second, third)
    _check(bench, plain(), Layer().opaque("").file("alone", b"1"), third)
    _check(bench, Layer().folder("./").opaque("new").file("new/f"))


def odd_names_are_kept(bench: Bench) -> None:
    """Names hold every byte but NUL and slash, and up to 255 of them."""
    base, top = Layer().folder("./"), Layer()
    for name in ODD_NAMES:
        base.folder(name).file(name + b"/" + name, name).symlink(name + b"/to", name)
        top.file(name + b"/upper " + name[:200], b"upper").whiteout(name + b"/to")
    _check(bench, base)
    _check(bench, base, top)


def xattrs_are_shown(bench: Bench) -> None:
    """Xattrs of files and folders are shown, whatever bytes they hold; an upper entry brings its own."""
    base = Layer().folder("./").folder("d", xattrs={"user.d": b"d", "trusted.d": b"\0d"})
    base.file("d/f", b"f", xattrs={"user.bin": bytes(range(256)), "user.empty": b"", "user.\u00fc": b"u"})
    base.file("d/long", b"l", xattrs={f"user.{'k' * 100}{number}": b"v" * 100 for number in range(8)})
    base.symlink("link", "d", xattrs={"trusted.on_link": b"1"})
    top = Layer().file("d/f", b"f", xattrs={"user.other": b"2", "trusted.t": b"3"}).file("d/new")
    _check(bench, base)
    _check(bench, base, top)


def the_marks_of_an_inner_overlay_steer_nothing(bench: Bench) -> None:
    """What an overlayfs inside a container wrote into xattrs reads as written, and hides nothing of ours."""
    base, top = plain().folder("d/s/empty"), Layer()
    for space in ("trusted", "user"):
        marks = {f"{space}.overlay.opaque": b"y", f"{space}.overlay.redirect": b"/e"}
        base.folder(f"d/{space}", xattrs=marks).folder("d/s" if space == "user" else "e", xattrs=marks)
        base.file(f"d/{space}/gone", xattrs={f"{space}.overlay.whiteout": b"y"})
        top.file(f"d/{space}/twice", xattrs={f"{space}.overlay.overlay.opaque": b"y"})
        top.folder("d/s" if space == "user" else "e", xattrs=marks).folder("d", xattrs=marks)
    third = Layer().file("d/s/more").file("e/more")
    for layers in ([base], [base, top], [base, top, third]):
        image, expected = bench.image(*layers), apply(layers)
        bench.shows(image, expected, "the root")
        with bench.root(image, view=True) as view:
            bench.same(view.tree(), expected, "the view")


def large_and_sparse_files(bench: Bench) -> None:
    """A file of any size reads as it was packed, holes as zeros."""
    data = hashlib.shake_128(b"large").digest(_LARGE + 77)
    layer = Layer().folder("./").file("large", data).file("empty").file("block", b"b" * 4096)
    layer.sparse("sparse", SPARSE_SIZE + 5, (1 << 20, b"s" * 512), (SPARSE_SIZE, b"tail!"))
    _check(bench, layer.sparse("hole", 1 << 20))


def any_id_and_any_time_is_shown(bench: Bench) -> None:
    """Ids go up to 2^32-2; times are nanoseconds before 1970 and after 2038."""
    layer = Layer().folder("./")
    for number, moment in enumerate(
        (0, 1, -1, -1_500_000_000, 2**31 * SECOND + 5, 2**33 * SECOND + 999_999_999)
    ):
        layer.file(f"t{number}", b"t", mtime_ns=moment).folder(f"d{number}", mtime_ns=moment)
    if bench.can.chown and bench.can.last_id < 2**32 - 2:
        bench.leave_out(f"ids beyond {bench.can.last_id}")
        ids = [bench.can.last_id, 1000]
    else:
        ids = [65534, 65536, 2**31, 2**32 - 2]
    for uid in ids:
        layer.file(f"i{uid}", b"i", uid=uid, gid=uid).folder(f"f{uid}", uid=uid, gid=uid - 1)
        layer.symlink(f"l{uid}", "x", uid=uid, gid=uid)
    _check(bench, layer)


# ------------------------------------------------------------------ many layers


def _step(number: int) -> Layer:
    """One of many small layers, each of which adds, changes, hides and links something of those below."""
    layer = Layer()
    moment = (1_000_000 + number) * SECOND + number
    if number == 0:
        layer.folder("./", mtime_ns=SECOND)
    layer.file(f"f{number}", b"%d" % number, mtime_ns=moment, mode=0o600 + number % 64)
    layer.file("same", b"%d" % number, mtime_ns=moment)
    layer.folder(f"d{number % 7}", mode=0o700 + number % 64, mtime_ns=moment)
    layer.file(f"d{number % 7}/f{number}", b"%d" % number, mtime_ns=moment)
    if number % 3 == 2:
        layer.whiteout(f"f{number - 1}")
    if number % 5 == 4:
        layer.hardlink(f"h{number}", f"d{(number - 1) % 7}/f{number - 1}")
    if number % 17 == 16:
        layer.opaque(f"d{number % 7}")
    if number % 23 == 22:
        layer.whiteout(f"d{(number - 3) % 7}")
    return layer


def one_hundred_and_twenty_eight_layers(bench: Bench) -> None:
    """With each layer up to the 128th the root is what the model says."""
    layers = [_step(number) for number in range(max(_DEPTHS))]
    for depth in _DEPTHS:
        bench.shows(bench.image(*layers[:depth]), apply(layers[:depth]), f"{depth} layers")
    with bench.root(bench.image(*layers)) as root:
        expect.equal((root.top / "same").read_bytes(), b"127", "what the last layer wrote")


def five_hundred_and_twenty_layers(bench: Bench) -> None:
    """More layers than an overlay can stack (500) are shown, and can be written above."""
    layers = [_step(number) for number in range(_MANY)]
    image = bench.image(*layers)
    with bench.root(image) as root:
        bench.same(root.tree(), apply(layers), f"{_MANY} layers")
        (root.top / "same").write_bytes(b"above all")
        (root.top / f"f{_MANY - 1}").unlink()
        before = root.tree()
        committed = root.commit()
    expect.equal(len(bench.diff_ids(committed)), _MANY + 1, "the layers of the commit")
    bench.shows(committed, before, "the commit", view=True)
