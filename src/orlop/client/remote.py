"""`RemoteStore`: the verbs of `orlop.images.api`, answered by a daemon.

Not a store of its own: no rule is checked here that the daemon checks.  Same results, same errors; what
the daemon reports of a long call reaches the call's observer in the calling thread.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from functools import partial
from typing import Self

from orlop.client import wire, wirestore
from orlop.client.address import TcpAddress
from orlop.client.comparing import RemoteComparing
from orlop.client.contents import RemoteContents
from orlop.client.eventlog import RemoteEvents
from orlop.client.events import follow as _follow
from orlop.client.exports import RemoteExports
from orlop.client.forks import RemoteForks
from orlop.client.link import Link, unicode_only
from orlop.client.sharing import RemoteSharing
from orlop.client.uploads import Upload, can_be_sent, upload
from orlop.client.wireimport import load_request
from orlop.errors import Error as OrlopError
from orlop.errors import InvalidArgument, NotFound, PermissionDenied, from_oserror
from orlop.images.api import (
    CommitOptions,
    FetchedBlobs,
    ImageDetails,
    ImageInfo,
    PreparedInfo,
    PrepareOptions,
    PushResult,
    Removed,
)
from orlop.images.imports import ImportOptions, ImportSource, said_of
from orlop.images.upkeep import (
    BackedUp,
    Checked,
    Collected,
    Explanation,
    Keep,
    Pin,
    StoreInfo,
    Usage,
)
from orlop.layers.packing.recipes import check_wish
from orlop.observe import NULL_OBSERVER, Call, Unheld
from orlop.proto.orlop.v1 import images_pb2, store_pb2, transfer_pb2
from orlop.values import replace

__all__ = ["RemoteStore"]

_DEFAULT_PREPARE = PrepareOptions()
_DEFAULT_COMMIT = CommitOptions()
_DEFAULT_IMPORT = ImportOptions()


class RemoteStore(RemoteForks, RemoteComparing, RemoteContents, RemoteExports, RemoteEvents, RemoteSharing):
    """A store behind a daemon; satisfies `orlop.images.api.Store`.  Thread-safe."""

    def __init__(self, link: Link) -> None:
        self._link = link

    @classmethod
    def connect(
        cls,
        address: str,
        *,
        tls_cert: str | None = None,
        tls_key: str | None = None,
        tls_ca: str | None = None,
    ) -> Self:
        """Ask the daemon at ``unix:///PATH`` (or ``unix:PATH``), or at ``tcp://HOST:PORT``.

        The latter needs the paths of a certificate for the daemon, of its key, and of the authority that
        the daemon's own is signed by.

        Raises `Unavailable` if nothing listens there, `PermissionDenied` if the socket's mode forbids it,
        `InvalidArgument` for another form of address.
        """
        return cls(Link.to(address, tls_cert=tls_cert, tls_key=tls_key, tls_ca=tls_ca))

    @property
    def address(self) -> str:
        """Where the daemon listens, as ``unix:///PATH`` or ``tcp://HOST:PORT``."""
        return str(self._link.address)

    # ------------------------------------------------------------------ images

    def pull(
        self,
        name: str,
        *,
        platform: str | Sequence[str] | None = None,
        all_platforms: bool = False,
        call: Call | None = None,
    ) -> ImageInfo:
        """See `orlop.images.api.Images.pull`."""
        attempted, call = f"pull {name}", call or Call(cancel=Unheld())
        with unicode_only(attempted):
            request = transfer_pb2.PullRequest(
                name=name,
                platforms=wire.platforms_to(platform),
                all_platforms=all_platforms,
                auth=wire.auth_to(call.auth),
            )
        with closing(self._link.stream(lambda s: s.transfer.Pull, request, attempted, call=call)) as events:
            return wire.image_from(_follow(events, "image", call.observer, attempted).image)

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
        call: Call | None = None,
    ) -> PushResult:
        """See `orlop.images.api.Images.push`."""
        attempted, call = f"push {name}", call or Call(cancel=Unheld())
        check_wish(attempted, compression=compression, level=level, format=format)
        with unicode_only(attempted):
            request = transfer_pb2.PushRequest(
                name=name,
                destination=destination,
                tags=tags,
                recompress=recompress,
                compression=compression,
                level=level,
                format=format,
                all_platforms=all_platforms,
                auth=wire.auth_to(call.auth),
            )
        with closing(self._link.stream(lambda s: s.transfer.Push, request, attempted, call=call)) as events:
            return wire.pushed_from(_follow(events, "pushed", call.observer, attempted).pushed)

    def fetch_blobs(self, name: str, *, call: Call | None = None) -> FetchedBlobs:
        """See `orlop.images.api.Images.fetch_blobs`."""
        attempted, call = f"fetch blobs of {name}", call or Call(cancel=Unheld())
        with unicode_only(attempted):
            request = transfer_pb2.FetchBlobsRequest(name=name, auth=wire.auth_to(call.auth))
        events = self._link.stream(lambda s: s.transfer.FetchBlobs, request, attempted, call=call)
        with closing(events):
            return wire.blobs_from(_follow(events, "blobs", call.observer, attempted).blobs)

    def load(
        self,
        source: ImportSource,
        *,
        name: str | None = None,
        platform: str | Sequence[str] | None = None,
        all_platforms: bool = False,
        options: ImportOptions = _DEFAULT_IMPORT,
        call: Call | None = None,
    ) -> list[ImageInfo]:
        """See `orlop.images.api.Images.load`.

        A path is the daemon's, which reads it there.  What it cannot see or may not read is read here and
        sent, and so is, to a daemon that is reached by TCP, what is here at that path.
        """
        call = call or Call(cancel=Unheld())
        ask = partial(load_request, name=name, platform=platform, all_platforms=all_platforms)
        if not isinstance(source, str):
            return self._send(source, ask(source="", options=options), options, call)
        attempted = f"load {source}"
        send = partial(self._send, source, options=options, call=call)
        with unicode_only(attempted):
            here = ask(source="", options=replace(options, owner=None, newest=None))
        if isinstance(self._link.address, TcpAddress) and can_be_sent(source):
            return send(here)
        with unicode_only(attempted):
            request = ask(source=source, options=options)
        try:
            events = self._link.stream(lambda s: s.transfer.Load, request, attempted, call=call)
            with closing(events):
                loaded = _follow(events, "loaded", call.observer, attempted).loaded
        except (NotFound, PermissionDenied) as exc:
            if exc.details.get("unreadable") == "source" and can_be_sent(source):
                return send(here)
            raise
        return [wire.image_from(image) for image in loaded.images]

    def _send(
        self, source: ImportSource, start: transfer_pb2.LoadRequest, options: ImportOptions, call: Call
    ) -> list[ImageInfo]:
        """Import what is read here."""
        attempted = said_of(source)
        with upload(source, options, attempted=attempted, call=call) as chunks:
            start.stem = os.path.basename(source) if isinstance(source, str) else ""
            events = self._link.duplex(
                lambda s: s.transfer.LoadStream, _parts(start, chunks), attempted, call=call
            )
            try:
                with closing(events):
                    loaded = _follow(events, "loaded", call.observer, attempted).loaded
            except OrlopError as exc:
                if chunks.failure is not None:  # then gRPC has ended the call for that
                    if isinstance(chunks.failure, OSError):
                        raise from_oserror(attempted, chunks.failure) from exc
                    raise chunks.failure from exc
                raise
        return [wire.image_from(image) for image in loaded.images]

    def images(self) -> list[ImageInfo]:
        """See `orlop.images.api.Images.images`."""
        answer = self._link.unary(lambda s: s.images.List, images_pb2.ListRequest(), "list images")
        return [wire.image_from(image) for image in answer.images]

    def inspect(self, name: str, *, platform: str | None = None) -> ImageDetails:
        """See `orlop.images.api.Images.inspect`."""
        attempted = f"inspect {name}"
        with unicode_only(attempted):
            request = images_pb2.InspectRequest(name=name, platform=platform)
        return wire.details_from(self._link.unary(lambda s: s.images.Inspect, request, attempted))

    def tag(self, name: str, new_name: str) -> ImageInfo:
        """See `orlop.images.api.Images.tag`."""
        attempted = f"tag {name}"
        with unicode_only(attempted):
            request = images_pb2.TagRequest(name=name, new_name=new_name)
        return wire.image_from(self._link.unary(lambda s: s.images.Tag, request, attempted).image)

    def label(self, name: str, changes: Mapping[str, str | None]) -> ImageInfo:
        """See `orlop.images.api.Images.label`."""
        attempted = f"label {name}"
        unset = [key for key, value in changes.items() if value is None]
        with unicode_only(attempted):
            request = images_pb2.LabelRequest(
                name=name,
                set={key: value for key, value in changes.items() if value is not None},
                unset=unset,
            )
        return wire.image_from(self._link.unary(lambda s: s.images.Label, request, attempted).image)

    def remove(self, name: str, *, force: bool = False) -> Removed:
        """See `orlop.images.api.Images.remove`."""
        attempted = f"remove {name}"
        with unicode_only(attempted):
            request = images_pb2.RemoveRequest(name=name, force=force)
        return wire.removed_from(self._link.unary(lambda s: s.images.Remove, request, attempted))

    # ------------------------------------------------------------------ prepared roots

    def prepare_root(
        self, name: str, path: str, *, options: PrepareOptions = _DEFAULT_PREPARE, call: Call | None = None
    ) -> PreparedInfo:
        """See `orlop.images.api.Roots.prepare_root`.

        With an observer it is a stream, which costs a little more than the single answer without.
        """
        attempted, call = f"prepare {path}", call or Call(cancel=Unheld())
        with _in_range(attempted), unicode_only(attempted):
            choices, auth = wire.prepare_options_to(options), wire.auth_to(call.auth)
            ask = images_pb2.PrepareRootRequest(name=name, path=path, options=choices, auth=auth)
            watch = images_pb2.WatchPrepareRootRequest(name=name, path=path, options=choices, auth=auth)
        if call.observer is NULL_OBSERVER:
            answer = self._link.unary(lambda s: s.images.PrepareRoot, ask, attempted, call=call)
            return wire.root_from(answer.root)
        events = self._link.stream(lambda s: s.images.WatchPrepareRoot, watch, attempted, call=call)
        with closing(events):
            return wire.root_from(_follow(events, "root", call.observer, attempted).root)

    def mounts(self, path: str) -> PreparedInfo:
        """See `orlop.images.api.Roots.mounts`."""
        attempted = f"look up the mounts of {path}"
        with unicode_only(attempted):
            request = images_pb2.MountsRequest(path=path)
        return wire.root_from(self._link.unary(lambda s: s.images.Mounts, request, attempted).root)

    def mount(self, path: str) -> PreparedInfo:
        """See `orlop.images.api.Roots.mount`; it happens in the daemon's mount namespace."""
        attempted = f"mount {path}"
        with unicode_only(attempted):
            request = images_pb2.MountRequest(path=path)
        return wire.root_from(self._link.unary(lambda s: s.images.Mount, request, attempted).root)

    def unmount(self, path: str) -> PreparedInfo:
        """See `orlop.images.api.Roots.unmount`."""
        attempted = f"unmount {path}"
        with unicode_only(attempted):
            request = images_pb2.UnmountRequest(path=path)
        return wire.root_from(self._link.unary(lambda s: s.images.Unmount, request, attempted).root)

    def prepared(self) -> list[PreparedInfo]:
        """See `orlop.images.api.Roots.prepared`."""
        request = images_pb2.ListPreparedRequest()
        answer = self._link.unary(lambda s: s.images.ListPrepared, request, "list prepared roots")
        return [wire.root_from(root) for root in answer.roots]

    def commit(
        self,
        path: str,
        name: str | None = None,
        *,
        options: CommitOptions = _DEFAULT_COMMIT,
        call: Call | None = None,
    ) -> ImageInfo:
        """See `orlop.images.api.Roots.commit`."""
        attempted, call = f"commit {path}", call or Call(cancel=Unheld())
        with unicode_only(attempted):
            choices = wire.commit_options_to(options)
            request = images_pb2.CommitRequest(path=path, name=name, options=choices)
        with closing(self._link.stream(lambda s: s.images.Commit, request, attempted, call=call)) as events:
            return wire.image_from(_follow(events, "image", call.observer, attempted).image)

    def cleanup(self, path: str, *, call: Call | None = None) -> None:
        """See `orlop.images.api.Roots.cleanup`."""
        attempted, call = f"clean up {path}", call or Call(cancel=Unheld())
        with unicode_only(attempted):
            request = images_pb2.CleanupRequest(path=path)
        answer = self._link.unary(lambda s: s.images.Cleanup, request, attempted, call=call)
        for warning in answer.warnings:
            call.observer.warning(warning.text)

    # ------------------------------------------------------------------ the store

    def collect(
        self, *, dry_run: bool = False, keep: Keep | None = None, call: Call | None = None
    ) -> Collected:
        """See `orlop.images.upkeep.Keeping.collect`."""
        attempted, call = "collect", call or Call(cancel=Unheld())
        with _in_range(attempted), unicode_only(attempted):
            request = store_pb2.CollectRequest(
                dry_run=dry_run, keep=wirestore.keep_to(keep) if keep is not None else None
            )
        with closing(self._link.stream(lambda s: s.store.Collect, request, attempted, call=call)) as events:
            return wirestore.collected_from(_follow(events, "collected", call.observer, attempted).collected)

    def usage(self, *, call: Call | None = None) -> Usage:
        """See `orlop.images.upkeep.Keeping.usage`."""
        request = store_pb2.UsageRequest()
        answer = self._link.unary(lambda s: s.store.Usage, request, "measure the store", call=call)
        return wirestore.usage_from(answer)

    def explain(self, thing: str, *, call: Call | None = None) -> Explanation:
        """See `orlop.images.upkeep.Keeping.explain`."""
        attempted = f"explain {thing}"
        with unicode_only(attempted):
            request = store_pb2.ExplainRequest(thing=thing)
        answer = self._link.unary(lambda s: s.store.Explain, request, attempted, call=call)
        return wirestore.explanation_from(answer)

    def pin(self, thing: str, name: str | None = None, *, expires: float | None = None) -> Pin:
        """See `orlop.images.upkeep.Keeping.pin`."""
        attempted = f"pin {thing}"
        with unicode_only(attempted):
            request = store_pb2.PinRequest(thing=thing, name=name, expires=expires)
        return wirestore.pin_from(self._link.unary(lambda s: s.store.Pin, request, attempted).pin)

    def unpin(self, name: str) -> None:
        """See `orlop.images.upkeep.Keeping.unpin`."""
        attempted = f"unpin {name}"
        with unicode_only(attempted):
            request = store_pb2.UnpinRequest(name=name)
        self._link.unary(lambda s: s.store.Unpin, request, attempted)

    def pins(self) -> list[Pin]:
        """See `orlop.images.upkeep.Keeping.pins`."""
        answer = self._link.unary(lambda s: s.store.ListPins, store_pb2.ListPinsRequest(), "list pins")
        return [wirestore.pin_from(pin) for pin in answer.pins]

    def check(
        self,
        *,
        full: bool = False,
        repair: bool = False,
        things: tuple[str, ...] = (),
        pace: int | None = None,
        call: Call | None = None,
    ) -> Checked:
        """See `orlop.images.upkeep.Upkeep.check`."""
        attempted, call = "check", call or Call(cancel=Unheld())
        with _in_range(attempted), unicode_only(attempted):
            request = store_pb2.CheckRequest(full=full, repair=repair, things=things, pace=pace)
        with closing(self._link.stream(lambda s: s.store.Check, request, attempted, call=call)) as events:
            return wirestore.checked_from(_follow(events, "checked", call.observer, attempted).checked)

    def backup(self, destination: str, *, content: bool = False, call: Call | None = None) -> BackedUp:
        """See `orlop.images.upkeep.Upkeep.backup`; the file is made where the daemon runs."""
        attempted, call = f"back up to {destination}", call or Call(cancel=Unheld())
        with unicode_only(attempted):
            request = store_pb2.BackupRequest(destination=destination, content=content)
        with closing(self._link.stream(lambda s: s.store.Backup, request, attempted, call=call)) as events:
            return wirestore.backed_up_from(_follow(events, "backed_up", call.observer, attempted).backed_up)

    def info(self) -> StoreInfo:
        """See `orlop.images.upkeep.Upkeep.info`."""
        answer = self._link.unary(lambda s: s.store.Info, store_pb2.InfoRequest(), "get info")
        return wirestore.info_from(answer)

    def close(self) -> None:
        """Close the connection; the daemon goes on.  Idempotent."""
        self._link.close()


def _parts(start: transfer_pb2.LoadRequest, chunks: Upload) -> Iterator[transfer_pb2.LoadStreamRequest]:
    """The messages of an import that is sent."""
    yield transfer_pb2.LoadStreamRequest(start=start)
    for chunk in chunks:
        yield transfer_pb2.LoadStreamRequest(chunk=chunk)
    yield transfer_pb2.LoadStreamRequest(end=True)


@contextmanager
def _in_range(attempted: str) -> Iterator[None]:
    """Around the making of a request with numbers: one of more than 64 bits cannot be sent."""
    try:
        yield
    except ValueError as exc:
        raise InvalidArgument(attempted, str(exc)) from exc
