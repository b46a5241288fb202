"""Who may do what: users and groups of this machine, and names of certificates.

Not the limits of how much (orlop.service.clients), nor where connections come from (orlop.service.door).

Invariants: root and the daemon's own user may do everything; who is named nowhere may do nothing; a user
that is named goes before the groups, and a right to everything before one to look, among names alike.
"""

from __future__ import annotations

import grp
import os
import pwd
import socket
import struct
from collections.abc import Callable, Iterable

from orlop.errors import InvalidArgument, PermissionDenied
from orlop.proto.orlop.v1.images_pb2 import CommitRequest
from orlop.service.clients import Client, Role
from orlop.service.pools import ServiceLimits
from orlop.service.shown import one_line
from orlop.values import dataclass

__all__ = ["Access", "Peer", "check_owner", "peer_of"]

_SO_PEERGROUPS = 59  # asm-generic/socket.h; the socket module has no name for it
_MAX_GROUPS = 65_536  # NGROUPS_MAX, linux/limits.h
_ANY = "*"


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """The process that connected, as the kernel noted it then.  ``groups`` are its supplementary ones."""

    pid: int
    uid: int
    gid: int
    groups: frozenset[int]


def check_owner(request: object, client: Client, attempted: str) -> None:
    """Refuse what a request asks for that is not a store's affair, but by those whose machine it is.

    That is to stop other processes: whoever may use the daemon could freeze any cgroup by a commit.
    """
    if isinstance(request, CommitRequest) and request.options.freeze and not client.owner:
        raise PermissionDenied(
            attempted,
            f"{client.key} may not freeze a cgroup: that is for root and the daemon's own user",
            hint="freeze it yourself, or commit without",
        )


def peer_of(connection: socket.socket) -> Peer:
    """Whose unix socket it is at the other end (unix(7), SO_PEERCRED).  Raises OSError."""
    size = struct.calcsize("3i")
    pid, uid, gid = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))
    return Peer(pid=pid, uid=uid & 0xFFFFFFFF, gid=gid & 0xFFFFFFFF, groups=_groups(connection))


def _groups(connection: socket.socket) -> frozenset[int]:
    width = struct.calcsize("I")
    for count in (64, _MAX_GROUPS):
        try:
            raw = connection.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, count * width)
        except OSError:  # ERANGE: there are more; before Linux 4.13 none are told, and none count
            continue
        return frozenset(struct.unpack(f"{len(raw) // width}I", raw))
    return frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rules:
    """Who is named, by numbers; of certificates, by names."""

    users: frozenset[int]
    groups: frozenset[int]
    looking_users: frozenset[int]
    looking_groups: frozenset[int]
    certificates: tuple[tuple[frozenset[str], Role | None], ...]


class Access:
    """The rules of one daemon, made of its `ServiceLimits`.  Raises `InvalidArgument` for unknown names.

    ``group`` is the socket's own, whose members may do everything; None where there is none.
    """

    def __init__(self, limits: ServiceLimits, *, group: int | None, attempted: str) -> None:
        self._own = frozenset({0, os.geteuid()})
        self._rules = _rules(limits, group, attempted)

    def replace(self, limits: ServiceLimits, *, group: int | None, attempted: str) -> None:
        """Go by other rules from now on: all of them, or none where one cannot be.  Raises as making does."""
        self._rules = _rules(limits, group, attempted)

    def owns(self, peer: Peer) -> bool:
        """Whether it is root's or the daemon's own."""
        return peer.uid in self._own

    def local(self, peer: Peer) -> Client:
        """A process of this machine."""
        return Client(
            key=f"uid {peer.uid}",
            role=self._role(peer),
            about=f"gid {peer.gid}, process {peer.pid}",
            owner=self.owns(peer),
        )

    def certified(self, names: Iterable[str], where: str) -> Client:
        """One that showed a certificate with these names, which its authority has vouched for."""
        names = list(dict.fromkeys(names))
        certificates = self._rules.certificates
        for known, role in certificates:
            for name in names:
                if name in known:
                    return Client(key=f"certificate {one_line(name)}", role=role, about=where)
        key = f"certificate {one_line(names[0]) if names else 'without a name'}"
        role = next((role for known, role in certificates if _ANY in known), None)
        return Client(key=key, role=role, about=where)

    def _role(self, peer: Peer) -> Role | None:
        rules = self._rules
        if peer.uid in self._own or peer.uid in rules.users:
            return "full"
        if peer.uid in rules.looking_users:
            return "read-only"
        gids = peer.groups | {peer.gid}
        if gids & rules.groups:
            return "full"
        return "read-only" if gids & rules.looking_groups else None


def _rules(limits: ServiceLimits, group: int | None, attempted: str) -> _Rules:
    own = {group} if group is not None else set()
    return _Rules(
        users=_ids(limits.users, _uid, "user", attempted),
        groups=_ids(limits.groups, _gid, "group", attempted) | own,
        looking_users=_ids(limits.read_only_users, _uid, "user", attempted),
        looking_groups=_ids(limits.read_only_groups, _gid, "group", attempted),
        certificates=(
            (frozenset(limits.tls_names), "full"),
            (frozenset(limits.tls_read_only_names), "read-only"),
        ),
    )


def _ids(names: Iterable[str], find: Callable[[str], int], kind: str, attempted: str) -> frozenset[int]:
    found = set()
    for name in names:
        if name.isascii() and name.isdigit() and int(name) < 2**32 - 1:
            found.add(int(name))
            continue
        try:
            found.add(find(name))
        except (KeyError, ValueError) as exc:  # ValueError: a NUL in it
            raise InvalidArgument(
                attempted, f"there is no {kind} {name!r}", hint=f"add the {kind}, or give its number"
            ) from exc
    return frozenset(found)


def _uid(name: str) -> int:
    return pwd.getpwnam(name).pw_uid


def _gid(name: str) -> int:
    return grp.getgrnam(name).gr_gid
