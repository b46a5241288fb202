"""What ``docker save`` wrote, on its way in: with a manifest.json since 1.10, with `repositories` before.

Sources: Docker's image spec v1.2 (manifest.json) and v1 (`legacy`).
"""

from __future__ import annotations

from functools import partial

from orlop.config import over_limit
from orlop.errors import InvalidArgument
from orlop.images.archives.job import Job, made_up
from orlop.images.archives.legacy import V1Images, config_of, parse_repositories
from orlop.images.names import new_name
from orlop.images.naming import Naming
from orlop.images.transfer.ingest import BlobLayer
from orlop.spec.digest import DiffID, Digest
from orlop.spec.documents import OCI_LAYER, DockerImage, parse_config, parse_docker_list

__all__ = ["docker_images", "oldest_images"]


def docker_images(job: Job) -> list[Naming]:
    """The names of an archive with a manifest.json, with their images, which are brought in."""
    what = job.what
    data = job.read("manifest.json", "manifest_size")
    images = parse_docker_list(data, what, limits=job.limits)
    if not images:
        raise InvalidArgument(what, "its manifest.json lists no image")
    job.check_single(len(images))
    job.check_count(sum(max(1, len(image.repo_tags or ())) for image in images))
    names = [
        [job.name] if job.name else [new_name(tag, what) for tag in image.repo_tags or ()] for image in images
    ]
    found: list[Naming] = []
    for image, own in zip(images, names, strict=True):
        found += _docker_image(job, image, own)
    return found


def _docker_image(job: Job, image: DockerImage, names: list[str]) -> list[Naming]:
    limits, what = job.limits, job.what
    job.call.check(what)
    data = job.read(image.config, "config_size")
    config = parse_config(data, what, limits=limits)
    job.platforms.check(config.platform(), what)
    diff_ids = config.diff_ids()
    if len(diff_ids) > limits.layers:
        raise over_limit("layers", len(diff_ids), limits.layers, attempted=what)
    if len(diff_ids) != len(image.layers):
        raise InvalidArgument(what, f"{len(image.layers)} layers for {len(diff_ids)} diff IDs")
    wanted: list[tuple[str, BlobLayer]] = []
    for layer_name, diff_id in zip(image.layers, diff_ids, strict=True):
        # An archive's layers have no digest but their diff ID, which is computed anyway.
        size = job.size_of(layer_name)
        blob = BlobLayer(digest=Digest(diff_id), size=size, media_type=OCI_LAYER, diff_id=diff_id)
        wanted.append((layer_name, blob))
    job.read_layers(wanted, verify=False)
    digest = Digest.of(data)
    job.keep({digest: data})
    names = names or [made_up(job.stem, digest)]
    return [Naming(name=name, config=digest, diff_ids=diff_ids, manifest=None) for name in names]


def oldest_images(job: Job) -> list[Naming]:
    """The same of an archive from before there was a manifest.json."""
    what, limits = job.what, job.limits
    data = job.read("repositories", "manifest_size")
    named = parse_repositories(data, what, limits=limits)
    if not named:
        raise InvalidArgument(what, "its repositories name no image")
    job.check_count(len(named))
    job.check_single(len(set(named.values())))
    names = [(job.name or new_name(name, what), identity) for name, identity in named.items()]
    v1 = V1Images(lambda identity: job.read(f"{identity}/json", "config_size"), what, limits=limits)
    layers: dict[str, DiffID] = {}
    images: dict[str, tuple[Digest, tuple[DiffID, ...]]] = {}
    for _, identity in names:
        if identity not in images:
            images[identity] = _oldest_image(job, v1, identity, layers)
    return [
        Naming(name=name, config=images[identity][0], diff_ids=images[identity][1], manifest=None)
        for name, identity in names
    ]


def _oldest_image(
    job: Job, v1: V1Images, identity: str, layers: dict[str, DiffID]
) -> tuple[Digest, tuple[DiffID, ...]]:
    """One image with its chain; ``layers`` are those of the archive that are known by now."""
    what, limits = job.what, job.limits
    chain = v1.chain(identity)
    top, history = v1.top(identity), v1.history(chain)
    edit = partial(config_of, top, history, what=what, limits=limits)
    job.platforms.check(parse_config(edit(()), what).platform(), what)
    for link in chain:
        if link not in layers:
            job.call.check(what)
            member = job.member(f"{link}/layer.tar")
            layers[link] = job.maker().of_file(member.fd, member.offset, member.size)
            job.source.release()
    diff_ids = tuple(layers[link] for link in chain)
    config = edit(diff_ids)
    digest = Digest.of(config)
    job.keep({digest: config})
    return digest, diff_ids
