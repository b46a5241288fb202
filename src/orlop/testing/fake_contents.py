"""What is in things, in memory: `orlop.images.contents` for `orlop.testing.fake.FakeStore`.

A test puts files into an image or a root (`put`); folders above them are implied.
"""

from __future__ import annotations

import stat
from collections.abc import Generator, Iterable, Sequence

from orlop.errors import InvalidArgument, NotFound
from orlop.images.browsing.globs import Glob
from orlop.images.contents import FileInfo, FindOptions, Found
from orlop.layers.entry import Entry
from orlop.layers.tardata import END, TarData, Write, padding
from orlop.layers.tarwrite import Member, headers
from orlop.observe import Call
from orlop.testing.fake_base import FakeBase

__all__ = ["FakeContents"]

_ANY = FindOptions()
_MODE = {True: stat.S_IFDIR | 0o755, False: stat.S_IFREG | 0o644}


class FakeContents(FakeBase):
    """Satisfies `orlop.images.contents.Contents`.  Thread-safe."""

    def put(self, thing: str, path: bytes, data: bytes) -> None:
        """Put a file into an image or a prepared root."""
        with self._lock:
            self.files.setdefault(self._thing(thing, "put"), {})[path.strip(b"/")] = data

    def list_files(
        self,
        thing: str,
        path: bytes = b"",
        *,
        recursive: bool = False,
        itself: bool = False,
        platform: str | None = None,
        call: Call | None = None,
    ) -> Generator[FileInfo]:
        """See `orlop.images.contents.Contents.list_files`."""
        call = self._begin("list", thing, call)
        known, top = self._known(thing, "list"), path.strip(b"/")
        if top not in known:
            raise NotFound(f"list {thing}", f"there is no /{top.decode(errors='backslashreplace')}")
        if itself or known[top] is not None:
            yield _info(top, known[top])
            return
        prefix = top + b"/" if top else b""
        for found in sorted(known, key=lambda name: name.split(b"/")):
            below = found.removeprefix(prefix)
            if found and found.startswith(prefix) and (recursive or b"/" not in below):
                call.check(f"list {thing}")
                yield _info(found, known[found])

    def read_files(
        self, thing: str, paths: Sequence[bytes], *, platform: str | None = None, call: Call | None = None
    ) -> Generator[bytes]:
        """See `orlop.images.contents.Contents.read_files`."""
        call = self._begin("read", thing, call)
        known, found = self._known(thing, "read"), list[bytes]()
        for path in paths:
            if path.strip(b"/") not in known:
                raise NotFound(f"read {thing}", f"there is no {path.decode(errors='backslashreplace')}")
            data = known[path.strip(b"/")]
            if data is None:
                raise InvalidArgument(f"read {thing}", "it is a folder")
            found.append(data)
        for data in found:
            call.check(f"read {thing}")
            yield data

    def find_files(
        self,
        thing: str | None,
        pattern: bytes,
        *,
        options: FindOptions = _ANY,
        call: Call | None = None,
    ) -> Generator[Found]:
        """See `orlop.images.contents.Contents.find_files`."""
        call = self._begin("find", thing or "", call)
        glob = Glob(pattern)
        for name in [thing] if thing is not None else sorted(self._images):
            known = self._known(name, "find")
            for path in sorted(known, key=lambda path: path.split(b"/")):
                info = _info(path, known[path])
                if not path or not (glob.fits_name(path.rpartition(b"/")[2]) and glob.fits_path(path)):
                    continue
                if options.kinds and info.kind not in options.kinds:
                    continue
                sized = options.least is not None or options.most is not None
                most = info.size if options.most is None else options.most
                if not sized or (info.kind == "file" and (options.least or 0) <= info.size <= most):
                    call.check("find")
                    image = self._images[name].id if thing is None else ""
                    yield Found(names=(name,), image_id=image, file=info)

    def read_archive(
        self,
        thing: str,
        path: bytes,
        *,
        follow: bool = False,
        platform: str | None = None,
        call: Call | None = None,
    ) -> Generator[bytes]:
        """See `orlop.images.contents.Contents.read_archive`; folders and files are all that there are."""
        call = self._begin("copy", thing, call)
        known, top = self._known(thing, "copy"), path.strip(b"/").removesuffix(b"/.").removeprefix(b".")
        if top not in known:
            raise NotFound(f"copy from {thing}", f"there is no /{top.decode(errors='backslashreplace')}")
        name = b"" if path.endswith((b"/", b"/.")) else top.rpartition(b"/")[2]
        for found in sorted(known, key=lambda path: path.split(b"/")):
            if found == top or not top or found.startswith(top + b"/"):
                rest = found[len(top) :].removeprefix(b"/")
                data = known[found]
                call.check(f"copy from {thing}")
                whole = b"/".join(part for part in (name, rest) if part)
                yield headers(Member(path=whole, mode=_MODE[data is None], size=len(data or b"")))
                yield (data or b"") + padding(len(data or b""))
        yield END

    def write_archive(
        self,
        root: str,
        path: bytes,
        data: Iterable[bytes],
        *,
        archive: bool = False,
        content: bool = False,
        call: Call | None = None,
    ) -> None:
        """See `orlop.images.contents.Contents.write_archive`; ``path`` is a folder that is there."""
        call = self._begin("copy", root, call)
        known, top = self._known(root, "copy"), path.strip(b"/")
        if known.get(top, b"") is not None:
            raise NotFound(
                f"copy into {root}", f"there is no folder /{top.decode(errors='backslashreplace')}"
            )
        files: dict[bytes, bytearray] = {}

        def begin(entry: Entry) -> Write:
            name = entry.name.removeprefix(b"./")
            file = files.setdefault(b"/".join(part for part in (top, name) if part), bytearray())

            def write(at: int, data: bytes) -> None:
                file[at : at + len(data)] = data

            return write

        for _ in TarData(data, begin):
            call.check(f"copy into {root}")
        for name, held in files.items():
            self.put(root, name, bytes(held))

    def _thing(self, thing: str, verb: str) -> str:
        """The full name of an image, or the path of a root."""
        if not thing.startswith("/"):
            return self._find(thing, verb)[0]
        if thing not in self._roots:
            raise NotFound(f"{verb} {thing}", f"nothing is prepared at {thing}")
        return thing

    def _known(self, thing: str, verb: str) -> dict[bytes, bytes | None]:
        """The files of a thing and the folders (None) above them."""
        with self._lock:
            files = dict(self.files.get(self._thing(thing, verb), {}))
        known: dict[bytes, bytes | None] = {b"": None}
        for path in files:
            parts = path.split(b"/")
            known.update({b"/".join(parts[:count]): None for count in range(1, len(parts))})
        known.update(files)
        return known


def _info(path: bytes, data: bytes | None) -> FileInfo:
    return FileInfo(path=path, mode=_MODE[data is None], size=len(data or b""))
