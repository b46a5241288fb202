"""What a store says of its own format."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from orlop.errors import FailedPrecondition
from orlop.images import layout
from orlop.images.format import FEATURES, FORMAT, FORMAT_VERSION


def test_what_is_written_says_what_this_version_knows() -> None:
    features = {kind: sorted(names) for kind, names in FEATURES.items()}
    assert json.loads(FORMAT) == {"version": FORMAT_VERSION, **features}


@pytest.mark.parametrize("text", [FORMAT, FORMAT.replace(b"\n", b""), b'{"version": 1}'])
def test_the_same_in_other_words_is_understood(text: bytes) -> None:
    layout.check_format(text, "open store /s")


@pytest.mark.parametrize("text", [b"", b"[]", b'{"version": 2}', FORMAT.replace(b"index-1", b"index-2")])
def test_what_another_version_wrote_is_refused(text: bytes) -> None:
    with pytest.raises(FailedPrecondition):
        layout.check_format(text, "open store /s")


def test_a_store_behind_a_link_that_leads_elsewhere_by_now_is_where_it_leads(tmp_path: Path) -> None:
    link, run = tmp_path / "store", tmp_path / "run"
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    link.symlink_to("a")
    for name in ("a", "b"):
        link.unlink()
        link.symlink_to(name)
        found = layout.Layout(root=link / "root", run=run)
        found.create()
        assert found.contains(str(tmp_path / name / "root" / "x"))
