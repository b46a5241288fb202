"""What a word on the command line can go on as, asked as a shell asks."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from typing import Any, get_args

import click
import pytest

from orlop.cli import completing, frontpage
from orlop.cli.app import VERBS, app
from orlop.cli.completion import SCRIPTS
from orlop.cli.declared import clicks
from orlop.cli.session import Target
from orlop.config import BlobFormat, Compression
from orlop.errors import NotFound
from orlop.images.api import ImageInfo, PreparedInfo
from orlop.images.contents import FileInfo
from orlop.images.upkeep import Pin
from orlop.layers.packing.recipes import COMPRESSIONS, FORMATS
from support.commands import all_commands

IMAGES = ("docker.io/library/alpine:latest", "docker.io/library/alpine:3.20", "localhost/app:1", "r.io:5/a b")
FOLDERS = {"": [("bin", 0o040755), ("etc", 0o040755), ("init", 0o100644)], "etc": [("a b", 0o100644)]}


class FakeStore:
    """What completions ask of a store."""

    def __enter__(self) -> FakeStore:
        return self

    def __exit__(self, *exc: object) -> None:
        pass

    def images(self) -> list[ImageInfo]:
        return [
            ImageInfo(name=name, id=f"sha256:{number:02}{'f' * 62}") for number, name in enumerate(IMAGES)
        ]

    def prepared(self) -> list[PreparedInfo]:
        return [
            PreparedInfo(
                path=path, image="a", image_id="", kind="active", driver="", mounted=False, created=""
            )
            for path in ("/srv/a", "/srv/b\n")
        ]

    def pins(self) -> list[Pin]:
        return [Pin(name="base", kind="image", ref="", created=0.0)]

    def ls(self, thing: str, path: bytes) -> Generator[FileInfo]:
        if thing not in {"alpine", "/srv/a"}:
            raise NotFound("look", "no such thing")
        folder = os.fsdecode(path).strip("/")
        for name, mode in FOLDERS[folder]:
            yield FileInfo(path=os.fsencode(f"{folder}/{name}".strip("/")), mode=mode)


TARGETS: list[Target] = []


@contextmanager
def opened(target: Target) -> Iterator[FakeStore]:
    TARGETS.append(target)
    yield FakeStore()


@pytest.fixture
def ask(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The answer to a line: values, each with the type before it where that is not plain."""
    TARGETS.clear()
    opener: Any = opened
    monkeypatch.setattr(completing, "_opener", opener)
    monkeypatch.setenv("_ORLOP_COMPLETE", "zsh_complete")
    monkeypatch.setenv("ORLOP_CONFIG", os.devnull)
    monkeypatch.delenv("ORLOP_HOST", raising=False)
    monkeypatch.delenv("ORLOP_ROOT", raising=False)

    def ask(line: str, shell: str = "zsh", breaks: str = ":=") -> list[str]:
        monkeypatch.setenv("_ORLOP_LINE", line)
        monkeypatch.setenv("_ORLOP_BREAKS", breaks)
        cls = {"bash": completing._Bash, "zsh": completing._Zsh, "fish": completing._Fish}[shell]
        answer = cls(clicks(app), {}, "orlop", "_ORLOP_COMPLETE").complete()
        rows = [row.split("\t") for row in answer.splitlines()]
        return [value if kind == "plain" else f"{kind}:{value}" for kind, value, _ in rows]

    return ask


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("orlop im", ["import", "images"]),
        ("orlop chec", ["checkpoint", "check"]),
        ("orlop checkpoint r", ["rollback"]),
        ("orlop --driver e", ["erofs"]),
        ("orlop --driver=e", ["--driver=erofs"]),
        ("orlop --root ", ["dir:"]),
        ("orlop rmi ", ["alpine", "alpine:3.20", "localhost/app:1", "r.io:5/a b"]),
        ("orlop rmi alp", ["alpine", "alpine:latest", "alpine:3.20"]),
        ("orlop rmi docker.io/library/alpine:l", ["docker.io/library/alpine:latest"]),
        ("orlop rmi alpine local", ["localhost/app:1"]),
        ("orlop rmi 02", ["02" + "f" * 10]),
        ("orlop rmi zzz", []),
        ("orlop run loc", ["localhost/app:1"]),
        ("orlop run alpine /", ["/bin/", "/etc/", "/init"]),
        ("orlop run alpine ec", []),
        ("orlop commit --base loc", ["localhost/app:1"]),
        ("orlop cleanup ", ["/srv/a"]),
        ("orlop commit /srv", ["/srv/a"]),
        ("orlop inspect /", ["/srv/a"]),
        ("orlop inspect r", ["r.io:5/a b"]),
        ("orlop ls alpine ", ["bin/", "etc/", "init"]),
        ("orlop ls alpine /e", ["/etc/"]),
        ("orlop ls -l /srv/a /etc/", ["/etc/a b"]),
        ("orlop cat nothing /e", []),
        ("orlop cp alpine:/i", ["alpine:/init"]),
        ("orlop cp alpine:/etc/", ["alpine:/etc/a b"]),
        ("orlop cp loc", ["localhost/app:1:"]),
        ("orlop cp ./x", ["file:./x"]),
        ("orlop cp zzz", ["file:zzz"]),
        ("orlop prepare alpine ", ["dir:"]),
        ("orlop import ./", ["file:./"]),
        ("orlop unpin ", ["base"]),
        ("orlop ps --format ", ["table", "json", "name"]),
        ("orlop ps --filter k", ["kind="]),
        ("orlop pull --platform linux/arm64", ["linux/arm64"]),
        ("orlop push alpine --compression=z", ["--compression=zstd"]),
        ("orlop events --kind root.cl", ["root.cleaned"]),
        ("orlop completion z", ["zsh"]),
        ("orlop nosuch ", []),
        ("orlop rmi 'localhost/ap", ["localhost/app:1"]),
        ("orlop rmi localhost/app:1 ", ["alpine", "alpine:3.20", "localhost/app:1", "r.io:5/a b"]),
        ("", [name for verbs in VERBS.values() for name in verbs]),
    ],
)
def test_a_word_goes_on_as_what_it_may_mean(ask: Any, line: str, expected: list[str]) -> None:
    assert ask(line) == expected
    assert ask(line, "fish") == expected


@pytest.mark.parametrize(
    ("line", "breaks", "expected"),
    [
        ("orlop rmi localhost/app:", ":=", ["1"]),
        ("orlop rmi localhost/app:", "=", ["localhost/app:1"]),
        ("orlop --driver=e", ":=", ["erofs"]),
        ("orlop --driver=e", "", ["--driver=erofs"]),
        ("orlop cp alpine:/etc/", ":=", [r"/etc/a\ b"]),
        ("orlop rmi r.io", "", [r"r.io:5/a\ b"]),
    ],
)
def test_bash_gets_what_comes_after_its_breaks_and_quoted(
    ask: Any, line: str, breaks: str, expected: list[str]
) -> None:
    assert ask(line, "bash", breaks) == expected


def test_the_store_that_is_asked_is_the_lines_own(ask: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def target(line: str) -> Target:
        ask(line)
        return TARGETS[-1]

    assert (target("orlop rmi ").root, TARGETS[-1].host) == (None, None)
    assert target("orlop --root /r rmi ").root == "/r"
    assert target("orlop --host unix:///x rmi ").host == "unix:///x"
    monkeypatch.setenv("ORLOP_ROOT", "/e")
    assert target("orlop rmi ").root == "/e"
    monkeypatch.setenv("ORLOP_HOST", "unix:///y")
    assert target("orlop rmi ").host == "unix:///y"


def test_where_there_is_no_store_none_is_made_and_nothing_said(
    ask: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    monkeypatch.setattr(completing, "_opener", completing.open_store)
    for line in (f"orlop --root {tmp_path}/r rmi ", f"orlop --host unix://{tmp_path}/s rmi "):
        assert ask(line) == []
    assert os.listdir(tmp_path) == []


def test_no_completion_brings_a_store_to_a_new_version(
    ask: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    monkeypatch.setattr(completing, "_opener", completing.open_store)
    with closing(sqlite3.connect(tmp_path / "meta.db")) as connection:
        connection.execute("PRAGMA user_version = 5")
    assert ask(f"orlop --root {tmp_path} --run {tmp_path}-run rmi ") == []
    assert os.listdir(tmp_path) == ["meta.db"]


def test_help_stands_beside_what_may_be_meant(ask: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("_ORLOP_LINE", "orlop rm")
    answer = completing._Zsh(clicks(app), {}, "orlop", "_ORLOP_COMPLETE").complete()
    assert answer == "plain\trmi\tRemove images, and the disk that nothing else needs.\n"


# ------------------------------------------------------------------ what completes to what

# Arguments about which nobody here knows anything.
FREE = {
    "KEY=VALUE|KEY-...",
    "NAME",
    "[NAME]",
    "NAME...",
    "REPOSITORY",
    "[REGISTRY[/PART]]",
    "bash|zsh|fish",
    "[KEY|TABLE]...",
    "[FILE]",
}


def test_every_argument_completes_or_nothing_is_known_of_it() -> None:
    bare = set()
    for name, command in all_commands():
        completing.dress(command, *name.split())
        for param in command.params:
            knows = "shell_complete" in vars(param) or isinstance(param.type, click.Choice)
            if isinstance(param, click.Argument) and not knows:
                bare.add((name, param.metavar))
    assert {metavar for _, metavar in bare} <= FREE, bare


def test_what_is_said_of_a_parameter_is_said_of_one_that_there_is() -> None:
    there = {(*name.split(), str(param.name)) for name, command in all_commands() for param in command.params}
    there |= {(str(param.name),) for param in clicks(app).params}
    assert set(completing._OF) <= there


def test_the_choices_are_those_of_the_types() -> None:
    assert get_args(Compression) == COMPRESSIONS
    assert get_args(BlobFormat) == FORMATS


@pytest.mark.parametrize("shell", SCRIPTS)
def test_a_script_asks_with_the_words_that_are_answered(shell: str) -> None:
    script = SCRIPTS[shell]
    assert f"_ORLOP_COMPLETE={shell}_complete" in script
    assert "_ORLOP_LINE=" in script
    assert frontpage.EXAMPLES.count("orlop completion bash") == 1
