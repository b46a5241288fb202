"""The root command: global options, the table of verbs, and how a run of it ends.

Verbs live in modules that are imported when a verb is used; the table below has their names and what
``orlop --help`` says of them, so that help needs none of them.  A test holds the two together.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from itertools import pairwise
from typing import TYPE_CHECKING, TypeVar

import click
from click.core import ParameterSource

from orlop import __version__
from orlop.cli import output
from orlop.cli.configuration import configuration_of, configuration_options
from orlop.cli.exits import EXIT_CODES, Misuse, report
from orlop.cli.session import DRIVER, OpenStore, Runner, Session, Target, open_store
from orlop.errors import from_oserror

if TYPE_CHECKING:
    from orlop.config import Driver

__all__ = ["VERBS", "app", "global_options", "run_command"]

_F = TypeVar("_F", bound=Callable[..., object])

# heading -> verb -> module, what the help says
VERBS: Mapping[str, Mapping[str, tuple[str, str]]] = {
    "Images": {
        "pull": ("transfer", "Fetch images from a registry."),
        "push": ("transfer", "Send an image to a registry."),
        "fetch-blobs": ("transfer", "Fetch the blobs of an image's layers that are not kept."),
        "export": ("export", "Write images to an archive or a layout, or one file system to a file."),
        "import": ("imports", "Import images, or a root file system as one."),
        "share": ("share", "Let podman, buildah and skopeo read images here, without a copy."),
        "images": ("images", "List images."),
        "inspect": ("images", "Show all there is to know of an image or a prepared root."),
        "tag": ("images", "Give an image a further name."),
        "label": ("pins", "Set labels of an image's name, or take them away (KEY-)."),
        "rmi": ("images", "Remove images, and the disk that nothing else needs."),
    },
    "Files in images and roots": {
        "ls": ("contents", "List files of an image, a layer or a prepared root; nothing is mounted."),
        "cat": ("contents", "Print files of an image, a layer or a prepared root; nothing is mounted."),
        "find": ("contents", "Find files by a pattern, in an image, a layer or a root, or in all images."),
        "cp": ("cp", "Copy files out of an image, a layer or a prepared root, or into a prepared root."),
        "diff": ("compare", "Show what differs between two images, layers or prepared roots."),
        "blame": ("lineage", "Show which layers brought, changed and deleted a path."),
        "history": ("lineage", "Show how an image was made: its history, each line with its layer."),
        "tree": ("lineage", "Show files as a tree, with sizes and the layers they came from."),
        "waste": ("lineage", "Show what an image's layers hold that layers above hide or delete."),
    },
    "Root file systems": {
        "run": ("run", "Run a command in a container made from an image."),
        "prepare": ("roots", "Make an image's root file system ready at a path."),
        "mounts": ("roots", "Print the mounts of a prepared root again."),
        "mount": ("roots", "Mount prepared roots."),
        "unmount": ("roots", "Unmount prepared roots; what was written stays."),
        "ps": ("roots", "List prepared roots."),
        "commit": ("commit", "Make an image of what changed in a prepared root."),
        "bundle": ("bundle", "Write a bundle for a prepared root, which any OCI runtime runs."),
        "fork": ("forks", "Make new roots with the content of a prepared one."),
        "checkpoint": ("forks", "Remember what a prepared root is, and go back to it."),
        "cleanup": ("roots", "Unmount prepared roots and delete what was written."),
        "unshare": ("unshare", "Open a shell where prepared roots can be mounted without root."),
    },
    "Registries": {
        "login": ("login", "Log in to a registry: try a name and a password there, and keep them."),
        "logout": ("login", "Forget the credentials for a registry."),
        "copy": ("remote", "Copy an image from registry to registry; nothing is stored here."),
        "tags": ("remote", "List the tags of a repository."),
        "manifest": ("remote", "Show what a name means at its registry."),
        "referrers": ("remote", "List what refers to an image: signatures, SBOMs and the like."),
        "delete-remote": ("remote", "Delete tags or manifests at their registry."),
        "artifact": ("artifacts", "Push and pull files as artifacts."),
    },
    "Service": {
        "daemon": ("daemon", "Serve the store on a unix socket, or over TLS."),
        "gc": ("upkeep", "Delete what no image, prepared root, lease or pin needs."),
        "pin": ("pins", "Keep an image, a layer, a chain or a blob, whatever happens to its names."),
        "unpin": ("pins", "Take pins back; what nothing else needs is deleted."),
        "pins": ("pins", "List pins."),
        "backup": ("backups", "Write the metadata, and the layers if asked, to a new file."),
        "restore": ("backups", "Read a backup into the store: its images, all of them or none."),
        "check": ("check", "Check that all is there that the store promises; mend what is not."),
        "df": ("diagnose", "Show what the store takes on disk."),
        "explain": ("diagnose", "Show why something is kept, what it shares, and what its removal frees."),
        "events": ("events", "Show what happened to the store, and what happens."),
        "info": ("upkeep", "Show the store and what serves it."),
        "version": ("upkeep", "Show versions."),
    },
}
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

_EXAMPLES = """\b
Begin with:
  orlop pull alpine
  orlop run alpine echo hello
  orlop prepare --mount alpine /srv/a    then write below /srv/a
  orlop commit /srv/a localhost/mine     make an image of the change
  orlop cleanup /srv/a

\b
Completion for bash, zsh or fish:
  eval "$(_ORLOP_COMPLETE=bash_source orlop)"
"""


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

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The verbs under their headings, without importing one."""
        width = max(map(len, _MODULES))
        for heading, verbs in VERBS.items():
            with formatter.section(heading):
                formatter.write_dl([(verb.ljust(width), text) for verb, (_, text) in verbs.items()])

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Examples, and the exit codes."""
        super().format_epilog(ctx, formatter)
        with formatter.section("Exit codes"):
            formatter.write_dl([(str(code), meaning) for code, _, meaning in EXIT_CODES])

    def invoke(self, ctx: click.Context) -> object:
        """Run the verb.  An OSError that reached this far gets the class of its errno."""
        try:
            return super().invoke(ctx)
        except OSError as exc:
            raise from_oserror(ctx.invoked_subcommand or "", exc) from exc


def global_options(function: _F) -> _F:
    """Add the options that say which store is meant."""
    options = (
        click.option("--root", metavar="DIR", envvar="ORLOP_ROOT", help="Where images are kept."),
        click.option("--run", metavar="DIR", envvar="ORLOP_RUN", help="Where mount points are kept."),
        click.option(
            "--insecure-registry",
            "insecure_registries",
            metavar="HOST",
            multiple=True,
            envvar="ORLOP_INSECURE_REGISTRIES",
            help="Speak http or unverified TLS with this registry.  May be repeated.",
        ),
        click.option(
            "--driver",
            type=DRIVER,
            envvar="ORLOP_DRIVER",
            help="How new roots are assembled.  [default: auto]",
        ),
        click.option(
            "--durable/--no-durable",
            default=None,
            envvar="ORLOP_DURABLE",
            help="Whether what is answered for outlasts a power cut.  [default: durable]",
        ),
        click.option("--debug", is_flag=True, help="Show tracebacks."),
        click.version_option(__version__, prog_name="orlop", message="%(prog)s %(version)s"),
    )
    for option in reversed((options[0], options[1], configuration_options, *options[2:])):
        function = option(function)
    return function


@click.group(
    cls=VerbGroup,
    invoke_without_command=True,
    subcommand_metavar="VERB [ARGS]...",
    epilog=_EXAMPLES,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.option(
    "--host",
    metavar="ADDRESS",
    envvar="ORLOP_HOST",
    help="Ask the daemon at unix://PATH or tcp://HOST:PORT instead of opening the store here.",
)
@click.option("--tls-cert", metavar="FILE", envvar="ORLOP_TLS_CERT", help="Over TCP: who you are.")
@click.option("--tls-key", metavar="FILE", envvar="ORLOP_TLS_KEY", help="The key of --tls-cert.")
@click.option(
    "--tls-ca", metavar="FILE", envvar="ORLOP_TLS_CA", help="The authority of the daemon's certificate."
)
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
    """orlop: container images, and root file systems from them.

    Name an image and a path; get a root file system there.  Write in it, make an image of what
    changed, clean up.
    """
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
