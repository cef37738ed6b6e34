"""Build the units of an assigned variant, and the merge: work records, shards, paths, dependencies."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator, Sequence
from typing import Any

from hpcq.catalog.model_shape import ModelShape
from hpcq.catalog.schemes import has_dynamic_int8_activations
from hpcq.catalog.tasks import generates_text
from hpcq.catalog.tools import backends
from hpcq.core.environments import CORE_ENVIRONMENT
from hpcq.core.unit_ids import UnitId
from hpcq.core.work_records import (
    EvaluateWork,
    MergeWork,
    Offload,
    QuantizeWork,
    Shard,
    StageWork,
    Task,
    UnitKind,
    Variant,
)
from hpcq.manifest import ResolvedManifest
from hpcq.manifest.lookups import resolve_path
from hpcq.manifest.resolved import EvaluateSettings
from hpcq.plan.attention import softcap_attention
from hpcq.plan.cost import constants
from hpcq.plan.memory.weights import base_bytes, gib
from hpcq.plan.placement.assignment import Assignment
from hpcq.plan.placement.candidates import Placement, PlacementError, place_merge
from hpcq.plan.tool_versions import MERGE_ENVIRONMENT, SYNTHETIC_ENVIRONMENT, versions_of
from hpcq.plan.units import PlannedUnit, Shape


def stage_work(resolved: ResolvedManifest, tasks: Sequence[Task]) -> StageWork:
    """Return the staging of everything that the run reads from the hub, at commits that are known."""
    on_hub = {named.id for named in resolved.context.models if named.commit}
    models = {(model.id, model.revision): None for model, _ in resolved.pairs if model.id in on_hub}
    foreign = (variant.checkpoint for variant in resolved.foreign)
    models |= {(checkpoint.id, checkpoint.revision): None for checkpoint in foreign if checkpoint}
    unit_id = str(UnitId(kind=UnitKind.STAGE, subject=resolved.name))
    text, panel = resolved.calibration, resolved.panel
    return StageWork(
        models=tuple((name, commit) for name, commit in models if commit),
        tasks=tuple(task for task in tasks if task.data_revisions),
        calibration=text if text and text.source and text.path else None,
        panel=panel if panel and panel.source and panel.path else None,
        refs=tuple(resolved.context.pins.refs()),
        cache=resolved.context.cache,
        mirror=str(resolve_path(mirror, resolved.manifest)) if (mirror := resolved.manifest.data.mirror) else None,
        segments_path=str(resolved.layout.unit_segments(unit_id)),
    )


def stage_unit(resolved: ResolvedManifest, tasks: Sequence[Task]) -> PlannedUnit | None:
    """Return the unit that stages what the run reads from the hub.

    None: it reads nothing from there, or no class of the profile has the role: then `hpcq stage` or `submit` stages.
    """
    work = stage_work(resolved, tasks)
    offered = [name for name, offer in resolved.profile.gpu_classes.items() if UnitKind.STAGE.value in offer.roles]
    if not offered or not (work.models or work.tasks or work.calibration or work.panel):
        return None
    sizes = [base_bytes(shape) for model, shape in resolved.shapes.items() if shape and model.revision]
    return PlannedUnit(
        id=str(UnitId(kind=UnitKind.STAGE, subject=resolved.name)),
        work=work,
        environment=CORE_ENVIRONMENT,
        shape=Shape(gpu_class=offered[0]),
        seconds=sum(sizes) / constants.DOWNLOAD_BYTES_PER_S,
    )


def variant_units(
    resolved: ResolvedManifest,
    variant: Variant,
    tasks: tuple[Task, ...],
    assignment: Assignment,
    timed_out: Collection[str],
    stage: PlannedUnit | None = None,
) -> Iterator[PlannedUnit]:
    """Yield the variant's quantization, if it has one, and the shards of its evaluation.

    Args:
        resolved: The manifest.
        variant: The variant.
        tasks: Tasks to evaluate.
        assignment: The variant's placement and number of shards.
        timed_out: Units that exceeded their time limit before. They get the longest limit.
        stage: The unit that stages what they read; None: it is staged before the submission.
    """
    depends_on = (stage.id,) if stage else ()
    checkpoint = (variant.checkpoint and variant.checkpoint.path) or variant.model.path or variant.model.id
    if assignment.quantization:
        checkpoint = str(resolved.layout.checkpoint(variant))
        quantizing = assignment.quantization.placement
        unit_id = str(UnitId(kind=UnitKind.QUANTIZE, subject=variant.id))
        quantization = PlannedUnit(
            id=unit_id,
            work=QuantizeWork(
                variant=variant,
                checkpoint_path=checkpoint,
                device=_device(resolved.quantize.device, quantizing.shape),
                max_fallback_share=resolved.quantize.max_fallback_share,
            ),
            environment=resolved.quantize.environment_for(variant.scheme.tool),
            shape=quantizing.shape,
            memory_gib_per_gpu=_gib(quantizing),
            seconds=assignment.quantization.seconds(),
            padded_seconds=None if unit_id in timed_out else assignment.quantization.padded_seconds(),
            uncalibrated_seconds=assignment.quantization.uncalibrated_estimate(),
            depends_on=depends_on,
        )
        depends_on = (quantization.id, *depends_on)
        yield quantization
    settings, placement, count = assignment.settings, assignment.evaluation.placement, assignment.shards
    tasks = _with_noise_floor(_generating_as_defined(resolved, settings, variant, tasks), variant)
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


def _generating_as_defined(
    resolved: ResolvedManifest, settings: EvaluateSettings, variant: Variant, tasks: tuple[Task, ...]
) -> tuple[Task, ...]:
    """Return the tasks, marked if earlier versions of hpcq applied generation_config.json to their generated text."""
    folder = (variant.checkpoint.path if variant.checkpoint else variant.model.path) or ""
    generation = resolved.generation.get(folder)
    if not (generation and generation.ignored and backends()[settings.backend].applied_generation_config):
        return tasks
    return tuple(
        dataclasses.replace(task, ignores_generation_config=True)
        if task.panel is None and generates_text(task.name, task.definitions)
        else task
        for task in tasks
    )


def _with_noise_floor(tasks: tuple[Task, ...], variant: Variant) -> tuple[Task, ...]:
    """Return the tasks; the unquantized variant reads the fidelity panel twice."""
    if variant.scheme.is_quantized:
        return tasks
    return tuple(
        dataclasses.replace(task, panel=dataclasses.replace(task.panel, repeats=2)) if task.panel else task
        for task in tasks
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
    model = resolved.shapes.get(variant.model)
    backend = backends()[settings.backend]
    needed = placement.kernel.distributions if placement.kernel else ()
    backend = dataclasses.replace(backend, distributions=(*backend.distributions, *needed))
    return EvaluateWork(
        variant=variant,
        tasks=tasks,
        backend=settings.backend,
        dtype=settings.dtype_for(variant.scheme),
        versions=versions_of(backend, settings.environment, resolved),
        seed=settings.seed,
        options=tuple(_options(resolved, settings, variant, placement).items()),
        checkpoint_path=checkpoint,
        segments_path="",
        batch_size=settings.batch_size,
        flush_interval_s=settings.flush_interval_s,
        device=_device(settings.device, placement.shape),
        synthetic_options=settings.synthetic_options,
        engine_options=tuple(_engine(settings, placement, model).items()),
        offload=_offload(settings, placement, is_sized=model is not None),
    )


def _options(
    resolved: ResolvedManifest, settings: EvaluateSettings, variant: Variant, placement: Placement
) -> dict[str, int | bool | str]:
    """Return the settings of the backend that can change a result."""
    options: dict[str, int | bool | str] = {}
    backend, model = backends()[settings.backend], resolved.shapes.get(variant.model)
    if settings.max_length is not None and not (
        model and model.context_length and settings.max_length > model.context_length
    ):
        options["max_length"] = settings.max_length  # vLLM does not start with more than the model's own
    if not settings.prefix_sharing:
        options["prefix_sharing"] = False
    if not settings.add_eos:
        options["add_eos"] = False
    add_bos_token = resolved.manifest.prompt.add_bos_token
    if add_bos_token is not None:
        options["add_bos_token"] = add_bos_token
    attention = softcap_attention(backend, resolved, variant.model)
    if attention:
        options["attention"] = attention
    if backend.has_engine_options and placement.kernel and placement.kernel.linear_backend:
        options["linear_backend"] = placement.kernel.linear_backend
    if backend.int8_divisor is not None and has_dynamic_int8_activations(variant.scheme):
        options["int8_divisor"] = backend.int8_divisor
    return options


def _engine(settings: EvaluateSettings, placement: Placement, model: ModelShape | None) -> dict[str, Any]:
    """Return the settings of the backend that change at most the last bits of a result."""
    if not backends()[settings.backend].has_engine_options:
        return {}
    engine: dict[str, Any] = dict(settings.engine)
    engine.pop("linear_backend", None)  # in `_options`, for the variants whose kernel it selects
    if placement.shape.tensor_parallel > 1:
        engine.setdefault("tensor_parallel_size", placement.shape.tensor_parallel)
    if placement.shape.pipeline_parallel > 1:
        engine.setdefault("pipeline_parallel_size", placement.shape.pipeline_parallel)
    if model and not model.experts:
        engine.pop("enable_expert_parallel", None)  # vLLM does not start with it
    elif placement.shape.expert_parallel:
        engine.setdefault("enable_expert_parallel", True)
    return engine


def _device(requested: str, shape: Shape) -> str:
    """Return the device of a unit. On a class with GPUs, 'auto' is a GPU: a node without a usable one is an error."""
    return "cuda" if requested == "auto" and shape.gpus else requested


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
