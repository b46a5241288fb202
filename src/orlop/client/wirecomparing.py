"""The values of `orlop.images.comparing` as messages of orlop.v1.Comparing and back."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Any, TypeVar

from orlop.client.status import text
from orlop.client.wirecontents import file_from, file_to
from orlop.errors import Internal
from orlop.images.comparing import (
    Blame,
    BlameStep,
    Difference,
    HistoryLine,
    How,
    LayerWaste,
    TreeLine,
    Waste,
    WastedFile,
    What,
)
from orlop.proto.orlop.v1 import comparing_pb2 as pb

__all__ = [
    "blame_from",
    "blame_to",
    "difference_from",
    "difference_to",
    "differences_from",
    "differences_to",
    "history_line_from",
    "history_line_to",
    "step_from",
    "step_to",
    "tree_line_from",
    "tree_line_to",
    "tree_lines_from",
    "tree_lines_to",
    "waste_from",
    "waste_to",
    "wasted_file_from",
    "wasted_file_to",
    "wasted_layer_from",
    "wasted_layer_to",
]

_PART = 500  # values in one message
_PART_BYTES = 1 << 20
_WHAT: dict[What, pb.PathChange.ValueType] = {
    "added": pb.PATH_CHANGE_ADDED,
    "changed": pb.PATH_CHANGE_CHANGED,
    "deleted": pb.PATH_CHANGE_DELETED,
}
_HOW: dict[How, pb.ChangedBy.ValueType] = {
    "entry": pb.CHANGED_BY_ENTRY,
    "link": pb.CHANGED_BY_LINK,
    "implied": pb.CHANGED_BY_IMPLIED,
    "whiteout": pb.CHANGED_BY_WHITEOUT,
    "opaque": pb.CHANGED_BY_OPAQUE,
    "replaced": pb.CHANGED_BY_REPLACED,
    "written": pb.CHANGED_BY_WRITTEN,
}
_WHAT_FROM = {number: word for word, number in _WHAT.items()}
_HOW_FROM = {number: word for word, number in _HOW.items()}
_T = TypeVar("_T")
_M = TypeVar("_M", pb.Differences, pb.TreeLines)


def difference_to(value: Difference) -> pb.Difference:
    """A difference."""
    return pb.Difference(
        path=value.path,
        what=_WHAT[value.what],
        fields=value.fields,
        old=file_to(value.old) if value.old is not None else None,
        new=file_to(value.new) if value.new is not None else None,
    )


def difference_from(message: pb.Difference) -> Difference:
    """The inverse of `difference_to`."""
    return Difference(
        path=message.path,
        what=_what_from(message.what),
        fields=tuple(message.fields),
        old=file_from(message.old) if message.HasField("old") else None,
        new=file_from(message.new) if message.HasField("new") else None,
    )


def differences_to(values: Iterable[Difference]) -> Generator[pb.Differences]:
    """Differences in parts that fit a message."""
    return _parts(values, pb.Differences, lambda part: part.differences, difference_to)


def differences_from(part: pb.Differences) -> Iterator[Difference]:
    """The differences of a part."""
    return map(difference_from, part.differences)


def history_line_to(value: HistoryLine) -> pb.HistoryLine:
    """A line of a history."""
    return pb.HistoryLine(
        layer=value.layer,
        diff_id=value.diff_id,
        created=text(value.created),
        created_by=text(value.created_by),
        author=text(value.author),
        comment=text(value.comment),
        size=value.size,
        entries=value.entries,
    )


def history_line_from(message: pb.HistoryLine) -> HistoryLine:
    """The inverse of `history_line_to`."""
    return HistoryLine(
        layer=message.layer,
        diff_id=message.diff_id,
        created=message.created,
        created_by=message.created_by,
        author=message.author,
        comment=message.comment,
        size=message.size,
        entries=message.entries,
    )


def step_to(value: BlameStep) -> pb.BlameStep:
    """What one layer did to a path."""
    return pb.BlameStep(
        what=_WHAT[value.what],
        how=_HOW[value.how],
        line=history_line_to(value.line),
        at=value.at,
        file=file_to(value.file) if value.file is not None else None,
        source=value.source,
        source_layer=value.source_layer,
    )


def step_from(message: pb.BlameStep) -> BlameStep:
    """The inverse of `step_to`."""
    if message.how not in _HOW_FROM:
        raise Internal("read the daemon's answer", f"an unknown way to change a path: {message.how}")
    return BlameStep(
        what=_what_from(message.what),
        how=_HOW_FROM[message.how],
        line=history_line_from(message.line),
        at=message.at,
        file=file_from(message.file) if message.HasField("file") else None,
        source=message.source,
        source_layer=message.source_layer,
    )


def blame_to(value: Blame) -> pb.BlameResponse:
    """What became of a path."""
    return pb.BlameResponse(path=value.path, steps=map(step_to, value.steps))


def blame_from(message: pb.BlameResponse) -> Blame:
    """The inverse of `blame_to`."""
    return Blame(path=message.path, steps=tuple(map(step_from, message.steps)))


def tree_line_to(value: TreeLine) -> pb.TreeLine:
    """A line of a tree."""
    return pb.TreeLine(
        file=file_to(value.file),
        total=value.total,
        entries=value.entries,
        layer=value.layer,
        depth=value.depth,
    )


def tree_line_from(message: pb.TreeLine) -> TreeLine:
    """The inverse of `tree_line_to`."""
    return TreeLine(
        file=file_from(message.file),
        total=message.total,
        entries=message.entries,
        layer=message.layer,
        depth=message.depth,
    )


def tree_lines_to(values: Iterable[TreeLine]) -> Generator[pb.TreeLines]:
    """Lines in parts that fit a message."""
    return _parts(values, pb.TreeLines, lambda part: part.lines, tree_line_to)


def tree_lines_from(part: pb.TreeLines) -> Iterator[TreeLine]:
    """The lines of a part."""
    return map(tree_line_from, part.lines)


def wasted_layer_to(value: LayerWaste) -> pb.LayerWaste:
    """What of a layer nothing shows."""
    return pb.LayerWaste(
        line=history_line_to(value.line),
        size=value.size,
        wasted=value.wasted,
        entries=value.entries,
        files=value.files,
    )


def wasted_layer_from(message: pb.LayerWaste) -> LayerWaste:
    """The inverse of `wasted_layer_to`."""
    return LayerWaste(
        line=history_line_from(message.line),
        size=message.size,
        wasted=message.wasted,
        entries=message.entries,
        files=message.files,
    )


def wasted_file_to(value: WastedFile) -> pb.WastedFile:
    """A file that nothing shows."""
    return pb.WastedFile(
        path=value.path,
        size=value.size,
        layer=value.layer,
        hidden_by=value.hidden_by,
        what=_WHAT[value.what],
    )


def wasted_file_from(message: pb.WastedFile) -> WastedFile:
    """The inverse of `wasted_file_to`."""
    return WastedFile(
        path=message.path,
        size=message.size,
        layer=message.layer,
        hidden_by=message.hidden_by,
        what=_what_from(message.what),
    )


def waste_to(value: Waste) -> pb.WasteResponse:
    """What of an image nothing shows."""
    return pb.WasteResponse(layers=map(wasted_layer_to, value.layers), files=map(wasted_file_to, value.files))


def waste_from(message: pb.WasteResponse) -> Waste:
    """The inverse of `waste_to`."""
    return Waste(
        layers=tuple(map(wasted_layer_from, message.layers)),
        files=tuple(map(wasted_file_from, message.files)),
    )


def _what_from(number: pb.PathChange.ValueType) -> What:
    if number not in _WHAT_FROM:
        raise Internal("read the daemon's answer", f"an unknown change of a path: {number}")
    return _WHAT_FROM[number]


def _parts(
    values: Iterable[_T], kind: type[_M], items: Callable[[_M], Any], to: Callable[[_T], Any]
) -> Generator[_M]:
    part, size = kind(), 0
    for value in values:
        message = to(value)
        items(part).append(message)
        size += message.ByteSize()
        if len(items(part)) >= _PART or size >= _PART_BYTES:
            yield part
            part, size = kind(), 0
    if items(part):
        yield part
