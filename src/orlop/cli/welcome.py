"""What `orlop` says without a word to go by: what it is, how to begin, what is here, where help is.

A screen's worth, and as cheap as it looks: the store is asked with two counts, where there is one, and is
neither opened nor made.  What cannot be found out so is left out; `orlop doctor` finds out.
"""

from __future__ import annotations

import os
import re

from orlop.cli.colours import paint
from orlop.cli.frontpage import VERBS

TYPE_CHECKING = False  # `typing` is more than this page takes
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import TextIO

__all__ = ["here", "page", "place_here"]

_ROOT = (
    ("orlop pull alpine", "fetch an image"),
    ("orlop run alpine echo hello", "run a command in it"),
    ("orlop prepare --mount alpine /srv/a", "have its root file system at /srv/a"),
    ("orlop commit /srv/a localhost/mine", "make an image of what changed"),
    ("orlop cleanup /srv/a", "take the root away; the images stay"),
)
_USER = (
    ("orlop pull alpine", "fetch an image"),
    ("orlop run alpine echo hello", "run a command in it"),
    ("orlop ls alpine /etc", "look into it; nothing is mounted"),
    ("orlop cp alpine:/etc/os-release .", "copy files out of it"),
    ("orlop unshare", "a shell in which roots can be mounted"),
)
_MORE = (
    ("orlop --help", "all verbs, options and exit codes"),
    ("orlop VERB --help", "one verb, with examples"),
    ("orlop doctor", "what works here, and what to do if not"),
    ("orlop completion bash", "completion; zsh and fish have it, too"),
)
ROOTS_OWN = "/var/lib/orlop"  # `orlop.facade.DEFAULT_ROOT`, whose import costs as much as this page
_BUSY = 0.2  # seconds that a count waits for a database
_SETS_PLACE = re.compile(rb"^\s*(root|host)\s*=", re.MULTILINE)


def here(*, root: str | None = None, host: str | None = None) -> str:
    """The page for this process; ``root`` and ``host`` are as options say."""
    import sys

    from orlop.version import __version__

    uid = os.geteuid()
    place = place_here(os.environ, uid, root=root, host=host)
    return page(__version__, place, user=uid != 0, stream=sys.stdout)


def page(version: str, place: str, *, user: bool, stream: TextIO | None = None) -> str:
    """The page.  ``place`` is what is here (`place_here`), ``user`` whether one is not root."""
    verbs = {verb for table in VERBS.values() for verb in table}
    more = [row for row in _MORE if row[0].split()[1] in {*verbs, "VERB", "--help"}]
    return "\n".join(
        [
            f"orlop {version}: container images, and root file systems from them.",
            "",
            *_rows(_USER if user else _ROOT, stream),
            "",
            *([place, ""] if place else []),
            *_rows(more, stream),
            "",
        ]
    )


def _rows(rows: tuple[tuple[str, str], ...] | list[tuple[str, str]], stream: TextIO | None) -> list[str]:
    wide = max(len(command) for command, _ in (*_ROOT, *_USER))
    return [
        f"  {paint(command, 'bold', stream)}{' ' * (wide - len(command))}  {text}" for command, text in rows
    ]


def place_here(
    environ: Mapping[str, str], uid: int, *, root: str | None = None, host: str | None = None
) -> str:
    """A line about the store or the daemon that verbs would go to; ``root`` and ``host`` are as options say.

    Empty where a configuration cannot be read: `orlop doctor` and every other verb say why.
    """
    from orlop.cli.exits import one_line

    host = host or (None if root else environ.get("ORLOP_HOST"))
    root = root or environ.get("ORLOP_ROOT")
    if host is None and root is None:
        try:
            root, host = _configured(environ, uid)
        except Exception:  # noqa: BLE001 - a page that greets is no place for errors
            return ""
    if host:
        return one_line(f"Verbs ask the daemon at {host}.")
    if root is None:
        from orlop.cli.environment import default_root, whose

        root = ROOTS_OWN if whose(environ, uid) == 0 else default_root(environ, uid)
    return one_line(_store(root))


def _configured(environ: Mapping[str, str], uid: int) -> tuple[str | None, str | None]:
    """What configuration files say of root and host, if a look at their lines says that they say it."""
    from orlop.cli.environment import config_files

    named = environ.get("ORLOP_CONFIG")
    for path in (named,) if named else config_files(environ):
        try:
            with open(path, "rb") as file:
                said = _SETS_PLACE.search(file.read())
        except OSError:
            continue
        if said:
            from orlop.cli.configuration import configured

            found = configured(named, environ, uid)
            return found.get("root") or None, found.get("host") or None
    return None, None


def _store(root: str) -> str:
    """What is in the store at a path."""
    database = os.path.join(root, "meta.db")
    try:
        os.stat(database)
    except FileNotFoundError:
        return f"There is no store yet: the first pull makes it at {root}."
    except OSError as exc:
        return f"The store {root} cannot be looked at: {exc.strerror}."
    counted = _counts(database)
    if counted is None:
        return f"The store is {root}."
    images, roots = counted
    return f"The store {root} has {_count(images, 'image')} and {_count(roots, 'prepared root')}."


def _counts(database: str) -> tuple[int, int] | None:
    import sqlite3
    from contextlib import closing

    path = os.path.abspath(database)
    for char in "%?#":
        path = path.replace(char, f"%{ord(char):02x}")
    try:
        # Not mode=ro, which leaves the files of the log behind that it made to look into it.
        uri = f"file:{path}?mode=rw"
        with closing(sqlite3.connect(uri, uri=True, timeout=_BUSY)) as connection:
            images = connection.execute("SELECT COUNT(*) FROM images WHERE namespace = 'default'").fetchone()
            roots = connection.execute("SELECT COUNT(*) FROM prepared").fetchone()
    except (sqlite3.Error, ValueError):  # busy, of another version, no text: what is not known is not said
        return None
    return int(images[0]), int(roots[0])


def _count(number: int, what: str) -> str:
    return f"{number or 'no'} {what}{'' if number == 1 else 's'}"
