"""A complete layer gets its name on disk: the last step of a pull, an import and a commit.

Apart from them, so that a commit does not import what a pull needs.
"""

from __future__ import annotations

from orlop.images.core import Core
from orlop.layers.index import LayerIndex
from orlop.layers.store import NewLayer
from orlop.metadata.layers import LayerRow
from orlop.spec.digest import DiffID

__all__ = ["publish"]


def publish(
    core: Core, new: NewLayer, *, diff_id: DiffID, index: LayerIndex, encoded: bytes, tar_size: int
) -> LayerRow:
    """Make a complete layer durable under its diff ID.  Needs the layer's lock.

    Returns the row that will name it.
    """
    data_size = new.complete(index, encoded)
    core.layers.publish(new, diff_id)
    return LayerRow(
        diff_id=diff_id, size=tar_size, data_size=data_size, index_size=len(encoded), entries=len(index)
    )
