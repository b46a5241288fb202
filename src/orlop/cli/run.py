"""``run``: a command in a container made from an image, and nothing left behind.

Prepares and mounts a root, writes a bundle, has a runtime run it, and takes all of it away again:

    RUN-containers/<id or name>/    mode 0700
      bundle-<id>/                  config.json, and the files about names that are mounted over /etc
      rootfs/                       the root, unless --path says where
    RUN-containers/.runtime/        the OCI runtime's own state

Invariants: what was prepared is cleaned up however the verb ends, unless the user asked to keep it and
the container ran; a root that another call prepared is never touched (ours carries a label with our
id); nothing is deleted through a mount, for the folders are emptied by name.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from orlop.cli import declared as click
from orlop.cli import output
from orlop.cli.exits import RunFailed
from orlop.cli.interrupts import Interrupts
from orlop.cli.progress import Silent, default_observer
from orlop.cli.roots import PULL
from orlop.cli.runargs import container_name, entrypoint_of, environment, volume_of
from orlop.cli.session import DRIVER, Session, pass_session, path_hint, progress_options, verb
from orlop.errors import Cancelled, Error, FailedPrecondition, InvalidArgument, from_oserror
from orlop.hints import TYPE_CHECKING
from orlop.images.running.bundle import RunOptions, build_spec, write_bundle, write_etc_files
from orlop.observe import Call
from orlop.spec.documents import parse_config
from orlop.values import dataclass, replace

if TYPE_CHECKING:
    from orlop.cli.progress import ProgressMode
    from orlop.cli.session import Runner
    from orlop.config import Driver, PullPolicy
    from orlop.facade import Prepared, Store
    from orlop.images.running.bundle import Net

__all__ = ["Container", "Order", "run_verb"]

LABEL = "orlop.run"  # on the roots that this verb prepares: the container's ID


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What is to be run, and where.

    ``folder`` is the container's own, ``path`` that of the root.  ``keep`` leaves the root
    prepared after the container ran.  Without ``mount`` it runs in the plain folder that is the root.
    """

    image: str
    id: str
    folder: Path
    path: str
    options: RunOptions
    hostname: str
    keep: bool = False
    mount: bool = True
    pull: PullPolicy | None = None
    platform: str | None = None
    driver: Driver | None = None


class Container:
    """One container from beginning to end.  `run` is called once."""

    def __init__(self, store: Store, order: Order, runner: Runner) -> None:
        self._store = store
        self._order = order
        self._runner = runner
        self._bundle = order.folder / f"bundle-{order.id}"
        self._ran = False

    def run(self, observer: Silent, interrupts: Interrupts) -> int:
        """Prepare, run, clean up; the exit code of the container's command.

        Raises what the store raises, and `InvalidArgument` for what cannot be run.
        """
        try:
            prepared = self._prepare(Call(observer=observer, cancel=interrupts.cancel))
            observer.close()
            self._write_bundle(prepared)
            if interrupts.cancel.cancelled:
                raise Cancelled(f"run {self._order.image}", "cancelled")
            code = self._runner(self._bundle, self._order.id)
            self._ran = True
            return code
        finally:
            observer.close()
            with interrupts.renewed() as cancel:
                self._clean_up(Call(observer=observer, cancel=cancel))

    def _prepare(self, call: Call) -> Prepared:
        order = self._order
        try:
            self._bundle.mkdir(mode=0o700, parents=True)
            order.folder.chmod(0o700)
        except OSError as exc:
            raise from_oserror(f"run {order.image}", exc) from exc
        with path_hint(order.path):
            return self._store.prepare(
                order.image,
                order.path,
                mount=order.mount,
                pull=order.pull,
                platform=order.platform,
                labels={LABEL: order.id},
                driver=order.driver,
                call=call,
            )

    def _write_bundle(self, prepared: Prepared) -> None:
        order = self._order
        attempted = f"run {order.image}"
        place = prepared.path if order.mount else prepared.folder
        if place is None:
            raise FailedPrecondition(
                attempted,
                f"a root of the {prepared.info.driver} driver has to be mounted, which we may not",
                hint="leave out --driver, or use --driver native",
            )
        config = parse_config(self._store.inspect(prepared.info.image_id).config, attempted)
        etc = write_etc_files(self._bundle, hostname=order.hostname, net=order.options.net)
        try:
            root = os.open(place, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as exc:
            raise from_oserror(attempted, exc) from exc
        try:
            options = replace(order.options, etc=etc, hostname=order.hostname)
            write_bundle(self._bundle, build_spec(config, place, options, root_fd=root))
        finally:
            os.close(root)

    def _clean_up(self, call: Call) -> None:
        """Take everything away.  Trouble here is a warning: the error on its way, or the code, counts."""
        free = False
        try:
            free = self._release_root(call)
        except Error as exc:
            call.observer.warning(str(exc))
        try:
            for file in self._bundle.iterdir():
                file.unlink()
            self._bundle.rmdir()
        except FileNotFoundError:
            pass  # it was never made
        except OSError as exc:
            call.observer.warning(str(from_oserror("remove the bundle", exc)))
        if free or not Path(self._order.path).is_relative_to(self._order.folder):
            with suppress(OSError):  # not empty: another container is on its way under the same name
                self._order.folder.rmdir()

    def _release_root(self, call: Call) -> bool:
        """Clean up or unmount the root, if it is ours; whether nothing is prepared at the path then."""
        order = self._order
        # A call that was cut off may have prepared the root all the same; another's has another label.
        ours = [root for root in self._store.prepared() if root.path == order.path]
        if not ours or ours[0].labels.get(LABEL) != order.id:
            return not ours
        if order.keep and self._ran:
            self._store.verbs.unmount(order.path)
            return False
        self._store.verbs.cleanup(order.path, call=call)
        return True


def _direct(image: str, contradictions: Mapping[str, object], *, interactive: bool) -> Runner:
    """What runs a bundle's command on this machine as it is."""
    from orlop.cli.direct import run_direct

    for option, value in contradictions.items():
        if value:
            reason = f"--exec isolates nothing: it cannot have {option}"
            raise InvalidArgument(f"run {image}", reason, hint=f"leave out {option}")
    output.note("--exec: it runs on this machine as you, with no isolation whatsoever")
    return lambda bundle, _: run_direct(bundle, interactive=interactive)


def _isolated(
    session: Session, order: Order, runtime: str | None, base: Path, *, interactive: bool
) -> tuple[Order, Runner]:
    """The order and its runner as our privilege has them; chosen before anything is prepared."""
    from orlop.cli.ways import CANNOT_MOUNT, choose_ways, namespace_here, runner_of
    from orlop.linux.userns import privilege

    rights = privilege()
    runner = runner_of(
        choose_ways(runtime, rights),
        base / ".runtime",
        tty=order.options.tty,
        interactive=interactive,
        privilege=rights,
    )
    options = replace(order.options, namespace=namespace_here(rights))
    mount = rights not in CANNOT_MOUNT or session.target.host is not None
    return replace(order, mount=mount, options=options), runner


@verb(
    "run",
    "orlop run alpine echo hello",
    "orlop run -it --rm alpine sh",
    "orlop run -v ./src:/src:ro -w /src -e DEBUG=1 python:3.13 python app.py",
    "orlop run --name a alpine touch /b && orlop commit /run/orlop-containers/a/rootfs localhost/with-b",
    options_first=True,
)
@click.argument("image", metavar="IMAGE")
@click.argument("command", metavar="[COMMAND [ARG]...]", nargs=-1, type=click.UNPROCESSED)
@click.option("-i", "--interactive", is_flag=True, help="Pass standard input on.")
@click.option("-t", "--tty", is_flag=True, help="Give it a terminal.")
@click.option("-e", "--env", "variables", metavar="NAME[=VALUE]", multiple=True, help="Set a variable.")
@click.option("--env-file", "env_files", metavar="FILE", multiple=True, help="Set variables of a file.")
@click.option("-w", "--workdir", metavar="DIR", help="Where the command starts.")
@click.option(
    "-v", "--volume", "volumes", metavar="SOURCE:TARGET[:ro]", multiple=True, help="Show a path of the host."
)
@click.option("-u", "--user", metavar="USER[:GROUP]", help="Who runs it, by name or number.")
@click.option("--entrypoint", metavar="PROGRAM", help="Instead of the image's; '' for none.")
@click.option(
    "--net",
    "--network",
    "net",
    type=click.Choice(["host", "none"]),
    default="host",
    show_default=True,
    help="The host's network, or none.",
)
@click.option("--hostname", metavar="NAME", help="What the container calls itself.")
@click.option("--read-only", is_flag=True, help="Let it write nothing but volumes.")
@click.option("--name", metavar="NAME", help="Prepare the root under this name, and keep it.")
@click.option("--path", metavar="PATH", help="Prepare the root at this path, and keep it.")
@click.option("--keep", is_flag=True, help="Keep the root; `orlop ps` shows it.")
@click.option("--rm", is_flag=True, help="Do not keep it (the default without --name, --path, --keep).")
@click.option("--pull", type=PULL, help="When to fetch the image.  [default: missing]")
@click.option("--platform", metavar="OS/ARCH[/VARIANT]", help="Instead of this machine's.")
@click.option("--driver", type=DRIVER, help="How to assemble the root, instead of the store's setting.")
@click.option(
    "--runtime",
    metavar="PROGRAM",
    help="An OCI runtime, bwrap, or chroot.  [default: crun or runc; without root the first that works]",
)
@click.option(
    "--exec", "direct", is_flag=True, help="On this machine as you, with NO isolation: from a plain copy."
)
@progress_options
@pass_session
def run_verb(
    session: Session,
    image: str,
    command: tuple[str, ...],
    interactive: bool,
    tty: bool,
    variables: tuple[str, ...],
    env_files: tuple[str, ...],
    workdir: str | None,
    volumes: tuple[str, ...],
    user: str | None,
    entrypoint: str | None,
    net: Net,
    hostname: str | None,
    read_only: bool,
    name: str | None,
    path: str | None,
    keep: bool,
    rm: bool,
    pull: PullPolicy | None,
    platform: str | None,
    driver: Driver | None,
    runtime: str | None,
    direct: bool,
    quiet: bool,
    progress: ProgressMode,
) -> int:
    """Run a command in a container made from an image.

    Ends with the command's exit code; with 125 if orlop itself failed.  What the container wrote is
    deleted with it, unless --name, --path or --keep says otherwise: then the root stays prepared, and
    can be committed.  Options come before IMAGE; what follows it belongs to the command.

    Where not even namespaces are to be had, --exec runs the program straight from the image's files:
    it sees this machine's files and processes, and can do to them what you can.
    """
    observer = default_observer(progress, quiet=quiet)
    interrupts = Interrupts(on_first=observer.interrupted)
    try:
        if rm and keep:
            raise InvalidArgument(f"run {image}", "--rm and --keep contradict each other")
        options = RunOptions(
            args=command,
            entrypoint=entrypoint_of(entrypoint),
            env=environment(variables, env_files, os.environ),
            workdir=workdir,
            user=user,
            tty=tty,
            volumes=tuple(volume_of(text) for text in volumes),
            net=net,
            read_only=read_only,
        )
        number = secrets.token_hex(16)
        base = Path(session.target.containers_path)
        folder = base / (container_name(name) if name else number)
        order = Order(
            image=image,
            id=number,
            folder=folder,
            path=path or str(folder / "rootfs"),
            options=options,
            hostname=hostname or (os.uname().nodename if net == "host" else number[:12]),
            keep=keep or (bool(name or path) and not rm),
            pull=pull,
            platform=platform,
            driver="native" if direct else driver,
        )
        if direct:
            contradictions = {
                "--volume": volumes,
                "--user": user,
                "--net none": net == "none",
                "--hostname": hostname,
                "--read-only": read_only,
                "--runtime": runtime,
                f"--driver {driver}": driver not in {None, "auto", "native"},
            }
            order = replace(order, mount=False)
            runner = _direct(image, contradictions, interactive=interactive)
        elif session.runner is not None:
            runner = session.runner
        else:
            order, runner = _isolated(session, order, runtime, base, interactive=interactive)
        with session.store() as store, interrupts:
            return Container(store, order, runner).run(observer, interrupts)
    except Exception as exc:
        if isinstance(exc, Cancelled) and interrupts.signum:
            from orlop.cli.resuming import left_by

            exc.details["left"] = left_by(("run",), exc, observer.board)
        raise RunFailed(interrupts.signum if isinstance(exc, Cancelled) else 0) from exc
    finally:
        observer.close()
