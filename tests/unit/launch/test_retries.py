"""What becomes of a unit after an attempt: the table of classes, the ladder, the budgets, the nodes to avoid."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcq.core.attempts import AttemptRecord
from hpcq.core.failures import Failure
from hpcq.launch.recovery.retry_policy import (
    LADDER,
    Action,
    Decision,
    Policy,
    attempts_without_progress,
    decide,
    excluded_nodes,
    gpu_hours,
    next_rung,
)

NOON = datetime(2026, 5, 4, 12, tzinfo=UTC)
POLICY = Policy(attempts_without_progress=3)


def attempt(number: int = 1, **fields: object) -> AttemptRecord:
    """An attempt of an hour that ended at noon by being killed, with nothing to show."""
    known: dict[str, object] = {
        "unit": "evaluate.a",
        "attempt": number,
        "job_id": "7",
        "node": "a100-1",
        "pid": 1,
        "start": (NOON - timedelta(hours=1)).isoformat(),
        "end": NOON.isoformat(),
        "outcome": "failed",
        "failure": "killed",
    }
    return AttemptRecord(**{**known, **fields})  # type: ignore[arg-type]


def decided(failure: Failure, *history: AttemptRecord, policy: Policy = POLICY, spent: float = 0.0) -> Decision:
    """What becomes of a unit with that history; by default one attempt."""
    return decide(failure, history or (attempt(),), policy, spent_gpu_hours=spent)


@pytest.mark.parametrize(
    ("failure", "action"),
    [
        (Failure.PREEMPTED, Action.AGAIN),
        (Failure.TIMEOUT, Action.AGAIN),
        (Failure.KILLED, Action.AGAIN),
        (Failure.NODE_FAULT, Action.ELSEWHERE),
        (Failure.OUT_OF_MEMORY, Action.SMALLER),
        (Failure.FULL_DISK, Action.STOP),
        (Failure.LACKING, Action.STOP),
        (Failure.BAD_INPUT, Action.GIVE_UP),
        (Failure.BUG, Action.GIVE_UP),
    ],
)
def test_each_class_has_its_answer(failure: Failure, action: Action) -> None:
    """The first attempt of a unit; and no class is forgotten."""
    assert decided(failure).action is action


@given(failure=st.sampled_from(Failure), added=st.lists(st.integers(0, 2), min_size=1, max_size=12))
def test_no_loop_without_progress_is_longer_than_the_budget(failure: Failure, added: list[int]) -> None:
    """Whatever fails, a unit goes on only while one of its last three attempts has committed something."""
    history = [attempt(number, added=count) for number, count in enumerate(added, start=1)]
    if decided(failure, *history).action.goes_on:
        assert any(added[-3:]) or len(added) < 3
    elif failure in (Failure.PREEMPTED, Failure.TIMEOUT, Failure.KILLED, Failure.NODE_FAULT):
        assert not any(added[-3:])


def test_progress_starts_the_count_anew() -> None:
    """Two idle attempts, one that committed a response, two idle ones: it goes on."""
    history = [attempt(number, added=added) for number, added in enumerate([0, 0, 1, 0, 0], start=1)]
    assert attempts_without_progress(history) == 2
    assert decided(Failure.PREEMPTED, *history).action is Action.AGAIN


def test_what_was_given_up_and_is_tried_again_has_its_whole_budget() -> None:
    """`hpcq resume --failed` after three idle attempts allows three more."""
    history = [attempt(1), attempt(2), attempt(3, decision="give up"), attempt(4), attempt(5)]
    assert decided(Failure.KILLED, *history).action is Action.AGAIN
    assert decided(Failure.KILLED, *history, attempt(6)).action is Action.GIVE_UP


def test_an_attempt_that_a_user_interrupted_does_not_count() -> None:
    """Ctrl-C says nothing of the unit."""
    history = [attempt(1), attempt(2, outcome="interrupted", failure=None), attempt(3)]
    assert attempts_without_progress(history) == 2


def test_out_of_memory_climbs_down_the_ladder_and_then_is_given_up() -> None:
    """Each attempt has less than the one before, down to one at a time with more host memory."""
    history: list[AttemptRecord] = []
    seen = []
    while not history or history[-1].decision != Action.GIVE_UP:
        rung = next_rung(history)
        seen.append((LADDER[rung].batch_of(8), LADDER[rung].host_memory))
        number = len(history) + 1
        ended = [*history, attempt(number, rung=rung, added=1, failure="out of memory")]
        decision = decided(Failure.OUT_OF_MEMORY, *ended)
        history.append(attempt(number, rung=rung, added=1, failure="out of memory", decision=str(decision.action)))
    assert seen == [(8, 1.0), (2, 1.0), (1, 1.0), (1, 2.0)]
    assert next_rung(history) == 0
    assert decision.reason == "out of memory, also with the smallest settings"


def test_other_failures_keep_the_rung() -> None:
    """A preempted attempt on a smaller setting goes on with it."""
    history = [attempt(1, rung=0, decision="smaller"), attempt(2, rung=1, decision="again")]
    assert next_rung(history) == 1


def test_a_spent_budget_of_gpu_hours_ends_every_loop() -> None:
    """The sentence names the key."""
    policy = Policy(gpu_hours=10)
    assert decided(Failure.PREEMPTED, policy=policy, spent=9.9).action is Action.AGAIN
    decision = decided(Failure.PREEMPTED, policy=policy, spent=10)
    assert decision.action is Action.GIVE_UP
    assert decision.reason == "preempted, and the run has spent its 10 GPU-hours (retries.gpu_hours)"


def test_gpu_hours_count_every_gpu_of_every_attempt_until_now() -> None:
    """An hour on eight GPUs that is over, and half an hour on four that goes on."""
    ended, running = attempt(1, gpus=8), attempt(2, gpus=4, start=NOON.isoformat(), end=None)
    assert gpu_hours([ended, running, attempt(3)], NOON + timedelta(minutes=30)) == pytest.approx(10)


def test_nodes_with_a_late_fault_are_avoided_up_to_the_cap_and_for_a_while() -> None:
    """The latest faults first; a killed job says nothing against its node."""
    faults = [
        attempt(1, node="old", failure="node fault", end=(NOON - timedelta(hours=25)).isoformat()),
        attempt(2, node="first", failure="node fault", end=(NOON - timedelta(hours=3)).isoformat()),
        attempt(3, node="second", failure="node fault", end=(NOON - timedelta(hours=2)).isoformat()),
        attempt(4, node="third", failure="node fault", end=(NOON - timedelta(hours=1)).isoformat()),
        attempt(5, node="killed", failure="killed"),
    ]
    assert excluded_nodes(faults, Policy(), NOON) == ("first", "second", "third")
    assert excluded_nodes(faults, Policy(excluded_nodes_at_most=2), NOON) == ("second", "third")
    assert excluded_nodes(faults, Policy(excluded_nodes_at_most=0), NOON) == ()
    assert excluded_nodes(faults, Policy(excluded_nodes_at_most=-1), NOON) == ()


def test_a_policy_survives_its_way_to_a_node() -> None:
    """As JSON, also beside fields of a later version."""
    policy = Policy(gpu_hours=2.5, memory_gib_at_most=64)
    assert Policy.from_json({**policy.as_json(), "later": 1}) == policy
