"""`orlop.values` beside `dataclasses`: two classes of the same words do the same."""

import copy
import dataclasses
import inspect
import pickle
import sys
from typing import ClassVar

import msgspec
import pytest

from orlop import values


def _pair(*, many=False, **words):
    """The same class, made by each; with ``many`` there are so many that it is made in another way."""

    def made(kind):
        @kind.dataclass(slots=True, **words)
        class Thing:
            """A thing."""

            count: ClassVar[int] = 3
            a: int
            b: str = "b"
            c: tuple[int, ...] = ()
            d: dict[str, int] = kind.field(default_factory=dict, repr=False)
            e: int = kind.field(default=5, compare=False, metadata={"unit": "m"})

            def twice(self):
                return self.a * 2

        return Thing

    ours, theirs = made(values), made(dataclasses)
    if many:
        slow = ours.__init__
        for _ in range(values._MANY):
            ours(a=1)
        assert ours.__init__ is not slow
    return ours, theirs


WORDS = [
    {"many": many, "frozen": frozen, "kw_only": kw_only, "eq": eq}
    for many in (True, False)
    for frozen in (True, False)
    for kw_only in (True, False)
    for eq in (True, False)
]
pairs = pytest.mark.parametrize("words", WORDS, ids=str)


def _outcome(make):
    """What a call gives, with the class of its error."""
    try:
        return make()
    except Exception as exc:  # noqa: BLE001 - whatever it is
        return type(exc)


@pairs
def test_instances_look_and_compare_alike(words):
    ours, theirs = _pair(**words)
    for given in ({"a": 1}, {"a": 1, "b": "x", "c": (1, 2), "d": {"y": 1}, "e": 9}):
        one, other = ours(**given), theirs(**given)
        assert repr(one) == repr(other)
        assert one.twice() == other.twice()
        assert dataclasses.asdict(one) == dataclasses.asdict(other) == values.asdict(one)
        assert (one == ours(**given)) == (other == theirs(**given))
        assert (one == ours(**{**given, "e": 7})) == (other == theirs(**{**given, "e": 7}))
        assert (one == ours(a=2)) == (other == theirs(a=2))
        assert one != other
        assert (ours.__match_args__, ours.count) == (theirs.__match_args__, theirs.count)
        for name in "abcde":
            assert _outcome(lambda: setattr(one, name, 1)) == _outcome(lambda: setattr(other, name, 1))  # noqa: B023
            assert _outcome(lambda: delattr(one, name)) == _outcome(lambda: delattr(other, name))  # noqa: B023


@pairs
def test_hashes_are_there_where_they_are_there(words):
    ours, theirs = _pair(**words)
    assert (ours.__hash__ is None) == (theirs.__hash__ is None)
    if words["frozen"] and words["eq"]:
        one, same = ours(a=1, d=None), ours(a=1, d=None, e=8)
        assert len({one, same}) == len({theirs(a=1, d=None), theirs(a=1, d=None, e=8)}) == 1


CALLS = [
    ((), {}),
    ((1,), {}),
    ((1, "x"), {"c": (2,)}),
    ((1,), {"a": 2}),
    ((), {"a": 1, "z": 2}),
    ((1, 2, 3, 4, 5, 6), {}),
]


@pairs
@pytest.mark.parametrize(("args", "given"), CALLS, ids=str)
def test_the_same_calls_are_refused(words, args, given):
    ours, theirs = _pair(**words)
    assert repr(_outcome(lambda: ours(*args, **given))) == repr(_outcome(lambda: theirs(*args, **given)))


@pairs
def test_who_asks_a_dataclass_gets_the_same_answers(words):
    ours, theirs = _pair(**words)
    assert dataclasses.is_dataclass(ours)
    assert values.is_dataclass(ours(a=1))
    shown = [(item.name, item.type, item.default, item.metadata) for item in dataclasses.fields(ours)]
    assert shown == [
        (item.name, item.type, item.default, item.metadata) for item in dataclasses.fields(theirs)
    ]
    assert [item.name for item in values.fields(ours)] == [item.name for item in values.fields(theirs)]
    assert inspect.signature(ours) == inspect.signature(theirs)
    one, other = ours(a=1, c=(3,)), theirs(a=1, c=(3,))
    for change in (dataclasses.replace, values.replace):
        assert repr(change(one, b="y")) == repr(change(other, b="y"))
    assert repr(one.__replace__(b="y")) == repr(dataclasses.replace(other, b="y"))
    assert msgspec.to_builtins(one) == msgspec.to_builtins(other)
    assert repr(msgspec.convert({"a": 4}, ours)) == repr(msgspec.convert({"a": 4}, theirs))
    if not words["frozen"]:
        one.c = [one.c]
    assert repr(copy.deepcopy(one)) == repr(one)


@values.dataclass(frozen=True, slots=True, kw_only=True)
class Base:
    x: int
    inner: tuple["Base", ...] = ()

    def __post_init__(self) -> None:
        if self.x < 0:
            raise ValueError("x")


@values.dataclass(frozen=True, slots=True, kw_only=True)
class Derived(Base):
    y: int = 2


class Plain(Derived):
    pass


def test_a_value_builds_on_another():
    assert repr(Derived(x=1)) == "Derived(x=1, inner=(), y=2)"
    assert [item.name for item in dataclasses.fields(Plain)] == ["x", "inner", "y"]
    assert [item.name for item in dataclasses.fields(Base)] == ["x", "inner"]
    assert values.asdict(Derived(x=1, inner=(Base(x=2),)))["inner"] == ({"x": 2, "inner": ()},)
    for _ in range(values._MANY + 1):
        with pytest.raises(ValueError, match="x"):
            Derived(x=-1)
        assert Plain(x=1, y=3).y == 3


def test_a_value_can_be_pickled_and_has_no_dict():
    one = Derived(x=1, inner=(Base(x=2),))
    assert pickle.loads(pickle.dumps(one)) == one
    assert not hasattr(one, "__dict__")


def test_what_is_not_offered_is_refused_when_the_class_is_made():
    with pytest.raises(TypeError, match="slots"):
        values.dataclass(slots=False)(type("A", (), {}))
    generated = dataclasses.make_dataclass("Generated", [("a", int)])
    with pytest.raises(TypeError, match="other kind"):
        values.dataclass(slots=True)(type("A", (generated,), {"__annotations__": {"b": "int"}}))
    body = {"__annotations__": {"b": "int"}, "b": values.field(default=1, init=False)}
    with pytest.raises(TypeError, match="goes before"):
        values.dataclass(slots=True)(type("A", (), body))


def test_the_generator_is_not_imported_before_somebody_asks():
    import subprocess

    code = (
        "import sys; from orlop.values import dataclass\n"
        "@dataclass(frozen=True, slots=True, kw_only=True)\n"
        "class A:\n    a: int = 1\n"
        "A(a=2) == A(); hash(A()); repr(A())\n"
        "assert 'dataclasses' not in sys.modules"
    )
    subprocess.run(
        [sys.executable, "-I", "-c", f"import sys; sys.path[:0] = {sys.path!r}; {code}"], check=True
    )
