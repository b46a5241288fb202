"""Who a user of an image is: ``user[:group]`` looked up in the image's own /etc/passwd and /etc/group.

Not NSS: nothing of the image is run, and the host's accounts do not count.  Sources: image-spec 1.1,
conversion.md, "Config.User"; for the rest Docker.

Invariants: the files are resolved inside the root, read only if they are regular files, and only up to
`MAX_ACCOUNTS` bytes.  A number that is no user id is refused, never cut to fit.
"""

from __future__ import annotations

import errno
import io
from collections.abc import Iterator

from orlop.errors import InvalidArgument, from_oserror
from orlop.linux.files import open_in_root
from orlop.values import dataclass

__all__ = ["MAX_ACCOUNTS", "MAX_GROUPS", "MAX_ID", "User", "resolve_user"]

MAX_ACCOUNTS = 1 << 20  # bytes of /etc/passwd or /etc/group that we read
MAX_ID = (1 << 32) - 2  # (uid_t)-1 means "no change" to the kernel, setresuid(2)
MAX_GROUPS = 65_536  # NGROUPS_MAX, include/uapi/linux/limits.h


@dataclass(frozen=True, slots=True, kw_only=True)
class User:
    """Who a process runs as.  ``groups`` has the supplementary ones, ``gid`` among them."""

    uid: int
    gid: int
    groups: tuple[int, ...]
    home: str


def resolve_user(text: str, *, root_fd: int) -> User:
    """Who ``user[:group]`` is in an image; numbers are taken as they are, names are looked up.

    ``""`` is root.  Without a group it is the user's own from /etc/passwd (0 where there is no entry),
    along with those of /etc/group that list the user.  With one, it is the only one.  Raises
    `InvalidArgument` for a name that is not there, an id too large, and account files that are no
    regular files or too large.
    """
    attempted = f"run as user {text[:100]!r}"
    try:
        text.encode()
    except UnicodeEncodeError as exc:
        raise InvalidArgument(attempted, "the name is not UTF-8") from exc
    user, _, group = text.partition(":")
    entry = _find_user(user or "0", root_fd, attempted)
    uid = entry.uid if entry is not None else _id(user or "0", attempted)
    gid = entry.gid if entry is not None else 0
    groups: list[int] = []
    if group.isascii() and group.isdigit():
        gid = _id(group, attempted)
    elif group:
        gid = _find_group(group, root_fd, attempted)
    elif entry is not None:
        groups = _memberships(entry.name, root_fd, attempted)
    # With the primary group: CVE-2022-36109.
    everyone = tuple(dict.fromkeys([_checked(gid, attempted), *groups]))
    if len(everyone) > MAX_GROUPS:
        raise InvalidArgument(attempted, f"the user is in more than {MAX_GROUPS} groups")
    home = entry.home if entry is not None else "/"
    return User(uid=_checked(uid, attempted), gid=gid, groups=everyone, home=home)


@dataclass(frozen=True, slots=True)
class _Account:
    name: bytes
    uid: int
    gid: int
    home: str


@dataclass(frozen=True, slots=True)
class _Group:
    name: bytes
    gid: int
    members: bytes


def _find_user(user: str, root_fd: int, attempted: str) -> _Account | None:
    """The first matching entry of /etc/passwd; None for a number that has none."""
    numeric = user.isascii() and user.isdigit()
    uid, name = (_id(user, attempted), b"") if numeric else (-1, user.encode())
    for fields in _rows("etc/passwd", root_fd, attempted):
        if len(fields) < 4 or not (fields[2].isdigit() and fields[3].isdigit()):
            continue
        if (_number(fields[2]) == uid) if numeric else (fields[0] == name):
            home = _home(fields[5] if len(fields) > 5 else b"")
            return _Account(fields[0], _number(fields[2]), _number(fields[3]), home)
    if not numeric:
        raise InvalidArgument(attempted, f"the image's /etc/passwd has no user {user[:100]!r}")
    return None


def _find_group(group: str, root_fd: int, attempted: str) -> int:
    name = group.encode()
    for row in _groups(root_fd, attempted):
        if row.name == name:
            return row.gid
    raise InvalidArgument(attempted, f"the image's /etc/group has no group {group[:100]!r}")


def _memberships(name: bytes, root_fd: int, attempted: str) -> list[int]:
    rows = _groups(root_fd, attempted)
    return [_checked(row.gid, attempted) for row in rows if name in row.members.split(b",")]


def _groups(root_fd: int, attempted: str) -> Iterator[_Group]:
    for fields in _rows("etc/group", root_fd, attempted):
        if len(fields) >= 3 and fields[2].isdigit():
            yield _Group(fields[0], _number(fields[2]), fields[3] if len(fields) > 3 else b"")


def _home(field: bytes) -> str:
    try:
        home = field.decode()
    except UnicodeDecodeError:
        return "/"  # the spec is JSON and could not say it
    return home if home.startswith("/") and home.isprintable() else "/"


def _number(digits: bytes) -> int:
    """A number of decimal digits; what is far too long for an id stays too large."""
    short = digits.lstrip(b"0") or b"0"
    return int(short) if len(short) <= 10 else MAX_ID + 1


def _id(digits: str, attempted: str) -> int:
    return _checked(_number(digits.encode()), attempted)


def _checked(number: int, attempted: str) -> int:
    """``number``, if it is a user or group id (CVE-2024-40635: a larger one must not wrap to root)."""
    if number > MAX_ID:
        raise InvalidArgument(attempted, f"an id is larger than {MAX_ID}")
    return number


def _rows(path: str, root_fd: int, attempted: str) -> Iterator[list[bytes]]:
    """The lines of an account file, split into fields; none if there is no such file."""
    try:
        fd = open_in_root(root_fd, path)
    except OSError as exc:
        if exc.errno in {errno.ENOENT, errno.ENOTDIR}:
            return
        raise InvalidArgument(attempted, f"the image's /{path} cannot be read: {exc.strerror}") from exc
    try:
        with open(fd, "rb") as file:
            data = file.read(MAX_ACCOUNTS + 1)
    except OSError as exc:
        raise from_oserror(f"read the image's /{path}", exc) from exc
    if len(data) > MAX_ACCOUNTS:
        raise InvalidArgument(attempted, f"the image's /{path} is larger than {MAX_ACCOUNTS} bytes")
    for line in io.BytesIO(data):  # one at a time: a million lines would be a hundred megabytes
        if not line.startswith(b"#"):
            yield line.rstrip(b"\n").split(b":", 6)
