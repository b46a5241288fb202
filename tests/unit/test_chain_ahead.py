"""What is made ahead of a pull's end: when, for whom, and that it never decides anything."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence

import pytest

from orlop.errors import Cancelled, InvalidArgument
from orlop.images.ahead import Ahead, Rendered
from orlop.layers.index import LayerIndex
from orlop.metadata.roots import ChainRow
from orlop.observe import Call
from orlop.spec.digest import DiffID

ONE, TWO = (DiffID(f"sha256:{digit * 64}") for digit in "12")
PATIENCE = 60.0
Make = Callable[[Sequence[DiffID], Mapping[DiffID, LayerIndex], Call], Rendered | None]


def made(name: str = "chain") -> Rendered:
    row = ChainRow(id=name, parent=None, depth=1, entries=1, size=4, uuid=bytes(16), devices=())
    return row, bytearray(b"1234"), []


def ahead(make: Make, missing: set[DiffID]) -> Ahead:
    return Ahead(make, lambda diff_ids: set(missing), meanwhile=lambda: None, call=Call())


def test_it_is_made_of_all_layers_once_the_last_that_was_missing_is_here() -> None:
    asked: list[tuple[list[DiffID], set[DiffID]]] = []

    def make(diff_ids: Sequence[DiffID], indexes: Mapping[DiffID, LayerIndex], call: Call) -> Rendered:
        asked.append((list(diff_ids), set(indexes)))
        return made()

    with ahead(make, {ONE, TWO}) as one:
        one.expect([ONE, TWO])
        one.seen(TWO, LayerIndex())
        assert one.take("chain") is None
        one.seen(ONE, LayerIndex())
        assert one.take("chain") == made()
        assert one.take("chain") is None  # it is large, and whoever has it has it alone
    assert asked == [([ONE, TWO], {ONE, TWO})]


def test_layers_that_were_there_are_not_waited_for_and_one_that_comes_twice_counts_once() -> None:
    with ahead(lambda diff_ids, indexes, call: made(), {TWO}) as one:
        one.expect([ONE, TWO])
        one.seen(ONE, LayerIndex())
        assert one.take("chain") is None
        one.seen(TWO, LayerIndex())
        one.seen(TWO, LayerIndex())
        assert one.take("chain") == made()
        assert set(one) == {ONE, TWO}


def test_an_image_of_another_name_is_not_given() -> None:
    with ahead(lambda diff_ids, indexes, call: made("other"), {ONE}) as one:
        one.expect([ONE])
        one.seen(ONE, LayerIndex())
        assert one.take("chain") is None


@pytest.mark.parametrize("missing", [set(), {ONE}])
def test_without_a_last_layer_nothing_is_made(missing: set[DiffID]) -> None:
    with ahead(lambda diff_ids, indexes, call: made(), missing) as one:
        one.expect([ONE])
        assert one.take("chain") is None


def test_what_cannot_be_made_is_left_to_who_needs_it() -> None:
    def make(diff_ids: Sequence[DiffID], indexes: Mapping[DiffID, LayerIndex], call: Call) -> Rendered:
        raise InvalidArgument("merge layers", "they contradict one another")

    with ahead(make, {ONE}) as one:
        one.expect([ONE])
        one.seen(ONE, LayerIndex())
        assert one.take("chain") is None


def test_of_several_images_the_first_is_foreseen() -> None:
    with ahead(lambda diff_ids, indexes, call: made(diff_ids[0]), {ONE, TWO}) as one:
        one.expect([ONE, TWO])
        one.expect([TWO])
        one.seen(TWO, LayerIndex())
        one.seen(ONE, LayerIndex())
        assert one.take(ONE) is not None


def test_at_its_end_the_work_is_cancelled_and_nothing_goes_on() -> None:
    begun, ended = threading.Event(), threading.Event()

    def make(diff_ids: Sequence[DiffID], indexes: Mapping[DiffID, LayerIndex], call: Call) -> Rendered:
        begun.set()
        try:
            if call.cancel.wait(PATIENCE):
                call.check("build chain")
            raise AssertionError("nobody cancelled it")
        except Cancelled:
            ended.set()
            raise

    with ahead(make, {ONE}) as one:
        one.expect([ONE])
        one.seen(ONE, LayerIndex())
        assert begun.wait(PATIENCE)
    assert ended.is_set()
    assert one.take("chain") is None
