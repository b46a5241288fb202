"""Words that are understood without click mean what they mean to click."""

from __future__ import annotations

import os
import random

import click
import pytest

from orlop.cli import declared, plain
from orlop.cli.app import MODULES, app, found_verb
from orlop.cli.exits import Misuse
from orlop.cli.session import Session
from orlop.errors import Error

VERBS = {name: found for name in MODULES if isinstance(found := found_verb(name), declared.Verb)}
WORDS = (
    "alpine",
    "/srv/a",
    "-",
    "7",
    "0",
    "99999999999999999999",
    "json",
    "name",
    "{{.name}}",
    "gzip",
    "x=y",
    "é",
)
ODD = (
    "",
    "--",
    "-x",
    "--nothing",
    "-qf",
    "--json=1",
    "--quie",
    "--help",
    "-h",
    "--format=",
    "--no-durable",
    "+5",
)
VARIABLES = {
    "ORLOP_PROGRESS": ("plain", "json", "wrong", ""),
    "ORLOP_DRIVER": ("erofs", "wrong", ""),
    "ORLOP_DURABLE": ("no", "1", "perhaps"),
    "ORLOP_INSECURE_REGISTRIES": ("a:5000 b:5000", ""),
    "ORLOP_ROOT": ("/elsewhere", ""),
    "ORLOP_LIMITS": ("depth=4", ""),
}


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    for name in [*os.environ]:
        if name.startswith("ORLOP_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))  # no file is there
    monkeypatch.setattr("orlop.cli.environment.SYSTEM_CONFIG", str(tmp_path / "none.toml"))
    return


def values_of(one: declared.Declared) -> list[str]:
    kind = one.attrs.get("type")
    choices = list(kind.args[0]) if isinstance(kind, declared.Kind) and kind.name == "Choice" else []
    return [*choices, *choices, *WORDS]


def line_of(verb: declared.Verb, chance: random.Random) -> list[str]:
    """A command line that is more or less right."""
    words: list[str] = []
    options = [one for one in verb.declared if one.kind == "option"]
    for one in chance.sample(options, k=min(len(options), chance.randrange(4))):
        name = chance.choice([part for word in one.opts for part in word.replace(" ", "").split("/")])
        if plain._is_flag(one):
            words.append(name)
        else:
            value = chance.choice(values_of(one))
            words += [f"{name}={value}"] if name.startswith("--") and chance.random() < 0.3 else [name, value]
    for one in verb.declared:
        if one.kind == "argument":
            count = (
                chance.choice((0, 1, 1, 2)) if one.attrs.get("nargs") == -1 else chance.choice((1, 1, 1, 0))
            )
            words += [chance.choice(values_of(one)) for _ in range(count)]
    if chance.random() < 0.3:
        words.insert(chance.randrange(len(words) + 1), chance.choice(ODD))
    if chance.random() < 0.2:
        chance.shuffle(words)
    return words


def outcome(take) -> object:
    """The values and where they came from, or the error."""
    try:
        params, source = take()
    except (Error, Misuse) as exc:
        return type(exc), str(exc)
    return params, {name: getattr(source(name), "name", None) for name in params}


def by_click(verb: declared.Verb, name: str, words: list[str], parent: click.Context | None = None):
    context = verb.command.make_context(name, list(words), parent=parent, obj=Session())
    return context.params, context.get_parameter_source


def without(verb: declared.Verb, name: str, given, parent: plain.Context | None = None):
    context = plain.Context(verb, name, Session(), parent)
    context.take(given, verb.declared)
    return context.params, context.get_parameter_source


def agree(verb: declared.Verb, name: str, words: list[str]) -> bool:
    """Whether it was understood without click; then click says the same."""
    stops = not verb.attrs.get("context_settings", {}).get("allow_interspersed_args", True)
    try:
        given, _ = plain.parse(verb.declared, words, stops=stops)
        ours = outcome(lambda: without(verb, name, given))
    except plain.NotPlain:
        return False
    assert ours == outcome(lambda: by_click(verb, name, words)), words
    return True


@pytest.mark.parametrize("name", sorted(VERBS))
def test_what_is_plain_means_to_click_what_it_means_here(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    chance = random.Random(name)
    understood = 0
    for number in range(40):
        if number % 4 == 3:
            variable = chance.choice([*VARIABLES])
            monkeypatch.setenv(variable, chance.choice(VARIABLES[variable]))
        understood += agree(VERBS[name], name, line_of(VERBS[name], chance))
    assert understood >= 3 or name in LEFT_TO_CLICK


# Verbs that declare what only click knows.
LEFT_TO_CLICK = {
    name for name, verb in VERBS.items() if any(not set(one.attrs) <= plain._KNOWN for one in verb.declared)
}


@pytest.mark.parametrize(
    "name", ["images", "ps", "mounts", "tag", "inspect", "rmi", "prepare", "commit", "cleanup"]
)
def test_the_frequent_verbs_are_not_left_to_click(name: str) -> None:
    assert name not in LEFT_TO_CLICK


@pytest.mark.parametrize(
    "words",
    [
        ["--root", "/a", "--run=/b", "images"],
        ["--driver", "overlay", "--no-durable", "ps"],
        ["--insecure-registry", "a:5000", "--insecure-registry", "b", "tag", "x", "y"],
        ["--limit", "depth=5", "--debug", "images", "-q"],
        ["--limit", "no-such=5", "images"],
        ["--config", "/nowhere", "images"],
        ["--driver", "wrong", "images"],
        ["--host", "unix:///x", "--root", "/y", "images"],
        ["--host", "unix:///x", "--durable", "images"],
        ["images", "--root", "/a"],
        [],
    ],
    ids=" ".join,
)
@pytest.mark.parametrize(
    "variable", [None, "ORLOP_DRIVER", "ORLOP_DURABLE", "ORLOP_ROOT", "ORLOP_HOST", "ORLOP_LIMITS"]
)
def test_the_global_options_come_to_the_same(
    words: list[str], variable: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if variable is not None:
        monkeypatch.setenv(
            variable, {"ORLOP_DURABLE": "no", "ORLOP_LIMITS": "depth=4"}.get(variable, "overlay")
        )
    seen: list[object] = []

    def note(function):
        session = Session()
        try:
            function(session)
        except (Error, Misuse) as exc:
            return type(exc), str(exc)
        except (click.ClickException, plain.NotPlain) as exc:
            return type(exc)
        return session.target

    def note_click(session: Session) -> None:
        context = app.command.make_context("orlop", list(words), obj=session)
        with context:
            context.invoked_subcommand = next(word for word in words if word in MODULES)
            app.function(**context.params)

    def note_ours(session: Session) -> None:
        given, rest = plain.parse(app.declared, words, stops=True)
        context = plain.Context(app, "orlop", session)
        context.take(given, app.declared)
        context.invoked_subcommand = rest[0] if rest else None
        if not rest:
            raise plain.NotPlain
        plain._call(app, context)

    ours = note(note_ours)
    if ours is not plain.NotPlain:
        seen.append(note(note_click))
        assert ours == seen[0]
