"""The build hook: with ORLOP_COMPILE=1 a wheel holds the hot loops compiled, beside their sources.

Without it nothing is asked for and nothing is compiled, so that `pip install .` works anywhere.  An editable
install is never compiled: a library would hide the source that is edited.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class CompiledLoops(BuildHookInterface):  # type: ignore[type-arg]
    """Compiles into .cache/compiled, and puts the libraries into the wheel."""

    def dependencies(self) -> list[str]:
        """What an isolated build needs beside hatchling: as requirements/dev.txt pins it."""
        return ["mypy==2.4.1", "setuptools==84.2.1"] if _wanted() else []

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile, unless it is not wanted."""
        if version != "standard" or not _wanted():
            return
        root = Path(self.root)
        spec = importlib.util.spec_from_file_location("compiled", root / "packaging/compiled/build.py")
        assert spec is not None
        assert spec.loader is not None
        compiled = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(compiled)
        folder = root / ".cache" / "compiled"
        for library in compiled.build(folder, root / "src" / "orlop"):
            build_data["force_include"][os.fspath(folder / library)] = os.fspath(library)
        build_data["pure_python"] = False
        build_data["infer_tag"] = True


def _wanted() -> bool:
    return os.environ.get("ORLOP_COMPILE", "") not in {"", "0"}


def get_build_hook() -> type[CompiledLoops]:
    """For hatchling."""
    return CompiledLoops
