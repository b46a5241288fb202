"""The names in an OCI layout: of its files, and of its images.

Sources: OCI image-layout.md; the annotations are those of image-spec and of containerd.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import msgspec

from orlop.spec.digest import Digest
from orlop.spec.documents import Descriptor
from orlop.spec.reference import Reference

__all__ = ["FULL_NAME", "INDEX", "LAYOUT", "LAYOUT_TEXT", "REF_NAME", "blob_path", "named"]

REF_NAME = "org.opencontainers.image.ref.name"
FULL_NAME = "io.containerd.image.name"
LAYOUT, INDEX = "oci-layout", "index.json"
LAYOUT_TEXT = b'{"imageLayoutVersion":"1.0.0"}'


def blob_path(digest: Digest) -> str:
    """Where a layout has a blob."""
    return f"blobs/{digest.algorithm}/{digest.hex}"


def named(entries: Sequence[tuple[Descriptor, str | None]], taken: Sequence[str]) -> list[Descriptor]:
    """The lines of an index.json: descriptors with their names as annotations, each line once.

    ``taken`` are ref names that others in the layout have.

    >>> one = Descriptor(digest="sha256:" + "0" * 64, size=1)
    >>> [line.annotations[REF_NAME] for line in named([(one, "r.lan/a:1"), (one, "r.lan/b:1")], ["2"])]
    ['r.lan/a:1', 'r.lan/b:1']
    >>> named([(one, "r.lan/a:1")], [])[0].annotations[REF_NAME]
    '1'
    """
    tags = Counter(taken)
    tags.update(tag for _, name in entries if name is not None and (tag := Reference.parse(name).tag))
    lines: list[Descriptor] = []
    for descriptor, name in entries:
        line = descriptor
        if name is not None:
            tag = Reference.parse(name).tag
            ref = tag if tag is not None and tags[tag] == 1 else name
            line = msgspec.structs.replace(descriptor, annotations={FULL_NAME: name, REF_NAME: ref})
        if line not in lines:
            lines.append(line)
    return lines
