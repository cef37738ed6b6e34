"""Planner: turn a resolved manifest into units: quantizations, evaluations in shards, one merge."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

from hpcq import __version__
from hpcq.catalog.kernels import backend_title
from hpcq.catalog.tasks import known_task
from hpcq.catalog.tools import quantizers
from hpcq.core.addressing import address_of
from hpcq.core.work_records import PANEL_TASK, Model, Scheme, Task, Variant
from hpcq.manifest import ResolvedManifest
from hpcq.plan.arrays import make_arrays
from hpcq.plan.attention import softcap_attention
from hpcq.plan.build_units import merge_unit, merged_evaluations, stage_unit, variant_units
from hpcq.plan.cost.calibration import EMPTY_HISTORY, RunHistory
from hpcq.plan.cost.tokens import mean_prompt_tokens
from hpcq.plan.memory.weights import checkpoint_bytes
from hpcq.plan.placement.assignment import Assignment, assign_variants
from hpcq.plan.placement.candidates import PlacementError
from hpcq.plan.placement.estimator import Estimator, estimate_notes, merge_seconds, results_bytes
from hpcq.plan.placement.requirements import evaluation_requirements, fallback_requirements
from hpcq.plan.placement.sharding import choose_shard_counts
from hpcq.plan.placement.suggestions import suggest
from hpcq.plan.schedule.simulator import simulate_estimates
from hpcq.plan.tool_versions import versions_of
from hpcq.plan.units import Plan, PlannedUnit, Refusal


def make_plan(resolved: ResolvedManifest, history: RunHistory = EMPTY_HISTORY) -> Plan:
    """Return all units of the run, finished or not. What cannot run is refused, with a suggestion.

    Reads only the catalog and the environments' locks. Writes nothing.

    Args:
        resolved: The manifest.
        history: Measurements and shard counts from the run's folder.
    """
    tasks, refused = _runnable_tasks(resolved)
    estimator = Estimator(resolved=resolved, tasks=tasks, history=history)
    variants = {variant.id: variant for variant in _variants(resolved)}
    assignments, unplaced = assign_variants(estimator, tuple(variants.values()))
    refused += [_refusal(resolved, variant, unplaced[name]) for name, variant in variants.items() if name in unplaced]
    if resolved.manifest.plan.objective == "makespan":
        assignments = choose_shard_counts(
            assignments, resolved.profile, lambda tried: _wall_s(_units(estimator, variants, tried), resolved)
        )
    units = _units(estimator, variants, assignments)
    notes = dict.fromkeys(
        note for name, assignment in assignments.items() for note in _notes(resolved, variants[name], assignment)
    )
    return Plan(
        run=resolved.name,
        address=address_of("run", sorted(work.address for work in merged_evaluations(units))),
        units=tuple(units),
        refused=tuple(refused),
        checkpoint_bytes=sum(_checkpoint_bytes(resolved, variants[name]) for name in assignments),
        notes=(*resolved.notes, *_skipped_tasks(refused), *_models_of_one_name(variants), *notes),
        compare=resolved.report.compare,
        margin_points=resolved.report.margin_points,
        estimate_notes=tuple(
            estimate_notes(estimator.workload, [assignment.evaluation for assignment in assignments.values()])
        ),
        results_bytes=results_bytes(estimator.workload, len(assignments)),
    )


def _units(
    estimator: Estimator, variants: Mapping[str, Variant], assignments: Mapping[str, Assignment]
) -> list[PlannedUnit]:
    """Return the staging, the units variant by variant, each quantization before its evaluations, and the merge."""
    resolved, tasks, timed_out = estimator.resolved, estimator.tasks, estimator.history.timed_out
    stage = stage_unit(resolved, tasks)
    units = [
        unit
        for name, assignment in assignments.items()
        for unit in variant_units(resolved, variants[name], tasks, assignment, timed_out, stage)
    ]
    if units:
        units.append(merge_unit(resolved, units, merge_seconds(estimator.workload, len(assignments))))
    return [stage, *units] if stage and units else units


def _wall_s(units: Sequence[PlannedUnit], resolved: ResolvedManifest) -> float | None:
    timeline = simulate_estimates(make_arrays(units, resolved.profile), resolved.profile)
    return timeline.wall_seconds if timeline else None


def _variants(resolved: ResolvedManifest) -> list[Variant]:
    """Return all variants, model by model: the model's schemes, then its checkpoints that others quantized."""
    found = [*(variant_of(resolved, *pair) for pair in resolved.pairs), *resolved.foreign]
    models = list(resolved.shapes)
    return sorted(found, key=lambda variant: models.index(variant.model))


def _checkpoint_bytes(resolved: ResolvedManifest, variant: Variant) -> int:
    """Return the size of the checkpoint that hpcq creates; 0 if it creates none or its size is unknown."""
    shape = resolved.shapes.get(variant.model)
    return checkpoint_bytes(shape, variant.scheme) if variant.is_quantized_here and shape else 0


def variant_of(resolved: ResolvedManifest, model: Model, scheme: Scheme) -> Variant:
    """Return model × scheme with everything that can change the checkpoint."""
    if not scheme.is_quantized:
        return Variant(model=model, scheme=scheme)
    tool = quantizers()[scheme.tool]
    return Variant(
        model=model,
        scheme=scheme,
        calibration=resolved.calibration if scheme.needs_calibration else None,
        attention=softcap_attention(tool, resolved, model) if scheme.needs_calibration else None,
        versions=versions_of(tool, resolved.quantize.environment_for(scheme.tool), resolved),
    )


def _runnable_tasks(resolved: ResolvedManifest) -> tuple[tuple[Task, ...], list[Refusal]]:
    runnable, refused = [], []
    for task in resolved.tasks:
        facts = known_task(task.name, task.definitions)
        if facts is None or facts.is_runnable:
            runnable.append(task)
        else:
            refused.append(
                Refusal(
                    variant=None,
                    reason=f"{task.name}: hpcq {__version__} knows this benchmark by name and cannot run it yet.",
                    suggestion="other tasks; if the manifest names some, `submit` runs them and skips this one",
                )
            )
    panel = [Task(name=PANEL_TASK, panel=resolved.panel)] if resolved.panel else []
    return (*runnable, *panel), refused


def _skipped_tasks(refused: list[Refusal]) -> Iterator[str]:
    """Yield a note for each benchmark that the scores do not include."""
    yield from (f"Not evaluated: {refusal.reason}" for refusal in refused if refusal.variant is None)


def _models_of_one_name(variants: Mapping[str, Variant]) -> Iterator[str]:
    """Yield a note for each variant whose id does not tell its model from another one."""
    models: dict[str, set[str]] = defaultdict(set)
    for variant in variants.values():
        models[variant.model.slug].add(variant.model.id)
    for name, variant in variants.items():
        if len(models[variant.model.slug]) > 1:
            yield f"{name}: its model is {variant.model.id}."


def _refusal(resolved: ResolvedManifest, variant: Variant, problem: PlacementError) -> Refusal:
    requirements = evaluation_requirements(resolved, resolved.evaluate, variant)
    on_fallback = fallback_requirements(resolved, variant)
    suggestion = problem.suggestion or suggest(
        resolved.profile, requirements, variant.calibration, on_fallback=on_fallback
    )
    return Refusal(variant=variant.id, reason=f"{variant.id}: {problem}.", suggestion=suggestion)


def _notes(resolved: ResolvedManifest, variant: Variant, assignment: Assignment) -> Iterator[str]:
    """Yield notes on how the variant is computed or was planned, for readers of the results."""
    placement, model = assignment.evaluation.placement, variant.model
    kernel = placement.kernel
    if variant.is_quantized_here and not quantizers()[variant.scheme.tool].resumes:
        yield (
            f"{variant.id}: {variant.scheme.tool} cannot resume a quantization that was killed or preempted: the next"
            " attempt starts from the first layer."
        )
    if assignment.fallback_reason:
        backend = backend_title(assignment.settings.placement_backend)
        yield f"{variant.id}: evaluated by {backend}, because {assignment.fallback_reason}."
    if placement.offloaded:
        yield f"{variant.id} on {placement.shape.gpu_class}: {placement.offloaded.description}."
    if kernel and kernel.note:
        yield f"{variant.scheme.name} on {placement.shape.gpu_class} ({backend_title(kernel.backend)}): {kernel.note}."
    shape = resolved.shapes.get(model)
    if shape and (note := _rounding_note(shape.stored_dtype, assignment.settings.dtype_for(variant.scheme))):
        yield f"{model.id}: {note}"
    yield from _length_notes(resolved, variant, shape.context_length if shape else None, assignment)
    if shape and shape.contradiction:
        yield f"{model.id}: {shape.contradiction}; the plan uses config.json."
    if shape and shape.left_out:
        yield f"{model.id}: planned without the parts that are not for text ({', '.join(shape.left_out)})."
    if placement.shape.gpus and model in resolved.shape_errors and not resolved.manifest.is_synthetic:
        yield f"{model.id}: one GPU is planned without a memory estimate, because {resolved.shape_errors[model]}."


def _length_notes(
    resolved: ResolvedManifest, variant: Variant, context_length: int | None, assignment: Assignment
) -> Iterator[str]:
    """Yield a note for each task whose prompts, by the catalog's averages, are longer than what the model reads."""
    limit = min(filter(None, (assignment.settings.max_length, context_length)), default=None)
    for task in () if resolved.manifest.is_synthetic else resolved.tasks:
        tokens = mean_prompt_tokens(task)
        if limit is not None and tokens is not None and tokens > limit:
            yield (
                f"{variant.model.id}: a prompt of {task.name} with its answer has about {tokens:.0f} tokens, more than"
                f" the {limit} that the model reads: most prompts will be cut from the left, and marked. Use fewer"
                " few-shot examples or a larger evaluate.max_length, if the model permits it."
            )


def _rounding_note(stored: str | None, computed: str) -> str | None:
    """Return what happens to weights that the type of the computation cannot represent; None: it can."""
    if stored in (None, computed) or computed == "float32":
        return None
    return f"its weights are stored in {stored} and are evaluated rounded to {computed} (evaluate.dtype)."
