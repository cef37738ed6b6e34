"""Scores of single items, and items of two variants in pairs."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpcq.core.frozen import dataclass

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, eq=False)
class ItemScores:
    """Items of one metric of one variant. The score is a ratio of sums per stratum, averaged over the strata.

    With s the strata and i the items of a stratum: score = sum_s share_s * (sum_i value_i / sum_i weight_i). A mean has
    weights of 1. An instruction-level accuracy has the number of correct instructions as value, and the number of
    instructions as weight. A task has one stratum, a group has one per task.

    Attributes:
        keys: Names of the items in sorted order, shape (items,): the same item has the same name in all variants.
            Texts, or records of task, index and prompt.
        values: Shape (items,).
        weights: Shape (items,).
        strata: Index of each item's stratum, shape (items,).
        shares: Share of each stratum in the score, shape (strata,). Their sum is 1.
    """

    keys: NDArray[Any]
    values: Floats
    weights: Floats
    strata: Ints
    shares: Floats

    def __len__(self) -> int:
        return len(self.keys)

    def has_items_of(self, other: ItemScores) -> bool:
        """Whether the items of `other` are the same."""
        return self.keys.dtype == other.keys.dtype and np.array_equal(self.keys, other.keys)

    @property
    def is_binary(self) -> bool:
        """Whether each item is right or wrong, and all count the same."""
        sizes = np.bincount(self.strata, minlength=len(self.shares))
        return bool(
            np.isin(self.values, (0.0, 1.0)).all()
            and (self.weights == 1.0).all()
            and np.allclose(self.shares, sizes / max(1, len(self)), rtol=1e-9)
        )

    @property
    def is_bounded(self) -> bool:
        """Whether the score of each item is between 0 and 1."""
        return bool(((self.values >= 0.0) & (self.values <= self.weights)).all())

    @property
    def stratum_scores(self) -> Floats:
        """Score of each stratum, shape (strata,)."""
        values = np.bincount(self.strata, self.values, minlength=len(self.shares))
        ratios: Floats = values / np.bincount(self.strata, self.weights, minlength=len(self.shares))
        return ratios

    @property
    def score(self) -> float:
        """The score."""
        return float(np.sum(self.shares * self.stratum_scores))

    @property
    def influences(self) -> Floats:
        """Contribution of each item to the error of the score, to first order (Taylor linearization).

        Their sum is 0 in each stratum: they show how items vary within the strata, not how strata vary.

        Source: W. G. Cochran, Sampling Techniques (1977), 6.4 (ratio estimates) and 5.6 (stratified samples).
        """
        totals = np.bincount(self.strata, self.weights, minlength=len(self.shares))
        residuals = self.values - self.stratum_scores[self.strata] * self.weights
        scaled: Floats = self.shares[self.strata] * residuals / totals[self.strata]
        return scaled


def one_stratum(keys: NDArray[np.str_], values: Floats, weights: Floats | None = None) -> ItemScores:
    """Return the items of a task, sorted by their names."""
    order = np.argsort(keys, kind="stable")
    return ItemScores(
        keys=keys[order],
        values=values[order],
        weights=np.ones(len(keys)) if weights is None else weights[order],
        strata=np.zeros(len(keys), dtype=np.int64),
        shares=np.ones(1),
    )
