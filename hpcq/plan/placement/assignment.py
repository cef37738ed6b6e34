"""Choice of a placement for each variant: for the fewest GPU-hours, or for the shortest makespan.

An assignment defines where a variant is quantized, and where and in how many shards it is evaluated.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from hpcq.core.frozen import dataclass
from hpcq.core.work_records import Variant
from hpcq.manifest.profiles import Profile
from hpcq.manifest.resolved import EvaluateSettings
from hpcq.plan.placement.candidates import PlacementError, deviates_from_scheme
from hpcq.plan.placement.estimator import Candidate, Estimator, EvaluationCandidates
from hpcq.plan.placement.time_limits import check_shards, limit_too_short, min_shard_count
from hpcq.plan.schedule.resources import concurrent_units


@dataclass(frozen=True, kw_only=True)
class Assignment:
    """Placements of one variant.

    Attributes:
        settings: Settings of the evaluation.
        evaluation: Where the variant is evaluated.
        shards: Number of shards of the evaluation.
        is_shard_count_auto: The planner may change the number of shards.
        fallback_reason: Why the manifest's own backend does not evaluate it; None: it does.
        quantization: Where the variant is quantized; None for a base checkpoint.
    """

    settings: EvaluateSettings
    evaluation: Candidate
    shards: int
    is_shard_count_auto: bool = False
    fallback_reason: str | None = None
    quantization: Candidate | None = None


def assign_variants(
    estimator: Estimator, variants: Sequence[Variant]
) -> tuple[dict[str, Assignment], dict[str, PlacementError]]:
    """Return, by variant id, the assignments, and the errors of variants that have none."""
    profile, history = estimator.resolved.profile, estimator.history
    keeps_class = estimator.resolved.manifest.plan.keep_gpu_class
    quantized_on, evaluated_on = (history.quantized_on, history.evaluated_on) if keeps_class else ({}, {})
    found: dict[str, EvaluationCandidates] = {}
    evaluations: dict[str, list[Candidate]] = {}
    quantizations: dict[str, list[Candidate]] = {}
    unplaced: dict[str, PlacementError] = {}
    for variant in variants:
        try:
            found[variant.id] = estimator.evaluation_candidates(variant)
            for_quantization = estimator.quantization_candidates(variant) if variant.is_quantized_here else None
            for_evaluation = found[variant.id].candidates
            # A variant that has started continues, even if a later estimate exceeds the time limits.
            if variant.id not in history.shards:
                for_quantization = for_quantization and within_time_limits(for_quantization, profile, "quantizing")
                for_evaluation = within_time_limits(for_evaluation, profile, "answering")
            if for_quantization:
                quantizations[variant.id] = _on_kept_class(for_quantization, quantized_on.get(variant.id))
            evaluations[variant.id] = _on_kept_class(for_evaluation, evaluated_on.get(variant.id))
        except PlacementError as problem:
            unplaced[variant.id] = problem
    chosen, chosen_for_quantization = _select(evaluations, estimator), _select(quantizations, estimator)
    assignments: dict[str, Assignment] = {}
    for name, candidate in chosen.items():
        started, requested = history.shards.get(name), estimator.resolved.evaluate.shards
        if requested == "auto":
            # Another number of shards would repeat work of shards that are already pending.
            shards = started or _min_shards(candidate, profile)
        else:
            refusal = check_shards(candidate.cost, requested) if candidate.cost and requested != started else None
            if refusal:
                unplaced[name] = refusal
                continue
            shards = requested
        assignments[name] = Assignment(
            settings=found[name].settings,
            fallback_reason=found[name].fallback_reason,
            evaluation=candidate,
            shards=shards,
            is_shard_count_auto=requested == "auto" and started is None,
            quantization=chosen_for_quantization.get(name),
        )
    return assignments, unplaced


def _on_kept_class(candidates: list[Candidate], classes: tuple[str, ...] | None) -> list[Candidate]:
    """Return the candidates on the class of the variant's last attempt; all if it has none, or cannot run there now.

    Args:
        candidates: Candidates of a variant.
        classes: Classes of its attempts, in their order.
    """
    last = (classes or ())[-1:]
    return [one for one in candidates if one.placement.shape.gpu_class in last] or candidates


def _select(candidates: Mapping[str, Sequence[Candidate]], estimator: Estimator) -> dict[str, Candidate]:
    if estimator.resolved.manifest.plan.objective == "makespan":
        return earliest_finish(candidates, estimator.resolved.profile)
    return {name: cheapest(found) for name, found in candidates.items()}


def cheapest(candidates: Sequence[Candidate]) -> Candidate:
    """Return the candidate with the fewest GPU-seconds, or with the fewest GPUs if a cost is unknown.

    Candidates that compute exactly the scheme come first. Ties: the fewest GPUs, then the profile's first class.
    """
    are_known = all(candidate.cost for candidate in candidates)
    return min(
        candidates,
        key=lambda one: (
            deviates_from_scheme(one.placement),
            one.gpu_seconds if are_known else 0.0,
            one.placement.shape.gpus,
        ),
    )


def earliest_finish(candidates: Mapping[str, Sequence[Candidate]], profile: Profile) -> dict[str, Candidate]:
    """Return one candidate per key, balanced over the classes (longest processing time first).

    Each key goes where it ends first after those already assigned. A class runs several units at once, so a unit
    occupies its share of the class for its run time.
    """
    busy_s = dict.fromkeys(profile.gpu_classes, 0.0)
    chosen: dict[str, Candidate] = {}

    def end_s(candidate: Candidate) -> float:
        shape = candidate.placement.shape
        return busy_s[shape.gpu_class] + _seconds(candidate) / concurrent_units(profile, shape)

    best = {key: cheapest(found) for key, found in candidates.items()}
    for key in sorted(candidates, key=lambda key: -_seconds(best[key])):
        found = candidates[key]
        if not all(candidate.cost for candidate in found):
            chosen[key] = best[key]
            continue
        chosen[key] = min(
            found,
            key=lambda one: (
                deviates_from_scheme(one.placement),
                end_s(one),
                one.gpu_seconds,
                one.placement.shape.gpus,
            ),
        )
        busy_s[chosen[key].placement.shape.gpu_class] = end_s(chosen[key])
    return chosen


def within_time_limits(candidates: Sequence[Candidate], profile: Profile, activity: str) -> list[Candidate]:
    """Return the candidates whose class's time limit leaves time to load and to work.

    Args:
        candidates: Candidates of one variant.
        profile: The cluster.
        activity: "quantizing" or "answering", for the message.

    Raises:
        PlacementError: No candidate does.
    """
    fitting = [
        candidate
        for candidate in candidates
        if candidate.cost is None or min_shard_count(candidate.cost, profile, candidate.placement.shape.gpu_class)
    ]
    if fitting:
        return fitting
    costs = {candidate.placement.shape.gpu_class: candidate.cost for candidate in candidates if candidate.cost}
    least = min(costs, key=lambda name: costs[name].fixed_s)
    raise limit_too_short(costs[least], profile, least, activity)


def _min_shards(candidate: Candidate, profile: Profile) -> int:
    """Return the smallest number of shards that the class's time limit allows."""
    return (candidate.cost and min_shard_count(candidate.cost, profile, candidate.placement.shape.gpu_class)) or 1


def _seconds(candidate: Candidate) -> float:
    return candidate.cost.seconds() if candidate.cost else 0.0
