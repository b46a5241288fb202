"""Who uses a root: asked before anything of it is taken away, and told in errors."""

from __future__ import annotations

from orlop.errors import DataLoss, InvalidArgument
from orlop.images.prepared.grounds import Grounds
from orlop.linux import mountinfo, processes
from orlop.metadata.roots import RootRow
from orlop.observe import Call

__all__ = ["Usage"]

_LOOKS, _PAUSE = 40, 0.1  # how often, and after how many seconds, a root that seems in use is looked at again


class Usage:
    """Asks about the roots of one store.  Thread-safe."""

    def __init__(self, grounds: Grounds) -> None:
        self._grounds = grounds

    def in_use(self, root: RootRow, what: str, call: Call) -> bool:
        """Whether an overlay uses the root's upper, and goes on doing so.

        A container that starts anywhere on the machine copies all mounts for a moment, until it has
        left the old root behind; so a root nobody holds gets a little time to become idle.
        """
        if root.kind != "active":
            return False
        if root.quota is not None:  # only below its own disk can anybody be found
            try:
                self._grounds.mount_disk(root, call)  # the one that others have mounted, if they have
            except (DataLoss, InvalidArgument):
                if self._grounds.disk_attached(root):
                    raise
                return False  # it is no file system any more, and nobody has it mounted
        driver, own = self._grounds.driver(root), self._grounds.own(root)
        for _ in range(_LOOKS):
            if not driver.in_use(own):
                return False
            if mountinfo.is_mount_point(root.path):
                return True  # it is plainly there: waiting changes nothing
            call.pause(_PAUSE, what)
        return driver.in_use(own)

    def is_untouched(self, root: RootRow) -> bool:
        """Whether nobody uses an active root, as nobody has mounted it yet; no where that is not known.

        What a cleanup takes away then is empty folders.
        """
        if root.kind != "active" or root.mounted or root.quota is not None:
            return False
        return self._grounds.driver(root).untouched(self._grounds.own(root))

    def by(self, root: RootRow) -> str:
        """Who uses a root, for an error: `` by bash (1234)``."""
        upper = self._grounds.driver(root).upper(self._grounds.own(root))
        if root.driver == "native":
            found, places = processes.users_of_tree(upper), list[str]()
        else:
            found = processes.users_of(upper)
            places = [place for place in processes.mount_points_of(upper) if place != root.path]
        text = ""
        if found:
            text = " by " + ", ".join(str(process) for process in found[:5])
        if places:
            text += f", mounted at {places[0]}"
        return text
