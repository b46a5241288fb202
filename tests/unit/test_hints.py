"""Words of typing that are stand-ins in a command's own process hurt nobody there, and are nowhere else."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

import orlop
from orlop import hints
from orlop.cli.app import MODULES

SOURCE = Path(orlop.__file__).parent
# In a process that is as new as a command's, without typing; each case in a child, from the same start.
SCRIPT = """
import json, os, sys
from orlop.cli import own
assert "typing" not in sys.modules
own.begin()

def looked_at():
    import typing
    from orlop import hints
    from orlop.cli.late import Late
    wrong = []
    for name, module in list(sys.modules.items()):
        ours = name.partition(".")[0] == "orlop"
        if module is None or type(module) is Late or module is typing:
            continue
        for word, value in list(vars(module).items()):
            if not ours and (type(value) is hints._Word or value is hints._Base):
                wrong.append(f"{name}.{word} is a stand-in")
            if ours and isinstance(value, type) and hints._Base in type.mro(value):
                if typing.Generic in type.mro(value):
                    wrong.append(f"{name}.{word} builds on typing's words and on stand-ins")
    return wrong

def verbs(*names):
    from orlop.cli import app, declared
    wrong = []
    for name in names:
        found = app.found_verb(name)
        command = declared.clicks(found)
        import click
        with click.Context(command, info_name=name) as ctx:
            command.get_help(ctx)
        todo = [command]
        while todo:
            one = todo.pop()
            todo += getattr(one, "commands", {}).values()
            for param in one.params:
                choices = getattr(param.type, "choices", ["-"])
                if not choices or not all(isinstance(word, str) for word in choices):
                    wrong.append(f"{name} {param.name}: {choices!r}")
    return wrong + looked_at()

def modules(*names):
    import importlib
    for name in names:
        importlib.import_module(name)
    import dataclasses, inspect
    wrong = []
    for name in names:
        for word, value in list(vars(sys.modules[name]).items()):
            if isinstance(value, type) and value.__module__ == name and "_orlop_specs" in vars(value):
                if [one.name for one in dataclasses.fields(value)] != list(value._orlop_specs):
                    wrong.append(f"{name}.{word}: other fields")
                inspect.signature(value)
    return wrong + looked_at()

def meant():
    from orlop.config import keys
    from orlop.images import exports, imports, shares
    from orlop.images.account import things
    return [repr(one) for one in (exports.EXPORT_FORMATS, imports.FORMATS, shares.SHARE_FORMS, dict(keys.keys()))]

for kind, *names in json.loads(sys.argv[1]):
    taker, giver = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            said = globals()[kind](*names)
        except BaseException as exc:
            import traceback
            said = traceback.format_exception(exc)[-3:]
        with open(giver, "w") as file:
            json.dump(said, file)
        os._exit(0)
    os.close(giver)
    with open(taker) as file:
        print(json.dumps([kind, names, json.load(file)]), flush=True)
    os.waitpid(child, 0)
"""


def said_in_own_processes(*cases: tuple[str, ...]) -> list[object]:
    """What each case says in a process of its own that has not imported typing."""
    path = [os.path.abspath(entry) for entry in sys.path]
    script = f"import sys; sys.path[:] = {path!r}\n{SCRIPT}"
    command = [sys.executable, "-I", "-S", "-c", script, json.dumps(cases)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=250)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def all_modules() -> list[str]:
    """Of orlop; without those that only run, and the generated ones."""
    names = [".".join(path.relative_to(SOURCE.parent).with_suffix("").parts) for path in SOURCE.rglob("*.py")]
    names = [name.removesuffix(".__init__") for name in names]
    return sorted(name for name in names if not name.endswith(".__main__"))


def test_every_verb_is_whole_in_a_process_of_its_own() -> None:
    together: dict[str, list[str]] = {}
    for verb, module in MODULES.items():
        together.setdefault(module, []).append(verb)
    cases = [("verbs", *names) for names in together.values()]
    for kind, names, wrong in said_in_own_processes(*cases):
        assert not wrong, (kind, names, wrong)


def test_all_modules_go_together_in_one_process() -> None:
    names = all_modules()
    assert len(names) > 300
    [[_, _, wrong]] = said_in_own_processes(("modules", *names))
    assert not wrong


def test_what_is_read_from_types_is_the_same_in_a_process_of_its_own() -> None:
    from orlop.config import keys
    from orlop.images import exports, imports, shares

    [[_, _, said]] = said_in_own_processes(("meant",))
    known = (exports.EXPORT_FORMATS, imports.FORMATS, shares.SHARE_FORMS, dict(keys.keys()))
    assert said == [repr(one) for one in known]


USER = """
import orlop
words = [getattr(orlop, name) for name in orlop.__all__]  # what a user may ask for, before typing is there
import copy, dataclasses, inspect, pickle, sys, typing
from orlop import hints
from orlop.images import protocol
assert hints.Protocol is typing.Protocol and hints.Literal is typing.Literal
assert typing.Protocol in protocol.Store.__mro__
for word in words:
    if isinstance(word, type) and dataclasses.is_dataclass(word):
        hinted = typing.get_type_hints(word)
        assert {field.name for field in dataclasses.fields(word)} <= set(hinted), word
        assert not [one for one in hinted.values() if type(one).__module__ == "orlop.hints"], word
        inspect.signature(word)
kinds = typing.get_type_hints(orlop.Mount)
mount = orlop.Mount(**{
    name: () if typing.get_origin(kind) is tuple else "/x" for name, kind in kinds.items()
})
assert pickle.loads(pickle.dumps(mount)) == copy.deepcopy(mount) == mount
"""


def test_a_program_that_uses_the_library_has_typings_own_words() -> None:
    path = [os.path.abspath(entry) for entry in sys.path]
    script = f"import sys; sys.path[:] = {path!r}\n{USER}"
    subprocess.run([sys.executable, "-I", "-S", "-c", script], check=True, timeout=250)


def test_the_stand_ins_are_for_processes_that_say_so() -> None:
    """And for none where typing was imported already, as here."""
    import typing

    hints.stand_in()
    assert hints.Protocol is typing.Protocol


# What asks a word for its meaning at run time, and the words of which it may not be a stand-in.
MEANINGS = {
    "get_args": {"Literal", "Any"},
    "get_origin": {"Literal", "Any"},
    "get_type_hints": {*hints.__all__} - {"TYPE_CHECKING"},
    "runtime_checkable": {"Protocol", "Generic"},
    "NamedTuple": {"Generic", "TypeVar"},
    "TypedDict": {"Generic", "TypeVar"},
    "Struct": {*hints.__all__} - {"TYPE_CHECKING"},
}
MEANT = {"orlop.config.values"}  # passes `hints.resolved`


@cache
def words_of() -> dict[str, tuple[set[str], set[str]]]:
    """Each module that asks for words here: those, and all names in it."""
    found = {}
    for path in SOURCE.rglob("*.py"):
        text = path.read_text()
        if "orlop.hints import" not in text:
            continue
        asked, used = set[str](), set[str]()
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ImportFrom) and node.module == "orlop.hints":
                asked |= {alias.name for alias in node.names}
            elif isinstance(node, ast.Name):
                used.add(node.id)
            elif isinstance(node, ast.Attribute):
                used.add(f"{ast.unparse(node.value)}.{node.attr}")
        found[".".join(path.relative_to(SOURCE.parent).with_suffix("").parts)] = asked, used
    return found


@pytest.mark.parametrize("asker", MEANINGS)
def test_who_reads_types_at_run_time_has_them_of_typing(asker: str) -> None:
    names = {f"msgspec.{asker}"} if asker == "Struct" else {asker, f"typing.{asker}"}
    wrong = {
        name: asked & MEANINGS[asker]
        for name, (asked, used) in words_of().items()
        if used & names and asked & MEANINGS[asker] and name not in MEANT
    }
    assert not wrong


def test_only_words_that_have_a_stand_in_are_asked_for() -> None:
    """Any other would import typing into every process, or mean something where it is asked for."""
    known = set(hints.__all__)
    wrong = {name: asked - known for name, (asked, _) in words_of().items()}
    assert not {name: words for name, words in wrong.items() if words}
    assert set(hints._stand_ins()) == known - {"TYPE_CHECKING", "resolved", "stand_in"}
