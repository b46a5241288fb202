"""Random changes to a tree of files: what programs do to a root file system, the same for the same seed.

Vandal(random.Random(7), root).run(40)
"""

from __future__ import annotations

import errno
import os
import random
import shutil
import stat
import subprocess
from collections import Counter
from pathlib import Path

__all__ = ["Vandal"]

IN_THE_WAY = {
    errno.EEXIST,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.ENOENT,
    errno.ENOTEMPTY,
    errno.EXDEV,
    errno.ELOOP,
}


class Vandal:
    """Does random things to a tree."""

    def __init__(self, dice: random.Random, root: Path) -> None:
        self._dice, self._root = dice, root
        self.done: Counter[str] = Counter()

    def run(self, count: int) -> None:
        acts = [getattr(self, name) for name in sorted(dir(self)) if name.startswith("do_")]
        for _ in range(count):
            act = self._dice.choice(acts)
            try:
                act()
            except OSError as exc:
                if exc.errno not in IN_THE_WAY:
                    raise
            else:
                self.done[act.__name__] += 1

    def _all(self, *kinds: int) -> list[str]:
        found = []
        for folder, folders, files in os.walk(self._root):
            if not folder.endswith("filler"):
                found += [os.path.join(folder, name) for name in (*folders, *files) if name != "filler"]
        return sorted(path for path in found if not kinds or stat.S_IFMT(os.lstat(path).st_mode) in kinds)

    def _pick(self, *kinds: int) -> str:
        choices = self._all(*kinds)
        if not choices:
            raise FileNotFoundError(errno.ENOENT, "nothing to pick")
        return self._dice.choice(choices)

    def _new(self) -> str:
        folder = self._dice.choice([os.fspath(self._root), *self._all(stat.S_IFDIR)])
        return os.path.join(folder, self._dice.choice(["a", "b", "s", "t", "x", "f3", "f4", "new"]))

    def do_write(self) -> None:
        path = self._new()
        if os.path.lexists(path) and not os.path.isfile(path):
            raise FileExistsError(errno.EEXIST, path)
        with open(path, "wb") as file:
            file.write(self._dice.randbytes(self._dice.choice([0, 1, 512, 3000])))

    def do_append(self) -> None:
        with open(self._pick(stat.S_IFREG), "ab") as file:
            file.write(b"more")

    def do_overwrite(self) -> None:
        with open(self._pick(stat.S_IFREG), "r+b") as file:
            file.write(b"O")

    def do_chmod(self) -> None:
        path = self._pick(stat.S_IFREG, stat.S_IFDIR, stat.S_IFIFO)
        os.chmod(path, self._dice.choice([0o600, 0o755, 0o4711, 0o1777]))

    def do_chown(self) -> None:
        os.chown(self._pick(), self._dice.randint(0, 3), 2**32 - 2, follow_symlinks=False)

    def do_utime(self) -> None:
        os.utime(self._pick(), ns=(0, self._dice.choice([-5, 0, 123_456_789_012])), follow_symlinks=False)

    def do_setxattr(self) -> None:
        os.setxattr(
            self._pick(stat.S_IFREG, stat.S_IFDIR),
            f"user.{self._dice.randint(0, 2)}",
            self._dice.randbytes(5),
        )

    def do_unlink(self) -> None:
        os.unlink(self._pick(stat.S_IFREG, stat.S_IFLNK, stat.S_IFCHR, stat.S_IFIFO))

    def do_remove_folder(self) -> None:
        shutil.rmtree(self._pick(stat.S_IFDIR))

    def do_make_folder_again(self) -> None:
        path = self._pick(stat.S_IFDIR)
        shutil.rmtree(path)
        os.mkdir(path)

    def do_mkdir(self) -> None:
        os.makedirs(os.path.join(self._new(), self._dice.choice(["", "s", "x/y"])))

    def do_rename(self) -> None:
        os.rename(self._pick(stat.S_IFREG, stat.S_IFLNK, stat.S_IFIFO), self._new())

    def do_move_folder(self) -> None:
        path, target = self._pick(stat.S_IFDIR), self._new()
        if not target.startswith(path + "/") and not os.path.lexists(target):
            subprocess.run(["mv", path, target], check=True)

    def do_symlink(self) -> None:
        os.symlink(self._dice.choice(["a", "../x", "/d"]), self._new())

    def do_link(self) -> None:
        os.link(self._pick(stat.S_IFREG, stat.S_IFLNK), self._new(), follow_symlinks=False)

    def do_mknod(self) -> None:
        os.mknod(self._new(), self._dice.choice([stat.S_IFIFO, stat.S_IFCHR]) | 0o640, os.makedev(7, 300))

    def do_folder_for_file(self) -> None:
        path = self._pick(stat.S_IFREG)
        os.unlink(path)
        os.mkdir(path)

    def do_file_for_folder(self) -> None:
        path = self._pick(stat.S_IFDIR)
        shutil.rmtree(path)
        with open(path, "wb") as file:
            file.write(b"file")

    def do_touch_to_the_same(self) -> None:
        path = self._pick(stat.S_IFREG)
        about = os.stat(path)
        with open(path, "r+b") as file:
            file.write(file.read(1)) if about.st_size and not file.seek(0) else None
        os.utime(path, ns=(0, about.st_mtime_ns))
