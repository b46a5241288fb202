"""Configuration for a run of the command line: files, then the environment, then flags.

The options ``--config`` and ``--limit``, and what of the result click needs to know: it has the last word
on what a flag, a variable and a file say of one option, as for each it knows which of them spoke.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar, cast

import click
from click.core import ParameterSource

from orlop.cli.environment import config_files, whose
from orlop.cli.frontpage import OPTIONS
from orlop.config.files import PLACES, Configuration, Given, meant, read_file, read_limit
from orlop.config.values import convert, kinds_of
from orlop.errors import InvalidArgument, NotFound, PermissionDenied
from orlop.values import replace

__all__ = ["configuration_again", "configuration_of", "configuration_options", "configured", "fields_of"]

_F = TypeVar("_F", bound=Callable[..., object])
_T = TypeVar("_T")
_KEY = "orlop.configuration"
_NAMED = "orlop.configuration.file"
_LIMITS = "ORLOP_LIMITS"
_OWN = ("root", "run")  # of a system's file these are for root alone: a user has folders of his own


def configured(named: str | None, environ: Mapping[str, str], uid: int) -> Configuration:
    """What the files say, and over them the variable ORLOP_LIMITS.

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
    for text in environ.get(_LIMITS, "").replace(",", " ").split():
        found = found.over(read_limit(text, _LIMITS))
    return found


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
    """Add ``--config`` and ``--limit``."""
    function = click.option(
        "--limit",
        "limits",
        metavar="NAME=VALUE",
        multiple=True,
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
    found = configured(value, os.environ, os.geteuid())
    ctx.meta[_NAMED] = value
    known = {name: found.get(name) for name in found.given if "." not in name}
    ctx.meta[_KEY] = found
    ctx.default_map = known if isinstance(ctx.command, click.Group) else {**_daemon_options(found), **known}


def configuration_of(ctx: click.Context, limits: Iterable[str]) -> Configuration:
    """All that was said: by files, by the environment, by the options of ``ctx``, and by ``--limit``.

    From here on click knows of the files only what the verb `daemon` may be told by them.
    """
    found: Configuration = ctx.meta.get(_KEY) or Configuration()
    told: dict[str, Given] = {}
    for param in ctx.command.params:
        name = param.name or ""
        source = ctx.get_parameter_source(name)
        if source in (ParameterSource.COMMANDLINE, ParameterSource.ENVIRONMENT) and _is_setting(name):
            by = param.opts[0] if source is ParameterSource.COMMANDLINE else str(param.envvar)
            told[name] = Given(value=ctx.params[name], source=by)
    for text in limits:
        told |= read_limit(text, "--limit")
    ctx.default_map = {"daemon": _daemon_options(found)}
    return found.over(told)


def configuration_again(ctx: click.Context) -> Configuration:
    """As `configuration_of`, with the files as they are now; ``ctx`` is the one that it had."""
    ctx.meta[_KEY] = configured(ctx.meta.get(_NAMED), os.environ, os.geteuid())
    return configuration_of(ctx, ctx.params["limits"])


def fields_of(cls: type[_T], default: _T, table: Mapping[str, Given], *, beside: Mapping[str, type]) -> _T:
    """A dataclass from what was given of ``[daemon]``; names in ``beside`` are options, not its fields.

    Raises `InvalidArgument` for a name that is neither, and for a value that cannot be.
    """
    kinds = kinds_of(cls)
    values: dict[str, Any] = {}
    for name, given in table.items():
        dotted, attempted = f"daemon.{name}", f"read {given.source}"
        if name in kinds:
            values[name] = convert(given.value, kinds[name], dotted, attempted)
        elif name in beside:
            convert(given.value, beside[name], dotted, attempted)
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


def _is_setting(name: str) -> bool:
    return name in PLACES or name in ("driver", "durable", "insecure_registries")


def _daemon_options(found: Configuration) -> dict[str, Any]:
    return {name: given.value for name, given in found.table("daemon").items()}
