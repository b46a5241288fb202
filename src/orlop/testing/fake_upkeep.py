"""The verbs about the store itself, in memory: the other half of `orlop.testing.fake.FakeStore`."""

from __future__ import annotations

from collections.abc import Mapping

from orlop.config import DRIVERS
from orlop.errors import AlreadyExists, NotFound
from orlop.images.api import ImageInfo
from orlop.images.upkeep import (
    BackedUp,
    Checked,
    Collected,
    DriverInfo,
    Explanation,
    ImageUsage,
    Keep,
    Part,
    Pin,
    Reason,
    StoreInfo,
    Usage,
    UsagePart,
)
from orlop.observe import Call, Progress
from orlop.testing.fake_base import FakeBase, FakeImage
from orlop.values import replace

__all__ = ["FakeUpkeep"]

_CAPACITY = 1 << 40


class FakeUpkeep(FakeBase):
    """Satisfies `orlop.images.upkeep.Keeping` and `Upkeep`, and has `label`.  Thread-safe."""

    def label(self, name: str, changes: Mapping[str, str | None]) -> ImageInfo:
        """Set labels of a name, or take them away."""
        self._begin("label", name)
        with self._lock:
            full, image = self._find(name, "label")
            labels = self._labels.setdefault(full, {})
            for key, value in changes.items():
                if value is None:
                    labels.pop(key, None)
                else:
                    labels[key] = value
            return self._info(full, image)

    def collect(
        self, *, dry_run: bool = False, keep: Keep | None = None, call: Call | None = None
    ) -> Collected:
        """Take the `litter`; of policies it knows ``count`` alone, and counts by name."""
        call = self._begin("collect", "", call)
        items = tuple(sorted(self.litter.items()))
        for name, size in items:
            call.observer.progress(Progress(item=name, phase="done", done=size))
        with self._lock:
            count = keep.count if keep is not None else None
            names = () if count is None else tuple(sorted(self._images)[count:])
            if not dry_run:
                self.litter.clear()
                for name in names:
                    del self._images[name]
        return Collected(items=items, names=names)

    def usage(self, *, call: Call | None = None) -> Usage:
        """The sizes that were published; nothing takes any disk besides."""
        self._begin("usage", "", call)
        with self._lock:
            layers = {layer.diff_id: layer.size for image in self._in_use() for layer in image.layers}
            images = {image.id: image for image in self._images.values()}
            parts = (
                UsagePart(kind="layers", count=len(layers), size=sum(layers.values())),
                UsagePart(kind="trash", count=len(self.litter), size=sum(self.litter.values())),
            )
            return Usage(
                parts=parts,
                images=tuple(self._image_usage(image) for image in images.values()),
                free=_CAPACITY - sum(part.size for part in parts),
                capacity=_CAPACITY,
            )

    def _image_usage(self, image: FakeImage) -> ImageUsage:
        others = {layer.diff_id for other in self._in_use() if other.id != image.id for layer in other.layers}
        shared = sum(layer.size for layer in image.layers if layer.diff_id in others)
        return ImageUsage(id=image.id, names=self._names(image), unique=image.size - shared, shared=shared)

    def explain(self, thing: str, *, call: Call | None = None) -> Explanation:
        """Why an image is kept: its names.  It knows no other things."""
        self._begin("explain", thing, call)
        with self._lock:
            full, image = self._find(thing, "explain")
            usage = self._image_usage(image)
            return Explanation(
                kind="image",
                name=full,
                size=image.size,
                kept_by=tuple(Reason(kind="image", name=name, note="its name") for name in usage.names),
                parts=tuple(
                    Part(kind="layer", name=layer.diff_id, size=layer.size) for layer in image.layers
                ),
                frees=usage.unique,
            )

    def pin(self, thing: str, name: str | None = None, *, expires: float | None = None) -> Pin:
        """Keep an image."""
        self._begin("pin", thing)
        with self._lock:
            _, image = self._find(thing, "pin")
            chosen = name or f"pin-{len(self._pins) + 1}"
            pin = Pin(name=chosen, kind="image", ref=image.id, created=0.0, expires=expires)
            self._pins[chosen] = pin
            return pin

    def unpin(self, name: str) -> None:
        """Take a pin back."""
        self._begin("unpin", name)
        with self._lock:
            if self._pins.pop(name, None) is None:
                raise NotFound(f"unpin {name}", "there is no such pin")

    def pins(self) -> list[Pin]:
        """All pins, by name."""
        self._begin("pins", "")
        with self._lock:
            return [self._pins[name] for name in sorted(self._pins)]

    def check(
        self,
        *,
        full: bool = False,
        repair: bool = False,
        things: tuple[str, ...] = (),
        pace: int | None = None,
        call: Call | None = None,
    ) -> Checked:
        """Find the `findings`; a repair mends them all."""
        call = self._begin("check", "", call)
        with self._lock:
            found = tuple(finding for finding in self.findings if not things or finding.thing in things)
            if repair:
                self.findings = [finding for finding in self.findings if finding not in found]
                found = tuple(replace(finding, action="fixed") for finding in found)
            for finding in found:
                call.observer.progress(Progress(item=finding.thing, phase="checking"))
            return Checked(findings=found, full=full, images=len(self._images), roots=len(self._roots))

    def backup(self, destination: str, *, content: bool = False, call: Call | None = None) -> BackedUp:
        """Remember the path; nothing is written."""
        self._begin("backup", destination, call)
        with self._lock:
            if destination in self.archives:
                raise AlreadyExists(f"back up to {destination}", "the file exists")
            self.archives[destination] = sorted(self._images)
            return BackedUp(
                path=destination,
                size=0,
                images=len(self._images),
                layers=sum(len(image.layers) for image in self._images.values()) if content else 0,
                content=content,
                roots=len(self._roots),
            )

    def info(self) -> StoreInfo:
        """Where it pretends to be."""
        self._begin("info", "")
        return StoreInfo(
            version="fake",
            root=self.root,
            run=self.run,
            driver="fake",
            format=1,
            images=len(self._images),
            prepared=len(self._roots),
            drivers=tuple(
                DriverInfo(name=name, available=True, reason="in memory, where nothing is mounted")
                for name in DRIVERS
            ),
            privilege="none",
            features={"kernel": "none", "user namespaces": "no"},
            limits={"depth": 100},
        )

    def close(self) -> None:
        """Note that it is closed."""
        self.closed = True
