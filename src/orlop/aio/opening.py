"""Where an `AsyncStore` comes from."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING

from orlop.aio.calls import THREADS, Calls, Pending
from orlop.aio.store import AsyncStore
from orlop.facade.opening import DEFAULT_ROOT, DEFAULT_RUN, DEFAULT_SOCKET
from orlop.facade.opening import connect as connect_now
from orlop.facade.opening import open as open_now

if TYPE_CHECKING:
    from orlop.config import Settings
    from orlop.facade import Store

__all__ = ["connect", "open"]

StrPath = str | os.PathLike[str]


def open(  # noqa: A001 - the library's verb
    root: StrPath = DEFAULT_ROOT,
    run: StrPath = DEFAULT_RUN,
    *,
    settings: Settings | None = None,
    threads: int = THREADS,
) -> Pending[AsyncStore]:
    """Open the store at ``root`` in this process, as `orlop.open` does; to be awaited, or entered.

    ::

        async with orlop.aio.open() as store:
            print(await store.images())

    Its calls run in ``threads`` threads of its own: so many at once, and further ones wait their turn.
    """
    return Pending(_store(lambda: open_now(root, run, settings=settings), threads))


def connect(
    address: str = f"unix://{DEFAULT_SOCKET}",
    *,
    tls_cert: StrPath | None = None,
    tls_key: StrPath | None = None,
    tls_ca: StrPath | None = None,
    threads: int = THREADS,
) -> Pending[AsyncStore]:
    """A store served by a daemon, as `orlop.connect`; to be awaited, or entered."""
    return Pending(
        _store(lambda: connect_now(address, tls_cert=tls_cert, tls_key=tls_key, tls_ca=tls_ca), threads)
    )


async def _store(make: Callable[[], Store], threads: int) -> AsyncStore:
    calls = Calls(threads)
    try:
        sync = await calls.run(lambda _: make(), undo=lambda store: store.close())
    except BaseException:
        await calls.close(lambda: None)
        raise
    return AsyncStore(sync, calls)
