"""Layers that try to get out: by symlinks, by hard links, by whiteouts (HOSTILE.md's rows 1, 3, 4, 5, 6, 7, 8).

Each is imported (every second one as a docker archive), shown by every driver as a view and as a root that is
written to and committed, and removed.  `{C}` stands for the absolute path of a tree outside the root that the
layers aim at, `{U}` for the same by way of many `..`, `{c}` for what it is without the leading slash.  The tree
outside is compared byte by byte and ctime by ctime after each.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

import orlop
from conftest import StoreDirs
from support import users
from support.breakouts import (
    BASE,
    DRIVERS,
    Canary,
    How,
    Trial,
    base,
    shape,
    trial_store,
    unlike,
    with_folders,
)
from support.images import make_image, push, write_layout
from support.layers import Layer
from support.registries import Registry

pytestmark = [pytest.mark.root, pytest.mark.any_kernel]

Build = Callable[[Layer, Callable[[str], str]], Layer]


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """Layers above `base`, and what must come of them.

    ``adds`` and ``hides`` say how the tree differs from `base`'s; with ``refused`` there is none.
    """

    layers: tuple[Build, ...]
    adds: dict[str, str] = field(default_factory=dict)
    hides: tuple[str, ...] = ()
    refused: str = ""


def tree(adds: dict[str, str], *layers: Build, hides: tuple[str, ...] = ()) -> Case:
    return Case(layers=layers, adds=adds, hides=hides)


def refused(words: str, *layers: Build) -> Case:
    return Case(layers=layers, refused=words)


NO_TARGET = "which no layer has"
ALL = tuple(BASE)
D = tuple(path for path in BASE if path == "d" or path.startswith("d/"))
IN_D = D[1:]

SYMLINKS: dict[str, Case] = {
    "absolute, and a file through it": tree(
        {"k": "-> {C}/folder", "{c}/folder/new": "1"},
        lambda t, f: t.symlink("k", f("{C}/folder")).file("k/new", b"x"),
    ),
    "relative, and a file through it": tree(
        {"k": "-> {U}/folder", "{c}/folder/new": "1"},
        lambda t, f: t.symlink("k", f("{U}/folder")).file("k/new", b"x"),
    ),
    "relative from a deep folder": tree(
        {"q/r/k": "-> {U}/folder", "{c}/folder/new": "1"},
        lambda t, f: t.symlink("q/r/k", f("{U}/folder")).file("q/r/k/new", b"x"),
    ),
    "one through another": tree(
        {"one": "-> {C}", "two": "-> one/folder", "{c}/folder/new": "1"},
        lambda t, f: t.symlink("one", f("{C}")).symlink("two", "one/folder").file("two/new", b"x"),
    ),
    "of a lower layer, and a file through it": tree(
        {"k/new": "1"},
        lambda t, f: t.symlink("k", f("{C}/folder")),
        lambda t, f: t.file("k/new", b"x"),
    ),
    "of a lower layer, relative, and a folder through it": tree(
        {"k/empty": "folder"},
        lambda t, f: t.symlink("k", f("{U}")),
        lambda t, f: t.folder("k/empty", mode=0o777, uid=5),
    ),
    "to the parent, and up it again and again": tree(
        {"q/up": "-> ..", "new": "1"},
        lambda t, f: t.symlink("q/up", "..").file("q/up/q/up/q/up/new", b"x"),
    ),
    "its name ends in a slash": tree(
        {"k": "-> {C}/folder", "{c}/folder/new": "1"},
        lambda t, f: t.symlink("k/", f("{C}/folder")).file("k/new", b"x"),
    ),
    "its target ends in a slash": tree(
        {"k": "-> {C}/folder/", "{c}/folder/new": "1"},
        lambda t, f: t.symlink("k", f("{C}/folder/")).file("k//new", b"x"),
    ),
    "a file of its name with a slash behind is a folder": tree(
        {"k": "folder"},
        lambda t, f: t.symlink("k", f("{C}/file")).file("k/", b"x", mode=0o4777),
    ),
    "a file over it": tree(
        {"k": "3"},
        lambda t, f: t.symlink("k", f("{C}/file")).file("k", b"new", mode=0o4777, uid=5),
    ),
    "a file over it in the next layer": tree(
        {"k": "3"},
        lambda t, f: t.symlink("k", f("{C}/file")),
        lambda t, f: t.file("k", b"new", mode=0o4777, uid=5, xattrs={"user.canary": b"silent"}),
    ),
    "in the place of a folder, and a file through it": tree(
        {"q": "-> {C}/folder", "{c}/folder/new": "1"},
        lambda t, f: t.folder("q").file("q/old").symlink("q", f("{C}/folder")).file("q/new", b"x"),
    ),
    "in the place of a lower folder, and a file through it": tree(
        {"d": "-> {U}/folder", "{c}/folder/new": "1"},
        lambda t, f: t.symlink("d", f("{U}/folder")).file("d/new", b"x"),
        hides=IN_D,
    ),
    "a folder in its place, and a file in it": tree(
        {"k/new": "1"},
        lambda t, f: t.symlink("k", f("{C}/folder")).folder("k", mode=0o700, uid=5).file("k/new", b"x"),
    ),
    "a folder in the place of a relative one": tree(
        {"k/new": "1"},
        lambda t, f: t.symlink("k", f("{U}/folder")).folder("./k/.", mode=0o700).file("k/new", b"x"),
    ),
    "a folder in the place of a hard link to it": tree(
        {"k": "-> {C}/folder", "h/new": "1"},
        lambda t, f: t.symlink("k", f("{C}/folder")).hardlink("h", to="k").folder("h").file("h/new", b"x"),
    ),
    "folder, symlink, folder, symlink": tree(
        {"q": "-> {C}/folder"},
        lambda t, f: (
            t.folder("q").symlink("q", f("{C}")).folder("q").file("q/x").symlink("q", f("{C}/folder"))
        ),
    ),
    "a device, a FIFO and a folder through it": tree(
        {"k": "-> {C}", "{c}/null": "char", "{c}/fifo": "fifo", "{c}/empty": "folder"},
        lambda t, f: (
            t.symlink("k", f("{C}"))
            .device("k/null", "char", 1, 3, mode=0o666)
            .fifo("k/fifo", mode=0o777)
            .folder("k/empty", mode=0o777, uid=5)
        ),
    ),
    "to a process's root": tree(
        {"k": "-> /proc/self/root", "proc/self/root/{c}/file": "1"},
        lambda t, f: t.symlink("k", "/proc/self/root").file(f("k/{c}/file"), b"x"),
    ),
    "to a process's root, in a lower layer": tree(
        {"k/{c}/file": "1"},
        lambda t, f: t.symlink("k", "/proc/self/root"),
        lambda t, f: t.file(f("k/{c}/file"), b"x"),
    ),
    "nothing goes through it": tree(
        {"k": "-> {U}/su", "j": "-> {C}/away/file"},
        lambda t, f: t.symlink("k", f("{U}/su"), mode=0o4777, uid=9).symlink("j", f("{C}/away/file")),
    ),
    "to itself": refused("too many symlinks", lambda t, f: t.symlink("x", "x").file("x/f")),
    "in a circle": refused(
        "too many symlinks", lambda t, f: t.symlink("x", "y/z").symlink("y", "x/z").file("x/f")
    ),
    "the root is one": refused("not a folder", lambda t, f: t.symlink("./", f("{C}"))),
    "the root is one, by another name": refused("not a folder", lambda t, f: t.symlink("/", f("{C}"))),
    "the root is one, by way of its parent": refused(
        "not a folder", lambda t, f: t.symlink("q/..", f("{C}"))
    ),
}

HARD_LINKS: dict[str, Case] = {
    "absolute": refused(NO_TARGET, lambda t, f: t.hardlink("h", to=f("{C}/file"))),
    "relative": refused(NO_TARGET, lambda t, f: t.hardlink("h", to=f("{c}/file"))),
    "up and out": refused(NO_TARGET, lambda t, f: t.hardlink("h", to=f("{U}/file"))),
    "down, then up and out": refused(NO_TARGET, lambda t, f: t.hardlink("d/s/h", to=f("d/s/{U}/file"))),
    "direct, and a file through it": tree(
        {"h": "3"}, lambda t, f: t.hardlink("h", to=f("{C}/file")).file("h", b"new", mode=0o4777)
    ),
    "direct and relative, and a file through it": tree(
        {"h": "3"}, lambda t, f: t.hardlink("h", to=f("{U}/file")).file("h", b"new", mode=0o4777)
    ),
    "direct, and a folder over it": tree(
        {"h/new": "1"}, lambda t, f: t.hardlink("h", to=f("{C}/folder")).folder("h").file("h/new", b"x")
    ),
    "before their target": tree(
        {"h": "1 = h n", "n": "1 = h n"}, lambda t, f: t.hardlink("h", to="n").file("n", b"x")
    ),
    "before a target that is a symlink": tree(
        {"h": "-> {C}/file = h n", "n": "-> {C}/file = h n"},
        lambda t, f: t.hardlink("h", to="n").symlink("n", f("{C}/file")),
    ),
    "before a target that leads out": refused(
        NO_TARGET, lambda t, f: t.hardlink("h", to="k/file").symlink("k", f("{C}"))
    ),
    "through an absolute symlink": refused(
        NO_TARGET, lambda t, f: t.symlink("k", f("{C}")).hardlink("h", to="k/file")
    ),
    "through a relative symlink": refused(
        NO_TARGET, lambda t, f: t.symlink("d/s/k", f("{U}")).hardlink("h", to="d/s/k/file")
    ),
    "through a lower layer's symlink": refused(
        NO_TARGET, lambda t, f: t.symlink("k", f("{C}")), lambda t, f: t.hardlink("h", to="k/file")
    ),
    "to a symlink, and a file over it": tree(
        {"k": "-> {C}/file", "h": "3"},
        lambda t, f: t.symlink("k", f("{C}/file")).hardlink("h", to="k").file("h", b"new", mode=0o4777),
    ),
    "to a symlink, and a file through it": tree(
        {"k": "-> {U}/folder = h k", "h": "-> {U}/folder = h k", "{c}/folder/new": "1"},
        lambda t, f: t.symlink("k", f("{U}/folder")).hardlink("h", to="k").file("h/new", b"x"),
    ),
    "to a lower symlink, with a mode, an owner and xattrs": tree(
        {"k": "-> {C}/file = h k", "h": "-> {C}/file = h k"},
        lambda t, f: t.symlink("k", f("{C}/file")),
        lambda t, f: t.hardlink("h", to="k", mode=0o4777, uid=5, xattrs={"user.canary": b"silent"}),
    ),
    "to a lower file by a name that leads through the host": tree(
        {"d/a": "1 = d/a h", "h": "1 = d/a h"},
        lambda t, f: t.hardlink("h", to=f("{U}/../../../../../../../../d/a")),
    ),
    "in a folder that is a symlink": tree(
        {"k": "-> {C}/folder", "{c}/folder/h": "1 = d/a {c}/folder/h", "d/a": "1 = d/a {c}/folder/h"},
        lambda t, f: t.symlink("k", f("{C}/folder")).hardlink("k/h", to="d/a", mode=0o777),
    ),
    "to the root": refused("hard link to the root", lambda t, f: t.hardlink("h", to="../..")),
    "to a folder": refused("hard link to a folder", lambda t, f: t.folder("q").hardlink("h", to="q")),
    "to itself": refused(NO_TARGET, lambda t, f: t.hardlink("h", to="h")),
}

CHANGES: dict[str, Case] = {
    "chmod, chown and setxattr through a symlink": tree(
        {"k": "folder"},
        lambda t, f: t.symlink("k", f("{C}/folder")).folder("k/.", mode=0o777, uid=5, xattrs={"user.x": b"y"}),
    ),
    "the same through a lower layer's": tree(
        {"k": "folder"},
        lambda t, f: t.symlink("k", f("{C}/folder")),
        lambda t, f: t.folder("k/", mode=0o777, uid=5, mtime_ns=1, xattrs={"trusted.canary": b"silent"}),
    ),
    "xattrs, a mode and an owner of symlinks": tree(
        {"k": "-> {C}/file", "j": "-> {C}/su"},
        lambda t, f: t.symlink("k", f("{C}/file"), mode=0o6777, uid=5, xattrs={"trusted.x": b"y"})
        .symlink("j", f("{C}/su"), mode=0, gid=5, mtime_ns=1, xattrs={"security.capability": b"\0\0\0\2" + bytes(16)}),
    ),
    "a set-user-ID file in a folder that is a symlink": tree(
        {"k": "-> {C}", "{c}/su": "1"},
        lambda t, f: t.symlink("k", f("{C}")).file("k/su", b"x", mode=0o6755, uid=0),
    ),
}  # fmt: skip

WHITEOUTS: dict[str, Case] = {
    "of the root": refused("whiteout of nothing", lambda t, f: t.file(".wh.")),
    "of the current folder": refused("whiteout of nothing", lambda t, f: t.file(".wh..")),
    "of the parent": refused("whiteout of nothing", lambda t, f: t.file(".wh...")),
    "of a folder's parent": refused("whiteout of nothing", lambda t, f: t.file("d/.wh...")),
    "of the root's parent by its name": tree(
        {"{c}": "folder"}, lambda t, f: t.file("../../.wh.d").file(f("{U}/.wh.file")), hides=D
    ),
    "of a file outside": tree(
        {"{c}": "folder", "{c}/folder": "folder"},
        lambda t, f: t.file(f("{C}/.wh.file")).file(f("{U}/folder/.wh.file")),
    ),
    "through a symlink": tree(
        {"k": "-> {C}", "{c}": "folder"}, lambda t, f: t.symlink("k", f("{C}")).file("k/.wh.file")
    ),
    "through a symlink to a lower folder": tree(
        {"k": "-> d"}, lambda t, f: t.symlink("k", "d").file("k/.wh.a"), hides=("d/a",)
    ),
    "through a lower layer's symlink": tree(
        {"k": "folder"}, lambda t, f: t.symlink("k", f("{C}")), lambda t, f: t.file("k/.wh.file")
    ),
    "of a symlink": tree(
        {},
        lambda t, f: t.symlink("k", f("{C}/folder")),
        lambda t, f: t.whiteout("k").whiteout("l"),
        hides=("l",),
    ),
    "of a symlink, and a folder in its place": tree(
        {"k/new": "1"},
        lambda t, f: t.symlink("k", f("{C}/folder")),
        lambda t, f: t.whiteout("k").file("k/new", b"x"),
    ),
    "that is a hard link": tree({}, lambda t, f: t.hardlink(".wh.l", to=f("{C}/file")), hides=("l",)),
    "that is a symlink": tree({}, lambda t, f: t.symlink(".wh.l", f("{C}/file")), hides=("l",)),
    "that is a folder": tree({}, lambda t, f: t.folder(".wh.d"), hides=D),
    "that is a device": tree({}, lambda t, f: t.device("d/.wh.s", "char", 0, 0), hides=("d/s", "d/s/x")),
    "that something lies in": refused("below a whiteout", lambda t, f: t.folder(".wh.d").file(".wh.d/x")),
    "opaque, through a symlink": tree(
        {"k": "-> {C}", "{c}": "folder"}, lambda t, f: t.symlink("k", f("{C}")).opaque("k")
    ),
    "opaque, through a lower layer's symlink": tree(
        {"k": "folder"}, lambda t, f: t.symlink("k", f("{C}")), lambda t, f: t.opaque("k")
    ),
    "opaque, the root by way of its parent": tree({}, lambda t, f: t.file("q/../../.wh..wh..opq"), hides=ALL),
    "opaque, as a hard link out": tree(
        {}, lambda t, f: t.hardlink("d/.wh..wh..opq", to=f("{C}/file")), hides=IN_D
    ),
    "of a whiteout": tree({}, lambda t, f: t.file(".wh..wh.d").file("d/.wh..wh.a")),
}
CASES: dict[str, Case] = {
    **{f"symlink: {name}": case for name, case in SYMLINKS.items()},
    **{f"hard link: {name}": case for name, case in HARD_LINKS.items()},
    **{f"change: {name}": case for name, case in CHANGES.items()},
    **{f"whiteout: {name}": case for name, case in WHITEOUTS.items()},
}


@pytest.fixture
def canary(workdir: Path) -> Canary:
    return Canary(workdir / "canary")


@pytest.fixture
def trial(store_dirs: StoreDirs, registry: Registry, canary: Canary) -> Iterator[Trial]:
    with trial_store(store_dirs, canary, registry) as made:
        yield made


def tars_of(case: Case, fill: Callable[[str], str]) -> list[bytes]:
    return [base().tar(), *(build(Layer(), fill).tar() for build in case.layers)]


def expected_of(case: Case, fill: Callable[[str], str]) -> dict[str, str]:
    kept = {path: what for path, what in BASE.items() if path not in case.hides}
    return with_folders({**kept, **{fill(path): fill(what) for path, what in case.adds.items()}})


@pytest.mark.hostile(1, 3, 4, 5, 6, 7, 8)
@pytest.mark.parametrize("number", range(len(CASES)), ids=list(CASES))
def test_nothing_outside_the_root_is_touched(trial: Trial, canary: Canary, number: int) -> None:
    case = list(CASES.values())[number]
    trial.turn = number
    how: How = "docker" if number % 2 else "oci"
    if case.refused:
        trial.refuses(tars_of(case, canary.fill), case.refused, how=how)
    else:
        trial.shows(tars_of(case, canary.fill), expected_of(case, canary.fill), how=how)


@pytest.mark.hostile(1, 3, 4, 5, 6, 7, 8)
def test_nor_is_it_where_the_image_comes_from_a_registry(
    trial: Trial, canary: Canary, registry: Registry
) -> None:
    for number, (name, case) in enumerate(list(CASES.items())[::6]):
        image = make_image(tars_of(case, canary.fill), compression="zstd" if number % 2 else "gzip")
        push(registry, "breakouts", f"v{number}", image)
        driver = DRIVERS[number % 3]
        try:
            pulled = trial.store.pull(f"{registry.host}/breakouts:v{number}").name
            shown = shape(trial.show(pulled, driver, commit=True))
        except orlop.InvalidArgument as exc:
            if not case.refused or case.refused not in str(exc):
                raise
        else:
            assert not case.refused, name
            assert unlike(expected_of(case, canary.fill), shown) == [], name
    trial.leaves_nothing()


IN_A_NAMESPACE = """
import json, os, sys
from pathlib import Path
import orlop
from support.breakouts import shape
from support.trees import snapshot
root, layouts, place, *drivers = sys.argv[1:]
told = {}
with orlop.open(root + "/store", root + "/run") as store:
    for tag in sorted(os.listdir(layouts)):
        for driver in drivers:
            try:
                name = store.load(f"{layouts}/{tag}").pop().name
                prepared = store.prepare(name, place, driver=driver, mount=driver != "native")
            except orlop.InvalidArgument as exc:
                told[f"{tag} {driver}"] = str(exc)
                continue
            told[f"{tag} {driver}"] = shape(snapshot(Path(prepared.folder or place)))
            prepared.commit("localhost/committed:latest")
            prepared.cleanup()
    clean = store.check().clean
print(json.dumps([told, clean]))
"""


@pytest.mark.hostile(1, 3, 4, 5, 6, 7, 8)
@pytest.mark.parametrize(
    ("mode", "drivers", "first"),
    [("subids", ("overlay", "native"), 0), ("single", ("overlay",), 1), ("plain", ("native",), 2)],
)
def test_nor_is_it_without_root(
    workdir: Path, mode: users.Mode, drivers: tuple[str, ...], first: int
) -> None:
    user = users.make(workdir / mode, mode)
    canary = Canary(user.home / "canary")
    for path in (canary.top, *canary.top.rglob("*")):
        os.chown(path, users.UID, users.GID, follow_symlinks=False)  # so that the kernel does not protect it
    canary.remember()
    chosen = {f"c{number}": case for number, case in enumerate(CASES.values()) if number % 4 == first}
    for tag, case in chosen.items():
        image = make_image(tars_of(case, canary.fill), compression="none")
        write_layout(user.home / "layouts" / tag, {"v1": image})
    for path in ((user.home / "layouts"), *(user.home / "layouts").rglob("*")):
        path.chmod(0o755)
    inside = ("-m", "orlop", "unshare", sys.executable) if mode != "plain" else ()
    script = (
        sys.executable,
        *inside,
        "-c",
        IN_A_NAMESPACE,
        user.data,
        user.home / "layouts",
        user.home / "shown",
        *drivers,
    )
    path = os.pathsep.join([os.fspath(Path(__file__).parents[1]), os.path.dirname(orlop.__path__[0])])
    done = user.run(*script, env={"PYTHONPATH": path}, timeout=280, check=True)
    told, clean = json.loads(done.stdout)
    assert clean
    assert canary.changes() == []
    assert len(told) == len(chosen) * len(drivers)
    for key, what in told.items():
        case = chosen[key.partition(" ")[0]]
        if case.refused:
            assert case.refused in what, key
        else:
            without_devices = {
                path: kind.replace("char", "0") for path, kind in expected_of(case, canary.fill).items()
            }
            assert unlike(without_devices, what) == [], key
