"""The verbs of an image service, and the values that go in and come out.

`LocalStore` (orlop.images.store) does the work in this process; `RemoteStore` (orlop.client) asks a
daemon.  Both satisfy these protocols, with the same results and the same errors, so everything above
this module is written once.

Names are image references as people type them (``alpine``); results carry the full name
(``docker.io/library/alpine:latest``).  An image can also be named by its ID, the digest of its config,
or at least 12 hexadecimal digits of it.  Paths are absolute and clean.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from orlop.config import Driver, PullPolicy
from orlop.hints import TYPE_CHECKING, Literal, Protocol
from orlop.images.infos import NO_LABELS, HeldPlatform, ImageInfo
from orlop.observe import Call
from orlop.values import dataclass, field

if TYPE_CHECKING:
    from orlop.images.imports import ImportOptions, ImportSource
    from orlop.images.protocol import Store
    from orlop.images.upkeep import Collected, DriverInfo, Keeping, StoreInfo, Upkeep

__all__ = [
    "Blob",
    "Collected",
    "CommitOptions",
    "DriverInfo",
    "ExtraMount",
    "FetchedBlobs",
    "HeldPlatform",
    "IdMap",
    "ImageDetails",
    "ImageInfo",
    "Images",
    "Keeping",
    "Mount",
    "PrepareOptions",
    "PreparedInfo",
    "PushResult",
    "Removed",
    "Roots",
    "Store",
    "StoreInfo",
    "Upkeep",
]

_ELSEWHERE = {
    "Store": "orlop.images.protocol",
    **dict.fromkeys(("Collected", "DriverInfo", "Keeping", "StoreInfo", "Upkeep"), "orlop.images.upkeep"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Mount:
    """One mount to perform, in mount(2)'s terms: ``mount -t type -o options source target``."""

    type: str
    source: str
    target: str
    options: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Blob:
    """One layer of an image: its diff ID, its tar's size, and the blob it came as, where known."""

    diff_id: str
    size: int = 0
    entries: int = 0
    blob: str | None = None
    blob_size: int = 0
    media_type: str = ""
    blob_present: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageDetails:
    """What `inspect` shows.  ``config`` and ``manifest`` are the documents' own bytes (JSON)."""

    info: ImageInfo
    names: tuple[str, ...]
    config: bytes
    manifest: bytes | None = None
    layers: tuple[Blob, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class IdMap:
    """A range of ids: ``size`` of them from ``inside`` (the image's) shown as those from ``outside``.

    The line of a user namespace's ``uid_map`` (user_namespaces(7)).
    """

    inside: int
    outside: int
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtraMount:
    """A mount of the caller's own, appended to a root's in the order given.

    ``target`` is a path inside the root, resolved in the image, so that no symlink of it leads out; what
    is missing of it is made.  ``source`` is an absolute path of the host for ``bind``, an image's name
    for ``image`` (which is always read-only), nothing for ``tmpfs``.  ``options`` are mount(8)'s:
    ``rbind``, ``ro``, ``size=64m``.
    """

    type: Literal["bind", "tmpfs", "image"]
    target: str
    source: str = ""
    options: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class PrepareOptions:
    """How to prepare a root.

    ``view`` gives a read-only root with nothing to commit.  ``mount`` performs the mounts, too.
    ``self_contained`` gives mounts for another mount namespace that sees the store at the same
    path.  ``pull`` and ``driver`` override the store's settings; ``platform`` is ``os/arch[/variant]``: of
    the images that a name holds the one that serves it best, else it is pulled.
    ``quota`` is how many bytes may be written to the root, at least 1 MiB: what would be more fails with
    ENOSPC there and nowhere else; None sets no limit, and a view has none.  ``extra`` are further mounts.
    ``uid_map`` and ``gid_map`` show the image's ids as others, both or neither: in the store, and in
    what a commit makes of the root, ids stay the image's.

    Raises `FailedPrecondition` with the reason where a driver that was asked for does not work here, or
    cannot do what else was asked; only ``erofs`` is ever self-contained.
    """

    view: bool = False
    mount: bool = False
    self_contained: bool = False
    pull: PullPolicy | None = None
    platform: str | None = None
    labels: Mapping[str, str] = field(default_factory=lambda: NO_LABELS)
    driver: Driver | None = None
    quota: int | None = None
    extra: tuple[ExtraMount, ...] = ()
    uid_map: tuple[IdMap, ...] = ()
    gid_map: tuple[IdMap, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedInfo:
    """A prepared root.

    ``kind`` is ``active`` (has an upper) or ``view``; ``mounted`` whether orlop mounted it itself.
    ``image`` is the name it was prepared under, ``image_id`` what that name meant then.
    ``created`` is RFC 3339.  ``missing`` says that the path's parent folder is gone, so nothing can be
    mounted there before it is back.
    """

    path: str
    image: str
    image_id: str
    kind: Literal["active", "view"]
    driver: str
    mounted: bool
    created: str
    mounts: tuple[Mount, ...] = ()
    labels: Mapping[str, str] = field(default_factory=lambda: NO_LABELS)
    quota: int | None = None
    uid_map: tuple[IdMap, ...] = ()
    gid_map: tuple[IdMap, ...] = ()
    missing: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class CommitOptions:
    """What to capture with a commit, and what to record.

    ``changes`` are Dockerfile instructions that edit the config (``ENV A=b``, ``CMD ["sh"]``).
    ``created`` is the time to record, in seconds since 1970; None means now.  ``newest`` is the time that
    later ones of files become.  SOURCE_DATE_EPOCH is both.
    ``exclude`` are patterns as in a .dockerignore: what fits stays as the image has it.
    ``squash`` makes one layer of the whole tree.  ``base`` names another image, on whose layers the change is
    put, and whose config and history it gets.
    ``annotations`` are added to those of the base's manifest, for the manifest that the image will have.
    ``freeze`` is a cgroup (version 2) that stands still while the root is read; without one each file is
    captured as it was at some moment, or the error names it.
    """

    author: str = ""
    message: str = ""
    changes: tuple[str, ...] = ()
    created: int | None = None
    newest: int | None = None
    exclude: tuple[str, ...] = ()
    squash: bool = False
    base: str | None = None
    annotations: Mapping[str, str] = field(default_factory=lambda: NO_LABELS)
    freeze: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PushResult:
    """Where an image went, and the digest of the manifest there.

    ``name`` is the destination, ``names`` all names that it got, that one first.
    """

    name: str
    digest: str
    size: int
    names: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchedBlobs:
    """What `Images.fetch_blobs` brought of an image's blobs, and which were there; sizes in bytes."""

    name: str
    fetched: tuple[str, ...]
    present: tuple[str, ...] = ()
    size: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Removed:
    """Names that are gone, and the bytes of disk that went with them."""

    names: tuple[str, ...]
    freed: int


class Images(Protocol):
    """Images: names, where they come from, where they go.

    Every method is thread-safe and may be called by many processes at once.  Raises `NotFound` for a
    name the store does not have, `InvalidArgument` for one that is not a name.
    """

    def pull(
        self,
        name: str,
        *,
        platform: str | Sequence[str] | None = None,
        all_platforms: bool = False,
        call: Call = ...,
    ) -> ImageInfo:
        """Fetch an image; every byte is verified and durable on return.  Idempotent.

        Of an index the image for this machine, or those for a ``platform`` or several, or with
        ``all_platforms`` the whole index.  What the name held of the same index stays; the first platform
        that is asked for is what it means from now on where nobody says one.
        """
        ...

    def push(
        self,
        name: str,
        destination: str | None = None,
        *,
        tags: Sequence[str] = (),
        recompress: bool = False,
        compression: str | None = None,
        level: int | None = None,
        format: str | None = None,  # noqa: A002 - the option's name
        all_platforms: bool = False,
        call: Call = ...,
    ) -> PushResult:
        """Send an image to a registry, under ``destination`` or its own name, and under further ``tags``.

        Its blobs go once, and only those that the repository has not.  The digest of an image whose manifest
        is known never changes, unless ``recompress``.

        Layers that orlop compresses get the ``compression`` (gzip, zstd, none), ``level`` and ``format``
        (plain, estargz, zstd:chunked) that is said here, or in the settings; with ``recompress`` and one of
        them all layers do.  `FailedPrecondition` where a known manifest is in another form.  An estargz image
        has another ID than the one here, since the form adds files.

        With ``all_platforms`` the index that the name means goes there, with all that is in it:
        `FailedPrecondition` names the platforms that are not held.
        """
        ...

    def fetch_blobs(self, name: str, *, call: Call = ...) -> FetchedBlobs:
        """Fetch the blobs of an image's layers that are not kept, from registries known to have them.

        Each is verified, and kept from then on as long as its layer is.  Raises `FailedPrecondition` for an
        image without a manifest, and naming a blob that nobody gives; the others are kept then, too.
        """
        ...

    def images(self) -> list[ImageInfo]:
        """All images, by name."""
        ...

    def inspect(self, name: str, *, platform: str | None = None) -> ImageDetails:
        """One image, whole; of an index the one for a ``platform`` (`NotFound` lists those there are)."""
        ...

    def tag(self, name: str, new_name: str) -> ImageInfo:
        """Give an image a further name; a name that meant another image moves."""
        ...

    def remove(self, name: str, *, force: bool = False) -> Removed:
        """Take a name away; what nothing else needs is deleted before the call returns.

        An ID takes all its names, but only with ``force`` if they are several.  Prepared roots keep
        what they stand on.
        """
        ...

    def label(self, name: str, changes: Mapping[str, str | None]) -> ImageInfo:
        """Set labels of a name (an empty value is one), and take those away whose value is None.

        They are the store's, not the image's: policies ask for them; a name that moves keeps them.
        """
        ...

    def load(
        self,
        source: ImportSource,
        *,
        name: str | None = None,
        platform: str | Sequence[str] | None = None,
        all_platforms: bool = False,
        options: ImportOptions = ...,
        call: Call = ...,
    ) -> list[ImageInfo]:
        """Import an OCI layout (folder or tar), a ``docker save`` archive, or a root file system.

        ``source`` is an absolute path, or the bytes of a tar as they come; its content says what it is.  All
        images get their names or none does: a name that means another image is not moved (`AlreadyExists`
        names all such) unless ``options.replace``.  Platforms are chosen from a layout's indexes as `pull`
        chooses them; a root file system becomes an image of the one that is given, or this machine's.
        """
        ...


class Roots(Protocol):
    """Prepared roots: from Prepare to Cleanup."""

    def prepare_root(
        self, name: str, path: str, *, options: PrepareOptions = ..., call: Call = ...
    ) -> PreparedInfo:
        """Make an image's root ready at ``path`` and say which mounts assemble it there.

        The image is pulled if the policy says so.  ``path`` need not exist and is not touched unless
        ``options.mount``.  Durable on return.  Raises `AlreadyExists` if the path is prepared,
        `InvalidArgument` if it is relative, not clean, or inside the store.
        """
        ...

    def mounts(self, path: str) -> PreparedInfo:
        """The mounts of a prepared root again, after making sure that they can be performed."""
        ...

    def mount(self, path: str) -> PreparedInfo:
        """Perform the mounts of a prepared root in the service's mount namespace.  Idempotent."""
        ...

    def unmount(self, path: str) -> PreparedInfo:
        """Undo `mount`.  Idempotent."""
        ...

    def prepared(self) -> list[PreparedInfo]:
        """All prepared roots, by path (their ``mounts`` left empty)."""
        ...

    def commit(
        self, path: str, name: str | None = None, *, options: CommitOptions = ..., call: Call = ...
    ) -> ImageInfo:
        """Capture what changed below ``path`` as a new image; the root stays prepared and usable.

        Without ``name`` a new one under ``localhost/`` is made.  With one, that name moves to the new
        image.  Raises `NotFound` if nothing is prepared there, `FailedPrecondition` for a view, for a file
        that changes each time it is read, and for a cgroup that cannot be frozen.
        """
        ...

    def cleanup(self, path: str, *, call: Call = ...) -> None:
        """Forget a prepared root and delete what it wrote.

        Raises `NotFound` if nothing is prepared there, `FailedPrecondition`, naming the processes
        where they can be found, while it is in use; then nothing is removed.
        """
        ...


def __getattr__(name: str) -> object:
    """Protocols and values of modules that are imported when somebody asks for them here."""
    from importlib import import_module

    module = _ELSEWHERE.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(module), name)
