"""JSON document of `plan --json` and `runs/<name>/plan.json`. Contract: fields may be added, never renamed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from hpcq.core.work_records import EvaluateWork, UnitKind, UnitState
from hpcq.plan.cost.tokens import TokenEstimate, estimate_tokens
from hpcq.plan.detectable import detectable_differences
from hpcq.plan.memory.weights import gib
from hpcq.plan.schedule.simulator import Timeline
from hpcq.plan.units import Plan, PlannedArray, PlannedUnit

SCHEMA = 1


def plan_document(
    plan: Plan,
    arrays: Sequence[PlannedArray],
    states: Mapping[str, UnitState],
    timeline: Timeline | None = None,
    *,
    missing: Sequence[PlannedArray] | None = None,
) -> dict[str, Any]:
    """Return the plan as plain JSON types.

    Fields whose names need an explanation:

    - `units[].seconds`: estimated run time; null: unknown. `uncalibrated_seconds`: the same by phase (start, load,
      work), before calibration from earlier attempts.
    - `arrays`: what `submit` submits now. `later_units`: number of units in `missing` that later portions submit.
    - `totals.gpu_hours`: GPU-hours of the units in `missing`, by class: the estimates, or the time limit if a unit has
      none. `max_gpu_hours`: what the time limits allow for one attempt of each.
    - `totals.wall_seconds`, `critical_path`: from `timeline`, on an otherwise empty cluster. Each unit of the critical
      path delays the next.
    - `tokens`: estimated tokens of the log-likelihood requests of the whole plan, finished units included.
      `unknown_tasks`: tasks that the estimate does not include. Null if nothing will be computed from tokens.
    - `fidelity_panel`: text and size of `[fidelity]`; the unquantized model reads it twice.
    - `detectable`: by task, the smallest differences from the baseline that its items can show
      (`hpcq.plan.detectable`).
    """
    addresses: dict[str, str] = {}
    by_variant: dict[str, TokenEstimate] = {}
    missing = arrays if missing is None else missing
    estimates = [_estimate(unit, by_variant) for unit in plan.units]
    known = [tokens for tokens in estimates if tokens is not None]
    return {
        "schema": SCHEMA,
        "run": plan.run,
        "address": plan.address,
        "units": [
            {
                **_unit(unit, states.get(unit.id, UnitState.WAITING)),
                "address": _address(unit, addresses),
                "tokens": _tokens(tokens),
            }
            for unit, tokens in zip(plan.units, estimates, strict=True)
        ],
        "arrays": [_array(array) for array in arrays],
        "later_units": count_units(missing) - count_units(arrays),
        "totals": {
            "gpu_hours": estimated_gpu_hours(missing),
            "max_gpu_hours": _max_gpu_hours(missing),
            "wall_seconds": timeline.wall_seconds if timeline else None,
            "critical_path": list(timeline.critical_path) if timeline else None,
            "checkpoint_bytes": plan.checkpoint_bytes,
            "results_bytes": plan.results_bytes,
            "judge_dollars": 0.0,
            "tokens": _tokens(sum(known, start=TokenEstimate()) if known else None),
        },
        "refused": [
            {"variant": refusal.variant, "reason": refusal.reason, "suggestion": refusal.suggestion}
            for refusal in plan.refused
        ],
        "notes": list(plan.notes),
        "compare": list(plan.compare),
        "margin_points": plan.margin_points,
        "detectable": [one.as_json() for one in detectable_differences(plan)],
        "estimate_notes": list(plan.estimate_notes),
        "fidelity_panel": _panel(plan),
    }


def _panel(plan: Plan) -> dict[str, Any] | None:
    """Return the fidelity panel as each variant reads it at least once; null: there is none."""
    works = (unit.work for unit in plan.units if isinstance(unit.work, EvaluateWork))
    panel = next((task.panel for work in works for task in work.tasks if task.panel), None)
    if panel is None:
        return None
    return {
        "dataset": panel.dataset,
        "windows": panel.windows,
        "window_tokens": panel.window_tokens,
        "leaves_out_calibration": panel.reserved is not None,
    }


def count_units(arrays: Sequence[PlannedArray]) -> int:
    """Return the number of units of all `arrays` without merges, which every submission has."""
    return sum(len(array.units) for array in arrays if array.kind is not UnitKind.MERGE)


def _address(unit: PlannedUnit, known: dict[str, str]) -> str | None:
    """Return the unit's address. All shards of a variant share it, so it is computed once."""
    if not isinstance(unit.work, EvaluateWork):
        return unit.address
    variant = unit.work.variant.id
    if variant not in known:
        known[variant] = unit.work.address
    return known[variant]


def _estimate(unit: PlannedUnit, known: dict[str, TokenEstimate]) -> TokenEstimate | None:
    """Return the variant's token estimate. All shards share it, so it is computed once."""
    if not isinstance(unit.work, EvaluateWork) or unit.work.is_synthetic:
        return None
    variant = unit.work.variant.id
    if variant not in known:
        known[variant] = estimate_tokens(unit.work)
    return known[variant]


def _tokens(tokens: TokenEstimate | None) -> dict[str, Any] | None:
    if tokens is None:
        return None
    return {
        "requested": round(tokens.requested),
        "computed": round(tokens.computed),
        "unknown_tasks": list(tokens.unknown_tasks),
    }


def _unit(unit: PlannedUnit, state: UnitState) -> dict[str, Any]:
    variant, shard, shape = unit.variant, unit.shard, unit.shape
    return {
        "id": unit.id,
        "kind": str(unit.kind),
        "variant": variant.id if variant else None,
        "model": variant.model.id if variant else None,
        "model_revision": variant.model.revision if variant else None,
        "model_digest": variant.model.digest if variant else None,
        "scheme": variant.scheme.name if variant else None,
        "tool": variant.scheme.tool if variant else None,
        "backend": unit.work.backend if isinstance(unit.work, EvaluateWork) else None,
        "tasks": [task.name for task in unit.work.tasks] if isinstance(unit.work, EvaluateWork) else [],
        "shard": {"index": shard.index, "count": shard.count} if shard else None,
        "gpu_class": shape.gpu_class,
        "nodes": shape.nodes,
        "gpus_per_node": shape.gpus_per_node,
        "tensor_parallel": shape.tensor_parallel,
        "pipeline_parallel": shape.pipeline_parallel,
        "expert_parallel": shape.expert_parallel,
        "memory_gib_per_gpu": unit.memory_gib_per_gpu,
        "memory_gib": {part: gib(count) for part, count in asdict(unit.gpu_memory).items()}
        if unit.gpu_memory
        else None,
        "offloaded_gib": {"host": gib(unit.offloaded.host_bytes), "disk": gib(unit.offloaded.disk_bytes)}
        if unit.offloaded
        else None,
        "kernel": unit.kernel,
        "seconds": unit.seconds,
        "uncalibrated_seconds": asdict(unit.uncalibrated_seconds) if unit.uncalibrated_seconds else None,
        "depends_on": list(unit.depends_on),
        "environment": unit.environment,
        "checkpoint": unit.checkpoint,
        "state": str(state),
    }


def _array(array: PlannedArray) -> dict[str, Any]:
    return {
        "name": array.name,
        "kind": str(array.kind),
        "gpu_class": array.shape.gpu_class,
        "nodes": array.shape.nodes,
        "gpus_per_node": array.shape.gpus_per_node,
        "memory_gib": array.memory_gib,
        "memory_option": array.memory_option,
        "environment": array.environment,
        "units": [unit.id for unit in array.units],
        "throttle": array.throttle,
        "time_limit_minutes": array.time_limit_minutes,
        "depends_on": list(array.depends_on),
        "dependency": array.dependency,
        "element": array.element,
    }


def estimated_gpu_hours(arrays: Sequence[PlannedArray]) -> dict[str, float]:
    """Return the estimated GPU-hours of `arrays` by class. A unit without an estimate counts with its time limit."""
    hours: dict[str, float] = defaultdict(float)
    for array in arrays:
        if array.shape.gpus:
            limit_s = array.time_limit_minutes * 60
            seconds = sum(limit_s if unit.seconds is None else unit.seconds for unit in array.units)
            hours[array.shape.gpu_class] += seconds * array.shape.gpus / 3600
    return dict(hours)


def _max_gpu_hours(arrays: Sequence[PlannedArray]) -> dict[str, float]:
    """Return the GPU-hours that the time limits allow, by class."""
    hours: dict[str, float] = defaultdict(float)
    for array in arrays:
        if array.shape.gpus:
            limit_s = array.time_limit_minutes * 60
            seconds = sum(max(limit_s, unit.seconds or 0.0) for unit in array.units)
            hours[array.shape.gpu_class] += seconds * array.shape.gpus / 3600
    return dict(hours)
