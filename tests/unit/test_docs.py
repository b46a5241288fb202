"""The documentation holds together: every page is found, every link leads somewhere, every verb is named."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import orlop
from orlop.cli.frontpage import VERBS
from support import docpages

TREE = Path(__file__).parents[2]
DOCS = TREE / "docs"
sys.path.insert(0, str(TREE / "tools/docs"))

import api_pages  # noqa: E402
import cli_pages  # noqa: E402
import library_page  # noqa: E402
import man_pages  # noqa: E402
import stage  # noqa: E402

PAGES = sorted(DOCS.rglob("*.md"))
AROUND = [TREE / name for name in ("README.md", *stage.ROOT_PAGES)]
WORDS = {verb for verbs in VERBS.values() for verb in verbs}
RUN_ELSEWHERE = {"runtimes.md", "podman.md"}  # by test_pages.py
NO_VERBS = {"capture"}  # what a line of history says
NOT_RUN = {"compare.md", "explain.md"}  # what they show was printed for the images that they are about


@pytest.fixture(scope="module")
def generated() -> dict[str, str]:
    return {**cli_pages.pages(), **api_pages.pages(), **library_page.pages()}


def _entries(page: str, text: str) -> Iterator[str]:
    """The pages that a page's tables of contents name."""
    for block in re.findall(r"^```\{toctree\}\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        for line in block.splitlines():
            if line and not line.startswith(":"):
                folder = Path(page).parent
                for found in sorted((DOCS / folder).glob(f"{line}.md")) if "*" in line else [folder / line]:
                    yield (
                        (found.relative_to(DOCS) if found.is_absolute() else found)
                        .as_posix()
                        .removesuffix(".md")
                    )


def test_every_page_is_in_a_table_of_contents_and_every_entry_is_a_page(generated: dict[str, str]) -> None:
    there = {path.relative_to(DOCS).as_posix(): path.read_text() for path in PAGES}
    there |= generated | dict.fromkeys(stage.ROOT_PAGES.values(), "")
    named = [entry for page, text in there.items() for entry in _entries(page, text)]
    assert len(named) == len(set(named))
    assert {*named, "index"} == {page.removesuffix(".md") for page in there}


@pytest.mark.parametrize("path", [*AROUND, *PAGES], ids=lambda path: str(path.relative_to(TREE)))
def test_every_link_to_a_file_leads_to_one(path: Path, generated: dict[str, str]) -> None:
    made = {(DOCS / name).resolve() for name in generated}
    for target in re.findall(r"\]\(([^()\s#]+)(?:#[^()\s]*)?\)", path.read_text()):
        if "://" not in target and not target.startswith("mailto:"):
            place = (path.parent / target).resolve()
            assert place.exists() or place in made, target


@pytest.mark.parametrize("path", [*AROUND, *PAGES], ids=lambda path: str(path.relative_to(TREE)))
def test_every_block_of_commands_is_run_or_says_why_not(path: Path) -> None:
    page = docpages.read(path)  # raises where a block is not as it should be
    assert all(reason for _, reason in page.left_out)
    if path.name not in RUN_ELSEWHERE | NOT_RUN:
        assert not re.search(r"^    \$ ", path.read_text(), re.MULTILINE), "commands stand in ```console"


def test_every_verb_that_is_named_exists_and_every_verb_is_named() -> None:
    named: set[str] = set()
    for path in [*AROUND, *PAGES]:
        if path.name == "CHANGELOG.md":
            continue  # it tells of what was
        text = path.read_text()
        code = [
            *re.findall(r"`([^`\n]+)`", text),
            *re.findall(r"^(?:    |\$ |  \$ )(.*)$", text, re.MULTILINE),
        ]
        code = [re.sub(r"(^| )#.*|--snapshotter orlop ", "", one) for one in code]
        words = {
            word for one in code for word in re.findall(r"(?:^|[ ;|])orlop ([a-z][a-z-]+)\b(?![.:/])", one)
        } - NO_VERBS
        if path.name != "cli.md":  # which says what becomes of other programs' verbs
            assert words <= WORDS, f"{path.name}: {words - WORDS}"
        named |= words
    assert named >= WORDS, "verbs that no page names"


def test_every_public_name_is_in_the_reference() -> None:
    names = [name for group in library_page.groups().values() for name in group]
    assert sorted(names) == sorted(library_page.names())
    assert {"Store", "Prepared", "open", "NotFound"} <= set(names) <= set(orlop.__all__)


def test_every_verb_has_a_page_and_a_man_page(generated: dict[str, str]) -> None:
    manuals = man_pages.pages("2026-11-28")
    for word in WORDS:
        assert f"reference/cli/{word}.md" in generated
        assert f"orlop-{word}.1" in manuals
    assert "orlop-artifact-push.1" in manuals


def test_roff_has_nothing_to_say_of_the_man_pages(tmp_path: Path) -> None:
    man_pages.main(tmp_path, 0)
    pages = sorted(
        set(tmp_path.glob("orlop*.1")) - {tmp_path / "orlopd.1"}
    )  # which is orlop.1, where it is installed
    command = ["groff", "-man", "-Kutf8", "-Tutf8", "-ww", "-z", *map(str, pages)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=240, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


def test_what_the_proto_reader_does_not_know_is_an_error() -> None:
    with pytest.raises(ValueError, match="cannot read"):
        api_pages.read("message A {\n  group B = 1 {\n  }\n}\n", "a.proto")


@pytest.mark.parametrize(
    ("text", "staged"),
    [
        ("[a](../CHANGELOG.md)", "[a](changelog.md)"),
        ("[a](../tests/conftest.py)", "a"),
        ("[a](store.md#x)", "[a](store.md#x)"),
        ("[a](https://example.com)", "[a](https://example.com)"),
        ("```\n[a](../CHANGELOG.md)\n```\n[b](adr/)", "```\n[a](../CHANGELOG.md)\n```\n[b](adr/index.md)"),
    ],
)
def test_links_out_of_the_pages_lead_to_pages_or_are_text(text: str, staged: str) -> None:
    assert stage.relinked(text, DOCS / "design.md") == staged
