"""Where a store keeps what, and whether a folder can serve as one.

::

    ROOT/format.json                 version, and compat / ro-compat / incompat feature flags
    ROOT/meta.db                     SQLite
    ROOT/reserve                     room for deleting on a full disk
    ROOT/locks/                      flocks: they guard ROOT, so they live in it
    ROOT/content/  layers/  chains/  folders/  empty/  prepared/  snapshots/  trash/
    ROOT/shares/                     what is shared with podman and others, where something is
    RUN/chains/<store>-<id>/         mount points of activations
    RUN/maps/  RUN/disks/            with mapped ids; of roots with a quota
    RUN/socket/orlop.sock            the daemon's

Invariants: ROOT has mode 0700 and both folders are ours; neither path holds a character that a mount
option would need to escape; format.json is written once, before anything else is; the folders' own
names are durable before anything in them is.
"""

from __future__ import annotations

import functools
import json
import os
import stat
from pathlib import Path

from orlop.content.blobs import BlobStore
from orlop.errors import DataLoss, FailedPrecondition, InvalidArgument, from_oserror
from orlop.images.format import FEATURES, FORMAT, FORMAT_VERSION
from orlop.linux.files import fsync_dir, write_durably
from orlop.observe import reached
from orlop.values import dataclass

__all__ = ["FORMAT_VERSION", "Layout", "check_format", "check_root_path"]

_ODD = ',:\\"'  # and white space


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """The folders of one store."""

    root: Path
    run: Path

    @property
    def database(self) -> Path:
        """meta.db."""
        return self.root / "meta.db"

    @property
    def reserve(self) -> Path:
        """Room for deleting on a full disk (`orlop.images.space`)."""
        return self.root / "reserve"

    @property
    def locks(self) -> Path:
        """The folder of lock files."""
        return self.root / "locks"

    @property
    def content(self) -> Path:
        """Blobs and downloads."""
        return self.root / "content"

    @property
    def layers(self) -> Path:
        """Layers' tars and indexes."""
        return self.root / "layers"

    @property
    def chains(self) -> Path:
        """EROFS images of chains."""
        return self.root / "chains"

    @property
    def folders(self) -> Path:
        """Layers and chains unpacked."""
        return self.root / "folders"

    @property
    def empty(self) -> Path:
        """A folder with nothing in it, to stack others on."""
        return self.root / "empty"

    @property
    def prepared(self) -> Path:
        """Uppers."""
        return self.root / "prepared"

    @property
    def snapshots(self) -> Path:
        """What was written to containerd's snapshots."""
        return self.root / "snapshots"

    @property
    def shares(self) -> Path:
        """What is shared with others; made by the first share."""
        return self.root / "shares"

    @property
    def trash(self) -> Path:
        """What is being deleted."""
        return self.root / "trash"

    def contains(self, path: str) -> bool:
        """Whether a path, symlinks of its parent resolved, lies in ROOT or RUN."""
        parent, name = os.path.split(path)
        return f"{_resolve(parent).rstrip('/')}/{name}/".startswith(_beginnings(self.root, self.run))

    def hidden_by(self, path: str) -> bool:
        """Whether a mount at a path (its symlinks resolved) would hide ROOT or RUN, or a part of them."""
        place = Path(_resolve(path))
        return any(f.is_relative_to(place) or place.is_relative_to(f) for f in self._resolved())

    def _resolved(self) -> tuple[Path, Path]:
        return Path(_resolve(self.root)), Path(_resolve(self.run))

    def create(self) -> None:
        """Make the store, or check that the folder holds one we can work with.

        Raises `InvalidArgument` for a path that cannot be used, `FailedPrecondition` for a store that is
        newer than this orlop or another user's, `DataLoss` for one that has lost its metadata.
        """
        what = f"open store {self.root}"
        _beginnings.cache_clear()  # a link may lead elsewhere than when a store was opened here before
        for folder in (self.root, self.run):
            check_root_path(folder, what)
        root, run = self._resolved()
        if root.is_relative_to(run) or run.is_relative_to(root):
            raise InvalidArgument(
                what, f"one of {self.root} and {self.run} lies in the other", hint="choose two folders apart"
            )
        try:
            self._create(what)
        except PermissionError as exc:
            hint = "choose folders of your own for ROOT and RUN, or ask a daemon"
            raise from_oserror(what, exc, hint=hint) from exc
        except OSError as exc:
            raise from_oserror(what, exc) from exc

    def _create(self, what: str) -> None:
        self._check_folder(self.root, 0o700, what)
        # Others pass through RUN to reach the daemon's socket; what else is in it is closed.
        self._check_folder(self.run, 0o711, what)
        self._check_format(what)
        content = BlobStore(self.content).folders()
        folders = (
            self.locks,
            self.layers,
            self.chains,
            self.folders,
            self.empty,
            self.prepared,
            self.snapshots,
            self.trash,
            self.content,
            *content,
            self.run / "chains",
        )
        grown = {folder.parent for folder in folders if _made(folder, 0o700)}
        reached("layout.folders-made")
        if not self.database.exists():  # whoever made the folders may have died before they were durable
            grown |= {self.root, self.content, *content}
        for folder in sorted(grown):  # together, so that a journal commits once
            fsync_dir(folder)
        if not self.database.exists() or not self.database.stat().st_size:
            left = [folder for folder in (self.layers, self.prepared, self.snapshots) if os.listdir(folder)]
            if left:
                raise DataLoss(
                    what,
                    f"meta.db is gone, but there is something in {left[0]}",
                    hint="put meta.db back from a backup, or move the folder away and start anew",
                )

    @staticmethod
    def _check_folder(folder: Path, mode: int, what: str) -> None:
        """Have a folder that is ours; nobody else can put anything else in its place."""
        missing = [folder, *folder.parents]
        for place in reversed(missing[: [place.exists() for place in missing].index(True)]):
            _make(place, mode if place == folder else 0o755)
        about = folder.stat()
        if not stat.S_ISDIR(about.st_mode):
            raise FailedPrecondition(what, f"{folder} is not a folder")
        if about.st_uid != os.geteuid():
            raise FailedPrecondition(
                what, f"{folder} belongs to user {about.st_uid}", hint="choose a folder of your own"
            )

    def _check_format(self, what: str) -> None:
        path = self.root / "format.json"
        while True:
            try:
                text = path.read_bytes()
                break
            except FileNotFoundError:
                names = os.listdir(self.root)
            if path.name in names:
                continue  # another process has just written it
            strangers = {name for name in names if not name.startswith(".tmp-")} - {"lost+found", "locks"}
            if strangers:
                raise FailedPrecondition(
                    what,
                    f"the folder is not empty and not a store: it holds {min(strangers)!r}",
                    hint="choose an empty folder, or one that does not exist",
                )
            os.chmod(self.root, 0o700)
            text = FORMAT
            write_durably(path, text)
            reached("layout.format-written")
        check_format(text, what)
        if stat.S_IMODE(self.root.stat().st_mode) & 0o077:
            os.chmod(self.root, 0o700)  # CVE-2024-25621: others could run setuid files of images


@functools.lru_cache(maxsize=16)
def _beginnings(*folders: Path) -> tuple[str, ...]:
    """What the paths below folders begin with.  Where an open store lies does not change (see `create`)."""
    return tuple([f"{_resolve(folder).rstrip('/')}/" for folder in folders])


def _resolve(folder: str | Path) -> str:
    """As `os.path.realpath`; of a folder that is there the kernel is asked, in a third of the time."""
    try:
        fd = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            found = os.readlink(f"/proc/self/fd/{fd}")
        finally:
            os.close(fd)
    except OSError:
        found = ""
    known = found.startswith("/") and not found.endswith(" (deleted)")
    return found if known else os.path.realpath(folder)


def _make(folder: Path, mode: int) -> None:
    """Make a folder unless it is there; its name is durable on return if we made it."""
    if _made(folder, mode):
        fsync_dir(folder.parent)


def _made(folder: Path, mode: int) -> bool:
    """Make a folder unless it is there; whether we made it, so that its parent has a name to be synced."""
    try:
        folder.mkdir(mode=mode)
    except FileExistsError:
        if not stat.S_ISDIR(folder.lstat().st_mode):  # what is deleted below it would be somebody else's
            raise FailedPrecondition(
                f"open store {folder.parent}",
                f"{folder} is not a folder but a link or a file",
                hint="move it away, and put the folder back",
            ) from None
        return False
    os.chmod(folder, mode)  # whatever the umask
    return True


def check_format(text: bytes, what: str) -> None:
    """Refuse a store that we cannot work with, by its format.json.  Raises `FailedPrecondition`."""
    if text == FORMAT:
        return
    try:
        document = json.loads(text)
        version = document["version"]
        unknown = {kind: sorted(set(document.get(kind, [])) - names) for kind, names in FEATURES.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as exc:
        raise FailedPrecondition(what, "its format.json is not one of orlop's") from exc
    if type(version) is not int or version < 1:
        raise FailedPrecondition(what, "its format.json is not one of orlop's")
    if version > FORMAT_VERSION or unknown["incompat"] or unknown["ro_compat"]:
        more = ", ".join(map(str, unknown["incompat"] + unknown["ro_compat"])) or f"format {version}"
        raise FailedPrecondition(
            what, f"it was written by a newer orlop ({more})", hint="use that version, or another folder"
        )


def check_root_path(folder: Path, what: str) -> None:
    """Refuse a path that could not stand in a mount option.  Raises `InvalidArgument`."""
    text = str(folder)
    if not folder.is_absolute():
        raise InvalidArgument(what, f"the path {text!r} is relative", hint="give an absolute path")
    if any(char in _ODD or char.isspace() for char in text):
        raise InvalidArgument(
            what,
            f"the path {text!r} holds a comma, colon, backslash, quote or white space",
            hint="choose another",
        )
