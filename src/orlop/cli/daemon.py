"""``daemon``, and `orlopd`, which is the same with the global options among its own.

Opens the store and hands it to `orlop.service`, which serves until SIGTERM or SIGINT; both are a clean
end, with code 0.  SIGHUP has the configuration read again: files anew, options and the environment as they
were.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, runtime_checkable

from click.core import ParameterSource

from orlop.cli import declared as click
from orlop.cli import output, own
from orlop.cli.app import global_options
from orlop.cli.configuration import configuration_again, configuration_of, fields_of
from orlop.cli.session import Session, Target, needs_extra, pass_session, verb
from orlop.errors import InvalidArgument
from orlop.values import replace

if TYPE_CHECKING:
    from orlop.config import Configuration, Driver, Settings
    from orlop.service.logs import LogFormat
    from orlop.service.pools import ServiceLimits
    from orlop.service.process import Fresh
    from orlop.service.systemd import Supervision
    from orlop.service.watching import CallWatcher

__all__ = ["daemon_verb", "orlopd"]

_F = TypeVar("_F", bound=Callable[..., object])
LOG_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")
# Settings of a file that a daemon has for good, and says so when they differ.
_FOR_GOOD = (
    *(
        "root",
        "run",
        "daemon.listen",
        "daemon.group",
        "daemon.log_format",
        "daemon.metrics",
        "daemon.tracing",
    ),
    *("daemon.tls_cert", "daemon.tls_key", "daemon.tls_client_ca"),
)
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
        click.option(
            "--log-format",
            type=click.Choice(["text", "json"]),
            help="How to log: lines for people, or JSON objects.  [default: text]",
        ),
        click.option(
            "--metrics", metavar="ADDRESS", help="Serve Prometheus metrics: 127.0.0.1:9464, or unix:///PATH."
        ),
        click.option("--tracing", is_flag=True, help="Make OpenTelemetry spans, for the SDK that is set up."),
        click.option(
            "--log-level",
            type=click.Choice(LOG_LEVELS, case_sensitive=False),
            help="What to log, from there up.  [default: INFO, with --debug DEBUG]",
        ),
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
    and logs to standard error.  Prepared roots need no daemon: they stay when it stops.  SIGHUP makes
    it read its configuration again.  Sockets that systemd passes are served in place of the default.
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
        configuration=configuration_of(ctx),
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
    log_level: str | None,
    log_format: str | None,
    metrics: str | None,
    tracing: bool,
    **named: tuple[str, ...],
) -> None:
    target = session.target
    own.stay()
    attempted = f"listen on {listen}" if listen else "serve"
    with needs_extra(attempted, "daemon"):
        from orlop.service.process import begin_log, serve
        from orlop.service.tls import ServerTls
    level = log_level or _usual_level(target)
    form: LogFormat = "json" if log_format == "json" else "text"
    begin_log(level, form)  # before the store is opened, which may have something to say
    supervision = _supervision()
    addresses = listen.split(",") if listen else []
    if not addresses and not supervision.sockets:
        addresses = [f"unix://{target.run_path}/socket/orlop.sock"]
    said: dict[str, Any] = {name: values for name, values in named.items() if values}
    limits = replace(_limits(target.configuration), **said)
    tls = None
    if tls_cert or tls_key or tls_client_ca:
        tls = ServerTls.of(tls_cert, tls_key, tls_client_ca, attempted)
    with (
        session.store() as store,
        session.registries() as registries,
        _watchers(metrics, tracing) as watchers,
    ):
        verbs = store.verbs
        serve(
            verbs,
            addresses,
            group=group,
            limits=limits,
            tls=tls,
            log_level=level,
            log_format=form,
            watchers=watchers,
            registries=registries,
            supervision=supervision,
            reread=_rereader(click.get_current_context(), target, said, (verbs, registries)),
        )


@contextmanager
def _watchers(metrics: str | None, tracing: bool) -> Iterator[tuple[CallWatcher, ...]]:
    """What watches the daemon, as options say; nothing is imported for what was not asked for."""
    found: list[CallWatcher] = []
    with ExitStack() as undo:
        if metrics:
            with needs_extra("serve metrics", "metrics"):
                from orlop.telemetry.metrics import Metrics
            from orlop.telemetry.serving import parse, serving

            shown = Metrics()
            undo.enter_context(serving(parse(metrics), shown.text))
            found.append(shown)
        if tracing:
            with needs_extra("make spans", "tracing"):
                from orlop.telemetry.traces import Traces, is_set_up
            if not is_set_up():
                output.note("no OpenTelemetry SDK is set up, so spans go nowhere: see docs/metrics.md")
            found.append(Traces())
        yield tuple(found)


def _usual_level(target: Target) -> str:
    return "DEBUG" if target.debug else "INFO"


def _limits(configuration: Configuration) -> ServiceLimits:
    from orlop.service.pools import DEFAULT_LIMITS, ServiceLimits

    options = {
        param.name or "": bool if isinstance(param, click.Option) and param.is_flag else str
        for param in daemon_verb.params
    }
    return fields_of(ServiceLimits, DEFAULT_LIMITS, configuration.table("daemon"), beside=options)


def _supervision() -> Supervision:
    """What a service manager has handed over; out of the environment, so that no child sees it.

    Where we have entered a user namespace it was meant for the process that did so, and waits for us.
    """
    from orlop.rootless import UNSHARED_VARIABLE
    from orlop.service.systemd import VARIABLES, Supervision

    pids = {os.getpid()}
    if UNSHARED_VARIABLE in os.environ:
        pids.add(os.getppid())
    found = Supervision.of(os.environ, pids)
    for name in VARIABLES:
        os.environ.pop(name, None)
    return found


def _rereader(
    ctx: click.Context, target: Target, said: Mapping[str, Any], parts: tuple[object, ...]
) -> Callable[[], Fresh]:
    """What reads the files again; ``said`` are options, which stand above them, ``parts`` take settings."""
    from orlop.service.process import Fresh

    settings = target.settings()
    by_option = ctx.get_parameter_source("log_level") is ParameterSource.COMMANDLINE

    def reread() -> Fresh:
        found = configuration_again(ctx.find_root())
        # What files say of options was in their place, and is asked of the files now.
        now = replace(target, driver=None, durable=None, insecure_registries=(), configuration=found)
        fresh = now.settings()
        level = ctx.params["log_level"] if by_option else found.get("daemon.log_level")
        if level is not None and str(level).upper() not in LOG_LEVELS:
            raise InvalidArgument(
                f"read {found.source('daemon.log_level')}",
                f"daemon.log_level is {level!r}",
                hint=f"one of {', '.join(LOG_LEVELS)}",
            )

        def apply() -> None:
            for part in parts:
                if isinstance(part, _Reconfigures):
                    part.reconfigure(fresh)

        later = [name for name in _FOR_GOOD if found.get(name) != target.configuration.get(name)]
        if fresh.durable != settings.durable:
            later.append("durable")
        return Fresh(
            limits=replace(_limits(found), **said),
            log_level=level or _usual_level(target),
            apply=apply,
            later=tuple(later),
        )

    return reread


@runtime_checkable
class _Reconfigures(Protocol):
    """What can go by other settings while it is used."""

    def reconfigure(self, settings: Settings) -> object:
        """Take them over, or raise and stay as it is."""
        ...
