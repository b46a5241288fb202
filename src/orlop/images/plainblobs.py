"""Blobs that are nothing but bytes to orlop: those of what an index lists beside its images.

Not layers: nothing is unpacked.  Every byte is hashed before the blob has its name, and durable then.
"""

from __future__ import annotations

from collections.abc import Iterable

from orlop.errors import DataLoss
from orlop.images.core import Core, Lease
from orlop.images.space import needing
from orlop.metadata import layers
from orlop.metadata.db import Transaction
from orlop.observe import Call, Progress, Rate
from orlop.spec.digest import Digest
from orlop.spec.documents import Descriptor
from orlop.spec.reference import Reference

__all__ = ["bring_plain", "fetch_plain"]


def fetch_plain(core: Core, ref: Reference, descriptor: Descriptor, *, lease: Lease, call: Call) -> None:
    """Have a blob from a registry on the lease.  Raises `DataLoss` where its digest or its size differ."""
    digest = descriptor.checked_digest()
    what = f"fetch blob {digest} of {ref.name}"
    with core.locked("blob", digest.hex, call=call, attempted=what):
        if _keep(core, digest, lease, call):
            return
        with core.registry.open_blob(ref, digest, call=call) as stream:
            _write(core, stream, descriptor, what, lease, call)


def bring_plain(
    core: Core, chunks: Iterable[bytes], descriptor: Descriptor, what: str, *, lease: Lease, call: Call
) -> None:
    """Have a blob of somewhere else on the lease.  Raises as `fetch_plain` does."""
    digest = descriptor.checked_digest()
    with core.locked("blob", digest.hex, call=call, attempted=what):
        if not _keep(core, digest, lease, call):
            _write(core, chunks, descriptor, what, lease, call)


def _keep(core: Core, digest: Digest, lease: Lease, call: Call) -> bool:
    """Put a blob on the lease if it is there."""

    def body(tx: Transaction) -> bool:
        there = layers.has_blob(tx, digest)
        if there:
            lease.add(tx, "blob", digest)
        return there

    lease.mark_used()
    return core.db.write(body, call=call)


def _write(
    core: Core, chunks: Iterable[bytes], descriptor: Descriptor, what: str, lease: Lease, call: Call
) -> None:
    """Write, verify, name.  Needs the digest's lock."""
    digest, size = descriptor.checked_digest(), descriptor.size
    hasher, done, rate = digest.hasher(), 0, Rate()
    with needing(core.layout.root, size, what), core.blobs.ingest(digest) as ingest:
        ingest.truncate()
        for chunk in chunks:
            call.check(what)
            done += len(chunk)
            if done > size:
                break
            hasher.update(chunk)
            ingest.write(chunk)
            if rate.add(len(chunk)):
                progress = Progress(item=digest, phase="fetching", done=done, total=size, rate=rate.rate)
                call.observer.progress(progress)
        if done != size or hasher.hexdigest() != digest.hex:
            ingest.discard()
            many = f"more than {size}" if done > size else str(done)
            reason = (
                f"it has {many} bytes, its descriptor says {size}" if done != size else "it has other bytes"
            )
            raise DataLoss(what, reason)
        ingest.publish()

    def name(tx: Transaction) -> None:
        layers.add_blob(tx, digest, size)
        lease.add(tx, "blob", digest)

    core.db.write(name, call=call)
    call.observer.progress(Progress(item=digest, phase="done", done=size, total=size))
