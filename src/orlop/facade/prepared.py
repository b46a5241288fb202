"""`Prepared`: the handle of one root."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Self

from orlop.images.api import CommitOptions, ImageInfo, Mount, PreparedInfo
from orlop.observe import Call

if TYPE_CHECKING:
    from orlop.images.api import Store as StoreVerbs


__all__ = ["Prepared"]


class Prepared:
    """A prepared root: where it is, how to mount it, what to do with what changed.

    Leaving a ``with`` block cleans up: the root is unmounted and what was written is deleted, also
    when the block raised.
    """

    def __init__(self, verbs: StoreVerbs, info: PreparedInfo) -> None:
        self._verbs = verbs
        self.info = info

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
        """Perform the mounts, in this process's mount namespace (or the daemon's)."""
        self.info = self._verbs.mount(self.path)
        return self

    def unmount(self) -> Self:
        """Undo `mount`; what was written stays."""
        self.info = self._verbs.unmount(self.path)
        return self

    def commit(
        self,
        name: str | None = None,
        *,
        author: str = "",
        message: str = "",
        changes: tuple[str, ...] = (),
        created: int | None = None,
        call: Call | None = None,
    ) -> ImageInfo:
        """Capture what changed as a new image; the root stays usable."""
        options = CommitOptions(author=author, message=message, changes=changes, created=created)
        return self._verbs.commit(self.path, name, options=options, call=call or Call())

    def cleanup(self, *, call: Call | None = None) -> None:
        """Unmount what `mount` mounted and delete what was written."""
        self._verbs.cleanup(self.path, call=call or Call())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.cleanup()
