"""`RemoteRegistries`: the verbs of `orlop.remote.api`, done by a daemon with its credentials.

No rule is checked here that the daemon checks.  Same results, same errors; a call's own credentials go along.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import closing
from typing import Self

from orlop.client import wire, wireregistries
from orlop.client.events import follow
from orlop.client.link import Link, unicode_only
from orlop.observe import Call
from orlop.proto.orlop.v1 import registries_pb2 as pb
from orlop.proto.orlop.v1 import types_pb2
from orlop.remote.api import Copied, Deleted, Document, Referrer

__all__ = ["RemoteRegistries"]

_CALL = Call()
_MOST = 2**63 - 1


class RemoteRegistries:
    """Registries, asked by a daemon; satisfies `orlop.remote.api.Registries`.  Thread-safe."""

    def __init__(self, link: Link) -> None:
        self._link = link

    @classmethod
    def connect(
        cls,
        address: str,
        *,
        tls_cert: str | None = None,
        tls_key: str | None = None,
        tls_ca: str | None = None,
    ) -> Self:
        """Ask the daemon at an address; as `orlop.client.remote.RemoteStore.connect`."""
        return cls(Link.to(address, tls_cert=tls_cert, tls_key=tls_key, tls_ca=tls_ca))

    @property
    def address(self) -> str:
        """Where the daemon listens, as ``unix:///PATH`` or ``tcp://HOST:PORT``."""
        return str(self._link.address)

    def tags(
        self, repository: str, *, last: str | None = None, count: int | None = None, call: Call = _CALL
    ) -> list[str]:
        """See `orlop.remote.api.Registries.tags`."""
        attempted = f"list the tags of {repository}"
        if count is not None:
            count = max(-1, min(count, _MOST))  # as many as a message can say
        with unicode_only(attempted):
            request = pb.TagsRequest(
                repository=repository, last=last, count=count, auth=wire.auth_to(call.auth)
            )
        answer = self._link.unary(lambda s: s.registries.Tags, request, attempted, call=call)
        _tell(answer.warnings, call)
        return list(answer.tags)

    def manifest(
        self, name: str, *, platform: str | None = None, config: bool = False, call: Call = _CALL
    ) -> Document:
        """See `orlop.remote.api.Registries.manifest`."""
        attempted = f"fetch manifest {name}"
        with unicode_only(attempted):
            request = pb.ManifestRequest(
                name=name, platform=platform, config=config, auth=wire.auth_to(call.auth)
            )
        answer = self._link.unary(lambda s: s.registries.Manifest, request, attempted, call=call)
        _tell(answer.warnings, call)
        return wireregistries.document_from(answer)

    def referrers(self, name: str, *, artifact_type: str | None = None, call: Call = _CALL) -> list[Referrer]:
        """See `orlop.remote.api.Registries.referrers`."""
        attempted = f"list the referrers of {name}"
        with unicode_only(attempted):
            request = pb.ReferrersRequest(
                name=name, artifact_type=artifact_type, auth=wire.auth_to(call.auth)
            )
        answer = self._link.unary(lambda s: s.registries.Referrers, request, attempted, call=call)
        _tell(answer.warnings, call)
        return [wireregistries.referrer_from(message) for message in answer.referrers]

    def delete(self, name: str, *, manifest: bool = False, call: Call = _CALL) -> Deleted:
        """See `orlop.remote.api.Registries.delete`."""
        attempted = f"delete {name}"
        with unicode_only(attempted):
            request = pb.DeleteRequest(name=name, manifest=manifest, auth=wire.auth_to(call.auth))
        answer = self._link.unary(lambda s: s.registries.Delete, request, attempted, call=call)
        _tell(answer.warnings, call)
        return wireregistries.deleted_from(answer)

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
        with unicode_only(attempted):
            request = pb.CopyRequest(
                source=source,
                destination=destination,
                platform=platform,
                all_platforms=all_platforms,
                referrers=referrers,
                tags=tags,
                auth=wire.auth_to(call.auth),
            )
        with closing(self._link.stream(lambda s: s.registries.Copy, request, attempted, call=call)) as events:
            return wireregistries.copied_from(follow(events, "copied", call.observer, attempted).copied)

    def close(self) -> None:
        """Close the connection; the daemon goes on.  Idempotent."""
        self._link.close()


def _tell(warnings: Iterable[types_pb2.Warning], call: Call) -> None:
    for warning in warnings:
        call.observer.warning(warning.text)
