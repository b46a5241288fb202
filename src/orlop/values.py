"""Dataclasses that cost little to define: the same decorator, with methods that are not generated.

`dataclasses.dataclass` writes source code for each class and compiles it: a millisecond a class, and so most
of a short command's life, once a hundred values are imported (docs/adr/0016).  `dataclass` here takes the
same words (``slots=True`` always; ``frozen``, ``kw_only`` and ``eq`` or not) and gives a class that behaves
alike.  To a type checker it *is* the other one; `dataclasses.fields`, `replace`, `asdict` and msgspec take it
for one, because ``__dataclass_fields__`` is made when somebody asks for it.  Of a class of which there are
many instances ``__init__`` is compiled after all, so that they cost no more.

Imports nothing of orlop but `orlop.hints`.
"""

from __future__ import annotations

from functools import cache
from operator import attrgetter

from orlop.hints import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable
    from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace

__all__ = ["asdict", "dataclass", "field", "fields", "is_dataclass", "replace"]

_NONE = object()  # no default


class _Spec:
    """What `field` was given, and whose field it is."""

    __slots__ = ("compare", "default", "default_factory", "init", "metadata", "name", "repr")

    def __init__(
        self,
        default: object,
        factory: object = _NONE,
        *,
        init: bool = True,
        repr: bool = True,  # noqa: A002 - the word of `dataclasses.field`
        compare: bool = True,
        metadata: Any = None,  # noqa: ANN401
    ) -> None:
        self.name = ""
        self.default, self.default_factory, self.init = default, factory, init
        self.repr, self.compare, self.metadata = repr, compare, metadata or {}


if not TYPE_CHECKING:

    def field(*, default: object = _NONE, default_factory: object = _NONE, **words: object) -> _Spec:
        """As `dataclasses.field`, of which it knows init, repr, compare and metadata."""
        return _Spec(default, default_factory, **words)

    def fields(value: Any) -> tuple[Any, ...]:  # noqa: ANN401
        """As `dataclasses.fields`, of a value or its class; what is in it has a name, a default, metadata."""
        specs = getattr(value, "_orlop_specs", None)
        if specs is None:
            import dataclasses

            return dataclasses.fields(value)
        return tuple(specs.values())

    def is_dataclass(value: Any) -> bool:  # noqa: ANN401
        """As `dataclasses.is_dataclass`."""
        cls = value if isinstance(value, type) else type(value)
        return hasattr(cls, "_orlop_specs") or hasattr(cls, "__dataclass_fields__")

    def replace(value: Any, /, **changes: object) -> Any:  # noqa: ANN401
        """As `dataclasses.replace`."""
        for item in fields(value):
            if item.init:
                changes.setdefault(item.name, getattr(value, item.name))
        return type(value)(**changes)

    def asdict(value: Any) -> Any:  # noqa: ANN401
        """As `dataclasses.asdict`: values in it, and in its tuples, lists and dicts, become dicts."""
        if hasattr(type(value), "_orlop_specs"):
            return {item.name: asdict(getattr(value, item.name)) for item in fields(value)}
        if type(value) in {list, tuple}:
            return type(value)(map(asdict, value))
        if isinstance(value, dict):
            return {key: asdict(part) for key, part in value.items()}
        return value

    def dataclass(
        *, slots: bool, frozen: bool = False, kw_only: bool = False, eq: bool = True
    ) -> Callable[[type], type]:
        """As `dataclasses.dataclass`; ``slots`` has to be True."""
        if not slots:
            raise TypeError("values have slots")
        return lambda cls: _build(cls, frozen=frozen, kw_only=kw_only, eq=eq)


_MANY = 500  # instances of a class from which on it pays to compile how they are made


def _build(cls: type, *, frozen: bool, kw_only: bool, eq: bool) -> type:
    """The class once more, with slots and methods."""
    body = dict(cls.__dict__)
    specs: dict[str, Any] = {}
    for base in reversed(cls.__mro__[1:-1]):
        if "__dataclass_fields__" in base.__dict__ and "_orlop_specs" not in base.__dict__:
            raise TypeError(f"{cls.__qualname__} builds on {base.__qualname__}, which is of the other kind")
        specs |= base.__dict__.get("_orlop_specs", {})
    kinds = cls.__annotations__  # since Python 3.10 a class's own
    own = [name for name, kind in kinds.items() if not _is_class_var(kind)]
    for name in own:
        given = body.pop(name, _NONE)
        specs[name] = spec = given if isinstance(given, _Spec) else _Spec(given)
        spec.name = name
        if not spec.init and (spec.default, spec.default_factory) != (_NONE, _NONE):
            raise TypeError(f"{cls.__qualname__}.{name} has a default, and no word that it goes before")
    body.pop("__dict__", None)
    body.pop("__weakref__", None)
    body["__qualname__"] = cls.__qualname__
    body["__annotations__"] = kinds
    body["__slots__"] = tuple(own)
    body["__match_args__"] = () if kw_only else tuple(specs)
    body["_orlop_specs"] = specs
    body |= _late(frozen=frozen, kw_only=kw_only, eq=eq)
    body = _COMMON | body
    if frozen:
        body |= _FROZEN
    if eq:
        _add_comparison(body, tuple([name for name, spec in specs.items() if spec.compare]), frozen=frozen)
    # All methods are there when the class is made: each that is set afterwards costs as much as a class.
    plan: list[tuple[str, Any, Any, Any]] | None = None
    if "__init__" not in body:
        plan = []
        body["__init__"] = _initializer(
            plan, f"{cls.__qualname__}.__init__()", kw_only=kw_only, finish=hasattr(cls, "__post_init__")
        )
    made: Any = type(cls)(cls.__name__, cls.__bases__, body)
    if plan is not None:
        plan += [
            (name, getattr(made, name).__set__, spec.default, spec.default_factory)
            for name, spec in specs.items()
            if spec.init
        ]
    return made  # type: ignore[no-any-return]  # made of type(cls), which may be a metaclass


def _is_class_var(kind: object) -> bool:
    return str(kind).startswith(("ClassVar", "typing.ClassVar"))


def _initializer(
    plan: list[tuple[str, Any, Any, Any]],
    title: str,
    *,
    kw_only: bool,
    finish: bool,
) -> Callable[..., None]:
    """An ``__init__`` that walks over the fields: ``plan``, which is filled when the class is there.

    Of a class of which there are many it puts a compiled one in its own place.
    """
    calls = 0

    def by_name(self: object, /, **given: object) -> None:
        nonlocal calls
        calls += 1
        if calls == _MANY:
            _compile(type(self), chosen, plan, title, kw_only=kw_only, finish=finish)
        used = 0
        for name, put, default, factory in plan:
            if name in given:
                put(self, given[name])
                used += 1
            elif default is not _NONE:
                put(self, default)
            elif factory is not _NONE:
                put(self, factory())
            else:
                missing = [each for each, _, *last in plan if each not in given and last == [_NONE, _NONE]]
                raise TypeError(f"{title} missing required arguments: {', '.join(missing)}")
        if used != len(given):
            names = [name for name, *_ in plan]
            unknown = next(name for name in given if name not in names)
            raise TypeError(f"{title} got an unexpected keyword argument {unknown!r}")
        if finish:
            self.__post_init__()  # type: ignore[attr-defined]

    def by_place(self: object, /, *args: object, **given: object) -> None:
        if len(args) > len(plan):
            raise TypeError(f"{title} takes {len(plan)} positional arguments but {len(args)} were given")
        for (name, *_), value in zip(plan, args, strict=False):
            if name in given:
                raise TypeError(f"{title} got multiple values for argument {name!r}")
            given[name] = value
        by_name(self, **given)

    chosen: Callable[..., None] = by_name if kw_only else by_place
    return chosen


def _compile(
    cls: type,
    init: Callable[..., None],
    plan: list[tuple[str, Any, Any, Any]],
    title: str,
    *,
    kw_only: bool,
    finish: bool,
) -> None:
    """Replace ``init`` by one with a line for each field: much faster, but it takes a while to make."""
    owner = next((base for base in cls.__mro__ if base.__dict__.get("__init__") is init), None)
    known: dict[str, Any] = {"_none": _NONE}
    words, lines = [], []
    for number, (name, put, default, factory) in enumerate(plan):
        known[f"_put{number}"], word, value = put, name, name
        if default is not _NONE:
            known[f"_default{number}"], word = default, f"{name}=_default{number}"
        elif factory is not _NONE:
            known[f"_factory{number}"], word = factory, f"{name}=_none"
            value = f"_factory{number}() if {name} is _none else {name}"
        words.append(word)
        lines.append(f" _put{number}(self, {value})")
    if owner is None or any(name == "self" or name in known for name, *_ in plan):
        return
    if finish:
        lines.append(" self.__post_init__()")
    head = ", ".join(["self", "/", *(["*"] if kw_only else []), *words])
    try:
        exec("\n".join([f"def __init__({head}):", *lines]), known)  # noqa: S102 - of names of fields alone
    except SyntaxError:  # one without a default stands behind one with: the slow way does
        return
    made = known["__init__"]
    made.__qualname__, made.__module__ = title.removesuffix("()"), owner.__module__
    owner.__init__ = made  # type: ignore[misc]  # the same, of this class


def _add_comparison(body: dict[str, Any], names: tuple[str, ...], *, frozen: bool) -> None:
    if not names:
        values: Callable[[Any], Any] = lambda value: ()  # noqa: E731
    elif len(names) == 1:
        one = attrgetter(*names)
        values = lambda value: (one(value),)  # noqa: E731
    else:
        values = attrgetter(*names)

    def __eq__(self: object, other: object) -> bool:  # noqa: N807
        if type(other) is not type(self):
            return NotImplemented
        return bool(values(self) == values(other))

    def __hash__(self: object) -> int:  # noqa: N807
        return hash(values(self))

    body.setdefault("__eq__", __eq__)
    if body.get("__hash__") is None:
        body["__hash__"] = __hash__ if frozen else None


def _repr(self: Any) -> str:  # noqa: ANN401
    shown = (f"{name}={getattr(self, name)!r}" for name, spec in self._orlop_specs.items() if spec.repr)
    return f"{type(self).__qualname__}({', '.join(shown)})"


def _refuse(self: object, name: str, *value: object) -> None:
    from dataclasses import FrozenInstanceError

    raise FrozenInstanceError(f"cannot {'assign to' if value else 'delete'} field {name!r}")


def _get_state(self: Any) -> list[object]:  # noqa: ANN401
    return [getattr(self, name) for name in self._orlop_specs]


def _set_state(self: Any, state: list[object]) -> None:  # noqa: ANN401
    for name, value in zip(self._orlop_specs, state, strict=True):
        object.__setattr__(self, name, value)


class _Late:
    """An attribute of the class that the generated one would be, made when it is first asked for."""

    __slots__ = ("_how", "_name")

    def __init__(self, name: str, how: dict[str, bool]) -> None:
        self._name = name
        self._how: dict[str, Any] = how  # words of `dataclasses.dataclass`

    def __get__(self, value: object, cls: Any) -> Any:  # noqa: ANN401
        import dataclasses
        import inspect

        owner = next(base for base in cls.__mro__ if "_orlop_specs" in base.__dict__)
        kinds: dict[str, object] = {}
        for base in reversed(owner.__mro__[:-1]):
            kinds |= base.__annotations__
        items = []
        for name, spec in owner._orlop_specs.items():
            words: dict[str, Any] = {
                word: getattr(spec, word) for word in ("init", "repr", "compare", "metadata")
            }
            if spec.default is not _NONE:
                words["default"] = spec.default
            if spec.default_factory is not _NONE:
                words["default_factory"] = spec.default_factory
            items.append((name, kinds[name], dataclasses.field(**words)))
        made: Any = dataclasses.make_dataclass(owner.__name__, items, **self._how)
        owner.__dataclass_params__ = made.__dataclass_params__
        owner.__dataclass_fields__ = made.__dataclass_fields__
        owner.__signature__ = inspect.signature(made)
        return getattr(made, self._name) if self._name != "__signature__" else owner.__signature__


@cache
def _late(*, frozen: bool, kw_only: bool, eq: bool) -> dict[str, _Late]:
    """The attributes that are made when they are asked for; the same for all classes of a kind."""
    how = {"frozen": frozen, "kw_only": kw_only, "eq": eq}
    names = ("__dataclass_fields__", "__dataclass_params__", "__signature__")
    return {name: _Late(name, how) for name in names}


_COMMON = {
    "__repr__": _repr,
    "__replace__": replace,  # for `copy.replace`, since Python 3.13
    "__getstate__": _get_state,
    "__setstate__": _set_state,
}
_FROZEN = {"__setattr__": _refuse, "__delattr__": _refuse}
