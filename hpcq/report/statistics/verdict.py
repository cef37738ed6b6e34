"""Verdicts of comparisons, and Holm's correction for many of them."""

from __future__ import annotations

from collections.abc import Sequence

from hpcq.report.paired import Verdict
from hpcq.report.statistics.detectable import SIGNIFICANCE
from hpcq.report.statistics.intervals import Interval


def judge(difference: float, equivalence_interval: Interval, adjusted_p: float, margin: float) -> Verdict:
    """Return the verdict. A difference that is real but within the margin is equivalent.

    Args:
        difference: The difference.
        equivalence_interval: Its 90 % interval.
        adjusted_p: Its p-value, adjusted for all comparisons of the table.
        margin: Largest difference that does not matter, in the unit of the score.
    """
    if equivalence_interval.is_within(margin):
        return Verdict.EQUIVALENT
    if adjusted_p < SIGNIFICANCE:
        return Verdict.WORSE if difference < 0 else Verdict.BETTER
    return Verdict.CANNOT_TELL


def holm(p_values: Sequence[float]) -> list[float]:
    """Return the adjusted p-values, in the same order: they keep the error rate of all of them together.

    Source: S. Holm, Scand. J. Stat. 6 (1979), 65.
    """
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, at in enumerate(sorted(range(len(p_values)), key=lambda index: p_values[index])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[at]))
        adjusted[at] = largest
    return adjusted
