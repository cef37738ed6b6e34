"""What a campaign tells: a line of JSON for every fault, command and round, and a table at the end.

Knows what was counted. Judges nothing.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.faults.kinds import KINDS
from tests.faults.round import Verdict
from tests.faults.stage import FLUSH_INTERVAL_S

_WIDTH = 26


@dataclass(frozen=True, kw_only=True)
class Log:
    """Lines of JSON; each is whole when it is there at all."""

    path: Path
    began_s: float = field(default_factory=time.monotonic)

    def tell(self, about: str, **fields: Any) -> None:
        """Append a line."""
        line = json.dumps({"at_s": round(time.monotonic() - self.began_s, 2), "about": about, **fields}, default=str)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")


@dataclass(kw_only=True)
class Tally:
    """The sums of all rounds. losses_s, full_disk_s: the work that each process lost that was cut off."""

    rounds: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    helps: int = 0
    violations: list[str] = field(default_factory=list)
    answered: int = 0
    distinct: int = 0
    concurrent: int = 0
    forgiven: int = 0
    losses_s: list[float] = field(default_factory=list)
    full_disk_s: list[float] = field(default_factory=list)
    duplicate_rows: int = 0

    def add(self, verdict: Verdict, request_s: float | None) -> None:
        """Count a round in."""
        self.rounds += 1
        self.faults.update(verdict.faults)
        self.helps += verdict.helps
        self.violations += verdict.violations
        self.duplicate_rows += verdict.duplicate_rows
        repeats = verdict.repeats
        self.answered += repeats.answered
        self.distinct += repeats.distinct
        self.concurrent += repeats.concurrent
        self.forgiven += repeats.forgiven
        for lost in repeats.lost:
            (self.full_disk_s if lost.disk_was_full else self.losses_s).append(lost.requests * (request_s or 0.0))

    def text(self, *, seed: int, seconds: float) -> str:
        """The table."""
        total = self.faults.total()
        lines = ["", f"{'fault':<{_WIDTH}}{'times':>6}  how", ""]
        lines += [
            f"{name:<{_WIDTH}}{self.faults[name]:>6}  {kind.how}" for name, kind in KINDS.items() if self.faults[name]
        ]
        lost = self.answered - self.distinct - self.forgiven - self.concurrent
        lines.append("")
        lines.append(
            f"seed {seed}: {total} faults of {len(self.faults)} kinds in {self.rounds} rounds, "
            f"{seconds / 60:.1f} minutes ({60 * total / max(seconds, 1):.1f} a minute); "
            f"resumed by the user {self.helps} times"
        )
        lines.append(
            f"rehearsed requests: {self.distinct} asked, {self.answered} answered; again because of damage: "
            f"{self.forgiven}, at once by two processes: {self.concurrent}, lost with a process: {lost}"
        )
        lines.append(
            f"work lost with each process that lost any: {_spread(self.losses_s)}, where segments are committed every "
            f"{FLUSH_INTERVAL_S:g} s; while the disk was full: {_spread(self.full_disk_s)}"
        )
        lines.append(f"rows that merges found twice: {self.duplicate_rows}")
        lines += [f"VIOLATION {item}" for item in self.violations]
        lines.append(f"{len(self.violations)} violations")
        return "\n".join(lines) + "\n"


def _spread(seconds: list[float]) -> str:
    """How many there are, the middle one and the largest."""
    if not seconds:
        return "none"
    return f"{len(seconds)}, median {sorted(seconds)[len(seconds) // 2]:.2f} s, most {max(seconds):.2f} s"
