"""The machine: its kernel, the drivers that it allows, what we may do, and what keeps us from more.

The functions that judge take what was read, so that each situation is a case of a table.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable, Iterator, Sequence

from orlop.diagnosis.findings import Finding, Subject, note, ok, problem, said
from orlop.diagnosis.probing import Probed, probed
from orlop.errors import Error
from orlop.linux import mountinfo, userns
from orlop.linux.programs import find_helper

__all__ = [
    "check_confinement",
    "check_drivers",
    "check_kernel",
    "check_privilege",
    "judge_drivers",
    "judge_kernel",
    "nearest",
]

_EROFS_FILES = (6, 12)  # EROFS from a file without a loop device
_OVERLAY = (5, 11)  # overlayfs in a user namespace; mounts by descriptor are of 5.2
_CAP_SYS_ADMIN = 21


def check_kernel(subject: Subject) -> Iterable[Finding]:
    """The kernel's version and its file systems."""
    yield from judge_kernel(os.uname().release, _text("/proc/filesystems").split())


def judge_kernel(release: str, known: Sequence[str]) -> Iterator[Finding]:
    """What a kernel of this release can do; ``known`` is /proc/filesystems."""
    found = re.match(r"(\d+)\.(\d+)", release)
    version = (int(found[1]), int(found[2])) if found else (0, 0)
    if version >= _EROFS_FILES:
        yield ok("machine.kernel", f"Linux {release} has all that orlop can use")
    elif version >= _OVERLAY:
        text = f"Linux {release}: EROFS mounts from files from 6.12 on; the driver overlay does without"
        yield note("machine.kernel", text, "docs/drivers.md says what that costs")
    else:
        text = f"Linux {release} is older than 5.11, so roots can be copied and not mounted"
        yield problem("machine.kernel", text, "use a newer kernel, or --driver native: docs/drivers.md")
    for name, least in (("overlay", (0, 0)), ("erofs", _EROFS_FILES)):
        if name not in known and version >= least and known:
            text = f"/proc/filesystems has no {name}: the module is not loaded, or there is none"
            yield note(f"machine.{name}", text, f"modprobe {name}")


def check_drivers(subject: Subject) -> Iterable[Finding]:
    """Each driver, tried where the store lies or is going to lie."""
    folder = nearest(subject.root)
    if folder is None:
        advice = "make it one that you may write in, or name another folder with --root"
        text = f"they cannot be tried where the store lies: {subject.root} may not be written"
        yield note("machine.drivers", text, advice)
        return
    try:
        found = probed(folder, subject.environ)
    except Error as exc:
        yield problem("machine.drivers", said(exc), "see `dmesg`, and try --driver native")
        return
    subject.cache["probed"] = found
    yield from judge_drivers(found, subject.settings.driver)


def nearest(root: str) -> str | None:
    """A folder of the store, or the closest one above it in which a trial can be made."""
    for place in (os.path.join(root, "folders"), root):
        if os.path.isdir(place) and os.access(place, os.W_OK | os.X_OK):
            return place
    while not os.path.lexists(root) and root != "/":
        root = os.path.dirname(root)
    return root if os.path.isdir(root) and os.access(root, os.W_OK | os.X_OK) else None


def judge_drivers(found: Probed, wanted: str) -> Iterator[Finding]:
    """Findings of what `probed` gave; ``wanted`` is the driver of the settings."""
    drivers: list[tuple[str, bool, str]] = [(name, works, why) for name, works, why in found["drivers"]]
    best = next((name for name, works, _ in drivers if works), "")
    chosen = best if wanted == "auto" else wanted
    for name, works, why in drivers:
        check = f"machine.driver-{name}"
        if works:
            yield ok(check, f"{name} works{', and new roots get it' if name == chosen else ''}: {why}")
        elif name == wanted:
            advice = f"take another: --driver {best or 'native'}, or driver in a configuration file"
            yield problem(check, f"{name} is configured and does not work: {why}", advice)
        elif not best:
            yield problem(check, f"{name} does not work: {why}", "docs/drivers.md says what each needs")
        elif found.get("privilege") == "root" and name != "native":
            yield note(check, f"{name} does not work: {why}", "docs/drivers.md says what it needs")
        else:
            yield note(check, f"{name} does not work: {why}", _way_to(name))
    mapped = found.get("mapped", "")
    if mapped == "yes":
        yield ok("machine.mapped-ids", "mounts can have mapped ids")
    elif mapped:
        text = f"mounts cannot have mapped ids: {mapped}"
        yield note(
            "machine.mapped-ids", text, "`orlop prepare` with mapped ids needs Linux 5.12 and such a disk"
        )


def _way_to(name: str) -> str:
    if name == "erofs":
        return "ask a daemon that root runs, with --host: docs/daemon.md"
    return "docs/without-root.md says what namespaces need"


def check_privilege(subject: Subject) -> Iterable[Finding]:
    """What we may do: root, user namespaces, subordinate ids."""
    what = userns.privilege()
    words = {
        "root": "you are root of the machine",
        "user-namespace": "you are root of a user namespace with many ids",
        "single-id": "you are root of a user namespace with one id",
        "container": "you are root without CAP_SYS_ADMIN, as in most containers",
        "none": f"you are user {subject.uid}, without root",
    }
    if what == "container":
        advice = "run the container with CAP_SYS_ADMIN, or keep to --driver native: docs/without-root.md"
        yield note("privilege.rights", f"{words[what]}: nothing can be mounted", advice)
    else:
        yield ok("privilege.rights", words[what])
    if what != "none":
        return
    if why := userns.can_unshare():
        yield note("privilege.namespaces", f"nothing can be mounted: {why}", _advice_on_namespaces(why))
        return
    yield ok("privilege.namespaces", "user namespaces can be made, and mounted in")
    yield from _subordinate(subject.uid)


def _advice_on_namespaces(why: str) -> str:
    if "max_user_namespaces" in why:
        return "sysctl user.max_user_namespaces=15000 (as root), or --driver native: docs/without-root.md"
    if "unprivileged_userns_clone" in why:
        return "sysctl kernel.unprivileged_userns_clone=1 (as root), or --driver native: docs/without-root.md"
    if "AppArmor" in why:
        return (
            "sysctl kernel.apparmor_restrict_unprivileged_userns=0 (as root), or a profile for orlop's Python"
        )
    if "seccomp" in why:
        return "run the container with --security-opt seccomp=unconfined, or keep to --driver native"
    return "keep to --driver native, or ask a daemon with --host: docs/without-root.md"


def _subordinate(uid: int) -> Iterator[Finding]:
    why = userns.why_single_id(uid, userns.subordinate_ids(uid))
    check = "privilege.subordinate-ids"
    if why is None:
        users, groups = userns.subordinate_ids(uid)
        many = min(sum(part.size for part in users), sum(part.size for part in groups))
        yield ok(check, f"{many} subordinate ids: files of images get their owners")
    else:
        text = f"all files of roots will be yours: {why}"
        yield note(check, text, _advice_on_ids(why, uid))
        return
    for program in ("newuidmap", "newgidmap"):
        path = find_helper(program)
        if path is None:
            continue  # why_single_id told
        about = os.stat(path)
        if not about.st_mode & stat.S_ISUID and not _has_capability(path):
            advice = f"chmod u+s {path}, or setcap cap_setuid+ep (cap_setgid+ep for newgidmap)"
            yield problem(
                f"privilege.{program}", f"{path} is not set-user-ID root: ids cannot be mapped", advice
            )


def _advice_on_ids(why: str, uid: int) -> str:
    if "newuidmap" in why or "newgidmap" in why:
        return "install uidmap (Debian) or shadow-utils"
    first = _first_free(_text("/etc/subuid") + _text("/etc/subgid"))
    span = f"{first}-{first + 65_535}"
    return f"as root: usermod --add-subuids {span} --add-subgids {span} {_login(uid)}"


def _first_free(text: str) -> int:
    """The first id after all that lines of subuid(5) give, from 100000 on as useradd(8) has it."""
    first = 100_000
    for line in text.splitlines():
        _, _, rest = line.partition(":")
        begin, _, count = rest.partition(":")
        if begin.isdigit() and count.isdigit():
            first = max(first, int(begin) + int(count))
    return first


def _login(uid: int) -> str:
    import pwd

    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _has_capability(path: str) -> bool:
    try:
        return bool(os.getxattr(path, "security.capability"))
    except OSError:
        return False


def check_confinement(subject: Subject) -> Iterable[Finding]:
    """What a container, or a security module, takes away from us."""
    status = _status()
    if status.get("Seccomp") == "2":
        text = "a seccomp filter is in force: calls that mounting needs may be refused"
        advice = "if mounts fail, run the container with --security-opt seccomp=unconfined"
        yield note("security.seccomp", text, advice)
    if os.geteuid() == 0 and not int(status.get("CapEff", "0"), 16) >> _CAP_SYS_ADMIN & 1:
        text = "CAP_SYS_ADMIN is missing: nothing can be mounted"
        yield note(
            "security.capabilities", text, "run the container with --cap-add SYS_ADMIN: docs/platforms.md"
        )
    masked = [entry.target for entry in mountinfo.mount_table() if entry.target.startswith(b"/proc/")]
    masked = [one for one in masked if not one.startswith(b"/proc/sys/fs/binfmt_misc")]
    if masked:
        text = (
            f"/proc is masked in {len(masked)} places: containers made in here cannot have one of their own"
        )
        yield note(
            "security.proc", text, "run the outer container with --security-opt systempaths=unconfined"
        )
    profile = _text("/proc/self/attr/current").strip("\0\n ")
    if _text("/sys/fs/selinux/enforce").strip() == "1":
        text = f"SELinux enforces, and we are {profile or 'unlabelled'}"
        yield note("security.selinux", text, "if a mount is refused, `ausearch -m avc -ts recent` says what")
    elif profile and "unconfined" not in profile:
        text = f"the security module confines us to the profile {profile}"
        yield note("security.apparmor", text, "if a mount is refused, `dmesg` says what the profile denied")
    if not masked and status.get("Seccomp") != "2":
        yield ok("security", "no filter and no mask of a container is in the way")


def _status() -> dict[str, str]:
    lines = _text("/proc/self/status").splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def _text(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read(1 << 20)
    except OSError:
        return ""
