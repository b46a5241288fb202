"""Lists that come in pages: a repository's tags, and what other lists need to turn a page.

The next page is where the last one's `Link` says, and only on the registry that was asked: a Link to another
host, scheme or port is refused, so no credential goes there.  Pages in a circle are seen; how many pages,
how many bytes of each and how many tags there may be is in `orlop.config.Limits`.
Sources: distribution-spec, "Listing Tags"; RFC 8288, section 3.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from urllib.parse import urlencode

from orlop.config import Limits, over_limit
from orlop.errors import InvalidArgument, Unavailable
from orlop.observe import Call
from orlop.registry.asking import Asker
from orlop.registry.faults import from_status, redact
from orlop.registry.finding.hosts import origin_of
from orlop.registry.messages import Request, Response, Sender
from orlop.registry.net.redirects import settle
from orlop.spec.documents import parse_json
from orlop.spec.reference import Reference, is_tag
from orlop.values import replace

__all__ = ["follow", "list_tags", "next_page"]

PAGE = 1_000  # entries that a page is asked to have; a registry may give fewer
_LINK = re.compile(r"<([^<>]*)>([^<]*)")
_REL = re.compile(r";\s*rel\s*=\s*(?:\"([^\"]*)\"|([^\s;,\"]+))", re.IGNORECASE)


def next_page(link: str | None) -> str | None:
    """Where a `Link` header says that the next page is, as it is written there.

    >>> next_page('</v2/a/tags/list?last=x&n=2>; rel="next"')
    '/v2/a/tags/list?last=x&n=2'
    """
    for target, parameters in _LINK.findall(link or ""):
        found = _REL.search(parameters)
        if found is not None and "next" in (found[1] or found[2] or "").lower().split():
            return str(target)
    return None


def follow(
    send: Sender, request: Request, response: Response, *, limits: Limits, call: Call
) -> Iterator[Response]:
    """A list's pages, of which ``response`` is the first, each within ``limits.page_size``.

    Raises `Unavailable` for a Link that leads elsewhere or in a circle, `ResourceExhausted` past
    ``limits.pages``, and what `from_status` makes of a page that is not there.
    """
    endpoint, attempted = request.endpoint, request.attempted
    seen = {request.url}
    for _ in range(limits.pages):
        if not response.ok:
            raise from_status(endpoint, response, attempted)
        if len(response.data) > limits.page_size:
            raise over_limit(
                "page_size", f"more than {limits.page_size}", limits.page_size, attempted=attempted
            )
        yield response
        link = next_page(response.headers.get("link"))
        if link is None:
            return
        url = settle(endpoint, response.url, link, attempted)
        if origin_of(url, attempted) != endpoint.origin:
            raise Unavailable(
                attempted, f"{endpoint.host} continues its list on another host: {redact(url)}: not followed"
            )
        if url in seen:
            raise Unavailable(attempted, f"{endpoint.host} lists its pages in a circle")
        seen.add(url)
        response = send(replace(request, url=url), call)
    raise over_limit("pages", f"more than {limits.pages}", limits.pages, attempted=attempted)


def list_tags(
    asker: Asker, ref: Reference, *, last: str | None, count: int | None, limits: Limits, call: Call
) -> list[str]:
    """The tags of a repository in the registry's order, each once: those after ``last``, ``count`` at most.

    What cannot be a tag is left out with a warning.  Raises `NotFound` for an unknown repository,
    `ResourceExhausted` past ``limits.tags`` where no ``count`` was given.
    """
    attempted = f"list the tags of {ref.name}"
    query = {"n": str(min(count or PAGE, PAGE)), **({} if last is None else {"last": last})}
    request, response = asker.ask(
        ref, "GET", f"tags/list?{urlencode(query)}", attempted, call, read=limits.page_size
    )
    tags: dict[str, None] = {}
    strange = 0
    for number, page in enumerate(follow(asker.send, request, response, limits=limits, call=call)):
        names = _tags_of(page, attempted, limits)
        if number == 0 and last in names:
            # A registry without pages ignores where a page is to begin.
            del names[: names.index(last) + 1]
        for name in names:
            if is_tag(name):
                tags[name] = None
            else:
                strange += 1
        if count is not None and len(tags) >= count:
            break
        if len(tags) > limits.tags:
            raise over_limit("tags", f"more than {limits.tags}", limits.tags, attempted=attempted)
    if strange:
        call.observer.warning(f"{ref.name}: left out of the list: {strange} names that cannot be tags")
    return list(tags)[:count]


def _tags_of(page: Response, attempted: str, limits: Limits) -> list[str]:
    document = parse_json(
        page.data, attempted, name="page_size", limit=limits.page_size, depth=limits.json_depth
    )
    names = document.get("tags")
    if names is None:  # of a repository whose tags are all gone
        return []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise InvalidArgument(attempted, "the registry's answer is not a list of tags")
    return names
