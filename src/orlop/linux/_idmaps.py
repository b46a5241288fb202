"""Id maps of user namespaces: as values, as the kernel's text, from subuid(5), and written for a process.

What a map means is user_namespaces(7)'s business.  Nothing here makes a namespace.

Sources: map_write() in kernel/user_namespace.c, subuid(5), newuidmap(1).
"""

from __future__ import annotations

import errno
import os
import pwd
from collections.abc import Collection, Sequence
from contextlib import suppress

from orlop.errors import FailedPrecondition, InvalidArgument, PermissionDenied, from_oserror
from orlop.linux._rights import head, status
from orlop.values import dataclass

__all__ = [
    "IdRange",
    "Maps",
    "map_text",
    "parse_map",
    "parse_subordinate",
    "subordinate_ids",
    "usual_maps",
    "why_single_id",
    "write_maps",
]

_LAST_ID = 0xFFFFFFFE  # -1 stands for no id
_PAGE = 4096  # a map is one write of less than a page
_MAX_SUBORDINATE = 100  # ranges; three numbers of ten digits each fit a page 120 times


@dataclass(frozen=True, slots=True, kw_only=True)
class IdRange:
    """``size`` ids that begin with ``inside`` in a user namespace and with ``outside`` in its parent."""

    inside: int
    outside: int
    size: int


Maps = tuple[tuple[IdRange, ...], tuple[IdRange, ...]]  # of user ids, of group ids


def parse_map(text: str) -> tuple[IdRange, ...]:
    """The ranges of a ``/proc/PID/uid_map`` or ``gid_map``, in its order.  ValueError for anything else."""
    rows = (map(int, line.split()) for line in text.splitlines())
    return tuple(IdRange(inside=inside, outside=outside, size=size) for inside, outside, size in rows)


def map_text(ranges: Sequence[IdRange]) -> str:
    """What to write into such a file: the inverse of `parse_map`."""
    return "".join(f"{entry.inside} {entry.outside} {entry.size}\n" for entry in ranges)


def parse_subordinate(text: str, names: Collection[str]) -> tuple[IdRange, ...]:
    """The ranges that subuid(5) text gives to a user of any of these names, numbered inside from 1.

    What is malformed is no range, as for newuidmap(1); nor is one with ids that another has already,
    since the kernel takes no id twice.  Ends before the ids do.
    """
    found: list[IdRange] = []
    inside = 1
    for line in text.splitlines():
        name, _, rest = line.strip().partition(":")
        first, _, count = rest.partition(":")
        if name not in names or not (_is_number(first) and _is_number(count)):
            continue
        outside = int(first)
        size = min(int(count), _LAST_ID + 1 - outside, _LAST_ID + 1 - inside)
        if size < 1 or any(_overlap(entry, outside, size) for entry in found):
            continue
        found.append(IdRange(inside=inside, outside=outside, size=size))
        inside += size
        if len(found) == _MAX_SUBORDINATE:
            break
    return tuple(found)


def _is_number(word: str) -> bool:
    return word.isascii() and word.isdigit() and len(word) <= 10


def _overlap(entry: IdRange, outside: int, size: int) -> bool:
    return entry.outside < outside + size and outside < entry.outside + entry.size


def subordinate_ids(uid: int, *, subuid: str = "/etc/subuid", subgid: str = "/etc/subgid") -> Maps:
    """The subordinate user and group ids of a user, by name or by number; empty where there are none.

    Ranges that a directory service has (``subid:`` in nsswitch.conf) are not seen.
    """
    names = {str(uid)}
    with suppress(KeyError):
        names.add(pwd.getpwuid(uid).pw_name)
    return parse_subordinate(head(subuid), names), parse_subordinate(head(subgid), names)


def usual_maps(uid: int, gid: int, subordinate: Maps = ((), ())) -> Maps:
    """The maps that podman and buildah make: 0 is oneself, from 1 on come the subordinate ids.

    Without subordinate ids of both kinds, 0 is oneself and there is no other.
    """
    users, groups = subordinate if all(subordinate) else ((), ())
    return (
        (IdRange(inside=0, outside=uid, size=1), *users),
        (IdRange(inside=0, outside=gid, size=1), *groups),
    )


def why_single_id(uid: int, subordinate: Maps) -> str | None:
    """What a user lacks for a namespace of many ids, and where it comes from; None if nothing."""
    for ranges, file in zip(subordinate, ("/etc/subuid", "/etc/subgid"), strict=True):
        if not ranges:
            return f"{file} has no line for user {_name(uid)} (usermod --add-subuids, --add-subgids)"
    for program in ("newuidmap", "newgidmap"):
        if not _installed(program):
            return f"{program} is not installed (package uidmap, or shadow-utils)"
    return None


def _name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _installed(program: str) -> bool:
    return any(os.access(os.path.join(folder, program), os.X_OK) for folder in os.get_exec_path())


def write_maps(pid: int, maps: Maps) -> None:
    """Give a process's new namespace its maps."""
    if os.geteuid() == 0 or all(len(ranges) == 1 and ranges[0].size == 1 for ranges in maps):
        if os.geteuid() != 0:  # else a group that denies access could be dropped: user_namespaces(7)
            _write(f"/proc/{pid}/setgroups", "deny")
        for name, ranges in zip(("uid_map", "gid_map"), maps, strict=True):
            _write(f"/proc/{pid}/{name}", map_text(ranges))
    else:
        for program, ranges in zip(("newuidmap", "newgidmap"), maps, strict=True):
            _run_map_program(program, pid, ranges)


def _write(path: str, text: str) -> None:
    if len(text) >= _PAGE:
        raise InvalidArgument("map ids", f"a map of {text.count(chr(10))} ranges; the kernel takes one page")
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, text.encode())
        finally:
            os.close(fd)
    except OSError as exc:
        hint = "no id may be there twice, no map empty" if exc.errno == errno.EINVAL else ""
        raise from_oserror("map ids", exc, hint=hint) from exc


def _run_map_program(program: str, pid: int, ranges: Sequence[IdRange]) -> None:
    import subprocess

    from orlop.linux.programs import find_helper

    found = find_helper(program)
    if found is None:
        raise FailedPrecondition(
            "map ids", f"{program} is not installed", hint="install uidmap, or shadow-utils"
        )
    try:
        done = subprocess.run(
            [found, str(pid), *map_text(ranges).split()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            check=False,
        )
    except OSError as exc:
        raise from_oserror(f"map ids: {program}", exc) from exc
    if done.returncode:
        words = done.stderr.decode("utf-8", "replace").strip() or f"{program} ended with {done.returncode}"
        hint = "does /etc/subuid or /etc/subgid give you these ids?"
        if status("NoNewPrivs") == "1":
            hint = f"{program} cannot get its privileges: no_new_privs is set"
        raise PermissionDenied("map ids", words, hint=hint)
