"""Pulls from a registry that misbehaves in many ways, one after the other, as a seed says: HOSTILE.md 38.

Whatever goes wrong, a pull ends with the image or with an error of orlop's own, nothing half is left to be seen, and
as soon as the registry behaves the image comes, with the right bytes.
"""

from __future__ import annotations

import itertools
import os
import random
import time
from collections.abc import Callable

import pytest

import orlop
from conftest import StoreDirs
from orlop.testing.registry import Fault, MemoryRegistry
from support import images
from support.layers import Layer

pytestmark = pytest.mark.root

FAULTS: tuple[Callable[[random.Random], dict[str, object]], ...] = (
    lambda chaos: {"drop": True},
    lambda chaos: {"cut_after": chaos.randrange},
    lambda chaos: {"cut_after": 0},
    lambda chaos: {"hold_after": chaos.randrange(1, 100_000)},
    lambda chaos: {"hold_head": chaos.randrange(100)},
    lambda chaos: {"trickle": 0.05},
    lambda chaos: {"trickle_head": 0.05},
    lambda chaos: {"no_length": True},
    lambda chaos: {"no_length": True, "cut_after": chaos.randrange},
    lambda chaos: {"length": chaos.randrange(400_000)},
    lambda chaos: {"ignore_range": True},
    lambda chaos: {"content_range": f"bytes {chaos.randrange(9)}-99/100"},
    lambda chaos: {"shift": chaos.randrange(1, 99)},
    lambda chaos: {"corrupt": True},
    lambda chaos: {"status": 429, "headers": {"Retry-After": "0"}},
    lambda chaos: {"status": 429, "headers": {"RateLimit-Remaining": "0;w=21600"}},
    lambda chaos: {"status": chaos.choice((400, 401, 403, 404, 408, 416, 418, 500, 502, 503, 504))},
    lambda chaos: {"status": 307, "headers": {"Location": "/v2/app/blobs/round"}},
    lambda chaos: {"status": 307, "headers": {"Location": "http://169.254.169.254/"}},
    lambda chaos: {"status": 200, "body": b"<html>", "headers": {"Content-Type": "text/html"}},
    lambda chaos: {"headers": {"ETag": f'"{chaos.random()}"', "Docker-Content-Digest": "sha256:0"}},
)


def round_of(dirs: StoreDirs, seed: int, count: int) -> tuple[int, int]:
    """One image through ``count`` faults; how many pulls failed, and how many faults were committed."""
    chaos = random.Random(seed)
    made = images.make_image([Layer().file("file", chaos.randbytes(300_000)).tar() for _ in range(2)])
    settings = orlop.Settings(timeout=0.5, retries=1, retry_wait=1.0)
    failed = 0
    with MemoryRegistry() as registry, orlop.open(dirs.root, dirs.run, settings=settings) as store:
        for data in made.blobs.values():
            registry.add_blob("app", data)
        registry.add_manifest("app", "v1", made.document, made.media_type)
        name = f"{registry.host}/app:v1"
        faults = [
            Fault(
                path=chaos.choice(("/blobs/", "/blobs/", "/manifests/")),
                times=1,
                **chaos.choice(FAULTS)(chaos),
            )  # type: ignore[arg-type] # of a table
            for _ in range(count)
        ]
        for fault in faults:
            registry.misbehave(fault)
            try:
                pulled = store.pull(name)
            except orlop.Error:
                failed += 1
                assert store.images() == []
            else:
                assert (pulled.id, pulled.layers) == (made.id, 2)
                store.remove(name)
                store.collect()
            fault.release.set()
    settings = orlop.Settings(timeout=60.0)
    with MemoryRegistry() as registry, orlop.open(dirs.root, dirs.run, settings=settings) as store:
        for data in made.blobs.values():
            registry.add_blob("app", data)
        registry.add_manifest("app", "v1", made.document, made.media_type)
        assert store.pull(f"{registry.host}/app:v1").id == made.id
        assert store.check(full=True).findings == ()
        store.remove(f"{registry.host}/app:v1")
        store.collect()
    return failed, count


@pytest.mark.hostile(38)
def test_a_pull_through_any_misbehaviour_ends_well_or_with_an_error_of_ours(store_dirs: StoreDirs) -> None:
    round_of(store_dirs, 39, 3)


@pytest.mark.soak
@pytest.mark.hostile(38)
def test_pulls_through_misbehaviour_for_long(store_dirs: StoreDirs, soak_seconds: float) -> None:
    seed = int(os.environ.get("SEED") or time.time())
    print(f"SEED={seed}")  # noqa: T201 - shown with a failure
    end = time.monotonic() + soak_seconds
    for number in itertools.count(seed):
        print(number, round_of(store_dirs, number, 12))  # noqa: T201 - what was really done
        if time.monotonic() > end:
            break
