"""The kinds of values that manifests and profiles are made of, and what a validator raises. Knows no key of either."""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError

from hpcq.manifest.error_messages import shown

_Items = TypeVar("_Items", bound=tuple[Any, ...])

_LARGEST = 10**9
"""No number of anything in a run comes near it."""


class Section(BaseModel):
    """A table of a manifest or profile: frozen, no unknown keys, no conversion between types."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


def refusal(sentence: str, *within: str | int) -> PydanticCustomError:
    """The error that a validator raises: a whole sentence, about the value at `within` below the validated one."""
    return PydanticCustomError("refused", "{sentence}", {"sentence": sentence, "within": within})


def distinct(values: _Items) -> _Items:
    """Refuse a list in which something comes twice."""
    for index, value in enumerate(values):
        if value in values[:index]:
            raise refusal(f"'{value}' is listed twice.", index)
    return values


def _not_blank(text: str) -> str:
    if not text.strip():
        raise refusal("must not be empty.")
    if "\0" in text:
        raise refusal("must not contain a NUL character.")
    return text


def _not_absurd(number: int) -> int:
    if number > _LARGEST:
        raise refusal(f"must be {_LARGEST} or less, not {shown(number)}.")
    return number


Text = Annotated[str, AfterValidator(_not_blank)]
"""Text that is not blank."""

Texts = Annotated[tuple[Text, ...], Field(strict=False)]
"""A list of texts, in order; the same one may come twice."""

Names = Annotated[tuple[Text, ...], Field(strict=False), AfterValidator(distinct)]
"""A list of names, none twice."""

Count = Annotated[int, Field(ge=1), AfterValidator(_not_absurd)]
"""How many there are of something, at least one."""

CountOrNone = Annotated[int, Field(ge=0), AfterValidator(_not_absurd)]
"""How many there are of something, which may be none."""

Seed = Annotated[int, Field(ge=0, le=2**32 - 1)]
"""A seed as numpy takes it."""

Seconds = Annotated[float, Field(ge=0)]
"""A duration that may be nothing."""

Positive = Annotated[float, Field(gt=0)]
"""A number above 0."""

Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
"""A SHA-256."""
