"""What clients are shown of the host: answers and errors without the store's own places, and log lines.

Those who may do everything see paths below ROOT and RUN, since mounts are made of them.  Those who may
only look see the words ROOT and RUN in their place, in answers, warnings and errors alike.

Invariant: no line of the log has a control character that a client chose.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from typing import Any, TypeVar

from google.protobuf.message import Message

from orlop.errors import Error

__all__ = ["Veil", "one_line"]

_M = TypeVar("_M", bound=Message)
_CONTROL = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160))}
_MAX_LINE = 2_000  # characters of an error that a log line has


def one_line(text: object) -> str:
    """For a log: no line breaks, no escape sequences, no end of length."""
    said = str(text).translate(_CONTROL)
    return said if len(said) <= _MAX_LINE else f"{said[:_MAX_LINE]}…"


class Veil:
    """Replaces a store's places in texts."""

    def __init__(self, root: str, run: str) -> None:
        words = {os.path.realpath(root): "ROOT", os.path.realpath(run): "RUN", root: "ROOT", run: "RUN"}
        self._words = {place.rstrip("/"): word for place, word in words.items() if place.rstrip("/")}
        longest_first = sorted(self._words, key=len, reverse=True)
        self._places = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")

    def text(self, text: str) -> str:
        """A text without them."""
        return self._places.sub(lambda found: self._words[found[0]], text)

    def message(self, message: _M) -> _M:
        """A message without them, changed in place."""
        _change(message, self.text)
        return message

    def error(self, error: Error) -> Error:
        """An error without them; its cause stays behind."""
        return type(error)(
            self.text(error.attempted),
            self.text(error.reason),
            hint=self.text(error.hint),
            details={self.text(key): self.text(value) for key, value in error.details.items()},
        )


def _change(message: Message, change: Callable[[str], str]) -> None:
    for field, value in message.ListFields():
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            _change_map(value, change)
        elif isinstance(value, str):
            changed = change(value)
            if changed != value:
                setattr(message, field.name, changed)
        elif isinstance(value, Message):
            _change(value, change)
        elif field.message_type is not None:
            for item in value:
                _change(item, change)
        elif field.type == field.TYPE_STRING:
            value[:] = [change(item) for item in value]


def _change_map(value: Any, change: Callable[[str], str]) -> None:  # noqa: ANN401 - protobuf's own container
    for key in list(value):
        if isinstance(value[key], str):
            text, word = value.pop(key), change(key)
            value[word] = change(text)
