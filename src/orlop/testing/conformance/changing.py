"""Checks of what becomes of an image's own files and folders when they are changed."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

from orlop.testing.conformance import expect
from orlop.testing.conformance.bench import Bench
from orlop.testing.conformance.model import apply, below, changed
from orlop.testing.conformance.samples import house, plain
from orlop.testing.conformance.trees import restoring_times
from orlop.values import replace

__all__ = [
    "a_chmod_changes_nothing_else",
    "a_chown_is_kept",
    "a_file_is_moved_over_another",
    "a_folder_is_moved",
    "a_folder_made_again_is_empty",
    "a_lower_file_is_moved_and_linked",
    "a_recreated_folder_is_opaque_in_a_third_layer",
    "a_rewrite_of_the_same_size_and_time_is_seen",
    "an_unchanged_root_adds_no_layer",
    "deleted_files_stay_deleted",
    "five_rewrites_within_a_second_are_each_seen",
    "kinds_are_replaced",
    "one_name_of_a_hard_linked_file_is_written",
    "the_roots_own_metadata_is_kept",
]


# ------------------------------------------------------------------ files


def an_unchanged_root_adds_no_layer(bench: Bench) -> None:
    """The commit of a root in which nothing differs has the image's layers, whatever was touched."""
    image = bench.image(house())
    with bench.root(image) as root:
        expect.equal(bench.diff_ids(root.commit()), bench.diff_ids(image), "the layers of a new root")
        root.tree()
        restore = restoring_times(root.top, ".", "d", "d/s", "d/s/x", "d/a")
        (root.top / "d/made").write_bytes(b"and removed")
        (root.top / "d/made").unlink()
        for name in ("d/s/x", "d/a"):
            path = root.top / name
            path.write_bytes(path.read_bytes())
        restore()
        committed = root.commit()
    expect.equal(bench.diff_ids(committed), bench.diff_ids(image), "the layers of one touched and restored")
    bench.shows(committed, apply([house()]), "the commit of an unchanged root")


def deleted_files_stay_deleted(bench: Bench) -> None:
    """What is deleted is gone from the root, from its commit, and from what is committed above that."""
    gone = ["d/a", "d/l", "top"]

    def delete(top: Path) -> None:
        for name in gone:
            (top / name).unlink()
        shutil.rmtree(top / "d/s")

    committed = bench.kept(bench.image(plain()), delete)
    above = bench.kept(committed, lambda top: (top / "d/more").write_bytes(b"more"))
    for image in (committed, above):
        with bench.root(image) as root:
            there = root.tree()
            for name in (*gone, "d/s", "d/s/x", "d/s/t/y"):
                expect.true(name.encode() not in there, f"{name} is gone from {image}")
            expect.equal(sorted(os.listdir(root.top)), ["d", "e"], "what is in the root")


def five_rewrites_within_a_second_are_each_seen(bench: Bench) -> None:
    """Each of five rewrites of a file, all of one size, is in the commit after it, however close they are."""
    image = bench.image(plain())
    commits = []
    with bench.root(image) as root:
        for number in range(5):
            (root.top / "d/b").write_bytes(b"brav%d" % number)
            commits.append(root.commit())
    expect.equal(len({bench.diff_ids(commit)[-1] for commit in commits}), 5, "the number of diff IDs")
    for number, commit in enumerate(commits):
        with bench.root(commit) as root:
            expect.equal(
                (root.top / "d/b").read_bytes(), b"brav%d" % number, f"the content of commit {number}"
            )


def a_rewrite_of_the_same_size_and_time_is_seen(bench: Bench) -> None:
    """A file written with other bytes, as many, whose time was set back, is in the commit."""
    image = bench.image(plain())
    for content in (b"BRAVO", b"Bravo"):
        with bench.root(image) as root:
            restore = restoring_times(root.top, "d/b")
            with (root.top / "d/b").open("r+b") as file:
                file.write(content)
            restore()
            committed = root.commit()
            expect.equal(len(bench.diff_ids(committed)), 2, "the number of layers")
        with bench.root(committed) as root:
            expect.equal((root.top / "d/b").read_bytes(), content, "the content")


def a_chmod_changes_nothing_else(bench: Bench) -> None:
    """Permissions of a lower file and a lower folder are kept, and nothing else about them changes."""

    def change(top: Path) -> None:
        (top / "d/a").chmod(0o611)
        (top / "d").chmod(0o711)
        (top / "d/s").chmod(0o1777)

    expected = apply([house()])
    for path, mode in ((b"d/a", 0o611), (b"d", 0o711), (b"d/s", 0o1777)):
        expected = changed(expected, path, mode=mode)
    bench.shows(bench.kept(bench.image(house()), change), expected, "the commit of a chmod")


def a_chown_is_kept(bench: Bench) -> None:
    """New owners of a lower file, folder and symlink are kept, and nothing else about them changes."""
    owners = {b"d/a": (11, 12), b"d": (13, 14), b"link": (15, 16)}
    if not bench.can.chown:
        bench.leave_out("owners")
        owners = dict.fromkeys(owners, (os.geteuid(), os.getegid()))

    def change(top: Path) -> None:
        for path, (uid, gid) in owners.items():
            os.chown(top / os.fsdecode(path), uid, gid, follow_symlinks=False)

    expected = apply([house()])
    for path, (uid, gid) in owners.items():
        expected = changed(expected, path, uid=uid, gid=gid)
    committed = bench.kept(bench.image(house()), change)
    bench.shows(committed, expected, "the commit of a chown")


def a_lower_file_is_moved_and_linked(bench: Bench) -> None:
    """A lower file can be moved, also between folders, and linked: two names, one file, in the commit too."""

    def change(top: Path) -> None:
        (top / "d/a").rename(top / "e/moved")
        (top / "d/l").rename(top / "d/link")
        os.link(top / "d/b", top / "linked")
        os.link(top / "e/moved", top / "e/again")

    moved, linked = (b"e/again", b"e/moved"), (b"d/b", b"linked")
    committed = bench.kept(bench.image(plain()), change, joined=(moved, linked))
    with bench.root(committed) as root:
        tree, original = root.tree(), apply([plain()])[b"d/a"]
        expect.true(b"d/a" not in tree, "what was moved is gone")
        expect.equal(tree[linked[0]].twins, linked, "the names of the linked file")
        expected = {name: replace(original, twins=moved) for name in moved}
        bench.same({name: tree[name] for name in moved}, expected, "the moved file")


def one_name_of_a_hard_linked_file_is_written(bench: Bench) -> None:
    """Written through one of a lower file's names, what each name shows is kept.

    Overlayfs parts the names when one is written (index=off), a plain folder does not: both are kept.
    """

    def change(top: Path) -> None:
        with (top / "d/c").open("ab") as file:
            file.write(b" and more")

    committed = bench.kept(bench.image(house()), change)
    with bench.root(committed) as root:
        contents = [(root.top / name).read_bytes() for name in ("d/c", "d/b", "twin")]
        others = {b"bravo"} if contents[1] == b"bravo" else {b"bravo and more"}
        expect.equal(contents[0], b"bravo and more", "the name that was written")
        expect.equal(set(contents[1:]), others, "the other names")
        (group,) = {root.tree()[name].twins for name in (b"d/b", b"twin")}
        expect.true({b"d/b", b"twin"} <= set(group), "the other names are one file still")


def a_file_is_moved_over_another(bench: Bench) -> None:
    """A file moved over a lower one is what its name shows; so is a new file moved there."""

    def change(top: Path) -> None:
        (top / "d/b").replace(top / "d/a")
        (top / "saved").write_bytes(b"saved")
        (top / "saved").replace(top / "top")
        (top / "d/l").replace(top / "d/s/x")

    committed = bench.kept(bench.image(plain()), change)
    with bench.root(committed) as root:
        expect.equal((root.top / "d/a").read_bytes(), b"bravo", "what was moved over d/a")
        expect.equal((root.top / "top").read_bytes(), b"saved", "what was moved over top")
        expect.equal(os.readlink(root.top / "d/s/x"), "a", "the link that was moved over d/s/x")
        expect.equal(sorted(os.listdir(root.top / "d")), ["a", "s"], "what is in d")


def a_folder_is_moved(bench: Bench) -> None:
    """A lower folder can be moved: by rename(2), or, where that says EXDEV, by copying, as mv(1) does."""
    original = apply([plain()])

    def change(top: Path) -> None:
        try:
            (top / "d").rename(top / "moved")
        except OSError as exc:
            expect.equal(exc.errno, errno.EXDEV, "the errno of a rename")
            shutil.move(top / "d", top / "moved")
        (top / "fresh").mkdir()
        (top / "fresh/f").write_bytes(b"f")
        (top / "fresh").rename(top / "d")  # a new folder takes the place
        (top / "d/f").rename(top / "moved/f")

    committed = bench.kept(bench.image(plain()), change)
    with bench.root(committed) as root:
        tree = root.tree()
        expect.equal(below(tree, b"d"), [], "what is in the new folder")
        for path in below(original, b"d"):
            old, new = original[path], tree[b"moved" + path[1:]]
            told = [(e.kind, e.mode, e.digest, e.target) for e in (new, old)]
            expect.equal(told[0], told[1], f"{path!r}, moved")
        expect.equal((root.top / "moved/f").read_bytes(), b"f", "the file moved into the moved folder")


# ------------------------------------------------------------------ folders


def a_folder_made_again_is_empty(bench: Bench) -> None:
    """A lower folder that is removed and made again has nothing of the old one, there and in the commit."""

    def change(top: Path) -> None:
        shutil.rmtree(top / "d")
        (top / "d").mkdir(mode=0o700)
        expect.equal(os.listdir(top / "d"), [], "what is in a folder made again")
        (top / "d/s").mkdir()
        (top / "d/b").write_bytes(b"another")

    committed = bench.kept(bench.image(plain()), change)
    with bench.root(committed, view=True) as root:
        expect.equal(sorted(below(root.tree(), b"d")), [b"d/b", b"d/s"], "what is in the commit's folder")


def a_recreated_folder_is_opaque_in_a_third_layer(bench: Bench) -> None:
    """What was below a folder that was removed and made again stays hidden when a third layer adds to it."""

    def again(top: Path) -> None:
        shutil.rmtree(top / "d")
        (top / "d").mkdir()
        (top / "d/second").write_bytes(b"2")

    def add(top: Path) -> None:
        (top / "d/third").write_bytes(b"3")
        (top / "d/s").mkdir()

    image = bench.kept(bench.kept(bench.image(plain()), again), add)
    expect.equal(len(bench.diff_ids(image)), 3, "the number of layers")
    for view in (False, True):
        with bench.root(image, view=view) as root:
            found = sorted(below(root.tree(), b"d"))
            expect.equal(found, [b"d/s", b"d/second", b"d/third"], "what is in the folder")


def the_roots_own_metadata_is_kept(bench: Bench) -> None:
    """Permissions, owner, time and xattrs of the root itself are part of a commit."""

    def change(top: Path) -> None:
        top.chmod(0o711)
        if bench.can.chown:
            os.chown(top, 21, 22)
        os.setxattr(top, "user.root", b"mine")
        os.utime(top, ns=(1, 123_456_789_012))

    if not bench.can.chown:
        bench.leave_out("owners")
    owner = {"uid": 21, "gid": 22} if bench.can.chown else {}
    expected = changed(
        apply([plain()]), b"", mode=0o711, mtime_ns=123_456_789_012, xattrs=(("user.root", b"mine"),), **owner
    )
    bench.shows(bench.kept(bench.image(plain()), change), expected, "the commit of a changed root folder")


def kinds_are_replaced(bench: Bench) -> None:
    """A file can take a folder's place, a folder a file's, a link either's; nothing of the old shows."""

    def change(top: Path) -> None:
        shutil.rmtree(top / "d/s")
        (top / "d/s").write_bytes(b"a file now")
        (top / "d/a").unlink()
        (top / "d/a").mkdir()
        (top / "d/a/in").write_bytes(b"in")
        (top / "d/l").unlink()
        os.mkfifo(top / "d/l")
        shutil.rmtree(top / "e")
        (top / "e").symlink_to("d")
        (top / "top").unlink()
        (top / "top").symlink_to("/nowhere")

    committed = bench.kept(bench.image(plain()), change)
    bench.kept(committed, lambda top: (top / "d/a/more").write_bytes(b"more"))
