"""``login`` and ``logout``: the credentials that pulls and pushes go by.

They need no store and ask no daemon: what they change are the user's own files of credentials.  A password is
never an argument of a program that they run, nor a word of what they print.
"""

from __future__ import annotations

import os
import sys

from orlop.cli import declared as click
from orlop.cli import output
from orlop.cli.exits import Misuse, one_line
from orlop.cli.session import Session, formats, pass_session, verb
from orlop.hints import TYPE_CHECKING
from orlop.values import replace

if TYPE_CHECKING:
    from orlop.config import Settings
    from orlop.registry.access.login import LoggedIn

__all__ = ["login_verb", "logout_verb"]

MAX_PASSWORD = 65_536  # bytes: more than any token has, and all that a header line can hold

_AUTHFILE = click.option(
    "--authfile", metavar="FILE", help="Keep and look for credentials in this file alone."
)


@verb(
    "login",
    "orlop login",
    "orlop login registry.example.com -u me",
    "pass show registry | orlop login registry.lan:5000/team -u me --password-stdin",
    "orlop login --list",
)
@click.argument("registry", metavar="[REGISTRY[/PART]]", required=False, default="")
@click.option("-u", "--username", metavar="NAME", help="Who you are there.  [default: asked for]")
@click.option("--password-stdin", "from_stdin", is_flag=True, help="Read the password from standard input.")
@click.option("-p", "--password", metavar="TEXT", help="The password; other users can see it: do not.")
@_AUTHFILE
@click.option("--insecure", is_flag=True, help="Speak http or unverified TLS with this registry.")
@click.option("--get-login", "ask", is_flag=True, help="Print who you are there, and do nothing.")
@click.option("--list", "show", is_flag=True, help="Print where you are logged in, and do nothing.")
@formats(names="With --list the registries alone; else print nothing.")
@pass_session
def login_verb(
    session: Session,
    registry: str,
    username: str | None,
    from_stdin: bool,
    password: str | None,
    authfile: str | None,
    insecure: bool,
    ask: bool,
    show: bool,
    form: str = "table",
) -> None:
    """Log in to a registry: try a name and a password there, and keep them.

    REGISTRY is a host, Docker Hub if left out; with a PART of its repositories it is for those alone.  A
    credential helper keeps the password where the user's files name one (credHelpers, credsStore); else it
    stands in plain text in the file of podman or docker.
    """
    from orlop import facade
    from orlop.registry.access.login import login_of, subject_of

    settings, file = _settings(session), _absolute(authfile)
    if show or ask:
        if show and (registry or ask):
            raise Misuse("--list shows all registries", "leave out the rest")
        with session.call() as call:
            if ask:
                user = login_of(registry, settings=settings, file=file, call=call)
                record = {"registry": subject_of(registry).key, "username": user}
                if form == "json":
                    output.write_json(record)
                else:
                    output.show_each((record,), form=form, line=lambda _: user, names=lambda _: user)
            else:
                _show(facade.logins(settings=settings, file=file, call=call), form)
        return
    subject = subject_of(registry)
    if insecure:
        hosts = (*settings.insecure_registries, subject.registry)
        settings = replace(settings, insecure_registries=hosts)
    _remark_on_daemon(session)
    username, password = _credentials(subject.key, username, password, from_stdin=from_stdin)
    with session.call() as call:
        kept = facade.login(subject.key, username, password, settings=settings, file=file, call=call)
    if form == "json":
        output.write_json(kept)
    elif form != "name":
        output.show_each((kept,), form=form, line=_logged_in, names=str)


def _logged_in(kept: LoggedIn) -> str:
    return f"logged in to {kept.registry} as {kept.username}: {kept.place}"


@verb(
    "logout",
    "orlop logout registry.example.com",
    "orlop logout --all",
)
@click.argument("registry", metavar="[REGISTRY[/PART]]", required=False, default="")
@click.option("--all", "everything", is_flag=True, help="Log out of all registries.")
@_AUTHFILE
@pass_session
def logout_verb(session: Session, registry: str, everything: bool, authfile: str | None) -> None:
    """Forget the credentials for a registry, or for all.

    REGISTRY is as for login.  They are taken out of every file and helper that pulls would look in; prints
    what was forgotten, and where it was kept.
    """
    from orlop import facade

    if everything and registry:
        raise Misuse("--all means every registry", f"leave out --all or {registry}")
    _remark_on_daemon(session)
    with session.call() as call:
        gone = facade.logout(
            None if everything else registry, settings=_settings(session), file=_absolute(authfile), call=call
        )
    output.write("".join(f"logged out of {one_line(one.registry)}: {one.place}\n" for one in gone))


def _settings(session: Session) -> Settings:
    return session.target.settings()


def _absolute(path: str | None) -> str | None:
    return os.path.abspath(path) if path else None


def _remark_on_daemon(session: Session) -> None:
    if session.target.host is not None:
        output.note("the daemon goes by credentials of its own: these are yours (docs/credentials.md)")


def _credentials(
    key: str, username: str | None, password: str | None, *, from_stdin: bool
) -> tuple[str, str]:
    """The name and the password, asked for at the terminal where they were not given."""
    if password is not None and from_stdin:
        raise Misuse("the password comes from standard input or from --password", "leave out one of them")
    if from_stdin and not username:
        raise Misuse("whose password?", "give --username with --password-stdin")
    if from_stdin:
        return username or "", _read_password()
    if password is not None:
        output.note("a password on the command line can be seen by others: use --password-stdin")
    if (not username or password is None) and not sys.stdin.isatty():
        raise Misuse("there is no terminal to ask at", "give --username and --password-stdin")
    if not username:
        username = click.prompt(f"Name at {key}", err=True)
    if password is None:
        password = click.prompt("Password", hide_input=True, err=True)
    return str(username), str(password)


def _read_password() -> str:
    data = sys.stdin.buffer.read(MAX_PASSWORD + 1)
    if len(data) > MAX_PASSWORD:
        raise Misuse("that is no password", f"standard input has more than {MAX_PASSWORD} bytes")
    try:
        text = data.decode().removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError:
        raise Misuse("that is no password", "standard input is not UTF-8") from None
    if not text:
        raise Misuse("there is no password", "standard input is empty")
    return text


def _show(found: list[LoggedIn], form: str) -> None:
    columns: list[output.Column] = [
        ("REGISTRY", lambda one: one.registry),
        ("USER", lambda one: one.username),
        ("KIND", lambda one: one.kind),
        ("KEPT IN", lambda one: one.place),
    ]
    output.show_list(found, columns, form=form, names=lambda one: one.registry)
