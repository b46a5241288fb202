"""Registries in memory, without a network: the verbs of `orlop.remote.api` for tests of what stands on them.

It keeps the contracts that a caller can see and performs nothing.  For tests of a client of registries there
is `orlop.testing.registry`, which speaks their protocol.

    registries = FakeRegistries()
    registries.publish("localhost/app:1", b"{}", OCI_MANIFEST)
"""

from __future__ import annotations

import json
import threading

from orlop.errors import InvalidArgument, NotFound
from orlop.observe import Call, Progress
from orlop.remote.api import Copied, Deleted, Document, Referrer
from orlop.remote.names import destinations, repository_of
from orlop.spec.digest import Digest
from orlop.spec.documents import OCI_MANIFEST
from orlop.spec.platform import Platform
from orlop.spec.reference import Reference
from orlop.values import replace

__all__ = ["FakeRegistries"]

_CALL = Call()


class FakeRegistries:
    """Satisfies `orlop.remote.api.Registries`.  Thread-safe.  ``calls`` are those it was given."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self._lock = threading.Lock()  # guards the one below
        self._known: dict[tuple[str, str], tuple[str, bytes]] = {}  # repository, tag or digest

    def publish(self, name: str, data: bytes, media_type: str = OCI_MANIFEST) -> str:
        """Put a document under a name; its digest."""
        ref, digest = Reference.parse(name), Digest.of(data)
        with self._lock:
            for target in (ref.tag, digest):
                if target is not None:
                    self._known[ref.name, target] = (media_type, data)
        return digest

    def tags(
        self, repository: str, *, last: str | None = None, count: int | None = None, call: Call = _CALL
    ) -> list[str]:
        """See `orlop.remote.api.Registries.tags`."""
        ref = repository_of(repository)
        self._begin(call, f"list the tags of {ref.name}")
        with self._lock:
            found = [target for owner, target in self._known if owner == ref.name]
        if not found:
            raise NotFound(f"list the tags of {ref.name}", "no such repository")
        tags = sorted(target for target in found if ":" not in target and target > (last or ""))
        call.observer.warning(f"{ref.name} is a fake")
        return tags[:count]

    def manifest(
        self, name: str, *, platform: str | None = None, config: bool = False, call: Call = _CALL
    ) -> Document:
        """See `orlop.remote.api.Registries.manifest`; every document serves every platform."""
        if platform is not None:
            Platform.parse(platform)
        ref, media_type, data = self._find(name, call)
        if config:
            media_type, data = "application/json", b"{}"
        digest = Digest.of(data)
        return Document(
            name=str(ref.with_digest(digest)),
            media_type=media_type,
            digest=str(digest),
            size=len(data),
            data=data,
        )

    def referrers(self, name: str, *, artifact_type: str | None = None, call: Call = _CALL) -> list[Referrer]:
        """See `orlop.remote.api.Registries.referrers`."""
        ref, _, data = self._find(name, call)
        digest, found = Digest.of(data), []
        with self._lock:
            known = {target: value for (owner, target), value in self._known.items() if owner == ref.name}
        for target, (media_type, other) in sorted(known.items()):
            document = json.loads(other)
            kind = document.get("artifactType", "")
            named = document.get("subject", {}).get("digest") == digest and ":" in target
            if named and artifact_type in (None, kind):
                found.append(
                    Referrer(digest=target, media_type=media_type, size=len(other), artifact_type=kind)
                )
        return found

    def delete(self, name: str, *, manifest: bool = False, call: Call = _CALL) -> Deleted:
        """See `orlop.remote.api.Registries.delete`."""
        ref, media_type, data = self._find(name, call)
        with self._lock:
            if ref.digest is None and not manifest:
                del self._known[ref.name, ref.target]
                return Deleted(name=str(ref))
            for key in [key for key, value in self._known.items() if value == (media_type, data)]:
                if key[0] == ref.name:
                    del self._known[key]
        digest = Digest.of(data)
        return Deleted(name=str(ref.with_digest(digest)), digest=str(digest))

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
        attempted = f"copy {source} to {destination}"
        if platform is not None and all_platforms:
            raise InvalidArgument(attempted, "one platform is asked for, and all of them")
        targets = destinations(destination, tags, attempted)
        _, media_type, data = self._find(source, call)
        digest = Digest.of(data)
        for phase in ("pushing", "done"):
            call.observer.progress(Progress(item=digest, phase=phase, done=len(data), total=len(data)))
            call.check(attempted)
        for target in targets:
            self.publish(str(replace(target, digest=None)) if target.tag else target.name, data, media_type)
        return Copied(
            names=tuple(map(str, targets)),
            digest=str(digest),
            source_digest=str(digest),
            media_type=media_type,
            manifests=1,
            size=len(data),
            referrers=int(referrers),
        )

    def close(self) -> None:
        """Nothing to let go of."""

    def _begin(self, call: Call, attempted: str) -> None:
        self.calls.append(call)
        call.check(attempted)

    def _find(self, name: str, call: Call) -> tuple[Reference, str, bytes]:
        ref = Reference.parse(name)
        self._begin(call, f"look for {ref}")
        with self._lock:
            found = self._known.get((ref.name, ref.target))
        if found is None:
            raise NotFound(f"look for {ref}", "the registry has no such manifest")
        call.observer.warning(f"{ref.name} is a fake")
        return ref, *found
