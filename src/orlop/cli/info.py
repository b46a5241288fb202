"""``info``: the store and what serves it, what is configured, what helps, the disk, versions.

Each part is found out for itself: one that cannot be says so and hides no other.  Only a store that cannot be
opened is an error, once all the rest was shown.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Mapping

from orlop import __version__
from orlop.cli import output
from orlop.cli.exits import one_line
from orlop.cli.session import Session, formats, pass_session, verb
from orlop.config import DEFAULT_LIMITS
from orlop.errors import Error
from orlop.hints import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from orlop.config import Settings

__all__ = ["info_verb"]

_TABLES = (  # what is shown below the other fields
    *("drivers", "features", "limits", "configuration", "registries", "registry_files"),
    *("disk", "helpers", "versions", "unknown"),
)
_LIBRARIES = ("click", "isal", "msgspec", "urllib3", "rich", "grpcio", "protobuf", "textual")

_T = dict[str, Any]


@verb(
    "info",
    "orlop info --json | jq -r .driver",
    "orlop info --format '{{.driver}} on {{.disk.type}}'",
)
@formats(names="")
@pass_session
def info_verb(session: Session, form: str = "table") -> None:
    """Show the store and what serves it.

    Its folders, driver and format, and how much there is; then each driver with the reason why it works
    here or does not, what was found of the kernel's features, and the limits that are not the default.  Of
    this machine the configuration that is not the default, with where each value came from; the registries,
    and the files that say where they are (docs/registries.md); helper programs, and what each is for; the
    disk; versions.  The driver is the one that new roots get: --driver, ORLOP_DRIVER or a configuration file
    choose another.

    `orlop doctor` says what of this is not well, and what to do about it.
    """
    fields, failures = {}, dict[str, str]()
    fault: Error | None = None
    try:
        with session.store() as store:
            fields = output.plain(store.info())
    except Error as exc:
        fault = exc
        failures["store"] = str(exc)
    if session.target.host is not None:
        fields["host"] = session.target.host
    parts: dict[str, Callable[[], Any]] = {
        "configuration": lambda: _configuration(session),
        "registries": lambda: _registries(session),
        "registry_files": lambda: _registry_files(session),
        "disk": lambda: _disk(session),
        "helpers": lambda: _helpers(session),
        "versions": _versions,
    }
    if session.target.host is not None:  # what is the daemon's is not this machine's to tell
        parts = {name: parts[name] for name in ("configuration", "versions")}
    for name, part in parts.items():
        try:
            fields[name] = part()
        except Error as exc:
            failures[name] = str(exc)
        except OSError as exc:
            failures[name] = f"{exc.filename or ''} {exc.strerror}".strip()
    if failures:
        fields["unknown"] = failures
    output.show_record(fields, form=form, shown=lambda: _show(fields, session))
    if fault is not None:
        raise fault


def _configuration(session: Session) -> list[_T]:
    """The keys that somebody gave."""
    from orlop.cli.config import OF_CLIENTS, entries

    found = [entry for entry in entries(session.target, os.environ) if entry.changed]
    if session.target.host is not None:  # the rest is the daemon's own business
        found = [entry for entry in found if entry.key in OF_CLIENTS]
    return [{"key": one.key, "value": one.value, "source": one.source, "line": one.line} for one in found]


def _registries(session: Session) -> list[str]:
    """Those that settings and files name."""
    from orlop.registry.finding.hostfiles.folders import Files

    settings: Settings = session.target.settings()
    conf = Files().conf(settings.registries_conf)
    search = settings.search_registries
    names = [*settings.insecure_registries, *(search if isinstance(search, tuple) else ())]
    names += [*(conf.search or ()), *(one.prefix for one in conf.namespaces.values())]
    return list(dict.fromkeys(names))


def _registry_files(session: Session) -> list[str]:
    from orlop.registry.finding.hostfiles.folders import in_force

    settings = session.target.settings()
    return in_force(settings.hosts_dirs, settings.registries_conf)


def _disk(session: Session) -> _T:
    from orlop.diagnosis.folders import disk_of

    folder = session.target.root_path
    while not os.path.isdir(folder):
        folder = os.path.dirname(folder)
    found: _T = output.plain(disk_of(folder))
    return found


def _helpers(session: Session) -> list[_T]:
    """Programs that help, and the credential helpers that files name."""
    from orlop.diagnosis.programs import Helper, credential_helpers, found_helpers
    from orlop.linux.programs import find_helper

    settings = session.target.settings()
    named = credential_helpers(settings.auth_files, settings.limits.auth_file_size)
    helpers = [
        *found_helpers(os.environ),
        *(
            Helper(
                name=name,
                purpose=f"credentials: {file} names it",
                package="",
                path=find_helper(name, settings.helper_path) or "",
            )
            for name, file in named.items()
        ),
    ]
    return [output.plain(helper) for helper in helpers]


def _versions() -> dict[str, str]:
    import sqlite3
    import ssl
    from importlib import metadata

    found = {
        "orlop": __version__,
        "python": platform.python_version(),
        "kernel": os.uname().release,
        "sqlite": sqlite3.sqlite_version,
        "openssl": ssl.OPENSSL_VERSION.split()[1] if len(ssl.OPENSSL_VERSION.split()) > 1 else "",
    }
    for name in _LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = ""
    return found


def _show(fields: Mapping[str, Any], session: Session) -> None:
    _pairs({name: value for name, value in fields.items() if name not in _TABLES})
    here = session.target.configuration if session.target.host is None else None
    default = DEFAULT_LIMITS.as_dict()
    limits: list[output.Column] = [
        ("LIMIT", lambda pair: pair[0]),
        ("VALUE", lambda pair: str(pair[1])),
        ("DEFAULT", lambda pair: str(default.get(pair[0], ""))),
    ]
    if here is not None:
        limits.append(("FROM", lambda pair: here.source(f"limits.{pair[0]}")))
    # A map that came from a daemon has no order.
    _table(fields.get("drivers"), ("DRIVER", "name"), ("WORKS", "available"), ("REASON", "reason"))
    _listed(
        sorted(fields.get("features", {}).items()),
        [("FEATURE", lambda one: one[0]), ("FOUND", lambda one: one[1])],
    )
    _listed(sorted(fields.get("limits", {}).items()), limits)
    _listed(
        [one for one in fields.get("configuration", []) if not one["key"].startswith("limits.")],
        [
            ("SETTING", lambda one: one["key"]),
            ("VALUE", lambda one: _text(one["value"])),
            ("FROM", lambda one: f"{one['source']}:{one['line']}" if one["line"] else one["source"]),
        ],
    )
    _listed(fields.get("registries", []), [("REGISTRIES", str)])
    _listed(fields.get("registry_files", []), [("REGISTRIES ARE READ FROM", str)])
    _table(fields.get("helpers"), ("HELPER", "name"), ("PATH", "path"), ("FOR", "purpose"))
    if fields.get("disk"):
        _listed(_of_disk(fields["disk"]), [("DISK", lambda one: one[0]), ("FOUND", lambda one: one[1])])
    versions = [(name, text or "not installed") for name, text in fields.get("versions", {}).items()]
    _listed(versions, [("SOFTWARE", lambda one: one[0]), ("VERSION", lambda one: one[1])])
    unknown = list(fields.get("unknown", {}).items())
    _listed(unknown, [("COULD NOT BE FOUND OUT", lambda one: one[0]), ("REASON", lambda one: one[1])])


def _of_disk(disk: Mapping[str, Any]) -> list[tuple[str, str]]:
    inodes = f"{disk['free_files']} of {disk['files']}" if disk["files"] else "not counted"
    return [
        ("file system", f"{disk['type']} at {disk['mount']} ({disk['source']})"),
        ("options", ", ".join(disk["options"]) or "none that harm"),
        ("free", f"{output.size_text(disk['free'])} of {output.size_text(disk['size'])}"),
        ("free inodes", inodes),
        ("reflink", _known(disk["reflink"])),
        ("journal", _known(disk["journal"])),
    ]


def _known(value: object) -> str:
    return "unknown" if value is None else output.yes_no(value)


def _text(value: object) -> str:
    from orlop.config.keys import shown

    return shown(tuple(value) if isinstance(value, list) else value) or "-"


def _pairs(fields: Mapping[str, Any]) -> None:
    if fields:
        width = max(map(len, fields))
        output.write("".join(f"{key:<{width}}  {one_line(str(value))}\n" for key, value in fields.items()))


def _table(items: Any, *columns: tuple[str, str]) -> None:  # noqa: ANN401 - as JSON has them
    def cell(name: str) -> Callable[[Any], str]:
        return lambda one: output.yes_no(one[name]) if isinstance(one[name], bool) else one[name] or "-"

    _listed(items or [], [(title, cell(name)) for title, name in columns])


def _listed(items: list[Any], columns: list[output.Column]) -> None:
    if items:
        output.write("\n")
        output.show_list(items, columns, form="table", names=str)
