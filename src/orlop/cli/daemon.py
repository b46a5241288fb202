"""``daemon``, and `orlopd`, which is the same with the global options among its own.

Opens the store and hands it to `orlop.service`, which serves until SIGTERM or SIGINT; both are a clean
end, with code 0.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from orlop.cli.app import global_options
from orlop.cli.session import Session, Target, needs_extra, pass_session, verb
from orlop.errors import InvalidArgument

if TYPE_CHECKING:
    from orlop.config import Driver

__all__ = ["daemon_verb", "orlopd"]


@verb(
    "daemon",
    "orlop daemon",
    "orlop daemon --listen unix:///run/orlop/socket/orlop.sock --group containers",
    "orlop --host unix:///run/orlop/socket/orlop.sock images",
)
@click.option("--listen", metavar="unix://PATH", help="The socket.  [default: RUN/socket/orlop.sock]")
@click.option(
    "--group", metavar="GROUP", help="Who may use it besides root.  [default: orlop, if there is one]"
)
@pass_session
def daemon_verb(session: Session, listen: str | None, group: str | None) -> None:
    """Serve the store on a unix socket.

    Whoever may use the socket may do what root may do with images and mounts.  Runs in the foreground
    and logs to standard error.  Prepared roots need no daemon: they stay when it stops.
    """
    if session.target.host is not None:
        raise InvalidArgument(
            "start the daemon",
            "--host names a daemon that runs already",
            hint="leave out --host and ORLOP_HOST",
        )
    _serve(session, listen, group)


@click.command(
    "orlopd",
    epilog="Example:\n\n  orlopd --listen unix:///run/orlop/socket/orlop.sock",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.option("--listen", metavar="unix://PATH", help="The socket.  [default: RUN/socket/orlop.sock]")
@click.option(
    "--group", metavar="GROUP", help="Who may use it besides root.  [default: orlop, if there is one]"
)
@global_options
@click.pass_context
def orlopd(
    ctx: click.Context,
    listen: str | None,
    group: str | None,
    root: str | None,
    run: str | None,
    insecure_registries: tuple[str, ...],
    driver: Driver | None,
    durable: bool | None,
    debug: bool,
) -> None:
    """Serve a store of images on a unix socket; the same as `orlop daemon`."""
    session = ctx.ensure_object(Session)
    session.target = Target(
        root=root,
        run=run,
        insecure_registries=insecure_registries,
        driver=driver,
        durable=durable,
        debug=debug,
    )
    _serve(session, listen, group)


def _serve(session: Session, listen: str | None, group: str | None) -> None:
    target = session.target
    address = listen or f"unix://{target.run_path}/socket/orlop.sock"
    with needs_extra(f"listen on {address}", "daemon"):
        from orlop.service.daemon import serve
    with session.store() as store:
        serve(store.verbs, address, group=group, log_level="DEBUG" if target.debug else "INFO")
