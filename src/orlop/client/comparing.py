"""The verbs of `orlop.images.comparing`, answered by a daemon."""

from __future__ import annotations

from collections.abc import Generator

from orlop.client import wirecomparing
from orlop.client.contents import RemoteContents
from orlop.client.link import unicode_only
from orlop.images.comparing import Blame, Difference, HistoryLine, TreeLine, Waste
from orlop.observe import Call
from orlop.proto.orlop.v1 import comparing_pb2 as pb

__all__ = ["RemoteComparing"]

_CALL = Call()
_MOST = 2**31 - 1


class RemoteComparing(RemoteContents):
    """What differs between the things of a daemon's store, and where it came from.  Thread-safe."""

    def diff(
        self,
        old: str,
        new: str | None = None,
        *,
        path: bytes = b"",
        times: bool = True,
        platform: str | None = None,
        call: Call = _CALL,
    ) -> Generator[Difference]:
        """See `orlop.images.comparing.Comparing.diff`."""
        attempted = f"compare {old}"
        with unicode_only(attempted):
            request = pb.DiffRequest(old=old, new=new, path=path, ignore_times=not times, platform=platform)
        for event in self._parts(lambda stubs: stubs.comparing.Diff, request, attempted, call):
            yield from wirecomparing.differences_from(event.differences)

    def blame(self, thing: str, path: bytes, *, platform: str | None = None, call: Call = _CALL) -> Blame:
        """See `orlop.images.comparing.Comparing.blame`."""
        attempted = f"blame {thing}"
        with unicode_only(attempted):
            request = pb.BlameRequest(thing=thing, path=path, platform=platform)
        answer = self._link.unary(lambda stubs: stubs.comparing.Blame, request, attempted, call=call)
        return wirecomparing.blame_from(answer)

    def history(self, thing: str, *, platform: str | None = None, call: Call = _CALL) -> list[HistoryLine]:
        """See `orlop.images.comparing.Comparing.history`."""
        attempted = f"read history of {thing}"
        with unicode_only(attempted):
            request = pb.HistoryRequest(thing=thing, platform=platform)
        answer = self._link.unary(lambda stubs: stubs.comparing.History, request, attempted, call=call)
        return [wirecomparing.history_line_from(line) for line in answer.lines]

    def tree(
        self,
        thing: str,
        path: bytes = b"",
        *,
        depth: int | None = None,
        layers: bool = False,
        platform: str | None = None,
        call: Call = _CALL,
    ) -> Generator[TreeLine]:
        """See `orlop.images.comparing.Comparing.tree`."""
        attempted = f"list {thing}"
        if depth is not None:
            depth = max(-1, min(depth, _MOST))  # as much as a message can say
        with unicode_only(attempted):
            request = pb.TreeRequest(thing=thing, path=path, depth=depth, layers=layers, platform=platform)
        for event in self._parts(lambda stubs: stubs.comparing.Tree, request, attempted, call):
            yield from wirecomparing.tree_lines_from(event.lines)

    def waste(self, thing: str, *, files: int = 10, platform: str | None = None, call: Call = _CALL) -> Waste:
        """See `orlop.images.comparing.Comparing.waste`."""
        attempted = f"measure waste of {thing}"
        with unicode_only(attempted):
            request = pb.WasteRequest(thing=thing, files=max(-1, min(files, _MOST)), platform=platform)
        answer = self._link.unary(lambda stubs: stubs.comparing.Waste, request, attempted, call=call)
        return wirecomparing.waste_from(answer)
