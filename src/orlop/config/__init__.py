"""The settings and limits of a store, as values that are handed down, and how they are read from files.

- `limits`: what bytes from outside may cost, each with its name, default and reason;
- `settings`: how a store behaves;
- `values`: texts and TOML values into the values of fields;
- `files`: TOML files into settings, with where each value came from.

Nothing here reads the environment, nor a file that it was not given: the command line and the daemon do,
and pass the result on.  This room knows no other but `orlop.errors`.
"""

from __future__ import annotations

from orlop.config.files import Configuration, load
from orlop.config.limits import DEFAULT_LIMITS, Limits, over_limit, too_long
from orlop.config.settings import (
    DRIVERS,
    BlobFormat,
    Compression,
    Driver,
    ProxySettings,
    PullPolicy,
    Settings,
    Sharing,
)

__all__ = [
    "DEFAULT_LIMITS",
    "DRIVERS",
    "BlobFormat",
    "Compression",
    "Configuration",
    "Driver",
    "Limits",
    "ProxySettings",
    "PullPolicy",
    "Settings",
    "Sharing",
    "load",
    "over_limit",
    "too_long",
]
