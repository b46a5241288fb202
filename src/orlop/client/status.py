"""Errors as gRPC statuses and back: the one place that maps them, for daemon and client alike.

The status code is the class, its message the text for foreign clients; ``orlop-error-bin`` in the
trailing metadata carries the fields, so that our client raises what the store raised.

Invariant: an error's trailers stay below 8 KiB, where gRPC's receivers begin to drop calls
(``grpc.max_metadata_size``, gRPC core's channel_arg_names.h); what does not fit is cut, with an ellipsis.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import cast

import grpc
from google.protobuf.message import DecodeError

from orlop.client.address import Address, TcpAddress
from orlop.errors import (
    Cancelled,
    DeadlineExceeded,
    Error,
    PermissionDenied,
    ResourceExhausted,
    Unavailable,
    Unimplemented,
    by_code,
    over_limit,
)
from orlop.proto.orlop.v1 import types_pb2

__all__ = ["DETAIL_KEY", "START_HINT", "error_of", "no_daemon", "status_of", "text"]

DETAIL_KEY = "orlop-error-bin"
START_HINT = "start it with 'orlop daemon'"

_MESSAGE_SIZE = 1_000  # percent-encoding may triple what is not ASCII
_FIELD_SIZES = {"attempted": 600, "reason": 1_800, "hint": 600}
_DETAIL_SIZE = 3_600  # serialized; base64 adds a third
_HANDSHAKE = ("SSL_ERROR", "Ssl handshake", "handshake failed", "CERTIFICATE", "certificate")  # gRPC's words
_NOBODY_THERE = ("refused", "unreachable", "No route", "imed out", "imeout")
# gRPC's words (its message size filter): which side refuses, the size, and what it takes.
_TOO_LARGE = re.compile(r"(SERVER|CLIENT): Received message larger than max \((\d+) vs\. (\d+)\)")
_CODES = {code.name: code for code in grpc.StatusCode}


def text(value: str) -> str:
    r"""A string that protobuf takes: what is not Unicode (stray bytes of a name) is written ``\udcff``."""
    return value.encode("utf-8", "backslashreplace").decode()


def status_of(error: Error) -> tuple[grpc.StatusCode, str, tuple[tuple[str, bytes], ...]]:
    """An error's status code, message and trailing metadata."""
    detail = types_pb2.ErrorDetail(
        attempted=_cut(error.attempted, _FIELD_SIZES["attempted"]),
        reason=_cut(error.reason, _FIELD_SIZES["reason"]),
        hint=_cut(error.hint, _FIELD_SIZES["hint"]),
    )
    for key, value in error.details.items():
        if detail.ByteSize() + len(text(key).encode()) + len(text(value).encode()) + 16 <= _DETAIL_SIZE:
            detail.details[text(key)] = text(value)
    code = _CODES.get(error.code, grpc.StatusCode.UNKNOWN)
    return code, _cut(str(error), _MESSAGE_SIZE), ((DETAIL_KEY, detail.SerializeToString()),)


def error_of(exc: grpc.RpcError, attempted: str, address: Address | TcpAddress) -> Error:
    """What a failed RPC means: the store's own error where it sent one, else what befell the call.

    The caller raises it ``from exc`` (or ``from None``, where the RPC says nothing more).
    """
    outcome = cast("grpc.Call", exc)  # every RpcError that a call raises is its Call, too
    code, message = outcome.code(), outcome.details() or ""
    detail = _detail(outcome.trailing_metadata() or ())
    if detail is not None:
        cls = by_code(code.name)
        return cls(detail.attempted, detail.reason, hint=detail.hint, details=dict(detail.details))
    if code is grpc.StatusCode.CANCELLED:
        return Cancelled(attempted, "cancelled")
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return DeadlineExceeded(attempted, "the deadline has passed")
    if code is grpc.StatusCode.UNAVAILABLE:
        refused = _refused(message, attempted, address)
        if refused is not None:
            return refused
        if "failed to connect" in message:
            return no_daemon(attempted, address)
        return Unavailable(
            attempted,
            f"the daemon at {address} went away: {message}",
            hint="whether the call took effect is not known: look before trying again",
        )
    if code is grpc.StatusCode.UNIMPLEMENTED:
        return Unimplemented(
            attempted, f"the daemon at {address} does not know this call", hint="is it an older orlop?"
        )
    return _too_large(message, attempted) or by_code(code.name)(
        attempted, message or f"the daemon answers {code.name}"
    )


def _too_large(message: str, attempted: str) -> Error | None:
    """What it means that a side refuses to read what it is sent: it takes no larger messages."""
    found = _TOO_LARGE.search(message)
    if found is None:
        return None
    size, limit = int(found[2]), int(found[3])
    if found[1] == "SERVER":
        # Far beyond its limit, so that gRPC refused it before the daemon could say so itself.
        error = over_limit("request_size", size, limit, attempted=attempted, table="daemon")
        error.reason = f"the request has {size} bytes, more than the daemon's request_size"
        return error
    return ResourceExhausted(attempted, f"the answer has {size} bytes, and a client takes at most {limit}")


def _refused(message: str, attempted: str, address: Address | TcpAddress) -> Error | None:
    """What a daemon's door means that does not let a connection in; gRPC repeats the status that it told."""
    if "HTTP status 403" in message:
        return PermissionDenied(
            attempted, f"the daemon at {address} refuses you", hint="its configuration says who may use it"
        )
    if "HTTP status 503" in message:
        return ResourceExhausted(
            attempted,
            f"the daemon at {address} has too many connections",
            hint="close some; its log says which limit it is",
        )
    # A daemon that does not accept our certificate ends the connection, and says nothing of it.
    ended = "failed to connect" in message and not any(word in message for word in _NOBODY_THERE)
    if isinstance(address, TcpAddress) and (ended or any(word in message for word in _HANDSHAKE)):
        return Unavailable(
            attempted,
            f"no TLS with the daemon at {address}: {message}"[:_MESSAGE_SIZE],
            hint="are the certificates of the right authorities, and still valid?",
        )
    return None


def no_daemon(attempted: str, address: Address | TcpAddress) -> Unavailable:
    """Nothing listens."""
    return Unavailable(attempted, f"no daemon answers at {address}", hint=START_HINT)


def _detail(metadata: Iterable[tuple[str, str | bytes]]) -> types_pb2.ErrorDetail | None:
    for key, value in metadata:
        if key == DETAIL_KEY and isinstance(value, bytes):
            try:
                return types_pb2.ErrorDetail.FromString(value)
            except DecodeError:
                return None  # not ours after all: the status alone must do
    return None


def _cut(value: str, size: int) -> str:
    raw = text(value).encode()
    if len(raw) <= size:
        return raw.decode()
    return raw[: size - 3].decode(errors="ignore") + "…"
