"""What format.json says of a store, and the namespace of its images: words that a look at it needs, too."""

from __future__ import annotations

__all__ = ["FEATURES", "FORMAT", "FORMAT_VERSION", "NAMESPACE"]

NAMESPACE = "default"
FORMAT_VERSION = 1
FEATURES: dict[str, frozenset[str]] = {
    "compat": frozenset(),
    "ro_compat": frozenset(),
    "incompat": frozenset({"erofs-index-1"}),
}
FORMAT = b"""\
{
 "version": 1,
 "compat": [],
 "ro_compat": [],
 "incompat": [
  "erofs-index-1"
 ]
}
"""  # as it is written; who finds just this has nothing to parse
