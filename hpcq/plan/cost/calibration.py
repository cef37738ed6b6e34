"""What earlier attempts of a run took, against what was reckoned for them: the ratios that later plans go by.

Pure: whoever opens a run reads its attempts and its last plan, and gives both. Knows no rates and no models.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

from hpcq.core.attempts import AttemptRecord
from hpcq.core.failures import Failure

SHORTEST_S = 1.0
"""What took less says nothing of rates."""

BOUNDS = (0.05, 20.0)
"""Of a ratio that is believed: beyond them something else was wrong than a rate."""


_REHEARSED = "synthetic"
"""Its seconds follow from its pace, and are not reckoned."""


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One attempt's ratios, taken by reckoned: of starting, loading, answering; None where it says nothing of that.

    fixed: of starting and loading together.
    """

    gpu_class: str
    backend: str
    model: str
    scheme: str
    start: float | None = None
    load: float | None = None
    fixed: float | None = None
    work: float | None = None


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """What reckoned seconds are multiplied by. attempts: that answered, and how many of them say so."""

    start: float = 1.0
    load: float = 1.0
    work: float = 1.0
    attempts: int = 0


AS_RECKONED = Ratio()


@dataclass(frozen=True, kw_only=True)
class Earlier:
    """What a run's folder tells a new plan of it.

    shards: of each variant, as the run began. timed_out: units of which an attempt met its time limit.
    """

    measurements: tuple[Measurement, ...] = ()
    shards: Mapping[str, int]
    timed_out: frozenset[str] = frozenset()

    def ratio(self, gpu_class: str, backend: str, model: str, scheme: str) -> Ratio:
        """By class, back end, model and scheme where an attempt of those has answered, else by class and back end.

        Another model's start says nothing of this one's loading, and the other way round.
        """
        alike = [one for one in self.measurements if (one.gpu_class, one.backend) == (gpu_class, backend)]
        same = [one for one in alike if (one.model, one.scheme) == (model, scheme)]
        answered = [one for one in same if one.work is not None]
        chosen = answered or [one for one in alike if one.work is not None]
        if any(one.fixed is not None for one in same):
            start = load = _middle(one.fixed for one in same)
        else:
            start, load = _middle(one.start for one in alike), _middle(one.load for one in alike)
        return Ratio(start=start, load=load, work=_middle(one.work for one in chosen), attempts=len(chosen))


NOTHING_EARLIER = Earlier(shards={})


def earlier_of(document: Mapping[str, Any], attempts: Mapping[str, Iterable[AttemptRecord]]) -> Earlier:
    """From a run's last plan (its document) and its attempts. Damaged or older ones say nothing."""
    rows = {row["id"]: row for row in document.get("units", ()) if row.get("kind") == "evaluate"}
    known = {unit: records for unit, records in attempts.items() if unit in rows}
    found = (_measurement(rows[unit], record) for unit, records in known.items() for record in records)
    return Earlier(
        measurements=tuple(one for one in found if one),
        shards={row["variant"]: row["shard"]["count"] for row in rows.values() if row.get("shard")},
        timed_out=frozenset(
            unit for unit, records in attempts.items() if any(one.failure == Failure.TIMEOUT for one in records)
        ),
    )


def _measurement(row: Mapping[str, Any], record: AttemptRecord) -> Measurement | None:
    """Against what was reckoned when the attempt was handed over: the row is of the last plan, perhaps elsewhere."""
    facts, planned = record.facts, record.facts.get("planned") or {}
    reckoned = planned.get("reckoned_seconds")
    if not reckoned or planned["backend"] == _REHEARSED:
        return None
    start = load = fixed = work = None
    took, answering, answered = facts.get("load_seconds"), facts.get("answer_seconds"), facts.get("answered")
    if took and took > SHORTEST_S and reckoned["start"] + reckoned["load"]:
        fixed = took / (reckoned["start"] + reckoned["load"])
        if reckoned["load"] > reckoned["start"]:
            load = max(0.0, took - reckoned["start"]) / reckoned["load"]
        else:
            start = fixed
    if answering and answering > SHORTEST_S and answered and record.total and reckoned["work"]:
        work = answering / (reckoned["work"] * answered / record.total)
    if fixed is None and work is None:
        return None
    return Measurement(
        gpu_class=planned["gpu_class"],
        backend=planned["backend"],
        model=row["model"],
        scheme=row["scheme"],
        start=start,
        load=load,
        fixed=fixed,
        work=work,
    )


def _middle(ratios: Iterable[float | None]) -> float:
    known = [ratio for ratio in ratios if ratio is not None]
    low, high = BOUNDS
    return min(high, max(low, median(known))) if known else 1.0
