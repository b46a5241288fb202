"""Verbs about prepared roots: ``prepare`` to ``cleanup``.

Paths go to the service as they were typed: that a relative one is refused is the service's rule.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable
from contextlib import suppress

from orlop.cli import declared as click
from orlop.cli import output
from orlop.cli.exits import Misuse
from orlop.cli.quantities import size_of
from orlop.cli.rootargs import extra_of, id_maps_of
from orlop.cli.session import (
    DRIVER,
    Session,
    check_lasting,
    format_options,
    formats,
    pass_session,
    path_hint,
    progress_options,
    verb,
)
from orlop.errors import FailedPrecondition, NotFound
from orlop.hints import TYPE_CHECKING

if TYPE_CHECKING:
    from orlop.cli.filters import Fits
    from orlop.cli.progress import ProgressMode
    from orlop.config import Driver, PullPolicy
    from orlop.images.api import Mount, PreparedInfo

__all__ = [
    "cleanup_verb",
    "labels_of",
    "mount_verb",
    "mounts_verb",
    "prepare_verb",
    "ps_verb",
    "unmount_verb",
]

PULL = click.Choice(["missing", "never", "always"])


@verb(
    "prepare",
    "orlop prepare --mount alpine /srv/a",
    "orlop prepare alpine /srv/a | sudo sh -e",
    "orlop prepare --view --json alpine /srv/b",
    "orlop prepare --quota 2G --uidmap 0:100000:65536 --volume ./src:/src:ro alpine /srv/c",
)
@click.argument("image", metavar="IMAGE")
@click.argument("path", metavar="PATH")
@click.option("--view", is_flag=True, help="Read-only, with nothing to commit.")
@click.option("--mount", is_flag=True, help="Mount it, too; prints PATH instead of the mounts.")
@click.option(
    "--self-contained",
    is_flag=True,
    help="Mounts for another mount namespace that sees the store at the same path.",
)
@click.option("--pull", type=PULL, help="When to fetch the image.  [default: missing]")
@click.option("--platform", metavar="OS/ARCH[/VARIANT]", help="Instead of this machine's.")
@click.option("--label", "labels", metavar="KEY=VALUE", multiple=True, help="Remember a label.")
@click.option("--driver", type=DRIVER, help="How to assemble it, instead of the store's setting.")
@click.option("--quota", metavar="SIZE", help="How much may be written to it: 512M, 2G.")
@click.option(
    "--uidmap",
    "uid_map",
    metavar="INSIDE:OUTSIDE:SIZE",
    multiple=True,
    help="Show the image's user ids as others; the groups', too, without --gidmap.  May be repeated.",
)
@click.option(
    "--gidmap",
    "gid_map",
    metavar="INSIDE:OUTSIDE:SIZE",
    multiple=True,
    help="The same for groups, and without --uidmap for users.  May be repeated.",
)
@click.option("--userns", metavar="PATH", help="Map ids as this user namespace does: /proc/PID/ns/user.")
@click.option(
    "-v", "--volume", "volumes", metavar="SOURCE:TARGET[:ro]", multiple=True, help="Show a path of the host."
)
@click.option("--tmpfs", metavar="TARGET[:OPTIONS]", multiple=True, help="Memory, as in /tmp:size=64m.")
@click.option(
    "--image-volume", "image_volumes", metavar="IMAGE:TARGET", multiple=True, help="Show an image, read-only."
)
@click.option("--json", "as_json", is_flag=True, help="Print the mounts as JSON.")
@progress_options
@pass_session
def prepare_verb(
    session: Session,
    image: str,
    path: str,
    view: bool,
    mount: bool,
    self_contained: bool,
    pull: PullPolicy | None,
    platform: str | None,
    labels: tuple[str, ...],
    driver: Driver | None,
    quota: str | None,
    uid_map: tuple[str, ...],
    gid_map: tuple[str, ...],
    userns: str | None,
    volumes: tuple[str, ...],
    tmpfs: tuple[str, ...],
    image_volumes: tuple[str, ...],
    as_json: bool,
    quiet: bool,
    progress: ProgressMode,
) -> None:
    """Make an image's root file system ready at a path.

    Prints the mounts that assemble it at PATH.  PATH is absolute and need not exist.  The image is
    fetched if it is missing.  Each line of the output is a mount command, in order; with --json it
    is a list of {type, source, target, options}.  Further mounts come last, outer ones first.  The root
    stays prepared, also across a reboot, until `orlop cleanup PATH`.
    """
    users, groups = id_maps_of(uid_map, gid_map)
    size = None if quota is None else size_of(quota)
    extra = extra_of(volumes, tmpfs, image_volumes)
    if mount:
        check_lasting(f"prepare {path}")
    with (
        session.store() as store,
        session.call(quiet=quiet, progress=progress, of=("prepare",)) as call,
        path_hint(path),
    ):
        prepared = store.prepare(
            image,
            path,
            view=view,
            mount=mount,
            self_contained=self_contained,
            pull=pull,
            platform=platform,
            labels=labels_of(labels),
            driver=driver,
            quota=size,
            extra=extra,
            user_namespace=userns,
            uid_map=users,
            gid_map=groups,
            call=call,
        )
    if mount and not as_json:
        output.write(f"{prepared.path}\n")
    else:
        _show_mounts(prepared.mounts, form="json" if as_json else "table")


@verb(
    "mounts",
    "orlop mounts /srv/a | sudo sh -e",
)
@click.argument("path", metavar="PATH")
@formats(names="Where they go alone, one a line.")
@pass_session
def mounts_verb(session: Session, path: str, form: str = "table") -> None:
    """Print the mounts of a prepared root again.

    They can be performed when they are printed, also after a reboot.
    """
    with session.store() as store, path_hint(path):
        mounts = store.get(path).mounts
    _show_mounts(mounts, form=form)


@verb(
    "mount",
    "orlop mount /srv/a",
)
@click.argument("paths", metavar="PATH...", nargs=-1, required=True)
@pass_session
def mount_verb(session: Session, paths: tuple[str, ...]) -> None:
    """Mount prepared roots.

    Prints each path.  One that is mounted already is left as it is.
    """
    check_lasting(f"mount {paths[0]}")
    with session.store() as store:
        for path in paths:
            with path_hint(path):
                output.write(f"{store.verbs.mount(path).path}\n")


@verb(
    "unmount",
    "orlop unmount /srv/a",
)
@click.argument("paths", metavar="PATH...", nargs=-1, required=True)
@pass_session
def unmount_verb(session: Session, paths: tuple[str, ...]) -> None:
    """Unmount prepared roots; what was written stays.

    It is there again after `orlop mount`.  Prints each path.
    """
    with session.store() as store:
        for path in paths:
            with path_hint(path):
                output.write(f"{store.verbs.unmount(path).path}\n")


@verb(
    "ps",
    "orlop ps",
    "orlop ps --quiet | xargs -r orlop cleanup",
    "orlop ps --filter image=alpine --filter mounted=no",
    "orlop ps --format '{{.path}} {{.labels}}'",
)
@format_options
@click.option("-a", "--all", "everything", is_flag=True, help="All of them, as is done without it.")
@click.option(
    "-f",
    "--filter",
    "filters",
    metavar="KEY=VALUE",
    multiple=True,
    help="Those alone: image=, path=, label=, driver=, kind=, mounted=.  May be repeated.",
)
@click.option("--no-trunc", is_flag=True, help="Whole cells, also where a terminal has no room for them.")
@pass_session
def ps_verb(
    session: Session, everything: bool, filters: tuple[str, ...], no_trunc: bool, form: str = "table"
) -> None:
    """List prepared roots.

    Filters of different keys have to hold all, of one key any; image and path take * and ?.
    """
    from orlop.cli.filters import kept

    columns: list[output.Column] = [
        ("PATH", lambda root: root.path),
        ("IMAGE", lambda root: root.image),
        ("KIND", lambda root: root.kind),
        ("DRIVER", lambda root: root.driver),
        ("MOUNTED", lambda root: "no, path gone" if root.missing else output.yes_no(root.mounted)),
        ("CREATED", lambda root: output.ago(root.created)),
    ]
    with session.store() as store:
        found: list[PreparedInfo] = store.prepared()
    found = kept(found, filters, _filters())
    output.show_list(found, columns, form=form, names=lambda root: root.path, whole=no_trunc)


def _filters() -> dict[str, Fits]:
    from fnmatch import fnmatchcase

    from orlop.cli.filters import fits_label, fits_name, fits_truth

    def image(root: PreparedInfo, text: str) -> bool:
        return fits_name(root.image, text) or (
            len(text) >= 12 and root.image_id.partition(":")[2].startswith(text)
        )

    return {
        "image": image,
        "ancestor": image,  # docker's word for it
        "path": lambda root, text: fnmatchcase(root.path, text),
        "label": lambda root, text: fits_label(root.labels, text),
        "driver": lambda root, text: bool(root.driver == text),
        "kind": lambda root, text: bool(root.kind == text),
        "mounted": lambda root, text: fits_truth(root.mounted, text),
    }


@verb(
    "cleanup",
    "orlop cleanup /srv/a /srv/b",
    "orlop cleanup --all",
)
@click.argument("paths", metavar="PATH...", nargs=-1)
@click.option("-a", "--all", "everything", is_flag=True, help="All prepared roots; then there is no PATH.")
@click.option("-f", "--force", is_flag=True, help="Ignore paths where nothing is prepared.")
@progress_options
@pass_session
def cleanup_verb(
    session: Session,
    paths: tuple[str, ...],
    everything: bool,
    force: bool,
    quiet: bool,
    progress: ProgressMode,
) -> None:
    """Unmount prepared roots and delete what was written.

    Prints each path.  One that is still in use is left whole, with an error that says who uses it.
    """
    if everything is bool(paths):
        raise Misuse("name the roots, or say --all", "`orlop ps` lists them")
    with session.store() as store, session.call(quiet=quiet, progress=progress, of=("cleanup",)) as call:
        for path in paths or [root.path for root in store.prepared()]:
            call.check(f"clean up {path}")
            try:
                with path_hint(path):
                    store.verbs.cleanup(path, call=call)
            except NotFound:
                if not force:
                    raise
                continue
            _remove_container_folder(session, path)
            output.write(f"{path}\n")


def _remove_container_folder(session: Session, path: str) -> None:
    """Take away the folder that `orlop run` made around a root that it kept."""
    folder, name = os.path.split(path)
    if name == "rootfs":
        # No run folder, or not empty: nothing that run made, or nothing to take away yet.
        with suppress(FailedPrecondition, OSError):
            if os.path.dirname(folder) == session.target.containers_path:
                os.rmdir(folder)


def labels_of(texts: Iterable[str]) -> dict[str, str]:
    """Labels out of ``key=value`` texts; without ``=`` the value is empty, as in docker."""
    pairs = (text.partition("=") for text in texts)
    return {key: value for key, _, value in pairs}


def mount_command(mount: Mount) -> str:
    """A mount as a command for a shell."""
    words = ["mount", "-t", mount.type]
    if mount.options:
        words += ["-o", ",".join(mount.options)]
    return shlex.join([*words, mount.source, mount.target])


def _show_mounts(mounts: tuple[Mount, ...], *, form: str) -> None:
    if form == "json":
        output.write_json(mounts)
    elif form == "table":  # for a shell, which takes a path's bytes as they are
        output.write("".join(f"{mount_command(mount)}\n" for mount in mounts))
    else:
        output.show_each(mounts, form=form, line=mount_command, names=lambda mount: mount.target)
