"""The verbs of `orlop.images.contents`, answered by a daemon: streams, read as fast as they are asked for."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Any

from orlop.client import wirecontents
from orlop.client.events import follow
from orlop.client.link import Link, Stubs, unicode_only
from orlop.client.uploads import Upload
from orlop.errors import Error as OrlopError
from orlop.errors import InvalidArgument, from_oserror
from orlop.images.contents import FileInfo, FindOptions, Found
from orlop.observe import Call
from orlop.proto.orlop.v1 import contents_pb2 as pb

__all__ = ["RemoteContents"]

_CALL = Call()
_ANY = FindOptions()


class RemoteContents:
    """What is in the things of a daemon's store.  Thread-safe."""

    _link: Link

    def list_files(
        self,
        thing: str,
        path: bytes = b"",
        *,
        recursive: bool = False,
        itself: bool = False,
        platform: str | None = None,
        call: Call = _CALL,
    ) -> Generator[FileInfo]:
        """See `orlop.images.contents.Contents.list_files`."""
        attempted = f"list {thing}"
        with unicode_only(attempted):
            request = pb.ListFilesRequest(
                thing=thing, path=path, recursive=recursive, itself=itself, platform=platform
            )
        for event in self._parts(lambda stubs: stubs.contents.ListFiles, request, attempted, call):
            yield from wirecontents.files_from(event.files)

    def read_files(
        self, thing: str, paths: Sequence[bytes], *, platform: str | None = None, call: Call = _CALL
    ) -> Generator[bytes]:
        """See `orlop.images.contents.Contents.read_files`."""
        attempted = f"read {thing}"
        with unicode_only(attempted):
            request = pb.ReadFilesRequest(thing=thing, paths=paths, platform=platform)
        for event in self._parts(lambda stubs: stubs.contents.ReadFiles, request, attempted, call):
            if event.data:
                yield event.data

    def find_files(
        self, thing: str | None, pattern: bytes, *, options: FindOptions = _ANY, call: Call = _CALL
    ) -> Generator[Found]:
        """See `orlop.images.contents.Contents.find_files`."""
        attempted = f"look for files in {thing or 'all images'}"
        with unicode_only(attempted), in_range(attempted):
            request = wirecontents.options_to(thing, pattern, options)
        for event in self._parts(lambda stubs: stubs.contents.FindFiles, request, attempted, call):
            yield from wirecontents.found_in(event.found)

    def read_archive(
        self,
        thing: str,
        path: bytes,
        *,
        follow: bool = False,
        platform: str | None = None,
        call: Call = _CALL,
    ) -> Generator[bytes]:
        """See `orlop.images.contents.Contents.read_archive`."""
        attempted = f"copy from {thing}"
        with unicode_only(attempted):
            request = pb.ReadArchiveRequest(thing=thing, path=path, follow=follow, platform=platform)
        for event in self._parts(lambda stubs: stubs.contents.ReadArchive, request, attempted, call):
            if event.data:
                yield event.data

    def write_archive(
        self,
        root: str,
        path: bytes,
        data: Iterable[bytes],
        *,
        archive: bool = False,
        content: bool = False,
        call: Call = _CALL,
    ) -> None:
        """See `orlop.images.contents.Contents.write_archive`; ``data`` is read by another thread."""
        attempted = f"copy into {root}"
        with unicode_only(attempted):
            start = pb.ArchiveStart(root=root, path=path, archive=archive, content=content)
        chunks = Upload(data)
        events = self._link.duplex(
            lambda stubs: stubs.contents.WriteArchive, _messages(start, chunks), attempted, call=call
        )
        try:
            with closing(events):
                follow(events, "written", call.observer, attempted)
        except OrlopError as exc:
            if chunks.failure is not None:  # then gRPC has ended the call for that
                if isinstance(chunks.failure, OSError):
                    raise from_oserror(attempted, chunks.failure) from exc
                raise chunks.failure from exc
            raise

    def _parts(
        self, choose: Callable[[Stubs], Any], request: object, attempted: str, call: Call
    ) -> Generator[Any]:
        """The events of a stream that are parts of its result; warnings go to the observer."""
        with closing(self._link.stream(choose, request, attempted, call=call)) as events:
            for event in events:
                if event.HasField("warning"):
                    call.observer.warning(event.warning.text)
                elif not event.HasField("progress"):
                    yield event


def _messages(start: pb.ArchiveStart, chunks: Upload) -> Iterator[pb.WriteArchiveRequest]:
    yield pb.WriteArchiveRequest(start=start)
    for chunk in chunks:
        yield pb.WriteArchiveRequest(chunk=chunk)
    yield pb.WriteArchiveRequest(end=True)


@contextmanager
def in_range(attempted: str) -> Iterator[None]:
    """Around the making of a request with numbers: one of more than 64 bits cannot be sent."""
    try:
        yield
    except ValueError as exc:
        raise InvalidArgument(attempted, str(exc)) from exc
