"""A registry in memory that speaks the real protocol over loopback, and misbehaves on demand.

It is for tests, of orlop and of programs that use it: blobs, manifests, uploads, mounts, basic and
token authentication, served by threads of `http.server`.  A `Fault` makes the requests it matches go
wrong.  What was asked is kept in ``requests``, so that a test can say what did *not* go over the wire.
It is not a registry to keep images in: nothing is stored, nothing is fast, nothing is safe from its
users.  Source of the protocol: OCI distribution-spec 1.1; distribution's token specification.

    with MemoryRegistry() as registry:
        registry.blobs[digest] = data
        registry.misbehave(Fault(path="/blobs/", cut_after=1000, times=1))
"""

from __future__ import annotations

from orlop.testing.registry.faults import Fault, Seen
from orlop.testing.registry.memory import MemoryRegistry

__all__ = ["Fault", "MemoryRegistry", "Seen"]
