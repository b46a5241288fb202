"""File system images for virtual machines, made by the file systems' own tools: EROFS, squashfs, ext4.

squashfs is made of a tar, written to the tool as it is made: nothing is mounted, no privilege is needed.  The
others read a folder: the chain is mounted for the tool alone (`orlop.linux.privatemounts`), or, where EROFS
cannot be mounted, copied into a folder that only exists meanwhile.  That takes root.

What depends on the moment is told to the tools: UUIDs derive from the tree's layers, times from the image.
An image is made in a file of the store, then given away; it costs its size on the store's disk meanwhile.
"""

from __future__ import annotations

import os
import re
import subprocess
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Literal

from orlop.errors import Error, FailedPrecondition, Internal, ResourceExhausted, from_oserror
from orlop.images.archives.rootfs import write_tree
from orlop.images.archives.tarstream import TarStream
from orlop.images.browsing.nodes import Node, Tree
from orlop.images.chains import Chains
from orlop.images.core import Core
from orlop.images.folders import Folders
from orlop.layers.forms import REAL
from orlop.layers.tarwrite import Member
from orlop.linux.privatemounts import ErofsMount, command
from orlop.linux.programs import find_helper
from orlop.observe import Call, Progress
from orlop.snapshots.stacks import OVERLAY_OPTIONS
from orlop.spec.digest import DiffID
from orlop.values import dataclass, replace

__all__ = ["FsFormat", "FsJob", "find_tool", "make_erofs", "make_ext4", "make_squashfs"]

FsFormat = Literal["erofs", "squashfs", "ext4"]

_TOOLS: dict[FsFormat, tuple[tuple[str, ...], str]] = {  # the better one first, and who has it
    "erofs": (("mkfs.erofs",), "erofs-utils"),
    "squashfs": (("tar2sqfs", "mksquashfs"), "squashfs-tools-ng"),
    "ext4": (("mke2fs",), "e2fsprogs"),
}
_SBIN = ("/usr/local/sbin", "/usr/sbin", "/sbin")
_SPACE = uuid.UUID("9a1f0c52-6f57-5d0b-8d5b-6f1c9be0a2f4")  # of our UUIDs of version 5
_LOOK = 0.05
_SAID = 2_000  # characters of a tool's last words
_ACL = b"system.posix_acl_"
_LEVEL = 6  # of gzip, which every kernel reads; the tools' own 9 takes twice as long for little
_MOST_TIME = 2**32 - 1  # squashfs has unsigned seconds
_EXT4_BLOCK = 4096
_EXT4_TRIES = 5
_FULL = re.compile(r"No space left|Could not allocate|not enough|No free|ENOSPC", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class FsJob:
    """One image to make: into ``folder``, which is the job's own, of a tree of the store.

    ``epoch`` is the time that the file system says it was made.
    """

    core: Core
    chains: Chains
    folders: Folders
    folder: Path
    diff_ids: tuple[DiffID, ...]
    epoch: int
    call: Call
    item: str  # what progress is of
    what: str

    @property
    def out(self) -> Path:
        """The file that is made."""
        return self.folder / "image"

    @property
    def reads_folders(self) -> bool:
        """Whether a tool can be shown the chain as a folder, with all ids and devices."""
        return self.core.privilege == "root"

    @property
    def uuid(self) -> str:
        """Derived from what is in it."""
        return str(uuid.uuid5(_SPACE, "\n".join(self.diff_ids)))


def find_tool(form: FsFormat, what: str) -> str:
    """Where a format's tool is.  Raises `FailedPrecondition` naming the package that has it."""
    names, package = _TOOLS[form]
    for name in names:
        if (found := _find(name)) is not None:
            return found
    raise FailedPrecondition(
        what, f"{names[0]} is not installed", hint=f"install {package} (Debian: apt-get install {package})"
    )


def _find(name: str) -> str | None:
    return find_helper(name, os.pathsep.join((os.environ.get("PATH", os.defpath), *_SBIN)))


# -- squashfs ---------------------------------------------------------------------------------------


def make_squashfs(job: FsJob, tree: Tree) -> None:
    """A squashfs image of a tree, fed as a tar.  It keeps whole seconds, and no ACLs.

    tar2sqfs takes all from the tar; mksquashfs not the root's own metadata, for which it needs a folder.
    """
    tool, root = find_tool("squashfs", job.what), tree.root
    feed = _Feed(job, tree, root=os.path.basename(tool) == "tar2sqfs")
    if feed.root:
        packed = ["--compressor", "gzip", "--comp-extra", f"level={_LEVEL}"]
        argv = [tool, "--quiet", "--force", "--no-skip", *packed, str(job.out)]
        _run(job, argv, env={"SOURCE_DATE_EPOCH": str(job.epoch)}, feed=feed)
    else:
        options = ["-noappend", "-no-progress", "-quiet", "-mkfs-time", str(job.epoch)]
        options += ["-comp", "gzip", "-Xcompression-level", str(_LEVEL)]
        if job.reads_folders:
            _on_folder(job, lambda folder: [tool, folder, str(job.out), *options], {})
            return
        options += ["-tar", "-root-mode", f"{root.mode & 0o7777:o}"]
        _run(job, [tool, "-", str(job.out), *options], feed=feed)
        job.call.observer.warning(
            "the root folder belongs to root there, and has no xattrs: mksquashfs takes them from no tar;"
            " tar2sqfs of squashfs-tools-ng does"
        )
    if feed.left_out:
        job.call.observer.warning(f"{feed.left_out} ACLs are left out: squashfs has none")


class _Feed:
    """Writes a tree to a tool as a tar that can become a squashfs; with ``root`` its root folder, too."""

    def __init__(self, job: FsJob, tree: Tree, *, root: bool) -> None:
        self.root = root
        self.left_out = 0
        self._job = job
        self._tree = tree

    def __call__(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdin is not None
        job = self._job
        with suppress(BrokenPipeError), process.stdin as pipe:  # it has ended then, and says why
            stream = TarStream(pipe, item=job.item, call=job.call, what=job.what)
            write_tree(self._tree, stream, change=self._change)

    def _change(self, member: Member) -> Member | None:
        if not member.path and not self.root:
            return None
        kept = tuple(pair for pair in member.xattrs if not pair[0].startswith(_ACL))
        self.left_out += len(member.xattrs) - len(kept)
        return replace(member, mtime=_seconds(member.mtime), nsec=0, xattrs=kept)


def _seconds(mtime: int) -> int:
    return min(max(mtime, 0), _MOST_TIME)


# -- EROFS ------------------------------------------------------------------------------------------


def make_erofs(job: FsJob, tree: Tree) -> None:
    """An EROFS image of a chain."""
    tool = find_tool("erofs", job.what)
    latest = max((node.mtime for node in tree.walk(tree.root)), default=0)
    # Times after this one would be cut: none is.  Without it the image says when it was made.
    moment = {"SOURCE_DATE_EPOCH": str(max(latest + 1, job.epoch, 0))}
    options = ["--quiet", "-x1", "-U", job.uuid, "-Eforce-inode-extended"]
    _on_folder(job, lambda folder: [tool, *options, str(job.out), folder], moment)


# -- ext4 -------------------------------------------------------------------------------------------


def make_ext4(job: FsJob, tree: Tree, *, size: int | None) -> None:
    """An ext4 image of a chain, of ``size`` bytes or as large as it needs.

    It has a ``lost+found``; mke2fs keeps whole seconds.
    """
    tool, root = find_tool("ext4", job.what), tree.root
    inodes, blocks = _needs(tree)
    wanted = size if size is not None else _ext4_size(inodes, blocks)
    for attempt in range(1, _EXT4_TRIES + 1):
        count = max(wanted // _EXT4_BLOCK, 1)
        options = [
            *("-q", "-F", "-t", "ext4", "-b", str(_EXT4_BLOCK), "-I", "256", "-m", "0", "-U", job.uuid),
            *("-N", str(inodes + inodes // 4 + 1_024)),
            *("-E", f"hash_seed={job.uuid},root_owner={root.uid}:{root.gid},lazy_itable_init=0,nodiscard"),
        ]
        with suppress(FileNotFoundError):
            os.unlink(job.out)

        def argv(folder: str, options: Sequence[str] = options, count: int = count) -> list[str]:
            return [tool, *options, "-d", folder, str(job.out), str(count)]

        try:
            _on_folder(job, argv, _moment(job))
            break
        except FailedPrecondition as exc:
            full = _FULL.search(exc.reason) is not None
            if full and size is not None:
                raise ResourceExhausted(
                    job.what,
                    f"the files need more than {size} bytes of ext4: {exc.reason}",
                    hint="give a larger --size, or none",
                ) from exc
            if not full or attempt == _EXT4_TRIES:
                raise
            wanted += wanted // 3
    _set_root(job, root)


def _moment(job: FsJob) -> dict[str, str]:
    # The first is what all versions know, the second what 1.47.1 and later prefer.
    return {"E2FSPROGS_FAKE_TIME": str(max(job.epoch, 1)), "SOURCE_DATE_EPOCH": str(max(job.epoch, 1))}


def _needs(tree: Tree) -> tuple[int, int]:
    """How many inodes and blocks the tree's entries take, holes left out."""
    inodes, blocks, links = 0, 0, set()
    for node in tree.walk(tree.root):
        if node.link is not None and node.link in links:
            continue
        links.add(node.link)
        inodes += 1
        if sum(len(name) + len(value) + 32 for name, value in node.xattrs) > 90:
            blocks += 1
        if node.is_folder:
            blocks += 1 + sum(16 + len(name) for name in tree.names(node)) // (_EXT4_BLOCK * 2 // 3)
        elif node.is_link:
            blocks += node.size >= 60
        elif node.is_file and node.size:
            blocks += -(-_data_bytes(tree, node) // _EXT4_BLOCK) + 1
    return inodes, blocks


def _data_bytes(tree: Tree, node: Node) -> int:
    entry = node.lower
    if entry is None or node.changed or node.size <= 16 * _EXT4_BLOCK:
        return node.size
    extents = tree.view.images[entry.image].extents(entry.inode)
    return sum(extent.length for extent in extents if extent.device) + 16 * _EXT4_BLOCK


def _ext4_size(inodes: int, blocks: int) -> int:
    """Bytes of a file system that these fit in, with a tenth to spare."""
    needed = blocks * _EXT4_BLOCK + (inodes + inodes // 4 + 1_024) * 256
    return needed + needed // 10 + (24 << 20)


def _set_root(job: FsJob, root: Node) -> None:
    """What mke2fs leaves of the root folder: its mode and times."""
    debugfs = _find("debugfs")
    if debugfs is None:
        raise FailedPrecondition(job.what, "debugfs is not installed", hint="install e2fsprogs")
    fields = [("mode", f"0{root.mode:o}")]
    fields += [(name, f"@{max(root.mtime, 0)}") for name in ("mtime", "atime", "ctime", "crtime")]
    script = job.folder / "commands"
    script.write_text("".join(f"set_inode_field <2> {name} {value}\n" for name, value in fields))
    _run(job, [debugfs, "-w", "-f", str(script), str(job.out)], env=_moment(job))


# -- folders that tools read -------------------------------------------------------------------------


def _on_folder(job: FsJob, argv: Callable[[str], list[str]], env: dict[str, str]) -> None:
    """Run a tool over the chain's tree as a folder."""
    core = job.core
    if not job.reads_folders:
        raise FailedPrecondition(
            job.what,
            "the tool reads a folder, and only root of the machine can show it one with all ids and devices",
            hint="export a squashfs image, or a tar; both need no privilege",
        )
    if core.verdict("erofs").works:
        _run(job, _mounted(job, argv), env=env)
        return
    copy = job.folder / "copy"
    if not copy.exists():
        copy.mkdir(mode=0o700)
        fd = os.open(copy, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            job.folders.write_tree(fd, job.diff_ids, REAL.bare(), durable=False, call=job.call)
        finally:
            os.close(fd)
    _run(job, argv(str(copy)), env=env)


def _mounted(job: FsJob, argv: Callable[[str], list[str]]) -> list[str]:
    images: list[ErofsMount] = []
    for number, row in enumerate(job.chains.ensure(job.diff_ids, call=job.call)):
        image = job.chains.image(row)
        point = job.folder / f"chain-{number}"
        point.mkdir(mode=0o700, exist_ok=True)
        devices = tuple(str(device) for device in image.devices)
        images.append(ErofsMount(file=str(image.file), devices=devices, point=str(point)))
    target = job.folder / "tree"
    target.mkdir(mode=0o700, exist_ok=True)
    # The overlay unnests xattrs of overlays in the image; without an upper it needs two lowers.
    lowers = [*(f"{image.point}/root" for image in images), str(job.core.layout.empty)]
    return command(images, lowers=lowers, options=OVERLAY_OPTIONS, target=str(target), argv=argv(str(target)))


# -- running a tool ----------------------------------------------------------------------------------


def _run(
    job: FsJob,
    argv: list[str],
    *,
    env: dict[str, str] | None = None,
    feed: Callable[[subprocess.Popen[bytes]], None] | None = None,
) -> None:
    """Run a tool to its end; it is killed where the call is cancelled.

    Raises `FailedPrecondition` with its last words where it fails, `ResourceExhausted` on a full disk.
    """
    words = job.folder / "words"
    job.call.observer.progress(Progress(item=job.item, phase="writing"))
    with ExitStack() as stack:
        said = stack.enter_context(open(words, "w+b"))
        try:
            process = subprocess.Popen(
                argv,
                stdin=subprocess.PIPE if feed is not None else subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                bufsize=0,
                cwd="/",
                env={"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC", **(env or {})},
            )
        except OSError as exc:
            raise from_oserror(job.what, exc) from exc
        stack.callback(_end, process)
        if feed is not None:
            feed(process)
        while process.poll() is None:
            job.call.check(job.what)
            time.sleep(_LOOK)
        said.seek(0)
        text = said.read().decode(errors="replace").strip()[-_SAID:]
    if process.returncode == 0:
        return
    last = " ".join(text.split()) or f"exit code {process.returncode}"
    error: Error
    if not _has_room(job.folder):
        error = ResourceExhausted(job.what, f"no room is left on the store's disk: {last}")
    elif process.returncode < 0:
        error = Internal(job.what, f"{argv[0]} was ended by signal {-process.returncode}: {last}")
    else:
        error = FailedPrecondition(job.what, f"the tool failed: {last}")
    raise error


def _has_room(folder: Path) -> bool:
    about = os.statvfs(folder)
    return about.f_bavail * about.f_frsize > 1 << 20


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.kill()
        process.wait()
