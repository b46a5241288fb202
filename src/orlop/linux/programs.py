"""Where the programs are that help us: an OCI runtime, bubblewrap, newuidmap, credential helpers.

Invariant: none is found by a relative folder of PATH.  Whoever stands in an image's root with ``.`` in PATH
would run the image's own program on the host (GHSA-x86f-5xw2-fm2r).
"""

from __future__ import annotations

import os
import shutil

__all__ = ["find_helper"]


def find_helper(name: str, path: str | None = None) -> str | None:
    """The absolute path of a program, or None; ``path`` is as PATH, which it is unless given.

    A name with a slash in it is the path of a program, and may be relative: somebody said so.
    """
    if "/" in name:
        found = shutil.which(name)
        return os.path.abspath(found) if found is not None else None
    folders = os.get_exec_path() if path is None else path.split(os.pathsep)
    return shutil.which(name, path=os.pathsep.join(filter(os.path.isabs, folders)))
