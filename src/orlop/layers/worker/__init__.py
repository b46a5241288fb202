"""The confined processes that decompress and parse bytes from outside, and how to talk to them.

`server` is the template: a process started by exec that has read nothing, forks the workers and sees to
their ends.  `process` is what a worker does, after it gave up every right but to the descriptors it was
handed.  `template` starts the template and `client` runs a layer through its workers; both are ours.

A worker is not believed.  What it says is an index that is decoded and validated like any other hostile
input, and the digest of the bytes it wrote is computed on our side.  A layer that comes in gets two
workers: one decompresses, another indexes the tar that came out of it.  So an index depends on nothing but
the bytes whose digest is the layer's name, and a blob that takes over its decompressor can spoil only itself.

A job travels as one SOCK_SEQPACKET message: JSON, and five descriptors (source to read, control to wait on,
tar to write, answer to write, lifeline).  Control carries 8-byte little-endian numbers: how many bytes of the
source may be read by now; `COMPLETE` is set when there will be no more.  The answer is any number of `BEAT`,
which say that input was taken; one status byte (``+`` or ``-``); then what was asked for (an index, nothing),
or JSON naming an error class and its texts.

The lifeline is a socket between the template and who gave the job; a worker does not have it.  When our end
closes, for whatever reason, the template kills the worker.  When the worker has ended, the template says how,
in JSON, and closes its end.
"""

from __future__ import annotations

__all__ = ["BEAT", "COMPLETE", "DESCRIPTORS", "MAX_JOB", "READ"]

COMPLETE = 1 << 63
MAX_JOB = 65_536
DESCRIPTORS = 5
BEAT = b"."
READ = 1 << 18  # bytes of the source that a worker takes at a time
