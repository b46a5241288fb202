"""A filter of system calls for a bundle: of a profile of Docker's or podman's, or of a runtime's own.

Docker's and podman's profiles (``/usr/share/containers/seccomp.json``) are templates: which rules count
depends on the machine, the kernel and the capabilities.  What comes out is the runtime-spec's
``linux.seccomp`` (config-linux.md, "Seccomp") for one machine.  Nothing is filtered here.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping
from typing import Any

from orlop.errors import InvalidArgument, from_oserror
from orlop.spec.documents import parse_json

__all__ = ["PROFILES", "find_profile", "seccomp_of"]

# Where podman looks, in this order (containers-common, seccomp.json(5)).
PROFILES = ("/etc/containers/seccomp.json", "/usr/share/containers/seccomp.json")
MAX_PROFILE = 4 << 20  # bytes; Docker's has 16 thousand
_MACHINES = {
    "x86_64": ("amd64", "SCMP_ARCH_X86_64"),
    "aarch64": ("arm64", "SCMP_ARCH_AARCH64"),
    "armv7l": ("arm", "SCMP_ARCH_ARM"),
    "i686": ("386", "SCMP_ARCH_X86"),
    "ppc64le": ("ppc64le", "SCMP_ARCH_PPC64LE"),
    "riscv64": ("riscv64", "SCMP_ARCH_RISCV64"),
    "s390x": ("s390x", "SCMP_ARCH_S390X"),
}
_TOP = ("defaultAction", "defaultErrnoRet", "flags", "listenerPath", "listenerMetadata")
_RULE = ("names", "action", "errnoRet", "args")
_FIRST_NUMBERS = re.compile(r"(\d+)\.(\d+)")


def find_profile(paths: Collection[str] = PROFILES) -> str | None:
    """The profile that this machine's containers have; None where there is none."""
    return next((path for path in paths if os.path.isfile(path)), None)


def seccomp_of(
    path: str, *, capabilities: Collection[str], machine: str | None = None, release: str | None = None
) -> dict[str, object]:
    """The filter that a profile means for a process with these capabilities.

    ``machine`` and ``release`` are uname(2)'s; this machine's unless given.  Raises `InvalidArgument` for
    what is no profile.
    """
    what = f"read the seccomp profile {path}"
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_PROFILE + 1)
    except OSError as exc:
        raise from_oserror(what, exc) from exc
    profile = parse_json(data, what, limit=MAX_PROFILE)
    if not isinstance(profile.get("defaultAction"), str):
        raise InvalidArgument(what, "it has no defaultAction", hint="give a seccomp.json, or --seccomp none")
    rules = profile.get("syscalls") or []
    if not isinstance(rules, list) or not all(_is_rule(rule) for rule in rules):
        raise InvalidArgument(what, "its syscalls are no list of rules")
    here = os.uname()
    arch, native = _MACHINES.get(machine or here.machine, (machine or here.machine, ""))
    kernel = _version(release or here.release)
    found: dict[str, object] = {key: profile[key] for key in _TOP if profile.get(key)}
    architectures = _architectures(profile, native, what)
    if architectures:
        found["architectures"] = architectures
    kept = [
        {key: rule[key] for key in _RULE if rule.get(key) is not None}
        for rule in rules
        if _counts(rule, arch=arch, kernel=kernel, capabilities=capabilities)
    ]
    if kept:
        found["syscalls"] = kept
    return found


def _is_rule(rule: object) -> bool:
    if not isinstance(rule, dict) or not isinstance(rule.get("action"), str):
        return False
    names = rule.get("names")
    return isinstance(names, list) and bool(names) and all(isinstance(name, str) for name in names)


def _architectures(profile: Mapping[str, Any], native: str, what: str) -> list[str]:
    """Those that the profile names, or that its map has for this machine."""
    if isinstance(profile.get("architectures"), list) and profile["architectures"]:
        return list(profile["architectures"])
    for entry in profile.get("archMap") or []:
        if not isinstance(entry, dict):
            raise InvalidArgument(what, "its archMap is no list of objects")
        if native and entry.get("architecture") == native:
            return [native, *(entry.get("subArchitectures") or [])]
    return []


def _counts(
    rule: Mapping[str, Any], *, arch: str, kernel: tuple[int, int], capabilities: Collection[str]
) -> bool:
    """Whether a rule's conditions hold: all that it includes, and none that it excludes."""
    includes, excludes = _object(rule, "includes"), _object(rule, "excludes")
    if includes.get("arches") and arch not in includes["arches"]:
        return False
    if arch in (excludes.get("arches") or ()):
        return False
    if not all(capability in capabilities for capability in includes.get("caps") or ()):
        return False
    if any(capability in capabilities for capability in excludes.get("caps") or ()):
        return False
    least, before = includes.get("minKernel"), excludes.get("minKernel")
    return not (least and kernel < _version(least)) and not (before and kernel >= _version(before))


def _object(rule: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = rule.get(key)
    return value if isinstance(value, dict) else {}


def _version(text: object) -> tuple[int, int]:
    numbers = _FIRST_NUMBERS.match(str(text))
    return (int(numbers[1]), int(numbers[2])) if numbers else (0, 0)
