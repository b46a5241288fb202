"""Every public verb says what it does, with an example that runs: on a store with one image and one root."""

from __future__ import annotations

import doctest
import inspect
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

import orlop
from support import disks, images
from support.layers import Layer
from support.registries import Registry

pytestmark = pytest.mark.root

# What examples say -> what there is
TREE = Path(__file__).resolve().parents[2]
HOST, FOLDER = "registry.example.com", "/srv/"
HANDLES = (orlop.Store, orlop.Prepared)


def verbs() -> list[str]:
    found = []
    for handle in HANDLES:
        for name, member in inspect.getmembers(handle):
            if name[0] != "_" and inspect.isfunction(member):
                found.append(f"{handle.__name__}.{name}")
    return found


@dataclass(frozen=True)
class Place:
    """Where the examples run."""

    registry: Registry
    store: orlop.Store
    folder: Path

    def real(self, text: str) -> str:
        return text.replace(HOST, self.registry.host).replace(FOLDER, f"{self.folder}/")


@pytest.fixture(scope="module")
def place(lab: Path, registry: Registry) -> Iterator[Place]:
    layer = Layer().folder("bin").folder("dev").folder("etc").folder("proc").folder("srv")
    layer.file("bin/busybox", Path("/bin/busybox").read_bytes(), mode=0o755).file("etc/motd", b"hello\n")
    for name in ("sh", "cat", "echo"):
        layer.symlink(f"bin/{name}", "/bin/busybox")
    image = images.make_image([layer.tar()], config={"config": {"Env": ["PATH=/bin"]}})
    images.push(registry, "box", "1", image)
    folder = lab / "docstrings"
    (folder / "work").mkdir(parents=True)
    images.write_layout(folder / "layout", {"1": image})
    (folder / "rootfs.tar").write_bytes(layer.tar())
    settings = orlop.Settings(insecure_registries=(registry.host,))
    with orlop.open(folder / "root", folder / "run", settings=settings) as store:
        store.load(folder / "layout", name="alpine")
        yield Place(registry, store, folder)
    disks.end(folder)


@pytest.mark.parametrize("verb", verbs())
def test_the_example_of_a_verb_gives_what_it_says(place: Place, verb: str) -> None:
    handle, _, name = verb.partition(".")
    text = inspect.getdoc(getattr(getattr(orlop, handle), name)) or ""
    assert ">>>" in text, f"{verb} has no example"
    work = Place(place.registry, place.store, place.folder / "work" / verb)
    work.folder.mkdir()
    for made in ("layout", "rootfs.tar"):
        (work.folder / made).symlink_to(place.folder / made)
    settings = orlop.Settings(insecure_registries=(place.registry.host,))
    with ExitStack() as stack:
        store = stack.enter_context(
            orlop.open(place.folder / "root", place.folder / "run", settings=settings)
        )
        stack.callback(_clear, place, work)
        root = store.prepare("alpine", work.folder / "root", mount=True)
        test = doctest.DocTestParser().get_doctest(
            work.real(text), {"orlop": orlop, "store": store, "root": root}, verb, None, None
        )
        said: list[str] = []
        runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
        runner.run(test, out=said.append)
    assert not runner.failures, "".join(said)


def programs() -> list[str]:
    """The blocks of Python of these pages that are whole programs: they begin with imports."""
    found: list[str] = []
    for page in ("library", "asyncio"):
        text = (TREE / f"docs/{page}.md").read_text()
        blocks = re.findall(r"^```python\n((?:import|from) .*?)^```$", text, re.DOTALL | re.MULTILINE)
        found += [block for block in blocks if "/srv/store" in block and "connect(" not in block]
    return found


def test_the_programs_of_the_pages_run(place: Place) -> None:
    work = Place(place.registry, place.store, place.folder / "work" / "page")
    work.folder.mkdir()
    root, run = f"{place.folder}/root", f"{place.folder}/run"
    script = ""
    for number, text in enumerate(programs()):
        program = work.real(text.replace("/srv/store", root).replace("/srv/run", run))
        script += f"exec(compile({program!r}, 'program {number}', 'exec'), {{'__name__': '__main__'}})\n"
    assert script.count("exec(") > 5
    try:
        done = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, timeout=100, check=False
        )
        assert done.returncode == 0, done.stderr
    finally:
        _clear(place, work)


def _clear(place: Place, work: Place) -> None:
    """All as it was."""
    for root in place.store.prepared():
        place.store.get(root.path).cleanup()
    for image in place.store.images():
        if image.name != "docker.io/library/alpine:latest":
            place.store.remove(image.name)
    shutil.rmtree(work.folder)


def test_every_public_name_says_what_it_is() -> None:
    for name in orlop.__all__:
        value = getattr(orlop, name)
        if name == "__version__":
            continue
        assert (value.__doc__ or "").strip(), name
        assert not value.__doc__.startswith(f"{name}("), f"{name} has only the docstring of a dataclass"
        for member, method in vars(value).items() if isinstance(value, type) else ():
            if member[0] != "_" and (inspect.isfunction(method) or isinstance(method, property)):
                assert inspect.getdoc(method), f"{name}.{member}"
