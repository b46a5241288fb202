"""``cp``: between things and the files of this machine."""

from __future__ import annotations

import os
import sys
from contextlib import closing

from orlop.cli import declared as click
from orlop.cli import output
from orlop.cli.contents import platform_option, write_all
from orlop.cli.exits import Misuse
from orlop.cli.session import Session, pass_session, verb
from orlop.cli.stdin import check_piped, piped
from orlop.values import dataclass

__all__ = ["cp_verb", "place_of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Inside:
    """A path in a thing."""

    thing: str
    path: str


def place_of(text: str) -> _Inside | None:
    """``THING:/PATH``; None for a path of this machine, which ``./`` in front makes of anything.

    >>> place_of("localhost:5000/app:1:/etc/hosts")
    _Inside(thing='localhost:5000/app:1', path='/etc/hosts')
    >>> place_of("./a:/b")
    """
    if text.startswith(("./", "../")):
        return None
    thing, colon, path = text.partition(":/")
    return _Inside(thing=thing, path=f"/{path}") if colon and thing else None


@verb(
    "cp",
    "orlop cp alpine:/etc/os-release .",
    "orlop cp -a alpine:/etc/. /tmp/etc    what is in the folder, owners kept",
    "orlop cp config.toml /srv/a:/etc/app/    into a prepared root",
    "orlop cp alpine:/usr - | tar -t",
)
@click.argument("source", metavar="SRC", type=click.Path())
@click.argument("dest", metavar="DEST", type=click.Path())
@click.option("-a", "--archive", is_flag=True, help="Keep owners, setuid bits, devices and all xattrs.")
@click.option("-L", "--follow-link", "follow", is_flag=True, help="Of a symlink at SRC, what it leads to.")
@platform_option
@pass_session
def cp_verb(
    session: Session, source: str, dest: str, archive: bool, follow: bool, platform: str | None
) -> None:
    """Copy files out of an image, a layer or a prepared root, or into a prepared root.

    One of SRC and DEST is IMAGE:/PATH (an image's name or ID, a layer's diff ID) or ROOT:/PATH (the path of
    a prepared root), the other a path of this machine; "./a:/b" is one, too.  "-" as DEST is a tar on
    standard output; as SRC, a tar on standard input that is unpacked in a folder of the root.

    A folder as DEST is copied into, any other path is the copy's name; of SRC/. the content is copied.
    """
    a, b = place_of(source), place_of(dest)
    if a is None and b is None:
        raise Misuse("neither is in an image or a root", "write IMAGE:/PATH, or ROOT:/PATH")
    if b is not None and not b.thing.startswith("/"):
        raise Misuse(
            f"an image does not change: {b.thing}",
            f"copy into a root of it, and commit that: orlop prepare {b.thing} PATH",
        )
    if source == "-":
        check_piped("… | orlop cp - ROOT:/PATH")
    if dest == "-" and sys.stdout is not None and sys.stdout.isatty():
        raise Misuse("standard output is a terminal", "pipe the tar somewhere: orlop cp … - | tar -t")
    with session.store() as store, session.call(quiet=True) as call:
        if a is None:
            assert b is not None
            if source == "-":
                store.write_tar(piped("cp -", call), b.thing, b.path, archive=archive, call=call)
            else:
                store.copy_in(source, b.thing, b.path, archive=archive, follow=follow, call=call)
            return
        if b is None and dest != "-":
            store.copy_out(
                a.thing, a.path, dest, archive=archive, follow=follow, platform=platform, call=call
            )
            return
        from orlop.images.browsing.hostcopy import Handed

        read = store.read_tar(a.thing, a.path, follow=follow, platform=platform, call=call)
        with closing(Handed(read)) as chunks:
            if b is None:
                write_all(chunks)
            else:
                inside = os.fsencode(b.path)
                store.verbs.write_archive(b.thing, inside, chunks, archive=archive, call=call)
    output.flush()
