"""The five things that people try first, in small; `tools/five-things` does them in large, and times them."""

from __future__ import annotations

from pathlib import Path

import pytest

from support import fivethings
from support.registries import Registry

SLOW = (pytest.mark.soak, pytest.mark.large)


@pytest.mark.root
@pytest.mark.parametrize("who", ["root", pytest.param("user", marks=SLOW)])
def test_they_work_without_a_daemon(workdir: Path, registry_auth: Registry, who: str) -> None:
    fivethings.push_images(registry_auth, files=20, large=8 << 20)
    make = fivethings.root_person if who == "root" else fivethings.user_person
    done = fivethings.five_things(make(workdir / who, registry_auth), registry_auth, forks=5)
    assert [thing.seconds > 0 for thing in done] == [True] * 5
