"""Push of an index: all that is in it, children first, itself last, each with the digest that it has.

An index is bytes that name bytes: without one of its children it cannot be pushed, for a registry that has it
would promise what it has not.  So nothing is sent before all is known to be here.
"""

from __future__ import annotations

from collections.abc import Sequence

from orlop.errors import DataLoss, FailedPrecondition, InvalidArgument
from orlop.images import names
from orlop.images.api import PushResult
from orlop.images.core import NAMESPACE, Core
from orlop.images.indexes import Document, shorten
from orlop.images.transfer.delivery import Delivery
from orlop.images.transfer.push import remember, targets
from orlop.images.transfer.pushed import Pushed
from orlop.metadata import platforms
from orlop.metadata.db import Transaction
from orlop.metadata.images import ImageRow
from orlop.metadata.platforms import IndexBlob, PlatformRow
from orlop.observe import Call, Progress, stepped
from orlop.spec.digest import Digest
from orlop.spec.documents import Descriptor, Index, Manifest, parse_manifest
from orlop.spec.reference import Reference
from orlop.values import dataclass, field

__all__ = ["plan_of", "push_index", "rows_of"]


@dataclass(slots=True, kw_only=True)
class _Plan:
    """What there is to send, in order; ``missing`` are children that are not here, in words."""

    order: list[Document | PlatformRow] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)


@stepped("push", of=1)
def push_index(
    core: Core, name: str, destination: str | None, *, tags: Sequence[str] = (), call: Call
) -> PushResult:
    """See `orlop.images.api.Images.push`, with ``all_platforms``."""
    what = f"push {name}"
    row = core.db.read(lambda tx: names.require(tx, NAMESPACE, name, what))
    if row.index is None:
        raise FailedPrecondition(
            what,
            "the name means one image, not an index of several",
            hint=f"'orlop pull --all-platforms {row.name}' gets the index, if there is one",
        )
    refs = targets(destination or row.name, tags)
    index, what = row.index, f"push {row.name} to {refs[0]}"
    if refs[0].digest not in (None, index):
        raise InvalidArgument(what, f"the index has the digest {index}")
    with core.lease(what) as lease:
        held, parts = core.db.read(lambda tx: rows_of(tx, row, index))
        lease.keep(*(("config", one.config) for one in held), *(("blob", part.digest) for part in parts))
        plan = plan_of(core, index, {one.manifest: one for one in held}, {one.digest for one in parts}, what)
        if plan.missing:
            raise FailedPrecondition(
                what,
                f"of its index there is not in the store: {shorten(plan.missing)}",
                hint=f"get all with 'orlop pull --all-platforms {row.name}'",
                details={"missing": ", ".join(plan.missing)[:1000]},
            )
        size = 0
        with Delivery(core, refs[0], name=row.name, lease=lease, call=call, what=what) as delivery:
            for thing in plan.order:
                if isinstance(thing, PlatformRow):
                    sent = delivery.image(thing.config, thing.manifest)
                    size += sent.size
                    delivery.put(sent.digest, sent.document, sent.media_type, _child(refs[0], sent.digest))
                    remember(core, sent, refs, lease)
                    continue
                size += len(thing.data)
                if thing.digest != index:
                    size += _artifact(delivery, thing, what)
                    delivery.put(thing.digest, thing.data, thing.media_type, _child(refs[0], thing.digest))
                else:
                    delivery.put(thing.digest, thing.data, thing.media_type, *refs)
        core.db.write(Pushed(name=row.name, digest=index, config=None, size=size, refs=refs).tell)
    call.observer.progress(Progress(item=str(refs[0]), phase="done", done=size, total=size))
    return PushResult(name=str(refs[0]), digest=index, size=size, names=tuple(str(ref) for ref in refs))


def rows_of(tx: Transaction, row: ImageRow, index: Digest) -> tuple[list[PlatformRow], list[IndexBlob]]:
    """What is here of the index that a name means: its images, and the other blobs that it needs."""
    return platforms.platforms_of(tx, NAMESPACE, row.name), platforms.index_blobs(tx, index)


def plan_of(
    core: Core, index: Digest, held: dict[Digest, PlatformRow], parts: set[Digest], what: str
) -> _Plan:
    """What an index needs at a registry, each once, what is needed before what needs it."""
    plan = _Plan()
    seen: set[Digest] = set()

    def add(descriptor: Descriptor) -> None:
        digest = descriptor.checked_digest()
        if digest in seen:
            return
        seen.add(digest)
        if digest in held:
            plan.order.append(held[digest])
        elif digest not in parts:
            platform = descriptor.platform_value() if descriptor.may_be_image() else None
            plan.missing.append(str(platform or f"{digest} ({descriptor.media_type[:100] or 'no type'})"))
        else:
            data = core.blobs.read(digest)
            parsed = parse_manifest(data, descriptor.media_type, what)
            for child in parsed.manifests if isinstance(parsed, Index) else ():
                add(child)
            plan.order.append(Document(digest=digest, media_type=parsed.media_type, data=data))

    add(Descriptor(digest=str(index), size=0))
    if index not in parts:
        raise DataLoss(what, f"what is known of its index {index} is lost", hint="pull it again")
    return plan


def _artifact(delivery: Delivery, document: Document, what: str) -> int:
    """The blobs of what is no image, of a nested index none; returns their bytes."""
    parsed = parse_manifest(document.data, document.media_type, what)
    if not isinstance(parsed, Manifest):
        return 0
    blobs = (parsed.config, *parsed.layers)
    delivery.kept(*(blob.checked_digest() for blob in blobs))
    return sum(blob.size for blob in blobs)


def _child(target: Reference, digest: Digest) -> Reference:
    """A child's place: by its digest, in the repository that the index goes to."""
    return Reference(registry=target.registry, repository=target.repository, digest=digest)
