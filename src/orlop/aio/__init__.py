"""The library for asyncio: the verbs of `orlop.Store` and `orlop.Prepared`, to be awaited.

::

    import orlop.aio

    async with orlop.aio.open() as store:
        async with store.prepare("alpine", "/srv/a", mount=True) as root:
            ...
            image = await root.commit("localhost/changed")

Nothing is done here but to wait: the synchronous verbs run in threads, so results, errors and durability are
the same, and the values are those of `orlop`.  Cancelling a task cancels its call, and is over when the work
has ended.
"""

from orlop.aio.calls import Pending
from orlop.aio.opening import connect, open  # noqa: A004 - the library's verb
from orlop.aio.prepared import AsyncPrepared
from orlop.aio.progress import Following, following
from orlop.aio.store import AsyncStore
from orlop.aio.streams import AsyncChunks, AsyncEvents, AsyncStream

__all__ = [
    "AsyncChunks",
    "AsyncEvents",
    "AsyncPrepared",
    "AsyncStore",
    "AsyncStream",
    "Following",
    "Pending",
    "connect",
    "following",
    "open",
]
