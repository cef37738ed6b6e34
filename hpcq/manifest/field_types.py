"""Field types and validators shared by the schemas of manifests and cluster profiles."""

from __future__ import annotations

import re
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError

from hpcq.catalog.ignored_layers import entry_problem
from hpcq.manifest.error_messages import format_value

_Items = TypeVar("_Items", bound=tuple[Any, ...])

_MAX_INT = 10**9
"""Upper bound of every count; far above any real value."""


class Section(BaseModel):
    """A table of a manifest or profile: frozen, without unknown keys, without type conversion.

    pydantic builds its validators on first use: those of a table within a table are never built alone. Therefore
    defaults are made with `model_construct`, which needs no validator.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, defer_build=True)


def validation_error(sentence: str, *within: str | int) -> PydanticCustomError:
    """Return the error for a validator to raise.

    Args:
        sentence: the message, shown after the key.
        within: key path of the invalid value, relative to the validated value.
    """
    return PydanticCustomError("refused", "{sentence}", {"sentence": sentence, "within": within})


def no_duplicates(values: _Items) -> _Items:
    """Reject a list with duplicates."""
    for index, value in enumerate(values):
        if value in values[:index]:
            raise validation_error(f"'{value}' is listed twice.", index)
    return values


def _not_blank(text: str) -> str:
    if not text.strip():
        raise validation_error("must not be empty.")
    if "\0" in text:
        raise validation_error("must not contain a NUL character.")
    return text


def _valid_pattern(text: str) -> str:
    if problem := entry_problem(text):
        raise validation_error(problem)
    return text


def _printable(text: str) -> str:
    if not text.isprintable():
        found = next(character for character in text if not character.isprintable())
        raise validation_error(f"must be one line of printable characters, not with {found!a}.")
    if text != text.strip():
        raise validation_error(f"'{text}' begins or ends with a space.")
    return text


def _bounded(number: int) -> int:
    if number > _MAX_INT:
        raise validation_error(f"must be {_MAX_INT} or less, not {format_value(number)}.")
    return number


_MAX_SPAN = 10_000_000
"""Items of a range; a data set has fewer."""


def _valid_ranges(text: str) -> str:
    for part in text.split(","):
        first, _, last = part.partition("-")
        ends = (first, last or first)
        if not all(end.isascii() and end.isdecimal() for end in ends) or part.endswith("-"):
            raise validation_error(f"must be numbers of items such as '0-4,7', not {format_value(text)}.")
        if not 0 <= int(ends[1]) - int(ends[0]) < _MAX_SPAN:
            raise validation_error(f"must have ranges from a smaller to a larger number, not {format_value(text)}.")
    return text


NonBlankStr = Annotated[str, AfterValidator(_not_blank)]
"""Text with at least one character that is not whitespace."""

LayerPatterns = Annotated[tuple[Annotated[NonBlankStr, AfterValidator(_valid_pattern)], ...], Field(strict=False)]
"""Names of layers, and regular expressions after "re:"."""
Name = Annotated[NonBlankStr, AfterValidator(_printable)]
"""A name or path that plans, logs and reports show: one line of printable characters."""

Names = Annotated[tuple[Name, ...], Field(strict=False), AfterValidator(no_duplicates)]
"""An ordered list of names without duplicates."""

ItemRanges = Annotated[str, AfterValidator(_valid_ranges)]
"""Numbers of items, such as '0-4,7'."""
NonBlankStrs = Annotated[tuple[NonBlankStr, ...], Field(strict=False)]
"""An ordered list of texts; duplicates are allowed."""

UniqueStrs = Annotated[tuple[NonBlankStr, ...], Field(strict=False), AfterValidator(no_duplicates)]
"""An ordered list of texts without duplicates."""

PositiveInt = Annotated[int, Field(ge=1), AfterValidator(_bounded)]
"""A count from 1 to `_MAX_INT`."""

NonNegativeInt = Annotated[int, Field(ge=0), AfterValidator(_bounded)]
"""A count from 0 to `_MAX_INT`."""

Seed = Annotated[int, Field(ge=0, le=2**32 - 1)]
"""A seed in the range that numpy accepts."""

NonNegativeFloat = Annotated[float, Field(ge=0)]
"""A number of 0 or more."""

PositiveFloat = Annotated[float, Field(gt=0)]
"""A number above 0."""

Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
"""A SHA-256, 64 lower-case hexadecimal digits."""

_SECRET_NAME = re.compile(
    r"(?:^|_)TOKEN(?![A-Z])|SECRET|PASSWORD|PASSWD|PASSPHRASE|(?:^|_)(?:API|ACCESS|PRIVATE)_?KEY|CREDENTIAL",
    re.IGNORECASE,
)
_LOCATION_SUFFIX = re.compile(r"_(?:PATH|FILE|DIR|HOME)$", re.IGNORECASE)
_LITERAL_ASSIGNMENT = re.compile(r"""(?<![\w$])([A-Za-z_]\w*)=["']?[^\s"'$`;&|)]""")
"""A shell assignment of a literal value: not `NAME=$OTHER`, `NAME=$(cat FILE)` or `NAME=`."""


def reject_secret_name(name: str) -> str:
    """Reject names of secrets (HF_TOKEN, OPENAI_API_KEY), but not MONKEY, TOKENIZERS_PARALLELISM or HF_TOKEN_PATH."""
    if _SECRET_NAME.search(name) and not _LOCATION_SUFFIX.search(name):
        raise validation_error(
            f"'{name}' looks like a secret and would be written to lock files and job scripts. Export it in the shell "
            "that submits (Slurm passes it to the jobs), or source a file that only you can read in setup."
        )
    return name


def reject_secret_value(text: str) -> str:
    """Reject shell lines and sbatch options that assign a literal value to a secret."""
    for name in _LITERAL_ASSIGNMENT.findall(text):
        reject_secret_name(name)
    return text
