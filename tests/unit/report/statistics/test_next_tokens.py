"""Bound of the divergence of next-token distributions, against the exact divergence of whole vocabularies."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize

from hpcq.report.statistics.item_scores import Floats, Ints
from hpcq.report.statistics.least_divergence import PartlyKnown, least_divergence
from hpcq.report.statistics.next_tokens import NextTokens, agrees, divergence_bound

ROUNDING = 1e-6


def normalized(logits: Floats) -> Floats:
    """Log-softmax of each row."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    found: Floats = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return found


def top(logprobs: Floats, following: Ints, count: int) -> NextTokens:
    """What is stored of distributions, as float32."""
    rounded = logprobs.astype(np.float32).astype(np.float64)
    ids = np.argsort(-rounded, axis=1, kind="stable")[:, :count]
    rows = np.arange(len(logprobs))
    return NextTokens(
        ids=ids,
        logprobs=np.take_along_axis(rounded, ids, axis=1),
        following=following,
        following_logprobs=rounded[rows, following],
    )


@pytest.mark.parametrize("sharpness", [0.3, 3.0, 30.0, 100.0])
def test_the_bound_is_below_the_exact_divergence(sharpness: float) -> None:
    """Where predictions are flat or certain, the bound exceeds the exact divergence by rounding at most."""
    generator = np.random.default_rng(1)
    logits = generator.normal(size=(300, 1000)) * sharpness
    p, q = normalized(logits), normalized(logits + generator.normal(size=logits.shape) * 0.1 * sharpness)
    exact = (np.exp(p) * (p - q)).sum(axis=1)
    following = generator.integers(0, 1000, 300)
    bound = divergence_bound(top(p, following, 64), top(q, following, 64))
    assert np.all(bound <= exact * (1 + ROUNDING) + ROUNDING)
    assert np.all(bound >= 0)
    assert bound.mean() > (0.02 if sharpness < 1 else 0.6) * exact.mean()


@given(
    seed=st.integers(0, 2**32 - 1),
    sharpness=st.floats(0.01, 40.0),
    other_sharpness=st.floats(0.01, 40.0),
    shared=st.floats(0.0, 1.0),
    count=st.integers(1, 80),
)
def test_the_bound_is_valid_for_all_pairs(
    seed: int, sharpness: float, other_sharpness: float, shared: float, count: int
) -> None:
    """From equal to unrelated distributions, flat or certain, with short or long lists."""
    generator = np.random.default_rng(seed)
    first = generator.normal(size=(20, 300))
    second = shared * first + (1 - shared) * generator.normal(size=first.shape)
    p, q = normalized(first * sharpness), normalized(second * other_sharpness)
    exact = (np.exp(p) * (p - q)).sum(axis=1)
    following = generator.integers(0, 300, 20)
    bound = divergence_bound(top(p, following, count), top(q, following, count))
    assert np.all((bound >= 0) & (bound <= exact * (1 + ROUNDING) + ROUNDING))


def test_a_token_outside_the_list_of_the_variant_has_at_most_its_least_probability() -> None:
    """The baseline is certain of a token that the variant does not list: the bound is nearly exact, not almost zero."""
    p, q = np.full((1, 20_000), -30.0), np.zeros((1, 20_000))
    p[0, 7], q[0, 7], q[0, 100:164] = 0.0, 3.0, 3.01
    p, q = normalized(p), normalized(q)
    following = np.array([500])
    exact = float((np.exp(p) * (p - q)).sum())
    bound = float(divergence_bound(top(p, following, 64), top(q, following, 64))[0])
    assert exact == pytest.approx(6.96, abs=0.01)
    assert exact - 0.02 < bound <= exact


def test_a_token_outside_the_list_of_the_baseline_has_at_most_its_least_probability() -> None:
    """The variant is nearly certain of a token that a flat baseline does not list: the rest of the baseline is lost."""
    p, q = np.zeros((1, 20_000)), np.zeros((1, 20_000))
    p[0, 100:164], q[0, 7] = 0.01, np.log(20_000 * 99)
    p, q = normalized(p), normalized(q)
    following = np.array([100])
    exact = float((np.exp(p) * (p - q)).sum())
    bound = float(divergence_bound(top(p, following, 64), top(q, following, 64))[0])
    assert 4 < 0.9 * exact < bound <= exact


@pytest.mark.parametrize(("rest_p", "rest_q"), [(0.5, 0.5), (0.05, 0.6), (0.6, 0.05), (0.02, 0.03), (0.001, 0.1)])
def test_no_other_distribution_is_closer_than_the_least(rest_p: float, rest_q: float) -> None:
    """A numerical optimizer over all unknown probabilities finds the same minimum."""
    generator = np.random.default_rng(4)
    for _ in range(4):
        p, q = generator.uniform(0.01, 0.1, 3), generator.uniform(0.01, 0.1, 3)
        most_p, most_q = p.min() * generator.uniform(0.2, 1), q.min() * generator.uniform(0.2, 1)
        found = least_divergence(
            PartlyKnown(listed=np.log(p)[None], rest=np.array([rest_p]), limit=np.log([most_p])),
            PartlyKnown(listed=np.log(q)[None], rest=np.array([rest_q]), limit=np.log([most_q])),
        )

        def total(x: Floats, p: Floats = p, q: Floats = q) -> float:
            x = np.maximum(x, 1e-300)
            own = np.concatenate([p, x[3:6], [max(rest_p - x[3:6].sum(), 1e-300)]])
            other = np.concatenate([x[:3], q, [max(rest_q - x[:3].sum(), 1e-300)]])
            return float((own * np.log(own / other)).sum())

        start = np.concatenate([np.full(3, min(most_q, rest_q / 4)), np.full(3, min(most_p, rest_p / 4))])
        best = minimize(
            total,
            start,
            method="SLSQP",
            bounds=[(0, most_q)] * 3 + [(0, most_p)] * 3,
            constraints=[
                {"type": "ineq", "fun": lambda x: rest_q - x[:3].sum()},
                {"type": "ineq", "fun": lambda x: rest_p - x[3:].sum()},
            ],
            options={"ftol": 1e-13, "maxiter": 1000},
        )
        assert float(found[0]) == pytest.approx(best.fun, abs=1e-6)


@pytest.mark.parametrize("mass_of_best", [0.01, 0.5])
def test_a_variant_that_is_lost_where_the_baseline_is_certain_has_a_large_divergence(mass_of_best: float) -> None:
    """And a variant that is certain where the baseline is not: the bound is not near zero in either direction."""
    generator = np.random.default_rng(3)
    certain, lost = np.full((1, 1000), -30.0), np.full((1, 1000), np.log((1 - mass_of_best) / 999))
    certain[0, 0], lost[0, 0] = 0.0, np.log(mass_of_best)
    certain[0, 1:] += generator.normal(size=999)
    lost[0, 1:] += generator.normal(size=999) * 0.01
    for p, q in ((normalized(certain), normalized(lost)), (normalized(lost), normalized(certain))):
        exact = float((np.exp(p) * (p - q)).sum())
        for following in (np.array([0]), np.array([5])):
            bound = float(divergence_bound(top(p, following, 64), top(q, following, 64))[0])
            assert 0.4 * exact < bound <= exact * (1 + ROUNDING) + 2 * ROUNDING


def test_with_all_tokens_the_bound_is_exact() -> None:
    """If the lists have the whole vocabulary, nothing is lost."""
    generator = np.random.default_rng(2)
    logits = generator.normal(size=(50, 40)) * 3
    p, q = normalized(logits), normalized(logits + generator.normal(size=logits.shape))
    following = generator.integers(0, 40, 50)
    bound = divergence_bound(top(p, following, 40), top(q, following, 40))
    assert bound == pytest.approx((np.exp(p) * (p - q)).sum(axis=1), abs=ROUNDING)


def test_equal_distributions_have_no_divergence() -> None:
    """Also where the probability of the other tokens is rounding."""
    logits = np.array([[0.0, -40.0, -50.0, -60.0], [1.0, 0.0, -1.0, -2.0]])
    one = top(normalized(logits), np.array([0, 3]), 2)
    assert divergence_bound(one, one).tolist() == [0.0, 0.0]


def test_a_token_that_follows_counts_outside_the_lists() -> None:
    """A change of the token that follows is seen although neither list has it."""
    p = normalized(np.array([[5.0, 4.0, 1.0, 1.0, 0.0]]))
    q = normalized(np.array([[5.0, 4.0, 1.5, -1.0, 1.5]]))
    following = np.array([3])
    seen = divergence_bound(top(p, following, 2), top(q, following, 2))
    unseen = divergence_bound(top(p, np.array([0]), 2), top(q, np.array([0]), 2))
    assert 0 < unseen < seen < float((np.exp(p) * (p - q)).sum())


def test_one_of_several_equal_predictions_is_enough_to_agree() -> None:
    """In 16 bits, several tokens often have the largest probability."""
    p = normalized(np.array([[2.0, 2.0, 0.0], [2.0, 1.0, 0.0], [2.0, 1.0, 0.0]]))
    q = normalized(np.array([[0.0, 2.0, 2.0], [2.0, 1.0, 0.0], [1.0, 2.0, 0.0]]))
    following = np.zeros(3, dtype=np.int64)
    assert agrees(top(p, following, 2), top(q, following, 2)).tolist() == [1.0, 1.0, 0.0]
