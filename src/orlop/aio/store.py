"""`AsyncStore`: the verbs of `orlop.Store`, to be awaited.  Written by tools/aio-faces; not by hand."""

# ruff: noqa: A002 - options have the names they have
from __future__ import annotations

from collections.abc import AsyncIterable
from typing import TYPE_CHECKING

from orlop.aio.calls import Pending
from orlop.aio.prepared import AsyncPrepared
from orlop.aio.streams import AsyncChunks, AsyncEvents, AsyncStream

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Mapping, Sequence
    from datetime import datetime
    from typing import IO, Self

    from orlop.aio.calls import Calls
    from orlop.config import Driver, PullPolicy
    from orlop.facade import Prepared, Store
    from orlop.images.api import (
        ExtraMount,
        FetchedBlobs,
        IdMap,
        ImageDetails,
        ImageInfo,
        PreparedInfo,
        PushResult,
        Removed,
    )
    from orlop.images.comparing import Blame, Difference, HistoryLine, TreeLine, Waste
    from orlop.images.contents import FileInfo, FileKind, Found
    from orlop.images.exports import Exported, ExportFormat, ExportOptions, Sink
    from orlop.images.imports import ImportFormat
    from orlop.images.shares import Share, ShareForm
    from orlop.images.upkeep import BackedUp, Checked, Collected, Explanation, Keep, Pin, StoreInfo, Usage
    from orlop.observe import Auth, Call
__all__ = ["AsyncStore"]


class AsyncStore:
    """Images and prepared roots, here or behind a daemon.  An asynchronous context manager, for one loop.

    Its verbs are those of `orlop.Store`, with the same results and the same errors; ``sync`` is that store.
    docs/asyncio.md says what cancelling does.
    """

    def __init__(self, sync: Store, calls: Calls) -> None:
        self.sync = sync
        self._calls = calls

    async def close(self) -> None:
        """Stop what runs, and let go of files, threads and connections.  Prepared roots stay.  Idempotent."""
        await self._calls.close(self.sync.close)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    async def pull(
        self,
        name: str,
        *,
        platform: str | Sequence[str] | None = None,
        all_platforms: bool = False,
        auth: Auth | None = None,
        call: Call | None = None,
    ) -> ImageInfo:
        """Fetch an image; every byte is verified and durable on return.

        Of an index the image for this machine, or for one ``platform`` or several, or ``all_platforms``.
        ``auth`` are credentials for this call and the image's registry alone.

        Raises `NotFound` where the registry has no such image, `Unauthenticated` where it wants to
        know who asks, `Unavailable` where it does not answer, `DataLoss` for bytes that are not
        what their digest says.
        """
        return await self._calls.run(
            lambda inner: self.sync.pull(
                name, platform=platform, all_platforms=all_platforms, auth=auth, call=inner
            ),
            call,
        )

    async def push(
        self,
        name: str,
        destination: str | None = None,
        *,
        tags: Sequence[str] = (),
        recompress: bool = False,
        compression: str | None = None,
        level: int | None = None,
        format: str | None = None,
        all_platforms: bool = False,
        auth: Auth | None = None,
        call: Call | None = None,
    ) -> PushResult:
        """Send an image to a registry, under ``destination`` or its own name, and under further ``tags``.

        What is compressed for it is so by ``compression`` (gzip, zstd, none), ``level`` and ``format``
        (plain, estargz, zstd:chunked): docs/formats.md.  With ``all_platforms`` the index that the name
        means, with all that is in it.  ``auth`` are credentials for this call and the registry that it
        goes to.

        Raises `FailedPrecondition` for a blob that is neither kept nor anywhere to be had, and as
        `pull` does.
        """
        return await self._calls.run(
            lambda inner: self.sync.push(
                name,
                destination,
                tags=tags,
                recompress=recompress,
                compression=compression,
                level=level,
                format=format,
                all_platforms=all_platforms,
                auth=auth,
                call=inner,
            ),
            call,
        )

    async def fetch_blobs(self, name: str, *, call: Call | None = None) -> FetchedBlobs:
        """Fetch the blobs of an image's layers that are not kept, so that it can go anywhere as it came.

        Raises `FailedPrecondition` for an image without a manifest, and for a blob that nobody
        gives.
        """
        return await self._calls.run(lambda inner: self.sync.fetch_blobs(name, call=inner), call)

    async def load(
        self,
        source: str | os.PathLike[str] | IO[bytes] | Iterable[bytes] | AsyncIterable[bytes],
        *,
        name: str | None = None,
        platform: str | Sequence[str] | None = None,
        all_platforms: bool = False,
        format: ImportFormat | None = None,
        replace: bool = False,
        changes: Sequence[str] = (),
        author: str = "",
        message: str = "",
        created: int | None = None,
        owner: tuple[int, int] | None = None,
        newest: int | None = None,
        call: Call | None = None,
    ) -> list[ImageInfo]:
        """Import an OCI layout (folder or tar), a ``docker save`` archive, or a root file system.

        ``source`` is a path, a file open for reading in binary mode, an iterable of bytes, or the text
        ``podman:IMAGE`` or ``docker:IMAGE``: what those programs save (``./podman:x`` is a path).  A name
        that means another image is moved only with ``replace``.  The options from ``changes`` on are for root
        file systems; `orlop.images.imports.ImportOptions` says more.

        Raises `AlreadyExists` for a name that means another image, `InvalidArgument` for what is no
        image.
        """
        return await self._calls.run(
            lambda inner: self.sync.load(
                self._calls.feed(source, inner) if isinstance(source, AsyncIterable) else source,
                name=name,
                platform=platform,
                all_platforms=all_platforms,
                format=format,
                replace=replace,
                changes=changes,
                author=author,
                message=message,
                created=created,
                owner=owner,
                newest=newest,
                call=inner,
            ),
            call,
            fed=isinstance(source, AsyncIterable),
        )

    async def images(self) -> list[ImageInfo]:
        """All images, by name."""
        return await self._calls.run(lambda _: self.sync.images())

    async def inspect(self, name: str, *, platform: str | None = None) -> ImageDetails:
        """One image, whole; of an index the one for a ``platform``.

        An image's name or ID. ``config`` and ``manifest`` are the documents as they came: JSON, in
        bytes. Raises `NotFound`.
        """
        return await self._calls.run(lambda _: self.sync.inspect(name, platform=platform))

    async def tag(self, name: str, new_name: str) -> ImageInfo:
        """Give an image a further name.

        A name that meant another image moves. Raises `NotFound` and `InvalidArgument`.
        """
        return await self._calls.run(lambda _: self.sync.tag(name, new_name))

    async def remove(self, name: str, *, force: bool = False) -> Removed:
        """Take a name away, and the disk that nothing else needs.

        ``freed`` are bytes of disk. Prepared roots keep what they stand on. An ID takes all its
        names, with ``force`` also several. Raises `NotFound`.
        """
        return await self._calls.run(lambda _: self.sync.remove(name, force=force))

    def prepare(
        self,
        name: str,
        path: str | os.PathLike[str],
        *,
        view: bool = False,
        mount: bool = False,
        self_contained: bool = False,
        pull: PullPolicy | None = None,
        platform: str | None = None,
        labels: Mapping[str, str] | None = None,
        driver: Driver | None = None,
        quota: int | None = None,
        extra: Sequence[ExtraMount] = (),
        uid_map: Sequence[IdMap] = (),
        gid_map: Sequence[IdMap] = (),
        user_namespace: int | (str | os.PathLike[str]) | None = None,
        auth: Auth | None = None,
        call: Call | None = None,
    ) -> Pending[AsyncPrepared]:
        """Make an image's root ready at ``path``.

        ``driver`` is ``erofs``, ``overlay``, ``native`` or ``auto`` (the first that works here) in
        place of the store's setting; ``quota`` the bytes that may be written to the root; ``extra``
        mounts of your own, appended in this order; ``uid_map`` and ``gid_map``, both or neither, show
        the image's ids as others, and so does a ``user_namespace`` (a descriptor, or ``/proc/<pid>/ns/user``)
        whose maps are taken; ``auth`` are credentials for a pull that this takes.
        `orlop.images.api.PrepareOptions` has the rest.

        As a context manager the result cleans up at the end of the block; without ``with`` the root
        stays, also after this process, until `Prepared.cleanup`.

        ``path`` is absolute; to mount there its parent must be there.  Raises `AlreadyExists` for a path that
        is prepared, `NotFound` for an image that is nowhere, `FailedPrecondition` where a driver or an option
        does not work here, and what `pull` raises.
        """

        async def done() -> AsyncPrepared:
            return AsyncPrepared(
                await self._calls.run(
                    lambda inner: self.sync.prepare(
                        name,
                        path,
                        view=view,
                        mount=mount,
                        self_contained=self_contained,
                        pull=pull,
                        platform=platform,
                        labels=labels,
                        driver=driver,
                        quota=quota,
                        extra=extra,
                        uid_map=uid_map,
                        gid_map=gid_map,
                        user_namespace=user_namespace,
                        auth=auth,
                        call=inner,
                    ),
                    call,
                    undo=lambda root: root.cleanup(),
                ),
                self._calls,
            )

        return Pending(done())

    async def prepared(self) -> list[PreparedInfo]:
        """All prepared roots, by path.

        Their mounts are left out: `get` has them.
        """
        return await self._calls.run(lambda _: self.sync.prepared())

    def get(self, path: str | os.PathLike[str]) -> Pending[AsyncPrepared]:
        """The handle of a root that was prepared before, perhaps by another process.

        Raises `NotFound` where nothing is prepared.
        """

        async def done() -> AsyncPrepared:
            return AsyncPrepared(await self._calls.run(lambda _: self.sync.get(path)), self._calls)

        return Pending(done())

    async def label(self, name: str, changes: Mapping[str, str | None]) -> ImageInfo:
        """Set labels of a name, and take those away whose value is None; policies ask for them.

        Returns the image with its labels. Raises `NotFound`.
        """
        return await self._calls.run(lambda _: self.sync.label(name, changes))

    async def collect(
        self, *, dry_run: bool = False, keep: Keep | None = None, call: Call | None = None
    ) -> Collected:
        """Delete what no image, prepared root, lease or pin needs; with ``keep``, images beyond it too.

        A collection also happens by itself, as names and roots go; this one finds what crashes have
        left.
        """
        return await self._calls.run(
            lambda inner: self.sync.collect(dry_run=dry_run, keep=keep, call=inner), call
        )

    async def usage(self, *, call: Call | None = None) -> Usage:
        """What the store takes on disk, and how it divides among images.

        Sizes are bytes of disk, as du(1) counts them.
        """
        return await self._calls.run(lambda inner: self.sync.usage(call=inner), call)

    async def explain(self, thing: str, *, call: Call | None = None) -> Explanation:
        """Why a thing is kept, what it shares, and what its removal would free.

        A thing is an image, a layer (its diff ID), ``blob sha256:…``, ``chain …``, the path of a prepared
        root, ``lease …`` or ``pin …``.

        Raises `NotFound`.
        """
        return await self._calls.run(lambda inner: self.sync.explain(thing, call=inner), call)

    async def pin(self, thing: str, name: str | None = None, *, expires: float | None = None) -> Pin:
        """Keep a thing whatever happens to its names; until ``expires``, seconds since 1970, if given.

        A pin of that ``name`` moves.  Raises `NotFound` for a thing that is not there.
        """
        return await self._calls.run(lambda _: self.sync.pin(thing, name, expires=expires))

    async def unpin(self, name: str) -> None:
        """Take a pin back.

        Raises `NotFound`.
        """
        await self._calls.run(lambda _: self.sync.unpin(name))

    async def pins(self) -> list[Pin]:
        """All pins that have not expired, by name."""
        return await self._calls.run(lambda _: self.sync.pins())

    async def check(
        self,
        *things: str,
        full: bool = False,
        repair: bool = False,
        pace: int | None = None,
        call: Call | None = None,
    ) -> Checked:
        """Compare what the metadata promise with what is on disk; all of it, or some things.

        ``full`` reads and hashes everything, ``pace`` bytes a second at most; ``repair`` mends what can be.

        ``things`` are images and layers. What is wrong is not raised but found.
        """
        return await self._calls.run(
            lambda inner: self.sync.check(*things, full=full, repair=repair, pace=pace, call=inner), call
        )

    async def backup(
        self, destination: str | os.PathLike[str], *, content: bool = False, call: Call | None = None
    ) -> BackedUp:
        """Write the metadata, and with ``content`` the layers, to a new file; consistent while in use.

        `orlop.restore` reads it. Raises `AlreadyExists` for a file that is there.
        """
        return await self._calls.run(
            lambda inner: self.sync.backup(destination, content=content, call=inner), call
        )

    async def info(self) -> StoreInfo:
        """The store and what serves it."""
        return await self._calls.run(lambda _: self.sync.info())

    def diff(
        self,
        old: str | os.PathLike[str],
        new: str | os.PathLike[str] | None = None,
        *,
        path: str | bytes | os.PathLike[str] = "/",
        times: bool = True,
        platform: str | None = None,
        call: Call | None = None,
    ) -> AsyncStream[Difference]:
        """What of ``new`` differs from ``old``, as it is found; of a prepared root alone, what changed there.

        Without ``times`` a difference of mtimes alone is none.

        Things are named as in `orlop.Store.ls`. Close the generator, if it is not read to its end.
        """
        return AsyncStream(
            self._calls,
            lambda inner: self.sync.diff(old, new, path=path, times=times, platform=platform, call=inner),
            call,
        )

    async def blame(
        self,
        thing: str | os.PathLike[str],
        path: str | bytes | os.PathLike[str],
        *,
        platform: str | None = None,
        call: Call | None = None,
    ) -> Blame:
        """Which layers brought, changed and deleted a path.

        Raises `NotFound` for a path that no layer has.
        """
        return await self._calls.run(
            lambda inner: self.sync.blame(thing, path, platform=platform, call=inner), call
        )

    async def history(
        self, thing: str | os.PathLike[str], *, platform: str | None = None, call: Call | None = None
    ) -> list[HistoryLine]:
        """The history of an image, oldest first, each line with its layer."""
        return await self._calls.run(
            lambda inner: self.sync.history(thing, platform=platform, call=inner), call
        )

    def tree(
        self,
        thing: str | os.PathLike[str],
        path: str | bytes | os.PathLike[str] = "/",
        *,
        depth: int | None = None,
        layers: bool = False,
        platform: str | None = None,
        call: Call | None = None,
    ) -> AsyncStream[TreeLine]:
        """What is at and below a path, with the size of all that is in it; as it is found.

        ``depth`` is how far it goes down, ``layers`` says which layer brought what. Sizes are
        bytes.
        """
        return AsyncStream(
            self._calls,
            lambda inner: self.sync.tree(
                thing, path, depth=depth, layers=layers, platform=platform, call=inner
            ),
            call,
        )

    async def waste(
        self,
        thing: str | os.PathLike[str],
        *,
        files: int = 10,
        platform: str | None = None,
        call: Call | None = None,
    ) -> Waste:
        """What of an image's layers nothing shows any more, and the largest ``files`` of it."""
        return await self._calls.run(
            lambda inner: self.sync.waste(thing, files=files, platform=platform, call=inner), call
        )

    def ls(
        self,
        thing: str | os.PathLike[str],
        path: str | bytes | os.PathLike[str] = "/",
        *,
        recursive: bool = False,
        itself: bool = False,
        platform: str | None = None,
        call: Call | None = None,
    ) -> AsyncStream[FileInfo]:
        """The entries of a folder, or of anything else that alone; as they are found.

        Raises `NotFound` for a thing or a path that is not there.
        """
        return AsyncStream(
            self._calls,
            lambda inner: self.sync.ls(
                thing, path, recursive=recursive, itself=itself, platform=platform, call=inner
            ),
            call,
        )

    def cat(
        self,
        thing: str | os.PathLike[str],
        *paths: str | bytes | os.PathLike[str],
        platform: str | None = None,
        call: Call | None = None,
    ) -> AsyncStream[bytes]:
        """The bytes of files, one after the other, in chunks of at most 1 MiB."""
        return AsyncStream(
            self._calls, lambda inner: self.sync.cat(thing, *paths, platform=platform, call=inner), call
        )

    def find(
        self,
        pattern: str | bytes | os.PathLike[str],
        thing: str | os.PathLike[str] | None = None,
        *,
        kinds: Iterable[FileKind] = (),
        least: int | None = None,
        most: int | None = None,
        platform: str | None = None,
        call: Call | None = None,
    ) -> AsyncStream[Found]:
        """The files whose name matches a glob pattern, or whose path if it has a slash.

        In one thing, or in all images.  ``kinds`` are those wanted (none: all), ``least`` and ``most`` sizes
        of files in bytes.
        """
        return AsyncStream(
            self._calls,
            lambda inner: self.sync.find(
                pattern, thing, kinds=kinds, least=least, most=most, platform=platform, call=inner
            ),
            call,
        )

    async def copy_out(
        self,
        thing: str | os.PathLike[str],
        path: str | bytes | os.PathLike[str],
        dest: str | bytes | os.PathLike[str],
        *,
        archive: bool = False,
        follow: bool = False,
        platform: str | None = None,
        call: Call | None = None,
    ) -> None:
        """Copy a file or a folder of a thing to a path of this machine, as cp(1) and ``docker cp`` do.

        Into ``dest`` if that is a folder, else to that name; of ``/etc/.`` what is in it.  With ``archive``
        owners, devices, setuid bits and all xattrs are kept, as far as the caller may.  ``follow`` a symlink
        at ``path`` itself.

        Raises `NotFound`, and `FailedPrecondition` where a file is in a folder's way.
        """
        await self._calls.run(
            lambda inner: self.sync.copy_out(
                thing, path, dest, archive=archive, follow=follow, platform=platform, call=inner
            ),
            call,
        )

    async def copy_in(
        self,
        source: str | bytes | os.PathLike[str],
        root: str | os.PathLike[str],
        path: str | bytes | os.PathLike[str],
        *,
        archive: bool = False,
        follow: bool = False,
        call: Call | None = None,
    ) -> None:
        """Copy a file or a folder of this machine into a prepared root; the inverse of `copy_out`.

        Without ``archive`` all belongs to the root's own root user.
        """
        await self._calls.run(
            lambda inner: self.sync.copy_in(source, root, path, archive=archive, follow=follow, call=inner),
            call,
        )

    def read_tar(
        self,
        thing: str | os.PathLike[str],
        path: str | bytes | os.PathLike[str] = "/",
        *,
        follow: bool = False,
        platform: str | None = None,
        call: Call | None = None,
    ) -> AsyncStream[bytes]:
        """A file or a folder of a thing as a tar, in chunks."""
        return AsyncStream(
            self._calls,
            lambda inner: self.sync.read_tar(thing, path, follow=follow, platform=platform, call=inner),
            call,
        )

    async def write_tar(
        self,
        data: Iterable[bytes] | AsyncIterable[bytes],
        root: str | os.PathLike[str],
        path: str | bytes | os.PathLike[str] = "/",
        *,
        archive: bool = False,
        call: Call | None = None,
    ) -> None:
        """Unpack a tar in a folder of a prepared root."""
        await self._calls.run(
            lambda inner: self.sync.write_tar(
                self._calls.feed(data, inner) if isinstance(data, AsyncIterable) else data,
                root,
                path,
                archive=archive,
                call=inner,
            ),
            call,
            fed=isinstance(data, AsyncIterable),
        )

    def events(
        self,
        since: str | float | datetime | None = None,
        *,
        follow: bool = False,
        kinds: str | Sequence[str] = (),
        call: Call | None = None,
    ) -> AsyncEvents:
        """The store's events, whoever made them; a context manager, and an iterator.

        ``since`` is a cursor, ``"oldest"``, or a time: a `datetime` or seconds since 1970.  Without it all
        that are kept or, if ``follow`` is set, those that happen from this moment on.  ``kinds`` are such as
        ``image.pulled``, or ``image`` for all below it.  With ``follow`` the iterator waits for more until
        ``call`` is cancelled.  The stream's ``cursor`` is where another can go on.

        Raises `FailedPrecondition` where events after a cursor are not kept any more.
        """
        return AsyncEvents(
            self._calls,
            lambda inner: self.sync.events(since, follow=follow, kinds=kinds, call=inner),
            call,
            follow=follow,
        )

    async def export(
        self,
        things: str | Sequence[str],
        destination: str | os.PathLike[str] | Sink,
        *,
        format: ExportFormat | None = None,
        platform: str | None = None,
        all_platforms: bool = False,
        recompress: bool = False,
        compression: str | None = None,
        level: int | None = None,
        created: int | None = None,
        size: int | None = None,
        force: bool = False,
        call: Call | None = None,
    ) -> Exported:
        """Write images, or one file system, to a file, to a folder (an OCI layout), or to what has ``write``.

        Things are images' names or IDs, or a prepared root's path.  Without a ``format`` the destination's
        name says it: ``a.docker.tar``, ``a.squashfs``, ``layout/``; else it is an OCI layout as a tar, of a
        root a tar.  A file is whole or not there; one that exists stays unless ``force``.
        `orlop.images.exports.ExportOptions` has the rest.

        Raises `AlreadyExists`, and `FailedPrecondition` where a blob that the form needs is not to
        be had.
        """
        return await self._calls.run(
            lambda inner: self.sync.export(
                things,
                destination,
                format=format,
                platform=platform,
                all_platforms=all_platforms,
                recompress=recompress,
                compression=compression,
                level=level,
                created=created,
                size=size,
                force=force,
                call=inner,
            ),
            call,
        )

    def export_stream(
        self, things: str | Sequence[str], *, options: ExportOptions | None = None, call: Call | None = None
    ) -> AsyncChunks[Exported]:
        """The bytes of an export, to be iterated over; a context manager, whose end stops the work.

        ``result`` of what is returned says what it was, after the last chunk.
        """
        return AsyncChunks(
            self._calls, lambda inner: self.sync.export_stream(things, options=options, call=inner), call
        )

    async def fork(
        self,
        path: str | os.PathLike[str],
        *new_paths: str | os.PathLike[str],
        move: bool = False,
        mount: bool = False,
        labels: Mapping[str, str] | None = None,
        call: Call | None = None,
    ) -> list[AsyncPrepared]:
        """Make new roots with the content of the one at ``path``: see `orlop.Prepared.fork`."""
        made = await self._calls.run(
            lambda inner: self.sync.fork(path, *new_paths, move=move, mount=mount, labels=labels, call=inner),
            call,
            undo=lambda roots: None if move else _clean(roots),
        )
        return [AsyncPrepared(one, self._calls) for one in made]

    async def share(
        self,
        folder: str | os.PathLike[str],
        *names: str,
        form: ShareForm | None = None,
        platform: str | None = None,
        run_only: bool = False,
        call: Call | None = None,
    ) -> Share:
        """Put images into the share at ``folder``; without names make one that is there whole again.

        ``form`` is ``layout``, for ``podman run oci:FOLDER:NAME`` and all that copies from there, or
        ``store``, which podman and buildah use in place (``additionalimagestores``).  Folders are the
        service's own: a relative path is taken from here.

        Raises `AlreadyExists` for a folder that holds something else.
        """
        return await self._calls.run(
            lambda inner: self.sync.share(
                folder, *names, form=form, platform=platform, run_only=run_only, call=inner
            ),
            call,
        )

    async def shares(self) -> list[Share]:
        """All shares, by folder."""
        return await self._calls.run(lambda _: self.sync.shares())

    async def drop_share(self, folder: str | os.PathLike[str], *, call: Call | None = None) -> None:
        """Take a share away: its folder, its mounts, and what kept its images.

        Raises `NotFound`.
        """
        await self._calls.run(lambda inner: self.sync.drop_share(folder, call=inner), call)


def _clean(roots: list[Prepared]) -> None:
    """Clean up the roots that nobody was there to take."""
    for root in roots:
        root.cleanup()
