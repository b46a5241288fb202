"""Requests to a repository: which endpoint they go to, and what a token for them must allow.

The verbs (`orlop.registry.client` and its neighbours) say what they want of a repository; this module knows
where that is.  Which endpoints a registry has is `orlop.registry.hosts`' to say, and which of them answers
`orlop.registry.locate`'s.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from orlop.observe import Call
from orlop.registry.locate import Locator
from orlop.registry.messages import Outgoing, Request, Response, Sender
from orlop.spec.reference import Reference

__all__ = ["Asker"]


class Asker:
    """Makes requests to repositories, and sends them.  Thread-safe."""

    def __init__(self, send: Sender, locate: Locator) -> None:
        self.send = send
        self._locate = locate

    def request(
        self,
        ref: Reference,
        method: str,
        path: str,
        attempted: str,
        call: Call,
        *,
        push: bool = False,
        headers: Mapping[str, str] | None = None,
        body: bytes | Outgoing | None = None,
        read: int | None = 0,
    ) -> Request:
        """A request to a path below a repository (``manifests/latest``); the rest as in `Request`."""
        endpoint = self._locate(ref.registry, attempted, call)
        request = Request(
            method=method,
            url=endpoint.url(f"{ref.repository}/{path}"),
            endpoint=endpoint,
            attempted=attempted,
            body=body,
            read=read,
            scopes=(f"repository:{ref.repository}:pull{',push' if push else ''}",),
            repository=ref.repository,
        )
        return request if headers is None else replace(request, headers=headers)

    def ask(
        self,
        ref: Reference,
        method: str,
        path: str,
        attempted: str,
        call: Call,
        *,
        push: bool = False,
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
        read: int | None = 0,
    ) -> tuple[Request, Response]:
        """Send a request as `request` makes it; any status is a response.  Raises as a `Sender` does."""
        request = self.request(
            ref, method, path, attempted, call, push=push, headers=headers, body=body, read=read
        )
        return request, self.send(request, call)
