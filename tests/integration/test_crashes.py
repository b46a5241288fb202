"""A kill -9 at every named point, and at any other moment: nothing is lost, nothing is left.

What a trial is, and what must be so after it, is in `support.crashes`.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from orlop.testing.crashes import points
from orlop.testing.registry import MemoryRegistry
from support import images
from support.crash_scenarios import SCENARIOS, index_of, layer
from support.crashes import Trials, each, share

pytestmark = pytest.mark.root

RANDOM_SHARE = 12


@pytest.fixture(scope="module")
def trials(lab: Path) -> Iterator[Trials]:
    folder = lab / f"crashes-{os.getpid()}"
    folder.mkdir()
    image = images.make_image([layer("base"), layer("app")])
    layout = images.write_layout(folder / "layout", {"v1": image})
    with MemoryRegistry() as registry:
        for blob in image.blobs.values():
            registry.add_blob("app", blob)
        registry.add_manifest("app", "v1", image.document, image.media_type)
        index = index_of(image)
        for part in index.parts:
            for blob in part.blobs.values():
                registry.add_blob("app", blob)
            registry.add_manifest("app", part.digest, part.document, part.media_type)
        registry.add_manifest("app", "all", index.document, index.media_type)
        with Trials(folder / "trials", registry.host, layout) as running:
            yield running
            running.clear()


def test_every_point_is_passed_by_some_scenario(trials: Trials) -> None:
    passed = {point for name in SCENARIOS for point in trials.recorded(name)}
    assert set(points()) - passed == set()


@pytest.mark.hostile(39)
@pytest.mark.parametrize("name", SCENARIOS)
def test_a_kill_at_each_point_loses_nothing_and_leaves_nothing(trials: Trials, name: str) -> None:
    recorded = {name: trials.recorded(name) for name in SCENARIOS}
    for at in share(recorded, random.Random(5), least=2)[name]:
        trials.kill(name, at)


@pytest.mark.hostile(39)
def test_a_kill_at_any_moment_loses_nothing_and_leaves_nothing(trials: Trials) -> None:
    dice = random.Random(11)
    for name in dice.sample(sorted(SCENARIOS), RANDOM_SHARE):
        trials.kill_after(name, dice.uniform(0.002, 1.1 * trials.duration(name)))


@pytest.mark.hostile(39)
@pytest.mark.soak
def test_kills_at_every_point_and_at_any_moment_for_long(trials: Trials, soak_seconds: float) -> None:
    seed = int(os.environ.get("SEED") or time.time())
    dice = random.Random(seed)
    moments = [(name, at) for name in SCENARIOS for at in each(trials.recorded(name))]
    dice.shuffle(moments)
    end = time.monotonic() + soak_seconds
    named = killed = over = 0
    try:
        while time.monotonic() < end:
            if moments and dice.random() < 0.5:
                died = trials.kill(*moments.pop())
                named += died
            else:
                name = dice.choice(sorted(SCENARIOS))
                died = trials.kill_after(name, dice.uniform(0.002, 1.1 * trials.duration(name)))
                killed += died
            over += not died
    finally:
        print(f"SEED={seed}: killed at {named} points, {killed} times at random, {over} times too late")  # noqa: T201
