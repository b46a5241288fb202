"""An image's history beside its layers: which line is about which layer."""

from __future__ import annotations

from itertools import takewhile

from orlop.errors import InvalidArgument
from orlop.images.browsing.trees import Source
from orlop.images.comparing import HistoryLine
from orlop.images.core import Core
from orlop.metadata import layers
from orlop.metadata.db import Transaction
from orlop.spec.digest import DiffID
from orlop.spec.documents import History, parse_config
from orlop.values import replace

__all__ = ["history_of", "layer_lines", "matched"]


def matched(history: list[History], diff_ids: tuple[DiffID, ...]) -> list[HistoryLine]:
    """The lines of a config, each with its layer, oldest first.

    A line that is not said to be of an empty layer is about the next layer, as long as there are any; layers
    that are left over get lines of their own (config.md asks for one each, and not all builders heed it).
    """
    lines: list[HistoryLine] = []
    number = 0
    for line in history:
        about = 0
        if not line.empty_layer and number < len(diff_ids):
            number += 1
            about = number
        lines.append(
            HistoryLine(
                layer=about,
                diff_id=diff_ids[about - 1] if about else "",
                created=line.created or "",
                created_by=line.created_by or "",
                author=line.author or "",
                comment=line.comment or "",
            )
        )
    left = enumerate(diff_ids[number:], number + 1)
    return lines + [HistoryLine(layer=about, diff_id=diff_id) for about, diff_id in left]


def history_of(core: Core, source: Source, attempted: str) -> list[HistoryLine]:
    """The history of an image, or of the one that a root came from, with the sizes of its layers."""
    if source.config is None:
        raise InvalidArgument(attempted, "a layer has no history", hint="images have")
    config = parse_config(core.blobs.read(source.config), attempted)
    lines = matched(config.history or [], core.layers_of(source.config, attempted))
    if source.first is not None:  # up to the line of the next layer
        lines = list(takewhile(lambda line: line.layer <= len(source.diff_ids), lines))

    def body(tx: Transaction) -> dict[DiffID, tuple[int, int]]:
        rows = {diff_id: layers.get_layer(tx, diff_id) for diff_id in set(source.diff_ids)}
        return {diff_id: (row.size, row.entries) for diff_id, row in rows.items() if row is not None}

    sizes = core.db.read(body)
    known = {str(diff_id): size for diff_id, size in sizes.items()}
    return [
        replace(line, size=known[line.diff_id][0], entries=known[line.diff_id][1])
        if line.diff_id in known
        else line
        for line in lines
    ]


def layer_lines(core: Core, source: Source, attempted: str) -> list[HistoryLine]:
    """One line for each layer, lowest first; for a layer alone what its diff ID tells."""
    if source.config is None:
        return matched([], source.diff_ids)
    return [line for line in history_of(core, source, attempted) if line.layer]
