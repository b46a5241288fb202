"""Artifacts: files in a registry, under the media types that users give.

    manifest
      artifactType  what it is
      config        a file of the user's, or the empty document
      layers        a file each; its name is an annotation, org.opencontainers.image.title
      subject       what it refers to, if anything

A push of the same files is the same digest: nothing of today goes into it.  A pull verifies a file before it
gets its name, and goes on with what an earlier one left.  A folder that was packed as a tar (as oras does)
comes as that tar.
Sources: image-spec, manifest.md, "Guidelines for Artifact Usage", and annotations.md; oras-project/oras for
the names' annotation, the default types and the mark of packed folders.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from orlop.config import Settings, over_limit
from orlop.errors import DataLoss, InvalidArgument, NotFound, Unavailable, from_oserror
from orlop.observe import Call, Progress, Rate, result_of
from orlop.registry.client import Registry
from orlop.remote.api import Artifact, ArtifactFile, PulledFile
from orlop.remote.blobs import MIN_PROGRESS, Blob, send
from orlop.remote.copying import fetch_document, pick
from orlop.remote.files import Folder, Part, check_names
from orlop.remote.names import check_texts, has_tag
from orlop.spec.digest import Digest
from orlop.spec.documents import OCI_MANIFEST, Descriptor, Manifest, encode
from orlop.spec.platform import Platform, host_platform
from orlop.spec.reference import Reference
from orlop.values import dataclass

__all__ = ["EMPTY_TYPE", "TITLE", "UNKNOWN_TYPE", "Artifacts"]

EMPTY = b"{}"
EMPTY_TYPE = "application/vnd.oci.empty.v1+json"
UNKNOWN_TYPE = "application/vnd.unknown.artifact.v1"  # what oras calls what has no type
TITLE = "org.opencontainers.image.title"
UNPACK = "io.deis.oras.content.unpack"
_TYPE = re.compile(
    r"[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]{0,126}/[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]{0,126}"
)  # RFC 6838, 4.2
_CHUNK = 1 << 20
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Source:
    """A file to push: what the manifest says of it, and where its bytes are."""

    descriptor: Descriptor
    path: str | None  # None for the empty document

    @property
    def blob(self) -> Blob:
        """Digest and size."""
        return Blob(digest=self.descriptor.checked_digest(), size=self.descriptor.size)


class Artifacts:
    """Pushes and pulls artifacts.  Thread-safe."""

    def __init__(self, registry: Registry, settings: Settings) -> None:
        self._registry = registry
        self._settings = settings

    # -- push -----------------------------------------------------------------------------------

    def push(
        self,
        name: str,
        files: Sequence[ArtifactFile],
        *,
        artifact_type: str | None,
        annotations: Mapping[str, str],
        subject: str | None,
        config: ArtifactFile | None,
        call: Call,
    ) -> Artifact:
        """Push files under a name.

        One that has a ``subject`` (a manifest of the same repository) and no tag is pushed by its digest
        alone.  Raises `InvalidArgument` for what is no media type, for files of one name and for a file
        that is none.
        """
        ref = Reference.parse(name)
        attempted = f"push {ref}"
        if artifact_type is None and config is None:
            artifact_type = UNKNOWN_TYPE
        for text in [artifact_type, *(file.media_type for file in (*files, *([config] if config else [])))]:
            if text is not None and not _TYPE.fullmatch(text):
                raise InvalidArgument(attempted, f"not a media type: {text[:200]!r}")
        titles = [file.name or _title(file.path) for file in files]
        check_names(titles, self._settings.limits, attempted)
        check_texts(attempted, *annotations, *annotations.values())
        call = call.child()
        about = self._subject(ref, subject, attempted, call) if subject is not None else None
        sources = [
            _hashed(file.path, file.media_type, {TITLE: title}, attempted, call)
            for file, title in zip(files, titles, strict=True)
        ]
        empty = _Source(descriptor=_empty(), path=None)
        about_config = (
            _hashed(config.path, config.media_type, None, attempted, call) if config is not None else empty
        )
        layers = [source.descriptor for source in sources] or [empty.descriptor]
        manifest = Manifest(
            schema_version=2,
            media_type=OCI_MANIFEST,
            artifact_type=artifact_type,
            config=about_config.descriptor,
            layers=layers,
            subject=about,
            annotations=dict(annotations) or None,
        )
        data = encode(manifest)
        digest = Digest.of(data)
        if ref.digest is not None and ref.digest != digest:
            raise InvalidArgument(attempted, f"the artifact's digest is {digest}")
        wanted = {
            source.blob.digest: source for source in (*sources, about_config, *([] if files else [empty]))
        }

        for blob, source in wanted.items():
            call.observer.progress(Progress(item=blob, phase="waiting", total=source.blob.size))

        def upload(source: _Source, call: Call) -> None:
            self._send(source, ref, call)

        self._each(list(wanted.values()), upload, call, at_a_time=self._settings.uploads)
        if about is not None and not has_tag(name):
            ref = ref.with_digest(digest)
        self._registry.put_manifest(ref, data, OCI_MANIFEST, call=call)
        size = len(data) + sum(source.blob.size for source in wanted.values())
        call.observer.progress(Progress(item=str(ref), phase="done", done=size, total=size))
        return Artifact(
            name=str(ref),
            digest=str(digest),
            artifact_type=artifact_type or about_config.descriptor.media_type,
            size=size,
            files=tuple(
                _told(source.descriptor, title, file.path)
                for source, title, file in zip(sources, titles, files, strict=True)
            ),
            annotations=annotations,
        )

    def _subject(self, ref: Reference, subject: str, attempted: str, call: Call) -> Descriptor:
        about = Reference.parse(subject)
        if about.name != ref.name:
            raise InvalidArgument(
                attempted,
                f"its subject is in another repository: {about.name}",
                hint="copy one of them beside the other first: orlop copy",
            )
        digest = about.digest or self._registry.has_manifest(about, push=True, call=call)
        if digest is None:
            raise NotFound(attempted, f"the registry has no {about}, its subject")
        return self._registry.resolve(about.with_digest(digest), call=call).descriptor

    def _send(self, source: _Source, ref: Reference, call: Call) -> None:
        blob, path = source.blob, source.path
        attempted = f"push {path or 'the empty document'} to {ref.name}"
        if self._registry.has_blob(ref, blob.digest, push=True, call=call) is not None:
            call.observer.progress(
                Progress(item=blob.digest, phase="exists", done=blob.size, total=blob.size)
            )
            return

        def open_at(offset: int) -> Iterator[bytes]:
            return _read(path, attempted, offset) if path is not None else iter((EMPTY[offset:],))

        send(self._registry, blob, open_at, ref, attempted, call=call)

    # -- pull -----------------------------------------------------------------------------------

    def pull(self, name: str, folder: str, *, platform: str | None, force: bool, call: Call) -> Artifact:
        """Write an artifact's files into ``folder``, making it if it is not there.  Idempotent.

        Files are called as the artifact says, in folders below ``folder`` alone; what has no name is left
        out with a warning.  Raises `InvalidArgument` for names that lead elsewhere, before anything is
        written, and `AlreadyExists` for a file that is there with other content, unless ``force``.
        """
        ref = Reference.parse(name)
        attempted = f"pull {ref}"
        call = call.child()
        call.observer.progress(Progress(item=str(ref), phase="resolving"))
        first = fetch_document(self._registry, ref, self._settings, attempted, call)
        wanted = Platform.parse(platform) if platform is not None else host_platform()
        chosen = pick(self._registry, ref, first, wanted, self._settings, attempted, call)
        manifest = chosen.document
        assert isinstance(manifest, Manifest)
        limit = self._settings.limits.layers
        if len(manifest.layers) > limit:
            raise over_limit("layers", len(manifest.layers), limit, attempted=attempted)
        titled = [(title, layer) for layer in manifest.layers if (title := _title_of(layer)) is not None]
        check_names([title for title, _ in titled], self._settings.limits, attempted)
        self._warn(manifest, ref, call)
        placed: dict[str, str] = {}
        with Folder(folder, attempted) as into:
            missing: dict[Digest, list[tuple[str, Descriptor]]] = {}
            for title, layer in titled:
                digest = layer.checked_digest()
                if not force and into.has(title, digest, layer.size):
                    placed[title] = os.path.join(into.path, title)
                    call.observer.progress(
                        Progress(item=digest, phase="exists", done=layer.size, total=layer.size)
                    )
                else:
                    missing.setdefault(digest, []).append((title, layer))
                    call.observer.progress(Progress(item=digest, phase="waiting", total=layer.size))

            def fetch(same: list[tuple[str, Descriptor]], call: Call) -> None:
                for title, layer in same:  # one after the other: they share a part
                    placed[title] = self._fetch(ref, title, layer, into, attempted, force=force, call=call)

            self._each(list(missing.values()), fetch, call, at_a_time=self._settings.downloads)
        size = sum(layer.size for _, layer in titled)
        call.observer.progress(Progress(item=str(ref), phase="done", done=size, total=size))
        return Artifact(
            name=str(ref),
            digest=str(chosen.digest),
            artifact_type=manifest.artifact_type or manifest.config.media_type,
            size=size,
            files=tuple(_told(layer, title, placed[title]) for title, layer in titled),
            annotations=manifest.annotations or {},
        )

    @staticmethod
    def _warn(manifest: Manifest, ref: Reference, call: Call) -> None:
        for layer in manifest.layers:
            if (layer.annotations or {}).get(UNPACK) == "true" and _title_of(layer) is not None:
                call.observer.warning(
                    f"{_title_of(layer)} is a folder that was packed as a tar; it stays packed"
                )
            if _title_of(layer) is None and layer.media_type != EMPTY_TYPE:
                call.observer.warning(f"{layer.digest} has no name and is left out ({ref})")

    def _fetch(
        self,
        ref: Reference,
        title: str,
        layer: Descriptor,
        into: Folder,
        attempted: str,
        *,
        force: bool,
        call: Call,
    ) -> str:
        """One file, to its end; where it lies."""
        digest, size = layer.checked_digest(), layer.size
        with into.part(digest) as part:
            try:
                whole = part.resume(size) == size and part.verified()
                if part.size == size and not whole:
                    part.restart()
                self._download(ref, layer, part, attempted, call)
                if not part.verified():
                    part.restart()
                    raise DataLoss(attempted, f"{ref.registry} sent other bytes than {digest} for {title!r}")
            except OSError as exc:
                raise from_oserror(attempted, exc) from exc
            path = into.place(part, title, force=force)
        call.observer.progress(Progress(item=digest, phase="done", done=size, total=size))
        return path

    def _download(self, ref: Reference, layer: Descriptor, part: Part, attempted: str, call: Call) -> None:
        digest, size, rate = layer.checked_digest(), layer.size, Rate()
        while part.size < size:
            begun = part.size
            least = begun + min(MIN_PROGRESS, size - begun)
            try:
                with self._registry.open_blob(ref, digest, offset=begun, call=call) as stream:
                    if stream.offset != begun:
                        part.restart()
                    for chunk in stream:
                        if part.size + len(chunk) > size:
                            raise DataLoss(attempted, f"{ref.registry} sends more than {size} bytes")
                        part.write(chunk)
                        if rate.add(len(chunk)):
                            call.observer.progress(
                                Progress(
                                    item=digest, phase="fetching", done=part.size, total=size, rate=rate.rate
                                )
                            )
            except Unavailable:
                if part.size < least:
                    raise
                continue
            if part.size < least:
                raise DataLoss(attempted, f"{ref.registry} sends {part.size} bytes of {digest}, not {size}")

    # -- both -----------------------------------------------------------------------------------

    @staticmethod
    def _each(things: list[_T], do: Callable[[_T, Call], None], call: Call, *, at_a_time: int) -> None:
        """Do it for each, some side by side; the first failure stops the rest."""
        with ThreadPoolExecutor(at_a_time, thread_name_prefix="artifact") as pool:
            futures = [pool.submit(do, thing, call) for thing in things]
            try:
                for future in futures:
                    result_of(future)
            except BaseException:
                call.cancel.cancel()
                for future in futures:
                    future.cancel()
                raise


def _title(path: str) -> str:
    """The name that a file has in the artifact: its path where that is within here, else its last part."""
    clean = os.path.normpath(path)
    inside = not os.path.isabs(clean) and clean.split("/")[0] != ".."
    return clean if inside else os.path.basename(clean)


def _title_of(layer: Descriptor) -> str | None:
    return (layer.annotations or {}).get(TITLE)


def _told(layer: Descriptor, title: str, path: str) -> PulledFile:
    return PulledFile(
        name=title, path=path, digest=layer.digest, media_type=layer.media_type, size=layer.size
    )


def _empty() -> Descriptor:
    return Descriptor(media_type=EMPTY_TYPE, digest=str(Digest.of(EMPTY)), size=len(EMPTY))


def _hashed(
    path: str, media_type: str, annotations: dict[str, str] | None, attempted: str, call: Call
) -> _Source:
    """A file, read once for its digest: the registry may have it, and then it is not read again."""
    import hashlib

    hasher, size = hashlib.sha256(), 0
    for chunk in _read(path, attempted):
        call.check(attempted)
        hasher.update(chunk)
        size += len(chunk)
    digest = f"sha256:{hasher.hexdigest()}"
    descriptor = Descriptor(media_type=media_type, digest=digest, size=size, annotations=annotations)
    return _Source(descriptor=descriptor, path=path)


def _read(path: str, attempted: str, offset: int = 0) -> Iterator[bytes]:
    """A regular file's bytes from an offset on."""
    try:
        with open(path, "rb", buffering=0, opener=_open) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise InvalidArgument(
                    attempted, f"{path} is not a regular file", hint="pack a folder as a tar"
                )
            file.seek(offset)
            while chunk := file.read(_CHUNK):
                yield chunk
    except FileNotFoundError as exc:
        raise NotFound(attempted, f"there is no file {path}") from exc
    except IsADirectoryError as exc:
        raise InvalidArgument(attempted, f"{path} is a folder", hint="pack it as a tar") from exc
    except OSError as exc:
        raise from_oserror(attempted, exc) from exc


def _open(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY)
