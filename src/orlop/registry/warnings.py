"""The `Warning` header, parsed.  No I/O.

Source: distribution-spec 1.1, "Warnings"; RFC 7234, section 5.5.  Only what the specification describes is a
warning: code 299, agent ``-``, no date; caches' own codes (110 and the like) are not for users.
"""

from __future__ import annotations

import re

__all__ = ["parse_warnings"]

MAX_BYTES = 4_096  # of all warnings of an answer; a registry must not send more
MAX_WARNINGS = 16

_WARNING = re.compile(r'\s*(?:(\d{3})\s+(\S+)\s+"((?:[^"\\]|\\.)*)"(\s+"[^"]*")?)\s*(?:,|$)', re.DOTALL)
_QUOTED_PAIR = re.compile(r"\\(.)", re.DOTALL)


def parse_warnings(header: str) -> list[str]:
    r"""The texts of a Warning header (several headers joined by commas); what is none ends the parsing.

    >>> parse_warnings('299 - "Old \\"tag\\".", 299 - "Going away."')
    ['Old "tag".', 'Going away.']
    """
    header, at, found = header[:MAX_BYTES], 0, list[str]()
    while len(found) < MAX_WARNINGS and (match := _WARNING.match(header, at)) and match.end() > at:
        code, agent, text, date = match.groups()
        if code == "299" and agent == "-" and date is None:
            found.append(_QUOTED_PAIR.sub(r"\1", text))
        at = match.end()
    return found
