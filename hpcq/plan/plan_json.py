"""The JSON document of `plan --json` and of runs/<name>/plan.json (a contract: fields may be added, never renamed)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from hpcq.core.work import EvaluateWork, State
from hpcq.plan.cost.token_estimates import TokenEstimate, estimate
from hpcq.plan.memory.weights import gib
from hpcq.plan.schedule.simulator import Timeline
from hpcq.plan.units import Plan, PlannedArray, PlannedUnit

SCHEMA = 1


def plan_document(
    plan: Plan, arrays: Sequence[PlannedArray], states: Mapping[str, State], timeline: Timeline | None = None
) -> dict[str, Any]:
    """The plan as plain JSON types.

    `seconds` are estimated, null where nothing is known; `reckoned_seconds` are their parts before earlier attempts put
    them right. `totals.gpu_hours` are of the units in `arrays`, by the estimates (by the time limits, where one has
    none); `gpu_hours_at_most` is what the time limits allow one attempt. `totals.wall_seconds` and `critical_path`
    (units, each held up by the one before) are of `timeline`, as if nothing else ran. `tokens`, of the log-likelihood
    requests, are estimated, of the whole plan whatever is done; `without` names the tasks that the estimate leaves out.
    They are null where nothing will be computed from tokens.
    """
    addresses: dict[str, str] = {}
    by_variant: dict[str, TokenEstimate] = {}
    estimates = [_estimate(unit, by_variant) for unit in plan.units]
    known = [tokens for tokens in estimates if tokens is not None]
    return {
        "schema": SCHEMA,
        "run": plan.run,
        "address": plan.address,
        "units": [
            {
                **_unit(unit, states.get(unit.id, State.WAITING)),
                "address": _address(unit, addresses),
                "tokens": _tokens(tokens),
            }
            for unit, tokens in zip(plan.units, estimates, strict=True)
        ],
        "arrays": [_array(array) for array in arrays],
        "totals": {
            "gpu_hours": gpu_hours(arrays),
            "gpu_hours_at_most": _gpu_hours_at_most(arrays),
            "wall_seconds": timeline.wall_seconds if timeline else None,
            "critical_path": list(timeline.critical_path) if timeline else None,
            "checkpoint_bytes": plan.checkpoint_bytes,
            "results_bytes": plan.results_bytes,
            "judge_dollars": 0.0,
            "tokens": _tokens(sum(known, start=TokenEstimate()) if known else None),
        },
        "refused": [
            {"variant": refusal.variant, "reason": refusal.reason, "try": refusal.cure} for refusal in plan.refused
        ],
        "notes": list(plan.notes),
        "compare": list(plan.compare),
        "reckoning": list(plan.reckoning),
    }


def _address(unit: PlannedUnit, known: dict[str, str]) -> str | None:
    """Of the responses that the unit's variant is to have; the same for all of its shards, so computed once."""
    if not isinstance(unit.work, EvaluateWork):
        return None
    variant = unit.work.variant.id
    if variant not in known:
        known[variant] = unit.work.address
    return known[variant]


def _estimate(unit: PlannedUnit, known: dict[str, TokenEstimate]) -> TokenEstimate | None:
    """Of the unit's tokens; the same for all of its variant's shards, so made once."""
    if not isinstance(unit.work, EvaluateWork) or unit.work.is_rehearsal:
        return None
    variant = unit.work.variant.id
    if variant not in known:
        known[variant] = estimate(unit.work)
    return known[variant]


def _tokens(tokens: TokenEstimate | None) -> dict[str, Any] | None:
    if tokens is None:
        return None
    return {"asked": round(tokens.asked), "computed": round(tokens.computed), "without": list(tokens.without)}


def _unit(unit: PlannedUnit, state: State) -> dict[str, Any]:
    variant, shard, shape = unit.variant, unit.shard, unit.shape
    return {
        "id": unit.id,
        "kind": str(unit.kind),
        "variant": variant.id if variant else None,
        "model": variant.model.id if variant else None,
        "scheme": variant.scheme.name if variant else None,
        "backend": unit.work.backend if isinstance(unit.work, EvaluateWork) else None,
        "tasks": [task.name for task in unit.work.tasks] if isinstance(unit.work, EvaluateWork) else [],
        "shard": {"index": shard.index, "count": shard.count} if shard else None,
        "gpu_class": shape.gpu_class,
        "nodes": shape.nodes,
        "gpus_per_node": shape.gpus_per_node,
        "tensor_parallel": shape.tensor_parallel,
        "pipeline_parallel": shape.pipeline_parallel,
        "memory_gib_per_gpu": unit.memory_gib_per_gpu,
        "memory_gib": {part: gib(count) for part, count in asdict(unit.need).items()} if unit.need else None,
        "offloaded_gib": {"host": gib(unit.offloaded.host), "disk": gib(unit.offloaded.disk)}
        if unit.offloaded
        else None,
        "kernel": unit.kernel,
        "seconds": unit.seconds,
        "reckoned_seconds": asdict(unit.reckoned) if unit.reckoned else None,
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
        "environment": array.environment,
        "units": [unit.id for unit in array.units],
        "throttle": array.throttle,
        "time_limit_minutes": array.time_limit_minutes,
        "depends_on": list(array.depends_on),
        "dependency": array.dependency,
        "element": array.element,
    }


def gpu_hours(arrays: Sequence[PlannedArray]) -> dict[str, float]:
    """By class, what the units of `arrays` are estimated to take; the time limit, where one has no estimate."""
    hours: dict[str, float] = defaultdict(float)
    for array in arrays:
        if array.shape.gpus:
            limit_s = array.time_limit_minutes * 60
            seconds = sum(limit_s if unit.seconds is None else unit.seconds for unit in array.units)
            hours[array.shape.gpu_class] += seconds * array.shape.gpus / 3600
    return dict(hours)


def _gpu_hours_at_most(arrays: Sequence[PlannedArray]) -> dict[str, float]:
    hours: dict[str, float] = defaultdict(float)
    for array in arrays:
        if array.shape.gpus:
            limit_s = array.time_limit_minutes * 60
            seconds = sum(max(limit_s, unit.seconds or 0.0) for unit in array.units)
            hours[array.shape.gpu_class] += seconds * array.shape.gpus / 3600
    return dict(hours)
