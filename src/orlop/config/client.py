"""What the command line itself goes by: which store is meant, and how it shows what it does.

Values only.  `orlop.cli` takes them; the library has arguments for the same.
"""

from __future__ import annotations

from typing import Literal

from orlop.config.settings import setting
from orlop.values import dataclass

__all__ = ["ClientOptions"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientOptions:
    """Keys at the top of a file beside those of `orlop.config.Settings`."""

    root: str = setting(
        "", "where images are kept", usual="/var/lib/orlop; without root $XDG_DATA_HOME/orlop"
    )
    run: str = setting(
        "", "where mount points are kept", usual="/run/orlop; without root $XDG_RUNTIME_DIR/orlop"
    )
    host: str = setting("", "the daemon that is asked, unix://PATH or tcp://HOST:PORT; empty: none")
    tls_cert: str = setting("", "who one is to a daemon on TCP: a certificate, a PEM file")
    tls_key: str = setting("", "its key")
    tls_ca: str = setting("", "the authority of that daemon's certificate")
    progress: Literal["auto", "plain", "json", "none"] = setting("auto", "how progress is shown")
    color: Literal["auto", "always", "never"] = setting(
        "auto", "whether output is coloured; auto: on a terminal, unless NO_COLOR is set"
    )
