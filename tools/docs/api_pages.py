"""The daemon's API in Markdown, from the comments of the proto files: services, calls, messages, fields.

Reads the few things that our proto files have, and fails at what it does not know: a page never leaves
something out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

TREE = Path(__file__).resolve().parents[2]
FILES = {
    "containerkit": ("The API of 2016", ("docker/containerkit/types/image.proto",)),
    "orlop": (
        "orlop.v1",
        tuple(
            f"orlop/v1/{name}.proto"
            for name in (
                *("types", "images", "transfer", "store", "forks", "contents", "comparing"),
                *("registries", "sharing", "events"),
            )
        ),
    ),
}
_SCALARS = {"string", "bytes", "bool", "int32", "int64", "uint32", "uint64", "double", "float"}
_SPECIAL = re.compile(r"([\\*_{}\[\]<>#|$~^])")
_FIELD = re.compile(
    r"(?:(repeated|optional) )?(map<\w+, ?[\w.]+>|[\w.]+) (\w+) = (\d+)(?: \[[^]]*\])?;(?: *//(.*))?$"
)
_CALL = re.compile(r"rpc (\w+)\((stream )?([\w.]+)\) returns \((stream )?([\w.]+)\)(?:;| ?\{\})$")
_OPEN = re.compile(r"(service|message|enum|oneof) (\w+) \{(\})?$")
_VALUE = re.compile(r"(\w+) = (\d+);(?: *//(.*))?$")
_PASSED = ("syntax ", "package ", "import ", "option ", "reserved ")


@dataclass(slots=True)
class Thing:
    """A service, a message or an enum, with its comment and its rows."""

    kind: str
    name: str
    about: str
    rows: list[tuple[str, ...]] = field(default_factory=list)


def pages() -> dict[str, str]:
    """All pages by their path below the documentation."""
    found = {}
    for name, (title, files) in FILES.items():
        parts = [(file, *read((TREE / "proto" / file).read_text(), file)) for file in files]
        known = {thing.name for _, _, things in parts for thing in things}
        lines = [f"# {title}", "", "Written from the comments of `proto/`.", ""]
        for file, about, things in parts:
            lines += [f"## {Path(file).stem}", "", f"`proto/{file}`: {_plain(about)}", ""]
            for thing in sorted(things, key=lambda one: one.kind != "service"):
                lines += _thing(thing, f"{name}-", known)
        found[f"reference/api/{name}.md"] = "\n".join(lines) + "\n"
    return found


def _thing(thing: Thing, prefix: str, known: set[str]) -> Iterator[str]:
    yield from (f"({prefix}{thing.name.lower()})=", f"### {thing.kind} {thing.name}", "")
    if thing.about:
        yield from (_plain(thing.about), "")
    if not thing.rows:
        return
    heads = {"service": ("call", "takes", "gives", ""), "enum": ("value", "number", "")}
    head = heads.get(thing.kind, ("field", "type", "number", ""))
    yield from (f"| {' | '.join(head)} |", f"| {' | '.join(['---'] * len(head))} |")
    typed = {"service": (1, 2), "message": (1,)}.get(thing.kind, ())
    for row in thing.rows:
        cells = [
            f"`{cell}`" if at == 0 else _type(cell, prefix, known) if at in typed else _plain(cell)
            for at, cell in enumerate(row)
        ]
        yield f"| {' | '.join(cells)} |"
    yield ""


def _type(text: str, prefix: str, known: set[str]) -> str:
    """A type, with a link where it is one of the page."""

    def linked(found: re.Match[str]) -> str:
        name = found[0].rpartition(".")[2]
        return f"[{found[0]}](#{prefix}{name.lower()})" if name in known else found[0]

    return re.sub(r"[\w.]+", linked, text.replace("<", "\\<").replace(">", "\\>"))


def read(text: str, file: str) -> tuple[str, list[Thing]]:
    """What a file says of itself, and its things; raises ValueError at a line that it cannot read."""
    about, comment = "", []
    things: list[Thing] = []
    inside: list[Thing | str] = []  # what is open: a thing, or a oneof's name
    before = None
    for number, raw in enumerate(text.splitlines(), 1):
        line = raw.strip()
        if before is not None:  # a call over two lines
            line, before = f"{before} {line}", None
        if line.startswith("rpc ") and not line.endswith((";", "}")):
            before = line
        elif line.startswith("//"):
            comment.append(line.removeprefix("//").strip())
        elif not line:
            if not things and not about:
                about = " ".join(comment)
            comment = []
        elif line == "}":
            inside.pop()
            comment = []
        elif line.startswith(_PASSED):
            comment = []
        else:
            _statement(line, " ".join(comment), things, inside, f"{file}:{number}")
            comment = []
    return about, things


def _statement(line: str, comment: str, things: list[Thing], inside: list[Thing | str], where: str) -> None:
    owner = next((one for one in reversed(inside) if isinstance(one, Thing)), None)
    if found := _OPEN.match(line):
        kind, name, closed = found.groups()
        if kind == "oneof":
            inside.append(name)
            return
        outer = f"{owner.name}." if owner else ""
        things.append(Thing(kind, outer + name, comment))
        if not closed:
            inside.append(things[-1])
    elif owner and (found := _CALL.match(line)):
        call, sends, takes, streams, gives = found.groups()
        row = (call, ("stream " if sends else "") + takes, ("stream " if streams else "") + gives, comment)
        owner.rows.append(row)
    elif owner and owner.kind == "enum" and (found := _VALUE.match(line)):
        owner.rows.append((found[1], found[2], comment or (found[3] or "").strip()))
    elif owner and (found := _FIELD.match(line)):
        how, kind, name, at, after = found.groups()
        one = f"One of {inside[-1]}. " if isinstance(inside[-1], str) else ""
        owner.rows.append(
            (name, f"{how} {kind}" if how else kind, at, one + (comment or (after or "").strip()))
        )
    else:
        raise ValueError(f"{where}: cannot read {line!r}")


def _plain(text: str) -> str:
    return _SPECIAL.sub(r"\\\1", text)
