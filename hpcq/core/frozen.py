"""A `dataclass` that is cheap to define, for the hundreds of frozen classes that each command imports.

The standard library generates and compiles six methods for each frozen class (1.6 ms with eight fields), which was a
sixth of the CPU time of `hpcq plan`. Here all classes share their methods (0.1 ms). Type checkers see the standard one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import TYPE_CHECKING, Any

__all__ = ["dataclass"]

if TYPE_CHECKING:
    from dataclasses import dataclass
else:

    def dataclass(
        cls: type | None = None, /, *, frozen: bool = False, kw_only: bool = False, eq: bool = True, **options: bool
    ) -> Any:
        """Do what `dataclasses.dataclass` does, with its arguments; all but frozen, kw_only classes are left to it."""
        if not frozen or not kw_only or options:
            return dataclasses.dataclass(cls, frozen=frozen, kw_only=kw_only, eq=eq, **options)

        def decorate(cls: type) -> type:
            own = set(vars(cls))
            dataclasses.dataclass(kw_only=True, init=False, eq=False, repr=False)(cls)
            fields = dataclasses.fields(cls)
            methods = {"__init__": _init(fields), "__repr__": _repr, "__setattr__": _set, "__delattr__": _delete}
            if eq:
                methods |= {"__eq__": _equal, "__hash__": _hash}
                compared = [field.name for field in fields if field.compare]
                hashed = [field.name for field in fields if (field.compare if field.hash is None else field.hash)]
                cls._compared, cls._hashed = (staticmethod(_getter(names)) for names in (compared, hashed))
            for name in methods.keys() - own:
                setattr(cls, name, methods[name])
            return cls

        return decorate


def _init(fields: Sequence[dataclasses.Field[Any]]) -> Callable[..., None]:
    """Return the method `__init__` of a class with these fields."""
    missing = dataclasses.MISSING
    factories = {field.name: field.default_factory for field in fields if field.default_factory is not missing}
    settable = {field.name for field in fields if field.init}
    required = settable - factories.keys() - {field.name for field in fields if field.default is not missing}
    in_order = {field.name: field.default for field in fields if field.init or field.name in factories}

    def __init__(self: Any, **values: Any) -> None:  # noqa: N807
        if not required <= values.keys() <= settable:
            name = type(self).__qualname__
            if absent := sorted(required - values.keys()):
                raise TypeError(f"{name}.__init__() missing required keyword-only arguments: {', '.join(absent)}")
            unknown = sorted(values.keys() - settable)
            raise TypeError(f"{name}.__init__() got unexpected keyword arguments: {', '.join(unknown)}")
        own = vars(self)
        own.update(in_order)
        for name, make in factories.items():
            if name not in values:
                own[name] = make()
        own.update(values)
        if hasattr(self, "__post_init__"):
            self.__post_init__()

    return __init__


def _getter(names: Sequence[str]) -> Callable[[Any], object]:
    """Return a function that returns the values of these fields."""
    return attrgetter(*names) if names else lambda _: ()


def _set(_: Any, name: str, __: object) -> None:
    raise dataclasses.FrozenInstanceError(f"cannot assign to field {name!r}")


def _delete(_: Any, name: str) -> None:
    raise dataclasses.FrozenInstanceError(f"cannot delete field {name!r}")


def _repr(self: Any) -> str:
    shown = (field.name for field in dataclasses.fields(self) if field.repr)
    return f"{type(self).__qualname__}({', '.join(f'{name}={getattr(self, name)!r}' for name in shown)})"


def _equal(self: Any, other: Any) -> Any:
    if other.__class__ is not self.__class__:
        return NotImplemented
    return bool(self._compared(self) == self._compared(other))


def _hash(self: Any) -> int:
    return hash(self._hashed(self))
