"""Bootstrap-t of a sum of influences: intervals and p-values that need no normal distribution. Seeded.

A resample is how often each item was drawn. Samples with the same strata share their resamples: one matrix of these
counts times the matrix of all their influences gives all resampled sums, and likewise all sums of squares.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from hpcq.core.frozen import dataclass
from hpcq.report.statistics.distributions import student_probability, student_quantile
from hpcq.report.statistics.intervals import Interval, standard_error
from hpcq.report.statistics.item_scores import Floats, Ints

RESAMPLES = 9_999
SEED = 1234
_LARGEST = 1e6
_MAX_DEGENERATE = 0.01
"""Share of the resamples without variance up to which the quantiles are usable: the tails of a 95 % interval are 2.5 %.

More means that few items differ from the others, so that many resamples have none of them.
"""
_ROUNDING = 1e-12
"""Variance, relative to that of all items, and error, relative to the influences, that are rounding."""
_CELLS = 500_000
"""Maximum number of counts that are in memory at once: 4 MB."""
_COLUMNS = 64
"""Maximum number of samples that share the same counts. The resamples of each need 160 kB: sums and variances."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Sample:
    """Items whose sum is resampled.

    Attributes:
        influences: Shape (items,); their sum is 0 in each stratum.
        strata: Index of each item's stratum, shape (items,).
    """

    influences: Floats
    strata: Ints


@dataclass(frozen=True, kw_only=True, eq=False)
class BootstrapT:
    """Distribution of the studentized estimate.

    Attributes:
        error: Standard error of the estimate.
        quantiles: Sorted values of (resampled estimate - estimate) / resampled standard error, shape (resamples,).
        freedom: Degrees of freedom of the error.
        is_usable: Whether the resamples show the distribution: nearly all have a variance. Otherwise Student's is used.
    """

    error: float
    quantiles: Floats
    freedom: int = 0
    is_usable: bool = False

    def interval(self, estimate: float, confidence: float, error: float) -> Interval:
        """Return the interval of the estimate with this standard error; Student's if the resamples are unusable."""
        if not self.is_usable:
            half = student_quantile(max(1, self.freedom), (1 + confidence) / 2) * error
            return Interval(low=estimate - half, high=estimate + half)
        low, high = np.quantile(self.quantiles, ((1 - confidence) / 2, (1 + confidence) / 2))
        return Interval(low=float(estimate - high * error), high=float(estimate - low * error))

    def p_value(self, estimate: float, error: float) -> float:
        """Return the two-sided p-value of an estimate of 0; from resamples at least 2 / (resamples + 1)."""
        if not error:
            return 1.0
        studentized = estimate / error
        if not self.is_usable:
            return 2 * student_probability(max(1, self.freedom), -abs(studentized))
        below = int(np.searchsorted(self.quantiles, studentized, side="right"))
        above = len(self.quantiles) - int(np.searchsorted(self.quantiles, studentized, side="left"))
        return min(1.0, 2 * (min(below, above) + 1) / (len(self.quantiles) + 1))


def bootstrap_t(influences: Floats, strata: Ints) -> BootstrapT:
    """Resample `influences` within their strata; see `Sample`."""
    return bootstrap_t_of([Sample(influences=influences, strata=strata)])[0]


def bootstrap_t_of(samples: Sequence[Sample]) -> list[BootstrapT]:
    """Resample the items of each sample within their strata, and return the results in the same order.

    Source: B. Efron, R. J. Tibshirani, An Introduction to the Bootstrap (1993), 12.5. The seed is fixed: the
    same items give the same digits, also beside other samples.
    """
    found: list[BootstrapT | None] = [None] * len(samples)
    alike: dict[bytes, list[int]] = {}
    for at, sample in enumerate(samples):
        spread = standard_error(sample.influences, sample.strata)
        if spread is None or spread.error <= _ROUNDING * float(np.abs(sample.influences).max(initial=0.0)):
            found[at] = BootstrapT(error=0.0, quantiles=np.zeros(RESAMPLES))
        else:
            alike.setdefault(sample.strata.tobytes(), []).append(at)
    for group in alike.values():
        for start in range(0, len(group), _COLUMNS):
            part = group[start : start + _COLUMNS]
            for at, one in zip(part, _resampled([samples[at] for at in part]), strict=True):
                found[at] = one
    return [one for one in found if one is not None]


def _resampled(samples: Sequence[Sample]) -> Iterator[BootstrapT]:
    """Yield the results of samples with the same strata, all of which vary."""
    strata = samples[0].strata
    influences = np.column_stack([sample.influences for sample in samples])
    sums, variances = np.zeros((2, RESAMPLES, len(samples)))
    generator = np.random.default_rng(SEED)
    for stratum in np.unique(strata):
        own = influences[strata == stratum]
        if len(own) > 1:
            _add_resamples(own - own.mean(axis=0), generator, sums, variances)
    for at, sample in enumerate(samples):
        yield _studentized(sample, sums[:, at], variances[:, at])


def _studentized(sample: Sample, sums: Floats, variances: Floats) -> BootstrapT:
    spread = standard_error(sample.influences, sample.strata)
    if spread is None:  # a sample that varies has one
        raise ValueError("no stratum has two items")
    # A resample without variance has no studentized value: it counts as the largest in its direction.
    varies = variances > _ROUNDING * spread.error**2
    errors = np.sqrt(np.maximum(0.0, variances))
    studentized = np.divide(sums, errors, out=np.sign(sums) * _LARGEST, where=varies)
    return BootstrapT(
        error=spread.error,
        quantiles=np.sort(np.clip(studentized, -_LARGEST, _LARGEST)),
        freedom=spread.freedom,
        is_usable=float(np.mean(~varies)) <= _MAX_DEGENERATE,
    )


def _add_resamples(own: Floats, generator: np.random.Generator, sums: Floats, variances: Floats) -> None:
    """Add sum and variance of each resample of one stratum.

    Args:
        own: Influences of its items, shape (items, samples).
        generator: Source of the resamples.
        sums: Shape (resamples, samples).
        variances: Shape (resamples, samples).
    """
    n, columns = own.shape
    moments = np.concatenate([own, own**2], axis=1)
    rows = max(1, _CELLS // n)
    first_cells = n * np.arange(rows)[:, None]
    for start in range(0, len(sums), rows):
        part = slice(start, min(start + rows, len(sums)))
        size = part.stop - part.start
        drawn = generator.integers(0, n, size=(size, n)) + first_cells[:size]
        counts = np.bincount(drawn.ravel(), minlength=size * n).reshape(size, n)
        totals, squares = np.split(counts.astype(np.float64) @ moments, [columns], axis=1)
        sums[part] += totals
        variances[part] += n / (n - 1) * (squares - totals**2 / n)
