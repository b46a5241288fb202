"""The ways to run a bundle, best first: what can be tried here, and trying it.

    root                     crun or runc, as ever
    root of a user namespace crun, runc, bwrap, a changed root
    who may not mount        bwrap where it works; a changed root where we may (root of most containers)

A way that cannot make the container is left for the next one, with a remark; one that made it is final,
for the command may have begun.  A way that was asked for by name is the only one.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from orlop.cli import output
from orlop.cli.jobs import CREATE
from orlop.cli.runtime import RUNTIMES, choose_runtime, run_container
from orlop.errors import Error, FailedPrecondition, NotFound
from orlop.hints import TYPE_CHECKING, Literal
from orlop.images.running.namespace import UserNamespace
from orlop.linux import userns
from orlop.linux.programs import find_helper
from orlop.linux.userns import Privilege
from orlop.values import dataclass

if TYPE_CHECKING:
    from orlop.cli.session import Runner

__all__ = ["CANNOT_MOUNT", "Way", "choose_ways", "namespace_here", "runner_of"]

Kind = Literal["oci", "bwrap", "chroot"]
CANNOT_MOUNT: frozenset[Privilege] = frozenset({"container", "none"})
_OFFER = "run it on this machine as it is, with --exec"


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """One way to run a bundle: what kind of program does it, and where that is."""

    kind: Kind
    program: str = ""

    @property
    def name(self) -> str:
        """What the user calls it."""
        return os.path.basename(self.program) or self.kind

    @property
    def options(self) -> tuple[str, ...]:
        """Options of an OCI runtime for who is root of a user namespace: no cgroup is ours there."""
        return ("--cgroup-manager=disabled",) if self.name == "crun" else ()


def choose_ways(asked: str | None, privilege: Privilege) -> tuple[Way, ...]:
    """The ways to try, in order; never none.

    ``asked`` is the name or path of an OCI runtime or of bwrap, or ``chroot``.  Raises `NotFound` for what
    is no program, `FailedPrecondition` where there is no way.
    """
    if asked == "chroot":
        return (Way(kind="chroot"),)
    if asked is not None and os.path.basename(asked) == "bwrap":
        return (Way(kind="bwrap", program=_found(asked)),)
    if asked is not None or privilege == "root":
        return (Way(kind="oci", program=choose_runtime(asked)),)
    from orlop.cli.bubblewrap import ability
    from orlop.cli.chroot import may_chroot

    bwrap = find_helper("bwrap")
    wraps = (Way(kind="bwrap", program=bwrap),) if bwrap else ()
    if privilege not in CANNOT_MOUNT:
        return (*_runtimes(), *wraps, Way(kind="chroot"))
    why = "bwrap is not installed"
    if bwrap:
        try:
            ability(bwrap)
        except FailedPrecondition as exc:
            why, wraps = f"bwrap does not work here: {exc.reason}", ()
    ways = (*wraps, Way(kind="chroot")) if may_chroot() else wraps
    if not ways:
        raise FailedPrecondition(
            "choose a runtime",
            f"{userns.can_unshare() or 'we may not mount here'}; {why}",
            hint=f"get bwrap to work, or {_OFFER}",
        )
    return ways


def _found(name: str) -> str:
    found = find_helper(name)
    if found is None:
        raise NotFound(f"use runtime {name}", "no such program", hint="install it, or leave out --runtime")
    return os.path.abspath(found)


def _runtimes() -> list[Way]:
    """The OCI runtimes that may work: see `choose_runtime`."""
    try:
        first = choose_runtime()
    except FailedPrecondition:
        return []
    others = RUNTIMES[RUNTIMES.index(os.path.basename(first)) + 1 :]
    found = [first, *(path for name in others if (path := find_helper(name)) is not None)]
    return [Way(kind="oci", program=os.path.abspath(path)) for path in found]


def namespace_here(privilege: Privilege) -> UserNamespace | None:
    """The user namespace that we are root of; None for the machine's first, and for who is nobody's root."""
    if privilege not in {"user-namespace", "single-id"}:
        return None
    fd = os.open("/proc/self/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    try:
        maps = userns.maps_of(fd)
    finally:
        os.close(fd)
    allowed = Path("/proc/self/setgroups").read_text(encoding="ascii").strip() == "allow"
    return UserNamespace(maps=maps, setgroups=allowed)


def runner_of(
    ways: Sequence[Way], state: Path, *, tty: bool, interactive: bool, privilege: Privilege
) -> Runner:
    """What runs a bundle the first way that can."""
    rooted = privilege == "root"

    def run_one(way: Way, bundle: Path, container: str) -> int:
        if way.kind == "bwrap":
            from orlop.cli.bubblewrap import run_bwrap

            return run_bwrap(way.program, bundle, interactive=interactive)
        if way.kind == "chroot":
            from orlop.cli.chroot import run_chroot

            return run_chroot(bundle, interactive=interactive)
        return run_container(
            bundle,
            container_id=container,
            state=state,
            runtime=way.program,
            options=() if rooted else way.options,
            tty=tty,
            interactive=interactive,
        )

    def run(bundle: Path, container: str) -> int:
        for way, following in pairwise(ways):
            try:
                return run_one(way, bundle, container)
            except FailedPrecondition as exc:
                if not exc.attempted.startswith(CREATE):
                    raise
                output.note(f"{way.name} cannot run it here, {following.name} is next: {exc.reason}")
        try:
            return run_one(ways[-1], bundle, container)
        except Error as exc:
            if exc.attempted.startswith(CREATE) and not rooted and "exit_code" not in exc.details:
                exc.hint = exc.hint or _OFFER
            raise

    return run
