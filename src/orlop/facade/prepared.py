"""`Prepared`: the handle of one root."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import TracebackType

from orlop.facade.bundles import PreparedBundles
from orlop.facade.comparing import PreparedComparing
from orlop.facade.contents import PreparedContents
from orlop.facade.forks import PreparedForks
from orlop.facade.running import PreparedRunning
from orlop.hints import TYPE_CHECKING, Self
from orlop.observe import Call, Unheld

if TYPE_CHECKING:
    import os

    from orlop.images.api import ImageInfo, Mount
    from orlop.images.exports import Exported, ExportFormat, Sink

__all__ = ["Prepared"]


class Prepared(PreparedForks, PreparedBundles, PreparedComparing, PreparedContents, PreparedRunning):
    """A prepared root: where it is, how to mount it, what to do with what changed.

    Leaving a ``with`` block cleans up: the root is unmounted and what was written is deleted, also
    when the block raised.
    """

    @property
    def path(self) -> str:
        """Where the root is, or will be once its mounts are performed."""
        return self.info.path

    @property
    def mounts(self) -> tuple[Mount, ...]:
        """The mounts to perform, in order."""
        return self.info.mounts

    @property
    def folder(self) -> str | None:
        """The plain folder that *is* the root, usable without any mount; None where there is none.

        The ``native`` driver's roots have one, unless mounts of the caller's own lie on it.  That of a
        view is shared with other views: it must not be written to.
        """
        if self.info.driver != "native" or len(self.mounts) != 1 or self.mounts[0].type != "bind":
            return None
        return self.mounts[0].source

    def mount(self) -> Self:
        """Perform the mounts, in this process's mount namespace (or the daemon's).

        Idempotent.

        >>> root.mount().info.mounted
        True
        """
        self.info = self._verbs.mount(self.path)
        return self

    def unmount(self) -> Self:
        """Undo `mount`; what was written stays.

        Idempotent. Raises `FailedPrecondition` for a root in use.

        >>> root.unmount().info.mounted
        False
        """
        self.info = self._verbs.unmount(self.path)
        return self

    def commit(
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

        >>> _ = open("/srv/root/etc/motd", "w").write("changed")
        >>> image = root.commit("localhost/changed", message="a new motd", changes=["ENV A=b"])
        >>> image.name, image.layers
        ('localhost/changed:latest', 2)
        """
        from orlop.images.api import CommitOptions

        options = CommitOptions(
            author=author,
            message=message,
            changes=tuple(changes),
            created=created,
            newest=newest,
            exclude=tuple(exclude),
            squash=squash,
            base=base,
            annotations=dict(annotations or {}),
            freeze=freeze,
        )
        return self._verbs.commit(self.path, name, options=options, call=call or Call())

    def export(
        self,
        destination: str | os.PathLike[str] | Sink,
        *,
        format: ExportFormat | None = None,  # noqa: A002 - the option's name
        created: int | None = None,
        size: int | None = None,
        force: bool = False,
        call: Call | None = None,
    ) -> Exported:
        """Write the root as it is now to a file, or to what has ``write``: a tar or a file system image.

        See `orlop.Store.export`.

        >>> root.export("/srv/root.tar").format
        'tar'
        """
        from orlop.facade.exports import export_things

        return export_things(
            self._verbs,
            [self.path],
            destination,
            format=format,
            created=created,
            size=size,
            force=force,
            call=call,
        )

    def cleanup(self, *, call: Call | None = None) -> None:
        """Unmount what `mount` mounted and delete what was written.

        Raises `FailedPrecondition`, naming who uses it, while it is in use: nothing is removed
        then.

        >>> root.cleanup()
        >>> store.prepared()
        []
        """
        self._verbs.cleanup(self.path, call=call or Call(cancel=Unheld()))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.cleanup()
