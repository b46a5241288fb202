"""Platforms: what an index offers, what this machine runs, and which of the one serves the other.

Sources: OCI image-index.md ("platform" and the table of architecture variants); for what else serves a
platform, containerd's rules, which Docker and Kubernetes follow.  They were read, and the tables of their
tests are a test here:

- names are brought to Go's (``x86_64`` is ``amd64``), and a variant that is the usual one says nothing:
  ``amd64/v1``, ``arm64/v8``, ``arm/v7``;
- a lower variant serves a higher machine: ``arm/v6`` an ``arm/v7``, ``amd64/v2`` an ``amd64/v3``,
  ``arm64/v8.5`` an ``arm64/v9``; where nothing nearer is offered, ``386`` serves any ``amd64``, and ``arm``
  any ``arm64``;
- features of the operating system must all be wanted; Windows' versions follow Microsoft's table.

No I/O.  An index says what it likes: any text is a variant, and one that is no version serves only itself.
"""

from __future__ import annotations

import os
import re
from urllib.parse import unquote

from orlop.errors import InvalidArgument
from orlop.values import dataclass

__all__ = ["Platform", "host_platform"]

# Compiled when they are used: most commands read no platform.
_PART = r"[a-z0-9_.-]+"
_SYSTEM = r"(?ia)([a-z0-9_.-]+)(?:\(([a-z0-9_.%-]*)((?:\+[a-z0-9_.%-]+)*)\))?"
_PLAIN = r"[^A-Za-z0-9_.-]"
_VERSION = r"v([0-9]{1,9})(?:\.([0-9]{1,9}))?"
_BUILD = r"(?s)([0-9]{1,3})\.([0-9]{1,3})\.([0-9]{1,5})(?:\..*)?"
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
_ALIASES = {
    "x86_64": ("amd64", ""),
    "x86-64": ("amd64", ""),
    "aarch64": ("arm64", ""),
    "i386": ("386", ""),
    "armhf": ("arm", ""),
    "armel": ("arm", "v6"),
}
_SYSTEMS = frozenset(
    ("aix", "android", "darwin", "freebsd", "illumos", "linux", "netbsd", "openbsd", "solaris", "windows")
)
_USUAL = {  # variants by other names; the usual one of an architecture has none
    "amd64": {"v1": ""},
    "arm64": {"8": "", "v8": "", "v8.0": "", "9": "v9", "9.0": "v9", "v9.0": "v9"},
    "arm": {"": "v7", "5": "v5", "6": "v6", "7": "v7", "8": "v8"},
}
# The last minor versions of arm64 that there are; v9.N implies v8.N+5 (Arm's reference manual, A1.7).
_LAST_MINOR = {8: 9, 9: 7}
_NEWER_BY = 5
_LEAST_ARM = 5
# Windows containers run on the same build only, until Server 2022; since then a host takes those from the
# last long-term release before it on ("Windows container version compatibility", Microsoft).
_STABLE_BUILDS = (20348, 26100)
_EXACT_BUILD = 0xFFFF
_MOST = 1000  # steps from a machine to what serves it
_FOREIGN = 100  # steps from arm64 to arm


@dataclass(frozen=True, slots=True, kw_only=True)
class Platform:
    """Operating system, architecture and variant, in Go's names.

    ``os_version`` is Windows' (``10.0.17763``), ``os_features`` what an image needs of the system.

    >>> str(Platform.parse("linux/arm64/v8"))
    'linux/arm64/v8'
    >>> str(Platform.parse("windows(10.0.17763+win32k)/x86_64"))
    'windows(10.0.17763+win32k)/amd64'
    """

    os: str
    architecture: str
    variant: str = ""
    os_version: str = ""
    os_features: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Platform:
        """Parse ``os[(version[+feature...])]/arch[/variant]``, or only the system or the architecture.

        Raises `InvalidArgument`.
        """
        first, *rest = text.split("/")
        system = re.fullmatch(_SYSTEM, first)
        rest = [part.lower() for part in rest]
        if system is None or len(rest) > 2 or not all(re.fullmatch(_PART, part) for part in rest):
            raise InvalidArgument(
                f"parse platform {text[:100]!r}", "not a platform", hint="write it as linux/arm64/v8"
            )
        name = system[1].lower()
        name = "darwin" if name == "macos" else name
        variant = rest[1] if len(rest) > 1 else ""
        if rest:
            architecture = rest[0]
        elif name in _SYSTEMS or system[2] is not None:
            here = host_platform()
            architecture, variant = here.architecture, here.variant
        else:
            name, architecture = "linux", name
        architecture, other = _ALIASES.get(architecture, (architecture, ""))
        return cls(
            os=name,
            architecture=architecture,
            variant=variant or other,
            os_version=_decoded(system[2] or ""),
            os_features=tuple(sorted(_decoded(one) for one in (system[3] or "").split("+") if one)),
        )

    def rank(self, wanted: Platform) -> int:
        """How well this platform serves ``wanted``: 0 not at all, more is better, the most for itself."""
        mine, theirs = self._normal(), wanted._normal()
        if mine.os != theirs.os:
            return 0
        features = set(mine.os_features)
        if mine.os == "windows":
            features.discard("win32k")
        steps = _steps(mine, theirs)
        build = _build_rank(mine, theirs)
        if steps is None or build is None or not features.issubset(theirs.os_features):
            return 0
        return max(1, _MOST - steps) << 24 | build << 8 | min(len(features), 0xFF)

    def _normal(self) -> Platform:
        """By the usual names; what documents say has any."""
        system = self.os.lower()
        said, other = _ALIASES.get(self.architecture.lower(), (self.architecture.lower(), ""))
        variant = "" if said == "386" else self.variant.lower() or other
        return Platform(
            os={"macos": "darwin", "": "linux"}.get(system, system),
            architecture=said,
            variant=_USUAL.get(said, {}).get(variant, variant),
            os_version=self.os_version,
            os_features=self.os_features,
        )

    def __str__(self) -> str:
        system = self.os
        if self.os_version or self.os_features:
            options = "+".join(_encoded(part) for part in (self.os_version, *sorted(self.os_features)))
            system = f"{system}({options})"
        return "/".join(part for part in (system, self.architecture, self.variant) if part)


def _decoded(text: str) -> str:
    return unquote(text, errors="replace")


def _encoded(text: str) -> str:
    return re.sub(
        _PLAIN, lambda found: "".join(f"%{byte:02X}" for byte in found[0].encode(errors="replace")), text
    )


def _steps(mine: Platform, theirs: Platform) -> int | None:
    """How far a machine has to step down to what is offered; None if it cannot."""
    offered, wanted = (mine.architecture, theirs.architecture)
    if (offered, mine.variant) == (wanted, theirs.variant):
        return 0
    if wanted == "arm64":
        return _steps_from_arm64(mine, theirs)
    top, low = _version(theirs.variant or "v1"), _version(mine.variant or "v1")
    if wanted == "amd64" and offered == "386":
        return top[0] if top is not None else 1
    if offered != wanted or wanted not in {"amd64", "arm"} or top is None or low is None:
        return None
    least = _LEAST_ARM if wanted == "arm" else 1
    return top[0] - low[0] if least <= low[0] < top[0] and not (top[1] or low[1]) else None


def _steps_from_arm64(mine: Platform, theirs: Platform) -> int | None:
    top, low = _version(theirs.variant or "v8"), _version(mine.variant or "v8")
    if top is None or low is None or not 0 <= top[1] <= _LAST_MINOR.get(top[0], -1):
        return None
    if mine.architecture == "arm":
        return _FOREIGN + 8 - low[0] if _LEAST_ARM <= low[0] <= 8 and not low[1] else None
    if mine.architecture != "arm64":
        return None
    if low[0] == top[0]:
        return top[1] - low[1] if low[1] < top[1] else None
    last = min(top[1] + _NEWER_BY, _LAST_MINOR[8])
    return top[1] + 1 + last - low[1] if (top[0], low[0]) == (9, 8) and low[1] <= last else None


def _version(variant: str) -> tuple[int, int] | None:
    found = re.fullmatch(_VERSION, variant)
    return (int(found[1]), int(found[2] or 0)) if found else None


def _build_rank(mine: Platform, theirs: Platform) -> int | None:
    """How near the version of a Windows image is; 0 where nobody says, None where it does not run."""
    if mine.os != "windows" or not mine.os_version or not theirs.os_version:
        return 0
    if mine.os_version == theirs.os_version:
        return _EXACT_BUILD
    host, image = (re.fullmatch(_BUILD, one.os_version) for one in (theirs, mine))
    if host is None:
        return 0
    if image is None or (int(host[1]), int(host[2])) != (int(image[1]), int(image[2])):
        return None
    here, there = int(host[3]), int(image[3])
    if here < _STABLE_BUILDS[0]:
        return there if here == there else None
    oldest = max((build for build in _STABLE_BUILDS if build < here), default=_STABLE_BUILDS[0])
    return min(there, _EXACT_BUILD - 1) if oldest <= there <= here else None


def host_platform() -> Platform:
    """The platform of this machine."""
    machine = os.uname().machine
    architecture, variant = _MACHINES.get(machine, (machine, ""))
    return Platform(os="linux", architecture=architecture, variant=variant)
