"""Verbs that say where the disk went: ``df``, ``explain``."""

from __future__ import annotations

from contextlib import nullcontext

from orlop.cli import declared as click
from orlop.cli import output
from orlop.cli.exits import one_line
from orlop.cli.session import Session, formats, pass_session, path_hint, verb
from orlop.hints import TYPE_CHECKING

if TYPE_CHECKING:
    from orlop.images.upkeep import Explanation, ImageUsage, Part, Usage

__all__ = ["df_verb", "explain_verb"]

_MADE_FOR_IMAGES = {"layers", "chains", "folders", "blobs"}
_SHOWN = 10  # of those that keep a thing, and of its parts, unless all are asked for
_SHARERS = 2
_PREFIXED = {"layer", "blob", "config", "manifest"}  # parts that have a digest for a name


@verb(
    "df",
    "orlop df -v",
    "orlop df --json | jq '.images[] | {names, unique}'",
)
@click.option("-v", "--images", "with_images", is_flag=True, help="Also how it divides among images.")
@formats(
    names="The kinds alone; with -v the images' names.",
    as_json="JSON, with the images; its fields are stable.",
)
@pass_session
def df_verb(session: Session, with_images: bool, form: str = "table") -> None:
    """Show what the store takes on disk.

    The sizes are blocks of disk, and add up to what `du -sx` says of the store's folder.  RECLAIMABLE is
    what `orlop gc` would free now.

    With -v also for each image: what would go with it (UNIQUE), and what it needs but others keep, too
    (SHARED).  The last lines are what several images or roots share, counted once, and all the rest, so that
    this column adds up to the total.

    A template's fields are those of `parts` in the JSON, with -v those of `images`.
    """
    with session.store() as store, session.call() as call:
        usage = store.usage(call=call)
    if form == "json":
        output.write_json({**output.plain(usage), "size": usage.size, "reclaimable": usage.reclaimable})
        return
    if form != "table" and with_images:
        output.show_each(usage.images, form=form, line=str, names=lambda image: image.names[0])
        return
    if form != "table":
        output.show_each(usage.parts, form=form, line=str, names=lambda part: part.kind)
        return
    _show_parts(usage)
    if with_images:
        _show_images(usage)
    output.write(
        f"\n{output.size_text(usage.free)} of {output.size_text(usage.capacity)} are free on that disk\n"
    )


def _show_parts(usage: Usage) -> None:
    columns: list[output.Column] = [
        ("KIND", lambda part: part[0]),
        ("COUNT", lambda part: part[1]),
        ("SIZE", lambda part: output.size_text(part[2])),
        ("RECLAIMABLE", lambda part: output.size_text(part[3])),
    ]
    rows = [(part.kind, str(part.count), part.size, part.reclaimable) for part in usage.parts]
    rows.append(("total", "", usage.size, usage.reclaimable))
    output.show_list(rows, columns, form="table", names=str)


def _show_images(usage: Usage) -> None:
    columns: list[output.Column] = [
        ("IMAGE", lambda image: image[0]),
        ("ID", lambda image: output.short_id(image[1])),
        ("UNIQUE", lambda image: output.size_text(image[2])),
        ("SHARED", lambda image: "" if image[3] is None else output.size_text(image[3])),
    ]
    rows: list[tuple[str, str, int, int | None]] = [
        (_names(image), image.id, image.unique, image.shared) for image in usage.images
    ]
    unique = sum(image.unique for image in usage.images)
    kept = sum(part.size - part.reclaimable for part in usage.parts if part.kind in _MADE_FOR_IMAGES)
    shared = kept - unique
    rows.append(("(shared, counted once)", "", shared, None))
    rows.append(("(all else)", "", usage.size - unique - shared, None))
    rows.append(("total", "", usage.size, None))
    output.write("\n")
    output.show_list(rows, columns, form="table", names=str)


def _names(image: ImageUsage) -> str:
    first, more = image.names[0], len(image.names) - 1
    return f"{first} (+{more})" if more else first


@verb(
    "explain",
    "orlop explain alpine",
    "orlop explain /srv/a",
    "orlop explain 'layer sha256:3f57d9401f8d'",
    "orlop explain alpine --json | jq .frees",
)
@click.argument("thing", metavar="THING")
@click.option("-a", "--all", "everything", is_flag=True, help="Name all that keep it, and all its parts.")
@formats(names="")
@pass_session
def explain_verb(session: Session, thing: str, everything: bool, form: str = "table") -> None:
    """Show why something is kept, what it shares, and what its removal frees.

    THING is an image (its name, its ID or the digest of its manifest), a layer (its diff ID), the path of a
    prepared root, or a word and a name: 'layer DIGEST', 'blob DIGEST', 'chain ID', 'folder ID', 'lease ID',
    'pin NAME', as gc and df print them; or a file in the store's folder.  Of digests 12 digits are enough.
    """
    hint = path_hint(thing) if thing.startswith(".") else nullcontext()
    with session.store() as store, session.call() as call, hint:
        found = store.explain(thing, call=call)
    most = len(found.kept_by) + len(found.parts) if everything else _SHOWN
    output.show_record(found, form=form, shown=lambda: _show(found, most))


def _show(found: Explanation, most: int) -> None:
    output.write(f"{found.kind} {one_line(found.name)}\n")
    facts = [("size", output.size_text(found.size)), ("frees", _frees(found))]
    output.write("".join(f"  {key:<6} {value}\n" for key, value in facts))
    if found.kept_by:
        output.write("\nkept by\n")
        reasons: list[tuple[str, str, str]] = [(r.kind, r.name, r.note) for r in found.kept_by]
        _lines(_cut(reasons, most), [0, 1, 2])
    if found.parts:
        output.write("\n")
        columns: list[output.Column] = [
            ("PART", lambda part: part.kind),
            ("SIZE", lambda part: output.size_text(part.size)),
            ("NAME", _part_name),
            ("ALSO NEEDED BY", lambda part: _sharers(part, most > _SHOWN)),
        ]
        if not any(part.shared_with for part in found.parts):
            del columns[-1]
        parts = [part for part in found.parts if part.size or part.kind != "file"]
        output.show_list(parts[:most], columns, form="table", names=str)
        if len(parts) > most:
            output.write(f"and {len(parts) - most} more: --all shows them\n")


def _frees(found: Explanation) -> str:
    size = output.size_text(found.frees)
    if not found.kept_by:
        return f"{size}: nothing keeps it, the next collection takes it"
    how = {
        "image": "when its names are removed",
        "root": "when it is cleaned up",
        "lease": "when the operation ends",
        "pin": "when it is taken back",
    }.get(found.kind)
    if how is None:
        return "nothing, as long as it is kept"
    return f"{size} {how}"


def _cut(reasons: list[tuple[str, str, str]], most: int) -> list[tuple[str, str, str]]:
    if len(reasons) <= most:
        return reasons
    return [*reasons[:most], ("", f"and {len(reasons) - most} more: --all names them", "")]


def _lines(rows: list[tuple[str, str, str]], places: list[int]) -> None:
    cells = [[one_line(row[place]) for place in places] for row in rows]
    widths = [max(len(row[place]) for row in cells) for place in places]
    for row in cells:
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        output.write(f"  {line.rstrip()}\n")


def _part_name(part: Part) -> str:
    return part.name[:19] if part.kind in _PREFIXED else part.name[:24] if part.kind == "chain" else part.name


def _sharers(part: Part, everything: bool) -> str:
    names = part.shared_with
    if everything or len(names) <= _SHARERS + 1:
        return ", ".join(names)
    return f"{', '.join(names[:_SHARERS])} and {len(names) - _SHARERS} more"
