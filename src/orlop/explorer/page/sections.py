"""The sections of a report that the tree and the layers tell; none for one that has nothing to tell."""

from __future__ import annotations

from orlop.explorer.page.charts import COLOURS, bar, colour_of, layers_bar, treemap
from orlop.explorer.page.facts import Change, Facts, Item
from orlop.explorer.page.tables import (
    EMPTY,
    Cell,
    Column,
    Section,
    count_cell,
    cut_off,
    layer_cell,
    path_cell,
    section,
    size_cell,
    table,
)
from orlop.explorer.page.text import count_text, percent_text, size_text
from orlop.explorer.page.told import command_html
from orlop.explorer.survey import LayerSurvey, Node, State, Survey
from orlop.images.comparing import WastedFile

__all__ = ["changes", "kinds", "largest", "layers", "sizes", "waste"]

LAYERS = 120
_COMMAND = 500  # characters; the history has more
_BAR = 400  # layers that the bar shows


def layers(survey: Survey) -> Section:
    """The layers beside each other, and what each did."""
    told = survey.layers[:LAYERS]
    columns = [
        Column(head="Layer", css="nw"),
        Column(head="Size", css="r"),
        Column(head="Entries", css="r", label="entries"),
        Column(head="Added", css="r", label="added"),
        Column(head="Changed", css="r", label="changed"),
        Column(head="Deleted", css="r", label="deleted"),
        Column(head="Wasted", css="r", label="wasted"),
        Column(head="Made by", css="cmd wide-cell"),
    ]
    rows = [
        (
            layer_cell(layer.number, name="changes"),
            size_cell(layer.size),
            count_cell(layer.entries),
            count_cell(layer.added, "added"),
            count_cell(layer.changed, "changed"),
            count_cell(layer.deleted, "deleted"),
            size_cell(layer.wasted) if layer.wasted else count_cell(0),
            Cell(_made_by(layer)),
        )
        for layer in told
    ]
    if not rows:
        return section("layers", "Layers", "The image has none.")
    more = cut_off(len(survey.layers), LAYERS, "layers")
    return section(
        "layers",
        "Layers",
        "The lowest comes first. Added, changed and deleted count names that show differently above a layer "
        "than below it; wasted is what later layers hide or delete, and faded in the bar.",
        layers_bar(survey.layers[:_BAR]),
        table("layer-list", columns, rows, files=False, short=20),
        more,
    )


def _made_by(layer: LayerSurvey) -> str:
    if not layer.number:
        return "<span class=soft>written to the prepared root</span>"
    return command_html(layer.created_by, layer.comment, limit=_COMMAND)


# ------------------------------------------------------------------ sizes


def sizes(survey: Survey, tree: Node) -> Section:
    """Where the bytes are: a treemap, for a wide page and for a narrow one."""
    if not tree.total:
        return EMPTY
    known = [layer for layer in survey.layers if layer.size]
    largest_layers = sorted(known, key=lambda one: (-one.size, one.number))[:COLOURS]
    legend = "".join(
        f'<span><i class="sw {colour_of(layer.number)}"></i>'
        f"{f'Layer {layer.number}' if layer.number else 'Changed here'}</span>"
        for layer in known
        if len(known) > 1 and layer in largest_layers
    )
    return section(
        "sizes",
        "What takes the space",
        "Each area is a file or a folder, as large as its bytes; its colour tells the layer that brought it.",
        f"<figure>{treemap(tree, 1030, 600, 'wide')}{treemap(tree, 340, 520, 'narrow')}</figure>\n",
        f"<div class=legend>{legend}</div>\n" if legend else "",
    )


# ------------------------------------------------------------------ files


def largest(facts: Facts) -> Section:
    """The largest files and folders."""
    if not facts.files:
        return EMPTY
    most = facts.files[0].size
    columns = [
        Column(head="Path", css="path"),
        Column(head="Layer", css="nw"),
        Column(head="Size", css="r"),
        Column(head="", css="b"),
    ]
    whole = facts.folders[0].size if facts.folders else 1
    folders = [
        Column(head="Path", css="path"),
        Column(head="Names", css="r", label="names"),
        Column(head="Size", css="r"),
        Column(head="", css="b"),
    ]
    return section(
        "largest",
        "Largest files and folders",
        "A folder that holds hardly more than one folder in it is left out: that one tells it.",
        "<h3>Files</h3>",
        table("file-list", columns, (_file_row(item, most) for item in facts.files)),
        "<h3>Folders</h3>" if facts.folders else "",
        table("folder-list", folders, (_folder_row(item, whole) for item in facts.folders)),
    )


def _file_row(item: Item, most: int) -> tuple[Cell, ...]:
    return (
        path_cell(item.path),
        layer_cell(item.layer),
        size_cell(item.size),
        Cell(bar(item.size, most, colour_of(item.layer))),
    )


def _folder_row(item: Item, most: int) -> tuple[Cell, ...]:
    return (
        path_cell(item.path, folder=True),
        count_cell(item.count),
        size_cell(item.size),
        Cell(bar(item.size, most, "tone")),
    )


def waste(survey: Survey) -> Section:
    """What nothing shows any more, and what hides it."""
    if not survey.wasted:
        return EMPTY
    columns = [
        Column(head="Path", css="path"),
        Column(head="Layer", css="nw", label="layer"),
        Column(head="Hidden by", css="nw", label="hidden by"),
        Column(head="Size", css="r"),
    ]
    rows = (
        (
            path_cell(file.path),
            layer_cell(file.layer),
            Cell(
                f"{layer_cell(file.hidden_by).html} <span class={file.what}>{file.what}</span>",
                file.hidden_by,
            ),
            size_cell(file.size),
        )
        for file in survey.waste
    )
    share = percent_text(survey.wasted, survey.content)
    return section(
        "waste",
        "Wasted space",
        f"{size_text(survey.wasted)}, {share} of the {size_text(survey.content)} in the files of all layers, "
        "never show: later layers change or delete them. To avoid it, delete what is not needed before its "
        "layer ends.",
        bar(survey.wasted, survey.content, "waste"),
        "<h3>Largest hidden files</h3>",
        table("waste-list", columns, rows),
    )


def _hidden_by(file: WastedFile) -> Cell:
    html = f"{layer_cell(file.hidden_by).html} <span class={file.what}>{file.what}</span>"
    return Cell(html, file.hidden_by)


def kinds(facts: Facts) -> Section:
    """What kinds of files there are, by their names."""
    if not facts.kinds:
        return EMPTY
    most = max(group.size for group in facts.kinds)
    columns = [
        Column(head="Kind"),
        Column(head="Files", css="r", label="files"),
        Column(head="Size", css="r"),
        Column(head="", css="b"),
    ]
    rows = (
        (
            Cell(group.kind),
            count_cell(group.count),
            size_cell(group.size),
            Cell(bar(group.size, most, "tone")),
        )
        for group in facts.kinds
    )
    return section(
        "kinds",
        "Kinds of files",
        "Told by names alone; a file with several names counts with each.",
        table("kind-list", columns, rows, files=False, short=30),
    )


# ------------------------------------------------------------------ a prepared root


_WHAT: dict[State, str] = {"added": "Added", "changed": "Changed", "deleted": "Deleted"}


def changes(survey: Survey, facts: Facts) -> Section:
    """What was changed in a prepared root."""
    if survey.kind != "root":
        return EMPTY
    sums = survey.layers[-1]
    if not (sums.added or sums.changed or sums.deleted):
        return section("changes", "What changed here", "Nothing: the root is as its image has it.")
    about = (
        f"Since it was prepared, {count_text(sums.added)} names were added ({size_text(sums.added_bytes)}), "
        f"{count_text(sums.changed)} changed ({size_text(sums.changed_bytes)}) and "
        f"{count_text(sums.deleted)} deleted. A folder that came or went whole stands for all in it."
    )
    parts: list[str] = []
    for what, heading in _WHAT.items():
        found = facts.changes[what]
        if not found:
            continue
        columns = [
            Column(head="Path", css="path"),
            Column(head="What", label=""),
            Column(head="Size", css="r"),
        ]
        rows = (
            (path_cell(one.path, folder=one.kind == "folder"), Cell(_said(one)), size_cell(one.size))
            for one in found
        )
        parts.append(f"<h3 class={what}>{heading}</h3>")
        parts.append(table(f"{what}-list", columns, rows))
        parts.append(cut_off(facts.all_changes[what], len(found), "entries"))
    return section("changes", "What changed here", about, *parts)


def _said(one: Change) -> str:
    if one.fields:
        words = ", ".join(one.fields)
        return f"{words}, was {size_text(one.before)}" if "content" in one.fields else words
    if one.kind == "folder":
        return f"folder, {count_text(one.count)} names" if one.count else "empty folder"
    return one.kind
