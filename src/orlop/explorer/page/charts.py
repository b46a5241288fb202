"""Charts of a report, as SVG inside the page: colours are classes, so the style sheet knows the scheme.

Every rectangle carries a ``title`` that says what it is.  Texts in a chart are escaped here.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from html import escape

from orlop.explorer.page.text import PATH, count_text, plain, size_text
from orlop.explorer.survey import LayerSurvey, Node
from orlop.explorer.treemap import Rect, layout
from orlop.values import dataclass

__all__ = ["COLOURS", "bar", "colour_of", "layers_bar", "treemap"]

COLOURS = 8  # of the style sheet
_MOST = 420  # rectangles of a wide treemap; a narrow one has fewer
_AREA = 1_030 * 600 / _MOST  # square units for each
_SMALL = 90.0  # square units: nothing smaller is drawn by itself
_MUCH = 0.6  # of a folder may be too small to be drawn; else the folder stays closed
_MOSTLY = 0.97
_CHAIN = 12  # folders in one label
_HEAD = 17.0  # units for a folder's name
_GLYPH = 7.1  # units that a character of a label takes, on average
_GAP = 2.0
_SLIVER = 0.7  # thousandths of a bar that the smallest layer gets


def colour_of(layer: int) -> str:
    """The class of a layer's colour; 0 is a prepared root's changes."""
    return f"c{(layer - 1) % COLOURS + 1}" if layer else "c0"


def _number(value: float) -> str:
    """A coordinate, short."""
    return f"{value:.1f}".removesuffix(".0")


def bar(part: float, whole: float, css: str = "tone") -> str:
    """A share as a small bar."""
    width = max(100 * part / whole, 0.8) if part and whole else 0.0
    return (
        '<svg class=bar viewBox="0 0 100 6" preserveAspectRatio=none aria-hidden=true>'
        "<rect class=rail width=100 height=6 rx=1 />"
        f"<rect class={css} width={_number(width)} height=6 rx=1 />"
        "</svg>"
    )


def layers_bar(layers: Iterable[LayerSurvey]) -> str:
    """All layers beside each other, the lowest at the left; what is wasted of each is faded."""
    sized = [layer for layer in layers if layer.size]
    total = sum(layer.size for layer in sized)
    if not sized:
        return ""
    spare = 1000 - _SLIVER * len(sized)
    parts: list[str] = []
    at = 0.0
    for layer in sized:
        width = (_SLIVER + spare * layer.size / total) if spare > 0 else 1000 / len(sized)
        name = f"Layer {layer.number}" if layer.number else "Changes here"
        title = f"{name}: {size_text(layer.size)}"
        title += f", {size_text(layer.wasted)} of it wasted" if layer.wasted else ""
        gap = min(1.5, width / 5)
        parts.append(
            f"<g><title>{title}</title><rect class={colour_of(layer.number)} x={_number(at)} y=0"
            f" width={_number(width - gap)} height=30 />"
        )
        if layer.wasted:
            faded = (width - gap) * min(layer.wasted / layer.size, 1.0)
            begin = _number(at + width - gap - faded)
            parts.append(f"<rect class=faded x={begin} y=0 width={_number(faded)} height=30 />")
        parts.append("</g>")
        at += width
    return (
        '<svg class=layers viewBox="0 0 1000 30" preserveAspectRatio=none role=img'
        ' aria-label="The layers beside each other, by size">' + "".join(parts) + "</svg>"
    )


# ------------------------------------------------------------------ treemap


@dataclass(slots=True, kw_only=True)
class _Piece:
    """A rectangle to draw.

    ``label`` is one name, or several where a folder holds hardly more than one other.  ``rest`` is how many
    small things stand together in it, 0 for one thing.  ``opened``: what is in it is drawn, too.
    """

    path: bytes
    label: bytes
    node: Node
    rect: Rect
    depth: int
    size: int
    rest: int = 0
    opened: bool = False


def treemap(top: Node, width: int, height: int, css: str) -> str:
    """The files of a tree as areas, folders around what is in them; colours tell the layers."""
    pieces = _pieces(top, Rect(0.0, 0.0, float(width), float(height)))
    drawn = "".join(_drawn(piece) for piece in pieces)
    return (
        f'<svg class="map {css}" viewBox="0 0 {width} {height}" role=img'
        f' aria-label="The files as areas, by size">{drawn}</svg>'
    )


def _pieces(top: Node, whole: Rect) -> list[_Piece]:
    """What to draw, folders before what is in them: the largest are opened first, until there are enough."""
    found: list[_Piece] = []
    first = _Piece(path=b"", label=b"", node=top, rect=whole, depth=0, size=top.total)
    todo: list[tuple[float, int, _Piece]] = [(0.0, 0, first)]
    number = 0
    most = min(_MOST, whole.area / _AREA * 2)
    while todo and len(found) < most:
        _, _, piece = heapq.heappop(todo)
        below = _opened(piece)
        piece.opened = bool(below)
        for one in below:
            found.append(one)
            number += 1
            if one.node.is_folder and not one.rest:
                heapq.heappush(todo, (-one.rect.area, number, one))
    return found


def _opened(piece: _Piece) -> list[_Piece]:
    """What is in a folder, as far as it can be seen; the small rest is one piece."""
    inside = piece.rect
    if piece.depth:
        inside = Rect(
            inside.x + _GAP, inside.y + _HEAD, inside.width - 2 * _GAP, inside.height - _HEAD - _GAP
        )
    children = [child for child in piece.node.children.values() if child.total and child.what != "deleted"]
    if inside.width < 14 or inside.height < 12 or not children:
        return []
    children.sort(key=lambda child: (-child.total, child.name))
    total = sum(child.total for child in children)
    seen = [child for child in children if child.total / total * inside.area >= _SMALL]
    rest = children[len(seen) :]
    left = sum(child.total for child in rest)
    if not seen or left > total * _MUCH:
        return []
    rects = layout([child.total for child in seen] + [left], inside.width, inside.height)
    placed = [Rect(inside.x + one.x, inside.y + one.y, one.width, one.height) for one in rects]
    depth = piece.depth + 1
    found = [_piece(piece.path, child, rect, depth) for child, rect in zip(seen, placed, strict=False)]
    if rest and placed[-1].area >= _SMALL / 4:
        found.append(
            _Piece(
                path=piece.path,
                label=b"",
                node=piece.node,
                rect=placed[-1],
                depth=depth,
                rest=len(rest),
                size=left,
            )
        )
    return found


def _piece(above: bytes, node: Node, rect: Rect, depth: int) -> _Piece:
    """One thing; a folder that holds hardly more than one folder stands for both."""
    label, size = node.name, node.total
    for _ in range(_CHAIN):
        inner = max(node.children.values(), key=lambda child: (child.total, child.name), default=None)
        if inner is None or not inner.is_folder or inner.total < _MOSTLY * node.total or not inner.total:
            break
        label, node = label + b"/" + inner.name, inner
    path = above + b"/" + label if above else label
    return _Piece(path=path, label=label, node=node, rect=rect, depth=depth, size=size)


def _drawn(piece: _Piece) -> str:
    rect, node = piece.rect, piece.node
    folder = node.is_folder and not piece.rest
    if piece.rest:
        css, label = "rest", f"{count_text(piece.rest)} more"
        title = f"{count_text(piece.rest)} smaller in /{plain(piece.path, PATH)}: {size_text(piece.size)}"
    elif folder:
        css, label = "d" if piece.opened else colour_of(_main_layer(node)), plain(piece.label, 80)
        title = f"/{plain(piece.path, PATH)}/: {size_text(piece.size)} in {count_text(node.count)} names"
    else:
        css, label = colour_of(node.layer), plain(piece.label, 80)
        title = f"/{plain(piece.path, PATH)}: {size_text(piece.size)}, {_brought(node.layer)}"
    x, y = rect.x + 0.5, rect.y + 0.5
    width, height = max(rect.width - 1, 0.5), max(rect.height - 1, 0.5)
    drawn = (
        f"<g class={css}><title>{escape(title)}</title>"
        f"<rect x={_number(x)} y={_number(y)} width={_number(width)} height={_number(height)} />"
    )
    room = int((width - 8) / _GLYPH)
    if height >= 15 and room >= 4:
        drawn += _labels(
            label, size_text(piece.size), x + 4, y + 12, room, below=height >= 30 and not piece.opened
        )
    return drawn + "</g>"


def _labels(label: str, size: str, x: float, y: float, room: int, *, below: bool) -> str:
    """A name and a size, as far as there is room for so many characters; the size ``below`` or beside it."""
    text = label if len(label) <= room else label[: room - 1] + "…"
    drawn = f"<text x={_number(x)} y={_number(y)}>{escape(text)}"
    if below and len(size) <= room:
        return f"{drawn}</text><text class=n x={_number(x)} y={_number(y + 14)}>{size}</text>"
    if not below and len(text) + len(size) + 2 <= room:
        drawn += f"<tspan class=n dx=6>{size}</tspan>"
    return drawn + "</text>"


def _main_layer(top: Node) -> int:
    """The layer that brought most of what is in a folder."""
    sums: dict[int, int] = {}
    todo = [top]
    while todo:
        node = todo.pop()
        if node.kind == "file" and node.what != "deleted":
            sums[node.layer] = sums.get(node.layer, 0) + node.size
        todo.extend(node.children.values())
    return max(sums, key=lambda layer: (sums[layer], -layer), default=top.layer)


def _brought(layer: int) -> str:
    return f"from layer {layer}" if layer else "changed here"
