"""An image's config and a user's wishes into an OCI runtime bundle: the ``config.json`` that runs it.

Not a runtime: it starts nothing, and looks nothing up but who a user is (`orlop.images.running.accounts`) and
whether a read-only volume is a folder.
Sources: image-spec 1.1, conversion.md; runtime-spec 1.0.2, config.md and config-linux.md; Docker where
the specs leave room (which capabilities, which mounts, what overrides what).

Invariants:

- Nothing of the image steers the runtime.  Its labels do not become annotations: runtimes act upon some
  of those (``run.oci.*``, ``org.systemd.property.*``).  Its VOLUMEs stay folders of the root, so that a
  commit has what was written there, and no path of the image is mounted from anywhere.
- Mount targets go into the bundle as they were given, by their text.  The runtime resolves them inside
  the root, so a symlink of the image at a volume's target cannot lead out of it.
- Whoever starts it as root of a user namespace gets a bundle that asks for what that root may do: no cgroup,
  no device, no id that is not mapped, and the host's /sys where the network is the host's.
- The limits of resources are the caller's own unless `RunOptions.rlimits` says otherwise: root without
  CAP_SYS_RESOURCE could not raise them.  There is no seccomp profile.
"""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path

from orlop.errors import InvalidArgument, from_oserror
from orlop.hints import Literal
from orlop.images.running.accounts import User, resolve_user
from orlop.images.running.namespace import UserNamespace
from orlop.spec.documents import ImageConfig, RunConfig, encode
from orlop.values import dataclass

__all__ = [
    "DEFAULT_PATH",
    "Rlimit",
    "RunOptions",
    "Volume",
    "build_spec",
    "write_bundle",
    "write_etc_files",
]

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
MAX_HOSTNAME = 64  # __NEW_UTS_LEN, include/uapi/linux/utsname.h

# What Docker leaves a container (moby, oci/caps/defaults.go).
CAPABILITIES = (
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
)
_SAFE = ["nosuid", "noexec", "nodev"]
_SHM = ["mode=1777", "size=65536k"]
# target, type, source, options
_MOUNTS: tuple[tuple[str, str, str, list[str]], ...] = (
    ("/proc", "proc", "proc", _SAFE),
    ("/dev", "tmpfs", "tmpfs", ["nosuid", "strictatime", "mode=755", "size=65536k"]),
    (
        "/dev/pts",
        "devpts",
        "devpts",
        ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
    ),
    ("/dev/shm", "tmpfs", "shm", _SAFE + _SHM),  # noqa: S108 - a mount point, no file of ours
    ("/dev/mqueue", "mqueue", "mqueue", _SAFE),
    ("/sys", "sysfs", "sysfs", [*_SAFE, "ro"]),
    ("/sys/fs/cgroup", "cgroup", "cgroup", [*_SAFE, "relatime", "ro"]),
)
_MASKED = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
]
_READ_ONLY = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"]
_ATTEMPTED = "run container"
_HOSTNAME = re.compile(r"[!-~]+")  # the kernel takes anything, also its own "(none)"

Net = Literal["host", "none"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Volume:
    """A file or folder of the host at a path of the container.  Both are absolute.

    Mounts below ``source`` come along; ``read_only`` holds for them as well (Linux 5.12).
    """

    source: str
    target: str
    read_only: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Rlimit:
    """A limit as setrlimit(2) names it: ``RLIMIT_NOFILE``."""

    type: str
    soft: int
    hard: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """What the user adds to an image's config, or says instead of it.

    ``args`` stand in for the image's command; ``entrypoint`` for its entrypoint, and then the image's
    command does not count either; an empty one clears it.  ``env`` are ``NAME=value``.  ``etc`` is what
    `write_etc_files` returned: volumes that one of ``volumes`` at the same target replaces.
    ``cgroup`` is the runtime-spec's ``cgroupsPath``; None leaves it to the runtime.  ``namespace`` is the
    user namespace that we are root of; None stands for the machine's first.
    """

    args: tuple[str, ...] = ()
    entrypoint: tuple[str, ...] | None = None
    env: tuple[str, ...] = ()
    workdir: str | None = None
    user: str | None = None
    tty: bool = False
    volumes: tuple[Volume, ...] = ()
    etc: tuple[Volume, ...] = ()
    net: Net = "host"
    hostname: str = ""
    read_only: bool = False
    cgroup: str | None = None
    rlimits: tuple[Rlimit, ...] = ()
    namespace: UserNamespace | None = None


def build_spec(
    config: ImageConfig, rootfs_path: str, options: RunOptions, *, root_fd: int
) -> dict[str, object]:
    """The runtime spec of one container, as the JSON object that ``config.json`` holds.

    ``root_fd`` is the folder ``rootfs_path``, the absolute path of the assembled root.  Raises
    `InvalidArgument` for a command, user, path or name that cannot be, and for an image whose account
    files are no regular files or too large; `FailedPrecondition` for a user that the namespace lacks.
    """
    run = config.config or RunConfig()
    user = resolve_user(options.user if options.user is not None else run.user or "", root_fd=root_fd)
    if options.namespace is not None:
        user = options.namespace.admit(user)
    spec: dict[str, object] = {
        "ociVersion": "1.0.2",
        "process": _process(run, user, options),
        "root": {"path": _text("root", rootfs_path), "readonly": options.read_only},
        "mounts": _mounts(options),
        "annotations": _annotations(config),
        "linux": _linux(options),
    }
    if options.hostname:
        spec["hostname"] = _hostname(options.hostname)
    return spec


def write_bundle(folder: Path, spec: dict[str, object]) -> Path:
    """Write ``config.json`` into an existing folder and return its path.

    Readable by its owner alone, as an environment holds secrets.  Raises `from_oserror`'s errors.
    """
    path = folder / "config.json"
    _write(path, encode(spec), mode=0o600)
    return path


def write_etc_files(
    folder: Path, *, hostname: str, net: Net = "host", etc: Path = Path("/etc")
) -> tuple[Volume, ...]:
    """Make the files about names that a container expects of its host, for `RunOptions.etc`.

    With net ``host`` that is a copy of the host's resolv.conf and hosts, as they are now; with ``none``
    a hosts file that knows the container itself.  Both get a hostname file.  They are mounted
    read-only.  ``folder`` must outlive the container.
    """
    files = {"hostname": _hostname(hostname).encode() + b"\n"}
    if net == "host":
        for name in ("hosts", "resolv.conf"):
            try:
                files[name] = (etc / name).read_bytes()
            except FileNotFoundError:
                continue  # then the image's own, if it has one, is the better guess
            except OSError as exc:
                raise from_oserror(f"read {etc / name}", exc) from exc
    else:
        lines = ["127.0.0.1\tlocalhost", "::1\tlocalhost ip6-localhost ip6-loopback"]
        files["hosts"] = "\n".join([*lines, f"127.0.1.1\t{hostname}", ""]).encode()
    for name, data in files.items():
        _write(folder / name, data, mode=0o644)
    return tuple(
        Volume(source=str(folder / name), target=f"/etc/{name}", read_only=True) for name in sorted(files)
    )


def _write(path: Path, data: bytes, *, mode: int) -> None:
    try:
        with open(path, "wb", opener=lambda name, flags: os.open(name, flags, mode)) as file:
            os.fchmod(file.fileno(), mode)  # whatever the umask
            file.write(data)
    except OSError as exc:
        raise from_oserror(f"write {path}", exc) from exc


def _text(what: str, value: str) -> str:
    """``value``, if a runtime can be told it: a C string, in a JSON file, which is UTF-8."""
    if "\0" in value:
        raise InvalidArgument(_ATTEMPTED, f"a NUL character in the {what} {value[:100]!r}")
    try:
        value.encode()
    except UnicodeEncodeError as exc:
        raise InvalidArgument(_ATTEMPTED, f"the {what} {value[:100]!r} is not UTF-8") from exc
    return value


def _hostname(name: str) -> str:
    if len(name) > MAX_HOSTNAME or not _HOSTNAME.fullmatch(name):
        raise InvalidArgument(
            _ATTEMPTED,
            f"not a host name: {name[:100]!r}",
            hint=f"at most {MAX_HOSTNAME} letters",
        )
    return name


def _absolute(what: str, path: str) -> str:
    """A clean absolute path."""
    if not path.startswith("/"):
        raise InvalidArgument(_ATTEMPTED, f"the {what} {path!r} is not an absolute path")
    # normpath keeps two leading slashes, as POSIX lets it.
    return "/" + posixpath.normpath(_text(what, path)).lstrip("/")


def _process(run: RunConfig, user: User, options: RunOptions) -> dict[str, object]:
    workdir = _absolute("working directory", options.workdir or posixpath.join("/", run.working_dir or ""))
    process: dict[str, object] = {
        "terminal": options.tty,
        "user": {"uid": user.uid, "gid": user.gid, "additionalGids": list(user.groups)},
        "args": _args(run, options),
        "env": _env(run, user, options),
        "cwd": workdir,
        # Inheritable stays empty: CVE-2022-24769.
        "capabilities": {kind: list(CAPABILITIES) for kind in ("bounding", "effective", "permitted")},
        "noNewPrivileges": False,
    }
    if options.rlimits:
        process["rlimits"] = [{"type": r.type, "soft": r.soft, "hard": r.hard} for r in options.rlimits]
    return process


def _args(run: RunConfig, options: RunOptions) -> list[str]:
    """Entrypoint and command, each the user's or the image's."""
    entrypoint, command = run.entrypoint or [], run.cmd or []
    if options.entrypoint is not None:
        entrypoint, command = list(options.entrypoint), []
    args = [*entrypoint, *(options.args or command)]
    if not args:
        raise InvalidArgument(_ATTEMPTED, "the image has no command; give one")
    if not args[0]:
        raise InvalidArgument(_ATTEMPTED, "the command's name is empty")
    return [_text("argument", arg) for arg in args]


def _env(run: RunConfig, user: User, options: RunOptions) -> list[str]:
    """Defaults, then the image's variables, then the user's; the last of a name wins, in its first place.

    What is no ``NAME=value`` in an image is left out, as runtimes refuse it.
    """
    variables = {"PATH": DEFAULT_PATH}
    if options.hostname:
        variables["HOSTNAME"] = options.hostname
    if options.tty:
        variables["TERM"] = "xterm"
    for pair in run.env or []:
        name, equals, value = _text("environment variable", pair).partition("=")
        if name and equals:
            variables[name] = value
    for pair in options.env:
        name, equals, value = _text("environment variable", pair).partition("=")
        if not (name and equals):
            raise InvalidArgument(
                _ATTEMPTED, f"not an environment variable: {pair!r}", hint="write NAME=value"
            )
        variables[name] = value
    variables.setdefault("HOME", user.home)
    return [f"{name}={value}" for name, value in variables.items()]


def _mounts(options: RunOptions) -> list[dict[str, object]]:
    """The mounts in order: the kernel's file systems, then volumes, outer ones first.

    A volume at the very place of a default takes that place.
    """
    volumes: dict[str, Volume] = {}
    for volume in options.volumes:
        target = _absolute("volume's target", volume.target)
        if target == "/":
            raise InvalidArgument(_ATTEMPTED, "a volume cannot be mounted over the root")
        if target in volumes:
            raise InvalidArgument(_ATTEMPTED, f"two volumes have the target {target!r}")
        volumes[target] = volume
    for file in options.etc:
        volumes.setdefault(file.target, file)
    mounts: list[dict[str, object]] = [
        {"destination": target, "type": kind, "source": source, "options": flags}
        for target, kind, source, flags in _system_mounts(options)
        if target not in volumes
    ]
    for target, volume in sorted(volumes.items(), key=lambda item: item[0].count("/")):
        source = _absolute("volume's source", volume.source)
        flags = ["rbind", "rprivate"]
        if volume.read_only:
            # `ro` makes the top mount read-only, `rro` those below it, too; crun 1.8 takes it for folders.
            flags += ["ro", "rro"] if os.path.isdir(source) else ["ro"]
        mounts.append({"destination": target, "type": "bind", "source": source, "options": flags})
    return mounts


def _system_mounts(options: RunOptions) -> Iterator[tuple[str, str, str, list[str]]]:
    """`_MOUNTS`, but for what root of a user namespace may not do."""
    namespace = options.namespace
    for target, kind, source, flags in _MOUNTS:
        if namespace is None:
            yield target, kind, source, list(flags)
        elif kind == "cgroup":  # an empty folder hides the host's; there are no cgroups to be had
            yield target, "tmpfs", "tmpfs", [*_SAFE, "mode=755", "ro"]
        elif kind == "sysfs" and options.net == "host":  # only who owns the network may mount sysfs
            yield target, "bind", target, ["rbind", "rslave", *flags, "rro"]
        else:
            yield target, kind, source, [o for o in flags if o != "gid=5" or namespace.has_group(5)]


def _linux(options: RunOptions) -> dict[str, object]:
    namespaces = ["pid", "ipc", "uts", "mount", "cgroup"]
    if options.net == "none":
        namespaces.append("network")  # runtimes bring its loopback up
    linux: dict[str, object] = {
        "namespaces": [{"type": kind} for kind in namespaces],
        "maskedPaths": list(_MASKED),
        "readonlyPaths": list(_READ_ONLY),
    }
    if options.namespace is None:
        # Runtimes add what config-linux.md calls the default devices, and allow those.
        linux["resources"] = {"devices": [{"allow": False, "access": "rwm"}]}
    if options.cgroup is not None:
        linux["cgroupsPath"] = _text("cgroup", options.cgroup)
    return linux


def _annotations(config: ImageConfig) -> dict[str, str]:
    """conversion.md, "Annotation Fields", without the labels: see this module's invariants."""
    run = config.config or RunConfig()
    values = {
        "os": config.os,
        "architecture": config.architecture,
        "variant": config.variant,
        "os.version": config.os_version,
        "os.features": ",".join(config.os_features or ()),
        "author": config.author,
        "created": config.created,
        "stopSignal": run.stop_signal,
        "exposedPorts": ",".join(sorted(run.exposed_ports or {})),
    }
    return {f"org.opencontainers.image.{key}": _text(key, value) for key, value in values.items() if value}
