"""Smallest difference that a number of items can show, after or before a run. Imports neither numpy nor scipy."""

from __future__ import annotations

from math import sqrt

POWER, SIGNIFICANCE = 0.8, 0.05

_QUANTILES = 1.959963984540054 + 0.8416212335729143
"""Standard errors between no difference and one that is found with this power: quantiles of the normal distribution at
1 - `SIGNIFICANCE` / 2 and at `POWER`. Numbers, because the imports of `statistics` take 10 ms."""


def detectable_difference(error: float) -> float:
    """Return the difference that is found with `POWER` at `SIGNIFICANCE`, two-sided, at this standard error."""
    return _QUANTILES * error


def detectable_before(n: int, changed_share: float) -> float:
    """Return the difference of accuracies that `n` items can show, if that share of them changes."""
    return detectable_difference(sqrt(changed_share / n))
