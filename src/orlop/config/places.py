"""Where things are for root, where nobody says otherwise."""

from __future__ import annotations

__all__ = ["DEFAULT_ROOT", "DEFAULT_RUN", "DEFAULT_SOCKET"]

DEFAULT_ROOT = "/var/lib/orlop"
DEFAULT_RUN = "/run/orlop"
DEFAULT_SOCKET = "/run/orlop/socket/orlop.sock"
