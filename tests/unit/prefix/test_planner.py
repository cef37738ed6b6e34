"""Plans of forward passes: what an engine that follows them reads, caches and computes."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpcq.evaluate.prefix.batching import Budget
from hpcq.evaluate.prefix.planner import PassPlan, plan_passes, restrict
from hpcq.evaluate.prefix.radix_tree import TokenRequest
from hpcq.evaluate.prefix.token_counts import count_tokens
from tests.unit.prefix.strategies import budgets, token_request, token_request_lists


def _follow(plan: PassPlan, budget: Budget) -> Counter[tuple[int, tuple[int, ...], int]]:
    """Follow `plan` with tokens as KV; count the reads per (request, tokens before, token) and check every limit."""
    paths: dict[int, tuple[int, ...]] = {}
    sizes: dict[int, int] = {}
    read: Counter[tuple[int, tuple[int, ...], int]] = Counter()
    for step in plan.passes:
        rows = [((*paths.get(row.parent_id, ()), *row.tokens.tolist()), row) for row in step.rows]
        assert all(len(path) == row.start + len(row.tokens) for path, row in rows)
        places = [*zip(step.gather.row.tolist(), step.gather.column.tolist(), strict=True)]
        assert len({*places}) == len(places)
        for place, target, number in zip(step.gather.index, step.gather.target, step.gather.request, strict=True):
            path, row = rows[places[place][0]]
            assert places[place][1] < len(row.tokens)
            read[int(number), path[: row.start + places[place][1] + 1], int(target)] += 1
        paths |= {row.cache_id: path for path, row in rows if row.cache_id is not None}
        sizes |= {row.cache_id: len(row.tokens) for _, row in rows if row.cache_id is not None}
        used_tokens = len(rows) * (step.longest_prefix + step.longest_row)
        assert not step.uses_cache or sum(sizes.values()) + used_tokens <= budget.max_kv_tokens
        assert len(rows) <= budget.max_batch_rows
        assert step.num_padded_tokens <= budget.max_batch_tokens or len(rows) == 1
        for number in step.evict:
            del paths[number], sizes[number]
    assert not paths
    return read


def _unshared(requests: list[TokenRequest]) -> Counter[tuple[int, tuple[int, ...], int]]:
    """Return the reads when each request is computed alone."""
    return Counter(
        (number, tuple(one.tokens[: end + 1].tolist()), int(one.tokens[end + 1]))
        for number, one in enumerate(requests)
        for end in range(one.first_logit, one.input_length)
    )


@settings(max_examples=200)
@given(token_request_lists(), budgets)
def test_everything_is_read_once_within_limits(requests: list[TokenRequest], budget: Budget) -> None:
    """Every log-probability of unshared scoring is read once, after the same tokens, and no limit is exceeded."""
    assert _follow(plan_passes(requests, budget), budget) == _unshared(requests)


@settings(max_examples=100)
@given(token_request_lists(), budgets)
def test_a_request_is_finished_with_its_last_read(requests: list[TokenRequest], budget: Budget) -> None:
    """Each request is listed as finished once, in the last pass that reads for it."""
    steps = plan_passes(requests, budget).passes

    last = {int(number): index for index, step in enumerate(steps) for number in step.gather.request}

    assert last == {number: index for index, step in enumerate(steps) for number in step.finished}
    assert sum(len(step.finished) for step in steps) == len(requests)


@settings(max_examples=100)
@given(token_request_lists(), budgets)
def test_never_more_tokens_than_without_sharing(requests: list[TokenRequest], budget: Budget) -> None:
    """With any budget, computed tokens are at most lm-eval's, and these at most all tokens of the requests."""
    counts = count_tokens(requests, plan_passes(requests, budget))

    assert counts.computed <= counts.lm_eval <= counts.requested
    assert counts.computed <= counts.padded


@settings(max_examples=100)
@given(token_request_lists(), budgets, st.randoms(use_true_random=False))
def test_the_order_of_requests_changes_nothing(
    requests: list[TokenRequest], budget: Budget, chance: random.Random
) -> None:
    """The passes compute the same rows in the same order for any order of the requests."""
    shuffled = chance.sample(requests, len(requests))

    def rows(plan: PassPlan) -> list[list[tuple[list[int], int, bool]]]:
        return [[(row.tokens.tolist(), row.start, row.cache_id is None) for row in step.rows] for step in plan.passes]

    assert rows(plan_passes(shuffled, budget)) == rows(plan_passes(requests, budget))


@settings(max_examples=200)
@given(token_request_lists(), budgets, st.sets(st.integers(0, 30)))
def test_a_restricted_plan_has_only_the_needed_passes(
    requests: list[TokenRequest], budget: Budget, drawn: set[int]
) -> None:
    """A restricted plan consists of passes of the whole plan, reads everything that is wanted, and keeps all limits."""
    wanted = {number for number in drawn if number < len(requests)}
    whole = plan_passes(requests, budget)
    chosen = restrict(whole, wanted)

    read = _follow(chosen, budget)
    rows = [step.rows for step in whole.passes]

    assert {key: times for key, times in read.items() if key[0] in wanted} == {
        key: times for key, times in _unshared(requests).items() if key[0] in wanted
    }
    assert sorted(number for step in chosen.passes for number in step.finished) == sorted(wanted)
    assert all(step.rows in rows for step in chosen.passes)
    assert bool(chosen.passes) == bool(wanted)
    if len(wanted) == len(requests):
        assert [step.rows for step in chosen.passes] == rows


def _exam(questions: int, choices: int) -> list[TokenRequest]:
    """Return requests with a shared block of 500 tokens, questions of about 60 and choices of about 8 tokens."""
    found = []
    for question in range(questions):
        context = [*range(500), *([1000 + question] * (55 + question % 10))]
        found += [token_request([*context, *([2000 + choice] * (6 + choice))], 6 + choice) for choice in range(choices)]
    return found


def test_an_exam_is_computed_once() -> None:
    """Examples are computed first, then questions in parallel, then the choices of many questions in parallel."""
    requests = _exam(questions=20, choices=4)

    plan = plan_passes(requests, Budget())

    # The last token of a choice is not an input, only a target.
    assert plan.num_tokens == 500 + sum(55 + question % 10 for question in range(20)) + 20 * (5 + 6 + 7 + 8)
    assert len(plan.passes) < 10
    assert plan.num_padded_tokens < 1.15 * plan.num_tokens
    assert plan.unshared_rows == 0


def test_prefixes_beyond_the_budget_are_not_shared() -> None:
    """If the budget is smaller than a prefix, every request is computed alone and counted as unshared."""
    requests = _exam(questions=3, choices=2)

    plan = plan_passes(requests, Budget(max_kv_tokens=300))

    assert plan.num_tokens == sum(one.input_length for one in requests)
    assert not any(step.uses_cache for step in plan.passes)
    assert plan.unshared_rows == len(requests)


@pytest.mark.parametrize("kv_tokens", [1200, 2500, 10_000])
def test_a_small_budget_still_shares(kv_tokens: int) -> None:
    """A budget for the block and one request at a time is enough to compute everything once."""
    requests = _exam(questions=10, choices=4)

    plan = plan_passes(requests, Budget(max_kv_tokens=kv_tokens))

    assert plan.unshared_rows == 0
    assert plan.num_tokens == plan_passes(requests, Budget()).num_tokens


def test_a_long_question_does_not_affect_the_others() -> None:
    """A question that exceeds the budget together with its choice is computed unshared; the others are shared."""
    short = [token_request([1] * 100 + [choice] * 5, 5) for choice in range(2, 6)]
    long = [token_request([9] * 400 + [choice] * 50, 50) for choice in range(2, 4)]
    budget = Budget(max_kv_tokens=600)

    plan = plan_passes([*short, *long], budget)

    assert plan.unshared_rows == 2
    assert plan.num_tokens == 100 + 4 * 4 + 2 * 449
    assert _follow(plan, budget) == _unshared([*short, *long])


def test_cached_prefixes_leave_budget_for_their_children() -> None:
    """Only as many questions are cached as leave budget for the longest of their choices."""
    requests = [token_request([question] * 60 + [choice] * 600, 600) for question in range(4) for choice in (8, 9)]

    plan = plan_passes(requests, Budget(max_kv_tokens=60 + 660 + 30, pass_overhead_tokens=1))

    assert plan.unshared_rows == 0
    assert plan.num_tokens == 4 * (60 + 2 * 599)


def test_a_higher_pass_overhead_shares_less() -> None:
    """Two choices that share a few tokens are computed in one pass if the overhead of a pass exceeds those tokens."""
    requests = [token_request([1] * 9 + [5] * 4, 4), token_request([1] * 9 + [6] * 4, 4)]

    assert len(plan_passes(requests, Budget(pass_overhead_tokens=100)).passes) == 1
    assert len(plan_passes(requests, Budget(pass_overhead_tokens=1)).passes) == 2


def test_no_requests_need_no_passes() -> None:
    """The plan of an empty list has no passes."""
    assert plan_passes([], Budget()).passes == ()
