"""The root command: global options, how a verb is found, and how a run of it ends.

Verbs live in modules that are imported when a verb is used; `frontpage` has the table of them and what
``orlop --help`` says of them and of the options here.  A test holds the two together.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from itertools import pairwise
from typing import TYPE_CHECKING, TypeVar

import click
from click.core import ParameterSource

from orlop import __version__
from orlop.cli import frontpage, output
from orlop.cli.configuration import configuration_of, configuration_options
from orlop.cli.exits import Misuse, report
from orlop.cli.frontpage import OPTIONS, VERBS
from orlop.cli.session import DRIVER, OpenStore, Runner, Session, Target, open_store
from orlop.errors import from_oserror

if TYPE_CHECKING:
    from orlop.config import Driver

__all__ = ["VERBS", "app", "global_options", "run_command"]

_F = TypeVar("_F", bound=Callable[..., object])

# Verbs that make, read or delete files of roots: with subordinate ids only root of a namespace can.
_IN_NAMESPACE = {
    *("run", "prepare", "mounts", "mount", "unmount", "commit", "fork", "checkpoint", "cleanup"),
    *("rmi", "gc", "info", "daemon", "df", "explain", "check", "import", "export"),
    *("diff", "blame", "tree"),
    *("ls", "cat", "find", "cp"),
}
_MODULES = {verb: module for verbs in VERBS.values() for verb, (module, _) in verbs.items()}

# What people know from elsewhere, and what does it here.
_ELSEWHERE = {
    "attach": "artifact",
    "create": "prepare",
    "delete": "rmi",
    "down": "cleanup",
    "exec": "run",
    "image": "images",
    "list": "images",
    "list-tags": "tags",
    "load": "import",
    "prune": "gc",
    "remove": "cleanup",
    "rm": "cleanup",
    "save": "export",
    "serve": "daemon",
    "umount": "unmount",
    "unpack": "prepare",
}


class VerbGroup(click.Group):
    """A group whose verbs are imported when they are asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All verbs, in the order of the help."""
        return list(_MODULES)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a verb's module and take the verb from it (``pull`` is ``pull_verb`` there)."""
        module = _MODULES.get(cmd_name)
        if module is None:
            return None
        name = cmd_name.replace("-", "_")
        command: click.Command = getattr(import_module(f"orlop.cli.{module}"), f"{name}_verb")
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the verb; for a mistyped one suggest what was meant."""
        word = args[0]
        if word not in _MODULES and not word.startswith("-"):
            raise Misuse(f"no such verb: {word}", _suggestion(word), ctx=ctx)
        return super().resolve_command(ctx, args)

    def get_help(self, ctx: click.Context) -> str:
        """The page that a start with ``--help`` alone prints, too."""
        return frontpage.page(ctx.command_path, frontpage.width_of()).rstrip("\n")

    def invoke(self, ctx: click.Context) -> object:
        """Run the verb.  An OSError that reached this far gets the class of its errno."""
        try:
            return super().invoke(ctx)
        except OSError as exc:
            raise from_oserror(ctx.invoked_subcommand or "", exc) from exc


def global_options(function: _F) -> _F:
    """Add the options that say which store is meant."""
    options = (
        click.option("--root", metavar="DIR", envvar="ORLOP_ROOT", help=OPTIONS["root"][1]),
        click.option("--run", metavar="DIR", envvar="ORLOP_RUN", help=OPTIONS["run"][1]),
        click.option(
            "--insecure-registry",
            "insecure_registries",
            metavar="HOST",
            multiple=True,
            envvar="ORLOP_INSECURE_REGISTRIES",
            help=OPTIONS["insecure_registries"][1],
        ),
        click.option(
            "--driver",
            type=DRIVER,
            envvar="ORLOP_DRIVER",
            help=OPTIONS["driver"][1],
        ),
        click.option(
            "--durable/--no-durable",
            default=None,
            envvar="ORLOP_DURABLE",
            help=OPTIONS["durable"][1],
        ),
        click.option("--debug", is_flag=True, help=OPTIONS["debug"][1]),
        click.version_option(__version__, prog_name="orlop", message="%(prog)s %(version)s"),
    )
    for option in reversed((options[0], options[1], configuration_options, *options[2:])):
        function = option(function)
    return function


@click.group(
    cls=VerbGroup,
    invoke_without_command=True,
    subcommand_metavar="VERB [ARGS]...",
    help=frontpage.ABOUT,
    epilog="\n\n".join(f"\b\n{part}" for part in frontpage.EXAMPLES.split("\n\n")),  # lines as they are
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.option(
    "--host",
    metavar="ADDRESS",
    envvar="ORLOP_HOST",
    help=OPTIONS["host"][1],
)
@click.option("--tls-cert", metavar="FILE", envvar="ORLOP_TLS_CERT", help=OPTIONS["tls_cert"][1])
@click.option("--tls-key", metavar="FILE", envvar="ORLOP_TLS_KEY", help=OPTIONS["tls_key"][1])
@click.option("--tls-ca", metavar="FILE", envvar="ORLOP_TLS_CA", help=OPTIONS["tls_ca"][1])
@global_options
@click.pass_context
def app(
    ctx: click.Context,
    host: str | None,
    tls_cert: str | None,
    tls_key: str | None,
    tls_ca: str | None,
    root: str | None,
    run: str | None,
    insecure_registries: tuple[str, ...],
    driver: Driver | None,
    durable: bool | None,
    limits: tuple[str, ...],
    debug: bool,
) -> None:
    """Take the global options, and find out who does the work."""
    if ctx.get_parameter_source("host") is ParameterSource.DEFAULT_MAP and ctx.invoked_subcommand == "daemon":
        host = None  # a file tells clients where the daemon is, and it is one
    said = {name for name in ctx.params if ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE}
    if "root" in said and "host" not in said:
        host = None  # a store that was asked for here and now beats a daemon of the environment
    if host is not None:
        for name, option in (
            ("root", "--root"),
            ("insecure_registries", "--insecure-registry"),
            ("driver", "--driver"),
            ("durable", "--durable"),
            ("limits", "--limit"),
        ):
            if name in said:
                raise Misuse(f"{option} is the daemon's business", f"leave out {option} or --host", ctx=ctx)
    session = ctx.ensure_object(Session)
    session.target = Target(
        root=root,
        run=run,
        host=host,
        insecure_registries=insecure_registries,
        driver=driver,
        durable=durable,
        tls_cert=tls_cert,
        tls_key=tls_key,
        tls_ca=tls_ca,
        debug=debug,
        configuration=configuration_of(ctx, limits),
    )
    if ctx.invoked_subcommand is None:
        output.write(ctx.get_help() + "\n")
    elif host is None and ctx.invoked_subcommand in _IN_NAMESPACE and session.opener is open_store:
        _enter_namespace(ctx.invoked_subcommand, driver, sys.argv)


def _enter_namespace(verb: str, driver: Driver | None, argv: Sequence[str]) -> None:
    """Without root, do a verb's work as root of a user namespace, where that can be had.

    Not for the native driver where it is asked for: its copies are for those who stay outside.
    """
    words = set(pairwise(argv)) | {tuple(word.split("=", 1)) for word in argv}
    native = driver == "native" or ("--driver", "native") in words
    if os.geteuid() != 0 and not native and not _is_direct(verb, argv):
        from orlop.cli.unshare import reenter

        reenter(verb)


def _is_direct(verb: str, argv: Sequence[str]) -> bool:
    """Whether it is ``run --exec``; what follows the image is the command's own."""
    if verb != "run" or "--exec" not in argv:
        return False
    from orlop.cli.run import run_verb

    parser = run_verb.make_parser(click.Context(run_verb, resilient_parsing=True))
    options, _, _ = parser.parse_args(list(argv[argv.index(verb) + 1 :]))
    return bool(options.get("direct"))


def run_command(
    command: click.Command,
    program: str,
    argv: Sequence[str] | None,
    *,
    opener: OpenStore | None = None,
    runner: Runner | None = None,
) -> int:
    """Run a command to its exit code; whatever goes wrong is reported here and nowhere else.

    A verb returns None, or an int that becomes the exit code.
    """
    args = list(sys.argv[1:] if argv is None else argv)
    output.fill_streams()
    session = Session(opener or open_store, runner=runner)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # names that are not UTF-8 are written as they are
            stream.reconfigure(errors="surrogateescape")
    try:
        code = command.main(args, prog_name=program, standalone_mode=False, obj=session)
        output.flush()
    except (Exception, KeyboardInterrupt) as exc:  # noqa: BLE001 - the last resort: no traceback for users
        return report(_explained(exc), program=program, debug=_debug(session, args))
    return code if isinstance(code, int) else 0


def _debug(session: Session, args: Sequence[str]) -> bool:
    # Before the options were parsed there is only the text.
    return session.target.debug or "--debug" in args[:1]


def _explained(exc: BaseException) -> BaseException:
    """A hint for a global option that was given after the verb."""
    if isinstance(exc, click.NoSuchOption) and exc.ctx is not None and exc.ctx.parent is not None:
        known = {name for param in app.params for name in param.opts}
        if exc.option_name in known:
            verb = exc.ctx.info_name
            return Misuse(
                f"no such option of {verb}: {exc.option_name}",
                f"it goes before the verb: orlop {exc.option_name} … {verb} …",
                ctx=exc.ctx,
            )
    return exc


def _suggestion(word: str) -> str:
    from difflib import get_close_matches

    meant = _ELSEWHERE.get(word) or next(iter(get_close_matches(word, _MODULES, n=1, cutoff=0.5)), "")
    return f"did you mean `orlop {meant}`?" if meant else "`orlop --help` lists them"
