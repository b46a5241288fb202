"""The confined process that decompresses and parses bytes from outside, and how to talk to it.

`process` is the worker's side: a template, started by exec, forks one worker per layer, which gives
up every right but to the descriptors it was handed.  `client` is ours.  The worker is not believed: it
answers with an index that is decoded and validated like any other hostile input, and the digest of
the bytes it wrote is computed on our side.

A job travels as one SOCK_SEQPACKET message: JSON, and four descriptors (source to read, control to
wait on, tar to write, answer to write).  Control carries 8-byte little-endian numbers: how many bytes
of the source may be read by now; `COMPLETE` is set when there will be no more.  The answer is one
status byte (``+`` or ``-``), then the index, or JSON naming an error class and its texts.
"""

from __future__ import annotations

__all__ = ["COMPLETE", "MAX_JOB"]

COMPLETE = 1 << 63
MAX_JOB = 65_536
