"""Reader of files with claims (TOML): docs/claims.md describes the keys."""

from __future__ import annotations

import tomllib
from collections.abc import Collection, Iterator, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any, TypeVar

from hpcq.catalog.published_scores import study_names
from hpcq.catalog.published_tables import FOLDER
from hpcq.core.errors import UserInputError
from hpcq.report.claims.claim import (
    DEFAULT_MARGIN,
    NEEDS_MARGIN,
    NUMBERS,
    Claim,
    Condition,
    Direction,
    Field,
    Selection,
    Value,
)

PUBLISHED = "published"
_MAX_BYTES = 1_000_000
_REQUIRED = ("name", "text", "first", "direction")
_OPTIONAL = ("second", "same", "value", "margin", "except", "first_is_larger", "size_ratio_at_most")
_Choice = TypeVar("_Choice", bound=StrEnum)


class _ProblemError(ValueError):
    """A phrase such as "'name' is missing"."""


def read_claims(source: str) -> tuple[Claim, ...]:
    """Return the claims of a study in the catalog, of all studies ('published'), or of a file.

    Raises:
        UserInputError: There is no such file, or it has an invalid claim.
    """
    names = study_names() if source == PUBLISHED else (source,)
    if all(name in study_names() for name in names):
        return tuple(claim for name in names for claim in _read_file(FOLDER / f"{name}-claims.toml"))
    return tuple(_read_file(Path(source)))


def _read_file(path: Path) -> Iterator[Claim]:
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise UserInputError(
            f"--claims {path}: {error.strerror}. Give a TOML file with claims, or '{PUBLISHED}' for those of the"
            f" studies in the catalog ({', '.join(study_names())})."
        ) from error
    if len(content) > _MAX_BYTES:
        raise UserInputError(f"{path}: larger than {_MAX_BYTES} bytes, so it is no file with claims.")
    try:
        document = tomllib.loads(content.decode("utf-8"))
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UserInputError(f"{path}: not valid TOML: {error}.") from error
    tables = document.get("claims")
    if not isinstance(tables, list) or set(document) != {"claims"} or not tables:
        raise UserInputError(f"{path}: must have [[claims]] tables, at least one, and nothing else.")
    names: set[str] = set()
    for number, table in enumerate(tables, 1):
        name = table.get("name") if isinstance(table, dict) else None
        try:
            claim = _claim(table, names)
        except _ProblemError as error:
            place = f"claim '{name}'" if isinstance(name, str) else f"claim {number}"
            raise UserInputError(f"{path}: {place}: {error}.") from None
        names.add(claim.name)
        yield claim


def _claim(table: object, others: Collection[str]) -> Claim:
    if not isinstance(table, dict):
        raise _ProblemError("must be a table")
    for key in table:
        if key not in (*_REQUIRED, *_OPTIONAL):
            raise _ProblemError(f"unknown key '{key}'; allowed are {', '.join((*_REQUIRED, *_OPTIONAL))}")
    for key in _REQUIRED:
        if key not in table:
            raise _ProblemError(f"'{key}' is missing")
    if _text("name", table["name"]) in others:
        raise _ProblemError("another claim has the same 'name'")
    value = _choice(Value, "value", table.get("value", Value.SCORE))
    direction = _choice(Direction, "direction", table["direction"])
    if (value is Value.RANK_CORRELATION) == ("second" in table):
        needs = "has no 'second' selection" if "second" in table else "is missing"
        subject = f"value '{value}'" if "second" in table else "'second'"
        raise _ProblemError(f"{subject} {needs}")
    same = _texts("same", table.get("same", [Field.MODEL]))
    for field in (Field.SUITE, Field.TASK):
        if field in same:
            raise _ProblemError(f"'same' cannot have '{field}': pairs are of the same task anyway")
    return Claim(
        name=_text("name", table["name"]),
        text=_text("text", table["text"]),
        first=_selection("first", table["first"]),
        second=_selection("second", table.get("second", {})),
        same=tuple(_choice(Field, "same", one) for one in same),
        value=value,
        direction=direction,
        margin=_number("margin", table.get("margin", DEFAULT_MARGIN if direction in NEEDS_MARGIN else 0)),
        exceptions=_texts("except", table.get("except", [])),
        first_is_larger=_flag("first_is_larger", table.get("first_is_larger", False)),
        size_ratio_at_most=_number("size_ratio_at_most", table["size_ratio_at_most"])
        if "size_ratio_at_most" in table
        else None,
    )


def _selection(key: str, table: object) -> Selection:
    if not isinstance(table, dict):
        raise _ProblemError(f"'{key}' must be a table such as {{ method = \"awq\", weight_bits = 4 }}")
    return tuple(_condition(_choice(Field, key, name), value) for name, value in table.items())


def _condition(field: Field, value: object) -> Condition:
    if isinstance(value, dict):
        return _range(field, value)
    values = value if isinstance(value, list) else [value]
    if not values:
        raise _ProblemError(f"'{field}' must not be an empty list")
    return Condition(field=field, values=tuple(_accepted(field, one) for one in values))


def _accepted(field: Field, value: object) -> str | float:
    if field in NUMBERS:
        return _number(field, value)
    return _text(field, value)


def _range(field: Field, table: Mapping[str, Any]) -> Condition:
    if field not in NUMBERS or not table or not set(table) <= {"min", "max"}:
        raise _ProblemError(f"'{field}': {{ min = ..., max = ... }} is for numbers ({', '.join(NUMBERS)})")
    low, high = (_number(f"{field}.{key}", table[key]) if key in table else None for key in ("min", "max"))
    return Condition(field=field, low=low, high=high)


def _choice(kind: type[_Choice], key: str, value: object) -> _Choice:
    if value not in tuple(kind):
        raise _ProblemError(f"'{key}': {value!r} is unknown; allowed are {', '.join(kind)}")
    return kind(str(value))


def _text(key: str, value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise _ProblemError(f"'{key}' must be a string")
    return value


def _texts(key: str, value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise _ProblemError(f"'{key}' must be a list of strings")
    return tuple(value)


def _number(key: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
        raise _ProblemError(f"'{key}' must be a number, 0 or more")
    return float(value)


def _flag(key: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise _ProblemError(f"'{key}' must be true or false")
    return value
