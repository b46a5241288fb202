"""The verb that compares two things: ``diff``."""

from __future__ import annotations

import os
from contextlib import closing

from orlop.cli import declared as click
from orlop.cli import output
from orlop.cli.contents import json_of, platform_option, shown_path
from orlop.cli.exits import Misuse, one_line
from orlop.cli.lineage import hint_of
from orlop.cli.session import Session, formats, pass_session, verb
from orlop.hints import TYPE_CHECKING, Any
from orlop.values import dataclass

if TYPE_CHECKING:
    from orlop.images.comparing import Difference

__all__ = ["diff_verb"]

_LETTERS = {"added": "A", "changed": "C", "deleted": "D"}


@verb(
    "diff",
    "orlop diff /srv/a                 what changed in a prepared root since its image",
    "orlop diff alpine:3.19 alpine:3.20",
    "orlop diff --stat --path usr alpine /srv/a",
    "orlop diff --json a b | jq -r 'select(.what == \"deleted\") | .path'",
)
@click.argument("old", metavar="OLD")
@click.argument("new", metavar="[NEW]", required=False)
@click.option(
    "--path", default="/", metavar="PATH", type=click.Path(), help="Compare only what is there and below."
)
@click.option("--stat", is_flag=True, help="How much, by folder.")
@click.option(
    "--depth", type=click.IntRange(min=0), help="With --stat: how deep the folders are.  [default: 1]"
)
@click.option("--name-only", is_flag=True, help="Paths alone, one a line.")
@click.option("-0", "--null", is_flag=True, help="Paths alone, as they are, each ended by a NUL.")
@click.option("--ignore-times", is_flag=True, help="A difference of modification times alone is none.")
@formats(names="The same as --name-only.", as_json="A line of JSON for each path; its fields are stable.")
@platform_option
@pass_session
def diff_verb(
    session: Session,
    old: str,
    new: str | None,
    path: str,
    stat: bool,
    depth: int | None,
    name_only: bool,
    null: bool,
    ignore_times: bool,
    platform: str | None,
    form: str = "table",
) -> None:
    """Show what differs between two images, layers or prepared roots; nothing is mounted.

    OLD and NEW are images, IMAGE#N for the lowest N layers of one, diff IDs of layers, or paths of prepared
    roots.  A root alone is compared with its image.

    Prints A for what only NEW has, D for what only OLD has, and C for what differs: type, mode, owner, mtime,
    xattrs, target (of a symlink), device, content.  All that was in a folder that is gone is listed.  Names
    are compared, not which of them are hard links of one another.
    """
    paths = name_only or null or form == "name"
    if (stat and paths) or ((name_only or null) and form not in {"table", "name"}):
        raise Misuse(
            "--stat, --name-only and --json or --format exclude one another", "leave out all but one"
        )
    if depth is not None and not stat:
        raise Misuse("--depth is for --stat", "add --stat, or leave out --depth")
    totals = _Totals(1 if depth is None else depth)
    with session.store() as store, session.call(quiet=True) as call, hint_of(old), hint_of(new or ""):
        found = store.diff(
            old, new, path=os.fsencode(path), times=not ignore_times, platform=platform, call=call
        )
        with closing(found):
            if stat or null:
                for difference in found:
                    if stat:
                        totals.add(difference)
                    else:
                        output.write(shown_path(difference.path) + "\0")
            else:
                output.show_each(
                    found,
                    form="name" if paths else form,
                    line=_difference_line,
                    names=lambda difference: shown_path(difference.path),
                    record=difference_json,
                )
    if stat:
        totals.show(form)


def difference_json(difference: Difference) -> dict[str, Any]:
    """A difference as what JSON has."""
    return {
        "path": shown_path(difference.path),
        "what": difference.what,
        "fields": list(difference.fields),
        "old": json_of(difference.old) if difference.old is not None else None,
        "new": json_of(difference.new) if difference.new is not None else None,
    }


def _difference_line(difference: Difference) -> str:
    words = [f"{_LETTERS[difference.what]} {one_line(shown_path(difference.path))}"]
    old, new = difference.old, difference.new
    if difference.fields:
        words.append(f"({', '.join(difference.fields)})")
    if old is not None and new is not None:
        if old.kind == new.kind == "file" and old.size != new.size:
            words.append(f"{output.size_text(old.size)} -> {output.size_text(new.size)}")
        elif old.kind != new.kind:
            words.append(f"{old.kind} -> {new.kind}")
    else:
        there = new or old
        if there is not None and there.kind == "file":
            words.append(output.size_text(there.size))
    return "  ".join(words)


@dataclass(slots=True)
class _Sums:
    """How much differs below one folder; ``brought`` and ``gone`` are bytes of files."""

    folder: str
    added: int = 0
    changed: int = 0
    deleted: int = 0
    brought: int = 0
    gone: int = 0

    def add(self, difference: Difference) -> None:
        """Count one path."""
        setattr(self, difference.what, getattr(self, difference.what) + 1)
        if difference.what == "changed" and not {"content", "type"} & set(difference.fields):
            return
        if difference.new is not None and difference.new.kind == "file":
            self.brought += difference.new.size
        if difference.old is not None and difference.old.kind == "file":
            self.gone += difference.old.size

    def told(self) -> dict[str, object]:
        """As JSON has it."""
        return {
            "folder": self.folder,
            "added": self.added,
            "changed": self.changed,
            "deleted": self.deleted,
            "brought": self.brought,
            "gone": self.gone,
        }


class _Totals:
    """The sums of all folders that are ``depth`` deep, and of all."""

    def __init__(self, depth: int) -> None:
        self._depth = depth
        self._folders: dict[bytes, _Sums] = {}
        self._all = _Sums("total")

    def add(self, difference: Difference) -> None:
        """Count one path."""
        there = difference.new or difference.old
        parts = difference.path.split(b"/")
        if there is None or there.kind != "folder":
            parts.pop()
        folder = b"/".join(parts[: self._depth])
        if folder not in self._folders:
            self._folders[folder] = _Sums(shown_path(folder))
        self._folders[folder].add(difference)
        self._all.add(difference)

    def told(self) -> dict[str, object]:
        """As JSON has it."""
        return {
            **self._all.told(),
            "folders": [self._folders[folder].told() for folder in sorted(self._folders)],
        }

    def show(self, form: str) -> None:
        """As a table, a line a folder; as JSON with the sums of all."""
        if form == "json":
            output.write_json(self.told())
            return
        columns: list[output.Column] = [
            ("FOLDER", lambda sums: sums.folder),
            ("ADDED", lambda sums: str(sums.added)),
            ("CHANGED", lambda sums: str(sums.changed)),
            ("DELETED", lambda sums: str(sums.deleted)),
            ("BROUGHT", lambda sums: output.size_text(sums.brought)),
            ("GONE", lambda sums: output.size_text(sums.gone)),
        ]
        rows = [*(self._folders[folder] for folder in sorted(self._folders)), self._all]
        output.show_list(
            rows, columns, form=form, names=lambda sums: sums.folder, record=lambda sums: sums.told()
        )
