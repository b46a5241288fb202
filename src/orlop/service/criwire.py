"""CRI's messages (runtime.v1) from and to values; no I/O.  The servicer is `orlop.service.cri`."""

from __future__ import annotations

import base64
import binascii
import json
from urllib.parse import urlsplit

from orlop.client.status import text
from orlop.errors import InvalidArgument, Unavailable
from orlop.images.nodeimages import DiskUse, NodeImage, NodeImageDetails
from orlop.observe import Auth
from orlop.proto.runtime.v1 import images_pb2 as pb
from orlop.spec.reference import Reference

__all__ = ["auth_from", "disk_to", "host_of", "image_to", "info_to", "mark", "subject_of"]

_REGISTRY_UNAVAILABLE = "RegistryUnavailable"  # k8s.io/cri-api, pkg/errors: a kubelet looks for the word


def subject_of(spec: pb.ImageSpec, attempted: str) -> str:
    """The image that a request is about.  Raises `InvalidArgument` for none."""
    if not spec.image:
        raise InvalidArgument(attempted, "image.image: it is empty", details={"field": "image.image"})
    return spec.image


def auth_from(message: pb.AuthConfig, image: str, attempted: str) -> Auth | None:
    """The credentials of a pull; None where a request has none.

    They are for the registry that they name, else for the image's.  A username goes before ``auth``, the
    base64 of both.  Raises `InvalidArgument`, without the secret.
    """
    username, password = message.username, message.password
    if not username and message.auth:
        try:
            decoded = base64.b64decode(message.auth, validate=True).decode()
        except (binascii.Error, ValueError):  # ValueError: what is not ASCII, and not UTF-8
            decoded = ""
        if ":" not in decoded:
            raise InvalidArgument(attempted, "auth.auth is not the base64 of username:password") from None
        username, _, password = decoded.partition(":")
        password = password.strip("\0")  # Docker pads with them
    if not (username or password or message.identity_token or message.registry_token):
        return None
    server = message.server_address
    return Auth(
        username=username,
        password=password,
        identity_token=message.identity_token,
        registry_token=message.registry_token,
        registry=host_of(server, attempted) if server else Reference.parse(image).registry,
    )


def host_of(server: str, attempted: str) -> str:
    """The registry of a server address as credential files have it, with or without scheme and path.

    >>> host_of("https://index.docker.io/v1/", ""), host_of("registry.lan:5000/team", "")
    ('index.docker.io', 'registry.lan:5000')
    """
    try:
        parts = urlsplit(server if "://" in server else f"//{server}")
        host = parts.netloc.rpartition("@")[2]
    except ValueError:
        host = ""
    if not host:
        raise InvalidArgument(attempted, "auth.server_address names no registry")
    return host


def image_to(image: NodeImage, spec: pb.ImageSpec | None = None) -> pb.Image:
    """An image; ``spec`` is what was asked for, and comes back as it is."""
    return pb.Image(
        id=image.id,
        repo_tags=image.tags,
        repo_digests=image.digests,
        size=image.size,
        uid=pb.Int64Value(value=image.uid) if image.uid is not None else None,
        username=text(image.username),
        spec=spec,
        pinned=image.pinned,
    )


def info_to(details: NodeImageDetails) -> dict[str, str]:
    """What a verbose status says besides: one document, with the config's own JSON as ``imageSpec``."""
    config = details.config.decode(errors="replace")
    return {"info": f'{{"chainID":{json.dumps(details.chain)},"imageSpec":{config}}}'}


def disk_to(use: DiskUse) -> pb.ImageFsInfoResponse:
    """What images take, and what containers' writable layers do, of one file system."""

    def filesystem(size: int, inodes: int) -> pb.FilesystemUsage:
        return pb.FilesystemUsage(
            timestamp=use.at,
            fs_id=pb.FilesystemIdentifier(mountpoint=text(use.path)),
            used_bytes=pb.UInt64Value(value=size),
            inodes_used=pb.UInt64Value(value=inodes),
        )

    return pb.ImageFsInfoResponse(
        image_filesystems=[filesystem(use.image_bytes, use.image_inodes)],
        container_filesystems=[filesystem(use.root_bytes, use.root_inodes)],
    )


def mark(error: Unavailable) -> None:
    """Begin the error of a pull with the word by which a kubelet knows that a registry does not answer."""
    error.attempted = f"{_REGISTRY_UNAVAILABLE}: {error.attempted}"
