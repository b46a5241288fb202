"""Every point of the distribution specification has a test or a reason, and docs/distribution.md says which."""

from __future__ import annotations

import pytest

from support.distribution import COMMAND, MARKS, PAGE, Point, excused, missing, page, read_points, unknown
from support.marks import Shown


def test_every_point_of_the_distribution_specification_has_a_test_or_a_reason() -> None:
    points, shown = read_points(), MARKS.find_tests()
    assert missing(points, shown) == []
    assert unknown(points, shown) == []
    assert excused(points, shown) == []


def test_the_page_of_the_distribution_specification_is_what_the_tests_say() -> None:
    assert PAGE.read_text() == page(read_points(), MARKS.find_tests()), f"run {COMMAND}"


def test_points_are_named_by_plain_strings() -> None:
    source = '@pytest.mark.distribution("a.b", "a.c")\ndef test_one(): ...'
    assert MARKS.marks_of(source, "f.py") == [("test_one", ["a.b", "a.c"])]
    for bad in ("(7)", "()", "(*IDS)"):
        with pytest.raises(ValueError, match="plain strings"):
            MARKS.marks_of(f"@pytest.mark.distribution{bad}\ndef test_one(): ...", "f.py")


def test_what_lacks_a_test_or_needs_no_reason_any_more_is_told() -> None:
    points = [
        Point(id="a.one", section="A", level="MUST", text="one"),
        Point(id="a.two", section="A", level="MAY", text="two", reason="not needed"),
        Point(id="b.three", section="B", level="SHOULD", text="three", later=True),
        Point(id="b.four", section="B", level="SHOULD", text="four", reason="old"),
    ]
    here = [Shown(file="tests/test_x.py", test="test_it_holds")]
    shown = {"b.three": here, "b.four": here, "c": here}
    assert missing(points, shown) == ["a.one"]
    assert excused(points, shown) == ["b.four"]
    assert unknown(points, shown) == ["c"]
    text = page(points, shown)
    assert "| `a.one` | MUST | one | **none** |" in text
    assert "| `a.two` | MAY | two | not needed |" in text
    assert "| `b.three`† | SHOULD | three | [1](#bthree) |" in text
    assert "## b.three" in text
    assert "- it holds" in text
