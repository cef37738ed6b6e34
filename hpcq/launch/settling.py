"""Closing the record of an attempt that can no longer do so itself: what it committed, why it ended, what follows.

Knows attempts' files and segments' names. Who is dead, and of what, is the caller's to know.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from hpcq.attempts import Attempt, AttemptRecord, now
from hpcq.failures import Failure
from hpcq.launch.retries import Decision
from hpcq.store.segments import count_rows
from hpcq.units import EvaluateWork, Work


def added_by(record: AttemptRecord, work: Work) -> int:
    """Responses that the attempt committed, or what the worker itself counted (blocks of a checkpoint)."""
    if isinstance(work, EvaluateWork):
        return count_rows(Path(work.segments_path), record.attempt)
    return record.added


def settle(folder: Path, record: AttemptRecord, work: Work, failure: Failure, reason: str) -> AttemptRecord:
    """Write down, in the attempts' `folder`, that the attempt ended by `failure`; the record as it is now."""
    closed = replace(
        record,
        outcome="failed",
        failure=str(failure),
        reason=record.reason or reason,
        end=record.end or now(),
        added=added_by(record, work),
        phase=None,
    )
    return Attempt(folder, closed).record


def note_decision(folder: Path, record: AttemptRecord, decision: Decision) -> AttemptRecord:
    """Write down what becomes of the unit, before anything is done about it."""
    return Attempt(folder, replace(record, decision=str(decision.action))).record
