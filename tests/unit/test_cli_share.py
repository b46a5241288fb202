"""``orlop share``: what it prints; and images out of other engines."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from orlop.cli import main
from orlop.errors import Cancelled, FailedPrecondition, InvalidArgument
from orlop.facade import Store
from orlop.facade.engines import engine_of, saved
from orlop.observe import Call, CancelToken
from orlop.testing.fake import FakeStore

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def fake() -> FakeStore:
    store = FakeStore()
    store.publish("alpine")
    store.pull("alpine")
    return store


@pytest.fixture
def run(fake: FakeStore, capsys: pytest.CaptureFixture[str]) -> Iterator[Run]:
    def act(*argv: str) -> tuple[int, str, str]:
        code = main(argv, open_store=lambda target: Store(fake))
        told = capsys.readouterr()
        return code, told.out, told.err

    return act


def test_a_share_is_added_to_listed_renewed_and_dropped(run: Run) -> None:
    name = "docker.io/library/alpine:latest"
    assert run("share", "add", "-q", "/srv/l", "alpine") == (0, f"oci:/srv/l:{name}\n", "")
    assert run("share", "add", "-q", "--form", "store", "/srv/s", "alpine") == (0, f"{name}\n", "")
    assert run("share", "list", "-q")[1] == "/srv/l\n/srv/s\n"
    assert [share["form"] for share in json.loads(run("share", "list", "--json")[1])] == ["layout", "store"]
    assert run("share", "list")[1].splitlines()[0].split() == ["FOLDER", "FORM", "STATE", "IMAGES"]
    assert run("share", "renew", "/srv/l")[:2] == (0, "/srv/l\n")
    assert run("share", "renew")[:2] == (0, "")  # all are ready
    assert run("share", "drop", "/srv/l", "/srv/s")[:2] == (0, "/srv/l\n/srv/s\n")
    code, out, err = run("share", "drop", "/srv/l")
    assert code != 0
    assert (out, "no share" in err) == ("", True)
    assert "orlop share add" in run("share")[1]


# ------------------------------------------------------------------ podman:IMAGE

ENGINE = """#!/bin/sh
case "$*" in
  *fails*) echo first >&2; echo "Error: no such image" >&2; exit 3 ;;
  *hangs*) echo begins; exec sleep 600 ;;
esac
printf '%s\\n' "$@"
"""


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A podman that prints its arguments."""
    (tmp_path / "podman").write_text(ENGINE)
    (tmp_path / "podman").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")


def test_sources_that_are_images_of_an_engine_are_told_from_paths() -> None:
    assert engine_of("podman:alpine") == ("podman", "alpine")
    assert engine_of("docker:localhost:5000/a:1") == ("docker", "localhost:5000/a:1")
    assert engine_of("./podman:alpine") is engine_of("archive.tar") is engine_of("other:alpine") is None
    for wrong in ("podman:", "podman:--output=/etc/passwd", "docker:/etc"):
        with pytest.raises(InvalidArgument, match="no image"):
            engine_of(wrong)


@pytest.mark.usefixtures("engine")
def test_what_an_engine_saves_is_read_as_it_comes() -> None:
    assert b"".join(saved("podman", "alpine", Call())) == b"save\n--quiet\n--\nalpine\n"


@pytest.mark.usefixtures("engine")
def test_an_engine_that_fails_says_why_after_what_it_wrote() -> None:
    with pytest.raises(FailedPrecondition, match="Error: no such image"):
        list(saved("podman", "fails", Call()))


@pytest.mark.usefixtures("engine")
def test_a_call_that_is_cancelled_ends_the_engine() -> None:
    cancel = CancelToken()
    chunks = saved("podman", "hangs", Call(cancel=cancel))
    assert next(chunks) == b"begins\n"
    cancel.cancel()
    with pytest.raises(Cancelled):
        next(chunks)


def test_an_engine_that_is_not_there_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FailedPrecondition, match="docker is not installed"):
        next(saved("docker", "alpine", Call()))
