"""What stands in for an image's VOLUMEs in a bundle: folders with what the image has there, or memory.

A folder is made whole or not at all, and one that is there is never touched: it holds what was written.  Its
name comes from the target alone, so that other volumes that come and go do not change whose it is.
"""

from __future__ import annotations

import hashlib
import os
import posixpath
import secrets
import stat
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from urllib.parse import quote

from orlop.errors import NotFound, from_oserror
from orlop.images.api import Mount
from orlop.images.running.bundle import Volume
from orlop.linux.userns import IdRange, Maps
from orlop.observe import Call

if TYPE_CHECKING:
    from orlop.images.api import PreparedInfo
    from orlop.images.api import Store as StoreVerbs

__all__ = ["ImageVolumes", "clean", "image_volumes", "is_text", "outside"]

ImageVolumes = Literal["folder", "tmpfs", "none"]
_SYSTEM = ("/proc", "/sys", "/dev")


def image_volumes(
    verbs: StoreVerbs,
    info: PreparedInfo,
    folder: Path,
    wanted: Iterable[str],
    *,
    kind: ImageVolumes,
    taken: Iterable[str],
    maps: Maps | None,
    call: Call,
) -> tuple[list[Volume], list[Mount], tuple[str, ...]]:
    """The image's VOLUMEs as volumes below ``folder``, or as memory; and those that stay what they are.

    ``taken`` are targets that something else is mounted at.  Raises the errno's class where a folder cannot
    be made or filled.
    """
    held = {clean(target) for target in taken}
    volumes: list[Volume] = []
    memory: list[Mount] = []
    unmounted: list[str] = []
    for text in sorted(wanted):
        target = clean(text)
        if target in held:
            continue
        held.add(target)
        if kind == "none" or not _may_be_volume(target):
            unmounted.append(text)
        elif kind == "tmpfs":
            flags = ("nosuid", "nodev", "mode=0755", "tmpcopyup")
            memory.append(Mount(type="tmpfs", source="tmpfs", target=target, options=flags))
        else:
            source = folder / "volumes" / _volume_name(target)
            _seed(verbs, info, target, source, maps, call)
            volumes.append(Volume(source=str(source), target=target))
    return volumes, memory, tuple(unmounted)


def _may_be_volume(target: str) -> bool:
    inside = any(target == place or target.startswith(f"{place}/") for place in _SYSTEM)
    return target != "/" and is_text(target) and not inside


def clean(path: str) -> str:
    """A target as the runtime would take it: absolute, without dots and double slashes."""
    return "/" + posixpath.normpath(f"/{path}").lstrip("/")


def _volume_name(target: str) -> str:
    """The folder of a volume: the same for a target whatever other volumes there are."""
    name = quote(target.lstrip("/"), safe="")
    return name if len(name) <= 200 else hashlib.sha256(target.encode()).hexdigest()


def _seed(
    verbs: StoreVerbs, info: PreparedInfo, target: str, source: Path, maps: Maps | None, call: Call
) -> None:
    """Make the folder of a volume as the image has it; one that is there keeps what was written."""
    from orlop.linux.files import remove_tree

    beside = source.with_name(f".new-{secrets.token_hex(4)}")
    try:
        source.parent.mkdir(mode=0o700, exist_ok=True)
        if source.is_dir():
            return
        beside.mkdir(mode=0o755)
        try:
            _fill(verbs, info, target, beside, call)
            if maps is not None and os.geteuid() == 0:
                _shift(beside, maps)
            beside.rename(source)
        except BaseException:
            remove_tree(beside)
            raise
    except OSError as exc:
        raise from_oserror(f"make {source}", exc) from exc


def _fill(verbs: StoreVerbs, info: PreparedInfo, target: str, source: Path, call: Call) -> None:
    from orlop.images.browsing.hostcopy import copy_out

    inside = os.fsencode(target) + b"/."
    try:
        (file,) = verbs.list_files(info.path, inside, itself=True, call=call)
    except NotFound:
        return  # the runtime makes what is missing
    if file.kind != "folder":
        return
    privileged = os.geteuid() == 0
    copy_out(
        verbs,
        info.path,
        inside,
        os.fsencode(source),
        archive=privileged,
        follow=True,
        platform=None,
        call=call,
    )
    if privileged:
        os.chown(source, file.uid, file.gid)
    os.chmod(source, file.mode & 0o7777)


def _shift(top: Path, maps: Maps) -> None:
    """Give a folder and what is in it to the ids that the container's user namespace shows."""
    users, groups = maps
    paths = [str(top)]
    for folder, folders, files in os.walk(top):
        paths += (os.path.join(folder, name) for name in (*folders, *files))
    for path in paths:
        status = os.lstat(path)
        os.chown(path, outside(users, status.st_uid), outside(groups, status.st_gid), follow_symlinks=False)
        if not stat.S_ISLNK(status.st_mode):
            os.chmod(path, stat.S_IMODE(status.st_mode))  # chown(2) takes set-id bits


def outside(ranges: Sequence[IdRange], number: int) -> int:
    """The id outside the namespace; one that is not mapped stays what it is, and is nobody's inside."""
    for ids in ranges:
        if ids.inside <= number < ids.inside + ids.size:
            return ids.outside + number - ids.inside
    return number


def is_text(text: str) -> bool:
    """Whether a text can stand in config.json, and in a path."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return "\0" not in text
