"""Verbs that tell where the things of an image came from: ``blame``, ``history``, ``tree``, ``waste``."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import AbstractContextManager, closing, nullcontext, suppress

from orlop.cli import declared as click
from orlop.cli import output
from orlop.cli.contents import JSON_LINES, json_of, platform_option, shown_path
from orlop.cli.exits import one_line
from orlop.cli.session import Session, format_options, formats, pass_session, path_hint, verb
from orlop.errors import InvalidArgument
from orlop.hints import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from orlop.facade import Store
    from orlop.images.comparing import Blame, BlameStep, HistoryLine, TreeLine, Waste, WastedFile
    from orlop.images.contents import FileInfo
    from orlop.observe import Call

__all__ = ["blame_verb", "hint_of", "history_verb", "tree_verb", "waste_verb"]

_SHORT = 45  # characters of a history's line, as docker has it
_GONE = {
    "whiteout": "a whiteout",
    "opaque": "an opaque mark",
    "replaced": "something else in its folder's place",
    "written": "a change in the root",
}

no_trunc_option = click.option("--no-trunc", is_flag=True, help="Whole digests and commands.")


# ------------------------------------------------------------------ blame


@verb(
    "blame",
    "orlop blame alpine /etc/passwd",
    "orlop blame -r --json alpine /etc",
    "orlop blame /srv/a /etc/hosts",
)
@click.argument("thing", metavar="IMAGE")
@click.argument("path", metavar="PATH", type=click.Path())
@click.option("-r", "--recursive", is_flag=True, help="What is below a folder: of each path its layer.")
@formats(
    names="The layers' diff IDs alone; with -r the paths.",
    as_json="JSON; its fields are stable.  With -r a line for each path.",
)
@no_trunc_option
@platform_option
@pass_session
def blame_verb(
    session: Session,
    thing: str,
    path: str,
    recursive: bool,
    no_trunc: bool,
    platform: str | None,
    form: str = "table",
) -> None:
    """Show which layers brought, changed and deleted a path; nothing is mounted.

    The first line is about the layer that has the last word, the others about those it hid, with the commands
    of the image's history that made them.  PATH may be gone: then the first line says who deleted it.
    Symlinks above its last name are followed.

    IMAGE may also be the path of a prepared root, of which changes that are not committed count as a layer.
    """
    with session.store() as store, session.call(quiet=True) as call, hint_of(thing):
        if recursive:
            _blame_below(store, thing, path, platform, call, form=form, whole=no_trunc)
            return
        found = store.blame(thing, os.fsencode(path), platform=platform, call=call)
    if form == "json":
        output.write_json(blame_json(found))
        return
    columns: list[output.Column] = [
        ("LAYER", lambda step: str(step.line.layer or "root")),
        ("DIFF ID", lambda step: _short_digest(step.line.diff_id, whole=no_trunc)),
        ("WHAT", _step_text),
        ("SIZE", lambda step: _size_text(step.file)),
        ("CREATED BY", lambda step: _short(step.line.created_by, whole=no_trunc)),
        ("COMMENT", lambda step: step.line.comment),
    ]
    output.show_list(
        found.steps[::-1], columns, form=form, names=lambda step: step.line.diff_id, record=_step_json
    )


def _step_text(step: BlameStep) -> str:
    if step.what == "deleted":
        where = f" at {shown_path(step.at)}" if step.how in {"opaque", "replaced", "whiteout"} else ""
        return f"deleted by {_GONE.get(step.how, step.how)}{where}"
    if step.how == "link":
        return f"{step.what}, a hard link to {shown_path(step.source)} of layer {step.source_layer}"
    return f"{step.what}, implied" if step.how == "implied" else step.what


def blame_json(blame: Blame) -> dict[str, Any]:
    """What became of a path, as what JSON has."""
    return {
        "path": shown_path(blame.path),
        "exists": blame.file is not None,
        "steps": [_step_json(step) for step in blame.steps],
    }


def _step_json(step: BlameStep) -> dict[str, Any]:
    return {
        **output.plain(step.line),
        "what": step.what,
        "how": step.how,
        "at": shown_path(step.at),
        "file": json_of(step.file) if step.file is not None else None,
        "source": shown_path(step.source) if step.how == "link" else None,
        "source_layer": step.source_layer or None,
    }


def _blame_below(
    store: Store, thing: str, path: str, platform: str | None, call: Call, *, form: str, whole: bool
) -> None:
    lines: dict[int, HistoryLine] = {}
    with suppress(InvalidArgument):  # a layer has no history
        found_lines = store.history(thing, platform=platform, call=call)
        lines = {line.layer: line for line in found_lines if line.layer}
    width = max([len("root"), *(len(str(number)) for number in lines)])

    def said(one: TreeLine) -> str:
        line = lines.get(one.layer)
        digest = _short_digest(line.diff_id if line else "", whole=whole)
        command = _short(line.created_by if line else "", whole=whole)
        words = f"{one.layer or 'root':>{width}}  {digest:12}  {command:{_SHORT}}"
        return f"{words}  {shown_path(one.file.path)}"

    found = store.tree(thing, os.fsencode(path), layers=True, platform=platform, call=call)
    with closing(found):
        output.show_each(
            found,
            form=form,
            line=said,
            names=lambda one: shown_path(one.file.path),
            record=lambda one: origin_json(one, lines.get(one.layer)),
        )


def origin_json(one: TreeLine, line: HistoryLine | None) -> dict[str, Any]:
    """Where a path came from, as what JSON has."""
    return {
        "path": shown_path(one.file.path),
        "layer": one.layer or None,
        "diff_id": line.diff_id if line else None,
        "created_by": line.created_by if line else None,
        "file": json_of(one.file),
    }


# ------------------------------------------------------------------ history


@verb(
    "history",
    "orlop history alpine",
    "orlop history --no-trunc --format '{{.created_by}}' alpine",
)
@click.argument("image", metavar="IMAGE")
@format_options
@no_trunc_option
@platform_option
@pass_session
def history_verb(
    session: Session, image: str, no_trunc: bool, platform: str | None, form: str = "table"
) -> None:
    """Show how an image was made: its history, each line with its layer.

    The newest comes first.  LAYER is the layer's number, 1 the lowest; a line without one changed only the
    image's config.  SIZE is that of the layer's tar.  With -q the diff IDs of the layers.
    """
    columns: list[output.Column] = [
        ("LAYER", lambda line: str(line.layer or "-")),
        ("DIFF ID", lambda line: _short_digest(line.diff_id, whole=no_trunc)),
        ("CREATED", lambda line: output.ago(line.created)),
        ("CREATED BY", lambda line: _short(line.created_by, whole=no_trunc)),
        ("SIZE", lambda line: output.size_text(line.size)),
        ("COMMENT", lambda line: line.comment),
    ]
    with session.store() as store, session.call(quiet=True) as call, hint_of(image):
        lines = store.history(image, platform=platform, call=call)[::-1]
    if form == "name":
        lines = [line for line in lines if line.layer]
    output.show_list(lines, columns, form=form, names=lambda line: line.diff_id)


# ------------------------------------------------------------------ tree


@verb(
    "tree",
    "orlop tree -L 2 alpine",
    "orlop tree --layers alpine /etc",
    "orlop tree -d -L 1 /srv/a /var",
)
@click.argument("thing", metavar="IMAGE")
@click.argument("path", metavar="[PATH]", default="/", type=click.Path())
@click.option("-L", "--depth", type=click.IntRange(min=0), help="How many folders deep.  [default: all]")
@click.option("-d", "--folders", is_flag=True, help="Folders alone.")
@click.option("--layers", is_flag=True, help="Which layer each came from.")
@formats(names="Paths alone, one a line.", as_json=JSON_LINES)
@platform_option
@pass_session
def tree_verb(
    session: Session,
    thing: str,
    path: str,
    depth: int | None,
    folders: bool,
    layers: bool,
    platform: str | None,
    form: str = "table",
) -> None:
    """Show files as a tree, with sizes and the layers they came from; nothing is mounted.

    IMAGE is an image, a layer's diff ID, or the path of a prepared root.

    The size of a folder is that of all files in it, however deep the tree is shown; a file with several names
    counts once.  With --layers the number of the layer that brought each stands before it, 1 the lowest, or
    `root` where the changes of a prepared root did.
    """
    with session.store() as store, session.call(quiet=True) as call, hint_of(thing):
        found = store.tree(thing, os.fsencode(path), depth=depth, layers=layers, platform=platform, call=call)
        with closing(found):
            output.show_each(
                (line for line in found if not folders or line.file.kind == "folder"),
                form=form,
                line=lambda line: _tree_text(line, layers=layers),
                names=lambda line: shown_path(line.file.path),
                record=lambda line: tree_json(line, layers=layers),
            )


def tree_json(line: TreeLine, *, layers: bool) -> dict[str, Any]:
    """A line of a tree, as what JSON has."""
    found = {**json_of(line.file), "total": line.total, "entries": line.entries, "depth": line.depth}
    return {**found, "layer": line.layer or None} if layers else found


def _tree_text(line: TreeLine, *, layers: bool) -> str:
    file = line.file
    name = shown_path(file.path) if not line.depth else os.fsdecode(file.path.rpartition(b"/")[2])
    name += "/" if file.kind == "folder" and file.path and line.depth else ""
    arrow = f" -> {os.fsdecode(file.target)}" if file.kind == "symlink" else ""
    size = output.size_text(line.total) if file.kind in {"file", "folder"} else file.kind
    layer = f"{line.layer or 'root':>5} " if layers else ""
    return f"{size:>9} {layer} {'  ' * line.depth}{name}{arrow}"


# ------------------------------------------------------------------ waste


@verb(
    "waste",
    "orlop waste alpine",
    "orlop waste --files 50 localhost/mine",
    "orlop waste --json localhost/mine | jq .efficiency",
)
@click.argument("image", metavar="IMAGE")
@click.option(
    "-n", "--files", type=click.IntRange(min=0), default=10, show_default=True, help="How many files to list."
)
@formats(names="Paths of hidden files alone, one a line.")
@no_trunc_option
@platform_option
@pass_session
def waste_verb(
    session: Session, image: str, files: int, no_trunc: bool, platform: str | None, form: str = "table"
) -> None:
    """Show what an image's layers hold that layers above hide or delete.

    SIZE counts the bytes of all regular files of a layer, WASTED those that are hidden, ENTRIES how many
    files, folders, symlinks and devices are.  Efficiency is the share of the bytes that shows: 100 % where
    nothing is hidden.  Building the image so that what is not needed is gone before its layer ends avoids
    the waste.

    With -q and with a template it lists the files alone; a template's fields are those of files in the JSON.
    """
    with session.store() as store, session.call(quiet=True) as call, hint_of(image):
        found = store.waste(image, files=files, platform=platform, call=call)
    if form == "json":
        output.write_json(waste_json(found))
        return
    if form != "table":
        _show_files(found.files, form)
        return
    columns: list[output.Column] = [
        ("LAYER", lambda layer: str(layer.line.layer)),
        ("DIFF ID", lambda layer: _short_digest(layer.line.diff_id, whole=no_trunc)),
        ("SIZE", lambda layer: output.size_text(layer.size)),
        ("WASTED", lambda layer: output.size_text(layer.wasted)),
        ("ENTRIES", lambda layer: str(layer.entries)),
        ("CREATED BY", lambda layer: _short(layer.line.created_by, whole=no_trunc)),
    ]
    output.show_list(found.layers, columns, form="table", names=str)
    output.write(
        f"\n{output.size_text(found.wasted)} of {output.size_text(found.size)} are hidden: "
        f"efficiency {100 * found.efficiency:.1f} %\n"
    )
    if found.files:
        output.write("\n")
        _show_files(found.files, form)


def _show_files(files: Iterable[WastedFile], form: str) -> None:
    columns: list[output.Column] = [
        ("SIZE", lambda file: output.size_text(file.size)),
        ("LAYER", lambda file: str(file.layer)),
        ("HIDDEN BY", lambda file: f"{file.hidden_by} ({file.what})"),
        ("PATH", lambda file: shown_path(file.path)),
    ]
    output.show_list(
        list(files), columns, form=form, names=lambda file: shown_path(file.path), record=_wasted_json
    )


def _wasted_json(file: WastedFile) -> dict[str, Any]:
    return {**output.plain(file), "path": shown_path(file.path)}


def waste_json(waste: Waste) -> dict[str, Any]:
    """What an image hides, as what JSON has."""
    return {
        "size": waste.size,
        "wasted": waste.wasted,
        "efficiency": waste.efficiency,
        "layers": [
            {
                "layer": layer.line.layer,
                "diff_id": layer.line.diff_id,
                "created_by": layer.line.created_by,
                "size": layer.size,
                "wasted": layer.wasted,
                "entries": layer.entries,
                "files": layer.files,
            }
            for layer in waste.layers
        ],
        "files": [_wasted_json(file) for file in waste.files],
    }


# ------------------------------------------------------------------ texts


def hint_of(thing: str) -> AbstractContextManager[None]:
    """What to write instead of a relative path; an image's name may look like one."""
    return path_hint(thing) if thing.startswith(".") else nullcontext()


def _short_digest(digest: str, *, whole: bool) -> str:
    return digest if whole else output.short_id(digest)


def _short(text: str, *, whole: bool) -> str:
    line = one_line(text)
    return line if whole or len(line) <= _SHORT else line[: _SHORT - 3] + "..."


def _size_text(file: FileInfo | None) -> str:
    if file is None:
        return "-"
    return output.size_text(file.size) if file.kind == "file" else file.kind
