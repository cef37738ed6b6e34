"""A resolved manifest becomes units: a quantization a variant, its evaluation in shards, one merge."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from hpcq import __version__
from hpcq.catalog.kernels import title_of
from hpcq.catalog.tasks import find_task
from hpcq.core.work import Model, Scheme, Task, Variant, address_of
from hpcq.manifest import Resolved
from hpcq.plan.arrays import make_arrays
from hpcq.plan.build_units import evaluations_of, merge_of, units_of_variant
from hpcq.plan.cost.calibration import NOTHING_EARLIER, Earlier
from hpcq.plan.cost.estimator import Reckoner, merge_seconds, reckoning_sentences, results_bytes
from hpcq.plan.memory.weights import weight_bytes
from hpcq.plan.placement.assignment import Choice, choices_of
from hpcq.plan.placement.records import CannotPlace
from hpcq.plan.placement.requirements import evaluation_of, slower_evaluation_of
from hpcq.plan.placement.sharding import spread
from hpcq.plan.placement.suggestions import alternatives
from hpcq.plan.schedule.simulator import expected
from hpcq.plan.tool_versions import QUANTIZERS, versions_of
from hpcq.plan.units import Plan, PlannedUnit, Refusal


def make_plan(resolved: Resolved, earlier: Earlier = NOTHING_EARLIER) -> Plan:
    """Every unit of the run, in the order quantize, evaluate, merge of each; what cannot run is refused, with the cure.

    earlier: what the run's folder tells of what was done already. Nothing is read but the catalog and the
    environments' locks, and nothing is written.
    """
    tasks, refused = _runnable_tasks(resolved)
    reckoner = Reckoner(resolved=resolved, tasks=tasks, earlier=earlier)
    variants = {variant.id: variant for variant in (variant_of(resolved, *pair) for pair in resolved.pairs)}
    choices, unplaced = choices_of(reckoner, tuple(variants.values()))
    refused += [_refusal(resolved, variant, unplaced[name]) for name, variant in variants.items() if name in unplaced]
    if resolved.manifest.plan.objective == "finish":
        choices = spread(choices, resolved.profile, lambda tried: _wall_s(_units(reckoner, variants, tried), resolved))
    units = _units(reckoner, variants, choices)
    notes = dict.fromkeys(note for name, choice in choices.items() for note in _notes(resolved, variants[name], choice))
    return Plan(
        run=resolved.name,
        address=address_of("run", sorted(work.address for work in evaluations_of(units))),
        units=tuple(units),
        refused=tuple(refused),
        checkpoint_bytes=sum(_checkpoint_bytes(resolved, variants[name]) for name in choices),
        notes=(*resolved.notes, *_left_out(refused), *notes),
        compare=resolved.report.compare,
        reckoning=tuple(reckoning_sentences(reckoner.workload, [choice.evaluation for choice in choices.values()])),
        results_bytes=results_bytes(reckoner.workload, len(choices)),
    )


def _units(reckoner: Reckoner, variants: Mapping[str, Variant], choices: Mapping[str, Choice]) -> list[PlannedUnit]:
    """Variant by variant, the quantization before the evaluations; at the end the merge."""
    resolved = reckoner.resolved
    units = [
        unit
        for name, choice in choices.items()
        for unit in units_of_variant(resolved, variants[name], reckoner.tasks, choice, reckoner.earlier.timed_out)
    ]
    if units:
        units.append(merge_of(resolved, units, merge_seconds(reckoner.workload, len(choices))))
    return units


def _wall_s(units: Sequence[PlannedUnit], resolved: Resolved) -> float | None:
    line = expected(make_arrays(units, resolved.profile), resolved.profile)
    return line.wall_seconds if line else None


def _checkpoint_bytes(resolved: Resolved, variant: Variant) -> int:
    """0 where it is the base checkpoint, or of unknown size."""
    shape = resolved.shapes.get(variant.model.id)
    return weight_bytes(shape, variant.scheme) if variant.scheme.is_quantized and shape else 0


def variant_of(resolved: Resolved, model: Model, scheme: Scheme) -> Variant:
    """Model × scheme with everything that can change the checkpoint."""
    if not scheme.is_quantized:
        return Variant(model=model, scheme=scheme)
    return Variant(
        model=model,
        scheme=scheme,
        calibration=resolved.calibration if scheme.needs_calibration else None,
        versions=versions_of(QUANTIZERS[scheme.tool], resolved.quantize.environment, resolved),
    )


def _runnable_tasks(resolved: Resolved) -> tuple[tuple[Task, ...], list[Refusal]]:
    runnable, refused = [], []
    for task in resolved.tasks:
        facts = find_task(task.name)
        if facts is None or facts.is_runnable:
            runnable.append(task)
        else:
            refused.append(
                Refusal(
                    variant=None,
                    reason=f"{task.name}: hpcq {__version__} knows this benchmark by name and cannot run it yet.",
                    cure="other tasks; where the manifest names some, `submit` runs them and leaves this one out",
                )
            )
    return tuple(runnable), refused


def _left_out(refused: list[Refusal]) -> Iterator[str]:
    """What a reader of the scores must know of benchmarks that are not among them."""
    yield from (f"Not evaluated: {refusal.reason}" for refusal in refused if refusal.variant is None)


def _refusal(resolved: Resolved, variant: Variant, problem: CannotPlace) -> Refusal:
    wanted, slower = evaluation_of(resolved, resolved.evaluate, variant), slower_evaluation_of(resolved, variant)
    cure = problem.cure or alternatives(resolved.profile, wanted, variant.calibration, slower)
    return Refusal(variant=variant.id, reason=f"{variant.id}: {problem}.", cure=cure)


def _notes(resolved: Resolved, variant: Variant, choice: Choice) -> Iterator[str]:
    """What a reader must know of how the variant is computed, or was planned."""
    placed, model = choice.evaluation.placement, variant.model.id
    kernel = placed.kernel
    if choice.because:
        yield f"{variant.id}: evaluated by {title_of(choice.settings.placed_as)}, because {choice.because}."
    if placed.offloaded:
        yield f"{variant.id} on {placed.shape.gpu_class}: {placed.offloaded.sentence}."
    if kernel and kernel.note:
        yield f"{variant.scheme.name} on {placed.shape.gpu_class} ({title_of(kernel.backend)}): {kernel.note}."
    if placed.shape.gpus and model in resolved.unsized and not resolved.manifest.is_rehearsal:
        yield f"{model}: one GPU is planned and no memory reckoned, because {resolved.unsized[model]}."
