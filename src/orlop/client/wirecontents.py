"""The values of `orlop.images.contents` as messages of orlop.v1.Contents and back."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterable, Iterator

from orlop.client.status import text
from orlop.errors import InvalidArgument
from orlop.images.contents import KINDS, FileInfo, FindOptions, Found
from orlop.proto.orlop.v1 import contents_pb2 as pb

__all__ = [
    "file_from",
    "file_to",
    "files_from",
    "files_to",
    "found_from",
    "found_in",
    "found_parts",
    "found_to",
    "options_from",
    "options_to",
]

_PART = 500  # files in one message; most have some hundred bytes
_PART_BYTES = 1 << 20
_SOON = 0.1  # seconds that what was found waits for more at most, while more is found


def file_to(value: FileInfo) -> pb.File:
    """A file."""
    return pb.File(
        path=value.path,
        mode=value.mode,
        uid=value.uid,
        gid=value.gid,
        size=value.size,
        mtime=value.mtime,
        nsec=value.nsec,
        links=value.links,
        target=value.target,
        major=value.device[0],
        minor=value.device[1],
        xattrs=[pb.Xattr(name=name, value=text) for name, text in value.xattrs],
    )


def file_from(message: pb.File) -> FileInfo:
    """The inverse of `file_to`."""
    return FileInfo(
        path=message.path,
        mode=message.mode,
        uid=message.uid,
        gid=message.gid,
        size=message.size,
        mtime=message.mtime,
        nsec=message.nsec,
        links=message.links,
        target=message.target,
        device=(message.major, message.minor),
        xattrs=tuple((xattr.name, xattr.value) for xattr in message.xattrs),
    )


def files_to(values: Iterable[FileInfo]) -> Generator[pb.Files]:
    """Files in parts that fit a message."""
    part, size = pb.Files(), 0
    for value in values:
        message = file_to(value)
        part.files.append(message)
        size += message.ByteSize()
        if len(part.files) >= _PART or size >= _PART_BYTES:
            yield part
            part, size = pb.Files(), 0
    if part.files:
        yield part


def files_from(part: pb.Files) -> Iterator[FileInfo]:
    """The files of a part."""
    return map(file_from, part.files)


def found_to(value: Found) -> pb.FoundFile:
    """A file that was found."""
    return pb.FoundFile(names=map(text, value.names), image_id=value.image_id, file=file_to(value.file))


def found_from(message: pb.FoundFile) -> Found:
    """The inverse of `found_to`."""
    return Found(names=tuple(message.names), image_id=message.image_id, file=file_from(message.file))


def found_parts(values: Iterable[Found]) -> Generator[pb.FoundFiles]:
    """What was found in parts that fit a message.

    One at a time where they come slowly would be many messages: they wait for one another, but not long.
    """
    part, size, since = pb.FoundFiles(), 0, time.monotonic()
    for value in values:
        message = found_to(value)
        part.files.append(message)
        size += message.ByteSize()
        if len(part.files) >= _PART or size >= _PART_BYTES or time.monotonic() - since > _SOON:
            yield part
            part, size, since = pb.FoundFiles(), 0, time.monotonic()
    if part.files:
        yield part


def found_in(part: pb.FoundFiles) -> Iterator[Found]:
    """The files of a part."""
    return map(found_from, part.files)


def options_to(thing: str | None, pattern: bytes, options: FindOptions) -> pb.FindFilesRequest:
    """What is looked for, and where."""
    return pb.FindFilesRequest(
        thing=thing,
        pattern=pattern,
        kinds=options.kinds,
        least=options.least,
        most=options.most,
        platform=options.platform,
    )


def options_from(message: pb.FindFilesRequest) -> FindOptions:
    """The options in a request.  Raises `InvalidArgument` for a kind that is none."""
    for kind in message.kinds:
        if kind not in KINDS:
            raise InvalidArgument(
                "look for files", f"no kind of file: {kind!r}", hint=f"one of {', '.join(KINDS)}"
            )
    return FindOptions(
        kinds=tuple(kind for kind in KINDS if kind in message.kinds),
        least=message.least if message.HasField("least") else None,
        most=message.most if message.HasField("most") else None,
        platform=message.platform if message.HasField("platform") else None,
    )
