"""Put together the folder that Sphinx reads: pages of docs/ and of the tree's root, and generated ones.

On GitHub and in a checkout the pages of docs/ link to files beside docs/.  Here such a link goes to the page
that shows the file, or becomes plain text where no page does.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

TREE = Path(__file__).resolve().parents[2]

# what lies outside docs/ -> its page
ROOT_PAGES = {
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "reporting.md",
    "bench/README.md": "bench.md",
}
SHOWN = {
    **ROOT_PAGES,
    "README.md": "index.md",
    "proto/docker/containerkit/types/image.proto": "reference/api/containerkit.md",
}
_LINK = re.compile(r"(?<!!)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^()\s#]*)(#[^()\s]*)?\)")
_FENCE = re.compile(r"^(```+|~~~+)", re.MULTILINE)


def stage(folder: Path, generated: Mapping[str, str]) -> None:
    """Make ``folder`` what Sphinx reads; what is as it was keeps its time, for quick builds."""
    wanted: dict[Path, bytes] = {Path(name): text.encode() for name, text in generated.items()}
    docs = TREE / "docs"
    for path in sorted(docs.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            data = path.read_bytes()
            if path.suffix == ".md":
                data = relinked(data.decode(), path).encode()
            wanted[path.relative_to(docs)] = data
    for source, page in ROOT_PAGES.items():
        wanted[Path(page)] = relinked((TREE / source).read_text(), TREE / source).encode()
    for path in sorted(folder.rglob("*"), reverse=True) if folder.exists() else ():
        if path.is_file() and path.relative_to(folder) not in wanted:
            path.unlink()
    for name, data in wanted.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists() or path.read_bytes() != data:
            path.write_bytes(data)


def relinked(text: str, source: Path) -> str:
    """A page with its links as they are in the staged folder; what stands between fences is left alone."""
    parts, at, fence = [], 0, ""
    for found in _FENCE.finditer(text):
        if not fence:
            parts.append(_relinked(text[at : found.start()], source))
            at, fence = found.start(), found[1]
        elif found[1] == fence:
            parts.append(text[at : found.start()])
            at, fence = found.start(), ""
    parts.append(text[at:] if fence else _relinked(text[at:], source))
    return "".join(parts)


def _relinked(text: str, source: Path) -> str:
    def one(found: re.Match[str]) -> str:
        label, target, anchor = found[1], found[2], found[3] or ""
        if not target or "://" in target or target.startswith("mailto:"):
            return found[0]
        place = (source.parent / target).resolve()
        try:
            name = place.relative_to(TREE).as_posix()
        except ValueError:
            return found[0]
        page = name.removeprefix("docs/") if name.startswith("docs/") and place.is_file() else SHOWN.get(name)
        if name == "docs/adr":
            page = "adr/index.md"
        if page is None:
            return label if place.exists() else found[0]  # a file with no page; a dead link stays, and fails
        here = source.relative_to(TREE).as_posix()
        here = here.removeprefix("docs/") if here.startswith("docs/") else ROOT_PAGES[here]
        up = "../" * here.count("/")
        return f"[{label}]({up}{page}{anchor})"

    return _LINK.sub(one, text)
