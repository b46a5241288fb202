"""All inputs that the fuzzers keep, and all that once broke something, through the fuzz targets.

Without the fuzzer itself: `make fuzz` is that (docs/fuzzing.md).
"""

from __future__ import annotations

from pathlib import Path

import pytest

from support.fuzzing import FUZZ, load
from support.judges import table

TARGETS = load()
INPUTS = sorted(path for folder in ("corpus", "findings") for path in (FUZZ / folder).glob("*/*"))
MOST = 300_000  # bytes of the whole corpus, which lies in the repository


@pytest.mark.hostile(9, 10, 13, 15, 17, 18)
@pytest.mark.parametrize("name", TARGETS)
def test_no_kept_input_breaks_a_promise(name: str) -> None:
    inputs = [path for path in INPUTS if path.parent.name == name]
    assert len(inputs) >= 2, "a target without a corpus"
    for path in inputs:
        try:
            TARGETS[name](path.read_bytes())
        except Exception as exc:  # noqa: BLE001 - whatever it is, say of which input
            pytest.fail(f"{path.relative_to(FUZZ)}: {type(exc).__name__}: {exc}")


def test_every_input_belongs_to_a_target() -> None:
    assert {path.parent.name for path in INPUTS} <= TARGETS.keys()


def test_the_corpus_stays_small() -> None:
    assert sum(path.stat().st_size for path in INPUTS) < MOST


def test_no_input_is_a_link() -> None:
    assert not [path for path in INPUTS if Path(path).is_symlink()]


def test_the_docs_list_every_known_difference_from_other_tools() -> None:
    docs = (FUZZ.parent / "docs" / "fuzzing.md").read_text(encoding="utf-8")
    assert table() in docs, f"docs/fuzzing.md should have:\n{table()}"


def test_the_docs_name_every_target() -> None:
    docs = (FUZZ.parent / "docs" / "fuzzing.md").read_text(encoding="utf-8")
    assert [name for name in TARGETS if f"| `{name}` |" not in docs] == []
