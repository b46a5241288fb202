"""What every verb is given: the global options, the store they name, and a call to carry.

The one place that opens a store or connects to a daemon for the command line.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager

from orlop.cli import declared as click
from orlop.cli import output
from orlop.cli.environment import (
    auth_files,
    default_root,
    default_run,
    hosts_dirs,
    proxies,
    registries,
    registries_conf,
)
from orlop.config import DRIVERS, Configuration
from orlop.errors import Cancelled, FailedPrecondition, InvalidArgument, Unimplemented
from orlop.hints import TYPE_CHECKING, TypeVar
from orlop.values import dataclass, field, replace

if TYPE_CHECKING:
    from pathlib import Path

    from orlop.cli.progress import ProgressMode
    from orlop.config import Driver, ProxySettings, Settings
    from orlop.facade import Store
    from orlop.images.api import ImageInfo
    from orlop.observe import Call
    from orlop.remote.api import Registries

__all__ = [
    "DRIVER",
    "PASSING",
    "OpenStore",
    "Runner",
    "Session",
    "Target",
    "check_lasting",
    "format_options",
    "formats",
    "needs_extra",
    "pass_session",
    "path_hint",
    "progress_options",
    "verb",
]

PASSING = "_ORLOP_PASSING"  # in the environment of a namespace that was entered for one command

_F = TypeVar("_F", bound=Callable[..., object])
DRIVER = click.Choice(["auto", *DRIVERS])


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """The global options as they were given; None stands for the default."""

    root: str | None = None
    run: str | None = None
    host: str | None = None
    insecure_registries: tuple[str, ...] = ()
    driver: Driver | None = None
    durable: bool | None = None
    tls_cert: str | None = None
    tls_key: str | None = None
    tls_ca: str | None = None
    debug: bool = False
    nondistributable: bool = False
    compression_threads: int = 0
    configuration: Configuration = field(default_factory=Configuration)

    @property
    def root_path(self) -> str:
        """The store's folder, absolute."""
        return os.path.abspath(self.root) if self.root else default_root(os.environ, os.geteuid())

    @property
    def run_path(self) -> str:
        """The folder of mount points, absolute.  Raises as `default_run` does."""
        return os.path.abspath(self.run) if self.run else default_run(os.environ, os.geteuid())

    @property
    def containers_path(self) -> str:
        """The folder of `orlop run`, beside RUN: a root may not be prepared inside the store's folders."""
        return f"{self.run_path}-containers"

    def settings(self) -> Settings:
        """The settings of a store that is opened in this process."""
        said = self.configuration.settings()
        elsewhere = any(os.environ.get(name) for name in ("REGISTRY_AUTH_FILE", "DOCKER_CONFIG"))
        return replace(
            said,
            driver=self.driver or said.driver,
            durable=said.durable if self.durable is None else self.durable,
            insecure_registries=registries(self.insecure_registries or said.insecure_registries),
            hosts_dirs=self._told("hosts_dirs", hosts_dirs(os.environ)),
            registries_conf=self._told("registries_conf", registries_conf(os.environ)),
            proxy=self._proxy(),
            auth_files=((not elsewhere or self._is_told("auth_files")) and said.auth_files)
            or auth_files(os.environ, os.geteuid()),
            auth_config=(not self._is_told("auth_config") and os.environ.get("DOCKER_AUTH_CONFIG"))
            or said.auth_config,
            nondistributable=self.nondistributable or said.nondistributable,
            compression_threads=self.compression_threads or said.compression_threads,
            # PATH is always set, and by nobody for orlop: a file that says it knows better.
            helper_path=self.configuration.get("helper_path") or os.environ.get("PATH", os.defpath),
        )

    def _is_told(self, name: str) -> bool:
        """Whether a setting was given by a variable of orlop's own, or an option: more than a file."""
        given = self.configuration.given.get(name)
        return given is not None and given.kind != "file"

    def _told(self, name: str, usual: tuple[str, ...]) -> tuple[str, ...]:
        """A setting that a file has, be it empty, or what is usual."""
        value: tuple[str, ...] | None = self.configuration.get(name)
        return usual if value is None else value

    def _proxy(self) -> ProxySettings:
        """What a file says, which was written for orlop, over the environment's, which was not."""
        given = {name: item.value for name, item in self.configuration.table("proxy").items()}
        return replace(proxies(os.environ), **given)


OpenStore = Callable[[Target], "Store"]
# Runs the bundle in a folder under an ID and returns the exit code of the container's command.
Runner = Callable[["Path", str], int]


def open_store(target: Target) -> Store:
    """Open the store in this process, or connect where a host is given."""
    from orlop import facade

    if target.host is None:
        return facade.open(target.root_path, target.run_path, settings=target.settings())
    with needs_extra(f"connect to {target.host}", "daemon"):
        return facade.connect(
            target.host, tls_cert=target.tls_cert, tls_key=target.tls_key, tls_ca=target.tls_ca
        )


@contextmanager
def needs_extra(attempted: str, extra: str) -> Iterator[None]:
    """Turn the absence of an optional dependency into what to install."""
    try:
        yield
    except ModuleNotFoundError as exc:
        if (exc.name or "").startswith("orlop"):
            raise
        raise Unimplemented(
            attempted, f"{exc.name} is not installed", hint=f"pip install 'orlop[{extra}]'"
        ) from exc


class Session:
    """One run of the command line.  ``runner`` replaces the OCI runtime of `orlop run`."""

    def __init__(self, opener: OpenStore = open_store, *, runner: Runner | None = None) -> None:
        self.target = Target()
        self.opener = opener
        self.runner = runner

    def store(self) -> Store:
        """Open the store; a context manager."""
        return self.opener(self.target)

    def images(self) -> list[ImageInfo]:
        """All images, by name; here without opening the store, where it needs no more than a look."""
        target = self.target
        durable = target.durable is not False and target.configuration.get("durable") is not False
        if self.opener is open_store and target.host is None and durable:
            from orlop.images.glance import images_at

            found = images_at(target.root_path, target.run_path)
            if found is not None:
                return found
        with self.store() as store:
            return store.images()

    @contextmanager
    def registries(self) -> Iterator[Registries]:
        """The verbs on registries, done here or by the daemon; neither opens a store."""
        target = self.target
        if target.host is None:
            from orlop.remote.verbs import Remote

            with Remote(target.settings()) as remote:
                yield remote
            return
        with needs_extra(f"connect to {target.host}", "daemon"):
            from orlop.client.registries import RemoteRegistries
        opened = RemoteRegistries.connect(
            target.host, tls_cert=target.tls_cert, tls_key=target.tls_key, tls_ca=target.tls_ca
        )
        with closing(opened):
            yield opened

    @contextmanager
    def call(
        self, *, quiet: bool = False, progress: ProgressMode = "auto", of: Sequence[str] = ()
    ) -> Iterator[Call]:
        """Show progress and heed Ctrl-C while the block runs.

        ``of`` are the verb and what it is about, for what is said where it is interrupted.
        """
        from orlop.cli.interrupts import Interrupts
        from orlop.cli.progress import default_observer
        from orlop.observe import Call

        observer = default_observer(progress, quiet=quiet)
        output.before_writing.append(observer.make_room)
        try:
            with Interrupts(on_first=observer.interrupted) as interrupts:
                yield Call(observer=observer, cancel=interrupts.cancel)
        except Cancelled as exc:
            if "signal" in exc.details:
                from orlop.cli.resuming import left_by

                exc.details["left"] = left_by(of, exc, observer.board)
            raise
        finally:
            output.before_writing.remove(observer.make_room)
            observer.close()


pass_session = click.make_pass_decorator(Session)


def verb(
    name: str, *examples: str, options_first: bool = False
) -> Callable[[Callable[..., int | None]], click.Command]:
    """Make a function a verb; its docstring is the help, and ``examples`` follow the options.

    With ``options_first`` all that follows the first argument is an argument.  The function may return
    an exit code.
    """
    heading = "Examples:" if len(examples) > 1 else "Example:"
    # A line with a backspace alone keeps click from filling the paragraph.
    epilog = "\n".join(["\b", heading, *(f"  {example}" for example in examples)])
    settings = {"allow_interspersed_args": not options_first}
    return click.command(name, epilog=epilog, context_settings=settings)


def progress_options(function: _F) -> _F:
    """Add ``--quiet`` and ``--progress`` to a verb that may take long."""
    function = click.option(
        "--progress",
        type=click.Choice(["auto", "plain", "json", "none"]),
        default="auto",
        envvar="ORLOP_PROGRESS",
        show_default=True,
        help="How to show progress on standard error.",
    )(function)
    return click.option("-q", "--quiet", is_flag=True, help="Show no progress, and no remarks.")(function)


def formats(
    *,
    names: str = "Names alone, one a line.",
    as_json: str = "JSON; its fields are stable.",
    flags: Sequence[str] = ("--format",),
) -> Callable[[_F], _F]:
    """Options of a verb that lists: ``--format``, ``--json``, ``--quiet``; the verb takes ``form``.

    ``names`` is what ``--quiet`` says of itself; empty for a verb that shows one thing, which has no names.
    """

    def choose(ctx: click.Context, param: click.Parameter, value: object) -> None:
        if value:
            form = str(param.name if value is True else value)
            if form == "name" and not names:
                raise InvalidArgument(
                    "use format 'name'", "not a format", hint="json, or a template as '{{.name}}'"
                )
            output.check_form(form)  # before anything is asked for
            ctx.params["form"] = form

    def add(function: _F) -> _F:
        words = "table, json, name, or" if names else "json, or"
        for given, name, text, kind in (
            (tuple(flags), "format_text", f"{words} a template such as '{{{{.name}}}}'.", False),
            (("-q", "--quiet"), "name", names, True),
            (("--json",), "json", as_json, True),
        ):
            if text:
                function = click.option(
                    *given,
                    name,
                    is_flag=kind,
                    metavar=None if kind else "FORM",
                    expose_value=False,
                    callback=choose,
                    help=text,
                )(function)
        return function

    return add


def format_options(function: _F) -> _F:
    """`formats` with the words that suit most lists."""
    return formats()(function)


def check_lasting(attempted: str) -> None:
    """Refuse to mount in a namespace that ends with this command.  Raises `FailedPrecondition`."""
    if os.environ.get(PASSING):
        raise FailedPrecondition(
            attempted,
            "without root it would be mounted for this command alone",
            hint="open a shell with 'orlop unshare' first, or use 'orlop run'",
        )


@contextmanager
def path_hint(path: str) -> Iterator[None]:
    """Where the service refuses a relative path, say what to write instead."""
    try:
        yield
    except InvalidArgument as exc:
        if not os.path.isabs(path) and path in f"{exc.attempted} {exc.reason}":
            exc.hint = f"write {os.path.abspath(path)}"
        raise
