"""Whether a file is open for writing somewhere on this machine, by whatever process.

Asked of the kernel by a lease (fcntl(2), F_SETLEASE): it grants one for reading only while no descriptor and
no shared mapping can write to the file.  The lease is given back at once.
"""

from __future__ import annotations

import errno
import fcntl
import signal

__all__ = ["may_be_written"]

# No lease here: a file of somebody else's without CAP_LEASE, leases switched off, a file system without them.
_UNKNOWN = frozenset({errno.EACCES, errno.EPERM, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOLCK})


def may_be_written(fd: int) -> bool:
    """Whether anybody has a regular file open for writing; True where that cannot be known.

    ``fd`` is open for reading only.
    """
    # Who opens it for writing this very moment has us told; the default, SIGIO, would end the process.
    fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGURG)
    try:
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except OSError as exc:
        if exc.errno == errno.EAGAIN or exc.errno in _UNKNOWN:
            return True
        raise
    fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    return False
