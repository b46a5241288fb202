"""What bytes from outside may cost: every limit, with its default, its unit and its reason.

The dataclass is the one list of them.  The command line, the configuration file, docs/limits.md and the
tests read its fields: a limit that is added here can be set everywhere, and a test asks for the rest.

Limits hold for what comes in.  What lies in the store was within them once and is read whatever they say
now, so lowering one hides nothing.
"""

from __future__ import annotations

from functools import cache

from orlop.errors import Error, InvalidArgument, ResourceExhausted, limit_hint
from orlop.errors import over_limit as passed
from orlop.values import dataclass, field, fields

__all__ = ["DEFAULT_LIMITS", "Limit", "Limits", "limits_by_name", "over_limit", "too_long"]

_DOCUMENT = 64 << 20  # orlop.content.blobs.MAX_READ, orlop.spec.documents.MAX_DOCUMENT
_HELD = "documents are held in memory whole"
LARGEST = 2**63 - 1  # what setrlimit(2), SQLite and protobuf hold alike


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """One field of `Limits`, described.

    ``unit`` is ``bytes``, ``seconds`` or empty for a plain number.  ``most`` is the largest value that it
    may have, ``because`` of what.
    """

    name: str
    default: int
    unit: str = ""
    guards: str = ""
    most: int = LARGEST
    because: str = ""


def _limit(default: int, unit: str, guards: str, *, most: int = LARGEST, because: str = "") -> int:
    """A field of `Limits` with what is to be said of it."""
    about = {"unit": unit, "guards": guards, "most": most, "because": because}
    made: int = field(default=default, metadata=about)
    return made


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What bytes from outside may cost.  Sizes are bytes.

    Each is refused with its name, so that a user knows which one to raise.  Raises `InvalidArgument` for a
    value that cannot be: none is below 1, and some have an upper bound that Linux or a format gives.
    """

    layer_entries: int = _limit(
        5_000_000, "", "entries of one layer's tar, or an archive's; pieces of one sparse file"
    )
    layer_size: int = _limit(
        256 << 30, "bytes", "one layer's tar, or an archive's that is imported, uncompressed"
    )
    file_size: int = _limit(1 << 40, "bytes", "one file, as `ls -l` shows it; sparse ones count in full")
    compression_ratio: int = _limit(
        1_200, "", "uncompressed over compressed bytes, past the first 64 MiB; deflate can do 1,032"
    )
    name_size: int = _limit(
        255, "bytes", "one component of a path", most=255, because="NAME_MAX, and what EROFS can hold"
    )
    path_size: int = _limit(65_536, "bytes", "a whole path; the format knows no PATH_MAX")
    link_size: int = _limit(4_095, "bytes", "a symlink's target", most=4_095, because="PATH_MAX less the NUL")
    depth: int = _limit(4_096, "", "folders below one another")
    xattr_count: int = _limit(4_096, "", "xattrs of one entry")
    xattr_value: int = _limit(
        65_535, "bytes", "the value of one xattr", most=65_535, because="EROFS keeps its size in 16 bits"
    )
    xattr_total: int = _limit(
        131_072,
        "bytes",
        "all xattrs of one entry, names included",
        most=262_144,
        because="about what EROFS can hold",
    )
    metadata_size: int = _limit(
        256 << 20, "bytes", "names, links, xattrs and sparse maps of a layer in all; they are held in memory"
    )
    pax_size: int = _limit(
        4 << 20, "bytes", "the PAX and GNU long-name records of one entry, and all global ones of a tar"
    )
    manifest_size: int = _limit(
        4 << 20, "bytes", "an image's manifest; also a docker archive's list", most=_DOCUMENT, because=_HELD
    )
    index_size: int = _limit(
        4 << 20, "bytes", "an index of images; also a layout's index.json", most=_DOCUMENT, because=_HELD
    )
    config_size: int = _limit(8 << 20, "bytes", "an image's configuration", most=_DOCUMENT, because=_HELD)
    json_depth: int = _limit(
        64, "", "objects and lists inside one another in any of these", most=500, because="decoders recurse"
    )
    index_nesting: int = _limit(4, "", "indexes inside one another", most=1_000, because="each is fetched")
    index_manifests: int = _limit(
        1_024, "", "indexes and manifests in one index", most=100_000, because="each is fetched"
    )
    layers: int = _limit(1_024, "", "layers of one image")
    archive_names: int = _limit(4_096, "", "names that one archive gives to images")
    page_size: int = _limit(
        16 << 20, "bytes", "one page of a registry's list of tags or referrers", most=_DOCUMENT, because=_HELD
    )
    pages: int = _limit(1_000, "", "pages of one list of a registry", most=100_000, because="each is fetched")
    tags: int = _limit(500_000, "", "tags of one repository, listed")
    referrers: int = _limit(10_000, "", "referrers of one manifest, listed or copied")
    auth_file_size: int = _limit(
        1 << 20, "bytes", "a file with credentials of registries", most=_DOCUMENT, because=_HELD
    )
    worker_memory: int = _limit(4 << 30, "bytes", "address space of the worker that parses a layer")
    worker_cpu: int = _limit(3_600, "seconds", "time on a CPU of the worker that parses a layer")
    worker_stall: int = _limit(
        300, "seconds", "time in which a worker that has input neither takes any nor gives anything"
    )

    def __post_init__(self) -> None:
        for name, limit in limits_by_name().items():
            value = getattr(self, name)
            if type(value) is not int or not 1 <= value <= limit.most:
                raise InvalidArgument(
                    "use limits",
                    f"limits.{name} is {value!r}; it is a number from 1 to {limit.most}"
                    + (f" ({limit.because})" if limit.because else ""),
                    details={"key": f"limits.{name}", "limit": name},
                )

    def as_dict(self) -> dict[str, int]:
        """All of them by name."""
        return {name: getattr(self, name) for name in limits_by_name()}

    def changed(self) -> dict[str, int]:
        """Those that differ from the default."""
        return {
            name: value for name, value in self.as_dict().items() if value != limits_by_name()[name].default
        }


@cache
def limits_by_name() -> dict[str, Limit]:
    """All limits, in the order of the documentation."""
    found = (Limit(name=item.name, default=_number(item.default), **item.metadata) for item in fields(Limits))
    return {limit.name: limit for limit in found}


def _number(value: object) -> int:
    assert isinstance(value, int)
    return value


DEFAULT_LIMITS = Limits()


def over_limit(
    name: str, value: int | str, limit: int, *, attempted: str = "read layer"
) -> ResourceExhausted:
    """The error for one of `Limits` that was passed; it names the limit and says how to raise it."""
    error = passed(name, value, limit, attempted=attempted)
    error.hint = _hint(name, limit)
    return error


def too_long(name: str, said: bytes, limit: int, *, attempted: str = "read layer") -> Error:
    """The error for a name, or a symlink's target, that is longer than one of `Limits`.

    One that no system can have is `InvalidArgument`; one that a lowered limit keeps out `ResourceExhausted`.
    """
    error = over_limit(name, len(said), limit, attempted=attempted)
    error.reason += f": {said[:100]!r}"
    if len(said) <= limits_by_name()[name].most:
        return error
    return InvalidArgument(attempted, error.reason, hint=error.hint, details=error.details)


def _hint(name: str, limit: int) -> str:
    about = limits_by_name()[name]
    if limit < about.most:
        return limit_hint(name)
    return f"limits.{name} cannot be raised further ({about.because}): docs/limits.md"
