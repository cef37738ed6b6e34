"""The schedule of a tree: what an engine that follows it reads, holds and computes."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpcq.evaluate.prefix.batching import Limits
from hpcq.evaluate.prefix.planner import Schedule, part, schedule
from hpcq.evaluate.prefix.radix_tree import Ask
from hpcq.evaluate.prefix.token_counts import count
from tests.unit.prefix.drawing import ask, asks, limits


def _follow(plan: Schedule, budget: Limits) -> Counter[tuple[int, tuple[int, ...], int]]:
    """Follow `plan` with texts for KV: how often each (ask, tokens before, token) is read; every limit is checked."""
    paths: dict[int, tuple[int, ...]] = {}
    sizes: dict[int, int] = {}
    read: Counter[tuple[int, tuple[int, ...], int]] = Counter()
    for step in plan.passes:
        rows = [((*paths.get(row.parent, ()), *row.tokens.tolist()), row) for row in step.rows]
        assert all(len(path) == row.start + len(row.tokens) for path, row in rows)
        places = [*zip(step.readings.row.tolist(), step.readings.column.tolist(), strict=True)]
        assert len({*places}) == len(places)
        for place, target, number in zip(step.readings.place, step.readings.target, step.readings.ask, strict=True):
            path, row = rows[places[place][0]]
            assert places[place][1] < len(row.tokens)
            read[int(number), path[: row.start + places[place][1] + 1], int(target)] += 1
        paths |= {row.keep: path for path, row in rows if row.keep is not None}
        sizes |= {row.keep: len(row.tokens) for _, row in rows if row.keep is not None}
        used_tokens = len(rows) * (step.prefix + step.longest)
        assert not step.has_cache or sum(sizes.values()) + used_tokens <= budget.kv_tokens
        assert len(rows) <= budget.batch_rows
        assert step.padded_tokens <= budget.batch_tokens or len(rows) == 1
        for number in step.drops:
            del paths[number], sizes[number]
    assert not paths
    return read


def _plainly(asked: list[Ask]) -> Counter[tuple[int, tuple[int, ...], int]]:
    """What is read where each request is computed by itself."""
    return Counter(
        (number, tuple(one.tokens[: end + 1].tolist()), int(one.tokens[end + 1]))
        for number, one in enumerate(asked)
        for end in range(one.first, one.read)
    )


@settings(max_examples=200)
@given(asks(), limits)
def test_everything_is_read_once_within_limits(asked: list[Ask], budget: Limits) -> None:
    """Each log-probability that plain scoring reads is read once, after the same tokens, and no limit is exceeded."""
    assert _follow(schedule(asked, budget), budget) == _plainly(asked)


@settings(max_examples=100)
@given(asks(), limits)
def test_an_ask_is_finished_with_its_last_reading(asked: list[Ask], budget: Limits) -> None:
    """Each ask is named as finished once, in the last pass that reads for it."""
    steps = schedule(asked, budget).passes

    last = {int(number): index for index, step in enumerate(steps) for number in step.readings.ask}

    assert last == {number: index for index, step in enumerate(steps) for number in step.finished}
    assert sum(len(step.finished) for step in steps) == len(asked)


@settings(max_examples=100)
@given(asks(), limits)
def test_nothing_is_computed_more_than_plainly(asked: list[Ask], budget: Limits) -> None:
    """Computed tokens never exceed what lm-eval computes, nor that what is asked for, however small the budget."""
    counts = count(asked, schedule(asked, budget))

    assert counts.computed <= counts.lm_eval <= counts.asked
    assert counts.computed <= counts.padded


@settings(max_examples=100)
@given(asks(), limits, st.randoms(use_true_random=False))
def test_the_order_of_asks_changes_nothing(asked: list[Ask], budget: Limits, chance: random.Random) -> None:
    """The passes compute the same rows in the same order, whatever the order in which asks came."""
    shuffled = chance.sample(asked, len(asked))

    def rows(plan: Schedule) -> list[list[tuple[list[int], int, bool]]]:
        return [[(row.tokens.tolist(), row.start, row.keep is None) for row in step.rows] for step in plan.passes]

    assert rows(schedule(shuffled, budget)) == rows(schedule(asked, budget))


@settings(max_examples=200)
@given(asks(), limits, st.sets(st.integers(0, 30)))
def test_a_part_is_the_same_passes_without_those_that_it_does_not_need(
    asked: list[Ask], budget: Limits, drawn: set[int]
) -> None:
    """What some asks need of a schedule reads all of theirs, within limits, by passes of the whole; no pass is idle."""
    wanted = {number for number in drawn if number < len(asked)}
    whole = schedule(asked, budget)
    chosen = part(whole, wanted)

    read = _follow(chosen, budget)
    rows = [step.rows for step in whole.passes]

    assert {key: times for key, times in read.items() if key[0] in wanted} == {
        key: times for key, times in _plainly(asked).items() if key[0] in wanted
    }
    assert sorted(number for step in chosen.passes for number in step.finished) == sorted(wanted)
    assert all(step.rows in rows for step in chosen.passes)
    assert bool(chosen.passes) == bool(wanted)
    if len(wanted) == len(asked):
        assert [step.rows for step in chosen.passes] == rows


def _exam(questions: int, choices: int) -> list[Ask]:
    """A block of 500 tokens, a question of about 60, a choice of about 8: all others differ."""
    found = []
    for question in range(questions):
        context = [*range(500), *([1000 + question] * (55 + question % 10))]
        found += [ask([*context, *([2000 + choice] * (6 + choice))], 6 + choice) for choice in range(choices)]
    return found


def test_an_exam_is_computed_once() -> None:
    """Examples, then questions side by side, then the choices of many questions side by side."""
    asked = _exam(questions=20, choices=4)

    plan = schedule(asked, Limits())

    # A choice's last token is not read by the model, only its logits' target.
    assert plan.tokens == 500 + sum(55 + question % 10 for question in range(20)) + 20 * (5 + 6 + 7 + 8)
    assert len(plan.passes) < 10
    assert plan.padded_tokens < 1.15 * plan.tokens
    assert plan.unshared == 0


def test_what_the_budget_cannot_hold_is_computed_plainly() -> None:
    """Without room for a prefix each request is computed by itself, nothing is kept, and the schedule says so."""
    asked = _exam(questions=3, choices=2)

    plan = schedule(asked, Limits(kv_tokens=300))

    assert plan.tokens == sum(one.read for one in asked)
    assert not any(step.has_cache for step in plan.passes)
    assert plan.unshared == len(asked)


@pytest.mark.parametrize("kv_tokens", [1200, 2500, 10_000])
def test_a_small_budget_still_shares(kv_tokens: int) -> None:
    """Room for the block and one request at a time is enough to compute everything once."""
    asked = _exam(questions=10, choices=4)

    plan = schedule(asked, Limits(kv_tokens=kv_tokens))

    assert plan.unshared == 0
    assert plan.tokens == schedule(asked, Limits()).tokens


def test_what_is_too_long_does_not_hinder_the_rest() -> None:
    """A question that the budget cannot hold together with a choice of it is computed plainly; the others share."""
    short = [ask([1] * 100 + [choice] * 5, 5) for choice in range(2, 6)]
    long = [ask([9] * 400 + [choice] * 50, 50) for choice in range(2, 4)]
    budget = Limits(kv_tokens=600)

    plan = schedule([*short, *long], budget)

    assert plan.unshared == 2
    assert plan.tokens == 100 + 4 * 4 + 2 * 449
    assert _follow(plan, budget) == _plainly([*short, *long])


def test_kept_prefixes_leave_room_for_their_children() -> None:
    """No more questions are kept than leave room for the longest of their choices."""
    asked = [ask([question] * 60 + [choice] * 600, 600) for question in range(4) for choice in (8, 9)]

    plan = schedule(asked, Limits(kv_tokens=60 + 660 + 30, pass_tokens=1))

    assert plan.unshared == 0
    assert plan.tokens == 4 * (60 + 2 * 599)


def test_a_dear_pass_shares_less() -> None:
    """Two choices that share a few tokens are computed in one pass where a pass costs more than those tokens."""
    asked = [ask([1] * 9 + [5] * 4, 4), ask([1] * 9 + [6] * 4, 4)]

    assert len(schedule(asked, Limits(pass_tokens=100)).passes) == 1
    assert len(schedule(asked, Limits(pass_tokens=1)).passes) == 2


def test_nothing_asked_is_nothing_done() -> None:
    """No asks, no passes."""
    assert schedule([], Limits()).passes == ()
