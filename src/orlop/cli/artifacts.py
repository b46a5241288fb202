"""``artifact push`` and ``artifact pull``: files in a registry.  They are this machine's, so no daemon."""

from __future__ import annotations

import re

from orlop.cli import declared as click
from orlop.cli import output
from orlop.cli.exits import Misuse, one_line
from orlop.cli.session import Session, pass_session, progress_options, verb
from orlop.errors import InvalidArgument
from orlop.hints import TYPE_CHECKING

if TYPE_CHECKING:
    from orlop.cli.progress import ProgressMode
    from orlop.remote.api import ArtifactFile
    from orlop.remote.verbs import Remote

__all__ = ["artifact_verb", "file_of", "pull_verb", "push_verb"]

_TYPED = re.compile(r"(.+):([A-Za-z0-9][\w!#$&^.+-]*/[A-Za-z0-9][\w!#$&^.+-]*)", re.ASCII | re.DOTALL)


@click.group(
    "artifact",
    invoke_without_command=True,
    epilog="\b\nExample:\n  orlop artifact push registry.example.com/data:1 table.csv:text/csv",
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.pass_context
def artifact_verb(ctx: click.Context) -> None:
    """Push and pull files as artifacts.

    Any files, under any media types; other tools (oras) read and write the same.
    """
    if ctx.invoked_subcommand is None:
        output.write(ctx.get_help() + "\n")


def file_of(text: str) -> ArtifactFile:
    """A file as the command line names it, ``FILE[:MEDIA_TYPE]``.

    >>> file_of("a.csv:text/csv").media_type, file_of("a:b").path
    ('text/csv', 'a:b')
    """
    from orlop.remote.api import ArtifactFile

    match = _TYPED.fullmatch(text)
    return ArtifactFile(path=text) if match is None else ArtifactFile(path=match[1], media_type=match[2])


def _remote(session: Session) -> Remote:
    from orlop.remote.verbs import Remote

    if session.target.host is not None:
        raise Misuse("files are this machine's, and --host is elsewhere", "leave out --host and ORLOP_HOST")
    return Remote(session.target.settings())


@verb(
    "push",
    "orlop artifact push registry.example.com/data:1 table.csv:text/csv notes.md",
    "orlop artifact push --type application/spdx+json --subject registry.lan/app:1 "
    "registry.lan/app sbom.json:application/spdx+json",
)
@click.argument("name", metavar="NAME")
@click.argument("files", metavar="FILE[:MEDIA_TYPE]...", nargs=-1)
@click.option("--type", "artifact_type", metavar="TYPE", help="What the artifact is: a media type.")
@click.option("--annotation", "annotations", metavar="KEY=VALUE", multiple=True, help="May be repeated.")
@click.option("--subject", metavar="IMAGE", help="What it refers to, in the same repository.")
@click.option("--config", metavar="FILE:MEDIA_TYPE", help="A configuration; without one it is empty.")
@click.option("--json", "as_json", is_flag=True, help="JSON; its fields are stable.")
@progress_options
@pass_session
def push_verb(
    session: Session,
    name: str,
    files: tuple[str, ...],
    artifact_type: str | None,
    annotations: tuple[str, ...],
    subject: str | None,
    config: str | None,
    as_json: bool,
    quiet: bool,
    progress: ProgressMode,
) -> None:
    """Push files to a registry as an artifact.

    The same files give the same digest. With --subject and without a tag it is pushed by its digest alone.
    Prints NAME@sha256:….
    """
    if not (files or annotations or artifact_type or subject or config):
        raise Misuse(
            "there is nothing to push", "name files, or say what an artifact without files is: --type"
        )
    said: dict[str, str] = {}
    for text in annotations:
        key, equals, value = text.partition("=")
        if not key or not equals:
            raise InvalidArgument(f"use annotation {text[:100]!r}", "it is not KEY=VALUE")
        said[key] = value
    with (
        _remote(session) as remote,
        session.call(quiet=quiet, progress=progress, of=("artifact push",)) as call,
    ):
        done = remote.push_artifact(
            name,
            [file_of(text) for text in files],
            artifact_type=artifact_type,
            annotations=said,
            subject=subject,
            config=file_of(config) if config is not None else None,
            call=call,
        )
    if as_json:
        output.write_json(done)
        return
    output.write(f"{done.name if done.name.endswith('@' + done.digest) else f'{done.name}@{done.digest}'}\n")


@verb(
    "pull",
    "orlop artifact pull registry.example.com/data:1",
    "orlop artifact pull -o ./data --json registry.example.com/data:1 | jq -r '.files[].path'",
)
@click.argument("name", metavar="NAME")
@click.option("-o", "--output", "folder", metavar="DIR", default=".", help="Where to.  [default: here]")
@click.option("--platform", metavar="OS/ARCH[/VARIANT]", help="Of an index: the one that serves it.")
@click.option("-f", "--force", is_flag=True, help="Replace files that are there.")
@click.option("--json", "as_json", is_flag=True, help="JSON; its fields are stable.")
@progress_options
@pass_session
def pull_verb(
    session: Session,
    name: str,
    folder: str,
    platform: str | None,
    force: bool,
    as_json: bool,
    quiet: bool,
    progress: ProgressMode,
) -> None:
    """Write the files of an artifact into a folder.

    By the names that the artifact gives them, below the folder alone; each is verified before it gets its
    name. Again after a break it goes on where it was. Prints the files' paths.
    """
    with (
        _remote(session) as remote,
        session.call(quiet=quiet, progress=progress, of=("artifact pull",)) as call,
    ):
        done = remote.pull_artifact(name, folder, platform=platform, force=force, call=call)
    if as_json:
        output.write_json(done)
        return
    output.write("".join(f"{one_line(file.path)}\n" for file in done.files))


artifact_verb.add_command(push_verb)
artifact_verb.add_command(pull_verb)
