"""The addresses of daemons: a unix socket's path, parsed once.

``unix:///run/orlop/socket/orlop.sock`` and ``unix:PATH`` (gRPC's own short form; a relative path is
taken from the working folder).  Paths are literal: ``%20`` is three characters.  There is no TCP: whoever
reaches the socket may do what the daemon may do, and a socket's folder and group decide who that is.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from urllib.parse import quote

from orlop.errors import InvalidArgument

__all__ = ["SUN_PATH_MAX", "Address"]

SUN_PATH_MAX = 107  # unix(7): sun_path has 108 bytes, the last is NUL


@dataclass(frozen=True, slots=True)
class Address:
    """A unix socket at an absolute path."""

    path: str

    @classmethod
    def parse(cls, text: str, attempted: str) -> Address:
        """Check and take apart; raises `InvalidArgument` for anything that no socket can have."""
        if text.startswith("unix://"):
            path = text.removeprefix("unix://")
            if not path.startswith("/"):
                raise InvalidArgument(attempted, f"not an absolute path: {text!r}", hint="write unix:///PATH")
        elif text.startswith("unix:"):
            path = text.removeprefix("unix:")
        else:
            raise InvalidArgument(attempted, f"not a unix socket: {text!r}", hint="write unix:///PATH")
        if not path or path.endswith("/") or "\0" in path:
            raise InvalidArgument(attempted, f"not the path of a socket: {text!r}", hint="write unix:///PATH")
        if "," in path:  # gRPC's resolver takes what follows for another address, encoded or not
            raise InvalidArgument(attempted, f"a socket's path may not have a comma: {path}")
        path = "/" + os.path.abspath(path).lstrip("/")  # POSIX lets two leading slashes stand
        size = len(os.fsencode(path))
        if size > SUN_PATH_MAX:
            raise InvalidArgument(
                attempted,
                f"the path has {size} bytes, and a unix socket's at most {SUN_PATH_MAX}: {path}",
                hint="choose a shorter one",
            )
        return cls(path)

    @property
    def target(self) -> str:
        """What gRPC is given: a URI, so all but slashes and plain letters is encoded."""
        return f"unix:{quote(os.fsencode(self.path))}"

    def __str__(self) -> str:
        return f"unix://{self.path}"
