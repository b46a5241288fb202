"""Modules that a command does not import until it uses them, and how a command's process ends."""

from __future__ import annotations

import ast
import difflib
import gettext
import inspect
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import orlop
from orlop.cli import late

SOURCE = Path(orlop.__file__).parent


def python(script: str, *, code: int = 0) -> str:
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == code, done.stderr
    return done.stdout


# ------------------------------------------------------------------ the stand-ins


@pytest.mark.parametrize("name", sorted(late._KNOWN))
def test_what_stands_in_for_a_module_becomes_it(name: str) -> None:
    script = f"""
import sys
from orlop.cli.late import Late, put_off
sys.modules.pop({name!r}, None)
put_off()
import {name}
assert type({name}) is Late
doc = {name}.__all__ if hasattr({name}, "__all__") else {name}.__file__
assert type(sys.modules[{name!r}]) is not Late
import {name} as again
assert again is sys.modules[{name!r}] and type(again) is not Late
print(again.__name__)
"""
    assert python(script).strip() == name


@pytest.mark.parametrize("name", sorted(late._KNOWN))
def test_what_is_known_of_a_module_is_in_it(name: str) -> None:
    real = __import__(name, fromlist=["x"])
    assert all(hasattr(real, word) for word in late._KNOWN[name])


def test_what_was_imported_is_not_put_off() -> None:
    late.put_off()
    assert type(sys.modules["inspect"]) is not late.Late


@pytest.mark.parametrize(
    "words",
    [
        "import json.decoder; json.decoder.JSONDecodeError",
        "from logging import handlers; handlers.SysLogHandler",
        "import logging.config; logging.config.dictConfig",
    ],
)
def test_modules_below_one_that_is_put_off_are_found(words: str) -> None:
    python(f"from orlop.cli.late import put_off; put_off()\n{words}")


def test_what_is_not_installed_cannot_be_imported_from() -> None:
    script = """
import sys
from orlop.cli.late import put_off
sys.path = [path for path in sys.path if not path.endswith("site-packages")]
put_off()
import typing_extensions
assert not hasattr(typing_extensions, "__file__")
try:
    from typing_extensions import override
except ImportError:
    print("as without it")
"""
    assert python(script) == "as without it\n"


def test_threads_that_use_a_module_at_once_get_one() -> None:
    script = """
import sys, threading
from orlop.cli.late import put_off
put_off()
import tomllib
seen, gate = [], threading.Barrier(8)
def use():
    gate.wait()
    seen.append(tomllib.loads)
threads = [threading.Thread(target=use) for _ in range(8)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
print(len(seen), len(set(seen)))
"""
    assert python(script).split() == ["8", "1"]


def test_help_texts_are_cleaned_as_inspect_does() -> None:
    texts = [
        node.value
        for path in sorted((SOURCE / "cli").glob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and "\r" not in node.value
    ]
    texts += [
        "",
        "\n",
        " a",
        "a\n\n  b\n c\n\n",
        "\ta\n\t\tb\n",
        "a\n   \n  b",
        "a\n \n",
        "\n\n  a\n    b  \n",
    ]
    assert [late._cleandoc(text) for text in texts] == [inspect.cleandoc(text) for text in texts]


def test_words_are_as_without_a_catalogue() -> None:
    assert late._word("no such option") == gettext.gettext("no such option")
    for number in (0, 1, 2):
        assert late._word_of("one", "many", number) == gettext.ngettext("one", "many", number)


@pytest.mark.parametrize("word", ["--platfrom", "--quite", "pul", "ps"])
def test_suggestions_are_difflibs(word: str) -> None:
    known = ["--platform", "--quiet", "pull", "push", "ps"]
    assert late._close_matches(word, known) == difflib.get_close_matches(word, known)


@pytest.mark.parametrize("columns", ["", "0", "132", "wide", "-1"])
@pytest.mark.parametrize("lines", ["", "50"])
def test_the_terminals_size_is_shutils(columns: str, lines: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    monkeypatch.setenv("LINES", lines)
    assert late._terminal_size() == shutil.get_terminal_size()
    assert late._terminal_size((7, 8)) == shutil.get_terminal_size((7, 8))


# ------------------------------------------------------------------ the end of a process


def test_a_process_of_our_own_ends_with_the_code_that_the_command_has() -> None:
    script = "import sys; sys.argv = ['orlop', 'nonsense']; from orlop.cli import main; sys.exit(main())"
    python(script, code=2)


def test_exit_functions_and_threads_of_others_are_not_cut_off() -> None:
    script = """
import sys
sys.argv = ["orlop", "--version"]
from orlop.cli import main
code = main()
import atexit, threading
thread = threading.Thread(target=lambda: (gate.wait(), print("thread")))
gate = threading.Event()
thread.start()
atexit.register(print, "exit function")
gate.set()
sys.exit(code)
"""
    assert python(script).splitlines()[1:] == ["thread", "exit function"]


def test_exit_functions_from_before_the_command_are_not_cut_off() -> None:
    script = """
import atexit, sys
atexit.register(print, "exit function")
sys.argv = ["orlop", "--version"]
from orlop.cli import main
sys.exit(main())
"""
    assert python(script).splitlines()[1:] == ["exit function"]


def test_a_result_that_cannot_be_written_at_the_end_is_a_failure() -> None:
    script = """
import os, sys
sys.argv = ["orlop", "--version"]
from orlop.cli import main
code = main()
os.dup2(os.open("/dev/full", os.O_WRONLY), 1)
sys.stdout.reconfigure(line_buffering=False, write_through=False)
sys.stdout.write("a result that is still in the buffer")
sys.exit(code)
"""
    python(script, code=120)


def test_an_exception_after_the_command_is_a_failure() -> None:
    script = """
import sys
sys.argv = ["orlop", "--version"]
from orlop.cli import main
main()
raise KeyError("not by the door")
"""
    python(script, code=1)


def test_who_calls_with_arguments_keeps_the_process_as_it_is() -> None:
    script = """
import gc, sys
before = gc.get_threshold()
from orlop.cli import main
assert main(["--version"]) == 0
from orlop.cli.late import Late
assert gc.get_threshold() == before
assert not any(type(module) is Late for module in sys.modules.values())
assert "orlop.cli.own" not in sys.modules
sys.exit(7)
"""
    python(script, code=7)
