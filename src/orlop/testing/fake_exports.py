"""Exports of `orlop.testing.fake.FakeStore`: bytes that say what they are of, and no archive."""

from __future__ import annotations

import json
from collections.abc import Sequence

from orlop.errors import FailedPrecondition, InvalidArgument, NotFound
from orlop.images.exports import IMAGE_FORMATS, Exported, ExportOptions, Sink, is_root_path
from orlop.observe import Call, Progress
from orlop.spec.digest import Digest
from orlop.testing.fake_base import FakeBase

__all__ = ["FakeExports"]

_PLAIN = ExportOptions()


class FakeExports(FakeBase):
    """Satisfies `orlop.images.exports.Exports`.  Thread-safe."""

    def export(
        self, things: Sequence[str], out: Sink, *, options: ExportOptions = _PLAIN, call: Call | None = None
    ) -> Exported:
        """Write one line of JSON for each thing."""
        call = self._begin("export", " ".join(things), call)
        what = f"export {' '.join(things)}"
        if not things:
            raise InvalidArgument(what, "no image is named")
        many = options.format in IMAGE_FORMATS
        if not many and (len(things) != 1 or options.all_platforms):
            raise InvalidArgument(what, f"{options.format} holds one file system")
        names, digests, lines = list[str](), list[str](), list[str]()
        for thing in things:
            if is_root_path(thing):
                if many:
                    raise InvalidArgument(what, f"{thing} is a prepared root")
                if thing not in self._roots:
                    raise NotFound(what, f"nothing is prepared at {thing}")
                names.append(thing)
                lines.append(json.dumps({"format": options.format, "root": thing}))
                continue
            full, image = self._find(thing, "export")
            if options.all_platforms and image.index is None:
                raise FailedPrecondition(what, f"{full} means one image, not an index of several")
            names.append(full)
            if many:
                manifest = Digest.of(image.manifest or image.config)
                digest = str(image.index) if options.all_platforms else str(manifest)
                digests.append(image.id if options.format == "docker" else digest)
            lines.append(json.dumps({"format": options.format, "image": image.id}))
        data = "".join(f"{line}\n" for line in lines).encode()
        out.write(data)
        call.observer.progress(Progress(item=names[0], phase="done", done=len(data), total=len(data)))
        return Exported(format=options.format, names=tuple(names), digests=tuple(digests), size=len(data))
