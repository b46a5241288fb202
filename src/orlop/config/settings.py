"""How a store behaves, as one value that is handed down."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Literal

from orlop.config.limits import Limits
from orlop.errors import InvalidArgument

__all__ = ["DRIVERS", "Driver", "PullPolicy", "Settings"]

PullPolicy = Literal["missing", "never", "always"]
Driver = Literal["auto", "erofs", "overlay", "native"]
DRIVERS: tuple[Driver, ...] = ("erofs", "overlay", "native")
"""The drivers, the better ones first; ``auto`` is the first that works here."""


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

    def __post_init__(self) -> None:
        for name, least in (("downloads", 1), ("retries", 0), ("timeout", 0.001)):
            if not getattr(self, name) >= least:
                reason = f"{name} is {getattr(self, name)!r}, and must be {least:g} or more"
                raise InvalidArgument("use settings", reason, details={"key": name})
