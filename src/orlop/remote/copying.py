"""Copying from registry to registry: documents byte for byte, blobs by the shortest way, children first.

A document is put only when all that it names is there, and tags are written last, so a copy that breaks off
leaves nothing that looks whole; what has arrived by then is found there by the next one.  Held in memory are
one manifest and the indexes above it.  URLs in descriptors (foreign layers) are never followed.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from orlop.config import Settings, over_limit
from orlop.errors import FailedPrecondition, InvalidArgument
from orlop.observe import Call, Progress, result_of
from orlop.registry.blobs.foreign import is_foreign
from orlop.registry.client import Registry
from orlop.remote.api import Copied
from orlop.remote.blobs import Blob, bring
from orlop.remote.names import choose, destinations
from orlop.spec.digest import Digest
from orlop.spec.documents import (
    DOCKER_CONFIG,
    INDEX_TYPES,
    MANIFEST_TYPES,
    OCI_CONFIG,
    Descriptor,
    Index,
    Manifest,
    parse_config,
    parse_manifest,
)
from orlop.spec.platform import Platform
from orlop.spec.reference import Reference
from orlop.values import dataclass, field, replace

__all__ = ["Copier", "Fetched", "check_platform", "fetch_document", "pick"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fetched:
    """A document of the source: its descriptor, its bytes, and what they say."""

    descriptor: Descriptor
    data: bytes
    document: Manifest | Index

    @property
    def digest(self) -> Digest:
        """Its digest."""
        return self.descriptor.checked_digest()


@dataclass(slots=True, kw_only=True)
class _Work:
    """One copy: from where to where, and what has been done of it.  Used by one thread."""

    source: Reference
    target: Reference  # its repository counts, not its tag
    attempted: str
    call: Call
    copied: dict[Digest, bool] = field(default_factory=dict)  # documents -> whether they were sent
    blobs: dict[Digest, str] = field(default_factory=dict)
    subjects: dict[Digest, None] = field(default_factory=dict)  # what others may refer to
    size: int = 0
    begun: int = 0  # documents
    referrers: int = 0  # of the documents, those that refer to another


class Copier:
    """Copies between registries.  Thread-safe."""

    def __init__(self, registry: Registry, settings: Settings) -> None:
        self._registry = registry
        self._settings = settings

    def copy(
        self,
        source: str,
        destination: str,
        *,
        platform: str | None,
        all_platforms: bool,
        referrers: bool,
        tags: tuple[str, ...],
        call: Call,
    ) -> Copied:
        """See `orlop.remote.api.Registries.copy`."""
        origin = Reference.parse(source)
        attempted = f"copy {origin} to {Reference.parse(destination)}"
        if platform is not None and all_platforms:
            raise InvalidArgument(attempted, "one platform is asked for, and all of them")
        targets = destinations(destination, tags, attempted)
        wanted = Platform.parse(platform) if platform is not None else None
        call = call.child()
        call.observer.progress(Progress(item=str(origin), phase="resolving"))
        first = fetch_document(self._registry, origin, self._settings, attempted, call)
        chosen = first
        if wanted is not None:
            chosen = pick(self._registry, origin, first, wanted, self._settings, attempted, call)
            check_platform(self._registry, origin, chosen, wanted, self._settings, attempted, call)
        named = targets[0].digest
        if named is not None and named != chosen.digest:
            raise InvalidArgument(
                attempted, f"the destination's digest is not that of what is copied: {chosen.digest}"
            )
        work = _Work(source=origin, target=targets[0], attempted=attempted, call=call)
        self._document(chosen, work, depth=0)
        if referrers:
            self._referrers(work)
        for target in targets:
            self._name(target, chosen, work)
        call.observer.progress(Progress(item=str(targets[0]), phase="done", done=work.size, total=work.size))
        ways = list(work.blobs.values())
        return Copied(
            names=tuple(str(target) for target in targets),
            digest=chosen.digest,
            source_digest=first.digest,
            media_type=chosen.document.media_type,
            manifests=len(work.copied),
            blobs=len(ways),
            mounted=ways.count("mounted"),
            sent=ways.count("sent"),
            size=work.size,
            referrers=work.referrers,
        )

    # -- documents ------------------------------------------------------------------------------

    def _document(self, fetched: Fetched, work: _Work, *, depth: int) -> None:
        """Bring a document and all that it names, unless the target has it: then it has those, too."""
        if fetched.digest in work.copied:
            return
        work.call.check(work.attempted)
        most = self._settings.limits.index_manifests
        work.begun += 1
        if work.begun > most + work.referrers:
            raise over_limit("index_manifests", f"more than {most}", most, attempted=work.attempted)
        work.subjects[fetched.digest] = None
        if isinstance(fetched.document, Index):
            work.subjects.update(dict.fromkeys(map(Descriptor.checked_digest, fetched.document.manifests)))
        target = work.target.with_digest(fetched.digest)
        if self._registry.has_manifest(target, push=True, call=work.call) == fetched.digest:
            work.copied[fetched.digest] = False
            work.call.observer.progress(
                Progress(item=fetched.digest, phase="exists", done=len(fetched.data), total=len(fetched.data))
            )
            return
        if isinstance(fetched.document, Index):
            self._children(fetched.document, work, depth=depth)
        else:
            manifest = fetched.document
            self._blobs([manifest.config, *manifest.layers], work)
        self._registry.put_manifest(target, fetched.data, fetched.document.media_type, call=work.call)
        work.copied[fetched.digest] = True
        work.size += len(fetched.data)

    def _children(self, index: Index, work: _Work, *, depth: int) -> None:
        most = self._settings.limits.index_nesting
        if depth >= most:
            raise over_limit("index_nesting", f"more than {most}", most, attempted=work.attempted)
        blobs = []
        for child in index.manifests:
            if child.media_type and child.media_type not in (*INDEX_TYPES, *MANIFEST_TYPES):
                blobs.append(child)  # a build cache's layers stand in an index
            elif child.checked_digest() not in work.copied:
                self._document(self._fetch(child, work), work, depth=depth + 1)
        self._blobs(blobs, work)

    def _fetch(self, descriptor: Descriptor, work: _Work) -> Fetched:
        data = self._registry.manifest(work.source, descriptor, call=work.call)
        document = parse_manifest(data, descriptor.media_type, work.attempted, limits=self._settings.limits)
        return Fetched(descriptor=descriptor, data=data, document=document)

    def _name(self, target: Reference, chosen: Fetched, work: _Work) -> None:
        """Write a tag, unless it means this already."""
        if target.tag is None:
            return  # it is there by its digest
        by_tag = replace(target, digest=None)
        if self._registry.has_manifest(by_tag, push=True, call=work.call) != chosen.digest:
            self._registry.put_manifest(by_tag, chosen.data, chosen.document.media_type, call=work.call)

    def _referrers(self, work: _Work) -> None:
        """Bring what refers to what was copied, and what refers to that."""
        most = self._settings.limits.referrers
        waiting, seen = list(work.subjects), set(work.subjects)
        while waiting:
            subject = waiting.pop()
            for descriptor in self._registry.referrers.find(work.source, subject, call=work.call):
                if descriptor.checked_digest() in seen:
                    continue
                work.referrers += 1
                if work.referrers > most:
                    raise over_limit("referrers", f"more than {most}", most, attempted=work.attempted)
                self._document(self._fetch(descriptor, work), work, depth=0)
                new = [one for one in work.subjects if one not in seen]
                seen.update(new)
                waiting += new

    # -- blobs ----------------------------------------------------------------------------------

    def _blobs(self, descriptors: list[Descriptor], work: _Work) -> None:
        """Bring blobs, some side by side, each once."""
        wanted: dict[Digest, Descriptor] = {}
        for descriptor in descriptors:
            digest = descriptor.checked_digest()
            if digest not in work.blobs:
                wanted.setdefault(digest, descriptor)
        if not wanted:
            return
        for digest, one in wanted.items():
            work.call.observer.progress(Progress(item=digest, phase="waiting", total=one.size))
        with ThreadPoolExecutor(self._settings.uploads, thread_name_prefix="copy") as pool:
            futures = {digest: pool.submit(self._blob, one, work) for digest, one in wanted.items()}
            try:
                for digest, future in futures.items():
                    way = result_of(future)
                    work.blobs[digest] = way
                    work.size += wanted[digest].size if way == "sent" else 0
            except BaseException:
                work.call.cancel.cancel()
                for future in futures.values():
                    future.cancel()
                raise

    def _blob(self, descriptor: Descriptor, work: _Work) -> str:
        registry, call = self._registry, work.call
        blob = Blob(digest=descriptor.checked_digest(), size=descriptor.size)
        lies_elsewhere = bool(descriptor.urls) and is_foreign(descriptor.media_type)
        if lies_elsewhere and not self._settings.nondistributable:
            call.observer.warning(f"layer {blob.digest} is left out: it is not to be distributed")
            return "left"
        return bring(registry, blob, work.source, work.target, call=call)


def fetch_document(
    registry: Registry, ref: Reference, settings: Settings, attempted: str, call: Call
) -> Fetched:
    """What a reference means, parsed."""
    found = registry.resolve(ref, call=call)
    document = parse_manifest(found.data, found.descriptor.media_type, attempted, limits=settings.limits)
    return Fetched(descriptor=found.descriptor, data=found.data, document=document)


def pick(
    registry: Registry,
    ref: Reference,
    fetched: Fetched,
    wanted: Platform,
    settings: Settings,
    attempted: str,
    call: Call,
) -> Fetched:
    """The manifest of an index that serves a platform, through indexes; a manifest is its own."""
    most = settings.limits.index_nesting
    for _ in range(most + 1):
        if isinstance(fetched.document, Manifest):
            return fetched
        descriptor = choose(fetched.document, wanted, attempted)
        data = registry.manifest(ref, descriptor, call=call)
        document = parse_manifest(data, descriptor.media_type, attempted, limits=settings.limits)
        fetched = Fetched(descriptor=descriptor, data=data, document=document)
    raise over_limit("index_nesting", f"more than {most}", most, attempted=attempted)


def check_platform(
    registry: Registry,
    ref: Reference,
    chosen: Fetched,
    wanted: Platform,
    settings: Settings,
    attempted: str,
    call: Call,
) -> None:
    """Refuse an image that says itself that it is for another platform; what is no image says nothing.

    An index may be wrong about its children, and where there is none the config alone tells.  Raises
    `FailedPrecondition`.
    """
    assert isinstance(chosen.document, Manifest)
    about = chosen.document.config
    if about.media_type not in (OCI_CONFIG, DOCKER_CONFIG):
        return
    config = parse_config(registry.blob(ref, about, call=call), attempted, limits=settings.limits)
    if not config.platform().rank(wanted):
        raise FailedPrecondition(attempted, f"the image is for {config.platform()}, not for {wanted}")
