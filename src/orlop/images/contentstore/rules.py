"""What may be asked of content, and what it means: names, labels, filters, sharing.  No I/O.

Sources: containerd 1.6, ``identifiers``, ``labels`` and ``metadata`` (adaptors, ``boltutil``), and its
``docs/content-flow.md`` and ``docs/namespaces.md``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence

from orlop.config import Sharing
from orlop.errors import InvalidArgument
from orlop.images.contentstore.api import ContentInfo, WriteStatus
from orlop.images.filters import Fields, label_field

__all__ = [
    "check_labels",
    "check_namespace",
    "check_ref",
    "content_fields",
    "is_shared",
    "merged",
    "status_fields",
]

MAX_NAMESPACE = 76  # characters: containerd's identifiers
MAX_REF = 4_096  # bytes
MAX_LABELS = 1_024  # of one blob
MAX_LABEL = 4_096  # bytes of a key and its value together, as in containerd

_NAMESPACE = re.compile(r"[A-Za-z0-9]+(?:[._-][A-Za-z0-9]+)*", re.ASCII)


def check_namespace(namespace: str | None, attempted: str) -> None:
    """Raise `InvalidArgument` for what is no namespace; None stands for all of them."""
    if namespace is not None and (len(namespace) > MAX_NAMESPACE or _NAMESPACE.fullmatch(namespace) is None):
        raise InvalidArgument(attempted, f"not a namespace: {namespace[:100]!r}")


def check_ref(ref: str, attempted: str) -> None:
    """Raise `InvalidArgument` for what names no write.  Any text does, but none at all."""
    if not ref:
        raise InvalidArgument(attempted, "no ref is given")
    try:
        raw = ref.encode()
    except UnicodeEncodeError as exc:
        raise InvalidArgument(attempted, "the ref is no text") from exc
    if len(raw) > MAX_REF or 0 in raw:
        raise InvalidArgument(attempted, f"the ref is longer than {MAX_REF} bytes, or has a NUL")


def check_labels(labels: Mapping[str, str], attempted: str) -> dict[str, str]:
    """Labels as they are kept: one without a value is none.  Raises `InvalidArgument`."""
    kept = {key: value for key, value in labels.items() if value}
    if len(kept) > MAX_LABELS:
        raise InvalidArgument(attempted, f"there are {len(kept)} labels, and may be {MAX_LABELS}")
    for key, value in kept.items():
        size = len(key.encode()) + len(value.encode())
        if size > MAX_LABEL or not key:
            raise InvalidArgument(
                attempted,
                f"label {key[:40]!r} and its value have {size} bytes, and may have {MAX_LABEL}"
                if key
                else "a label without a key",
            )
    return kept


def merged(
    old: Mapping[str, str], new: Mapping[str, str], paths: Sequence[str], attempted: str
) -> dict[str, str]:
    """The labels after an update of the fields at ``paths``; without any, all labels are meant.

    >>> merged({"a": "1", "b": "2"}, {"a": "3"}, ["labels.a", "labels.b"], "update")
    {'a': '3'}
    """
    found = dict(old)
    for path in paths or ("labels",):
        if path == "labels":
            found = dict(new)
        elif path.startswith("labels.") and path != "labels.":
            key = path.removeprefix("labels.")
            found[key] = new.get(key, "")
        else:
            raise InvalidArgument(
                attempted, f"{path[:100]!r} cannot be changed", hint="labels, or labels.KEY, can"
            )
    return check_labels(found, attempted)


def is_shared(
    sharing: Sharing,
    shareable: Collection[str],
    *,
    is_there: Callable[[], bool],
    is_in_one_of: Callable[[Collection[str]], bool],
) -> bool:
    """Whether a blob may become another namespace's without its bytes.

    ``is_there`` tells whether the store has it, ``is_in_one_of`` whether one of some namespaces does.
    """
    return is_there() if sharing == "shared" else bool(shareable) and is_in_one_of(shareable)


def content_fields(info: ContentInfo) -> Fields:
    """What filters see of a blob."""

    def field(path: Sequence[str]) -> str | None:
        if path[0] == "labels":
            return label_field(info.labels, path[1:])
        return {"digest": str(info.digest), "size": str(info.size)}.get(path[0])

    return field


def status_fields(status: WriteStatus) -> Fields:
    """What filters see of a write."""
    return lambda path: status.ref if path[0] == "ref" else None
