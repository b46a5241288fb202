"""The oldest form of ``docker save`` (before 1.10): ``repositories`` and a folder for each layer.

::

    repositories              {"name": {"tag": "<id>"}}
    <id>/VERSION              1.0
    <id>/json                 an image of version 1, which names its parent
    <id>/layer.tar            what it changes of that

Source: Docker's image spec v1.  Such an image has no config of its own: one is made of its chain, the same
whatever the machine and the day.  Nothing here reads an archive, or makes a layer.

Invariants: a chain ends (no loop, no more links than an image may have layers); what is kept of all chains of
an archive is bounded, and so is the config that comes of one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from orlop.config import Limits, over_limit
from orlop.errors import InvalidArgument
from orlop.spec.digest import DiffID
from orlop.spec.documents import encode, parse_config, parse_json
from orlop.values import dataclass

__all__ = ["Link", "V1Images", "config_of", "parse_repositories"]

_ID = re.compile(r"[0-9a-f]{1,64}")
# What speaks of a container, of this form, or of a place in a chain that is no more.
_STALE = (
    "id",
    "parent",
    "parent_id",
    "layer_id",
    "container",
    "container_config",
    "Size",
    "checksum",
    "throwaway",
)


class _Container(msgspec.Struct, frozen=True):
    cmd: list[str] | None = msgspec.field(name="Cmd", default=None)


class _V1(msgspec.Struct, frozen=True, kw_only=True):
    """What is read of a layer's ``json``."""

    id: str | None = None
    parent: str | None = None
    created: str | None = None
    author: str | None = None
    comment: str | None = None
    container_config: _Container | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """One image of a chain: the one below it (empty for none), and its line in the history."""

    parent: str
    line: dict[str, Any]
    size: int


def parse_repositories(data: bytes, what: str, *, limits: Limits) -> dict[str, str]:
    """The names that an archive gives, and the IDs they mean, in its own order.

    Raises `InvalidArgument`, or `ResourceExhausted` past a limit.
    """
    said = parse_json(data, what, name="manifest_size", limit=limits.manifest_size, depth=limits.json_depth)
    found: dict[str, str] = {}
    for repository, tags in said.items():
        if not isinstance(tags, dict):
            raise InvalidArgument(what, f"repositories says no tags of {repository[:300]!r}")
        for tag, identity in tags.items():
            if not isinstance(identity, str):
                raise InvalidArgument(what, f"repositories says no ID for {repository[:300]}:{tag[:300]}")
            found[f"{repository}:{tag}"] = checked_id(identity, what)
    return found


def checked_id(text: str, what: str) -> str:
    """The ID of an image of version 1, which is the name of its folder.  Raises `InvalidArgument`."""
    if not _ID.fullmatch(text):
        raise InvalidArgument(what, f"{text[:300]!r} is no image's ID")
    return text


class V1Images:
    """The images of one archive; ``read`` gives the ``json`` of an ID."""

    def __init__(self, read: Callable[[str], bytes], what: str, *, limits: Limits) -> None:
        self._read = read
        self._what = what
        self._limits = limits
        self._known: dict[str, Link] = {}
        self._kept = 0

    def chain(self, identity: str) -> list[str]:
        """The IDs of an image and all below it, bottom first.

        Raises `InvalidArgument` for a loop, `NotFound` (from ``read``) where one is missing,
        `ResourceExhausted` for more than an image may have.
        """
        found: list[str] = []
        seen: set[str] = set()
        at = identity
        while at:
            if at in seen:
                raise InvalidArgument(self._what, f"image {at} is among its own parents")
            if len(found) == self._limits.layers:
                raise over_limit(
                    "layers", f"more than {len(found)}", self._limits.layers, attempted=self._what
                )
            seen.add(at)
            found.append(at)
            at = self._link(at).parent
        return found[::-1]

    def history(self, chain: Sequence[str]) -> list[dict[str, Any]]:
        """A chain's lines.  Raises `ResourceExhausted` where no config could hold them."""
        links = [self._link(identity) for identity in chain]
        size = sum(link.size for link in links)
        if size > self._limits.config_size:
            raise over_limit("config_size", size, self._limits.config_size, attempted=self._what)
        return [link.line for link in links]

    def top(self, identity: str) -> dict[str, Any]:
        """The whole ``json`` of an image."""
        limits = self._limits
        return parse_json(self._read(identity), self._what, limit=limits.config_size, depth=limits.json_depth)

    def _link(self, identity: str) -> Link:
        known = self._known.get(identity)
        if known is None:
            known = self._known[identity] = self._parsed(identity)
        return known

    def _parsed(self, identity: str) -> Link:
        try:
            v1 = msgspec.convert(self.top(identity), _V1)
        except msgspec.ValidationError as exc:
            raise InvalidArgument(self._what, f"{identity}/json: {exc}") from exc
        if v1.id is not None and v1.id != identity:
            raise InvalidArgument(self._what, f"{identity}/json is about {v1.id[:300]!r}")
        command = (v1.container_config.cmd if v1.container_config else None) or []
        said = {
            "created": v1.created,
            "created_by": " ".join(command),
            "author": v1.author,
            "comment": v1.comment,
        }
        line = {key: value for key, value in said.items() if value}
        size = sum(map(len, line.values()))
        self._kept += size + 200
        if self._kept > self._limits.metadata_size:
            raise over_limit("metadata_size", self._kept, self._limits.metadata_size, attempted=self._what)
        parent = checked_id(v1.parent, self._what) if v1.parent else ""
        return Link(parent=parent, line=line, size=size)


def config_of(
    top: dict[str, Any],
    history: Sequence[dict[str, Any]],
    diff_ids: Sequence[DiffID],
    what: str,
    *,
    limits: Limits,
) -> bytes:
    """The OCI config of an image of version 1: its ``json``, with the layers and the history of its chain.

    Raises `InvalidArgument` where it would be none, `ResourceExhausted` where it would be too large.
    """
    kept = {key: value for key, value in top.items() if key not in _STALE}
    document = {
        **kept,
        "architecture": top.get("architecture") or "amd64",
        "os": top.get("os") or "linux",
        "rootfs": {"type": "layers", "diff_ids": [str(diff_id) for diff_id in diff_ids]},
        "history": list(history),
    }
    data = encode(document)
    parse_config(data, what, limits=limits)
    return data
