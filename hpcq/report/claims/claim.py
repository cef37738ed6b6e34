"""A claim: two selections of scores, what must be equal in a pair, and the direction of the difference."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

from hpcq.core.frozen import dataclass


class Field(StrEnum):
    """What a selection can name; all but suite and task can be equal in a pair."""

    MODEL = "model"
    FAMILY = "family"
    PARAMETERS = "parameters_b"
    SCHEME = "scheme"
    METHOD = "method"
    TOOL = "tool"
    WEIGHT_BITS = "weight_bits"
    ACTIVATION_BITS = "activation_bits"
    SUITE = "suite"
    TASK = "task"


NUMBERS = (Field.PARAMETERS, Field.WEIGHT_BITS, Field.ACTIVATION_BITS)
"""Fields that are numbers; the others are texts."""


class Value(StrEnum):
    """What is compared.

    Attributes:
        SCORE: The score of the first selection minus that of the second.
        CHANGE: The same for the difference of each score from that of the unquantized model.
        RANK_CORRELATION: Spearman's correlation, over the tasks of a suite, of the unquantized score with the change of
            the first selection. There is no second selection.
    """

    SCORE = "score"
    CHANGE = "change"
    RANK_CORRELATION = "rank correlation"


class Direction(StrEnum):
    """What the claim says about the difference d = first - second, with a margin m.

    Attributes:
        HIGHER: d > m.
        LOWER: d < -m.
        NOT_HIGHER: d < m.
        NOT_LOWER: d > -m.
        EQUIVALENT: -m < d < m.
        DIFFERENT: d < -m or d > m, for at least one pair.
    """

    HIGHER = "higher"
    LOWER = "lower"
    NOT_HIGHER = "not higher"
    NOT_LOWER = "not lower"
    EQUIVALENT = "equivalent"
    DIFFERENT = "different"


DEFAULT_MARGIN = 1.0
"""Margin of the directions that need one."""
NEEDS_MARGIN = (Direction.NOT_HIGHER, Direction.NOT_LOWER, Direction.EQUIVALENT)


class ClaimVerdict(StrEnum):
    """What the scores show about a claim."""

    HOLDS = "holds"
    FAILS = "fails"
    CANNOT_TELL = "cannot tell"


@dataclass(frozen=True, kw_only=True)
class Condition:
    """Values of one field that a selection accepts: any of `values`, or a number from `low` to `high`."""

    field: Field
    values: tuple[str | float, ...] = ()
    low: float | None = None
    high: float | None = None

    def accepts(self, value: str | float | None) -> bool:
        """Return whether a score with this value is selected. An unknown value never is."""
        if value is None:
            return False
        if self.values:
            return value in self.values
        number = float(value)
        return (self.low is None or number >= self.low) and (self.high is None or number <= self.high)


Selection = tuple[Condition, ...]
"""Conditions that must all be fulfilled."""


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A claim.

    Attributes:
        name: Name of the claim.
        text: The claim in words.
        first: Selection of the scores that the claim is about.
        second: Selection of the scores that they are compared with; empty for a rank correlation.
        same: What is equal in a pair.
        value: What is compared.
        direction: What the claim says about the difference.
        margin: The margin, in points of the scale.
        exceptions: Tasks that the claim excepts.
        first_is_larger: In a pair, the model of the first has more parameters.
        size_ratio_at_most: In a pair, largest ratio of the sizes of the weights, first to second.
    """

    name: str
    text: str
    first: Selection
    second: Selection
    same: tuple[Field, ...]
    value: Value
    direction: Direction
    margin: float
    exceptions: tuple[str, ...] = ()
    first_is_larger: bool = False
    size_ratio_at_most: float | None = None

    def holds_for(self, difference: float) -> bool | None:
        """Return whether a difference agrees with the claim; None: it is exactly at the margin."""
        if self.direction is Direction.EQUIVALENT:
            return abs(difference) < self.margin
        if self.direction is Direction.DIFFERENT:
            return abs(difference) > self.margin
        beyond = self.signed(difference)
        return None if beyond == 0 else beyond > 0

    def signed(self, difference: float) -> float:
        """Return how far a difference is beyond the margin; above 0: it agrees. For directions of one side."""
        sides: Mapping[Direction, float] = {
            Direction.HIGHER: difference - self.margin,
            Direction.LOWER: -difference - self.margin,
            Direction.NOT_HIGHER: self.margin - difference,
            Direction.NOT_LOWER: self.margin + difference,
        }
        return sides[self.direction]
