"""Divergence of two next-token distributions of which only the most probable tokens are known."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hpcq.core.frozen import dataclass
from hpcq.report.statistics.item_scores import Floats, Ints
from hpcq.report.statistics.least_divergence import PartlyKnown, least_divergence

ROUNDING = 1e-6
"""Error of the probability of all unlisted tokens, which is 1 minus the sum of 65 float32 numbers.

A softmax in float32 has a relative error of about 1e-7 per token. Q may have this much more outside its list.
"""


@dataclass(frozen=True, kw_only=True, eq=False)
class NextTokens:
    """What is known of a model's next-token distributions at the positions of a text.

    Attributes:
        ids: The most probable tokens, shape (positions, top).
        logprobs: Their log-probabilities, in nats, shape (positions, top).
        following: The token that follows in the text, shape (positions,).
        following_logprobs: Its log-probability, shape (positions,).
    """

    ids: Ints
    logprobs: Floats
    following: Ints
    following_logprobs: Floats


def divergence_bound(own: NextTokens, other: NextTokens) -> Floats:
    """Return a lower bound of KL(P || Q) at every position, in nats, shape (positions,).

    Tokens that both lists have, and the token that follows in the text, contribute p log(p / q). For all other tokens,
    the bound takes the smallest sum that is possible with what is known: an unlisted token is at most as probable as
    the least probable token of the list, and all of them together have the remaining probability
    (`hpcq.report.statistics.least_divergence`, with the proof). The true divergence is one of the possible ones, so the
    bound is not above it, except by rounding: `ROUNDING` nats, and this share of the divergence.

    Args:
        own: P.
        other: Q, at the same positions of the same text.
    """
    q = matched(own.ids, other)
    is_following = own.ids == own.following[:, None]
    is_shared = np.isfinite(q) & ~is_following
    terms = np.exp(own.logprobs) * (own.logprobs - np.where(is_shared, q, 0.0))
    known = np.where(is_shared, terms, 0.0).sum(axis=1)
    known += np.exp(own.following_logprobs) * (own.following_logprobs - other.following_logprobs)
    p_side = _unmatched(own, is_listed=~is_shared & ~is_following)
    q_side = _unmatched(
        other, is_listed=~np.isfinite(matched(other.ids, own)) & (other.ids != other.following[:, None]), more=ROUNDING
    )
    bound: Floats = np.maximum(0.0, known + least_divergence(p_side, q_side))
    return bound


def _unmatched(one: NextTokens, *, is_listed: NDArray[np.bool_], more: float = 0.0) -> PartlyKnown:
    """Return what is known of the tokens that not both lists have.

    Args:
        one: The distribution.
        is_listed: Which tokens of its list the other list lacks, shape (positions, top).
        more: Probability that is added to that of the unlisted tokens.
    """
    in_list = np.where(one.ids == one.following[:, None], 0.0, np.exp(one.logprobs)).sum(axis=1)
    return PartlyKnown(
        listed=np.where(is_listed, one.logprobs, -np.inf),
        rest=np.maximum(0.0, 1.0 - in_list - np.exp(one.following_logprobs)) + more,
        limit=one.logprobs.min(axis=1),
    )


def matched(ids: Ints, other: NextTokens) -> Floats:
    """Return the log-probabilities of `ids` in the other list, shape (positions, top); minus infinity: not in it."""
    order = np.argsort(other.ids, axis=1)
    sorted_ids = np.take_along_axis(other.ids, order, axis=1)
    # One search for all positions: ids of position i are raised by i times a number above every id.
    step = int(max(ids.max(initial=0), other.ids.max(initial=0))) + 1
    raised = np.arange(len(ids), dtype=np.int64)[:, None] * step
    keys, wanted = (sorted_ids + raised).ravel(), (ids + raised).ravel()
    at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    values = np.take_along_axis(other.logprobs, order, axis=1).ravel()[at]
    found: Floats = np.where(keys[at] == wanted, values, -np.inf).reshape(ids.shape)
    return found


def agrees(own: NextTokens, other: NextTokens) -> Floats:
    """Return 1 for each position at which both have the same most probable token, else 0, shape (positions,).

    Of several tokens with the largest probability, which are common in 16 bits, one must be the same.
    """
    best, best_of_other = (one.logprobs.max(axis=1, keepdims=True) for one in (own, other))
    is_best = (own.logprobs == best) & (matched(own.ids, other) == best_of_other)
    found: Floats = is_best.any(axis=1).astype(np.float64)
    return found
