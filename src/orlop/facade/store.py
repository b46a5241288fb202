"""`Store`: the verbs, with results that are pleasant in Python."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence

from orlop.errors import InvalidArgument
from orlop.facade.comparing import StoreComparing
from orlop.facade.contents import StoreContents
from orlop.facade.events import StoreEvents
from orlop.facade.exports import StoreExports
from orlop.facade.forks import StoreForks
from orlop.facade.prepared import Prepared
from orlop.facade.sharing import StoreSharing
from orlop.hints import IO, TYPE_CHECKING, Self
from orlop.observe import Auth, Call, Unheld
from orlop.values import replace

if TYPE_CHECKING:
    from orlop.config import Driver, PullPolicy
    from orlop.images.api import (
        ExtraMount,
        FetchedBlobs,
        IdMap,
        ImageDetails,
        ImageInfo,
        PreparedInfo,
        PushResult,
        Removed,
    )
    from orlop.images.api import Store as StoreVerbs
    from orlop.images.imports import ImportFormat, ImportSource
    from orlop.images.upkeep import BackedUp, Checked, Collected, Explanation, Keep, Pin, StoreInfo, Usage

__all__ = ["Store"]

StrPath = str | os.PathLike[str]


def _with(auth: Auth | None, name: str, call: Call | None) -> Call:
    """A call with credentials for the registry that they name, or else that of an image's name."""
    call = call or Call(cancel=Unheld())
    if auth is None:
        return call
    from orlop.spec.reference import Reference

    parsed = Reference.parse(f"{auth.registry}/any" if auth.registry else name)
    return replace(call, auth=replace(auth, registry=parsed.registry))


def _of_engine(source: str, call: Call) -> Iterator[bytes] | None:
    """What another engine saves, where the source names an image of one."""
    if not source.startswith(("podman:", "docker:")):
        return None
    from orlop.facade.engines import engine_of, saved

    named = engine_of(source)
    return None if named is None else saved(*named, call)


class Store(StoreComparing, StoreContents, StoreEvents, StoreExports, StoreForks, StoreSharing):
    """Images and prepared roots, here or behind a daemon.  Thread-safe; a context manager.

    Every method raises the classes of `orlop.errors`; `orlop.images.api` has each verb's contract.
    """

    def __init__(self, verbs: StoreVerbs) -> None:
        self.verbs = verbs

    def pull(
        self,
        name: str,
        *,
        platform: str | Sequence[str] | None = None,
        all_platforms: bool = False,
        auth: Auth | None = None,
        call: Call | None = None,
    ) -> ImageInfo:
        """Fetch an image; every byte is verified and durable on return.

        Of an index the image for this machine, or for one ``platform`` or several, or ``all_platforms``.
        ``auth`` are credentials for this call and the image's registry alone.

        Raises `NotFound` where the registry has no such image, `Unauthenticated` where it wants to
        know who asks, `Unavailable` where it does not answer, `DataLoss` for bytes that are not
        what their digest says.

        >>> image = store.pull("registry.example.com/box:1")
        >>> image.name, image.layers
        ('registry.example.com/box:1', 1)
        """
        call = _with(auth, name, call)
        return self.verbs.pull(name, platform=platform, all_platforms=all_platforms, call=call)

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
        auth: Auth | None = None,
        call: Call | None = None,
    ) -> PushResult:
        """Send an image to a registry, under ``destination`` or its own name, and under further ``tags``.

        What is compressed for it is so by ``compression`` (gzip, zstd, none), ``level`` and ``format``
        (plain, estargz, zstd:chunked): docs/formats.md.  With ``all_platforms`` the index that the name
        means, with all that is in it.  ``auth`` are credentials for this call and the registry that it
        goes to.

        Raises `FailedPrecondition` for a blob that is neither kept nor anywhere to be had, and as
        `pull` does.

        >>> store.tag("alpine", "registry.example.com/copy:1").name
        'registry.example.com/copy:1'
        >>> store.push("registry.example.com/copy:1").digest
        'sha256:...'
        """
        call = _with(auth, destination or name, call)
        return self.verbs.push(
            name,
            destination,
            tags=tags,
            recompress=recompress,
            compression=compression,
            level=level,
            format=format,
            all_platforms=all_platforms,
            call=call,
        )

    def fetch_blobs(self, name: str, *, call: Call | None = None) -> FetchedBlobs:
        """Fetch the blobs of an image's layers that are not kept, so that it can go anywhere as it came.

        Raises `FailedPrecondition` for an image without a manifest, and for a blob that nobody
        gives.

        >>> name = store.pull("registry.example.com/box:1").name
        >>> len(store.fetch_blobs(name).fetched)
        1
        """
        return self.verbs.fetch_blobs(name, call=call or Call())

    def load(
        self,
        source: StrPath | IO[bytes] | Iterable[bytes],
        *,
        name: str | None = None,
        platform: str | Sequence[str] | None = None,
        all_platforms: bool = False,
        format: ImportFormat | None = None,  # noqa: A002 - as the command line has it
        replace: bool = False,
        changes: Sequence[str] = (),
        author: str = "",
        message: str = "",
        created: int | None = None,
        owner: tuple[int, int] | None = None,
        newest: int | None = None,
        call: Call | None = None,
    ) -> list[ImageInfo]:
        """Import an OCI layout (folder or tar), a ``docker save`` archive, or a root file system.

        ``source`` is a path, a file open for reading in binary mode, an iterable of bytes, or the text
        ``podman:IMAGE`` or ``docker:IMAGE``: what those programs save (``./podman:x`` is a path).  A name
        that means another image is moved only with ``replace``.  The options from ``changes`` on are for root
        file systems; `orlop.images.imports.ImportOptions` says more.

        Raises `AlreadyExists` for a name that means another image, `InvalidArgument` for what is no
        image.

        >>> store.load("/srv/layout", name="localhost/again")[0].layers
        1
        >>> with open("/srv/rootfs.tar", "rb") as file:
        ...     store.load(file, name="localhost/base", changes=["CMD sh"])[0].name
        'localhost/base:latest'
        """
        from orlop.images.imports import ImportOptions, chunks_of

        options = ImportOptions(
            format=format,
            replace=replace,
            changes=tuple(changes),
            author=author,
            message=message,
            created=created,
            owner=owner,
            newest=newest,
        )
        if source == "":  # which would be the folder that one is in
            raise InvalidArgument("import", "the path is empty")
        call = call or Call()
        given: ImportSource
        if isinstance(source, str) and (saved := _of_engine(source, call)) is not None:
            given = saved
        elif isinstance(source, (str, os.PathLike)):
            given = os.path.abspath(source)
        else:
            given = chunks_of(source)
        return self.verbs.load(
            given,
            name=name,
            platform=platform,
            all_platforms=all_platforms,
            options=options,
            call=call,
        )

    def images(self) -> list[ImageInfo]:
        """All images, by name.

        >>> [image.name for image in store.images()]
        ['docker.io/library/alpine:latest']
        """
        return self.verbs.images()

    def inspect(self, name: str, *, platform: str | None = None) -> ImageDetails:
        """One image, whole; of an index the one for a ``platform``.

        An image's name or ID. ``config`` and ``manifest`` are the documents as they came: JSON, in
        bytes. Raises `NotFound`.

        >>> import json
        >>> json.loads(store.inspect("alpine").config)["config"]["Env"]
        ['PATH=/bin']
        """
        return self.verbs.inspect(name, platform=platform)

    def tag(self, name: str, new_name: str) -> ImageInfo:
        """Give an image a further name.

        A name that meant another image moves. Raises `NotFound` and `InvalidArgument`.

        >>> store.tag("alpine", "localhost/alpine:stable").name
        'localhost/alpine:stable'
        """
        return self.verbs.tag(name, new_name)

    def remove(self, name: str, *, force: bool = False) -> Removed:
        """Take a name away, and the disk that nothing else needs.

        ``freed`` are bytes of disk. Prepared roots keep what they stand on. An ID takes all its
        names, with ``force`` also several. Raises `NotFound`.

        >>> store.tag("alpine", "localhost/gone").name
        'localhost/gone:latest'
        >>> store.remove("localhost/gone").names
        ('localhost/gone:latest',)
        """
        return self.verbs.remove(name, force=force)

    def prepare(
        self,
        name: str,
        path: StrPath,
        *,
        view: bool = False,
        mount: bool = False,
        self_contained: bool = False,
        pull: PullPolicy | None = None,
        platform: str | None = None,
        labels: Mapping[str, str] | None = None,
        driver: Driver | None = None,
        quota: int | None = None,
        extra: Sequence[ExtraMount] = (),
        uid_map: Sequence[IdMap] = (),
        gid_map: Sequence[IdMap] = (),
        user_namespace: int | StrPath | None = None,
        auth: Auth | None = None,
        call: Call | None = None,
    ) -> Prepared:
        """Make an image's root ready at ``path``.

        ``driver`` is ``erofs``, ``overlay``, ``native`` or ``auto`` (the first that works here) in
        place of the store's setting; ``quota`` the bytes that may be written to the root; ``extra``
        mounts of your own, appended in this order; ``uid_map`` and ``gid_map``, both or neither, show
        the image's ids as others, and so does a ``user_namespace`` (a descriptor, or ``/proc/<pid>/ns/user``)
        whose maps are taken; ``auth`` are credentials for a pull that this takes.
        `orlop.images.api.PrepareOptions` has the rest.

        As a context manager the result cleans up at the end of the block; without ``with`` the root
        stays, also after this process, until `Prepared.cleanup`.

        ``path`` is absolute; to mount there its parent must be there.  Raises `AlreadyExists` for a path that
        is prepared, `NotFound` for an image that is nowhere, `FailedPrecondition` where a driver or an option
        does not work here, and what `pull` raises.

        >>> with store.prepare("alpine", "/srv/a", mount=True) as root:
        ...     print(open("/srv/a/etc/motd").read(), end="")
        ...     root.mounts[-1].target
        hello
        '/srv/a'
        """
        if user_namespace is not None:
            from orlop.images.prepared.idmaps import maps_of_namespace

            if uid_map or gid_map:
                raise InvalidArgument(f"prepare {path}", "give a user namespace or maps, not both")
            where = user_namespace if isinstance(user_namespace, int) else os.fspath(user_namespace)
            uid_map, gid_map = maps_of_namespace(where)
        from orlop.images.api import PrepareOptions

        options = PrepareOptions(
            view=view,
            mount=mount,
            self_contained=self_contained,
            pull=pull,
            platform=platform,
            labels=dict(labels or {}),
            driver=driver,
            quota=quota,
            extra=tuple(extra),
            uid_map=tuple(uid_map),
            gid_map=tuple(gid_map),
        )
        call = _with(auth, name, call)
        info = self.verbs.prepare_root(name, os.fspath(path), options=options, call=call)
        return Prepared(self.verbs, info)

    def prepared(self) -> list[PreparedInfo]:
        """All prepared roots, by path.

        Their mounts are left out: `get` has them.

        >>> [(info.path, info.image, info.mounted) for info in store.prepared()]
        [('/srv/root', 'docker.io/library/alpine:latest', True)]
        """
        return self.verbs.prepared()

    def get(self, path: StrPath) -> Prepared:
        """The handle of a root that was prepared before, perhaps by another process.

        Raises `NotFound` where nothing is prepared.

        >>> store.get("/srv/root").info.kind
        'active'
        """
        return Prepared(self.verbs, self.verbs.mounts(os.fspath(path)))

    def label(self, name: str, changes: Mapping[str, str | None]) -> ImageInfo:
        """Set labels of a name, and take those away whose value is None; policies ask for them.

        Returns the image with its labels. Raises `NotFound`.

        >>> dict(store.label("alpine", {"team": "blue"}).labels)
        {'team': 'blue'}
        >>> dict(store.label("alpine", {"team": None}).labels)
        {}
        """
        return self.verbs.label(name, changes)

    def collect(
        self, *, dry_run: bool = False, keep: Keep | None = None, call: Call | None = None
    ) -> Collected:
        """Delete what no image, prepared root, lease or pin needs; with ``keep``, images beyond it too.

        A collection also happens by itself, as names and roots go; this one finds what crashes have
        left.

        >>> store.collect(dry_run=True).freed >= 0
        True
        >>> store.collect(keep=orlop.Keep(age=30 * 86400)).names
        ()
        """
        return self.verbs.collect(dry_run=dry_run, keep=keep, call=call or Call())

    def usage(self, *, call: Call | None = None) -> Usage:
        """What the store takes on disk, and how it divides among images.

        Sizes are bytes of disk, as du(1) counts them.

        >>> usage = store.usage()
        >>> usage.size == sum(part.size for part in usage.parts)
        True
        """
        return self.verbs.usage(call=call or Call())

    def explain(self, thing: str, *, call: Call | None = None) -> Explanation:
        """Why a thing is kept, what it shares, and what its removal would free.

        A thing is an image, a layer (its diff ID), ``blob sha256:…``, ``chain …``, the path of a prepared
        root, ``lease …`` or ``pin …``.

        Raises `NotFound`.

        >>> [(reason.kind, reason.name) for reason in store.explain("alpine").kept_by]
        [('image', 'docker.io/library/alpine:latest'), ('root', '/srv/root')]
        """
        return self.verbs.explain(thing, call=call or Call())

    def pin(self, thing: str, name: str | None = None, *, expires: float | None = None) -> Pin:
        """Keep a thing whatever happens to its names; until ``expires``, seconds since 1970, if given.

        A pin of that ``name`` moves.  Raises `NotFound` for a thing that is not there.

        >>> store.pin("alpine", "base").name
        'base'
        >>> store.unpin("base")
        """
        return self.verbs.pin(thing, name, expires=expires)

    def unpin(self, name: str) -> None:
        """Take a pin back.

        Raises `NotFound`.

        >>> store.pin("alpine", "for-a-while", expires=4102444800).kind
        'image'
        >>> store.unpin("for-a-while")
        """
        self.verbs.unpin(name)

    def pins(self) -> list[Pin]:
        """All pins that have not expired, by name.

        >>> store.pins()
        []
        """
        return self.verbs.pins()

    def check(
        self,
        *things: str,
        full: bool = False,
        repair: bool = False,
        pace: int | None = None,
        call: Call | None = None,
    ) -> Checked:
        """Compare what the metadata promise with what is on disk; all of it, or some things.

        ``full`` reads and hashes everything, ``pace`` bytes a second at most; ``repair`` mends what can be.

        ``things`` are images and layers. What is wrong is not raised but found.

        >>> store.check("alpine", full=True).findings
        ()
        """
        return self.verbs.check(full=full, repair=repair, things=things, pace=pace, call=call or Call())

    def backup(self, destination: StrPath, *, content: bool = False, call: Call | None = None) -> BackedUp:
        """Write the metadata, and with ``content`` the layers, to a new file; consistent while in use.

        `orlop.restore` reads it. Raises `AlreadyExists` for a file that is there.

        >>> store.backup("/srv/backup", content=True).images
        1
        """
        return self.verbs.backup(os.path.abspath(destination), content=content, call=call or Call())

    def info(self) -> StoreInfo:
        """The store and what serves it.

        >>> info = store.info()
        >>> info.driver in {"erofs", "overlay", "native"}
        True
        """
        return self.verbs.info()

    def close(self) -> None:
        """Let go of files, processes and connections.  Prepared roots stay.

        Idempotent. Streams and calls that go on are cut off.

        >>> store.close()
        """
        self.verbs.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
