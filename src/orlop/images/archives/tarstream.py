"""The tar that an archive of images is, written in one go and read back as strictly.

Every header is what `orlop.layers.tarwrite.headers` makes of a member: no times, owners or names of this
machine, so the same members are the same bytes.  `read_members` takes nothing else, since whoever wrote the
stream need not be believed: a member's name is one that the reader was told of, and comes once.
"""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterable, Iterator

from orlop.errors import DataLoss, InvalidArgument, ResourceExhausted
from orlop.images.exports import Sink
from orlop.layers.tarwrite import Member, headers
from orlop.observe import Call, Progress, Rate

__all__ = ["BLOCK", "TarStream", "put", "read_members"]

BLOCK = 512
CHUNK = 1 << 20
MAX_HEADER = 4 * BLOCK  # a PAX header of one record, its body, and the member's own
MAX_MEMBERS = 1_000_000
_FILE, _FOLDER, _LINK = stat.S_IFREG | 0o644, stat.S_IFDIR | 0o755, stat.S_IFLNK | 0o777


def put(out: Sink, data: bytes) -> None:
    """Write all of some bytes to a sink, whatever it takes at a time."""
    view = memoryview(data)
    while view:
        taken = out.write(view)  # type: ignore[arg-type]  # what takes bytes takes a view of some
        if not isinstance(taken, int) or taken >= len(view):
            return
        view = view[taken:]


class TarStream:
    """Writes members to a sink.  ``size`` counts what was written; progress is of ``item``."""

    def __init__(self, out: Sink, *, item: str, call: Call, what: str) -> None:
        self._out = out
        self._item = item
        self._call = call
        self._what = what
        self._rate = Rate()
        self._there: set[str] = set()
        self.total = 0
        self.size = 0

    def has(self, name: str) -> bool:
        """Whether a member was written."""
        return name in self._there

    def folder(self, name: str) -> None:
        """A folder, unless it was written."""
        if name not in self._there:
            self._there.add(name)
            self.write(headers(Member(path=name.encode(), mode=_FOLDER)))

    def link(self, name: str, target: str) -> None:
        """A symlink."""
        self._there.add(name)
        self.write(headers(Member(path=name.encode(), mode=_LINK, link=target.encode())))

    def data(self, name: str, data: bytes) -> None:
        """A file that is at hand."""
        self.file(name, len(data), [data])

    def file(self, name: str, size: int, chunks: Iterable[bytes]) -> None:
        """A file of exactly so many bytes.  Raises `DataLoss` where ``chunks`` are others."""
        assert name not in self._there, name
        self._there.add(name)
        self.write(headers(Member(path=name.encode(), mode=_FILE, size=size)))
        start = self.size
        for chunk in chunks:
            if self.size - start + len(chunk) > size:
                break
            self.write(chunk)
        if self.size - start != size:
            raise DataLoss(self._what, f"{name} has another size than the {size} bytes that it should have")
        self.write(bytes(-size % BLOCK))

    def finish(self) -> None:
        """The end of the archive."""
        self.write(bytes(2 * BLOCK))

    def write(self, data: bytes) -> None:
        """Bytes as they are."""
        self._call.check(self._what)
        if data:
            put(self._out, data)
        self.size += len(data)
        if self._rate.add(len(data)):
            self._call.observer.progress(
                Progress(
                    item=self._item,
                    phase="writing",
                    done=self.size,
                    total=max(self.total, self.size) if self.total else 0,
                    rate=self._rate.rate,
                )
            )


class _Buffer:
    """Bytes that come in chunks of any size, taken in pieces of the reader's."""

    def __init__(self, chunks: Iterator[bytes], what: str) -> None:
        self._chunks = chunks
        self._what = what
        self._left = memoryview(b"")

    def some(self, most: int) -> bytes:
        while not self._left:
            chunk = next(self._chunks, None)
            if chunk is None:
                raise DataLoss(self._what, "it ends early")
            self._left = memoryview(chunk)
        taken, self._left = self._left[:most], self._left[most:]
        return bytes(taken)

    def exactly(self, count: int) -> bytes:
        parts = []
        while count:
            part = self.some(count)
            parts.append(part)
            count -= len(part)
        return b"".join(parts)

    def ends(self) -> bool:
        return not self._left and all(not chunk for chunk in self._chunks)


def read_members(
    chunks: Iterator[bytes], known: Callable[[str], bool], what: str
) -> Iterator[tuple[str, int, Iterator[bytes]]]:
    """The files of such a tar, as it comes: name, size, bytes (which are read before the next member).

    Raises `InvalidArgument` for a name that is not ``known`` or comes twice, and for any other form.
    """
    buffer, seen = _Buffer(chunks, what), set[str]()
    while True:
        block = buffer.exactly(BLOCK)
        if block == bytes(BLOCK):
            if buffer.exactly(BLOCK) != bytes(BLOCK) or not buffer.ends():
                raise InvalidArgument(what, "it has another end than an archive of orlop's")
            return
        if block[156:157] == b"x":
            body = buffer.exactly(_padded(_octal(block[124:136], what), what))
            block += body + buffer.exactly(BLOCK)
        name, size, mode = _member(block, what)
        if headers(Member(path=name.encode(), mode=mode, size=size)) != block:
            raise InvalidArgument(what, "a header in it is none that orlop writes")
        if not known(name) or name in seen:
            raise InvalidArgument(what, f"{name[:300]!r} has no place in it")
        if len(seen) >= MAX_MEMBERS:
            raise ResourceExhausted(what, f"it has more than {MAX_MEMBERS} members")
        seen.add(name)
        if mode == _FOLDER:
            continue
        left = size

        def content() -> Iterator[bytes]:
            nonlocal left
            while left:
                part = buffer.some(min(left, CHUNK))
                left -= len(part)
                yield part

        yield name, size, content()
        while left:
            left -= len(buffer.some(min(left, CHUNK)))
        buffer.exactly(-size % BLOCK)


def _octal(field: bytes, what: str) -> int:
    text = field.rstrip(b"\0 ")
    if not text.isdigit() or text.translate(None, b"01234567"):
        raise InvalidArgument(what, "a header in it is none that orlop writes")
    return int(text, 8)


def _padded(size: int, what: str) -> int:
    if not 0 < size <= MAX_HEADER - 2 * BLOCK:
        raise InvalidArgument(what, "a header in it is none that orlop writes")
    return size + -size % BLOCK


def _member(block: bytes, what: str) -> tuple[str, int, int]:
    """Name, size and mode that a header says; whether it is one of ours is the caller's to compare."""
    own = block[-BLOCK:]
    name, size = own[:100].rstrip(b"\0"), _octal(own[124:136], what)
    if len(block) > BLOCK:
        for line in block[BLOCK:-BLOCK].rstrip(b"\0").split(b"\n"):
            key, _, value = line.partition(b" ")[2].partition(b"=")
            if key == b"path":
                name = value
            elif key == b"size" and value.isdigit() and len(value) < 20:
                size = int(value)
    try:
        text = name.decode("ascii")
    except UnicodeDecodeError as exc:
        raise InvalidArgument(what, "a name in it is none that orlop writes") from exc
    folder = own[156:157] == b"5"
    return (text.rstrip("/"), 0, _FOLDER) if folder else (text, size, _FILE)
