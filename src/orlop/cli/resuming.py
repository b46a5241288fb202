"""What a call that was interrupted leaves, and how to go on: one sentence for each verb.

Each is a promise of the verb's own that tests hold; figures come from the store where it gave some, else from
what was seen of the progress.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from orlop.cli.board import Board
from orlop.cli.output import size_text
from orlop.errors import Error

__all__ = ["left_by"]

_Say = Callable[[Sequence[str], Error, Board], str]


def left_by(words: Sequence[str], exc: Error, board: Board) -> str:
    """What is left by a call that ``exc`` ended; ``words`` are its verb and what it was about, or nothing."""
    say = _VERBS.get(words[0]) if words else None
    return say(words[1:], exc, board) if say is not None else f"{exc.attempted}: {exc.reason}"


def _fetched(exc: Error, board: Board) -> tuple[int, int]:
    """Bytes that are kept of those that were to be fetched, and all of these."""
    if "wanted" in exc.details:
        return int(exc.details["kept"]), int(exc.details["wanted"])
    return board.kept()


def _pull(names: Sequence[str], exc: Error, board: Board) -> str:
    import shlex

    kept, wanted = _fetched(exc, board)
    command = f"orlop pull {' '.join(map(shlex.quote, names))}"
    if not kept:
        return f"nothing came this time, `{command}` tries again"
    return f"{size_text(kept)} of {size_text(wanted)} are kept, `{command}` goes on from there"


def _fetch(names: Sequence[str], exc: Error, board: Board) -> str:
    kept, wanted = _fetched(exc, board)
    if not kept:
        return "nothing came this time, the same command tries again"
    return f"{size_text(kept)} of {size_text(wanted)} are kept, the same command goes on from there"


def _root(names: Sequence[str], exc: Error, board: Board) -> str:
    kept, wanted = _fetched(exc, board)
    if not kept:
        return "no root was made"
    fetched = f"{size_text(kept)} of {size_text(wanted)}"
    return f"no root was made; {fetched} of the image are kept, the same command goes on from there"


def _run(names: Sequence[str], exc: Error, board: Board) -> str:
    kept, wanted = _fetched(exc, board)
    if not kept:
        return "nothing ran"
    fetched = f"{size_text(kept)} of {size_text(wanted)}"
    return f"nothing ran; {fetched} of the image are kept, the same command goes on from there"


def _send(names: Sequence[str], exc: Error, board: Board) -> str:
    count = board.over
    if not count:
        return "no blob was sent whole, the same command tries again"
    sent = f"{count} of {board.number} blobs ({size_text(board.over_bytes)})"
    return f"{sent} are at the registry, the same command sends the rest"


def _import(names: Sequence[str], exc: Error, board: Board) -> str:
    if not board.over:
        return "no image was made"
    there = f"{board.over} of {board.number} layers are in the store"
    return f"no image was made; {there}, the same command goes on with the rest"


def _export(names: Sequence[str], exc: Error, board: Board) -> str:
    return f"nothing is left of it at {names[0]}" if names else "what was written is not whole"


def _text(text: str) -> _Say:
    return lambda names, exc, board: text.format(*names)


_VERBS: dict[str, _Say] = {
    "pull": _pull,
    "fetch-blobs": _fetch,
    "artifact pull": _fetch,
    "prepare": _root,
    "run": _run,
    "push": _send,
    "copy": _send,
    "artifact push": _send,
    "import": _import,
    "export": _export,
    "commit": _text("no image was made, and {0} is as it was"),
    "fork": _text("no root was made, and {0} is as it was"),
    "checkpoint": _text("no checkpoint was made, and {0} is as it was"),
    "check": _text("nothing was changed"),
    "repair": _text("what was mended stays, the same command goes on with the rest"),
    "gc": _text("what is deleted stays deleted, the same command goes on with the rest"),
    "cleanup": _text("each root is gone or as it was, the same command goes on with the rest"),
    "backup": _text("no backup was made"),
    "restore": _text("no image was restored"),
}
