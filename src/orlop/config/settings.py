"""How a store behaves, as one value that is handed down."""

from __future__ import annotations

import os

from orlop.config.limits import Limits
from orlop.errors import InvalidArgument
from orlop.hints import Literal, TypeVar
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
    "setting",
]

PullPolicy = Literal["missing", "never", "always"]
Driver = Literal["auto", "erofs", "overlay", "native"]
Compression = Literal["gzip", "zstd", "none"]
BlobFormat = Literal["plain", "estargz", "zstd:chunked"]
Sharing = Literal["shared", "isolated"]
DRIVERS: tuple[Driver, ...] = ("erofs", "overlay", "native")
"""The drivers, the better ones first; ``auto`` is the first that works here."""


_T = TypeVar("_T")


def setting(default: _T, about: str, *, usual: str = "", secret: bool = False) -> _T:
    """A field of a dataclass that can be configured: what it does, and whether its value is not to be shown.

    ``usual`` says where the command line takes the value from when nobody gives one.  The reference
    (docs/configuration.md), `orlop config` and the example file are made of these.
    """
    about_it = {"about": about, "usual": usual, "secret": secret}
    made: _T = field(default=default, repr=not secret, metadata=about_it)
    return made


@dataclass(frozen=True, slots=True, kw_only=True)
class ProxySettings:
    """The proxies to registries.  Their URLs may hold a password, and are not shown by ``repr``."""

    http: str = setting(
        "",
        "the proxy to registries that are spoken to in the clear",
        usual="HTTP_PROXY, ALL_PROXY",
        secret=True,
    )
    https: str = setting(
        "", "the proxy to registries that are spoken to over TLS", usual="HTTPS_PROXY, ALL_PROXY", secret=True
    )
    no: tuple[str, ...] = setting((), "hosts that are reached without one", usual="NO_PROXY")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How a store behaves.  All have defaults that serve a laptop and a server alike."""

    pull: PullPolicy = setting("missing", "when a root's image is fetched: if it is missing, never, always")
    driver: Driver = setting("auto", "how new roots are assembled; those prepared before keep theirs")
    directio: bool = setting(
        False, "EROFS reads layers past the page cache where the disk can: docs/drivers.md"
    )
    durable: bool = setting(
        True, "outlast a power cut; off: nothing is synced, and one may take or spoil what was written"
    )
    keep_blobs: bool = setting(False, "keep layers' compressed blobs once the layer is durable")
    downloads: int = setting(3, "blobs fetched at a time, per call")
    streams: int = setting(4, "most connections for one large blob, if further ones make it come faster")
    uploads: int = setting(3, "blobs sent at a time, per call")
    upload_chunk: int = setting(
        0, "most bytes to a request of an upload; 0: each blob in one, while that goes well"
    )
    compression: Compression = setting("gzip", "how layers are compressed when they are pushed")
    compression_level: int = setting(0, "gzip 1 to 9, zstd 1 to 19; 0: 2 of gzip, 3 of zstd")
    compression_format: BlobFormat = setting(
        "plain", "plain, or one whose files can be fetched one by one: docs/formats.md"
    )
    compression_threads: int = setting(
        0, "threads that compress, per push; 0: one for each processor that may be used"
    )
    timeout: float = setting(30.0, "seconds without a byte after which a connection counts as dead")
    stall_rate: int = setting(
        512, "bytes a second; a body that is slower over a whole timeout counts as dead"
    )
    retries: int = setting(4, "further tries after a network fault, 408, 429 and 5xx")
    retry_wait: float = setting(
        300.0, "seconds that one call may spend between tries, all its requests together"
    )
    insecure_registries: tuple[str, ...] = setting((), "hosts spoken to over http or unverified TLS")
    hosts_dirs: tuple[str, ...] = setting(
        (), "folders with hosts.toml files and certificates, by registry", usual="docs/registries.md"
    )
    registries_conf: tuple[str, ...] = setting(
        (), "registries.conf files, and folders of them; later ones win", usual="docs/registries.md"
    )
    search_registries: bool | tuple[str, ...] = setting(
        False, "where short names are looked for; true: where registries.conf says"
    )
    proxy: ProxySettings = field(default_factory=ProxySettings)
    auth_files: tuple[str, ...] = setting(
        (), "docker config.json or containers auth.json, first match wins", usual="docs/credentials.md"
    )
    auth_config: str = setting(
        "", "the JSON of such a file, which speaks before them", usual="DOCKER_AUTH_CONFIG", secret=True
    )
    foreign_layers: bool = setting(
        False, "fetch layers that a manifest says lie elsewhere, from the URLs it names"
    )
    nondistributable: bool = setting(False, "push also the layers that are not to be distributed")
    content_sharing: Sharing = setting(
        "shared", "containerd's content, between its namespaces: docs/containerd.md"
    )
    content_shareable: tuple[str, ...] = setting(
        (), "namespaces whose content others may have where it is isolated"
    )
    helper_path: str = setting(
        os.defpath, "folders, as in PATH, that hold docker-credential-* programs", usual="PATH"
    )
    events_kept: int = setting(50_000, "the last events that can still be asked for: docs/events.md")
    events_age: float = setting(604_800.0, "seconds after which they are dropped all the same; 0: never")
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
