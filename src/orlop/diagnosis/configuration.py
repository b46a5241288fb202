"""What is wrong with a configuration: all of it at once, with lines, where reading stops at the first.

Files are parsed, keys checked, values tried one by one; then what they name is looked for: folders,
certificates, files about registries and with credentials, which are parsed, too.  Nothing is changed, nobody
is asked.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable, Iterator, Mapping
from difflib import get_close_matches
from typing import Any, Literal

from orlop.config import Configuration, ProxySettings, Settings
from orlop.config.files import Given, lines_of, parse, read_bytes, read_table
from orlop.config.keys import keys
from orlop.config.service import ServiceLimits
from orlop.diagnosis.findings import Finding, Subject, note, ok, problem, said
from orlop.errors import Error, InvalidArgument
from orlop.registry.access.credentials import read_document
from orlop.registry.finding.hostfiles.folders import Files, in_force
from orlop.registry.finding.hostfiles.hosts_toml import parse_hosts_toml
from orlop.registry.finding.hosts import endpoints
from orlop.registry.net.proxies import Proxies
from orlop.values import dataclass

__all__ = [
    "Fault",
    "check_configuration",
    "faults_of_file",
    "faults_of_variables",
    "faults_of_what_is_named",
]

_LOG_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")
_AT_LINE = re.compile(r"at line ([0-9]+)")
# Variables of ours that are no keys.
_OTHERS = {"ORLOP_CONFIG", "ORLOP_LIMITS", "ORLOP_UNSHARED"}
_FILES = ("tls_cert", "tls_key", "tls_ca", "daemon.tls_cert", "daemon.tls_key", "daemon.tls_client_ca")


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """Something wrong in a file or a variable, or, as a ``note``, something that may be meant.

    ``line`` is 0 where it cannot be had.
    """

    source: str
    text: str
    line: int = 0
    hint: str = ""
    state: Literal["note", "problem"] = "problem"

    @property
    def place(self) -> str:
        """The source, with the line where there is one."""
        return f"{self.source}:{self.line}" if self.line else self.source

    def __str__(self) -> str:
        mark = "note: " if self.state == "note" else ""
        return f"{self.place}: {mark}{self.text}" + (f"; {self.hint}" if self.hint else "")


def faults_of_file(path: str, *, trusted: bool = True) -> tuple[dict[str, Given], list[Fault]]:
    """What a configuration file says as far as it can be read, and all that is wrong with it.

    ``trusted`` as in `orlop.config.files.read_file`.
    """
    attempted = f"read {path}"
    try:
        data = read_bytes(path, attempted, trusted=trusted)
        document = parse(data, attempted)
    except Error as exc:
        found = _AT_LINE.search(exc.reason)
        line = int(found[1]) if found else 0
        return {}, [Fault(source=path, text=exc.reason, line=line, hint=exc.hint)]
    errors: list[InvalidArgument] = []
    given = read_table(document, path, lines=lines_of(data), problems=errors)
    faults = [_of_error(exc, path) for exc in errors]
    faults += faults_of_values(given)
    return given, sorted(faults, key=lambda fault: fault.line)


def faults_of_variables(environ: Mapping[str, str]) -> tuple[dict[str, Given], list[Fault]]:
    """Likewise what the environment says.  A variable that only looks like ours is a note."""
    from orlop.config.files import read_variables

    variables = {key.variable for key in keys().values()} | _OTHERS
    given: dict[str, Given] = {}
    faults: list[Fault] = []
    for name in sorted(environ):
        if name in variables:
            try:
                given |= read_variables({name: environ[name]})
            except Error as exc:
                faults.append(Fault(source=name, text=exc.reason, hint=exc.hint))
        elif name.startswith("ORLOP_"):
            near = get_close_matches(name, variables, n=1, cutoff=0.8)
            if near:
                text = "no key is called so, and it says nothing"
                faults.append(Fault(source=name, text=text, hint=f"did you mean {near[0]}?", state="note"))
    return given, faults + faults_of_values(given)


def faults_of_values(given: Mapping[str, Given]) -> list[Fault]:
    """Values that cannot be, each for itself, though of the right type; and files that are not there."""
    faults: list[Fault] = []
    for name, item in given.items():
        try:
            _try(name, item)
        except Error as exc:
            faults.append(Fault(source=item.source, line=item.line, text=exc.reason, hint=exc.hint))
        if name in _FILES and item.value and not os.path.isfile(item.value):
            text = f"{name} is {item.value}, which is no file"
            faults.append(Fault(source=item.source, line=item.line, text=text))
        if name in ("hosts_dirs", "registries_conf", "auth_files"):
            for path in item.value:
                if not os.path.exists(path) and path != os.devnull:
                    text = f"{name} has {path}, which is not there"
                    faults.append(Fault(source=item.source, line=item.line, text=text, state="note"))
    return faults


def _try(name: str, item: Given) -> None:
    """Use one value as it would be used.  Raises `Error`."""
    table, _, last = name.rpartition(".")
    if name == "daemon.log_level" and str(item.value).upper() not in _LOG_LEVELS:
        raise InvalidArgument("", f"{name} is {item.value!r}", hint=f"one of {', '.join(_LOG_LEVELS)}")
    if name == "daemon.log_format" and item.value not in {"text", "json"}:
        raise InvalidArgument("", f"{name} is {item.value!r}", hint="one of text, json")
    if table == "daemon" and last in _fields(ServiceLimits):
        ServiceLimits(**{last: item.value})
    elif table == "proxy":
        Proxies(ProxySettings(**{last: item.value}))
    elif name == "insecure_registries":
        for registry in item.value:
            endpoints(registry)
    else:
        Configuration(given={name: item}).settings()


def _fields(cls: type[Any]) -> set[str]:
    from orlop.values import fields

    return {field.name for field in fields(cls)}


def _of_error(exc: Error, source: str) -> Fault:
    line = exc.details.get("line", "")
    reason = exc.reason.removeprefix(f"line {line}: ")
    return Fault(source=source, text=reason, line=int(line or 0), hint=exc.hint)


def faults_of_what_is_named(settings: Settings) -> list[Fault]:
    """What is wrong with the files about registries, and with those of credentials, that are in force."""
    faults: list[Fault] = []
    files = Files()
    for path in in_force((), settings.registries_conf):
        try:
            files.conf([path])
        except Error as exc:
            faults.append(Fault(source=path, text=exc.reason, hint=exc.hint))
    for path in in_force(settings.hosts_dirs, ()):
        if path.endswith("/hosts.toml"):
            faults += _of_hosts(path)
    for path in settings.auth_files:
        faults += _of_credentials(path, settings.limits.auth_file_size)
    return faults


def _of_hosts(path: str) -> Iterator[Fault]:
    folder = os.path.dirname(path)
    name = os.path.basename(folder)
    port = re.fullmatch(r"(.+)_([0-9]+)_", name)
    registry = f"{port[1]}:{port[2]}" if port else "localhost" if name == "_default" else name
    try:
        parse_hosts_toml(
            read_bytes(path, f"read {path}", trusted=False), registry=registry, folder=folder, source=path
        )
    except Error as exc:
        yield Fault(source=path, text=exc.reason, hint=exc.hint)


def _of_credentials(path: str, limit: int) -> Iterator[Fault]:
    try:
        about = os.stat(path)
    except FileNotFoundError:
        return
    except OSError as exc:
        text = f"the credentials in it cannot be read: {exc.strerror}"
        yield Fault(source=path, text=text, state="note")
        return
    if stat.S_ISREG(about.st_mode) and not os.access(path, os.R_OK):
        text = "the credentials in it cannot be read: Permission denied"
        yield Fault(source=path, text=text, hint=f"chown {os.geteuid()} {path}", state="note")
        return
    try:
        document = read_document(path, limit)
    except Error as exc:
        yield Fault(source=path, text=exc.reason, hint=exc.hint or "write it again with `orlop login`")
        return
    auths = document.get("auths")
    secrets = isinstance(auths, dict) and any(isinstance(one, dict) and one for one in auths.values())
    if secrets and about.st_mode & 0o077:
        text = f"it holds passwords, and others may read it (mode {stat.S_IMODE(about.st_mode):04o})"
        yield Fault(source=path, text=text, hint=f"chmod 600 {path}", state="note")


def check_configuration(subject: Subject) -> Iterable[Finding]:
    """The configuration's files and variables, and what they name."""
    files = [(path, False) for path in subject.config_files if os.path.lexists(path)]
    if subject.named_file is not None:
        files = [(subject.named_file, True)]
    count = 0
    for path, trusted in files:
        count += 1
        given, faults = faults_of_file(path, trusted=trusted)
        yield from _findings("configuration.file", faults)
        if not any(fault.state == "problem" for fault in faults):
            yield ok("configuration.file", f"{path}: {len(given)} keys, all of them known and in range")
    given, faults = faults_of_variables(subject.environ)
    yield from _findings("configuration.variables", faults)
    if given and not faults:
        yield ok("configuration.variables", ", ".join(sorted(item.source for item in given.values())))
    if subject.fault is not None and not any(fault.state == "problem" for fault in faults) and not count:
        yield problem("configuration", said(subject.fault), subject.fault.hint or "orlop config check")
    if not count and not given:
        yield ok("configuration", "nothing is configured, and all is as by default")
    named = faults_of_what_is_named(subject.settings)
    yield from _findings("configuration.registries", named)
    if not named:
        there = in_force(subject.settings.hosts_dirs, subject.settings.registries_conf)
        if there:
            yield ok("configuration.registries", f"{len(there)} files about registries parse")


def _findings(check: str, faults: Iterable[Fault]) -> Iterator[Finding]:
    for fault in faults:
        text = f"{fault.place}: {fault.text}"
        if fault.state == "note":
            yield note(check, text, fault.hint)
        else:
            yield problem(
                check, text, fault.hint or f"correct it; `orlop config check {fault.source}` looks again"
            )
