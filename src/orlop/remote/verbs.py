"""`Remote`: the verbs on registries, done in this process.

Orchestration only: each verb's work is in the module named after it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Self

from orlop.config import Settings
from orlop.errors import InvalidArgument, NotFound
from orlop.observe import Call
from orlop.registry.client import Registry
from orlop.remote.api import Artifact, ArtifactFile, Copied, Deleted, Document, Referrer
from orlop.remote.copying import Copier, Fetched, check_platform, fetch_document, pick
from orlop.remote.names import check_texts, repository_of
from orlop.spec.digest import Digest
from orlop.spec.documents import Manifest, parse_manifest
from orlop.spec.platform import Platform, host_platform
from orlop.spec.reference import Reference

if TYPE_CHECKING:
    from orlop.remote.artifacts import Artifacts

__all__ = ["Remote"]

_CALL = Call()


class Remote:
    """Registries, without a store; satisfies `orlop.remote.api.Registries`.

    Thread-safe; a context manager.  One set of connections and tokens for all its calls.
    """

    def __init__(self, settings: Settings | None = None, *, registry: Registry | None = None) -> None:
        """Connect to nothing yet.  A ``registry`` that is given stays the caller's to close."""
        self.settings = settings or Settings()
        self._owned = registry is None
        self._registry = registry or Registry.of(self.settings)

    def reconfigure(self, settings: Settings) -> None:
        """Go by other settings; a call that runs may see either.  Raises as making one does."""
        registry = Registry.of(settings)
        registry.check_files()
        before, self._registry, self.settings = self._registry, registry, settings
        if self._owned:
            before.close()
        self._owned = True

    def close(self) -> None:
        """Let go of connections.  Idempotent."""
        if self._owned:
            self._registry.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- looking --------------------------------------------------------------------------------

    def tags(
        self, repository: str, *, last: str | None = None, count: int | None = None, call: Call = _CALL
    ) -> list[str]:
        """See `orlop.remote.api.Registries.tags`."""
        ref = repository_of(repository)
        attempted = f"list the tags of {ref.name}"
        check_texts(attempted, last)
        if count is not None and count < 0:
            raise InvalidArgument(attempted, f"count: {count} is negative")
        return self._registry.tags(ref, last=last, count=count, call=call)

    def manifest(
        self, name: str, *, platform: str | None = None, config: bool = False, call: Call = _CALL
    ) -> Document:
        """See `orlop.remote.api.Registries.manifest`."""
        ref = Reference.parse(name)
        attempted = f"fetch manifest {ref}"
        if platform is None and not config:
            found = self._registry.resolve(ref, call=call)
            return _document(ref, found.descriptor.media_type, found.descriptor.checked_digest(), found.data)
        wanted = Platform.parse(platform) if platform is not None else host_platform()
        chosen = self._chosen(ref, wanted, attempted, call)
        if platform is not None:
            check_platform(self._registry, ref, chosen, wanted, self.settings, attempted, call)
        if not config:
            return _document(ref, chosen.document.media_type, chosen.digest, chosen.data)
        assert isinstance(chosen.document, Manifest)
        about = chosen.document.config
        data = self._registry.blob(ref, about, call=call)
        return _document(ref, about.media_type, about.checked_digest(), data)

    def referrers(self, name: str, *, artifact_type: str | None = None, call: Call = _CALL) -> list[Referrer]:
        """See `orlop.remote.api.Registries.referrers`."""
        ref = Reference.parse(name)
        check_texts(f"list the referrers of {ref}", artifact_type)
        found = self._registry.referrers.find(
            ref, self._digest(ref, call), artifact_type=artifact_type, call=call
        )
        return [
            Referrer(
                digest=entry.digest,
                media_type=entry.media_type,
                size=entry.size,
                artifact_type=entry.artifact_type or "",
                annotations=entry.annotations or {},
            )
            for entry in found
        ]

    # -- changing -------------------------------------------------------------------------------

    def delete(self, name: str, *, manifest: bool = False, call: Call = _CALL) -> Deleted:
        """See `orlop.remote.api.Registries.delete`."""
        ref = Reference.parse(name)
        if ref.digest is None and not manifest:
            self._registry.delete(ref, call=call)
            return Deleted(name=str(ref))
        digest = self._digest(ref, call, push=True)
        by_digest = ref.with_digest(digest)
        subject = self._subject(by_digest, call)
        self._registry.delete(by_digest, call=call)
        referrers = self._registry.referrers
        if subject is not None and not referrers.has_api(by_digest, subject, call=call):
            referrers.remove(by_digest, subject, digest, call=call)
        return Deleted(name=str(by_digest), digest=digest)

    def copy(
        self,
        source: str,
        destination: str,
        *,
        platform: str | None = None,
        all_platforms: bool = False,
        referrers: bool = False,
        tags: tuple[str, ...] = (),
        call: Call = _CALL,
    ) -> Copied:
        """See `orlop.remote.api.Registries.copy`."""
        return Copier(self._registry, self.settings).copy(
            source,
            destination,
            platform=platform,
            all_platforms=all_platforms,
            referrers=referrers,
            tags=tags,
            call=call,
        )

    # -- files ----------------------------------------------------------------------------------

    def push_artifact(
        self,
        name: str,
        files: Sequence[ArtifactFile] = (),
        *,
        artifact_type: str | None = None,
        annotations: Mapping[str, str] | None = None,
        subject: str | None = None,
        config: ArtifactFile | None = None,
        call: Call = _CALL,
    ) -> Artifact:
        """Push files as an artifact.  See `orlop.remote.artifacts.Artifacts.push`."""
        return self._artifacts().push(
            name,
            files,
            artifact_type=artifact_type,
            annotations=annotations or {},
            subject=subject,
            config=config,
            call=call,
        )

    def pull_artifact(
        self,
        name: str,
        folder: str,
        *,
        platform: str | None = None,
        force: bool = False,
        call: Call = _CALL,
    ) -> Artifact:
        """Write the files of an artifact into a folder.  See `orlop.remote.artifacts.Artifacts.pull`."""
        return self._artifacts().pull(name, folder, platform=platform, force=force, call=call)

    def _artifacts(self) -> Artifacts:
        from orlop.remote.artifacts import Artifacts

        return Artifacts(self._registry, self.settings)

    # -- shared ---------------------------------------------------------------------------------

    def _chosen(self, ref: Reference, wanted: Platform, attempted: str, call: Call) -> Fetched:
        first = fetch_document(self._registry, ref, self.settings, attempted, call)
        return pick(self._registry, ref, first, wanted, self.settings, attempted, call)

    def _digest(self, ref: Reference, call: Call, *, push: bool = False) -> Digest:
        """What a reference means now; ``push`` asks where one would write.  Raises `NotFound`."""
        if ref.digest is not None:
            return ref.digest
        digest = self._registry.has_manifest(ref, push=push, call=call)
        if digest is None and push:  # one that does not tell digests is asked for the manifest
            digest = self._registry.has_manifest(ref, call=call)
        if digest is None:
            raise NotFound(f"look for {ref}", "the registry has no such manifest")
        return digest

    def _subject(self, ref: Reference, call: Call) -> Digest | None:
        """What a manifest refers to, where it says so."""
        found = self._registry.resolve(ref, call=call)
        if b'"subject"' not in found.data:
            return None
        document = parse_manifest(
            found.data, found.descriptor.media_type, f"delete {ref}", limits=self.settings.limits
        )
        return document.subject.checked_digest() if document.subject is not None else None


def _document(ref: Reference, media_type: str, digest: Digest, data: bytes) -> Document:
    name = str(ref.with_digest(digest))
    return Document(name=name, media_type=media_type, digest=str(digest), size=len(data), data=data)
