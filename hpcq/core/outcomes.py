"""Enums of the attempt record: launcher, outcome, and the action that the retry policy chose."""

from __future__ import annotations

from enum import StrEnum
from typing import Any, TypeVar

Value = TypeVar("Value", bound=StrEnum)


def parse_value(kind: type[Value], value: Any) -> Value:
    """Return the member of `kind` with this value; its member UNKNOWN for a value of another version of hpcq."""
    try:
        return kind(value)
    except ValueError:
        return kind("unknown")


class Launcher(StrEnum):
    """What started an attempt. UNKNOWN: a launcher of another version of hpcq."""

    LOCAL = "local"
    SLURM = "slurm"
    UNKNOWN = "unknown"


class Outcome(StrEnum):
    """How an attempt has ended, if it has. UNKNOWN: an outcome of another version of hpcq.

    Attributes:
        INTERRUPTED: Ended by the user or the scheduler, not by a failure.
    """

    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    INTERRUPTED = "interrupted"
    UNKNOWN = "unknown"


class Action(StrEnum):
    """What to do with a unit after a failed attempt. UNKNOWN: an action of another version of hpcq.

    Attributes:
        RETRY: Retry immediately.
        RETRY_ELSEWHERE: Retry immediately, not on the same node.
        RETRY_SMALLER: Retry immediately with the next of `hpcq.launch.recovery.retry_policy.OOM_STEPS`.
        HOLD: Wait for `hpcq resume`, after the user has fixed the cause.
        FAIL: Wait for `hpcq resume --failed`.
    """

    RETRY = "retry"
    RETRY_ELSEWHERE = "retry elsewhere"
    RETRY_SMALLER = "retry smaller"
    HOLD = "hold"
    FAIL = "failed permanently"
    UNKNOWN = "unknown"

    @property
    def is_retry(self) -> bool:
        """Whether the unit is retried automatically; an unknown action waits for the user, as HOLD does."""
        return self in (Action.RETRY, Action.RETRY_ELSEWHERE, Action.RETRY_SMALLER)
