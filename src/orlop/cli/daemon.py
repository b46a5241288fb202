"""``daemon``, and `orlopd`, which is the same with the global options among its own.

Opens the store and hands it to `orlop.service`, which serves until SIGTERM or SIGINT; both are a clean
end, with code 0.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.core import ParameterSource

from orlop.cli.app import global_options
from orlop.cli.configuration import configuration_of, fields_of
from orlop.cli.session import Session, Target, needs_extra, pass_session, verb
from orlop.errors import InvalidArgument

if TYPE_CHECKING:
    from orlop.config import Driver

__all__ = ["daemon_verb", "orlopd"]

_F = TypeVar("_F", bound=Callable[..., object])
_NAMED = (  # options that are fields of ServiceLimits, too: who may do what
    ("--user", "users", "USER", "Who else may do everything."),
    ("--allow-group", "groups", "GROUP", "Whose members may do everything."),
    ("--read-only-user", "read_only_users", "USER", "Who may list and inspect, and change nothing."),
    ("--read-only-group", "read_only_groups", "GROUP", "Whose members may do so."),
    ("--tls-name", "tls_names", "NAME", "Whose certificate may do everything over TLS; '*': any."),
    ("--tls-read-only-name", "tls_read_only_names", "NAME", "Whose certificate may look over TLS."),
)


class _Named(click.Option):
    """An option whose key in a file is a field of `ServiceLimits`, and read as such."""

    def consume_value(self, ctx: click.Context, opts: Mapping[str, Any]) -> tuple[Any, ParameterSource]:
        """As click does, but for what a file says."""
        value, source = super().consume_value(ctx, opts)
        return (None if source is ParameterSource.DEFAULT_MAP else value), source


def _door_options(function: _F) -> _F:
    """Add where the daemon listens, and to whom."""
    options = [
        click.option(
            "--listen",
            metavar="ADDRESS",
            help="unix://PATH, tcp://HOST:PORT, or several with commas.  [default: RUN/socket/orlop.sock]",
        ),
        click.option(
            "--group",
            metavar="GROUP",
            help="Whom the socket belongs to besides root.  [default: orlop, if there is one]",
        ),
        click.option("--tls-cert", metavar="FILE", help="For TCP: the daemon's certificate."),
        click.option("--tls-key", metavar="FILE", help="Its key."),
        click.option("--tls-client-ca", metavar="FILE", help="The authority of the clients' certificates."),
    ]
    options += [
        click.option(flag, name, cls=_Named, metavar=metavar, multiple=True, help=f"{text}  May be repeated.")
        for flag, name, metavar, text in _NAMED
    ]
    for option in reversed(options):
        function = option(function)
    return function


@verb(
    "daemon",
    "orlop daemon",
    "orlop daemon --listen unix:///run/orlop/socket/orlop.sock --group containers",
    "orlop --host unix:///run/orlop/socket/orlop.sock images",
)
@_door_options
@pass_session
def daemon_verb(session: Session, /, listen: str | None, group: str | None, **door: Any) -> None:  # noqa: ANN401
    """Serve the store on a unix socket, or over TLS.

    Whoever may do everything may do what root may do with images and mounts.  Runs in the foreground
    and logs to standard error.  Prepared roots need no daemon: they stay when it stops.
    """
    if session.target.host is not None:
        raise InvalidArgument(
            "start the daemon",
            "--host names a daemon that runs already",
            hint="leave out --host and ORLOP_HOST",
        )
    _serve(session, listen, group, **door)


@click.command(
    "orlopd",
    epilog="Example:\n\n  orlopd --listen unix:///run/orlop/socket/orlop.sock",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@_door_options
@global_options
@click.pass_context
def orlopd(
    ctx: click.Context,
    /,
    listen: str | None,
    group: str | None,
    root: str | None,
    run: str | None,
    insecure_registries: tuple[str, ...],
    driver: Driver | None,
    durable: bool | None,
    limits: tuple[str, ...],
    debug: bool,
    **door: Any,  # noqa: ANN401 - of `_door_options`
) -> None:
    """Serve a store of images on a unix socket, or over TLS; the same as `orlop daemon`."""
    session = ctx.ensure_object(Session)
    session.target = Target(
        root=root,
        run=run,
        insecure_registries=insecure_registries,
        driver=driver,
        durable=durable,
        debug=debug,
        configuration=configuration_of(ctx, limits),
    )
    _serve(session, listen, group, **door)


def _serve(
    session: Session,
    listen: str | None,
    group: str | None,
    *,
    tls_cert: str | None,
    tls_key: str | None,
    tls_client_ca: str | None,
    **named: tuple[str, ...],
) -> None:
    target = session.target
    addresses = (listen or f"unix://{target.run_path}/socket/orlop.sock").split(",")
    attempted = f"listen on {addresses[0]}"
    with needs_extra(attempted, "daemon"):
        from orlop.service.daemon import serve
        from orlop.service.pools import DEFAULT_LIMITS, ServiceLimits
        from orlop.service.tls import ServerTls
    options = [param.name or "" for param in daemon_verb.params]
    limits = fields_of(ServiceLimits, DEFAULT_LIMITS, target.configuration.table("daemon"), beside=options)
    said: dict[str, Any] = {name: values for name, values in named.items() if values}
    tls = None
    if tls_cert or tls_key or tls_client_ca:
        tls = ServerTls.of(tls_cert, tls_key, tls_client_ca, attempted)
    level = "DEBUG" if target.debug else "INFO"
    with session.store() as store, session.registries() as registries:
        serve(
            store.verbs,
            addresses,
            group=group,
            limits=replace(limits, **said),
            tls=tls,
            log_level=level,
            registries=registries,
        )
