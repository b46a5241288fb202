"""The WWW-Authenticate header, parsed.  No I/O, and no opinion on what to do about it.

Source: RFC 9110, sections 11.2 to 11.6.1.  Several challenges may share one header, separated by the
same commas as their parameters; values may be quoted and then hold commas themselves.  More is
allowed in an unquoted value than the RFC does, for realms that someone forgot to quote.  What cannot
be understood ends the parsing: the challenges before it stand.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from orlop.values import dataclass

__all__ = ["MAX_HEADER", "Challenge", "parse_challenges"]

MAX_HEADER = 16_384  # characters looked at; http.client itself allows 65,536 a line

_TCHAR = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_SCHEME = re.compile(rf"[\s,]*({_TCHAR})(?=[\s,]|$)")
_PARAM = re.compile(rf'[\s,]*({_TCHAR})\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s,"=][^\s,"]*))', re.DOTALL)
_TOKEN68 = re.compile(r"[ \t]+[A-Za-z0-9._~+/-]+=*[ \t]*(?=,|$)")
_QUOTED_PAIR = re.compile(r"\\(.)", re.DOTALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class Challenge:
    """One challenge: its scheme and its parameters' names in lower case, the first of equals kept."""

    scheme: str
    params: Mapping[str, str]


def parse_challenges(header: str) -> tuple[Challenge, ...]:
    """The challenges of a WWW-Authenticate header (several headers joined by commas).

    >>> parse_challenges('Bearer realm="https://a/t",scope="x:pull,push"')[0].params["scope"]
    'x:pull,push'
    """
    header = header[:MAX_HEADER]
    found: list[Challenge] = []
    at = 0
    while match := _SCHEME.match(header, at):
        at = match.end()
        params: dict[str, str] = {}
        while param := _PARAM.match(header, at):
            name, quoted, plain = param.groups()
            params.setdefault(name.lower(), plain if quoted is None else _QUOTED_PAIR.sub(r"\1", quoted))
            at = param.end()
        if not params and (token := _TOKEN68.match(header, at)):
            at = token.end()
        found.append(Challenge(scheme=match[1].lower(), params=params))
    return tuple(found)
