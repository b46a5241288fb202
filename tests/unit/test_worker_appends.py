"""The tar that a worker writes into its file: it can append to it, and what was hashed stays as it was."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from orlop.config import DEFAULT_LIMITS
from orlop.errors import Internal
from orlop.layers.worker import drain as drains
from orlop.layers.worker.client import Feed, Template, Unpacked, unpack
from orlop.layers.worker.drain import STEP, Drain
from orlop.observe import Call
from support.liars import Orders, lying
from support.lies import INDEX, TAR

CONFINED = """
import ctypes, errno, fcntl, json, mmap, os, sys
from orlop.linux import confine

path = sys.argv[1]
with open(path, "wb") as file:
    file.write(b"hashed")
tar = os.open(path, os.O_WRONLY | os.O_APPEND)
readable = os.open(path, os.O_RDONLY)  # no worker has both; but they are of one file
syscall = ctypes.CDLL(None, use_errno=True).syscall
syscall.argtypes = [ctypes.c_long, *[ctypes.c_void_p] * 6]
# (x86_64, generic table)
NUMBERS = {
    "pwrite64": (18, 68), "pwritev": (296, 70), "pwritev2": (328, 287), "ftruncate": (77, 46), "fallocate": (285, 47),
    "fcntl": (72, 25), "ioctl": (16, 29), "splice": (275, 76), "sendfile": (40, 71), "copy_file_range": (326, 285),
    "vmsplice": (316, 75), "io_uring_setup": (425, 425), "io_setup": (206, 0), "openat": (257, 56),
    "openat2": (437, 437), "open_by_handle_at": (304, 265), "dup": (32, 23), "dup3": (292, 24), "pidfd_getfd": (438, 438),
    "sendmsg": (46, 211), "fsetxattr": (190, 7), "fchmod": (91, 52), "mmap": (9, 222), "madvise": (28, 233),
    "remap_file_pages": (216, 234), "process_vm_writev": (311, 271),
}
MACHINE = os.uname().machine != "x86_64"
data = ctypes.create_string_buffer(b"other!")
here = ctypes.addressof(data)
vector = (ctypes.c_void_p * 2)(here, 6)
zero = ctypes.create_string_buffer(64)
again = b"/proc/self/fd/%d" % tar

def tried(name, *args):
    words = [ctypes.cast(arg, ctypes.c_void_p) if isinstance(arg, (bytes, ctypes.Array)) else arg for arg in args]
    result = syscall(NUMBERS[name][MACHINE], *words, *[0] * (6 - len(words)))
    return errno.errorcode[ctypes.get_errno()] if result == -1 else "done"

CASES = {
    "write at a place": ("pwrite64", tar, data, 6, 0),
    "write pieces at a place": ("pwritev", tar, vector, 1, 0),
    "write with RWF_NOAPPEND": ("pwritev2", tar, vector, 1, 0, 0, 0x20),
    "cut off": ("ftruncate", tar, 0),
    "punch a hole": ("fallocate", tar, 3, 0, 6),
    "zero": ("fallocate", tar, 0x10, 0, 6),
    "collapse": ("fallocate", tar, 8, 0, 4096),
    "no longer append": ("fcntl", tar, fcntl.F_SETFL, 0),
    "read the flags": ("fcntl", tar, fcntl.F_GETFL),
    "lease": ("fcntl", tar, 1024, 0),
    "clone another into it": ("ioctl", tar, 0x40049409, readable),
    "make it immutable, or not": ("ioctl", tar, 0x40086602, zero),
    "splice": ("splice", readable, 0, tar, 0, 6, 0),
    "send": ("sendfile", tar, readable, 0, 6),
    "copy": ("copy_file_range", readable, 0, tar, 0, 6, 0),
    "gift pages": ("vmsplice", tar, vector, 1, 0),
    "another ring": ("io_uring_setup", 8, zero),
    "asynchronous writing": ("io_setup", 8, zero),
    "open again": ("openat", -100, again, os.O_WRONLY),
    "open again, newer": ("openat2", -100, again, zero, 24),
    "open by handle": ("open_by_handle_at", tar, zero, os.O_WRONLY),
    "duplicate": ("dup", tar),
    "duplicate elsewhere": ("dup3", tar, 50, 0),
    "take another's": ("pidfd_getfd", tar, 0, 0),
    "hand over": ("sendmsg", tar, zero, 0),
    "mark": ("fsetxattr", tar, b"user.x", data, 1, 0),
    "give rights": ("fchmod", tar, 0o777),
    "map to write": ("mmap", None, 4096, 3, 1, tar, 0),
    "map a copy": ("mmap", None, 4096, 3, 2, tar, 0),
    "map the readable one to write": ("mmap", None, 4096, 3, 1, readable, 0),
    "rearrange pages": ("remap_file_pages", here, 4096, 0, 0, 0),
    "write to another's memory": ("process_vm_writev", os.getpid(), vector, 1, vector, 1, 0),
}
view = mmap.mmap(readable, 6, mmap.MAP_SHARED, mmap.PROT_READ)
confined = confine.confine_worker(
    [0, 1, 2, tar, readable], memory=1 << 30, cpu_seconds=60, file_size=20, open_files=64)
found = {name: tried(*case) for name, case in CASES.items()}
try:
    view.madvise(9)  # MADV_REMOVE
    found["punch a hole by its pages"] = "done"
except OSError as exc:
    found["punch a hole by its pages"] = errno.errorcode[exc.errno]
os.lseek(tar, 0, os.SEEK_SET)
os.write(tar, b" and more, and ") if os.write(tar, b"+") else None
try:
    os.write(tar, b"too much")
    found["more than allowed"] = "done"
except OSError as exc:
    found["more than allowed"] = errno.errorcode[exc.errno]
print(json.dumps({"seccomp": confined.seccomp, "found": found}))
"""


@pytest.mark.hostile(35)
def test_a_confined_worker_can_append_to_its_tar_and_do_nothing_else_to_it(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CONFINED, os.fspath(tmp_path / "tar")],
        capture_output=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    answer = json.loads(done.stdout)
    assert answer["seccomp"], "this kernel or machine has no seccomp filters"
    found = answer["found"]
    assert found.pop("more than allowed") == "EFBIG"
    assert found.pop("punch a hole by its pages") in {"EACCES", "EPERM", "EINVAL"}
    for name in ("map to write", "map a copy", "map the readable one to write"):
        assert found.pop(name) == "EACCES", name
    assert {name: error for name, error in found.items() if error != "EPERM"} == {}
    assert (tmp_path / "tar").read_bytes() == b"hashed+ and more, and "[:20]


# ------------------------------------------------------------------ who is followed, and who is not


@pytest.fixture(scope="module")
def liars(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Template, Orders]]:
    with lying(tmp_path_factory.mktemp("orders")) as running:
        yield running


@pytest.fixture
def orders(liars: tuple[Template, Orders]) -> Iterator[Orders]:
    yield liars[1]
    liars[1]()


def run(template: Template, folder: Path, **more: object) -> Unpacked:
    (folder / "source").write_bytes(TAR)
    with (folder / "source").open("rb") as source, (folder / "tar").open("wb+") as tar:
        feed = Feed.whole(len(TAR))
        try:
            return unpack(template, source.fileno(), feed, tar=tar.fileno(), call=Call(), **more)  # type: ignore[arg-type]
        finally:
            feed.close()


@pytest.mark.hostile(35)
def test_where_seccomp_is_lacking_nothing_is_looked_at_before_the_worker_has_ended(
    liars: tuple[Template, Orders], orders: Orders, tmp_path: Path
) -> None:
    """It writes one tar, says so, and makes another of it."""
    orders(copy="rewrite", tar=TAR, answer=b"+")
    told: list[int] = []
    unpacked = run(liars[0], tmp_path, written=told.append)
    assert unpacked.diff_id == "sha256:" + hashlib.sha256(TAR).hexdigest()
    assert (unpacked.index, told) == (INDEX, [len(TAR)])


def test_where_seccomp_is_lacking_layers_arrive_whole(
    liars: tuple[Template, Orders], orders: Orders, tmp_path: Path
) -> None:
    orders(copy="unfiltered")
    told: list[int] = []
    assert run(liars[0], tmp_path, written=told.append).index == INDEX
    assert told == [len(TAR)]


@pytest.mark.hostile(35)
def test_nothing_is_written_to_a_layer_once_it_is_one(
    liars: tuple[Template, Orders], orders: Orders, tmp_path: Path
) -> None:
    """A worker that goes on after its answer is ended first, and what it wrote is in the digest."""
    orders(copy="late", tar=TAR, answer=b"+")
    whole: list[int] = []
    unpacked = run(liars[0], tmp_path, whole=lambda: whole.append((tmp_path / "tar").stat().st_size))
    data = (tmp_path / "tar").read_bytes()
    assert whole == [len(data)]
    assert (unpacked.tar_size, unpacked.index.tar_size) == (len(data), len(data))
    assert unpacked.diff_id == "sha256:" + hashlib.sha256(data).hexdigest()


def test_a_file_that_is_not_empty_is_refused(liars: tuple[Template, Orders], tmp_path: Path) -> None:
    feed = Feed.whole(0)
    try:
        with (tmp_path / "tar").open("wb+", buffering=0) as tar:
            tar.write(b"x")
            with pytest.raises(ValueError, match="not empty"):
                unpack(liars[0], tar.fileno(), feed, tar=tar.fileno(), call=Call())
    finally:
        feed.close()


# ------------------------------------------------------------------ a disk that does not take it


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO])
def test_the_errors_of_the_disk_are_raised_as_such(
    liars: tuple[Template, Orders], orders: Orders, tmp_path: Path, number: int
) -> None:
    orders(copy="answer", answer=b"!%d" % number)
    with pytest.raises(OSError, match=re.escape(os.strerror(number))):
        run(liars[0], tmp_path)


@pytest.mark.parametrize("who", ["copy", "index"])
@pytest.mark.parametrize(
    "answer", [b"!", b"!0", b"!-28", b"!28 ", b"!" + b"9" * 5000, b"!2", b"!13", b"!\xb2"]
)
def test_other_errors_are_not_the_disks(
    liars: tuple[Template, Orders], orders: Orders, tmp_path: Path, who: str, answer: bytes
) -> None:
    orders(**{who: "answer"}, answer=answer)
    with pytest.raises(Internal, match="no worker says"):
        run(liars[0], tmp_path)


def test_a_worker_that_writes_no_tar_has_no_disk(
    liars: tuple[Template, Orders], orders: Orders, tmp_path: Path
) -> None:
    orders(index="answer", answer=b"!%d" % errno.ENOSPC)
    with pytest.raises(Internal, match="no worker says"):
        run(liars[0], tmp_path)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
def test_a_full_disk_is_found_by_the_worker(
    liars: tuple[Template, Orders], orders: Orders, tmp_path: Path
) -> None:
    """The rest of it, with a real file system, is in test_full_disk."""
    orders(copy="full")
    with pytest.raises(OSError, match="No space left"):
        run(liars[0], tmp_path)


# ------------------------------------------------------------------ the hash


@pytest.mark.parametrize("maps", [True, False])
@pytest.mark.parametrize("sizes", [[0], [1, 2], [70_000, 70_001], [STEP + 5, 2 * STEP + 4097]])
def test_all_that_came_is_hashed_however_it_came(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, maps: bool, sizes: list[int]
) -> None:
    if not maps:
        monkeypatch.setattr(drains, "mapped", lambda *_: (_ for _ in ()).throw(OSError(errno.ENODEV, "")))
    data = os.urandom(1 << 16) * (sizes[-1] // (1 << 16) + 1)
    progress, told = Feed(), list[int]()
    with (tmp_path / "tar").open("wb+", buffering=0) as tar:
        drain = Drain(tar.fileno(), progress, DEFAULT_LIMITS, told.append, lambda: told.append(-1))
        try:
            for size in sizes:
                tar.write(data[tar.tell() : size])
                drain.look()
                while drain.behind:
                    drain.step()
            drain.finish()
        finally:
            progress.close()
    assert drain.hasher.hexdigest() == hashlib.sha256(data[: sizes[-1]]).hexdigest()
    assert (drain.total, drain.complete, progress.total) == (sizes[-1], True, sizes[-1])
    assert told == [*sorted(told[:-1]), -1]
