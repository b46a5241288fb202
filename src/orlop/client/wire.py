"""The values of `orlop.images.api` as messages of orlop.v1 and back: field by field, both ways.

Those about the store itself are in `orlop.client.wirestore`.

No I/O and no rule of the store.  Invariant: ``from(to(value)) == value`` for every value whose strings
are Unicode; stray bytes in one are shown escaped, since a protobuf string cannot hold them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal, cast

from orlop.client.status import text
from orlop.config import DRIVERS, Driver, PullPolicy
from orlop.errors import Internal, InvalidArgument
from orlop.images.api import (
    Blob,
    CommitOptions,
    ExtraMount,
    FetchedBlobs,
    HeldPlatform,
    IdMap,
    ImageDetails,
    ImageInfo,
    Mount,
    PreparedInfo,
    PrepareOptions,
    PushResult,
    Removed,
)
from orlop.observe import Auth, Progress
from orlop.proto.orlop.v1 import images_pb2, transfer_pb2, types_pb2

__all__ = [
    "auth_from",
    "auth_to",
    "blobs_from",
    "blobs_to",
    "commit_options_from",
    "commit_options_to",
    "details_from",
    "details_to",
    "image_from",
    "image_to",
    "mount_from",
    "mount_to",
    "platforms_to",
    "prepare_options_from",
    "prepare_options_to",
    "progress_from",
    "progress_to",
    "pushed_from",
    "pushed_to",
    "removed_from",
    "removed_to",
    "root_from",
    "root_to",
    "warning_to",
]

_KINDS: dict[Literal["active", "view"], types_pb2.RootKind.ValueType] = {
    "active": types_pb2.ROOT_KIND_ACTIVE,
    "view": types_pb2.ROOT_KIND_VIEW,
}
_POLICIES: dict[PullPolicy | None, types_pb2.PullPolicy.ValueType] = {
    None: types_pb2.PULL_POLICY_UNSPECIFIED,
    "missing": types_pb2.PULL_POLICY_MISSING,
    "never": types_pb2.PULL_POLICY_NEVER,
    "always": types_pb2.PULL_POLICY_ALWAYS,
}
_DRIVERS: tuple[Driver, ...] = ("auto", *DRIVERS)
_EXTRAS = ("bind", "tmpfs", "image")
_KIND_OF = {number: kind for kind, number in _KINDS.items()}
_POLICY_OF = {number: policy for policy, number in _POLICIES.items()}


def image_to(value: ImageInfo) -> types_pb2.Image:
    """An image, in short."""
    return types_pb2.Image(
        name=text(value.name),
        id=value.id,
        digest=value.digest,
        platform=text(value.platform),
        created=text(value.created),
        size=value.size,
        layers=value.layers,
        used=value.used,
        labels={text(key): text(label) for key, label in value.labels.items()},
        index=value.index,
        platforms=[
            types_pb2.HeldPlatform(platform=text(one.platform), id=one.id, digest=one.digest)
            for one in value.platforms
        ],
    )


def image_from(message: types_pb2.Image) -> ImageInfo:
    """The inverse of `image_to`."""
    return ImageInfo(
        name=message.name,
        id=message.id,
        digest=message.digest if message.HasField("digest") else None,
        platform=message.platform,
        created=message.created,
        size=message.size,
        layers=message.layers,
        used=message.used,
        labels=dict(sorted(message.labels.items())),  # a map that came from a daemon has no order
        index=message.index if message.HasField("index") else None,
        platforms=tuple(
            HeldPlatform(platform=one.platform, id=one.id, digest=one.digest) for one in message.platforms
        ),
    )


def platforms_to(value: str | Sequence[str] | None) -> tuple[str, ...]:
    """The platforms that a caller asks for."""
    return (value,) if isinstance(value, str) else tuple(value or ())


def mount_to(value: Mount) -> types_pb2.Mount:
    """One mount."""
    return types_pb2.Mount(
        type=value.type,
        source=text(value.source),
        target=text(value.target),
        options=_texts(value.options),
    )


def mount_from(message: types_pb2.Mount) -> Mount:
    """The inverse of `mount_to`."""
    return Mount(
        type=message.type, source=message.source, target=message.target, options=tuple(message.options)
    )


def root_to(value: PreparedInfo) -> types_pb2.Root:
    """A prepared root."""
    return types_pb2.Root(
        path=text(value.path),
        image=text(value.image),
        image_id=value.image_id,
        kind=_KINDS[value.kind],
        driver=value.driver,
        mounted=value.mounted,
        created=value.created,
        mounts=[mount_to(mount) for mount in value.mounts],
        labels={text(key): text(label) for key, label in value.labels.items()},
        quota=value.quota,
        uid_map=_maps_to(value.uid_map),
        gid_map=_maps_to(value.gid_map),
        missing=value.missing,
    )


def root_from(message: types_pb2.Root) -> PreparedInfo:
    """The inverse of `root_to`.  Raises `Internal` for a kind that a newer daemon may know."""
    kind = _KIND_OF.get(message.kind)
    if kind is None:
        raise Internal(f"read the root at {message.path}", f"its kind is unknown: {message.kind}")
    return PreparedInfo(
        path=message.path,
        image=message.image,
        image_id=message.image_id,
        kind=kind,
        driver=message.driver,
        mounted=message.mounted,
        created=message.created,
        mounts=tuple(mount_from(mount) for mount in message.mounts),
        labels=dict(message.labels),
        quota=message.quota if message.HasField("quota") else None,
        uid_map=_maps_from(message.uid_map),
        gid_map=_maps_from(message.gid_map),
        missing=message.missing,
    )


def _maps_to(values: Iterable[IdMap]) -> list[types_pb2.IdMap]:
    return [types_pb2.IdMap(inside=m.inside, outside=m.outside, size=m.size) for m in values]


def _maps_from(messages: Iterable[types_pb2.IdMap]) -> tuple[IdMap, ...]:
    return tuple(IdMap(inside=m.inside, outside=m.outside, size=m.size) for m in messages)


def details_to(value: ImageDetails) -> images_pb2.InspectResponse:
    """An image, whole."""
    return images_pb2.InspectResponse(
        image=image_to(value.info),
        names=_texts(value.names),
        config=value.config,
        manifest=value.manifest,
        layers=[_layer_to(layer) for layer in value.layers],
    )


def details_from(message: images_pb2.InspectResponse) -> ImageDetails:
    """The inverse of `details_to`."""
    return ImageDetails(
        info=image_from(message.image),
        names=tuple(message.names),
        config=message.config,
        manifest=message.manifest if message.HasField("manifest") else None,
        layers=tuple(_layer_from(layer) for layer in message.layers),
    )


def _layer_to(value: Blob) -> images_pb2.Layer:
    return images_pb2.Layer(
        diff_id=value.diff_id,
        size=value.size,
        entries=value.entries,
        blob=value.blob,
        blob_size=value.blob_size,
        media_type=text(value.media_type),
        blob_present=value.blob_present,
    )


def _layer_from(message: images_pb2.Layer) -> Blob:
    return Blob(
        diff_id=message.diff_id,
        size=message.size,
        entries=message.entries,
        blob=message.blob if message.HasField("blob") else None,
        blob_size=message.blob_size,
        media_type=message.media_type,
        blob_present=message.blob_present,
    )


def prepare_options_to(value: PrepareOptions) -> images_pb2.PrepareOptions:
    """How to prepare a root."""
    return images_pb2.PrepareOptions(
        view=value.view,
        mount=value.mount,
        self_contained=value.self_contained,
        pull=_POLICIES[value.pull],
        platform=value.platform,
        labels=dict(value.labels),
        driver=value.driver,
        quota=value.quota,
        extra=[_extra_to(mount) for mount in value.extra],
        uid_map=_maps_to(value.uid_map),
        gid_map=_maps_to(value.gid_map),
    )


def prepare_options_from(message: images_pb2.PrepareOptions, attempted: str) -> PrepareOptions:
    """The inverse of `prepare_options_to`.

    Raises `InvalidArgument` for a policy, a driver or a type of mount that nobody knows.
    """
    if message.pull not in _POLICY_OF:
        raise InvalidArgument(attempted, f"not a pull policy: {message.pull}")
    if message.HasField("driver") and message.driver not in _DRIVERS:
        raise InvalidArgument(
            attempted, f"no such driver: {message.driver!r}", hint=f"the drivers are {', '.join(_DRIVERS)}"
        )
    return PrepareOptions(
        view=message.view,
        mount=message.mount,
        self_contained=message.self_contained,
        pull=_POLICY_OF[message.pull],
        platform=message.platform if message.HasField("platform") else None,
        labels=dict(message.labels),
        driver=cast("Driver", message.driver) if message.HasField("driver") else None,
        quota=message.quota if message.HasField("quota") else None,
        extra=tuple(_extra_from(mount, attempted) for mount in message.extra),
        uid_map=_maps_from(message.uid_map),
        gid_map=_maps_from(message.gid_map),
    )


def _extra_to(value: ExtraMount) -> images_pb2.ExtraMount:
    return images_pb2.ExtraMount(
        type=value.type, target=value.target, source=value.source, options=value.options
    )


def _extra_from(message: images_pb2.ExtraMount, attempted: str) -> ExtraMount:
    if message.type not in _EXTRAS:
        raise InvalidArgument(
            attempted, f"no such type of mount: {message.type!r}", hint=f"the types are {', '.join(_EXTRAS)}"
        )
    return ExtraMount(
        type=cast('Literal["bind", "tmpfs", "image"]', message.type),
        target=message.target,
        source=message.source,
        options=tuple(message.options),
    )


def commit_options_to(value: CommitOptions) -> images_pb2.CommitOptions:
    """What to record with a commit."""
    return images_pb2.CommitOptions(
        author=value.author,
        message=value.message,
        changes=value.changes,
        created=value.created,
        newest=value.newest,
        exclude=value.exclude,
        squash=value.squash,
        base=value.base,
        annotations=value.annotations,
        freeze=value.freeze,
    )


def commit_options_from(message: images_pb2.CommitOptions) -> CommitOptions:
    """The inverse of `commit_options_to`."""
    return CommitOptions(
        author=message.author,
        message=message.message,
        changes=tuple(message.changes),
        created=message.created if message.HasField("created") else None,
        newest=message.newest if message.HasField("newest") else None,
        exclude=tuple(message.exclude),
        squash=message.squash,
        base=message.base if message.HasField("base") else None,
        annotations=dict(message.annotations),
        freeze=message.freeze,
    )


def auth_to(value: Auth | None) -> types_pb2.Auth | None:
    """Credentials for a call."""
    if value is None:
        return None
    return types_pb2.Auth(
        registry=value.registry,
        username=value.username,
        password=value.password,
        identity_token=value.identity_token,
        registry_token=value.registry_token,
    )


def auth_from(message: types_pb2.Auth) -> Auth:
    """The inverse of `auth_to`."""
    return Auth(
        registry=message.registry,
        username=message.username,
        password=message.password,
        identity_token=message.identity_token,
        registry_token=message.registry_token,
    )


def progress_to(value: Progress) -> types_pb2.Progress:
    """One step of a long call."""
    return types_pb2.Progress(
        item=text(value.item),
        phase=value.phase,
        done=value.done,
        total=value.total,
        rate=value.rate,
        note=text(value.note),
    )


def progress_from(message: types_pb2.Progress) -> Progress:
    """The inverse of `progress_to`."""
    return Progress(
        item=message.item,
        phase=message.phase,
        done=message.done,
        total=message.total,
        rate=message.rate,
        note=message.note,
    )


def warning_to(value: str) -> types_pb2.Warning:
    """Something that the user may want to know."""
    return types_pb2.Warning(text=text(value))


def pushed_to(value: PushResult) -> transfer_pb2.Pushed:
    """Where an image went."""
    return transfer_pb2.Pushed(
        name=value.name, digest=value.digest, size=value.size, names=_texts(value.names)
    )


def pushed_from(message: transfer_pb2.Pushed) -> PushResult:
    """The inverse of `pushed_to`."""
    return PushResult(name=message.name, digest=message.digest, size=message.size, names=tuple(message.names))


def blobs_to(value: FetchedBlobs) -> transfer_pb2.FetchedBlobs:
    """The blobs that were fetched."""
    return transfer_pb2.FetchedBlobs(
        name=value.name, fetched=value.fetched, present=value.present, size=value.size
    )


def blobs_from(message: transfer_pb2.FetchedBlobs) -> FetchedBlobs:
    """The inverse of `blobs_to`."""
    return FetchedBlobs(
        name=message.name,
        fetched=tuple(message.fetched),
        present=tuple(message.present),
        size=message.size,
    )


def removed_to(value: Removed) -> images_pb2.RemoveResponse:
    """What is gone."""
    return images_pb2.RemoveResponse(names=_texts(value.names), freed=value.freed)


def removed_from(message: images_pb2.RemoveResponse) -> Removed:
    """The inverse of `removed_to`."""
    return Removed(names=tuple(message.names), freed=message.freed)


def _texts(values: Iterable[str]) -> list[str]:
    return [text(value) for value in values]
