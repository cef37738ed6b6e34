"""What earlier attempts of a run took, against what was reckoned for them: the ratios that later plans go by.

Pure: whoever opens a run reads its attempts and its last plan, and gives both. Knows no rates and no models.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

from hpcq.attempts import AttemptRecord

SHORTEST_S = 1.0
"""What took less says nothing of rates."""

BOUNDS = (0.05, 20.0)
"""Of a ratio that is believed: beyond them something else was wrong than a rate."""


_REHEARSED = "synthetic"
"""Its seconds follow from its pace, and are not reckoned."""


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One attempt's ratios, taken by reckoned: of loading and of answering; None where it says nothing of that."""

    gpu_class: str
    backend: str
    model: str
    scheme: str
    load: float | None = None
    work: float | None = None


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """What reckoned seconds are multiplied by, and how many attempts say so."""

    load: float = 1.0
    work: float = 1.0
    attempts: int = 0


AS_RECKONED = Ratio()


@dataclass(frozen=True, kw_only=True)
class Earlier:
    """What a run's folder tells a new plan of it. shards: of each variant, as the run began."""

    measurements: tuple[Measurement, ...] = ()
    shards: Mapping[str, int]

    def ratio(self, gpu_class: str, backend: str, model: str, scheme: str) -> Ratio:
        """By class, back end, model and scheme where an attempt of those has answered, else by class and back end."""
        alike = [one for one in self.measurements if (one.gpu_class, one.backend) == (gpu_class, backend)]
        same = [one for one in alike if (one.model, one.scheme) == (model, scheme)]
        chosen = same if any(one.work is not None for one in same) else alike
        return Ratio(
            load=_middle(one.load for one in chosen), work=_middle(one.work for one in chosen), attempts=len(chosen)
        )


NOTHING_EARLIER = Earlier(shards={})


def earlier_of(document: Mapping[str, Any], attempts: Mapping[str, Iterable[AttemptRecord]]) -> Earlier:
    """From a run's last plan (its document) and its attempts. Damaged or older rows say nothing."""
    rows = {row["id"]: row for row in document.get("units", ()) if row.get("kind") == "evaluate"}
    shards = {row["variant"]: row["shard"]["count"] for row in rows.values() if row.get("shard")}
    found = (
        _measurement(row, record)
        for unit, records in attempts.items()
        if (row := rows.get(unit)) and row.get("reckoned_seconds") and row.get("backend") not in (None, _REHEARSED)
        for record in records
    )
    return Earlier(measurements=tuple(one for one in found if one), shards=shards)


def _measurement(row: Mapping[str, Any], record: AttemptRecord) -> Measurement | None:
    facts, reckoned = record.facts, row["reckoned_seconds"]
    load, work = facts.get("load_seconds"), facts.get("answer_seconds")
    answered, total = facts.get("answered"), record.total
    fixed = reckoned["load"] + reckoned["start"]
    load_ratio = load / fixed if load and fixed and load > SHORTEST_S else None
    work_ratio = None
    if work and work > SHORTEST_S and answered and total and reckoned["work"]:
        work_ratio = work / (reckoned["work"] * answered / total)
    if load_ratio is None and work_ratio is None:
        return None
    return Measurement(
        gpu_class=row["gpu_class"],
        backend=row["backend"],
        model=row["model"],
        scheme=row["scheme"],
        load=load_ratio,
        work=work_ratio,
    )


def _middle(ratios: Iterable[float | None]) -> float:
    known = [ratio for ratio in ratios if ratio is not None]
    low, high = BOUNDS
    return min(high, max(low, median(known))) if known else 1.0
