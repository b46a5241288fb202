"""TLS contexts by what they trust and who they say we are; made once, and anew where a file changes.

Authorities of files count beside the system's.  Files with authorities must be root's or one's own, as the
files that name them must be (`orlop.config.files`).
"""

from __future__ import annotations

import os
import ssl
import stat
import threading
from collections import OrderedDict
from collections.abc import Sequence

from orlop.config.files import read_bytes
from orlop.errors import FailedPrecondition, from_oserror
from orlop.registry.net.connections import tls_context

__all__ = ["Contexts"]

MAX_CONTEXTS = 64  # each with the system's authorities takes about a megabyte

_Stamp = tuple[str, int, int, int]
Key = tuple[bool, tuple[_Stamp, ...], tuple[_Stamp, ...]]


class Contexts:
    """TLS contexts.  Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards the contexts, and that each is made once
        self._made: OrderedDict[Key, ssl.SSLContext] = OrderedDict()

    def get(
        self, *, verify: bool, ca: Sequence[str], client: Sequence[tuple[str, str]], attempted: str
    ) -> tuple[Key, ssl.SSLContext]:
        """A context, and a key that is another one where the context is.

        Raises `FailedPrecondition` for a file that is missing or cannot be used, `PermissionDenied` for an
        authority that others may have written.
        """
        names = [name for pair in client for name in pair if name]
        key = (
            verify,
            tuple(_stamp(name, attempted) for name in ca) if verify else (),
            tuple(_stamp(name, attempted) for name in names),
        )
        with self._lock:
            context = self._made.get(key)
            if context is None:
                context = self._made[key] = _context(verify, ca, client, attempted)
            self._made.move_to_end(key)
            if len(self._made) > MAX_CONTEXTS:
                self._made.popitem(last=False)
        return key, context


def _context(
    verify: bool, ca: Sequence[str], client: Sequence[tuple[str, str]], attempted: str
) -> ssl.SSLContext:
    context = tls_context(verify=verify)
    for name in ca if verify else ():
        data = read_bytes(name, attempted, trusted=False)
        try:
            context.load_verify_locations(cadata=data.decode("ascii"))
        except (ssl.SSLError, ValueError) as exc:
            raise _unusable(name, "holds no certificate of an authority", attempted) from exc
    for certificate, key in reversed(client):  # of each kind of key, the last one that is loaded counts
        try:
            context.load_cert_chain(certificate, key or None, password=_no_password)
        except (ssl.SSLError, ValueError) as exc:
            name = f"{certificate} with {key}" if key else certificate
            raise _unusable(name, "not a certificate with its key, in the clear", attempted) from exc
        except OSError as exc:
            raise from_oserror(attempted, exc) from exc
    return context


def _no_password() -> str:
    """Keep OpenSSL from asking on the terminal."""
    raise ValueError


def _stamp(name: str, attempted: str) -> _Stamp:
    try:
        about = os.stat(name)
    except OSError as exc:  # never NotFound: that would be the image
        raise _unusable(name, exc.strerror or "it cannot be looked at", attempted) from exc
    if not stat.S_ISREG(about.st_mode):
        raise _unusable(name, "not a regular file", attempted)
    return name, about.st_mtime_ns, about.st_size, about.st_ino


def _unusable(name: str, why: str, attempted: str) -> FailedPrecondition:
    return FailedPrecondition(attempted, f"cannot use {name}: {why}")
