"""From what a user typed to a thing of the store: an image, a layer, a root, whatever has a name in it.

A word in front says what is meant (``layer sha256:…``, ``pin mine``), as collections and explanations print
it.  Without one: what begins with a slash is a path, then a name of an image is tried, then a digest or at
least 12 digits of one, of an image, a manifest, a layer or a blob, then other names.
"""

from __future__ import annotations

import re
from typing import Literal, get_args

from orlop.errors import InvalidArgument, NotFound
from orlop.images import names
from orlop.images.nearby import root_hint
from orlop.metadata import costs, images, roots
from orlop.metadata.db import Transaction
from orlop.spec.reference import Reference
from orlop.values import dataclass

__all__ = ["Kind", "Thing", "find_thing"]

Kind = Literal["image", "layer", "blob", "chain", "folder", "root", "lease", "pin"]
_HEX = re.compile(r"(?:(sha256|sha512):)?([0-9a-f]{12,128})")
_HINT = "'orlop images', 'orlop ps' and 'orlop gc --dry-run' list what there is"


@dataclass(frozen=True, slots=True)
class Thing:
    """A thing; the name of an image is its config's digest."""

    kind: Kind
    name: str

    def __str__(self) -> str:
        """With its kind in front, as `find_thing` takes it."""
        return f"{self.kind} {self.name}"


def find_thing(tx: Transaction, namespace: str, text: str, attempted: str) -> Thing:
    """The thing that a text means.

    Raises `NotFound`, or `InvalidArgument` for what could be several; that lists them.
    """
    kind, space, name = text.partition(" ")
    if space and kind in get_args(Kind) and name:
        return _of_kind(tx, namespace, kind, name.strip(), attempted)
    if text.startswith("/"):
        return _of_kind(tx, namespace, "root", text, attempted)
    found = _unprefixed(tx, namespace, text, attempted)
    if len(found) > 1:
        raise InvalidArgument(
            attempted,
            "it could be several things",
            hint=f"say which: {', '.join(map(repr, map(str, found)))}",
        )
    if not found:
        raise NotFound(attempted, "the store has no such thing", hint=_HINT)
    return found[0]


def _unprefixed(tx: Transaction, namespace: str, text: str, attempted: str) -> list[Thing]:
    found = _images(tx, namespace, text, attempted)
    if found and not _HEX.fullmatch(text):
        return found
    digests = _digests(text)
    if not digests:
        return _others(tx, namespace, text)
    if not found:
        found = _ids(tx, digests)
    documents = {thing.name for thing in found}
    documents |= {digest for thing in found for digest in costs.manifests_of(tx, thing.name)}
    found += [Thing("layer", name) for name in _matching(tx, "layer", digests)]
    found += [Thing("blob", name) for name in _matching(tx, "blob", digests) if name not in documents]
    return list(dict.fromkeys(found)) or _others(tx, namespace, text)


def _images(tx: Transaction, namespace: str, text: str, attempted: str) -> list[Thing]:
    """By name, or by name and digest."""
    try:
        ref = Reference.parse(text)
    except InvalidArgument:
        if _HEX.fullmatch(text) or costs.get_pin(tx, namespace, text):
            return []
        raise InvalidArgument(
            attempted, f"{text[:100]!r} names nothing that a store holds", hint="see 'orlop explain --help'"
        ) from None
    row = images.get_image(tx, namespace, str(ref))
    if row is None and ref.digest is not None:
        row = names.find(tx, namespace, text)
    return [Thing("image", row.config)] if row else []


def _digests(text: str) -> list[str]:
    """The prefixes of digests that a text could be."""
    match = _HEX.fullmatch(text)
    if match is None:
        return []
    algorithms = [match[1]] if match[1] else ["sha256", "sha512"]
    return [f"{algorithm}:{match[2]}" for algorithm in algorithms]


def _matching(tx: Transaction, what: str, prefixes: list[str]) -> list[str]:
    return [name for prefix in prefixes for name in costs.matching(tx, what, prefix)]


def _ids(tx: Transaction, digests: list[str]) -> list[Thing]:
    """Images by ID, also those that have lost their names, or by the digest of a manifest."""
    kinds = ("image", "prepared", "checkpoint", "config")
    found = {name for what in kinds for name in _matching(tx, what, digests)}
    for what in ("manifest", "name's manifest", "platform's manifest"):
        for manifest in _matching(tx, what, digests):
            found.update(costs.configs_with_manifest(tx, manifest))
    return [Thing("image", name) for name in sorted(found)]


def _others(tx: Transaction, namespace: str, text: str) -> list[Thing]:
    found: list[Thing] = []
    if re.fullmatch(r"[0-9a-f]{10,64}", text):
        found += [Thing("chain", name) for name in costs.matching(tx, "chain", text)]
        found += [Thing("folder", name) for name in costs.matching(tx, "folder", text)]
        found += [Thing("lease", name) for name in costs.matching(tx, "lease", text)]
    if costs.get_pin(tx, namespace, text):
        found.append(Thing("pin", text))
    return found


def _of_kind(tx: Transaction, namespace: str, kind: str, name: str, attempted: str) -> Thing:
    """A thing whose kind is known."""
    if kind == "root":
        if roots.get_root(tx, name) is None:
            raise NotFound(attempted, f"nothing is prepared at {name}", hint=root_hint(tx, name))
        return Thing("root", name)
    if kind == "pin":
        if costs.get_pin(tx, namespace, name) is None:
            raise NotFound(attempted, "there is no such pin", hint="'orlop pins' lists what there is")
        return Thing("pin", name)
    if kind == "image":
        row = names.find(tx, namespace, name) if not _HEX.fullmatch(name) else None
        found = [Thing("image", row.config)] if row else _ids(tx, _digests(name))
    elif kind in {"layer", "blob"}:
        known = _matching(tx, kind, _digests(name))
        found = [Thing("layer" if kind == "layer" else "blob", digest) for digest in known]
    else:
        exact: Kind = "chain" if kind == "chain" else "folder" if kind == "folder" else "lease"
        found = [Thing(exact, other) for other in costs.matching(tx, kind, name)]
        found = [thing for thing in found if thing.name == name] or found
    if len(found) > 1:
        raise InvalidArgument(attempted, "it fits several things", hint=f"give more of it: {found[0]}")
    if not found:
        raise NotFound(attempted, f"there is no such {kind}", hint=_HINT)
    return found[0]
