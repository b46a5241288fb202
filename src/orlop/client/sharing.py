"""The verbs of `orlop.images.shares`, answered by a daemon."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing

from orlop.client import wiresharing
from orlop.client.events import follow
from orlop.client.link import Link, unicode_only
from orlop.images.shares import Share, ShareForm
from orlop.observe import Call
from orlop.proto.orlop.v1 import sharing_pb2 as pb

__all__ = ["RemoteSharing"]

_CALL = Call()


class RemoteSharing:
    """Shares of a daemon's images, where the daemon is.  Thread-safe."""

    _link: Link

    def share(
        self,
        folder: str,
        names: Sequence[str],
        *,
        form: ShareForm | None = None,
        platform: str | None = None,
        run_only: bool = False,
        call: Call = _CALL,
    ) -> Share:
        """See `orlop.images.shares.Sharing.share`."""
        attempted = f"share {folder}"
        with unicode_only(attempted):
            request = pb.ShareRequest(
                folder=folder, names=names, form=form, platform=platform, run_only=run_only
            )
        with closing(self._link.stream(lambda s: s.sharing.Share, request, attempted, call=call)) as events:
            return wiresharing.share_from(follow(events, "share", call.observer, attempted).share)

    def shares(self) -> list[Share]:
        """See `orlop.images.shares.Sharing.shares`."""
        answer = self._link.unary(lambda s: s.sharing.ListShares, pb.ListSharesRequest(), "list shares")
        return [wiresharing.share_from(one) for one in answer.shares]

    def drop_share(self, folder: str, *, call: Call = _CALL) -> None:
        """See `orlop.images.shares.Sharing.drop_share`."""
        attempted = f"drop share {folder}"
        with unicode_only(attempted):
            request = pb.DropShareRequest(folder=folder)
        self._link.unary(lambda s: s.sharing.DropShare, request, attempted, call=call)
