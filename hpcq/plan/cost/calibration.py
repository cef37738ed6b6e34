"""Calibration of estimates: measured seconds of earlier attempts of the run, divided by the estimates."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import field
from statistics import median
from typing import Any

from hpcq.core.attempts import AttemptRecord
from hpcq.core.failures import Failure
from hpcq.core.frozen import dataclass
from hpcq.core.unit_ids import UnitId
from hpcq.core.work_records import SYNTHETIC, UnitKind

MIN_MEASURED_S = 1.0
"""Shorter measurements are ignored: they do not measure a rate."""

RATIO_BOUNDS = (0.05, 20.0)
"""Bounds of a correction factor. A larger deviation has another cause than an inexact rate."""


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """Measured seconds of one attempt, divided by the estimate; None where the attempt measured no such phase.

    Attributes:
        gpu_class: Node class on which the attempt ran.
        backend: Backend that it used.
        model: Id of the model.
        scheme: Name of the scheme.
        start: Ratio of starting.
        load: Ratio of loading the weights.
        fixed: Ratio of starting and loading together.
        work: Ratio of answering.
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
class Correction:
    """Factors by which estimated seconds are multiplied.

    Attributes:
        start: Factor of starting.
        load: Factor of loading the weights.
        work: Factor of answering.
        attempts: Number of attempts from which `work` was computed.
        gpu_classes: Classes on which these ran.
    """

    start: float = 1.0
    load: float = 1.0
    work: float = 1.0
    attempts: int = 0
    gpu_classes: tuple[str, ...] = ()


UNCALIBRATED = Correction()


@dataclass(frozen=True, kw_only=True)
class RunHistory:
    """What a new plan needs from earlier attempts of the same run.

    Attributes:
        measurements: Measurements of attempts.
        shards: Number of shards by variant, as in the last plan.
        timed_out: Units of which an attempt exceeded its time limit.
        quantized_on: By variant: the classes on which its quantization was attempted, in this order.
        evaluated_on: The same for its evaluation.
    """

    measurements: tuple[Measurement, ...] = ()
    shards: Mapping[str, int]
    timed_out: frozenset[str] = frozenset()
    quantized_on: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    evaluated_on: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def correction(self, gpu_class: str, backend: str, model: str, scheme: str) -> Correction:
        """Return the median ratios of attempts with these properties, else of attempts with this class and backend.

        A class that was not tried gets the ratios of the others. Without them it would seem faster than it is, only
        because nothing is known about it, and units would be moved there.

        A measurement of another model counts for starting or for loading, whichever dominated it: the slow start of a
        small model must not make a large model's loading seem slow, nor the reverse.
        """
        anywhere = [one for one in self.measurements if one.backend == backend]
        similar = [one for one in anywhere if one.gpu_class == gpu_class] or anywhere
        same = [one for one in similar if (one.model, one.scheme) == (model, scheme)]
        answered = [one for one in same if one.work is not None]
        used = answered or next(
            (found for group in (similar, anywhere) if (found := [one for one in group if one.work is not None])), []
        )
        if any(one.fixed is not None for one in same):
            start = load = _bounded_median(one.fixed for one in same)
        else:
            start = _bounded_median(one.start for one in similar)
            load = _bounded_median(one.load for one in similar)
        return Correction(
            start=start,
            load=load,
            work=_bounded_median(one.work for one in used),
            attempts=len(used),
            gpu_classes=tuple(dict.fromkeys(one.gpu_class for one in used)),
        )


EMPTY_HISTORY = RunHistory(shards={})


def read_history(document: Mapping[str, Any], attempts: Mapping[str, Iterable[AttemptRecord]]) -> RunHistory:
    """Read the history from a run's last plan and its attempts; damaged ones and those of older versions are skipped.

    Args:
        document: The last plan, as in plan.json.
        attempts: Attempts by unit id.
    """
    rows = {row["id"]: row for row in document.get("units", ()) if row.get("kind") == "evaluate"}
    known = {unit: records for unit, records in attempts.items() if unit in rows}
    measurements = (_measurement(rows[unit], record) for unit, records in known.items() for record in records)
    return RunHistory(
        measurements=tuple(one for one in measurements if one),
        shards={row["variant"]: row["shard"]["count"] for row in rows.values() if row.get("shard")},
        timed_out=frozenset(
            unit for unit, records in attempts.items() if any(one.failure is Failure.TIMEOUT for one in records)
        ),
        quantized_on=_classes(document, attempts, UnitKind.QUANTIZE),
        evaluated_on=_classes(document, attempts, UnitKind.EVALUATE),
    )


def _classes(
    document: Mapping[str, Any], attempts: Mapping[str, Iterable[AttemptRecord]], kind: UnitKind
) -> dict[str, tuple[str, ...]]:
    """Return the classes of a variant's attempts in the order of their starts; for old records, that of the plan."""
    planned = {row["id"]: row["gpu_class"] for row in document.get("units", ()) if "gpu_class" in row}
    found: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for name, records in attempts.items():
        unit = UnitId.parse(name)
        if unit is not None and unit.kind is kind:
            for record in records:
                gpu_class = (record.facts.get("planned") or {}).get("gpu_class") or planned.get(name)
                if gpu_class and record.pid:  # otherwise the unit did not start
                    found[unit.subject].append((record.start, gpu_class))
    return {variant: tuple(dict.fromkeys(name for _, name in sorted(starts))) for variant, starts in found.items()}


def _measurement(row: Mapping[str, Any], record: AttemptRecord) -> Measurement | None:
    """Compare an attempt with the estimate at its submission: the last plan may have placed the unit elsewhere."""
    facts, planned = record.facts, record.facts.get("planned") or {}
    estimated = planned.get("uncalibrated_seconds")
    if not estimated or planned["backend"] == SYNTHETIC:
        return None
    start = load = fixed = work = None
    load_s, answer_s, answered = facts.get("load_seconds"), facts.get("answer_seconds"), facts.get("answered")
    if load_s and load_s > MIN_MEASURED_S and estimated["start"] + estimated["load"]:
        fixed = load_s / (estimated["start"] + estimated["load"])
        if estimated["load"] > estimated["start"]:
            load = max(0.0, load_s - estimated["start"]) / estimated["load"]
        else:
            start = fixed
    if answer_s and answer_s > MIN_MEASURED_S and answered and record.total and estimated["work"]:
        work = answer_s / (estimated["work"] * answered / record.total)
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


def _bounded_median(ratios: Iterable[float | None]) -> float:
    known = [ratio for ratio in ratios if ratio is not None]
    low, high = RATIO_BOUNDS
    return min(high, max(low, median(known))) if known else 1.0
