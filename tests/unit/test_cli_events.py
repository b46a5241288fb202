"""``orlop events``: what it prints, where it begins, and what it is when something is wrong."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Callable, Generator, Iterator

import pytest

from orlop.cli import main
from orlop.facade import Store
from orlop.images.events import Event, EventQuery, Position
from orlop.observe import Call
from orlop.testing.fake import FakeStore

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def fake() -> FakeStore:
    store = FakeStore()
    store.tell("image.created", "a", id="1")
    store.tell("root.prepared", "/srv/\n", image="a")
    store.tell("image.removed", "a", id="1")
    return store


@pytest.fixture
def run(fake: FakeStore, capsys: pytest.CaptureFixture[str]) -> Iterator[Run]:
    def act(*argv: str) -> tuple[int, str, str]:
        code = main(argv, open_store=lambda target: Store(fake))
        told = capsys.readouterr()
        return code, told.out, told.err

    return act


def test_a_line_has_the_time_the_cursor_the_kind_the_subject_and_more(run: Run) -> None:
    code, out, _ = run("events")
    assert code == 0
    first, second, _ = out.splitlines()  # a line break in a path is no line break of ours
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT[\d:.]+Z 0fa4e000-1 image.created a id=1", first)
    assert second.split()[1:3] == ["0fa4e000-2", "root.prepared"]


def test_json_has_all_of_it_a_line_each(run: Run) -> None:
    found = [json.loads(line) for line in run("events", "--json")[1].splitlines()]
    assert [one["seq"] for one in found] == [1, 2, 3]
    assert set(found[0]) == {
        *("cursor", "seq", "time", "time_ns", "kind", "namespace", "subject", "attributes"),
    }
    assert found[1]["subject"] == "/srv/\n"


@pytest.mark.parametrize(
    ("words", "seqs"),
    [
        (["--since", "oldest"], [1, 2, 3]),
        (["--since", "0fa4e000-2"], [3]),
        (["--since", "0fa4e000-3"], []),
        (["--since", "5000w"], [1, 2, 3]),
        (["--since", "1970-01-02"], [1, 2, 3]),
        (["--since", "2200-01-01T00:00:00+02:00"], []),
        (["--kind", "image"], [1, 3]),
        (["--kind", "image.removed", "--kind", "root"], [2, 3]),
    ],
    ids=str,
)
def test_where_to_begin_and_what_to_show_can_be_said(run: Run, words: list[str], seqs: list[int]) -> None:
    code, out, _ = run("events", "--json", *words)
    assert (code, [json.loads(line)["seq"] for line in out.splitlines()]) == (0, seqs)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--since", "yesterday"], "neither a cursor nor a time"),
        (["--since", "00000000-1"], "another store's"),
        (["--kind", "images"], "there are no events of kind 'images'"),
    ],
    ids=str,
)
def test_what_cannot_be_is_said_in_one_line_with_a_way_on(run: Run, words: list[str], said: str) -> None:
    code, out, err = run("events", *words)
    assert code != 0
    assert not out
    assert said in err
    assert "hint: " in err


class Interrupted(FakeStore):
    """Somebody presses Ctrl-C once the first event has been shown."""

    def watch_events(self, query: EventQuery, *, call: Call | None = None) -> Generator[Event | Position]:
        pressed = False
        for step in super().watch_events(query, call=call):
            yield step
            if isinstance(step, Event) and not pressed:
                pressed = True
                signal.raise_signal(signal.SIGINT)


def test_ctrl_c_is_how_following_ends_and_no_error(capsys: pytest.CaptureFixture[str]) -> None:
    store = Interrupted()
    store.tell("image.created", "a", id="1")
    code = main(("events", "--follow", "--since", "oldest"), open_store=lambda target: Store(store))
    told = capsys.readouterr()
    assert (code, "image.created a id=1" in told.out, "error" in told.err) == (0, True, False)
