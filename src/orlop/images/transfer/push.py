"""Push: an image to a registry, under one name or several, without ever changing a digest that is known.

How its blobs get there is `orlop.images.transfer.delivery`'s to find out.  Only where the image has no
manifest yet, or with ``recompress``, a layer may be compressed anew.  Invariant: a name at the registry means
the image only after all its blobs are there; several names get the very same manifest.
"""

from __future__ import annotations

from collections.abc import Sequence

from orlop.errors import InvalidArgument
from orlop.images import names
from orlop.images.api import PushResult
from orlop.images.core import NAMESPACE, Core, Lease
from orlop.images.transfer.delivered import Delivered
from orlop.images.transfer.delivery import Delivery
from orlop.images.transfer.forms import wish_of
from orlop.images.transfer.pushed import Pushed
from orlop.metadata import images, layers
from orlop.metadata.db import Transaction
from orlop.metadata.images import ImageRow, ManifestRow
from orlop.observe import Call, Progress, stepped
from orlop.registry.blobs.foreign import is_foreign
from orlop.spec.reference import Reference

__all__ = ["Pusher", "remember", "targets"]


class Pusher:
    """Pushes images of one store.  Thread-safe."""

    def __init__(self, core: Core) -> None:
        self._core = core

    @stepped("push", of=1)
    def push(
        self,
        name: str,
        destination: str | None,
        *,
        tags: Sequence[str] = (),
        recompress: bool,
        compression: str | None = None,
        level: int | None = None,
        format: str | None = None,  # noqa: A002 - the option's name
        call: Call,
    ) -> PushResult:
        """See `orlop.images.api.Images.push`."""
        core = self._core
        row = core.db.read(lambda tx: names.require(tx, NAMESPACE, name, f"push {name}"))
        refs = targets(destination or row.name, tags)
        what = f"push {row.name} to {refs[0]}"
        if refs[0].digest is not None and not recompress and row.manifest not in (None, refs[0].digest):
            raise InvalidArgument(what, f"the manifest's digest is {row.manifest}")
        wish = wish_of(
            core.settings,
            compression=compression,
            level=level,
            format=format,
            recompress=recompress,
            what=what,
        )
        with (
            core.lease(what) as lease,
            Delivery(core, refs[0], name=row.name, lease=lease, call=call, what=what, wish=wish) as delivery,
        ):
            sent = delivery.image(row.config, row.manifest, recompress=recompress)
            delivery.put(sent.digest, sent.document, sent.media_type, *refs)
            told = Pushed(name=row.name, digest=sent.digest, config=sent.config, size=sent.size, refs=refs)
            if sent.changed:
                core.db.write(told.tell)
                call.observer.warning(
                    f"{refs[0]} is another image than the one here: its ID is {sent.config}"
                )
            else:
                remember(core, sent, refs, lease)
                _name(core, row, sent, refs, told)
        call.observer.progress(Progress(item=str(refs[0]), phase="done", done=sent.size, total=sent.size))
        return PushResult(
            name=str(refs[0]), digest=sent.digest, size=sent.size, names=tuple(str(ref) for ref in refs)
        )


def targets(destination: str, tags: Sequence[str]) -> tuple[Reference, ...]:
    """Where a push goes: to its destination, and to further tags of the same repository; each once.

    >>> [str(ref) for ref in targets("reg.example/a:1", ["2", "1"])]
    ['reg.example/a:1', 'reg.example/a:2']
    """
    first = Reference.parse(destination)
    found = [first]
    for tag in tags:
        ref = Reference.parse(f"{first.name}:{tag}")
        if ref.tag != tag or ref.digest is not None:
            raise InvalidArgument(f"push to {first}", f"not a tag: {tag!r}")
        found.append(ref)
    return tuple(dict.fromkeys(found))


def remember(core: Core, sent: Delivered, refs: Sequence[Reference], lease: Lease) -> None:
    """Know an image's manifest from now on, and where its blobs are."""
    core.write_document(sent.digest, sent.document, lease=lease, call=Call())  # it is pushed: no way back

    def body(tx: Transaction) -> None:
        row = ManifestRow(digest=sent.digest, media_type=sent.media_type, size=len(sent.document))
        images.add_manifest(tx, sent.config, row)
        for descriptor in sent.manifest.layers:
            if descriptor.urls and is_foreign(descriptor.media_type):
                continue  # it may have been left where it lies
            layers.add_source(tx, descriptor.checked_digest(), refs[0].registry, refs[0].repository)

    core.db.write(body)


def _name(core: Core, row: ImageRow, sent: Delivered, refs: Sequence[Reference], told: Pushed) -> None:
    """Names of the image that had no manifest have this one; so have those that it went to."""
    pushed = {str(ref) for ref in refs}

    def body(tx: Transaction) -> None:
        for image in images.images_by_id(tx, NAMESPACE, row.config):
            if image.index is not None or image.manifest == sent.digest:
                continue
            if image.manifest is None or image.name in pushed:
                images.put_image(
                    tx,
                    NAMESPACE,
                    image.name,
                    config=row.config,
                    manifest=sent.digest,
                    platform=image.platform,
                    created=image.created,
                )
        told.tell(tx)

    core.db.write(body)
