"""Mean difference over several tasks."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from math import sqrt
from typing import Protocol

from hpcq.core.frozen import dataclass
from hpcq.report.statistics.comparison import EQUIVALENCE_CONFIDENCE
from hpcq.report.statistics.distributions import normal_probability, normal_quantile
from hpcq.report.statistics.intervals import CONFIDENCE, Interval
from hpcq.report.statistics.shared_items import NO_CORRELATIONS, Correlations, correlation_of


class Difference(Protocol):
    """A difference of one task, and its standard error."""

    @property
    def difference(self) -> float:
        """The difference."""
        ...

    @property
    def error(self) -> float:
        """Its standard error."""
        ...


@dataclass(frozen=True, kw_only=True)
class SuiteComparison:
    """Mean of the differences of several tasks, all of the same weight.

    Attributes:
        difference: The mean.
        interval: Its 95 % interval.
        equivalence_interval: Its 90 % interval.
        p_value: Two-sided p-value of the hypothesis that it is 0.
        error: Its standard error.
    """

    difference: float
    interval: Interval
    equivalence_interval: Interval
    p_value: float
    error: float


def compare_suite(
    comparisons: Mapping[str, Difference], correlations: Correlations = NO_CORRELATIONS
) -> SuiteComparison:
    """Return the mean of the differences. Different items are independent, so variances of tasks with other items add.

    Args:
        comparisons: By task.
        correlations: Correlations of the differences of tasks with the same items.
    """
    count = len(comparisons)
    difference = sum(one.difference for one in comparisons.values()) / count
    variance = sum(one.error**2 for one in comparisons.values())
    for (first, one), (second, other) in combinations(comparisons.items(), 2):
        variance += 2 * correlation_of(correlations, first, second) * one.error * other.error
    error = sqrt(max(0.0, variance)) / count

    def interval(confidence: float) -> Interval:
        half = normal_quantile((1 + confidence) / 2) * error
        return Interval(low=difference - half, high=difference + half)

    return SuiteComparison(
        difference=difference,
        interval=interval(CONFIDENCE),
        equivalence_interval=interval(EQUIVALENCE_CONFIDENCE),
        p_value=2 * normal_probability(-abs(difference) / error) if error else 1.0,
        error=error,
    )
