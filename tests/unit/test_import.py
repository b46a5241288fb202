"""What ``import orlop`` brings along."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = ("grpc", "click", "rich", "msgspec", "urllib3", "sqlite3", "ctypes", "google")


def loaded_after(statement: str) -> set[str]:
    script = f"import sys\n{statement}\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def number_of_ours(names: set[str]) -> int:
    return sum(name.partition(".")[0] == "orlop" for name in names)


def test_importing_orlop_imports_none_of_the_machinery() -> None:
    assert loaded_after("import orlop").isdisjoint(HEAVY)


def test_the_library_needs_neither_rpc_nor_terminal() -> None:
    loaded = loaded_after("import orlop; orlop.open; import orlop.images.store")
    assert loaded.isdisjoint(("grpc", "click", "rich", "google"))


def test_a_commit_brings_along_nothing_that_it_has_no_use_for() -> None:
    """Most of what `orlop commit` takes for a small change is imports."""
    loaded = loaded_after("import orlop, orlop.images.store, orlop.images.changed.commit")
    others = ("urllib3", "ssl", "logging", "subprocess", "concurrent.futures", "tempfile", "shutil")
    ours = (
        "registry",
        "images.transfer.pull",
        "images.browsing.trees",
        "images.folders",
        "images.prepared.roots",
        "layers.merge",
    )
    assert loaded.isdisjoint((*others, *(f"orlop.{name}" for name in ours)))
    assert number_of_ours(loaded) <= 140


def test_opening_a_store_brings_along_nothing_to_mount_read_or_delete_with() -> None:
    """`orlop images` takes what this takes."""
    loaded = loaded_after("import orlop.facade, orlop.images.store")
    others = ("hashlib", "ctypes", "msgspec", "urllib3", "ssl", "logging", "subprocess", "tempfile", "shutil")
    ours = (
        "snapshots",
        "layers",
        "erofs",
        "registry",
        "linux.mount",
        "linux.userns",
        "images.collection.sweep",
    )
    assert loaded.isdisjoint((*others, *(f"orlop.{name}" for name in ours)))
    assert number_of_ours(loaded) <= 85


def test_a_push_brings_along_no_form_that_it_does_not_make() -> None:
    loaded = loaded_after("import orlop.facade, orlop.images.store, orlop.images.transfer.push")
    ours = ("estargz", "zstdchunked", "contents", "pieces")
    assert loaded.isdisjoint(f"orlop.layers.packing.{name}" for name in ours)
    assert number_of_ours(loaded) <= 155


def test_a_command_does_not_import_what_click_could_do_with() -> None:
    """In a process of its own: there the command line puts it off."""
    loaded = loaded_after(
        "sys.argv = ['orlop', '--debug', '--version']; from orlop.cli import main; main()\n"
        "from orlop.cli.late import Late\n"
        "[sys.modules.pop(name) for name, it in list(sys.modules.items()) if type(it) is Late]"
    )
    others = (
        "inspect",
        "ast",
        "dis",
        "tokenize",
        "gettext",
        "locale",
        "platform",
        "difflib",
        "shutil",
        "textwrap",
    )
    assert loaded.isdisjoint((*others, "orlop.images", "orlop.facade"))


def loaded_by(*argv: str) -> set[str]:
    """What a command of its own has really imported."""
    script = (
        f"sys.argv = ['orlop', *{argv!r}]; from orlop.cli import main; main()\n"
        "for name, it in list(sys.modules.items()):\n"
        "    if type(it).__name__ == 'Late': del sys.modules[name]\n"
        "sys.stdout.write('\\0')"
    )
    script = f"import sys\n{script}\nprint(*sys.modules)"
    plain = {name: value for name, value in os.environ.items() if not name.startswith("ORLOP_")}
    done = subprocess.run(
        [sys.executable, "-c", script], env=plain, capture_output=True, text=True, check=False
    )
    return set(done.stdout.partition("\0")[2].split())


@pytest.mark.parametrize("word", ["--help", "-h", "--version"])
def test_help_brings_along_a_page_of_text_alone(word: str) -> None:
    loaded = loaded_by(word) - loaded_after("pass")
    assert loaded.isdisjoint(("click", "typing", "re", "enum", "threading", "pathlib", "orlop.errors"))
    assert number_of_ours(loaded) <= 5


def test_a_list_of_images_brings_along_the_database_and_little_else(tmp_path: Path) -> None:
    loaded = loaded_by("--root", f"{tmp_path}/root", "--run", f"{tmp_path}/run", "images")
    others = (
        "json",
        "inspect",
        "urllib.parse",
        "hashlib",
        "logging",
        "ctypes",
        "msgspec",
        "subprocess",
        "ssl",
    )
    ours = ("layers", "erofs", "snapshots", "images.names", "images.exports", "registry.access.credentials")
    assert loaded.isdisjoint((*others, *(f"orlop.{name}" for name in ours)))
    assert number_of_ours(loaded) <= 100


def test_a_second_list_of_images_looks_at_the_store_without_opening_it(tmp_path: Path) -> None:
    """The promise is 60 ms of CPU, of which Python takes 20: each of these is two to twenty more."""
    where = ("--root", f"{tmp_path}/root", "--run", f"{tmp_path}/run")
    loaded_by(*where, "images")
    loaded = loaded_by(*where, "images") - loaded_after("pass")
    others = ("click", "typing", "re", "enum", "threading", "pathlib", "warnings", "dataclasses", "msgspec")
    ours = ("facade", "observe", "images.core", "images.api", "metadata.db", "linux", "content", "registry")
    assert loaded.isdisjoint((*others, *(f"orlop.{name}" for name in ours)))
    assert number_of_ours(loaded) <= 45


@pytest.mark.parametrize(
    "words", [["tag", "x", "y"], ["ps"], ["rmi", "x"], ["mounts", "/x"], ["inspect", "x"]]
)
def test_plain_words_need_no_click(words: list[str], tmp_path: Path) -> None:
    loaded = loaded_by("--root", f"{tmp_path}/root", "--run", f"{tmp_path}/run", *words)
    assert "click" not in loaded


def test_a_removal_brings_along_nothing_that_looks_for_strays() -> None:
    loaded = loaded_after("import orlop.facade, orlop.images.store, orlop.images.collection.collect")
    ours = ("layers", "erofs", "snapshots", "images.chains", "images.prepared", "images.collection.strays")
    assert loaded.isdisjoint(f"orlop.{name}" for name in ours)


def test_every_public_name_is_there() -> None:
    import orlop

    for name in orlop.__all__:
        assert getattr(orlop, name) is not None
