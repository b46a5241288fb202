"""An OCI layout with any number of images, as a tar, written in one go.

Sources: OCI image-layout.md and image-index.md; for names also what containerd and Docker 25 write.

::

    oci-layout
    blobs/<algorithm>/<hex>     each once: layers, config and manifest of an image, what an index has besides
    manifest.json               as `docker save` has it, so that an older Docker reads the tar, too
    index.json                  one line for each name

The annotation ``io.containerd.image.name`` is an image's full name; ``org.opencontainers.image.ref.name`` its
tag where no other image in the layout has that, else the full name, too.

Invariants: blobs are what manifests say, byte by byte; index.json comes last, so a layout that lacks it was
cut off; nothing in it depends on when, where or by whom it was written.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from orlop.errors import DataLoss, FailedPrecondition
from orlop.images.archives.chosen import Chosen, check_form, manifest_of, remember
from orlop.images.archives.layoutnames import INDEX, LAYOUT, LAYOUT_TEXT, blob_path, named
from orlop.images.archives.supply import Blob, Supply, Waiting
from orlop.images.archives.tarstream import TarStream
from orlop.images.core import Core, Lease
from orlop.images.indexes import Document, shorten
from orlop.images.transfer.forms import Wish
from orlop.images.transfer.push_index import plan_of, rows_of
from orlop.metadata import images
from orlop.observe import Call
from orlop.spec.digest import DiffID, Digest
from orlop.spec.documents import (
    OCI_CONFIG,
    OCI_INDEX,
    OCI_MANIFEST,
    Descriptor,
    Index,
    Manifest,
    encode,
    parse_manifest,
)
from orlop.values import dataclass, field

__all__ = ["LayoutWriter"]


@dataclass(slots=True, kw_only=True)
class _Image:
    """One image on its way: its manifest where one is known, and the blobs of its layers."""

    config: Digest
    diff_ids: tuple[DiffID, ...]
    known: tuple[Manifest, bytes, Digest] | None
    made: bool  # it has no manifest, and the store is to remember the one that is made
    waiting: list[tuple[str, Waiting | None]] = field(default_factory=list)
    annotations: dict[str, str] = field(default_factory=dict)


class LayoutWriter:
    """Writes one layout to a stream.  Used once."""

    def __init__(
        self,
        core: Core,
        out: TarStream,
        supply: Supply,
        *,
        wish: Wish,
        lease: Lease,
        call: Call,
        what: str,
    ) -> None:
        self._core = core
        self._out = out
        self._supply = supply
        self._wish = wish
        self._lease = lease
        self._call = call
        self._what = what
        self._asked: set[str] = set()  # blobs' digests, and diff IDs of layers in whatever form
        self._forms: dict[str, Descriptor] = {}  # diff ID -> the blob that it went as

    def write(
        self, chosen: Sequence[Chosen], *, recompress: bool, all_platforms: bool, docker: bool
    ) -> list[Digest]:
        """The layout of some images; the digests that they have.  With ``docker`` a manifest.json, too."""
        self._out.data(LAYOUT, LAYOUT_TEXT)
        self._out.folder("blobs")
        if all_platforms:
            plans = [self._index_plan(one) for one in chosen]
        else:
            plans = [
                [self._image(one.row.config, one.row.manifest, one.row.name, recompress)] for one in chosen
            ]
        self._out.total = self._expected(plans)
        entries: list[Descriptor] = []
        for plan in plans:
            descriptor = Descriptor(digest="", size=0)
            for part in plan:
                descriptor = self._artifact(part) if isinstance(part, Document) else self._finish(part)
            entries.append(descriptor)
        if docker:
            self._docker_list(chosen)
        names = [one.name for one in chosen]
        listed = named(list(zip(entries, names, strict=True)), taken=())
        index = Index(schema_version=2, media_type=OCI_INDEX, manifests=listed)
        self._out.data(INDEX, encode(index))
        self._out.finish()
        return [descriptor.checked_digest() for descriptor in entries]

    # -- what is to be written ------------------------------------------------------------------

    def _image(self, config: Digest, manifest: Digest | None, name: str, recompress: bool) -> _Image:
        diff_ids = self._core.layers_of(config, self._what)
        self._lease.keep(("config", config), *(("layer", diff_id) for diff_id in diff_ids))
        known = None
        if manifest is not None and not recompress:
            known = (*manifest_of(self._core, manifest, self._what), manifest)
        image = _Image(config=config, diff_ids=diff_ids, known=known, made=manifest is None)
        if known is None:
            image.annotations = self._annotations(config, manifest)
            image.waiting = [(diff_id, self._ask(diff_id)) for diff_id in diff_ids]
            return image
        check_form(self._core, self._wish, known[0], diff_ids, self._what)
        for descriptor, diff_id in zip(known[0].layers, diff_ids, strict=True):
            waiting = None
            if descriptor.digest not in self._asked:
                waiting = self._supply.known(descriptor, diff_id, name)
                self._asked.add(descriptor.digest)
            image.waiting.append((descriptor.digest, waiting))
        return image

    def _annotations(self, config: Digest, manifest: Digest | None) -> dict[str, str]:
        """What a manifest to be made is annotated with: as the old one was, or as its commit has said."""
        if manifest is not None:
            return manifest_of(self._core, manifest, self._what)[0].annotations or {}
        return self._core.db.read(lambda tx: images.annotations_of(tx, config))

    def _ask(self, diff_id: DiffID) -> Waiting | None:
        if diff_id in self._asked:
            return None
        self._asked.add(diff_id)
        return self._supply.any(diff_id)

    def _index_plan(self, chosen: Chosen) -> list[_Image | Document]:
        core, what, row = self._core, self._what, chosen.row
        index = row.index
        assert index is not None
        held, parts = core.db.read(lambda tx: rows_of(tx, row, index))
        self._lease.keep(*(("config", one.config) for one in held), *(("blob", one.digest) for one in parts))
        plan = plan_of(core, index, {one.manifest: one for one in held}, {one.digest for one in parts}, what)
        if plan.missing:
            raise FailedPrecondition(
                what,
                f"its index lists what is not here: {shorten(plan.missing)}",
                hint=f"'orlop pull --all-platforms {row.name}' gets the rest; without --all-platforms one"
                " image is exported",
            )
        return [
            thing
            if isinstance(thing, Document)
            else self._image(thing.config, thing.manifest, row.name, recompress=False)
            for thing in plan.order
        ]

    def _expected(self, plans: Sequence[Sequence[_Image | Document]]) -> int:
        """Bytes to come, for the progress; 0 where they are not known."""
        total = 0
        for part in (part for plan in plans for part in plan):
            if isinstance(part, Document):
                total += len(part.data)
            elif part.known is None:
                return 0
            else:
                total += sum(layer.size for layer in part.known[0].layers) + len(part.known[1])
        return total

    # -- writing --------------------------------------------------------------------------------

    def _blob(self, blob: Blob) -> None:
        digest = blob.descriptor.checked_digest()
        if self._out.has(blob_path(digest)):
            return
        self._out.folder(f"blobs/{digest.algorithm}")
        self._out.file(blob_path(digest), blob.descriptor.size, blob.chunks())

    def _data(self, digest: Digest, data: bytes) -> None:
        if not self._out.has(blob_path(digest)):
            self._out.folder(f"blobs/{digest.algorithm}")
            self._out.data(blob_path(digest), data)

    def _finish(self, image: _Image) -> Descriptor:
        """Write an image's layers, config and manifest; what an index says of it."""
        for key, waiting in image.waiting:
            if waiting is not None:
                blob = waiting.get()
                self._forms[key] = blob.descriptor
                self._blob(blob)
        media_type = image.known[0].config.media_type if image.known else OCI_CONFIG
        config = self._supply.document(image.config, media_type)
        self._blob(config)
        if image.known is not None:
            manifest, document, digest = image.known
            for layer, diff_id in zip(manifest.layers, image.diff_ids, strict=True):
                self._forms.setdefault(diff_id, layer)
            self._data(digest, document)
            return Descriptor(media_type=manifest.media_type, digest=str(digest), size=len(document))
        made = Manifest(
            schema_version=2,
            media_type=OCI_MANIFEST,
            config=config.descriptor,
            layers=[self._forms[diff_id] for diff_id in image.diff_ids],
            annotations=image.annotations or None,
        )
        document = encode(made)
        digest = Digest.of(document)
        self._data(digest, document)
        if image.made:
            remember(
                self._core, image.config, digest, document, OCI_MANIFEST, lease=self._lease, call=self._call
            )
        return Descriptor(media_type=OCI_MANIFEST, digest=str(digest), size=len(document))

    def _artifact(self, document: Document) -> Descriptor:
        """An index, or what an index lists that is no image, with its blobs."""
        parsed = parse_manifest(document.data, document.media_type, self._what)
        for blob in (parsed.config, *parsed.layers) if isinstance(parsed, Manifest) else ():
            found = self._supply.document(blob.checked_digest(), blob.media_type)
            if found.descriptor.size != blob.size:
                raise DataLoss(self._what, f"blob {blob.digest} has another size than its manifest says")
            self._blob(found)
        self._data(document.digest, document.data)
        return Descriptor(
            media_type=document.media_type, digest=str(document.digest), size=len(document.data)
        )

    def _docker_list(self, chosen: Sequence[Chosen]) -> None:
        """A manifest.json for who reads no index.json: names, configs, and layers in the form they are in."""
        found: dict[Digest, tuple[list[str], list[str]]] = {}
        for one in chosen:
            diff_ids = self._core.layers_of(one.row.config, self._what)
            paths = [
                blob_path(self._forms[diff_id].checked_digest())
                for diff_id in diff_ids
                if diff_id in self._forms
            ]
            if len(paths) == len(diff_ids) and all(map(self._out.has, paths)):
                tags, _ = found.setdefault(one.row.config, ([], paths))
                tags += [one.name] if one.name is not None else []
        lines = [
            {"Config": blob_path(config), "RepoTags": tags or None, "Layers": paths}
            for config, (tags, paths) in found.items()
        ]
        self._out.data("manifest.json", msgspec.json.encode(lines, order="deterministic"))
