"""A look at a store says what the open store says, or nothing."""

from __future__ import annotations

import os
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from orlop.config import Settings
from orlop.images.core import NAMESPACE, Core
from orlop.images.glance import images_at
from orlop.images.layout import Layout
from orlop.images.listing import list_images
from orlop.metadata import boots, images, labels
from orlop.spec.digest import DiffID, Digest


def made(tmp_path: Path, *, known: bool = True) -> tuple[Path, Path]:
    """A store with two images."""
    root, run = tmp_path / "root", tmp_path / "run"
    core = Core.open(Layout(root=root, run=run), Settings())
    says = {"platform": "linux/amd64", "created": "2023-11-14T22:13:20Z"} if known else {}

    def body(tx) -> None:
        for name in ("localhost/b:1", "localhost/a:1"):
            config = Digest.of(name.encode())
            images.add_config(tx, config, [DiffID(Digest.of(b"layer"))])
            images.put_image(tx, NAMESPACE, name, config=config, manifest=None, **says)
        labels.change_image_labels(tx, NAMESPACE, "localhost/a:1", {"team": "ml"})

    core.db.write(body)
    core.close()
    return root, run


def test_a_look_says_what_the_open_store_says(tmp_path: Path) -> None:
    root, run = made(tmp_path)
    looked = images_at(str(root), str(run))
    before = sorted(os.listdir(root))
    core = Core.open(Layout(root=root, run=run), Settings())
    try:
        assert looked == list_images(core) == images_at(str(root), str(run))  # beside others, too
        assert [one.name for one in looked or ()] == ["localhost/a:1", "localhost/b:1"]
        assert dict((looked or [])[0].labels) == {"team": "ml"}
    finally:
        core.close()
    assert sorted(os.listdir(root)) == before


def _sql(text: str) -> Callable[[Path, Path], None]:
    def change(root: Path, run: Path) -> None:
        db = sqlite3.connect(root / "meta.db")
        db.executescript(text)
        db.close()

    return change


def _lose_a_boot(root: Path, run: Path) -> None:
    core = Core.open(Layout(root=root, run=run), Settings())
    core.db.write(lambda tx: boots.mark(tx, "another"))
    core.close()


@pytest.mark.parametrize(
    "change",
    [
        lambda root, run: (root / "format.json").write_text('{"version": 9}'),
        lambda root, run: (root / "format.json").unlink(),
        lambda root, run: (root / "meta.db").unlink(),
        lambda root, run: (root / "meta.db").write_bytes(b""),
        lambda root, run: (root / "meta.db").write_bytes(b"not a database" * 1000),
        lambda root, run: root.chmod(0o755),
        lambda root, run: [path.rmdir() for path in (run / "chains", run)],
        _sql("PRAGMA user_version = 99"),
        _sql("PRAGMA user_version = 1"),
        _lose_a_boot,
    ],
    ids=[
        *("newer", "no format", "no metadata", "empty", "damaged", "open to others", "no RUN"),
        *("newer metadata", "older metadata", "lost boot"),
    ],
)
def test_what_is_unusual_is_left_to_who_opens_the_store(
    change: Callable[[Path, Path], object], tmp_path: Path
) -> None:
    root, run = made(tmp_path)
    change(root, run)
    assert images_at(str(root), str(run)) is None


def test_nothing_is_made_where_no_store_is(tmp_path: Path) -> None:
    assert images_at(str(tmp_path / "root"), str(tmp_path / "run")) is None
    assert os.listdir(tmp_path) == []


def test_configs_that_nobody_has_looked_at_are_for_who_opens_the_store(tmp_path: Path) -> None:
    root, run = made(tmp_path, known=False)
    assert images_at(str(root), str(run)) is None


def test_a_path_that_a_store_cannot_have_is_refused_by_who_opens_it(tmp_path: Path) -> None:
    assert images_at(f"{tmp_path}/a b", f"{tmp_path}/run") is None
    assert images_at(f"{tmp_path}/a?mode=memory", f"{tmp_path}/run") is None


def test_folders_of_which_one_lies_in_the_other_are_refused_by_who_opens_the_store(tmp_path: Path) -> None:
    root, _ = made(tmp_path)
    assert images_at(str(root), str(root / "locks")) is None
    (tmp_path / "link").symlink_to(root / "locks")
    assert images_at(str(root), str(tmp_path / "link")) is None


def test_a_link_to_the_store_is_the_store(tmp_path: Path) -> None:
    root, run = made(tmp_path)
    (tmp_path / "link").symlink_to(root)
    assert images_at(str(tmp_path / "link"), str(run)) == images_at(str(root), str(run)) != []


WRITER = """
import os, sys
from pathlib import Path
from orlop.config import Settings
from orlop.images.core import NAMESPACE, Core
from orlop.images.layout import Layout
from orlop.metadata import images

core = Core.open(Layout(root=Path(sys.argv[1]), run=Path(sys.argv[2])), Settings())
row = core.db.read(lambda tx: images.list_images(tx, NAMESPACE))[0]

def body(tx, number):
    # Two names come and go together, under a new number each time.
    for name in ("x", "y"):
        images.delete_image(tx, NAMESPACE, f"localhost/{name}:{number - 1}")
        images.put_image(tx, NAMESPACE, f"localhost/{name}:{number}", config=row.config, manifest=None,
                         platform="linux/amd64", created="2023-11-14T22:13:20Z")

number = 0
while True:
    number += 1
    core.db.write(lambda tx: body(tx, number))
    os.write(1, b".")
    if not os.read(0, 1):  # a word for each write; the end of them is the end of this
        os.kill(os.getpid(), 9)
"""


def test_a_look_beside_a_writer_sees_one_moment_and_what_a_killed_one_left(tmp_path: Path) -> None:
    root, run = made(tmp_path)
    command = [sys.executable, "-c", WRITER, str(root), str(run)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0) as writer:
        assert writer.stdin is not None
        assert writer.stdout is not None
        try:
            for number in range(1, 41):
                assert writer.stdout.read(1) == b"."
                if number == 40:
                    break
                writer.stdin.write(b"." if number > 1 else b"....")  # so it writes while we look
                names = [one.name for one in images_at(str(root), str(run)) or ()]
                assert names[:2] == ["localhost/a:1", "localhost/b:1"]
                assert names[2].replace("/x:", "/y:") == names[3]
                assert len(names) == 4
            writer.stdin.close()
            writer.wait(timeout=120)
        finally:
            writer.kill()
    log = root / "meta.db-wal"
    assert log.stat().st_size  # nobody has put it where it belongs
    before = {path.name: path.stat() for path in root.glob("meta.db*")}
    looked = images_at(str(root), str(run))
    assert [path.name for path in root.glob("meta.db*") if path.name not in before] == []
    for path in root.glob("meta.db*"):
        about = path.stat()
        assert (about.st_uid, about.st_gid, stat.S_IMODE(about.st_mode)) == (
            before["meta.db"].st_uid,
            before["meta.db"].st_gid,
            stat.S_IMODE(before["meta.db"].st_mode),
        )
    core = Core.open(Layout(root=root, run=run), Settings())
    try:
        assert looked == list_images(core)
        assert len(looked or ()) == 4
    finally:
        core.close()
