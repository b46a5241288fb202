"""What containerd's calls carry besides their requests: the namespace.

Not every call of a containerd with a proxy plugin says it: Debian's 1.6 hands on its clients' calls about
snapshots without, and so does every version's collector.  But containerd's names of snapshots tell it.
"""

from __future__ import annotations

import grpc

from orlop.errors import FailedPrecondition
from orlop.images.snapshotting.names import namespace_in

__all__ = ["NAMESPACE_HEADER", "namespace_of", "required_namespace"]

NAMESPACE_HEADER = "containerd-namespace"


def namespace_of(context: grpc.ServicerContext) -> str | None:
    """The namespace that a call's metadata say, where they do."""
    for key, value in context.invocation_metadata() or ():
        if key == NAMESPACE_HEADER and value:
            return value if isinstance(value, str) else value.decode(errors="replace")
    return None


def required_namespace(context: grpc.ServicerContext, name: str, attempted: str) -> str:
    """The same, or that which a snapshot's ``name`` tells.

    Raises `FailedPrecondition`, as containerd does, where there is none.
    """
    found = namespace_of(context) or namespace_in(name)
    if found is None:
        raise FailedPrecondition(
            attempted, f"namespace is required: the call's metadata have no {NAMESPACE_HEADER}"
        )
    return found
