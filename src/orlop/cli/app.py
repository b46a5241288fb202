"""The root command: global options, how a verb is found, and how a run of it ends.

Verbs live in modules that are imported when a verb is used; `frontpage` has the table of them and what
``orlop --help`` says of them and of the options here.  A test holds the two together.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from itertools import pairwise

from orlop import __version__
from orlop.cli import colours, frontpage, output, plain
from orlop.cli import declared as click
from orlop.cli.colours import MODES
from orlop.cli.configuration import configuration_of, configuration_options
from orlop.cli.exits import Misuse, is_clicks, report
from orlop.cli.frontpage import OPTIONS, VERBS
from orlop.cli.late import import_module
from orlop.cli.session import DRIVER, OpenStore, Runner, Session, Target, open_store

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import TypeVar

    from orlop.config import Driver

    _F = TypeVar("_F", bound=Callable[..., object])

__all__ = ["MODULES", "VERBS", "app", "found_verb", "global_options", "run_command"]

# Verbs that make, read or delete files of roots: with subordinate ids only root of a namespace can.
_IN_NAMESPACE = {
    *("run", "prepare", "mounts", "mount", "unmount", "commit", "fork", "checkpoint", "cleanup"),
    *("rmi", "gc", "info", "daemon", "df", "explain", "check", "import", "export"),
    *("diff", "blame", "tree", "explore", "report"),
    *("ls", "cat", "find", "cp"),
}
QUESTION = "_ORLOP_COMPLETE"  # in the environment of a start by a shell that completes a word
MODULES = {verb: module for verbs in VERBS.values() for verb, (module, _) in verbs.items()}


def found_verb(name: str) -> click.Command | None:
    """Import a verb's module and take the verb from it (``pull`` is ``pull_verb`` there)."""
    module = MODULES.get(name)
    if module is None:
        return None
    there = import_module(f"orlop.cli.{module}")
    found: click.Command = getattr(there, f"{name.replace('-', '_')}_verb")
    return found


def _paint(ctx: click.Context, param: click.Parameter, value: str | None) -> None:
    colours.choose(value or "")
    ctx.color = {"always": True, "never": False}.get(value or "")  # or click takes paint away on a pipe


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
        click.option(
            "--color",
            type=click.Choice(MODES),
            envvar="ORLOP_COLOR",
            is_eager=True,
            expose_value=False,
            callback=_paint,
            help=OPTIONS["color"][1],
        ),
        click.option("--debug", is_flag=True, help=OPTIONS["debug"][1]),
        click.version_option(__version__, prog_name="orlop", message="%(prog)s %(version)s"),
    )
    for option in reversed((options[0], options[1], configuration_options, *options[2:])):
        function = option(function)
    return function


@click.group(
    cls=click.late_class("orlop.cli.groups:VerbGroup"),
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
    if click.source_of(ctx, "host") == "DEFAULT_MAP" and ctx.invoked_subcommand == "daemon":
        host = None  # a file tells clients where the daemon is, and it is one
    said = {name for name in ctx.params if click.source_of(ctx, name) == "COMMANDLINE"}
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
        configuration=configuration_of(ctx),
    )
    if ctx.invoked_subcommand is None:
        from orlop.cli.welcome import here

        output.write(here(root=root, host=host))
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
    from orlop.cli.run import run_verb as declared

    run_verb = click.clicks(declared)
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
    colours.choose("")
    session = Session(opener or open_store, runner=runner)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # names that are not UTF-8 are written as they are
            stream.reconfigure(errors="surrogateescape")
    try:
        if QUESTION in os.environ:
            from orlop.cli.completing import answer_with

            answer_with(session.opener)
        code = _run(command, args, program, session)
        output.flush()
    except (Exception, KeyboardInterrupt) as exc:  # noqa: BLE001 - the last resort: no traceback for users
        return report(_explained(exc), program=program, debug=_debug(session, args))
    return code if isinstance(code, int) else 0


def _run(command: click.Command, args: list[str], program: str, session: Session) -> object:
    """Without click, where the words need none."""
    if isinstance(command, click.Verb) and QUESTION not in os.environ:
        try:
            return plain.run(command, _plain_verb, args, program=program, obj=session)
        except plain.NotPlain:
            pass
    return click.clicks(command).main(args, prog_name=program, standalone_mode=False, obj=session)


def _plain_verb(name: str) -> click.Verb | None:
    found = found_verb(name)
    return found if isinstance(found, click.Verb) else None


def _debug(session: Session, args: Sequence[str]) -> bool:
    # Before the options were parsed there is only the text.
    return session.target.debug or "--debug" in args[:1]


def _explained(exc: BaseException) -> BaseException:
    """A hint for a global option that was given after the verb, and the like."""
    if not is_clicks(exc):
        return exc
    if isinstance(exc, click.BadParameter) and exc.ctx is not None and exc.param is not None:
        variable = exc.param.envvar
        if variable and click.source_of(exc.ctx, exc.param.name or "") == "ENVIRONMENT":
            hint = f"`{exc.ctx.command_path} --help` tells of {exc.param.opts[0]}, for which it stands"
            return Misuse(f"invalid value of {variable}: {exc.message}", hint, ctx=exc.ctx)
    if isinstance(exc, click.NoSuchOption) and exc.ctx is not None and exc.ctx.parent is not None:
        known = {name for param in app.params for name in param.opts}
        if exc.option_name in known:
            verb = exc.ctx.info_name
            return Misuse(
                f"no such option of {verb}: {exc.option_name}",
                f"it goes before the verb: orlop {exc.option_name} … {verb} …",
                ctx=exc.ctx,
            )
    if isinstance(exc, click.NoSuchOption) and exc.ctx is not None:
        from orlop.cli.elsewhere import instead_of_option

        said = instead_of_option(exc.ctx.info_name or "", exc.option_name)
        if not said and exc.possibilities:
            said = f"did you mean {exc.possibilities[0]}?  `{exc.ctx.command_path} --help` lists them"
        if said:
            return Misuse(f"no such option: {exc.option_name}", said, ctx=exc.ctx)
    return exc
