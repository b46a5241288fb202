"""`orlop.aio` on a real store, in this process and behind a daemon."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing
from pathlib import Path

import pytest

import orlop
import orlop.aio
from conftest import StoreDirs
from support import images
from support.daemons import Crew, daemon
from support.layers import Layer
from support.rangeserver import BigLayer, RangeServer, Way

pytestmark = pytest.mark.root

LONG = 200  # seconds that no test takes
MANY = 20


@pytest.fixture(params=["here", "daemon"])
def address(request: pytest.FixtureRequest, store_dirs: StoreDirs) -> Iterator[str]:
    """Where the store is: empty, or a daemon's address."""
    if request.param == "here":
        yield ""
        return
    with (
        Crew(store_dirs.work / "crew") as crew,
        daemon(crew, store_dirs.root, store_dirs.run, socket=store_dirs.work / "s") as where,
    ):
        yield where


@pytest.fixture
def box(store_dirs: StoreDirs) -> str:
    """An image of a few files, imported as ``localhost/box``."""
    layer = Layer().folder("etc").file("etc/motd", b"hello\n").folder("many")
    for number in range(2_000):
        layer.file(f"many/{number:04}", b"x")
    layout = images.write_layout(store_dirs.work / "box", {"v1": images.make_image([layer.tar()])})
    with orlop.open(store_dirs.root, store_dirs.run) as store:
        store.load(layout, name="localhost/box")
    return "localhost/box"


@asynccontextmanager
async def opened(dirs: StoreDirs, address: str = "", **options) -> AsyncIterator[orlop.aio.AsyncStore]:
    """The store, emptied of roots at the end."""
    async with asyncio.timeout(LONG):
        begin = orlop.aio.connect(address) if address else orlop.aio.open(dirs.root, dirs.run, **options)
        async with begin as store:
            try:
                yield store
            finally:
                for root in await store.prepared():
                    await (await store.get(root.path)).cleanup()


def a_root_from_prepare_to_cleanup_and_what_is_inside(store_dirs: StoreDirs, address: str, box: str) -> None:
    path = store_dirs.work / "a"

    async def main() -> None:
        async with opened(store_dirs, address) as store:
            async with store.prepare(box, path, mount=True) as root:
                assert (path / "etc/motd").read_text() == "hello\n"
                (path / "etc/motd").write_text("changed\n")
                assert [one.path async for one in root.diff()] == [b"etc/motd"]
                image = await root.commit("localhost/changed")
                await root.checkpoint("then")
                forks = await root.fork(*(store_dirs.work / f"f{number}" for number in range(3)))
                assert [fork.info.image_id for fork in forks] == [forks[0].info.image_id] * 3
                assert (await root.unmount()) is root
            assert path.name not in {Path(one.path).name for one in await store.prepared()}
            assert len(await store.prepared()) == 3
            assert b"".join([chunk async for chunk in store.cat(image.name, "/etc/motd")]) == b"changed\n"
            found = [file.path async for file in store.ls(box, "/many")]
            assert len(found) == 2_000
            async with store.ls(box, "/", recursive=True) as files:
                async for _ in files:
                    break
            names = [hit.file.path async for hit in store.find("motd")]
            assert names == [b"etc/motd"] * len(names)
            assert names
            with pytest.raises(orlop.NotFound):
                await anext(store.ls("localhost/nothing"))
            with pytest.raises(orlop.NotFound):
                await store.inspect("localhost/nothing")

            async def tar() -> AsyncIterator[bytes]:
                async for chunk in store.read_tar(box, "/etc"):
                    yield chunk

            await store.write_tar(tar(), forks[0].path, "/")
            loaded = await store.load(tar(), name="localhost/etc", format="rootfs")
            assert loaded[0].name == "localhost/etc:latest"
            async with store.export_stream("localhost/etc") as stream:
                size = sum([len(chunk) async for chunk in stream])
            assert size > 512
            assert stream.result.format

    asyncio.run(main())


def twenty_prepares_at_once(store_dirs: StoreDirs, address: str, box: str) -> None:
    async def main() -> None:
        async with opened(store_dirs, address) as store:
            paths = [store_dirs.work / f"p{number}" for number in range(MANY)]
            roots = await asyncio.gather(*(store.prepare(box, path, mount=True) for path in paths))
            assert [root.path for root in roots] == [str(path) for path in paths]
            assert all((path / "etc/motd").exists() for path in paths)
            async with asyncio.TaskGroup() as group:
                for root in roots:
                    group.create_task(root.cleanup())
            assert await store.prepared() == []

    asyncio.run(main())


def events_are_followed_and_gone_on_with(store_dirs: StoreDirs, address: str, box: str) -> None:
    async def main() -> None:
        async with opened(store_dirs, address) as store:
            async with store.events(follow=True, kinds="image") as events:
                await store.tag(box, "localhost/one")
                await store.tag(box, "localhost/two")
                first = await anext(events)
                assert (first.kind, first.subject) == ("image.created", "localhost/one:latest")
                cursor = events.cursor
                assert cursor == first.cursor
            async with store.events(cursor, kinds="image") as events:
                assert [event.subject async for event in events] == ["localhost/two:latest"]

    asyncio.run(main())


def test_all_works_here_and_with_a_daemon(store_dirs: StoreDirs, address: str, box: str) -> None:
    """One after the other: a daemon takes long to start."""
    twenty_prepares_at_once(store_dirs, address, box)
    events_are_followed_and_gone_on_with(store_dirs, address, box)
    a_root_from_prepare_to_cleanup_and_what_is_inside(store_dirs, address, box)


def test_a_pull_that_is_cancelled_leaves_nothing_half_and_goes_on_with_what_it_had(
    store_dirs: StoreDirs,
) -> None:
    async def main(server: RangeServer) -> None:
        settings = orlop.Settings(insecure_registries=(server.host,), streams=1)
        async with opened(store_dirs, settings=settings) as store:
            with pytest.raises(TimeoutError):
                await _pull_until_bytes_come(store, server.name)
            assert await store.images() == []
            assert _broken(await store.check()) == []
            server.way, before = lambda _: Way(), len(server.asked)
            with pytest.raises(orlop.FailedPrecondition):
                _ = orlop.aio.following(lambda call: store.pull(server.name, call=call)).result
            async with orlop.aio.following(lambda call: store.pull(server.name, call=call)) as again:
                phases = {event.phase async for event in again}
            assert "indexing" in phases or "done" in phases
            assert [image.name for image in await store.images()] == [again.result.name]
            assert _broken(await store.check(full=True)) == []
            assert server.asked[before].first  # it went on with what it had

    with RangeServer(BigLayer(8 << 20), lambda _: Way(hold=3 << 20)) as server:
        asyncio.run(main(server))


def _broken(checked: orlop.Checked) -> list[orlop.Finding]:
    """What is wrong, beside what the next collection takes."""
    return [finding for finding in checked.findings if finding.kind != "leftover"]


async def _pull_until_bytes_come(store: orlop.aio.AsyncStore, name: str) -> None:
    async with (
        asyncio.timeout(None) as limit,
        orlop.aio.following(lambda call: store.pull(name, call=call)) as pull,
    ):
        async for event in pull:
            if event.phase == "fetching" and event.done:
                limit.reschedule(0)  # at once


def test_closing_with_tasks_in_flight_ends_them(store_dirs: StoreDirs) -> None:
    async def main(server: RangeServer) -> None:
        settings = orlop.Settings(insecure_registries=(server.host,))
        async with asyncio.timeout(LONG):
            store = await orlop.aio.open(store_dirs.root, store_dirs.run, settings=settings)
            pulls = [asyncio.create_task(store.pull(server.name)) for _ in range(3)]
            events = store.events(follow=True)
            waiting = asyncio.create_task(anext(events))
            while not server.asked:
                await asyncio.sleep(0.01)
            await store.close()
            ends = await asyncio.gather(*pulls, waiting, return_exceptions=True)
            assert {type(end) for end in ends} == {orlop.Cancelled}
            with pytest.raises(orlop.FailedPrecondition):
                await store.images()
            await store.close()

    with RangeServer(BigLayer(8 << 20), lambda _: Way(hold=3 << 20)) as server:
        asyncio.run(main(server))
    with closing(orlop.open(store_dirs.root, store_dirs.run)) as store:
        assert store.images() == []
        assert _broken(store.check()) == []
