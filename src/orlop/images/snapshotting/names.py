"""What namespaces, keys and labels of snapshots may be."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from orlop.errors import InvalidArgument
from orlop.images.filters import Fields

__all__ = [
    "Matches",
    "beside",
    "check_key",
    "check_namespace",
    "checked_labels",
    "namespace_in",
    "parents_namespace",
]

Matches = Callable[[Fields], bool]

MAX_NAMESPACE = 76  # containerd's identifiers
MAX_KEY = 4_096  # bytes
MAX_LABEL = 4_096  # bytes of a label's key and value together: containerd's labels
_NAMESPACE = re.compile(r"[A-Za-z0-9]+(?:[._-][A-Za-z0-9]+)*")
# What a containerd calls a snapshot where it has others keep it (createKey in its metadata/snapshot.go)
_CONTAINERDS = re.compile(r"([^/]+)/[0-9]+/.")


def check_namespace(namespace: str, what: str) -> None:
    """Raise `InvalidArgument` for what containerd takes for no namespace."""
    if len(namespace) > MAX_NAMESPACE or not _NAMESPACE.fullmatch(namespace):
        raise InvalidArgument(what, f"not a namespace: {namespace[:100]!r}")


def namespace_in(key: str) -> str | None:
    """The namespace that a name tells which a containerd has made (``NAMESPACE/NUMBER/NAME``), or None."""
    found = _CONTAINERDS.match(key)
    return found[1] if found else None


def beside(key: str, name: str) -> str:
    """A name as the client who uses ``key`` makes them; containerd's own numbers begin with 1."""
    namespace = namespace_in(key)
    return f"{namespace}/0/{name}" if namespace else name


def parents_namespace(namespace: str, key: str, parent: str) -> str:
    """The namespace of the parent that a new snapshot names.

    Among a containerd's names it is the one that the parent's tells: where it lists without a namespace, it
    finds the snapshot of a layer that another of its namespaces has, and builds on that.
    """
    if namespace_in(key) != namespace:
        return namespace
    return namespace_in(parent) or namespace


def check_key(key: str, what: str) -> None:
    """Raise `InvalidArgument` for an empty key, and for one that is far too long."""
    if not key:
        raise InvalidArgument(what, "the snapshot's name is empty")
    if len(key.encode()) > MAX_KEY:
        raise InvalidArgument(what, f"the snapshot's name has more than {MAX_KEY} bytes")


def checked_labels(labels: Mapping[str, str], what: str) -> dict[str, str]:
    """Labels without those that have no value; raises `InvalidArgument` for one that is too long."""
    for key, value in labels.items():
        if len(key.encode()) + len(value.encode()) > MAX_LABEL:
            raise InvalidArgument(what, f"the label {key[:40]!r} and its value have over {MAX_LABEL} bytes")
    return {key: value for key, value in labels.items() if value}
