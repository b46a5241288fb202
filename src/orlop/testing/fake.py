"""A store in memory: the verbs of `orlop.images.api` without a kernel, a disk or a registry.

For tests of what stands on a store (the daemon, the client, a program of yours).  It keeps the
contracts that a caller can see (names, errors, what moves what) and performs nothing: mounts are values,
`FakeStore.write` stands for what a program changes in a root, `publish` for an image in a registry.
A test can make a verb fail (`fail`) or hold it until it is released or its call ends (`hold`).

    store = FakeStore("/var/tmp/fake")
    store.publish("alpine", layers=(1000, 200))
    store.prepare_root("alpine", "/srv/a")
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import astuple

from orlop.config import DRIVERS
from orlop.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound
from orlop.images.api import (
    CommitOptions,
    FetchedBlobs,
    ImageDetails,
    ImageInfo,
    Mount,
    PreparedInfo,
    PrepareOptions,
    PushResult,
    Removed,
)
from orlop.images.imports import ImportOptions, ImportSource, said_of
from orlop.layers.packing.recipes import check_wish
from orlop.observe import Call, Progress
from orlop.spec.digest import Digest
from orlop.spec.platform import Platform
from orlop.spec.reference import Reference
from orlop.testing.fake_base import FakeImage, Held, make_image, make_layer
from orlop.testing.fake_comparing import FakeComparing
from orlop.testing.fake_events import FakeEvents
from orlop.testing.fake_exports import FakeExports
from orlop.testing.fake_forks import FakeForks
from orlop.testing.fake_sharing import FakeSharing
from orlop.testing.fake_upkeep import FakeUpkeep
from orlop.values import replace

__all__ = ["FakeStore", "Held"]

_PREPARE = PrepareOptions()
_COMMIT = CommitOptions()
_IMPORT = ImportOptions()


class FakeStore(FakeUpkeep, FakeForks, FakeComparing, FakeExports, FakeEvents, FakeSharing):
    """Satisfies `orlop.images.api.Store`.  Thread-safe.

    ``root`` and ``run`` are only told.  ``now`` is the time of everything, RFC 3339.
    """

    # ------------------------------------------------------------------ what a test arranges

    def publish(
        self,
        name: str,
        *,
        layers: tuple[int, ...] = (1000,),
        platform: str = "linux/amd64",
        more: tuple[str, ...] = (),
        warnings: tuple[str, ...] = (),
    ) -> str:
        """Put an image with layers of these sizes into the registry; the digest of its manifest.

        With ``more`` platforms it is an index, of such an image for each of them, and its digest is returned.
        """
        full = str(Reference.parse(name))
        blobs = tuple(make_layer(f"{full} {number}", size) for number, size in enumerate(layers))
        image, *siblings = (
            make_image(blobs, one, self.now, manifest=True, warnings=warnings) for one in (platform, *more)
        )
        if more:
            index = Digest.of(json.dumps([one.id for one in (image, *siblings)]).encode())
            image = replace(image, index=index, siblings=tuple(replace(one, index=index) for one in siblings))
        self.registry[full] = image
        return image.index or Digest.of(image.manifest or b"")

    def write(self, path: str, content: str) -> None:
        """Change something in a prepared root: commits of the same content are the same layer."""
        with self._lock:
            self._root(path, "write")
            self._written[path] = content

    # ------------------------------------------------------------------ images

    def pull(
        self,
        name: str,
        *,
        platform: str | Sequence[str] | None = None,
        all_platforms: bool = False,
        call: Call | None = None,
    ) -> ImageInfo:
        """Copy an image from `registry`, with progress for each layer; or those of some platforms."""
        call = self._begin("pull", name, call)
        full = str(Reference.parse(name))
        published = self.registry.get(full)
        if published is None:
            raise NotFound(f"pull {full}", "the registry has no such image")
        chosen = _chosen(published, platform, f"pull {full}", all_platforms=all_platforms)
        image = chosen[0]
        for text in image.warnings:
            call.observer.warning(text)
        for layer in image.layers:
            for phase, done in (
                ("fetching", 0),
                ("fetching", layer.size),
                ("indexing", 0),
                ("done", layer.size),
            ):
                step = Progress(item=layer.diff_id, phase=phase, done=done, total=layer.size, rate=0.5)
                call.observer.progress(step)
                call.check(f"pull {full}")
        with self._lock:
            before = self._images.get(full)
            if before is not None and before.index == image.index:
                chosen += before.every
            held = {one.id: one for one in reversed(chosen)}
            others = tuple(one for one in held.values() if one.id != image.id)
            image = replace(image, siblings=others if image.index else ())
            self._images[full] = image
            self.tell("image.pulled", full, id=image.id)
        return image.info(full)

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
        """Copy an image to `registry`; it gets a manifest if it had none."""
        call = self._begin("push", name, call)
        check_wish(f"push {name}", compression=compression, level=level, format=format)
        with self._lock:
            full, image = self._find(name, "push")
            if all_platforms and image.index is None:
                raise FailedPrecondition(f"push {name}", "the name means one image, not an index")
            if not all_platforms:
                image = replace(image, index=None, siblings=())
            first = Reference.parse(destination or full)
            target = str(first)
            names = [target, *(str(Reference.parse(f"{first.name}:{tag}")) for tag in tags)]
            if image.manifest is None or (recompress and not all_platforms):
                made = make_image(
                    image.layers, image.platform, image.created, manifest=True, salt=str(recompress)
                )
                image = replace(image, manifest=made.manifest)
                for known in [known for known, other in self._images.items() if other.id == image.id]:
                    self._images[known] = image
            self.registry |= dict.fromkeys(names, image)
        for layer in image.layers:
            call.observer.progress(Progress(item=layer.diff_id, phase="pushing", done=layer.size))
        size = sum(layer.size for layer in image.layers)
        digest = image.index or Digest.of(image.manifest or b"")
        return PushResult(name=target, digest=digest, size=size, names=tuple(dict.fromkeys(names)))

    def fetch_blobs(self, name: str, *, call: Call | None = None) -> FetchedBlobs:
        """The blobs of an image's layers are there from then on."""
        call = self._begin("fetch_blobs", name, call)
        with self._lock:
            full, image = self._find(name, "fetch blobs of")
            if image.manifest is None:
                raise FailedPrecondition(f"fetch blobs of {name}", "it has no manifest")
            missing = [layer for layer in image.layers if not layer.blob_present]
            here = tuple(replace(layer, blob_present=True) for layer in image.layers)
            for known in [known for known, other in self._images.items() if other.id == image.id]:
                self._images[known] = replace(image, layers=here)
        for layer in missing:
            call.observer.progress(Progress(item=layer.blob or "", phase="fetching", done=layer.blob_size))
        return FetchedBlobs(
            name=full,
            fetched=tuple(layer.blob or "" for layer in missing),
            present=tuple(layer.blob or "" for layer in image.layers if layer.blob_present),
            size=sum(layer.blob_size for layer in missing),
        )

    def images(self) -> list[ImageInfo]:
        """All images, by name."""
        self._begin("images", "")
        with self._lock:
            return [self._info(name, self._images[name]) for name in sorted(self._images)]

    def inspect(self, name: str, *, platform: str | None = None) -> ImageDetails:
        """One image, whole."""
        self._begin("inspect", name)
        with self._lock:
            full, image = self._find(name, "inspect")
            if platform is not None:
                found = _chosen(image, platform, f"inspect {name}")[0]
                siblings = tuple(one for one in image.every if one.id != found.id)
                image = replace(found, siblings=siblings)
            names = self._names(image)
        return ImageDetails(
            info=self._info(full, image),
            names=names,
            config=image.config,
            manifest=image.manifest,
            layers=image.layers,
        )

    def tag(self, name: str, new_name: str) -> ImageInfo:
        """A further name."""
        self._begin("tag", name)
        new = str(Reference.parse(new_name))
        with self._lock:
            _, image = self._find(name, "tag")
            self._images[new] = image
            self.tell("image.created", new, id=image.id)
            return self._info(new, image)

    def remove(self, name: str, *, force: bool = False) -> Removed:
        """A name less; an ID takes all its names."""
        self._begin("remove", name)
        with self._lock:
            full, image = self._find(name, "remove")
            names = [full]
            if full not in (name, _full_or_none(name)):
                names = list(self._names(image))
                if len(names) > 1 and not force:
                    raise FailedPrecondition(
                        f"remove {name}",
                        f"it has {len(names)} names",
                        hint="remove them one by one, or use force",
                    )
            for known in names:
                del self._images[known]
                self._labels.pop(known, None)
                self.tell("image.removed", known, id=image.id)
            kept = {layer.diff_id for other in self._in_use() for layer in other.layers}
            freed = sum(layer.size for layer in image.layers if layer.diff_id not in kept)
        return Removed(names=tuple(names), freed=freed)

    def load(
        self,
        source: ImportSource,
        *,
        name: str | None = None,
        platform: str | Sequence[str] | None = None,
        all_platforms: bool = False,
        options: ImportOptions = _IMPORT,
        call: Call | None = None,
    ) -> list[ImageInfo]:
        """Take what `archives` has under a path; of a stream, under the text that its bytes are."""
        attempted = said_of(source)
        call = self._begin("load", source if isinstance(source, str) else "-", call)
        options.check(attempted)
        key = source if isinstance(source, str) else b"".join(source).decode(errors="replace")
        if key not in self.archives:
            details = {"unreadable": "source"} if isinstance(source, str) else {}
            raise NotFound(attempted, "No such file or directory", details=details)
        loaded: dict[str, FakeImage] = {}
        for published in self.archives[key]:
            offered = self.registry[str(Reference.parse(published))]
            image, *others = _chosen(offered, platform, attempted, all_platforms=all_platforms)
            image = replace(image, siblings=tuple(others))
            full = str(Reference.parse(name or published))
            call.observer.progress(Progress(item=full, phase="reading", done=1, total=1))
            loaded[full] = image
        with self._lock:
            for full, image in loaded.items():
                known = self._images.get(full, image)
                another = known.id != image.id and (image.index is None or known.index != image.index)
                if another and not options.replace:
                    raise AlreadyExists(attempted, f"{full} means another image")
            self._images.update(loaded)
        return [image.info(full) for full, image in loaded.items()]

    # ------------------------------------------------------------------ prepared roots

    def prepare_root(
        self, name: str, path: str, *, options: PrepareOptions = _PREPARE, call: Call | None = None
    ) -> PreparedInfo:
        """A root of an image, which is pulled as the options say."""
        call = self._begin("prepare_root", path, call)
        attempted = f"prepare {path}"
        if not os.path.isabs(path) or os.path.normpath(path) != path:
            raise InvalidArgument(attempted, "the path is not absolute and clean")
        _check(options, attempted)
        full, image = self._wanted(name, options, call)
        image = replace(_chosen(image, options.platform, attempted)[0], siblings=())
        mounts = (*self._mounts(path, image, options), *self._extra(path, options, call))
        with self._lock:
            if path in self._roots:
                raise AlreadyExists(attempted, "a root is prepared there", hint="clean it up first")
            root = PreparedInfo(
                path=path,
                image=full,
                image_id=image.id,
                kind="view" if options.view else "active",
                driver=_driver(options),
                mounted=options.mount,
                created=self.now,
                mounts=mounts,
                labels=dict(options.labels),
                quota=options.quota,
                uid_map=options.uid_map,
                gid_map=options.gid_map,
            )
            self._roots[path], self._bases[path] = root, image
            self.tell("root.prepared", path, image=root.image, id=image.id)
            return root

    def mounts(self, path: str) -> PreparedInfo:
        """A root again."""
        self._begin("mounts", path)
        return self._root(path, "look up")

    def mount(self, path: str) -> PreparedInfo:
        """Note that it is mounted."""
        self._begin("mount", path)
        return self._set_mounted(path, "mount", mounted=True)

    def unmount(self, path: str) -> PreparedInfo:
        """Note that it is not."""
        self._begin("unmount", path)
        return self._set_mounted(path, "unmount", mounted=False)

    def prepared(self) -> list[PreparedInfo]:
        """All roots, without their mounts."""
        self._begin("prepared", "")
        with self._lock:
            return [replace(self._roots[path], mounts=()) for path in sorted(self._roots)]

    def commit(
        self,
        path: str,
        name: str | None = None,
        *,
        options: CommitOptions = _COMMIT,
        call: Call | None = None,
    ) -> ImageInfo:
        """What was written last as one more layer."""
        call = self._begin("commit", path, call)
        with self._lock:
            root = self._root(path, "commit")
            if root.kind == "view":
                raise FailedPrecondition(f"commit {path}", "it is a view: nothing can be written to it")
            content = self._written.get(path, "")
            layer = replace(make_layer(content, len(content)), blob=None, blob_size=0, blob_present=False)
            said = (*astuple(replace(options, annotations={})), sorted(options.annotations.items()))
            salt = json.dumps(said)
            base = self._bases[path] if options.base is None else self._find(options.base, "commit")[1]
            below = () if options.squash else base.layers
            image = make_image((*below, layer), base.platform, self.now, salt=salt)
            full = str(Reference.parse(name or f"localhost/commit-{Digest(image.id).hex[:12]}"))
            self._images[full] = image
            self.tell("image.committed", full, id=image.id, root=path)
        call.observer.progress(Progress(item=layer.diff_id, phase="reading", done=layer.size))
        return image.info(full)

    def cleanup(self, path: str, *, call: Call | None = None) -> None:
        """Forget a root."""
        self._begin("cleanup", path, call)
        with self._lock:
            self._root(path, "clean up")
            for table in (self._roots, self._bases, self._written, self._points):
                table.pop(path, None)
            self.tell("root.cleaned", path)

    # ------------------------------------------------------------------ inside

    def _root(self, path: str, verb: str) -> PreparedInfo:
        with self._lock:
            if path not in self._roots:
                raise NotFound(f"{verb} {path}", "nothing is prepared there")
            return self._roots[path]

    def _set_mounted(self, path: str, verb: str, *, mounted: bool) -> PreparedInfo:
        with self._lock:
            self._roots[path] = replace(self._root(path, verb), mounted=mounted)
            self.tell("root.mounted" if mounted else "root.unmounted", path)
            return self._roots[path]

    def _wanted(self, name: str, options: PrepareOptions, call: Call) -> tuple[str, FakeImage]:
        if options.pull == "always":
            self.pull(name, platform=options.platform, call=call)
        try:
            full, image = self._find(name, "prepare")
            _chosen(image, options.platform, f"prepare {name}")
            return full, image
        except NotFound:
            if options.pull == "never":
                raise
        self.pull(name, platform=options.platform, call=call)
        return self._find(name, "prepare")

    def _extra(self, path: str, options: PrepareOptions, call: Call) -> Iterator[Mount]:
        for extra in options.extra:
            source = extra.source or extra.type
            if extra.type == "image":
                _, image = self._wanted(extra.source, options, call)
                source = self._lower(image)
            kind = "bind" if extra.type == "image" else extra.type
            flags = ("bind", "ro") if extra.type == "image" else extra.options
            yield Mount(type=kind, source=source, target=path + extra.target, options=flags)

    def _lower(self, image: FakeImage) -> str:
        return f"{self.run}/chains/{Digest(image.id).hex[:12]}/root"

    def _mounts(self, path: str, image: FakeImage, options: PrepareOptions) -> tuple[Mount, ...]:
        lower = self._lower(image)
        if options.view:
            return (Mount(type="bind", source=lower, target=path, options=("bind", "ro")),)
        upper = f"{self.root}/prepared/{Digest.of(path.encode()).hex[:12]}"
        if options.driver == "native":
            return (Mount(type="bind", source=f"{upper}/tree", target=path, options=("bind", "rw")),)
        over = (f"lowerdir={lower}", f"upperdir={upper}/upper", f"workdir={upper}/work", "index=off")
        mounts = (Mount(type="overlay", source="overlay", target=path, options=over),)
        if options.self_contained:
            return (Mount(type="erofs", source=f"{lower}.erofs", target=path, options=("ro",)), *mounts)
        return mounts


def _chosen(
    image: FakeImage, platform: str | Sequence[str] | None, attempted: str, *, all_platforms: bool = False
) -> tuple[FakeImage, ...]:
    """Those that are wanted of an image and its siblings."""
    texts = (platform,) if isinstance(platform, str) else tuple(platform or ())
    if texts and all_platforms:
        raise InvalidArgument(attempted, "platforms and all platforms", hint="ask for the one or the other")
    found: dict[str, FakeImage] = {}
    for text in texts:
        wanted = Platform.parse(text)
        ranked = [(Platform.parse(one.platform).rank(wanted), one) for one in image.every]
        rank, best = max(ranked, key=lambda pair: pair[0])
        if not rank:
            raise NotFound(attempted, f"no image for {text}", details={"platform": text})
        found[best.id] = best
    return tuple(found.values()) or (image.every if all_platforms else image.every[:1])


def _driver(options: PrepareOptions) -> str:
    return "fake" if options.driver in (None, "auto") else str(options.driver)


def _check(options: PrepareOptions, attempted: str) -> None:
    if options.driver not in (None, "auto", *DRIVERS):
        raise InvalidArgument(attempted, f"no such driver: {options.driver!r}")
    if options.quota is not None and options.quota < 1:
        raise InvalidArgument(attempted, f"a quota of {options.quota} bytes")
    if options.view and options.quota is not None:
        raise InvalidArgument(attempted, "a view takes no writes, so it has no quota")
    if bool(options.uid_map) != bool(options.gid_map):
        raise InvalidArgument(attempted, "one of uid_map and gid_map is missing")
    if options.self_contained and options.driver in ("overlay", "native"):
        raise FailedPrecondition(attempted, f"the {options.driver} driver's mounts name folders of the store")


def _full_or_none(name: str) -> str | None:
    try:
        return str(Reference.parse(name))
    except InvalidArgument:
        return None
