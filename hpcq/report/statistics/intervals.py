"""Confidence intervals of single scores."""

from __future__ import annotations

from math import sqrt

import numpy as np

from hpcq.core.frozen import dataclass
from hpcq.report.statistics.distributions import normal_quantile, student_quantile
from hpcq.report.statistics.item_scores import Floats, Ints, ItemScores

CONFIDENCE = 0.95


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A confidence interval."""

    low: float
    high: float

    def is_within(self, margin: float) -> bool:
        """Whether all of it is between `-margin` and `margin`."""
        return -margin < self.low and self.high < margin

    def shifted(self, by: float) -> Interval:
        """Return the interval, moved."""
        return Interval(low=self.low + by, high=self.high + by)

    def limited(self, low: float, high: float) -> Interval:
        """Return the part that a quantity with this range can have."""
        return Interval(low=max(low, self.low), high=min(high, self.high))


def wilson_interval(correct: float, n: int, confidence: float = CONFIDENCE) -> Interval:
    """Return the interval of a proportion.

    Source: E. B. Wilson, J. Am. Stat. Assoc. 22 (1927), 209.
    """
    z = normal_quantile((1 + confidence) / 2)
    share, scale = correct / n, 1 + z * z / n
    center = (share + z * z / (2 * n)) / scale
    half = z * sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / scale
    return Interval(low=max(0.0, center - half), high=min(1.0, center + half))


def score_interval(items: ItemScores, confidence: float = CONFIDENCE) -> Interval | None:
    """Return the interval of a score: Wilson's for proportions, else from Student's t; None if there is one item.

    If the score of each item is between 0 and 1, the interval is cut at these ends. If all items have the worst or the
    best score, Student's t has no width, and the interval is Wilson's for as many right or wrong items.
    """
    if items.is_binary:
        return wilson_interval(float(items.values.sum()), len(items), confidence)
    spread = standard_error(items.influences, items.strata)
    if spread is None:
        return None
    half = student_quantile(spread.freedom, (1 + confidence) / 2) * spread.error
    interval = Interval(low=items.score - half, high=items.score + half)
    if not items.is_bounded:
        return interval
    is_at_end = items.score <= 0.0 or bool((items.values == items.weights).all())
    return (
        wilson_interval(items.score * len(items), len(items), confidence) if is_at_end else interval.limited(0.0, 1.0)
    )


@dataclass(frozen=True, kw_only=True)
class StandardError:
    """A standard error and its degrees of freedom."""

    error: float
    freedom: int


def standard_error(influences: Floats, strata: Ints) -> StandardError | None:
    """Return the standard error of a sum of `influences` of items that were drawn within strata.

    Strata of one item contribute no variance. None: no stratum has two items.
    """
    sizes = np.bincount(strata).astype(np.float64)
    sums, squares = np.bincount(strata, influences), np.bincount(strata, influences**2)
    usable = sizes > 1
    if not usable.any():
        return None
    sizes, sums, squares = sizes[usable], sums[usable], squares[usable]
    variance = float(np.sum(sizes / (sizes - 1) * np.maximum(0.0, squares - sums**2 / sizes)))
    return StandardError(error=sqrt(variance), freedom=int(np.sum(sizes - 1)))
