"""One layer of an image from its registry, as containerd's labels describe it.

The manifest and the config say which diff ID a blob is claimed to have; before anything is fetched that claim
must fit the name that containerd wants, and afterwards the bytes must fit the claim (`LayerIngest`).
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable

from orlop.images.core import Core, Lease
from orlop.images.indexes import Document, IndexReader
from orlop.images.transfer.ingest import BlobLayer, LayerIngest
from orlop.images.transfer.pull import check_image
from orlop.observe import Call
from orlop.spec.digest import DiffID, Digest
from orlop.spec.documents import Index, Manifest, parse_config, parse_manifest
from orlop.spec.platform import host_platform
from orlop.spec.reference import Reference

__all__ = ["Arrivals"]

_KNOWN = 32  # images whose layers are remembered: containerd asks for one layer after the other


class Arrivals:
    """Fetches layers into one store.  Thread-safe."""

    def __init__(self, core: Core, ingest: LayerIngest) -> None:
        self._core = core
        self._ingest = ingest
        self._guard = threading.Lock()  # guards the images below
        self._images: OrderedDict[tuple[str, str], tuple[BlobLayer, ...]] = OrderedDict()

    def fetch(
        self,
        image: str,
        manifest: str,
        blob: Digest,
        *,
        position: int,
        expected: Callable[[DiffID], bool],
        lease: Lease,
        call: Call,
    ) -> DiffID | None:
        """The layer that an image has as ``blob`` at a position, bottom first; on the lease then.

        ``manifest`` is a digest, or empty where only ``image`` says what is meant.  None where the image does
        not have it there, or with a diff ID that is not ``expected``.  Raises as a pull does.
        """
        ref = Reference.parse(image)
        if manifest:
            ref = ref.with_digest(Digest(manifest))
        layers = self._layers(ref, call)
        found = layers[position] if position < len(layers) else None
        if found is None or found.digest != blob or not expected(found.diff_id):
            return None
        self._ingest.fetch_all(ref, [found], call=call, lease=lease)
        return found.diff_id

    def _layers(self, ref: Reference, call: Call) -> tuple[BlobLayer, ...]:
        """An image's layers, bottom first.  What a digest names is asked for once."""
        key = (str(ref), str(ref.digest or ""))
        with self._guard:
            known = self._images.get(key) if ref.digest is not None else None
            if known is not None:
                self._images.move_to_end(key)
                return known
        found = self._read(ref, call)
        with self._guard:
            self._images[key] = found
            while len(self._images) > _KNOWN:
                self._images.popitem(last=False)
        return found

    def _read(self, ref: Reference, call: Call) -> tuple[BlobLayer, ...]:
        core, limits, what = self._core, self._core.settings.limits, f"fetch layer of {ref}"
        fetched = core.registry.resolve(ref, call=call)
        document = parse_manifest(fetched.data, fetched.descriptor.media_type, what, limits=limits)
        manifest = (
            document if isinstance(document, Manifest) else self._chosen(ref, document, fetched.data, call)
        )
        config = parse_config(core.registry.blob(ref, manifest.config, call=call), what, limits=limits)
        foreign = core.settings.foreign_layers
        diff_ids = check_image(manifest, config, str(ref), limit=limits.layers, foreign=foreign)
        return tuple(
            BlobLayer(
                digest=descriptor.checked_digest(),
                size=descriptor.size,
                media_type=descriptor.media_type,
                diff_id=diff_id,
                urls=tuple(descriptor.urls or ()) if foreign else (),
            )
            for descriptor, diff_id in zip(manifest.layers, diff_ids, strict=True)
        )

    def _chosen(self, ref: Reference, index: Index, data: bytes, call: Call) -> Manifest:
        """The image for this machine."""
        core = self._core
        reader = IndexReader(
            index,
            Document(digest=Digest.of(data), media_type=index.media_type, data=data),
            lambda descriptor: core.registry.manifest(ref, descriptor, call=call),
            limits=core.settings.limits,
            attempted=f"fetch layer of {ref}",
            call=call,
        )
        return reader.choose(host_platform()).manifest
