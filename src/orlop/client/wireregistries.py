"""The values of `orlop.remote.api` as messages of orlop.v1 and back, by the rules of `orlop.client.wire`."""

from __future__ import annotations

from orlop.client.status import text
from orlop.proto.orlop.v1 import registries_pb2 as pb
from orlop.remote.api import Copied, Deleted, Document, Referrer

__all__ = [
    "copied_from",
    "copied_to",
    "deleted_from",
    "deleted_to",
    "document_from",
    "document_to",
    "referrer_from",
    "referrer_to",
]


def document_to(value: Document) -> pb.ManifestResponse:
    """A manifest, an index or a config."""
    return pb.ManifestResponse(
        name=text(value.name),
        media_type=text(value.media_type),
        digest=value.digest,
        size=value.size,
        data=value.data,
    )


def document_from(message: pb.ManifestResponse) -> Document:
    """The inverse of `document_to`."""
    return Document(
        name=message.name,
        media_type=message.media_type,
        digest=message.digest,
        size=message.size,
        data=message.data,
    )


def referrer_to(value: Referrer) -> pb.Referrer:
    """A manifest that refers to another."""
    return pb.Referrer(
        digest=text(value.digest),
        media_type=text(value.media_type),
        size=value.size,
        artifact_type=text(value.artifact_type),
        annotations={text(key): text(said) for key, said in value.annotations.items()},
    )


def referrer_from(message: pb.Referrer) -> Referrer:
    """The inverse of `referrer_to`."""
    return Referrer(
        digest=message.digest,
        media_type=message.media_type,
        size=message.size,
        artifact_type=message.artifact_type,
        annotations=dict(sorted(message.annotations.items())),  # a map that came from a daemon has no order
    )


def deleted_to(value: Deleted) -> pb.DeleteResponse:
    """What was deleted."""
    return pb.DeleteResponse(name=text(value.name), digest=value.digest)


def deleted_from(message: pb.DeleteResponse) -> Deleted:
    """The inverse of `deleted_to`."""
    return Deleted(name=message.name, digest=message.digest)


def copied_to(value: Copied) -> pb.Copied:
    """What a copy brought."""
    return pb.Copied(
        names=[text(name) for name in value.names],
        digest=value.digest,
        source_digest=value.source_digest,
        media_type=text(value.media_type),
        manifests=value.manifests,
        blobs=value.blobs,
        mounted=value.mounted,
        sent=value.sent,
        size=value.size,
        referrers=value.referrers,
    )


def copied_from(message: pb.Copied) -> Copied:
    """The inverse of `copied_to`."""
    return Copied(
        names=tuple(message.names),
        digest=message.digest,
        source_digest=message.source_digest,
        media_type=message.media_type,
        manifests=message.manifests,
        blobs=message.blobs,
        mounted=message.mounted,
        sent=message.sent,
        size=message.size,
        referrers=message.referrers,
    )
