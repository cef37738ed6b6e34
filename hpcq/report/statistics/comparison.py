"""Paired comparison of a variant with its baseline on the same items."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from math import sqrt

import numpy as np

from hpcq.core.frozen import dataclass
from hpcq.report.statistics.bootstrap import BootstrapT, Sample, bootstrap_t_of
from hpcq.report.statistics.detectable import detectable_difference
from hpcq.report.statistics.distributions import normal_quantile, sign_test_probability
from hpcq.report.statistics.intervals import CONFIDENCE, Interval, standard_error
from hpcq.report.statistics.item_scores import ItemScores

EQUIVALENCE_CONFIDENCE = 0.90
"""Two one-sided tests at 5 % are equivalent to a look at the 90 % interval (D. J. Schuirmann, 1987)."""

MIN_CLUSTERS = 20
"""A group of at least so many tasks is compared by the differences of its tasks: items of one subject are similar.

With fewer clusters the interval of a cluster-robust estimate is too narrow (A. C. Cameron, D. L. Miller, J. Human
Resources 50 (2015), 317), and tasks are strata.
"""


class Method(StrEnum):
    """Test and interval of the difference."""

    MCNEMAR = "McNemar, exact"
    BOOTSTRAP = "paired bootstrap"
    CLUSTERED = "paired bootstrap of subjects"
    SIGN = "sign test"


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Difference between a variant and its baseline in one metric of one task or group.

    Attributes:
        n: Number of items.
        difference: Score of the variant minus that of the baseline.
        interval: 95 % interval of the difference.
        equivalence_interval: 90 % interval of the difference, for the test of equivalence.
        p_value: Two-sided p-value of the hypothesis that there is no difference.
        method: How the interval and the p-value were computed.
        gained: Items that only the variant answers correctly; None if items are not just right or wrong.
        lost: Items that only the baseline answers correctly.
        recovery: Score of the variant divided by that of the baseline; None if the baseline has 0.
        recovery_interval: 95 % interval of the recovery.
        error: Standard error of the difference.
        detectable: Smallest difference that is found with 80 % power at 5 % significance, with this number of items
            and this share of items that differ.
    """

    n: int
    difference: float
    interval: Interval
    equivalence_interval: Interval
    p_value: float
    method: Method
    gained: int | None
    lost: int | None
    recovery: float | None
    recovery_interval: Interval | None
    error: float
    detectable: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Preparation:
    """What a comparison needs from its items, without the items themselves: a report has thousands of comparisons.

    Attributes:
        n: Number of items.
        difference: Score of the variant minus that of the baseline.
        changes: Items that only the variant, and only the baseline, answers correctly; None if items are not just
            right or wrong.
        ordered: Items with a higher and with a lower value than the baseline's.
        is_clustered: Whether tasks are resampled as wholes.
        is_bounded: Whether the score of each item is between 0 and 1.
        sample: What must be resampled; None: nothing.
        ratio: Score of the variant divided by that of the baseline; None if the baseline has 0.
        ratio_error: Standard error of `ratio`, times the score of the baseline, by the delta method.
        baseline_score: Score of the baseline.
    """

    n: int
    difference: float
    changes: tuple[int, int] | None
    ordered: tuple[int, int]
    is_clustered: bool
    is_bounded: bool
    sample: Sample | None
    ratio: float | None
    ratio_error: float
    baseline_score: float


def compare(variant: ItemScores, baseline: ItemScores) -> Comparison | None:
    """Compare on the items that both have; None if they are not the same, or fewer than two.

    Right or wrong items: exact McNemar test, and the interval of Bonett and Price. Others: a bootstrap. Groups of many
    tasks: a bootstrap of their tasks, unless these differ no more than independent items do. If nearly all other items
    differ by the same: a sign test, and an interval as wide as that of right or wrong items none of which has changed.
    """
    prepared = prepare(variant, baseline)
    return None if prepared is None else compare_all([prepared])[0]


def prepare(variant: ItemScores, baseline: ItemScores) -> Preparation | None:
    """Return what `compare_all` needs; None if the items are not the same, or fewer than two."""
    if len(variant) < 2 or not variant.has_items_of(baseline):  # noqa: PLR2004
        return None
    difference = variant.score - baseline.score
    is_binary = variant.is_binary and baseline.is_binary
    ordered = int(np.sum(variant.values > baseline.values)), int(np.sum(variant.values < baseline.values))
    is_clustered = len(variant.shares) >= MIN_CLUSTERS
    ratio = variant.score / baseline.score if baseline.score > 0 else None
    spread = None if ratio is None else standard_error(variant.influences - ratio * baseline.influences, variant.strata)
    return Preparation(
        n=len(variant),
        difference=difference,
        changes=ordered if is_binary else None,
        ordered=ordered,
        is_clustered=is_clustered,
        is_bounded=variant.is_bounded and baseline.is_bounded,
        sample=None if is_binary and not is_clustered else _sample(variant, baseline, difference),
        ratio=ratio,
        ratio_error=spread.error if spread else 0.0,
        baseline_score=baseline.score,
    )


def _sample(variant: ItemScores, baseline: ItemScores, difference: float) -> Sample:
    """Return the items within their tasks, or whole tasks if there are many."""
    if len(variant.shares) < MIN_CLUSTERS:
        return Sample(influences=variant.influences - baseline.influences, strata=variant.strata)
    of_tasks = variant.shares * (variant.stratum_scores - baseline.stratum_scores - difference)
    return Sample(influences=of_tasks, strata=np.zeros(len(of_tasks), dtype=np.int64))


def compare_all(prepared: Sequence[Preparation]) -> list[Comparison]:
    """Return the comparisons, in the same order."""
    resampled = iter(bootstrap_t_of([one.sample for one in prepared if one.sample]))
    return [_compare(one, next(resampled) if one.sample else None) for one in prepared]


def _compare(prepared: Preparation, found: BootstrapT | None) -> Comparison:
    is_binary = prepared.changes is not None
    # Right or wrong items have at least the error of independent items. If few others differ, one more could change.
    changes = prepared.changes or (0, 0)
    floor = 0.0 if found and found.is_usable and not is_binary else bonett_price_error(*changes, prepared.n)
    if found is not None and found.error > floor:
        method, error = Method.CLUSTERED if prepared.is_clustered else Method.BOOTSTRAP, found.error
        wide, narrow = (
            found.interval(prepared.difference, level, error) for level in (CONFIDENCE, EQUIVALENCE_CONFIDENCE)
        )
        p_value = found.p_value(prepared.difference, error)
    else:
        method, p_value = Method.MCNEMAR if is_binary else Method.SIGN, mcnemar_p_value(*prepared.ordered)
        error, shift = floor, 0.0 if is_binary else prepared.difference
        wide, narrow = (
            bonett_price_interval(*changes, prepared.n, level).shifted(shift)
            for level in (CONFIDENCE, EQUIVALENCE_CONFIDENCE)
        )
    if prepared.is_bounded:
        wide, narrow = wide.limited(-1.0, 1.0), narrow.limited(-1.0, 1.0)
    return Comparison(
        n=prepared.n,
        difference=prepared.difference,
        interval=wide,
        equivalence_interval=narrow,
        p_value=p_value,
        method=method,
        gained=prepared.changes[0] if prepared.changes else None,
        lost=prepared.changes[1] if prepared.changes else None,
        recovery=prepared.ratio,
        recovery_interval=_recovery_interval(prepared, error),
        error=error,
        detectable=detectable_difference(error),
    )


def mcnemar_p_value(gained: int, lost: int) -> float:
    """Return the two-sided p-value of McNemar's exact test: a sign test of the items that changed.

    Source: Q. McNemar, Psychometrika 12 (1947), 153; exact form as in statsmodels and R's `exact2x2`.
    """
    changed = gained + lost
    return min(1.0, 2 * sign_test_probability(min(gained, lost), changed)) if changed else 1.0


def bonett_price_error(gained: int, lost: int, n: int) -> float:
    """Return the standard error of `bonett_price_interval`."""
    up, down = (gained + 1) / (n + 2), (lost + 1) / (n + 2)
    return sqrt((up + down - (up - down) ** 2) / (n + 2))


def bonett_price_interval(gained: int, lost: int, n: int, confidence: float = CONFIDENCE) -> Interval:
    """Return the interval of a difference of paired proportions. It has a width also if no item changed.

    Source: D. G. Bonett, R. M. Price, J. Educ. Behav. Stat. 37 (2012), 479, eq. 10.
    """
    half = normal_quantile((1 + confidence) / 2) * bonett_price_error(gained, lost, n)
    center = (gained - lost) / (n + 2)
    return Interval(low=max(-1.0, center - half), high=min(1.0, center + half))


def _recovery_interval(prepared: Preparation, error: float) -> Interval | None:
    """Return the interval of the ratio of the scores by the delta method, at least as wide as the difference's."""
    if prepared.ratio is None:
        return None
    half = normal_quantile((1 + CONFIDENCE) / 2) * max(prepared.ratio_error, error) / prepared.baseline_score
    return Interval(low=prepared.ratio - half, high=prepared.ratio + half)
