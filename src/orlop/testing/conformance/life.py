"""Checks of the life of a root: prepare, list, commit, clean up, and what may be removed below it."""

from __future__ import annotations

import errno
import itertools
import os
import subprocess
import time
from datetime import datetime
from pathlib import Path

from orlop import errors
from orlop.testing.conformance import expect
from orlop.testing.conformance.bench import Bench
from orlop.testing.conformance.model import apply, without
from orlop.testing.conformance.samples import FILE, house, plain
from orlop.testing.layers import Layer

__all__ = [
    "a_folder_that_is_somebodys_stays",
    "a_full_life",
    "a_removed_image_lives_on_in_its_root",
    "a_root_in_use_is_not_cleaned_up",
    "a_root_survives_its_unmount",
    "a_view_is_read_only",
    "after_cleanup_nothing_is_there",
    "closing_twice_is_fine",
    "images_and_roots_go_in_any_order",
    "kinds_and_parents_are_told",
    "labels_and_times_are_kept",
    "one_path_is_prepared_once",
    "roots_do_not_see_each_other",
    "the_base_can_go_after_a_commit",
    "what_is_prepared_is_listed",
]


def a_full_life(bench: Bench) -> None:
    """What is written to a root and committed shows in the commit's root; cleaned up, a path is free."""
    image = bench.image(plain())
    path = bench.path()
    prepared = bench.prepare(image, path)
    root = bench.use(prepared)
    bench.same(root.tree(), apply([plain()]), "a new root")
    (root.top / "new").write_bytes(b"written")
    (root.top / "d/a").write_bytes(b"changed")
    before = root.tree()
    committed = root.commit()
    (root.top / "later").write_bytes(b"after the commit")
    prepared.cleanup()
    bench.shows(committed, before, "the commit's root")
    prepared = bench.prepare(image, path)
    bench.same(bench.use(prepared).tree(), apply([plain()]), "the root prepared again at the same path")
    prepared.cleanup()
    expect.equal(bench.store.prepared(), [], "what is prepared in the end")


def kinds_and_parents_are_told(bench: Bench) -> None:
    """A root's info tells its kind, driver, image and mounts, alike when made, got and listed."""
    image = bench.image(plain())
    for view in (False, True):
        prepared = bench.prepare(image, view=view)
        info = prepared.info
        expect.equal(info.kind, "view" if view else "active", "the kind")
        expect.equal(info.driver, bench.driver, "the driver")
        expect.equal(info.image, image, "the image")
        expect.equal(info.image_id, bench.store.inspect(image).info.id, "the image's ID")
        expect.true(info.mounts, "there are mounts")
        expect.equal({mount.target for mount in info.mounts}, {prepared.path}, "the mounts' targets")
        expect.true(not info.mounted, "nothing is mounted unless asked")
        expect.equal(bench.store.get(prepared.path).info, info, "the info, asked for again")
        listed = bench.store.prepared()
        expect.equal([(each.path, each.kind) for each in listed], [(info.path, info.kind)], "the list")
        prepared.cleanup()


def one_path_is_prepared_once(bench: Bench) -> None:
    """A path that is prepared is refused, whichever of the two is a view, and what is there stays."""
    image = bench.image(plain())
    for first, second in itertools.product((False, True), repeat=2):
        path = bench.path()
        with bench.prepare(image, path, view=first) as prepared:
            with expect.refused(errors.AlreadyExists, "the second prepare of a path"):
                bench.prepare(image, path, view=second)
            bench.same(bench.use(prepared).tree(), apply([plain()]), "the root that was there")


def labels_and_times_are_kept(bench: Bench) -> None:
    """Labels and the time of making are kept and listed, also by whoever opens the store anew."""
    image = bench.image(plain())
    labels = {"a": "b", "org.example/long": "x" * 1000, "odd": "ü , = \n\\", "empty": ""}
    before = int(time.time())
    prepared = bench.prepare(image, labels=labels)
    after = time.time()
    with bench.open_store() as other:
        (listed,) = other.prepared()
        found = [prepared.info, listed, other.get(prepared.path).info]
    for info in found:
        expect.equal(dict(info.labels), labels, "the labels")
        created = datetime.fromisoformat(info.created).timestamp()
        expect.true(before <= created <= after, f"{info.created} is when it was made")
    prepared.cleanup()


def what_is_prepared_is_listed(bench: Bench) -> None:
    """The list has exactly the roots that there are, by path."""
    image = bench.image(plain())
    made = [bench.prepare(image, view=number % 2 == 1, labels={"n": str(number)}) for number in range(4)]
    for gone in (2, 0, 1, 0):
        there = sorted((root.path, root.info.kind, root.info.driver, dict(root.info.labels)) for root in made)
        listed = [(i.path, i.kind, i.driver, dict(i.labels)) for i in bench.store.prepared()]
        expect.equal(listed, there, "the list")
        made.pop(gone).cleanup()
    expect.equal(bench.store.prepared(), [], "the list in the end")


def after_cleanup_nothing_is_there(bench: Bench) -> None:
    """Cleanup is once: then the path is unknown to every verb, and its writable part goes."""
    image = bench.image(plain())
    folder = Path(bench.store.info().root) / "prepared"
    bench.store.collect()  # what earlier roots have left is deleted behind the calls
    there = set(os.listdir(folder))
    with bench.root(image) as root:
        (root.top / "new").write_bytes(b"written")
        prepared = root.prepared
    bench.store.collect()
    expect.equal(set(os.listdir(folder)), there, "what is in prepared/")
    for what, verb in (
        ("cleanup", prepared.cleanup),
        ("commit", prepared.commit),
        ("mount", prepared.mount),
        ("unmount", prepared.unmount),
    ):
        with expect.refused(errors.NotFound, f"{what} after cleanup"):
            verb()


def a_folder_that_is_somebodys_stays(bench: Bench) -> None:
    """The folder at a root's path that was there before is there after, with what it had."""
    path = bench.path()
    path.mkdir()
    (path / "mine").write_bytes(b"mine")
    prepared = bench.prepare(bench.image(plain()), path)
    bench.use(prepared)
    prepared.cleanup()
    expect.equal((path / "mine").read_bytes(), b"mine", "the file below the root")


def a_root_survives_its_unmount(bench: Bench) -> None:
    """What was written is there when a root is mounted again; mounting and unmounting twice is fine."""
    with bench.root(bench.image(plain())) as root:
        (root.top / "new").write_bytes(b"written")
        before = root.tree()
        if not bench.can.mount:
            bench.leave_out("mounts")
            root.prepared.unmount()
        else:
            for _ in range(2):
                expect.true(root.prepared.unmount().info.mounted is False, "it is unmounted")
            expect.true(not os.path.exists(root.top), "the folder that orlop made is gone")
            for _ in range(2):
                expect.true(root.prepared.mount().info.mounted is True, "it is mounted")
        bench.same(root.tree(), before, "the root mounted again")


def a_view_is_read_only(bench: Bench) -> None:
    """A view shows the image, refuses writes (EROFS), and has nothing to commit."""
    with bench.root(bench.image(house()), view=True) as root:
        bench.same(root.tree(), apply([house()]), "a view")
        with expect.refused(errors.FailedPrecondition, "the commit of a view"):
            root.commit()
        if not bench.can.mount:
            bench.leave_out("read-only views")  # a plain folder: who may write to it is told not to
            return
        for what, write in (
            ("a new file", (root.top / "new").touch),
            ("a write", lambda: (root.top / "d/a").open("r+b")),
            ("a chmod", lambda: (root.top / "d").chmod(0o700)),
            ("an unlink", (root.top / "d/a").unlink),
            ("a rename", lambda: (root.top / "d/a").rename(root.top / "x")),
        ):
            with expect.refused(OSError, f"{what} in a view", code=errno.EROFS):
                write()
        bench.same(root.tree(), apply([house()]), "the view afterwards")


def roots_do_not_see_each_other(bench: Bench) -> None:
    """What is written to one root of an image shows in no other, nor in a view, nor in the next."""
    image, expected = bench.image(plain()), apply([plain()])
    with bench.root(image) as one, bench.root(image) as two, bench.root(image, view=True) as view:
        with (one.top / "d/a").open("r+b") as file:
            file.write(b"in place")
        (one.top / "d/s/x").unlink()
        (one.top / "e").chmod(0o700)
        for what, root in (("another root", two), ("a view", view)):
            bench.same(root.tree(), expected, what)
        bench.shows(image, expected, "a root prepared afterwards")


def a_root_in_use_is_not_cleaned_up(bench: Bench) -> None:
    """While a process stands in a root cleanup is refused, and nothing is lost; after that it goes."""
    prepared = bench.prepare(bench.image(plain()))
    root = bench.use(prepared)
    (root.top / "new").write_bytes(b"written")
    before = root.tree()
    with subprocess.Popen(["cat"], cwd=root.top / "d", stdin=subprocess.PIPE) as user:
        with expect.refused(errors.FailedPrecondition, "the cleanup of a root in use"):
            prepared.cleanup()
        bench.same(root.tree(), before, "the root in use")
        assert user.stdin is not None
        user.stdin.close()
    prepared.cleanup()
    bench.store.collect()  # a plain folder is deleted behind the call
    expect.true(not os.path.exists(root.top), "the root is gone")


def a_removed_image_lives_on_in_its_root(bench: Bench) -> None:
    """An image can be removed while a root stands on it: the root works, and so does its commit."""
    layer = plain().file("salt", b"removed while prepared")
    image = bench.image(layer)
    wanted = set(bench.diff_ids(image))
    with bench.root(image) as root, bench.root(image, view=True) as view:
        bench.forget(image)
        taken = {item for item, _ in bench.store.collect().items}
        expect.true(not any(diff_id in item for diff_id in wanted for item in taken), "its layers stay")
        bench.same(root.tree(), apply([layer]), "the root of a removed image")
        bench.same(view.tree(), apply([layer]), "the view of a removed image")
        (root.top / "d/a").write_bytes(b"still writable")
        before = root.tree()
        committed = root.commit()
        if bench.can.mount:
            root.prepared.unmount()
            root.prepared.mount()
            bench.same(root.tree(), before, "the root mounted again")
    bench.store.collect()
    bench.shows(committed, before, "what was committed from it")


def the_base_can_go_after_a_commit(bench: Bench) -> None:
    """The image that a commit was made from can be removed: the commit has all it needs."""
    layer = plain().file("salt", b"the base of a commit")
    image = bench.image(layer)
    with bench.root(image) as root:
        (root.top / "d/b").unlink()
        (root.top / "new").write_bytes(b"new")
        before = root.tree()
        committed = root.commit()
    bench.forget(image)
    bench.store.collect()
    with bench.root(committed) as root:
        bench.same(root.tree(), before, "the commit without its base")
        bench.store.remove(committed)
        (root.top / "newer").write_bytes(b"newer")
        before = root.tree()
        again = root.commit()
    bench.shows(again, before, "the commit of the commit, both removed")


def images_and_roots_go_in_any_order(bench: Bench) -> None:
    """Images that share layers are removed, and roots cleaned up, in any order; the others go on."""
    layers = [
        plain().file("salt", b"any order"),
        Layer().file("d/second", b"2").whiteout("d/b"),
        Layer().file("third", FILE).opaque("d/s").folder("e", mode=0o700),
    ]
    expected = [apply(layers[: count + 1]) for count in range(3)]
    for order in ((0, 1, 2), (2, 1, 0), (1, 2, 0)):
        images = [bench.image(*layers[: count + 1]) for count in range(3)]
        left = {number: bench.use(bench.prepare(image)) for number, image in enumerate(images)}
        for gone in order:
            bench.forget(images[gone])
            bench.store.collect()
        for gone in (*order[1:], order[0]):
            for number, root in left.items():
                if bench.can.mount:  # what is mounted may live on what is deleted
                    root.prepared.unmount().mount()
                bench.same(root.tree(), expected[number], f"root {number}, removed in order {order}")
            left.pop(gone).prepared.cleanup()
            bench.store.collect()


def closing_twice_is_fine(bench: Bench) -> None:
    """A store can be closed twice; prepared roots stay, and whoever opens it again finds them."""
    image = bench.image(plain())
    path = bench.path()
    with bench.open_store() as other:
        root = bench.use(other.prepare(image, path, driver=bench.driver))
        (root.top / "d/a").unlink()
        before = root.tree()
        other.close()
        other.close()
    expected = without(apply([plain()]), b"d/a")
    expected[b"d"] = before[b"d"]  # its time is that of the unlink
    bench.same(root.tree(), expected, "the root of a closed store")
    found = bench.store.get(path)
    bench.same(bench.use(found).tree(), expected, "the root, found again")
    found.cleanup()
