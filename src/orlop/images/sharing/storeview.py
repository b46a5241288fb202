"""A share as an additional image store of containers/storage: what podman and buildah run without a copy.

::

    DIR/
      overlay/<layer>/tree        an EROFS mount: the layer, as overlayfs stacks it
      overlay/<layer>/diff        a link to DIR/overlay/<layer>/tree/root
      overlay/<layer>/link, lower  short names of the layer and of those below it
      overlay/l/<short name>      a link to ../<layer>/diff
      overlay-layers/layers.json  overlay-images/images.json   overlay-images/<image>/   the documents
      overlay-layers/<layer>.tar-split.gz     how podman puts a layer's tar together, to push or save it
      orlop-share.json            whose it is

A layer's id is what containers/image makes of the diff IDs, an image's that of its config.  Where the mount
is missing ``diff`` leads nowhere, so nobody takes an empty folder for a layer.

Written from what podman 4.3 and buildah 1.28 write themselves (containers/storage 1.43); they only read it.

Invariants: a mount is there before a document names its layer; documents are replaced in one step, layers
before images; only mounts of the share's own are taken away.
"""

from __future__ import annotations

import base64
import errno
import hashlib
import os
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path

from orlop.errors import FailedPrecondition, from_oserror
from orlop.images.core import Core
from orlop.images.sharing.documents import SharedDocuments
from orlop.images.sharing.layoutview import link
from orlop.layers.tarsplit import tar_split
from orlop.linux import mount, mountinfo
from orlop.linux.files import remove_tree, write_durably
from orlop.linux.sync import Sync
from orlop.observe import Call, Progress
from orlop.snapshots.driver import ChainImage
from orlop.spec.digest import DiffID
from orlop.spec.documents import encode

__all__ = ["is_mounted", "is_whole", "layer_id", "make", "remove", "users_of"]

_COMPRESSIONS = {"gzip": 2, "zstd": 4}  # containers/storage, pkg/archive
_PARTS = ("overlay", "overlay-layers", "overlay-images", "overlay-containers", "tmp")


def make(
    core: Core,
    folder: Path,
    images: Sequence[SharedDocuments],
    trees: Mapping[str, ChainImage],
    *,
    run_only: bool,
    call: Call,
) -> None:
    """Make the folder show these images and no others; ``trees`` are layers' EROFS images by layer.

    With ``run_only`` no layer is read, and podman cannot push or save them.
    """
    for name in ("overlay/l", "overlay-layers", "overlay-images"):
        (folder / name).mkdir(mode=0o755, parents=True, exist_ok=True)
    layers: dict[str, dict[str, object]] = {}
    for image in images:
        below: list[str] = []
        for number, descriptor in enumerate(image.layers):
            name = layer_id(image.diff_ids[: number + 1])
            _layer(folder, name, below, trees[name], core.sync)
            split = folder / "overlay-layers" / f"{name}.tar-split.gz"
            if not run_only and not split.exists():
                _write_split(core, image.diff_ids[number], split, call)
            suffix = descriptor.media_type.rpartition("+")[2].rpartition(".")[2]
            layers[name] = {
                "id": name,
                **({"parent": below[0]} if below else {}),
                "created": image.created or "1970-01-01T00:00:00Z",
                "compressed-diff-digest": descriptor.digest,
                "compressed-size": descriptor.size,
                "diff-digest": str(image.diff_ids[number]),
                "diff-size": image.sizes[number],
                "compression": _COMPRESSIONS.get(suffix, 0),
            }
            below.insert(0, name)
    listed = _images(core, folder, images)
    _put(core, folder / "overlay-layers", "layers", list(layers.values()))
    _put(core, folder / "overlay-images", "images", listed)
    for entry in (folder / "overlay-images").iterdir():
        if entry.is_dir() and entry.name not in {image.config.hex for image in images}:
            remove_tree(entry)
    for entry in (folder / "overlay").iterdir():
        if entry.name != "l" and entry.name not in layers:
            _unlayer(folder, entry.name)
            (folder / "overlay-layers" / f"{entry.name}.tar-split.gz").unlink(missing_ok=True)


def _write_split(core: Core, diff_id: DiffID, path: Path, call: Call) -> None:
    """Read a layer for what podman needs to have its tar again."""
    call.observer.progress(Progress(item=str(diff_id)[:19], phase="reading"))
    index = core.layers.load_index(diff_id)
    fd = os.open(core.layers.tar(diff_id), os.O_RDONLY | os.O_CLOEXEC)
    beside = path.with_name(f".{path.name}.new")
    try:
        with open(beside, "wb") as file:
            file.writelines(tar_split(index, fd, call=call))
            file.flush()
            core.sync.file(file.fileno())
        beside.rename(path)
    finally:
        os.close(fd)
        beside.unlink(missing_ok=True)


def _images(core: Core, folder: Path, images: Sequence[SharedDocuments]) -> list[dict[str, object]]:
    """The lines of images.json, one for each config, and the documents that they name."""
    found: dict[str, dict[str, object]] = {}
    for image in images:
        if image.config.hex in found:
            names = found[image.config.hex]["names"]
            assert isinstance(names, list)
            names.append(image.name)
            continue
        data = {
            "manifest": image.manifest,
            f"manifest-{image.digest}": image.manifest,
            str(image.config): core.blobs.read(image.config),
        }
        place = folder / "overlay-images" / image.config.hex
        place.mkdir(mode=0o755, exist_ok=True)
        for key, document in data.items():
            write_durably(place / _file_of(key), document, mode=0o644, sync=core.sync)
        top = layer_id(image.diff_ids) if image.diff_ids else ""
        found[image.config.hex] = {
            "id": image.config.hex,
            "digest": str(image.digest),
            "names": [image.name],
            **({"layer": top} if top else {}),
            "metadata": "{}",
            "big-data-names": list(data),
            "big-data-sizes": {key: len(document) for key, document in data.items()},
            "big-data-digests": {
                key: f"sha256:{hashlib.sha256(document).hexdigest()}" for key, document in data.items()
            },
            "created": image.created or "1970-01-01T00:00:00Z",
        }
    return list(found.values())


def _file_of(key: str) -> str:
    """The file of a document: of a plain name itself, of any other its base64."""
    plain = all(letter.isascii() and (letter.isalnum() or letter in ".-_") for letter in key)
    return key if plain else "=" + base64.b64encode(key.encode()).decode()


def _put(core: Core, folder: Path, name: str, document: object) -> None:
    write_durably(folder / f"{name}.json", encode(document), mode=0o644, sync=core.sync)
    # Readers that keep running look at the lock's content for whether to read anew.
    write_durably(folder / f"{name}.lock", secrets.token_hex(32).encode(), mode=0o644, sync=core.sync)


def _short(layer: str) -> str:
    """The short name of a layer: overlayfs takes but a page of options."""
    return base64.b32encode(hashlib.sha256(layer.encode()).digest()).decode()[:26]


def _layer(folder: Path, name: str, below: Sequence[str], tree: ChainImage, sync: Sync) -> None:
    place = folder / "overlay" / name
    for part in ("tree", "work", "merged", "empty"):
        (place / part).mkdir(mode=0o755, parents=True, exist_ok=True)
    _mount(place / "tree", tree)
    link(place / "diff", place / "tree" / "root")  # absolute: podman resolves it by its own rules
    short = _short(name)
    link(folder / "overlay" / "l" / short, Path(f"../{name}/diff"))
    write_durably(place / "link", short.encode(), mode=0o644, sync=sync)
    if below:
        lowers = ":".join(f"l/{_short(layer)}" for layer in below)
        write_durably(place / "lower", lowers.encode(), mode=0o644, sync=sync)


def _mount(point: Path, tree: ChainImage) -> None:
    """Mount a layer unless it is mounted."""
    if mountinfo.erofs_uuid(point) == tree.uuid:
        return
    while mountinfo.is_mount_point(point):
        mount.umount(point)
    fd = mount.mount_erofs(tree.file, tree.devices)
    try:
        mount.move_mount(fd, point)
    finally:
        os.close(fd)


def layer_id(diff_ids: Sequence[DiffID]) -> str:
    """What containers/image calls the last of these layers on those below it (storage_dest.go)."""
    name = diff_ids[0].hex
    for diff_id in diff_ids[1:]:
        name = hashlib.sha256(f"{name}+{diff_id.hex}".encode()).hexdigest()
    return name


def is_mounted(folder: Path, images: Sequence[SharedDocuments], uuids: Mapping[str, bytes]) -> bool:
    """Whether all layers are mounted; ``uuids`` are their EROFS images' by layer."""
    names = {layer_id(image.diff_ids[: n + 1]) for image in images for n in range(len(image.diff_ids))}
    return all(
        mountinfo.erofs_uuid(folder / "overlay" / name / "tree") == uuids.get(name, b"") for name in names
    )


def is_whole(folder: Path, images: Sequence[SharedDocuments]) -> bool:
    """Whether the documents are there."""
    names = ("overlay-layers/layers.json", "overlay-images/images.json")
    documents = [f"overlay-images/{image.config.hex}/manifest" for image in images]
    return all((folder / name).is_file() for name in (*names, *documents))


def users_of(folder: Path) -> list[str]:
    """Where overlays are mounted that stand on the share's layers, as far as this mount namespace shows."""
    inside = os.fsencode(folder) + b"/overlay/"
    return [
        os.fsdecode(entry.target)
        for entry in mountinfo.mount_table()
        if entry.type == "overlay" and inside in (entry.option(b"lowerdir") or b"")
    ]


def remove(folder: Path) -> None:
    """Unmount and take away what `make` made; nothing else that is in the folder."""
    layers = folder / "overlay"
    if layers.is_dir():
        for entry in sorted(layers.iterdir()):
            _unmount(entry / "tree")
    for name in _PARTS:
        remove_tree(folder / name, missing_ok=True)


def _unlayer(folder: Path, name: str) -> None:
    place = folder / "overlay" / name
    _unmount(place / "tree")
    (folder / "overlay" / "l" / _short(name)).unlink(missing_ok=True)
    remove_tree(place)


def _unmount(point: Path) -> None:
    if point.is_symlink():
        return
    while mountinfo.erofs_uuid(point) is not None:
        try:
            mount.umount(point)
        except OSError as exc:
            if exc.errno == errno.EBUSY:
                raise FailedPrecondition(
                    f"unmount {point}", "somebody is in it", hint="leave the folder, then try again"
                ) from exc
            raise from_oserror(f"unmount {point}", exc) from exc
