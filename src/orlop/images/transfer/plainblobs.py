"""Blobs that are nothing but bytes to orlop: those of what an index lists beside its images.

Not layers: nothing is unpacked.  Every byte is hashed before the blob has its name, and durable then; a
download that is interrupted goes on where it stopped.
"""

from __future__ import annotations

from orlop.content.ingests import Ingest
from orlop.errors import DataLoss, Error
from orlop.images.core import Core, Lease
from orlop.images.space import needing
from orlop.images.transfer.sources import SourceGone, from_registry
from orlop.metadata import layers
from orlop.metadata.db import Transaction
from orlop.observe import Call, Progress, Rate, count
from orlop.registry.blobs.sources import Opener
from orlop.spec.digest import Digest
from orlop.spec.documents import Descriptor
from orlop.spec.reference import Reference

__all__ = ["bring_plain", "complete", "fetch_plain"]


def fetch_plain(core: Core, ref: Reference, descriptor: Descriptor, *, lease: Lease, call: Call) -> None:
    """Have a blob from a registry on the lease.  Raises `DataLoss` where its digest or its size differ."""
    digest = descriptor.checked_digest()
    what = f"fetch blob {digest} of {ref.name}"
    source = from_registry(
        core.registry, ref, digest, size=descriptor.size, retries=core.settings.retries, call=call
    )
    bring_plain(core, source, descriptor, what, lease=lease, call=call)


def bring_plain(
    core: Core, source: Opener, descriptor: Descriptor, what: str, *, lease: Lease, call: Call
) -> None:
    """Have a blob of somewhere else on the lease.  Raises as `fetch_plain` does."""
    digest, size = descriptor.checked_digest(), descriptor.size

    def name(tx: Transaction) -> None:
        layers.add_blob(tx, digest, size)
        lease.add(tx, "blob", digest)

    with core.locked("blob", digest.hex, call=call, attempted=what):
        if _keep(core, digest, lease, call):
            return
        with needing(core.layout.root, size, what), core.blobs.ingest(digest) as ingest:
            try:
                complete(ingest, source, digest, size, what, call)
            except SourceGone as gone:
                if not ingest.held:
                    ingest.discard()
                raise gone.error from gone
            ingest.publish()
        core.db.write(name, call=call)
    call.observer.progress(Progress(item=digest, phase="done", done=size, total=size))


def _keep(core: Core, digest: Digest, lease: Lease, call: Call) -> bool:
    """Put a blob on the lease if it is there."""

    def body(tx: Transaction) -> bool:
        there = layers.has_blob(tx, digest) and core.blobs.has(digest)
        if there:
            lease.add(tx, "blob", digest)
        return there

    lease.mark_used()
    return core.db.write(body, call=call)


def complete(ingest: Ingest, source: Opener, digest: Digest, size: int, what: str, call: Call) -> None:
    """Bring a download to its end, verified.  Raises `SourceGone` where the source does not give the bytes.

    What came so far stays then; wrong bytes are thrown away.
    """
    if ingest.size > size or ingest.held > ingest.size:
        ingest.truncate()  # too much, or parts ahead of the front, which a pull of ranges left
    hasher = digest.hasher()
    for chunk in ingest.chunks():
        call.check(what)
        hasher.update(chunk)
    resumed, rate = ingest.size > 0, Rate()
    for chunk in source(ingest.size):
        call.check(what)
        if ingest.size + len(chunk) > size:
            break
        hasher.update(chunk)
        ingest.write(chunk)
        count("fetched_bytes", len(chunk))
        if rate.add(len(chunk)):
            progress = Progress(item=digest, phase="fetching", done=ingest.size, total=size, rate=rate.rate)
            call.observer.progress(progress)
    if ingest.size == size and hasher.hexdigest() == digest.hex:
        return
    ingest.truncate()
    if resumed:  # what was left there was bad, perhaps, and not what came now
        complete(ingest, source, digest, size, what, call)
        return
    error: Error = DataLoss(what, "it comes as other bytes")
    raise SourceGone(error)
