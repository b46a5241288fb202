"""The tables of docs/limits.md and docs/configuration.md, made of the code: `orlop.config.keys`."""

from __future__ import annotations

from pathlib import Path

from orlop.config.keys import Key, keys, shown
from orlop.config.limits import LARGEST, limits_by_name

DOCS = Path(__file__).parents[2] / "docs"
PAGES = ("limits.md", "configuration.md")
_HEAD = ["| key | takes | default | variable | option | what |", "| --- | --- | --- | --- | --- | --- |"]


def with_tables(page: str) -> str:
    """A page with its tables as they should be.  ValueError for a mark that is no table's."""
    begin = "<!-- table "
    parts = page.split(begin)
    done = [parts[0]]
    for part in parts[1:]:
        name, _, rest = part.partition(":")
        head, _, body = rest.partition("-->")
        _, found, after = body.partition(f"<!-- end of {name} -->")
        if not found:
            raise ValueError(f"the table {name} has no end")
        table = "\n".join(tables()[name])
        done.append(f"{name}:{head}-->\n{table}\n<!-- end of {name} -->{after}")
    return begin.join(done)


def tables() -> dict[str, list[str]]:
    """All tables by name."""
    of: dict[str, list[Key]] = {"top": [], "proxy": [], "limits": [], "daemon": []}
    for key in keys().values():
        of[key.table or "top"].append(key)
    found = {name: [*_HEAD, *map(_row, some)] for name, some in of.items()}
    return {**found, "bounds": limits_table()}


def limits_table() -> list[str]:
    """One row for each field of `Limits`."""
    lines = ["| limit | default | of what | at most |", "| --- | --- | --- | --- |"]
    for limit in limits_by_name().values():
        most = "" if limit.most == LARGEST else f"{shown(limit.most, limit.unit)}: {limit.because}"
        lines.append(f"| `{limit.name}` | {shown(limit.default, limit.unit)} | {limit.guards} | {most} |")
    return lines


def _row(key: Key) -> str:
    default = key.usual or shown(key.default, key.unit) or "none"
    about = key.about.replace("|", "\\|")
    return f"| `{key.last}` | {key.takes} | {default} | `{key.variable}` | `{key.option.rstrip('=')}` | {about} |"


def main() -> int:
    """Write the pages again."""
    for name in PAGES:
        page = DOCS / name
        page.write_text(with_tables(page.read_text()))
    return 0
