"""What becomes of a unit whose attempt has ended: again, elsewhere, with less, or not until somebody acts.

A pure function of the unit's records, asked by every actor (a job's aftermath, the local launcher, a new attempt that
finds its predecessor dead), so that they cannot differ. Knows records and failure classes; acts on nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

from hpcq.core.attempts import AttemptRecord
from hpcq.core.failures import Failure


class Action(StrEnum):
    """What becomes of a unit.

    again: at once. elsewhere: at once, not on that node. smaller: at once, one rung down the ladder. stop: until
    `hpcq resume`, after a cure. give up: until `hpcq resume --failed`.
    """

    AGAIN = "again"
    ELSEWHERE = "elsewhere"
    SMALLER = "smaller"
    STOP = "stop"
    GIVE_UP = "give up"

    @property
    def goes_on(self) -> bool:
        """Whether the unit is tried again without anybody's doing."""
        return self not in (Action.STOP, Action.GIVE_UP)


@dataclass(frozen=True, kw_only=True)
class Rung:
    """A step of the ladder for units that ran out of memory: shares of the settings that the plan gave.

    batch: of the requests, or calibration tokens, that are computed at once; 0 is one at a time. host_memory: of the
    memory asked of the scheduler.
    """

    batch: float = 1.0
    host_memory: float = 1.0

    def batch_of(self, planned: int) -> int:
        """How many to compute at once where the plan says `planned`."""
        return max(1, int(planned * self.batch))


LADDER = (Rung(), Rung(batch=0.25), Rung(batch=0.0), Rung(batch=0.0, host_memory=2.0))
"""A quarter of the batch leaves most of the speed; one at a time is the least that can be; then more host memory."""


@dataclass(frozen=True, kw_only=True)
class Policy:
    """What ends a loop.

    attempts_without_progress: attempts of a unit in a row that committed nothing. gpu_hours: of the whole run, in all
    attempts (None: no bound). excluded_nodes_at_most, exclude_hours: how many nodes with a fault are avoided at once,
    and for how long. memory_gib_at_most: what a node has (None: not known, and then no rung asks for more).
    """

    attempts_without_progress: int = 5
    gpu_hours: float | None = None
    excluded_nodes_at_most: int = 4
    exclude_hours: float = 24.0
    memory_gib_at_most: float | None = None

    def memory_gib(self, planned: float | None, rung: int) -> float | None:
        """The host memory to ask for on `rung`: a multiple of what the plan says, as far as a node has it."""
        if planned is None or self.memory_gib_at_most is None:
            return planned
        return max(planned, min(planned * LADDER[rung].host_memory, self.memory_gib_at_most))

    def as_json(self) -> dict[str, Any]:
        """The fields, for a job's order."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Policy:
        """What `as_json` gave; fields of later versions are ignored."""
        return cls(**{key: value for key, value in content.items() if key in cls.__dataclass_fields__})


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What becomes of the unit, and why, in a sentence; `rung` is that of its next attempt."""

    action: Action
    reason: str
    rung: int = 0


_ACTIONS = {
    Failure.PREEMPTED: Action.AGAIN,
    Failure.TIMEOUT: Action.AGAIN,
    Failure.KILLED: Action.AGAIN,
    Failure.TAKEN: Action.AGAIN,
    Failure.NODE_FAULT: Action.ELSEWHERE,
    Failure.OUT_OF_MEMORY: Action.SMALLER,
    Failure.FULL_DISK: Action.STOP,
    Failure.LACKING: Action.STOP,
    Failure.BAD_INPUT: Action.GIVE_UP,
    Failure.BUG: Action.GIVE_UP,
}


def decide(failure: Failure, history: Sequence[AttemptRecord], policy: Policy, *, spent_gpu_hours: float) -> Decision:
    """What becomes of the unit after an attempt that ended by `failure`.

    history: the unit's attempts in order, the one that ended last, each with what it `added`. spent_gpu_hours: by all
    attempts of the run, this one included.
    """
    action, rung = _ACTIONS[failure], history[-1].rung
    if not action.goes_on:
        return Decision(action=action, reason=str(failure))
    idle = attempts_without_progress(history)
    if idle >= policy.attempts_without_progress:
        return Decision(
            action=Action.GIVE_UP,
            reason=f"{failure}, and {_counted(idle, 'attempt')} in a row committed nothing",
        )
    if policy.gpu_hours is not None and spent_gpu_hours >= policy.gpu_hours:
        return Decision(
            action=Action.GIVE_UP,
            reason=f"{failure}, and the run has spent its {policy.gpu_hours:g} GPU-hours (retries.gpu_hours)",
        )
    if action is Action.SMALLER:
        rung += 1
        if rung >= len(LADDER):
            return Decision(action=Action.GIVE_UP, reason=f"{failure}, also with the smallest settings")
    return Decision(action=action, reason=str(failure), rung=rung)


def attempts_without_progress(history: Sequence[AttemptRecord]) -> int:
    """How many of the last attempts in a row failed and committed nothing, since the unit was last stopped or given up.

    An attempt that a user interrupted has no failure, and counts neither way.
    """
    idle = 0
    for number, record in enumerate(reversed(history)):
        if number and record.decision in (Action.STOP, Action.GIVE_UP):
            break
        if record.added:
            break
        idle += record.failure is not None or not number
    return idle


def next_rung(history: Sequence[AttemptRecord]) -> int:
    """The rung of a unit's next attempt: one further where the last decision says so, and the first after a stop."""
    if not history:
        return 0
    last = history[-1]
    if last.decision in (Action.STOP, Action.GIVE_UP):
        return 0
    return min(last.rung + (last.decision == Action.SMALLER), len(LADDER) - 1)


def excluded_nodes(records: Iterable[AttemptRecord], policy: Policy, moment: datetime) -> tuple[str, ...]:
    """Names of the nodes that had a fault of late: the latest ones, as many as the policy allows.

    An exclusion ends by itself: whether a node was mended cannot be seen from here, so it is tried again.
    """
    since = moment - timedelta(hours=policy.exclude_hours)
    faults: dict[str, datetime] = {}
    for record in records:
        ended = datetime.fromisoformat(record.end) if record.end else None
        node = record.faulty_node or record.node
        if record.failure == Failure.NODE_FAULT and node and ended and ended >= since:
            faults[node] = max(ended, faults.get(node, ended))
    latest = sorted(faults, key=lambda node: faults[node], reverse=True)
    return tuple(sorted(latest[: max(0, policy.excluded_nodes_at_most)]))


def gpu_hours(records: Iterable[AttemptRecord], moment: datetime) -> float:
    """GPU-hours of all attempts, up to `moment` for those that have not ended."""
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
