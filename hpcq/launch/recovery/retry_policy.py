"""Retry policy: decide about a unit whose attempt has ended, from its records.

A pure function that every caller uses (a job's epilogue, the local launcher, a new attempt that finds a stale one), so
that their decisions cannot differ.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from hpcq.core.attempts import AttemptRecord
from hpcq.core.failures import Failure
from hpcq.core.frozen import dataclass
from hpcq.core.outcomes import Action


@dataclass(frozen=True, kw_only=True)
class OomStep:
    """Reduced settings for a unit that ran out of memory, relative to the plan.

    Attributes:
        batch_share: Share of the planned batch size (requests or calibration tokens). 0: a batch size of one.
        host_memory_factor: Factor of the host memory requested from the scheduler.
    """

    batch_share: float = 1.0
    host_memory_factor: float = 1.0

    def batch_size(self, planned: int) -> int:
        """Return the batch size if the plan's is `planned`."""
        return max(1, int(planned * self.batch_share))


OOM_STEPS = (
    OomStep(),
    OomStep(batch_share=0.25),
    OomStep(batch_share=0.0),
    OomStep(batch_share=0.0, host_memory_factor=2.0),
)
"""A quarter of the batch size keeps most of the speed. The last steps have the minimum, one, then more host memory."""


@dataclass(frozen=True, kw_only=True)
class RetryPolicy:
    """Limits of retries and exclusions.

    Attributes:
        max_attempts_without_progress: Consecutive attempts of a unit that committed nothing, before it fails.
        gpu_hours: Budget of the whole run, all attempts included. None: no limit.
        max_excluded_nodes: Maximum number of faulty nodes that are excluded at the same time.
        exclude_hours: Hours for which a faulty node is excluded.
        max_memory_gib: Host memory of a node. None: unknown; then no retry requests more than planned.
    """

    max_attempts_without_progress: int = 5
    gpu_hours: float | None = None
    max_excluded_nodes: int = 4
    exclude_hours: float = 24.0
    max_memory_gib: float | None = None

    def memory_gib(self, planned: float | None, oom_step: int) -> float | None:
        """Return the host memory to request at `oom_step`: a multiple of the plan's, limited to a node's memory."""
        if planned is None or self.max_memory_gib is None:
            return planned
        return max(planned, min(planned * OOM_STEPS[oom_step].host_memory_factor, self.max_memory_gib))

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> RetryPolicy:
        """Read the fields from `submission.json`. Unknown fields (of later versions) are ignored."""
        return cls(**{key: value for key, value in content.items() if key in cls.__dataclass_fields__})


@dataclass(frozen=True, kw_only=True)
class Decision:
    """Action for a unit.

    Attributes:
        reason: Reason of the action, in one sentence.
        oom_step: Index in `OOM_STEPS` of the next attempt.
        is_exhausted: The failure class is one that is retried, but a limit is reached. `reason` has the limit.
    """

    action: Action
    reason: str
    oom_step: int = 0
    is_exhausted: bool = False


_ACTIONS = {
    Failure.PREEMPTED: Action.RETRY,
    Failure.TIMEOUT: Action.RETRY,
    Failure.KILLED: Action.RETRY,
    Failure.PORT_IN_USE: Action.RETRY,
    Failure.CONNECTION_LOST: Action.RETRY,
    Failure.NODE_FAULT: Action.RETRY_ELSEWHERE,
    Failure.OUT_OF_MEMORY: Action.RETRY_SMALLER,
    Failure.FULL_DISK: Action.HOLD,
    Failure.MISSING_RESOURCE: Action.HOLD,
    Failure.INVALID_INPUT: Action.FAIL,
    Failure.BUG: Action.FAIL,
    Failure.UNKNOWN: Action.HOLD,
}


def decide(
    failure: Failure, history: Sequence[AttemptRecord], policy: RetryPolicy, *, spent_gpu_hours: float
) -> Decision:
    """Decide about a unit after an attempt that ended with `failure`.

    Args:
        failure: Failure class of the last attempt.
        history: Attempts of the unit in order, with their `committed` rows. The last one has just ended.
        policy: Limits.
        spent_gpu_hours: GPU-hours of all attempts of the run, including this one.
    """
    action, oom_step = _ACTIONS[failure], history[-1].oom_step
    if not action.is_retry:
        return Decision(action=action, reason=str(failure))
    idle = count_attempts_without_progress(history)
    if idle >= policy.max_attempts_without_progress:
        return _exhausted(f"{failure}, and {_counted(idle, 'attempt')} in a row committed nothing")
    if policy.gpu_hours is not None and spent_gpu_hours >= policy.gpu_hours:
        return _exhausted(f"{failure}, and the run has spent its {policy.gpu_hours:g} GPU-hours (retries.gpu_hours)")
    if action is Action.RETRY_SMALLER:
        oom_step += 1
        if oom_step >= len(OOM_STEPS):
            return _exhausted(f"{failure}, also with the smallest settings")
    return Decision(action=action, reason=str(failure), oom_step=oom_step)


def _exhausted(reason: str) -> Decision:
    return Decision(action=Action.FAIL, reason=reason, is_exhausted=True)


def count_attempts_without_progress(history: Sequence[AttemptRecord]) -> int:
    """Count the latest consecutive attempts that failed and committed nothing, since the last decision not to retry.

    An attempt that the user interrupted has no failure: it neither counts nor resets the count.
    """
    idle = 0
    for number, record in enumerate(reversed(history)):
        if number and record.decision and not record.decision.is_retry:
            break
        if record.committed:
            break
        idle += record.failure is not None or not number
    return idle


def next_oom_step(history: Sequence[AttemptRecord]) -> int:
    """Return the index in `OOM_STEPS` of the next attempt. It restarts at 0 after a decision not to retry."""
    if not history:
        return 0
    last = history[-1]
    if last.decision and not last.decision.is_retry:
        return 0
    return min(last.oom_step + (last.decision is Action.RETRY_SMALLER), len(OOM_STEPS) - 1)


def excluded_nodes(records: Iterable[AttemptRecord], policy: RetryPolicy, moment: datetime) -> tuple[str, ...]:
    """Return the names of the nodes with the most recent faults, up to the maximum of the policy.

    Exclusions expire, because hpcq cannot detect whether a node was repaired. A node on which a unit did not start is
    not excluded if the unit did not start on other nodes either.
    """
    since = moment - timedelta(hours=policy.exclude_hours)
    faults: dict[str, datetime] = {}
    records = list(records)
    starts_nowhere = {one.unit for one in records if one.failure is Failure.MISSING_RESOURCE and not one.pid}
    for record in records:
        if not record.pid and record.unit in starts_nowhere:
            continue
        ended = datetime.fromisoformat(record.end) if record.end else None
        node = record.faulty_node or record.node
        if record.failure is Failure.NODE_FAULT and node and ended and ended >= since:
            faults[node] = max(ended, faults.get(node, ended))
    latest = sorted(faults, key=lambda node: faults[node], reverse=True)
    return tuple(sorted(latest[: max(0, policy.max_excluded_nodes)]))


def gpu_hours(records: Iterable[AttemptRecord], moment: datetime) -> float:
    """Return the GPU-hours of all attempts; running attempts count up to `moment`."""
    return (
        sum(
            record.gpus * max(0.0, ((_ended(record) or moment) - datetime.fromisoformat(record.start)).total_seconds())
            for record in records
        )
        / 3600.0
    )


def _ended(record: AttemptRecord) -> datetime | None:
    return datetime.fromisoformat(record.end) if record.end else None


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
