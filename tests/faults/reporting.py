"""Output of a campaign: a log with one JSON line per event, and a summary at the end."""

from __future__ import annotations

import json
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.faults.fault_kinds.table import FAULT_KINDS
from tests.faults.fixtures import FLUSH_INTERVAL_S
from tests.faults.trial import TrialResult

_WIDTH = 26


@dataclass(frozen=True, kw_only=True)
class EventLog:
    """Log of JSON lines. Each line is written by one call, so that it is complete."""

    path: Path
    started_s: float = field(default_factory=time.monotonic)

    def write(self, event: str, **fields: Any) -> None:
        """Append an event."""
        line = json.dumps({"at_s": round(time.monotonic() - self.started_s, 2), "event": event, **fields}, default=str)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")


@dataclass(kw_only=True)
class CampaignSummary:
    """Totals of all trials.

    Attributes:
        trials: Number of trials.
        faults: Number of faults by kind.
        resumes: How often the user had to resume a run.
        violations: Violated invariants.
        answered: Answers of the synthetic backend.
        distinct: Distinct requests among them.
        concurrent: Answers repeated because two processes worked concurrently.
        after_damage: Answers repeated because a segment was damaged.
        losses_s: Seconds of work that each killed process lost.
        full_disk_losses_s: The same, for processes that could not commit because the disk was full.
        duplicate_rows: Rows that merges found more than once.
    """

    trials: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    resumes: int = 0
    violations: list[str] = field(default_factory=list)
    answered: int = 0
    distinct: int = 0
    concurrent: int = 0
    after_damage: int = 0
    losses_s: list[float] = field(default_factory=list)
    full_disk_losses_s: list[float] = field(default_factory=list)
    duplicate_rows: int = 0

    def add(self, result: TrialResult, request_s: float | None) -> None:
        """Add a trial."""
        self.trials += 1
        self.faults.update(result.faults)
        self.resumes += result.resumes
        self.violations += result.violations
        self.duplicate_rows += result.duplicate_rows
        repeats = result.repeats
        self.answered += repeats.answered
        self.distinct += repeats.distinct
        self.concurrent += repeats.concurrent
        self.after_damage += repeats.after_damage
        for lost in repeats.lost:
            losses_s = self.full_disk_losses_s if lost.disk_was_full else self.losses_s
            losses_s.append(lost.requests * (request_s or 0.0))

    def text(self, *, seed: int, seconds: float) -> str:
        """Return the summary as text: a table of faults, then totals and violations."""
        total = self.faults.total()
        lines = ["", f"{'fault':<{_WIDTH}}{'count':>6}  description", ""]
        lines += [
            f"{name:<{_WIDTH}}{self.faults[name]:>6}  {kind.description}"
            for name, kind in FAULT_KINDS.items()
            if self.faults[name]
        ]
        lost = self.answered - self.distinct - self.after_damage - self.concurrent
        lines.append("")
        lines.append(
            f"seed {seed}: {total} faults of {len(self.faults)} kinds in {self.trials} trials, "
            f"{seconds / 60:.1f} minutes ({60 * total / max(seconds, 1):.1f} per minute); "
            f"resumed by the user {self.resumes} times"
        )
        lines.append(
            f"synthetic requests: {self.distinct} requested, {self.answered} answered; repeated after damage: "
            f"{self.after_damage}, by concurrent processes: {self.concurrent}, after a lost process: {lost}"
        )
        lines.append(
            f"lost work per killed process (flush interval {FLUSH_INTERVAL_S:g} s): {_distribution(self.losses_s)}; "
            f"while the disk was full: {_distribution(self.full_disk_losses_s)}"
        )
        lines.append(f"duplicate rows in merges: {self.duplicate_rows}")
        lines += [f"VIOLATION {item}" for item in self.violations]
        lines.append(f"{len(self.violations)} violations")
        return "\n".join(lines) + "\n"


def _distribution(seconds: list[float]) -> str:
    """Return count, median and maximum."""
    if not seconds:
        return "none"
    return f"{len(seconds)}, median {sorted(seconds)[len(seconds) // 2]:.2f} s, maximum {max(seconds):.2f} s"
