"""orlop: a container image service for Python.

Name an image and a path; get back mounts, in order, that assemble its root file system at that path.
Run something in it, commit what changed as a new image, clean up::

    import orlop

    with orlop.open() as store, store.prepare("alpine", "/srv/a") as root:
        root.mount()
        ...
        image = root.commit("localhost/changed")

`open` works on the store in this process; `connect` asks a daemon.  Both return a `Store`.
Importing this package is cheap: the machinery is imported by the first call.
"""

from __future__ import annotations

from orlop.version import __version__

TYPE_CHECKING = False  # `typing`, `re` and what these import: three times what the rest of a start takes
if TYPE_CHECKING:
    from orlop import aio, config, errors
    from orlop.config import Limits, Settings
    from orlop.errors import (
        Aborted,
        AlreadyExists,
        Cancelled,
        DataLoss,
        DeadlineExceeded,
        Error,
        FailedPrecondition,
        Internal,
        InvalidArgument,
        NotFound,
        OutOfRange,
        PermissionDenied,
        ResourceExhausted,
        Unauthenticated,
        Unavailable,
        Unimplemented,
    )
    from orlop.facade import (
        Prepared,
        Store,
        connect,
        login,
        logins,
        logout,
        open,  # noqa: A004 - the library's verb
        registries,
        restore,
    )
    from orlop.facade.running import Ran
    from orlop.images.api import (
        CommitOptions,
        ExtraMount,
        IdMap,
        ImageDetails,
        ImageInfo,
        Mount,
        PreparedInfo,
        PrepareOptions,
    )
    from orlop.images.comparing import (
        Blame,
        BlameStep,
        Difference,
        HistoryLine,
        LayerWaste,
        TreeLine,
        Waste,
        WastedFile,
    )
    from orlop.images.contents import FileInfo, Found
    from orlop.images.events import Event, EventStream
    from orlop.images.exports import Exported, ExportOptions
    from orlop.images.forks import CheckpointInfo, ForkOptions
    from orlop.images.running.bundle import Rlimit, Volume
    from orlop.images.running.whole import Bundle
    from orlop.images.shares import Share
    from orlop.images.upkeep import (
        BackedUp,
        Checked,
        Collected,
        DriverInfo,
        Explanation,
        Finding,
        Keep,
        Pin,
        StoreInfo,
        Usage,
    )
    from orlop.observe import Auth, Call, CancelToken, Observer, Progress
    from orlop.registry.access.login import LoggedIn, LoggedOut
    from orlop.remote.api import Artifact, ArtifactFile, Copied, Deleted, Document, PulledFile, Referrer
    from orlop.remote.verbs import Remote

__all__ = [
    "Aborted",
    "AlreadyExists",
    "Artifact",
    "ArtifactFile",
    "Auth",
    "BackedUp",
    "Blame",
    "BlameStep",
    "Bundle",
    "Call",
    "CancelToken",
    "Cancelled",
    "Checked",
    "CheckpointInfo",
    "Collected",
    "CommitOptions",
    "Copied",
    "DataLoss",
    "DeadlineExceeded",
    "Deleted",
    "Difference",
    "Document",
    "DriverInfo",
    "Error",
    "Event",
    "EventStream",
    "Explanation",
    "ExportOptions",
    "Exported",
    "ExtraMount",
    "FailedPrecondition",
    "FileInfo",
    "Finding",
    "ForkOptions",
    "Found",
    "HistoryLine",
    "IdMap",
    "ImageDetails",
    "ImageInfo",
    "Internal",
    "InvalidArgument",
    "Keep",
    "LayerWaste",
    "Limits",
    "LoggedIn",
    "LoggedOut",
    "Mount",
    "NotFound",
    "Observer",
    "OutOfRange",
    "PermissionDenied",
    "Pin",
    "PrepareOptions",
    "Prepared",
    "PreparedInfo",
    "Progress",
    "PulledFile",
    "Ran",
    "Referrer",
    "Remote",
    "ResourceExhausted",
    "Rlimit",
    "Settings",
    "Share",
    "Store",
    "StoreInfo",
    "TreeLine",
    "Unauthenticated",
    "Unavailable",
    "Unimplemented",
    "Usage",
    "Volume",
    "Waste",
    "WastedFile",
    "__version__",
    "aio",
    "config",
    "connect",
    "errors",
    "login",
    "logins",
    "logout",
    "open",
    "registries",
    "restore",
]

_LAZY = {
    "Aborted": "orlop.errors",
    "AlreadyExists": "orlop.errors",
    "Cancelled": "orlop.errors",
    "DataLoss": "orlop.errors",
    "DeadlineExceeded": "orlop.errors",
    "Error": "orlop.errors",
    "FailedPrecondition": "orlop.errors",
    "Internal": "orlop.errors",
    "InvalidArgument": "orlop.errors",
    "NotFound": "orlop.errors",
    "OutOfRange": "orlop.errors",
    "PermissionDenied": "orlop.errors",
    "ResourceExhausted": "orlop.errors",
    "Unauthenticated": "orlop.errors",
    "Unavailable": "orlop.errors",
    "Unimplemented": "orlop.errors",
    "Auth": "orlop.observe",
    "Call": "orlop.observe",
    "CancelToken": "orlop.observe",
    "Observer": "orlop.observe",
    "Progress": "orlop.observe",
    "Limits": "orlop.config",
    "Settings": "orlop.config",
    "Event": "orlop.images.events",
    "EventStream": "orlop.images.events",
    "ExportOptions": "orlop.images.exports",
    "Exported": "orlop.images.exports",
    "CheckpointInfo": "orlop.images.forks",
    "ForkOptions": "orlop.images.forks",
    "CommitOptions": "orlop.images.api",
    "BackedUp": "orlop.images.upkeep",
    "Checked": "orlop.images.upkeep",
    "Collected": "orlop.images.upkeep",
    "DriverInfo": "orlop.images.upkeep",
    "Explanation": "orlop.images.upkeep",
    "Finding": "orlop.images.upkeep",
    "Keep": "orlop.images.upkeep",
    "Pin": "orlop.images.upkeep",
    "Usage": "orlop.images.upkeep",
    "ExtraMount": "orlop.images.api",
    "FileInfo": "orlop.images.contents",
    "Found": "orlop.images.contents",
    "IdMap": "orlop.images.api",
    "ImageDetails": "orlop.images.api",
    "ImageInfo": "orlop.images.api",
    "Mount": "orlop.images.api",
    "PrepareOptions": "orlop.images.api",
    "PreparedInfo": "orlop.images.api",
    "StoreInfo": "orlop.images.upkeep",
    "Prepared": "orlop.facade",
    "Store": "orlop.facade",
    "Ran": "orlop.facade.running",
    "Artifact": "orlop.remote.api",
    "ArtifactFile": "orlop.remote.api",
    "Copied": "orlop.remote.api",
    "Deleted": "orlop.remote.api",
    "Document": "orlop.remote.api",
    "PulledFile": "orlop.remote.api",
    "Referrer": "orlop.remote.api",
    "Remote": "orlop.remote.verbs",
    "LoggedIn": "orlop.registry.access.login",
    "LoggedOut": "orlop.registry.access.login",
    "connect": "orlop.facade",
    "login": "orlop.facade",
    "logins": "orlop.facade",
    "logout": "orlop.facade",
    "open": "orlop.facade",
    "registries": "orlop.facade",
    "restore": "orlop.facade",
    "Bundle": "orlop.images.running.whole",
    "Share": "orlop.images.shares",
    "Rlimit": "orlop.images.running.bundle",
    "Volume": "orlop.images.running.bundle",
    "Blame": "orlop.images.comparing",
    "BlameStep": "orlop.images.comparing",
    "Difference": "orlop.images.comparing",
    "HistoryLine": "orlop.images.comparing",
    "LayerWaste": "orlop.images.comparing",
    "TreeLine": "orlop.images.comparing",
    "Waste": "orlop.images.comparing",
    "WastedFile": "orlop.images.comparing",
}


def __getattr__(name: str) -> object:
    """Import a public name when it is first used."""
    if name in ("aio", "config", "errors"):
        from importlib import import_module

        return import_module(f"orlop.{name}")  # which makes it an attribute, too
    module = _LAZY.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(module), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
