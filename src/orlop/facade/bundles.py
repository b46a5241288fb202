"""`Prepared.bundle`: a root as a bundle for any OCI runtime.

Done where the caller is, of what the store says (the config, the account files, the mounts) and what lies at
the root's path: so with a daemon on the same machine, too.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from orlop.hints import TYPE_CHECKING
from orlop.observe import Call

if TYPE_CHECKING:
    from orlop.images.api import IdMap, Mount, PreparedInfo
    from orlop.images.api import Store as StoreVerbs
    from orlop.images.running.bundle import Net, Rlimit, Volume
    from orlop.images.running.imagevolumes import ImageVolumes
    from orlop.images.running.whole import Bundle

__all__ = ["PreparedBundles"]


class PreparedBundles:
    """The part of `orlop.Prepared` that makes bundles."""

    _verbs: StoreVerbs
    info: PreparedInfo

    def bundle(
        self,
        folder: str | os.PathLike[str],
        *,
        args: Sequence[str] = (),
        entrypoint: Sequence[str] | None = None,
        env: Sequence[str] = (),
        cwd: str | None = None,
        user: str | None = None,
        terminal: bool = False,
        hostname: str = "",
        readonly: bool = False,
        net: Net = "none",
        volumes: Sequence[Volume] = (),
        mounts: Sequence[Mount] = (),
        image_volumes: ImageVolumes = "folder",
        annotations: Mapping[str, str] | None = None,
        unsafe_labels: bool = False,
        seccomp: str = "auto",
        rootless: bool = False,
        uid_map: Sequence[IdMap] = (),
        gid_map: Sequence[IdMap] = (),
        root_mounts: bool = False,
        rlimits: Sequence[Rlimit] = (),
        cgroup: str | None = None,
        hooks: Sequence[tuple[str, Sequence[str]]] = (),
        force: bool = False,
        call: Call | None = None,
    ) -> Bundle:
        """Write config.json, and the files that it needs, into a folder: ``runc run --bundle FOLDER NAME``.

        The image's config is translated as the image-spec says; what is given here counts instead.  ``args``
        stand in for the image's command, ``entrypoint`` for its entrypoint.  ``rootless`` is for a runtime
        that the caller starts without root: a user namespace with the caller's own ids, or with ``uid_map``
        and ``gid_map``.  The root has to be mounted, unless ``root_mounts`` has the runtime mount it.
        `orlop.images.running.whole.BundleOptions` and `RunOptions` have the rest.

        Raises `AlreadyExists` where there is a config.json, `FailedPrecondition` for a root that is
        not mounted.

        >>> root.bundle("/srv/bundle", args=["echo", "hello"], net="host").config
        '/srv/bundle/config.json'
        """
        from pathlib import Path

        from orlop.images.running.bundle import RunOptions
        from orlop.images.running.whole import BundleOptions, make_bundle
        from orlop.linux.userns import IdRange

        maps = None
        if rootless or uid_map or gid_map:
            own = [(IdRange(inside=0, outside=number, size=1),) for number in (os.geteuid(), os.getegid())]
            given = [
                tuple(IdRange(inside=ids.inside, outside=ids.outside, size=ids.size) for ids in ranges)
                for ranges in (uid_map or gid_map, gid_map or uid_map)
            ]
            maps = (given[0] or own[0], given[1] or own[1])
        options = BundleOptions(
            run=RunOptions(
                args=tuple(args),
                entrypoint=None if entrypoint is None else tuple(entrypoint),
                env=tuple(env),
                workdir=cwd,
                user=user,
                tty=terminal,
                volumes=tuple(volumes),
                net=net,
                hostname=hostname,
                read_only=readonly,
                cgroup=cgroup,
                rlimits=tuple(rlimits),
            ),
            image_volumes=image_volumes,
            annotations=dict(annotations or {}),
            unsafe_labels=unsafe_labels,
            mounts=tuple(mounts),
            seccomp=seccomp,
            maps=maps,
            root_mounts=root_mounts,
            hooks=tuple((kind, tuple(command)) for kind, command in hooks),
            force=force,
        )
        where = Path(os.path.abspath(folder))
        return make_bundle(self._verbs, self.info, where, options=options, call=call or Call())
