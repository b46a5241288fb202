"""A complete OCI runtime bundle for a prepared root, to be run by whatever runtime its owner likes.

::

    DIR/
      config.json       mode 0600, for an environment holds secrets; written last
      hostname, hosts   mounted over those of /etc; with the host's network its resolv.conf, too
      volumes/<target>/ what stands in for the image's VOLUMEs, with what the image has there
      rootfs/           empty; only where the root's own mounts are in config.json

`orlop.images.running.bundle` has the translation that this and `orlop run` share; here is what only a bundle
that is handed on needs: labels as annotations, VOLUMEs as mounts, a filter of system calls, user namespaces,
hooks.  Nothing is mounted or started, and no row of the store knows of a bundle.

Sources: image-spec 1.1, conversion.md; runtime-spec 1.0.2.

Invariants: labels that runtimes act upon are left out unless asked for, and named in the result
(conversion.md, "Annotations": a converter may, and has to say so).  No VOLUME hides what the kernel shows.
What is written is new: a config.json that is there is replaced only if asked.
"""

from __future__ import annotations

import os
import posixpath
import secrets
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from orlop.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound, from_oserror
from orlop.images.api import Mount
from orlop.images.running.accounts import MAX_ACCOUNTS
from orlop.images.running.bundle import (
    CAPABILITIES,
    MAX_HOSTNAME,
    RunOptions,
    build_spec,
    write_bundle,
    write_etc_files,
)
from orlop.images.running.imagevolumes import ImageVolumes, clean, image_volumes, is_text, outside
from orlop.images.running.namespace import UserNamespace
from orlop.linux.userns import IdRange, Maps
from orlop.observe import Call
from orlop.spec.documents import ImageConfig, RunConfig, parse_config
from orlop.values import dataclass, field, replace

if TYPE_CHECKING:
    from orlop.images.api import PreparedInfo
    from orlop.images.api import Store as StoreVerbs

__all__ = ["HOOKS", "UNSAFE", "Bundle", "BundleOptions", "make_bundle"]

HOOKS = ("prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop")
# What runc, crun, podman, kata, gVisor and those that start them take for orders, not for remarks.
UNSAFE = (
    "com.github.containers.",
    "dev.gvisor.",
    "io.container.manager",
    "io.containerd.",
    "io.katacontainers.",
    "io.kubernetes.",
    "io.podman.annotations.",
    "module.wasm.",
    "org.criu.",
    "org.systemd.property.",
    "run.oci.",
)
_NO_ANNOTATIONS: Mapping[str, str] = MappingProxyType({})
_FILES = ("config.json", "hostname", "hosts", "resolv.conf")
_ACCOUNTS = (b"etc/passwd", b"etc/group")


@dataclass(frozen=True, slots=True, kw_only=True)
class BundleOptions:
    """What a bundle has beside the image's config.

    ``run`` is what a command line says of the process, as for `orlop run`.  ``image_volumes`` says what the
    image's VOLUMEs become: folders of the bundle with the image's own content, memory, or nothing: then they
    stay in the root.  ``mounts`` are further ones, with targets of the container.  ``unsafe_labels`` takes
    over labels that runtimes act upon, too.  ``seccomp`` is a profile's path, ``auto`` for the one that this
    machine's podman has, or ``none``.  ``maps`` are of users and groups, for a user namespace of the
    container's own; without them those that the root was prepared with, if any.  ``root_mounts`` puts the
    root's mounts into config.json, so that nothing need be mounted before (runc can, crun cannot).
    ``hooks`` are pairs of a kind and a command.
    """

    run: RunOptions = RunOptions()
    image_volumes: ImageVolumes = "folder"
    annotations: Mapping[str, str] = field(default_factory=lambda: _NO_ANNOTATIONS)
    unsafe_labels: bool = False
    mounts: tuple[Mount, ...] = ()
    seccomp: str = "auto"
    maps: Maps | None = None
    root_mounts: bool = False
    hooks: tuple[tuple[str, tuple[str, ...]], ...] = ()
    force: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """A bundle that was written: its folder, the config.json, the root that it runs, and what to know of it.

    ``left_out`` are labels that did not become annotations; ``volumes`` the image's VOLUMEs that became
    mounts, ``unmounted`` those that did not; ``seccomp`` is the profile's path, if any.
    """

    folder: str
    config: str
    root: str
    left_out: tuple[str, ...] = ()
    volumes: tuple[str, ...] = ()
    unmounted: tuple[str, ...] = ()
    seccomp: str = ""


def make_bundle(
    verbs: StoreVerbs, info: PreparedInfo, folder: Path, *, options: BundleOptions, call: Call
) -> Bundle:
    """Write the bundle of a prepared root into a folder, which is made if it is missing.

    The root is where this process sees it: a daemon's, too, if it is on this machine.  Raises
    `AlreadyExists` where there is a config.json, `FailedPrecondition` for a root that is not mounted,
    `InvalidArgument` for what cannot be run.
    """
    what = f"bundle {info.path}"
    config = parse_config(verbs.inspect(info.image_id).config, what)
    place = None if options.root_mounts else _place(info, what)
    _begin(folder, options, what)
    try:
        return _make(verbs, info, folder, config, place, options=options, what=what, call=call)
    except BaseException:
        if not options.force:  # then they are ours, and would stand in the way of the next try
            for name in _FILES:
                (folder / name).unlink(missing_ok=True)
        raise


def _make(
    verbs: StoreVerbs,
    info: PreparedInfo,
    folder: Path,
    config: ImageConfig,
    place: str | None,
    *,
    options: BundleOptions,
    what: str,
    call: Call,
) -> Bundle:
    run = config.config or RunConfig()
    seccomp = _profile(options, what)
    maps = options.maps or _maps_of(info)
    order = options.run
    if maps is not None:
        many = any(ids.size > 1 for ids in maps[1])  # with one id there is no setgroups(2) without root
        order = replace(order, namespace=UserNamespace(maps=maps, setgroups=many))
        if os.geteuid() == 0:
            _let_in(folder, outside(maps[1], 0), what)
    hostname = order.hostname or _name_of(info.path)
    etc = write_etc_files(folder, hostname=hostname, net=order.net)
    volumes, memory, unmounted = image_volumes(
        verbs,
        info,
        folder,
        run.volumes or {},
        kind=options.image_volumes,
        taken=(*(one.target for one in options.run.volumes), *(one.target for one in options.mounts)),
        maps=maps,
        call=call,
    )
    order = replace(order, hostname=hostname, etc=etc, volumes=(*order.volumes, *volumes))
    if place is None:
        root_path = folder / "rootfs"
        root_path.mkdir(mode=0o755, exist_ok=True)
    else:
        root_path = Path(place)
    with _accounts(verbs, info, folder, place, call) as root_fd:
        spec = build_spec(config, str(root_path), order, root_fd=root_fd)
    annotations, left_out = _annotations(run, spec, options)
    spec["annotations"] = annotations
    spec["mounts"] = _mounts(spec, info, (*options.mounts, *memory), options, what)
    _own_namespace(spec, maps)
    if seccomp:
        from orlop.images.running.seccomp import seccomp_of

        linux: Any = spec["linux"]
        linux["seccomp"] = seccomp_of(seccomp, capabilities=CAPABILITIES)
    if options.hooks:
        spec["hooks"] = _hooks(options.hooks, what)
    try:
        written = write_bundle(folder, spec)
    except UnicodeEncodeError as exc:
        raise InvalidArgument(what, "what config.json would say is not UTF-8") from exc
    return Bundle(
        folder=str(folder),
        config=str(written),
        root=info.path,
        left_out=left_out,
        volumes=(*(one.target for one in volumes), *(one.target for one in memory)),
        unmounted=unmounted,
        seccomp=seccomp,
    )


def _place(info: PreparedInfo, what: str) -> str:
    """Where the root's files are: mounted at its path, or a plain folder."""
    from orlop.linux.mountinfo import is_mount_point

    if is_mount_point(Path(info.path)):
        return info.path
    mounts = info.mounts
    if info.driver == "native" and len(mounts) == 1 and mounts[0].type == "bind" and info.kind == "active":
        return mounts[0].source
    raise FailedPrecondition(
        what,
        "it is not mounted here",
        hint=f"'orlop mount {info.path}' first, or --root-mounts, which runc mounts by itself",
    )


def _begin(folder: Path, options: BundleOptions, what: str) -> None:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        there = [name for name in _FILES if os.path.lexists(folder / name)]
    except OSError as exc:
        raise from_oserror(what, exc) from exc
    if there and not options.force:
        raise AlreadyExists(
            what, f"{folder}/{there[0]} is there", hint="--force replaces it, or give another folder"
        )


def _let_in(folder: Path, group: int, what: str) -> None:
    """Have a user namespace's root get to what is mounted from here, and see no more than that."""
    try:
        (folder / "volumes").mkdir(mode=0o700, exist_ok=True)
        for place in (folder, folder / "volumes"):
            status = place.stat()
            if stat.S_IMODE(status.st_mode) == 0o700 and status.st_uid == 0:  # as we make them
                os.chown(place, -1, group)
                place.chmod(0o710)
    except OSError as exc:
        raise from_oserror(what, exc) from exc


def _profile(options: BundleOptions, what: str) -> str:
    """The path of the seccomp profile; empty for none."""
    from orlop.images.running.seccomp import find_profile

    if options.seccomp == "auto":
        return find_profile() or ""
    if options.seccomp in {"", "none"}:
        return ""
    if not os.path.isfile(options.seccomp):
        raise NotFound(what, f"there is no seccomp profile {options.seccomp}")
    return os.path.abspath(options.seccomp)


def _name_of(path: str) -> str:
    """A host name out of a root's path."""
    name = posixpath.basename(path)
    return name if 0 < len(name) <= MAX_HOSTNAME and name.isascii() and name.isalnum() else "orlop"


@contextmanager
def _accounts(
    verbs: StoreVerbs, info: PreparedInfo, folder: Path, place: str | None, call: Call
) -> Iterator[int]:
    """A descriptor of the root; of one that is not mounted, of a folder with its account files alone."""
    if place is not None:
        with _opened(place, info) as fd:
            yield fd
        return
    from orlop.linux.files import remove_tree

    scratch = folder / f".accounts-{secrets.token_hex(4)}"
    (scratch / "etc").mkdir(parents=True, mode=0o700)
    try:
        for name in _ACCOUNTS:
            with suppress(NotFound), closing(verbs.read_files(info.path, [name], call=call)) as chunks:
                _save(chunks, scratch / os.fsdecode(name))
        with _opened(str(scratch), info) as fd:
            yield fd
    finally:
        remove_tree(scratch)


def _save(chunks: Iterable[bytes], path: Path) -> None:
    """Write an account file, and not much more than is read of it."""
    size = 0
    with open(path, "wb") as file:
        for data in chunks:
            size += file.write(data)
            if size > MAX_ACCOUNTS:
                break


@contextmanager
def _opened(place: str, info: PreparedInfo) -> Iterator[int]:
    try:
        fd = os.open(place, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as exc:
        raise from_oserror(f"bundle {info.path}", exc) from exc
    try:
        yield fd
    finally:
        os.close(fd)


def _annotations(
    run: RunConfig, spec: Mapping[str, object], options: BundleOptions
) -> tuple[dict[str, str], tuple[str, ...]]:
    """What the config implies, then its labels, then the caller's: later ones count.

    Returns the labels that were left out, too.
    """
    found: dict[str, str] = dict(spec["annotations"])  # type: ignore[call-overload]  # build_spec's own
    left_out = []
    for key, value in sorted((run.labels or {}).items()):
        if not options.unsafe_labels and key.lower().startswith(UNSAFE):
            left_out.append(key)
        elif key and is_text(key) and is_text(value):
            found[key] = value
        else:
            left_out.append(key)
    found.update(options.annotations)
    return found, tuple(left_out)


def _mounts(
    spec: Mapping[str, object],
    info: PreparedInfo,
    extra: Sequence[Mount],
    options: BundleOptions,
    what: str,
) -> list[dict[str, object]]:
    """All mounts in order, outer ones first; a mount at the place of a default takes it."""
    found: dict[str, dict[str, object]] = {one["destination"]: one for one in spec["mounts"]}  # type: ignore[attr-defined]  # build_spec's own
    chosen = {clean(volume.target) for volume in options.run.volumes}
    for mount in extra:
        target = clean(mount.target)
        if target == "/" or target in chosen:
            raise InvalidArgument(what, f"a mount cannot have the target {target!r}: it is taken")
        chosen.add(target)
        found[target] = _mount(mount, target)
    ordered = sorted(found.values(), key=lambda one: str(one["destination"]).count("/"))
    if not options.root_mounts:
        return ordered
    beginning = []
    for mount in info.mounts:
        inside = posixpath.relpath(mount.target, info.path)
        beginning.append(_mount(mount, "/" if inside == "." else f"/{inside}"))
    return [*beginning, *ordered]


def _mount(mount: Mount, target: str) -> dict[str, object]:
    return {
        "destination": target,
        "type": mount.type,
        "source": mount.source or mount.type,
        "options": list(mount.options),
    }


def _maps_of(info: PreparedInfo) -> Maps | None:
    """The maps that the root's ids are shown with; None where they are shown as they are."""
    if not info.uid_map:
        return None
    users, groups = (
        tuple(IdRange(inside=ids.inside, outside=ids.outside, size=ids.size) for ids in ranges)
        for ranges in (info.uid_map, info.gid_map)
    )
    return users, groups


def _own_namespace(spec: Mapping[str, object], maps: Maps | None) -> None:
    """A user namespace of the container's own, where there are maps."""
    if maps is None:
        return
    linux: Any = spec["linux"]
    linux["namespaces"].append({"type": "user"})
    for key, ranges in zip(("uidMappings", "gidMappings"), maps, strict=True):
        linux[key] = [{"containerID": ids.inside, "hostID": ids.outside, "size": ids.size} for ids in ranges]


def _hooks(hooks: Sequence[tuple[str, tuple[str, ...]]], what: str) -> dict[str, list[object]]:
    found: dict[str, list[object]] = {}
    for kind, command in hooks:
        if kind not in HOOKS:
            raise InvalidArgument(what, f"no such hook: {kind!r}", hint=f"one of {', '.join(HOOKS)}")
        if not command or not command[0].startswith("/"):
            raise InvalidArgument(
                what, f"the {kind} hook is no absolute path", hint=f"{kind}=/path/to/program"
            )
        found.setdefault(kind, []).append({"path": command[0], "args": list(command)})
    return found
