"""Which addresses a registry may send us to.

A registry names other hosts: the realm of its tokens, the target of a redirect, the `Location` of an
upload.  A registry on the internet has no business sending us to this machine, to its network or to
a cloud's metadata service (HOSTILE.md 21 and 22).  This module classifies addresses and says which
may follow which.  No I/O: names are resolved by `orlop.registry.net.wire`, which asks here about each
address before it connects, so that a name that resolves differently the second time gains nothing.
"""

from __future__ import annotations

import ipaddress
from enum import IntEnum

__all__ = ["Zone", "is_loopback_host", "may_follow", "zone_of"]


class Zone(IntEnum):
    """How near an address is: the higher, the more it is trusted not to be a stranger's."""

    PUBLIC = 0
    PRIVATE = 1
    LOOPBACK = 2
    FORBIDDEN = 3  # link-local (where metadata services live), unspecified, multicast, reserved


# Metadata services outside link-local space: Alibaba Cloud, AWS and Google over IPv6, Azure, Oracle.
_METADATA = frozenset(
    map(
        ipaddress.ip_address,
        ("100.100.100.200", "fd00:ec2::254", "fd20:ce::254", "168.63.129.16", "192.0.0.192"),
    )
)
_SHARED = ipaddress.ip_network("100.64.0.0/10")  # RFC 6598, carrier-grade NAT
_NAT64 = ipaddress.ip_network("64:ff9b::/96")  # RFC 6052: the last 32 bits are an IPv4 address


def zone_of(address: str) -> Zone:
    """The zone of a numeric address; `Zone.FORBIDDEN` for what is not one.

    >>> zone_of("10.1.2.3").name, zone_of("::ffff:169.254.169.254").name
    ('PRIVATE', 'FORBIDDEN')
    """
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return Zone.FORBIDDEN
    if isinstance(ip, ipaddress.IPv6Address):
        ip = _embedded(ip)
    if ip in _METADATA or ip.is_link_local or ip.is_unspecified or ip.is_multicast:
        return Zone.FORBIDDEN
    if ip.is_loopback:
        return Zone.LOOPBACK
    near = ip in _SHARED if isinstance(ip, ipaddress.IPv4Address) else ip.is_site_local  # RFC 3879
    if ip.is_private or near:
        return Zone.PRIVATE
    return Zone.FORBIDDEN if ip.is_reserved else Zone.PUBLIC


def may_follow(registry: Zone, target: Zone) -> bool:
    """Whether a registry in one zone may send us to an address in another.

    Outwards and sideways, never inwards; to a forbidden address never.
    """
    return target is not Zone.FORBIDDEN and (target <= registry or target is Zone.PUBLIC)


def is_loopback_host(host: str) -> bool:
    """Whether a host as written (no port, no brackets) is this machine, without resolving it.

    Not an address of IPv6 that only stands for one: packets to it leave the machine, maybe in the clear.
    """
    if host == "localhost":
        return True
    try:
        ip = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    mapped = ip.ipv4_mapped if isinstance(ip, ipaddress.IPv6Address) else None
    return (mapped or ip).is_loopback


def _embedded(ip: ipaddress.IPv6Address) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """The IPv4 address that an IPv6 address stands for, where it does."""
    if ip.ipv4_mapped is not None:
        return ip.ipv4_mapped
    if ip.sixtofour is not None:
        return ip.sixtofour
    if ip in _NAT64:
        return ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
    return ip
