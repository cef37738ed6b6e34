"""Plausible seconds of a unit from bytes and tokens, for simulations: the one place to put a better estimate.

Knows the catalog and plans; must not know schedules. Every rate is an assumption of the right magnitude.
"""

from __future__ import annotations

from hpcq.catalog.tasks import find_task
from hpcq.manifest import Resolved
from hpcq.plan.memory import weight_bytes
from hpcq.plan.tokens import LOGLIKELIHOOD, estimate
from hpcq.plan.units import PlannedUnit
from hpcq.units import EvaluateWork, MergeWork

START_S = 60.0
READ_BYTES_PER_S = 1e9
USED_SHARE = 0.4
GENERATED_TOKENS = 300
SEQUENCES_AT_ONCE = 64
MERGE_S = 60.0


def seconds_of(unit: PlannedUnit, resolved: Resolved) -> float:
    """Start, loading, and computing with so much of what the data sheet promises."""
    work = unit.work
    if isinstance(work, MergeWork):
        return MERGE_S
    gpu = resolved.profile.gpu_classes[unit.shape.gpu_class].device
    model = resolved.shapes[work.variant.model.id]
    if gpu is None:
        raise TypeError(f"{unit.id} has no GPU")
    operations = 2 * model.parameters / (gpu.dense_tflops["bf16"] * 1e12 * USED_SHARE * max(1, unit.shape.gpus))
    if not isinstance(work, EvaluateWork):
        calibration = work.variant.calibration
        tokens = calibration.samples * calibration.sequence_length if calibration else 0
        return START_S + 2 * model.parameters * 2 / READ_BYTES_PER_S + 4 * tokens * operations
    weights = weight_bytes(model, work.variant.scheme)
    step_s = weights / (gpu.bandwidth_gb_per_s * 1e9 * USED_SHARE * unit.shape.gpus)
    answer_s = estimate(work).computed * operations
    for task in work.tasks:
        facts = find_task(task.name)
        if facts is not None and facts.output != LOGLIKELIHOOD:
            answer_s += facts.items * GENERATED_TOKENS / SEQUENCES_AT_ONCE * step_s / work.shard.count
    return START_S + weights / READ_BYTES_PER_S + answer_s
