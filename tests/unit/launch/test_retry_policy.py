"""Retry policy: actions by failure class, out-of-memory steps, budgets, excluded nodes."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcq.core.attempts import AttemptRecord
from hpcq.core.failures import Failure
from hpcq.core.outcomes import Action, Outcome
from hpcq.launch.recovery.close_attempts import combined_reason
from hpcq.launch.recovery.retry_policy import (
    OOM_STEPS,
    Decision,
    RetryPolicy,
    count_attempts_without_progress,
    decide,
    excluded_nodes,
    gpu_hours,
    next_oom_step,
)

NOON = datetime(2026, 5, 4, 12, tzinfo=UTC)
POLICY = RetryPolicy(max_attempts_without_progress=3)


def attempt(number: int = 1, **fields: object) -> AttemptRecord:
    """An attempt of one hour that was killed at noon and committed nothing."""
    known: dict[str, object] = {
        "unit": "evaluate.a",
        "attempt": number,
        "job_id": "7",
        "node": "a100-1",
        "pid": 1,
        "start": (NOON - timedelta(hours=1)).isoformat(),
        "end": NOON.isoformat(),
        "outcome": Outcome.FAILED,
        "failure": Failure.KILLED,
    }
    return AttemptRecord(**{**known, **fields})  # type: ignore[arg-type]


def decided(failure: Failure, *history: AttemptRecord, policy: RetryPolicy = POLICY, spent: float = 0.0) -> Decision:
    """The decision about a unit with this history; by default one attempt."""
    return decide(failure, history or (attempt(),), policy, spent_gpu_hours=spent)


@pytest.mark.parametrize(
    ("failure", "action"),
    [
        (Failure.PREEMPTED, Action.RETRY),
        (Failure.TIMEOUT, Action.RETRY),
        (Failure.KILLED, Action.RETRY),
        (Failure.NODE_FAULT, Action.RETRY_ELSEWHERE),
        (Failure.OUT_OF_MEMORY, Action.RETRY_SMALLER),
        (Failure.FULL_DISK, Action.HOLD),
        (Failure.MISSING_RESOURCE, Action.HOLD),
        (Failure.INVALID_INPUT, Action.FAIL),
        (Failure.BUG, Action.FAIL),
        (Failure.UNKNOWN, Action.HOLD),
    ],
)
def test_each_failure_class_has_its_action(failure: Failure, action: Action) -> None:
    """After the first attempt of a unit."""
    assert decided(failure).action is action


@given(failure=st.sampled_from(Failure), committed=st.lists(st.integers(0, 2), min_size=1, max_size=12))
def test_no_loop_without_progress_is_longer_than_the_budget(failure: Failure, committed: list[int]) -> None:
    """After any failures, a unit is retried only if one of its last three attempts has committed something."""
    history = [attempt(number, committed=count) for number, count in enumerate(committed, start=1)]
    if decided(failure, *history).action.is_retry:
        assert any(committed[-3:]) or len(committed) < 3
    elif failure in (Failure.PREEMPTED, Failure.TIMEOUT, Failure.KILLED, Failure.NODE_FAULT):
        assert not any(committed[-3:])


def test_progress_resets_the_count() -> None:
    """Two idle attempts, one that committed a response, two idle ones: the unit is retried."""
    history = [attempt(number, committed=committed) for number, committed in enumerate([0, 0, 1, 0, 0], start=1)]
    assert count_attempts_without_progress(history) == 2
    assert decided(Failure.PREEMPTED, *history).action is Action.RETRY


def test_a_failed_unit_that_is_resumed_has_its_whole_budget() -> None:
    """`hpcq resume --failed` after three idle attempts allows three more."""
    history = [attempt(1), attempt(2), attempt(3, decision=Action.FAIL), attempt(4), attempt(5)]
    assert decided(Failure.KILLED, *history).action is Action.RETRY
    assert decided(Failure.KILLED, *history, attempt(6)).action is Action.FAIL


def test_an_attempt_that_a_user_interrupted_does_not_count() -> None:
    """Ctrl-C is not a failure of the unit."""
    history = [attempt(1), attempt(2, outcome=Outcome.INTERRUPTED, failure=None), attempt(3)]
    assert count_attempts_without_progress(history) == 2


def test_out_of_memory_takes_all_steps_and_then_fails() -> None:
    """Each attempt has a smaller batch; the last has a batch size of one and more host memory."""
    history: list[AttemptRecord] = []
    settings = []
    while not history or history[-1].decision != Action.FAIL:
        step = next_oom_step(history)
        settings.append((OOM_STEPS[step].batch_size(8), OOM_STEPS[step].host_memory_factor))
        number = len(history) + 1
        ended = [*history, attempt(number, oom_step=step, committed=1, failure=Failure.OUT_OF_MEMORY)]
        decision = decided(Failure.OUT_OF_MEMORY, *ended)
        history.append(
            attempt(number, oom_step=step, committed=1, failure=Failure.OUT_OF_MEMORY, decision=decision.action)
        )
    assert settings == [(8, 1.0), (2, 1.0), (1, 1.0), (1, 2.0)]
    assert next_oom_step(history) == 0
    assert decision.reason == "out of memory, also with the smallest settings"


def test_other_failures_keep_the_step() -> None:
    """The attempt after a preempted one has the same reduced settings."""
    history = [attempt(1, oom_step=0, decision=Action.RETRY_SMALLER), attempt(2, oom_step=1, decision=Action.RETRY)]
    assert next_oom_step(history) == 1


def test_no_retry_follows_a_spent_budget_of_gpu_hours() -> None:
    """The reason names the manifest's key."""
    policy = RetryPolicy(gpu_hours=10)
    assert decided(Failure.PREEMPTED, policy=policy, spent=9.9).action is Action.RETRY
    decision = decided(Failure.PREEMPTED, policy=policy, spent=10)
    assert decision.action is Action.FAIL
    assert decision.reason == "preempted, and the run has spent its 10 GPU-hours (retries.gpu_hours)"


def test_gpu_hours_count_every_gpu_of_every_attempt_until_now() -> None:
    """One hour on eight GPUs that has ended, and half an hour on four that is still running."""
    ended, running = attempt(1, gpus=8), attempt(2, gpus=4, start=NOON.isoformat(), end=None)
    assert gpu_hours([ended, running, attempt(3)], NOON + timedelta(minutes=30)) == pytest.approx(10)


def test_nodes_with_recent_faults_are_excluded_up_to_the_maximum() -> None:
    """The most recent faults count. A killed job is not a fault of its node."""
    faults = [
        attempt(1, node="old", failure=Failure.NODE_FAULT, end=(NOON - timedelta(hours=25)).isoformat()),
        attempt(2, node="first", failure=Failure.NODE_FAULT, end=(NOON - timedelta(hours=3)).isoformat()),
        attempt(3, node="second", failure=Failure.NODE_FAULT, end=(NOON - timedelta(hours=2)).isoformat()),
        attempt(4, node="third", failure=Failure.NODE_FAULT, end=(NOON - timedelta(hours=1)).isoformat()),
        attempt(5, node="killed", failure=Failure.KILLED),
    ]
    assert excluded_nodes(faults, RetryPolicy(), NOON) == ("first", "second", "third")
    assert excluded_nodes(faults, RetryPolicy(max_excluded_nodes=2), NOON) == ("second", "third")
    assert excluded_nodes(faults, RetryPolicy(max_excluded_nodes=0), NOON) == ()
    assert excluded_nodes(faults, RetryPolicy(max_excluded_nodes=-1), NOON) == ()


def test_a_policy_is_restored_from_json() -> None:
    """Unknown fields (of a later version) are ignored."""
    policy = RetryPolicy(gpu_hours=2.5, max_memory_gib=64)
    assert RetryPolicy.from_json({**asdict(policy), "later": 1}) == policy


def test_only_a_reached_limit_is_added_to_the_reason() -> None:
    """A permanent failure has the worker's own reason, with any punctuation."""
    limit = decided(Failure.OUT_OF_MEMORY, attempt(oom_step=len(OOM_STEPS) - 1, committed=1))
    assert combined_reason("killed", limit) == "killed. Not retried: out of memory, also with the smallest settings"
    assert combined_reason("no room, no luck", decided(Failure.BUG)) == "no room, no luck"
    assert combined_reason(None, Decision(action=Action.FAIL, reason="one, two")) == "one, two"
    assert combined_reason("x", Decision(action=Action.FAIL, reason="one, two")) == "x"
