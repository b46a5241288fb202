"""``unshare``: a shell in which prepared roots can be mounted; and how the other verbs get there.

The work is `orlop.rootless`'s.  A verb that runs in the namespace is the same program, started again;
one that cannot get there runs where it is.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import PurePath

from orlop import rootless
from orlop.cli import declared as click
from orlop.cli import output
from orlop.cli.exits import RunFailed
from orlop.cli.session import PASSING, verb
from orlop.errors import Error, FailedPrecondition, from_oserror
from orlop.linux import userns

__all__ = ["reenter", "unshare_verb"]

_OUTSIDE = {"unshare", "version"}  # verbs that go there by themselves, or have no business there


@verb(
    "unshare",
    "orlop unshare",
    "orlop unshare sh -c 'orlop mount ~/rootfs && ls ~/rootfs'",
    "orlop unshare rm -rf ~/rootfs",
    options_first=True,
)
@click.argument("command", metavar="[COMMAND [ARG]...]", nargs=-1, type=click.UNPROCESSED)
@click.option("--single-id", is_flag=True, help="Map no id but your own; /etc/subuid does not matter.")
def unshare_verb(command: tuple[str, ...], single_id: bool) -> int:
    """Open a shell where prepared roots can be mounted without root.

    Runs a command, or $SHELL, as root of a user namespace.  There you are 0, and your subordinate ids
    (/etc/subuid, /etc/subgid) are 1 and up.  What is mounted there shows to nobody else, and goes with
    the last program there.  Ends with the command's exit code; with 125 if orlop itself failed.
    """
    argv = command or (os.environ.get("SHELL") or "/bin/sh",)
    try:
        if os.geteuid() == 0:
            here = "root" if userns.in_initial_namespace() else "root of a user namespace"
            output.note(f"you are {here} already: {argv[0]} runs as it is")
            return _become(argv)
        if why := userns.can_unshare():
            raise FailedPrecondition("unshare", why)
        maps, lacking = rootless.maps_of_user()
        if single_id:
            maps, lacking = userns.usual_maps(os.geteuid(), os.getegid()), ""
        if lacking:
            output.note(f"only your own id is mapped: {lacking}")
        output.flush()
        return userns.enter(argv, env=rootless.environment(os.environ, os.geteuid()), maps=maps)
    except Error as exc:
        raise RunFailed from exc


def _become(argv: tuple[str, ...]) -> int:
    output.flush()
    sys.stderr.flush()
    for signum in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(signum, signal.SIG_DFL)  # Python ignores them, other programs should not
    try:
        os.execvp(argv[0], argv)  # noqa: S606 - no shell is wanted
    except OSError as exc:
        error = from_oserror(f"run {argv[0]}", exc)
        error.details["exit_code"] = "127" if isinstance(exc, FileNotFoundError) else "126"
        raise error from exc


def reenter(name: str) -> None:
    """Run this command line, of the verb of this name, again in a user namespace, and exit with its code.

    Returns where that is of no use: for root, in the namespace, where namespaces cannot be made (the verb
    then does what it can), and where this process is not orlop's own program but one that calls `main`.
    To be called before there are threads, and not with ``--host``.
    """
    program = PurePath(sys.argv[0])
    ours = program.name in {"orlop", "orlopd"} or program.parts[-2:] == ("orlop", "__main__.py")
    if ours and name not in _OUTSIDE:
        output.flush()
        os.environ[PASSING] = "1"
        rootless.unshare(optional=True)
        os.environ.pop(PASSING)
