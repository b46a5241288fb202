"""Configuration for a run of the command line: files, then the environment, then flags.

The options ``--config``, ``--limit`` and ``--set``, and what of the result click needs to know: it has the
last word on what a flag, a variable and a file say of one option, as for each it knows which of them spoke.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping

from orlop.cli import declared as click
from orlop.cli.environment import config_files, whose
from orlop.cli.exits import Misuse
from orlop.cli.frontpage import OPTIONS, VERBS
from orlop.config.files import (
    Configuration,
    Given,
    meant,
    read_file,
    read_limit,
    read_set,
    read_variables,
)
from orlop.config.values import convert, kinds_of, of_text
from orlop.errors import Error, InvalidArgument, NotFound, PermissionDenied
from orlop.hints import Any, TypeVar, cast
from orlop.values import replace

__all__ = [
    "configuration_again",
    "configuration_of",
    "configuration_options",
    "configured",
    "fields_of",
]

_F = TypeVar("_F", bound=Callable[..., object])
_T = TypeVar("_T")
_KEY = "orlop.configuration"
_NAMED = "orlop.configuration.file"
_TOLD = "orlop.configuration.told"
_FAULT = "orlop.configuration.fault"
_TOLERANT = ("config", "doctor")  # verbs that say what is wrong with a configuration
_DAEMONS = (
    "tls_cert",
    "tls_key",
    "tls_ca",
    "host",
)  # that a client is told of its daemon: none of a daemon's
_CLIENTS = (
    "root",
    "run",
    "host",
    "tls_cert",
    "tls_key",
    "tls_ca",
    "driver",
    "durable",
    "insecure_registries",
)
_GROUPS = {  # verbs of verbs that show progress
    "artifact": ("pull", "push"),
    "checkpoint": ("create", "rollback"),
    "share": ("add", "renew"),
}
_OWN = ("root", "run")  # of a system's file these are for root alone: a user has folders of his own


def configured(named: str | None, environ: Mapping[str, str], uid: int) -> Configuration:
    """What the files say, and over them the environment; what options of their own have, they read.

    ``named`` is the file of ``--config``, in place of the system's and the user's.
    """
    found = Configuration()
    if named is not None:
        found = found.over(read_file(named))
    else:
        system, user = config_files(environ)
        values = _read_if_there(system)
        if whose(environ, uid) != 0:
            values = {name: value for name, value in values.items() if name not in _OWN}
        found = found.over(values).over(_read_if_there(user))
    return found.over(read_variables(environ, own=False))


def _read_if_there(path: str) -> dict[str, Given]:
    if not os.access(path, os.R_OK):
        return {}
    try:
        return read_file(path, trusted=False)
    except NotFound:
        return {}
    except PermissionDenied as exc:
        exc.hint = f"{exc.hint}, or use it all the same with --config {path}"
        raise


def configuration_options(function: _F) -> _F:
    """Add ``--config``, ``--limit`` and ``--set``."""
    function = click.option(
        "--set",
        "told",
        metavar="KEY=VALUE",
        multiple=True,
        is_eager=True,
        expose_value=False,
        callback=_tell,
        help=OPTIONS["told"][1],
    )(function)
    function = click.option(
        "--limit",
        "limits",
        metavar="NAME=VALUE",
        multiple=True,
        is_eager=True,
        callback=_tell,
        help=OPTIONS["limits"][1],
    )(function)
    return click.option(
        "--config",
        metavar="FILE",
        envvar="ORLOP_CONFIG",
        is_eager=True,
        expose_value=False,
        callback=_configure,
        help=OPTIONS["config"][1],
    )(function)


def _configure(ctx: click.Context, param: click.Parameter, value: str | None) -> None:
    if ctx.resilient_parsing:  # completions: no error, whatever a file says
        return
    ctx.meta[_NAMED] = value
    try:
        ctx.meta[_KEY] = configured(value, os.environ, os.geteuid())
    except Error as exc:  # raised once the verb is known: some are for just that
        ctx.meta[_FAULT] = exc
    _hand_on(ctx)


def _tell(ctx: click.Context, param: click.Parameter, value: tuple[str, ...]) -> tuple[str, ...]:
    """Take ``--limit`` and ``--set``, of which the later speaks over the earlier of the same name."""
    if ctx.resilient_parsing:
        return value
    told: dict[str, Given] = ctx.meta.setdefault(_TOLD, {})
    for text in value:
        told |= read_set(text) if param.name == "told" else read_limit(text, "--limit")
    _hand_on(ctx)
    return value


def _hand_on(ctx: click.Context) -> None:
    """Have click know what files, variables and ``--set`` say of options."""
    found = _found(ctx)
    known = {name: item.value for name, item in found.given.items() if "." not in name and item.value != ""}
    if not click.is_group(ctx.command):  # orlopd, whose TLS is not that of clients
        client = {name: value for name, value in known.items() if name not in _DAEMONS}
        ctx.default_map = {**client, **_daemon_options(found)}
        return
    ctx.default_map = known


def _found(ctx: click.Context) -> Configuration:
    """All that was said but by options of their own."""
    found: Configuration = ctx.meta.get(_KEY) or Configuration()
    return found.over(ctx.meta.get(_TOLD, {}))


def configuration_of(ctx: click.Context) -> Configuration:
    """All that was said: by files, by the environment, by ``--set``, and by the options of ``ctx``.

    Raises what the files' reading raised, but for the verbs that say what is wrong with them.  From here on
    click knows of the files only what verbs may be told by them.
    """
    fault: Error | None = ctx.meta.get(_FAULT)
    if fault is not None and ctx.invoked_subcommand not in _TOLERANT:
        raise fault
    told: dict[str, Given] = {}
    for param in ctx.command.params:
        name = param.name or ""
        source = click.source_of(ctx, name)
        if name not in _CLIENTS or (name in _DAEMONS and not click.is_group(ctx.command)):
            continue
        if source == "COMMANDLINE":
            told[name] = Given(value=ctx.params[name], source=param.opts[0].partition("/")[0], kind="option")
        elif source == "ENVIRONMENT":
            told[name] = Given(value=ctx.params[name], source=str(param.envvar), kind="variable")
    found = _found(ctx)
    _check_whose(ctx, found)
    ctx.default_map = _of_verbs(found)
    return replace(found.over(told), named=ctx.meta.get(_NAMED), fault=fault)


def _check_whose(ctx: click.Context, found: Configuration) -> None:
    """Refuse to set here what is a daemon's; as `app` does for the options that have a name."""
    asked = ctx.params.get("host") is not None and ctx.invoked_subcommand != "daemon"
    if not asked or click.source_of(ctx, "root") == "COMMANDLINE":
        return
    theirs = [name for name, item in found.given.items() if item.source == "--set" and name not in _CLIENTS]
    if theirs:
        raise Misuse(f"{theirs[0]} is the daemon's business", "leave out --set or --host", ctx=ctx)


def _of_verbs(found: Configuration) -> dict[str, Any]:
    """What verbs' own options are where nobody says otherwise."""
    verbs: dict[str, Any] = {}
    progress = found.get("progress")
    if progress is not None:
        verbs = {verb: {"progress": progress} for table in VERBS.values() for verb in table}
        for group, inner in _GROUPS.items():
            verbs[group] |= {verb: {"progress": progress} for verb in inner}
    return {**verbs, "daemon": _daemon_options(found)}


def configuration_again(ctx: click.Context) -> Configuration:
    """As `configuration_of`, with the files as they are now; ``ctx`` is the one that it had."""
    ctx.meta[_KEY] = configured(ctx.meta.get(_NAMED), os.environ, os.geteuid())
    ctx.meta.pop(_FAULT, None)
    return configuration_of(ctx)


def fields_of(cls: type[_T], default: _T, table: Mapping[str, Given], *, beside: Mapping[str, type]) -> _T:
    """A dataclass from what was given of ``[daemon]``; names in ``beside`` are options, not its fields.

    Raises `InvalidArgument` for a name that is neither, and for a value that cannot be.
    """
    kinds = kinds_of(cls)
    values: dict[str, Any] = {}
    for name, given in table.items():
        dotted, attempted = f"daemon.{name}", f"read {given.source}"
        if name in kinds:
            values[name] = convert(_plain(given, kinds[name]), kinds[name], dotted, attempted)
        elif name in beside:
            convert(_plain(given, beside[name]), beside[name], dotted, attempted)
        else:
            hint = meant(dotted, {f"daemon.{known}" for known in {*kinds, *beside}})
            raise InvalidArgument(attempted, f"there is no setting {dotted[:100]!r}", hint=hint)
    try:
        return cast("_T", replace(cast("Any", default), **values))
    except InvalidArgument as exc:  # its own rules; say who broke them
        source = next((table[name].source for name in values if f"daemon.{name} " in exc.reason), "")
        raise InvalidArgument(
            f"read {source}" if source else exc.attempted, exc.reason, hint=exc.hint
        ) from exc


def _plain(given: Given, kind: Any) -> object:  # noqa: ANN401 - a type
    """A value as TOML would have it."""
    is_text = isinstance(given.value, str) and given.kind != "file"
    return of_text(given.value, kind) if is_text else given.value


def _daemon_options(found: Configuration) -> dict[str, Any]:
    return {name: given.value for name, given in found.table("daemon").items() if given.value != ""}
