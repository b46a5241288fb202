"""Digests and the names built from them.

`Digest` is a `str` that was checked, so it prints, sorts, hashes and binds to SQLite as it is.
Sources: OCI image-spec, descriptor.md ("Digests") and config.md ("Layer DiffID", "Layer ChainID").
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from orlop.errors import InvalidArgument
from orlop.hints import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from hashlib import _Hash

__all__ = ["ChainID", "DiffID", "Digest", "chain_id", "chain_ids"]

_DIGITS = {"sha256": 64, "sha512": 128}
_HEX = "0123456789abcdef"


class Digest(str):
    """``algorithm:hex``, with an algorithm we can verify (sha256, sha512).

    Raises `InvalidArgument` for anything else, so a `Digest` is always safe as a file name.

    >>> Digest.of(b"").hex[:8]
    'e3b0c442'
    """

    __slots__ = ()

    def __new__(cls, text: str) -> Self:
        """Check and wrap ``text``."""
        algorithm, _, encoded = text.partition(":")
        if len(encoded) != _DIGITS.get(algorithm) or encoded.strip(_HEX):
            raise InvalidArgument("parse digest", f"not a digest: {text[:100]!r}")
        return super().__new__(cls, text)

    @classmethod
    def of(cls, data: bytes) -> Self:
        """The sha256 digest of some bytes."""
        import hashlib  # late: it brings OpenSSL, which a list of images has no use for

        return cls("sha256:" + hashlib.sha256(data).hexdigest())

    @property
    def algorithm(self) -> str:
        """``sha256`` or ``sha512``."""
        return self.partition(":")[0]

    @property
    def hex(self) -> str:
        """The part behind the colon."""
        return self.partition(":")[2]

    def hasher(self) -> _Hash:
        """A fresh hash object of this digest's algorithm."""
        import hashlib

        return hashlib.new(self.algorithm)

    def verifies(self, data: bytes) -> bool:
        """Whether ``data`` has this digest."""
        hasher = self.hasher()
        hasher.update(data)
        return hasher.hexdigest() == self.hex


class DiffID(Digest):
    """The digest of a layer's uncompressed tar."""

    __slots__ = ()


class ChainID(Digest):
    """The name of a sequence of layers, as the image spec computes it."""

    __slots__ = ()


def chain_id(diff_ids: Iterable[DiffID]) -> ChainID:
    """The chain ID of layers given bottom first (image-spec, config.md, "Layer ChainID").

    Raises `InvalidArgument` for no layers at all: the empty chain has no name.
    """
    found = list(chain_ids(diff_ids))
    if not found:
        raise InvalidArgument("compute chain ID", "an image without layers has no chain")
    return found[-1]


def chain_ids(diff_ids: Iterable[DiffID]) -> Iterator[ChainID]:
    """The chain IDs of the lowest layer, of the lowest two, and so on, each made of the one before.

    >>> layers = [DiffID.of(name) for name in (b"a", b"b", b"c")]
    >>> list(chain_ids(layers)) == [chain_id(layers[:count]) for count in (1, 2, 3)]
    True
    """
    chain = None
    for diff_id in diff_ids:
        chain = ChainID(diff_id) if chain is None else ChainID.of(f"{chain} {diff_id}".encode())
        yield chain
