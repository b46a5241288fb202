"""What may be asked for at all: paths of roots, drivers."""

from __future__ import annotations

import os
import posixpath

from orlop.config import DRIVERS
from orlop.errors import InvalidArgument
from orlop.images.changed.changes import is_text

__all__ = ["check_driver", "check_path"]


def check_driver(driver: str | None, what: str) -> None:
    """Refuse a driver that there is not.  Raises `InvalidArgument`."""
    if driver not in {None, "auto", *DRIVERS}:
        raise InvalidArgument(what, f"no such driver: {driver!r}", hint=f"auto, {', '.join(DRIVERS)}")


def check_path(path: str, what: str) -> None:
    """A path must be absolute and clean, as its text is what makes it unique."""
    if not path.startswith("/"):
        raise InvalidArgument(
            what,
            "the path is relative",
            hint=f"give an absolute path, such as {os.path.abspath(path or '.')}",
        )
    if not is_text(path):
        raise InvalidArgument(
            what, "the path is not UTF-8", hint="choose another: mounts are passed on as text"
        )
    if path == "/" or path != posixpath.normpath(path) or path.startswith("//") or "\0" in path:
        raise InvalidArgument(
            what, "the path is not clean", hint=f"write it as {posixpath.normpath('/' + path)}"
        )
