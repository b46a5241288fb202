"""The places of an image, as the settings and the files of `orlop.registry.finding.hostfiles` have it.

In order: the mirrors of `registries.conf` for the image's name; then those that `hosts.toml` has for the
registry where it is fetched from; last that registry itself.  Mirrors are for reading alone, unless
`hosts.toml` lets one be written to; a name is written to under its own registry, whatever `registries.conf`
says of reading.
"""

from __future__ import annotations

from collections.abc import Collection
from functools import lru_cache

from orlop.errors import FailedPrecondition
from orlop.registry.finding.hostfiles.folders import Files, certificates, hosts_of
from orlop.registry.finding.hostfiles.registries_conf import Conf
from orlop.registry.finding.hosts import Capability, Endpoint, Place, endpoints
from orlop.spec.reference import Reference
from orlop.values import replace

__all__ = ["Places"]

_Ways = tuple[Endpoint, ...]


@lru_cache(maxsize=256)
def _endpoints(registry: str, insecure: frozenset[str]) -> _Ways:
    """`endpoints`, remembered: it depends on nothing else, and every request asks."""
    return endpoints(registry, insecure)


class Places:
    """Says where images are.  Thread-safe.

    ``insecure`` is as in `orlop.registry.finding.hosts.endpoints`; ``hosts_dirs`` are folders as containerd's
    and Docker's ``certs.d``, ``registries_conf`` files, and folders of them, of which a later one speaks over
    an earlier one. Every method may raise `PermissionDenied` for a name that is blocked, and
    `InvalidArgument` for a file that is broken.
    """

    def __init__(
        self,
        *,
        insecure: Collection[str] = (),
        hosts_dirs: Collection[str] = (),
        registries_conf: Collection[str] = (),
    ) -> None:
        self._insecure = frozenset(insecure)
        self._dirs = tuple(hosts_dirs)
        self._confs = tuple(registries_conf)
        self._files = Files()

    @property
    def conf(self) -> Conf:
        """What the `registries.conf` files say now."""
        return self._files.conf(self._confs)

    def route(self, ref: Reference, need: Capability, attempted: str) -> tuple[Place, ...]:
        """Where to ask, in order, for what needs a capability.

        Raises `FailedPrecondition` where no host has it.
        """
        namespace = self.conf.of(str(ref))
        if namespace is None:
            mirrors: tuple[Place, ...] = ()
            registry, repository, insecure = ref.registry, ref.repository, False
        else:
            *others, (registry, repository, insecure) = namespace.sources(ref, attempted)
            mirrors = tuple(
                Place(ways=self._mirror(host, where), repository=name) for host, name, where in others
            )
        hosts = self._hosts(registry, insecure)
        able = tuple(ways for ways in hosts if need in ways[0].capabilities)
        if not able:
            raise _incapable(registry, need, hosts, attempted)
        return (*mirrors, *(Place(ways=ways, repository=repository) for ways in able))

    def push(self, ref: Reference, attempted: str) -> Place:
        """Where a name is written to: the first host that may be.  Raises `FailedPrecondition` for none."""
        hosts = self._hosts(ref.registry, self._insecurely(str(ref), attempted))
        for ways in hosts:
            if "push" in ways[0].capabilities:
                return Place(ways=ways, repository=ref.repository)
        raise _incapable(ref.registry, "push", hosts, attempted)

    def home(self, registry: str, repository: str, attempted: str) -> Place:
        """The registry itself, never a mirror, also where the files have it asked for nothing."""
        insecure = self._insecurely(f"{registry}/{repository}" if repository else registry, attempted)
        return Place(ways=self._own(registry, insecure), repository=repository)

    def _insecurely(self, name: str, attempted: str) -> bool:
        """Whether the registry in a name may be spoken to unverified, by `registries.conf`."""
        namespace = self.conf.of(name)
        if namespace is None:
            return False
        namespace.allow(attempted)
        # `insecure` belongs to the location, which is the registry's own only where none is given.
        return namespace.location.insecure and not namespace.location.place

    def _hosts(self, registry: str, insecure: bool) -> tuple[_Ways, ...]:
        """The places of a registry by `hosts.toml`, itself last; never none."""
        trusting = self._insecure | {registry} if insecure else self._insecure
        found = hosts_of(registry, self._dirs, self._files, insecure=trusting)
        return tuple(self._certified(ways) for ways in found or (_endpoints(registry, trusting),))

    def _mirror(self, registry: str, insecure: bool) -> _Ways:
        """A host that `registries.conf` calls a mirror."""
        return tuple(replace(way, mirror=True) for way in self._own(registry, insecure))

    def _own(self, registry: str, insecure: bool) -> _Ways:
        """A registry by its own name, whoever stands in for it."""
        own = [ways for ways in self._hosts(registry, insecure) if not ways[0].mirror]
        if own:
            return own[-1]
        return self._certified(
            _endpoints(registry, self._insecure | {registry} if insecure else self._insecure)
        )

    def _certified(self, ways: _Ways) -> _Ways:
        """With Docker's certificates, where `hosts.toml` names none."""
        first = ways[0]
        if first.origin.scheme != "https" or first.ca or first.client:
            return ways
        found = certificates(first, self._dirs)
        if found is None:
            return ways
        ca, client, folder = found
        listed = {first.registry, first.origin.host, first.origin.netloc} & self._insecure
        if len(ways) > 1 and not listed:
            # This machine's own: files that say who may be believed mean verified TLS.
            return (replace(first, ca=ca, client=client, verify=True, source=first.source or folder),)
        return (replace(first, ca=ca, client=client, source=first.source or folder), *ways[1:])


def _incapable(
    registry: str, need: Capability, hosts: tuple[_Ways, ...], attempted: str
) -> FailedPrecondition:
    source = next((ways[0].source for ways in hosts if ways[0].source), "")
    reason = f"no host of {registry} has the capability {need!r}"
    return FailedPrecondition(attempted, reason, hint=f"see {source}" if source else "")
