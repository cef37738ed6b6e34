"""The record of an attempt: one execution of a unit, one JSON file, replaced by rename as the attempt goes on.

The job writes it, workers add what they learn (`total`, `restored`), and the monitor reads it. Times are UTC, ISO 8601.
"""

from __future__ import annotations

import datetime
import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from hpcq.files import write_text


def now() -> str:
    """The present as ISO 8601 in UTC, to the millisecond."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")


@dataclass(frozen=True, kw_only=True)
class AttemptRecord:
    """What is known of one attempt.

    launcher: local or slurm. process: `hpcq.processes.identity` of it. outcome: running, done, failed, interrupted.
    reason, error: one sentence where it failed, and the exception's class. total, restored: the unit's requests in all,
    and those which the store already answered when the attempt began (None: not counted yet). `facts` is what the
    worker measured (seconds by phase, peak memory in bytes, versions, device), for the merge and the planner.

    restart: how often Slurm had started the job before. gpus: that the attempt held, on all of its nodes. rung: of the
    ladder of smaller settings (`hpcq.launch.retries`). Once it has ended: failure (`hpcq.failures.Failure`), decision
    (`hpcq.launch.retries.Action`: what becomes of the unit), added: responses, or blocks of a checkpoint, that this
    attempt committed.
    """

    unit: str
    attempt: int
    job_id: str
    node: str
    pid: int
    start: str
    launcher: str = "local"
    process: str = ""
    end: str | None = None
    outcome: str = "running"
    reason: str | None = None
    error: str | None = None
    total: int | None = None
    restored: int | None = None
    phase: str | None = None
    restart: int = 0
    gpus: int = 0
    rung: int = 0
    failure: str | None = None
    decision: str | None = None
    added: int = 0
    facts: dict[str, Any] = field(default_factory=dict)
    schema: int = 1


class Attempt:
    """A live attempt: every `update` is on disk when it returns."""

    def __init__(self, folder: Path, record: AttemptRecord) -> None:
        self.path = folder / f"{record.unit}.{record.attempt}.json"
        self.record = record
        self._commit()

    def update(self, **changes: Any) -> None:
        """Replace fields of the record; `facts` are added to those already there."""
        facts = {**self.record.facts, **changes.pop("facts", {})}
        self.record = replace(self.record, facts=facts, **changes)
        self._commit()

    def _commit(self) -> None:
        write_text(self.path, json.dumps(asdict(self.record), indent=1, sort_keys=True) + "\n")


def read_attempts(folder: Path) -> dict[str, list[AttemptRecord]]:
    """Every attempt under `folder` that can be read, by unit, in order. Fields of later versions are ignored."""
    found: dict[str, list[AttemptRecord]] = {}
    for path in sorted(folder.glob("*.json")):
        record = _read(path)
        if record and (record.unit, record.attempt) == _unit_and_number(path):
            found.setdefault(record.unit, []).append(record)
    for records in found.values():
        records.sort(key=lambda record: record.attempt)
    return found


def _read(path: Path) -> AttemptRecord | None:
    """None for a file that was cut or is none of ours."""
    known = AttemptRecord.__dataclass_fields__
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return AttemptRecord(**{key: value for key, value in content.items() if key in known})
    except (ValueError, TypeError, AttributeError):
        return None


def _unit_and_number(path: Path) -> tuple[str, int] | None:
    """What the name of an attempt's file tells, even where its content does not."""
    unit, _, number = path.stem.rpartition(".")
    return (unit, int(number)) if number.isdecimal() else None


def last_words(log: str | None) -> str:
    """The last line that a job printed before its unit began, and where; for a reason."""
    try:
        lines = Path(log).read_text(encoding="utf-8", errors="replace").split("\n") if log else []
    except OSError:
        return f"it left no log at {log}"
    spoken = [line.strip() for line in lines if line.strip()]
    return f"{spoken[-1]} ({log})" if spoken else f"it said nothing in {log}"


def next_number(folder: Path, unit: str) -> int:
    """The number of the attempt that starts now: 1 for the first. Attempts that cannot be read count, too."""
    names = filter(None, map(_unit_and_number, folder.glob("*.json")))
    return max((number for of, number in names if of == unit), default=0) + 1
