"""Image references: the names people type, parsed once.

Sources: distribution-spec ("Pulling manifests") for the grammar of repository, tag and digest;
Docker's rules for short names (``alpine`` is ``docker.io/library/alpine:latest``).
"""

from __future__ import annotations

import re

from orlop.errors import InvalidArgument
from orlop.spec.digest import Digest
from orlop.values import dataclass, replace

__all__ = ["DEFAULT_REGISTRY", "DEFAULT_TAG", "Reference", "is_short", "is_tag"]

DEFAULT_REGISTRY = "docker.io"
DEFAULT_TAG = "latest"
MAX_NAME = 255  # distribution's own limit on registry and repository together

_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_REPOSITORY = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_HOST = re.compile(
    r"(?:[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?(?:\.[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?)*"
    r"|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """Registry, repository, and a tag, a digest, or both.

    ``str()`` gives the full, canonical text, which is also the name under which an image is kept.

    >>> str(Reference.parse("alpine"))
    'docker.io/library/alpine:latest'
    >>> Reference.parse("127.0.0.1:5000/a/b").registry
    '127.0.0.1:5000'
    """

    registry: str
    repository: str
    tag: str | None = None
    digest: Digest | None = None

    @classmethod
    def parse(cls, text: str) -> Reference:
        """Parse what a user typed.

        Raises `InvalidArgument`, saying which part is wrong.
        """
        attempted = f"parse image name {text[:300]!r}"
        rest, at, digest_text = text.partition("@")
        digest = Digest(digest_text) if at else None
        registry, repository, tag = _split(rest)
        if not repository:
            raise InvalidArgument(attempted, "the repository is empty")
        if not _HOST.fullmatch(registry):
            raise InvalidArgument(attempted, f"not a registry host: {registry!r}")
        if not _REPOSITORY.fullmatch(repository):
            hint = "repository names are lower case" if repository != repository.lower() else ""
            raise InvalidArgument(attempted, f"not a repository name: {repository!r}", hint=hint)
        if len(registry) + 1 + len(repository) > MAX_NAME:
            raise InvalidArgument(attempted, f"a name may have at most {MAX_NAME} characters")
        if tag is not None and not _TAG.fullmatch(tag):
            raise InvalidArgument(attempted, f"not a tag: {tag!r}")
        if tag is None and digest is None:
            tag = DEFAULT_TAG
        return cls(registry=registry, repository=repository, tag=tag, digest=digest)

    @property
    def name(self) -> str:
        """Registry and repository, without tag or digest."""
        return f"{self.registry}/{self.repository}"

    @property
    def target(self) -> str:
        """What a registry is asked for: the digest where there is one, else the tag."""
        return self.digest or self.tag or DEFAULT_TAG

    def with_digest(self, digest: Digest) -> Reference:
        """The same repository, by digest alone."""
        return replace(self, tag=None, digest=digest)

    def __str__(self) -> str:
        text = self.name
        if self.tag is not None:
            text += f":{self.tag}"
        if self.digest is not None:
            text += f"@{self.digest}"
        return text


def is_short(text: str) -> bool:
    """Whether a name says no registry, so that by Docker's rules it is one of Docker Hub's.

    >>> is_short("alpine:3"), is_short("user/app"), is_short("localhost/app"), is_short("r.example/app")
    (True, True, False, False)
    """
    return not _has_registry(text.partition("@")[0])


def is_tag(text: str) -> bool:
    """Whether a text can be a tag (distribution-spec, "Pulling manifests")."""
    return _TAG.fullmatch(text) is not None


def _has_registry(text: str) -> bool:
    first, slash, _ = text.partition("/")
    return bool(slash) and ("." in first or ":" in first or first == "localhost")


def _split(text: str) -> tuple[str, str, str | None]:
    """Registry, repository and tag of a name without its digest, by Docker's rules."""
    first, _, rest = text.partition("/")
    if _has_registry(text):
        registry, repository = first, rest
    else:
        registry, repository = DEFAULT_REGISTRY, text
    repository, colon, tag = repository.partition(":")
    if registry in ("index.docker.io", "registry-1.docker.io"):
        registry = DEFAULT_REGISTRY
    if registry == DEFAULT_REGISTRY and repository and "/" not in repository:
        repository = f"library/{repository}"
    return registry, repository, tag if colon else None
