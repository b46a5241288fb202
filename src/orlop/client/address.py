"""The addresses of daemons: a unix socket's path, or a host and a port, parsed once.

``unix:///run/orlop/socket/orlop.sock`` and ``unix:PATH`` (gRPC's own short form; a relative path is
taken from the working folder).  Paths are literal: ``%20`` is three characters.  ``tcp://HOST:PORT`` is
spoken with mutual TLS alone; a certificate's name decides there what a socket's mode and users decide here.
"""

from __future__ import annotations

import os
import re
from urllib.parse import quote

from orlop.errors import InvalidArgument
from orlop.values import dataclass

__all__ = ["SUN_PATH_MAX", "Address", "TcpAddress", "parse_address"]

SUN_PATH_MAX = 107  # unix(7): sun_path has 108 bytes, the last is NUL
_HOST = re.compile(r"(?:[A-Za-z0-9](?:[A-Za-z0-9.-]{0,252}[A-Za-z0-9])?|\[[0-9A-Fa-f:.]{2,45}\])")
_PORT = re.compile(r"[0-9]{1,5}")
_HINT = "write unix:///PATH or tcp://HOST:PORT"


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
            raise InvalidArgument(attempted, f"not a unix socket: {text!r}", hint=_HINT)
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


@dataclass(frozen=True, slots=True)
class TcpAddress:
    """A host, as a name or a number (an IPv6 one without its brackets), and a port."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str, attempted: str) -> TcpAddress:
        """Check and take apart ``tcp://HOST:PORT``; raises `InvalidArgument`."""
        host, colon, port = text.removeprefix("tcp://").rpartition(":")
        if not text.startswith("tcp://") or not colon or not _HOST.fullmatch(host):
            raise InvalidArgument(attempted, f"not a host and a port: {text!r}", hint=_HINT)
        if not _PORT.fullmatch(port) or int(port) > 65_535:
            raise InvalidArgument(attempted, f"not a port: {port!r}", hint=_HINT)
        return cls(host.strip("[]"), int(port))

    @property
    def target(self) -> str:
        """What gRPC is given."""
        return f"dns:///{self._joined}"

    @property
    def _joined(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def __str__(self) -> str:
        return f"tcp://{self._joined}"


def parse_address(text: str, attempted: str) -> Address | TcpAddress:
    """One or the other.  Raises `InvalidArgument`."""
    return TcpAddress.parse(text, attempted) if text.startswith("tcp:") else Address.parse(text, attempted)
