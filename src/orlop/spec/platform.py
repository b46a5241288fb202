"""Platforms: what an index offers and what this machine runs.

Source: OCI image-index.md ("platform" and the table of architecture variants).
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

from orlop.errors import InvalidArgument

__all__ = ["Platform", "host_platform"]

_PART = re.compile(r"[a-z0-9_.-]+")
_VERSION = re.compile(r"v[0-9]{1,9}")
_MACHINES = {
    "x86_64": ("amd64", ""),
    "aarch64": ("arm64", ""),
    "armv7l": ("arm", "v7"),
    "armv6l": ("arm", "v6"),
    "i686": ("386", ""),
    "ppc64le": ("ppc64le", ""),
    "s390x": ("s390x", ""),
    "riscv64": ("riscv64", ""),
    "loongarch64": ("loong64", ""),
}
_ALIASES = {"x86_64": "amd64", "x86-64": "amd64", "aarch64": "arm64", "i386": "386", "armhf": "arm"}
_BASE_VARIANT = {"arm64": "v8", "arm": "v7", "amd64": "v1"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Platform:
    """Operating system, architecture and variant, in Go's names.

    >>> str(Platform.parse("linux/arm64/v8"))
    'linux/arm64/v8'
    """

    os: str
    architecture: str
    variant: str = ""

    @classmethod
    def parse(cls, text: str) -> Platform:
        """Parse ``os/arch[/variant]`` or a bare architecture.  Raises `InvalidArgument`."""
        parts = text.lower().split("/")
        if not 1 <= len(parts) <= 3 or not all(_PART.fullmatch(part) for part in parts):
            raise InvalidArgument(
                f"parse platform {text[:100]!r}", "not a platform", hint="write it as linux/arm64/v8"
            )
        if len(parts) == 1:
            parts = ["linux", parts[0]]
        architecture = _ALIASES.get(parts[1], parts[1])
        return cls(os=parts[0], architecture=architecture, variant=parts[2] if len(parts) == 3 else "")

    def rank(self, wanted: Platform) -> int:
        """How well this platform serves ``wanted``: 0 not at all, more is better.

        The same variant is best; a lower ``arm`` or ``amd64`` variant runs on a higher machine.
        """
        if (self.os, self.architecture) != (wanted.os, wanted.architecture):
            return 0
        base = _BASE_VARIANT.get(self.architecture, "")
        mine, theirs = self.variant or base, wanted.variant or base
        if mine == theirs:
            return 100
        if _VERSION.fullmatch(mine) and _VERSION.fullmatch(theirs):
            step = int(theirs[1:]) - int(mine[1:])
            return max(0, 50 - step) if step > 0 else 0
        return 0

    def __str__(self) -> str:
        return "/".join(part for part in (self.os, self.architecture, self.variant) if part)


def host_platform() -> Platform:
    """The platform of this machine."""
    machine = os.uname().machine
    architecture, variant = _MACHINES.get(machine, (machine, ""))
    return Platform(os="linux", architecture=architecture, variant=variant)
