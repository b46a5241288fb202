"""What a request may be, before anything is done for it: lengths, counts, ranges, and that texts are texts.

One walk over a message's fields, with a rule for each kind and for some fields one of their own.  What
the store asks of a value whoever calls (is it a name, is the path free) stays in the store, so that the
library and the daemon answer alike; only image names are parsed here already, by the same parser.

Invariant: what passes has no NUL, no text, list or number out of bounds, and every refusal is
INVALID_ARGUMENT and names the field.
"""

from __future__ import annotations

import math
import posixpath
from functools import cache
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from orlop.errors import InvalidArgument
from orlop.spec.reference import Reference

__all__ = ["check"]

MAX_TEXT = 4_096  # bytes: PATH_MAX, and more than any name has
MAX_LONG_TEXT = 65_536  # bytes: what a config's history and a label may say
MAX_WIDE_TEXT = 262_144  # bytes: all annotations of a pod together, Kubernetes' TotalAnnotationSizeLimitB
MAX_ITEMS = 1_024  # of a list or a map
MAX_ID = 2**32 - 1  # user_namespaces(7)
MAX_TIME = 2.0**40  # seconds: some 34,800 years

_LONG = frozenset(
    {
        *("author", "message", "changes", "set", "labels", "auth"),
        *("password", "identity_token", "registry_token"),
        *("filters", "paths"),  # of containerd's messages
    }
)  # fields, by their last name
_NAMES = frozenset(  # image names, which may not be looked for by less
    {
        "docker.containerkit.types.PrepareRequest.name",
        "orlop.v1.PrepareRootRequest.name",
        "orlop.v1.WatchPrepareRootRequest.name",
        "orlop.v1.CommitRequest.name",
        "orlop.v1.TagRequest.new_name",
        "orlop.v1.PullRequest.name",
        "orlop.v1.PushRequest.name",
        "orlop.v1.PushRequest.destination",
        "orlop.v1.LoadRequest.name",
        "orlop.v1.TagsRequest.repository",
        "orlop.v1.ManifestRequest.name",
        "orlop.v1.ReferrersRequest.name",
        "orlop.v1.DeleteRequest.name",
        "orlop.v1.CopyRequest.source",
        "orlop.v1.CopyRequest.destination",
    }
)
_LOOKED_UP = frozenset(  # what must not be empty
    {
        "orlop.v1.InspectRequest.name",
        "orlop.v1.FetchBlobsRequest.name",
        "orlop.v1.TagRequest.name",
        "orlop.v1.LabelRequest.name",
        "orlop.v1.RemoveRequest.name",
        "orlop.v1.ExplainRequest.thing",
        "orlop.v1.ListFilesRequest.thing",
        "orlop.v1.ReadFilesRequest.thing",
        "orlop.v1.ReadArchiveRequest.thing",
        "orlop.v1.DiffRequest.old",
        "orlop.v1.BlameRequest.thing",
        "orlop.v1.HistoryRequest.thing",
        "orlop.v1.TreeRequest.thing",
        "orlop.v1.WasteRequest.thing",
        "orlop.v1.PinRequest.thing",
        "orlop.v1.UnpinRequest.name",
        "orlop.v1.CheckpointRequest.name",
        "orlop.v1.RollbackRequest.name",
        "orlop.v1.DropCheckpointRequest.name",
    }
)
_ROOTS = frozenset(  # paths of prepared roots
    {
        "docker.containerkit.types.CleanupRequest.path",
        "docker.containerkit.types.CommitRequest.path",
        "orlop.v1.MountsRequest.path",
        "orlop.v1.MountRequest.path",
        "orlop.v1.UnmountRequest.path",
        "orlop.v1.CommitRequest.path",
        "orlop.v1.CleanupRequest.path",
        "orlop.v1.ForkRequest.path",
        "orlop.v1.CheckpointRequest.path",
        "orlop.v1.ListCheckpointsRequest.path",
        "orlop.v1.RollbackRequest.path",
        "orlop.v1.DropCheckpointRequest.path",
    }
)
_ANY_SIGN = frozenset(  # times before 1970
    {
        "orlop.v1.CommitOptions.created",
        "orlop.v1.ImportOptions.created",
        "orlop.v1.ImportOptions.newest",
        "orlop.v1.ExportRequest.created",
    }
)
_DATA = frozenset(  # bytes of a file, bounded by the request's size
    {
        "orlop.v1.LoadStreamRequest.chunk",
        "orlop.v1.WriteArchiveRequest.chunk",
        "containerd.services.content.v1.WriteContentRequest.data",
    }
)
_WIDE = frozenset({"runtime.v1.ImageSpec.annotations"})  # maps with a pod's annotations
_OWN_RULE = frozenset(
    {
        "orlop.v1.PrepareOptions.quota",  # in orlop.service.images
        # Below zero they mean the same as zero.
        "containerd.services.content.v1.ReadContentRequest.offset",
        "containerd.services.content.v1.ReadContentRequest.size",
        "containerd.services.content.v1.WriteContentRequest.total",
        "google.protobuf.Timestamp.seconds",  # containerd's clients send the year 1 for no time at all
    }
)
_INTEGERS = frozenset({FieldDescriptor.TYPE_INT32, FieldDescriptor.TYPE_INT64})
_TEXTS = frozenset({FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_BYTES})


def check(request: Message, attempted: str) -> None:
    """Raise `InvalidArgument`, naming the field, for a request that cannot be.

    ``attempted`` is for errors: ``call /orlop.v1.Images/Tag``.
    """
    for full, name, optional in _subjects(request.DESCRIPTOR):
        if not (optional and full in _NAMES and not request.HasField(name)):
            _check_subject(full, name, getattr(request, name), attempted)
    _check_fields(request, "", attempted)


@cache
def _subjects(kind: Descriptor) -> tuple[tuple[str, str, bool], ...]:
    """The fields that say what a call is about: full name, name, and whether it may be absent."""
    about = _LOOKED_UP | _ROOTS | _NAMES
    return tuple(
        (field.full_name, field.name, field.has_presence) for field in kind.fields if field.full_name in about
    )


@cache
def _plan(field: FieldDescriptor) -> tuple[str, bool, int]:
    """What every call would ask a field's descriptor for: its name, is it a map, and a text's bytes (else 0).

    Answers are kept, as each costs as much as the check that it is for.
    """
    is_map = field.message_type is not None and bool(field.message_type.GetOptions().map_entry)
    is_text = field.type in _TEXTS and field.full_name not in _DATA
    most = MAX_LONG_TEXT if field.name in _LONG else MAX_TEXT
    if is_map:
        most = MAX_WIDE_TEXT if field.full_name in _WIDE else MAX_LONG_TEXT
    return field.name, is_map, most if is_text or is_map else 0


def _check_fields(message: Message, where: str, attempted: str) -> None:
    for field, value in message.ListFields():
        own, is_map, most = _plan(field)
        name = f"{where}{own}"
        if is_map:
            _check_count(name, len(value), attempted)
            for key, text in value.items():
                _check_text(name, key, MAX_TEXT, attempted)
                _check_text(f"{name}[{key[:40]!r}]", text, most, attempted)
        elif isinstance(value, (str, bytes)) and most:
            _check_text(name, value, most, attempted)
        elif isinstance(value, (str, bytes, int, float, Message)):
            _check_value(field, name, value, attempted)
        else:
            _check_count(name, len(value), attempted)
            for number, item in enumerate(value):
                _check_value(field, f"{name}[{number}]", item, attempted)


def _check_value(field: FieldDescriptor, name: str, value: Any, attempted: str) -> None:  # noqa: ANN401
    if field.message_type is not None:
        _check_fields(value, f"{name}.", attempted)
    elif field.full_name in _DATA:
        return
    elif field.type in _TEXTS:
        _check_text(name, value, MAX_LONG_TEXT if field.name in _LONG else MAX_TEXT, attempted)
    elif field.type == FieldDescriptor.TYPE_DOUBLE:
        if not (math.isfinite(value) and 0 <= value <= MAX_TIME):
            raise _wrong(name, f"{value} is not a time or an age", attempted)
    elif field.type in _INTEGERS and field.full_name not in _OWN_RULE:
        if field.full_name in _ANY_SIGN:
            if abs(value) > MAX_TIME:
                raise _wrong(name, f"{value} is no time", attempted)
        elif value < 0:
            raise _wrong(name, f"{value} is negative", attempted)
        elif field.full_name.startswith("orlop.v1.IdMap.") and value > MAX_ID:
            raise _wrong(name, f"{value} is above {MAX_ID}, the last id", attempted)


def _check_subject(full: str, name: str, value: str, attempted: str) -> None:
    """What a call is about: a name, or a path of a root."""
    _check_text(name, value, MAX_TEXT, attempted)
    if full in _NAMES:
        Reference.parse(value)
    elif not value:
        raise _wrong(name, "it is empty", attempted)
    elif full in _ROOTS:
        if not value.startswith("/"):
            raise _wrong(name, f"the path is relative: {value}", attempted)
        if value == "/" or value.startswith("//") or posixpath.normpath(value) != value:
            raise _wrong(name, f"the path is not clean: {value}", attempted)


def _check_text(name: str, value: str | bytes, most: int, attempted: str) -> None:
    raw = value.encode() if isinstance(value, str) else value
    if len(raw) > most:
        raise _wrong(name, f"it has {len(raw)} bytes, and may have {most}", attempted)
    if 0 in raw:
        raise _wrong(name, "there is a NUL in it", attempted)


def _check_count(name: str, count: int, attempted: str) -> None:
    if count > MAX_ITEMS:
        raise _wrong(name, f"there are {count}, and may be {MAX_ITEMS}", attempted)


def _wrong(name: str, problem: str, attempted: str) -> InvalidArgument:
    return InvalidArgument(attempted, f"{name}: {problem}", details={"field": name})
