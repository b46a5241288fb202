"""The settings of a store, as values that are handed down.

Nothing here reads the environment or a file of its own accord: the command line and the daemon do,
and pass the result on.  Every limit has a name, a default and a reason.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Literal

__all__ = ["DEFAULT_LIMITS", "DRIVERS", "Driver", "Limits", "PullPolicy", "Settings"]

PullPolicy = Literal["missing", "never", "always"]
Driver = Literal["auto", "erofs", "overlay", "native"]
DRIVERS: tuple[Driver, ...] = ("erofs", "overlay", "native")
"""The drivers, the better ones first; ``auto`` is the first that works here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What bytes from outside may cost.  Sizes are bytes.

    Each is refused with its name, so that a user knows which one to raise.
    """

    layer_entries: int = 5_000_000  # entries of one layer's tar
    layer_size: int = 256 << 30  # uncompressed bytes of one layer's tar
    file_size: int = 1 << 40  # apparent size of one file, sparse ones included
    compression_ratio: int = 1_200  # uncompressed over compressed; deflate can do 1,032
    name_size: int = 255  # one component of a path (NAME_MAX)
    path_size: int = 65_536  # a whole path; the format knows no PATH_MAX
    link_size: int = 4_095  # a symlink's target (PATH_MAX less the NUL)
    depth: int = 4_096  # folders below one another
    xattr_count: int = 4_096  # xattrs of one entry
    xattr_value: int = 65_535  # one value: EROFS keeps its size in 16 bits
    xattr_total: int = 131_072  # all xattrs of one entry, names included
    pax_size: int = 4 << 20  # one PAX or GNU long-name record
    manifest_size: int = 4 << 20
    config_size: int = 8 << 20
    index_nesting: int = 4
    layers: int = 1_024  # layers of one image
    worker_memory: int = 4 << 30  # address space of the worker that parses a layer
    worker_cpu: int = 3_600  # its CPU seconds


DEFAULT_LIMITS = Limits()


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How a store behaves.  All have defaults that serve a laptop and a server alike."""

    pull: PullPolicy = "missing"
    driver: Driver = "auto"  # how new roots are assembled; those prepared before keep theirs
    durable: bool = True  # off: nothing is synced, and a power cut may take or spoil what was written
    keep_blobs: bool = False  # keep layers' compressed blobs once the layer is durable
    downloads: int = 3  # blobs fetched at a time, per call
    timeout: float = 30.0  # seconds without a byte after which a connection counts as dead
    retries: int = 4  # further tries after a network fault, 408, 429 and 5xx
    insecure_registries: tuple[str, ...] = ()  # hosts spoken to over http or unverified TLS
    auth_files: tuple[str, ...] = ()  # docker config.json or containers auth.json, first match wins
    helper_path: str = os.defpath  # folders, as in PATH, that hold docker-credential-* programs
    limits: Limits = field(default_factory=Limits)
