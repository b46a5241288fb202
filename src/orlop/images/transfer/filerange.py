"""A layer's blob that lies somewhere in a file: whether it is what it is called."""

from __future__ import annotations

import os

from orlop.errors import DataLoss
from orlop.observe import Call, Steps
from orlop.spec.digest import Digest

__all__ = ["verify_range"]


def verify_range(source: int, offset: int, size: int, digest: Digest, call: Call) -> None:
    """Raises `DataLoss` if bytes of a file are not those of a digest, or too few."""
    hasher, steps = digest.hasher(), Steps(call, digest, "reading", total=size)
    at, end = offset, offset + size
    while at < end:
        call.check("import layer")
        chunk = os.pread(source, min(1 << 20, end - at), at)
        if not chunk:
            raise DataLoss(f"import layer {digest}", "the file is shorter than its descriptor says")
        hasher.update(chunk)
        at += len(chunk)
        steps.add(len(chunk))
    if hasher.hexdigest() != digest.hex:
        raise DataLoss(f"import layer {digest}", "the bytes have another digest")
