"""Finding and reading the files: folders by registry, and `registries.conf` with its drop-ins.

    DIR/docker.io/hosts.toml                  containerd's
    DIR/registry.lan_5000_/hosts.toml         with a port; also DIR/registry.lan:5000/
    DIR/_default/hosts.toml                   for registries that have none in any folder
    DIR/registry.lan:5000/{ca.crt,client.cert,client.key}     Docker's

Everything is looked at anew each time, and read again where it has changed, so that a daemon sees what is
edited.  What is not there, or may not be read, is passed over; what is broken, or could have been written by
others, is an error.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Collection, Iterator
from functools import partial
from typing import Any, TypeVar, cast

from orlop.config.files import read_bytes
from orlop.errors import from_oserror
from orlop.registry.finding.hostfiles.hosts_toml import parse_hosts_toml
from orlop.registry.finding.hostfiles.registries_conf import Conf, merged, parse_registries_conf
from orlop.registry.finding.hosts import Endpoint

__all__ = ["Files", "certificates", "hosts_of", "in_force"]

MAX_KEPT = 4_096  # parsed files; each is small, but a registry's name is anybody's to type
MAX_NAMES = 256  # files of one folder that are looked at

_T = TypeVar("_T")
_Stamp = tuple[int, int, int, int]


class Files:
    """Parsed files, kept as long as the file stays the same.  Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards the two below
        self._kept: dict[tuple[str, object], tuple[_Stamp, Any]] = {}
        self._merged: tuple[tuple[Conf, ...], Conf] = ((), Conf())

    def get(self, path: str, parse: Callable[[bytes], _T], *, key: object = None) -> _T | None:
        """What ``parse`` makes of a file; None where it is not there or may not be read.

        ``key`` is what else the result depends on.  Raises `PermissionDenied` for a file that others may have
        written, `InvalidArgument` for what is no file, and what ``parse`` raises.
        """
        stamp = _stamp(path)
        if stamp is None or not os.access(path, os.R_OK):
            return None
        with self._lock:
            kept = self._kept.get((path, key))
        if kept is not None and kept[0] == stamp:
            return cast("_T", kept[1])
        value = parse(read_bytes(path, f"read {path}", trusted=False))
        with self._lock:
            while len(self._kept) >= MAX_KEPT:
                self._kept.pop(next(iter(self._kept)))
            self._kept[path, key] = (stamp, value)
        return value

    def conf(self, paths: Collection[str]) -> Conf:
        """What `registries.conf` files say together; of a folder its ``*.conf``, by name."""
        found = [self.get(path, partial(parse_registries_conf, source=path)) for path in _spread(paths)]
        confs = tuple(one for one in found if one is not None)
        with self._lock:
            known, conf = self._merged
        if len(known) != len(confs) or any(a is not b for a, b in zip(known, confs, strict=True)):
            conf = merged(confs)
            with self._lock:
                self._merged = (confs, conf)
        return conf


def _spread(paths: Collection[str]) -> Iterator[str]:
    for path in paths:
        if os.path.isdir(path):
            yield from (os.path.join(path, name) for name in _names(path) if name.endswith(".conf"))
        elif path != os.devnull:  # how one says that there is none
            yield path


def in_force(hosts_dirs: Collection[str], registries_conf: Collection[str]) -> list[str]:
    """The files that are there and can be read, and the folders with certificates; nothing is parsed."""
    found = [path for path in _spread(registries_conf) if os.access(path, os.R_OK)]
    for folder in (os.path.join(top, name) for top in hosts_dirs for name in _names(top)):
        inside = _names(folder)
        if "hosts.toml" in inside:
            found.append(os.path.join(folder, "hosts.toml"))
        elif any(name.endswith((".crt", ".cert")) for name in inside):
            found.append(folder)
    return found


def hosts_of(
    registry: str, dirs: Collection[str], files: Files, *, insecure: Collection[str] = ()
) -> tuple[tuple[Endpoint, ...], ...] | None:
    """The places of a registry by its `hosts.toml`, or None where there is none.

    The file in the first folder counts; ``_default`` only where no folder has one of the registry's own.
    """
    own = _folders(registry)
    there = [top for top in dirs if _stamp(top) is not None]  # mostly none: asked for each request
    for names in (own, ("_default",)) if own else ():
        for folder in (os.path.join(top, name) for top in there for name in names):
            path = os.path.join(folder, "hosts.toml")
            parse = partial(
                parse_hosts_toml, registry=registry, folder=folder, source=path, insecure=insecure
            )
            found = files.get(path, parse, key=(registry, frozenset(insecure)))
            if found is not None:
                return found
    return None


def certificates(
    endpoint: Endpoint, dirs: Collection[str]
) -> tuple[tuple[str, ...], tuple[tuple[str, str], ...], str] | None:
    """Docker's files for a host: authorities, pairs of certificates and keys, and the folder.

    Pairs whose key may not be read are passed over: the folder is often the system's, and its keys root's.
    """
    origin = endpoint.origin
    host = f"[{origin.host}]" if ":" in origin.host else origin.host
    names = dict.fromkeys((endpoint.registry.lower(), origin.netloc, f"{host}:{origin.port}"))
    for top in dirs:
        for name in filter(_is_plain, names):
            folder = os.path.join(top, name)
            inside = _names(folder)
            ca = tuple(os.path.join(folder, one) for one in inside if one.endswith(".crt"))
            pairs = []
            for one in inside:
                if one.endswith(".cert"):
                    key = f"{one.removesuffix('.cert')}.key"
                    pair = (os.path.join(folder, one), os.path.join(folder, key) if key in inside else "")
                    if all(os.access(part, os.R_OK) for part in pair if part):
                        pairs.append(pair)
            if ca or pairs:
                return ca, tuple(pairs), folder
    return None


def _folders(registry: str) -> tuple[str, ...]:
    """What the folder of a registry may be called."""
    names = []
    for name in dict.fromkeys((registry, registry.lower())):
        host, colon, port = name.rpartition(":")
        if colon and port.isdigit():
            names.append(f"{host}_{port}_")
        names.append(name)
    return tuple(filter(_is_plain, names))


def _is_plain(name: str) -> bool:
    """Whether a name is a component of a path that leads nowhere else."""
    return bool(name) and not name.startswith((".", "_")) and "/" not in name and "\0" not in name


def _names(folder: str) -> list[str]:
    """The names in a folder, sorted; none where it is not there or may not be listed."""
    try:
        return sorted(os.listdir(folder))[:MAX_NAMES]
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return []
    except OSError as exc:
        raise from_oserror(f"list {folder}", exc) from exc


def _stamp(path: str) -> _Stamp | None:
    try:
        about = os.stat(path)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return None
    except OSError as exc:
        raise from_oserror(f"look for {path}", exc) from exc
    return about.st_mtime_ns, about.st_ctime_ns, about.st_size, about.st_ino
