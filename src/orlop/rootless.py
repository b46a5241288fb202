"""Working without root: a program that starts itself again as root of a user namespace.

There prepared roots can be mounted, which a user may not do outside.  `unshare` is for scripts; the
command line does the same of its own accord, and `orlop unshare` opens a shell there.

What is inside finds in its environment ``ORLOP_UNSHARED=1`` and, as everybody is root there,
``_ORLOP_UID``: whose folders are meant.  All else, HOME and XDG_* among it, is as it was.

Invariant: nobody is put into a second namespace inside the first.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping

from orlop.errors import FailedPrecondition
from orlop.linux import userns

__all__ = ["UID_VARIABLE", "UNSHARED_VARIABLE", "environment", "maps_of_user", "unshare"]

UNSHARED_VARIABLE = "ORLOP_UNSHARED"
UID_VARIABLE = "_ORLOP_UID"


def unshare(*, optional: bool = False) -> None:
    """Run this very program again as root of a user namespace, and exit with its code.

    To be called first thing, in a program without threads and from its main thread::

        import orlop.rootless

        if __name__ == "__main__":
            orlop.rootless.unshare()
            ...

    Returns at once for root and for who is in such a namespace already.  The ids inside are those of
    `maps_of_user`.  Where no namespace can be made it raises `FailedPrecondition`, or, if namespaces
    are ``optional``, returns: then roots cannot be mounted, but the store works.

    A program that came in through standard input or is typed at a prompt cannot be run again.
    """
    if os.geteuid() == 0 or os.environ.get(UNSHARED_VARIABLE):
        return
    attempted = "run this program again in a user namespace"
    if sys.argv[0] in {"", "-"} or not sys.executable:
        raise FailedPrecondition(attempted, "it is not in a file", hint="`orlop unshare` opens a shell there")
    if why := userns.can_unshare():
        if optional:
            return
        raise FailedPrecondition(attempted, why)
    maps, _ = maps_of_user()
    env = environment(os.environ, os.geteuid())
    raise SystemExit(userns.enter([sys.executable, *sys.orig_argv[1:]], env=env, maps=maps))


def maps_of_user() -> tuple[userns.Maps, str]:
    """The id maps that we can have, as podman makes them, and why they are of a single id, if so.

    The reason is empty where there are subordinate ids.
    """
    uid, gid = os.geteuid(), os.getegid()
    subordinate = userns.subordinate_ids(uid)
    if why := userns.why_single_id(uid, subordinate):
        return userns.usual_maps(uid, gid), why
    return userns.usual_maps(uid, gid, subordinate), ""


def environment(environ: Mapping[str, str], uid: int) -> dict[str, str]:
    """The environment inside, for a user who is ``uid`` outside."""
    return {**environ, UNSHARED_VARIABLE: "1", UID_VARIABLE: str(uid)}
