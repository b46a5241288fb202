"""The ground that `orlop.testing.fake.FakeStore` stands on: its images, and how a test steers its verbs.

Not a store: the verbs are in `fake` and `fake_upkeep`.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from orlop.errors import NotFound
from orlop.images.api import Blob, HeldPlatform, ImageInfo, PreparedInfo
from orlop.images.events import Event
from orlop.images.forks import CheckpointInfo
from orlop.images.shares import Share
from orlop.images.upkeep import Finding, Pin
from orlop.observe import Call
from orlop.spec.digest import Digest
from orlop.spec.documents import OCI_LAYER
from orlop.spec.reference import Reference
from orlop.values import dataclass, field, replace

__all__ = ["FakeBase", "FakeImage", "Held", "make_image", "make_layer"]

_ENTRIES = 10  # of every layer
_SHORTEST_ID = 12


@dataclass(slots=True)
class Held:
    """A verb that waits.  ``calls`` are those that have come, ``entered`` is set by each."""

    entered: threading.Event = field(default_factory=threading.Event)
    calls: list[Call] = field(default_factory=list)
    _released: threading.Event = field(default_factory=threading.Event)

    def release(self) -> None:
        """Let all go on, also those to come."""
        self._released.set()

    def wait(self, call: Call, attempted: str) -> None:
        """Block until released; raises as `Call.check` does."""
        self.calls.append(call)
        self.entered.set()
        while not self._released.wait(0.005):
            call.check(attempted)


@dataclass(frozen=True, slots=True, kw_only=True)
class FakeImage:
    """An image's documents and layers; its ID is the digest of its config.

    One of an index has the digest of that, and ``siblings``: the others that there are.
    """

    config: bytes
    layers: tuple[Blob, ...]
    platform: str
    created: str
    manifest: bytes | None = None
    warnings: tuple[str, ...] = ()
    index: str | None = None
    siblings: tuple[FakeImage, ...] = ()

    @property
    def every(self) -> tuple[FakeImage, ...]:
        """It and its siblings, each by itself."""
        return (replace(self, siblings=()), *self.siblings)

    @property
    def id(self) -> str:
        """The digest of its config."""
        return Digest.of(self.config)

    @property
    def size(self) -> int:
        """Bytes of its layers' tars."""
        return sum(layer.size for layer in self.layers)

    def info(self, name: str) -> ImageInfo:
        """The image under a name."""
        return ImageInfo(
            name=name,
            id=self.id,
            digest=None if self.manifest is None else Digest.of(self.manifest),
            platform=self.platform,
            created=self.created,
            size=self.size,
            layers=len(self.layers),
            index=self.index,
            platforms=tuple(
                HeldPlatform(platform=one.platform, id=one.id, digest=Digest.of(one.manifest or b""))
                for one in (self.every if self.index else ())
            ),
        )


class FakeBase:
    """What the verbs share.  Thread-safe."""

    def __init__(
        self, root: str = "/fake/root", run: str = "/fake/run", *, now: str = "2026-01-02T03:04:05Z"
    ) -> None:
        self.root, self.run, self.now = root, run, now
        self.registry: dict[str, FakeImage] = {}
        self.archives: dict[str, list[str]] = {}  # what `load` finds: path -> published names
        self.litter: dict[str, int] = {}  # what `collect` finds
        self.findings: list[Finding] = []  # what `check` finds
        self.closed = False
        self.files: dict[str, dict[bytes, bytes]] = {}  # what is in things: by full name, or path of a root
        self._lock = threading.RLock()  # guards all below
        self._images: dict[str, FakeImage] = {}
        self._roots: dict[str, PreparedInfo] = {}
        self._bases: dict[str, FakeImage] = {}  # path -> what a root stands on
        self._written: dict[str, str] = {}
        self._points: dict[str, dict[str, tuple[CheckpointInfo, str]]] = {}  # path -> checkpoints, by name
        self._shares: dict[str, Share] = {}
        self._pins: dict[str, Pin] = {}
        self._labels: dict[str, dict[str, str]] = {}  # by an image's full name
        self._fail: dict[str, Exception] = {}
        self._held: dict[str, Held] = {}
        self._told: list[Event] = []

    def fail(self, verb: str, error: Exception) -> None:
        """Make the next call of a verb raise."""
        self._fail[verb] = error

    @contextmanager
    def hold(self, verb: str) -> Iterator[Held]:
        """Make calls of a verb wait within the block."""
        held = self._held[verb] = Held()
        try:
            yield held
        finally:
            del self._held[verb]
            held.release()

    def _begin(self, verb: str, thing: str, call: Call | None = None) -> Call:
        call = call or Call()
        error = self._fail.pop(verb, None)
        if error is not None:
            raise error
        held = self._held.get(verb)
        if held is not None:
            held.wait(call, f"{verb} {thing}".strip())
        return call

    def _find(self, name: str, verb: str) -> tuple[str, FakeImage]:
        with self._lock:
            digits = name.removeprefix("sha256:")
            if len(digits) >= _SHORTEST_ID and set(digits) <= set("0123456789abcdef"):
                for known, image in sorted(self._images.items()):
                    if image.id.removeprefix("sha256:").startswith(digits):
                        return known, image
            full = str(Reference.parse(name))
            if full not in self._images:
                raise NotFound(f"{verb} {full}", "the store has no such image", hint=f"orlop pull {name}")
            return full, self._images[full]

    def _info(self, full: str, image: FakeImage) -> ImageInfo:
        """A name with the labels it has."""
        return replace(image.info(full), used=self.now, labels=dict(self._labels.get(full, {})))

    def _names(self, image: FakeImage) -> tuple[str, ...]:
        return tuple(sorted(known for known, other in self._images.items() if other.id == image.id))

    def _in_use(self) -> list[FakeImage]:
        return [*self._images.values(), *self._bases.values()]


def make_layer(content: str, size: int) -> Blob:
    """A layer whose digests follow from its content."""
    return Blob(
        diff_id=Digest.of(content.encode()),
        size=size,
        entries=_ENTRIES,
        blob=Digest.of(b"gzip " + content.encode()),
        blob_size=size // 2,
        media_type=f"{OCI_LAYER}+gzip",
    )


def make_image(
    layers: tuple[Blob, ...],
    platform: str,
    created: str,
    *,
    manifest: bool = False,
    warnings: tuple[str, ...] = (),
    salt: str = "",
) -> FakeImage:
    """An image of some layers; with ``manifest`` it has one."""
    document = {"diff_ids": [layer.diff_id for layer in layers], "platform": platform, "salt": salt}
    config = json.dumps(document, sort_keys=True).encode()
    text = json.dumps({"config": Digest.of(config), "blobs": [layer.blob for layer in layers]}).encode()
    return FakeImage(
        config=config,
        layers=layers,
        platform=platform,
        created=created,
        manifest=text if manifest else None,
        warnings=warnings,
    )
