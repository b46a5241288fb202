"""Decompression of layers' blobs, as streams of chunks.

The form is told by the first bytes, not by the media type, which registries and tools get wrong; what has
the checksum of a tar's first header is a tar, whatever its first name looks like.
Decompression runs in the worker; every form takes concatenated members (several gzip members, zstd
frames and skippable frames), and zero bytes behind the last one, as gzip(1) does.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal, Protocol

from orlop.errors import InvalidArgument

__all__ = ["CHUNK", "Form", "decompress", "detect", "preload", "zstd_module"]

Form = Literal["plain", "gzip", "zstd", "bzip2", "xz"]

CHUNK = 1 << 18  # what stays in a processor's cache until it is written: a quarter of the write's time less
MAX_GZIP_HEADER = 256 << 10  # a file name and a comment may be of any length
ZSTD_WINDOW_LOG = 27  # 128 MiB: what the zstd format asks every decoder to support, and more
_MAGIC: tuple[tuple[bytes, Form], ...] = (
    (b"\x1f\x8b", "gzip"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"BZh", "bzip2"),
    (b"\xfd7zXZ\0", "xz"),
)
_WHAT = "decompress layer"


class _Decoder(Protocol):
    eof: bool
    needs_input: bool
    unused_data: bytes

    def decompress(self, data: bytes, max_length: int = -1) -> bytes: ...


def detect(start: bytes) -> Form:
    """The form of a stream from its first six bytes."""
    for magic, form in _MAGIC:
        if start.startswith(magic):
            return form
    if start[:4].startswith(b"\x2a\x4d\x18", 1) and 0x50 <= start[0] <= 0x5F:
        return "zstd"  # a skippable frame comes first
    return "plain"


def decompress(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """The plain bytes of a stream in whatever form, in chunks of at most 256 KiB.

    Raises `InvalidArgument` where the stream is damaged or cut off.
    """
    stream = iter(chunks)
    start = b""
    while len(start) < 512:
        chunk = next(stream, b"")
        if not chunk:
            break
        start += chunk
    form: Form = "plain" if _is_tar(start) else detect(start)
    if form == "plain":
        if start:
            yield start
        yield from stream
        return
    try:
        yield from _members(start, stream, _decoder(form), form=form)
    except _errors(form) as exc:
        raise InvalidArgument(_WHAT, f"the {form} data are damaged: {exc}") from exc


def _is_tar(start: bytes) -> bool:
    """Whether a stream begins with a header of a tar: the sum of its bytes stands in it, in octal (ustar)."""
    field = start[148:156].strip(b" \0")
    if len(start) < 512 or not field.isdigit() or field.translate(None, b"01234567"):
        return False
    return int(field, 8) == sum(start[:148]) + 8 * ord(" ") + sum(start[156:512])


def _members(
    data: bytes,
    stream: Iterator[bytes],
    make: Callable[[], _Decoder],
    *,
    form: Form,
) -> Iterator[bytes]:
    decoder = make()
    fresh = True  # nothing of this member was read yet
    while True:
        if fresh and form == "gzip":
            data = _with_gzip_header(data, stream)
        if data or not fresh:
            while True:
                plain = decoder.decompress(data, CHUNK)
                fresh, data = False, b""
                if plain:
                    yield plain
                if decoder.eof or decoder.needs_input:
                    break
        if decoder.eof:
            data = decoder.unused_data.lstrip(b"\0")
            while not data:
                data = next(stream, b"")
                if not data:
                    return
                data = data.lstrip(b"\0")
            while len(data) < 6 and (more := next(stream, b"")):
                data += more
            if detect(data) != form:
                raise InvalidArgument(_WHAT, f"garbage follows the {form} data")
            decoder, fresh = make(), True
            continue
        data = next(stream, b"")
        if not data:
            raise InvalidArgument(_WHAT, f"the {form} data are cut off")


def _with_gzip_header(data: bytes, stream: Iterator[bytes]) -> bytes:
    """Read on until a member's header is whole: igzip 2.32 loses its place in one cut in two.

    Source: RFC 1952, 2.3 (FHCRC 2, FEXTRA 4, FNAME 8, FCOMMENT 16).
    """
    while not _gzip_header_ends(data):
        more = next(stream, b"")
        if not more:
            break  # the decoder will miss the rest
        data += more
        if len(data) > MAX_GZIP_HEADER and not _gzip_header_ends(data):
            raise InvalidArgument(_WHAT, "a gzip header without an end")
    return data


def _gzip_header_ends(data: bytes) -> bool:
    flags, at = (data[3], 10) if len(data) >= 10 else (0, 10)
    if flags & 4:
        at += 2 + int.from_bytes(data[10:12], "little")
    for text in (8, 16):
        if flags & text and at <= len(data):
            end = data.find(b"\0", at)
            at = end + 1 if end >= 0 else len(data) + 1
    return len(data) >= at + (flags & 2)


def _decoder(form: Form) -> Callable[[], Any]:
    if form == "gzip":
        from isal import igzip_lib

        return lambda: igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_GZIP)
    if form == "zstd":
        zstd = zstd_module()
        options = {zstd.DecompressionParameter.window_log_max: ZSTD_WINDOW_LOG}
        return lambda: zstd.ZstdDecompressor(options=options)
    if form == "bzip2":
        import bz2

        return bz2.BZ2Decompressor
    import lzma

    return lambda: lzma.LZMADecompressor(format=lzma.FORMAT_XZ, memlimit=256 << 20)


def _errors(form: Form) -> tuple[type[Exception], ...]:
    """What the library for a form raises over damaged data."""
    own: list[Any] = [OSError, EOFError, ValueError]
    if form == "gzip":
        from isal import igzip_lib

        own.append(igzip_lib.IsalError)
    elif form == "zstd":
        own.append(zstd_module().ZstdError)
    elif form == "xz":
        import lzma

        own.append(lzma.LZMAError)
    return tuple(own)


def zstd_module() -> Any:  # noqa: ANN401 - one of two modules with the same interface
    """The library for zstd: Python's own, or its backport."""
    if sys.version_info >= (3, 14):
        from compression import zstd
    else:
        from backports import zstd
    return zstd


def preload() -> None:
    """Import the decoders now, before the process gives up its right to open files."""
    for form in ("gzip", "zstd", "bzip2", "xz"):
        _decoder(form)
