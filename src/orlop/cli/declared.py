"""click's words for options, arguments and verbs: ``from orlop.cli import declared as click``.

What click is told by its decorators is kept as data here, and click is told when somebody asks for it: by
``--help``, by a mistake, by a completion.  A start that needs none of these reads its words by the same data
(`orlop.cli.plain`), and spares click's import, which took a third of a short command.  So there is one
declaration of each option, whoever reads it.

A verb that has options of click's own among those declared here is click's, as ever.  Whatever else click
has (``click.Context``, ``click.prompt``) is imported from it when it is used.
"""

from __future__ import annotations

from functools import update_wrapper

TYPE_CHECKING = False  # `typing` is a tenth of a short command
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from typing import Any

    from click import (
        UNPROCESSED,
        BadParameter,
        Choice,
        Command,
        Context,
        Group,
        IntRange,
        NoSuchOption,
        Option,
        Parameter,
        Path,
        UsageError,
        argument,
        command,
        get_current_context,
        group,
        make_pass_decorator,
        option,
        pass_context,
        prompt,
        version_option,
    )

__all__ = [
    "UNPROCESSED",
    "BadParameter",
    "Choice",
    "Command",
    "Context",
    "Declared",
    "Group",
    "IntRange",
    "NoSuchOption",
    "Option",
    "Parameter",
    "Path",
    "UsageError",
    "Verb",
    "argument",
    "clicks",
    "command",
    "get_current_context",
    "group",
    "is_group",
    "late_class",
    "make_pass_decorator",
    "option",
    "pass_context",
    "prompt",
    "source_of",
    "version_option",
]


def __getattr__(name: str) -> Any:  # noqa: ANN401 - whatever click has
    """What is not here is click's."""
    if name.startswith("__"):
        raise AttributeError(name)
    import click

    return getattr(click, name)


class Kind:
    """A type of values: click's class of the name, and what it is given."""

    def __init__(self, name: str, args: tuple[Any, ...], words: dict[str, Any]) -> None:
        self.name, self.args, self.words = name, args, words

    def click(self) -> Any:  # noqa: ANN401
        """Click's."""
        import click

        return getattr(click, self.name)(*self.args, **self.words)

    def take(self, text: str) -> Any:  # noqa: ANN401
        """The value of a text, or None for one that is not plainly of this type."""
        if self.name == "Choice":
            return text if text in self.args[0] and not self.words else None
        if self.name == "Path":
            return None if self.args or self.words else text
        if not (text.isascii() and text.isdigit() and len(text) < _DIGITS):
            return None
        least, most = (*self.args, None, None)[:2]
        least, most = self.words.get("min", least), self.words.get("max", most)
        number = int(text)
        fits = (least is None or least <= number) and (most is None or number <= most)
        return number if fits and set(self.words) <= {"min", "max"} else None


_DIGITS = 19  # of a number that nobody need think about


class Declared:
    """One option or argument, as `option` and `argument` were told."""

    def __init__(self, kind: str, words: tuple[str, ...], attrs: dict[str, Any]) -> None:
        self.kind, self.words, self.attrs = kind, words, attrs
        self.opts = [word for word in words if word[0] == "-"] if kind == "option" else []
        names = [word for word in words if word[0] != "-"]
        longest = next((word for word in self.opts if word[:2] == "--"), (self.opts or names or [""])[0])
        self.name = names[0] if names else longest.partition("/")[0].strip("-").strip().replace("-", "_")

    @property
    def envvar(self) -> str | None:
        """The variable that has its value where the command line has none."""
        return self.attrs.get("envvar")

    def click(self) -> Any:  # noqa: ANN401
        """As click has it."""
        import click

        attrs = self.attrs
        if isinstance(attrs.get("type"), Kind):
            attrs = {**attrs, "type": attrs["type"].click()}
        if self.kind == "version":
            return _only_param(click.version_option(*self.words, **attrs))
        usual = click.Option if self.kind == "option" else click.Argument
        return attrs.get("cls", usual)(
            self.words, **{name: value for name, value in attrs.items() if name != "cls"}
        )


def _only_param(decorator: Callable[[Any], Any]) -> Any:  # noqa: ANN401
    """The parameter that a decorator of click's adds."""

    def nothing() -> None:
        """Is asked for its parameters alone."""

    return decorator(nothing).__click_params__[0]


class Verb:
    """A verb, and click's command of it, which is made when something of it is asked for."""

    def __init__(
        self, function: Callable[..., Any], maker: str, name: str | None, attrs: dict[str, Any]
    ) -> None:
        self.function = function
        self.declared: list[Declared] = list(reversed(function.__dict__.pop("__click_params__", [])))
        self.attrs = attrs
        self._maker, self._name = maker, name

    @property
    def command(self) -> Any:  # noqa: ANN401
        """Click's command."""
        made = self.__dict__.get("_made")
        if made is None:
            import click

            attrs = self.attrs
            if isinstance(attrs.get("cls"), str):  # a module of ours and a class in it, for who needs click
                from orlop.cli.late import import_module

                module, _, cls = attrs["cls"].partition(":")
                attrs = {**attrs, "cls": getattr(import_module(module), cls)}
            params = [one.click() for one in self.declared]
            made = getattr(click, self._maker)(self._name, params=params, **attrs)(self.function)
            made = self.__dict__.setdefault("_made", made)
        return made

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.command, name)

    def __call__(self, *args: Any, **words: Any) -> Any:  # noqa: ANN401
        """As click's command is called."""
        return self.command(*args, **words)


def late_class(where: str) -> Any:  # noqa: ANN401 - a class to click, which nobody has imported yet
    """A class for `group`, by the text ``module:Class``: who builds on click's is imported with click."""
    return where


def source_of(ctx: Context, name: str) -> str:
    """Where a parameter's value came from: COMMANDLINE, ENVIRONMENT, DEFAULT_MAP or DEFAULT."""
    found = ctx.get_parameter_source(name)
    return found.name if found is not None else ""


def is_group(command: Command) -> bool:
    """Whether there are verbs below it."""
    return hasattr(command, "commands")


def clicks(found: Command) -> Command:
    """Click's command, of what a module has as a verb."""
    made: Command = found.command if isinstance(found, Verb) else found
    return made


if not TYPE_CHECKING:

    def _note(kind: str, words: tuple[str, ...], attrs: dict[str, Any]) -> Callable[[Any], Any]:
        def add(function: Any) -> Any:  # noqa: ANN401
            params = function.__dict__.setdefault("__click_params__", [])
            params.append(Declared(kind, words, attrs))
            return function

        return add

    def option(*words: str, **attrs: Any) -> Callable[[Any], Any]:  # noqa: ANN401
        """As click's."""
        return _note("option", words, attrs)

    def argument(*words: str, **attrs: Any) -> Callable[[Any], Any]:  # noqa: ANN401
        """As click's."""
        return _note("argument", words, attrs)

    def version_option(*words: str, **attrs: Any) -> Callable[[Any], Any]:  # noqa: ANN401
        """As click's."""
        return _note("version", words, attrs)

    def _verb(maker: str, name: str | None, attrs: dict[str, Any]) -> Callable[[Any], Any]:
        def make(function: Any) -> Any:  # noqa: ANN401
            params: Iterable[Any] = function.__dict__.get("__click_params__", ())
            if all(isinstance(one, Declared) for one in params):
                return Verb(function, maker, name, attrs)
            import click

            function.__click_params__ = [one.click() if isinstance(one, Declared) else one for one in params]
            return getattr(click, maker)(name, **attrs)(function)

        return make

    def command(name: str | None = None, **attrs: Any) -> Callable[[Any], Any]:  # noqa: ANN401
        """As click's."""
        return _verb("command", name, attrs)

    def group(name: str | None = None, **attrs: Any) -> Callable[[Any], Any]:  # noqa: ANN401
        """As click's; ``cls`` may be a `late_class`."""
        return _verb("group", name, attrs)

    def make_pass_decorator(kind: type) -> Callable[[Any], Any]:
        """As click's: hands the function the nearest object of that kind first."""

        def pass_it(function: Any) -> Any:  # noqa: ANN401
            def with_it(*args: Any, **words: Any) -> Any:  # noqa: ANN401
                import click

                return click.make_pass_decorator(kind)(function)(*args, **words)

            with_it.handed = lambda ctx: ctx.find_object(kind)
            return update_wrapper(with_it, function)

        return pass_it

    def pass_context(function: Any) -> Any:  # noqa: ANN401
        """As click's."""

        def with_context(*args: Any, **words: Any) -> Any:  # noqa: ANN401
            import click

            return function(click.get_current_context(), *args, **words)

        with_context.handed = lambda ctx: ctx
        return update_wrapper(with_context, function)

    def Choice(choices: Sequence[str], **words: Any) -> Kind:  # noqa: ANN401, N802
        """As click's."""
        return Kind("Choice", (choices,), words)

    def IntRange(*args: Any, **words: Any) -> Kind:  # noqa: ANN401, N802
        """As click's."""
        return Kind("IntRange", args, words)

    def Path(*args: Any, **words: Any) -> Kind:  # noqa: ANN401, N802
        """As click's."""
        return Kind("Path", args, words)
