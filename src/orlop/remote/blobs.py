"""One blob from a registry to a registry: by what is there, by a mount, or through this process.

What goes through is hashed on its way: where it turns out to be other bytes, the upload's last request is
never made and its session is cancelled.  A source that breaks off is opened again where it broke off, as long
as each opening brings something.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from orlop.errors import DataLoss, Unavailable
from orlop.observe import Call, Progress, Rate
from orlop.registry.blobs.sources import Opener
from orlop.registry.client import Registry
from orlop.spec.digest import Digest
from orlop.spec.reference import Reference
from orlop.values import dataclass

__all__ = ["MIN_PROGRESS", "Blob", "Way", "bring", "send"]

SMALL = 1 << 20  # bytes of a blob that is read whole before it is sent
Way = Literal["exists", "mounted", "sent"]
MIN_PROGRESS = 65_536  # bytes that an opening must bring to be followed by another without an end


@dataclass(frozen=True, slots=True, kw_only=True)
class Blob:
    """A blob by its digest, with its size in bytes."""

    digest: Digest
    size: int


def bring(registry: Registry, blob: Blob, source: Reference, target: Reference, *, call: Call) -> Way:
    """Get a blob to the target's repository; how it got there.  Idempotent.

    Raises `DataLoss` for a source with other bytes than the digest's, or of another number.
    """
    call.check(f"copy {blob.digest} to {target.name}")
    if registry.has_blob(target, blob.digest, push=True, call=call) is not None:
        _report(blob, "exists", call)
        return "exists"
    same = source.registry == target.registry and source.repository != target.repository
    if same and registry.mount_blob(target, blob.digest, source.repository, call=call):
        _report(blob, "mounted", call)
        return "mounted"
    attempted = f"copy {blob.digest} from {source.name} to {target.name}"

    def open_at(offset: int) -> Iterator[bytes]:
        return _from_registry(registry, blob, source, offset, attempted, call)

    send(registry, blob, open_at, target, attempted, call=call)
    return "sent"


def send(
    registry: Registry, blob: Blob, source: Opener, target: Reference, attempted: str, *, call: Call
) -> None:
    """Upload a blob from wherever ``source`` has it; a cut upload goes on where the registry says it is.

    Raises `DataLoss`, and the registry gets no blob, where the source has other bytes.
    """
    passing = _Passing(blob, source, attempted, call)
    if blob.size <= SMALL:
        # It is known to be right before anything is sent, and a registry may take it in one request.
        data = b"".join(passing(0))
        known = passing.digest()
        registry.upload_blob(target, lambda at: [data[at:]], digest=known, size=len(data), call=call)
    else:
        # The digest is asked for behind the last byte, and before the request that makes a blob of them.
        registry.upload_blob(target, passing, digest=passing.digest, size=blob.size, call=call)
    _report(blob, "done", call)


class _Passing:
    """A source whose bytes are hashed as they pass for the first time.  Used by one thread.

    What is sent once more after a cut is the registry's to verify: it has the digest.
    """

    def __init__(self, blob: Blob, source: Opener, attempted: str, call: Call) -> None:
        self._blob = blob
        self._source = source
        self._attempted = attempted
        self._call = call
        self._hasher = blob.digest.hasher()
        self._hashed = 0

    def __call__(self, offset: int) -> Iterator[bytes]:
        """The bytes from an offset on that is not beyond what has passed."""
        blob, rate = self._blob, Rate()
        for chunk in self._source(offset):
            offset += len(chunk)
            if offset > blob.size:
                raise DataLoss(self._attempted, f"the source has more than {blob.size} bytes")
            if (new := offset - self._hashed) > 0:
                self._hasher.update(memoryview(chunk)[-new:])
                self._hashed = offset
            if rate.add(len(chunk)):
                step = Progress(
                    item=blob.digest, phase="pushing", done=offset, total=blob.size, rate=rate.rate
                )
                self._call.observer.progress(step)
            yield chunk

    def digest(self) -> Digest:
        """The blob's digest, if that is what has passed."""
        blob, got = self._blob, self._hashed
        if got != blob.size or self._hasher.hexdigest() != blob.digest.hex:
            raise DataLoss(self._attempted, f"the source has other bytes ({got} of {blob.size})")
        return blob.digest


def _from_registry(
    registry: Registry, blob: Blob, source: Reference, offset: int, attempted: str, call: Call
) -> Iterator[bytes]:
    """The blob's bytes from an offset on, however often the connection breaks."""
    while True:
        least = offset + min(MIN_PROGRESS, blob.size - offset)
        try:
            with registry.open_blob(source, blob.digest, offset=offset, call=call) as stream:
                skip = offset - stream.offset  # a registry without ranges begins at the beginning
                for chunk in stream:
                    fresh = chunk[skip:] if skip else chunk
                    skip -= len(chunk) - len(fresh)
                    if offset + len(fresh) > blob.size:
                        more = f"{source.registry} sends more than the {blob.size} bytes of {blob.digest}"
                        raise DataLoss(attempted, more)
                    if fresh:
                        offset += len(fresh)
                        yield fresh
        except Unavailable:
            if offset < least or offset == blob.size:
                raise
            continue
        if offset < least or offset == blob.size:
            return  # whether it is all is looked at when all has passed


def _report(blob: Blob, phase: str, call: Call) -> None:
    call.observer.progress(Progress(item=blob.digest, phase=phase, done=blob.size, total=blob.size))
