"""``orlop share``: images for podman, buildah and skopeo, without a copy."""

from __future__ import annotations

import os

from orlop.cli import declared as click
from orlop.cli import output
from orlop.cli.session import Session, format_options, pass_session, progress_options, verb
from orlop.hints import TYPE_CHECKING

if TYPE_CHECKING:
    from orlop.cli.progress import ProgressMode
    from orlop.images.shares import ShareForm

__all__ = ["add_verb", "drop_verb", "list_verb", "renew_verb", "share_verb"]


@click.group(
    "share",
    invoke_without_command=True,
    epilog="\b\nExamples:\n  orlop share add /srv/layout alpine\n"
    "  podman run oci:/srv/layout:docker.io/library/alpine:latest\n"
    "  orlop share add --form store /srv/images alpine\n"
    "  podman --storage-opt additionalimagestore=/srv/images run alpine\n"
    "  orlop share renew && orlop share list\n  orlop share drop /srv/images",
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.pass_context
def share_verb(ctx: click.Context) -> None:
    """Let podman, buildah and skopeo read images here, without a copy.

    A share is a folder that they know how to read, made of links and mounts.  Its images are kept as long as
    it is there.
    """
    if ctx.invoked_subcommand is None:
        output.write(ctx.get_help() + "\n")


@verb(
    "add",
    "orlop share add /srv/layout alpine localhost/mine",
    "orlop share add --form store /srv/images alpine",
)
@click.argument("folder", metavar="DIR")
@click.argument("images", metavar="IMAGE...", nargs=-1, required=True)
@click.option(
    "--form",
    type=click.Choice(["layout", "store"]),
    help="An OCI layout of links, or an image store of mounts.  [default: layout]",
)
@click.option("--platform", metavar="OS/ARCH[/VARIANT]", help="Instead of what the name means here.")
@click.option(
    "--run-only", is_flag=True, help="A store to run and build from, not to push from; made at once."
)
@progress_options
@pass_session
def add_verb(
    session: Session,
    folder: str,
    images: tuple[str, ...],
    form: ShareForm | None,
    platform: str | None,
    run_only: bool,
    quiet: bool,
    progress: ProgressMode,
) -> None:
    """Put images into the share at DIR, which is made if there is none.

    A layout is for whoever copies from there: podman pull, podman run, buildah from, skopeo.  A store is
    used in place by podman and buildah of root (additionalimagestores in storage.conf): nothing is copied.
    Prints how each image is asked for.
    """
    with session.store() as store, session.call(quiet=quiet, progress=progress) as call:
        done = store.share(folder, *images, form=form, platform=platform, run_only=run_only, call=call)
    for name in done.images:
        output.write(f"oci:{done.folder}:{name}\n" if done.form == "layout" else f"{name}\n")


@verb("list", "orlop share list", "orlop share list --json")
@format_options
@pass_session
def list_verb(session: Session, form: str = "table") -> None:
    """List shares.

    STATE is ready, unmounted (`orlop share renew` mounts it again, as after a reboot), unfinished, or missing
    where the folder is gone (`orlop share drop` lets its images go).
    """
    with session.store() as store:
        found = store.shares()
    columns: list[output.Column] = [
        ("FOLDER", lambda one: one.folder),
        ("FORM", lambda one: one.form),
        ("STATE", lambda one: one.state),
        ("IMAGES", lambda one: " ".join(one.images)),
    ]
    output.show_list(found, columns, form=form, names=lambda one: one.folder)


@verb("renew", "orlop share renew", "orlop share renew /srv/images")
@click.argument("folders", metavar="[DIR]...", nargs=-1)
@progress_options
@pass_session
def renew_verb(session: Session, folders: tuple[str, ...], quiet: bool, progress: ProgressMode) -> None:
    """Make shares whole again: links, documents, and mounts, as after a reboot.

    Without DIR all that are not ready, but those whose folder is gone.  Prints their folders.
    """
    with session.store() as store, session.call(quiet=quiet, progress=progress) as call:
        wanted = [os.path.abspath(folder) for folder in folders] or [
            one.folder for one in store.shares() if one.state in {"unmounted", "unfinished"}
        ]
        for folder in wanted:
            output.write(f"{store.share(folder, call=call).folder}\n")


@verb("drop", "orlop share drop /srv/images")
@click.argument("folders", metavar="DIR...", nargs=-1, required=True)
@pass_session
def drop_verb(session: Session, folders: tuple[str, ...]) -> None:
    """Take shares away: their folders and mounts; what nothing else keeps may go then.

    Containers that podman made on a store have to be gone before.  Prints each folder.
    """
    with session.store() as store, session.call(quiet=True) as call:
        for folder in folders:
            store.drop_share(folder, call=call)
            output.write(f"{folder}\n")


for _command in (add_verb, list_verb, renew_verb, drop_verb):
    share_verb.add_command(_command)
