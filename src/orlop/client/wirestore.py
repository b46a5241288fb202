"""The values of `orlop.images.upkeep` as messages of orlop.v1.Store and back; the others are in `wire`.

No I/O and no rule of the store.  Invariant as there: ``from(to(value)) == value``.
"""

from __future__ import annotations

from typing import cast

from orlop.client.status import text
from orlop.errors import Internal
from orlop.images.upkeep import (
    BackedUp,
    Checked,
    Collected,
    DriverInfo,
    Explanation,
    Finding,
    FindingKind,
    ImageUsage,
    Keep,
    Part,
    Pin,
    Reason,
    StoreInfo,
    Usage,
    UsagePart,
)
from orlop.proto.orlop.v1 import store_pb2 as pb

__all__ = [
    "backed_up_from",
    "backed_up_to",
    "checked_from",
    "checked_to",
    "collected_from",
    "collected_to",
    "explanation_from",
    "explanation_to",
    "info_from",
    "info_to",
    "keep_from",
    "keep_to",
    "pin_from",
    "pin_to",
    "usage_from",
    "usage_to",
]

_KINDS = ("damage", "leftover", "warning")


def keep_to(value: Keep) -> pb.Keep:
    """Which images a collection keeps."""
    return pb.Keep(
        age=value.age, count=value.count, size=value.size, free=value.free, labels=map(text, value.labels)
    )


def keep_from(message: pb.Keep) -> Keep:
    """The inverse of `keep_to`."""
    return Keep(
        age=message.age if message.HasField("age") else None,
        count=message.count if message.HasField("count") else None,
        size=message.size if message.HasField("size") else None,
        free=message.free if message.HasField("free") else None,
        labels=tuple(message.labels),
    )


def collected_to(value: Collected) -> pb.Collected:
    """What a collection took."""
    items = (pb.CollectedItem(name=text(name), size=size) for name, size in value.items)
    return pb.Collected(items=items, names=map(text, value.names))


def collected_from(message: pb.Collected) -> Collected:
    """The inverse of `collected_to`."""
    return Collected(
        items=tuple((item.name, item.size) for item in message.items), names=tuple(message.names)
    )


def usage_to(value: Usage) -> pb.UsageResponse:
    """What the store takes on disk."""
    return pb.UsageResponse(
        parts=[
            pb.UsagePart(kind=part.kind, count=part.count, size=part.size, reclaimable=part.reclaimable)
            for part in value.parts
        ],
        images=[
            pb.ImageUsage(id=image.id, names=map(text, image.names), unique=image.unique, shared=image.shared)
            for image in value.images
        ],
        free=value.free,
        capacity=value.capacity,
    )


def usage_from(message: pb.UsageResponse) -> Usage:
    """The inverse of `usage_to`."""
    return Usage(
        parts=tuple(
            UsagePart(kind=part.kind, count=part.count, size=part.size, reclaimable=part.reclaimable)
            for part in message.parts
        ),
        images=tuple(
            ImageUsage(id=image.id, names=tuple(image.names), unique=image.unique, shared=image.shared)
            for image in message.images
        ),
        free=message.free,
        capacity=message.capacity,
    )


def explanation_to(value: Explanation) -> pb.ExplainResponse:
    """Why a thing is kept."""
    return pb.ExplainResponse(
        kind=value.kind,
        name=text(value.name),
        size=value.size,
        kept_by=[
            pb.Reason(kind=reason.kind, name=text(reason.name), note=text(reason.note))
            for reason in value.kept_by
        ],
        parts=[
            pb.Part(
                kind=part.kind,
                name=text(part.name),
                size=part.size,
                shared_with=map(text, part.shared_with),
            )
            for part in value.parts
        ],
        frees=value.frees,
    )


def explanation_from(message: pb.ExplainResponse) -> Explanation:
    """The inverse of `explanation_to`."""
    return Explanation(
        kind=message.kind,
        name=message.name,
        size=message.size,
        kept_by=tuple(
            Reason(kind=reason.kind, name=reason.name, note=reason.note) for reason in message.kept_by
        ),
        parts=tuple(
            Part(kind=part.kind, name=part.name, size=part.size, shared_with=tuple(part.shared_with))
            for part in message.parts
        ),
        frees=message.frees,
    )


def pin_to(value: Pin) -> pb.PinInfo:
    """What a caller keeps."""
    return pb.PinInfo(
        name=text(value.name), kind=value.kind, ref=value.ref, created=value.created, expires=value.expires
    )


def pin_from(message: pb.PinInfo) -> Pin:
    """The inverse of `pin_to`."""
    return Pin(
        name=message.name,
        kind=message.kind,
        ref=message.ref,
        created=message.created,
        expires=message.expires if message.HasField("expires") else None,
    )


def checked_to(value: Checked) -> pb.Checked:
    """What a check found."""
    return pb.Checked(
        findings=[
            pb.Finding(
                kind=finding.kind,
                problem=finding.problem,
                thing=text(finding.thing),
                detail=text(finding.detail),
                affects=map(text, finding.affects),
                action=finding.action,
            )
            for finding in value.findings
        ],
        full=value.full,
        images=value.images,
        layers=value.layers,
        chains=value.chains,
        blobs=value.blobs,
        roots=value.roots,
        bytes=value.bytes,
    )


def checked_from(message: pb.Checked) -> Checked:
    """The inverse of `checked_to`.  Raises `Internal` for a kind of finding that a newer daemon may know."""
    return Checked(
        findings=tuple(_finding_from(finding) for finding in message.findings),
        full=message.full,
        images=message.images,
        layers=message.layers,
        chains=message.chains,
        blobs=message.blobs,
        roots=message.roots,
        bytes=message.bytes,
    )


def _finding_from(message: pb.Finding) -> Finding:
    if message.kind not in _KINDS:
        raise Internal("read a finding", f"its kind is unknown: {message.kind!r}")
    return Finding(
        kind=cast("FindingKind", message.kind),
        problem=message.problem,
        thing=message.thing,
        detail=message.detail,
        affects=tuple(message.affects),
        action=message.action,
    )


def backed_up_to(value: BackedUp) -> pb.BackedUp:
    """A backup."""
    return pb.BackedUp(
        path=text(value.path),
        size=value.size,
        images=value.images,
        layers=value.layers,
        content=value.content,
        roots=value.roots,
    )


def backed_up_from(message: pb.BackedUp) -> BackedUp:
    """The inverse of `backed_up_to`."""
    return BackedUp(
        path=message.path,
        size=message.size,
        images=message.images,
        layers=message.layers,
        content=message.content,
        roots=message.roots,
    )


def info_to(value: StoreInfo) -> pb.InfoResponse:
    """The store and what serves it."""
    return pb.InfoResponse(
        version=value.version,
        root=text(value.root),
        run=text(value.run),
        driver=value.driver,
        format=value.format,
        images=value.images,
        prepared=value.prepared,
        drivers=[
            pb.DriverInfo(name=driver.name, available=driver.available, reason=text(driver.reason))
            for driver in value.drivers
        ],
        privilege=value.privilege,
        features={text(name): text(found) for name, found in value.features.items()},
        limits=value.limits,
    )


def info_from(message: pb.InfoResponse) -> StoreInfo:
    """The inverse of `info_to`."""
    return StoreInfo(
        version=message.version,
        root=message.root,
        run=message.run,
        driver=message.driver,
        format=message.format,
        images=message.images,
        prepared=message.prepared,
        drivers=tuple(
            DriverInfo(name=driver.name, available=driver.available, reason=driver.reason)
            for driver in message.drivers
        ),
        privilege=message.privilege,
        features=dict(message.features),
        limits=dict(message.limits),
    )
