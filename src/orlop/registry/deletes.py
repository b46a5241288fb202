"""Deleting at a registry: a tag, or a manifest with all its tags.

Many registries delete nothing, or manifests only; both are told apart from what is not there.
Source: distribution-spec, "Content Management".
"""

from __future__ import annotations

from orlop.errors import Unimplemented
from orlop.observe import Call
from orlop.registry.asking import Asker
from orlop.registry.faults import from_status
from orlop.spec.reference import Reference
from orlop.values import replace

__all__ = ["delete"]

_REFUSED = frozenset({400, 405, 501})


def delete(asker: Asker, ref: Reference, *, call: Call) -> None:
    """Delete what ``ref`` says: by its digest where it has one, else its tag alone.

    Raises `NotFound`, and `Unimplemented` for a registry that does not delete (tags).
    """
    attempted = f"delete {ref}"
    request = asker.request(ref, "DELETE", f"manifests/{ref.target}", attempted, call, push=True)
    request = replace(request, scopes=(*request.scopes, f"repository:{ref.repository}:delete"))
    response = asker.send(request, call)
    host = request.endpoint.host
    if ref.digest is None and response.status in _REFUSED:
        raise Unimplemented(
            attempted,
            f"{host} does not delete tags (it answered {response.status})",
            hint="with --manifest the manifest goes, and with it all its tags",
        )
    if response.status in _REFUSED:
        raise Unimplemented(attempted, f"{host} does not delete (it answered {response.status})")
    if not response.ok:
        raise from_status(request.endpoint, response, attempted)
