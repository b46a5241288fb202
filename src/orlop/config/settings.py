"""How a store behaves, as one value that is handed down."""

from __future__ import annotations

import os
from typing import Literal

from orlop.config.limits import Limits
from orlop.errors import InvalidArgument
from orlop.values import dataclass, field

__all__ = [
    "DRIVERS",
    "BlobFormat",
    "Compression",
    "Driver",
    "ProxySettings",
    "PullPolicy",
    "Settings",
    "Sharing",
]

PullPolicy = Literal["missing", "never", "always"]
Driver = Literal["auto", "erofs", "overlay", "native"]
Compression = Literal["gzip", "zstd", "none"]
BlobFormat = Literal["plain", "estargz", "zstd:chunked"]
Sharing = Literal["shared", "isolated"]
DRIVERS: tuple[Driver, ...] = ("erofs", "overlay", "native")
"""The drivers, the better ones first; ``auto`` is the first that works here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProxySettings:
    """The proxies to registries.  Their URLs may hold a password, and are not shown by ``repr``."""

    http: str = field(default="", repr=False)  # for registries that are spoken to in the clear
    https: str = field(default="", repr=False)
    no: tuple[str, ...] = ()  # what is reached without one, as in NO_PROXY


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How a store behaves.  All have defaults that serve a laptop and a server alike."""

    pull: PullPolicy = "missing"
    driver: Driver = "auto"  # how new roots are assembled; those prepared before keep theirs
    directio: bool = False  # EROFS reads layers past the page cache where the disk can: docs/drivers.md
    durable: bool = True  # off: nothing is synced, and a power cut may take or spoil what was written
    keep_blobs: bool = False  # keep layers' compressed blobs once the layer is durable
    downloads: int = 3  # blobs fetched at a time, per call
    streams: int = 4  # most connections for one large blob, if further ones make it come faster
    uploads: int = 3  # blobs sent at a time, per call
    upload_chunk: int = 0  # most bytes to a request of an upload; 0: each blob in one, while that goes well
    compression: Compression = "gzip"  # of layers that are compressed here, when they are pushed
    compression_level: int = 0  # gzip 1 to 9, zstd 1 to 19; 0: 2 of gzip, 3 of zstd
    compression_format: BlobFormat = "plain"  # or one that can be fetched file by file: docs/formats.md
    compression_threads: int = 0  # that compress, per push; 0: one for each processor that may be used
    timeout: float = 30.0  # seconds without a byte after which a connection counts as dead
    stall_rate: int = 512  # bytes a second; a body that is slower over a whole timeout counts as dead
    retries: int = 4  # further tries after a network fault, 408, 429 and 5xx
    retry_wait: float = 300.0  # seconds that one call may spend between tries, all its requests together
    insecure_registries: tuple[str, ...] = ()  # hosts spoken to over http or unverified TLS
    hosts_dirs: tuple[str, ...] = ()  # folders with hosts.toml files and certificates, by registry
    registries_conf: tuple[str, ...] = ()  # registries.conf files, and folders of them; later ones win
    search_registries: bool | tuple[str, ...] = False  # for short names; true: those of registries.conf
    proxy: ProxySettings = field(default_factory=ProxySettings)
    auth_files: tuple[str, ...] = ()  # docker config.json or containers auth.json, first match wins
    auth_config: str = field(default="", repr=False)  # such a file's JSON, before them; DOCKER_AUTH_CONFIG
    foreign_layers: bool = False  # fetch layers that a manifest says lie elsewhere, from the URLs it names
    nondistributable: bool = False  # push also the layers that are not to be distributed
    content_sharing: Sharing = "shared"  # of containerd's content, between namespaces: docs/containerd.md
    content_shareable: tuple[str, ...] = ()  # namespaces whose content others may have where it is isolated
    helper_path: str = os.defpath  # folders, as in PATH, that hold docker-credential-* programs
    events_kept: int = 50_000  # the last events that can still be asked for: docs/events.md
    events_age: float = 604_800.0  # seconds after which they are dropped all the same; 0: never
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        for name, least in (
            ("downloads", 1),
            ("streams", 1),
            ("uploads", 1),
            ("upload_chunk", 0),
            ("compression_level", 0),
            ("compression_threads", 0),
            ("retries", 0),
            ("timeout", 0.001),
            ("stall_rate", 0),
            ("retry_wait", 0),
            ("events_kept", 1),
            ("events_age", 0),
        ):
            if not getattr(self, name) >= least:
                reason = f"{name} is {getattr(self, name)!r}, and must be {least:g} or more"
                raise InvalidArgument("use settings", reason, details={"key": name})
