"""The confined processes that decompress and parse bytes from outside, and how to talk to them.

`server` is the template: a process started by exec that has read nothing, forks the workers and sees to
their ends.  `process` is what a worker does, after it gave up every right but to the descriptors it was
handed.  `template` starts the template and `client` runs a layer through its workers; both are ours.

A worker is not believed.  What it says is an index that is decoded and validated like any other hostile
input, and the digest of the bytes it wrote is computed on our side.  A layer that comes in gets two
workers: one decompresses, another indexes the tar that came out of it.  So an index depends on nothing but
the bytes whose digest is the layer's name, and a blob that takes over its decompressor can spoil only itself.

A job travels as one SOCK_SEQPACKET message: JSON, and five descriptors (source to read, control to wait on,
tar to append to, answer to write, lifeline).  Control carries 8-byte little-endian numbers: how many bytes
of the source may be read by now; `COMPLETE` is set when there will be no more.  The answer is any number of
`BEAT`, which say that input was taken, or tar written; one status byte; then what was asked for (``+``: an
index, nothing), JSON naming an error class and its texts (``-``), or the number of the error with which the
disk did not take the tar (``!``).

The tar goes straight into its file, which is hashed on our side while it grows.  So a decompressor that was
taken over must not be able to change what was hashed already.  Its descriptor was opened to append, and the
calls that could change that, or the file in another way, are not among those that seccomp leaves it.  It
says whether seccomp took effect (`APPENDING`) as the first byte of its answer, before it reads a byte of
its source, so while it still is what we forked.  Without that word nothing is looked at before the worker
has ended.

Small layers are an exception: one worker decompresses those of a pull, and has pipes alone (`small`).

The lifeline is a socket between the template and who gave the job; a worker does not have it.  When our end
closes, for whatever reason, the template kills the worker.  When the worker has ended, the template says how,
in JSON, and closes its end.
"""

from __future__ import annotations

import errno

__all__ = ["APPENDING", "BEAT", "COMPLETE", "DESCRIPTORS", "DISK_ERRORS", "MAX_JOB", "READ", "SMALL_TAR"]

COMPLETE = 1 << 63
MAX_JOB = 65_536
DESCRIPTORS = 5
BEAT = b"."
APPENDING = b"a"
READ = 1 << 18  # bytes of the source that a worker takes at a time
SMALL_TAR = 4 << 20  # bytes of a tar that goes through a pipe (`small`)
# What a write may fail with that is about the disk.
DISK_ERRORS = frozenset(
    {
        errno.EBADMSG,  # a checksum of the file system's own
        errno.EDQUOT,
        errno.EFBIG,
        errno.EIO,
        errno.ENODEV,
        errno.ENOSPC,
        errno.ENOTCONN,  # who serves it is gone, as with ESTALE and ETIMEDOUT
        errno.EROFS,
        errno.ESTALE,
        errno.ETIMEDOUT,
        errno.EUCLEAN,  # a damaged file system
    }
)
