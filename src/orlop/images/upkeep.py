"""The verbs about the store itself, and their values: collecting, keeping, accounting, checking, copying.

The other half of `orlop.images.api`, with the same rules: `LocalStore` and `RemoteStore` both satisfy
these protocols, every method is thread-safe, and errors are those of `orlop.errors`.

A *thing* is what a caller may name: an image (name, ID, digest of its manifest), a layer (its diff ID, or
``layer sha256:…``), a blob (``blob sha256:…``), a chain, the path of a prepared root, a lease, a pin.
Times are seconds since 1970, sizes are bytes of disk as ``du`` counts them unless said otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from orlop.hints import Literal, Protocol
from orlop.observe import Call
from orlop.values import dataclass, field

__all__ = [
    "BackedUp",
    "Checked",
    "Collected",
    "DriverInfo",
    "Explanation",
    "Finding",
    "FindingKind",
    "ImageUsage",
    "Keep",
    "Keeping",
    "Part",
    "Pin",
    "Reason",
    "StoreInfo",
    "Upkeep",
    "Usage",
    "UsagePart",
]

_NO_TEXTS: Mapping[str, str] = MappingProxyType({})
_NO_NUMBERS: Mapping[str, int] = MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True)
class Keep:
    """Which images a collection keeps; all others lose their names.

    Each limit that is set takes images away, those used longest ago first: ``age`` those not used for so
    many seconds, ``count`` all but so many, ``size`` until the layers' tars of what is left have no more
    bytes than this, ``free`` until so many bytes of the disk are free.  Never taken: an image with a
    prepared root or a pin, and one with a label of ``labels`` (``key`` or ``key=value``).
    """

    age: float | None = None
    count: int | None = None
    size: int | None = None
    free: int | None = None
    labels: tuple[str, ...] = ()

    @property
    def limits(self) -> bool:
        """Whether anything is limited at all."""
        return any(limit is not None for limit in (self.age, self.count, self.size, self.free))


@dataclass(frozen=True, slots=True, kw_only=True)
class Collected:
    """What a collection took, or would take: pairs of a thing (``layer sha256:…``) and its bytes.

    ``names`` are the images that a policy took the names of.
    """

    items: tuple[tuple[str, int], ...]
    names: tuple[str, ...] = ()

    @property
    def freed(self) -> int:
        """The bytes in all."""
        return sum(size for _, size in self.items)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pin:
    """What a caller keeps from collection, under a name of his choice.

    ``kind`` is ``image``, ``layer``, ``chain`` or ``blob``; ``ref`` its digest.  ``expires`` is None for
    a pin that stays until it is taken back.
    """

    name: str
    kind: str
    ref: str
    created: float
    expires: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageUsage:
    """The disk that an image takes: what would go with it, and what it shares with others."""

    id: str
    names: tuple[str, ...]
    unique: int
    shared: int

    @property
    def size(self) -> int:
        """Both together."""
        return self.unique + self.shared


@dataclass(frozen=True, slots=True, kw_only=True)
class UsagePart:
    """The disk that one kind of thing takes; ``count`` of them, ``reclaimable`` bytes a collection frees.

    Kinds: ``layers``, ``chains``, ``folders``, ``blobs``, ``ingests``, ``roots``, ``trash``,
    ``metadata``, ``other``.
    """

    kind: str
    count: int
    size: int
    reclaimable: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What the store takes on disk; the parts together are what ``du`` says of its folder.

    ``free`` and ``capacity`` are those of the file system that holds it.
    """

    parts: tuple[UsagePart, ...]
    images: tuple[ImageUsage, ...]
    free: int
    capacity: int

    @property
    def size(self) -> int:
        """The store's bytes in all."""
        return sum(part.size for part in self.parts)

    @property
    def reclaimable(self) -> int:
        """The bytes that a collection would free."""
        return sum(part.reclaimable for part in self.parts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reason:
    """One of those that keep a thing: its kind (``image``, ``root``, ``lease``, ``pin``, ...) and its name.

    ``note`` says how: ``its layer 3 of 5``, ``pull alpine, process 1234``.
    """

    kind: str
    name: str
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Something that a thing needs, its bytes of disk, and who else needs it (image, root, pin, lease)."""

    kind: str
    name: str
    size: int
    shared_with: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """Why a thing is kept, what it shares, and what its removal would free.

    ``kept_by`` is empty for what the next collection takes.  ``frees`` are the bytes that would go if the
    thing were removed now (an image's names, a root, a pin, a lease); 0 for what others keep.
    """

    kind: str
    name: str
    size: int
    kept_by: tuple[Reason, ...]
    parts: tuple[Part, ...]
    frees: int


FindingKind = Literal["damage", "leftover", "warning"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Something that a check found.

    ``kind`` is ``damage`` (a row's promise is broken), ``leftover`` (disk that no row names; a collection
    takes it) or ``warning``.  ``problem`` is a stable word (``missing``, ``wrong-digest``, ``wrong-size``,
    ``bad-index``, ``unsafe``, …); ``thing`` what it is about (``layer sha256:…``, ``root /srv/a``);
    ``affects`` the images and roots that suffer.  ``action`` is what a repair did: ``rebuilt``,
    ``fetched``, ``quarantined``, ``forgotten``, ``fixed``, ``failed``, or nothing.
    """

    kind: FindingKind
    problem: str
    thing: str
    detail: str
    affects: tuple[str, ...] = ()
    action: str = ""

    @property
    def open(self) -> bool:
        """Whether the damage is still there."""
        return self.kind == "damage" and self.action in {"", "failed", "quarantined"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """What a check looked at, and what it found; ``bytes`` were read and hashed."""

    findings: tuple[Finding, ...]
    full: bool
    images: int = 0
    layers: int = 0
    chains: int = 0
    blobs: int = 0
    roots: int = 0
    bytes: int = 0

    @property
    def clean(self) -> bool:
        """Whether no damage was found."""
        return not any(finding.kind == "damage" for finding in self.findings)

    @property
    def sound(self) -> bool:
        """Whether no damage is left: there was none, or it was repaired."""
        return not any(finding.open for finding in self.findings)


@dataclass(frozen=True, slots=True, kw_only=True)
class BackedUp:
    """A backup: the file, its bytes, and how much is in it.

    ``roots`` counts the prepared roots that a backup leaves out; ``content`` says whether layers are in it.
    """

    path: str
    size: int
    images: int
    layers: int
    content: bool
    roots: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class DriverInfo:
    """A driver, and whether it works here; ``reason`` says why not, or what it was found to do."""

    name: str
    available: bool
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreInfo:
    """A store and what serves it.

    ``driver`` is the one that new roots get; ``drivers`` all of them with the reason.  ``privilege``
    is ``root``, ``user-namespace`` (with many ids), ``single-id`` (root of a namespace with one id),
    ``container`` (root that may give files away, and not mount)
    or ``none``.  ``features`` says of each kernel feature that orlop can use what was found, ``limits`` those
    of `orlop.config.Limits` that differ from their defaults.
    """

    version: str
    root: str
    run: str
    driver: str
    format: int
    images: int
    prepared: int
    drivers: tuple[DriverInfo, ...] = ()
    privilege: str = ""
    features: Mapping[str, str] = field(default_factory=lambda: _NO_TEXTS)
    limits: Mapping[str, int] = field(default_factory=lambda: _NO_NUMBERS)


class Keeping(Protocol):
    """What is kept, why, and what it costs."""

    def collect(self, *, dry_run: bool = False, keep: Keep | None = None, call: Call = ...) -> Collected:
        """Delete what no image, prepared root, lease or pin needs; with ``keep``, images beyond it too.

        Forgotten in short transactions, gone from disk when this returns.  Never in the way of a pull.
        """
        ...

    def usage(self, *, call: Call = ...) -> Usage:
        """What the store takes on disk, and how it divides among images."""
        ...

    def explain(self, thing: str, *, call: Call = ...) -> Explanation:
        """Why a thing is kept.  Raises `NotFound`, or `InvalidArgument` for what could be several."""
        ...

    def pin(self, thing: str, name: str | None = None, *, expires: float | None = None) -> Pin:
        """Keep a thing whatever happens to its names, under ``name`` or one that is made.

        A name that is taken moves.  ``expires`` is a time; when it has passed the pin is gone.
        """
        ...

    def unpin(self, name: str) -> None:
        """Take a pin back.  Raises `NotFound`."""
        ...

    def pins(self) -> list[Pin]:
        """All pins that have not expired, by name."""
        ...


class Upkeep(Protocol):
    """The store as a whole."""

    def check(
        self,
        *,
        full: bool = False,
        repair: bool = False,
        things: tuple[str, ...] = (),
        pace: int | None = None,
        call: Call = ...,
    ) -> Checked:
        """Compare what the metadata promise with what is on disk.

        Quick: that each file is there, with its size, owner and mode.  ``full``: each layer's tar against
        its diff ID, each index against its tar, each chain against its layers, each blob against its
        digest.  ``things`` limits it to some images, layers and so on; ``pace`` to so many bytes read a
        second.  ``repair`` rebuilds what is derived, fetches again what came from a registry, and
        quarantines what it cannot mend.
        """
        ...

    def backup(self, destination: str, *, content: bool = False, call: Call = ...) -> BackedUp:
        """Write the metadata, and with ``content`` the layers, to a new file; consistent while in use.

        ``destination`` is an absolute path.  Raises `AlreadyExists` if it exists.
        """
        ...

    def info(self) -> StoreInfo:
        """The store and what serves it."""
        ...

    def close(self) -> None:
        """Let go of files and processes.  Prepared roots stay.  Idempotent."""
        ...
