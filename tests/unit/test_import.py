"""What ``import orlop`` brings along."""

from __future__ import annotations

import subprocess
import sys

HEAVY = ("grpc", "click", "rich", "msgspec", "urllib3", "sqlite3", "ctypes", "google")


def loaded_after(statement: str) -> set[str]:
    script = f"import sys\n{statement}\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_importing_orlop_imports_none_of_the_machinery() -> None:
    assert loaded_after("import orlop").isdisjoint(HEAVY)


def test_the_library_needs_neither_rpc_nor_terminal() -> None:
    loaded = loaded_after("import orlop; orlop.open; import orlop.images.store")
    assert loaded.isdisjoint(("grpc", "click", "rich", "google"))


def test_a_commit_brings_along_nothing_that_it_has_no_use_for() -> None:
    """Most of what `orlop commit` takes for a small change is imports."""
    loaded = loaded_after("import orlop, orlop.images.store, orlop.images.changed.commit")
    others = ("urllib3", "ssl", "logging", "subprocess", "concurrent.futures", "tempfile", "shutil")
    ours = ("registry", "images.transfer.pull", "images.browsing.trees", "images.folders", "layers.merge")
    assert loaded.isdisjoint((*others, *(f"orlop.{name}" for name in ours)))


def test_every_public_name_is_there() -> None:
    import orlop

    for name in orlop.__all__:
        assert getattr(orlop, name) is not None
