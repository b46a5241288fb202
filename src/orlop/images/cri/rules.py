"""Names, IDs and users as the Container Runtime Interface tells them.  No I/O.

Sources: k8s.io/cri-api, runtime/v1 (Image, ImageSpec); OCI image-spec, config.md ("User"); and for what a
kubelet compares, containerd's CRI plugin, which the tests ask the same.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from orlop.errors import InvalidArgument
from orlop.spec.reference import Reference

__all__ = ["MAX_ID", "MAX_USERNAME", "id_of", "told_names", "user_of"]

MAX_ID = (1 << 32) - 2  # (uid_t)-1 means "no change" to the kernel, setresuid(2)
MAX_USERNAME = 256  # characters; a longer one is no user's that anybody could look up, cut or not
_ID = re.compile(r"(?:sha256:)?([0-9a-f]{64})")
_DIGITS = re.compile(r"[0-9]+", re.ASCII)


def id_of(text: str) -> str | None:
    """The ID that a text is, with or without its algorithm; None if it is a name, or part of an ID.

    As a name it would be one, too: 64 digits are a repository's, and ``sha256:…`` is one with a tag.

    >>> id_of("a" * 64) == id_of("sha256:" + "a" * 64) == "sha256:" + "a" * 64
    True
    """
    match = _ID.fullmatch(text)
    return f"sha256:{match[1]}" if match else None


def user_of(text: str) -> tuple[int | None, str]:
    """The number or the name of a config's user (``1000``, ``1000:100``, ``name:group``), without the group.

    What is not a user id is told as a name, also if it is a number: whoever has to make sure that an image
    does not run as root refuses a name, and a number too large would pass and become 0 (CVE-2024-40635).

    >>> user_of("1000:100"), user_of("nobody"), user_of(""), user_of("4294967296")
    ((1000, ''), (None, 'nobody'), (None, ''), (None, '4294967296'))
    """
    user = text.partition(":")[0]
    if _DIGITS.fullmatch(user):
        significant = user.lstrip("0") or "0"
        if len(significant) <= 10 and int(significant) <= MAX_ID:
            return int(significant), ""
    return None, user[:MAX_USERNAME]


def told_names(names: Iterable[tuple[str, str | None]]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The names with a tag and those with a digest, of names and what each means (an index, a manifest).

    A name with both is told by its digest: its tag may mean another image by now.
    """
    pairs = list(_told(names))
    tags = dict.fromkeys(tag for tag, _ in pairs if tag)
    digests = dict.fromkeys(digest for _, digest in pairs if digest)
    return tuple(tags), tuple(digests)


def _told(names: Iterable[tuple[str, str | None]]) -> Iterator[tuple[str, str]]:
    for name, target in names:
        try:
            ref = Reference.parse(name)
        except InvalidArgument:  # a row that was never a reference names nothing that anybody could pull
            continue
        if ref.digest is not None:
            yield "", f"{ref.name}@{ref.digest}"
        else:
            yield str(ref), f"{ref.name}@{target}" if target else ""
