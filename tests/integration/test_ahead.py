"""A chain that was begun while its layers were on their way to the disk is the chain that they make."""

from __future__ import annotations

import threading
from functools import partial

import pytest

import orlop
from conftest import StoreDirs
from orlop.images.chains import Chains
from orlop.images.store import LocalStore
from orlop.metadata import roots
from support import images
from support.layers import Layer
from support.registries import Registry

pytestmark = pytest.mark.root

SMALL = Layer().file("bin/a", b"new").whiteout("share/1").tar()
LARGE = Layer().file("bin/b", b"b").symlink("lib", "bin").hardlink("bin/c", "bin/b")
for _number in range(60):
    LARGE.file(f"share/{_number}", b"%d" % _number)


@pytest.fixture
def rendered(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """The images that are made, with the threads that make them."""
    seen: list[tuple[str, str]] = []
    render = Chains.render

    def watched(self: Chains, name: str, *args: object) -> object:
        seen.append((name, threading.current_thread().name))
        return render(self, name, *args)  # type: ignore[arg-type] # as they came

    monkeypatch.setattr(Chains, "render", watched)
    return seen


@pytest.mark.parametrize(
    ("layers", "whole", "names"),
    [
        pytest.param([LARGE.tar()], False, 1, id="one layer"),
        pytest.param([LARGE.tar(), SMALL], False, 2, id="a small one on top"),
        pytest.param([LARGE.tar(), SMALL], True, 1, id="one image of all"),
        pytest.param([SMALL, LARGE.tar()], False, 1, id="a small one below"),
    ],
)
def test_what_is_made_ahead_is_what_the_layers_make(
    store: orlop.Store,
    store_dirs: StoreDirs,
    registry: Registry,
    rendered: list[tuple[str, str]],
    layers: list[bytes],
    whole: bool,
    names: int,
) -> None:
    verbs = store.verbs
    assert isinstance(verbs, LocalStore)
    if verbs._core.choose("auto").name != "erofs":
        pytest.skip("without EROFS no root stands on an image alone")
    repository = f"ahead/{len(layers)}{int(whole)}{names}"
    images.push(registry, repository, "1", images.make_image(layers))
    store.prepare(f"{registry.host}/{repository}:1", store_dirs.work / "a", self_contained=whole)
    assert len(rendered) == names  # none of them twice
    assert [thread == "chain-ahead" for _, thread in rendered] == [True] + [False] * (names - 1)
    for name, _ in list(rendered):
        row = verbs._core.db.read(partial(roots.get_chain, chain=name))
        assert row is not None
        found, image = verbs._chains.again(row, call=orlop.Call())
        assert (found, bytes(image)) == (row, verbs._chains.file(name).read_bytes())


def test_a_template_is_started_for_what_has_to_be_fetched_alone(
    store: orlop.Store, store_dirs: StoreDirs, registry: Registry
) -> None:
    images.push(registry, "ahead/once", "1", images.make_image([SMALL]))
    name = f"{registry.host}/ahead/once:1"
    store.pull(name)
    settings = orlop.Settings(insecure_registries=(registry.host,))
    with orlop.open(store_dirs.root, store_dirs.run, settings=settings) as other:
        assert isinstance(other.verbs, LocalStore)
        with other.prepare(name, store_dirs.work / "a"):
            assert other.verbs._core._template is None
