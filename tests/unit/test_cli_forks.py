"""``orlop fork`` and ``orlop checkpoint``: what they print, and what they are when something is wrong."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import pytest

import orlop
from orlop.cli import main
from orlop.facade import Store
from orlop.images.api import PrepareOptions
from orlop.testing.fake import FakeStore

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def fake() -> FakeStore:
    store = FakeStore()
    store.publish("alpine")
    store.prepare_root("alpine", "/srv/a", options=PrepareOptions(labels={"a": "1"}))
    store.write("/srv/a", "one")
    return store


@pytest.fixture
def run(fake: FakeStore, capsys: pytest.CaptureFixture[str]) -> Iterator[Run]:
    def act(*argv: str) -> tuple[int, str, str]:
        code = main(argv, open_store=lambda target: Store(fake))
        told = capsys.readouterr()
        return code, told.out, told.err

    return act


def test_forks_are_told_by_their_paths_or_whole(run: Run, fake: FakeStore) -> None:
    assert run("fork", "-q", "/srv/a", "/srv/b", "/srv/c") == (0, "/srv/b\n/srv/c\n", "")
    code, out, _ = run("fork", "--move", "--label", "b=2", "--json", "/srv/a", "/srv/d")
    told = json.loads(out)
    assert (code, [root["path"] for root in told]) == (0, ["/srv/d"])
    assert (told[0]["labels"], bool(told[0]["mounts"])) == ({"a": "1", "b": "2"}, True)
    assert [root.path for root in fake.prepared()] == ["/srv/b", "/srv/c", "/srv/d"]


def test_a_checkpoint_is_made_with_and_without_the_word_for_it(run: Run, fake: FakeStore) -> None:
    assert run("checkpoint", "/srv/a", "one")[:2] == (0, "one\n")
    assert run("checkpoint", "create", "/srv/a", "two")[:2] == (0, "two\n")
    code, out, _ = run("checkpoint", "--json", "/srv/a", "three")
    assert (code, json.loads(out)["name"], json.loads(out)["size"]) == (0, "three", 3)
    assert run("checkpoint", "list", "-q", "/srv/a")[1] == "one\ntwo\nthree\n"
    assert run("checkpoint", "list", "/srv/a")[1].splitlines()[0].split() == ["NAME", "CREATED", "SIZE"]
    fake.write("/srv/a", "other")
    assert run("checkpoint", "rollback", "/srv/a", "one")[:2] == (0, "/srv/a\n")
    assert run("checkpoint", "drop", "/srv/a", "one", "two")[:2] == (0, "one\ntwo\n")
    assert [point.name for point in fake.checkpoints("/srv/a")] == ["three"]
    assert "checkpoint create PATH NAME" in run("checkpoint")[1]


@pytest.mark.parametrize(
    ("argv", "code"),
    [
        (("fork", "/srv/a"), 2),
        (("fork",), 2),
        (("checkpoint", "/srv/a"), 2),
        (("fork", "/srv/a", "/srv/b", "/srv/b"), 2),
        (("fork", "/srv/none", "/srv/b"), 3),
        (("fork", "/srv/a", "/srv/a"), 4),
        (("checkpoint", "rollback", "/srv/a", "none"), 3),
        (("checkpoint", "drop", "/srv/a", "none"), 3),
        (("checkpoint", "list", "/srv/none"), 3),
    ],
)
def test_what_is_wrong_is_an_exit_code_and_one_line(run: Run, argv: tuple[str, ...], code: int) -> None:
    done, out, err = run(*argv)
    assert (done, out) == (code, "")
    assert err.startswith("orlop: error: ")


def test_the_library_gives_handles_of_forks(fake: FakeStore) -> None:
    store = Store(fake)
    root = store.get("/srv/a")
    one, two = root.fork("/srv/b", "/srv/c", labels={"b": "2"})
    assert (one.path, two.info.labels) == ("/srv/b", {"a": "1", "b": "2"})
    assert isinstance(one, orlop.Prepared)
    root.checkpoint("one")
    (moved,) = root.fork("/srv/d", move=True, mount=True)
    assert (root.path, root.info.mounted, moved.path) == ("/srv/d", True, "/srv/d")
    assert [point.name for point in moved.checkpoints()] == ["one"]
    assert moved.rollback("one") is moved
    moved.drop_checkpoint("one")
    assert moved.checkpoints() == []
    assert [fork.path for fork in store.fork("/srv/b", "/srv/e")] == ["/srv/e"]
