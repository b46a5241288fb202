"""``orlop bundle``: a prepared root as a bundle for any OCI runtime."""

from __future__ import annotations

import os
import shlex

from orlop.cli import declared as click
from orlop.cli import output
from orlop.cli.rootargs import id_maps_of
from orlop.cli.runargs import entrypoint_of, environment, volume_of
from orlop.cli.session import Session, pass_session, path_hint, progress_options, verb
from orlop.errors import InvalidArgument
from orlop.hints import TYPE_CHECKING

if TYPE_CHECKING:
    from orlop.cli.progress import ProgressMode
    from orlop.images.api import Mount
    from orlop.images.running.bundle import Net, Rlimit
    from orlop.images.running.imagevolumes import ImageVolumes

__all__ = ["bundle_verb", "hook_of", "mount_of", "rlimit_of"]


@verb(
    "bundle",
    "orlop bundle /srv/a /srv/a.bundle && runc run --bundle /srv/a.bundle a",
    "orlop bundle --arg echo --arg hello --readonly --force /srv/a /srv/a.bundle",
    "orlop bundle --root-mounts --net host --terminal /srv/b /srv/b.bundle",
    "orlop bundle --rootless /home/me/c /home/me/c.bundle",
)
@click.argument("path", metavar="PATH")
@click.argument("folder", metavar="[DIR]", default=".")
@click.option("-a", "--arg", "args", metavar="WORD", multiple=True, help="The command, a word each.")
@click.option("--entrypoint", metavar="PROGRAM", help="Instead of the image's; '' for none.")
@click.option("-e", "--env", "variables", metavar="NAME[=VALUE]", multiple=True, help="Set a variable.")
@click.option("--env-file", "env_files", metavar="FILE", multiple=True, help="Set variables of a file.")
@click.option("-w", "--cwd", metavar="DIR", help="Where the command starts.")
@click.option("-u", "--user", metavar="USER[:GROUP]", help="Who runs it, by name or number.")
@click.option("-t", "--terminal", is_flag=True, help="Give it a terminal.")
@click.option("--hostname", metavar="NAME", default="", help="What the container calls itself.")
@click.option("--readonly", is_flag=True, help="Let it write nothing but mounts.")
@click.option(
    "--net",
    type=click.Choice(["none", "host"]),
    default="none",
    show_default=True,
    help="A network of its own with nothing in it, or the host's.",
)
@click.option(
    "-v", "--volume", "volumes", metavar="SOURCE:TARGET[:ro]", multiple=True, help="Show a path of the host."
)
@click.option(
    "--mount",
    "mounts",
    metavar="KEY=VALUE,...",
    multiple=True,
    help="type=tmpfs,target=/x,size=64m: any mount that the runtime-spec knows.",
)
@click.option(
    "--image-volumes",
    type=click.Choice(["folder", "tmpfs", "none"]),
    default="folder",
    show_default=True,
    help="What stands in for the image's VOLUMEs; with none they stay in the root.",
)
@click.option("--annotation", "annotations", metavar="KEY=VALUE", multiple=True, help="Add an annotation.")
@click.option("--unsafe-labels", is_flag=True, help="Take over labels that runtimes act upon, too.")
@click.option(
    "--seccomp",
    metavar="auto|none|FILE",
    default="auto",
    show_default=True,
    help="A filter of system calls; auto is podman's, where this machine has it.",
)
@click.option(
    "--rlimit", "rlimits", metavar="NAME=SOFT[:HARD]", multiple=True, help="As in nofile=1024:4096."
)
@click.option("--cgroup", metavar="PATH", help="The control group.  [default: the runtime's choice]")
@click.option("--hook", "hooks", metavar="KIND=COMMAND", multiple=True, help="As in poststop=/bin/sh -c ...")
@click.option("--rootless", is_flag=True, help="For a runtime that you start without root.")
@click.option(
    "--uidmap",
    "uid_map",
    metavar="INSIDE:OUTSIDE:SIZE",
    multiple=True,
    help="A user namespace with these ids.  [default: those that PATH was prepared with]",
)
@click.option(
    "--gidmap", "gid_map", metavar="INSIDE:OUTSIDE:SIZE", multiple=True, help="The same for groups."
)
@click.option(
    "--root-mounts", is_flag=True, help="Have the runtime mount the root; PATH need not be mounted."
)
@click.option("-f", "--force", is_flag=True, help="Replace a config.json that is there.")
@click.option("--json", "as_json", is_flag=True, help="JSON; its fields are stable.")
@progress_options
@pass_session
def bundle_verb(
    session: Session,
    path: str,
    folder: str,
    args: tuple[str, ...],
    entrypoint: str | None,
    variables: tuple[str, ...],
    env_files: tuple[str, ...],
    cwd: str | None,
    user: str | None,
    terminal: bool,
    hostname: str,
    readonly: bool,
    net: Net,
    volumes: tuple[str, ...],
    mounts: tuple[str, ...],
    image_volumes: ImageVolumes,
    annotations: tuple[str, ...],
    unsafe_labels: bool,
    seccomp: str,
    rlimits: tuple[str, ...],
    cgroup: str | None,
    hooks: tuple[str, ...],
    rootless: bool,
    uid_map: tuple[str, ...],
    gid_map: tuple[str, ...],
    root_mounts: bool,
    force: bool,
    as_json: bool,
    quiet: bool,
    progress: ProgressMode,
) -> None:
    """Write a bundle for a prepared root, which any OCI runtime runs: its config.json.

    The image's config is translated as the OCI's image-spec says: entrypoint and command, environment,
    working directory, user, labels, stop signal, ports and volumes; options count instead of it.  PATH is
    mounted already, or, with --root-mounts, mounted by the runtime (runc can do that, crun cannot).  DIR is
    made if it is missing; without it the bundle goes to the folder that you are in.  Prints DIR.
    """
    users, groups = id_maps_of(uid_map, gid_map)
    with session.store() as store, session.call(quiet=quiet, progress=progress) as call, path_hint(path):
        done = store.get(path).bundle(
            folder,
            args=args,
            entrypoint=entrypoint_of(entrypoint),
            env=environment(variables, env_files, os.environ),
            cwd=cwd,
            user=user,
            terminal=terminal,
            hostname=hostname,
            readonly=readonly,
            net=net,
            volumes=tuple(volume_of(text) for text in volumes),
            mounts=tuple(mount_of(text) for text in mounts),
            image_volumes=image_volumes,
            annotations=dict(_pair(text, "annotate") for text in annotations),
            unsafe_labels=unsafe_labels,
            seccomp=seccomp,
            rootless=rootless,
            uid_map=users,
            gid_map=groups,
            root_mounts=root_mounts,
            rlimits=tuple(rlimit_of(text) for text in rlimits),
            cgroup=cgroup,
            hooks=tuple(hook_of(text) for text in hooks),
            force=force,
            call=call,
        )
    if as_json:
        output.write_json(done)
        return
    output.write(f"{done.folder}\n")
    if not quiet:
        for label in done.left_out:
            output.note(f"label {label} is left out: runtimes act upon such; --unsafe-labels takes it over")
        for volume in done.unmounted:
            output.note(f"volume {volume} stays in the root")


def mount_of(text: str) -> Mount:
    """A mount out of ``type=tmpfs,target=/x,size=64m``, as docker's users write it."""
    from orlop.images.api import Mount

    what = f"mount {text!r}"
    given = {"type": "bind", "source": "", "target": ""}
    names = {"src": "source", "dst": "target", "destination": "target"}
    options: list[str] = []
    for word in filter(None, text.split(",")):
        key, _, value = word.partition("=")
        key = names.get(key, key)
        if key in given:
            given[key] = value
        else:
            options.append({"readonly": "ro"}.get(word, word))
    if not given["target"].startswith("/"):
        raise InvalidArgument(what, "it has no absolute target", hint="write type=tmpfs,target=/x")
    if given["type"] == "bind":
        if not os.path.isabs(given["source"]):
            raise InvalidArgument(what, "a bind mount needs an absolute source", hint="add source=/a/path")
        if not {"bind", "rbind"} & set(options):
            options.insert(0, "rbind")
    return Mount(
        type=given["type"], source=given["source"] or given["type"], target=given["target"],
        options=tuple(options),
    )  # fmt: skip


def rlimit_of(text: str) -> Rlimit:
    """A limit out of ``nofile=1024:4096``."""
    from orlop.images.running.bundle import Rlimit

    name, _, values = text.partition("=")
    soft, colon, hard = values.partition(":")
    hard = hard if colon else soft
    if not (name.isalpha() and soft.isdecimal() and hard.isdecimal()):
        raise InvalidArgument(
            f"limit {text!r}", "not a limit", hint="write NAME=SOFT:HARD, as in nofile=1024:4096"
        )
    return Rlimit(type=f"RLIMIT_{name.upper()}", soft=int(soft), hard=int(hard))


def hook_of(text: str) -> tuple[str, tuple[str, ...]]:
    """A hook out of ``poststop=/bin/rm -r /x``; words as a shell splits them."""
    kind, command = _pair(text, "add hook")
    try:
        return kind, tuple(shlex.split(command))
    except ValueError as exc:
        raise InvalidArgument(f"add hook {text!r}", f"not a command: {exc}") from exc


def _pair(text: str, what: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise InvalidArgument(f"{what} {text!r}", "it is no pair", hint="write KEY=VALUE")
    return key, value
