"""`AsyncPrepared`: the verbs of `orlop.Prepared`, to be awaited.  Written by tools/aio-faces; not by hand."""

# ruff: noqa: A002 - options have the names they have
from __future__ import annotations

from typing import TYPE_CHECKING

from orlop.aio.streams import AsyncStream

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence
    from typing import Literal, Self

    from orlop.aio.calls import Calls
    from orlop.facade import Prepared
    from orlop.facade.running import Ran
    from orlop.images.api import IdMap, ImageInfo, Mount, PreparedInfo
    from orlop.images.comparing import Blame, Difference
    from orlop.images.exports import Exported, ExportFormat, Sink
    from orlop.images.forks import CheckpointInfo
    from orlop.images.running.bundle import Net, Rlimit, Volume
    from orlop.images.running.imagevolumes import ImageVolumes
    from orlop.images.running.whole import Bundle
    from orlop.observe import Call
__all__ = ["AsyncPrepared"]


class AsyncPrepared:
    """A prepared root, as `orlop.Prepared`; ``sync`` is that one.

    Leaving an ``async with`` block cleans up, also when the block raised or its task was cancelled.
    """

    def __init__(self, sync: Prepared, calls: Calls) -> None:
        self.sync = sync
        self._calls = calls

    @property
    def info(self) -> PreparedInfo:
        """What the store said of it last."""
        return self.sync.info

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._calls.run(lambda inner: self.sync.cleanup(call=inner), steady=True)

    @property
    def path(self) -> str:
        """Where the root is, or will be once its mounts are performed."""
        return self.sync.path

    @property
    def mounts(self) -> tuple[Mount, ...]:
        """The mounts to perform, in order."""
        return self.sync.mounts

    @property
    def folder(self) -> str | None:
        """The plain folder that *is* the root, usable without any mount; None where there is none.

        The ``native`` driver's roots have one, unless mounts of the caller's own lie on it.  That of a
        view is shared with other views: it must not be written to.
        """
        return self.sync.folder

    async def mount(self) -> Self:
        """Perform the mounts, in this process's mount namespace (or the daemon's).

        Idempotent.
        """
        await self._calls.run(lambda _: self.sync.mount())
        return self

    async def unmount(self) -> Self:
        """Undo `mount`; what was written stays.

        Idempotent. Raises `FailedPrecondition` for a root in use.
        """
        await self._calls.run(lambda _: self.sync.unmount())
        return self

    async def commit(
        self,
        name: str | None = None,
        *,
        author: str = "",
        message: str = "",
        changes: Sequence[str] = (),
        created: int | None = None,
        newest: int | None = None,
        exclude: Sequence[str] = (),
        squash: bool = False,
        base: str | None = None,
        annotations: Mapping[str, str] | None = None,
        freeze: str = "",
        call: Call | None = None,
    ) -> ImageInfo:
        """Capture what changed as a new image; the root stays usable.

        `CommitOptions` says what each option does.

        Without a ``name`` a new one under ``localhost/`` is made. ``created`` and ``newest`` are
        seconds since 1970. Raises `FailedPrecondition` for a view, and for a file that changes each
        time it is read.
        """
        return await self._calls.run(
            lambda inner: self.sync.commit(
                name,
                author=author,
                message=message,
                changes=changes,
                created=created,
                newest=newest,
                exclude=exclude,
                squash=squash,
                base=base,
                annotations=annotations,
                freeze=freeze,
                call=inner,
            ),
            call,
        )

    async def export(
        self,
        destination: str | os.PathLike[str] | Sink,
        *,
        format: ExportFormat | None = None,
        created: int | None = None,
        size: int | None = None,
        force: bool = False,
        call: Call | None = None,
    ) -> Exported:
        """Write the root as it is now to a file, or to what has ``write``: a tar or a file system image.

        See `orlop.Store.export`.
        """
        return await self._calls.run(
            lambda inner: self.sync.export(
                destination, format=format, created=created, size=size, force=force, call=inner
            ),
            call,
        )

    async def cleanup(self, *, call: Call | None = None) -> None:
        """Unmount what `mount` mounted and delete what was written.

        Raises `FailedPrecondition`, naming who uses it, while it is in use: nothing is removed
        then.
        """
        await self._calls.run(lambda inner: self.sync.cleanup(call=inner), call)

    async def fork(
        self,
        *new_paths: str | os.PathLike[str],
        move: bool = False,
        mount: bool = False,
        labels: Mapping[str, str] | None = None,
        call: Call | None = None,
    ) -> list[AsyncPrepared]:
        """Make new roots with this one's content, all or none; this one stays as it is, and may be in use.

        What was written is captured once for all of them.  With ``move`` this root becomes the first of them,
        as this handle does, and no byte is copied if it is the only one; it must be idle.

        Raises `AlreadyExists` for a path that is prepared, `FailedPrecondition` for a view, and
        with ``move`` for a root in use.
        """
        made = await self._calls.run(
            lambda inner: self.sync.fork(*new_paths, move=move, mount=mount, labels=labels, call=inner),
            call,
            undo=lambda roots: None if move else _clean(roots),
        )
        return [AsyncPrepared(one, self._calls) for one in made]

    async def checkpoint(self, name: str, *, call: Call | None = None) -> CheckpointInfo:
        """Remember what the root is now; it stays usable, and may be in use.

        Raises `AlreadyExists` for a name that the root has.
        """
        return await self._calls.run(lambda inner: self.sync.checkpoint(name, call=inner), call)

    async def checkpoints(self) -> list[CheckpointInfo]:
        """The checkpoints, in the order in which they were made."""
        return await self._calls.run(lambda _: self.sync.checkpoints())

    async def rollback(self, name: str, *, call: Call | None = None) -> Self:
        """Make the root what it was at a checkpoint; it must be idle.  All checkpoints stay.

        Raises `NotFound` for no such checkpoint, `FailedPrecondition` for a root in use.
        """
        await self._calls.run(lambda inner: self.sync.rollback(name, call=inner), call)
        return self

    async def drop_checkpoint(self, name: str) -> None:
        """Forget a checkpoint.

        Raises `NotFound`.
        """
        await self._calls.run(lambda _: self.sync.drop_checkpoint(name))

    async def bundle(
        self,
        folder: str | os.PathLike[str],
        *,
        args: Sequence[str] = (),
        entrypoint: Sequence[str] | None = None,
        env: Sequence[str] = (),
        cwd: str | None = None,
        user: str | None = None,
        terminal: bool = False,
        hostname: str = "",
        readonly: bool = False,
        net: Net = "none",
        volumes: Sequence[Volume] = (),
        mounts: Sequence[Mount] = (),
        image_volumes: ImageVolumes = "folder",
        annotations: Mapping[str, str] | None = None,
        unsafe_labels: bool = False,
        seccomp: str = "auto",
        rootless: bool = False,
        uid_map: Sequence[IdMap] = (),
        gid_map: Sequence[IdMap] = (),
        root_mounts: bool = False,
        rlimits: Sequence[Rlimit] = (),
        cgroup: str | None = None,
        hooks: Sequence[tuple[str, Sequence[str]]] = (),
        force: bool = False,
        call: Call | None = None,
    ) -> Bundle:
        """Write config.json, and the files that it needs, into a folder: ``runc run --bundle FOLDER NAME``.

        The image's config is translated as the image-spec says; what is given here counts instead.  ``args``
        stand in for the image's command, ``entrypoint`` for its entrypoint.  ``rootless`` is for a runtime
        that the caller starts without root: a user namespace with the caller's own ids, or with ``uid_map``
        and ``gid_map``.  The root has to be mounted, unless ``root_mounts`` has the runtime mount it.
        `orlop.images.running.whole.BundleOptions` and `RunOptions` have the rest.

        Raises `AlreadyExists` where there is a config.json, `FailedPrecondition` for a root that is
        not mounted.
        """
        return await self._calls.run(
            lambda inner: self.sync.bundle(
                folder,
                args=args,
                entrypoint=entrypoint,
                env=env,
                cwd=cwd,
                user=user,
                terminal=terminal,
                hostname=hostname,
                readonly=readonly,
                net=net,
                volumes=volumes,
                mounts=mounts,
                image_volumes=image_volumes,
                annotations=annotations,
                unsafe_labels=unsafe_labels,
                seccomp=seccomp,
                rootless=rootless,
                uid_map=uid_map,
                gid_map=gid_map,
                root_mounts=root_mounts,
                rlimits=rlimits,
                cgroup=cgroup,
                hooks=hooks,
                force=force,
                call=inner,
            ),
            call,
        )

    def diff(
        self, *, path: str | bytes | os.PathLike[str] = "/", times: bool = True, call: Call | None = None
    ) -> AsyncStream[Difference]:
        """What changed since the image, as it is found."""
        return AsyncStream(
            self._calls, lambda inner: self.sync.diff(path=path, times=times, call=inner), call
        )

    async def blame(self, path: str | bytes | os.PathLike[str], *, call: Call | None = None) -> Blame:
        """Which layers, and which changes here, brought, changed and deleted a path.

        Of a change here the layer is 0.
        """
        return await self._calls.run(lambda inner: self.sync.blame(path, call=inner), call)

    async def copy_out(
        self,
        path: str | bytes | os.PathLike[str],
        dest: str | bytes | os.PathLike[str],
        *,
        archive: bool = False,
        follow: bool = False,
        call: Call | None = None,
    ) -> None:
        """Copy a file or a folder of the root to a path of this machine; see `StoreContents.copy_out`."""
        await self._calls.run(
            lambda inner: self.sync.copy_out(path, dest, archive=archive, follow=follow, call=inner), call
        )

    async def copy_in(
        self,
        source: str | bytes | os.PathLike[str],
        path: str | bytes | os.PathLike[str],
        *,
        archive: bool = False,
        follow: bool = False,
        call: Call | None = None,
    ) -> None:
        """Copy a file or a folder of this machine into the root; see `StoreContents.copy_in`."""
        await self._calls.run(
            lambda inner: self.sync.copy_in(source, path, archive=archive, follow=follow, call=inner), call
        )

    async def run(
        self,
        args: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str = "",
        input: str = "",
        net: Literal["none", "host"] = "none",
        isolate: bool | None = None,
        call: Call | None = None,
    ) -> Ran:
        """Run a program in the root, as the root's own root user, and wait for its end.

        ``args`` are the program and its arguments, ``env`` variables beside those of the image, ``cwd`` a
        folder of the root (the image's working directory unless given), ``input`` what it reads.  Isolated
        by bubblewrap, with no network unless ``net`` is ``host``; where bubblewrap does not work, in a
        changed root alone, unless ``isolate`` is true.  The root must be mounted, or be a plain `folder`.
        Cancelling the call, and its deadline, kill the program.  /dev and /proc are made where the root has
        no such folders.

        Raises `FailedPrecondition` for a root that is nowhere to be seen and where nothing may be run,
        `NotFound` for a program that is not there, `ResourceExhausted` for one that prints more than 64 MiB,
        `Cancelled` and `DeadlineExceeded`.
        """
        return await self._calls.run(
            lambda inner: self.sync.run(
                args, env=env, cwd=cwd, input=input, net=net, isolate=isolate, call=inner
            ),
            call,
        )


def _clean(roots: list[Prepared]) -> None:
    """Clean up the roots that nobody was there to take."""
    for root in roots:
        root.cleanup()
