"""The tables of docs/json.md: what each verb prints with ``--json``, made of the code.

A verb's JSON is a dataclass as it is, or what a function of the command line makes of one; of the first the
fields are read from the class, of the second from what the function gives for a value.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from orlop.cli import images as image_verbs
from orlop.cli.compare import difference_json
from orlop.cli.config import Entry, key_json
from orlop.cli.contents import found_json, json_of
from orlop.cli.events import json_of as event_json
from orlop.cli.lineage import blame_json, origin_json, tree_json, waste_json
from orlop.cli.output import plain
from orlop.config.keys import keys
from orlop.diagnosis.configuration import Fault
from orlop.diagnosis.findings import Finding as Diagnosis
from orlop.images.api import (
    Blob,
    FetchedBlobs,
    HeldPlatform,
    IdMap,
    ImageDetails,
    ImageInfo,
    Mount,
    PreparedInfo,
)
from orlop.images.backups.names import MissingImage
from orlop.images.backups.restore import Restored
from orlop.images.comparing import (
    Blame,
    BlameStep,
    Difference,
    HistoryLine,
    LayerWaste,
    TreeLine,
    Waste,
    WastedFile,
)
from orlop.images.contents import FileInfo, Found
from orlop.images.events import Event
from orlop.images.exports import Exported
from orlop.images.forks import CheckpointInfo
from orlop.images.running.whole import Bundle
from orlop.images.shares import Share
from orlop.images.upkeep import (
    BackedUp,
    Checked,
    DriverInfo,
    Explanation,
    Finding,
    ImageUsage,
    Part,
    Pin,
    Reason,
    StoreInfo,
    Usage,
    UsagePart,
)
from orlop.registry.access.login import LoggedIn
from orlop.remote.api import Artifact, Copied, PulledFile, Referrer
from orlop.values import fields, is_dataclass

PAGE = Path(__file__).parents[2] / "docs" / "json.md"

FILE = FileInfo(path=b"etc/motd", mode=0o100644, xattrs=((b"user.a", b"b"),))
LINE = HistoryLine(layer=1)
IMAGE = ImageInfo(
    name="localhost/a:1",
    id="sha256:…",
    digest="sha256:…",
    index="sha256:…",
    labels={"KEY": "VALUE"},
    platforms=(HeldPlatform(platform="linux/amd64", id="", digest=""),),
)
_DETAILS = ImageDetails(
    info=IMAGE, names=("a",), config=b"{}", manifest=b"{}", layers=(Blob(diff_id="", blob=""),)
)
_STEP = BlameStep(what="added", how="link", line=LINE, file=FILE, source=b"etc/a", source_layer=1)
_WASTE = Waste(
    layers=(LayerWaste(line=LINE, size=2, wasted=1, entries=1, files=1),),
    files=(WastedFile(path=b"a", size=1, layer=1, hidden_by=2, what="deleted"),),
)
_EVENT = Event(
    cursor="0-1",
    seq=1,
    time_ns=1,
    kind="image.pulled",
    namespace="",
    subject="a",
    attributes={"KEY": "VALUE"},
)

_INSPECT = (
    "An object for each argument.  `config` and `manifest` are the OCI documents.  For a path it is what `ps` "
    "prints, with its `mounts`."
)
_DIFF = (
    "`old` and `new` are what `ls` prints of a file, or null.  With --stat it is one object: `folder`, `added`, "
    "`changed`, `deleted`, `brought` and `gone` (bytes) of all, and of each in `folders`."
)
# What is printed: one object, a list, a line for each; then a dataclass, or a value as JSON has it; a remark.
Shape = tuple[str, Any, str]
ONE, LIST, LINES = "an object", "a list", "a line of JSON for each"

SHAPES: dict[str, Shape] = {
    "images": (LIST, ImageInfo, ""),
    "import": (LIST, ImageInfo, "The images that it brought."),
    "inspect": (
        LIST,
        image_verbs.details_json(_DETAILS),
        _INSPECT,
    ),
    "label": (ONE, {"KEY": "VALUE"}, "All labels of the name."),
    "fetch-blobs": (ONE, FetchedBlobs, ""),
    "export": (ONE, Exported, ""),
    "share list": (LIST, Share, ""),
    "ls": (LINES, json_of(FILE), ""),
    "find": (
        LINES,
        found_json(Found(names=("a",), file=FILE)),
        "`names` and `image_id` are those of the image.",
    ),
    "diff": (
        LINES,
        difference_json(Difference(path=b"a", what="changed", fields=("mode",), old=FILE, new=FILE)),
        _DIFF,
    ),
    "blame": (
        ONE,
        blame_json(Blame(path=b"a", steps=(_STEP,))),
        "`steps` are what layers did, the lowest first.  With -r it is a line for each path.",
    ),
    "blame -r": (
        LINES,
        origin_json(TreeLine(file=FILE, total=1, layer=1), LINE),
        "`layer` is null for what a prepared root's changes brought.",
    ),
    "history": (LIST, HistoryLine, "The newest comes first."),
    "tree": (
        LINES,
        tree_json(TreeLine(file=FILE, total=1, layer=1), layers=True),
        "`layer` is there with --layers alone.",
    ),
    "waste": (ONE, waste_json(_WASTE), "Bytes; `efficiency` is a share of 1."),
    "prepare": (LIST, Mount, "The mounts, in order."),
    "mounts": (LIST, Mount, "The mounts, in order."),
    "ps": (LIST, PreparedInfo, "`mounts` is empty here."),
    "bundle": (ONE, Bundle, ""),
    "fork": (LIST, PreparedInfo, "The new roots, with their `mounts`."),
    "checkpoint create": (ONE, CheckpointInfo, ""),
    "checkpoint list": (LIST, CheckpointInfo, "The oldest first."),
    "login": (
        ONE,
        LoggedIn,
        "With --list it is a list of these; with --get-login an object with `registry` and `username`.",
    ),
    "copy": (ONE, Copied, ""),
    "tags": (LIST, ["TAG"], "A list of texts, in the registry's order."),
    "manifest": (
        ONE,
        {"name": "", "media_type": "", "digest": "", "size": 0, "content": {}},
        "`content` is the document.",
    ),
    "referrers": (LIST, Referrer, ""),
    "artifact push": (ONE, Artifact, ""),
    "artifact pull": (ONE, Artifact, ""),
    "gc": (
        ONE,
        {"images": ["NAME"], "items": [{"item": "layer sha256:…", "size": 0}], "freed": 0, "dry_run": False},
        "`images` are names that are gone, `items` what went with its bytes, `freed` their sum.",
    ),
    "pin": (ONE, Pin, ""),
    "pins": (LIST, Pin, ""),
    "backup": (ONE, BackedUp, ""),
    "restore": (ONE, Restored, ""),
    "check": (
        ONE,
        Checked,
        "And `clean`, whether nothing was found, and `sound`, whether no damage is left.",
    ),
    "df": (ONE, Usage, "And the sums `size` and `reclaimable`.  Bytes of disk."),
    "explain": (ONE, Explanation, ""),
    "events": (LINES, event_json(_EVENT), ""),
    "config show": (LIST, Entry, ""),
    "config check": (LIST, Fault, ""),
    "config keys": (LIST, key_json(keys()["driver"]), ""),
    "doctor": (LIST, Diagnosis, ""),
    "info": (
        ONE,
        StoreInfo,
        (
            "And of this machine `configuration` (keys that are not the default, with `value`, `source`, `line`), "
            "`registries` and `registry_files` (those that say where they are), `disk`, `helpers` (`name`, `path`, "
            "`purpose`, `package`), `versions` by name; with --host the `host`, and of these `configuration` and "
            "`versions` alone.  `unknown` has the reason of what could not be found out, if there is such."
        ),
    ),
    "version": (
        ONE,
        {"version": "", "python": "", "kernel": "", "machine": ""},
        "With --host also `daemon`, its version.",
    ),
}
# Values within values, in an order of their own.
INNER = (
    HeldPlatform,
    Blob,
    IdMap,
    PulledFile,
    MissingImage,
    Finding,
    UsagePart,
    ImageUsage,
    Reason,
    Part,
    DriverInfo,
)


def tables() -> str:
    """All that stands between the marks of the page."""
    lines: list[str] = []
    for verb, (how, what, remark) in SHAPES.items():
        lines += [f"### orlop {verb}", "", f"{how[0].upper()}{how[1:]}{_of(what)}.  {remark}".strip(), ""]
        if is_dataclass(what) and what not in _shown_before(verb):
            lines += _dataclass(what)
        elif is_dataclass(what):
            lines += ["Its fields are above.", ""]
        elif isinstance(what, dict):
            lines += _table((name, _kind(value)) for name, value in what.items())
    lines += ["## Values within values", ""]
    for cls in INNER:
        lines += [f"### {cls.__name__}", "", *_dataclass(cls)]
    return "\n".join(lines)


def _of(what: Any) -> str:
    return f" of `{what.__name__}`" if isinstance(what, type) else ""


def _shown_before(verb: str) -> list[Any]:
    before = list(SHAPES).index(verb)
    return [what for _, what, _ in list(SHAPES.values())[:before]]


def _dataclass(cls: Any) -> list[str]:
    kinds = cls.__annotations__
    text = "\n".join(line.strip() for line in (cls.__doc__ or "").strip().splitlines()).replace("``", "`")
    rows = ((item.name, _annotation(_known(cls, str(kinds[item.name])))) for item in fields(cls))
    return [*text.replace("None", "null").splitlines(), "", *_table(rows)]


def _known(cls: Any, text: str) -> str:
    """A type with its words, where it is a name for a choice among some."""
    words = getattr(getattr(sys.modules[cls.__module__], text, None), "__args__", ())
    return (
        f"Literal[{', '.join(map(repr, words))}]"
        if words and all(type(word) is str for word in words)
        else text
    )


def _table(rows: Iterator[tuple[str, str]]) -> list[str]:
    return ["| field | is |", "| --- | --- |", *(f"| `{name}` | {kind} |" for name, kind in rows), ""]


_WORDS = {
    "Any": "any value",
    "str": "text",
    "bytes": "text",
    "int": "number",
    "float": "number",
    "bool": "true or false",
}


def _annotation(text: str) -> str:
    """A type as people read it."""
    text = text.strip("'\"")
    if text.endswith("| None"):
        return f"{_annotation(text.removesuffix('| None').strip())}, or null"
    listed = re.fullmatch(r"(?:tuple|list|Sequence)\[(.+?)(?:, \.\.\.)?\]", text)
    if listed:
        return "a list of " + " and ".join(_many(part) for part in _split(listed[1]))
    mapped = re.fullmatch(r"(?:Mapping|dict)\[str, (.+)\]", text)
    if mapped:
        return f"an object of {_many(mapped[1])}"
    if text.startswith("Literal["):
        return "one of " + ", ".join(f"`{word.strip()[1:-1]}`" for word in text[8:-1].split(","))
    return _WORDS.get(text, f"`{text}`")


def _many(text: str) -> str:
    kind = _annotation(text)
    return {"text": "texts", "number": "numbers"}.get(kind, kind)


def _split(text: str) -> list[str]:
    return [text] if "[" in text else [part.strip() for part in text.split(",")]


def _kind(value: Any) -> str:
    """What a value of JSON is."""
    value = plain(value)
    if value is None:
        return "what it says, or null"
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, str):
        return "text"
    if isinstance(value, int | float):
        return "number"
    if isinstance(value, list):
        if value and isinstance(value[0], dict):
            return f"a list of objects: {', '.join(f'`{name}`' for name in value[0])}"
        return "a list" if not value else f"a list of {_kind(value[0])}s"
    return f"an object: {', '.join(f'`{name}`' for name in value)}" if value else "an object"


_MARKS = ("<!-- made by tools/json-page: change the code, not this -->", "<!-- end -->")


def with_tables(page: str) -> str:
    """A page with its tables as they should be.  ValueError for one without marks."""
    head, _, rest = page.partition(_MARKS[0])
    _, found, tail = rest.partition(_MARKS[1])
    if not found:
        raise ValueError("the page has no marks")
    return f"{head}{_MARKS[0]}\n\n{tables()}\n{_MARKS[1]}{tail}"


def commands_with_json(walk: Callable[[], Iterator[tuple[str, Any]]]) -> set[str]:
    """The verbs that take ``--json``."""
    return {name for name, command in walk() if any("--json" in param.opts for param in command.params)}


def main() -> int:
    """Write the page again."""
    PAGE.write_text(with_tables(PAGE.read_text()))
    return 0
