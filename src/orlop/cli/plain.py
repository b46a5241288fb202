"""Runs a command whose words are plain by what `declared` knows of it, without click.

Plain are words that can mean one thing alone: known options, each with its value; as many arguments as are
wanted; numbers and choices as they are written in the help.  All else (``--help``, a mistake, clustered
letters, a verb of click's own, a completion) is `NotPlain`, which is found out before anything is done, and
is click's to understand, or to explain.  What is understood here means what it means to click: a test holds
the two together over many command lines.

`Context` has what our functions ask of click's: where a value came from, defaults that files give, the
session.
"""

from __future__ import annotations

import os
import sys

from orlop.errors import from_oserror

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from orlop.cli.declared import Declared, Verb

__all__ = ["Context", "NotPlain", "parse", "run"]

_UNSET: Any = object()  # no value from anywhere
# What `parse` can do: the words that options and arguments may be declared with.
_KNOWN = {
    *("envvar", "help", "metavar", "multiple", "is_flag", "default", "type", "callback", "is_eager"),
    *("expose_value", "show_default", "show_choices", "show_envvar", "nargs", "required", "hidden"),
    *("shell_complete",),
}
_TRUE, _FALSE = {"1", "true", "yes", "on"}, {"0", "false", "no", "off"}


class NotPlain(Exception):
    """Words for click."""


class Source:
    """Where a value came from, by the name that click has for it."""

    def __init__(self, name: str) -> None:
        self.name = name


COMMANDLINE, ENVIRONMENT, DEFAULT_MAP, DEFAULT = map(
    Source, ("COMMANDLINE", "ENVIRONMENT", "DEFAULT_MAP", "DEFAULT")
)


class Known:
    """A verb as `Context.command` has it."""

    def __init__(self, verb: Verb) -> None:
        self.params = verb.declared
        if "cls" in verb.attrs:
            self.commands: dict[str, Any] = {}  # as click's groups have


class Context:
    """One run of a verb, with the names of click's that our functions use."""

    resilient_parsing = False

    def __init__(self, verb: Verb, name: str, obj: object, parent: Context | None = None) -> None:
        self.command = Known(verb)
        self.info_name = name
        self.parent = parent
        self.obj = obj
        self.meta: dict[str, Any] = parent.meta if parent else {}
        self.params: dict[str, Any] = {}
        self.invoked_subcommand: str | None = None
        defaults = (parent.default_map or {}).get(name) if parent else None
        self.default_map: dict[str, Any] | None = defaults
        self._sources: dict[str, Source] = {}

    @property
    def command_path(self) -> str:
        """The words that lead here."""
        return f"{self.parent.command_path} {self.info_name}" if self.parent else self.info_name

    def get_parameter_source(self, name: str) -> Any:  # noqa: ANN401
        """Where a parameter's value came from."""
        return self._sources.get(name)

    def ensure_object(self, kind: type) -> Any:  # noqa: ANN401
        """The session."""
        return self.find_object(kind)

    def find_object(self, kind: type) -> Any:  # noqa: ANN401
        """The session."""
        assert isinstance(self.obj, kind)
        return self.obj

    def find_root(self) -> Context:
        """Of the command of all."""
        return self.parent.find_root() if self.parent else self

    def take(self, given: list[tuple[Declared, Any]], declared: Sequence[Declared]) -> None:
        """Give each parameter its value, in click's order: those that are eager first, then as they came."""
        order: dict[Declared, int] = {}
        values: dict[Declared, Any] = {}
        for number, (one, value) in enumerate(given):
            order.setdefault(one, number)
            if one.attrs.get("multiple"):
                values.setdefault(one, []).append(value)
            else:
                values[one] = value
        last = len(given)
        ordered = sorted(declared, key=lambda one: (not one.attrs.get("is_eager"), order.get(one, last)))
        for one in ordered:
            if one.kind == "version":
                continue
            value, source = self._value(one, values)
            self._sources[one.name] = source
            callback = one.attrs.get("callback")
            if callback is not None:
                value = callback(self, one, value)
            if one.attrs.get("expose_value", True):
                self.params[one.name] = value

    def _value(self, one: Declared, values: dict[Declared, Any]) -> tuple[Any, Source]:
        value, source = values.get(one, _UNSET), COMMANDLINE
        if value is _UNSET and one.envvar:
            text, source = os.environ.get(one.envvar, ""), ENVIRONMENT
            if text:
                value = text
        if value is _UNSET and self.default_map and one.name in self.default_map:
            value, source = self.default_map[one.name], DEFAULT_MAP
        if value is _UNSET:
            value, source = one.attrs.get("default", _UNSET), DEFAULT
        if source is not COMMANDLINE and value is not _UNSET and value is not None:
            value = _said(one, value)
        if value is _UNSET or value is None:
            if one.attrs.get("multiple") or one.attrs.get("nargs") == -1:
                return (), source
            if _is_flag(one) and value is _UNSET:
                return False, source
            if one.attrs.get("required") and one.kind == "option":
                raise NotPlain
            return None, source
        return tuple(value) if one.attrs.get("multiple") else value, source


def _said(one: Declared, value: Any) -> Any:  # noqa: ANN401
    """The value of what a variable, a file or a default says."""
    if _is_flag(one):
        if isinstance(value, bool):
            return value
        word = str(value).lower()
        if word in _TRUE | _FALSE:
            return word in _TRUE
        raise NotPlain
    if one.attrs.get("multiple"):
        parts = value.split() if isinstance(value, str) else value
        if not isinstance(parts, (list, tuple)):
            raise NotPlain
        return [_converted(one, part) for part in parts]
    return _converted(one, value)


def _converted(one: Declared, value: Any) -> Any:  # noqa: ANN401
    kind = one.attrs.get("type")
    if kind is not None and not isinstance(value, str):
        if isinstance(value, int) and not isinstance(value, bool):
            value = str(value)
        else:
            raise NotPlain
    if kind is None:
        default = one.attrs.get("default")
        if not isinstance(value, str) or (default is not None and not isinstance(default, (str, tuple))):
            raise NotPlain
        return value
    if not hasattr(kind, "take"):
        raise NotPlain
    taken = kind.take(value)
    if taken is None:
        raise NotPlain
    return taken


def _is_flag(one: Declared) -> bool:
    """Whether it takes no value; ``--x/--no-x`` is one, too."""
    return bool(one.attrs.get("is_flag")) or any("/" in word for word in one.opts)


def _table(declared: Sequence[Declared]) -> dict[str, tuple[Declared, Any]]:
    """Options by how they are written, with the value that a flag has."""
    found: dict[str, tuple[Declared, Any]] = {}
    for one in declared:
        if not set(one.attrs) <= _KNOWN:
            if one.kind == "version":
                continue
            raise NotPlain
        if one.attrs.get("nargs", 1) != 1 and one.kind == "option":
            raise NotPlain
        flag = _is_flag(one)
        for word in one.opts:
            yes, _, no = word.partition("/")
            found[yes.strip()] = (one, True if flag else _UNSET)
            if no:
                found[no.strip()] = (one, False)
    return found


def parse(
    declared: Sequence[Declared], words: Sequence[str], *, stops: bool = False
) -> tuple[list[tuple[Declared, Any]], list[str]]:
    """The values of options and arguments, in the order in which click has them, and the words that are left.

    With ``stops`` the first word that is no option ends them (a verb, a command to run).  Raises `NotPlain`.
    """
    options = _table(declared)
    given: list[tuple[Declared, Any]] = []
    rest: list[str] = []
    left = list(reversed(words))
    while left:
        word = left.pop()
        if word == "--":
            if stops:
                raise NotPlain
            rest += reversed(left)
            break
        if word[:1] != "-" or word == "-":
            rest.append(word)
            if stops:
                rest += reversed(left)
                break
            continue
        name, equals, value = word.partition("=") if word[:2] == "--" else (word, "", "")
        one, constant = options.get(name, (None, None))
        if one is None:
            raise NotPlain
        if constant is not _UNSET:
            if equals:
                raise NotPlain
            given.append((one, constant))
            continue
        if not equals:
            if not left or left[-1][:1] == "-":
                raise NotPlain
            value = left.pop()
        given.append((one, _converted(one, value)))
    arguments = [one for one in declared if one.kind == "argument"]
    if stops and not arguments:
        return given, rest
    return given + _placed(arguments, rest), []


def _placed(arguments: Sequence[Declared], words: list[str]) -> list[tuple[Declared, Any]]:
    """Each argument with its word, or the last with all that are left."""
    found: list[tuple[Declared, Any]] = []
    if "" in words:
        raise NotPlain
    for place, one in enumerate(arguments):
        nargs = one.attrs.get("nargs", 1)
        needed = one.attrs.get("required", nargs == 1 and "default" not in one.attrs)
        if nargs == -1 and place == len(arguments) - 1:
            if words:
                found.append((one, tuple(_converted(one, word) for word in words)))
                words = []
            elif needed:
                raise NotPlain
        elif nargs != 1:
            raise NotPlain
        elif words:
            found.append((one, _converted(one, words[0])))
            words = words[1:]
        elif needed:
            raise NotPlain
    if words:
        raise NotPlain
    return found


def run(
    top: Verb, find: Callable[[str], Verb | None], args: Sequence[str], *, program: str, obj: object
) -> object:
    """Run the verb that plain words name, as ``top.main(args)`` of click's would; what it returns.

    ``find`` gives the verb of a name, or None for one that is click's own.  Raises `NotPlain`, and whatever
    the verb raises.
    """
    if f"_{program.upper()}_COMPLETE" in os.environ:
        raise NotPlain
    given, rest = parse(top.declared, args, stops=True)
    verb = find(rest[0]) if rest else None
    if verb is None or not set(verb.attrs) <= {"epilog", "help", "context_settings"}:
        raise NotPlain
    settings = verb.attrs.get("context_settings", {})
    if not set(settings) <= {"allow_interspersed_args", "help_option_names"}:
        raise NotPlain
    stops = not settings.get("allow_interspersed_args", True)
    of_verb, _ = parse(verb.declared, rest[1:], stops=stops)
    try:
        context = Context(top, program, obj)
        context.take(given, top.declared)
        context.invoked_subcommand = rest[0]
        _call(top, context)
        inner = Context(verb, rest[0], obj, context)
        inner.take(of_verb, verb.declared)
        return _call(verb, inner)
    except OSError as exc:
        raise from_oserror(rest[0], exc) from exc
    except KeyboardInterrupt:
        sys.stderr.write("\n")  # as click does: below the ^C of the terminal
        raise


def _call(verb: Verb, context: Context) -> object:
    function = verb.function
    handed = getattr(function, "handed", None)
    if handed is None:
        return function(**context.params)
    inner: Callable[..., object] = function.__wrapped__  # type: ignore[attr-defined]
    return inner(handed(context), **context.params)
