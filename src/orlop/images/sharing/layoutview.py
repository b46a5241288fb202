"""A share as an OCI layout: its blobs are symbolic links to files of the store.

::

    DIR/
      oci-layout, index.json      as image-layout.md has them; the images' full names are their ref names
      blobs/sha256/<hex>          a link to a layer's tar, a kept blob or a config; or a manifest
      orlop-share.json            whose it is

Invariants: index.json is replaced in one step, after all that it names is there; nothing is ever written
through a link.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import msgspec

from orlop.images.archives.layoutnames import FULL_NAME, INDEX, LAYOUT, LAYOUT_TEXT, REF_NAME, blob_path
from orlop.images.core import Core
from orlop.images.sharing.documents import SharedDocuments
from orlop.linux.files import remove_tree, write_durably
from orlop.spec.documents import OCI_INDEX, Descriptor, Index, encode

__all__ = ["is_whole", "make", "remove"]


def make(core: Core, folder: Path, images: Sequence[SharedDocuments]) -> None:
    """Make the folder show these images and no others."""
    wanted: set[str] = set()
    lines = []
    (folder / "blobs" / "sha256").mkdir(mode=0o755, parents=True, exist_ok=True)
    for image in images:
        for digest, file in image.files:
            (folder / blob_path(digest)).parent.mkdir(mode=0o755, exist_ok=True)
            link(folder / blob_path(digest), file)
            wanted.add(blob_path(digest))
        path = folder / blob_path(image.digest)
        path.parent.mkdir(mode=0o755, exist_ok=True)
        write_durably(path, image.manifest, mode=0o644, sync=core.sync)
        wanted.add(blob_path(image.digest))
        named = Descriptor(media_type=image.media_type, digest=str(image.digest), size=len(image.manifest))
        lines.append(
            msgspec.structs.replace(named, annotations={FULL_NAME: image.name, REF_NAME: image.name})
        )
    write_durably(folder / LAYOUT, LAYOUT_TEXT, mode=0o644, sync=core.sync)
    index = Index(schema_version=2, media_type=OCI_INDEX, manifests=lines)
    write_durably(folder / INDEX, encode(index), mode=0o644, sync=core.sync)
    for algorithm in (folder / "blobs").iterdir():
        for blob in algorithm.iterdir():
            if f"blobs/{algorithm.name}/{blob.name}" not in wanted:
                blob.unlink()


def link(path: Path, target: Path) -> None:
    """Make a symbolic link, or make it lead there."""
    if path.is_symlink() and os.readlink(path) == os.fspath(target):
        return
    beside = path.with_name(f".{path.name}.new")
    beside.unlink(missing_ok=True)
    beside.symlink_to(target)
    beside.rename(path)


def is_whole(folder: Path, images: Sequence[SharedDocuments]) -> bool:
    """Whether all that the images need is there, and every link leads somewhere."""
    digests = [digest for image in images for digest in (image.digest, *(one for one, _ in image.files))]
    return (folder / INDEX).is_file() and all((folder / blob_path(digest)).is_file() for digest in digests)


def remove(folder: Path) -> None:
    """Take away what `make` made; nothing else that is in the folder."""
    for name in (INDEX, LAYOUT, "blobs"):
        remove_tree(folder / name, missing_ok=True)
