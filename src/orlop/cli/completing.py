"""What a word can go on as: the answers to a shell's question (`orlop.cli.completion` has the question).

A completion is quick, or there is none: no store is made, nothing is fetched, whatever fails is nothing to
say, and after a few seconds the process ends.  What an option or argument completes to goes by its metavar,
so that a new verb has completions before anybody thinks of them; `_OF` has those whose metavar does not tell.

Used by click alone, which parses the line; a start of orlop without a question does not import this.
"""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from itertools import islice

import click
from click.shell_completion import CompletionItem, ShellComplete, add_completion_class, split_arg_string

from orlop.cli.completion import SCRIPTS
from orlop.cli.session import Target, open_store
from orlop.errors import FailedPrecondition
from orlop.hints import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from orlop.cli.session import OpenStore
    from orlop.facade import Store

__all__ = ["answer_with", "dress"]

_SECONDS = 5  # that a shell waits at most
_MOST = 1_000  # answers: a list that is longer helps nobody
_PLATFORMS = ("linux/amd64", "linux/arm64", "linux/arm/v7", "linux/386", "linux/ppc64le", "linux/riscv64")

Item = CompletionItem[str]
Complete = Callable[[click.Context, str], list[Item]]

_opener: OpenStore = open_store


def answer_with(opener: OpenStore) -> None:
    """Make this process one that answers: with our classes for the shells, within some seconds."""
    global _opener  # noqa: PLW0603 - a process answers one question
    _opener = opener
    for cls in (_Bash, _Zsh, _Fish):
        add_completion_class(cls)
    signal.signal(signal.SIGALRM, lambda *_: os._exit(0))
    signal.alarm(int(os.environ.get("_ORLOP_SECONDS", _SECONDS)))  # tests wait for a slow machine


# ------------------------------------------------------------------ shells


class _Shell(ShellComplete):
    """The line is in a variable of our own, up to the cursor; the answer is lines with tabs."""

    name: ClassVar[str]

    def source(self) -> str:
        """The script, as ``orlop completion`` prints it."""
        return SCRIPTS[self.name]

    def get_completion_args(self) -> tuple[list[str], str]:
        """The words before the cursor's, and what there is of that."""
        line = os.environ.get("_ORLOP_LINE", "")
        words = split_arg_string(line)[1:]
        if not words or _is_between(line):
            return words, ""
        return words[:-1], words[-1]

    def get_completions(self, args: list[str], incomplete: str) -> list[Item]:
        """As click's; whatever goes wrong is nothing to say.  Values begin with what was typed."""
        try:
            dress(self.cli)
            found = super().get_completions(args, incomplete)
        except Exception:  # noqa: BLE001 - a line that is being typed is no place for errors
            if "_ORLOP_WHY" in os.environ:
                import traceback

                traceback.print_exc()
            return []
        head, equals, _ = incomplete.partition("=")
        if not (equals and head.startswith("-")):
            return found
        return [_whole(item, f"{head}=", incomplete) for item in found]

    def format_completion(self, item: Item) -> str:
        """A line of the answer."""
        text = " ".join((item.help or "").split())
        return f"{item.type}\t{item.value}\t{text}"

    def complete(self) -> str:
        """All lines; values that are no text of one line are left out."""
        args, incomplete = self.get_completion_args()
        found = [item for item in self.get_completions(args, incomplete) if str(item.value).isprintable()]
        return "".join(f"{self.format_completion(item)}\n" for item in found)


class _Bash(_Shell):
    name = "bash"

    def format_completion(self, item: Item) -> str:
        """Without what stands before the last character that bash breaks words at; quoted for a line."""
        if item.type == "plain":
            value = item.value[len(_unbroken(self.get_completion_args()[1])) :]
            item = CompletionItem(re.sub(r"([^\w@%+=:,./~-])", r"\\\1", value), help=item.help)
        return super().format_completion(item)


class _Zsh(_Shell):
    name = "zsh"


class _Fish(_Shell):
    name = "fish"


def _is_between(line: str) -> bool:
    """Whether a new word begins: after white space that nothing quotes."""
    return line != line.rstrip() and split_arg_string(f"{line}x")[-1] == "x"


def _whole(item: Item, head: str, typed: str) -> Item:
    plain = item.type == "plain" and not str(item.value).startswith(typed)
    return CompletionItem(f"{head}{item.value}", help=item.help) if plain else item


def _unbroken(word: str) -> str:
    """What of a word bash does not complete: all up to a break."""
    breaks = set(os.environ.get("_ORLOP_BREAKS", "")) & {":", "="}
    last = max((word.rfind(char) for char in breaks), default=-1)
    return word[: last + 1]


# ------------------------------------------------------------------ values


def dress(command: click.Command, *path: str) -> click.Command:
    """Have a verb's parameters know what they complete to."""
    for param in command.params:
        said = _OF.get((*path, str(param.name))) or _by_metavar(param)
        if said is not None:
            # Of the instance, as click asks it; its own method is for a function that was declared.
            param.shell_complete = said  # type: ignore[method-assign, assignment]
    for name, inner in getattr(command, "commands", {}).items():
        dress(inner, *path, name)
    return command


def _by_metavar(param: click.Parameter) -> Complete | None:
    metavar = (param.metavar or "").removesuffix("...")
    if metavar.startswith("[") and metavar.endswith("]"):  # it may be left out
        metavar = metavar[1:-1].removesuffix("...")
    if isinstance(param, click.Argument) and metavar in _ARGUMENTS:
        return _ARGUMENTS[metavar]
    return _VALUES.get(metavar)


@contextmanager
def _store(ctx: click.Context) -> Iterator[Store]:
    """The store that the line is about.  Raises where there is none: it is not made."""
    from orlop.cli.configuration import configured

    root = ctx.find_root()
    said = root.params
    found = configured(said.get("config") or os.environ.get("ORLOP_CONFIG"), os.environ, os.geteuid())
    source = root.get_parameter_source("root")
    here = source is not None and source.name == "COMMANDLINE"
    target = Target(
        root=said.get("root") or found.get("root"),
        run=said.get("run") or found.get("run"),
        host=said.get("host") or (None if here else found.get("host")),
        tls_cert=said.get("tls_cert") or found.get("tls_cert"),
        tls_key=said.get("tls_key") or found.get("tls_key"),
        tls_ca=said.get("tls_ca") or found.get("tls_ca"),
        configuration=found,
    )
    if target.host is None and _opener is open_store:
        _check_version(os.path.join(target.root_path, "meta.db"))
    with _opener(target) as store:
        yield store


def _check_version(database: str) -> None:
    """Raise where there is no store, or where opening it would bring it to this version: no Tab does that."""
    import sqlite3
    from urllib.parse import quote

    from orlop.metadata import SCHEMA_VERSION

    os.stat(database)
    with closing(sqlite3.connect(f"file:{quote(database)}?mode=rw", uri=True)) as connection:
        version = connection.execute("PRAGMA user_version").fetchone()[0]
    if version != SCHEMA_VERSION:
        raise FailedPrecondition("complete a word", f"the metadata have version {version}")


def _fitting(values: Iterable[str], text: str) -> list[Item]:
    return [CompletionItem(value) for value in islice((v for v in values if v.startswith(text)), _MOST)]


def _images(ctx: click.Context, text: str) -> list[Item]:
    """Names as people write them, full names where these are begun, IDs where hexadecimal digits are."""
    with _store(ctx) as store:
        found = store.images()
    names = dict.fromkeys(name for image in found for name in _names(image.name, text))
    ids = (
        {image.id.partition(":")[2][:12] for image in found} if re.fullmatch(r"[0-9a-f]{2,}", text) else set()
    )
    return _fitting([*names, *sorted(ids)], text)


def _names(name: str, text: str) -> list[str]:
    short = name.removeprefix("docker.io/library/").removeprefix("docker.io/")
    bare = short.removesuffix(":latest")
    return [bare, short, name] if text else [bare]


def _roots(ctx: click.Context, text: str) -> list[Item]:
    """Paths where roots are prepared."""
    with _store(ctx) as store:
        return _fitting([root.path for root in store.prepared()], text)


def _things(ctx: click.Context, text: str) -> list[Item]:
    """Images, and prepared roots once a path is begun."""
    return _roots(ctx, text) if text.startswith("/") else _images(ctx, text)


def _pins(ctx: click.Context, text: str) -> list[Item]:
    with _store(ctx) as store:
        return _fitting([pin.name for pin in store.pins()], text)


def _shares(ctx: click.Context, text: str) -> list[Item]:
    with _store(ctx) as store:
        return _fitting([share.folder for share in store.shares()], text)


def _checkpoints(ctx: click.Context, text: str) -> list[Item]:
    with _store(ctx) as store:
        return _fitting([point.name for point in store.verbs.checkpoints(ctx.params["path"])], text)


def _inside(name: str) -> Complete:
    """Files of what an argument of that name means."""

    def complete(ctx: click.Context, text: str) -> list[Item]:
        thing = ctx.params.get(name)
        return _files_of(ctx, thing, text) if isinstance(thing, str) else []

    return complete


def _files_of(ctx: click.Context, thing: str, text: str, *, before: str = "") -> list[Item]:
    """What is in the folder of a path that is begun."""
    folder, _, start = text.rpartition("/")
    with _store(ctx) as store, closing(store.ls(thing, os.fsencode(folder or "/"))) as found:
        names = (
            (os.fsdecode(file.path.rpartition(b"/")[2]), file.kind)
            for file in found
            if file.path.rpartition(b"/")[2].startswith(os.fsencode(start))
        )
        prefix = f"{before}{folder}/" if folder or text.startswith("/") else before
        return [
            CompletionItem(f"{prefix}{name}{'/' if kind == 'folder' else ''}")
            for name, kind in islice(names, _MOST)
        ]


def _copied(ctx: click.Context, text: str) -> list[Item]:
    """IMAGE:/PATH and /ROOT:/PATH, or files of this machine."""
    thing, colon, path = text.partition(":/")
    if colon:
        return _files_of(ctx, thing, f"/{path}", before=f"{thing}:")
    if text.startswith("."):
        return _file(ctx, text)
    found = [CompletionItem(f"{item.value}:") for item in _things(ctx, text)]
    return found or _file(ctx, text)


def _command(ctx: click.Context, text: str) -> list[Item]:
    """A program of the image that is run, once its path is begun."""
    image = ctx.params.get("image")
    return _files_of(ctx, image, text) if isinstance(image, str) and text.startswith("/") else []


def _words(*words: str) -> Complete:
    return lambda ctx, text: _fitting(words, text)


def _file(ctx: click.Context, text: str) -> list[Item]:
    return [CompletionItem(text, type="file")]


def _dir(ctx: click.Context, text: str) -> list[Item]:
    return [CompletionItem(text, type="dir")]


def _nothing(ctx: click.Context, text: str) -> list[Item]:
    return []


def _kinds(ctx: click.Context, text: str) -> list[Item]:
    from orlop.images.events import EVENT_KINDS

    groups = dict.fromkeys(kind.partition(".")[0] for kind in EVENT_KINDS)
    return _fitting([*groups, *EVENT_KINDS], text)


def _limits(ctx: click.Context, text: str) -> list[Item]:
    from orlop.config import DEFAULT_LIMITS

    return _fitting([f"{name}=" for name in DEFAULT_LIMITS.as_dict()], text)


def _keys(ctx: click.Context, text: str) -> list[Item]:
    from orlop.config.keys import keys

    return _fitting([*keys()], text)


def _settings(ctx: click.Context, text: str) -> list[Item]:
    from orlop.config.keys import keys

    return _fitting([f"{key}=" for key in keys()], text)


def _filters(*keys: str) -> Complete:
    return _words(*(f"{key}=" for key in keys))


# Of an argument, by its metavar without brackets and dots.
_ARGUMENTS: dict[str, Complete] = {
    "IMAGE": _images,
    "IMAGE|PATH": _things,
    "IMAGE...|PATH": _things,
    "PATH": _roots,
    "THING": _things,
    "OLD": _things,
    "NEW": _things,
    "SRC": _copied,
    "DEST": _copied,
    "DIR": _dir,
}
# Of an option, or of either.
_VALUES: dict[str, Complete] = {
    "IMAGE": _images,
    "DIR": _dir,
    "FILE": _file,
    "FOLDER": _dir,
    "FILE|FOLDER|-": _file,
    "FILE:MEDIA_TYPE": _file,
    "FILE[:MEDIA_TYPE]": _file,
    "PROGRAM": _file,
    "FORM": _words("table", "json", "name"),
    "OS/ARCH[/VARIANT]": _words(*_PLATFORMS),
    "PATH": _dir,
}
# Where the metavar does not tell: verb, perhaps one below it, and the parameter's name.
_OF: dict[tuple[str, ...], Complete] = {
    ("backup", "destination"): _file,
    ("blame", "path"): _inside("thing"),
    ("blame", "thing"): _things,
    ("bundle", "folder"): _dir,
    ("cat", "paths"): _inside("thing"),
    ("cat", "thing"): _things,
    ("checkpoint", "create", "name"): _nothing,
    ("checkpoint", "drop", "names"): _checkpoints,
    ("checkpoint", "rollback", "name"): _checkpoints,
    ("config", "show", "names"): _keys,
    ("copy", "destination"): _images,
    ("copy", "source"): _images,
    ("diff", "path"): _inside("new"),
    ("events", "kinds"): _kinds,
    ("find", "kinds"): _words("f", "d", "l", "c", "b", "p"),
    ("find", "words"): _things,
    ("fork", "new_paths"): _dir,
    ("images", "filters"): _filters("reference", "label", "platform", "id", "dangling"),
    ("images", "patterns"): _images,
    ("import", "source"): _file,
    ("ls", "paths"): _inside("thing"),
    ("ls", "thing"): _things,
    ("manifest", "name"): _images,
    ("limits",): _limits,
    ("prepare", "path"): _dir,
    ("ps", "filters"): _filters("image", "path", "label", "driver", "kind", "mounted"),
    ("push", "destination"): _images,
    ("restore", "source"): _file,
    ("run", "command"): _command,
    ("run", "volumes"): _dir,
    ("share", "drop", "folders"): _shares,
    ("share", "renew", "folders"): _shares,
    ("tag", "name"): _images,
    ("told",): _settings,
    ("tree", "path"): _inside("thing"),
    ("tree", "thing"): _things,
    ("unpin", "names"): _pins,
    ("unshare", "command"): _file,
}
