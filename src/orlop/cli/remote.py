"""Verbs on registries that need no store: ``copy``, ``tags``, ``manifest``, ``referrers``, ``delete-remote``.

With ``--host`` the daemon does them, with its own credentials.
"""

from __future__ import annotations

import json
import sys

from orlop.cli import declared as click
from orlop.cli import output
from orlop.cli.exits import Misuse, OutputClosed, one_line
from orlop.cli.session import Session, format_options, formats, pass_session, progress_options, verb
from orlop.errors import from_oserror
from orlop.hints import TYPE_CHECKING

if TYPE_CHECKING:
    from orlop.cli.progress import ProgressMode
    from orlop.remote.api import Document

__all__ = ["copy_verb", "delete_remote_verb", "manifest_verb", "referrers_verb", "tags_verb"]

_PLATFORM = "OS/ARCH[/VARIANT]"


@verb(
    "copy",
    "orlop copy alpine registry.example.com/mirror/alpine:3",
    "orlop copy --platform linux/arm64 alpine:3 registry.example.com/arm/alpine:3",
    "orlop copy --referrers --tag 1 --tag 1.2 registry.lan/app:1.2.3 registry.example.com/app:1.2.3",
)
@click.argument("source", metavar="SOURCE")
@click.argument("destination", metavar="DESTINATION")
@click.option("--platform", metavar=_PLATFORM, help="Pick this one of an index; the digest is another then.")
@click.option("--all-platforms", is_flag=True, help="The whole index, as is done without --platform.")
@click.option("--referrers", is_flag=True, help="Copy also what refers to it: signatures, SBOMs.")
@click.option("--tag", "tags", metavar="TAG", multiple=True, help="A further tag there.  May be repeated.")
@click.option("--json", "as_json", is_flag=True, help="JSON; its fields are stable.")
@progress_options
@pass_session
def copy_verb(
    session: Session,
    source: str,
    destination: str,
    platform: str | None,
    all_platforms: bool,
    referrers: bool,
    tags: tuple[str, ...],
    as_json: bool,
    quiet: bool,
    progress: ProgressMode,
) -> None:
    """Copy an image from registry to registry; nothing is stored here.

    What is there is not sent, what the same registry has is mounted, the rest goes through this process and
    is verified on its way. An index comes with all its platforms, byte for byte. Prints NAME@sha256:… for
    each name it has there.
    """
    with session.registries() as remote, session.call(quiet=quiet, progress=progress, of=("copy",)) as call:
        done = remote.copy(
            source,
            destination,
            platform=platform,
            all_platforms=all_platforms,
            referrers=referrers,
            tags=tags,
            call=call,
        )
    if done.digest != done.source_digest and not quiet:
        output.note(f"picked from {done.source_digest}: the copy's digest is {done.digest}")
    if as_json:
        output.write_json(done)
        return
    for name in done.names:
        output.write(f"{name if name.endswith('@' + done.digest) else f'{name}@{done.digest}'}\n")


@verb(
    "tags",
    "orlop tags alpine",
    "orlop tags --json registry.example.com/team/app | jq -r '.[]'",
    "orlop tags --last 1.2 --count 100 registry.example.com/team/app",
)
@click.argument("repository", metavar="REPOSITORY")
@click.option("--last", metavar="TAG", help="Those after this one, in the registry's order.")
@click.option("--count", metavar="N", type=click.IntRange(min=1), help="At most so many.")
@formats(names="Tags alone, as is done without it.", as_json="JSON: a list of texts.")
@pass_session
def tags_verb(
    session: Session, repository: str, last: str | None, count: int | None, form: str = "table"
) -> None:
    """List the tags of a repository.

    One a line, in the registry's order.  In a template {{.}} is the tag.
    """
    with session.registries() as remote, session.call(quiet=True) as call:
        found = remote.tags(repository, last=last, count=count, call=call)
    if form == "json":
        output.write_json(found)
    else:
        output.show_each(found, form=form, line=str, names=str)


@verb(
    "manifest",
    "orlop manifest alpine",
    "orlop manifest --platform linux/arm64 --json alpine | jq -r .digest",
    "orlop manifest --raw alpine | sha256sum",
    "orlop manifest --config alpine | jq .config.Env",
)
@click.argument("name", metavar="IMAGE")
@click.option("--platform", metavar=_PLATFORM, help="The manifest of an index that serves it.")
@click.option("--config", is_flag=True, help="The image's configuration in the manifest's place.")
@click.option("--raw", is_flag=True, help="The very bytes that have the digest.")
@click.option("--json", "as_json", is_flag=True, help="An object with digest, media_type, size, content.")
@pass_session
def manifest_verb(
    session: Session, name: str, platform: str | None, config: bool, raw: bool, as_json: bool
) -> None:
    """Show what a name means at its registry.

    Its manifest or index, indented; verified against its digest. Nothing is stored.
    """
    if raw and as_json:
        raise Misuse("--raw and --json exclude each other", "leave one out")
    with session.registries() as remote, session.call(quiet=True) as call:
        found = remote.manifest(name, platform=platform, config=config, call=call)
    if raw:
        _write_bytes(found.data)
    elif as_json:
        output.write_json(
            {
                "name": found.name,
                "media_type": found.media_type,
                "digest": found.digest,
                "size": found.size,
                "content": _parsed(found),
            }
        )
    else:
        output.write_json(_parsed(found))


def _parsed(found: Document) -> object:
    from orlop.errors import DataLoss

    try:
        return json.loads(found.data)
    except (ValueError, RecursionError) as exc:
        raise DataLoss(f"show {found.name}", "it is no JSON", hint="--raw shows its bytes") from exc


def _write_bytes(data: bytes) -> None:
    output.write("")
    output.flush()
    try:
        sys.stdout.buffer.write(data)
    except BrokenPipeError as exc:
        raise OutputClosed from exc
    except OSError as exc:
        raise from_oserror("write the result", exc) from exc


@verb(
    "referrers",
    "orlop referrers registry.example.com/team/app:1.2",
    "orlop referrers --artifact-type application/spdx+json --json registry.example.com/team/app:1.2",
)
@click.argument("image", metavar="IMAGE")
@click.option("--artifact-type", metavar="TYPE", help="Those of this type alone.")
@format_options
@pass_session
def referrers_verb(session: Session, image: str, artifact_type: str | None, form: str = "table") -> None:
    """List what refers to an image: signatures, SBOMs and the like.

    Asked of the registry's list of referrers, or of the tag that stands in for it.
    """
    columns: list[output.Column] = [
        ("DIGEST", lambda one: one.digest),
        ("TYPE", lambda one: one.artifact_type or one.media_type),
        ("SIZE", lambda one: output.size_text(one.size)),
    ]
    with session.registries() as remote, session.call(quiet=True) as call:
        found = remote.referrers(image, artifact_type=artifact_type, call=call)
    output.show_list(found, columns, form=form, names=lambda one: one.digest)


@verb(
    "delete-remote",
    "orlop delete-remote registry.example.com/team/app:old",
    "orlop delete-remote --manifest registry.example.com/team/app:old",
    "orlop delete-remote registry.example.com/team/app@sha256:…",
)
@click.argument("names", metavar="IMAGE...", nargs=-1, required=True)
@click.option("--manifest", is_flag=True, help="The manifest that a tag means, and so all its tags.")
@click.option("-f", "--force", is_flag=True, help="Ignore what is not there.")
@pass_session
def delete_remote_verb(session: Session, names: tuple[str, ...], manifest: bool, force: bool) -> None:
    """Delete tags or manifests at their registry.

    A tag goes alone, a digest with all its tags; the disk is the registry's to free. Prints what is gone.
    """
    from orlop.errors import NotFound

    with session.registries() as remote, session.call(quiet=True) as call:
        for name in names:
            call.check(f"delete {name}")
            try:
                done = remote.delete(name, manifest=manifest, call=call)
            except NotFound:
                if not force:
                    raise
                continue
            output.write(f"{one_line(done.name)}\n")
