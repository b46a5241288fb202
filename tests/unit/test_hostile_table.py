"""Every hostile input has a test, and docs/hostile.md says which."""

from __future__ import annotations

import pytest

from support.hostile import COMMAND, MARKS, PAGE, Row, missing, page, read_rows, unknown
from support.marks import Shown


def test_every_hostile_input_has_a_test() -> None:
    rows, shown = read_rows(), MARKS.find_tests()
    assert len(rows) == 42
    assert missing(rows, shown) == []
    assert unknown(rows, shown) == []


def test_the_page_of_hostile_inputs_is_what_the_tests_say() -> None:
    assert PAGE.read_text() == page(read_rows(), MARKS.find_tests()), f"run {COMMAND}"


def test_marks_are_found_wherever_pytest_would_take_them() -> None:
    source = """
import pytest
pytestmark = [pytest.mark.root, pytest.mark.hostile(3)]
@pytest.mark.hostile(1, 2)
def test_one(): ...
@pytest.mark.parametrize("x", [pytest.param(1, marks=pytest.mark.hostile(9)), 2])
def test_two(x): ...
@pytest.mark.hostile(5)
class TestMany:
    pytestmark = pytest.mark.hostile(6)
    @pytest.mark.hostile(7)
    async def test_three(self): ...
def helper(): ...
"""
    assert MARKS.marks_of(source, "f.py") == [
        ("test_one", [1, 2, 3]),
        ("test_two", [3, 9]),
        ("TestMany.test_three", [3, 5, 6, 7]),
    ]
    assert MARKS.marks_of("def test_plain(): ...", "f.py") == []


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("CASES = [pytest.param(1, marks=pytest.mark.hostile(4))]", "belongs to no test"),
        ("@pytest.mark.hostile(4)\ndef helper(): ...", "belongs to no test"),
        ("@pytest.mark.hostile()\ndef test_x(): ...", "plain numbers"),
        ("@pytest.mark.hostile('4')\ndef test_x(): ...", "plain numbers"),
        ("@pytest.mark.hostile(*ROWS)\ndef test_x(): ...", "plain numbers"),
        ("@pytest.mark.hostile(row=4)\ndef test_x(): ...", "plain numbers"),
    ],
)
def test_a_mark_that_would_be_lost_is_an_error(source: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        MARKS.marks_of(source, "f.py")


def test_a_row_without_a_test_and_a_test_without_a_row_are_told() -> None:
    rows = [Row(number=1, input="a", precedent=""), Row(number=2, input="c", precedent="")]
    shown = {1: [Shown(file="tests/test_x.py", test="test_it_holds")], 7: []}
    assert missing(rows, shown) == [2]
    assert unknown(rows, shown) == [7]
    text = page(rows, shown)
    assert "**none**" in text
    assert "- it holds" in text
