"""Programs that help us: what each is for, and which package has it.  None is needed for everything."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping

from orlop.diagnosis.findings import Finding, Subject, note, ok, problem
from orlop.errors import Error
from orlop.linux.programs import find_helper
from orlop.registry.access.credentials import read_document
from orlop.values import dataclass

__all__ = ["HELPERS", "Helper", "check_helpers", "check_runtimes", "credential_helpers", "found_helpers"]

_SBIN = ("/usr/local/sbin", "/usr/sbin", "/sbin")  # not in a user's PATH on Debian


@dataclass(frozen=True, slots=True, kw_only=True)
class Helper:
    """A program: what it is for, and Debian's package.  ``path`` is empty where it was not found."""

    name: str
    purpose: str
    package: str
    path: str = ""


HELPERS = (
    Helper(name="crun", purpose="`orlop run`: containers, the first that is taken", package="crun"),
    Helper(name="runc", purpose="`orlop run`: containers", package="runc"),
    Helper(
        name="bwrap",
        purpose="`orlop run` where neither of them can, and namespaces can",
        package="bubblewrap",
    ),
    Helper(name="newuidmap", purpose="user namespaces with subordinate ids, without root", package="uidmap"),
    Helper(name="newgidmap", purpose="likewise, of groups", package="uidmap"),
    Helper(name="mkfs.ext4", purpose="`orlop export` as ext4, and roots with a quota", package="e2fsprogs"),
    Helper(name="mksquashfs", purpose="`orlop export` as squashfs", package="squashfs-tools"),
    Helper(name="mkfs.erofs", purpose="nothing: orlop writes EROFS itself", package="erofs-utils"),
    Helper(name="podman", purpose="`orlop import podman:IMAGE`", package="podman"),
    Helper(name="docker", purpose="`orlop import docker:IMAGE`", package="docker.io"),
)


def found_helpers(environ: Mapping[str, str]) -> tuple[Helper, ...]:
    """All of `HELPERS`, with their paths."""
    path = os.pathsep.join((environ.get("PATH", os.defpath), *_SBIN))
    return tuple(
        Helper(
            name=one.name, purpose=one.purpose, package=one.package, path=find_helper(one.name, path) or ""
        )
        for one in HELPERS
    )


def credential_helpers(files: Iterable[str], limit: int) -> dict[str, str]:
    """The credential helpers that files name, and the file of each; what cannot be read is passed over."""
    found: dict[str, str] = {}
    for path in files:
        try:
            document = read_document(path, limit)
        except Error:
            continue  # `configuration` tells
        helpers = document.get("credHelpers")
        names = list(helpers.values()) if isinstance(helpers, dict) else []
        for name in (*names, document.get("credsStore")):
            if isinstance(name, str) and name and "/" not in name:
                found.setdefault(f"docker-credential-{name}", path)
    return found


def check_helpers(subject: Subject) -> Iterable[Finding]:
    """Helper programs, and credential helpers that are configured."""
    helpers = found_helpers(subject.environ)
    there = [one.name for one in helpers if one.path]
    if there:
        yield ok("helpers", f"found: {', '.join(there)}")
    settings = subject.settings
    for name, path in credential_helpers(settings.auth_files, settings.limits.auth_file_size).items():
        check = "helpers.credentials"
        found = find_helper(name, settings.helper_path)
        if found is None:
            text = f"{path} names {name}, which is not in {settings.helper_path}"
            yield problem(check, text, f"install it, or set helper_path, or take it out of {path}")
        else:
            yield ok(check, f"{name} is {found}")


def check_runtimes(subject: Subject) -> Iterable[Finding]:
    """What `orlop run` can run containers with."""
    path = subject.environ.get("PATH", os.defpath)
    found = {name: find_helper(name, path) for name in ("crun", "runc", "bwrap")}
    names = [name for name, place in found.items() if place]
    if found["crun"] or found["runc"]:
        yield ok("runtimes", f"`orlop run` has {', '.join(names)}")
    elif found["bwrap"]:
        yield note(
            "runtimes", "`orlop run` has bwrap alone: no -t with a terminal of its own", "install crun"
        )
    elif subject.uid == 0:
        text = "no runtime is installed: `orlop run` makes no containers; roots can be prepared all the same"
        yield note("runtimes", text, "install crun or runc")
    else:
        text = "no runtime is installed: `orlop run` changes the root, and isolates little"
        yield note("runtimes", text, "install crun or bubblewrap")
