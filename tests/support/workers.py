"""One worker template for all stores that this process opens: to start one takes longer than most layers do.

It is the real one, which a store would start for itself, and it outlives the stores.  Workers are forked from it
for each layer as ever, and a process that a test starts has a template of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from orlop.layers.worker import client, template


class _Lent(template.Template):
    """A template that whoever has it may close, and it stays."""

    def close(self) -> None:
        pass

    retire = close

    def end(self) -> None:
        super().close()


@contextmanager
def one_template() -> Iterator[None]:
    """Let all stores of this process have their workers from one template."""
    lent = _Lent()
    with pytest.MonkeyPatch.context() as patch:
        for module in (client, template):
            patch.setattr(module, "Template", lambda: lent)
        yield
    lent.end()
