"""The user namespace in which a container is started, where that is not the machine's first.

Values: which ids there are.  Nothing is entered or made here (`orlop.linux.userns` does that).
"""

from __future__ import annotations

from orlop.errors import FailedPrecondition
from orlop.images.running.accounts import User
from orlop.linux.userns import Maps
from orlop.values import dataclass, replace

__all__ = ["UserNamespace"]


@dataclass(frozen=True, slots=True, kw_only=True)
class UserNamespace:
    """A user namespace that we are root of and that the container stays in: its maps of users and groups.

    ``setgroups`` says whether setgroups(2) is allowed there (user_namespaces(7)).
    """

    maps: Maps
    setgroups: bool

    def has_user(self, uid: int) -> bool:
        """Whether there is such a user."""
        return any(uid - ids.inside in range(ids.size) for ids in self.maps[0])

    def has_group(self, gid: int) -> bool:
        """Whether there is such a group."""
        return any(gid - ids.inside in range(ids.size) for ids in self.maps[1])

    def admit(self, user: User) -> User:
        """The user, with those of the supplementary groups that there are.

        Raises `FailedPrecondition` if the user or the primary group is not there.
        """
        for kind, number, found in (
            ("user", user.uid, self.has_user(user.uid)),
            ("group", user.gid, self.has_group(user.gid)),
        ):
            if not found:
                raise FailedPrecondition(
                    f"run as {kind} {number}",
                    "this id is not mapped in the user namespace",
                    hint="run it as root (--user 0:0), or get subordinate ids (usermod --add-subuids …)",
                )
        groups = user.groups if self.setgroups else ()
        return replace(user, groups=tuple(filter(self.has_group, groups)))
