"""Choice of shard counts for the shortest makespan, by repeated simulation.

The caller simulates the makespan of each trial.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import replace

from hpcq.manifest.profiles import Profile
from hpcq.plan.placement.assignment import Assignment
from hpcq.plan.placement.time_limits import max_worthwhile_shards
from hpcq.plan.schedule.resources import concurrent_units

_STEP = math.sqrt(0.5)
"""Factor on the target time from one trial to the next."""

_MAX_FAILED_TRIALS = 3
"""Consecutive trials without a shorter makespan after which the search stops."""


def choose_shard_counts(
    assignments: Mapping[str, Assignment],
    profile: Profile,
    simulate_wall_s: Callable[[Mapping[str, Assignment]], float | None],
) -> dict[str, Assignment]:
    """Return `assignments` with the shard counts of the shortest makespan; of equal makespans, the fewest shards.

    Only variants with an automatic number of shards are split further, and only while all units can be submitted at
    once (`slurm.max_submitted_jobs`). A target below the time that their class needs for all its work cannot shorten
    the makespan.

    Args:
        assignments: Assignments by variant id.
        profile: The cluster.
        simulate_wall_s: Returns the makespan of such assignments in seconds; None: unknown.
    """
    best = dict(assignments)
    seconds = {name: _alone_s(assignment) for name, assignment in assignments.items() if assignment.is_shard_count_auto}
    best_wall_s = simulate_wall_s(best)
    if not seconds or best_wall_s is None:
        return best
    target_s, min_target_s, failed_trials = max(seconds.values()), _busiest_class_s(assignments, profile) / 2, 0
    while target_s * _STEP > min_target_s and failed_trials < _MAX_FAILED_TRIALS:
        target_s *= _STEP
        trial = {
            name: _split(assignment, target_s) if name in seconds else assignment
            for name, assignment in assignments.items()
        }
        if _exceeds_job_limit(trial, profile):
            break
        wall_s = simulate_wall_s(trial)
        failed_trials += 1
        if wall_s is not None and wall_s < best_wall_s:
            best, best_wall_s, failed_trials = trial, wall_s, 0
    return best


def _exceeds_job_limit(assignments: Mapping[str, Assignment], profile: Profile) -> bool:
    """Whether there are more units, with the merge, than jobs that can be submitted."""
    limit = profile.slurm.max_submitted_jobs
    units = sum(one.shards + (one.quantization is not None) for one in assignments.values()) + 1
    return profile.scheduler == "slurm" and limit is not None and units > limit


def _quantization_s(assignment: Assignment) -> float:
    """Return the seconds before the evaluation can start."""
    return (assignment.quantization.seconds() or 0.0) if assignment.quantization else 0.0


def _alone_s(assignment: Assignment) -> float:
    """Return the seconds from the start to the last answer on an empty cluster."""
    return _quantization_s(assignment) + (assignment.evaluation.seconds(assignment.shards) or 0.0)


def _split(assignment: Assignment, target_s: float) -> Assignment:
    """Split the evaluation so that it ends after `target_s`, but not into more shards than are worth their loading."""
    cost = assignment.evaluation.cost
    if cost is None or not cost.work_s:
        return assignment
    remaining_s = target_s - _quantization_s(assignment) - cost.fixed_s
    max_shards = max(assignment.shards, max_worthwhile_shards(cost))
    required = math.ceil(cost.work_s / remaining_s) if remaining_s > 0 else max_shards
    return replace(assignment, shards=max(assignment.shards, min(required, max_shards)))


def _busiest_class_s(assignments: Mapping[str, Assignment], profile: Profile) -> float:
    """Return the seconds of all work on the busiest class if the class is always full."""
    busy_s: dict[str, float] = defaultdict(float)
    for assignment in assignments.values():
        for candidate in (assignment.evaluation, assignment.quantization):
            if candidate is not None:
                shape = candidate.placement.shape
                busy_s[shape.gpu_class] += (candidate.seconds() or 0.0) / concurrent_units(profile, shape)
    return max(busy_s.values(), default=0.0)
