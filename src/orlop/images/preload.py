"""Import now what the verbs import when they first need it.

A command line that lists images should not pay for tar and EROFS, so verbs import their parts late.  A
process that serves many threads pays once, before it serves: no call waits for another's import, and no
two threads import at a time (CPython 3.11.7 was seen to crash there).
"""

from __future__ import annotations

import codecs
import pkgutil
from importlib import import_module

from orlop.layers import compression

__all__ = ["preload"]

_ROOMS = (
    "orlop.content",
    "orlop.erofs",
    "orlop.images",
    "orlop.layers",
    "orlop.linux",
    "orlop.metadata",
    "orlop.registry",
    "orlop.snapshots",
    "orlop.spec",
)


def preload() -> None:
    """Import every module of the core, and what these import late.  Takes about a quarter of a second."""
    for room in _ROOMS:
        package = import_module(room)
        for found in pkgutil.walk_packages(package.__path__, f"{room}."):
            import_module(found.name)
    compression.preload()
    import_module("isal.isal_zlib")  # for a push
    codecs.lookup("idna")  # a socket's host name goes through it
