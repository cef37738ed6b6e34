"""The units of a variant that has its choice, and the merge: work, shards, paths, dependencies.

Knows resolved manifests and choices; decides nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator, Sequence

from hpcq.core.work import EvaluateWork, Kind, MergeWork, Offload, QuantizeWork, Shard, Task, Variant
from hpcq.manifest import Resolved
from hpcq.manifest.resolved import EvaluateSettings
from hpcq.plan.memory.weights import gib
from hpcq.plan.placement.assignment import Choice
from hpcq.plan.placement.place import place_merge
from hpcq.plan.placement.records import CannotPlace, Placement
from hpcq.plan.tool_versions import BACKENDS, MERGE_ENVIRONMENT, REHEARSAL_ENVIRONMENT, versions_of
from hpcq.plan.units import PlannedUnit, Shape


def units_of_variant(
    resolved: Resolved, variant: Variant, tasks: tuple[Task, ...], choice: Choice, timed_out: Collection[str]
) -> Iterator[PlannedUnit]:
    """The variant's quantization, if it has one, and its evaluation's shards.

    timed_out: units that met their time limit before, and are to have the longest that there is.
    """
    needs: tuple[str, ...] = ()
    checkpoint = variant.model.path or variant.model.id
    if choice.quantization:
        checkpoint = str(resolved.layout.checkpoint(variant))
        quantizing, unit_id = choice.quantization.placement, f"{Kind.QUANTIZE}.{variant.id}"
        quantization = PlannedUnit(
            id=unit_id,
            work=QuantizeWork(variant=variant, checkpoint_path=checkpoint, device=resolved.quantize.device),
            environment=resolved.quantize.environment,
            shape=quantizing.shape,
            memory_gib_per_gpu=_gib(quantizing),
            seconds=choice.quantization.seconds(),
            ample_seconds=None if unit_id in timed_out else choice.quantization.ample_seconds(),
            reckoned=choice.quantization.parts(),
        )
        needs = (quantization.id,)
        yield quantization
    settings, placed, count = choice.settings, choice.evaluation.placement, choice.shards
    whole = _evaluate_work(resolved, settings, variant, tasks, checkpoint, placed)
    evaluation = choice.evaluation
    seconds, ample, reckoned = evaluation.seconds(count), evaluation.ample_seconds(count), evaluation.parts(count)
    for index in range(count):
        unit_id = f"{Kind.EVALUATE}.{variant.id}" + (f".{index}of{count}" if count > 1 else "")
        work = dataclasses.replace(
            whole, shard=Shard(index=index, count=count), segments_path=str(resolved.layout.unit_segments(unit_id))
        )
        yield PlannedUnit(
            id=unit_id,
            work=work,
            environment=settings.environment,
            shape=placed.shape,
            memory_gib_per_gpu=_gib(placed),
            need=placed.need,
            kernel=placed.kernel.kernel if placed.kernel else None,
            seconds=seconds,
            ample_seconds=None if unit_id in timed_out else ample,
            reckoned=reckoned,
            offloaded=placed.offloaded,
            depends_on=needs,
        )


def _gib(placed: Placement) -> float | None:
    return None if placed.gpu_bytes is None else gib(placed.gpu_bytes)


def _evaluate_work(
    resolved: Resolved,
    settings: EvaluateSettings,
    variant: Variant,
    tasks: tuple[Task, ...],
    checkpoint: str,
    placed: Placement,
) -> EvaluateWork:
    options: dict[str, int | bool] = {}
    model = resolved.shapes.get(variant.model.id)
    if settings.max_length is not None and not (model and settings.max_length > model.context):
        options["max_length"] = settings.max_length  # beyond a model's own vLLM does not start with it
    if not settings.prefix_sharing:
        options["prefix_sharing"] = False
    engine = dict(settings.engine) if settings.backend == "vllm" else {}
    if settings.backend == "vllm" and placed.shape.tensor_parallel > 1:
        engine.setdefault("tensor_parallel_size", placed.shape.tensor_parallel)
    if settings.backend == "vllm" and placed.shape.pipeline_parallel > 1:
        engine.setdefault("pipeline_parallel_size", placed.shape.pipeline_parallel)
    return EvaluateWork(
        variant=variant,
        tasks=tasks,
        backend=settings.backend,
        dtype=settings.dtype_for(variant.scheme),
        versions=versions_of(BACKENDS[settings.backend], settings.environment, resolved),
        seed=settings.seed,
        options=tuple(options.items()),
        checkpoint_path=checkpoint,
        segments_path="",
        batch_size=settings.batch_size,
        flush_interval_s=settings.flush_interval_s,
        device=settings.device,
        pace=settings.pace,
        engine=tuple(engine.items()),
        offload=_offload(settings, placed, is_sized=model is not None),
    )


def _offload(settings: EvaluateSettings, placed: Placement, *, is_sized: bool) -> Offload:
    """Exactly what was planned; of a model whose sizes are not known, what the manifest allows."""
    found = placed.offloaded
    if settings.backend != "accelerate" or (is_sized and found is None):
        return Offload()
    if found is None:
        return Offload(to=settings.offload)
    return Offload(to=found.to, gpu_gib=tuple(map(gib, found.gpu_rooms)), host_gib=gib(found.host_room))


def merge_of(resolved: Resolved, units: Sequence[PlannedUnit], seconds: float) -> PlannedUnit:
    """Of all responses of `units`, behind whatever of them evaluates."""
    evaluating = [unit for unit in units if unit.kind is Kind.EVALUATE]
    evaluations = [_whole(unit.work) for unit in evaluating if isinstance(unit.work, EvaluateWork) and _is_first(unit)]
    work = MergeWork(
        run=resolved.name,
        evaluations=tuple(evaluations),
        segments_path=str(resolved.layout.segments),
        results_path=str(resolved.layout.results),
    )
    try:
        shape = place_merge(resolved.profile)
    except CannotPlace:
        shape = Shape(gpu_class=units[-1].shape.gpu_class)
    return PlannedUnit(
        id=f"{Kind.MERGE}.{resolved.name}",
        work=work,
        environment=REHEARSAL_ENVIRONMENT if evaluations[0].is_rehearsal else MERGE_ENVIRONMENT,
        shape=shape,
        seconds=seconds,
        depends_on=tuple(unit.id for unit in evaluating),
    )


def evaluations_of(units: Sequence[PlannedUnit]) -> tuple[EvaluateWork, ...]:
    """What the merge among `units` merges, each whole."""
    return next((unit.work.evaluations for unit in units if isinstance(unit.work, MergeWork)), ())


def _is_first(unit: PlannedUnit) -> bool:
    return unit.shard is not None and unit.shard.index == 0


def _whole(work: EvaluateWork) -> EvaluateWork:
    """The evaluation that `work` is a shard of, as the merge wants it."""
    return dataclasses.replace(work, shard=Shard(), segments_path="")
