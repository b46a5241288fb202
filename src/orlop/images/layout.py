"""Where a store keeps what, and whether a folder can serve as one.

::

    ROOT/format.json                 version, and compat / ro-compat / incompat feature flags
    ROOT/meta.db                     SQLite
    ROOT/locks/                      flocks: they guard ROOT, so they live in it
    ROOT/content/  layers/  chains/  prepared/  trash/
    RUN/chains/<id>/                 mount points of activations
    RUN/socket/orlop.sock            the daemon's

Invariants: ROOT has mode 0700; neither path holds a character that a mount option would need to
escape; format.json is written once, before anything else is.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path

from orlop.errors import FailedPrecondition, InvalidArgument, PermissionDenied, from_oserror
from orlop.linux import mountinfo
from orlop.linux.files import write_durably

__all__ = ["FORMAT_VERSION", "Layout", "check_root_path"]

FORMAT_VERSION = 1
_FEATURES: dict[str, frozenset[str]] = {
    "compat": frozenset(),
    "ro_compat": frozenset(),
    "incompat": frozenset({"erofs-index-1"}),
}
_ODD = re.compile(r"[,:\\\"\s]")
_BAD_FILESYSTEMS = {mountinfo.OVERLAYFS_MAGIC: "overlay", mountinfo.TMPFS_MAGIC: "tmpfs"}


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
    def prepared(self) -> Path:
        """Uppers."""
        return self.root / "prepared"

    @property
    def trash(self) -> Path:
        """What is being deleted."""
        return self.root / "trash"

    def contains(self, path: str) -> bool:
        """Whether a path, symlinks of its parent resolved, lies in ROOT or RUN."""
        parent, name = os.path.split(path)
        resolved = Path(os.path.realpath(parent)) / name
        return any(resolved.is_relative_to(os.path.realpath(folder)) for folder in (self.root, self.run))

    def create(self) -> None:
        """Make the store, or check that the folder holds one we can work with.

        Raises `InvalidArgument` for a path that cannot be used, `FailedPrecondition` for a file system
        that cannot hold a store or a store that is newer than this orlop, `PermissionDenied`
        without root.
        """
        what = f"open store {self.root}"
        for folder in (self.root, self.run):
            check_root_path(folder, what)
        if os.geteuid() != 0:
            raise PermissionDenied(
                what,
                "mounting EROFS and overlay needs root",
                hint="run it as root, or use a daemon that does: --host unix:///run/orlop/socket/orlop.sock",
            )
        try:
            self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.run.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as exc:
            raise from_oserror(what, exc) from exc
        self._check_filesystem(what)
        self._check_format(what)
        for folder in (self.locks, self.layers, self.chains, self.trash):
            folder.mkdir(mode=0o700, exist_ok=True)

    def _check_filesystem(self, what: str) -> None:
        """EROFS takes its backing files from disk file systems alone (KERNEL: ENOTBLK elsewhere)."""
        kind = _BAD_FILESYSTEMS.get(mountinfo.filesystem_magic(self.root))
        if kind is not None:
            raise FailedPrecondition(
                what,
                f"the folder lies on {kind}, which cannot back an EROFS mount",
                hint="use ext4, xfs or btrfs",
            )

    def _check_format(self, what: str) -> None:
        path = self.root / "format.json"
        try:
            text = path.read_bytes()
        except FileNotFoundError:
            strangers = [name for name in os.listdir(self.root) if name != "lost+found"]
            if strangers and not set(strangers) <= {"locks", "format.json"}:
                raise FailedPrecondition(
                    what, f"the folder is not empty and not a store: it holds {min(strangers)!r}"
                ) from None
            os.chmod(self.root, 0o700)
            features = {kind: sorted(names) for kind, names in _FEATURES.items()}
            write_durably(
                path, json.dumps({"version": FORMAT_VERSION, **features}, indent=1).encode() + b"\n"
            )
            return
        try:
            document = json.loads(text)
            version = int(document["version"])
            unknown = {kind: sorted(set(document.get(kind, [])) - names) for kind, names in _FEATURES.items()}
        except (ValueError, KeyError, TypeError) as exc:
            raise FailedPrecondition(what, "its format.json is not one of orlop's") from exc
        if version > FORMAT_VERSION or unknown["incompat"] or unknown["ro_compat"]:
            more = ", ".join(unknown["incompat"] + unknown["ro_compat"]) or f"format {version}"
            raise FailedPrecondition(
                what, f"it was written by a newer orlop ({more})", hint="use that version, or another folder"
            )


def check_root_path(folder: Path, what: str) -> None:
    """Refuse a path that could not stand in a mount option.  Raises `InvalidArgument`."""
    text = str(folder)
    if not folder.is_absolute():
        raise InvalidArgument(what, f"the path {text!r} is relative", hint="give an absolute path")
    if _ODD.search(text):
        raise InvalidArgument(
            what,
            f"the path {text!r} holds a comma, colon, backslash, quote or white space",
            hint="choose another",
        )
