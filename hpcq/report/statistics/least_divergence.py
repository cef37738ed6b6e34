"""Smallest divergence of two distributions of which each is known on a list of its own, and limited elsewhere.

P is known on its list, Q on another. Unknown are q of the tokens i that only P lists, p of the tokens j that only Q
lists, and both of the tokens that neither lists; these are one cell "others" with probabilities p_o and q_o. A token
that a list lacks is at most as probable as the least probable token of the list: q_i <= c and p_j <= m. Minimize

    sum_i p_i log(p_i / q_i) + sum_j p_j log(p_j / q_j) + p_o log(p_o / q_o)

    over 0 <= q_i <= c, 0 <= p_j <= m, p_o, q_o >= 0, with sum_j p_j + p_o = p_rest and sum_i q_i + q_o = q_rest.

The true probabilities satisfy these conditions, and by the log-sum inequality the cell of the others contributes at
most what its tokens contribute (T. M. Cover, J. A. Thomas, Elements of Information Theory, 2006, theorem 2.7.1). So the
minimum is at most the true sum. No larger bound is valid, if the vocabulary has enough others to be within the limits.

The problem is convex. With multipliers s of q_rest and r of p_rest, zero derivatives are

    q_i = min(c, p_i / s)        p_j = min(m, r q_j)        p_o = r q_o, where r = s if there are others, else r <= s.

This is water-filling on both sides: tokens that their limit does not reach have one common ratio p / q, which is also
that of the others. The ratios are roots of continuous, piecewise linear functions:

    D_q(s) = sum_i min(c s, p_i) - q_rest s      = -s q_o
    D_p(r) = p_rest - sum_j min(m, q_j r)        = p_o
    D = D_p + D_q                                = p_o - r q_o

D_q and D_p, divided by the ratio, never rise, so each changes its sign once, from plus to minus: at s_0 and at r_0. If
s_0 < r_0, D is positive below s_0 and negative above r_0. Between them its p_o falls and its q_o rises, so it has one
root, which is r = s. Otherwise the lists leave nothing for the others: r = r_0 and s = s_0.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hpcq.core.frozen import dataclass
from hpcq.report.statistics.item_scores import Floats


@dataclass(frozen=True, kw_only=True, eq=False)
class PartlyKnown:
    """A distribution of which the tokens of a list are known.

    Attributes:
        listed: Log-probabilities of the tokens that the other distribution does not list, in nats, shape (positions,
            tokens); minus infinity where there is none.
        rest: Probability of all tokens that this distribution does not list, shape (positions,).
        limit: Log-probability that none of them exceeds, shape (positions,).
    """

    listed: Floats
    rest: Floats
    limit: Floats


def least_divergence(p: PartlyKnown, q: PartlyKnown) -> Floats:
    """Return the minimum of the sum above for the tokens that are not in both lists, in nats, shape (positions,).

    Args:
        p: P.
        q: Q. Its `rest` must be positive.
    """
    ratio_p, ratio_q = _ratios(p, q)
    with np.errstate(divide="ignore", invalid="ignore"):
        log_p, log_q = np.log(ratio_p)[:, None], np.log(ratio_q)[:, None]
        chosen = np.where(np.isfinite(q.listed), np.minimum(p.limit[:, None], log_p + q.listed), -np.inf)
        others = np.log(np.maximum(0.0, p.rest - np.exp(chosen).sum(axis=1)))[:, None]
        of_p = _weighted(p.listed, np.maximum(p.listed - q.limit[:, None], log_q))
        of_q = _weighted(chosen, chosen - q.listed)
        found: Floats = of_p + of_q + _weighted(others, log_p)
    return found


def _ratios(p: PartlyKnown, q: PartlyKnown) -> tuple[Floats, Floats]:
    """Return r and s, both of shape (positions,)."""
    # A token of P's list leaves the common ratio where Q's limit reaches it, and the reverse.
    of_q = _Pieces.at(p.listed, p.listed - q.limit[:, None])
    of_p = _Pieces.at(p.limit[:, None] + np.zeros_like(q.listed), p.limit[:, None] - q.listed, is_minus=True)
    nothing = np.zeros_like(p.rest)
    # A root is undefined where there is nothing to distribute.
    ratio_p = np.nan_to_num(_root(of_p, p.rest, nothing), nan=np.inf, posinf=np.inf)
    ratio_q = np.nan_to_num(_root(of_q, nothing, q.rest), nan=0.0, posinf=np.inf)
    has_others = ratio_q < ratio_p
    joint = _root(of_q.of(has_others).and_of(of_p.of(has_others)), p.rest[has_others], q.rest[has_others])
    ratio_p[has_others] = ratio_q[has_others] = joint
    return ratio_p, ratio_q


@dataclass(frozen=True, kw_only=True, eq=False)
class _Pieces:
    """Terms min(slope x, value) or their negatives, as functions of a ratio x.

    Attributes:
        ends: Ratio at which each term reaches its value, shape (positions, terms).
        values: Shape (positions, terms); negative if the term is subtracted.
        slopes: The same for the slopes.
    """

    ends: Floats
    values: Floats
    slopes: Floats

    @classmethod
    def at(cls, log_values: Floats, log_ends: Floats, *, is_minus: bool = False) -> _Pieces:
        """Return the terms that reach exp(`log_values`) at exp(`log_ends`); an infinite end is no term."""
        is_term = np.isfinite(log_values) & np.isfinite(log_ends)
        sign = -1.0 if is_minus else 1.0
        with np.errstate(over="ignore", invalid="ignore"):
            ends = np.where(is_term, np.exp(log_ends), np.inf)
            values = np.where(is_term, sign * np.exp(log_values), 0.0)
            slopes = np.where(is_term, sign * np.exp(log_values - log_ends), 0.0)
        return cls(ends=ends, values=values, slopes=slopes)

    def of(self, positions: NDArray[np.bool_]) -> _Pieces:
        """Return the terms of some positions."""
        return _Pieces(ends=self.ends[positions], values=self.values[positions], slopes=self.slopes[positions])

    def and_of(self, other: _Pieces) -> _Pieces:
        """Return the terms of both."""
        parts = ((self.ends, other.ends), (self.values, other.values), (self.slopes, other.slopes))
        ends, values, slopes = (np.concatenate(part, axis=1) for part in parts)
        return _Pieces(ends=ends, values=values, slopes=slopes)


def _root(pieces: _Pieces, offset: Floats, rate: Floats) -> Floats:
    """Return where offset + sum of the terms - rate x changes from plus to minus, shape (positions,).

    Infinity: nowhere. NaN: it is zero up to the first end.
    """
    order = np.argsort(pieces.ends, axis=1)
    ends, values, slopes = (np.take_along_axis(one, order, axis=1) for one in vars(pieces).values())
    first = np.zeros((len(ends), 1))
    # Linear pieces from left to right: before the first end, between two, after the last.
    constants = offset[:, None] + np.concatenate([first, values.cumsum(axis=1)], axis=1)
    falls = rate[:, None] - np.concatenate([slopes[:, ::-1].cumsum(axis=1)[:, ::-1], first], axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        at_ends = np.where(np.isfinite(ends), constants[:, :-1] - falls[:, :-1] * ends, -np.inf)
        piece = (at_ends > 0).sum(axis=1)[:, None]
        found: Floats = (np.take_along_axis(constants, piece, 1) / np.take_along_axis(falls, piece, 1))[:, 0]
    return found


def _weighted(logs: Floats, ratios: Floats) -> Floats:
    """Return the sum of exp(logs) * ratios of each row, without terms of probability zero."""
    is_term: NDArray[np.bool_] = np.isfinite(logs)
    with np.errstate(invalid="ignore"):
        found: Floats = np.where(is_term, np.exp(logs) * ratios, 0.0).sum(axis=1)
    return found
