"""The verbs on registries, as a protocol, and the values they take and give.

`orlop.remote.verbs.Remote` does them in this process, `orlop.client.registries.RemoteRegistries` has a daemon
do them.  Names are image references as users type them; sizes are bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Protocol

from orlop.observe import Call
from orlop.values import dataclass, field

__all__ = [
    "Artifact",
    "ArtifactFile",
    "Copied",
    "Deleted",
    "Document",
    "PulledFile",
    "Referrer",
    "Registries",
]

_NONE: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """A manifest, an index or a config: its bytes as the registry has them, which have this digest.

    ``name`` is the repository with the digest: what gives these bytes for ever.
    """

    name: str
    media_type: str
    digest: str
    size: int
    data: bytes = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Referrer:
    """A manifest that refers to another: a signature, an SBOM.

    ``artifact_type`` is empty where the registry's list does not say it.
    """

    digest: str
    media_type: str
    size: int
    artifact_type: str = ""
    annotations: Mapping[str, str] = field(default_factory=lambda: _NONE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Deleted:
    """What was deleted: ``digest`` is empty where a tag went and its manifest stays."""

    name: str
    digest: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Copied:
    """What a copy brought.

    ``names`` are the tags (or the digest) it has at the destination now, ``digest`` what they mean,
    ``source_digest`` what the source means: another one where a platform was picked from an index.
    ``manifests`` counts documents, ``blobs`` what they name; of those ``mounted`` were taken from another
    repository there, ``sent`` went over the wire, the rest was there.  ``size`` is the bytes sent.
    """

    names: tuple[str, ...]
    digest: str
    source_digest: str
    media_type: str
    manifests: int = 0
    blobs: int = 0
    mounted: int = 0
    sent: int = 0
    size: int = 0
    referrers: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ArtifactFile:
    """A file to push: where it lies, its media type, and the name it has in the artifact.

    Without a ``name`` it is the path itself where that is relative and without ``..``, else its last part.
    """

    path: str
    media_type: str = "application/octet-stream"
    name: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PulledFile:
    """A file of an artifact: ``path`` is where it lies now, empty for one that has no name and was left."""

    name: str
    path: str
    digest: str
    media_type: str
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """An artifact that was pushed or pulled."""

    name: str
    digest: str
    artifact_type: str
    size: int
    files: tuple[PulledFile, ...] = ()
    annotations: Mapping[str, str] = field(default_factory=lambda: _NONE)


class Registries(Protocol):
    """The verbs that a daemon does, too.  Thread-safe.

    Every method raises `InvalidArgument` for what is not a name, `NotFound` for what a registry does not
    have, `Unauthenticated`, `PermissionDenied` and `Unavailable` as it answers, `DataLoss` for bytes that do
    not have their digest, `ResourceExhausted` past one of `orlop.config.Limits`.
    """

    def tags(
        self, repository: str, *, last: str | None = None, count: int | None = None, call: Call = ...
    ) -> list[str]:
        """The tags of a repository in the registry's order: those after ``last``, ``count`` at most."""
        ...

    def manifest(
        self, name: str, *, platform: str | None = None, config: bool = False, call: Call = ...
    ) -> Document:
        """What a name means: its manifest or index, byte for byte.

        With ``platform`` the manifest of an index that serves it; with ``config`` that manifest's
        configuration (for this machine's platform, unless another is given).
        """
        ...

    def referrers(self, name: str, *, artifact_type: str | None = None, call: Call = ...) -> list[Referrer]:
        """The manifests whose subject is what a name means, those of one type if given."""
        ...

    def delete(self, name: str, *, manifest: bool = False, call: Call = ...) -> Deleted:
        """Delete a tag (the manifest stays), or a manifest by its digest, with all its tags.

        With ``manifest`` a tag stands for the digest that it means.  Where the registry keeps no list of
        referrers, a manifest that has a subject is taken out of the index that stands for it.  Raises
        `Unimplemented` where the registry does not delete (tags).
        """
        ...

    def copy(
        self,
        source: str,
        destination: str,
        *,
        platform: str | None = None,
        all_platforms: bool = False,
        referrers: bool = False,
        tags: tuple[str, ...] = (),
        call: Call = ...,
    ) -> Copied:
        """Copy an image from a registry to a registry; nothing is stored here.  Idempotent.

        An index is copied whole, with all its children (``all_platforms`` says so explicitly); with
        ``platform`` the one manifest that serves it is, so the digest is another.  With ``referrers`` all
        that refers to what is copied comes along.  ``tags`` are further tags at the destination.  No byte
        of a document changes.  What is there is not sent; the tags are written last.
        """
        ...

    def close(self) -> None:
        """Let go of connections.  Idempotent."""
        ...
