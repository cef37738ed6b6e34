"""A resolved manifest becomes units: a quantization a variant, its evaluation in shards, one merge."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from hpcq import __version__
from hpcq.catalog.kernels import title_of
from hpcq.catalog.models import ModelShape
from hpcq.catalog.tasks import find_task
from hpcq.manifest import Resolved
from hpcq.manifest.resolved import EvaluateSettings
from hpcq.plan.alternatives import alternatives
from hpcq.plan.fit import ORDINARY_LENGTH, Demand
from hpcq.plan.memory import GIB, gib, weight_bytes
from hpcq.plan.place import (
    CannotPlace,
    Evaluation,
    Placement,
    place_evaluation,
    place_merge,
    place_quantization,
)
from hpcq.plan.tools import BACKENDS, MERGE_ENVIRONMENT, QUANTIZERS, REHEARSAL_ENVIRONMENT, versions_of
from hpcq.plan.units import Plan, PlannedUnit, Refusal, Shape
from hpcq.units import EvaluateWork, Kind, MergeWork, Model, QuantizeWork, Scheme, Shard, Task, Variant, address_of


def make_plan(resolved: Resolved) -> Plan:
    """Every unit of the run, in the order quantize, evaluate, merge of each; what cannot run is refused, with the cure.

    Nothing is read but the catalog and the environments' locks, and nothing is written.
    """
    tasks, refused = _runnable_tasks(resolved)
    units: list[PlannedUnit] = []
    evaluations: list[EvaluateWork] = []
    checkpoint_bytes = 0
    notes: dict[str, None] = {}
    for model, scheme in resolved.pairs:
        variant = variant_of(resolved, model, scheme)
        wanted = _evaluation(resolved, variant)
        try:
            placed = place_evaluation(resolved.profile, wanted)
            planned = list(_units_of_variant(resolved, variant, tasks, placed))
        except CannotPlace as problem:
            cure = problem.cure or alternatives(resolved.profile, wanted, variant.calibration)
            refused.append(Refusal(variant=variant.id, reason=f"{variant.id}: {problem}.", cure=cure))
            continue
        notes.update(dict.fromkeys(_notes(resolved, variant, placed)))
        units.extend(planned)
        evaluations.append(_whole(planned[-1]))
        shape = resolved.shapes.get(model.id)
        if scheme.is_quantized and shape:
            checkpoint_bytes += weight_bytes(shape, scheme)
    if evaluations:
        units.append(_merge(resolved, evaluations, units))
    return Plan(
        run=resolved.name,
        address=address_of("run", sorted(work.address for work in evaluations)),
        units=tuple(units),
        refused=tuple(refused),
        checkpoint_bytes=checkpoint_bytes,
        notes=(*resolved.notes, *notes),
        compare=resolved.report.compare,
    )


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
                    cure=f"leave it out: list the other tasks under tasks.use instead of the suite '{task.name}'",
                )
            )
    return tuple(runnable), refused


def _evaluation(resolved: Resolved, variant: Variant) -> Evaluation:
    """What the variant's evaluation asks of a place."""
    settings, model = resolved.evaluate, resolved.shapes.get(variant.model.id)
    engine = dict(settings.engine)
    tensor, stages = engine.get("tensor_parallel_size"), engine.get("pipeline_parallel_size")
    return Evaluation(
        model=model,
        scheme=variant.scheme,
        backend=settings.backend,
        demand=_demand(settings, model, is_float32=settings.dtype_for(variant.scheme) == "float32"),
        tensor=None if tensor is None else int(tensor),
        stages=None if stages is None else int(stages),
    )


def _demand(settings: EvaluateSettings, model: ModelShape | None, *, is_float32: bool) -> Demand:
    """The KV cache that is needed to start: vLLM (0.32) refuses to unless one prompt as long as may come fits.

    Others compute fewer prompts at once where memory is short, so a small batch of ordinary ones is reckoned with.
    """
    engine = dict(settings.engine)
    bounds = (settings.max_length, model.context if model else None)
    longest = min((bound for bound in bounds if bound), default=ORDINARY_LENGTH)
    ordinary = min(longest, ORDINARY_LENGTH)
    number = 4 if is_float32 else 2
    demand = Demand(length=ordinary, compute_bytes=number, kv_bytes=number)
    if settings.backend != "vllm":
        sequences = min(settings.batch_size, demand.sequences)
        return dataclasses.replace(demand, sequences=sequences, batched_tokens=ordinary)
    if longest > demand.sequences * ordinary:
        demand = dataclasses.replace(demand, sequences=1, length=longest)
    tokens, cache = engine.get("max_num_batched_tokens"), engine.get("kv_cache_gib")
    return dataclasses.replace(
        demand,
        batched_tokens=None if tokens is None else int(tokens),
        kv_cache_bytes=None if cache is None else int(cache * GIB),
        share=float(engine.get("gpu_memory_utilization", demand.share)),
    )


def _notes(resolved: Resolved, variant: Variant, placed: Placement) -> Iterator[str]:
    """What a reader must know of how the variant is computed, or was planned."""
    model, kernel = variant.model.id, placed.kernel
    if kernel and kernel.note:
        yield f"{variant.scheme.name} on {placed.shape.gpu_class} ({title_of(kernel.backend)}): {kernel.note}."
    if placed.shape.gpus and model in resolved.unsized and not resolved.manifest.is_rehearsal:
        yield f"{model}: one GPU is planned and no memory reckoned, because {resolved.unsized[model]}."


def _units_of_variant(
    resolved: Resolved, variant: Variant, tasks: tuple[Task, ...], placed: Placement
) -> Iterator[PlannedUnit]:
    """The variant's quantization, if it has one, and its evaluation's shards.

    Raises:
        CannotPlace: no class of the profile can quantize it.
    """
    needs: tuple[str, ...] = ()
    checkpoint = variant.model.path or variant.model.id
    if variant.scheme.is_quantized:
        checkpoint = str(resolved.layout.checkpoint(variant))
        model_shape = resolved.shapes.get(variant.model.id)
        quantizing = place_quantization(resolved.profile, model_shape, variant.scheme, variant.calibration)
        quantization = PlannedUnit(
            id=f"{Kind.QUANTIZE}.{variant.id}",
            work=QuantizeWork(variant=variant, checkpoint_path=checkpoint, device=resolved.quantize.device),
            environment=resolved.quantize.environment,
            shape=quantizing.shape,
            memory_gib_per_gpu=_gib(quantizing),
        )
        needs = (quantization.id,)
        yield quantization
    whole = _evaluate_work(resolved, variant, tasks, checkpoint, placed.shape)
    count = resolved.evaluate.shards
    for index in range(count):
        unit_id = f"{Kind.EVALUATE}.{variant.id}" + (f".{index}of{count}" if count > 1 else "")
        work = dataclasses.replace(
            whole, shard=Shard(index=index, count=count), segments_path=str(resolved.layout.unit_segments(unit_id))
        )
        yield PlannedUnit(
            id=unit_id,
            work=work,
            environment=resolved.evaluate.environment,
            shape=placed.shape,
            memory_gib_per_gpu=_gib(placed),
            need=placed.need,
            kernel=placed.kernel.kernel if placed.kernel else None,
            depends_on=needs,
        )


def _gib(placed: Placement) -> float | None:
    return None if placed.gpu_bytes is None else gib(placed.gpu_bytes)


def _evaluate_work(
    resolved: Resolved, variant: Variant, tasks: tuple[Task, ...], checkpoint: str, shape: Shape
) -> EvaluateWork:
    settings = resolved.evaluate
    options: dict[str, int | bool] = {}
    if settings.max_length is not None:
        options["max_length"] = settings.max_length
    if not settings.prefix_sharing:
        options["prefix_sharing"] = False
    engine = dict(settings.engine)
    if settings.backend == "vllm" and shape.tensor_parallel > 1:
        engine.setdefault("tensor_parallel_size", shape.tensor_parallel)
    if settings.backend == "vllm" and shape.pipeline_parallel > 1:
        engine.setdefault("pipeline_parallel_size", shape.pipeline_parallel)
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
    )


def _whole(unit: PlannedUnit) -> EvaluateWork:
    """The evaluation that `unit` is a shard of, as the merge wants it."""
    if not isinstance(unit.work, EvaluateWork):
        raise TypeError(f"{unit.id} evaluates nothing")
    return dataclasses.replace(unit.work, shard=Shard(), segments_path="")


def _merge(resolved: Resolved, evaluations: list[EvaluateWork], units: list[PlannedUnit]) -> PlannedUnit:
    work = MergeWork(
        run=resolved.name,
        evaluations=tuple(evaluations),
        segments_path=str(resolved.layout.segments),
        results_path=str(resolved.layout.results),
    )
    rehearsal = evaluations[0].is_rehearsal
    try:
        shape = place_merge(resolved.profile)
    except CannotPlace:
        shape = Shape(gpu_class=units[-1].shape.gpu_class)
    return PlannedUnit(
        id=f"{Kind.MERGE}.{resolved.name}",
        work=work,
        environment=REHEARSAL_ENVIRONMENT if rehearsal else MERGE_ENVIRONMENT,
        shape=shape,
        depends_on=tuple(unit.id for unit in units if unit.kind is Kind.EVALUATE),
    )
