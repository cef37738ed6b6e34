"""Build the units of an assigned variant, and the merge: work records, shards, paths, dependencies."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator, Sequence

from hpcq.catalog.tools import backends
from hpcq.core.unit_ids import UnitId
from hpcq.core.work import EvaluateWork, MergeWork, Offload, QuantizeWork, Shard, Task, UnitKind, Variant
from hpcq.manifest import ResolvedManifest
from hpcq.manifest.resolved import EvaluateSettings
from hpcq.plan.memory.weights import gib
from hpcq.plan.placement.assignment import Assignment
from hpcq.plan.placement.place import Placement, PlacementError, place_merge
from hpcq.plan.tool_versions import MERGE_ENVIRONMENT, SYNTHETIC_ENVIRONMENT, versions_of
from hpcq.plan.units import PlannedUnit, Shape


def variant_units(
    resolved: ResolvedManifest,
    variant: Variant,
    tasks: tuple[Task, ...],
    assignment: Assignment,
    timed_out: Collection[str],
) -> Iterator[PlannedUnit]:
    """Yield the variant's quantization, if it has one, and the shards of its evaluation.

    Args:
        resolved: The manifest.
        variant: The variant.
        tasks: Tasks to evaluate.
        assignment: The variant's placement and number of shards.
        timed_out: Units that exceeded their time limit before. They get the longest limit.
    """
    depends_on: tuple[str, ...] = ()
    checkpoint = variant.model.path or variant.model.id
    if assignment.quantization:
        checkpoint = str(resolved.layout.checkpoint(variant))
        quantizing = assignment.quantization.placement
        unit_id = str(UnitId(kind=UnitKind.QUANTIZE, subject=variant.id))
        quantization = PlannedUnit(
            id=unit_id,
            work=QuantizeWork(variant=variant, checkpoint_path=checkpoint, device=resolved.quantize.device),
            environment=resolved.quantize.environment_for(variant.scheme.tool),
            shape=quantizing.shape,
            memory_gib_per_gpu=_gib(quantizing),
            seconds=assignment.quantization.seconds(),
            padded_seconds=None if unit_id in timed_out else assignment.quantization.padded_seconds(),
            uncalibrated_seconds=assignment.quantization.uncalibrated_estimate(),
        )
        depends_on = (quantization.id,)
        yield quantization
    settings, placement, count = assignment.settings, assignment.evaluation.placement, assignment.shards
    whole = _evaluate_work(resolved, settings, variant, tasks, checkpoint, placement)
    evaluation = assignment.evaluation
    seconds, padded = evaluation.seconds(count), evaluation.padded_seconds(count)
    uncalibrated = evaluation.uncalibrated_estimate(count)
    for index in range(count):
        shard = Shard(index=index, count=count)
        unit_id = str(UnitId(kind=UnitKind.EVALUATE, subject=variant.id, shard=shard))
        work = dataclasses.replace(whole, shard=shard, segments_path=str(resolved.layout.unit_segments(unit_id)))
        yield PlannedUnit(
            id=unit_id,
            work=work,
            environment=settings.environment,
            shape=placement.shape,
            memory_gib_per_gpu=_gib(placement),
            gpu_memory=placement.gpu_memory,
            kernel=placement.kernel.name if placement.kernel else None,
            seconds=seconds,
            padded_seconds=None if unit_id in timed_out else padded,
            uncalibrated_seconds=uncalibrated,
            offloaded=placement.offloaded,
            depends_on=depends_on,
        )


def _gib(placement: Placement) -> float | None:
    return None if placement.gpu_bytes is None else gib(placement.gpu_bytes)


def _evaluate_work(
    resolved: ResolvedManifest,
    settings: EvaluateSettings,
    variant: Variant,
    tasks: tuple[Task, ...],
    checkpoint: str,
    placement: Placement,
) -> EvaluateWork:
    options: dict[str, int | bool] = {}
    model = resolved.shapes.get(variant.model)
    if settings.max_length is not None and not (model and settings.max_length > model.context_length):
        options["max_length"] = settings.max_length  # vLLM does not start with more than the model's own
    if not settings.prefix_sharing:
        options["prefix_sharing"] = False
    backend = backends()[settings.backend]
    engine = dict(settings.engine) if backend.has_engine_options else {}
    if backend.has_engine_options and placement.shape.tensor_parallel > 1:
        engine.setdefault("tensor_parallel_size", placement.shape.tensor_parallel)
    if backend.has_engine_options and placement.shape.pipeline_parallel > 1:
        engine.setdefault("pipeline_parallel_size", placement.shape.pipeline_parallel)
    return EvaluateWork(
        variant=variant,
        tasks=tasks,
        backend=settings.backend,
        dtype=settings.dtype_for(variant.scheme),
        versions=versions_of(backend, settings.environment, resolved),
        seed=settings.seed,
        options=tuple(options.items()),
        checkpoint_path=checkpoint,
        segments_path="",
        batch_size=settings.batch_size,
        flush_interval_s=settings.flush_interval_s,
        device=settings.device,
        synthetic_options=settings.synthetic_options,
        engine_options=tuple(engine.items()),
        offload=_offload(settings, placement, is_sized=model is not None),
    )


def _offload(settings: EvaluateSettings, placement: Placement, *, is_sized: bool) -> Offload:
    """Return the planned offload. For a model of unknown size, return what the manifest allows."""
    found = placement.offloaded
    if not backends()[settings.backend].offloads or (is_sized and found is None):
        return Offload()
    if found is None:
        return Offload(to=settings.offload)
    return Offload(
        to=found.target, gpu_gib=tuple(map(gib, found.gpu_capacity_bytes)), host_gib=gib(found.host_capacity_bytes)
    )


def merge_unit(resolved: ResolvedManifest, units: Sequence[PlannedUnit], seconds: float) -> PlannedUnit:
    """Return the merge of all responses of `units`. It depends on all evaluations among them."""
    evaluating = [unit for unit in units if unit.kind is UnitKind.EVALUATE]
    evaluations = [_whole(unit.work) for unit in evaluating if isinstance(unit.work, EvaluateWork) and _is_first(unit)]
    work = MergeWork(
        run=resolved.name,
        evaluations=tuple(evaluations),
        segments_path=str(resolved.layout.segments),
        results_path=str(resolved.layout.results),
    )
    try:
        shape = place_merge(resolved.profile)
    except PlacementError:
        shape = Shape(gpu_class=units[-1].shape.gpu_class)
    return PlannedUnit(
        id=str(UnitId(kind=UnitKind.MERGE, subject=resolved.name)),
        work=work,
        environment=SYNTHETIC_ENVIRONMENT if evaluations[0].is_synthetic else MERGE_ENVIRONMENT,
        shape=shape,
        seconds=seconds,
        depends_on=tuple(unit.id for unit in evaluating),
    )


def merged_evaluations(units: Sequence[PlannedUnit]) -> tuple[EvaluateWork, ...]:
    """Return the evaluations that the merge among `units` merges, without shards."""
    return next((unit.work.evaluations for unit in units if isinstance(unit.work, MergeWork)), ())


def _is_first(unit: PlannedUnit) -> bool:
    return unit.shard is not None and unit.shard.index == 0


def _whole(work: EvaluateWork) -> EvaluateWork:
    """Return the evaluation that `work` is a shard of, as the merge records it."""
    return dataclasses.replace(work, shard=Shard(), segments_path="")
