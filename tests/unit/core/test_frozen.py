"""Frozen classes that share their methods behave like those of the standard library."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from functools import cached_property
from typing import Any

import pytest

from hpcq.core import frozen


def define(decorator: Any) -> tuple[type[Any], type[Any]]:
    """Return a class and a subclass, made with one of the two decorators."""

    @decorator(frozen=True, kw_only=True)
    class Shape:
        name: str
        sides: tuple[int, ...] = ()
        extra: dict[str, int] = dataclasses.field(default_factory=dict, compare=False, repr=False)
        computed: int = dataclasses.field(init=False, default=7)
        density: dict[str, int] = dataclasses.field(default_factory=dict, hash=False)

        def __post_init__(self) -> None:
            object.__setattr__(self, "sides", tuple(sorted(self.sides)))

        @cached_property
        def length(self) -> int:
            return sum(self.sides)

    @decorator(frozen=True, kw_only=True)
    class Solid(Shape):
        height: int = 1

    return Shape, Solid


@pytest.mark.parametrize("number", [0, 1])
def test_it_behaves_like_the_standard_decorator(number: int) -> None:
    """Fields, representation, equality, hashes, order of arguments and copies."""
    ours, standard = define(frozen.dataclass)[number], define(dataclasses.dataclass)[number]
    described = []
    for cls in (ours, standard):
        one, same = (cls(name="a", sides=(3, 1), extra={"x": value}) for value in (1, 2))
        other = dataclasses.replace(one, name="b")
        described.append(
            {
                "fields": [(field.name, field.kw_only) for field in dataclasses.fields(cls)],
                "text": repr(one),
                "equal": (one == same, one == other, one == "a", one != other),
                "hash": (hash(one) == hash(same), len({one, same, other})),
                "length": (one.length, one.length),
                "copies": (copy.copy(one) == one, copy.deepcopy(one) == one, copy.copy(one) is one),
                "content": dataclasses.asdict(one),
                "attributes": list(vars(cls(name="a"))),
                "own containers": cls(name="a").extra is not cls(name="a").extra,
                "is_dataclass": dataclasses.is_dataclass(one),
            }
        )
    assert described[0] == described[1]
    assert ours(name="a") != standard(name="a")


@pytest.mark.parametrize("number", [0, 1])
def test_fields_cannot_be_assigned_or_deleted(number: int) -> None:
    """No field that is set, no new name; and arguments have keywords and known names."""
    cls = define(frozen.dataclass)[number]
    made = cls(name="a")
    for name in ("name", "unknown"):
        with pytest.raises(dataclasses.FrozenInstanceError, match=f"cannot assign to field '{name}'"):
            setattr(made, name, 1)
    with pytest.raises(dataclasses.FrozenInstanceError, match="cannot delete field 'name'"):
        del made.name
    for wrong in (lambda: cls("a"), lambda: cls(name="a", computed=1)):
        with pytest.raises(TypeError):
            wrong()
    with pytest.raises(TypeError, match="missing required keyword-only arguments: name"):
        cls()
    with pytest.raises(TypeError, match="got unexpected keyword arguments: unknown"):
        cls(name="a", unknown=1)


@frozen.dataclass(frozen=True, kw_only=True)
class _Point:
    """A class that pickle can find."""

    x: int


@frozen.dataclass(frozen=True, kw_only=True, eq=False)
class _ByIdentity:
    """A class without equality."""

    x: int


def test_pickles_are_equal() -> None:
    """Loading a pickle sets the fields of a frozen object."""
    assert pickle.loads(pickle.dumps(_Point(x=3))) == _Point(x=3)  # noqa: S301 -- made on this line


def test_own_methods_and_identity_stay() -> None:
    """Without eq, objects are equal to themselves only; a class that is not frozen is the standard library's."""
    assert _ByIdentity(x=1) != _ByIdentity(x=1)

    @frozen.dataclass(kw_only=True)
    class Counter:
        count: int = 0

    counter = Counter()
    counter.count += 1
    assert counter == Counter(count=1)
