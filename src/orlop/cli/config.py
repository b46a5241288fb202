"""``config``: what is configured and by whom, what is wrong with it, and what there is to configure.

No store is opened.  With --host it is still this machine's configuration: a daemon's is known where it runs.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping

from orlop.cli import declared as click
from orlop.cli import output
from orlop.cli.exits import one_line
from orlop.cli.frontpage import USAGE
from orlop.cli.session import Session, formats, pass_session, verb
from orlop.errors import NotFound
from orlop.hints import TYPE_CHECKING, Any
from orlop.values import dataclass, fields

if TYPE_CHECKING:
    from orlop.cli.session import Target
    from orlop.config.keys import Key

__all__ = ["OF_CLIENTS", "Entry", "config_verb", "entries", "key_json"]

OF_CLIENTS = ("host", "tls_cert", "tls_key", "tls_ca", "progress", "color")
"""The keys that count where a daemon is asked."""

_HIDDEN = "(hidden)"
# Variables that are not orlop's own, and the keys that they speak for where nobody has given those.
_FOREIGN: Mapping[str, tuple[str, ...]] = {
    "auth_files": ("REGISTRY_AUTH_FILE", "DOCKER_CONFIG"),
    "auth_config": ("DOCKER_AUTH_CONFIG",),
    "helper_path": ("PATH",),
    "registries_conf": ("CONTAINERS_REGISTRIES_CONF",),
    "proxy.http": ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"),
    "proxy.https": ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"),
    "proxy.no": ("NO_PROXY", "no_proxy"),
}
_ABOVE_FILES = ("auth_files", "auth_config")  # of these the machine's variables speak over files


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A key as it is in force.

    ``source`` is ``default``, a file, a variable or an option; ``line`` that of a file, or 0.  ``changed``
    tells whether anybody gave it.  A secret's value is not in it.
    """

    key: str
    value: Any
    source: str
    line: int = 0
    changed: bool = False

    @property
    def place(self) -> str:
        """The source with its line."""
        return f"{self.source}:{self.line}" if self.line else self.source


def entries(target: Target, environ: Mapping[str, str]) -> list[Entry]:
    """All keys as they are in force, in the order of the reference.  Raises what reading them raises."""
    from orlop.config.files import read_variables
    from orlop.config.keys import keys

    configuration = target.configuration
    own = read_variables(
        {name: environ[name] for name in ("ORLOP_PROGRESS", "ORLOP_COLOR") if name in environ}
    )
    configuration = configuration.over(own)
    settings = target.settings()
    effective = {
        **{item.name: getattr(settings, item.name) for item in fields(settings)},
        **{f"proxy.{item.name}": getattr(settings.proxy, item.name) for item in fields(settings.proxy)},
        **{f"limits.{name}": value for name, value in settings.limits.as_dict().items()},
        **_places(target),
    }
    found = []
    for key in keys().values():
        item = configuration.given.get(key.name)
        foreign = _foreign(key.name, environ)
        if foreign and (item is None or (key.name in _ABOVE_FILES and item.kind == "file")):
            source, line, changed = foreign, 0, key.name != "helper_path"
        elif item is not None:
            source, line, changed = item.source, item.line, True
        else:
            source, line, changed = "default", 0, False
        value = effective.get(key.name, item.value if item is not None else key.default)
        found.append(Entry(key=key.name, value=_shown(key, value), source=source, line=line, changed=changed))
    return found


def _foreign(name: str, environ: Mapping[str, str]) -> str:
    return next((one for one in _FOREIGN.get(name, ()) if environ.get(one)), "")


def _places(target: Target) -> dict[str, Any]:
    from orlop.errors import FailedPrecondition

    try:
        run = target.run_path
    except FailedPrecondition as exc:
        run = f"({exc.reason})"
    return {"root": target.root_path, "run": run}


def _shown(key: Key, value: object) -> object:
    """A value without its secrets: of a proxy its password, of credentials all."""
    if not key.secret or not value:
        return value
    if key.name.startswith("proxy."):
        scheme, separator, rest = str(value).rpartition("://")
        user, at, host = rest.rpartition("@")
        return f"{scheme}{separator}{user.partition(':')[0]}:{_HIDDEN}@{host}" if at else value
    return _HIDDEN


@click.group(
    "config",
    invoke_without_command=True,
    epilog="\b\nExamples:\n  orlop config show --changed\n  orlop config check\n"
    "  orlop config example > ~/.config/orlop/config.toml",
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.pass_context
def config_verb(ctx: click.Context) -> None:
    """Show what is configured and by whom, and what is wrong with it.

    Files, the environment and options say the same things, the later over the earlier:
    docs/configuration.md.
    """
    if ctx.invoked_subcommand is None:
        output.write(ctx.get_help() + "\n")


@verb(
    "show",
    "orlop config show --changed",
    "orlop config show limits",
    "orlop config show downloads --format '{{.value}}'",
    "orlop config show --json | jq '.[] | select(.source != \"default\")'",
)
@click.argument("names", metavar="[KEY|TABLE]...", nargs=-1)
@click.option("--changed", is_flag=True, help="Only what somebody gave: a file, a variable, an option.")
@formats(names="The keys alone, one a line.")
@pass_session
def show_verb(session: Session, names: tuple[str, ...], changed: bool, form: str = "table") -> None:
    """Show what is in force, and where each value came from.

    A file is named with the line.  Passwords are not shown.
    """
    fault = session.target.configuration.fault
    if fault is not None:
        fault.hint = fault.hint or "`orlop config check` tells all that is wrong"
        raise fault
    found = [
        entry for entry in _chosen(entries(session.target, os.environ), names) if entry.changed or not changed
    ]
    columns: list[output.Column] = [
        ("KEY", lambda entry: entry.key),
        ("VALUE", _text),
        ("FROM", lambda entry: entry.place),
    ]
    output.show_list(found, columns, form=form, names=lambda entry: entry.key)


def _text(entry: Entry) -> str:
    from orlop.config.keys import keys, shown

    return shown(entry.value, keys()[entry.key].unit) or "-"


def _chosen(found: list[Entry], names: tuple[str, ...]) -> Iterator[Entry]:
    """Those that are named, by themselves or by their table.  Raises `NotFound`."""
    from orlop.config.files import meant

    known = {entry.key for entry in found}
    tables = {key.rpartition(".")[0] for key in known} - {""}
    for name in names:
        if name not in known | tables:
            raise NotFound(f"show {name[:100]}", "there is no such key", hint=meant(name, known | tables))
    for entry in found:
        if not names or entry.key in names or entry.key.rpartition(".")[0] in names:
            yield entry


@verb("check", "orlop config check", "orlop config check ./orlop.toml", "orlop config check --json | jq .")
@click.argument("file", metavar="[FILE]", required=False)
@click.option("--json", "as_json", is_flag=True, help="JSON; its fields are stable.")
@pass_session
def check_verb(session: Session, file: str | None, as_json: bool) -> int:
    """Say all that is wrong with FILE, or with all that is in force here.

    Keys that are not known, values that cannot be, and what a file names: certificates and folders that are
    not there, registries.conf, hosts.toml and files of credentials that do not parse.  With lines, where they
    can be had.  The exit code is 2 where something is wrong; a note does not count.
    """
    from orlop.cli.environment import config_files
    from orlop.config import Configuration, Settings
    from orlop.diagnosis.configuration import (
        Fault,
        faults_of_file,
        faults_of_variables,
        faults_of_what_is_named,
    )
    from orlop.errors import Error

    named = file or session.target.configuration.named
    files = [named] if named else [path for path in config_files(os.environ) if os.path.lexists(path)]
    faults: list[Fault] = []
    said = Configuration()
    for path in files:
        given, wrong = faults_of_file(path, trusted=bool(named))
        faults += wrong
        said = said.over(given)
    if file is None:
        _, wrong = faults_of_variables(os.environ)
        faults += wrong
    if not any(fault.state == "problem" for fault in faults):
        try:
            faults += faults_of_what_is_named(
                said.settings(Settings()) if file else session.target.settings()
            )
        except Error as exc:  # values that do not go together
            faults.append(Fault(source=", ".join(files), text=exc.reason, hint=exc.hint))
    if as_json:
        output.write_json(faults)
    else:
        output.write("".join(f"{one_line(str(fault))}\n" for fault in faults))
        if not faults:
            output.note(f"{', '.join(files) or 'nothing is configured'}: nothing is wrong")
    return USAGE if any(fault.state == "problem" for fault in faults) else 0


@verb("keys", "orlop config keys", "orlop config keys --format '{{.name}} {{.variable}}'")
@formats(names="The keys alone, one a line.")
def keys_verb(form: str = "table") -> None:
    """List what can be configured, with what each key takes and does."""
    from orlop.config.keys import keys, shown

    columns: list[output.Column] = [
        ("KEY", lambda key: key.name),
        ("TAKES", lambda key: key.takes.replace("`", "")),
        ("DEFAULT", lambda key: key.usual or shown(key.default, key.unit) or "-"),
        ("WHAT IT DOES", lambda key: key.about),
    ]
    output.show_list(list(keys().values()), columns, form=form, names=lambda key: key.name, record=key_json)


def key_json(key: Key) -> dict[str, Any]:
    """A key as JSON has it."""
    return {
        "name": key.name,
        "takes": key.takes.replace("`", ""),
        "default": output.plain(key.default),
        "usual": key.usual,
        "about": key.about,
        "variable": key.variable,
        "option": key.option.rstrip("="),
        "unit": key.unit,
        "secret": key.secret,
    }


@verb("example", "orlop config example > ~/.config/orlop/config.toml")
def example_verb() -> None:
    """Print a file with every key as it is by default, each commented out and explained."""
    from orlop.config.keys import example

    output.write(example())


for _command in (show_verb, check_verb, keys_verb, example_verb):
    config_verb.add_command(_command)
