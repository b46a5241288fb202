"""What a user's words mean for the verbs on registries: repositories, destinations, platforms.  No I/O."""

from __future__ import annotations

from orlop.errors import InvalidArgument, NotFound
from orlop.spec.documents import Descriptor, Index
from orlop.spec.platform import Platform
from orlop.spec.reference import Reference, is_tag
from orlop.values import replace

__all__ = ["check_texts", "choose", "destinations", "has_tag", "repository_of"]

_OFFERED = 20  # platforms that an error lists


def check_texts(attempted: str, *texts: str | None) -> None:
    """Refuse what cannot be written as UTF-8: it came from a command line that is no text."""
    for text in texts:
        try:
            (text or "").encode()
        except UnicodeEncodeError as exc:
            raise InvalidArgument(attempted, f"not valid UTF-8: {text!a:.200}") from exc


def repository_of(text: str) -> Reference:
    """A repository alone.  Raises `InvalidArgument` for a name with a tag or a digest.

    >>> repository_of("alpine").name
    'docker.io/library/alpine'
    """
    ref = Reference.parse(text)
    if ref.digest is not None or has_tag(text):
        raise InvalidArgument(
            f"use repository {text[:300]!r}", "it has a tag or a digest", hint=f"write {ref.name}"
        )
    return ref


def has_tag(text: str) -> bool:
    """Whether a name says a tag, where others mean ``latest`` without saying it.

    >>> has_tag("localhost:5000/a"), has_tag("a:latest")
    (False, True)
    """
    return ":" in text.partition("@")[0].rpartition("/")[2]


def destinations(destination: str, tags: tuple[str, ...], attempted: str) -> tuple[Reference, ...]:
    """Where a copy goes: the destination, then its repository's further tags, each once."""
    first = Reference.parse(destination)
    for tag in tags:
        if not is_tag(tag):
            raise InvalidArgument(attempted, f"not a tag: {tag[:200]!r}")
    rest = (replace(first, tag=tag, digest=None) for tag in tags)
    return tuple(dict.fromkeys((first, *rest)))


def choose(index: Index, wanted: Platform, attempted: str) -> Descriptor:
    """The manifest of an index that serves a platform.  Raises `NotFound`, listing what there is."""
    chosen = index.choose(wanted)
    if chosen is None:
        offered = sorted(
            {str(p)[:100] for d in index.manifests if (p := d.platform_value()) and p.os != "unknown"}
        )
        more = f" and {len(offered) - _OFFERED} more" if len(offered) > _OFFERED else ""
        raise NotFound(
            attempted,
            f"no image for {wanted}; there are {', '.join(offered[:_OFFERED]) or 'none'}{more}",
            hint="choose one with --platform",
        )
    return chosen
