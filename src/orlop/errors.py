"""The error classes every room raises, and the one place that turns an OSError into one of them.

The classes follow the gRPC status codes, so a caller meets the same class from the library, from
the daemon and, as an exit code, from the command line.  An error reads ``verb object: reason`` and
may carry a hint that says what to do next.

This module knows nothing of gRPC or of exit codes: `orlop.service` and `orlop.cli` hold those maps.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping

from orlop.hints import ClassVar

__all__ = [
    "Aborted",
    "AlreadyExists",
    "Cancelled",
    "DataLoss",
    "DeadlineExceeded",
    "Error",
    "FailedPrecondition",
    "Internal",
    "InvalidArgument",
    "NotFound",
    "OutOfRange",
    "PermissionDenied",
    "ResourceExhausted",
    "Unauthenticated",
    "Unavailable",
    "Unimplemented",
    "by_code",
    "from_oserror",
    "limit_hint",
    "over_limit",
]


class Error(Exception):
    """Base of every error orlop raises on purpose.

    ``attempted`` is what was tried and on what (``prepare /srv/a``), ``reason`` why it did not
    happen, ``hint`` what the caller can do about it, and ``details`` fields for programs.
    The cause, where there is one, is chained as ``__cause__``.
    """

    code: ClassVar[str] = "UNKNOWN"

    def __init__(
        self,
        attempted: str,
        reason: str,
        *,
        hint: str = "",
        details: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(attempted, reason)
        self.attempted = attempted
        self.reason = reason
        self.hint = hint
        self.details: dict[str, str] = dict(details or {})

    def __str__(self) -> str:
        text = f"{self.attempted}: {self.reason}" if self.attempted else self.reason
        return f"{text} ({self.hint})" if self.hint else text


class NotFound(Error):
    """The named thing is not there."""

    code = "NOT_FOUND"


class AlreadyExists(Error):
    """The name or the path is taken."""

    code = "ALREADY_EXISTS"


class InvalidArgument(Error):
    """The request itself is wrong, whatever the state of the store."""

    code = "INVALID_ARGUMENT"


class FailedPrecondition(Error):
    """The store or the machine is not in the state that the call needs."""

    code = "FAILED_PRECONDITION"


class OutOfRange(Error):
    """A place in a file that is not where the call may begin: look where it ends, and go on there."""

    code = "OUT_OF_RANGE"


class Unavailable(Error):
    """Something we depend on does not answer; trying again may help."""

    code = "UNAVAILABLE"


class DataLoss(Error):
    """Bytes are not what their name says."""

    code = "DATA_LOSS"


class PermissionDenied(Error):
    """The caller may not do this."""

    code = "PERMISSION_DENIED"


class ResourceExhausted(Error):
    """A disk is full, or a limit of the configuration was reached."""

    code = "RESOURCE_EXHAUSTED"


class Unimplemented(Error):
    """This build, kernel or driver cannot do it."""

    code = "UNIMPLEMENTED"


class Aborted(Error):
    """Another call won; look again and decide."""

    code = "ABORTED"


class Unauthenticated(Error):
    """Credentials are missing or were refused."""

    code = "UNAUTHENTICATED"


class Cancelled(Error):
    """The caller gave up."""

    code = "CANCELLED"


class DeadlineExceeded(Error):
    """The caller's time is over."""

    code = "DEADLINE_EXCEEDED"


class Internal(Error):
    """A promise of our own was broken: a bug."""

    code = "INTERNAL"


_BY_CODE: dict[str, type[Error]] = {cls.code: cls for cls in Error.__subclasses__()}


def by_code(code: str) -> type[Error]:
    """The class for a gRPC status name such as ``NOT_FOUND``; `Error` where there is none."""
    return _BY_CODE.get(code, Error)


_BY_ERRNO: dict[int, type[Error]] = {
    errno.ENOENT: NotFound,
    errno.ENOTDIR: FailedPrecondition,
    errno.EISDIR: FailedPrecondition,
    errno.EEXIST: AlreadyExists,
    errno.EACCES: PermissionDenied,
    errno.EPERM: PermissionDenied,
    errno.EROFS: FailedPrecondition,
    errno.EBUSY: FailedPrecondition,
    errno.ENOTEMPTY: FailedPrecondition,
    errno.ENOSPC: ResourceExhausted,
    errno.EDQUOT: ResourceExhausted,
    errno.EMFILE: ResourceExhausted,
    errno.ENFILE: ResourceExhausted,
    errno.ENOMEM: ResourceExhausted,
    errno.EFBIG: ResourceExhausted,
    errno.EMLINK: ResourceExhausted,
    errno.EIO: DataLoss,
    errno.EINVAL: InvalidArgument,
    errno.ENAMETOOLONG: InvalidArgument,
    errno.ENOSYS: Unimplemented,
    errno.EOPNOTSUPP: Unimplemented,
    errno.ECONNREFUSED: Unavailable,
    errno.ECONNRESET: Unavailable,
    errno.ETIMEDOUT: Unavailable,
}
_HINTS = {errno.EMLINK: "this file system takes no more hard links of one file; the driver erofs makes none"}


def from_oserror(attempted: str, exc: OSError, *, hint: str = "") -> Error:
    """The error class for an errno, with the system's own words as the reason.

    The caller raises it ``from exc``.
    """
    cls = _BY_ERRNO.get(exc.errno or 0, Internal)
    reason = exc.strerror or (os.strerror(exc.errno) if exc.errno else str(exc))
    if isinstance(exc.filename, str | bytes | os.PathLike):  # and not a descriptor's number
        reason = f"{reason}: {os.fsdecode(exc.filename)}"
    hint = hint or _HINTS.get(exc.errno or 0, "")
    return cls(attempted, reason, hint=hint, details={"errno": errno.errorcode.get(exc.errno or 0, "")})


def limit_hint(name: str, *, table: str = "limits") -> str:
    """How a limit is raised, in the words that every error uses.

    ``table`` is where it stands in the configuration file: ``limits``, or ``daemon`` for what clients may
    ask of a daemon.
    """
    return f"raise {table}.{name}, with --limit or in a configuration file: docs/limits.md"


def over_limit(
    name: str, value: int | str, limit: int, *, attempted: str, table: str = "limits"
) -> ResourceExhausted:
    """The error for a limit of the configuration that was passed: it names it and says how to raise it."""
    return ResourceExhausted(
        attempted,
        f"{name} is {value}, the limit is {limit}",
        hint=limit_hint(name, table=table),
        details={"limit": f"{table}.{name}" if table != "limits" else name},
    )
