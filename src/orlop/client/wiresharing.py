"""Values of `orlop.images.shares` and messages of orlop.v1.Sharing, to and fro."""

from __future__ import annotations

from typing import cast, get_args

from orlop.client.status import text
from orlop.errors import InvalidArgument
from orlop.images.shares import SHARE_FORMS, Share, ShareForm, ShareState
from orlop.proto.orlop.v1 import sharing_pb2 as pb

__all__ = ["form_from", "share_from", "share_to"]


def share_to(value: Share) -> pb.SharedFolder:
    """A share as a message."""
    return pb.SharedFolder(
        folder=text(value.folder),
        form=value.form,
        images=[text(name) for name in value.images],
        created=value.created,
        state=value.state,
    )


def share_from(message: pb.SharedFolder) -> Share:
    """A share from a message; a form or state of a later daemon's is taken for what is least."""
    state = message.state if message.state in get_args(ShareState) else "unfinished"
    return Share(
        folder=message.folder,
        form=message.form if message.form in SHARE_FORMS else "layout",
        images=tuple(message.images),
        created=message.created,
        state=cast("ShareState", state),
    )


def form_from(request: pb.ShareRequest) -> ShareForm | None:
    """The form that is asked for.  Raises `InvalidArgument`."""
    if not request.HasField("form"):
        return None
    if request.form not in SHARE_FORMS:
        raise InvalidArgument(
            f"share {request.folder}",
            f"no such form: {request.form!r}",
            hint=f"one of {', '.join(SHARE_FORMS)}",
        )
    return request.form
