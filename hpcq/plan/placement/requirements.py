"""What an evaluation asks of a place: its back end, and the memory without which that does not start.

Knows settings and model shapes; must not know GPU classes.
"""

from __future__ import annotations

import dataclasses

from hpcq.catalog.models import ModelShape
from hpcq.core.work import Variant
from hpcq.manifest import Resolved
from hpcq.manifest.resolved import EvaluateSettings
from hpcq.plan.memory.gpu_memory import ORDINARY_LENGTH, Demand
from hpcq.plan.memory.weights import GIB
from hpcq.plan.placement.records import Evaluation


def evaluation_of(resolved: Resolved, settings: EvaluateSettings, variant: Variant) -> Evaluation:
    """What the variant's evaluation by those settings asks of a place."""
    model = resolved.shapes.get(variant.model.id)
    engine = dict(settings.engine)
    tensor, stages = engine.get("tensor_parallel_size"), engine.get("pipeline_parallel_size")
    return Evaluation(
        model=model,
        scheme=variant.scheme,
        backend=settings.placed_as,
        demand=_demand(settings, model, is_float32=settings.dtype_for(variant.scheme) == "float32"),
        tensor=None if tensor is None else int(tensor),
        stages=None if stages is None else int(stages),
        offload=settings.offload if settings.placed_as == "accelerate" else "none",
    )


def slower_evaluation_of(resolved: Resolved, variant: Variant) -> Evaluation:
    """What it asks of accelerate, whatever back end the manifest names."""
    settings = resolved.evaluate
    if settings.placed_as == "vllm":
        settings = dataclasses.replace(settings, backend="accelerate", stands_for=None, engine=())
    return evaluation_of(resolved, settings, variant)


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
    if settings.placed_as != "vllm":
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
