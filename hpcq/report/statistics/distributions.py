"""Quantiles and probabilities: exact sums where they are short, else scipy, whose import takes 0.2 s."""

from __future__ import annotations

from functools import lru_cache
from math import atan, cos, exp, lgamma, log, log1p, pi, sin, sqrt
from statistics import NormalDist

_NORMAL = NormalDist()
_MAX_TERMS = 2000
"""Maximum degrees of freedom, and trials of a sign test, for which sums are computed here."""
_STEPS = 60
"""Maximum number of steps of Newton's method; 3 to 8 are usual."""


def normal_quantile(probability: float) -> float:
    """Return the quantile of the standard normal distribution."""
    return _NORMAL.inv_cdf(probability)


def normal_probability(value: float) -> float:
    """Return the probability that a standard normal variable is at most `value`."""
    return _NORMAL.cdf(value)


@lru_cache(maxsize=4096)
def student_quantile(freedom: int, probability: float) -> float:
    """Return the quantile of Student's t distribution with `freedom` degrees of freedom.

    Args:
        freedom: At least 1.
        probability: At least 0.5.
    """
    if freedom > _MAX_TERMS:
        from scipy.special import stdtrit

        return float(stdtrit(freedom, probability))
    # The normal quantile is below the result. The distribution is concave above 0, so Newton's steps only increase it.
    value = normal_quantile(probability)
    for _ in range(_STEPS):
        step = (probability - student_probability(freedom, value)) / _student_density(freedom, value)
        value += step
        if abs(step) <= 1e-15 * abs(value):
            break
    return value


def student_probability(freedom: int, value: float) -> float:
    """Return the probability that a variable with Student's t distribution is at most `value`, within 1e-14.

    Source: M. Abramowitz, I. A. Stegun, Handbook of Mathematical Functions (1964), 26.7.3 and 26.7.4.
    """
    if freedom > _MAX_TERMS:
        from scipy.special import stdtr

        return float(stdtr(freedom, value))
    angle = atan(value / sqrt(freedom))
    square, is_odd = cos(angle) ** 2, freedom % 2
    term = cos(angle) if is_odd else 1.0
    total = 0.0
    for at in range(2 + is_odd, freedom + 1 + is_odd, 2):
        total += term
        term *= square * (at - 1) / at
    within = 2 / pi * (angle + sin(angle) * total) if is_odd else sin(angle) * total
    return (1 + within) / 2


def _student_density(freedom: int, value: float) -> float:
    scale = lgamma((freedom + 1) / 2) - lgamma(freedom / 2) - log(freedom * pi) / 2
    return exp(scale - (freedom + 1) / 2 * log1p(value * value / freedom))


def sign_test_probability(successes: int, trials: int) -> float:
    """Return the probability of at most that many successes in `trials` with probability 0.5: exact, then rounded."""
    if trials > _MAX_TERMS:
        from scipy.special import bdtr

        return float(bdtr(successes, trials, 0.5))
    ways, total = 1, 0
    for at in range(successes + 1):
        total += ways
        ways = ways * (trials - at) // (at + 1)
    return float(total / (1 << trials))
