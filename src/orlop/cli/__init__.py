"""The command line: `orlop` and `orlopd`.  Its Python names are not part of the public API.

The library does the work; this room reads options and the environment, shows progress and prints
results.  Standard output carries results, standard error everything else.  `exits` maps errors to
exit codes, `frontpage` has the table of verbs and the page of help, and most other modules hold a family of
verbs.

Invariant: what a verb does not need is not imported (a list or a help text must not pay for RPC).
"""

from __future__ import annotations

TYPE_CHECKING = False  # `typing` is more than a page of help takes
if TYPE_CHECKING:
    from collections.abc import Sequence

    from orlop.cli.session import OpenStore, Runner

__all__ = ["daemon_main", "main"]


def main(
    argv: Sequence[str] | None = None,
    *,
    open_store: OpenStore | None = None,
    runner: Runner | None = None,
) -> int:
    """Run ``orlop`` with ``argv`` and return its exit code.

    Without ``argv`` it is this process's, and the process is orlop's: it ends with that code (`own`).

    ``open_store`` replaces what opens the store or connects to the daemon, ``runner`` the OCI runtime.
    """
    if argv is not None:
        from orlop.cli.app import app, run_command

        return run_command(app, "orlop", argv, opener=open_store, runner=runner)
    try:
        import sys

        from orlop.cli.frontpage import answer

        answered = answer(sys.argv[1:])
        if answered is not None:
            return answered

        from orlop.cli import own

        own.begin()
        from orlop.cli.app import app, run_command

        code = run_command(app, "orlop", None, opener=open_store, runner=runner)
        own.end(code)
    except KeyboardInterrupt:  # while this was imported; nothing had begun
        return 130
    return code


def daemon_main(argv: Sequence[str] | None = None) -> int:
    """Run ``orlopd``: ``orlop daemon``, with the global options among its own."""
    from orlop.cli.app import run_command
    from orlop.cli.daemon import orlopd

    return run_command(orlopd, "orlopd", argv)
