"""The library's face: `open`, `connect`, `Store` and `Prepared`.

The protocols of `orlop.images.api` are the verbs; this room adds what makes them pleasant in Python:
`Store.prepare` gives a handle that is a context manager.
"""

from orlop.facade.opening import (
    DEFAULT_ROOT,
    DEFAULT_RUN,
    DEFAULT_SOCKET,
    connect,
    login,
    logins,
    logout,
    open,  # noqa: A004 - the library's verb
    registries,
    restore,
)
from orlop.facade.prepared import Prepared
from orlop.facade.store import Store

__all__ = [
    "DEFAULT_ROOT",
    "DEFAULT_RUN",
    "DEFAULT_SOCKET",
    "Prepared",
    "Store",
    "connect",
    "login",
    "logins",
    "logout",
    "open",
    "registries",
    "restore",
]
