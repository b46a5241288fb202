"""The verb of `orlop.images.exports`, answered by a daemon: its bytes go to the caller's sink."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing

from orlop.client import wire
from orlop.client.link import Link, unicode_only
from orlop.client.wireexport import export_request, exported_from
from orlop.errors import DataLoss, InvalidArgument
from orlop.images.archives.tarstream import put
from orlop.images.exports import Exported, ExportOptions, Sink
from orlop.observe import Call

__all__ = ["RemoteExports"]

_PLAIN = ExportOptions()
_CALL = Call()


class RemoteExports:
    """What a daemon's store lets out.  Thread-safe."""

    _link: Link

    def export(
        self, things: Sequence[str], out: Sink, *, options: ExportOptions = _PLAIN, call: Call = _CALL
    ) -> Exported:
        """See `orlop.images.exports.Exports.export`."""
        attempted = f"export {' '.join(things)}"
        try:
            with unicode_only(attempted):
                request = export_request(things, options, call.auth)
        except ValueError as exc:  # a number of more than 64 bits
            raise InvalidArgument(attempted, str(exc)) from exc
        done, size = None, 0
        with closing(self._link.stream(lambda s: s.transfer.Export, request, attempted, call=call)) as events:
            for event in events:
                kind = event.WhichOneof("event")
                if kind == "chunk":
                    put(out, event.chunk)
                    size += len(event.chunk)
                elif kind == "progress":
                    call.observer.progress(wire.progress_from(event.progress))
                elif kind == "warning":
                    call.observer.warning(event.warning.text)
                elif kind == "exported":
                    done = exported_from(event.exported)
        if done is None or done.size != size:
            raise DataLoss(attempted, "what the daemon sends was cut off", hint="try again")
        return done
